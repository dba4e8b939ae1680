"""`AnimationModel`: a prior, a refiner and a generator under one interface; presets, systems, saving and loading.

Notebook: ``notebooks/11_train_a_full_model.ipynb``.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from minimodel import affine, tps
from minimodel.background import BackgroundPredictor
from minimodel.correlation import Correlation, StructureEncoder, softmax_flow
from minimodel.dense_motion import CoarseMotion, DenseMotion
from minimodel.generator import GatedUNet, InpaintingNetwork, ResidualGenerator
from minimodel.keypoints import KeypointDetector, SplineDetector
from minimodel.landmark_motion import LandmarkMotion
from minimodel.landmarks import LANDMARKS, LandmarkDetector
from minimodel.refinement import MotionRefiner, UpdaterWidths
from minimodel.saving import fill, find_weights, make_metadata, read_config, write_weights
from minimodel.tokens import TokenDetector
from minimodel.warping import resize_flow, warp

GENERATORS = ("unet", "inpainting", "residual")
SYSTEMS = {
    "fomm": dict(prior="affine", refine=False, generator="unet"),
    "mrfa": dict(prior="affine", refine=True, generator="unet"),
    "s2d": dict(prior="landmarks", refine=False, generator="residual"),
    "npmr": dict(prior="none", refine=True, generator="unet"),
    "tpsm": dict(prior="tps", refine=False, generator="inpainting"),
}


@dataclass(frozen=True)
class HourglassSizes:
    base: int
    levels: int
    maximum: int


@dataclass(frozen=True)
class ResNetSizes:
    base: int
    levels: int
    blocks: int
    pool: bool


@dataclass(frozen=True)
class TokenSizes:
    base: int  # of the trunk
    blocks: int
    patch: int
    width: int
    depth: int
    heads: int
    ratio: int  # of the hidden layer's width


@dataclass(frozen=True)
class Config:
    """All sizes of a model; saved with its weights. The defaults are those of the `paper` preset: the published ones,
    where papers or their code give any."""

    preset: str = "paper"
    prior: str = "affine"
    refine: bool = True
    generator: str = "unet"
    image_size: int = 256  # what the preset is trained at; any other size that the scales divide works too
    coarse_scale: int = 4  # the coarse flow has 1 / coarse_scale of the image's side
    points: int = 10  # parts; the TPS prior has a spline of several points for each
    norm: str = "batch"
    head_kernel: int = 7
    folded: bool = False  # detectors see all pixels stacked as channels rather than their average
    detector: HourglassSizes = HourglassSizes(32, 5, 1024)
    spline_points: int = 5
    spline_heatmaps: bool = False  # splines' points are read from heatmaps of ``detector``, as the affine prior's are
    regularisation: float = 0.01  # of the splines
    spline_detector: ResNetSizes = ResNetSizes(64, 4, 2, pool=True)  # without heatmaps
    background: HourglassSizes = HourglassSizes(16, 2, 64)  # of the TPS prior's predictor; TPSM's is a ResNet-18
    tokens: TokenSizes = TokenSizes(base=32, blocks=4, patch=4, width=192, depth=12, heads=8, ratio=3)
    dense_motion: HourglassSizes = HourglassSizes(64, 5, 1024)
    structure: HourglassSizes = HourglassSizes(32, 5, 512)
    structure_features: int = 256
    structure_sees_image: bool = True
    radius: int = 3  # r of the lookup
    pyramid: int = 1  # P: how many times the volume is averaged
    iterations: int = 6
    updater: UpdaterWidths = UpdaterWidths()
    update_flow: bool = True
    update_occlusion: bool = True
    warped_source: bool = True
    unet: HourglassSizes = HourglassSizes(64, 5, 512)
    inpainting: HourglassSizes = HourglassSizes(64, 3, 512)
    residual: HourglassSizes = HourglassSizes(64, 2, 512)  # of the residual generator, with ...
    residual_blocks: int = 6
    whole_branch: HourglassSizes = HourglassSizes(32, 5, 512)  # the global branch of the landmarks prior ...
    whole_scale: int = 1  # ... sees the picture at 1 / whole_scale of its side
    local_branch: HourglassSizes = HourglassSizes(32, 3, 128)  # of each local branch
    adain: bool = True
    add_motion: bool = True
    local_motion: bool = True
    blend: bool = True  # show the warped source itself where it can be trusted; False is Eq. 9-10 to the letter

    @classmethod
    def from_json(cls, text: str) -> "Config":
        values = json.loads(text)
        _choose("prior", values["prior"], PRIORS)
        _choose("generator", values["generator"], GENERATORS)
        # Files written before a field was there don't have it.
        for name, default in vars(cls()).items():
            if isinstance(default, HourglassSizes | ResNetSizes | TokenSizes) and name in values:
                values[name] = type(default)(**values[name])
        widths = {name: tuple(w) if isinstance(w, list) else w for name, w in values["updater"].items()}
        return cls(**values | {"updater": UpdaterWidths(**widths)})

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


PRESETS = {
    "tiny": Config(
        preset="tiny",
        image_size=64,
        coarse_scale=2,
        head_kernel=3,
        folded=True,
        detector=HourglassSizes(24, 3, 96),
        spline_heatmaps=True,
        spline_detector=ResNetSizes(16, 4, 1, pool=False),
        tokens=TokenSizes(base=24, blocks=2, patch=2, width=96, depth=4, heads=4, ratio=2),
        dense_motion=HourglassSizes(24, 3, 96),
        structure=HourglassSizes(16, 3, 64),
        structure_features=32,
        iterations=4,
        updater=UpdaterWidths((32, 32), (16, 16), 48, (32, 32), 32),
        unet=HourglassSizes(32, 3, 128),
        inpainting=HourglassSizes(16, 3, 64),
        residual=HourglassSizes(32, 2, 96),
        residual_blocks=3,
        whole_branch=HourglassSizes(24, 3, 64),
        whole_scale=2,
        local_branch=HourglassSizes(16, 2, 32),
    ),
    "small": Config(
        preset="small",
        image_size=128,
        coarse_scale=4,
        detector=HourglassSizes(32, 4, 256),
        spline_heatmaps=True,
        spline_detector=ResNetSizes(32, 4, 2, pool=False),
        tokens=TokenSizes(base=32, blocks=2, patch=2, width=128, depth=6, heads=4, ratio=3),
        dense_motion=HourglassSizes(32, 4, 256),
        structure=HourglassSizes(32, 4, 256),
        structure_features=64,
        iterations=5,
        updater=UpdaterWidths((64, 64), (32, 32), 96, (96, 64), 64),
        unet=HourglassSizes(48, 4, 256),
        inpainting=HourglassSizes(32, 4, 192),
        residual=HourglassSizes(48, 2, 256),
        residual_blocks=4,
        whole_branch=HourglassSizes(32, 4, 256),
        whole_scale=2,
        local_branch=HourglassSizes(32, 3, 128),
    ),
    "paper": Config(),
}


@dataclass
class Motion:
    """What one frame says about its motion; of the TPS prior the points of the first spline come first.

    ``image`` is there where a prior needs it: the TPS prior finds the background's motion by comparing two frames. That
    makes sense within one film. Where the driving frame is from another, leave it out (`dataclasses.replace(motion,
    image=None)`), and the background stands still.
    """

    points: Float[Tensor, "b k 2"]
    affine: Float[Tensor, "b k 2 2"] | None = None
    image: Float[Tensor, "b 3 h w"] | None = None


@dataclass
class SourceState:
    """All that depends on the source alone, computed once and used for every driving frame."""

    image: Float[Tensor, "b 3 h w"]
    motion: Motion
    features: list[Tensor]
    structure: Tensor | None = None
    context: list[Tensor] = field(default_factory=list)


@dataclass(kw_only=True)
class Stages:
    """How a source moves to a driving frame: ``flows`` and ``occlusions`` (logits) list the coarse stage first, then
    one of each scale; ``warped_source`` is the source moved by the last flow; ``correlation`` is there when the model
    refines."""

    flows: list[Tensor]
    occlusions: list[Tensor]
    warped_source: Float[Tensor, "b 3 h w"]
    coarse: CoarseMotion
    correlation: Correlation | None


@dataclass(kw_only=True)
class Output(Stages):
    """A rendered frame with every stage on the way to it; ``painted`` is what the generator made, before the last step
    that blends it with ``warped_source`` (of the U-Nets without ``Config.blend`` it is the image)."""

    image: Float[Tensor, "b 3 h w"]
    painted: Float[Tensor, "b 3 h w"]


class AffinePrior(nn.Module):
    """Points and affine matrices, and the flow that their parts combine to (MRFA section 3.1).

    The priors "affine" and "tokens" differ in who finds them: an hourglass or a transformer.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.scale = config.coarse_scale
        if config.prior == "tokens":
            self.detector = TokenDetector(config.points, **dataclasses.asdict(config.tokens), norm=config.norm)
        else:
            self.detector = _detector(config, config.points, with_affine=True)
        self.dense_motion = _dense_motion(config)

    def detect(self, image: Tensor) -> Motion:
        return Motion(*self.detector(image))

    def forward(self, source: Tensor, start: Motion, end: Motion, correlation: Correlation | None) -> CoarseMotion:
        small = F.avg_pool2d(source, self.scale)
        flows = affine.part_flows(start.points, end.points, start.affine, end.affine, tuple(small.shape[-2:]))
        return self.dense_motion(small, start.points, end.points, affine.with_background(flows))


