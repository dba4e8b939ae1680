"""Tracking: a film cut to its face frame after frame. The square follows the face, and the last good frame stands in
for frames without it."""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from minimodel.data.framing import SURE, Framing, Place, crop, follow, place_of, trained_box, usual_box
from minimodel.errors import MinimodelError
from minimodel.landmarks import SIZE, confidence

LOST = 0.3  # a face that was there is still there above: profiles and hands in front of it make the detector doubt
RATE = 0.15  # of the way that a face has gone beyond the free zone, how much the square makes good in a frame
# From one frame to the next no head goes further (in spreads), or grows more: there the film cuts to something else.
STEP, STEP_RATIO = 1.0, 1.3


class FaceTracker:
    """Cuts the frames of a film one after the other, in one pass and in little memory.

    A frame without the face (the face has left or is hidden, or the film shows something else) is *held*: the last good
    frame stands in. For frames before the first good one, the first good one stands in. ``held`` lists their numbers,
    ``count`` is the number of frames so far, `note` describes both in words.

    The square rests while the face moves about in it, as in the clips of training. It follows the face smoothly once
    the face nears an edge or changes its size.
    """

    def __init__(self, framing: Framing, detector: nn.Module, *, batch: int = 8):
        self.framing, self.detector, self.batch = framing, detector, batch
        self.camera = framing.face  # where the square has the face
        self.last: Place | None = None  # where it was seen last
        self.box = framing.box
        self.holding = False
        self.held: list[int] = []
        self.count = 0

    def crops(self, frames: Iterable[UInt8[Tensor, "3 h w"]], size: int) -> Iterator[Float[Tensor, "3 {size} {size}"]]:
        """Yield the cut frames, in [0, 1], one for each frame. Raises `MinimodelError` if the face is in no frame."""
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
            raise MinimodelError("the face that was found when looking for it is in no frame")

    @torch.inference_mode()
    def look(self, frames: list[UInt8[Tensor, "3 h w"]]) -> list[tuple[Place, float] | None]:
        """Find the face's place in each frame, and the detector's confidence; None where no face is tracked."""
        if self.camera is None:
            return [None] * len(frames)
        box = usual_box(self.camera)
        found, heatmaps = self.detector(torch.stack([crop(frame, box, SIZE) for frame in frames]))
        return [(place_of(points, box), sure) for points, sure in zip(found, confidence(heatmaps, found).tolist())]

    def accept(self, seen: tuple[Place, float] | None) -> bool:
        """Decide whether the next frame is good; if it is, the square follows its face."""
        self.count += 1
        if seen is None:
            return True
        assert self.camera is not None, "without a camera nothing is seen"
        place, sure = seen
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
        else:
            self.held.append(self.count - 1)
        return good

    def note(self) -> str | None:
        """A line for the user if frames were held, otherwise None."""
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
