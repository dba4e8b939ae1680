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
    """The motion found in one frame, or in each of the T frames of a film.

    ``points`` are normalised; those of the TPS prior list the first spline's points first. ``affine`` holds a matrix
    for each point, if the prior finds matrices. ``image`` is the frame itself. The TPS prior moves the background where
    ``image`` is given, which is right within one film only. Without ``image`` the background stands still.
    """

    points: Float[Tensor, "b k 2"]
    affine: Float[Tensor, "b k 2 2"] | None = None
    image: Float[Tensor, "b 3 h w"] | None = None

    def __len__(self) -> int:
        """The number of frames."""
        return len(self.points)

    def __getitem__(self, frames: slice | Tensor) -> "Motion":
        """Select some of the frames."""
        return self._map(lambda value: value[frames])

    def expand(self, batch: int) -> "Motion":
        """Repeat the motion of one frame ``batch`` times, without copying."""
        return self._map(lambda value: value.expand(batch, *value.shape[1:]))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Motion":
        affine = None if self.affine is None else function(self.affine)
        image = None if self.image is None else function(self.image)
        return Motion(function(self.points), affine, image)


def join(motions: list[Motion]) -> Motion:
    """Join the motions of a film's pieces to one motion of the whole film; images are left out."""
    affine = None
    if motions[0].affine is not None:
        affine = torch.cat([motion.affine for motion in motions if motion.affine is not None])
    return Motion(torch.cat([motion.points for motion in motions]), affine)


@dataclass
class SourceState:
    """All that depends on the source alone, computed once and used for every driving frame.

    ``features`` are the generator's, coarsest first. ``structure`` and ``context`` are refinement's: the source's
    structure features, and the projected features of each scale, coarsest first.
    """

    image: Float[Tensor, "b 3 h w"]
    motion: Motion
    features: list[Tensor]
    structure: Tensor | None = None
    context: list[Tensor] = field(default_factory=list)

    def expand(self, batch: int) -> "SourceState":
        """Repeat a source of batch 1 for ``batch`` driving frames, without copying.

        A source of that batch is returned as it is. Any other batch raises a `MinimodelError`.
        """
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
    """The coarse motion of a pair: flow F_0, occlusion logits O_0, and the masks and part flows that combine to F_0.

    Flows are normalised. ``occlusions`` are logits at several resolutions, coarsest first, with O_0 among them; the
    list is empty for priors with one resolution only. ``background`` is A_bg where the background may move.
    """

    flow: Float[Tensor, "b 2 h w"]
    occlusion: Float[Tensor, "b 1 h w"]
    masks: Float[Tensor, "b k h w"] | None = None
    part_flows: Float[Tensor, "b k 2 h w"] | None = None
    occlusions: list[Tensor] = field(default_factory=list)
    background: Float[Tensor, "b 2 3"] | None = None


@runtime_checkable
class StructureLookup(Protocol):
    """A measure of how alike the structures of two frames are, such as `minimodel.correlation.Correlation`."""

    def volume(self) -> Float[Tensor, "b h w height width"]:
        """The scores of all driving with all source positions."""
        ...

    def __call__(self, flow: Float[Tensor, "b 2 hi wi"]) -> Float[Tensor, "b features h w"]:
        """The scores around the ends of a normalised flow."""
        ...


@dataclass(kw_only=True)
class Stages:
    """The stages in which a source moves to a driving frame.

    ``flows`` (normalised) and ``occlusions`` (logits) list the coarse stage first, then one stage of each scale,
    coarsest first. ``warped_source`` is the source moved by the last flow. Models that refine also give their
    ``correlation``.
    """

    flows: list[Tensor]
    occlusions: list[Tensor]
    warped_source: Float[Tensor, "b 3 h w"]
    coarse: CoarseMotion
    correlation: StructureLookup | None = None


@dataclass(kw_only=True)
class Output(Stages):
    """A rendered frame, ``image``, with every stage on the way to it.

    ``painted`` is the generator's picture before the last step, which blends ``painted`` with ``warped_source`` by the
    last occlusion. Without that step ``painted`` is the image. Both are RGB in [0, 1].
    """

    image: Float[Tensor, "b 3 h w"]
    painted: Float[Tensor, "b 3 h w"]

    @property
    def blended(self) -> bool:
        """Whether there was that last step, so that the last occlusion says where ``warped_source`` is shown."""
        return self.image is not self.painted


@dataclass
class TrainingPair:
    """The inputs of a loss term in one training step.

    ``batch`` holds the pictures, and labels if the source of pairs gives any. ``source`` and ``driving`` are the
    encoded frames, ``stages`` the motion between them.
    """

    batch: dict[str, Tensor]
    source: SourceState
    driving: Motion
    stages: Stages
