"""The command line: ``minimodel COMMAND --help``.

Each command is imported when it runs: so help comes at once, and no command needs what only others use.
"""

import contextlib
import dataclasses
import difflib
import io
import re
import sys
import warnings
from importlib import import_module

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
    "bench": ("commands.bench", "BenchConfig", "bench", "time rendering and training"),
    "train-avd": ("training.avd", "TrainAvdConfig", "train_avd", "train what `animate --mode avd` needs"),
    "train-landmarks": ("training.landmarks", "TrainLandmarksConfig", "train_landmarks", "train the landmark detector"),
    "train-features": ("training.features", "TrainFeaturesConfig", "train_features", "train the loss's features"),
    "train-assessors": ("training.assessors", "TrainAssessorsConfig", "train_assessors", "train the metrics' reader"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; -> its exit code. What the user can mend ends in one line and code 2; a bug keeps its
    traceback."""
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
    """Parse a command's options, and run it."""
    import torch
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
    try:
        for field in dataclasses.fields(chosen):
            # tyro takes an option of many values without any, which only means something where it is the default.
            if getattr(chosen, field.name) == () != field.default:
                raise MinimodelError(f"--{field.name}: none given")
        getattr(home, function)(chosen)
    except (MinimodelError, OSError) as error:
        print(f"minimodel: {error}", file=sys.stderr)
        return 2
    except (torch.OutOfMemoryError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else "out of memory"
        print(f"minimodel: {reason}; a smaller --preset, --batch or --size needs less", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minimodel: stopped", file=sys.stderr)
        return 130  # as a shell says it
    return 0


def one_line(box: str) -> str:
    """What stands in tyro's box, without its frame and its last paragraph."""
    lines = [re.sub(r"[^\x20-\x7e]", "", line).strip(" -") for line in box.splitlines()]
    rest = [line for line in lines if line and not line.startswith(("For full helptext", "Invalid "))]
    return " ".join(rest).rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
