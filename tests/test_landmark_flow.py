"""The flow that landmarks say by arithmetic alone, and the prior that mixes it with parts of its own."""

import math
from dataclasses import replace

import pytest
import torch

from minimodel import AnimationModel
from minimodel.affine import combine
from minimodel.data import synthetic
from minimodel.errors import MinimodelError
from minimodel.landmark_flow import HALF, INSET, REACHES, SLITS, SOFT, head_and_face_flows
from minimodel.landmarks import LANDMARKS, LandmarkDetector
from minimodel.losses import equivariance_points, transformed_frame
from minimodel.tps import random_transforms
from minimodel.training.teaching import pixel_weight
from minimodel.warping import identity_grid, resize_flow


def people(count, seed=0):
    return synthetic.sample_pairs(count, torch.Generator().manual_seed(seed))


def some_landmarks(seed=0):
    return torch.rand(2, 3, LANDMARKS, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5


def test_a_head_that_turns_and_grows_as_a_whole_moves_exactly_so_and_its_face_with_it():
    driving = synthetic.landmarks(people(3)[1]).double()
    matrix, shift = torch.tensor([[1.2, 0.3], [-0.3, 1.2]]).double(), torch.tensor([0.1, -0.05]).double()
    flows = head_and_face_flows(driving @ matrix.mT + shift, driving, (6, 5))
    grid = identity_grid(6, 5, dtype=torch.float64)
    expected = torch.einsum("ij,jhw->ihw", matrix, grid) + shift[:, None, None] - grid
    for flow in flows:
        assert torch.allclose(flow, expected.expand_as(flow), atol=1e-4)  # what `STEADY` takes


def logistic(x):
    return 1 / (1 + math.exp(-x))


class InSlit:
    """The geometry of a slit, with parabolas through its corners as edges, by scalars."""

    def __init__(self, landmarks, slit):
        (self.ax, self.ay), (bx, by) = (landmarks[k].tolist() for k in slit.corners)
        self.length = math.hypot(bx - self.ax, by - self.ay)
        self.right = (bx - self.ax) / self.length, (by - self.ay) / self.length
        self.down = -self.right[1], self.right[0]
        self.edges = []
        for edge in slit.edges:
            known = [self.hill_and_depth(landmarks[k]) for k in edge]
            self.edges.append(sum(h * d for h, d in known) / sum(h * h for h, _ in known))

    def hill_and_depth(self, point):
        x, y = point[0].item() - self.ax, point[1].item() - self.ay
        share = min(max((x * self.right[0] + y * self.right[1]) / self.length, 0), 1)
        return 4 * share * (1 - share), x * self.down[0] + y * self.down[1]

    def above(self, point):
        hill, depth = self.hill_and_depth(point)
        return logistic((hill * sum(self.edges) / 2 - depth) / (SOFT / 2))

    def within(self, point):
        hill, depth = self.hill_and_depth(point)
        low, high = (logistic((depth - hill * edge) / (SOFT / 2)) for edge in self.edges)
        return low * (1 - high) * (hill > 0)

    def rooms(self, point):
        """How far a point is from both edges, at most `INSET`."""
        hill, depth = self.hill_and_depth(point)
        return [min(room, INSET) for room in (depth - hill * self.edges[0], hill * self.edges[1] - depth)]

    def seen(self, point, rooms):
        """The nearest point that has room to both edges, or the middle."""
        hill, depth = self.hill_and_depth(point)
        low, high = hill * self.edges[0] + rooms[0], hill * self.edges[1] - rooms[1]
        wanted = (low + high) / 2 if low > high else min(max(depth, low), high)
        return point + (wanted - depth) * torch.tensor(self.down, dtype=point.dtype)


def test_the_face_adds_what_the_head_leaves_level_by_level():
    """Against loops over places, landmarks and levels: an eye that shuts, and one that opens wider than it was."""
    person, state = synthetic.sample_identities(1, 3), synthetic.animate_states(12, 5)[:1]
    states = (replace(state, lids=torch.tensor([lids])) for lids in ([0.9, 0.4], [0.0, 1.0]))
    source, driving = (synthetic.landmarks(synthetic.Faces(person, each)).double() for each in states)
    head, face = head_and_face_flows(source, driving, (96, 96))
    source, driving = source[0], driving[0]
    design = torch.cat([driving, torch.ones(LANDMARKS, 1).double()], dim=1)
    fitted = torch.linalg.lstsq(design, source).solution
    left = source - design @ fitted
    behind = left.clone()

    def counts(place, own):
        """Which landmarks move a place; ``own`` is the landmark that it is, or None."""
        shares = [1.0] * LANDMARKS
        for slit in SLITS:
            above = InSlit(driving, slit).above(place)
            above = 1.0 if own in slit.above else 0.0 if own in slit.below else above
            for k in slit.above:
                shares[k] = above
            for k in slit.below:
                shares[k] = 1 - above
            if slit.pupil is not None:
                shares[slit.pupil] = 0.0
        return shares

    def mean(place, values, reach, own=None):
        shares = counts(place, own)
        weights = [
            share * math.exp(-float((place - p).square().sum()) / (2 * reach**2))
            for share, p in zip(shares, driving, strict=True)
        ]
        return sum(w * v for w, v in zip(weights, values, strict=True)) / (sum(weights) + HALF)

    grid = identity_grid(96, 96, dtype=torch.float64).flatten(1).T
    near_eyes = torch.cdist(grid, driving[[68, 69, 70, 72]]).amin(1) < 0.05
    chosen = torch.cat([near_eyes.nonzero()[::2, 0], torch.arange(0, len(grid), 700)])
    grid, head, face = grid[chosen], head[0].flatten(1).T[chosen], face[0].flatten(1).T[chosen]
    added = torch.zeros(len(grid), 2, dtype=torch.float64)
    for reach in REACHES:
        for i, place in enumerate(grid):
            added[i] += mean(place, left, reach)
        left = left - torch.stack([mean(p, left, reach, k) for k, p in enumerate(driving)])
    for i, place in enumerate(grid):
        for slit in SLITS:
            if slit.pupil is not None:
                share, rooms = InSlit(driving, slit).within(place), InSlit(driving, slit).rooms(place)
                came = InSlit(source, slit).seen(place + head[i] + behind[slit.pupil], rooms)
                added[i] += share * (came - place - head[i] - added[i])
    assert torch.allclose(face - head, added, atol=1e-4)


def test_a_lid_that_shuts_takes_its_skin_along_and_a_look_moves_within_the_eye_alone():
    """At the line where both lids meet, the places above come from above the open eye and those below from below it."""
    person = synthetic.sample_identities(1, 3)
    rest = synthetic.animate_states(12, 5)[:1]
    pair, zero = torch.zeros(1, 2), torch.zeros(1)
    rest = replace(rest, yaw=zero, pitch=zero, roll=zero, jaw=zero, part=zero, lids=pair + 1, gaze=pair)
    opened, shut, aside = (
        synthetic.landmarks(synthetic.Faces(person, state))
        for state in (rest, replace(rest, lids=pair + 0.05), replace(rest, gaze=torch.tensor([[0.3, 0.0]])))
    )
    flow = head_and_face_flows(opened, shut, (256, 256))[1]
    x, y = ((shut[0, 70] + shut[0, 71]) / 2 * 128 + 128).tolist()
    up, down = flow[0, 1, int(y) - 4, int(x)] * 128, flow[0, 1, int(y) + 4, int(x)] * 128
    opening = (opened[0, 71, 1] - opened[0, 70, 1]) * 128
    assert down - up > 0.6 * opening > 4
    look = head_and_face_flows(opened, aside, (256, 256))[1][0, 0] * 128
    moved = ((opened - aside)[0, 68, 0] * 128).item()
    x, y = (aside[0, 68] * 128 + 128).long().tolist()
    assert look[y, x].item() == pytest.approx(moved, rel=0.05)
    brow = (aside[0, 19] * 128 + 128).long().tolist()
    assert abs(look[brow[1], brow[0]].item()) < 0.1 * abs(moved)


def test_without_a_face_s_own_movement_nothing_is_added_and_far_from_it_nothing_either():
    landmarks = some_landmarks(2)[0] / 5
    head, face = head_and_face_flows(landmarks, landmarks, (8, 8))
    assert head.abs().max() < 1e-9 and face.abs().max() < 1e-9
    moved = landmarks.clone()
    moved[:, 48:68, 1] += 0.02
    added = torch.sub(*reversed(head_and_face_flows(moved, landmarks, (64, 64))))
    assert added[:, :, :4].abs().max() < 2e-3 < added[:, :, 30:34, 30:34].abs().max()


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
    assert face < 0.3 and face < 0.4 * head


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
def test_a_portrait_moves_as_its_picture_of_64_pixels_does_with_finer_lids():
    torch.manual_seed(0)
    small = AnimationModel.from_preset("tiny-quarter", prior="face").eval()
    large = AnimationModel.from_preset("portrait", prior="face").eval()
    large.prior.load_state_dict(small.prior.state_dict())
    (source, one), (driving, other) = [(synthetic.render(f, 256), synthetic.landmarks(f)) for f in people(1)]
    known = dict(source_landmarks=one, driving_landmarks=other)
    found = large(source, driving, **known).coarse.flow
    half = [torch.nn.functional.avg_pool2d(picture, 4) for picture in (source, driving)]
    expected = small(*half, **known).coarse.flow
    assert found.shape == (1, 2, 128, 128) and expected.shape == (1, 2, 64, 64)  # lids need the finer one
    difference = (resize_flow(found, (64, 64)) - expected).abs() * 32  # pixels of 64
    assert difference.mean() < 0.02 and expected.abs().max() * 32 > 0.3


def test_only_the_points_that_training_finds_hold_still_under_a_bend(model, pair):
    transform = random_transforms(2, torch.Generator().manual_seed(0))
    picture, landmarks = pair[0]
    motion = model.encode_driving(picture, landmarks=landmarks)
    terms = model.prior.detection_terms(picture, motion, transform)
    moved = model.prior.detector(transformed_frame(picture, transform))[0]
    assert terms.keys() == {"points", "affine"}
    assert torch.allclose(terms["points"], equivariance_points(motion.points[:, :10], moved, transform))
