import dataclasses
import itertools
import json
import subprocess
import sys
from functools import partial

import pytest
import torch

from minimodel import tps
from minimodel.affine import part_flows, with_background
from minimodel.config import GENERATORS, PRESETS, PRIORS, ModelConfig
from minimodel.dense_motion import dropout_scales
from minimodel.keypoints import KeypointDetector, SplineDetector
from minimodel.landmarks import LandmarkDetector
from minimodel.losses import background_mask_loss
from minimodel.model import AnimationModel
from minimodel.saving import WEIGHTS
from minimodel.warping import warp

NEW = ("fomm", "mrfa", "npmr", "tpsm")
COMBINATIONS = [c for c in itertools.product(PRIORS, (False, True), GENERATORS) if c[0] != "none" or c[1]]


def pair(size=64, batch=2):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, size, size, generator=generator), torch.rand(batch, 3, size, size, generator=generator)


def tiny(**options):
    torch.manual_seed(0)
    return AnimationModel.from_preset("tiny", **options).eval()


@pytest.mark.parametrize("system", NEW)
@torch.no_grad()
def test_output_keeps_every_stage(system):
    output = tiny(system=system)(*pair())
    assert output.image.shape == (2, 3, 64, 64) and 0 <= output.image.min() <= output.image.max() <= 1
    assert [flow.shape[-1] for flow in output.flows] == [32, 8, 16, 32, 64]
    assert [occlusion.shape[1] for occlusion in output.occlusions] == [1] * 5
    assert torch.allclose(output.warped_source, warp(pair()[0], output.flows[-1]))
    assert (output.correlation is None) == (system in ("fomm", "tpsm"))


@pytest.mark.parametrize("system", NEW)
def test_moving_alone_is_what_rendering_begins_with_and_needs_no_generator(system):
    source, driving = pair()
    model = tiny(system=system)
    stages, output = (
        do(model.encode_source(source), model.encode_driving(driving)) for do in (model.move, model.render)
    )
    for name in ("flows", "occlusions"):
        assert all(torch.equal(*both) for both in zip(getattr(stages, name), getattr(output, name), strict=True))
    assert torch.equal(stages.warped_source, output.warped_source)
    stages.warped_source.sum().backward()
    assert all(parameter.grad is None for parameter in model.generator.up.parameters())


@torch.no_grad()
def test_rendering_from_a_cached_source_equals_the_whole_way_and_encodes_the_source_once():
    model = tiny()
    source, driving = pair(batch=3)
    calls = []
    for module in (model.generator.first, model.structure.source_encoder):
        module.register_forward_hook(lambda module, *_: calls.append(module))
    state = model.encode_source(source[:1])
    frames = [model.render(state, model.encode_driving(driving[i : i + 1])).image for i in range(3)]
    assert len(calls) == 2
    expected = model(source[:1].expand(3, -1, -1, -1), driving).image
    assert torch.allclose(torch.cat(frames), expected, atol=1e-5)
    # A source of batch 1 broadcasts over driving frames; other batches must agree.
    assert torch.allclose(model.render(state, model.encode_driving(driving)).image, expected, atol=1e-5)
    with pytest.raises(ValueError, match="2 sources for 3 driving"):
        model.render(model.encode_source(source[:2]), model.encode_driving(driving))


@torch.no_grad()
def test_other_sizes_work_with_the_same_weights_and_wrong_ones_name_the_nearest():
    model = tiny()
    for height, width in ((96, 96), (128, 64), (32, 48)):
        assert model(torch.rand(1, 3, height, width), torch.rand(1, 3, height, width)).image.shape[-2:] == (
            height,
            width,
        )
    with pytest.raises(ValueError, match=r"60 x 64.*multiples of 16.*48 or 64"):
        model(torch.rand(1, 3, 60, 64), torch.rand(1, 3, 60, 64))


