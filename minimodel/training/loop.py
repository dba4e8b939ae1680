"""Training: one loop for a CPU, a GPU, several GPUs or machines.

Everything random in step n follows from the seed and n alone and is drawn for the whole batch, before processes take
their shares. So a run that was killed goes on as if nothing had happened, and two processes do what one would.

Notebook: ``notebooks/11_train_a_full_model.ipynb``.
"""

import dataclasses
import json
import math
import os
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from minimodel.config import SYSTEMS, GeneratorName, PresetName, PriorName, SystemName
from minimodel.data.augmentation import Augmentation
from minimodel.data.pairs import PairSource, PairStream, open_sources
from minimodel.data.video import holds_out
from minimodel.errors import MinimodelError, check_positive
from minimodel.evaluation.benchmark import BENCHMARK_CLIPS, load_evaluation
from minimodel.evaluation.protocols import evaluate, source_of, strip
from minimodel.features import load_features
from minimodel.landmarks import LandmarkDetector
from minimodel.model import AnimationModel
from minimodel.runtime import Device, Precision, channels_last, in_precision, keep_freed_memory, pick_precision
from minimodel.saving import whole_file
from minimodel.show import save_picture
from minimodel.training.beginning import PartName, begin_with, parts_of
from minimodel.training.checkpoint import RunState, averaged_model, load_checkpoint, save_checkpoint
from minimodel.training.distributed import share_statistics
from minimodel.training.folder import keep_settings, locked
from minimodel.training.objective import LossWeights, TrainingStep
from minimodel.training.teaching import Teaching

BETAS = (0.5, 0.999)
LARGEST_GRADIENT = 10.0  # in the infinity norm
PRESET_RATES = {"tiny": 4e-4, "tiny-quarter": 4e-4, "portrait": 4e-4, "small": 2e-4, "paper": 2e-4}
PRESET_FEATURES = {"tiny": "faces", "tiny-quarter": "faces", "portrait": "faces", "small": "vgg19", "paper": "vgg19"}


@dataclass
class TrainConfig:
    """Train a model. The same command after a kill goes on where it stopped, also with more --steps or --minutes."""

    output: Path
    """Folder for weights, checkpoints, metrics and pictures."""
    data: tuple[str, ...] = ("synthetic",)
    """"synthetic", folders of clips, or several of both, from which pairs are then taken in equal shares."""
    evaluate: tuple[str, ...] | None = None
    """What to evaluate on; the data themselves (their test/ or val/ part) unless given."""
    preset: PresetName = "tiny"
    """The sizes of the model."""
    system: SystemName = "mrfa"
    """A paper's system."""
    prior: PriorName | None = None
    """Replaces the system's prior."""
    refine: bool | None = None
    """Switches the system's refinement on or off."""
    generator: GeneratorName | None = None
    """Replaces the system's generator."""
    points: int | None = None
    """Parts that move; as many as the preset has unless given."""
    steps: int | None = None
    """Stop after this many steps ..."""
    minutes: float | None = None
    """... or after this many minutes of training."""
    batch: int = 8
    """Pairs a step, over all processes."""
    learning_rate: float | None = None
    """Adam's, 4e-4 for tiny and 2e-4 for the others unless given."""
    seed: int = 0
    start: str | None = None
    """Begin with the weights of this model, by name or file, rather than at random, wherever the shapes are the same.
    The model may also work at another resolution: a half, a quarter, twice, four times this one's."""
    fixed: tuple[PartName, ...] = ()
    """Parts that keep the weights of --start, while the others learn around them."""
    features: str | None = None
    """Of the perceptual loss: faces (shipped), vgg19 (downloaded once, 550 MB) or a file with VGG-19's weights. Unless
    given, faces for tiny and vgg19 for the others."""
    strict: bool = False
    """Refuse clips that can't be read, rather than leave them out."""
    augment: bool = True
    """Change pairs of real video at random ..."""
    augmentation: Augmentation = Augmentation()
    """... by this much."""
    motion_steps: int = 2
    """Steps that train motion alone, after each step that trains all: they spare themselves the generator, and take a
    third of that one's time, or with refinement three quarters."""
    average: float = 0.999
    """Decay of the moving average of weights that is evaluated and saved; 0 for none."""
    evaluate_minutes: float = 5.0
    """Minutes between evaluations, each with a checkpoint and a picture strip."""
    memory: float = 4.0
    """Gigabytes of memory for decoded frames of films. More of them lie in a temporary file."""
    workers: int = 0
    """Processes that prepare data; worth it beside a GPU."""
    continue_with_changes: bool = False
    """Go on with a run although settings differ that change what is learnt; the earlier ones are kept."""
    precision: Literal["auto", Precision] = "auto"
    """Of networks and losses: auto is bfloat16 where the processor multiplies it, which takes less time, else
    float32."""
    device: Device = "auto"
    """What computes; the best there is unless given. Several devices are given by `accelerate launch`."""
    loss: LossWeights = dataclasses.field(default_factory=LossWeights)
    teaching: Teaching = dataclasses.field(default_factory=Teaching)

    def check(self) -> None:
        """Raise a `MinimodelError` for settings outside their range, or unless exactly one of steps and minutes is
        given."""
        if (self.steps is None) == (self.minutes is None):
            raise MinimodelError("give either --steps or --minutes: how long to train")
        check_positive(self, "steps", "minutes", "points", "batch", "learning_rate", "memory")
        if not 0 <= self.average < 1:
            raise MinimodelError(f"--average is {self.average}: expected 0 or more, and less than 1")
        if self.workers < 0:
            raise MinimodelError(f"--workers is {self.workers}: expected 0 or more")
        if self.motion_steps < 0:
            raise MinimodelError(f"--motion-steps is {self.motion_steps}: expected 0 or more")
        if self.fixed and self.start is None:
            raise MinimodelError("--fixed without --start: it names parts that keep the weights of --start")


