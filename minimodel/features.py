"""Frozen networks whose features the losses compare: VGG-19, and a small one trained on this project's rendered faces.

Notebook: ``notebooks/09a_what_a_loss_sees.ipynb``.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from minimodel.errors import MinimodelError
from minimodel.keypoints import soft_argmax
from minimodel.saving import WEIGHTS
from minimodel.warping import resize_flow

Network = TypeVar("Network", bound=nn.Module)
VGG19_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"


class _VGG(nn.Module):
    """Five blocks of 3 x 3 convolutions with pooling between them; each block gives one list entry of features.

    Module names equal torchvision's, so its weights load by name. ``layers`` is the number of first entries to compute.
    """

    depths: tuple[int, ...]  # convolutions in each block
    read: int  # the index of the ReLU of each block that is returned
    source: str  # the name of the loaded weights, for tables; set by `load_features`
    mean: Tensor
    std: Tensor

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential()
        channels, index, self.taps = 3, 0, []
        for block, (width, depth) in enumerate(zip((64, 128, 256, 512, 512), self.depths)):
            for convolution in range(depth):
                self.features.add_module(str(index), nn.Conv2d(channels, width, 3, padding=1))
                self.features.add_module(str(index + 1), nn.ReLU())
                channels, index = width, index + 2
                if convolution == range(depth)[self.read]:
                    self.taps.append(str(index - 1))
            if block < 4:
                self.features.add_module(str(index), nn.MaxPool2d(2))
                index += 1
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def forward(self, image: Float[Tensor, "b 3 h w"], layers: int = 5) -> list[Tensor]:
        x, taken = (image - self.mean) / self.std, []
        for name, layer in self.features.named_children():
            x = layer(x)
            if name in self.taps:
                taken.append(x)
            if len(taken) == layers:  # what lies deeper isn't computed
                break
        return taken


class VGG19(_VGG):
    """The first thirteen convolutions of VGG-19, read after the first ReLU of each block, as the papers' loss does."""

    depths, read = (2, 2, 4, 4, 1), 0


class FaceFeatures(nn.Module):
    """Four blocks of plain convolutions, trained to parse the rendered faces and to find their landmarks.

    Such features depend on parts and edges but little on colour. Therefore the picture itself is returned as the first
    feature, times ``picture``. Each other feature is divided by its mean size over training faces (``scale``), so that
    all features count about alike in a loss. ``layers`` is the number of first features to compute.
    """

    source: str  # the name of the loaded weights, for tables; set by `load_features`
    scale: Tensor
    widths = (24, 48, 96, 128)
    picture = 10.0

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList()
        inputs = 3
        for width in self.widths:
            self.blocks.append(
                nn.Sequential(
                    nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
                )
            )
            inputs = width
        self.register_buffer("scale", torch.ones(len(self.widths)))

    def forward(self, image: Float[Tensor, "b 3 h w"], layers: int = 5) -> list[Tensor]:
        x, taken = 2 * image - 1, [self.picture * image]
        for block, scale in zip(self.blocks[: layers - 1], self.scale):
            x = block(x if len(taken) == 1 else F.avg_pool2d(x, 2))
            taken.append(x / scale)
        return taken


