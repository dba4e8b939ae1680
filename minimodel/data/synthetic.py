"""Talking heads whose motion is known exactly: the embedded data, and the reason why every claim here can be checked.

A face is an identity (what stays the same in a clip) in a state (what moves). Every pixel sends rays into a scene of
a few surfaces, and each surface knows its *material*: which point of the person a ray has hit, whatever the state. The
same material point can be placed in another state, and that is the whole trick:

    driving pixel -> ray -> first hit -> material -> where the source state puts it -> minus the pixel = the true flow.

How it is built, in the order of this file:

1. `Identity`, `State`, `Faces`, and how they are drawn at random.
2. The head is star-shaped: its surface is radius(direction). A direction is named by two angles, ``lam`` (towards the
   ears) and ``psi`` (up and down, about the axis through both ears), because opening the jaw is a shift of psi.
3. An expression takes material angles to deformed angles: a face is a stack of bands (cheek, lid, brow, ...) whose
   borders move. The map is piecewise linear along psi, so its inverse is the same formula with the borders swapped.
   Eyes and mouth are slits: bands without height in the material that open and show the eyeball or the teeth.
4. `prepare` bakes the radius of every face into a table, `trace` marches rays onto it and meets them with simpler
   surfaces (body, ears, long hair, glasses), `place` sends material points back to the picture.
5. `shade` paints what was hit. With ``ambient`` = 1 a colour depends on the material alone: then warping is exact.

The head's coordinates: x to the right of the picture, y up, z towards the viewer; the unit is half a head's height. The
picture's are those of `minimodel.warping`. The camera is orthographic. Right and left are the subject's, so the right
eye has negative x. Positive yaw turns the face to the right of the picture, positive pitch lifts the chin, positive
roll leans the head to the right of the picture. Angles are in radians.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, reduce
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from minimodel.warping import identity_grid, to_pixels

Seed = int | torch.Generator
Scalar = Float[Tensor, " b"]
Pair = Float[Tensor, "b 2"]  # (right, left), or (x, y)
Color = Float[Tensor, "b 3"]

# What `parsing` tells apart.
PARTS = ("background", "skin", "brows", "eyes", "nose", "upper lip", "lower lip", "mouth", "hair", "ears", "neck")
PARTS += ("clothes", "glasses")
# The surfaces that a ray can hit.
BACKGROUND, BODY, CURTAIN, HEAD, RIGHT_EYE, LEFT_EYE, TEETH, MOUTH, EAR, GLASSES = range(10)

TABLE = 96  # texels along a side of the head's table: about 2.4 degrees each in the middle of the face
COARSE = 48  # cells along a side of the picture in which the march looks up where to start
PIVOT = (0.0, -0.8, -0.25)  # the head turns about the top of the neck, not about its own centre
EYEBALL = 0.30  # radius


class Batch:
    """What `Identity`, `State` and `Faces` have in common: tensors with the batch first."""

    def map(self, function: Callable):
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return type(self)(**{k: v.map(function) if isinstance(v, Batch) else function(v) for k, v in values.items()})

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self, index):
        if isinstance(index, int):  # one face is a batch of one
            if not -len(self) <= index < len(self):
                raise IndexError(f"face {index} of a batch of {len(self)}")
            index = slice(index % len(self), index % len(self) + 1)
        return self.map(lambda value: value[index])

    def to(self, device):
        return self.map(lambda value: value.to(device))

    def __add__(self, other):
        """Both, one after the other."""
        pairs = {part.name: (getattr(self, part.name), getattr(other, part.name)) for part in fields(self)}
        return type(self)(**{k: a + b if isinstance(a, Batch) else torch.cat([a, b]) for k, (a, b) in pairs.items()})

    @property
    def device(self) -> torch.device:
        return getattr(self, fields(self)[0].name).device


def trait(mean: float, std: float, woman: float = 0.0, child: float = 0.0):
    """A number about a person: its mean and spread (cut off at two), and what is added for women and for children."""
    return field(metadata={"trait": (mean, std, woman, child)})


@dataclass(frozen=True)
class Identity(Batch):
    """What stays the same in a clip. Sizes in head units, angles in radians, colours RGB."""

    center: Pair  # of the head in the picture
    size: Scalar = trait(0.655, 0.03)  # of the head unit in the picture
    width: Scalar = trait(0.735, 0.028, -0.02, 0.06)  # half a head's
    top: Scalar = trait(1.02, 0.03)
    bottom: Scalar = trait(1.27, 0.035, -0.04, -0.14)
    depth: Scalar = trait(0.90, 0.02)
    taper: Scalar = trait(0.06, 0.04, 0.04)  # how much the head narrows to the chin
    jowl: Scalar = trait(0.035, 0.02, -0.02, 0.03)  # width of the jaw
    cheek: Scalar = trait(0.035, 0.012, 0.0, 0.02)
    chin: Scalar = trait(0.075, 0.02, -0.02, -0.02)
    brow_ridge: Scalar = trait(0.035, 0.01, -0.02, -0.01)
    nose_base: Scalar = trait(-0.485, 0.018, 0.0, 0.05)  # psi
    nose_height: Scalar = trait(0.19, 0.03, -0.02, -0.05)
    nose_width: Scalar = trait(0.122, 0.013, -0.012, -0.01)
    nose_bridge: Scalar = trait(0.07, 0.02, -0.02, -0.03)
    nose_tip: Scalar = trait(0.0, 0.018, 0.015, 0.02)  # how far it turns up
    eye_level: Pair  # psi
    eye_spacing: Scalar = trait(0.412, 0.012)  # lam of the middle
    eye_width: Scalar = trait(0.242, 0.010, 0.006, 0.012)  # half, along lam
    eye_height: Scalar = trait(0.175, 0.018, 0.015, 0.03)  # of the opening, along psi
    eye_tilt: Scalar = trait(0.015, 0.018)  # of the outer corner
    eye_fold: Scalar = trait(0.045, 0.017)  # lid that shows over the open eye
    lashes: Scalar
    makeup: Scalar
    iris: Color
    iris_size: Scalar = trait(0.315, 0.014, 0.01, 0.03)  # radius, in eyeballs
    brow_gap: Pair  # from the eye's middle, along psi
    brow_size: Scalar = trait(0.042, 0.009, -0.013, -0.01)
    brow_arch: Scalar = trait(0.05, 0.018, 0.015)
    brow_tilt: Scalar = trait(-0.015, 0.022)
    brow_color: Color
    mouth_level: Scalar = trait(-0.72, 0.014, 0.0, 0.045)  # psi of the slit
    mouth_width: Scalar = trait(0.27, 0.018, -0.01, -0.03)  # lam of the corner
    upper_lip: Scalar = trait(0.074, 0.014, 0.010)
    lower_lip: Scalar = trait(0.098, 0.015, 0.010)
    bow: Scalar = trait(0.3, 0.1)  # depth of the cupid's bow
    mouth_curve: Scalar = trait(0.008, 0.014)  # corners up at rest
    mouth_tilt: Scalar = trait(0.0, 0.007)
    lips: Color
    ear_size: Scalar = trait(0.23, 0.018, -0.01)
    ear_angle: Scalar = trait(0.6, 0.15)  # how far it stands out
    skin: Color
    age: Scalar  # 0 ... 1: folds, bags, lines
    blush: Scalar
    freckles: Scalar
    mottle: Scalar = trait(0.7, 0.15)
    beard: Scalar  # density; its shape: below 0.2 a goatee
    beard_shape: Scalar
    moustache: Scalar
    hair: Color
    hairline: Scalar  # height on the forehead; then how it recedes at the temples and drops beside the parting
    temples: Scalar
    drop: Scalar
    parting: Scalar
    sideburn: Scalar
    hair_top: Scalar  # volume
    hair_side: Scalar
    curls: Scalar
    long: Scalar  # 1 with long hair: then its length and the half width of the opening for the face
    hair_length: Scalar
    hair_open: Scalar
    hair_width: Scalar = trait(1.0, 0.05)
    glasses: Scalar  # 1 with glasses
    glasses_size: Scalar = trait(1.0, 0.08)
    glasses_square: Scalar
    glasses_color: Color
    neck: Scalar = trait(0.42, 0.03, -0.07, -0.07)
    shoulders: Scalar = trait(1.55, 0.1, -0.15, -0.3)
    collar: Scalar = trait(-1.34, 0.07)
    neckline: Scalar  # depth of its V
    stripes: Scalar
    jacket: Scalar
    cloth: Color
    cloth2: Color
    backdrop: Float[Tensor, "b 3 3"]  # three colours
    backdrop_style: Float[Tensor, "b 4"]  # gradient, blobs, panels, shelves
    phase: Pair  # where in the noise this person's texture starts


@dataclass(frozen=True)
class State(Batch):
    """What moves. Light and ``ambient`` belong to the scene, all else to the head or the camera."""

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
    """Identities in states. A batch of one of either is repeated to match the other."""

    identity: Identity
    state: State

    def __post_init__(self):
        counts = len(self.identity), len(self.state)
        if counts[0] != counts[1]:
            if 1 not in counts:
                raise ValueError(f"{counts[0]} identities and {counts[1]} states; expected as many, or one of either")
            for name in ("identity", "state"):
                part = getattr(self, name)
                if len(part) == 1:
                    repeated = part.map(lambda value: value.expand(max(counts), *value.shape[1:]))
                    object.__setattr__(self, name, repeated)

    @staticmethod
    def sample(count: int, seed: Seed) -> "Faces":
        """Random identities in random states."""
        generator = Draw(count, seed).generator
        return Faces(sample_identities(count, generator), sample_states(count, generator))


# --------------------------------------------------------------------------------------------------- random draws


class Draw:
    """Random columns of ``count`` values, drawn on the CPU so that a seed means the same faces on any device."""

    def __init__(self, count: int, seed: Seed):
        if count < 1:
            raise ValueError(f"count is {count}; expected at least 1")
        self.count = count
        self.generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        if self.generator.device.type != "cpu":
            raise ValueError(f"the generator is on {self.generator.device}; expected one on the CPU")

    def uniform(self, low=0.0, high=1.0, *shape) -> Tensor:
        return low + (high - low) * torch.rand(self.count, *shape, generator=self.generator)

    def normal(self, mean, std, *shape) -> Tensor:
        return mean + std * torch.randn(self.count, *shape, generator=self.generator).clamp(-2, 2)

    def chance(self, probability) -> Tensor:
        return (self.uniform() < probability).float()

    def pick(self, rows, weights=None) -> Tensor:
        rows = rows if isinstance(rows, Tensor) else torch.tensor(list(rows))
        weights = torch.ones(len(rows)) if weights is None else torch.as_tensor(weights)
        weights = weights.expand(self.count, -1) if weights.dim() == 1 else weights
        return rows[torch.multinomial(weights, 1, generator=self.generator)[:, 0]]


# fmt: off
SKIN_TONES = ((0.97, 0.83, 0.75), (0.95, 0.78, 0.67), (0.90, 0.71, 0.58), (0.82, 0.62, 0.48), (0.71, 0.50, 0.36),
              (0.56, 0.38, 0.27), (0.42, 0.28, 0.20))
HAIR_COLORS = ((0.09, 0.08, 0.08), (0.16, 0.11, 0.08), (0.25, 0.16, 0.10), (0.36, 0.23, 0.13), (0.50, 0.35, 0.19),
               (0.76, 0.59, 0.34), (0.88, 0.75, 0.50), (0.55, 0.25, 0.11), (0.36, 0.13, 0.09), (0.80, 0.45, 0.55))
IRIS_COLORS = ((0.26, 0.15, 0.08), (0.38, 0.23, 0.11), (0.45, 0.34, 0.16), (0.36, 0.44, 0.24), (0.27, 0.46, 0.58),
               (0.42, 0.56, 0.66), (0.45, 0.50, 0.53))
CLOTH_COLORS = ((0.16, 0.20, 0.32), (0.13, 0.14, 0.16), (0.85, 0.86, 0.88), (0.55, 0.13, 0.16), (0.18, 0.40, 0.36),
                (0.86, 0.68, 0.26), (0.48, 0.52, 0.58), (0.72, 0.44, 0.50), (0.30, 0.46, 0.70), (0.45, 0.35, 0.28),
                (0.80, 0.52, 0.34), (0.38, 0.28, 0.48))
FRAME_COLORS = ((0.07, 0.07, 0.08), (0.30, 0.17, 0.09), (0.45, 0.42, 0.40), (0.35, 0.08, 0.12))
# Weights of gradient, blobs, panels and shelves: a wall, a studio, a garden, a library, a room.
BACKDROPS = ((0.2, 0.1, 0.0, 0.0), (0.6, 0.6, 0.0, 0.0), (0.3, 1.2, 0.3, 0.0), (0.3, 0.3, 0.0, 0.9),
             (0.3, 0.3, 0.9, 0.6))
HAIR_TRAITS = ("hairline", "temples", "drop", "sideburn", "hair_top", "hair_side", "curls", "long", "hair_length",
               "hair_open")
# How often on men and on women, then these traits.
HAIR_STYLES = {
    "bald":             (0.8, 0.0, 1.40, 0.00, 0.00, 0.10, 0.00, 0.00, 0.0, 0, 1.00, 0.60),
    "ring":             (0.6, 0.0, 1.02, 0.10, 0.00, -0.10, 0.0, 0.06, 0.2, 0, 1.00, 0.60),
    "cropped":          (2.0, 0.3, 0.72, 0.08, 0.00, -0.25, 0.05, 0.04, 0.2, 0, 1.00, 0.60),
    "short":            (3.0, 0.6, 0.69, 0.06, 0.00, -0.22, 0.15, 0.08, 0.25, 0, 1.00, 0.60),
    "quiff":            (2.0, 0.3, 0.76, 0.04, 0.00, -0.22, 0.26, 0.06, 0.3, 0, 1.00, 0.60),
    "swept":            (2.0, 0.8, 0.74, 0.00, 0.30, -0.25, 0.17, 0.10, 0.15, 0, 1.00, 0.60),
    "fringe":           (1.4, 0.7, 0.47, 0.00, 0.02, -0.30, 0.16, 0.13, 0.2, 0, 1.00, 0.60),
    "afro":             (1.0, 1.2, 0.68, 0.00, 0.00, -0.15, 0.36, 0.34, 1.0, 0, 1.00, 0.60),
    "curly":            (1.0, 0.8, 0.60, 0.00, 0.05, -0.30, 0.24, 0.20, 0.8, 0, 1.00, 0.60),
    "tied":             (0.1, 1.2, 0.74, 0.03, 0.00, -0.15, 0.07, 0.05, 0.1, 0, 1.00, 0.60),
    "bob":              (0.1, 1.6, 0.72, 0.00, 0.28, -0.45, 0.13, 0.13, 0.15, 1, 1.12, 0.57),
    "bob with fringe":  (0.1, 1.0, 0.45, 0.00, 0.00, -0.45, 0.14, 0.13, 0.15, 1, 1.15, 0.59),
    "long":             (0.5, 3.5, 0.76, 0.00, 0.34, -0.50, 0.11, 0.11, 0.2, 1, 2.00, 0.57),
    "long with fringe": (0.0, 1.0, 0.46, 0.00, 0.00, -0.50, 0.12, 0.12, 0.2, 1, 1.90, 0.59),
    "long and curly":   (0.2, 1.6, 0.74, 0.00, 0.25, -0.50, 0.17, 0.17, 0.9, 1, 1.70, 0.59),
}
# fmt: on


def along(colors, position: Tensor) -> Tensor:
    """The colour at a fractional ``position`` along a list of colours."""
    colors = torch.tensor(colors)
    low = position.floor().long().clamp(0, len(colors) - 2)
    return torch.lerp(colors[low], colors[low + 1], (position - low)[:, None])


def sample_identities(count: int, seed: Seed) -> Identity:
    """Random people. A few hidden traits (tone, age, woman, child) tie the rest together and keep them plausible."""
    draw = Draw(count, seed)
    normal, uniform, chance = draw.normal, draw.uniform, draw.chance
    woman, child = chance(0.5), chance(0.08)
    man = (1 - woman) * (1 - child)
    age = uniform() ** 1.5 * (1 - child)
    tone = uniform(0, len(SKIN_TONES) - 1)
    dark = (tone > 3.2).float()  # dark skin rarely comes with fair hair and eyes
    old = chance(0.8) * ((age - 0.55) * 3).clamp(0, 1)
    x = {}
    for part in fields(Identity):
        if "trait" in part.metadata:
            mean, std, for_woman, for_child = part.metadata["trait"]
            x[part.name] = normal(mean, std) + for_woman * woman + for_child * child

    x["center"] = normal(torch.tensor((0.0, -0.11)), torch.tensor((0.04, 0.035)), 2)
    x["skin"] = skin = (along(SKIN_TONES, tone) * normal(1, 0.03, 1) + normal(0, 0.006, 3)).clamp(0.05, 0.98)
    x["nose_width"] += 0.02 * dark
    x["eye_level"] = normal(0.0, 0.015, 1) + normal(0, 0.005, 2)
    x["brow_gap"] = 0.30 + normal(0.0, 0.02, 1) + 0.02 * woman[:, None] + normal(0, 0.007, 2)
    x["age"], x["blush"] = age, uniform(0.1, 0.6) + 0.3 * child
    x["freckles"] = chance(0.3) * uniform(0.2, 1) * (1 - 0.6 * dark)
    x["makeup"] = makeup = woman * (1 - child) * chance(0.6) * uniform(0.3, 1.0)
    x["lashes"] = 0.016 + 0.014 * woman + 0.012 * makeup
    fair = draw.pick(range(len(HAIR_COLORS)), (3.0, 3.0, 3.0, 3.0, 2.0, 2.0, 1.2, 1.0, 0.6, 0.2)).float()
    hair = along(HAIR_COLORS, torch.where(dark > 0, uniform(0, 2.2), fair))
    hair = torch.lerp(hair, uniform(0.5, 0.85, 1).expand(-1, 3), old[:, None])
    x["hair"] = hair = (hair * normal(1, 0.08, 1)).clamp(0.03, 0.92)
    x["brow_color"] = hair * (0.36 / hair.amax(1, keepdim=True)).clamp(max=0.8)
    x["iris"] = along(IRIS_COLORS, torch.where(dark > 0, uniform(0, 1.5), uniform(0, len(IRIS_COLORS) - 1)))
    natural = skin * torch.tensor((0.88, 0.64, 0.63)) + torch.tensor((0.05, 0.0, 0.01))
    lipstick = torch.tensor((0.70, 0.20, 0.26)) * uniform(0.8, 1.15, 1)
    x["lips"] = torch.lerp(natural, lipstick, (0.15 + 0.6 * makeup * uniform())[:, None]).clamp(0, 1)
    x["beard"] = beard = man * chance(0.5) * uniform(0.15, 1)
    x["beard_shape"] = uniform()
    x["moustache"] = (beard > 0) * chance(0.8) + (beard == 0) * man * chance(0.08)

    styles = torch.tensor(list(HAIR_STYLES.values()))
    likely = torch.where(woman[:, None] > 0, styles[:, 1], styles[:, 0])
    likely = torch.where(child[:, None] > 0, likely * (styles[:, 2] < 0.75) + 0.01, likely)
    x.update(zip(HAIR_TRAITS, draw.pick(styles, likely)[:, 2:].unbind(1)))
    x["hairline"] = x["hairline"] + normal(0, 0.02)
    x["temples"] = x["temples"] + uniform(0, 0.07) * man
    x["parting"] = draw.pick((-0.35, 0.0, 0.35)) + normal(0, 0.08)
    x["hair_top"], x["hair_side"] = x["hair_top"] * uniform(0.75, 1.25), x["hair_side"] * uniform(0.75, 1.25)
    x["hair_length"] = x["hair_length"] + normal(0, 0.1)
    x["hair_open"] = x["hair_open"] + normal(0, 0.02)

    x["glasses"], x["glasses_square"] = chance(0.2) * (1 - child), uniform()
    x["glasses_color"] = draw.pick(FRAME_COLORS)
    x["neckline"], x["stripes"], x["jacket"] = uniform(0, 0.55), chance(0.35) * uniform(0.3, 1), chance(0.3)
    x["cloth"], x["cloth2"] = draw.pick(CLOTH_COLORS), draw.pick(CLOTH_COLORS)
    bright = uniform(0.2, 0.85, 1, 1) + normal(0, 0.14, 3, 1)  # a room with three shades
    hue = normal(0, 0.06, 1, 3) * (1 + 3 * chance(0.25)[:, None, None]) + normal(0, 0.08, 3, 3)
    x["backdrop"] = (bright.clamp(0.06, 0.92) * (1 + hue)).clamp(0.03, 0.95)
    x["backdrop_style"] = draw.pick(BACKDROPS, (1.0, 1.0, 1.2, 0.5, 0.4)) * uniform(0.6, 1.2, 4)
    x["phase"] = uniform(0, 1, 2)
    return Identity(**x)


def neutral_states(count: int) -> State:
    """Frontal, eyes open, mouth shut, half of the light ambient."""
    zero, one, pair = torch.zeros(count), torch.ones(count), torch.zeros(count, 2)
    light = F.normalize(torch.tensor((0.4, 0.5, 0.8)), dim=0).expand(count, 3)
    return State(zero, zero, zero, pair, one, zero, zero, zero, zero, pair, zero, pair + 1, pair, light, one / 2, pair)


def sample_states(count: int, seed: Seed) -> State:
    """Random frames of talking heads: mostly near frontal, more than half of them speaking."""
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
    """Random pairs of frames, each pair as if from one film: one person in one light, mostly before a camera that is
    still, with any two expressions, and the head moved by anything from nothing to as far as it goes."""
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
    """A smooth random curve of about unit variance (frames,) at 25 frames a second, new about every ``seconds``.

    It is a cubic B-spline through random control values: smooth enough for the eye to take it for a muscle.
    """
    knots = torch.randn(int(frames / (25 * seconds)) + 5, generator=generator)
    at = torch.arange(frames) / (25 * seconds) + torch.rand((), generator=generator) + 1
    k, t = at.long(), at.frac()
    weights = (1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3
    return 1.6 / 6 * sum(weight * knots[k + i - 1] for i, weight in enumerate(weights))


def animate_states(frames: int, seed: Seed) -> State:
    """One clip at 25 frames a second: the head sways and turns, somebody speaks, blinks and looks around."""
    if frames < 1:
        raise ValueError(f"frames is {frames}; expected at least 1")
    one = Draw(1, seed)
    base = sample_states(1, one.generator)

    def number(low, high):
        return float(one.uniform(low, high))

    def curve(seconds, size=1.0, middle=0.0):
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
    shut, profile, at = torch.zeros(frames + 6), torch.tensor((0.45, 1.0, 1.0, 0.75, 0.4, 0.12)), int(number(5, 60))
    while at < frames:
        shut[at : at + 6] = torch.maximum(shut[at : at + 6], profile)
        at += int(number(50, 100))
    # The gaze rests on one place, jumps to another within two frames, and makes up for most of the head's turning.
    gaze, at = torch.zeros(frames + 1, 2), 0
    while at < frames:
        gaze[at:] = torch.randn(2, generator=one.generator) * torch.tensor((0.20, 0.10)) * (number(0, 1) < 0.6)
        at += int(number(8, 60))
    gaze = (gaze[1:] + gaze[:-1]) / 2 - 0.6 * torch.stack((yaw, pitch), 1)

    raised = curve(0.9, 0.32) + phrase * curve(0.4, 0.25)
    lids = (curve(1.0, 0.06, 0.98) + 0.12 * raised.clamp(min=0)) * (1 - shut[:frames])
    camera = 0.05 * (number(0, 1) < 0.35)
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


# ------------------------------------------------------------------------------------------- angles and expressions
# From here on everything works on columns: a value of shape (b,) becomes (b, 1) and a colour (b, 3, 1), so that they
# broadcast against (b, n) rays and (b, 3, n) vectors. ``who`` is an identity in columns, ``how`` a state.


def columns(batch: Batch) -> SimpleNamespace:
    return SimpleNamespace(**{part.name: getattr(batch, part.name).unsqueeze(-1) for part in fields(batch)})


def vector(*values, like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device)[:, None]


# What every ray passes many times works in place on what it has made itself: new memory costs more than arithmetic.


def dot(a, b):
    return (a[:, 0] * b[:, 0]).add_(a[:, 1] * b[:, 1]).add_(a[:, 2] * b[:, 2])


def unit(v):
    return v * dot(v, v).add_(1e-12).rsqrt_()[:, None]


def cross(a, b):
    (ax, ay, az), (bx, by, bz) = a.unbind(1), b.unbind(1)
    return torch.stack((ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx), 1)


def smoothstep(x, low, high):
    t = (x - low).div_(high - low).clamp_(0, 1)
    return (t * t).mul_((-2 * t).add_(3))


def bump(*offsets):
    """A hill: 1 where all ``offsets`` are 0, about 1/e at distance 1, exactly 0 from 2.9 on (a cheap Gaussian)."""
    square = reduce(torch.add, (offset * offset for offset in offsets))
    return square.div_(-8).add_(1).clamp_(min=0).square_().square_().square_()


def hills(x, y, *rows):
    """A sum of hills; each row is (height, x, width along x, y, width along y)."""
    each = (bump((x - x0).div_(wx), (y - y0).div_(wy)).mul_(height) for height, x0, wx, y0, wy in rows)
    return reduce(Tensor.add_, each)


def direction(lam, psi):
    across = lam.cos()
    return torch.stack((lam.sin(), across * psi.sin(), across * psi.cos()), 1)


def angles(u):
    x, y, z = u.unbind(1)
    return torch.atan2(x, (y * y + z * z).sqrt()), torch.atan2(y, z)


def rotation(yaw, pitch, roll):
    """Head to world, (b, 3, 3): first roll, then pitch, then yaw."""
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
    turn = (yaw.cos(), zero, yaw.sin(), zero, one, zero, -yaw.sin(), zero, yaw.cos())
    nod = (one, zero, zero, zero, pitch.cos(), pitch.sin(), zero, -pitch.sin(), pitch.cos())
    lean = (roll.cos(), roll.sin(), zero, -roll.sin(), roll.cos(), zero, zero, zero, one)
    turn, nod, lean = (torch.stack(matrix, -1).unflatten(-1, (3, 3)) for matrix in (turn, nod, lean))
    return turn @ nod @ lean


def move(psi, before, after):
    """The monotone map that takes the borders ``before`` to ``after`` (both ascending), linear between them.

    The outermost borders stay where they are and beyond them nothing moves. ``move(move(x, a, b), b, a)`` is x.
    """
    moved = psi
    for k in range(len(before) - 1):
        width = before[k + 1] - before[k]
        part = (psi - before[k]).div_(width.clamp(min=1e-6)).clamp_(0, 1)
        moved = torch.addcmul(moved, part, (after[k + 1] - after[k]).sub_(width))
    return moved


def sides(pair, lam, blend=1e-6):
    """The first of a pair on the right half of the face, the second on the left; mixed where |lam| < ``blend``."""
    right, left = pair[:, 0], pair[:, 1]
    return 0.5 * (right + left) + 0.5 * (left - right) * (lam / blend).clamp(-1, 1)


def eye_bands(who, how, lam):
    """The upper borders along psi at rest, and in a state: cheek, lower lid | upper lid, lashes, fold, brow, forehead.

    At rest the lids are shut: the slit between the second and the third border has no height. Painters, who need no
    state, pass None and get the borders at rest.
    """
    t = (lam.abs() - who.eye_spacing) / who.eye_width  # -1 and 1 at the corners of the eye
    dome = (1 - t * t).clamp(min=0)
    height = who.eye_height * dome * (1.06 - 0.22 * t)  # the upper lid peaks nearer to the nose
    level = sides(who.eye_level, lam)
    slit = level + who.eye_tilt * t.clamp(-1.5, 1.5) - 0.48 * who.eye_height * dome
    lash = who.lashes * (dome + 0.1)
    fold = slit + lash + height + who.eye_fold * (0.3 + 0.7 * (1 - t * t / 2.25).clamp(min=0))
    arch = who.brow_arch * (1 - ((lam.abs() - 0.47) * 4) ** 2).clamp(-1, 1)
    brow = 0.5 * level + sides(who.brow_gap, lam) + 0.5 * arch - who.brow_tilt * t.clamp(-2, 2)
    rest = [torch.full_like(t, -0.24), slit, slit + 1e-5, slit + lash, fold, brow, torch.full_like(t, 1.05)]
    if how is None:
        return rest

    lids = sides(how.lids, lam).clamp(min=0)
    squint = 0.28 * who.eye_height * dome * how.smile.clamp(min=0)
    lower, upper = slit + squint, slit + torch.maximum(lids * height, squint)
    window = (1 - lam * lam).clamp(min=0)
    raised = 0.11 * window * sides(how.brows, lam, 0.2)
    raised = raised - how.frown * (0.075 * bump((lam.abs() - 0.12) / 0.2) + 0.02 * window)
    fold = fold + dome * (who.eye_height * (lids - 1).clamp(min=0) + 0.15 * raised)
    lash = upper + lash  # bands may become thin, but their borders never cross
    fold = torch.maximum(fold, lash + 0.003)
    return rest, [rest[0], lower, upper, lash, fold, torch.maximum(brow + raised, fold + 0.02), rest[-1]]


def jaw_angle(how):
    return 0.30 * how.jaw


def mouth_bands(who, how, lam):
    """The same for the lower borders: throat, chin, lower lip, its edge | upper lip's edge, upper lip, nose, cheek."""
    t = lam / who.mouth_width  # -1 and 1 at the corners of the mouth
    square = t * t
    dome = (1 - square).clamp(min=0)
    fade = bump(t / 1.5)
    slit = who.mouth_level + (who.mouth_curve * square + 1.5 * who.mouth_tilt * t) * fade
    edge = dome.sqrt() * (1 - 0.25 * square)
    above = who.upper_lip * edge * (1 - who.bow * bump(t / 0.22)) + 0.01
    below = who.lower_lip * edge + 0.01
    throat, chin, cheek = torch.full_like(t, -2.3), torch.full_like(t, -1.14), torch.full_like(t, -0.24)
    nose = who.nose_base - 0.03 + 0 * t
    rest = [throat, chin, slit - below, slit, slit + 1e-5, slit + above, nose, cheek]
    if how is None:
        return rest

    drop, glad, round_ = jaw_angle(how), how.smile.clamp(min=0), (-how.wide).clamp(min=0)
    corner = square * torch.exp(1 - square)  # 1 at the corners, fades on both sides
    lift = 0.08 * how.smile * corner - 0.42 * drop * (1 - torch.exp(-square)) + (0.05 * how.part - 0.02 * glad) * dome
    upper = slit + lift
    lower = upper - (drop + 0.12 * how.part) * dome * (1.15 - 0.15 * dome)
    full = 1 + 0.25 * round_ - 0.12 * glad - 0.1 * drop
    bottom, top = lower - below * full, upper + above * full
    nose = torch.maximum(nose + 0.25 * lift.clamp(min=0), top + 0.008)
    return rest, [throat, chin - drop, bottom, lower, upper, top, nose, cheek]


