"""Films of every kind that people have: what comes out shows the right frames, as they were meant to look."""

import math
import os
import struct
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from minimodel.data import display
from minimodel.data.containers import CUT, JOINED, what_is_wrong
from minimodel.data.video import Clip, find_clips, holds_out, read_image
from minimodel.data.writer import VideoWriter
from minimodel.errors import MinimodelError
from tests.test_video import film, levels

RATE = 44100
BEEP = 7  # the frame with a white flash, and a beep


def record(
    path, *, codec="libx264", sound=None, rate=RATE, count=16, fps=25, format=None, options=None, size=64, **video
):
    """A film that is black but for one white frame, during which there is a beep."""
    with av.open(str(path), "w", format=format, options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=video.pop("codec_options", {}))
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for name, value in video.items():
            setattr(stream.codec_context, name, value)
        target = container.add_stream(sound, rate=rate, layout="mono") if sound else None
        for number in range(count):
            level = 255 if number == BEEP else 12 * (number % 16)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((size, size, 3), level, np.uint8))))
        if target:
            time = np.arange(rate * count // fps) / rate
            beep = (time >= BEEP / fps) & (time < (BEEP + 1) / fps)
            tone = np.where(beep, np.sin(2 * np.pi * 900 * time), 0).astype(np.float32)[None]
            resampler = av.AudioResampler(target.codec_context.format, "mono", rate)
            frame = av.AudioFrame.from_ndarray(tone, "fltp", "mono")
            frame.sample_rate = rate
            fifo, done = av.AudioFifo(), 0
            for piece in resampler.resample(frame):
                piece.pts = None
                fifo.write(piece)
            while (piece := fifo.read(target.codec_context.frame_size or 1024, partial=True)) is not None:
                piece.pts, piece.time_base = done, Fraction(1, rate)
                done += piece.samples
                container.mux(target.encode(piece))
            container.mux(target.encode())
        container.mux(stream.encode())
    return path


def copy(clip, path):
    """As `animate` would write it, but for the animation."""
    with VideoWriter(path, like=clip) as writer:
        for _, frame in clip.decode():
            writer.write(frame[:, : frame.shape[1] // 2 * 2, : frame.shape[2] // 2 * 2] / 255)
    assert [file.name for file in path.parent.iterdir() if file.name.startswith(".")] == []
    return path


# Turned, stretched, coloured


def put_matrix(path, a, b, c, d):
    """Write a display matrix into an .mp4, as cameras do."""
    data = path.read_bytes()
    at = data.index(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:at] + matrix + data[at + 36 :])


@pytest.mark.parametrize("lies", [False, True])
@pytest.mark.parametrize("one, other", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_all_eight_ways_to_hold_a_camera_are_obeyed(tmp_path, one, other, lies):
    """What is stored at (x, y) is shown at (a x + c y, b x + d y)."""
    a, b, c, d = (0, one, other, 0) if lies else (one, 0, 0, other)
    stored = np.zeros((32, 48), np.uint8)
    stored[:16, :24], stored[:16, 24:], stored[16:, :24] = 240, 160, 80
    with VideoWriter(tmp_path / "a.mp4", crf=1) as writer:
        writer.write(torch.from_numpy(stored / 255).float().expand(3, -1, -1))
    put_matrix(tmp_path / "a.mp4", a, b, c, d)
    (_, shown), *_ = Clip(tmp_path / "a.mp4").decode()
    places = {(a * x + c * y, b * x + d * y): stored[y, x] for y in range(32) for x in range(48)}
    left, top = min(x for x, _ in places), min(y for _, y in places)
    expected = np.zeros((32, 48) if a else (48, 32))
    for (x, y), value in places.items():
        expected[y - top, x - left] = value
    assert shown.shape[1:] == expected.shape
    assert np.abs(shown.float().mean(0).numpy() - expected).mean() < 4


@pytest.mark.parametrize("orientation, turned", [(1, False), (6, True)])
def test_frames_that_say_more_than_pyav_knows_are_shown(tmp_path, orientation, turned):
    """Such as the JPEGs of cameras, with EXIF."""
    mark = Image.Exif()
    mark[0x0112] = orientation
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:, :24] = 255
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=mark, quality=95)
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj420p"
        for number in range(3):
            packet = av.Packet((tmp_path / "a.jpg").read_bytes())
            packet.pts = packet.dts = number
            packet.time_base, packet.is_keyframe, packet.stream = Fraction(1, 25), True, stream
            container.mux(packet)
    frames = [frame for _, frame in Clip(tmp_path / "a.mov").decode()]
    assert len(frames) == 3
    for frame in frames:
        assert frame.shape == ((3, 48, 32) if turned else (3, 32, 48))
        first = frame[:, :20] if turned else frame[:, :, :20]
        assert first.float().mean() > 240 and frame.float().mean() < 140


@pytest.mark.parametrize("shape", [Fraction(4, 3), Fraction(1, 2), Fraction(8, 9)])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_pixels_that_are_not_square_are_stretched(tmp_path, shape, name):
    record(tmp_path / name, count=2, sample_aspect_ratio=shape, codec="mpeg4" if name == "a.avi" else "libx264")
    (_, frame), *_ = Clip(tmp_path / name).decode()
    height, width = frame.shape[1:]
    assert width / height == pytest.approx(float(shape), rel=0.02) and min(height, width) == 64


def pq(light):
    """Light in white pages -> signal (SMPTE ST 2084)."""
    y = np.clip(light * 203 / 10000, 0, 1) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


def hlg(light):
    """The same for HLG on a screen of 1000 candela per square metre (ARIB STD-B67)."""
    shown = light * 203 / 1000
    brightness = (shown @ [0.2627, 0.678, 0.0593])[..., None]
    scene = shown * np.maximum(brightness, 1e-9) ** (1 / 1.2 - 1)
    a, b = 0.17883277, 0.28466892
    upper = a * np.log(np.maximum(12 * scene - b, 1e-9)) + 0.5 - a * math.log(4 * a)
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), upper)


