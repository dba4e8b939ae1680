"""The losses of the papers (MRFA section 3.4; TPSM section 3.3).

Notebook: ``notebooks/09_losses_and_metrics.ipynb``.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.tps import Spline
from minimodel.warping import full_precision, warp


def perceptual_loss(
    features: nn.Module,
    generated: Float[Tensor, "b 3 h w"],
    driving: Float[Tensor, "b 3 h w"],
    *,
    scales: Sequence[int] = (1, 2, 4, 8),
    smallest: int = 16,
    layers: int | None = None,
) -> Float[Tensor, ""]:
    """Mean absolute difference of features, summed over layers and over images reduced by each of ``scales`` (MRFA Eq.
    11).

    Scales that leave a side under ``smallest`` pixels are dropped; ``layers`` takes only so many of the first layers.
    """
    total = generated.new_zeros(())
    for scale in scales:
        if min(generated.shape[-2:]) // scale < smallest:
            continue
        made = features(F.avg_pool2d(generated, scale))
        with torch.no_grad():
            wanted = features(F.avg_pool2d(driving, scale))
        total = total + sum(F.l1_loss(a, b) for a, b in list(zip(made, wanted, strict=True))[:layers])
    return total


def equivariance_points(
    points: Float[Tensor, "b k 2"], transformed_points: Float[Tensor, "b k 2"], transform: Spline
) -> Float[Tensor, ""]:
    """A point found in T's picture of the frame, carried back by T, should be the point found in the frame (MRFA Eq.
    12).

    The transformed frame shows at z what the frame shows at T(z); with that, the point of the frame is T of the other.
    """
    return F.l1_loss(transform(transformed_points[:, None])[:, 0], points)


@full_precision
def equivariance_affine(
    affine: Float[Tensor, "b k 2 2"],
    transformed_affine: Float[Tensor, "b k 2 2"],
    transformed_points: Float[Tensor, "b k 2"],
    transform: Spline,
) -> Float[Tensor, ""]:
    """The same for the matrices, to first order: A^-1 J_T A' should be the identity."""
    jacobian = transform.jacobian(transformed_points[:, None])[:, 0]
    ratio = torch.linalg.solve(affine, jacobian @ transformed_affine)
    return (ratio - torch.eye(2, device=ratio.device)).abs().mean()


def transformed_frame(frame: Float[Tensor, "b 3 h w"], transform: Spline) -> Float[Tensor, "b 3 h w"]:
    """The frame as T shows it: at z stands what the frame has at T(z)."""
    return warp(frame, rearrange(transform.flow(tuple(frame.shape[-2:])), "b 1 c h w -> b c h w"))


@full_precision
def background_loss(forward: Float[Tensor, "b 2 3"], backward: Float[Tensor, "b 2 3"]) -> Float[Tensor, ""]:
    """The background's motion from driving frame to source, and then from source to driving frame, should lead nowhere:
    A' A = I (TPSM Eq. 12)."""
    last = forward.new_tensor((0.0, 0.0, 1.0)).expand(len(forward), 1, 3)
    there, back = (torch.cat([matrix, last], dim=1) for matrix in (forward, backward))
    return (back @ there - torch.eye(3, dtype=there.dtype, device=there.device)).abs().mean()


def warp_loss(
    source_features: Sequence[Tensor], driving_features: Sequence[Tensor], flows: Sequence[Tensor]
) -> Float[Tensor, ""]:
    """The source's features of each scale, moved by the flow, should be the driving frame's (TPSM Eq. 13).

    Only the flows are asked to change: features could please it by vanishing.
    """
    layers = zip(source_features, driving_features, flows, strict=True)
    return sum(F.l1_loss(warp(source.detach(), flow), driving.detach()) for source, driving, flow in layers)
