import math
import struct
import warnings
from fractions import Fraction

import av
import imageio.v3 as iio
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minimodel.data import pairs as pairs_module
from minimodel.data import synthetic
from minimodel.data.augmentation import Augmentation, augment, augment_landmarks
from minimodel.data.framing import center_crop_resize
from minimodel.data.pairs import FrameCache, VideoPairs, open_sources
from minimodel.data.video import Clip, find_clips, read_image
from minimodel.data.writer import VideoWriter
from minimodel.landmarks import LANDMARKS, MIRRORED, LandmarkDetector
from minimodel.priors import LANDMARK_LABELS
from minimodel.warping import identity_grid


def film(path, count=12, size=32, **options):
    """A film in which frame n is grey of level n / count, with a marker in one corner."""
    with VideoWriter(path, **options) as writer:
        for number in range(count):
            frame = torch.full((3, size, size), number / count)
            frame[0, : size // 4, : size // 4] = 1.0
            writer.write(frame)
    return path


def with_sound(path, codec="aac", seconds=1, **options):
    """A film with a tone, made by other means than ours."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=20)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        sound = container.add_stream(codec, rate=44100)
        for _ in range(20 * seconds):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8))))
        tone = np.sin(np.arange(44100 * seconds) / 20).astype(np.float32)[None]
        for start in range(0, tone.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(tone[:, start : start + 1024]), "fltp", "mono")
            frame.rate, frame.pts = 44100, start
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
        container.mux(video.encode())
    return path


def levels(frames):
    return [round(float(frame[1, -4:, -4:].float().mean()) / 255 * 12) for frame in frames]


def test_random_access_finds_the_same_frames_as_decoding_in_order(tmp_path):
    clip = Clip(film(tmp_path / "a.mp4", every=5))
    assert len(clip) == 12 and clip.fps == 25
    assert len(clip.keys) > 1 and max(b - a for a, b in zip(clip.keys, clip.keys[1:])) <= 5
    in_order = [frame for _, frame in clip.decode()]
    assert levels(in_order) == list(range(12))
    for start in (11, 3, 7, 0):
        decoded = dict(clip.decode(start))
        # Decoding began at the key frame before, not at the beginning.
        assert min(decoded) == max(key for key in clip.keys if key <= start)
        assert torch.equal(decoded[start], in_order[start])


def test_gifs_and_folders_of_png_are_clips_too(tmp_path):
    film(tmp_path / "a.gif", fps=10)
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(12):
        iio.imwrite(folder / f"{number:03d}.png", np.full((32, 32, 3), round(255 * number / 12), np.uint8))
    assert levels([f for _, f in Clip(tmp_path / "a.gif").decode()]) == list(range(12))
    assert levels([f for _, f in Clip(folder).decode(4)]) == list(range(4, 12))
    assert float(Clip(tmp_path / "a.gif").fps) == pytest.approx(10, rel=0.01)


def test_the_cache_decodes_a_clip_once_and_forgets_the_oldest(tmp_path):
    paths = [film(tmp_path / f"{i}.mp4") for i in range(3)]
    cache = FrameCache(paths, 16, limit=2 * 12 * 3 * 16 * 16)
    calls = []
    for clip in cache.clips:
        decode = clip.decode
        clip.decode = lambda start, decode=decode, clip=clip: calls.append(clip.path.stem) or decode(start)
    assert cache(0, 11).shape == (3, 16, 16)
    assert levels([cache(0, 5)]) == [5] and calls == ["0"]
    first = cache(0, 7)
    cache(1, 11), cache(2, 11)
    assert list(cache.frames) == [1, 2] and cache.held <= cache.limit
    # What was dropped comes back from the disk, bit for bit, and isn't decoded again.
    assert torch.equal(cache(0, 7), first) and calls == ["0", "1", "2"]
    assert list(cache.frames) == [2, 0] and set(cache.frames[0]) == {7}
    assert cache.held == sum(frame.numel() for held in cache.frames.values() for frame in held.values())
    short = FrameCache(paths[:1], 16, limit=5 * 3 * 16 * 16)  # not even one clip has room in this
    assert levels([short(0, 11), short(0, 3), short(0, 4)]) == [11, 3, 4] and short.held <= short.limit


def test_a_full_disk_costs_the_cache_nothing_but_time(tmp_path, monkeypatch):
    paths = [film(tmp_path / f"{i}.mp4") for i in range(3)]

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pairs_module.tempfile, "TemporaryFile", full)
    cache = FrameCache(paths, 16, limit=12 * 3 * 16 * 16)
    first = cache(0, 7)
    cache(1, 11)
    assert list(cache.frames) == [1] and not cache.on_disk
    assert torch.equal(cache(0, 7), first)


def test_frames_are_kept_no_larger_than_the_film(tmp_path):
    path = film(tmp_path / "a.mp4")  # of 32 pixels
    assert FrameCache([path], 64)(0, 3).shape == (3, 32, 32)
    assert FrameCache([path], 16)(0, 3).shape == (3, 16, 16)
    pairs = VideoPairs(tmp_path, 48, Augmentation())
    source, driving = pairs.load(pairs.draw(2, torch.Generator().manual_seed(0)), torch.arange(2), torch.device("cpu"))
    assert source.shape == driving.shape == (2, 3, 48, 48)


def test_data_sets_may_be_split_or_not(tmp_path):
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        film(tmp_path / folder / f"{folder}.mp4", count=2)
    assert [p.stem for p in find_clips(tmp_path, "train")] == ["train"]
    assert [p.stem for p in find_clips(tmp_path, "test")] == ["val"]
    assert [p.stem for p in find_clips(tmp_path / "val", "test")] == ["val"]
    assert [p.stem for p in find_clips(tmp_path)] == ["train", "val"]
    with pytest.raises(ValueError, match="no such film or folder"):
        find_clips(tmp_path / "missing")
    assert find_clips(tmp_path / "val" / "val.mp4") == [tmp_path / "val" / "val.mp4"]
    (tmp_path / "notes.txt").write_text("no film")
    with pytest.raises(ValueError, match="expected a film"):
        find_clips(tmp_path / "notes.txt")


def test_pairs_come_from_one_clip_and_two_frames_and_repeat_with_the_seed(tmp_path):
    for number in range(3):
        film(tmp_path / f"{number}.mp4", count=4 + number)
    pairs = VideoPairs(tmp_path, 16)
    drawn = pairs.draw(200, torch.Generator().manual_seed(0))
    first, second = drawn["frames"].T
    lengths = torch.tensor([4, 5, 6])[drawn["clip"]]
    assert (first != second).all() and (drawn["frames"] < lengths[:, None]).all()
    assert (first > second).any() and (first < second).any()
    again = pairs.draw(200, torch.Generator().manual_seed(0))
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    source, driving = pairs.load(drawn, torch.arange(5), torch.device("cpu"))
    assert source.shape == driving.shape == (5, 3, 16, 16)
    # Any part of a batch is what it is within the whole.
    assert torch.equal(pairs.load(drawn, torch.tensor([3]), torch.device("cpu"))[0], source[3:4])


def test_augmentation_moves_and_colours_both_frames_alike():
    frames = torch.rand(4, 1, 3, 32, 32).expand(-1, 2, -1, -1, -1)
    change = 2 * torch.rand(4, 8) - 1
    made = augment(frames, change, Augmentation(), 16)
    assert made.shape == (4, 2, 3, 16, 16) and torch.equal(made[:, 0], made[:, 1])
    nothing = Augmentation(flip=False, rotation=0.0, zoom=0.0, shift=0.0, colour=0.0)
    plain = torch.nn.functional.avg_pool2d(frames[:, 0], 2)
    assert torch.allclose(augment(frames, change, nothing, 16)[:, 0], plain, atol=1e-5)
    mirrored = augment(frames, -torch.ones(4, 8), Augmentation(rotation=0.0, zoom=0.0, shift=0.0, colour=0.0), 16)
    assert torch.allclose(mirrored[:, 0], plain.flip(-1), atol=1e-5)


def test_landmarks_go_where_augmentation_brings_what_they_mark():
    """White dots in a black picture, one for each landmark: each of them is found where its landmark went."""
    places = synthetic.landmarks(synthetic.Faces.sample(1, 3))[0] * 0.6  # none leaves the picture
    dots = torch.zeros(LANDMARKS, 2, 3, 128, 128)
    x, y = ((places + 1) * 64).long().unbind(-1)
    for number in range(LANDMARKS):
        dots[number, :, :, y[number], x[number]] = 1.0
    change = (2 * torch.rand(2, 8, generator=torch.Generator().manual_seed(3)) - 1).abs()
    change[1, 0] = -1.0  # mirrored
    for row in change:
        moved = augment_landmarks(places.expand(1, 2, -1, -1), row[None], Augmentation())[0, 0]
        found = augment(dots, row.expand(LANDMARKS, 8), Augmentation(colour=0.0), 64)[:, 0, 0]
        weight = found / found.sum((1, 2), keepdim=True)
        grid = identity_grid(64, 64)
        seen = torch.stack([(weight * grid[axis]).sum((1, 2)) for axis in (0, 1)], dim=1)
        # The dots keep their names; in a mirrored face right and left have traded theirs.
        names = torch.tensor(MIRRORED) if row[0] < 0 else torch.arange(LANDMARKS)
        assert (moved - seen[names]).abs().max() < 1 / 64


def test_films_have_the_landmarks_of_their_frames_before_these_are_made_smaller(tmp_path, monkeypatch):
    faces = synthetic.Faces(synthetic.sample_identities(1, 2), synthetic.animate_states(5, 2))
    with VideoWriter(tmp_path / "a.mp4") as writer:
        for frame in synthetic.render(faces, 128):
            writer.write(frame)
    detector, asked = LandmarkDetector.load(), []
    find = detector.find
    monkeypatch.setattr(detector, "find", lambda pictures: asked.append(tuple(pictures.shape)) or find(pictures))
    pairs = VideoPairs(tmp_path, 64, Augmentation(rotation=5.0), detector=detector)
    drawn, slots, cpu = pairs.draw(12, torch.Generator().manual_seed(0)), torch.arange(12), torch.device("cpu")
    labels = pairs.labels(LANDMARK_LABELS, drawn, slots, cpu)
    assert set(labels) == set(LANDMARK_LABELS) and not labels["source_parts"].any()
    assert {shape[-1] for shape in asked} == {128} and sum(shape[0] for shape in asked) == 5  # each frame once
    source, driving = pairs.load(drawn, slots, cpu)
    truth = synthetic.landmarks(faces)
    for name, column, pictures in (("source", 0, source), ("driving", 1, driving)):
        true = torch.stack([truth[drawn["frames"][:, column]]] * 2, dim=1)
        true = augment_landmarks(true, drawn["change"], pairs.augmentation)[:, 0]
        off = (labels[f"{name}_landmarks"] - true).norm(dim=-1).mean()
        in_small = (find(pictures) - true).norm(dim=-1).mean()
        assert off < 0.02 and off < in_small
    assert torch.equal(
        pairs.labels(LANDMARK_LABELS, drawn, slots[3:4], cpu)["driving_landmarks"][0], labels["driving_landmarks"][3]
    )
    assert VideoPairs(tmp_path, 64).labels(LANDMARK_LABELS, drawn, slots, cpu) == {}


def test_a_folder_that_is_named_twice_is_opened_once(tmp_path):
    film(tmp_path / "a.mp4")
    one, two, three = open_sources(("synthetic", str(tmp_path), str(tmp_path)), 16, None)
    assert two is three and one is not two


def test_one_frame_is_not_enough_to_train_on(tmp_path):
    film(tmp_path / "a.mp4", count=1)
    with pytest.raises(ValueError, match="one frame only"):
        VideoPairs(tmp_path, 16)


# Pictures of all kinds


@pytest.mark.parametrize(
    "array, expected",
    [
        (np.full((16, 16), 51, np.uint8), [0.2, 0.2, 0.2]),  # grey
        (np.full((16, 16, 3), (51, 102, 255), np.uint8), [0.2, 0.4, 1.0]),
        (np.full((16, 16, 4), (51, 102, 255, 255), np.uint8), [0.2, 0.4, 1.0]),  # opaque
        (np.full((16, 16, 4), (0, 0, 0, 0), np.uint8), [1.0, 1.0, 1.0]),  # all transparent: white
        (np.full((16, 16), 13107, np.uint16), [0.2, 0.2, 0.2]),  # 16 bits
        (np.ones((16, 16), bool), [1.0, 1.0, 1.0]),
    ],
)
def test_every_colour_mode_becomes_rgb(tmp_path, array, expected):
    iio.imwrite(tmp_path / "a.png", array)
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 16, 16)
    assert torch.allclose(image.mean((1, 2)), torch.tensor(expected), atol=0.003)


def test_palette_and_grey_with_transparency(tmp_path):
    from PIL import Image

    Image.new("RGB", (16, 16), (51, 102, 255)).convert("P").save(tmp_path / "p.png")
    Image.new("LA", (16, 16), (51, 255)).save(tmp_path / "la.png")
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.tif")
    assert torch.allclose(read_image(tmp_path / "p.png").mean((1, 2)), torch.tensor([0.2, 0.4, 1.0]), atol=0.05)
    assert torch.allclose(read_image(tmp_path / "la.png").mean((1, 2)), torch.full((3,), 0.2), atol=0.003)
    for name in ("cmyk.jpg", "cmyk.tif"):  # all of magenta and yellow is red
        assert torch.allclose(read_image(tmp_path / name).mean((1, 2)), torch.tensor([1.0, 0.0, 0.0]), atol=0.02)


def test_a_grey_picture_of_many_pages_is_refused_in_one_line(tmp_path):
    iio.imwrite(tmp_path / "pages.tif", np.zeros((9, 16, 16), np.uint8))
    with pytest.raises(ValueError, match="channels or pages, expected a picture of 1 to 4 channels"):
        read_image(tmp_path / "pages.tif")


def test_pictures_that_are_none_are_refused_in_one_line(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    iio.imwrite(tmp_path / "one.png", np.zeros((1, 1, 3), np.uint8))
    iio.imwrite(tmp_path / "wide.png", np.zeros((8, 20000), np.uint8))
    for name, message in (
        ("text.png", "not a picture"),
        ("one.png", "1 x 1 pixels, sides must be"),
        ("wide.png", "20000 x 8 pixels"),
        ("missing.png", "no such file"),
        (".", "is a directory"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_fit_takes_the_middle_square():
    image = torch.zeros(1, 3, 20, 60)
    image[..., 20:40] = 1
    assert torch.equal(center_crop_resize(image, 20), torch.ones(1, 3, 20, 20))
    assert center_crop_resize(image, 8).shape == (1, 3, 8, 8) and center_crop_resize(image, 64).mean() == 1


# Videos that are none, or not whole


def test_broken_videos_are_refused_in_one_line(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    whole = film(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # the index, at the end, is gone
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for name, message in (
        ("text.mp4", "not a video"),
        ("empty.mp4", "not a video"),
        ("cut.mp4", "not a video"),
        ("sound.mp4", "holds no video"),
        ("folder", "without .png frames"),
        ("missing.mp4", "no such file"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            Clip(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_video_without_an_index_is_as_long_as_what_is_there(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:  # an index isn't needed in this format
        stream = container.add_stream("libx264", rate=25, options={"g": "1", "crf": "1"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), dtype=np.uint8)
        for frame in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    whole = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    clip = Clip(tmp_path / "cut.mkv")
    frames = [frame for _, frame in clip.decode()]
    assert 5 < len(frames) < 40 and len(frames) == len(clip)


def test_a_film_without_its_end_is_read_up_to_there_with_a_warning(tmp_path):
    """Its index comes first, so it opens; what ends early is the pictures."""
    with av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "2"})
        stream.width = stream.height = 64
        for number in range(40):
            noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: 3 * len(whole) // 4])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frames = [frame for _, frame in Clip(tmp_path / "cut.mp4").decode()]
        cache = FrameCache([tmp_path / "cut.mp4"], 64)
        assert torch.equal(cache(0, 39), frames[-1])  # the last that there is
    assert 0 < len(frames) < 40
    assert any("breaks off" in str(w.message) for w in caught)


def test_a_film_whose_camera_was_turned_stands_upright(tmp_path):
    """As phones write it: the pictures lie, and a matrix in the track's header says how to turn them."""
    path = film(tmp_path / "a.mp4", size=64)  # red in the upper left corner
    data = path.read_bytes()
    start = data.index(b"tkhd")
    straight = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    turned = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 64 << 16, 0, 0x40000000)  # clockwise by a quarter
    at = data.index(straight, start)
    path.write_bytes(data[:at] + turned + data[at + len(turned) :])
    for _, frame in Clip(path).decode():
        red = (frame[0].float() - frame[2].float())[None]
        assert red[:, :12, -12:].mean() > 20 + red[:, :12, :12].mean()  # now in the upper right one


