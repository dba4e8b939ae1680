"""A part of what `python tools/kill.py` does: commands that are stopped go on, or end clean."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("kill", ROOT / "tools" / "kill.py")
kill = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kill)


def test_commands_that_are_stopped_go_on_or_end_clean():
    command = [sys.executable, "tools/kill.py", "--count", "1", "--say"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    *trials, summary = ended.stdout.splitlines()
    assert len(trials) == 8 and "wrong" not in summary


def in_place(output):
    """Write without care: the file is there before it is whole, and another one beside it."""
    output.mkdir(exist_ok=True)
    (output / ".unfinished-b").write_text("half")
    (output / "a").write_text("half")
    time.sleep(0.5)
    (output / "a").write_text("whole")
    (output / ".unfinished-b").unlink()


def with_care(output):
    output.mkdir(exist_ok=True)
    time.sleep(0.5)
    (output / "a").write_text("whole")


def like_a_command(write, stops):
    def run(line):
        if stops:
            signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        try:
            write(Path(line[0]))
        except KeyboardInterrupt:
            os.write(2, b"minimodel: stopped\n")  # pytest has taken sys.stderr
            return 143
        return 0

    return run


@pytest.mark.parametrize(
    "write, stops, how, expected",
    [
        (with_care, True, "SIGTERM", []),
        (with_care, True, "SIGKILL", []),
        (in_place, True, "SIGKILL", ["a isn't whole"]),
        (in_place, True, "SIGTERM", ["a isn't whole", "remains ['.unfinished-b']"]),
        (
            lambda output: with_care(output) or (output / "extra").touch(),
            True,
            "SIGTERM",
            ["after the second run these"],
        ),
        (lambda output: with_care(output) or 1 / 0, True, "SIGTERM", ["the second run ended with 70"]),
    ],
)
def test_what_is_wrong_is_seen(tmp_path, monkeypatch, write, stops, how, expected):
    monkeypatch.setattr(kill, "words", lambda command, inputs, output: [str(output)])
    monkeypatch.setattr(kill, "minimodel", like_a_command(write, stops))
    result = kill.trial("prepare", how, 0.2, tmp_path, tmp_path, {"a": b"whole"})
    assert result["code"] == (143 if how == "SIGTERM" else -9)
    assert [wrong[: len(known)] for wrong, known in zip(result["wrong"], expected, strict=True)] == expected


def test_numbers_of_training_are_compared_without_its_clock(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "minutes": 3, "pairs_per_second": 4}\n')
    headers = [json.dumps(dict(order)).encode() for order in ((("a", 1), ("b", 2)), (("b", 2), ("a", 1)))]
    for name, header, weights in zip("cde", (headers[0], headers[1], headers[1]), (b"123", b"123", b"124")):
        (tmp_path / name).mkdir()
        content = len(header).to_bytes(8, "little") + header + weights
        (tmp_path / name / "a.safetensors").write_bytes(content)
    one, same, other = (kill.files(tmp_path / name)["a.safetensors"] for name in "cde")
    assert one == same != other
    for name in "cde":
        (tmp_path / name / "a.safetensors").unlink()
    (tmp_path / ".unfinished-a.safetensors").write_bytes(b"ha")
    assert kill.files(tmp_path).pop(".unfinished-a.safetensors") == b"ha"
    (tmp_path / ".unfinished-a.safetensors").unlink()
    (tmp_path / "config.json").write_text('{"output": "somewhere", "seed": 5}')
    assert kill.files(tmp_path) == {
        "metrics.jsonl": b"[{'step': 1, 'loss': 2.0}]",
        "config.json": b"{'output': '', 'seed': 5}",
    }
