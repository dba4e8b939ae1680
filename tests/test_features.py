import pickle
import warnings
from itertools import pairwise
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from minimodel.data import synthetic
from minimodel.evaluation import metrics
from minimodel.evaluation.inception import Inception, load_inception
from minimodel.evaluation.lpips import CHANNELS, VGG16, AlexNet, load_lpips
from minimodel.features import VGG19, FaceFeatures, FaceTasks, load_features
from tools.lpips_channels import read_published


@pytest.fixture(scope="module")
def vgg():
    torch.manual_seed(0)
    return VGG19().eval()


@pytest.mark.parametrize("kind", [VGG19, FaceFeatures])
def test_the_first_layers_are_those_of_all_and_nothing_deeper_is_computed(kind):
    torch.manual_seed(0)
    network, image, calls = kind().eval(), torch.rand(1, 3, 32, 32), []
    every = network(image)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda *_: calls.append(None))
    for layers, convolutions in zip((1, 3, 5), (1, 5, 13) if kind is VGG19 else (0, 4, 8), strict=True):
        calls.clear()
        first = network(image, layers)
        assert len(first) == layers and len(calls) == convolutions
        assert all(torch.equal(a, b) for a, b in zip(first, every, strict=False))


def test_vgg19_has_the_names_and_shapes_of_torchvision(vgg):
    shapes = {name: tuple(value.shape) for name, value in vgg.state_dict().items()}
    numbers = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28)
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512)
    expected = {}
    for number, (inputs, outputs) in zip(numbers, pairwise(widths)):
        expected |= {f"features.{number}.weight": (outputs, inputs, 3, 3), f"features.{number}.bias": (outputs,)}
    assert shapes == expected


@torch.no_grad()
def test_vgg19_is_read_after_the_first_relu_of_each_block(vgg):
    image = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    x = torch.stack([(image[:, c] - mean) / std for c, (mean, std) in enumerate(MEANS_AND_DEVIATIONS)], dim=1)
    expected = []
    for number, layer in enumerate(vgg.features):
        x = layer(x)
        if number in (1, 6, 11, 20, 29):  # relu1_1, relu2_1, relu3_1, relu4_1, relu5_1
            expected.append(x)
    taken = vgg(image)
    assert [tuple(layer.shape[1:]) for layer in taken] == [
        (64, 32, 48),
        (128, 16, 24),
        (256, 8, 12),
        (512, 4, 6),
        (512, 2, 3),
    ]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(taken, expected, strict=True))
    assert all(layer.min() == 0 for layer in taken)


MEANS_AND_DEVIATIONS = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))  # of ImageNet's red, green and blue


def test_vgg19_from_a_file(vgg, tmp_path):
    path = tmp_path / "vgg19.pth"
    torch.save(vgg.state_dict() | {"classifier.0.bias": torch.zeros(4096)}, path)
    loaded = load_features(str(path))
    assert loaded.source == str(path) and not loaded.training
    assert all(torch.equal(value, vgg.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_without_a_network_the_shipped_features_stand_in_and_say_so(monkeypatch):
    def offline(url, **options):
        assert options["check_hash"] and options["weights_only"]
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.warns(UserWarning, match="no VGG-19 weights .*no network.* shipped face features are used") as caught:
        loaded = load_features("vgg19")
    assert isinstance(loaded, FaceFeatures) and loaded.source == "faces" and len(caught) == 1


def test_vgg19_by_name_is_what_was_downloaded(vgg, monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **options: vgg.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_features("vgg19")
    assert isinstance(loaded, VGG19) and loaded.source == "vgg19"
    assert torch.equal(loaded.features[28].weight, vgg.features[28].weight)


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="features 'vgg': expected 'faces', 'vgg19' or a file with VGG-19 weights"):
        load_features("vgg")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def files_that_are_none(tmp_path):
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Malicious(tmp_path / "executed")))
    torch.save({"other": torch.zeros(1)}, tmp_path / "foreign.pth")
    whole = (tmp_path / "foreign.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    return [tmp_path / f"{name}.pth" for name in ("text", "pickle", "foreign", "cut")]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:no VGG-19 weights")
