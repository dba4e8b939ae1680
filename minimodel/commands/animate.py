"""``minimodel animate``: a photo and a film -> the photo, moving like the film.

Notebook: ``notebooks/00_start_here.ipynb``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
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
from minimodel.errors import MinimodelError
from minimodel.keypoints import gaussian_heatmaps
from minimodel.model import AnimationModel
from minimodel.runtime import Device

SYNTHETIC = "Synthetic media: this person did not move like this. Animated from one photo by minimodel."
SMALLEST_SIDE = 256  # of the film: players show smaller ones badly, so they are enlarged


@dataclass
class AnimateConfig:
    """Animate a photo with the motion of a video."""

    source: Path
    """Photo of a face; the largest square from its middle is used."""
    driving: Path
    """Film of a face, of any kind, or a folder of .png, .jpg or .webp frames, framed like the photo. For weights that
    move by landmarks also the .npz that `minimodel find-landmarks` makes of a film."""
    output: Path = Path("animation.mp4")
    """Film to write, .mp4, .mov, .mkv or .webm (with the film's sound), or .gif."""
    weights: str = "tiny-video"
    """Name of shipped weights, or a .safetensors file."""
    mode: transfer.Mode = "standard"
    """standard moves the face to where the driving face is; relative moves it as far as the driving face has moved
    since a starting frame; avd puts the driving pose onto the photo's shape, with a network of its own beside the
    weights."""
    start_frame: int | None = None
    """Of mode relative, from 0: a frame that shows the photo's pose; the most similar one unless given."""
    size: int | None = None
    """Side of the frames in pixels; that of the weights' preset unless given."""
    side_by_side: bool = False
    """Show photo, driving video and result beside each other."""
    device: Device = "auto"
    """What computes; the best there is unless given."""


def animate(config: AnimateConfig, *, batch: int = 8) -> Path:
    """Animate a photo with the motion of a film, write the result and return its path.

    Raises `MinimodelError` for options that contradict each other, and for files that can't be read or written.

    >>> animate(AnimateConfig(Path("photo.png"), Path("driving.mp4"), mode="relative"))
    """
    if config.start_frame is not None and config.mode != "relative":
        raise MinimodelError(f"--start-frame is for mode relative; the mode is {config.mode}")
    if config.output.resolve() in (config.source.resolve(), config.driving.resolve()):
        raise MinimodelError(f"{config.output}: is what the film is to be made from; --output names another file")
    model = AnimationModel.load(config.weights, device=config.device)
    device = next(model.parameters()).device
    size = model.image_size if config.size is None else config.size
    model.check_size(size, size)
    photo = center_crop_resize(read_image(config.source)[None], size)
    network = transfer.AvdNetwork.load(config.weights, model) if config.mode == "avd" else None
    film = Driving(config.driving, size)
    metadata = {"comment": SYNTHETIC, "synthetic_media": "true"}
    with VideoWriter(config.output, **film.timing, metadata=metadata) as writer, torch.inference_mode():
        source = model.encode_source(photo.to(device))
        if film.landmarks is not None:
            motion = model.encode_driving(landmarks=film.landmarks.to(device))
        else:
            frames = tqdm(film.frames(), total=film.count, unit=" frames", desc="reading the film")
            motion = model.encode_film(frames, batch=batch)
        start = config.start_frame
        if config.mode == "relative":
            start = transfer.best_start(source.motion, motion) if start is None else start
        motion = transfer.transfer(config.mode, source.motion, motion, start_frame=start, network=network)
        if start is not None:
            print(f"movement is counted from frame {start}")
        rendered = tqdm(
            model.render_film(source, motion, batch=batch), total=len(motion), unit=" frames", desc="animating"
        )
        for driving, result in zip(film.frames() if config.side_by_side else [None] * len(motion), rendered):
            writer.write(enlarged(torch.cat([photo[0], driving, result.cpu()], -1) if driving is not None else result))
    print(f"wrote {config.output}")
    return config.output


class Driving:
    """The driving film, or its landmarks from an .npz. ``timing`` holds the arguments of `VideoWriter` that give the
    result the film's rate and sound."""

    def __init__(self, path: Path, size: int):
        self.size = size
        self.landmarks: Float[Tensor, "t 74 2"] | None = None
        self.clip: Clip | None = None
        if path.suffix == ".npz":
            self.landmarks, fps = read_landmarks(path)
            self.timing: dict = dict(fps=fps)
            self.count = len(self.landmarks)
        else:
            self.clip = Clip(path)
            self.timing = dict(like=self.clip)
            self.count = len(self.clip)

    def frames(self) -> Iterator[Float[Tensor, "3 h w"]]:
        """The frames of the film, or pictures of the landmarks, in [0, 1]. They are read anew at each call."""
        if self.clip is not None:
            for _, frame in self.clip.decode():
                yield center_crop_resize(frame[None] / 255, self.size)[0]
        elif self.landmarks is not None:
            for points in self.landmarks:
                yield draw_landmarks(points, self.size)


def enlarged(frame: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 hi wi"]:
    """Enlarge a frame by a whole factor, to at least `SMALLEST_SIDE` pixels."""
    factor = -(-SMALLEST_SIDE // frame.shape[-2])
    if factor == 1:
        return frame
    return F.interpolate(frame[None], scale_factor=factor, mode="bicubic", align_corners=False)[0]


def draw_landmarks(points: Float[Tensor, "74 2"], size: int) -> Float[Tensor, "3 h w"]:
    """Draw normalised landmarks as white dots on black."""
    dots = gaussian_heatmaps(points[None], (size, size), variance=(1.4 / size) ** 2)
    return dots.amax(1).expand(3, -1, -1)
