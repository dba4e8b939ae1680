"""The few layers that several networks share: convolution blocks, the hourglass and the residual network.

Sizes are arguments, so that one file serves the 64-pixel preset and the paper's.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.errors import MinimodelError


def normalisation(kind: str, channels: int) -> nn.Module:
    """Build the normalisation layer of a ``kind``: "batch" as in the papers, or "group".

    Group normalisation doesn't depend on the batch, which is better for small batches. Any other kind raises a
    `MinimodelError`.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(max(1, channels // 8), channels)
    raise MinimodelError(f"unknown normalisation {kind!r}: expected 'batch' or 'group'")


def zero_convolution(layer: nn.Conv2d) -> None:
    """Set a convolution's weights and bias to 0, so that its output starts as 0 everywhere."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class ConvBlock(nn.Sequential):
    """Convolution, normalisation, ReLU at constant resolution."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 3, norm: str):
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
            normalisation(norm, outputs),
            nn.ReLU(inplace=True),
        )


class DownBlock(ConvBlock):
    """`ConvBlock`, then an average over 2x2 pixels, which keeps features at their positions."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h//2 w//2"]:
        return F.avg_pool2d(super().forward(x), 2)


class UpBlock(ConvBlock):
    """Each pixel becomes 2x2, then `ConvBlock`."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d 2*h 2*w"]:
        return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))


class ResidualBlock(nn.Module):
    """Two pre-activated 3x3 convolutions, whose output is added to the input."""

    def __init__(self, channels: int, *, norm: str):
        super().__init__()
        self.body = nn.Sequential(
            normalisation(norm, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            normalisation(norm, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.body(x)


class Hourglass(nn.Module):
    """A network that goes down ``levels`` times by two and up again, with skip connections.

    The input itself is the last skip. Level i has ``base`` * 2^i channels, at most ``maximum``. The output has
    ``self.channels`` = ``base`` + ``inputs`` channels; the features on the way up have ``self.scale_channels``,
    coarsest first. The sides of the input must be multiples of ``self.step`` = 2^``levels``.
    """

    def __init__(self, inputs: int, *, base: int, levels: int, maximum: int, norm: str):
        super().__init__()
        self.step = 2**levels
        widths = [inputs] + [min(maximum, base * 2 ** (level + 1)) for level in range(levels)]
        self.down = nn.ModuleList(DownBlock(widths[i], widths[i + 1], norm=norm) for i in range(levels))
        # Going up, all levels but the lowest receive the features that came down beside what rises from below.
        ups = [min(maximum, base * 2**level) for level in range(levels)]
        self.up = nn.ModuleList(
            UpBlock(widths[i + 1] * (1 if i == levels - 1 else 2), ups[i], norm=norm) for i in reversed(range(levels))
        )
        self.scale_channels = [ups[i] + widths[i] for i in reversed(range(levels))]
        self.channels = self.scale_channels[-1]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        return self.scales(x)[-1]

    def scales(self, x: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """The features on the way up, coarsest first; the last is the output."""
        skips = [x]
        for block in self.down:
            skips.append(block(skips[-1]))
        risen = [skips.pop()]
        for block in self.up:
            risen.append(torch.cat([block(risen[-1]), skips.pop()], dim=1))
        return risen[1:]


class StridedBlock(nn.Module):
    """Two 3x3 convolutions, the first with a stride, whose output is added to the input.

    The input goes through a 1x1 convolution first where size or channels differ.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: str):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            normalisation(norm, outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            normalisation(norm, outputs),
        )
        self.around: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.around = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), normalisation(norm, outputs)
            )

    def forward(self, x: Float[Tensor, "b c height width"]) -> Float[Tensor, "b d h w"]:
        return F.relu(self.around(x) + self.body(x))


class ResNet(nn.Module):
    """A residual network from a picture to ``outputs`` numbers.

    Base 64, 4 levels, 2 blocks each and pooling are the sizes of ResNet-18 (He et al. 2016). Level i has ``base`` * 2^i
    channels at half the resolution of the level before; ``pool`` halves the resolution once more before the first.
    """

    def __init__(self, inputs: int, outputs: int, *, base: int, levels: int, blocks: int, pool: bool, norm: str):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(inputs, base, 7, stride=2, padding=3, bias=False),
            normalisation(norm, base),
            nn.ReLU(inplace=True),
        )
        if pool:
            self.stem.append(nn.MaxPool2d(3, stride=2, padding=1))
        widths = [base, *(base * 2**level for level in range(levels))]
        self.levels = nn.ModuleList()
        for level in range(levels):
            first = StridedBlock(widths[level], widths[level + 1], stride=1 if level == 0 else 2, norm=norm)
            rest = [StridedBlock(widths[level + 1], widths[level + 1], stride=1, norm=norm) for _ in range(blocks - 1)]
            self.levels.append(nn.Sequential(first, *rest))
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n"]:
        x = self.stem(x)
        for level in self.levels:
            x = level(x)
        # The numbers are positions, which bfloat16 would round to pixels: they leave any autocast here.
        with torch.autocast(x.device.type, enabled=False):
            return self.head(x.float().mean((2, 3)))
