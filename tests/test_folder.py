"""One run writes to a folder at a time, and goes on with the settings that it began with."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from minimodel.__main__ import main
from minimodel.data.augmentation import Augmentation
from minimodel.errors import MinimodelError
from minimodel.model import AnimationModel
from minimodel.training import folder, loop
from minimodel.training.folder import locked
from minimodel.training.loop import train
from minimodel.training.objective import LossWeights
from tests.test_train import ALWAYS, SIZES, face_clips, lines, names, same, settings

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return face_clips(tmp_path_factory.mktemp("folder") / "clips")


def in_child(work):
    """Run ``work`` in a forked process, which then sleeps until it is killed; -> its number and what it answered."""
    reads, writes = os.pipe()
    gc.collect()
    child = os.fork()
    if child == 0:
        gc.disable()  # a decoder that other tests left behind waits for its threads when freed, and here are none
        try:
            os.write(writes, str(work()).encode())
            os.close(writes)
            time.sleep(300)
        finally:
            os._exit(1)
    os.close(writes)
    with os.fdopen(reads) as answer:
        return child, answer.read()


def end(child):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def hold(output, kept=None):
    """What another process hears that wants the folder, and keeps it if it gets it."""
    context = locked(output)
    try:
        context.__enter__()
    except MinimodelError as error:
        return error
    hold.kept = context
    return "held"


def test_one_process_holds_a_folder_and_a_killed_one_leaves_it(tmp_path):
    output = tmp_path / "deep" / "run"
    child, answer = in_child(lambda: hold(output))
    assert answer == "held"
    with pytest.raises(MinimodelError, match=f"^{output}: another run is writing there; wait"), locked(output):
        pass
    end(child)
    assert names(output) == {".lock"}
    (output / ".unfinished-model.safetensors").write_text("half")
    with locked(output):
        assert names(output) == {".lock"}
        child, answer = in_child(lambda: hold(output))
        end(child)
        assert "another run" in answer
    assert names(output) == set()
    with pytest.raises(ZeroDivisionError), locked(output):
        raise ZeroDivisionError
    assert names(output) == set()


def test_a_lock_whose_file_was_deleted_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """Between opening the file and locking it, the run that held it may end, and delete it."""
    lockf, calls = folder.fcntl.lockf, []

    def delete_first(file, how):
        calls.append(file.name)
        if len(calls) == 1:
            os.unlink(file.name)
        return lockf(file, how)

    monkeypatch.setattr(folder.fcntl, "lockf", delete_first)
    with locked(tmp_path):
        assert len(calls) == 2
        child, answer = in_child(lambda: hold(tmp_path))
        end(child)
        assert "another run" in answer


@pytest.mark.parametrize("lacks", ["module", "locks"])
def test_without_locks_a_run_goes_on(tmp_path, monkeypatch, lacks):
    if lacks == "module":
        monkeypatch.setattr(folder, "fcntl", None)
    else:
        monkeypatch.setattr(folder.fcntl, "lockf", lambda *_: (_ for _ in ()).throw(OSError(37, "No locks available")))
    with locked(tmp_path):
        pass
    assert names(tmp_path) == set()


def test_a_second_training_is_refused_while_the_first_lives(tmp_path, clips, capsys):
    output = tmp_path / "run"
    words = ["train", "--evaluate", str(clips), "--output", str(output), "--batch", "2", "--evaluate-minutes", "1e-9"]
    first = subprocess.Popen([sys.executable, "-m", "minimodel", *words, "--steps", "9999"], cwd=ROOT)
    try:
        deadline = time.monotonic() + 200
        while not (output / "checkpoint.pt").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        for more in ([], ["--seed", "1"]):  # whatever else is wrong
            assert main([*words, "--steps", "1", *more]) == 2
            (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("minimodel")]
            assert line.startswith(f"minimodel: {output}: another run is writing there")
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    logged = [line["step"] for line in lines(output)]
    assert logged == list(range(1, len(logged) + 1))
    assert main([*words, "--steps", "1"]) == 0  # which it has long done
    assert ".lock" not in names(output) and not [name for name in names(output) if "unfinished" in name]


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.fixture(scope="module")
def begun(tmp_path_factory, clips):
    """A run of one step."""
    output = tmp_path_factory.mktemp("begun") / "run"
    train(settings(output, clips, steps=1), **SIZES)
    return output


CHANGES = [
    (dict(batch=2), "batch 4 -> 2"),
    (dict(seed=1), "seed 0 -> 1"),
    (dict(learning_rate=1e-3), r"learning_rate 0\.0004 -> 0\.001"),
    (dict(start="tiny"), "start None -> tiny"),
    (dict(average=0.9), r"average 0\.999 -> 0\.9"),
    (dict(motion_steps=0), "motion_steps 2 -> 0"),
    (dict(loss=LossWeights(smoothness=6.0)), r"loss\.smoothness 0\.0 -> 6\.0"),
    (dict(augmentation=Augmentation(zoom=0.0)), r"augmentation\.zoom 0\.15 -> 0\.0"),
    (dict(batch=8, seed=3), "batch 4 -> 8, seed 0 -> 3"),
]


def contents(output):
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


@pytest.mark.parametrize("change, message", CHANGES, ids=[message for _, message in CHANGES])
def test_a_run_goes_on_with_its_own_settings_only(begun, clips, change, message):
    before = contents(begun)
    with pytest.raises(MinimodelError, match=rf"has other settings \({message}\); --continue-with-changes") as caught:
        train(settings(begun, clips, steps=2, **change), **SIZES)
    assert "\n" not in str(caught.value) and contents(begun) == before


def test_other_data_are_another_setting(begun, clips):
    with pytest.raises(MinimodelError, match=rf"\(data synthetic -> synthetic {clips}\)"):
        train(settings(begun, clips, steps=2, data=("synthetic", str(clips))), **SIZES)


def test_how_long_and_on_what_a_run_trains_may_change(tmp_path, clips):
    train(settings(tmp_path / "run", clips, steps=1), **SIZES)
    more = dict(
        minutes=1e9, evaluate=(), evaluate_minutes=ALWAYS, workers=1, device="cpu", strict=True, features="faces"
    )
    step = loop.TrainingStep.forward

    def one(self, *arguments, **options):
        loop.TrainingStep.forward = step
        raise KeyboardInterrupt  # far enough

    loop.TrainingStep.forward = one
    with pytest.raises(KeyboardInterrupt):
        train(settings(tmp_path / "run", clips, **more), **SIZES)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["workers"] == 1
    assert not list((tmp_path / "run").glob("config-*"))


def test_changes_that_are_wanted_are_taken_and_the_earlier_settings_kept(tmp_path, clips, capsys):
    output = tmp_path / "run"
    train(settings(output, clips, steps=1), **SIZES)
    before = (output / "config.json").read_bytes()
    capsys.readouterr()
    changed = dict(seed=7, continue_with_changes=True)
    train(settings(output, clips, steps=2, **changed), **SIZES)
    assert "nan" not in capsys.readouterr().err  # its only step was one of motion alone
    assert (output / "config-0000001.json").read_bytes() == before
    assert json.loads((output / "config.json").read_text())["seed"] == 7
    assert [line["step"] for line in lines(output)] == [1, 2]
    # From here on they are the run's own.
    train(settings(output, clips, steps=3, seed=7), **SIZES)
    assert sorted(path.name for path in output.glob("config*")) == ["config-0000001.json", "config.json"]
    train(settings(tmp_path / "plain", clips, steps=3), **SIZES)
    assert not same(output / "model.safetensors", tmp_path / "plain" / "model.safetensors")


def test_settings_that_cannot_be_read_are_named(begun, clips, tmp_path):
    path = tmp_path / "config.json"
    for text in ("", "[1]", '{"batch": '):
        path.write_text(text)
        with pytest.raises(MinimodelError, match="not the settings of a run, or damaged"):
            folder.keep_settings(tmp_path, dict(batch=1), 1, goes_on=True, may_change=False)
        assert path.read_text() == text
    # Of an earlier version, which had no such setting, or didn't write the rate of a preset.
    path.write_text('{"batch": 1, "learning_rate": null, "since_gone": 3}')
    folder.keep_settings(tmp_path, dict(batch=1, learning_rate=4e-4, new=True), 1, goes_on=True, may_change=False)
    assert json.loads(path.read_text())["new"]


# ---------------------------------------------------------------------------------------------------------- the log


def test_a_disk_that_is_full_takes_no_half_lines(tmp_path, clips, monkeypatch):
    log = loop.Log(settings(tmp_path, clips), loop.RunState(), "faces", AnimationModel.from_preset("tiny", **SIZES))
    log(loop.RunState(step=1), "train", loss=1.0)
    before = log.path.read_bytes()
    opened = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, text):
            self.file.write(text[: len(text) // 2])
            self.file.flush()
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda self, *how, **more: Full(opened(self, *how, **more)))
    with pytest.raises(MinimodelError, match=r"metrics\.jsonl: can't be written \(No space left on device\)"):
        log(loop.RunState(step=2), "train", loss=1.0)
    monkeypatch.undo()
    assert log.path.read_bytes() == before


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def fill(path, picture):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minimodel.show.iio.imwrite", fill)
    with pytest.raises(OSError, match=r"No space left.*a\.png"):
        loop.save_picture(torch.zeros(3, 8, 8), tmp_path / "a.png")
    assert names(tmp_path) == set()
