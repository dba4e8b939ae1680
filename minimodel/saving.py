"""Files that are written whole or not at all, and weight files: safetensors with metadata that describe the network,
so that loading needs neither pickles nor guesses."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from minimodel.errors import MinimodelError

Built = TypeVar("Built")
WEIGHTS = Path(__file__).parent / "weights"
FORMAT_VERSION = "1"
UNFINISHED = ".unfinished-"  # how the names of files begin that are being written
# The first letters of the names of files that hold other networks than an animation model.
OTHER_NETWORKS = ("avd-", "features", "assessors", "landmarks", "lpips")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write the file ``path`` whole or not at all.

    The context gives the name of an unfinished file. That file is renamed to ``path`` when the context ends, and
    deleted after an exception. A path that can't be written raises a `MinimodelError` on entering, before minutes of
    work.

    >>> with whole_file(path) as unfinished:
    ...     unfinished.write_text(text)
    """
    if path.is_dir():
        raise MinimodelError(f"{path}: is a directory, expected the name of a file to write")
    if path.name.startswith(UNFINISHED):  # who calls is within another context, which will rename it
        yield path
        return
    unfinished = path.with_name(UNFINISHED + path.name)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.touch()
        except OSError as error:
            raise MinimodelError(f"{path}: can't be written ({error.strerror})") from error
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        if error.filename in (None, str(unfinished)):  # the error of a full disk doesn't name the file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(OSError):  # it isn't there, or its folder is none
            unfinished.unlink()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Write the folder ``path`` whole or not at all.

    The context gives an unfinished folder, which is renamed to ``path`` when the context ends, and deleted after an
    exception. A path that is there already, or can't be made, raises a `MinimodelError` on entering.

    >>> with whole_folder(path) as unfinished:
    ...     (unfinished / "file").write_text(text)
    """
    if path.exists():
        raise MinimodelError(f"{path}: is there already, expected the name of a new folder")
    unfinished = path.with_name(UNFINISHED + path.name)
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
        try:
            unfinished.mkdir(parents=True)
        except OSError as error:
            raise MinimodelError(f"{path}: can't be written ({error.strerror})") from error
        yield unfinished
        os.replace(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def make_metadata(config: str, **more: str) -> dict[str, str]:
    """The metadata of a weight file; ``config`` holds the network's sizes as JSON.

    Every network but `AnimationModel` adds its ``kind``.
    """
    return {"format": "minimodel", "version": FORMAT_VERSION, "config": config} | more


def write_weights(network: nn.Module, path: str | Path, metadata: dict[str, str]) -> None:
    """Write a network's weights and ``metadata`` as a safetensors file, whole or not at all."""
    # safetensors' own save_file would leave a file that only its owner can read.
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    with whole_file(Path(path)) as unfinished:
        unfinished.write_bytes(save(state, metadata=metadata))


def read_config(path: Path, kind: str, build: Callable[[str], Built]) -> Built:
    """Call ``build`` with the configuration in one of our weight files, and return the result.

    A configuration of another version, and any other file, raise a `MinimodelError`.
    """
    text = read_metadata(path, kind)["config"]
    try:
        return build(text)
    except (TypeError, KeyError, ValueError) as error:
        raise MinimodelError(f"{path}: weights of another version of minimodel ({error})") from error


def read_metadata(path: Path, kind: str = "animation") -> dict[str, str]:
    """The metadata of one of our weight files that holds a network of ``kind``.

    Any other file raises a `MinimodelError`. Nothing is unpickled.
    """
    if path.is_dir():
        raise MinimodelError(f"{path}: is a directory, expected a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise MinimodelError(
            f"{path}: not a whole safetensors file (pickled checkpoints are never loaded): {error}"
        ) from error
    if metadata.get("format") != "minimodel":
        raise MinimodelError(f"{path}: safetensors, but not weights of minimodel")
    if metadata.get("version") != FORMAT_VERSION:
        raise MinimodelError(f"{path}: weight format {metadata.get('version')}, this version reads {FORMAT_VERSION}")
    held = metadata.get("kind", "animation")
    if held != kind:
        raise MinimodelError(f"{path}: holds weights of kind {held!r}, expected {kind!r}")
    return metadata


def holds_kind(path: Path, kind: str) -> bool:
    """Whether a file is a weight file with a network of ``kind``; False for any other file, broken ones included."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("kind") == kind
    except (SafetensorError, OSError):
        return False


def load_weights_into(network: nn.Module, path: Path) -> None:
    """Load a file's weights into ``network``.

    Weights that don't fit, such as those of an older version of the network, raise a `MinimodelError`.
    """
    try:
        network.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise MinimodelError(
            f"{path}: its weights don't fit {type(network).__name__} as this version builds it"
        ) from error


@dataclass(frozen=True)
class WeightsCard:
    """The facts about shipped weights; more is in the README beside the files."""

    name: str
    """The name for `AnimationModel.load` and ``--weights``."""
    preset: str
    image_size: int
    """The side in pixels of the training pictures."""
    megabytes: float
    trained_on: str
    scores: dict[str, float]
    licence: str


def available_weights() -> list[WeightsCard]:
    """List the animation models that come with the package.

    >>> [card.name for card in available_weights()]
    """
    cards = json.loads((WEIGHTS / "cards.json").read_text())
    found = []
    for name in shipped_models():
        path = WEIGHTS / f"{name}.safetensors"
        config = json.loads(read_metadata(path)["config"])
        size, megabytes = config["image_size"], round(path.stat().st_size / 1e6, 1)
        found.append(WeightsCard(name, config["preset"], size, megabytes, **cards[name]))
    return found


def shipped_models() -> list[str]:
    """The names of the shipped animation models."""
    return sorted(p.stem for p in WEIGHTS.glob("*.safetensors") if not p.stem.startswith(OTHER_NETWORKS))


def find_weights(name_or_path: str | Path, shipped: list[str] | None = None) -> Path:
    """The path of a weight file, given by its path or by the name of a shipped one.

    ``shipped`` are the names to choose from, by default those of the animation models. A `MinimodelError` is raised for
    anything else.
    """
    path = Path(name_or_path)
    if path.exists():
        return path
    shipped = shipped_models() if shipped is None else shipped
    if str(name_or_path) not in shipped:
        raise MinimodelError(f"weights {str(name_or_path)!r}: no such file, and shipped are only {shipped}")
    return WEIGHTS / f"{name_or_path}.safetensors"
