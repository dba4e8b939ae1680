"""Part flows -> one coarse flow and its occlusion (MRFA section 3.1 and Eq. 3).

Notebook: ``notebooks/01_affine_flows.ipynb``.
"""

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.affine import combine
from minimodel.blocks import Hourglass
from minimodel.keypoints import gaussian_heatmaps
from minimodel.warping import warp


@dataclass
class CoarseMotion:
    """What a prior says about a pair: flow F_0, occlusion logits O_0, and the masks and part flows they came from."""

    flow: Float[Tensor, "b 2 h w"]
    occlusion: Float[Tensor, "b 1 h w"]
    masks: Float[Tensor, "b k h w"] | None = None
    part_flows: Float[Tensor, "b k 2 h w"] | None = None


class DenseMotion(nn.Module):
    """Decides at every pixel which part it belongs to.

    It sees, for each part, where the part's point came to and left from (difference of two Gaussians) and the source
    moved by that part's flow. The driving frame itself it never sees: masks are chosen by what fits together.
    """

    variance = 0.01  # of the Gaussians, in normalised units

    def __init__(self, parts: int, *, base: int, levels: int, maximum: int, head_kernel: int, norm: str):
        super().__init__()
        self.hourglass = Hourglass(4 * (parts + 1), base=base, levels=levels, maximum=maximum, norm=norm)
        self.mask_head = nn.Conv2d(self.hourglass.channels, parts + 1, head_kernel, padding=head_kernel // 2)
        self.occlusion_head = nn.Conv2d(self.hourglass.channels, 1, head_kernel, padding=head_kernel // 2)

    def forward(
        self,
        source: Float[Tensor, "b 3 h w"],
        source_points: Float[Tensor, "b k 2"],
        driving_points: Float[Tensor, "b k 2"],
        part_flows: Float[Tensor, "b k+1 2 h w"],
    ) -> CoarseMotion:
        size = source.shape[-2:]
        moved_to = gaussian_heatmaps(driving_points, size, self.variance)
        left_from = gaussian_heatmaps(source_points, size, self.variance)
        difference = moved_to - left_from
        difference = torch.cat([torch.zeros_like(difference[:, :1]), difference], dim=1)  # the background has no point
        parts = part_flows.shape[1]
        moved = warp(
            repeat(source, "b c h w -> (b k) c h w", k=parts), rearrange(part_flows, "b k c h w -> (b k) c h w")
        )
        evidence = torch.cat([difference[:, :, None], rearrange(moved, "(b k) c h w -> b k c h w", k=parts)], dim=2)
        features = self.hourglass(rearrange(evidence, "b k c h w -> b (k c) h w"))
        masks = torch.softmax(self.mask_head(features).float(), dim=1)
        return CoarseMotion(combine(part_flows, masks), self.occlusion_head(features).float(), masks, part_flows)