def test_frames_of_an_avi_are_counted_in_the_order_in_which_they_are_shown(tmp_path):
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "2", "g": "6", "b_strategy": "0"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(24):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 10 * number, np.uint8))))
        container.mux(stream.encode())
    clip = Clip(tmp_path / "a.avi")
    shown = [(number, round(float(frame.float().mean()) / 10)) for number, frame in clip.decode()]
    assert [number for number, _ in shown] == list(range(len(shown))) and len(shown) >= 22
    assert all(abs(number - level) <= 1 for number, level in shown)
    assert [level for _, level in shown] == sorted(level for _, level in shown)


# Writing


def test_sound_times_and_metadata_of_the_driving_video_are_kept(tmp_path):
    source = Clip(with_sound(tmp_path / "a.mp4"))
    with VideoWriter(tmp_path / "b.mp4", like=source, metadata={"comment": "synthetic"}) as writer:
        for _ in range(len(source)):
            writer.write(torch.rand(3, 64, 64))
    made = Clip(tmp_path / "b.mp4")
    assert made.fps == 20 and len(made) == 20
    assert [t * made.time_base for t in made.times] == [(t - source.times[0]) * source.time_base for t in source.times]
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.metadata["comment"] == "synthetic"
        sound = container.streams.audio[0]
        seconds = float(sound.duration * sound.time_base)
        assert sound.codec.name == "aac" and 0.8 < seconds < 1.2
        loudness = np.concatenate([f.to_ndarray().ravel() for f in container.decode(sound)])
        assert np.abs(loudness).max() > 0.5


