"""The trunk of MTIA's detector: the first three stages of HRNet-W32 (Wang et al. 2020, "Deep High-Resolution
Representation Learning for Visual Recognition").

An hourglass goes down and up again. This network keeps features at 1/4 of the image's side throughout, and coarser ones
in branches beside them; after every few blocks each branch receives the sum of all branches.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.blocks import StridedBlock

TRUNK_SCALE = 4  # features have 1/4 of the image's side


def conv_norm(inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> list[nn.Module]:
    """A convolution without a bias, and its BatchNorm."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


class Bottleneck(nn.Module):
    """A residual block: 1x1 down to ``width`` channels, 3x3, 1x1 up to ``outputs``. The shortcut is a 1x1 convolution
    where the number of channels changes."""

    def __init__(self, inputs: int, width: int, outputs: int):
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm(inputs, width, 1),
            nn.ReLU(inplace=True),
            *conv_norm(width, width, 3),
            nn.ReLU(inplace=True),
            *conv_norm(width, outputs, 1),
        )
        self.around = nn.Identity() if inputs == outputs else nn.Sequential(*conv_norm(inputs, outputs, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        return F.relu(self.around(x) + self.body(x))


class Exchange(nn.Module):
    """Blocks in each branch, then every branch (or only the finest) becomes the sum of all branches.

    Branch j has 1 / 2^j of the finest branch's side. It goes down to branch i by i - j convolutions with stride 2, and
    up by a 1x1 convolution and repeated pixels.
    """

    def __init__(self, widths: list[int], *, blocks: int, outputs: int):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(StridedBlock(width, width, stride=1, norm="batch") for _ in range(blocks)))
            for width in widths
        )
        self.paths = nn.ModuleList(
            nn.ModuleList(self._path(widths, start, end) for start in range(len(widths))) for end in range(outputs)
        )

    @staticmethod
    def _path(widths: list[int], start: int, end: int) -> nn.Module:
        if start == end:
            return nn.Identity()
        if start > end:
            up = nn.Upsample(scale_factor=2 ** (start - end), mode="nearest")
            return nn.Sequential(*conv_norm(widths[start], widths[end], 1), up)
        steps = []
        for level in range(start + 1, end + 1):
            width = widths[end] if level == end else widths[start]
            steps += [*conv_norm(widths[start], width, 3, stride=2), nn.ReLU(inplace=True)]
        return nn.Sequential(*steps[:-1])

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        """Run the branches' blocks and add up all branches for each output."""
        branches = [blocks(x) for blocks, x in zip(self.branches, branches, strict=True)]
        outputs = []
        for paths in self.paths:
            brought = (path(x) for path, x in zip(paths.children(), branches, strict=True))
            outputs.append(F.relu(sum(brought, start=branches[0].new_zeros(()))))
        return outputs


class HighResolutionNet(nn.Module):
    """Computes features at 1/4 of the image's side. ``exchanges`` counts the `Exchange` modules with two and with three
    branches; branch i has ``base`` * 2^i channels."""

    def __init__(self, *, stem: int, first_blocks: int, expanded: int, base: int, exchanges: list[int], blocks: int):
        super().__init__()
        self.channels = base
        self.stem = nn.Sequential(
            *conv_norm(3, stem, 3, stride=2),
            nn.ReLU(inplace=True),
            *conv_norm(stem, stem, 3, stride=2),
            nn.ReLU(inplace=True),
        )
        self.first = nn.Sequential(
            *(Bottleneck(stem if i == 0 else expanded, stem, expanded) for i in range(first_blocks))
        )
        widths = [base, 2 * base, 4 * base]
        self.open = nn.ModuleList(
            [
                nn.Sequential(*conv_norm(expanded, widths[0], 3), nn.ReLU(inplace=True)),
                nn.Sequential(*conv_norm(expanded, widths[1], 3, stride=2), nn.ReLU(inplace=True)),
                nn.Sequential(*conv_norm(widths[1], widths[2], 3, stride=2), nn.ReLU(inplace=True)),
            ]
        )
        two, three = exchanges
        self.two = nn.Sequential(*(Exchange(widths[:2], blocks=blocks, outputs=2) for _ in range(two)))
        self.three = nn.Sequential(
            *(Exchange(widths, blocks=blocks, outputs=3 if i < three - 1 else 1) for i in range(three))
        )

    def forward(self, image: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        """The features of the finest branch."""
        x = self.first(self.stem(image))
        branches = self.two([self.open[0](x), self.open[1](x)])
        return self.three([*branches, self.open[2](branches[-1])])[0]
