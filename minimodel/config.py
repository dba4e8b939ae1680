"""All sizes of a model in one dataclass, the presets that fill it in, and the papers' systems.

Notebook: ``notebooks/11_train_a_full_model.ipynb``.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from minimodel.errors import MinimodelError, check_choice, choose
from minimodel.landmarks import LANDMARKS
from minimodel.refinement import UpdaterWidths

PresetName = Literal["tiny", "tiny-quarter", "portrait", "small", "paper"]
SystemName = Literal["mrfa", "fomm", "npmr", "tpsm", "s2d"]
PriorName = Literal["affine", "tps", "tokens", "landmarks", "face", "none"]
GeneratorName = Literal["unet", "inpainting", "residual"]
GENERATORS: tuple[str, ...] = get_args(GeneratorName)
PRIORS: tuple[str, ...] = get_args(PriorName)


@dataclass(frozen=True)
class System:
    """The parts of a paper's system, and the milestones of its training."""

    prior: PriorName
    refine: bool
    generator: GeneratorName
    # Shares of the run after which the learning rate is a tenth. The papers have 0.6 and 0.9, in runs of days. In runs
    # of an hour the moving average of the weights replaces a long time at low learning rates.
    milestones: tuple[float, ...] = (0.85, 0.95)


SYSTEMS = {
    "fomm": System("affine", refine=False, generator="unet"),
    "mrfa": System("affine", refine=True, generator="unet"),
    "s2d": System("landmarks", refine=False, generator="residual"),
    "npmr": System("none", refine=True, generator="unet"),
    "tpsm": System("tps", refine=False, generator="inpainting", milestones=(0.7, 0.9)),
}


@dataclass(frozen=True)
class HourglassSizes:
    """Sizes of an `Hourglass`: channels of the first level, number of levels, most channels of a level."""

    base: int
    levels: int
    maximum: int


@dataclass(frozen=True)
class ResNetSizes:
    """Sizes of a `ResNet`: channels of the first level, number of levels, blocks a level, pooling before them."""

    base: int
    levels: int
    blocks: int
    pool: bool


@dataclass(frozen=True)
class TokenSizes:
    """Sizes of a `TokenDetector`."""

    base: int  # of the trunk
    blocks: int
    patch: int
    width: int
    depth: int
    heads: int
    ratio: int  # of the hidden layer's width


