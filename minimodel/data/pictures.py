"""Pictures in: what a file holds decides how it is read, whatever its name; and folders of pictures, in order."""

import re
import warnings
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from minimodel.errors import MinimodelError

SMALLEST, LARGEST = 8, 16384  # sides of pictures, in pixels
FRAMES = (".png", ".jpg", ".jpeg", ".webp")  # of a film that is a folder of pictures
# Formats that are pictures only. Others that Pillow knows run programs, or can be taken for pictures by chance.
FORMATS = ["JPEG", "MPO", "PNG", "WEBP", "TIFF", "AVIF", "HEIF", "GIF", "BMP", "DIB", "PPM", "ICO", "JPEG2000"]
RESAVE = "open it in an image viewer and save it as PNG or JPEG"
# How files begin that people take for pictures: where, what, and what to do.
HINTS = [
    (4, rb"ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", f"it is HEIC: install pillow-heif, or {RESAVE}"),
    (0, rb"\s*<(!doctype html|html|head|body|script)", "it is a web page: download the picture itself"),
    (0, rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg", f"it is a drawing (SVG): {RESAVE}"),
    (0, rb"%PDF", f"it is a PDF: {RESAVE}"),
    (0, rb"PK\x03\x04", "it is a ZIP archive: unpack it first"),
    (0, rb"version https://git-lfs", "it is a pointer of Git LFS: `git lfs pull` brings the picture"),
]


def read_picture(path: str | Path) -> Float[Tensor, "3 h w"]:
    """A picture of any colour mode as RGB in [0, 1]: grey is repeated, transparency lies on white, 16 bits of grey keep
    their range, a camera's rotation mark is obeyed; of an animated one the first frame. MinimodelError for
    anything else."""
    path = Path(path)
    if path.is_dir():
        raise MinimodelError(f"{path}: is a directory, expected a picture")
    try:
        with warnings.catch_warnings():  # of large pictures, for which there is a limit below, and of odd metadata
            warnings.simplefilter("ignore")
            with _open(path) as file:
                _check(file, path)
                return _to_rgb(_upright(file))
    except FileNotFoundError:
        raise MinimodelError(f"{path}: no such file") from None
    except _Refused as error:
        raise MinimodelError(str(error)) from None
    except Exception as error:  # the decoders raise many kinds
        raise MinimodelError(f"{path}: not a picture that can be read ({_reason(path, error)})") from error


class _Refused(ValueError):
    """A refusal that says all that there is to say."""


def read_durations(path: Path) -> list[int]:
    """How long each frame of an animated .webp is shown, in milliseconds, as browsers show it; nothing for any other
    file."""
    durations = []
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WEBP":
            return []
        while len(chunk := file.read(8)) == 8:
            length = int.from_bytes(chunk[4:], "little")
            length += length % 2
            if chunk[:4] == b"ANMF" and len(frame := file.read(16)) == 16:  # place, size, duration, how to paint it
                duration = int.from_bytes(frame[12:15], "little")
                durations.append(duration if duration > 10 else 100)
                length -= 16
            file.seek(length, 1)
    return durations


def read_animation(path: Path) -> Iterator[tuple[int, UInt8[Tensor, "3 h w"] | Exception]]:
    """Yield number and frame of an animated .webp, as bytes; for a frame that can't be read, the exception."""
    with _open(path) as file:
        for number in range(getattr(file, "n_frames", 1)):
            try:
                file.seek(number)
                yield number, (_to_rgb(_upright(file)) * 255).round().byte()
            except Exception as error:  # the decoder raises many kinds
                yield number, error


def _open(path: Path) -> Image.Image:
    try:
        import pillow_heif  # the decoder of HEIC, where somebody has installed it

        pillow_heif.register_heif_opener()
    except ImportError:
        pass
    Image.init()  # loads the readers
    formats = [*FORMATS, "TGA"] if path.suffix.lower() == ".tga" else FORMATS  # which has no mark but its name
    return Image.open(path, formats=[name for name in formats if name in Image.OPEN])


def _check(file: Image.Image, path: Path) -> None:
    """Refuse what would be read wrongly, before it takes memory."""
    width, height = file.size
    if not SMALLEST <= min(height, width) <= max(height, width) <= LARGEST:
        raise _Refused(f"{path}: {width} x {height} pixels, sides must be {SMALLEST} to {LARGEST}")
    if file.mode == "F":
        raise _Refused(f"{path}: its pixels are floating-point numbers, whose white nobody knows: {RESAVE}")
    if file.format == "TIFF":
        pages = getattr(file, "n_frames", 1)
        if pages > 1:
            raise _Refused(f"{path}: {pages} channels or pages, expected a picture of 1 to 4 channels")
        if file.tag_v2.get(284, 1) == 2:  # type: ignore[attr-defined]  # all of this format have it
            raise _Refused(f"{path}: a planar TIFF (each colour stored by itself), which isn't read: {RESAVE}")


def _upright(file: Image.Image) -> Image.Image:
    """The picture as its mark of orientation, in whichever container, says that it was taken."""
    try:
        return ImageOps.exif_transpose(file)
    except (OSError, MemoryError):
        raise  # of the pixels
    except Exception:  # of the mark: what can't be understood says nothing
        file.load()
        return file


def _to_rgb(image: Image.Image) -> Float[Tensor, "3 h w"]:
    if image.mode.startswith("I"):  # grey of 16 bits, which Pillow sometimes keeps in 32
        grey = torch.from_numpy(np.asarray(image).astype(np.float32) / 65535)
        return grey.expand(3, -1, -1).contiguous().clamp(0, 1)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or image.has_transparency_data:
        image = image.convert("RGBA")
        image.load()
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        colours, alpha = pixels[:3], pixels[3:]
        return colours * alpha + (1 - alpha)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float().contiguous() / 255


def _reason(path: Path, error: Exception) -> str:
    """What a person can do about a file that isn't read."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as other:
        return other.strerror or type(other).__name__
    if not head:
        return "the file is empty: download or copy it anew"
    for start, pattern, hint in HINTS:
        if re.match(pattern, head[start:], re.IGNORECASE | re.DOTALL):
            return hint
    if isinstance(error, UnidentifiedImageError) and re.match(rb"II[*+]\0|MM\0[*+]", head):
        return f"a TIFF whose pixels are of a rare kind, such as floating-point numbers: {RESAVE}"
    if isinstance(error, UnidentifiedImageError):
        return f"it is in no known format: if a viewer shows it, {RESAVE}"
    if isinstance(error, Image.DecompressionBombError):
        return "it has more pixels than are read"
    if "truncated" in str(error).lower():
        return "it breaks off: download or copy it anew"
    return one_line(error)


def one_line(error: BaseException) -> str:
    """What an error says, without numbers, names of files and functions where it knows better."""
    text = (getattr(error, "strerror", None) or str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


# Folders of pictures


def is_hidden(path: Path) -> bool:
    """What systems leave in folders, such as ._a.png of macOS, which is no picture."""
    return path.name.startswith(".")


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Sorts numbers within names as numbers: frame_2 comes before frame_10."""
    parts = re.split(r"(\d+)", path.name.lower())
    # Texts and numbers take turns, so texts meet texts; equal numbers are told apart by their zeros.
    return [(int(part), part) if index % 2 else (0, part) for index, part in enumerate(parts)]


def list_frames(folder: Path) -> list[Path]:
    """The pictures in a folder, as frames of a film, in the order of their numbers."""
    frames = (path for path in folder.iterdir() if path.suffix.lower() in FRAMES and not is_hidden(path))
    return sorted((path for path in frames if path.is_file()), key=natural_order)


def find_gap(frames: Iterable[Path]) -> str | None:
    """What to say about frames whose numbers aren't consecutive."""
    found = [re.findall(r"\d+", path.stem) for path in frames]
    if len(found) < 2 or not all(found):
        return None
    numbers = [int(numbers[-1]) for numbers in found]  # a name may hold others, before: video3_frame0007
    missing = sum(max(0, b - a - 1) for a, b in pairwise(numbers))
    if not missing:
        return None
    return f"of frames {numbers[0]} to {numbers[-1]} {missing} are missing; those there are follow each other at once"
