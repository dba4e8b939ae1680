"""Bad input ends in one line and exit code 2, and nothing is lost or half-written."""

import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minimodel import __main__ as commands
from minimodel.__main__ import main
from minimodel.data.video import Clip
from minimodel.data.writer import VideoWriter
from minimodel.landmarks import LandmarkDetector
from minimodel.model import AnimationModel
from minimodel.runtime import OnDevice, on_device
from minimodel.training import loop


class Malicious:
    """Unpickling this writes a file."""

    def __reduce__(self):
        return Path.touch, (Path("executed").absolute(),)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    AnimationModel.from_preset("tiny").save(folder / "model.safetensors")
    iio.imwrite(folder / "photo.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    (folder / "clips").mkdir()
    with VideoWriter(folder / "clips" / "a.mp4") as film:
        for _ in range(4):
            film.write(torch.rand(3, 64, 64))
    whole = (folder / "clips" / "a.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(weights[:-100])
    LandmarkDetector().save(folder / "detector.safetensors")
    torch.save({"features.0.weight": torch.zeros(1)}, folder / "foreign.pth")
    (folder / "text.mp4").write_text("no film")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "file").write_text("precious")
    (folder / "nothing").mkdir()
    (folder / "texts").mkdir()
    (folder / "texts" / "a.mp4").write_text("no film")
    (folder / "others").mkdir()
    shutil.copy(folder / "clips" / "a.mp4", folder / "others")
    return folder


@pytest.fixture
def place(prepared, tmp_path, monkeypatch):
    """A folder with files good and bad, in which commands are given."""
    folder = tmp_path / "place"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    Path("pickle.pt").write_bytes(pickle.dumps(Malicious()))
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def complaints(text):
    """Lines of the error stream that aren't the bar which long work shows."""
    return [line for line in re.split(r"[\r\n]+", text) if line.strip() and not re.search(r"\d+%\|", line)]


ABLATE = dict(table="s2d-4", output="out", pairs="8")
ANIMATE = dict(source="photo.png", driving="clips/a.mp4", output="out.mp4", weights="model.safetensors", crop="none")
ANIMATE |= dict(mode="standard")
BENCH = dict(presets="tiny")
AVD = dict(weights="model.safetensors", data="clips", pairs="2", steps="1")
FEATURES = dict(output="out.safetensors", minutes="0.01")
JUDGES = dict(output="out.safetensors", steps="1")
EVALUATE = dict(weights="model.safetensors", data="clips", output="out.json")
PREPARE = dict(videos="clips", output="out")
SYNTHESIZE = dict(output="out", clips="1", seconds="0.24")
TRAIN = dict(output="out", data="clips", steps="1", batch="2")


def words(command, usual, options):
    given = usual | options
    first = {"find-landmarks": ["film"], "ablate": ["table"]}.get(command, [])
    return [
        command,
        *map(given.pop, first),
        *(word for name, value in given.items() for word in (f"--{name}", *value.split())),
    ]


LANDMARKS = dict(film="clips/a.mp4", output="out.npz", weights="detector.safetensors")
LANDMARKS_TRAIN = dict(output="out.safetensors", steps="1", start="detector.safetensors")

CASES = [
    # ablate
    ("ablate", ABLATE, dict(rows="x"), "unknown row of s2d-4 'x': there are full, no-add-motion, no-adain, no-local"),
    ("ablate", ABLATE, dict(pairs="7"), "--pairs is 7: expected at least 8, one batch"),
    ("ablate", ABLATE, dict(parallel="0"), "--parallel is 0: expected at least 1"),
    ("ablate", ABLATE, dict(output="clips/a.mp4"), "'clips/a.mp4"),
    ("ablate", ABLATE, dict(output="file/out"), "'file/out"),
    # bench
    ("bench", BENCH, dict(repeats="0"), "--repeats is 0: expected more than 0"),
    ("bench", BENCH, dict(batch="0"), "--batch is 0: expected more than 0"),
    ("bench", BENCH, dict(presets=""), "--presets: none given"),
    # a list that is empty, a number that can't be
    ("train", TRAIN, dict(data=""), "--data: none given"),
    ("train", TRAIN, dict(average="1"), "--average is 1.0: expected 0 or more, and less than 1"),
    ("train", TRAIN, dict(workers="-1"), "--workers is -1: expected 0 or more"),
    ("evaluate", EVALUATE, dict(data=""), "--data: none given"),
    ("evaluate", EVALUATE, dict(size="-64"), "-64"),
    ("prepare", PREPARE, dict(videos=""), "--videos: none given"),
    ("prepare", PREPARE, dict(videos="clips/a.mp4 others/a.mp4"), "would have the same names; rename one of them"),
    ("train-avd", AVD, dict(data=""), "--data: none given"),
    ("ablate", ABLATE, dict(rows=""), "--rows: none given"),
    ("train-avd", AVD, dict(weights="tiny-s2d"), "tiny-s2d: moves by landmarks"),
    # animate
    ("animate", ANIMATE, dict(output="clips/a.mp4"), "clips/a.mp4: is what the film is to be made from"),
    ("animate", ANIMATE, dict(source="nobody.png"), "nobody.png: no such file"),
    ("animate", ANIMATE, dict(source="clips"), "clips: is a directory, expected a picture"),
    ("animate", ANIMATE, dict(source="file"), "file: not a picture"),
    ("animate", ANIMATE, dict(driving="missing.mp4"), "missing.mp4: no such file"),
    ("animate", ANIMATE, dict(driving="nothing"), "nothing: "),
    ("animate", ANIMATE, dict(driving="text.mp4"), "text.mp4: not a video"),
    ("animate", ANIMATE, dict(driving="cut.mp4"), "cut.mp4: not a video"),
    ("animate", ANIMATE, dict(driving="empty.mp4"), "empty.mp4: not a video"),
    ("animate", ANIMATE, dict(weights="pickle.pt"), "pickle.pt: not a whole safetensors file"),
    ("animate", ANIMATE, dict(weights="cut.safetensors"), "cut.safetensors: not a whole safetensors file"),
    ("animate", ANIMATE, dict(weights="clips"), "clips: is a directory, expected a .safetensors file"),
    ("animate", ANIMATE, dict(weights="huge"), "weights 'huge': no such file, and shipped are only ['portrait'"),
    ("animate", ANIMATE, dict(size="51"), "size is 51: expected an even number, at least 16"),
    ("animate", ANIMATE, dict(crop="auto"), "photo.png: no face found; --crop none takes the middle"),
    ("animate", ANIMATE, {"show-crops": "crops.mp4"}, "crops.mp4: the name of the picture must end in .png"),
    ("animate", ANIMATE, {"show-crops": "file/crops.png"}, "file/crops.png: can't be written"),
    ("animate", ANIMATE, dict(output="out.avi"), "out.avi: the name of the output must end in .mp4 or .gif"),
    ("animate", ANIMATE, dict(output="file/out.mp4"), "file/out.mp4: can't be written"),
    ("animate", ANIMATE, dict(output="/dev/full/out.mp4"), "/dev/full/out.mp4: can't be written"),
    ("animate", ANIMATE, dict(mode="avd"), "it is made by `minimodel train-avd --weights model.safetensors`"),
    ("animate", ANIMATE, {"start-frame": "1"}, "--start-frame is for mode relative"),
    ("animate", ANIMATE, {"mode": "relative", "start-frame": "4"}, "start frame 4: the driving film has frames 0 to"),
    # avd
    ("train-avd", AVD, dict(weights="huge"), "weights 'huge': no such file, and shipped are only ['portrait'"),
    ("train-avd", AVD, dict(weights="pickle.pt"), "pickle.pt: not a whole safetensors file"),
    ("train-avd", AVD, dict(data="missing"), "missing: no such"),
    ("train-avd", AVD, dict(pairs="0"), "--pairs is 0: expected more than 0"),
    # evaluate
    ("evaluate", EVALUATE, dict(data="missing"), "missing: no such"),
    ("evaluate", EVALUATE, dict(data="file"), "file: expected a"),
    ("evaluate", EVALUATE, dict(data="nothing"), "nothing: holds no clips"),
    ("evaluate", EVALUATE, dict(data="texts"), "texts/a.mp4: not a video"),
    ("evaluate", EVALUATE, dict(weights="pickle.pt"), "pickle.pt: not a whole safetensors file"),
    ("evaluate", EVALUATE, dict(weights="huge"), "weights 'huge': no such file, and shipped are only ['portrait'"),
    ("evaluate", EVALUATE, dict(size="0"), "image of 0 x 0 pixels: both sides must be multiples of 16"),
    ("evaluate", EVALUATE, dict(size="50"), "multiples of 16; nearest heights are 48 or 64"),
    ("evaluate", EVALUATE, dict(output="file/out.json"), "file/out.json: can't be written"),
    ("evaluate", EVALUATE, dict(output="clips"), "clips"),
    ("evaluate", EVALUATE, dict(lpips="missing.pth"), "LPIPS 'missing.pth': expected 'alex', 'vgg' or a file"),
    ("evaluate", EVALUATE, dict(lpips="pickle.pt"), "pickle.pt: not a file with AlexNet's or VGG-16's weights"),
    (
        "evaluate",
        EVALUATE,
        dict(inception="missing.pth"),
        "FID 'missing.pth': expected 'inception' or a file with Inception's",
    ),
    ("evaluate", EVALUATE, dict(inception="pickle.pt"), "pickle.pt: not a file with Inception's weights"),
    ("evaluate", EVALUATE, dict(lpips="foreign.pth"), "foreign.pth: not a file with AlexNet's or VGG-16's"),
    # features
    ("train-features", FEATURES, dict(minutes="0"), "--minutes is 0.0: expected more than 0"),
    ("train-features", FEATURES, dict(minutes="inf"), "--minutes is inf: expected more than 0, and finite"),
    ("synthesize", SYNTHESIZE, dict(seconds="inf"), "seconds is inf"),
    ("prepare", PREPARE, dict(seconds="inf", box="0 0 64"), "seconds is inf"),
    ("train-features", FEATURES, dict(output="clips"), "clips: is a directory"),
    ("train-features", FEATURES, dict(output="file/out"), "file/out: can't be written"),
    # judges
    ("train-assessors", JUDGES, dict(steps="0"), "--steps is 0: expected more than 0"),
    ("train-assessors", JUDGES, dict(minutes="-1"), "--minutes is -1.0: expected more than 0"),
    ("train-assessors", JUDGES, dict(batch="1"), "--batch is 1: expected at least 2"),
    ("train-assessors", JUDGES, dict(output="clips"), "clips: is a directory"),
    ("train-assessors", JUDGES, dict(output="file/out"), "file/out: can't be written"),
    # prepare
    ("prepare", PREPARE, dict(videos="missing.mp4"), "missing.mp4: no such file or folder"),
    ("prepare", PREPARE, dict(videos="text.mp4"), "text.mp4: not a video"),
    ("prepare", PREPARE, dict(videos="nothing"), "nothing: holds no clips"),
    ("prepare", PREPARE, dict(output="file"), "'file'"),
    ("prepare", PREPARE, dict(output="file/out"), "'file/out'"),
    # landmarks
    ("find-landmarks", LANDMARKS, dict(film="missing.mp4"), "missing.mp4: no such file"),
    ("find-landmarks", LANDMARKS, dict(film="text.mp4"), "text.mp4: not a video"),
    ("find-landmarks", LANDMARKS, dict(film="nothing"), "nothing: a folder without .png frames"),
    ("find-landmarks", LANDMARKS, {}, "clips/a.mp4: no face found; --box says where it is"),
    ("find-landmarks", LANDMARKS, dict(weights="pickle.pt"), "pickle.pt: not a whole safetensors file"),
    (
        "find-landmarks",
        LANDMARKS,
        dict(weights="model.safetensors"),
        "holds weights of kind 'animation', expected 'landm",
    ),
    (
        "find-landmarks",
        LANDMARKS,
        dict(weights="huge"),
        "weights 'huge': no such file, and shipped are only ['landmarks']",
    ),
    ("find-landmarks", LANDMARKS, dict(output="out.txt"), "out.txt: the name of the output must end in .npz"),
    ("find-landmarks", LANDMARKS, dict(output="file/out.npz", box="0 0 64"), "file/out.npz: can't be written"),
    # landmarks-train
    ("train-landmarks", LANDMARKS_TRAIN, dict(steps="0"), "--steps is 0: expected more than 0"),
    ("train-landmarks", LANDMARKS_TRAIN, dict(start="pickle.pt"), "pickle.pt: not a whole safetensors file"),
    ("train-landmarks", LANDMARKS_TRAIN, dict(start="huge"), "weights 'huge': no such file"),
    ("train-landmarks", LANDMARKS_TRAIN, dict(video="missing"), "missing: no such"),
    ("train-landmarks", LANDMARKS_TRAIN, dict(video="texts"), "texts/a.mp4: not a video"),
    ("train-landmarks", LANDMARKS_TRAIN, dict(output="clips"), "clips: is a directory"),
    ("train-landmarks", LANDMARKS_TRAIN, dict(output="file/out"), "file/out: can't be written"),
    # synthesize
    ("synthesize", SYNTHESIZE, dict(output="file"), "'file'"),
    ("synthesize", SYNTHESIZE, dict(output="file/out"), "'file/out'"),
    ("synthesize", SYNTHESIZE, dict(size="4"), "size is 4: expected an"),
    ("synthesize", SYNTHESIZE, dict(clips="0"), "clips is 0: expected"),
    # train
    ("train", TRAIN, dict(data="missing"), "missing: no such"),
    ("train", TRAIN, dict(data="file"), "file: expected a"),
    ("train", TRAIN, dict(data="texts"), "texts/a.mp4: not a video"),
    ("train", TRAIN, dict(start="pickle.pt"), "pickle.pt: not a whole safetensors file"),
    (
        "train",
        TRAIN,
        dict(start="tiny-s2d"),
        "(tiny with prior landmarks, without refinement, generator residual) than this",
    ),
    ("train", TRAIN, dict(features="missing.pth"), "features 'missing.pth': expected 'faces', 'vgg19' or a file"),
    ("train", TRAIN, dict(output="file"), "'file"),
    ("train", TRAIN, dict(output="file/out"), "'file/out"),
]


@pytest.mark.parametrize(
    "command, usual, options, message", CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_bad_input_is_one_line_and_nothing_is_written(place, capsys, command, usual, options, message):
    before = contents(place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # as Python does outside tests
        assert main(words(command, usual, options)) == 2
    out, err = capsys.readouterr()
    said = complaints(err)
    assert "| model |" not in out  # it is said before the work, not after
    assert len(said) == 1, said
    assert said[0].startswith("minimodel: ") and message in said[0]
    assert contents(place) == before  # so the pickle wasn't executed either


CHOICES = [
    ("ablate", ABLATE, dict(table="mrfa-7"), "mrfa-3,mrfa-4"),
    ("ablate", ABLATE, dict(preset="big"), "tiny,small,paper"),
    ("animate", ANIMATE, dict(mode="x"), "standard,relative,avd"),
    ("train", TRAIN, dict(preset="big"), "tiny,small,paper"),
    ("train", TRAIN, dict(system="x"), "mrfa,fomm"),
    ("train", TRAIN, dict(prior="x"), "affine,tps"),
]


@pytest.mark.parametrize("command, usual, options, choices", CHOICES)
def test_what_is_no_choice_is_answered_by_the_choices(place, capsys, command, usual, options, choices):
    before = contents(place)
    assert main(words(command, usual, options)) == 2
    (line,) = complaints(capsys.readouterr().err)
    assert line.startswith("minimodel: ") and all(f"'{choice}'" in line for choice in choices.split(","))
    assert contents(place) == before


def test_a_command_that_is_not_there_is_named_with_the_nearest(capsys):
    assert main(["animte"]) == 2
    assert capsys.readouterr().err == "minimodel: unknown command 'animte': did you mean animate?\n"
    assert main([]) == 2 and main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(printed.count(f"\n  {name} ") == 2 for name in commands.COMMANDS)


@pytest.mark.parametrize("kind", ["pickle", "checkpoint of another model"])
def test_a_foreign_checkpoint_stops_training_and_stays(place, capsys, kind):
    Path("out").mkdir()
    if kind == "pickle":
        shutil.copy("pickle.pt", "out/checkpoint.pt")
    else:
        other = AnimationModel.from_preset("tiny", system="fomm")
        torch.save({"metadata": other.metadata(), "model": {}}, "out/checkpoint.pt")
    before = contents(place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(words("train", TRAIN, {})) == 2
    (line,) = complaints(capsys.readouterr().err)
    assert "checkpoint.pt: " in line and ("not a checkpoint" in line) == (kind == "pickle")
    assert contents(place) == before


def test_a_film_that_is_there_survives_what_goes_wrong(place, capsys):
    shutil.copy("clips/a.mp4", "out.mp4")
    before = contents(place)
    for options in (dict(driving="text.mp4"), dict(weights="pickle.pt"), dict(size="51")):
        assert main(words("animate", ANIMATE, options)) == 2
    assert contents(place) == before


def test_a_loss_that_is_not_finite_is_one_line_too(monkeypatch, capsys):
    def fail(config):
        raise loop.TrainingStopped("loss or gradient is not finite in step 7: stopped")

    monkeypatch.setattr("minimodel.training.loop.train", fail)
    assert main(words("train", TRAIN, {})) == 2
    assert capsys.readouterr().err == "minimodel: loss or gradient is not finite in step 7: stopped\n"


def test_bugs_are_not_hidden(monkeypatch):
    def fail(config):
        raise ZeroDivisionError

    monkeypatch.setattr("minimodel.training.loop.train", fail)
    with pytest.raises(ZeroDivisionError):
        main(words("train", TRAIN, {}))


def test_a_device_that_is_full_is_said_in_one_line(monkeypatch, capsys):
    def fill(config):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nAnd much more")

    monkeypatch.setattr("minimodel.training.loop.train", fill)
    assert main(words("train", TRAIN, {})) == 2
    line = capsys.readouterr().err
    assert line.startswith("minimodel: CUDA out of memory") and "--batch" in line and line.count("\n") == 1


def test_warnings_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr(loop, "train", lambda config: warnings.warn("a film breaks off", stacklevel=2))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(words("train", TRAIN, {})) == 0
    assert capsys.readouterr().err == "minimodel: a film breaks off\n"


@pytest.mark.parametrize(
    "options, message", [({}, "size"), (dict(size="33", box="0 0 64"), "33"), (dict(fps="0", size="64"), "fps")]
)
def test_sizes_that_films_cannot_have(place, capsys, options, message):
    usual = dict(PREPARE, box="0 0 64", size="0") | options
    assert main(words("prepare", usual, {})) == 2
    (line,) = complaints(capsys.readouterr().err)
    assert message in line


NEWER = [("evaluate", "model", "invented_later", 1), ("find-landmarks", "detector", "invented_later", 1)]
NEWER += [("evaluate", "model", "prior", "invented-later"), ("evaluate", "model", "generator", "invented-later")]


@pytest.mark.parametrize("command, name, field, value", NEWER)
def test_weights_of_another_version_are_named(place, capsys, command, name, field, value):
    path = f"{name}.safetensors"
    with safe_open(path, framework="pt") as weights:
        metadata = weights.metadata()
    config = json.loads(metadata["config"]) | {field: value}
    save_file(load_file(path), path, metadata | dict(config=json.dumps(config)))
    assert main(words(command, {"evaluate": EVALUATE, "find-landmarks": LANDMARKS}[command], {})) == 2
    (line,) = complaints(capsys.readouterr().err)
    assert f"{path}: weights of another version of minimodel" in line and re.search("invented.later", line)


def test_stopping_by_hand_is_no_traceback(capsys, monkeypatch):
    def stopped(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("minimodel.commands.bench.bench", stopped)
    assert main(words("bench", BENCH, {})) == 130
    assert capsys.readouterr().err == "minimodel: stopped\n"


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "minimodel", *arguments], capture_output=True, text=True, timeout=120, **options
    )


def test_the_process_ends_with_two_or_zero(place):
    ended = run(*words("animate", ANIMATE, dict(driving="text.mp4")))
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    (line,) = complaints(ended.stderr)
    assert line.startswith("minimodel: text.mp4: not a video")
    ended = run(*words("animate", ANIMATE, {}))
    assert ended.returncode == 0 and len(Clip("out.mp4")) == 4


def test_a_full_disk_is_one_line_and_the_old_film_stays(place):
    Path("out.mp4").write_bytes(b"precious")
    before = contents(place)
    # Without what makes a subprocess count its coverage: it couldn't write that down either, and would complain.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    ended = run(
        *words("animate", ANIMATE, {}),
        env=environment,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
    )
    assert ended.returncode == 2
    (line,) = complaints(ended.stderr)
    assert line.startswith("minimodel: out.mp4: can't be written")
    assert contents(place) == before


@pytest.mark.parametrize("command", [name for name in commands.COMMANDS if name not in ("import-checkpoint", "export")])
def test_what_computes_can_be_told_on_which_device(command, capsys):
    assert main([command, "--help"]) == 0
    assert "--device {auto,cpu,cuda,mps}" in capsys.readouterr().out


def test_a_network_on_another_device_answers_on_the_cpu():
    double = OnDevice(torch.nn.Sequential(), torch.device("cpu"))
    double.network.forward = lambda image: (2 * image, -image)
    answers = double(torch.ones(1, 3, 2, 2))
    assert [float(answer.mean()) for answer in answers] == [2, -1]
    same = torch.nn.Linear(1, 1)
    assert on_device(same, torch.device("cpu")) is same and isinstance(on_device(same, torch.device("meta")), OnDevice)
