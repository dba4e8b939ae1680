import json
import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from minimodel import tps, transfer
from minimodel.commands.evaluate import EvaluateConfig, run_evaluation
from minimodel.config import PRESETS
from minimodel.data import synthetic
from minimodel.data.framing import center_crop_resize
from minimodel.data.video import Clip
from minimodel.data.writer import VideoWriter
from minimodel.evaluation import benchmark as module
from minimodel.evaluation import metrics
from minimodel.evaluation.assessors import load_assessors
from minimodel.evaluation.benchmark import (
    EvaluationClip,
    around,
    benchmark,
    cross_clips,
    load_evaluation,
    synthetic_clip,
)
from minimodel.evaluation.protocols import Scores, evaluate, evaluate_transfer, strip
from minimodel.features import load_features
from minimodel.landmarks import LandmarkDetector
from minimodel.model import AnimationModel
from minimodel.motion import Motion
from minimodel.transfer import AvdNetwork
from minimodel.warping import identity_grid, invert_flow_at, warp

EvaluationClip.__test__ = False  # no test, whatever its name


@pytest.fixture(scope="module")
def clips():
    """The frozen benchmark at the size that its numbers are given for."""
    return benchmark(64)


@pytest.fixture(scope="module")
def features():
    return load_features()


def film(path, count=4, size=32, level=0.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path) as writer:
        for number in range(count):
            writer.write(torch.full((3, size, size), level * (1 + number / count)))
    return path


# ---------------------------------------------------------------------------------------------------- the benchmark


def test_the_benchmark_is_frozen(clips, monkeypatch):
    """Numbers of different days can be compared only if these never change."""
    assert len(clips) == 20 and all(clip.frames.shape == (25, 3, 64, 64) for clip in clips)
    assert [clip.name for clip in clips] == [f"{number:02d}" for number in range(20)]
    drawn = []
    monkeypatch.setattr(
        "minimodel.evaluation.benchmark.synthetic_clip", lambda name, faces, size: drawn.append(faces) or clips[0]
    )
    benchmark(64)
    sums = {
        "skin": sum(float(faces.identity.skin[0].sum()) for faces in drawn),
        "width": sum(float(faces.identity.width[0]) for faces in drawn),
        "hair": sum(float(faces.identity.hair[0].sum()) for faces in drawn),
        "yaw": sum(float(faces.state.yaw.abs().sum()) for faces in drawn),
        "jaw": sum(float(faces.state.jaw.sum()) for faces in drawn),
        "lids": sum(float(faces.state.lids.sum()) for faces in drawn),
        "gaze": sum(float(faces.state.gaze.abs().sum()) for faces in drawn),
    }
    assert sums == pytest.approx(FROZEN_SUMS, rel=1e-4)
    # And what is rendered of them: the mean colours, and how far every clip moves.
    means = [float(clip.frames.mean()) for clip in clips]
    assert means == pytest.approx(FROZEN_MEANS, abs=2e-4)
    motion = [float(clip.truth.flow.abs().mean()) * 32 for clip in clips]
    assert motion == pytest.approx(FROZEN_MOTION, abs=2e-2)


FROZEN_SUMS = {
    "skin": 34.5907,
    "width": 14.5613,
    "hair": 12.703,
    "yaw": 83.7274,
    "jaw": 107.121,
    "lids": 949.977,
    "gaze": 100.777,
}
FROZEN_MEANS = [
    0.2913,
    0.5232,
    0.3817,
    0.625,
    0.3759,
    0.2812,
    0.5089,
    0.5997,
    0.403,
    0.4042,
    0.5796,
    0.543,
    0.3484,
    0.3402,
    0.524,
    0.2837,
    0.5778,
    0.4991,
    0.5224,
    0.6087,
]
FROZEN_MOTION = [
    1.222,
    0.725,
    0.819,
    1.759,
    0.562,
    1.403,
    0.603,
    1.165,
    1.884,
    1.068,
    0.994,
    0.471,
    0.998,
    1.258,
    1.144,
    1.398,
    2.124,
    0.337,
    0.77,
    0.512,
]


