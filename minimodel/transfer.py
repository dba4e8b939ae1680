"""Three ways to transfer the motion of one person to another (TPSM section 3.4).

The driving frame enters the model as a `Motion` only. The points of this motion lie on the *driving* person's face, so
between two people the points carry shape as well as movement. `standard` takes the points as they are. `relative` takes
only their movement. `avd` puts the points onto the source's shape, by a small network. `transfer` does one of these for
a whole film.

Notebook: ``notebooks/10_motion_transfer.ipynb``.
"""

import hashlib
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minimodel.errors import MinimodelError, check_choice
from minimodel.motion import Motion
from minimodel.saving import find_weights, load_weights_into, make_metadata, read_config, read_metadata, write_weights
from minimodel.warping import full_precision

Mode = Literal["standard", "relative", "avd"]
MODES: tuple[str, ...] = get_args(Mode)


def transfer(
    mode: Mode,
    source_motion: Motion,
    film: Motion,
    *,
    start_frame: int | None = None,
    network: "AvdNetwork | None" = None,
) -> Motion:
    """The motions in which to render a source of batch 1, for the motions of a film's T frames.

    "relative" counts movement from ``start_frame``, by default from `best_start`. "avd" needs its ``network``. A
    `MinimodelError` is raised for an unknown mode, for a start frame outside the film or with another mode, and for
    "avd" without a network.

    >>> source, film = model.encode_source(photo), model.encode_film(frames)
    >>> pictures = model.render_film(source, transfer("relative", source.motion, film))
    """
    check_choice("mode", mode, MODES)
    if mode == "relative":
        start = best_start(source_motion, film) if start_frame is None else start_frame
        if not 0 <= start < len(film):
            raise MinimodelError(f"start frame {start}: the driving film has frames 0 to {len(film) - 1}")
        return relative(source_motion, film, film[start : start + 1])
    if start_frame is not None:
        raise MinimodelError(f"a start frame is for mode relative; the mode is {mode}")
    if mode == "standard":
        return standard(source_motion, film)
    if network is None:
        raise MinimodelError("mode avd needs its network: AvdNetwork.load(weights, model) loads it")
    return avd(source_motion, film, network)


def standard(source_motion: Motion, driving_motion: Motion) -> Motion:
    """Return the driving frame's motion as it is, with the driving person's shape."""
    return driving_motion


def relative(
    source_motion: Motion, driving_motion: Motion, start_motion: Motion, *, scale: float | None = None
) -> Motion:
    """Apply the movement since the driving video's starting frame to the source:

    p = p_S + scale (p_D - p_start) and A = A_D A_start^-1 A_S.

    The result is right where the starting frame and the source share a pose. ``scale`` fits the length of the movement
    to the source's size; the default is `movement_scale`. A source and a start of batch 1 serve all driving frames.
    Motions of different kinds raise a `MinimodelError`.
    """
    _same_kind(source_motion, driving_motion, start_motion)
    factor = movement_scale(source_motion, start_motion)[:, None, None] if scale is None else scale
    points = source_motion.points + factor * (driving_motion.points - start_motion.points)
    affine = None
    if source_motion.affine is not None and driving_motion.affine is not None and start_motion.affine is not None:
        affine = _move_affine(driving_motion.affine, start_motion.affine, source_motion.affine)
    return Motion(points, affine)


@full_precision
def _move_affine(driving: Tensor, start: Tensor, source: Tensor) -> Tensor:
    batch = max(len(driving), len(start), len(source))
    # A_D A_start^-1 as the solution X of X A_start = A_D, as in `affine.part_flows`.
    return torch.linalg.solve(start.expand(batch, -1, -1, -1), driving.expand(batch, -1, -1, -1), left=False) @ source


def movement_scale(source_motion: Motion, start_motion: Motion) -> Float[Tensor, "b"]:
    """The size of the source's face divided by that of the starting frame.

    A size is the square root of the area of the points' convex hull. Points that span no area raise a
    `MinimodelError`.
    """
    return _sizes(source_motion.points) / _sizes(start_motion.points)


