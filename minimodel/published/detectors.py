"""Detectors of published models that differ from ours: the heatmaps of FOMM and MRFA, the tokens of MTIA.

TPSM's detector is `keypoints.SplineDetector` as it is.
"""

import math

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.blocks import Hourglass
from minimodel.published.conventions import downsample, resize, soft_argmax
from minimodel.published.hrnet import TRUNK_SCALE, HighResolutionNet


class HeatmapDetector(nn.Module):
    """The detector of FOMM and MRFA: K points and K matrices of an image, from heatmaps (FOMM section 3.1).

    Unlike in `keypoints.KeypointDetector` the heads have no padding: 64 x 64 features give 58 x 58 heatmaps, whose
    outer pixels lie at -1 and 1 again. ``matrix_maps`` is K in FOMM; MRFA has one map of matrices for all points.
    """

    scale = 4
    temperature = 0.1

    def __init__(self, points: int, *, matrix_maps: int, base: int, levels: int, maximum: int, head_kernel: int = 7):
        super().__init__()
        self.step = self.scale * 2**levels
        self.hourglass = Hourglass(3, base=base, levels=levels, maximum=maximum, norm="batch")
        self.heatmap_head = nn.Conv2d(self.hourglass.channels, points, head_kernel)
        self.affine_head = nn.Conv2d(self.hourglass.channels, 4 * matrix_maps, head_kernel)

    def forward(
        self, image: Float[Tensor, "b 3 height width"]
    ) -> tuple[Float[Tensor, "b k 2"], Float[Tensor, "b k 2 2"]]:
        """Points, as positions of a corner grid, and matrices of a picture in [0, 1]."""
        features = self.hourglass(downsample(image, self.scale))
        with torch.autocast(image.device.type, enabled=False):
            features = features.float()
            points, heatmaps = soft_argmax(self.heatmap_head(features), temperature=self.temperature)
            maps = rearrange(self.affine_head(features), "b (k i j) h w -> b k i j h w", i=2, j=2)
            maps = maps.expand(-1, points.shape[1], -1, -1, -1, -1)
            return points, einsum(heatmaps, maps, "b k h w, b k i j h w -> b k i j")


class PointTokenDetector(nn.Module):
    """The detector of MTIA: K points and K matrices of an image, from motion tokens (MTIA section 3).

    The layers are those of `tokens.TokenDetector`, with three differences. The trunk is a high-resolution network; the
    positions are a table stored with the weights; a point is a linear map of its token. At another image size the table
    is resized.
    """

    def __init__(
        self, points: int, *, trunk: dict, patch: int, width: int, depth: int, heads: int, hidden: int, places: int
    ):
        super().__init__()
        self.step = TRUNK_SCALE * patch
        self.patch = patch
        self.trunk = HighResolutionNet(**trunk)
        self.embed = nn.Linear(self.trunk.channels * patch**2, width)
        self.positions = nn.Parameter(torch.zeros(1, places, width), requires_grad=False)
        self.tokens = nn.Parameter(torch.zeros(1, 2 * points, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.point_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2))
        self.affine_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4))

    def forward(
        self, image: Float[Tensor, "b 3 height width"]
    ) -> tuple[Float[Tensor, "b k 2"], Float[Tensor, "b k 2 2"]]:
        """Points, as positions of a corner grid, and matrices of a picture in [0, 1]."""
        features = self.trunk(image)
        size = tuple(n // self.patch for n in features.shape[-2:])
        patches = rearrange(features, "b c (h p) (w q) -> b (h w) (p q c)", p=self.patch, q=self.patch)
        x = torch.cat([self.tokens.expand(len(image), -1, -1), self.embed(patches)], dim=1)
        # Motion tokens have no position.
        positions = torch.cat([torch.zeros_like(self.tokens), self.positions_at(size)], dim=1)
        for layer in self.layers:
            x = layer(x + positions)
        count = self.tokens.shape[1] // 2
        with torch.autocast(image.device.type, enabled=False):
            points = 2 * torch.sigmoid(self.point_head(x[:, :count].float())) - 1
            return points, self.affine_head(x[:, count : 2 * count].float()).unflatten(-1, (2, 2))

    def positions_at(self, size: tuple[int, int]) -> Float[Tensor, "1 n width"]:
        """The table of positions for ``size`` = (rows, columns) of patches."""
        table = rearrange(self.positions, "1 (h w) c -> 1 c h w", h=math.isqrt(self.positions.shape[1]))
        return rearrange(resize(table, size, align_corners=False), "1 c h w -> 1 (h w) c")
