"""A detector for the 74 landmarks of a face, trained to hold still on video (S2D section 3.3).

Three parts: heatmaps read by their mean position instead of their maximum (DSNT, which is `keypoints.soft_argmax`);
labels from the rendered faces; and unlabelled video, on which a point that is found in one frame and carried to the
next by Lucas-Kanade must be found where it arrives (the registration loss, SBR: "Supervision-by-Registration", Dong et
al., CVPR 2018). The eyes are detected a second time in close-ups, as a pupil is hardly wider than a pixel of the face's
heatmaps.

Notebook: ``notebooks/04_landmarks_on_video.ipynb``.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from minimodel.blocks import ConvBlock, Hourglass
from minimodel.errors import MinimodelError
from minimodel.keypoints import gaussian_heatmaps, soft_argmax
from minimodel.saving import find_weights, load_weights_into, make_metadata, read_config, write_weights
from minimodel.warping import full_precision, identity_grid, resize_flow, sample, size_of

LANDMARKS = 74  # the 68 iBUG points, two pupils, four middles of eyelids
LIPS = slice(48, 68)
SIZE = 128  # side of the pictures that the detector is trained on
# The landmark in each one's place in a mirrored picture: the jaw and brows run backwards, right and left trade places.
# fmt: off
MIRRORED = (
    *range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31,
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,
    69, 68, 72, 73, 70, 71,
)
# fmt: on
# The right eye: outline, pupil, middles of the lids. In a mirrored picture the left one has these names.
EYE = (36, 37, 38, 39, 40, 41, 68, 70, 71)
EYES = EYE + tuple(MIRRORED[k] for k in EYE)
CLOSE_UP = 32  # side of a picture of one eye


# ------------------------------------------------------------------------------------------ heatmaps and their reading


def argmax(heatmaps: Float[Tensor, "b k h w"], *, quarter: bool = False) -> Float[Tensor, "b k 2"]:
    """The centre of each heatmap's highest pixel, normalised: the reading of heatmaps without DSNT.

    ``quarter`` moves the point by a quarter of a pixel to the higher neighbour along x and along y, as FAN does.
    """
    height, width = heatmaps.shape[-2:]
    index = heatmaps.flatten(2).argmax(-1)
    points = identity_grid(height, width, device=heatmaps.device, dtype=heatmaps.dtype).flatten(1).T[index]
    if not quarter:
        return points
    around = F.pad(heatmaps, (1, 1, 1, 1), mode="replicate").flatten(2)
    centre = (index // width + 1) * (width + 2) + index % width + 1
    across, down = (
        (around.gather(2, (centre + step)[..., None]) - around.gather(2, (centre - step)[..., None]))[..., 0].sign()
        for step in (1, width + 2)
    )
    return points + torch.stack([across / width, down / height], dim=-1) / 2


def heatmap_loss(
    logits: Float[Tensor, "b k h w"], points: Float[Tensor, "b k 2"], inside: Bool[Tensor, "b k"], *, sigma: float = 1.0
) -> Float[Tensor, ""]:
    """Cross entropy of softmax(logits) and a Gaussian of ``sigma`` heatmap pixels around the true points.

    Points are normalised; only those ``inside`` the picture count. Many heatmaps have the same mean position, and this
    loss chooses one of them. The DSNT paper's regulariser, a Jensen-Shannon divergence, does the same; the gradient of
    the cross entropy doesn't vanish where a heatmap is all wrong.
    """
    size = size_of(logits)
    target = gaussian_heatmaps(points, size, (2 * sigma / size[0]) ** 2).flatten(2)
    target = target / target.sum(-1, keepdim=True).clamp_min(1e-6)
    entropy = -(target * torch.log_softmax(logits.flatten(2), dim=-1)).sum(-1)
    return (entropy * inside).sum() / inside.sum().clamp_min(1)


def point_loss(
    found: Float[Tensor, "b k 2"], points: Float[Tensor, "b k 2"], inside: Bool[Tensor, "b k"]
) -> Float[Tensor, ""]:
    """Mean distance of found and true points, normalised, over the points ``inside`` the picture."""
    distance = ((found - points).square().sum(-1) + 1e-8).sqrt()
    return (distance * inside).sum() / inside.sum().clamp_min(1)


def sharpness(heatmaps: Float[Tensor, "b k h w"], points: Float[Tensor, "b k 2"]) -> Float[Tensor, "b k"]:
    """The share of each heatmap within two heatmap pixels of its point.

    The share is near 1 where the detector is certain, low where the heatmap is spread.
    """
    height, width = heatmaps.shape[-2:]
    extent = torch.tensor((width, height), device=points.device, dtype=points.dtype)
    grid = identity_grid(height, width, device=points.device, dtype=points.dtype)
    distance = (grid.permute(1, 2, 0) - points[:, :, None, None]) * extent / 2
    return (heatmaps * (distance.norm(dim=-1) < 2)).sum((2, 3))


def confidence(heatmaps: Float[Tensor, "b k h w"], points: Float[Tensor, "b k 2"]) -> Float[Tensor, "b"]:
    """The mean `sharpness` of all points: near 1 where there is a face, low where there is none."""
    return sharpness(heatmaps, points).mean(1)


@dataclass(frozen=True)
class DetectorConfig:
    """Sizes of a `LandmarkDetector`; saved with its weights."""

    points: int = LANDMARKS
    scale: int = 4
    """Heatmaps have 1 / scale of the picture's side; the hourglasses get all pixels, stacked as channels."""
    width: int = 48
    """Channels between the hourglasses."""
    base: int = 24
    levels: int = 3
    maximum: int = 96
    stacks: int = 2
    norm: str = "batch"