@torch.no_grad()
def test_tokens_take_all_sizes_that_their_patches_divide():
    for shape in ((96, 96), (128, 64), (32, 48)):
        assert tiny(prior="tokens")(torch.rand(1, 3, *shape), torch.rand(1, 3, *shape)).image.shape[-2:] == shape
    sizes = dataclasses.replace(PRESETS["tiny"].tokens, patch=6)
    with pytest.raises(ValueError, match="multiples of 48"):
        tiny(prior="tokens", tokens=sizes)(*pair())


@torch.no_grad()
def test_tokens_say_points_and_matrices_like_the_hourglass():
    for prior in ("affine", "tokens"):
        motion = tiny(prior=prior).encode_driving(pair()[0])
        assert motion.points.shape == (2, 10, 2) and motion.points.abs().max() < 1
        assert torch.allclose(motion.affine, torch.eye(2).expand(2, 10, 2, 2), atol=1e-6)


@torch.no_grad()
def test_lookup_without_the_volume_gives_the_same_frame(monkeypatch):
    model = tiny()
    for head in (model.refiner.updater.flow_head, model.refiner.updater.occlusion_head):
        torch.nn.init.normal_(head[-1].weight, std=0.05)
    held = model(*pair())
    monkeypatch.setattr(type(model.structure), "held_numbers", 0)
    free = model(*pair())
    assert held.correlation.hold_volume and not free.correlation.hold_volume
    assert torch.allclose(held.image, free.image, atol=1e-5)


@pytest.mark.parametrize("prior", PRIORS)
@torch.no_grad()
def test_bfloat16_keeps_flows_in_full_precision(prior):
    model = tiny(prior=prior)
    known = told() if model.prior.labels else {}  # a detector of landmarks runs in full precision, before all this
    run = partial(model, *pair(), **known)
    exact = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = run()
    assert rough.flows[0].dtype == torch.float32
    assert (exact.flows[-1] - rough.flows[-1]).abs().max() * 32 < 0.5  # pixels; the networks' own rounding remains
    assert (exact.image - rough.image).abs().mean() < 0.02


@pytest.mark.parametrize("prior, refine, generator", COMBINATIONS)
def test_every_parameter_of_every_combination_gets_a_gradient(prior, refine, generator):
    model = listening(tiny(prior=prior, refine=refine, generator=generator).train())
    output = model(pair()[0], **told()) if prior == "landmarks" else model(*pair())
    assert output.image.shape == (2, 3, 64, 64) and len(output.flows) == len(output.occlusions) == 5
    output.image.square().mean().backward()
    if prior == "tps":  # which pixels are background is learnt from the masks
        background_mask_loss(model.prior.background.logits(pair()[1]), output.coarse.masks).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


@torch.no_grad()
def test_splines_are_the_package_s_and_start_from_points_in_order():
    model, (source, driving) = tiny(system="tpsm"), pair()
    start, end = (model.encode_driving(image) for image in (source, driving))
    assert start.points.shape == (2, 50, 2)
    coarse = model.render(model.encode_source(source), end).coarse
    splines = [motion.points.view(2, 10, 5, 2) for motion in (start, end)]
    expected = tps.part_flows(*splines, (32, 32), regularisation=model.config.regularisation)
    assert torch.allclose(coarse.part_flows[:, 1:], expected, atol=1e-6)


@torch.no_grad()
def test_points_of_splines_are_read_from_heatmaps_or_said_by_a_residual_network():
    image = pair()[0]
    for heatmaps, kind in ((True, KeypointDetector), (False, SplineDetector)):
        model = tiny(system="tpsm", spline_heatmaps=heatmaps)
        assert type(model.prior.detector) is kind
        assert model.encode_driving(image).points.shape == (2, 50, 2)
    assert PRESETS["tiny"].spline_heatmaps and PRESETS["small"].spline_heatmaps and not PRESETS["paper"].spline_heatmaps
    # Then the hourglass of the detector has a say in which sizes can be.
    deep = dataclasses.replace(PRESETS["tiny"].detector, levels=5)
    with pytest.raises(ValueError, match="multiples of 64"):
        tiny(system="tpsm", detector=deep).check_size(96, 96)
    tiny(system="tpsm", detector=deep, spline_heatmaps=False).check_size(96, 96)


