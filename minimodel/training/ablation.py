"""The papers' ablations on the rendered faces: a table's rows, each trained on the same pairs and measured alike.

The papers' own numbers stand beside ours. They are from other data, at 256 pixels, after a day or more on several GPUs:
what can be compared is which row is better, and whether by more than seeds differ.

Notebook: ``notebooks/11_train_a_full_model.ipynb``.
"""

import json
import multiprocessing
import os
import signal
import statistics
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from tqdm import tqdm

from minimodel.config import PRESETS, PresetName
from minimodel.errors import MinimodelError, check_choice
from minimodel.evaluation.benchmark import load_evaluation
from minimodel.evaluation.protocols import evaluate
from minimodel.features import load_features
from minimodel.runtime import Device, Precision
from minimodel.saving import whole_file
from minimodel.training.loop import TrainConfig, TrainingStopped, train
from minimodel.training.objective import LossWeights

BATCH = 8


@dataclass(frozen=True)
class Row:
    """One row of a paper's table."""

    label: str
    """The paper's name for it."""
    paper: str
    """The paper's numbers as they are printed, in the order of the table's columns."""
    change: dict = field(default_factory=dict)
    """Fields of `TrainConfig`, or of `minimodel.model.ModelConfig`, that make the row what it is."""
    fewer_iterations: int = 0
    """How many of the finest scales aren't refined."""


@dataclass(frozen=True)
class Table:
    """One table of a paper: the settings that all rows share, and the rows."""

    source: str
    columns: tuple[str, ...]
    rows: dict[str, Row]
    common: dict = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)