@pytest.mark.parametrize("codec", ["aac", "flac"])
def test_sound_of_a_film_that_begins_late_stays_with_its_pictures(tmp_path, codec):
    now, later = av.open(str(with_sound(tmp_path / "now.mkv", codec=codec))), av.open(str(tmp_path / "later.mkv"), "w")
    with now, later:
        streams = {stream.index: later.add_stream_from_template(stream) for stream in now.streams}
        for packet in now.demux():
            if packet.dts is not None:
                late = round(5 / packet.time_base)
                packet.pts, packet.dts = packet.pts + late, packet.dts + late
                packet.stream = streams[packet.stream.index]
                later.mux(packet)
    source = Clip(tmp_path / "later.mkv")
    assert 4.9 < float(source.times[0] * source.time_base) < 5.2
    with VideoWriter(tmp_path / "b.mp4", like=source) as writer:
        for _ in range(len(source)):
            writer.write(torch.rand(3, 64, 64))
    with av.open(str(tmp_path / "b.mp4")) as container:
        frames = list(container.decode(container.streams.audio[0]))
    assert abs(frames[0].time) < 0.1 and 0.7 < frames[-1].time < 1.2
    assert np.abs(np.concatenate([frame.to_ndarray().ravel() for frame in frames])).max() > 0.5


