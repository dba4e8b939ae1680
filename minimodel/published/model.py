"""A published model behind the interface of `AnimationModel`, so that everything that renders takes it."""

import math
from pathlib import Path

import torch
from torch import Tensor

from minimodel.model import AnimationModel
from minimodel.motion import Motion, SourceState, Stages
from minimodel.published.conventions import flow_from_grid, resize
from minimodel.published.motion import GridMotion
from minimodel.published.networks import build_avd, build_generator, build_prior, build_refinement, handling
from minimodel.published.sizes import PublishedConfig
from minimodel.runtime import Device, pick_device
from minimodel.saving import load_weights_into, make_metadata, read_config, read_metadata
from minimodel.warping import size_of, warp

KIND = "published"


class PublishedModel(AnimationModel):
    """FOMM, TPSM, MRFA or MTIA with the weights of a published checkpoint; for rendering, not for training.

    Its interface is that of any `AnimationModel`. Flows are those of `warping`: sampling by them (black outside) gives
    what published code samples. Points are positions of a corner grid, see `conventions`.

    >>> model = PublishedModel.load("published.safetensors")
    """

    def __init__(self, sizes: PublishedConfig, card: dict[str, str] | None = None):
        prior, generator = build_prior(sizes), build_generator(sizes)
        super().__init__(prior=prior, generator=generator, image_size=sizes.image_size)
        self.sizes, self.card, self.handling = sizes, card or {}, handling(sizes)
        self.structure, self.refiner = build_refinement(sizes, generator.feature_channels)  # type: ignore[assignment]  # same calls
        self.avd = build_avd(sizes)
        if self.structure is not None:
            self.step = math.lcm(self.step, self.structure.step)

    def move(self, source: SourceState, motion: Motion, *, part_scales: Tensor | None = None) -> Stages:
        """`AnimationModel.move` with the sampling and resizing of published code, see `networks.Handling`.
        ``part_scales`` has no effect: it is for training."""
        source = source.expand(len(motion))
        coarse = self.prior(source.image, source.motion, motion, None)
        assert isinstance(coarse, GridMotion), "published priors give grids"
        if self.refiner is None or self.structure is None:
            flows, occlusions = self._scaled(coarse, [size_of(feature) for feature in source.features])
            shown = flows[-1]
        else:
            lookup = self.structure(source.structure, self.prior.structure_points(motion))
            flows, occlusions, shown = self.refiner(coarse, lookup, source.context)
        return Stages(
            flows=[coarse.flow, *flows],
            occlusions=[coarse.occlusion, *occlusions],
            warped_source=warp(source.image, shown, padding="zeros"),
            coarse=coarse,
        )

    def _scaled(self, coarse: GridMotion, sizes: list[tuple[int, int]]) -> tuple[list[Tensor], list[Tensor]]:
        """Flows and occlusion logits of each size from the coarse ones."""
        assert coarse.grid is not None
        corners, own = self.handling.resizing, {size_of(o): o for o in coarse.occlusions}
        flows, occlusions = [], []
        for size in sizes:
            grid = resize(coarse.grid, size, align_corners=corners)
            flows.append(flow_from_grid(grid, size, align_corners=self.handling.features))
            if size in own:
                occlusions.append(own[size])
            elif self.handling.resizes_logits:
                occlusions.append(resize(coarse.occlusion, size, align_corners=corners))
            else:
                visible = resize(torch.sigmoid(coarse.occlusion), size, align_corners=corners)
                occlusions.append(torch.logit(visible))
        return flows, occlusions

    def metadata(self) -> dict[str, str]:
        """The metadata of the weight file: sizes, kind and card."""
        return make_metadata(self.sizes.to_json(), kind=KIND, **self.card)

    @classmethod
    def load(cls, name_or_path: str | Path, *, device: Device | torch.device = "cpu") -> "PublishedModel":
        """Load a file that `import_checkpoint` wrote, in evaluation mode on ``device``. Raises `MinimodelError` for a
        file of another kind."""
        path = Path(name_or_path)
        card = {key: value for key, value in read_metadata(path, KIND).items() if key not in make_metadata("", kind="")}
        model = cls(read_config(path, KIND, PublishedConfig.from_json), card)
        load_weights_into(model, path)
        # Not in the layout of `ready_to_render`, which is a little quicker: its convolutions round differently, and the
        # deepest of these networks make 1e-4 of a picture of that, three times as much as in the published layout.
        return model.eval().to(device if isinstance(device, torch.device) else pick_device(device))