def stretch(who, how, lam, psi, inverse=False):
    """Move the corners of the mouth apart or together: stretch lam between the middle, the corner and the cheek."""
    near = bump((psi - who.mouth_level + 0.5 * jaw_angle(how)) / 0.27)
    wide = 0.16 * how.wide.clamp(min=0) + 0.32 * how.wide.clamp(max=0) + 0.27 * how.smile.clamp(min=0) - 0.1 * how.jaw
    corner = who.mouth_width + 0 * lam
    rest, now = ([0 * lam, x, 2.5 * corner] for x in (corner, corner * (1 + near * wide)))
    return lam.sign() * (move(lam.abs(), now, rest) if inverse else move(lam.abs(), rest, now))


def deform(who, how, lam, psi):
    """Material angles -> where the state puts them."""
    psi = move(move(psi, *eye_bands(who, how, lam)), *mouth_bands(who, how, lam))
    return stretch(who, how, lam, psi), psi


def undeform(who, how, lam, psi):
    """Deformed angles -> material angles, and whether one looks through the opened eye, through the opened mouth."""
    lam = stretch(who, how, lam, psi, inverse=True)
    (eye, eye_now), (mouth, mouth_now) = eye_bands(who, how, lam), mouth_bands(who, how, lam)
    in_eye, in_mouth = (psi > eye_now[1]) & (psi < eye_now[2]), (psi > mouth_now[3]) & (psi < mouth_now[4])
    return lam, move(move(psi, mouth_now, mouth), eye_now, eye), in_eye, in_mouth


