"""Training goes on after a kill as if nothing had happened, and refuses what it can't train on in one line.

Run as a module, this file trains: alone or among several processes, or in children that are killed.
"""

import contextlib
import ctypes
import dataclasses
import json
import math
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel

from minimodel import losses, runtime
from minimodel.config import HourglassSizes, ResNetSizes, TokenSizes
from minimodel.data import pairs, synthetic
from minimodel.data.pairs import PairStream
from minimodel.data.writer import VideoWriter
from minimodel.errors import MinimodelError
from minimodel.evaluation import benchmark
from minimodel.features import load_features
from minimodel.landmarks import LANDMARKS, LandmarkDetector
from minimodel.model import AnimationModel
from minimodel.motion import Motion
from minimodel.priors import LANDMARK_LABELS, Prior
from minimodel.refinement import UpdaterWidths
from minimodel.tps import random_transforms
from minimodel.training import checkpoint, distributed, loop, objective
from minimodel.training.beginning import begin_with
from minimodel.training.loop import TrainConfig, TrainingStopped, train
from minimodel.training.objective import LossWeights, TrainingStep

ROOT = Path(__file__).parents[1]
# Every part of `tiny`, as small as it gets: a step takes a tenth of a second.
SIZES = dict(
    image_size=32,
    points=3,
    detector=HourglassSizes(8, 2, 16),
    spline_detector=ResNetSizes(8, 2, 1, pool=False),
    tokens=TokenSizes(base=8, blocks=1, patch=2, width=16, depth=2, heads=2, ratio=2),
    dense_motion=HourglassSizes(8, 2, 16),
    structure=HourglassSizes(8, 2, 16),
    structure_features=8,
    iterations=3,
    updater=UpdaterWidths((8, 8), (8, 8), 8, (8, 8), 8),
    unet=HourglassSizes(8, 2, 16),
    inpainting=HourglassSizes(8, 2, 16),
)
ALWAYS, NEVER = 1e-9, 1e9  # minutes between evaluations, each with a checkpoint
STEPS = 12


def face_clips(folder, count=2, frames=4, size=32):
    folder.mkdir(parents=True)
    for number in range(count):
        faces = synthetic.Faces(synthetic.sample_identities(1, number), synthetic.animate_states(frames, number))
        with VideoWriter(folder / f"{number}.mp4", every=2) as film:
            for frame in synthetic.render(faces, size):
                film.write(frame)
    return folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    return face_clips(tmp_path_factory.mktemp("faces") / "clips")


def settings(output, clips, **options):
    """A small run on the CPU, where the same seed gives the same bits. `test_gpu.py` trains on a GPU, and
    `test_precision.py` in bfloat16."""
    options = (
        dict(
            device="cpu",
            precision="float32",
            data=("synthetic",),
            evaluate=(str(clips),),
            batch=4,
            evaluate_minutes=NEVER,
        )
        | options
    )
    return TrainConfig(output, **{"steps": STEPS} | options if "minutes" not in options else options)


def lines(output, kind="train"):
    every = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["kind"] == kind]


def names(folder):
    return {path.name for path in folder.iterdir() if "tfevents" not in path.name}


