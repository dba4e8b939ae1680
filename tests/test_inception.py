import pytest
import torch
import torch.nn.functional as F

from minimodel.evaluation.inception import Inception


@pytest.fixture(scope="module")
def network():
    """With random weights that let something through."""
    torch.manual_seed(0)
    network = Inception().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.1, 0.3)
    return network.requires_grad_(False)


def test_it_is_as_large_as_torchvisions_without_its_classifiers(network):
    """Which has 27 161 264 parameters, 3 326 696 of them in the auxiliary classifier, 2 049 000 in the last layer."""
    assert sum(parameter.numel() for parameter in network.parameters()) == 27_161_264 - 3_326_696 - 2_049_000
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["Conv2d_4a_3x3.conv.weight"] == (192, 80, 3, 3)
    assert shapes["Mixed_5c.branch_pool.bn.running_var"] == (64,)
    assert shapes["Mixed_6c.branch7x7dbl_4.conv.weight"] == (160, 160, 7, 1)
    assert shapes["Mixed_7a.branch7x7x3_4.conv.weight"] == (192, 192, 3, 3)
    assert shapes["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)


def test_features_equal_those_of_a_network_written_line_by_line(network):
    weights = network.state_dict()

    def unit(x, name, stride=1, padding=0):
        x = F.conv2d(x, weights[f"{name}.conv.weight"], stride=stride, padding=padding)
        norm = (weights[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, *norm, eps=0.001))

    def average(x):
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def tall(x, name):
        one = unit(x, f"{name}.branch1x1")
        five = unit(unit(x, f"{name}.branch5x5_1"), f"{name}.branch5x5_2", padding=2)
        double = unit(unit(x, f"{name}.branch3x3dbl_1"), f"{name}.branch3x3dbl_2", padding=1)
        double = unit(double, f"{name}.branch3x3dbl_3", padding=1)
        return torch.cat([one, five, double, unit(average(x), f"{name}.branch_pool")], 1)

    def split(x, name):
        row, column = dict(padding=(0, 3)), dict(padding=(3, 0))
        one, seven, double = (unit(x, f"{name}.{path}") for path in ("branch1x1", "branch7x7_1", "branch7x7dbl_1"))
        seven = unit(unit(seven, f"{name}.branch7x7_2", **row), f"{name}.branch7x7_3", **column)
        double = unit(unit(double, f"{name}.branch7x7dbl_2", **column), f"{name}.branch7x7dbl_3", **row)
        double = unit(unit(double, f"{name}.branch7x7dbl_4", **column), f"{name}.branch7x7dbl_5", **row)
        return torch.cat([one, seven, double, unit(average(x), f"{name}.branch_pool")], 1)

    def wide(x, name, pool):
        row, column = dict(padding=(0, 1)), dict(padding=(1, 0))
        one, three = unit(x, f"{name}.branch1x1"), unit(x, f"{name}.branch3x3_1")
        double = unit(unit(x, f"{name}.branch3x3dbl_1"), f"{name}.branch3x3dbl_2", padding=1)
        three = [unit(three, f"{name}.branch3x3_2a", **row), unit(three, f"{name}.branch3x3_2b", **column)]
        double = [unit(double, f"{name}.branch3x3dbl_3a", **row), unit(double, f"{name}.branch3x3dbl_3b", **column)]
        return torch.cat([one, *three, *double, unit(pool(x), f"{name}.branch_pool")], 1)

    image = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(1))
    x = F.interpolate(image, (299, 299), mode="bilinear", align_corners=False) * 2 - 1
    x = unit(unit(x, "Conv2d_1a_3x3", stride=2), "Conv2d_2a_3x3")
    x = F.max_pool2d(unit(x, "Conv2d_2b_3x3", padding=1), 3, 2)
    x = F.max_pool2d(unit(unit(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, 2)
    x = tall(tall(tall(x, "Mixed_5b"), "Mixed_5c"), "Mixed_5d")
    double = unit(unit(x, "Mixed_6a.branch3x3dbl_1"), "Mixed_6a.branch3x3dbl_2", padding=1)
    double = unit(double, "Mixed_6a.branch3x3dbl_3", stride=2)
    x = torch.cat([unit(x, "Mixed_6a.branch3x3", stride=2), double, F.max_pool2d(x, 3, 2)], 1)
    x = split(split(split(split(x, "Mixed_6b"), "Mixed_6c"), "Mixed_6d"), "Mixed_6e")
    three = unit(unit(x, "Mixed_7a.branch3x3_1"), "Mixed_7a.branch3x3_2", stride=2)
    seven = unit(unit(x, "Mixed_7a.branch7x7x3_1"), "Mixed_7a.branch7x7x3_2", padding=(0, 3))
    seven = unit(unit(seven, "Mixed_7a.branch7x7x3_3", padding=(3, 0)), "Mixed_7a.branch7x7x3_4", stride=2)
    x = torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)
    x = wide(wide(x, "Mixed_7b", average), "Mixed_7c", lambda x: F.max_pool2d(x, 3, 1, 1))
    assert x.shape == (1, 2048, 8, 8) and (x > 0).float().mean() > 0.1
    found = network(image)
    assert found.shape == (1, 2048) and torch.allclose(found, x.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, network(image.flip(3)), rtol=0.01)
