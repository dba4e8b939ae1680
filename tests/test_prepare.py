import numpy as np
import pytest
import torch
from skimage import data

from minimodel.data.video import Clip, VideoWriter
from minimodel.prepare import PrepareConfig, crop, prepare


def face_film(path, count=30, fps=25, shift=0):
    """A real face (NASA's portrait that scikit-image brings along) that drifts through a wider picture."""
    face = torch.from_numpy(data.astronaut()[:256, 100:356].copy()).permute(2, 0, 1) / 255
    with VideoWriter(path, fps=fps) as writer:
        for number in range(count):
            frame = torch.full((3, 288, 384), 0.5)
            left = 40 + shift * number
            frame[:, 16:272, left : left + 256] = face
            writer.write(frame)
    return path


def test_the_face_is_found_and_the_box_held(tmp_path):
    face_film(tmp_path / "a.mp4")
    (made,) = prepare(PrepareConfig((tmp_path / "a.mp4",), tmp_path / "out", size=64))
    clip = Clip(made)
    assert len(clip) == 30 and clip.fps == 25
    assert max(b - a for a, b in zip(clip.keys, clip.keys[1:])) <= 8  # quick to read at random
    frame = dict(clip.decode(12))[12]
    # The face fills the middle: skin there, and the middle is brighter and redder than the grey around the picture.
    middle = frame[:, 20:44, 20:44].float().mean((1, 2))
    assert middle[0] > middle[2] + 20
    frames = torch.stack([f for _, f in clip.decode()]).float()
    assert frames.std(0).mean() < 3  # a held box: a face that doesn't move stays where it is


def test_a_box_by_hand(tmp_path):
    face_film(tmp_path / "a.mp4", count=26)
    (made,) = prepare(PrepareConfig((tmp_path,), tmp_path / "out", box=(40, 16, 256), size=128))
    face = torch.from_numpy(data.astronaut()[:256, 100:356].copy()).permute(2, 0, 1).float()
    small = torch.nn.functional.interpolate(face[None], (128, 128), mode="area")[0]
    first = next(Clip(made).decode())[1].float()
    assert first.shape == (3, 128, 128) and (first - small).abs().mean() < 8


@pytest.mark.parametrize("fps, expected", [(50, 15), (25, 30), (10, 75)])
def test_the_frame_rate_becomes_the_wanted_one(tmp_path, fps, expected):
    face_film(tmp_path / "a.mp4", fps=fps)
    made = prepare(PrepareConfig((tmp_path / "a.mp4",), tmp_path / "out", box=(0, 0, 200), size=32, seconds=60.0))
    assert [len(Clip(path)) for path in made] == [expected]


def test_long_videos_become_several_clips_and_a_short_rest_is_dropped(tmp_path):
    face_film(tmp_path / "a.mp4", count=60)
    made = prepare(PrepareConfig((tmp_path / "a.mp4",), tmp_path / "out", box=(0, 0, 200), size=32, seconds=1.0))
    assert [len(Clip(path)) for path in made] == [25, 25]


def test_without_a_face_the_piece_is_skipped_and_named(tmp_path, capsys):
    with VideoWriter(tmp_path / "a.mp4") as writer:
        for _ in range(30):
            writer.write(torch.rand(3, 64, 64))
    assert prepare(PrepareConfig((tmp_path / "a.mp4",), tmp_path / "out")) == []
    assert "no face found in piece 0" in capsys.readouterr().out


def test_a_crop_beyond_the_picture_repeats_its_edge():
    frame = torch.arange(8, dtype=torch.uint8).expand(3, 8, 8)
    made = (crop(frame, (-4, 0, 8), 8) * 255).round()
    assert made[0, 0].tolist() == [0, 0, 0, 0, 0, 1, 2, 3]


def test_wrong_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        prepare(PrepareConfig((tmp_path / "missing.mp4",), tmp_path / "out"))
    with pytest.raises(ValueError, match="holds no videos"):
        prepare(PrepareConfig((tmp_path,), tmp_path / "out"))
    np.save(tmp_path / "x.npy", np.zeros(1))
    with pytest.raises(ValueError, match="not a video"):
        prepare(PrepareConfig((tmp_path / "x.npy",), tmp_path / "out"))