def test_it_is_the_same_whenever_it_is_made(clips, monkeypatch):
    monkeypatch.setattr(
        module, "synthetic_clip", lambda name, *rest: synthetic_clip(name, *rest) if name in ("00", "13") else clips[1]
    )
    again = benchmark(64)
    for number in (0, 13):
        assert torch.equal(again[number].frames, clips[number].frames)
        assert torch.equal(again[number].truth.flow, clips[number].truth.flow)


def test_faces_move_three_to_five_pixels_and_speak_blink_and_look_about(clips):
    moved = []
    for clip in clips:
        length = (clip.truth.flow * 32).norm(dim=1, keepdim=True)
        moved += [float(length[n][clip.truth.regions["face"][n]].mean()) for n in range(24)]
    assert 3 < sum(moved) / len(moved) < 5
    states = [synthetic.animate_states(125, module.BENCHMARK_SEED + number)[::5] for number in range(20)]
    shut = sum(float((state.lids.amin(1) < 0.5).float().mean()) for state in states) / 20
    speaking = sum(float((state.jaw > 0.15).float().mean()) for state in states) / 20
    looking = sum(float(state.gaze.std(0).mean()) for state in states) / 20
    assert shut > 0.02 and speaking > 0.2 and looking > 0.05


def test_regions_lie_where_they_should(clips):
    for clip in clips[:5]:
        face, mouth, eyes = (clip.truth.regions[name] for name in ("face", "mouth", "eyes"))
        assert (mouth <= face).all() and (eyes <= face).all()
        rows = torch.arange(64.0).view(1, 1, -1, 1).expand(face.shape)
        assert all(rows[n][mouth[n]].mean() > rows[n][eyes[n]].mean() + 5 for n in range(24))
        share = [float(region.float().mean()) for region in (face, mouth, eyes)]
        assert 0.08 < share[0] < 0.6 and 0.005 < share[1] < 0.1 and 0.005 < share[2] < 0.1


def test_the_box_around_points():
    points = torch.tensor([[[4.0, 6.0], [8.0, 7.0]]])  # four wide, one high: a margin of one
    expected = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    expected[..., 5:9, 3:10] = True
    assert torch.equal(around(points, 16), expected)


def test_a_true_flow_is_one_to_the_first_frame(clips):
    clip = clips[0]
    driving, visible = clip.frames[1:], clip.truth.visible
    warped = warp(clip.frames[:1].expand_as(driving), clip.truth.flow)
    errors = [((picture - driving).abs() * visible).sum() / visible.sum() / 3 for picture in (warped, clip.frames[:1])]
    assert errors[0] < 0.5 * errors[1]


# ------------------------------------------------------------------------------------------------------ measuring


class Knowing(AnimationModel):
    """Knows the true flow of every frame, in the order in which it is asked, and moves it ``wrong`` pixels aside."""

    moves_by_landmarks = False

    def __init__(self, clips, wrong=0.0):
        nn.Module.__init__(self)
        self.nothing = nn.Parameter(torch.zeros(1))
        self.truth = iter([(flow, seen) for c in clips for flow, seen in zip(c.truth.flow, c.truth.visible)])
        self.wrong, self.sources, self.modes, self.config = wrong, [], [], PRESETS["tiny"]

    def encode_source(self, image, *, landmarks):
        self.sources.append(image)
        self.modes.append(self.training)
        return SimpleNamespace(image=image)

    def encode_driving(self, image, *, landmarks, move_background):
        return [next(self.truth) for _ in image]

    def render(self, source, motion):
        flow = torch.stack([flow for flow, _ in motion])
        image = warp(source.image.expand(len(flow), -1, -1, -1), flow)
        aside = flow + torch.tensor([2 * self.wrong / flow.shape[-1], 0]).view(2, 1, 1)
        seen = torch.stack([visible.float() for _, visible in motion])
        return SimpleNamespace(image=image, flows=[0 * flow, aside], occlusions=[0 * seen, 20 * seen - 10])


@pytest.fixture(scope="module")
def few(clips):
    return [clips[0], clips[7]]


