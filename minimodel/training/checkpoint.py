"""The state of a run on disk, written whole or not at all."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.optim.swa_utils import AveragedModel

from minimodel.errors import MinimodelError
from minimodel.model import AnimationModel
from minimodel.saving import whole_file


@dataclass
class RunState:
    """How far a run has come: its steps, and its seconds of training."""

    step: int = 0
    seconds: float = 0.0  # of training, without evaluations


def averaged_model(average: AveragedModel) -> AnimationModel:
    """The model that holds the averaged weights."""
    model = average.module
    assert isinstance(model, AnimationModel)
    return model


def save_checkpoint(
    output: str | Path,
    learners: dict[str, nn.Module],
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    state: RunState,
) -> None:
    """Write checkpoint.pt, from which the run can go on, and model.safetensors, the averaged model for use. Each file
    is written whole or not at all. Raises `MinimodelError` if one can't be written, as on a full disk."""
    output = Path(output)
    model = averaged_model(average)
    checkpoint: dict[str, Any] = {name: learner.state_dict() for name, learner in learners.items()}
    checkpoint |= dict(average=average.state_dict(), optimizer=optimizer.state_dict())
    checkpoint |= dict(metadata=model.metadata(), state=dataclasses.asdict(state))
    for name, write in (("checkpoint.pt", partial(torch.save, checkpoint)), ("model.safetensors", model.save)):
        with whole_file(output / name) as unfinished:
            try:
                write(unfinished)
            except (RuntimeError, SafetensorError) as error:  # what they raise on a full disk
                raise MinimodelError(f"{output / name}: can't be written ({str(error).splitlines()[0]})") from error


def load_checkpoint(
    output: str | Path, learners: dict[str, nn.Module], average: AveragedModel, optimizer: torch.optim.Optimizer
) -> RunState:
    """Load a run's checkpoint into its networks and its optimizer. Returns the state of the run, a fresh one if there
    is no checkpoint.

    Raises:
        MinimodelError: the file is damaged or no checkpoint of minimodel, or comes from a model of other sizes.
    """
    path = Path(output) / "checkpoint.pt"
    if not path.exists():
        return RunState()
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        metadata = checkpoint["metadata"]
    except Exception as error:  # whatever a broken or foreign file makes torch raise
        raise MinimodelError(
            f"{path}: not a checkpoint of minimodel, or damaged; move it away to start afresh"
        ) from error
    if metadata != averaged_model(average).metadata():
        raise MinimodelError(f"{path}: from a model of other sizes or another version; choose another --output")
    for name, learner in learners.items():
        learner.load_state_dict(checkpoint[name])
    average.load_state_dict(checkpoint["average"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    return RunState(**checkpoint["state"])
