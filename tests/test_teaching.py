"""What rendered faces teach: losses from truth, lent gates, holes, and the batches that bring the truth along."""

import dataclasses
import math

import pytest
import torch

from minimodel import losses
from minimodel.data import synthetic
from minimodel.data.pairs import PairSource, PairStream, RenderedPairs
from minimodel.errors import MinimodelError
from minimodel.evaluation.benchmark import LEFT_EYE, around
from minimodel.landmarks import LandmarkDetector
from minimodel.model import AnimationModel
from minimodel.motion import Motion
from minimodel.training.objective import LossWeights, TrainingStep
from minimodel.training.teaching import (
    LandmarkReader,
    Teaching,
    close_ups,
    hole_mask,
    lent_gates,
    motion_numbers,
    pixel_weight,
    relations,
)
from minimodel.warping import identity_grid, to_pixels, warp

SIZE = 32


class Films(PairSource):
    """Stands for a folder of clips: pairs of which nothing is known."""

    def draw(self, count, generator):
        return dict(frames=torch.rand(2, count, 3, SIZE, SIZE, generator=generator))

    def load(self, samples, slots, device):
        return tuple(samples["frames"][:, slots].unbind(0))


def stream(*sources, truth=True, **options):
    options = dict(batch=4, seed=3) | options
    return PairStream(sources or [RenderedPairs(SIZE)], SIZE, torch.device("cpu"), truth=truth, **options)


@pytest.fixture(scope="module")
def batch():
    return stream()[0]


class Pixels(torch.nn.Module):
    """Stands for the features of the perceptual loss."""

    def forward(self, image, layers=1):
        return [image]


# ------------------------------------------------------------------------------------------------------------- losses
def test_a_flow_that_is_off_by_a_pixel_costs_one_and_hidden_pixels_cost_nothing():
    truth = torch.zeros(2, 2, 8, 16)
    off = truth.clone()
    off[:, 0] += 2 / 16  # a pixel of 16 to the right ...
    visible = torch.ones(2, 1, 8, 16)
    assert losses.true_flow_loss([off], truth, visible).item() == pytest.approx(1, rel=1e-4)
    off = truth.clone()
    off[:, 1] += 2 / 8  # ... and one of 8 down are as long
    assert losses.true_flow_loss([off], truth, visible).item() == pytest.approx(1, rel=1e-4)
    off[..., :8] += 100
    visible[..., :8] = 0
    assert losses.true_flow_loss([off], truth, visible).item() == pytest.approx(1, rel=1e-4)
    # The prior's stage and the last one count alike, those between less and less the further they are from the end.
    costs = [[off if k == wrong else truth for k in range(4)] for wrong in range(4)]
    costs = [losses.true_flow_loss(stages, truth, visible, decay=0.5).item() for stages in costs]
    assert costs == pytest.approx([1 / 2.75, 0.25 / 2.75, 0.5 / 2.75, 1 / 2.75], abs=2e-3)


def test_coarse_stages_are_compared_at_the_size_of_the_truth():
    truth = torch.zeros(1, 2, 8, 8)
    truth[..., 4:] = 0.5
    coarse = torch.nn.functional.avg_pool2d(truth, 2)
    enlarged = torch.nn.functional.interpolate(coarse, (8, 8), mode="bilinear")
    expected = ((enlarged - truth) * 4).norm(dim=1).mean()
    found = losses.true_flow_loss([coarse], truth, torch.ones(1, 1, 8, 8))
    assert found.item() == pytest.approx(expected.item(), abs=1e-3)
    assert found > 0.05  # an edge can't be told by half the pixels


def test_visible_and_hidden_pixels_count_for_one_half_each():
    visible = torch.ones(1, 1, 8, 8)
    visible[..., 0, 0] = 0
    nothing = torch.zeros_like(visible)
    assert losses.visibility_loss([nothing], visible).item() == pytest.approx(math.log(2))
    everything = torch.full_like(visible, 6.0)
    for sharpness, size in ((1.0, 6.0), (3.0, 2.0)):
        found = [
            losses.visibility_loss([gate], visible, sharpness=sharpness).item()
            for gate in (everything, -everything, 12 * visible - 6, 6 - 12 * visible)
        ]
        right, wrong = (math.log1p(math.exp(sign * size)) for sign in (-1, 1))
        assert found == pytest.approx([(right + wrong) / 2, (right + wrong) / 2, right, wrong], rel=1e-4)


