"""Generators of the published models: `generator.Generator`s on `generator.SourceEncoder`. Where a flow samples outside
the picture, the sample is black."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from minimodel.blocks import ResidualBlock, UpBlock, normalisation
from minimodel.generator import Painting, SourceEncoder
from minimodel.motion import SourceState, Stages
from minimodel.published.conventions import resize, sample
from minimodel.published.motion import GridMotion
from minimodel.warping import size_of, warp


def moved_and_visible(source: SourceState, stages: Stages) -> tuple[list[Tensor], list[Tensor]]:
    """The source's features, warped to the driving frame at each scale, and the visibility (0 to 1) of each place in
    the source; coarsest first."""
    pairs = zip(source.features, stages.flows[1:], strict=True)
    moved = [warp(feature, flow, padding="zeros") for feature, flow in pairs]
    return moved, [torch.sigmoid(occlusion) for occlusion in stages.occlusions[1:]]


def _decoder(channels: list[int]) -> nn.ModuleList:
    return nn.ModuleList(UpBlock(below, above, norm="batch") for below, above in pairwise(channels))


class BottleneckGenerator(SourceEncoder):
    """FOMM's generator: features at 1/4 are warped and gated once, and pass residual blocks and a decoder without skip
    connections (FOMM section 3.3)."""

    def __init__(self, *, base: int, levels: int, maximum: int, blocks: int, outer_kernel: int = 7):
        super().__init__(base=base, levels=levels, maximum=maximum, outer_kernel=outer_kernel, norm="batch")
        channels = self.feature_channels
        self.bottleneck = nn.Sequential(*(ResidualBlock(channels[0], norm="batch") for _ in range(blocks)))
        self.up = _decoder(channels)
        self.last = nn.Conv2d(base, 3, outer_kernel, padding=outer_kernel // 2)

    def paint(self, source: SourceState, stages: Stages) -> Painting:
        """Paint the picture from the gated features; nothing is blended in."""
        x = warp(source.features[0], stages.flows[1], padding="zeros") * torch.sigmoid(stages.occlusions[1])
        x = self.bottleneck(x)
        for up in self.up:
            x = up(x)
        return torch.sigmoid(self.last(x).float()), None


class GatedBottleneckGenerator(BottleneckGenerator):
    """MTIA's generator: that of FOMM, with each scale after the bottleneck gated by the occlusion as in `GatedUNet`."""

    def paint(self, source: SourceState, stages: Stages) -> Painting:
        """Paint the picture, and return the finest occlusion (logits) for the blending."""
        moved, visible = moved_and_visible(source, stages)
        x = self.bottleneck(moved[0] * visible[0])
        for level, up in enumerate(self.up):
            x = up(moved[level] * visible[level] + x * (1 - visible[level]))
        x = moved[-1] * visible[-1] + x * (1 - visible[-1])
        return torch.sigmoid(self.last(x).float()), stages.occlusions[-1]


class PublishedInpaintingNetwork(SourceEncoder):
    """TPSM's inpainting network (TPSM section 3.2). It differs from ours in the last step, which adds the warped
    visible features to those painted elsewhere. The norms are instance norms, which `networks` puts in."""

    def __init__(self, *, base: int, levels: int, maximum: int, outer_kernel: int = 7):
        super().__init__(base=base, levels=levels, maximum=maximum, outer_kernel=outer_kernel, norm="batch")
        channels = self.feature_channels
        inputs = [channels[0], *(2 * width for width in channels[1:-1])]
        self.residual = nn.ModuleList(
            nn.Sequential(ResidualBlock(width, norm="batch"), ResidualBlock(width, norm="batch")) for width in inputs
        )
        self.up = nn.ModuleList(
            UpBlock(width, above, norm="batch") for width, above in zip(inputs, channels[1:], strict=True)
        )
        self.last = nn.Conv2d(base, 3, outer_kernel, padding=outer_kernel // 2)

    def paint(self, source: SourceState, stages: Stages) -> Painting:
        """Paint the picture, and return the finest occlusion (logits) for the blending."""
        moved, visible = moved_and_visible(source, stages)
        seen = [feature * gate for feature, gate in zip(moved, visible, strict=True)]
        x = seen[0]
        for level, (residual, up) in enumerate(zip(self.residual, self.up, strict=True), start=1):
            x = up(residual(x))
            if level < len(self.up):
                x = torch.cat([x, seen[level]], dim=1)
        x = x * (1 - visible[-1]) + seen[-1]
        return torch.sigmoid(self.last(x).float()), stages.occlusions[-1]


class CoarseStreamUNet(SourceEncoder):
    """MRFA's occlusion-gated U-Net with the *coarse stream* of its code: below each scale the decoder also receives the
    source's features, warped by the coarse flow and ungated. The paper doesn't mention this stream. Without ``streams``
    (MRFA's baseline without refinement) it is `generator.GatedUNet`, and the joining blocks are unused."""

    def __init__(self, *, base: int, levels: int, maximum: int, streams: bool, outer_kernel: int = 7):
        super().__init__(base=base, levels=levels, maximum=maximum, outer_kernel=outer_kernel, norm="batch")
        self.streams = streams
        channels = self.feature_channels
        self.residual = nn.ModuleList(ResidualBlock(width, norm="batch") for width in channels[:-1])
        self.up = _decoder(channels)
        self.join = nn.ModuleList(
            nn.Sequential(
                normalisation("batch", 2 * width),
                nn.ReLU(inplace=True),
                nn.Conv2d(2 * width, width, 3, padding=1),
            )
            for width in channels[:-1]
        )
        self.last = nn.Conv2d(base, 3, outer_kernel, padding=outer_kernel // 2)

    def paint(self, source: SourceState, stages: Stages) -> Painting:
        """Paint the picture, and return the finest occlusion (logits) for the blending."""
        moved, visible = moved_and_visible(source, stages)
        beside = None
        if self.streams:
            assert isinstance(stages.coarse, GridMotion)
            beside = self.coarse_stream(source.features, stages.coarse)
        x = moved[0] * visible[0]
        for level, (residual, up) in enumerate(zip(self.residual, self.up, strict=True)):
            if beside is not None:
                x = self.join[level](torch.cat([x, beside[level]], dim=1))
            x = up(residual(x))
            x = moved[level + 1] * visible[level + 1] + x * (1 - visible[level + 1])
        return torch.sigmoid(self.last(x).float()), stages.occlusions[-1]

    @staticmethod
    def coarse_stream(features: list[Tensor], coarse: GridMotion) -> list[Tensor]:
        """The features of all scales but the finest, warped by the coarse grid. MRFA's code resizes the grid with
        aligned corners, and samples without."""
        assert coarse.grid is not None
        sizes = [size_of(feature) for feature in features[:-1]]
        grids = [resize(coarse.grid, size, align_corners=True) for size in sizes]
        return [sample(*pair, align_corners=False) for pair in zip(features[:-1], grids, strict=True)]