class HeatmapNetwork(nn.Module):
    """Predicts logits of heatmaps by stacked hourglasses; each one's heatmaps are input of the next (a small FAN)."""

    def __init__(self, c: DetectorConfig):
        super().__init__()
        self.stem = nn.Sequential(nn.PixelUnshuffle(c.scale), ConvBlock(3 * c.scale**2, c.width, norm=c.norm))
        sizes: dict[str, Any] = dict(base=c.base, levels=c.levels, maximum=c.maximum, norm=c.norm)
        hourglasses = [Hourglass(c.width, **sizes) for _ in range(c.stacks)]
        self.hourglasses = nn.ModuleList(hourglasses)
        channels = hourglasses[0].channels
        self.heads = nn.ModuleList(nn.Conv2d(channels, c.points, 1) for _ in range(c.stacks))
        self.merges = nn.ModuleList(nn.Conv2d(channels + c.points, c.width, 1) for _ in range(c.stacks - 1))

    def forward(self, image: Float[Tensor, "b 3 height width"]) -> list[Float[Tensor, "b k h w"]]:
        """The logits of every hourglass, all of which are trained; the last are the result."""
        x, logits = self.stem(2 * image - 1), []
        for index, (hourglass, head) in enumerate(zip(self.hourglasses, self.heads, strict=True)):
            features = hourglass(x)
            with torch.autocast(image.device.type, enabled=False):  # bfloat16 would put points onto a coarse grid
                logits.append(head(features.float()))
            if index < len(self.merges):
                x = x + self.merges[index](torch.cat([features, logits[-1]], dim=1))
        return logits


