"""The map shows the parts, their shapes and their losses as they are, and nothing lies outside the picture."""

import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
import torch

from minimodel import AnimationModel
from minimodel.errors import MinimodelError
from minimodel.system_map import ARROWS, PARTS, system_map

NAMES = (
    *("points", "coarse flow", "background", "landmarks", "structure", "lookup", "update"),
    *("encoder", "gates", "decoder", "losses", "transfer"),
)
ROOT = Path(__file__).parents[1]
MAPS = ROOT / "notebooks" / "maps"


def load():
    spec = importlib.util.spec_from_file_location("draw_maps", ROOT / "tools" / "draw_maps.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draw_maps = load()


def elements(drawing, tag):
    return [e for e in ElementTree.fromstring(drawing).iter() if e.tag.endswith(f"}}{tag}")]


def test_parts_are_those_of_the_course_and_others_are_refused():
    assert set(PARTS) == set(NAMES)
    with pytest.raises(MinimodelError, match="unknown part of the map 'optical flow': there are points"):
        system_map("points", "optical flow")


def test_the_same_parts_give_the_same_drawing():
    assert system_map("points") == system_map("points") != system_map("gates")
    assert system_map() == system_map(*PARTS)


def test_it_is_plain_svg_that_any_page_draws():
    found = {e.tag.split("}")[1] for e in ElementTree.fromstring(system_map()).iter()}
    assert found <= {"svg", "title", "rect", "ellipse", "polyline", "polygon", "text", "tspan"}
    assert not re.search(r"\bid=|href|url\(|script", system_map())


@pytest.mark.parametrize("name", NAMES)
def test_the_lit_part_alone_is_in_colour(name):
    borders = [e.get("stroke") for e in elements(system_map(name), "rect") if e.get("stroke-width") == "3"]
    assert len(borders) == 1
    pale = len(elements(system_map(), "polyline")) - sum(name in arrow.ends for arrow in ARROWS)
    assert [e.get("stroke-width") for e in elements(system_map(name), "polyline")].count("1.5") == pale


def test_all_arrows_touch_their_parts_and_run_along_the_axes():
    for arrow in ARROWS:
        for (x0, y0), (x1, y1) in zip(arrow.corners, arrow.corners[1:], strict=False):
            assert (x0 == x1) != (y0 == y1)
        for name in arrow.ends:
            part = PARTS[name]
            right, bottom = part.x + part.width, part.y + part.height
            touching = [
                (x in (part.x, right) and part.y <= y <= bottom) or (y in (part.y, bottom) and part.x <= x <= right)
                for x, y in (arrow.corners[0], arrow.corners[-1])
            ]
            assert any(touching), (name, arrow)


def test_everything_lies_inside_the_picture():
    root = ElementTree.fromstring(system_map())
    width, height = float(root.get("width")), float(root.get("height"))
    for e in elements(system_map(), "text"):
        text, x, size = "".join(e.itertext()), float(e.get("x")), float(e.get("font-size"))
        wide = 0.6 * size * len(text)
        left = x - dict(start=0, middle=wide / 2, end=wide)[e.get("text-anchor")]
        assert left >= 0 and left + wide <= width and 0 < float(e.get("y")) < height - 4, text


@torch.no_grad()
def test_shapes_on_the_arrows_are_those_of_the_model():
    model = AnimationModel.load("tiny")
    pictures = torch.rand(1, 3, 64, 64)
    source, motion = model.encode_source(pictures), model.encode_driving(pictures)
    stages = model.move(source, motion)
    assert motion.points.shape[1:] == (20, 2) and motion.affine.shape[1:] == (20, 2, 2)
    assert model.refiner.iterations == 3 and [flow.shape[-1] for flow in stages.flows[1:]] == [8, 16, 32, 64]
    labels = " ".join(words for arrow in ARROWS for *_, words in arrow.labels)
    shown = {
        "S": pictures,
        "F_0": stages.coarse.flow,
        "O_0": stages.coarse.occlusion,
        "C": stages.correlation.volume(),
    }
    for name, tensor in shown.items():
        assert f"{name} (B,{','.join(map(str, tensor.shape[1:]))})" in labels, name
    for features in (source.features[0], source.features[-1]):
        assert f"(B,{','.join(map(str, features.shape[1:]))})" in labels
    assert f"(B,{stages.correlation(stages.flows[-1]).shape[1]},h,w)" in labels


def test_the_files_are_what_is_drawn(tmp_path):
    draw_maps.draw(tmp_path)
    drawn, committed = ({path.name: path.read_text() for path in folder.iterdir()} for folder in (tmp_path, MAPS))
    assert drawn == committed  # else: python tools/draw_maps.py
    assert committed["00.svg"] == system_map() + "\n"


def test_every_notebook_opens_with_its_map_and_says_which_parts_are_lit():
    notebooks = {path.stem.split("_")[0]: path for path in MAPS.parent.glob("*.ipynb")}
    assert notebooks.keys() == draw_maps.LIT.keys()
    for name, path in notebooks.items():
        first = nbformat.read(path, 4).cells[0].source
        ((words, shown),) = re.findall(r"^!\[(.*)\]\((.*)\)$", first, flags=re.MULTILINE)
        assert shown == f"maps/{name}.svg"
        parts = draw_maps.LIT[name]
        assert words.endswith(f" In colour: {', '.join(parts)}." if parts else " All parts are in colour.")


def test_readme_shows_the_whole_map():
    assert "](notebooks/maps/00.svg)" in (ROOT / "README.md").read_text()
