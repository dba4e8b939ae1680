"""Training of the small networks beside the model: the features of the perceptual loss, `animate --mode avd`'s, the
landmark detector, and the reader that judges faces for the metrics. Each is one process on one device.

Notebooks: ``notebooks/04_landmarks_on_video.ipynb``, ``notebooks/09_losses_and_metrics.ipynb``,
``notebooks/10_motion_transfer.ipynb``.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from minimodel.data import synthetic
from minimodel.data.video import FrameCache, find_clips
from minimodel.features import FaceFeatures, FaceTasks
from minimodel.judges import EXPRESSION, ROTATION, UNITS, FaceReader, active_units, aligned, resized
from minimodel.judges import SIZE as READER_SIZE
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
    soften,
    spoil,
)
from minimodel.model import AnimationModel, Motion
from minimodel.saving import make_metadata, whole_file, write_weights
from minimodel.train import PairStream, TrainConfig, check_positive, step_generator
from minimodel.transfer import AvdNetwork, avd, avd_path, deformed, flatten, join, take
from minimodel.warping import from_pixels


def training_steps(
    optimizer: torch.optim.Optimizer, rate: float, *, steps: int | None = None, minutes: float
) -> Iterator[tuple[int, tqdm]]:
    """Numbers of steps from 0, and the bar that counts them, until ``steps`` are done or, where these aren't given, the
    ``minutes`` are over. The learning rate falls from ``rate`` to 0, as half a cosine."""
    began = time.perf_counter()
    with tqdm(total=steps, unit=" steps", dynamic_ncols=True) as bar:
        for step in itertools.count():
            elapsed = (time.perf_counter() - began) / (60 * minutes)
            progress = elapsed if steps is None else step / steps
            if progress >= 1:
                return
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 + math.cos(math.pi * progress)) / 2
            yield step, bar
            bar.update()


def fast_autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where it is fast. CPUs of recent years multiply it twice as fast; on older ones it's slow."""
    fast = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)


