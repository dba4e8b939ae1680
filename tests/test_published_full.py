"""Full-size published models against what the published networks gave, from a folder that isn't part of the project.

The environment variable MINIMODEL_PUBLISHED names the folder. For each model it holds NAME.json (``weights``: each
entry's shape, and the recipe of its random numbers) and NAME.npz (what the published network gave on a CPU); input.npz
holds the source and the driving picture. Without the folder these tests are skipped; with it they take minutes.
"""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from minimodel.published.model import PublishedModel
from minimodel.published.storing import import_checkpoint
from tests.published_layouts import FULL, LAYOUTS, gaussian

FOLDER = Path(os.environ.get("MINIMODEL_PUBLISHED", "/nonexistent"))
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="MINIMODEL_PUBLISHED names no folder of published answers")
MODELS = {
    "fomm-vox-256": "fomm",
    "fomm-vox-256-align": "fomm",
    "tpsm-vox-256": "tpsm",
    "tpsm-vox-256-background": "tpsm",
    "mtia-vox": "mtia",
    **{f"mrfa-{p}-{r}": f"mrfa-{p}-{r}" for p in ("fomm", "tpsm", "mtia") for r in ("prior-only", "refined")},
}
TOLERANCE = 1e-4


def recipe(name: str, entry: dict) -> torch.Tensor:
    """The numbers with which the published network was run."""
    shape = tuple(entry["shape"])
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    if entry.get("buffer"):
        return gaussian(13).expand(shape).clone()
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    starts = {"identity": [1, 0, 0, 1], "affine": [1, 0, 0.02, 0, 1, -0.01]}
    offset = np.resize(starts[entry["offset"]], shape) if isinstance(entry["offset"], str) else entry["offset"]
    return torch.from_numpy((offset + np.float32(entry["scale"]) * draw).astype(np.float32))


def entries(name: str) -> dict[str, dict]:
    return json.loads((FOLDER / f"{name}.json").read_text())["weights"]


@pytest.mark.parametrize("name", MODELS)
def test_layouts_of_these_tests_are_the_published_ones(name):
    shapes = {entry: tuple(values["shape"]) for entry, values in entries(name).items()}
    assert LAYOUTS[MODELS[name]](FULL) == shapes


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_the_published_network_is_reproduced(tmp_path, name):
    sections: dict = {"epoch": 99}
    for entry, values in entries(name).items():
        section, weight = entry.split(".", 1)
        sections.setdefault(section, {})[weight] = recipe(entry, values)
    torch.save(sections, tmp_path / "checkpoint.pth.tar")
    import_checkpoint(tmp_path / "checkpoint.pth.tar", tmp_path / "w.safetensors", align_corners=name.endswith("align"))
    (tmp_path / "checkpoint.pth.tar").unlink()
    model = PublishedModel.load(tmp_path / "w.safetensors")
    pictures = np.load(FOLDER / "input.npz")
    source, driving = (torch.from_numpy(pictures[key]).float()[None] / 255 for key in ("source", "driving"))

    state = model.encode_source(source)
    motion = model.encode_driving(driving, move_background=name.endswith("background"))
    output = model.render(state, motion)
    coarse = output.coarse

    grid = coarse.grid.permute(0, 2, 3, 1)
    given = dict(
        source_points=state.motion.points,
        driving_points=motion.points,
        source_affine=state.motion.affine,
        driving_affine=motion.affine,
        masks=coarse.masks,
        coarse_mask=coarse.masks,
        grid=grid,
        coarse_deformation=grid,
        occlusion=torch.sigmoid(coarse.occlusion),
        coarse_occlusion=coarse.occlusion,
        warped=output.warped_source,
        image=output.image,
    )
    given |= {f"occlusion_{i}": torch.sigmoid(occlusion) for i, occlusion in enumerate(coarse.occlusions)}
    expected = dict(np.load(FOLDER / f"{name}.npz"))
    if "background" in expected:
        given["background"] = coarse.background
        expected["background"] = expected["background"][:, :2]  # the third row is 0 0 1
    compared = [key for key in expected if key in given]
    assert {"source_points", "driving_points", "image"} < set(compared)
    for key in compared:
        error = (given[key] - torch.from_numpy(expected[key])).abs().max().item()
        print(f"{name}: {key} {error:.1e}")
        assert error <= TOLERANCE, key
