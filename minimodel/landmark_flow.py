"""The flow that follows from landmarks by arithmetic alone: an affine map of the whole head, and what lids, lips, brows
and pupils do beyond it. Nothing here is learnt, so the flow is right from the first step of a training.

No paper has this flow; a learnt one from the same landmarks is S2D's, see `minimodel.landmark_motion`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from minimodel.warping import full_precision, identity_grid

# How far a landmark's own movement reaches, normalised, level by level: from the jaw's to that of a lid.
REACHES = (0.3, 0.15, 0.075, 0.035)
HALF = 0.1  # where the Gaussians of all landmarks sum to it, half of the movement is left
STEADY = 1e-6  # of a variance: keeps the affine map finite for landmarks in one place


@full_precision
def head_and_face_flows(
    source: Float[Tensor, "b k 2"], driving: Float[Tensor, "b k 2"], size: tuple[int, int]
) -> tuple[Float[Tensor, "b 2 h w"], Float[Tensor, "b 2 h w"]]:
    """The flow of the head as a whole, and that of the face with all that moves in it; normalised.

    The first is the affine map that brings the driving landmarks closest to the source's. The second adds what this
    map leaves at each landmark, by weighted means of Gaussians of ever smaller `REACHES`: each level adds what the
    levels before it have left. Far from all landmarks nothing is added. Landmarks are normalised; ``size`` = (h, w).

    >>> head, face = head_and_face_flows(source_landmarks, driving_landmarks, (64, 64))
    """
    centre, aim = driving.mean(1, keepdim=True), source.mean(1, keepdim=True)
    around, wanted = driving - centre, source - aim
    steady = STEADY * torch.eye(2, device=source.device, dtype=source.dtype)
    # X of X (around^T around) = wanted^T around, steadier than the inverse.
    spread = around.mT @ around / around.shape[1] + steady
    matrix = torch.linalg.solve(spread, wanted.mT @ around / around.shape[1] + steady, left=False)
    grid = identity_grid(*size, device=source.device, dtype=source.dtype)
    head = (
        torch.einsum("bij, bjhw -> bihw", matrix, grid - centre[:, 0, :, None, None]) + aim[:, 0, :, None, None] - grid
    )
    face, left = head, wanted - around @ matrix.mT
    for reach in REACHES:
        # A Gaussian is a product of one along x and one along y, so no map of each landmark is needed.
        along, down = (_near(places, driving[..., i], reach) for i, places in enumerate((grid[0, 0], grid[1, :, 0])))
        counted = torch.cat([left, torch.ones_like(left[..., :1])], dim=-1)
        sums = torch.einsum("byk, bkc, bxk -> bcyx", down, counted, along)
        face = face + sums[:, :2] / (sums[:, 2:] + HALF)
        weights = _near(driving[..., 0], driving[..., 0], reach) * _near(driving[..., 1], driving[..., 1], reach)
        left = left - weights @ left / (weights.sum(-1, keepdim=True) + HALF)
    return head, face


def _near(places: Float[Tensor, "*_ n"], landmarks: Float[Tensor, "b k"], reach: float) -> Float[Tensor, "b n k"]:
    """A Gaussian of the distances of each place from each landmark, along x or along y."""
    return torch.exp(-(places[..., :, None] - landmarks[:, None]).square() / (2 * reach**2))