def test_a_coarse_gate_learns_how_much_is_visible():
    visible = torch.ones(1, 1, 8, 8)
    visible[..., 0, 0] = 0
    coarse = torch.zeros(1, 1, 2, 2, requires_grad=True)
    weight = torch.ones_like(visible)
    weight[..., 4:, 4:] = 0  # counts nothing
    losses.visibility_loss([coarse], visible, weight).backward()
    best = torch.logit(torch.tensor([15 / 16]))
    with torch.no_grad():
        coarse += torch.tensor([[best.item(), 9.0], [9.0, 0.0]])
    pushed = coarse.grad.clone()
    coarse.grad = None
    losses.visibility_loss([coarse], visible, weight).backward()
    assert coarse.grad[0, 0, 0, 0].item() == pytest.approx(0, abs=1e-6)  # at its share
    assert pushed[0, 0, 0, 1] < 10 * coarse.grad[0, 0, 0, 1] < 0  # all is visible: the wider open the better
    assert pushed[0, 0, 1, 1] == coarse.grad[0, 0, 1, 1] == 0


def test_gates_of_all_stages_learn_and_pairs_of_unknown_truth_do_not_count():
    visible = (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.3).float()
    logits = [torch.zeros(2, 1, side, side, requires_grad=True) for side in (4, 8)]
    losses.visibility_loss(logits, visible, torch.tensor([1.0, 0.0]).view(2, 1, 1, 1).expand_as(visible)).backward()
    for stage in logits:
        assert stage.grad[0].abs().min() > 0
        assert not stage.grad[1].any()
    # Where a coarse pixel covers more of what is visible than the others do, its gate wants to open.
    share = torch.nn.functional.avg_pool2d(visible[:1], 2)[0]
    assert logits[0].grad[0][share == 1].max() < 0 < logits[0].grad[0][share < 0.5].min()


def test_scores_that_are_highest_where_things_came_from_cost_nothing():
    flow = torch.zeros(1, 2, 4, 4)
    flow[:, 0] = 2 / 4  # everything came from one pixel further right; the last column from outside
    volume = torch.zeros(1, 4, 4, 4, 4)
    for y in range(4):
        for x in range(3):
            volume[0, y, x, y, x + 1] = 20
    visible = torch.ones(1, 1, 4, 4)
    visible[..., -1] = 0
    assert losses.matching_loss(volume, flow, visible).item() == pytest.approx(0, abs=1e-4)
    assert losses.matching_loss(volume, -flow, visible) > 5
    assert losses.matching_loss(0 * volume, flow, visible).item() == pytest.approx(math.log(16))
    assert losses.matching_loss(volume, flow, 0 * visible) == 0
    # Half-way between two places both are right by half.
    between = losses.matching_loss(volume, flow / 2, visible)
    assert between.item() == pytest.approx((0.5 * 20 * 3 + 0 * 1) / 3, rel=0.2)


# ------------------------------------------------------------------------------------------------------------ teaching
def test_pairs_get_gates_of_their_own_by_and_by():
    teaching = Teaching(forced_until=0.5, own_from=0.75)
    shares = [teaching.own_share(progress) for progress in (0.0, 0.5, 0.625, 0.75, 1.0)]
    assert shares == pytest.approx([0, 0, 0.5, 1, 1])
    at_once = Teaching(forced_until=0.5, own_from=0.5)
    assert [at_once.own_share(progress) for progress in (0.49, 0.5)] == [0, 1]


def test_holes_are_where_their_numbers_say():
    numbers = torch.tensor([[[0.5, 0.5, 0.99, 1.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5, 0.0, 0.9]]])
    solid = hole_mask(numbers, (40, 40), chance=0.5, largest=0.4)
    assert solid.shape == (1, 1, 40, 40)
    assert solid.unique().tolist() == [0, 1]
    assert solid[0, 0, 20, 20] == 0 and solid[0, 0, 0, 0] == 1
    radius = 0.06 + 0.34 * 0.99**2
    assert (solid == 0).float().mean().item() == pytest.approx(math.pi * radius**2 / 4, rel=0.05)  # of one hole alone
    assert hole_mask(numbers, (40, 40), chance=0.0, largest=0.4).all()
    one = torch.rand(1, 3, 6, generator=torch.Generator().manual_seed(1))
    narrow = one.clone()
    narrow[..., 3] = 0
    thin, wide = (hole_mask(each, (64, 64), chance=1.0, largest=0.4) for each in (narrow, one))
    assert (thin >= wide).all() and not torch.equal(thin, wide)