class FaceTasks(nn.Module):
    """Predicts a parsing map and 74 landmarks, the tasks that train `FaceFeatures`.

    Both come from the sum of all blocks at half the image's resolution. Only the features are kept afterwards.
    """

    def __init__(self, features: FaceFeatures, parts: int, landmarks: int = 74, *, width: int = 48):
        super().__init__()
        self.features = features
        self.laterals = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in features.widths)
        self.parsing = nn.Conv2d(width, parts, 3, padding=1)
        self.heatmaps = nn.Conv2d(width, landmarks, 3, padding=1)

    def forward(
        self, image: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b parts h//2 w//2"], Float[Tensor, "b landmarks 2"]]:
        """The parsing logits and the normalised landmarks of a picture."""
        half = image.shape[-2] // 2, image.shape[-1] // 2
        blocks = zip(self.laterals, self.features(image)[1:], strict=True)
        resized = (resize_flow(lateral(features), half) for lateral, features in blocks)
        x = F.relu(sum(resized, start=image.new_zeros(())))
        return self.parsing(x), soft_argmax(self.heatmaps(x))[0]


def _published(url: str) -> dict[str, Tensor]:
    """Download published weights, and keep the file for the next time; its name holds the start of its checksum."""
    return torch.hub.load_state_dict_from_url(url, check_hash=True, map_location="cpu", weights_only=True)


def _read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read weights from a file, of which nothing but tensors is unpickled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's warnings about a file that isn't its own are followed by an error
        return torch.load(path, map_location="cpu", weights_only=True)


@dataclass(frozen=True)
class _Published(Generic[Network]):
    """A network whose weights somebody else trained."""

    network: type[Network]
    whose: str
    url: str


def _load(choices: dict[str, _Published[Network]], weights: str) -> tuple[str, Network]:
    """Load a network, frozen, with its name: the choice that ``weights`` names, or the one that fits the file.

    A named choice gets its published weights; weights that can't be had raise an OSError. A file that fits no choice
    raises a `MinimodelError`.
    """
    failed: Exception | None = None
    for name in [weights] if weights in choices else choices:
        network = choices[name].network()
        try:
            state = _published(choices[name].url) if weights == name else _read_weights(weights)
            network.load_state_dict({key: state[key] for key in network.state_dict()})
            return name, network.eval().requires_grad_(False)
        except Exception as error:  # torch raises many kinds
            failed = error
    if weights in choices:
        raise OSError(str(failed)) from failed
    raise MinimodelError(f"{weights}: not a file with {_whose(choices)} weights ({type(failed).__name__})") from failed


def _whose(choices: dict[str, _Published]) -> str:
    return " or ".join(choice.whose for choice in choices.values())


def _needed(choices: dict[str, _Published[Network]], weights: str, *, measure: str) -> tuple[str, Network]:
    """Run `_load` for a ``measure`` that can't use another network; anything missing raises a `MinimodelError`."""
    if weights not in choices and not Path(weights).is_file():
        names = ", ".join(repr(name) for name in choices)
        raise MinimodelError(f"{measure} {weights!r}: expected {names} or a file with {_whose(choices)} weights")
    try:
        return _load(choices, weights)
    except OSError as error:
        choice = choices[weights]
        raise MinimodelError(
            f"{measure} needs {choice.whose} weights, which can't be had ({error}): {choice.url}"
        ) from error


def load_features(name: str = "faces") -> FaceFeatures | VGG19:
    """Load frozen features by name; ``.source`` of the result is the name of the weights that were loaded.

    "faces" are the shipped features. "vgg19" downloads torchvision's weights once (checksummed), or falls back to
    "faces" with a warning where the weights can't be had. Anything else is the path of a file with torchvision's VGG-19
    weights; a file of anything else raises a `MinimodelError`.

    >>> layers = load_features("faces")(pictures)  # (b, 3, h, w) in [0, 1] -> a list of (b, c, h_l, w_l)
    """
    network: FaceFeatures | VGG19
    if name == "faces":
        network = FaceFeatures()
        network.load_state_dict(load_file(WEIGHTS / "features.safetensors"))
    else:
        if name != "vgg19" and not Path(name).is_file():
            raise MinimodelError(f"features {name!r}: expected 'faces', 'vgg19' or a file with VGG-19 weights")
        try:
            _, network = _load({"vgg19": _Published(VGG19, "VGG-19's", VGG19_URL)}, name)
        except OSError as error:
            warnings.warn(f"no VGG-19 weights ({error}): the shipped face features are used instead", stacklevel=2)
            return load_features("faces")
    network.source = name
    return network.eval().requires_grad_(False)