def test_the_true_flow_scores_as_the_oracle(few, features):
    scores = evaluate(Knowing(few), few, features).rows
    assert list(scores) == ["model", "copy", "oracle"]
    for name in ("flow, face (px)", "flow, mouth (px)", "flow, eyes (px)"):
        assert scores["model"][name] == scores["oracle"][name] == 0
    assert scores["model"].pop("occlusion") == 1
    assert scores["model"] == pytest.approx(scores["oracle"])
    assert "occlusion" not in scores["copy"] | scores["oracle"]


def test_a_flow_one_and_a_half_pixels_aside_is_that_far_off(few, features):
    row = evaluate(Knowing(few, wrong=1.5), few, features).rows["model"]
    for region in ("face", "mouth", "eyes"):
        assert row[f"flow, {region} (px)"] == pytest.approx(1.5, abs=1e-4)


@torch.no_grad()
def test_copying_equals_its_measures_by_hand(few, features):
    row = evaluate(Knowing(few), few, features).rows["copy"]
    pairs = [(clip.frames[:1], frame[None]) for clip in few for frame in clip.frames[1:]]
    expected = {
        "L1": [metrics.l1(*pair) for pair in pairs],
        "PSNR": [metrics.psnr(*pair) for pair in pairs],
        "SSIM": [metrics.ssim(*pair) for pair in pairs],
        "MS-SSIM (3 of 5 scales)": [metrics.ms_ssim(*pair) for pair in pairs],
        "perceptual (faces)": [metrics.perceptual_distance(features, *pair) for pair in pairs],
    }
    for region in ("face", "mouth", "eyes"):
        lengths = [
            (clip.truth.flow[n] * 32).norm(dim=0)[(clip.truth.regions[region] & clip.truth.visible)[n, 0]].mean()
            for clip in few
            for n in range(24)
        ]
        expected[f"flow, {region} (px)"] = [length for length in lengths if not length.isnan()]
    assert row == pytest.approx({name: float(sum(v) / len(v)) for name, v in expected.items()}, rel=1e-4)


def test_the_oracle_beats_copying(clips, features):
    some = clips[::5]
    rows = evaluate(Knowing(some), some, features).rows
    assert rows["oracle"]["PSNR"] > rows["copy"]["PSNR"] + 3
    assert rows["oracle"]["SSIM"] > rows["copy"]["SSIM"]
    for name in ("L1", "perceptual (faces)", "flow, face (px)", "flow, mouth (px)", "flow, eyes (px)"):
        assert rows["oracle"][name] < rows["copy"][name]


def test_batches_make_no_difference_and_the_source_is_encoded_once(few, features):
    model = Knowing(few).train()
    rows = evaluate(model, few, features, batch=5).rows
    assert len(model.sources) == 2 and model.modes == [False] * 2 and model.training
    assert all(torch.equal(source, clip.frames[:1]) for source, clip in zip(model.sources, few))
    expected = evaluate(Knowing(few), few, features, batch=100).rows
    for line in rows:
        assert rows[line] == pytest.approx(expected[line], rel=1e-4)


def test_a_model_that_guesses_is_measured_as_such(few, features):
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny").eval()
    scores = evaluate(model, few[:1], features)
    row = scores.rows["model"]
    assert all(math.isfinite(value) for value in row.values())
    assert row["PSNR"] < scores.rows["oracle"]["PSNR"] and row["flow, face (px)"] > 0.1
    assert 0 < row["occlusion"] < 0.9


@pytest.fixture(scope="module")
def assessors():
    return load_assessors()