class TrainingStopped(MinimodelError):
    """Training can't go on. The message names the step and the reason; the last good state is saved."""


def held_out(data: Sequence[str]) -> list[str]:
    """Those of the data sets that have something to evaluate on; a warning names the others."""
    there = [name for name in data if name == "synthetic" or holds_out(name)]
    for name in data:
        if name not in there:
            warnings.warn(f"{name}: has only train/, nothing is held out: it isn't evaluated", stacklevel=3)
    return there


def train(
    config: TrainConfig,
    *,
    model: AnimationModel | None = None,
    sources: Sequence[PairSource] | None = None,
    **sizes: Any,
) -> AnimationModel:
    """Train a model to the end of the run, from the newest checkpoint in ``config.output`` if there is one.

    Args:
        config: the run.
        model: a model of one's own, in place of the one that ``config`` names by preset and system.
        sources: pairs of one's own, in place of ``config.data``; then only ``config.evaluate`` is evaluated.
        sizes: fields of `minimodel.config.ModelConfig` that differ from the preset's.

    Returns the model with averaged weights in evaluation mode. ``output`` then holds these weights in
    model.safetensors, the metrics in metrics.jsonl and pictures in pictures/.

    Raises:
        MinimodelError: settings that don't fit, or other ones than the run in ``output`` began with, unless
            ``config.continue_with_changes``; a folder to which another run is writing.
        TrainingStopped: the loss or its gradient is no longer finite.

    >>> train(TrainConfig(Path("runs/mine"), steps=1000), model=AnimationModel.from_preset("tiny", points=20))
    """
    config.check()
    keep_freed_memory()
    # Steps of motion alone leave the generator's parameters without a gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    patient = InitProcessGroupKwargs(timeout=timedelta(hours=2))  # while one process evaluates, the others wait
    on_cpu = dict(cpu=True) if config.device == "cpu" else {}
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[unused, patient], **on_cpu)  # see `in_precision`
    precision = pick_precision(config.precision, accelerator.device)
    if config.batch % accelerator.num_processes:
        raise MinimodelError(f"batch {config.batch} can't be shared evenly by {accelerator.num_processes} processes")
    torch.manual_seed(config.seed)
    if model is None:
        parts: dict[str, Any] = dict(
            system=config.system, prior=config.prior, refine=config.refine, generator=config.generator
        )
        if config.points is not None:
            parts["points"] = config.points
        model = AnimationModel.from_preset(config.preset, **parts | sizes)
    model.train()
    if config.start is not None and not (Path(config.output) / "checkpoint.pt").exists():
        accelerator.print(begin_with(model, config.start))
    if accelerator.num_processes > 1:
        model = share_statistics(model, accelerator.device)
    features = load_features(config.features or PRESET_FEATURES[config.preset])
    rate = config.learning_rate or PRESET_RATES[config.preset]
    size = model.image_size
    data_device = torch.device("cpu") if config.workers else accelerator.device
    watched: Sequence[str] = config.evaluate or ()
    # For films: rendered faces bring their landmarks.
    detector = LandmarkDetector.load().to(data_device) if model.prior.labels else None
    if sources is None:
        watched = held_out(config.data) if config.evaluate is None else config.evaluate
        augmentation = config.augmentation if config.augment else None
        options: dict[str, Any] = dict(strict=config.strict, memory=int(config.memory * 1e9), detector=detector)
        sources = open_sources(config.data, size, augmentation, **options)
    stream = PairStream(
        sources,
        size,
        data_device,
        batch=config.batch,
        seed=config.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        droppable=model.prior.droppable_parts,
        labels=model.prior.labels,
        detector=detector,
        truth=config.loss.ask_the_truth,
    )
    # Only the main process evaluates, and on few clips: on all of VoxCeleb's test set it would take hours.
    watched = watched if accelerator.is_main_process else ()
    evaluations = {name: load_evaluation(name, size, most=BENCHMARK_CLIPS, strict=config.strict) for name in watched}

    step_module = channels_last(TrainingStep(model, features, config.loss, config.teaching), accelerator.device)
    for part in parts_of(model, config.fixed):
        part.requires_grad_(False).eval()
    average = AveragedModel(model, use_buffers=True)
    averaged = averaged_model(average)
    learners, parameters = step_module.learners, step_module.learned
    optimizer = torch.optim.Adam(parameters, lr=rate, betas=BETAS)
    with locked(Path(config.output)) if accelerator.is_main_process else nullcontext():
        goes_on = (Path(config.output) / "checkpoint.pt").exists()
        state = load_checkpoint(config.output, learners, average, optimizer)
        whole_step, optimizer = accelerator.prepare(step_module, optimizer)
        checkpoint = partial(save_checkpoint, config.output, learners, average, optimizer, state)
        log = None
        if accelerator.is_main_process:
            built = None if model.config is None else dataclasses.asdict(model.config)
            known = dict(learning_rate=rate, features=source_of(features), precision=precision, model=built)
            changes = dict(goes_on=goes_on, may_change=config.continue_with_changes)
            keep_settings(Path(config.output), dataclasses.asdict(config) | known, state.step, **changes)
            log = Log(config, state, source_of(features), model)

        def evaluate_and_save() -> None:
            """Evaluate, log and save; one process does, the others wait."""
            if log is not None:
                for name, clips in evaluations.items():
                    log(state, "evaluation", data=name, **evaluate(averaged, clips, features).summary())
                    save_picture(strip(averaged, clips), log.pictures / f"{Path(name).name}-{state.step:07d}.png")
                checkpoint()
            accelerator.wait_for_everyone()

        milestones = SYSTEMS[config.system].milestones
        # Where nothing of the motion is learnt, steps of motion alone would teach nothing.
        motion_steps = config.motion_steps if step_module.learns_motion else 0
        batches = iter(
            DataLoader(stream, batch_size=None, sampler=range(state.step, 2**31), num_workers=config.workers)
        )
        progress = agreed_progress(config, state, accelerator)
        evaluated = state.seconds
        if progress >= 1:  # a run that is done; it may have been killed between its last two files
            if log is not None:
                checkpoint()
            return averaged.eval()
        while progress < 1:
            began = time.perf_counter()
            batch = {name: value.to(accelerator.device) for name, value in next(batches).items()}
            waited = time.perf_counter() - began
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.1 ** sum(progress >= milestone for milestone in milestones)
            statistics = [buffer.clone() for buffer in model.buffers()]
            motion_only = state.step % (motion_steps + 1) > 0
            optimizer.zero_grad()  # here, so that gradients don't take memory beside activations
            with in_precision(precision, accelerator.device):
                terms = whole_step(batch, motion_only=motion_only, progress=progress)
            loss = sum(terms.values())
            # Means over processes, so that all of them get the same numbers, and stop together.
            values = accelerator.reduce(torch.stack([loss, *terms.values()]).detach().float(), "mean")
            norm = torch.full_like(values[0], torch.nan)
            # On a CPU the backward pass of sampling would crash on a flow that isn't finite. A GPU would wait for the
            # question, and has no such crash.
            if accelerator.device.type != "cpu" or values[0].isfinite():
                accelerator.backward(loss)
                norm = accelerator.clip_grad_norm_(parameters, LARGEST_GRADIENT, norm_type=torch.inf)
            # The only numbers of a step that a GPU is waited for.
            *means, gradient = torch.cat([values, norm.view(1)]).tolist()
            if not (math.isfinite(means[0]) and math.isfinite(gradient)):
                for buffer, before in zip(model.buffers(), statistics, strict=True):
                    buffer.copy_(before)
                if log is not None:
                    checkpoint()
                    log.progress.close()  # or the message would stand on its line
                raise TrainingStopped(
                    f"loss or gradient is not finite in step {state.step + 1}: stopped; the state before it is saved in"
                    f" {config.output}; a lower --learning-rate may help"
                )
            optimizer.step()
            update_average(average, model, decay=config.average)
            state.step += 1
            took = time.perf_counter() - began
            state.seconds += took
            progress = agreed_progress(config, state, accelerator)
            if log is not None:
                numbers = dict(zip(["loss", *terms, "gradient"], [*means, gradient], strict=True))
                log(state, "train", **numbers, pairs_per_second=config.batch / took, data_share=waited / took)
                log.bar(state, progress, None if motion_only else means[0])
            if progress < 1 and state.seconds - evaluated >= 60 * config.evaluate_minutes:
                evaluated = state.seconds
                evaluate_and_save()
        evaluate_and_save()
        return averaged.eval()