COLOURS = np.array([[255, 255, 255], [128, 128, 128], [200, 60, 40], [40, 160, 60], [60, 70, 190], [230, 190, 160]])


@pytest.mark.parametrize("encode, transfer", [(pq, display.PQ), (hlg, display.HLG)])
def test_hdr_has_the_colours_of_a_common_screen(tmp_path, encode, transfer):
    screen = COLOURS / 255
    light = np.where(screen <= 0.04045, screen / 12.92, ((screen + 0.055) / 1.055) ** 2.4)
    signal = encode(light @ np.linalg.inv(np.array(display.TO_BT709)).T)
    pixels = np.round(signal * 65535).astype(np.uint16).repeat(16, 0)[None].repeat(64, 0)
    shown = display.from_hdr(pixels, transfer).permute(1, 2, 0)[8, 8::16].numpy()
    assert np.abs(shown.astype(int) - COLOURS).max() <= 3
    # And so from a film, where it is said.
    r, g, b = np.moveaxis(pixels / 65535, -1, 0)
    luma = 0.2627 * r + 0.678 * g + 0.0593 * b
    planes = [64 + 876 * luma, *(512 + 896 * c[::2, ::2] for c in ((b - luma) / 1.8814, (r - luma) / 1.4746))]
    name = {display.PQ: "smpte2084", display.HLG: "arib-std-b67"}[transfer]
    tags = f"log-level=none:colorprim=bt2020:transfer={name}:colormatrix=bt2020nc:range=limited:crf=4:bframes=0"
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx265", rate=25, options={"x265-params": tags})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p10le"
        frame = av.VideoFrame(96, 64, "yuv420p10le")
        for plane, values in zip(frame.planes, planes):
            buffer = np.zeros((plane.height, plane.line_size // 2), "<u2")
            buffer[:, : values.shape[1]] = np.round(values)
            plane.update(buffer.tobytes())
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    clip = Clip(tmp_path / "a.mp4")
    with pytest.warns(UserWarning, match=f"{display.HDR[transfer]} .HDR.: shown in the colours of a common screen"):
        ((_, frame),) = clip.decode()
    assert np.abs(frame.permute(1, 2, 0)[8, 8::16].numpy().astype(int) - COLOURS).max() <= 8


def test_films_with_transparency_lie_on_white(tmp_path):
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:, 16:] = (255, 0, 0, 255)
    images = [Image.fromarray(np.roll(pixels, shift, 0)) for shift in (0, 8)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=40, disposal=2)
    images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:], duration=40)
    for name in ("a.gif", "a.png"):
        for _, frame in Clip(tmp_path / name).decode():
            assert (frame[:, :, :15] > 250).all() and (frame[1:, :, 18:] < 9).all()


