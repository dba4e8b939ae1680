"""Motion priors find the motion of one frame, and compute a coarse flow from the motion of two frames.

`Prior` is the protocol that `AnimationModel` relies on; five priors are here. `build_prior` builds the prior that a
`ModelConfig` names.

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
from minimodel.errors import MinimodelError
from minimodel.keypoints import KeypointDetector, SplineDetector
from minimodel.landmark_flow import head_and_face_flows
from minimodel.landmark_motion import LandmarkMotion
from minimodel.landmarks import LANDMARKS, LIPS, LandmarkFinder
from minimodel.motion import CoarseMotion, Motion, StructureLookup, TrainingPair
from minimodel.tokens import TokenDetector
from minimodel.warping import resize_flow, size_of

# The labels beside pictures in a batch of training pairs, for a prior that moves by landmarks.
LANDMARK_LABELS = ("source_landmarks", "driving_landmarks", "source_parts", "driving_parts")


@runtime_checkable
class Prior(Protocol):
    """The members of a motion prior that `AnimationModel` uses. Any ``nn.Module`` with these members is a prior; a
    class that inherits from `Prior` as well gets the defaults.

    ``step``: both sides of a picture must be multiples of this number.
    ``labels``: names of the labels that a training batch needs beside pictures, such as `LANDMARK_LABELS`.
    ``moves_by_landmarks``: whether given landmarks can take the place of pictures.
    ``droppable_parts``: the number of parts that training may drop at random; 0 for none.
    ``compares_pixels``: whether the loss has an L1 distance of pictures as well.
    ``exportable``: whether `minimodel export` can write all of its operations.
    """

    step: int = 1
    labels: tuple[str, ...] = ()
    moves_by_landmarks: bool = False
    droppable_parts: int = 0
    compares_pixels: bool = False
    exportable: bool = True

    def detect(self, image: Float[Tensor, "b 3 h w"]) -> Motion:
        """Find the motion in pictures."""
        ...

    def detect_around(self, image: Float[Tensor, "b 3 h w"] | None, landmarks: Float[Tensor, "b 74 2"]) -> Motion:
        """The motion in pictures whose landmarks are known; ``image`` None is for a prior that moves by landmarks.

        By default a `MinimodelError` is raised, as the prior has no use for landmarks.
        """
        raise MinimodelError(
            f"landmarks given to a model with {type(self).__name__}, which finds points itself: pass the image"
        )

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

        ``correlation`` is None for a model that doesn't refine. ``part_scales`` are those of
        `dense_motion.dropout_scales`, in the training of a prior with ``droppable_parts``.
        """
        ...

    def structure_points(self, motion: Motion) -> Float[Tensor, "b k 2"]:
        """The points for refinement's structure encoders; all points by default."""
        return motion.points

    def detection_terms(
        self, frame: Float[Tensor, "b 3 h w"], motion: Motion, transform: tps.Spline
    ) -> dict[str, Tensor]:
        """Terms for the loss that need one frame only; ``motion`` was detected in ``frame``.

        By default these are the equivariance losses (MRFA Eq. 12): the motion of the frame bent by ``transform``
        should be the motion of the frame, bent by ``transform``.
        """
        moved = self.detect(losses.transformed_frame(frame, transform))
        terms = {"points": losses.equivariance_points(motion.points, moved.points, transform)}
        if motion.affine is not None and moved.affine is not None:
            terms["affine"] = losses.equivariance_affine(motion.affine, moved.affine, moved.points, transform)
        return terms

    def loss_terms(self, pair: TrainingPair) -> dict[str, Tensor]:
        """Further terms of this prior for the loss; none by default.

        The keys are the names of the terms' weights in `minimodel.training.objective.LossWeights`.
        """
        return {}

    def timed_modules(self) -> dict[str, list[nn.Module]]:
        """Modules by stage, for a benchmark that times each stage; no module may lie inside another."""
        return {}


