"""The flow that landmarks say by arithmetic alone, and the prior that mixes it with parts of its own."""

import math

import pytest
import torch

from minimodel import AnimationModel
from minimodel.affine import combine
from minimodel.data import synthetic
from minimodel.errors import MinimodelError
from minimodel.landmark_flow import HALF, REACHES, head_and_face_flows
from minimodel.landmarks import LANDMARKS, LandmarkDetector
from minimodel.losses import equivariance_points, transformed_frame
from minimodel.tps import random_transforms
from minimodel.training.teaching import pixel_weight
from minimodel.warping import identity_grid


def people(count, seed=0):
    return synthetic.sample_pairs(count, torch.Generator().manual_seed(seed))


def some_landmarks(seed=0):
    return torch.rand(2, 3, LANDMARKS, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5


def test_a_head_that_turns_and_grows_as_a_whole_moves_exactly_so_and_its_face_with_it():
    driving = some_landmarks()[0]
    matrix, shift = torch.tensor([[1.2, 0.3], [-0.2, 0.9]]).double(), torch.tensor([0.1, -0.05]).double()
    flows = head_and_face_flows(driving @ matrix.mT + shift, driving, (6, 5))
    grid = identity_grid(6, 5, dtype=torch.float64)
    expected = torch.einsum("ij,jhw->ihw", matrix, grid) + shift[:, None, None] - grid
    for flow in flows:
        assert torch.allclose(flow, expected.expand_as(flow), atol=1e-4)  # what `STEADY` takes


def test_the_face_adds_what_the_head_leaves_level_by_level():
    """Against loops over places, landmarks and levels."""
    source, driving = (landmarks[:1] for landmarks in some_landmarks(1))
    head, face = head_and_face_flows(source, driving, (4, 5))
    design = torch.cat([driving[0], torch.ones(LANDMARKS, 1).double()], dim=1)
    fitted = torch.linalg.lstsq(design, source[0]).solution
    left = source[0] - design @ fitted

    def mean(place, values, reach):
        weights = [math.exp(-float((place - p).square().sum()) / (2 * reach**2)) for p in driving[0]]
        return sum(w * v for w, v in zip(weights, values, strict=True)) / (sum(weights) + HALF)

    grid = identity_grid(4, 5, dtype=torch.float64)
    added = torch.zeros(2, 4, 5, dtype=torch.float64)
    for reach in REACHES:
        for i in range(4):
            for j in range(5):
                added[:, i, j] += mean(grid[:, i, j], left, reach)
        left = left - torch.stack([mean(p, left, reach) for p in driving[0]])
    assert torch.allclose((face - head)[0], added, atol=1e-4)


def test_without_a_face_s_own_movement_nothing_is_added_and_far_from_it_nothing_either():
    landmarks = some_landmarks(2)[0] / 5
    head, face = head_and_face_flows(landmarks, landmarks, (8, 8))
    assert head.abs().max() < 1e-9 and face.abs().max() < 1e-9
    moved = landmarks.clone()
    moved[:, 48:68, 1] += 0.02
    added = torch.sub(*reversed(head_and_face_flows(moved, landmarks, (64, 64))))
    assert added[:, :, :4].abs().max() < 1e-3 < added[:, :, 30:34, 30:34].abs().max()


def test_landmarks_in_one_place_give_numbers():
    flows = head_and_face_flows(torch.zeros(1, LANDMARKS, 2), torch.zeros(1, LANDMARKS, 2), (4, 4))
    assert all(flow.isfinite().all() for flow in flows)


def test_eyes_and_mouth_move_by_it_without_any_training():
    """Where eyes and mouth are, the head's flow misses .7 pixels of 64: lids, lips and gaze."""
    source, driving = people(24, seed=5)
    one, other = (synthetic.landmarks(faces) for faces in (source, driving))
    flow, visible = synthetic.flow_between(source, driving, 64)
    weight = pixel_weight(visible, other, 1.0)
    head, face = (
        float(((found - flow).norm(dim=1, keepdim=True) * weight).sum() / weight.sum() * 32)
        for found in head_and_face_flows(one, other, (64, 64))
    )
    assert face < 0.4 and face < 0.6 * head


# ------------------------------------------------------------------------------------------------------ the prior


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AnimationModel.from_preset("tiny-quarter", prior="face").eval()


@pytest.fixture(scope="module")
def pair():
    return [(synthetic.render(faces, 64), synthetic.landmarks(faces)) for faces in people(2)]


@torch.no_grad()
def test_points_come_first_and_landmarks_behind_them_found_or_given(model, pair):
    (picture, landmarks), _ = pair
    found, given = model.encode_driving(picture), model.encode_driving(picture, landmarks=landmarks)
    points, matrices = model.prior.detector(picture)
    count = points.shape[1]
    assert found.points.shape == (2, count + LANDMARKS, 2) and found.affine.shape == (2, count + LANDMARKS, 2, 2)
    assert torch.allclose(found.points[:, :count], points, atol=1e-6)
    assert torch.allclose(found.affine[:, :count], matrices, atol=1e-6)
    assert torch.equal(given.points[:, count:], landmarks)
    assert torch.allclose(found.points[:, count:], LandmarkDetector.load().find(picture), atol=1e-5)
    assert torch.equal(found.affine[:, count:], torch.eye(2).expand(2, LANDMARKS, 2, 2))
    with pytest.raises(MinimodelError, match="without an image"):
        model.encode_driving(landmarks=landmarks)
    with pytest.raises(MinimodelError, match="landmarks and more"):
        AnimationModel.from_preset("tiny-quarter", prior="face", points=LANDMARKS)


@torch.no_grad()
def test_the_coarse_flow_holds_what_the_landmarks_say_at_the_motion_s_own_resolution(model, pair):
    (source, one), (driving, other) = pair
    head = model.prior.dense_motion.mask_head
    for part, flow in ((-1, 1), (-2, 0)):  # the face is the last part, the head the one before it
        head.weight.zero_(), head.bias.zero_()
        head.bias[part] = 100
        coarse = model.render(
            model.encode_source(source, landmarks=one), model.encode_driving(driving, landmarks=other)
        ).coarse
        assert torch.allclose(coarse.flow, head_and_face_flows(one, other, (64, 64))[flow], atol=1e-5)
    head.bias.zero_()
    state, motion = model.encode_source(source, landmarks=one), model.encode_driving(driving, landmarks=other)
    coarse = model.render(state, motion).coarse
    assert coarse.masks.shape == (2, 13, 64, 64) and torch.allclose(coarse.masks.sum(1), torch.ones(2, 64, 64))
    assert torch.allclose(coarse.flow, combine(coarse.part_flows, coarse.masks), atol=1e-6)
    assert torch.equal(coarse.part_flows[:, 0], torch.zeros(2, 2, 64, 64))


@torch.no_grad()
def test_a_portrait_moves_as_its_picture_of_64_pixels_does():
    torch.manual_seed(0)
    small = AnimationModel.from_preset("tiny-quarter", prior="face").eval()
    large = AnimationModel.from_preset("portrait", prior="face").eval()
    large.prior.load_state_dict(small.prior.state_dict())
    (source, one), (driving, other) = [(synthetic.render(f, 256), synthetic.landmarks(f)) for f in people(1)]
    known = dict(source_landmarks=one, driving_landmarks=other)
    found = large(source, driving, **known).coarse.flow
    half = [torch.nn.functional.avg_pool2d(picture, 4) for picture in (source, driving)]
    assert torch.allclose(found, small(*half, **known).coarse.flow, atol=1e-5)


def test_only_the_points_that_training_finds_hold_still_under_a_bend(model, pair):
    transform = random_transforms(2, torch.Generator().manual_seed(0))
    picture, landmarks = pair[0]
    motion = model.encode_driving(picture, landmarks=landmarks)
    terms = model.prior.detection_terms(picture, motion, transform)
    moved = model.prior.detector(transformed_frame(picture, transform))[0]
    assert terms.keys() == {"points", "affine"}
    assert torch.allclose(terms["points"], equivariance_points(motion.points[:, :10], moved, transform))