class LandmarkDetector(nn.Module):
    """Finds the 74 landmarks of a face: heatmaps of the whole face, read by DSNT, then of a close-up of each eye.

    >>> points = LandmarkDetector.load().find(pictures)  # (b, 3, h, w) in [0, 1] -> (b, 74, 2), normalised
    """

    def __init__(self, config: DetectorConfig = DetectorConfig()):
        super().__init__()
        self.config = config
        self.face = HeatmapNetwork(config)
        self.eye = HeatmapNetwork(dataclasses.replace(config, points=len(EYE), scale=2, stacks=1))

    def stages(self, image: Float[Tensor, "b 3 height width"]) -> list[Float[Tensor, "b k h w"]]:
        """The logits of the face's heatmaps, from every hourglass.

        A picture whose sides the hourglasses can't halve raises a `MinimodelError`.
        """
        self.check_size(*image.shape[-2:])
        return self.face(image)

    def forward(
        self, image: Float[Tensor, "b 3 height width"]
    ) -> tuple[Float[Tensor, "b k 2"], Float[Tensor, "b k h w"]]:
        """The normalised points, and the face's heatmaps; points other than those of the eyes are the heatmaps' means.

        Sides must be multiples of the hourglasses' step; `find` takes any size.
        """
        points, heatmaps = soft_argmax(self.stages(image)[-1])
        return self.look_closer(image, points)[0], heatmaps

    def look_closer(
        self, image: Float[Tensor, "b 3 height width"], points: Float[Tensor, "b k 2"]
    ) -> tuple[Float[Tensor, "b k 2"], Float[Tensor, "2*b 9 h w"], Float[Tensor, "2*b 2 3"]]:
        """Find the points of the eyes again, in close-ups.

        Returns all points, the close-ups' logits and their `eye_places`; the latter two list all right eyes, then all
        left ones.
        """
        places = eye_places(points.detach())
        logits = self.eye(move_picture(image.repeat(2, 1, 1, 1), places, CLOSE_UP))[-1]
        with torch.autocast(image.device.type, enabled=False):
            found = soft_argmax(logits)[0] @ places[..., :2].transpose(1, 2) + places[:, None, :, 2]
        eyes = torch.cat(found.chunk(2), dim=1)
        return points.index_copy(1, torch.tensor(EYES, device=points.device), eyes), logits, places

    def find(self, image: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b k 2"]:
        """Find the normalised points of pictures of any size, which are resized to `SIZE` pixels a side first."""
        return self(resize_flow(image, (SIZE, SIZE)))[0]

    def check_size(self, height: int, width: int) -> None:
        """Raise a `MinimodelError` unless both sides are multiples of the hourglasses' step."""
        step = self.config.scale * 2**self.config.levels
        if height % step or width % step or not height or not width:
            raise MinimodelError(f"picture of {height} x {width} pixels: expected sides that are multiples of {step}")

    def save(self, path: str | Path) -> None:
        """Write the weights, with the configuration for `load`."""
        config = json.dumps(dataclasses.asdict(self.config))
        write_weights(self, path, make_metadata(config, kind="landmarks"))

    @classmethod
    def load(cls, name_or_path: str | Path = "landmarks") -> "LandmarkDetector":
        """Load the shipped detector, or a file written by `save`; on the CPU, in evaluation mode.

        Any other file raises a `MinimodelError`.
        """
        path = find_weights(name_or_path, ["landmarks"])
        detector = cls(read_config(path, "landmarks", lambda text: DetectorConfig(**json.loads(text))))
        load_weights_into(detector, path)
        return detector.eval()


class LandmarkFinder(nn.Module):
    """Finds landmarks by a detector that isn't a part of the model: the detector is trained on its own, and its weights
    are neither trained nor saved with the model's. It does move with the model to a device.

    ``detector`` is the shipped one, loaded when first needed, unless `use` sets another.
    """

    detector: LandmarkDetector | None

    def __init__(self):
        super().__init__()
        self.use(None)

    def use(self, detector: LandmarkDetector | None) -> None:
        """Find landmarks with ``detector``; None is the shipped one."""
        object.__setattr__(self, "detector", detector)  # past nn.Module, which would register the detector as a part

    def _apply(self, fn, recurse=True):
        if self.detector is not None:
            self.detector._apply(fn)
        return super()._apply(fn, recurse)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 74 2"]:
        if self.detector is None:
            with torch.inference_mode(False):  # or its weights would be of use in this mode alone
                self.use(LandmarkDetector.load().to(image.device))
        assert self.detector is not None
        return self.detector.find(image)


def eye_places(points: Float[Tensor, "b 74 2"]) -> Float[Tensor, "2*b 2 3"]:
    """Affine maps, for `move_picture`, from close-ups of the eyes to the picture with these landmarks.

    All right eyes come first, then all left ones, mirrored, so that one network serves both. The sides of a close-up
    are 1.6 times the width of the wider eye.
    """
    eyes = points[:, EYES].unflatten(1, (2, -1))[:, :, :6]  # outlines
    centre = eyes.mean(2).transpose(0, 1).flatten(0, 1)
    width = (eyes[:, :, 3] - eyes[:, :, 0]).norm(dim=-1).amax(1).clamp_min(0.05)
    half, zero = 0.8 * width.repeat(2), torch.zeros_like(centre[:, 0])
    mirror = torch.tensor([1.0, -1.0], device=points.device).repeat_interleave(len(points))
    x, y = centre.unbind(-1)
    return torch.stack([mirror * half, zero, x, zero, half, y], dim=1).view(-1, 2, 3)


# ---------------------------------------------------------------------------------------------------- registration


def patches(image: Float[Tensor, "b c h w"], points: Float[Tensor, "b k 2"], radius: int) -> Float[Tensor, "b c k n n"]:
    """Sample the (2 radius + 1)² pixels around each normalised point, bilinear; outside, the edge is repeated."""
    height, width = image.shape[-2:]
    side = 2 * radius + 1
    # Steps of one pixel around 0: the grid of a patch, converted to the picture's units.
    extent = torch.tensor((side / width, side / height), device=points.device, dtype=points.dtype)
    offsets = identity_grid(side, side, device=points.device, dtype=points.dtype).flatten(1).T * extent
    positions = points[:, :, None] + offsets
    return rearrange(sample(image, positions), "b c k (i j) -> b c k i j", i=side)


@full_precision
def lucas_kanade(
    start: Float[Tensor, "b c h w"],
    end: Float[Tensor, "b c h w"],
    points: Float[Tensor, "b k 2"],
    *,
    radius: int = 4,
    levels: int = 3,
    iterations: int = 5,
    damping: float = 0.01,
) -> Float[Tensor, "b k 2"]:
    """Follow ``points`` (normalised) from frame ``start`` to frame ``end``: Lucas-Kanade on a pyramid, coarse to fine.

    At each level the patch around a point is compared with the other frame's, and the point moves by least squares:
    d = (Σ J Jᵀ)⁻¹ Σ J (other - patch), with J the gradient of the patch, which stays the same over ``iterations`` (the
    inverse compositional form). ``damping`` is added to the matrix's diagonal, so that a patch without texture stays
    in place. Everything is differentiable, in the points and in both frames. Frames too small for ``levels`` of patches
    raise a `MinimodelError`.
    """
    height, width = start.shape[-2:]
    least = (2 * radius + 3) * 2 ** (levels - 1)
    if min(height, width) < least:
        raise MinimodelError(
            f"frames of {height} x {width} pixels: expected sides of at least {least} for {levels} levels of patches"
            f" with radius {radius}"
        )
    moved = points
    for level in reversed(range(levels)):
        one, other = (F.avg_pool2d(frame, 2**level) if level else frame for frame in (start, end))
        extent = torch.tensor(one.shape[:-3:-1], device=points.device, dtype=points.dtype)
        wide = patches(one, points, radius + 1)
        patch = wide[..., 1:-1, 1:-1]
        right = (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) / 2
        down = (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) / 2
        xx, xy, yy = ((a * b).sum((1, 3, 4)) for a, b in ((right, right), (right, down), (down, down)))
        xx, yy = xx + damping, yy + damping
        determinant = xx * yy - xy * xy
        for _ in range(iterations):
            difference = patches(other, moved, radius) - patch
            x, y = ((a * difference).sum((1, 3, 4)) for a in (right, down))
            step = torch.stack([yy * x - xy * y, xx * y - xy * x], dim=-1) / determinant[..., None]
            moved = moved - step * 2 / extent
    return moved


def track(
    start: Float[Tensor, "b c h w"],
    end: Float[Tensor, "b c h w"],
    points: Float[Tensor, "b k 2"],
    *,
    tolerance: float = 0.5,
    **options,
) -> tuple[Float[Tensor, "b k 2"], Bool[Tensor, "b k"]]:
    """Run `lucas_kanade`, and mark the reliable points.

    A point is reliable if it lies inside both frames, and if tracking back ends within ``tolerance`` pixels of the
    point's start.
    """
    moved = lucas_kanade(start, end, points, **options)
    with torch.no_grad():
        back = lucas_kanade(end, start, moved, **options)
        pixel = 2 / torch.tensor(start.shape[:-3:-1], device=points.device, dtype=points.dtype)
        returned = ((back - points) / pixel).norm(dim=-1) < tolerance
        return moved, returned & (points.abs() < 1).all(-1) & (moved.abs() < 1).all(-1)


def registration_loss(
    start: Float[Tensor, "b c h w"],
    end: Float[Tensor, "b c h w"],
    found_start: Float[Tensor, "b k 2"],
    found_end: Float[Tensor, "b k 2"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The points of the first of two neighbouring frames, tracked to the second, should be found there (SBR).

    Returns the mean normalised distance over reliable points (see `track`), and the share of reliable points.
    """
    moved, reliable = track(start, end, found_start)
    return point_loss(found_end, moved, reliable), reliable.float().mean()


# ------------------------------------------------------------------------------------------------ changes for training


def random_places(
    count: int,
    generator: torch.Generator,
    *,
    zoom: tuple[float, float] = (0.8, 1.5),
    rotation: float = 0.35,
    shift: float = 0.15,
    mirror: bool = True,
) -> Float[Tensor, "b 2 3"]:
    """Draw affine maps from positions in a changed picture to positions in the original one (for `move_picture`).

    Pictures are turned by up to ``rotation`` radians and shifted by up to ``shift`` (normalised). Faces become smaller
    by a factor between the two of ``zoom``. With ``mirror`` half of the pictures are mirrored.
    """
    low, high = zoom
    scale = low * (high / low) ** torch.rand(count, generator=generator)
    angle = rotation * (2 * torch.rand(count, generator=generator) - 1)
    x, y = shift * (2 * torch.rand(2, count, generator=generator) - 1)
    flip = 1 - 2.0 * (torch.rand(count, generator=generator) < 0.5) * mirror
    cos, sin = scale * angle.cos(), scale * angle.sin()
    return torch.stack([flip * cos, -flip * sin, x, sin, cos, y], dim=1).view(-1, 2, 3)


@full_precision
def move_picture(
    image: Float[Tensor, "b 3 height width"], places: Float[Tensor, "b 2 3"], side: int | None = None
) -> Float[Tensor, "b 3 h w"]:
    """Move a picture by affine maps: the result has at z the value of ``image`` at places(z).

    The size stays the same, unless ``side`` is given, for ``side`` x ``side`` pixels.
    """
    height, width = (side, side) if side else image.shape[-2:]
    grid = identity_grid(height, width, device=image.device, dtype=places.dtype)
    return sample(image, einsum(places[..., :2], grid, "b i j, j h w -> b h w i") + places[:, None, None, :, 2])


def move_points(points: Float[Tensor, "b 74 2"], places: Float[Tensor, "b 2 3"]) -> Float[Tensor, "b 74 2"]:
    """Move normalised landmarks as `move_picture` moves the picture; if mirrored, right and left trade places."""
    matrix = places[..., :2]
    moved = torch.linalg.solve(matrix, (points - places[:, None, :, 2]).transpose(1, 2)).transpose(1, 2)
    mirrored = torch.linalg.det(matrix) < 0
    return torch.where(mirrored[:, None, None], moved[:, MIRRORED], moved)


def spoil(image: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Degrade pictures as photographs are: half of them get an object in front of the face, a third are blurred."""
    count, _, height, width = image.shape
    grid = identity_grid(height, width, device=image.device)
    middle = 1.6 * torch.rand(count, 2, 1, 1, generator=generator) - 0.8
    half = 0.08 + 0.27 * torch.rand(count, 2, 1, 1, generator=generator)
    half = half * (torch.rand(count, 1, 1, 1, generator=generator) < 0.5)
    covered = ((grid - middle.to(image)).abs() < half.to(image)).all(1, keepdim=True)
    # The object in front is a piece of another picture, upside down.
    image = torch.where(covered, image.roll(1, 0).flip(2), image)
    return soften(image, generator)


def soften(image: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Blur a third of the pictures, as if they had been half as large."""
    small = F.interpolate(F.avg_pool2d(image, 2), size=image.shape[-2:], mode="bilinear", align_corners=False)
    blurred = torch.rand(len(image), 1, 1, 1, generator=generator) < 0.33
    return torch.where(blurred.to(image.device), small, image)
