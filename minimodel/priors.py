"""Motion priors: what finds motion in one frame, and makes a coarse flow of the motion of two frames.

`Prior` says what `AnimationModel` asks of one; four of them are here. `build_prior` makes the one that a `ModelConfig`
names.

Notebook: ``notebooks/11_train_a_full_model.ipynb``.
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from minimodel import affine, losses, tps
from minimodel.background import BackgroundPredictor
from minimodel.config import ModelConfig
from minimodel.correlation import softmax_flow
from minimodel.dense_motion import DenseMotion
from minimodel.keypoints import KeypointDetector, SplineDetector
from minimodel.landmark_motion import LandmarkMotion
from minimodel.landmarks import LandmarkDetector
from minimodel.motion import CoarseMotion, Motion, StructureLookup, TrainingPair
from minimodel.tokens import TokenDetector
from minimodel.warping import size_of

# What a batch of training pairs holds beside pictures for a prior that moves by landmarks.
LANDMARK_LABELS = ("source_landmarks", "driving_landmarks", "source_parts", "driving_parts")


@runtime_checkable
class Prior(Protocol):
    """What `AnimationModel` asks of a motion prior. Any ``nn.Module`` with these members can be one; whoever inherits
    from this class as well gets the defaults.

    ``step``: both sides of a picture must be multiples of it.
    ``labels``: what a training batch must hold beside pictures, such as `LANDMARK_LABELS`.
    ``moves_by_landmarks``: whether given landmarks can take the place of pictures.
    ``droppable_parts``: of how many parts the flow can do without some, which training then drops at random.
    ``compares_pixels``: whether its pictures are also trained by their L1 distance.
    """

    step: int = 1
    labels: tuple[str, ...] = ()
    moves_by_landmarks: bool = False
    droppable_parts: int = 0
    compares_pixels: bool = False

    def detect(self, image: Float[Tensor, "b 3 h w"]) -> Motion:
        """The motion that is seen in pictures."""
        ...

    def __call__(
        self,
        source: Float[Tensor, "b 3 h w"],
        start: Motion,
        end: Motion,
        correlation: StructureLookup | None,
        *,
        part_scales: Float[Tensor, "b k"] | None = None,
    ) -> CoarseMotion:
        """The coarse flow from the motion ``start``, of the ``source`` picture, to the motion ``end``.

        ``correlation`` is there when the model refines. ``part_scales`` are those of `dense_motion.dropout_scales`,
        in the training of a prior with ``droppable_parts``.
        """
        ...

    def structure_points(self, motion: Motion) -> Float[Tensor, "b k 2"]:
        """The points that refinement's structure encoders see; all points by default."""
        return motion.points

    def detection_terms(
        self, frame: Float[Tensor, "b 3 h w"], motion: Motion, transform: tps.Spline
    ) -> dict[str, Tensor]:
        """Terms for the loss from ``frame`` alone, in which ``motion`` was detected: by default what is detected in the
        frame as ``transform`` bends it should be what was detected in the frame, bent (MRFA Eq. 12)."""
        moved = self.detect(losses.transformed_frame(frame, transform))
        terms = {"points": losses.equivariance_points(motion.points, moved.points, transform)}
        if motion.affine is not None and moved.affine is not None:
            terms["affine"] = losses.equivariance_affine(motion.affine, moved.affine, moved.points, transform)
        return terms

    def loss_terms(self, pair: TrainingPair) -> dict[str, Tensor]:
        """Further terms of its own for the loss, by the names of their weights in
        `minimodel.training.objective.LossWeights`; none by default."""
        return {}

    def timed_modules(self) -> dict[str, list[nn.Module]]:
        """Modules whose time a benchmark tells apart, by stage; none lies inside another."""
        return {}


class AffinePrior(nn.Module, Prior):
    """Points and affine matrices, and the flow that their parts combine to (MRFA section 3.1).

    ``detector`` gives both for a picture: an hourglass (`KeypointDetector`) or a transformer (`TokenDetector`).
    ``dense_motion`` sees the source at 1 / ``scale`` of its side.
    """

    def __init__(self, detector: KeypointDetector | TokenDetector, dense_motion: DenseMotion, *, scale: int):
        super().__init__()
        self.detector, self.dense_motion, self.scale = detector, dense_motion, scale
        self.step = math.lcm(detector.step, scale * dense_motion.step)

    def detect(self, image: Float[Tensor, "b 3 h w"]) -> Motion:
        return Motion(*self.detector(image))

    def forward(
        self,
        source: Float[Tensor, "b 3 h w"],
        start: Motion,
        end: Motion,
        correlation: StructureLookup | None = None,
        *,
        part_scales: Float[Tensor, "b k"] | None = None,
    ) -> CoarseMotion:
        assert start.affine is not None and end.affine is not None, "this prior's detector finds matrices"
        small = F.avg_pool2d(source, self.scale)
        flows = affine.part_flows(start.points, end.points, start.affine, end.affine, size_of(small))
        return self.dense_motion(small, start.points, end.points, affine.with_background(flows), part_scales)

    def timed_modules(self) -> dict[str, list[nn.Module]]:
        return {"keypoints": [self.detector], "coarse flow": [self.dense_motion]}