# ------------------------------------------------------------------------------------------------ shapes and noise


def hair_height(who, u):
    """Height above the hair line in the material direction ``u``: positive where hair grows."""
    x, y, z = u.unbind(1)
    around = torch.atan2(x, z)
    side = around.abs()
    line = who.hairline + who.temples * bump((side - 0.7) / 0.3) - who.drop * (1 - bump((around - who.parting) / 0.45))
    line = torch.lerp(line, who.sideburn.expand_as(line), smoothstep(side, 0.85, 1.2))
    line = line + (0.12 - who.sideburn) * (1 - who.long) * bump((side - 1.62) / 0.3)  # above the ear
    return y - torch.lerp(line, torch.full_like(line, -0.5), smoothstep(side, 1.85, 2.3))


def skull(who, u):
    """Distance of the head without a face from its centre: an ellipsoid that recedes under the jaw and at the nape."""
    x, y, z = u.unbind(1)
    under = smoothstep(-0.47 * y - z, -0.04, 0.46) * smoothstep(-y, 0.15, 0.65)
    width = who.width * (1 - who.taper * y.clamp(max=0) ** 2)
    tall = y.clamp(min=0) / who.top + y.clamp(max=0) / who.bottom
    deep = (z.clamp(min=0) + z.clamp(max=0) / 1.1) / who.depth
    return (1 - 0.3 * under) * torch.rsqrt((x / width) ** 2 + tall * tall + deep * deep)


