"""Published checkpoints at small widths: conventions against naive code, names and shapes, what is refused."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from minimodel import transfer
from minimodel.published import conventions
from minimodel.published.checkpoint import convert, read_checkpoint
from minimodel.published.detectors import HeatmapDetector
from minimodel.published.model import PublishedModel
from minimodel.published.motion import GridMotion
from minimodel.published.refinement import PublishedLookup, PublishedRefiner
from minimodel.published.storing import import_checkpoint
from minimodel.warping import warp
from tests.published_layouts import LAYOUTS, SMALL, gaussian, save_checkpoint, weights


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


NORM = ("running_mean", "running_var", "weight", "bias")


def flat(layout: str) -> dict[str, torch.Tensor]:
    sections = weights(LAYOUTS[layout](SMALL))
    return {f"{section}.{name}": value for section, entries in sections.items() for name, value in entries.items()}


# --- conventions ---


def test_outer_pixels_of_a_corner_grid_are_at_one():
    grid = conventions.corner_grid(3, 5)
    torch.testing.assert_close(grid[0, 0], torch.tensor([-1, -0.5, 0, 0.5, 1]))
    torch.testing.assert_close(grid[1, :, 0], torch.tensor([-1.0, 0, 1]))


@pytest.mark.parametrize("align_corners", (False, True))
def test_sampling_a_grid_is_what_published_code_calls(align_corners):
    image, grid = random(2, 3, 8, 12), 1.3 * random(2, 2, 6, 5, seed=1).clamp(-1, 1)
    expected = F.grid_sample(image, grid.permute(0, 2, 3, 1), padding_mode="zeros", align_corners=align_corners)
    sampled = conventions.sample(image, grid, align_corners=align_corners)
    torch.testing.assert_close(sampled, expected, atol=1e-5, rtol=0)
    assert (sampled == 0).any()  # some positions lie outside


def test_a_grid_at_rest_enlarges_the_picture_without_aligned_corners():
    image = random(1, 1, 8, 8)
    at_rest = conventions.corner_grid(8, 8)[None]
    torch.testing.assert_close(conventions.sample(image, at_rest, align_corners=True), image, atol=1e-6, rtol=0)
    # Half of the corner pixel lies outside along x and half along y.
    enlarged = conventions.sample(image, at_rest, align_corners=False)
    torch.testing.assert_close(enlarged[0, 0, 0, 0], image[0, 0, 0, 0] / 4)


def test_downsampling_is_a_gaussian_and_every_fourth_pixel():
    image = random(1, 3, 32, 32)
    padded = F.conv2d(F.pad(image, (6, 6, 6, 6)), gaussian(13).expand(3, 1, 13, 13), groups=3)
    torch.testing.assert_close(conventions.downsample(image, 4), F.interpolate(padded, scale_factor=0.25))


def test_points_and_heatmaps_reach_the_corners():
    logits = torch.zeros(1, 1, 6, 6)
    logits[..., 0, 5] = 100
    points, _ = conventions.soft_argmax(logits, temperature=0.1)
    torch.testing.assert_close(points[0, 0], torch.tensor([1.0, -1.0]))
    heatmap = conventions.gaussian_heatmaps(points, (4, 4), 0.01)
    torch.testing.assert_close(heatmap[0, 0, 0, 3], torch.tensor(1.0))


def test_splines_solve_the_damped_system_for_positions():
    source, driving = (0.5 * random(1, 1, 5, 2, seed=seed) for seed in (0, 1))
    c, v = driving[0, 0].double().numpy(), source[0, 0].double().numpy()
    squared = ((c[:, None] - c) ** 2).sum(-1)
    system = np.zeros((8, 8))
    system[:5, :5] = squared * np.log(squared + 1e-9)
    system[:5, 5:7], system[:5, 7] = c, 1
    system[5:, :5] = system[:5, 5:].T
    solution = np.linalg.solve(system + 0.01 * np.eye(8), np.vstack([v, np.zeros((3, 2))]))
    z = conventions.corner_grid(4, 6)[:, 2, 3].numpy()
    away = ((z - c) ** 2).sum(-1)
    expected = (away * np.log(away + 1e-9)) @ solution[:5] + z @ solution[5:7] + solution[7]
    grids = conventions.spline_grids(source, driving, (4, 6))
    np.testing.assert_allclose(grids[0, 0, :, 2, 3].numpy(), expected, atol=1e-4)


def test_lookup_reads_levels_at_their_published_centres():
    driving, source = random(1, 4, 8, 8), random(1, 4, 8, 8, seed=1)
    lookup = PublishedLookup(driving, source, radius=1, levels=2)
    positions = torch.tensor([3.3, 5.1]).view(1, 2, 1, 1).expand(1, 2, 8, 8).contiguous()
    found = lookup(positions)[0, :, 2, 6]
    volume = torch.einsum("c,cij->ij", driving[0, :, 2, 6], source[0]) / 2
    expected = []
    for level in range(2):
        pooled = F.avg_pool2d(volume[None, None], 2**level)
        size = pooled.shape[-1]
        for dx in (-1, 0, 1):  # along x outside
            for dy in (-1, 0, 1):
                at = torch.tensor([3.3 / 2**level + dx, 5.1 / 2**level + dy]) * 2 / (size - 1) - 1
                expected.append(F.grid_sample(pooled, at.view(1, 1, 1, 2), align_corners=True).item())
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)


def test_refinement_stretches_a_constant_flow():
    """In n - 1 steps a shift of 64 x 64 becomes 1.125 times as long at 8 x 8 (and 0.988 times at 256 x 256)."""
    refiner = PublishedRefiner([4] * 4, radius=3, pyramid_levels=2).eval()
    grid = conventions.corner_grid(64, 64)[None] + 0.1
    coarse = GridMotion(grid, torch.zeros(1, 1, 64, 64), grid=grid)
    lookup = PublishedLookup(random(1, 4, 64, 64), random(1, 4, 64, 64, seed=1), radius=3, levels=2)
    features = [random(1, 4, 8 * 2**i, 8 * 2**i) for i in range(4)]
    with torch.inference_mode():  # the updater's last layers start at zero, so that only resizing acts
        flows, _, before = refiner(coarse, lookup, features)
    for flow, times in ((flows[0], 1.125), (flows[2], 63 / 64 * 32 / 31), (flows[3], 1), (before, 1)):
        size = flow.shape[-1]
        in_corners = flow.mean() * size / (size - 1)
        torch.testing.assert_close(in_corners / 0.1, torch.tensor(float(times)), atol=1e-4, rtol=0)


# --- names and shapes ---


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_recognised_stored_and_loaded(tmp_path, layout):
    path = save_checkpoint(tmp_path / "checkpoint.pth.tar", layout)
    model = import_checkpoint(path, tmp_path / "imported.safetensors")
    assert model.sizes.model == layout.split("-")[0]
    assert (model.refiner is not None) == layout.endswith("refined")
    assert (model.avd is not None) == layout.endswith("avd")
    # What is stored for every place of a picture shows the picture's size.
    assert model.sizes.image_size == (64 if layout.startswith("mtia") or layout.endswith("refined") else 256)
    again = PublishedModel.load(tmp_path / "imported.safetensors")
    assert again.sizes == model.sizes
    for (name, value), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.inference_mode()
def test_every_layout_renders_pictures_of_any_size_that_its_scales_divide(layout):
    model = convert(flat(layout))
    pictures = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    motion = model.encode_driving(pictures[1:])
    assert motion.points.shape == (2, 10 if model.sizes.prior == "tps" else 2, 2)
    assert (motion.affine is None) == (model.sizes.prior == "tps")
    output = model.render(model.encode_source(pictures[:1]), motion)
    assert output.image.shape == (2, 3, 64, 96) and output.image.isfinite().all()
    assert not torch.equal(*output.image)  # two driving frames, two pictures
    for flow, occlusion in zip(output.flows, output.occlusions, strict=True):
        assert flow.shape[-2:] == occlusion.shape[-2:]
    # One pair at a time gives the same, also where a batch shares one source.
    alone = model(pictures[:1], pictures[2:]).image
    torch.testing.assert_close(alone, output.image[1:], atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="must be multiples of"):
        model.encode_source(pictures[..., :60, :])


@torch.inference_mode()
def test_flows_sample_what_the_generator_was_given():
    """Flows follow the convention of `warping`, though the grids they come from don't."""
    model = convert(flat("mtia"))
    source, driving = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    output = model(source, driving)
    grid = conventions.resize(output.coarse.grid, (64, 64), align_corners=False).permute(0, 2, 3, 1)
    torch.testing.assert_close(
        output.warped_source, F.grid_sample(source, grid, align_corners=False), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(output.warped_source, warp(source, output.flows[-1], padding="zeros"))


@torch.inference_mode()
def test_background_moves_only_where_the_driving_frame_is_known():
    model = convert(flat("tpsm"))
    source, driving = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    still, moved = (model(source, driving, move_background=choice).coarse for choice in (False, True))
    assert still.background is None and still.part_flows[:, 0].abs().max() < 1e-6
    assert moved.background.shape == (1, 2, 3) and moved.part_flows[:, 0].abs().max() > 1e-3


@torch.inference_mode()
def test_avd_network_of_the_file_serves_the_transfer():
    model = convert(flat("tpsm-avd"))
    source, driving = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    start, end = model.encode_driving(source[:1]), model.encode_driving(driving)
    motion = transfer.avd(start, end, model.avd)
    assert motion.points.shape == (2, 10, 2)
    file = flat("tpsm-avd")
    x = end.points.flatten(1)

    def layers(part: str, x: torch.Tensor) -> torch.Tensor:
        for layer in (0, 3, 6):
            x = F.linear(x, file[f"avd_network.{part}.{layer}.weight"], file[f"avd_network.{part}.{layer}.bias"])
            if layer < 6:
                norm = [file[f"avd_network.{part}.{layer + 1}.{name}"] for name in NORM]
                x = F.relu(F.batch_norm(x, *norm))
        return x

    codes = layers("pose_encoder", x), layers("id_encoder", start.points.flatten(1).expand_as(x))
    torch.testing.assert_close(motion.points.flatten(1), layers("decoder", torch.cat(codes, dim=1)), atol=1e-5, rtol=0)


def test_no_weight_stays_as_it_was_drawn():
    """Two files give no weight in common but transformers' biases of queries, keys and values, which published layers
    lack: everything comes from the file."""
    for layout in LAYOUTS:
        one = flat(layout)
        kernels = {name: value for name, value in one.items() if name.endswith(".down.weight")}
        other = {name: 1.5 * value if value.is_floating_point() else value for name, value in one.items()} | kernels
        first, second = convert(one).state_dict(), convert(other).state_dict()
        equal = {name for name in first if torch.equal(first[name], second[name])}
        assert not {name for name in equal if not name.endswith(("num_batches_tracked", "in_proj_bias"))}, layout


def test_heatmap_detector_gives_what_the_file_says():
    """The hourglass of FOMM's detector once more, from the names in its file alone."""
    file = flat("fomm")
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def block(name: str, x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(x, file[f"{name}.conv.weight"], file[f"{name}.conv.bias"], padding=1)
        mean, variance = file[f"{name}.norm.running_mean"], file[f"{name}.norm.running_var"]
        return F.relu(F.batch_norm(x, mean, variance, file[f"{name}.norm.weight"], file[f"{name}.norm.bias"]))

    skips = [conventions.downsample(image, 4)]
    for level in range(2):
        x = block(f"kp_detector.predictor.encoder.down_blocks.{level}", skips[-1])
        skips.append(F.avg_pool2d(x, 2))
    x = skips.pop()
    for level in range(2):
        x = block(f"kp_detector.predictor.decoder.up_blocks.{level}", F.interpolate(x, scale_factor=2))
        x = torch.cat([x, skips.pop()], dim=1)
    heat = F.conv2d(x, file["kp_detector.kp.weight"], file["kp_detector.kp.bias"])
    assert heat.shape[-2:] == (10, 10)  # no padding
    heat = torch.softmax(heat.flatten(2) / 0.1, dim=-1)
    maps = F.conv2d(x, file["kp_detector.jacobian.weight"], file["kp_detector.jacobian.bias"])
    points = heat @ conventions.corner_grid(10, 10).flatten(1).T
    matrices = torch.einsum("bkn,bkcn->bkc", heat, maps.unflatten(1, (2, 4)).flatten(3)).unflatten(2, (2, 2))
    with torch.inference_mode():
        found = convert(file).prior.detect(image)
    torch.testing.assert_close(found.points, points, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.affine, matrices, atol=1e-5, rtol=0)


def test_a_wrapper_of_several_gpus_is_taken_off(tmp_path):
    sections = weights(LAYOUTS["mrfa-fomm-refined"](SMALL))
    wrapped = {"model": {f"module.{name}": value for name, value in sections["model"].items()}}
    torch.save(wrapped, tmp_path / "wrapped.pth")
    assert read_checkpoint(tmp_path / "wrapped.pth").keys() == flat("mrfa-fomm-refined").keys()


def test_a_file_of_the_old_format_is_read(tmp_path):
    """FOMM's files are older than torch's archives."""
    path = tmp_path / "old.pth.tar"
    torch.save(weights(LAYOUTS["fomm"](SMALL)), path, _use_new_zipfile_serialization=False)
    assert convert(read_checkpoint(path)).sizes.model == "fomm"


def test_the_card_says_where_a_file_came_from(tmp_path):
    path = save_checkpoint(tmp_path / "vox.pth.tar", "tpsm-avd")
    import_checkpoint(path, tmp_path / "vox.safetensors")
    with safe_open(tmp_path / "vox.safetensors", framework="pt") as file:
        card = file.metadata()
    assert card["kind"] == "published" and card["source"] == "vox.pth.tar" and card["model"].startswith("TPSM")
    assert len(card["source_sha256"]) == 64 and "align_corners True" in card["conventions"]


def test_align_corners_is_remembered_and_changes_the_picture(tmp_path):
    path = save_checkpoint(tmp_path / "vox.pth.tar", "fomm")
    models = [import_checkpoint(path, tmp_path / "a.safetensors", align_corners=choice) for choice in (False, True)]
    assert PublishedModel.load(tmp_path / "a.safetensors").handling.features
    source = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first, second = (n.prior(source, n.prior.detect(source), n.prior.detect(source)).flow for n in models)
    assert (first - second).abs().max() > 0.01


# --- what is refused ---


def refused(path, message: str, **options) -> None:
    """Importing fails in one line that names the file, and writes nothing."""
    output = path.with_name("out.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        import_checkpoint(path, output, **options)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert {entry.name for entry in path.parent.iterdir()} <= {path.name}


@pytest.mark.parametrize("layout", ("fomm", "tpsm", "mtia", "mrfa-mtia-refined"))
def test_a_missing_entry_is_named(tmp_path, layout):
    sections = weights(LAYOUTS[layout](SMALL))
    section, name = next((s, n) for s in sections for n in sections[s] if n.endswith("up_blocks.1.norm.weight"))
    del sections[section][name]
    torch.save(sections, tmp_path / "checkpoint.pth")
    refused(tmp_path / "checkpoint.pth", f"entry '{section}.{name}' is missing")


def test_a_missing_entry_that_gives_a_size_is_named(tmp_path):
    sections = weights(LAYOUTS["fomm"](SMALL))
    del sections["kp_detector"]["kp.weight"]
    torch.save(sections, tmp_path / "checkpoint.pth")
    refused(tmp_path / "checkpoint.pth", "entry 'kp_detector.kp.weight' is missing")


def test_a_wrong_shape_is_named(tmp_path):
    sections = weights(LAYOUTS["tpsm"](SMALL))
    sections["kp_detector"]["fg_encoder.layer3.0.conv1.weight"] = torch.zeros(16, 8, 5, 5)
    torch.save(sections, tmp_path / "checkpoint.pth")
    refused(tmp_path / "checkpoint.pth", r"layer3.0.conv1.weight' has shape \(16, 8, 5, 5\), expected \(16, 8, 3, 3\)")


def test_an_entry_without_a_place_is_named(tmp_path):
    sections = weights(LAYOUTS["fomm"](SMALL))
    sections["kp_detector"]["second_head.weight"] = torch.zeros(3)
    torch.save(sections, tmp_path / "checkpoint.pth")
    refused(tmp_path / "checkpoint.pth", "1 entries have no place in it, as 'kp_detector.second_head.weight'")


def test_another_filter_is_named(tmp_path):
    sections = weights(LAYOUTS["fomm"](SMALL))
    sections["kp_detector"]["down.weight"] = torch.full((3, 1, 13, 13), 1 / 169)
    torch.save(sections, tmp_path / "checkpoint.pth")
    refused(tmp_path / "checkpoint.pth", "'kp_detector.down.weight' isn't the filter")


def test_an_unknown_layout_is_said(tmp_path):
    torch.save({"generator": {"weight": torch.zeros(2)}}, tmp_path / "checkpoint.pth")
    refused(tmp_path / "checkpoint.pth", r"unknown layout: sections \['generator'\]")
    torch.save({"net": {"weight": torch.zeros(2)}}, tmp_path / "checkpoint.pth")
    refused(tmp_path / "checkpoint.pth", "unknown layout: holds 'net', expected sections")
    torch.save(torch.zeros(2), tmp_path / "checkpoint.pth")
    refused(tmp_path / "checkpoint.pth", "holds a Tensor")


def test_another_model_than_asked_for_is_said(tmp_path):
    path = save_checkpoint(tmp_path / "checkpoint.pth", "tpsm")
    refused(path, "holds a model of kind 'tpsm', expected 'fomm'", model="fomm")
    refused(path, "align_corners is a choice for fomm and mtia alone", align_corners=True)


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_code_in_a_file_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save_checkpoint(tmp_path / "checkpoint.pth", "fomm", config=RunsCode())
    refused(path, r"refused, because reading it could run code: .*unsupported GLOBAL \w+\.mkdir")


def test_half_a_file_and_no_file_are_said(tmp_path):
    path = save_checkpoint(tmp_path / "checkpoint.pth", "fomm")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, r"not a whole checkpoint \(.*central directory\)$")  # the first sentence, to its end
    path.write_bytes(b"")
    refused(path, "not a whole checkpoint")
    path.unlink()
    refused(path, "no such file")


def test_heads_need_features_that_are_larger_than_they():
    detector = HeatmapDetector(2, matrix_maps=1, base=2, levels=1, maximum=4)
    with pytest.raises(RuntimeError):
        detector(torch.zeros(1, 3, 16, 16))
