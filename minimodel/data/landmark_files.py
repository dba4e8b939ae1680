"""Landmarks in: the .npz that `minimodel find-landmarks` or `synthesize` wrote."""

import math
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minimodel.errors import MinimodelError
from minimodel.warping import from_pixels

TIGHT = 0.02  # sides of the picture: landmarks that all lie closer together are no face
FAR = 0.5  # sides of the picture: a landmark further outside is a mistake
SLOWEST, FASTEST = 0.01, 1000  # frames a second


def read_landmarks(path: str | Path) -> tuple[Float[Tensor, "t 74 2"], Fraction]:
    """The landmarks of a film, normalised to the square that `center_crop_resize` takes of its frames; and the film's
    frames per second. Where a frame has no usable ones those of the frame before stand in, and a warning says so."""
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in ("landmarks", "found", "size", "fps") if name in file}
            if "size" not in held:
                held["size"] = file["parsing"].shape[1:]
            points = torch.from_numpy(held["landmarks"].astype(np.float32))
            size = [int(side) for side in held["size"]]
            fps = [float(number) for number in np.atleast_1d(held.get("fps", 25))]
            found = np.asarray(held.get("found", np.ones(len(points), bool))).astype(bool)
        if points.dim() != 3 or points.shape[1:] != (74, 2) or not len(points):
            raise MinimodelError(f"landmarks of the shape {tuple(points.shape)}, expected (frames, 74, 2)")
        if len(size) != 2 or len(fps) not in (1, 2) or found.shape != points.shape[:1]:
            raise MinimodelError("its size, fps or found don't fit its landmarks")
    except FileNotFoundError as error:
        raise MinimodelError(f"{path}: no such file") from error
    except Exception as error:  # a broken or foreign file raises many kinds
        raise MinimodelError(
            f"{path}: not the landmarks of a film, as `minimodel find-landmarks` writes them"
        ) from error
    if min(size) < 1:
        raise MinimodelError(
            f"{path}: its size is {size[0]} x {size[1]}, expected the film's height and width in pixels"
        )
    rate = fps[0] / fps[1] if len(fps) == 2 and fps[1] else fps[0] if len(fps) == 1 else math.nan
    if not SLOWEST <= rate <= FASTEST:
        raise MinimodelError(f"{path}: its fps is {'/'.join(f'{n:g}' for n in fps)}, expected {SLOWEST} to {FASTEST}")
    points = _hold(points, torch.from_numpy(found), size, path)
    side = min(size)
    corner = torch.tensor([(size[1] - side) // 2, (size[0] - side) // 2])
    return from_pixels(points - corner, (side, side)), Fraction(rate).limit_denominator(10000)


def _hold(
    points: Float[Tensor, "t 74 2"], found: Bool[Tensor, "t"], size: list[int], path: str | Path
) -> Float[Tensor, "t 74 2"]:
    """Landmarks of frames that have none, or none that can be a face's, are those of the frame before."""
    height, width = size
    reach = torch.tensor([width, height])
    finite = points.isfinite().all(-1).all(-1)
    outside = finite & (torch.maximum(-points, points - reach).amax((1, 2)) > FAR * max(size))
    tight = finite & ((points.amax(1) - points.amin(1)).amax(-1) < TIGHT * min(size))
    reasons = {
        "no face was found": ~found,
        "landmarks aren't numbers": ~finite,
        f"landmarks lie far outside of {width} x {height} pixels": outside,
        f"all landmarks lie in one place of {width} x {height} pixels": tight,
    }
    bad = torch.stack(list(reasons.values())).any(0)
    if not bad.any():
        return points
    said = [f"{reason} in {int(where.sum())}" for reason, where in reasons.items() if where.any()]
    text = f"{path}: of {len(points)} frames " + ", ".join(said)
    if bad.all():
        raise MinimodelError(f"{text}: none is left to move by")
    warnings.warn(f"{text}; the landmarks of the frame before are held", stacklevel=3)
    good = (~bad).nonzero().flatten()
    # The last good frame up to each, and before the first one the first.
    return points[good[(torch.searchsorted(good, torch.arange(len(points)), right=True) - 1).clamp_min(0)]]