def face(who, lam, psi):
    """What the face adds to the skull at rest."""
    side, base, slit = lam.abs(), who.nose_base, who.mouth_level
    tip = base + 0.10
    # The nose is a ridge that rises from the root to the tip and ends steeply underneath.
    rise = smoothstep(-psi, -0.12, -tip)
    ridge = who.nose_bridge + (who.nose_height - who.nose_bridge) * rise * rise
    ridge = ridge * smoothstep(-psi, -0.45, 0.0) * (1 - smoothstep(-psi, -tip + 0.02, 0.07 - base))
    relief = ridge * bump(lam / (0.075 + 0.035 * rise))
    # Lips are two rolls with a valley between them.
    above, below = (psi - slit) / (0.8 * who.upper_lip) - 0.75, (psi - slit) / (0.8 * who.lower_lip) + 0.75
    rolls = 0.045 * bump(above) + 0.060 * bump(below) - 0.030 * bump((psi - slit) / 0.025)
    relief = relief + rolls * bump(0.85 * lam / who.mouth_width)
    relief = relief + hills(
        lam,
        psi,
        (0.055, 0, 0.09, tip + who.nose_tip, 0.085),
        (0.045, 0, 0.33, slit, 0.24),  # teeth under the lips
        (-0.02, 0, 0.05, (base + slit) / 2, 0.1),  # philtrum
        (who.chin, 0, 0.21, -1.08, 0.13),
        (-0.03, 0, 0.25, slit - 0.2, 0.07),
    )
    eye = sides(who.eye_level, lam)
    return relief + hills(
        side,
        psi,
        (0.075, who.nose_width, 0.052, base + 0.06, 0.065),  # wings of the nose
        (who.cheek, 0.55, 0.24, -0.22, 0.22),
        (who.jowl, 0.75, 0.30, -0.82, 0.30),
        (who.brow_ridge, 0.33, 0.28, eye + 0.27, 0.10),
        (-0.05, 0.36, 0.20, eye, 0.15),  # sockets
        (0.02, 0.30, 0.30, 0.6, 0.25),  # forehead
    )


def hair_volume(who, u):
    x, y, z = u.unbind(1)
    grown = smoothstep(hair_height(who, u), -0.02, 0.24)
    curl = noise(torch.stack((x + z * 0.5, y - z * 0.4), 1) * 0.8, who.phase, 2)[:, 0] * who.curls
    volume = who.hair_side + (who.hair_top - who.hair_side) * smoothstep(y, 0.1, 0.75) + 0.03 * curl
    return grown * volume


def sample(maps, position):
    """Maps (b, c, h, w) at ``position`` (b, 2, n), bilinearly: (b, c, n)."""
    grid = position.transpose(1, 2)[:, None]
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)[:, :, 0]


@lru_cache(maxsize=8)
def noise_tile(device: torch.device) -> Tensor:
    """(1, 3, 257, 257): periodic noise of variance 1, finer to coarser; the last row and column are the first."""
    white = torch.randn(3, 256, 256, generator=torch.Generator().manual_seed(0))
    frequency = torch.fft.fftfreq(256) * math.tau
    square = frequency[:, None] ** 2 + frequency[None] ** 2
    blur = torch.exp(-0.5 * square * torch.tensor((2.0, 5.0, 16.0))[:, None, None] ** 2)
    tile = torch.fft.ifft2(torch.fft.fft2(white) * blur).real
    return F.pad((tile / tile.std(dim=(1, 2), keepdim=True))[None], (0, 1, 0, 1), mode="circular").to(device)


def noise(position, phase, first=0):
    """Noise (b, 3, n), or only the channels from ``first`` on, at ``position`` (b, 2, n); it repeats with period 1."""
    position = position + phase
    tile = noise_tile(position.device)[:, first:].expand(len(position), -1, -1, -1)
    return sample(tile, position.sub_(position.floor()).mul_(512 / 257).add_(1 / 257 - 1))


def ear_frame(who):
    """Centre of the left ear (b, 3, 1), and the matrix that takes the ear to the unit sphere."""
    c, s, zero = who.ear_angle.cos(), who.ear_angle.sin(), torch.zeros_like(who.ear_angle)
    deep = 0.60 * who.ear_size
    center = torch.stack((who.width * 0.99 + 0.45 * deep * s, zero - 0.05, zero - 0.10 - 0.4 * deep * c), 1)
    rows = (c / 0.06, zero, s / 0.06), (zero, 1 / who.ear_size, zero), (-s / deep, zero, c / deep)
    return center, torch.stack([torch.cat(row, 1) for row in rows], 1)


def curtain_frame(who):
    """Centre and radii (b, 3, 1) of the ellipsoid on which long hair hangs."""
    zero = torch.zeros_like(who.width)
    center = torch.stack((zero, zero - 0.5, zero - 0.10), 1)
    return center, torch.stack((who.width * who.hair_width + 0.16, zero + 1.53, zero + 0.72), 1)


def curtain_mask(who, p, front: bool):
    """Where that ellipsoid is hair: above the ends and, on the front sheet, beside the face."""
    x, y, _ = p.unbind(1)
    ends = -who.hair_length + (0.02 + 0.03 * who.curls) * (torch.sin(23 * x) + torch.sin(37 * x + 2))
    if not front:
        return y > ends
    wave = noise(torch.stack((x.sign() * 0.3, y * 0.3), 1), who.phase, 1)[:, 0] * (0.015 + 0.04 * who.curls)
    window = who.hair_open + wave - 0.10 * smoothstep(-y, 0.5, 1.3) + 0.06 * smoothstep(y, -0.2, 0.5)
    return (y > ends) & (x.abs() > window)


def glasses_frame(who, p):
    """Negative on the frames: two rims, the bridge between them, and an arm to each ear."""
    x, y, z = p[:, 0].abs(), p[:, 1] - 0.02, p[:, 2]
    rx, ry = 0.255 * who.glasses_size, (0.235 - 0.05 * who.glasses_square) * who.glasses_size
    a, b = ((x - 0.345) / rx) ** 2, (y / ry) ** 2
    rim = (a * a + b * b + (2 - 2 * who.glasses_square) * a * b).sqrt().sqrt()  # an ellipse, or squarer
    rim = (rim - 1).abs() * 0.22 - 0.019
    bridge = torch.maximum((y - 0.06).abs() - 0.021, x - 0.10)
    arm = torch.maximum((y - 0.08).abs() - 0.023, 0.345 + 0.95 * rx - x)
    return torch.where(z > 0, torch.minimum(torch.minimum(rim, bridge), arm), 1.0)


def body_shape(who, y):
    """Half width and depth of neck and shoulders."""
    flare = smoothstep(-y, 1.02, 1.76)
    return who.neck + (who.shoulders - who.neck) * flare, 0.42 + 0.22 * flare


def body_lean(y):
    """How much of the head's movement the body joins in: all at the top of the neck, nothing at the shoulders."""
    return smoothstep(y, -1.65, -0.75)


def open_jaw(how, p, sign=1):
    """Turn points of the jaw about the axis through the ears."""
    c, s = jaw_angle(how).cos(), jaw_angle(how).sin() * sign
    x, y, z = p.unbind(1)
    return torch.stack((x, c * y - s * z, c * z + s * y), 1)


# ------------------------------------------------------------------------------------- a face made ready for rays


@dataclass
class Scene:
    """A batch of faces made ready for rays."""

    who: SimpleNamespace
    how: SimpleNamespace
    rotation: Tensor  # (b, 3, 3), head to world
    look: Tensor  # (b, 3, 3), eye to head
    eyes: Tensor  # (b, 3, 1), centre of the left eyeball
    gum: Tensor  # (b, 3, 1), the middle of the mouth's slit at rest
    table: Tensor  # (b, 4, TABLE, TABLE): the head's radius and normal (of any length) by deformed direction
    start: Tensor | None = None  # (b, COARSE * COARSE): a depth in front of the head, -inf where there is no head


def chart(x, y, z):
    """Where a direction lies in the head's table, (b, 2, n) in [-1, 1], and its length (b, n).

    Lambert's equal-area map of the sphere: its only singular point is the back of the head, which one never sees.
    """
    length = (x * x).add_(y * y).add_(z * z).sqrt_()
    scale = (2 * length).mul_(length + z).add_(1e-12).rsqrt_()
    return torch.stack((x * scale, y * scale), 1), length


@lru_cache(maxsize=8)
def texels(device: torch.device):
    """Directions (1, 3, TABLE²) of the table's texels; indices of those that a face can move or mark; the others'."""
    q = identity_grid(TABLE, TABLE, device=device).flatten(1)
    q = q * (0.995 / q.norm(dim=0).clamp(min=0.995))
    square = (q * q).sum(0)
    u = torch.cat((2 * q * (1 - square).sqrt(), (1 - 2 * square)[None]))[None]
    psi = angles(u)[1][0]
    front = (psi > -2.3) & (psi < 1.05)
    return u, front.nonzero()[:, 0], (~front).nonzero()[:, 0]


def prepare(faces: Faces) -> Scene:
    who, how = columns(faces.identity), columns(faces.state)
    b, device = len(faces), faces.device
    turn = rotation(faces.state.yaw, faces.state.pitch, faces.state.roll)
    look = rotation(*faces.state.gaze.unbind(1), torch.zeros_like(faces.state.yaw))

    # The left eyeball sits under the middle of its lids, a little towards the nose.
    zero = torch.zeros_like(who.size)
    lam, psi = torch.cat((who.eye_spacing, zero), 1), torch.cat((who.eye_level.mean(1), who.mouth_level), 1)
    anchors = direction(lam, psi)
    anchors = anchors * (skull(who, anchors) + face(who, lam, psi))[:, None]
    eyes, gum = anchors[:, :, :1] - vector(0.10, 0.0, 1.0, like=turn) * (EYEBALL - 0.01), anchors[:, :, 1:]

    # The radius in every direction. Most of the work is for the texels of the face.
    u, front, back = texels(device)
    u = u.expand(b, -1, -1)
    r = torch.empty_like(u[:, 0])
    r[:, back] = skull(who, u[:, :, back]) + hair_volume(who, u[:, :, back])
    seen = u[:, :, front]
    now = angles(seen)
    lam, psi, _, _ = undeform(who, how, *now)
    material = direction(lam, psi)
    relief = face(who, lam, psi)
    relief = relief + 0.035 * how.smile.clamp(min=0) * bump((lam.abs() - 0.48) / 0.2, (psi + 0.25) / 0.16)
    relief = relief + 0.06 * (-how.wide).clamp(min=0) * bump(lam / who.mouth_width, (psi - who.mouth_level) / 0.16)
    skin = skull(who, material) + relief + hair_volume(who, material)
    # Lids lie on the eyeball, open or shut: around the eye the surface is the ball's.
    reach = dot(torch.cat((seen[:, :1].abs(), seen[:, 1:]), 1), eyes)
    ball = reach + (EYEBALL**2 - dot(eyes, eyes) + reach * reach).clamp(min=0).sqrt() + 0.012
    t = (now[0].abs() - who.eye_spacing) / who.eye_width
    s = (now[1] - sides(who.eye_level, now[0]) - 0.02) / (who.eye_height + 0.04)
    r[:, front] = torch.lerp(skin, ball, (1 - smoothstep(t * t + s * s, 0.75, 1.7)) * (ball > 0.5))

    points = (u * r[:, None]).unflatten(2, (TABLE, TABLE))
    padded = F.pad(points, (1, 1, 1, 1), mode="replicate")
    du, dv = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2], padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    table = torch.cat((r.unflatten(1, (1, TABLE, TABLE)), cross(du, dv)), 1)
    scene = Scene(who, how, turn, look, eyes, gum, table)

    # The nearest texel in each cell of the picture and its neighbours: there the rays of that cell start to march.
    screen, depth = project(scene, points.flatten(2))
    depth = torch.where((screen.abs() < 1 + 2 / COARSE).all(1), depth, -math.inf)
    start = torch.full((b, COARSE * COARSE), -math.inf, device=device).scatter_reduce(1, cells(screen), depth, "amax")
    scene.start = F.max_pool2d(start.view(b, 1, COARSE, COARSE), 3, 1, 1).flatten(1)
    return scene


