"""Training: one loop for a CPU, a GPU, several GPUs or machines.

Everything random in step n follows from the seed and n alone and is drawn for the whole batch, before processes take
their shares. So a run that was killed goes on as if nothing had happened, and two processes do what one would.

Notebook: ``notebooks/11_train_a_full_model.ipynb``.
"""

import ctypes
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from minimodel import losses
from minimodel.data import synthetic
from minimodel.data.video import Augmentation, VideoPairs
from minimodel.dense_motion import dropout_scales
from minimodel.evaluate import BENCHMARK_CLIPS, evaluate, load_evaluation, strip
from minimodel.features import load_features
from minimodel.landmarks import LandmarkDetector
from minimodel.model import AnimationModel, Motion
from minimodel.show import save_picture
from minimodel.tps import Spline, random_transforms
from minimodel.warping import resize_flow, warp

BETAS = (0.5, 0.999)
# Shares of the run after which the learning rate is a tenth. Published are 0.6 and 0.9, in runs of days; the moving
# average of the weights does in an hour what a long calm at the end is for.
MILESTONES = (0.85, 0.95)
TPSM_MILESTONES = (0.7, 0.9)
BACKGROUND_FROM = 0.1  # share of the run before which the TPS prior's background stands still
DROPOUT_UNTIL = 0.35  # share of the run
LABELS = ("source_landmarks", "driving_landmarks", "source_parts", "driving_parts")
LARGEST_GRADIENT = 10.0  # in the infinity norm
# Steps of motion alone compare the first three of five layers. The others look at wide surroundings, in which a moved
# source can't show what it hides: there the true flow costs more than one that bends the face to make up for it.
MOTION_LAYERS = 3
PRESET_RATES = {"tiny": 4e-4, "small": 2e-4, "paper": 2e-4}
PRESET_FEATURES = {"tiny": "faces", "small": "vgg19", "paper": "vgg19"}


@dataclass
class Weights:
    """What each loss counts for."""

    perceptual: float = 10.0
    points: float = 100.0
    """Published is 10. In runs of an hour more makes points hold still sooner, and what they say is all that the rest
    of the model knows of the driving frame: after 6000 pairs 100 gave 0.3 dB more."""
    affine: float = 10.0
    smoothness: float = 0.0
    """Of what refinement adds to the coarse flow. As long as points are still learnt it only slows refinement down;
    afterwards it keeps it honest."""
    background: float = 1.0
    """Of the TPS prior's background predictor: which pixels it takes for background."""
    warp: float = 10.0
    """Of the inpainting network."""
    l1: float = 10.0
    """Of the pictures; for the landmarks prior, as in S2D."""
    parsing: float = 10.0
    """Of the parts of the face, moved; for the landmarks prior, as in S2D."""
    adversarial: float = 1.0
    """Of the residual generator, as in S2D."""


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
    loss: Weights = dataclasses.field(default_factory=Weights)

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


