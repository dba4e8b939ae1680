"""`AnimationModel`: a prior, a refiner and a generator under one interface; presets, systems, saving and loading.

Notebook: ``notebooks/11_train_a_full_model.ipynb``.
"""

import dataclasses
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.config import GENERATORS, PRESETS, SYSTEMS, HourglassSizes, ModelConfig
from minimodel.correlation import Correlation, StructureEncoder
from minimodel.errors import choose
from minimodel.generator import GatedUNet, InpaintingNetwork, ResidualGenerator
from minimodel.landmarks import LANDMARKS
from minimodel.motion import Motion, Output, SourceState, Stages
from minimodel.priors import BUILDERS
from minimodel.refinement import MotionRefiner
from minimodel.saving import find_weights, load_weights_into, make_metadata, read_config, write_weights
from minimodel.warping import resize_flow, warp


class StructureCorrelation(nn.Module):
    """The two structure encoders, and their correlation (MRFA section 3.2)."""

    # Volumes up to this many numbers a pair are held: they are quicker; larger images look up without (see
    # `Correlation`).
    held_numbers = 2**24

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        shared = dict(**dataclasses.asdict(config.structure), norm=config.norm)
        size = config.image_size // config.coarse_scale
        sizes = config.points, config.structure_features
        self.source_encoder = StructureEncoder(*sizes, sees_image=config.structure_sees_image, size=size, **shared)
        self.driving_encoder = StructureEncoder(*sizes, sees_image=False, size=size, **shared)

    def encode_source(self, motion: Motion, image: Tensor) -> Tensor:
        small = F.avg_pool2d(image, self.config.coarse_scale)
        return self.source_encoder(
            self._part_points(motion), tuple(small.shape[-2:]), small if self.config.structure_sees_image else None
        )

    def forward(self, source_structure: Tensor, driving_motion: Motion) -> Correlation:
        height, width = source_structure.shape[-2:]
        driving_structure = self.driving_encoder(self._part_points(driving_motion), (height, width))
        return Correlation(
            driving_structure,
            source_structure.expand(len(driving_structure), -1, -1, -1),
            radius=self.config.radius,
            levels=self.config.pyramid + 1,
            hold_volume=(height * width) ** 2 <= self.held_numbers,
        )

    def _part_points(self, motion: Motion) -> Float[Tensor, "b k 2"]:
        """One point a part: of a spline the mean of its points."""
        return reduce(motion.points, "b (k n) c -> b k c", "mean", k=self.config.points)


