"""Protocols: what is measured on which frames, and the lines that the numbers stand beside.

Notebook: ``notebooks/11_train_a_full_model.ipynb``.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from minimodel import metrics, show, transfer
from minimodel.data import synthetic
from minimodel.data.video import Clip, find_clips, fit
from minimodel.features import load_features, load_inception, load_lpips
from minimodel.judges import Verdict, load_judges
from minimodel.landmarks import LandmarkDetector
from minimodel.model import AnimationModel
from minimodel.saving import whole_file
from minimodel.warping import identity_grid, to_pixels, warp

# The frozen benchmark: changing any of these, or the renderer, makes all earlier numbers incomparable.
BENCHMARK_SEED = 2_000_000_000  # training draws its identities from other seeds
BENCHMARK_CLIPS, BENCHMARK_FRAMES, BENCHMARK_STRIDE = 20, 25, 5  # five seconds of each identity, five frames a second

# The frozen cross-identity pairs: the same people, each driven by the one before.
CROSS_FRAMES, CROSS_STRIDE = 11, 12
CROSS = ("cross-aligned", "cross-plain")

FACE = ("skin", "brows", "eyes", "nose", "upper lip", "lower lip", "mouth")
RIGHT_EYE, LEFT_EYE, MOUTH = slice(36, 42), slice(42, 48), slice(48, 68)  # among the 74 landmarks


@dataclass
class EvaluateConfig:
    """Measure a model: the first frame of each clip is the source, every other frame drives."""

    weights: str = "tiny"
    """Name of shipped weights, or a .safetensors file."""
    data: tuple[str, ...] = ("synthetic",)
    """"synthetic" for the frozen benchmark, folders of clips, or films; "cross-aligned" and "cross-plain" for faces
    driven by other people, with the true answer: the photo in the pose of the film's first frame, or in any."""
    size: int | None = None
    """Side of the frames in pixels; that of the weights' preset unless given."""
    output: Path | None = None
    """Write the numbers here as well, as JSON."""
    find_landmarks: bool = False
    """A model that moves by landmarks is given those of embedded faces that drive themselves; with this a detector has
    to find them there, too, as it does in films and between two people."""
    lpips: str | None = None
    """Measure LPIPS as well, where faces drive themselves: "alex" and "vgg" download AlexNet's or VGG-16's weights,
    anything else is a file with either."""
    inception: str | None = None
    """Measure FID by the published network as well, where others drive: "inception" downloads its weights, anything
    else is a file with them."""


