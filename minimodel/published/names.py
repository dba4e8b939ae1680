"""The table of names: which entry of a published checkpoint becomes which weight here.

A convolution in front of a norm has a bias in published code and none here. A batch norm subtracts its running mean, so
the bias is subtracted from that mean. An instance norm removes any constant, so the bias is left out.
"""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from minimodel.published.sizes import PublishedConfig


class Entry(NamedTuple):
    """One entry of a checkpoint: ``theirs`` is its name there, ``ours`` the name of the weight here (None: its shape is
    read, its values are left out).

    Roles: "same" copies; "bias" subtracts a convolution's bias from a running mean; "kernel" is the Gaussian of
    `conventions.downsample`, and the entry has to equal it.
    """

    theirs: str
    ours: str | None
    role: Literal["same", "bias", "kernel"] = "same"


Norm = Literal["batch", "instance"]


def network_entries(config: PublishedConfig) -> Iterator[Entry]:
    """List all entries of a model."""
    sections = {
        "fomm": ("kp_detector", "generator.dense_motion_network", "generator"),
        "mtia": ("kp_detector", "generator.dense_motion_network", "generator"),
        "tpsm": ("kp_detector", "dense_motion_network", "inpainting_network"),
        "mrfa": ("model.encoder", "model.dense_motion", "model.decoder.generator"),
    }
    detector, dense_motion, generator = sections[config.model]
    yield from _detector(detector, "prior.detector", config)
    yield from _dense_motion(dense_motion, "prior.dense_motion", config)
    yield from _generator(generator, "generator", config)
    if config.background is not None:
        section = "model.bg_predictor" if config.model == "mrfa" else "bg_predictor"
        yield from resnet(f"{section}.bg_encoder", "prior.background", config.background)
    if config.refiner is not None:
        yield from _refiner("model.decoder", "refiner", config)
    if config.avd is not None:
        for theirs, ours in (("id_encoder", "shape_encoder"), ("pose_encoder", "pose_encoder"), ("decoder", "decoder")):
            yield from _avd_layers(f"avd_network.{theirs}", f"avd.{ours}", len(config.avd["widths"]))


def pair(theirs: str, ours: str, *, bias: bool = True) -> Iterator[Entry]:
    """The entries of a layer: its weight and, unless ``bias`` is False, its bias."""
    yield Entry(f"{theirs}.weight", f"{ours}.weight")
    if bias:
        yield Entry(f"{theirs}.bias", f"{ours}.bias")


def normed(theirs: str, ours: str, kind: Norm) -> Iterator[Entry]:
    """The entries of a norm, with running statistics for a batch norm."""
    yield from pair(theirs, ours)
    if kind == "batch":
        yield Entry(f"{theirs}.running_mean", f"{ours}.running_mean")
        yield Entry(f"{theirs}.running_var", f"{ours}.running_var")


def conv_block(theirs: str, ours: str, kind: Norm) -> Iterator[Entry]:
    """The entries of `blocks.ConvBlock`, `DownBlock` or `UpBlock`."""
    yield from pair(f"{theirs}.conv", f"{ours}.0", bias=False)
    yield from normed(f"{theirs}.norm", f"{ours}.1", kind)
    yield Entry(f"{theirs}.conv.bias", f"{ours}.1.running_mean" if kind == "batch" else None, "bias")


def residual_block(theirs: str, ours: str, kind: Norm) -> Iterator[Entry]:
    """The entries of `blocks.ResidualBlock`."""
    for norm, convolution, name in ((0, 2, "1"), (3, 5, "2")):
        yield from normed(f"{theirs}.norm{name}", f"{ours}.body.{norm}", kind)
        yield from pair(f"{theirs}.conv{name}", f"{ours}.body.{convolution}")


def hourglass(theirs: str, ours: str, sizes: dict, kind: Norm) -> Iterator[Entry]:
    """The entries of `blocks.Hourglass`."""
    for level in range(sizes["levels"]):
        yield from conv_block(f"{theirs}.encoder.down_blocks.{level}", f"{ours}.down.{level}", kind)
        yield from conv_block(f"{theirs}.decoder.up_blocks.{level}", f"{ours}.up.{level}", kind)


def _bare(pairs: Iterable[tuple[str, str, str, str]]) -> Iterator[Entry]:
    """Convolutions without a bias, each with its batch norm: (their convolution, ours, their norm, ours)."""
    for convolution, our_convolution, norm, our_norm in pairs:
        yield from pair(convolution, our_convolution, bias=False)
        yield from normed(norm, our_norm, "batch")


def strided_block(theirs: str, ours: str, *, around: bool) -> Iterator[Entry]:
    """The entries of `blocks.StridedBlock`, as torchvision's and HRNet's code name them."""
    names = [("conv1", "body.0", "bn1", "body.1"), ("conv2", "body.3", "bn2", "body.4")]
    names += [("downsample.0", "around.0", "downsample.1", "around.1")] * around
    yield from _bare((f"{theirs}.{a}", f"{ours}.{b}", f"{theirs}.{c}", f"{ours}.{d}") for a, b, c, d in names)


