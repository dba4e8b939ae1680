import pytest
import torch

from minimodel.blocks import DownBlock, Hourglass, ResidualBlock, ResNet, UpBlock, normalisation


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_hourglass_keeps_the_resolution_and_the_input(norm):
    hourglass = Hourglass(5, base=8, levels=3, maximum=24, norm=norm)
    x = torch.randn(2, 5, 16, 24)
    features = hourglass(x)
    assert features.shape == (2, hourglass.channels, 16, 24) and hourglass.channels == 13
    assert torch.equal(features[:, 8:], x)  # the last skip connection is the input itself


def test_hourglass_sees_nearly_its_whole_input():
    torch.manual_seed(0)
    hourglass = Hourglass(1, base=8, levels=3, maximum=32, norm="batch").eval()
    x = torch.randn(1, 1, 16, 16, requires_grad=True)
    hourglass(x)[0, :8, 0, 0].sum().backward()
    assert (x.grad != 0).float().mean() > 0.8


def test_blocks_change_resolution_as_they_say():
    x = torch.randn(1, 8, 6, 6)
    assert DownBlock(8, 4, norm="group")(x).shape == (1, 4, 3, 3)
    assert UpBlock(8, 4, norm="group")(x).shape == (1, 4, 12, 12)
    assert ResidualBlock(8, norm="group")(x).shape == x.shape


def test_group_normalisation_does_not_look_at_the_batch():
    layer = normalisation("group", 16)
    x = torch.randn(4, 16, 5, 5)
    assert torch.allclose(layer(x)[:1], layer(x[:1]), atol=1e-6)
    with pytest.raises(ValueError, match="layer"):
        normalisation("layer", 16)


def test_hourglass_shows_what_rises_at_every_level():
    hourglass = Hourglass(5, base=8, levels=3, maximum=24, norm="group")
    risen = hourglass.scales(torch.randn(2, 5, 16, 24))
    assert [tuple(x.shape[1:]) for x in risen] == [(24 + 24, 4, 6), (16 + 16, 8, 12), (8 + 5, 16, 24)]
    assert hourglass.scale_channels == [48, 32, 13]


def test_the_published_sizes_are_resnet_18():
    """Its known number of parameters, with a head for 1000 classes, and its known resolutions."""
    with torch.device("meta"):
        network = ResNet(3, 1000, base=64, levels=4, blocks=2, pool=True, norm="batch")
        x = network.stem(torch.rand(1, 3, 224, 224))
        sizes = [tuple((x := level(x)).shape[1:]) for level in network.levels]
    assert sum(p.numel() for p in network.parameters()) == 11_689_512
    assert sizes == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]


@pytest.mark.parametrize("pool", [False, True])
def test_a_residual_network_says_numbers_in_full_precision_for_any_size(pool):
    network = ResNet(3, 7, base=8, levels=3, blocks=1, pool=pool, norm="group")
    for size in ((32, 32), (40, 24)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            numbers = network(torch.rand(2, 3, *size))
        assert numbers.shape == (2, 7) and numbers.dtype == torch.float32
