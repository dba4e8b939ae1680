"""Positive controls: can the refinement's machinery correct a coarse flow at all, when it is shown enough?

The prior of a finished model is frozen. Lookup, updater and the features that they read start afresh and learn from the
true flow alone, as RAFT does. What is shown beside the coarse flow changes:

- ``picture``: features of the driving picture itself at half its side. If this doesn't help, the machinery is broken.
- ``landmarks``: 74 true landmarks as structure, with the source's picture.
- ``points``: the prior's own points as structure, as in MRFA.

With ``--spoilt`` the coarse flow is shifted, turned and smoothed at random, pair by pair, before it is refined.

    python tools/controls.py --weights model.safetensors --shown picture --steps 10000 --output runs/picture
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float
from torch import Tensor, nn

from minimodel import losses
from minimodel.blocks import Hourglass
from minimodel.correlation import Correlation, StructureEncoder
from minimodel.data.pairs import PairStream, RenderedPairs
from minimodel.evaluation import metrics
from minimodel.generator import SourceEncoder
from minimodel.landmarks import LANDMARKS
from minimodel.model import AnimationModel
from minimodel.motion import CoarseMotion
from minimodel.refinement import MotionRefiner, UpdaterWidths
from minimodel.runtime import in_precision, keep_freed_memory, pick_precision
from minimodel.warping import identity_grid, resize_flow

FEATURES, RADIUS, LEVELS = 32, 3, 2
EVALUATION_SEED = 1_900_000_000  # training draws its pairs from other seeds


@dataclass
class Controls:
    """Train one control, and say how the flow's error changes."""

    weights: str
    """A model by name or file; its prior makes the coarse flow."""
    output: Path
    """Folder for the checkpoint and results.jsonl."""
    shown: Literal["picture", "landmarks", "points"] = "picture"
    """What the lookup's features are made of."""
    spoilt: bool = False
    """Spoil the coarse flow at random."""
    matching: float = 0.0
    """Weight of a loss that asks the features directly to match."""
    steps: int = 10_000
    batch: int = 8
    rate: float = 4e-4
    seed: int = 0
    every: int = 500
    """Steps between evaluations, each with a checkpoint from which the same command goes on."""
    pairs: int = 256
    """Fresh pairs of strangers to evaluate on."""