def check_positive(config: object, *names: str) -> None:
    """Raise a ValueError for the first of these settings that is given and not a finite number above 0."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:  # this way round, what isn't a number is refused, too
            raise ValueError(f"--{name.replace('_', '-')} is {value}: expected more than 0, and finite")


class SyntheticPairs:
    """Random pairs of the embedded faces; drawn and loaded like `VideoPairs`.

    Rendering costs a CPU as much as a good part of training, so slots 2n and 2n + 1 hold one pair in both directions.
    """

    def __init__(self, size: int):
        self.size = size

    def draw(self, count: int, generator: torch.Generator) -> tuple:
        return synthetic.sample_pairs((count + 1) // 2, generator)

    def load(self, drawn: tuple, slots: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.both(lambda faces: synthetic.render(faces, self.size), drawn, slots, device)

    def labels(self, drawn: tuple, slots: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        """`LABELS`: what a model that moves by landmarks learns from beside the pictures."""
        landmarks = self.both(synthetic.landmarks, drawn, slots, device)
        parts = self.both(lambda faces: synthetic.parsing(faces, self.size), drawn, slots, device)
        return *landmarks, *parts

    def both(
        self, what: Callable[[synthetic.Faces], Tensor], drawn: tuple, slots: Tensor, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """``what`` of the source and of the driving face of each slot; all at once, as few faces leave cores idle."""
        pairs, place = torch.unique(slots // 2, return_inverse=True)
        values = what((drawn[0][pairs] + drawn[1][pairs]).to(device))
        one, other = (half[place.to(device)] for half in values.chunk(2))
        forth = (slots % 2 == 0).view(-1, *[1] * (one.dim() - 1)).to(device)
        return torch.where(forth, one, other), torch.where(forth, other, one)


class PairStream(Dataset):
    """Item n is this process's share of the batch of step n: source, driving, the random transform's numbers and, for
    each of ``droppable`` parts, the one that decides whether it is dropped. With a ``detector`` also `LABELS`:
    landmarks and parts of both frames, true ones of embedded faces; of films the landmarks that it finds, and no
    parts."""

    def __init__(
        self,
        config: TrainConfig,
        size: int,
        device: torch.device,
        *,
        share: tuple[int, int] = (0, 1),
        droppable: int = 0,
        detector: LandmarkDetector | None = None,
    ):
        self.detector = detector
        augmentation = config.augmentation if config.augment else None
        self.sources = [
            SyntheticPairs(size) if name == "synthetic" else VideoPairs(name, size, augmentation)
            for name in config.data
        ]
        self.config, self.size, self.device = config, size, device
        self.share, self.droppable = share, droppable

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        generator = step_generator(self.config.seed, step)
        batch = self.config.batch
        transform = random_transforms(batch, generator)
        drawn = [source.draw(batch, generator) for source in self.sources]
        process, processes = self.share
        mine = torch.arange(batch).tensor_split(processes)[process]
        frames = torch.empty(2, len(mine), 3, self.size, self.size, device=self.device)
        labels = {}
        for number, source in enumerate(self.sources):
            # Slots go round the sources, so that every batch holds equal shares.
            slots = (mine % len(self.sources) == number).nonzero().flatten()
            if not len(slots):  # this process has fewer than there are sources
                continue
            wanted = drawn[number], mine[slots] // len(self.sources), self.device
            frames[:, slots] = torch.stack(source.load(*wanted))
            if self.detector is not None:
                known = source.labels(*wanted) if isinstance(source, SyntheticPairs) else self.found(frames[:, slots])
                for name, value in zip(LABELS, known, strict=True):
                    labels.setdefault(name, value.new_empty(len(mine), *value.shape[1:]))[slots] = value
        numbers = dict(control=transform.control, weights=transform.weights, affine=transform.affine)
        if self.droppable:
            numbers["chances"] = torch.rand(batch, self.droppable, generator=generator)
        item = dict(source=frames[0], driving=frames[1]) | labels
        return item | {name: value[mine].to(self.device) for name, value in numbers.items()}

    @torch.no_grad()
    def found(self, frames: Float[Tensor, "2 b 3 h w"]) -> tuple[Tensor, ...]:
        """`LABELS` of films. One part covers all of them, so that no flow can be wrong about it."""
        landmarks = self.detector.find(frames.flatten(0, 1)).unflatten(0, (2, -1))
        parts = torch.zeros(frames.shape[1], *frames.shape[-2:], dtype=torch.long, device=frames.device)
        return *landmarks, parts, parts


def step_generator(seed: int, step: int) -> torch.Generator:
    """What is random in one step. A generator takes 32 bits, so each seed's steps begin at another place in them."""
    return torch.Generator().manual_seed((seed * 2_654_435_761 + step) % 2**32)


def dropout_probability(progress: float) -> float:
    """P of TPSM Eq. 7-8 at a share of the run: from 0.1 it rises by 0.03 a hundredth to 0.3, and ends at 0.35."""
    return min(0.1 + 3 * progress, 0.3) if progress < DROPOUT_UNTIL else 0.0


