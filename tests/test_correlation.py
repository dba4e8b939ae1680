import math

import pytest
import torch

from minimodel.correlation import Correlation, lookup, lookup_volume, softmax_flow, volume
from minimodel.warping import identity_grid, resize_flow

R, LEVELS = 2, 3


def features(seed, channels=5, height=8, width=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, height, width, dtype=torch.float64, generator=generator)


def random_flow(height, width, length, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return length * torch.randn(2, 2, height, width, dtype=torch.float64, generator=generator)


def naive_lookup(driving, source, flow, radius, levels):
    """Loops over pixels, levels, offsets and neighbours, as the definition says it."""
    size = tuple(flow.shape[-2:])
    shared = tuple(min(a, b) for a, b in zip(size, driving.shape[-2:]))
    driving, flow = resize_flow(driving, shared), resize_flow(flow, shared)
    grid = identity_grid(*shared, dtype=torch.float64)
    height, width = source.shape[-2:]
    found = torch.zeros(len(driving), levels * (2 * radius + 1) ** 2, *shared, dtype=torch.float64)
    for b in range(len(driving)):
        for y in range(shared[0]):
            for x in range(shared[1]):
                px = (grid[0, y, x] + flow[b, 0, y, x] + 1).item() * width / 2 - 0.5
                py = (grid[1, y, x] + flow[b, 1, y, x] + 1).item() * height / 2 - 0.5
                k = 0
                for level in range(levels):
                    pooled = torch.nn.functional.avg_pool2d(source, 2**level)[b]
                    for dy in range(-radius, radius + 1):
                        for dx in range(-radius, radius + 1):
                            qx, qy = (px + 0.5) / 2**level - 0.5 + dx, (py + 0.5) / 2**level - 0.5 + dy
                            for j in (math.floor(qy), math.floor(qy) + 1):
                                for i in (math.floor(qx), math.floor(qx) + 1):
                                    if 0 <= j < pooled.shape[1] and 0 <= i < pooled.shape[2]:
                                        weight = (1 - abs(qx - i)) * (1 - abs(qy - j))
                                        product = (driving[b, :, y, x] @ pooled[:, j, i]).item()
                                        found[b, k, y, x] += weight * product / driving.shape[1] ** 0.5
                            k += 1
    return resize_flow(found, size)


@pytest.mark.parametrize("size", [(2, 2), (4, 4), (8, 8), (16, 16), (4, 16)])
@pytest.mark.parametrize("length", [0.0, 0.2, 3.0])  # 3: most positions leave the image
def test_both_lookups_equal_the_loops(size, length):
    driving, source, flow = features(0), features(1), random_flow(*size, length)
    expected = naive_lookup(driving, source, flow, R, LEVELS)
    assert torch.allclose(lookup(driving, source, flow, radius=R, levels=LEVELS, chunk=7), expected, atol=1e-12)
    held = lookup_volume(volume(driving, source), flow, radius=R, levels=LEVELS)
    assert torch.allclose(held, expected, atol=1e-12)


@pytest.mark.parametrize("hold_volume", [False, True])
@pytest.mark.parametrize("size", [(4, 6), (8, 12), (16, 24)])
def test_correlation_reads_the_same_at_the_lower_resolution(hold_volume, size):
    driving, source, flow = features(0, width=12), features(1, width=12), random_flow(*size, 0.3)
    correlation = Correlation(driving, source, radius=R, levels=2, hold_volume=hold_volume)
    made = resize_flow(correlation(flow), size)
    assert torch.allclose(made, lookup(driving, source, flow, radius=R, levels=2), atol=1e-12)
    assert torch.allclose(correlation.volume(), volume(driving, source))


def test_in_float32_the_two_ways_agree_to_1e_5():
    driving, source, flow = (
        t.float() for t in (features(0, 64, 16, 16), features(1, 64, 16, 16), random_flow(16, 16, 0.3))
    )
    ways = (
        lookup(driving, source, flow, radius=3, levels=2),
        lookup_volume(volume(driving, source), flow, radius=3, levels=2),
    )
    assert torch.allclose(*ways, atol=1e-5)


@pytest.mark.parametrize("way", ["features", "volume"])
def test_gradients(way):
    def read(driving, source, flow):
        if way == "features":
            return lookup(driving, source, flow, radius=1, levels=2)
        return lookup_volume(volume(driving, source), flow, radius=1, levels=2)

    inputs = features(0, 2, 4, 4)[:1], features(1, 2, 4, 4)[:1], random_flow(4, 4, 0.3)[:1]
    assert torch.autograd.gradcheck(read, [tensor.clone().requires_grad_() for tensor in inputs])


def test_the_centre_of_the_patch_is_where_the_flow_points():
    """With one-hot features the correlation of a pixel with the place it came from is the only one."""
    source = torch.eye(16, dtype=torch.float64).view(1, 16, 4, 4)
    driving = source.roll((1, 1), (2, 3))
    flow = torch.full((1, 2, 4, 4), -2 / 4, dtype=torch.float64)
    patch = lookup(driving, source, flow, radius=1, levels=1)[0, :, 1:, 1:] * 16**0.5
    expected = torch.zeros(9, dtype=torch.float64)
    expected[4] = 1
    assert torch.allclose(patch, expected.view(9, 1, 1).expand(9, 3, 3))


def test_softmax_flow_follows_a_sharp_volume():
    source = torch.eye(64, dtype=torch.float64).view(1, 64, 8, 8)
    driving = source.roll(2, 3)
    flow = softmax_flow(volume(1000 * driving, source))
    assert torch.allclose(flow[:, 0, :, 2:], torch.full((1, 8, 6), -0.5, dtype=torch.float64), atol=1e-6)
    assert flow[:, 1].abs().max() < 1e-6
    uniform = softmax_flow(volume(0 * driving, source))
    assert torch.allclose(
        uniform, -identity_grid(8, 8, dtype=torch.float64)[None]
    )  # everywhere is on average the middle
