"""What a model costs: time of each stage, multiply-adds, and both against what the machine's convolutions can do.

Notebook: ``notebooks/11_train_a_full_model.ipynb``.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from minimodel import composition
from minimodel.config import PresetName, PriorName, SystemName
from minimodel.errors import MinimodelError, check_positive
from minimodel.features import load_features
from minimodel.landmarks import LANDMARKS
from minimodel.model import AnimationModel
from minimodel.motion import Motion, Output, SourceState
from minimodel.runtime import Device, Precision, channels_last, in_precision, pick_device, ready_to_render
from minimodel.tps import random_transforms
from minimodel.training.loop import PRESET_FEATURES
from minimodel.training.objective import LossWeights, TrainingStep

COMPOSED = (256, 512)  # sides of photos, in pixels


@dataclass
class BenchConfig:
    """Time rendering and training with random weights, or with given ones."""

    presets: tuple[PresetName, ...] = ("tiny", "small", "paper")
    """Which sizes."""
    weights: tuple[str, ...] = ()
    """Instead of presets: shipped weights by name, or .safetensors files. Published models are rendered only."""
    system: SystemName = "mrfa"
    """Which paper's system."""
    prior: PriorName | None = None
    """Replaces the system's prior."""
    batch: int = 1
    """Pairs of a training step."""
    frames: int = 1
    """Driving frames that are rendered at once."""
    replay: bool = False
    """Also record rendering as a CUDA graph, and time its replay, which Python has no part in."""
    repeats: int = 3
    """Runs of which the median is taken, after one that isn't counted."""
    precision: Precision = "float32"
    """Of rendering and training; a GPU trains in bfloat16 in either."""
    device: Device = "auto"
    """What computes; the best there is unless given."""


def bench(config: BenchConfig) -> dict[str, dict[str, float]]:
    """Measure time and multiply-adds of each preset with random weights, or of each of the given weights, print a table
    for each and return the numbers. Times are in seconds."""
    check_positive(config, "batch", "frames", "repeats")
    device = pick_device(config.device)
    if config.replay and device.type != "cuda":
        raise MinimodelError(f"--replay on {device}: only CUDA records graphs")
    speed = convolution_speed(device)
    print(f"{device}, {torch.get_num_threads()} threads; convolutions: {speed / 1e9:.0f} G multiply-adds/s")
    results: dict[str, dict[str, float]] = {}
    for name in config.weights:
        results[name] = bench_model(AnimationModel.load(name, device=device), name, config, speed, device)
    prior = f" with prior {config.prior}" if config.prior else ""
    for preset in () if config.weights else config.presets:
        torch.manual_seed(0)
        model = ready_to_render(AnimationModel.from_preset(preset, system=config.system, prior=config.prior), device)
        results[preset] = bench_model(model, f"{preset}, {config.system}{prior}", config, speed, device)
    return results


