"""The networks of each published model, built from the sizes in its file, and the way in which its code samples and
resizes."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from minimodel.blocks import ResNet
from minimodel.generator import SourceEncoder
from minimodel.keypoints import SplineDetector
from minimodel.published.avd import PublishedAvdNetwork
from minimodel.published.detectors import HeatmapDetector, PointTokenDetector
from minimodel.published.generators import (
    BottleneckGenerator,
    CoarseStreamUNet,
    GatedBottleneckGenerator,
    PublishedInpaintingNetwork,
)
from minimodel.published.motion import POINTS_PER_SPLINE, PublishedDenseMotion, PublishedPrior
from minimodel.published.refinement import PublishedRefiner, PublishedStructure
from minimodel.published.sizes import PublishedConfig


@dataclass(frozen=True)
class Handling:
    """How a model's code samples and resizes: ``align_corners`` of three steps (see `conventions`), and whether
    occlusions are resized as logits."""

    coarse: bool  # the dense motion network samples the small source
    features: bool  # the generator samples features and picture
    resizing: bool  # grids and occlusions are resized
    resizes_logits: bool = False  # or what the sigmoid gave of an occlusion


def handling(config: PublishedConfig) -> Handling:
    """The handling of a model, by its kind."""
    if config.model in ("fomm", "mtia"):
        return Handling(config.align_corners, config.align_corners, resizing=False)
    if config.model == "tpsm":
        return Handling(coarse=True, features=True, resizing=True)
    return Handling(coarse=config.prior == "tps", features=False, resizing=True, resizes_logits=True)


def build_prior(config: PublishedConfig) -> PublishedPrior:
    """Build the detector, the dense motion network and, if the checkpoint has one, the background's network."""
    prior = PublishedPrior(_detector(config), _dense_motion(config), _background(config))
    if config.model == "tpsm":
        _use_instance_norms(prior.dense_motion)
    return prior


def build_generator(config: PublishedConfig) -> SourceEncoder:
    """Build the generator."""
    generators = {
        "fomm": BottleneckGenerator,
        "mtia": GatedBottleneckGenerator,
        "mrfa": CoarseStreamUNet,
        "tpsm": PublishedInpaintingNetwork,
    }
    streams = dict(streams=config.refiner is not None) if config.model == "mrfa" else {}
    generator = generators[config.model](**config.generator, **streams)
    if config.model == "tpsm":
        _use_instance_norms(generator)
    return generator


def build_refinement(
    config: PublishedConfig, feature_channels: list[int]
) -> tuple[PublishedStructure, PublishedRefiner] | tuple[None, None]:
    """Build the structure encoders with their correlation, and the refiner; None for both if the model has no
    refinement."""
    if config.refiner is None:
        return None, None
    lookup = dict(radius=config.refiner["radius"], pyramid_levels=config.refiner["levels"])
    structure = PublishedStructure(config.points, config.refiner["features"], **config.refiner["structure"], **lookup)
    return structure, PublishedRefiner(feature_channels, **lookup)


def build_avd(config: PublishedConfig) -> PublishedAvdNetwork | None:
    """Build the avd network; None if the checkpoint has none."""
    return None if config.avd is None else PublishedAvdNetwork(config.points * POINTS_PER_SPLINE, **config.avd)


def _detector(config: PublishedConfig) -> SplineDetector | HeatmapDetector | PointTokenDetector:
    if config.prior == "tps":
        return SplineDetector(config.points, POINTS_PER_SPLINE, **config.detector, norm="batch")
    return (HeatmapDetector if config.prior == "affine" else PointTokenDetector)(config.points, **config.detector)


def _dense_motion(config: PublishedConfig) -> PublishedDenseMotion:
    splines: dict[str, Any] = (
        dict(points_per_part=POINTS_PER_SPLINE, interleaved=False) if config.prior == "tps" else {}
    )
    return PublishedDenseMotion(config.points, **config.dense_motion, align_corners=handling(config).coarse, **splines)


def _background(config: PublishedConfig) -> ResNet | None:
    return None if config.background is None else ResNet(6, 6, **config.background, norm="batch")


def _use_instance_norms(network: nn.Module) -> None:
    """Replace batch norms by TPSM's instance norms: each channel of each picture is normalised by its own mean and
    deviation."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.InstanceNorm2d(child.num_features, affine=True))
