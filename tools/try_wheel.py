"""Build the wheel, install it into an empty environment outside the checkout, and animate with it: ``make wheel``.

What only works beside its sources is found here: a module or a weight file that isn't packaged, a dependency that isn't
declared, a path into the checkout. The wheel stays in build/wheel.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "wheel"
PACKAGE = ROOT / "minimodel"
# Run by the new environment's Python: the package is the installed one, and the film is as long as its driving film.
CHECK = """
import sys
from pathlib import Path
import imageio.v3 as iio
import minimodel
assert Path(minimodel.__file__).is_relative_to(sys.prefix), minimodel.__file__
assert not [path for path in sys.path if Path(path).resolve() == Path(sys.argv[1])], sys.path
made, driving = (iio.improps(name, plugin="pyav").shape for name in ("out.mp4", "driving.mp4"))
assert made[0] == driving[0] > 10 and made[3] == 3, (made, driving)
print(f"animated {made[0]} frames of {made[2]} x {made[1]} pixels")
"""


def build() -> Path:
    """The path of a wheel, made afresh of the checkout."""
    for leftover in (FOLDER, ROOT / "build" / "lib"):  # setuptools packs what an older build left there
        shutil.rmtree(leftover, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", FOLDER, ROOT], check=True)
    (wheel,) = FOLDER.glob("minimodel-*.whl")
    return wheel


def missing_from(wheel: Path) -> set[str]:
    """Files of the package, but for caches, that aren't in the wheel."""
    needed = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    return {path.relative_to(ROOT).as_posix() for path in needed} - set(ZipFile(wheel).namelist())


def animate_with(wheel: Path, folder: Path) -> None:
    """Install ``wheel`` into an environment of its own in ``folder``, in the lock's versions, and animate there."""
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    # Neither the caller's packages nor the checkout are to be found.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def call(program: str, *arguments: str | Path) -> None:
        subprocess.run([programs / program, *arguments], cwd=folder, env=environment, check=True)

    call("python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "requirements.lock", wheel)
    call("python", "-m", "pip", "check")
    shutil.copy(ROOT / "data_samples" / "elif.png", folder / "source.png")
    shutil.copy(ROOT / "data_samples" / "dev.mp4", folder / "driving.mp4")
    call("minimodel", "animate", "--source", "source.png", "--driving", "driving.mp4", "--output", "out.mp4")
    call("python", "-c", CHECK, ROOT)


if __name__ == "__main__":
    made = build()
    if missing := missing_from(made):
        sys.exit(f"{made}: lacks {', '.join(sorted(missing))}")
    print(f"{made.name}: {made.stat().st_size / 1e6:.1f} MB, {len(ZipFile(made).namelist())} files")
    with tempfile.TemporaryDirectory() as place:
        animate_with(made, Path(place))
