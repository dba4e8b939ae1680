"""Writing films: .mp4, .mov, .mkv and .webm with sound, and .gif."""

import shutil
import tempfile
import warnings
from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Float
from torch import Tensor

from minimodel.data.containers import file_url
from minimodel.data.pictures import one_line
from minimodel.data.sound import copy_sound
from minimodel.data.video import Clip
from minimodel.errors import MinimodelError
from minimodel.saving import whole_file

FPS = 25  # of films that are made here
FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".gif": "gif"}
GIF_TICK, GIF_SHORTEST = Fraction(1, 100), 2  # seconds, and ticks: browsers show frames slowly that are to last less


def check_size(size: int) -> None:
    """Raise a `MinimodelError` unless ``size`` is even, as H.264 needs it, and at least 16 pixels."""
    if size < 16 or size % 2:
        raise MinimodelError(f"size is {size}: expected an even number, at least 16")


class VideoWriter:
    """Writes a film, whole or not at all: until it is finished the file has another name. The ending of ``path``
    decides the format: .mp4, .mov and .mkv (H.264), .webm (VP9), .gif.

    Frames are (3, h, w) in [0, 1]. With ``like`` each frame gets the time that it has in that clip, and the clip's
    sound is copied (a .gif is silent). Frames that turn out not to decode in ``like`` (`Clip.missing`) are skipped in
    the timing, so don't write them. ``fps`` is the rate without ``like``. ``every`` is the distance of key frames:
    short for clips that are read at random. ``crf`` is H.264's quality; lower is better. ``metadata`` goes into the
    container; a .gif has room for ``comment`` alone.

    Raises:
        MinimodelError: an unknown ending, a directory, no frame to write, or a file that can't be written.

    >>> with VideoWriter("film.mp4", fps=25) as writer:
    ...     writer.write(torch.rand(3, 64, 64))
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: Fraction | int = 25,
        like: Clip | None = None,
        every: int = 250,
        crf: int = 17,
        metadata: dict[str, str] | None = None,
    ):
        self.path = Path(path)
        if self.path.suffix.lower() not in FORMATS:
            raise MinimodelError(f"{self.path}: the name of the output must end in .mp4 or .gif, or .mov, .mkv, .webm")
        if self.path.is_dir():
            raise MinimodelError(f"{self.path}: is a directory, expected the name of a file to write")
        self.format = FORMATS[self.path.suffix.lower()]
        self.like, self.every, self.crf, self.metadata = like, every, crf, metadata or {}
        self.fps = like.fps if like else Fraction(fps)
        self.container: Any = None
        self.written, self.last, self.ended = 0, 0, Fraction(0)
        self.sound: Generator[tuple[Fraction, av.Packet], None, None] | None = None
        self.next_sound: tuple[Fraction, av.Packet] | None = None
        self._times = self._frame_times()

    def __enter__(self) -> "VideoWriter":
        self._cleanup = ExitStack()
        self.unfinished = self._cleanup.enter_context(whole_file(self.path))
        return self

    def _frame_times(self) -> Iterator[tuple[Fraction, Fraction]]:
        """The times in seconds at which each frame begins and ends."""
        begin = Fraction(0)
        if self.like is not None:
            times, tick = [*self.like.times, self.like.end], self.like.time_base
            for number in range(len(self.like)):
                if number not in self.like.missing:  # which is known once a frame after it has been decoded
                    yield (times[number] - times[0]) * tick, (times[number + 1] - times[0]) * tick
            begin = (times[-1] - times[0]) * tick
        for number in count():
            yield begin + number / self.fps, begin + (number + 1) / self.fps

    def _start(self, height: int, width: int) -> None:
        options = {"movflags": "use_metadata_tags"} if self.format in ("mp4", "mov") else {}
        self.container = av.open(file_url(self.unfinished), "w", format=self.format, options=options)
        self.container.metadata.update(self.metadata)
        self.time_base = self.like.time_base if self.like else 1 / self.fps
        if self.format == "gif":
            self.stream = self.container.add_stream("gif", rate=1 / GIF_TICK)
            self.time_base, self.palette = GIF_TICK, Palette(height, width)
            self.stream.pix_fmt = "pal8"
        elif self.format == "webm":
            # Its scale of quality is another one, and half of its usual care takes a quarter of the time.
            options = {
                "crf": str(min(63, self.crf + 12)),
                "b": "0",
                "g": str(self.every),
                "cpu-used": "5",
                "row-mt": "1",
            }
            self.stream = self.container.add_stream("libvpx-vp9", rate=self.fps, options=options)
            self.stream.pix_fmt = "yuv420p"
        else:
            options = {"crf": str(self.crf), "g": str(self.every)}
            self.stream = self.container.add_stream("libx264", rate=self.fps, options=options)
            self.stream.pix_fmt = "yuv420p"
        self.stream.width, self.stream.height = width, height
        self.stream.codec_context.time_base = self.time_base
        if self.like is not None and self.format != "gif":
            self.sound = copy_sound(self.like, self.container)
            self._cleanup.callback(self.sound.close)
            self.next_sound = next(self.sound, None)

    def write(self, picture: Float[Tensor, "3 h w"]) -> None:
        """Append a frame; the first one decides the film's size. Colours outside [0, 1] are clamped."""
        array = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        if self.container is None:
            self._start(*array.shape[:2])
        begin, self.ended = next(self._times)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
        frame.pts, frame.time_base = round(begin / self.time_base), self.time_base
        if self.format == "gif":
            if self.written and frame.pts - self.last < GIF_SHORTEST:  # the one before stands a bit longer
                return
            self.last, frame = frame.pts, self.palette(frame)
        self.written += 1
        self._write_sound(begin)
        packets = self.stream.encode(frame)
        if self.format == "gif":
            for packet in packets:  # the last one's would be as short as can be
                packet.duration = round((self.ended - begin) / self.time_base)
        self._mux(packets)

    def _mux(self, packets: list[av.Packet]) -> None:
        try:
            self.container.mux(packets)
        except (av.FFmpegError, OSError) as failure:
            raise MinimodelError(f"{self.path}: can't be written ({one_line(failure)})") from failure

    def _write_sound(self, until: Fraction) -> None:
        """Write the sound up to the time that the pictures have reached, so that both are interleaved."""
        while self.sound is not None and self.next_sound is not None and self.next_sound[0] <= until:
            try:
                self._mux([self.next_sound[1]])
            except MinimodelError as error:
                if isinstance(error.__cause__, OSError):  # the disk is full
                    raise
                warnings.warn(f"{self.path}: the sound ends after {float(self.next_sound[0]):.1f} s", stacklevel=3)
                self.sound.close()
            self.next_sound = next(self.sound, None)

    def __exit__(self, kind, error, trace) -> None:
        with self._cleanup:
            if kind is not None:  # which is what matters then
                with suppress(av.FFmpegError, OSError):
                    if self.container is not None:
                        self.container.close()
                self._cleanup.pop_all().__exit__(kind, error, trace)
                return
            if self.container is None:
                raise MinimodelError(f"{self.path}: not written, there was no frame to write")
            try:
                self._write_sound(self.ended)
                self._mux(self.stream.encode())
                self.container.close()
                if self.format == "gif":
                    write_comment(self.unfinished, self.metadata.get("comment", ""))
            except (av.FFmpegError, OSError) as failure:
                raise MinimodelError(f"{self.path}: can't be written ({one_line(failure)})") from failure


