"""A photo and a video -> the photo, moving like the video.

Notebook: ``notebooks/00_start_here.ipynb``.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from minimodel.data.video import Clip, VideoWriter, fit, read_image
from minimodel.model import AnimationModel

SYNTHETIC = "Synthetic media: this person did not move like this. Animated from one photo by minimodel."
SMALLEST_SIDE = 256  # of the film: players show smaller ones badly, so they are enlarged


@dataclass
class AnimateConfig:
    """Animate a photo with the motion of a video."""

    source: Path
    """Photo of a face; the largest square from its middle is used."""
    driving: Path
    """Video of a face (.mp4, .gif or a folder of .png frames), framed like the photo."""
    output: Path = Path("animation.mp4")
    """Film to write, .mp4 (with the video's sound) or .gif."""
    weights: str = "tiny-video"
    """Name of shipped weights, or a .safetensors file."""
    size: int | None = None
    """Side of the frames in pixels; that of the weights' preset unless given."""
    side_by_side: bool = False
    """Show photo, driving video and result beside each other."""


def animate(config: AnimateConfig, *, batch: int = 8) -> Path:
    """Write the film and return its path."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AnimationModel.load(config.weights).to(device)
    size = model.config.image_size if config.size is None else config.size
    model.check_size(size, size)
    source = fit(read_image(config.source)[None], size).to(device)
    clip = Clip(config.driving)
    driving = (fit(frame[None] / 255, size)[0] for _, frame in clip.decode())
    metadata = {"comment": SYNTHETIC, "synthetic_media": "true"}
    with VideoWriter(config.output, like=clip, metadata=metadata) as film:
        frames = tqdm(driving, total=len(clip), unit=" frames", desc="animating")
        for wanted, made in render_frames(model, source, frames, batch=batch):
            shown = torch.cat([source[0], wanted, made], dim=-1) if config.side_by_side else made
            factor = -(-SMALLEST_SIDE // size)
            if factor > 1:
                shown = F.interpolate(shown[None], scale_factor=factor, mode="bicubic", align_corners=False)[0]
            film.write(shown)
    print(f"wrote {config.output}")
    return config.output


@torch.inference_mode()
def render_frames(
    model: AnimationModel, source: Float[Tensor, "1 3 h w"], driving: Iterable, *, batch: int = 8
) -> Iterator[tuple[Tensor, Tensor]]:
    """(driving frame, rendered frame) in turn, for ``driving`` frames (3, h, w); what depends on the source alone is
    computed once."""
    state = model.encode_source(source)
    driving = iter(driving)
    while frames := list(islice(driving, batch)):
        wanted = torch.stack(frames).to(source.device)
        # The driving film's background isn't the photo's, and says nothing about how that one moves.
        motion = replace(model.encode_driving(wanted), image=None)
        yield from zip(wanted, model.render(state, motion).image, strict=True)
