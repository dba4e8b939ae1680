"""The few layers that several networks share: convolution blocks and the hourglass.

Sizes are arguments, so that one file serves the 64-pixel preset and the paper's.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def normalisation(kind: str, channels: int) -> nn.Module:
    """``kind`` "batch" is what the papers use; "group" doesn't depend on the batch, which small batches want."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(max(1, channels // 8), channels)
    raise ValueError(f"unknown normalisation {kind!r}: expected 'batch' or 'group'")


class ConvBlock(nn.Sequential):
    """Convolution, normalisation, ReLU at constant resolution."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 3, norm: str):
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
            normalisation(norm, outputs),
            nn.ReLU(),
        )


class DownBlock(ConvBlock):
    """`ConvBlock`, then an average over 2x2 pixels, which keeps features where they were."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h//2 w//2"]:
        return F.avg_pool2d(super().forward(x), 2)


class UpBlock(ConvBlock):
    """Each pixel becomes 2x2, then `ConvBlock`."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d 2*h 2*w"]:
        return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))


class ResidualBlock(nn.Module):
    """Two pre-activated 3x3 convolutions around which the input goes unchanged."""

    def __init__(self, channels: int, *, norm: str):
        super().__init__()
        self.body = nn.Sequential(
            normalisation(norm, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            normalisation(norm, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.body(x)


class Hourglass(nn.Module):
    """Down ``levels`` times by two and up again, with skip connections; the input itself is the last skip.

    Level i has ``base`` * 2^i channels, at most ``maximum``; the output has ``self.channels`` = ``base`` + ``inputs``.
    The sides of its input must be divisible by 2^``levels``.
    """

    def __init__(self, inputs: int, *, base: int, levels: int, maximum: int, norm: str):
        super().__init__()
        widths = [inputs] + [min(maximum, base * 2 ** (level + 1)) for level in range(levels)]
        self.down = nn.ModuleList(DownBlock(widths[i], widths[i + 1], norm=norm) for i in range(levels))
        # Going up, all levels but the lowest receive the features that came down beside what rises from below.
        ups = [min(maximum, base * 2**level) for level in range(levels)]
        self.up = nn.ModuleList(
            UpBlock(widths[i + 1] * (1 if i == levels - 1 else 2), ups[i], norm=norm) for i in reversed(range(levels))
        )
        self.channels = ups[0] + inputs

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        skips = [x]
        for block in self.down:
            skips.append(block(skips[-1]))
        x = skips.pop()
        for block in self.up:
            x = torch.cat([block(x), skips.pop()], dim=1)
        return x
