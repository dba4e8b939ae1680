"""Every metric beside an independent reference."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr

from minimodel import metrics


def pictures(batch=3, height=24, width=40, seed=0):
    """Pictures, and others that are more and more like them."""
    generator = torch.Generator().manual_seed(seed)
    one, noise = torch.rand(2, batch, 3, height, width, generator=generator)
    share = torch.linspace(0, 0.8, batch).view(-1, 1, 1, 1)
    return one, one * share + noise * (1 - share)


def arrays(images):
    return [image.permute(1, 2, 0).double().numpy() for image in images]


def test_l1_is_the_mean_absolute_difference():
    one, other = pictures()
    expected = [np.abs(a - b).mean() for a, b in zip(arrays(one), arrays(other))]
    assert metrics.l1(one, other).tolist() == pytest.approx(expected, abs=1e-6)


def test_psnr_equals_two_others():
    one, other = pictures()
    expected = [peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(arrays(one), arrays(other))]
    assert metrics.psnr(one, other).tolist() == pytest.approx(expected, abs=1e-4)
    # One number a picture: not the PSNR of the batch, which is another.
    alone = [torchmetrics_psnr(a, b, data_range=1.0).item() for a, b in zip(one, other)]
    assert metrics.psnr(one, other).tolist() == pytest.approx(alone, abs=1e-4)


def test_ssim_equals_scikit_image():
    one, other = pictures()
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=2)
    # scikit-image leaves out the five pixels along the border, torchmetrics mirrors the picture there.
    padded = [[np.pad(a, ((5, 5), (5, 5), (0, 0)), "reflect") for a in arrays(images)] for images in (one, other)]
    expected = [structural_similarity(a, b, **options) for a, b in zip(*padded)]
    assert metrics.ssim(one, other).tolist() == pytest.approx(expected, abs=1e-4)


def test_equal_pictures():
    one, _ = pictures()
    assert metrics.l1(one, one).tolist() == [0] * 3
    assert metrics.psnr(one, one).tolist() == pytest.approx([100] * 3)
    assert metrics.ssim(one, one).tolist() == pytest.approx([1] * 3, abs=1e-5)


def test_a_batch_of_one_is_still_a_batch():
    one, other = pictures(batch=1)
    for measure in (metrics.l1, metrics.psnr, metrics.ssim):
        assert measure(one, other).shape == (1,)


def test_perceptual_distance_is_the_mean_over_layers():
    class Layers(torch.nn.Module):
        def forward(self, image):
            return [image, 10 * image[:, :1, ::2, ::2]]

    one, other = pictures()
    expected = []
    for a, b in zip(one, other):
        first = (a - b).abs().mean()
        second = 10 * (a - b)[0, ::2, ::2].abs().mean()
        expected.append(float(first + second) / 2)
    assert metrics.perceptual_distance(Layers(), one, other).tolist() == pytest.approx(expected, rel=1e-5)
    assert metrics.perceptual_distance(Layers(), one, one).tolist() == [0] * 3


def test_flow_error_is_in_pixels():
    generator = torch.Generator().manual_seed(0)
    flow, truth = torch.randn(2, 2, 2, 6, 10, generator=generator)
    where = torch.rand(2, 1, 6, 10, generator=generator) > 0.5
    expected = []
    for number in range(2):
        errors = []
        for y in range(6):
            for x in range(10):
                if where[number, 0, y, x]:
                    right, down = (flow - truth)[number, :, y, x].tolist()
                    errors.append(math.hypot(right * 10 / 2, down * 6 / 2))
        expected.append(sum(errors) / len(errors))
    assert metrics.flow_error(flow, truth, where).tolist() == pytest.approx(expected, rel=1e-5)


def test_flow_error_of_a_region_without_pixels_is_not_a_number():
    flow = torch.zeros(2, 2, 4, 4)
    where = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    where[1, 0, 2, 2] = True
    # Two pixels to the right and none down, in normalised units.
    error = metrics.flow_error(flow, flow + torch.tensor([1.0, 0.0]).view(2, 1, 1), where)
    assert math.isnan(error[0]) and error[1] == 2


def test_balanced_accuracy():
    generator = torch.Generator().manual_seed(0)
    predicted, truth = (torch.rand(3, 1, 8, 8, generator=generator) > share for share in (0.5, 0.1))
    expected = []
    for a, b in zip(predicted.flatten(1).tolist(), truth.flatten(1).tolist()):
        visible = [one == other for one, other in zip(a, b) if other]
        hidden = [one == other for one, other in zip(a, b) if not other]
        expected.append((sum(visible) / len(visible) + sum(hidden) / len(hidden)) / 2)
    assert metrics.balanced_accuracy(predicted, truth).tolist() == pytest.approx(expected, rel=1e-5)
    assert metrics.balanced_accuracy(truth, truth).tolist() == [1] * 3
    # Calling everything visible is worth nothing, however rare hidden pixels are.
    assert metrics.balanced_accuracy(torch.ones_like(truth), truth).tolist() == [0.5] * 3
    assert metrics.balanced_accuracy(truth, torch.ones_like(truth)).isnan().all()


def test_shape_error_is_what_no_similarity_takes_away():
    """Against least squares over x' = a x - b y + s, y' = b x + a y + t."""
    generator = torch.Generator().manual_seed(0)
    made, wanted = torch.randn(2, 3, 9, 2, generator=generator, dtype=torch.float64)
    where = torch.rand(3, 9, generator=generator) < 0.7
    expected = []
    for one, other, counts in zip(made.numpy(), wanted.numpy(), where.numpy()):
        rows = []
        for x, y in one[counts]:
            rows += [[x, -y, 1, 0], [y, x, 0, 1]]
        rows, target = np.array(rows), other[counts].flatten()
        rest = rows @ np.linalg.lstsq(rows, target, rcond=None)[0] - target
        expected.append(np.linalg.norm(rest.reshape(-1, 2), axis=1).mean())
    assert metrics.shape_error(made, wanted, where).tolist() == pytest.approx(expected)


def test_shape_error_sees_neither_place_size_nor_turn_but_sees_mirrors():
    points = torch.randn(2, 9, 2, generator=torch.Generator().manual_seed(0))
    everywhere = torch.ones(2, 9, dtype=torch.bool)
    turn = 1.7 * torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    assert metrics.shape_error(points @ turn.T + torch.tensor([3.0, -1.0]), points, everywhere).max() < 1e-5
    assert metrics.shape_error(points * torch.tensor([-1.0, 1.0]), points, everywhere).min() > 0.1
    assert metrics.shape_error(points, points, ~everywhere).isnan().all()


def test_sms_is_equation_nine():
    points = torch.randn(7, 5, 2, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for t in range(1, 6):
        for k in range(5):
            right, down = ((points[t - 1, k] + points[t + 1, k]) / 2 - points[t, k]).tolist()
            total += math.hypot(right, down)
    assert metrics.sms(points).item() == pytest.approx(total / 5, rel=1e-5)
    assert metrics.sms(3 * points).item() == pytest.approx(3 * total / 5, rel=1e-5)  # so it is in pixels
    # A steady motion costs nothing; a single frame that is off costs three times: for itself and both neighbours.
    steady = points[:1] + torch.arange(7.0).view(7, 1, 1) * torch.tensor([2.0, -1.0])
    assert metrics.sms(steady) < 1e-5
    steady[3, 2, 0] += 1
    assert metrics.sms(steady).item() == pytest.approx((0.5 + 1 + 0.5) / 5, rel=1e-4)
    with pytest.raises(ValueError, match="landmarks of 2 frames: expected at least 3"):
        metrics.sms(points[:2])


def test_landmark_error_is_a_share_of_the_distance_of_the_eyes():
    generator = torch.Generator().manual_seed(0)
    found, truth = torch.randn(2, 3, 74, 2, generator=generator)
    expected = []
    for one, other in zip(found, truth):
        distances = [math.dist(one[k], other[k]) for k in range(74)]
        expected.append(sum(distances) / 74 / math.dist(other[36], other[45]))
    assert metrics.landmark_error(found, truth).tolist() == pytest.approx(expected, rel=1e-5)
    # The truth is what it is a share of, so that a detector can't improve by finding large faces.
    assert metrics.landmark_error(2 * truth, truth).tolist() != metrics.landmark_error(truth, 2 * truth).tolist()
