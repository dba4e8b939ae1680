"""Coordinates, grids, warping: the convention of the whole package.

A position is normalised, x before y. The image spans [-1, 1] from edge to edge, so the centre of pixel j of W lies at
(2j + 1) / W - 1 (PyTorch calls this ``align_corners=False``). The same number therefore means the same place at every
resolution, and average pooling leaves features where they were.

A flow is a backward displacement on the driving grid: ``driving(z) = source(z + flow(z))``.

Notebook: ``notebooks/01_affine_flows.ipynb``.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

P = ParamSpec("P")  # the parameters of a function, and ...
R = TypeVar("R")  # ... its result


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function on positions run outside any autocast: in bfloat16 two neighbouring pixels are the same place."""

    @wraps(function)
    def outside_autocast(*args: P.args, **kwargs: P.kwargs) -> R:
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        if torch.compiler.is_exporting():  # there is no autocast, and torch can't read a graph with such regions again
            return function(*args, **kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return function(*args, **kwargs)

    return outside_autocast


def size_of(maps: Tensor) -> tuple[int, int]:
    """The size (h, w) of pictures, flows or any maps (..., h, w)."""
    height, width = maps.shape[-2:]
    return height, width


def extent(size: tuple[int, int], like: Tensor) -> Float[Tensor, "2"]:
    """The width and the height of ``size`` = (h, w) as a tensor of the device and type of ``like``.

    The numbers are made on that device: `torch.tensor` copies them from the CPU, and a GPU waits for the copy.
    """
    return torch.linspace(size[1], size[0], 2, device=like.device, dtype=like.dtype)


def identity_grid(height: int, width: int, *, device=None, dtype=torch.float32) -> Float[Tensor, "2 h w"]:
    """The normalised position of every pixel centre: channel 0 holds x, channel 1 holds y."""
    x = (2 * torch.arange(width, device=device, dtype=dtype) + 1) / width - 1
    y = (2 * torch.arange(height, device=device, dtype=dtype) + 1) / height - 1
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))


def warp(
    image: Float[Tensor, "b c height width"],
    flow: Float[Tensor, "b 2 h w"],
    *,
    padding: str = "border",
    mode: str = "bilinear",
) -> Float[Tensor, "b c h w"]:
    """Sample ``image`` at ``z + flow(z)`` for every pixel z of the flow's own grid.

    ``flow`` is normalised. ``padding`` fills the outside of the image: "border" repeats the edge, "zeros" is black.
    ``mode`` "bilinear" mixes the four pixels around a position, "nearest" takes one pixel, for labels.

    >>> warped = warp(picture, resize_flow(flow, size_of(picture)))  # (b, 3, height, width)
    """
    grid = identity_grid(*flow.shape[-2:], device=flow.device, dtype=flow.dtype) + flow
    if (mode, padding) == ("bilinear", "border") and _reads_rows(image, flow):
        return _warp_rows(image, grid)
    return sample(image, grid.permute(0, 2, 3, 1), padding=padding, mode=mode)


def sample(
    image: Float[Tensor, "b c height width"],
    positions: Float[Tensor, "b h w 2"],
    *,
    padding: str = "border",
    mode: str = "bilinear",
) -> Float[Tensor, "b c h w"]:
    """Sample ``image`` at normalised ``positions`` (x, y), which may form any grid of h x w.

    ``padding`` fills the outside of the image: "border" repeats the edge, "reflection" mirrors the image, "zeros" is
    black. Every sampling of pictures and features in the package goes through this function.
    """
    return F.grid_sample(image, positions, mode=mode, padding_mode=padding, align_corners=False)


def _reads_rows(image: Tensor, flow: Tensor) -> bool:
    """Whether `_warp_rows` is quicker: features with the channels of a pixel side by side, rendered on a CPU."""
    if torch.is_grad_enabled() or image.device.type != "cpu" or image.dtype != flow.dtype:
        return False
    if torch.compiler.is_compiling():  # other runtimes have a quick `grid_sample`, and no such rows
        return False
    own = image[:1] if image.stride(0) == 0 else image  # one source may be expanded to a batch
    return image.shape[1] >= 16 and own.is_contiguous(memory_format=torch.channels_last)


