"""Names and shapes of published checkpoints at any width, written down apart from the package, and files made of them.

At the published widths they are those that a full-size folder lists (see test_published_full.py).
"""

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

Shapes = dict[str, tuple[int, ...]]
FULL = dict(
    points=10,
    detector=(32, 5, 1024),
    dense=(64, 5, 1024),
    structure=(32, 5, 512),
    generator=(64, 2, 512),
    inpainting=(64, 3, 512),
    unet=(64, 5, 512),
    resnet=64,
    features=256,
    map_size=64,
    trunk=(64, 32),
    tokens=(192, 12, 576, 256),
    exchanges=(1, 4),
    avd=((256, 512, 1024), 128),
)
SMALL = dict(
    points=2,
    detector=(2, 2, 8),
    dense=(4, 3, 16),
    structure=(2, 2, 8),
    generator=(4, 2, 16),
    inpainting=(2, 3, 16),
    unet=(2, 5, 16),
    resnet=4,
    features=8,
    map_size=16,
    trunk=(4, 2),
    tokens=(16, 1, 24, 16),
    exchanges=(1, 2),
    avd=((8, 12), 4),
)


def conv(name: str, outputs: int, inputs: int, kernel: int, *, bias: bool = True) -> Iterator:
    yield f"{name}.weight", (outputs, inputs, kernel, kernel)
    if bias:
        yield f"{name}.bias", (outputs,)


def linear(name: str, outputs: int, inputs: int, *, bias: bool = True) -> Iterator:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def norm(name: str, width: int, *, running: bool = True) -> Iterator:
    entries = ["weight", "bias"] + ["running_mean", "running_var"] * running
    yield from ((f"{name}.{entry}", (width,)) for entry in entries)
    if running:
        yield f"{name}.num_batches_tracked", ()


def block(name: str, outputs: int, inputs: int, kernel: int = 3, *, running: bool = True) -> Iterator:
    yield from conv(f"{name}.conv", outputs, inputs, kernel)
    yield from norm(f"{name}.norm", outputs, running=running)


def residual(name: str, width: int, *, running: bool = True) -> Iterator:
    for half in "12":
        yield from conv(f"{name}.conv{half}", width, width, 3)
        yield from norm(f"{name}.norm{half}", width, running=running)


def hourglass(name: str, inputs: int, sizes: tuple[int, int, int], *, running: bool = True) -> Iterator:
    base, levels, maximum = sizes
    widths = [inputs] + [min(maximum, base * 2 ** (i + 1)) for i in range(levels)]
    for i in range(levels):
        yield from block(f"{name}.encoder.down_blocks.{i}", widths[i + 1], widths[i], running=running)
        level = levels - 1 - i
        inward = widths[level + 1] * (1 if i == 0 else 2)
        yield from block(f"{name}.decoder.up_blocks.{i}", min(maximum, base * 2**level), inward, running=running)


def resnet(name: str, inputs: int, outputs: int, base: int) -> Iterator:
    yield from conv(f"{name}.conv1", base, inputs, 7, bias=False)
    yield from norm(f"{name}.bn1", base)
    for level in range(4):
        width = base * 2**level
        for i in range(2):
            before = width // 2 if level and i == 0 else width
            layer = f"{name}.layer{level + 1}.{i}"
            yield from basic(layer, width, before)
            if before != width:
                yield from conv(f"{layer}.downsample.0", width, before, 1, bias=False)
                yield from norm(f"{layer}.downsample.1", width)
    yield from linear(f"{name}.fc", outputs, 8 * base)


def basic(name: str, width: int, inputs: int) -> Iterator:
    for half, inward in (("1", inputs), ("2", width)):
        yield from conv(f"{name}.conv{half}", width, inward, 3, bias=False)
        yield from norm(f"{name}.bn{half}", width)


def heatmap_detector(name: str, sizes: dict, matrix_maps: int) -> Iterator:
    yield from hourglass(f"{name}.predictor", 3, sizes["detector"])
    width = sizes["detector"][0] + 3
    yield from conv(f"{name}.kp", sizes["points"], width, 7)
    yield from conv(f"{name}.jacobian", 4 * matrix_maps, width, 7)
    yield f"{name}.down.weight", (3, 1, 13, 13)


