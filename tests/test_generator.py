import pytest
import torch

from minimodel.generator import GatedUNet, InpaintingNetwork, ResidualGenerator
from minimodel.warping import warp

SIZES = [(4, 4), (8, 8), (16, 16)]


def setup(network=GatedUNet):
    torch.manual_seed(0)
    generator = network(base=8, levels=2, maximum=16, outer_kernel=3, norm="group")
    features = generator.encode(torch.rand(2, 3, 16, 16))
    flows = [0.1 * torch.randn(2, 2, *size) for size in SIZES]
    return generator, features, flows


def full(value):
    return [torch.full((2, 1, *size), value) for size in SIZES]


@pytest.mark.parametrize("network", [GatedUNet, InpaintingNetwork])
def test_features_are_listed_coarsest_first(network):
    generator, features, _ = setup(network)
    assert [tuple(f.shape[-2:]) for f in features] == SIZES
    assert [f.shape[1] for f in features] == generator.feature_channels == [16, 16, 8]


def test_all_visible_means_the_finest_warped_features_alone():
    """Eq. 10 with O = 1 at the last scale: nothing that was generated below comes through."""
    generator, features, flows = setup()
    made = generator(features, flows, full(100.0))
    expected = torch.sigmoid(generator.last(warp(features[-1], flows[-1])))
    assert torch.allclose(made, expected, atol=1e-6)


@pytest.mark.parametrize("network", [GatedUNet, InpaintingNetwork])
def test_all_hidden_means_no_warped_features_at_all(network):
    generator, features, flows = setup(network)
    made = generator(features, flows, full(-100.0))
    other = generator([f.roll(1, 0) for f in features], [2 * f for f in flows], full(-100.0))
    assert torch.allclose(made, other, atol=1e-6)


def test_equations_9_and_10_written_out():
    generator, features, flows = setup()
    occlusions = [torch.randn(2, 1, *size) for size in SIZES]
    out = warp(features[0], flows[0]) * torch.sigmoid(occlusions[0])
    for i in range(2):
        gate = torch.sigmoid(occlusions[i + 1])
        below = generator.up[i](generator.residual[i](out))
        out = warp(features[i + 1], flows[i + 1]) * gate + below * (1 - gate)
    assert torch.allclose(generator(features, flows, occlusions), torch.sigmoid(generator.last(out)), atol=1e-6)


def test_inpainting_written_out():
    """Warped, masked and put beside what rises; two residual blocks before each step up (TPSM Fig. 3)."""
    generator, features, flows = setup(InpaintingNetwork)
    occlusions = [torch.randn(2, 1, *size) for size in SIZES]
    masked = [warp(f, flow) * torch.sigmoid(o) for f, flow, o in zip(features, flows, occlusions)]
    out = masked[0]
    for i in range(2):
        for block in generator.residual[i]:
            out = block(out)
        out = torch.cat([generator.up[i](out), masked[i + 1]], dim=1)
    assert torch.allclose(generator(features, flows, occlusions), torch.sigmoid(generator.last(out)), atol=1e-6)
    assert [len(blocks) for blocks in generator.residual] == [2, 2]


def test_inpainting_uses_the_occlusion_of_every_scale():
    generator, features, flows = setup(InpaintingNetwork)
    occlusions = [torch.zeros(2, 1, *size, requires_grad=True) for size in SIZES]
    made = generator(features, flows, occlusions)
    assert made.shape == (2, 3, 16, 16) and 0 <= made.min() <= made.max() <= 1
    made.square().sum().backward()
    assert all(occlusion.grad.any() for occlusion in occlusions)


def residual(levels=2, scales=4):
    torch.manual_seed(0)
    sizes = dict(base=8, levels=levels, maximum=16, blocks=2, outer_kernel=3, norm="group")
    return ResidualGenerator(**sizes, scales=scales)


def test_the_residual_generator_sees_the_warped_source_and_its_flow():
    generator, image, flow = residual(), torch.rand(2, 3, 16, 16), 0.1 * torch.randn(2, 2, 16, 16)
    painted, mask = generator(image, flow)
    assert painted.shape == (2, 3, 16, 16) and 0 <= painted.min() <= painted.max() <= 1
    assert mask.shape == (2, 1, 16, 16) and (mask < 0).any() and mask.min() < mask.max()  # logits
    for other in ((image, 2 * flow), (image.flip(3), flow)):
        assert not torch.allclose(generator(*other)[0], painted) and not torch.allclose(generator(*other)[1], mask)


def test_its_features_for_a_refinement_are_those_of_the_source_at_rest():
    for levels, scales in ((2, 4), (2, 2), (1, 2)):
        generator, image = residual(levels, scales), torch.rand(2, 3, 16, 16)
        features = generator.encode(image)
        assert [f.shape[-1] for f in features] == [16 >> level for level in reversed(range(scales))]
        assert [f.shape[1] for f in features] == generator.feature_channels
        first = generator.first(torch.cat([image, torch.zeros(2, 2, 16, 16)], 1))
        assert torch.equal(features[-1], first)
    features = residual().encode(image)
    assert torch.allclose(features[0], torch.nn.functional.avg_pool2d(features[1], 2))  # none of its own that small
