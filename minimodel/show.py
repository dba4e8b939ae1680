"""Drawings of pictures, flows and masks, for the notebooks and the training strips."""

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

from minimodel.saving import whole_file
from minimodel.warping import resize_flow, to_pixels


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
