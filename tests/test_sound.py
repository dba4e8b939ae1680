"""Times and sound of films of every kind that people have: what jumps or repeats comes out as one line, in sync."""

import warnings
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from minimodel.data.timeline import Stamp, find_parts, find_shifts, spread
from minimodel.data.video import Clip
from tests.test_films import BEEP, RATE, copy, record


def listen(path):
    """When the white frames are shown, when beeps are heard, both in seconds; and the stream of sound."""
    with av.open(f"file:{path}") as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        flashes = [f.time for f in container.decode(video) if f.to_ndarray(format="gray").mean() > 240]
    with av.open(f"file:{path}") as container:
        sound = container.streams.audio[0]
        loud = []
        for frame in container.decode(sound):
            level = np.abs(frame.to_ndarray().astype(np.float64)).reshape(-1)[: frame.samples]
            level = level / (32768 if frame.format.name.startswith("s16") else 1)
            loud += [frame.time + index / frame.sample_rate for index in np.flatnonzero(level > 0.3)]
        beeps = [time for time, before in zip(loud, [-1, *loud]) if time - before > 0.2]
        return flashes, beeps, sound.codec.canonical_name


def assert_in_sync(path, times=1):
    flashes, beeps, codec = listen(path)
    assert len(flashes) == len(beeps) == times, (flashes, beeps)
    assert all(abs(flash - beep) < 0.05 for flash, beep in zip(flashes, beeps)), (flashes, beeps)
    return codec


# Times


@pytest.mark.parametrize("sound", ["aac", "ac3", "mp2"])
@pytest.mark.parametrize("into", ["mp4", "webm"])
def test_films_joined_end_to_end_play_on_in_sync(tmp_path, sound, into):
    data = record(tmp_path / "a.ts", sound=sound, format="mpegts").read_bytes()
    (tmp_path / "joined.ts").write_bytes(3 * data)
    clip = Clip(tmp_path / "joined.ts")
    assert len(clip) == 48 and all(b > a for a, b in pairwise(clip.times))
    shades = [round(float(frame.float().mean()) / 12) for _, frame in clip.decode()]
    assert shades == 3 * [*range(BEEP), 21, *range(BEEP + 1, 16)]
    made = copy(clip, tmp_path / f"b.{into}")
    assert_in_sync(made, times=3)
    assert len(Clip(made)) == 48
    flashes = listen(made)[0]
    assert [b - a for a, b in pairwise(flashes)] == pytest.approx([0.64, 0.64], abs=0.08)


def restamp(source, path, change, options=None):
    """Copy a film's packets with other timestamps: ``change`` (kind, number of the packet, time in seconds)."""
    with av.open(str(source)) as before, av.open(str(path), "w", options=options or {}) as after:
        streams = {stream.index: after.add_stream_from_template(stream) for stream in before.streams}
        counts = dict.fromkeys(streams, 0)
        for packet in before.demux():
            if packet.dts is None:
                continue
            number, stream = counts[packet.stream.index], streams[packet.stream.index]
            counts[packet.stream.index] += 1
            when = change(stream.type, number, float(packet.pts * packet.time_base))
            packet.time_base = Fraction(1, 1000)
            packet.pts = packet.dts = round(when * 1000)
            packet.stream = stream
            after.mux(packet)
    return path


@pytest.mark.parametrize("into", ["mp4", "webm", "gif"])
def test_frames_with_the_same_timestamp_follow_each_other(tmp_path, into):
    record(tmp_path / "a.mkv", codec="mpeg4", sound="mp3")
    pairs = lambda kind, number, when: number // 2 * 2 / 25 if kind == "video" else when  # noqa: E731
    clip = Clip(restamp(tmp_path / "a.mkv", tmp_path / "b.mkv", pairs))
    assert len(clip) == 16 and all(b > a for a, b in pairwise(clip.times))
    assert [float(time * clip.time_base) for time in clip.times] == pytest.approx([n / 25 for n in range(16)], abs=0.01)
    made = copy(clip, tmp_path / f"c.{into}")
    assert len(Clip(made)) == 16
    if into != "gif":
        assert_in_sync(made)


