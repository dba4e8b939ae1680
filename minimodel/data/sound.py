"""The sound of a film, for a film that is made from it: copied where that can be, else converted, always in sync."""

import warnings
from collections.abc import Generator, Iterator
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import numpy as np

from minimodel.data.containers import decode_packet, find_sound, open_film, read_packets
from minimodel.data.pictures import one_line
from minimodel.data.video import Clip

# By format of the film: what can be copied into it (of what its players know), and what else is converted to.
BASIC = {"aac", "mp3", "ac3", "eac3", "alac", "opus"}
COPIED = {
    "mp4": BASIC,
    "mov": BASIC - {"opus"} | {"pcm_s16le", "pcm_s24le"},
    "matroska": BASIC | {"flac", "vorbis", "mp2", "dts", "pcm_s16le", "pcm_s24le"},
    "webm": {"opus", "vorbis"},
}
CONVERTED = {"mp4": "aac", "mov": "aac", "matroska": "aac", "webm": "libopus"}
RATES = {
    "aac": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000),
    "libopus": (8000, 12000, 16000, 24000, 48000),
}
USUAL_RATE = 48000
LAYOUTS = ("mono", "stereo", "5.1")  # others become stereo
SILENCE = Fraction(1, 10)  # of a second: pauses from here on are kept, shorter ones are errors of rounding


def copy_sound(clip: Clip, film: av.container.OutputContainer) -> Generator[tuple[Fraction, av.Packet], None, None]:
    """(seconds, packet) of a clip's sound for ``film``, which gets a stream for them, from the clip's first frame on;
    none if the clip has no sound. Sound that can't be read any further ends, with a warning."""
    if clip.timeline is None:
        return
    container, _ = open_film(clip.path)
    reached = Fraction(0)
    with container:
        stream = find_sound(container)
        if stream is None:
            return
        try:
            packets = _timed_packets(clip, container, stream)
            # libav's name of the decoder may be another one than the codec's, as mp3float is mp3's.
            if stream.codec.canonical_name in COPIED[film.format.name]:
                packets = _copy(packets, film.add_stream_from_template(stream))
            else:
                codec = CONVERTED[film.format.name]
                rate = next((rate for rate in RATES[codec] if rate >= stream.rate), USUAL_RATE)
                layout = stream.layout.name if stream.layout.name in LAYOUTS else "stereo"
                packets = _convert(packets, stream, film.add_stream(codec, rate=rate, layout=layout))
            for reached, packet in packets:
                yield reached, packet
        except (av.FFmpegError, ValueError) as error:  # a film without its sound is better than none
            warnings.warn(f"{clip.path}: its sound ends after {float(reached):.1f} s ({one_line(error)})", stacklevel=2)


def _timed_packets(clip: Clip, container, stream) -> Iterator[tuple[Fraction, av.Packet]]:
    """(seconds after the clip's first frame, packet); where timestamps jump, the pictures' jump with them."""
    line = clip.timeline
    assert line is not None  # only a folder of pictures, or a picture, has none
    longest_pause = round(line.longest_pause / stream.time_base)
    begin = clip.times[0] * clip.time_base
    last, part, shift, ended = None, 0, Fraction(0), Fraction(0)
    for packet in read_packets(container, stream):
        if not packet.size:
            continue
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None:
            seconds = ended
        else:
            if last is not None and not 0 <= stamp - last <= longest_pause:
                part += 1
                # Sound that jumps by itself goes on where it was.
                shift = line.shifts[part] if line.sound_follows else ended - stamp * stream.time_base
            last = stamp
            seconds = stamp * stream.time_base + shift
        ended = seconds + (packet.duration or 0) * stream.time_base
        if seconds >= begin or not begin:
            yield seconds - begin, packet


def _copy(packets: Iterator[tuple[Fraction, av.Packet]], target) -> Iterator[tuple[Fraction, av.Packet]]:
    rate, samples = target.rate, target.codec_context.frame_size if target.codec_context else 0
    following = None
    for seconds, packet in packets:
        lengths = [Fraction(samples, rate), (packet.duration or 0) * packet.time_base]
        length = min((length for length in lengths if length), default=Fraction(0))  # too long would add up
        # Timestamps that repeat, or are rounded, would be refused: each packet begins when the one before has ended.
        seconds = seconds if following is None else max(seconds, following)
        following = seconds + max(length, Fraction(1, rate))
        packet.time_base = Fraction(1, rate)
        packet.pts = packet.dts = round(seconds * rate)
        packet.duration = round(length * rate)
        packet.stream = target
        yield seconds, packet


def _convert(packets: Iterator[tuple[Fraction, av.Packet]], stream, target) -> Iterator[tuple[Fraction, av.Packet]]:
    """Decoded, brought to the rate and the layout that the codec takes, with silence where there are pauses."""
    context = target.codec_context
    rate, layout, sample_format = context.rate, context.layout.name, context.format.name
    fifo, size, kind = av.AudioFifo(), None, None
    resampler: Any = None
    begun, filled = None, 0
    encoded = 0
    for seconds, frame in chain(_decode(packets, stream), [(None, None)]):
        pieces: list[av.AudioFrame] = []
        if frame is not None:
            if kind != (kind := (frame.format.name, frame.layout.name, frame.sample_rate)):
                pieces += resampler.resample(None) if resampler is not None else []
                resampler = av.AudioResampler(format=sample_format, layout=layout, rate=rate)
            if begun is None:
                begun = round(seconds * rate)
            pause = round(seconds * rate) - begun - filled
            if pause > SILENCE * rate:
                pieces += _silence(pause, sample_format, layout, rate)
            frame.pts = None
            pieces += resampler.resample(frame)
        elif resampler is not None:
            pieces += resampler.resample(None)
        for piece in pieces:
            piece.pts = None
            fifo.write(piece)
            filled += piece.samples
        size = size or context.frame_size or 1024
        while (piece := fifo.read(size, partial=frame is None)) is not None:
            assert begun is not None  # else nothing would have been written to be read
            piece.pts, piece.time_base = begun + encoded, Fraction(1, rate)
            encoded += piece.samples
            for packet in target.encode(piece):
                yield packet.pts * packet.time_base, packet
    for packet in target.encode(None) if begun is not None else ():
        yield packet.pts * packet.time_base, packet


def _decode(packets: Iterator[tuple[Fraction, av.Packet]], stream) -> Iterator[tuple[Fraction, av.AudioFrame]]:
    """(seconds, frame); damaged ones are left out."""
    last = Fraction(0)
    for last, packet in packets:
        packet.pts = packet.dts = round(last / packet.time_base)
        for frame in decode_packet(stream, packet):
            if isinstance(frame, av.AudioFrame) and frame.samples:
                yield (last if frame.pts is None else frame.pts * frame.time_base), frame


def _silence(samples: int, sample_format: str, layout: str, rate: int) -> Iterator[av.AudioFrame]:
    channels = av.AudioLayout(layout).nb_channels
    planar = sample_format.endswith("p")
    while samples > 0:
        count = min(samples, rate)
        shape = (channels, count) if planar else (1, channels * count)
        frame = av.AudioFrame.from_ndarray(np.zeros(shape, np.float32), format=sample_format, layout=layout)
        frame.sample_rate = rate
        yield frame
        samples -= count