@dataclass(frozen=True)
class ModelConfig:
    """All sizes of a model; saved with its weights.

    The defaults are those of the `paper` preset: the published sizes, where the papers or their code give any.
    MRFA's coarse stream isn't among them; ``notebooks/A1_published_code.ipynb`` counts what else published models have.
    """

    preset: str = "paper"  # a label; files may name one that is no longer there
    prior: PriorName = "affine"
    refine: bool = True
    generator: GeneratorName = "unet"
    image_size: int = 256  # side of the training pictures; any other size that the scales divide works too
    coarse_scale: int = 4  # the coarse flow has 1 / coarse_scale of the image's side
    motion_scale: int = 1  # token detector and branches of landmarks see the picture at 1 / motion_scale of its side
    detector_scale: int | None = None  # heatmaps have 1 / detector_scale of the image's side; None is coarse_scale
    points: int = 10  # parts; the TPS prior has a spline of several points for each
    norm: str = "batch"
    head_kernel: int = 7
    folded: bool = False  # detectors get all pixels stacked as channels rather than their average
    detector: HourglassSizes = HourglassSizes(32, 5, 1024)
    spline_points: int = 5
    spline_heatmaps: bool = False  # splines' points are read from heatmaps of ``detector``, as the affine prior's are
    regularisation: float = 0.01  # of the splines
    spline_detector: ResNetSizes = ResNetSizes(64, 4, 2, pool=True)  # without heatmaps
    background: HourglassSizes = HourglassSizes(16, 2, 64)  # of the TPS prior's predictor; TPSM's is a ResNet-18
    tokens: TokenSizes = TokenSizes(base=32, blocks=4, patch=4, width=192, depth=12, heads=8, ratio=3)
    dense_motion: HourglassSizes = HourglassSizes(64, 5, 1024)
    structure: HourglassSizes = HourglassSizes(32, 5, 512)
    structure_features: int = 256
    structure_sees_image: bool = True
    radius: int = 3  # r of the lookup
    pyramid: int = 1  # P: how many times the volume is averaged
    iterations: int = 6
    updater: UpdaterWidths = UpdaterWidths()
    update_flow: bool = True
    update_occlusion: bool = True
    warped_source: bool = True
    unet: HourglassSizes = HourglassSizes(64, 5, 512)
    inpainting: HourglassSizes = HourglassSizes(64, 3, 512)
    residual: HourglassSizes = HourglassSizes(64, 2, 512)  # of the residual generator, with ...
    residual_blocks: int = 6
    whole_branch: HourglassSizes = HourglassSizes(32, 5, 512)  # the global branch of the landmarks prior ...
    whole_scale: int = 1  # ... gets the picture at 1 / whole_scale of its side
    local_branch: HourglassSizes = HourglassSizes(32, 3, 128)  # of each local branch
    adain: bool = True
    add_motion: bool = True
    local_motion: bool = True
    coarse_stream: bool = False  # the U-Net's decoder also gets the source's features as the coarse flow warps them
    blend: bool = True  # show the warped source itself where it can be trusted; False is Eq. 9-10 to the letter

    @classmethod
    def from_preset(
        cls,
        preset: str,
        *,
        system: str = "mrfa",
        prior: str | None = None,
        refine: bool | None = None,
        generator: str | None = None,
        **sizes: Any,
    ) -> "ModelConfig":
        """The sizes of a preset with the parts of a paper's system.

        ``prior``, ``refine`` and ``generator`` replace parts of ``system``. ``sizes`` are further fields of this class.
        A `MinimodelError` names unknown choices, unknown sizes, and parts that don't fit together.

        >>> config = ModelConfig.from_preset("tiny", system="tpsm", refine=True)
        """
        config = choose("preset", preset, PRESETS)
        whole = choose("system", system, SYSTEMS)
        parts: dict[str, Any] = dict(prior=whole.prior, refine=whole.refine, generator=whole.generator)
        parts |= {k: v for k, v in dict(prior=prior, refine=refine, generator=generator).items() if v is not None}
        check_choice("prior", parts["prior"], PRIORS)
        check_choice("generator", parts["generator"], GENERATORS)
        if parts["prior"] == "none" and not parts["refine"]:
            raise MinimodelError(
                "prior 'none' takes its coarse flow from the refinement's correlation: refine must be True"
            )
        if parts["prior"] == "landmarks" and sizes.setdefault("points", LANDMARKS) != LANDMARKS:
            raise MinimodelError(f"points is {sizes['points']}: the prior 'landmarks' has {LANDMARKS}")
        if parts["prior"] == "face" and sizes.setdefault("points", LANDMARKS + config.points) <= LANDMARKS:
            raise MinimodelError(f"points is {sizes['points']}: the prior 'face' has {LANDMARKS} landmarks and more")
        unknown = sizes.keys() - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise MinimodelError(f"unknown sizes {sorted(unknown)}: see the fields of minimodel.config.ModelConfig")
        config = dataclasses.replace(config, **parts, **sizes)
        if config.coarse_stream and config.generator != "unet":
            raise MinimodelError(f"coarse_stream with generator {config.generator!r}: only 'unet' has a coarse stream")
        if "iterations" not in sizes and config.generator == "inpainting":
            # The published network has fewer scales than the U-Net.
            config = dataclasses.replace(config, iterations=min(config.iterations, config.inpainting.levels + 1))
        return config

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """The configuration that `to_json` wrote.

        The text of another version raises MinimodelError, TypeError or KeyError.
        """
        values = json.loads(text)
        check_choice("prior", values["prior"], PRIORS)
        check_choice("generator", values["generator"], GENERATORS)
        # Files written before a field was there don't have it.
        for name, default in vars(cls()).items():
            if isinstance(default, HourglassSizes | ResNetSizes | TokenSizes) and name in values:
                values[name] = type(default)(**values[name])
        widths: dict[str, Any] = {name: tuple(w) if isinstance(w, list) else w for name, w in values["updater"].items()}
        return cls(**values | {"updater": UpdaterWidths(**widths)})

    @property
    def scale_sizes(self) -> HourglassSizes:
        """The sizes whose levels are the scales of flows and occlusions: those of the generator.

        The residual generator, which needs the finest scale only, takes those of the U-Net.
        """
        return self.inpainting if self.generator == "inpainting" else self.unet

    def to_json(self) -> str:
        """The configuration as JSON, for `from_json`."""
        return json.dumps(dataclasses.asdict(self))


