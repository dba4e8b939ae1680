"""From the picture to material and back: `trace` finds what each ray hits, `place` finds where material lies."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minimodel.data.faces.arithmetic import angles, direction, dot, sample, unit, vector
from minimodel.data.faces.expressions import deform, open_jaw, undeform
from minimodel.data.faces.scene import (
    EYEBALL,
    PIVOT,
    Scene,
    body_place,
    cells,
    chart,
    head_place,
    head_rays,
    project,
    sample_table,
)
from minimodel.data.faces.shapes import body_lean, body_shape, curtain_frame, curtain_mask, ear_frame, glasses_frame

# The surfaces that a ray can hit.
BACKGROUND, BODY, CURTAIN, HEAD, RIGHT_EYE, LEFT_EYE, TEETH, MOUTH, EAR, GLASSES = range(10)


class Pack:
    """The True columns of each row of a mask, gathered, so that work on few rays costs what these few cost.

    Short rows are filled up with repetitions of their last column; writing that twice does no harm.
    """

    def __init__(self, mask: Tensor):
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

    def only(self, mask: Tensor, *values: Tensor) -> Any:
        """A `Pack` of those of these columns for which ``mask`` is True, then the same part of each of ``values``.

        ``mask`` and ``values`` belong to these columns, as `take` gives them.
        """
        part = Pack(mask & self.some)
        taken = [part.take(value) for value in values]
        part.index = self.index.gather(1, part.index)
        return part, *taken

    def take(self, values: Tensor) -> Tensor:
        """The columns of ``values`` (b, n) or (b, c, n)."""
        if values.dim() == 2:
            return values.gather(1, self.index)
        return values.gather(2, self.index[:, None].expand(-1, values.shape[1], -1))

    def put(self, values: Tensor, new: Tensor) -> None:
        """Write ``new`` into these columns of ``values`` in place."""
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


def gap(scene: Scene, o: Tensor, out: Tensor, t: Tensor) -> Tensor:
    """How far above the head's surface the rays are at ``t``."""
    (ox, oy, oz), (dx, dy, dz) = o.unbind(1), out.unbind(1)
    q, length = chart(ox + t * dx, oy + t * dy, oz + t * dz)
    return length - sample(scene.table[:, :1], q)[:, 0]


def march(scene: Scene, o: Tensor, out: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Walk along rays from ``start``, in front of the head, to their first hit: t, the gap that is left, who has hit.

    Few bold secant steps do for nine rays in ten. Those that graze a cheek or meet a wall of hair start again with
    careful ones: short but not too short, and halving once the surface is known to lie in an interval.
    """

    def step(o: Tensor, t: Tensor, f: Tensor, stride: Tensor, boldest: float) -> tuple[Tensor, Tensor, Tensor]:
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


def sphere(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Near and far hit with the unit sphere, and whether there is one; else both are the point of closest approach."""
    a, b, c = dot(d, d), dot(o, d), dot(o, o) - 1
    root = b * b - a * c
    reach = root.clamp(min=0).sqrt()
    return (reach - b) / a, (-reach - b) / a, root > 0


def cylinder(o: Tensor, d: Tensor, z: Tensor, rx: Tensor, rz: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays first meet the upright cylinder of radii ``rx``, ``rz`` about (0, z): a sphere that ignores y."""
    flat = torch.stack((1 / rx, torch.zeros_like(rx), 1 / rz), 1)
    t, _, met = sphere((o - z[:, None] * vector(0.0, 0.0, 1.0, like=o)) * flat, d * flat)
    return t, met


def eyeball(scene: Scene, side: float) -> Tensor:
    """Centre (b, 3, 1) of the right (-1) or the left (1) eyeball."""
    return scene.eyes * vector(side, 1.0, 1.0, like=scene.eyes)


def trace(scene: Scene, screen: Tensor) -> Hits:
    """Find the first hits of the rays through ``screen`` (b, 2, n), normalised positions in the picture."""
    who, how = scene.who, scene.how
    nowhere = torch.zeros_like(screen[:, 0])
    backdrop = torch.cat((screen - how.pan, nowhere[:, None]), 1)
    layer = torch.full_like(nowhere, BACKGROUND, dtype=torch.uint8)
    hits = Hits(layer, nowhere - 10, backdrop, torch.zeros_like(backdrop))

    def put(layer: int, rays: Pack, depth: Tensor, point: Tensor) -> None:
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

    def offer(layer: int, rays: Pack, o: Tensor, t: Tensor, keep: Callable[[Tensor], Tensor | bool]) -> None:
        p, depth = (t[:, None] * out).add_(o), scale * (t + PIVOT[2])
        rays, depth, p = rays.only(keep(p) & (depth > rays.take(hits.depth)), depth, p)
        put(layer, rays, depth, p)

    if bool((who.long > 0).any()):
        middle, radii = curtain_frame(who)
        rays = Pack((who.long > 0).expand_as(nowhere))
        o = rays.take(origin)
        near, far, met = sphere((o - middle) / radii, out / radii)
        rays, o, near, far = rays.only(met, o, near, far)
        offer(CURTAIN, rays, o, far, keep=lambda p: curtain_mask(who, p, front=False))
        offer(CURTAIN, rays, o, near, keep=lambda p: curtain_mask(who, p, front=True))

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
    for eye, side in ((RIGHT_EYE, -1.0), (LEFT_EYE, 1.0)):
        slit, offset = rays.only(in_eye & (lam * side > 0), (o - eyeball(scene, side)) / EYEBALL)
        t, _, _ = sphere(offset, out / EYEBALL)
        q = scene.look.transpose(1, 2) @ unit(offset + t[:, None] * out / EYEBALL)
        put(eye, slit, scale * (t + PIVOT[2]), q)
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
    near, at, t = rays.only(met, o, t)
    offer(EAR, near, at, t, keep=lambda p: True)
    if bool((who.glasses > 0).any()):
        t, met = cylinder(o, out, 0 * who.width, who.width + 0.05, 0 * who.width + 1.02)
        near, at, t = rays.only(met & (who.glasses > 0), o, t)
        offer(GLASSES, near, at, t, keep=lambda p: glasses_frame(who, p) < 0)
    return hits


def place(scene: Scene, layer: Tensor, material: Tensor) -> tuple[Tensor, Tensor]:
    """Where material lies in this scene: positions (b, 2, n) in the picture, and depths (b, n).

    ``layer`` (b, n) and ``material`` (b, 3, n) are those of `Hits`.
    """
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
