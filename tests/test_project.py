"""The three places that name dependencies agree, and the project names nothing outside itself."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def canonical(name):
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()


def needed():
    extras = project()["optional-dependencies"]
    assert extras["dev"][0] == "minimodel[notebooks]"
    return [Requirement(text) for text in (*project()["dependencies"], *extras["notebooks"], *extras["dev"][1:])]


def test_the_lock_pins_every_dependency_and_torch_as_agreed():
    pins = {canonical(name) for name in locked()}
    assert {canonical(requirement.name) for requirement in needed()} <= pins
    assert locked()["torch"] == "2.13.0"


def test_every_dependency_has_a_lower_bound_that_the_lock_keeps():
    pins = {canonical(name): pin for name, pin in locked().items()}
    for requirement in needed():
        assert [bound.operator for bound in requirement.specifier] == [">="], requirement
        assert requirement.specifier.contains(pins[canonical(requirement.name)]), requirement


def test_conda_takes_its_versions_from_the_lock():
    environment = (ROOT / "environment.yml").read_text()
    assert "- -r requirements.lock" in environment and "- -e ." in environment
    python = re.search(r"python=([\d.]+)", environment)[1]
    assert python == project()["requires-python"].removeprefix(">=")


def test_what_runs_is_what_the_lock_says():
    for name in ("torch", "einops", "nbval", "av", "safetensors"):
        assert version(name).split("+")[0] == locked()[name]


def test_the_citation_names_this_version_and_each_paper_with_its_arxiv_id():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project()["version"]
    assert project()["license"] == f"{citation['license']} AND BSD-2-Clause"  # the latter is LPIPS's
    papers = {paper["title"]: paper for paper in citation["references"]}
    assert {"2310.13912", "2203.14367", "2109.00471"} <= {
        identifier["value"].removeprefix("arXiv:") for paper in papers.values() for identifier in paper["identifiers"]
    }
    assert f"## {project()['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_module_is_packaged():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert tools["package-data"] == {"minimodel": ["py.typed", "weights/*"]}
    assert (ROOT / "minimodel" / "py.typed").exists()
    finder = tools["packages"]["find"]
    assert finder == {"include": ["minimodel*"], "namespaces": False}
    # Without namespaces a folder is a package, and ships, only if it has an __init__.py; so have all above it.
    folders = {path.parent for path in (ROOT / "minimodel").rglob("*.py")}
    assert ROOT / "minimodel" / "data" / "faces" in folders
    for folder in folders:
        assert all((above / "__init__.py").exists() for above in (folder, *folder.parents) if ROOT in above.parents)
