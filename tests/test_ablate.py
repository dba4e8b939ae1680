"""An ablation can be killed at any time, trains nothing twice, and its table holds what was measured.

Run as a module, this file is the command line with models cut down; so are the processes that it starts.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from minimodel.__main__ import main
from minimodel.config import PRESETS
from minimodel.data import synthetic
from minimodel.evaluation.benchmark import synthetic_clip
from minimodel.model import AnimationModel
from minimodel.training import ablation, loop
from minimodel.training.ablation import TABLES, AblateConfig, ablate, settings
from minimodel.training.loop import TrainingStopped, train
from tests.test_train import SIZES

ROOT = Path(__file__).parents[1]
STEPS = 40  # of runs that are killed on the way
EVERY = [(table, row) for table in TABLES for row in TABLES[table].rows]


def small_train(config, **sizes):
    """Save after every step; the evaluation on the way is of no interest."""
    points = dict(points=74) if config.system == "s2d" else {}
    return train(dataclasses.replace(config, evaluate_minutes=1e-9), **SIZES | points | sizes)


def two_frames(name, size, **_):
    faces = synthetic.Faces(synthetic.sample_identities(1, 0), synthetic.animate_states(16, 0)[::8])
    return [synthetic_clip(name, faces, 32)]


def cut_down():
    ablation.train, ablation.load_evaluation = small_train, two_frames
    loop.load_evaluation = two_frames


if __name__ in ("__main__", "__mp_main__"):
    cut_down()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(ablation, "train", small_train)
    monkeypatch.setattr(ablation, "load_evaluation", two_frames)
    monkeypatch.setattr(loop, "load_evaluation", two_frames)


def trained(folder):
    """The steps that each run has logged."""
    return {
        str(path.parent.relative_to(folder)): [
            json.loads(line)["step"] for line in path.read_text().splitlines() if '"train"' in line
        ]
        for path in sorted(folder.glob("*/*/metrics.jsonl"))
    }


def command(folder, *more, table="mrfa-3", rows=("affine", "npmr"), seeds="0"):
    asked = [
        "--output",
        str(folder),
        "--rows",
        *rows,
        "--seeds",
        *seeds.split(),
        "--device",
        "cpu",
        "--precision",
        "float32",
    ]
    return ["ablate", table, *asked, *more]


def start(*arguments, **options):
    return subprocess.Popen([sys.executable, "-m", "tests.test_ablate", *arguments], cwd=ROOT, **options)


# ---------------------------------------------------------------------------------------------------- the tables


def test_rows_have_as_many_numbers_as_their_table_has_columns():
    for table, row in EVERY:
        numbers = TABLES[table].rows[row].paper.split()
        assert len(numbers) == len(TABLES[table].columns) and all(float(number) > 0 for number in numbers)


def of_row(table, row, preset="tiny"):
    training, sizes = settings(AblateConfig(table, preset=preset), row, 0)
    parts = {name: getattr(training, name) for name in ("system", "prior", "refine", "generator")}
    if training.points is not None:
        parts["points"] = training.points
    return training, AnimationModel.from_preset(preset, **parts, **sizes).config


def test_no_two_rows_of_a_table_are_the_same_and_all_share_pairs_and_schedule():
    for table in TABLES:
        seen = []
        for row in TABLES[table].rows:
            training, config = of_row(table, row)
            seen.append((str(config), str(training.loss)))
            assert training.steps == 750 and training.batch == 8 and training.data == ("synthetic",)
            assert training.output == Path("runs/ablate") / table / row / "seed-0"
        assert len(set(seen)) == len(seen)


def test_what_is_the_same_model_has_the_same_numbers_in_all_tables_of_its_paper():
    numbers = {}
    for table, row in EVERY:
        if table.startswith("mrfa"):
            l1, psnr, _lpips, akd, aed, *_ = TABLES[table].rows[row].paper.split()  # Table A3 rounds LPIPS otherwise
            numbers.setdefault(str(of_row(table, row)[1]), []).append((l1, psnr, akd, aed))
    assert all(len(set(of_model)) == 1 for of_model in numbers.values())
    assert sorted(len(of_model) for of_model in numbers.values())[-4:] == [2, 2, 3, 3]


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_iterations_end_at_the_same_share_of_the_picture_as_in_the_paper(preset):
    scales = PRESETS[preset].unet.levels + 1
    rows = [of_row("mrfa-6", row, preset)[1].iterations for row in TABLES["mrfa-6"].rows]
    assert rows == [scales - 3, scales - 2, scales - 1, scales]


@pytest.mark.parametrize("table, row", [("mrfa-6", "to-eighth"), ("tpsm-4", "masks"), ("s2d-4", "no-local")])
def test_what_a_row_changes_reaches_its_training(tmp_path, small, table, row):
    assert ablation.train_row(AblateConfig(table, pairs=8, output=tmp_path), row, 0) is None
    folder = tmp_path / row / "seed-0"
    done = json.loads((folder / "config.json").read_text())
    (first,) = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if '"train"' in line)
    if table == "mrfa-6":
        assert done["model"]["iterations"] == 1 and done["model"]["prior"] == "tokens"
    elif table == "tpsm-4":
        assert done["system"] == "tpsm" and first["warp"] == 0 and first["perceptual"] > 0
    else:
        assert done["system"] == "s2d" and not done["model"]["local_motion"] and done["model"]["adain"]
    assert json.loads((folder / "scores.json").read_text()).keys() == {"model", "copy", "oracle"}


# ------------------------------------------------------------------------------------------------------ going on


def test_a_run_that_is_done_is_not_trained_again(tmp_path, small, monkeypatch, capsys):
    assert main(command(tmp_path, "--pairs", "16", seeds="0 0")) == 0
    assert "npmr, seed 0 (2 of 2)" in capsys.readouterr().out  # what is asked for twice is trained once
    done = trained(tmp_path)
    assert done == {"affine/seed-0": [1, 2], "npmr/seed-0": [1, 2]}
    monkeypatch.setattr(ablation, "train", lambda *_, **__: pytest.fail("trained again"))
    capsys.readouterr()
    assert main(command(tmp_path, "--pairs", "16")) == 0
    assert "| FOMM | 1 | 0." in capsys.readouterr().out
    assert trained(tmp_path) == done


def test_a_row_that_was_killed_goes_on_within(tmp_path, small, monkeypatch):
    step, taken = torch.optim.Adam.step, []

    def die(self, *arguments, **options):
        if len(taken) == 3:
            raise KeyboardInterrupt
        taken.append(None)
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", die)
    assert main(command(tmp_path, "--pairs", "16")) == 130
    assert trained(tmp_path) == {"affine/seed-0": [1, 2], "npmr/seed-0": [1]}
    assert "| FOMM | 1 | " in (tmp_path / "table.md").read_text()  # written when the first was done
    taken.clear()
    assert main(command(tmp_path, "--pairs", "16")) == 0
    assert len(taken) == 1 and trained(tmp_path)["npmr/seed-0"] == [1, 2]


def wait_until(what, seconds=200):
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.05)
    return what()


def test_processes_end_with_the_one_that_started_them_and_go_on_where_they_were(tmp_path):
    arguments = command(tmp_path, "--pairs", str(8 * STEPS), "--parallel", "2")
    first = start(*arguments, stderr=subprocess.DEVNULL)
    checkpoints = [tmp_path / row / "seed-0" / "checkpoint.pt" for row in ("affine", "npmr")]
    assert wait_until(lambda: all(path.exists() for path in checkpoints))
    workers = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait()
    assert len(workers) >= 2 and not psutil.wait_procs(workers, timeout=60)[1]
    assert all(0 < len(steps) < STEPS for steps in trained(tmp_path).values())
    second = start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    assert all(steps == list(range(1, STEPS + 1)) for steps in trained(tmp_path).values())
    assert "| FOMM | 1 | " in out and "| NPMR | 1 | " in out and "2/2" in err
    assert "parameters" in (tmp_path / "affine" / "seed-0" / "log.txt").read_text()


def test_sigterm_ends_the_processes_too_and_nothing_half_written_stays(tmp_path):
    arguments = command(tmp_path, "--pairs", "80000", "--parallel", "2")
    first = start(*arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    checkpoints = [tmp_path / row / "seed-0" / "checkpoint.pt" for row in ("affine", "npmr")]
    assert wait_until(lambda: all(path.exists() for path in checkpoints), 400)
    workers = psutil.Process(first.pid).children(recursive=True)
    first.terminate()
    _, err = first.communicate(timeout=120)
    assert first.returncode == 143 and err.endswith("minimodel: stopped\n") and "Traceback" not in err
    assert len(workers) >= 2 and not psutil.wait_procs(workers, timeout=120)[1]
    assert not [path for path in tmp_path.rglob(".*")]


def test_a_row_that_stops_leaves_the_others_alone(tmp_path, small, monkeypatch, capsys):
    def stop(config, **sizes):
        if config.refine is False:
            raise TrainingStopped("loss is not finite in step 7")
        return small_train(config, **sizes)

    monkeypatch.setattr(ablation, "train", stop)
    assert main(command(tmp_path, "--pairs", "8")) == 2
    out, err = capsys.readouterr()
    assert err.endswith("minimodel: affine with seed 0: loss is not finite in step 7\n")
    assert "| NPMR | 1 | 0." in out and "| FOMM |  |  |" in out


# -------------------------------------------------------------------------------------------------------- the table


def put(folder, row, seed, **measures):
    path = folder / row / f"seed-{seed}" / "scores.json"
    path.parent.mkdir(parents=True)
    lines = dict(copy=dict.fromkeys(measures, 0.5), oracle=dict.fromkeys(measures, 0.25))
    path.write_text(json.dumps(lines | dict(model=measures)))


def test_the_table_holds_means_deviations_and_the_papers_numbers(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(dict(table="mrfa-3", preset="tiny", pairs=6000)))
    values = [20.0, 21.0, 23.5]
    for seed, value in enumerate(values):
        put(tmp_path, "affine", seed, L1=0.05, PSNR=value)
    put(tmp_path, "tps", 0, L1=0.04, PSNR=22.0)
    rows = ablate(AblateConfig("mrfa-3", output=tmp_path, report=True))
    assert rows["affine"]["scores"]["PSNR"]["mean"] == pytest.approx(21.5)
    assert (
        rows["affine"]["scores"]["PSNR"]["deviation"]
        == pytest.approx(statistics.stdev(values))
        == pytest.approx((3.25) ** 0.5)
    )
    text = (tmp_path / "table.md").read_text()
    assert text in capsys.readouterr().out
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert table[0] == ["", "seeds", "L1", "PSNR", *(f"paper's {c}" for c in ("L1", "PSNR", "LPIPS", "AKD", "AED"))]
    assert len({len(line) for line in table}) == 1
    lines = {line[0]: line[1:] for line in table[2:]}
    assert lines["copy"] == ["", "0.5000", "0.5000", *[""] * 5]
    paper = ["0.0386", "24.62", "0.164", "1.254", "0.124"]
    assert lines["FOMM"] == ["3", "0.0500 ± 0.0000", "21.50 ± 1.80", *paper]
    assert lines["TPSM"] == ["1", "0.0400", "22.00", "0.0370", "25.09", "0.159", "1.231", "0.120"]
    assert lines["NPMR"] == ["", "", "", "0.0393", "24.41", "0.164", "1.328", "0.133"]
    saved = json.loads((tmp_path / "table.json").read_text())
    assert saved["rows"] == json.loads(json.dumps(rows)) and saved["lines"]["oracle"]["PSNR"] == 0.25
    assert saved["rows"]["affine"]["seeds"]["PSNR"] == {"0": 20.0, "1": 21.0, "2": 23.5}


@pytest.mark.parametrize(
    "changed", [["mrfa-3", "--pairs", "16"], ["mrfa-3", "--preset", "small"], ["mrfa-4"]], ids=lambda words: words[-1]
)
def test_runs_of_other_settings_are_not_mixed(tmp_path, small, capsys, changed):
    assert main(command(tmp_path, "--pairs", "8", rows=("affine",))) == 0
    capsys.readouterr()
    assert main(["ablate", *changed, "--output", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"minimodel: {tmp_path}: holds runs of ") and line.endswith("choose another --output")


def test_seeds_are_those_of_the_table_unless_given(tmp_path, monkeypatch):
    def taken(table, **options):
        runs = []
        monkeypatch.setattr(ablation, "train_row", lambda config, row, seed: runs.append((row, seed)))
        ablate(AblateConfig(table, output=tmp_path / f"{table}{len(options)}", **options))
        return runs

    rows = list(TABLES["mrfa-4"].rows)
    assert taken("mrfa-4") == [(row, seed) for seed in (0, 1, 2) for row in rows]  # a whole table comes first
    assert taken("tpsm-4") == [(row, 0) for row in TABLES["tpsm-4"].rows]
    assert taken("tpsm-4", seeds=(5,), rows=("warp",)) == [("warp", 5)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
