"""Where the face is in a photo or film, and the square in which the weights want to see it.

A face's `Place` is the centre of its 74 landmarks and their spread, in pixels. Every square here is made of a place:
the detector's own (`usual_box`), and the one that clips were trained in (`trained_box`), which is larger or smaller by
a constant. So a photo and a film of two people are framed alike, whatever their sizes.

The order: a cascade finds rough squares (`find_faces`), the detector settles them (`settle_box`), `frame_photo` and
`frame_film` choose the largest face, and `FaceTracker` says of each frame of the film whether the face is still there.
"""

import io
import math
from collections.abc import Iterable, Iterator
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
from minimodel.landmarks import SIZE, confidence

Box = tuple[int, int, int]  # left, top and side of a square in pixels; it may reach beyond the picture
Crop = Literal["auto", "none"] | Box

LOOKS = 5  # frames of a clip in which the face is sought
AROUND_FACE = 1.6  # side of the crop in sides of the box that the cascade finds
SEARCHED = 480  # shorter side of the picture that the cascade sees, in pixels
SMALLEST_FACE = 12  # the cascade's boxes go down to this part of the picture's shorter side

# How a face lies in the pictures that the detector learned from: the centre of its landmarks, and their distance from
# it (root of the mean square), normalised.
USUAL_CENTRE, USUAL_SPREAD = (0.0, 0.1), 0.34
# The same for clips that `minimodel prepare` frames, which the weights are trained on.
TRAINED_CENTRE, TRAINED_SPREAD = (0.0, 0.15), 0.38
SURE = 0.4  # faces have a confidence above, everything else below
LOST = 0.3  # a face that was there is still there above: profiles and hands in front of it make the detector doubt


# ------------------------------------------------------------------------------------------------ squares of pictures


def crop(frame: Tensor, box: Box, size: int) -> Float[Tensor, "3 {size} {size}"]:
    """The square ``box`` of a frame (3, h, w), bytes or floats in [0, 1], at ``size``; what lies outside the frame
    repeats its edge."""
    left, top, side = box
    height, width = frame.shape[-2:]
    rows = torch.arange(top, top + side).clamp(0, height - 1)
    columns = torch.arange(left, left + side).clamp(0, width - 1)
    square = frame[:, rows][:, :, columns][None]
    square = square / 255 if square.dtype == torch.uint8 else square
    return F.interpolate(square, (size, size), mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)


def middle_square(height: int, width: int) -> Box:
    """The largest square in the middle."""
    side = min(height, width)
    return (width - side) // 2, (height - side) // 2, side


