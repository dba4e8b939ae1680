from fractions import Fraction
from pathlib import Path

import av
import imageio.v3 as iio
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minimodel import transfer
from minimodel.commands.animate import AnimateConfig, animate
from minimodel.data import synthetic
from minimodel.data.framing import center_crop_resize, crop, landmarks_file
from minimodel.data.video import Clip, read_image, read_landmarks
from minimodel.data.writer import VideoWriter
from minimodel.errors import MinimodelError
from minimodel.model import AnimationModel
from minimodel.motion import join
from minimodel.priors import AffinePrior
from minimodel.transfer import AvdNetwork
from minimodel.warping import to_pixels
from tests.test_video import film, with_sound

SAMPLES = Path(__file__).parents[1] / "data_samples"


@pytest.fixture
def setup(tmp_path):
    """Weights at random, and a photo and a film without a face: what is tested here is the way from files to films."""
    torch.manual_seed(0)
    AnimationModel.from_preset("tiny").save(tmp_path / "model.safetensors")
    iio.imwrite(tmp_path / "photo.png", np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8))
    film(tmp_path / "driving.mp4", count=11, size=48)

    def config(**options):
        paths = dict(source="photo.png", driving="driving.mp4", output="out.mp4", weights="model.safetensors")
        paths |= {name: options.pop(name) for name in list(options) if name in (*paths, "show_crops")}
        paths = {name: tmp_path / value for name, value in paths.items()}
        options = dict(crop="none", mode="standard") | options
        return AnimateConfig(**paths | {"weights": str(paths["weights"])}, **options)

    return config


def test_the_film_has_every_frame_and_says_that_it_is_synthetic(setup, tmp_path):
    clip = Clip(animate(setup()))
    assert len(clip) == 11 and clip.fps == 25
    assert next(clip.decode())[1].shape == (3, 280, 280)  # the photo's middle has 70, and is enlarged by a whole factor
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert "Synthetic media" in container.metadata["comment"]


def test_side_by_side_gif_and_other_sizes(setup):
    clip = Clip(animate(setup(output="out.gif", side_by_side=True, size=96)))
    assert len(clip) == 11 and next(clip.decode())[1].shape == (3, 288, 3 * 288)
    assert b"Synthetic media" in clip.path.read_bytes()


def test_sound_and_frame_rate_of_the_video_are_kept(setup, tmp_path):
    with_sound(tmp_path / "sound.mp4")
    assert Clip(animate(setup(driving="sound.mp4"))).fps == 20
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio


@pytest.fixture
def by_landmarks(setup, tmp_path):
    torch.manual_seed(0)
    AnimationModel.from_preset("tiny", system="s2d").save(tmp_path / "s2d.safetensors")
    return lambda **options: setup(weights="s2d.safetensors", **options)


def test_landmarks_alone_can_drive(by_landmarks, tmp_path, monkeypatch):
    true = synthetic.landmarks(synthetic.Faces.sample(3, seed=1))
    pixels = to_pixels(true, (90, 90)) + torch.tensor([15.0, 0.0])  # in the middle of 120 x 90 pixels
    file = landmarks_file(pixels, torch.ones(3, dtype=torch.bool), size=(90, 120), fps=Fraction(24))
    (tmp_path / "d.npz").write_bytes(file)
    read, fps = read_landmarks(tmp_path / "d.npz")
    assert torch.allclose(read, true, atol=1e-5) and fps == 24
    used, encode = [], AnimationModel.encode_driving
    monkeypatch.setattr(AnimationModel, "encode_driving", lambda self, image=None, *, landmarks=None: (
        used.append(landmarks), encode(self, image, landmarks=landmarks))[1])  # fmt: skip
    clip = Clip(animate(by_landmarks(driving="d.npz", side_by_side=True)))
    (_, first), *others = clip.decode()
    assert len(others) == 2 and clip.fps == 24 and first.shape == (3, 280, 840)
    assert torch.allclose(torch.cat(used), true, atol=1e-5)
    # The middle picture shows where they are: white dots, mostly at the landmarks.
    dots = first[:, :, 280:560].float().mean(0) / 255
    places = to_pixels(true[0], (280, 280)).round().long().clamp(0, 279)
    assert dots[places[:, 1], places[:, 0]].mean() > 0.6 > 0.2 > dots.mean()
    assert len(Clip(animate(by_landmarks(driving="d.npz", mode="relative", start_frame=1)))) == 3


def test_in_films_the_detector_finds_them(by_landmarks):
    assert len(Clip(animate(by_landmarks()))) == 11


