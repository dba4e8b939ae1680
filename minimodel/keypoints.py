"""Points from heatmaps, heatmaps from points, and the detectors that learn both without labels (MRFA sections 3.1,
3.4; TPSM section 3.1).

Notebooks: ``notebooks/03_unsupervised_keypoints.ipynb``, ``notebooks/02_thin_plate_splines.ipynb``.
"""

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.blocks import Hourglass, ResNet
from minimodel.warping import identity_grid


def soft_argmax(
    logits: Float[Tensor, "b k h w"], *, temperature: float = 1.0
) -> tuple[Float[Tensor, "b k 2"], Float[Tensor, "b k h w"]]:
    """The mean position under softmax(logits / temperature), and that softmax itself.

    Positions are normalised. Unlike the position of the maximum, the mean position has a gradient and isn't bound to
    pixel centres.
    """
    heatmaps = rearrange(
        torch.softmax((logits / temperature).flatten(2), dim=-1), "b k (h w) -> b k h w", h=logits.shape[2]
    )
    grid = identity_grid(*logits.shape[-2:], device=logits.device, dtype=logits.dtype)
    return einsum(heatmaps, grid, "b k h w, c h w -> b k c"), heatmaps


def gaussian_heatmaps(
    points: Float[Tensor, "b k 2"], size: tuple[int, int], variance: float
) -> Float[Tensor, "b k h w"]:
    """Draw exp(-|z - p|^2 / (2 variance)) at every pixel z of ``size`` = (h, w), in normalised units; the peak is 1."""
    # A Gaussian in two dimensions is the product of one along x and one along y.
    x, y = points.unbind(-1)
    height, width = size
    grid = identity_grid(height, width, device=points.device, dtype=points.dtype)
    along_x = torch.exp(-((grid[0, 0] - x[..., None]) ** 2) / (2 * variance))
    along_y = torch.exp(-((grid[1, :, 0] - y[..., None]) ** 2) / (2 * variance))
    return along_y[..., :, None] * along_x[..., None, :]


class KeypointDetector(nn.Module):
    """Finds K points and K affine matrices in an image; trained without labels.

    An hourglass at 1 / ``scale`` of the image's resolution ends in a heatmap and four affine maps for each point. The
    soft-argmax of the heatmap is the point (normalised); the affine maps averaged under the heatmap are its matrix.
    ``folded`` gives the hourglass every pixel, ``scale``^2 of them stacked as channels, instead of their average: at 64
    pixels an eyelid doesn't survive averaging. ``with_affine`` False leaves the matrices out (None).

    With ``spread`` every point starts at a random position of its own, and its heatmap is multiplied by a Gaussian
    there: the five points of a spline show no bending while all lie in the middle of the picture.
    """

    places: Tensor | None
    spread_variance = 0.09  # of the Gaussian around that position, in normalised units

    def __init__(
        self,
        points: int,
        *,
        scale: int,
        folded: bool,
        base: int,
        levels: int,
        maximum: int,
        head_kernel: int,
        norm: str,
        with_affine: bool = True,
        spread: bool = False,
        temperature: float = 0.1,
    ):
        super().__init__()
        self.reduce = nn.PixelUnshuffle(scale) if folded else nn.AvgPool2d(scale)
        self.hourglass = Hourglass(3 * scale**2 if folded else 3, base=base, levels=levels, maximum=maximum, norm=norm)
        self.step = scale * self.hourglass.step
        self.heatmap_head = nn.Conv2d(self.hourglass.channels, points, head_kernel, padding=head_kernel // 2)
        self.temperature = temperature
        self.register_buffer("places", None)
        if spread:
            self.places = torch.empty(points, 2).uniform_(-0.8, 0.8)
            nn.init.normal_(self.heatmap_head.weight, std=1e-3)
        self.affine_head = None
        if with_affine:
            self.affine_head = nn.Conv2d(self.hourglass.channels, 4 * points, head_kernel, padding=head_kernel // 2)
            # Every matrix starts as the identity: the prior begins as plain translations of parts.
            nn.init.zeros_(self.affine_head.weight)
            self.affine_head.bias = nn.Parameter(torch.eye(2).flatten().repeat(points))

    def forward(
        self, image: Float[Tensor, "b 3 height width"]
    ) -> tuple[Float[Tensor, "b k 2"], Float[Tensor, "b k 2 2"] | None]:
        features = self.hourglass(self.reduce(image))
        # Positions in bfloat16 would snap to a coarse grid, so the heads' outputs leave any autocast here.
        with torch.autocast(image.device.type, enabled=False):
            logits = self.heatmap_head(features.float())
            if self.places is not None:  # the softmax is multiplied by the Gaussians
                away = identity_grid(*logits.shape[-2:], device=logits.device) - self.places[..., None, None]
                logits = logits - self.temperature * away.square().sum(1) / (2 * self.spread_variance)
            points, heatmaps = soft_argmax(logits, temperature=self.temperature)
            if self.affine_head is None:
                return points, None
            maps = rearrange(self.affine_head(features.float()), "b (k i j) h w -> b k i j h w", i=2, j=2)
            return points, einsum(heatmaps, maps, "b k h w, b k i j h w -> b k i j")


class SplineDetector(nn.Module):
    """Finds the N points of each of K splines in an image; trained without labels (TPSM section 3.1).

    A residual network predicts the normalised positions, all inside the image; there are no heatmaps. ``sizes`` are
    those of `ResNet`.
    """

    def __init__(self, splines: int, points: int, **sizes):
        super().__init__()
        self.points, self.step = points, 1
        self.network = ResNet(3, 2 * splines * points, **sizes)
        # Five points in one place show no bending: splines start spread over the image.
        start = torch.empty(2 * splines * points).uniform_(-0.8, 0.8)
        self.network.head.bias.data = torch.logit((start + 1) / 2)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k n 2"]:
        positions = 2 * torch.sigmoid(self.network(image)) - 1
        return rearrange(positions, "b (k n c) -> b k n c", n=self.points, c=2)
