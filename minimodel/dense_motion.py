"""From part flows to one coarse flow and its occlusion (MRFA section 3.1, Eq. 3; TPSM sections 3.1, 3.2, Eq. 5-8).

Notebooks: ``notebooks/01_affine_flows.ipynb``, ``notebooks/02_thin_plate_splines.ipynb``.
"""

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.affine import combine
from minimodel.blocks import Hourglass, UpBlock
from minimodel.errors import MinimodelError
from minimodel.keypoints import gaussian_heatmaps
from minimodel.motion import CoarseMotion
from minimodel.warping import size_of, warp


def contribution_masks(
    logits: Float[Tensor, "b parts h w"], part_scales: Float[Tensor, "b parts-1"] | None = None
) -> Float[Tensor, "b parts h w"]:
    """The masks of background and parts: a softmax over the logits (TPSM Eq. 5).

    ``part_scales`` are factors of the parts' exponentials, for dropout (Eq. 7-8, see `dropout_scales`).
    """
    if part_scales is not None:
        # A factor in front of an exponential is a summand within. Zero becomes minus infinity, which softmax accepts,
        # as the background always stays.
        summands = torch.cat([torch.zeros_like(part_scales[:, :1]), part_scales.log()], dim=1)
        logits = logits + summands[..., None, None]
    return torch.softmax(logits, dim=1)


def dropout_scales(chances: Float[Tensor, "b k"], probability: float) -> Float[Tensor, "b k"]:
    """The factors b_k / (1 - P) of TPSM Eq. 7-8, for `contribution_masks`.

    Parts are dropped where ``chances``, uniform in [0, 1), are below ``probability``. The other parts count for more,
    so that the expected sum of exponentials stays the same. A probability outside [0, 1) raises a `MinimodelError`.
    """
    if not 0 <= probability < 1:
        raise MinimodelError(f"probability of dropping a part is {probability}: expected at least 0 and less than 1")
    return (chances >= probability).to(chances) / (1 - probability)


class DenseMotion(nn.Module):
    """Predicts masks of the parts at every pixel, and combines the part flows by these masks.

    The input holds two things for each part: the difference of two Gaussians for each of the part's points, at its
    driving and at its source position, and the source moved by the part's flow. The driving frame is no input.

    ``coarser`` and ``finer`` are numbers of further occlusions, at resolutions below and above the network's own. Each
    comes from the decoder's layer of that size; for finer ones the decoder has further layers (TPSM section 3.2).
    ``coarser`` must be less than ``levels``, or a `MinimodelError` is raised.
    """

    variance = 0.01  # of the Gaussians, in normalised units

    def __init__(
        self,
        parts: int,
        *,
        base: int,
        levels: int,
        maximum: int,
        head_kernel: int,
        norm: str,
        points_per_part: int = 1,
        coarser: int = 0,
        finer: int = 0,
    ):
        super().__init__()
        if not 0 <= coarser < levels:
            raise MinimodelError(
                f"{coarser} coarser occlusions: expected 0 to {levels - 1}, an hourglass of {levels} levels"
            )
        self.points_per_part = points_per_part
        inputs = (3 + points_per_part) * (parts + 1)
        self.hourglass = Hourglass(inputs, base=base, levels=levels, maximum=maximum, norm=norm)
        self.step = self.hourglass.step

        def head(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, head_kernel, padding=head_kernel // 2)

        self.mask_head = head(self.hourglass.channels, parts + 1)
        self.occlusion_head = head(self.hourglass.channels, 1)
        self.coarser_heads = nn.ModuleList(head(c, 1) for c in self.hourglass.scale_channels[-1 - coarser : -1])
        widths = [self.hourglass.channels, *(max(8, base // 2 ** (step + 1)) for step in range(finer))]
        self.up = nn.ModuleList(UpBlock(widths[i], widths[i + 1], norm=norm) for i in range(finer))
        self.finer_heads = nn.ModuleList(head(width, 1) for width in widths[1:])

    def forward(
        self,
        source: Float[Tensor, "b 3 h w"],
        source_points: Float[Tensor, "b p 2"],
        driving_points: Float[Tensor, "b p 2"],
        part_flows: Float[Tensor, "b parts 2 h w"],
        part_scales: Float[Tensor, "b parts-1"] | None = None,
    ) -> CoarseMotion:
        """Combine ``part_flows``, of which the first is the background's, to a coarse flow with its occlusion.

        The background has no points; all points of the first part come first. ``part_scales`` are those of
        `contribution_masks`. The result has the resolution of ``source``.
        """
        size = size_of(source)
        moved_to = gaussian_heatmaps(driving_points, size, self.variance)
        left_from = gaussian_heatmaps(source_points, size, self.variance)
        difference = rearrange(moved_to - left_from, "b (k n) h w -> b k n h w", n=self.points_per_part)
        difference = torch.cat([torch.zeros_like(difference[:, :1]), difference], dim=1)  # the background has no point
        parts = part_flows.shape[1]
        moved = warp(
            repeat(source, "b c h w -> (b k) c h w", k=parts), rearrange(part_flows, "b k c h w -> (b k) c h w")
        )
        evidence = torch.cat([difference, rearrange(moved, "(b k) c h w -> b k c h w", k=parts)], dim=2)
        risen = self.hourglass.scales(rearrange(evidence, "b k c h w -> b (k c) h w"))
        masks = contribution_masks(self.mask_head(risen[-1]).float(), part_scales)
        occlusion = self.occlusion_head(risen[-1]).float()
        occlusions = [head(x).float() for head, x in zip(self.coarser_heads, risen[-1 - len(self.coarser_heads) : -1])]
        occlusions.append(occlusion)
        x = risen[-1]
        for up, head in zip(self.up, self.finer_heads, strict=True):
            x = up(x)
            occlusions.append(head(x).float())
        return CoarseMotion(combine(part_flows, masks), occlusion, masks, part_flows, occlusions)