def same(one, other):
    """Whether two files of weights hold the same bits."""
    one, other = load_file(one), load_file(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------------------------------ in other processes


def half_a_checkpoint(number):
    """Die with the ``number``-th checkpoint half written."""
    save, calls = torch.save, []

    def save_and_die(content, path, *arguments, **options):
        save(content, path, *arguments, **options)
        calls.append(path)
        if len(calls) == number:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save_and_die


def between_the_files(number):
    """Die when the ``number``-th checkpoint is written, and its model isn't."""
    replace, calls = os.replace, []

    def replace_and_die(source, target):
        replace(source, target)
        calls.append(target)
        if sum(Path(path).name == "checkpoint.pt" for path in calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace_and_die


def train_in_child(output, clips, *, arm=None, kill_at=None, **options):
    """Train in a forked process, which ``arm`` makes die, or which is killed once it has logged step ``kill_at``;
    -> the signal that ended it and the step of the checkpoint that it left."""
    child = os.fork()
    if child == 0:
        try:
            if arm is not None:
                arm()
            train(settings(output, clips, **options), **SIZES)
        finally:
            os._exit(1)
    metrics, deadline = output / "metrics.jsonl", time.monotonic() + 200
    while kill_at is not None and time.monotonic() < deadline:
        if metrics.exists() and f'"step": {kill_at},' in metrics.read_text():
            break
        time.sleep(0.002)
    if kill_at is not None:
        os.kill(child, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return ended, torch.load(output / "checkpoint.pt", weights_only=True)["state"]["step"]


def train_and_be_killed(folder, clips, system):
    options, often = dict(system=str(system)), dict(system=str(system), evaluate_minutes=ALWAYS)
    done = [train_in_child(folder / "whole", clips, **options)]
    killed = folder / "killed"
    done.append(train_in_child(killed, clips, arm=lambda: half_a_checkpoint(3), **often))
    done.append(train_in_child(killed, clips, kill_at=7, **options))
    done.append(train_in_child(killed, clips, arm=lambda: between_the_files(2), **often))
    done.append(train_in_child(killed, clips, **options))
    (folder / "done.json").write_text(json.dumps(done))


def in_double_precision():
    """From now on models are built and trained in float64. Adam's first step turns rounding errors of float32 into
    whole steps, which grow to some percent of the loss within twenty steps, on some processors within three. For the
    same reason every process takes its share of pictures that were made for the whole batch."""
    item, load, single = PairStream.__getitem__, loop.load_evaluation, torch.Tensor.float

    def as_usual(function, *arguments):
        torch.set_default_dtype(torch.float32)
        torch.Tensor.float = single
        try:
            return function(*arguments)
        finally:
            torch.set_default_dtype(torch.float64)
            torch.Tensor.float = torch.Tensor.double

    def load_evaluation(*arguments, **options):
        loaded = as_usual(partial(load, **options), *arguments)
        for clip in loaded:
            clip.frames = clip.frames.double()
        return loaded

    def my_share(self, step):
        rank, world_size, self.rank, self.world_size = self.rank, self.world_size, 0, 1
        whole = as_usual(item, self, step)
        self.rank, self.world_size = rank, world_size
        return {name: value.double().tensor_split(world_size)[rank] for name, value in whole.items()}

    PairStream.__getitem__ = my_share
    loop.load_evaluation = load_evaluation
    as_usual(lambda: None)


def train_with_a_worker(folder, clips):
    train(settings(folder, clips, steps=2, workers=1), **SIZES)


def train_among_others(folder, clips):
    data = ("synthetic", str(clips))
    train(settings(folder / "single", clips, data=data, steps=1), **SIZES)
    in_double_precision()
    train(settings(folder / "double", clips, data=data, steps=20), **SIZES)


def train_on_a_broken_picture(folder, clips):
    item = PairStream.__getitem__
    PairStream.__getitem__ = lambda self, n: {k: v * (math.nan if n == 2 else 1) for k, v in item(self, n).items()}
    train(settings(folder, clips, system="fomm"), **SIZES | dict(norm="batch"))


def call(name, *arguments, launch=(), **options):
    command = [sys.executable, *launch, "-m", "tests.test_train", name, *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)
    return ended


# ----------------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("system", ["mrfa", "tpsm"])
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_weights(tmp_path, clips, system):
    call("train_and_be_killed", tmp_path, clips, system)
    done = json.loads((tmp_path / "done.json").read_text())
    # How each ended (1 is the end of a child that wasn't killed), and how far its checkpoint is.
    assert done == [[1, STEPS], [-9, 2], [-9, 2], [-9, 4], [1, STEPS]]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert same(whole / "model.safetensors", killed / "model.safetensors")
    one, other = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (whole, killed))
    for name in ("model", "average"):
        assert all(torch.equal(one[name][key], other[name][key]) for key in one[name])
    # Every step is logged once, with the same numbers as in the run that was never killed.
    numbers = [[(line["step"], line["loss"], line["gradient"]) for line in lines(folder)] for folder in (whole, killed)]
    assert numbers[0] == numbers[1] and [step for step, *_ in numbers[0]] == list(range(1, STEPS + 1))
    evaluated = [line["step"] for line in lines(killed, "evaluation")]
    assert evaluated == sorted(set(evaluated)) and evaluated[-1] == STEPS
    # What was half written when the process died may lie there, or have been written again.
    assert names(killed) - {"checkpoint.pt.unfinished"} == names(whole)


def test_two_processes_and_one_lose_alike(tmp_path, clips):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = call("train_among_others", tmp_path / "two", clips, launch=launch, env=environment)
    assert ended.returncode == 0, ended.stderr[-2000:]
    ended = call("train_among_others", tmp_path / "one", clips)
    assert ended.returncode == 0, ended.stderr[-2000:]
    for precision, steps, largest in (("single", 1, 1e-4), ("double", 20, 1e-4)):
        one, two = (lines(tmp_path / folder / precision) for folder in ("one", "two"))
        assert [line["step"] for line in one] == [line["step"] for line in two] == list(range(1, steps + 1))
        assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one, two)) <= largest


def test_a_run_that_is_done_stays_as_it_is(tmp_path, clips):
    config = settings(tmp_path / "run", clips, steps=2)
    train(config, **SIZES)
    shutil.copy(config.output / "model.safetensors", tmp_path / "before.safetensors")
    model = train(config, **SIZES)
    assert same(config.output / "model.safetensors", tmp_path / "before.safetensors")
    assert [line["step"] for line in lines(config.output)] == [1, 2]
    saved = load_file(tmp_path / "before.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_a_run_that_is_done_logs_nothing_more(tmp_path, clips):
    config = settings(tmp_path / "run", clips, steps=1)
    train(config, **SIZES)
    before = (config.output / "metrics.jsonl").read_text()
    train(config, **SIZES)
    assert (config.output / "metrics.jsonl").read_text() == before


def test_pairs_prepared_by_another_process_are_the_same(tmp_path, clips):
    train(settings(tmp_path / "0", clips, steps=2), **SIZES)
    # In a process of its own: a worker is forked, and one forked from a process that has trained may wait forever.
    ended = call("train_with_a_worker", tmp_path / "1", clips)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert json.loads((tmp_path / "1" / "config.json").read_text())["workers"] == 1
    assert same(tmp_path / "0" / "model.safetensors", tmp_path / "1" / "model.safetensors")


def test_what_a_run_leaves(tmp_path, clips):
    output = tmp_path / "deep" / "run"
    model = train(settings(output, clips, steps=3, evaluate_minutes=ALWAYS), **SIZES)
    assert not model.training
    assert names(output) == {"checkpoint.pt", "model.safetensors", "config.json", "metrics.jsonl", "pictures"}
    config = json.loads((output / "config.json").read_text())
    assert config["features"] == "faces" and config["steps"] == 3 and config["model"]["points"] == 3
    assert [line["step"] for line in lines(output, "evaluation")] == [1, 2, 3]
    assert {"loss", "perceptual", "points", "affine", "gradient", "pairs_per_second"} <= lines(output)[0].keys()
    assert {"PSNR", "SSIM", "L1", "gain", "data"} <= lines(output, "evaluation")[0].keys()
    assert names(output / "pictures") == {f"clips-{step:07d}.png" for step in (1, 2, 3)}


def test_minutes_count_training_alone(tmp_path, clips, monkeypatch):
    evaluate = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *a, **k: (time.sleep(0.3), evaluate(*a, **k))[1])
    train(settings(tmp_path / "run", clips, minutes=0.02, evaluate_minutes=0.01), **SIZES)
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["state"]
    steps = [line["step"] for line in lines(tmp_path / "run")]
    assert state["seconds"] >= 1.2 and steps == list(range(1, state["step"] + 1))
    took = sum(4 / line["pairs_per_second"] for line in lines(tmp_path / "run"))
    assert state["seconds"] == pytest.approx(took, rel=1e-3)


