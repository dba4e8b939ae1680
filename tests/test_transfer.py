import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.spatial import ConvexHull

from minimodel import affine, transfer
from minimodel.data import synthetic
from minimodel.errors import MinimodelError
from minimodel.model import AnimationModel
from minimodel.motion import Motion
from minimodel.saving import WEIGHTS
from minimodel.transfer import (
    AvdNetwork,
    avd,
    best_start,
    deformed,
    movement_scale,
    relative,
    same_pose,
    shape_distance,
    standard,
)


def motion(count=4, *, points=6, seed=0, with_affine=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(count, points, 2, generator=generator, dtype=dtype) - 0.5
    noise = 0.2 * torch.randn(count, points, 2, 2, generator=generator, dtype=dtype)
    return Motion(place, torch.eye(2, dtype=dtype) + noise if with_affine else None)


def frame(many, number):
    return many[number : number + 1]


def same(one, other, tolerance=1e-12):
    if one.affine is not None or other.affine is not None:
        torch.testing.assert_close(one.affine, other.affine, rtol=0, atol=tolerance)
    torch.testing.assert_close(one.points, other.points, rtol=0, atol=tolerance)


def moved(some, factor, shift):
    """The same person, larger and elsewhere in the picture."""
    affine = None if some.affine is None else factor * some.affine
    return Motion(factor * some.points + torch.tensor(shift, dtype=some.points.dtype), affine)


both = pytest.mark.parametrize("with_affine", [True, False])


# ------------------------------------------------------------------------------------------- what must hold exactly


@both
def test_a_film_that_drives_its_own_frame_is_reproduced(with_affine):
    film = motion(with_affine=with_affine)
    for number in range(4):
        source = frame(film, number)
        same(standard(source, film), film)
        same(relative(source, film, source), film)


@both
def test_at_its_start_the_film_shows_the_source_itself(with_affine):
    film, source = motion(with_affine=with_affine), motion(1, seed=1, with_affine=with_affine)
    at_start = frame(relative(source, film, frame(film, 2)), 2)
    same(at_start, source)
    assert torch.equal(at_start.points, source.points)  # to the bit


@both
def test_where_and_how_large_the_driving_person_is_makes_no_difference(with_affine):
    film, source = motion(with_affine=with_affine), motion(1, seed=1, with_affine=with_affine)
    other = moved(film, 1.7, (0.2, -0.3))
    same(relative(source, other, frame(other, 0)), relative(source, film, frame(film, 0)))
    # Without fitting it to the source, the movement is as large as the person who made it.
    one, larger = (relative(source, some, frame(some, 0), scale=1.0).points - source.points for some in (film, other))
    torch.testing.assert_close(larger, 1.7 * one)


def test_a_larger_source_moves_further():
    film, source = motion(), motion(1, seed=1)
    large = moved(source, 2.0, (0.1, 0.1))
    small_way, large_way = (relative(s, film, frame(film, 0)).points - s.points for s in (source, large))
    torch.testing.assert_close(large_way, 2 * small_way)


def test_parts_turn_as_the_driving_parts_do():
    """What a part flow does to directions, A_S A^-1, is what the film's own parts do from its start: A_start A_D^-1."""
    film, source = motion(), motion(1, seed=1)
    start = frame(film, 1)
    made = relative(source, film, start)
    four = (
        source[torch.zeros(4, dtype=torch.long)],
        start[torch.zeros(4, dtype=torch.long)],
    )
    flows = [affine.part_flows(s.points, m.points, s.affine, m.affine, (8, 8)) for s, m in zip(four, (made, film))]
    slopes = [flow.diff(dim=-1) for flow in flows] + [flow.diff(dim=-2) for flow in flows]
    torch.testing.assert_close(slopes[0], slopes[1])
    torch.testing.assert_close(slopes[2], slopes[3])


def test_relative_equals_a_loop():
    film, source = motion(3), motion(1, seed=1)
    made = relative(source, film, frame(film, 1), scale=0.7)
    for n in range(3):
        for k in range(6):
            point = source.points[0, k] + 0.7 * (film.points[n, k] - film.points[1, k])
            matrix = film.affine[n, k] @ torch.linalg.inv(film.affine[1, k]) @ source.affine[0, k]
            torch.testing.assert_close(made.points[n, k], point)
            torch.testing.assert_close(made.affine[n, k], matrix)


def test_one_source_for_each_frame_works_as_well():
    film, sources = motion(3), motion(3, seed=1)
    made = relative(sources, film, frame(film, 0))
    for n in range(3):
        same(frame(made, n), relative(frame(sources, n), frame(film, n), frame(film, 0)))


def test_a_film_is_transferred_by_the_mode_that_is_asked_for():
    film, source = motion(dtype=torch.float32), motion(1, seed=1, dtype=torch.float32)
    network = AvdNetwork(6, with_affine=True)
    same(transfer.transfer("standard", source, film), film)
    same(transfer.transfer("relative", source, film, start_frame=2), relative(source, film, frame(film, 2)))
    best = transfer.best_start(source, film)
    same(transfer.transfer("relative", source, film), relative(source, film, frame(film, best)))
    same(transfer.transfer("avd", source, film, network=network), avd(source, film, network))
    for mode, options, message in (
        ("avd", {}, "mode avd needs its network"),
        ("standard", dict(start_frame=0), "a start frame is for mode relative"),
        ("relative", dict(start_frame=4), "start frame 4: the driving film has frames 0 to 3"),
    ):
        with pytest.raises(MinimodelError, match=message):
            transfer.transfer(mode, source, film, **options)


# ------------------------------------------------------------------------------------------------- size and start


def shoelace(polygon):
    x, y = polygon.T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def test_size_is_the_root_of_the_area_that_the_points_span():
    turns = torch.arange(7, dtype=torch.float64) * 2 * torch.pi / 7
    ring = torch.stack([0.5 * turns.cos(), 0.2 * turns.sin()], -1)
    inside = 0.1 * (torch.rand(3, 2, dtype=torch.float64) - 0.5)
    source = Motion(torch.cat([inside, ring[torch.randperm(7)]])[None])
    square = Motion(torch.tensor([[[0, 0], [0, 0.5], [0.5, 0], [0.5, 0.5]]], dtype=torch.float64))
    expected = shoelace(ring.numpy()) ** 0.5 / 0.5
    assert movement_scale(source, square).tolist() == pytest.approx([expected])
    same(relative(square, square, square), square)


def test_one_pose_is_told_from_another_by_landmarks_of_different_people():
    people, state = synthetic.sample_identities(8, 6), synthetic.neutral_states(1)
    ahead, turned = (
        Motion(synthetic.landmarks(synthetic.Faces(people, replace(state, yaw=torch.full((1,), yaw)))))
        for yaw in (0.0, 0.6)
    )
    pairs = [(n, k) for n in range(8) for k in range(8) if n != k]
    alike = [same_pose(frame(ahead, n), frame(ahead, k)) for n, k in pairs]
    apart = [same_pose(frame(ahead, n), frame(turned, k)) for n, k in pairs]
    assert all(alike) and not any(apart)


def test_the_best_start_is_the_frame_shaped_like_the_source():
    film = motion(6, points=8)
    source = moved(frame(film, 4), 0.6, (0.2, 0.1))  # elsewhere and smaller
    assert best_start(source, film) == 4
    distances = shape_distance(source, film)
    assert distances[4] < 1e-12 and distances.argsort()[1:].tolist() != [] and (distances[[0, 1, 2, 3, 5]] > 1e-3).all()
    assert torch.allclose(shape_distance(moved(source, 3.0, (0.0, 0.5)), moved(film, 0.5, (0.3, 0.0))), distances)


def test_the_distance_equals_a_loop():
    film, source = motion(3), motion(1, seed=1)

    def normalised(points):
        area = ConvexHull(points.numpy()).volume
        return (points - points.mean(0)) / area**0.5

    for n, distance in enumerate(shape_distance(source, film)):
        gaps = [(a - b).square().sum() for a, b in zip(normalised(film.points[n]), normalised(source.points[0]))]
        assert float(distance) == pytest.approx(float(sum(gaps)) / 6)


@pytest.mark.parametrize("points", [[[0, 0], [1, 1], [2, 2], [3, 3]], [[0, 0], [1, 1]], [[float("nan"), 0]] * 5])
def test_points_without_a_size_are_refused(points):
    flat = Motion(torch.tensor(points, dtype=torch.float64)[None])
    with pytest.raises(ValueError, match="points that span no area"):
        movement_scale(flat, flat)


def test_a_film_is_encoded_as_one_motion_however_it_is_cut():
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny").eval()
    frames = torch.rand(7, 3, 64, 64)
    for batch in (2, 3, 7):
        film = model.encode_film(iter(frames), batch=batch)
        assert len(film) == 7 and film.image is None
        same(film, model.encode_driving(frames), 1e-5)
        assert transfer.best_start(model.encode_driving(frames[5:6]), film) == 5
    with pytest.raises(MinimodelError, match="the driving film has no frames"):
        model.encode_film([])


@pytest.mark.parametrize("prior", ["face", "landmarks"])
def test_a_film_is_encoded_with_landmarks_that_are_known(prior):
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny-quarter", prior=prior).eval()
    frames, landmarks = torch.rand(7, 3, 64, 64), torch.rand(7, 74, 2) - 0.5
    asked = []

    def found():
        for number, one in enumerate(landmarks):
            asked.append(number)
            yield one

    def read():
        for number, frame in enumerate(frames):
            assert len(asked) in (number // 3 * 3, number)  # those of a batch only once its frames are there
            yield frame

    film = model.encode_film(read(), landmarks=found(), batch=3)
    assert torch.equal(film.points[:, -74:], landmarks)
    same(film, model.encode_driving(frames, landmarks=landmarks), 1e-5)
    with pytest.raises(MinimodelError, match="landmarks of the driving film end before its frames"):
        model.encode_film(frames, landmarks=landmarks[:6])


# ------------------------------------------------------------------------------------------------------------ avd


@both
def test_rows_of_numbers_and_back(with_affine):
    film = motion(with_affine=with_affine)
    rows = transfer.flatten(film)
    assert rows.shape == (4, 36 if with_affine else 12)
    same(transfer.unflatten(rows, film), film, 0)


def test_the_network_reads_shape_from_one_and_pose_from_the_other():
    torch.manual_seed(0)
    network = AvdNetwork(6, with_affine=True).double()
    film, source = motion(), motion(1, seed=1)
    seen = {}
    for name in ("shape_encoder", "pose_encoder"):
        getattr(network, name).register_forward_hook(lambda _, x, __, name=name: seen.update({name: x[0]}))
    made = avd(source, film, network)
    assert made.points.shape == (4, 6, 2) and made.affine.shape == (4, 6, 2, 2)
    assert torch.equal(seen["shape_encoder"], transfer.flatten(source).expand(4, -1))
    assert torch.equal(seen["pose_encoder"], transfer.flatten(film))


@pytest.mark.parametrize("network", [dict(points=5, with_affine=True), dict(points=6, with_affine=False)])
def test_a_network_for_other_motion_says_so(network):
    with pytest.raises(ValueError, match=r"motion of 6 points with matrices; this avd network takes"):
        avd(motion(1), motion(), AvdNetwork(**network).double())


def test_motions_of_different_kinds_are_refused():
    with pytest.raises(ValueError, match="6 source points and 5 driving points"):
        relative(motion(1), motion(points=5), motion(1, points=5))
    with pytest.raises(ValueError, match="one motion has affine matrices"):
        relative(motion(1), motion(with_affine=False), motion(1, with_affine=False))


def test_deformed_motion_is_another_persons():
    some = motion(4000, points=3)
    made = deformed(some, torch.Generator().manual_seed(0))
    again = deformed(some, torch.Generator().manual_seed(0))
    same(made, again, 0)
    # As random as it says: fit x' = s x + t to each frame's points, and see how s and t spread.
    change = made.points - some.points
    assert change.mean().abs() < 0.01
    spread = (0.1**2 * some.points.square().mean() + 0.04**2 + 0.02**2).sqrt()  # what the three parts add up to
    assert change.std().item() == pytest.approx(spread.item(), rel=0.1)
    assert torch.equal(deformed(replace(some, affine=None), torch.Generator().manual_seed(0)).points, made.points)


def test_deforming_without_noise_is_what_stretching_the_picture_does(monkeypatch):
    """With the point-wise parts off, p -> s p + t, so its matrix is s A."""
    some = motion(1)
    draws = iter(
        [torch.tensor([[[1.0, -2.0]]]), torch.tensor([[[0.5, 0.5]]]), torch.zeros(1, 6, 2), torch.zeros(1, 6, 2, 2)]
    )
    monkeypatch.setattr(torch, "randn", lambda *shape, generator: next(draws))
    made = deformed(some, torch.Generator())
    stretch = torch.tensor([0.1, -0.2]).double().exp()
    torch.testing.assert_close(made.points, some.points * stretch + 0.02)
    torch.testing.assert_close(made.affine, stretch[:, None] * some.affine)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AnimationModel.from_preset("tiny").eval()


@pytest.fixture
def saved(model, tmp_path):
    model.save(tmp_path / "model.safetensors")
    network = AvdNetwork(10, with_affine=True)
    network.mean.normal_()
    network.save(tmp_path / "avd-model.safetensors", model=model)
    return tmp_path / "model.safetensors", network


def test_a_saved_network_is_found_beside_its_model(model, saved):
    path, network = saved
    loaded = AvdNetwork.load(path, AnimationModel.load(path))
    assert loaded.sizes == network.sizes and not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), loaded.state_dict().values()))
    with safe_open(path.with_name("avd-model.safetensors"), framework="pt") as file:
        metadata = file.metadata()
    assert metadata["kind"] == "avd" and json.loads(metadata["config"])["points"] == 10


