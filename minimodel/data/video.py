"""Reading films: clips with quick random access, and the search for clips in folders.

A clip is a film of any kind that libav reads, or a folder of pictures. A data set is a folder of clips, in folders of
any depth, split into ``train`` and ``test`` (or ``val``) below it, or not split at all. Landmarks may lie beside a clip
as ``NAME.npz`` with ``landmarks`` (T, 74, 2).
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import av
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from minimodel.data.containers import (
    CUT,
    decode_packet,
    holds_film,
    holds_picture,
    open_film,
    read_packets,
    what_is_wrong,
)
from minimodel.data.display import HDR, show_frame
from minimodel.data.landmark_files import read_landmarks
from minimodel.data.pictures import (
    find_gap,
    is_hidden,
    list_frames,
    natural_order,
    one_line,
    read_animation,
    read_durations,
    read_picture,
)
from minimodel.data.timeline import Timeline, read_timeline
from minimodel.errors import MinimodelError

__all__ = ["VIDEOS", "Clip", "find_clips", "holds_out", "read_all", "read_image", "read_landmarks"]

Read = TypeVar("Read")
# The kinds of containers in `minimodel.data.containers.READ`.
VIDEOS: tuple[str, ...] = (".mp4", ".m4v", ".mov", ".gif", ".avi", ".mkv", ".webm", ".ts", ".mts", ".m2ts", ".mpg")
VIDEOS += (".mpeg", ".wmv", ".asf", ".flv", ".3gp", ".ogv", ".3g2", ".f4v", ".qt", ".m2v", ".vob", ".divx", ".ogg")
VIDEOS += (".mxf", ".nut", ".rm", ".rmvb", ".dv", ".ivf", ".wtv", ".y4m", ".apng")
HELD_OUT = ("test", "val")  # folders of a data set, beside ``train``


def read_image(path: str | Path) -> Float[Tensor, "3 h w"]:
    """Read a picture as RGB in [0, 1], see `read_picture`; of a film, its first frame. The content of the file decides,
    not its name. Raises `MinimodelError` for anything else."""
    path = Path(path)
    if holds_film(path):
        return next(Clip(path).decode())[1] / 255
    return read_picture(path)


class Clip:
    """The frames of one clip by number. To reach a frame, only the frames since the last key frame are decoded.

    ``times[n] * time_base`` is the time in seconds when frame n appears, and ``end * time_base`` the time when the last
    frame ends. ``fps`` is the average rate. ``missing`` holds the numbers of frames that turned out not to decode: once
    frame n has been decoded, those before n are complete. Raises `MinimodelError` for a file or folder without frames.

    >>> for number, frame in Clip("film.mp4").decode():  # (3, h, w), bytes
    ...     print(number, frame.shape)
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.missing: set[int] = set()
        self.files: list[Path] | None = None
        self.timeline: Timeline | None = None
        self._said: set[str] = set()
        if not self.path.exists():
            raise MinimodelError(f"{self.path}: no such file")
        if self.path.is_dir():
            self.files = list_frames(self.path)
            if not self.files:
                raise MinimodelError(f"{self.path}: a folder without .png frames, or .jpg, .jpeg or .webp")
        elif holds_picture(self.path):  # a film of one frame, unless it moves
            read_picture(self.path)
            if durations := read_durations(self.path):
                self.times, self.end, self.keys = [0, *accumulate(durations)][:-1], sum(durations), [0]
                self.time_base = Fraction(1, 1000)
                self.fps = len(durations) / (self.end * self.time_base)
                return
            self.files = [self.path]
        if self.files is not None:
            self.times, self.fps = list(range(len(self.files))), Fraction(25)
            self.time_base, self.end, self.keys = 1 / self.fps, len(self.files), self.times
        else:
            self.timeline = read_timeline(self.path)
            self.times, self.fps, self.keys = self.timeline.times, self.timeline.fps, self.timeline.keys
            self.time_base, self.end = self.timeline.time_base, self.timeline.end

    def __len__(self) -> int:
        return len(self.times)

    def decode(self, start: int = 0) -> Iterator[tuple[int, UInt8[Tensor, "3 h w"]]]:
        """Decode the frames from the last key frame at or before ``start`` onwards. Yields (number, frame); frames are
        bytes. Frames that can't be decoded are left out, and a warning gives their count. Raises `MinimodelError` if
        none can be decoded."""
        first = start
        if self.files is not None:
            frames = self._read_files(self.files, start)
            if start == 0 and (gap := find_gap(self.files)):
                self._warn(gap)
        else:
            first = max((key for key in self.keys if key <= start), default=0)
            frames = self._decode(first) if self.timeline else read_animation(self.path)
        last, error = first - 1, None
        for number, frame in frames:
            if isinstance(frame, Exception):
                error = frame
                continue
            self.missing.update(range(last + 1, number))
            self.missing.discard(number)
            last = number
            yield number, frame
        if last < first:
            reason = "there are none" if error is None else one_line(error)
            if self.files is None and what_is_wrong(self.path) == CUT:
                reason = CUT
            raise MinimodelError(f"{self.path}: no frame can be decoded from number {first} on ({reason})")
        self.missing.update(range(last + 1, len(self)))
        lost = {number for number in self.missing if number >= first}
        if error is None:  # a single one may be a field of another, or one that was never to be seen
            lost = {number for number in lost if {number - 1, number + 1} & lost}
        if error is not None or lost:
            count = max(1, len(lost))
            self._warn(f"{count} of {len(self) - first} frames can't be decoded and are left out")
        wrong = what_is_wrong(self.path) if self.files is None else None
        if wrong:
            self._warn(
                f"breaks off after frame {last + 1}: {wrong}" if wrong == CUT else f"{last + 1} frames, but {wrong}"
            )

    def _warn(self, text: str) -> None:
        if text not in self._said:  # a clip may be read many times
            self._said.add(text)
            warnings.warn(f"{self.path}: {text}", stacklevel=3)

    def _read_files(self, files: list[Path], start: int) -> Iterator[tuple[int, Tensor | Exception]]:
        for number in range(start, len(files)):
            try:
                yield number, (read_picture(files[number]) * 255).round().byte()
            except MinimodelError as error:
                yield number, error

    def _decode(self, first: int) -> Iterator[tuple[int, Tensor | Exception]]:
        """Yield (number, frame) from the key frame ``first`` on; for a damaged frame the exception takes the frame's
        place."""
        line = self.timeline
        assert line is not None  # only a folder of pictures, or a picture, has none
        container, stream = open_film(self.path)
        with container:
            stream.thread_type = "SLICE"  # decoding several frames at once would hide which of them fail
            if first:
                container.seek(self.times[first], stream=stream)
            failed: list[av.FFmpegError] = []
            last, packets = first - 1, iter(line.numbers)
            for packet in read_packets(container, stream, failed=failed):
                # A frame bears the timestamp of its packet: here, its number.
                if packet.size:
                    if packet.is_discard or (packet.pts is None and not line.by_order):
                        packet.pts = None
                    else:
                        packet.pts = line.number_at.get(packet.pts) if line.number_at else next(packets, None)
                for frame in decode_packet(stream, packet):
                    if isinstance(frame, av.FFmpegError) or frame.is_corrupt:
                        last += line.by_order
                        yield last, frame if isinstance(frame, Exception) else ValueError("a frame is damaged")
                        continue
                    number = last + 1 if line.by_order or frame.pts is None else frame.pts
                    if number <= last or number >= len(self):  # of a group of frames that began before the key frame
                        continue
                    last = number
                    if frame.color_trc in HDR:
                        self._warn(f"{HDR[frame.color_trc]} (HDR): shown in the colours of a common screen")
                    yield number, show_frame(frame, stream.sample_aspect_ratio)
            yield from ((last, error) for error in failed)