class SplinePrior(nn.Module):
    """Five points a part, between which it bends, and a background that moves (TPSM section 3.1).

    The published network says the positions of all points at once. Read from heatmaps they learn from far fewer pairs:
    after 6000, `tiny` has 25.1 instead of 22.9 dB on the benchmark.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.scale, self.points, self.regularisation = config.coarse_scale, config.spline_points, config.regularisation
        if config.spline_heatmaps:
            self.detector = _detector(config, config.points * config.spline_points, with_affine=False, spread=True)
        else:
            trunk = dict(**dataclasses.asdict(config.spline_detector), norm=config.norm)
            self.detector = SplineDetector(config.points, config.spline_points, **trunk)
        self.background = BackgroundPredictor(**dataclasses.asdict(config.background), norm=config.norm)
        self.dense_motion = _dense_motion(config, points_per_part=config.spline_points)

    def detect(self, image: Tensor) -> Motion:
        found = self.detector(image)
        points = found[0] if isinstance(found, tuple) else rearrange(found, "b k n c -> b (k n) c")
        return Motion(points, image=image)

    def forward(
        self,
        source: Tensor,
        start: Motion,
        end: Motion,
        correlation: Correlation | None,
        *,
        part_scales: Float[Tensor, "b k"] | None = None,
    ) -> CoarseMotion:
        """``part_scales`` are those of `dropout_scales`, in training."""
        small = F.avg_pool2d(source, self.scale)
        size = tuple(small.shape[-2:])
        points = [rearrange(m.points, "b (k n) c -> b k n c", n=self.points) for m in (start, end)]
        matrix = background = None
        if end.image is not None:
            matrix = self.background(source, end.image)
            background = tps.background_flow(matrix, size)
        flows = affine.with_background(tps.part_flows(*points, size, regularisation=self.regularisation), background)
        coarse = self.dense_motion(small, start.points, end.points, flows, part_scales)
        return dataclasses.replace(coarse, background=matrix)


class LandmarkPrior(nn.Module):
    """Landmarks, and the flow that follows from them (S2D section 3.2).

    They are given, or found by a ``detector``, which is trained on its own and isn't part of this model: its weights
    are not saved with it.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.motion = LandmarkMotion(
            whole=dataclasses.asdict(config.whole_branch),
            local=dataclasses.asdict(config.local_branch),
            size=config.image_size,
            scale=config.whole_scale,
            # The residual generator makes its own mask. Whoever gates or refines needs a first guess.
            with_occlusion=config.refine or config.generator != "residual",
            adain=config.adain,
            add_motion=config.add_motion,
            local_motion=config.local_motion,
        )
        # In a tuple, which hides it from the modules whose weights are saved.
        self._detector: tuple[LandmarkDetector, ...] = ()

    def use_detector(self, detector: LandmarkDetector) -> None:
        self._detector = (detector,)

    def detect(self, image: Tensor) -> Motion:
        if not self._detector:
            raise ValueError(
                "this model moves by landmarks, and has no detector to find them: pass landmarks=..., or a detector"
                " to model.prior.use_detector(...)"
            )
        return Motion(self._detector[0].find(image))

    def forward(self, source: Tensor, start: Motion, end: Motion, correlation: Correlation | None) -> CoarseMotion:
        return self.motion(source, start.points, end.points)


