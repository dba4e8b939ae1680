import math

import pytest
import torch

from minimodel.tps import Spline, kernel, random_transforms
from minimodel.warping import identity_grid


def random_spline(batch=2):
    generator = torch.Generator().manual_seed(0)
    spline = random_transforms(batch, generator, bend_sigma=0.05)
    return Spline(*(tensor.double() for tensor in (spline.control, spline.weights, spline.affine)))


def test_equation_2_in_a_loop():
    spline = random_spline()
    points = torch.rand(2, 1, 7, 2, dtype=torch.float64) * 2 - 1
    moved = spline(points)
    for b in range(2):
        for p in range(7):
            x, y = points[b, 0, p].tolist()
            for i in range(2):
                a = spline.affine[b, 0, i].tolist()
                value = a[0] * x + a[1] * y + a[2]
                for c, w in zip(spline.control[b, 0], spline.weights[b, 0, :, i]):
                    r = math.hypot(x - c[0].item(), y - c[1].item())
                    value += w.item() * r**2 * math.log(r**2)
                assert moved[b, 0, p, i].item() == pytest.approx(value, abs=1e-12)


def test_kernel_is_finite_with_its_gradient_at_zero():
    squared = torch.zeros(3, requires_grad=True)
    kernel(squared).sum().backward()
    assert torch.equal(kernel(squared), torch.zeros(3)) and squared.grad.isfinite().all()


def test_jacobian_equals_automatic_differentiation():
    spline = random_spline(1)
    point = torch.tensor([0.13, -0.4], dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(lambda p: spline(p.view(1, 1, 1, 2)).flatten(), point)
    assert torch.allclose(spline.jacobian(point.view(1, 1, 1, 2))[0, 0, 0], expected)
    assert spline.jacobian(spline.control).isfinite().all()  # also at the control points themselves


def test_flow_is_the_map_minus_the_grid():
    spline = random_spline()
    grid = identity_grid(4, 5, dtype=torch.float64)
    moved = spline(grid.flatten(1).T.expand(2, 1, -1, -1))
    assert torch.allclose(spline.flow((4, 5))[:, 0], moved[:, 0].mT.unflatten(2, (4, 5)) - grid)


def test_random_transforms_are_small_and_repeat_with_the_seed():
    first, again = (random_transforms(50, torch.Generator().manual_seed(3)) for _ in "ab")
    assert torch.equal(first.weights, again.weights) and torch.equal(first.affine, again.affine)
    lengths = first.flow((16, 16)).norm(dim=2)
    assert 0.02 < lengths.mean() < 0.3
