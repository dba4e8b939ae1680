import math

import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator
from torch.autograd import gradcheck

from minimodel.tps import Spline, background_flow, backward_spline, fit, kernel, part_flows, random_transforms
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
    some = random_transforms(4000, torch.Generator().manual_seed(0))
    assert (some.affine - torch.eye(2, 3)).std().item() == pytest.approx(0.05, rel=0.05)
    assert some.weights.std().item() == pytest.approx(0.005, rel=0.05) and some.control.shape[2] == 25


# ------------------------------------------------------------------------------------------------------- the fit


def points_of(kind, count=5, seed=0):
    """(2, 3, count, 2) control points."""
    points = torch.rand(2, 3, count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    if kind == "far apart":
        points = points * 5
    if kind == "near one line":
        points[..., 1] = 0.5 * points[..., 0] + 0.02 * points[..., 1] + 0.1
    if kind == "on one line":
        points[..., 1] = 0.5 * points[..., 0] + 0.1
    if kind == "two coincide":
        points[..., 1, :] = points[..., 0, :]
    if kind == "all coincide":
        points[...] = points[..., :1, :]
    return points


def equations(control, regularisation=0.0):
    """The bordered matrix of one spline, entry by entry."""
    count = len(control)
    matrix = np.zeros((count + 3, count + 3))
    for i in range(count):
        for j in range(count):
            r = math.hypot(*(control[i] - control[j]).tolist())
            matrix[i, j] = (r**2 * math.log(r**2) if r > 0 else 0) + regularisation * (i == j)
        matrix[i, count:] = matrix[count:, i] = (*control[i].tolist(), 1)
    return matrix


def values_of(control, seed=1):
    return torch.randn(control.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("regularisation", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("kind", ["random", "far apart", "near one line"])
@pytest.mark.parametrize("count", [3, 5, 20])
def test_fit_equals_scipy(kind, count, regularisation):
    control = points_of(kind, count)
    values, where = values_of(control), points_of("random", 40, seed=2)
    moved = fit(control, values, regularisation=regularisation)(where)
    for b in range(2):
        for k in range(3):
            assert np.linalg.cond(equations(control[b, k], regularisation)) < (1e8 if count == 20 else 1e6)
            # scipy's kernel is r^2 log r, half of U.
            one, wanted, smoothing = control[b, k].numpy(), values[b, k].numpy(), regularisation / 2
            truth = RBFInterpolator(one, wanted, kernel="thin_plate_spline", degree=1, smoothing=smoothing)
            assert np.abs(truth(where[b, k].numpy()) - moved[b, k].numpy()).max() < 1e-6


@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_fit_passes_through_its_points(dtype, error):
    for kind in ("random", "near one line", "on one line"):
        control = points_of(kind).to(dtype)
        values = control.sin() + 0.1  # on a line, too, a smooth map contradicts nothing
        assert (fit(control, values)(control) - values).abs().max() < error


@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_an_endlessly_thick_plate_is_the_best_affine_map(dtype, error):
    control = points_of("random")
    values = values_of(control)
    spline = fit(control.to(dtype), values.to(dtype), regularisation=1e8)
    flat = np.concatenate([control[1, 2].numpy(), np.ones((5, 1))], 1)
    best = np.linalg.lstsq(flat, values[1, 2].numpy(), rcond=None)[0].T
    assert np.abs(spline.affine[1, 2].numpy() - best).max() < error


def test_an_affine_map_is_found_exactly_however_strong_the_regularisation():
    control = points_of("random")
    matrix = torch.tensor([[1.2, -0.3, 0.1], [0.4, 0.8, -0.2]], dtype=torch.float64)
    values = control @ matrix[:, :2].T + matrix[:, 2]
    for regularisation in (0.0, 10.0):
        spline = fit(control, values, regularisation=regularisation)
        assert torch.allclose(spline.affine, matrix.expand(2, 3, 2, 3)) and spline.weights.abs().max() < 1e-9


@pytest.mark.parametrize("kind", ["on one line", "two coincide", "all coincide"])
@pytest.mark.parametrize("regularisation", [0.0, 0.01])
def test_points_that_leave_the_map_open_give_the_smallest_coefficients(kind, regularisation):
    control = points_of(kind)
    values = values_of(control)  # where points coincide these contradict each other
    spline = fit(control, values, regularisation=regularisation)
    for b in range(2):
        for k in range(3):
            matrix = equations(control[b, k], regularisation)
            assert np.linalg.matrix_rank(matrix, tol=1e-9) < 8 or (kind == "two coincide" and regularisation)
            right = np.concatenate([values[b, k].numpy(), np.zeros((3, 2))])
            truth = np.linalg.pinv(matrix, rcond=1e-9) @ right
            found = torch.cat([spline.weights[b, k], spline.affine[b, k].T])
            assert np.abs(found.numpy() - truth).max() < 1e-7


@pytest.mark.parametrize("kind", ["random", "on one line", "two coincide", "all coincide"])
def test_in_float32_the_same_rank_is_found(kind):
    for seed in range(20):
        control = points_of(kind, seed=seed)
        exact, rounded = (fit(control.to(dtype), control.to(dtype).sin()) for dtype in (torch.float64, torch.float32))
        assert exact.affine.abs().max() < 100 and (exact.affine - rounded.affine).abs().max() < 0.05


def test_gradients_of_the_fit():
    control, values = points_of("random", seed=3)[:1, :2], values_of(points_of("random"))[:1, :2]
    where = points_of("random", 4, seed=4)[:1, :2]
    for regularisation in (0.0, 0.05):
        inputs = control.clone().requires_grad_(), values.clone().requires_grad_()
        assert gradcheck(lambda c, v, r=regularisation: fit(c, v, regularisation=r)(where), inputs)


@pytest.mark.parametrize("kind", ["on one line", "two coincide", "all coincide"])
def test_gradients_stay_finite_where_points_leave_the_map_open(kind):
    control, where = points_of(kind)[:1, :1], points_of("random", 4, seed=4)[:1, :1]
    values = values_of(control).requires_grad_()
    assert gradcheck(lambda v: fit(control, v)(where), values)  # the map is linear in the values, always
    control.requires_grad_()
    fit(control, values)(where).square().sum().backward()
    assert control.grad.isfinite().all() and control.grad.abs().max() < 1e6


def test_not_a_number_passes_through_the_fit():
    control = points_of("random")
    control[0, 0, 0, 0] = math.nan
    spline = fit(control, values_of(control))
    assert spline.affine[0, 0].isnan().any() and spline.affine[1].isfinite().all()


def test_part_flows_lead_from_the_driving_points_back_to_the_source_points():
    """In loops, from the driving grid; and a spline of pixel centres ends exactly in its source points."""
    grid = identity_grid(6, 8, dtype=torch.float64)
    rows, columns = torch.tensor([0, 5, 2, 4, 1]), torch.tensor([1, 7, 3, 0, 6])
    driving = grid[:, rows, columns].T.view(1, 1, 5, 2)
    source = driving + 0.2 * values_of(driving)
    flow = part_flows(source, driving, (6, 8), regularisation=0.0)
    assert torch.allclose(driving + flow[0, 0, :, rows, columns].T, source, atol=1e-9)
    spline = fit(driving, source)
    for i in range(6):
        for j in range(8):
            z = grid[:, i, j]
            assert torch.allclose(flow[0, 0, :, i, j], spline(z.view(1, 1, 1, 2)).flatten() - z, atol=1e-9)
    regularised = fit(driving, source, regularisation=0.01).flow((6, 8))
    assert torch.allclose(part_flows(source, driving, (6, 8)), regularised, atol=1e-9)


@pytest.mark.parametrize("kind", ["on one line", "all coincide"])
def test_what_the_points_leave_open_does_not_move(kind):
    driving = points_of(kind)
    assert part_flows(driving, driving, (5, 5)).abs().max() < 1e-6
    spline = backward_spline(driving + 0.1, driving)
    assert (spline(driving) - driving - 0.1).abs().max() < 1e-9
    assert (spline.flow((5, 5)) - 0.1).abs().max() < 0.3  # fitted to the positions, all of the plane would collapse


def test_background_flow_in_a_loop():
    affine = torch.tensor([[[1.1, -0.2, 0.05], [0.1, 0.9, -0.3]]])
    flow = background_flow(affine, (3, 4))
    for i in range(3):
        for j in range(4):
            x, y = (2 * j + 1) / 4 - 1, (2 * i + 1) / 3 - 1
            assert flow[0, 0, i, j].item() == pytest.approx(1.1 * x - 0.2 * y + 0.05 - x, abs=1e-6)
            assert flow[0, 1, i, j].item() == pytest.approx(0.1 * x + 0.9 * y - 0.3 - y, abs=1e-6)


def test_a_negative_regularisation_is_refused():
    with pytest.raises(ValueError, match=r"regularisation is -1.*expected 0 or more"):
        fit(points_of("random"), points_of("random"), regularisation=-1.0)
