"""``minimodel synthesize``: clips of rendered faces with their ground truth."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from minimodel.data import synthetic
from minimodel.data.writer import FPS, VideoWriter, check_size
from minimodel.errors import MinimodelError
from minimodel.runtime import Device, pick_device
from minimodel.show import save_picture
from minimodel.warping import flow_to_pixels

NAMES = ("ada", "ben", "cleo", "dev", "elif", "finn", "gita", "hugo", "ines", "juri", "kofi", "lena")
TRUTH_EVERY = 5  # frames; flows are large


@dataclass
class SynthesizeConfig:
    """Write clips of rendered faces, each with its ground truth beside it."""

    output: Path
    """Folder for the clips."""
    clips: int = 6
    """How many, each of another person."""
    size: int = 128
    """Side in pixels."""
    seconds: float = 3.0
    """Length of each."""
    seed: int = 0
    device: Device = "auto"
    """What computes; the best there is unless given."""


def synthesize(config: SynthesizeConfig) -> list[Path]:
    """Write clips of rendered faces with their truth: NAME.mp4, its first frame NAME.png and its truth NAME.npz.
    Returns the films' paths.

    The .npz holds, in pixels: ``landmarks`` (T, 74, 2); ``parsing`` (T, H, W) with ``parts``, its names; and for the
    frames ``flow_frames`` the backward flow to frame 0, ``flow`` (N, 2, H, W), and ``visible`` (N, H, W), which is true
    where a point of the frame is also visible in frame 0. Raises `MinimodelError` for options outside their range.
    """
    check_size(config.size)
    if config.clips < 1:
        raise MinimodelError(f"clips is {config.clips}: expected at least 1")
    if not TRUTH_EVERY < config.seconds * FPS < math.inf:
        raise MinimodelError(f"seconds is {config.seconds}: expected more than {TRUTH_EVERY / FPS}, and an end")
    frames = round(config.seconds * FPS)
    config.output.mkdir(parents=True, exist_ok=True)
    device = pick_device(config.device)
    identities = synthetic.sample_identities(config.clips, config.seed).to(device)
    written = []
    for index in tqdm(range(config.clips), unit=" clips"):
        states = synthetic.animate_states(frames, config.seed * 1000 + index).to(device)
        faces = synthetic.Faces(identities[index], states)
        name = NAMES[index] if config.clips <= len(NAMES) else f"{index:05d}"
        path = config.output / f"{name}.mp4"
        with VideoWriter(path, fps=FPS, every=8, crf=12) as film:
            for start in range(0, frames, 8):
                for frame in synthetic.render(faces[start : start + 8], config.size):
                    film.write(frame)
        save_picture(synthetic.render(faces[:1], config.size)[0], path.with_suffix(".png"))
        kept = torch.arange(TRUTH_EVERY, frames, TRUTH_EVERY)
        source = synthetic.Faces(identities[index], states[0])
        flow, visible = synthetic.flow_between(source, faces[kept.to(device)], config.size)
        np.savez_compressed(
            path.with_suffix(".npz"),
            landmarks=synthetic.landmarks(faces, config.size).cpu().numpy(),
            parsing=synthetic.parsing(faces, config.size).byte().cpu().numpy(),
            parts=np.array(synthetic.PARTS),
            flow_frames=kept.numpy(),
            flow=flow_to_pixels(flow).half().cpu().numpy(),
            visible=visible[:, 0].bool().cpu().numpy(),
        )
        written.append(path)
    return written
