"""The machine: which device computes, what its memory allocator keeps, and the layout and precision in which models
render and are trained."""

import ctypes
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeVar

import torch
from torch import nn

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["float32", "bfloat16"]
Module = TypeVar("Module", bound=nn.Module)


def pick_device(name: Device = "auto") -> torch.device:
    """The device of this name; "auto" is CUDA if available, else Apple's MPS, else the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies numbers in bfloat16 itself (on CPUs by AMX or AVX512-BF16), rather than emulating
    it, which is slow."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def pick_precision(name: Literal[Precision, "auto"], device: torch.device) -> Precision:
    """The precision of this name; "auto" is bfloat16 on a device that `multiplies_bfloat16`, else float32."""
    if name != "auto":
        return name
    return "bfloat16" if multiplies_bfloat16(device) else "float32"


def in_precision(precision: Precision, device: torch.device) -> AbstractContextManager:
    """Context in which convolutions and matrix products of networks have this precision.

    Positions (points, flows, grids) stay in float32 in either, see `warping.full_precision`. With "float32" whatever
    autocast the caller is in stays as it is.
    """
    return nullcontext() if precision == "float32" else torch.autocast(device.type, torch.bfloat16)


def ready_to_render(model: Module, device: torch.device | str | None = None) -> Module:
    """Bring a model to evaluation mode, to ``device`` and to `channels_last`.

    Convolutions of this size are quickest in this layout, by 6 to 15 %.
    """
    return channels_last(model.eval(), device)


def channels_last(model: Module, device: torch.device | str | None = None) -> Module:
    """Bring a model to ``device``, with the channels of a pixel side by side in memory."""
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it


class OnDevice(nn.Module):
    """A network that is called with a tensor of the CPU, computes on another device, and returns tensors of the CPU."""

    def __init__(self, network: nn.Module, device: torch.device):
        super().__init__()
        self.network, self.device = network.to(device), device

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(value.cpu() for value in self.network(image.to(self.device)))


def on_device(network: nn.Module, device: torch.device) -> nn.Module:
    """The network as `OnDevice`; on a CPU the network itself."""
    return network if device.type == "cpu" else OnDevice(network, device)


def keep_freed_memory() -> None:
    """Make glibc keep memory that torch frees.

    Otherwise the pages of large tensors go back to the kernel after each operation, and the kernel clears the pages for
    the next one: a tenth of a CPU's time in training, a fifth in rendering. The allocators of other systems are left as
    they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return
    if not mallopt(-3, 2**30):  # M_MMAP_THRESHOLD: larger ones than this still go straight back
        mallopt(-3, 2**25)  # all that older versions of glibc take
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
