"""How the package is put together: who imports whom, and what may only stand in one place.

These tests read the code, so that a rule that is broken fails with the place where it is broken.
"""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import minimodel

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minimodel"
# A module imports only what stands above it. `data`, `evaluation` and so on are folders.
ORDER = """
errors runtime warping motion saving system_map show
affine blocks tps keypoints losses background tokens dense_motion landmarks landmark_motion landmark_flow
correlation refinement generator features transfer composition
config priors model published data evaluation training commands __main__
""".split()  # noqa: SIM905
# (importer, imported): only inside a function, so that it is loaded when it is needed.
LATER = {("model", "published.model")}  # weights that `import-checkpoint` wrote are loaded like any others
LONGEST = 450  # lines: one sitting


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def imports(tree):
    """(name of a module of the package, line, whether the import is inside a function)."""
    inside = {id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    for node in ast.walk(tree):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        for full in found:
            if full.split(".")[0] == "minimodel":
                short = full.removeprefix("minimodel").removeprefix(".")
                # `from minimodel.tps import part_flows` names a function: the module is what is in front.
                yield (short if short in FILES else short.rpartition(".")[0]), node.lineno, id(node) in inside


def graph():
    found = {name: {other for other, *_ in imports(tree)} for name, tree in TREES.items()}
    for importer, imported in LATER:
        found[importer].discard(imported)
    return found


def test_every_module_has_a_place_in_the_order():
    assert {name.split(".")[0] for name in FILES if name} == set(ORDER)


def test_a_module_imports_only_what_stands_above_it():
    wrong = []
    for name, tree in TREES.items():
        if not name:
            continue
        place = ORDER.index(name.split(".")[0])
        for other, line, inside in imports(tree):
            later = (name, other) in LATER and inside
            if not later and (not other or ORDER.index(other.split(".")[0]) > place):
                wrong.append(f"{name}, line {line}: imports {other or 'the package itself'}")
    assert not wrong, wrong


def test_no_modules_import_each_other():
    try:
        list(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_sampling_and_units_of_flows_are_in_warping_alone():
    wrong = []
    for name, tree in TREES.items():
        if name == "warping" or name.startswith("data.faces"):  # the renderer casts rays of its own
            continue
        for node in ast.walk(tree):
            word = getattr(node, "attr", getattr(node, "id", ""))
            if word in ("grid_sample", "affine_grid"):
                wrong.append(f"{name}, line {node.lineno}: {word}")
            if re.fullmatch(r"_?half_(size|extent)s?", word):
                wrong.append(f"{name}, line {node.lineno}: {word}; flow_to_pixels and flow_from_pixels are in warping")
        for number, line in enumerate(FILES[name].read_text().splitlines(), 1):
            if re.search(r"\bflow\w* *[*/] *(torch\.tensor|\w*(half|extent|width|height|pixels))", line):
                wrong.append(f"{name}, line {number}: {line.strip()}")
    assert not wrong, wrong


# Where a part is made from its name. `published` makes networks of its own from a configuration of its own.
BUILDERS = {
    "config": None,
    "published.names": None,
    "published.networks": None,
    "priors": {"build_prior", "_dense_motion", "_landmark_motion"},
    "model": {"build_generator"},
}


def named_parts(tree):
    """Comparisons of a configuration's ``prior``, ``generator`` or ``system`` with text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Match):
            sides = [node.subject]
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            texts = (n for side in sides for n in ast.walk(side) if isinstance(n, ast.Constant))
            if not any(isinstance(text.value, str) for text in texts):
                continue
        else:
            continue
        if any(isinstance(side, ast.Attribute) and side.attr in ("prior", "generator", "system") for side in sides):
            yield node


def test_names_of_parts_are_compared_only_where_parts_are_made():
    wrong = []
    for name, tree in TREES.items():
        functions = BUILDERS.get(name, set())
        if functions is None:
            continue
        allowed = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef) and function.name in functions
            for node in ast.walk(function)
        }
        wrong += [f"{name}, line {node.lineno}" for node in named_parts(tree) if id(node) not in allowed]
    assert not wrong, wrong


def parts():
    """Names of all classes that are a `Prior` or a `Generator`."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {"Prior", "Generator"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return found


def test_no_code_asks_which_prior_or_generator_it_has():
    known = parts()
    assert {"AffinePrior", "SplinePrior", "LandmarkPrior", "NoPrior", "GatedUNet", "ResidualGenerator"} <= known
    wrong = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            asks = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass")
            if asks and known & {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}:
                wrong.append(f"{name}, line {node.lineno}")
    assert not wrong, wrong


def test_a_file_is_one_sitting():
    lengths = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert not {name: length for name, length in lengths.items() if length > LONGEST}


def test_the_taught_modules_load_nothing_that_only_training_measuring_and_drawing_need():
    taught = "warping, tps, correlation, refinement, landmark_motion"
    script = f"from minimodel import {taught}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(run.stdout.split())
    assert "minimodel.landmark_motion" in loaded
    assert not loaded & {"accelerate", "matplotlib", "skimage", "torchmetrics"}


def test_the_public_face_is_there_with_its_types():
    assert {"AnimationModel", "Motion", "warp", "available_weights", "__version__"} <= set(minimodel.__all__)
    assert not [name for name in minimodel.__all__ if not hasattr(minimodel, name)]
    assert (PACKAGE / "py.typed").exists()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert "py.typed" in settings["setuptools"]["package-data"]["minimodel"]


def test_few_lines_are_hidden_from_the_type_checker_and_each_says_why():
    found = []
    for name, path in FILES.items():
        found += [(name, line) for line in path.read_text().splitlines() if "type: ignore" in line]
    assert len(found) <= 20
    assert not [where for where in found if not re.search(r"# type: ignore\[[\w-]+\]  # \w+", where[1])]