def resnet(theirs: str, ours: str, sizes: dict) -> Iterator[Entry]:
    """The entries of `blocks.ResNet`, as torchvision names those of ResNet-18."""
    yield from _bare([(f"{theirs}.conv1", f"{ours}.stem.0", f"{theirs}.bn1", f"{ours}.stem.1")])
    for level in range(sizes["levels"]):
        for block in range(sizes["blocks"]):
            around = level > 0 and block == 0
            yield from strided_block(
                f"{theirs}.layer{level + 1}.{block}", f"{ours}.levels.{level}.{block}", around=around
            )
    yield from pair(f"{theirs}.fc", f"{ours}.head")


def _kernel(theirs: str) -> Iterator[Entry]:
    yield Entry(f"{theirs}.down.weight", None, "kernel")


def _detector(theirs: str, ours: str, config: PublishedConfig) -> Iterator[Entry]:
    if config.prior == "tps":
        yield from resnet(f"{theirs}.fg_encoder", f"{ours}.network", config.detector)
    elif config.prior == "affine":
        yield from hourglass(f"{theirs}.predictor", f"{ours}.hourglass", config.detector, "batch")
        yield from pair(f"{theirs}.kp", f"{ours}.heatmap_head")
        yield from pair(f"{theirs}.jacobian", f"{ours}.affine_head")
        yield from _kernel(theirs)
    else:
        yield from _high_resolution(f"{theirs}.pre_feature", f"{ours}.trunk", config.detector["trunk"])
        yield from _tokens(f"{theirs}.transformer", ours, config.detector["depth"])


def _dense_motion(theirs: str, ours: str, config: PublishedConfig) -> Iterator[Entry]:
    sizes = config.dense_motion
    kind: Norm = "instance" if config.model == "tpsm" else "batch"
    yield from _kernel(theirs)
    yield from hourglass(f"{theirs}.hourglass", f"{ours}.hourglass", sizes, kind)
    yield from pair(f"{theirs}.{'maps' if config.prior == 'tps' else 'mask'}", f"{ours}.mask_head")
    if config.prior != "tps":
        yield from pair(f"{theirs}.occlusion", f"{ours}.occlusion_heads.0")
        return
    for index in range(1 + sizes["coarser"] + sizes["finer"]):
        yield from pair(f"{theirs}.occlusion.{index}", f"{ours}.occlusion_heads.{index}")
    for index in range(sizes["finer"]):
        yield from conv_block(f"{theirs}.up.{index}", f"{ours}.up.{index}", kind)


def _generator(theirs: str, ours: str, config: PublishedConfig) -> Iterator[Entry]:
    kind: Norm = "instance" if config.model == "tpsm" else "batch"
    levels = config.generator["levels"]
    yield from conv_block(f"{theirs}.first", f"{ours}.first", kind)
    yield from pair(f"{theirs}.final", f"{ours}.last")
    for level in range(levels):
        yield from conv_block(f"{theirs}.down_blocks.{level}", f"{ours}.down.{level}", kind)
        yield from conv_block(f"{theirs}.up_blocks.{level}", f"{ours}.up.{level}", kind)
        if config.model == "tpsm":
            for half in (0, 1):
                yield from residual_block(
                    f"{theirs}.resblock.{2 * level + half}", f"{ours}.residual.{level}.{half}", kind
                )
        elif config.model == "mrfa":
            yield from residual_block(f"{theirs}.resblock.{level}", f"{ours}.residual.{level}", kind)
            yield from normed(f"{theirs}.channel_block.{level}.norm1", f"{ours}.join.{level}.0", kind)
            yield from pair(f"{theirs}.channel_block.{level}.conv1", f"{ours}.join.{level}.2")
    if config.model in ("fomm", "mtia"):
        for block in range(config.generator["blocks"]):
            yield from residual_block(f"{theirs}.bottleneck.r{block}", f"{ours}.bottleneck.{block}", kind)


def _refiner(theirs: str, ours: str, config: PublishedConfig) -> Iterator[Entry]:
    yield Entry(f"{theirs}.pos_embedding", "structure.position")
    assert config.refiner is not None
    structure = config.refiner["structure"]
    for name, side in (("kp", "driving"), ("kp_img", "source")):
        yield from hourglass(f"{theirs}.{name}", f"structure.{side}_hourglass", structure, "batch")
        yield from pair(f"{theirs}.{name}_head", f"structure.{side}_head")
    updater = {
        "corr_enc.convc1": "correlation_in",
        "corr_enc.convc2": "correlation",
        "corr_enc.convf1": "flow.0",
        "corr_enc.convf2": "flow.2",
        "corr_enc.conv": "motion",
        "refine.convc1": "context",
        "refine.conv1": "flow_head.0",
        "refine.conv2": "flow_head.2",
        "refine.convo1": "occlusion_head.0",
        "refine.convo2": "occlusion_head.2",
    }
    for name, part in updater.items():
        yield from pair(f"{theirs}.{name}", f"{ours}.updater.{part}")
    for scale in range(config.generator["levels"] + 1):
        yield from pair(f"{theirs}.to_context.{scale}", f"{ours}.projections.{scale}")


