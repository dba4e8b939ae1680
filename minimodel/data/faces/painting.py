"""The colour of what a ray has hit: `shade`, with one painter for each kind of surface.

Each painter takes the scene and the material of some rays, and returns albedo (b, 3, n), normal (b, 3, n) in world
coordinates, and gloss (b, n). Under ambient light only the albedo counts, so the albedo depends on the material alone;
whatever gives form to a face in any light (hollows, creases) is painted into it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minimodel.data.faces.arithmetic import (
    Columns,
    bump,
    cross,
    direction,
    dot,
    hills,
    noise,
    smoothstep,
    unit,
    vector,
)
from minimodel.data.faces.expressions import eye_bands, mouth_bands, sides
from minimodel.data.faces.scene import Scene, sample_table
from minimodel.data.faces.shapes import body_shape, curtain_frame, ear_frame, hair_height
from minimodel.data.faces.tracing import (
    BACKGROUND,
    BODY,
    CURTAIN,
    EAR,
    GLASSES,
    HEAD,
    LEFT_EYE,
    MOUTH,
    RIGHT_EYE,
    TEETH,
    Hits,
    Pack,
)

Paint = tuple[Tensor, Tensor | None, Tensor | None]  # albedo, normal, gloss; no normal where light changes nothing


def blend(color: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """Colours (b, 3, n) with a ``weight`` (b, n) of another colour in them."""
    return ((other - color) * weight[:, None]).add_(color)


def paint_backdrop(scene: Scene, m: Tensor) -> Paint:
    """A wall, a blurred garden, panels or shelves: one formula with four weights."""
    who = scene.who
    x, y = m[:, 0], m[:, 1]
    slope, blobs, panels, shelves = who.backdrop_style.unbind(1)
    one, two, three = who.backdrop.unbind(1)
    far = noise(m[:, :2] * 0.11, who.phase)
    color = blend(one, two, (0.5 + 0.4 * slope * (y + 0.4 * x)).clamp(0, 1))
    color = blend(color, three, 0.9 * blobs.clamp(0, 1.1) * smoothstep(far[:, 2], -1.3, 1.3))
    wall = 2 * smoothstep(torch.sin(x * (5 + 3 * who.phase[:, 0]) + 6 * who.phase[:, 1]), -0.7, 0.7) - 1
    tone = 1 + 0.10 * blobs * far[:, 1] + 0.03 * far[:, 0] + 0.16 * panels * wall
    row = y * (1.0 + 0.5 * who.phase[:, 1]) + who.phase[:, 0]
    books = noise(torch.stack((x * 0.16, row.floor() * 0.37), 1), who.phase)
    spines = 0.78 + 0.44 * smoothstep(books[:, :1], -1, 1) + books[:, 1:2] * vector(0.10, -0.02, -0.08, like=m)
    spines = spines * (1 - 0.4 * bump((row - row.round()) / 0.06))[:, None]
    color = color * tone[:, None] * (1 + shelves[:, None] * (spines - 1))
    return color, None, None  # it is lit evenly, whatever the light


def neckline(who: Columns, m: Tensor) -> Tensor:
    """Height above the clothes' edge, negative on cloth."""
    side = m[:, 0].abs()
    edge = who.collar - who.neckline * (1 - side / 0.42).clamp(min=0) + 0.35 * smoothstep(side, 0.35, 0.9)
    return m[:, 1] - edge


