"""What a player shows of a decoded frame: upright, with square pixels, in the colours of a common screen."""

import math
import struct
from fractions import Fraction
from functools import cache

import av
import numpy as np
import torch
from av.sidedata.sidedata import Type
from jaxtyping import Float, UInt8, UInt16
from torch import Tensor

from minimodel.errors import MinimodelError

PQ, HLG = 16, 18  # numbers of the transfer functions of HDR, as films name them
HDR = {PQ: "PQ", HLG: "HLG"}
MOST_PIXELS = 2**26  # of a frame; more is a broken file, and takes memory
WHITE = 203.0  # the light of a white page in HDR, in candela per square metre (ITU-R BT.2408)
# Linear light in the colours of HDR (BT.2020) -> in those of a common screen (BT.709).
TO_BT709 = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
STRETCH = 4  # pixels that are said to be longer than this are taken for square


def show_frame(frame: av.VideoFrame, pixel_shape: Fraction | None = None) -> UInt8[Tensor, "3 h w"]:
    """A decoded frame as a player shows it. ``pixel_shape`` is a pixel's width by its height."""
    width, height = _square(frame.width, frame.height, pixel_shape)
    if width * height > MOST_PIXELS:
        raise MinimodelError(f"a frame has {width} x {height} pixels, at most {MOST_PIXELS} are read")
    size = dict(width=width, height=height)
    if frame.color_trc in HDR:
        picture = from_hdr(frame.to_ndarray(format="rgb48le", **size), frame.color_trc)
    elif has_transparency(frame):
        pixels = torch.from_numpy(frame.to_ndarray(format="rgba", **size)).permute(2, 0, 1).float()
        colours, alpha = pixels[:3], pixels[3:] / 255
        picture = (colours * alpha + 255 * (1 - alpha)).round().byte()  # on white, as pictures are
    else:
        picture = torch.from_numpy(frame.to_ndarray(format="rgb24", **size)).permute(2, 0, 1)
    return turn(picture, display_matrix(frame))


def _square(width: int, height: int, shape: Fraction | None) -> tuple[int, int]:
    """The size at which pixels of this shape are square; no side gets shorter."""
    if not shape or not Fraction(1, STRETCH) <= shape <= STRETCH:
        return width, height
    return (round(width * shape), height) if shape > 1 else (width, round(height / shape))


def has_transparency(frame: av.VideoFrame) -> bool:
    name = frame.format.name
    return name.startswith(("yuva", "rgba", "bgra", "argb", "abgr", "gbrap", "ya8", "ya16", "pal8"))


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """(a, b, c, d): what is stored at (x, y) is shown at (a x + c y, b x + d y)."""
    try:
        data = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # PyAV lists all that is said about a frame, or nothing if there is something new to it
        angle = math.radians(frame.rotation)
        cos, sin = round(math.cos(angle)), round(math.sin(angle))
        return cos, -sin, sin, cos
    if data is None or data.buffer_size < 20:
        return 1, 0, 0, 1
    a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
    return a, b, c, d


def turn(picture: UInt8[Tensor, "3 h w"], matrix: tuple[int, int, int, int]) -> UInt8[Tensor, "3 new_h new_w"]:
    """The picture turned and mirrored as the nearest of the eight matrices says that do so without a rest."""
    a, b, c, d = matrix
    lies = abs(b) + abs(c) > abs(a) + abs(d)  # x and y change places
    if lies:
        picture, a, d = picture.transpose(1, 2), c, b
    mirrored = [axis for axis, sign in ((2, a), (1, d)) if sign < 0]
    return picture.flip(mirrored) if mirrored else picture


def from_hdr(pixels: UInt16[np.ndarray, "h w 3"], transfer: int) -> UInt8[Tensor, "3 h w"]:
    """HDR of 16 bits, by PQ or HLG, as it looks on a common screen: a white page is white, and what is brighter is
    cut."""
    light = _light_of(transfer)[torch.from_numpy((pixels >> 4).astype(np.int32))]
    if transfer == HLG:  # its light depends on the screen: here one of 1000 candela per square metre
        brightness = (light @ torch.tensor([0.2627, 0.6780, 0.0593]))[..., None]
        light = light * (brightness.clamp_min(1e-6) ** 0.2 * (1000 / WHITE))
    light = (light @ torch.tensor(TO_BT709).T).clamp_(0, 1)
    return _on_screen()[light.sqrt_().mul_(4095).round_().int()].permute(2, 0, 1)


@cache
def _light_of(transfer: int) -> Float[Tensor, "4096"]:
    """Linear light of each value of 12 bits: of PQ in white pages, of HLG from 0 to 1 (ITU-R BT.2100)."""
    value = torch.linspace(0, 1, 4096, dtype=torch.float64)
    if transfer == PQ:
        root = value ** (1 / 78.84375)
        light = ((root - 0.8359375).clamp_min(0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
        return (light * 10000 / WHITE).float()
    a, b = 0.17883277, 0.28466892
    c = 0.5 - a * math.log(4 * a)
    return torch.where(value <= 0.5, value**2 / 3, (((value - c) / a).exp() + b) / 12).float()


@cache
def _on_screen() -> UInt8[Tensor, "4096"]:
    """The values of sRGB for linear light; the places in this table are its square roots, which need fewer of them."""
    light = torch.linspace(0, 1, 4096) ** 2
    shown = torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (shown * 255).round().byte()
