"""The data of evaluations: the frozen benchmark, the frozen cross-identity pairs, and clips of one's own.

Notebook: ``notebooks/11_train_a_full_model.ipynb``.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minimodel.data import synthetic
from minimodel.data.framing import center_crop_resize
from minimodel.data.video import Clip, find_clips, read_all
from minimodel.errors import MinimodelError
from minimodel.landmarks import LIPS
from minimodel.warping import identity_grid, to_pixels

# The frozen benchmark: changing any of these, or the renderer, makes all earlier numbers incomparable.
BENCHMARK_SEED = 2_000_000_000  # training draws its identities from other seeds
BENCHMARK_CLIPS, BENCHMARK_FRAMES, BENCHMARK_STRIDE = 20, 25, 5  # five seconds of each identity, five frames a second
# The frozen cross-identity pairs: the same people, each driven by the one before.
CROSS_FRAMES, CROSS_STRIDE = 11, 12
CROSS = ("cross-aligned", "cross-plain")
FACE = ("skin", "brows", "eyes", "nose", "upper lip", "lower lip", "mouth")
RIGHT_EYE, LEFT_EYE, MOUTH = slice(36, 42), slice(42, 48), LIPS  # among the 74 landmarks


@dataclass
class Truth:
    """The truth that only rendered faces have, for each driving frame: the normalised flow to the source, the pixels
    that the source shows too, and masks of the whole face, the mouth and the eyes."""

    flow: Float[Tensor, "t 2 h w"]
    visible: Bool[Tensor, "t 1 h w"]
    regions: dict[str, Bool[Tensor, "t 1 h w"]]


@dataclass
class EvaluationClip:
    """A clip to evaluate on: frames (T, 3, H, W) in [0, 1], of which the first is the source and the others drive."""

    name: str
    frames: Float[Tensor, "t 3 h w"]
    truth: Truth | None = None
    landmarks: Float[Tensor, "t 74 2"] | None = None  # normalised


def load_evaluation(name: str, size: int, *, most: int | None = None, strict: bool = False) -> list[EvaluationClip]:
    """Load the clips of a data set. "synthetic" is the frozen benchmark; any other name is a film or a folder of clips,
    of which test/ or val/ is taken if it has one. ``most`` limits the number of clips of a folder. Frames are cut to
    the largest square in the middle and resized to ``size``. Clips that can't be read, or hold one frame only, are left
    out with a warning; with ``strict`` they are a `MinimodelError`.

    >>> clips = load_evaluation("synthetic", 64)
    """
    if name == "synthetic":
        return benchmark(size)

    def read(path: Path) -> EvaluationClip:
        frames = [center_crop_resize(frame[None] / 255.0, size)[0] for _, frame in Clip(path).decode()]
        if len(frames) < 2:
            raise MinimodelError(f"{path}: one frame only, evaluation needs a source and a driving frame")
        return EvaluationClip(path.stem, torch.stack(frames))

    return read_all(find_clips(name, "test"), read, strict=strict, most=most)


def benchmark(size: int) -> list[EvaluationClip]:
    """Render the frozen benchmark: 20 people never trained on, each speaking, blinking and looking about for five
    seconds."""
    clips = []
    identities = synthetic.sample_identities(BENCHMARK_CLIPS, BENCHMARK_SEED)
    for index in range(BENCHMARK_CLIPS):
        states = synthetic.animate_states(BENCHMARK_FRAMES * BENCHMARK_STRIDE, BENCHMARK_SEED + index)
        faces = synthetic.Faces(identities[index], states[::BENCHMARK_STRIDE])
        clips.append(synthetic_clip(f"{index:02d}", faces, size))
    return clips


def synthetic_clip(name: str, faces: synthetic.Faces, size: int) -> EvaluationClip:
    """Render one identity's states as a clip, with its truth and its landmarks."""
    driving = faces[1:]
    source = synthetic.Faces(faces.identity[:1], faces.state[:1])
    flow, visible = synthetic.flow_between(synthetic.Faces(driving.identity, source.state), driving, size)
    parsing = synthetic.parsing(driving, size)
    face = torch.isin(parsing, torch.tensor([synthetic.PARTS.index(part) for part in FACE]))[:, None]
    landmarks = synthetic.landmarks(driving, size)
    regions = {
        "face": face,
        "mouth": face & around(landmarks[:, MOUTH], size),
        "eyes": face & (around(landmarks[:, RIGHT_EYE], size) | around(landmarks[:, LEFT_EYE], size)),
    }
    truth = Truth(flow, visible.bool(), regions)
    return EvaluationClip(name, synthetic.render(faces, size), truth, synthetic.landmarks(faces))


def around(points: Float[Tensor, "t n 2"], size: int) -> Bool[Tensor, "t 1 h w"]:
    """The mask of the box around points (in pixels), enlarged on every side by a quarter of its longer side."""
    low, high = points.amin(1), points.amax(1)
    margin = (high - low).amax(1, keepdim=True) / 4
    pixels = to_pixels(identity_grid(size, size, device=points.device).permute(1, 2, 0), (size, size))
    inside = (pixels >= (low - margin)[:, None, None]) & (pixels <= (high + margin)[:, None, None])
    return inside.all(-1)[:, None]


@dataclass
class CrossClip:
    """A film of one person, and the true answer: the source's person doing the same.

    From the second on, the frames of ``driving`` and ``truth`` have the same states. ``driving`` begins with the film's
    first frame, ``truth`` with the source.
    """

    driving: Float[Tensor, "t 3 h w"]
    truth: EvaluationClip
    landmarks: Float[Tensor, "t 74 2"]  # of ``truth``, normalised


def cross_clips(name: str, size: int, *, count: int = BENCHMARK_CLIPS) -> list[CrossClip]:
    """Render the first ``count`` of the frozen cross-identity pairs.

    With the name "cross-aligned" the source has the state of the film's first frame, as the usual protocol asks for.
    With "cross-plain" it has a state of its own.
    """
    people = synthetic.sample_identities(BENCHMARK_CLIPS, BENCHMARK_SEED)
    clips = []
    for index in range(count):
        states = synthetic.animate_states(CROSS_FRAMES * CROSS_STRIDE, BENCHMARK_SEED + index)[::CROSS_STRIDE]
        start = states[:1]
        if name == "cross-plain":
            start = synthetic.animate_states(1, BENCHMARK_SEED + BENCHMARK_CLIPS + index)
        source = people[(index + 1) % BENCHMARK_CLIPS]
        clips.append(cross_clip(str(index), people[index], source, states, start, size))
    return clips


def cross_clip(
    name: str,
    driver: synthetic.Identity,
    source: synthetic.Identity,
    states: synthetic.State,
    start: synthetic.State,
    size: int,
) -> CrossClip:
    """Render one cross-identity pair: ``driver`` in all ``states``, and ``source`` first in the state ``start`` and
    then in ``states`` from the second on.

    Head, face and gaze are transferred, the scene isn't: in the true answer the background stays where it is in the
    photo, and all frames have one light.
    """
    first = replace(start, light=states.light[:1], ambient=states.ambient[:1])
    joined = {f.name: torch.cat([getattr(first, f.name), getattr(states, f.name)[1:]]) for f in fields(first)}
    own = synthetic.State(**joined | {"pan": first.pan.expand(len(states), -1)})
    answer = synthetic.Faces(source, own)
    driving = synthetic.render(synthetic.Faces(driver, states), size)
    return CrossClip(driving, synthetic_clip(name, answer, size), synthetic.landmarks(answer))
