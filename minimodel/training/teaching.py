"""Rendered faces as teachers: true gates that the generator uses until the model's own are good enough, holes for the
generator to paint, and the weight of each pixel in the losses of flow and
visibility.

The papers learn from pictures alone, and so does every training here unless ``--loss.flow`` or ``--loss.visibility``
asks for the truth.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from minimodel.landmarks import LANDMARKS
from minimodel.motion import Motion
from minimodel.warping import identity_grid, resize_flow, sample, size_of

SMALLEST_HOLE = 0.06  # radius in normalised units
SMALLEST_CLOSE_UP = 32  # pixels: the perceptual loss compares nothing below 16
FIRST_OF_EYES = 36  # of the 74 landmarks; eyes, mouth, pupils and lids follow it
# How far lids and lips are apart, and where pupils are between the corners of the eyes: differences of the means of two
# sets of landmarks.
RELATIONS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    *(((70,), (71,)), ((72,), (73,)), ((62,), (66,)), ((68,), (36, 39)), ((69,), (42, 45))),
)
NEAR = 0.05  # how far a landmark's place reaches (normalised): at 64 pixels the standard deviation is 1.6
CLOSED = 1e-3  # how far a gate that the truth shuts stays open: a logit must be finite


@dataclass
class Teaching:
    """How truth is used beside the losses that ask for it."""

    forced_until: float = 0.5
    """Share of the run in which all of the generator's gates are true visibility. Gates that it learns behind have to
    be right from the first step: behind open ones nothing is painted, and so nothing learns to paint."""
    own_from: float = 0.8
    """Share of the run from which all gates are the model's own. In between more and more pairs have them."""
    holes: float = 0.4
    """Chance of each of three holes a pair, which shut gates that truth leaves open: places to paint where the answer
    is known. Only as long as truth makes the gates."""
    largest_hole: float = 0.3
    """Radius of the largest hole, in halves of the picture's side."""
    focus: float = 0.5
    """Share of the losses of flow and visibility for the places of the landmarks of eyes and mouth. Together they are a
    few hundredths of the picture, and what moves in them is small."""

    def own_share(self, progress: float) -> float:
        """The share of pairs with the model's own gates when a share ``progress`` of the run is done."""
        if self.own_from <= self.forced_until:
            return float(progress >= self.forced_until)
        return min(max((progress - self.forced_until) / (self.own_from - self.forced_until), 0.0), 1.0)


def hole_mask(
    numbers: Float[Tensor, "b n 6"], size: tuple[int, int], *, chance: float, largest: float
) -> Float[Tensor, "b 1 h w"]:
    """Draw a mask that is 0 within random ellipses and 1 around them. Each of the ``n`` holes takes six numbers,
    uniform in [0, 1): position, size, roundness, angle, and whether it exists, which it does with probability
    ``chance``. ``largest`` is the largest radius, normalised."""
    x, y, length, roundness, turn, there = numbers.unbind(-1)
    grid = identity_grid(*size, device=numbers.device, dtype=numbers.dtype)
    across = grid[0] - (1.8 * x - 0.9)[..., None, None]
    down = grid[1] - (1.8 * y - 0.9)[..., None, None]
    cos, sin = (function(torch.pi * turn)[..., None, None] for function in (torch.cos, torch.sin))
    radius = (SMALLEST_HOLE + (largest - SMALLEST_HOLE) * length.square())[..., None, None]
    along, beside = cos * across + sin * down, cos * down - sin * across
    narrow = radius * (0.25 + 0.75 * roundness)[..., None, None]
    within = (along / radius).square() + (beside / narrow).square() < 1
    return 1 - (within & (there < chance)[..., None, None]).any(1, keepdim=True).to(numbers)


