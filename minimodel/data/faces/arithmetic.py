"""Arithmetic on columns: vectors, angles, soft steps, hills and noise, for all rays of a batch at once.

In this file and in those below it everything works on columns: a value of shape (b,) becomes (b, 1) and a colour
(b, 3, 1), so that they broadcast against (b, n) rays and (b, 3, n) vectors. ``who`` is an identity in columns, ``how``
a state.
"""

import math
from dataclasses import fields
from functools import lru_cache, reduce
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from minimodel.data.faces.people import Batch, Number

Columns = SimpleNamespace  # the fields of an `Identity` or a `State`, each with a last dimension of 1


def columns(batch: Batch) -> Columns:
    """An identity or a state in columns: each field gets a last dimension of 1, for the rays."""
    return Columns(**{part.name: getattr(batch, part.name).unsqueeze(-1) for part in fields(batch)})


def vector(*values: float, like: Tensor) -> Tensor:
    """A constant vector (3, 1) on the device of ``like``."""
    return torch.tensor(values, device=like.device)[:, None]


# What every ray passes many times works in place on what it has made itself: new memory costs more than arithmetic.


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The scalar products (b, n) of vectors (b, 3, n)."""
    return (a[:, 0] * b[:, 0]).add_(a[:, 1] * b[:, 1]).add_(a[:, 2] * b[:, 2])


def unit(v: Tensor) -> Tensor:
    """Vectors (b, 3, n) brought to length 1."""
    return v * dot(v, v).add_(1e-12).rsqrt_()[:, None]


def cross(a: Tensor, b: Tensor) -> Tensor:
    """The vector products of (b, 3, ...) vectors."""
    (ax, ay, az), (bx, by, bz) = a.unbind(1), b.unbind(1)
    return torch.stack((ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx), 1)


def smoothstep(x: Tensor, low: Number, high: Number) -> Tensor:
    """A smooth step: 0 up to ``low``, 1 from ``high`` on."""
    t = (x - low).div_(high - low).clamp_(0, 1)
    return (t * t).mul_((-2 * t).add_(3))


def bump(*offsets: Tensor) -> Tensor:
    """A hill: 1 where all ``offsets`` are 0, about 1/e at distance 1, exactly 0 from 2.9 on (a cheap Gaussian)."""
    square = reduce(torch.add, (offset * offset for offset in offsets))
    return square.div_(-8).add_(1).clamp_(min=0).square_().square_().square_()


def hills(x: Tensor, y: Tensor, *rows: tuple[Number, Number, Number, Number, Number]) -> Tensor:
    """A sum of hills; each row is (height, x, width along x, y, width along y)."""
    each = (bump((x - x0).div_(wx), (y - y0).div_(wy)).mul_(height) for height, x0, wx, y0, wy in rows)
    return reduce(Tensor.add_, each)


def direction(lam: Tensor, psi: Tensor) -> Tensor:
    """The unit vectors (b, 3, n) that two angles (b, n) name."""
    across = lam.cos()
    return torch.stack((lam.sin(), across * psi.sin(), across * psi.cos()), 1)


def angles(u: Tensor) -> tuple[Tensor, Tensor]:
    """The angles ``lam`` and ``psi`` (b, n) of vectors (b, 3, n) of any length: the inverse of `direction`."""
    x, y, z = u.unbind(1)
    return torch.atan2(x, (y * y + z * z).sqrt()), torch.atan2(y, z)


def rotation(yaw: Tensor, pitch: Tensor, roll: Tensor) -> Tensor:
    """The matrices (b, 3, 3) from head to world that angles (b,) give: first roll, then pitch, then yaw."""
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
    turn = (yaw.cos(), zero, yaw.sin(), zero, one, zero, -yaw.sin(), zero, yaw.cos())
    nod = (one, zero, zero, zero, pitch.cos(), pitch.sin(), zero, -pitch.sin(), pitch.cos())
    lean = (roll.cos(), roll.sin(), zero, -roll.sin(), roll.cos(), zero, zero, zero, one)
    turn, nod, lean = (torch.stack(matrix, -1).unflatten(-1, (3, 3)) for matrix in (turn, nod, lean))
    return turn @ nod @ lean


def sample(maps: Tensor, position: Tensor) -> Tensor:
    """Values (b, c, n) of maps (b, c, h, w) at normalised positions (b, 2, n), bilinearly, the border repeated."""
    grid = position.transpose(1, 2)[:, None]
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)[:, :, 0]


@lru_cache(maxsize=8)
def noise_tile(device: torch.device) -> Tensor:
    """Periodic noise of variance 1, (1, 3, 257, 257), finer to coarser; the last row and column are the first."""
    white = torch.randn(3, 256, 256, generator=torch.Generator().manual_seed(0))
    frequency = torch.fft.fftfreq(256) * math.tau
    square = frequency[:, None] ** 2 + frequency[None] ** 2
    blur = torch.exp(-0.5 * square * torch.tensor((2.0, 5.0, 16.0))[:, None, None] ** 2)
    tile = torch.fft.ifft2(torch.fft.fft2(white) * blur).real
    return F.pad((tile / tile.std(dim=(1, 2), keepdim=True))[None], (0, 1, 0, 1), mode="circular").to(device)


def noise(position: Tensor, phase: Tensor, first: int = 0) -> Tensor:
    """Noise (b, 3, n), or only the channels from ``first`` on, at ``position`` (b, 2, n); it repeats with period 1."""
    position = position + phase
    tile = noise_tile(position.device)[:, first:].expand(len(position), -1, -1, -1)
    return sample(tile, position.sub_(position.floor()).mul_(512 / 257).add_(1 / 257 - 1))
