"""Framing: where the face is in a photo or film, and the square around it for which weights are trained.

A face's `Place` is the centre of its 74 landmarks and their spread, in pixels. Every square here is made of a place:
`usual_box` is that of the detector, `trained_box` that of the clips in training, which is larger or smaller by a
constant. So a photo and a film of two people are framed alike, whatever their sizes.

The order: a cascade finds rough squares (`find_faces`), the detector settles them (`settle_box`), `frame_photo` and
`frame_film` choose the largest face, and `tracking` follows it through the film.
"""

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from skimage.data import lbp_frontal_face_cascade_filename
from skimage.feature import Cascade
from torch import Tensor, nn

from minimodel.data.video import Clip
from minimodel.errors import MinimodelError
from minimodel.landmarks import MIRRORED, SIZE, confidence

Box = tuple[int, int, int]  # left, top and side of a square in pixels; it may reach beyond the picture
Crop = Literal["auto", "none"] | Box

LOOKS = 5  # frames of a clip in which the face is sought
AROUND_FACE = 1.6  # side of the crop, in sides of the box that the cascade finds
SEARCHED = 480  # shorter side of the picture for the cascade, in pixels
SMALLEST_FACE = 12  # the cascade's boxes go down to this part of the picture's shorter side

# How a face lies in the pictures that the detector learned from: the centre of its landmarks, and their distance from
# it (root of the mean square), normalised.
USUAL_CENTRE, USUAL_SPREAD = (0.0, 0.1), 0.34
# The same for clips that `minimodel prepare` frames, which the weights are trained on.
TRAINED_CENTRE, TRAINED_SPREAD = (0.0, 0.13), 0.36
SURE = 0.4  # faces have a confidence above, everything else below
# `trust` of faces is above; `trust` of the best squares in scikit-image's pictures without a face is at most 0.49.
TRUSTED = 0.52


# ------------------------------------------------------------------------------------------------ squares of pictures