def find_clips(root: str | Path, split: str | None = None) -> list[Path]:
    """List the clips of a data set: those in a folder and in the folders within, a folder of pictures, or a single
    film. ``split`` "train" takes train/, "test" takes test/ or val/, and either takes what lies beside these folders if
    its own isn't there; None takes all. Raises `MinimodelError` if there are no clips.

    >>> clips = [Clip(path) for path in find_clips("data", "train")]
    """
    root = Path(root)
    if not root.exists():
        raise MinimodelError(f"{root}: no such film or folder of clips")
    if root.is_file() and _is_film(root):
        return [root]
    if not root.is_dir():
        raise MinimodelError(f"{root}: expected a film ({', '.join(VIDEOS)}) or a folder of clips")
    if split == "test" and not holds_out(root):
        raise MinimodelError(f"{root}: holds no clips but those in train/, nothing is held out to evaluate on")
    own = {"train": ("train",), "test": HELD_OUT, None: ()}[split]
    root = next((root / name for name in own if (root / name).is_dir()), root)
    clips = _clips_below(root, set() if split is None else _splits(root)) or ([root] if list_frames(root) else [])
    if not clips:
        raise MinimodelError(f"{root}: holds no clips (.mp4, .gif, ..., or folders of .png or .jpg frames)")
    return clips


def holds_out(root: str | Path) -> bool:
    """Whether a data set has clips to evaluate on. One with train/ alone has none; one that isn't split has."""
    root = Path(root)
    if not (root / "train").is_dir() or any((root / name).is_dir() for name in HELD_OUT):
        return True
    return bool(_clips_below(root, _splits(root)))


def read_all(
    paths: Sequence[Path], read: Callable[[Path], Read], *, strict: bool = False, most: int | None = None
) -> list[Read]:
    """Call ``read`` for each clip and list the results, at most ``most``. Clips for which it raises a `MinimodelError`
    are left out: a warning for each gives the reason, and a last one their count.

    Raises `MinimodelError` if no clip is left, and with ``strict`` for the first that can't be read.
    """
    done: list[Read] = []
    left_out: list[str] = []
    for path in tqdm(paths, unit=" clips", desc="opening clips", dynamic_ncols=True, leave=False, delay=3):
        if len(done) == most:
            break
        try:
            done.append(read(path))
        except (MinimodelError, OSError) as error:
            if strict:
                raise
            left_out.append(str(error))
    if left_out and not done:
        raise MinimodelError(left_out[0] + (f"; none of the {len(left_out)} clips can be used" * (len(left_out) > 1)))
    for reason in left_out:
        warnings.warn(f"{reason}; left out", stacklevel=2)
    if left_out:
        warnings.warn(f"{len(left_out)} of {len(left_out) + len(done)} clips left out", stacklevel=2)
    return done


def _splits(root: Path) -> set[str]:
    """The folders of a data set that are split off: they aren't the rest."""
    return {os.path.realpath(root / name) for name in ("train", *HELD_OUT)}


def _is_film(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS or (not path.suffix and holds_film(path))


def _clips_below(folder: Path, seen: set[str]) -> list[Path]:
    """Films, and folders that hold pictures and no films, at any depth."""
    if os.path.realpath(folder) in seen:  # a link leads back
        return []
    seen.add(os.path.realpath(folder))
    clips = []
    for path in sorted(folder.iterdir(), key=natural_order):
        if is_hidden(path):
            continue
        if path.is_dir():
            below = _clips_below(path, seen)
            clips += below or ([path] if list_frames(path) else [])
        elif _is_film(path):
            clips.append(path)
    return clips