def _warp_rows(image: Float[Tensor, "b c height width"], grid: Float[Tensor, "b 2 h w"]) -> Float[Tensor, "b c h w"]:
    """Compute the result of `grid_sample` ten times as quickly, for channels_last features.

    Four rows of c numbers are read for each pixel, instead of c times four numbers. The result is channels_last again,
    the quickest layout for the next convolution. One image that was expanded to a batch isn't copied.
    """
    channels, height, width = image.shape[1:]
    batch = 1 if image.stride(0) == 0 else len(image)
    position = to_pixels(grid.permute(0, 2, 3, 1), (height, width)).nan_to_num()
    last = extent((height, width), position) - 1
    position = torch.minimum(position.clamp(min=0), last)
    before = position.floor()
    x, y = torch.stack((before, torch.minimum(before + 1, last)), -1).long().unbind(3)
    share = torch.stack((before + 1 - position, position - before), -1)
    first = torch.arange(batch, device=image.device).view(-1, 1, 1, 1, 1) * (height * width)
    index = first + y[..., :, None] * width + x[..., None, :]
    weight = share[..., 1, :, None] * share[..., 0, None, :]
    rows = image[:batch].permute(0, 2, 3, 1).reshape(-1, channels)
    warped = F.embedding_bag(index.view(-1, 4), rows, per_sample_weights=weight.view(-1, 4), mode="sum")
    return warped.view(len(grid), *grid.shape[-2:], channels).permute(0, 3, 1, 2)


def resize_flow(flow: Float[Tensor, "b c height width"], size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """Resize a flow, or any map such as occlusion, to ``size`` = (h, w): averaged when shrunk, bilinear when enlarged.

    The values stay as they are: a normalised displacement is the same number at every resolution.
    """
    height, width = flow.shape[-2:]
    if tuple(size) == (height, width):
        return flow
    smaller = (min(size[0], height), min(size[1], width))
    if smaller != (height, width):
        flow = F.interpolate(flow, smaller, mode="area")
    return flow if smaller == tuple(size) else F.interpolate(flow, tuple(size), mode="bilinear", align_corners=False)


def flow_to_pixels(flow: Float[Tensor, "*b 2 h w"]) -> Float[Tensor, "*b 2 h w"]:
    """Convert a normalised flow to displacements in pixels of the flow's own resolution."""
    return flow * _half_extent(flow)


def flow_from_pixels(flow: Float[Tensor, "*b 2 h w"]) -> Float[Tensor, "*b 2 h w"]:
    """Convert a flow in pixels of its own resolution to a normalised one; undoes `flow_to_pixels`."""
    return flow / _half_extent(flow)


def _half_extent(flow: Float[Tensor, "*b 2 h w"]) -> Float[Tensor, "2 1 1"]:
    """Pixels in a normalised unit, along x and along y."""
    return extent(size_of(flow), flow).view(2, 1, 1) / 2


def sample_flow(flow: Float[Tensor, "b 2 h w"], points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n 2"]:
    """Sample a normalised flow at normalised ``points``, bilinear between pixels."""
    return sample(flow, points[:, :, None])[..., 0].transpose(1, 2)


def invert_flow_at(flow: Float[Tensor, "b 2 h w"], points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n 2"]:
    """Find where a backward flow moves points of the source: for each p a position z with z + F(z) = p.

    Positions are normalised. The search starts at the pixel whose arrow ends nearest to p. Ten fixed-point steps refine
    the position between pixels, and the best one is returned, also where no z leads to p.
    """
    grid = identity_grid(*flow.shape[-2:], device=flow.device, dtype=flow.dtype).flatten(1).T
    ends = grid + flow.flatten(2).transpose(1, 2)
    z = torch.stack([grid[torch.cdist(p, end).argmin(1)] for p, end in zip(points, ends)])
    best, smallest = z, torch.full_like(z[..., :1], torch.inf)
    for _ in range(10):
        missed = points - z - sample_flow(flow, z)
        distance = missed.norm(dim=-1, keepdim=True)
        best, smallest = torch.where(distance < smallest, z, best), torch.minimum(distance, smallest)
        z = z + missed
    return best


def to_pixels(points: Float[Tensor, "... 2"], size: tuple[int, int]) -> Float[Tensor, "... 2"]:
    """Convert normalised positions to pixels of an image of ``size`` = (h, w), where pixel centres are integers."""
    return ((points + 1) * extent(size, points) - 1) / 2


def from_pixels(points: Float[Tensor, "... 2"], size: tuple[int, int]) -> Float[Tensor, "... 2"]:
    """Convert pixels of an image of ``size`` = (h, w) to normalised positions; undoes `to_pixels`."""
    return (2 * points + 1) / extent(size, points) - 1
