"""From source features, flows and occlusions to a picture: the occlusion-gated U-Net (MRFA section 3.3, Eq. 9-10), the
inpainting network (TPSM section 3.2, Fig. 3) and, from the warped source and its flow, the residual generator (S2D
Eq. 2).

Notebook: ``notebooks/08_occlusion_gated_unet.ipynb``.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.blocks import ConvBlock, DownBlock, ResidualBlock, UpBlock
from minimodel.warping import warp


class SourceEncoder(nn.Module):
    """What the generators share: the source's features at every scale.

    They are listed coarsest first, as the papers number them: f_1 has 1 / 2^``levels`` of the image's side, the last
    one is as large as the image. ``feature_channels`` are their widths in that order.
    """

    def __init__(self, *, base: int, levels: int, maximum: int, outer_kernel: int, norm: str):
        super().__init__()
        widths = [min(maximum, base * 2**level) for level in range(levels + 1)]
        self.first = ConvBlock(3, base, kernel=outer_kernel, norm=norm)
        self.down = nn.ModuleList(DownBlock(widths[i], widths[i + 1], norm=norm) for i in range(levels))
        self.feature_channels = widths[::-1]

    def encode(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """They don't depend on the driving frame."""
        features = [self.first(image)]
        for block in self.down:
            features.append(block(features[-1]))
        return features[::-1]


class GatedUNet(SourceEncoder):
    """At every scale the occlusion chooses between the warped source features and what rises from the scale below."""

    def __init__(self, *, base: int, levels: int, maximum: int, outer_kernel: int, norm: str):
        super().__init__(base=base, levels=levels, maximum=maximum, outer_kernel=outer_kernel, norm=norm)
        widths = self.feature_channels[::-1]
        self.residual = nn.ModuleList(ResidualBlock(widths[i + 1], norm=norm) for i in reversed(range(levels)))
        self.up = nn.ModuleList(UpBlock(widths[i + 1], widths[i], norm=norm) for i in reversed(range(levels)))
        self.last = nn.Conv2d(base, 3, outer_kernel, padding=outer_kernel // 2)

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


class InpaintingNetwork(SourceEncoder):
    """At every scale the occlusion removes what the source doesn't show from its warped features; they lie beside what
    rises from the scale below, and two residual blocks make up what is missing (TPSM Fig. 3)."""

    def __init__(self, *, base: int, levels: int, maximum: int, outer_kernel: int, norm: str):
        super().__init__(base=base, levels=levels, maximum=maximum, outer_kernel=outer_kernel, norm=norm)
        inputs = [self.feature_channels[0], *(2 * width for width in self.feature_channels[1:])]
        self.residual = nn.ModuleList(
            nn.Sequential(ResidualBlock(width, norm=norm), ResidualBlock(width, norm=norm)) for width in inputs[:-1]
        )
        widths = zip(inputs[:-1], self.feature_channels[1:], strict=True)
        self.up = nn.ModuleList(UpBlock(width, above, norm=norm) for width, above in widths)
        self.last = nn.Conv2d(inputs[-1], 3, outer_kernel, padding=outer_kernel // 2)

    def forward(
        self, features: list[Tensor], flows: list[Tensor], occlusions: list[Tensor]
    ) -> Float[Tensor, "b 3 height width"]:
        """``flows`` (normalised) and ``occlusions`` (logits) have the features' sizes, coarsest first."""
        seen = [warp(f, flow) * torch.sigmoid(o) for f, flow, o in zip(features, flows, occlusions, strict=True)]
        x = seen[0]
        for beside, residual, up in zip(seen[1:], self.residual, self.up, strict=True):
            x = torch.cat([up(residual(x)), beside], dim=1)
        return torch.sigmoid(self.last(x).float())


class ResidualGenerator(nn.Module):
    """Sees the warped source E and the flow F that warped it; paints R, and says by a mask M where to show it:
    T = E (1 - M) + R M (S2D Eq. 2).

    A convolution, ``levels`` times down, ``blocks`` residual blocks, up again, without skip connections: what is sharp
    comes from E. ``scales`` is the number of resolutions at which a refinement wants the source's features.
    """

    def __init__(self, *, base: int, levels: int, maximum: int, blocks: int, outer_kernel: int, norm: str, scales: int):
        super().__init__()
        widths = [min(maximum, base * 2**level) for level in range(levels + 1)]
        self.first = ConvBlock(5, base, kernel=outer_kernel, norm=norm)
        self.down = nn.ModuleList(DownBlock(widths[i], widths[i + 1], norm=norm) for i in range(levels))
        self.residual = nn.Sequential(*(ResidualBlock(widths[-1], norm=norm) for _ in range(blocks)))
        self.up = nn.ModuleList(UpBlock(widths[i + 1], widths[i], norm=norm) for i in reversed(range(levels)))
        self.last = nn.Conv2d(base, 4, outer_kernel, padding=outer_kernel // 2)
        self.feature_channels = ([widths[-1]] * scales + widths[::-1])[-scales:]
        self.scales = scales

    def encode(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Features of the source at rest, coarsest first; below the network's own resolutions they are averaged. Only
        refinement looks at them."""
        features = [self.first(torch.cat([image, torch.zeros_like(image[:, :2])], dim=1))]
        for block in self.down:
            features.append(block(features[-1]))
        while len(features) < self.scales:
            features.append(F.avg_pool2d(features[-1], 2))
        return features[: self.scales][::-1]

    def forward(
        self, warped_source: Float[Tensor, "b 3 h w"], flow: Float[Tensor, "b 2 h w"]
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
        """-> R in [0, 1] and the logits of M."""
        x = self.first(torch.cat([warped_source, flow], dim=1))
        for block in self.down:
            x = block(x)
        x = self.residual(x)
        for block in self.up:
            x = block(x)
        painted, mask = self.last(x).float().split((3, 1), dim=1)
        return torch.sigmoid(painted), mask