class AffinePrior(nn.Module, Prior):
    """Points and affine matrices, and the flow that their parts combine to (MRFA section 3.1).

    ``detector`` gives both for a picture: an hourglass (`KeypointDetector`) or a transformer (`TokenDetector`).
    ``dense_motion`` gets the source at 1 / ``scale`` of its side.
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

    ``points`` is the number of points of each spline. A `Motion` lists the first spline's points first. The published
    ``detector`` gives the positions of all points at once (`SplineDetector`). Points read from heatmaps
    (`KeypointDetector`) are learnt from far fewer pairs: after 6000 pairs, `tiny` has 25.1 instead of 22.9 dB on the
    benchmark.
    """

    exportable = False  # splines are fitted by eigenvectors

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
        """The coarse flow; the background moves if ``end`` has an image."""
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
        """The term "background": the predictor's background mask should be the background's mask of the dense flow."""
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

    Landmarks are given, or found by ``self.finder``. ``motion`` gets the source at 1 / ``shrink`` of its side.
    """

    labels = LANDMARK_LABELS
    moves_by_landmarks = True
    compares_pixels = True

    def __init__(self, motion: LandmarkMotion, *, shrink: int = 1):
        super().__init__()
        self.motion, self.shrink, self.step = motion, shrink, shrink * motion.step
        self.finder = LandmarkFinder()

    def detect(self, image: Float[Tensor, "b 3 h w"]) -> Motion:
        return Motion(self.finder(image))

    def detect_around(self, image: Float[Tensor, "b 3 h w"] | None, landmarks: Float[Tensor, "b 74 2"]) -> Motion:
        return Motion(landmarks)

    def forward(
        self,
        source: Float[Tensor, "b 3 h w"],
        start: Motion,
        end: Motion,
        correlation: StructureLookup | None = None,
        *,
        part_scales: Float[Tensor, "b k"] | None = None,
    ) -> CoarseMotion:
        small = F.avg_pool2d(source, self.shrink) if self.shrink > 1 else source
        return self.motion(small, start.points, end.points)

    def detection_terms(
        self, frame: Float[Tensor, "b 3 h w"], motion: Motion, transform: tps.Spline
    ) -> dict[str, Tensor]:
        """No terms, as landmarks are given."""
        return {}

    def loss_terms(self, pair: TrainingPair) -> dict[str, Tensor]:
        """The term "parsing": the warped parsing map should be that of the driving frame (S2D Eq. 7)."""
        parts = pair.batch["source_parts"], pair.batch["driving_parts"]
        return {"parsing": losses.parsing_loss(parts[0], pair.stages.flows[-1], parts[1])}

    def timed_modules(self) -> dict[str, list[nn.Module]]:
        return {"coarse flow": [self.motion]}


class FacePrior(nn.Module, Prior):
    """Points that training finds, for hair, neck and shoulders, beside landmarks, which move the face; ours.

    The flow of the landmarks is computed, not learnt (`landmark_flow.head_and_face_flows`), and has two parts, the head
    and the face. The masks of ``dense_motion`` choose between these, the parts of the points that ``detector`` finds,
    and the background. Masks have 1 / ``scale`` of the picture's side. The coarse flow has 1 / ``shrink``, so that lids
    are in it. A `Motion` lists the detector's points first, then 74 landmarks, whose matrices are the identity.
    """

    labels = LANDMARK_LABELS[:2]
    compares_pixels = True

    def __init__(self, detector: TokenDetector, dense_motion: DenseMotion, *, scale: int, shrink: int):
        super().__init__()
        self.detector, self.dense_motion, self.scale, self.shrink = detector, dense_motion, scale, shrink
        self.finder = LandmarkFinder()
        self.step = math.lcm(detector.step, scale * dense_motion.step)

    def detect(self, image: Float[Tensor, "b 3 h w"]) -> Motion:
        return self.detect_around(image, self.finder(image))

    def detect_around(self, image: Float[Tensor, "b 3 h w"] | None, landmarks: Float[Tensor, "b 74 2"]) -> Motion:
        if image is None:
            raise MinimodelError("landmarks without an image: this model finds points in the image as well")
        points, matrices = self.detector(image)
        still = torch.eye(2).to(matrices).expand(*landmarks.shape[:2], 2, 2)
        return Motion(torch.cat([points, landmarks.to(points)], dim=1), torch.cat([matrices, still], dim=1))

    def forward(
        self,
        source: Float[Tensor, "b 3 h w"],
        start: Motion,
        end: Motion,
        correlation: StructureLookup | None = None,
        *,
        part_scales: Float[Tensor, "b k"] | None = None,
    ) -> CoarseMotion:
        small = F.avg_pool2d(source, self.scale)
        points = [torch.cat([m.points[:, :-LANDMARKS], self.centres(m)], dim=1) for m in (start, end)]
        coarse = self.dense_motion(small, *points, self.part_flows(start, end, size_of(small)), part_scales)
        assert coarse.masks is not None
        height, width = size_of(source)
        size = height // self.shrink, width // self.shrink
        masks, flows = resize_flow(coarse.masks, size), self.part_flows(start, end, size)
        occlusion, flow = resize_flow(coarse.occlusion, size), affine.combine(flows, masks)
        return CoarseMotion(flow, occlusion, masks, flows, coarse.occlusions)

    @staticmethod
    def centres(motion: Motion) -> Float[Tensor, "b 2 2"]:
        """The centres of the two parts that landmarks move: of the head, and of the lips."""
        landmarks = motion.points[:, -LANDMARKS:]
        return torch.stack([landmarks.mean(1), landmarks[:, LIPS].mean(1)], dim=1)

    @staticmethod
    def part_flows(start: Motion, end: Motion, size: tuple[int, int]) -> Float[Tensor, "b parts 2 h w"]:
        """The flows of the background, the detector's parts, the head and the face."""
        assert start.affine is not None and end.affine is not None
        found = [(m.points[:, :-LANDMARKS], m.affine[:, :-LANDMARKS]) for m in (start, end) if m.affine is not None]
        (points, matrices), (moved, turned) = found
        flows = affine.part_flows(points, moved, matrices, turned, size)
        face = head_and_face_flows(start.points[:, -LANDMARKS:], end.points[:, -LANDMARKS:], size)
        return affine.with_background(torch.cat([flows, torch.stack(face, dim=1)], dim=1))

    def detection_terms(
        self, frame: Float[Tensor, "b 3 h w"], motion: Motion, transform: tps.Spline
    ) -> dict[str, Tensor]:
        """The equivariance losses of the detector's points and matrices; landmarks are given."""
        assert motion.affine is not None
        points, matrices = self.detector(losses.transformed_frame(frame, transform))
        return {
            "points": losses.equivariance_points(motion.points[:, :-LANDMARKS], points, transform),
            "affine": losses.equivariance_affine(motion.affine[:, :-LANDMARKS], matrices, points, transform),
        }

    def timed_modules(self) -> dict[str, list[nn.Module]]:
        return {"keypoints": [self.detector], "coarse flow": [self.dense_motion]}


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
    """Build the prior that ``config.prior`` names, with fresh weights."""
    scale = dict(scale=config.coarse_scale)
    if config.prior == "affine":
        return AffinePrior(_detector(config, config.points, with_affine=True), _dense_motion(config), **scale)
    if config.prior == "tokens":
        return AffinePrior(_token_detector(config, config.points), _dense_motion(config), **scale)
    if config.prior == "face":
        found, fine = config.points - LANDMARKS, max(1, config.coarse_scale // 2)
        sizes = dict(scale=fine, shrink=max(1, config.motion_scale // 2))
        return FacePrior(_token_detector(config, found), _dense_motion(config, parts=found + 2, scale=fine), **sizes)
    if config.prior == "tps":
        return _spline_prior(config)
    if config.prior == "landmarks":
        return LandmarkPrior(_landmark_motion(config), shrink=config.motion_scale)
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


def _token_detector(config: ModelConfig, points: int) -> TokenDetector:
    return TokenDetector(points, **dataclasses.asdict(config.tokens), shrink=config.motion_scale, norm=config.norm)


def _dense_motion(config: ModelConfig, *, parts: int = 0, scale: int = 0, **options: int) -> DenseMotion:
    sizes = dataclasses.asdict(config.dense_motion)
    if config.generator == "inpainting" and not config.refine:  # refinement predicts occlusions for every scale itself
        # One occlusion for each scale of the generator, as far as the hourglass reaches down.
        finer = (scale or config.coarse_scale).bit_length() - 1
        coarser = min(config.inpainting.levels - finer, config.dense_motion.levels - 1)
        options |= dict(finer=finer, coarser=coarser)
    return DenseMotion(parts or config.points, **sizes, head_kernel=config.head_kernel, norm=config.norm, **options)


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
        size=config.image_size // config.motion_scale,
        scale=config.whole_scale,
        # The residual generator predicts its own mask. Gating and refinement need a first guess.
        with_occlusion=config.refine or config.generator != "residual",
        adain=config.adain,
        add_motion=config.add_motion,
        local_motion=config.local_motion,
    )
