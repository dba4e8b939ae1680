"""How a model is measured: by driving a face with itself, and with others, beside lines to compare with.

Notebook: ``notebooks/11_train_a_full_model.ipynb``."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minimodel import show, transfer
from minimodel.evaluation import metrics
from minimodel.evaluation.assessors import Assessment
from minimodel.evaluation.benchmark import CrossClip, EvaluationClip
from minimodel.model import AnimationModel
from minimodel.warping import identity_grid, warp


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


@torch.no_grad()
def evaluate(
    model: AnimationModel,
    clips: list[EvaluationClip],
    features: nn.Module,
    *,
    assessors: nn.Module | None = None,
    distances: dict[str, Callable[[Tensor, Tensor], Tensor]] | None = None,
    batch: int = 32,
) -> Scores:
    """Same-identity reconstruction: the first frame is the source, every other frame drives.

    A model that moves by landmarks is given the clip's if it has some: its numbers then say nothing about a detector.
    ``assessors`` (see `minimodel.evaluation.assessors.Assessors`) add what they say of the pictures, which takes longer
    than all the rest; ``distances`` are more measures of a picture and its target (b, 3, h, w), by name.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    lines: dict[str, dict[str, list[Tensor]]] = {"model": {}, "copy": {}}
    for clip in clips:
        source = model.encode_source(clip.frames[:1].to(device), landmarks=_landmarks(model, clip, slice(1)))
        for start in range(1, len(clip.frames), batch):
            target = clip.frames[start : start + batch].to(device)
            landmarks = _landmarks(model, clip, slice(start, start + batch))
            output = model.render(source, model.encode_driving(target, landmarks=landmarks))
            pictures = {"model": output.image, "copy": source.image.expand_as(target)}
            flows = {"model": output.flows[-1], "copy": torch.zeros_like(output.flows[-1])}
            if clip.truth is not None:
                part = slice(start - 1, start - 1 + batch)
                truth = clip.truth
                flow, visible = truth.flow[part].to(device), truth.visible[part].to(device)
                pictures["oracle"], flows["oracle"] = warp(source.image.expand_as(target), flow), flow
            scales = metrics.ms_ssim_scales(*target.shape[-2:])
            truly = None if assessors is None else assessors(target)
            for line, picture in pictures.items():
                row = lines.setdefault(line, {})
                measured = {
                    "L1": metrics.l1(picture, target),
                    "PSNR": metrics.psnr(picture, target),
                    "SSIM": metrics.ssim(picture, target),
                    f"MS-SSIM ({scales} of 5 scales)": metrics.ms_ssim(picture, target),
                    f"perceptual ({features.source})": metrics.perceptual_distance(features, picture, target),
                }
                measured |= {name: distance(picture, target) for name, distance in (distances or {}).items()}
                if assessors is not None:
                    assessed = assessors(picture)
                    measured |= {
                        f"AKD ({assessors.source}, px)": keypoint_distance(assessed, truly, target.shape[-1]),
                        f"MKR ({assessors.source})": metrics.mkr(assessed.found, truly.found),
                        f"AED ({assessors.source})": metrics.aed(assessed.embedding, truly.embedding),
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


def keypoint_distance(prediction: Assessment, target: Assessment, size: int) -> Float[Tensor, "b"]:
    """AKD in pixels of square pictures."""
    return metrics.akd(prediction.points, target.points, prediction.found & target.found) * size / 2


def find_avd(weights: str | Path, model: AnimationModel) -> transfer.AvdNetwork | None:
    """The avd network of these weights, if one was trained."""
    return transfer.AvdNetwork.load(weights, model) if transfer.avd_path(weights).exists() else None


@torch.no_grad()
def evaluate_transfer(
    model: AnimationModel,
    clips: list[CrossClip],
    network: transfer.AvdNetwork | None = None,
    *,
    assessors: nn.Module | None = None,
    inception: Callable[[Tensor], Tensor] | None = None,
) -> Scores:
    """Cross-identity animation against the true answer, a line for each way of transfer.

    "relative" starts where `animate --mode relative` does; "same person" is the model driven by the true answer, the
    best that any way can do; "oracle" warps the source by the true flow. Landmarks of what was made are the source's
    true ones, carried by the model's flow: an error of where the face was moved to, not of how it was painted. Those
    count that the true flow itself carries to within a pixel: not those that one frame hides, nor those at an outline,
    where the flow folds and says two things about one place.

    With ``assessors`` also the papers' measures: ARD and AUH compare what was made with the film that drives, as in
    MRFA's supplement; AED compares it with the true answer, and FID all of it with all true answers, by the features of
    the assessors and, if it is given, of ``inception``.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    lines: dict[str, dict[str, list[Tensor]]] = {}
    seen: dict[str, dict[str, list[Tensor]]] = {}  # whose -> line -> the features for FID
    for clip in clips:
        target = clip.truth.frames[1:].to(device)
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
        motions["same person"] = model.encode_driving(target)
        truth = clip.truth.truth
        flow, where = truth.flow.to(device), (truth.regions["face"] & truth.visible).to(device)
        photo = source.image.expand_as(target)
        results = {"copy": (photo, torch.zeros_like(flow))}
        for line, motion in motions.items():
            output = model.render(source, motion)
            results[line] = output.image, output.flows[-1]
        results["oracle"] = warp(photo, flow), flow
        half = target.shape[-1] / 2  # pixels in a normalised unit
        landmarks, goal = clip.landmarks[:1].to(device).expand(len(target), -1, -1), clip.landmarks[1:].to(device)
        if assessors is not None:
            asked, truly = assessors(clip.driving[1:].to(device)), assessors(target)
            seen.setdefault(assessors.source, {}).setdefault("truth", []).append(truly.features)
        if inception is not None:
            seen.setdefault("Inception", {}).setdefault("truth", []).append(inception(target))
        shown = (invert_flow_at(flow, landmarks) - goal).norm(dim=-1) * half < 1
        for line, (image, moved) in results.items():
            carried = invert_flow_at(moved, landmarks)
            missed = (carried - goal).norm(dim=-1) * half
            measured = {
                "L1": metrics.l1(image, target),
                "landmarks (px)": (missed * shown).sum(1) / shown.sum(1),
                "shape (px)": metrics.shape_error(carried, goal, shown) * half,
                "flow, face (px)": metrics.flow_error(moved, flow, where),
            }
            if assessors is not None:
                assessed = assessors(image)
                measured |= {
                    f"ARD ({assessors.source}, degrees)": metrics.ard(assessed.rotation, asked.rotation),
                    f"AUH ({assessors.source})": metrics.auh(assessed.units, asked.units),
                    f"AED ({assessors.source})": metrics.aed(assessed.embedding, truly.embedding),
                }
                seen[assessors.source].setdefault(line, []).append(assessed.features)
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


def invert_flow_at(flow: Float[Tensor, "b 2 h w"], points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n 2"]:
    """Where a backward flow makes points of the source appear: for each p a position z with z + F(z) = p, or as nearly
    as it gets where no z leads there.

    From the pixel whose arrow ends nearest, fixed-point steps go on between pixels; the best position is kept.
    """
    grid = identity_grid(*flow.shape[-2:], device=flow.device, dtype=flow.dtype).flatten(1).T
    ends = grid + flow.flatten(2).transpose(1, 2)
    z = torch.stack([grid[torch.cdist(p, end).argmin(1)] for p, end in zip(points, ends)])
    best, smallest = z, torch.full_like(z[..., :1], torch.inf)
    for _ in range(10):
        missed = points - z - sample_flow(flow, z)
        distance = missed.norm(dim=-1, keepdim=True)
        best, smallest = torch.where(distance < smallest, z, best), torch.minimum(distance, smallest)
        z = z + missed
    return best


def sample_flow(flow: Float[Tensor, "b 2 h w"], points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n 2"]:
    """The flow's arrows at these places."""
    arrows = F.grid_sample(flow, points[:, :, None], padding_mode="border", align_corners=False)
    return arrows[..., 0].transpose(1, 2)


def _landmarks(model: AnimationModel, clip: EvaluationClip, frames: slice) -> Tensor | None:
    if model.config.prior != "landmarks" or clip.landmarks is None:
        return None
    return clip.landmarks[frames].to(next(model.parameters()).device)


@torch.no_grad()
def strip(model: AnimationModel, clips: list[EvaluationClip], *, rows: int = 6) -> Float[Tensor, "3 h w"]:
    """A picture to judge a model by: for some clips source, driving frame, result, warped source, flow, occlusion."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    chosen = clips[:: max(1, len(clips) // rows)][:rows]
    source = torch.stack([clip.frames[0] for clip in chosen]).to(device)
    driven = [len(clip.frames) * 2 // 3 for clip in chosen]
    driving = torch.stack([clip.frames[index] for clip, index in zip(chosen, driven)]).to(device)
    landmarks = {}
    for frame, indices in (("source", [0] * len(chosen)), ("driving", driven)):
        found = [_landmarks(model, clip, slice(index, index + 1)) for clip, index in zip(chosen, indices)]
        landmarks[f"{frame}_landmarks"] = None if found[0] is None else torch.cat(found)
    output = model(source, driving, **landmarks)
    model.train(training)
    flow = show.flow_colors(output.flows[-1], largest=0.25)
    occlusion = show.heat(torch.sigmoid(output.occlusions[-1]))
    return show.grid([source, driving, output.image, output.warped_source, flow, occlusion])
