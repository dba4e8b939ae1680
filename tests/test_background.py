from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minimodel.background import PACE, REACH, TEMPERATURE, BackgroundPredictor, gauss_newton, shift
from minimodel.data import synthetic
from minimodel.model import AnimationModel
from minimodel.tps import background_flow
from minimodel.warping import warp

STILL = torch.eye(2, 3)
SIZES = dict(base=4, levels=2, maximum=8, norm="batch")


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def moved(frame, down, right):
    """The frame read ``down`` and ``right`` pixels further, with noise where it ends."""
    height, width = frame.shape[-2:]
    larger = F.pad(frame, (width, width, height, height))
    larger = torch.where(
        F.pad(torch.ones_like(frame), (width, width, height, height)) > 0, larger, noise(*larger.shape)
    )
    return larger[..., height + down : 2 * height + down, width + right : 2 * width + right]


def test_the_shift_equals_a_loop_over_all_shifts():
    height, width = 10, 14
    source, driving = noise(2, 2, 3, height, width, dtype=torch.float64)
    weights = noise(2, 2, 1, height, width, seed=1, dtype=torch.float64)
    found = shift(source, driving, *weights)
    for pair in range(2):
        places, scores = [], []
        for down in range(-int(REACH * height / 2), int(REACH * height / 2) + 1):
            for right in range(-int(REACH * width / 2), int(REACH * width / 2) + 1):
                agree = overlap = 0.0
                for y in range(max(0, -down), min(height, height - down)):
                    for x in range(max(0, -right), min(width, width - right)):
                        both = weights[0, pair, 0, y + down, x + right] * weights[1, pair, 0, y, x]
                        apart = source[pair, :, y + down, x + right] - driving[pair, :, y, x]
                        agree, overlap = agree + both * (PACE * apart).cos().mean(), overlap + both
                places.append((2 * right / width, 2 * down / height))
                scores.append(agree / (overlap + 0.01 * height * width))
        likely = torch.softmax(torch.stack(scores) / TEMPERATURE, dim=0)
        assert torch.allclose(found[pair], likely @ torch.tensor(places, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("down, right", [(0, 0), (3, -7), (-6, 2)])
def test_a_shifted_picture_is_found(down, right):
    source = noise(1, 3, 40, 48)
    everywhere = torch.ones(1, 1, 40, 48)
    wanted = torch.tensor([[2 * right / 48, 2 * down / 40]])
    assert torch.allclose(shift(source, moved(source, down, right), everywhere, everywhere), wanted, atol=1e-4)


def test_what_moves_otherwise_cannot_outvote_the_background():
    # More than half of the picture belongs to somebody who stands still.
    wall, person = noise(1, 3, 48, 48), noise(1, 3, 48, 48, seed=5)
    inside = torch.zeros(1, 1, 48, 48)
    inside[..., 8:, 6:42] = 1
    source, driving = (torch.where(inside > 0, person, frame) for frame in (wall, moved(wall, 0, 5)))
    wanted = torch.tensor([[10 / 48, 0.0]])
    everywhere = torch.ones_like(inside)
    assert torch.allclose(shift(source, driving, 1 - inside, 1 - inside), wanted, atol=1e-3)
    assert shift(source, driving, everywhere, everywhere).abs().max() < 0.02  # they have to be told apart


def test_least_squares_add_turn_and_zoom():
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 64)] * 2, indexing="ij")
    waves = [(5, 2), (-3, 6), (1, -4)]
    source = torch.stack([0.5 + 0.3 * torch.sin(a * x + b * y) for a, b in waves])[None]
    true = torch.tensor([[[1.03, -0.02, 0.03], [0.02, 1.03, -0.02]]])
    driving, everywhere = warp(source, background_flow(true, (64, 64))), torch.ones(1, 1, 64, 64)
    matrix = STILL[None]
    for _ in range(20):
        matrix = gauss_newton(matrix, source, driving, everywhere, everywhere)
    assert torch.allclose(matrix, true, atol=3e-3)


def test_a_wall_of_one_colour_does_not_move():
    wall, everywhere = torch.full((1, 3, 32, 32), 0.4), torch.ones(1, 1, 32, 32)
    assert torch.allclose(gauss_newton(STILL[None], wall, wall, everywhere, everywhere), STILL[None], atol=1e-6)
    assert shift(wall, wall, everywhere, everywhere).abs().max() < 1e-3  # no shift is better than another


def test_the_predictor_begins_without_an_opinion_and_says_the_opposite_of_the_opposite():
    torch.manual_seed(0)
    predictor = BackgroundPredictor(**SIZES)
    source = noise(2, 3, 48, 48)
    driving = moved(source, 2, -4)
    assert not predictor.logits(source).any()
    there, back = predictor(source, driving), predictor(driving, source)
    assert torch.allclose(there[..., 2], torch.tensor([[-8 / 48, 4 / 48]]).expand(2, 2), atol=0.01)
    assert torch.allclose(back[..., 2], -there[..., 2], atol=0.01)


@torch.no_grad()
def test_large_frames_are_compared_small_and_any_shape_works():
    predictor = BackgroundPredictor(**SIZES).eval()
    small = F.interpolate(noise(1, 3, 16, 16), (64, 64), mode="bilinear", align_corners=False)
    large = F.interpolate(small, (256, 256), mode="nearest")
    assert torch.allclose(predictor(small, small.flip(3)), predictor(large, large.flip(3)), atol=1e-5)
    for height, width in ((64, 96), (20, 36), (288, 100)):
        assert predictor(noise(1, 3, height, width), noise(1, 3, height, width, seed=2)).shape == (1, 2, 3)


def test_pans_of_the_embedded_faces_are_found_where_walls_are_known():
    generator = torch.Generator().manual_seed(3)
    before, after = synthetic.sample_pairs(24, generator)
    way = F.normalize(torch.randn(24, 2, generator=generator), dim=1) * 0.15
    after = synthetic.Faces(after.identity, replace(after.state, pan=before.state.pan + way))
    frames = [synthetic.render(faces, 64) for faces in (before, after)]
    walls = [
        (synthetic.parsing(faces, 64) == synthetic.PARTS.index("background"))[:, None] for faces in (before, after)
    ]
    found = shift(*frames, *(wall.float() for wall in walls))
    error = (found + way).norm(dim=1) * 32  # the flow leads back
    assert error.mean() < 0.5 and way.norm(dim=1).mean() * 32 > 4.7


@torch.no_grad()
def test_shipped_splines_see_where_the_camera_pans():
    generator = torch.Generator().manual_seed(3)
    before, after = synthetic.sample_pairs(48, generator)
    way = F.normalize(torch.randn(48, 2, generator=generator), dim=1) * (
        0.13 + 0.1 * torch.rand(48, 1, generator=generator)
    )
    after = replace(after, state=replace(after.state, pan=before.state.pan + way))
    model = AnimationModel.load("tiny-tps")
    frames = [synthetic.render(faces, 64) for faces in (before, after)]

    def left(predictor):  # the flow leads back
        return (background_flow(predictor(*frames), (64, 64)) + way[..., None, None]).norm(dim=1).mean()

    assert left(model.prior.background) < way.norm(dim=1).mean() / 20 and way.norm(dim=1).min() * 32 > 4
    assert left(model.prior.background) < left(BackgroundPredictor(**SIZES).eval()) / 4  # learnt, not only looked up
