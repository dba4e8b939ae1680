"""`animate` with any photo and film: the face is found, the photo keeps its resolution, and the face is put back."""

from dataclasses import replace

import imageio.v3 as iio
import pytest
import torch
from skimage import data

from minimodel import transfer
from minimodel.__main__ import main
from minimodel.commands.animate import AnimateConfig, Photo, animate
from minimodel.data import synthetic
from minimodel.data.framing import Framing, crop
from minimodel.data.video import Clip
from minimodel.data.writer import VideoWriter
from minimodel.landmarks import LandmarkDetector
from minimodel.model import AnimationModel
from tests.test_framing import stand, wall

SIDE = 160
LEFT, TOP = 190, 40  # of the face in the film's frames


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A photograph in which a face is a small part, and a film of a rendered face in which it is away for a while."""
    folder = tmp_path_factory.mktemp("portrait")
    iio.imwrite(folder / "photo.png", data.astronaut())
    states = synthetic.animate_states(24, seed=4)[::3]
    faces = synthetic.Faces(synthetic.sample_identities(1, 11), replace(states, pan=0 * states.pan))
    pictures = (synthetic.render(faces, SIDE) * 255).round().byte()
    frames = [stand((picture, LEFT, TOP)) for picture in pictures]
    frames[3:5] = [wall()] * 2
    with VideoWriter(folder / "film.mp4", crf=8) as film:
        for frame in frames:
            film.write(frame / 255)
    return folder


@pytest.fixture
def seen(monkeypatch):
    """The pictures that the model is given: the photo's square, and the film's."""
    pictures = {}
    for name in ("encode_source", "encode_film"):
        method = getattr(AnimationModel, name)

        def spy(self, given, *, name=name, method=method, **options):
            pictures[name] = given if torch.is_tensor(given) else torch.stack(list(given))
            return method(self, pictures[name], **options)

        monkeypatch.setattr(AnimationModel, name, spy)
    return pictures


def options(files, **more):
    usual = dict(output=files / "out.mp4", weights="tiny")  # 64 pixels are quicker than the usual 256
    return AnimateConfig(files / "photo.png", files / "film.mp4", **usual | more)


def frames_of(path):
    return torch.stack([frame for _, frame in Clip(path).decode()]) / 255


def test_any_photo_and_film_are_framed_as_in_training(files, seen, capsys):
    made = frames_of(animate(options(files, show_crops=files / "crops.png", side_by_side=True)))
    printed = capsys.readouterr().out
    assert "film.mp4: no face in 2 of 8 frames (3 to 4): the last one is held there" in printed
    assert "movement is counted from frame" in printed
    film = seen["encode_film"]
    assert film.shape == (8, 3, 64, 64) and torch.equal(film[3], film[2]) and torch.equal(film[4], film[2])
    assert not torch.equal(film[5], film[4])
    # What the detector finds in the squares lies as in training: the middle of the landmarks, and their spread.
    for pictures in (seen["encode_source"], film[:3]):
        large = torch.nn.functional.interpolate(pictures, (128, 128), mode="bilinear")
        points = LandmarkDetector.load()(large)[0]
        middle = points.mean((0, 1))
        assert abs(middle[0]) < 0.12 and abs(middle[1] - 0.13) < 0.12
        spread = (points - points.mean(1, keepdim=True)).square().sum(-1).mean().sqrt()
        assert 0.31 < spread < 0.42
    # Three pictures at the resolution of the photo's square.
    side = made.shape[-2]
    assert made.shape == (8, 3, side, 3 * side) and 130 < side / 2 < 220  # enlarged twice, as it is smaller than 256
    assert iio.imread(files / "crops.png").shape == (2 * 192, (1 + 4) * 192, 3)  # of the five frames one is held


@pytest.mark.parametrize("crop", ["auto", "none"])
def test_landmarks_come_from_larger_pictures_than_the_model_sees(files, tmp_path, monkeypatch, crop):
    AnimationModel.from_preset("tiny-quarter", prior="face").eval().save(tmp_path / "face.safetensors")
    motions, transferred = [], transfer.transfer

    def spy(mode, *both, **more):
        motions.extend(both)
        return transferred(mode, *both, **more)

    monkeypatch.setattr(transfer, "transfer", spy)
    boxes = dict(driving_box=(LEFT, TOP, SIDE)) if crop == "auto" else {}
    animate(options(files, weights=str(tmp_path / "face.safetensors"), crop=crop, mode="standard", **boxes))
    source, film = (motion.points[:, -74:] for motion in motions)
    photo = Photo(options(files, crop=crop), LandmarkDetector.load(), smallest=64)
    assert torch.allclose(source, LandmarkDetector.load().find(photo.at(128)), atol=1e-5)
    frames = [frame for _, frame in Clip(files / "film.mp4").decode()]
    box = (LEFT, TOP, SIDE) if crop == "auto" else (80, 0, 240)  # the middle square
    pictures = torch.stack([crop_to(frame, box) for frame in frames])
    found = LandmarkDetector.load().find(pictures)
    if crop == "none":
        assert torch.allclose(film, found, atol=1e-5)
    else:
        assert torch.equal(film[3], film[2])  # held
        error = ((film - found) * 32).norm(dim=-1)[[0, 1, 2, 6, 7]]
        assert error.mean() < 0.5 and error[:, 36:48].mean() < 0.4


def crop_to(frame, box):
    return crop(frame, box, 128)


def test_a_pasted_face_moves_in_a_photo_that_stands_still(files, monkeypatch):
    frames, write = [], VideoWriter.write
    monkeypatch.setattr(VideoWriter, "write", lambda self, picture: frames.append(picture) or write(self, picture))
    path = animate(options(files, paste=True))
    made, photo = torch.stack(frames), torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1) / 255
    assert made.shape == (8, 3, 512, 512) and frames_of(path).shape == made.shape
    left, top, side = Photo(options(files), LandmarkDetector.load(), smallest=64).box
    changed = (made - photo).abs().amax(1)
    assert changed[:, max(0, top) : top + side, left : left + side].mean() > 0.01
    changed[:, max(0, top) : top + side, left : left + side] = 0
    assert changed.max() == 0


def test_a_pasted_film_is_not_larger_than_players_take(files, monkeypatch):
    monkeypatch.setattr("minimodel.commands.animate.LARGEST_SIDE", 301)
    photo = Photo(options(files, paste=True), LandmarkDetector.load(), smallest=64)
    assert photo.image.shape == (3, 300, 300) and photo.size <= photo.box[2] < 130
    given = Photo(options(files, paste=True, size=64), LandmarkDetector.load(), smallest=64)
    assert given.box[2] == given.size == 64


@pytest.mark.parametrize("whose", ["source", "driving"])
def test_no_face_at_all_is_one_line_that_names_the_way_out(files, tmp_path, capsys, whose):
    iio.imwrite(tmp_path / "wall.png", wall().permute(1, 2, 0).numpy())
    paths = dict(source=files / "photo.png", driving=files / "film.mp4") | {whose: tmp_path / "wall.png"}
    words = ["animate", "--output", str(tmp_path / "out.mp4")]
    words += [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{tmp_path / 'wall.png'}: no face found; --crop none takes the middle" in error
    assert not (tmp_path / "out.mp4").exists()


def test_squares_can_be_given(files, seen, capsys):
    made = animate(options(files, source_box=(200, 200, 100), driving_box=(LEFT, TOP, SIDE), mode="standard"))
    photo = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1)
    assert torch.allclose(seen["encode_source"][0], crop(photo / 255, (200, 200, 100), 64), atol=1e-6)
    first = next(Clip(files / "film.mp4").decode())[1]
    assert torch.equal(seen["encode_film"][0], crop(first, (LEFT, TOP, SIDE), 64))
    assert frames_of(made).shape[-2:] == (300, 300)
    assert "no face in 2 of 8 frames" in capsys.readouterr().out  # the face in a given square is watched, too


def test_of_several_faces_the_largest_is_said(files, monkeypatch, capsys):
    square = (180, 30, SIDE)
    monkeypatch.setattr("minimodel.commands.animate.frame_photo", lambda *_, **__: Framing(square, None, 2))
    animate(options(files))
    assert "photo.png: 2 faces: the largest is taken, in the square 180 30 160" in capsys.readouterr().out


def test_where_no_frame_shows_the_pose_the_mode_is_standard(files, monkeypatch, capsys):
    used = []
    monkeypatch.setattr(
        transfer,
        "transfer",
        lambda mode, *_, original=transfer.transfer, **__: used.append(mode) or original(mode, *_, **__),
    )
    monkeypatch.setattr(transfer, "SAME_POSE", 0.0)
    animate(options(files))
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "pose" in line]
    assert "no frame of the film shows the photo's pose" in line and "--start-frame" in line
    animate(options(files, start_frame=0))  # who gives the frame means it
    assert used == ["standard", "relative"] and "counted from frame 0" in capsys.readouterr().out


def test_the_square_of_a_small_photo_has_at_least_the_size_of_the_weights(files, tmp_path):
    small = torch.nn.functional.interpolate(
        torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1)[None] / 255, (128, 128), mode="area"
    )[0]
    iio.imwrite(tmp_path / "small.png", (small * 255).byte().permute(1, 2, 0).numpy())
    config = replace(options(files), source=tmp_path / "small.png", source_box=(30, 5, 50))
    assert Photo(config, LandmarkDetector.load(), smallest=64).size == 64
