"""``minimodel export``: a model as three graphs that run without this package.

The source graph is run once, the motion graph for each driving frame, and the renderer takes the results of both. What
passes between them are tensors by name, so transfer between two people can be computed by hand, as in
``tools/animate_onnx.py``.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from minimodel.errors import MinimodelError, check_positive
from minimodel.model import AnimationModel
from minimodel.motion import Motion, SourceState
from minimodel.saving import whole_folder

OPSET = 20  # of ONNX: the first in which grid_sample has its present form
TOLERANCE = 1e-4  # of values up to 1, and of a tensor's largest value beyond
NEEDED = ("onnx", "onnxscript", "onnxruntime")  # to write ONNX, and to run what was written
Graph = Callable[..., tuple[Tensor, ...]]


@dataclass
class ExportConfig:
    """Write a model as three graphs, source encoder, motion encoder and renderer, and check them against the model."""

    weights: str = "portrait"
    """Name of shipped weights, or a .safetensors file."""
    format: Literal["pt2", "onnx"] = "onnx"
    """onnx is for any ONNX runtime, and needs `pip install "minimodel[onnx]"`; pt2 is for PyTorch without this package
    (torch.export.load)."""
    output: Path = Path("exported")
    """Folder to write: source, motion and renderer in this format, and model.json, which names their inputs and outputs
    with their shapes."""
    size: int | None = None
    """Side of the pictures in pixels, fixed in the graphs; that of the weights' preset unless given."""


class SourceGraph(nn.Module):
    """`AnimationModel.encode_source` from a picture to tensors, in the order of `source_tensors`."""

    def __init__(self, model: AnimationModel):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(source_tensors(self.model, image).values())


class MotionGraph(nn.Module):
    """`AnimationModel.encode_driving` from a frame to points and, if the prior finds them, matrices."""

    def __init__(self, model: AnimationModel):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(motion_tensors(self.model.encode_driving(image)).values())


class RendererGraph(nn.Module):
    """`AnimationModel.render` from tensors with these ``names`` to a picture."""

    def __init__(self, model: AnimationModel, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.names, values, strict=True))
        source = SourceState(
            given["source"],
            Motion(given["source_points"], given.get("source_affine")),
            [value for name, value in given.items() if name.startswith("features_")],
            given.get("structure"),
            [value for name, value in given.items() if name.startswith("context_")],
        )
        return (self.model.render(source, Motion(given["points"], given.get("affine"))).image,)


def source_tensors(model: AnimationModel, image: Tensor) -> dict[str, Tensor]:
    """Encode a source, and name all tensors that the renderer needs beside the picture itself."""
    state = model.encode_source(image)
    found = {f"source_{name}": value for name, value in motion_tensors(state.motion).items()}
    if model.generator.uses_features:
        found |= {f"features_{index}": value for index, value in enumerate(state.features)}
    if state.structure is not None:
        found["structure"] = state.structure
    return found | {f"context_{index}": value for index, value in enumerate(state.context)}


def motion_tensors(motion: Motion) -> dict[str, Tensor]:
    """The points and, if there are any, the matrices of a motion by name."""
    return dict(points=motion.points) | ({} if motion.affine is None else dict(affine=motion.affine))


