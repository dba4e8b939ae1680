"""What travels between the networks: motion of one frame, motion between two, and rendered frames."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@dataclass
class Motion:
    """What one frame says about its motion; of the TPS prior the points of the first spline come first.

    ``image`` is there where a prior needs it: the TPS prior finds the background's motion by comparing two frames. That
    makes sense within one film. Where the driving frame is from another, leave it out (`dataclasses.replace(motion,
    image=None)`), and the background stands still.
    """

    points: Float[Tensor, "b k 2"]
    affine: Float[Tensor, "b k 2 2"] | None = None
    image: Float[Tensor, "b 3 h w"] | None = None


@dataclass
class SourceState:
    """All that depends on the source alone, computed once and used for every driving frame."""

    image: Float[Tensor, "b 3 h w"]
    motion: Motion
    features: list[Tensor]
    structure: Tensor | None = None
    context: list[Tensor] = field(default_factory=list)


@dataclass
class CoarseMotion:
    """What a prior says about a pair: flow F_0, occlusion logits O_0, and the masks and part flows they came from.

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
    correlation: StructureLookup | None


@dataclass(kw_only=True)
class Output(Stages):
    """A rendered frame with every stage on the way to it; ``painted`` is what the generator made, before the last step
    that blends it with ``warped_source`` (of the U-Nets without ``ModelConfig.blend`` it is the image)."""

    image: Float[Tensor, "b 3 h w"]
    painted: Float[Tensor, "b 3 h w"]