def center_crop_resize(images: Float[Tensor, "b 3 h w"], size: int) -> Float[Tensor, "b 3 size size"]:
    """The largest square from the middle of each picture, averaged or interpolated to ``size``."""
    left, top, side = middle_square(*images.shape[-2:])
    square = images[..., top : top + side, left : left + side]
    if side == size:
        return square.clone()
    return F.interpolate(square, (size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


class Place(NamedTuple):
    """Where a face is, in pixels of the picture: the centre of its landmarks and their spread."""

    x: float
    y: float
    spread: float

    def near(self, other: "Place", *, distance: float, ratio: float) -> bool:
        """Whether the other face is as near as ``distance`` spreads, and larger or smaller by at most ``ratio``."""
        if min(self.spread, other.spread) <= 0:
            return False
        apart = math.hypot(self.x - other.x, self.y - other.y) / self.spread
        return apart < distance and max(self.spread / other.spread, other.spread / self.spread) < ratio


def place_of(points: Float[Tensor, "74 2"], box: Box) -> Place:
    """The place of a face whose landmarks are these, normalised to ``box``."""
    centre = points.mean(0)
    spread = (points - centre).square().sum(-1).mean().sqrt().item() * box[2] / 2
    x, y = (corner + (z + 1) / 2 * box[2] for corner, z in zip(box, centre.tolist()))
    return Place(x, y, spread)


def usual_box(place: Place) -> Box:
    """The square in which the landmark detector wants to see a face at this place."""
    return _box_around(place, USUAL_CENTRE, USUAL_SPREAD)


def trained_box(place: Place) -> Box:
    """The square in which animation models want to see it."""
    return _box_around(place, TRAINED_CENTRE, TRAINED_SPREAD)


def _box_around(place: Place, centre: tuple[float, float], spread: float) -> Box:
    side = max(1, round(2 * place.spread / spread))
    left, top = (middle - (usual + 1) / 2 * side for middle, usual in zip(place, centre))
    return round(left), round(top), side


# ------------------------------------------------------------------------------------------------------ finding faces


def look_at(frames: list[Tensor]) -> list[Tensor]:
    """Some frames, evenly spaced."""
    return [frames[index] for index in np.linspace(0, len(frames) - 1, LOOKS).astype(int)]


def look_into(clip: Clip) -> list[Tensor]:
    """Frames from all over the clip; of one that breaks off, from what there is."""
    looks = []
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
    """scikit-image's finder of frontal faces."""
    return Cascade(lbp_frontal_face_cascade_filename())


def find_faces(frames: list[Tensor], cascade: Cascade) -> list[tuple[Box, list[int]]]:
    """A square around each face that the cascade sees, and the indices of the ``frames`` in which it does; faces that
    are seen often come first, among equals the largest.

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
        image = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        side = min(image.shape[:2])
        least = side // SMALLEST_FACE
        sizes = dict(min_size=(least, least), max_size=(side, side))
        boxes = cascade.detect_multi_scale(img=image, scale_factor=1.15, step_ratio=1, **sizes)
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
    return sorted(found, key=lambda f: (len(f[1]) > len(frames) // 3, f[0][2]), reverse=True)


def find_face(frames: list[Tensor], cascade: Cascade) -> Box | None:
    """Left, top and side of a square around the largest face: the median over some of the frames."""
    found = find_faces(look_at(frames), cascade)
    return found[0][0] if found else None


@torch.inference_mode()
def settle_box(detector: nn.Module, frames: list[Tensor], boxes: list[Box]) -> tuple[Box, float]:
    """Of rough ``boxes`` the one in which the detector is surest of the face, moved to where it has it as it learned
    it; and how sure it then is."""
    best, surest = boxes[0], 0.0
    for rough in boxes:
        box = rough
        for _ in range(3):
            found, heatmaps = detector(torch.stack([crop(frame, box, SIZE) for frame in frames]))
            sure = confidence(heatmaps, found).median().item()
            if sure > surest:
                best, surest = box, sure
            places = torch.tensor([place_of(points, box) for points in found])
            box = usual_box(Place(*places.median(0).values.tolist()))
    return best, surest


def settled_place(box: Box) -> Place:
    """The place of the face for which a settled box is right; undoes `usual_box`."""
    x, y = (corner + (usual + 1) / 2 * box[2] for corner, usual in zip(box, USUAL_CENTRE))
    return Place(x, y, USUAL_SPREAD * box[2] / 2)


@torch.inference_mode()
def find_places(detector: nn.Module, frames: list[Tensor]) -> list[Place]:
    """The places of all faces of which the detector is sure in some of the ``frames``, the largest first."""
    settled = []
    for rough, seen in find_faces(frames, face_cascade()):
        settled.append(settle_box(detector, [frames[index] for index in seen], [rough]))
    if not any(sure >= SURE for _, sure in settled):  # the cascade knows frontal faces only
        for frame in frames[len(frames) // 2 :][:1]:
            squares = _windows(*frame.shape[-2:])
            found, heatmaps = detector(torch.stack([crop(frame, box, SIZE) for box in squares]))
            surest = confidence(heatmaps, found).topk(2).indices.tolist()
            settled += [settle_box(detector, [frame], [squares[index]]) for index in surest]
    places: list[Place] = []
    for box, sure in sorted(settled, key=lambda s: s[0][2], reverse=True):
        place = settled_place(box)
        # Two rough boxes may settle on one face.
        if sure >= SURE and not any(place.near(other, distance=1.5, ratio=math.inf) for other in places):
            places.append(place)
    return places


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


@dataclass(frozen=True)
class Framing:
    """The square ``box`` of a photo or film that is used; the ``face`` in it, if one was looked for and found; how
    many ``faces`` there are; and whether the square may ``follow`` the face through a film."""

    box: Box
    face: Place | None = None
    faces: int = 0
    follow: bool = False

    def note(self) -> str | None:
        """What a user should know of it."""
        if self.faces < 2:
            return None
        return f"{self.faces} faces: the largest is taken, in the square {' '.join(map(str, self.box))}"


def frame_photo(image: Float[Tensor, "3 h w"], detector: nn.Module, *, crop: Crop = "auto") -> Framing:
    """How to cut a photo. ``crop`` "auto" finds the largest face, "none" takes the middle, a box is taken as it is.

    Raises:
        ValueError: there is no face, or the box lies outside the picture.
    """
    size = tuple(image.shape[-2:])
    if crop != "auto":
        return Framing(_given_box(crop, *size))
    places = find_places(detector, [image])
    if not places:
        raise ValueError("no face found; --crop none takes the middle, --crop LEFT TOP SIDE a square of your choice")
    return Framing(shift_inside(trained_box(places[0]), *size), places[0], len(places))


def frame_film(frames: list[UInt8[Tensor, "3 h w"]], detector: nn.Module, *, crop: Crop = "auto") -> Framing:
    """How to cut a film of which ``frames`` are some, as `look_into` gives them; options and errors are those of
    `frame_photo`. A box that is given stays where it is, one that was found may `follow`."""
    places = find_places(detector, frames)
    if crop != "auto":
        # What is asked for is done, be it a drawing; a face in it is watched all the same.
        box = _given_box(crop, *frames[0].shape[-2:])
        inside = [place for place in places if _contains(box, place)]
        return Framing(box, inside[0] if inside else None)
    if not places:
        raise ValueError("no face found; --crop none takes the middle, --crop LEFT TOP SIDE a square of your choice")
    return Framing(trained_box(places[0]), places[0], len(places), follow=True)


def _given_box(crop: Crop, height: int, width: int) -> Box:
    if crop == "none":
        return middle_square(height, width)
    left, top, side = crop
    if side < 1 or left >= width or top >= height or left + side <= 0 or top + side <= 0:
        raise ValueError(
            f"the square {left} {top} {side} shows nothing of {width} x {height} pixels: expected left, top and a side"
        )
    return crop


def _contains(box: Box, place: Place) -> bool:
    return all(corner < middle < corner + box[2] for corner, middle in zip(box, place))


def shift_inside(box: Box, height: int, width: int, *, most: float = 0.12) -> Box:
    """The box moved into the picture as far as it can be, by at most ``most`` of its side: a bit off the middle a face
    does better than beside an edge that is repeated."""
    left, top, side = box
    limit = round(most * side)

    def shift(corner: int, length: int) -> int:
        inner = min(max(corner, 0), length - side) if side <= length else (length - side) // 2
        return corner + min(max(inner - corner, -limit), limit)

    return shift(left, width), shift(top, height), side


# The free zone of the camera, in spreads of the face and as a ratio of sizes; how much of the rest a frame makes good.
FREE, FREE_RATIO, RATE = 1.0, 1.25, 0.15
# From one frame to the next no head goes further (in spreads), or grows more: there the film cuts to something else.
STEP, STEP_RATIO = 1.0, 1.3


class FaceTracker:
    """Cuts the frames of a film one after the other, each looked at once, in little memory.

    A frame without the face (it has left, something hides it, the film shows something else) is *held*: the last good
    one stands in. Frames before the first good one show that. ``held`` lists their numbers, ``count`` is how many
    frames there were, `note` says so in words.

    The square rests while the face moves about in it, as in the clips of training, and goes after it smoothly once it
    nears an edge or is no longer of its size.
    """

    def __init__(self, framing: Framing, detector: nn.Module, *, batch: int = 8):
        self.framing, self.detector, self.batch = framing, detector, batch
        self.camera = self.last = framing.face  # where the square has the face; where it was seen last
        self.box = framing.box
        self.holding = False
        self.held: list[int] = []
        self.count = 0

    def crops(self, frames: Iterable[UInt8[Tensor, "3 h w"]], size: int) -> Iterator[Float[Tensor, "3 {size} {size}"]]:
        """The frames as models want them, as many as there were."""
        frames, shown, waiting = iter(frames), None, 0
        while some := list(islice(frames, self.batch)):
            for frame, seen in zip(some, self.look(some), strict=True):
                if self.accept(seen):
                    shown = crop(frame, self.box, size)
                    for _ in range(waiting + 1):
                        yield shown
                    waiting = 0
                elif shown is None:
                    waiting += 1
                else:
                    yield shown
        if shown is None:
            raise ValueError("the face that was found when looking for it is in no frame")

    @torch.inference_mode()
    def look(self, frames: list[UInt8[Tensor, "3 h w"]]) -> list[tuple[Place, float] | None]:
        """The face's place in each frame, and how sure the detector is of it; None where nobody is watched."""
        if self.camera is None:
            return [None] * len(frames)
        box = usual_box(self.camera)
        found, heatmaps = self.detector(torch.stack([crop(frame, box, SIZE) for frame in frames]))
        return [(place_of(points, box), sure) for points, sure in zip(found, confidence(heatmaps, found).tolist())]

    def accept(self, seen: tuple[Place, float] | None) -> bool:
        """Whether the next frame is good; if so the square goes on to it."""
        self.count += 1
        if seen is None:
            return True
        place, sure = seen
        good = place.near(self.last, distance=STEP, ratio=STEP_RATIO)
        if self.holding:  # after a while it may be back elsewhere in the square
            good |= place.near(self.camera, distance=FREE, ratio=STEP_RATIO)
        good &= sure >= (SURE if self.holding else LOST)
        self.holding = not good
        if good:
            self.last = place
            self._follow(place)
        else:
            self.held.append(self.count - 1)
        return good

    def _follow(self, place: Place) -> None:
        camera = self.camera
        free = FREE * camera.spread
        x, y = (c + RATE * (p - c - min(max(p - c, -free), free)) for p, c in zip(place, camera[:2]))
        beyond = math.log(place.spread / camera.spread)
        beyond -= min(max(beyond, -math.log(FREE_RATIO)), math.log(FREE_RATIO))
        self.camera = Place(x, y, camera.spread * math.exp(RATE * beyond))
        if self.framing.follow:
            self.box = trained_box(self.camera)

    def note(self) -> str | None:
        """What a user should know of it."""
        if not self.held:
            return None
        spans: list[list[int]] = []
        for number in self.held:
            if spans and number == spans[-1][1] + 1:
                spans[-1][1] = number
            else:
                spans.append([number, number])
        shown = [f"{a} to {b}" if b > a else str(a) for a, b in spans[:5]] + ["..."] * (len(spans) > 5)
        return f"no face in {len(self.held)} of {self.count} frames ({', '.join(shown)}): the last one is held there"


@torch.inference_mode()
def find_landmarks(
    detector: nn.Module, frames: Iterable, box: Box
) -> tuple[Float[Tensor, "t 74 2"], Bool[Tensor, "t"]]:
    """Landmarks in pixels of the ``frames`` (3, h, w), 0 to 255, in all of which the head is in ``box``; and whether
    the detector is sure of them."""
    points, sure, frames = [], [], iter(frames)
    while some := list(islice(frames, 16)):
        found, heatmaps = detector(torch.stack([crop(frame, box, SIZE) for frame in some]))
        points.append(((found + 1) * box[2] - 1) / 2 + torch.tensor(box[:2]))
        sure.append(confidence(heatmaps, found))
    return torch.cat(points), torch.cat(sure) >= SURE


def landmarks_file(
    points: Float[Tensor, "t 74 2"], found: Bool[Tensor, "t"], *, size: tuple[int, int], fps: Fraction
) -> bytes:
    """An .npz. ``size`` = (height, width) and ``fps`` of the film are what else it takes to drive a face."""
    file = io.BytesIO()
    about = dict(size=tuple(size), fps=fps.as_integer_ratio())
    np.savez_compressed(file, landmarks=points.numpy(), found=found.numpy(), **about)
    return file.getvalue()


def draw_crops(pictures: list[Tensor], boxes: list[Box], *, size: int = 192) -> Float[Tensor, "3 h w"]:
    """Each picture with its square outlined in it, and below it what the square shows."""
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