def run(config: EvaluateConfig) -> dict[str, "Scores"]:
    """Print a table for each data set and return the scores."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AnimationModel.load(config.weights).to(device)
    size = model.config.image_size if config.size is None else config.size
    model.check_size(size, size)
    if model.config.prior == "landmarks":
        model.prior.use_detector(LandmarkDetector.load().to(device))
    features, judges, distances = load_features().to(device), load_judges().to(device), {}
    if config.lpips is not None:
        kind, network, weights = load_lpips(config.lpips)
        weights = [weight.to(device) for weight in weights]
        distances[f"LPIPS ({kind})"] = partial(metrics.lpips, network.to(device), weights)
    published = None if config.inception is None else load_inception(config.inception).to(device)
    scores = {}
    with nullcontext() if config.output is None else whole_file(config.output) as unfinished:
        for name in config.data:
            if name in CROSS:
                clips = cross_clips(name, size)
                scores[name] = evaluate_transfer(
                    model, clips, find_avd(config.weights, model), judges=judges, inception=published
                )
                frames = sum(len(clip.driving) - 1 for clip in clips)
            else:
                clips = load_evaluation(name, size)
                if config.find_landmarks:
                    clips = [replace(clip, landmarks=None) for clip in clips]
                scores[name] = evaluate(model, clips, features, judges=judges, distances=distances)
                frames = sum(len(clip.frames) - 1 for clip in clips)
            print(f"\n{config.weights} on {name}: {len(clips)} clips, {frames} frames of {size} x {size}\n")
            print(scores[name].table())
        if unfinished is not None:
            rows = {name: score.rows for name, score in scores.items()}
            unfinished.write_text(json.dumps(dict(weights=config.weights, size=size, scores=rows), indent=2) + "\n")
    return scores


@dataclass
class Truth:
    """What only the embedded faces know, for each driving frame: flow to the source, what the source shows, and where
    the whole face, the mouth and the eyes are."""

    flow: Float[Tensor, "t 2 h w"]
    visible: Bool[Tensor, "t 1 h w"]
    regions: dict[str, Bool[Tensor, "t 1 h w"]]


@dataclass
class TestClip:
    """Frames (T, 3, H, W) in [0, 1]; the first is the source, the others drive."""

    name: str
    frames: Float[Tensor, "t 3 h w"]
    truth: Truth | None = None
    landmarks: Float[Tensor, "t 74 2"] | None = None  # normalised


@dataclass
class Scores:
    """For each measure the mean over all driving frames, of the model and of the lines beside it."""

    rows: dict[str, dict[str, float]]  # line ("model", "copy", "oracle", or a mode of transfer) -> measure -> value

    def summary(self) -> dict[str, float]:
        """Flat, for logs: the model's measures, and its gain in dB over copying."""
        return self.rows["model"] | {"gain": self.rows["model"]["PSNR"] - self.rows["copy"]["PSNR"]}

    def table(self) -> str:
        """Markdown, one line each for the model and what it is compared with."""
        measures = dict.fromkeys(measure for row in self.rows.values() for measure in row)
        lines = ["| | " + " | ".join(measures) + " |", "|---" * (len(measures) + 1) + "|"]
        for line, values in self.rows.items():
            lines.append(f"| {line} | " + " | ".join(_number(values.get(m)) for m in measures) + " |")
        return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


def load_evaluation(name: str, size: int, *, most: int | None = None) -> list[TestClip]:
    """ "synthetic" is the frozen benchmark; anything else a folder of clips, of which test/ or val/ is taken if it has
    one, and the first ``most`` if that is given."""
    if name == "synthetic":
        return benchmark(size)
    clips = []
    for path in find_clips(name, "test")[:most]:
        frames = [fit(frame[None] / 255.0, size)[0] for _, frame in Clip(path).decode()]
        if len(frames) < 2:
            raise ValueError(f"{path}: one frame only, evaluation needs a source and a driving frame")
        clips.append(TestClip(path.stem, torch.stack(frames)))
    return clips


def benchmark(size: int) -> list[TestClip]:
    """The frozen benchmark: identities never trained on, each speaking, blinking and looking about for five seconds."""
    clips = []
    identities = synthetic.sample_identities(BENCHMARK_CLIPS, BENCHMARK_SEED)
    for number in range(BENCHMARK_CLIPS):
        states = synthetic.animate_states(BENCHMARK_FRAMES * BENCHMARK_STRIDE, BENCHMARK_SEED + number)
        faces = synthetic.Faces(identities[number], states[::BENCHMARK_STRIDE])
        clips.append(synthetic_clip(f"{number:02d}", faces, size))
    return clips


def synthetic_clip(name: str, faces: synthetic.Faces, size: int) -> TestClip:
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
    return TestClip(name, synthetic.render(faces, size), truth, synthetic.landmarks(faces))


def around(points: Float[Tensor, "t n 2"], size: int) -> Bool[Tensor, "t 1 h w"]:
    """The box around points (in pixels), a quarter larger on every side, as a mask."""
    low, high = points.amin(1), points.amax(1)
    margin = (high - low).amax(1, keepdim=True) / 4
    pixels = to_pixels(identity_grid(size, size).permute(1, 2, 0), (size, size))
    inside = (pixels >= (low - margin)[:, None, None]) & (pixels <= (high + margin)[:, None, None])
    return inside.all(-1)[:, None]