def _avd_layers(theirs: str, ours: str, hidden: int) -> Iterator[Entry]:
    for layer in range(hidden):
        yield from pair(f"{theirs}.{3 * layer}", f"{ours}.{3 * layer}")
        yield from normed(f"{theirs}.{3 * layer + 1}", f"{ours}.{3 * layer + 1}", "batch")
    yield from pair(f"{theirs}.{3 * hidden}", f"{ours}.{3 * hidden}")


def _tokens(theirs: str, ours: str, depth: int) -> Iterator[Entry]:
    yield Entry(f"{theirs}.keypoint_token", f"{ours}.tokens")
    yield Entry(f"{theirs}.pos_embedding", f"{ours}.positions")
    yield from pair(f"{theirs}.patch_to_embedding", f"{ours}.embed")
    for index in range(depth):
        layer, ours_layer = f"{theirs}.transformer.layers.{index}", f"{ours}.layers.{index}"
        yield from pair(f"{layer}.0.fn.norm", f"{ours_layer}.norm1")
        yield Entry(f"{layer}.0.fn.fn.to_qkv.weight", f"{ours_layer}.self_attn.in_proj_weight")
        yield from pair(f"{layer}.0.fn.fn.to_out.0", f"{ours_layer}.self_attn.out_proj")
        yield from pair(f"{layer}.1.fn.norm", f"{ours_layer}.norm2")
        yield from pair(f"{layer}.1.fn.fn.net.0", f"{ours_layer}.linear1")
        yield from pair(f"{layer}.1.fn.fn.net.3", f"{ours_layer}.linear2")
    for name, head in (("mlp_head", "point_head"), ("mlp_head_jacobian", "affine_head")):
        yield from pair(f"{theirs}.{name}.0", f"{ours}.{head}.0")
        yield from pair(f"{theirs}.{name}.1", f"{ours}.{head}.1")


def _high_resolution(theirs: str, ours: str, sizes: dict) -> Iterator[Entry]:
    yield from _bare(
        [
            (f"{theirs}.conv1", f"{ours}.stem.0", f"{theirs}.bn1", f"{ours}.stem.1"),
            (f"{theirs}.conv2", f"{ours}.stem.3", f"{theirs}.bn2", f"{ours}.stem.4"),
        ]
    )
    for block in range(sizes["first_blocks"]):
        names = [(f"conv{n}", f"body.{3 * n - 3}", f"bn{n}", f"body.{3 * n - 2}") for n in (1, 2, 3)]
        names += [("downsample.0", "around.0", "downsample.1", "around.1")] * (block == 0)
        a, b = f"{theirs}.layer1.{block}", f"{ours}.first.{block}"
        yield from _bare((f"{a}.{w}", f"{b}.{x}", f"{a}.{y}", f"{b}.{z}") for w, x, y, z in names)
    for name, index in (("transition1.0", 0), ("transition1.1.0", 1), ("transition2.2.0", 2)):
        a, b = f"{theirs}.{name}", f"{ours}.open.{index}"
        yield from _bare([(f"{a}.0", f"{b}.0", f"{a}.1", f"{b}.1")])
    for stage, part, branches, count in (
        ("stage2", "two", 2, sizes["exchanges"][0]),
        ("stage3", "three", 3, sizes["exchanges"][1]),
    ):
        for index in range(count):
            outputs = 1 if stage == "stage3" and index == count - 1 else branches
            yield from _exchange(f"{theirs}.{stage}.{index}", f"{ours}.{part}.{index}", branches, outputs, sizes)


def _exchange(theirs: str, ours: str, branches: int, outputs: int, sizes: dict) -> Iterator[Entry]:
    for branch in range(branches):
        for block in range(sizes["blocks"]):
            yield from strided_block(
                f"{theirs}.branches.{branch}.{block}", f"{ours}.branches.{branch}.{block}", around=False
            )
    for end in range(outputs):
        for start in range(branches):
            a, b = f"{theirs}.fuse_layers.{end}.{start}", f"{ours}.paths.{end}.{start}"
            if start > end:
                yield from _bare([(f"{a}.0", f"{b}.0", f"{a}.1", f"{b}.1")])
            for step in range(end - start):
                yield from _bare([(f"{a}.{step}.0", f"{b}.{3 * step}", f"{a}.{step}.1", f"{b}.{3 * step + 1}")])