def test_a_network_of_other_points_is_refused(saved):
    other = AnimationModel.from_preset("tiny").eval()
    with pytest.raises(
        ValueError, match="trained on the points of other weights; train it again: `minimodel train-avd"
    ):
        AvdNetwork.load(saved[0], other)


@pytest.mark.parametrize("kind", ["missing", "model", "foreign", "cut"])
def test_files_that_are_no_avd_network_are_refused_in_one_line(model, saved, kind):
    path = saved[0].with_name("avd-model.safetensors")
    whole = path.read_bytes()
    path.unlink()
    if kind == "model":
        path.write_bytes(saved[0].read_bytes())
    elif kind == "foreign":
        save_file({"a": torch.zeros(1)}, path)
    elif kind == "cut":
        path.write_bytes(whole[:-50])
    messages = {
        "missing": "avd-model.safetensors, which isn't there: it is made by `minimodel train-avd --weights ",
        "model": "holds weights of kind 'animation', expected 'avd'",
        "foreign": "not weights of minimodel",
        "cut": "not a whole safetensors file",
    }
    with pytest.raises(ValueError, match=messages[kind]) as caught:
        AvdNetwork.load(saved[0], model)
    assert "\n" not in str(caught.value)


def test_an_avd_network_is_no_model(saved):
    with pytest.raises(ValueError, match="holds weights of kind 'avd', expected 'animation'"):
        AnimationModel.load(saved[0].with_name("avd-model.safetensors"))


def test_what_changes_the_points_changes_the_fingerprint_and_nothing_else_does(model):
    other = AnimationModel.from_config(model.config)
    other.load_state_dict(model.state_dict())
    assert transfer.fingerprint(other) == transfer.fingerprint(model)
    with torch.no_grad():
        next(other.generator.parameters()).add_(1)
    assert transfer.fingerprint(other) == transfer.fingerprint(model)
    with torch.no_grad():
        next(other.prior.detector.parameters()).add_(1e-6)
    assert transfer.fingerprint(other) != transfer.fingerprint(model)


def test_the_shipped_network_fits_the_shipped_model():
    """Whoever trains tiny anew has to train its avd network anew: minimodel train-avd --weights tiny."""
    tiny = AnimationModel.load("tiny")
    AvdNetwork.load("tiny", tiny)
    assert (WEIGHTS / "avd-tiny.safetensors").stat().st_size < 2**20
