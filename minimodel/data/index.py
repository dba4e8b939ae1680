"""An index of many clips: how many frames each has, found once and kept in a file.

To count a film's frames its whole file is read. For twenty thousand films that takes minutes, at every start of a
training that could begin at once. With the index a film is opened when one of its frames is needed.
"""

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from minimodel.data.video import Clip, read_all
from minimodel.errors import MinimodelError
from minimodel.saving import whole_file

INDEX = ".minimodel-clips.json"  # in the folder of clips; hidden, so that no search for clips lists it
VERSION = 1
MANY = 500  # clips; fewer are opened in a second or two, and their folder is left as it is
EVERY = 30.0  # seconds between saves while clips are counted: what a kill can cost
OPENED = 64  # clips that are held open; each holds the time of every frame


@dataclass(frozen=True)
class IndexedClip:
    """A clip whose number of frames is known, and which is opened when frames are decoded."""

    path: Path
    frames: int

    def __len__(self) -> int:
        return self.frames

    def decode(self, start: int = 0) -> Iterator[tuple[int, UInt8[Tensor, "3 h w"]]]:
        """Decode frames as `Clip.decode` does."""
        return _opened(self.path).decode(start)


@lru_cache(maxsize=OPENED)
def _opened(path: Path) -> Clip:
    return Clip(path)


def open_clip(path: Path) -> Clip:
    """Open a clip to take pairs from. Raises `MinimodelError` if it can't be read, or holds one frame only."""
    clip = Clip(path)
    if len(clip) < 2:
        raise MinimodelError(f"{path}: one frame only, a clip to train on needs two")
    return clip


def index_clips(paths: Sequence[Path], root: Path, *, strict: bool = False) -> list[IndexedClip]:
    """List clips below ``root`` with their numbers of frames, from the index in ``root``, which is completed first.

    A clip is counted again when its size in bytes or its time of change differs from the index. Clips that can't be
    read aren't in the index: they are tried anew, and left out with the warnings of `read_all`; with ``strict`` the
    first of them is a `MinimodelError`. What was counted before a stop isn't counted again. Where the index can't be
    written, a warning says so.

    >>> clips = index_clips(find_clips("data", "train"), Path("data"))
    """
    before = known = read_index(root)
    entries: dict[str, list[int]] = {}
    saved = time.monotonic()

    def read(path: Path) -> IndexedClip:
        nonlocal saved
        name, status = path.relative_to(root).as_posix(), path.stat()
        entry, stamp = known.get(name, []), [status.st_size, status.st_mtime_ns]
        if entry[:2] != stamp:
            entry = [*stamp, len(open_clip(path))]
        entries[name] = entry
        if time.monotonic() - saved > EVERY:
            write_index(root, known | entries)
            saved = time.monotonic()
        return IndexedClip(path, entry[2])

    try:
        clips = read_all(paths, read, strict=strict)
        known = {}  # clips that are gone leave the index
        return clips
    finally:  # also of a run that is stopped
        if known | entries != before:
            write_index(root, known | entries)


def read_index(root: Path) -> dict[str, list[int]]:
    """Read the index in ``root``: bytes, time of change in ns and frames by the clip's path below ``root``.

    An index that isn't there, or is damaged or of another version, is empty.
    """
    try:
        held = json.loads((root / INDEX).read_text(encoding="utf-8"))
        if held["version"] != VERSION:
            return {}
        return {name: [int(size), int(changed), int(frames)] for name, (size, changed, frames) in held["clips"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def write_index(root: Path, clips: dict[str, list[int]]) -> None:
    """Write the index in ``root`` whole or not at all; the counterpart of `read_index`."""
    try:
        with whole_file(root / INDEX) as unfinished:
            unfinished.write_text(json.dumps(dict(version=VERSION, clips=clips)), encoding="utf-8")
    except (MinimodelError, OSError) as error:
        warnings.warn(f"{error}; the clips are counted again at the next start", stacklevel=2)