def affine_dense_motion(name: str, sizes: dict) -> Iterator:
    inputs = 4 * (sizes["points"] + 1)
    yield from hourglass(f"{name}.hourglass", inputs, sizes["dense"])
    yield from conv(f"{name}.mask", sizes["points"] + 1, sizes["dense"][0] + inputs, 7)
    yield from conv(f"{name}.occlusion", 1, sizes["dense"][0] + inputs, 7)
    yield f"{name}.down.weight", (3, 1, 13, 13)


def spline_dense_motion(name: str, sizes: dict, *, tpsm: bool) -> Iterator:
    base, inputs = sizes["dense"][0], 3 * (sizes["points"] + 1) + 5 * sizes["points"] + 1
    width = base + inputs
    yield from hourglass(f"{name}.hourglass", inputs, sizes["dense"], running=not tpsm)
    yield from conv(f"{name}.maps", sizes["points"] + 1, width, 7)
    widths = [4 * base, width, width // 2, width // 4] if tpsm else [width]
    for i, inward in enumerate(widths):
        yield from conv(f"{name}.occlusion.{i}", 1, inward, 7)
    for i in range(2 * tpsm):
        yield from block(f"{name}.up.{i}", width // 2 ** (i + 1), width // 2**i, running=False)
    yield f"{name}.down.weight", (3, 1, 13, 13)


def encoder(name: str, sizes: tuple[int, int, int], *, running: bool = True) -> Iterator:
    base, levels, maximum = sizes
    yield from block(f"{name}.first", base, 3, 7, running=running)
    for i in range(levels):
        widths = [min(maximum, base * 2**level) for level in (i, i + 1)]
        yield from block(f"{name}.down_blocks.{i}", widths[1], widths[0], running=running)
    yield from conv(f"{name}.final", 3, base, 7)


def bottleneck_generator(name: str, sizes: dict) -> Iterator:
    base, levels, _ = sizes["generator"]
    yield from encoder(name, sizes["generator"])
    for i in range(levels):
        yield from block(f"{name}.up_blocks.{i}", base * 2 ** (levels - i - 1), base * 2 ** (levels - i))
    for i in range(6):
        yield from residual(f"{name}.bottleneck.r{i}", base * 2**levels)


def fomm(sizes: dict) -> Shapes:
    return dict(
        [
            *affine_dense_motion("generator.dense_motion_network", sizes),
            *bottleneck_generator("generator", sizes),
            *heatmap_detector("kp_detector", sizes, sizes["points"]),
        ]
    )


def tpsm(sizes: dict, *, avd: bool = False) -> Shapes:
    base, levels, maximum = sizes["inpainting"]
    names = list(encoder("inpainting_network", sizes["inpainting"], running=False))
    inward = [maximum, *(2 * base * 2**i for i in reversed(range(1, levels)))]
    for i in range(levels):
        above = base * 2 ** (levels - 1 - i)
        names += block(f"inpainting_network.up_blocks.{i}", above, inward[i], running=False)
        for half in (0, 1):
            names += residual(f"inpainting_network.resblock.{2 * i + half}", inward[i], running=False)
    names += spline_dense_motion("dense_motion_network", sizes, tpsm=True)
    names += resnet("kp_detector.fg_encoder", 3, 10 * sizes["points"], sizes["resnet"])
    names += resnet("bg_predictor.bg_encoder", 6, 6, sizes["resnet"])
    if avd:
        widths, code = sizes["avd"]
        numbers = 10 * sizes["points"]
        ends = {"id_encoder": (numbers, code), "pose_encoder": (numbers, code), "decoder": (2 * code, numbers)}
        for part, (first, last) in ends.items():
            hidden = widths[::-1] if part == "decoder" else widths
            layers = [first, *hidden, last]
            for i in range(len(layers) - 1):
                names += linear(f"avd_network.{part}.{3 * i}", layers[i + 1], layers[i])
            for i, width in enumerate(hidden):
                names += norm(f"avd_network.{part}.{3 * i + 1}", width)
    return dict(names)


def mtia(sizes: dict) -> Shapes:
    return dict(
        [
            *affine_dense_motion("generator.dense_motion_network", sizes),
            *bottleneck_generator("generator", sizes),
            *token_detector("kp_detector", sizes),
        ]
    )


def mrfa(sizes: dict, prior: str, *, refined: bool) -> Shapes:
    names = [(f"model.pyramid.downs.{scale}.weight", (3, 1, n, n)) for scale, n in PYRAMID.items()]
    names.append(("model.down.weight", (3, 1, 13, 13)))
    if prior == "tpsm":
        names += resnet("model.encoder.fg_encoder", 3, 10 * sizes["points"], sizes["resnet"])
        names += spline_dense_motion("model.dense_motion", sizes, tpsm=False)
    else:
        one_map = dict(matrix_maps=1)
        detector = heatmap_detector("model.encoder", sizes, **one_map)
        names += token_detector("model.encoder", sizes) if prior == "mtia" else detector
        names += affine_dense_motion("model.dense_motion", sizes)
    base, levels, maximum = sizes["unet"]
    widths = [min(maximum, base * 2**i) for i in reversed(range(levels + 1))]
    generator = "model.decoder.generator"
    names += encoder(generator, sizes["unet"])
    for i in range(levels):
        names += block(f"{generator}.up_blocks.{i}", widths[i + 1], widths[i])
        names += residual(f"{generator}.resblock.{i}", widths[i])
        names += conv(f"{generator}.channel_block.{i}.conv1", widths[i], 2 * widths[i], 3)
        names += norm(f"{generator}.channel_block.{i}.norm1", 2 * widths[i])
    if refined:
        names += refinement("model.decoder", sizes, widths)
    return dict(names)


PYRAMID = {"1": 1, "0-5": 5, "0-25": 13, "0-125": 29}


def refinement(name: str, sizes: dict, widths: list[int]) -> Iterator:
    points, map_size, features = sizes["points"], sizes["map_size"], sizes["features"]
    yield f"{name}.pos_embedding", (1, points, map_size, map_size)
    for part, inputs in (("kp", points), ("kp_img", points + 3)):
        yield from hourglass(f"{name}.{part}", inputs, sizes["structure"])
        yield from conv(f"{name}.{part}_head", features, sizes["structure"][0] + inputs, 1)
    yield from conv(f"{name}.corr_enc.convc1", 128, 98, 1)
    yield from conv(f"{name}.corr_enc.convc2", 96, 128, 3)
    yield from conv(f"{name}.corr_enc.convf1", 128, 2, 7)
    yield from conv(f"{name}.corr_enc.convf2", 64, 128, 3)
    yield from conv(f"{name}.corr_enc.conv", 126, 160, 3)
    yield from conv(f"{name}.refine.convc1", 128, 192, 3)
    for part, outputs in (("conv", 2), ("convo", 1)):
        yield from conv(f"{name}.refine.{part}1", 128, 256, 3)
        yield from conv(f"{name}.refine.{part}2", outputs, 128, 3)
    for i, width in enumerate(widths):
        yield from conv(f"{name}.to_context.{i}", 192, width, 1)


def token_detector(name: str, sizes: dict) -> Iterator:
    trunk, (stem, base) = f"{name}.pre_feature", sizes["trunk"]
    for i, inputs in (("1", 3), ("2", stem)):
        yield from conv(f"{trunk}.conv{i}", stem, inputs, 3, bias=False)
        yield from norm(f"{trunk}.bn{i}", stem)
    wide = 4 * stem
    for i in range(4):
        layer, inputs = f"{trunk}.layer1.{i}", stem if i == 0 else wide
        for part, shape in (("1", (stem, inputs, 1)), ("2", (stem, stem, 3)), ("3", (wide, stem, 1))):
            yield from conv(f"{layer}.conv{part}", *shape, bias=False)
            yield from norm(f"{layer}.bn{part}", shape[0])
        if i == 0:
            yield from conv(f"{layer}.downsample.0", wide, stem, 1, bias=False)
            yield from norm(f"{layer}.downsample.1", wide)
    widths = [base, 2 * base, 4 * base]
    for step, outputs, inputs in (
        ("transition1.0", base, wide),
        ("transition1.1.0", 2 * base, wide),
        ("transition2.2.0", 4 * base, 2 * base),
    ):
        yield from conv_norm(f"{trunk}.{step}", outputs, inputs, 3)
    for stage, branches, count in (("stage2", 2, sizes["exchanges"][0]), ("stage3", 3, sizes["exchanges"][1])):
        for i in range(count):
            last = stage == "stage3" and i == count - 1
            yield from exchange(f"{trunk}.{stage}.{i}", widths[:branches], 1 if last else branches)
    width, depth, hidden, places = sizes["tokens"]
    yield f"{name}.transformer.keypoint_token", (1, 2 * sizes["points"], width)
    yield f"{name}.transformer.pos_embedding", (1, places, width)
    yield from linear(f"{name}.transformer.patch_to_embedding", width, 16 * base)
    for i in range(depth):
        layer = f"{name}.transformer.transformer.layers.{i}"
        for part in (0, 1):
            yield from norm(f"{layer}.{part}.fn.norm", width, running=False)
        yield from linear(f"{layer}.0.fn.fn.to_qkv", 3 * width, width, bias=False)
        yield from linear(f"{layer}.0.fn.fn.to_out.0", width, width)
        yield from linear(f"{layer}.1.fn.fn.net.0", hidden, width)
        yield from linear(f"{layer}.1.fn.fn.net.3", width, hidden)
    for head, outputs in (("mlp_head", 2), ("mlp_head_jacobian", 4)):
        yield from norm(f"{name}.transformer.{head}.0", width, running=False)
        yield from linear(f"{name}.transformer.{head}.1", outputs, width)


def conv_norm(name: str, outputs: int, inputs: int, kernel: int) -> Iterator:
    yield from conv(f"{name}.0", outputs, inputs, kernel, bias=False)
    yield from norm(f"{name}.1", outputs)


def exchange(name: str, widths: list[int], outputs: int) -> Iterator:
    for branch, width in enumerate(widths):
        for i in range(4):
            yield from basic(f"{name}.branches.{branch}.{i}", width, width)
    for end in range(outputs):
        for start in range(len(widths)):
            path = f"{name}.fuse_layers.{end}.{start}"
            if start > end:
                yield from conv_norm(path, widths[end], widths[start], 1)
            for step in range(end - start):
                width = widths[end] if step == end - start - 1 else widths[start]
                yield from conv_norm(f"{path}.{step}", width, widths[start], 3)


LAYOUTS = {
    "fomm": fomm,
    "tpsm": tpsm,
    "tpsm-avd": lambda sizes: tpsm(sizes, avd=True),
    "mtia": mtia,
    **{
        f"mrfa-{prior}-{'refined' if refined else 'prior-only'}": (
            lambda sizes, prior=prior, refined=refined: mrfa(sizes, prior, refined=refined)
        )
        for prior in ("fomm", "tpsm", "mtia")
        for refined in (False, True)
    },
}


def weights(shapes: Shapes) -> dict[str, dict[str, torch.Tensor]]:
    """Sections of random weights, each entry drawn from its own name; deviations and factors stay positive."""
    sections: dict = {}
    for name, shape in shapes.items():
        section, entry = name.split(".", 1)
        draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
        value = torch.from_numpy(np.asarray(draw)) * (
            0.3 / max(1, np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1
        )
        if name.endswith("num_batches_tracked"):
            value = torch.zeros((), dtype=torch.long)
        elif name.endswith((".down.weight", "downs.0-25.weight")):
            value = gaussian(13).expand(shape).clone()
        elif name.endswith("running_var") or (name.endswith(".weight") and len(shape) == 1):
            value = 1 + value.abs()
        elif name.endswith(("jacobian.bias", "mlp_head_jacobian.1.bias")):
            value = value + torch.tensor([1.0, 0, 0, 1]).repeat(shape[0] // 4)
        sections.setdefault(section, {})[entry] = value
    return sections


def gaussian(taps: int) -> torch.Tensor:
    """The published filter for 1/4, with sigma 3/2."""
    x = torch.arange(taps, dtype=torch.float32) - (taps - 1) / 2
    line = torch.exp(-(x**2) / (2 * 1.5**2))
    return torch.outer(line, line) / torch.outer(line, line).sum()


def save_checkpoint(path: Path, layout: str, **extra) -> Path:
    """A file as published code saves it, at small widths, with an epoch and an optimiser's state beside the weights."""
    optimiser = {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 2e-4, "params": [0]}]}
    torch.save(weights(LAYOUTS[layout](SMALL)) | {"epoch": 99, "optimizer": optimiser} | extra, path)
    return path