TINY = ModelConfig(
    preset="tiny",
    image_size=64,
    coarse_scale=2,
    head_kernel=3,
    folded=True,
    detector=HourglassSizes(24, 3, 96),
    spline_heatmaps=True,
    spline_detector=ResNetSizes(16, 4, 1, pool=False),
    tokens=TokenSizes(base=24, blocks=2, patch=2, width=96, depth=4, heads=4, ratio=2),
    dense_motion=HourglassSizes(24, 3, 96),
    structure=HourglassSizes(16, 3, 64),
    structure_features=32,
    iterations=4,
    updater=UpdaterWidths((32, 32), (16, 16), 48, (32, 32), 32),
    unet=HourglassSizes(32, 3, 128),
    inpainting=HourglassSizes(16, 3, 64),
    residual=HourglassSizes(32, 2, 96),
    residual_blocks=3,
    whole_branch=HourglassSizes(24, 3, 64),
    whole_scale=2,
    local_branch=HourglassSizes(16, 2, 32),
)
# The papers' ratio: a coarse flow of a quarter of the picture's side leaves work for refinement. Updates end at 32
# pixels; one more update at 64 costs as much as all the others together.
QUARTER = dataclasses.replace(TINY, preset="tiny-quarter", coarse_scale=4, detector_scale=2, iterations=3)
PRESETS = {
    "tiny": TINY,
    "tiny-quarter": QUARTER,
    # Around the networks of `tiny-quarter`, which see the picture at 64 pixels, two more levels of the U-Net that reach
    # 256, and two more updates, up to 128. So a model that was trained at 64 pixels can go on here, see ``--start``.
    "portrait": dataclasses.replace(
        QUARTER,
        preset="portrait",
        image_size=256,
        coarse_scale=16,
        motion_scale=4,
        detector_scale=8,
        iterations=5,
        unet=HourglassSizes(8, 5, 128),
        inpainting=HourglassSizes(4, 5, 64),
    ),
    "small": ModelConfig(
        preset="small",
        image_size=128,
        coarse_scale=4,
        detector=HourglassSizes(32, 4, 256),
        spline_heatmaps=True,
        spline_detector=ResNetSizes(32, 4, 2, pool=False),
        tokens=TokenSizes(base=32, blocks=2, patch=2, width=128, depth=6, heads=4, ratio=3),
        dense_motion=HourglassSizes(32, 4, 256),
        structure=HourglassSizes(32, 4, 256),
        structure_features=64,
        iterations=5,
        updater=UpdaterWidths((64, 64), (32, 32), 96, (96, 64), 64),
        unet=HourglassSizes(48, 4, 256),
        inpainting=HourglassSizes(32, 4, 192),
        residual=HourglassSizes(48, 2, 256),
        residual_blocks=4,
        whole_branch=HourglassSizes(32, 4, 256),
        whole_scale=2,
        local_branch=HourglassSizes(32, 3, 128),
    ),
    "paper": ModelConfig(),
}
