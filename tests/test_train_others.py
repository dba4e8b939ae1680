"""The networks beside the model learn from pictures and answers that belong together, and are saved whole."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from minimodel.data import synthetic
from minimodel.data.pairs import step_generator
from minimodel.evaluation.assessors import EXPRESSION, ROTATION, UNITS, FaceReader, resized
from minimodel.features import FaceFeatures
from minimodel.keypoints import gaussian_heatmaps
from minimodel.landmarks import EYE, MIRRORED, LandmarkDetector, eye_places
from minimodel.model import AnimationModel
from minimodel.training import assessors, landmarks
from minimodel.training.assessors import (
    PeopleMemory,
    TrainAssessorsConfig,
    assessor_scores,
    identity_loss,
    reader_targets,
    train_assessors,
    two_pictures,
)
from minimodel.training.avd import TrainAvdConfig, motion_pairs, train_avd
from minimodel.training.features import TrainFeaturesConfig, train_features
from minimodel.training.landmarks import (
    FaceMemory,
    Neighbours,
    TrainLandmarksConfig,
    close_up_loss,
    landmark_scores,
    train_landmarks,
)
from minimodel.training.small import training_steps
from minimodel.transfer import AvdNetwork, avd, deformed
from tests.test_train import SIZES, face_clips


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return face_clips(tmp_path_factory.mktemp("faces") / "clips")


# ---------------------------------------------------------------------------------------------------- what all share


@pytest.mark.parametrize("by", ["steps", "minutes"])
def test_a_run_ends_in_time_and_its_rate_falls_as_half_a_cosine(monkeypatch, capsys, by):
    ticks = iter(range(100))  # the clock is looked at once at first and once a step, and each time six seconds are gone
    monkeypatch.setattr("minimodel.training.small.time", SimpleNamespace(perf_counter=lambda: 6.0 * next(ticks)))
    optimizer = torch.optim.SGD([{"params": nn.Parameter(torch.zeros(1))} for _ in range(2)], lr=9.0)
    length = dict(steps=8, minutes=0.001) if by == "steps" else dict(minutes=0.8)  # steps count where both are given
    seen = []
    for step, bar in training_steps(optimizer, 0.5, **length):
        seen.append((step, *(group["lr"] for group in optimizer.param_groups)))
        bar.set_postfix_str(f"in step {step}")
    done = [number / 8 for number in (range(8) if by == "steps" else range(1, 8))]
    rates = [0.25 + 0.25 * math.cos(math.pi * progress) for progress in done]
    assert seen == [(step, pytest.approx(rate), pytest.approx(rate)) for step, rate in enumerate(rates)]
    last = capsys.readouterr().err.split("\r")[-1]
    assert f"in step {len(done) - 1}" in last and ("8/8" if by == "steps" else "7 steps") in last


# ------------------------------------------------------------------------------------------------------------- features


def test_features_learn_and_can_be_loaded(tmp_path):
    scores = train_features(TrainFeaturesConfig(tmp_path / "features.safetensors", minutes=0.01, batch=2, size=32))
    features = FaceFeatures()
    features.load_state_dict(load_file(tmp_path / "features.safetensors"))
    assert 0 < scores["parsing accuracy"] < 1 and scores["landmark error (px)"] > 0
    # Each layer is divided by its mean size over faces, so that all count alike.
    with torch.no_grad():
        taken = features(synthetic.render(synthetic.Faces.sample(8, 0), 32))
    assert all(0.5 < float(layer.abs().mean()) < 2 for layer in taken[1:])


# ------------------------------------------------------------------------------------------------------------------ avd


def small_model(path, **options):
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny", **SIZES | options)
    model.save(path)
    return model.eval()


@pytest.mark.parametrize("system", ["mrfa", "npmr"])  # points with matrices and without
def test_avd_learns_to_undo_deformations(tmp_path, clips, system):
    model = small_model(tmp_path / "model.safetensors", system=system)
    options = dict(pairs=32, steps=300, batch=32, device="cpu")
    config = TrainAvdConfig(str(tmp_path / "model.safetensors"), (str(clips),), **options)
    network = train_avd(config)
    source, wanted = motion_pairs(model, config, torch.device("cpu"))
    assert len(source.points) == 32 and (source.affine is None) == (system == "npmr")
    strange = deformed(wanted, torch.Generator().manual_seed(9))
    with torch.no_grad():
        error = (avd(source, strange, network).points - wanted.points).abs().mean()
    assert error < 0.5 * (strange.points - wanted.points).abs().mean()
    # What was saved is what was trained, and the same command makes the same bits.
    loaded = AvdNetwork.load(tmp_path / "model.safetensors", model)
    again = train_avd(config)
    for one, other, third in zip(*(n.state_dict().values() for n in (network, loaded, again))):
        assert torch.equal(one, other) and torch.equal(one, third)


# ------------------------------------------------------------------------------------------------------------ landmarks


def test_the_landmark_detector_learns_and_goes_on_with_films(tmp_path, clips, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("minimodel.training.landmarks.landmark_scores", partial(landmark_scores, count=8))
    fresh = landmarks.landmark_scores(LandmarkDetector().eval())
    path, tuned = tmp_path / "new" / "a.safetensors", tmp_path / "b.safetensors"
    scores = train_landmarks(TrainLandmarksConfig(path, steps=20, batch=8))
    assert 0 < scores["all (px)"] < 0.8 * fresh["all (px)"] and scores["pupils (px)"] > 0
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]
    train_landmarks(TrainLandmarksConfig(tuned, video=(str(clips),), start=str(path), steps=3, batch=4))
    one, other = load_file(path), load_file(tuned)
    assert one.keys() == other.keys()
    for part in ("face.", "eye."):
        names = [name for name in one if name.startswith(part) and name.endswith("weight")]
        moved = [float((one[name] - other[name]).abs().max()) for name in names]
        assert min(moved) > 0 and max(moved) < 0.1  # it went on from there


def test_the_close_ups_loss_wants_each_landmark_where_its_close_up_shows_it():
    faces = synthetic.Faces.sample(3, 6)
    points = synthetic.landmarks(faces)
    places = eye_places(points + 0.02)

    def perfect(points):
        rows = []
        for eye in range(2):
            names = [MIRRORED[k] if eye else k for k in EYE]
            for n in range(3):
                place = places[3 * eye + n]
                rows.append(torch.stack([torch.linalg.inv(place[:, :2]) @ (points[n, k] - place[:, 2]) for k in names]))
        return gaussian_heatmaps(torch.stack(rows), (16, 16), (2 / 16) ** 2).clamp_min(1e-12).log()

    least = close_up_loss(perfect(points), places, points)
    assert least < close_up_loss(perfect(points + 0.01), places, points) - 0.1
    swapped = perfect(points).unflatten(0, (2, 3)).flip(0).flatten(0, 1)  # the eyes' answers, exchanged
    assert least < close_up_loss(swapped, places, points) - 0.1


def test_kept_faces_have_their_landmarks_and_the_oldest_go():
    memory = FaceMemory(capacity=6)
    memory.draw(4, torch.Generator().manual_seed(0))
    kept = memory.images[:4].clone()
    memory.draw(3, torch.Generator().manual_seed(1))
    assert (memory.images[1:4] == kept[1:4]).all() and not (memory.images[0] == kept[0]).all()
    faces = synthetic.Faces.sample(3, 1)
    order = [4, 5, 0]
    assert torch.equal(memory.points[order], synthetic.landmarks(faces))
    # At one ray a pixel the pictures are rougher than at four, but of the same people.
    assert (memory.images[order] / 255 - synthetic.render(faces, 128)).abs().mean() < 0.03
    (images, points), (again, _) = (memory(5, torch.Generator().manual_seed(2)) for _ in range(2))
    assert images.shape == (5, 3, 128, 128) and points.shape == (5, 74, 2) and torch.equal(images, again)


def test_neighbours_are_neighbouring_frames_in_both_orders(tmp_path):
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        for frame in range(5):
            level = np.full((16, 16, 3), 100 * number + 20 * frame, dtype=np.uint8)
            iio.imwrite(tmp_path / str(number) / f"{frame}.png", level)
    start, end = Neighbours((str(tmp_path),))(40, torch.Generator().manual_seed(0))
    levels = [(frames.mean((1, 2, 3)) * 255).round() for frames in (start, end)]
    assert set((levels[1] - levels[0]).tolist()) == {20, -20}
    assert set(levels[0].tolist()) == {100 * number + 20 * frame for number in range(2) for frame in range(5)}


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(steps=0), "--steps is 0: expected more than 0"),
        (dict(minutes=0.0), "--minutes is 0.0: expected more than 0"),
        (dict(batch=2), "--batch is 2: expected at least 4"),
        (dict(start="missing"), "weights 'missing': no such file"),
        (dict(video=("missing",), start="SELF"), "missing: no such film or folder"),
    ],
)
def test_wrong_settings_of_landmarks_are_named_before_anything_is_written(tmp_path, options, message):
    if options.get("start") == "SELF":
        LandmarkDetector().save(tmp_path / "start.safetensors")
        options = options | dict(start=str(tmp_path / "start.safetensors"))
    before = set(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        train_landmarks(TrainLandmarksConfig(tmp_path / "out.safetensors", **options))
    with pytest.raises(ValueError, match="is a directory"):
        train_landmarks(TrainLandmarksConfig(tmp_path))
    assert set(tmp_path.iterdir()) == before


# --------------------------------------------------------------------------------------------------------------- judges


def test_two_pictures_share_the_person_and_nothing_else(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        synthetic, "render", lambda faces, size, supersample: drawn.append(faces) or torch.zeros(4, 3, 64, 64)
    )
    images, told = two_pictures(4, torch.Generator().manual_seed(0))
    one, other = drawn
    assert images.shape == (4, 2, 3, 64, 64)
    for name in ("skin", "width", "hair", "eye_spacing", "glasses", "phase"):
        assert torch.equal(getattr(one.identity, name), getattr(other.identity, name))
    for name in ("backdrop", "center", "collar"):
        assert not (getattr(one.identity, name) == getattr(other.identity, name)).reshape(4, -1).all(1).any()
    assert not (one.state.yaw == other.state.yaw).any() and not (one.state.light == other.state.light).all(1).any()
    assert torch.equal(told, torch.stack([reader_targets(one.state), reader_targets(other.state)], dim=1))


def test_landmarks_are_those_that_the_detector_finds():
    images, detector = synthetic.render(synthetic.Faces.sample(33, 5), 64), LandmarkDetector.load()
    found = assessors.found_landmarks(detector, images)
    with torch.no_grad():
        alone = detector(resized(images[31:], 128))[0]
    assert found.shape == (33, 74, 2) and torch.allclose(found[31:], alone, atol=1e-4)


def test_targets_are_degrees_and_means_of_both_sides():
    state = synthetic.neutral_states(1)
    pair = torch.tensor([[0.2, 0.6]])
    state = replace(
        state, yaw=torch.tensor([math.pi / 6]), roll=torch.tensor([-0.1]), brows=pair, lids=pair, smile=pair[:, 1]
    )
    told = dict(zip(ROTATION + EXPRESSION, reader_targets(state)[0].tolist(), strict=True))
    expected = dict(yaw=30, pitch=0, roll=-18 / math.pi, jaw=0, part=0, smile=0.6, wide=0, brows=0.4, frown=0, lids=0.4)
    assert told == pytest.approx(expected)


def test_the_identity_loss_is_a_cross_entropy_both_ways():
    one, other = nn.functional.normalize(torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)), dim=-1)
    total = 0.0
    for n in range(5):
        there = [math.exp(10 * float(one[n] @ other[k])) for k in range(5)]
        back = [math.exp(10 * float(one[k] @ other[n])) for k in range(5)]
        total -= math.log(there[n] / sum(there)) + math.log(back[n] / sum(back))
    assert float(identity_loss(one, other)) == pytest.approx(total / 10, rel=1e-4)


def test_the_memory_keeps_what_belongs_together(monkeypatch):
    """Pictures whose colour tells the person, and targets that do as well."""
    memory, drawn = PeopleMemory(LandmarkDetector(), capacity=6), []

    def stand_in(count, generator, *, supersample):
        numbers = torch.arange(count) + 4.0 * len(drawn)
        drawn.append(numbers)
        both = torch.stack([numbers, numbers + 0.5], dim=1)
        return (both / 20)[:, :, None, None, None].expand(-1, -1, 3, 64, 64), both[:, :, None].expand(-1, -1, 10)

    monkeypatch.setattr("minimodel.training.assessors.two_pictures", stand_in)
    monkeypatch.setattr("minimodel.training.assessors.colour_noise", lambda image, generator: image)
    monkeypatch.setattr(
        "minimodel.training.assessors.found_landmarks", lambda _, x: 20 * x[:, 0, :1, :2].expand(-1, 74, -1)
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        memory.draw(4, generator)
    images, points, told = memory(6, generator)
    assert images.shape == (12, 3, 64, 64)
    noise = points - told[:, :1, None]
    assert noise.std() == pytest.approx(0.005, rel=0.1) and noise.mean().abs() < 0.001
    assert torch.allclose(images.mean((1, 2, 3)) * 20, told[:, 0], atol=0.1)
    assert torch.equal(told[:6] + 0.5, told[6:])  # the same people in the same order
    assert sorted(told[:6, 0].tolist()) == [2, 3, 4, 5, 6, 7]  # the first two had to go


class Oracle(nn.Module):
    """Knows the truth about the pictures that it is asked about, in their order."""

    def __init__(self, count, blind=False):
        super().__init__()
        self.told = two_pictures(count, step_generator(0, 0))[1].flatten(0, 1)
        self.at, self.blind = 0, blind

    def forward(self, image, points):
        part = slice(self.at, self.at + len(image))
        self.at += len(image)
        person = torch.arange(len(self.told))[part] // 2
        embedding = torch.eye(len(self.told))[person * (not self.blind)]
        told = self.told.mean(0).expand(len(image), -1) if self.blind else self.told[part]
        return embedding, *told.split([3, 7], dim=1)


def test_scores_of_who_knows_all_and_of_who_knows_nothing(monkeypatch):
    monkeypatch.setattr(synthetic, "render", lambda faces, size, supersample: torch.zeros(len(faces), 3, 64, 64))
    scores = assessor_scores(Oracle(20), count=20)
    assert scores["same person"] == 1
    assert all(scores[f"{name} (degrees)"] == 0 for name in ROTATION)
    assert all(scores[f"{name} (R²)"] == 1 for name in EXPRESSION) and all(scores[name] == 1 for name in UNITS)
    blind = assessor_scores(Oracle(20, blind=True), count=20)
    assert blind["same person"] == 0.5 and blind["yaw (degrees)"] > 5
    assert all(abs(blind[f"{name} (R²)"]) < 1e-5 for name in EXPRESSION)


def test_judges_learn_and_can_be_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("minimodel.training.assessors.assessor_scores", lambda reader: assessor_scores(reader, count=4))
    scores = train_assessors(TrainAssessorsConfig(tmp_path / "new" / "assessors.safetensors", steps=2, batch=3))
    assert str(round(scores["yaw (degrees)"], 3)) in capsys.readouterr().out
    reader = FaceReader.load(tmp_path / "new" / "assessors.safetensors")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["assessors.safetensors"]
    # The same steps give the same weights, and the output is in the units of the states.
    train_assessors(TrainAssessorsConfig(tmp_path / "again.safetensors", steps=2, batch=3))
    again = FaceReader.load(tmp_path / "again.safetensors").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in reader.state_dict().items())
    assert reader.std[0] > 5 and reader.std[3] < 1 and reader.mean[-1] == pytest.approx(0.92, abs=0.02)


def test_the_shipped_judges_fit_the_shipped_detector():
    """They learnt from the landmarks that it finds, and a better one is another one to them."""
    scores = assessor_scores(FaceReader.load(), count=24)
    assert min(scores["lids (R²)"], scores["jaw (R²)"]) > 0.8 and scores["same person"] > 0.9
    assert scores["smile (R²)"] > 0.3 and max(scores[f"{name} (degrees)"] for name in ROTATION) < 3.5