def test_lent_gates_are_true_or_the_models_own_and_learn_from_pictures_where_they_may():
    found = [torch.full((3, 1, side, side), 0.7, requires_grad=True) for side in (2, 4)]
    shown = torch.ones(3, 1, 4, 4)
    shown[:, :, :2] = 0
    shown[:, :, :1, :2] = 1
    gates = lent_gates(found, shown, torch.tensor([True, False, True]), torch.tensor([False, False, True]))
    assert [gate.shape for gate in gates] == [f.shape for f in found]
    for gate, own in zip(gates, found):
        assert torch.equal(gate[0], own[0]) and torch.equal(gate[2], own[2])
        gate.sum().backward()
        assert not own.grad[:2].any() and own.grad[2].eq(1).all()
    assert torch.sigmoid(gates[1][1]).round(decimals=2).equal(shown[1])
    assert torch.sigmoid(gates[0][1, 0, 0]).tolist() == pytest.approx([0.5, 0.001], rel=1e-3)


def test_all_weights_sum_to_one_and_the_landmarks_of_eyes_and_mouth_have_their_share(batch):
    visible, landmarks = batch["visible"], batch["true_landmarks"]
    plain = pixel_weight(visible, landmarks, 0.0)
    assert torch.allclose(plain, visible / visible.sum())
    focused = pixel_weight(visible, landmarks, 1.0)
    assert focused.sum().item() == pytest.approx(1, rel=1e-4)
    assert not focused[visible == 0].any()
    eye = around(to_pixels(landmarks, (SIZE, SIZE))[:, LEFT_EYE], SIZE) & (visible > 0)
    assert focused[eye].mean() > 5 * plain.max()
    assert focused[..., -1, :].sum() < 1e-6  # a chin at most, no mouth
    assert torch.allclose(pixel_weight(visible, landmarks, 0.3), 0.7 * plain + 0.3 * focused)


# ------------------------------------------------------------------------------------------------------------- batches
def test_the_true_flow_brings_the_source_onto_the_driving_frame(batch):
    error = (warp(batch["source"], batch["true_flow"]) - batch["driving"]).abs().mean(1, keepdim=True)
    seen, hidden = (error[batch["visible"] == value].mean() for value in (1, 0))
    assert 3 * seen < hidden and seen < 0.03
    still = (batch["source"] - batch["driving"]).abs().mean(1, keepdim=True)[batch["visible"] == 1].mean()
    assert seen < 0.8 * still
    assert batch["known"].tolist() == [1] * 4


def test_slots_of_one_pair_have_the_two_flows_between_its_frames(batch):
    assert torch.equal(batch["source"][0], batch["driving"][1])
    assert not torch.allclose(batch["true_flow"][0], batch["true_flow"][1])
    # There and back again is where one began, where the one frame shows what the other does.
    back = warp(batch["true_flow"][1:2], batch["true_flow"][:1]) + batch["true_flow"][:1]
    both = (warp(batch["visible"][1:2], batch["true_flow"][:1]) == 1) & (batch["visible"][:1] == 1)
    assert (back.norm(dim=1, keepdim=True)[both] * SIZE / 2).median() < 0.05


def test_truth_changes_nothing_else_and_is_shared_by_processes(batch):
    plain = stream(truth=False)[0]
    assert plain.keys() < batch.keys()
    assert all(torch.equal(value, batch[name]) for name, value in plain.items())
    parts = [stream(rank=rank, world_size=2)[0] for rank in (0, 1)]
    for name, value in batch.items():
        together = torch.cat([part[name] for part in parts])
        assert torch.allclose(together, value, atol=1e-5), name  # fewer faces at once are rounded differently


def test_of_films_nothing_is_known():
    mixed = stream(RenderedPairs(SIZE), Films())[0]
    assert mixed["known"].tolist() == [1, 0, 1, 0]
    assert mixed["visible"][1::2].all() and not mixed["true_flow"][1::2].any()
    assert not mixed["visible"][::2].all()
    alone = stream()[0]
    assert torch.equal(mixed["visible"][0], alone["visible"][0])


