"""What is known exactly about the pictures: the flow between two of them, what each pixel shows, and 74 landmarks.

The flow goes driving pixel -> ray -> first hit -> material -> where the source state puts it -> minus the pixel.
"""

from dataclasses import fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minimodel.data.faces.arithmetic import Columns, angles, direction, smoothstep, vector
from minimodel.data.faces.expressions import eye_bands, mouth_bands
from minimodel.data.faces.painting import brow_mask, lip_mask, neckline
from minimodel.data.faces.people import Identity
from minimodel.data.faces.rendering import check, chunked, rays_of
from minimodel.data.faces.scene import Scene, prepare
from minimodel.data.faces.shapes import face, hair_height, hair_volume, skull
from minimodel.data.faces.states import Faces
from minimodel.data.faces.tracing import BODY, HEAD, LEFT_EYE, RIGHT_EYE, Pack, place, trace
from minimodel.errors import MinimodelError
from minimodel.warping import to_pixels

# What `parsing` tells apart.
PARTS = (
    "background", "skin", "brows", "eyes", "nose", "upper lip", "lower lip", "mouth", "hair", "ears", "neck", "clothes",
    "glasses",
)  # fmt: skip


@torch.no_grad()
def flow_between(
    source: Faces, driving: Faces, size: int
) -> tuple[Float[Tensor, "b 2 {size} {size}"], Float[Tensor, "b 1 {size} {size}"]]:
    """The exact backward flow on the driving grid, normalised, and 1 where the source shows the same material, else 0.

    Source and driving are the same people in different states; a source of one face serves any number of driving ones.

    Raises:
        MinimodelError: source and driving are different people or differ in number, ``size`` is below 8, or no face
            came.
    """
    check(source, size)
    if len(source) == 1 < len(driving):
        source = source.map(lambda value: value.expand(len(driving), *value.shape[1:]))
    if len(source) != len(driving):
        raise MinimodelError(
            f"{len(source)} source faces for {len(driving)} driving ones; expected as many, or one source"
        )
    pairs = [(getattr(source.identity, part.name), getattr(driving.identity, part.name)) for part in fields(Identity)]
    if not all(torch.equal(a, b) for a, b in pairs):
        raise MinimodelError("source and driving are different people; expected the same identities in the same order")

    def flow(source: Faces, driving: Faces) -> tuple[Tensor, Tensor]:
        screen = rays_of(size, driving)
        hits = trace(prepare(driving), screen)
        scene = prepare(source)
        where, depth = place(scene, hits.layer, hits.material)
        where = torch.where((where - screen).abs() < 4e-6, screen, where)  # so that no motion is exactly none
        first = trace(scene, where)
        visible = (first.layer == hits.layer) & ((first.depth - depth).abs() < 0.03) & (where.abs() < 1).all(1)
        return (where - screen).unflatten(2, (size, size)), visible.float().unflatten(1, (1, size, size))

    return chunked(flow, size**2, source, driving)


@torch.no_grad()
def parsing(faces: Faces, size: int) -> Int[Tensor, "b {size} {size}"]:
    """What the centre of each pixel shows, as an index into `PARTS`.

    Raises:
        MinimodelError: ``size`` is below 8, or there is no face.
    """
    check(faces, size)
    part = {name: i for i, name in enumerate(PARTS)}
    by_layer = "background", "clothes", "hair", "skin", "eyes", "eyes", "mouth", "mouth", "ears", "glasses"

    def label(faces: Faces) -> Tensor:
        scene = prepare(faces)
        who, hits = scene.who, trace(scene, rays_of(size, faces))
        labels = torch.tensor([part[name] for name in by_layer], device=faces.device)[hits.layer.long()]
        labels = labels.masked_fill((hits.layer == BODY) & (neckline(who, hits.material) > 0), part["neck"])
        rays = Pack(hits.layer == HEAD)
        lam, psi, _ = rays.take(hits.material).unbind(1)
        lip, slit, _ = lip_mask(who, lam, psi)
        wing = 0.07 + (who.nose_width - 0.02) * smoothstep(-psi, -0.1, -0.1 - who.nose_base)
        nose = (lam.abs() < wing) & (psi < 0.06) & (psi > who.nose_base - 0.03)
        skin = torch.where(nose, part["nose"], part["skin"])
        skin = torch.where(lip > 0.5, torch.where(psi > slit, part["upper lip"], part["lower lip"]), skin)
        skin = skin.masked_fill(brow_mask(who, lam, psi, eye_bands(who, None, lam)[5]) > 0.5, part["brows"])
        rays.put(labels, skin.masked_fill(hair_height(who, direction(lam, psi)) > 0, part["hair"]))
        return labels.unflatten(1, (size, size))

    return chunked(label, size**2, faces)


