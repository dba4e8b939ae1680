"""The folder of a run: one run writes to it at a time, and goes on with the settings that it began with."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from minimodel.errors import MinimodelError
from minimodel.saving import UNFINISHED, whole_file

try:
    import fcntl
except ImportError:  # Windows: there two runs in one folder aren't noticed
    fcntl = None  # type: ignore[assignment]  # a module otherwise

# Settings that don't change what a step learns.
FREE = {"output", "steps", "minutes", "evaluate", "evaluate_minutes", "device", "workers", "strict", "memory"}
FREE |= {"continue_with_changes"}
OF_THE_MODEL = {"preset", "prior", "refine", "generator", "points", "model"}  # compared when the checkpoint is loaded


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the folder of a run, which is made if need be, and delete what a killed run left half-written. The lock is
    the system's: it ends with the process, however that ends. Raises `MinimodelError` while another run holds it."""
    output.mkdir(parents=True, exist_ok=True)
    file = None if fcntl is None else _lock(output)
    try:
        for unfinished in (*output.glob(f"{UNFINISHED}*"), *output.glob(f"pictures/{UNFINISHED}*")):
            unfinished.unlink()
        yield
    finally:
        if file is not None:
            Path(file.name).unlink(missing_ok=True)  # before anyone else can lock it
            file.close()


def _lock(output: Path) -> IO[str]:
    path = output / ".lock"
    while True:
        file = path.open("w")
        try:
            # A lock of this process alone. Processes that prepare data would inherit one by flock, and outlive a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            raise MinimodelError(
                f"{output}: another run is writing there; wait for its end, or choose another --output"
            ) from None
        except OSError:  # a file system that knows no locks
            return file
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()  # the run that held it has ended in between, and deleted it


def keep_settings(output: Path, settings: dict[str, Any], step: int, *, goes_on: bool, may_change: bool) -> None:
    """Write a run's settings to config.json. If the run ``goes_on`` at ``step`` and its settings ``may_change``, those
    that differ are accepted, and the earlier ones are kept as config-STEP.json.

    Raises:
        MinimodelError: settings differ that change what is learnt, and they may not; the message lists them.
    """
    path = output / "config.json"
    text = json.dumps(settings, indent=2, default=str) + "\n"
    if goes_on and path.exists():
        before = path.read_text()
        changes = _changes(path, json.loads(text))
        if changes and not may_change:
            raise MinimodelError(
                f"{output}: the run that is there has other settings ({', '.join(changes)}); --continue-with-changes"
                " goes on with the new ones, another --output begins a new run"
            )
        kept = output / f"config-{step:07d}.json"
        if changes and not kept.exists():
            _write(kept, before)
    _write(path, text)


def _changes(path: Path, settings: dict[str, Any]) -> list[str]:
    """What differs from a config.json, each as "NAME OLD -> NEW"."""
    try:
        before = json.loads(path.read_text())
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise MinimodelError(f"{path}: not the settings of a run, or damaged; move it away to go on")
    old, changes = _flat(before), []
    for name, value in _flat(settings).items():
        if name.partition(".")[0] in FREE | OF_THE_MODEL or name not in old or old[name] == value:
            continue
        if name == "learning_rate" and old[name] is None:  # earlier versions didn't write the one that a preset has
            continue
        changes.append(f"{name} {_shown(old[name])} -> {_shown(value)}")
    return changes


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _write(path: Path, text: str) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text(text)