def paint_body(scene: Scene, m: Tensor) -> Paint:
    """Neck and clothes."""
    who = scene.who
    x, y, z = m.unbind(1)
    side, above = x.abs(), neckline(who, m)
    n = noise(torch.stack((x, 0.55 * y), 1) * 0.5, who.phase)
    shadow = 0.34 * smoothstep(y, -1.35, -1.0) + 0.12 * smoothstep(side, 0.2, 0.5) + 0.22 * bump(above / 0.04)
    skin = who.skin * (1 - vector(1.0, 1.25, 1.3, like=m) * (shadow - 0.02 * n[:, 1])[:, None])
    bands = torch.sin((y - 0.25 * side * side) * 34 + who.phase[:, 0] * 6) + torch.sin(x * 30) * (who.stripes > 0.65)
    cloth = blend(who.cloth, who.cloth2, 0.75 * who.stripes * smoothstep(bands, -0.5, 0.7))
    lapel = side - 0.10 - 0.5 * (y + 2.15).clamp(min=0)
    cloth = blend(cloth, 0.55 * who.cloth2, who.jacket * smoothstep(lapel, -0.01, 0.015))
    seams = 0.22 * bump((above + 0.05) / 0.012) + 0.25 * bump(above / 0.025)
    seams = seams + 0.3 * who.jacket * bump((lapel - 0.15) / 0.02) + 0.25 * smoothstep(side, 0.5, 1.5)
    cloth = cloth * (1 + 0.06 * n[:, 2] + 0.06 * n[:, 1] + 0.04 * n[:, 0] - seams)[:, None]
    worn = smoothstep(-above, -0.008, 0.012)
    half, deep = body_shape(who, y)
    up = 0.55 * smoothstep(-y, 1.05, 1.45) * (1 - smoothstep(-y, 1.75, 2.3))
    normal = unit(torch.stack((x / half**2, up, (z + 0.3) / deep**2), 1))
    return blend(skin, cloth, worn), normal, 0.3 * (1 - worn)


def paint_hair(who: Columns, u: Tensor, fine: Tensor) -> Tensor:
    """The colour of hair with the noise ``fine`` along its strands; ``u`` is the direction from the head's centre."""
    curl = noise(u[:, :2] * 1.1 + u[:, 2:] * 0.5, who.phase)
    straight = 0.45 * fine[:, 0] + 0.55 * fine[:, 1] + 0.4 * fine[:, 2]
    frizz = who.curls.clamp(0, 1) ** 2
    value = torch.lerp(straight, curl[:, 0] * 0.8 + curl[:, 1] * 0.8, frizz)
    gloss = bump((u[:, 1] - 0.72) / 0.2) * (0.10 + 0.05 * value).clamp(min=0) * (1 - 0.6 * frizz)
    color = who.hair * (1 + 0.18 * value)[:, None] + gloss[:, None] * (0.35 + 0.65 * who.hair)
    return color * (0.8 + 0.2 * smoothstep(u[:, 1], -0.6, 0.5))[:, None]


def paint_curtain(scene: Scene, m: Tensor) -> Paint:
    """Long hair, which is dark on the inside."""
    who = scene.who
    center, radii = curtain_frame(who)
    n = (m - center) / radii
    front = dot(n / radii, scene.rotation[:, 2, :, None]) > 0
    strands = torch.stack((torch.atan2(n[:, 0], n[:, 2]) * 1.2, m[:, 1] * 0.16), 1)
    color = paint_hair(who, unit(m), noise(strands, who.phase))
    shadow = torch.where(front, 0.65 + 0.35 * smoothstep(n[:, 0].abs(), 0.45, 0.75), 0.38)  # the inside is dark
    normal = unit(n / radii) * torch.where(front, 1.0, -1.0)[:, None]
    return color * shadow[:, None], scene.rotation @ normal, 0.3 * front.float()


def head_strands(who: Columns, u: Tensor) -> Tensor:
    """Coordinates (b, 2, n) along and across the strands of the hair on the head, for its noise.

    Strands leave the crown, or the parting, in all directions: angle around it, height towards it.
    """
    parted = smoothstep(who.drop, 0.05, 0.2)
    pole = torch.stack((who.parting * (0.3 + 0.5 * parted), torch.ones_like(parted), 0.55 * parted - 0.3), 1)
    pole = unit(pole)
    ahead = unit(vector(0.0, 0.0, 1.0, like=u) - pole * pole[:, 2:])
    height = dot(u, pole)
    around = torch.atan2(dot(u, cross(pole, ahead)), dot(u, ahead))
    return torch.stack((around * (1.8 - 0.9 * height), 0.2 * height), 1)


