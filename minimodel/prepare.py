"""Clips to train on, of one size and rate and quick to read at random: from anybody's videos, or of embedded faces.

Notebook: ``notebooks/11_train_a_full_model.ipynb``.
"""

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Bool, Float
from skimage.data import lbp_frontal_face_cascade_filename
from skimage.feature import Cascade
from torch import Tensor, nn
from tqdm import tqdm

from minimodel.data import synthetic
from minimodel.data.video import VIDEOS, Clip, VideoWriter
from minimodel.landmarks import SIZE, LandmarkDetector, confidence
from minimodel.saving import whole_file
from minimodel.show import save_picture

LOOKS = 5  # frames of a clip in which the face is sought
FPS = 25
AROUND_FACE = 1.6  # side of the crop in sides of the box that the cascade finds


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


def prepare(config: PrepareConfig) -> list[Path]:
    """Write the clips and return their paths; videos without a face are skipped, with a line that says so."""
    check_size(config.size)
    if config.fps < 1:
        raise ValueError(f"fps is {config.fps}: expected at least 1")
    if not 2 <= config.seconds * config.fps < math.inf:
        raise ValueError(f"seconds is {config.seconds}: a clip needs at least two frames, and an end")
    if config.box is not None and config.box[2] < 1:
        raise ValueError(f"box has a side of {config.box[2]} pixels: expected left, top and a side of at least 1")
    files = []
    for path in config.videos:
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder")
        files += sorted(p for p in path.iterdir() if p.suffix.lower() in VIDEOS) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{config.videos[0]}: holds no videos")
    named = {file.stem: file for file in files}
    for file in files:
        other = named[file.stem]
        if other != file:
            raise ValueError(f"{file} and {other}: their clips would have the same names; rename one of them")
    clips = [Clip(file) for file in files]  # before anything is written: one of them may be no video
    config.output.mkdir(parents=True, exist_ok=True)
    cascade = None if config.box else Cascade(lbp_frontal_face_cascade_filename())
    detector = LandmarkDetector.load() if config.landmarks else None
    written = []
    for file, clip in zip(tqdm(files, unit=" videos"), clips, strict=True):
        for number, frames in enumerate(pieces(clip, config)):
            if len(frames) < 2:
                tqdm.write(f"{file}: one frame only, skipped; a clip needs two")
                continue
            box = config.box or find_face(frames, cascade)
            name = f"{file.stem}-{number:03d}.mp4"
            if box is None:
                tqdm.write(f"{file}: no face found in piece {number}, skipped; --box crops by hand")
                continue
            with VideoWriter(config.output / name, fps=config.fps, every=8, crf=12) as film:
                for frame in frames:
                    film.write(crop(frame, box, config.size))
            if detector is not None:
                points, found = find_landmarks(detector, frames, settle_box(detector, look_at(frames), [box])[0])
                points = points - torch.tensor(box[:2]) + 0.5  # from the corner of the box ...
                points = points * config.size / box[2] - 0.5  # ... in pixels of the clip
                about = dict(size=(config.size, config.size), fps=Fraction(config.fps))
                with whole_file((config.output / name).with_suffix(".npz")) as unfinished:
                    unfinished.write_bytes(landmarks_file(points, found, **about))
            written.append(config.output / name)
    return written


def check_size(size: int) -> None:
    """Films have even sides, and faces want some pixels."""
    if size < 16 or size % 2:
        raise ValueError(f"size is {size}: expected an even number, at least 16")