@torch.no_grad()
def update_average(average: AveragedModel, model: nn.Module, *, decay: float) -> None:
    """Add a step to the moving average of weights and buffers. `AveragedModel.update_parameters` does the same, but
    sends its count of steps to a GPU, which waits for it."""
    count = int(average.n_averaged)
    states = (chain(m.parameters(), m.buffers()) for m in (average.module, model))
    pairs = [(averaged.detach(), current.detach()) for averaged, current in zip(*states, strict=True)]
    mixed = [pair for pair in pairs if count and pair[0].is_floating_point()]
    copied = [pair for pair in pairs if not count or not pair[0].is_floating_point()]  # BatchNorm's counters, later on
    for averaged, current in copied:
        averaged.copy_(current)
    if mixed:
        # The first steps' weights are far from the later ones, so the average is short at first.
        decay = min(decay, (1 + count) / (10 + count))
        torch._foreach_lerp_([averaged for averaged, _ in mixed], [current for _, current in mixed], 1 - decay)
    average.n_averaged += 1


def agreed_progress(config: TrainConfig, state: RunState, accelerator: Accelerator) -> float:
    """The share of the run that is done, by the main process's clock. All processes use that clock, because it also
    decides when the main process evaluates; with a clock of its own a process could wait for the others for ever."""
    if accelerator.num_processes > 1:
        (state.seconds,) = broadcast_object_list([state.seconds])
    if config.steps is not None:
        return state.step / config.steps
    assert config.minutes is not None, "one of the two is given"
    return state.seconds / (60 * config.minutes)