def paint_head(scene: Scene, m: Tensor, seen: Tensor) -> Paint:
    """Skin and the hair that grows on it, each painted only where it shows."""
    who = scene.who
    lam, psi, _ = m.unbind(1)
    u = direction(lam, psi)
    fine = noise(head_strands(who, u), who.phase)
    above = hair_height(who, u) + 0.016 * fine[:, 0] + 0.016 * fine[:, 1]
    cover = smoothstep(above, -0.025, 0.035)
    color, gloss = torch.zeros_like(m), torch.zeros_like(lam)
    bare = Pack(cover < 1)
    skin, shine = paint_skin(who, bare.take(lam), bare.take(psi))
    shadow = 1 - 0.25 * smoothstep(bare.take(above), -0.12, 0.0) * (who.hairline < 1.2)
    bare.put(color, skin * shadow[:, None])
    bare.put(gloss, shine)
    grown = Pack(cover > 0)
    hair = paint_hair(who, grown.take(u), grown.take(fine))
    hair = hair * (0.72 + 0.28 * smoothstep(grown.take(above), 0.0, 0.2))[:, None]
    grown.put(color, blend(grown.take(color), hair, grown.take(cover)))
    return color, scene.rotation @ unit(sample_table(scene, seen)[:, 1:]), gloss * (1 - cover) + 0.3 * cover