@torch.no_grad()
def test_judges_compare_what_was_made_with_what_was_wanted(few, features, assessors):
    clip, counted = few[0], []
    distance = lambda made, wanted: counted.append(len(made)) or metrics.l1(made, wanted)  # noqa: E731
    rows = evaluate(
        Knowing([clip]), [clip], features, assessors=assessors, distances={"counted": distance}, batch=10
    ).rows
    plain = evaluate(Knowing([clip]), [clip], features).rows
    names = ["AKD (ours, px)", "MKR (ours)", "AED (ours)", "counted"]
    assert all(rows[line].keys() == plain[line].keys() | set(names) for line in rows)
    assert sum(counted) == 3 * 24 and rows["copy"]["counted"] == pytest.approx(rows["copy"]["L1"])
    # By hand, one picture at a time; what a film shows is moved, but shows the same person.
    source, expected = assessors(clip.frames[:1]), {name: [] for name in names[:3]}
    for frame in clip.frames[1:]:
        wanted = assessors(frame[None])
        both = (source.found & wanted.found)[0]
        expected[names[0]].append((source.points - wanted.points)[0, both].norm(dim=-1).mean() * 32)
        expected[names[1]].append(1 - both.sum() / wanted.found.sum())
        expected[names[2]].append((source.embedding - wanted.embedding).norm())
    for name, values in expected.items():
        assert rows["copy"][name] == pytest.approx(float(sum(values) / 24), rel=1e-3)
    assert rows["oracle"]["AKD (ours, px)"] < 0.7 * rows["copy"]["AKD (ours, px)"]


def test_summary_and_table():
    scores = Scores({"model": {"PSNR": 22.5, "L1": 0.05, "occlusion": 0.7}, "copy": {"PSNR": 20.0, "L1": 0.061234}})
    unequal = Scores({"model": {"MKR": 1.0}, "copy": {"MKR": 0.5, "AKD": 2.0}})
    assert (
        unequal.table().splitlines()[0] == "| | MKR | AKD |"
        and unequal.table().splitlines()[2] == "| model | 1.00 |  |"
    )
    assert scores.summary() == {"PSNR": 22.5, "L1": 0.05, "occlusion": 0.7, "gain": 2.5}
    assert scores.table().splitlines() == [
        "| | PSNR | L1 | occlusion |",
        "|---|---|---|---|",
        "| model | 22.50 | 0.0500 | 0.7000 |",
        "| copy | 20.00 | 0.0612 |  |",
    ]


# ------------------------------------------------------------------------------------------------- cross-identity


@pytest.fixture(scope="module")
def crossed():
    """Two pairs of each of the frozen sets."""
    return {name: cross_clips(name, 64, count=2) for name in module.CROSS}


def test_the_cross_identity_set_is_frozen(crossed):
    for name, clips in crossed.items():
        assert all(clip.driving.shape == clip.truth.frames.shape == (11, 3, 64, 64) for clip in clips)
        means = [float(frames.mean()) for clip in clips for frames in (clip.driving, clip.truth.frames)]
        assert means == pytest.approx(CROSS_MEANS[name], abs=2e-4)


CROSS_MEANS = {"cross-aligned": [0.2918, 0.5437, 0.5183, 0.3588], "cross-plain": [0.2918, 0.5423, 0.5183, 0.3759]}


def test_in_the_aligned_set_both_people_begin_alike_and_in_the_plain_one_they_do_not(crossed):
    aligned, plain = crossed["cross-aligned"], crossed["cross-plain"]
    people = synthetic.sample_identities(module.BENCHMARK_CLIPS, module.BENCHMARK_SEED)
    for number in range(2):
        states = synthetic.animate_states(132, module.BENCHMARK_SEED + number)[::12]
        # The film is the one person in all states, the truth the other; the source is in the first state, or isn't.
        assert torch.equal(aligned[number].driving, synthetic.render(synthetic.Faces(people[number], states), 64))
        other = synthetic.landmarks(synthetic.Faces(people[number + 1], states))
        assert torch.allclose(aligned[number].landmarks, other, atol=1e-5)
        assert torch.equal(plain[number].driving, aligned[number].driving)
        assert torch.allclose(plain[number].landmarks[1:], other[1:], atol=1e-5)
        assert (plain[number].landmarks[0] - other[0]).norm(dim=-1).mean() > 0.02


def test_the_background_of_the_truth_stays_where_the_photo_has_it(crossed):
    for clips in crossed.values():
        for clip in clips:
            edge = clip.truth.frames[:, :, :3, :3]
            assert (edge - edge[:1]).abs().max() < 0.02