@torch.no_grad()
def evaluate(
    model: AnimationModel,
    clips: list[TestClip],
    features: nn.Module,
    *,
    judges: nn.Module | None = None,
    distances: dict[str, Callable[[Tensor, Tensor], Tensor]] | None = None,
    batch: int = 32,
) -> Scores:
    """Same-identity reconstruction: the first frame is the source, every other frame drives.

    A model that moves by landmarks is given the clip's if it has some: its numbers then say nothing about a detector.
    ``judges`` (see `minimodel.judges.Judges`) add what they say of the pictures, which takes longer than all the rest;
    ``distances`` are more measures of pictures made (b, 3, h, w) and wanted, by the names they go by.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    lines: dict[str, dict[str, list[Tensor]]] = {"model": {}, "copy": {}}
    for clip in clips:
        source = model.encode_source(clip.frames[:1].to(device), landmarks=_landmarks(model, clip, slice(1)))
        for start in range(1, len(clip.frames), batch):
            wanted = clip.frames[start : start + batch].to(device)
            told = _landmarks(model, clip, slice(start, start + batch))
            output = model.render(source, model.encode_driving(wanted, landmarks=told))
            pictures = {"model": output.image, "copy": source.image.expand_as(wanted)}
            flows = {"model": output.flows[-1], "copy": torch.zeros_like(output.flows[-1])}
            if clip.truth is not None:
                part = slice(start - 1, start - 1 + batch)
                truth = clip.truth
                flow, visible = truth.flow[part].to(device), truth.visible[part].to(device)
                pictures["oracle"], flows["oracle"] = warp(source.image.expand_as(wanted), flow), flow
            scales = metrics.ms_ssim_scales(*wanted.shape[-2:])
            truly = None if judges is None else judges(wanted)
            for line, picture in pictures.items():
                row = lines.setdefault(line, {})
                measured = {
                    "L1": metrics.l1(picture, wanted),
                    "PSNR": metrics.psnr(picture, wanted),
                    "SSIM": metrics.ssim(picture, wanted),
                    f"MS-SSIM ({scales} of 5 scales)": metrics.ms_ssim(picture, wanted),
                    f"perceptual ({features.source})": metrics.perceptual_distance(features, picture, wanted),
                }
                measured |= {name: distance(picture, wanted) for name, distance in (distances or {}).items()}
                if judges is not None:
                    judged = judges(picture)
                    measured |= {
                        f"AKD ({judges.source}, px)": keypoint_distance(judged, truly, wanted.shape[-1]),
                        f"MKR ({judges.source})": metrics.mkr(judged.found, truly.found),
                        f"AED ({judges.source})": metrics.aed(judged.embedding, truly.embedding),
                    }
                if clip.truth is not None:
                    for region, where in truth.regions.items():
                        where = where[part].to(device) & visible
                        measured[f"flow, {region} (px)"] = metrics.flow_error(flows[line], flow, where)
                    if line == "model":
                        seen = torch.sigmoid(output.occlusions[-1]) > 0.5
                        measured["occlusion"] = metrics.balanced_accuracy(seen, visible)
                for measure, values in measured.items():
                    row.setdefault(measure, []).append(values.cpu())
    model.train(training)
    return Scores(_means(lines))


def _means(lines: dict[str, dict[str, list[Tensor]]]) -> dict[str, dict[str, float]]:
    """Over the frames that have a value; what none has, as AKD where no landmark was found, is left out."""
    joined = {line: {name: torch.cat(values) for name, values in row.items()} for line, row in lines.items()}
    return {
        line: {name: float(values.nanmean()) for name, values in row.items() if not values.isnan().all()}
        for line, row in joined.items()
    }


def keypoint_distance(made: Verdict, wanted: Verdict, size: int) -> Float[Tensor, "b"]:
    """AKD in pixels of square pictures."""
    return metrics.akd(made.points, wanted.points, made.found & wanted.found) * size / 2


@dataclass
class CrossClip:
    """A film of one person, and the true answer: the source's person doing the same.

    Frames 1, 2, ... of ``driving`` and ``truth`` are in the same states. ``driving`` begins with the film's first
    frame, ``truth`` with the source.
    """

    driving: Float[Tensor, "t 3 h w"]
    truth: TestClip
    landmarks: Float[Tensor, "t 74 2"]  # of ``truth``, normalised


def cross_clips(name: str, size: int, *, count: int = BENCHMARK_CLIPS) -> list[CrossClip]:
    """The first ``count`` of the frozen cross-identity pairs.

    In "cross-aligned" the source is in the state of the film's first frame, as the usual protocol asks for; in
    "cross-plain" it is in one of its own.
    """
    people = synthetic.sample_identities(BENCHMARK_CLIPS, BENCHMARK_SEED)
    clips = []
    for number in range(count):
        states = synthetic.animate_states(CROSS_FRAMES * CROSS_STRIDE, BENCHMARK_SEED + number)[::CROSS_STRIDE]
        start = states[:1]
        if name == "cross-plain":
            start = synthetic.animate_states(1, BENCHMARK_SEED + BENCHMARK_CLIPS + number)
        source = people[(number + 1) % BENCHMARK_CLIPS]
        clips.append(cross_clip(str(number), people[number], source, states, start, size))
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


def find_avd(weights: str | Path, model: AnimationModel) -> transfer.AvdNetwork | None:
    """The avd network of these weights, if one was trained."""
    return transfer.AvdNetwork.load(weights, model) if transfer.avd_path(weights).exists() else None


@torch.no_grad()
def evaluate_transfer(
    model: AnimationModel,
    clips: list[CrossClip],
    network: transfer.AvdNetwork | None = None,
    *,
    judges: nn.Module | None = None,
    inception: Callable[[Tensor], Tensor] | None = None,
) -> Scores:
    """Cross-identity animation against the true answer, a line for each way of transfer.

    "relative" starts where `animate --mode relative` does; "same person" is the model driven by the true answer, the
    best that any way can do; "oracle" warps the source by the true flow. Landmarks of what was made are the source's
    true ones, carried by the model's flow: an error of where the face was moved to, not of how it was painted. Those
    count that the true flow itself carries to within a pixel: not those that one frame hides, nor those at an outline,
    where the flow folds and says two things about one place.

    With ``judges`` also the papers' measures: ARD and AUH compare what was made with the film that drives, as in MRFA's
    supplement; AED compares it with the true answer, and FID all of it with all true answers, by the features of the
    judges and, if it is given, of ``inception``.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    lines: dict[str, dict[str, list[Tensor]]] = {}
    seen: dict[str, dict[str, list[Tensor]]] = {}  # whose -> line -> the features for FID
    for clip in clips:
        wanted = clip.truth.frames[1:].to(device)
        source = model.encode_source(clip.truth.frames[:1].to(device))
        film = model.encode_driving(clip.driving.to(device))
        driving = transfer.take(film, slice(1, None))
        from_first = partial(transfer.relative, start_motion=transfer.take(film, slice(0, 1)))
        best = transfer.best_start(source.motion, film)
        from_best = partial(transfer.relative, start_motion=transfer.take(film, slice(best, best + 1)))
        motions = {
            "standard": transfer.standard(source.motion, driving),
            "relative": from_best(source.motion, driving),
            "relative, from the first frame": from_first(source.motion, driving),
        }
        if network is not None:
            motions["avd"] = transfer.avd(source.motion, driving, network)
        motions["same person"] = model.encode_driving(wanted)
        truth = clip.truth.truth
        flow, where = truth.flow.to(device), (truth.regions["face"] & truth.visible).to(device)
        still = source.image.expand_as(wanted)
        results = {"copy": (still, torch.zeros_like(flow))}
        for line, motion in motions.items():
            output = model.render(source, motion)
            results[line] = output.image, output.flows[-1]
        results["oracle"] = warp(still, flow), flow
        half = wanted.shape[-1] / 2  # pixels in a normalised unit
        landmarks, target = clip.landmarks[:1].to(device).expand(len(wanted), -1, -1), clip.landmarks[1:].to(device)
        if judges is not None:
            asked, truly = judges(clip.driving[1:].to(device)), judges(wanted)
            seen.setdefault(judges.source, {}).setdefault("truth", []).append(truly.features)
        if inception is not None:
            seen.setdefault("Inception", {}).setdefault("truth", []).append(inception(wanted))
        shown = (carry(flow, landmarks) - target).norm(dim=-1) * half < 1
        for line, (image, moved) in results.items():
            carried = carry(moved, landmarks)
            missed = (carried - target).norm(dim=-1) * half
            measured = {
                "L1": metrics.l1(image, wanted),
                "landmarks (px)": (missed * shown).sum(1) / shown.sum(1),
                "shape (px)": metrics.shape_error(carried, target, shown) * half,
                "flow, face (px)": metrics.flow_error(moved, flow, where),
            }
            if judges is not None:
                judged = judges(image)
                measured |= {
                    f"ARD ({judges.source}, degrees)": metrics.ard(judged.rotation, asked.rotation),
                    f"AUH ({judges.source})": metrics.auh(judged.units, asked.units),
                    f"AED ({judges.source})": metrics.aed(judged.embedding, truly.embedding),
                }
                seen[judges.source].setdefault(line, []).append(judged.features)
            if inception is not None:
                seen["Inception"].setdefault(line, []).append(inception(image))
            for measure, values in measured.items():
                lines.setdefault(line, {}).setdefault(measure, []).append(values.cpu())
    model.train(training)
    rows = _means(lines)
    for whose, features in seen.items():
        truth = torch.cat(features["truth"])
        for line, row in rows.items():
            row[f"FID ({whose})"] = float(metrics.fid(torch.cat(features[line]), truth))
    return Scores(rows)


