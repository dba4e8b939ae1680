"""The device that MINIMODEL_DEVICE names against the CPU: the same weights and inputs, to rounding.

`make test-gpu` runs these tests. With MINIMODEL_DEVICE=cpu the CPU is compared with itself, which only shows that the
tests run. Without the variable they are skipped.
"""

import os

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from minimodel.commands.animate import AnimateConfig, animate
from minimodel.config import SYSTEMS
from minimodel.data.pairs import PairStream, RenderedPairs
from minimodel.data.video import Clip
from minimodel.data.writer import VideoWriter
from minimodel.features import load_features
from minimodel.model import AnimationModel
from minimodel.runtime import ready_to_render
from minimodel.training.loop import TrainConfig, train
from minimodel.training.objective import LossWeights, TrainingStep

pytestmark = pytest.mark.skipif("MINIMODEL_DEVICE" not in os.environ, reason="make test-gpu runs it")
VARIANTS = [*((system, None) for system in SYSTEMS), ("mrfa", "tokens"), ("mrfa", "tps")]


@pytest.fixture(autouse=True)
def full_precision():
    """TF32, which torch takes for convolutions, has three digits; that is no error of ours. For the whole session."""
    torch.backends.cudnn.allow_tf32 = False


def batch_of(model, device):
    """A batch of rendered faces with all their truth, drawn and rendered on the CPU."""
    size = model.image_size
    options = dict(droppable=model.prior.droppable_parts, labels=model.prior.labels, truth=True)
    batch = PairStream([RenderedPairs(size)], size, torch.device("cpu"), batch=2, seed=0, **options)[0]
    return {name: value.to(device) for name, value in batch.items()}


def twins(system, prior, device):
    """The same random weights on the CPU and on the device; the refiner's last layers aren't zero."""
    models = []
    for where in (torch.device("cpu"), device):
        torch.manual_seed(0)
        model = AnimationModel.from_preset("tiny", system=system, prior=prior)
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.01)
        models.append(ready_to_render(model, where))
    return models


def close(one, other, tolerance):
    __tracebackhide__ = True
    torch.testing.assert_close(other.detach().cpu(), one.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("system, prior", VARIANTS)
def test_a_frame_is_the_same(system, prior, device):
    outputs = []
    for model in twins(system, prior, device):
        batch = batch_of(model, next(model.parameters()).device)
        landmarks = {n: batch[n] for n in ("source_landmarks", "driving_landmarks") if n in batch}
        with torch.inference_mode():
            outputs.append(model(batch["source"], batch["driving"], **landmarks, move_background=True))
    close(outputs[0].image, outputs[1].image, 2e-3)
    for one, other in zip(outputs[0].flows, outputs[1].flows, strict=True):
        close(one, other, 2e-3)


@pytest.mark.parametrize("motion_only", [False, True])
@pytest.mark.parametrize("system, prior", VARIANTS)
def test_a_step_of_training_is_the_same(system, prior, motion_only, device):
    results = []
    for model in twins(system, prior, device):
        where = next(model.parameters()).device
        gated = float(model.generator.gated)
        weights = LossWeights(smoothness=1.0, flow=1.0, matching=1.0, hidden=1.0, visibility=gated)
        torch.manual_seed(1)  # for the discriminator
        step = TrainingStep(model.train(), load_features("faces"), weights).to(where)
        terms = step(batch_of(model, where), motion_only=motion_only, progress=0.3)
        sum(terms.values()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((terms, gradients))
    (terms, gradients), (other_terms, other_gradients) = results
    assert terms.keys() == other_terms.keys() and gradients.keys() == other_gradients.keys()
    for name, term in terms.items():
        close(term, other_terms[name], 5e-3)
    size = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    missed = torch.stack([(other_gradients[name].cpu() - gradients[name]).norm() for name in gradients]).norm()
    assert missed < 0.05 * size  # a batch of two through batch norms turns rounding into percents


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only CUDA tells when it waits")
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_step_of_training_does_not_wait(system, device):
    _, model = twins(system, None, device)
    step = TrainingStep(model.train(), load_features("faces"), LossWeights()).to(device)
    batch = batch_of(model, device)
    sum(step(batch).values()).backward()  # libraries wait once, when they are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        sum(step(batch).values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("system", ["mrfa", "s2d", "tpsm"])
def test_training_goes_on_where_it_stopped(system, tmp_path, device):
    options = dict(output=tmp_path, system=system, batch=2, evaluate=(), device=device.type)
    train(TrainConfig(steps=2, **options))
    model = train(TrainConfig(steps=4, **options))
    assert {p.device.type for p in model.parameters()} == {device.type}
    assert all(p.isfinite().all() for p in model.parameters())
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    AnimationModel.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("weights", ["tiny", "tiny-tps", "tiny-s2d"])
def test_an_animated_film_is_the_same(weights, tmp_path, device):
    faces = RenderedPairs(64)
    frames = faces.load(faces.draw(6, torch.Generator().manual_seed(0)), torch.arange(6), torch.device("cpu"))[0]
    with VideoWriter(tmp_path / "d.mp4", every=2) as writer:
        for frame in frames:
            writer.write(frame)
    iio.imwrite(tmp_path / "s.png", (frames[0].permute(1, 2, 0) * 255).round().numpy().astype(np.uint8))
    films = []
    for name in ("cpu", device.type):
        paths = dict(source=tmp_path / "s.png", driving=tmp_path / "d.mp4", output=tmp_path / f"{name}.mp4")
        clip = Clip(animate(AnimateConfig(**paths, weights=weights, device=name)))
        films.append(torch.stack([frame for _, frame in clip.decode()]).float())
    assert (films[0] - films[1]).abs().mean() < 1  # of 255