class AnimationModel(nn.Module):
    """Source picture + driving motion -> the source, moved.

    >>> model = AnimationModel.load("tiny")
    >>> source = model.encode_source(photo)                      # once
    >>> frame = model.render(source, model.encode_driving(frames)).image
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.prior = BUILDERS[config.prior](config)
        shared = dict(outer_kernel=config.head_kernel, norm=config.norm)
        if config.generator == "residual":
            sizes = dict(blocks=config.residual_blocks, scales=config.unet.levels + 1)
            self.generator = ResidualGenerator(**dataclasses.asdict(config.residual), **sizes, **shared)
        else:
            network = {"unet": GatedUNet, "inpainting": InpaintingNetwork}[config.generator]
            self.generator = network(**dataclasses.asdict(self.scale_sizes), **shared)
        self.structure = self.refiner = None
        if config.refine:
            self.structure = StructureCorrelation(config)
            self.refiner = MotionRefiner(
                self.generator.feature_channels,
                radius=config.radius,
                levels=config.pyramid + 1,
                iterations=config.iterations,
                widths=config.updater,
                update_flow=config.update_flow,
                update_occlusion=config.update_occlusion,
                warped_source=config.warped_source,
            )

    @classmethod
    def from_preset(
        cls,
        preset: str,
        *,
        system: str = "mrfa",
        prior: str | None = None,
        refine: bool | None = None,
        generator: str | None = None,
        **sizes,
    ) -> "AnimationModel":
        """A model with fresh weights. ``prior``, ``refine`` and ``generator`` override parts of ``system``; ``sizes``
        are further fields of `ModelConfig`."""
        config = choose("preset", preset, PRESETS)
        parts = dict(choose("system", system, SYSTEMS))
        parts |= {k: v for k, v in dict(prior=prior, refine=refine, generator=generator).items() if v is not None}
        choose("prior", parts["prior"], BUILDERS)
        choose("generator", parts["generator"], GENERATORS)
        if parts["prior"] == "none" and not parts["refine"]:
            raise ValueError(
                "prior 'none' takes its coarse flow from the refinement's correlation: refine must be True"
            )
        if parts["prior"] == "landmarks" and sizes.setdefault("points", LANDMARKS) != LANDMARKS:
            raise ValueError(f"points is {sizes['points']}: the prior 'landmarks' has {LANDMARKS}")
        unknown = sizes.keys() - {f.name for f in dataclasses.fields(ModelConfig)}
        if unknown:
            raise ValueError(f"unknown sizes {sorted(unknown)}: see the fields of minimodel.config.ModelConfig")
        config = dataclasses.replace(config, **parts, **sizes)
        if "iterations" not in sizes and config.generator == "inpainting":
            # The published network has fewer scales than the U-Net.
            config = dataclasses.replace(config, iterations=min(config.iterations, config.inpainting.levels + 1))
        return cls(config)

    @property
    def scale_sizes(self) -> HourglassSizes:
        """Those whose levels are the scales of flows and occlusions: the generator's; the residual one, which needs
        only the finest, takes the U-Net's."""
        return self.config.inpainting if self.config.generator == "inpainting" else self.config.unet

    def encode_source(
        self,
        image: Float[Tensor, "b 3 h w"],
        *,
        landmarks: Float[Tensor, "b 74 2"] | None = None,
        to_render: bool = True,
    ) -> SourceState:
        """``landmarks`` (normalised) are for the landmarks prior: with them it needs no detector. Not ``to_render`` is
        enough for `move`."""
        self.check_size(*image.shape[-2:])
        motion = self._motion(image, landmarks)
        needed = self.refiner is not None or (to_render and self.config.generator != "residual")
        state = SourceState(image, motion, self.generator.encode(image) if needed else [])
        if self.refiner is not None:
            state.structure = self.structure.encode_source(motion, image)
            state.context = self.refiner.project(state.features)
        return state

    def encode_driving(
        self, image: Float[Tensor, "b 3 h w"] | None = None, *, landmarks: Float[Tensor, "b 74 2"] | None = None
    ) -> Motion:
        """What a driving frame says; to the landmarks prior landmarks are all of it."""
        if image is not None:
            self.check_size(*image.shape[-2:])
        return self._motion(image, landmarks)

    def _motion(self, image: Tensor | None, landmarks: Tensor | None) -> Motion:
        if landmarks is not None:
            if self.config.prior != "landmarks":
                raise ValueError(f"landmarks given to a model with the prior {self.config.prior!r}: pass the image")
            return Motion(landmarks)
        if image is None:
            raise ValueError("neither an image nor landmarks given: expected an image, or landmarks")
        return self.prior.detect(image)

    def move(self, source: SourceState, motion: Motion, **options) -> Stages:
        """All of `render` before the generator: coarse flow and refinement. ``options`` are the prior's."""
        source = _expand(source, len(motion.points))
        correlation = None if self.structure is None else self.structure(source.structure, motion)
        coarse = self.prior(source.image, source.motion, motion, correlation, **options)
        height, width = source.image.shape[-2:]
        sizes = [(height >> level, width >> level) for level in reversed(range(self.scale_sizes.levels + 1))]
        if self.refiner is None:
            flows = [resize_flow(coarse.flow, size) for size in sizes]
            own = {tuple(occlusion.shape[-2:]): occlusion for occlusion in coarse.occlusions}
            occlusions = [own[size] if size in own else resize_flow(coarse.occlusion, size) for size in sizes]
        else:
            flows, occlusions = self.refiner(coarse, correlation, source.context, sizes)
        return Stages(
            flows=[coarse.flow, *flows],
            occlusions=[coarse.occlusion, *occlusions],
            warped_source=warp(source.image, flows[-1]),
            coarse=coarse,
            correlation=correlation,
        )

    def render(self, source: SourceState, motion: Motion, **options) -> Output:
        """``motion`` of batch B moves a source of batch B, or of batch 1 for all of them; ``options`` are the
        prior's."""
        stages = self.move(source, motion, **options)
        if self.config.generator == "residual":
            painted, mask = self.generator(stages.warped_source, stages.flows[-1])
            # Eq. 2's mask, as an occlusion: its generator decides where the warped source is to be trusted. Where a
            # refinement has an opinion, it has a say.
            stages.occlusions[-1] = stages.occlusions[-1] - mask
            visible = torch.sigmoid(stages.occlusions[-1])
            image = stages.warped_source * visible + painted * (1 - visible)
            return Output(image=image, painted=painted, **vars(stages))
        features = _expand(source, len(motion.points)).features
        image = painted = self.generator(features, stages.flows[1:], stages.occlusions[1:])
        if self.config.blend:
            # The gate of Eq. 10 once more. The paper doesn't have this step, its published code does. Without it the
            # first hours of training give blurred faces on blurred backgrounds.
            visible = torch.sigmoid(stages.occlusions[-1])
            image = stages.warped_source * visible + painted * (1 - visible)
        return Output(image=image, painted=painted, **vars(stages))

    def forward(
        self,
        source: Float[Tensor, "b 3 h w"],
        driving: Float[Tensor, "b 3 h w"] | None = None,
        *,
        source_landmarks: Float[Tensor, "b 74 2"] | None = None,
        driving_landmarks: Float[Tensor, "b 74 2"] | None = None,
    ) -> Output:
        state = self.encode_source(source, landmarks=source_landmarks)
        return self.render(state, self.encode_driving(driving, landmarks=driving_landmarks))

    def check_size(self, height: int, width: int) -> None:
        """Raise a ValueError that names the nearest sizes if the networks can't take this one."""
        c = self.config
        own = {"affine": [c.detector, c.dense_motion], "tps": [c.dense_motion], "tokens": [c.dense_motion]}
        own["tps"] += [c.detector] * c.spline_heatmaps
        own |= {"landmarks": [], "none": [c.detector]}
        steps = [c.coarse_scale * 2**sizes.levels for sizes in own[c.prior] + [c.structure] * c.refine]
        steps.append(2**self.scale_sizes.levels)
        if c.prior == "landmarks":  # a box is a quarter of the picture
            steps += [c.whole_scale * 2**c.whole_branch.levels, 4 * 2**c.local_branch.levels]
        if c.prior == "tokens":
            steps.append(self.prior.detector.step)
        step = math.lcm(*steps)
        if height % step or width % step or height <= 0 or width <= 0:
            near = [
                f"{n // step * step} or {(n // step + 1) * step}" if n >= step else str(step) for n in (height, width)
            ]
            raise ValueError(
                f"image of {height} x {width} pixels: both sides must be multiples of {step};"
                f" nearest heights are {near[0]}, nearest widths {near[1]}"
            )

    def save(self, path: str | Path) -> None:
        write_weights(self, path, self.metadata())

    def metadata(self) -> dict[str, str]:
        return make_metadata(self.config.to_json())

    @classmethod
    def load(cls, name_or_path: str | Path) -> "AnimationModel":
        """A shipped model by name, or a file written by `save`; on the CPU, in evaluation mode."""
        path = find_weights(name_or_path)
        model = cls(read_config(path, "animation", ModelConfig.from_json))
        load_weights_into(model, path)
        return model.eval()


def _expand(source: SourceState, batch: int) -> SourceState:
    """A source of batch 1 in front of ``batch`` driving frames, without copying."""
    if len(source.image) == batch:
        return source
    if len(source.image) != 1:
        raise ValueError(f"{len(source.image)} sources for {batch} driving frames: expected 1 or as many")

    def grow(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.expand(batch, *x.shape[1:])

    motion = Motion(grow(source.motion.points), grow(source.motion.affine), grow(source.motion.image))
    return SourceState(
        grow(source.image),
        motion,
        [grow(f) for f in source.features],
        grow(source.structure),
        [grow(c) for c in source.context],
    )