def cells(screen):
    x, y = ((screen + 1) * (COARSE / 2)).clamp(0, COARSE - 1).long().unbind(1)
    return y * COARSE + x


def head_place(scene):
    """Centre (b, 2, 1) and scale (b, 1) of the head in the picture."""
    return scene.who.center + scene.how.shift, scene.who.size * scene.how.scale


def body_place(scene):
    """The same for the body, which follows the head only partly, and how far (b, 2, 1) it lags behind."""
    scale = scene.who.size * (0.5 + 0.5 * scene.how.scale)
    return scene.who.center + 0.35 * scene.how.shift, scale, 0.65 * scene.how.shift / scale[:, None]


def project(scene, point):
    """Head coordinates -> position in the picture (b, 2, n), and depth towards the viewer (b, n)."""
    center, scale = head_place(scene)
    pivot = vector(*PIVOT, like=point)
    world = (scene.rotation @ (point - pivot) + pivot) * scale[:, None]
    return torch.stack((center[:, 0] + world[:, 0], center[:, 1] - world[:, 1]), 1), world[:, 2]


def head_rays(scene, screen):
    """Rays in head coordinates: origin (b, 3, n), direction (b, 3, 1). The depth at t is scale * (t + PIVOT's z)."""
    center, scale = head_place(scene)
    x, y = (screen[:, 0] - center[:, 0]) / scale, (center[:, 1] - screen[:, 1]) / scale - PIVOT[1]
    right, up, out = scene.rotation.unbind(1)
    return x[:, None] * right[..., None] + y[:, None] * up[..., None] + vector(*PIVOT, like=x), out[..., None]


# ----------------------------------------------------------------------------------------------------------- trace


class Pack:
    """The True columns of each row of a mask, gathered, so that work on few rays costs what these few cost.

    Short rows are filled up with repetitions of their last column; writing that twice does no harm.
    """

    def __init__(self, mask):
        rows, columns = mask.shape
        found = F.pad(mask.reshape(-1).nonzero()[:, 0], (1, 0), value=-1)
        first = torch.arange(rows + 1, device=mask.device) * columns
        before = torch.searchsorted(found, first) - 1  # how many are found in the rows above
        count = before.diff()
        least, most = torch.stack(count.aminmax()).tolist()
        self.empty, self.full, self.some = most == 0, least > 0, (count > 0)[:, None]
        slot = torch.arange(1, max(most, 1) + 1, device=mask.device) + before[:-1, None]
        slot = torch.minimum(slot, before[1:, None])
        self.index = found.take(slot).sub_(first[:-1, None]).clamp_(0, columns - 1)

    def only(self, mask, *values):
        """Those of these columns for which ``mask`` is True, and the same part of ``values`` that belong to them."""
        part = Pack(mask & self.some)
        values = [part.take(value) for value in values]
        part.index = self.index.gather(1, part.index)
        return part, *values

    def take(self, values):
        if values.dim() == 2:
            return values.gather(1, self.index)
        return values.gather(2, self.index[:, None].expand(-1, values.shape[1], -1))

    def put(self, values, new):
        """Write ``new`` into ``values`` in place."""
        if not self.full:
            new = torch.where(self.some if values.dim() == 2 else self.some[:, None], new, self.take(values))
        index = self.index if values.dim() == 2 else self.index[:, None].expand(-1, values.shape[1], -1)
        values.scatter_(values.dim() - 1, index, new)


@dataclass
class Hits:
    """What each ray meets first, and the material of it."""

    layer: Tensor  # (b, n), one of BACKGROUND ... GLASSES
    depth: Tensor  # (b, n), towards the viewer
    # (b, 3, n). BACKGROUND: position on the backdrop. BODY: body coordinates. HEAD: lam, psi, and how far above the
    # table's surface the march ended (a factor close to 1). Eyes: direction in the eyeball's frame. MOUTH: head
    # coordinates with the jaw shut. All others: head coordinates.
    material: Tensor
    seen: Tensor  # (b, 3, n), the hit itself in head coordinates (HEAD only)


def gap(scene, o, out, t):
    """How far above the head's surface the rays are at ``t``."""
    (ox, oy, oz), (dx, dy, dz) = o.unbind(1), out.unbind(1)
    q, length = chart(ox + t * dx, oy + t * dy, oz + t * dz)
    return length - sample(scene.table[:, :1], q)[:, 0]


def march(scene, o, out, start):
    """Walk along rays from ``start``, in front of the head, to their first hit: t, the gap that is left, who has hit.

    Few bold secant steps do for nine rays in ten. Those that graze a cheek or meet a wall of hair start again with
    careful ones: short but not too short, and halving once the surface is known to lie in an interval.
    """

    def step(o, t, f, stride, boldest):
        t, before = t + stride, f
        f = gap(scene, o, out, t)
        return t, f, (-f).div_((f - before).div_(stride).nan_to_num_(1.0).clamp_(1 / boldest, 8.0))

    t, f = start, gap(scene, o, out, start)
    stride = -f
    for _ in range(5):
        t, f, stride = step(o, t, f, stride, 2.0)

    missed = (f > 0.08) & (t < -dot(o, out))  # already behind the middle of the head, and far from it
    unsure = Pack((torch.minimum(f.abs(), stride.abs()) > 0.003) & ~missed)
    o, near = unsure.take(o), unsure.take(start)
    now, far = near, torch.full_like(near, -1e9)
    g = gap(scene, o, out, now)
    stride_now = -g
    for _ in range(20):
        now, g, stride_now = step(o, now, g, stride_now, 1.0)
        near, far = torch.where(g > 0, now, near), torch.where(g > 0, far, torch.maximum(far, now))
        free = far < -1e8
        beyond = ~free & ((now + stride_now <= far) | (now + stride_now >= near))
        stride_now = torch.where(beyond, (far + near) / 2 - now, stride_now)
        stride_now = torch.where(free & (g.abs() > 0.002), stride_now.clamp(max=-0.035), stride_now)
    for values, new in zip((t, f, stride), (now, g, stride_now)):
        unsure.put(values, new)
    return t, f, torch.minimum(f.abs(), stride.abs()) < 0.006


def sphere(o, d):
    """Near and far hit with the unit sphere, and whether there is one; else both are the point of closest approach."""
    a, b, c = dot(d, d), dot(o, d), dot(o, o) - 1
    root = b * b - a * c
    reach = root.clamp(min=0).sqrt()
    return (reach - b) / a, (-reach - b) / a, root > 0


def cylinder(o, d, z, rx, rz):
    """Where rays first meet the upright cylinder of radii ``rx``, ``rz`` about (0, z): a sphere that ignores y."""
    flat = torch.stack((1 / rx, torch.zeros_like(rx), 1 / rz), 1)
    t, _, met = sphere((o - z[:, None] * vector(0.0, 0.0, 1.0, like=o)) * flat, d * flat)
    return t, met


def eyeball(scene, side):
    """Centre of the right (-1) or the left (1) eyeball."""
    return scene.eyes * vector(side, 1.0, 1.0, like=scene.eyes)


def trace(scene: Scene, screen) -> Hits:
    """First hits of the rays through ``screen`` (b, 2, n), normalised positions in the picture."""
    who, how = scene.who, scene.how
    nowhere = torch.zeros_like(screen[:, 0])
    backdrop = torch.cat((screen - how.pan, nowhere[:, None]), 1)
    layer = torch.full_like(nowhere, BACKGROUND, dtype=torch.uint8)
    hits = Hits(layer, nowhere - 10, backdrop, torch.zeros_like(backdrop))

    def put(layer, rays, depth, point):
        rays.put(hits.layer, torch.full_like(rays.index, layer, dtype=torch.uint8))
        rays.put(hits.depth, depth)
        rays.put(hits.material, point)

    # The body faces the viewer: its half width and its depth depend on the height alone.
    center, scale, lag = body_place(scene)
    y = (center[:, 1] - screen[:, 1]) / scale
    x = (screen[:, 0] - center[:, 0]) / scale - lag[:, 0] * body_lean(y)
    half, deep = body_shape(who, y)
    rays = Pack((x.abs() < half) & (y < -0.2))
    x, y, half, deep = (rays.take(value) for value in (x, y, half, deep))
    z = deep * (1 - (x / half) ** 2).sqrt() - 0.30
    put(BODY, rays, z * scale, torch.stack((x, y, z), 1))

    # Everything else lives in head coordinates.
    origin, out = head_rays(scene, screen)
    center, scale = head_place(scene)

    def offer(layer, rays, o, t, keep):
        p, depth = (t[:, None] * out).add_(o), scale * (t + PIVOT[2])
        rays, depth, p = rays.only(keep(p) & (depth > rays.take(hits.depth)), depth, p)
        put(layer, rays, depth, p)

    if bool((who.long > 0).any()):
        middle, radii = curtain_frame(who)
        rays = Pack((who.long > 0).expand_as(nowhere))
        o = rays.take(origin)
        near, far, met = sphere((o - middle) / radii, out / radii)
        rays, o, near, far = rays.only(met, o, near, far)
        offer(CURTAIN, rays, o, far, lambda p: curtain_mask(who, p, front=False))
        offer(CURTAIN, rays, o, near, lambda p: curtain_mask(who, p, front=True))

    start = scene.start.gather(1, cells(screen)) / scale - PIVOT[2] + 0.03
    rays = Pack(start > -9)
    o = rays.take(origin)
    t, missing, met = march(scene, o, out, rays.take(start).clamp(min=-9))
    depth = scale * (t + PIVOT[2])
    rays, o, t, missing, depth = rays.only(met & (depth > rays.take(hits.depth)), o, t, missing, depth)
    p = o + t[:, None] * out
    lam, psi, in_eye, in_mouth = undeform(who, how, *angles(p))
    length = dot(p, p).sqrt()
    put(HEAD, rays, depth, torch.stack((lam, psi, length / (length - missing)), 1))
    rays.put(hits.seen, p)

    # Through the slits one sees eyeballs, and behind the lips the teeth of the skull and what belongs to the jaw.
    for layer, side in ((RIGHT_EYE, -1.0), (LEFT_EYE, 1.0)):
        slit, offset = rays.only(in_eye & (lam * side > 0), (o - eyeball(scene, side)) / EYEBALL)
        t, _, _ = sphere(offset, out / EYEBALL)
        q = scene.look.transpose(1, 2) @ unit(offset + t[:, None] * out / EYEBALL)
        put(layer, slit, scale * (t + PIVOT[2]), q)
    (slit, o), arch = rays.only(in_mouth, o), torch.full_like(who.width, 0.36)
    t, _ = cylinder(o, out, scene.gum[:, 2] - 0.08 - arch, arch, arch)
    put(MOUTH, slit, scale * (t + PIVOT[2]), open_jaw(how, o + t[:, None] * out, -1))
    t, _ = cylinder(o, out, scene.gum[:, 2] - 0.05 - arch, arch, arch)
    p = o + t[:, None] * out
    slit, t, p = slit.only(p[:, 1] > scene.gum[:, 1] - 0.04, t, p)
    put(TEETH, slit, scale * (t + PIVOT[2]), p)

    # Ears: one ellipsoid, mirrored to the side on which the ray passes. Only rays of the head's height can meet them.
    offset = (screen - center) / scale[:, None]
    rays = Pack((offset[:, 0].abs() < 1.4) & (offset[:, 1].abs() < 0.9))
    o, (middle, matrix) = rays.take(origin), ear_frame(who)
    flip = torch.ones_like(o)
    flip[:, 0] = (o[:, 0] - dot(o, out) * out[:, 0]).sign()
    t, _, met = sphere(matrix @ (o * flip - middle), matrix @ (out * flip))
    offer(EAR, *rays.only(met, o, t), lambda p: True)
    if bool((who.glasses > 0).any()):
        t, met = cylinder(o, out, 0 * who.width, who.width + 0.05, 0 * who.width + 1.02)
        offer(GLASSES, *rays.only(met & (who.glasses > 0), o, t), lambda p: glasses_frame(who, p) < 0)
    return hits


