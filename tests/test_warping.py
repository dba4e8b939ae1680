import pytest
import torch

from minimodel.warping import from_pixels, full_precision, identity_grid, resize_flow, to_pixels, warp


def test_pixel_centres_are_half_a_pixel_from_the_edge():
    grid = identity_grid(2, 4)
    assert grid[0, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert grid[1, :, 0].tolist() == [-0.5, 0.5]


def test_zero_flow_changes_nothing():
    image = torch.rand(2, 3, 5, 7)
    assert torch.allclose(warp(image, torch.zeros(2, 2, 5, 7)), image, atol=1e-6)


@pytest.mark.parametrize("right, down", [(1, 0), (0, 1), (2, -1)])
def test_whole_pixels_move_whole_pixels(right, down):
    """A backward flow to the right fetches from the right: the picture moves to the left."""
    image = torch.rand(1, 1, 6, 8)
    flow = torch.tensor([2 * right / 8, 2 * down / 6]).view(1, 2, 1, 1).expand(1, 2, 6, 8)
    expected = image.roll((-down, -right), (2, 3))
    inside = (slice(None), slice(None), slice(2, 4), slice(2, 6))
    assert torch.allclose(warp(image, flow)[inside], expected[inside], atol=1e-6)


def test_warp_equals_a_loop_over_pixels():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 5, 6, dtype=torch.float64, generator=generator)
    flow = 0.3 * torch.randn(1, 2, 4, 3, dtype=torch.float64, generator=generator)
    made = warp(image, flow, padding="zeros")
    for y in range(4):
        for x in range(3):
            # Position in pixels of the image, then the four neighbours with their weights.
            px = ((2 * x + 1) / 3 + flow[0, 0, y, x].item()) * 6 / 2 - 0.5
            py = ((2 * y + 1) / 4 + flow[0, 1, y, x].item()) * 5 / 2 - 0.5
            value = 0.0
            for j in range(5):
                for i in range(6):
                    value += max(0, 1 - abs(px - i)) * max(0, 1 - abs(py - j)) * image[0, 0, j, i].item()
            assert made[0, 0, y, x].item() == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("height, width", [(9, 13), (1, 1), (2, 40)])
def test_rendering_reads_rows_and_gets_what_training_gets(height, width):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 20, height, width, dtype=torch.float64, generator=generator)
    flow = torch.randn(3, 2, 6, 5, dtype=torch.float64, generator=generator)  # two in three leave the picture
    sampled = warp(image, flow)
    with torch.no_grad():
        rows = warp(image.contiguous(memory_format=torch.channels_last), flow)
        other_layout = warp(image, flow)
    assert torch.allclose(rows, sampled, atol=1e-12)
    assert torch.equal(other_layout, sampled)
    # The layout tells that the quick way was taken, and is what makes it worth taking.
    assert rows.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_one_source_that_many_frames_drive_is_read_by_rows_too(layout):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 20, 9, 13, generator=generator).contiguous(memory_format=layout).expand(3, -1, -1, -1)
    flow = 0.5 * torch.randn(3, 2, 6, 5, generator=generator)
    sampled = warp(image, flow.requires_grad_())
    with torch.no_grad():
        rows = warp(image, flow)
    assert torch.allclose(rows, sampled, atol=1e-5) and not torch.allclose(rows[0], rows[1], atol=0.01)
    assert rows.is_contiguous(memory_format=torch.channels_last) == (layout == torch.channels_last)


@torch.no_grad()
def test_rendering_survives_a_flow_that_is_not_a_number():
    image = torch.rand(1, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    flow = torch.full((1, 2, 4, 4), float("nan"))
    flow[..., 2:] = float("inf")
    assert warp(image, flow).shape == (1, 16, 4, 4)


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (16, 16), (32, 32), (4, 32)])
def test_a_linear_flow_is_the_same_function_at_every_resolution(size):
    matrix = torch.tensor([[0.1, -0.2], [0.05, 0.3]])
    flow = torch.einsum("ij,jhw->ihw", matrix, identity_grid(16, 16))[None]
    expected = torch.einsum("ij,jhw->ihw", matrix, identity_grid(*size))[None]
    resized = resize_flow(flow, size)
    # Where a map grows, its outermost half pixels have nothing to be interpolated from.
    edge = [slice(n // 16, n - n // 16) for n in size]
    assert torch.allclose(resized[..., edge[0], edge[1]], expected[..., edge[0], edge[1]], atol=1e-6)


def test_pixels_and_back():
    points = torch.rand(3, 5, 2) * 2 - 1
    pixels = to_pixels(points, (20, 30))
    assert torch.allclose(from_pixels(pixels, (20, 30)), points, atol=1e-6)
    assert torch.allclose(to_pixels(identity_grid(2, 3).permute(1, 2, 0), (2, 3))[1, 2], torch.tensor([2.0, 1.0]))


def test_full_precision_leaves_autocast():
    double = full_precision(lambda a, b: a @ b)
    a = torch.rand(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        assert double(a, a).dtype == double(a=a, b=a).dtype == torch.float32
