import pytest
import torch
from torch import nn

from minimodel.losses import (
    Discriminator,
    adversarial_loss,
    background_loss,
    background_mask_loss,
    discriminator_loss,
    equivariance_affine,
    equivariance_points,
    parsing_loss,
    perceptual_loss,
    perceptual_losses,
    smoothness,
    transformed_frame,
    warp_loss,
)
from minimodel.tps import Spline, random_transforms
from minimodel.warping import identity_grid, resize_flow, warp


class Raw(nn.Module):
    def forward(self, image):
        return [image, 2 * image]


def test_perceptual_loss_sums_layers_and_scales():
    a, b = torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 0.25)
    # Two layers weigh 1 and 2; of the scales 1, 2, 4 and 8 the last two would leave under 16 pixels.
    assert torch.allclose(perceptual_loss(Raw(), a, b), torch.tensor(2 * 3 * 0.25))
    assert torch.allclose(perceptual_loss(Raw(), a, b, smallest=32), torch.tensor(3 * 0.25))
    assert torch.allclose(perceptual_loss(Raw(), a, b, layers=1), torch.tensor(2 * 0.25))


def test_perceptual_losses_of_several_pictures_look_at_the_driving_frame_once():
    first, second, driving = torch.rand(3, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = []

    def features(image):
        seen.append((image, torch.is_grad_enabled()))
        return [image, image.square()]

    options = dict(scales=(1, 2), layers=1)
    both = perceptual_losses(features, [first, second], driving, **options)
    assert len(seen) == 6 and [torch.equal(image, driving) for image, _ in seen].count(True) == 1
    assert [learns for image, learns in seen if torch.equal(image, driving)] == [False]
    alone = [perceptual_loss(features, picture, driving, **options) for picture in (first, second)]
    assert torch.equal(torch.stack(both), torch.stack(alone)) and both[0] != both[1]


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


def test_the_background_is_looked_for_where_the_masks_leave_it():
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 8, 8, requires_grad=True)
    masks = torch.softmax(torch.randn(2, 3, 8, 8), 1).requires_grad_()
    loss = background_mask_loss(logits, masks)
    p, m = torch.sigmoid(logits), masks[:, :1]
    assert torch.allclose(loss, -(m * p.log() + (1 - m) * (1 - p).log()).mean())
    loss.backward()
    assert torch.allclose(logits.grad, (p - m) / 128, atol=1e-7) and masks.grad is None
    small = masks.detach()[..., :4, :4]
    assert torch.allclose(background_mask_loss(logits, small), background_mask_loss(logits, resize_flow(small, (8, 8))))


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


def maps(seed=0, size=12):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, (2, size, size), generator=generator)


def test_the_parsing_loss_is_the_share_of_labels_that_disagree():
    """Of whole pixels, which both modes move alike; counted one pixel at a time."""
    source, driving = maps(0), maps(1)
    steps = torch.tensor([[1, 0], [-2, 3]])  # pixels to the right and down, of each sample
    flow = (steps * 2 / 12).view(2, 2, 1, 1).expand(-1, -1, 12, 12)
    wrong = 0
    for sample, (x, y) in enumerate(steps.tolist()):
        for i in range(12):
            for j in range(12):
                row, column = min(max(i + y, 0), 11), min(max(j + x, 0), 11)
                wrong += bool(source[sample, row, column] != driving[sample, i, j])
    for mode in ("nearest", "bilinear"):
        assert torch.allclose(parsing_loss(source, flow, driving, mode=mode), torch.tensor(wrong / 288), atol=1e-5)


def test_the_papers_parsing_loss_has_no_gradient_and_ours_leads_home():
    """A square that has moved two pixels to the right and one up."""
    source = torch.zeros(1, 16, 16, dtype=torch.long)
    source[:, 5:11, 5:11] = 1
    driving = source.roll((-1, 2), (1, 2))
    truth = torch.tensor([-2.0, 1.0]).view(1, 2, 1, 1) * 2 / 16
    slopes = {}
    for mode in ("nearest", "bilinear"):
        shift = (0.6 * truth).requires_grad_()
        loss = parsing_loss(source, shift.expand(-1, -1, 16, 16), driving, mode=mode)
        assert loss > 0
        loss.backward()
        slopes[mode] = shift.grad.flatten()
    assert not slopes["nearest"].any()
    assert (slopes["bilinear"] * truth.flatten() < 0).all()  # downhill is towards the truth, along both axes
    shift = torch.zeros_like(truth)
    for _ in range(60):
        shift.requires_grad_()
        loss = parsing_loss(source, shift.expand(-1, -1, 16, 16), driving)
        shift = shift.detach() - 0.02 * torch.autograd.grad(loss, shift)[0].sign() * loss.detach().sqrt()
    assert ((shift - truth).abs() * 8).max() < 0.2  # pixels


def test_the_bilinear_parsing_loss_has_the_gradient_that_differences_give():
    source, driving = maps(2, 8), maps(3, 8)
    flow = 0.1 * torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: parsing_loss(source, f, driving), flow.requires_grad_(), eps=1e-7)


def test_least_squares_scores():
    real, made = torch.tensor([[1.0, 0.5]]), torch.tensor([[0.0, 0.5]])
    assert discriminator_loss(real, made) == 0.125 + 0.125  # Eq. 5
    assert adversarial_loss(made) == (1 + 0.25) / 2  # Eq. 6
    assert discriminator_loss(torch.ones(2), torch.zeros(2)) == 0 and adversarial_loss(torch.ones(2)) == 0


def test_the_discriminator_scores_patches_and_its_gradient_tells_real_from_made():
    torch.manual_seed(0)
    network = Discriminator(base=4, levels=2)
    real, made = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16).mean(3, keepdim=True).expand(-1, -1, -1, 16)
    assert network(real).shape == (4, 1, 4, 4)
    before = discriminator_loss(network(real), network(made))
    for _ in range(30):
        loss = discriminator_loss(network(real), network(made))
        for parameter, slope in zip(network.parameters(), torch.autograd.grad(loss, list(network.parameters()))):
            parameter.data -= 0.05 * slope
    assert loss < before / 2
    # What the generator is then told makes the made picture more like a real one to the discriminator.
    made = made.clone().requires_grad_()
    slope = torch.autograd.grad(adversarial_loss(network(made)), made)[0]
    better = made - 0.1 * slope / slope.norm() * made.numel() ** 0.5
    assert adversarial_loss(network(better)) < adversarial_loss(network(made))


def test_smoothness_counts_pixels_between_neighbours():
    flow = torch.zeros(1, 2, 4, 8)
    flow[:, 0, :, 4:] = 2 * 3 / 8  # one step of three pixels along x, between two of eight columns
    assert smoothness(flow).item() == pytest.approx(3 * 4 / (2 * 4 * 7))
    flow[:, 1, 2:] = 2 * 5 / 4  # and one of five pixels along y, between two of four rows
    assert smoothness(flow).item() == pytest.approx(3 * 4 / (2 * 4 * 7) + 5 * 8 / (2 * 3 * 8))
    assert smoothness(flow + 7).item() == pytest.approx(smoothness(flow).item(), rel=1e-5)
