"""Heatmaps and their reading, Lucas-Kanade against motions that are known, the registration loss, the detector."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from minimodel.data import synthetic
from minimodel.evaluation import metrics
from minimodel.keypoints import gaussian_heatmaps, soft_argmax
from minimodel.landmarks import (
    CLOSE_UP,
    EYE,
    EYES,
    MIRRORED,
    DetectorConfig,
    LandmarkDetector,
    argmax,
    confidence,
    eye_places,
    heatmap_loss,
    lucas_kanade,
    move_picture,
    move_points,
    patches,
    point_loss,
    random_places,
    registration_loss,
    sharpness,
    soften,
    spoil,
    track,
)
from minimodel.model import AnimationModel
from minimodel.training.landmarks import landmark_scores
from minimodel.warping import from_pixels, identity_grid, to_pixels

SMALL = DetectorConfig(points=74, width=16, base=8, levels=2, maximum=16)


def some(seed=0):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------------- heatmaps


def test_argmax_is_the_centre_of_the_highest_pixel():
    heatmaps = torch.rand(2, 3, 6, 10, generator=some())
    found = to_pixels(argmax(heatmaps), (6, 10))
    quarter = to_pixels(argmax(heatmaps, quarter=True), (6, 10))
    for b in range(2):
        for k in range(3):
            best = max((heatmaps[b, k, y, x].item(), x, y) for y in range(6) for x in range(10))[1:]
            assert found[b, k].tolist() == pytest.approx(best, abs=1e-5)
            steps = []
            for axis, (limit, last) in enumerate(zip(best, (9, 5))):
                after, before = list(best), list(best)
                after[axis], before[axis] = min(limit + 1, last), max(limit - 1, 0)
                difference = heatmaps[b, k, after[1], after[0]] - heatmaps[b, k, before[1], before[0]]
                steps.append(0.25 * math.copysign(1, difference))
            assert (quarter - found)[b, k].tolist() == pytest.approx(steps, abs=1e-5)


def test_the_mean_follows_a_point_between_pixels_and_the_maximum_does_not():
    truth = torch.linspace(-0.2, 0.2, 50).view(50, 1, 1) * torch.tensor([1.0, 0.5])
    logits = gaussian_heatmaps(truth, (32, 32), (2 / 32) ** 2).clamp_min(1e-12).log()
    error = {
        "mean": (soft_argmax(logits)[0] - truth).norm(dim=-1).max() * 16,
        "maximum": (argmax(logits) - truth).norm(dim=-1).max() * 16,
        "quarter": (argmax(logits, quarter=True) - truth).norm(dim=-1).max() * 16,
    }
    assert error["mean"] < 0.01  # of a heatmap pixel
    assert 0.5 < error["maximum"] < 0.71 and 0.2 < error["quarter"] < 0.36  # half, a quarter of a pixel along x and y


def test_heatmap_loss_is_least_at_the_gaussian_itself_and_leaves_out_what_is_outside():
    points = torch.tensor([[[0.1, -0.3], [0.4, 0.2]]])
    wanted = gaussian_heatmaps(points, (16, 16), (2 / 16) ** 2)
    share = wanted / wanted.sum((2, 3), keepdim=True)
    entropy = -(share * share.clamp_min(1e-12).log()).sum((2, 3)).mean()
    inside = torch.ones(1, 2, dtype=torch.bool)
    perfect = wanted.clamp_min(1e-30).log()
    assert heatmap_loss(perfect, points, inside) == pytest.approx(entropy.item(), abs=1e-4)
    for step in (0.1 * torch.randn(perfect.shape, generator=some(number)) for number in range(5)):
        assert heatmap_loss(perfect + step, points, inside) > entropy + 1e-4
    broken = perfect.clone()
    broken[:, 1] = torch.randn(16, 16, generator=some())
    assert heatmap_loss(broken, points, inside) > entropy + 1
    inside[:, 1] = False
    first = -(share[:, 0] * share[:, 0].clamp_min(1e-12).log()).sum()
    assert heatmap_loss(broken, points, inside) == pytest.approx(first.item(), abs=1e-4)
    assert heatmap_loss(broken, points, torch.zeros_like(inside)) == 0


def test_point_loss_is_the_mean_distance_of_those_inside():
    found, points = torch.rand(2, 3, 4, 2, generator=some())
    inside = torch.rand(3, 4, generator=some()) > 0.4
    distances = [math.dist(found[b, k], points[b, k]) for b in range(3) for k in range(4) if inside[b, k]]
    assert point_loss(found, points, inside) == pytest.approx(sum(distances) / len(distances), abs=1e-4)
    same = points.clone().requires_grad_()
    point_loss(same, points, inside).backward()
    assert torch.isfinite(same.grad).all()  # the root has no slope at 0, the loss does


def test_confidence_tells_a_hill_from_noise():
    points = torch.rand(4, 74, 2, generator=some()) - 0.5
    hills = gaussian_heatmaps(points, (32, 32), (2 / 32) ** 2)
    sharp = hills / hills.sum((2, 3), keepdim=True)
    # A Gaussian in two dimensions has 1 - exp(-2) of itself within two sigma.
    assert confidence(sharp, points).tolist() == pytest.approx([1 - math.exp(-2)] * 4, abs=0.02)
    flat = torch.full((4, 74, 32, 32), 1 / 32**2)
    assert confidence(flat, points).tolist() == pytest.approx([math.pi * 4 / 32**2] * 4, rel=0.1)
    # Each point for itself: where some are hills and others noise, it says which.
    mixed = torch.where((torch.arange(74) % 2 == 0)[:, None, None], sharp, flat)
    assert torch.equal(sharpness(mixed, points) > 0.4, (torch.arange(74) % 2 == 0).expand(4, -1))
    assert torch.equal(sharpness(mixed, points).mean(1), confidence(mixed, points))


# ---------------------------------------------------------------------------------------------------- Lucas-Kanade

SIDE = 96


def waves(positions):
    """A smooth picture as a formula, in two channels, at normalised positions (..., 2)."""
    x, y = positions.unbind(-1)
    one = torch.sin(11 * x + 2) * torch.cos(9 * y) + torch.sin(5 * x - 12 * y + 1)
    other = torch.cos(13 * y - 4 * x) + torch.sin(10 * x + 7 * y + 2)
    return 0.5 + 0.12 * torch.stack([one, other])


def seen(matrix, shift):
    """The picture after each of its points p has moved to matrix p + shift."""
    grid = identity_grid(SIDE, SIDE, dtype=torch.float64).permute(1, 2, 0)
    return waves((grid - shift) @ torch.linalg.inv(matrix).T)[None]


def places(count=60):
    return 1.4 * torch.rand(1, count, 2, generator=some(), dtype=torch.float64) - 0.7


STILL = torch.eye(2, dtype=torch.float64)


@pytest.mark.parametrize("pixels", [(0.0, 0.0), (0.3, -0.2), (1.7, 2.4), (-6.0, 4.5)])
def test_a_shift_is_found_to_a_twentieth_of_a_pixel(pixels):
    shift = torch.tensor(pixels, dtype=torch.float64) * 2 / SIDE
    points = places()
    moved, reliable = track(seen(STILL, 0 * shift), seen(STILL, shift), points)
    error = (moved - points - shift).norm(dim=-1) * SIDE / 2
    assert error.max() < 0.05 and reliable.all()


@pytest.mark.parametrize("turn, stretch, shear", [(0.03, 1.0, 0.0), (0.0, 1.03, 0.0), (-0.02, 0.98, 0.02)])
def test_an_affine_motion_is_followed_at_its_points(turn, stretch, shear):
    angle = torch.tensor(turn, dtype=torch.float64)
    matrix = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2) * stretch
    matrix = matrix @ torch.tensor([[1, shear], [0, 1]], dtype=torch.float64)
    shift = torch.tensor([0.02, -0.03], dtype=torch.float64)
    points = places()
    moved = lucas_kanade(seen(STILL, 0 * shift), seen(matrix, shift), points)
    truth = points @ matrix.T + shift
    error, moving = (moved - truth).norm(dim=-1) * SIDE / 2, (truth - points).norm(dim=-1) * SIDE / 2
    # A patch that moves as one is right in its middle to first order only.
    assert error.mean() < 0.1 and error.max() < 0.4 and moving.mean() > 1.5


def test_it_is_least_squares_as_in_the_textbook():
    """One step on one level in loops: the normal equations of the linearised difference."""
    start, end = torch.rand(2, 1, 3, 20, 24, generator=some(), dtype=torch.float64)
    point = torch.tensor([[[0.13, -0.21]]], dtype=torch.float64)

    def read(image, x, y):
        position = from_pixels(torch.tensor([[[[x, y]]]], dtype=torch.float64), (20, 24))
        return F.grid_sample(image, position, align_corners=False)[0, :, 0, 0]

    x0, y0 = to_pixels(point, (20, 24))[0, 0].tolist()
    rows, differences = [], []
    for i in range(-2, 3):
        for j in range(-2, 3):
            x, y = x0 + j, y0 + i
            right = (read(start, x + 1, y) - read(start, x - 1, y)) / 2
            down = (read(start, x, y + 1) - read(start, x, y - 1)) / 2
            rows.append(torch.stack([right, down], dim=1))
            differences.append(read(start, x, y) - read(end, x, y))
    step = torch.linalg.lstsq(torch.cat(rows), torch.cat(differences)[:, None]).solution[:, 0]
    moved = lucas_kanade(start, end, point, radius=2, levels=1, iterations=1, damping=0.0)
    assert torch.allclose(to_pixels(moved, (20, 24))[0, 0] - torch.tensor([x0, y0]), step, atol=1e-8)


def test_patches_are_pixels_around_points():
    image = torch.rand(1, 2, 9, 12, generator=some())
    points = from_pixels(torch.tensor([[[4.0, 3.0], [8.0, 5.0]]]), (9, 12))
    cut = patches(image, points, 2)
    assert torch.allclose(cut[0, :, 0], image[0, :, 1:6, 2:7], atol=1e-5)
    assert torch.allclose(cut[0, :, 1], image[0, :, 3:8, 6:11], atol=1e-5)


def test_its_gradients_are_those_of_finite_differences():
    grid = identity_grid(24, 24, dtype=torch.float64).permute(1, 2, 0)
    start = waves(grid)[None].requires_grad_()
    end = waves(grid - torch.tensor([0.05, -0.03], dtype=torch.float64))[None].requires_grad_()
    points = torch.tensor([[[0.11, -0.23]]], dtype=torch.float64, requires_grad=True)
    options = dict(radius=2, levels=2, iterations=2)
    assert torch.autograd.gradcheck(
        lambda *inputs: lucas_kanade(*inputs, **options), (start, end, points), fast_mode=True, atol=1e-4
    )


def test_without_texture_a_point_stays_and_at_a_cut_it_is_not_relied_on():
    flat = torch.full((1, 3, 64, 64), 0.4)
    points = torch.rand(1, 10, 2, generator=some()) - 0.5
    assert torch.allclose(lucas_kanade(flat, flat + 0.1, points), points, atol=1e-4)
    # Another picture altogether: what Lucas-Kanade makes of it rarely finds its way back.
    start, end = torch.rand(2, 1, 3, 64, 64, generator=some(1))
    _, reliable = track(start, end, torch.rand(1, 200, 2, generator=some(2)) - 0.5)
    assert reliable.float().mean() < 0.3


def test_points_outside_are_not_relied_on():
    frame = seen(STILL, torch.zeros(2, dtype=torch.float64))
    points = torch.tensor([[[0.2, 0.1], [1.2, 0.1], [0.1, -1.05]]], dtype=torch.float64)
    assert track(frame, frame, points)[1].tolist() == [[True, False, False]]


def test_frames_that_are_too_small_are_named():
    start, end = torch.rand(2, 1, 3, 40, 64)
    with pytest.raises(ValueError, match="40 x 64 pixels: expected sides of at least 44 for 3 levels"):
        lucas_kanade(start, end, torch.zeros(1, 1, 2))


# ----------------------------------------------------------------------------------------------- registration loss


def test_the_registration_loss_is_zero_for_points_that_go_with_the_picture():
    shift = torch.tensor([2.2, -1.4], dtype=torch.float64) * 2 / SIDE
    start, end, points = seen(STILL, 0 * shift), seen(STILL, shift), places()
    right, share = registration_loss(start, end, points, points + shift)
    assert right * SIDE / 2 < 0.05 and share > 0.95
    off = torch.tensor([0.0, 3.0], dtype=torch.float64) * 2 / SIDE
    wrong, _ = registration_loss(start, end, points, points + shift + off)
    assert wrong * SIDE / 2 == pytest.approx(3, abs=0.05)
    # Nothing moved, and one frame's points jitter: that is what it is there to see.
    jitter = 2 / SIDE * torch.randn(points.shape, generator=some(), dtype=torch.float64)
    assert registration_loss(start, start, points, points + jitter)[0] * SIDE / 2 > 0.8


def test_the_registration_loss_brings_both_detections_together():
    shift = torch.tensor([1.2, 0.7], dtype=torch.float64) * 2 / SIDE
    start, end, truth = seen(STILL, 0 * shift), seen(STILL, shift), places(20)
    found = [(truth + 0.02).requires_grad_(), (truth + shift - 0.02).requires_grad_()]
    optimizer, losses = torch.optim.SGD(found, lr=0.1), []
    for _ in range(20):
        loss, _ = registration_loss(start, end, *found)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    # Each came about half the way: the loss says that they should agree, not which of them is right.
    assert all((x.grad.abs().sum() > 0) for x in found)


# ------------------------------------------------------------------------------------------------- changes to faces


def test_landmarks_move_with_their_picture():
    """A blob at each landmark, in the changed picture, is where `move_points` says."""
    count = 6
    points = 0.8 * torch.rand(count, 74, 2, generator=some()) - 0.4
    chosen = random_places(count, some(3))
    moved = move_points(points, chosen)
    for k in (0, 30, 36, 68):
        blob = gaussian_heatmaps(points[:, k : k + 1], (128, 128), 0.001).expand(-1, 3, -1, -1)
        shown = move_picture(blob, chosen)[:, :1]
        centre = soft_argmax(shown.clamp_min(1e-12).log())[0][:, 0]
        mirrored = torch.linalg.det(chosen[..., :2]) < 0
        name = torch.where(mirrored, MIRRORED.index(k), k)
        there = (moved[torch.arange(count), name] - centre).norm(dim=-1)
        assert (there[centre.abs().amax(1) < 0.8] < 0.01).all()
    assert mirrored.any() and not mirrored.all()


def test_the_mirror_swaps_right_and_left_of_a_symmetric_face():
    assert sorted(MIRRORED) == list(range(74)) and all(MIRRORED[MIRRORED[k]] == k for k in range(74))
    face = synthetic.Faces(synthetic.sample_identities(8, 0), synthetic.neutral_states(8))
    points = synthetic.landmarks(face)
    flip = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]]).expand(8, -1, -1)
    mirrored = move_points(points, flip)
    middle = synthetic.landmarks(face)[:, 27:31, :1].mean(1, keepdim=True)
    # Faces are a little asymmetric, and not centred; but no landmark is a quarter of the eyes' distance off.
    same = torch.cat([mirrored[..., :1] + 2 * middle, mirrored[..., 1:]], dim=-1)
    eyes = (points[:, 36] - points[:, 45]).norm(dim=-1).view(-1, 1)
    assert ((same - points).norm(dim=-1) / eyes).max() < 0.15
    assert ((same[:, list(MIRRORED)] - points).norm(dim=-1) / eyes).max() > 1


def test_close_ups_show_both_eyes_as_right_ones():
    faces = synthetic.Faces(synthetic.sample_identities(4, 0), synthetic.neutral_states(4))
    points = synthetic.landmarks(faces)
    places = eye_places(points)
    right, left = move_points(points.repeat(2, 1, 1), places)[:, EYE].chunk(2)
    for eye in (right, left):
        assert (eye[:, :6].mean(1).abs() < 1e-5).all()  # its outline lies around the middle ...
        assert (eye[:, 0, 0] < -0.5).all() and (eye[:, 3, 0] > 0.5).all()  # ... the outer corner on the same side
        assert eye.abs().max() < 0.8
    assert ((right - left).norm(dim=-1) < 0.3).all()  # faces are nearly symmetric
    # By hand: the first face's left eye, mirrored, 1.6 times the wider eye in all.
    one = points[0]
    half = 0.8 * max((one[36] - one[39]).norm(), (one[42] - one[45]).norm())
    x, y = one[42:48].mean(0)
    assert torch.allclose(places[4], torch.stack([-half, 0 * x, x, 0 * x, half, y]).view(2, 3), atol=1e-6)
    # Points that all lie in one place, as before any training, give a small picture of that place, not of nothing.
    assert torch.isfinite(eye_places(torch.zeros(1, 74, 2))).all()
    assert (eye_places(torch.zeros(1, 74, 2))[:, 1, 1] > 0.01).all()


def test_a_close_up_has_the_pixels_of_its_place():
    ramp = identity_grid(64, 64)[None].expand(2, -1, -1, -1)  # a picture that says where one is
    places = torch.tensor([[[0.25, 0.0, 0.3], [0.0, 0.25, -0.2]], [[-0.25, 0.0, -0.3], [0.0, 0.25, 0.1]]])
    shown = move_picture(torch.cat([ramp, ramp[:, :1]], dim=1), places, CLOSE_UP)
    assert shown.shape == (2, 3, CLOSE_UP, CLOSE_UP)
    grid = identity_grid(CLOSE_UP, CLOSE_UP).flatten(1)
    wanted = (places[..., :2] @ grid + places[..., 2:]).unflatten(2, (CLOSE_UP, CLOSE_UP))
    assert torch.allclose(shown[:, :2], wanted, atol=1e-5)


def test_a_third_of_the_pictures_is_softened():
    images = torch.arange(16.0).remainder(2).expand(300, 3, 16, 16)  # stripes, which blur to grey
    soft = soften(images, some(0))
    grey = (soft - 0.5).abs().amax((1, 2, 3)) < 1e-6
    assert 0.25 < grey.float().mean() < 0.41
    assert torch.equal(soft[~grey], images[~grey])


def test_spoilt_pictures_are_still_pictures_and_a_seed_means_the_same():
    images = torch.rand(32, 3, 32, 32, generator=some())
    once, again, other = spoil(images, some(1)), spoil(images, some(1)), spoil(images, some(2))
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert once.min() >= 0 and once.max() <= 1
    untouched = [(a == b).all().item() for a, b in zip(once, images)]
    assert 0.15 < sum(untouched) / 32 < 0.6  # about a third


# -------------------------------------------------------------------------------------------------------- detector


def test_the_detector_learns_a_face_by_heart():
    torch.manual_seed(0)
    detector = LandmarkDetector(SMALL)
    faces = synthetic.Faces.sample(2, 0)
    images, points = synthetic.render(faces, 64), synthetic.landmarks(faces)
    inside = torch.ones(2, 74, dtype=torch.bool)
    optimizer = torch.optim.Adam(detector.parameters(), lr=5e-3)
    for _ in range(80):
        stages = detector.stages(images)
        loss = sum(
            heatmap_loss(logits, points, inside) + 20 * point_loss(soft_argmax(logits)[0], points, inside)
            for logits in stages
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert len(stages) == 2
    assert (soft_argmax(stages[-1])[0] - points).norm(dim=-1).mean() * 32 < 1.5


def test_the_second_look_puts_the_eyes_where_its_network_sees_them():
    """What is exact in close-ups is exact in the picture, and nothing else moves: with a network that knows."""
    faces = synthetic.Faces.sample(3, 4)
    truth = synthetic.landmarks(faces)
    guess = truth + 0.01 * torch.randn(truth.shape, generator=some())
    seen = move_points(truth.repeat(2, 1, 1), eye_places(guess))[:, EYE]

    class Knows(torch.nn.Module):
        def forward(self, close_ups):
            assert close_ups.shape == (6, 3, CLOSE_UP, CLOSE_UP)
            return [gaussian_heatmaps(seen, (16, 16), (2 / 16) ** 2).clamp_min(1e-30).log()]

    detector = LandmarkDetector(SMALL).eval()
    detector.eye = Knows()
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as in training; positions must stay out of it
        found, logits, places = detector.look_closer(synthetic.render(faces, 128), guess)
    assert (found - truth)[:, EYES].norm(dim=-1).max() * 64 < 0.05  # pixels
    others = [k for k in range(74) if k not in EYES]
    assert torch.equal(found[:, others], guess[:, others]) and len(others) == 74 - 18
    assert torch.equal(places, eye_places(guess)) and logits.shape == (6, 9, 16, 16)


def test_what_comes_out_of_it():
    detector = LandmarkDetector(SMALL).eval()
    points, heatmaps = detector(torch.rand(2, 3, 64, 96))
    assert points.shape == (2, 74, 2) and heatmaps.shape == (2, 74, 16, 24)
    assert torch.allclose(heatmaps.sum((2, 3)), torch.ones(2, 74), atol=1e-4) and points.abs().max() < 1
    with pytest.raises(ValueError, match="picture of 64 x 40 pixels: expected sides that are multiples of 16"):
        detector(torch.rand(1, 3, 64, 40))


def test_it_is_saved_with_its_sizes_and_nothing_else_is_loaded(tmp_path):
    torch.manual_seed(1)
    detector = LandmarkDetector(SMALL).eval()
    detector.save(tmp_path / "a.safetensors")
    loaded = LandmarkDetector.load(tmp_path / "a.safetensors")
    image = torch.rand(1, 3, 64, 64)
    assert loaded.config == SMALL and not loaded.training
    assert torch.equal(loaded(image)[0], detector(image)[0])
    save_file({"a": torch.zeros(1)}, tmp_path / "b.safetensors")
    AnimationModel.from_preset("tiny", system="fomm").save(tmp_path / "c.safetensors")
    old = {name.removeprefix("face."): value for name, value in detector.state_dict().items()}
    save_file(old, tmp_path / "d.safetensors", safe_open(tmp_path / "a.safetensors", "pt").metadata())
    wrong = {
        "d.safetensors": "its weights don't fit LandmarkDetector as this version builds it",
        "b.safetensors": "not weights of minimodel",
        "c.safetensors": "holds weights of kind 'animation', expected 'landmarks'",
        "missing": "no such file, and shipped are only",
    }
    for name, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            LandmarkDetector.load(tmp_path / name)
    with pytest.raises(ValueError, match="holds weights of kind 'landmarks', expected 'animation'"):
        AnimationModel.load(tmp_path / "a.safetensors")


@torch.no_grad()
def test_the_shipped_detector_finds_new_faces_and_holds_stiller_than_the_maximum():
    detector = LandmarkDetector.load()
    scores = landmark_scores(detector)  # pixels of 128, of which a face spans about 60
    assert scores["all (px)"] < 1.0 and scores["pupils (px)"] < 0.7
    film = synthetic.Faces(synthetic.sample_identities(1, 9), synthetic.animate_states(16, 4))
    found, heatmaps = detector(synthetic.render(film, 128))
    assert metrics.sms(found) < 0.6 * metrics.sms(argmax(heatmaps))
    assert confidence(heatmaps, found).min() > 0.4 > confidence(*detector(torch.rand(2, 3, 128, 128))[::-1]).max()
