import pytest
import torch
import torch.nn.functional as F

from minimodel.affine import combine
from minimodel.data import synthetic
from minimodel.landmark_motion import (
    BOX,
    REGIONS,
    AdaIN,
    AddMotion,
    LandmarkMotion,
    MotionBranch,
    adain,
    centres,
    combine_local_flows,
    crop,
    in_box,
)
from minimodel.warping import identity_grid, warp


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_adain_gives_every_channel_the_wanted_mean_and_deviation():
    x, scale, shift = draw(2, 3, 6, 5, dtype=torch.float64), draw(2, 3, seed=1).double(), draw(2, 3, seed=2).double()
    made = adain(3 * x + 5, scale, shift, eps=0.0)
    for sample in range(2):
        for channel in range(3):
            values = made[sample, channel]
            assert torch.allclose(values.mean(), shift[sample, channel])
            assert torch.allclose(values.std(correction=0), scale[sample, channel].abs())
            pattern = x[sample, channel]
            expected = (pattern - pattern.mean()) / pattern.std(correction=0)
            assert torch.allclose(values, expected * scale[sample, channel] + shift[sample, channel])


def test_adain_starts_as_plain_normalisation_when_the_landmarks_say_nothing():
    x = draw(2, 4, 5, 5)
    assert torch.allclose(AdaIN(4, 6)(x, torch.zeros(2, 6)), F.instance_norm(x), atol=1e-6)


def test_add_motion_is_linear_and_says_something_else_at_each_place():
    torch.manual_seed(0)
    layer, x, difference = AddMotion(3, 8, 4), draw(2, 3, 4, 4), draw(2, 8, seed=1)
    assert torch.equal(layer(x, torch.zeros(2, 8)), x)
    added = layer(x, difference) - x
    for sample in range(2):
        product = (layer.layer.weight @ (layer.gain * difference[sample])).view(3, 4, 4)
        assert torch.allclose(added[sample], product, atol=1e-6)
    assert torch.allclose(layer(x, 2 * difference) - x, 2 * added, atol=1e-6)
    assert layer(draw(2, 3, 8, 6), difference).shape == (2, 3, 8, 6)


def test_regions_are_what_their_names_say():
    """On a neutral face the right eye is on the left of the picture, pupils are inside the lids, brows above."""
    faces = synthetic.Faces(synthetic.sample_identities(6, 3), synthetic.neutral_states(6))
    landmarks = synthetic.landmarks(faces)
    right, left, mouth = centres(landmarks).unbind(1)
    assert (right[:, 0] < mouth[:, 0]).all() and (mouth[:, 0] < left[:, 0]).all()
    assert (right[:, 1] < mouth[:, 1]).all() and (left[:, 1] < mouth[:, 1]).all()
    for name, region in REGIONS.items():
        assert len(set(region)) == len(region) == (20 if name == "mouth" else 14)
        told = in_box(landmarks[:, list(region)], centres(landmarks)[:, list(REGIONS).index(name)])
        assert told.abs().max() < 1  # a box holds all that its branch is told about
        assert told.mean(1).abs().max() < 1e-6
    for pupil, lids in ((68, (70, 71)), (69, (72, 73))):
        upper, lower = (landmarks[:, lid, 1] for lid in lids)
        assert (upper < landmarks[:, pupil, 1]).all() and (landmarks[:, pupil, 1] < lower).all()


def test_a_crop_shows_at_each_place_what_the_picture_shows_there():
    """A picture whose colours are its positions tells where the box was."""
    picture = identity_grid(64, 48)[None]
    for centre in ([0.0, 0.0], [0.313, -0.2071], [-0.5, 0.44]):
        box = crop(picture, torch.tensor([centre]))
        assert box.shape == (1, 2, 16, 12)
        expected = torch.tensor(centre).view(2, 1, 1) + BOX * identity_grid(16, 12)
        assert torch.allclose(box[0], expected, atol=1e-5)


def test_a_crop_whose_centre_is_between_pixels_is_cut_out():
    """A centre on a corner of pixels, as the middle of an even number of pixels is, means no mixing."""
    image = draw(1, 3, 64, 64)
    centre = torch.tensor([[(20 + 8) / 32 - 1, (36 + 8) / 32 - 1]])
    assert torch.allclose(crop(image, centre), image[:, :, 36:52, 20:36], atol=1e-5)


CENTRES = [
    ([-0.3, -0.2], [0.3, -0.2], [0.0, 0.4]),
    ([-0.3137, -0.2213], [0.2911, -0.1973], [0.0171, 0.4099]),
    ([-0.95, -0.9], [0.9, -0.99], [0.1, 0.97]),  # boxes that leave the picture
]