# ------------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("motion_steps", [0, 2])
@pytest.mark.parametrize(
    "system, prior", [("mrfa", None), ("fomm", None), ("npmr", None), ("tpsm", None), ("mrfa", "tokens")]
)
def test_one_pair_is_soon_known_by_heart(tmp_path, clips, monkeypatch, system, prior, motion_steps):
    item = PairStream.__getitem__
    monkeypatch.setattr(PairStream, "__getitem__", lambda self, step: item(self, 0))
    options = dict(batch=2, learning_rate=2e-3, motion_steps=motion_steps, steps=24 * (1 + motion_steps) + 1)
    train(settings(tmp_path / "run", clips, system=system, prior=prior, **options), **SIZES)
    steps = lines(tmp_path / "run")
    whole, motion = ([line["loss"] for line in steps if kind in line] for kind in ("perceptual", "moved"))
    assert len(whole) == 25 and whole[-1] < 0.6 * whole[0]
    assert len(motion) == 24 * motion_steps and (not motion or motion[-1] < motion[0])


def test_smoothness_is_of_what_refinement_adds():
    batch = stream()[0] | {name: torch.rand(8, 3, 32, 32) for name in ("source", "driving")}
    features = load_features()
    for system in ("mrfa", "fomm"):
        model = AnimationModel.from_preset("tiny", system=system, **SIZES)
        for motion_only in (False, True):
            terms = TrainingStep(model, features, LossWeights(smoothness=40.0))(batch, motion_only=motion_only)
            assert ("smoothness" in terms) == (system == "mrfa")
            assert "smoothness" not in TrainingStep(model, features, LossWeights())(batch, motion_only=motion_only)
            if system == "mrfa":
                assert terms["smoothness"] == 0  # a fresh refiner adds nothing
    model = AnimationModel.from_preset("tiny", **SIZES)
    torch.nn.init.normal_(model.refiner.updater.flow_head[-1].weight, std=0.1)
    loss = TrainingStep(model, features, LossWeights(smoothness=40.0))(batch, motion_only=True)["smoothness"]
    loss.backward()
    assert loss > 0 and model.refiner.updater.flow_head[-1].weight.grad.any()


def test_the_average_follows_the_model_and_can_be_switched_off(tmp_path, clips):
    apart = []
    for average in (0.0, 0.999):
        train(settings(tmp_path / str(average), clips, steps=3, average=average), **SIZES)
        checkpoint = torch.load(tmp_path / str(average) / "checkpoint.pt", weights_only=True)
        saved = load_file(tmp_path / str(average) / "model.safetensors")
        weights = [name for name in saved if "running_" not in name and "batches" not in name]
        apart.append(max(float((checkpoint["model"][name] - saved[name]).abs().max()) for name in weights))
    assert apart[0] == 0 and 0 < apart[1] < 0.01


def test_the_learning_rate_falls_twice(tmp_path, clips, monkeypatch):
    seen = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self, *a, **k: (seen.append(self.param_groups[0]["lr"]), step(self, *a, **k))
    )
    train(settings(tmp_path / "run", clips, steps=20, batch=2, learning_rate=1e-3), **SIZES)
    assert seen == pytest.approx([1e-3] * 17 + [1e-4] * 2 + [1e-5])


def test_the_number_of_points_is_an_option(tmp_path, clips):
    sizes = {name: size for name, size in SIZES.items() if name != "points"}
    assert train(settings(tmp_path, clips, steps=1, points=3), **sizes).config.points == 3


def test_a_model_begins_with_the_weights_that_are_given(tmp_path, clips):
    torch.manual_seed(5)
    given = AnimationModel.from_preset("tiny", **SIZES)
    given.save(tmp_path / "given.safetensors")
    options = dict(steps=1, learning_rate=1e-9)
    begun = train(settings(tmp_path / "begun", clips, start=str(tmp_path / "given.safetensors"), **options), **SIZES)
    afresh = train(settings(tmp_path / "afresh", clips, **options), **SIZES)
    weights = {name: value for name, value in given.named_parameters()}
    assert all(torch.allclose(value, weights[name], atol=1e-7) for name, value in begun.named_parameters())
    assert not all(torch.allclose(value, weights[name], atol=1e-2) for name, value in afresh.named_parameters())
    # A run that goes on doesn't need them any more.
    (tmp_path / "given.safetensors").unlink()
    options = dict(steps=2, learning_rate=1e-9, start=str(tmp_path / "given.safetensors"))
    assert train(settings(tmp_path / "begun", clips, **options), **SIZES) is not None


def test_fixed_parts_keep_the_weights_of_the_start(tmp_path, clips):
    torch.manual_seed(5)
    AnimationModel.from_preset("tiny", **SIZES).save(tmp_path / "given.safetensors")
    options = dict(steps=4, batch=2, start=str(tmp_path / "given.safetensors"), fixed=("prior", "structure"))
    train(settings(tmp_path / "run", clips, **options), **SIZES)
    given, made = (load_file(tmp_path / name) for name in ("given.safetensors", "run/model.safetensors"))
    kept = {name for name in given if torch.equal(given[name], made[name])}
    assert {name for name in given if name.startswith(("prior.", "structure."))} <= kept  # statistics, too
    for part in ("refiner.", "generator."):
        learnt = {name for name in given if name.startswith(part) and name.endswith("weight")}
        assert learnt and learnt.isdisjoint(kept)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(fixed=("prior",)), "--fixed without --start"),
        (dict(system="fomm", fixed=("refiner",), start="GIVEN"), "--fixed refiner: tiny with prior affine, without"),
        (dict(system="fomm", fixed=("generator", "prior"), start="GIVEN"), "nothing is left to learn"),
    ],
)
def test_what_cannot_be_fixed_is_said(tmp_path, clips, options, message):
    if "start" in options:
        options = options | dict(start=str(tmp_path / "given.safetensors"))
        AnimationModel.from_preset("tiny", system="fomm", **SIZES).save(options["start"])
    with pytest.raises(ValueError, match=message):
        train(settings(tmp_path / "run", clips, steps=1, **options), **SIZES)