def landmark_angles(who: Columns) -> Tensor:
    """Material angles (b, 2, 72) of the landmarks on the skin, in their final order but without the pupils."""
    lips, lids = who.mouth_width, who.eye_width

    def points(lam: Tensor, psi: Tensor) -> Tensor:
        return torch.stack(torch.broadcast_tensors(lam + 0 * who.size, psi + 0 * lam), 1)

    def on_lips(steps: tuple[float, ...], border: int, nudge: float = 0.0) -> Tensor:
        lam = lips * torch.tensor(steps, device=lips.device)
        return points(lam, mouth_bands(who, None, lam)[border] + nudge)

    def on_lid(side: int, steps: tuple[float, ...], border: int, nudge: float = 0.0) -> Tensor:
        lam = side * (who.eye_spacing + lids * torch.tensor(steps, device=lids.device))
        return points(lam, eye_bands(who, None, lam)[border] + nudge)

    # The jaw: an arc around the face from the right ear over the chin to the left.
    turn = torch.linspace(-1.62, 1.62, 17, device=lips.device)
    forward = 0.12 + 0.48 * turn.cos().clamp(min=0) ** 1.5
    jaw = torch.stack((who.width * turn.sin(), -1.02 * who.bottom * turn.cos(), forward.expand(len(lips), -1)), 1)
    down = torch.linspace(0, 1, 4, device=lips.device)
    across = torch.linspace(-1, 1, 5, device=lips.device)
    brow, high, low = (0.9, 0.5, 0.1, -0.4, -0.85), 2e-5, -1e-5  # on the upper and on the lower side of a slit
    parts = [torch.stack(angles(jaw), 1), on_lid(-1, brow, 5), on_lid(1, brow[::-1], 5)]
    parts += [points(0 * down, 0.09 + (who.nose_base + 0.01) * down), points(who.nose_width * across, who.nose_base)]
    for side, (a, b, c, d) in ((-1, (1.0, 0.4, -0.4, -1.0)), (1, (-1.0, -0.4, 0.4, 1.0))):
        parts += [on_lid(side, (a,), 1), on_lid(side, (b, c), 2, high)]
        parts += [on_lid(side, (d,), 1), on_lid(side, (c, b), 1, low)]
    outer, inner = (-0.62, -0.2, 0.0, 0.2, 0.62), (-0.5, 0.0, 0.5)
    parts += [on_lips((-1.0,), 3), on_lips(outer, 5), on_lips((1.0,), 3), on_lips(outer[::-1], 2)]
    parts += [on_lips((-0.9,), 3), on_lips(inner, 4, high), on_lips((0.9,), 3), on_lips(inner[::-1], 3, low)]
    for side in (-1, 1):
        parts += [on_lid(side, (0.0,), 2, high), on_lid(side, (0.0,), 1, low)]
    return torch.cat(parts, 2)


def place_landmarks(scene: Scene) -> tuple[Tensor, Tensor]:
    """Positions (b, 2, 74) of the landmarks in the picture, normalised, and their depths (b, 74)."""
    lam, psi = landmark_angles(scene.who).unbind(1)
    u = direction(lam, psi)
    bare, hair = skull(scene.who, u) + face(scene.who, lam, psi), hair_volume(scene.who, u)
    skin = torch.stack((lam, psi, bare / (bare + hair)), 1)  # temples lie under the hair
    pupils = vector(0.0, 0.0, 1.0, like=u).expand(len(u), -1, 2)
    layer = torch.full((len(u), 74), HEAD, dtype=torch.uint8, device=u.device)
    layer[:, 68], layer[:, 69] = RIGHT_EYE, LEFT_EYE
    return place(scene, layer, torch.cat((skin[..., :68], pupils, skin[..., 68:]), 2))


@torch.no_grad()
def landmarks(faces: Faces, size: int | None = None) -> Float[Tensor, "b 74 2"]:
    """The 74 landmarks in pixels of a picture of ``size``, pixel centres at integers; normalised without a ``size``.

    They are 68 iBUG points, pupils (right, left) and eyelid midpoints (right upper, right lower, left upper, left
    lower), all of them material points; a hidden one is where it would show if nothing were in the way.

    Raises:
        MinimodelError: ``size`` is below 8, or there is no face.
    """
    check(faces, size)
    points = chunked(lambda faces: place_landmarks(prepare(faces))[0].transpose(1, 2), 74, faces)
    return points if size is None else to_pixels(points, (size, size))