class SplinePrior(nn.Module, Prior):
    """Splines of several points, between which parts bend, and a background that may move (TPSM section 3.1).

    ``points`` is the number of points of each spline, whose first parts come first in a `Motion`. The published
    ``detector`` gives the positions of all points at once (`SplineDetector`). Read from heatmaps (`KeypointDetector`)
    they are learnt from far fewer pairs: after 6000, `tiny` has 25.1 instead of 22.9 dB on the benchmark.
    """

    def __init__(
        self,
        detector: SplineDetector | KeypointDetector,
        background: BackgroundPredictor,
        dense_motion: DenseMotion,
        *,
        points: int,
        scale: int,
        regularisation: float,
        droppable_parts: int,
    ):
        super().__init__()
        self.detector, self.background, self.dense_motion = detector, background, dense_motion
        self.points, self.scale, self.regularisation = points, scale, regularisation
        self.droppable_parts = droppable_parts
        self.step = math.lcm(detector.step, scale * dense_motion.step)

    def detect(self, image: Float[Tensor, "b 3 h w"]) -> Motion:
        found = self.detector(image)
        points = found[0] if isinstance(found, tuple) else rearrange(found, "b k n c -> b (k n) c")
        return Motion(points)

    def structure_points(self, motion: Motion) -> Float[Tensor, "b k 2"]:
        """One point a part: the mean of its spline's points."""
        return reduce(motion.points, "b (k n) c -> b k c", "mean", n=self.points)

    def forward(
        self,
        source: Float[Tensor, "b 3 h w"],
        start: Motion,
        end: Motion,
        correlation: StructureLookup | None = None,
        *,
        part_scales: Float[Tensor, "b k"] | None = None,
    ) -> CoarseMotion:
        """The background moves if ``end`` has its picture."""
        small = F.avg_pool2d(source, self.scale)
        size = size_of(small)
        source_points, driving_points = (
            rearrange(m.points, "b (k n) c -> b k n c", n=self.points) for m in (start, end)
        )
        matrix = background = None
        if end.image is not None:
            matrix = self.background(source, end.image)
            background = tps.background_flow(matrix, size)
        flows = tps.part_flows(source_points, driving_points, size, regularisation=self.regularisation)
        flows = affine.with_background(flows, background)
        coarse = self.dense_motion(small, start.points, end.points, flows, part_scales)
        return dataclasses.replace(coarse, background=matrix)

    def loss_terms(self, pair: TrainingPair) -> dict[str, Tensor]:
        """ "background": what the predictor takes for background should be what the masks leave to it."""
        assert pair.stages.coarse.masks is not None, "splines come with masks"
        logits = self.background.logits(self.background.resized(pair.batch["driving"]))
        return {"background": losses.background_mask_loss(logits, pair.stages.coarse.masks)}

    def timed_modules(self) -> dict[str, list[nn.Module]]:
        return {
            "keypoints": [self.detector],
            "coarse flow": [self.dense_motion],
            "background": [self.background],
        }


