"""How published code counts positions and changes sizes. The other modules of this package take these conventions from
here.

Here a picture spans [-1, 1] from edge to edge. In FOMM, TPSM, MRFA and MTIA the *centres* of its outer pixels are at -1
and 1 (a corner grid): pixel j of n lies at 2j / (n - 1) - 1, a factor of n / (n - 1) further out than in `warping`.
Published weights were trained with that factor, so their points, heatmaps and grids have to be made with it.

Published code then samples such a grid in one of two ways (``align_corners`` of PyTorch's ``grid_sample``). With True
the grid is sampled as it was made. With False PyTorch takes -1 and 1 for the edges, so that even a grid at rest
enlarges the picture by n / (n - 1): half a pixel at the border, which the weights are trained for. Outside a picture
samples are black. Pictures are reduced by a Gaussian filter and not by averages, and grids are resized bilinearly in
both directions.

Sources: the public code of FOMM, TPSM, MRFA and MTIA.
"""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from minimodel.tps import Spline, kernel
from minimodel.warping import full_precision, identity_grid, size_of, warp

REGULARISATION = 0.01  # of splines, on the diagonal of the whole system


def corner_grid(height: int, width: int, *, device=None, dtype=torch.float32) -> Float[Tensor, "2 h w"]:
    """The position (x, y) of every pixel centre of a corner grid, in which the outer pixel centres are at -1 and 1."""
    return identity_grid(height, width, device=device, dtype=dtype) * _stretch(height, width, device, dtype)


def _stretch(height: int, width: int, device, dtype) -> Float[Tensor, "2 1 1"]:
    """n / (n - 1), which takes a position of `warping` to one of a corner grid."""
    factors = width / (width - 1), height / (height - 1)
    return torch.tensor(factors, device=device, dtype=dtype).view(2, 1, 1)


@full_precision
def flow_from_grid(
    grid: Float[Tensor, "b 2 h w"], size: tuple[int, int], *, align_corners: bool
) -> Float[Tensor, "b 2 h w"]:
    """The flow of `warping` that samples a picture of ``size`` = (height, width) as published code samples a grid.

    Positions of a corner grid shrink by (n - 1) / n; with ``align_corners`` False published code doesn't do that.
    """
    if align_corners:
        grid = grid / _stretch(*size, grid.device, grid.dtype)
    return grid - identity_grid(*grid.shape[-2:], device=grid.device, dtype=grid.dtype)


def grid_in_pixels(grid: Float[Tensor, "b 2 h w"]) -> Float[Tensor, "b 2 h w"]:
    """The displacement of a corner grid from rest, in pixels of its own resolution, of which n - 1 span it."""
    height, width = grid.shape[-2:]
    steps = torch.tensor((width - 1, height - 1), device=grid.device, dtype=grid.dtype).view(2, 1, 1)
    return (grid - corner_grid(height, width, device=grid.device, dtype=grid.dtype)) * steps / 2


def sample(
    image: Float[Tensor, "b c height width"], grid: Float[Tensor, "b 2 h w"], *, align_corners: bool
) -> Float[Tensor, "b c h w"]:
    """Sample ``image`` at the positions of a corner grid; outside it is black."""
    flow = flow_from_grid(grid, size_of(image), align_corners=align_corners)
    return warp(image, flow, padding="zeros")


def resize(
    values: Float[Tensor, "b c height width"], size: tuple[int, int], *, align_corners: bool
) -> Float[Tensor, "b c h w"]:
    """Resize a grid or an occlusion map to ``size`` = (h, w): bilinearly, without averaging where it shrinks."""
    if size_of(values) == tuple(size):
        return values
    return F.interpolate(values, tuple(size), mode="bilinear", align_corners=align_corners)


