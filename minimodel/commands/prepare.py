"""``minimodel prepare``: clips to train on, of one size and rate and quick to read at random.

Notebook: ``notebooks/11_train_a_full_model.ipynb``."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from skimage.data import lbp_frontal_face_cascade_filename
from skimage.feature import Cascade
from torch import Tensor
from tqdm import tqdm

from minimodel.data.framing import Box, crop, find_face, find_landmarks, landmarks_file, look_at, settle_box
from minimodel.data.video import Clip, find_clips, read_all
from minimodel.data.writer import FPS, VideoWriter, check_size
from minimodel.errors import MinimodelError
from minimodel.landmarks import LandmarkDetector
from minimodel.runtime import Device, on_device, pick_device
from minimodel.saving import whole_file


@dataclass
class PrepareConfig:
    """Turn videos into a folder of clips to train on."""

    videos: tuple[Path, ...]
    """Video files, or folders of them, of any depth."""
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
    strict: bool = False
    """Refuse what can't be read and what shows no face, rather than leave it out."""
    device: Device = "auto"
    """What computes; the best there is unless given."""


def prepare(config: PrepareConfig) -> list[Path]:
    """Cut videos into clips around the face, write them and return their paths. A clip is named after its video and the
    folders on the way to it, such as ID-VIDEO-CLIP-000.mp4.

    What can't be read, shows no face or nothing within ``config.box`` is skipped, with a line that says so.

    Raises:
        MinimodelError: options outside their range, two videos of one name, or nothing to write. With ``config.strict``
            also for the first video that would be skipped.
    """
    check_size(config.size)
    if config.fps < 1:
        raise MinimodelError(f"fps is {config.fps}: expected at least 1")
    if not 2 <= config.seconds * config.fps < math.inf:
        raise MinimodelError(f"seconds is {config.seconds}: a clip needs at least two frames, and an end")
    if config.box is not None and config.box[2] < 1:
        raise MinimodelError(f"box has a side of {config.box[2]} pixels: expected left, top and a side of at least 1")
    names = name_videos(config)
    clips = read_all(list(names), Clip, strict=config.strict)  # before anything is written
    config.output.mkdir(parents=True, exist_ok=True)
    cascade = None if config.box else Cascade(lbp_frontal_face_cascade_filename())
    detector = on_device(LandmarkDetector.load(), pick_device(config.device)) if config.landmarks else None
    written: list[Path] = []
    skipped: list[str] = []

    def skip(reason: str) -> None:
        if config.strict:
            raise MinimodelError(reason)
        skipped.append(reason)
        tqdm.write(f"{reason}; skipped")

    for clip in tqdm(clips, unit=" videos"):
        for index, frames in enumerate(readable_pieces(clip, config, skip)):
            if len(frames) < 2:
                skip(f"{clip.path}: one frame only, a clip needs two")
                continue
            if config.box is not None and not shows(config.box, frames[0]):
                height, width = frames[0].shape[-2:]
                skip(f"{clip.path}: box {' '.join(map(str, config.box))} is outside of its {width} x {height} pixels")
                break
            box = config.box or find_face(frames, cascade)
            if box is None:
                skip(f"{clip.path}: no face found in piece {index}; --box crops by hand")
                continue
            path = config.output / f"{names[clip.path]}-{index:03d}.mp4"
            with VideoWriter(path, fps=config.fps, every=8, crf=12) as film:
                for frame in frames:
                    film.write(crop(frame, box, config.size))
            if detector is not None:
                points, found = find_landmarks(detector, frames, settle_box(detector, look_at(frames), [box])[0])
                points = points - torch.tensor(box[:2]) + 0.5  # from the corner of the box ...
                points = points * config.size / box[2] - 0.5  # ... in pixels of the clip
                size, fps = (config.size, config.size), Fraction(config.fps)
                with whole_file(path.with_suffix(".npz")) as unfinished:
                    unfinished.write_bytes(landmarks_file(points, found, size=size, fps=fps))
            written.append(path)
    if not written:
        raise MinimodelError(
            f"no clip was written: {skipped[0]}" + f" (and {len(skipped) - 1} more)" * (len(skipped) > 1)
        )
    if skipped:
        tqdm.write(f"{len(skipped)} skipped, {len(written)} clips written")
    return written


def name_videos(config: PrepareConfig) -> dict[Path, str]:
    """The videos that are asked for, each with the name of its clips. Clips that an earlier call wrote to an output
    folder among the videos don't count as videos. Raises `MinimodelError` for two of one name."""
    found: list[tuple[Path, str]] = []
    output = config.output.resolve()
    for root in config.videos:
        if not root.exists():
            raise MinimodelError(f"{root}: no such file or folder")
        if not root.is_dir():
            found.append((root, root.stem))
            continue
        for path in find_clips(root):
            if root.resolve() in output.parents and output in path.resolve().parents:
                continue
            below = path.relative_to(root).parts[:-1]
            found.append((path, "-".join([*below, path.name if path.is_dir() else path.stem])))
    if not found:
        raise MinimodelError(f"{config.videos[0]}: holds no videos but those in {config.output}")
    first: dict[str, Path] = {}
    for path, name in found:
        if first.setdefault(name, path) != path:
            raise MinimodelError(f"{first[name]} and {path}: their clips would have the same names; rename one of them")
    return dict(found)


def shows(box: Box, frame: Tensor) -> bool:
    """Whether a part of the box lies within the frame (3, h, w)."""
    left, top, side = box
    return -side < left < frame.shape[-1] and -side < top < frame.shape[-2]


def readable_pieces(clip: Clip, config: PrepareConfig, skip: Callable[[str], None]) -> Iterator[list[Tensor]]:
    """The `pieces` of a clip up to where it can't be read any further, which is skipped."""
    any_piece = False
    try:
        for piece in pieces(clip, config):
            any_piece = True
            yield piece
    except MinimodelError as error:
        skip(str(error))
    else:
        if not any_piece:
            skip(f"{clip.path}: too short for a frame at {config.fps} a second")


def pieces(clip: Clip, config: PrepareConfig) -> Iterator[list[Tensor]]:
    """Cut a clip into lists of frames, each ``seconds`` long at ``fps``. A rest of under a second is dropped, unless it
    is the whole clip."""
    length = round(config.seconds * config.fps)
    piece: list[Tensor] = []
    count, any_piece = 0, False
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