def carry(flow: Float[Tensor, "b 2 h w"], points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n 2"]:
    """Where a backward flow makes points of the source appear: for each p a position z with z + F(z) = p, or as nearly
    as it gets where no z leads there.

    From the pixel whose arrow ends nearest, fixed-point steps go on between pixels; the best position is kept.
    """
    grid = identity_grid(*flow.shape[-2:], device=flow.device, dtype=flow.dtype).flatten(1).T
    ends = grid + flow.flatten(2).transpose(1, 2)
    z = torch.stack([grid[torch.cdist(p, end).argmin(1)] for p, end in zip(points, ends)])
    best, smallest = z, torch.full_like(z[..., :1], torch.inf)
    for _ in range(10):
        missed = points - z - read(flow, z)
        distance = missed.norm(dim=-1, keepdim=True)
        best, smallest = torch.where(distance < smallest, z, best), torch.minimum(distance, smallest)
        z = z + missed
    return best


def read(flow: Float[Tensor, "b 2 h w"], points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n 2"]:
    """The flow's arrows at these places."""
    arrows = F.grid_sample(flow, points[:, :, None], padding_mode="border", align_corners=False)
    return arrows[..., 0].transpose(1, 2)


def _landmarks(model: AnimationModel, clip: TestClip, frames: slice) -> Tensor | None:
    if model.config.prior != "landmarks" or clip.landmarks is None:
        return None
    return clip.landmarks[frames].to(next(model.parameters()).device)


@torch.no_grad()
def strip(model: AnimationModel, clips: list[TestClip], *, rows: int = 6) -> Float[Tensor, "3 h w"]:
    """A picture to judge a model by: for some clips source, driving frame, result, warped source, flow, occlusion."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    chosen = clips[:: max(1, len(clips) // rows)][:rows]
    source = torch.stack([clip.frames[0] for clip in chosen]).to(device)
    driven = [len(clip.frames) * 2 // 3 for clip in chosen]
    driving = torch.stack([clip.frames[number] for clip, number in zip(chosen, driven)]).to(device)
    told = {}
    for frame, numbers in (("source", [0] * len(chosen)), ("driving", driven)):
        found = [_landmarks(model, clip, slice(number, number + 1)) for clip, number in zip(chosen, numbers)]
        told[f"{frame}_landmarks"] = None if found[0] is None else torch.cat(found)
    output = model(source, driving, **told)
    model.train(training)
    flow = show.flow_colors(output.flows[-1], largest=0.25)
    occlusion = show.heat(torch.sigmoid(output.occlusions[-1]))
    return show.grid([source, driving, output.image, output.warped_source, flow, occlusion])
