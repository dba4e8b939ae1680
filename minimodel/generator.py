"""From source features, flows and occlusions to a picture: the occlusion-gated U-Net (MRFA section 3.3, Eq. 9-10).

Notebook: ``notebooks/08_occlusion_gated_unet.ipynb``.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.blocks import ConvBlock, DownBlock, ResidualBlock, UpBlock
from minimodel.warping import warp


class GatedUNet(nn.Module):
    """At every scale the occlusion chooses between the warped source features and what rises from the scale below.

    Features are listed coarsest first, as the paper numbers them: f_1 has 1 / 2^``levels`` of the image's side, the
    last one is as large as the image.
    """

    def __init__(self, *, base: int, levels: int, maximum: int, outer_kernel: int, norm: str):
        super().__init__()
        widths = [min(maximum, base * 2**level) for level in range(levels + 1)]
        self.first = ConvBlock(3, base, kernel=outer_kernel, norm=norm)
        self.down = nn.ModuleList(DownBlock(widths[i], widths[i + 1], norm=norm) for i in range(levels))
        self.residual = nn.ModuleList(ResidualBlock(widths[i + 1], norm=norm) for i in reversed(range(levels)))
        self.up = nn.ModuleList(UpBlock(widths[i + 1], widths[i], norm=norm) for i in reversed(range(levels)))
        self.last = nn.Conv2d(base, 3, outer_kernel, padding=outer_kernel // 2)
        self.feature_channels = widths[::-1]

    def encode(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """The source's features, coarsest first; they don't depend on the driving frame."""
        features = [self.first(image)]
        for block in self.down:
            features.append(block(features[-1]))
        return features[::-1]

    def forward(
        self, features: list[Tensor], flows: list[Tensor], occlusions: list[Tensor]
    ) -> Float[Tensor, "b 3 height width"]:
        """Eq. 9-10; ``flows`` (normalised) and ``occlusions`` (logits) have the features' sizes, coarsest first."""
        x = warp(features[0], flows[0]) * torch.sigmoid(occlusions[0])
        for feature, flow, occlusion, residual, up in zip(
            features[1:], flows[1:], occlusions[1:], self.residual, self.up, strict=True
        ):
            visible = torch.sigmoid(occlusion)
            x = warp(feature, flow) * visible + up(residual(x)) * (1 - visible)
        return torch.sigmoid(self.last(x).float())
