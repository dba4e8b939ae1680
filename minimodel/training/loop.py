"""Training: one loop for a CPU, a GPU, several GPUs or machines.

Everything random in step n follows from the seed and n alone and is drawn for the whole batch, before processes take
their shares. So a run that was killed goes on as if nothing had happened, and two processes do what one would.

Notebook: ``notebooks/11_train_a_full_model.ipynb``.
"""

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from minimodel.data.pairs import Augmentation, PairStream, open_sources
from minimodel.errors import check_positive
from minimodel.evaluation.benchmark import BENCHMARK_CLIPS, load_evaluation
from minimodel.evaluation.protocols import evaluate, strip
from minimodel.features import load_features
from minimodel.landmarks import LandmarkDetector
from minimodel.memory import keep_freed_memory
from minimodel.model import AnimationModel
from minimodel.show import save_picture
from minimodel.training.checkpoint import RunState, load_checkpoint, save_checkpoint
from minimodel.training.distributed import share_statistics
from minimodel.training.objective import LossWeights, TrainingStep

BETAS = (0.5, 0.999)
# Shares of the run after which the learning rate is a tenth. Published are 0.6 and 0.9, in runs of days; the moving
# average of the weights does in an hour what a long calm at the end is for.
MILESTONES = (0.85, 0.95)
TPSM_MILESTONES = (0.7, 0.9)
LARGEST_GRADIENT = 10.0  # in the infinity norm
PRESET_RATES = {"tiny": 4e-4, "small": 2e-4, "paper": 2e-4}
PRESET_FEATURES = {"tiny": "faces", "small": "vgg19", "paper": "vgg19"}


@dataclass
class TrainConfig:
    """Train a model. The same command after a kill goes on where it stopped."""

    output: Path
    """Folder for weights, checkpoints, metrics and pictures."""
    data: tuple[str, ...] = ("synthetic",)
    """"synthetic", folders of clips, or several of both, from which pairs are then taken in equal shares."""
    evaluate: tuple[str, ...] | None = None
    """What to evaluate on; the data themselves (their test/ or val/ part) unless given."""
    preset: str = "tiny"
    """tiny, small or paper."""
    system: str = "mrfa"
    """A paper's system: mrfa, fomm, npmr, tpsm or s2d."""
    prior: str | None = None
    """Replaces the system's prior: affine, tps, tokens, landmarks or none."""
    refine: bool | None = None
    """Switches the system's refinement on or off."""
    generator: str | None = None
    """Replaces the system's generator: unet, inpainting or residual."""
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
    """Begin with the weights of this model, by name or file, rather than at random; preset, prior, refinement and
    generator must be the same."""
    features: str | None = None
    """Of the perceptual loss: faces (shipped), vgg19 (downloaded once, 550 MB) or a file with VGG-19's weights. Unless
    given, faces for tiny and vgg19 for the others."""
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
    workers: int = 0
    """Processes that prepare data; worth it beside a GPU."""
    loss: LossWeights = dataclasses.field(default_factory=LossWeights)

    def check(self) -> None:
        """Raise a ValueError for settings that can't be."""
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either --steps or --minutes: how long to train")
        check_positive(self, "steps", "minutes", "batch", "learning_rate")
        if not 0 <= self.average < 1:
            raise ValueError(f"--average is {self.average}: expected 0 or more, and less than 1")
        if self.workers < 0:
            raise ValueError(f"--workers is {self.workers}: expected 0 or more")
        if self.motion_steps < 0:
            raise ValueError(f"--motion-steps is {self.motion_steps}: expected 0 or more")


class TrainingStopped(RuntimeError):
    """Training can't go on; the message says at which step and why, and the last good state is saved."""


def begin_with(model: AnimationModel, start: str) -> None:
    """Give the model the weights of another one, by name or file; a ValueError in one line if they don't fit."""
    started = AnimationModel.load(start)
    try:  # by shapes: files written before a setting was there differ from today's in what they don't use
        model.load_state_dict(started.state_dict())
    except RuntimeError as error:
        one, other = (
            f"{c.preset} with prior {c.prior}, {'with' if c.refine else 'without'} refinement, generator {c.generator}"
            for c in (started.config, model.config)
        )
        raise ValueError(f"--start {start}: other sizes ({one}) than this training's ({other})") from error


