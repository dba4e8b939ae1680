"""Thin-plate splines, and the random ones that the equivariance loss bends pictures with (TPSM section 3.1, Eq. 2-3).

Notebook: ``notebooks/03_unsupervised_keypoints.ipynb``.
"""

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from minimodel.warping import full_precision, identity_grid


@dataclass
class Spline:
    """T(p) = A [p, 1] + sum_i w_i U(|c_i - p|), one for each of B x K (TPSM Eq. 2); all positions normalised."""

    control: Float[Tensor, "b k n 2"]
    weights: Float[Tensor, "b k n 2"]
    affine: Float[Tensor, "b k 2 3"]

    @full_precision
    def __call__(self, points: Float[Tensor, "b k p 2"]) -> Float[Tensor, "b k p 2"]:
        linear = einsum(self.affine[..., :2], points, "b k i j, b k p j -> b k p i") + self.affine[..., None, :, 2]
        squared = (points[..., :, None, :] - self.control[..., None, :, :]).square().sum(-1)
        return linear + einsum(kernel(squared), self.weights, "b k p n, b k n i -> b k p i")

    @full_precision
    def jacobian(self, points: Float[Tensor, "b k p 2"]) -> Float[Tensor, "b k p 2 2"]:
        """dT_i / dp_j at each point."""
        offset = points[..., :, None, :] - self.control[..., None, :, :]
        squared = offset.square().sum(-1)
        # U = s log s with s = r^2, so dU/dp = 2 (log s + 1) (p - c), which tends to 0 at the control point.
        slope = 2 * (torch.log(squared.clamp_min(torch.finfo(squared.dtype).tiny)) + 1)
        bend = einsum(self.weights, slope[..., None] * offset, "b k n i, b k p n j -> b k p i j")
        return self.affine[..., None, :, :2] + bend

    def flow(self, size: tuple[int, int]) -> Float[Tensor, "b k 2 h w"]:
        """T(z) - z at every pixel centre of ``size`` = (h, w)."""
        grid = identity_grid(*size, device=self.control.device, dtype=self.control.dtype)
        batch, count = self.control.shape[:2]
        points = rearrange(grid, "c h w -> (h w) c").expand(batch, count, -1, -1)
        return rearrange(self(points) - points, "b k (h w) c -> b k c h w", h=size[0])


def kernel(squared_distance: Tensor) -> Tensor:
    """U(r) = r^2 log r^2 as a function of r^2 (TPSM Eq. 3); 0 at 0, with a finite gradient there."""
    tiny = torch.finfo(squared_distance.dtype).tiny
    return squared_distance * torch.log(squared_distance.clamp_min(tiny))


def random_transforms(
    count: int, generator: torch.Generator, *, affine_sigma: float = 0.05, bend_sigma: float = 0.005, grid: int = 5
) -> Spline:
    """``count`` random smooth maps of the image for the equivariance loss, with K = 1 and drawn on the CPU: an affine
    map near the identity, bent by random weights at ``grid`` x ``grid`` control points (the published recipe)."""
    control = rearrange(identity_grid(grid, grid), "c h w -> (h w) c").expand(count, 1, -1, -1)
    affine = torch.eye(2, 3) + affine_sigma * torch.randn(count, 1, 2, 3, generator=generator)
    weights = bend_sigma * torch.randn(count, 1, grid * grid, 2, generator=generator)
    return Spline(control, weights, affine)
