"""A step of training, and rendering, as a GPU sees them: on the meta device, which has shapes and no numbers.

Whatever asks for a number (`.item()`, `.cpu()`, `if tensor:`) fails there by itself. The guard also finds tensors that
are made on the CPU, and those that are copied from the CPU, for which a GPU waits.
"""

import traceback

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minimodel import losses
from minimodel.config import PRESETS, SYSTEMS
from minimodel.data.pairs import HOLES
from minimodel.features import VGG19, FaceFeatures
from minimodel.landmarks import LANDMARKS
from minimodel.model import AnimationModel
from minimodel.training.objective import LossWeights, TrainingStep

META = torch.device("meta")
COPYING = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)


class WrongDeviceError(Exception):
    """An operation touched a tensor outside the meta device."""


class _Copies(TorchFunctionMode):
    """Finds calls that make a tensor from Python's numbers: these lie on the CPU first."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        if function in COPYING:
            raise WrongDeviceError(f"{function.__name__} copies numbers from the CPU, in {place()}")
        return function(*arguments, **(options or {}))


class _Devices(TorchDispatchMode):
    """Finds operations with a tensor on another device than meta, gradients' operations included."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        tensors = [leaf for leaf in tree_leaves((arguments, options, result)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device != META for tensor in tensors):
            raise WrongDeviceError(f"{function} on a CPU's tensor, in {place()}")
        return result


def place():
    """The line of the package that runs."""
    lines = [line for line in traceback.extract_stack() if "/minimodel/" in line.filename]
    return f"{lines[-1].filename}:{lines[-1].lineno}" if lines else "a test"


@pytest.fixture(autouse=True)
def autocast_on_meta(monkeypatch):
    """Let autocast be switched off on meta tensors, for which it doesn't exist."""
    autocast = torch.autocast
    monkeypatch.setattr(
        torch, "autocast", lambda device, **options: autocast("cpu" if device == "meta" else device, **options)
    )


def step_of(preset, system, *, taught=True, **sizes):
    """A `TrainingStep` on meta tensors, with every loss that the system can have."""
    with META:
        model = AnimationModel.from_preset(preset, system=system, **sizes)
        weights = LossWeights(smoothness=1.0)
        if taught:
            weights = LossWeights(
                smoothness=1.0, flow=1.0, matching=1.0, hidden=1.0, visibility=float(model.generator.gated)
            )
        return TrainingStep(model, FaceFeatures() if preset.startswith("tiny") else VGG19(), weights)


def batch_of(model, pairs=2):
    """A batch of `PairStream` without numbers."""
    side = model.image_size

    def numbers(*shape):
        return torch.empty(pairs, *shape, device=META)

    picture, landmarks = numbers(3, side, side), numbers(LANDMARKS, 2)
    batch = dict(source=picture, driving=picture)
    batch |= dict(control=numbers(1, 25, 2), weights=numbers(1, 25, 2), affine=numbers(1, 2, 3))
    batch |= dict(true_flow=numbers(2, side, side), visible=numbers(1, side, side), true_landmarks=landmarks)
    batch |= dict(known=numbers(), lots=numbers(2), holes=numbers(HOLES, 6))
    if model.prior.droppable_parts:
        batch["chances"] = numbers(model.prior.droppable_parts)
    if model.prior.labels:
        parts = numbers(side, side).long()
        batch |= dict(source_landmarks=landmarks, driving_landmarks=landmarks, source_parts=parts, driving_parts=parts)
    return batch


def take(step, batch, **options):
    with _Copies(), _Devices():
        terms = step(batch, **options)
        sum(terms.values()).backward()
    return terms


VARIANTS = [(preset, system, {}) for preset in PRESETS for system in SYSTEMS] + [
    ("tiny", "mrfa", dict(coarse_stream=True)),
    ("tiny", "mrfa", dict(prior="tokens")),
    ("tiny", "mrfa", dict(prior="tps")),
    ("tiny", "s2d", dict(refine=True)),
    ("tiny", "tpsm", dict(spline_heatmaps=False)),
]


@pytest.mark.parametrize("preset, system, sizes", VARIANTS)
def test_a_step_of_training_makes_no_gpu_wait_and_no_tensor_elsewhere(preset, system, sizes):
    step = step_of(preset, system, **sizes)
    batch = batch_of(step.model)
    terms = take(step, batch, progress=0.3)  # dropout and the moving background are on
    assert {"perceptual", "flow", "hidden"} <= terms.keys() and all(term.device == META for term in terms.values())
    assert {"matching", "smoothness"} <= terms.keys() or step.model.refiner is None
    assert all(value.grad is not None for value in step.model.generator.parameters())
    if preset.startswith("tiny"):  # the other presets run the same lines
        take(step, batch, progress=0.3, motion_only=True)


@pytest.mark.parametrize("system", SYSTEMS)
def test_rendering_makes_no_gpu_wait_and_no_tensor_elsewhere(system):
    model = step_of("tiny", system).model.eval()
    batch = batch_of(model)
    landmarks = {name: batch.get(name) for name in ("source_landmarks", "driving_landmarks")}
    with torch.inference_mode(), _Copies(), _Devices():
        output = model(batch["source"], batch["driving"], **landmarks, move_background=True)
    assert output.image.device == META


def fetched(a, b):
    return (a - b).abs().mean().cpu()


def made_elsewhere(a, b):
    return (a - b).abs().mean() * torch.ones(())  # a CPU's scalar may meet a GPU's tensor: nothing fails by itself


def read(a, b):
    return a.sum() / max((a - b).sum().item(), 1.0)


def asked(a, b):
    return a.sum() if (a > b).any() else b.sum()


def listed(a, b):
    return a.sum() * b.sum().tolist()


def copied(a, b):
    return ((a - b) * torch.tensor([1.0], device=a.device)).abs().mean()


@pytest.mark.parametrize("planted", [fetched, made_elsewhere, read, asked, listed, copied])
def test_what_would_make_a_gpu_wait_or_fail_is_found(planted, monkeypatch):
    step = step_of("tiny", "fomm")
    batch = batch_of(step.model)
    monkeypatch.setattr(losses, "hidden_loss", lambda painted, driving, visible: planted(painted, driving))
    with pytest.raises((WrongDeviceError, NotImplementedError, RuntimeError), match=r"CPU|[Cc]annot"):
        take(step, batch)
    monkeypatch.setattr(losses, "hidden_loss", lambda painted, driving, visible: (painted - driving).abs().mean())
    take(step, batch)


def test_the_parsing_loss_is_the_same_whatever_labels_are_absent():
    numbers = torch.Generator().manual_seed(0)
    source, driving = torch.randint(0, 13, (2, 2, 16, 16), generator=numbers)
    results = []
    for labels in (13, 19, 40):
        flow = (0.2 * torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(1))).requires_grad_()
        loss = losses.parsing_loss(source, flow, driving, labels=labels)
        loss.backward()
        results.append((loss.detach(), flow.grad))
    assert results[0][1].any()
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(gradient, results[0][1])