def crop(frame: Tensor, box: Box, size: int) -> Float[Tensor, "3 {size} {size}"]:
    """Cut the square ``box`` out of a frame (3, h, w), bytes or floats in [0, 1], and resize it to ``size``. Outside
    the frame its edge is repeated."""
    left, top, side = box
    height, width = frame.shape[-2:]
    if 0 <= left <= width - side and 0 <= top <= height - side:
        square = frame[None, :, top : top + side, left : left + side]
    else:
        rows = torch.arange(top, top + side).clamp(0, height - 1)
        columns = torch.arange(left, left + side).clamp(0, width - 1)
        square = frame[:, rows][:, :, columns][None]
    # Bytes stay bytes: for them, as a film gives them, PyTorch has a way that is thirty times as quick.
    made = F.interpolate(square, (size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    return made / 255 if made.dtype == torch.uint8 else made.clamp(0, 1)


def middle_square(height: int, width: int) -> Box:
    """The largest square in the middle of a picture."""
    side = min(height, width)
    return (width - side) // 2, (height - side) // 2, side


def center_crop_resize(images: Float[Tensor, "b 3 h w"], size: int) -> Float[Tensor, "b 3 size size"]:
    """Cut the largest square from the middle of each picture and resize it to ``size``, without aliasing."""
    left, top, side = middle_square(*images.shape[-2:])
    square = images[..., top : top + side, left : left + side]
    if side == size:
        return square.clone()
    return F.interpolate(square, (size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


class Place(NamedTuple):
    """The place of a face in pixels of the picture: the centre of its landmarks, and their spread (root of the mean
    squared distance from the centre)."""

    x: float
    y: float
    spread: float

    def near(self, other: "Place", *, distance: float, ratio: float) -> bool:
        """Whether another face is within ``distance`` spreads, and of a size within a factor of ``ratio``."""
        apart = math.hypot(self.x - other.x, self.y - other.y)
        return apart < distance * self.spread and self.alike(other, ratio=ratio)

    def alike(self, other: "Place", *, ratio: float) -> bool:
        """Whether the sizes of both faces differ by less than a factor of ``ratio``."""
        return max(self.spread, other.spread) < ratio * min(self.spread, other.spread)


def place_of(points: Float[Tensor, "74 2"], box: Box) -> Place:
    """The place of a face from its landmarks, which are normalised to ``box``."""
    centre = points.mean(0)
    spread = (points - centre).square().sum(-1).mean().sqrt().item() * box[2] / 2
    x, y = (corner + (z + 1) / 2 * box[2] for corner, z in zip(box, centre.tolist()))
    return Place(x, y, spread)


def usual_box(place: Place) -> Box:
    """The square around a face for the landmark detector: the face lies in it as in the detector's training."""
    return _box_around(place, USUAL_CENTRE, USUAL_SPREAD)


def trained_box(place: Place) -> Box:
    """The square around a face for animation models: the face lies in it as in the clips of their training."""
    return _box_around(place, TRAINED_CENTRE, TRAINED_SPREAD)


def _box_around(place: Place, centre: tuple[float, float], spread: float) -> Box:
    side = max(1, round(2 * place.spread / spread))
    left, top = (middle - (usual + 1) / 2 * side for middle, usual in zip(place, centre))
    return round(left), round(top), side


# ------------------------------------------------------------------------------------------------------ finding faces


def look_at(frames: list[Tensor]) -> list[Tensor]:
    """Pick `LOOKS` of the frames, evenly spaced."""
    return [frames[index] for index in np.linspace(0, len(frames) - 1, LOOKS).astype(int)]


def look_into(clip: Clip) -> list[Tensor]:
    """Decode up to `LOOKS` frames from all over the clip. Of a clip that breaks off they come from what there is.
    Raises `MinimodelError` if no frame can be decoded."""
    looks: list[Tensor] = []
    for index in sorted({int(index) for index in np.linspace(0, len(clip) - 1, LOOKS)}):
        try:
            for at, shown in clip.decode(index):
                frame = shown
                if at >= index:
                    break
        except MinimodelError:
            if not looks:
                raise
            break
        looks.append(frame)
    return looks


@cache
def face_cascade() -> Cascade:
    """Load scikit-image's detector of frontal faces, once."""
    return Cascade(lbp_frontal_face_cascade_filename())


def find_faces(frames: list[Tensor], cascade: Cascade) -> list[tuple[Box, list[int]]]:
    """Find a square around each face with the cascade, and the indices of the ``frames`` in which it is found. Faces
    that are found often come first, among equals the largest.

    Boxes of different frames belong to one face where their middles are near; the square is their median.
    """
    faces: list[list[tuple[int, float, float, float]]] = []  # (index, x, y, width) of each sighting
    for index, frame in enumerate(frames):
        height, width = frame.shape[-2:]
        scale = min(1.0, SEARCHED / min(height, width))
        image = frame if frame.dtype == torch.uint8 else (frame * 255).round().byte()
        if scale < 1:
            size = round(height * scale), round(width * scale)
            image = F.interpolate(image[None] / 1.0, size, mode="area")[0].round().byte()
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        side = min(pixels.shape[:2])
        least = max(1, side // SMALLEST_FACE)
        sizes = dict(min_size=(least, least), max_size=(side, side))
        boxes = cascade.detect_multi_scale(img=pixels, scale_factor=1.15, step_ratio=1, **sizes)
        for box in boxes:
            x, y, wide = ((box["c"] + box["width"] / 2), (box["r"] + box["height"] / 2), box["width"])
            sighting = index, x / scale, y / scale, wide / scale
            for face in faces:
                _, fx, fy, fwide = np.median(face, axis=0)
                if math.hypot(sighting[1] - fx, sighting[2] - fy) < 0.5 * max(fwide, sighting[3]):
                    face.append(sighting)
                    break
            else:
                faces.append([sighting])
    found = []
    for face in faces:
        _, x, y, wide = np.median(face, axis=0)
        side = AROUND_FACE * wide
        found.append(((round(x - side / 2), round(y - side / 2), round(side)), sorted({s[0] for s in face})))
    often = max((len(seen) for _, seen in found), default=0)
    return sorted(found, key=lambda f: (2 * len(f[1]) >= often, f[0][2]), reverse=True)


def find_face(frames: list[Tensor], cascade: Cascade) -> Box | None:
    """Find a square (left, top, side) around the largest face: the median over some of the frames. None if there is no
    face."""
    found = find_faces(look_at(frames), cascade)
    return found[0][0] if found else None


def settle_box(detector: nn.Module, frames: list[Tensor], boxes: list[Box]) -> tuple[Box, float]:
    """Choose the one of the rough ``boxes`` in which the detector is surest of a face, moved by `settle`. The second
    result is the detector's confidence."""
    place, sure = max((settle(detector, frames, rough) for rough in boxes), key=lambda settled: settled[1])
    return usual_box(place), sure


@torch.inference_mode()
def settle(detector: nn.Module, frames: list[Tensor], rough: Box) -> tuple[Place, float]:
    """Find the place of the face in a ``rough`` box. The box is moved three times, to where the face lies in it as in
    the detector's training; the place with the highest confidence is kept, together with that confidence. Of several
    frames both are medians."""
    box, best, surest = rough, settled_place(rough), 0.0
    for _ in range(3):
        found, heatmaps = detector(torch.stack([crop(frame, box, SIZE) for frame in frames]))
        place, sure = middle_place([place_of(points, box) for points in found]), confidence(heatmaps, found)
        if sure.median().item() > surest:
            best, surest = place, sure.median().item()
        box = usual_box(place)
    return best, surest


def settled_place(box: Box) -> Place:
    """The place of the face that a settled box belongs to: the inverse of `usual_box`."""
    x, y = (corner + (usual + 1) / 2 * box[2] for corner, usual in zip(box, USUAL_CENTRE))
    return Place(x, y, USUAL_SPREAD * box[2] / 2)


def middle_place(places: list[Place]) -> Place:
    """The median of some places, number by number."""
    return Place(*torch.tensor(places).median(0).values.tolist())


@torch.inference_mode()
def trust(detector: nn.Module, frame: Tensor, place: Place) -> float:
    """How likely there is a face at this place, 0 to 1.

    The detector's confidence alone isn't enough: applied all over a picture, the detector is confident of coins and
    cats. But landmarks of something that is no face move when the picture is mirrored. So the confidence is reduced by
    three times the mean distance, in spreads, between the landmarks of the picture and those of its mirror image.
    """
    box = usual_box(place)
    picture = crop(frame, box, SIZE)
    found, heatmaps = detector(torch.stack([picture, picture.flip(-1)]))
    mirrored = found[1, MIRRORED] * torch.tensor([-1.0, 1.0])
    disagreement = (found[0] - mirrored).norm(dim=-1).mean().item() / (2 * place.spread / box[2])
    return confidence(heatmaps, found)[0].item() * max(0.0, 1 - 3 * disagreement)


@torch.inference_mode()
def find_places(detector: nn.Module, frames: list[Tensor]) -> list[tuple[Place, list[int]]]:
    """Find the places of faces, the most important first, and the frames in which each is found: the largest of those
    that are found often. A face that moves about may have several places, in different frames."""

    def trusted(rough: list[tuple[Box, int]]) -> list[tuple[float, Place, int]]:
        places = [(settle(detector, [frames[index]], box)[0], index) for box, index in rough]
        likely = [(trust(detector, frames[index], place), place, index) for place, index in places]
        return sorted((one for one in likely if one[0] >= TRUSTED), key=lambda one: one[0], reverse=True)

    found = trusted([(box, index) for box, seen in find_faces(frames, face_cascade()) for index in seen])
    if not found:  # the cascade finds frontal faces only
        rough = []
        squares = _windows(*frames[0].shape[-2:])
        for index, frame in enumerate(frames):
            points, heatmaps = detector(torch.stack([crop(frame, box, SIZE) for box in squares]))
            best = confidence(heatmaps, points).topk(2).indices.tolist()
            rough += [(squares[number], index) for number in best]
        found = trusted(rough)
    faces: list[list[tuple[Place, int]]] = []
    for _, place, index in found:  # several rough boxes may have settled on one face
        for face in faces:
            if _one_face(place, face[0][0]):
                face.append((place, index))
                break
        else:
            faces.append([(place, index)])
    places = [(middle_place([p for p, _ in face]), sorted({index for _, index in face})) for face in faces]
    often = max((len(seen) for _, seen in places), default=0)
    return sorted(places, key=lambda p: (2 * len(p[1]) >= often, p[0].spread), reverse=True)


def _one_face(place: Place, other: Place) -> bool:
    return math.hypot(place.x - other.x, place.y - other.y) < 1.5 * max(place.spread, other.spread)


def _windows(height: int, width: int) -> list[Box]:
    """Squares of three sizes all over a picture, the middle one first."""
    squares = [middle_square(height, width)]
    for part in (1.0, 0.7, 0.45):
        side = round(part * min(height, width))
        rows, columns = (max(2, math.ceil((length - side) / (side / 2)) + 1) for length in (height, width))
        for top in np.linspace(0, height - side, rows if height > side else 1):
            squares += [
                (round(left), round(top), side) for left in np.linspace(0, width - side, columns if width > side else 1)
            ]
    return squares


# ----------------------------------------------------------------------------------------------------- photo and film


NO_FACE = "no face found; --crop none takes the middle, --source-box and --driving-box a square of your choice"


@dataclass(frozen=True)
class Framing:
    """The framing of a photo or film: the square ``box`` to use; the ``face`` in it, if there is one; the number of
    ``faces``; and whether the square may ``follow`` the face through a film."""

    box: Box
    face: Place | None = None
    faces: int = 0
    follow: bool = False

    def note(self) -> str | None:
        """A line for the user if there are several faces, otherwise None."""
        if self.faces < 2:
            return None
        return f"{self.faces} faces: the largest is taken, in the square {' '.join(map(str, self.box))}"


def frame_photo(image: Float[Tensor, "3 h w"], detector: nn.Module, *, crop: Crop = "auto") -> Framing:
    """Choose the square of a photo. ``crop`` "auto" finds the largest face, "none" takes the middle, a box is taken as
    it is.

    Raises:
        MinimodelError: there is no face, or the box lies outside the picture.
    """
    size = tuple(image.shape[-2:])
    if crop != "auto":
        return Framing(_given_box(crop, *size))
    found = find_places(detector, [image])
    if not found:
        raise MinimodelError(NO_FACE)
    face = found[0][0]
    return Framing(shift_inside(trained_box(face), *size), face, len(found))


def frame_film(
    frames: list[UInt8[Tensor, "3 h w"]], detector: nn.Module, *, crop: Literal["auto"] | Box = "auto"
) -> Framing:
    """Choose the square of a film from some of its ``frames``, in order, as `look_into` gives them. Options and errors
    are those of `frame_photo`. A given box stays where it is; a box that was found may follow the face."""
    found = find_places(detector, frames)
    if crop != "auto":
        # A given box is used even without a face in it, as of a drawing; a face in it is tracked all the same.
        box = _given_box(crop, *frames[0].shape[-2:])
        inside = [place for place, _ in found if _contains(box, place)]
        return Framing(box, inside[0] if inside else None)
    if not found:
        raise MinimodelError(NO_FACE)
    count = max(sum(index in seen for _, seen in found) for index in range(len(frames)))
    (face, often), *others = found
    # The film begins where the face is found first, which may be elsewhere if the person walks.
    same = [(seen[0], place) for place, seen in others if not set(seen) & set(often) and place.alike(face, ratio=1.5)]
    first = min([(often[0], face), *same])[1]
    face = follow(face, first, rate=1.0)
    return Framing(trained_box(face), face, count, follow=True)


def _given_box(crop: Crop, height: int, width: int) -> Box:
    if isinstance(crop, str):  # "none"
        return middle_square(height, width)
    left, top, side = crop
    if side < 1 or left >= width or top >= height or left + side <= 0 or top + side <= 0:
        raise MinimodelError(
            f"the square {left} {top} {side} shows nothing of {width} x {height} pixels: expected left, top and a side"
        )
    return crop


def _contains(box: Box, place: Place) -> bool:
    return all(corner < middle < corner + box[2] for corner, middle in zip(box[:2], place[:2]))


def shift_inside(box: Box, height: int, width: int, *, most: float = 0.12) -> Box:
    """Move the box into the picture as far as possible, by at most ``most`` of its side. A face a bit off the middle
    does better than a face beside a repeated edge."""
    left, top, side = box
    limit = round(most * side)

    def shift(corner: int, length: int) -> int:
        inner = min(max(corner, 0), length - side) if side <= length else (length - side) // 2
        return corner + min(max(inner - corner, -limit), limit)

    return shift(left, width), shift(top, height), side


# The free zone of the camera, in spreads of the face and as a ratio of sizes.
FREE, FREE_RATIO = 0.8, 1.25


def follow(camera: Place, face: Place, *, rate: float) -> Place:
    """Move a camera after a face. The camera rests while the face stays in its free zone; otherwise it makes up for a
    share ``rate`` of the excess, in place and in size."""
    free, sizes = FREE * camera.spread, math.log(FREE_RATIO)
    x, y = (c + rate * (p - c - min(max(p - c, -free), free)) for c, p in zip(camera[:2], face[:2]))
    larger = math.log(max(face.spread, 1e-3) / camera.spread)
    return Place(x, y, camera.spread * math.exp(rate * (larger - min(max(larger, -sizes), sizes))))


@torch.inference_mode()
def find_landmarks(
    detector: nn.Module, frames: Iterable, box: Box
) -> tuple[Float[Tensor, "t 74 2"], Bool[Tensor, "t"]]:
    """Find the landmarks, in pixels, of ``frames`` (3, h, w), 0 to 255, in all of which the head is in ``box``. The
    second result is whether the detector is sure of each frame."""
    points, sure, frames = [], [], iter(frames)
    while some := list(islice(frames, 16)):
        found, heatmaps = detector(torch.stack([crop(frame, box, SIZE) for frame in some]))
        points.append(((found + 1) * box[2] - 1) / 2 + torch.tensor(box[:2]))
        sure.append(confidence(heatmaps, found))
    return torch.cat(points), torch.cat(sure) >= SURE


def landmarks_file(
    points: Float[Tensor, "t 74 2"], found: Bool[Tensor, "t"], *, size: tuple[int, int], fps: Fraction
) -> bytes:
    """The bytes of an .npz with the landmarks in pixels. ``size`` = (height, width) and ``fps`` of the film are stored
    with them, because driving a face with landmarks needs both."""
    file = io.BytesIO()
    rate = fps.as_integer_ratio()
    np.savez_compressed(file, landmarks=points.numpy(), found=found.numpy(), size=tuple(size), fps=rate)
    return file.getvalue()


def draw_crops(pictures: list[Tensor], boxes: list[Box], *, size: int = 192) -> Float[Tensor, "3 h w"]:
    """Draw each picture with its square outlined in red, and the content of the square below."""
    columns = []
    for picture, (left, top, side) in zip(pictures, boxes, strict=True):
        height, width = picture.shape[-2:]
        long = max(height, width)
        corner = (width - long) // 2, (height - long) // 2
        whole = crop(picture, (*corner, long), size)
        x, y = (round((a - b) / long * size) for a, b in zip((left, top), corner))
        last = max(1, round(side / long * size)) - 1
        rows, columns_of = (torch.arange(start, start + last + 1).clamp(0, size - 1) for start in (y, x))
        red = torch.tensor([1.0, 0.0, 0.0])[:, None]
        for row in rows[[0, -1]]:
            whole[:, row, columns_of] = red
        for column in columns_of[[0, -1]]:
            whole[:, rows, column] = red
        columns.append(torch.cat([whole, crop(picture, (left, top, side), size)], dim=1))
    return torch.cat(columns, dim=2)
