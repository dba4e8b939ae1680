"""What the papers measure, and what only exact ground truth can: errors of flow and occlusion.

Every function returns one number a picture (or pair), so that tables can average and spread them as they like.

Notebook: ``notebooks/09_losses_and_metrics.ipynb``.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure


def l1(made: Float[Tensor, "b c h w"], wanted: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """Mean absolute difference of colours in [0, 1]."""
    return (made - wanted).abs().flatten(1).mean(1)


def psnr(made: Float[Tensor, "b c h w"], wanted: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """Peak signal-to-noise ratio in dB of colours in [0, 1], one a picture; equal pictures have 100."""
    return -10 * (made - wanted).square().flatten(1).mean(1).clamp_min(1e-10).log10()


def ssim(made: Float[Tensor, "b c h w"], wanted: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """Structural similarity (torchmetrics, 11-pixel Gaussian window), one a picture."""
    return structural_similarity_index_measure(made, wanted, data_range=1.0, reduction="none")


def perceptual_distance(
    features: nn.Module, made: Float[Tensor, "b 3 h w"], wanted: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b"]:
    """Mean absolute difference of frozen features, averaged over layers; name the features beside the number."""
    layers = zip(features(made), features(wanted), strict=True)
    return torch.stack([(a - b).abs().flatten(1).mean(1) for a, b in layers]).mean(0)


def sms(landmarks: Float[Tensor, "t k 2"]) -> Float[Tensor, ""]:
    """How much landmarks jitter on a film: how far they lie from the middle between the frame before and the one after
    (S2D Eq. 9), in the landmarks' unit.

    The paper doesn't say which norm its bars are, nor in which unit its numbers (51 to 85) are. Here: Euclidean, of the
    two coordinates of a point; summed over the points, averaged over the T - 2 frames that have two neighbours; in
    pixels of the film that they are given in. A steady motion costs nothing, and real acceleration does, so the truth
    isn't 0.
    """
    if len(landmarks) < 3:
        raise ValueError(f"landmarks of {len(landmarks)} frames: expected at least 3")
    middle = (landmarks[:-2] + landmarks[2:]) / 2
    return (middle - landmarks[1:-1]).norm(dim=-1).sum(1).mean()


def landmark_error(found: Float[Tensor, "t 74 2"], truth: Float[Tensor, "t 74 2"]) -> Float[Tensor, "t"]:
    """Normalised mean error: mean distance over the points, as a share of the distance of the outer corners of the
    eyes. One number a frame."""
    eyes = (truth[:, 36] - truth[:, 45]).norm(dim=-1)
    return (found - truth).norm(dim=-1).mean(1) / eyes


def flow_error(
    flow: Float[Tensor, "b 2 h w"], truth: Float[Tensor, "b 2 h w"], where: Bool[Tensor, "b 1 h w"]
) -> Float[Tensor, "b"]:
    """Mean end-point error in pixels of the flow's resolution over the pixels ``where``; NaN if there are none."""
    half_size = torch.tensor(flow.shape[:-3:-1], device=flow.device).view(2, 1, 1) / 2
    error = ((flow - truth) * half_size).norm(dim=1, keepdim=True)
    return (error * where).flatten(1).sum(1) / where.flatten(1).sum(1)


def balanced_accuracy(predicted: Bool[Tensor, "b 1 h w"], truth: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b"]:
    """Mean of the shares of visible and of hidden pixels that are recognised; guessing scores 0.5. NaN without hidden
    ones."""
    right = predicted == truth
    shares = [(right & part).flatten(1).sum(1) / part.flatten(1).sum(1) for part in (truth, ~truth)]
    return (shares[0] + shares[1]) / 2


def shape_error(
    made: Float[Tensor, "b n 2"], wanted: Float[Tensor, "b n 2"], where: Bool[Tensor, "b n"]
) -> Float[Tensor, "b"]:
    """Mean distance of corresponding points ``where`` they count, after ``made`` was shifted, turned and scaled onto
    ``wanted`` as well as it goes (least squares, without mirroring): what is left is a difference of shape."""
    weights = where[..., None] / where.sum(1)[:, None, None]
    made, wanted = (x - (weights * x).sum(1, keepdim=True) for x in (made, wanted))
    # In the complex plane turning and scaling is one factor, and its best value that of a one-dimensional regression.
    made, wanted, weights = torch.view_as_complex(made), torch.view_as_complex(wanted), weights[..., 0]
    factor = (weights * made.conj() * wanted).sum(1) / (weights * made.abs().square()).sum(1)
    return (weights * (factor[:, None] * made - wanted).abs()).sum(1)