# ---------------------------------------------------------------------------------------------------------------- steps
def taught(model=None, teaching=Teaching(), **weights):
    torch.manual_seed(0)
    model = model or AnimationModel.from_preset("tiny-quarter", prior="tokens")
    return TrainingStep(model, Pixels(), LossWeights(**weights), teaching)


def learners_of(step, term, batch, progress=0.0):
    """The parts of the model to which a loss gives a gradient."""
    step.zero_grad()
    step(batch, progress=progress)[term].backward()
    names = {name for name, p in step.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    return {name.split(".")[0] for name in names} | {name for name in names if "occlusion_head" in name}


def test_truth_is_asked_only_where_a_loss_wants_it(batch):
    assert not LossWeights().ask_the_truth
    model = AnimationModel.from_preset("tiny-quarter", prior="tokens").eval()
    names = {"flow", "visibility", "matching", "hidden", "details", "landmarks"}
    assert names.isdisjoint(taught(model)(stream(truth=False)[0]))
    once, twice = (taught(model, **dict.fromkeys(names, weight))(batch) for weight in (1.0, 2.0))
    for name in names:
        assert LossWeights(**{name: 1.0}).ask_the_truth
        assert twice[name].item() == pytest.approx(2 * once[name].item(), rel=1e-4)


def test_lids_lips_and_pupils_are_told_by_differences_of_landmarks():
    landmarks = torch.rand(2, 74, 2, generator=torch.Generator().manual_seed(0))
    found = relations(landmarks)
    assert found.shape == (2, 5, 2)
    assert torch.allclose(relations(landmarks + 0.3), found, atol=1e-6)  # wherever the head is
    moved = landmarks.clone()
    moved[:, 71, 1] += 0.1  # a lower lid
    moved[:, 69, 0] += 0.2  # a pupil
    change = relations(moved) - found
    assert torch.allclose(change[:, 0], torch.tensor([0, -0.1]), atol=1e-6)
    assert torch.allclose(change[:, 4], torch.tensor([0.2, 0]), atol=1e-6)
    assert not change[:, [1, 2, 3]].any()


def test_points_learn_what_the_landmarks_are(batch):
    step = taught(landmarks=1.0)
    assert step.learners.keys() == {"model", "reader"} and taught().learners.keys() == {"model"}
    before = {name: value.clone() for name, value in taught(landmarks=0.0).model.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in step.model.state_dict().items())
    assert learners_of(step, "landmarks", batch) == {"prior"}
    assert all(p.grad.abs().sum() > 0 for p in step.reader.parameters())
    # What is read right costs nothing, and pairs of which nothing is known don't count.
    motion = step.model.encode_driving(batch["driving"])
    stages, read = with_holes_stages(step, batch), step.reader(motion).detach()
    assert read.shape == (4, 74, 2)
    right = batch | dict(true_landmarks=read)
    assert step.detail_terms(motion, stages, right)["landmarks"].item() == pytest.approx(2e-3, abs=1e-4)
    off = read.clone()
    off[0] += 2 / SIZE * torch.tensor([3.0, 4.0])  # by five pixels: a quarter of the pairs
    wrong = right | dict(true_landmarks=off)
    assert step.detail_terms(motion, stages, wrong)["landmarks"].item() == pytest.approx(5 / 4, abs=0.01)
    wrong["known"] = torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert step.detail_terms(motion, stages, wrong)["landmarks"].item() == pytest.approx(2e-3, abs=1e-4)


def test_a_reader_gets_points_and_matrices():
    points = torch.zeros(2, 3, 2)
    assert motion_numbers(Motion(points)).shape == (2, 6)
    numbers = motion_numbers(Motion(points, torch.ones(2, 3, 2, 2)))
    assert numbers.sum(1).tolist() == [12, 12]
    assert LandmarkReader(18)(Motion(points, torch.ones(2, 3, 2, 2))).shape == (2, 74, 2)


def test_details_are_the_colours_at_eyes_and_mouth(batch):
    step = taught(details=1.0)
    term = learners_of(step, "details", batch)
    assert "generator" in term
    stages, motion = with_holes_stages(step, batch), step.model.encode_driving(batch["driving"])
    output = step.model.paint(step.model.encode_source(batch["source"]), stages)
    perfect = dataclasses.replace(output, image=batch["driving"])
    assert step.detail_terms(motion, perfect, batch)["details"] == 0
    chin = batch["driving"].clone()
    chin[..., -2:, :] = 1 - chin[..., -2:, :]  # below any mouth
    assert step.detail_terms(motion, dataclasses.replace(output, image=chin), batch)["details"] < 1e-4
    assert "details" not in step.detail_terms(motion, stages, batch)  # motion alone has no picture


def test_close_ups_show_eyes_and_mouth():
    """A picture whose colours are its coordinates: the middle of each close-up tells where it was cut."""
    faces = synthetic.sample_pairs(2, torch.Generator().manual_seed(4))[0]
    landmarks = synthetic.landmarks(faces)
    grid = identity_grid(128, 128).expand(2, -1, -1, -1)
    squares = close_ups(torch.cat([grid, torch.zeros(2, 1, 128, 128)], dim=1), landmarks)
    assert squares.shape == (6, 3, 32, 32)
    middles = squares.mean((2, 3))[:, :2].unflatten(0, (3, 2))
    for middle, (first, last) in zip(middles, ((36, 42), (42, 48), (48, 68)), strict=True):
        assert torch.allclose(middle, landmarks[:, first:last].mean(1), atol=0.01)
    across = (landmarks[:, 45] - landmarks[:, 36]).norm(dim=-1)
    wide = (squares[:, 0].amax((1, 2)) - squares[:, 0].amin((1, 2))).unflatten(0, (3, 2)) / across * 32 / 31
    assert torch.allclose(wide, torch.tensor([[0.7], [0.7], [1.0]]).expand(3, 2), atol=0.03)


def test_close_ups_count_what_eyes_and_mouth_show_of_films_too(batch):
    model = AnimationModel.from_preset("tiny-quarter", prior="face", points=76, image_size=SIZE)
    step = TrainingStep(model, Pixels(), LossWeights(closeups=2.0))
    films = stream(Films(), labels=model.prior.labels, detector=LandmarkDetector.load())[0]
    assert films["known"].sum() == 0
    assert "generator" in learners_of(step, "closeups", films)
    # Where the face isn't, nothing counts; where the mouth is, everything does.
    rendered = stream(labels=model.prior.labels)[0]
    corner, mouth = rendered["driving"].clone(), rendered["driving"].clone()
    corner[..., :4, :4] = 1 - corner[..., :4, :4]
    x, y = to_pixels(rendered["driving_landmarks"][:, 48:68].mean(1), (SIZE, SIZE)).round().long().unbind(-1)
    for index in range(len(mouth)):
        mouth[index, :, y[index] - 1 : y[index] + 2, x[index] - 2 : x[index] + 3] = 0.0
    places = rendered["driving_landmarks"]
    seen = [
        (close_ups(other, places) - close_ups(rendered["driving"], places)).abs().amax((1, 2, 3))
        for other in (corner, mouth)
    ]
    assert seen[0].max() == 0 and (seen[1][2 * len(mouth) :] > 0.05).all()
    assert "closeups" not in step(rendered, motion_only=True)
    with pytest.raises(MinimodelError, match="closeups with AffinePrior"):
        TrainingStep(AnimationModel.from_preset("tiny", image_size=SIZE), Pixels(), LossWeights(closeups=1.0))


def test_a_fixed_prior_is_not_held_still(batch):
    step = taught(flow=1.0)
    assert {"points", "affine"} <= step(batch).keys()
    step.model.prior.requires_grad_(False)
    assert {"points", "affine"}.isdisjoint(step(batch)) and step.learns_motion
    step.model.structure.requires_grad_(False)
    step.model.refiner.requires_grad_(False)
    assert not step.learns_motion and step.learns("generator.")


def test_motion_learns_from_the_flow_and_gates_from_visibility_alone(batch):
    step = taught(flow=1.0, visibility=1.0, hidden=1.0)
    # The refiner's last layers start at zero and pass nothing on; a little noise makes all of it take part.
    for head in (step.model.refiner.updater.flow_head, step.model.refiner.updater.occlusion_head):
        torch.nn.init.normal_(head[-1].weight, std=0.01)
    flow, gates = learners_of(step, "flow", batch), learners_of(step, "visibility", batch)
    heads = {f"refiner.updater.occlusion_head.{n}.{p}" for n in (0, 2) for p in ("weight", "bias")}
    heads |= {f"prior.dense_motion.occlusion_head.{p}" for p in ("weight", "bias")}
    assert {"prior", "structure", "refiner"} <= flow and flow.isdisjoint(heads)
    assert heads <= gates
    for progress in (0.0, 1.0):  # behind true gates and behind the model's own
        assert learners_of(step, "perceptual", batch, progress).isdisjoint(heads)
    assert "generator" in learners_of(step, "hidden", batch)


def test_the_generator_paints_behind_true_gates_first_and_behind_the_models_own_at_last(batch, monkeypatch):
    step = taught(visibility=1.0, teaching=Teaching(holes=0.0))
    seen = []
    paint = step.model.paint
    monkeypatch.setattr(step.model, "paint", lambda *a, gates: seen.append(gates) or paint(*a, gates=gates))
    for progress in (0.0, 1.0):
        step(batch, progress=progress)
    assert torch.equal((seen[0][-1] > 0).float(), batch["visible"])
    assert not torch.equal((seen[1][-1] > 0).float(), batch["visible"])
    with_holes = taught(visibility=1.0, teaching=Teaching(holes=1.0))
    assert (with_holes.gates(with_holes_stages(with_holes, batch), batch, 0.0)[-1] > 0).sum() < batch["visible"].sum()
    assert taught().gates(with_holes_stages(with_holes, batch), batch, 0.0) is None


def with_holes_stages(step, batch):
    model = step.model
    return model.move(model.encode_source(batch["source"]), model.encode_driving(batch["driving"]))


def test_films_are_painted_behind_the_models_own_gates_and_teach_pictures_alone():
    films = stream(Films())[0]
    step = taught(flow=1.0, visibility=1.0, hidden=1.0)
    terms = step(films, progress=0.0)
    assert all(terms[name].item() == 0 for name in ("flow", "visibility", "hidden"))
    assert terms["perceptual"] > 0
    stages = with_holes_stages(step, films)
    for gate, own in zip(step.gates(stages, films, 0.0), stages.occlusions[1:], strict=True):
        assert torch.equal(gate, own)
    # Once there is a painter the gates learn whether to trust it.
    head = "prior.dense_motion.occlusion_head.weight"
    for progress, learns in ((0.49, False), (0.5, True)):
        assert (head in learners_of(step, "perceptual", films, progress)) == learns


def test_motion_alone_is_not_judged_where_the_truth_hides_and_less_where_a_films_gate_is_shut(batch):
    step, films = taught(flow=1.0), stream(Films())[0]
    stages = with_holes_stages(step, batch)
    assert torch.equal(step.shown(stages, batch), batch["visible"]) and batch["visible"].min() == 0
    for gate, share in ((-100.0, 0.3), (0.0, 0.65), (100.0, 1.0)):
        stages.occlusions[-1] = torch.full_like(films["visible"], gate).requires_grad_()
        shown = step.shown(stages, films)
        assert torch.allclose(shown, torch.full_like(shown, share)) and not shown.requires_grad
    assert step.shown(stages, {name: value for name, value in films.items() if name != "visible"}) is None
    # What is hidden may look like anything.
    source, driving = step.model.encode_source(batch["source"]), batch["driving"]
    stages, visible = with_holes_stages(step, batch), batch["visible"]
    before = step.motion_terms(source, stages, driving, visible)
    stages.warped_source = torch.where(visible > 0, stages.warped_source, torch.rand_like(driving))
    after, judged = (step.motion_terms(source, stages, driving, shown) for shown in (visible, None))
    assert torch.allclose(after["moved"], before["moved"], rtol=1e-4) and judged["moved"] > 1.01 * after["moved"]


def test_a_generator_with_a_mask_of_its_own_cannot_be_lent_gates():
    model = AnimationModel.from_preset("tiny-quarter", prior="tokens", generator="residual")
    with pytest.raises(MinimodelError, match="makes its own mask"):
        taught(model, visibility=1.0)
    taught(model, flow=1.0)


def test_a_few_steps_of_true_flow_bring_every_stage_nearer(batch):
    step = taught(flow=1.0, points=0.0, affine=0.0, teaching=Teaching(focus=0.0))
    optimizer = torch.optim.Adam(step.learned, lr=2e-3)
    errors = []
    for _ in range(20):
        loss = step(batch, motion_only=True)["flow"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.95 * errors[0]


# ------------------------------------------------------------------------------------------------------------ the model
def test_the_papers_ratio_at_64_pixels():
    model = AnimationModel.from_preset("tiny-quarter", prior="tokens")
    assert sum(parameter.numel() for parameter in model.parameters()) <= 2.9e6
    image = torch.rand(1, 3, 64, 64)
    output = model.eval()(image, image)
    assert [flow.shape[-1] for flow in output.flows] == [16, 8, 16, 32, 64]
    model = AnimationModel.from_preset("tiny-quarter", prior="affine")
    assert model.prior.detector.reduce.downscale_factor == 2
    assert model.eval()(image, image).flows[0].shape[-1] == 16


def test_sizes_that_detector_and_coarse_flow_need_are_asked_for_apart():
    tiny = AnimationModel.from_preset("tiny-quarter", prior="affine", iterations=1)
    tiny.check_size(64, 96)
    deep = dataclasses.replace(tiny.config.detector, levels=5)
    with pytest.raises(ValueError, match="multiples of 64"):
        AnimationModel.from_preset("tiny-quarter", prior="affine", detector=deep).check_size(64, 96)


def test_lent_gates_shut_the_picture_and_leave_the_models_opinion():
    torch.manual_seed(0)
    model = AnimationModel.from_preset("tiny-quarter", prior="tokens").eval()
    image = torch.rand(2, 3, 64, 64)
    state = model.encode_source(image)
    stages = model.move(state, model.encode_driving(image))
    shut, opened = (
        model.paint(state, stages, gates=[torch.full_like(o, value) for o in stages.occlusions[1:]])
        for value in (-30.0, 30.0)
    )
    assert torch.allclose(shut.image, shut.painted) and torch.allclose(opened.image, opened.warped_source)
    assert not torch.allclose(shut.painted, opened.painted)
    for output in (shut, opened):
        assert all(torch.equal(a, b) for a, b in zip(output.occlusions, stages.occlusions, strict=True))
    same = model.paint(state, stages, gates=stages.occlusions[1:])
    assert torch.equal(same.image, model.render(state, model.encode_driving(image)).image)


def test_the_coarse_stream_begins_without_effect_and_then_sees_the_coarse_flow():
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    outputs = []
    for stream_on in (False, True):
        torch.manual_seed(0)
        model = AnimationModel.from_preset("tiny-quarter", prior="tokens").eval()
        if stream_on:
            weights = model.state_dict()
            model = AnimationModel.from_preset("tiny-quarter", prior="tokens", coarse_stream=True).eval()
            model.load_state_dict(weights, strict=False)
        outputs.append(model(image, image.flip(-1)).image)
    assert torch.allclose(*outputs, atol=1e-6)
    generator, features_of = model.generator, model.generator.encode(image)
    for joint in generator.joints:
        torch.nn.init.normal_(joint.weight, std=0.1)
    flows = [torch.zeros(1, 2, *f.shape[-2:]) for f in features_of]
    gates = [torch.zeros(1, 1, *f.shape[-2:]) for f in features_of]
    still, moved = (generator(features_of, flows, gates, coarse_flow=torch.full((1, 2, 16, 16), s)) for s in (0.0, 0.5))
    assert not torch.allclose(still, moved)
    with pytest.raises(ValueError, match="no coarse_flow"):
        generator(features_of, flows, gates)
    with pytest.raises(ValueError, match="only 'unet'"):
        AnimationModel.from_preset("tiny-quarter", generator="inpainting", coarse_stream=True)


def test_the_coarse_stream_survives_saving(tmp_path):
    model = AnimationModel.from_preset("tiny-quarter", prior="tokens", coarse_stream=True).eval()
    model.save(tmp_path / "model.safetensors")
    again = AnimationModel.load(tmp_path / "model.safetensors")
    assert again.config == model.config
    image = torch.rand(1, 3, 64, 64)
    assert torch.allclose(again(image, image).image, model(image, image).image, atol=1e-5)
