"""The sizes of a published model, read from the shapes in its checkpoint.

`PublishedConfig` holds all that is needed to build the model again.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

ModelName = Literal["fomm", "tpsm", "mrfa", "mtia"]
PublishedPriorName = Literal["affine", "tps", "tokens"]
MODELS: tuple[ModelName, ...] = ("fomm", "tpsm", "mrfa", "mtia")
HEADS = 8  # of MTIA's transformer; no shape shows it
RADIUS = 3  # of MRFA's lookup
IMAGE_SIZE = 256  # where no shape shows another
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class PublishedConfig:
    """Sizes and conventions of one model; parts that it lacks are None.

    ``align_corners`` is how FOMM and MTIA sample; the other two fix it. The sizes of the networks are the arguments of
    the classes in `networks`.
    """

    model: ModelName
    prior: PublishedPriorName
    points: int  # parts; a spline of 5 points each with prior "tps"
    detector: dict
    dense_motion: dict
    generator: dict
    background: dict | None = None
    refiner: dict | None = None
    avd: dict | None = None
    align_corners: bool = False
    image_size: int = IMAGE_SIZE

    @classmethod
    def from_json(cls, text: str) -> "PublishedConfig":
        """Read a configuration that `to_json` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """The configuration as JSON text."""
        return json.dumps(asdict(self))


def recognise(names: Mapping[str, object]) -> ModelName | None:
    """Recognise the model by the names of a checkpoint's entries; None if none or several fit."""
    marks: dict[ModelName, str] = {
        "fomm": "kp_detector.predictor.",
        "mtia": "kp_detector.transformer.",
        "tpsm": "inpainting_network.",
        "mrfa": "model.decoder.",
    }
    found = [model for model, mark in marks.items() if any(name.startswith(mark) for name in names)]
    return found[0] if len(found) == 1 else None


def read_config(shapes: Shapes, model: ModelName, *, align_corners: bool = False) -> PublishedConfig:
    """Read a model's sizes from the shapes of its checkpoint. Raises `KeyError` with the name of a missing entry, and
    `ValueError` for sizes that don't fit together."""
    if model == "mrfa":
        return _mrfa(shapes)
    if model == "tpsm":
        return _tpsm(shapes)
    detector = _tokens(shapes, "kp_detector") if model == "mtia" else _heatmaps(shapes, "kp_detector")
    image_size = IMAGE_SIZE
    if model == "mtia":
        image_size = 4 * detector["patch"] * math.isqrt(detector["places"])
    generator = _source_encoder(shapes, "generator")
    generator["blocks"] = _count(shapes, r"generator\.bottleneck\.r(\d+)\.")
    return PublishedConfig(
        model=model,
        prior="tokens" if model == "mtia" else "affine",
        points=detector.pop("points"),
        detector=detector,
        dense_motion=_dense_motion(shapes, "generator.dense_motion_network"),
        generator=generator,
        background=_background(shapes, "bg_predictor.bg_encoder"),
        align_corners=align_corners,
        image_size=image_size,
    )


def _tpsm(shapes: Shapes) -> PublishedConfig:
    dense_motion = _dense_motion(shapes, "dense_motion_network")
    finer = _count(shapes, r"dense_motion_network\.up\.(\d+)\.")
    occlusions = _count(shapes, r"dense_motion_network\.occlusion\.(\d+)\.")
    dense_motion |= dict(finer=finer, coarser=occlusions - finer - 1)
    return PublishedConfig(
        model="tpsm",
        prior="tps",
        points=_splines(shapes, "kp_detector"),
        detector=_resnet(shapes, "kp_detector.fg_encoder"),
        dense_motion=dense_motion,
        generator=_source_encoder(shapes, "inpainting_network"),
        background=_background(shapes, "bg_predictor.bg_encoder"),
        avd=_avd(shapes),
        align_corners=True,
    )


def _mrfa(shapes: Shapes) -> PublishedConfig:

    def has(mark: str) -> bool:
        return any(name.startswith(mark) for name in shapes)

    prior: PublishedPriorName = "tokens" if has("model.encoder.transformer.") else "affine"
    prior = "tps" if has("model.encoder.fg_encoder.") else prior
    dense_motion = _dense_motion(shapes, "model.dense_motion")
    if prior == "tps":
        points = _splines(shapes, "model.encoder")
        detector = _resnet(shapes, "model.encoder.fg_encoder")
        dense_motion |= dict(finer=0, coarser=0)
    else:
        detector = (_tokens if prior == "tokens" else _heatmaps)(shapes, "model.encoder")
        points = detector.pop("points")
    refiner: dict[str, Any] | None = None
    if has("model.decoder.corr_enc."):
        inputs = shapes["model.decoder.corr_enc.convc1.weight"][1]
        structure = _hourglass(shapes, "model.decoder.kp") | dict(size=shapes["model.decoder.pos_embedding"][-1])
        refiner = dict(
            features=shapes["model.decoder.kp_head.weight"][0],
            structure=structure,
            radius=RADIUS,
            levels=inputs // (2 * RADIUS + 1) ** 2,
        )
    return PublishedConfig(
        model="mrfa",
        prior=prior,
        points=points,
        detector=detector,
        dense_motion=dense_motion,
        generator=_source_encoder(shapes, "model.decoder.generator"),
        background=_background(shapes, "model.bg_predictor.bg_encoder"),
        refiner=refiner,
        image_size=IMAGE_SIZE if refiner is None else 4 * refiner["structure"]["size"],
    )


