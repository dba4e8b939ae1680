"""Drawings of pictures, flows and masks, for the notebooks and the training strips."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import matplotlib
import matplotlib.pyplot as plt
import torch
from einops import rearrange
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from minimodel.errors import MinimodelError, choose
from minimodel.saving import whole_file
from minimodel.warping import identity_grid, resize_flow, to_pixels


def flow_colors(flow: Float[Tensor, "b 2 h w"], *, largest: float | None = None) -> Float[Tensor, "b 3 h w"]:
    """Colour a flow: direction is hue, length is saturation.

    No motion is white. Vectors of length ``largest`` (normalised; by default the longest of the batch) are fully
    coloured.
    """
    length = flow.norm(dim=1)
    largest = largest or float(length.max().clamp_min(1e-8))
    angle = torch.atan2(flow[:, 1], flow[:, 0]) / (2 * torch.pi) % 1
    hsv = torch.stack([angle, (length / largest).clamp(0, 1), torch.ones_like(angle)], dim=-1)
    return torch.from_numpy(matplotlib.colors.hsv_to_rgb(hsv.detach().cpu().numpy())).float().permute(0, 3, 1, 2)


def flow_wheel(axis, *, largest: float | None = None) -> None:
    """Draw the colours of `flow_colors` on ``axis`` as a wheel, with arrows that say which colour means what.

    The arrow of a colour points to where a pixel of that colour comes from. The rim has the colour of the longest
    vectors; ``largest`` is their length in pixels, which is written beside it.
    """
    places = identity_grid(160, 160)[None] * 1.02
    wheel = flow_colors(places, largest=1.0)
    wheel = torch.where(places.norm(dim=1, keepdim=True) <= 1, wheel, torch.ones(()))
    axis.imshow(wheel[0].permute(1, 2, 0), extent=(-1.02, 1.02, 1.02, -1.02), interpolation="bilinear")
    for turn in range(8):
        x, y = (f(torch.tensor(turn * torch.pi / 4)).item() for f in (torch.cos, torch.sin))
        arrow = dict(arrowstyle="-|>", color="black", shrinkA=0, shrinkB=0, linewidth=1)
        axis.annotate("", xy=(0.85 * x, 0.85 * y), xytext=(0.3 * x, 0.3 * y), arrowprops=arrow)
    axis.text(0, 0, "still", ha="center", va="center", fontsize=8)
    rim = "" if largest is None else f"\nrim: {largest:g} pixels or more"
    axis.set_title(f"the pixel comes from ...{rim}", fontsize=8)
    axis.set(xlim=(-1.05, 1.05), ylim=(1.05, -1.05), aspect="equal")
    axis.set_axis_off()


def heat(values: Float[Tensor, "b 1 h w"], *, largest: float = 1.0) -> Float[Tensor, "b 3 h w"]:
    """Colour a map of one channel in viridis, from 0 to ``largest``."""
    colours = matplotlib.colormaps["viridis"]((values[:, 0] / largest).clamp(0, 1).detach().cpu().numpy())
    return torch.from_numpy(colours[..., :3]).float().permute(0, 3, 1, 2)


def grid(rows: list[Float[Tensor, "_b _c _h _w"]], *, size: int | None = None, gap: int = 2) -> Float[Tensor, "3 h w"]:
    """Join batches of pictures to one picture, a row for each batch, with white lines of ``gap`` pixels between.

    Pictures are resized to ``size`` pixels a side. Smaller pictures are enlarged by repeating pixels, so that their
    pixels stay visible.
    """
    size = size or max(row.shape[-1] for row in rows)
    tiles = []
    for row in rows:
        row = row.detach().float().cpu().clamp(0, 1).expand(-1, 3, -1, -1)
        if row.shape[-1] < size:
            row = torch.nn.functional.interpolate(row, (size, size), mode="nearest")
        row = torch.nn.functional.pad(resize_flow(row, (size, size)), (0, gap, 0, gap), value=1.0)
        tiles.append(rearrange(row, "b c h w -> c h (b w)"))
    return torch.cat(tiles, dim=1)


def draw_pictures(rows: dict[str, Tensor], *, columns: list[str] | None = None, side: float = 1.5) -> Figure:
    """Draw rows of pictures (N, 3 or 1, H, W), each row with its name.

    Pictures have a thin grey frame, as white on white would have no edge. ``side`` is a picture's side in inches.
    """
    count = max(len(row) for row in rows.values())
    figure, axes = plt.subplots(len(rows), count, figsize=(side * count, side * len(rows)), squeeze=False)
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axis, picture in zip(line, row.detach().float().cpu().clamp(0, 1).expand(-1, 3, -1, -1)):
            axis.imshow(picture.permute(1, 2, 0), interpolation="nearest")
        for index, axis in enumerate(line):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(color="lightgrey", linewidth=0.5)
            if index >= len(row):
                axis.set_visible(False)
    for axis, title in zip(axes[0], columns or []):
        axis.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    return figure


def pictures(rows: dict[str, Tensor], *, columns: list[str] | None = None, side: float = 1.5) -> None:
    """Show the figure of `draw_pictures`."""
    draw_pictures(rows, columns=columns, side=side)
    plt.show()


def crisp(figure: Figure, *, photographs: bool = False) -> None:
    """Show a figure with twice as many pixels as it takes on the page, where an inch has 100.

    With ``photographs`` it is stored as JPEG, in which faces take a fraction of PNG's bytes.
    """
    from IPython.display import Image, display

    file = io.BytesIO()
    kind = "jpeg" if photographs else "png"
    options: dict[str, Any] = dict(pil_kwargs=dict(quality=80)) if photographs else {}
    figure.savefig(file, format=kind, dpi=200, bbox_inches="tight", facecolor="white", **options)
    plt.close(figure)  # or it would be shown a second time, when the cell ends
    height, width = iio.imread(file.getvalue()).shape[:2]
    display(Image(data=file.getvalue(), format=kind, width=width // 2, height=height // 2))


class Table:
    """A small table that notebooks show as HTML, and that is aligned text elsewhere."""

    def __init__(self, columns: list[str], rows: list[list[str]], marked: set[tuple[int, int]]):
        self.columns, self.rows, self.marked = columns, rows, marked

    def __repr__(self) -> str:
        cells = [[f"{text} *" if (i, j) in self.marked else text for j, text in enumerate(row)]
                 for i, row in enumerate(self.rows)]  # fmt: skip
        widths = [max(len(row[j]) for row in [self.columns, *cells]) for j in range(len(self.columns))]
        lines = [[row[0].ljust(widths[0])] + [text.rjust(width) for text, width in zip(row[1:], widths[1:])]
                 for row in [self.columns, *cells]]  # fmt: skip
        return "\n".join("  ".join(line).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        lines = []
        for i, row in enumerate([self.columns, *self.rows]):
            tag = "td" if i else "th"
            texts = [f"<b>{escape(text)}</b>" if (i - 1, j) in self.marked else escape(text)
                     for j, text in enumerate(row)]  # fmt: skip
            sides = ["left", *["right"] * (len(row) - 1)]
            cells = (f'<{tag} style="text-align:{side}">{text}</{tag}>' for side, text in zip(sides, texts))
            lines.append(f"<tr>{''.join(cells)}</tr>")
        return "<table>\n" + "\n".join(lines) + "\n</table>"


def table(
    rows: Mapping[str, Sequence[float | int | str]],
    columns: Sequence[str],
    *,
    digits: int | Mapping[str, int] = 2,
    best: Mapping[str, str] | None = None,
) -> Table:
    """A table of a few rows: a name and its values each, under the headings ``columns`` of the values.

    Numbers are rounded to ``digits`` after the point, which may differ by column. ``best`` says for a column whether
    the "low" or the "high" value wins; winners are bold, or have a star in text. Choose digits that a change of the
    machine can't change, as notebooks' outputs are compared. A row of another length raises a `MinimodelError`.

    >>> table({"copy": [0.0535, 19.5], "ours": [0.0228, 26.2]}, ["L1", "PSNR"], digits={"L1": 3, "PSNR": 1})
             L1  PSNR
    copy  0.053  19.5
    ours  0.023  26.2
    """
    marked = set()
    for name, values in rows.items():
        if len(values) != len(columns):
            raise MinimodelError(f"row {name!r} has {len(values)} values: expected {len(columns)}, one a column")
    for column, side in (best or {}).items():
        j = list(columns).index(choose("column", column, {c: c for c in columns}))
        pick = choose("kind of best value", side, dict(low=min, high=max))
        numbers = [values[j] for values in rows.values()]
        marked |= {(i, j + 1) for i, number in enumerate(numbers) if number == pick(numbers)}

    def text(value: float | int | str, column: str) -> str:
        places = digits if isinstance(digits, int) else digits.get(column, 2)
        return value if isinstance(value, str) else str(value) if isinstance(value, int) else f"{value:.{places}f}"

    lines = [[name, *map(text, values, columns)] for name, values in rows.items()]
    return Table(["", *columns], lines, marked)


def playground(draw: Callable[..., Figure], **widgets):
    """Show widgets above the figure that ``draw`` returns for their values, drawn again whenever a widget is moved.

    The figure is a picture widget, not output of the cell: this is quicker, and the way to capture the output of
    widgets differs between notebooks, tests and static pages. Pages without widgets, as on a code host, show the first
    figure.
    """
    from ipywidgets import Image, Layout, VBox

    class Playground(VBox):
        def _repr_mimebundle_(self, **options) -> dict:
            return super()._repr_mimebundle_(**options) | {"image/png": base64.b64encode(picture.value).decode()}

    # A box stretches its content to the page's width: a square picture wouldn't fit on a screen with its sliders. A
    # wide picture is reduced to that width, to which widgets add a margin: the box would have to scroll.
    picture = Image(layout=Layout(align_self="flex-start", margin="0"))

    def redraw(_=None) -> None:
        figure, file = draw(**{name: widget.value for name, widget in widgets.items()}), io.BytesIO()
        figure.savefig(file, format="png", bbox_inches="tight")
        plt.close(figure)
        picture.value = file.getvalue()

    for name, widget in widgets.items():
        widget.description = name
        if hasattr(widget, "continuous_update"):
            widget.continuous_update = False
        widget.observe(redraw, "value")
    redraw()
    return Playground([*widgets.values(), picture])


def dots(axis, points: Float[Tensor, "k 2"], size: tuple[int, int], **style) -> None:
    """Mark normalised points on a picture of ``size`` = (h, w) that `imshow` drew on ``axis``."""
    x, y = to_pixels(points.detach().cpu(), size).T
    axis.scatter(x, y, **dict(s=18, linewidths=0.8, edgecolors="white") | style)


def film(frames: Float[Tensor, "t 3 h w"], *, fps: int = 12, side: int = 192):
    """Show frames as an animation that is stored in the notebook.

    The viewer enlarges the animation to ``side`` pixels in height, which keeps notebooks small.
    """
    from IPython.display import Image

    height, width = frames.shape[-2:]
    pixels = (frames.detach().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    file = io.BytesIO()
    iio.imwrite(file, pixels, extension=".gif", duration=1000 / fps, loop=0)
    # The label is PNG, which every viewer of notebooks embeds; browsers go by the bytes, and play the GIF.
    return Image(data=file.getvalue(), format="png", width=round(side * width / height), height=side)


def save_picture(picture: Float[Tensor, "3 h w"], path: str | Path) -> None:
    """Write a picture as a PNG file, whole or not at all."""
    with whole_file(Path(path)) as unfinished:
        iio.imwrite(unfinished, (picture.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
