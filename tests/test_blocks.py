import pytest
import torch

from minimodel.blocks import DownBlock, Hourglass, ResidualBlock, UpBlock, normalisation


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
