"""Training of the reader of faces that assesses pictures for the metrics.

Notebook: ``notebooks/09b_what_a_table_hides.ipynb``."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.data import synthetic
from minimodel.data.pairs import step_generator
from minimodel.errors import MinimodelError, check_positive
from minimodel.evaluation.assessors import EXPRESSION, ROTATION, UNITS, FaceReader, active_units, aligned, resized
from minimodel.evaluation.assessors import SIZE as READER_SIZE
from minimodel.landmarks import LANDMARKS, SIZE, LandmarkDetector, move_picture, random_places, soften
from minimodel.runtime import Device, channels_last, pick_device
from minimodel.saving import whole_file
from minimodel.training.small import colour_noise, fast_autocast, training_steps


@dataclass
class TrainAssessorsConfig:
    """Train what judges identity, head rotation and expression for the metrics, on the rendered faces."""

    output: Path
    """File for the weights."""
    steps: int | None = None
    """Stop after this many steps ..."""
    minutes: float | None = None
    """... or after this many minutes: 15 unless given."""
    batch: int = 32
    """People a step, each seen twice."""
    seed: int = 0
    device: Device = "auto"
    """What computes; the best there is unless given."""

    def check(self) -> None:
        """Raise a `MinimodelError` for numbers that aren't positive, or for a batch of fewer than two people."""
        check_positive(self, "steps", "minutes")
        if self.batch < 2:
            raise MinimodelError(f"--batch is {self.batch}: expected at least 2, as people are told apart")


NEW_PEOPLE = 8  # steps from one batch of new people to the next
READER_RATE = 2e-3
STATE_WEIGHT = 5.0  # of a standard deviation, beside the cross entropy of identities
TEMPERATURE = 0.1  # of that
LANDMARK_NOISE = 0.005  # normalised, of each coordinate; without it the few landmarks could be learnt by heart
# What a picture shows of a person beside the face. It is another in each picture of them, or clothes and background
# would tell people apart.
SCENE = ("center", "backdrop", "backdrop_style", "cloth", "cloth2", "jacket", "stripes", "neckline", "collar")


def two_pictures(
    count: int, generator: torch.Generator, *, supersample: int = 2
) -> tuple[Float[Tensor, "p 2 3 64 64"], Float[Tensor, "p 2 10"]]:
    """Draw two pictures of each of ``count`` people and the targets of `FaceReader` for them (see `reader_targets`).
    Each picture has a state, light, clothes and a room of its own."""
    people, images, targets = synthetic.sample_identities(count, generator), [], []
    for _ in range(2):
        strangers = synthetic.sample_identities(count, generator)
        dressed = dataclasses.replace(people, **{name: getattr(strangers, name) for name in SCENE})
        states = synthetic.sample_states(count, generator)
        images.append(synthetic.render(synthetic.Faces(dressed, states), READER_SIZE, supersample=supersample))
        targets.append(reader_targets(states))
    return torch.stack(images, dim=1), torch.stack(targets, dim=1)