class Log:
    """Writes a run's numbers to the progress bar, to metrics.jsonl, and to TensorBoard when it is installed. Only the
    main process has one."""

    def __init__(self, config: TrainConfig, state: RunState, features: str, model: AnimationModel):
        output = Path(config.output)
        self.pictures = output / "pictures"
        self.pictures.mkdir(parents=True, exist_ok=True)
        self.path = output / "metrics.jsonl"
        # What a killed run logged after its checkpoint will be done, and logged, again.
        old = self.path.read_text().splitlines() if self.path.exists() else []
        whole = (line for line in old if line.endswith("}"))
        kept = [line for line in whole if json.loads(line)["step"] <= state.step]
        with whole_file(self.path) as unfinished:
            unfinished.write_text("".join(f"{line}\n" for line in kept))
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board: SummaryWriter | None = SummaryWriter(str(output), purge_step=state.step)
        except ImportError:
            self.board = None
        self.progress = tqdm(total=config.steps, initial=state.step, unit=" steps", dynamic_ncols=True)
        self.batch = config.batch
        self.loss: float | None = None
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        self.progress.write(
            f"{millions:.2f} M parameters; perceptual loss on features {features!r}; output in {output}"
        )

    def __call__(self, state: RunState, kind: str, **numbers) -> None:
        """Log the ``numbers`` of a step: a line of metrics.jsonl, and a point in each curve of TensorBoard."""
        line = dict(step=state.step, minutes=round(state.seconds / 60, 3), kind=kind)
        line |= {k: float(f"{v:.8g}") if isinstance(v, float) else v for k, v in numbers.items()}
        length = self.path.stat().st_size
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:  # a disk that is full takes half a line
            os.truncate(self.path, length)
            raise MinimodelError(f"{self.path}: can't be written ({error.strerror})") from error
        if self.board is not None:
            prefix = "/".join([kind, *(v for v in numbers.values() if isinstance(v, str))])
            for name, value in numbers.items():
                if isinstance(value, float):
                    self.board.add_scalar(f"{prefix}/{name}", value, state.step)

    def bar(self, state: RunState, progress: float, loss: float | None) -> None:
        """Update the progress bar. With ``loss`` None the last loss stays, because steps of motion alone have another
        loss; none is shown before the first."""
        self.loss = self.loss if loss is None else loss
        left = state.seconds / 60 * (1 - progress) / progress
        speed = self.batch * state.step / state.seconds
        self.progress.update(state.step - self.progress.n)
        shown = "" if self.loss is None else f"loss {self.loss:.3f}, "
        self.progress.set_postfix_str(f"{shown}{speed:.1f} pairs/s, {max(left, 0):.1f} min left")