class TrainingStep(nn.Module):
    """Model and losses under one `forward`, which is what distributed training wraps."""

    def __init__(self, model: AnimationModel, features: nn.Module, weights: Weights):
        super().__init__()
        self.model, self.features, self.weights = model, features, weights
        self.discriminator = losses.Discriminator() if model.config.generator == "residual" else None

    @property
    def learners(self) -> dict[str, nn.Module]:
        """What learns: all but the features."""
        return dict(model=self.model) | ({} if self.discriminator is None else dict(discriminator=self.discriminator))

    @property
    def learned(self) -> list[nn.Parameter]:
        """The parameters of `learners`, for an optimizer."""
        return [parameter for learner in self.learners.values() for parameter in learner.parameters()]

    def forward(
        self, batch: dict[str, Tensor], *, motion_only: bool = False, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """``motion_only``: without the generator, by the source as the first flow and the last one move it;
        ``progress`` is the share of the run that is done."""
        model, weights = self.model, self.weights
        source, driving = batch["source"], batch["driving"]
        by_landmarks = model.config.prior == "landmarks"
        inpaints = model.config.generator == "inpainting"
        if by_landmarks:  # they are given, so nothing has to be asked of them
            motion, terms = model.encode_driving(landmarks=batch["driving_landmarks"]), {}
        else:
            motion = model.encode_driving(driving)
            terms = self.equivariance(driving, motion, Spline(batch["control"], batch["weights"], batch["affine"]))
            if progress < BACKGROUND_FROM:
                motion = dataclasses.replace(motion, image=None)
        state = model.encode_source(
            source, landmarks=batch.get("source_landmarks"), to_render=inpaints or not motion_only
        )

        def like_driving(image: Tensor, layers: int = 5) -> Tensor:
            # Fewer layers weigh as much as all of them.
            loss = losses.perceptual_loss(self.features, image, driving, layers=layers)
            loss = weights.perceptual * 5 / layers * loss
            return loss + weights.l1 * F.l1_loss(image, driving) if by_landmarks else loss

        options = {}
        if "chances" in batch:
            options["part_scales"] = dropout_scales(batch["chances"], dropout_probability(progress))
        if motion_only:
            stages = model.move(state, motion, **options)
            terms["moved"] = like_driving(stages.warped_source, MOTION_LAYERS)
            if model.refiner is not None:
                coarse = resize_flow(stages.coarse.flow, tuple(source.shape[-2:]))
                terms["coarse"] = like_driving(warp(source, coarse), MOTION_LAYERS)
        else:
            stages = model.render(state, motion, **options)
            terms["perceptual"] = like_driving(stages.image)
            if model.config.blend:
                # Or the generator would hardly learn wherever the gate trusts the warped source, which soon is
                # everywhere.
                terms["painted"] = like_driving(stages.painted)
            if self.discriminator is not None:
                terms |= self.adversaries(stages.image, driving)
        if weights.smoothness and model.refiner is not None:
            added = stages.flows[-1] - resize_flow(stages.flows[0], tuple(source.shape[-2:]))
            terms["smoothness"] = weights.smoothness * losses.smoothness(added)
        if model.config.prior == "tps":
            looked = model.prior.background
            terms["background"] = weights.background * losses.background_mask_loss(
                looked.logits(looked.resized(driving)), stages.coarse.masks
            )
        if inpaints:
            with torch.no_grad():
                wanted = model.generator.encode(driving)
            terms["warp"] = weights.warp * losses.warp_loss(state.features, wanted, stages.flows[1:])
        if by_landmarks:
            parts = losses.parsing_loss(batch["source_parts"], stages.flows[-1], batch["driving_parts"])
            terms["parsing"] = weights.parsing * parts
        return terms

    def equivariance(self, driving: Tensor, motion: Motion, transform: Spline) -> dict[str, Tensor]:
        """What the model says of a frame that ``transform`` bends should be what it says of the frame, bent."""
        moved = self.model.encode_driving(losses.transformed_frame(driving, transform))
        points = losses.equivariance_points(motion.points, moved.points, transform)
        terms = {"points": self.weights.points * points}
        if motion.affine is not None:
            difference = losses.equivariance_affine(motion.affine, moved.affine, moved.points, transform)
            terms["affine"] = self.weights.affine * difference
        return terms

    def adversaries(self, image: Tensor, driving: Tensor) -> dict[str, Tensor]:
        """S2D Eq. 5 and 6. One backward pass serves both sides: the discriminator sees the picture detached, and the
        picture is judged by a discriminator that is."""
        judge = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        scores = self.discriminator(driving), self.discriminator(image.detach())
        told = torch.func.functional_call(self.discriminator, judge, (image,))
        return {
            "discriminator": losses.discriminator_loss(*scores),
            "adversarial": self.weights.adversarial * losses.adversarial_loss(told),
        }


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


def keep_freed_memory() -> None:
    """Let glibc keep what torch frees. Otherwise the pages of large tensors go back to the kernel after each operation,
    which clears them for the next one: a tenth of a CPU's time in training, a fifth in rendering. Other systems'
    allocators are left as they are."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return
    if not mallopt(-3, 2**30):  # M_MMAP_THRESHOLD: larger ones than this still go straight back
        mallopt(-3, 2**25)  # all that older versions of glibc take
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def train(config: TrainConfig, **sizes) -> AnimationModel:
    """Train to the end of the run, from the newest checkpoint in ``config.output`` if there is one.

    ``sizes`` are fields of `minimodel.model.Config` that differ from the preset's. Returns the finished model, whose
    weights are then in ``output/model.safetensors``; metrics are in metrics.jsonl, pictures in pictures/.
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
    share = accelerator.process_index, accelerator.num_processes
    place = torch.device("cpu") if config.workers else accelerator.device
    detector = None
    if model.config.prior == "landmarks":  # for films: the embedded faces bring their landmarks
        detector = LandmarkDetector.load().to(place)
        model.prior.use_detector(LandmarkDetector.load().to(accelerator.device))
    droppable = model.config.points if model.config.prior == "tps" else 0
    stream = PairStream(config, size, place, share=share, droppable=droppable, detector=detector)
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

    def look() -> None:
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
    looked = state.seconds
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
        if progress < 1 and state.seconds - looked >= 60 * config.evaluate_minutes:
            looked = state.seconds
            look()
    look()
    return average.module.eval()


@dataclass
class RunState:
    """How far a run is."""

    step: int = 0
    seconds: float = 0.0  # of training, without evaluations


def agreed_progress(config: TrainConfig, state: RunState, accelerator: Accelerator) -> float:
    """The share of the run that is done. All processes take the main one's clock, as it also says when they evaluate:
    one that thought otherwise would wait for the others for ever."""
    if accelerator.num_processes > 1:
        (state.seconds,) = broadcast_object_list([state.seconds])
    return state.step / config.steps if config.steps is not None else state.seconds / (60 * config.minutes)


def share_statistics(model: nn.Module, device: torch.device) -> nn.Module:
    """Let every BatchNorm see the batches of all processes; torch's own layer for that works on GPUs only."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SharedBatchNorm
    return model


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm whose mean and variance are those of all processes' batches, which must be of one size. Under autocast
    they are taken in float32, as torch's own layer does."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.shared(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)

    def shared(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        processes = distributed.get_world_size()
        mean = all_reduce(x.mean((0, 2, 3))) / processes
        centred = x - mean[:, None, None]
        variance = all_reduce(centred.square().mean((0, 2, 3))) / processes
        with torch.no_grad():
            count = processes * x.numel() / x.shape[1]
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return centred * scale[:, None, None] + self.bias[:, None, None]


def _average(averaged: list[Tensor], current: list[Tensor], number: Tensor, *, decay: float) -> None:
    if not averaged[0].is_floating_point():  # BatchNorm's counters
        torch._foreach_copy_(averaged, current)
        return
    # The first steps' weights say nothing; the average is short at first.
    decay = min(decay, (1 + int(number)) / (10 + int(number)))
    torch._foreach_lerp_(averaged, current, 1 - decay)


def save_checkpoint(
    output: str | Path,
    learners: dict[str, nn.Module],
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    state: RunState,
) -> None:
    """Write all that a run needs to go on, and the averaged model for use: each file whole or not at all."""
    output = Path(output)
    parts = learners | dict(average=average, optimizer=optimizer)
    checkpoint = {name: part.state_dict() for name, part in parts.items()}
    checkpoint |= dict(metadata=average.module.metadata(), state=dataclasses.asdict(state))
    for name, write in (("checkpoint.pt", partial(torch.save, checkpoint)), ("model.safetensors", average.module.save)):
        unfinished = output / f"{name}.unfinished"
        try:
            write(unfinished)
            os.replace(unfinished, output / name)
        except (RuntimeError, SafetensorError) as error:  # how they say that a disk is full
            raise OSError(f"{output / name}: can't be written ({str(error).splitlines()[0]})") from error
        finally:
            unfinished.unlink(missing_ok=True)


def load_checkpoint(
    output: str | Path, learners: dict[str, nn.Module], average: AveragedModel, optimizer: torch.optim.Optimizer
) -> RunState:
    """Bring a run back to its checkpoint; a fresh state if there is none."""
    path = Path(output) / "checkpoint.pt"
    if not path.exists():
        return RunState()
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        metadata = checkpoint["metadata"]
    except Exception as error:  # whatever a broken or foreign file makes torch raise
        raise ValueError(f"{path}: not a checkpoint of minimodel, or damaged; move it away to start afresh") from error
    if metadata != average.module.metadata():
        raise ValueError(f"{path}: from a model of other sizes or another version; choose another --output")
    for name, part in (learners | dict(average=average, optimizer=optimizer)).items():
        part.load_state_dict(checkpoint[name])
    return RunState(**checkpoint["state"])


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