def test_sound_that_mp4_cannot_hold_is_converted(tmp_path):
    source = Clip(with_sound(tmp_path / "a.mkv", codec="flac"))
    with VideoWriter(tmp_path / "b.mp4", like=source) as writer:
        for _ in range(len(source)):
            writer.write(torch.rand(3, 64, 64))
    with av.open(str(tmp_path / "b.mp4")) as container:
        sound = container.streams.audio[0]
        assert sound.codec.name == "aac" and float(sound.duration * sound.time_base) > 0.7


def test_a_film_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"precious")
    with pytest.raises(RuntimeError), VideoWriter(path) as writer:
        writer.write(torch.rand(3, 32, 32))
        raise RuntimeError
    assert path.read_bytes() == b"precious" and [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path, message in (
        (tmp_path / "a.txt", "must end in .mp4 or .gif"),
        (tmp_path / "file" / "a.mp4", "can't be written"),
    ):
        with pytest.raises(ValueError, match=message), VideoWriter(path) as writer:
            writer.write(torch.rand(3, 32, 32))
    (tmp_path / "dir.mp4").mkdir()
    with pytest.raises(ValueError, match="is a directory"):
        VideoWriter(tmp_path / "dir.mp4")
    with pytest.raises(ValueError, match="can't be written"), VideoWriter("/dev/full/a.mp4") as writer:
        writer.write(torch.rand(3, 32, 32))


def test_variable_frame_times_are_kept(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for when in (0, 40, 200, 230):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
            frame.pts, frame.time_base = when, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    source = Clip(tmp_path / "a.mp4")
    with VideoWriter(tmp_path / "b.mp4", like=source) as writer:
        for _ in range(4):
            writer.write(torch.rand(3, 32, 32))
    made = Clip(tmp_path / "b.mp4")
    assert [round(float(t * made.time_base), 3) for t in made.times] == [0, 0.04, 0.2, 0.23]


def test_fit_takes_the_middle_of_portraits_too():
    ramp = torch.arange(60.0).view(1, 1, 60, 1).expand(1, 3, 60, 20) / 60
    assert torch.equal(center_crop_resize(ramp, 20), ramp[..., 20:40, :])
    assert torch.equal(center_crop_resize(ramp.mT.contiguous(), 20), ramp.mT[..., 20:40])


def test_pairs_show_the_frames_that_were_drawn(tmp_path):
    for clip in range(2):
        with VideoWriter(tmp_path / f"{clip}.mp4", crf=1) as film:
            for number in range(5):
                film.write(torch.full((3, 32, 32), (5 * clip + number) / 10))
    pairs = VideoPairs(tmp_path, 16)
    drawn = pairs.draw(40, torch.Generator().manual_seed(0))
    for number, frames in enumerate(pairs.load(drawn, torch.arange(40), torch.device("cpu"))):
        assert torch.equal((frames.mean((1, 2, 3)) * 10).round().long(), 5 * drawn["clip"] + drawn["frames"][:, number])


def test_augmentation_does_what_its_numbers_say():
    off = dict(flip=False, rotation=0.0, zoom=0.0, shift=0.0, colour=0.0)
    rough = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(rough, (64, 64), mode="bicubic").clamp(0.2, 0.8)
    frames = smooth[:, None].expand(1, 2, -1, -1, -1)
    plain = F.avg_pool2d(smooth, 2)[0]

    def changed(which, value, **on):
        change = torch.zeros(1, 8)
        change[0, which] = value
        return augment(frames, change, Augmentation(**off | on), 32)[0, 0]

    assert torch.allclose(changed(1, 1.0, rotation=90.0), plain.rot90(1, (1, 2)), atol=1e-4)
    assert torch.allclose(changed(3, 1.0, shift=0.25)[..., :-4], plain[..., 4:], atol=1e-4)
    assert torch.allclose(changed(4, 1.0, shift=0.25)[:, :-4], plain[:, 4:], atol=1e-4)
    half = changed(2, 1.0, zoom=-math.log(2))  # shows the middle half, twice as large
    assert torch.allclose(F.avg_pool2d(half, 2), plain[:, 8:24, 8:24], atol=0.02)
    assert torch.allclose(changed(5, 1.0, colour=0.1), (plain * math.exp(0.1)).clamp(0, 1), atol=1e-5)
    assert torch.allclose(changed(6, -1.0, colour=0.1), (plain - 0.5) * math.exp(-0.1) + 0.5, atol=1e-5)
    tint = torch.tensor([math.exp(0.1), 1, math.exp(-0.1)]).view(3, 1, 1)
    assert torch.allclose(changed(7, 1.0, colour=0.1), (plain * tint).clamp(0, 1), atol=1e-5)