MRFA_COLUMNS = ("L1", "PSNR", "LPIPS", "AKD", "AED")
THREE_SEEDS = (0, 1, 2)
NO_OCCLUSION, NO_FLOW = dict(update_occlusion=False), dict(update_flow=False)
TAUGHT = dict(loss=LossWeights(flow=10.0, visibility=10.0, hidden=10.0))
NO_WARPED, NO_IMAGE = dict(warped_source=False), dict(structure_sees_image=False)
TableName = Literal["mrfa-3", "mrfa-4", "mrfa-5", "mrfa-6", "mrfa-a2", "mrfa-a3", "tpsm-4", "s2d-4", "matched"]
# The paper leaves open which prior the models of a table have. Table 4's "Ours full" and the last row of Table 6 have
# the numbers of Table 3's MTIA + NPMR, the supplement's full models those of its TPSM + NPMR.
TABLES: dict[TableName, Table] = {
    "mrfa-3": Table(
        "MRFA Table 3 (VoxCeleb1)",
        MRFA_COLUMNS,
        {
            "npmr": Row("NPMR", "0.0393 24.41 0.164 1.328 0.133", dict(system="npmr")),
            "affine": Row("FOMM", "0.0386 24.62 0.164 1.254 0.124", dict(refine=False)),
            "affine-refined": Row("FOMM + NPMR", "0.0367 25.15 0.156 1.224 0.114"),
            "tps": Row("TPSM", "0.0370 25.09 0.159 1.231 0.120", dict(prior="tps", refine=False)),
            "tps-refined": Row("TPSM + NPMR", "0.0353 25.51 0.152 1.176 0.107", dict(prior="tps")),
            "tokens": Row("MTIA", "0.0370 25.09 0.159 1.190 0.120", dict(prior="tokens", refine=False)),
            "tokens-refined": Row("MTIA + NPMR", "0.0354 25.57 0.151 1.155 0.108", dict(prior="tokens")),
        },
        seeds=THREE_SEEDS,
    ),
    "mrfa-4": Table(
        "MRFA Table 4 (VoxCeleb1)",
        MRFA_COLUMNS,
        {
            "no-flow": Row("w/o flow", "0.0362 25.48 0.155 1.172 0.112", NO_FLOW),
            "no-occlusion": Row("w/o occlusion", "0.0356 25.48 0.152 1.175 0.112", NO_OCCLUSION),
            "no-warped": Row("w/o warped source feature", "0.0357 25.52 0.153 1.160 0.110", NO_WARPED),
            "no-image": Row("w/o source image", "0.0354 25.45 0.152 1.165 0.113", NO_IMAGE),
            "full": Row("Ours full", "0.0354 25.57 0.151 1.155 0.108"),
        },
        common=dict(prior="tokens"),
        seeds=THREE_SEEDS,
    ),
    "mrfa-5": Table(
        "MRFA Table 5 (VoxCeleb1)",
        MRFA_COLUMNS,
        {
            "10": Row("FOMM-kp10", "0.0386 24.62 0.164 1.254 0.124", dict(points=10, refine=False)),
            "10-refined": Row("NPMR+FOMM-kp10", "0.0367 25.15 0.156 1.224 0.114", dict(points=10)),
            "15": Row("FOMM-kp15", "0.0376 24.91 0.161 1.245 0.123", dict(points=15, refine=False)),
            "15-refined": Row("NPMR+FOMM-kp15", "0.0360 25.34 0.154 1.199 0.108", dict(points=15)),
            "20": Row("FOMM-kp20", "0.0376 24.97 0.160 1.222 0.118", dict(points=20, refine=False)),
            "20-refined": Row("NPMR+FOMM-kp20", "0.0356 25.49 0.152 1.194 0.107", dict(points=20)),
        },
    ),
    # The paper counts scales of 256 pixels. What they end at is what smaller presets can share.
    "mrfa-6": Table(
        "MRFA Table 6 (VoxCeleb1)",
        (*MRFA_COLUMNS, "FPS"),
        {
            "to-eighth": Row("3 (up to H/8)", "0.0355 25.52 0.152 1.164 0.109 21.30", fewer_iterations=3),
            "to-quarter": Row("4 (up to H/4)", "0.0353 25.57 0.151 1.156 0.107 20.45", fewer_iterations=2),
            "to-half": Row("5 (up to H/2)", "0.0354 25.57 0.151 1.151 0.108 19.56", fewer_iterations=1),
            "to-whole": Row("6 (up to H)", "0.0354 25.57 0.151 1.155 0.108 18.57"),
        },
        common=dict(prior="tokens"),
    ),
    "mrfa-a2": Table(
        "MRFA supplement, Table A2 (VoxCeleb1)",
        MRFA_COLUMNS,
        {
            "no-occlusion": Row("w/o occlusion", "0.0354 25.53 0.151 1.177 0.108", NO_OCCLUSION),
            "no-flow": Row("w/o flow", "0.0361 25.40 0.155 1.190 0.117", NO_FLOW),
            # An AKD of 0.183 is what is printed, and surely a misprint of 1.183.
            "no-warped": Row("w/o warped source feature", "0.0355 25.48 0.153 0.183 0.113", NO_WARPED),
            "no-image": Row("w/o source image", "0.0355 25.51 0.151 1.180 0.109", NO_IMAGE),
            "full": Row("Ours full", "0.0353 25.51 0.152 1.176 0.107"),
        },
        common=dict(prior="tps"),
    ),
    "mrfa-a3": Table(
        "MRFA supplement, Table A3 (VoxCeleb1)",
        MRFA_COLUMNS,
        {
            "p0-r2": Row("P = 0, r = 2", "0.0355 25.48 0.151 1.185 0.109", dict(pyramid=0, radius=2)),
            "p0-r3": Row("P = 0, r = 3", "0.0354 25.52 0.151 1.174 0.107", dict(pyramid=0, radius=3)),
            "p0-r4": Row("P = 0, r = 4", "0.0351 25.54 0.151 1.185 0.111", dict(pyramid=0, radius=4)),
            "p1-r2": Row("P = 1, r = 2", "0.0354 25.51 0.151 1.186 0.110", dict(pyramid=1, radius=2)),
            "p1-r3": Row("P = 1, r = 3", "0.0353 25.51 0.151 1.176 0.107", dict(pyramid=1, radius=3)),
            "p1-r4": Row("P = 1, r = 4", "0.0353 25.51 0.151 1.183 0.109", dict(pyramid=1, radius=4)),
            "p2-r2": Row("P = 2, r = 2", "0.0355 25.52 0.151 1.173 0.106", dict(pyramid=2, radius=2)),
            "p2-r3": Row("P = 2, r = 3", "0.0355 25.49 0.152 1.184 0.109", dict(pyramid=2, radius=3)),
            "p2-r4": Row("P = 2, r = 4", "0.0355 25.43 0.152 1.192 0.112", dict(pyramid=2, radius=4)),
        },
        common=dict(prior="tps"),
    ),
    # Without the rows before, MRAA and those of a single mask, which are other models than ours, and without "+ L_bg":
    # our background's predictor has no use for that loss (Eq. 12). Each row keeps what the one before it added.
    "tpsm-4": Table(
        "TPSM Table 4 (TaiChiHD)",
        ("L1", "AKD", "MKR", "AED"),
        {
            "masks": Row("+ Multi-Masks", "0.046 4.73 0.018 0.150", dict(loss=LossWeights(warp=0.0))),
            "warp": Row("+ L_warp", "0.045 4.57 0.018 0.151"),
        },
        common=dict(system="tpsm"),
    ),
    # In the paper's rows the generator receives the warped source alone; ours always receives the flow as well.
    "s2d-4": Table(
        "S2D Table 4 (VoxCeleb1)",
        ("L1", "FID", "SSIM"),
        {
            "full": Row("Full model", "0.0442 9.82 0.7733"),
            "no-add-motion": Row("no Add_Motion layer", "0.0449 10.20 0.7728", dict(add_motion=False)),
            "no-adain": Row("no AdaIN layer", "0.0449 9.98 0.7725", dict(adain=False)),
            "no-local": Row("no local motion", "0.0454 10.17 0.7729", dict(local_motion=False)),
        },
        common=dict(system="s2d"),
    ),
    # This table is from no paper. MRFA's Table 3 compares two generators, as its code has a coarse stream only with
    # refinement; here both are there with and without. The last two learn from the truth as well.
    "matched": Table(
        "With and without refinement, else alike",
        (),
        {
            "coarse": Row("coarse flow alone", "", dict(refine=False)),
            "refined": Row("refined", ""),
            "coarse-stream": Row("coarse flow alone, coarse stream", "", dict(refine=False, coarse_stream=True)),
            "refined-stream": Row("refined, coarse stream", "", dict(coarse_stream=True)),
            "coarse-taught": Row("coarse flow alone, taught", "", dict(refine=False) | TAUGHT),
            "refined-taught": Row("refined, taught", "", TAUGHT),
        },
        common=dict(prior="tokens"),
        seeds=THREE_SEEDS,
    ),
}


