"""Assessors: networks that read faces for the metrics. They find landmarks, identity, rotation of the head and
expression.

The papers use other people's networks: a landmark detector (AKD, MKR), OpenFace (AED), py-feat (ARD, AUH), Inception
(FID). Ours are small and shipped, so that every metric runs everywhere. They were trained on the rendered faces, of
which all answers are known. Numbers by one set of assessors can't be compared with numbers by another.

`minimodel.evaluation.metrics.fid` takes any network's features. Those of ours are `minimodel.features.FaceFeatures`;
the published network is `minimodel.evaluation.inception.Inception`.

Notebook: ``notebooks/09b_what_a_table_hides.ipynb``.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from minimodel.blocks import StridedBlock
from minimodel.features import load_features
from minimodel.landmarks import LANDMARKS, LandmarkDetector, sharpness
from minimodel.landmarks import SIZE as LANDMARK_SIZE
from minimodel.saving import find_weights, load_weights_into, make_metadata, read_config, write_weights
from minimodel.warping import size_of

SIZE = 64  # side in pixels of the pictures that the reader takes
ROTATION = ("yaw", "pitch", "roll")
EXPRESSION = ("jaw", "part", "smile", "wide", "brows", "frown", "lids")
# The action units that the rendered faces can show: the variable of `EXPRESSION` that decides each, the threshold, and
# whether the unit is active above (1) or below it (-1).
UNITS = {
    "brows raised (1 + 2)": ("brows", 0.3, 1),
    "brows lowered (4)": ("frown", 0.3, 1),
    "lips' corners up (12)": ("smile", 0.4, 1),
    "lips' corners down (15)": ("smile", -0.2, -1),
    "lips rounded (18)": ("wide", -0.3, -1),
    "lips stretched (20)": ("wide", 0.3, 1),
    "lips parted (25)": ("part", 0.25, 1),
    "jaw dropped (26)": ("jaw", 0.25, 1),
    "eyes shut (43)": ("lids", 0.5, -1),
}
# A landmark counts as found where this share of its heatmap lies within two of its pixels of it. On faces that the
# detector wasn't trained on 99.6 % do, on mouths that are cut off about a quarter, and none on noise.
FOUND = 0.7


@dataclass(frozen=True)
class ReaderConfig:
    """Sizes of a `FaceReader`; saved with its weights."""

    widths: tuple[int, ...] = (48, 96, 192)
    """Channels of the blocks; the first has a quarter of the picture's resolution, each other half of the one before:
    its input is all pixels, stacked as channels."""
    narrow: int = 64
    """Channels whose 4 x 4 places are read one by one."""
    embedding: int = 64
    hidden: int = 128
    """Width of the two layers between landmarks and expression."""


class FaceReader(nn.Module):
    """Reads identity, rotation of the head and expression from a face's picture and its landmarks.

    It is two networks in one. A residual network reads identity and rotation from the picture. Lids, lips and brows
    take up a few of 64 x 64 pixels, too few to learn them from the picture in 15 minutes; so the expression is read
    from the landmarks.
    """

    mean: Tensor
    std: Tensor
    place_mean: Tensor
    place_std: Tensor

    def __init__(self, config: ReaderConfig = ReaderConfig()):
        super().__init__()
        self.config = c = config
        inputs, self.trunk = 3 * 16, nn.Sequential(nn.PixelUnshuffle(4))
        for index, width in enumerate(c.widths):
            self.trunk.append(StridedBlock(inputs, width, stride=1 if index == 0 else 2, norm="batch"))
            inputs = width
        self.trunk.extend([nn.Conv2d(inputs, c.narrow, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()])
        self.identity = nn.Linear(16 * c.narrow, c.embedding)
        self.rotation = nn.Linear(16 * c.narrow, len(ROTATION))
        self.expression = nn.Sequential(nn.Linear(2 * LANDMARKS, c.hidden), nn.ReLU())
        self.expression.extend([nn.Linear(c.hidden, c.hidden), nn.ReLU(), nn.Linear(c.hidden, len(EXPRESSION))])
        # Mean and standard deviation over training faces: of rotation and expression, and of aligned landmarks.
        self.register_buffer("mean", torch.zeros(len(ROTATION + EXPRESSION)))
        self.register_buffer("std", torch.ones(len(ROTATION + EXPRESSION)))
        self.register_buffer("place_mean", torch.zeros(2 * LANDMARKS))
        self.register_buffer("place_std", torch.ones(2 * LANDMARKS))

    def forward(
        self, image: Float[Tensor, "b 3 h w"], points: Float[Tensor, "b 74 2"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b 3"], Float[Tensor, "b 7"]]:
        """Read faces: the identity's embedding, of length 1; yaw, pitch and roll in degrees; and `EXPRESSION`, in the
        units of `minimodel.data.synthetic.State`, averaged over both sides. ``image`` has any size; ``points`` are
        normalised."""
        x = self.trunk(2 * resized(image, SIZE) - 1)
        with torch.autocast(image.device.type, enabled=False):  # bfloat16 would put landmarks onto a coarse grid
            places = (aligned(points.float()) - self.place_mean) / self.place_std
            values = torch.cat([self.rotation(x.float()), self.expression(places)], dim=1)
            values = self.mean + self.std * values
            return F.normalize(self.identity(x.float()), dim=1), *values.split([len(ROTATION), len(EXPRESSION)], dim=1)

    def save(self, path: str | Path) -> None:
        """Write the weights and the configuration as a .safetensors file."""
        config = json.dumps(dataclasses.asdict(self.config))
        write_weights(self, path, make_metadata(config, kind="assessors"))

    @classmethod
    def load(cls, name_or_path: str | Path = "assessors") -> "FaceReader":
        """Load the shipped reader, or a file written by `save`. It is on the CPU and in evaluation mode."""
        path = find_weights(name_or_path, ["assessors"])

        def config(text: str) -> ReaderConfig:
            sizes = json.loads(text)
            return ReaderConfig(**sizes | dict(widths=tuple(sizes["widths"])))

        reader = cls(read_config(path, "assessors", config))
        load_weights_into(reader, path)
        return reader.eval()


def aligned(points: Float[Tensor, "b 74 2"]) -> Float[Tensor, "b 148"]:
    """Centre landmarks and divide them by their spread (root of the mean squared distance from the centre). The result
    doesn't depend on place and size of the face."""
    centred = points - points.mean(1, keepdim=True)
    return (centred / centred.square().sum(2).mean(1).sqrt()[:, None, None]).flatten(1)


