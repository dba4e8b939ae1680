"""The motion part of published models: points, part grids, masks and one coarse grid.

The networks are built like those of `dense_motion`; coordinates follow `conventions`.
"""

import math
from dataclasses import dataclass

import torch
from einops import einsum, rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.blocks import Hourglass, ResNet, UpBlock
from minimodel.keypoints import SplineDetector
from minimodel.motion import CoarseMotion, Motion, StructureLookup
from minimodel.priors import Prior
from minimodel.published import conventions
from minimodel.published.conventions import corner_grid, downsample, flow_from_grid, gaussian_heatmaps, sample
from minimodel.published.detectors import HeatmapDetector, PointTokenDetector
from minimodel.warping import size_of

SCALE = 4  # coarse grids have 1/4 of the image's side
POINTS_PER_SPLINE = 5


@dataclass
class GridMotion(CoarseMotion):
    """`CoarseMotion` with the grid from which its flow was made. At the edge, where interpolation has values on one
    side only, a resized grid differs from a resized flow."""

    grid: Float[Tensor, "b 2 h w"] | None = None


class PublishedDenseMotion(nn.Module):
    """Combines part grids into one coarse grid by masks, with the occlusion of each scale.

    The input of the hourglass is ``interleaved``, with heatmap and warped source part by part (FOMM, MTIA); otherwise
    all heatmaps come first (TPSM, ``points_per_part`` heatmaps a part but one for the background). ``coarser`` and
    ``finer`` are TPSM's extra occlusions; on the way up to finer ones each step has half the channels of the one
    before.
    """

    variance = 0.01

    def __init__(
        self,
        parts: int,
        *,
        base: int,
        levels: int,
        maximum: int,
        align_corners: bool,
        points_per_part: int = 1,
        interleaved: bool = True,
        coarser: int = 0,
        finer: int = 0,
        head_kernel: int = 7,
    ):
        super().__init__()
        self.step = SCALE * 2**levels
        self.align_corners, self.interleaved = align_corners, interleaved
        inputs = 3 * (parts + 1) + parts * points_per_part + 1
        self.hourglass = Hourglass(inputs, base=base, levels=levels, maximum=maximum, norm="batch")

        def head(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, head_kernel, padding=head_kernel // 2)

        width = self.hourglass.channels
        self.mask_head = head(width, parts + 1)
        # Each occlusion is read from the decoder's features of its own size, as in `DenseMotion`.
        widths = [*self.hourglass.scale_channels[-1 - coarser :], *(width // 2 ** (i + 1) for i in range(finer))]
        self.occlusion_heads = nn.ModuleList(head(channels, 1) for channels in widths)
        self.up = nn.ModuleList(UpBlock(width // 2**i, width // 2 ** (i + 1), norm="batch") for i in range(finer))
        self.coarser = coarser

    def forward(
        self,
        source: Float[Tensor, "b 3 h w"],
        source_points: Float[Tensor, "b p 2"],
        driving_points: Float[Tensor, "b p 2"],
        part_grids: Float[Tensor, "b parts 2 h w"],
    ) -> GridMotion:
        """The coarse motion of a pair. ``source`` is the small picture, in [0, 1]; points and ``part_grids`` are
        positions of a corner grid, the background's grid first."""
        size = size_of(source)
        parts = part_grids.shape[1]
        difference = gaussian_heatmaps(driving_points, size, self.variance)
        difference = difference - gaussian_heatmaps(source_points, size, self.variance)
        difference = torch.cat([torch.zeros_like(difference[:, :1]), difference], dim=1)
        moved = sample(
            repeat(source, "b c h w -> (b k) c h w", k=parts),
            rearrange(part_grids, "b k c h w -> (b k) c h w"),
            align_corners=self.align_corners,
        )
        moved = rearrange(moved, "(b k) c h w -> b k c h w", k=parts)
        if self.interleaved:
            evidence = torch.cat([difference[:, :, None], moved], dim=2).flatten(1, 2)
        else:
            evidence = torch.cat([difference, moved.flatten(1, 2)], dim=1)
        risen = self.hourglass.scales(evidence)
        masks = torch.softmax(self.mask_head(risen[-1]).float(), dim=1)
        features = risen[-1 - self.coarser :]
        for up in self.up:
            features.append(up(features[-1]))
        occlusions = [head(x).float() for head, x in zip(self.occlusion_heads, features, strict=True)]
        grid = einsum(part_grids, masks, "b k c h w, b k h w -> b c h w")
        flows = flow_from_grid(part_grids.flatten(0, 1), size, align_corners=self.align_corners)
        return GridMotion(
            flow=flow_from_grid(grid, size, align_corners=self.align_corners),
            occlusion=occlusions[self.coarser],
            masks=masks,
            part_flows=flows.unflatten(0, (-1, parts)),
            occlusions=occlusions,
            grid=grid,
        )


class PublishedPrior(nn.Module, Prior):
    """A detector and the coarse motion between the points of two frames: the published priors of all four papers.

    ``detector`` gives points with matrices, which move affine parts, or ``(b, k, n, 2)`` points of K splines.
    ``background`` is a network that compares two frames and gives six numbers of an affine map. Without it, or without
    the driving frame, the background stands still.
    """

    def __init__(
        self,
        detector: HeatmapDetector | PointTokenDetector | SplineDetector,
        dense_motion: PublishedDenseMotion,
        background: ResNet | None = None,
    ):
        super().__init__()
        self.detector, self.dense_motion, self.background = detector, dense_motion, background
        self.step = math.lcm(detector.step, dense_motion.step)

    def detect(self, image: Float[Tensor, "b 3 h w"]) -> Motion:
        """The points of pictures in [0, 1], as positions of a corner grid, and the matrices if there are any."""
        found = self.detector(image)
        return Motion(*found) if isinstance(found, tuple) else Motion(found.flatten(1, 2))

    def structure_points(self, motion: Motion) -> Float[Tensor, "b k 2"]:
        """One point a part; that of a spline is the mean of its points."""
        if motion.affine is not None:
            return motion.points
        return reduce(motion.points, "b (k n) c -> b k c", "mean", n=POINTS_PER_SPLINE)

    def forward(
        self,
        source: Float[Tensor, "b 3 height width"],
        start: Motion,
        end: Motion,
        correlation: StructureLookup | None = None,
        *,
        part_scales: Float[Tensor, "b k"] | None = None,
    ) -> GridMotion:
        """The coarse motion from ``start`` (the source's points) to ``end`` (the driving frame's). The background moves
        if ``end`` holds its picture and the checkpoint a network for it. ``correlation`` and ``part_scales`` have no
        effect."""
        small = downsample(source, SCALE)
        size = size_of(small)
        if start.affine is None or end.affine is None:
            points, moved = (motion.points.unflatten(1, (-1, POINTS_PER_SPLINE)) for motion in (start, end))
            grids = conventions.spline_grids(points, moved, size)
        else:
            grids = conventions.affine_grids(start.points, end.points, start.affine, end.affine, size)
        rest = corner_grid(*size, device=source.device).expand(len(source), -1, -1, -1)
        matrix = None
        if self.background is not None and end.image is not None:
            matrix = self.background(torch.cat([source, end.image], dim=1)).unflatten(1, (2, 3))
            rest = conventions.background_grid(matrix, rest[0])
        coarse = self.dense_motion(small, start.points, end.points, torch.cat([rest[:, None], grids], dim=1))
        coarse.background = matrix
        return coarse

    def timed_modules(self) -> dict[str, list[nn.Module]]:
        """The modules whose time `bench` measures, by stage."""
        stages: dict[str, list[nn.Module]] = {"keypoints": [self.detector], "coarse flow": [self.dense_motion]}
        return stages | ({} if self.background is None else {"background": [self.background]})
