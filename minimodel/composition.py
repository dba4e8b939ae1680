"""The photo's own resolution: a frame as large as the photo, from motion that was computed on a small one.

A model that works at 64 pixels gives three things: where each pixel comes from (a flow), whether the photo shows it (an
occlusion), and a picture that it painted itself. Flow and occlusion are smooth almost everywhere and lose little when
they are enlarged. The painted picture does lose: its network has seen 64 pixels and no more. So the photo is moved at
its own resolution, where all its detail is, and the enlarged painted picture stands where the photo shows nothing.

Why a flow can be enlarged: it is normalised. A displacement of 0.1 is a twentieth of the picture's width at every
resolution, so nothing changes but the number of arrows, and those between two known ones are interpolated. What is lost
is what no interpolation knows. At the head's outline the flow jumps from the head's motion to the background's. Between
two arrows of the small flow, which are four pixels apart in a photo four times as large, the jump becomes a slope, and
what lies on the slope is stretched.

`paste` puts the result back into the photo that it was cut from.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minimodel.errors import MinimodelError
from minimodel.motion import Output
from minimodel.warping import resize_flow, size_of, warp

LARGEST = 1024  # side of a composed frame, in pixels
# A sigmoid never says quite 0 or 1. Up to the first value a gate counts as shut, from the second on as open.
SHUT, OPEN = 0.1, 0.9
BORDER = 0.12  # width of the soft border of a pasted square, in sides of the square


def compose(
    photo: Float[Tensor, "n 3 height width"],
    flow: Float[Tensor, "b 2 h w"],
    occlusion: Float[Tensor, "b 1 h w"],
    painted: Float[Tensor, "b 3 hp wp"],
) -> Float[Tensor, "b 3 height width"]:
    """The photo, moved at its own resolution, where gates are open, and the painted picture where they are shut.

    ``flow`` (normalised), ``occlusion`` (logits) and ``painted`` are those of an `Output`, each at a size of its own; a
    photo of batch 1 serves all frames. Every pixel lies between the two pictures and never beyond them, so no edge gets
    a halo. The photo's detail comes back as far as the gate is open. Without motion and with open gates the result is
    the photo, bit for bit.

    >>> output = model.render(source, motion)
    >>> frames = compose(photo, output.flows[-1], output.occlusions[-1], output.painted)
    """
    size = size_of(photo)
    moved = warp(photo.expand(len(flow), -1, -1, -1), resize_flow(flow, size))  # (b, 3, height, width)
    return torch.lerp(resize_flow(painted, size), moved, resize_flow(gates(occlusion), size))


def enlarge(
    output: Output, photo: Float[Tensor, "1 3 height width"], index: int = 0
) -> Float[Tensor, "3 height width"]:
    """One frame of a model's `Output` at the photo's resolution, by `compose`.

    Where the model's generator doesn't blend, no gate says where the photo may be shown: then its picture is enlarged
    as it is.
    """
    one = slice(index, index + 1)
    if not output.blended:
        return resize_flow(output.painted[one], size_of(photo))[0]
    return compose(photo, output.flows[-1][one], output.occlusions[-1][one], output.painted[one])[0]


def gates(occlusion: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Occlusion logits as gates: 0 below ``SHUT``, 1 above ``OPEN``, straight between."""
    return ((torch.sigmoid(occlusion) - SHUT) / (OPEN - SHUT)).clamp(0, 1)


def paste(
    frame: Float[Tensor, "3 h w"],
    photo: Float[Tensor, "3 height width"],
    box: tuple[int, int, int],
    *,
    border: float = BORDER,
) -> Float[Tensor, "3 height width"]:
    """The whole photo with ``frame`` in the square ``box`` (left, top, side in pixels) that it was cut from.

    Over ``border`` (in sides) the frame fades into the photo. Where the square ends at the edge of the photo or reaches
    beyond it there is nothing to fade into. How far a pixel fades depends on its place alone, so nothing jumps from one
    frame to the next.
    """
    left, top, side = box
    height, width = photo.shape[-2:]
    rows, columns = slice(max(top, 0), min(top + side, height)), slice(max(left, 0), min(left + side, width))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        raise MinimodelError(f"the square {left} {top} {side} shows nothing of {width} x {height} pixels")
    square = F.interpolate(frame[None], (side, side), mode="bilinear", antialias=True, align_corners=False)[0]
    square = square[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left].clamp(0, 1)
    down = _fade(top, side, height, border, like=photo)[rows.start - top : rows.stop - top]
    across = _fade(left, side, width, border, like=photo)[columns.start - left : columns.stop - left]
    result = photo.clone()
    result[:, rows, columns] = torch.lerp(photo[:, rows, columns], square, down[:, None] * across)
    return result


def _fade(corner: int, side: int, length: int, border: float, *, like: Tensor) -> Float[Tensor, "side"]:
    """The frame's share along one axis of the square: 0 at its ends, 1 from ``border`` inwards, a smooth step between;
    an end that the photo doesn't go beyond doesn't fade."""
    inside = (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5) / side
    share = torch.ones_like(inside)
    for distance, fades in ((inside, corner > 0), (1 - inside, corner + side < length)):
        if fades and border > 0:
            part = (distance / border).clamp(0, 1)
            share = share * part.square() * (3 - 2 * part)
    return share
