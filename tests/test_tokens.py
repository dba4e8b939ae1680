import math

import pytest
import torch

from minimodel.tokens import TokenDetector, sine_positions, spread_points
from minimodel.warping import identity_grid

SIZES = dict(base=8, blocks=1, patch=2, width=16, depth=2, heads=2, ratio=2, norm="group")


def detector(points=5, **options):
    torch.manual_seed(0)
    return TokenDetector(points, **SIZES | options)


def naive_layer(layer, tokens):
    """A pre-norm transformer layer with one head, number by number; ``tokens`` and the result are lists of lists."""

    def numbers(tensor):
        return tensor.detach().double().tolist()

    def normalise(x, norm):
        mean = sum(x) / len(x)
        variance = sum((v - mean) ** 2 for v in x) / len(x)
        scales = zip(x, numbers(norm.weight), numbers(norm.bias), strict=True)
        return [(v - mean) / math.sqrt(variance + norm.eps) * w + b for v, w, b in scales]

    def linear(x, weight, bias):
        return [sum(a * b for a, b in zip(row, x, strict=True)) + c for row, c in zip(weight, bias, strict=True)]

    def plus(one, other):
        return [a + b for a, b in zip(one, other, strict=True)]

    width = len(tokens[0])
    attention = layer.self_attn
    joined = [linear(normalise(x, layer.norm1), *map(numbers, (attention.in_proj_weight, attention.in_proj_bias)))
              for x in tokens]  # fmt: skip
    queries, keys, values = ([x[i * width : (i + 1) * width] for x in joined] for i in range(3))
    result = []
    for x, query in zip(tokens, queries, strict=True):
        shares = [math.exp(sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(width)) for key in keys]
        seen = [sum(s * v[c] for s, v in zip(shares, values, strict=True)) / sum(shares) for c in range(width)]
        x = plus(x, linear(seen, numbers(attention.out_proj.weight), numbers(attention.out_proj.bias)))
        hidden = linear(normalise(x, layer.norm2), numbers(layer.linear1.weight), numbers(layer.linear1.bias))
        hidden = [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in hidden]
        result.append(plus(x, linear(hidden, numbers(layer.linear2.weight), numbers(layer.linear2.bias))))
    return result


@torch.no_grad()
def test_one_layer_with_one_head_equals_loops():
    network = detector(points=2, width=8, depth=1, heads=1).double()
    for parameter in network.parameters():  # biases and scales of norms start where they would hide a mistake
        parameter.add_(0.2 * torch.randn_like(parameter))
    patches, positions = torch.randn(1, 6, 8, dtype=torch.float64), sine_positions((2, 3), 8).double()
    placed = (patches[0] + positions).tolist()
    result = torch.tensor(naive_layer(network.layers[0], network.tokens.tolist() + placed), dtype=torch.float64)
    mean, spread = result.mean(-1, keepdim=True), result.std(-1, keepdim=True, correction=0)
    expected = (result - mean) / (spread**2 + 1e-5).sqrt() * network.norm.weight + network.norm.bias
    for mode in (True, False):  # torch computes an evaluated layer by another route
        tokens = network.train(mode).attend(patches, positions)
        assert [len(each[0]) for each in tokens] == [2, 2, 6]
        assert torch.allclose(torch.cat(tokens, dim=1)[0], expected, atol=1e-10)