def test_what_are_no_landmarks_is_said_in_one_line(setup, by_landmarks, tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "other.npz", landmarks=np.zeros((3, 68, 2)), size=(64, 64))
    np.savez(tmp_path / "sizeless.npz", landmarks=np.zeros((3, 74, 2)))
    for name in ("text.npz", "other.npz", "sizeless.npz"):
        with pytest.raises(ValueError, match=f"{name}: not the landmarks of a film"):
            animate(by_landmarks(driving=name))
    with pytest.raises(ValueError, match=r"missing\.npz: no such file"):
        animate(by_landmarks(driving="missing.npz"))
    points, found = 64 * torch.rand(2, 74, 2), torch.ones(2, dtype=torch.bool)
    (tmp_path / "good.npz").write_bytes(landmarks_file(points, found, size=(64, 64), fps=Fraction(25)))
    with pytest.raises(MinimodelError, match="AffinePrior, which finds points itself"):
        animate(setup(driving="good.npz"))
    assert not (tmp_path / "out.mp4").exists()


def test_the_samples_truth_can_drive():
    points, fps = read_landmarks(SAMPLES / "ada.npz")
    film = Clip(SAMPLES / "ada.mp4")
    assert len(points) == len(film) and fps == film.fps and points.abs().max() < 1.2


def test_one_frame_is_enough_to_drive(setup, tmp_path):
    film(tmp_path / "one.mp4", count=1)
    assert len(Clip(animate(setup(driving="one.mp4")))) == 1


def test_frames_do_not_depend_on_how_they_are_batched():
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny").eval()
    photo, frames = torch.rand(3, 64, 64), list(torch.rand(5, 3, 64, 64))
    one, all_at_once = (list(model.animate(photo, frames, batch=batch)) for batch in (1, 5))
    assert torch.allclose(torch.stack(one), torch.stack(all_at_once), atol=1e-5)


def test_the_background_of_the_driving_film_is_left_where_it_is(monkeypatch):
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny", system="tpsm").eval()
    photo, frames = torch.rand(3, 64, 64), torch.rand(2, 3, 64, 64)
    before = list(model.animate(photo, frames, mode="standard"))
    # a predictor that sees motion wherever it looks
    monkeypatch.setattr(model.prior.background, "forward", lambda source, driving: torch.full((2, 2, 3), 0.3))
    after = list(model.animate(photo, frames, mode="standard"))
    assert all(torch.equal(*both) for both in zip(before, after))
    with torch.no_grad():  # asked for, it does move
        still, moved = (model(photo.expand(2, -1, -1, -1), frames, move_background=move) for move in (False, True))
    assert torch.allclose(still.image, torch.stack(before), atol=1e-5)
    assert not torch.allclose(still.flows[-1], moved.flows[-1], atol=1e-3)


def pixels(path):
    return torch.stack([frame for _, frame in Clip(path).decode()]).float()


@pytest.fixture
def trained(setup, tmp_path):
    """Beside the model lies an avd network, which has learnt nothing."""
    network = AvdNetwork(10, with_affine=True)
    network.save(tmp_path / "avd-model.safetensors", model=AnimationModel.load(tmp_path / "model.safetensors"))
    return network


def test_each_mode_renders_its_own_motion(setup, trained, tmp_path, monkeypatch):
    """The film shows what `transfer` makes of the points, frame by frame."""
    rendered = []
    render = AnimationModel.render
    monkeypatch.setattr(
        AnimationModel, "render", lambda *args, **options: rendered.append(args[1:]) or render(*args, **options)
    )
    for mode in transfer.MODES:
        rendered.clear()
        clip = Clip(animate(setup(mode=mode, start_frame=3 if mode == "relative" else None)))
        assert len(clip) == 11
        source = rendered[0][0]
        made = join([motion for _, motion in rendered])
        model = AnimationModel.load(tmp_path / "model.safetensors")
        frames = torch.stack([crop(frame, (0, 0, 48), 64) for _, frame in Clip(tmp_path / "driving.mp4").decode()])
        with torch.no_grad():
            film = model.encode_driving(frames)
        expected = {
            "standard": film,
            "relative": transfer.relative(source.motion, film, film[3:4]),
            "avd": transfer.avd(source.motion, film, trained),
        }[mode]
        assert torch.allclose(made.points, expected.points, atol=1e-4)
        assert torch.allclose(made.affine, expected.affine, atol=1e-3)


def test_a_photo_that_is_a_frame_of_the_film_is_where_relative_starts(setup, tmp_path, capsys):
    """So its motion is the film's own, and the two modes make the same film."""
    frames = [frame for _, frame in Clip(tmp_path / "driving.mp4").decode()]
    iio.imwrite(tmp_path / "frame.png", frames[6].permute(1, 2, 0).numpy())
    standard = pixels(animate(setup(source="frame.png", output="a.mp4")))
    relative = pixels(animate(setup(source="frame.png", output="b.mp4", mode="relative")))
    assert "movement is counted from frame 6" in capsys.readouterr().out
    assert (standard - relative).abs().mean() < 0.5 and standard.std() > 5


