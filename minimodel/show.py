"""Pictures of pictures, flows and masks: everything the notebooks and the training strips draw with."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as iio
import matplotlib
import matplotlib.pyplot as plt
import torch
from einops import rearrange
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from minimodel.warping import resize_flow, to_pixels


def flow_colors(flow: Float[Tensor, "b 2 h w"], *, largest: float | None = None) -> Float[Tensor, "b 3 h w"]:
    """Direction as hue, length as saturation: no motion is white, ``largest`` (normalised; by default the longest
    vector of the batch) is fully coloured."""
    length = flow.norm(dim=1)
    largest = largest or float(length.max().clamp_min(1e-8))
    angle = torch.atan2(flow[:, 1], flow[:, 0]) / (2 * torch.pi) % 1
    hsv = torch.stack([angle, (length / largest).clamp(0, 1), torch.ones_like(angle)], dim=-1)
    return torch.from_numpy(matplotlib.colors.hsv_to_rgb(hsv.detach().cpu().numpy())).float().permute(0, 3, 1, 2)


def heat(values: Float[Tensor, "b 1 h w"], *, largest: float = 1.0) -> Float[Tensor, "b 3 h w"]:
    """A map of one channel in the viridis colours, 0 to ``largest``."""
    colours = matplotlib.colormaps["viridis"]((values[:, 0] / largest).clamp(0, 1).detach().cpu().numpy())
    return torch.from_numpy(colours[..., :3]).float().permute(0, 3, 1, 2)


def grid(rows: list[Float[Tensor, "_b _c _h _w"]], *, size: int | None = None, gap: int = 2) -> Float[Tensor, "3 h w"]:
    """One row of pictures for each batch, with white lines between; pictures are brought to ``size`` (by repeating
    pixels where they grow, so that small pictures stay honest)."""
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
    """Rows of pictures (N, 3 or 1, H, W), each with its name and a thin grey frame (white on white would have no
    edge), pixels left square; ``side`` is in inches."""
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
    """`draw_pictures`, shown."""
    draw_pictures(rows, columns=columns, side=side)
    plt.show()


def playground(draw: Callable[..., Figure], **widgets):
    """Widgets above the figure that ``draw`` makes of their values, and makes again whenever one of them is moved.

    The figure is a picture widget, not output of the cell: that is quicker, and what captures the output of widgets
    differs between notebooks, tests and static pages. Where no widgets are drawn, as on a code host, one sees the first
    figure.
    """
    from ipywidgets import Image, Layout, VBox

    class Playground(VBox):
        def _repr_mimebundle_(self, **options) -> dict:
            return super()._repr_mimebundle_(**options) | {"image/png": base64.b64encode(picture.value).decode()}

    # A box stretches what is in it to the page's width: a square picture wouldn't fit on a screen with its sliders. And
    # a wide one is reduced to that width, to which widgets add a margin: the box would have to scroll.
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
    """Frames as an animation that a notebook holds within itself, and shows wherever it is displayed, ``side`` pixels
    high: it is the viewer who enlarges them, which keeps notebooks small."""
    from IPython.display import Image

    height, width = frames.shape[-2:]
    pixels = (frames.detach().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    file = io.BytesIO()
    iio.imwrite(file, pixels, extension=".gif", duration=1000 / fps, loop=0)
    # Labelled as PNG, which every viewer of notebooks embeds; browsers look at the bytes, and play it.
    return Image(data=file.getvalue(), format="png", width=round(side * width / height), height=side)


def save_picture(picture: Float[Tensor, "3 h w"], path: str | Path) -> None:
    """Write a PNG."""
    iio.imwrite(path, (picture.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
