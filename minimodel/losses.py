"""The losses of the papers (MRFA section 3.4; TPSM section 3.3; S2D section 3.4), and some of our own.

Our own are `smoothness`, `background_mask_loss`, and four that need the truth, which rendered faces come with:
`true_flow_loss`, `visibility_loss`, `hidden_loss`, `matching_loss`.

Notebook: ``notebooks/09a_what_a_loss_sees.ipynb``.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from minimodel.tps import Spline
from minimodel.warping import flow_to_pixels, full_precision, identity_grid, resize_flow, size_of, to_pixels, warp


def perceptual_loss(
    features: Callable[[Tensor], Sequence[Tensor]],
    generated: Float[Tensor, "b 3 h w"],
    driving: Float[Tensor, "b 3 h w"],
    *,
    scales: Sequence[int] = (1, 2, 4, 8),
    smallest: int = 16,
    layers: int | None = None,
) -> Float[Tensor, ""]:
    """Mean absolute difference of features, summed over layers and scales (MRFA Eq. 11).

    Images (RGB in [0, 1]) are reduced by each of ``scales``. Scales that leave a side under ``smallest`` pixels are
    dropped; ``layers`` is the number of first layers to use, by default all.

    >>> loss = perceptual_loss(load_features("faces"), output.image, driving)
    """
    (total,) = perceptual_losses(features, [generated], driving, scales=scales, smallest=smallest, layers=layers)
    return total


def perceptual_losses(
    features: Callable[[Tensor], Sequence[Tensor]],
    pictures: Sequence[Float[Tensor, "b 3 h w"]],
    driving: Float[Tensor, "b 3 h w"],
    *,
    scales: Sequence[int] = (1, 2, 4, 8),
    smallest: int = 16,
    layers: int | None = None,
) -> list[Float[Tensor, ""]]:
    """The `perceptual_loss` of each of several pictures. The driving frame's features are computed once for all."""
    totals = [driving.new_zeros(()) for _ in pictures]
    for scale in scales:
        if min(driving.shape[-2:]) // scale < smallest:
            continue
        with torch.no_grad():
            target = features(F.avg_pool2d(driving, scale))
        for index, picture in enumerate(pictures):
            pairs = list(zip(features(F.avg_pool2d(picture, scale)), target, strict=True))[:layers]
            totals[index] = totals[index] + sum(F.l1_loss(a, b) for a, b in pairs)
    return totals


def equivariance_points(
    points: Float[Tensor, "b k 2"], transformed_points: Float[Tensor, "b k 2"], transform: Spline
) -> Float[Tensor, ""]:
    """Mean absolute difference of the frame's points and T of the transformed frame's points (MRFA Eq. 12).

    The transformed frame is `transformed_frame`: at z it has the value of the frame at T(z). Therefore a point of the
    frame is T of the transformed frame's point. All points are normalised.
    """
    return F.l1_loss(transform(transformed_points[:, None])[:, 0], points)


@full_precision
def equivariance_affine(
    affine: Float[Tensor, "b k 2 2"],
    transformed_affine: Float[Tensor, "b k 2 2"],
    transformed_points: Float[Tensor, "b k 2"],
    transform: Spline,
) -> Float[Tensor, ""]:
    """Mean absolute difference of A^-1 J_T A' and the identity: `equivariance_points` for matrices, to first order.

    A are the frame's matrices, A' those of the transformed frame, J_T the derivatives of T at the latter's points.
    """
    jacobian = transform.jacobian(transformed_points[:, None])[:, 0]
    ratio = torch.linalg.solve(affine, jacobian @ transformed_affine)
    return (ratio - torch.eye(2, device=ratio.device)).abs().mean()


def transformed_frame(frame: Float[Tensor, "b 3 h w"], transform: Spline) -> Float[Tensor, "b 3 h w"]:
    """Bend a frame by T: the result has at z the value of the frame at T(z)."""
    return warp(frame, rearrange(transform.flow(size_of(frame)), "b 1 c h w -> b c h w"))


@full_precision
def background_loss(forward: Float[Tensor, "b 2 3"], backward: Float[Tensor, "b 2 3"]) -> Float[Tensor, ""]:
    """Mean absolute difference of A' A and the identity (TPSM Eq. 12).

    A is the background's motion from driving frame to source, A' the motion from source to driving frame. Our training
    doesn't use this loss: the shifts of `BackgroundPredictor` there and back are opposite by construction.
    """
    last = forward.new_tensor((0.0, 0.0, 1.0)).expand(len(forward), 1, 3)
    there, back = (torch.cat([matrix, last], dim=1) for matrix in (forward, backward))
    return (back @ there - torch.eye(3, dtype=there.dtype, device=there.device)).abs().mean()


