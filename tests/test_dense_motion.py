import math

import pytest
import torch

from minimodel.affine import part_flows, with_background
from minimodel.dense_motion import DenseMotion, contribution_masks, dropout_scales
from minimodel.tps import background_flow
from minimodel.warping import warp

SIZES = dict(base=8, levels=2, maximum=16, head_kernel=3, norm="group")


def pair(points=3):
    torch.manual_seed(0)
    source, driving = torch.rand(2, points, 2) - 0.5, torch.rand(2, points, 2) - 0.5
    eye = torch.eye(2).expand(2, points, 2, 2)
    return source, driving, part_flows(source, driving, eye, eye, (16, 16))


def test_flow_is_a_mixture_of_the_parts():
    source, driving, flows = pair()
    flows = with_background(flows)
    network = DenseMotion(3, **SIZES)
    coarse = network(torch.rand(2, 3, 16, 16), source, driving, flows)
    assert coarse.flow.shape == (2, 2, 16, 16) and coarse.occlusion.shape == (2, 1, 16, 16)
    assert torch.allclose(coarse.masks.sum(1), torch.ones(2, 16, 16), atol=1e-5)
    assert torch.allclose(coarse.flow, (coarse.masks[:, :, None] * flows).sum(1), atol=1e-6)
    assert (coarse.flow >= flows.amin(1) - 1e-6).all() and (coarse.flow <= flows.amax(1) + 1e-6).all()
    assert len(coarse.occlusions) == 1 and coarse.occlusions[0] is coarse.occlusion


def test_a_background_that_moves_comes_first():
    flows = pair()[2]
    moving = background_flow(torch.tensor([[1.0, 0.0, 0.2], [0.0, 1.0, -0.1]]).expand(2, 2, 3), (16, 16))
    assert torch.equal(with_background(flows, moving)[:, 0], moving)
    assert torch.equal(with_background(flows, moving)[:, 1:], with_background(flows)[:, 1:])
    assert not with_background(flows)[:, 0].any()


def test_every_point_of_a_part_is_seen_and_the_first_part_comes_first():
    """Two parts of three points: the evidence of a part is where its own points moved, and nothing of the other's."""
    torch.manual_seed(0)
    network = DenseMotion(2, points_per_part=3, **SIZES)
    seen = []
    network.hourglass.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.hourglass.scales = lambda x, scales=network.hourglass.scales: (seen.append(x), scales(x))[1]
    points, flows = torch.rand(1, 6, 2) - 0.5, torch.zeros(1, 3, 2, 16, 16)
    moved = points.clone()
    moved[:, 4] += 0.3  # the second point of the second part
    network(torch.rand(1, 3, 16, 16), points, moved, flows)
    maps = seen[0].unflatten(1, (3, 6))[:, :, :3]  # part x (three heatmaps, three colours)
    assert maps.flatten(3).abs().amax(-1)[0].gt(0.1).nonzero().tolist() == [[2, 1]]


def test_masks_with_scales_are_equations_7_and_8_in_loops():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 3, generator=generator, dtype=torch.float64)
    kept, P = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64), 0.3
    masks = contribution_masks(logits, kept / (1 - P))
    for b in range(2):
        for i in range(3):
            for j in range(3):
                terms = [math.exp(logits[b, 0, i, j])]
                terms += [kept[b, k].item() * math.exp(logits[b, k + 1, i, j]) / (1 - P) for k in range(3)]
                for k in range(4):
                    assert masks[b, k, i, j].item() == pytest.approx(terms[k] / sum(terms), abs=1e-12)
    assert torch.equal(masks[1, 0], torch.ones(3, 3, dtype=torch.float64))  # all dropped: the background is left