@dataclass
class AblateConfig:
    """Train and measure the rows of a paper's table. The same command after a kill goes on where it stopped."""

    table: tyro.conf.Positional[TableName]
    """Paper and number of the table."""
    rows: tuple[str, ...] | None = None
    """Only these rows ..."""
    seeds: tuple[int, ...] | None = None
    """... with these seeds; 0 1 2 for mrfa-3 and mrfa-4 and 0 for the others unless given."""
    preset: PresetName = "tiny"
    """The sizes of the models."""
    pairs: int = 6000
    """Pairs that each row is trained on, the same for all."""
    output: Path | None = None
    """Folder; runs/ablate/TABLE unless given."""
    parallel: int = 1
    """How many rows are trained side by side."""
    precision: Literal["auto", Precision] = "auto"
    """Of training, as of `train`; models are measured in float32."""
    report: bool = False
    """Train nothing, only write the table of what is there."""
    device: Device = "auto"
    """What computes; the best there is unless given."""

    def check(self) -> None:
        """Raise a `MinimodelError` for a row that the table lacks, for fewer pairs than one batch, or for less than one
        process."""
        for row in self.rows or ():
            check_choice(f"row of {self.table}", row, TABLES[self.table].rows)
        if self.pairs < BATCH:
            raise MinimodelError(f"--pairs is {self.pairs}: expected at least {BATCH}, one batch")
        if self.parallel < 1:
            raise MinimodelError(f"--parallel is {self.parallel}: expected at least 1")

    @property
    def folder(self) -> Path:
        """The folder that holds the table's runs."""
        return self.output or Path("runs/ablate") / self.table


