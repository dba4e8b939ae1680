"""The metrics of the papers, and metrics that need exact ground truth: errors of flow and occlusion.

Every function returns one number for each picture (or pair), so that tables can average them; only SMS and FID are
numbers of whole sets. AKD, MKR, AED, ARD, AUH and FID compare the outputs of networks. The caller chooses the networks,
and names them beside the numbers; `minimodel.evaluation.assessors` has this project's own.

Notebook: ``notebooks/09b_what_a_table_hides.ipynb``.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from minimodel.errors import MinimodelError
from minimodel.warping import flow_to_pixels

MS_SSIM_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first (Wang et al. 2003)
SMALLEST_SCALE = 16  # side in pixels: a window of 11 still has somewhere to go


def l1(prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """Mean absolute difference of colours in [0, 1], one a picture."""
    return (prediction - target).abs().flatten(1).mean(1)


def psnr(prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """Peak signal-to-noise ratio in dB for colours in [0, 1], one a picture. Equal pictures get 100."""
    return -10 * (prediction - target).square().flatten(1).mean(1).clamp_min(1e-10).log10()


def ssim(prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """Structural similarity (torchmetrics, 11-pixel Gaussian window), one a picture."""
    values = structural_similarity_index_measure(prediction, target, data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)  # a tuple comes only with further arguments
    return values


def ms_ssim_scales(height: int, width: int) -> int:
    """How many of the five scales of MS-SSIM fit into a picture: the coarsest must have sides of at least 16 pixels.
    Raises `MinimodelError` if none fits."""
    scales = sum(min(height, width) >= SMALLEST_SCALE * 2**scale for scale in range(len(MS_SSIM_EXPONENTS)))
    if not scales:
        raise MinimodelError(f"pictures of {height} x {width} pixels: MS-SSIM needs sides of at least {SMALLEST_SCALE}")
    return scales


def ms_ssim(prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """Multi-scale structural similarity (torchmetrics), one a picture, on the `ms_ssim_scales` that fit. State their
    number beside the result: all five need 256 pixels, and fewer are another metric. The exponents of those that fit
    are scaled to a sum of 1."""
    exponents = MS_SSIM_EXPONENTS[: ms_ssim_scales(*prediction.shape[-2:])]
    betas = tuple(exponent / sum(exponents) for exponent in exponents)
    return multiscale_structural_similarity_index_measure(
        prediction, target, data_range=1.0, betas=betas, normalize="relu", reduction="none"
    )


def perceptual_distance(
    features: nn.Module, prediction: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b"]:
    """Mean absolute difference of frozen features, averaged over layers, one a picture. Name the features beside the
    number."""
    layers = zip(features(prediction), features(target), strict=True)
    return torch.stack([(a - b).abs().flatten(1).mean(1) for a, b in layers]).mean(0)


def lpips(
    features: nn.Module, weights: list[Tensor], prediction: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b"]:
    """Learned perceptual distance (Zhang et al. 2018), one a picture. Features are scaled to length 1 at each pixel;
    their squared difference is weighted by channel, averaged over the pixels and summed over the layers.

    ``features`` returns a list of layers (b, c_l, h_l, w_l), and ``weights`` has a (c_l,) for each;
    `minimodel.evaluation.lpips.load_lpips` loads the published ones.
    """
    total = prediction.new_zeros(len(prediction))
    for a, b, weight in zip(features(prediction), features(target), weights, strict=True):
        a, b = (x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in (a, b))
        total = total + torch.einsum("bchw,c->bhw", (a - b).square(), weight).mean((1, 2))
    return total


def akd(
    prediction: Float[Tensor, "b k 2"], target: Float[Tensor, "b k 2"], found: Bool[Tensor, "b k"]
) -> Float[Tensor, "b"]:
    """Average keypoint distance (TPSM section 4.1): the mean distance between the landmarks that a detector finds in
    the prediction and in the target, over those ``found`` in both. It has the landmarks' unit. NaN if none is found."""
    return ((prediction - target).norm(dim=-1) * found).sum(1) / found.sum(1)


def mkr(prediction: Bool[Tensor, "b k"], target: Bool[Tensor, "b k"]) -> Float[Tensor, "b"]:
    """Missing keypoint rate (TPSM section 4.1): of the landmarks found in the target, the share that isn't found in the
    prediction; NaN if none is found in the target. The detector defines when a landmark is found."""
    return (target & ~prediction).sum(1) / target.sum(1)


def aed(prediction: Float[Tensor, "b d"], target: Float[Tensor, "b d"]) -> Float[Tensor, "b"]:
    """Average Euclidean distance of two pictures' identity embeddings (TPSM section 4.1, MRFA's supplement)."""
    return (prediction - target).norm(dim=1)


def ard(prediction: Float[Tensor, "b 3"], target: Float[Tensor, "b 3"]) -> Float[Tensor, "b"]:
    """Average rotation distance (MRFA's supplement): the mean absolute difference of yaw, pitch and roll, in their
    unit. The supplement leaves open how the three angles are combined; the mean is our choice."""
    return (prediction - target).abs().mean(1)