@torch.no_grad()
def found_landmarks(detector: LandmarkDetector, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 74 2"]:
    """The landmarks that the detector finds in the pictures, normalised. The reader is trained on them rather than on
    the true ones, because it is used on found ones."""
    return torch.cat([detector(resized(some, SIZE))[0] for some in images.split(32)])


def reader_targets(states: synthetic.State) -> Float[Tensor, "b 10"]:
    """The targets of `FaceReader`: yaw, pitch and roll in degrees, then `EXPRESSION`. A variable with two sides is
    averaged over them."""
    rotation = [getattr(states, name) * (180 / math.pi) for name in ROTATION]
    expression = [getattr(states, name) for name in EXPRESSION]
    return torch.stack(rotation + [value.mean(1) if value.dim() == 2 else value for value in expression], dim=1)


class PeopleMemory:
    """A memory of people, with two pictures of each. They are kept because rendering them takes a CPU longer than
    learning from them."""

    def __init__(self, detector: LandmarkDetector, capacity: int = 4096):
        self.detector = detector
        self.images = torch.empty(capacity, 2, 3, READER_SIZE, READER_SIZE, dtype=torch.uint8)
        self.points = torch.empty(capacity, 2, LANDMARKS, 2)
        self.targets = torch.empty(capacity, 2, len(ROTATION + EXPRESSION))
        self.drawn = 0

    def draw(self, count: int, generator: torch.Generator) -> None:
        """Replace the oldest people by ``count`` new ones."""
        slots = (self.drawn + torch.arange(count)) % len(self.images)
        images, self.targets[slots] = two_pictures(count, generator, supersample=1)
        self.points[slots] = found_landmarks(self.detector, images.flatten(0, 1)).unflatten(0, (count, 2))
        self.images[slots] = (images * 255).round().byte()
        self.drawn += count

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a batch of ``count`` people. Returns pictures (2 count, 3, 64, 64), first one of each person, then the
        other of each; their landmarks (2 count, 74, 2); and the targets of `FaceReader` (2 count, 10). The pictures are
        shifted, scaled, blurred and coloured at random, as generated ones may be; the landmarks are those found before
        that, with a little noise."""
        slots = torch.randperm(min(self.drawn, len(self.images)), generator=generator)[:count]
        kept = self.images, self.points, self.targets
        images, points, targets = (value[slots].transpose(0, 1).flatten(0, 1) for value in kept)
        points = points + LANDMARK_NOISE * torch.randn(points.shape, generator=generator)
        places = random_places(len(images), generator, zoom=(0.85, 1.15), rotation=0.0, shift=0.08, mirror=False)
        return colour_noise(soften(move_picture(images / 255, places), generator), generator), points, targets


def identity_loss(one: Float[Tensor, "p d"], other: Float[Tensor, "p d"]) -> Float[Tensor, ""]:
    """Cross entropy of finding a person's other picture among those of all people, in both directions (InfoNCE; van den
    Oord et al. 2018). The embeddings have length 1."""
    logits = one @ other.T / TEMPERATURE
    right = torch.arange(len(one), device=one.device)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def train_assessors(config: TrainAssessorsConfig) -> dict[str, float]:
    """Train the reader of faces, write its weights, print its scores on people that no training draws, and return them
    (see `assessor_scores`)."""
    config.check()
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    reader = FaceReader()
    memory, minutes = PeopleMemory(LandmarkDetector.load()), config.minutes or 15.0
    usual = synthetic.Faces.sample(512, step_generator(config.seed, 0))
    targets, places = reader_targets(usual.state), aligned(synthetic.landmarks(usual))
    reader.mean.copy_(targets.mean(0)), reader.std.copy_(targets.std(0))
    reader.place_mean.copy_(places.mean(0)), reader.place_std.copy_(places.std(0))
    reader = channels_last(reader, device).train()
    optimizer = torch.optim.Adam(reader.parameters(), lr=READER_RATE)

    with whole_file(config.output) as unfinished:
        for step, bar in training_steps(optimizer, READER_RATE, steps=config.steps, minutes=minutes):
            generator = step_generator(config.seed, 1000 + step)
            if step % NEW_PEOPLE == 0:
                memory.draw(config.batch, generator)
            images, points, targets = (value.to(device) for value in memory(config.batch, generator))
            with fast_autocast(device):
                embedding, *state = reader(images.contiguous(memory_format=torch.channels_last), points)
            missed = F.l1_loss(torch.cat(state, dim=1) / reader.std, targets / reader.std)
            identity = identity_loss(*embedding.chunk(2))
            optimizer.zero_grad()
            (identity + STATE_WEIGHT * missed).backward()
            optimizer.step()
            bar.set_postfix_str(f"identity {identity.item():.3f}, state {missed.item():.3f}")
        reader = reader.cpu().eval()
        reader.save(unfinished)
    scores = assessor_scores(reader)
    print({name: round(value, 3) for name, value in scores.items()})
    return scores


@torch.inference_mode()
def assessor_scores(reader: nn.Module, *, count: int = 64) -> dict[str, float]:
    """Score a reader on rendered people that no training draws, with the landmarks that the shipped detector finds on
    them.

    "same person": the mean of two shares, of the pairs of pictures of one person and of the pairs of two people that
    are recognised as such, where guessing scores 0.5. The threshold ("distance") is chosen on the first half of the
    people, the shares are measured on the other half. Rotation: mean errors in degrees. Expression: share of the
    variance that is explained. Action units: share of pictures in which the unit is read correctly.
    """
    images, targets = two_pictures(count, step_generator(0, 0))
    images = images.flatten(0, 1)
    said = reader(images, found_landmarks(LandmarkDetector.load(), images))
    one, other = said[0].unflatten(0, (count, 2)).unbind(1)
    halves = [torch.cdist(one[half], other[half]) for half in (slice(count // 2), slice(count // 2, None))]

    def accuracy(distance: Tensor, threshold: Tensor) -> Tensor:
        near = distance < threshold
        same = torch.eye(len(near), dtype=torch.bool)
        return (near[same].float().mean() + 1 - near[~same].float().mean()) / 2

    threshold = max(torch.linspace(0, 2, 201), key=lambda value: accuracy(halves[0], value))
    scores = {"same person": accuracy(halves[1], threshold), "distance": threshold}
    rotation, expression = targets.flatten(0, 1).split([len(ROTATION), len(EXPRESSION)], dim=1)
    for name, error in zip(ROTATION, (said[1] - rotation).abs().mean(0)):
        scores[f"{name} (degrees)"] = error
    for name, rest in zip(EXPRESSION, (said[2] - expression).var(0) / expression.var(0)):
        scores[f"{name} (R²)"] = 1 - rest
    for name, right in zip(UNITS, (active_units(said[2]) == active_units(expression)).float().mean(0)):
        scores[name] = right
    return {name: float(value) for name, value in scores.items()}
