"""How a training begins with the weights of another model."""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import nn

from minimodel.errors import MinimodelError
from minimodel.model import AnimationModel

PartName = Literal["prior", "structure", "refiner", "generator"]


def begin_with(model: AnimationModel, start: str) -> str:
    """Load the weights of another model, by name or file, into this one.

    The other model may work at a half or a quarter of this one's resolution: its generator has fewer levels then, which
    become the inner ones here, and only the outer ones and what finer updates read begin at random. The other model may
    also work at a higher resolution: then the inner levels of its generator become all that there are here, and what
    lies between them and the picture begins at random. So does every weight that the other model has in another shape
    or not at all, such as what reads the points of another prior. Returns a line that says how much begins at
    random. Raises `MinimodelError` if that is more than half.
    """
    started = AnimationModel.load(start)
    weights, own = started.state_dict(), model.state_dict()
    outer = model.generator.scales - started.generator.scales
    if outer != 0:
        weights = {inner_name(name, outer): value for name, value in weights.items()}
        weights = {name: value for name, value in weights.items() if not is_outer(name, outer, model)}
    fits = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    fresh = 1 - sum(value.numel() for value in fits.values()) / sum(value.numel() for value in own.values())
    if fresh > 0.5:
        one, other = describe(started), describe(model)
        raise MinimodelError(f"--start {start}: other sizes ({one}) than this training's ({other})")
    model.load_state_dict(own | fits)
    return f"begins with {start}; {fresh:.0%} of the weights begin at random"


def inner_name(name: str, outer: int) -> str:
    """The name of a weight in a model whose generator has ``outer`` more levels around the present ones. With fewer
    levels, for a negative ``outer``, those that fall away get names that no model has."""
    if not name.startswith("generator.down."):
        return name  # all other lists begin with the coarsest scale
    _, _, level, rest = name.split(".", 3)
    return f"generator.down.{int(level) + outer}.{rest}"


def is_outer(name: str, outer: int, model: AnimationModel) -> bool:
    """Whether a weight of ``model`` belongs to the ``outer`` finest levels of its generator, or to what the refiner
    reads of their features."""
    whole, part, level, *_ = [*name.split("."), "", ""]
    inner = model.generator.scales - 1 - outer  # levels
    if whole == "refiner":
        return part == "projections" and int(level) >= inner
    if whole != "generator":
        return False
    if part == "down":
        return int(level) < outer
    return part in ("first", "last") or (level.isdigit() and int(level) >= inner)


def describe(model: AnimationModel) -> str:
    """The parts of a model in a few words: preset, prior, refinement and generator."""
    c = model.config
    if c is None:
        return f"a {type(model.prior).__name__} and a {type(model.generator).__name__} put together by hand"
    return f"{c.preset} with prior {c.prior}, {'with' if c.refine else 'without'} refinement, generator {c.generator}"


def parts_of(model: AnimationModel, names: Sequence[PartName]) -> list[nn.Module]:
    """The parts of a model that ``names`` lists. One that the model lacks is a `MinimodelError`, and so is a list of
    all its parts, as nothing is left to learn then."""
    there = {name: part for name in get_args(PartName) if (part := getattr(model, name)) is not None}
    missing = [name for name in names if name not in there]
    if missing:
        raise MinimodelError(f"--fixed {' '.join(missing)}: {describe(model)} has no such part")
    if there.keys() <= set(names):
        raise MinimodelError(f"--fixed {' '.join(names)}: nothing is left to learn")
    return [there[name] for name in names]
