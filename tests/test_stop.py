"""SIGTERM and Ctrl-C end a command in one line, and leave nothing half-written."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from minimodel.__main__ import main
from minimodel.errors import MinimodelError
from minimodel.saving import whole_file

ROOT = Path(__file__).parents[1]
BENCH = ["bench", "--presets", "tiny"]


@pytest.fixture(autouse=True)
def heard():
    """Shells start jobs in the background with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.2)  # it arrives here, if not before


def plain(number, path):
    with whole_file(path) as unfinished:
        unfinished.write_text("half")
        send(number)


bars = []


def while_a_bar_is_shown(number, path):
    bars.append(tqdm(total=3))  # which nobody else closes
    bars[-1].update()
    plain(number, path)


def and_becomes_another_error(number, path):
    """As where a library answers to an exception of its callback with one of its own."""
    try:
        plain(number, path)
    except KeyboardInterrupt:
        raise MinimodelError("can't be written") from None


def and_becomes_a_bug(number, path):
    try:
        plain(number, path)
    finally:
        raise RuntimeError("unexpected")


def in_a_destructor(number, path):
    """Where Python can't raise it."""

    class Slow:
        def __del__(self):
            send(number)

    with whole_file(path):
        Slow()
        gc.collect()
        time.sleep(5)
        pytest.fail("went on")


def and_again_while_cleaning_up(number, path):
    try:
        plain(number, path)
    finally:
        send(number)
        send(signal.SIGINT)
        path.with_name("cleaned").touch()


WAYS = [plain, while_a_bar_is_shown, and_becomes_another_error, and_becomes_a_bug, in_a_destructor]
WAYS += [and_again_while_cleaning_up]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_signal_is_one_line_and_nothing_stays(tmp_path, monkeypatch, capsys, way, number, code):
    monkeypatch.setattr("minimodel.commands.bench.bench", lambda config: way(number, tmp_path / "film.mp4"))
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)], sys.unraisablehook
    assert main(BENCH) in (code, 130) if way is and_again_while_cleaning_up else main(BENCH) == code
    assert ([signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)], sys.unraisablehook) == before
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == (["cleaned"] if way is and_again_while_cleaning_up else [])
    said = capsys.readouterr().err
    assert said.endswith("minimodel: stopped\n") and "Traceback" not in said
    assert said == "minimodel: stopped\n" or (way is while_a_bar_is_shown and "\nminimodel" in said)


def test_a_job_in_the_background_doesnt_hear_the_keyboard(monkeypatch):
    monkeypatch.setattr("minimodel.commands.bench.bench", lambda config: send(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert main(BENCH) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_commands_run_in_other_threads_too(monkeypatch):
    codes = []
    monkeypatch.setattr("minimodel.commands.bench.bench", lambda config: None)
    thread = threading.Thread(target=lambda: codes.append(main(BENCH)))
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_torch_is_imported_is_one_line_too(number, code):
    script = (
        "import sys, os, signal, importlib.abc\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == 'torch.nn': os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from minimodel.__main__ import main\n"
        "sys.exit(main(['bench', '--presets', 'tiny']))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (code, "minimodel: stopped\n")


def test_the_package_itself_loads_no_torch():
    script = "import sys, minimodel; print('torch' in sys.modules, minimodel.warp.__name__, 'torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "warp", "True"]