def test_nothing_is_executed_from_a_file(tmp_path):
    for path in files_that_are_none(tmp_path):
        try:
            load_features(str(path))
        except Exception:
            continue
    assert not (tmp_path / "executed").exists()
    pickle.loads((tmp_path / "pickle.pth").read_bytes())  # the trap works
    assert (tmp_path / "executed").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:no VGG-19 weights")
@pytest.mark.parametrize("number", range(4))
def test_a_file_without_vgg19_is_refused_in_one_line(tmp_path, number):
    path = files_that_are_none(tmp_path)[number]
    with pytest.raises(ValueError, match=str(path)) as caught:
        load_features(str(path))
    assert "\n" not in str(caught.value)


def test_the_shipped_features_are_frozen_and_all_layers_count_alike():
    features = load_features()
    assert features.source == "faces" and not features.training
    assert not any(parameter.requires_grad for parameter in features.parameters())
    faces = synthetic.render(synthetic.Faces.sample(16, 5), 64)
    image, *layers = features(faces)
    assert torch.equal(image, features.picture * faces)  # colour is what the other layers see least
    assert [tuple(layer.shape[1:]) for layer in layers] == [(24, 64, 64), (48, 32, 32), (96, 16, 16), (128, 8, 8)]
    assert all(0.7 < float(layer.mean()) < 1.4 for layer in layers)
    # They know more of a face than random ones: moving it matters more than making it darker.
    moved, darker = faces.roll(4, -1), faces * 0.9
    apart = [sum(float((a - b).abs().mean()) for a, b in zip(layers, features(x)[1:])) for x in (moved, darker)]
    assert apart[0] > 2 * apart[1]


def test_a_gradient_reaches_the_picture():
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    sum(layer.mean() for layer in load_features()(image)[1:]).backward()
    assert image.grad.abs().sum() > 0


def test_what_the_features_are_trained_by():
    torch.manual_seed(0)
    tasks = FaceTasks(FaceFeatures(), parts=len(synthetic.PARTS))
    image = torch.rand(2, 3, 32, 32, requires_grad=True)
    parsing, points = tasks(image)
    assert parsing.shape == (2, len(synthetic.PARTS), 16, 16) and points.shape == (2, 74, 2)
    assert points.abs().max() <= 1
    (parsing.square().mean() + points.square().mean()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in tasks.features.parameters())


def test_alexnet_has_the_names_and_shapes_of_torchvision():
    assert {name: tuple(value.shape) for name, value in AlexNet().state_dict().items() if "weight" in name} == {
        "features.0.weight": (64, 3, 11, 11),
        "features.3.weight": (192, 64, 5, 5),
        "features.6.weight": (384, 192, 3, 3),
        "features.8.weight": (256, 384, 3, 3),
        "features.10.weight": (256, 256, 3, 3),
    }


def test_vgg16_has_the_names_and_shapes_of_torchvision():
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    assert {name: tuple(value.shape) for name, value in VGG16().state_dict().items() if "weight" in name} == {
        f"features.{number}.weight": (outputs, inputs, 3, 3)
        for number, (inputs, outputs) in zip(numbers, pairwise(widths), strict=True)
    }


