"""Judges: what they say of faces whose truth is known."""

import math

import pytest
import torch

from minimodel.data import synthetic
from minimodel.evaluation import metrics
from minimodel.evaluation.assessors import (
    EXPRESSION,
    UNITS,
    FaceReader,
    ReaderConfig,
    active_units,
    aligned,
    load_assessors,
    resized,
)
from minimodel.model import AnimationModel
from minimodel.training.assessors import two_pictures

SMALL = ReaderConfig(widths=(8, 8, 16), narrow=4, embedding=8, hidden=16)


@pytest.fixture(scope="module")
def assessors():
    return load_assessors()


@pytest.fixture(scope="module")
def people():
    """Two pictures of each of sixteen people, and the truth about them."""
    return two_pictures(16, torch.Generator().manual_seed(5))


# ---------------------------------------------------------------------------------------------------- the networks


def test_pictures_are_resized_without_aliasing_and_stay_in_place():
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert resized(image, 64) is image
    stripes = torch.arange(128.0).remainder(2).expand(1, 3, 128, 128)
    assert (resized(stripes, 64)[..., 1:-1] - 0.5).abs().max() < 1e-5
    ramp = ((2 * torch.arange(96.0) + 1) / 96 - 1).expand(1, 3, 96, 96)  # its colour is its position
    small = ((2 * torch.arange(64.0) + 1) / 64 - 1).expand(1, 3, 64, 64)
    assert (resized(ramp, 64) - small)[..., 1:-1].abs().max() < 1e-3


def test_units_are_active_beyond_their_thresholds():
    neutral = dict(jaw=0.0, part=0.0, smile=0.0, wide=0.0, brows=0.0, frown=0.0, lids=1.0)
    assert tuple(neutral) == EXPRESSION
    cases = [
        (dict(), set()),
        (dict(jaw=0.26, part=0.24), {"jaw dropped (26)"}),
        (dict(part=0.26, smile=0.39), {"lips parted (25)"}),
        (dict(smile=0.41, wide=0.31), {"lips' corners up (12)", "lips stretched (20)"}),
        (dict(smile=-0.21, wide=-0.31), {"lips' corners down (15)", "lips rounded (18)"}),
        (dict(brows=0.31, frown=0.29, lids=0.51), {"brows raised (1 + 2)"}),
        (dict(brows=-0.9, frown=0.31, lids=0.49), {"brows lowered (4)", "eyes shut (43)"}),
    ]
    active = active_units(torch.tensor([list((neutral | changes).values()) for changes, _ in cases]))
    for row, (_, expected) in zip(active, cases):
        assert {name for name, on in zip(UNITS, row) if on} == expected


def test_aligned_landmarks_know_neither_place_nor_size_but_turns():
    points = torch.randn(2, 74, 2, generator=torch.Generator().manual_seed(0))
    expected = []
    for face in points.tolist():
        x, y = (sum(point[axis] for point in face) / 74 for axis in range(2))
        size = math.sqrt(sum((a - x) ** 2 + (b - y) ** 2 for a, b in face) / 74)
        expected.append([value for a, b in face for value in ((a - x) / size, (b - y) / size)])
    assert torch.allclose(aligned(points), torch.tensor(expected), atol=1e-5)
    assert torch.allclose(aligned(3 * points + torch.tensor([0.5, -2.0])), aligned(points), atol=1e-5)
    assert not torch.allclose(aligned(points.flip(2)), aligned(points), atol=0.1)


def test_a_reader_says_what_its_layers_say():
    torch.manual_seed(0)
    reader = FaceReader(SMALL).eval()
    reader.mean.copy_(torch.arange(10.0))
    reader.std.copy_(1 + torch.arange(10.0))
    image, points = torch.rand(3, 3, 64, 64), torch.rand(3, 74, 2)
    reader.place_mean.copy_(torch.rand(148))
    reader.place_std.copy_(1 + torch.rand(148))
    with torch.no_grad():
        embedding, rotation, expression = reader(image, points)
        x = reader.trunk(2 * image - 1)
        places = (aligned(points) - reader.place_mean) / reader.place_std
        state = torch.cat([reader.rotation(x), reader.expression(places)], dim=1) * reader.std + reader.mean
    assert x.shape == (3, 16 * 4) and embedding.shape == (3, 8)
    assert torch.allclose(torch.cat([rotation, expression], dim=1), state)
    assert embedding.norm(dim=1).tolist() == pytest.approx([1] * 3, abs=1e-5)
    assert torch.allclose(embedding * reader.identity(x).norm(dim=1, keepdim=True), reader.identity(x), atol=1e-5)


