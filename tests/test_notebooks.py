"""What holds for every notebook; that they run, and print what they hold, is checked by nbval."""

import ast
import re
from pathlib import Path

import jupytext
import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MARK = re.compile(r"NBVAL_IGNORE_OUTPUT|NBVAL_SKIP|nbval-ignore-output|nbval-skip")


def cells(notebook):
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def test_every_notebook_has_its_text_and_every_text_its_notebook():
    texts = {path.stem for path in FOLDER.glob("*.py")}
    assert NOTEBOOKS and texts == {path.stem for path in NOTEBOOKS}
    assert all(re.fullmatch(r"(\d\d[ab]?|A\d)_[a-z_]+", name) for name in texts)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_notebook_and_text_say_the_same(path):
    assert cells(nbformat.read(path, 4)) == cells(jupytext.read(path.with_suffix(".py")))


def test_the_notebook_is_small(path):
    assert path.stat().st_size <= 2 * 2**20


def test_every_cell_was_executed_in_order_and_none_failed(path):
    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert kinds & {"image/png", "image/jpeg"}


def test_at_most_two_cells_depend_on_the_machine(path):
    marked = [cell for cell in nbformat.read(path, 4).cells if MARK.search(cell.source + str(cell.metadata))]
    assert len(marked) <= 2


def test_a_mark_stands_alone_on_its_line(path):
    """nbval reads a comment with more words in it as an ordinary one, and compares the outputs after all."""
    lines = [line for cell in nbformat.read(path, 4).cells for line in cell.source.splitlines() if MARK.search(line)]
    assert all(MARK.fullmatch(line.removeprefix("# ")) for line in lines)


def test_the_line_that_stands_for_hidden_code_fits_a_narrow_page(path):
    """JupyterLab shows the first line of a folded cell without breaking it."""
    cells = nbformat.read(path, 4).cells
    hidden = [cell for cell in cells if cell.metadata.get("jupyter", {}).get("source_hidden")]
    assert not [line for line in (cell.source.splitlines()[0] for cell in hidden) if len(line) > 92]


# Modules that are there for the command line, and the renderer's inner parts, aren't what the course teaches.
TAUGHT = (
    *(
        "warping",
        "affine",
        "tps",
        "keypoints",
        "tokens",
        "landmarks",
        "landmark_motion",
        "landmark_flow",
        "dense_motion",
        "correlation",
    ),
    *(
        "refinement",
        "generator",
        "losses",
        "features",
        "motion",
        "config",
        "priors",
        "model",
        "show",
        "evaluation/benchmark",
        "evaluation/protocols",
        "evaluation/inception",
        "evaluation/lpips",
        "evaluation/metrics",
        "evaluation/assessors",
        "transfer",
    ),
)
# What notebooks use without saying its name.
WITHOUT_A_CELL = {
    # Networks of others, which are downloaded; their own tests hold them.
    "evaluation/metrics": {"landmark_error"},  # between two people, as `evaluate` prints it
    "evaluation/inception": {"Inception", "load_inception"},
    "evaluation/lpips": {"AlexNet", "VGG16", "load_lpips"},
    "features": {"FaceTasks"},  # what trains the features; it isn't kept
    "losses": {"perceptual_losses"},  # `perceptual_loss` of several pictures at once
    "config": {"System"},  # the rows of `SYSTEMS`
    # What the factory and a benchmark's inner loop are made of.
    "model": {"build_generator", "build_refiner", "build_structure"},
    "evaluation/protocols": {
        *("Renderer", "Scores", "evaluation_mode", "source_of"),
        *("measure_pictures", "measure_truth", "measure_transfer", "render_transfers", "keypoint_distance"),
    },
    # Sizes; whether there is a face; close-ups of eyes and changed pictures, of which the notebook has a paragraph.
    "landmarks": {
        *(
            "DetectorConfig",
            "LandmarkFinder",
            "confidence",
            "eye_places",
            "move_picture",
            "move_points",
            "random_places",
            "sharpness",
        ),
        "soften",
    },
    "landmark_flow": {"Slit"},  # the rows of `SLITS`
    "motion": {"StructureLookup", "TrainingPair"},  # the kind of thing that `Correlation` is; what loss terms look at
    "show": {"Table", "save_picture"},  # what `table` returns; a file, which no cell writes
    "priors": {"Prior"},  # what the five have in common
    "tps": {"backward_spline"},  # a step of `part_flows`
    "transfer": {"own_avd"},  # of published models
}


def public_names(module):
    tree = ast.parse((FOLDER.parent / "minimodel" / f"{module}.py").read_text())
    kinds = ast.FunctionDef | ast.ClassDef
    return {node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")}


@pytest.mark.parametrize("module", TAUGHT)
def test_what_no_cell_uses_is_known(module):
    texts = [path.read_text() for path in NOTEBOOKS]
    code = [cell.source for text in texts for cell in nbformat.reads(text, 4).cells if cell.cell_type == "code"]
    used = set(re.findall(r"\w+", "\n".join(code)))
    assert public_names(module) - used == WITHOUT_A_CELL.get(module, set())
