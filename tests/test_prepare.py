from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from minimodel.commands.find_landmarks import FindLandmarksConfig, find_film_landmarks
from minimodel.commands.prepare import PrepareConfig, prepare
from minimodel.commands.synthesize import SynthesizeConfig, synthesize
from minimodel.data import synthetic
from minimodel.data.framing import USUAL_CENTRE, USUAL_SPREAD, crop, find_landmarks, settle_box
from minimodel.data.video import Clip, read_image
from minimodel.data.writer import VideoWriter
from minimodel.keypoints import gaussian_heatmaps, soft_argmax
from minimodel.landmarks import LandmarkDetector
from minimodel.warping import warp

SAMPLES = Path(__file__).parents[1] / "data_samples"


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


def test_without_a_face_nothing_is_written_and_that_is_an_error(tmp_path, capsys):
    with VideoWriter(tmp_path / "a.mp4") as writer:
        for _ in range(30):
            writer.write(torch.rand(3, 64, 64))
    for strict, message in ((False, "no clip was written: .*no face found in piece 0"), (True, "no face found in pi")):
        with pytest.raises(ValueError, match=message):
            prepare(PrepareConfig((tmp_path / "a.mp4",), tmp_path / "out", strict=strict))
        assert not list((tmp_path / "out").iterdir())
    assert "no face found in piece 0; --box crops by hand; skipped" in capsys.readouterr().out


def test_a_crop_beyond_the_picture_repeats_its_edge():
    frame = torch.arange(8, dtype=torch.uint8).expand(3, 8, 8)
    made = (crop(frame, (-4, 0, 8), 8) * 255).round()
    assert made[0, 0].tolist() == [0, 0, 0, 0, 0, 1, 2, 3]


def test_wrong_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        prepare(PrepareConfig((tmp_path / "missing.mp4",), tmp_path / "out"))
    with pytest.raises(ValueError, match="holds no clips"):
        prepare(PrepareConfig((tmp_path,), tmp_path / "out"))
    np.save(tmp_path / "x.npy", np.zeros(1))
    with pytest.raises(ValueError, match="not a video"):
        prepare(PrepareConfig((tmp_path / "x.npy",), tmp_path / "out"))


# Landmarks


class Dots(torch.nn.Module):
    """In place of the detector: half of the landmarks are where it is red, half where it is green; sure where it is."""

    def forward(self, image):
        centres = soft_argmax(20 * image[:, :2])[0]
        points = centres.repeat_interleave(37, dim=1)
        heatmaps = gaussian_heatmaps(points, (32, 32), (2 / 32) ** 2)
        bright = image[:, :2].amax((1, 2, 3)) > 0.5
        return points, heatmaps / heatmaps.sum((2, 3), keepdim=True) * bright[:, None, None, None]


