"""Where the face is in a picture or film, and the crop in which networks want to see it."""

import io
from collections.abc import Iterable
from fractions import Fraction
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from skimage.feature import Cascade
from torch import Tensor, nn

from minimodel.data.video import Clip
from minimodel.errors import MinimodelError
from minimodel.landmarks import SIZE, confidence

LOOKS = 5  # frames of a clip in which the face is sought
AROUND_FACE = 1.6  # side of the crop in sides of the box that the cascade finds


def look_at(frames: list[Tensor]) -> list[Tensor]:
    """Some frames, evenly spaced."""
    return [frames[index] for index in np.linspace(0, len(frames) - 1, LOOKS).astype(int)]


def find_face(frames: list[Tensor], cascade: Cascade) -> tuple[int, int, int] | None:
    """Left, top and side of a square around the face: the median over some frames of the largest face in each."""
    found = []
    for frame in look_at(frames):
        image = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
        side = min(image.shape[:2])
        sizes = dict(min_size=(side // 8, side // 8), max_size=(side, side))
        boxes = cascade.detect_multi_scale(img=image, scale_factor=1.15, step_ratio=1, **sizes)
        if boxes:
            largest = max(boxes, key=lambda b: b["width"])
            found.append([largest["c"] + largest["width"] / 2, largest["r"] + largest["height"] / 2, largest["width"]])
    if not found:
        return None
    x, y, width = np.median(found, axis=0)
    side = AROUND_FACE * width
    return round(x - side / 2), round(y - side / 2), round(side)


def crop(frame: Tensor, box: tuple[int, int, int], size: int) -> Tensor:
    """The square ``box`` of a frame at ``size``; what lies outside the frame repeats its edge."""
    left, top, side = box
    height, width = frame.shape[-2:]
    rows = torch.arange(top, top + side).clamp(0, height - 1)
    columns = torch.arange(left, left + side).clamp(0, width - 1)
    square = frame[:, rows][:, :, columns][None] / 255
    return F.interpolate(square, (size, size), mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)


# How a face lies in the pictures that the detector learned from: the centre of its landmarks, and their distance from
# it (root of the mean square), normalised.
USUAL_CENTRE, USUAL_SPREAD = (0.0, 0.1), 0.34
SURE = 0.4  # faces have a confidence above, everything else below


def look_into(clip: Clip) -> list[Tensor]:
    """Frames from all over the clip; of one that breaks off, from what there is."""
    looks = []
    for index in sorted({int(index) for index in np.linspace(0, len(clip) - 1, LOOKS)}):
        try:
            for at, shown in clip.decode(index):
                frame = shown
                if at >= index:
                    break
        except MinimodelError:
            if not looks:
                raise
            break
        looks.append(frame)
    return looks


@torch.inference_mode()
def find_landmarks(
    detector: nn.Module, frames: Iterable, box: tuple[int, int, int]
) -> tuple[Float[Tensor, "t 74 2"], Bool[Tensor, "t"]]:
    """Landmarks in pixels of the ``frames`` (3, h, w), 0 to 255, in all of which the head is in ``box``; and whether
    the detector is sure of them."""
    points, sure, frames = [], [], iter(frames)
    while some := list(islice(frames, 16)):
        found, heatmaps = detector(torch.stack([crop(frame, box, SIZE) for frame in some]))
        points.append(((found + 1) * box[2] - 1) / 2 + torch.tensor(box[:2]))
        sure.append(confidence(heatmaps, found))
    return torch.cat(points), torch.cat(sure) >= SURE


@torch.inference_mode()
def settle_box(
    detector: nn.Module, frames: list[Tensor], boxes: list[tuple[int, int, int]]
) -> tuple[tuple[int, int, int], float]:
    """Of rough ``boxes`` the one in which the detector is surest of the face, moved to where it has it as it learned
    it; and how sure it then is."""
    best, surest = boxes[0], 0.0
    for rough in boxes:
        box = rough
        for _ in range(3):
            found, heatmaps = detector(torch.stack([crop(frame, box, SIZE) for frame in frames]))
            sure = confidence(heatmaps, found).median().item()
            if sure > surest:
                best, surest = box, sure
            centre = found.mean(1, keepdim=True)
            spread = (found - centre).square().sum(-1).mean(1).sqrt().median().item()
            x, y = centre[:, 0].median(0).values.tolist()
            side = max(1, round(box[2] * spread / USUAL_SPREAD))
            middle = [corner + (z + 1) / 2 * box[2] for corner, z in zip(box, (x, y))]
            left, top = (m - (usual + 1) / 2 * side for m, usual in zip(middle, USUAL_CENTRE))
            box = round(left), round(top), side
    return best, surest


def landmarks_file(
    points: Float[Tensor, "t 74 2"], found: Bool[Tensor, "t"], *, size: tuple[int, int], fps: Fraction
) -> bytes:
    """An .npz. ``size`` = (height, width) and ``fps`` of the film are what else it takes to drive a face."""
    file = io.BytesIO()
    about = dict(size=tuple(size), fps=fps.as_integer_ratio())
    np.savez_compressed(file, landmarks=points.numpy(), found=found.numpy(), **about)
    return file.getvalue()


def center_crop_resize(images: Float[Tensor, "b 3 h w"], size: int) -> Float[Tensor, "b 3 size size"]:
    """The largest square from the middle of each picture, averaged or interpolated to ``size``."""
    side = min(images.shape[-2:])
    top, left = (images.shape[-2] - side) // 2, (images.shape[-1] - side) // 2
    square = images[..., top : top + side, left : left + side]
    if side == size:
        return square.clone()
    return F.interpolate(square, (size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
