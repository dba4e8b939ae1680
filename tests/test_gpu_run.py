"""tools/gpu_run.sh with stand-ins for `minimodel` and `pytest`: order, resuming, exit codes."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "gpu_run.sh"
STAND_IN = """#!/usr/bin/env bash
echo "$(basename "$0") $* on $MINIMODEL_DEVICE" >> "$CALLS"
[ "$1" != "$BREAKS" ]
"""
STAGES = ["tests", "bench-1", "bench-2", "train", "table"]


@pytest.fixture
def run(tmp_path):
    for name in ("minimodel", "pytest", "nvidia-smi"):
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(STAND_IN)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(*arguments, breaks="-", **variables):
        (tmp_path / "calls").write_text("")
        place = dict(PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", CALLS=str(tmp_path / "calls"), BREAKS=breaks)
        done = subprocess.run([SCRIPT, *arguments], env=os.environ | place | variables, capture_output=True, text=True)
        words = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
        return done, [call for call in words if call[1] != "--version" and call[0] != "nvidia-smi"]

    return run


def test_stages_come_in_order_and_a_second_run_does_what_failed(run, tmp_path):
    done, calls = run(tmp_path / "out", breaks="train", TRY="1")
    assert [call[1] if call[0] == "minimodel" else call[0] for call in calls] == [
        "pytest", "bench", "bench", "train", "ablate"
    ]  # fmt: skip
    assert all(call[-1] == "cpu" for call in calls)
    assert done.returncode == 1  # a stage failed, and the next one ran all the same
    codes = {stage: (tmp_path / "out" / f"{stage}.code").read_text().strip() for stage in STAGES}
    assert codes == dict.fromkeys(STAGES, "0") | dict(train="1")
    assert "train          1" in (tmp_path / "out" / "summary.txt").read_text()
    done, calls = run(tmp_path / "out", TRY="1")
    assert done.returncode == 0 and [call[1] for call in calls] == ["train"]
    done, calls = run(tmp_path / "out", TRY="1")
    assert done.returncode == 0 and calls == []


def test_a_gpu_is_asked_for_unless_it_is_tried_out(run, tmp_path):
    done, calls = run(tmp_path / "out", PRESET="paper")
    assert done.returncode == 0 and all(call[-1] == "cuda" for call in calls)
    _, _, wide, train, table = calls
    assert wide[wide.index("--frames") + 1] == "32" and "--replay" in wide
    assert train[train.index("--preset") + 1] == "paper" and train[train.index("--minutes") + 1] == "4"
    assert table[table.index("--parallel") + 1] == "4"
    done, _ = run()
    assert done.returncode == 2 and "usage" in done.stderr


def test_the_words_that_it_says_are_options(run, tmp_path):
    """Of the real commands: each option of the script is named in the command's help."""
    from minimodel.__main__ import COMMANDS

    _, calls = run(tmp_path / "out")
    for name, command, *words in calls:
        if name == "minimodel":
            module, config, *_ = COMMANDS[command]
            fields = __import__(f"minimodel.{module}", fromlist=[config]).__dict__[config].__dataclass_fields__
            assert {word[2:].replace("-", "_") for word in words if word.startswith("--")} <= fields.keys()
