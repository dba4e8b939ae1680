from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minimodel.composition import compose, enlarge, gates, paste
from minimodel.data import synthetic
from minimodel.data.framing import crop
from minimodel.model import AnimationModel
from minimodel.warping import resize_flow

SURELY = 20.0  # an occlusion logit: open, or with a minus shut


@pytest.fixture(scope="module")
def people():
    """Photos, frames at 256 pixels and the true flow and visibility at 64 and 256. Under ambient light moving a photo
    by the true flow is exact."""
    source, driving = (
        synthetic.Faces(faces.identity, replace(faces.state, ambient=torch.ones(2)))
        for faces in synthetic.sample_pairs(2, seed=5)
    )
    flows = {size: synthetic.flow_between(source, driving, size) for size in (64, 256)}
    return synthetic.render(source, 256), synthetic.render(driving, 256), flows


def test_without_motion_the_photo_comes_back():
    photo, painted = torch.rand(1, 3, 96, 80), torch.rand(2, 3, 16, 16)
    made = compose(photo, torch.zeros(2, 2, 16, 16), torch.full((2, 1, 16, 16), SURELY), painted)
    assert (made - photo).abs().max() < 1e-5


def test_the_true_flow_at_64_pixels_moves_a_photo_of_256(people):
    photo, frame, flows = people
    visible = flows[256][1]

    def error(made):
        return (((made - frame).abs().mean(1, keepdim=True) * visible).sum() / visible.sum()).item()

    made = {}
    for size, (flow, seen) in flows.items():
        made[size] = compose(photo, flow, SURELY * (2 * seen - 1), resize_flow(frame, (64, 64)))
    enlarged = error(resize_flow(resize_flow(frame, (64, 64)), (256, 256)))
    print({size: error(frames) for size, frames in made.items()}, "enlarged", enlarged, "copy", error(photo))
    assert error(made[64]) < 0.3 * error(photo)
    assert error(made[64]) < 0.6 * enlarged  # of the frame itself, which no painter at 64 pixels beats
    assert error(made[64]) < 2.2 * error(made[256])  # what the small flow has lost: measured 1.9


def test_what_does_not_move_does_not_change(people):
    photo, _, flows = people
    flow, seen = flows[64]
    made = compose(photo, flow, SURELY * (2 * seen - 1), torch.rand(2, 3, 64, 64))
    moves = (flow != 0).any(1, keepdim=True) | (seen < 1)
    still = resize_flow(F.max_pool2d(moves.float(), 3, 1, 1), (256, 256)) == 0
    assert still.float().mean() > 0.1
    assert ((made - photo).abs() * still).max() < 1e-5


def test_shut_gates_show_the_painted_picture_and_nothing_lies_beyond_the_two():
    generator = torch.Generator().manual_seed(0)
    photo, painted = (torch.rand(2, 3, n, n, generator=generator) for n in (64, 16))
    flow = 0.1 * torch.randn(2, 2, 16, 16, generator=generator)
    shut, moved, between = (
        compose(photo, flow, logits, painted)
        for logits in (
            torch.full((2, 1, 16, 16), -SURELY),
            torch.full((2, 1, 16, 16), SURELY),
            torch.randn(2, 1, 16, 16, generator=generator),
        )
    )
    assert torch.allclose(shut, resize_flow(painted, (64, 64)))
    assert (between <= torch.maximum(shut, moved) + 1e-6).all() and (between >= torch.minimum(shut, moved) - 1e-6).all()
    assert (between - shut).abs().mean() > 0.02 and (between - moved).abs().mean() > 0.02


def test_gates_end_before_a_sigmoid_does():
    made = gates(torch.tensor([-4.0, -3.0, 0.0, 3.0, 4.0]).view(1, 1, 1, 5)).flatten()
    assert made.tolist() == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0])
    assert (gates(torch.linspace(-2, 2, 9).view(1, 1, 1, 9)).diff() > 0).all()


@pytest.mark.parametrize("blend", [True, False])
def test_a_model_s_frames_are_composed_where_it_blends_and_enlarged_where_not(blend):
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny", system="fomm", blend=blend).eval()
    photo, film = torch.rand(1, 3, 96, 96), torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        source, motion = model.encode_source(resize_flow(photo, (64, 64))), model.encode_driving(film)
        output = model.render(source, motion)
    assert output.blended == blend
    if blend:
        expected = compose(photo, output.flows[-1], output.occlusions[-1], output.painted)
    else:
        expected = resize_flow(output.image, (96, 96))
    assert torch.allclose(torch.stack([enlarge(output, photo, index) for index in range(3)]), expected, atol=1e-6)
    frames = torch.stack(list(model.render_film(source, motion, photo=photo, batch=2)))
    assert torch.allclose(frames, expected, atol=1e-5)


@pytest.mark.parametrize("box", [(10, 6, 40), (-8, -5, 40), (30, 20, 60), (-20, -30, 150)])
def test_pasting_what_was_cut_out_gives_the_photo_back(box):
    photo = torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(1))
    made = paste(crop(photo, box, box[2]), photo, box)
    assert (made - photo).abs().max() < 1 / 255


def test_the_border_is_soft_inside_the_photo_and_absent_at_its_edges():
    photo, white = torch.zeros(3, 60, 80), torch.ones(3, 20, 20)
    made = paste(white, photo, (-10, 10, 40))[0]  # columns 0 to 29, rows 10 to 49
    assert made[:10].max() == 0 and made[50:].max() == 0 and made[:, 30:].max() == 0
    assert made[30, 0] == 1  # the square reaches beyond the photo's left edge
    across, down = made[30, :30], made[10:50, 5]
    assert across.diff().max() <= 0 and across[-1] < 0.1
    assert down[0] < 0.1 and down[-1] < 0.1 and down[20] == 1
    assert max(across.diff().abs().max(), down.diff().abs().max()) < 0.4
    # A frame as large as the photo leaves nothing of it.
    assert torch.equal(paste(torch.ones(3, 60, 60), torch.zeros(3, 60, 60), (0, 0, 60)), torch.ones(3, 60, 60))


def test_a_square_beside_the_photo_is_named():
    with pytest.raises(ValueError, match="the square 90 0 20 shows nothing of 80 x 60 pixels"):
        paste(torch.zeros(3, 8, 8), torch.zeros(3, 60, 80), (90, 0, 20))
