"""The motion priors: what finds motion in a frame, and makes a coarse flow of the motion of two frames."""

import dataclasses

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from minimodel import affine, tps
from minimodel.background import BackgroundPredictor
from minimodel.config import ModelConfig
from minimodel.correlation import Correlation, softmax_flow
from minimodel.dense_motion import DenseMotion
from minimodel.keypoints import KeypointDetector, SplineDetector
from minimodel.landmark_motion import LandmarkMotion
from minimodel.landmarks import LandmarkDetector
from minimodel.motion import CoarseMotion, Motion
from minimodel.tokens import TokenDetector


class AffinePrior(nn.Module):
    """Points and affine matrices, and the flow that their parts combine to (MRFA section 3.1).

    The priors "affine" and "tokens" differ in who finds them: an hourglass or a transformer.
    """

    def __init__(self, config: ModelConfig):
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

    def __init__(self, config: ModelConfig):
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

    def __init__(self, config: ModelConfig):
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

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.detector = _detector(config, config.points, with_affine=False)

    def detect(self, image: Tensor) -> Motion:
        return Motion(*self.detector(image))

    def forward(self, source: Tensor, start: Motion, end: Motion, correlation: Correlation | None) -> CoarseMotion:
        flow = softmax_flow(correlation.volume())
        return CoarseMotion(flow, torch.zeros_like(flow[:, :1]))


BUILDERS = {
    "affine": AffinePrior,
    "tps": SplinePrior,
    "tokens": AffinePrior,
    "landmarks": LandmarkPrior,
    "none": NoPrior,
}


def _detector(config: ModelConfig, points: int, **options) -> KeypointDetector:
    return KeypointDetector(
        points,
        scale=config.coarse_scale,
        folded=config.folded,
        **dataclasses.asdict(config.detector),
        head_kernel=config.head_kernel,
        norm=config.norm,
        **options,
    )


def _dense_motion(config: ModelConfig, **options) -> DenseMotion:
    sizes = dataclasses.asdict(config.dense_motion)
    if config.generator == "inpainting" and not config.refine:  # refinement makes occlusions for every scale itself
        # One occlusion for each scale of the generator, as far as the hourglass reaches down.
        finer = config.coarse_scale.bit_length() - 1
        coarser = min(config.inpainting.levels - finer, config.dense_motion.levels - 1)
        options |= dict(finer=finer, coarser=coarser)
    return DenseMotion(config.points, **sizes, head_kernel=config.head_kernel, norm=config.norm, **options)
