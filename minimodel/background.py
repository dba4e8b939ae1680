"""How the background moved between two frames (TPSM section 3.1, Eq. 4).

Notebook: ``notebooks/A2_numerics.ipynb``.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.blocks import Hourglass, zero_convolution
from minimodel.tps import background_flow
from minimodel.warping import full_precision, identity_grid, resize_flow, size_of, warp

SIDE = 64  # pixels of the longer side at which frames are compared; larger ones are averaged
REACH = 0.4  # the longest shift in the search, normalised: a fifth of the picture
PACE = 60.0  # radians of phase from black to white
TEMPERATURE = 0.01
POLISHING = 3  # Gauss-Newton steps


class BackgroundPredictor(nn.Module):
    """Finds A_bg, the affine map from the driving frame's background to the source's (normalised).

    The published network is a ResNet-18 from both frames to six numbers. In runs of an hour such a network learns next
    to nothing, even from the truth. Here only the background's mask is learnt, from single frames
    (`losses.background_mask_loss`). The shift at which the two backgrounds agree best follows by correlation
    (`shift`). A few steps of least squares (`gauss_newton`) add fractions of a pixel, turn and zoom. Sizes are those of
    `Hourglass`.
    """

    def __init__(self, *, base: int, levels: int, maximum: int, norm: str):
        super().__init__()
        self.step = 2 ** (levels + 1)
        self.hourglass = Hourglass(3, base=base, levels=levels, maximum=maximum, norm=norm)
        self.head = nn.Conv2d(self.hourglass.channels, 1, 3, padding=1)
        zero_convolution(self.head)  # at first every pixel counts as much as any other

    @torch.no_grad()
    def forward(self, source: Float[Tensor, "b 3 h w"], driving: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2 3"]:
        """Find A_bg; no gradient goes through this method, as only `logits` is trained."""
        source, driving = self.resized(source), self.resized(driving)
        weights = torch.sigmoid(self.logits(torch.cat([source, driving]))).chunk(2)
        found = shift(source, driving, *weights)
        matrix = torch.cat([torch.eye(2, device=found.device).expand(len(found), 2, 2), found[..., None]], dim=2)
        for _ in range(POLISHING):
            matrix = gauss_newton(matrix, source, driving, *weights)
        return matrix

    def resized(self, frames: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 3 h w"]:
        """Resize frames to the size at which they are compared, with `SIDE` pixels or fewer on the longer side."""
        shrink = min(1.0, SIDE / max(frames.shape[-2:]))
        height, width = (max(1, round(n * shrink / self.step)) * self.step for n in frames.shape[-2:])
        return resize_flow(frames, (height, width))

    def logits(self, frames: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Logits for each pixel of resized frames to be background, computed at half the resolution."""
        logits = self.head(self.hourglass(F.avg_pool2d(frames, 2))).float()
        return resize_flow(logits, size_of(frames))


@full_precision
def shift(
    source: Float[Tensor, "b c h w"],
    driving: Float[Tensor, "b c h w"],
    source_weights: Float[Tensor, "b 1 h w"],
    driving_weights: Float[Tensor, "b 1 h w"],
) -> Float[Tensor, "b 2"]:
    """Find the normalised shift t for which ``source`` at z + t agrees with ``driving`` at z.

    The result is a mean of all whole-pixel shifts within `REACH`. A shift counts the more, the better the weighted
    pixels agree.

    Two colours agree by cos(pace (a - b)): 1 if the colours are equal, about 0 on average if they are unrelated.
    Unrelated pixels can't outvote the background, as they would with squared differences. A cosine of a difference is
    a sum of products, cos a cos b + sin a sin b; all shifts together are therefore one correlation.
    """
    height, width = source.shape[-2:]
    agreement = 2 * _correlate(source_weights * _phases(source), driving_weights * _phases(driving)).mean(1)
    overlap = _correlate(source_weights, driving_weights)[:, 0]
    # Where hardly any background lies on background, agreement could be chance.
    agreement = agreement / (overlap + 0.01 * height * width)
    likely = torch.softmax(agreement.flatten(1) / TEMPERATURE, dim=1).view_as(agreement)
    down, right = (torch.arange(-(n // 2), n // 2 + 1, device=likely.device) for n in agreement.shape[-2:])
    x = (likely.sum(1) * right).sum(1) * 2 / width
    y = (likely.sum(2) * down).sum(1) * 2 / height
    return torch.stack([x, y], dim=1)


def _phases(image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 2*c h w"]:
    return torch.cat([torch.cos(PACE * image), torch.sin(PACE * image)], dim=1)


def _correlate(source: Float[Tensor, "b c h w"], driving: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c down right"]:
    """The sum over z of source(z + t) driving(z) for all shifts t within `REACH`; zero outside."""
    size = source.shape[-2:]
    double = [2 * n for n in size]
    spectrum = torch.fft.rfft2(source, double) * torch.fft.rfft2(driving, double).conj()
    everywhere = torch.fft.irfft2(spectrum, double)
    reach = [int(REACH * n / 2) for n in size]
    down, right = (torch.arange(-r, r + 1, device=source.device) for r in reach)
    return everywhere[..., down[:, None] % double[0], right % double[1]]


@full_precision
def gauss_newton(
    matrix: Float[Tensor, "b 2 3"],
    source: Float[Tensor, "b c h w"],
    driving: Float[Tensor, "b c h w"],
    source_weights: Float[Tensor, "b 1 h w"],
    driving_weights: Float[Tensor, "b 1 h w"],
) -> Float[Tensor, "b 2 3"]:
    """Improve an affine map by one step of weighted least squares of source(A z) - driving(z), linearised in A."""
    channels, (height, width) = source.shape[1], source.shape[-2:]
    along_y, along_x = torch.gradient(source, dim=(2, 3))
    read = torch.cat([source, along_x * width / 2, along_y * height / 2, source_weights], dim=1)
    flow = background_flow(matrix, (height, width))
    moved, along_x, along_y, moved_weights = warp(read, flow, padding="zeros").split([channels] * 3 + [1], dim=1)
    difference = moved - driving
    # Pixels that don't fit after the shift aren't background, whatever their weights.
    fits = torch.exp(-(difference * PACE / 2).square().mean(1, keepdim=True))
    weight = driving_weights * moved_weights * fits
    grid = identity_grid(height, width, device=flow.device, dtype=flow.dtype)
    place = torch.cat([grid, torch.ones_like(grid[:1])])
    slopes = torch.stack([along_x, along_y], dim=1)
    slopes = rearrange(slopes[:, :, None] * place[:, None], "b xy three c h w -> b (c h w) (xy three)")
    weighted = slopes * weight.expand_as(difference).reshape(len(slopes), -1, 1)
    normal, aim = weighted.mT @ slopes, weighted.mT @ rearrange(difference, "b c h w -> b (c h w) 1")
    # Damped, so that a wall of one colour moves nowhere.
    size = reduce(normal.diagonal(dim1=1, dim2=2), "b six -> b 1 1", "mean")
    damping = (1e-2 * size + 1e-4 * height * width) * torch.eye(6, device=normal.device, dtype=normal.dtype)
    return matrix - torch.linalg.solve(normal + damping, aim).view_as(matrix)