def boxes(where, dtype=torch.float64):
    return torch.tensor(where, dtype=dtype)[None]


@pytest.mark.parametrize(
    "source, driving", [(CENTRES[0], CENTRES[1]), (CENTRES[1], CENTRES[2]), (CENTRES[2], CENTRES[0])]
)
def test_a_local_translation_is_that_translation_in_the_picture(source, driving):
    """f_i = t everywhere and m_i = 1: in box i the flow is s t + c_S - c_D, elsewhere it is the global one."""
    source, driving = boxes(source), boxes(driving)
    says = draw(1, 3, 2, seed=4, dtype=torch.float64)
    flow, *_ = combine_local_flows(
        torch.full((1, 2, 20, 32), 0.125, dtype=torch.float64),
        says[..., None, None].expand(-1, -1, -1, 5, 8),
        torch.ones(1, 3, 5, 8, dtype=torch.float64),
        source,
        driving,
    )
    grid, seen = identity_grid(20, 32, dtype=torch.float64), 0
    for i in range(20):
        for j in range(32):
            within = [n for n in range(3) if ((grid[:, i, j] - driving[0, n]).abs() <= BOX).all()]
            expected = torch.full((2,), 0.125, dtype=torch.float64)
            if within:
                expected = torch.stack([source[0, n] - driving[0, n] + BOX * says[0, n] for n in within]).mean(0)
            assert torch.allclose(flow[0, :, i, j], expected, atol=1e-12)
            seen += bool(within)
    assert seen > 40


def test_a_local_map_is_the_same_map_in_the_picture():
    """A branch that says "everything in my box turns about its middle" turns the picture about it. Exactly, up to the
    outermost half pixel of the box, where there is nothing to interpolate between."""
    source, driving = (boxes(where)[:, :1] for where in (CENTRES[1], CENTRES[0]))
    turn = torch.tensor([[0.9, -0.3], [0.2, 1.1]], dtype=torch.float64)
    box = identity_grid(16, 16, dtype=torch.float64)
    says = torch.einsum("ij,jhw->ihw", turn, box) - box
    mask = torch.ones(1, 1, 16, 16, dtype=torch.float64)
    flow, *_ = combine_local_flows(
        torch.zeros(1, 2, 64, 64, dtype=torch.float64), says[None, None], mask, source, driving
    )
    grid = identity_grid(64, 64, dtype=torch.float64)
    offset = grid - driving[0, 0].view(2, 1, 1)
    expected = source[0, 0].view(2, 1, 1) + torch.einsum("ij,jhw->ihw", turn, offset) - grid
    inner = (offset.abs() <= BOX - 1 / 64).all(0)
    assert inner.sum() > 200
    assert torch.allclose(flow[0][:, inner], expected[:, inner], atol=1e-12)


def test_masks_mix_as_in_equation_3():
    whole, local = draw(2, 2, 32, 32), draw(2, 3, 2, 8, 8, seed=1)
    mask = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    # On corners of pixels, so that pixels of box and picture are the same ones.
    where = torch.tensor([[[-0.5, -0.5], [0.5, -0.5], [0.0, 0.5]]]).expand(2, -1, -1)
    flow, flows, masks = combine_local_flows(whole, local, mask, where, where)
    expected = whole.clone()
    for n, (x, y) in enumerate(((4, 4), (20, 4), (12, 20))):
        part = (slice(None), slice(None), slice(y, y + 8), slice(x, x + 8))
        m = mask[:, n, None]
        expected[part] = whole[part] * (1 - m) + BOX * local[:, n] * m
    assert torch.allclose(flow, expected, atol=1e-5)
    assert torch.allclose(masks.sum(1), torch.ones(2, 32, 32)) and masks.min() >= 0
    assert torch.allclose(combine(flows, masks), flow)


def test_the_order_of_overlapping_boxes_does_not_matter():
    whole, local = draw(1, 2, 32, 32), draw(1, 3, 2, 8, 8, seed=1)
    mask = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    where = torch.tensor([[[-0.1, 0.0], [0.1, 0.05], [0.0, 0.2]]])
    order = [2, 0, 1]
    flow = combine_local_flows(whole, local, mask, where, where)[0]
    other = combine_local_flows(whole, local[:, order], mask[:, order], where[:, order], where[:, order])[0]
    assert torch.allclose(flow, other, atol=1e-6)


