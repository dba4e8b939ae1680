"""What is measured on: the frozen benchmark, the frozen cross-identity pairs, and clips of one's own.

Notebook: ``notebooks/11_train_a_full_model.ipynb``."""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minimodel.data import synthetic
from minimodel.data.framing import center_crop_resize
from minimodel.data.video import Clip, find_clips
from minimodel.errors import MinimodelError
from minimodel.warping import identity_grid, to_pixels

# The frozen benchmark: changing any of these, or the renderer, makes all earlier numbers incomparable.
BENCHMARK_SEED = 2_000_000_000  # training draws its identities from other seeds
BENCHMARK_CLIPS, BENCHMARK_FRAMES, BENCHMARK_STRIDE = 20, 25, 5  # five seconds of each identity, five frames a second
# The frozen cross-identity pairs: the same people, each driven by the one before.
CROSS_FRAMES, CROSS_STRIDE = 11, 12
CROSS = ("cross-aligned", "cross-plain")
FACE = ("skin", "brows", "eyes", "nose", "upper lip", "lower lip", "mouth")
RIGHT_EYE, LEFT_EYE, MOUTH = slice(36, 42), slice(42, 48), slice(48, 68)  # among the 74 landmarks


@dataclass
class Truth:
    """What only the rendered faces know, for each driving frame: flow to the source, what the source shows, and where
    the whole face, the mouth and the eyes are."""

    flow: Float[Tensor, "t 2 h w"]
    visible: Bool[Tensor, "t 1 h w"]
    regions: dict[str, Bool[Tensor, "t 1 h w"]]


@dataclass
class EvaluationClip:
    """Frames (T, 3, H, W) in [0, 1]; the first is the source, the others drive."""

    name: str
    frames: Float[Tensor, "t 3 h w"]
    truth: Truth | None = None
    landmarks: Float[Tensor, "t 74 2"] | None = None  # normalised


def load_evaluation(name: str, size: int, *, most: int | None = None) -> list[EvaluationClip]:
    """ "synthetic" is the frozen benchmark; anything else a folder of clips, of which test/ or val/ is taken if it has
    one, and the first ``most`` if that is given."""
    if name == "synthetic":
        return benchmark(size)
    clips = []
    for path in find_clips(name, "test")[:most]:
        frames = [center_crop_resize(frame[None] / 255.0, size)[0] for _, frame in Clip(path).decode()]
        if len(frames) < 2:
            raise MinimodelError(f"{path}: one frame only, evaluation needs a source and a driving frame")
        clips.append(EvaluationClip(path.stem, torch.stack(frames)))
    return clips


def benchmark(size: int) -> list[EvaluationClip]:
    """The frozen benchmark: identities never trained on, each speaking, blinking and looking about for five seconds."""
    clips = []
    identities = synthetic.sample_identities(BENCHMARK_CLIPS, BENCHMARK_SEED)
    for index in range(BENCHMARK_CLIPS):
        states = synthetic.animate_states(BENCHMARK_FRAMES * BENCHMARK_STRIDE, BENCHMARK_SEED + index)
        faces = synthetic.Faces(identities[index], states[::BENCHMARK_STRIDE])
        clips.append(synthetic_clip(f"{index:02d}", faces, size))
    return clips


def synthetic_clip(name: str, faces: synthetic.Faces, size: int) -> EvaluationClip:
    """One identity's states as a clip with all that is known about it."""
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
    """The box around points (in pixels), a quarter larger on every side, as a mask."""
    low, high = points.amin(1), points.amax(1)
    margin = (high - low).amax(1, keepdim=True) / 4
    pixels = to_pixels(identity_grid(size, size).permute(1, 2, 0), (size, size))
    inside = (pixels >= (low - margin)[:, None, None]) & (pixels <= (high + margin)[:, None, None])
    return inside.all(-1)[:, None]


@dataclass
class CrossClip:
    """A film of one person, and the true answer: the source's person doing the same.

    Frames 1, 2, ... of ``driving`` and ``truth`` are in the same states. ``driving`` begins with the film's first
    frame, ``truth`` with the source.
    """

    driving: Float[Tensor, "t 3 h w"]
    truth: EvaluationClip
    landmarks: Float[Tensor, "t 74 2"]  # of ``truth``, normalised


def cross_clips(name: str, size: int, *, count: int = BENCHMARK_CLIPS) -> list[CrossClip]:
    """The first ``count`` of the frozen cross-identity pairs.

    In "cross-aligned" the source is in the state of the film's first frame, as the usual protocol asks for; in
    "cross-plain" it is in one of its own.
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
    """``driver`` in all ``states``; ``source`` in the state ``start`` and then in the same states from the second on.

    Heads, faces and gaze are transferred, scenes aren't: the true answer has the photo's background where it was, and
    all frames have one light.
    """
    first = replace(start, light=states.light[:1], ambient=states.ambient[:1])
    joined = {f.name: torch.cat([getattr(first, f.name), getattr(states, f.name)[1:]]) for f in fields(first)}
    own = synthetic.State(**joined | {"pan": first.pan.expand(len(states), -1)})
    answer = synthetic.Faces(source, own)
    driving = synthetic.render(synthetic.Faces(driver, states), size)
    return CrossClip(driving, synthetic_clip(name, answer, size), synthetic.landmarks(answer))
