import math

import pytest
import torch

from minimodel.keypoints import KeypointDetector, SplineDetector, gaussian_heatmaps, soft_argmax
from minimodel.warping import identity_grid


def test_gaussians_equal_their_formula():
    points = torch.tensor([[[0.3, -0.2]]])
    heatmap = gaussian_heatmaps(points, (4, 6), 0.05)[0, 0]
    grid = identity_grid(4, 6)
    for y in range(4):
        for x in range(6):
            squared = (grid[0, y, x].item() - 0.3) ** 2 + (grid[1, y, x].item() + 0.2) ** 2
            assert heatmap[y, x].item() == pytest.approx(math.exp(-squared / 0.1), abs=1e-6)


@pytest.mark.parametrize("position", [(0.0, 0.0), (0.31, -0.42), (-0.5, 0.25)])
def test_soft_argmax_finds_the_peak_of_a_gaussian_between_pixels(position):
    points = torch.tensor(position, dtype=torch.float64).view(1, 1, 2)
    logits = gaussian_heatmaps(points, (32, 32), 0.01).clamp_min(1e-30).log()
    found, heatmaps = soft_argmax(logits)
    assert torch.allclose(found, points, atol=2e-3)
    assert heatmaps.sum().item() == pytest.approx(1)


def test_soft_argmax_is_an_expectation():
    logits = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    found, _ = soft_argmax(logits, temperature=0.5)
    grid = identity_grid(3, 4, dtype=torch.float64)
    for k in range(2):
        weights = (logits[0, k] / 0.5).exp()
        expected = torch.stack([(weights * g).sum() / weights.sum() for g in grid])
        assert torch.allclose(found[0, k], expected)
    assert torch.autograd.gradcheck(lambda x: soft_argmax(x)[0], (logits,))


@pytest.mark.parametrize("folded", [False, True])
def test_detector_starts_with_identity_matrices_and_points_inside(folded):
    sizes = dict(base=8, levels=2, maximum=16, head_kernel=3, norm="group")
    detector = KeypointDetector(5, scale=2, folded=folded, **sizes)
    points, affine = detector(torch.rand(2, 3, 32, 32))
    assert points.shape == (2, 5, 2) and points.abs().max() < 1
    assert torch.allclose(affine, torch.eye(2).expand(2, 5, 2, 2), atol=1e-6)
    assert KeypointDetector(5, scale=2, folded=folded, with_affine=False, **sizes)(torch.rand(2, 3, 32, 32))[1] is None


def test_points_that_start_spread_lie_near_their_places_and_can_leave_them():
    torch.manual_seed(0)
    sizes = dict(base=8, levels=2, maximum=16, head_kernel=3, norm="group")
    detector = KeypointDetector(50, scale=2, folded=False, spread=True, with_affine=False, **sizes)
    assert "places" in detector.state_dict()
    points = detector(torch.rand(2, 3, 32, 32))[0]
    # Half a Gaussian is cut off at the picture's edge, which moves a point inwards by less than its deviation.
    assert (points - detector.places).abs().max() < detector.spread_variance**0.5
    assert (points[0].amax(0) - points[0].amin(0)).min() > 1
    assert KeypointDetector(5, scale=2, folded=False, **sizes).places is None
    frame, wanted = torch.rand(1, 3, 32, 32), -detector.places[None]  # across the whole picture
    optimizer = torch.optim.Adam(detector.parameters(), lr=1e-2)
    for _ in range(150):
        loss = (detector(frame)[0] - wanted).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_a_detector_overfits_two_points():
    """Trained on one frame to put its points at given places, it gets there: gradients reach everything."""
    torch.manual_seed(0)
    detector = KeypointDetector(2, scale=2, folded=True, base=8, levels=2, maximum=16, head_kernel=3, norm="group")
    optimizer = torch.optim.Adam(detector.parameters(), lr=3e-3)
    frame, wanted = torch.rand(1, 3, 32, 32), torch.tensor([[[0.4, -0.3], [-0.5, 0.1]]])
    for _ in range(200):
        loss = (detector(frame)[0] - wanted).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.04


RESNET = dict(base=8, levels=3, blocks=1, pool=False, norm="group")


def test_points_of_splines_start_spread_and_stay_inside():
    torch.manual_seed(0)
    detector = SplineDetector(4, 5, **RESNET)
    frames = torch.rand(2, 3, 32, 32)
    points = detector(frames)
    assert points.shape == (2, 4, 5, 2) and points.abs().max() < 1
    assert (points.amax(2) - points.amin(2)).min() > 0.2  # no spline begins in one place or on an upright or flat line
    with torch.no_grad():
        detector.network.head.weight.mul_(1e3)
    points = detector(frames)
    assert points.abs().max() <= 1 and points.abs().max() > 0.99


def test_a_spline_detector_overfits_its_points():
    torch.manual_seed(0)
    detector = SplineDetector(1, 2, **RESNET)
    optimizer = torch.optim.Adam(detector.parameters(), lr=3e-3)
    frame, wanted = torch.rand(1, 3, 32, 32), torch.tensor([[[[0.4, -0.3], [-0.5, 0.1]]]])
    for _ in range(100):
        loss = (detector(frame) - wanted).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02


def test_a_points_matrix_is_read_where_the_point_is():
    torch.manual_seed(0)
    detector = KeypointDetector(3, scale=2, folded=False, base=8, levels=2, maximum=16, head_kernel=3, norm="group")
    torch.nn.init.normal_(detector.affine_head.weight, std=0.3)
    seen = {}
    detector.hourglass.register_forward_hook(lambda _, given, made: seen.update(features=made))
    _, affine = detector(torch.rand(2, 3, 32, 32))
    heat = torch.softmax(detector.heatmap_head(seen["features"]).flatten(2) / detector.temperature, -1)
    maps = detector.affine_head(seen["features"]).flatten(2)
    for k in range(3):
        for i in range(2):
            for j in range(2):
                expected = (heat[:, k] * maps[:, 4 * k + 2 * i + j]).sum(-1)
                assert torch.allclose(affine[:, k, i, j], expected, atol=1e-5)
