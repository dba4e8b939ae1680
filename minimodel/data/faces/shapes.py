"""The shapes of a person at rest: head, face and hair by direction, and the simpler surfaces around them.

The head is star-shaped: its surface is radius(direction). Ears and long hair lie on ellipsoids, glasses on a cylinder;
neck and shoulders are a surface that faces the viewer. A mask says where on such a surface there is something.
"""

import torch
from torch import Tensor

from minimodel.data.faces.arithmetic import Columns, bump, hills, noise, smoothstep
from minimodel.data.faces.expressions import sides


def hair_height(who: Columns, u: Tensor) -> Tensor:
    """Height (b, n) above the hair line in the material directions ``u`` (b, 3, n): positive where hair grows."""
    x, y, z = u.unbind(1)
    around = torch.atan2(x, z)
    side = around.abs()
    line = who.hairline + who.temples * bump((side - 0.7) / 0.3) - who.drop * (1 - bump((around - who.parting) / 0.45))
    line = torch.lerp(line, who.sideburn.expand_as(line), smoothstep(side, 0.85, 1.2))
    line = line + (0.12 - who.sideburn) * (1 - who.long) * bump((side - 1.62) / 0.3)  # above the ear
    return y - torch.lerp(line, torch.full_like(line, -0.5), smoothstep(side, 1.85, 2.3))


def skull(who: Columns, u: Tensor) -> Tensor:
    """Radius (b, n) of the head without a face: an ellipsoid that recedes under the jaw and at the nape."""
    x, y, z = u.unbind(1)
    under = smoothstep(-0.47 * y - z, -0.04, 0.46) * smoothstep(-y, 0.15, 0.65)
    width = who.width * (1 - who.taper * y.clamp(max=0) ** 2)
    tall = y.clamp(min=0) / who.top + y.clamp(max=0) / who.bottom
    deep = (z.clamp(min=0) + z.clamp(max=0) / 1.1) / who.depth
    return (1 - 0.3 * under) * torch.rsqrt((x / width) ** 2 + tall * tall + deep * deep)


def face(who: Columns, lam: Tensor, psi: Tensor) -> Tensor:
    """What the face adds to the skull's radius at rest, (b, n)."""
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


def hair_volume(who: Columns, u: Tensor) -> Tensor:
    """What hair adds to the skull's radius, (b, n)."""
    x, y, z = u.unbind(1)
    grown = smoothstep(hair_height(who, u), -0.02, 0.24)
    curl = noise(torch.stack((x + z * 0.5, y - z * 0.4), 1) * 0.8, who.phase, 2)[:, 0] * who.curls
    volume = who.hair_side + (who.hair_top - who.hair_side) * smoothstep(y, 0.1, 0.75) + 0.03 * curl
    return grown * volume


def ear_frame(who: Columns) -> tuple[Tensor, Tensor]:
    """Centre of the left ear (b, 3, 1), and the matrix (b, 3, 3) that takes the ear to the unit sphere."""
    c, s, zero = who.ear_angle.cos(), who.ear_angle.sin(), torch.zeros_like(who.ear_angle)
    deep = 0.60 * who.ear_size
    center = torch.stack((who.width * 0.99 + 0.45 * deep * s, zero - 0.05, zero - 0.10 - 0.4 * deep * c), 1)
    rows = (c / 0.06, zero, s / 0.06), (zero, 1 / who.ear_size, zero), (-s / deep, zero, c / deep)
    return center, torch.stack([torch.cat(row, 1) for row in rows], 1)


def curtain_frame(who: Columns) -> tuple[Tensor, Tensor]:
    """Centre and radii (b, 3, 1) of the ellipsoid on which long hair hangs."""
    zero = torch.zeros_like(who.width)
    center = torch.stack((zero, zero - 0.5, zero - 0.10), 1)
    return center, torch.stack((who.width * who.hair_width + 0.16, zero + 1.53, zero + 0.72), 1)


def curtain_mask(who: Columns, p: Tensor, front: bool) -> Tensor:
    """Where the ellipsoid of `curtain_frame` is hair: above the ends and, on the front sheet, beside the face."""
    x, y, _ = p.unbind(1)
    ends = -who.hair_length + (0.02 + 0.03 * who.curls) * (torch.sin(23 * x) + torch.sin(37 * x + 2))
    if not front:
        return y > ends
    wave = noise(torch.stack((x.sign() * 0.3, y * 0.3), 1), who.phase, 1)[:, 0] * (0.015 + 0.04 * who.curls)
    window = who.hair_open + wave - 0.10 * smoothstep(-y, 0.5, 1.3) + 0.06 * smoothstep(y, -0.2, 0.5)
    return (y > ends) & (x.abs() > window)


def glasses_frame(who: Columns, p: Tensor) -> Tensor:
    """Negative on the frames: two rims, the bridge between them, and an arm to each ear."""
    x, y, z = p[:, 0].abs(), p[:, 1] - 0.02, p[:, 2]
    rx, ry = 0.255 * who.glasses_size, (0.235 - 0.05 * who.glasses_square) * who.glasses_size
    a, b = ((x - 0.345) / rx) ** 2, (y / ry) ** 2
    rim = (a * a + b * b + (2 - 2 * who.glasses_square) * a * b).sqrt().sqrt()  # an ellipse, or squarer
    rim = (rim - 1).abs() * 0.22 - 0.019
    bridge = torch.maximum((y - 0.06).abs() - 0.021, x - 0.10)
    arm = torch.maximum((y - 0.08).abs() - 0.023, 0.345 + 0.95 * rx - x)
    return torch.where(z > 0, torch.minimum(torch.minimum(rim, bridge), arm), 1.0)


def body_shape(who: Columns, y: Tensor) -> tuple[Tensor, Tensor]:
    """Half width and depth of neck and shoulders at the heights ``y`` (b, n)."""
    flare = smoothstep(-y, 1.02, 1.76)
    return who.neck + (who.shoulders - who.neck) * flare, 0.42 + 0.22 * flare


def body_lean(y: Tensor) -> Tensor:
    """How much of the head's movement the body joins in: all at the top of the neck, nothing at the shoulders."""
    return smoothstep(y, -1.65, -0.75)
