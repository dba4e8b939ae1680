"""Generators: from source features, flows and occlusions to a picture. They are the occlusion-gated U-Net (MRFA section
3.3, Eq. 9-10), the inpainting network (TPSM section 3.2, Fig. 3), and the residual generator, which works on the warped
source and its flow (S2D Eq. 2).

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
    """The members of a generator that `AnimationModel` uses. Any ``nn.Module`` with these members is a generator; a
    class that inherits from `Generator` as well gets the defaults.

    ``scales``: the number of resolutions of flows and occlusions: the picture's, half of it, a quarter, ...
    ``feature_channels``: the channels of the features of `encode` at those resolutions, coarsest first.
    ``step``: both sides of a picture must be multiples of this number.
    ``uses_features``: whether `paint` reads ``source.features``; refinement reads them in any case.
    ``loss_uses_features``: whether `loss_terms` reads them, also in steps that train motion alone.
    ``gated``: whether the stages' occlusions are all gates of the generator, so that gates from the truth can replace
    them in training.
    """

    scales: int
    feature_channels: list[int]
    step: int
    uses_features: bool = True
    loss_uses_features: bool = False
    gated: bool = True

    def encode(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Compute the features of the source, coarsest first; called once a source."""
        ...

    def paint(self, source: SourceState, stages: Stages) -> Painting:
        """Paint a picture (b, 3, h, w) in [0, 1], and occlusion logits (b, 1, h, w) or None.

        Where the logits are high the warped source is shown instead of the picture. With None the picture is shown as
        it is.
        """
        ...

    def loss_terms(self, pair: TrainingPair) -> dict[str, Tensor]:
        """Terms of this generator for the loss; none by default.

        The keys are the names of the terms' weights in `minimodel.training.objective.LossWeights`.
        """
        return {}

    def make_discriminator(self) -> nn.Module | None:
        """Build a discriminator of painted and real pictures, to be trained beside the generator; none by default."""
        return None

    def timed_modules(self) -> dict[str, list[nn.Module]]:
        """Modules of `encode` by stage, for a benchmark that times each stage; no module may lie inside another."""
        return {}


class SourceEncoder(nn.Module, Generator):
    """The encoder that two generators share: it computes the source's features at every scale.

    Features are listed coarsest first, as the papers number them: f_1 has 1 / 2^``levels`` of the image's side, the
    last one is as large as the image. ``feature_channels`` are their channels in that order.
    """

    def __init__(self, *, base: int, levels: int, maximum: int, outer_kernel: int, norm: str):
        super().__init__()
        self.scales, self.step = levels + 1, 2**levels
        widths = [min(maximum, base * 2**level) for level in range(levels + 1)]
        self.first = ConvBlock(3, base, kernel=outer_kernel, norm=norm)
        self.down = nn.ModuleList(DownBlock(widths[i], widths[i + 1], norm=norm) for i in range(levels))
        self.feature_channels = widths[::-1]

    def encode(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Compute the source's features, coarsest first; they don't depend on the driving frame."""
        features = [self.first(image)]
        for block in self.down:
            features.append(block(features[-1]))
        return features[::-1]

    def timed_modules(self) -> dict[str, list[nn.Module]]:
        return {"source features": [self.first, *self.down]}


class GatedUNet(SourceEncoder):
    """Paints a picture, coarse to fine: at every scale the occlusion mixes warped source features with the features
    from the scale below (MRFA section 3.3, Eq. 9-10).

    With ``blend`` the finest occlusion also mixes the warped source itself with the painted picture. The paper doesn't
    have this step, its published code does. Without the step the first hours of training give blurred faces on blurred
    backgrounds.

    With ``coarse_stream`` the decoder also gets, at every scale, the source's features warped by the coarse flow: a 1x1
    convolution joins them to the scale's features. The joint starts as the identity. MRFA's published code has such a
    stream in refined models and none in coarse-only ones, so its Table 3 compares two generators.
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
        """Paint a picture in [0, 1] (Eq. 9-10).

        ``flows`` (normalised) and ``occlusions`` (logits) have the features' sizes, coarsest first. ``coarse_flow``
        (normalised) is for the coarse stream alone.
        """
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
    """A 1x1 convolution of 2 x ``width`` channels whose output starts as the first ``width`` channels."""
    joint = nn.Conv2d(2 * width, width, 1)
    nn.init.dirac_(joint.weight)
    if joint.bias is not None:
        nn.init.zeros_(joint.bias)
    return joint


class InpaintingNetwork(SourceEncoder):
    """Paints a picture, coarse to fine: at every scale the occlusion removes hidden places from the warped source
    features (TPSM section 3.2, Fig. 3).

    The features from the scale below are concatenated, and two residual blocks paint the hidden places. ``blend`` is
    that of `GatedUNet`.
    """

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
        """Paint a picture in [0, 1].

        ``flows`` (normalised) and ``occlusions`` (logits) have the features' sizes, coarsest first.
        """
        seen = [warp(f, flow) * torch.sigmoid(o) for f, flow, o in zip(features, flows, occlusions, strict=True)]
        x = seen[0]
        for beside, residual, up in zip(seen[1:], self.residual, self.up, strict=True):
            x = torch.cat([up(residual(x)), beside], dim=1)
        return torch.sigmoid(self.last(x).float())

    def paint(self, source: SourceState, stages: Stages) -> Painting:
        painted = self(source.features, stages.flows[1:], stages.occlusions[1:])
        return painted, stages.occlusions[-1] if self.blend else None

    def loss_terms(self, pair: TrainingPair) -> dict[str, Tensor]:
        """The term "warp": the source's warped features should be those of the driving frame (TPSM Eq. 13)."""
        with torch.no_grad():
            target = self.encode(pair.batch["driving"])
        return {"warp": warp_loss(pair.source.features, target, pair.stages.flows[1:])}


class ResidualGenerator(nn.Module, Generator):
    """Paints a picture R and a mask M from the warped source E and its flow F: T = E (1 - M) + R M (S2D Eq. 2).

    The network is a convolution, ``levels`` times down, ``blocks`` residual blocks, and up again, without skip
    connections: sharp detail comes from E. ``scales`` is the number of resolutions of the source's features for
    refinement.
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
        """Compute features of the source at rest, coarsest first, for refinement only.

        Below the network's own resolutions the features are averaged.
        """
        features = [self.first(torch.cat([image, torch.zeros_like(image[:, :2])], dim=1))]
        for block in self.down:
            features.append(block(features[-1]))
        while len(features) < self.scales:
            features.append(F.avg_pool2d(features[-1], 2))
        return features[: self.scales][::-1]

    def forward(
        self, warped_source: Float[Tensor, "b 3 h w"], flow: Float[Tensor, "b 2 h w"]
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
        """Paint R in [0, 1] and the logits of M; ``flow`` is normalised."""
        x = self.first(torch.cat([warped_source, flow], dim=1))
        for block in self.down:
            x = block(x)
        x = self.residual(x)
        for block in self.up:
            x = block(x)
        painted, mask = self.last(x).float().split((3, 1), dim=1)
        return torch.sigmoid(painted), mask

    def paint(self, source: SourceState, stages: Stages) -> Painting:
        """Paint R, and return the mask of Eq. 2 as occlusion logits: the last stage's logits minus those of M."""
        painted, mask = self(stages.warped_source, stages.flows[-1])
        return painted, stages.occlusions[-1] - mask

    def make_discriminator(self) -> nn.Module:
        """Build the discriminator of S2D's adversarial training (Eq. 5 and 6)."""
        return Discriminator()
