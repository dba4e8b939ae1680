"""Training of the landmark detector.

Notebook: ``notebooks/04_landmarks_on_video.ipynb``."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from minimodel.data import synthetic
from minimodel.data.framing import center_crop_resize
from minimodel.data.pairs import FrameCache, step_generator
from minimodel.data.video import find_clips
from minimodel.errors import MinimodelError, check_positive
from minimodel.keypoints import soft_argmax
from minimodel.landmarks import (
    EYE,
    EYES,
    LANDMARKS,
    SIZE,
    LandmarkDetector,
    heatmap_loss,
    move_picture,
    move_points,
    point_loss,
    random_places,
    registration_loss,
    spoil,
)
from minimodel.runtime import Device, channels_last, pick_device
from minimodel.saving import whole_file
from minimodel.training.small import colour_noise, fast_autocast, training_steps


@dataclass
class TrainLandmarksConfig:
    """Train the landmark detector on rendered faces. With --video it goes on from given weights, and learns to hold
    still on films, too: the registration loss needs no labels."""

    output: Path
    """File for the weights."""
    video: tuple[str, ...] = ()
    """Folders of clips, or films, for the registration loss."""
    start: str | None = None
    """Weights to go on from; with --video the shipped ones unless given."""
    steps: int | None = None
    """Stop after this many steps ..."""
    minutes: float | None = None
    """... or after this many minutes: 30 unless given, 12 with --video."""
    batch: int = 16
    """Rendered faces a step; with --video half of them give way to pairs of neighbouring frames."""
    registration: float = 5.0
    """What a pixel off in the registration loss counts for, beside a pixel off on a rendered face."""
    seed: int = 0
    device: Device = "auto"
    """What computes; the best there is unless given."""

    def check(self) -> None:
        """Raise a `MinimodelError` for numbers that aren't positive, or for a batch of fewer than four faces."""
        check_positive(self, "steps", "minutes")
        if self.batch < 4:
            raise MinimodelError(f"--batch is {self.batch}: expected at least 4")


NEW_FACES = 4  # steps from one batch of new faces to the next
POINT_WEIGHT = 20.0  # of a distance in normalised units, beside the cross entropy of heatmaps
FIRST_RATE, TUNING_RATE = 3e-3, 3e-4


