"""`AnimationModel`: a prior, a refiner and a generator under one interface; loading, saving, animating tensors.

Notebook: ``notebooks/11_train_a_full_model.ipynb``.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minimodel import composition, transfer
from minimodel.config import ModelConfig
from minimodel.correlation import StructureCorrelation, StructureEncoder
from minimodel.errors import MinimodelError
from minimodel.generator import GatedUNet, Generator, InpaintingNetwork, ResidualGenerator
from minimodel.motion import Motion, Output, SourceState, Stages, join
from minimodel.priors import Prior, build_prior
from minimodel.refinement import MotionRefiner
from minimodel.runtime import Device, Precision, in_precision, pick_device, ready_to_render
from minimodel.saving import find_weights, holds_kind, load_weights_into, make_metadata, read_config, write_weights
from minimodel.warping import resize_flow, size_of, warp


class AnimationModel(nn.Module):
    """Animates a source picture with the motion of driving frames.

    The parts are given as modules: a ``prior`` (see `Prior`), a ``generator`` (see `Generator`), and, to refine motion,
    a ``refiner`` with the ``structure`` correlation that the refiner reads. ``image_size`` is the side in pixels of the
    training pictures; other sides work too if they are multiples of ``self.step``. ``self.precision`` is that of
    `render`'s networks, float32 unless it is set; source and points are encoded in float32 in any case. `from_preset`
    builds the parts of the papers. A refiner without a structure, or the reverse, raises a `MinimodelError`.

    >>> model = AnimationModel.load("tiny")
    >>> source = model.encode_source(photo)                      # once
    >>> frame = model.render(source, model.encode_driving(frames)).image
    """

    def __init__(
        self,
        *,
        prior: Prior,
        generator: Generator,
        refiner: MotionRefiner | None = None,
        structure: StructureCorrelation | None = None,
        image_size: int,
        config: ModelConfig | None = None,
    ):
        super().__init__()
        if (refiner is None) != (structure is None):
            raise MinimodelError("refiner and structure go together: the refiner reads the structure's correlation")
        self.prior, self.generator, self.structure, self.refiner = prior, generator, structure, refiner
        self.image_size, self.config = image_size, config
        self.precision: Precision = "float32"
        self.step = math.lcm(prior.step, generator.step, *([structure.step] if structure is not None else []))

    @classmethod
    def from_config(cls, config: ModelConfig) -> "AnimationModel":
        """Build the model that a configuration names, with fresh weights."""
        prior, generator = build_prior(config), build_generator(config)  # in this order: both draw random weights
        parts: dict[str, Any] = {}
        if config.refine:
            parts = dict(structure=build_structure(config), refiner=build_refiner(config, generator))
        return cls(prior=prior, generator=generator, **parts, image_size=config.image_size, config=config)

    @classmethod
    def from_preset(cls, preset: str, *, system: str = "mrfa", **changes: Any) -> "AnimationModel":
        """Build a model of a preset's sizes, with fresh weights.

        ``changes`` are those of `ModelConfig.from_preset`: other parts than the system's, or sizes of one's own. A
        `MinimodelError` names unknown choices and parts that don't fit together.

        >>> AnimationModel.from_preset("tiny", system="mrfa", prior="tps", points=8)
        """
        return cls.from_config(ModelConfig.from_preset(preset, system=system, **changes))

    @property
    def moves_by_landmarks(self) -> bool:
        """Whether given landmarks can take the place of pictures."""
        return self.prior.moves_by_landmarks

    # ------------------------------------------------------------------------------------------------- one frame

    def encode_source(
        self,
        image: Float[Tensor, "b 3 h w"],
        *,
        landmarks: Float[Tensor, "b 74 2"] | None = None,
        to_render: bool = True,
    ) -> SourceState:
        """Compute all that depends on the source alone.

        ``landmarks`` (normalised) take the place of their detection, for a prior that uses them. ``to_render`` False
        leaves out features that `move` doesn't need. A `MinimodelError` is raised for pictures other than float RGB in
        [0, 1] with sides that are multiples of ``self.step``, and for landmarks that the prior can't use.

        >>> source = model.encode_source(photo)  # (1, 3, h, w) in [0, 1]
        """
        self._check_picture(image)
        motion = self._motion(image, landmarks)
        features: list[Tensor] = []
        if self.refiner is not None or (to_render and self.generator.uses_features):
            features = self.generator.encode(image)
        state = SourceState(image, motion, features)
        if self.refiner is not None and self.structure is not None:
            state.structure = self.structure.encode_source(self.prior.structure_points(motion), image)
            state.context = self.refiner.project(state.features)
        return state

    def encode_driving(
        self,
        image: Float[Tensor, "b 3 h w"] | None = None,
        *,
        landmarks: Float[Tensor, "b 74 2"] | None = None,
        move_background: bool = False,
    ) -> Motion:
        """Find the motion of driving frames.

        ``landmarks`` (normalised) can take the place of frames, for a prior that moves by landmarks, or
        spare the prior `face` their detection in the frames. With
        ``move_background`` the TPS prior moves the background as well, as the background moves between source and
        driving frame: right within one film, wrong for a photo that another film drives. Raises a `MinimodelError` as
        `encode_source` does, and without both frames and landmarks.

        >>> motion = model.encode_driving(frames)  # (t, 3, h, w) in [0, 1]
        """
        if image is not None:
            self._check_picture(image)
        motion = self._motion(image, landmarks)
        return dataclasses.replace(motion, image=image) if move_background else motion

    def move(self, source: SourceState, motion: Motion, *, part_scales: Tensor | None = None) -> Stages:
        """Compute all of `render` before the generator: coarse flow and refinement.

        ``part_scales`` are for the training of a prior with droppable parts (see `Prior`).
        """
        source = source.expand(len(motion))
        correlation = None
        if self.structure is not None and source.structure is not None:
            correlation = self.structure(source.structure, self.prior.structure_points(motion))
        options = {} if part_scales is None else dict(part_scales=part_scales)
        coarse = self.prior(source.image, source.motion, motion, correlation, **options)
        height, width = source.image.shape[-2:]
        sizes = [(height >> level, width >> level) for level in reversed(range(self.generator.scales))]
        if self.refiner is None:
            flows = [resize_flow(coarse.flow, size) for size in sizes]
            own = {size_of(occlusion): occlusion for occlusion in coarse.occlusions}
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

    def render(self, source: SourceState, motion: Motion, *, part_scales: Tensor | None = None) -> Output:
        """Render the source in ``motion``.

        A motion of B frames moves B sources, or one source B times. Any other number raises a `MinimodelError`.

        >>> pictures = model.render(source, motion).image  # (t, 3, h, w) in [0, 1]
        """
        with in_precision(self.precision, source.image.device):
            return self.paint(source, self.move(source, motion, part_scales=part_scales))

    def paint(self, source: SourceState, stages: Stages, *, gates: list[Tensor] | None = None) -> Output:
        """Compute the second half of `render`, after `move`.

        ``gates`` (logits, one of each scale, coarsest first) replace the stages' occlusions in the generator; the
        output still has the stages' occlusions. A generator can so be trained with gates from the truth.
        """
        used = stages if gates is None else dataclasses.replace(stages, occlusions=[stages.occlusions[0], *gates])
        painted, occlusion = self.generator.paint(source.expand(len(stages.warped_source)), used)
        known = dict(vars(stages))
        if occlusion is None:
            return Output(image=painted, painted=painted, **known)
        if gates is None:
            known["occlusions"] = [*stages.occlusions[:-1], occlusion]
        visible = torch.sigmoid(occlusion)
        return Output(image=stages.warped_source * visible + painted * (1 - visible), painted=painted, **known)

    def forward(
        self,
        source: Float[Tensor, "b 3 h w"],
        driving: Float[Tensor, "b 3 h w"] | None = None,
        *,
        source_landmarks: Float[Tensor, "b 74 2"] | None = None,
        driving_landmarks: Float[Tensor, "b 74 2"] | None = None,
        move_background: bool = False,
    ) -> Output:
        """Run `encode_source`, `encode_driving` and `render`."""
        state = self.encode_source(source, landmarks=source_landmarks)
        motion = self.encode_driving(driving, landmarks=driving_landmarks, move_background=move_background)
        return self.render(state, motion)

    # --------------------------------------------------------------------------------------------------- a film

    @torch.inference_mode()
    def encode_film(self, frames: Iterable, *, landmarks: Iterable | None = None, batch: int = 8) -> Motion:
        """Find the motion of all frames (3, h, w) of a film; no frame is kept.

        ``landmarks`` yields the normalised landmarks (74, 2) of each frame, for a prior that uses them: those that are
        found in larger frames than the model sees are better. It is asked after the frames of a batch. A film without
        frames raises a `MinimodelError`, and so do fewer landmarks than frames.
        """
        device, known = self._device(), None if landmarks is None else iter(landmarks)
        motions = []
        for some in _batches(frames, batch):
            given = None if known is None else list(islice(known, len(some)))
            if given is not None and len(given) < len(some):
                raise MinimodelError("the landmarks of the driving film end before its frames do")
            found = None if given is None else torch.stack(given).to(device)
            motions.append(self.encode_driving(torch.stack(some).to(device), landmarks=found))
        if not motions:
            raise MinimodelError("the driving film has no frames")
        return join(motions)

    def render_film(
        self,
        source: SourceState,
        motion: Motion,
        *,
        photo: Float[Tensor, "1 3 height width"] | None = None,
        batch: int = 8,
    ) -> Iterator[Float[Tensor, "3 h w"]]:
        """Yield the source in each motion of a film, frame by frame, rendered under inference mode.

        With ``photo``, the source's picture at a resolution of its own, frames are composed at that resolution, see
        `composition.enlarge`.
        """
        for start in range(0, len(motion), batch):
            with torch.inference_mode():  # not around a yield: the caller isn't in this mode
                output = self.render(source, motion[start : start + batch])
            if photo is None:
                yield from output.image
                continue
            for index in range(len(output.image)):
                with torch.inference_mode():
                    frame = composition.enlarge(output, photo, index)
                yield frame

    def animate(
        self,
        photo: Float[Tensor, "3 h w"],
        video: Iterable | None = None,
        *,
        landmarks: Float[Tensor, "t 74 2"] | None = None,
        mode: transfer.Mode = "relative",
        start_frame: int | None = None,
        network: transfer.AvdNetwork | None = None,
        batch: int = 8,
    ) -> Iterator[Float[Tensor, "3 h w"]]:
        """Yield a photo in the motion of a film, frame by frame, rendered under inference mode.

        ``video`` is a tensor (T, 3, h, w) or yields frames (3, h, w). The video is read once, and only points and
        matrices are kept. ``landmarks`` (normalised) of a film can take the video's place, for a model that moves by
        landmarks. ``mode``, ``start_frame`` and ``network`` are those of `transfer.transfer`. A `MinimodelError` is
        raised for pictures that aren't float RGB in [0, 1] or have sides that the model can't take, and without both
        video and landmarks.

        >>> frames = torch.stack(list(model.animate(photo, film)))
        """
        with torch.inference_mode():
            source = self.encode_source(photo[None].to(self._device()))
            if landmarks is not None:
                film = self.encode_driving(landmarks=landmarks.to(self._device()))
            elif video is not None:
                film = self.encode_film(video, batch=batch)
            else:
                raise MinimodelError("neither a video nor landmarks given: expected one that drives")
            motion = transfer.transfer(mode, source.motion, film, start_frame=start_frame, network=network)
        yield from self.render_film(source, motion, batch=batch)

    # ----------------------------------------------------------------------------------------- what can be given

    def _motion(self, image: Tensor | None, landmarks: Tensor | None) -> Motion:
        if landmarks is not None:
            return self.prior.detect_around(image, landmarks)
        if image is None:
            raise MinimodelError("neither an image nor landmarks given: expected an image, or landmarks")
        return self.prior.detect(image)

    def _check_picture(self, image: Tensor) -> None:
        came = f"{'x'.join(map(str, image.shape))} of {str(image.dtype).removeprefix('torch.')}"
        if image.dim() != 4 or image.shape[1] != 3 or not image.is_floating_point():
            raise MinimodelError(f"a tensor {came}: expected pictures (b, 3, h, w), RGB as float in [0, 1]")
        self.check_size(*image.shape[-2:])
        # While training the check would make a GPU wait, and a graph that is being exported holds no numbers.
        unknown = image.device.type == "meta" or torch.compiler.is_compiling()
        if not self.training and not unknown and image.numel():
            low, high = (float(value) for value in image.detach().aminmax())
            if min(low, 1 - high) < -0.01:
                raise MinimodelError(
                    f"pictures with values from {low:.3g} to {high:.3g}: expected 0 to 1 (divide by 255?)"
                )

    def check_size(self, height: int, width: int) -> None:
        """Raise a `MinimodelError` that names the nearest sizes if the networks can't take this size."""
        step = self.step
        if height % step or width % step or height <= 0 or width <= 0:
            near = [
                f"{n // step * step} or {(n // step + 1) * step}" if n >= step else str(step) for n in (height, width)
            ]
            raise MinimodelError(
                f"image of {height} x {width} pixels: both sides must be multiples of {step};"
                f" nearest heights are {near[0]}, nearest widths {near[1]}"
            )

    def _device(self) -> torch.device:
        return next(self.parameters()).device

    # ------------------------------------------------------------------------------------------ loading and saving

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors, with the configuration that `load` builds the model from.

        >>> model.save("mine.safetensors")
        """
        write_weights(self, path, self.metadata())

    def metadata(self) -> dict[str, str]:
        """The metadata of the model's weight file. A model composed by hand has no configuration there."""
        if self.config is None:
            return make_metadata(json.dumps(dict(image_size=self.image_size)), kind="composed")
        return make_metadata(self.config.to_json())

    @classmethod
    def load(cls, name_or_path: str | Path, *, device: Device | torch.device = "cpu") -> "AnimationModel":
        """Load a shipped model by name, or a file written by `save`, ready to render on ``device``.

        A file that `minimodel import-checkpoint` wrote gives a `published.model.PublishedModel`. The weights of a model
        composed by hand are loaded by `load_weights`, into a model composed in the same way. Any other file, and an
        unknown name, raise a `MinimodelError`.

        >>> model = AnimationModel.load("tiny", device="auto")
        """
        path = find_weights(name_or_path)
        if holds_kind(path, "published"):
            from minimodel.published.model import PublishedModel  # imported only where it is needed

            return PublishedModel.load(path, device=device)
        model = cls.from_config(read_config(path, "animation", ModelConfig.from_json))
        load_weights_into(model, path)
        return ready_to_render(model, device if isinstance(device, torch.device) else pick_device(device))

    def load_weights(self, path: str | Path) -> "AnimationModel":
        """Fill this model with the weights in a file of a model composed in the same way; ready to render.

        A file that doesn't fit raises a `MinimodelError`.
        """
        path = Path(path)
        read_config(path, "composed" if self.config is None else "animation", json.loads)
        load_weights_into(self, path)
        return ready_to_render(self)