def _count(shapes: Shapes, pattern: str) -> int:
    """Count the different numbers that the pattern's group matches among the names."""
    found = {int(match[1]) for name in shapes if (match := re.match(pattern, name))}
    return len(found)


def _hourglass(shapes: Shapes, name: str) -> dict:
    levels = _count(shapes, re.escape(name) + r"\.encoder\.down_blocks\.(\d+)\.")
    widths = [shapes[f"{name}.encoder.down_blocks.{level}.conv.weight"][0] for level in range(max(1, levels))]
    base = shapes[f"{name}.decoder.up_blocks.{levels - 1}.conv.weight"][0]
    return dict(base=base, levels=levels, maximum=max(widths))


def _source_encoder(shapes: Shapes, name: str) -> dict:
    levels = _count(shapes, re.escape(name) + r"\.down_blocks\.(\d+)\.")
    widths = [shapes[f"{name}.down_blocks.{level}.conv.weight"][0] for level in range(max(1, levels))]
    first = shapes[f"{name}.first.conv.weight"]
    return dict(base=first[0], levels=levels, maximum=max(widths), outer_kernel=first[-1])


def _dense_motion(shapes: Shapes, name: str) -> dict:
    head = "maps" if f"{name}.maps.weight" in shapes else "mask"
    return _hourglass(shapes, f"{name}.hourglass") | dict(head_kernel=shapes[f"{name}.{head}.weight"][-1])


def _heatmaps(shapes: Shapes, name: str) -> dict:
    points, _, _, kernel = shapes[f"{name}.kp.weight"]
    matrix_maps = shapes[f"{name}.jacobian.weight"][0] // 4
    sizes = _hourglass(shapes, f"{name}.predictor")
    return sizes | dict(points=points, matrix_maps=matrix_maps, head_kernel=kernel)


def _background(shapes: Shapes, name: str) -> dict | None:
    return _resnet(shapes, name) if any(key.startswith(f"{name}.") for key in shapes) else None


def _resnet(shapes: Shapes, name: str) -> dict:
    base = shapes[f"{name}.conv1.weight"][0]
    levels = _count(shapes, re.escape(name) + r"\.layer(\d+)\.")
    return dict(base=base, levels=levels, blocks=_count(shapes, re.escape(name) + r"\.layer1\.(\d+)\."), pool=True)


def _splines(shapes: Shapes, name: str) -> int:
    return shapes[f"{name}.fg_encoder.fc.weight"][0] // 10


def _tokens(shapes: Shapes, name: str) -> dict:
    tokens, trunk = f"{name}.transformer", f"{name}.pre_feature"
    base = shapes[f"{trunk}.transition1.0.0.weight"][0]
    width, inputs = shapes[f"{tokens}.patch_to_embedding.weight"]
    return dict(
        points=shapes[f"{tokens}.keypoint_token"][1] // 2,
        trunk=dict(
            stem=shapes[f"{trunk}.conv1.weight"][0],
            first_blocks=_count(shapes, re.escape(trunk) + r"\.layer1\.(\d+)\."),
            expanded=shapes[f"{trunk}.layer1.0.conv3.weight"][0],
            base=base,
            exchanges=[_count(shapes, re.escape(trunk) + rf"\.stage{n}\.(\d+)\.") for n in (2, 3)],
            blocks=_count(shapes, re.escape(trunk) + r"\.stage2\.0\.branches\.0\.(\d+)\."),
        ),
        patch=math.isqrt(inputs // base),
        width=width,
        depth=_count(shapes, re.escape(tokens) + r"\.transformer\.layers\.(\d+)\."),
        heads=HEADS,
        hidden=shapes[f"{tokens}.transformer.layers.0.1.fn.fn.net.0.weight"][0],
        places=shapes[f"{tokens}.pos_embedding"][1],
    )


def _avd(shapes: Shapes) -> dict | None:
    if not any(name.startswith("avd_network.") for name in shapes):
        return None
    widths: list[int] = []
    while (key := f"avd_network.id_encoder.{3 * len(widths) + 1}.weight") in shapes:
        widths.append(shapes[key][0])
    last = 3 * len(widths)
    return dict(
        widths=widths,
        shape_code=shapes[f"avd_network.id_encoder.{last}.weight"][0],
        pose_code=shapes[f"avd_network.pose_encoder.{last}.weight"][0],
    )
