"""When frames are shown and sound is heard, where a file's timestamps repeat or jump: a line that only goes on.

Films that were joined end to end begin to count anew; recorders stumble. Players take what follows a jump as what comes
next, and so does this.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from minimodel.data.containers import CUT, find_sound, open_film, read_packets, what_is_wrong
from minimodel.errors import MinimodelError

LONGEST_PAUSE, LONGEST_OF_BROADCASTS = 600, 10  # seconds; what is further ahead is a jump of the timestamps
SLOWEST, FASTEST = Fraction(1, 100), Fraction(1000)  # frames a second; other rates are mistakes of the file
FINE = Fraction(1, 90000)  # of a second: the unit of times that had to be mended
Packet = tuple[int | None, int | None, int, bool]  # when shown and decoded, in ticks; duration; whether a key frame


@dataclass(frozen=True)
class Stamp:
    """When a packet is to be shown, and when to be decoded, in ticks. Packets come in the order of decoding."""

    shown: int
    decoded: int
    duration: int
    key: bool


@dataclass(frozen=True)
class Timeline:
    """When the frames of a film are shown, and which packet of the file holds which of them."""

    times: list[int]  # in ticks, of frame 0, 1, ... in the order in which they are shown
    time_base: Fraction  # a tick in seconds
    end: int  # when the last one ceases to be shown
    fps: Fraction
    keys: list[int]  # numbers of the frames that the file can be entered at
    number_at: dict[int, int]  # timestamp in the file -> number; empty where timestamps aren't unique
    numbers: list[int]  # numbers in the order of the packets
    by_order: bool  # the file doesn't know when frames are shown, only their order
    shifts: list[Fraction]  # seconds to add to the timestamps of each part of the file
    sound_follows: bool  # the sound's timestamps jump where those of the pictures do
    longest_pause: int  # seconds


def read_timeline(path: Path) -> Timeline:
    """From the timestamps of all packets; nothing is decoded."""
    container, stream = open_film(path)
    with container:
        sound = find_sound(container)
        tick = stream.time_base or FINE
        packets: list[Packet] = []
        heard: list[Packet] = []
        for packet in read_packets(container, *(s for s in (stream, sound) if s is not None)):
            if packet.size and not packet.is_discard:
                (packets if packet.stream is stream else heard).append(
                    (packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe)
                )
        # An .avi knows when frames are decoded, not when they are shown: their order is all there is.
        by_order = container.format.name == "avi" or all(pts is None for pts, *_ in packets)
        broadcast = bool(container.format.flags & av.format.Flags.ts_discont.value)
        longest_pause = LONGEST_OF_BROADCASTS if broadcast else LONGEST_PAUSE
        stated_rate, sound_tick = stream.average_rate, FINE if sound is None else sound.time_base
    stamps = make_stamps(packets, by_order)
    if not stamps:
        raise MinimodelError(f"{path}: holds no frames" + (f": {CUT}" if what_is_wrong(path) == CUT else ""))
    parts = find_parts(stamps, round(longest_pause / tick))
    spans = [find_spans(stamps, parts, tick)]
    if sound is not None:
        sounds = make_stamps(heard, by_order=True)
        of_sound = find_spans(sounds, find_parts(sounds, round(longest_pause / sound_tick)), sound_tick)
        if len(of_sound) == len(spans[0]):
            spans.append(of_sound)
    shifts = find_shifts(*spans)
    shown = [stamp.shown for stamp in stamps]
    regular = len(shifts) == 1 and len(set(shown)) == len(shown)
    if not regular:
        shown = [round((time * tick + shifts[part]) / FINE) for time, part in zip(shown, parts, strict=True)]
        tick = FINE
    order = sorted(range(len(shown)), key=shown.__getitem__)
    times = spread([shown[packet] for packet in order])
    numbers = [0] * len(order)
    for number, packet in enumerate(order):
        numbers[packet] = number
    length = (times[-1] - times[0]) * tick
    fps = stated_rate
    if not fps or not SLOWEST <= fps <= FASTEST:
        fps = (len(times) - 1) / length if length else Fraction(25)
        fps = min(max(fps, SLOWEST), FASTEST).limit_denominator(1001)
    return Timeline(
        times=times,
        time_base=tick,
        end=times[-1] + max(1, stamps[order[-1]].duration if regular else round(1 / fps / tick)),
        fps=fps,
        keys=sorted(number for number, stamp in zip(numbers, stamps) if stamp.key) if regular else [0],
        number_at=dict(zip(shown, numbers)) if regular and not by_order else {},
        numbers=numbers,
        by_order=by_order,
        shifts=shifts,
        sound_follows=len(spans) == 2,
        longest_pause=longest_pause,
    )


def make_stamps(packets: Sequence[Packet], by_order: bool) -> list[Stamp]:
    """Stamps of packets (shown, decoded, duration, key), some of whose times may be unknown. A packet that isn't to be
    shown at any time is a part of another one's frame, and has no stamp."""
    stamps: list[Stamp] = []
    following = 0
    first = next((decoded for _, decoded, *_ in packets if decoded is not None), 0)
    for shown, decoded, duration, key in packets:
        if by_order:
            shown = decoded = following if decoded is None else decoded
        elif shown is None:
            continue
        if decoded is None:  # no news
            decoded = stamps[-1].decoded if stamps else first
        stamps.append(Stamp(shown, decoded, duration, key))
        following = decoded + max(1, duration)
    return stamps


def find_parts(stamps: Sequence[Stamp], longest_pause: int) -> list[int]:
    """The part of the file that each packet is in: another one begins where time goes back, or too far ahead."""
    parts: list[int] = []
    part, last = 0, None
    for stamp in stamps:
        if last is not None and not 0 <= stamp.decoded - last <= longest_pause:
            part += 1
        parts.append(part)
        last = stamp.decoded
    return parts


def find_spans(stamps: Sequence[Stamp], parts: Sequence[int], tick: Fraction) -> list[tuple[Fraction, Fraction]]:
    """When each part begins and ends by its own timestamps, in seconds."""
    spans: list[tuple[Fraction, Fraction]] = []
    for stamp, part in zip(stamps, parts, strict=True):
        begin, end = stamp.shown * tick, (stamp.shown + max(stamp.duration, 1)) * tick
        if part == len(spans):
            spans.append((begin, end))
        spans[part] = min(spans[part][0], begin), max(spans[part][1], end)
    return spans


def find_shifts(*streams: Sequence[tuple[Fraction, Fraction]]) -> list[Fraction]:
    """Seconds to add to the timestamps of each part, so that it begins when all before it has ended. ``streams`` are
    the spans of pictures and of sound, which stay together; all have equally many parts."""
    shifts: list[Fraction] = []
    ended = Fraction(0)
    for spans in zip(*streams, strict=True):
        begin, end = min(b for b, _ in spans), max(e for _, e in spans)
        shifts.append(ended - begin if shifts else Fraction(0))
        ended = end + shifts[-1]
    return shifts


def spread(times: Sequence[int]) -> list[int]:
    """Sorted times, with those that are equal spread until the next other one, so that each comes after the one before;
    the last ones go on at the pace before them."""
    counts = Counter(times)
    distinct = sorted(counts)
    made: list[int] = []
    pace = 1
    for begin, end in zip(distinct, [*distinct[1:], None], strict=True):
        if end is not None:
            pace = max(1, (end - begin) // counts[begin])
        made += [begin + number * pace for number in range(counts[begin])]
    for index in range(1, len(made)):  # where there isn't a tick for each
        made[index] = max(made[index], made[index - 1] + 1)
    return made