@torch.no_grad()
def test_the_background_moves_where_the_driving_image_is_given(monkeypatch):
    model, (source, driving) = tiny(system="tpsm"), pair()
    shift = torch.tensor([[1.0, 0.0, 0.2], [0.0, 1.0, -0.1]])
    monkeypatch.setattr(model.prior.background, "forward", lambda source, driving: shift.expand(len(driving), 2, 3))
    state, motion = model.encode_source(source), model.encode_driving(driving, move_background=True)
    moving = model.render(state, motion).coarse
    assert torch.allclose(moving.part_flows[:, 0], shift[:, 2].view(2, 1, 1).expand(2, 2, 32, 32), atol=1e-6)
    assert torch.equal(moving.background, shift.expand(2, 2, 3))
    still = model.render(state, model.encode_driving(driving)).coarse
    assert not still.part_flows[:, 0].any() and still.background is None


@torch.no_grad()
def test_structure_points_are_the_means_of_each_spline():
    model, image = tiny(prior="tps"), pair()[0]
    motion = model.encode_driving(image)
    seen = []
    model.structure.driving_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.render(model.encode_source(image), motion)
    assert torch.allclose(seen[0], motion.points.view(2, 10, 5, 2).mean(2), atol=1e-6)
    plain = tiny()
    assert torch.equal(plain.prior.structure_points(plain.encode_driving(image)), plain.encode_driving(image).points)


@torch.no_grad()
def test_dropped_splines_do_not_move_anything():
    model, (source, driving) = tiny(system="tpsm"), pair()
    state, motion = model.encode_source(source), model.encode_driving(driving)
    all_but_one = dropout_scales(torch.tensor([[0.9] + [0.0] * 9]).expand(2, -1), 0.5)
    masks = model.render(state, motion, part_scales=all_but_one).coarse.masks
    assert masks[:, :2].amin((2, 3)).gt(0).all() and not masks[:, 2:].any()


@torch.no_grad()
def test_every_scale_of_the_inpainting_network_has_its_own_occlusion():
    for prior in ("affine", "tps"):
        output = tiny(prior=prior, refine=False, generator="inpainting")(*pair())
        assert [o.shape[-1] for o in output.coarse.occlusions] == [8, 16, 32, 64]
        assert all(torch.equal(*both) for both in zip(output.occlusions[1:], output.coarse.occlusions, strict=True))
    # A scale that the hourglass doesn't reach takes the coarse flow's occlusion, resized.
    shallow = dataclasses.replace(PRESETS["tiny"].dense_motion, levels=1)
    output = tiny(system="tpsm", dense_motion=shallow)(*pair())
    assert len(output.coarse.occlusions) == 2
    assert torch.allclose(output.occlusions[1], torch.nn.functional.avg_pool2d(output.coarse.occlusion, 4), atol=1e-5)


def test_weights_written_before_a_field_was_there_can_be_read():
    values = json.loads(PRESETS["tiny"].to_json())
    for name in ("inpainting", "spline_detector", "spline_points", "spline_heatmaps", "regularisation", "tokens"):
        del values[name]
    read = ModelConfig.from_json(json.dumps(values))
    assert read.unet == PRESETS["tiny"].unet and read.inpainting == ModelConfig().inpainting