def test_points_are_carried_to_where_an_affine_map_puts_them():
    matrix, shift = torch.tensor([[0.9, -0.25], [0.2, 1.15]]), torch.tensor([0.07, -0.04])
    grid = identity_grid(24, 32)
    flow = (torch.einsum("ij, jhw -> ihw", matrix, grid) + shift[:, None, None] - grid)[None]
    z = 1.4 * (torch.rand(1, 50, 2, generator=torch.Generator().manual_seed(0)) - 0.5)
    points = z @ matrix.T + shift  # the flow fetches z from here
    assert torch.allclose(invert_flow_at(flow, points), z, atol=1e-4)
    assert torch.equal(invert_flow_at(0 * flow, points[:, :0]), points[:, :0])


def test_true_flows_carry_true_landmarks(obeying, crossed):
    for name in module.CROSS:
        rows = evaluate_transfer(obeying, crossed[name]).rows
        assert rows["oracle"]["landmarks (px)"] < 0.1 * rows["copy"]["landmarks (px)"]
        # Not zero: where the flow folds, several places of the frame come from one of the source.
        assert rows["oracle"]["shape (px)"] < 0.7 * rows["copy"]["shape (px)"]


class Obeying(AnimationModel):
    """A model whose points are landmarks, and whose flow is a smooth spline that takes the motion's points to the
    source's: transfer is then all that can go wrong."""

    def __init__(self, clips):
        nn.Module.__init__(self)
        self.nothing = nn.Parameter(torch.zeros(1))
        self.known = clips

    def points_of(self, image):
        for clip, landmarks in self.known:
            for frame, points in zip(clip, landmarks):
                if torch.equal(frame, image):
                    return points
        raise AssertionError("a picture that isn't in the set")

    def encode_driving(self, image, *, move_background=False):
        return Motion(torch.stack([self.points_of(picture) for picture in image]))

    def encode_source(self, image):
        return SimpleNamespace(image=image, motion=self.encode_driving(image))

    def render(self, source, motion):
        points = source.motion.points.expand_as(motion.points), motion.points
        flow = tps.part_flows(*(p[:, None] for p in points), (64, 64), regularisation=0.5)[:, 0]
        return SimpleNamespace(image=warp(source.image.expand(len(flow), -1, -1, -1), flow), flows=[flow])


@pytest.fixture(scope="module")
def obeying(crossed):
    known = []
    people = synthetic.sample_identities(module.BENCHMARK_CLIPS, module.BENCHMARK_SEED)
    for clips in crossed.values():
        for number, clip in enumerate(clips):
            states = synthetic.animate_states(132, module.BENCHMARK_SEED + number)[::12]
            known.append((clip.driving, synthetic.landmarks(synthetic.Faces(people[number], states))))
            known.append((clip.truth.frames, clip.landmarks))
    return Obeying(known)


def test_with_true_points_relative_is_better_than_standard_where_poses_match(obeying, crossed):
    rows = evaluate_transfer(obeying, crossed["cross-aligned"]).rows
    assert list(rows) == ["copy", "standard", "relative", "relative, from the first frame", "same person", "oracle"]
    for measure in ("landmarks (px)", "shape (px)"):
        assert rows["relative, from the first frame"][measure] < 0.8 * rows["standard"][measure]
        assert rows["oracle"][measure] < rows["same person"][measure] < rows["standard"][measure]
    # True points find the true start: the frame in the source's own pose.
    assert rows["relative"] == rows["relative, from the first frame"]
    assert rows["oracle"]["flow, face (px)"] == 0


def test_copying_misses_by_what_moves(obeying, crossed):
    for clips in crossed.values():
        row = evaluate_transfer(obeying, clips[:1]).rows["copy"]
        clip, expected = clips[0], []
        for flow, landmarks in zip(clip.truth.truth.flow, clip.landmarks[1:]):
            shown = (invert_flow_at(flow[None], clip.landmarks[:1])[0] - landmarks).norm(dim=-1) < 1 / 32
            assert 0.5 < shown.float().mean() <= 1
            expected.append((clip.landmarks[0] - landmarks)[shown].norm(dim=-1).mean() * 32)
        assert row["landmarks (px)"] == pytest.approx(float(sum(expected) / 10), rel=1e-3)
        difference = (clip.truth.frames[:1] - clip.truth.frames[1:]).abs().mean()
        assert row["L1"] == pytest.approx(float(difference), rel=1e-4)