@pytest.mark.parametrize(
    "name, parts",
    [
        ("tiny-unsupervised", dict(prior="tokens")),
        ("tiny", dict(preset="tiny-quarter", prior="tokens", points=20)),
        ("tiny-affine", {}),
        ("tiny-tps", dict(prior="tps")),
        ("portrait", dict(preset="portrait", prior="face", points=94)),
        ("tiny-s2d", dict(system="s2d")),
    ],
)
def test_training_can_begin_with_every_shipped_model(name, parts):
    model = AnimationModel.from_preset(**dict(preset="tiny") | parts)
    assert begin_with(model, name) == f"begins with {name}; 0% of the weights begin at random"
    shipped = AnimationModel.load(name).state_dict()
    assert all(torch.equal(value, shipped[key]) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match=f"--start {name}: other sizes"):
        begin_with(AnimationModel.from_preset("small", system="npmr"), name)


def test_training_can_begin_with_a_model_whose_prior_finds_other_points():
    """What reads the points begins at random; the rest doesn't, and a line says how much that is."""
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny-quarter", prior="face", points=94)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    line = begin_with(model, "tiny")
    shipped, begun = AnimationModel.load("tiny").state_dict(), model.state_dict()
    copied = {name for name in begun if name in shipped and torch.equal(begun[name], shipped[name])}
    assert copied >= {n for n in begun if n.startswith(("prior.detector.", "refiner.", "generator."))}
    other = {name for name in begun if name not in copied}
    assert "prior.dense_motion.mask_head.weight" in other and "structure.driving_encoder.position" in other
    assert all(torch.equal(begun[name], fresh[name]) for name in other)
    share = sum(begun[name].numel() for name in other) / sum(value.numel() for value in begun.values())
    assert 0 < share < 0.2 and f"{share:.0%} of the weights begin at random" in line


def test_a_model_of_a_higher_resolution_begins_with_the_inner_levels_of_a_lower_one():
    """The picture at 64 pixels moves alike, whatever surrounds the networks that see it."""
    small = AnimationModel.load("tiny")
    torch.manual_seed(0)
    large = AnimationModel.from_preset("portrait", prior="tokens", points=20)
    fresh = {name: value.clone() for name, value in large.state_dict().items()}
    begin_with(large, "tiny")
    changed = {name for name, value in large.state_dict().items() if not torch.equal(value, fresh[name])}
    assert not {name for name in changed if name.startswith(("generator.down.1.", "generator.first", "generator.last"))}
    names = [name for name in fresh if name.startswith("generator.down.2.")]
    assert names and all(
        torch.equal(large.state_dict()[name], small.state_dict()[name.replace("down.2", "down.0")]) for name in names
    )
    source, driving = (
        synthetic.render(faces, 256) for faces in synthetic.sample_pairs(1, torch.Generator().manual_seed(1))
    )
    with torch.no_grad():
        one = large.eval()(source, driving)
        other = small(*(F.avg_pool2d(picture, 4) for picture in (source, driving)))
    assert [flow.shape[-1] for flow in one.flows] == [16, 8, 16, 32, 64, 128, 256]
    assert torch.allclose(one.coarse.flow, other.coarse.flow, atol=1e-5)
    with pytest.raises(ValueError, match="other sizes"):
        begin_with(AnimationModel.from_preset("paper", prior="tokens"), "tiny")


