"""Inception v3 (Szegedy et al. 2015, "Rethinking the Inception Architecture for Computer Vision") as FID uses it
(Heusel et al. 2017): 2048 features of a picture.

Module names equal torchvision's, so published weights load by name. It differs from torchvision's network as
TensorFlow's of 2015 did: averages don't count the padding, and the last block takes a maximum where the other blocks
average.

Notebook: ``notebooks/09b_what_a_table_hides.ipynb``.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.features import _needed, _Published

SIZE = 299  # side of the pictures that it was trained on
# A path is a list of convolutions: channels, and (height, width) of the kernel. Two kernels in place of one, at a
# path's end, are two convolutions side by side. 7 by 7 is split into rows and columns.
ROW, COLUMN = (1, 7), (7, 1)


def _tall(pool: int) -> dict:
    double = [(64, (1, 1)), (96, (3, 3)), (96, (3, 3))]
    five = [(48, (1, 1)), (64, (5, 5))]
    return dict(branch1x1=[(64, (1, 1))], branch5x5=five, branch3x3dbl=double, branch_pool=[(pool, (1, 1))])


def _split(inner: int) -> dict:
    seven = [(inner, (1, 1)), (inner, ROW), (192, COLUMN)]
    double = [(inner, (1, 1)), (inner, COLUMN), (inner, ROW), (inner, COLUMN), (192, ROW)]
    one = [(192, (1, 1))]
    return dict(branch1x1=one, branch7x7=seven, branch7x7dbl=double, branch_pool=one)


SHRINK = dict(branch3x3=[(384, (3, 3))], branch3x3dbl=[(64, (1, 1)), (96, (3, 3)), (96, (3, 3))])
SHRINK_MORE = dict(
    branch3x3=[(192, (1, 1)), (320, (3, 3))],
    branch7x7x3=[(192, (1, 1)), (192, ROW), (192, COLUMN), (192, (3, 3))],
)
WIDE = dict(
    branch1x1=[(320, (1, 1))],
    branch3x3=[(384, (1, 1)), (384, ((1, 3), (3, 1)))],
    branch3x3dbl=[(448, (1, 1)), (384, (3, 3)), (384, ((1, 3), (3, 1)))],
    branch_pool=[(192, (1, 1))],
)
BLOCKS = {
    "Mixed_5b": _tall(32),
    "Mixed_5c": _tall(64),
    "Mixed_5d": _tall(64),
    "Mixed_6a": SHRINK,
    "Mixed_6b": _split(128),
    "Mixed_6c": _split(160),
    "Mixed_6d": _split(160),
    "Mixed_6e": _split(192),
    "Mixed_7a": SHRINK_MORE,
    "Mixed_7b": WIDE,
    "Mixed_7c": WIDE,
}


class _Convolution(nn.Module):
    """A convolution with BatchNorm and ReLU. With a stride of 1 it keeps the picture's size, unless ``padding`` is
    given."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], *, stride: int = 1, padding: int | None = None
    ):
        super().__init__()
        same = (kernel[0] // 2, kernel[1] // 2) if stride == 1 else (0, 0)
        around = same if padding is None else (padding, padding)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=around, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d hi wi"]:
        return F.relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    """Paths side by side, whose outputs are concatenated; the last one pools. Without a "branch_pool" it only pools,
    and the block halves the picture: the last convolution of each path has a stride of 2. ``pool`` is "average" or
    "maximum"; blocks that halve always take the maximum."""

    def __init__(self, inputs: int, paths: dict[str, list], *, pool: str):
        super().__init__()
        self.halves, self.pool = "branch_pool" not in paths, pool
        self.paths: list[list[list[str]]] = []  # of each path: of each step the convolutions side by side
        self.channels = inputs if self.halves else 0
        for name, steps in paths.items():
            channels, path = inputs, []
            for index, (width, kernels) in enumerate(steps, 1):
                last = index == len(steps)
                kernels = kernels if isinstance(kernels[0], tuple) else (kernels,)
                forks = "ab" if len(kernels) == 2 else ("",)
                path.append([name + (f"_{index}" if len(steps) > 1 else "") + fork for fork in forks])
                stride = 2 if self.halves and last else 1
                for module, kernel in zip(path[-1], kernels, strict=True):
                    self.add_module(module, _Convolution(channels, width, kernel, stride=stride))
                channels = width * len(kernels)
            self.paths.append(path)
            self.channels += channels

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d hi wi"]:
        if self.halves:
            pooled = F.max_pool2d(x, 3, stride=2)
        elif self.pool == "maximum":
            pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        else:
            pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        outputs = []
        for path in self.paths:
            y = pooled if path[0][0] == "branch_pool" else x
            for step in path:
                y = torch.cat([self.get_submodule(name)(y) for name in step], dim=1)
            outputs.append(y)
        return torch.cat([*outputs, pooled] if self.halves else outputs, dim=1)


class Inception(nn.Module):
    """Compute 2048 features of each picture; pictures have any size and colours in [0, 1]."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, (3, 3), padding=0)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = _Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = _Convolution(80, 192, (3, 3), padding=0)
        channels = 192
        for name, paths in BLOCKS.items():
            block = _Block(channels, paths, pool="maximum" if name == "Mixed_7c" else "average")
            self.add_module(name, block)
            channels = block.channels

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2048"]:
        """The features, averaged over the last layer's places."""
        x = F.interpolate(image, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(2 * x - 1)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


# The TensorFlow weights with which FID was published, as tensors with torchvision's names.
INCEPTION_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)


def load_inception(name: str = "inception") -> Inception:
    """Load Inception, frozen, for `minimodel.evaluation.metrics.fid`. "inception" downloads the weights with which FID
    was published (91 MB, once, checksummed); any other name is the path of that file."""
    return _needed({"inception": _Published(Inception, "Inception's", INCEPTION_URL)}, name, measure="FID")[1]
