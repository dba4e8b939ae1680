"""The structure correlation volume: scores for all pairs of driving and source positions (MRFA section 3.2, appendix).

`volume` compares every driving position with every source position. `lookup_volume` reads a patch of the volume around
the end of the current flow. Averaging over source positions and bilinear reading are linear in the source features.
Therefore `lookup` computes the same numbers from the two feature maps and never holds the volume, which would take
17 GB at 1024 pixels.

Notebooks: ``notebooks/06_structure_correlation.ipynb``, ``notebooks/07_lookup_and_refinement.ipynb``.
"""

import math

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.blocks import Hourglass
from minimodel.keypoints import gaussian_heatmaps
from minimodel.warping import extent, full_precision, identity_grid, resize_flow, size_of, to_pixels


@full_precision
def volume(
    driving_features: Float[Tensor, "b c h w"], source_features: Float[Tensor, "b c height width"]
) -> Float[Tensor, "b h w height width"]:
    """The dot products of all driving with all source features, divided by sqrt(C) as in RAFT."""
    scaled = driving_features / driving_features.shape[1] ** 0.5  # the small factor is scaled, not the large product
    return einsum(scaled, source_features, "b c h w, b c i j -> b h w i j")


def _lookup_pyramid(
    pyramid: list[Tensor], flow: Float[Tensor, "b 2 h w"], *, radius: int
) -> Float[Tensor, "b features h w"]:
    """Read (2r + 1)^2 values around z + flow(z) in every volume (b, h, w, H / 2^l, W / 2^l), level 0 first.

    Offsets are pixels of the level, values are bilinear and zero outside; dy is the outer and dx the inner index.
    """
    batch, height, width = pyramid[0].shape[:3]
    positions = _flow_positions(flow, size_of(pyramid[0]))
    values = []
    for level, volume in enumerate(pyramid):
        index, inside, fraction = _patch(positions, level, radius, size_of(volume))
        patch = volume.reshape(batch, height * width, -1).gather(2, index) * inside
        values.append(_interpolate(patch, fraction, radius))
    return rearrange(torch.cat(values, dim=-1), "b (h w) k -> b k h w", h=height)


def lookup_volume(
    volume: Float[Tensor, "b h w height width"], flow: Float[Tensor, "b 2 hi wi"], *, radius: int, levels: int
) -> Float[Tensor, "b features hi wi"]:
    """Read (2r + 1)^2 values of a volume around z + flow(z), at each of ``levels``, for a normalised flow.

    Level l averages the source positions 2^l x 2^l. Offsets are pixels of the level, -r to r; values are bilinear, and
    zero outside. Level 0's values come first; within a level dy is the outer and dx the inner index. For a flow coarser
    than the volume, the driving positions are averaged to the flow's size. A finer flow is averaged to the volume's
    size, and the values are upsampled.

    >>> values = lookup_volume(volume(driving_features, source_features), flow, radius=3, levels=2)  # (b, 98, h, w)
    """
    size = size_of(flow)
    shared = _shared_size(flow, volume[..., 0, 0])
    height = volume.shape[3]
    # The driving side is averaged like any other map, with the source positions in the place of channels.
    volume = resize_flow(rearrange(volume, "b h w i j -> b (i j) h w"), shared)
    volume = rearrange(volume, "b (i j) h w -> b (h w) i j", i=height)
    pyramid = [F.avg_pool2d(volume, 2**level).unflatten(1, shared) for level in range(levels)]
    return resize_flow(_lookup_pyramid(pyramid, resize_flow(flow, shared), radius=radius), size)


@full_precision
def lookup(
    driving_features: Float[Tensor, "b c h w"],
    source_features: Float[Tensor, "b c height width"],
    flow: Float[Tensor, "b 2 hi wi"],
    *,
    radius: int,
    levels: int,
    chunk: int = 1024,
) -> Float[Tensor, "b features hi wi"]:
    """Compute ``lookup_volume(volume(driving_features, source_features), flow)`` without the volume.

    The function works on ``chunk`` driving pixels at a time, and holds (2r + 2)^2 x C x ``chunk`` numbers (those of all
    pixels while gradients are recorded).

    >>> values = lookup(driving_features, source_features, flow, radius=3, levels=2)  # (b, 98, h, w)
    """
    size = size_of(flow)
    shared = _shared_size(flow, driving_features[:, 0])
    driving = rearrange(resize_flow(driving_features, shared), "b c h w -> b (h w) c")
    driving = driving / driving_features.shape[1] ** 0.5
    positions = _flow_positions(resize_flow(flow, shared), size_of(source_features))
    values = []
    for level in range(levels):
        pooled = F.avg_pool2d(source_features, 2**level)
        source = rearrange(pooled, "b c i j -> b (i j) c").contiguous()
        index, inside, fraction = _patch(positions, level, radius, size_of(pooled))
        patches = torch.empty(index.shape, device=flow.device, dtype=flow.dtype)
        for b in range(len(source)):
            for start in range(0, driving.shape[1], chunk):
                part = slice(start, start + chunk)
                neighbours = source[b][index[b, part]]  # (chunk, (2r + 2)^2, c)
                patches[b, part] = einsum(neighbours, driving[b, part], "n k c, n c -> n k")
        values.append(_interpolate(patches * inside, fraction, radius))
    maps = rearrange(torch.cat(values, dim=-1), "b (h w) k -> b k h w", h=shared[0])
    return resize_flow(maps, size)