@pytest.mark.parametrize("probability", [0.1, 0.3])
def test_dropout_keeps_the_expected_sum_of_exponentials(probability):
    generator = torch.Generator().manual_seed(0)
    draws, logits = 40_000, torch.linspace(-3, 0.5, 5, dtype=torch.float64)
    scales = dropout_scales(torch.rand(draws, 5, generator=generator), probability).double()
    sums = (scales * logits.exp()).sum(1)
    whole = logits.exp().sum()
    assert abs(sums.mean() - whole) < 4 * sums.std() / draws**0.5 and sums.std() > 0.05 * whole
    assert (scales == 0).double().mean().item() == pytest.approx(probability, abs=0.01)
    # The same from the masks themselves: with a background of logit 0 the parts' sum is (1 - M_0) / M_0.
    with_still = torch.cat([torch.zeros(1, dtype=torch.float64), logits]).view(1, 6, 1, 1).expand(draws, -1, -1, -1)
    still = contribution_masks(with_still, scales)[:, 0].flatten()
    assert torch.allclose((1 - still) / still, sums, rtol=1e-9)
    # Without dividing by 1 - P, which is what the published code comes to, a share P of the sum would be lost.
    lost = 1 - ((scales > 0) * logits.exp()).sum(1).mean() / whole
    assert lost.item() == pytest.approx(probability, abs=0.02)


def test_dropping_nothing_changes_nothing():
    logits, chances = torch.randn(2, 4, 3, 3), torch.rand(2, 3)
    assert torch.equal(contribution_masks(logits, dropout_scales(chances, 0.0)), torch.softmax(logits, 1))
    source, driving, flows = pair()
    network = DenseMotion(3, **SIZES)
    inputs = torch.rand(2, 3, 16, 16), source, driving, with_background(flows)
    assert torch.equal(network(*inputs).flow, network(*inputs, dropout_scales(chances, 0.0)).flow)


def test_dropped_parts_get_no_gradient_and_the_others_a_finite_one():
    logits = torch.randn(1, 4, 2, 2, requires_grad=True)
    scales = torch.tensor([[0.0, 1.25, 1.25]])
    (contribution_masks(logits, scales) * torch.randn(1, 4, 2, 2)).sum().backward()
    assert logits.grad.isfinite().all() and not logits.grad[:, 1].any() and logits.grad[:, 2].any()


@pytest.mark.parametrize("probability", [-0.1, 1.0])
def test_a_probability_that_cannot_be_is_refused(probability):
    with pytest.raises(ValueError, match=f"is {probability}: expected at least 0 and less than 1"):
        dropout_scales(torch.rand(1, 3), probability)


def test_occlusions_come_at_several_resolutions_each_from_its_own_layer():
    source, driving, flows = pair()
    network = DenseMotion(3, coarser=1, finer=2, **SIZES)
    coarse = network(torch.rand(2, 3, 16, 16), source, driving, with_background(flows))
    assert [tuple(o.shape[-2:]) for o in coarse.occlusions] == [(8, 8), (16, 16), (32, 32), (64, 64)]
    assert coarse.occlusions[1] is coarse.occlusion
    coarse.occlusions[0].sum().backward()  # the coarsest needs nothing of what comes after its layer
    assert network.coarser_heads[0].weight.grad.any() and network.hourglass.up[-1][0].weight.grad is None
    with pytest.raises(ValueError, match="2 coarser occlusions: expected 0 to 1"):
        DenseMotion(3, coarser=2, **SIZES)


def test_the_evidence_of_a_part_is_its_points_and_the_source_moved_by_it():
    torch.manual_seed(0)
    network = DenseMotion(2, base=8, levels=2, maximum=16, head_kernel=3, norm="group")
    seen, scales = [], network.hourglass.scales
    network.hourglass.scales = lambda x: seen.append(x) or scales(x)
    image, flows = torch.rand(1, 3, 16, 16), 0.3 * torch.randn(1, 3, 2, 16, 16)
    start, end = torch.tensor([[[-0.5, 0.0], [0.3, 0.3]]]), torch.tensor([[[0.5, 0.0], [0.3, 0.3]]])
    network(image, start, end, flows)
    maps = seen[0].unflatten(1, (3, 4))
    for part in range(3):
        assert torch.allclose(maps[:, part, 1:], warp(image, flows[:, part]), atol=1e-6)
    assert maps[0, 1, 0, 8, 12] > 0.5 and maps[0, 1, 0, 8, 3] < -0.5  # came to the right, left from the left
    assert not maps[0, 0, 0].any() and not maps[0, 2, 0].any()