@pytest.mark.parametrize(("network", "kind"), [(AlexNet, "alex"), (VGG16, "vgg")])
@torch.no_grad()
def test_lpips_equals_torchmetrics(network, kind, tmp_path, monkeypatch):
    """Whose networks are torchvision's: it gets ours instead, of the same layers, and has its own scaling, weights of
    channels, formula and, of VGG-16, layers to read. Which network a file is of is seen from the file."""
    torch.manual_seed(0)
    network = network()
    torch.save(network.state_dict() | {"classifier.1.bias": torch.zeros(4096)}, tmp_path / "published.pth")
    monkeypatch.setattr(torchmetrics_lpips, "_get_tv_model_features", lambda *a: network.features)
    reference = torchmetrics_lpips._LPIPS(pretrained=True, net=kind, pnet_rand=True).eval()
    made, wanted = torch.rand(2, 3, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    expected = reference(2 * made - 1, 2 * wanted - 1).flatten().tolist()
    loaded, features, weights = load_lpips(str(tmp_path / "published.pth"))
    assert loaded == kind and not any(parameter.requires_grad for parameter in features.parameters())
    assert metrics.lpips(features, weights, made, wanted).tolist() == pytest.approx(expected, rel=1e-3)
    assert min(expected) > 0.01


def test_the_channels_of_lpips_are_the_published_ones_bit_for_bit():
    shipped = load_file(CHANNELS)
    published = {f"{kind}.{i}": layer for kind in ("alex", "vgg") for i, layer in enumerate(read_published(kind))}
    assert shipped.keys() == published.keys()
    assert all(torch.equal(shipped[name], layer) and layer.dtype == torch.float32 for name, layer in published.items())
    assert "Zhang" in (CHANNELS.parent / "LICENSE-lpips").read_text()  # who asks that the notice goes with the numbers


@pytest.mark.parametrize(
    ("load", "whose", "file"),
    [(load_lpips, "LPIPS needs AlexNet's", "alexnet-owt-7be5be79.pth"),
     (load_inception, "FID needs Inception's", "pt_inception-2015-12-05-6726825d.pth")],
)  # fmt: skip
def test_a_measure_without_its_network_says_so_in_one_line(load, whose, file, monkeypatch):
    def offline(url, **options):
        assert options["check_hash"] and options["weights_only"] and url.endswith(f"/{file}")
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(ValueError, match=rf"{whose} weights, which can't be had .*no network") as caught:
        load()
    assert "\n" not in str(caught.value)
    measure, _, network = whose.split()
    with pytest.raises(ValueError, match=rf"{measure} 'vgg19': expected '.* or a file with .*{network}.* weights"):
        load("vgg19")


def test_pictures_too_small_for_alexnet_are_refused_in_one_line():
    assert AlexNet()(torch.rand(1, 3, 31, 40))[-1].shape[2:] == (1, 1)
    with pytest.raises(ValueError, match="pictures of 30 x 40 pixels: AlexNet needs sides of at least 31"):
        AlexNet()(torch.rand(1, 3, 30, 40))


@pytest.mark.parametrize(
    ("network", "kind", "file"), [(AlexNet, "alex", "alexnet-owt-7be5be79.pth"), (VGG16, "vgg", "vgg16-397923af.pth")]
)
def test_lpips_by_name_is_what_was_downloaded(network, kind, file, monkeypatch):
    published = network().state_dict()
    asked = []
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **options: asked.append(url) or published)
    loaded, features, _ = load_lpips(kind)
    assert loaded == kind and [Path(url).name for url in asked] == [file]
    assert torch.equal(features.features[10].weight, published["features.10.weight"])


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("number", range(4))
def test_a_file_without_a_network_of_lpips_is_refused_in_one_line(tmp_path, number):
    path = files_that_are_none(tmp_path)[number]
    with pytest.raises(ValueError, match=f"{path}: not a file with AlexNet's or VGG-16's weights") as caught:
        load_lpips(str(path))
    assert "\n" not in str(caught.value) and not (tmp_path / "executed").exists()


def test_inception_comes_by_name_or_from_a_file(tmp_path, monkeypatch):
    torch.save(AlexNet().state_dict(), tmp_path / "alexnet.pth")
    with pytest.raises(ValueError, match=r"alexnet.pth: not a file with Inception's weights"):
        load_inception(str(tmp_path / "alexnet.pth"))
    # The published file has a last layer as well, which isn't asked.
    published = Inception().state_dict() | {"fc.bias": torch.zeros(1008)}
    torch.save(published, tmp_path / "inception.pth")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **options: published)
    for network in (load_inception(), load_inception(str(tmp_path / "inception.pth"))):
        state = network.state_dict()
        assert all(torch.equal(value, published[name]) for name, value in state.items())
        assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())


def test_face_features_by_hand():
    features, image = load_features(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        x, taken = 2 * image - 1, features(image)
        for number, block in enumerate(features.blocks):
            x = block(F.avg_pool2d(x, 2) if number else x)
            assert torch.allclose(taken[1 + number], x / features.scale[number], atol=1e-5)
