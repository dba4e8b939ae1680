"""Motion refinement: one updater, applied from a few pixels up to the whole image (MRFA section 3.2, Eq. 4-7).

Notebook: ``notebooks/07_lookup_and_refinement.ipynb``.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.blocks import zero_convolution
from minimodel.correlation import Correlation
from minimodel.errors import MinimodelError
from minimodel.motion import CoarseMotion
from minimodel.warping import flow_from_pixels, flow_to_pixels, resize_flow, size_of, warp


@dataclass(frozen=True)
class UpdaterWidths:
    """Channels inside the updater; the defaults are the published ones."""

    correlation: tuple[int, int] = (128, 96)
    flow: tuple[int, int] = (128, 64)
    motion: int = 128
    context: tuple[int, int] = (192, 128)
    head: int = 128


class FlowUpdater(nn.Module):
    """Predicts one update of flow and occlusion logits: the step psi of MRFA Eq. 4.

    Inputs are the current flow (normalised), the correlation around the flow, and the warped source features. Four
    convolution modules are shared by all iterations, and so by all resolutions. Inside, flows are in pixels of the
    current resolution. The correlation comes as patches with a step of one pixel of the volume: where the two
    resolutions differ, so do these units.
    """

    def __init__(self, correlation_features: int, widths: UpdaterWidths, *, warped_source: bool = True):
        super().__init__()
        self.correlation_in = nn.Conv2d(correlation_features, widths.correlation[0], 1)
        self.correlation = nn.Conv2d(*widths.correlation, 3, padding=1)
        self.flow = nn.Sequential(
            nn.Conv2d(2, widths.flow[0], 7, padding=3),
            nn.ReLU(inplace=True),
            nn.Conv2d(*widths.flow, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        # Two channels of the motion feature are the flow itself.
        self.motion = nn.Conv2d(widths.correlation[1] + widths.flow[1], widths.motion - 2, 3, padding=1)
        self.context = nn.Conv2d(*widths.context, 3, padding=1) if warped_source else None
        inputs = widths.motion + (widths.context[1] if warped_source else 0)
        self.flow_head = _head(inputs, widths.head, 2)
        self.occlusion_head = _head(inputs, widths.head, 1)

    def forward(
        self,
        flow: Float[Tensor, "b 2 h w"],
        correlation: Float[Tensor, "b features hc wc"],
        warped_context: Float[Tensor, "b c h w"] | None,
    ) -> tuple[Float[Tensor, "b 2 h w"], Float[Tensor, "b 1 h w"]]:
        size = size_of(flow)
        pixels = _channels_last(flow_to_pixels(flow))
        # A 1x1 convolution and upsampling can change places; in this order the convolution has fewer pixels.
        correlation = F.relu(resize_flow(self.correlation_in(_channels_last(correlation)), size), inplace=True)
        correlation = F.relu(self.correlation(correlation), inplace=True)
        motion = F.relu(self.motion(torch.cat([correlation, self.flow(pixels)], dim=1)), inplace=True)
        parts = [motion, pixels]
        if self.context is not None:
            assert warped_context is not None, "an updater with warped_source reads the warped source's features"
            parts.append(F.relu(self.context(F.relu(_channels_last(warped_context))), inplace=True))
        inputs = torch.cat(parts, dim=1)
        return flow_from_pixels(self.flow_head(inputs).float()), self.occlusion_head(inputs).float()


def _channels_last(x: Tensor) -> Tensor:
    """Bring an input to channels_last, in which convolutions are quickest.

    `torch.cat` keeps a layout only if all its inputs share the layout; otherwise each later convolution copies its
    input.
    """
    return x.contiguous(memory_format=torch.channels_last)


def _head(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    last = nn.Conv2d(hidden, outputs, 3, padding=1)
    # Refinement begins as no refinement: the first steps of training use exactly the coarse flow.
    zero_convolution(last)
    return nn.Sequential(nn.Conv2d(inputs, hidden, 3, padding=1), nn.ReLU(inplace=True), last)


class MotionRefiner(nn.Module):
    """Refines flow and occlusion in a loop over scales, coarsest first (MRFA Eq. 4-7).

    At every scale the coarse flow F_0 is resized afresh, and only the residuals are upsampled and summed (Eq. 7), so
    that no detail of F_0 is lost by downsampling. ``iterations`` counts scales from the coarsest; finer scales reuse
    the upsampled residuals. ``update_flow``, ``update_occlusion`` and ``warped_source`` False switch off one path each,
    for the paper's Table 4. ``iterations`` outside 1 to the number of scales raises a `MinimodelError`.
    """

    def __init__(
        self,
        feature_channels: list[int],
        *,
        radius: int,
        levels: int,
        iterations: int,
        widths: UpdaterWidths = UpdaterWidths(),
        update_flow: bool = True,
        update_occlusion: bool = True,
        warped_source: bool = True,
    ):
        super().__init__()
        if not 1 <= iterations <= len(feature_channels):
            raise MinimodelError(
                f"iterations is {iterations}: expected 1 to {len(feature_channels)}, the number of scales"
            )
        self.iterations, self.update_flow, self.update_occlusion = iterations, update_flow, update_occlusion
        self.updater = FlowUpdater(levels * (2 * radius + 1) ** 2, widths, warped_source=warped_source)
        projected = feature_channels[:iterations] if warped_source else []
        self.projections = nn.ModuleList(nn.Conv2d(channels, widths.context[0], 1) for channels in projected)

    def project(self, features: list[Tensor]) -> list[Tensor]:
        """Project the source's features of each scale (coarsest first) to context for the updater, once a source."""
        return [projection(feature) for projection, feature in zip(self.projections, features)]

    def forward(
        self, coarse: CoarseMotion, correlation: Correlation, context: list[Tensor], sizes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The refined flows F_i (normalised) and occlusion logits O_i, one of each ``sizes`` = (h, w), coarsest first.

        ``context`` is that of `project`.
        """
        flow_residual = torch.zeros_like(resize_flow(coarse.flow, sizes[0]))
        occlusion_residual = torch.zeros_like(resize_flow(coarse.occlusion, sizes[0]))
        flows, occlusions = [], []
        for scale, size in enumerate(sizes):
            flow_residual = resize_flow(flow_residual, size)
            occlusion_residual = resize_flow(occlusion_residual, size)
            resized = resize_flow(coarse.flow, size)
            if scale < self.iterations:
                flow = resized + flow_residual
                warped = warp(context[scale], flow) if context else None
                flow_step, occlusion_step = self.updater(flow, correlation(flow), warped)
                if self.update_flow:
                    flow_residual = flow_residual + flow_step
                if self.update_occlusion:
                    occlusion_residual = occlusion_residual + occlusion_step
            flows.append(resized + flow_residual)
            occlusions.append(resize_flow(coarse.occlusion, size) + occlusion_residual)
        return flows, occlusions
