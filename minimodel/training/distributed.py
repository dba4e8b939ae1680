"""What several processes share while they train: the statistics of BatchNorm."""

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce

from minimodel.runtime import Module


def share_statistics(model: Module, device: torch.device) -> Module:
    """Make every BatchNorm take its statistics from the batches of all processes. PyTorch's own layer for that works on
    GPUs only; elsewhere it is `SharedBatchNorm`. The model is changed in place and returned."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, but for a model that is nothing but a BatchNorm
        return model
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SharedBatchNorm
    return model


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm with mean and variance of the batches of all processes. These batches must have one size. Under
    autocast the statistics are taken in float32, as in PyTorch's own layer."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalise a batch, by shared statistics in training mode and by the running ones otherwise."""
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.shared(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)

    def shared(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalise a batch by the statistics of all processes, and update the running ones."""
        assert self.running_mean is not None and self.running_var is not None, "BatchNorm2d keeps running statistics"
        assert self.num_batches_tracked is not None and self.momentum is not None
        processes = distributed.get_world_size()
        mean = all_reduce(x.mean((0, 2, 3))) / processes
        centred = x - mean[:, None, None]
        variance = all_reduce(centred.square().mean((0, 2, 3))) / processes
        with torch.no_grad():
            count = processes * x.numel() / x.shape[1]
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return centred * scale[:, None, None] + self.bias[:, None, None]