def shape_distance(source_motion: Motion, driving_motion: Motion) -> Float[Tensor, "t"]:
    """The mean squared distance of each driving frame's points to the source's, without place and size.

    Points are centred and divided by the size of `movement_scale` first. `relative` starts best at the frame with the
    smallest distance.
    """
    source, driving = (_normalised(motion.points) for motion in (source_motion, driving_motion))
    return (driving - source).square().sum(-1).mean(-1)


def best_start(source_motion: Motion, driving_motion: Motion) -> int:
    """The index of the driving frame with the smallest `shape_distance` to the source."""
    return int(shape_distance(source_motion, driving_motion).argmin())


# Of landmarks: above it two frames show different poses. Measured on 1012 pairs of a photo and a film of somebody else,
# from 23 real clips, by the landmarks of a face mesh. Where the best start was below, the head's turn never differed by
# more than a quarter of the distance from eyes to mouth, about 25 degrees (540 pairs); above 0.02 it did in 260 of 298.
# By those of the shipped detector (364 pairs of 14 clips) it did in one of seven below and in one of two above; and of
# films that do show the photo's turn nine of ten were below. One person's films start at most 0.0008 from their first
# frame. Of two rendered people, one of whom looks ahead, the other has turned by half a radian. Points that a model
# finds by itself don't tell: by ten of them the two kinds of pairs overlap, and each model has its own scale.
SAME_POSE = 0.01


def same_pose(source_landmarks: Motion, driving_landmarks: Motion) -> bool:
    """Whether a driving frame shows the source's pose, by the `shape_distance` of 74 landmarks.

    The motions hold landmarks as points, whatever points move the picture. Without a frame of the same pose `relative`
    adds the driving movement to a pose that it doesn't fit.
    """
    return float(shape_distance(source_landmarks, driving_landmarks)) < SAME_POSE


def _normalised(points: Float[Tensor, "b k 2"]) -> Float[Tensor, "b k 2"]:
    return (points - points.mean(1, keepdim=True)) / _sizes(points)[:, None, None]


def _sizes(points: Float[Tensor, "b k 2"]) -> Float[Tensor, "b"]:
    """The square root of the area of each convex hull (scipy's ``volume`` is the area in two dimensions)."""
    from scipy.spatial import ConvexHull, QhullError  # takes as long to import as all of the package

    try:
        areas = [ConvexHull(p).volume for p in points.detach().double().cpu().numpy()]
    except (QhullError, ValueError) as error:
        raise MinimodelError(
            f"{points.shape[1]} points that span no area (or aren't finite) have no size to compare"
        ) from error
    return torch.tensor(areas, dtype=points.dtype, device=points.device).sqrt()


def avd(source_motion: Motion, driving_motion: Motion, network: "AvdNetwork") -> Motion:
    """Put the driving frame's pose onto the source's shape, by ``network``.

    A source of batch 1 serves all driving frames. Motion that the network isn't built for raises a `MinimodelError`.
    """
    _same_kind(source_motion, driving_motion)
    source, driving = flatten(source_motion), flatten(driving_motion)
    count = driving_motion.points.shape[1]
    if (count, driving_motion.affine is not None) != (network.points, network.with_affine):
        raise MinimodelError(
            f"motion of {count} points {'with' if driving_motion.affine is not None else 'without'} matrices; this avd"
            f" network takes {network.points} {'with' if network.with_affine else 'without'}"
        )
    return unflatten(network(source.expand_as(driving), driving), driving_motion)


def _same_kind(source_motion: Motion, *others: Motion) -> None:
    for other in others:
        if source_motion.points.shape[1:] != other.points.shape[1:]:
            raise MinimodelError(
                f"{source_motion.points.shape[1]} source points and {other.points.shape[1]} driving points"
            )
        if (source_motion.affine is None) != (other.affine is None):
            raise MinimodelError("one motion has affine matrices and the other has none")


def flatten(motion: Motion) -> Float[Tensor, "b d"]:
    """Join points and matrices, if there are any, to one row of numbers a frame; points come first."""
    parts = [motion.points] if motion.affine is None else [motion.points, motion.affine]
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def unflatten(numbers: Float[Tensor, "b d"], like: Motion) -> Motion:
    """Undo `flatten`, for a motion of as many points as ``like``, with matrices if ``like`` has any."""
    count = like.points[0].numel()
    affine = None if like.affine is None else numbers[:, count:].unflatten(1, like.affine.shape[1:])
    return Motion(numbers[:, :count].unflatten(1, like.points.shape[1:]), affine)


