"""A photo and a video -> the photo, moving like the video.

Notebook: ``notebooks/00_start_here.ipynb``.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from minimodel import transfer
from minimodel.data.framing import center_crop_resize
from minimodel.data.video import Clip, read_image, read_landmarks
from minimodel.data.writer import VideoWriter
from minimodel.keypoints import gaussian_heatmaps
from minimodel.landmarks import LandmarkDetector
from minimodel.model import AnimationModel
from minimodel.motion import Motion

SYNTHETIC = "Synthetic media: this person did not move like this. Animated from one photo by minimodel."
SMALLEST_SIDE = 256  # of the film: players show smaller ones badly, so they are enlarged


@dataclass
class AnimateConfig:
    """Animate a photo with the motion of a video."""

    source: Path
    """Photo of a face; the largest square from its middle is used."""
    driving: Path
    """Video of a face (.mp4, .gif or a folder of .png frames), framed like the photo. For weights that move by
    landmarks also the .npz that `minimodel find-landmarks` makes of one."""
    output: Path = Path("animation.mp4")
    """Film to write, .mp4 (with the video's sound) or .gif."""
    weights: str = "tiny-video"
    """Name of shipped weights, or a .safetensors file."""
    mode: str = "standard"
    """standard moves the face to where the driving face is; relative moves it as far as the driving face has moved
    since a starting frame; avd puts the driving pose onto the photo's shape, with a network of its own beside the
    weights."""
    start_frame: int | None = None
    """Of mode relative, from 0: a frame that shows the photo's pose; the most similar one unless given."""
    size: int | None = None
    """Side of the frames in pixels; that of the weights' preset unless given."""
    side_by_side: bool = False
    """Show photo, driving video and result beside each other."""


def animate(config: AnimateConfig, *, batch: int = 8) -> Path:
    """Write the film and return its path."""
    if config.mode not in transfer.MODES:
        raise ValueError(f"unknown mode {config.mode!r}: there are {', '.join(transfer.MODES)}")
    if config.start_frame is not None and config.mode != "relative":
        raise ValueError(f"--start-frame is for mode relative; the mode is {config.mode}")
    if config.output.resolve() in (config.source.resolve(), config.driving.resolve()):
        raise ValueError(f"{config.output}: is what the film is to be made from; --output names another file")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AnimationModel.load(config.weights).to(device)
    size = model.config.image_size if config.size is None else config.size
    model.check_size(size, size)
    if model.config.prior == "landmarks":
        model.prior.use_detector(LandmarkDetector.load().to(device))
    source = center_crop_resize(read_image(config.source)[None], size).to(device)
    if config.driving.suffix == ".npz":
        points, fps = read_landmarks(config.driving)
        count, timing = len(points), dict(fps=fps)

        def driving() -> Iterable[Tensor]:
            return points
    else:
        clip = Clip(config.driving)
        count, timing = len(clip), dict(like=clip)

        def driving() -> Iterable[Tensor]:
            return (center_crop_resize(frame[None] / 255, size)[0] for _, frame in clip.decode())

    metadata = {"comment": SYNTHETIC, "synthetic_media": "true"}
    with VideoWriter(config.output, **timing, metadata=metadata) as film:
        move = transfer.standard
        if config.mode == "avd":
            move = partial(transfer.avd, network=transfer.AvdNetwork.load(config.weights, model))
        elif config.mode == "relative":
            frame, start = find_start(model, source, driving(), frame=config.start_frame, batch=batch)
            move = partial(transfer.relative, start_motion=start)
            print(f"movement is counted from frame {frame}")
        frames = tqdm(driving(), total=count, unit=" frames", desc="animating")
        for target, prediction in render_frames(model, source, frames, batch=batch, move=move):
            if target.dim() == 2:
                target = draw_landmarks(target, size)
            shown = torch.cat([source[0], target, prediction], dim=-1) if config.side_by_side else prediction
            factor = -(-SMALLEST_SIDE // size)
            if factor > 1:
                shown = F.interpolate(shown[None], scale_factor=factor, mode="bicubic", align_corners=False)[0]
            film.write(shown)
    print(f"wrote {config.output}")
    return config.output


@torch.inference_mode()
def render_frames(
    model: AnimationModel,
    source: Float[Tensor, "1 3 h w"],
    driving: Iterable,
    *,
    batch: int = 8,
    move: Callable[[Motion, Motion], Motion] = transfer.standard,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(driving frame, rendered frame) in turn, for ``driving`` frames (3, h, w), or landmarks (74, 2) for a model that
    moves by them; what depends on the source alone is computed once. ``move`` makes the motion to render of the
    source's and the driving frames' (see `transfer`)."""
    state = model.encode_source(source)
    for target in batches(driving, batch):
        target = target.to(source.device)
        motion = move(state.motion, encode_motion(model, target))
        yield from zip(target, model.render(state, motion).image, strict=True)


@torch.no_grad()
def find_start(
    model: AnimationModel,
    source: Float[Tensor, "1 3 h w"],
    driving: Iterable,
    *,
    frame: int | None = None,
    batch: int = 8,
) -> tuple[int, Motion]:
    """The number and the motion of the driving frame whose points lie most like the source's, or of the ``frame`` that
    is wanted."""
    if frame is not None:
        chosen = list(islice(driving, frame, frame + 1)) if frame >= 0 else []
        if not chosen:
            raise ValueError(f"start frame {frame}: the driving video has no such frame; they are counted from 0")
        return frame, encode_motion(model, chosen[0][None].to(source.device))
    photo = model.encode_driving(source)
    best, number = (float("inf"), 0, None), 0
    for frames in batches(driving, batch):
        motion = encode_motion(model, frames.to(source.device))
        nearest, index = transfer.shape_distance(photo, motion).min(0)
        if best[2] is None or nearest < best[0]:
            best = nearest, number + int(index), transfer.take(motion, index[None])
        number += len(frames)
    if best[2] is None:
        raise ValueError("the driving video has no frame to start from")
    return best[1:]


def encode_motion(model: AnimationModel, driving: Float[Tensor, "b 3 h w"] | Float[Tensor, "b 74 2"]) -> Motion:
    """The motion of frames, or of landmarks."""
    return model.encode_driving(driving) if driving.dim() == 4 else model.encode_driving(landmarks=driving)


def draw_landmarks(points: Float[Tensor, "74 2"], size: int) -> Float[Tensor, "3 h w"]:
    """Landmarks as white dots on black."""
    dots = gaussian_heatmaps(points[None], (size, size), variance=(1.4 / size) ** 2)
    return dots.amax(1).expand(3, -1, -1)


def batches(frames: Iterable, size: int) -> Iterator[Tensor]:
    frames = iter(frames)
    while some := list(islice(frames, size)):
        yield torch.stack(some)
