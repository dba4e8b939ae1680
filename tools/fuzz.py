"""What damaged files do: `animate` is given mutations of good ones, and must end with a film, or in one line.

`python tools/fuzz.py --count 300` makes the mutations that the numbers 0 to 299 stand for: bytes flipped, files cut,
joined, renamed, headers swapped, stretches lost, of photos, films, folders of frames, landmarks and weights. Each is
made anew in its own folder from its number alone, so `--first 17 --count 1 --keep here` shows case 17. Wrong is:
an exception that reaches the user, a process that dies or takes longer than a minute, a line too many, a half-written
file, a film that can't be read, and frames that are missing without a word.
"""

import argparse
import contextlib
import io
import json
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST, WAIT = 60, 600  # seconds of work for one case, and of waiting for it on a busy machine
FRAMES = 6  # of each film
SEEDS = ("photo.png", "photo.jpg", "film.mp4", "sound.mp4", "film.mkv", "film.gif", "frames", "landmarks.npz")
SEEDS += ("weights.safetensors",)
MUTATIONS = ("flip", "cut", "join", "rename", "header", "stretch")
SUFFIXES = (".png", ".jpg", ".mp4", ".gif", ".mkv", ".npz", ".safetensors", ".MP4", ".txt", "")


def make_seeds(folder: Path) -> None:
    """Good files of every kind."""
    import numpy as np
    import torch
    from PIL import Image

    from minimodel.data import synthetic
    from minimodel.data.framing import landmarks_file
    from minimodel.data.video import Clip
    from minimodel.data.writer import VideoWriter
    from minimodel.model import AnimationModel
    from minimodel.warping import to_pixels

    torch.manual_seed(0)
    faces = synthetic.Faces(synthetic.sample_identities(1, 0)[0], synthetic.animate_states(FRAMES, 0))
    pictures = synthetic.render(faces, 64)
    photo = Image.fromarray((pictures[0] * 255).byte().permute(1, 2, 0).numpy())
    photo.save(folder / "photo.png")
    photo.save(folder / "photo.jpg", quality=95)
    (folder / "frames").mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray((picture * 255).byte().permute(1, 2, 0).numpy()).save(folder / "frames" / f"{number}.png")
    for name in ("film.mp4", "film.gif", "film.mkv"):
        with VideoWriter(folder / name, every=3) as film:
            for picture in pictures:
                film.write(picture)
    _with_sound(folder, pictures)
    points = to_pixels(synthetic.landmarks(faces), (64, 64))
    found = torch.ones(FRAMES, dtype=torch.bool)
    (folder / "landmarks.npz").write_bytes(landmarks_file(points, found, size=(64, 64), fps=Fraction(25)))
    AnimationModel.from_preset("tiny").save(folder / "weights.safetensors")
    AnimationModel.from_preset("tiny", system="s2d").save(folder / "by-landmarks.safetensors")
    assert len(Clip(folder / "sound.mp4")) == FRAMES and np.load(folder / "landmarks.npz")


