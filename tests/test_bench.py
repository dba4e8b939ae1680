import re
import time

import pytest
import torch
from torch import nn

from minimodel.commands.bench import (
    BenchConfig,
    bench,
    convolution_speed,
    measure,
    multiply_adds,
    random_landmarks,
    shares,
    stages,
    time_training,
    timed,
)
from minimodel.errors import MinimodelError
from minimodel.model import AnimationModel
from minimodel.training.objective import TrainingStep


def test_multiply_adds_of_what_is_known():
    convolution = nn.Conv2d(3, 8, 5, padding=2, stride=2)
    assert multiply_adds(lambda: convolution(torch.rand(2, 3, 16, 24))) == 2 * 8 * 8 * 12 * 3 * 25
    grouped = nn.Conv2d(8, 8, 3, groups=4)
    assert multiply_adds(lambda: grouped(torch.rand(1, 8, 10, 10))) == 8 * 8 * 8 * 2 * 9
    assert multiply_adds(lambda: torch.rand(5, 7) @ torch.rand(7, 11)) == 5 * 7 * 11
    assert multiply_adds(lambda: None) == 0
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    work = 2 * 10 * (16 * 16 * 4 + 16 * 24 * 2) + 2 * 2 * 10 * 10 * 16
    for mode in (True, False):  # torch computes an evaluated layer by another route
        layer.train(mode)
        with torch.inference_mode():
            assert multiply_adds(lambda: layer(torch.rand(2, 10, 16))) == work
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_speed_of_convolutions_is_their_work_over_the_best_time(monkeypatch):
    assert convolution_speed(torch.device("cpu")) > 1e8
    # By a clock that runs one second, then two, then three ... between looks.
    ticks = iter(range(100))
    monkeypatch.setattr("minimodel.commands.bench.now", lambda: (lambda n: n * (n + 1) / 2)(next(ticks)))
    assert convolution_speed(torch.device("cpu")) == pytest.approx(4 * 128 * 64 * 64 * 128 * 9)


@pytest.mark.parametrize(
    "system, prior", [("mrfa", None), ("fomm", None), ("npmr", None), ("tpsm", None), ("s2d", None), ("mrfa", "tokens")]
)
def test_the_bench_runs_and_its_stages_do_not_overlap(system, prior, capsys):
    results = bench(BenchConfig(presets=("tiny",), system=system, prior=prior, repeats=3))
    numbers = results["tiny"]
    assert results.keys() == {"tiny"} and all(value > 0 for value in numbers.values())
    assert numbers["pair"] > numbers["frame"] and 1e7 < numbers["work"] < 1e10
    assert numbers["composed at 512"] > numbers["composed at 256"]
    printed = capsys.readouterr().out
    assert re.search(r"composing it +[\d.]+ ms at 256, [\d.]+ ms at 512 pixels", printed)
    name = f"{system} with prior {prior}" if prior else system
    assert f"tiny, {name}, 64 x 64" in printed and ("refinement" in printed) == (system in ("mrfa", "npmr"))
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny", system=system, prior=prior).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        points = random_landmarks(1, image.device)
        told = dict(source_landmarks=points, driving_landmarks=points) if system == "s2d" else {}
        total, spent = measure(model, lambda: model(image, image, move_background=True, **told), 3)
    expected = {"generator"} | (set() if system == "s2d" else {"keypoints", "source features"})
    expected |= set() if system == "npmr" else {"coarse flow"}
    expected |= {"background"} if system == "tpsm" else set()
    expected |= {"structure", "projection", "refinement"} if system in ("mrfa", "npmr") else set()
    assert spent.keys() == expected
    assert 0.3 * total < sum(spent.values()) <= 1.05 * total


def test_given_weights_are_timed_instead_of_presets():
    results = bench(BenchConfig(weights=("tiny-affine",), repeats=1))
    assert results.keys() == {"tiny-affine"} and all(value > 0 for value in results["tiny-affine"].values())
    assert "pair" in results["tiny-affine"]


def test_frames_can_be_rendered_at_once_and_graphs_need_cuda(capsys):
    one, four = (bench(BenchConfig(presets=("tiny",), system="s2d", repeats=1, frames=n))["tiny"] for n in (1, 4))
    assert four["work"] == one["work"] and 0 < four["frame"] < 3 * one["frame"]  # of one frame, not of four
    assert ", 4 at once" in capsys.readouterr().out
    with pytest.raises(MinimodelError, match="--replay on cpu: only CUDA records graphs"):
        bench(BenchConfig(presets=("tiny",), replay=True, device="cpu"))


@pytest.mark.parametrize("system", ["mrfa", "s2d"])
def test_a_timed_step_moves_what_training_moves(system, monkeypatch):
    """Also the discriminator, which isn't a part of the model; not the features."""
    steps = []

    class Step(TrainingStep):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            steps.append((self, {name: value.clone() for name, value in self.named_parameters()}))

    monkeypatch.setattr("minimodel.commands.bench.TrainingStep", Step)
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny", system=system)
    assert time_training(model, *torch.rand(2, 2, 3, 64, 64), 1) > 0
    ((step, before),) = steps
    moved = {name.split(".")[0] for name, value in step.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"model"} | ({"discriminator"} if system == "s2d" else set())
    assert {name.split(".")[0] for name in before} == moved | {"features"}


def test_no_module_is_counted_twice():
    for system in ("mrfa", "fomm", "npmr", "tpsm", "s2d"):
        model = AnimationModel.from_preset("tiny", system=system)
        # The generator's and the refiner's own forward don't run the modules named beside them.
        groups = {name: found for name, found in stages(model).items() if name not in ("generator", "refinement")}
        inside = [module for found in groups.values() for one in found for module in one.modules()]
        assert len(inside) == len(set(inside))


def test_measure_takes_the_median_and_leaves_no_hooks(monkeypatch):
    model = AnimationModel.from_preset("tiny", system="fomm").eval()
    waits = iter([0.2, 0.05, 0.0, 0.1])
    total, spent = measure(model, lambda: time.sleep(next(waits)), 3)
    assert 0.05 <= total < 0.1 and spent == {}
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    with timed(model) as spent, torch.inference_mode():
        model.prior.detector(torch.rand(1, 3, 64, 64))
    assert spent.keys() == {"keypoints"} and spent["keypoints"] > 0


def test_shares_are_told_largest_first_with_the_rest():
    assert shares({"a": 0.2, "b": 0.5}, 1.0) == "b 50%, a 20%, rest 30%"