def test_the_start_is_the_most_similar_frame_or_the_given_one(setup, tmp_path, capsys):
    animate(setup(mode="relative", start_frame=10))
    assert "movement is counted from frame 10" in capsys.readouterr().out
    model = AnimationModel.load(tmp_path / "model.safetensors")
    photo, frames = torch.rand(3, 64, 64), torch.rand(9, 3, 64, 64)
    with torch.no_grad():
        expected = transfer.best_start(model.encode_driving(photo[None]), model.encode_driving(frames))
    given = {start: list(model.animate(photo, frames, start_frame=start, batch=4)) for start in (None, expected)}
    assert all(torch.equal(*both) for both in zip(*given.values(), strict=True))


@pytest.mark.parametrize("mode", ["standard", "relative"])
def test_the_film_is_decoded_and_encoded_once(setup, monkeypatch, mode):
    decoded, encoded = [], []
    decode, detect = Clip.decode, AffinePrior.detect
    monkeypatch.setattr(Clip, "decode", lambda *args: decoded.append(1) or decode(*args))
    monkeypatch.setattr(AffinePrior, "detect", lambda self, image: encoded.append(len(image)) or detect(self, image))
    animate(setup(mode=mode))
    assert len(decoded) == 1 and sum(encoded) == 1 + 11  # the photo, and eleven frames


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(source="nobody.png"), "nobody.png: no such file"),
        (dict(source="model.safetensors"), "model.safetensors: not a picture"),
        (dict(source="driving.mp4"), None),  # of a film the first frame
        (dict(driving="photo.png"), None),  # a picture is a film of one frame
        (dict(driving="missing.mp4"), "missing.mp4: no such file"),
        (dict(weights="photo.png"), "not a whole safetensors file"),
        (dict(size=71), "size is 71: expected an even number, at least 16"),
        (dict(show_crops="crops.txt"), "crops.txt: the name of the picture must end in .png, .jpg, .jpeg"),
        (dict(show_crops="photo.png"), "photo.png: is what the film is to be made from"),
        (dict(source_box=(90, 0, 20)), "photo.png: the square 90 0 20 shows nothing of 70 x 90 pixels"),
        (dict(driving_box=(0, 48, 20)), "driving.mp4: the square 0 48 20 shows nothing of 48 x 48 pixels"),
        (dict(crop="auto"), "photo.png: no face found; --crop none takes the middle, --source-box and --driving-box a"),
        (dict(output="out.avi"), "must end in .mp4 or .gif"),
        (dict(output="photo.png/out.mp4"), "can't be written"),
        (dict(mode="avd"), "avd-model.safetensors, which isn't there: it is made by `minimodel train-avd --weights"),
        (dict(mode="avd", start_frame=0), "--start-frame is for mode relative; the mode is avd"),
        (dict(start_frame=0), "--start-frame is for mode relative; the mode is standard"),
        (dict(mode="relative", start_frame=11), "start frame 11: the driving film has frames 0 to 10"),
        (dict(mode="relative", start_frame=-1), "start frame -1: the driving film has frames 0 to 10"),
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


def test_the_film_shows_what_was_rendered(tmp_path):
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny").eval()
    model.save(tmp_path / "m.safetensors")
    photo = iio.imread(SAMPLES / "ada.png")
    iio.imwrite(tmp_path / "photo.png", np.pad(photo, ((40, 40), (0, 0), (0, 0))))  # upright
    with VideoWriter(tmp_path / "d.mp4") as film:
        for number in range(3):
            film.write(torch.full((3, 64, 64), 0.2 + 0.2 * number))
    paths = [tmp_path / name for name in ("photo.png", "d.mp4", "o.mp4")]
    box = (0, 40, 128)
    picture = read_image(paths[0])
    large, source = (crop(picture, box, size)[None] for size in (128, 64))
    frames = [center_crop_resize(frame[None] / 255, 64)[0] for _, frame in Clip(paths[1]).decode()]
    with torch.no_grad():
        state = model.encode_source(source)
        made = list(model.render_film(state, model.encode_film(frames), photo=large))
    assert made[0].shape == (3, 128, 128)

    def film_of(**options):
        options = dict(crop="none", mode="standard") | options
        file = animate(AnimateConfig(*paths, weights=str(tmp_path / "m.safetensors"), **options))
        return torch.stack([f for _, f in Clip(file).decode()]).float() / 255

    assert (F.avg_pool2d(film_of(), 2) - torch.stack(made)).abs().mean() < 0.03
    wide = F.avg_pool2d(film_of(side_by_side=True), 2)
    driving = torch.stack([center_crop_resize(frame[None], 128)[0] for frame in frames])
    three = large.expand(3, -1, -1, -1), driving, torch.stack(made)
    for part, expected in zip(wide.split(128, -1), three, strict=True):
        assert (part - expected).abs().mean() < 0.03
    # Pasted: outside the square the photo stays as it is.
    pasted = film_of(paste=True, source_box=(20, 60, 80))
    assert pasted.shape[-2:] == (208 * 2, 128 * 2)
    outside = F.avg_pool2d(pasted, 2) - picture
    outside[..., 58:142, 18:102] = 0
    assert outside.abs().mean() < 0.02 and outside.abs().amax() < 0.3