def deformed(motion: Motion, generator: torch.Generator) -> Motion:
    """Deform a motion at random to that of another person, for training `AvdNetwork`.

    Points are stretched along x and y, shifted together, and each moved a little on its own. The paper has "randomly
    deformed" and no sizes. Ours are about the spread of the points of ``tiny`` over 200 rendered people who all look
    straight ahead; two people differ by 1.4 times that.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(motion.points)

    count, points = motion.points.shape[:2]
    stretch = torch.exp(0.1 * normal(count, 1, 2))
    place = stretch * motion.points + 0.04 * normal(count, 1, 2) + 0.02 * normal(count, points, 2)
    affine = motion.affine
    if affine is not None:
        # A stretch of the picture multiplies the matrix from the left. On the right is the reference frame, which is
        # never observed and may differ between two people.
        affine = torch.diag_embed(stretch) @ affine @ (torch.eye(2).to(affine) + 0.1 * normal(*affine.shape))
    return replace(motion, points=place, affine=affine)


class AvdNetwork(nn.Module):
    """Joins the shape of one frame with the pose of another (animation via disentanglement, TPSM section 3.4).

    Two encoders and a decoder of fully connected layers work on the rows of `flatten`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, points: int, *, with_affine: bool, width: int = 128, code: int = 32):
        super().__init__()
        self.points, self.with_affine = points, with_affine
        self.sizes = dict(points=points, with_affine=with_affine, width=width, code=code)
        numbers = points * (6 if with_affine else 2)
        self.shape_encoder = _layers(numbers, width, width, code)
        self.pose_encoder = _layers(numbers, width, width, code)
        self.decoder = _layers(2 * code, width, width, numbers)
        # Of the training set, so that the layers get numbers of size one.
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("std", torch.ones(numbers))

    def forward(self, source: Float[Tensor, "b d"], driving: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        shape = self.shape_encoder((source - self.mean) / self.std)
        pose = self.pose_encoder((driving - self.mean) / self.std)
        # The decoder predicts the movement of the source. A decoder of the points themselves, as in the paper, was some
        # percent further off.
        return source + self.std * self.decoder(torch.cat([shape, pose], dim=1))

    def save(self, path: str | Path, *, model: nn.Module) -> None:
        """Write the weights, with the `fingerprint` of the ``model`` whose points trained this network."""
        write_weights(self, path, make_metadata(json.dumps(self.sizes), kind="avd", points_of=fingerprint(model)))

    @classmethod
    def load(cls, weights: str | Path, model: nn.Module) -> "AvdNetwork":
        """Load the avd network of ``model``, in evaluation mode, on the model's device.

        The network is the model's own (`own_avd`), or else the file beside the model's ``weights`` (`avd_path`). A
        missing file, and one trained on the points of other weights, raise a `MinimodelError`.
        """
        own = own_avd(model)
        if own is not None:
            return own
        path = avd_path(weights)
        command = f"minimodel train-avd --weights {weights}"
        if not path.exists():
            raise MinimodelError(f"mode avd needs {path}, which isn't there: it is made by `{command}`")
        if read_metadata(path, "avd")["points_of"] != fingerprint(model):
            raise MinimodelError(f"{path}: was trained on the points of other weights; train it again: `{command}`")
        network = read_config(path, "avd", lambda text: cls(**json.loads(text)))
        load_weights_into(network, path)
        return network.eval().to(next(model.parameters()).device)


def _layers(*widths: int) -> nn.Sequential:
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def own_avd(model: nn.Module) -> AvdNetwork | None:
    """The avd network among a model's own weights, as in TPSM's published file; None if there is none."""
    return getattr(model, "avd", None)


def avd_path(weights: str | Path) -> Path:
    """The path of the avd network for a model's weights: avd-NAME.safetensors in the same folder."""
    path = find_weights(weights)
    return path.with_name(f"avd-{path.name}")


def fingerprint(model: nn.Module) -> str:
    """A hash of all weights of the prior; it differs between models whose points may differ."""
    found = hashlib.sha256()
    for name, value in sorted(model.get_submodule("prior").state_dict().items()):
        found.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
