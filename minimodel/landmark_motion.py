"""From 74 landmarks to a dense flow: AdaIN, Add_Motion, one global branch and three local ones (S2D section 3.2).

The driving frame is no input of a branch. The inputs are the source, or a box of the source, and two vectors of
coordinates: the landmarks of the source, and those of the driving frame.

Notebook: ``notebooks/05_landmark_motion.ipynb``.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.affine import combine
from minimodel.blocks import zero_convolution
from minimodel.landmarks import LANDMARKS
from minimodel.motion import CoarseMotion
from minimodel.warping import full_precision, identity_grid, resize_flow, sample, size_of

# The landmarks of each local branch: an eye with its brow, pupil and lid middles, or the lips. Right is the subject's.
REGIONS = {
    "right eye": (*range(17, 22), *range(36, 42), 68, 70, 71),
    "left eye": (*range(22, 27), *range(42, 48), 69, 72, 73),
    "mouth": tuple(range(48, 68)),
}
BOX = 0.25  # side of a local branch's box in sides of the picture: 64 of 256 pixels


def adain(
    x: Float[Tensor, "b c h w"], scale: Float[Tensor, "b c"], shift: Float[Tensor, "b c"], *, eps: float = 1e-5
) -> Float[Tensor, "b c h w"]:
    """Set every channel of every sample to standard deviation ``scale`` and mean ``shift`` (S2D section 3.2)."""
    return F.instance_norm(x, eps=eps) * scale[:, :, None, None] + shift[:, :, None, None]


class AdaIN(nn.Module):
    """`adain` with statistics that a fully connected layer computes from a landmark vector of length ``vector``."""

    def __init__(self, channels: int, vector: int):
        super().__init__()
        self.statistics = nn.Linear(vector, 2 * channels)
        self.statistics.bias.data = torch.cat([torch.ones(channels), torch.zeros(channels)])

    def forward(self, x: Float[Tensor, "b c h w"], landmarks: Float[Tensor, "b n"]) -> Float[Tensor, "b c h w"]:
        with torch.autocast(x.device.type, enabled=False):  # landmarks are positions
            scale, shift = self.statistics(landmarks).to(x.dtype).chunk(2, dim=1)
        return adain(x, scale, shift)


class _FixedStatistics(nn.Module):
    """Replaces `AdaIN` where it is switched off: the same normalisation, with one set of statistics for all faces."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, affine=True)

    def forward(self, x: Float[Tensor, "b c h w"], landmarks: Float[Tensor, "b n"]) -> Float[Tensor, "b c h w"]:
        return self.norm(x)


class AddMotion(nn.Module):
    """Adds the landmarks' motion to hidden features: x + W (D - S), with a fully connected layer W (S2D section 3.2).

    The layer's output is a map of ``side`` x ``side`` places, resized to the size of x: a jaw that drops moves the
    lower half alone. One number a channel for all places would be lost in the next normalisation.
    """

    gain = 10.0  # landmarks move by tenths, a pupil by less: without the gain the layer learns that much more slowly

    def __init__(self, channels: int, vector: int, side: int):
        super().__init__()
        self.layer = nn.Linear(vector, channels * side**2, bias=False)  # no motion adds nothing
        self.side = side

    def forward(self, x: Float[Tensor, "b c h w"], difference: Float[Tensor, "b n"]) -> Float[Tensor, "b c h w"]:
        added = rearrange(self.layer(self.gain * difference), "b (c i j) -> b c i j", i=self.side, j=self.side)
        return x + resize_flow(added, size_of(x))


class _AdaptiveBlock(nn.Module):
    """3x3 convolution, AdaIN, ReLU."""

    def __init__(self, inputs: int, outputs: int, vector: int, *, adain: bool):
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = AdaIN(outputs, vector) if adain else _FixedStatistics(outputs)

    def forward(self, x: Float[Tensor, "b c h w"], landmarks: Float[Tensor, "b n"]) -> Float[Tensor, "b d h w"]:
        return F.relu(self.norm(self.convolution(x), landmarks))


