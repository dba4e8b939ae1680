"""Tracking: a film cut to its face frame after frame. The square follows the face, and the last good frame stands in
for frames without it."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from minimodel.data.framing import (
    SURE,
    Box,
    Framing,
    Place,
    crop,
    follow,
    middle_place,
    place_of,
    trained_box,
    usual_box,
)
from minimodel.errors import MinimodelError
from minimodel.landmarks import SIZE, confidence
from minimodel.warping import from_pixels, to_pixels

LOST = 0.3  # a face that was there is still there above: profiles and hands in front of it make the detector doubt
RATE = 0.15  # of the way that a face has gone beyond the free zone, how much the square makes good in a frame
# From one frame to the next no head goes further (in spreads), or grows more: there the film cuts to something else.
STEP, STEP_RATIO = 1.0, 1.3


class Seen(NamedTuple):
    """A face in a frame: its place, the detector's confidence, and the landmarks in pixels of the frame."""

    place: Place
    sure: float
    points: Float[Tensor, "74 2"]


class FaceTracker:
    """Follows the face through the frames of a film, one after the other, in one pass and in little memory.

    A frame without the face (the face has left or is hidden, or the film shows something else) is *held*: the last good
    frame stands in. ``boxes`` lists the square of each frame so far, with None for held ones; ``held`` lists the
    numbers of these; `note` describes them in words. `landmarks` are those of the frames so far.

    The square rests while the face moves about in it, as in the clips of training. It follows the face smoothly once
    the face nears an edge or changes its size.
    """

    def __init__(self, framing: Framing, detector: nn.Module, *, batch: int = 8):
        self.framing, self.detector, self.batch = framing, detector, batch
        self.camera = framing.face  # where the square has the face
        self.last: Place | None = None  # where it was seen last
        self.box = framing.box
        self.holding = False
        self.boxes: list[Box | None] = []
        self._points: list[Tensor | None] = []

    @property
    def held(self) -> list[int]:
        """The numbers of the frames that are held."""
        return [number for number, box in enumerate(self.boxes) if box is None]

    def landmarks(self) -> Float[Tensor, "t 74 2"] | None:
        """The landmarks, in pixels, of the frames so far, for held ones those of the frame that stands in. None if no
        face is tracked."""
        shown = list(_shown(self._points))
        return torch.stack(shown) if shown else None

    def landmarks_in_squares(self) -> Iterator[Float[Tensor, "74 2"]]:
        """Yield the landmarks of the frames so far, normalised to each frame's square, for the cut frames of `cut`."""
        squares = zip(self.boxes, self._points)
        yield from _shown(
            None if box is None or points is None else from_pixels(points - torch.tensor(box[:2]), (box[2], box[2]))
            for box, points in squares
        )

    def crops(self, frames: Iterable[UInt8[Tensor, "3 h w"]], size: int) -> Iterator[Float[Tensor, "3 {size} {size}"]]:
        """Yield the cut frames, in [0, 1], one for each frame, see `cut`."""
        return cut(self.track(frames), size)

    def track(self, frames: Iterable[UInt8[Tensor, "3 h w"]]) -> Iterator[tuple[UInt8[Tensor, "3 h w"], Box | None]]:
        """Yield each frame with its square, or with None if the frame is held."""
        frames = iter(frames)
        while some := list(islice(frames, self.batch)):
            for frame, seen in zip(some, self.look(some), strict=True):
                good = self.accept(seen)
                self.boxes.append(self.box if good else None)
                self._points.append(seen.points if good and seen is not None else None)
                yield frame, self.boxes[-1]

    @torch.inference_mode()
    def look(self, frames: list[UInt8[Tensor, "3 h w"]]) -> Sequence[Seen | None]:
        """Find the face in each frame; None where no face is tracked."""
        if self.camera is None:
            return [None] * len(frames)
        return look(self.detector, frames, usual_box(self.camera))

    def accept(self, seen: Seen | None) -> bool:
        """Decide whether the next frame is good; if it is, the square follows its face."""
        if seen is None:
            return True
        assert self.camera is not None, "without a camera nothing is seen"
        place, sure, _ = seen
        good = self.last is None or place.near(self.last, distance=STEP, ratio=STEP_RATIO)
        if self.holding:  # it may come back elsewhere in the square
            good |= place.near(self.camera, distance=STEP, ratio=STEP_RATIO)
        good &= sure >= (SURE if self.holding else LOST)
        self.holding = not good
        if good:
            self.camera = follow(self.camera, place, rate=RATE if self.last else 1.0)
            self.last = place
            if self.framing.follow:
                self.box = trained_box(self.camera)
        return good

    def note(self) -> str | None:
        """A line for the user if frames were held, otherwise None."""
        held = self.held
        if not held:
            return None
        spans: list[list[int]] = []
        for number in held:
            if spans and number == spans[-1][1] + 1:
                spans[-1][1] = number
            else:
                spans.append([number, number])
        shown = [f"{a} to {b}" if b > a else str(a) for a, b in spans[:5]] + ["..."] * (len(spans) > 5)
        return f"no face in {len(held)} of {len(self.boxes)} frames ({', '.join(shown)}): the last one is held there"


def _shown(found: Iterable[Tensor | None]) -> Iterator[Tensor]:
    """Yield what is found in each frame, and for a frame in which nothing is what the last one had, at the beginning
    the first one that has something."""
    last, waiting = None, 0
    for one in found:
        last = last if one is None else one
        if last is None:
            waiting += 1
            continue
        yield from [last] * (waiting + 1)
        waiting = 0


@torch.inference_mode()
def look(detector: nn.Module, frames: list[Tensor], box: Box) -> list[Seen]:
    """Find the face in the square ``box`` of each frame, bytes or floats in [0, 1]."""
    found, heatmaps = detector(torch.stack([crop(frame, box, SIZE) for frame in frames]))
    corner, sides = torch.tensor(box[:2]), (box[2], box[2])
    return [
        Seen(place_of(points, box), sure, to_pixels(points, sides) + corner)
        for points, sure in zip(found, confidence(heatmaps, found).tolist())
    ]


def cut(
    frames: Iterable[tuple[UInt8[Tensor, "3 h w"], Box | None]], size: int
) -> Iterator[Float[Tensor, "3 {size} {size}"]]:
    """Cut each frame to its square, in [0, 1]. For a frame without a square the last cut one stands in, at the
    beginning the first one. Raises `MinimodelError` if no frame has a square."""
    missing = True
    for shown in _shown(None if box is None else crop(frame, box, size) for frame, box in frames):
        missing = False
        yield shown
    if missing:
        raise MinimodelError("the face that was found when looking for it is in no frame; --crop none takes the middle")


def frame_landmarks(points: Float[Tensor, "t 74 2"]) -> Float[Tensor, "t 74 2"]:
    """Move the landmarks of a film, normalised to any square, to the square around their usual place, in which faces
    lie as in training. The square is the same for all frames."""
    side = 1024  # pixels, as boxes are whole numbers
    places = [place_of(one, (0, 0, side)) for one in points]
    left, top, inner = trained_box(middle_place(places))
    return from_pixels(to_pixels(points, (side, side)) - torch.tensor([left, top]), (inner, inner))
