"""Real video: clips with quick random access, pairs of frames for training, pictures and films in and out.

A clip is an .mp4 or .gif file or a folder of .png frames, as VoxCeleb is usually prepared; a data set is a folder of
clips, split into ``train`` and ``test`` (or ``val``) below it, or not split at all. Landmarks may lie beside a clip as
``NAME.npz`` with ``landmarks`` (T, 74, 2).
"""

import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import imageio.v3 as iio
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from minimodel.errors import MinimodelError
from minimodel.warping import from_pixels

VIDEOS = (".mp4", ".gif", ".mov", ".avi", ".mkv", ".webm")
SMALLEST, LARGEST = 8, 16384  # sides of pictures, in pixels


def read_image(path: str | Path) -> Float[Tensor, "3 h w"]:
    """A picture of any colour mode as RGB in [0, 1]: grey is repeated, transparency lies on white, 16 bits keep their
    range, a camera's rotation mark is obeyed; of a video its first frame. MinimodelError for anything else."""
    path = Path(path)
    if path.suffix.lower() in VIDEOS:
        return next(Clip(path).decode())[1] / 255
    if path.is_dir():
        raise MinimodelError(f"{path}: is a directory, expected a picture")
    try:
        array = _read_array(path)
    except FileNotFoundError:
        raise MinimodelError(f"{path}: no such file") from None
    except Exception as error:  # the reading libraries raise many kinds
        raise MinimodelError(f"{path}: not a picture that can be read ({_one_line(error)})") from error
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
        raise MinimodelError(f"{path}: {channels} channels or pages, expected a picture of 1 to 4 channels")
    if not SMALLEST <= min(height, width) <= max(height, width) <= LARGEST:
        raise MinimodelError(f"{path}: {width} x {height} pixels, sides must be {SMALLEST} to {LARGEST}")
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


def read_landmarks(path: str | Path) -> tuple[Float[Tensor, "t 74 2"], Fraction]:
    """The landmarks in an .npz that `minimodel find-landmarks` or `synthesize` wrote, normalised to the square that
    `center_crop_resize` takes of a film's frames; and the film's frames per second."""
    try:
        with np.load(path, allow_pickle=False) as file:
            points = torch.from_numpy(file["landmarks"]).float()
            height, width = (int(n) for n in (file["size"] if "size" in file else file["parsing"].shape[1:]))
            fps = Fraction(*(int(n) for n in file["fps"])) if "fps" in file else Fraction(25)
        if points.dim() != 3 or points.shape[1:] != (74, 2) or not len(points):
            raise MinimodelError("landmarks of another shape")
    except FileNotFoundError as error:
        raise MinimodelError(f"{path}: no such file") from error
    except Exception as error:  # a broken or foreign file raises many kinds
        raise MinimodelError(
            f"{path}: not the landmarks of a film, as `minimodel find-landmarks` writes them"
        ) from error
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
            raise MinimodelError(f"{self.path}: no such file")
        self.files: list[Path] | None = None
        if self.path.is_dir():
            self.files = sorted(self.path.glob("*.png"))
            self.times, self.fps = list(range(len(self.files))), Fraction(25)
            self.time_base = 1 / self.fps
            if not self.files:
                raise MinimodelError(f"{self.path}: a folder without .png frames")
            return
        with self._open() as container:
            stream = container.streams.video[0]
            self.fps, self.time_base = stream.average_rate or Fraction(25), stream.time_base
            packets = []
            try:
                packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.pts is not None]
            except av.FFmpegError as error:
                raise MinimodelError(f"{self.path}: can't be read ({_one_line(error)})") from error
            packets.sort()
        if not packets:
            raise MinimodelError(f"{self.path}: holds no frames")
        self.times = [time for time, _ in packets]
        self.keys = [index for index, (_, key) in enumerate(packets) if key]

    def __len__(self) -> int:
        return len(self.times)

    def _open(self):
        try:
            container = av.open(str(self.path))
        except av.FFmpegError as error:
            raise MinimodelError(f"{self.path}: not a video that can be read ({_one_line(error)})") from error
        if not container.streams.video:
            container.close()
            raise MinimodelError(f"{self.path}: holds no video")
        return container

    def decode(self, start: int = 0) -> Iterator[tuple[int, UInt8[Tensor, "3 h w"]]]:
        """(number, frame) from the last key frame at or before ``start`` onwards. A film that breaks off ends early,
        with a warning."""
        if self.files is not None:
            for index in range(start, len(self.files)):
                yield index, (read_image(self.files[index]) * 255).round().byte()
            return
        indices = {time: index for index, time in enumerate(self.times)}
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
                    last = last + 1 if in_order else indices.get(frame.pts, last + 1)
                    picture = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
                    yield last, picture.rot90(round(frame.rotation / 90), (1, 2))  # as the camera was held
            except av.FFmpegError as error:
                reason = _one_line(error)
            if last < key:
                raise MinimodelError(f"{self.path}: no frame can be decoded from number {key} on ({reason})")
            if last + 1 < len(self):
                warnings.warn(f"{self.path}: breaks off after frame {last + 1} of {len(self)}", stacklevel=2)


def find_clips(root: str | Path, split: str | None = None) -> list[Path]:
    """The clips of a data set: a folder of them, or one film. ``split`` "train" looks into train/, "test" into test/ or
    val/, and either into the folder itself where it isn't split."""
    root = Path(root)
    if not root.exists():
        raise MinimodelError(f"{root}: no such film or folder of clips")
    if root.is_file() and root.suffix.lower() in VIDEOS:
        return [root]
    if not root.is_dir():
        raise MinimodelError(f"{root}: expected a film ({', '.join(VIDEOS)}) or a folder of clips")
    folders = {"train": ["train"], "test": ["test", "val"], None: []}[split]
    root = next((root / name for name in folders if (root / name).is_dir()), root)
    clips = [
        path
        for path in sorted(root.iterdir())
        if path.suffix.lower() in VIDEOS or (path.is_dir() and next(path.glob("*.png"), None) is not None)
    ]
    if not clips:
        raise MinimodelError(f"{root}: holds no clips (.mp4, .gif, or folders of .png frames)")
    return clips


def _one_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
