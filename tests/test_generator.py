import torch

from minimodel.generator import GatedUNet
from minimodel.warping import warp

SIZES = [(4, 4), (8, 8), (16, 16)]


def setup():
    torch.manual_seed(0)
    generator = GatedUNet(base=8, levels=2, maximum=16, outer_kernel=3, norm="group")
    features = generator.encode(torch.rand(2, 3, 16, 16))
    flows = [0.1 * torch.randn(2, 2, *size) for size in SIZES]
    return generator, features, flows


def full(value):
    return [torch.full((2, 1, *size), value) for size in SIZES]


def test_features_are_listed_coarsest_first():
    generator, features, _ = setup()
    assert [tuple(f.shape[-2:]) for f in features] == SIZES
    assert [f.shape[1] for f in features] == generator.feature_channels == [16, 16, 8]


def test_all_visible_means_the_finest_warped_features_alone():
    """Eq. 10 with O = 1 at the last scale: nothing that was generated below comes through."""
    generator, features, flows = setup()
    made = generator(features, flows, full(100.0))
    expected = torch.sigmoid(generator.last(warp(features[-1], flows[-1])))
    assert torch.allclose(made, expected, atol=1e-6)


def test_all_hidden_means_no_warped_features_at_all():
    generator, features, flows = setup()
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
