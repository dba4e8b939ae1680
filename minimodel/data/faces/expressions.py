"""What a state does to a face: maps from material angles to deformed angles, and back.

A face is a stack of bands (cheek, lid, brow, ...) whose borders move along psi. Eyes and mouth are slits: bands without
height in the material that open.
"""

from typing import overload

import torch
from torch import Tensor

from minimodel.data.faces.arithmetic import Columns, bump

Borders = list[Tensor]  # of bands, each (b, n), ascending


def move(psi: Tensor, before: Borders, after: Borders) -> Tensor:
    """The monotone map that takes the borders ``before`` to ``after`` (both ascending), linear between them.

    The outermost borders stay where they are and beyond them nothing moves. ``move(move(x, a, b), b, a)`` is x.
    """
    moved = psi
    for k in range(len(before) - 1):
        width = before[k + 1] - before[k]
        part = (psi - before[k]).div_(width.clamp(min=1e-6)).clamp_(0, 1)
        moved = torch.addcmul(moved, part, (after[k + 1] - after[k]).sub_(width))
    return moved


def sides(pair: Tensor, lam: Tensor, blend: float = 1e-6) -> Tensor:
    """The first of a pair on the right half of the face, the second on the left; mixed where |lam| < ``blend``."""
    right, left = pair[:, 0], pair[:, 1]
    return 0.5 * (right + left) + 0.5 * (left - right) * (lam / blend).clamp(-1, 1)


@overload
def eye_bands(who: Columns, how: None, lam: Tensor) -> Borders: ...
@overload
def eye_bands(who: Columns, how: Columns, lam: Tensor) -> tuple[Borders, Borders]: ...
def eye_bands(who: Columns, how: Columns | None, lam: Tensor) -> Borders | tuple[Borders, Borders]:
    """The upper borders along psi at rest, and in a state: cheek, lower lid | upper lid, lashes, fold, brow, forehead.

    At rest the lids are shut: the slit between the second and the third border has no height. Painters, who need no
    state, pass None and get the borders at rest alone.
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


def jaw_angle(how: Columns) -> Tensor:
    """How far the jaw is turned down about the axis through the ears, in radians."""
    return 0.30 * how.jaw


@overload
def mouth_bands(who: Columns, how: None, lam: Tensor) -> Borders: ...
@overload
def mouth_bands(who: Columns, how: Columns, lam: Tensor) -> tuple[Borders, Borders]: ...
def mouth_bands(who: Columns, how: Columns | None, lam: Tensor) -> Borders | tuple[Borders, Borders]:
    """The lower borders along psi at rest, and in a state, as in `eye_bands`.

    They are throat, chin, lower lip, its edge | upper lip's edge, upper lip, nose, cheek.
    """
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


def stretch(who: Columns, how: Columns, lam: Tensor, psi: Tensor, inverse: bool = False) -> Tensor:
    """Move the corners of the mouth apart or together: stretch lam between the middle, the corner and the cheek."""
    near = bump((psi - who.mouth_level + 0.5 * jaw_angle(how)) / 0.27)
    wide = 0.16 * how.wide.clamp(min=0) + 0.32 * how.wide.clamp(max=0) + 0.27 * how.smile.clamp(min=0) - 0.1 * how.jaw
    corner = who.mouth_width + 0 * lam
    rest, now = ([0 * lam, x, 2.5 * corner] for x in (corner, corner * (1 + near * wide)))
    return lam.sign() * (move(lam.abs(), now, rest) if inverse else move(lam.abs(), rest, now))


def deform(who: Columns, how: Columns, lam: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """Take material angles (b, n) to where the state puts them."""
    psi = move(move(psi, *eye_bands(who, how, lam)), *mouth_bands(who, how, lam))
    return stretch(who, how, lam, psi), psi


def undeform(who: Columns, how: Columns, lam: Tensor, psi: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take deformed angles (b, n) back to material angles: the inverse of `deform`.

    Also says whether one looks through the opened eye there, and whether through the opened mouth.
    """
    lam = stretch(who, how, lam, psi, inverse=True)
    (eye, eye_now), (mouth, mouth_now) = eye_bands(who, how, lam), mouth_bands(who, how, lam)
    in_eye, in_mouth = (psi > eye_now[1]) & (psi < eye_now[2]), (psi > mouth_now[3]) & (psi < mouth_now[4])
    return lam, move(move(psi, mouth_now, mouth), eye_now, eye), in_eye, in_mouth


def open_jaw(how: Columns, p: Tensor, sign: int = 1) -> Tensor:
    """Turn points (b, 3, n) of the jaw about the axis through the ears: open it, or shut it with a ``sign`` of -1."""
    c, s = jaw_angle(how).cos(), jaw_angle(how).sin() * sign
    x, y, z = p.unbind(1)
    return torch.stack((x, c * y - s * z, c * z + s * y), 1)
