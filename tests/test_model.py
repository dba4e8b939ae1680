import dataclasses

import pytest
import torch

from minimodel.model import PRESETS, AnimationModel, Config
from minimodel.warping import warp

NEW = ("fomm", "mrfa", "npmr")


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
    assert (output.correlation is None) == (system == "fomm")


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
def test_lookup_without_the_volume_gives_the_same_frame(monkeypatch):
    model = tiny()
    for head in (model.refiner.updater.flow_head, model.refiner.updater.occlusion_head):
        torch.nn.init.normal_(head[-1].weight, std=0.05)
    held = model(*pair())
    monkeypatch.setattr(type(model.structure), "held_numbers", 0)
    free = model(*pair())
    assert held.correlation.hold_volume and not free.correlation.hold_volume
    assert torch.allclose(held.image, free.image, atol=1e-5)


@torch.no_grad()
def test_bfloat16_keeps_flows_in_full_precision():
    model = tiny()
    exact = model(*pair())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(*pair())
    assert rough.flows[0].dtype == torch.float32
    assert (exact.flows[-1] - rough.flows[-1]).abs().max() * 32 < 0.5  # pixels; the networks' own rounding remains
    assert (exact.image - rough.image).abs().mean() < 0.02


def test_every_parameter_gets_a_gradient():
    for system in NEW:
        model = tiny(system=system).train()
        for name, parameter in model.named_parameters():
            if name.endswith("head.2.weight"):  # the heads' last layers start at zero, which would stop it there
                torch.nn.init.normal_(parameter, std=0.01)
        model(*pair()).image.square().mean().backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert missing == []


def test_sizes_of_the_presets():
    assert sum(p.numel() for p in tiny().parameters()) <= 2.9e6
    with torch.device("meta"):
        paper = AnimationModel(PRESETS["paper"])
    updater = paper.refiner.updater
    assert updater.correlation_in.in_channels == 98 and updater.motion.out_channels == 126
    assert paper.generator.feature_channels == [512, 512, 512, 256, 128, 64]
    assert len(paper.refiner.projections) == 6


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
        assert Config.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: AnimationModel.from_preset("big"), "unknown preset 'big': there are tiny, small, paper"),
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