def test_sizes_of_the_presets():
    for prior, refine, generator in COMBINATIONS:
        assert sum(p.numel() for p in tiny(prior=prior, refine=refine, generator=generator).parameters()) <= 2.9e6
    with torch.device("meta"):
        paper = AnimationModel.from_config(PRESETS["paper"])
    updater = paper.refiner.updater
    assert updater.correlation_in.in_channels == 98 and updater.motion.out_channels == 126
    assert paper.generator.feature_channels == [512, 512, 512, 256, 128, 64]
    assert len(paper.refiner.projections) == 6
    with torch.device("meta"):
        tokens = AnimationModel.from_preset("paper", prior="tokens").prior.detector
    assert (len(tokens.layers), tokens.tokens.shape, tokens.step) == (12, (20, 192), 16)
    assert (tokens.layers[0].self_attn.num_heads, tokens.layers[0].linear1.out_features) == (8, 576)
    with torch.device("meta"):
        splines = AnimationModel.from_preset("paper", system="tpsm")
        refined = AnimationModel.from_preset("paper", system="tpsm", refine=True)
    assert splines.generator.feature_channels == [512, 256, 128, 64]
    assert len(splines.prior.dense_motion.coarser_heads) == 1 and len(splines.prior.dense_motion.finer_heads) == 2
    assert refined.config.iterations == 4


@pytest.mark.parametrize(
    "option, changed",
    [
        (dict(radius=2), {"refiner.updater.correlation_in.weight"}),
        (dict(pyramid=2), {"refiner.updater.correlation_in.weight"}),
        (dict(structure_sees_image=False), None),
        (dict(warped_source=False), None),
        (dict(iterations=3), set()),
        (dict(update_flow=False), set()),
        (dict(update_occlusion=False), set()),
    ],
)
def test_each_switch_changes_what_it_names_and_nothing_else(option, changed):
    full = {name: p.shape for name, p in tiny().named_parameters()}
    other = {name: p.shape for name, p in tiny(**option).named_parameters()}
    different = {name for name in full.keys() | other.keys() if full.get(name) != other.get(name)}
    if changed is not None:
        assert {d for d in different if "projections" not in d} == changed
    elif "structure_sees_image" in option:
        assert different and all(name.startswith("structure.source_encoder") for name in different)
    else:
        parts = (
            "refiner.updater.context",
            "refiner.projections",
            "refiner.updater.flow_head.0",
            "refiner.updater.occl",
        )
        assert different and all(name.startswith(parts) for name in different)


def test_the_number_of_points_and_iterations_can_be_chosen():
    for options in (dict(points=5), dict(iterations=3), dict(radius=4, pyramid=0)):
        with torch.no_grad():
            output = tiny(**options)(*pair())
        assert output.image.shape == (2, 3, 64, 64)
        assert len(output.flows) == 5
    assert output.coarse.masks.shape[1] == 11


def test_weights_survive_saving(tmp_path):
    model = tiny(points=7)
    model.save(tmp_path / "model.safetensors")
    loaded = AnimationModel.load(tmp_path / "model.safetensors")
    assert loaded.config == model.config and not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values()))