def downsampling_kernel(factor: int) -> Float[Tensor, "taps taps"]:
    """The Gaussian filter of `downsample`, normalised to a sum of 1. Published checkpoints also hold it, in entries
    ``down.weight``."""
    sigma = (factor - 1) / 2
    taps = 2 * round(4 * sigma) + 1
    line = torch.exp(-((torch.arange(taps) - taps // 2) ** 2) / (2 * sigma**2))
    square = line[:, None] * line
    return square / square.sum()


def downsample(image: Float[Tensor, "b c height width"], factor: int) -> Float[Tensor, "b c h w"]:
    """Smooth with a Gaussian (black outside), then keep every ``factor``-th pixel, from the first one on."""
    gaussian = downsampling_kernel(factor).to(image)
    channels = image.shape[1]
    weight = gaussian.expand(channels, 1, *gaussian.shape)
    return F.conv2d(image, weight, stride=factor, padding=gaussian.shape[0] // 2, groups=channels)


def soft_argmax(
    logits: Float[Tensor, "b k h w"], *, temperature: float
) -> tuple[Float[Tensor, "b k 2"], Float[Tensor, "b k h w"]]:
    """The mean position under a softmax of the logits, and that softmax: `keypoints.soft_argmax` on a corner grid."""
    height, width = logits.shape[-2:]
    heatmaps = torch.softmax((logits / temperature).flatten(2), dim=-1).unflatten(2, (height, width))
    grid = corner_grid(height, width, device=logits.device, dtype=logits.dtype)
    return einsum(heatmaps, grid, "b k h w, c h w -> b k c"), heatmaps


def gaussian_heatmaps(
    points: Float[Tensor, "b k 2"], size: tuple[int, int], variance: float
) -> Float[Tensor, "b k h w"]:
    """Gaussians of height 1 around points of a corner grid: `keypoints.gaussian_heatmaps` on that grid. ``variance`` is
    in normalised units."""
    grid = corner_grid(*size, device=points.device, dtype=points.dtype)
    away = grid - rearrange(points, "b k c -> b k c 1 1")
    return torch.exp(-away.square().sum(2) / (2 * variance))


@full_precision
def affine_grids(
    source_points: Float[Tensor, "b k 2"],
    driving_points: Float[Tensor, "b k 2"],
    source_affine: Float[Tensor, "b k 2 2"],
    driving_affine: Float[Tensor, "b k 2 2"],
    size: tuple[int, int],
) -> Float[Tensor, "b k 2 h w"]:
    """T_k(z) = p_s + A_s A_d^-1 (z - p_d) at every pixel of a corner grid (MRFA Eq. 1)."""
    grid = corner_grid(*size, device=source_points.device, dtype=source_points.dtype)
    jacobian = torch.linalg.solve(driving_affine, source_affine, left=False)
    offset = grid - rearrange(driving_points, "b k c -> b k c 1 1")
    moved = einsum(jacobian, offset, "b k i j, b k j h w -> b k i h w")
    return rearrange(source_points, "b k c -> b k c 1 1") + moved


@full_precision
def spline_grids(
    source_points: Float[Tensor, "b k n 2"], driving_points: Float[Tensor, "b k n 2"], size: tuple[int, int]
) -> Float[Tensor, "b k 2 h w"]:
    """T_k(z) of each spline at every pixel of a corner grid (TPSM Eq. 2).

    Positions are fitted, not displacements. `REGULARISATION` is added to the whole diagonal of the bordered system and
    not to the kernel block alone, so the affine part is damped as well. Where the points leave the map open, it
    therefore tends to the picture's middle and not to rest.
    """
    height, width = size
    batch, count, n = driving_points.shape[:3]
    border = torch.cat([driving_points, torch.ones_like(driving_points[..., :1])], dim=-1)
    between = driving_points[..., :, None, :] - driving_points[..., None, :, :]
    squared = torch.linalg.vector_norm(between, dim=-1).square()
    upper = torch.cat([kernel(squared), border], dim=-1)
    lower = torch.cat([border.mT, border.new_zeros(batch, count, 3, 3)], dim=-1)
    system = torch.cat([upper, lower], dim=-2) + REGULARISATION * torch.eye(n + 3).to(border)
    values = torch.cat([source_points, source_points.new_zeros(batch, count, 3, 2)], dim=-2)
    # Distances by their root, the inverse, single precision: rounding as published. TPSM's instance norms make ten
    # times as much of what rounds differently: with random weights 1e-4 of a picture instead of 1e-5.
    weights, affine = (torch.linalg.inv(system) @ values).split([n, 3], dim=-2)
    grid = corner_grid(height, width, device=driving_points.device, dtype=driving_points.dtype)
    places = rearrange(grid, "c h w -> (h w) c").expand(batch, count, -1, -1)
    moved = Spline(driving_points, weights, affine.mT)(places)
    return rearrange(moved, "b k (h w) c -> b k c h w", h=height)


@full_precision
def background_grid(matrix: Float[Tensor, "b 2 3"], grid: Float[Tensor, "2 h w"]) -> Float[Tensor, "b 2 h w"]:
    """A_bg [z, 1] at every position z of a corner grid (TPSM Eq. 4)."""
    return einsum(matrix[..., :2], grid, "b i j, j h w -> b i h w") + matrix[..., 2, None, None]