class MotionBranch(nn.Module):
    """Predicts a flow, and one logit a pixel (a mask or occlusion), from a picture and two landmark vectors.

    The branch is an hourglass. AdaIN brings the source's landmarks into the way down and the driving ones into the way
    up. Add_Motion follows at the lowest level and after every step up. ``side`` is the side of the lowest level for
    training pictures. Landmarks and the flow are in units of the branch's picture, which spans [-1, 1].
    """

    unit = 0.1  # of the flow head's output, normalised: a pixel is less than one step of Adam otherwise

    def __init__(
        self,
        landmarks: int,
        *,
        base: int,
        levels: int,
        maximum: int,
        side: int,
        with_logit: bool = True,
        adain: bool = True,
        add_motion: bool = True,
    ):
        super().__init__()
        self.step = 2**levels
        vector = 2 * landmarks
        widths = [3] + [min(maximum, base * 2 ** (level + 1)) for level in range(levels)]
        ups = [min(maximum, base * 2**level) for level in reversed(range(levels))]
        self.down = nn.ModuleList(_AdaptiveBlock(widths[i], widths[i + 1], vector, adain=adain) for i in range(levels))
        inputs = [widths[-1]] + [up + skip for up, skip in zip(ups, widths[-2:0:-1])]
        self.up = nn.ModuleList(_AdaptiveBlock(i, o, vector, adain=adain) for i, o in zip(inputs, ups, strict=True))
        moving = [widths[-1], *ups] if add_motion else []
        self.add_motion = nn.ModuleList(AddMotion(channels, vector, side) for channels in moving)
        self.flow_head = nn.Conv2d(ups[-1] + 3, 2, 3, padding=1)
        zero_convolution(self.flow_head)  # training begins with a face that stands still
        self.logit_head = nn.Conv2d(ups[-1] + 3, 1, 3, padding=1) if with_logit else None

    def forward(
        self,
        image: Float[Tensor, "b 3 h w"],
        source_landmarks: Float[Tensor, "b k 2"],
        driving_landmarks: Float[Tensor, "b k 2"],
    ) -> tuple[Float[Tensor, "b 2 h w"], Float[Tensor, "b 1 h w"] | None]:
        source, driving = source_landmarks.flatten(1), driving_landmarks.flatten(1)
        skips = [image]
        for block in self.down:
            skips.append(F.avg_pool2d(block(skips[-1], source), 2))
        x = self._moved(skips.pop(), 0, driving - source)
        for level, block in enumerate(self.up):
            x = self._moved(
                block(F.interpolate(x, scale_factor=2, mode="nearest"), driving), level + 1, driving - source
            )
            x = torch.cat([x, skips.pop()], dim=1)
        return self.unit * self.flow_head(x).float(), None if self.logit_head is None else self.logit_head(x).float()

    def _moved(self, x: Tensor, index: int, difference: Tensor) -> Tensor:
        return self.add_motion[index](x, difference) if self.add_motion else x


def centres(landmarks: Float[Tensor, "b 74 2"]) -> Float[Tensor, "b 3 2"]:
    """The centres of the boxes of `REGIONS`: the mean of each region's landmarks, normalised."""
    return torch.stack([landmarks[:, list(region)].mean(1) for region in REGIONS.values()], dim=1)


def in_box(points: Float[Tensor, "b k 2"], centre: Float[Tensor, "b 2"]) -> Float[Tensor, "b k 2"]:
    """Convert positions in the picture to positions in the box around ``centre``, which spans [-1, 1], too."""
    return (points - centre[:, None]) / BOX


@full_precision
def crop(image: Float[Tensor, "b c height width"], centre: Float[Tensor, "b 2"]) -> Float[Tensor, "b c h w"]:
    """Crop the box around ``centre``, a quarter of the picture's sides; beyond the picture the edge repeats.

    Pixels of the box need not be pixels of the picture: the centre isn't rounded, so that it has a gradient and the box
    doesn't jump from frame to frame.
    """
    height, width = image.shape[-2:]
    grid = identity_grid(round(BOX * height), round(BOX * width), device=image.device)
    grid = centre[:, None, None] + BOX * grid.permute(1, 2, 0)
    return sample(image.float(), grid)


