"""``minimodel evaluate``: measure a model."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from minimodel.evaluation import metrics
from minimodel.evaluation.assessors import load_assessors
from minimodel.evaluation.benchmark import CROSS, cross_clips, load_evaluation
from minimodel.evaluation.inception import load_inception
from minimodel.evaluation.lpips import load_lpips
from minimodel.evaluation.protocols import Scores, evaluate, evaluate_transfer, find_avd
from minimodel.features import load_features
from minimodel.model import AnimationModel
from minimodel.runtime import Device, Precision, pick_device
from minimodel.saving import whole_file


@dataclass
class EvaluateConfig:
    """Measure a model: the first frame of each clip is the source, every other frame drives."""

    weights: str = "tiny"
    """Name of shipped weights, or a .safetensors file."""
    data: tuple[str, ...] = ("synthetic",)
    """"synthetic" for the frozen benchmark, folders of clips, or films; "cross-aligned" and "cross-plain" for faces
    driven by other people, with the true answer: the photo in the pose of the film's first frame, or in any."""
    size: int | None = None
    """Side of the frames in pixels; that of the weights' preset unless given."""
    output: Path | None = None
    """Write the numbers here as well, as JSON."""
    find_landmarks: bool = False
    """A model that moves by landmarks is given those of rendered faces that drive themselves; with this a detector has
    to find them there, too, as it does in films and between two people."""
    lpips: str | None = None
    """Measure LPIPS as well, where faces drive themselves: "alex" and "vgg" download AlexNet's or VGG-16's weights,
    anything else is a file with either."""
    inception: str | None = None
    """Measure FID by the published network as well, where others drive: "inception" downloads its weights, anything
    else is a file with them."""
    strict: bool = False
    """Refuse clips that can't be read, rather than leave them out."""
    precision: Precision = "float32"
    """Of rendering; measures are computed in float32."""
    device: Device = "auto"
    """What computes; the best there is unless given."""


def run_evaluation(config: EvaluateConfig) -> dict[str, Scores]:
    """Evaluate a model on each data set, print a table for each and return the scores by data set.

    Raises `MinimodelError` for weights or data that can't be read. With ``config.output`` the scores are also written
    as JSON, whole or not at all.

    >>> run_evaluation(EvaluateConfig(weights="tiny", data=("synthetic",)))
    """
    device = pick_device(config.device)
    model = AnimationModel.load(config.weights, device=device)
    model.precision = config.precision
    size = model.image_size if config.size is None else config.size
    model.check_size(size, size)
    features, assessors = load_features().to(device), load_assessors().to(device)
    distances: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
    if config.lpips is not None:
        kind, network, weights = load_lpips(config.lpips)
        weights = [weight.to(device) for weight in weights]
        distances[f"LPIPS ({kind})"] = partial(metrics.lpips, network.to(device), weights)
    published = None if config.inception is None else load_inception(config.inception).to(device)
    scores = {}
    with nullcontext() if config.output is None else whole_file(config.output) as unfinished:
        for name in config.data:
            if name in CROSS:
                pairs = cross_clips(name, size)
                scores[name] = evaluate_transfer(
                    model, pairs, find_avd(config.weights, model), assessors=assessors, inception=published
                )
                count, frames = len(pairs), sum(len(pair.driving) - 1 for pair in pairs)
            else:
                clips = load_evaluation(name, size, strict=config.strict)
                if config.find_landmarks:
                    clips = [replace(clip, landmarks=None) for clip in clips]
                scores[name] = evaluate(model, clips, features, assessors=assessors, distances=distances)
                count, frames = len(clips), sum(len(clip.frames) - 1 for clip in clips)
            print(f"\n{config.weights} on {name}: {count} clips, {frames} frames of {size} x {size}\n")
            print(scores[name].table())
        if unfinished is not None:
            rows = {name: score.rows for name, score in scores.items()}
            unfinished.write_text(json.dumps(dict(weights=config.weights, size=size, scores=rows), indent=2) + "\n")
    return scores
