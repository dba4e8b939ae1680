"""What happens to commands that are stopped at random moments, by SIGKILL and by SIGTERM.

`python tools/kill.py --count 20` stops each of `train`, `animate`, `prepare` and `evaluate` 20 times by each signal,
and then gives the same command again. Wrong is: a file under its final name that isn't whole; after SIGTERM also any
other remains, a traceback, or another exit code than 143; and a second run that doesn't end in the very files of a run
that nobody stopped, which of `train` are its weights and its numbers. The moments follow from each trial's number, but
what a process is at by then does not.

Each run is a fork of this process, so that no time is spent on imports. That needs Linux or macOS.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMANDS = ("train", "animate", "prepare", "evaluate")
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
STEPS, FRAMES = 4, 6
LONGEST = 300  # seconds of a run


def make_inputs(folder: Path) -> None:
    """A photo, weights, and films of rendered faces in folders within folders."""
    import torch

    from minimodel.data import synthetic
    from minimodel.data.writer import VideoWriter
    from minimodel.model import AnimationModel
    from minimodel.show import save_picture

    torch.manual_seed(0)
    AnimationModel.from_preset("tiny").save(folder / "model.safetensors")
    for number in range(2):
        faces = synthetic.Faces(synthetic.sample_identities(1, number), synthetic.animate_states(FRAMES, number))
        pictures = synthetic.render(faces, 64)
        save_picture(pictures[0], folder / "photo.png")
        with VideoWriter(folder / "clips" / f"id{number}" / "film.mp4", every=4) as film:
            for picture in pictures:
                film.write(picture)


def words(command: str, inputs: Path, output: Path) -> list[str]:
    """The command line of a run that writes into the folder ``output``."""
    given = {
        "train": dict(data="synthetic", evaluate=inputs / "clips/id0", output=output / "run", steps=STEPS, batch=2)
        | {"evaluate-minutes": "1e-9"},
        "animate": dict(source=inputs / "photo.png", driving=inputs / "clips/id0/film.mp4", output=output / "out.mp4")
        | dict(weights=inputs / "model.safetensors"),
        "prepare": dict(videos=inputs / "clips", output=output / "made", box="4 4 56", size="64", seconds="0.2"),
        "evaluate": dict(data=inputs / "clips", weights=inputs / "model.safetensors", output=output / "scores.json"),
    }[command]
    line = [command, *(word for name, value in given.items() for word in (f"--{name}", *str(value).split(" ")))]
    return [*line, "--landmarks"] if command == "prepare" else line


def smaller_training() -> None:
    """Every part of `tiny` as small as it gets."""
    from minimodel.config import HourglassSizes
    from minimodel.refinement import UpdaterWidths
    from minimodel.training import loop

    small = HourglassSizes(8, 2, 16)
    sizes = dict(detector=small, dense_motion=small, structure=small, unet=small, structure_features=8, points=3)
    sizes |= dict(image_size=32, iterations=3, updater=UpdaterWidths((8, 8), (8, 8), 8, (8, 8), 8))
    loop.train = partial(loop.train, **sizes)


def minimodel(line: list[str]) -> int:
    """Give a command; -> its exit code."""
    from minimodel.__main__ import main

    return main(line)


def and_list_modules(line: list[str], file: Path) -> int:
    """Give a command, and write down which modules it has loaded."""
    code = minimodel(line)
    file.write_text(
        "\n".join(name for name in sys.modules if name.startswith(("torch", "minimodel", "matplotlib", "av")))
    )
    return code


def fork(work: Callable[[], int | None], said: Path) -> int:
    """Do ``work`` in another process; -> the number of that process, whose exit code is what comes of it. What it says
    goes into a file."""
    said.touch()  # the process may be stopped before it has opened the file
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        with said.open("w") as file:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        code = work() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """The exit code of a process, negative if a signal ended it."""
    deadline = time.monotonic() + LONGEST
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def files(output: Path) -> dict[str, bytes]:
    """What a run has left: names, and the contents that the same run always has."""
    found = {}
    for path in sorted(output.rglob("*")):
        name = str(path.relative_to(output))
        if path.is_file():
            found[name] = path.read_bytes()
        if path.name.startswith("."):  # half-written, perhaps
            continue
        if path.name == "metrics.jsonl":  # the time that a step takes is its own
            rows = map(json.loads, path.read_text().splitlines())
            clocks = ("minutes", "pairs_per_second", "data_share")
            found[name] = str([{key: row[key] for key in row if key not in clocks} for row in rows]).encode()
        elif path.suffix == ".safetensors":  # the order of its metadata is drawn anew each time
            length = 8 + int.from_bytes(found[name][:8], "little")
            header = json.dumps(json.loads(found[name][8:length]), sort_keys=True)
            found[name] = header.encode() + found[name][length:]
        elif path.name == "config.json":
            found[name] = str(json.loads(path.read_text()) | dict(output="")).encode()
        elif path.name == "checkpoint.pt" or "tfevents" in path.name:  # it holds the time, too
            found[name] = b""
    return {name: value for name, value in found.items() if "tfevents" not in name}


def trial(command: str, how: str, moment: float, inputs: Path, folder: Path, whole: dict[str, bytes]) -> dict:
    """Stop a run after ``moment`` seconds, give the command again, and list what is wrong."""
    said, output, wrong = folder / "said.txt", folder / "out", []
    line = words(command, inputs, output)
    child = fork(lambda: minimodel(line), said)
    time.sleep(moment)
    os.kill(child, SIGNALS[how])
    code, text = wait(child), said.read_text()
    left = files(output)
    remains = [name for name in left if name.rpartition("/")[2].startswith(".")]
    final = left.keys() - set(remains)
    if command != "train":  # whose files grow, and are judged by how it goes on
        wrong += [f"{name} isn't whole" for name in final if left[name] != whole.get(name)]
    elif strangers := final - whole.keys():
        wrong.append(f"unknown files {strangers}")
    if how == "SIGTERM":
        if remains:
            wrong.append(f"remains {remains}")
        # Before the command has begun, and after it has ended, the system's own way to end holds.
        if code not in (143, 0, -signal.SIGTERM) or (code == 143) != text.endswith("minimodel: stopped\n"):
            wrong.append(f"exit code {code}, said {text[-500:]!r}")
    if "Traceback" in text:
        wrong.append(f"traceback {text[-2000:]!r}")
    again = wait(fork(lambda: minimodel(line), said))
    if again != 0:
        wrong.append(f"the second run ended with {again}: {said.read_text()[-2000:]!r}")
    else:
        done = files(output)
        differ = [name for name in whole.keys() | done.keys() if whole.get(name) != done.get(name)]
        if differ:
            wrong.append(f"after the second run these differ from a run that wasn't stopped: {differ}")
    return dict(command=command, signal=how, moment=round(moment, 3), code=code, files=len(final), wrong=wrong)


def kill(count: int, commands: tuple[str, ...] = COMMANDS, first: int = 0) -> Iterator[dict]:
    """Try each command and signal ``count`` times, and say what came of each."""
    for module in ("animate", "evaluate", "prepare"):
        import_module(f"minimodel.commands.{module}")
    smaller_training()
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch) / "inputs"
        inputs.mkdir()
        # Elsewhere: torch's threads, once they have computed here, would be missing in the forks, which wait for them.
        assert wait(fork(lambda: make_inputs(inputs), Path(scratch) / "said.txt")) == 0
        for command in commands:
            for name in ("warm", "whole"):
                folder = Path(scratch) / command / name
                folder.mkdir(parents=True)
                line = words(command, inputs, folder / "out")
                began = time.monotonic()
                code = wait(fork(lambda: and_list_modules(line, folder / "modules"), folder / "said.txt"))  # noqa: B023
                took = time.monotonic() - began
                assert code == 0, (folder / "said.txt").read_text()
                for module in (folder / "modules").read_text().split():  # once, here, rather than in each run
                    with contextlib.suppress(Exception):
                        import_module(module)
            whole = files(folder / "out")
            for how in SIGNALS:
                for number in range(first, first + count):
                    folder = Path(scratch) / command / f"{how}-{number}"
                    folder.mkdir()
                    moment = took * random.Random(f"{command} {how} {number}").random()
                    yield trial(command, how, moment, inputs, folder, whole)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="trials of each command and signal")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, which decides the moments")
    parser.add_argument("--commands", nargs="+", default=COMMANDS, choices=COMMANDS)
    parser.add_argument("--say", action="store_true", help="also list what isn't wrong")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    ends: Counter = Counter()
    with contextlib.closing(kill(options.count, tuple(options.commands), options.first)) as trials:
        for result in trials:
            ends["wrong" if result["wrong"] else "ended before" if result["code"] == 0 else "stopped"] += 1
            if result["wrong"] or options.say:
                print(json.dumps(result), flush=True)
    print(", ".join(f"{count} {end}" for end, count in sorted(ends.items())))
    return 1 if ends["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