# Damaged


def damage(path, data, start, stop):
    """Turn over some bytes of the pictures: from ``start`` to ``stop``, as shares of their length."""
    begin = data.index(b"mdat") + 4
    length = int.from_bytes(data[begin - 8 : begin - 4], "big") - 8
    changed = bytearray(data)
    for at in range(begin + int(start * length), begin + int(stop * length)):
        changed[at] ^= 0x5A
    path.write_bytes(bytes(changed))


@pytest.mark.filterwarnings("ignore:.*can't be decoded")
def test_a_damaged_stretch_is_stepped_over_and_counted(tmp_path):
    data = film(tmp_path / "a.mp4", count=40, size=64, every=1).read_bytes()
    damage(tmp_path / "a.mp4", data, 0.3, 0.5)
    clip = Clip(tmp_path / "a.mp4")
    with pytest.warns(UserWarning) as said:
        frames = dict(clip.decode())
    assert 15 <= len(frames) < 40 and clip.missing == set(range(40)) - set(frames) and max(frames) == 39
    assert str(said[0].message).endswith(f"{40 - len(frames)} of 40 frames can't be decoded and are left out")
    for number, frame in frames.items():  # each is the one that it says it is
        assert float(frame[1, -4:, -4:].float().mean()) / 255 * 40 == pytest.approx(number, abs=0.6)
    # What is written has each frame at its own time; what is missing leaves the one before standing.
    made = Clip(copy(Clip(tmp_path / "a.mp4"), tmp_path / "b.mp4"))
    assert [float(time * made.time_base) for time in made.times] == pytest.approx([n / 25 for n in frames], abs=0.001)


def test_a_damaged_stretch_between_frames_that_need_each_other(tmp_path):
    record(tmp_path / "a.mp4", size=128, options={"movflags": "faststart"}, sound="aac", codec_options={"g": "8"})
    damage(tmp_path / "a.mp4", (tmp_path / "a.mp4").read_bytes(), 0.45, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Clip(copy(Clip(tmp_path / "a.mp4"), tmp_path / "b.mp4"))
    assert len(made) >= 8


@pytest.mark.filterwarnings("ignore:.*can't be decoded")
@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi", "gif"])
def test_a_film_that_breaks_off_is_read_up_to_there_and_that_is_said(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "gif":
        film(path, count=30)
    else:
        noise = np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), dtype=np.uint8)
        with av.open(str(path), "w", options={"movflags": "faststart"} if kind == "mp4" else {}) as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for picture in noise:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode())
    assert what_is_wrong(path) is None
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    assert what_is_wrong(path) == CUT
    clip = Clip(path)
    with pytest.warns(UserWarning, match=r"breaks off after frame \d+: its end is missing"):
        numbers = [number for number, _ in clip.decode()]
    assert 10 < len(numbers) < 25 and numbers == list(range(len(numbers)))


def test_a_broadcast_that_begins_in_the_middle_says_what_it_lacks(tmp_path):
    """Its first frames need a key frame that isn't there; libav leaves them out without a word."""
    record(tmp_path / "a.ts", format="mpegts", count=30, sound="aac", codec_options={"g": "12", "bf": "2"})
    packets = (tmp_path / "a.ts").read_bytes()
    (tmp_path / "b.ts").write_bytes(packets[188 * 20 :])
    clip = Clip(tmp_path / "b.ts")
    with pytest.warns(UserWarning, match=r"\d+ of \d+ frames can't be decoded and are left out"):
        made = Clip(copy(clip, tmp_path / "c.mp4"))
    assert 10 < len(made) == len(clip) - len(clip.missing) < 30


def test_a_film_behind_a_film_is_said(tmp_path):
    data = film(tmp_path / "a.mp4", count=3).read_bytes()
    (tmp_path / "a.mp4").write_bytes(data + data)
    with pytest.warns(UserWarning, match=JOINED):
        assert len(list(Clip(tmp_path / "a.mp4").decode())) == 3


# Names and kinds


