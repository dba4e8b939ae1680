"""``minimodel prepare``: clips to train on, of one size and rate and quick to read at random.

Notebook: ``notebooks/11_train_a_full_model.ipynb``."""

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from skimage.data import lbp_frontal_face_cascade_filename
from skimage.feature import Cascade
from tqdm import tqdm

from minimodel.data.framing import crop, find_face, find_landmarks, landmarks_file, look_at, settle_box
from minimodel.data.video import VIDEOS, Clip
from minimodel.data.writer import FPS, VideoWriter, check_size
from minimodel.errors import MinimodelError
from minimodel.landmarks import LandmarkDetector
from minimodel.runtime import Device, on_device, pick_device
from minimodel.saving import whole_file


@dataclass
class PrepareConfig:
    """Turn videos into a folder of clips to train on."""

    videos: tuple[Path, ...]
    """Video files, or folders of them."""
    output: Path
    """Folder for the clips."""
    box: tuple[int, int, int] | None = None
    """Crop by hand: left, top and side in pixels. Otherwise the face is found, and the box held over each clip."""
    size: int = 256
    """Side of the clips in pixels."""
    seconds: float = 5.0
    """Length of a clip; a longer video becomes several."""
    fps: int = FPS
    """Frames a second; frames of other rates are dropped or repeated."""
    landmarks: bool = False
    """Find the 74 landmarks as well, and write them beside each clip as NAME.npz."""
    device: Device = "auto"
    """What computes; the best there is unless given."""


def prepare(config: PrepareConfig) -> list[Path]:
    """Cut videos into clips around the face, write them and return their paths. Videos without a face are skipped, with
    a line that says so. Raises `MinimodelError` for options outside their range, and, before anything is written, for a
    file that is no video or for two of one name."""
    check_size(config.size)
    if config.fps < 1:
        raise MinimodelError(f"fps is {config.fps}: expected at least 1")
    if not 2 <= config.seconds * config.fps < math.inf:
        raise MinimodelError(f"seconds is {config.seconds}: a clip needs at least two frames, and an end")
    if config.box is not None and config.box[2] < 1:
        raise MinimodelError(f"box has a side of {config.box[2]} pixels: expected left, top and a side of at least 1")
    files = []
    for path in config.videos:
        if not path.exists():
            raise MinimodelError(f"{path}: no such file or folder")
        files += sorted(p for p in path.iterdir() if p.suffix.lower() in VIDEOS) if path.is_dir() else [path]
    if not files:
        raise MinimodelError(f"{config.videos[0]}: holds no videos")
    named = {file.stem: file for file in files}
    for file in files:
        other = named[file.stem]
        if other != file:
            raise MinimodelError(f"{file} and {other}: their clips would have the same names; rename one of them")
    clips = [Clip(file) for file in files]  # before anything is written: one of them may be no video
    config.output.mkdir(parents=True, exist_ok=True)
    cascade = None if config.box else Cascade(lbp_frontal_face_cascade_filename())
    detector = on_device(LandmarkDetector.load(), pick_device(config.device)) if config.landmarks else None
    written = []
    for file, clip in zip(tqdm(files, unit=" videos"), clips, strict=True):
        for index, frames in enumerate(pieces(clip, config)):
            if len(frames) < 2:
                tqdm.write(f"{file}: one frame only, skipped; a clip needs two")
                continue
            box = config.box or find_face(frames, cascade)
            name = f"{file.stem}-{index:03d}.mp4"
            if box is None:
                tqdm.write(f"{file}: no face found in piece {index}, skipped; --box crops by hand")
                continue
            with VideoWriter(config.output / name, fps=config.fps, every=8, crf=12) as film:
                for frame in frames:
                    film.write(crop(frame, box, config.size))
            if detector is not None:
                points, found = find_landmarks(detector, frames, settle_box(detector, look_at(frames), [box])[0])
                points = points - torch.tensor(box[:2]) + 0.5  # from the corner of the box ...
                points = points * config.size / box[2] - 0.5  # ... in pixels of the clip
                size, fps = (config.size, config.size), Fraction(config.fps)
                with whole_file((config.output / name).with_suffix(".npz")) as unfinished:
                    unfinished.write_bytes(landmarks_file(points, found, size=size, fps=fps))
            written.append(config.output / name)
    return written


def pieces(clip: Clip, config: PrepareConfig):
    """Cut a clip into lists of frames, each ``seconds`` long at ``fps``. A rest of under a second is dropped, unless it
    is the whole clip."""
    length = round(config.seconds * config.fps)
    piece, count, any_piece = [], 0, False
    start = clip.times[0] * clip.time_base
    for index, frame in clip.decode():
        # This frame stands for all moments of the new rate until the next one appears.
        following = (
            clip.times[index + 1] if index + 1 < len(clip) else clip.times[index] + 1 / clip.fps / clip.time_base
        )
        until = float(following * clip.time_base - start) * config.fps
        while count + 0.5 < until:
            piece.append(frame)
            count += 1
            if len(piece) == length:
                yield piece
                piece, any_piece = [], True
    if len(piece) >= config.fps or (piece and not any_piece):
        yield piece