def bench_model(
    model: AnimationModel, name: str, config: BenchConfig, speed: float, device: torch.device
) -> dict[str, float]:
    """Measure one model, print its table and return the numbers. ``speed`` is that of `convolution_speed`. A model
    without a configuration, as published ones are, isn't trained."""
    model.precision, size = config.precision, model.image_size
    source, driving = torch.rand(2, config.batch, 3, size, size, device=device)
    one = source[:1]
    other = driving[:1] if config.frames == 1 else torch.rand(config.frames, 3, size, size, device=device)
    with torch.inference_mode():
        given: dict[str, Any] = {}
        moving: dict[str, Any] = {}
        if model.prior.moves_by_landmarks:
            given = dict(landmarks=random_landmarks(1, device))
            moving = dict(landmarks=random_landmarks(config.frames, device))
        state = model.encode_source(one, **given)
        encode_source = partial(model.encode_source, one, **given)
        render_frame = partial(render_driving, model, state, other, **moving)
        per_source, source_stages = measure(model, encode_source, config.repeats)
        per_batch, frame_stages = measure(model, render_frame, config.repeats)
        per_frame = per_batch / config.frames
        work = multiply_adds(render_frame) // config.frames
        memory = {"rendering_memory": peak_memory(device, render_frame)}
        composed = time_composing(model, render_frame(), config.repeats)
        replayed = None
        if config.replay:
            replayed = measure(model, record(model, state, other, **moving), config.repeats)[0] / config.frames
    results = dict(source=per_source, frame=per_frame, work=work, ratio=per_frame * speed / work)
    results |= {f"composed at {side}": seconds for side, seconds in composed.items()}
    together = f", {config.frames} at once" if config.frames > 1 else ""
    at = ", ".join(f"{1000 * seconds:.1f} ms at {side}" for side, seconds in composed.items())
    print(f"\n{name}, {size} x {size}")
    print(f"  a source         {per_source:8.3f} s   {shares(source_stages, per_source)}")
    print(f"  a driving frame  {per_frame:8.3f} s   {shares(frame_stages, per_batch)}{together}")
    print(f"  composing it     {at} pixels")
    speeds = [f"{1 / per_frame:.1f} frames/s"]
    if model.config is not None:
        features = PRESET_FEATURES[model.config.preset]
        train_in: Precision = "bfloat16" if device.type == "cuda" else config.precision
        train_pairs = partial(time_training, model, source, driving, config.repeats, features, train_in)
        results["pair"] = per_pair = train_pairs() / config.batch
        memory["training_memory"] = peak_memory(device, partial(train_pairs, 1))
        print(f"  a training pair  {per_pair:8.3f} s   with batches of {config.batch}")
        speeds.append(f"{1 / per_pair:.1f} pairs/s")
    print(f"  {', '.join(speeds)}")
    if replayed is not None:
        results["replayed"] = replayed
        print(f"  replayed as a CUDA graph: {1 / replayed:.1f} frames/s")
    if device.type == "cuda":
        results |= memory
        print(f"  memory: {', '.join(f'{bytes_ / 1e9:.2f} GB for {name}' for name, bytes_ in memory.items())}")
    print(f"  {work / 1e9:.2f} G multiply-adds a frame, and {results['ratio']:.2f} times what they take at full speed")
    return results


def render_driving(
    model: AnimationModel, source: SourceState, driving: Tensor, *, landmarks: Tensor | None = None
) -> Output:
    """Encode and render one driving frame, which is its whole cost once the source is encoded. Given landmarks cost
    nothing."""
    return model.render(source, model.encode_driving(driving, landmarks=landmarks))