@full_precision
def combine_local_flows(
    global_flow: Float[Tensor, "b 2 height width"],
    local_flows: Float[Tensor, "b n 2 h w"],
    local_masks: Float[Tensor, "b n h w"],
    source_centres: Float[Tensor, "b n 2"],
    driving_centres: Float[Tensor, "b n 2"],
) -> tuple[
    Float[Tensor, "b 2 height width"], Float[Tensor, "b n+1 2 height width"], Float[Tensor, "b n+1 height width"]
]:
    """Combine global and local flows: F = f_G (1 - m_i) + f^_i m_i inside box i, f_G elsewhere (S2D Eq. 3).

    Returns F, and the part flows and masks that combine to F (`minimodel.affine.combine`), the global ones first.
    ``local_flows`` lead from the driving box to the source's, in units of boxes; ``local_masks`` lie in [0, 1]. In the
    picture's units a local flow is scaled by the box's size and shifted by the motion of the box itself:
    f^_i(p) = c_S - c_D + f_i((p - c_D) / s) * s.

    Where boxes overlap, which Eq. 3 leaves open, masks that sum to more than 1 are divided by their sum.
    """
    height, width = global_flow.shape[-2:]
    count = local_flows.shape[1]
    grid = identity_grid(height, width, device=global_flow.device, dtype=global_flow.dtype).permute(1, 2, 0)
    places = (grid - driving_centres[:, :, None, None]) / BOX
    inside = (places.abs() <= 1).all(-1)
    local = torch.cat([local_flows, local_masks[:, :, None]], dim=2).to(global_flow)
    local = sample(rearrange(local, "b n c h w -> (b n) c h w"), rearrange(places, "b n h w c -> (b n) h w c"))
    local = rearrange(local, "(b n) c h w -> b n c h w", n=count)
    flows = (source_centres - driving_centres)[..., None, None] + BOX * local[:, :, :2]
    masks = local[:, :, 2] * inside
    masks = masks / masks.sum(1, keepdim=True).clamp_min(1)
    flows = torch.cat([global_flow[:, None], flows], dim=1)
    masks = torch.cat([1 - masks.sum(1, keepdim=True), masks], dim=1)
    return combine(flows, masks), flows, masks


class LandmarkMotion(nn.Module):
    """Predicts the dense flow of S2D Eq. 3, as large as the picture, from the source and both frames' landmarks.

    The global branch gets the picture at 1 / ``scale`` of its side. ``with_occlusion`` adds occlusion logits to this
    branch, for generators that gate; otherwise the occlusion is 0 everywhere. ``adain``, ``add_motion`` and
    ``local_motion`` False switch off one part each, for the paper's Table 4. ``size`` is the side in pixels of the
    training pictures. Sides of pictures must be multiples of ``self.step``.
    """

    def __init__(
        self,
        *,
        whole: dict[str, Any],
        local: dict[str, Any],
        size: int,
        scale: int = 1,
        with_occlusion: bool = True,
        adain: bool = True,
        add_motion: bool = True,
        local_motion: bool = True,
    ):
        super().__init__()
        switches: dict[str, Any] = dict(adain=adain, add_motion=add_motion)
        side = size // scale // 2 ** whole["levels"]
        self.scale = scale
        self.whole = MotionBranch(LANDMARKS, side=side, with_logit=with_occlusion, **whole, **switches)
        side = round(BOX * size) // 2 ** local["levels"]
        branches = [
            MotionBranch(len(region), side=side, **local, **switches) for region in REGIONS.values() if local_motion
        ]
        self.local = nn.ModuleList(branches)
        boxes = [round(1 / BOX) * branch.step for branch in branches]
        self.step = math.lcm(scale * self.whole.step, *boxes)

    def forward(
        self,
        source: Float[Tensor, "b 3 h w"],
        source_landmarks: Float[Tensor, "b 74 2"],
        driving_landmarks: Float[Tensor, "b 74 2"],
    ) -> CoarseMotion:
        size = size_of(source)
        small = F.avg_pool2d(source, self.scale)
        flow, occlusion = self.whole(small, source_landmarks, driving_landmarks)
        flow = resize_flow(flow, size)
        occlusion = torch.zeros_like(flow[:, :1]) if occlusion is None else resize_flow(occlusion, size)
        if not self.local:
            return CoarseMotion(flow, occlusion)
        boxes = centres(source_landmarks), centres(driving_landmarks)
        flows, masks = [], []
        for index, (branch, region) in enumerate(zip(self.local, REGIONS.values(), strict=True)):
            start, end = (box[:, index] for box in boxes)
            points = in_box(source_landmarks[:, list(region)], start), in_box(driving_landmarks[:, list(region)], end)
            local_flow, logit = branch(crop(source, start), *points)
            flows.append(local_flow)
            masks.append(torch.sigmoid(logit[:, 0]))
        combined = combine_local_flows(flow, torch.stack(flows, 1), torch.stack(masks, 1), *boxes)
        flow, part_flows, part_masks = combined
        return CoarseMotion(flow, occlusion, part_masks, part_flows)