def test_a_network_adds_its_line(obeying, crossed):
    network = AvdNetwork(74, with_affine=False).eval()
    obeying.train()
    rows = evaluate_transfer(obeying, crossed["cross-plain"][:1], network).rows
    assert obeying.training
    clip = crossed["cross-plain"][0]
    with torch.no_grad():
        source, film = obeying.encode_source(clip.truth.frames[:1]), obeying.encode_driving(clip.driving[1:])
        output = obeying.render(source, transfer.avd(source.motion, film, network))
    assert rows["avd"]["L1"] == pytest.approx(float(metrics.l1(output.image, clip.truth.frames[1:]).mean()), rel=1e-4)


@torch.no_grad()
def test_judges_compare_the_transfer_with_the_film_and_with_the_truth(obeying, crossed, assessors):
    clips = crossed["cross-plain"]
    rows = evaluate_transfer(obeying, clips, assessors=assessors).rows
    names = {"ARD (ours, degrees)", "AUH (ours)", "AED (ours)", "FID (ours)"}
    assert all(names <= row.keys() for row in rows.values())
    assert not any(names & row.keys() for row in evaluate_transfer(obeying, clips[:1]).rows.values())
    # The line that copies, by hand.
    expected = {name: [] for name in names}
    for clip in clips:
        source, film, truth = (assessors(x) for x in (clip.truth.frames[:1], clip.driving[1:], clip.truth.frames[1:]))
        expected["ARD (ours, degrees)"].append((source.rotation - film.rotation).abs().mean())
        expected["AUH (ours)"].append((source.units != film.units).float().mean())
        expected["AED (ours)"].append((source.embedding - truth.embedding).norm(dim=1).mean())
        expected["FID (ours)"].append((source.features.expand(10, -1), truth.features))
    distance = metrics.fid(*(torch.cat(part) for part in zip(*expected.pop("FID (ours)"))))
    assert rows["copy"]["FID (ours)"] == pytest.approx(float(distance), rel=1e-3)
    for name, values in expected.items():
        assert rows["copy"][name] == pytest.approx(float(sum(values) / 2), rel=1e-3)


@torch.no_grad()
def test_a_published_network_adds_its_fid(obeying, crossed):
    clips = crossed["cross-plain"]
    rows = evaluate_transfer(obeying, clips, inception=lambda images: images.mean((2, 3))).rows
    copied = torch.cat([clip.truth.frames[:1].mean((2, 3)).expand(10, -1) for clip in clips])
    wanted = torch.cat([clip.truth.frames[1:].mean((2, 3)) for clip in clips])
    assert rows["copy"]["FID (Inception)"] == pytest.approx(float(metrics.fid(copied, wanted)), rel=1e-3) != 0
    assert all(row["FID (Inception)"] >= 0 and "FID (ours)" not in row for row in rows.values())


@pytest.mark.parametrize("with_network", [False, True])
def test_the_command_measures_transfer(tmp_path, capsys, monkeypatch, crossed, with_network):
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny").eval()
    model.save(tmp_path / "model.safetensors")
    if with_network:
        AvdNetwork(10, with_affine=True).save(tmp_path / "avd-model.safetensors", model=model)
    monkeypatch.setattr("minimodel.commands.evaluate.cross_clips", lambda name, size: crossed[name][:1])
    scores = run_evaluation(EvaluateConfig(str(tmp_path / "model.safetensors"), ("cross-aligned",)))["cross-aligned"]
    printed = capsys.readouterr().out
    assert "on cross-aligned: 1 clips, 10 frames of 64 x 64" in printed and scores.table() in printed
    assert ("avd" in scores.rows) == with_network == ("| avd |" in printed)


# --------------------------------------------------------------------------------------------------- clips and the rest


