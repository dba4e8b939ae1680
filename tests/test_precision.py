"""Rendering and training in bfloat16: only where it was asked for, only in networks, and close to float32."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import TorchDispatchMode

from minimodel import runtime
from minimodel.commands import animate as command
from minimodel.commands import bench as bench_command
from minimodel.commands.animate import AnimateConfig, animate
from minimodel.commands.bench import BenchConfig, bench, time_training
from minimodel.commands.evaluate import EvaluateConfig, run_evaluation
from minimodel.data import synthetic
from minimodel.errors import MinimodelError
from minimodel.features import load_features
from minimodel.model import AnimationModel
from minimodel.runtime import in_precision, multiplies_bfloat16, pick_precision
from minimodel.tps import random_transforms
from minimodel.training.ablation import AblateConfig
from minimodel.training.ablation import settings as settings_of_row
from minimodel.training.loop import TrainConfig, train
from minimodel.training.objective import LossWeights, TrainingStep
from tests.test_train import SIZES, lines
from tests.test_video import film

CPU = torch.device("cpu")


class Convolutions(TorchDispatchMode):
    """The types in which convolutions run."""

    def __init__(self):
        super().__init__()
        self.types = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function in (torch.ops.aten.convolution.default, torch.ops.aten.conv2d.default):  # the latter in inference
            self.types.add(arguments[0].dtype)
        return function(*arguments, **(options or {}))


def seen(run):
    with torch.no_grad(), Convolutions() as convolutions:
        result = run()
    return result, convolutions.types


@pytest.mark.parametrize("weights", ["tiny", "tiny-tps", "tiny-s2d"])
def test_bfloat16_is_in_rendering_alone_and_close_to_float32(weights):
    model = AnimationModel.load(weights)
    one, other = synthetic.sample_pairs(1, torch.Generator().manual_seed(0))
    source, driving = (synthetic.render(faces, model.image_size) for faces in (one, other))
    (state, motion), types = seen(lambda: (model.encode_source(source), model.encode_driving(driving)))
    exact, exact_types = seen(lambda: model.render(state, motion))
    model.precision = "bfloat16"
    (again, moved), rough_types = seen(lambda: (model.encode_source(source), model.encode_driving(driving)))
    assert types == exact_types == rough_types == {torch.float32}
    assert torch.equal(again.image, state.image) and torch.equal(moved.points, motion.points)
    assert all(torch.equal(a, b) for a, b in zip(again.features, state.features, strict=True))
    rough, types = seen(lambda: model.render(state, motion))
    assert types == {torch.bfloat16}
    masks = [] if rough.coarse.masks is None else [rough.coarse.masks]
    places = [*rough.flows, *rough.occlusions, *masks, rough.image, rough.painted, rough.warped_source]
    assert {value.dtype for value in places} == {torch.float32}
    decibels = -10 * (rough.image - exact.image).square().mean().log10()
    assert 60 < decibels < 120
    assert (rough.flows[-1] - exact.flows[-1]).abs().max() * model.image_size / 2 < 0.25  # pixels


def test_auto_is_bfloat16_where_the_processor_multiplies_it(monkeypatch):
    assert multiplies_bfloat16(torch.device("mps")) is False
    for able in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda able=able: able)
        expected = "bfloat16" if able else "float32"
        assert (pick_precision("auto", CPU), pick_precision("float32", CPU)) == (expected, "float32")
        assert pick_precision("bfloat16", CPU) == "bfloat16"


@pytest.mark.parametrize("name, expected", [("auto", True), ("float32", False)])
def test_animate_takes_bfloat16_by_itself(name, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "multiplies_bfloat16", lambda device: True)
    torch.manual_seed(0)
    loaded = AnimationModel.from_preset("tiny", system="fomm").eval()
    monkeypatch.setattr(command.AnimationModel, "load", lambda *_, **__: loaded)
    film(tmp_path / "a.mp4", count=2)
    paths = dict(source=tmp_path / "a.mp4", driving=tmp_path / "a.mp4", output=tmp_path / "out.mp4")
    _, types = seen(lambda: animate(AnimateConfig(**paths, crop="none", mode="standard", device="cpu", precision=name)))
    assert (torch.bfloat16 in types) == expected
    loaded.config = None  # as of published weights
    _, types = seen(lambda: animate(AnimateConfig(**paths, crop="none", mode="standard", device="cpu", precision=name)))
    assert torch.bfloat16 not in types


def test_evaluate_and_bench_take_float32_unless_asked(tmp_path, monkeypatch):
    trained_in = []
    monkeypatch.setattr(bench_command, "time_training", lambda *given: trained_in.append(given[-1]) or 0.1)
    torch.manual_seed(0)
    AnimationModel.from_preset("tiny", system="fomm").save(tmp_path / "m.safetensors")
    film(tmp_path / "clips" / "a.mp4", count=3)
    numbers = []
    for chosen in ({}, dict(precision="bfloat16")):
        options = dict(output=tmp_path / "scores.json", device="cpu", **chosen)
        config = EvaluateConfig(str(tmp_path / "m.safetensors"), (str(tmp_path / "clips"),), **options)
        _, types = seen(lambda config=config: run_evaluation(config))
        assert (torch.bfloat16 in types) == bool(chosen)
        numbers.append(json.loads((tmp_path / "scores.json").read_text()))
        options = dict(repeats=1, device="cpu", **chosen)
        _, types = seen(
            lambda options=options: bench(BenchConfig(weights=(str(tmp_path / "m.safetensors"),), **options))
        )
        assert (torch.bfloat16 in types) == bool(chosen)
    assert numbers[0] != numbers[1]
    assert list(dict.fromkeys(trained_in)) == ["float32", "bfloat16"]
    model = AnimationModel.from_preset("tiny", system="fomm", **SIZES)
    for precision in ("float32", "bfloat16"):
        with Convolutions() as convolutions:
            time_training(model, *torch.rand(2, 2, 3, 32, 32), 1, "faces", precision)
        assert (torch.bfloat16 in convolutions.types) == (precision == "bfloat16")


def small_run(output, **options):
    options = dict(steps=1, batch=2, device="cpu", evaluate=(), system="fomm") | options
    with Convolutions() as convolutions:
        train(TrainConfig(output, **options), **SIZES)
    return convolutions.types


@pytest.mark.parametrize(
    "name, able, expected", [("auto", True, True), ("auto", False, False), ("float32", True, False)]
)
def test_train_takes_bfloat16_by_itself(name, able, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "multiplies_bfloat16", lambda device: able)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16" if not expected else "no")  # decides nothing
    AcceleratorState._reset_state(reset_partial_state=True)  # or it would keep what it read first
    types = small_run(tmp_path, precision=name)
    assert (torch.bfloat16 in types) == expected
    (output,) = tmp_path.glob("config.json")
    assert json.loads(output.read_text())["precision"] == ("bfloat16" if expected else "float32")


def test_a_run_goes_on_in_another_precision_only_if_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "multiplies_bfloat16", lambda device: False)
    small_run(tmp_path, precision="bfloat16")
    with pytest.raises(MinimodelError, match=r"\(precision bfloat16 -> float32\); --continue-with-changes"):
        small_run(tmp_path, steps=2)
    assert torch.bfloat16 in small_run(tmp_path, steps=2, precision="bfloat16")
    assert torch.bfloat16 not in small_run(tmp_path, steps=3, continue_with_changes=True)
    said = [json.loads((tmp_path / f"config{of}.json").read_text())["precision"] for of in ("", "-0000002")]
    assert said == ["float32", "bfloat16"] and len(lines(tmp_path)) == 3


def test_rows_of_a_table_are_trained_in_the_precision_that_is_asked_for(tmp_path):
    for precision in ("auto", "float32", "bfloat16"):
        config = AblateConfig("mrfa-3", output=tmp_path, precision=precision)
        assert settings_of_row(config, "affine", 0)[0].precision == precision


@pytest.mark.parametrize("parts", [dict(system="mrfa"), dict(system="tpsm"), dict(system="mrfa", prior="tokens")])
def test_a_step_in_bfloat16_says_its_losses_in_float32_and_close_to_it(parts):
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny", **parts)
    generator = torch.Generator().manual_seed(0)
    one, other = synthetic.sample_pairs(4, generator)
    transform = random_transforms(4, generator)
    batch = dict(control=transform.control, weights=transform.weights, affine=transform.affine)
    batch |= dict(source=synthetic.render(one, 64), driving=synthetic.render(other, 64))
    step = TrainingStep(model, load_features("faces"), LossWeights())
    for motion_only in (False, True):
        both = []
        for precision in ("float32", "bfloat16"):
            model.zero_grad()
            with in_precision(precision, CPU):
                terms = step(batch, motion_only=motion_only, progress=0.05)
            sum(terms.values()).backward()
            assert {term.dtype for term in terms.values()} == {torch.float32}
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            assert {gradient.dtype for gradient in gradients} == {torch.float32}
            both.append((terms, torch.cat([gradient.flatten() for gradient in gradients])))
        (exact, right), (rough, turned) = both
        for name in exact:
            assert rough[name].item() == pytest.approx(exact[name].item(), rel=0.02), name
        assert torch.cosine_similarity(right, turned, dim=0) > 0.95
        assert not torch.equal(right, turned)
