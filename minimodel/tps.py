"""Thin-plate splines (TPSM section 3.1, Eq. 1-4). Splines fitted to points are the maps of parts that bend. Random
splines bend pictures for the equivariance loss.

Notebook: ``notebooks/02_thin_plate_splines.ipynb``.
"""

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from minimodel.errors import MinimodelError
from minimodel.warping import full_precision, identity_grid

# Eigenvalues of a spline's equations below this share of the largest count as zero: the points' rounding errors give
# smaller ones.
SMALLEST_EIGENVALUE = {torch.float64: 1e-12, torch.float32: 1e-8}


@dataclass
class Spline:
    """The map T(p) = A [p, 1] + sum_i w_i U(|c_i - p|), one for each of B x K (TPSM Eq. 2).

    All positions are normalised. A call maps points.
    """

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
        """The derivatives dT_i / dp_j at each point."""
        offset = points[..., :, None, :] - self.control[..., None, :, :]
        squared = offset.square().sum(-1)
        # U = s log s with s = r^2, so dU/dp = 2 (log s + 1) (p - c), which tends to 0 at the control point.
        slope = 2 * (torch.log(squared.clamp_min(torch.finfo(squared.dtype).tiny)) + 1)
        bend = einsum(self.weights, slope[..., None] * offset, "b k n i, b k p n j -> b k p i j")
        return self.affine[..., None, :, :2] + bend

    def flow(self, size: tuple[int, int]) -> Float[Tensor, "b k 2 h w"]:
        """The normalised flow T(z) - z at every pixel centre of ``size`` = (h, w)."""
        grid = identity_grid(*size, device=self.control.device, dtype=self.control.dtype)
        batch, count = self.control.shape[:2]
        points = rearrange(grid, "c h w -> (h w) c").expand(batch, count, -1, -1)
        return rearrange(self(points) - points, "b k (h w) c -> b k c h w", h=size[0])


def kernel(squared_distance: Tensor) -> Tensor:
    """The kernel U(r) = r^2 log r^2 as a function of r^2 (TPSM Eq. 3); 0 at 0, with a finite gradient there."""
    tiny = torch.finfo(squared_distance.dtype).tiny
    return squared_distance * torch.log(squared_distance.clamp_min(tiny))


@full_precision
def fit_spline(
    control: Float[Tensor, "b k n 2"], values: Float[Tensor, "b k n 2"], *, regularisation: float = 0.0
) -> Spline:
    """Fit the least bent map with T(control) = values (TPSM Eq. 1), one for each of B x K; any number n of points.

    ``regularisation`` lambda trades exactness for straightness: T may miss each value by lambda w_i. Lambda is added to
    the kernel block alone, so that affine maps stay exact. (scipy's ``smoothing`` is lambda / 2, as scipy's kernel is
    U / 2.) Points that leave the map open (on one line, in one place) or contradict each other give the smallest
    coefficients among those that fit best. A negative lambda raises a `MinimodelError`.

    >>> spline = fit_spline(driving_points, source_points)  # (b, k, n, 2) both
    >>> flow = spline.flow((64, 64))  # (b, k, 2, 64, 64)
    """
    if regularisation < 0:
        raise MinimodelError(f"regularisation is {regularisation}: expected 0 or more")
    # Eight equations a spline cost nothing; in float32, points near a line would leave three correct digits.
    points, target = control.double(), values.double()
    bend = kernel((points[..., :, None, :] - points[..., None, :, :]).square().sum(-1))
    # The weights are solved for in units of 1 / scale; otherwise the other equations would count as zero beside a large
    # lambda.
    scale = 1 + regularisation
    bend = (bend + regularisation * torch.eye(bend.shape[-1], dtype=bend.dtype, device=bend.device)) / scale
    flat = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)
    # K w + P a = v meets the values; P^T w = 0 keeps the bending from doing what the affine part can do.
    below = torch.cat([flat.mT, flat.new_zeros(*flat.shape[:-2], 3, 3)], dim=-1)
    equations = torch.cat([torch.cat([bend, flat], dim=-1), below], dim=-2)
    target = torch.cat([target, target.new_zeros(*target.shape[:-2], 3, 2)], dim=-2)
    solution = solve_symmetric(equations, target, smallest=SMALLEST_EIGENVALUE[control.dtype])
    weights, affine = solution.split([control.shape[-2], 3], dim=-2)
    return Spline(control, (weights / scale).to(control.dtype), affine.mT.to(control.dtype))


