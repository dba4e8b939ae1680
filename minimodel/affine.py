"""Part flows of the affine prior, and how masks combine part flows into one (MRFA section 3.1, Eq. 1-3).

Notebook: ``notebooks/01_affine_flows.ipynb``.
"""

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from minimodel.warping import full_precision, identity_grid


@full_precision
def part_flows(
    source_points: Float[Tensor, "b k 2"],
    driving_points: Float[Tensor, "b k 2"],
    source_affine: Float[Tensor, "b k 2 2"],
    driving_affine: Float[Tensor, "b k 2 2"],
    size: tuple[int, int],
) -> Float[Tensor, "b k 2 h w"]:
    """The flow of each part: T_k(z) - z with T_k(z) = p_s + A_s A_d^-1 (z - p_d) (MRFA Eq. 1).

    Points and the result are normalised; ``size`` = (h, w) of the flows.

    >>> flows = part_flows(source.points, driving.points, source.affine, driving.affine, (64, 64))
    >>> coarse = combine(with_background(flows), masks)  # (b, 2, 64, 64)
    """
    grid = identity_grid(*size, device=source_points.device, dtype=source_points.dtype)
    # A_s A_d^-1 as the solution X of X A_d = A_s: steadier than forming the inverse.
    jacobian = torch.linalg.solve(driving_affine, source_affine, left=False)
    offset = grid - rearrange(driving_points, "b k c -> b k c 1 1")
    moved = einsum(jacobian, offset, "b k i j, b k j h w -> b k i h w")
    return rearrange(source_points, "b k c -> b k c 1 1") + moved - grid


def with_background(
    flows: Float[Tensor, "b k 2 h w"], background: Float[Tensor, "b 2 h w"] | None = None
) -> Float[Tensor, "b k+1 2 h w"]:
    """Put the background's flow in front of the part flows; None is a background that stands still (MRFA Eq. 2)."""
    first = torch.zeros_like(flows[:, :1]) if background is None else background[:, None]
    return torch.cat([first, flows], dim=1)


@full_precision
def combine(flows: Float[Tensor, "b k 2 h w"], masks: Float[Tensor, "b k h w"]) -> Float[Tensor, "b 2 h w"]:
    """Combine part flows to the coarse flow F_0, weighted by masks that sum to 1 at every pixel (MRFA Eq. 3)."""
    return einsum(flows, masks, "b k c h w, b k h w -> b c h w")