def background_mask_loss(
    logits: Float[Tensor, "b 1 height width"], masks: Float[Tensor, "b parts h w"]
) -> Float[Tensor, ""]:
    """Cross entropy of the predictor's background ``logits`` and the background's mask, the first of ``masks``.

    Gradients go to the predictor alone. The papers don't have this loss. Masks follow the parts after some minutes of
    training, long before a predictor could have learnt the background from reconstruction alone. While parts are
    dropped (`dropout_scales`), places of dropped parts count as background; dropout ends at a third of the run.
    """
    own = resize_flow(masks[:, :1].detach().float(), size_of(logits))
    return F.binary_cross_entropy_with_logits(logits, own)


def warp_loss(
    source_features: Sequence[Tensor], driving_features: Sequence[Tensor], flows: Sequence[Tensor]
) -> Float[Tensor, ""]:
    """Mean absolute difference of the source's warped features and the driving frame's, summed over scales (TPSM
    Eq. 13).

    Gradients go to the flows (normalised) alone: features could lower the loss by vanishing.
    """
    layers = zip(source_features, driving_features, flows, strict=True)
    terms = (F.l1_loss(warp(source.detach(), flow), driving.detach()) for source, driving, flow in layers)
    return sum(terms, start=flows[0].new_zeros(()))


def smoothness(flow: Float[Tensor, "b 2 h w"]) -> Float[Tensor, ""]:
    """Mean difference of neighbouring arrows of a normalised flow, in pixels, along x and along y.

    Training applies the loss to the residual of refinement. Pictures alone can't distinguish a true arrow from any
    other that leads to the same colour; there the residual should be smooth.
    """
    pixels = flow_to_pixels(flow)
    return pixels.diff(dim=-1).abs().mean() + pixels.diff(dim=-2).abs().mean()


def true_flow_loss(
    flows: Sequence[Float[Tensor, "b 2 _ _"]],
    true_flow: Float[Tensor, "b 2 h w"],
    weight: Float[Tensor, "b 1 h w"],
    *,
    decay: float = 0.6,
) -> Float[Tensor, ""]:
    """Mean distance of the flows of all stages to the true flow, in pixels of the true flow.

    Flows are normalised, and each is resized to the true flow's size. The first stage, the prior's, counts as much as
    the last one. Between them each stage counts ``decay`` times as much as the next, as in RAFT: the error of a flow of
    a few pixels is mostly due to the resolution. ``weight`` is the weight of each pixel: 0 where the driving frame's
    place is hidden in the source, for such a pixel has no arrow that a warp could use. Rendered faces come with both.
    """
    loss, total = true_flow.new_zeros(()), 0.0
    for stage, flow in enumerate(flows):
        missed = flow_to_pixels(resize_flow(flow, size_of(true_flow)) - true_flow)
        distance = (missed.square().sum(1, keepdim=True) + 1e-6).sqrt()  # the root alone has no slope at zero
        counts = 1.0 if stage == 0 else decay ** (len(flows) - 1 - stage)
        loss = loss + counts * (distance * weight).sum() / weight.sum().clamp_min(1e-6)
        total += counts
    return loss / total


def visibility_loss(
    occlusions: Sequence[Float[Tensor, "b 1 _ _"]],
    visible: Float[Tensor, "b 1 h w"],
    weight: Float[Tensor, "b 1 h w"] | None = None,
    *,
    sharpness: float = 3.0,
) -> Float[Tensor, ""]:
    """Cross entropy of the occlusion logits of all stages with the true visibility: 1 visible in the source, 0 hidden.

    A stage coarser than ``visible`` is compared with averages of ``visible``. ``weight`` is the weight of each pixel,
    by default 1; pairs without truth have 0.

    In stages of full and half resolution visible and hidden pixels count for one half each: otherwise "all is visible"
    would be right in nineteen of twenty pixels. Such a gate shuts wherever something is likelier to be hidden than it
    usually is, so it shuts too much, and the coarser gates must let through what is to be painted there: they learn how
    much is visible. The logits of the finer stages are divided by ``sharpness`` first, so trained logits are that many
    times as far from zero as their certainty alone would make them. The sign of a logit stays the same, and the gate
    mixes less: a gate that is open to 0.7 where it is right three times of four blurs everything.
    """
    weight = torch.ones_like(visible) if weight is None else weight
    means = []
    for logits in occlusions:
        seen, hidden = (resize_flow(share * weight, size_of(logits)) for share in (visible, 1 - visible))
        if 2 * logits.shape[-1] < visible.shape[-1]:
            wrong = (seen * F.softplus(-logits) + hidden * F.softplus(logits)).sum()
            means.append(wrong / (seen + hidden).sum().clamp_min(1e-6))
            continue
        logits = logits / sharpness
        shut = (seen * F.softplus(-logits)).sum() / seen.sum().clamp_min(1e-6)
        left_open = (hidden * F.softplus(logits)).sum() / hidden.sum().clamp_min(1e-6)
        means.append((shut + left_open) / 2)
    return torch.stack(means).mean()