def train(config: TrainConfig, **sizes) -> AnimationModel:
    """Train to the end of the run, from the newest checkpoint in ``config.output`` if there is one.

    ``sizes`` are fields of `minimodel.config.ModelConfig` that differ from the preset's. Returns the finished model,
    whose weights are then in ``output/model.safetensors``; metrics are in metrics.jsonl, pictures in pictures/.
    """
    config.check()
    keep_freed_memory()
    # Steps of motion alone leave the generator's parameters without a gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    patient = InitProcessGroupKwargs(timeout=timedelta(hours=2))  # while one process evaluates, the others wait
    precision = "bf16" if torch.cuda.is_available() else None
    accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[unused, patient])
    if config.batch % accelerator.num_processes:
        raise ValueError(f"batch {config.batch} can't be shared evenly by {accelerator.num_processes} processes")
    torch.manual_seed(config.seed)
    parts = dict(system=config.system, prior=config.prior, refine=config.refine, generator=config.generator)
    model = AnimationModel.from_preset(config.preset, **parts, **sizes)
    if config.start is not None and not (Path(config.output) / "checkpoint.pt").exists():
        begin_with(model, config.start)
    if accelerator.num_processes > 1:
        model = share_statistics(model, accelerator.device)
    features = load_features(config.features or PRESET_FEATURES[config.preset])
    rate = config.learning_rate or PRESET_RATES[config.preset]
    size = model.config.image_size
    data_device = torch.device("cpu") if config.workers else accelerator.device
    detector = None
    if model.config.prior == "landmarks":  # for films: the rendered faces bring their landmarks
        detector = LandmarkDetector.load().to(data_device)
        model.prior.use_detector(LandmarkDetector.load().to(accelerator.device))
    droppable = model.config.points if model.config.prior == "tps" else 0
    stream = PairStream(
        open_sources(config.data, size, config.augmentation if config.augment else None),
        size,
        data_device,
        batch=config.batch,
        seed=config.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        droppable=droppable,
        detector=detector,
    )
    # Only the main process evaluates, and on few clips: on all of VoxCeleb's test set it would take hours.
    watched = (config.evaluate or config.data) if accelerator.is_main_process else ()
    evaluations = {name: load_evaluation(name, size, most=BENCHMARK_CLIPS) for name in watched}

    step_module = TrainingStep(model, features, config.loss).to(accelerator.device, memory_format=torch.channels_last)
    average = AveragedModel(model, multi_avg_fn=partial(_average, decay=config.average), use_buffers=True)
    learners, parameters = step_module.learners, step_module.learned
    optimizer = torch.optim.Adam(parameters, lr=rate, betas=BETAS)
    state = load_checkpoint(config.output, learners, average, optimizer)
    step_module, optimizer = accelerator.prepare(step_module, optimizer)
    checkpoint = partial(save_checkpoint, config.output, learners, average, optimizer, state)
    log = Log(config, state, features.source, model) if accelerator.is_main_process else None

    def evaluate_and_save() -> None:
        """Evaluate, log and save; one process does, the others wait."""
        if log is not None:
            for name, clips in evaluations.items():
                log(state, "evaluation", data=name, **evaluate(average.module, clips, features).summary())
                save_picture(strip(average.module, clips), log.pictures / f"{Path(name).name}-{state.step:07d}.png")
            checkpoint()
        accelerator.wait_for_everyone()

    milestones = TPSM_MILESTONES if config.system == "tpsm" else MILESTONES
    batches = iter(DataLoader(stream, batch_size=None, sampler=range(state.step, 2**31), num_workers=config.workers))
    progress = agreed_progress(config, state, accelerator)
    evaluated = state.seconds
    if progress >= 1:  # a run that is done; it may have been killed between its last two files
        if log is not None:
            checkpoint()
        return average.module.eval()
    while progress < 1:
        began = time.perf_counter()
        batch = {name: value.to(accelerator.device) for name, value in next(batches).items()}
        waited = time.perf_counter() - began
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.1 ** sum(progress >= milestone for milestone in milestones)
        statistics = [buffer.clone() for buffer in model.buffers()]
        motion_only = state.step % (config.motion_steps + 1) > 0
        terms = step_module(batch, motion_only=motion_only, progress=progress)
        loss = sum(terms.values())
        # Means over processes, so that all of them see the same numbers, and stop together.
        values = accelerator.reduce(torch.stack([loss, *terms.values()]).detach().float(), "mean").tolist()
        norm = math.nan
        if math.isfinite(values[0]):  # the backward pass of sampling would crash on a flow that isn't
            optimizer.zero_grad()
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(parameters, LARGEST_GRADIENT, norm_type=torch.inf).item()
        if not math.isfinite(norm):
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
        average.update_parameters(model)
        state.step += 1
        took = time.perf_counter() - began
        state.seconds += took
        progress = agreed_progress(config, state, accelerator)
        if log is not None:
            numbers = dict(zip(["loss", *terms, "gradient"], [*values, norm], strict=True))
            log(state, "train", **numbers, pairs_per_second=config.batch / took, data_share=waited / took)
            log.bar(state, progress, None if motion_only else values[0])
        if progress < 1 and state.seconds - evaluated >= 60 * config.evaluate_minutes:
            evaluated = state.seconds
            evaluate_and_save()
    evaluate_and_save()
    return average.module.eval()


