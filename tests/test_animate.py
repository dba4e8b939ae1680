import av
import imageio.v3 as iio
import numpy as np
import pytest
import torch

from minimodel.animate import AnimateConfig, animate, render_frames
from minimodel.data.video import Clip
from minimodel.model import AnimationModel
from tests.test_video import film, with_sound


@pytest.fixture
def setup(tmp_path):
    torch.manual_seed(0)
    AnimationModel.from_preset("tiny").save(tmp_path / "model.safetensors")
    iio.imwrite(tmp_path / "photo.png", np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8))
    film(tmp_path / "driving.mp4", count=11, size=48)

    def config(**options):
        paths = dict(source="photo.png", driving="driving.mp4", output="out.mp4", weights="model.safetensors")
        paths |= {name: options.pop(name) for name in list(options) if name in paths}
        paths = {name: tmp_path / value for name, value in paths.items()}
        return AnimateConfig(**paths | {"weights": str(paths["weights"])}, **options)

    return config


def test_the_film_has_every_frame_and_says_that_it_is_synthetic(setup, tmp_path):
    clip = Clip(animate(setup()))
    assert len(clip) == 11 and clip.fps == 25
    assert next(clip.decode())[1].shape == (3, 256, 256)  # enlarged from 64
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert "Synthetic media" in container.metadata["comment"]


def test_side_by_side_gif_and_other_sizes(setup):
    clip = Clip(animate(setup(output="out.gif", side_by_side=True, size=96)))
    assert len(clip) == 11 and next(clip.decode())[1].shape == (3, 288, 3 * 288)


def test_sound_and_frame_rate_of_the_video_are_kept(setup, tmp_path):
    with_sound(tmp_path / "sound.mp4")
    assert Clip(animate(setup(driving="sound.mp4"))).fps == 20
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio


def test_one_frame_is_enough_to_drive(setup, tmp_path):
    film(tmp_path / "one.mp4", count=1)
    assert len(Clip(animate(setup(driving="one.mp4")))) == 1


def test_frames_do_not_depend_on_how_they_are_batched():
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny").eval()
    source, frames = torch.rand(1, 3, 64, 64), list(torch.rand(5, 3, 64, 64))
    one, all_at_once = ([made for _, made in render_frames(model, source, frames, batch=b)] for b in (1, 5))
    assert torch.allclose(torch.stack(one), torch.stack(all_at_once), atol=1e-5)


def test_the_background_of_the_driving_film_is_left_where_it_is():
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny", system="tpsm").eval()
    source, frames = torch.rand(1, 3, 64, 64), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = [made for _, made in render_frames(model, source, frames)]
        model.prior.background.network.head.bias += 0.3  # a predictor that sees motion wherever it looks
        after = [made for _, made in render_frames(model, source, frames)]
    assert all(torch.equal(*both) for both in zip(before, after))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(source="nobody.png"), "nobody.png: no such file"),
        (dict(source="model.safetensors"), "model.safetensors: not a picture"),
        (dict(source="driving.mp4"), None),  # of a film the first frame
        (dict(driving="photo.png"), None),  # a picture is a film of one frame
        (dict(driving="missing.mp4"), "missing.mp4: no such file"),
        (dict(weights="photo.png"), "not a whole safetensors file"),
        (dict(size=100), "multiples of 16; nearest heights are 96 or 112"),
        (dict(output="out.avi"), "must end in .mp4 or .gif"),
        (dict(output="photo.png/out.mp4"), "can't be written"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_left_behind(setup, tmp_path, options, message):
    before = {path.name for path in tmp_path.iterdir()}
    if message is None:
        animate(setup(**options))
        return
    with pytest.raises(ValueError, match=message) as caught:
        animate(setup(**options))
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == before