def record(
    model: AnimationModel, source: SourceState, driving: Tensor, *, landmarks: Tensor | None = None
) -> Callable[[], object]:
    """Record `render_driving` as a CUDA graph, and return its replay. What `encode_driving` checks about pictures is
    left out, because the check reads numbers, which a recording can't."""

    def run() -> Output:
        return model.render(source, Motion(landmarks) if landmarks is not None else model.prior.detect(driving))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries choose their algorithms here
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def peak_memory(device: torch.device, run: Callable[[], object]) -> int:
    """The most bytes of a GPU that tensors take during ``run``, those of the models included; 0 elsewhere."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated()


def time_composing(model: AnimationModel, output: Output, repeats: int) -> dict[int, float]:
    """Median seconds to bring a rendered frame to the resolution of a photo, for photos of `COMPOSED` pixels a side."""
    photos = {side: torch.rand(1, 3, side, side, device=output.image.device) for side in COMPOSED}
    return {
        side: measure(model, partial(composition.enlarge, output, photo), repeats)[0] for side, photo in photos.items()
    }


def random_landmarks(count: int, device: torch.device) -> Tensor:
    """Random landmarks (count, 74, 2), normalised, in the middle half of the picture."""
    return torch.rand(count, LANDMARKS, 2, device=device) - 0.5


def stages(model: AnimationModel) -> dict[str, list[nn.Module]]:
    """The modules whose time is measured, by stage; none lies inside another."""
    groups = model.prior.timed_modules() | model.generator.timed_modules()
    groups["generator"] = [model.get_submodule("generator")]
    if model.refiner is not None and model.structure is not None:
        groups["structure"] = list(model.structure.children())  # two encoders, or the hourglasses and heads of two
        groups["projection"] = list(model.refiner.projections)
        groups["refinement"] = [model.refiner]
    return groups


def measure(model: AnimationModel, run: Callable[[], object], repeats: int) -> tuple[float, dict[str, float]]:
    """Run ``run`` once unmeasured and then ``repeats`` times. Returns the median in seconds, and the seconds of each
    stage in the median run."""
    run()
    timings = []
    for _ in range(repeats):
        with timed(model) as spent:
            began = now()
            run()
            timings.append((now() - began, dict(spent)))
    return sorted(timings, key=lambda timing: timing[0])[repeats // 2]


@contextmanager
def timed(model: AnimationModel) -> Iterator[dict[str, float]]:
    """Context in which the seconds of each stage are added up."""
    spent: dict[str, float] = defaultdict(float)
    began: dict[nn.Module, float] = {}
    hooks = []
    for stage, modules in stages(model).items():
        for module in modules:
            hooks.append(module.register_forward_pre_hook(lambda module, _: began.update({module: now()})))

            def done(module, *_, stage=stage):
                spent[stage] += now() - began[module]

            hooks.append(module.register_forward_hook(done))
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def now() -> float:
    """The clock's time in seconds, after all work on a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def shares(spent: dict[str, float], total: float) -> str:
    """The stages' shares of the total time as text, the largest first."""
    parts = [f"{stage} {seconds / total:.0%}" for stage, seconds in sorted(spent.items(), key=lambda item: -item[1])]
    return ", ".join([*parts, f"rest {1 - sum(spent.values()) / total:.0%}"])


def multiply_adds(run: Callable[[], object]) -> int:
    """Count the multiply-adds of the convolutions and matrix products in ``run``, those of attention included."""

    # Torch's counter lacks attention on a CPU, and the fused operation of a transformer layer in evaluation mode.
    def attention(query: torch.Size, key: torch.Size, value: torch.Size, *_, **__) -> int:
        return sdpa_flop_count(query, key, value)

    known = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    in_one_piece = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False, custom_mapping=known) as counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(in_one_piece)
    return counter.get_total_flops() // 2


def convolution_speed(device: torch.device) -> float:
    """Measure the multiply-adds a second of a 3x3 convolution that suits most machines: 128 channels on 64 x 64 pixels.
    It is the best of eight runs."""
    x = torch.rand(4, 128, 64, 64, device=device).to(memory_format=torch.channels_last)
    weight = torch.rand(128, 128, 3, 3, device=device).to(memory_format=torch.channels_last)
    best = float("inf")
    for _ in range(8):
        began = now()
        F.conv2d(x, weight, padding=1)
        best = min(best, now() - began)
    return x.numel() * 128 * 9 / best


def time_training(
    model: AnimationModel,
    source: Tensor,
    driving: Tensor,
    repeats: int,
    features: str = "faces",
    precision: Precision = "float32",
) -> float:
    """Median seconds of a step that trains all parts: losses, gradients and Adam. Steps of motion alone cost less."""
    step = channels_last(TrainingStep(model.train(), load_features(features), LossWeights()), source.device)
    optimizer = torch.optim.Adam(step.learned)
    transform = random_transforms(len(source), torch.Generator().manual_seed(0))
    numbers = dict(control=transform.control, weights=transform.weights, affine=transform.affine)
    batch = dict(source=source, driving=driving) | {name: value.to(source.device) for name, value in numbers.items()}
    if model.prior.labels:
        whole = torch.zeros(len(source), *source.shape[-2:], dtype=torch.long, device=source.device)
        for frame in ("source", "driving"):
            labels = {f"{frame}_landmarks": random_landmarks(len(source), source.device), f"{frame}_parts": whole}
            batch |= labels

    def run():
        optimizer.zero_grad()
        with in_precision(precision, source.device):
            loss = sum(step(batch).values())
        loss.backward()
        optimizer.step()

    return measure(model, run, repeats)[0]
