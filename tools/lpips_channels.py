"""LPIPS's weights of channels as minimodel ships them: ``python tools/lpips_channels.py``.

The published files (Zhang et al. 2018, version 0.1) are copied, bit for bit, from torchmetrics into one safetensors
file, so that the package reads no private file of another package and unpickles nothing.
"""

from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import save

from minimodel.evaluation.lpips import CHANNELS
from minimodel.saving import make_metadata


def read_published(name: str) -> list[torch.Tensor]:
    """The five layers' weights of "alex" or "vgg", one number a channel, from torchmetrics' copy."""
    with resources.as_file(resources.files("torchmetrics") / f"functional/image/lpips_models/{name}.pth") as path:
        state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{index}.model.1.weight"].flatten() for index in range(5)]


if __name__ == "__main__":
    layers = {f"{name}.{index}": layer for name in ("alex", "vgg") for index, layer in enumerate(read_published(name))}
    Path(CHANNELS).write_bytes(save(layers, metadata=make_metadata("{}", kind="lpips")))
    print(f"{CHANNELS}: {sum(layer.numel() for layer in layers.values())} numbers")