@dataclass
class Piece:
    """A graph to be written: its name, its module, and random inputs and the module's outputs by name."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def export(config: ExportConfig) -> Path:
    """Write the graphs of a model to the folder ``config.output``, and return its path.

    Each file is read again and run on random input before the folder appears. Raises `MinimodelError` for a model that
    can't be exported, for packages that are missing, for a folder that is there already or can't be made, and for a
    graph whose outputs differ from the model's by more than `TOLERANCE`.

    >>> export(ExportConfig("portrait", "onnx", Path("exported")))
    """
    check_positive(config, "size")
    missing = [name for name in NEEDED if config.format == "onnx" and find_spec(name) is None]
    if missing:
        raise MinimodelError(f'--format onnx needs {", ".join(missing)}: pip install "minimodel[onnx]"')
    model = AnimationModel.load(config.weights)
    if model.config is None:
        raise MinimodelError(f"{config.weights}: a published checkpoint; only minimodel's own models are exported")
    if not model.prior.exportable:
        raise MinimodelError(
            f"{config.weights}: moves by splines, whose fit has no counterpart in these formats; expected a model with"
            " another prior"
        )
    size = model.image_size if config.size is None else config.size
    model.check_size(size, size)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stubs lack it
    write, worst = (write_pt2 if config.format == "pt2" else write_onnx), 0.0
    about: dict[str, object] = dict(weights=config.weights, size=size, format=config.format)
    with whole_folder(config.output) as unfinished:
        for piece in split(model, size):
            file = f"{piece.name}.{config.format}"
            worst = max(worst, compare(piece, write(piece, unfinished / file)))
            shapes = {way: {n: list(t.shape) for n, t in getattr(piece, way).items()} for way in ("inputs", "outputs")}
            about[piece.name] = dict(file=file) | shapes
        (unfinished / "model.json").write_text(json.dumps(about, indent=2) + "\n")
    print(f"wrote {config.output}: source, motion and renderer, {worst:.1e} from the model at most")
    return config.output


def split(model: AnimationModel, size: int) -> list[Piece]:
    """The three graphs of a model, with random pictures of ``size`` pixels: one source and one driving frame."""
    source, driving = torch.rand(2, 1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        state = {name: value.contiguous() for name, value in source_tensors(model, source).items()}
        motion = motion_tensors(model.encode_driving(driving))
        rendered = dict(source=source) | state | motion
        renderer = RendererGraph(model, list(rendered))
        (image,) = renderer(*rendered.values())
    return [
        Piece("source", SourceGraph(model).eval(), dict(image=source), state),
        Piece("motion", MotionGraph(model).eval(), dict(image=driving), motion),
        Piece("renderer", renderer.eval(), rendered, dict(image=image)),
    ]


@contextmanager
def small_steps() -> Iterator[None]:
    """Context for exporting: transformer layers run as their single operations, nothing has a gradient, and torch is
    quiet about what it doesn't need."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    logging.disable(logging.WARNING)
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)
        torch.backends.mha.set_fastpath_enabled(fast)


def write_pt2(piece: Piece, path: Path) -> Graph:
    """Write a graph by `torch.export`, and return what the file computes."""
    with small_steps():
        torch.export.save(torch.export.export(piece.module, tuple(piece.inputs.values()), strict=False), path)
        return torch.export.load(path).module()


def solve_two_by_two(matrix: Tensor, right: Tensor, *, left: bool = True) -> Tensor:
    """`torch.linalg.solve` for 2 x 2 matrices, which ONNX lacks."""
    a, b, c, d = matrix.flatten(-2).unbind(-1)
    inverse = torch.stack([d, -b, -c, a], dim=-1).unflatten(-1, (2, 2)) / (a * d - b * c)[..., None, None]
    return inverse @ right if left else right @ inverse


def write_onnx(piece: Piece, path: Path) -> Graph:
    """Write a graph in ONNX, and return what onnxruntime computes from the file."""
    import onnxruntime

    with small_steps():
        program = torch.export.export(piece.module, tuple(piece.inputs.values()), strict=False)
        torch.onnx.export(
            program.run_decompositions({torch.ops.aten.linalg_solve.default: solve_two_by_two}),
            f=path,
            input_names=list(piece.inputs),
            output_names=list(piece.outputs),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        given = {name: value.numpy() for name, value in zip(piece.inputs, values, strict=True)}
        return tuple(torch.from_numpy(value) for value in session.run(list(piece.outputs), given))

    return run


def compare(piece: Piece, graph: Graph) -> float:
    """The largest difference of a graph's outputs from its module's; beyond `TOLERANCE` it is a `MinimodelError`."""
    with torch.no_grad():
        found = graph(*piece.inputs.values())
    worst = 0.0
    for (name, one), other in zip(piece.outputs.items(), found, strict=True):
        difference = float((one - other).abs().max() / one.abs().max().clamp_min(1))
        if not difference <= TOLERANCE:  # in this order NaN is refused, too
            raise MinimodelError(f"the exported {piece.name} gives another {name}, by {difference:.1e}: not written")
        worst = max(worst, difference)
    return worst