def test_a_configuration_survives_json():
    for config in PRESETS.values():
        assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "build, message",
    [
        (
            lambda: AnimationModel.from_preset("big"),
            r"unknown preset .big.: there are tiny, tiny-quarter, portrait, ",
        ),
        (lambda: AnimationModel.from_preset("tiny", prior="magic"), "unknown prior 'magic': there are affine"),
        (lambda: AnimationModel.from_preset("tiny", system="x"), "unknown system 'x'"),
        (lambda: AnimationModel.from_preset("tiny", generator="x"), "unknown generator 'x'"),
        (lambda: AnimationModel.from_preset("tiny", prior="none", refine=False), "refine must be True"),
        (lambda: AnimationModel.from_preset("tiny", width=3), r"unknown sizes \['width'\]"),
        (lambda: AnimationModel.from_preset("tiny", iterations=9), "expected 1 to 4"),
    ],
)
def test_wrong_names_say_which_exist(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# The shapes in signatures are checked in tests alone; so another process, which does what a user's script does.
GIVE_OTHER_PICTURES = """
import json, torch
from minimodel import AnimationModel
torch.manual_seed(0)
model, good = AnimationModel.from_preset("tiny").eval(), torch.rand(1, 3, 64, 64)
good[:, :, 0, 0], good[:, :, 0, 1] = 0.0, 1.0
kinds = {
    "0 to 255": 255 * good, "-1 to 1": 2 * good - 1, "bytes": (255 * good).byte(), "grey": good[:, :1],
    "four channels": torch.cat([good, good[:, :1]], 1), "channels last": good.permute(0, 2, 3, 1), "right": good,
}
said = {}
for kind, bad in kinds.items():
    ways = {
        "source": lambda: model.encode_source(bad),
        "driving": lambda: model.encode_driving(bad),
        "both": lambda: model(bad, bad),
        "photo": lambda: next(model.animate(bad[0], good)),
        "video": lambda: next(model.animate(good[0], iter(bad))),
    }
    for way, do in ways.items():
        try:
            do()
            said[f"{kind}, {way}"] = ""
        except Exception as error:
            said[f"{kind}, {way}"] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""
OTHER_PICTURES = {
    "0 to 255": "pictures with values from 0 to 255: expected 0 to 1 (divide by 255?)",
    "-1 to 1": "pictures with values from -1 to 1: expected 0 to 1 (divide by 255?)",
    "bytes": "a tensor 1x3x64x64 of uint8: expected pictures (b, 3, h, w), RGB as float in [0, 1]",
    "four channels": "a tensor 1x4x64x64 of float32: expected pictures (b, 3, h, w), RGB as float in [0, 1]",
    "grey": "a tensor 1x1x64x64 of float32: expected pictures (b, 3, h, w), RGB as float in [0, 1]",
    "channels last": "a tensor 1x64x64x3 of float32: expected pictures (b, 3, h, w), RGB as float in [0, 1]",
}


@pytest.fixture(scope="module")
def said_of_pictures():
    command = [sys.executable, "-c", GIVE_OTHER_PICTURES]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("way", ["source", "driving", "both", "photo", "video"])
@pytest.mark.parametrize("kind", OTHER_PICTURES)
def test_pictures_of_another_kind_are_named_with_what_came(said_of_pictures, kind, way):
    assert said_of_pictures[f"{kind}, {way}"] == f"MinimodelError: {OTHER_PICTURES[kind]}"
    assert said_of_pictures[f"right, {way}"] == ""


def test_files_that_are_not_ours_are_refused_in_one_line(tmp_path):
    from safetensors.torch import save_file

    pickled, text, foreign, newer = (
        tmp_path / name for name in ("a.pt", "b.safetensors", "c.safetensors", "d.safetensors")
    )
    torch.save({"weights": torch.zeros(1)}, pickled)
    text.write_text("not weights")
    save_file({"a": torch.zeros(1)}, foreign)
    save_file({"a": torch.zeros(1)}, newer, metadata=tiny().metadata() | {"version": "99"})
    for path, message in (
        (pickled, "never loaded"),
        (text, "not a whole safetensors file"),
        (foreign, "not weights of minimodel"),
        (newer, "weight format 99"),
        (tmp_path, "is a directory"),
        (tmp_path / "missing.safetensors", "no such file"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            AnimationModel.load(path)
        assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    tiny().save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        AnimationModel.load(path)


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["tiny"].points = 3


# ------------------------------------------------------------------------------------------------ moved by landmarks

BY_LANDMARKS = [dict(system="s2d"), dict(system="s2d", refine=True), dict(system="mrfa", prior="landmarks")]


def landmarks(batch=2):
    generator = torch.Generator().manual_seed(1)
    source = torch.rand(batch, 74, 2, generator=generator) - 0.5
    return source, source + 0.1 * torch.randn(batch, 74, 2, generator=generator)


def told(batch=2):
    return dict(zip(("source_landmarks", "driving_landmarks"), landmarks(batch)))


def listening(model):
    """Heads that start at zero would hide what is behind them."""
    for name, parameter in model.named_parameters():
        if name.endswith(("head.2.weight", "flow_head.weight", "background.head.weight")):
            torch.nn.init.normal_(parameter, std=0.01)
    return model


@pytest.mark.parametrize("options", BY_LANDMARKS)
@torch.no_grad()
def test_landmarks_alone_move_a_source(options):
    model = listening(tiny(**options))
    output = model(pair()[0], **told())
    assert output.image.shape == (2, 3, 64, 64) and 0 <= output.image.min() <= output.image.max() <= 1
    assert [flow.shape[-1] for flow in output.flows] == [64, 8, 16, 32, 64]
    assert torch.equal(output.flows[0], output.coarse.flow)
    assert output.coarse.masks.shape == (2, 4, 64, 64)  # the global branch and three local ones
    assert (output.correlation is None) == (not model.config.refine)
    # The source is encoded once, and landmarks that stay move nothing but what refinement adds.
    state = model.encode_source(pair()[0][:1], landmarks=landmarks()[0][:1])
    frames = model.render(state, model.encode_driving(landmarks=landmarks()[1])).image
    expected = model(
        *[x[:1].expand(2, *x.shape[1:]) for x in pair()[:1]],
        source_landmarks=landmarks()[0][:1].expand(2, -1, -1),
        driving_landmarks=landmarks()[1],
    ).image
    assert torch.allclose(frames, expected, atol=1e-5)


@torch.no_grad()
def test_equation_2_of_s2d():
    """T = E (1 - M) + R M with M by the generator alone; `Output` says it as an occlusion."""
    model = listening(tiny(system="s2d"))
    output = model(pair()[0], **told())
    assert torch.allclose(output.warped_source, warp(pair()[0], output.flows[-1]))
    painted, mask = model.generator(output.warped_source, output.flows[-1])
    mask = torch.sigmoid(mask)
    assert torch.allclose(output.painted, painted)
    assert torch.allclose(output.image, output.warped_source * (1 - mask) + painted * mask, atol=1e-6)
    assert torch.allclose(torch.sigmoid(output.occlusions[-1]), 1 - mask, atol=1e-6)
    assert not output.coarse.occlusion.any()


@torch.no_grad()
def test_landmarks_feed_the_structure_correlation():
    model = tiny(system="mrfa", prior="landmarks")
    source, driving = landmarks()
    state = model.encode_source(pair()[0], landmarks=source)
    assert torch.equal(state.motion.points, source)
    one, other = (model.structure(state.structure, points) for points in (source, driving))
    assert one.volume().shape == other.volume().shape == (2, 32, 32, 32, 32)
    assert not torch.allclose(one.volume(), other.volume())


@pytest.mark.parametrize(
    "switch, named", [("adain", ".norm."), ("add_motion", ".add_motion."), ("local_motion", ".local.")]
)
def test_the_switches_of_s2d_table_4_change_what_they_name_and_nothing_else(switch, named):
    full = {name: p.shape for name, p in tiny(system="s2d").named_parameters()}
    other = {name: p.shape for name, p in tiny(system="s2d", **{switch: False}).named_parameters()}
    different = {name for name in full.keys() | other.keys() if full.get(name) != other.get(name)}
    assert different and all(name.startswith("prior.motion.") and named in name for name in different)


@torch.no_grad()
def test_other_sizes_work_with_landmarks_and_wrong_ones_name_the_nearest():
    model = tiny(system="s2d")
    for height, width in ((96, 96), (128, 64), (32, 48)):
        assert model(torch.rand(2, 3, height, width), **told()).image.shape[-2:] == (height, width)
    with pytest.raises(ValueError, match=r"60 x 64.*multiples of 16.*48 or 64"):
        model(torch.rand(2, 3, 60, 64), **told())


class Finder(LandmarkDetector):
    """Finds the same face everywhere."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.points = torch.nn.Parameter(landmarks(1)[0])

    def find(self, image):
        return self.points.expand(len(image), -1, -1)


@torch.no_grad()
def test_a_detector_can_be_lent_and_its_weights_stay_its_own(tmp_path):
    model = tiny(system="s2d")
    assert model.prior.finder.detector is None
    shipped = LandmarkDetector.load().find(pair()[1])
    with torch.inference_mode():
        assert torch.allclose(model.encode_driving(pair()[1]).points, shipped, atol=1e-5)  # unless another is set
    # Loaded there, its weights are of use outside as well.
    assert not any(parameter.is_inference() for parameter in model.prior.finder.detector.parameters())
    model.double()
    assert next(model.prior.finder.detector.parameters()).dtype == torch.float64  # it goes where the model goes
    model.float()
    model.prior.finder.use(Finder())
    assert torch.equal(model.encode_driving(pair()[1]).points, landmarks(1)[0].expand(2, -1, -1))
    same = landmarks(1)[0].expand(2, -1, -1)
    expected = model(pair()[0], source_landmarks=same, driving_landmarks=same).image
    assert torch.equal(model(*pair()).image, expected)
    model.save(tmp_path / "model.safetensors")
    loaded = AnimationModel.load(tmp_path / "model.safetensors")
    assert loaded.config == model.config and loaded.state_dict().keys() == tiny(system="s2d").state_dict().keys()


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: tiny(system="s2d", points=10), "points is 10: the prior 'landmarks' has 74"),
        (lambda: tiny().encode_driving(landmarks=landmarks()[0]), "landmarks given to a model with AffinePrior"),
        (lambda: tiny(system="s2d").encode_driving(), "neither an image nor landmarks"),
    ],
)
def test_landmarks_in_the_wrong_place_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "name, prior, refine",
    [
        ("tiny-unsupervised", "tokens", True),
        ("tiny", "tokens", True),
        ("tiny-affine", "affine", True),  # older than some fields of the configuration
        ("portrait", "face", True),
        ("tiny-tps", "tps", True),
        ("tiny-s2d", "landmarks", False),
    ],
)
def test_shipped_weights_are_what_their_cards_say(name, prior, refine):
    config = AnimationModel.load(name).config
    preset = {"tiny": "tiny-quarter", "portrait": "portrait"}.get(name, "tiny")
    assert (config.preset, config.prior, config.refine) == (preset, prior, refine)
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size < 12 * 2**20