def test_it_is_saved_with_its_sizes_and_nothing_else_is_loaded(tmp_path):
    torch.manual_seed(1)
    reader = FaceReader(SMALL).eval()
    reader.save(tmp_path / "a.safetensors")
    loaded = FaceReader.load(tmp_path / "a.safetensors")
    seen = torch.rand(1, 3, 64, 64), torch.rand(1, 74, 2)
    assert loaded.config == SMALL and not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(loaded(*seen), reader(*seen)))
    AnimationModel.from_preset("tiny", system="fomm").save(tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="holds weights of kind 'animation', expected 'assessors'"):
        FaceReader.load(tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="holds weights of kind 'assessors', expected 'animation'"):
        AnimationModel.load(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"no such file, and shipped are only \['assessors'\]"):
        FaceReader.load("huge")
    with pytest.raises(ValueError, match="shipped are only") as caught:
        AnimationModel.load("huge")
    assert "assessors" not in str(caught.value)  # they are no animation model


# ------------------------------------------------------------------------------------------------ the shipped judges


def test_the_shipped_judges_are_small_and_frozen(assessors):
    size = sum(value.numel() * value.element_size() for value in assessors.reader.state_dict().values())
    assert size < 5e6 and not assessors.training and assessors.source == "ours"
    assert not any(parameter.requires_grad for parameter in assessors.parameters())


def test_they_judge_people_that_they_have_not_seen(assessors, people):
    images, told = people
    one, other = assessors(images[:, 0]), assessors(images[:, 1])
    # A person is nearer to their other picture than to those of others.
    distance = torch.cdist(one.embedding, other.embedding)
    assert (distance.argmin(1) == torch.arange(16)).float().mean() > 0.8
    assert distance.diagonal().mean() < 0.6 * distance.mean()
    # Rotation in degrees.
    truth, said = told.transpose(0, 1).flatten(0, 1), torch.cat([one.rotation, other.rotation])
    assert all(error < 4 for error in (said - truth[:, :3]).abs().mean(0))
    assert (said - truth[:, :3])[:, 0].abs().mean() < 0.4 * truth[:, 0].abs().mean()
    # Jaw and lids are read well, the others not yet.
    units = torch.cat([one.units, other.units]) == active_units(truth[:, 3:])
    assert units[:, [7, 8]].float().mean() > 0.85 and units.float().mean() > 0.75


def test_landmarks_are_found_on_faces_and_not_elsewhere(assessors, people):
    images = people[0][:8, 0]
    verdict = assessors(images)
    nothing = assessors(torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    grey = assessors(torch.full((1, 3, 64, 64), 0.5))
    assert verdict.found.float().mean() > 0.98
    assert metrics.mkr(nothing.found, verdict.found).tolist() == [1] * 8
    assert metrics.mkr(grey.found, verdict.found[:1]).tolist() == [1]
    # A picture that ends at the nose has lost most of the mouth, and has the eyes.
    covered = images.clone()
    covered[..., 38:, :] = 0.5
    lost = verdict.found & ~assessors(covered).found
    assert lost[:, 48:68].float().mean() > 0.5 and lost[:, 36:48].float().mean() < 0.1


def test_a_verdict_does_not_depend_on_the_pictures_size(assessors):
    faces = synthetic.Faces.sample(4, 9)
    small, large = assessors(synthetic.render(faces, 64)), assessors(synthetic.render(faces, 128))
    assert (small.points - large.points).norm(dim=-1).mean() < 0.03
    assert (small.embedding - large.embedding).norm(dim=1).mean() < 0.3
    assert metrics.ard(small.rotation, large.rotation).mean() < 1.5
    assert metrics.fid(small.features, large.features) < metrics.fid(small.features, small.features.roll(1, 1))


def test_blur_costs_fid_more_the_more_there_is(assessors, people):
    images = people[0].flatten(0, 1)
    features, distances = assessors(images).features, []
    for side in (48, 32, 16):
        distances.append(float(metrics.fid(assessors(resized(resized(images, side), 64)).features, features)))
    assert 0 < distances[0] < distances[1] < distances[2]
