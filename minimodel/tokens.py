"""Points and affine matrices from a transformer: tokens for motion beside tokens for the image (the MTIA
prior of MRFA section 4; Tao et al. 2022, "Motion Transformer for Unsupervised Image Animation").

A heatmap depends on what lies around a part. A token attends to the whole image, and to the other parts.

Notebook: ``notebooks/A3_motion_tokens.ipynb``.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from minimodel.blocks import DownBlock, ResidualBlock
from minimodel.errors import MinimodelError
from minimodel.keypoints import gaussian_heatmaps, soft_argmax
from minimodel.warping import identity_grid, resize_flow, size_of

TRUNK_SCALE = 4  # patches are cut from features at H/4


def sine_positions(size: tuple[int, int], width: int, *, device=None) -> Float[Tensor, "n width"]:
    """Encode the positions of all cells of ``size`` = (h, w), row by row, as sin(f x), cos(f x), sin(f y), cos(f y).

    Each of the four has ``width`` / 4 frequencies f. Positions are normalised, so that a place has the same vector at
    every resolution. The slowest wave is two images long, so that no two places have the same vector; the quickest is
    an eighth of the image.
    """
    frequencies = torch.pi * 2 ** torch.linspace(-1, 3, width // 4, device=device)
    angles = frequencies[:, None, None] * identity_grid(*size, device=device)[:, None]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return rearrange(waves, "c f h w -> (h w) (c f)")


def spread_points(count: int) -> Float[Tensor, "k 2"]:
    """Place ``count`` points within [-0.8, 0.8], far from each other.

    The points are multiples of two irrational steps, modulo 1 (Roberts' R2 sequence).
    """
    step = torch.tensor([0.7548776662466927, 0.5698402909980532])
    return 1.6 * ((0.5 + torch.arange(count)[:, None] * step) % 1) - 0.8


class TokenDetector(nn.Module):
    """Finds K points and K affine matrices in an image by a transformer; trained without labels.

    A small trunk of convolutions brings the image to H/4; each ``patch`` x ``patch`` of its features is a token. K
    point tokens and K affine tokens, which are learned, stand before the patches. In each of ``depth`` layers every
    token attends to all. Patches receive their positions before every layer. A linear layer turns each affine token
    into a matrix. Each point token is compared with every position at H/4, and the soft-argmax of these scores is the
    point (normalised). With ``shrink`` the image is first brought to 1 / ``shrink`` of its side. An image whose sides
    are no multiples of ``self.step`` raises a `MinimodelError`.

    MTIA reads each point from its token by a linear layer, and trains for days. In a test on landmarks, 180 steps of 8
    faces of 64 pixels, the linear layer learnt little more than the average face (2.6 pixels off). Comparison was 1.0
    pixels off after 150 steps, the hourglass 1.1.
    """

    # Of the soft-argmax. At the hourglass's 0.1, points jump about at first: the loss was two to three times as high.
    temperature = 0.3
    variance = 0.2  # of the Gaussian in which a point begins, in normalised units

    def __init__(
        self,
        points: int,
        *,
        base: int,
        blocks: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        ratio: int,
        norm: str,
        shrink: int = 1,
    ):
        super().__init__()
        if width % 4:
            raise MinimodelError(f"width is {width}: expected a multiple of 4, for sine and cosine of x and y")
        self.shrink, self.step = shrink, shrink * TRUNK_SCALE * patch
        residuals = (ResidualBlock(2 * base, norm=norm) for _ in range(blocks))
        self.trunk = nn.Sequential(DownBlock(3, base, norm=norm), DownBlock(base, 2 * base, norm=norm), *residuals)
        self.embed = nn.Conv2d(2 * base, width, patch, stride=patch)
        self.tokens = nn.Parameter(torch.randn(2 * points, width))
        # Each layer is built on its own: nn.TransformerEncoder would start all layers as copies of one.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, ratio * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.start = nn.Parameter(spread_points(points))
        self.query = nn.Linear(width, width)
        self.fine_key = nn.Conv2d(2 * base, width, 1, bias=False)
        self.coarse_key = nn.Linear(width, width, bias=False)
        # Every matrix starts as the identity: the prior begins as plain translations of parts.
        self.affine_head = nn.Linear(width, 4, bias=False)
        nn.init.zeros_(self.affine_head.weight)

    def forward(
        self, image: Float[Tensor, "b 3 height width"]
    ) -> tuple[Float[Tensor, "b k 2"], Float[Tensor, "b k 2 2"]]:
        height, width = image.shape[-2:]
        if height % self.step or width % self.step:
            raise MinimodelError(f"image of {height} x {width} pixels: both sides must be multiples of {self.step}")
        features = self.trunk(F.avg_pool2d(image, self.shrink) if self.shrink > 1 else image)
        patches = self.embed(features)
        size = size_of(patches)
        positions = sine_positions(size, patches.shape[1], device=image.device)
        point_tokens, affine_tokens, patches = self.attend(rearrange(patches, "b c h w -> b (h w) c"), positions)
        # The key of a position joins its own features with those of its patch, which has attended to the whole image.
        coarse = rearrange(self.coarse_key(patches), "b (h w) c -> b c h w", h=size[0])
        keys = self.fine_key(features) + resize_flow(coarse, size_of(features))
        # Positions in bfloat16 would snap to a coarse grid, so the heads' outputs leave any autocast here.
        with torch.autocast(image.device.type, enabled=False):
            queries = self.query(point_tokens.float()) / keys.shape[1] ** 0.5
            logits = einsum(queries, keys.float(), "b k c, b c h w -> b k h w")
            near = gaussian_heatmaps(self.start[None], size_of(logits), self.variance).log()
            points, _ = soft_argmax(logits / self.temperature + near)
            identity = torch.eye(2, device=image.device)
            return points, identity + self.affine_head(affine_tokens.float()).unflatten(-1, (2, 2))

    def attend(
        self, patches: Float[Tensor, "b n width"], positions: Float[Tensor, "n width"]
    ) -> tuple[Float[Tensor, "b k width"], Float[Tensor, "b k width"], Float[Tensor, "b n width"]]:
        """Run the layers: point tokens, affine tokens and patches (in any order), after attention to all tokens."""
        x = torch.cat([repeat(self.tokens, "k c -> b k c", b=len(patches)), patches], dim=1)
        # Motion tokens have no place of their own.
        positions = torch.cat([torch.zeros_like(self.tokens), positions])
        # For so few tokens torch's fused attention on CPUs takes four times as long as the plain one.
        with sdpa_kernel(SDPBackend.MATH) if x.device.type == "cpu" else nullcontext():
            for layer in self.layers:
                x = layer(x + positions)
        points = len(self.tokens) // 2
        return self.norm(x).split([points, points, patches.shape[1]], dim=1)