class NoPrior(nn.Module):
    """Points alone: the coarse flow comes from the correlation volume itself (MRFA Eq. 8)."""

    def __init__(self, config: Config):
        super().__init__()
        self.detector = _detector(config, config.points, with_affine=False)

    def detect(self, image: Tensor) -> Motion:
        return Motion(*self.detector(image))

    def forward(self, source: Tensor, start: Motion, end: Motion, correlation: Correlation | None) -> CoarseMotion:
        flow = softmax_flow(correlation.volume())
        return CoarseMotion(flow, torch.zeros_like(flow[:, :1]))


PRIORS = {
    "affine": AffinePrior,
    "tps": SplinePrior,
    "tokens": AffinePrior,
    "landmarks": LandmarkPrior,
    "none": NoPrior,
}


def _detector(config: Config, points: int, **options) -> KeypointDetector:
    return KeypointDetector(
        points,
        scale=config.coarse_scale,
        folded=config.folded,
        **dataclasses.asdict(config.detector),
        head_kernel=config.head_kernel,
        norm=config.norm,
        **options,
    )


def _dense_motion(config: Config, **options) -> DenseMotion:
    sizes = dataclasses.asdict(config.dense_motion)
    if config.generator == "inpainting" and not config.refine:  # refinement makes occlusions for every scale itself
        # One occlusion for each scale of the generator, as far as the hourglass reaches down.
        finer = config.coarse_scale.bit_length() - 1
        coarser = min(config.inpainting.levels - finer, config.dense_motion.levels - 1)
        options |= dict(finer=finer, coarser=coarser)
    return DenseMotion(config.points, **sizes, head_kernel=config.head_kernel, norm=config.norm, **options)


