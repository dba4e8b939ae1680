"""Exported graphs compute what the model computes, or there are none."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import imageio.v3 as iio
import pytest
import torch
import torch.nn.functional as F

from minimodel.__main__ import main
from minimodel.commands import export as command
from minimodel.commands.export import NEEDED, ExportConfig, compare, export, solve_two_by_two, split
from minimodel.data.video import Clip
from minimodel.errors import MinimodelError
from minimodel.model import AnimationModel

ROOT = Path(__file__).parents[1]
needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in NEEDED), reason="the extra onnx isn't installed"
)


def run_in_turn(folder, load, weights):
    """Run the three graphs of a folder one after the other on new pictures; expects the model's picture."""
    about = json.loads((folder / "model.json").read_text())
    assert (about["weights"], about["size"]) == (weights, 64)
    known = {}
    known["source"], driving = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    for name, image in (("source", known["source"]), ("motion", driving), ("renderer", None)):
        graph = about[name]
        given = known | ({} if image is None else dict(image=image))
        assert {key: list(given[key].shape) for key in graph["inputs"]} == graph["inputs"]
        outputs = load(folder / graph["file"], graph)(*(given[key] for key in graph["inputs"]))
        assert [list(value.shape) for value in outputs] == list(graph["outputs"].values())
        known |= dict(zip(graph["outputs"], outputs, strict=True))
    model = AnimationModel.load(weights)
    with torch.no_grad():
        expected = model.render(model.encode_source(known["source"]), model.encode_driving(driving)).image
    assert (known["image"] - expected).abs().max() < 1e-4
    assert (expected - known["source"]).abs().max() > 1e-2


@pytest.mark.parametrize("weights", ["tiny", "tiny-s2d"])
def test_pt2_graphs_in_turn_are_the_model(weights, tmp_path, capsys):
    made = export(ExportConfig(weights, "pt2", tmp_path / "out"))
    assert made == tmp_path / "out" and "from the model at most" in capsys.readouterr().out
    assert sorted(path.name for path in made.iterdir()) == ["model.json", "motion.pt2", "renderer.pt2", "source.pt2"]
    run_in_turn(made, lambda path, graph: torch.export.load(path).module(), weights)


def test_pt2_graphs_of_a_model_with_landmarks_and_points(tmp_path):
    torch.manual_seed(0)
    weights = tmp_path / "face.safetensors"
    AnimationModel.from_preset("tiny-quarter", prior="face").eval().save(weights)
    made = export(ExportConfig(str(weights), "pt2", tmp_path / "out"))
    graph = torch.export.load(made / "motion.pt2").module()
    picture = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = graph(picture)[0], AnimationModel.load(weights).encode_driving(picture).points
    assert (found - expected).abs().max() < 1e-4


@needs_onnx
@pytest.mark.parametrize("weights", ["tiny", "tiny-s2d"])
def test_onnx_graphs_in_turn_are_the_model(weights, tmp_path):
    import onnxruntime

    def load(path, graph):
        session = onnxruntime.InferenceSession(path)

        def run(*values):
            given = dict(zip(graph["inputs"], (value.numpy() for value in values), strict=True))
            return [torch.from_numpy(value) for value in session.run(list(graph["outputs"]), given)]

        return run

    run_in_turn(export(ExportConfig(weights, "onnx", tmp_path / "out")), load, weights)


@needs_onnx
def test_the_tool_animates_without_torch(tmp_path):
    export(ExportConfig("tiny-affine", "onnx", tmp_path / "out"))
    samples = ROOT / "data_samples"
    files = [tmp_path / "out", samples / "ada.png", samples / "dev.mp4", tmp_path / "film.mp4"]
    script = (ROOT / "tools" / "animate_onnx.py").read_text()
    subprocess.run([sys.executable, "-c", f"{script}\nassert 'torch' not in sys.modules", *files], check=True)

    def small(picture):
        return F.interpolate(picture[None], (64, 64), mode="area")[0]

    photo = small(torch.from_numpy(iio.imread(samples / "ada.png")[..., :3]).permute(2, 0, 1) / 255)
    film = torch.stack([small(frame / 255) for _, frame in Clip(samples / "dev.mp4").decode()])
    made = torch.stack([frame / 255 for _, frame in Clip(tmp_path / "film.mp4").decode()])
    model = AnimationModel.load("tiny-affine")
    with torch.no_grad():
        source, motion = model.encode_source(photo[None]), model.encode_driving(film)
        motion.points = source.motion.points + motion.points - motion.points[:1]
        motion.affine = motion.affine @ motion.affine[:1].inverse() @ source.motion.affine
        expected = model.render(source, motion).image
    assert made.shape == expected.shape
    assert (made - expected).abs().mean() < 0.02 < (made - photo).abs().mean()  # the film is compressed


@pytest.mark.parametrize("left", [True, False])
def test_what_onnx_lacks_is_solved_as_torch_does(left):
    matrix, right = torch.randn(2, 5, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.linalg.solve(matrix, right, left=left)
    assert torch.allclose(solve_two_by_two(matrix, right, left=left), expected, atol=1e-9)


def test_a_graph_with_other_numbers_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    torch.manual_seed(0)
    AnimationModel.from_preset("tiny", system="fomm").save(tmp_path / "m.safetensors")
    config = ExportConfig(str(tmp_path / "m.safetensors"), "pt2", tmp_path / "new" / "out")

    def wrong(piece, path):
        path.write_text("a graph")
        return lambda *inputs: tuple(value + 2e-4 * (piece.name == "renderer") for value in piece.module(*inputs))

    monkeypatch.setattr(command, "write_pt2", wrong)
    with pytest.raises(MinimodelError, match=r"exported renderer gives another image, by 2\.0e-04: not written"):
        export(config)
    assert not list((tmp_path / "new").iterdir())
    monkeypatch.setattr(command, "TOLERANCE", 3e-4)
    assert export(config).is_dir()
    motion = split(AnimationModel.load(config.weights), 64)[1]
    with pytest.raises(MinimodelError, match="exported motion gives another points, by nan"):
        compare(motion, lambda *inputs: tuple(value * torch.nan for value in motion.module(*inputs)))


def test_what_cannot_be_exported_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    def refused(*words, output="out"):
        assert main(["export", *map(str, words), "--output", str(tmp_path / output)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "tiny-tps: moves by splines" in refused("--weights", "tiny-tps", "--format", "pt2")
    assert "multiples of" in refused("--weights", "tiny-affine", "--format", "pt2", "--size", 70)
    assert "weights 'huge': no such file" in refused("--weights", "huge", "--format", "pt2")
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert 'needs onnxruntime: pip install "minimodel[onnx]"' in refused("--format", "onnx")
    loaded = AnimationModel.load("tiny-affine")
    loaded.config = None  # as of published weights
    with monkeypatch.context() as patch:
        patch.setattr(command.AnimationModel, "load", lambda name: loaded)
        assert "taichi.pth: a published checkpoint" in refused("--weights", "taichi.pth", "--format", "pt2")
    (tmp_path / "file").touch()
    assert "file/out: can't be written" in refused("--weights", "tiny-affine", "--format", "pt2", output="file/out")
    assert "file: is there already" in refused("--weights", "tiny-affine", "--format", "pt2", output="file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
