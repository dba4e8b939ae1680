"""From a published checkpoint to one file of ours: read without running any code from it, checked name by name, written
whole.

Source: the layouts that FOMM's, TPSM's, MRFA's and MTIA's code save.
"""

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from minimodel.errors import MinimodelError
from minimodel.published.conventions import downsampling_kernel
from minimodel.published.model import PublishedModel
from minimodel.published.motion import SCALE
from minimodel.published.names import Entry, network_entries
from minimodel.published.sizes import MODELS, ModelName, read_config, recognise

SECTIONS = (
    "generator",
    "kp_detector",
    "dense_motion_network",
    "inpainting_network",
    "bg_predictor",
    "avd_network",
    "model",
)
# Of training alone: the network of the perceptual loss, its pictures' pyramid, a norm's count of batches.
UNUSED = re.compile(r"model\.(vgg|pyramid)\.|model\.down\.weight$|.*\.num_batches_tracked$")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read all weights of a published checkpoint, by names that begin with the section: ``kp_detector.kp.weight``.

    Raises:
        MinimodelError: the file isn't a whole checkpoint, or holds more than tensors and numbers.
    """
    if path.is_dir():
        raise MinimodelError(f"{path}: is a directory, expected a checkpoint as torch.save writes it")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise MinimodelError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise MinimodelError(
            f"{path}: refused, because reading it could run code: it is no checkpoint, or holds more than tensors and"
            f" numbers ({_finding(error)})"
        ) from error
    except Exception as error:  # whatever a damaged archive makes torch raise
        raise MinimodelError(f"{path}: not a whole checkpoint ({_first_sentence(error)})") from error
    if not isinstance(content, Mapping):
        raise MinimodelError(f"{path}: holds a {type(content).__name__}, expected sections of weights by name")
    weights = dict(_flatten(content))
    if not weights:
        held = ", ".join(repr(str(name)) for name in list(content)[:3]) or "nothing"
        raise MinimodelError(f"{path}: unknown layout: holds {held}, expected sections as {SECTIONS[1]!r}")
    return weights


def _finding(error: Exception) -> str:
    """The line of torch's message that says what it found; its first lines advise to read the file all the same."""
    lines = [line for line in str(error).splitlines() if "nsupported" in line]
    return lines[0].split(". ")[0][:150] if lines else _first_sentence(error)


def _first_sentence(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0][:150]


def _flatten(content: Mapping) -> Iterator[tuple[str, Tensor]]:
    for section, weights in content.items():
        if section not in SECTIONS or not isinstance(weights, Mapping):
            continue  # an epoch, an optimiser's state, a discriminator
        for name, value in weights.items():
            if isinstance(value, Tensor):
                # A model that was trained on several GPUs is saved within a wrapper of that name.
                yield f"{section}.{name.removeprefix('module.')}", value


def convert(
    weights: Mapping[str, Tensor], *, model: ModelName | None = None, align_corners: bool = False
) -> PublishedModel:
    """Build the model that a checkpoint's weights describe and load them into it. The model is in evaluation mode.

    Raises:
        MinimodelError: an unknown layout, a missing entry, a wrong shape, or an entry without a place.
    """
    found = recognise(weights)
    if found is None:
        sections = sorted({name.split(".")[0] for name in weights})
        raise MinimodelError(f"unknown layout: sections {sections} are those of none of {', '.join(MODELS)}")
    if model not in (None, found):
        raise MinimodelError(f"holds a model of kind {found!r}, expected {model!r}")
    if align_corners and found in ("tpsm", "mrfa"):
        raise MinimodelError(f"align_corners is a choice for fomm and mtia alone; {found} has its own way of sampling")
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    try:
        network = PublishedModel(read_config(shapes, found, align_corners=align_corners)).eval()
    except KeyError as error:
        raise MinimodelError(f"layout of {found}, but entry {error.args[0]!r} is missing") from error
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise MinimodelError(f"layout of {found}, but with shapes that don't belong together ({error})") from error
    copy_weights(weights, network)
    return network


def copy_weights(weights: Mapping[str, Tensor], model: PublishedModel) -> None:
    """Copy a checkpoint's weights into the model, each entry by name. Raises `MinimodelError` for a missing entry, a
    wrong shape, or an entry without a place."""
    state = model.state_dict()
    left = {name for name in weights if not UNUSED.match(name)}
    for entry in network_entries(model.sizes):
        if entry.theirs not in weights:
            raise MinimodelError(f"layout of {model.sizes.model}, but entry {entry.theirs!r} is missing")
        left.discard(entry.theirs)
        value = weights[entry.theirs].float()
        if entry.role == "kernel":
            _check_kernel(entry, value)
        elif entry.ours is not None:
            target = state[entry.ours]
            if value.shape != target.shape:
                raise MinimodelError(
                    f"entry {entry.theirs!r} has shape {tuple(value.shape)}, expected {tuple(target.shape)}"
                )
            target.copy_(target - value if entry.role == "bias" else value)
    if left:
        raise MinimodelError(
            f"layout of {model.sizes.model}, but {len(left)} entries have no place in it, as {min(left)!r}"
        )


def _check_kernel(entry: Entry, value: Tensor) -> None:
    kernel = downsampling_kernel(SCALE)
    if value.shape != (3, 1, *kernel.shape) or not torch.allclose(value, kernel.expand_as(value), atol=1e-4):
        raise MinimodelError(f"entry {entry.theirs!r} isn't the filter that brings pictures to 1/{SCALE}")