@pytest.mark.parametrize(
    "name", ["2024-05-01T12:30:00", "http:x", "100%d", "-dash", "a'b\"c", "ümläut 日本 🙂", "a#b?c"]
)
def test_names_are_only_names(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    film(f"{name}.mp4", count=3)
    clip = Clip(f"{name}.mp4")
    assert len(list(clip.decode())) == 3
    for suffix in (".MP4", ".gif", ".webm"):
        copy(clip, tmp_path / f"{name} out{suffix}")
        assert len(Clip(f"{name} out{suffix}")) == 3


@pytest.mark.parametrize("suffix", [".MP4", ".Mov", ".webm", ".mkv", ".GIF"])
def test_every_kind_of_output_has_its_frames_times_and_comment(tmp_path, suffix):
    path = film(tmp_path / f"a{suffix}", fps=20, metadata={"comment": "Synthetic media", "synthetic_media": "true"})
    clip = Clip(path)
    assert levels(frame for _, frame in clip.decode()) == list(range(12)) and clip.fps == 20
    assert float((clip.end - clip.times[0]) * clip.time_base) == pytest.approx(0.6, abs=0.011)
    assert b"Synthetic media" in path.read_bytes()
    with av.open(str(path)) as container:
        names = {".webm": ["vp9"], ".GIF": ["gif"]}.get(suffix, ["h264"])
        assert [stream.codec.canonical_name for stream in container.streams] == names


def test_a_gif_keeps_the_times_of_its_film_and_no_frame_is_too_short_for_browsers(tmp_path):
    images = [Image.new("RGB", (32, 32), (20 * number,) * 3) for number in range(6)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[40, 100, 500, 40, 200, 300])
    made = Image.open(copy(Clip(tmp_path / "a.gif"), tmp_path / "b.gif"))

    def durations(image):
        return [(image.seek(number), image.info["duration"])[1] for number in range(image.n_frames)]

    assert durations(made) == [40, 100, 500, 40, 200, 300]
    fast = Image.open(film(tmp_path / "fast.gif", fps=60, count=60))
    assert min(durations(fast)) >= 20 and sum(durations(fast)) == pytest.approx(1000, abs=30)


def test_a_gif_is_written_frame_by_frame(tmp_path):
    """Sixty frames take no more memory than six."""
    peaks = []
    for count in (6, 60):
        held = 0
        with VideoWriter(tmp_path / "a.gif", fps=10) as writer:
            before = resident()
            for number in range(count):
                writer.write(torch.full((3, 512, 512), number / count))
                held = max(held, resident() - before)
        peaks.append(held)
    assert peaks[1] < peaks[0] + 20 * 2**20  # of the 47 MB that all would take
    assert len(Clip(tmp_path / "a.gif")) == 60


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_texts_and_playlists_are_no_films(tmp_path):
    (tmp_path / "a.txt").write_text("hello\n" * 50)
    with pytest.raises(ValueError, match=r"a\.txt: not a video that can be read"):
        Clip(tmp_path / "a.txt")
    (tmp_path / "a.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://localhost:1/a.ts\n")
    with pytest.raises(ValueError, match=r"a\.m3u8: not a video that can be read"):
        Clip(tmp_path / "a.m3u8")


# Where they are found


def test_clips_are_found_in_nested_folders_of_all_kinds(tmp_path):
    for name in ("id1/v1/00001.mp4", "id1/v1/00002.M4V", "id1/v2/00010.mp4", "id2/v1/a.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        film(tmp_path / name.replace("M4V", "mp4"), count=2).rename(tmp_path / name)
    (tmp_path / "id2/v2").mkdir()
    for number in range(2):
        Image.new("RGB", (16, 16)).save(tmp_path / f"id2/v2/{number}.jpg")
    (tmp_path / "id1/v1/._00001.mp4").write_bytes(b"\0\5\x16\7")
    (tmp_path / "id1/v1/00001.png").write_bytes(b"the first frame")
    (tmp_path / "id1/v1/00001.npz").write_bytes(b"landmarks")
    (tmp_path / "id1/back").symlink_to(tmp_path)
    found = [str(path.relative_to(tmp_path)) for path in find_clips(tmp_path)]
    assert found == ["id1/v1/00001.mp4", "id1/v1/00002.M4V", "id1/v2/00010.mp4", "id2/v1/a.gif", "id2/v2"]


def test_what_is_split_off_is_not_found_for_another_purpose(tmp_path):
    (tmp_path / "train/id1").mkdir(parents=True)
    film(tmp_path / "train/id1/a.mp4", count=2)
    assert [path.stem for path in find_clips(tmp_path, "train")] == ["a"]
    with pytest.raises(ValueError, match="holds no clips but those in train/, nothing is held out"):
        find_clips(tmp_path, "test")
    assert not holds_out(tmp_path)
    film(tmp_path / "b.mp4", count=2)
    assert holds_out(tmp_path) and [path.stem for path in find_clips(tmp_path, "test")] == ["b"]


def test_a_folder_of_pictures_is_one_clip(tmp_path):
    for number in range(2):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{number}.png")
    assert find_clips(tmp_path, "train") == [tmp_path]


@pytest.mark.parametrize(
    "suffix",
    [".mp4", ".m4v", ".mov", ".mts", ".mpg", ".mkv", ".avi", ".flv", ".wmv", ".vob", ".nut", ".ivf", ".MXF", ""],
)
def test_containers_of_every_kind_are_found(tmp_path, suffix):
    """And read: for each kind a film that libav writes."""
    kinds = {".m4v": "mp4", ".mts": "mpegts", ".mpg": "mpeg", ".mkv": "matroska", ".wmv": "asf", ".vob": "vob"}
    codecs = dict(
        mpegts="mpeg2video", flv="flv", asf="wmv2", mpeg="mpeg2video", vob="mpeg2video", ivf="libvpx", mxf="mpeg2video"
    )
    kind = kinds.get(suffix, suffix.lower().removeprefix(".") or "mp4")
    path = tmp_path / "id" / f"film{suffix}"
    path.parent.mkdir()
    with av.open(str(path), "w", format=kind) as film:
        stream = film.add_stream(codecs.get(kind, "mpeg4"), rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        noise = np.random.default_rng(0).integers(-40, 41, (64, 64, 3))  # a .ts of a few packets is none
        for level in (50, 100, 150) * 3:
            picture = (level + noise).astype(np.uint8)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode())
    assert find_clips(tmp_path) == [path]
    levels = [float(frame.float().mean()) for _, frame in Clip(path).decode()]
    assert levels == pytest.approx([50, 100, 150] * 3, abs=8)


# Pictures that move


def moving(path, durations, size=32, **options):
    images = [Image.new("RGB", (size, size), (20 * number,) * 3) for number in range(len(durations))]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, lossless=True, **options)
    return path


@pytest.mark.parametrize("name", ["a.webp", "a", "a.mp4"])
def test_an_animated_webp_is_a_film(tmp_path, name):
    made = moving(tmp_path / "a.webp", [40, 100, 500, 0, 300]).rename(tmp_path / name)
    clip = Clip(made)
    assert clip.times == [0, 40, 140, 640, 740] and clip.end == 1040 and clip.fps == Fraction(5000, 1040)
    frames = dict(clip.decode())
    assert [round(float(frame.float().mean())) for frame in frames.values()] == [0, 20, 40, 60, 80]
    assert list(dict(clip.decode(3))) == [0, 1, 2, 3, 4]  # there is no key frame but the first
    assert float(read_image(made).mean()) == 0
    copied = Clip(copy(clip, tmp_path / "b.mp4"))
    assert [round(float(time * copied.time_base), 2) for time in copied.times] == [0, 0.04, 0.14, 0.64, 0.74]


def test_an_animated_webp_is_shown_upright_and_on_white(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    images = [Image.new("RGBA", (32, 16), (0, 0, 0, alpha)) for alpha in (255, 0)]
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], exif=turned, duration=40)
    frames = [frame for _, frame in Clip(tmp_path / "a.webp").decode()]
    assert [tuple(frame.shape) for frame in frames] == [(3, 32, 16)] * 2
    assert [int(frame.float().mean()) for frame in frames] == [0, 255]


@pytest.mark.filterwarnings("ignore:.*(can't be decoded|breaks off)")
def test_an_animated_webp_that_breaks_off_is_read_up_to_there_or_refused(tmp_path):
    data = moving(tmp_path / "a.webp", [40] * 8).read_bytes()
    for share in (0.3, 0.6, 0.9):
        (tmp_path / "cut.webp").write_bytes(data[: int(share * len(data))])
        try:
            clip = Clip(tmp_path / "cut.webp")
            assert 0 < len(list(clip.decode())) < 8
        except MinimodelError as error:
            assert "cut.webp: " in str(error) and "\n" not in str(error)


def test_a_webp_that_stands_still_is_a_picture(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.webp")
    clip = Clip(tmp_path / "a.webp")
    assert len(clip) == 1 and clip.files == [tmp_path / "a.webp"]
