"""MRFA's refinement as its code runs it (MRFA section 3.2).

The updater is `refinement.FlowUpdater`, the lookup `correlation.Correlation`. The differences lie around them. Grids
are resized with aligned corners, so a flow is in pixels of n - 1 steps, and each doubling of its resolution counts as a
doubling of its length. A level's lookup is centred at x / 2^l, and its offsets along x are the outer ones. Features are
warped first and projected afterwards. One map of positions is *added* to both encoders' heatmaps. The picture that is
blended in at the end was warped by the flow before its last update.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.blocks import Hourglass
from minimodel.correlation import Correlation
from minimodel.published.conventions import downsample, gaussian_heatmaps, grid_in_pixels, resize
from minimodel.published.motion import SCALE, GridMotion
from minimodel.refinement import FlowUpdater, UpdaterWidths
from minimodel.warping import flow_from_pixels, flow_to_pixels, from_pixels, identity_grid, size_of, to_pixels, warp

HELD_NUMBERS = 2**24  # volumes of a pair with more numbers than that aren't held


class PublishedStructure(nn.Module):
    """The structure encoders and their correlation. One learned map of positions is added to the heatmaps of both
    encoders."""

    variance = 0.1

    def __init__(
        self,
        points: int,
        features: int,
        *,
        size: int,
        base: int,
        levels: int,
        maximum: int,
        radius: int,
        pyramid_levels: int,
    ):
        super().__init__()
        self.step = SCALE * 2**levels
        self.radius, self.pyramid_levels = radius, pyramid_levels
        shared: dict[str, Any] = dict(base=base, levels=levels, maximum=maximum, norm="batch")
        self.position = nn.Parameter(torch.zeros(1, points, size, size))
        self.driving_hourglass = Hourglass(points, **shared)
        self.source_hourglass = Hourglass(points + 3, **shared)
        self.driving_head = nn.Conv2d(self.driving_hourglass.channels, features, 1)
        self.source_head = nn.Conv2d(self.source_hourglass.channels, features, 1)

    def _heatmaps(self, points: Float[Tensor, "b k 2"], size: tuple[int, int]) -> Float[Tensor, "b k h w"]:
        return gaussian_heatmaps(points, size, self.variance) + resize(self.position, size, align_corners=True)

    def encode_source(
        self, points: Float[Tensor, "b k 2"], image: Float[Tensor, "b 3 height width"]
    ) -> Float[Tensor, "b c h w"]:
        """Structure features of the source, at 1/4 of its side. Points are positions of a corner grid."""
        small = downsample(image, SCALE)
        inputs = torch.cat([self._heatmaps(points, size_of(small)), small], dim=1)
        return self.source_head(self.source_hourglass(inputs)).float()

    def forward(
        self, source_structure: Float[Tensor, "b c h w"], driving_points: Float[Tensor, "b k 2"]
    ) -> "PublishedLookup":
        """The correlation of the driving frame's structure with the source's, ready for lookups."""
        heatmaps = self._heatmaps(driving_points, size_of(source_structure))
        driving = self.driving_head(self.driving_hourglass(heatmaps)).float()
        return PublishedLookup(driving, source_structure, radius=self.radius, levels=self.pyramid_levels)


class PublishedLookup:
    """`Correlation`, read level by level at the positions that published code uses."""

    def __init__(
        self, driving: Float[Tensor, "b c h w"], source: Float[Tensor, "b c h w"], *, radius: int, levels: int
    ):
        numbers = (source.shape[-1] * source.shape[-2]) ** 2
        options: dict[str, Any] = dict(radius=radius, levels=1, hold_volume=numbers <= HELD_NUMBERS)
        pooled = [F.avg_pool2d(source, 2**level) for level in range(levels)]
        self.size = size_of(source)
        self.sizes = [size_of(features) for features in pooled]
        self.levels = [Correlation(driving, features, **options) for features in pooled]
        self.side = 2 * radius + 1

    def __call__(self, positions: Float[Tensor, "b 2 h w"]) -> Float[Tensor, "b features h w"]:
        """Look up the correlation around ``positions``: pixels of the source's features, whose centres are integers."""
        here = identity_grid(*positions.shape[-2:], device=positions.device)
        values = []
        for level, (correlation, size) in enumerate(zip(self.levels, self.sizes, strict=True)):
            # Our centre, (x + 1/2) / 2^l - 1/2, keeps a place; x / 2^l is a quarter of a pixel off at level 1.
            place = from_pixels(rearrange(positions / 2**level, "b c h w -> b h w c"), size)
            found = correlation(rearrange(place, "b h w c -> b c h w") - here)
            values.append(rearrange(found, "b (y x) h w -> b (x y) h w", y=self.side))
        return torch.cat(values, dim=1)


class PublishedRefiner(nn.Module):
    """The loop over scales with MRFA's Eq. 7; flows inside are pixels of the current resolution."""

    def __init__(self, feature_channels: list[int], *, radius: int, pyramid_levels: int):
        super().__init__()
        widths = UpdaterWidths()
        self.updater = FlowUpdater(pyramid_levels * (2 * radius + 1) ** 2, widths)
        self.projections = nn.ModuleList(nn.Conv2d(channels, widths.context[0], 1) for channels in feature_channels)

    def project(self, features: list[Tensor]) -> list[Tensor]:
        """Return the features unchanged: they are projected after they were warped."""
        return features

    def forward(
        self, coarse: GridMotion, lookup: PublishedLookup, features: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Refine the coarse flow scale by scale. ``features`` are the source's, coarsest first. Returns normalised
        flows and occlusion logits of each scale, and the finest flow before its last update."""
        assert coarse.grid is not None
        start, basis = grid_in_pixels(coarse.grid), lookup.size
        sizes = [size_of(feature) for feature in features]
        flow_residual = torch.zeros_like(resize(start, sizes[0], align_corners=True))
        occlusion_residual = torch.zeros_like(flow_residual[:, :1])
        flows, occlusions, before = [], [], start
        for feature, projection, size in zip(features, self.projections, sizes, strict=True):
            # A flow that is twice as fine is taken for twice as long in pixels.
            flow = resize(start, size, align_corners=True) * (size[0] / start.shape[-2]) + flow_residual
            before = flow_from_pixels(flow)
            context = projection(warp(feature, before, padding="zeros"))
            correlation = resize(lookup(_positions(flow, basis)), size, align_corners=True)
            step, occlusion_step = self.updater(before, correlation, context)
            flow_step = flow_residual + flow_to_pixels(step)
            occlusion_step = occlusion_residual + occlusion_step
            flows.append(before + step)
            occlusions.append(resize(coarse.occlusion, size, align_corners=True) + occlusion_step)
            finer = 2 * size[0], 2 * size[1]
            flow_residual = 2 * resize(flow_step, finer, align_corners=True)
            occlusion_residual = resize(occlusion_step, finer, align_corners=True)
        return flows, occlusions, before


def _positions(flow: Float[Tensor, "b 2 h w"], basis: tuple[int, int]) -> Float[Tensor, "b 2 hs ws"]:
    """The positions that a flow in pixels refers to, in pixels of features of size ``basis``. A finer flow is reduced
    to that size."""
    times = basis[0] / flow.shape[-2]
    if times < 1:
        flow, times = resize(flow, basis, align_corners=True) * times, 1
    size = size_of(flow)
    here = rearrange(identity_grid(*size, device=flow.device), "c h w -> h w c")
    return (flow + rearrange(to_pixels(here, size), "h w c -> c h w")) * times