def sample_table(scene, p):
    """Radius and normal (b, 4, n) of the head's surface in the directions of ``p`` (b, 3, n)."""
    return sample(scene.table, chart(*p.unbind(1))[0])


def place(scene: Scene, layer, material):
    """Where material lies in this scene: positions (b, 2, n) in the picture, and depths (b, n)."""
    point = material.clone()  # what is rigid on the head is right already
    rays = Pack(layer == HEAD)
    lam, psi, lift = rays.take(material).unbind(1)
    u = direction(*deform(scene.who, scene.how, lam, psi))
    rays.put(point, u * (sample_table(scene, u)[:, 0] * lift)[:, None])
    for eye, side in ((RIGHT_EYE, -1.0), (LEFT_EYE, 1.0)):
        rays = Pack(layer == eye)
        rays.put(point, eyeball(scene, side) + EYEBALL * (scene.look @ rays.take(material)))
    rays = Pack(layer == MOUTH)
    rays.put(point, open_jaw(scene.how, rays.take(material)))
    screen, depth = project(scene, point)

    x, y, z = material.unbind(1)
    center, scale, lag = body_place(scene)
    body = torch.stack((center[:, 0] + scale * (x + lag[:, 0] * body_lean(y)), center[:, 1] - scale * y), 1)
    screen = torch.where((layer == BODY)[:, None], body, screen)
    screen = torch.where((layer == BACKGROUND)[:, None], material[:, :2] + scene.how.pan, screen)
    depth = torch.where(layer == BODY, z * scale, depth)
    return screen, torch.where(layer == BACKGROUND, -10.0, depth)


# ----------------------------------------------------------------------------------------------------------- shade
# Each painter takes the scene and the material of some rays, and returns albedo (b, 3, n), normal (b, 3, n) in world
# coordinates, and gloss (b, n). Under ambient light only the albedo counts, so it depends on the material
# alone; whatever gives form to a face in any light (hollows, creases) is painted into it.


def blend(color, other, weight):
    return ((other - color) * weight[:, None]).add_(color)


def paint_backdrop(scene, m):
    """A wall, a blurred garden, panels or shelves: one formula with four weights."""
    who = scene.who
    x, y = m[:, 0], m[:, 1]
    slope, blobs, panels, shelves = who.backdrop_style.unbind(1)
    one, two, three = who.backdrop.unbind(1)
    far = noise(m[:, :2] * 0.11, who.phase)
    color = blend(one, two, (0.5 + 0.4 * slope * (y + 0.4 * x)).clamp(0, 1))
    color = blend(color, three, 0.9 * blobs.clamp(0, 1.1) * smoothstep(far[:, 2], -1.3, 1.3))
    wall = 2 * smoothstep(torch.sin(x * (5 + 3 * who.phase[:, 0]) + 6 * who.phase[:, 1]), -0.7, 0.7) - 1
    tone = 1 + 0.10 * blobs * far[:, 1] + 0.03 * far[:, 0] + 0.16 * panels * wall
    row = y * (1.0 + 0.5 * who.phase[:, 1]) + who.phase[:, 0]
    books = noise(torch.stack((x * 0.16, row.floor() * 0.37), 1), who.phase)
    spines = 0.78 + 0.44 * smoothstep(books[:, :1], -1, 1) + books[:, 1:2] * vector(0.10, -0.02, -0.08, like=m)
    spines = spines * (1 - 0.4 * bump((row - row.round()) / 0.06))[:, None]
    color = color * tone[:, None] * (1 + shelves[:, None] * (spines - 1))
    return color, None, None  # it is lit evenly, whatever the light


def neckline(who, m):
    """Height above the clothes' edge, negative on cloth."""
    side = m[:, 0].abs()
    edge = who.collar - who.neckline * (1 - side / 0.42).clamp(min=0) + 0.35 * smoothstep(side, 0.35, 0.9)
    return m[:, 1] - edge


def paint_body(scene, m):
    """Neck and clothes."""
    who = scene.who
    x, y, z = m.unbind(1)
    side, above = x.abs(), neckline(who, m)
    n = noise(torch.stack((x, 0.55 * y), 1) * 0.5, who.phase)
    shadow = 0.34 * smoothstep(y, -1.35, -1.0) + 0.12 * smoothstep(side, 0.2, 0.5) + 0.22 * bump(above / 0.04)
    skin = who.skin * (1 - vector(1.0, 1.25, 1.3, like=m) * (shadow - 0.02 * n[:, 1])[:, None])
    bands = torch.sin((y - 0.25 * side * side) * 34 + who.phase[:, 0] * 6) + torch.sin(x * 30) * (who.stripes > 0.65)
    cloth = blend(who.cloth, who.cloth2, 0.75 * who.stripes * smoothstep(bands, -0.5, 0.7))
    lapel = side - 0.10 - 0.5 * (y + 2.15).clamp(min=0)
    cloth = blend(cloth, 0.55 * who.cloth2, who.jacket * smoothstep(lapel, -0.01, 0.015))
    seams = 0.22 * bump((above + 0.05) / 0.012) + 0.25 * bump(above / 0.025)
    seams = seams + 0.3 * who.jacket * bump((lapel - 0.15) / 0.02) + 0.25 * smoothstep(side, 0.5, 1.5)
    cloth = cloth * (1 + 0.06 * n[:, 2] + 0.06 * n[:, 1] + 0.04 * n[:, 0] - seams)[:, None]
    worn = smoothstep(-above, -0.008, 0.012)
    half, deep = body_shape(who, y)
    up = 0.55 * smoothstep(-y, 1.05, 1.45) * (1 - smoothstep(-y, 1.75, 2.3))
    normal = unit(torch.stack((x / half**2, up, (z + 0.3) / deep**2), 1))
    return blend(skin, cloth, worn), normal, 0.3 * (1 - worn)


def paint_hair(who, u, fine):
    """Hair with the noise ``fine`` along its strands; ``u`` is the direction from the head's centre."""
    curl = noise(u[:, :2] * 1.1 + u[:, 2:] * 0.5, who.phase)
    straight = 0.45 * fine[:, 0] + 0.55 * fine[:, 1] + 0.4 * fine[:, 2]
    frizz = who.curls.clamp(0, 1) ** 2
    value = torch.lerp(straight, curl[:, 0] * 0.8 + curl[:, 1] * 0.8, frizz)
    gloss = bump((u[:, 1] - 0.72) / 0.2) * (0.10 + 0.05 * value).clamp(min=0) * (1 - 0.6 * frizz)
    color = who.hair * (1 + 0.18 * value)[:, None] + gloss[:, None] * (0.35 + 0.65 * who.hair)
    return color * (0.8 + 0.2 * smoothstep(u[:, 1], -0.6, 0.5))[:, None]


def paint_curtain(scene, m):
    who = scene.who
    center, radii = curtain_frame(who)
    n = (m - center) / radii
    front = dot(n / radii, scene.rotation[:, 2, :, None]) > 0
    strands = torch.stack((torch.atan2(n[:, 0], n[:, 2]) * 1.2, m[:, 1] * 0.16), 1)
    color = paint_hair(who, unit(m), noise(strands, who.phase))
    shadow = torch.where(front, 0.65 + 0.35 * smoothstep(n[:, 0].abs(), 0.45, 0.75), 0.38)  # the inside is dark
    normal = unit(n / radii) * torch.where(front, 1.0, -1.0)[:, None]
    return color * shadow[:, None], scene.rotation @ normal, 0.3 * front.float()


def head_strands(who, u):
    """Strands leave the crown, or the parting, in all directions: angle around it, height towards it."""
    parted = smoothstep(who.drop, 0.05, 0.2)
    pole = torch.stack((who.parting * (0.3 + 0.5 * parted), torch.ones_like(parted), 0.55 * parted - 0.3), 1)
    pole = unit(pole)
    ahead = unit(vector(0.0, 0.0, 1.0, like=u) - pole * pole[:, 2:])
    height = dot(u, pole)
    around = torch.atan2(dot(u, cross(pole, ahead)), dot(u, ahead))
    return torch.stack((around * (1.8 - 0.9 * height), 0.2 * height), 1)


def paint_head(scene, m, seen):
    """Skin and the hair that grows on it, each painted only where it shows."""
    who = scene.who
    lam, psi, _ = m.unbind(1)
    u = direction(lam, psi)
    fine = noise(head_strands(who, u), who.phase)
    above = hair_height(who, u) + 0.016 * fine[:, 0] + 0.016 * fine[:, 1]
    cover = smoothstep(above, -0.025, 0.035)
    color, gloss = torch.zeros_like(m), torch.zeros_like(lam)
    bare = Pack(cover < 1)
    skin, shine = paint_skin(who, bare.take(lam), bare.take(psi))
    shadow = 1 - 0.25 * smoothstep(bare.take(above), -0.12, 0.0) * (who.hairline < 1.2)
    bare.put(color, skin * shadow[:, None])
    bare.put(gloss, shine)
    grown = Pack(cover > 0)
    hair = paint_hair(who, grown.take(u), grown.take(fine))
    hair = hair * (0.72 + 0.28 * smoothstep(grown.take(above), 0.0, 0.2))[:, None]
    grown.put(color, blend(grown.take(color), hair, grown.take(cover)))
    return color, scene.rotation @ unit(sample_table(scene, seen)[:, 1:]), gloss * (1 - cover) + 0.3 * cover