def hidden_loss(
    painted: Float[Tensor, "b 3 h w"], driving: Float[Tensor, "b 3 h w"], visible: Float[Tensor, "b 1 h w"]
) -> Float[Tensor, ""]:
    """Mean absolute difference of the colours where ``visible`` is 0, and a warp of the source can't help."""
    hidden = 1 - visible
    return ((painted - driving).abs().mean(1, keepdim=True) * hidden).sum() / hidden.sum().clamp_min(1)


@full_precision
def matching_loss(
    volume: Float[Tensor, "b h w height width"],
    true_flow: Float[Tensor, "b 2 _ _"],
    visible: Float[Tensor, "b 1 _ _"],
) -> Float[Tensor, ""]:
    """Cross entropy of each driving position's scores (`minimodel.correlation.volume`) with its true source position.

    The targets are the four source positions around the true one, with their bilinear weights. ``true_flow`` is
    normalised. Only positions that are visible as a whole count. As long as features don't match, an updater learns to
    ignore the lookup, and then the features get no gradient to match; this loss gives that gradient directly.
    """
    height, width, rows, columns = volume.shape[1:]
    flow, seen = (resize_flow(each, (height, width)) for each in (true_flow, visible))
    grid = identity_grid(height, width, device=volume.device, dtype=volume.dtype)
    position = to_pixels((grid + flow).permute(0, 2, 3, 1), (rows, columns))
    corner = position.floor()
    fraction = position - corner
    scores = torch.log_softmax(volume.flatten(3), dim=-1)
    loss = torch.zeros_like(seen[:, 0])
    for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = corner[..., 0] + right, corner[..., 1] + below
        share_x, share_y = (f if side else 1 - f for f, side in zip(fraction.unbind(-1), (right, below), strict=True))
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
        index = (y.clamp(0, rows - 1) * columns + x.clamp(0, columns - 1)).long()
        loss = loss - share_x * share_y * inside * scores.gather(3, index[..., None])[..., 0]
    counts = (seen[:, 0] > 0.99).to(loss)
    return (loss * counts).sum() / counts.sum().clamp_min(1)


class Discriminator(nn.Module):
    """Scores patches of an image: 1 for real, 0 for generated (S2D Eq. 5 and 6)."""

    def __init__(self, *, base: int = 32, levels: int = 3, maximum: int = 256):
        super().__init__()
        widths = [3] + [min(maximum, base * 2**level) for level in range(levels)]
        layers = []
        for inputs, outputs in pairwise(widths):
            # Normalisation by instance hides a picture's own colours, so not in the first layer.
            norm = nn.Identity() if inputs == 3 else nn.InstanceNorm2d(outputs, affine=True)
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), norm, nn.LeakyReLU(0.2), nn.AvgPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 hi wi"]:
        return self.layers(image)


def discriminator_loss(real_scores: Float[Tensor, "*s"], made_scores: Float[Tensor, "*s"]) -> Float[Tensor, ""]:
    """The discriminator's least-squares loss: (1 - D(real))^2 + D(generated)^2 (S2D Eq. 5)."""
    return (1 - real_scores).square().mean() + made_scores.square().mean()


def adversarial_loss(made_scores: Float[Tensor, "*s"]) -> Float[Tensor, ""]:
    """The generator's least-squares loss: (1 - D(generated))^2 (S2D Eq. 6, which has G for the discriminator)."""
    return (1 - made_scores).square().mean()


def parsing_loss(
    source_parts: Int[Tensor, "b h w"],
    flow: Float[Tensor, "b 2 h w"],
    driving_parts: Int[Tensor, "b h w"],
    *,
    mode: str = "bilinear",
    labels: int = 19,
) -> Float[Tensor, ""]:
    """The share of pixels at which the warped parsing map of the source and the driving one disagree (S2D Eq. 7).

    ``flow`` is normalised. ``mode`` "nearest" is Eq. 7 to the letter: a label jumps from pixel to pixel, and the flow's
    gradient is zero. With "bilinear" every label is a map of its own (1 at its pixels, else 0) that is warped like a
    picture. The loss is then 1 minus the mean of the warped map of each pixel's driving label: the same number for
    shifts by whole pixels, with a gradient at borders.

    Labels are 0 to ``labels`` - 1, of which any may be absent: rendered faces have 13, the usual parsers of faces 19.
    The number isn't read from the maps, because a GPU would have to wait for that.
    """
    maps = [F.one_hot(parts, labels).permute(0, 3, 1, 2).to(flow) for parts in (source_parts, driving_parts)]
    return 1 - (warp(maps[0], flow, mode=mode) * maps[1]).sum(1).mean()
