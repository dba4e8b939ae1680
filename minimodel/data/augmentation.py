"""Random changes of a pair of frames of a film, of its landmarks and its colours alike."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minimodel.landmarks import MIRRORED
from minimodel.warping import identity_grid, sample


@dataclass(frozen=True)
class Augmentation:
    """What is done to both frames of a pair alike. Swapping source and driving needs no option: pairs come in both
    orders anyway."""

    flip: bool = True
    """Mirror half of the pairs."""
    rotation: float = 15.0
    """Largest rotation in degrees."""
    zoom: float = 0.15
    """Largest change of size, as a share."""
    shift: float = 0.08
    """Largest shift, as a share of half the side."""
    colour: float = 0.1
    """Largest change of brightness, contrast and tint, as a share."""


def placement(change: Float[Tensor, "b 8"], options: Augmentation) -> Float[Tensor, "b 2 3"]:
    """Where each place of a changed frame lies in the frame as it was: affine matrices of normalised places."""
    mirror, angle, zoom, right, down, *_ = change.unbind(1)
    angle = angle * options.rotation * torch.pi / 180
    scale = torch.exp(zoom * options.zoom)
    flip = torch.where((mirror < 0) & options.flip, -1.0, 1.0)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [flip * cos, -sin, right * options.shift, flip * sin, cos, down * options.shift]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def augment(
    frames: Float[Tensor, "b 2 3 h w"], change: Float[Tensor, "b 8"], options: Augmentation, size: int
) -> Float[Tensor, "b 2 3 size size"]:
    """Change both frames of each pair alike, at random: mirror, rotation, zoom, shift and colours, driven by eight
    numbers in [-1, 1] a pair. The frames are twice as large as the result."""
    matrix = placement(change, options)
    grid = identity_grid(2 * size, 2 * size, device=frames.device)
    positions = torch.einsum("bij,jhw->bhwi", matrix[..., :2], grid) + matrix[:, None, None, :, 2]
    both = sample(frames.flatten(1, 2), positions, padding="reflection")
    both = F.avg_pool2d(both, 2).unflatten(1, (2, 3))
    bright, contrast, tint = change[:, 5:].unbind(1)
    # Gains of each channel: brightness is common to all three, the tint trades red for blue.
    tints = torch.stack([tint, torch.zeros_like(tint), -tint], dim=1) * options.colour
    gain = torch.exp(bright[:, None] * options.colour + tints)[:, None, :, None, None]
    spread = torch.exp(contrast * options.colour)[:, None, None, None, None]
    return (((both - 0.5) * spread + 0.5) * gain).clamp(0, 1)


def augment_landmarks(
    landmarks: Float[Tensor, "b 2 74 2"], change: Float[Tensor, "b 8"], options: Augmentation
) -> Float[Tensor, "b 2 74 2"]:
    """Where `augment` brings the landmarks of both frames; normalised. In a mirrored face right and left trade
    names."""
    matrix = placement(change, options)
    moved = landmarks - matrix[:, None, None, :, 2]
    moved = torch.einsum("bij,bfkj->bfki", torch.linalg.inv(matrix[..., :2]), moved)
    mirrored = torch.linalg.det(matrix[..., :2]) < 0
    return torch.where(mirrored.view(-1, 1, 1, 1), moved[:, :, list(MIRRORED)], moved)