def test_the_part_to_evaluate_on_is_found(tmp_path):
    film(tmp_path / "a" / "train" / "one.mp4")
    film(tmp_path / "a" / "val" / "two.mp4", count=5)
    film(tmp_path / "b" / "train" / "one.mp4")
    film(tmp_path / "b" / "test" / "three.mp4", count=6)
    film(tmp_path / "c" / "four.gif", count=3)
    for folder, name, count in (("a", "two", 5), ("b", "three", 6), ("c", "four", 3)):
        (clip,) = load_evaluation(str(tmp_path / folder), 16)
        assert clip.name == name and clip.frames.shape == (count, 3, 16, 16) and clip.truth is None
        levels = clip.frames.mean((1, 2, 3)).tolist()
        assert all(a < b for a, b in pairwise(levels)) and levels[0] == pytest.approx(0.5, abs=0.02)


def test_only_the_first_clips_may_be_asked_for(tmp_path):
    for name in ("one", "three", "two"):
        film(tmp_path / f"{name}.mp4")
    assert [clip.name for clip in load_evaluation(str(tmp_path), 16, most=2)] == ["one", "three"]


def test_a_clip_of_one_frame_has_nothing_to_measure(tmp_path):
    film(tmp_path / "long.mp4")
    film(tmp_path / "short.mp4", count=1)
    with pytest.warns(UserWarning, match=r"short\.mp4: one frame only"):
        assert [clip.name for clip in load_evaluation(str(tmp_path), 16)] == ["long"]


def test_the_command_prints_a_table_and_writes_the_numbers(tmp_path, capsys):
    torch.manual_seed(0)
    AnimationModel.from_preset("tiny").save(tmp_path / "model.safetensors")
    folder = str(tmp_path / "clips")
    film(tmp_path / "clips" / "a.mp4"), film(tmp_path / "clips" / "b.mp4", count=3)
    scores = run_evaluation(
        EvaluateConfig(str(tmp_path / "model.safetensors"), (folder,), 32, tmp_path / "scores.json")
    )
    printed = capsys.readouterr().out
    assert "2 clips, 5 frames of 32 x 32" in printed and scores[folder].table() in printed
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["size"] == 32 and written["scores"] == {folder: scores[folder].rows}
    assert scores[folder].rows.keys() == {"model", "copy"}
    # On grey films no landmarks are found, so there is no distance between them.
    assert "AED (ours)" in scores[folder].rows["copy"] and "AKD (ours, px)" not in scores[folder].rows["copy"]


def test_a_strip_shows_some_clips(clips):
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny").train()
    picture = strip(model, clips, rows=3)
    assert picture.shape == (3, 6 * 66, 3 * 66) and model.training
    # Rows: source, driving frame, result, warped source, flow, occlusion; a column for each clip.
    for column, clip in enumerate(clips[::6][:3]):
        left = slice(66 * column, 66 * column + 64)
        assert torch.equal(picture[:, :64, left], clip.frames[0])
        assert torch.equal(picture[:, 66:130, left], clip.frames[16])
    assert strip(model, clips[:2]).shape == (3, 6 * 66, 2 * 66)


def test_a_model_that_moves_by_landmarks_is_given_the_clips(features):
    faces = synthetic.Faces(synthetic.sample_identities(1, 0), synthetic.sample_states(4, 0))
    clip = synthetic_clip("a", faces, 64)
    assert torch.allclose(clip.landmarks, synthetic.landmarks(faces))
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny", system="s2d").eval()
    seen = []
    move = model.move
    model.move = lambda source, motion, **options: (
        seen.append((source.motion.points, motion.points)) or move(source, motion, **options)
    )
    scores = evaluate(model, [clip], features, batch=2)
    assert all(torch.equal(source, clip.landmarks[:1]) for source, _ in seen)
    assert torch.equal(torch.cat([driving for _, driving in seen]), clip.landmarks[1:])
    assert scores.rows["model"].keys() == scores.rows["copy"].keys() | {"occlusion"}
    seen.clear()
    strip(model, [clip], rows=1)
    assert torch.equal(seen[0][0], clip.landmarks[:1]) and torch.equal(seen[0][1], clip.landmarks[2:3])
    seen.clear()  # a film has none, and then a detector has to find them
    evaluate(model, [EvaluationClip("film", clip.frames)], features)
    found = LandmarkDetector.load().find(clip.frames[1:])
    assert torch.allclose(torch.cat([driving for _, driving in seen]), found, atol=1e-5)