def test_a_face_that_only_shifts_is_followed_without_any_training_inside_the_boxes():
    """Local branches start at zero flow: their boxes go where the landmarks go."""
    torch.manual_seed(0)
    motion = small_motion()
    faces = synthetic.Faces(synthetic.sample_identities(2, 1), synthetic.neutral_states(2))
    landmarks = synthetic.landmarks(faces)
    image = synthetic.render(faces, 64)
    shift = torch.tensor([2 / 32, -1 / 32])
    for branch in motion.local:
        torch.nn.init.constant_(branch.logit_head.bias, 50.0)
    with torch.no_grad():
        coarse = motion(image, landmarks, landmarks + shift)
    inside = coarse.masks[:, 0] < 0.01
    assert 500 < inside[0].sum() < 900
    assert torch.allclose(coarse.flow.permute(0, 2, 3, 1)[inside], -shift.expand(int(inside.sum()), 2), atol=1e-5)
    moved = warp(image, coarse.flow).permute(0, 2, 3, 1)[inside]
    assert torch.allclose(moved, image.roll((-1, 2), (2, 3)).permute(0, 2, 3, 1)[inside], atol=1e-4)


def small_motion(**options):
    sizes = dict(whole=dict(base=8, levels=2, maximum=16), local=dict(base=8, levels=2, maximum=16))
    return LandmarkMotion(**sizes, size=64, scale=2, **options)


def shapes(**options):
    return {name: tuple(p.shape) for name, p in small_motion(**options).named_parameters()}


@pytest.mark.parametrize(
    "switch, named", [("adain", "norm."), ("add_motion", "add_motion."), ("local_motion", "local.")]
)
def test_each_switch_of_table_4_changes_what_it_names_and_nothing_else(switch, named):
    full, without = shapes(), shapes(**{switch: False})
    different = {name for name in full.keys() | without.keys() if full.get(name) != without.get(name)}
    assert different and all(named in name for name in different)
    assert not [name for name in without if named in name and switch != "adain"]


def inputs(seed=0):
    faces = synthetic.Faces.sample(2, seed)
    other = synthetic.Faces(faces.identity, synthetic.sample_states(2, seed + 1))
    return synthetic.render(faces, 64), synthetic.landmarks(faces), synthetic.landmarks(other)


def trained_looking(motion):
    """Heads begin at zero, which would hide everything behind them."""
    for name, parameter in motion.named_parameters():
        if "flow_head" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return motion


def test_what_each_switch_lets_the_driving_landmarks_do():
    image, source, driving = inputs()
    for options, heard in ((dict(), True), (dict(adain=False), True), (dict(add_motion=False), True)):
        torch.manual_seed(0)
        branch = trained_looking(small_motion(**options).whole)
        one, two = (branch(image, source, points)[0] for points in (source, driving))
        assert (not torch.allclose(one, two)) == heard
    torch.manual_seed(0)
    deaf = trained_looking(small_motion(adain=False, add_motion=False).whole)
    assert torch.equal(*(deaf(image, source, points)[0] for points in (source, driving)))


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    motion = trained_looking(small_motion())
    coarse = motion(*inputs())
    (coarse.flow.square().sum() + coarse.occlusion.square().sum()).backward()
    assert [name for name, p in motion.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_without_occlusion_all_is_visible_as_far_as_it_knows():
    motion = small_motion(with_occlusion=False)
    assert motion.whole.logit_head is None
    assert not motion(*inputs()).occlusion.any()


def test_other_sizes_work_with_the_same_weights():
    torch.manual_seed(0)
    motion, (_, source, driving) = trained_looking(small_motion()), inputs()
    for height, width in ((96, 64), (32, 48)):
        assert motion(torch.rand(2, 3, height, width), source, driving).flow.shape == (2, 2, height, width)


def test_the_way_down_is_told_of_the_source_and_the_way_up_of_the_driving_landmarks():
    torch.manual_seed(0)
    branch = MotionBranch(5, base=8, levels=2, maximum=16, side=4)
    seen = {"down": [], "up": [], "moved": []}
    for name in ("down", "up"):
        for block in getattr(branch, name):
            block.register_forward_pre_hook(lambda _, given, name=name: seen[name].append(given[1]))
    for layer in branch.add_motion:
        layer.register_forward_pre_hook(lambda _, given: seen["moved"].append(given[1]))
    start, end = torch.rand(2, 5, 2), torch.rand(2, 5, 2)
    branch(torch.rand(2, 3, 16, 16), start, end)
    assert len(seen["down"]) == len(seen["up"]) == 2 and len(seen["moved"]) == 3
    assert all(torch.equal(told, start.flatten(1)) for told in seen["down"])
    assert all(torch.equal(told, end.flatten(1)) for told in seen["up"])
    assert all(torch.equal(told, (end - start).flatten(1)) for told in seen["moved"])
