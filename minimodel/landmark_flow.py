"""The flow that follows from landmarks by arithmetic alone: an affine map of the whole head, and what lids, lips, brows
and pupils do beyond it. Nothing here is learnt, so the flow is right from the first step of a training.

No paper has this flow; a learnt one from the same landmarks is S2D's, see `minimodel.landmark_motion`.

Notebook: ``notebooks/A4_live_on_your_own_photo.ipynb``.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from minimodel.landmarks import LANDMARKS
from minimodel.warping import full_precision, identity_grid

# How far a landmark's own movement reaches, normalised, level by level: from the jaw's to that of a lid.
REACHES = (0.3, 0.15, 0.075, 0.035)
HALF = 0.1  # where the Gaussians of all landmarks sum to it, half of the movement is left
STEADY = 1e-6  # of a variance: keeps the affine map finite for landmarks in one place
SOFT = 0.008  # half the width of a slit's edge, normalised: a pixel of 256
INSET = 0.012  # from the edge of an opening to where the eye alone is seen


@dataclass(frozen=True)
class Slit:
    """An opening of the face that can shut: its two ``corners``, and the landmarks ``above`` and ``below`` it. Of an
    eye also the ``pupil``, which moves behind the opening.

    Where it shuts, landmarks of both sides come to lie in one place and move differently. So each side's landmarks
    move their own side alone.
    """

    corners: tuple[int, int]
    above: tuple[int, ...]
    below: tuple[int, ...]
    edges: tuple[tuple[int, ...], tuple[int, ...]]  # those of ``above`` and ``below`` that lie on the opening's edge
    pupil: int | None = None


SLITS = (
    Slit((36, 39), (37, 38, 70), (40, 41, 71), ((37, 38, 70), (40, 41, 71)), pupil=68),
    Slit((42, 45), (43, 44, 72), (46, 47, 73), ((43, 44, 72), (46, 47, 73)), pupil=69),
    Slit((60, 64), (*range(49, 54), 61, 62, 63), (*range(55, 60), 65, 66, 67), ((61, 62, 63), (65, 66, 67))),
)
_SIDES = [side for slit in SLITS for side in (slit.above, slit.below)]
_PUPILS = [slit.pupil for slit in SLITS if slit.pupil is not None]
_REST = [k for k in range(LANDMARKS) if k not in _PUPILS and not any(k in side for side in _SIDES)]


@full_precision
def head_and_face_flows(
    source: Float[Tensor, "b 74 2"], driving: Float[Tensor, "b 74 2"], size: tuple[int, int]
) -> tuple[Float[Tensor, "b 2 h w"], Float[Tensor, "b 2 h w"]]:
    """The flow of the head as a whole, and that of the face with all that moves in it; normalised.

    The first is the affine map that brings the driving landmarks closest to the source's. The second adds what this
    map leaves at each landmark, by weighted means of Gaussians of ever smaller `REACHES`: each level adds what the
    levels before it have left. Far from all landmarks nothing is added. Landmarks above and below one of the `SLITS`
    move their own side of it, and within the opening of an eye everything moves as its pupil does, as far as the source
    shows the eye. Landmarks are
    normalised; ``size`` = (h, w).

    >>> head, face = head_and_face_flows(source_landmarks, driving_landmarks, (64, 64))
    """
    centre, aim = driving.mean(1, keepdim=True), source.mean(1, keepdim=True)
    around, wanted = driving - centre, source - aim
    steady = STEADY * torch.eye(2, device=source.device, dtype=source.dtype)
    # X of X (around^T around) = wanted^T around, steadier than the inverse.
    spread = around.mT @ around / around.shape[1] + steady
    matrix = torch.linalg.solve(spread, wanted.mT @ around / around.shape[1] + steady, left=False)
    grid = identity_grid(*size, device=source.device, dtype=source.dtype)
    offset = grid - centre[:, 0, :, None, None]
    head = torch.einsum("bij, bjhw -> bihw", matrix, offset) + aim[:, 0, :, None, None] - grid
    left = wanted - around @ matrix.mT  # (b, 74, 2)
    behind = left[:, _PUPILS]
    places = grid.flatten(1).T.expand(len(driving), -1, -1)  # (b, h * w, 2)
    sides, openings = _slits(places, driving)
    on_landmarks = _slits(driving, driving)[0]
    for index, side in enumerate(_SIDES):  # on a shut lid the landmarks of both sides lie on the line between them
        on_landmarks[:, list(side), index], on_landmarks[:, list(side), index ^ 1] = 1, 0
    face = head
    for reach in REACHES:
        # A Gaussian is a product of one along x and one along y, so no map of each landmark is needed.
        along, down = (_near(axis, driving[..., i], reach) for i, axis in enumerate((grid[0, 0], grid[1, :, 0])))
        counted = torch.cat([left, torch.ones_like(left[..., :1])], dim=-1)
        sums = _sums(down, counted, along, _REST)
        for index, side in enumerate(_SIDES):
            shown = sides[..., index].unflatten(1, size)[:, None]
            sums = sums + shown * _sums(down, counted, along, list(side))
        face = face + sums[:, :2] / (sums[:, 2:] + HALF)
        weights = _near(driving[..., 0], driving[..., 0], reach) * _near(driving[..., 1], driving[..., 1], reach)
        weights = weights * _seen(on_landmarks)
        left = left - weights @ left / (weights.sum(-1, keepdim=True) + HALF)
    for index, slit in enumerate(slit for slit in SLITS if slit.pupil is not None):
        came = places + head.flatten(2).mT + behind[:, index, None]
        ball = (_into_opening(came, source, places, driving, slit) - places).mT.unflatten(2, size)
        face = torch.lerp(face, ball, openings[..., index].unflatten(1, size)[:, None])
    return head, face


def _into_opening(
    came: Float[Tensor, "b n 2"],
    source: Float[Tensor, "b 74 2"],
    places: Float[Tensor, "b n 2"],
    driving: Float[Tensor, "b 74 2"],
    slit: Slit,
) -> Float[Tensor, "b n 2"]:
    """Where ``places`` of the driving frame's eye ``came`` from, or the nearest place that the source's lids don't
    cover: the white beside a lid is a better guess than the lid. Up to `INSET` as far from a lid as in the driving
    frame."""
    upper, lower = _edges(driving, slit)
    hill, depth, _ = _along_and_down(places, driving[:, list(slit.corners)])
    to_upper, to_lower = ((sign * (depth - hill * edge)).clamp_max(INSET) for sign, edge in ((1, upper), (-1, lower)))
    upper, lower = _edges(source, slit)
    hill, depth, down = _along_and_down(came, source[:, list(slit.corners)])
    low, high = hill * upper + to_upper, hill * lower - to_lower
    middle = (low + high) / 2
    seen = torch.maximum(torch.minimum(depth, torch.maximum(high, middle)), torch.minimum(low, middle))
    return came + (seen - depth)[..., None] * down[:, None]


def _sums(
    down: Float[Tensor, "b h k"], counted: Float[Tensor, "b k c"], along: Float[Tensor, "b w k"], which: list[int]
) -> Float[Tensor, "b c h w"]:
    """Sums over some landmarks of what is counted, weighted by Gaussians."""
    return torch.einsum("byk, bkc, bxk -> bcyx", down[..., which], counted[:, which], along[..., which])


def _near(places: Float[Tensor, "*_ n"], landmarks: Float[Tensor, "b k"], reach: float) -> Float[Tensor, "b n k"]:
    """A Gaussian of the distances of each place from each landmark, along x or along y."""
    return torch.exp(-(places[..., :, None] - landmarks[:, None]).square() / (2 * reach**2))


def _seen(sides: Float[Tensor, "b n s"]) -> Float[Tensor, "b n 74"]:
    """Which landmarks move each place: those of its own side of each slit, no pupil, and all others."""
    seen = torch.ones(*sides.shape[:2], LANDMARKS, device=sides.device, dtype=sides.dtype)
    seen[..., _PUPILS] = 0
    for index, side in enumerate(_SIDES):
        seen[..., list(side)] = sides[..., index, None]
    return seen


def _slits(
    places: Float[Tensor, "b n 2"], landmarks: Float[Tensor, "b 74 2"]
) -> tuple[Float[Tensor, "b n s"], Float[Tensor, "b n e"]]:
    """How far each place lies above and below each slit (one number each, in sum 1), and within each eye's opening.

    Both edges of an opening are parabolas through its corners.
    """
    sides, openings = [], []
    for slit in SLITS:
        upper, lower = _edges(landmarks, slit)
        hill, depth, _ = _along_and_down(places, landmarks[:, list(slit.corners)])
        above = torch.sigmoid((hill * (upper + lower) / 2 - depth) / (SOFT / 2))
        sides += [above, 1 - above]
        if slit.pupil is not None:
            below_upper, below_lower = (torch.sigmoid((depth - hill * edge) / (SOFT / 2)) for edge in (upper, lower))
            openings.append(below_upper * (1 - below_lower) * (hill > 0))
    return torch.stack(sides, dim=-1), torch.stack(openings, dim=-1)


def _edges(landmarks: Float[Tensor, "b 74 2"], slit: Slit) -> tuple[Float[Tensor, "b 1"], Float[Tensor, "b 1"]]:
    """How far the middles of a slit's upper and lower edge lie below the line between its corners."""
    corners, depths = landmarks[:, list(slit.corners)], []
    for edge in slit.edges:
        hill, depth, _ = _along_and_down(landmarks[:, list(edge)], corners)
        depths.append((hill * depth).sum(1, keepdim=True) / hill.square().sum(1, keepdim=True).clamp_min(1e-6))
    return depths[0], depths[1]


def _along_and_down(
    points: Float[Tensor, "b n 2"], corners: Float[Tensor, "b 2 2"]
) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"], Float[Tensor, "b 2"]]:
    """Where points lie by a slit's ``corners``: a parabola's height, 0 at both corners and 1 in the middle; the
    distance below the line from corner to corner; and the direction in which this is counted."""
    first, last = corners.unbind(1)
    length = (last - first).norm(dim=-1, keepdim=True).clamp_min(1e-6)
    right = (last - first) / length
    down = torch.stack([-right[:, 1], right[:, 0]], dim=-1)
    offset = points - first[:, None]
    share = ((offset * right[:, None]).sum(-1) / length).clamp(0, 1)
    return 4 * share * (1 - share), (offset * down[:, None]).sum(-1), down
