"""Rendering in bfloat16: only where it was asked for, only in convolutions, and close to float32."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minimodel import runtime
from minimodel.commands import animate as command
from minimodel.commands import bench as bench_command
from minimodel.commands.animate import AnimateConfig, animate
from minimodel.commands.bench import BenchConfig, bench
from minimodel.commands.evaluate import EvaluateConfig, run_evaluation
from minimodel.data import synthetic
from minimodel.model import AnimationModel
from minimodel.runtime import multiplies_bfloat16, pick_precision
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
    monkeypatch.setattr(bench_command, "time_training", lambda *_: 0.1)
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
