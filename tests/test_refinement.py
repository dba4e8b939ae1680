import pytest
import torch
from torch import nn

from minimodel.correlation import Correlation
from minimodel.motion import CoarseMotion
from minimodel.refinement import FlowUpdater, MotionRefiner, UpdaterWidths
from minimodel.warping import resize_flow, warp

WIDTHS = UpdaterWidths((8, 8), (8, 8), 12, (8, 8), 8)
SIZES = [(4, 4), (8, 8), (16, 16), (32, 32)]
CHANNELS = [12, 10, 8, 6]


def setup(**options):
    torch.manual_seed(0)
    refiner = MotionRefiner(CHANNELS, **dict(radius=1, levels=2, iterations=4, widths=WIDTHS) | options)
    for head in (refiner.updater.flow_head, refiner.updater.occlusion_head):
        nn.init.normal_(head[-1].weight, std=0.1)  # away from the start at zero, where nothing would happen
    coarse = CoarseMotion(0.1 * torch.randn(2, 2, 16, 16), torch.randn(2, 1, 16, 16))
    correlation = Correlation(
        torch.randn(2, 5, 16, 16), torch.randn(2, 5, 16, 16), radius=1, levels=2, hold_volume=True
    )
    features = [torch.randn(2, channels, *size) for channels, size in zip(CHANNELS, SIZES)]
    return refiner, coarse, correlation, features


def test_refinement_begins_as_the_resized_coarse_motion():
    refiner = MotionRefiner(CHANNELS, radius=1, levels=2, iterations=4, widths=WIDTHS)
    _, coarse, correlation, features = setup()
    flows, occlusions = refiner(coarse, correlation, refiner.project(features), SIZES)
    for size, flow, occlusion in zip(SIZES, flows, occlusions):
        assert torch.equal(flow, resize_flow(coarse.flow, size))
        assert torch.equal(occlusion, resize_flow(coarse.occlusion, size))


def test_equation_7_sums_residuals_around_the_coarse_flow_resized_afresh():
    refiner, coarse, correlation, features = setup()
    steps = []
    step = refiner.updater.forward
    refiner.updater.forward = lambda *args: steps.append(step(*args)) or steps[-1]
    flows, occlusions = refiner(coarse, correlation, refiner.project(features), SIZES)
    for which, made, start in ((0, flows, coarse.flow), (1, occlusions, coarse.occlusion)):
        for i, size in enumerate(SIZES):
            expected = resize_flow(start, size)
            for j in range(i + 1):  # dF_j, upsampled one scale at a time
                residual = steps[j][which]
                for backward_spline in SIZES[j + 1 : i + 1]:
                    residual = resize_flow(residual, backward_spline)
                expected = expected + residual
            assert torch.allclose(made[i], expected, atol=1e-5)


@pytest.mark.parametrize("iterations", [1, 3])
def test_fewer_iterations_leave_the_finer_scales_to_the_upsampled_residual(iterations):
    refiner, coarse, correlation, features = setup(iterations=iterations)
    flows, _ = refiner(coarse, correlation, refiner.project(features), SIZES)
    residual = flows[iterations - 1] - resize_flow(coarse.flow, SIZES[iterations - 1])
    for scale in range(iterations, 4):
        residual = resize_flow(residual, SIZES[scale])
        assert torch.allclose(flows[scale], resize_flow(coarse.flow, SIZES[scale]) + residual, atol=1e-6)
    with pytest.raises(ValueError, match="1 to 4"):
        setup(iterations=5)


def test_switching_the_flow_off_leaves_it_coarse_and_the_occlusion_refined():
    refiner, coarse, correlation, features = setup(update_flow=False)
    flows, occlusions = refiner(coarse, correlation, refiner.project(features), SIZES)
    assert all(torch.equal(flow, resize_flow(coarse.flow, size)) for flow, size in zip(flows, SIZES))
    assert not torch.allclose(occlusions[-1], resize_flow(coarse.occlusion, SIZES[-1]))


def test_switching_the_occlusion_off_leaves_it_coarse_and_the_flow_refined():
    refiner, coarse, correlation, features = setup(update_occlusion=False)
    full, *_ = setup()
    flows, occlusions = refiner(coarse, correlation, refiner.project(features), SIZES)
    assert all(torch.equal(o, resize_flow(coarse.occlusion, size)) for o, size in zip(occlusions, SIZES))
    # The updater doesn't see occlusion, so the flows are those of the full model.
    expected, _ = full(coarse, correlation, full.project(features), SIZES)
    assert all(torch.equal(a, b) for a, b in zip(flows, expected))


def test_without_warped_source_features_the_features_do_not_matter():
    refiner, coarse, correlation, features = setup(warped_source=False)
    flows, _ = refiner(coarse, correlation, refiner.project(features), SIZES)
    other, _ = refiner(coarse, correlation, refiner.project([2 * f for f in features]), SIZES)
    assert all(torch.equal(a, b) for a, b in zip(flows, other))
    refiner, coarse, correlation, features = setup()
    flows, _ = refiner(coarse, correlation, refiner.project(features), SIZES)
    other, _ = refiner(coarse, correlation, refiner.project([2 * f for f in features]), SIZES)
    assert not torch.allclose(flows[-1], other[-1])


def test_convolving_before_upsampling_changes_nothing():
    """The updater convolves 1x1 at the volume's resolution, then upsamples; the paper's order is the other way
    round."""
    updater = FlowUpdater(18, WIDTHS, warped_source=False)
    correlation = torch.randn(1, 18, 8, 8)
    ours = resize_flow(updater.correlation_in(correlation), (16, 16))
    papers = updater.correlation_in(resize_flow(correlation, (16, 16)))
    assert torch.allclose(ours, papers, atol=1e-5)


def test_gradients_reach_the_first_iteration_through_the_lookups():
    refiner, coarse, correlation, features = setup()
    coarse.flow.requires_grad_()
    correlation.driving_features.requires_grad_()
    flows, _ = refiner(coarse, correlation, refiner.project(features), SIZES)
    flows[-1].square().sum().backward()
    assert coarse.flow.grad.abs().sum() > 0 and correlation.driving_features.grad.abs().sum() > 0


def test_the_updater_sees_what_lies_where_the_current_flow_points():
    refiner, coarse, correlation, features = setup()
    seen, step = [], refiner.updater.forward
    refiner.updater.forward = lambda *given: seen.append(given) or step(*given)
    context = refiner.project(features)
    refiner(coarse, correlation, context, SIZES)
    for number, (flow, read, warped) in enumerate(seen):
        assert torch.allclose(read, correlation(flow)) and torch.allclose(warped, warp(context[number], flow))


def test_the_updater_works_in_pixels():
    refiner, *_ = setup(warped_source=False)
    seen = []
    refiner.updater.flow.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    said = []
    refiner.updater.flow_head.register_forward_hook(lambda _, given, made: said.append(made.clone()))
    flow = torch.randn(1, 2, 8, 16)
    step, _ = refiner.updater(flow, torch.randn(1, 18, 8, 16), None)
    half = torch.tensor([8.0, 4.0]).view(2, 1, 1)
    assert torch.allclose(seen[0], flow * half) and torch.allclose(step, said[0] / half)
