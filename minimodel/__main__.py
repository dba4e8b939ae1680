"""The command line: ``minimodel COMMAND --help``.

Each command is imported when it runs: so help comes at once, and no command needs what only others use.
"""

import contextlib
import dataclasses
import difflib
import io
import math
import re
import signal
import sys
import threading
import time
import warnings
from importlib import import_module
from typing import Any

# Command -> the module of its options and function, their names, and what it does.
COMMANDS = {
    "animate": ("commands.animate", "AnimateConfig", "animate", "a photo moves like a film"),
    "train": ("training.loop", "TrainConfig", "train", "train a model"),
    "evaluate": ("commands.evaluate", "EvaluateConfig", "run_evaluation", "measure a model"),
    "prepare": ("commands.prepare", "PrepareConfig", "prepare", "make clips to train on from any films"),
    "synthesize": ("commands.synthesize", "SynthesizeConfig", "synthesize", "write rendered clips with their truth"),
    "find-landmarks": ("commands.find_landmarks", "FindLandmarksConfig", "find_film_landmarks", "74 points of a film"),
    "ablate": ("training.ablation", "AblateConfig", "ablate", "train and measure a paper's table"),
    "import-checkpoint": (
        "commands.import_checkpoint",
        "ImportCheckpointConfig",
        "import_published",
        "published weights become a file of ours",
    ),
    "export": ("commands.export", "ExportConfig", "export", "a model as graphs for ONNX runtimes or plain PyTorch"),
    "bench": ("commands.bench", "BenchConfig", "bench", "time rendering and training"),
    "train-avd": ("training.avd", "TrainAvdConfig", "train_avd", "train what `animate --mode avd` needs"),
    "train-landmarks": ("training.landmarks", "TrainLandmarksConfig", "train_landmarks", "train the landmark detector"),
    "train-features": ("training.features", "TrainFeaturesConfig", "train_features", "train the loss's features"),
    "train-assessors": ("training.assessors", "TrainAssessorsConfig", "train_assessors", "train the metrics' reader"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; -> its exit code. What the user can mend ends in one line and code 2, SIGTERM and Ctrl-C in one
    line and 128 plus their number; a bug keeps its traceback."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0 if words else 2
    if words[0] == "--version":
        print(import_module("minimodel").__version__)
        return 0
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, 1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"minimodel: unknown command {words[0]!r}: {meant}", file=sys.stderr)
        return 2
    return run(words[0], words[1:])


def overview() -> str:
    """All commands, a line each."""
    rows = "\n".join(f"  {name:16} {what}" for name, (*_, what) in COMMANDS.items())
    return f"usage: minimodel COMMAND [options]\n\n{rows}\n\nminimodel COMMAND --help lists a command's options."


def run(command: str, words: list[str]) -> int:
    """Parse a command's options, and run it; -> its exit code."""
    with Stop() as stop:
        try:
            return parse_and_run(command, words)
        except BaseException as error:  # of a stop also what it became on its way up
            close_bars()
            if stop.signal or isinstance(error, KeyboardInterrupt):
                line, code = "stopped", 128 + (stop.signal or signal.SIGINT)  # as a shell says it
            elif reason := mendable(error):
                line, code = reason, 2
            else:
                raise
            print(f"minimodel: {line}", file=sys.stderr)
            return code


def parse_and_run(command: str, words: list[str]) -> int:
    """As `run`, but with exceptions for what goes wrong in the command itself."""
    import tyro
    from tqdm import tqdm

    from minimodel.errors import MinimodelError
    from minimodel.runtime import keep_freed_memory

    module, config, function, _ = COMMANDS[command]
    home = import_module(f"minimodel.{module}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            chosen = tyro.cli(getattr(home, config), prog=f"minimodel {command}", args=words)
    except SystemExit as ended:  # after help, or a box of words about options that can't be
        if ended.code:
            print(f"minimodel: {one_line(said.getvalue())}; see minimodel {command} --help", file=sys.stderr)
        return 2 if ended.code else 0
    # On a line of its own, also while a bar is shown.
    warnings.showwarning = lambda message, *_, **__: tqdm.write(f"minimodel: {message}", file=sys.stderr)
    keep_freed_memory()
    for field in dataclasses.fields(chosen):
        # tyro takes an option of many values without any, which only means something where it is the default.
        if getattr(chosen, field.name) == () != field.default:
            raise MinimodelError(f"--{field.name}: none given")
    getattr(home, function)(chosen)
    return 0


def mendable(error: BaseException) -> str | None:
    """The line about an error that a user can mend; None for a bug."""
    import torch

    from minimodel.errors import MinimodelError

    if isinstance(error, MinimodelError | OSError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        reason = str(error).splitlines()[0] if str(error) else "out of memory"
        return f"{reason}; a smaller --preset, --batch or --size needs less"
    return None


def close_bars() -> None:
    """End the progress bars, or the last line would stand on the line of one."""
    from tqdm import tqdm

    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


class Stop:
    """While it is entered, SIGTERM and Ctrl-C raise a `KeyboardInterrupt`, so that all that cleans up does. ``signal``
    is the one that came. Signals that were ignored before, as those of a job in the background, still are."""

    def __init__(self) -> None:
        self.signal, self.came = 0, -math.inf
        self.before: dict[int, Any] = {}
        self.unraisable = sys.unraisablehook

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # others have no signals
            sys.unraisablehook = self.again
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: somebody else's, not Python's
                    self.before[number] = signal.signal(number, self.stop)
        return self

    def stop(self, number: int, frame: object) -> None:
        """Raise, but for a second signal within a second: it wants the same, and would interrupt the cleaning up."""
        last, self.came, self.signal = self.came, time.monotonic(), number
        if self.came - last > 1:
            raise KeyboardInterrupt

    def again(self, lost: Any) -> None:
        """An exception within a destructor is lost, so the signal is sent once more, from outside."""
        if not self.signal or not issubclass(lost.exc_type, KeyboardInterrupt):
            return self.unraisable(lost)
        self.came = -math.inf
        threading.Timer(0.01, signal.raise_signal, [self.signal]).start()

    def __exit__(self, *error: object) -> None:
        for number, before in self.before.items():
            signal.signal(number, before)
        sys.unraisablehook = self.unraisable


def one_line(box: str) -> str:
    """What stands in tyro's box, without its frame and its last paragraph."""
    lines = [re.sub(r"[^\x20-\x7e]", "", line).strip(" -") for line in box.splitlines()]
    rest = [line for line in lines if line and not line.startswith(("For full helptext", "Invalid "))]
    return " ".join(rest).rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
