"""What travels between the networks: motion of a frame, motion between two frames, and rendered frames."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from minimodel.errors import MinimodelError


@dataclass
class Motion:
    """What was found in one frame, or in each of the T frames of a film: points, and affine matrices if the prior has
    them. Of the TPS prior the points of the first spline come first.

    ``image`` is the frame itself. It is only there when the background shall move with the driving film, for the TPS
    prior: that makes sense within one film, and nowhere else. Without it the background stands still.
    """

    points: Float[Tensor, "b k 2"]
    affine: Float[Tensor, "b k 2 2"] | None = None
    image: Float[Tensor, "b 3 h w"] | None = None

    def __len__(self) -> int:
        """The number of frames."""
        return len(self.points)

    def __getitem__(self, frames: slice | Tensor) -> "Motion":
        """The motion of some of the frames, as a motion of that many."""
        return self._map(lambda value: value[frames])

    def expand(self, batch: int) -> "Motion":
        """A motion of one frame as one of ``batch`` equal frames, without copying."""
        return self._map(lambda value: value.expand(batch, *value.shape[1:]))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Motion":
        affine = None if self.affine is None else function(self.affine)
        image = None if self.image is None else function(self.image)
        return Motion(function(self.points), affine, image)


def join(motions: list[Motion]) -> Motion:
    """The motions of a film's pieces as one motion of the whole film; pictures are left out."""
    affine = None
    if motions[0].affine is not None:
        affine = torch.cat([motion.affine for motion in motions if motion.affine is not None])
    return Motion(torch.cat([motion.points for motion in motions]), affine)


@dataclass
class SourceState:
    """All that depends on the source alone, computed once and used for every driving frame."""

    image: Float[Tensor, "b 3 h w"]
    motion: Motion
    features: list[Tensor]
    structure: Tensor | None = None
    context: list[Tensor] = field(default_factory=list)

    def expand(self, batch: int) -> "SourceState":
        """A source of batch 1 in front of ``batch`` driving frames, without copying; a source of that batch as it is.
        MinimodelError for any other."""
        if len(self.image) == batch:
            return self
        if len(self.image) != 1:
            raise MinimodelError(f"{len(self.image)} sources for {batch} driving frames: expected 1 or as many")

        def grow(x: Tensor) -> Tensor:
            return x.expand(batch, *x.shape[1:])

        return SourceState(
            grow(self.image),
            self.motion.expand(batch),
            [grow(feature) for feature in self.features],
            None if self.structure is None else grow(self.structure),
            [grow(context) for context in self.context],
        )


@dataclass
class CoarseMotion:
    """What a prior makes of a pair: flow F_0, occlusion logits O_0, and the masks and part flows they came from.

    ``occlusions`` are logits for several resolutions, coarsest first, O_0 among them, where the model has such masks;
    ``background`` is A_bg where the background was allowed to move.
    """

    flow: Float[Tensor, "b 2 h w"]
    occlusion: Float[Tensor, "b 1 h w"]
    masks: Float[Tensor, "b k h w"] | None = None
    part_flows: Float[Tensor, "b k 2 h w"] | None = None
    occlusions: list[Tensor] = field(default_factory=list)
    background: Float[Tensor, "b 2 3"] | None = None


@runtime_checkable
class StructureLookup(Protocol):
    """How alike the structures of two frames are, as `minimodel.correlation.Correlation` tells it."""

    def volume(self) -> Float[Tensor, "b h w height width"]: ...

    def __call__(self, flow: Float[Tensor, "b 2 hi wi"]) -> Float[Tensor, "b features h w"]: ...


@dataclass(kw_only=True)
class Stages:
    """How a source moves to a driving frame: ``flows`` and ``occlusions`` (logits) list the coarse stage first, then
    one of each scale; ``warped_source`` is the source moved by the last flow; ``correlation`` is there when the model
    refines."""

    flows: list[Tensor]
    occlusions: list[Tensor]
    warped_source: Float[Tensor, "b 3 h w"]
    coarse: CoarseMotion
    correlation: StructureLookup | None = None


@dataclass(kw_only=True)
class Output(Stages):
    """A rendered frame with every stage on the way to it; ``painted`` is what the generator made, before the last step
    that blends it with ``warped_source`` by the last occlusion (without that step it is the image)."""

    image: Float[Tensor, "b 3 h w"]
    painted: Float[Tensor, "b 3 h w"]


@dataclass
class TrainingPair:
    """What a loss term may look at in a training step: the batch (pictures, and labels where a source of pairs has
    some), what was encoded of source and driving frame, and how the source moved."""

    batch: dict[str, Tensor]
    source: SourceState
    driving: Motion
    stages: Stages
