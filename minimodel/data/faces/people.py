"""Who is drawn: `Identity` is what stays the same in a clip, `sample_identities` invents people.

All that is random comes from `Draw`, here and in `states`: the order of its draws decides which people a seed means.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from minimodel.errors import MinimodelError

Seed = int | torch.Generator
Scalar = Float[Tensor, " b"]
Pair = Float[Tensor, "b 2"]  # (right, left), or (x, y)
Color = Float[Tensor, "b 3"]
Number = int | float | Tensor
SomeBatch = TypeVar("SomeBatch", bound="Batch")


@dataclass(frozen=True)
class Batch:
    """What `Identity`, `State` and `Faces` have in common: their fields are tensors with the batch first.

    It has a length, and an index or a slice takes faces out of it; one face is a batch of one.
    """

    def map(self: SomeBatch, function: Callable[[Tensor], Tensor]) -> SomeBatch:
        """The batch of what ``function`` makes of each tensor."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return type(self)(**{k: v.map(function) if isinstance(v, Batch) else function(v) for k, v in values.items()})

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self: SomeBatch, index: int | slice | list[int] | Tensor) -> SomeBatch:
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"face {index} of a batch of {len(self)}")
            index = slice(index % len(self), index % len(self) + 1)
        return self.map(lambda value: value[index])

    def to(self: SomeBatch, device: torch.device | str) -> SomeBatch:
        """The same batch on ``device``."""
        return self.map(lambda value: value.to(device))

    def __add__(self: SomeBatch, other: SomeBatch) -> SomeBatch:
        """Both batches as one, the faces of ``other`` last."""
        pairs = {part.name: (getattr(self, part.name), getattr(other, part.name)) for part in fields(self)}
        return type(self)(**{k: a + b if isinstance(a, Batch) else torch.cat([a, b]) for k, (a, b) in pairs.items()})

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return getattr(self, fields(self)[0].name).device


def trait(mean: float, std: float, woman: float = 0.0, child: float = 0.0) -> Any:
    """Declare a number about a person that is drawn from a normal distribution.

    ``mean`` and ``std`` are its mean and its standard deviation (cut off at two). ``woman`` and ``child`` are added
    for women and for children.
    """
    return field(metadata={"trait": (mean, std, woman, child)})


@dataclass(frozen=True, kw_only=True)
class Identity(Batch):
    """What stays the same in a clip.

    Sizes are in head units (half a head's height), angles in radians, colours RGB in [0, 1]. ``lam`` and ``psi`` are
    the angles of `expressions`.
    """

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


class Draw:
    """Draws random values for ``count`` people at once, on the CPU: a seed means the same faces on any device."""

    def __init__(self, count: int, seed: Seed):
        if count < 1:
            raise MinimodelError(f"count is {count}; expected at least 1")
        self.count = count
        self.generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        if self.generator.device.type != "cpu":
            raise MinimodelError(f"the generator is on {self.generator.device}; expected one on the CPU")

    def uniform(self, low: Number = 0.0, high: Number = 1.0, *shape: int) -> Tensor:
        """Values between ``low`` and ``high``, (count, *shape)."""
        return low + (high - low) * torch.rand(self.count, *shape, generator=self.generator)

    def normal(self, mean: Number, std: Number, *shape: int) -> Tensor:
        """Values of a normal distribution cut off at two standard deviations, (count, *shape)."""
        return mean + std * torch.randn(self.count, *shape, generator=self.generator).clamp(-2, 2)

    def chance(self, probability: float) -> Tensor:
        """1 with this probability, else 0, (count,)."""
        return (self.uniform() < probability).float()

    def pick(self, rows: Tensor | Iterable, weights: Tensor | Sequence[float] | None = None) -> Tensor:
        """One of the ``rows`` for each of ``count``; ``weights`` (rows,) or (count, rows) say how often, else equal."""
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


def along(colors: Sequence[tuple[float, float, float]], position: Tensor) -> Tensor:
    """The colours (b, 3) at fractional positions (b,) along a list of colours."""
    rgb = torch.tensor(colors)
    low = position.floor().long().clamp(0, len(rgb) - 2)
    return torch.lerp(rgb[low], rgb[low + 1], (position - low)[:, None])


def sample_identities(count: int, seed: Seed) -> Identity:
    """Draw random people.

    A few hidden traits (tone, age, woman, child) tie the rest together and keep them plausible.

    Args:
        count: how many people, at least 1.
        seed: a number, or a generator on the CPU, which moves on.
    """
    draw = Draw(count, seed)
    normal, uniform, chance = draw.normal, draw.uniform, draw.chance
    woman, child = chance(0.5), chance(0.08)
    man = (1 - woman) * (1 - child)
    age = uniform() ** 1.5 * (1 - child)
    tone = uniform(0, len(SKIN_TONES) - 1)
    dark = (tone > 3.2).float()  # dark skin rarely comes with fair hair and eyes
    old = chance(0.8) * ((age - 0.55) * 3).clamp(0, 1)
    x: dict[str, Tensor] = {}
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