def test_a_model_of_a_lower_resolution_begins_with_the_inner_levels_of_a_higher_one():
    """The reverse: motion can learn on at 64 pixels, where a step takes less time."""
    large, small = AnimationModel.load("portrait"), AnimationModel.from_preset("tiny-quarter", prior="face", points=94)
    begin_with(small, "portrait")
    weights = large.state_dict()
    for name, value in small.state_dict().items():
        if name.startswith("generator.down."):
            level, rest = name.removeprefix("generator.down.").split(".", 1)
            assert torch.equal(value, weights[f"generator.down.{int(level) + 2}.{rest}"])
        elif not name.startswith(("generator.first", "generator.last")):
            assert torch.equal(value, weights[name]), name
    source, driving = (
        synthetic.render(faces, 256) for faces in synthetic.sample_pairs(1, torch.Generator().manual_seed(1))
    )
    with torch.no_grad():
        small, pooled = small.eval(), [F.avg_pool2d(picture, 4) for picture in (source, driving)]
        known = [large.encode_driving(picture).points[:, -LANDMARKS:] for picture in (source, driving)]
        one = large(source, driving)
        other = small(*pooled, source_landmarks=known[0], driving_landmarks=known[1])
        points = large.encode_driving(driving).points, small.encode_driving(pooled[1], landmarks=known[1]).points
    assert torch.allclose(*points, atol=1e-5)
    expected, found = F.avg_pool2d(one.coarse.flow, 2), other.coarse.flow
    assert (found - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_landmarks_move_a_larger_picture_as_they_move_a_smaller_one(tmp_path):
    torch.manual_seed(0)
    small = AnimationModel.from_preset("tiny-quarter", prior="landmarks").eval()
    torch.nn.init.normal_(small.prior.motion.whole.flow_head.weight, std=0.02)
    small.save(tmp_path / "small.safetensors")
    large = AnimationModel.from_preset("portrait", prior="landmarks").eval()
    begin_with(large, str(tmp_path / "small.safetensors"))
    faces = synthetic.sample_pairs(1, torch.Generator().manual_seed(1))
    source = synthetic.render(faces[0], 256)
    one, other = (synthetic.landmarks(face) for face in faces)
    with torch.no_grad():
        found = large(source, source_landmarks=one, driving_landmarks=other).coarse.flow
        expected = small(F.avg_pool2d(source, 4), source_landmarks=one, driving_landmarks=other).coarse.flow
    assert found.shape == (1, 2, 64, 64) and expected.abs().max() > 0.01
    assert torch.allclose(found, expected, atol=1e-5)


def test_glibc_takes_what_it_is_told(monkeypatch):
    libc, answers = ctypes.CDLL(None), []
    if not hasattr(libc, "mallopt"):
        pytest.skip("not glibc")

    def mallopt(*what):
        answers.append(libc.mallopt(*what))
        return answers[-1]

    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    runtime.keep_freed_memory()
    assert answers in ([1, 1], [0, 1, 1])


def test_splines_are_dropped_early_and_the_background_moves_later(tmp_path, clips, monkeypatch):
    shares, still = [], []
    move = AnimationModel.move

    def watch(self, source, motion, *, part_scales=None):
        if self.training:
            shares.append(float((part_scales == 0).float().mean()))
            still.append(motion.image is None)
        return move(self, source, motion, **({} if part_scales is None else dict(part_scales=part_scales)))

    monkeypatch.setattr(AnimationModel, "move", watch)
    train(settings(tmp_path / "run", clips, system="tpsm", steps=20, batch=16), **SIZES | dict(points=10))
    assert still == [True] * 2 + [False] * 18
    assert all(0 < share < 0.6 for share in shares[:7]) and not any(shares[7:])
    assert sum(shares[4:7]) / 3 == pytest.approx(0.3, abs=0.08)
    terms = lines(tmp_path / "run")
    assert all("background" in line and "warp" in line for line in terms)


def test_the_probability_of_dropping_rises_and_ends():
    for progress, expected in ((0.0, 0.1), (0.01, 0.13), (0.05, 0.25), (0.07, 0.3), (0.3499, 0.3), (0.35, 0), (1.0, 0)):
        assert objective.dropout_probability(progress) == pytest.approx(expected)


# ---------------------------------------------------------------------------------------------------------- pairs


def stream(data=("synthetic",), share=(0, 1), droppable=0, **options):
    options = dict(batch=8, steps=1, augment=False) | options
    return open_stream(TrainConfig(Path("unused"), data=data, **options), 16, share, droppable=droppable)


def open_stream(config, size, share=(0, 1), **options):
    sources = pairs.open_sources(config.data, size, config.augmentation if config.augment else None)
    options |= dict(batch=config.batch, seed=config.seed, rank=share[0], world_size=share[1])
    return PairStream(sources, size, torch.device("cpu"), **options)


def test_a_step_and_a_seed_name_a_batch():
    batch, again = stream()[5], stream()[5]
    assert batch.keys() == {"source", "driving", "control", "weights", "affine"}
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert batch["source"].shape == batch["driving"].shape == (8, 3, 16, 16)
    other = stream()[6]
    assert all((batch[name] != other[name]).any() for name in batch.keys() - {"control"})
    assert ((batch["source"] - batch["driving"]).abs().flatten(1).mean(1) > 0.01).all()


def test_another_seed_is_another_batch():
    batch, other = stream()[5], stream(seed=1)[5]
    assert all((batch[name] != other[name]).any() for name in batch.keys() - {"control"})


@pytest.mark.parametrize("processes", [2, 4])
def test_the_shares_of_all_processes_are_the_batch_of_one(clips, processes):
    data = ("synthetic", str(clips))
    whole = stream(data, augment=True, droppable=5)[3]
    shares = [stream(data, share=(n, processes), augment=True, droppable=5)[3] for n in range(processes)]
    assert whole["chances"].shape == (8, 5) and len(whole["chances"].unique()) == 40
    for name, value in whole.items():
        assert torch.allclose(torch.cat([share[name] for share in shares]), value, atol=1e-6)


def test_two_sources_give_equal_shares_to_every_process(tmp_path):
    with VideoWriter(tmp_path / "black.mp4") as film:
        for _ in range(3):
            film.write(torch.zeros(3, 16, 16))
    data = ("synthetic", str(tmp_path))
    for share in ((0, 1), (0, 2), (1, 2)):
        batch = stream(data, share=share)[0]
        black = (batch["source"].flatten(1).amax(1) < 0.05) & (batch["driving"].flatten(1).amax(1) < 0.05)
        assert 2 * int(black.sum()) == len(black) == 8 // share[1]


def test_a_process_may_have_fewer_pairs_than_there_are_sources(clips):
    data = ("synthetic", str(clips))
    for share in range(4):
        assert len(stream(data, share=(share, 8))[0]["source"]) == 1


def test_all_processes_go_by_the_clock_of_the_main_one(monkeypatch):
    """Or one of them would evaluate and wait, while the others take another step and wait, too."""
    monkeypatch.setattr(loop, "broadcast_object_list", lambda mine: [61.0])
    two = Mock(spec=loop.Accelerator, num_processes=2)
    for limits, expected in ((dict(minutes=2.0, steps=None), 61 / 120), (dict(steps=8), 0.5)):
        state = checkpoint.RunState(step=4, seconds=59.0)
        assert loop.agreed_progress(TrainConfig(Path("run"), **limits), state, two) == pytest.approx(expected)
        assert state.seconds == 61


def test_shared_statistics_are_those_of_torch_and_take_bfloat16(monkeypatch):
    monkeypatch.setattr(distributed.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(distributed, "all_reduce", lambda x: x)
    torch.manual_seed(0)
    shared, plain = distributed.SharedBatchNorm(4), torch.nn.BatchNorm2d(4)
    x = 3 * torch.randn(5, 4, 6, 7) + 1
    assert torch.allclose(shared(x), plain(x), atol=1e-5)
    for name in ("running_mean", "running_var"):
        assert torch.allclose(getattr(shared, name), getattr(plain, name), atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = shared(x.bfloat16())
    assert narrow.dtype == torch.bfloat16 and torch.allclose(narrow.float(), plain(x), atol=0.05)


def test_numbers_for_dropout_change_nothing_else():
    batch, other = stream()[5], stream(droppable=4)[5]
    assert other.keys() - batch.keys() == {"chances"} and all(torch.equal(batch[name], other[name]) for name in batch)


def test_augmentation_is_an_option(clips):
    with_it, without = (stream((str(clips),), augment=augment)[0] for augment in (True, False))
    assert (with_it["source"] - without["source"]).abs().mean() > 0.01


# ----------------------------------------------------------------------------------------------------- what goes wrong


def failing_from(step, monkeypatch):
    """The losses are NaN from this step on."""
    calls, forward = [], objective.TrainingStep.forward

    def lose(*arguments, **options):
        calls.append(1)
        return {
            name: loss * (math.nan if len(calls) >= step else 1)
            for name, loss in forward(*arguments, **options).items()
        }

    monkeypatch.setattr(objective.TrainingStep, "forward", lose)


def finite(content):
    if isinstance(content, torch.Tensor):
        return bool(content.isfinite().all())
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list) else []
    return all(finite(part) for part in parts)


def test_a_loss_that_is_not_finite_stops_the_run_and_the_state_before_it_is_kept(tmp_path, clips, monkeypatch):
    config = settings(tmp_path / "run", clips)
    failing_from(4, monkeypatch)
    with pytest.raises(TrainingStopped, match="in step 4: stopped") as caught:
        train(config, **SIZES)
    assert "\n" not in str(caught.value)
    checkpoint = torch.load(config.output / "checkpoint.pt", weights_only=True)
    assert checkpoint["state"]["step"] == 3 and finite(checkpoint)
    assert finite(AnimationModel.load(config.output / "model.safetensors").state_dict())
    assert [line["step"] for line in lines(config.output)] == [1, 2, 3]


def test_a_run_that_stopped_goes_on_as_if_the_step_had_not_been_tried(tmp_path, clips, monkeypatch):
    config = settings(tmp_path / "run", clips, steps=5)
    failing_from(4, monkeypatch)
    with pytest.raises(TrainingStopped):
        train(config, **SIZES)
    monkeypatch.undo()
    train(config, **SIZES)
    train(settings(tmp_path / "whole", clips, steps=5), **SIZES)
    assert same(config.output / "model.safetensors", tmp_path / "whole" / "model.safetensors")


def test_weights_that_explode_stop_the_run_with_one_line(tmp_path, clips):
    command = [sys.executable, "-m", "minimodel", "train", "--output", tmp_path / "run", "--data", clips]
    command += ["--steps", "9", "--batch", "2", "--learning-rate", "1e30"]
    ended = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert ended.stderr.count("minimodel: loss or gradient is not finite in step ") == 1
    assert finite(torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True))


def test_splines_that_explode_stop_the_run_as_well(tmp_path, clips):
    config = settings(tmp_path / "run", clips, system="tpsm", learning_rate=1e30)
    with pytest.raises(TrainingStopped, match="not finite in step"):
        train(config, **SIZES)
    assert finite(torch.load(config.output / "checkpoint.pt", weights_only=True))


def test_running_statistics_are_not_touched_by_the_step_that_failed(tmp_path, clips):
    ended = call("train_on_a_broken_picture", tmp_path / "run", clips)
    assert ended.returncode > 0 and "not finite in step 3: stopped" in ended.stderr, ended.stderr[-2000:]
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert any("running_var" in name for name in checkpoint["model"]) and finite(checkpoint)


class Malicious:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_checkpoints_that_are_not_ours_are_refused_in_one_line(tmp_path, clips):
    config = settings(tmp_path / "run", clips, steps=1)
    train(config, **SIZES)
    path = config.output / "checkpoint.pt"
    whole = path.read_bytes()
    ours = torch.load(path, weights_only=True)

    def refused(message, content=None, **options):
        if content is not None:
            path.write_bytes(content)
        before = path.read_bytes()
        with pytest.raises(ValueError, match=message) as caught:
            train(settings(config.output, clips, **dict(steps=2) | options), **SIZES)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        assert path.read_bytes() == before  # not overwritten

    refused("from a model of other sizes", system="fomm")
    refused("damaged", whole[: len(whole) // 2])
    refused("damaged", b"")
    refused("damaged", pickle.dumps(Malicious(tmp_path / "executed")))
    torch.save(ours | {"state": Malicious(tmp_path / "executed")}, path)
    refused("damaged")
    torch.save({"model": torch.zeros(1)}, path)
    refused("damaged")
    torch.save(ours | {"metadata": ours["metadata"] | {"version": "99"}}, path)
    refused("another version")
    assert not (tmp_path / "executed").exists()
    # The trap works: whoever unpickles it is caught.
    pickle.loads(pickle.dumps(Malicious(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, clips, monkeypatch):
    config = settings(tmp_path / "run", clips, steps=1)
    train(config, **SIZES)
    before = {name: (config.output / name).read_bytes() for name in ("checkpoint.pt", "model.safetensors")}

    def full(content, path, *arguments):
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises((OSError, ValueError), match="No space left"):
        train(settings(config.output, clips, steps=2), **SIZES)
    assert before == {name: (config.output / name).read_bytes() for name in before}
    assert not [name for name in names(config.output) if "unfinished" in name]


@contextlib.contextmanager
def largest_file(size):
    """Files can't grow beyond this, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [100_000, 400_000])  # the weights take 270 kB, the checkpoint 1.2 MB
def test_a_disk_that_is_full_is_said_in_one_line(tmp_path, clips, size):
    config = settings(tmp_path / "run", clips, steps=1)
    with largest_file(size), pytest.raises((OSError, ValueError), match=str(config.output)) as caught:
        train(config, **SIZES)
    assert "\n" not in str(caught.value)
    assert not {"checkpoint.pt", "model.safetensors"} & names(config.output)
    assert not [name for name in names(config.output) if "unfinished" in name]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(start="huge"), "weights 'huge': no such file"),
        (dict(start="tiny-affine"), "--start tiny-affine: other sizes .tiny with prior affine, with refinement, gen"),
        (dict(features="magic"), "features 'magic': expected 'faces', 'vgg19' or a file"),
        (dict(data=("nowhere",)), "nowhere: no such"),
        (dict(evaluate=("nowhere",)), "nowhere: no such"),
        (dict(minutes=1.0, steps=1), "either --steps or --minutes"),
        (dict(steps=None), "either --steps or --minutes"),
        (dict(batch=0), "--batch is 0: expected more than 0"),
        (dict(motion_steps=-1), "--motion-steps is -1: expected 0 or more"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_written(tmp_path, clips, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        train(settings(tmp_path / "run", clips, **options), **SIZES)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_places_that_cannot_be_written_are_named(tmp_path, clips):
    (tmp_path / "file").write_text("precious")
    for output in (tmp_path / "file", tmp_path / "file" / "run", Path("/dev/full/run")):
        with pytest.raises((ValueError, OSError), match=str(output)):
            train(settings(output, clips), **SIZES)
    assert names(tmp_path) == {"file"} and (tmp_path / "file").read_text() == "precious"


def test_a_clip_of_one_frame_cannot_be_trained_on(tmp_path, clips):
    face_clips(tmp_path / "short", count=1, frames=1)
    with pytest.raises(ValueError, match=r"0\.mp4: one frame only"):
        train(settings(tmp_path / "run", clips, data=(str(tmp_path / "short"),)), **SIZES)


if __name__ == "__main__":
    globals()[sys.argv[1]](*map(Path, sys.argv[2:]))


# ---------------------------------------------------------------------------------------------------- with landmarks


def by_landmarks(output, **options):
    options = dict(batch=4, steps=2, precision="float32") | options
    return TrainConfig(output, system="s2d", evaluate_minutes=NEVER, device="cpu", **options)


S2D_SIZES = SIZES | dict(
    residual=HourglassSizes(8, 1, 16),
    residual_blocks=1,
    whole_branch=HourglassSizes(8, 2, 16),
    local_branch=HourglassSizes(8, 1, 16),
)
del S2D_SIZES["points"]


def test_landmarks_and_parts_belong_to_the_pictures(tmp_path):
    """Each slot's are those of its own two frames, in both directions of a pair."""
    item = open_stream(by_landmarks(tmp_path), 32, labels=LANDMARK_LABELS)[3]
    generator = pairs.step_generator(0, 3)
    random_transforms(4, generator)
    one, other = synthetic.sample_pairs(2, generator)
    for slot in range(4):
        faces = (one, other) if slot % 2 == 0 else (other, one)
        for frame, face in zip(("source", "driving"), faces):
            face = face[slot // 2]
            assert torch.allclose(item[frame][slot], synthetic.render(face, 32)[0], atol=1e-5)
            assert torch.allclose(item[f"{frame}_landmarks"][slot], synthetic.landmarks(face)[0], atol=1e-5)
            assert (item[f"{frame}_parts"][slot] == synthetic.parsing(face, 32)[0]).float().mean() > 0.999
    plain = open_stream(by_landmarks(tmp_path), 32)[3]
    assert plain.keys() == item.keys() - set(LANDMARK_LABELS)
    assert all(torch.equal(plain[name], item[name]) for name in plain)
    shares = [open_stream(by_landmarks(tmp_path), 32, (n, 2), labels=LANDMARK_LABELS)[3] for n in (0, 1)]
    for name in item:  # pictures differ in the last digit by how many are rendered at once
        assert torch.allclose(torch.cat([share[name] for share in shares]), item[name], atol=1e-6)


def test_of_films_the_detector_finds_the_landmarks(tmp_path, clips):
    detector = LandmarkDetector.load()
    mixed = by_landmarks(tmp_path, data=("synthetic", str(clips)))
    labels = dict(labels=LANDMARK_LABELS, detector=detector)
    item = open_stream(mixed, 32, **labels)[3]
    alone = open_stream(dataclasses.replace(mixed, data=("synthetic",)), 32, **labels)[3]
    with pytest.raises(MinimodelError, match="a detector is needed"):
        open_stream(mixed, 32, labels=LANDMARK_LABELS)[3]
    for frame in ("source", "driving"):
        with torch.no_grad():
            found = detector.find(item[frame])
        points, parts = item[f"{frame}_landmarks"], item[f"{frame}_parts"]
        assert torch.allclose(points[1::2], found[1::2], atol=1e-5)
        # Of rendered faces the true ones, which aren't those that it finds.
        assert torch.equal(points[::2], alone[f"{frame}_landmarks"][:2])
        assert (points[::2] - found[::2]).abs().max() > 0.01
        assert parts[1::2].unique().tolist() == [0] and len(parts[::2].unique()) > 3


@pytest.mark.parametrize("refine", [False, True])
def test_a_model_moved_by_landmarks_trains(tmp_path, monkeypatch, refine):
    faces = synthetic.Faces(synthetic.sample_identities(1, 0), synthetic.sample_states(3, 0))
    clips = [benchmark.synthetic_clip("a", faces, 32)]
    monkeypatch.setattr(loop, "load_evaluation", lambda name, size, **_: clips)
    train(by_landmarks(tmp_path / "run", refine=refine, motion_steps=1), **S2D_SIZES)
    logged = lines(tmp_path / "run")
    assert logged[0].keys() >= {"perceptual", "painted", "parsing", "discriminator", "adversarial"}
    assert logged[1].keys() >= {"moved", "parsing"} | ({"coarse"} if refine else set())
    assert "points" not in logged[0] and all(math.isfinite(line["loss"]) for line in logged)
    assert 0 < logged[0]["parsing"] / TrainConfig(tmp_path).loss.parsing < 1
    assert len(lines(tmp_path / "run", "evaluation")) == 1
    assert AnimationModel.load(tmp_path / "run" / "model.safetensors").config.prior == "landmarks"


def test_each_adversary_learns_from_its_own_loss():
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny", system="s2d", **S2D_SIZES)
    step = objective.TrainingStep(model, torch.nn.Identity(), objective.LossWeights())
    driving, made = torch.rand(2, 2, 3, 32, 32).unbind()
    made.requires_grad_()
    terms = step.adversaries(step.discriminator, made, driving)
    judge = list(step.discriminator.parameters())
    with torch.no_grad():
        real, fake = step.discriminator(driving), step.discriminator(made)
    assert torch.allclose(terms["discriminator"], (1 - real).square().mean() + fake.square().mean())
    assert torch.allclose(terms["adversarial"], (1 - fake).square().mean())
    assert torch.autograd.grad(terms["discriminator"], [made], retain_graph=True, allow_unused=True) == (None,)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(terms["discriminator"], judge[::2]))  # of weights
    assert all(
        g is None for g in torch.autograd.grad(terms["adversarial"], judge, retain_graph=True, allow_unused=True)
    )
    assert torch.autograd.grad(terms["adversarial"], [made])[0].abs().min() > 0
    assert (
        objective.TrainingStep(AnimationModel.from_preset("tiny", **SIZES), step.features, step.weights).discriminator
        is None
    )


def test_the_discriminator_learns_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    faces = synthetic.Faces(synthetic.sample_identities(1, 0), synthetic.sample_states(3, 0))
    clips = [benchmark.synthetic_clip("a", faces, 32)]
    monkeypatch.setattr(loop, "load_evaluation", lambda name, size, **_: clips)
    train(by_landmarks(tmp_path / "whole", motion_steps=0), **S2D_SIZES)
    train(by_landmarks(tmp_path / "halves", motion_steps=0, steps=1), **S2D_SIZES)
    halves = [torch.load(tmp_path / "halves" / "checkpoint.pt", weights_only=True)["discriminator"]]
    train(by_landmarks(tmp_path / "halves", motion_steps=0), **S2D_SIZES)
    whole = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)["discriminator"]
    halves.append(torch.load(tmp_path / "halves" / "checkpoint.pt", weights_only=True)["discriminator"])
    assert all(torch.equal(whole[name], halves[1][name]) for name in whole)
    assert not any(torch.equal(whole[name], halves[0][name]) for name in whole if name.endswith("weight"))


def test_films_can_be_trained_on_by_landmarks(tmp_path, clips):
    train(by_landmarks(tmp_path / "run", data=("synthetic", str(clips)), evaluate=(str(clips),)), **S2D_SIZES)
    assert all(math.isfinite(line["loss"]) for line in lines(tmp_path / "run"))


def test_a_model_moved_by_landmarks_is_evaluated_on_films_with_those_that_the_detector_finds(tmp_path, clips):
    train(by_landmarks(tmp_path / "run", steps=1, evaluate=(str(clips),)), **S2D_SIZES)
    (line,) = lines(tmp_path / "run", "evaluation")
    assert line["data"] == str(clips) and math.isfinite(line["PSNR"])


def test_equivariance_compares_the_bent_frame_carried_back_and_counts_as_weighted():
    generator = torch.Generator().manual_seed(0)
    transform = random_transforms(2, generator, bend_sigma=0.02)
    there, matrices = torch.rand(2, 3, 2) - 0.5, torch.eye(2) + 0.1 * torch.randn(2, 3, 2, 2)
    frame, shown = torch.rand(2, 3, 32, 32), []

    class Seer(Prior):
        def detect(self, image):
            shown.append(image)
            return Motion(there, matrices)

    points, affine = transform(there[:, None])[:, 0], transform.jacobian(there[:, None])[:, 0] @ matrices
    right = Seer().detection_terms(frame, Motion(points, affine), transform)
    assert right["points"] < 1e-5 and right["affine"] < 1e-4
    assert torch.equal(shown[0], losses.transformed_frame(frame, transform))
    wrong = Seer().detection_terms(frame, Motion(points + 0.1, 2 * affine), transform)
    model = AnimationModel.from_preset("tiny", **SIZES)
    weighted = TrainingStep(model, torch.nn.Identity(), LossWeights(points=7.0, affine=3.0)).weighted(wrong)
    assert weighted["points"].item() == pytest.approx(7 * 0.1, rel=1e-3)
    assert weighted["affine"].item() == pytest.approx(3 * 0.25, rel=1e-3)


def test_steps_of_motion_alone_compare_three_layers_and_others_all():
    torch.manual_seed(0)
    model, features = AnimationModel.from_preset("tiny", **SIZES), load_features("faces")
    step, (source, driving) = TrainingStep(model, features, LossWeights()), torch.rand(2, 2, 3, 32, 32)
    state = model.encode_source(source)
    stages = model.move(state, model.encode_driving(driving))
    output = model.paint(state, stages)
    for terms, name, picture, weight, layers in (
        (step.motion_terms(state, stages, driving), "moved", stages.warped_source, 10 * 5 / 3, 3),
        (step.picture_terms(output, driving), "perceptual", output.image, 10, 5),
        (step.picture_terms(output, driving), "painted", output.painted, 10, 5),
    ):
        expected = weight * losses.perceptual_loss(features, picture, driving, layers=layers)
        assert torch.allclose(terms[name], expected, rtol=1e-5)


def test_the_average_is_short_at_first():
    for number, share in ((0, 1), (1, 9 / 11), (90, 0.09), (10**6, 0.001)):
        model = torch.nn.BatchNorm1d(1, affine=False)
        average = AveragedModel(model, use_buffers=True)
        model.running_mean += 1
        model.num_batches_tracked += 7
        average.n_averaged += number
        loop.update_average(average, model, decay=0.999)
        assert average.module.running_mean.item() == pytest.approx(share, rel=1e-3)
        assert average.module.num_batches_tracked == 7 and average.n_averaged == number + 1
