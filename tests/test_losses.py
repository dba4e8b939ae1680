import torch
from torch import nn

from minimodel.losses import (
    background_loss,
    equivariance_affine,
    equivariance_points,
    perceptual_loss,
    transformed_frame,
    warp_loss,
)
from minimodel.tps import Spline, random_transforms
from minimodel.warping import identity_grid, warp


class Raw(nn.Module):
    def forward(self, image):
        return [image, 2 * image]


def test_perceptual_loss_sums_layers_and_scales():
    a, b = torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 0.25)
    # Two layers weigh 1 and 2; of the scales 1, 2, 4 and 8 the last two would leave under 16 pixels.
    assert torch.allclose(perceptual_loss(Raw(), a, b), torch.tensor(2 * 3 * 0.25))
    assert torch.allclose(perceptual_loss(Raw(), a, b, smallest=32), torch.tensor(3 * 0.25))
    assert torch.allclose(perceptual_loss(Raw(), a, b, layers=1), torch.tensor(2 * 0.25))


def analytic_case():
    """A blob, and where it is in the transformed frame, from nothing but the map itself."""
    transform = random_transforms(1, torch.Generator().manual_seed(5))
    transformed = torch.tensor([[[0.2, -0.3], [-0.4, 0.1]]])  # positions in the transformed frame
    points = transform(transformed[:, None])[:, 0]  # the same places in the frame
    return transform, points, transformed


def test_the_transformed_frame_shows_at_z_what_the_frame_has_at_t_of_z():
    transform, points, transformed = analytic_case()
    grid = identity_grid(64, 64)
    frame = torch.exp(-((grid - points[0, 0].view(2, 1, 1)) ** 2).sum(0) / 0.01).expand(1, 3, 64, 64)
    moved = transformed_frame(frame, transform)
    peak = moved[0, 0].flatten().argmax()
    assert (grid.flatten(1)[:, peak] - transformed[0, 0]).abs().max() < 2 / 64


def test_equivariance_is_zero_for_what_moves_along_and_only_for_that():
    transform, points, transformed = analytic_case()
    assert equivariance_points(points, transformed, transform) < 1e-6
    assert equivariance_points(points + 0.1, transformed, transform) > 0.05
    # A frame's matrix follows the map to first order: A = J_T A'.
    affine = torch.eye(2) + 0.1 * torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    moved = torch.linalg.solve(transform.jacobian(transformed[:, None])[:, 0], affine)
    assert equivariance_affine(affine, moved, transformed, transform) < 1e-5
    assert equivariance_affine(affine, affine, transformed, transform) > 0.005


def test_an_identity_transform_asks_for_the_same_points():
    control, weights = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    identity = Spline(control, weights, torch.eye(2, 3).view(1, 1, 2, 3))
    points = torch.rand(1, 4, 2)
    assert equivariance_points(points, points, identity) < 1e-7
    frame = torch.rand(1, 3, 16, 16)
    assert torch.allclose(transformed_frame(frame, identity), frame, atol=1e-5)


def test_background_loss_is_zero_for_inverses_alone():
    there = torch.tensor([[[1.1, -0.2, 0.3], [0.1, 0.9, -0.2]], [[1.0, 0.0, 0.25], [0.0, 1.0, 0.0]]])
    whole = torch.cat([there, torch.tensor([0.0, 0.0, 1.0]).expand(2, 1, 3)], 1)
    back = torch.linalg.inv(whole)[:, :2]
    assert background_loss(there, back) < 1e-6
    # Equation 12 by hand: shifts by 1/4 in both directions instead of there and back leave 1/2 in one of nine entries.
    assert torch.allclose(background_loss(there[1:], there[1:]), torch.tensor(0.5 / 9))
    assert background_loss(there, torch.zeros(2, 2, 3)) > 0.1  # a matrix of zeros is no way out
    # The order matters where both shift and scale: it is A' A, not A A'.
    first, second = torch.tensor([[[2.0, 0, 0], [0, 2, 0]]]), torch.tensor([[[0.5, 0, 1.0], [0, 0.5, 0]]])
    assert torch.allclose(background_loss(first, second), torch.tensor(1 / 9))
    assert torch.allclose(background_loss(second, first), torch.tensor(2 / 9))


def test_warp_loss_sums_scales_and_moves_nothing_but_the_flow():
    torch.manual_seed(0)
    source, driving = ([torch.rand(2, 4, n, n, requires_grad=True) for n in (4, 8)] for _ in "ab")
    flows = [(0.1 * torch.randn(2, 2, n, n)).requires_grad_() for n in (4, 8)]
    loss = warp_loss(source, driving, flows)
    expected = sum((warp(s, f) - d).abs().mean() for s, d, f in zip(source, driving, flows))
    assert torch.allclose(loss, expected)
    loss.backward()
    assert all(flow.grad.any() for flow in flows) and all(x.grad is None for x in (*source, *driving))
    still = [torch.zeros_like(flow) for flow in flows]
    assert warp_loss(source, source, still) < 1e-6