def test_every_weight_file_has_a_card():
    cards = (WEIGHTS / "README.md").read_text()
    assert all(f"## {path.stem}\n" in cards for path in WEIGHTS.glob("*.safetensors"))


def test_the_gate_blends_the_warped_source_with_what_was_painted():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    source, driving = torch.rand(2, 2, 3, 64, 64, generator=generator)
    for blend in (True, False):
        torch.manual_seed(0)
        model = AnimationModel.from_preset("tiny", blend=blend).eval()
        with torch.no_grad():
            output = model(source, driving)
        visible = torch.sigmoid(output.occlusions[-1])
        expected = output.warped_source * visible + output.painted * (1 - visible) if blend else output.painted
        assert torch.allclose(output.image, expected, atol=1e-6) and visible.std() > 0


def test_parts_of_the_affine_prior_lead_from_the_driving_points_to_the_sources():
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny").eval()
    torch.nn.init.normal_(model.prior.detector.affine_head.weight, std=0.02)
    source, driving = torch.rand(2, 2, 3, 64, 64)
    with torch.no_grad():
        start, end = model.encode_driving(source), model.encode_driving(driving)
        coarse = model.render(model.encode_source(source), end).coarse
    expected = part_flows(start.points, end.points, start.affine, end.affine, (32, 32))
    assert torch.allclose(coarse.part_flows, with_background(expected), atol=1e-6)