@full_precision
def softmax_flow(volume: Float[Tensor, "b h w height width"]) -> Float[Tensor, "b 2 h w"]:
    """The flow of a model without a prior, normalised: to the mean source position under the softmax of each driving
    position's scores (MRFA Eq. 8)."""
    _, height, width, rows, columns = volume.shape
    attention = torch.softmax(volume.flatten(3), dim=-1)
    like = dict(device=volume.device, dtype=volume.dtype)
    expected = einsum(attention, identity_grid(rows, columns, **like).flatten(1), "b h w n, c n -> b c h w")
    return expected - identity_grid(height, width, **like)


class Correlation:
    """The structure correlation of one batch of pairs, read at each iteration's flow.

    ``hold_volume`` changes memory and time, not the numbers: True keeps the volumes of the resolutions read so far,
    which is quickest for small images; False calls `lookup`. Values have the resolution of the flow or of the features,
    whichever is lower: the updater upsamples after its first 1x1 convolution, which is cheaper and gives the same.
    """

    def __init__(
        self,
        driving_features: Float[Tensor, "b c h w"],
        source_features: Float[Tensor, "b c height width"],
        *,
        radius: int,
        levels: int,
        hold_volume: bool,
    ):
        self.driving_features, self.source_features = driving_features, source_features
        self.radius, self.levels, self.hold_volume = radius, levels, hold_volume
        self.pyramids: dict[tuple[int, int], list[Tensor]] = {}

    def volume(self) -> Float[Tensor, "b h w height width"]:
        """The whole correlation volume, at the features' resolution."""
        return self._pyramid(size_of(self.driving_features))[0]

    def __call__(self, flow: Float[Tensor, "b 2 hi wi"]) -> Float[Tensor, "b features h w"]:
        """The values of `lookup_volume` around a normalised flow."""
        shared = _shared_size(flow, self.driving_features[:, 0])
        flow = resize_flow(flow, shared)
        if self.hold_volume:
            return _lookup_pyramid(self._pyramid(shared), flow, radius=self.radius)
        features = self.driving_features, self.source_features
        return lookup(*features, flow, radius=self.radius, levels=self.levels)

    def _pyramid(self, size: tuple[int, int]) -> list[Tensor]:
        # Averaging features first gives the same levels as averaging volumes, for a fraction of the work.
        if size not in self.pyramids:
            driving = resize_flow(self.driving_features, size)
            pooled = (F.avg_pool2d(self.source_features, 2**level) for level in range(self.levels))
            self.pyramids[size] = [volume(driving, source) for source in pooled]
        return self.pyramids[size]


def _shared_size(flow: Tensor, driving: Float[Tensor, "b h w"]) -> tuple[int, int]:
    """The resolution at which a lookup reads: the flow's or the driving features', whichever is lower."""
    return min(flow.shape[-2], driving.shape[-2]), min(flow.shape[-1], driving.shape[-1])


def _flow_positions(flow: Float[Tensor, "b 2 h w"], source_size: tuple[int, int]) -> Float[Tensor, "b h*w 2"]:
    """z + flow(z) in pixels of the source features."""
    grid = identity_grid(*flow.shape[-2:], device=flow.device, dtype=flow.dtype)
    return to_pixels(rearrange(grid + flow, "b c h w -> b (h w) c"), source_size)


