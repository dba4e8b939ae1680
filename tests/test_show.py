import base64
import io

import imageio.v3 as iio
import matplotlib
import pytest
import torch
from ipywidgets import IntSlider

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from minimodel import show


def hues(picture):
    return matplotlib.colors.rgb_to_hsv(picture.permute(1, 2, 0).numpy())


def test_no_motion_is_white_and_the_longest_is_fully_coloured():
    flow = torch.zeros(1, 2, 2, 2)
    flow[0, 0, 0, 1], flow[0, 0, 1, 1] = 0.2, 0.1
    picture = show.flow_colors(flow)
    assert picture.shape == (1, 3, 2, 2)
    assert torch.equal(picture[0, :, :, 0], torch.ones(3, 2))
    saturation = hues(picture[0])[..., 1]
    assert saturation[0, 1] == pytest.approx(1) and saturation[1, 1] == pytest.approx(0.5)
    # A longest vector that is given makes pictures comparable; longer ones are as colourful as that.
    assert hues(show.flow_colors(flow, largest=0.4)[0])[0, 1, 1] == pytest.approx(0.5)
    assert hues(show.flow_colors(flow, largest=0.1)[0])[1, 1, 1] == pytest.approx(1)
    assert torch.equal(show.flow_colors(0 * flow), torch.ones(1, 3, 2, 2))


def test_directions_are_hues():
    turns = torch.arange(8) / 8
    angle = 2 * torch.pi * turns
    flow = torch.stack([angle.cos(), angle.sin()]).view(1, 2, 1, 8)
    hue = torch.from_numpy(hues(show.flow_colors(flow)[0])[0, :, 0].copy())
    assert torch.allclose(hue, turns, atol=1e-3)  # so opposite directions are half the wheel apart


def test_a_heat_map_runs_from_dark_to_bright():
    values = torch.linspace(0, 2, 5).view(1, 1, 1, 5)
    picture = show.heat(values, largest=2.0)
    brightness = picture.mean(1).flatten()
    assert picture.shape == (1, 3, 1, 5) and (brightness.diff() > 0).all()
    assert torch.equal(show.heat(values)[..., 2:], picture[..., 4:].expand(-1, -1, -1, 3))  # all above is clipped


def test_a_grid_has_a_row_for_each_batch():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    small = torch.tensor([[0.0, 1.0], [0.5, 0.25]]).expand(2, 1, 2, 2)
    picture = show.grid([red, small], gap=3)
    assert picture.shape == (3, 2 * 11, 2 * 11)
    assert torch.equal(picture[:, :8, :8], red[0]) and torch.equal(picture[:, :8, 11:19], red[1])
    assert (picture[:, 8:11] == 1).all() and (picture[:, :, 8:11] == 1).all()
    # Small pictures grow by repeating pixels, grey ones become coloured.
    assert picture[1, 11:19, :8].unique().tolist() == [0, 0.25, 0.5, 1]
    assert torch.equal(picture[0, 11:15, 4:8], torch.ones(4, 4))
    assert show.grid([red, small], size=4, gap=0).shape == (3, 8, 8)
    assert show.grid([2 * red - 0.5]).max() <= 1 and show.grid([2 * red - 0.5]).min() >= 0


