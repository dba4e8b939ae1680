"""The command line: ``minimodel COMMAND --help``."""

import dataclasses
import sys
import warnings

import torch
import tyro

from minimodel.ablate import AblateConfig, ablate
from minimodel.animate import AnimateConfig, animate
from minimodel.bench import BenchConfig, bench
from minimodel.evaluate import EvaluateConfig
from minimodel.evaluate import run as evaluate
from minimodel.prepare import LandmarksConfig, PrepareConfig, SynthesizeConfig, landmarks, prepare, synthesize
from minimodel.train import TrainConfig, TrainingStopped, keep_freed_memory, train
from minimodel.train_others import (
    AvdConfig,
    FeaturesConfig,
    JudgesConfig,
    LandmarksTrainConfig,
    train_avd,
    train_features,
    train_judges,
    train_landmarks,
)

COMMANDS = {
    "animate": (AnimateConfig, animate),
    "train": (TrainConfig, train),
    "evaluate": (EvaluateConfig, evaluate),
    "prepare": (PrepareConfig, prepare),
    "synthesize": (SynthesizeConfig, synthesize),
    "avd": (AvdConfig, train_avd),
    "features": (FeaturesConfig, train_features),
    "landmarks": (LandmarksConfig, landmarks),
    "landmarks-train": (LandmarksTrainConfig, train_landmarks),
    "ablate": (AblateConfig, ablate),
    "judges": (JudgesConfig, train_judges),
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