def build_generator(config: ModelConfig) -> Generator:
    """Build the generator that ``config.generator`` names, with fresh weights."""
    shared: dict[str, Any] = dict(outer_kernel=config.head_kernel, norm=config.norm)
    if config.generator == "residual":
        shared |= dict(blocks=config.residual_blocks, scales=config.unet.levels + 1)
        return ResidualGenerator(**dataclasses.asdict(config.residual), **shared)
    shared |= dict(**dataclasses.asdict(config.scale_sizes), blend=config.blend)
    if config.generator == "inpainting":
        return InpaintingNetwork(**shared)
    return GatedUNet(**shared, coarse_stream=config.coarse_stream)


def build_structure(config: ModelConfig) -> StructureCorrelation:
    """Build the structure correlation of a configuration that refines, with fresh weights."""
    shared = dict(
        **dataclasses.asdict(config.structure), norm=config.norm, size=config.image_size // config.coarse_scale
    )
    sizes = config.points, config.structure_features
    source = StructureEncoder(*sizes, sees_image=config.structure_sees_image, **shared)
    driving = StructureEncoder(*sizes, sees_image=False, **shared)
    lookup = dict(radius=config.radius, levels=config.pyramid + 1)
    return StructureCorrelation(source, driving, scale=config.coarse_scale, **lookup)


def build_refiner(config: ModelConfig, generator: Generator) -> MotionRefiner:
    """Build the refiner of a configuration that refines, for the features of ``generator``, with fresh weights."""
    return MotionRefiner(
        generator.feature_channels,
        radius=config.radius,
        levels=config.pyramid + 1,
        iterations=config.iterations,
        widths=config.updater,
        update_flow=config.update_flow,
        update_occlusion=config.update_occlusion,
        warped_source=config.warped_source,
    )


def _batches(frames: Iterable, size: int) -> Iterator:
    frames = iter(frames)
    while some := list(islice(frames, size)):
        yield some