class StructureCorrelation(nn.Module):
    """The two structure encoders, and their correlation (MRFA section 3.2)."""

    # Volumes up to this many numbers a pair are held: they are quicker; larger images look up without (see
    # `Correlation`).
    held_numbers = 2**24

    def __init__(self, config: Config):
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

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.prior = PRIORS[config.prior](config)
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
        are further fields of `Config`."""
        config = _choose("preset", preset, PRESETS)
        parts = dict(_choose("system", system, SYSTEMS))
        parts |= {k: v for k, v in dict(prior=prior, refine=refine, generator=generator).items() if v is not None}
        _choose("prior", parts["prior"], PRIORS)
        _choose("generator", parts["generator"], GENERATORS)
        if parts["prior"] == "none" and not parts["refine"]:
            raise ValueError(
                "prior 'none' takes its coarse flow from the refinement's correlation: refine must be True"
            )
        if parts["prior"] == "landmarks" and sizes.setdefault("points", LANDMARKS) != LANDMARKS:
            raise ValueError(f"points is {sizes['points']}: the prior 'landmarks' has {LANDMARKS}")
        unknown = sizes.keys() - {f.name for f in dataclasses.fields(Config)}
        if unknown:
            raise ValueError(f"unknown sizes {sorted(unknown)}: see the fields of minimodel.model.Config")
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
        model = cls(read_config(path, "animation", Config.from_json))
        fill(model, path)
        return model.eval()


def _choose(what: str, name: str, known):
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}: there are {', '.join(known)}")
    return known[name] if isinstance(known, dict) else name


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