def dots(red, green, height=200, width=310):
    """A frame with a red and a green dot at (x, y) in pixels."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    channels = [torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18) for x, y in (red, green)]
    return (torch.stack([*channels, torch.zeros(height, width)]) * 255).byte()


@pytest.mark.parametrize("box", [(40, 20, 160), (-30, 10, 220), (101, 33, 90)])
def test_landmarks_are_in_pixels_of_the_frame_whatever_the_box(box):
    where = [((120.0 + n, 60.0), (150.0, 90.0 + 2 * n)) for n in range(3)]
    frames = [dots(*places) for places in where]
    points, found = find_landmarks(Dots(), iter([*frames, torch.zeros(3, 200, 310, dtype=torch.uint8)]), box)
    assert points.shape == (4, 74, 2) and found.tolist() == [True] * 3 + [False]
    for row, places in zip(points, where):
        assert torch.allclose(row[[0, 73]], torch.tensor(places), atol=0.3)


def test_the_box_settles_where_the_detector_has_faces_as_it_learned_them():
    frames = [dots((100, 70), (130, 110))] * 3
    empty, rough = (230, 100, 60), (20, 0, 200)
    (left, top, side), sure = settle_box(Dots(), frames, [empty, rough])
    assert sure > 0.8
    # The two dots are 50 pixels apart: 25 from their centre (115, 90), which is to be USUAL_SPREAD of half a side.
    assert side == pytest.approx(2 * 25 / USUAL_SPREAD, abs=2)
    centre = [left + (USUAL_CENTRE[0] + 1) / 2 * side, top + (USUAL_CENTRE[1] + 1) / 2 * side]
    assert centre == pytest.approx([115, 90], abs=1.5)


@pytest.fixture
def red_and_green(monkeypatch):
    monkeypatch.setattr(LandmarkDetector, "load", lambda *_: Dots())


def dotted_film(path, count=6):
    with VideoWriter(path, crf=1) as film:
        for number in range(count):
            film.write(dots((100 + number, 70), (130 + number, 110)) / 255)
    return path


def test_the_landmarks_of_a_film(tmp_path, red_and_green, capsys):
    made = find_film_landmarks(FindLandmarksConfig(dotted_film(tmp_path / "a.mp4")))
    assert made == tmp_path / "a.npz" and "a face in 6 of 6 frames" in capsys.readouterr().out
    with np.load(made) as file:
        assert file["landmarks"].dtype == np.float32 and file["landmarks"].shape == (6, 74, 2)
        assert file["found"].tolist() == [True] * 6
        wanted = [[[100 + n, 70], [130 + n, 110]] for n in range(6)]
        assert np.abs(file["landmarks"][:, [0, 73]] - wanted).max() < 0.5
    # Beside the film may lie the truth: it isn't overwritten unless it was named.
    with pytest.raises(ValueError, match=r"a\.npz: is there already; --output names another file"):
        find_film_landmarks(FindLandmarksConfig(tmp_path / "a.mp4"))
    find_film_landmarks(FindLandmarksConfig(tmp_path / "a.mp4", output=tmp_path / "a.npz", box=(20, 0, 200)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.npz"]


@pytest.mark.filterwarnings("ignore:.*breaks off")
def test_landmarks_of_a_film_that_breaks_off_end_there(tmp_path, red_and_green):
    data = bytearray(dotted_film(tmp_path / "a.mp4", count=60).read_bytes())
    start = data.find(b"mdat")
    end = start + int.from_bytes(data[start - 4 : start], "big")
    middle = (start + end) // 2
    data[middle:end] = bytes(end - middle)
    (tmp_path / "a.mp4").write_bytes(data)
    with np.load(find_film_landmarks(FindLandmarksConfig(tmp_path / "a.mp4", box=(20, 0, 200)))) as file:
        assert 5 < len(file["landmarks"]) < 60


def test_a_place_that_cannot_be_written_is_known_before_the_work(tmp_path, red_and_green, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("minimodel.commands.find_landmarks.find_landmarks", lambda *_: pytest.fail("too late"))
    with pytest.raises(ValueError, match=r"a\.npz: can't be written"):
        find_film_landmarks(FindLandmarksConfig(dotted_film(tmp_path / "a.mp4"), output=tmp_path / "file" / "a.npz"))


def test_a_film_without_a_face_is_named_and_nothing_is_written(tmp_path, red_and_green):
    with VideoWriter(tmp_path / "a.mp4") as film:
        for _ in range(3):
            film.write(torch.full((3, 64, 48), 0.2))
    with pytest.raises(ValueError, match=r"a\.mp4: no face found; --box says where it is"):
        find_film_landmarks(FindLandmarksConfig(tmp_path / "a.mp4"))
    for options in (dict(output=tmp_path / "a.txt"), dict(box=(0, 0, 0))):
        with pytest.raises(ValueError, match=r"must end in .npz|box has a side of 0"):
            find_film_landmarks(FindLandmarksConfig(tmp_path / "a.mp4", **options))
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_clips_can_be_prepared_with_their_landmarks(tmp_path, red_and_green):
    dotted_film(tmp_path / "a.mp4", count=25)
    (made,) = prepare(
        PrepareConfig((tmp_path / "a.mp4",), tmp_path / "out", box=(50, 20, 120), size=60, landmarks=True)
    )
    with np.load(made.with_suffix(".npz")) as file:
        # Half as large as in the film: pixel 50 + n of the box, whose centre is at 50.5 + n, becomes 25.25 + n / 2.
        wanted = [[[25.25 + n / 2 - 0.5, 24.75], [40.25 + n / 2 - 0.5, 44.75]] for n in range(25)]
        assert np.abs(file["landmarks"][:, [0, 73]] - wanted).max() < 0.3
        assert file["found"].all()


# Rendered faces


def test_clips_of_embedded_faces_and_their_truth(tmp_path):
    made = synthesize(SynthesizeConfig(tmp_path / "out", clips=2, size=64, seconds=0.5, seed=3))
    assert made == [tmp_path / "out" / "ada.mp4", tmp_path / "out" / "ben.mp4"]
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".mp4", ".png", ".npz"}
    identities, films = synthetic.sample_identities(2, 3), []
    for number, path in enumerate(made):
        faces = synthetic.Faces(identities[number], synthetic.animate_states(12, 3000 + number))
        clip = Clip(path)
        frames = torch.stack([frame for _, frame in clip.decode()]).float() / 255
        films.append(frames)
        assert frames.shape == (12, 3, 64, 64) and clip.fps == 25
        assert max(b - a for a, b in zip([*clip.keys, 12], [*clip.keys[1:], 12])) <= 8  # quick to read at random
        # What the film shows are these faces; the picture is its first frame, without the film's losses.
        assert (frames - synthetic.render(faces, 64)).abs().mean() < 0.02
        assert (read_image(path.with_suffix(".png")) - synthetic.render(faces[:1], 64)[0]).abs().max() < 0.51 / 255
        with np.load(path.with_suffix(".npz")) as truth:  # without pickles
            assert torch.equal(torch.from_numpy(truth["landmarks"]), synthetic.landmarks(faces, 64))
            assert torch.equal(torch.from_numpy(truth["parsing"]).long(), synthetic.parsing(faces, 64))
            assert tuple(truth["parts"]) == synthetic.PARTS
            assert truth["landmarks"].dtype == np.float32 and truth["parsing"].dtype == np.uint8
            kept = truth["flow_frames"].tolist()
            flow = torch.from_numpy(truth["flow"]).float() / 32
            visible = torch.from_numpy(truth["visible"])[:, None]
        assert kept == [5, 10] and flow.shape == (2, 2, 64, 64) and visible.dtype == torch.bool
        warped = warp(frames[:1].expand(2, -1, -1, -1), flow)
        wrong = [((x - frames[kept]).abs() * visible).sum() / visible.sum() / 3 for x in (warped, frames[:1])]
        assert wrong[0] < 0.03 and wrong[0] < 0.8 * wrong[1]
    assert (films[0] - films[1]).abs().mean() > 0.1  # two people


def test_a_seed_means_the_same_clips(tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        synthesize(SynthesizeConfig(tmp_path / name, clips=1, size=32, seconds=0.24, seed=seed))
    one, again, other = (tmp_path / name / "ada.png" for name in ("one", "again", "other"))
    assert one.read_bytes() == again.read_bytes() != other.read_bytes()
    one, again, other = (path.with_suffix(".mp4").read_bytes() for path in (one, again, other))
    assert one == again != other


def test_many_clips_have_numbers_for_names(tmp_path, monkeypatch):
    monkeypatch.setattr("minimodel.commands.synthesize.NAMES", ("ada",))
    made = synthesize(SynthesizeConfig(tmp_path, clips=2, size=16, seconds=0.24))
    assert [path.name for path in made] == ["00000.mp4", "00001.mp4"]


@pytest.mark.parametrize("options, message", [(dict(clips=0), "clips is 0"), (dict(size=4), "size is 4: expected an")])
def test_faces_that_cannot_be_drawn_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        synthesize(SynthesizeConfig(tmp_path, **dict(clips=1, size=16, seconds=0.24) | options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [dict(size=33), dict(seconds=0.04), dict(seconds=0.2)])
def test_odd_sizes_and_very_short_clips_are_named(tmp_path, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        synthesize(SynthesizeConfig(tmp_path, **dict(clips=1, size=16, seconds=0.24) | options))
    assert not list(tmp_path.iterdir())


def test_the_shortest_clip_has_one_frame_with_its_truth(tmp_path):
    (made,) = synthesize(SynthesizeConfig(tmp_path, clips=1, size=16, seconds=0.24))
    with np.load(made.with_suffix(".npz")) as truth:
        assert len(Clip(made)) == 6 and truth["flow_frames"].tolist() == [5]


def test_landmarks_of_a_sample_are_its_true_ones(tmp_path):
    made = find_film_landmarks(FindLandmarksConfig(SAMPLES / "ada.mp4", output=tmp_path / "a.npz"))
    with np.load(made) as found, np.load(SAMPLES / "ada.npz") as truth:
        error = np.linalg.norm(found["landmarks"] - truth["landmarks"], axis=-1)
        assert error.mean() < 1 and error.mean(1).max() < 1.6 and found["found"].all()
