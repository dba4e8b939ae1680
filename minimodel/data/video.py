"""Real video: clips with quick random access, pairs of frames for training, pictures and films in and out.

A clip is an .mp4 or .gif file or a folder of .png frames, as VoxCeleb is usually prepared; a data set is a folder of
clips, split into ``train`` and ``test`` (or ``val``) below it, or not split at all. Landmarks may lie beside a clip as
``NAME.npz`` with ``landmarks`` (T, 74, 2).
"""

import warnings
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from minimodel.warping import from_pixels, identity_grid

VIDEOS = (".mp4", ".gif", ".mov", ".avi", ".mkv", ".webm")
SMALLEST, LARGEST = 8, 16384  # sides of pictures, in pixels


def read_image(path: str | Path) -> Float[Tensor, "3 h w"]:
    """A picture of any colour mode as RGB in [0, 1]: grey is repeated, transparency lies on white, 16 bits keep their
    range, a camera's rotation mark is obeyed; of a video its first frame. ValueError in one line for anything else."""
    path = Path(path)
    if path.suffix.lower() in VIDEOS:
        return next(Clip(path).decode())[1] / 255
    if path.is_dir():
        raise ValueError(f"{path}: is a directory, expected a picture")
    try:
        array = _read_array(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except Exception as error:  # the reading libraries raise many kinds
        raise ValueError(f"{path}: not a picture that can be read ({_one_line(error)})") from error
    return _to_rgb(array, path)


def _read_array(path: Path) -> np.ndarray:
    if path.suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"):
        return iio.imread(path)
    with iio.imopen(path, "r", plugin="pillow") as file:
        mode = file.metadata()["mode"]
    if mode in ("CMYK", "YCbCr", "LAB", "HSV"):  # their channels would be taken for colours and transparency
        return iio.imread(path, plugin="pillow", mode="RGB", rotate=True)
    if path.suffix.lower() in (".tif", ".tiff"):
        return iio.imread(path)  # by another reader, which knows 16 bits of several channels
    return iio.imread(path, plugin="pillow", rotate=True)


def _to_rgb(array: np.ndarray, path: Path) -> Tensor:
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 4:  # an animated picture: its first frame
        array = array[0]
    height, width, channels = array.shape
    if channels > 4:
        raise ValueError(f"{path}: {channels} channels or pages, expected a picture of 1 to 4 channels")
    if not SMALLEST <= min(height, width) <= max(height, width) <= LARGEST:
        raise ValueError(f"{path}: {width} x {height} pixels, sides must be {SMALLEST} to {LARGEST}")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    limit = np.iinfo(array.dtype).max if np.issubdtype(array.dtype, np.integer) else 1.0
    if array.dtype == np.int32:  # how 16-bit grey pictures arrive from some readers
        limit = 65535
    image = torch.from_numpy(array.astype(np.float32) / limit).permute(2, 0, 1)
    if channels in (2, 4):
        image, alpha = image[:-1], image[-1:]
        image = image * alpha + (1 - alpha)
    return image.expand(3, -1, -1).contiguous().clamp(0, 1)


def fit(images: Float[Tensor, "b 3 h w"], size: int) -> Float[Tensor, "b 3 size size"]:
    """The largest square from the middle of each picture, averaged or interpolated to ``size``."""
    side = min(images.shape[-2:])
    top, left = (images.shape[-2] - side) // 2, (images.shape[-1] - side) // 2
    square = images[..., top : top + side, left : left + side]
    if side == size:
        return square.clone()
    return F.interpolate(square, (size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def read_landmarks(path: str | Path) -> tuple[Float[Tensor, "t 74 2"], Fraction]:
    """The landmarks in an .npz that `minimodel landmarks` or `synthesize` wrote, normalised to the square that `fit`
    takes of a film's frames; and the film's frames per second."""
    try:
        with np.load(path, allow_pickle=False) as file:
            points = torch.from_numpy(file["landmarks"]).float()
            height, width = (int(n) for n in (file["size"] if "size" in file else file["parsing"].shape[1:]))
            fps = Fraction(*(int(n) for n in file["fps"])) if "fps" in file else Fraction(25)
        if points.dim() != 3 or points.shape[1:] != (74, 2) or not len(points):
            raise ValueError("landmarks of another shape")
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except Exception as error:  # a broken or foreign file raises many kinds
        raise ValueError(f"{path}: not the landmarks of a film, as `minimodel landmarks` writes them") from error
    side = min(height, width)
    corner = torch.tensor([(width - side) // 2, (height - side) // 2])
    return from_pixels(points - corner, (side, side)), fps


class Clip:
    """Frames of one clip by number; only the frames since the last key frame are decoded to reach one.

    ``times[n] * time_base`` is when frame n is shown, in seconds; ``fps`` the average rate.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.exists():
            raise ValueError(f"{self.path}: no such file")
        if self.path.is_dir():
            self.files = sorted(self.path.glob("*.png"))
            self.times, self.fps = list(range(len(self.files))), Fraction(25)
            self.time_base = 1 / self.fps
            if not self.files:
                raise ValueError(f"{self.path}: a folder without .png frames")
            return
        self.files = None
        with self._open() as container:
            stream = container.streams.video[0]
            self.fps, self.time_base = stream.average_rate or Fraction(25), stream.time_base
            packets = []
            try:
                packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.pts is not None]
            except av.FFmpegError as error:
                raise ValueError(f"{self.path}: can't be read ({_one_line(error)})") from error
            packets.sort()
        if not packets:
            raise ValueError(f"{self.path}: holds no frames")
        self.times = [time for time, _ in packets]
        self.keys = [number for number, (_, key) in enumerate(packets) if key]

    def __len__(self) -> int:
        return len(self.times)

    def _open(self):
        try:
            container = av.open(str(self.path))
        except av.FFmpegError as error:
            raise ValueError(f"{self.path}: not a video that can be read ({_one_line(error)})") from error
        if not container.streams.video:
            container.close()
            raise ValueError(f"{self.path}: holds no video")
        return container

    def decode(self, start: int = 0) -> Iterator[tuple[int, UInt8[Tensor, "3 h w"]]]:
        """(number, frame) from the last key frame at or before ``start`` onwards. A film that breaks off ends early,
        with a warning."""
        if self.files is not None:
            for number in range(start, len(self.files)):
                yield number, (read_image(self.files[number]) * 255).round().byte()
            return
        numbers = {time: number for number, time in enumerate(self.times)}
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            key = max((k for k in self.keys if k <= start), default=0)
            if key:
                container.seek(self.times[key], stream=stream)
            # An .avi knows when frames are decoded, not when they are shown: their order is all there is.
            in_order = self.path.suffix.lower() == ".avi"
            last, reason = key - 1, "there are none"
            try:
                for frame in container.decode(stream):
                    last = last + 1 if in_order else numbers.get(frame.pts, last + 1)
                    picture = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
                    yield last, picture.rot90(round(frame.rotation / 90), (1, 2))  # as the camera was held
            except av.FFmpegError as error:
                reason = _one_line(error)
            if last < key:
                raise ValueError(f"{self.path}: no frame can be decoded from number {key} on ({reason})")
            if last + 1 < len(self):
                warnings.warn(f"{self.path}: breaks off after frame {last + 1} of {len(self)}", stacklevel=2)


def find_clips(root: str | Path, split: str | None = None) -> list[Path]:
    """The clips of a data set: a folder of them, or one film. ``split`` "train" looks into train/, "test" into test/ or
    val/, and either into the folder itself where it isn't split."""
    root = Path(root)
    if not root.exists():
        raise ValueError(f"{root}: no such film or folder of clips")
    if root.is_file() and root.suffix.lower() in VIDEOS:
        return [root]
    if not root.is_dir():
        raise ValueError(f"{root}: expected a film ({', '.join(VIDEOS)}) or a folder of clips")
    folders = {"train": ["train"], "test": ["test", "val"], None: []}[split]
    root = next((root / name for name in folders if (root / name).is_dir()), root)
    clips = [
        path
        for path in sorted(root.iterdir())
        if path.suffix.lower() in VIDEOS or (path.is_dir() and next(path.glob("*.png"), None) is not None)
    ]
    if not clips:
        raise ValueError(f"{root}: holds no clips (.mp4, .gif, or folders of .png frames)")
    return clips


class FrameCache:
    """Frames of many clips, square and at one size, kept as bytes up to ``limit`` in all, least recently used clip
    first to go; a clip that alone is too long begins anew. What is decoded on the way to a frame is kept with it."""

    def __init__(self, paths: list[Path], size: int, limit: int = 2**30):
        self.clips = [Clip(path) for path in paths]
        self.size, self.limit, self.held = size, limit, 0
        self.frames: OrderedDict[int, dict[int, Tensor]] = OrderedDict()

    def __call__(self, clip: int, number: int) -> UInt8[Tensor, "3 size size"]:
        held = self.frames.setdefault(clip, {})
        self.frames.move_to_end(clip)
        if number not in held:
            try:
                self._hold(clip, number, number)
            except ValueError:
                if not held:
                    self._hold(clip, 0, number)
            if number not in held:  # the film breaks off before it
                number = max(held)
            while self.held > self.limit and len(self.frames) > 1:
                _, dropped = self.frames.popitem(last=False)
                self.held -= sum(frame.numel() for frame in dropped.values())
            if self.held > self.limit:
                wanted = held[number]
                held.clear()
                held[number], self.held = wanted, wanted.numel()
        return held[number]

    def _hold(self, clip: int, start: int, end: int) -> None:
        held = self.frames[clip]
        for number, frame in self.clips[clip].decode(start):
            if number not in held:
                held[number] = (fit(frame[None] / 255.0, self.size)[0] * 255).round().byte()
                self.held += held[number].numel()
            if number >= end:
                break


@dataclass(frozen=True)
class Augmentation:
    """What is done to both frames of a pair alike. Swapping source and driving needs no option: pairs come in both
    orders anyway."""

    flip: bool = True
    """Mirror half of the pairs."""
    rotation: float = 15.0
    """Largest rotation in degrees."""
    zoom: float = 0.15
    """Largest change of size, as a share."""
    shift: float = 0.08
    """Largest shift, as a share of half the side."""
    colour: float = 0.1
    """Largest change of brightness, contrast and tint, as a share."""


class VideoPairs:
    """Random pairs of frames, each pair from one clip.

    ``draw`` makes all random choices of a batch, ``load`` the pictures of any part of it: so several processes can
    share a batch and see what one process would.
    """

    def __init__(self, root: str | Path, size: int, augmentation: Augmentation | None = None):
        # Rotated frames are sampled from larger ones, or they would be blurred.
        self.cache = FrameCache(find_clips(root, "train"), 2 * size if augmentation else size)
        self.size, self.augmentation = size, augmentation
        short = [str(clip.path) for clip in self.cache.clips if len(clip) < 2]
        if short:
            raise ValueError(f"{short[0]}: one frame only, a clip to train on needs two")

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        clip = torch.randint(len(self.cache.clips), (count,), generator=generator)
        length = torch.tensor([len(self.cache.clips[c]) for c in clip.tolist()])
        first = (torch.rand(count, generator=generator) * length).long()
        # Any other frame of the clip: at least one, at most length - 1 further on, around the end.
        step = 1 + (torch.rand(count, generator=generator) * (length - 1)).long()
        change = 2 * torch.rand(count, 8, generator=generator) - 1
        return {"clip": clip, "frames": torch.stack([first, (first + step) % length], dim=1), "change": change}

    def load(self, drawn: dict[str, Tensor], slots: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The pairs drawn for ``slots`` -> their source and driving frames (n, 3, size, size) in [0, 1]."""
        drawn = {name: value[slots] for name, value in drawn.items()}
        pairs = [
            torch.stack([self.cache(clip, number) for number in numbers])
            for clip, numbers in zip(drawn["clip"].tolist(), drawn["frames"].tolist(), strict=True)
        ]
        frames = torch.stack(pairs).to(device).float() / 255
        if self.augmentation is not None:
            frames = augment(frames, drawn["change"].to(device), self.augmentation, self.size)
        return frames[:, 0].contiguous(), frames[:, 1].contiguous()


def augment(
    frames: Float[Tensor, "b 2 3 h w"], change: Float[Tensor, "b 8"], options: Augmentation, size: int
) -> Float[Tensor, "b 2 3 size size"]:
    """One random change a pair, driven by eight numbers in [-1, 1]; the frames are twice as large as the result."""
    mirror, angle, zoom, right, down, bright, contrast, tint = change.unbind(1)
    angle = angle * options.rotation * torch.pi / 180
    scale = torch.exp(zoom * options.zoom)
    flip = torch.where((mirror < 0) & options.flip, -1.0, 1.0)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [flip * cos, -sin, right * options.shift, flip * sin, cos, down * options.shift]
    matrix = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = identity_grid(2 * size, 2 * size, device=frames.device)
    positions = torch.einsum("bij,jhw->bhwi", matrix[..., :2], grid) + matrix[:, None, None, :, 2]
    both = F.grid_sample(frames.flatten(1, 2), positions, padding_mode="reflection", align_corners=False)
    both = F.avg_pool2d(both, 2).unflatten(1, (2, 3))
    # Gains of each channel: brightness is common to all three, the tint trades red for blue.
    tints = torch.stack([tint, torch.zeros_like(tint), -tint], dim=1) * options.colour
    gain = torch.exp(bright[:, None] * options.colour + tints)[:, None, :, None, None]
    spread = torch.exp(contrast * options.colour)[:, None, None, None, None]
    return (((both - 0.5) * spread + 0.5) * gain).clamp(0, 1)


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
            raise ValueError(f"{self.path}: the name of the output must end in .mp4 or .gif")
        if self.path.is_dir():
            raise ValueError(f"{self.path}: is a directory, expected the name of a file to write")
        self.like, self.every, self.crf, self.metadata = like, every, crf, metadata or {}
        self.fps = like.fps if like else Fraction(fps)
        self.unfinished = self.path.with_name(f".unfinished-{self.path.name}")
        self.pictures: list[np.ndarray] = []  # of a .gif, which is written at the end
        self.container = self.input = None
        self.written = 0

    def __enter__(self) -> "VideoWriter":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.unfinished.touch()
        except OSError as error:
            raise ValueError(f"{self.path}: can't be written ({error.strerror})") from error
        return self

    def _start(self, height: int, width: int) -> None:
        self.container = av.open(str(self.unfinished), "w", format="mp4", options={"movflags": "use_metadata_tags"})
        self.container.metadata.update(self.metadata)
        options = {"crf": str(self.crf), "g": str(self.every)}
        self.stream = self.container.add_stream("libx264", rate=self.fps, options=options)
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
        time_base = self.like.time_base if self.like else 1 / self.fps
        self.stream.codec_context.time_base = time_base
        self.sound = iter(())
        if self.like is not None and self.like.files is None:
            self.input = av.open(str(self.like.path))
            if self.input.streams.audio:
                self.sound = self._sound(self.input.streams.audio[0])
        self.next_sound = next(self.sound, None)

    def _sound(self, stream) -> Iterator[tuple[float, av.Packet]]:
        """(seconds, packet) of the copied sound, from the first picture on: as it is where .mp4 can hold it, else as
        AAC."""
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
                    raise ValueError(f"{self.path}: not written, there was no frame to write")
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
            raise ValueError(f"{self.path}: can't be written ({_one_line(failure)})") from failure
        finally:
            if self.input is not None:
                self.input.close()
            self.unfinished.unlink(missing_ok=True)


def _one_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
