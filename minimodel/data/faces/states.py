"""How they are: `State` is what moves in a clip, `Faces` are identities in states, as frames, pairs or whole clips."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minimodel.data.faces.people import Batch, Color, Draw, Identity, Pair, Scalar, Seed, sample_identities
from minimodel.errors import MinimodelError


@dataclass(frozen=True)
class State(Batch):
    """What moves in a clip. Light and ``ambient`` belong to the scene, all else to the head or the camera.

    Angles are in radians, right and left are the subject's.
    """

    yaw: Scalar
    pitch: Scalar
    roll: Scalar
    shift: Pair  # of the head in the picture, normalised, y down
    scale: Scalar  # of the head in the picture, 1 at rest
    jaw: Scalar  # 0 ... 1 opens the mouth
    part: Scalar  # 0 ... 1 parts the lips, the jaw at rest
    smile: Scalar  # -1 ... 1 lifts the corners of the mouth
    wide: Scalar  # -1 (rounded) ... 1 moves them apart
    brows: Pair  # -1 ... 1 raises them, right and left
    frown: Scalar  # 0 ... 1 draws their inner ends down
    lids: Pair  # 0 (shut) ... 1 (at rest) ... 1.4 (wide), right and left
    gaze: Pair  # radians, to the right of the picture and up
    light: Color  # direction to the light: right, up, towards the viewer
    ambient: Scalar  # 0 ... 1, the share of light without direction
    pan: Pair  # shift of the background in the picture, normalised, y down


@dataclass(frozen=True)
class Faces(Batch):
    """Identities in states. A batch of one of either is repeated to match the other.

    Raises:
        MinimodelError: there are neither as many identities as states, nor one of either.
    """

    identity: Identity
    state: State

    def __post_init__(self) -> None:
        counts = len(self.identity), len(self.state)
        if counts[0] != counts[1]:
            if 1 not in counts:
                raise MinimodelError(
                    f"{counts[0]} identities and {counts[1]} states; expected as many, or one of either"
                )
            for name in ("identity", "state"):
                part = getattr(self, name)
                if len(part) == 1:
                    repeated = part.map(lambda value: value.expand(max(counts), *value.shape[1:]))
                    object.__setattr__(self, name, repeated)

    @staticmethod
    def sample(count: int, seed: Seed) -> "Faces":
        """Draw random identities in random states."""
        generator = Draw(count, seed).generator
        return Faces(sample_identities(count, generator), sample_states(count, generator))


def neutral_states(count: int) -> State:
    """The state of rest, ``count`` times: frontal, eyes open, mouth shut, half of the light ambient."""
    zero, one, pair = torch.zeros(count), torch.ones(count), torch.zeros(count, 2)
    light = F.normalize(torch.tensor((0.4, 0.5, 0.8)), dim=0).expand(count, 3)
    return State(zero, zero, zero, pair, one, zero, zero, zero, zero, pair, zero, pair + 1, pair, light, one / 2, pair)


def sample_states(count: int, seed: Seed) -> State:
    """Draw random frames of talking heads: mostly near frontal, more than half of them speaking."""
    draw = Draw(count, seed)
    normal, uniform, chance = draw.normal, draw.uniform, draw.chance
    busy = uniform(0.5, 1.5)  # some frames move a lot, most don't
    talk, smile, brows = chance(0.6), normal(0.2, 0.4), normal(0.05, 0.3)
    blink = torch.where(chance(0.12) > 0, uniform(0, 0.5), normal(1.0, 0.08))
    azimuth = normal(0, 0.7)
    light = torch.stack((azimuth.sin(), normal(0.45, 0.22), 0.4 + azimuth.cos()), 1)
    return State(
        yaw=normal(0, 0.22) * busy,
        pitch=normal(0, 0.10) * busy,
        roll=normal(0, 0.09) * busy,
        shift=normal(0, 0.05, 2) * busy[:, None],
        scale=normal(1, 0.035),
        jaw=talk * uniform() ** 1.6,
        part=chance(0.4) * uniform() * (0.4 + 0.6 * (smile > 0.3)),
        smile=smile,
        wide=normal(0, 0.45) * (0.4 + 0.6 * talk),
        brows=brows[:, None] + normal(0, 0.08, 2),
        frown=chance(0.3) * uniform(),
        lids=torch.stack((blink * (1 - chance(0.02)), blink), 1) * (1 + 0.15 * brows.clamp(min=0))[:, None],
        gaze=normal(0, 0.17, 2) * torch.tensor((1.0, 0.6)),
        light=F.normalize(light, dim=1),
        ambient=uniform(0.45, 0.8),
        pan=normal(0, 0.04, 2),
    )


def sample_pairs(count: int, seed: Seed) -> tuple[Faces, Faces]:
    """Draw random pairs of frames, each pair as if from one film.

    The two show one person in one light, mostly before a camera that is still. Their expressions are any two, and the
    head has moved by anything from nothing to as far as it goes.
    """
    draw = Draw(count, seed)
    identity = sample_identities(count, draw.generator)
    one, other = sample_states(count, draw.generator), sample_states(count, draw.generator)
    moved, panned = draw.uniform(), draw.chance(0.35)

    def between(name: str, share: Tensor) -> Tensor:
        start, end = getattr(one, name), getattr(other, name)
        return start + share.view(-1, *[1] * (start.dim() - 1)) * (end - start)

    head = {name: between(name, moved) for name in ("yaw", "pitch", "roll", "shift", "scale")}
    other = replace(other, light=one.light, ambient=one.ambient, pan=between("pan", panned), **head)
    return Faces(identity, one), Faces(identity, other)


def wander(generator: torch.Generator, frames: int, seconds: float) -> Tensor:
    """Draw a smooth random curve (frames,) of about unit variance at 25 frames a second, new about every ``seconds``.

    The curve is a cubic B-spline through random control values: smooth enough for the eye to take it for a muscle.
    """
    knots = torch.randn(int(frames / (25 * seconds)) + 5, generator=generator)
    at = torch.arange(frames) / (25 * seconds) + torch.rand((), generator=generator) + 1
    k, t = at.long(), at.frac()
    weights = (1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3
    return 1.6 / 6 * sum((weight * knots[k + i - 1] for i, weight in enumerate(weights)), torch.zeros(frames))


def animate_states(frames: int, seed: Seed) -> State:
    """Draw the states of one clip at 25 frames a second: the head sways and turns, speaks, blinks and looks around."""
    if frames < 1:
        raise MinimodelError(f"frames is {frames}; expected at least 1")
    one = Draw(1, seed)
    base = sample_states(1, one.generator)

    def number(low: float, high: float) -> float:
        return float(one.uniform(low, high))

    def curve(seconds: float, size: float | Tensor = 1.0, middle: float = 0.0) -> Tensor:
        return middle + size * wander(one.generator, frames, seconds)

    lively = number(0.6, 1.6)
    yaw = lively * (curve(1.6, 0.14) + curve(0.5, 0.025))
    pitch = lively * (curve(1.6, 0.06) + curve(0.5, 0.025))
    roll = lively * (curve(1.6, 0.055) + curve(0.5, 0.012))
    shift = lively * torch.stack((curve(1.6, 0.03) + curve(0.5, 0.006), curve(1.6, 0.022) + curve(0.5, 0.006)), 1)

    # Speech: phrases with pauses. In a phrase the jaw follows the syllables, the lips change their shape more slowly.
    phrase = curve(1.2, 1.5, number(0.0, 1.8)).clamp(0, 1)
    jaw = phrase * curve(0.11, 0.38, 0.32).clamp(0, 1) * number(0.7, 1.3)
    smile = curve(1.5, 0.32, 0.6 * float(base.smile))
    # Blinks every two to four seconds: two frames down, four up.
    shut, profile, at = torch.zeros(frames + 6), torch.tensor((0.45, 1.0, 1.0, 0.75, 0.4, 0.12)), int(number(5.0, 60.0))
    while at < frames:
        shut[at : at + 6] = torch.maximum(shut[at : at + 6], profile)
        at += int(number(50.0, 100.0))
    # The gaze rests on one place, jumps to another within two frames, and makes up for most of the head's turning.
    gaze, at = torch.zeros(frames + 1, 2), 0
    while at < frames:
        gaze[at:] = torch.randn(2, generator=one.generator) * torch.tensor((0.20, 0.10)) * (number(0.0, 1.0) < 0.6)
        at += int(number(8.0, 60.0))
    gaze = (gaze[1:] + gaze[:-1]) / 2 - 0.6 * torch.stack((yaw, pitch), 1)

    raised = curve(0.9, 0.32) + phrase * curve(0.4, 0.25)
    lids = (curve(1.0, 0.06, 0.98) + 0.12 * raised.clamp(min=0)) * (1 - shut[:frames])
    camera = 0.05 * (number(0.0, 1.0) < 0.35)
    return State(
        yaw=(float(base.yaw) / 2 + yaw).clamp(-0.65, 0.65),
        pitch=(float(base.pitch) / 2 + pitch).clamp(-0.36, 0.36),
        roll=(float(base.roll) / 2 + roll).clamp(-0.36, 0.36),
        shift=shift.clamp(-0.15, 0.15),
        scale=curve(2.0, 0.02 * lively, 1.0).clamp(0.9, 1.1),
        jaw=jaw.clamp(0, 1),
        part=(0.25 * phrase + 0.5 * (smile - 0.3).clamp(min=0) + curve(0.8, 0.15)).clamp(0, 1),
        smile=smile.clamp(-0.6, 1),
        wide=(phrase * curve(0.16, 0.55) + curve(1.0, 0.1)).clamp(-1, 1),
        brows=(raised[:, None] + torch.stack((curve(1.0, 0.08), curve(1.0, 0.08)), 1)).clamp(-1, 1),
        frown=curve(1.5, 0.5, -0.3).clamp(0, 1),
        lids=lids.clamp(0, 1.4)[:, None].repeat(1, 2),
        gaze=gaze.clamp(-0.45, 0.45),
        light=base.light.repeat(frames, 1),
        ambient=base.ambient.repeat(frames),
        pan=torch.stack((curve(2.5, camera), curve(2.5, camera)), 1).clamp(-0.15, 0.15),
    )
