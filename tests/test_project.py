"""The three places that name dependencies agree, and the project names nothing outside itself."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def canonical(name):
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()


def test_the_lock_pins_every_dependency_and_torch_as_agreed():
    pins = {canonical(name) for name in locked()}
    needed = project()["dependencies"] + project()["optional-dependencies"]["dev"]
    assert {canonical(name) for name in needed} <= pins
    assert locked()["torch"] == "2.13.0"


def test_conda_takes_its_versions_from_the_lock():
    environment = (ROOT / "environment.yml").read_text()
    assert "- -r requirements.lock" in environment and "- -e ." in environment
    python = re.search(r"python=([\d.]+)", environment)[1]
    assert python == project()["requires-python"].removeprefix(">=")


def test_what_runs_is_what_the_lock_says():
    for name in ("torch", "einops", "nbval", "av", "safetensors"):
        assert version(name).split("+")[0] == locked()[name]


def test_every_module_is_packaged():
    finder = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert finder == {"include": ["minimodel*"], "namespaces": False}
    # Without namespaces a folder is a package, and ships, only if it has an __init__.py; so have all above it.
    folders = {path.parent for path in (ROOT / "minimodel").rglob("*.py")}
    assert ROOT / "minimodel" / "data" / "faces" in folders
    for folder in folders:
        assert all((above / "__init__.py").exists() for above in (folder, *folder.parents) if ROOT in above.parents)