def lip_mask(who: Columns, lam: Tensor, psi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How much of a lip there is, and the psi of the slit and of the upper lip's border."""
    _, _, bottom, slit, _, top, _, _ = mouth_bands(who, None, lam)
    inside = smoothstep(psi, bottom - 0.004, bottom + 0.016) * (1 - smoothstep(psi, top - 0.016, top + 0.004))
    return inside * smoothstep(who.mouth_width * 1.04 - lam.abs(), 0, 0.03), slit, top


def brow_mask(who: Columns, lam: Tensor, psi: Tensor, brow: Tensor, rough: float | Tensor = 0.0) -> Tensor:
    """How much of a brow there is around its middle line, the border ``brow`` of the bands."""
    t = (lam.abs() - who.eye_spacing) / who.eye_width
    thick = who.brow_size * (1 - 0.55 * smoothstep(t, 0.1, 1.4)) * smoothstep(t, -1.5, -0.9)
    mask = smoothstep(thick - (psi - brow).abs() + rough, -0.006, 0.022)
    return mask * smoothstep(1.35 - t, 0, 0.4) * smoothstep(t, -1.45, -1.05)


def paint_skin(who: Columns, lam: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """Skin with all that is painted on it: colour (b, 3, n) and gloss (b, n)."""
    side, base, age = lam.abs(), who.nose_base, who.age
    coarse = noise(torch.stack((lam, psi), 1) * 0.35, who.phase)
    grain = noise(torch.stack((lam, psi), 1) * 1.1, who.phase)
    eye, wing = sides(who.eye_level, lam), who.nose_width
    t = (side - who.eye_spacing) / who.eye_width
    inside, slit, top = lip_mask(who, lam, psi)
    middle, corner = who.mouth_level, who.mouth_width

    # Hollows, where light hardly ever gets.
    hollow = hills(
        side,
        psi,
        (0.20, 0.22, 0.10, eye + 0.12, 0.14),  # beside the root of the nose
        (0.10, 0.17, 0.06, base * 0.55, 0.16),  # along its flanks
        (0.20, wing + 0.045, 0.035, base + 0.08, 0.08),  # behind its wings
        (0.30, 0, wing * 1.1, base - 0.035, 0.035),  # under it
        (0.16, who.eye_spacing, 0.26, eye + 0.05, 0.17),  # sockets
        (0.07 + 0.16 * age, 0.36, 0.16, eye - 0.15, 0.05),  # bags
        (0.20, 0, 0.19, middle - 0.19, 0.045),  # under the lower lip
        (0.10, 0, 0.035, (base + middle) / 2, 0.08),  # philtrum
        (0.16, corner * 1.12, 0.05, middle, 0.05),  # corners of the mouth
        (0.10, 0.72, 0.18, -0.55, 0.20),  # under the cheekbones
    )
    fold = side - (wing + 0.06 + (base - psi) * 0.62)  # from the wing of the nose past the corner of the mouth
    hollow = hollow + (0.08 + 0.22 * age) * bump(fold / 0.035, (psi - base + 0.13) / 0.13)
    hollow = hollow + 0.35 * smoothstep(-psi, 1.07, 1.5) + 0.18 * smoothstep(side, 0.8, 1.4)
    lines = (torch.sin(psi * 62 + 3 * coarse[:, 2]) - 0.3).clamp(min=0) * bump(lam / 0.45, (psi - 0.62) / 0.16)
    hollow = hollow + 0.10 * age * lines
    ridge = (1, 0, 0.09, -0.25, 0.22), (1, 0.5, 0.18, -0.18, 0.13), (1, 0, 0.35, 0.55, 0.2), (0.7, 0, 0.15, -1.06, 0.1)
    raised = hills(side, psi, *ridge)
    tone = 1 - hollow + 0.06 * raised + who.mottle * (0.018 * coarse[:, 1] + 0.015 * grain[:, 0])
    red = who.blush * hills(side, psi, (1, 0.52, 0.2, -0.28, 0.16), (0.6, 0, 0.12, base + 0.1, 0.1))
    red = red * (1 + 0.25 * coarse[:, 1]) + 0.35 * hollow.clamp(0, 0.6)  # shade on skin turns red, not grey
    color = who.skin * tone[:, None].clamp(0.1, 1.25)
    color = color + vector(0.02, -0.12, -0.11, like=lam) * (red * (0.3 + who.skin[:, 0]))[:, None]
    spots = who.freckles * smoothstep(grain[:, 0] + 0.4 * grain[:, 1], 0.9, 1.6) * bump(lam / 0.7, (psi + 0.15) / 0.25)
    color = color * (1 - vector(0.2, 0.32, 0.4, like=lam) * spots[:, None])

    # Lids: shadow, the fold, lashes.
    _, edge, _, lash, crease, brow, _ = eye_bands(who, None, lam)
    near = bump(t / 0.95)
    lid = smoothstep(psi, edge - 0.005, edge + 0.01) * (1 - smoothstep(psi, crease - 0.01, crease + 0.03)) * near
    shadow = blend(0.88 * color, 0.5 * who.lips + 0.1, 0.4 * who.makeup)
    color = blend(color, shadow, lid * (0.5 + 0.5 * who.makeup) * (t.abs() < 1.3))
    color = color * (1 - 0.45 * near * bump((psi - crease) / 0.016))[:, None]
    upper = (1 - smoothstep(psi, lash - 0.006, lash + 0.012)) * smoothstep(psi, edge - 0.004, edge)
    lower = bump((psi - edge + 0.012) / 0.014) * (psi < edge) * (0.22 + 0.33 * who.makeup)
    dark = vector(0.10, 0.06, 0.05, like=lam)
    color = blend(color, dark, smoothstep(1.12 - t.abs(), 0, 0.12) * (0.92 * upper + lower))

    # Lips, the dark line between them, nostrils.
    full = bump((psi - slit + 0.55 * who.lower_lip) / 0.04) * bump(lam / 0.12)
    lips = who.lips * (0.92 - 0.16 * (psi > slit) + 0.16 * full + 0.03 * grain[:, 0])[:, None]
    color = blend(color, lips, 0.9 * inside)
    line = 0.62 * bump((psi - slit) / 0.016) * smoothstep(1.1 * corner - side, 0, 0.06)
    nostril = 0.72 * bump((side - 0.55 * wing) / 0.040, (psi - base + 0.005) / 0.024)
    color = color * ((1 - line) * (1 - nostril))[:, None]

    # Brows and beard: hairs that lie across the skin.
    hairs = noise(torch.stack((lam * 0.5 + psi * 0.4, psi * 1.2 - lam * 0.6), 1), who.phase)
    brow = brow_mask(who, lam, psi, brow, 0.010 * hairs[:, 0])
    color = blend(color, who.brow_color * (1 + 0.12 * hairs[:, :1]), 0.88 * brow)
    full = smoothstep(who.beard_shape, 0.15, 0.3)
    border = -0.86 + 0.74 * smoothstep(side, 0.35, 1.0) - psi + 0.02 * hairs[:, 0]
    beard = smoothstep(border, -0.03, 0.12) * torch.maximum(full, bump(lam / 0.3))
    around = 0.9 * full * bump((side - corner * 1.2) / 0.06) * smoothstep(-psi, -base, -slit)
    lip = bump(0.6 * lam / corner) * smoothstep(psi, top, top + 0.03) * (1 - smoothstep(psi, base - 0.08, base - 0.02))
    beard = torch.maximum(torch.maximum(beard, around) * who.beard, lip * who.moustache * who.beard.clamp(min=0.25))
    beard = beard * (1 - inside) * (1 - 0.5 * bump(lam / 0.12, (psi - slit + 0.13) / 0.03))
    color = blend(color, who.brow_color * (1 + 0.18 * hairs[:, :1]), beard * (0.78 + 0.14 * hairs[:, 0]).clamp(0, 1))
    return color, (0.5 + 0.5 * raised.clamp(0, 1) + inside - 0.6 * beard).clamp(min=0)


def paint_eye(scene: Scene, m: Tensor) -> Paint:
    """Sclera, iris and pupil in the eyeball's own frame."""
    who = scene.who
    x, y, _ = m.unbind(1)
    out = (x * x + y * y).sqrt()
    part = out / who.iris_size
    n = noise(torch.stack((torch.atan2(y, x) / math.pi, 0.3 * out), 1), who.phase)
    color = vector(0.92, 0.89, 0.87, like=m) * (1 - 0.40 * smoothstep(out, 0.38, 0.9))[:, None]
    color = color - vector(0.0, 0.06, 0.05, like=m) * smoothstep(out, 0.5, 0.9)[:, None]
    iris = who.iris * (0.95 + 0.16 * n[:, 1] + 0.35 * smoothstep(-y, -0.05, 0.3) - 0.15 * part)[:, None]
    iris = iris * (1 - 0.55 * smoothstep(part, 0.74, 1.0))[:, None]
    color = blend(color, iris.clamp(0, 1), 1 - smoothstep(part, 0.93, 1.09))
    color = blend(color, vector(0.03, 0.03, 0.03, like=m), 1 - smoothstep(part, 0.40, 0.55))
    spark = hills(x, y, (0.9, -0.11, 0.07, 0.12, 0.07), (0.3, 0.11, 0.06, -0.11, 0.06))
    color = blend(color, vector(1.0, 1.0, 1.0, like=m), spark.clamp(0, 1))
    normal = scene.look @ m
    lid = (1 - scene.how.ambient) * 0.6 * smoothstep(normal[:, 1], -0.05, 0.4)  # its shadow; not under ambient light
    return color * (1 - lid)[:, None], scene.rotation @ normal, torch.full_like(x, 1.5)


def paint_mouth(scene: Scene, m: Tensor) -> Paint:
    """The jaw's teeth and gums, the tongue and the dark behind it."""
    x, y = m[:, 0], m[:, 1] - scene.gum[:, 1]
    side = smoothstep(x.abs(), 0.05, 0.30)
    flesh = vector(0.62, 0.28, 0.29, like=m) * (1 - 0.5 * side)[:, None]
    tongue = smoothstep(bump(x / 0.17, (y + 0.02) / 0.10), 0.25, 0.8)
    color = blend(vector(0.16, 0.05, 0.05, like=m), flesh, 0.85 * tongue)
    color = blend(color, 0.85 * enamel(x), 1 - smoothstep(y, -0.075, -0.055))
    color = blend(color, 0.8 * flesh, 1 - smoothstep(y, -0.16, -0.13))
    return color, scene.rotation @ unit(m), torch.full_like(x, 0.5)


def paint_teeth(scene: Scene, m: Tensor) -> Paint:
    """The teeth and gums of the skull."""
    x, y = m[:, 0], m[:, 1] - scene.gum[:, 1]
    color = blend(enamel(x), vector(0.60, 0.27, 0.28, like=m), smoothstep(y, 0.05, 0.08))
    color = color * (1 - 0.2 * smoothstep(y, -0.01, 0.05))[:, None]
    return color, scene.rotation @ unit(m), torch.full_like(x, 0.5)


def enamel(x: Tensor) -> Tensor:
    """The colour of a row of teeth, darker in the gaps and to the sides."""
    gaps = 0.12 * bump(torch.sin(x * (math.pi / 0.075)) / 0.22)
    return vector(0.93, 0.90, 0.85, like=x) * (1 - 0.45 * smoothstep(x.abs(), 0.05, 0.30) - gaps)[:, None]


def paint_ear(scene: Scene, m: Tensor) -> Paint:
    """Ears, with the hollow of the shell painted into them."""
    center, matrix = ear_frame(scene.who)
    flip = torch.cat((m[:, :1].sign(), torch.ones_like(m[:, 1:])), 1)
    q = matrix @ (m * flip - center)
    rim = (q[:, 1] ** 2 + q[:, 2] ** 2).sqrt()
    shell = 0.06 + 0.38 * bump((rim - 0.48) / 0.22) + 0.15 * bump((q[:, 1] + 0.1) / 0.3, (q[:, 2] - 0.3) / 0.3)
    color = scene.who.skin * (1 - vector(0.8, 1.15, 1.15, like=m) * shell[:, None])
    normal = unit((matrix.transpose(1, 2) @ q) * flip)
    return color, scene.rotation @ normal, torch.full_like(rim, 0.4)


def paint_glasses(scene: Scene, m: Tensor) -> Paint:
    """The frames of the glasses."""
    normal = unit(m * vector(1.0, 0.0, 1.0, like=m))
    return scene.who.glasses_color.expand_as(m), scene.rotation @ normal, torch.ones_like(m[:, 0])


# The first and the last of the layers that each of them paints.
PAINTERS: dict[tuple[int, int], Callable[..., Paint]] = {
    (BACKGROUND, BACKGROUND): paint_backdrop, (BODY, BODY): paint_body, (CURTAIN, CURTAIN): paint_curtain,
    (HEAD, HEAD): paint_head, (RIGHT_EYE, LEFT_EYE): paint_eye, (TEETH, TEETH): paint_teeth,
    (MOUTH, MOUTH): paint_mouth, (EAR, EAR): paint_ear, (GLASSES, GLASSES): paint_glasses,
}  # fmt: skip


def shade(scene: Scene, hits: Hits):
    """The colours (b, 3, n) of what the rays have hit."""
    image = torch.zeros_like(hits.material)
    light, directed = scene.how.light, 1 - scene.how.ambient
    half = unit(light + vector(0.0, 0.0, 1.0, like=light))  # between the light and the viewer
    small = Pack(hits.layer > HEAD)
    there = small.take(hits.layer)  # eyes, mouths, ears and glasses are looked for among these few
    for (first, last), painter in PAINTERS.items():
        rays = Pack(hits.layer == first) if last <= HEAD else small.only((there >= first) & (there <= last))[0]
        if rays.empty:
            continue
        inputs = (hits.material, hits.seen) if first == HEAD else (hits.material,)
        color, normal, gloss = painter(scene, *(rays.take(value) for value in inputs))
        if normal is not None and gloss is not None:
            diffuse = dot(normal, light).add_(0.25).clamp_(min=0).mul_(1.16)
            mirror = (0.22 * gloss).mul_(dot(normal, half).clamp_(min=0).pow_(20))
            color = color * diffuse.sub_(1).mul_(directed).add_(1)[:, None]
            color.add_(mirror.mul_(directed)[:, None])
        rays.put(image, color)
    return image.clamp(0, 1)