def colour_noise(image: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Random light, tint, contrast and grain, so that features don't depend on them."""
    count = len(image)
    gain = torch.exp(0.25 * torch.randn(count, 1, 1, 1, generator=generator))
    tint = torch.exp(0.1 * torch.randn(count, 3, 1, 1, generator=generator))
    power = torch.exp(0.25 * torch.randn(count, 1, 1, 1, generator=generator))
    grain = 0.03 * torch.rand(count, 1, 1, 1, generator=generator) * torch.randn(image.shape, generator=generator)
    gain, power, grain = (gain * tint).to(image), power.to(image), grain.to(image)
    return (image.clamp_min(1e-4) ** power * gain + grain).clamp(0, 1)


@dataclass
class FeaturesConfig:
    """Train the small feature network of the perceptual loss on the embedded faces: to parse them and to find
    landmarks."""

    output: Path
    """File for the weights."""
    minutes: float = 30.0
    """How long to train."""
    batch: int = 32
    size: int = 64
    """Side of the pictures in pixels."""
    seed: int = 0


FEATURES_RATE = 1e-3


def train_features(config: FeaturesConfig) -> dict[str, float]:
    """Write the weights; print and return the network's accuracy on faces that it hasn't seen."""
    check_positive(config, "minutes")
    batch, size, seed = config.batch, config.size, config.seed
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    features = FaceFeatures()
    network = FaceTasks(features, len(synthetic.PARTS)).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=FEATURES_RATE)

    def faces(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        faces = synthetic.Faces.sample(batch, generator).to(device)
        landmarks = from_pixels(synthetic.landmarks(faces, size), (size, size))
        return synthetic.render(faces, size), synthetic.parsing(faces, size // 2), landmarks

    with whole_file(config.output) as unfinished:
        for step, bar in training_steps(optimizer, FEATURES_RATE, minutes=config.minutes):
            image, parsing, landmarks = faces(step_generator(seed, step + 1000))
            logits, points = network(colour_noise(image, torch.Generator().manual_seed(step)))
            terms = F.cross_entropy(logits, parsing), 20 * F.l1_loss(points, landmarks)
            optimizer.zero_grad()
            sum(terms).backward()
            optimizer.step()
            bar.set_postfix_str(f"parsing {terms[0].item():.3f}, landmarks {terms[1].item() / 20 * size / 2:.2f} px")

        sizes, right, error = torch.zeros(len(features.widths), device=device), [], []
        with torch.no_grad():
            for number in range(10):
                image, parsing, landmarks = faces(step_generator(seed, number))
                logits, points = network(image)
                sizes += torch.stack([layer.abs().mean() for layer in features(image)[1:]]) / 10
                right.append((logits.argmax(1) == parsing).float().mean().item())
                error.append((points - landmarks).norm(dim=-1).mean().item() * size / 2)
        features.scale.copy_(sizes)
        write_weights(features.cpu(), unfinished, make_metadata("{}", kind="features"))
    scores = {"parsing accuracy": sum(right) / 10, "landmark error (px)": sum(error) / 10}
    print(scores)
    return scores


@dataclass
class AvdConfig:
    """Train what `animate --mode avd` needs: two small encoders and a decoder for the points of one model."""

    weights: str = "tiny"
    """The model: shipped weights by name, or a .safetensors file. The network is saved beside them, as avd-NAME."""
    data: tuple[str, ...] = ("synthetic",)
    """"synthetic", folders of clips, or several of both: best what the model was trained on."""
    pairs: int = 2000
    """Pairs of frames whose points are found, once ..."""
    steps: int = 2000
    """... and then deformed anew in each of so many steps."""
    batch: int = 128
    """Pairs a step."""
    seed: int = 0


AVD_RATE = 2e-3


def train_avd(config: AvdConfig) -> AvdNetwork:
    """Train on two frames of one film (TPSM section 3.4): one gives the shape, the other, deformed as if it were
    someone else's, the pose, and the result shall be that other frame's motion before it was deformed."""
    check_positive(config, "pairs", "steps", "batch")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AnimationModel.load(config.weights).to(device)
    if model.config.prior == "landmarks":
        raise ValueError(f"{config.weights}: moves by landmarks; avd is for models that find their own points")
    path = avd_path(config.weights)
    with whole_file(path) as unfinished:
        source, driving = motion_pairs(model, config, device)
        torch.manual_seed(config.seed)
        network = AvdNetwork(source.points.shape[1], with_affine=source.affine is not None).to(device)
        rows = flatten(driving)
        network.mean.copy_(rows.mean(0))
        network.std.copy_(rows.std(0).clamp_min(0.01))  # numbers that never change would be blown up
        optimizer = torch.optim.Adam(network.parameters(), lr=AVD_RATE)
        generator = step_generator(config.seed, 0)
        bar = tqdm(range(config.steps), unit=" steps", dynamic_ncols=True, desc="training")
        for step in bar:
            optimizer.param_groups[0]["lr"] = AVD_RATE * (1 - step / config.steps)
            chosen = torch.randint(len(rows), (config.batch,), generator=generator).to(device)
            shape, wanted = (take(motion, chosen) for motion in (source, driving))
            made = avd(shape, deformed(wanted, generator), network)
            loss = F.l1_loss(made.points, wanted.points)
            if wanted.affine is not None:
                loss = loss + F.l1_loss(made.affine, wanted.affine)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 100 == 0:
                bar.set_postfix_str(f"loss {loss.item():.4f}")
        network.eval().save(unfinished, model=model)
    print(f"wrote {path}")
    return network


@torch.no_grad()
def motion_pairs(model: AnimationModel, config: AvdConfig, device: torch.device) -> tuple[Motion, Motion]:
    """What the model sees in the frames of ``config.pairs`` pairs."""
    size, batch = model.config.image_size, 32
    drawn = TrainConfig(output=Path(), data=config.data, batch=batch, seed=config.seed)
    stream, found = PairStream(drawn, size, device), ([], [])
    for step in tqdm(range(-(-config.pairs // batch)), unit=" batches", dynamic_ncols=True, desc="finding points"):
        frames = stream[step]
        for name, motions in zip(("source", "driving"), found):
            motions.append(model.encode_driving(frames[name]))
    return tuple(join(motions) for motions in found)


@dataclass
class LandmarksTrainConfig:
    """Train the landmark detector on embedded faces. With --video it goes on from given weights, and learns to hold
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
    """Embedded faces a step; with --video half of them give way to pairs of neighbouring frames."""
    registration: float = 5.0
    """What a pixel off in the registration loss counts for, beside a pixel off on an embedded face."""
    seed: int = 0

    def check(self) -> None:
        check_positive(self, "steps", "minutes")
        if self.batch < 4:
            raise ValueError(f"--batch is {self.batch}: expected at least 4")


NEW_FACES = 4  # steps from one batch of new faces to the next
POINT_WEIGHT = 20.0  # of a distance in normalised units, beside the cross entropy of heatmaps
FIRST_RATE, TUNING_RATE = 3e-3, 3e-4


class FaceMemory:
    """Embedded faces with their landmarks. Drawing one takes a CPU as long as learning from it, so each is kept, and
    seen several times, changed at random each time."""

    def __init__(self, capacity: int = 8192):
        self.images = torch.empty(capacity, 3, SIZE, SIZE, dtype=torch.uint8)
        self.points = torch.empty(capacity, LANDMARKS, 2)
        self.drawn = 0

    def draw(self, count: int, generator: torch.Generator) -> None:
        """Forget the oldest faces for ``count`` new ones."""
        faces = synthetic.Faces.sample(count, generator)
        slots = (self.drawn + torch.arange(count)) % len(self.images)
        # One ray a pixel: half of the pictures are blurred or shrunk later anyway.
        self.images[slots] = (synthetic.render(faces, SIZE, supersample=1) * 255).round().byte()
        self.points[slots] = synthetic.landmarks(faces)
        self.drawn += count

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Changed pictures (count, 3, 128, 128) and their landmarks (count, 74, 2)."""
        slots = torch.randint(min(self.drawn, len(self.images)), (count,), generator=generator)
        places = random_places(count, generator)
        images = move_picture(self.images[slots] / 255, places)
        return colour_noise(spoil(images, generator), generator), move_points(self.points[slots], places)


class Neighbours:
    """Random pairs of neighbouring frames of films, in both orders, both changed alike."""

    def __init__(self, names: tuple[str, ...]):
        self.cache = FrameCache([path for name in names for path in find_clips(name, "train")], SIZE)
        short = [str(clip.path) for clip in self.cache.clips if len(clip) < 2]
        if short:
            raise ValueError(f"{short[0]}: one frame only, a clip to train on needs two")

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        clips = torch.randint(len(self.cache.clips), (count,), generator=generator).tolist()
        pairs = []
        for clip, place, turn in zip(clips, *torch.rand(2, count, generator=generator).tolist()):
            first = int(place * (len(self.cache.clips[clip]) - 1))
            pairs.append(torch.stack([self.cache(clip, first + (turn < 0.5)), self.cache(clip, first + (turn >= 0.5))]))
        # A mild change of place: it shows the same film under other grids of heatmap pixels.
        places = random_places(count, generator, zoom=(0.8, 1.2), rotation=0.2)
        start, end = torch.stack(pairs, dim=1) / 255
        return move_picture(start, places), move_picture(end, places)


def train_landmarks(config: LandmarksTrainConfig) -> dict[str, float]:
    """Write the weights; print and return the detector's error on faces that it hasn't seen."""
    config.check()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    start = config.start or ("landmarks" if config.video else None)
    detector = (LandmarkDetector.load(start) if start else LandmarkDetector()).to(device)
    detector = detector.to(memory_format=torch.channels_last).train()
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
            terms = {"heatmaps": 0.0, "points": 0.0}
            for logits in stages:
                found = soft_argmax(logits)[0]
                terms["heatmaps"] += heatmap_loss(logits[: len(images)], points, inside)
                terms["points"] += POINT_WEIGHT * point_loss(found[: len(images)], points, inside)
            with fast_autocast(device):
                found, logits, places = detector.look_closer(inputs, found)
            labelled = [value.unflatten(0, (2, -1))[:, : len(images)].flatten(0, 1) for value in (logits, places)]
            terms["heatmaps"] += close_up_loss(*labelled, points)
            terms["eyes"] = POINT_WEIGHT * point_loss(found[: len(images), EYES], points[:, EYES], inside[:, EYES])
            if films:
                registration, reliable = registration_loss(*frames, *found[len(images) :].chunk(2))
                terms["registration"] = config.registration * POINT_WEIGHT * registration
            optimizer.zero_grad()
            sum(terms.values()).backward()
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
    """`heatmap_loss` of the second look at the eyes: what `LandmarkDetector.look_closer` gives, and the landmarks."""
    wanted = move_points(points.repeat(2, 1, 1), places)[:, EYE]
    return heatmap_loss(logits, wanted, (wanted.abs() < 1).all(-1))


@torch.inference_mode()
def landmark_scores(detector: LandmarkDetector, *, count: int = 64) -> dict[str, float]:
    """Mean errors in pixels at 128 pixels on embedded faces that no training draws."""
    faces = synthetic.Faces.sample(count, step_generator(0, 0))
    truth = synthetic.landmarks(faces)
    found = torch.cat([detector(some)[0] for some in synthetic.render(faces, SIZE).split(16)])
    error = (found - truth).norm(dim=-1) * SIZE / 2
    return {"all (px)": error.mean().item(), "pupils (px)": error[:, 68:70].mean().item()}


@dataclass
class JudgesConfig:
    """Train what judges identity, head rotation and expression for the metrics, on the embedded faces."""

    output: Path
    """File for the weights."""
    steps: int | None = None
    """Stop after this many steps ..."""
    minutes: float | None = None
    """... or after this many minutes: 15 unless given."""
    batch: int = 32
    """People a step, each seen twice."""
    seed: int = 0

    def check(self) -> None:
        check_positive(self, "steps", "minutes")
        if self.batch < 2:
            raise ValueError(f"--batch is {self.batch}: expected at least 2, as people are told apart")


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
    """Two pictures of each of ``count`` people, in states, light, clothes and rooms of their own, and what
    `FaceReader` shall say of their states."""
    people, images, told = synthetic.sample_identities(count, generator), [], []
    for _ in range(2):
        strangers = synthetic.sample_identities(count, generator)
        dressed = dataclasses.replace(people, **{name: getattr(strangers, name) for name in SCENE})
        states = synthetic.sample_states(count, generator)
        images.append(synthetic.render(synthetic.Faces(dressed, states), READER_SIZE, supersample=supersample))
        told.append(reader_targets(states))
    return torch.stack(images, dim=1), torch.stack(told, dim=1)


@torch.no_grad()
def found_landmarks(detector: LandmarkDetector, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 74 2"]:
    """Where the detector sees them: true ones would teach a reader to trust what it won't be given."""
    return torch.cat([detector(resized(some, SIZE))[0] for some in images.split(32)])


def reader_targets(states: synthetic.State) -> Float[Tensor, "b 10"]:
    """Rotation in degrees, and expression: the mean of both sides where it has two."""
    rotation = [getattr(states, name) * (180 / math.pi) for name in ROTATION]
    expression = [getattr(states, name) for name in EXPRESSION]
    return torch.stack(rotation + [value.mean(1) if value.dim() == 2 else value for value in expression], dim=1)


class PeopleMemory:
    """Pictures of people, two of each, kept because drawing them takes a CPU longer than learning from them."""

    def __init__(self, detector: LandmarkDetector, capacity: int = 4096):
        self.detector = detector
        self.images = torch.empty(capacity, 2, 3, READER_SIZE, READER_SIZE, dtype=torch.uint8)
        self.points = torch.empty(capacity, 2, LANDMARKS, 2)
        self.told = torch.empty(capacity, 2, len(ROTATION + EXPRESSION))
        self.drawn = 0

    def draw(self, count: int, generator: torch.Generator) -> None:
        """Forget the oldest people for ``count`` new ones."""
        slots = (self.drawn + torch.arange(count)) % len(self.images)
        images, self.told[slots] = two_pictures(count, generator, supersample=1)
        self.points[slots] = found_landmarks(self.detector, images.flatten(0, 1)).unflatten(0, (count, 2))
        self.images[slots] = (images * 255).round().byte()
        self.drawn += count

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures (2 count, 3, 64, 64), shifted, scaled, blurred and coloured as generated ones may be, of as many
        people twice; their landmarks (2 count, 74, 2), found where they were before; and what shall be said of them
        (2 count, 10)."""
        slots = torch.randperm(min(self.drawn, len(self.images)), generator=generator)[:count]
        kept = self.images, self.points, self.told
        images, points, told = (value[slots].transpose(0, 1).flatten(0, 1) for value in kept)
        points = points + LANDMARK_NOISE * torch.randn(points.shape, generator=generator)
        places = random_places(len(images), generator, zoom=(0.85, 1.15), rotation=0.0, shift=0.08, mirror=False)
        return colour_noise(soften(move_picture(images / 255, places), generator), generator), points, told


def identity_loss(one: Float[Tensor, "p d"], other: Float[Tensor, "p d"]) -> Float[Tensor, ""]:
    """Cross entropy of finding a person's other picture among everybody's, both ways (InfoNCE; van den Oord et al.
    2018), from embeddings of length 1."""
    logits = one @ other.T / TEMPERATURE
    right = torch.arange(len(one), device=one.device)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def train_judges(config: JudgesConfig) -> dict[str, float]:
    """Write the weights; print and return how well the network judges people that it hasn't seen."""
    config.check()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    reader = FaceReader()
    memory, minutes = PeopleMemory(LandmarkDetector.load()), config.minutes or 15.0
    usual = synthetic.Faces.sample(512, step_generator(config.seed, 0))
    told, places = reader_targets(usual.state), aligned(synthetic.landmarks(usual))
    reader.mean.copy_(told.mean(0)), reader.std.copy_(told.std(0))
    reader.place_mean.copy_(places.mean(0)), reader.place_std.copy_(places.std(0))
    reader = reader.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(reader.parameters(), lr=READER_RATE)

    with whole_file(config.output) as unfinished:
        for step, bar in training_steps(optimizer, READER_RATE, steps=config.steps, minutes=minutes):
            generator = step_generator(config.seed, 1000 + step)
            if step % NEW_PEOPLE == 0:
                memory.draw(config.batch, generator)
            images, points, told = (value.to(device) for value in memory(config.batch, generator))
            with fast_autocast(device):
                embedding, *state = reader(images.contiguous(memory_format=torch.channels_last), points)
            missed = F.l1_loss(torch.cat(state, dim=1) / reader.std, told / reader.std)
            identity = identity_loss(*embedding.chunk(2))
            optimizer.zero_grad()
            (identity + STATE_WEIGHT * missed).backward()
            optimizer.step()
            bar.set_postfix_str(f"identity {identity.item():.3f}, state {missed.item():.3f}")
        reader = reader.cpu().eval()
        reader.save(unfinished)
    scores = judge_scores(reader)
    print({name: round(value, 3) for name, value in scores.items()})
    return scores


@torch.inference_mode()
def judge_scores(reader: nn.Module, *, count: int = 64) -> dict[str, float]:
    """On people that no training draws, with the landmarks that the shipped detector finds on them: whether two
    pictures are of one person, told by a distance that is chosen on the first half of the people and measured on the
    others, where guessing scores 0.5; mean errors of rotation in degrees; of each expression the share of variance that
    is explained, and of each action unit the share of pictures in which it is read rightly."""
    images, told = two_pictures(count, step_generator(0, 0))
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
    rotation, expression = told.flatten(0, 1).split([len(ROTATION), len(EXPRESSION)], dim=1)
    for name, error in zip(ROTATION, (said[1] - rotation).abs().mean(0)):
        scores[f"{name} (degrees)"] = error
    for name, rest in zip(EXPRESSION, (said[2] - expression).var(0) / expression.var(0)):
        scores[f"{name} (R²)"] = 1 - rest
    for name, right in zip(UNITS, (active_units(said[2]) == active_units(expression)).float().mean(0)):
        scores[name] = right
    return {name: float(value) for name, value in scores.items()}