def ablate(config: AblateConfig) -> dict[str, dict]:
    """Train and measure the rows that have no scores yet, print the table and return its rows.

    table.md and table.json are written anew after every run.

    Raises:
        MinimodelError: settings that don't fit, or a folder with runs of other settings.
        TrainingStopped: at the end, if the loss of a run was no longer finite.

    >>> ablate(AblateConfig("mrfa-3", rows=("affine", "affine-refined"), seeds=(0,)))
    """
    config.check()
    table = TABLES[config.table]
    begin(config)
    # A run that is listed twice is trained once.
    runs = dict.fromkeys((row, seed) for seed in config.seeds or table.seeds for row in config.rows or table.rows)
    todo = [] if config.report else [run for run in runs if not scores_path(config, *run).exists()]
    results = in_processes(config, todo) if config.parallel > 1 else one_by_one(config, todo)
    stopped = []
    for row, seed, complaint in results:
        if complaint is not None:
            stopped.append(f"{row} with seed {seed}: {complaint}")
        write_table(config)
    rows, text = write_table(config)
    print(f"\n{text}")
    if stopped:
        raise TrainingStopped("; ".join(stopped))
    return rows


def begin(config: AblateConfig) -> None:
    """Make the folder and its config.json. Raises `MinimodelError` if the folder holds runs of other settings, or no
    runs where only a report was asked for."""
    settings = dict(table=config.table, preset=config.preset, pairs=config.pairs)
    path = config.folder / "config.json"
    if path.exists():
        there = json.loads(path.read_text())
        if there != settings:
            raise MinimodelError(
                f"{config.folder}: holds runs of {there}, asked for are {settings}; choose another --output"
            )
        return
    if config.report:
        raise MinimodelError(f"{config.folder}: holds no runs to report")
    config.folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(settings, indent=2) + "\n")


def one_by_one(config: AblateConfig, todo: list[tuple[str, int]]) -> Iterator[tuple[str, int, str | None]]:
    """Train the runs in this process, one after the other. Yields row, seed and the reason why the run stopped early
    (None if it didn't), as each run ends."""
    for index, (row, seed) in enumerate(todo):
        print(f"\n{row}, seed {seed} ({index + 1} of {len(todo)})", flush=True)
        yield row, seed, train_row(config, row, seed)


def in_processes(config: AblateConfig, todo: list[tuple[str, int]]) -> Iterator[tuple[str, int, str | None]]:
    """Train ``config.parallel`` runs at a time, each in a process of its own with one thread. Yields as `one_by_one`
    does. The output of each run goes into the run's log.txt. Raises `TrainingStopped` if a process dies."""
    context = multiprocessing.get_context("spawn")  # a forked process can't use the GPU
    with ProcessPoolExecutor(config.parallel, mp_context=context, initializer=start_process) as pool:
        runs = {pool.submit(train_row_quietly, config, *run): run for run in todo}
        try:
            for future in tqdm(as_completed(runs), total=len(runs), unit=" runs", dynamic_ncols=True):
                yield *runs[future], future.result()
        except BrokenProcessPool as error:
            message = "a process ended before its row was done (for want of memory? fewer --parallel need less)"
            raise TrainingStopped(f"{message}; the same command goes on") from error
        except KeyboardInterrupt:  # which reaches this process alone
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def start_process() -> None:
    """Prepare a worker process: one thread, and an end as soon as its parent process ends. Otherwise a worker that is
    left over and the next command would train the same row."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all, and the parent ends the others ...
    signal.signal(signal.SIGTERM, _end)  # ... so that they delete what is half-written

    def follow() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


ended = threading.Event()  # by SIGTERM, in a worker process


def _end(number: int, frame: object) -> None:
    ended.set()
    raise SystemExit(128 + number)


def train_row_quietly(config: AblateConfig, row: str, seed: int) -> str | None:
    """Call `train_row` with its output appended to log.txt in the run's folder."""
    if ended.is_set():  # the pool hands out one row more than it has processes
        return "stopped"
    path = scores_path(config, row, seed).parent / "log.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        return train_row(config, row, seed)


def train_row(config: AblateConfig, row: str, seed: int) -> str | None:
    """Train one row, measure it and write its scores. Training goes on from the run's checkpoint if there is one.
    Returns the reason why training stopped early, or None."""
    path = scores_path(config, row, seed)
    training, sizes = settings(config, row, seed)
    try:
        model = train(training, **sizes)
    except TrainingStopped as error:
        return str(error)
    clips = load_evaluation("synthetic", model.image_size)
    features = load_features().to(next(model.parameters()).device)
    write_whole(path, json.dumps(evaluate(model, clips, features).rows, indent=2) + "\n")
    return None


