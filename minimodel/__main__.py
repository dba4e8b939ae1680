"""The command line: ``minimodel COMMAND --help``."""

import dataclasses
import sys
import warnings

import torch
import tyro

from minimodel.commands.animate import AnimateConfig, animate
from minimodel.commands.bench import BenchConfig, bench
from minimodel.commands.evaluate import EvaluateConfig, run
from minimodel.commands.find_landmarks import FindLandmarksConfig, landmarks
from minimodel.commands.prepare import PrepareConfig, prepare
from minimodel.commands.synthesize import SynthesizeConfig, synthesize
from minimodel.memory import keep_freed_memory
from minimodel.training.ablation import AblateConfig, ablate
from minimodel.training.assessors import TrainAssessorsConfig, train_assessors
from minimodel.training.avd import TrainAvdConfig, train_avd
from minimodel.training.features import TrainFeaturesConfig, train_features
from minimodel.training.landmarks import TrainLandmarksConfig, train_landmarks
from minimodel.training.loop import TrainConfig, TrainingStopped, train

COMMANDS = {
    "animate": (AnimateConfig, animate),
    "train": (TrainConfig, train),
    "evaluate": (EvaluateConfig, run),
    "prepare": (PrepareConfig, prepare),
    "synthesize": (SynthesizeConfig, synthesize),
    "train-avd": (TrainAvdConfig, train_avd),
    "train-features": (TrainFeaturesConfig, train_features),
    "find-landmarks": (FindLandmarksConfig, landmarks),
    "train-landmarks": (TrainLandmarksConfig, train_landmarks),
    "ablate": (AblateConfig, ablate),
    "train-assessors": (TrainAssessorsConfig, train_assessors),
    "bench": (BenchConfig, bench),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command. What the user can mend ends in one line and exit code 2, never in a traceback."""
    chosen = tyro.extras.subcommand_cli_from_dict(
        {name: config for name, (config, _) in COMMANDS.items()}, prog="minimodel", args=arguments
    )
    warnings.showwarning = lambda message, *_, **__: print(f"minimodel: {message}", file=sys.stderr)
    keep_freed_memory()
    try:
        for field in dataclasses.fields(chosen):
            # tyro takes an option of many values without any, which only means something where it is the default.
            if getattr(chosen, field.name) == () != field.default:
                raise ValueError(f"--{field.name}: none given")
        next(run for config, run in COMMANDS.values() if type(chosen) is config)(chosen)
    except (ValueError, OSError, TrainingStopped) as error:
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


if __name__ == "__main__":
    sys.exit(main())
