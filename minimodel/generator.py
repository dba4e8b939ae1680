"""From source features, flows and occlusions to a picture: the occlusion-gated U-Net (MRFA section 3.3, Eq. 9-10), the
inpainting network (TPSM section 3.2, Fig. 3) and, from the warped source and its flow, the residual generator (S2D
Eq. 2).

Notebook: ``notebooks/08_occlusion_gated_unet.ipynb``.
"""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.blocks import ConvBlock, DownBlock, ResidualBlock, UpBlock
from minimodel.losses import Discriminator, warp_loss
from minimodel.motion import SourceState, Stages, TrainingPair
from minimodel.warping import resize_flow, size_of, warp

Painting = tuple[Tensor, Tensor | None]


@runtime_checkable
class Generator(Protocol):
    """What `AnimationModel` asks of a generator. Any ``nn.Module`` with these members can be one.

    ``scales``: how many resolutions of flows and occlusions it wants: the picture's, half of it, a quarter, ...
    ``feature_channels``: channels of what `encode` gives at those resolutions, coarsest first.
    ``step``: both sides of a picture must be multiples of it.
    ``uses_features``: whether `paint` reads ``source.features``; refinement reads them in any case.
    ``loss_uses_features``: whether `loss_terms` does, also in steps that train motion alone.
    ``gated``: whether the stages' occlusions are all its gates, so that it can learn behind others, known to be right.
    """

    scales: int
    feature_channels: list[int]
    step: int
    uses_features: bool = True
    loss_uses_features: bool = False
    gated: bool = True

    def encode(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Features of the source, coarsest first; computed once a source."""
        ...

    def paint(self, source: SourceState, stages: Stages) -> Painting:
        """-> a picture (b, 3, h, w) in [0, 1], and occlusion logits (b, 1, h, w): where they are high the warped source
        is shown instead. Without them (None) the picture is shown as it is."""
        ...

    def loss_terms(self, pair: TrainingPair) -> dict[str, Tensor]:
        """Terms of its own for the loss, by the names of their weights in `minimodel.training.objective.LossWeights`;
        none by default."""
        return {}

    def make_discriminator(self) -> nn.Module | None:
        """A network that learns to tell its pictures from real ones, to be trained beside it; none by default."""
        return None

    def timed_modules(self) -> dict[str, list[nn.Module]]:
        """Modules of `encode` whose time a benchmark tells apart, by stage; none lies inside another."""
        return {}


class SourceEncoder(nn.Module, Generator):
    """What the generators share: the source's features at every scale.

    They are listed coarsest first, as the papers number them: f_1 has 1 / 2^``levels`` of the image's side, the last
    one is as large as the image. ``feature_channels`` are their widths in that order.
    """

    def __init__(self, *, base: int, levels: int, maximum: int, outer_kernel: int, norm: str):
        super().__init__()
        self.scales, self.step = levels + 1, 2**levels
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

    def timed_modules(self) -> dict[str, list[nn.Module]]:
        return {"source features": [self.first, *self.down]}


class GatedUNet(SourceEncoder):
    """At every scale the occlusion chooses between the warped source features and what rises from the scale below.

    With ``blend`` the finest occlusion chooses once more, between the warped source itself and what was painted. The
    paper doesn't have this step, its published code does. Without it the first hours of training give blurred faces on
    blurred backgrounds.

    With ``coarse_stream`` the decoder also sees, at every scale, the source's features as the coarse flow warps them: a
    1x1 convolution joins them to what the scale has made. MRFA's published code has such a stream where it refines and
    none where it doesn't, so its Table 3 compares two generators. The joint starts as the identity.
    """

    def __init__(
        self,
        *,
        base: int,
        levels: int,
        maximum: int,
        outer_kernel: int,
        norm: str,
        blend: bool = True,
        coarse_stream: bool = False,
    ):
        super().__init__(base=base, levels=levels, maximum=maximum, outer_kernel=outer_kernel, norm=norm)
        self.blend = blend
        widths = self.feature_channels[::-1]
        self.residual = nn.ModuleList(ResidualBlock(widths[i + 1], norm=norm) for i in reversed(range(levels)))
        self.up = nn.ModuleList(UpBlock(widths[i + 1], widths[i], norm=norm) for i in reversed(range(levels)))
        self.last = nn.Conv2d(base, 3, outer_kernel, padding=outer_kernel // 2)
        self.joints = nn.ModuleList(_joint(width) for width in self.feature_channels) if coarse_stream else None

    def forward(
        self,
        features: list[Tensor],
        flows: list[Tensor],
        occlusions: list[Tensor],
        *,
        coarse_flow: Float[Tensor, "b 2 h w"] | None = None,
    ) -> Float[Tensor, "b 3 height width"]:
        """Eq. 9-10; ``flows`` (normalised) and ``occlusions`` (logits) have the features' sizes, coarsest first.
        ``coarse_flow`` is for the coarse stream alone."""
        x = warp(features[0], flows[0]) * torch.sigmoid(occlusions[0])
        x = self._join(0, x, features[0], coarse_flow)
        scales = zip(features[1:], flows[1:], occlusions[1:], self.residual, self.up, strict=True)
        for scale, (feature, flow, occlusion, residual, up) in enumerate(scales, start=1):
            visible = torch.sigmoid(occlusion)
            x = warp(feature, flow) * visible + up(residual(x)) * (1 - visible)
            x = self._join(scale, x, feature, coarse_flow)
        return torch.sigmoid(self.last(x).float())

    def paint(self, source: SourceState, stages: Stages) -> Painting:
        coarse = stages.coarse.flow if self.joints is not None else None
        painted = self(source.features, stages.flows[1:], stages.occlusions[1:], coarse_flow=coarse)
        return painted, stages.occlusions[-1] if self.blend else None

    def _join(self, scale: int, x: Tensor, feature: Tensor, coarse_flow: Tensor | None) -> Tensor:
        if self.joints is None:
            return x
        if coarse_flow is None:
            raise ValueError("the generator has a coarse stream, but no coarse_flow was given")
        coarse = warp(feature, resize_flow(coarse_flow, size_of(feature)))
        return self.joints[scale](torch.cat([x, coarse], dim=1))


def _joint(width: int) -> nn.Conv2d:
    """A 1x1 convolution of 2 x ``width`` channels that hands through the first ``width``, until it learns better."""
    joint = nn.Conv2d(2 * width, width, 1)
    nn.init.dirac_(joint.weight)
    if joint.bias is not None:
        nn.init.zeros_(joint.bias)
    return joint


class InpaintingNetwork(SourceEncoder):
    """At every scale the occlusion removes what the source doesn't show from its warped features; they lie beside what
    rises from the scale below, and two residual blocks make up what is missing (TPSM Fig. 3). ``blend`` as in
    `GatedUNet`."""

    loss_uses_features = True

    def __init__(self, *, base: int, levels: int, maximum: int, outer_kernel: int, norm: str, blend: bool = True):
        super().__init__(base=base, levels=levels, maximum=maximum, outer_kernel=outer_kernel, norm=norm)
        self.blend = blend
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

    def paint(self, source: SourceState, stages: Stages) -> Painting:
        painted = self(source.features, stages.flows[1:], stages.occlusions[1:])
        return painted, stages.occlusions[-1] if self.blend else None

    def loss_terms(self, pair: TrainingPair) -> dict[str, Tensor]:
        """ "warp": the source's features, moved, beside those of the driving frame (TPSM Eq. 13)."""
        with torch.no_grad():
            target = self.encode(pair.batch["driving"])
        return {"warp": warp_loss(pair.source.features, target, pair.stages.flows[1:])}


class ResidualGenerator(nn.Module, Generator):
    """From the warped source E and the flow F that warped E: a picture R, and a mask M of where R is shown:
    T = E (1 - M) + R M (S2D Eq. 2).

    A convolution, ``levels`` times down, ``blocks`` residual blocks, up again, without skip connections: what is sharp
    comes from E. ``scales`` is the number of resolutions at which a refinement wants the source's features.
    """

    uses_features = False
    gated = False

    def __init__(self, *, base: int, levels: int, maximum: int, blocks: int, outer_kernel: int, norm: str, scales: int):
        super().__init__()
        widths = [min(maximum, base * 2**level) for level in range(levels + 1)]
        self.first = ConvBlock(5, base, kernel=outer_kernel, norm=norm)
        self.down = nn.ModuleList(DownBlock(widths[i], widths[i + 1], norm=norm) for i in range(levels))
        self.residual = nn.Sequential(*(ResidualBlock(widths[-1], norm=norm) for _ in range(blocks)))
        self.up = nn.ModuleList(UpBlock(widths[i + 1], widths[i], norm=norm) for i in reversed(range(levels)))
        self.last = nn.Conv2d(base, 4, outer_kernel, padding=outer_kernel // 2)
        self.feature_channels = ([widths[-1]] * scales + widths[::-1])[-scales:]
        self.scales, self.step = scales, 2 ** max(levels, scales - 1)

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

    def paint(self, source: SourceState, stages: Stages) -> Painting:
        """Eq. 2's mask, as an occlusion: the generator decides where the warped source is to be trusted. The
        logits of a refinement are added."""
        painted, mask = self(stages.warped_source, stages.flows[-1])
        return painted, stages.occlusions[-1] - mask

    def make_discriminator(self) -> nn.Module:
        """S2D trains against one (Eq. 5 and 6)."""
        return Discriminator()