def test_a_detector_can_be_asked_for_the_landmarks_of_embedded_faces(tmp_path, monkeypatch):
    faces = synthetic.Faces(synthetic.sample_identities(1, 0), synthetic.sample_states(4, 0))
    clip = synthetic_clip("a", faces, 64)
    monkeypatch.setattr("minimodel.commands.evaluate.load_evaluation", lambda name, size, **_: [clip])
    torch.manual_seed(0)
    AnimationModel.from_preset("tiny", system="s2d").save(tmp_path / "model.safetensors")
    seen = []
    move = AnimationModel.move
    monkeypatch.setattr(
        AnimationModel, "move", lambda *args, **options: seen.append(args[2].points) or move(*args, **options)
    )
    for find in (False, True):
        run_evaluation(EvaluateConfig(str(tmp_path / "model.safetensors"), find_landmarks=find))
    with torch.inference_mode():
        found = LandmarkDetector.load().find(clip.frames[1:])
    assert torch.equal(seen[0], clip.landmarks[1:]) and torch.allclose(seen[1], found, atol=1e-5)
    assert (seen[0] - seen[1]).abs().max() > 0.01


def test_networks_that_are_asked_for_are_measured(tmp_path, monkeypatch):
    class Colours(nn.Module):
        def forward(self, image):
            return [1 + image]

    class Means(nn.Module):
        def forward(self, image):
            return image.mean((2, 3))

    pairs = cross_clips("cross-aligned", 64, count=1)
    monkeypatch.setattr("minimodel.commands.evaluate.load_lpips", lambda name: (name, Colours(), [torch.ones(3)]))
    monkeypatch.setattr("minimodel.commands.evaluate.load_inception", lambda name: Means())
    monkeypatch.setattr("minimodel.commands.evaluate.cross_clips", lambda name, size: pairs)
    monkeypatch.setattr(
        "minimodel.commands.evaluate.load_evaluation",
        lambda name, size, **_: [EvaluationClip("film", pairs[0].driving[:3])],
    )
    torch.manual_seed(0)
    AnimationModel.from_preset("tiny").save(tmp_path / "m.safetensors")
    asked = dict(lpips="vgg", inception="inception", output=tmp_path / "scores.json")
    scores = run_evaluation(EvaluateConfig(str(tmp_path / "m.safetensors"), ("film", "cross-aligned"), **asked))
    assert scores["film"].rows["copy"]["LPIPS (vgg)"] > 0 and scores["film"].rows["model"]["LPIPS (vgg)"] > 0
    assert scores["cross-aligned"].rows["copy"]["FID (Inception)"] > 0
    assert json.loads(asked["output"].read_text())["scores"] == {name: s.rows for name, s in scores.items()}


SAMPLES = Path(__file__).parents[1] / "data_samples"
# PSNR of each model on one film at its own size, less a decibel; copying has 18.4 at 64 pixels.
LEAST = {
    "tiny": 27.2,
    "tiny-unsupervised": 27.2,
    "tiny-affine": 27.5,
    "tiny-tps": 28.2,
    "portrait": 26.8,
    "tiny-s2d": 26.5,
}


@pytest.mark.parametrize("name", LEAST)
def test_shipped_models_rebuild_a_film_as_well_as_they_did(name):
    model = AnimationModel.load(name)
    film = [frame for _, frame in Clip(SAMPLES / "ada.mp4").decode()]
    frames = torch.stack([center_crop_resize(frame[None] / 255, model.image_size)[0] for frame in film[::15]])
    rows = evaluate(model, [EvaluationClip("ada", frames)], load_features()).rows
    assert rows["model"]["PSNR"] > LEAST[name] and rows["copy"]["PSNR"] < 20