def _average(averaged: list[Tensor], current: list[Tensor], index: Tensor, *, decay: float) -> None:
    if not averaged[0].is_floating_point():  # BatchNorm's counters
        torch._foreach_copy_(averaged, current)
        return
    # The first steps' weights say nothing; the average is short at first.
    decay = min(decay, (1 + int(index)) / (10 + int(index)))
    torch._foreach_lerp_(averaged, current, 1 - decay)


def agreed_progress(config: TrainConfig, state: RunState, accelerator: Accelerator) -> float:
    """The share of the run that is done. All processes take the main one's clock, as it also says when they evaluate:
    one that thought otherwise would wait for the others for ever."""
    if accelerator.num_processes > 1:
        (state.seconds,) = broadcast_object_list([state.seconds])
    return state.step / config.steps if config.steps is not None else state.seconds / (60 * config.minutes)


class Log:
    """Where a run's numbers go: the bar, metrics.jsonl, and TensorBoard when it is installed. Main process only."""

    def __init__(self, config: TrainConfig, state: RunState, features: str, model: AnimationModel):
        output = Path(config.output)
        self.pictures = output / "pictures"
        self.pictures.mkdir(parents=True, exist_ok=True)
        settings = dataclasses.asdict(config) | dict(features=features, model=dataclasses.asdict(model.config))
        (output / "config.json").write_text(json.dumps(settings, indent=2, default=str) + "\n")
        self.path = output / "metrics.jsonl"
        # What a killed run logged after its checkpoint will be done, and logged, again.
        old = self.path.read_text().splitlines() if self.path.exists() else []
        whole = (line for line in old if line.endswith("}"))
        kept = [line for line in whole if json.loads(line)["step"] <= state.step]
        self.path.write_text("".join(f"{line}\n" for line in kept))
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(output), purge_step=state.step)
        except ImportError:
            self.board = None
        self.progress = tqdm(total=config.steps, initial=state.step, unit=" steps", dynamic_ncols=True)
        self.batch, self.loss = config.batch, math.nan
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        self.progress.write(
            f"{millions:.2f} M parameters; perceptual loss on features {features!r}; output in {output}"
        )

    def __call__(self, state: RunState, kind: str, **numbers) -> None:
        line = dict(step=state.step, minutes=round(state.seconds / 60, 3), kind=kind)
        line |= {k: float(f"{v:.8g}") if isinstance(v, float) else v for k, v in numbers.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.board is not None:
            prefix = "/".join([kind, *(v for v in numbers.values() if isinstance(v, str))])
            for name, value in numbers.items():
                if isinstance(value, float):
                    self.board.add_scalar(f"{prefix}/{name}", value, state.step)

    def bar(self, state: RunState, progress: float, loss: float | None) -> None:
        """``loss`` None leaves the number that stands there, as steps of motion alone have another loss."""
        self.loss = self.loss if loss is None else loss
        left = state.seconds / 60 * (1 - progress) / progress
        speed = self.batch * state.step / state.seconds
        self.progress.update(state.step - self.progress.n)
        self.progress.set_postfix_str(f"loss {self.loss:.3f}, {speed:.1f} pairs/s, {max(left, 0):.1f} min left")