fit = fit_spline  # the name that scripts know


def solve_symmetric(
    matrix: Float[Tensor, "*b n n"], right: Float[Tensor, "*b n m"], *, smallest: float
) -> Float[Tensor, "*b n m"]:
    """Solve ``matrix`` x = ``right`` by least squares, with the smallest x; for symmetric matrices of any rank.

    Eigenvalues below ``smallest`` times the largest count as zero. Eigenvectors have no derivative where eigenvalues
    coincide, as the zeros of a singular matrix may. Therefore eigenvectors are taken as constants, and the gradient
    goes through one step of refinement, x + A^+ (b - A x), instead. This gradient is exact where the rank is full.
    Elsewhere it is finite: the part of the gradient that leaves the rank as it is.
    """
    # The solver refuses NaN; the refinement carries NaN to the result all the same.
    values, vectors = torch.linalg.eigh(torch.nan_to_num(matrix.detach()))
    size = values.abs()
    counts = size > smallest * size.amax(-1, keepdim=True)
    inverse = torch.where(counts, 1 / torch.where(counts, values, 1), 0)[..., None]
    solution = vectors @ (inverse * (vectors.mT @ right.detach()))
    return solution + vectors @ (inverse * (vectors.mT @ (right - matrix @ solution)))


def backward_spline(
    source_points: Float[Tensor, "b k n 2"], driving_points: Float[Tensor, "b k n 2"], *, regularisation: float = 0.0
) -> Spline:
    """Fit the backward map of each part, from driving points to source points.

    TPSM Eq. 1 is written for the opposite direction; Eq. 2 is centred on the driving points. The displacement is
    fitted, so that nothing moves where the points leave the map open.
    """
    offset = fit_spline(driving_points, source_points - driving_points, regularisation=regularisation)
    identity = torch.eye(2, 3, device=offset.affine.device, dtype=offset.affine.dtype)
    return Spline(offset.control, offset.weights, offset.affine + identity)


def part_flows(
    source_points: Float[Tensor, "b k n 2"],
    driving_points: Float[Tensor, "b k n 2"],
    size: tuple[int, int],
    *,
    regularisation: float = 0.01,
) -> Float[Tensor, "b k 2 h w"]:
    """The flow of each spline, T_k(z) - z (TPSM Eq. 2), without the background; normalised, of ``size`` = (h, w).

    The default of ``regularisation`` is that of the published code, which adds 0.01 to more than the kernel block.

    >>> flows = part_flows(source_points, driving_points, (64, 64))  # (b, k, n, 2) both -> (b, k, 2, 64, 64)
    """
    return backward_spline(source_points, driving_points, regularisation=regularisation).flow(size)


@full_precision
def background_flow(affine: Float[Tensor, "b 2 3"], size: tuple[int, int]) -> Float[Tensor, "b 2 h w"]:
    """The background's flow A_bg [z, 1] - z at every pixel centre of ``size`` = (h, w) (TPSM Eq. 4); normalised."""
    grid = identity_grid(*size, device=affine.device, dtype=affine.dtype)
    return einsum(affine[..., :2], grid, "b i j, j h w -> b i h w") + affine[..., 2, None, None] - grid


def random_transforms(
    count: int, generator: torch.Generator, *, affine_sigma: float = 0.05, bend_sigma: float = 0.005, grid: int = 5
) -> Spline:
    """Draw ``count`` random smooth maps of the image for the equivariance loss, with K = 1, on the CPU.

    Each map is an affine map near the identity, bent by random weights at ``grid`` x ``grid`` control points. The
    default strengths are those of the published code, in which a point bends x and y alike.
    """
    control = rearrange(identity_grid(grid, grid), "c h w -> (h w) c").expand(count, 1, -1, -1)
    affine = torch.eye(2, 3) + affine_sigma * torch.randn(count, 1, 2, 3, generator=generator)
    weights = bend_sigma * torch.randn(count, 1, grid * grid, 2, generator=generator)
    return Spline(control, weights, affine)