def test_pictures_draws_every_row_with_its_name(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    show.pictures({"faces": torch.rand(3, 3, 8, 8), "masks": torch.rand(2, 1, 4, 4)}, columns=["a", "b", "c"])
    axes = plt.gcf().axes
    assert len(axes) == 6
    assert [axis.get_title() for axis in axes[:3]] == ["a", "b", "c"]
    assert [axis.get_ylabel() for axis in axes] == ["faces", "", "", "masks", "", ""]
    assert [len(axis.images) for axis in axes] == [1, 1, 1, 1, 1, 0] and not axes[5].get_visible()
    assert axes[3].images[0].get_array().shape == (4, 4, 3)
    plt.close()


def test_a_playground_draws_again_when_a_slider_moves():
    def draw(left, right):
        return show.draw_pictures({"": torch.full((1, 1, 4, 4), left / (left + right))})

    box = show.playground(draw, left=IntSlider(1, 1, 9), right=IntSlider(1, 1, 9))
    left, right, picture = box.children
    assert (left.description, right.description, left.continuous_update) == ("left", "right", False)
    before = iio.imread(picture.value)
    shown = box._repr_mimebundle_()
    assert (iio.imread(base64.b64decode(shown["image/png"])) == before).all()
    assert "application/vnd.jupyter.widget-view+json" in shown
    left.value = 3
    after = iio.imread(picture.value)
    height, width = (n // 2 for n in before.shape[:2])
    assert abs(int(before[height, width, 0]) - 127) < 2 and abs(int(after[height, width, 0]) - 191) < 2
    assert plt.get_fignums() == []
    assert picture.layout.align_self == "flex-start"  # in its own size, not stretched to the page's width
    assert picture.layout.margin == "0"  # a margin beside a picture of the page's width would be too much


def test_dots_lie_on_the_pixels_that_they_name():
    _, axis = plt.subplots()
    axis.imshow(torch.zeros(10, 20))
    # The middle of the image, and the centre of its first pixel.
    show.dots(axis, torch.tensor([[0.0, 0.0], [1 / 20 - 1, 1 / 10 - 1]]), (10, 20), c="red")
    offsets = torch.tensor(axis.collections[0].get_offsets())
    assert torch.allclose(offsets.float(), torch.tensor([[9.5, 4.5], [0.0, 0.0]]), atol=1e-5)
    plt.close()


def test_a_film_plays():
    frames = torch.linspace(0.2, 1, 5).view(5, 1, 1, 1) * torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1)
    film = show.film(frames.expand(5, 3, 16, 80), fps=10, side=64)
    decoded = iio.imread(io.BytesIO(film.data), extension=".gif")
    assert film.data[:6] == b"GIF89a" and decoded.shape == (5, 16, 80, 3)
    assert (film.height, film.width) == (64, 320)  # on the screen: five pictures in a row, each 64 pixels high
    levels = torch.tensor(decoded).float().mean((1, 2)) / 255
    assert torch.allclose(levels, frames[:, :, 0, 0], atol=0.02)
    assert iio.immeta(io.BytesIO(film.data), extension=".gif")["duration"] == 100


def test_a_picture_is_what_was_saved(tmp_path):
    picture = torch.randint(0, 256, (3, 8, 12), generator=torch.Generator().manual_seed(0)) / 255
    show.save_picture(picture, tmp_path / "a.png")
    assert torch.equal(torch.from_numpy(iio.imread(tmp_path / "a.png")).permute(2, 0, 1) / 255, picture)
    show.save_picture(3 * picture - 1, tmp_path / "b.png")
    expected = ((3 * picture - 1).clamp(0, 1) * 255).round().byte()
    assert torch.equal(torch.from_numpy(iio.imread(tmp_path / "b.png")).permute(2, 0, 1), expected)


def test_a_wheel_has_the_colours_of_flows_and_their_directions():
    _, axis = plt.subplots()
    show.flow_wheel(axis, largest=7.5)
    picture = torch.from_numpy(axis.images[0].get_array().data.copy())
    side = len(picture)
    assert picture[0, 0].tolist() == [1, 1, 1]  # outside
    assert hues(picture.permute(2, 0, 1))[side // 2, side // 2, 1] < 0.02  # no motion is white
    for dx, dy in ((1, 0), (0, 1), (-1, 0), (0, -1), (0.6, -0.6)):
        row, column = (int(side / 2 * (1 + 0.9 * d)) for d in (dy, dx))
        expected = show.flow_colors(torch.tensor([float(dx), float(dy)]).view(1, 2, 1, 1), largest=1.0)[0]
        assert abs(hues(picture.permute(2, 0, 1))[row, column, 0] - hues(expected)[0, 0, 0]) % 1 < 0.02
    # y points down, as in pictures, or the colours of up and down would be swapped
    low, high = axis.get_ylim()
    assert low > high and axis.images[0].get_extent()[2] > axis.images[0].get_extent()[3]
    assert "7.5 pixels" in axis.get_title()
    plt.close()


def test_a_table_is_aligned_text_and_html_with_its_winners_marked():
    rows = {"copy": [0.0535, 19.54, 3], "ours": [0.0228, 26.23, "<n>"]}
    table = show.table(rows, ["L1", "PSNR", "n"], digits={"L1": 3, "PSNR": 1}, best=dict(L1="low", PSNR="high"))
    lines = ["           L1    PSNR    n", "copy    0.053    19.5    3", "ours  0.023 *  26.2 *  <n>"]
    assert repr(table).splitlines() == lines
    html = table._repr_html_()
    assert html.count("<tr>") == 3 and "<b>26.2</b>" in html and "<b>0.053" not in html and "&lt;n&gt;" in html
    with pytest.raises(show.MinimodelError, match=r"row 'a' has 1 values: expected 2"):
        show.table({"a": [1]}, ["x", "y"])
    with pytest.raises(show.MinimodelError, match="unknown column 'z'"):
        show.table({"a": [1]}, ["x"], best={"z": "low"})


def test_a_crisp_figure_has_twice_the_pixels_of_its_place(monkeypatch):
    plt.close("all")
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    for photographs, start in ((False, b"\x89PNG"), (True, b"\xff\xd8")):
        show.crisp(show.draw_pictures({"": torch.rand(2, 3, 8, 8)}, side=1.5), photographs=photographs)
        image = shown.pop()
        assert image.data.startswith(start)
        height, width = iio.imread(image.data).shape[:2]
        assert (image.height, image.width) == (height // 2, width // 2)
        assert 280 < image.width < 320  # two pictures of 1.5 inches
    assert plt.get_fignums() == []
