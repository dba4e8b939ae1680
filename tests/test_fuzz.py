"""A part of what `python tools/fuzz.py` does: damaged files end in a film or in one line."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("fuzz", ROOT / "tools" / "fuzz.py")
fuzz = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz)


def test_damaged_files_end_in_a_film_or_in_one_line():
    results = list(fuzz.fuzz(range(0, 300, 11)))
    assert [result for result in results if result["wrong"]] == []
    assert {result["code"] for result in results} == {0, 2}
    assert len({(result["seed"], result["mutation"]) for result in results}) > 20


def test_a_mutation_is_known_by_its_number(tmp_path):
    seeds = tmp_path / "seeds"
    (seeds / "frames").mkdir(parents=True)
    for number, name in enumerate(name for name in fuzz.SEEDS if name != "frames"):
        (seeds / name).write_bytes(bytes(range(256)) * (number + 1))
    for number in range(fuzz.FRAMES):
        (seeds / "frames" / f"{number}.png").write_bytes(bytes(300))

    def made(number, folder):
        (tmp_path / folder).mkdir()
        *what, path = fuzz.mutate(number, seeds, tmp_path / folder)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        return what, [(file.name, file.read_bytes()) for file in files]

    for number in range(0, 108, 5):
        assert made(number, f"{number}a") == made(number, f"{number}b")


def test_a_process_that_hangs_or_dies_is_told(tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys, time\nfor line in sys.stdin:\n    line.startswith('[9,') and sys.exit(3)\n    time.sleep(99)\n"
    )
    monkeypatch.setattr(fuzz, "__file__", str(script))
    monkeypatch.setattr(fuzz, "WAIT", 2)
    worker = fuzz.Worker(tmp_path)
    assert worker(1, tmp_path)["wrong"] == ["hangs for 2 s"]
    worker.close()
    worker = fuzz.Worker(tmp_path)
    assert worker(9, tmp_path)["wrong"] == ["died (3)"]
    worker.close()
    script.write_text("import os, signal\ninput()\nos.kill(os.getpid(), signal.SIGPROF)\n")
    worker = fuzz.Worker(tmp_path)
    assert worker(1, tmp_path)["wrong"] == ["works longer than 60 s"]
    worker.close()
