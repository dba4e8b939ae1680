import torch
from torch import nn

from minimodel.losses import equivariance_affine, equivariance_points, perceptual_loss, transformed_frame
from minimodel.tps import Spline, random_transforms
from minimodel.warping import identity_grid


class Raw(nn.Module):
    def forward(self, image):
        return [image, 2 * image]


def test_perceptual_loss_sums_layers_and_scales():
    a, b = torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 0.25)
    # Two layers weigh 1 and 2; of the scales 1, 2, 4 and 8 the last two would leave under 16 pixels.
    assert torch.allclose(perceptual_loss(Raw(), a, b), torch.tensor(2 * 3 * 0.25))
    assert torch.allclose(perceptual_loss(Raw(), a, b, smallest=32), torch.tensor(3 * 0.25))


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