def pieces(clip: Clip, config: PrepareConfig):
    """Lists of frames, each ``seconds`` long at ``fps``; a rest of under a second is dropped unless it is all there
    is."""
    length = round(config.seconds * config.fps)
    piece, count, any_piece = [], 0, False
    start = clip.times[0] * clip.time_base
    for number, frame in clip.decode():
        # This frame stands for all moments of the new rate until the next one appears.
        following = (
            clip.times[number + 1] if number + 1 < len(clip) else clip.times[number] + 1 / clip.fps / clip.time_base
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


def look_at(frames: list[Tensor]) -> list[Tensor]:
    """Some frames, evenly spaced."""
    return [frames[index] for index in np.linspace(0, len(frames) - 1, LOOKS).astype(int)]


def find_face(frames: list[Tensor], cascade: Cascade) -> tuple[int, int, int] | None:
    """Left, top and side of a square around the face: the median over some frames of the largest face in each."""
    found = []
    for frame in look_at(frames):
        image = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
        side = min(image.shape[:2])
        sizes = dict(min_size=(side // 8, side // 8), max_size=(side, side))
        boxes = cascade.detect_multi_scale(img=image, scale_factor=1.15, step_ratio=1, **sizes)
        if boxes:
            largest = max(boxes, key=lambda b: b["width"])
            found.append([largest["c"] + largest["width"] / 2, largest["r"] + largest["height"] / 2, largest["width"]])
    if not found:
        return None
    x, y, width = np.median(found, axis=0)
    side = AROUND_FACE * width
    return round(x - side / 2), round(y - side / 2), round(side)


def crop(frame: Tensor, box: tuple[int, int, int], size: int) -> Tensor:
    """The square ``box`` of a frame at ``size``; what lies outside the frame repeats its edge."""
    left, top, side = box
    height, width = frame.shape[-2:]
    rows = torch.arange(top, top + side).clamp(0, height - 1)
    columns = torch.arange(left, left + side).clamp(0, width - 1)
    square = frame[:, rows][:, :, columns][None] / 255
    return F.interpolate(square, (size, size), mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)


# How a face lies in the pictures that the detector learned from: the centre of its landmarks, and their distance from
# it (root of the mean square), normalised.
USUAL_CENTRE, USUAL_SPREAD = (0.0, 0.1), 0.34
SURE = 0.4  # faces have a confidence above, everything else below


@dataclass
class LandmarksConfig:
    """Find the 74 landmarks of a face in every frame of a video."""

    video: tyro.conf.Positional[Path]
    """Video of a face: .mp4, .gif or a folder of .png frames."""
    output: Path | None = None
    """The .npz to write: ``landmarks`` (T, 74, 2), x and y in pixels of the video, and ``found`` (T,). Beside the video
    unless given."""
    box: tuple[int, int, int] | None = None
    """Where the head is: left, top and side of a square in pixels. Otherwise it is found, and held over the video."""
    weights: str = "landmarks"
    """Name of shipped weights, or a .safetensors file."""


def landmarks(config: LandmarksConfig) -> Path:
    """Write the .npz and return its path."""
    detector = LandmarkDetector.load(config.weights)
    clip = Clip(config.video)
    output = config.output or config.video.with_suffix(".npz")
    if config.output is None and output.exists():  # it may hold the true ones
        raise ValueError(f"{output}: is there already; --output names another file")
    if output.suffix != ".npz" or output.is_dir():
        raise ValueError(f"{output}: the name of the output must end in .npz, and not be a directory")
    if config.box is not None and config.box[2] < 1:
        raise ValueError(f"box has a side of {config.box[2]} pixels: expected left, top and a side of at least 1")
    looks = look_into(clip)
    box = config.box
    if box is None:
        height, width = looks[0].shape[-2:]
        side = min(height, width)
        candidates = [find_face(looks, Cascade(lbp_frontal_face_cascade_filename()))]
        candidates.append(((width - side) // 2, (height - side) // 2, side))
        box, sure = settle_box(detector, looks, [box for box in candidates if box is not None])
        if sure < SURE:
            raise ValueError(f"{config.video}: no face found; --box says where it is")
    frames = (frame for _, frame in clip.decode())
    with whole_file(output) as unfinished:
        points, found = find_landmarks(detector, tqdm(frames, total=len(clip), unit=" frames"), box)
        unfinished.write_bytes(landmarks_file(points, found, size=looks[0].shape[-2:], fps=clip.fps))
    print(f"wrote {output}: a face in {int(found.sum())} of {len(found)} frames")
    return output


def look_into(clip: Clip) -> list[Tensor]:
    """Frames from all over the clip; of one that breaks off, from what there is."""
    looks = []
    for number in sorted({int(number) for number in np.linspace(0, len(clip) - 1, LOOKS)}):
        try:
            for at, shown in clip.decode(number):
                frame = shown
                if at >= number:
                    break
        except ValueError:
            if not looks:
                raise
            break
        looks.append(frame)
    return looks


@torch.inference_mode()
def find_landmarks(
    detector: nn.Module, frames: Iterable, box: tuple[int, int, int]
) -> tuple[Float[Tensor, "t 74 2"], Bool[Tensor, "t"]]:
    """Landmarks in pixels of the ``frames`` (3, h, w), 0 to 255, in all of which the head is in ``box``; and whether
    the detector is sure of them."""
    points, sure, frames = [], [], iter(frames)
    while some := list(islice(frames, 16)):
        found, heatmaps = detector(torch.stack([crop(frame, box, SIZE) for frame in some]))
        points.append(((found + 1) * box[2] - 1) / 2 + torch.tensor(box[:2]))
        sure.append(confidence(heatmaps, found))
    return torch.cat(points), torch.cat(sure) >= SURE


@torch.inference_mode()
def settle_box(
    detector: nn.Module, frames: list[Tensor], boxes: list[tuple[int, int, int]]
) -> tuple[tuple[int, int, int], float]:
    """Of rough ``boxes`` the one in which the detector is surest of the face, moved to where it has it as it learned
    it; and how sure it then is."""
    best, surest = boxes[0], 0.0
    for rough in boxes:
        box = rough
        for _ in range(3):
            found, heatmaps = detector(torch.stack([crop(frame, box, SIZE) for frame in frames]))
            sure = confidence(heatmaps, found).median().item()
            if sure > surest:
                best, surest = box, sure
            centre = found.mean(1, keepdim=True)
            spread = (found - centre).square().sum(-1).mean(1).sqrt().median().item()
            x, y = centre[:, 0].median(0).values.tolist()
            side = max(1, round(box[2] * spread / USUAL_SPREAD))
            middle = [corner + (z + 1) / 2 * box[2] for corner, z in zip(box, (x, y))]
            left, top = (m - (usual + 1) / 2 * side for m, usual in zip(middle, USUAL_CENTRE))
            box = round(left), round(top), side
    return best, surest


def landmarks_file(
    points: Float[Tensor, "t 74 2"], found: Bool[Tensor, "t"], *, size: tuple[int, int], fps: Fraction
) -> bytes:
    """An .npz. ``size`` = (height, width) and ``fps`` of the film are what else it takes to drive a face."""
    file = io.BytesIO()
    about = dict(size=tuple(size), fps=fps.as_integer_ratio())
    np.savez_compressed(file, landmarks=points.numpy(), found=found.numpy(), **about)
    return file.getvalue()


NAMES = ("ada", "ben", "cleo", "dev", "elif", "finn", "gita", "hugo", "ines", "juri", "kofi", "lena")
TRUTH_EVERY = 5  # frames; flows are large


@dataclass
class SynthesizeConfig:
    """Write clips of embedded faces, each with its ground truth beside it."""

    output: Path
    """Folder for the clips."""
    clips: int = 6
    """How many, each of another person."""
    size: int = 128
    """Side in pixels."""
    seconds: float = 3.0
    """Length of each."""
    seed: int = 0


def synthesize(config: SynthesizeConfig) -> list[Path]:
    """Write NAME.mp4, its first frame NAME.png and its truth NAME.npz; return the films' paths.

    The .npz holds, in pixels: ``landmarks`` (T, 74, 2); ``parsing`` (T, H, W) with ``parts``, its names; and for the
    frames ``flow_frames`` the backward flow to frame 0, ``flow`` (N, 2, H, W), and ``visible`` (N, H, W), where frame 0
    shows what the frame shows.
    """
    check_size(config.size)
    if config.clips < 1:
        raise ValueError(f"clips is {config.clips}: expected at least 1")
    if not TRUTH_EVERY < config.seconds * FPS < math.inf:
        raise ValueError(f"seconds is {config.seconds}: expected more than {TRUTH_EVERY / FPS}, and an end")
    frames = round(config.seconds * FPS)
    config.output.mkdir(parents=True, exist_ok=True)
    identities = synthetic.sample_identities(config.clips, config.seed)
    written = []
    for number in tqdm(range(config.clips), unit=" clips"):
        states = synthetic.animate_states(frames, config.seed * 1000 + number)
        faces = synthetic.Faces(identities[number], states)
        name = NAMES[number] if config.clips <= len(NAMES) else f"{number:05d}"
        path = config.output / f"{name}.mp4"
        with VideoWriter(path, fps=FPS, every=8, crf=12) as film:
            for start in range(0, frames, 8):
                for frame in synthetic.render(faces[start : start + 8], config.size):
                    film.write(frame)
        save_picture(synthetic.render(faces[:1], config.size)[0], path.with_suffix(".png"))
        kept = torch.arange(TRUTH_EVERY, frames, TRUTH_EVERY)
        source = synthetic.Faces(identities[number], states[0])
        flow, visible = synthetic.flow_between(source, faces[kept], config.size)
        np.savez_compressed(
            path.with_suffix(".npz"),
            landmarks=synthetic.landmarks(faces, config.size).numpy(),
            parsing=synthetic.parsing(faces, config.size).byte().numpy(),
            parts=np.array(synthetic.PARTS),
            flow_frames=kept.numpy(),
            flow=(flow * config.size / 2).half().numpy(),
            visible=visible[:, 0].bool().numpy(),
        )
        written.append(path)
    return written