@torch.no_grad()
def test_patches_are_a_set_whose_order_is_said_by_positions_alone():
    network = detector().double()
    patches, positions = torch.randn(2, 12, 16, dtype=torch.float64), sine_positions((3, 4), 16).double()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    expected = network.attend(patches, positions)
    moved = network.attend(patches[:, order], positions[order])
    for one, other in zip(moved, (*expected[:2], expected[2][:, order]), strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    # Without their positions they say something else, to every token.
    moved = network.attend(patches[:, order], positions)
    for one, other in zip(moved, (*expected[:2], expected[2][:, order]), strict=True):
        assert (one - other).abs().amax(-1).min() > 1e-3


@torch.no_grad()
def test_points_are_means_of_positions_under_the_comparison():
    network = detector(3)
    image = torch.rand(1, 3, 16, 24)
    seen = {}
    for name in ("trunk", "norm"):
        getattr(network, name).register_forward_hook(lambda _, given, made, name=name: seen.update({name: made}))
    points, _ = network(image)
    features, tokens = seen["trunk"][0], seen["norm"][0]
    coarse = network.coarse_key(tokens[6:]).view(1, 2, 3, 16).permute(0, 3, 1, 2)
    coarse = torch.nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear")[0]
    for k in range(3):
        query, total, mean = network.query(tokens[k]), 0.0, torch.zeros(2)
        for y in range(4):
            for x in range(6):
                place = torch.tensor([(2 * x + 1) / 6 - 1, (2 * y + 1) / 4 - 1])
                key = network.fine_key.weight[:, :, 0, 0] @ features[:, y, x] + coarse[:, y, x]
                far = (place - network.start[k]).square().sum() / (2 * 0.2)
                share = torch.exp(query @ key / 4 / 0.3 - far)
                total, mean = total + share, mean + share * place
        assert torch.allclose(points[0, k], mean / total, atol=1e-5)


@torch.no_grad()
def test_positions_are_added_before_every_layer():
    network = detector(depth=3)
    patches, positions = torch.randn(1, 4, 16), sine_positions((2, 2), 16)
    inputs, outputs = [], []
    for layer in network.layers:
        layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        layer.register_forward_hook(lambda _, given, made: outputs.append(made))
    network.attend(patches, positions)
    before = [torch.cat([network.tokens, patches[0]])[None], *outputs[:-1]]
    for given, x in zip(inputs, before, strict=True):
        assert torch.allclose(given[:, :10], x[:, :10]) and torch.allclose(given[:, 10:], x[:, 10:] + positions)


def test_positions_equal_their_formula_and_are_the_same_at_every_size():
    width, size = 24, (3, 5)
    positions = sine_positions(size, width)
    grid = identity_grid(*size)
    for row in range(3):
        for column in range(5):
            x, y = grid[:, row, column].tolist()
            frequencies = [math.pi * 2 ** (-1 + 4 * i / 5) for i in range(6)]
            waves = [wave(f * place) for place in (x, y) for wave in (math.sin, math.cos) for f in frequencies]
            assert positions[row * 5 + column].tolist() == pytest.approx(waves, abs=1e-5)
    # Every third cell of a grid three times as fine has its centre where a cell of the coarse one has it.
    fine = sine_positions((9, 15), width).view(9, 15, width)[1::3, 1::3]
    assert torch.allclose(fine.reshape(15, width), positions, atol=1e-5)


def test_positions_tell_places_apart_and_compare_by_distance_alone():
    positions = sine_positions((8, 8), 96)
    products = (positions @ positions.T).view(8, 8, 8, 8)
    assert torch.allclose(products[1:, 2:, 1:, 2:], products[:-1, :-2, :-1, :-2], atol=1e-4)
    apart = torch.cdist(positions, positions) + 100 * torch.eye(64)
    assert apart.min() > 1  # of vectors that are 7 long


def test_starting_points_lie_apart_for_any_number_of_them():
    for count in (2, 5, 10, 20, 50):
        points = spread_points(count)
        apart = torch.cdist(points, points) + 100 * torch.eye(count)
        # A square lattice of that many points would have 1.6 / sqrt(count).
        assert points.shape == (count, 2) and points.abs().max() <= 0.8 and apart.min() > 0.7 / math.sqrt(count)


@torch.no_grad()
def test_detection_starts_with_identity_matrices_and_points_inside_and_apart():
    network = detector(10, width=32, depth=4)
    for shape in ((2, 3, 32, 32), (1, 3, 64, 64), (3, 3, 24, 40), (1, 3, 8, 8)):
        points, affine = network(torch.rand(shape))
        assert points.shape == (shape[0], 10, 2) and points.abs().max() < 0.95
        assert torch.equal(affine, torch.eye(2).expand(shape[0], 10, 2, 2))
        assert torch.pdist(points[0]).min() > 0.02 and torch.pdist(points[0]).mean() > 0.4
    network.query.weight.mul_(1e3)
    assert network(torch.rand(2, 3, 32, 32))[0].abs().max() < 1


@torch.no_grad()
def test_points_see_where_things_are():
    """The same square in two places: nothing but its position differs."""
    network = detector()
    frames = torch.zeros(2, 3, 32, 32)
    frames[0, :, 8:16, 8:16] = frames[1, :, 16:24, 16:24] = 1
    points, _ = network(frames)
    assert (points[0] - points[1]).abs().amax(-1).min() > 0.01


def test_every_parameter_gets_a_gradient_and_layers_start_different():
    network = detector()
    points, affine = network(torch.rand(2, 3, 32, 32))
    (points.square().sum() + affine.square().sum()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    for each in (network.tokens, network.start):
        assert each.grad.abs().amax(-1).min() > 0
    assert not torch.equal(network.layers[0].linear1.weight, network.layers[1].linear1.weight)


def test_a_detector_overfits_points_and_matrices():
    network = detector(2)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    frames, wanted = torch.rand(2, 3, 32, 32), 1.2 * torch.rand(2, 2, 2) - 0.6
    matrices = torch.eye(2) + 0.3 * torch.randn(2, 2, 2, 2)
    for _ in range(200):
        points, affine = network(frames)
        loss = (points - wanted).abs().mean() + (affine - matrices).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


@torch.no_grad()
def test_points_leave_autocast_in_full_precision():
    network = detector()
    frames = torch.rand(2, 3, 32, 32)
    exact = network(frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(frames)
    for one, other in zip(exact, rough, strict=True):
        assert other.dtype == torch.float32 and (one - other).abs().max() < 0.05
    # Rounded to bfloat16 the points would be other numbers.
    assert not torch.equal(rough[0], rough[0].bfloat16().float())


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="36 x 32 pixels: both sides must be multiples of 8"):
        detector()(torch.rand(1, 3, 36, 32))
    with pytest.raises(ValueError, match="width is 18: expected a multiple of 4"):
        detector(width=18)
