"""A face in its state made ready for rays: `prepare` bakes the head's radius into a table, `project` is the camera."""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from minimodel.data.faces.arithmetic import (
    Columns,
    angles,
    bump,
    columns,
    cross,
    direction,
    dot,
    rotation,
    sample,
    smoothstep,
    vector,
)
from minimodel.data.faces.expressions import sides, undeform
from minimodel.data.faces.shapes import face, hair_volume, skull
from minimodel.data.faces.states import Faces
from minimodel.warping import identity_grid

TABLE = 96  # texels along a side of the head's table: about 2.4 degrees each in the middle of the face
COARSE = 48  # cells along a side of the picture in which the march looks up where to start
PIVOT = (0.0, -0.8, -0.25)  # the head turns about the top of the neck, not about its own centre
EYEBALL = 0.30  # radius


@dataclass
class Scene:
    """A batch of faces made ready for rays."""

    who: Columns
    how: Columns
    rotation: Tensor  # (b, 3, 3), head to world
    look: Tensor  # (b, 3, 3), eye to head
    eyes: Tensor  # (b, 3, 1), centre of the left eyeball
    gum: Tensor  # (b, 3, 1), the middle of the mouth's slit at rest
    table: Tensor  # (b, 4, TABLE, TABLE): the head's radius and normal (of any length) by deformed direction
    # (b, COARSE * COARSE), a depth in front of the head, -inf where there is no head: `prepare` finds it last
    start: Tensor = field(init=False)


def chart(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Where a direction lies in the head's table, (b, 2, n) in [-1, 1], and its length (b, n).

    Lambert's equal-area map of the sphere: its only singular point is the back of the head, which one never sees.
    """
    length = (x * x).add_(y * y).add_(z * z).sqrt_()
    scale = (2 * length).mul_(length + z).add_(1e-12).rsqrt_()
    return torch.stack((x * scale, y * scale), 1), length


def sample_table(scene: Scene, p: Tensor) -> Tensor:
    """Radius and normal (b, 4, n) of the head's surface in the directions of ``p`` (b, 3, n)."""
    return sample(scene.table, chart(*p.unbind(1))[0])


@lru_cache(maxsize=8)
def texels(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Directions (1, 3, TABLE²) of the table's texels; indices of those that a face can move or mark; the others'."""
    q = identity_grid(TABLE, TABLE, device=device).flatten(1)
    q = q * (0.995 / q.norm(dim=0).clamp(min=0.995))
    square = (q * q).sum(0)
    u = torch.cat((2 * q * (1 - square).sqrt(), (1 - 2 * square)[None]))[None]
    psi = angles(u)[1][0]
    front = (psi > -2.3) & (psi < 1.05)
    return u, front.nonzero()[:, 0], (~front).nonzero()[:, 0]


def prepare(faces: Faces) -> Scene:
    """Make a batch of faces ready for rays."""
    who, how = columns(faces.identity), columns(faces.state)
    b, device = len(faces), faces.device
    turn = rotation(faces.state.yaw, faces.state.pitch, faces.state.roll)
    across, up = faces.state.gaze.unbind(1)
    look = rotation(across, up, torch.zeros_like(across))

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


def cells(screen: Tensor) -> Tensor:
    """The index (b, n) of the cell of the picture in which positions (b, 2, n) lie."""
    x, y = ((screen + 1) * (COARSE / 2)).clamp(0, COARSE - 1).long().unbind(1)
    return y * COARSE + x


def head_place(scene: Scene) -> tuple[Tensor, Tensor]:
    """Centre (b, 2, 1) and scale (b, 1) of the head in the picture."""
    return scene.who.center + scene.how.shift, scene.who.size * scene.how.scale


def body_place(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """Centre and scale of the body, which follows the head only partly, and how far (b, 2, 1) it lags behind."""
    scale = scene.who.size * (0.5 + 0.5 * scene.how.scale)
    return scene.who.center + 0.35 * scene.how.shift, scale, 0.65 * scene.how.shift / scale[:, None]


def project(scene: Scene, point: Tensor) -> tuple[Tensor, Tensor]:
    """Positions in the picture (b, 2, n) of points (b, 3, n) of the head, and their depth towards the viewer (b, n)."""
    center, scale = head_place(scene)
    pivot = vector(*PIVOT, like=point)
    world = (scene.rotation @ (point - pivot) + pivot) * scale[:, None]
    return torch.stack((center[:, 0] + world[:, 0], center[:, 1] - world[:, 1]), 1), world[:, 2]


def head_rays(scene: Scene, screen: Tensor) -> tuple[Tensor, Tensor]:
    """Rays in head coordinates: origin (b, 3, n), direction (b, 3, 1). The depth at t is scale * (t + PIVOT's z)."""
    center, scale = head_place(scene)
    x, y = (screen[:, 0] - center[:, 0]) / scale, (center[:, 1] - screen[:, 1]) / scale - PIVOT[1]
    right, up, out = scene.rotation.unbind(1)
    return x[:, None] * right[..., None] + y[:, None] * up[..., None] + vector(*PIVOT, like=x), out[..., None]
