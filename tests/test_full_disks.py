"""A full disk and a folder that can't be written to end in one line, exit code 2, and nothing half-written.

The disk is a real one of 200 kB, which only those who may mount it can try.
"""

import json
import os
import shutil
import subprocess
import tempfile
from fractions import Fraction
from importlib import import_module
from pathlib import Path

import pytest
import torch

from minimodel import __main__ as commands
from minimodel.__main__ import main
from minimodel.data.writer import VideoWriter
from minimodel.errors import MinimodelError
from minimodel.landmarks import LandmarkDetector
from minimodel.model import AnimationModel
from minimodel.saving import whole_file
from minimodel.show import save_picture
from minimodel.training import loop
from minimodel.training.folder import keep_settings, locked
from tests.test_train import SIZES, face_clips, settings

NOBODY = 65534


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def write_film(path):
    with VideoWriter(path, fps=Fraction(25), metadata={"comment": "Synthetic media"}) as film:
        for _ in range(60):
            film.write(torch.rand(3, 96, 96))


def write_text(path):
    with whole_file(path) as unfinished:
        unfinished.write_text("x" * 2**18)


def log_for_ever(path):
    log = loop.Log(settings(path.parent, path), loop.RunState(), "faces", AnimationModel.from_preset("tiny", **SIZES))
    for step in range(1, 10**5):
        log(loop.RunState(step=step), "train", loss=0.123456789, gradient=0.123456789)


WAYS = {
    **{f"a.{kind}": write_film for kind in ("mp4", "gif", "webm", "mkv", "mov")},
    "a.safetensors": lambda path: AnimationModel.from_preset("tiny").save(path),
    "a.png": lambda path: save_picture(torch.rand(3, 512, 512), path),
    "a.json": write_text,
    "config.json": lambda path: keep_settings(path.parent, dict(a="x" * 2**18), 0, goes_on=False, may_change=False),
    "metrics.jsonl": log_for_ever,
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("before", ["", '{"step": 0}\n'])
def test_a_full_disk_leaves_what_was_there(disk, name, before):
    if before:
        (disk / name).write_text(before)
    with pytest.raises((MinimodelError, OSError), match="No space left on device") as caught:
        WAYS[name](disk / name)
    assert "\n" not in str(caught.value) and str(disk / name) in str(caught.value)
    left = {path.name: path.read_text() for path in disk.iterdir() if path.is_file()}
    if name == "metrics.jsonl":  # as many whole lines as there is room for
        steps = [json.loads(line)["step"] for line in left.pop(name).splitlines()]
        assert steps == list(range(0 if before else 1, len(steps) + (not before))) and len(steps) > 100
        assert left.keys() <= {"config.json"}
    else:
        assert left == ({name: before} if before else {})


def test_a_disk_that_fills_up_while_training_is_one_line(disk, tmp_path, capsys):
    clips = face_clips(tmp_path / "clips", count=1)
    words = ["train", "--evaluate", str(clips), "--output", str(disk / "run"), "--steps", "1", "--batch", "2"]
    assert main(words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("minimodel")]
    assert str(disk / "run" / "checkpoint.pt") in line
    names = {path.name for path in (disk / "run").iterdir()}
    assert names == {"config.json", "metrics.jsonl", "pictures"}


# ---------------------------------------------------------------------------------------------------- read-only folders


@pytest.fixture
def guarded():
    """A folder with a photo, a film and weights, in which the one who runs the commands may only read."""
    # Not below pytest's own folder, which nobody else may enter.
    folder = Path(tempfile.mkdtemp())
    clips = face_clips(folder / "clips", count=1)
    torch.manual_seed(0)
    AnimationModel.from_preset("tiny").save(folder / "model.safetensors")
    save_picture(torch.rand(3, 64, 64), folder / "photo.png")
    for module, *_ in commands.COMMANDS.values():  # which somebody else may not even read
        import_module(f"minimodel.{module}")
    everything = [folder, clips, *clips.iterdir()]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0:  # who may write anywhere
        os.seteuid(NOBODY)
        yield folder
        os.seteuid(0)
    else:
        yield folder
    for path in everything:
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def detector(monkeypatch):
    """The landmark detector, loaded before the user changes: where the package lies he may not be allowed to read."""
    loaded = LandmarkDetector.load()
    monkeypatch.setattr(LandmarkDetector, "load", lambda *_: loaded)


COMMANDS = {
    "animate": (
        "--weights {0}/model.safetensors --source {0}/photo.png --driving {0}/clips/0.mp4 --crop none"
        " --output {0}/out.mp4"
    ),
    "prepare": "--videos {0}/clips --box 0 0 32 --size 32 --output {0}/out",
    "prepare in the folder itself": "--videos {0}/clips --box 0 0 32 --size 32 --output {0}",
    "synthesize": "--output {0}/out --clips 1 --seconds 0.24",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_of_somebody_else_is_one_line(detector, guarded, capsys, command):
    before = sorted(guarded.rglob("*"))
    assert main([command.split()[0], *COMMANDS[command].format(guarded).split()]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("minimodel")]
    assert "ermission denied" in line and str(guarded) in line
    assert sorted(guarded.rglob("*")) == before


@pytest.mark.parametrize("below", ["", "run"])
def test_a_run_cannot_hold_a_folder_of_somebody_else(guarded, below):
    with pytest.raises(OSError, match=f"Permission denied: '{guarded}"), locked(guarded / below):
        pass