def settings(config: AblateConfig, row: str, seed: int) -> tuple[TrainConfig, dict]:
    """The configuration and the model's sizes with which `train` is called for a row and a seed."""
    table = TABLES[config.table]
    change = table.common | table.rows[row].change
    if table.rows[row].fewer_iterations:
        change["iterations"] = PRESETS[config.preset].iterations - table.rows[row].fewer_iterations
    of_training = {known.name for known in fields(TrainConfig)}
    options = {name: value for name, value in change.items() if name in of_training}
    sizes = {name: value for name, value in change.items() if name not in of_training}
    output = scores_path(config, row, seed).parent
    shared: dict[str, Any] = dict(preset=config.preset, batch=BATCH, steps=config.pairs // BATCH)
    shared |= dict(device=config.device, precision=config.precision)
    return TrainConfig(output, seed=seed, **shared, **options), sizes


def scores_path(config: AblateConfig, row: str, seed: int) -> Path:
    """The file of a run's scores: FOLDER/ROW/seed-SEED/scores.json."""
    return config.folder / row / f"seed-{seed}" / "scores.json"


def write_table(config: AblateConfig) -> tuple[dict[str, dict], str]:
    """Write table.json and table.md from all finished runs. Returns the rows, with mean and standard deviation over
    seeds of each measure, and the text of table.md."""
    table = TABLES[config.table]
    rows, lines = {}, {}
    for name, row in table.rows.items():
        done: dict[int, dict[str, float]] = {}
        for path in sorted(config.folder.glob(f"{name}/seed-*/scores.json")):
            scores = json.loads(path.read_text())
            done[int(path.parent.name.removeprefix("seed-"))] = scores["model"]
            lines = {line: scores[line] for line in ("copy", "oracle")}
        measures: dict[str, float] = next(iter(done.values()), {})
        values = {measure: {seed: scores[measure] for seed, scores in done.items()} for measure in measures}
        rows[name] = dict(
            label=row.label,
            scores={measure: summary(list(of_seeds.values())) for measure, of_seeds in values.items()},
            seeds=values,
            paper=dict(zip(table.columns, row.paper.split(), strict=True)),
        )
    text = markdown(config, rows, lines)
    about = dict(source=table.source, table=config.table, preset=config.preset, pairs=config.pairs)
    write_whole(config.folder / "table.json", json.dumps(about | dict(rows=rows, lines=lines), indent=2) + "\n")
    write_whole(config.folder / "table.md", text)
    return rows, text


def summary(values: list[float]) -> dict[str, float | None]:
    """Mean, and standard deviation of a sample; None for the deviation of a single value."""
    return dict(mean=statistics.mean(values), deviation=statistics.stdev(values) if len(values) > 1 else None)


def markdown(config: AblateConfig, rows: dict[str, dict], lines: dict[str, dict[str, float]]) -> str:
    """The table as Markdown: the lines *copy* and *oracle*, then each row's scores beside the paper's."""
    table = TABLES[config.table]
    measures = next((list(row["scores"]) for row in rows.values() if row["scores"]), [])
    heads = ["", "seeds", *measures, *(f"paper's {column}" for column in table.columns)]
    cells = []
    for line, values in lines.items():
        cells.append([line, "", *(shown(values.get(measure)) for measure in measures), *[""] * len(table.columns)])
    for row in rows.values():
        ours = [shown(**row["scores"][measure]) if row["scores"] else "" for measure in measures]
        seeds = len(next(iter(row["seeds"].values()), {}))
        cells.append([row["label"], str(seeds or ""), *ours, *row["paper"].values()])
    text = "".join(f"| {' | '.join(row)} |\n" for row in [heads, ["---"] * len(heads), *cells])
    about = f"{table.source}: preset {config.preset}, {config.pairs} pairs a row; mean ± deviation over seeds."
    return f"{about}\n\n{text}"


def shown(mean: float | None, deviation: float | None = None) -> str:
    """A mean, with its deviation if there is one, as text: four decimals below 1, otherwise two. Empty for None."""
    if mean is None:
        return ""
    digits = 4 if abs(mean) < 1 else 2
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text)
