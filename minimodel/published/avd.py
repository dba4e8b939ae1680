"""TPSM's network for animation via disentanglement (TPSM section 3.4), as published."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.transfer import AvdNetwork


class PublishedAvdNetwork(AvdNetwork):
    """The published avd network: from the points of a source and of a driving frame, each as one row, it computes
    points with the source's shape and the driving frame's pose. Task and call are those of `transfer.AvdNetwork`. It is
    wider, has batch norms, and its decoder gives the points themselves."""

    def __init__(self, points: int, *, widths: list[int], shape_code: int, pose_code: int):
        nn.Module.__init__(self)  # the layers are others
        self.points, self.with_affine = points, False
        self.shape_encoder = _layers(2 * points, *widths, shape_code)
        self.pose_encoder = _layers(2 * points, *widths, pose_code)
        self.decoder = _layers(pose_code + shape_code, *widths[::-1], 2 * points)

    def forward(self, source: Float[Tensor, "b d"], driving: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Points (normalised positions of a corner grid, one row a frame) with the source's shape and the driving
        frame's pose."""
        return self.decoder(torch.cat([self.pose_encoder(driving), self.shape_encoder(source)], dim=1))


def _layers(*widths: int) -> nn.Sequential:
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-2])