def lent_gates(
    occlusions: list[Float[Tensor, "b 1 _ _"]],
    shown: Float[Tensor, "b 1 h w"],
    own: Bool[Tensor, "b"],
    learning: Bool[Tensor, "b"],
) -> list[Tensor]:
    """The gates (logits) that the generator uses in place of the model's: for pairs in ``own`` the model's
    ``occlusions``, for the others ``shown``, averaged to each size. The gradient of the picture's losses reaches the
    model's gates for pairs in ``learning`` alone."""
    own, learning = (each.view(-1, 1, 1, 1) for each in (own, learning))
    return [
        torch.where(
            own,
            torch.where(learning, found, found.detach()),
            torch.logit(resize_flow(shown, size_of(found)), eps=CLOSED),
        )
        for found in occlusions
    ]


def pixel_weight(
    counted: Float[Tensor, "b 1 h w"], landmarks: Float[Tensor, "b 74 2"], focus: float
) -> Float[Tensor, "b 1 h w"]:
    """The weight of each pixel in the losses of flow and visibility; all weights sum to 1. Only pixels that are 1 in
    ``counted`` count. A share ``focus`` goes to the places of the landmarks of eyes and mouth, the rest is spread
    evenly. ``landmarks`` are normalised."""
    height, width = size_of(counted)
    grid = identity_grid(height, width, device=counted.device)
    px, py = landmarks[:, FIRST_OF_EYES:, :, None].unbind(2)
    # A Gaussian is a product of one along x and one along y, so no map of each landmark is needed.
    along, down = (
        torch.exp(-(places - p).square() / (2 * NEAR**2)) for places, p in ((grid[0, 0], px), (grid[1, :, 0], py))
    )
    near = torch.einsum("bny,bnx->byx", down, along)[:, None]
    everywhere, there = (area / area.sum().clamp_min(1e-6) for area in (counted, counted * near))
    return (1 - focus) * everywhere + focus * there


def close_ups(pictures: Float[Tensor, "b 3 h w"], landmarks: Float[Tensor, "b 74 2"]) -> Float[Tensor, "n 3 side side"]:
    """Upright squares around both eyes and the mouth, each sampled at a quarter of the picture's height.

    Together they are a few hundredths of the picture, and most of what a face does is in them. The squares' sides are
    shares of the distance of the outer corners of the eyes. ``landmarks`` are normalised; n is 3 b.
    """
    side = max(SMALLEST_CLOSE_UP, pictures.shape[-2] // 4)
    across = (landmarks[:, 45] - landmarks[:, 36]).norm(dim=-1).clamp_min(0.05)
    grid = identity_grid(side, side, device=pictures.device, dtype=pictures.dtype).movedim(0, -1)
    found = []
    for first, last, share in ((36, 42, 0.7), (42, 48, 0.7), (48, 68, 1.0)):
        centre = landmarks[:, first:last].mean(1)
        places = centre[:, None, None] + grid * (share / 2 * across)[:, None, None, None]
        found.append(sample(pictures, places.to(pictures)))
    return torch.cat(found)


class LandmarkReader(nn.Module):
    """Reads the landmarks of a frame from the points and matrices that a prior found in it.

    Only training uses it: what can't be read from the points, such as whether the lids are shut, no flow that is
    computed from them can follow. ``inputs`` is the count of `motion_numbers`.
    """

    def __init__(self, inputs: int, *, width: int = 256):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 2 * LANDMARKS))

    def forward(self, motion: Motion) -> Float[Tensor, "b 74 2"]:
        return self.layers(motion_numbers(motion)).unflatten(1, (LANDMARKS, 2))


def motion_numbers(motion: Motion) -> Float[Tensor, "b n"]:
    """All that is known of a frame's motion, in one row: points, and matrices if there are any."""
    found = motion.points.flatten(1)
    return found if motion.affine is None else torch.cat([found, motion.affine.flatten(1)], dim=1)


def relations(landmarks: Float[Tensor, "b 74 2"]) -> Float[Tensor, "b n 2"]:
    """How `RELATIONS` differ: vectors from the mean of one set of landmarks to that of another."""
    return torch.stack([landmarks[:, a].mean(1) - landmarks[:, b].mean(1) for a, b in RELATIONS], dim=1)