def lip_mask(who, lam, psi):
    """How much of a lip there is, and the psi of the slit and of the upper lip's border."""
    _, _, bottom, slit, _, top, _, _ = mouth_bands(who, None, lam)
    inside = smoothstep(psi, bottom - 0.004, bottom + 0.016) * (1 - smoothstep(psi, top - 0.016, top + 0.004))
    return inside * smoothstep(who.mouth_width * 1.04 - lam.abs(), 0, 0.03), slit, top


def brow_mask(who, lam, psi, brow, rough=0.0):
    """How much of a brow there is around its middle line, the border ``brow`` of the bands."""
    t = (lam.abs() - who.eye_spacing) / who.eye_width
    thick = who.brow_size * (1 - 0.55 * smoothstep(t, 0.1, 1.4)) * smoothstep(t, -1.5, -0.9)
    mask = smoothstep(thick - (psi - brow).abs() + rough, -0.006, 0.022)
    return mask * smoothstep(1.35 - t, 0, 0.4) * smoothstep(t, -1.45, -1.05)


def paint_skin(who, lam, psi):
    """Skin with all that is painted on it: colour and gloss."""
    side, base, age = lam.abs(), who.nose_base, who.age
    coarse = noise(torch.stack((lam, psi), 1) * 0.35, who.phase)
    grain = noise(torch.stack((lam, psi), 1) * 1.1, who.phase)
    eye, wing = sides(who.eye_level, lam), who.nose_width
    t = (side - who.eye_spacing) / who.eye_width
    inside, slit, top = lip_mask(who, lam, psi)
    middle, corner = who.mouth_level, who.mouth_width

    # Hollows, where light hardly ever gets.
    hollow = hills(
        side,
        psi,
        (0.20, 0.22, 0.10, eye + 0.12, 0.14),  # beside the root of the nose
        (0.10, 0.17, 0.06, base * 0.55, 0.16),  # along its flanks
        (0.20, wing + 0.045, 0.035, base + 0.08, 0.08),  # behind its wings
        (0.30, 0, wing * 1.1, base - 0.035, 0.035),  # under it
        (0.16, who.eye_spacing, 0.26, eye + 0.05, 0.17),  # sockets
        (0.07 + 0.16 * age, 0.36, 0.16, eye - 0.15, 0.05),  # bags
        (0.20, 0, 0.19, middle - 0.19, 0.045),  # under the lower lip
        (0.10, 0, 0.035, (base + middle) / 2, 0.08),  # philtrum
        (0.16, corner * 1.12, 0.05, middle, 0.05),  # corners of the mouth
        (0.10, 0.72, 0.18, -0.55, 0.20),  # under the cheekbones
    )
    fold = side - (wing + 0.06 + (base - psi) * 0.62)  # from the wing of the nose past the corner of the mouth
    hollow = hollow + (0.08 + 0.22 * age) * bump(fold / 0.035, (psi - base + 0.13) / 0.13)
    hollow = hollow + 0.35 * smoothstep(-psi, 1.07, 1.5) + 0.18 * smoothstep(side, 0.8, 1.4)
    lines = (torch.sin(psi * 62 + 3 * coarse[:, 2]) - 0.3).clamp(min=0) * bump(lam / 0.45, (psi - 0.62) / 0.16)
    hollow = hollow + 0.10 * age * lines
    ridge = (1, 0, 0.09, -0.25, 0.22), (1, 0.5, 0.18, -0.18, 0.13), (1, 0, 0.35, 0.55, 0.2), (0.7, 0, 0.15, -1.06, 0.1)
    raised = hills(side, psi, *ridge)
    tone = 1 - hollow + 0.06 * raised + who.mottle * (0.018 * coarse[:, 1] + 0.015 * grain[:, 0])
    red = who.blush * hills(side, psi, (1, 0.52, 0.2, -0.28, 0.16), (0.6, 0, 0.12, base + 0.1, 0.1))
    red = red * (1 + 0.25 * coarse[:, 1]) + 0.35 * hollow.clamp(0, 0.6)  # shade on skin turns red, not grey
    color = who.skin * tone[:, None].clamp(0.1, 1.25)
    color = color + vector(0.02, -0.12, -0.11, like=lam) * (red * (0.3 + who.skin[:, 0]))[:, None]
    spots = who.freckles * smoothstep(grain[:, 0] + 0.4 * grain[:, 1], 0.9, 1.6) * bump(lam / 0.7, (psi + 0.15) / 0.25)
    color = color * (1 - vector(0.2, 0.32, 0.4, like=lam) * spots[:, None])

    # Lids: shadow, the fold, lashes.
    _, edge, _, lash, crease, brow, _ = eye_bands(who, None, lam)
    near = bump(t / 0.95)
    lid = smoothstep(psi, edge - 0.005, edge + 0.01) * (1 - smoothstep(psi, crease - 0.01, crease + 0.03)) * near
    shadow = blend(0.88 * color, 0.5 * who.lips + 0.1, 0.4 * who.makeup)
    color = blend(color, shadow, lid * (0.5 + 0.5 * who.makeup) * (t.abs() < 1.3))
    color = color * (1 - 0.45 * near * bump((psi - crease) / 0.016))[:, None]
    upper = (1 - smoothstep(psi, lash - 0.006, lash + 0.012)) * smoothstep(psi, edge - 0.004, edge)
    lower = bump((psi - edge + 0.012) / 0.014) * (psi < edge) * (0.22 + 0.33 * who.makeup)
    dark = vector(0.10, 0.06, 0.05, like=lam)
    color = blend(color, dark, smoothstep(1.12 - t.abs(), 0, 0.12) * (0.92 * upper + lower))

    # Lips, the dark line between them, nostrils.
    full = bump((psi - slit + 0.55 * who.lower_lip) / 0.04) * bump(lam / 0.12)
    lips = who.lips * (0.92 - 0.16 * (psi > slit) + 0.16 * full + 0.03 * grain[:, 0])[:, None]
    color = blend(color, lips, 0.9 * inside)
    line = 0.62 * bump((psi - slit) / 0.016) * smoothstep(1.1 * corner - side, 0, 0.06)
    nostril = 0.72 * bump((side - 0.55 * wing) / 0.040, (psi - base + 0.005) / 0.024)
    color = color * ((1 - line) * (1 - nostril))[:, None]

    # Brows and beard: hairs that lie across the skin.
    hairs = noise(torch.stack((lam * 0.5 + psi * 0.4, psi * 1.2 - lam * 0.6), 1), who.phase)
    brow = brow_mask(who, lam, psi, brow, 0.010 * hairs[:, 0])
    color = blend(color, who.brow_color * (1 + 0.12 * hairs[:, :1]), 0.88 * brow)
    full = smoothstep(who.beard_shape, 0.15, 0.3)
    border = -0.86 + 0.74 * smoothstep(side, 0.35, 1.0) - psi + 0.02 * hairs[:, 0]
    beard = smoothstep(border, -0.03, 0.12) * torch.maximum(full, bump(lam / 0.3))
    around = 0.9 * full * bump((side - corner * 1.2) / 0.06) * smoothstep(-psi, -base, -slit)
    lip = bump(0.6 * lam / corner) * smoothstep(psi, top, top + 0.03) * (1 - smoothstep(psi, base - 0.08, base - 0.02))
    beard = torch.maximum(torch.maximum(beard, around) * who.beard, lip * who.moustache * who.beard.clamp(min=0.25))
    beard = beard * (1 - inside) * (1 - 0.5 * bump(lam / 0.12, (psi - slit + 0.13) / 0.03))
    color = blend(color, who.brow_color * (1 + 0.18 * hairs[:, :1]), beard * (0.78 + 0.14 * hairs[:, 0]).clamp(0, 1))
    return color, (0.5 + 0.5 * raised.clamp(0, 1) + inside - 0.6 * beard).clamp(min=0)


def paint_eye(scene, m):
    """Sclera, iris and pupil in the eyeball's own frame."""
    who = scene.who
    x, y, _ = m.unbind(1)
    out = (x * x + y * y).sqrt()
    part = out / who.iris_size
    n = noise(torch.stack((torch.atan2(y, x) / math.pi, 0.3 * out), 1), who.phase)
    color = vector(0.92, 0.89, 0.87, like=m) * (1 - 0.40 * smoothstep(out, 0.38, 0.9))[:, None]
    color = color - vector(0.0, 0.06, 0.05, like=m) * smoothstep(out, 0.5, 0.9)[:, None]
    iris = who.iris * (0.95 + 0.16 * n[:, 1] + 0.35 * smoothstep(-y, -0.05, 0.3) - 0.15 * part)[:, None]
    iris = iris * (1 - 0.55 * smoothstep(part, 0.74, 1.0))[:, None]
    color = blend(color, iris.clamp(0, 1), 1 - smoothstep(part, 0.93, 1.09))
    color = blend(color, vector(0.03, 0.03, 0.03, like=m), 1 - smoothstep(part, 0.40, 0.55))
    spark = hills(x, y, (0.9, -0.11, 0.07, 0.12, 0.07), (0.3, 0.11, 0.06, -0.11, 0.06))
    color = blend(color, vector(1.0, 1.0, 1.0, like=m), spark.clamp(0, 1))
    normal = scene.look @ m
    lid = (1 - scene.how.ambient) * 0.6 * smoothstep(normal[:, 1], -0.05, 0.4)  # its shadow; not under ambient light
    return color * (1 - lid)[:, None], scene.rotation @ normal, torch.full_like(x, 1.5)


def paint_mouth(scene, m):
    """The jaw's teeth and gums, the tongue and the dark behind it."""
    x, y = m[:, 0], m[:, 1] - scene.gum[:, 1]
    side = smoothstep(x.abs(), 0.05, 0.30)
    flesh = vector(0.62, 0.28, 0.29, like=m) * (1 - 0.5 * side)[:, None]
    tongue = smoothstep(bump(x / 0.17, (y + 0.02) / 0.10), 0.25, 0.8)
    color = blend(vector(0.16, 0.05, 0.05, like=m), flesh, 0.85 * tongue)
    color = blend(color, 0.85 * enamel(x), 1 - smoothstep(y, -0.075, -0.055))
    color = blend(color, 0.8 * flesh, 1 - smoothstep(y, -0.16, -0.13))
    return color, scene.rotation @ unit(m), torch.full_like(x, 0.5)


def paint_teeth(scene, m):
    """The teeth and gums of the skull."""
    x, y = m[:, 0], m[:, 1] - scene.gum[:, 1]
    color = blend(enamel(x), vector(0.60, 0.27, 0.28, like=m), smoothstep(y, 0.05, 0.08))
    color = color * (1 - 0.2 * smoothstep(y, -0.01, 0.05))[:, None]
    return color, scene.rotation @ unit(m), torch.full_like(x, 0.5)


def enamel(x):
    gaps = 0.12 * bump(torch.sin(x * (math.pi / 0.075)) / 0.22)
    return vector(0.93, 0.90, 0.85, like=x) * (1 - 0.45 * smoothstep(x.abs(), 0.05, 0.30) - gaps)[:, None]


def paint_ear(scene, m):
    center, matrix = ear_frame(scene.who)
    flip = torch.cat((m[:, :1].sign(), torch.ones_like(m[:, 1:])), 1)
    q = matrix @ (m * flip - center)
    rim = (q[:, 1] ** 2 + q[:, 2] ** 2).sqrt()
    shell = 0.06 + 0.38 * bump((rim - 0.48) / 0.22) + 0.15 * bump((q[:, 1] + 0.1) / 0.3, (q[:, 2] - 0.3) / 0.3)
    color = scene.who.skin * (1 - vector(0.8, 1.15, 1.15, like=m) * shell[:, None])
    normal = unit((matrix.transpose(1, 2) @ q) * flip)
    return color, scene.rotation @ normal, torch.full_like(rim, 0.4)


