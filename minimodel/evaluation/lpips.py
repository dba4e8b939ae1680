"""LPIPS by its published networks.

Notebook: ``notebooks/09b_what_a_table_hides.ipynb``."""

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from minimodel.errors import MinimodelError
from minimodel.features import _VGG, _needed, _Published
from minimodel.saving import WEIGHTS

CHANNELS = WEIGHTS / "lpips.safetensors"  # the published weights of channels; tools/lpips_channels.py wrote them
VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
ALEXNET_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"


class VGG16(_VGG):
    """The thirteen convolutions of VGG-16; the features are those after the last ReLU of each block, as in LPIPS."""

    depths, read = (2, 2, 3, 3, 3), -1


class AlexNet(nn.Module):
    """The five convolutions of AlexNet; the features are those after each ReLU, as in LPIPS.

    Module names equal torchvision's, so its weights load by name.
    """

    mean: Tensor
    std: Tensor

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
        )
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """The five layers' features. Raises `MinimodelError` for pictures with a side under 31 pixels."""
        height, width = image.shape[-2:]
        if min(height, width) < 31:
            raise MinimodelError(f"pictures of {height} x {width} pixels: AlexNet needs sides of at least 31")
        x, taken = (image - self.mean) / self.std, []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                taken.append(x)
        return taken


def load_lpips(name: str = "alex") -> tuple[str, nn.Module, list[Tensor]]:
    """Load the networks for `minimodel.evaluation.metrics.lpips`: the kind ("alex" or "vgg"), the published network,
    frozen, and the weights of its channels.

    "alex" and "vgg" download torchvision's AlexNet (233 MB) or VGG-16 (528 MB) once, checksummed; any other name is the
    path of a file with either. The weights of the channels (Zhang et al. 2018, version 0.1) are shipped.
    """
    choices: dict[str, _Published[nn.Module]] = {
        "alex": _Published(AlexNet, "AlexNet's", ALEXNET_URL),
        "vgg": _Published(VGG16, "VGG-16's", VGG16_URL),
    }
    name, network = _needed(choices, name, measure="LPIPS")
    channels = load_file(CHANNELS)
    return name, network, [channels[f"{name}.{index}"] for index in range(5)]
