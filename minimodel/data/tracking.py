"""A film, cut to its face frame after frame: the square goes after the face, and frames without it are held."""

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
    """Cuts the frames of a film one after the other, each looked at once, in little memory.

    A frame without the face (it has left, something hides it, the film shows something else) is *held*: the last good
    one stands in. Frames before the first good one show that. ``held`` lists their numbers, ``count`` is how many
    frames there were, `note` says so in words.

    The square rests while the face moves about in it, as in the clips of training, and goes after it smoothly once it
    nears an edge or is no longer of its size.
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
            raise MinimodelError("the face that was found when looking for it is in no frame")

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