class LandmarkPrior(nn.Module, Prior):
    """Landmarks, and the flow that follows from them (S2D section 3.2).

    They are given, or found by ``self.detector``, the shipped one unless another is set. The detector is trained on its
    own and isn't a part of this model: its weights are neither trained nor saved with it, but move with it to a device.
    """

    labels = LANDMARK_LABELS
    moves_by_landmarks = True
    compares_pixels = True
    detector: LandmarkDetector | None

    def __init__(self, motion: LandmarkMotion):
        super().__init__()
        self.motion, self.step = motion, motion.step
        self.use_detector(None)

    def use_detector(self, detector: LandmarkDetector | None) -> None:
        """Find landmarks with this one; None is the shipped one, which is loaded when it is first needed."""
        object.__setattr__(self, "detector", detector)  # past nn.Module, which would make it a part of this one

    def _apply(self, fn, recurse=True):
        if self.detector is not None:
            self.detector._apply(fn)
        return super()._apply(fn, recurse)

    def detect(self, image: Float[Tensor, "b 3 h w"]) -> Motion:
        if self.detector is None:
            self.use_detector(LandmarkDetector.load().to(image.device))
        assert self.detector is not None
        return Motion(self.detector.find(image))

    def forward(
        self,
        source: Float[Tensor, "b 3 h w"],
        start: Motion,
        end: Motion,
        correlation: StructureLookup | None = None,
        *,
        part_scales: Float[Tensor, "b k"] | None = None,
    ) -> CoarseMotion:
        return self.motion(source, start.points, end.points)

    def detection_terms(
        self, frame: Float[Tensor, "b 3 h w"], motion: Motion, transform: tps.Spline
    ) -> dict[str, Tensor]:
        """None: landmarks are given."""
        return {}

    def loss_terms(self, pair: TrainingPair) -> dict[str, Tensor]:
        """ "parsing": the parts of the face, moved, beside those of the driving frame (S2D Eq. 7)."""
        parts = pair.batch["source_parts"], pair.batch["driving_parts"]
        return {"parsing": losses.parsing_loss(parts[0], pair.stages.flows[-1], parts[1])}

    def timed_modules(self) -> dict[str, list[nn.Module]]:
        return {"coarse flow": [self.motion]}


class NoPrior(nn.Module, Prior):
    """Points alone: the coarse flow comes from the correlation volume itself (MRFA Eq. 8)."""

    def __init__(self, detector: KeypointDetector):
        super().__init__()
        self.detector, self.step = detector, detector.step

    def detect(self, image: Float[Tensor, "b 3 h w"]) -> Motion:
        return Motion(*self.detector(image))

    def forward(
        self,
        source: Float[Tensor, "b 3 h w"],
        start: Motion,
        end: Motion,
        correlation: StructureLookup | None = None,
        *,
        part_scales: Float[Tensor, "b k"] | None = None,
    ) -> CoarseMotion:
        assert correlation is not None, "a model without a prior always refines"
        flow = softmax_flow(correlation.volume())
        return CoarseMotion(flow, torch.zeros_like(flow[:, :1]))

    def timed_modules(self) -> dict[str, list[nn.Module]]:
        return {"keypoints": [self.detector]}


def build_prior(config: ModelConfig) -> Prior:
    """The prior that ``config.prior`` names, with fresh weights."""
    scale = dict(scale=config.coarse_scale)
    if config.prior == "affine":
        return AffinePrior(_detector(config, config.points, with_affine=True), _dense_motion(config), **scale)
    if config.prior == "tokens":
        detector = TokenDetector(config.points, **dataclasses.asdict(config.tokens), norm=config.norm)
        return AffinePrior(detector, _dense_motion(config), **scale)
    if config.prior == "tps":
        return _spline_prior(config)
    if config.prior == "landmarks":
        return LandmarkPrior(_landmark_motion(config))
    return NoPrior(_detector(config, config.points, with_affine=False))


def _detector(config: ModelConfig, points: int, **options: bool) -> KeypointDetector:
    return KeypointDetector(
        points,
        scale=config.detector_scale or config.coarse_scale,
        folded=config.folded,
        **dataclasses.asdict(config.detector),
        head_kernel=config.head_kernel,
        norm=config.norm,
        **options,
    )


def _dense_motion(config: ModelConfig, **options: int) -> DenseMotion:
    sizes = dataclasses.asdict(config.dense_motion)
    if config.generator == "inpainting" and not config.refine:  # refinement makes occlusions for every scale itself
        # One occlusion for each scale of the generator, as far as the hourglass reaches down.
        finer = config.coarse_scale.bit_length() - 1
        coarser = min(config.inpainting.levels - finer, config.dense_motion.levels - 1)
        options |= dict(finer=finer, coarser=coarser)
    return DenseMotion(config.points, **sizes, head_kernel=config.head_kernel, norm=config.norm, **options)


def _spline_prior(config: ModelConfig) -> SplinePrior:
    detector: SplineDetector | KeypointDetector
    if config.spline_heatmaps:
        detector = _detector(config, config.points * config.spline_points, with_affine=False, spread=True)
    else:
        trunk = dict(**dataclasses.asdict(config.spline_detector), norm=config.norm)
        detector = SplineDetector(config.points, config.spline_points, **trunk)
    return SplinePrior(
        detector,
        BackgroundPredictor(**dataclasses.asdict(config.background), norm=config.norm),
        _dense_motion(config, points_per_part=config.spline_points),
        points=config.spline_points,
        scale=config.coarse_scale,
        regularisation=config.regularisation,
        droppable_parts=config.points,
    )


def _landmark_motion(config: ModelConfig) -> LandmarkMotion:
    return LandmarkMotion(
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
