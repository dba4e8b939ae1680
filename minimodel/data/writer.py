"""Films out: .mp4 with sound, and .gif."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import imageio.v3 as iio
import numpy as np
from jaxtyping import Float
from torch import Tensor

from minimodel.data.video import Clip, _one_line
from minimodel.errors import MinimodelError

FPS = 25  # of films that are made here


def check_size(size: int) -> None:
    """Films have even sides, and faces want some pixels."""
    if size < 16 or size % 2:
        raise MinimodelError(f"size is {size}: expected an even number, at least 16")


class VideoWriter:
    """Writes an .mp4 (H.264), or a .gif, whole or not at all: under another name until it is finished.

    Frames are (3, h, w) in [0, 1]. ``like`` gives each frame the time it has in that clip, and copies its sound (a .gif
    is silent and has the clip's average rate).
    ``every`` is the distance of key frames: short for clips that are to be read at random. ``crf`` is H.264's quality,
    lower is better. ``metadata`` go into the container; a .gif has room for ``comment`` alone.
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
        if self.path.suffix not in (".mp4", ".gif"):
            raise MinimodelError(f"{self.path}: the name of the output must end in .mp4 or .gif")
        if self.path.is_dir():
            raise MinimodelError(f"{self.path}: is a directory, expected the name of a file to write")
        self.like, self.every, self.crf, self.metadata = like, every, crf, metadata or {}
        self.fps = like.fps if like else Fraction(fps)
        self.unfinished = self.path.with_name(f".unfinished-{self.path.name}")
        self.pictures: list[np.ndarray] = []  # of a .gif, which is written at the end
        self.container: av.container.OutputContainer | None = None
        self.input: av.container.InputContainer | None = None
        self.written = 0

    def __enter__(self) -> "VideoWriter":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.unfinished.touch()
        except OSError as error:
            raise MinimodelError(f"{self.path}: can't be written ({error.strerror})") from error
        return self

    def _start(self, height: int, width: int) -> None:
        container = av.open(str(self.unfinished), "w", format="mp4", options={"movflags": "use_metadata_tags"})
        container.metadata.update(self.metadata)
        self.container = container
        options = {"crf": str(self.crf), "g": str(self.every)}
        self.stream = container.add_stream("libx264", rate=self.fps, options=options)
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
        time_base = self.like.time_base if self.like else 1 / self.fps
        self.stream.codec_context.time_base = time_base
        self.sound: Iterator[tuple[float, av.Packet]] = iter(())
        if self.like is not None and self.like.files is None:
            self.input = av.open(str(self.like.path))
            if self.input.streams.audio:
                self.sound = self._sound(self.input.streams.audio[0])
        self.next_sound = next(self.sound, None)

    def _sound(self, stream) -> Iterator[tuple[float, av.Packet]]:
        """(seconds, packet) of the copied sound, from the first picture on: as it is where .mp4 can hold it, else as
        AAC."""
        assert self.like is not None and self.container is not None and self.input is not None
        start = self.like.times[0] * self.like.time_base
        if stream.codec.name in ("aac", "mp3", "ac3", "alac", "opus"):
            target = self.container.add_stream_from_template(stream)
            for packet in self.input.demux(stream):
                if packet.dts is None:
                    continue
                late = round(start / packet.time_base)
                if late and packet.pts < late:
                    continue
                packet.pts, packet.dts = packet.pts - late, packet.dts - late
                when = float(packet.pts * packet.time_base)
                packet.stream = target
                yield when, packet
            return
        target = self.container.add_stream("aac", rate=stream.rate)
        heard = (frame for frame in self.input.decode(stream) if frame.pts * frame.time_base >= start or not start)
        for frame in chain(heard, [None]):
            if frame is not None:
                frame.pts -= round(start / frame.time_base)
            for packet in target.encode(frame):
                yield float(packet.pts * packet.time_base), packet

    def write(self, picture: Float[Tensor, "3 h w"]) -> None:
        array = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        if self.path.suffix == ".gif":
            self.pictures.append(array)
            return
        if self.container is None:
            self._start(*array.shape[:2])
        assert self.container is not None
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
        first = self.like.times[0] if self.like else 0
        frame.pts = self.like.times[self.written] - first if self.like else self.written
        frame.time_base = self.stream.codec_context.time_base
        self.written += 1
        # Sound goes between the pictures, up to the moment that they have reached.
        while self.next_sound is not None and self.next_sound[0] <= float(frame.pts * frame.time_base):
            self.container.mux(self.next_sound[1])
            self.next_sound = next(self.sound, None)
        self.container.mux(self.stream.encode(frame))

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                if not self.pictures and self.container is None:
                    raise MinimodelError(f"{self.path}: not written, there was no frame to write")
                if self.pictures:
                    duration = 1000 / float(self.fps)
                    about = dict(comment=self.metadata["comment"]) if "comment" in self.metadata else {}
                    film = iio.imwrite("<bytes>", self.pictures, extension=".gif", duration=duration, loop=0, **about)
                    self.unfinished.write_bytes(film)
                if self.container is not None:
                    self.container.mux(self.stream.encode())
            if self.container is not None:
                self.container.close()
            if kind is None:
                self.unfinished.replace(self.path)
        except (av.FFmpegError, OSError) as failure:
            raise MinimodelError(f"{self.path}: can't be written ({_one_line(failure)})") from failure
        finally:
            if self.input is not None:
                self.input.close()
            self.unfinished.unlink(missing_ok=True)