def paint_glasses(scene, m):
    normal = unit(m * vector(1.0, 0.0, 1.0, like=m))
    return scene.who.glasses_color.expand_as(m), scene.rotation @ normal, torch.ones_like(m[:, 0])


# The first and the last of the layers that each of them paints.
PAINTERS = {
    (BACKGROUND, BACKGROUND): paint_backdrop, (BODY, BODY): paint_body, (CURTAIN, CURTAIN): paint_curtain,
    (HEAD, HEAD): paint_head, (RIGHT_EYE, LEFT_EYE): paint_eye, (TEETH, TEETH): paint_teeth,
    (MOUTH, MOUTH): paint_mouth, (EAR, EAR): paint_ear, (GLASSES, GLASSES): paint_glasses,
}  # fmt: skip


def shade(scene: Scene, hits: Hits):
    """The colours (b, 3, n) of what the rays have hit."""
    image = torch.zeros_like(hits.material)
    light, directed = scene.how.light, 1 - scene.how.ambient
    half = unit(light + vector(0.0, 0.0, 1.0, like=light))  # between the light and the viewer
    small = Pack(hits.layer > HEAD)
    there = small.take(hits.layer)  # eyes, mouths, ears and glasses are looked for among these few
    for (first, last), painter in PAINTERS.items():
        rays = Pack(hits.layer == first) if last <= HEAD else small.only((there >= first) & (there <= last))[0]
        if rays.empty:
            continue
        inputs = (hits.material, hits.seen) if first == HEAD else (hits.material,)
        color, normal, gloss = painter(scene, *(rays.take(value) for value in inputs))
        if normal is not None:
            diffuse = dot(normal, light).add_(0.25).clamp_(min=0).mul_(1.16)
            mirror = (0.22 * gloss).mul_(dot(normal, half).clamp_(min=0).pow_(20))
            color = color * diffuse.sub_(1).mul_(directed).add_(1)[:, None]
            color.add_(mirror.mul_(directed)[:, None])
        rays.put(image, color)
    return image.clamp(0, 1)


# ------------------------------------------------------------------------------------------------ public functions


def check(faces: Faces, size: int | None):
    if size is not None and (not isinstance(size, int) or size < 8):
        raise ValueError(f"size is {size!r}; expected a whole number of at least 8 pixels")
    if len(faces) == 0:
        raise ValueError("the batch of faces is empty; expected at least one face")


def rays_of(size, faces):
    return identity_grid(size, size, device=faces.device).flatten(1).expand(len(faces), -1, -1)


def chunked(function, rays, *batches):
    """Apply ``function``, which casts ``rays`` rays, to a few faces at a time: it keeps caches warm and memory small.

    Faces with long hair or glasses go together, so that the others need not wait for them.
    """
    step = max(1, (2**18 if batches[0].device.type == "cpu" else 2**22) // max(rays, TABLE * TABLE))
    order = (2 * batches[0].identity.long + batches[0].identity.glasses).argsort(stable=True)
    with torch.autocast(batches[0].device.type, enabled=False):  # these are all positions
        parts = [function(*(batch[some] for batch in batches)) for some in order.split(step)]
    back = order.argsort()
    return tuple(torch.cat(x)[back] for x in zip(*parts)) if isinstance(parts[0], tuple) else torch.cat(parts)[back]


@torch.no_grad()
def render(faces: Faces, size: int, *, supersample: int = 2) -> Float[Tensor, "b 3 {size} {size}"]:
    """Pictures of the faces; a pixel is the average of ``supersample``² rays."""
    check(faces, size)
    if supersample < 1:
        raise ValueError(f"supersample is {supersample}; expected 1, 2, ...")

    def draw(faces):
        scene = prepare(faces)
        image = shade(scene, trace(scene, rays_of(size * supersample, faces)))
        return F.avg_pool2d(image.unflatten(2, (size * supersample, -1)), supersample)

    return chunked(draw, (size * supersample) ** 2, faces)


@torch.no_grad()
def flow_between(
    source: Faces, driving: Faces, size: int
) -> tuple[Float[Tensor, "b 2 {size} {size}"], Float[Tensor, "b 1 {size} {size}"]]:
    """The exact backward flow on the driving grid, and 1 where the source shows the same material, else 0.

    Source and driving are the same people in different states; a source of one face serves any number of driving ones.
    """
    check(source, size)
    if len(source) == 1 < len(driving):
        source = source.map(lambda value: value.expand(len(driving), *value.shape[1:]))
    if len(source) != len(driving):
        raise ValueError(f"{len(source)} source faces for {len(driving)} driving ones; expected as many, or one source")
    pairs = [(getattr(source.identity, part.name), getattr(driving.identity, part.name)) for part in fields(Identity)]
    if not all(torch.equal(a, b) for a, b in pairs):
        raise ValueError("source and driving are different people; expected the same identities in the same order")

    def flow(source, driving):
        screen = rays_of(size, driving)
        hits = trace(prepare(driving), screen)
        scene = prepare(source)
        where, depth = place(scene, hits.layer, hits.material)
        where = torch.where((where - screen).abs() < 4e-6, screen, where)  # so that no motion is exactly none
        first = trace(scene, where)
        visible = (first.layer == hits.layer) & ((first.depth - depth).abs() < 0.03) & (where.abs() < 1).all(1)
        return (where - screen).unflatten(2, (size, size)), visible.float().unflatten(1, (1, size, size))

    return chunked(flow, size**2, source, driving)


@torch.no_grad()
def parsing(faces: Faces, size: int) -> Int[Tensor, "b {size} {size}"]:
    """What the centre of each pixel shows, as an index into `PARTS`."""
    check(faces, size)
    part = {name: i for i, name in enumerate(PARTS)}
    by_layer = "background", "clothes", "hair", "skin", "eyes", "eyes", "mouth", "mouth", "ears", "glasses"

    def label(faces):
        scene = prepare(faces)
        who, hits = scene.who, trace(scene, rays_of(size, faces))
        labels = torch.tensor([part[name] for name in by_layer], device=faces.device)[hits.layer.long()]
        labels = labels.masked_fill((hits.layer == BODY) & (neckline(who, hits.material) > 0), part["neck"])
        rays = Pack(hits.layer == HEAD)
        lam, psi, _ = rays.take(hits.material).unbind(1)
        lip, slit, _ = lip_mask(who, lam, psi)
        wing = 0.07 + (who.nose_width - 0.02) * smoothstep(-psi, -0.1, -0.1 - who.nose_base)
        nose = (lam.abs() < wing) & (psi < 0.06) & (psi > who.nose_base - 0.03)
        skin = torch.where(nose, part["nose"], part["skin"])
        skin = torch.where(lip > 0.5, torch.where(psi > slit, part["upper lip"], part["lower lip"]), skin)
        skin = skin.masked_fill(brow_mask(who, lam, psi, eye_bands(who, None, lam)[5]) > 0.5, part["brows"])
        rays.put(labels, skin.masked_fill(hair_height(who, direction(lam, psi)) > 0, part["hair"]))
        return labels.unflatten(1, (size, size))

    return chunked(label, size**2, faces)


def landmark_angles(who):
    """Material angles (b, 2, 72) of the landmarks on the skin, in their final order but without the pupils."""
    lips, lids = who.mouth_width, who.eye_width

    def points(lam, psi):
        return torch.stack(torch.broadcast_tensors(lam + 0 * who.size, psi + 0 * lam), 1)

    def on_lips(steps, border, nudge=0.0):
        lam = lips * torch.tensor(steps, device=lips.device)
        return points(lam, mouth_bands(who, None, lam)[border] + nudge)

    def on_lid(side, steps, border, nudge=0.0):
        lam = side * (who.eye_spacing + lids * torch.tensor(steps, device=lids.device))
        return points(lam, eye_bands(who, None, lam)[border] + nudge)

    # The jaw: an arc around the face from the right ear over the chin to the left.
    turn = torch.linspace(-1.62, 1.62, 17, device=lips.device)
    forward = 0.12 + 0.48 * turn.cos().clamp(min=0) ** 1.5
    jaw = torch.stack((who.width * turn.sin(), -1.02 * who.bottom * turn.cos(), forward.expand(len(lips), -1)), 1)
    down = torch.linspace(0, 1, 4, device=lips.device)
    across = torch.linspace(-1, 1, 5, device=lips.device)
    brow, high, low = (0.9, 0.5, 0.1, -0.4, -0.85), 2e-5, -1e-5  # on the upper and on the lower side of a slit
    parts = [torch.stack(angles(jaw), 1), on_lid(-1, brow, 5), on_lid(1, brow[::-1], 5)]
    parts += [points(0 * down, 0.09 + (who.nose_base + 0.01) * down), points(who.nose_width * across, who.nose_base)]
    for side, (a, b, c, d) in ((-1, (1.0, 0.4, -0.4, -1.0)), (1, (-1.0, -0.4, 0.4, 1.0))):
        parts += [on_lid(side, (a,), 1), on_lid(side, (b, c), 2, high)]
        parts += [on_lid(side, (d,), 1), on_lid(side, (c, b), 1, low)]
    outer, inner = (-0.62, -0.2, 0.0, 0.2, 0.62), (-0.5, 0.0, 0.5)
    parts += [on_lips((-1.0,), 3), on_lips(outer, 5), on_lips((1.0,), 3), on_lips(outer[::-1], 2)]
    parts += [on_lips((-0.9,), 3), on_lips(inner, 4, high), on_lips((0.9,), 3), on_lips(inner[::-1], 3, low)]
    for side in (-1, 1):
        parts += [on_lid(side, (0.0,), 2, high), on_lid(side, (0.0,), 1, low)]
    return torch.cat(parts, 2)


def place_landmarks(scene):
    """Positions (b, 2, 74) in the picture and depths (b, 74)."""
    lam, psi = landmark_angles(scene.who).unbind(1)
    u = direction(lam, psi)
    bare, hair = skull(scene.who, u) + face(scene.who, lam, psi), hair_volume(scene.who, u)
    skin = torch.stack((lam, psi, bare / (bare + hair)), 1)  # temples lie under the hair
    pupils = vector(0.0, 0.0, 1.0, like=u).expand(len(u), -1, 2)
    layer = torch.full((len(u), 74), HEAD, dtype=torch.uint8, device=u.device)
    layer[:, 68], layer[:, 69] = RIGHT_EYE, LEFT_EYE
    return place(scene, layer, torch.cat((skin[..., :68], pupils, skin[..., 68:]), 2))


@torch.no_grad()
def landmarks(faces: Faces, size: int | None = None) -> Float[Tensor, "b 74 2"]:
    """The 74 landmarks in pixels of a picture of ``size``, pixel centres at integers; normalised without a ``size``.

    68 iBUG points, pupils (right, left), eyelid midpoints (right upper, right lower, left upper, left lower). They are
    material points; a hidden one is where it would show if nothing were in the way.
    """
    check(faces, size)

    points = chunked(lambda faces: place_landmarks(prepare(faces))[0].transpose(1, 2), 74, faces)
    return points if size is None else to_pixels(points, (size, size))