class PictureStructure(nn.Module):
    """One network for source and driving picture, at half the picture's side: what looks alike corresponds."""

    side = 2

    def __init__(self, model: AnimationModel):
        super().__init__()
        self.fold = nn.PixelUnshuffle(self.side)
        self.hourglass = Hourglass(3 * self.side**2 + 2, base=16, levels=3, maximum=64, norm=model.config.norm)
        self.head = nn.Conv2d(self.hourglass.channels, FEATURES, 1)

    def encode(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hi wi"]:
        x = self.fold(image)
        place = identity_grid(*x.shape[-2:], device=x.device).expand(len(x), -1, -1, -1)
        return self.head(self.hourglass(torch.cat([x, place], dim=1))).float()

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.encode(batch["driving"]), self.encode(batch["source"])


class PointStructure(nn.Module):
    """The model's own pair of structure encoders, fresh, on points or landmarks."""

    def __init__(self, model: AnimationModel, *, landmarks: bool):
        super().__init__()
        self.landmarks, self.side = landmarks, model.config.coarse_scale
        points = LANDMARKS if landmarks else model.config.points
        sizes = dict(size=model.config.image_size // self.side, **dataclasses.asdict(model.config.structure))
        sizes |= dict(norm=model.config.norm)
        self.source = StructureEncoder(points, FEATURES, sees_image=True, **sizes)
        self.driving = StructureEncoder(points, FEATURES, sees_image=False, **sizes)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        small = F.avg_pool2d(batch["source"], self.side)
        size = tuple(small.shape[-2:])
        names = ("driving_landmarks", "source_landmarks") if self.landmarks else ("driving_points", "source_points")
        driving, source = (batch[name] for name in names)
        return self.driving(driving, size), self.source(source, size, small)


class Control(nn.Module):
    """Structure, lookup and updater behind a frozen prior."""

    def __init__(self, model: AnimationModel, shown: str):
        super().__init__()
        self.structure = (
            PictureStructure(model) if shown == "picture" else PointStructure(model, landmarks=shown == "landmarks")
        )
        self.context = SourceEncoder(base=16, levels=3, maximum=64, outer_kernel=3, norm=model.config.norm)
        widths = UpdaterWidths((32, 32), (16, 16), 48, (32, 32), 32)
        self.refiner = MotionRefiner(
            self.context.feature_channels, radius=RADIUS, levels=LEVELS, iterations=3, widths=widths
        )

    def forward(self, batch: dict[str, Tensor], coarse: Tensor, *, foreign: bool = False) -> list[Tensor]:
        """-> the flow of every stage, ``coarse`` first. ``foreign``: the lookup's values come from another pair."""
        driving, source = self.structure(batch)
        if foreign:
            driving, source = driving.roll(1, 0), source.roll(1, 0)
        self.correlation = Correlation(driving, source, radius=RADIUS, levels=LEVELS, hold_volume=True)
        context = self.refiner.project(self.context.encode(batch["source"]))
        height, width = batch["source"].shape[-2:]
        sizes = [(height >> level, width >> level) for level in (3, 2, 1, 0)]
        start = CoarseMotion(coarse, torch.zeros_like(coarse[:, :1]))
        return [coarse, *self.refiner(start, self.correlation, context, sizes)[0]]


def spoil(flow: Float[Tensor, "b 2 h w"], generator: torch.Generator) -> Float[Tensor, "b 2 h w"]:
    """Shift a flow by up to an eighth of the picture's half, turn it by up to 0.2 radians and smooth it, each pair by
    amounts of its own."""
    shift = (torch.rand(len(flow), 2, 1, 1, generator=generator) - 0.5) / 4
    angle = (torch.rand(len(flow), 1, 1, generator=generator) - 0.5) * 0.4
    share = torch.rand(len(flow), 1, 1, 1, generator=generator)
    x, y = identity_grid(*flow.shape[-2:])
    cos, sin = angle.cos() - 1, angle.sin()
    turned = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=1)
    smooth = F.interpolate(F.avg_pool2d(flow, 4), tuple(flow.shape[-2:]), mode="bilinear", align_corners=False)
    return flow + share * (smooth - flow) + shift + turned


@torch.no_grad()
def prepare(model: AnimationModel, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The batch with what the prior found in it, and the prior's flow."""
    start, end = (model.prior.detect(batch[name]) for name in ("source", "driving"))
    coarse = model.prior(batch["source"], start, end, None).flow
    return batch | dict(source_points=start.points, driving_points=end.points), coarse


def run(config: Controls) -> None:
    keep_freed_memory()
    torch.manual_seed(config.seed)
    model = AnimationModel.load(config.weights).requires_grad_(False)
    size = model.config.image_size
    control = Control(model, config.shown).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(control.parameters(), lr=config.rate)
    precision = pick_precision("auto", torch.device("cpu"))
    first, checkpoint = 0, config.output / "checkpoint.pt"
    config.output.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        control.load_state_dict(saved["control"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]

    def stream(batch: int, seed: int) -> PairStream:
        return PairStream([RenderedPairs(size)], size, torch.device("cpu"), batch=batch, seed=seed, truth=True)

    train, test = stream(config.batch, config.seed), stream(32, EVALUATION_SEED)
    held = [prepare(model, with_landmarks(test, step)) for step in range(config.pairs // 32)]
    began = time.perf_counter()
    for step in range(first, config.steps):
        for group in optimizer.param_groups:  # a short start and a calm end
            group["lr"] = config.rate * min(1, (step + 1) / 100) * (0.2 if step > 0.8 * config.steps else 1)
        batch, coarse = prepare(model, with_landmarks(train, step))
        if config.spoilt:
            coarse = spoil(coarse, torch.Generator().manual_seed(step))
        with in_precision(precision, torch.device("cpu")):
            flows = control(batch, coarse)
        loss = losses.true_flow_loss(flows[1:], batch["true_flow"], batch["visible"])
        if config.matching:
            volume = control.correlation.volume()
            loss = loss + config.matching * losses.matching_loss(volume, batch["true_flow"], batch["visible"])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(control.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % config.every == 0 or step + 1 == config.steps:
            line = dict(step=step + 1, seconds=round(time.perf_counter() - began, 1), loss=round(loss.item(), 4))
            line |= errors(control, held, config.spoilt)
            with (config.output / "results.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)
            saved = dict(control=control.state_dict(), optimizer=optimizer.state_dict(), step=step + 1)
            torch.save(saved, checkpoint)


def with_landmarks(stream: PairStream, step: int) -> dict[str, Tensor]:
    """A batch in which each source has its landmarks: slots 2n and 2n + 1 are one pair, both ways."""
    batch = stream[step]
    driving = batch["true_landmarks"]
    swapped = driving.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return batch | dict(driving_landmarks=driving, source_landmarks=swapped)


@torch.no_grad()
def errors(control: Control, held: list, spoilt: bool) -> dict[str, float]:
    """Mean distance in pixels on visible pixels: as it comes, spoilt, refined, and refined by another pair's lookup."""
    control.eval()
    found: dict[str, list[Tensor]] = {}
    for index, (batch, coarse) in enumerate(held):
        start = spoil(coarse, torch.Generator().manual_seed(index)) if spoilt else coarse
        flows = dict(unspoilt=coarse, coarse=start, refined=control(batch, start)[-1])
        flows["refined, foreign lookup"] = control(batch, start, foreign=True)[-1]
        for name, flow in flows.items():
            flow = resize_flow(flow, tuple(batch["true_flow"].shape[-2:]))
            found.setdefault(name, []).append(metrics.flow_error(flow, batch["true_flow"], batch["visible"] > 0.5))
    control.train()
    means = {name: float(torch.cat(values).nanmean()) for name, values in found.items()}
    means["share left"] = means["refined"] / means["coarse"]
    return {name: round(value, 4) for name, value in means.items()}


if __name__ == "__main__":
    run(tyro.cli(Controls))