def _with_sound(folder: Path, pictures) -> None:
    """A film with its index first, as those of the web, and a tone."""
    import av
    import numpy as np

    with av.open(str(folder / "sound.mp4"), "w", options={"movflags": "faststart"}) as film:
        stream = film.add_stream("libx264", rate=25, options={"bf": "2"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        sound = film.add_stream("aac", rate=44100, layout="mono")
        for picture in pictures:
            array = (picture * 255).byte().permute(1, 2, 0).contiguous().numpy()
            film.mux(stream.encode(av.VideoFrame.from_ndarray(array)))
        tone = np.sin(np.arange(44100 * FRAMES // 25) / 20).astype(np.float32)[None]
        for start in range(0, tone.shape[1] - 1023, 1024):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(tone[:, start : start + 1024]), "fltp", "mono")
            frame.sample_rate, frame.pts = 44100, start
            film.mux(sound.encode(frame))
        film.mux(sound.encode())
        film.mux(stream.encode())


def mutate(number: int, seeds: Path, folder: Path) -> tuple[str, str, Path]:
    """Make the mutation of this number: (seed, mutation, the changed file or folder)."""
    draw = random.Random(number)
    seed = SEEDS[number % len(SEEDS)]
    mutation = MUTATIONS[number // len(SEEDS) % len(MUTATIONS)]
    path = folder / seed
    if (seeds / seed).is_dir():
        shutil.copytree(seeds / seed, path)
        changed = path / f"{draw.randrange(FRAMES)}.png"
    else:
        shutil.copy(seeds / seed, path)
        changed = path
    data = bytearray(changed.read_bytes())
    other = draw.choice([name for name in SEEDS if name != "frames"])
    size = len(data)
    if mutation == "flip":
        # Most of a file is its payload; what hurts are the first bytes, and in films the last.
        places = [
            lambda: draw.randrange(size),
            lambda: draw.randrange(min(size, 512)),
            lambda: size - 1 - draw.randrange(min(size, 900)),
        ]
        where = draw.choice(places)
        for _ in range(draw.choice((1, 4, 32))):
            data[where()] ^= 1 << draw.randrange(8)
    elif mutation == "cut":
        del data[draw.randrange(size) :]
    elif mutation == "join":
        data += (seeds / draw.choice((other, seed if seed != "frames" else other))).read_bytes()
    elif mutation == "header":
        length = draw.choice((8, 64, 512))
        data[:length] = (seeds / other).read_bytes()[:length]
    elif mutation == "stretch":
        start = draw.randrange(size)
        stop = start + draw.randrange(1, max(2, size // 5))
        data[start:stop] = draw.choice(
            (bytes(len(data[start:stop])), bytes(byte ^ 0x5A for byte in data[start:stop]), b"")
        )
    changed.write_bytes(bytes(data))
    if mutation == "rename":
        renamed = changed.with_name(changed.stem + draw.choice(SUFFIXES))
        changed.rename(renamed)
        path = renamed if changed == path else path
    return seed, mutation, path


def run_case(number: int, seeds: Path, folder: Path) -> dict:
    """Make a mutation, animate with it, and list what is wrong."""
    import av

    from minimodel.__main__ import main

    seed, mutation, changed = mutate(number, seeds, folder)
    roles = dict(source=seeds / "photo.png", driving=seeds / "film.mp4", weights=seeds / "weights.safetensors")
    if seed == "landmarks.npz":
        roles["weights"] = seeds / "by-landmarks.safetensors"
    role = {"photo.png": "source", "photo.jpg": "source", "weights.safetensors": "weights"}.get(seed, "driving")
    roles[role] = changed
    output = folder / ("out.gif" if number % 7 == 0 else "out.mp4")
    before = {path.name for path in folder.iterdir()}
    words = [
        "animate",
        "--output",
        str(output),
        *(word for name, path in roles.items() for word in (f"--{name}", str(path))),
        *("--crop", "none", "--mode", "standard"),  # what is tried here are files: random weights find no poses
    ]
    out, err = io.StringIO(), io.StringIO()
    wrong, code = [], None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as error:
            code = error.code
        except BaseException as error:
            wrong.append(f"traceback: {type(error).__name__}: {error}")
    lines = [
        line
        for line in re.split(r"[\r\n]+", err.getvalue())
        if line.strip() and not re.search(r"\d+%\||\d+ frames \[", line)
    ]
    left = {path.name for path in folder.iterdir()} - before - {output.name}
    if left:
        wrong.append(f"left behind: {sorted(left)}")
    if any(not line.startswith("minimodel: ") for line in lines):
        wrong.append(f"lines that are not ours: {lines}")
    frames = None
    if code == 2:
        refusals = len(lines) - sum("left out" in line or "breaks off" in line or "held" in line for line in lines)
        if output.exists() or not lines or refusals > 1:
            wrong.append(f"refused with {len(lines)} lines, film {'left' if output.exists() else 'not left'}")
    elif code == 0:
        try:
            with av.open(str(output)) as film:
                frames = sum(1 for _ in film.decode(film.streams.video[0]))
        except Exception as error:
            wrong.append(f"a film that can't be read: {error}")
        expected = 1 if roles["driving"].suffix in (".png", ".jpg") else FRAMES
        # A flipped bit may hide a packet from libav, which then knows of nothing that is missing; and what is lost from
        # a .gif, which has no index, may take the end of one frame and the beginning of the next.
        unknowable = mutation == "flip" or (seed, mutation) == ("film.gif", "stretch")
        if frames is not None and role == "driving" and frames < expected and not unknowable and not lines:
            wrong.append(f"{frames} frames without a word")
    elif code is not None:
        wrong.append(f"exit code {code}")
    return dict(number=number, seed=seed, mutation=mutation, code=code, frames=frames, said=lines, wrong=wrong)


class Worker:
    """Another process that runs cases, so that one that dies or hangs is only that."""

    def __init__(self, seeds: Path):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", str(seeds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.lines: queue.Queue = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def __call__(self, number: int, folder: Path) -> dict:
        self.process.stdin.write(json.dumps([number, str(folder)]) + "\n")
        self.process.stdin.flush()
        try:
            line = self.lines.get(timeout=WAIT)
        except queue.Empty:
            return dict(number=number, wrong=[f"hangs for {WAIT} s"])
        if line:
            return json.loads(line)
        signal_number = -self.process.wait()
        worked = f"works longer than {LONGEST} s" if signal_number == signal.SIGPROF else f"died ({-signal_number})"
        return dict(number=number, wrong=[worked])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def work(seeds: Path) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    sys.path.insert(0, str(ROOT))
    for line in sys.stdin:
        number, folder = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, LONGEST)  # which ends the process, whatever it is at
        print(json.dumps(run_case(number, seeds, Path(folder))), file=answers, flush=True)


def fuzz(numbers: range, keep: Path | None = None) -> Iterator[dict]:
    """Run the cases of these numbers, and say what came of each."""
    worker = None
    with tempfile.TemporaryDirectory() as scratch:
        seeds = Path(scratch) / "seeds"
        seeds.mkdir()
        make_seeds(seeds)
        try:
            for number in numbers:
                worker = worker or Worker(seeds)
                folder = (keep or Path(scratch)) / f"{number:04d}"
                folder.mkdir(parents=True)
                result = worker(number, folder)
                yield result
                if "code" not in result:
                    worker = worker.close()
                if keep is None:
                    shutil.rmtree(folder)
        finally:
            if worker:
                worker.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--count", type=int, default=300, help="how many cases")
    parser.add_argument("--keep", type=Path, help="folder in which the mutations stay")
    parser.add_argument("--say", action="store_true", help="also list what isn't wrong")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return 0
    sys.path.insert(0, str(ROOT))
    ends: Counter = Counter()
    for result in fuzz(range(options.first, options.first + options.count), options.keep):
        ends["wrong" if result["wrong"] else "a film" if result["code"] == 0 else "refused"] += 1
        if result["wrong"] or options.say:
            print(json.dumps(result, ensure_ascii=False), flush=True)
    print(", ".join(f"{count} {end}" for end, count in sorted(ends.items())))
    return 1 if ends["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
