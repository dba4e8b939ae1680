"""``minimodel find-landmarks``: the 74 landmarks of every frame of a film."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from skimage.data import lbp_frontal_face_cascade_filename
from skimage.feature import Cascade
from tqdm import tqdm

from minimodel.data.framing import SURE, find_face, find_landmarks, landmarks_file, look_into, settle_box
from minimodel.data.video import Clip
from minimodel.errors import MinimodelError
from minimodel.landmarks import LandmarkDetector
from minimodel.runtime import Device, on_device, pick_device
from minimodel.saving import whole_file
from minimodel.warping import size_of


@dataclass
class FindLandmarksConfig:
    """Find the 74 landmarks of a face in every frame of a video."""

    video: tyro.conf.Positional[Path]
    """Film of a face, of any kind, or a folder of .png, .jpg or .webp frames."""
    output: Path | None = None
    """The .npz to write: ``landmarks`` (T, 74, 2), x and y in pixels of the video, and ``found`` (T,). Beside the video
    unless given."""
    box: tuple[int, int, int] | None = None
    """Where the head is: left, top and side of a square in pixels. Otherwise it is found, and held over the video."""
    weights: str = "landmarks"
    """Name of shipped weights, or a .safetensors file."""
    device: Device = "auto"
    """What computes; the best there is unless given."""


def find_film_landmarks(config: FindLandmarksConfig) -> Path:
    """Find the landmarks of every frame of a film, write them as an .npz and return its path. Raises `MinimodelError`
    if no face is found, if the box is empty, if the output doesn't end in .npz, or if the default output
    exists already."""
    detector = on_device(LandmarkDetector.load(config.weights), pick_device(config.device))
    clip = Clip(config.video)
    output = config.output or config.video.with_suffix(".npz")
    if config.output is None and output.exists():  # it may hold the true ones
        raise MinimodelError(f"{output}: is there already; --output names another file")
    if output.suffix != ".npz" or output.is_dir():
        raise MinimodelError(f"{output}: the name of the output must end in .npz, and not be a directory")
    if config.box is not None and config.box[2] < 1:
        raise MinimodelError(f"box has a side of {config.box[2]} pixels: expected left, top and a side of at least 1")
    looks = look_into(clip)
    box = config.box
    if box is None:
        height, width = looks[0].shape[-2:]
        side = min(height, width)
        candidates = [find_face(looks, Cascade(lbp_frontal_face_cascade_filename()))]
        candidates.append(((width - side) // 2, (height - side) // 2, side))
        box, sure = settle_box(detector, looks, [box for box in candidates if box is not None])
        if sure < SURE:
            raise MinimodelError(f"{config.video}: no face found; --box says where it is")
    frames = (frame for _, frame in clip.decode())
    with whole_file(output) as unfinished:
        points, found = find_landmarks(detector, tqdm(frames, total=len(clip), unit=" frames"), box)
        unfinished.write_bytes(landmarks_file(points, found, size=size_of(looks[0]), fps=clip.fps))
    print(f"wrote {output}: a face in {int(found.sum())} of {len(found)} frames")
    return output