@pytest.mark.parametrize("into, codec", [("mp4", "mp3"), ("mkv", "mp3"), ("webm", "opus")])
@pytest.mark.parametrize("every", [2, 3])
def test_sound_with_the_same_timestamps_stays_in_sync(tmp_path, into, codec, every):
    record(tmp_path / "a.mkv", codec="mpeg4", sound="mp3")
    step = 1152 / RATE
    repeat = lambda kind, number, when: when if kind == "video" else number // every * every * step  # noqa: E731
    clip = Clip(restamp(tmp_path / "a.mkv", tmp_path / "b.mkv", repeat))
    assert assert_in_sync(copy(clip, tmp_path / f"c.{into}")) == codec


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
@pytest.mark.parametrize("into", ["mp4", "webm"])
def test_avi_with_mp3_becomes_a_film_in_sync(tmp_path, codec, into):
    clip = Clip(record(tmp_path / "a.avi", codec=codec, sound="mp3", codec_options={"bf": "0"}))
    assert assert_in_sync(copy(clip, tmp_path / f"b.{into}")) == {"mp4": "mp3", "webm": "opus"}[into]


def test_time_goes_on_where_timestamps_jump():
    assert spread([0, 0, 4, 4, 4, 4, 8]) == [0, 2, 4, 5, 6, 7, 8]
    assert spread([5, 5, 5]) == [5, 6, 7] and spread([0, 0, 0, 1]) == [0, 1, 2, 3]
    stamps = [Stamp(time, time, 1, True) for time in (0, 1, 2, 0, 1, 500, 501)]
    assert find_parts(stamps, 100) == [0, 0, 0, 1, 1, 2, 2]
    second = Fraction(1)
    pictures = [(0 * second, 3 * second), (0 * second, 2 * second)]
    sound = [(-1 * second, 4 * second), (-1 * second, 3 * second)]
    assert find_shifts(pictures) == [0, 3] and find_shifts(pictures, sound) == [0, 5]


# Sound


@pytest.mark.parametrize("into", ["mp4", "mov", "mkv", "webm"])
@pytest.mark.parametrize(
    "source, codec, rate",
    [
        ("mp4", "aac", 44100),
        ("mkv", "mp3", 44100),
        ("mp4", "mp3", 48000),
        ("mkv", "flac", 192000),
        ("mov", "pcm_s16le", 192000),
        ("mov", "pcm_s16le", 6000),
        ("webm", "libopus", 48000),
    ],
)
def test_sound_of_every_kind_stays_in_sync(tmp_path, source, codec, rate, into):
    video = "libvpx" if source == "webm" else "libx264"
    clip = Clip(record(tmp_path / f"a.{source}", codec=video, sound=codec, rate=rate))
    made = assert_in_sync(copy(clip, tmp_path / f"b.{into}"))
    basic = {"aac", "mp3"} | ({"opus"} if into in ("mp4", "mkv") else set())
    known = {"webm": {"opus", "vorbis"}, "mkv": basic | {"flac", "vorbis", "pcm_s16le"}}.get(into, basic)
    known = known | ({"pcm_s16le"} if into == "mov" else set())
    named = codec.removeprefix("lib")
    assert made == (named if named in known else "opus" if into == "webm" else "aac")


@pytest.mark.parametrize("codec, source", [("mp3", "mkv"), ("mp3", "mp4"), ("aac", "mp4"), ("alac", "mov")])
def test_sound_that_can_be_copied_is_copied(tmp_path, codec, source):
    """Its packets are what they were, to the bit."""

    def packets(path):
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size]

    clip = Clip(record(tmp_path / f"a.{source}", sound=codec))
    before, after = packets(clip.path), packets(copy(clip, tmp_path / "b.mp4"))
    assert len(after) > 5 and after == before[: len(after)]


def test_a_pause_in_the_sound_stays_a_pause(tmp_path):
    """Between the beep and the rest nothing was recorded; so what follows isn't heard earlier."""
    record(tmp_path / "a.mkv", codec="mpeg4", sound="flac", count=40)
    late = lambda kind, number, when: when + 0.4 * (when > 0.1)  # noqa: E731
    clip = Clip(restamp(tmp_path / "a.mkv", tmp_path / "b.mkv", late))
    assert_in_sync(copy(clip, tmp_path / "c.mp4"))


def test_sound_that_is_damaged_leaves_the_film_whole(tmp_path):
    record(tmp_path / "a.mov", sound="pcm_s16le")
    record(tmp_path / "b.mkv", sound="flac", count=40)
    data = bytearray((tmp_path / "b.mkv").read_bytes())
    for at in range(len(data) // 2, len(data) // 2 + 400, 3):
        data[at] ^= 0xFF
    (tmp_path / "b.mkv").write_bytes(bytes(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Clip(copy(Clip(tmp_path / "b.mkv"), tmp_path / "c.mp4"))
    assert len(made) >= 30
