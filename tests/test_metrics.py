"""Every metric beside an independent reference."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr

from minimodel.evaluation import metrics


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


@pytest.mark.parametrize("size, scales", [(32, 2), (64, 3), (256, 5)])
def test_ms_ssim_of_the_scales_that_fit(size, scales):
    """Beside Wang et al.'s formula with scipy's Gaussian: contrast at every scale, luminance at the coarsest alone."""
    assert metrics.ms_ssim_scales(size, size) == metrics.ms_ssim_scales(2 * size, size) == scales
    exponents = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    exponents = exponents / exponents.sum()
    one, other = pictures(2, size, size)

    def blur(x):
        return gaussian_filter(x, (1.5, 1.5, 0), mode="mirror", truncate=3.5)

    expected = []
    for a, b in zip(arrays(one), arrays(other)):
        product = 1.0
        for scale, exponent in enumerate(exponents):
            mean_a, mean_b = blur(a), blur(b)
            variances = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
            terms = (2 * (blur(a * b) - mean_a * mean_b) + 0.03**2) / (variances + 0.03**2)
            if scale == scales - 1:
                terms = terms * (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
            else:
                terms = terms[5:-5, 5:-5]  # torchmetrics keeps the border at the coarsest scale only
            product *= max(terms.mean(), 0) ** exponent
            a, b = (x.reshape(len(x) // 2, 2, len(x) // 2, 2, 3).mean((1, 3)) for x in (a, b))
        expected.append(product)
    assert metrics.ms_ssim(one, other).tolist() == pytest.approx(expected, abs=1e-4)
    assert metrics.ms_ssim(one, one).tolist() == pytest.approx([1] * 2, abs=1e-5)


def test_ms_ssim_says_how_large_pictures_must_be():
    assert [metrics.ms_ssim_scales(side, 999) for side in (16, 31, 127, 128, 255)] == [1, 1, 3, 4, 4]
    one, other = pictures(1, 16, 15)
    with pytest.raises(ValueError, match="pictures of 16 x 15 pixels: MS-SSIM needs sides of at least 16"):
        metrics.ms_ssim(one, other)


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


def test_lpips_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    layers = [torch.rand(2, 2, *shape, generator=generator) for shape in ((3, 4, 5), (6, 2, 2))]
    weights = [torch.rand(channels, generator=generator) for channels in (3, 6)]
    # "Features" of two sets of pictures: the picture only tells which set.
    one, other = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)

    class Layers(torch.nn.Module):
        def forward(self, image):
            return [layer[int(image.mean())] for layer in layers]

    expected = []
    for n in range(2):
        total = 0.0
        for layer, weight in zip(layers, weights):
            height, width = layer.shape[-2:]
            for y in range(height):
                for x in range(width):
                    a, b = layer[0, n, :, y, x], layer[1, n, :, y, x]
                    a, b = a / math.hypot(*a), b / math.hypot(*b)
                    total += sum(w * (u - v) ** 2 for w, u, v in zip(weight, a, b)) / (height * width)
        expected.append(float(total))
    assert metrics.lpips(Layers(), weights, one, other).tolist() == pytest.approx(expected, rel=1e-5)
    assert metrics.lpips(Layers(), weights, one, one).tolist() == [0, 0]


def test_keypoints_count_where_both_pictures_have_them():
    generator = torch.Generator().manual_seed(0)
    made, wanted = torch.randn(2, 3, 7, 2, generator=generator)
    has, needs = torch.rand(2, 3, 7, generator=generator) < 0.6
    needs[2] = False
    distance, missing = [], []
    for n in range(3):
        both = [k for k in range(7) if has[n, k] and needs[n, k]]
        asked = [k for k in range(7) if needs[n, k]]
        distance.append(sum(math.dist(made[n, k], wanted[n, k]) for k in both) / len(both) if both else math.nan)
        missing.append(sum(not has[n, k] for k in asked) / len(asked) if asked else math.nan)
    assert 0 < missing[0] < 1 and math.isnan(missing[2])
    assert metrics.akd(made, wanted, has & needs).tolist() == pytest.approx(distance, rel=1e-5, nan_ok=True)
    assert metrics.mkr(has, needs).tolist() == pytest.approx(missing, nan_ok=True)
    # What is found where nothing was wanted is no miss.
    assert metrics.mkr(torch.ones_like(needs), needs)[:2].tolist() == [0, 0]


def test_distances_of_what_networks_say():
    generator = torch.Generator().manual_seed(0)
    made, wanted = torch.randn(2, 4, 3, generator=generator)
    pairs = list(zip(made.tolist(), wanted.tolist()))
    assert metrics.aed(made, wanted).tolist() == pytest.approx([math.dist(a, b) for a, b in pairs], rel=1e-5)
    expected = [sum(abs(x - y) for x, y in zip(a, b)) / 3 for a, b in pairs]
    assert metrics.ard(made, wanted).tolist() == pytest.approx(expected, rel=1e-5)
    one, other = torch.rand(2, 4, 9, generator=generator) < 0.4
    expected = [sum(x != y for x, y in zip(a, b)) / 9 for a, b in zip(one.tolist(), other.tolist())]
    assert len(set(expected)) > 2
    assert metrics.auh(one, other).tolist() == pytest.approx(expected)
    assert metrics.auh(one, ~one).tolist() == [1] * 4


def test_fid_equals_scipys_square_root():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=generator)
    made, wanted = torch.randn(40, 6, generator=generator), torch.randn(30, 6, generator=generator) @ mix + 1
    a, b = (x.double().numpy() for x in (made, wanted))
    one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + other - 2 * sqrtm(one @ other).real)
    assert float(metrics.fid(made, wanted)) == pytest.approx(expected, rel=1e-5)
    assert float(metrics.fid(wanted, made)) == pytest.approx(expected, rel=1e-5)
    assert 0 <= float(metrics.fid(made, made)) < 1e-6
    assert float(metrics.fid(made, made + 2)) == pytest.approx(4 * 6, rel=1e-5)
    # Twice as wide about the same mean: tr(C + 4 C - 2 * 2 C) = tr(C).
    wide = made.mean(0) + 2 * (made - made.mean(0))
    assert float(metrics.fid(made, wide)) == pytest.approx(np.trace(one), rel=1e-4)
    # One feature: means and standard deviations, squared.
    gap = (a[:, 0].mean() - b[:, 0].mean()) ** 2 + (a[:, 0].std(ddof=1) - b[:, 0].std(ddof=1)) ** 2
    assert float(metrics.fid(made[:, :1], wanted[:, :1])) == pytest.approx(gap, rel=1e-5)


def test_fid_of_fewer_pictures_than_features():
    """Covariances without inverses, on which the root of their product fails: tr((C C')^½) is the sum of the singular
    values of X Y' / √((n - 1) (m - 1)), with the centred features as rows."""
    generator = torch.Generator().manual_seed(0)
    made, wanted = torch.randn(9, 50, generator=generator), 3 * torch.randn(14, 50, generator=generator)
    a, b = (x.double().numpy() for x in (made, wanted))
    x, y = (a - a.mean(0)) / math.sqrt(8), (b - b.mean(0)) / math.sqrt(13)
    shared = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * shared
    assert float(metrics.fid(made, wanted)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="features of 1 and 14 pictures: FID needs at least 2 of each"):
        metrics.fid(made[:1], wanted)


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