class FaceMemory:
    """A memory of rendered faces with their landmarks. Rendering a face takes a CPU as long as learning from it. So
    each face is kept and used several times, changed at random each time."""

    def __init__(self, capacity: int = 8192):
        self.images = torch.empty(capacity, 3, SIZE, SIZE, dtype=torch.uint8)
        self.points = torch.empty(capacity, LANDMARKS, 2)
        self.drawn = 0

    def draw(self, count: int, generator: torch.Generator) -> None:
        """Replace the oldest faces by ``count`` new ones."""
        faces = synthetic.Faces.sample(count, generator)
        slots = (self.drawn + torch.arange(count)) % len(self.images)
        # One ray a pixel: half of the pictures are blurred or shrunk later anyway.
        self.images[slots] = (synthetic.render(faces, SIZE, supersample=1) * 255).round().byte()
        self.points[slots] = synthetic.landmarks(faces)
        self.drawn += count

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a batch: pictures (count, 3, 128, 128), changed at random, and their landmarks (count, 74, 2),
        normalised."""
        slots = torch.randint(min(self.drawn, len(self.images)), (count,), generator=generator)
        places = random_places(count, generator)
        images = move_picture(self.images[slots] / 255, places)
        return colour_noise(spoil(images, generator), generator), move_points(self.points[slots], places)


class Neighbours:
    """Random pairs of neighbouring frames of films, in both orders; both frames of a pair are moved alike. Clips that
    can't be used are left out, see `FrameCache`."""

    def __init__(self, names: tuple[str, ...]):
        self.cache = FrameCache([path for name in names for path in find_clips(name, "train")], SIZE)

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw ``count`` pairs: the first and the second frames, (count, 3, 128, 128) each, in [0, 1]."""
        clips = torch.randint(len(self.cache.clips), (count,), generator=generator).tolist()
        pairs = []
        for clip, place, turn in zip(clips, *torch.rand(2, count, generator=generator).tolist()):
            first = int(place * (len(self.cache.clips[clip]) - 1))
            frames = self.cache.several(clip, [first + (turn < 0.5), first + (turn >= 0.5)])
            pairs.append(center_crop_resize(frames / 255, SIZE))  # small films are kept small
        # A mild change of place: the same film falls onto other grids of heatmap pixels.
        places = random_places(count, generator, zoom=(0.8, 1.2), rotation=0.2)
        start, end = torch.stack(pairs, dim=1)
        return move_picture(start, places), move_picture(end, places)


def train_landmarks(config: TrainLandmarksConfig) -> dict[str, float]:
    """Train the landmark detector, write its weights, and print and return its errors on rendered faces that no
    training draws (see `landmark_scores`). With films the registration loss is added (S2D section 3.3)."""
    config.check()
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    start = config.start or ("landmarks" if config.video else None)
    detector = (LandmarkDetector.load(start) if start else LandmarkDetector()).train()
    detector = channels_last(detector, device)
    films = Neighbours(config.video) if config.video else None
    minutes = config.minutes or (12.0 if films else 30.0)
    rate = TUNING_RATE if start else FIRST_RATE
    optimizer = torch.optim.Adam(detector.parameters(), lr=rate)
    memory = FaceMemory()
    pairs = config.batch // 4 if films else 0

    with whole_file(config.output) as unfinished:
        for step, bar in training_steps(optimizer, rate, steps=config.steps, minutes=minutes):
            generator = step_generator(config.seed, 1000 + step)
            if step % NEW_FACES == 0:
                memory.draw(config.batch, generator)
            images, points = (value.to(device) for value in memory(config.batch - 2 * pairs, generator))
            inside = (points.abs() < 1).all(-1)
            frames = [value.to(device) for value in films(pairs, generator)] if films else []
            # Every frame gets grain of its own: points are found in spoilt frames and carried over in clean ones.
            inputs = torch.cat([images, *(colour_noise(frame, generator) for frame in frames)])
            with fast_autocast(device):
                stages = detector.stages(inputs.contiguous(memory_format=torch.channels_last))
            terms = {name: torch.zeros((), device=device) for name in ("heatmaps", "points")}
            for logits in stages:
                found = soft_argmax(logits)[0]
                terms["heatmaps"] = terms["heatmaps"] + heatmap_loss(logits[: len(images)], points, inside)
                terms["points"] = terms["points"] + POINT_WEIGHT * point_loss(found[: len(images)], points, inside)
            with fast_autocast(device):
                found, logits, places = detector.look_closer(inputs, found)
            logits, places = (x.unflatten(0, (2, -1))[:, : len(images)].flatten(0, 1) for x in (logits, places))
            terms["heatmaps"] = terms["heatmaps"] + close_up_loss(logits, places, points)
            terms["eyes"] = POINT_WEIGHT * point_loss(found[: len(images), EYES], points[:, EYES], inside[:, EYES])
            if films:
                registration, reliable = registration_loss(*frames, *found[len(images) :].chunk(2))
                terms["registration"] = config.registration * POINT_WEIGHT * registration
            optimizer.zero_grad()
            sum(terms.values(), start=torch.zeros((), device=device)).backward()
            optimizer.step()
            shown = f"{terms['points'].item() / POINT_WEIGHT / len(stages) * SIZE / 2:.2f} px"
            shown += f", eyes {terms['eyes'].item() / POINT_WEIGHT * SIZE / 2:.2f} px"
            if films:
                shown += f", registration {registration.item() * SIZE / 2:.2f} px ({reliable.item():.0%} reliable)"
            bar.set_postfix_str(shown)
        detector = detector.cpu().eval()
        detector.save(unfinished)
    scores = landmark_scores(detector)
    print({name: round(value, 3) for name, value in scores.items()})
    return scores


def close_up_loss(
    logits: Float[Tensor, "eyes 9 h w"], places: Float[Tensor, "eyes 2 3"], points: Float[Tensor, "b 74 2"]
) -> Float[Tensor, ""]:
    """`heatmap_loss` of the enlarged eyes: ``logits`` and ``places`` from `LandmarkDetector.look_closer` against the
    landmarks."""
    target = move_points(points.repeat(2, 1, 1), places)[:, EYE]
    return heatmap_loss(logits, target, (target.abs() < 1).all(-1))


@torch.inference_mode()
def landmark_scores(detector: LandmarkDetector, *, count: int = 64) -> dict[str, float]:
    """Mean errors on rendered faces that no training draws, in pixels of 128 x 128 pictures."""
    faces = synthetic.Faces.sample(count, step_generator(0, 0))
    truth = synthetic.landmarks(faces)
    found = torch.cat([detector(some)[0] for some in synthetic.render(faces, SIZE).split(16)])
    error = (found - truth).norm(dim=-1) * SIZE / 2
    return {"all (px)": error.mean().item(), "pupils (px)": error[:, 68:70].mean().item()}