def auh(prediction: Bool[Tensor, "b n"], target: Bool[Tensor, "b n"]) -> Float[Tensor, "b"]:
    """Hamming distance of action units (MRFA's supplement): the share of units that is active in one picture and not in
    the other. The papers' numbers, up to 0.85, can't be such shares, as guessing scores 0.5; their scale isn't
    stated."""
    return (prediction != target).float().mean(1)


def fid(prediction: Float[Tensor, "n d"], target: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Fréchet distance of the features of two sets of pictures, each taken as a Gaussian (Heusel et al. 2017): |m -
    m'|² + tr(C + C' - 2 (C C')^½).

    The published metric takes the 2048 features of one Inception network. Other features give other numbers, so name
    them beside the number. Small sets score too high, all sets of one size alike. Raises `MinimodelError` for a set of
    fewer than 2.
    """
    if min(len(prediction), len(target)) < 2:
        raise MinimodelError(f"features of {len(prediction)} and {len(target)} pictures: FID needs at least 2 of each")
    sets = [x.double() for x in (prediction, target)]
    (mean, spread), (other_mean, other_spread) = ((x.mean(0), torch.atleast_2d(torch.cov(x.T))) for x in sets)
    # C C' isn't symmetric, but has the eigenvalues of C^½ C' C^½, which is, and whose roots are safe.
    values, vectors = torch.linalg.eigh(spread)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    product = torch.linalg.eigvalsh(root @ other_spread @ root).clamp_min(0).sqrt().sum()
    # Without the clamp sets that are alike could end just below 0.
    distance = (mean - other_mean).square().sum() + values.sum() + other_spread.diagonal().sum() - 2 * product
    return distance.clamp_min(0).float()


def sms(landmarks: Float[Tensor, "t k 2"]) -> Float[Tensor, ""]:
    """Measure how much landmarks jitter in a film: their distance from the middle between the frame before and the
    frame after (S2D Eq. 9), in the landmarks' unit.

    The paper leaves open which norm its bars stand for, and the unit of its numbers (51 to 115). Here it is the
    Euclidean norm of a point's two coordinates, summed over the points, averaged over the T - 2 frames with two
    neighbours; the unit is a pixel of the film if the landmarks are given in pixels. A steady motion costs nothing and
    real acceleration does, so the truth isn't 0. Raises `MinimodelError` for fewer than 3 frames.
    """
    if len(landmarks) < 3:
        raise MinimodelError(f"landmarks of {len(landmarks)} frames: expected at least 3")
    middle = (landmarks[:-2] + landmarks[2:]) / 2
    return (middle - landmarks[1:-1]).norm(dim=-1).sum(1).mean()


def landmark_error(found: Float[Tensor, "t 74 2"], truth: Float[Tensor, "t 74 2"]) -> Float[Tensor, "t"]:
    """Normalised mean error, one a frame: the mean distance over the points, as a share of the distance between the
    outer corners of the eyes."""
    eyes = (truth[:, 36] - truth[:, 45]).norm(dim=-1)
    return (found - truth).norm(dim=-1).mean(1) / eyes


def flow_error(
    flow: Float[Tensor, "b 2 h w"], truth: Float[Tensor, "b 2 h w"], where: Bool[Tensor, "b 1 h w"]
) -> Float[Tensor, "b"]:
    """Mean end-point error over the pixels ``where``, in pixels of the flow's resolution; NaN if there are no such
    pixels. Both flows are normalised."""
    error = flow_to_pixels(flow - truth).norm(dim=1, keepdim=True)
    return (error * where).flatten(1).sum(1) / where.flatten(1).sum(1)


def balanced_accuracy(predicted: Bool[Tensor, "b 1 h w"], truth: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b"]:
    """The mean of two shares: of the visible and of the hidden pixels that are recognised. Guessing scores 0.5. NaN if
    no pixel is hidden, or none is visible."""
    right = predicted == truth
    shares = [(right & part).flatten(1).sum(1) / part.flatten(1).sum(1) for part in (truth, ~truth)]
    return (shares[0] + shares[1]) / 2


def shape_error(
    prediction: Float[Tensor, "b n 2"], target: Float[Tensor, "b n 2"], where: Bool[Tensor, "b n"]
) -> Float[Tensor, "b"]:
    """Mean distance of corresponding points ``where`` they count, after ``prediction`` was shifted, turned and scaled
    onto ``target`` as well as possible (least squares, no mirroring). What is left is a difference of shape."""
    weights = where[..., None] / where.sum(1)[:, None, None]
    prediction, target = (x - (weights * x).sum(1, keepdim=True) for x in (prediction, target))
    # In the complex plane turning and scaling is one factor, and its best value that of a one-dimensional regression.
    prediction, target, weights = torch.view_as_complex(prediction), torch.view_as_complex(target), weights[..., 0]
    factor = (weights * prediction.conj() * target).sum(1) / (weights * prediction.abs().square()).sum(1)
    return (weights * (factor[:, None] * prediction - target).abs()).sum(1)