def resized(image: Float[Tensor, "b 3 height width"], size: int) -> Float[Tensor, "b 3 {size} {size}"]:
    """Resize pictures to ``size`` x ``size``, without aliasing where they shrink."""
    if size_of(image) == (size, size):
        return image
    return F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


def active_units(expression: Float[Tensor, "b 7"]) -> Bool[Tensor, "b 9"]:
    """Decide from the expression which of the action units `UNITS` are active, in that order."""
    columns = [sign * (expression[:, EXPRESSION.index(name)] - least) > 0 for name, least, sign in UNITS.values()]
    return torch.stack(columns, dim=1)


@dataclass(frozen=True)
class Assessment:
    """The findings of the assessors in a batch of pictures, which the metrics compare."""

    points: Float[Tensor, "b k 2"]  # landmarks, normalised
    found: Bool[Tensor, "b k"]  # which of them the detector is sure of
    embedding: Float[Tensor, "b d"]
    rotation: Float[Tensor, "b 3"]  # yaw, pitch, roll in degrees
    units: Bool[Tensor, "b n"]  # which action units are active
    features: Float[Tensor, "b f"]  # for FID


class Assessors(nn.Module):
    """Assess pictures of faces: `forward` returns an `Assessment`. Any module that does the same, with a ``source``
    that names it in tables, can take its place in `minimodel.evaluation.protocols`: one that wraps the papers'
    networks, for instance."""

    source = "ours"

    def __init__(self, detector: LandmarkDetector, reader: FaceReader, features: nn.Module):
        super().__init__()
        self.detector, self.reader, self.features = detector, reader, features

    @torch.no_grad()
    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Assessment:
        """Assess pictures of any size, colours in [0, 1]."""
        points, heatmaps = self.detector(resized(image, LANDMARK_SIZE))
        embedding, rotation, expression = self.reader(image, points)
        return Assessment(
            points=points,
            found=sharpness(heatmaps, points) > FOUND,
            embedding=embedding,
            rotation=rotation,
            units=active_units(expression),
            features=self.features(resized(image, SIZE))[-1].mean((2, 3)),
        )


def load_assessors() -> Assessors:
    """Load the shipped assessors, frozen, on the CPU."""
    return Assessors(LandmarkDetector.load(), FaceReader.load(), load_features("faces")).eval().requires_grad_(False)