class Palette:
    """Reduces each frame to its own best 256 colours, so that no frame has to be kept."""

    def __init__(self, height: int, width: int):
        self.graph = av.filter.Graph()
        source = self.graph.add_buffer(width=width, height=height, format="rgb24", time_base=GIF_TICK)
        split, sink = self.graph.add("split"), self.graph.add("buffersink")
        colours = self.graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
        painted = self.graph.add("paletteuse", "new=1:dither=none")
        source.link_to(split)
        split.link_to(colours, 0, 0)
        split.link_to(painted, 1, 0)
        colours.link_to(painted, 0, 1)
        painted.link_to(sink)
        self.graph.configure()

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Reduce an RGB frame to 256 colours."""
        self.graph.push(frame)
        return self.graph.pull()


def write_comment(gif: Path, comment: str) -> None:
    """Insert a comment before the frames of a .gif, which libav can't do."""
    if not comment:
        return
    data = comment.encode()
    blocks = [data[start : start + 255] for start in range(0, len(data), 255)]
    with gif.open("rb") as film, tempfile.TemporaryFile(dir=gif.parent) as whole:
        head = film.read(13)  # its last byte but two holds the length of the colours that follow
        colours = 3 << (head[10] & 7) + 1 if head[10] & 128 else 0
        whole.write(head + film.read(colours))
        whole.write(b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0")
        shutil.copyfileobj(film, whole)
        whole.seek(0)
        with gif.open("wb") as file:
            shutil.copyfileobj(whole, file)