def _patch(positions: Tensor, level: int, radius: int, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The indices (b, n, (2r + 2)^2) of a level's patches, which indices are inside, and the centres' fractions.

    A fraction (b, n, 2) is the offset of a centre from the pixel before it. All values of a patch share one fraction,
    so (2r + 2)^2 whole pixels are enough for (2r + 1)^2 bilinear values.
    """
    height, width = size
    centre = (positions + 0.5) / 2**level - 0.5
    # Far outside all values are zero anyway; the clamp keeps the following integers small.
    limit = extent(size, positions) + radius + 1
    corner = torch.minimum(torch.maximum(centre.detach(), -limit), 2 * limit).floor()
    fraction = centre - corner
    offsets = torch.arange(-radius, radius + 2, device=positions.device)
    x = corner[..., 0, None].long() + offsets
    y = corner[..., 1, None].long() + offsets
    inside = ((y >= 0) & (y < height))[..., :, None] & ((x >= 0) & (x < width))[..., None, :]
    index = y.clamp(0, height - 1)[..., :, None] * width + x.clamp(0, width - 1)[..., None, :]
    return index.flatten(-2), inside.flatten(-2), fraction


def _interpolate(patch: Tensor, fraction: Tensor, radius: int) -> Tensor:
    """Whole-pixel patches (b, n, (2r + 2)^2) -> their bilinear values (b, n, (2r + 1)^2) at the given fractions."""
    patch = patch.unflatten(-1, (2 * radius + 2, 2 * radius + 2))
    x, y = fraction[..., 0, None, None], fraction[..., 1, None, None]
    patch = patch[..., :, :-1] * (1 - x) + patch[..., :, 1:] * x
    patch = patch[..., :-1, :] * (1 - y) + patch[..., 1:, :] * y
    return patch.flatten(-2)


class StructureEncoder(nn.Module):
    """Computes structure features from keypoints, and for the source from its image as well (MRFA section 3.2).

    The dot product of a driving and a source position's features is high where the positions correspond. Points enter
    as wide Gaussians, beside a learned embedding of each position; the embedding has ``size`` x ``size`` pixels and is
    resized for images of other sizes.
    """

    variance = 0.1  # of the Gaussians, in normalised units

    def __init__(
        self,
        points: int,
        features: int,
        *,
        sees_image: bool,
        size: int,
        base: int,
        levels: int,
        maximum: int,
        norm: str,
    ):
        super().__init__()
        self.sees_image = sees_image
        self.position = nn.Parameter(0.02 * torch.randn(1, points, size, size))
        inputs = 2 * points + (3 if sees_image else 0)
        self.hourglass = Hourglass(inputs, base=base, levels=levels, maximum=maximum, norm=norm)
        self.head = nn.Conv2d(self.hourglass.channels, features, 1)

    def forward(
        self, points: Float[Tensor, "b k 2"], size: tuple[int, int], image: Float[Tensor, "b 3 h w"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        position = resize_flow(self.position, size).expand(len(points), -1, -1, -1)
        inputs = [gaussian_heatmaps(points, size, self.variance), position]
        if image is not None:
            inputs.append(image)
        return self.head(self.hourglass(torch.cat(inputs, dim=1))).float()


class StructureCorrelation(nn.Module):
    """The two structure encoders, and the correlation of their features (MRFA section 3.2).

    The source's encoder may get the picture at 1 / ``scale`` of its side, beside the points; the driving encoder gets
    points alone. ``levels`` and ``radius`` are those of `lookup`.
    """

    # Volumes of up to this many numbers a pair are held, which is quicker; larger images use `lookup` (see
    # `Correlation`).
    held_numbers = 2**24

    def __init__(
        self,
        source_encoder: StructureEncoder,
        driving_encoder: StructureEncoder,
        *,
        scale: int,
        radius: int,
        levels: int,
    ):
        super().__init__()
        self.source_encoder, self.driving_encoder = source_encoder, driving_encoder
        self.scale, self.radius, self.levels = scale, radius, levels
        self.step = scale * math.lcm(source_encoder.hourglass.step, driving_encoder.hourglass.step)

    def encode_source(
        self, points: Float[Tensor, "b k 2"], image: Float[Tensor, "b 3 height width"]
    ) -> Float[Tensor, "b c h w"]:
        """Compute the source's structure features, which don't depend on the driving frame."""
        small = F.avg_pool2d(image, self.scale)
        shown = small if self.source_encoder.sees_image else None
        return self.source_encoder(points, size_of(small), shown)

    def forward(
        self, source_structure: Float[Tensor, "b c h w"], driving_points: Float[Tensor, "b k 2"]
    ) -> Correlation:
        height, width = source_structure.shape[-2:]
        driving_structure = self.driving_encoder(driving_points, (height, width))
        return Correlation(
            driving_structure,
            source_structure.expand(len(driving_structure), -1, -1, -1),
            radius=self.radius,
            levels=self.levels,
            hold_volume=(height * width) ** 2 <= self.held_numbers,
        )
