"""The protocols of evaluation: a face driven by itself, and by others, beside reference lines.

Notebook: ``notebooks/11_train_a_full_model.ipynb``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minimodel import show, transfer
from minimodel.evaluation import metrics
from minimodel.evaluation.assessors import Assessment
from minimodel.evaluation.benchmark import CrossClip, EvaluationClip, Truth
from minimodel.model import AnimationModel
from minimodel.motion import Motion
from minimodel.warping import invert_flow_at, warp


@dataclass
class Scores:
    """The mean of each measure over all driving frames, for the model and for the reference lines."""

    rows: dict[str, dict[str, float]]  # line ("model", "copy", "oracle", or a mode of transfer) -> measure -> value

    def summary(self) -> dict[str, float]:
        """The model's measures, and its gain in PSNR (dB) over copying the source, as one flat dictionary for logs."""
        return self.rows["model"] | {"gain": self.rows["model"]["PSNR"] - self.rows["copy"]["PSNR"]}

    def table(self) -> str:
        """The scores as a Markdown table: one row for the model and for each reference line."""
        measures = dict.fromkeys(measure for row in self.rows.values() for measure in row)
        lines = ["| | " + " | ".join(measures) + " |", "|---" * (len(measures) + 1) + "|"]
        for line, values in self.rows.items():
            lines.append(f"| {line} | " + " | ".join(_number(values.get(m)) for m in measures) + " |")
        return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


Lines = dict[str, dict[str, list[Tensor]]]  # line -> measure -> values of some frames each


@runtime_checkable
class Renderer(Protocol):
    """The interface of what is evaluated: any ``nn.Module`` that renders as `AnimationModel` does. Of the output of
    `render`, ``image`` is compared, and the last of ``flows`` and of ``occlusions`` if it has them."""

    training: bool

    @property
    def moves_by_landmarks(self) -> bool: ...

    def encode_source(self, image: Tensor, *, landmarks: Tensor | None = None) -> Any: ...

    def encode_driving(
        self, image: Tensor, *, landmarks: Tensor | None = None, move_background: bool = False
    ) -> Motion: ...

    def render(self, source: Any, motion: Motion) -> Any: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def train(self, mode: bool = True) -> Any: ...


@contextmanager
def evaluation_mode(model: nn.Module | Renderer) -> Iterator[torch.device]:
    """Context in which a model is in evaluation mode and no gradients are computed; the model's mode is restored
    afterwards, also after an error. Gives the model's device."""
    training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            yield next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    finally:
        model.train(training)


def evaluate(
    model: Renderer,
    clips: list[EvaluationClip],
    features: nn.Module,
    *,
    assessors: nn.Module | None = None,
    distances: dict[str, Callable[[Tensor, Tensor], Tensor]] | None = None,
    batch: int = 32,
) -> Scores:
    """Measure same-identity reconstruction: the first frame of each clip is the source, every other frame drives.

    A model that moves by landmarks is given the clip's landmarks if there are some; its numbers then include no error
    of a detector. ``features`` are those of the perceptual distance. ``assessors`` (see
    `minimodel.evaluation.assessors.Assessors`) add AKD, MKR and AED, which takes longer than all the rest.
    ``distances`` are further measures of a picture and its target (b, 3, h, w), by name.

    >>> scores = evaluate(model, load_evaluation("synthetic", 64), load_features("faces"))
    >>> print(scores.table())
    """
    lines: Lines = {"model": {}, "copy": {}}
    with evaluation_mode(model) as device:
        for clip in clips:
            source = model.encode_source(clip.frames[:1].to(device), landmarks=_landmarks(model, clip, slice(1)))
            for start in range(1, len(clip.frames), batch):
                frames = slice(start, start + batch)
                target, landmarks = clip.frames[frames].to(device), _landmarks(model, clip, frames)
                output = model.render(source, model.encode_driving(target, landmarks=landmarks, move_background=True))
                still = clip.frames[:1].to(device).expand_as(target)
                pictures = {"model": output.image, "copy": still}
                if clip.truth is not None:
                    pictures["oracle"] = warp(still, clip.truth.flow[start - 1 : start - 1 + batch].to(device))
                measured = measure_pictures(pictures, target, features, assessors, distances or {})
                if clip.truth is not None:
                    measure_truth(measured, output, clip.truth, slice(start - 1, start - 1 + batch), device)
                _add(lines, measured)
    return Scores(_means(lines))


def measure_pictures(
    pictures: dict[str, Tensor],
    target: Float[Tensor, "b 3 h w"],
    features: nn.Module,
    assessors: nn.Module | None,
    distances: dict[str, Callable[[Tensor, Tensor], Tensor]],
) -> dict[str, dict[str, Tensor]]:
    """Measure the pictures (b, 3, h, w) of each line against their target. Returns line -> measure -> one value a
    frame."""
    scales = metrics.ms_ssim_scales(*target.shape[-2:])
    truly: Assessment | None = None if assessors is None else assessors(target)
    lines = {}
    for line, picture in pictures.items():
        lines[line] = {
            "L1": metrics.l1(picture, target),
            "PSNR": metrics.psnr(picture, target),
            "SSIM": metrics.ssim(picture, target),
            f"MS-SSIM ({scales} of 5 scales)": metrics.ms_ssim(picture, target),
            f"perceptual ({source_of(features)})": metrics.perceptual_distance(features, picture, target),
        }
        lines[line] |= {name: distance(picture, target) for name, distance in distances.items()}
        if assessors is not None and truly is not None:
            assessed, whose = assessors(picture), source_of(assessors)
            lines[line] |= {
                f"AKD ({whose}, px)": keypoint_distance(assessed, truly, target.shape[-1]),
                f"MKR ({whose})": metrics.mkr(assessed.found, truly.found),
                f"AED ({whose})": metrics.aed(assessed.embedding, truly.embedding),
            }
    return lines


def measure_truth(
    lines: dict[str, dict[str, Tensor]], output: Any, truth: Truth, frames: slice, device: torch.device
) -> None:
    """Add to ``lines`` the measures that need exact truth, for the truth's ``frames``: errors of the flow by region, in
    pixels, and the balanced accuracy of the last occlusion."""
    flow, visible = truth.flow[frames].to(device), truth.visible[frames].to(device)
    flows = {"copy": torch.zeros_like(flow), "oracle": flow}
    if getattr(output, "flows", None):
        flows["model"] = output.flows[-1]
    for region, where in truth.regions.items():
        for line, moved in flows.items():
            error = metrics.flow_error(moved, flow, where[frames].to(device) & visible)
            lines[line][f"flow, {region} (px)"] = error
    if getattr(output, "occlusions", None):
        seen = torch.sigmoid(output.occlusions[-1]) > 0.5
        lines["model"]["occlusion"] = metrics.balanced_accuracy(seen, visible)


def source_of(network: nn.Module) -> str:
    """The name of a network to write beside its numbers: its ``source`` if it has one, otherwise its class."""
    return str(getattr(network, "source", type(network).__name__))


def _add(lines: Lines, measured: dict[str, dict[str, Tensor]]) -> None:
    for line, row in measured.items():
        for measure, values in row.items():
            lines.setdefault(line, {}).setdefault(measure, []).append(values.cpu())


def _means(lines: Lines) -> dict[str, dict[str, float]]:
    """Means over the frames with a value. A measure without any value is left out, such as AKD where no landmark was
    found."""
    joined = {line: {name: torch.cat(values) for name, values in row.items()} for line, row in lines.items()}
    return {
        line: {name: float(values.nanmean()) for name, values in row.items() if not values.isnan().all()}
        for line, row in joined.items()
    }


def keypoint_distance(prediction: Assessment, target: Assessment, size: int) -> Float[Tensor, "b"]:
    """AKD (see `metrics.akd`) in pixels of square pictures with side ``size``."""
    return metrics.akd(prediction.points, target.points, prediction.found & target.found) * size / 2


def find_avd(weights: str | Path, model: AnimationModel) -> transfer.AvdNetwork | None:
    """Load the avd network of these weights, if one was trained; otherwise None."""
    there = transfer.own_avd(model) is not None or transfer.avd_path(weights).exists()
    return transfer.AvdNetwork.load(weights, model) if there else None


def evaluate_transfer(
    model: AnimationModel,
    clips: list[CrossClip],
    network: transfer.AvdNetwork | None = None,
    *,
    assessors: nn.Module | None = None,
    inception: Callable[[Tensor], Tensor] | None = None,
) -> Scores:
    """Measure cross-identity animation against the true answer, one line for each mode of transfer.

    "relative" starts at the frame where `animate --mode relative` does. "same person" is the model driven by the true
    answer, the best that any mode can reach. "oracle" warps the source by the true flow. The landmarks of a result are
    the source's true landmarks, carried by the model's flow: their error is that of the motion and not of the painting.
    A landmark counts where the true flow itself carries it to within a pixel. Landmarks hidden in one frame don't
    count, nor do those at an outline, where the flow folds.

    ``assessors`` add the papers' measures. ARD and AUH compare the result with the driving film, as in MRFA's
    supplement; AED compares it with the true answer; FID compares all results with all true answers, by the features of
    the assessors and, if given, of ``inception``.
    """
    lines: Lines = {}
    seen: dict[str, dict[str, list[Tensor]]] = {}  # whose -> line -> the features for FID
    with evaluation_mode(model) as device:
        for clip in clips:
            target = clip.truth.frames[1:].to(device)
            photo = clip.truth.frames[:1].to(device)
            results = {
                "copy": (photo.expand_as(target), torch.zeros(len(target), 2, *target.shape[-2:], device=device))
            }
            for line, output in render_transfers(model, photo, clip.driving.to(device), target, network).items():
                results[line] = output.image, output.flows[-1]
            assert clip.truth.truth is not None
            flow = clip.truth.truth.flow.to(device)
            results["oracle"] = warp(photo.expand_as(target), flow), flow
            measured = {line: measure_transfer(*result, target, clip) for line, result in results.items()}
            if assessors is not None:
                asked, truly, whose = assessors(clip.driving[1:].to(device)), assessors(target), source_of(assessors)
                seen.setdefault(whose, {}).setdefault("truth", []).append(truly.features)
                for line, (image, _) in results.items():
                    assessed = assessors(image)
                    measured[line] |= {
                        f"ARD ({whose}, degrees)": metrics.ard(assessed.rotation, asked.rotation),
                        f"AUH ({whose})": metrics.auh(assessed.units, asked.units),
                        f"AED ({whose})": metrics.aed(assessed.embedding, truly.embedding),
                    }
                    seen[whose].setdefault(line, []).append(assessed.features)
            if inception is not None:
                pictures = {"truth": target} | {line: image for line, (image, _) in results.items()}
                for line, image in pictures.items():
                    seen.setdefault("Inception", {}).setdefault(line, []).append(inception(image))
            _add(lines, measured)
    rows = _means(lines)
    for whose, features in seen.items():
        truth = torch.cat(features["truth"])
        for line, row in rows.items():
            row[f"FID ({whose})"] = float(metrics.fid(torch.cat(features[line]), truth))
    return Scores(rows)


def render_transfers(
    model: AnimationModel, photo: Tensor, driving: Tensor, truth: Tensor, network: transfer.AvdNetwork | None
) -> dict[str, Any]:
    """Render the ``photo`` (1, 3, h, w) with the motion of the ``driving`` frames from the second on, by each mode of
    transfer, and with the motion of the true answers ("same person")."""
    source, film = model.encode_source(photo), model.encode_driving(driving)
    frames = film[1:]
    best = transfer.best_start(source.motion, film)
    motions = {
        "standard": transfer.standard(source.motion, frames),
        "relative": transfer.relative(source.motion, frames, film[best : best + 1]),
        "relative, from the first frame": transfer.relative(source.motion, frames, film[:1]),
    }
    if network is not None:
        motions["avd"] = transfer.avd(source.motion, frames, network)
    motions["same person"] = model.encode_driving(truth, move_background=True)
    return {line: model.render(source, motion) for line, motion in motions.items()}


def measure_transfer(
    image: Float[Tensor, "b 3 h w"], moved: Float[Tensor, "b 2 h w"], target: Float[Tensor, "b 3 h w"], clip: CrossClip
) -> dict[str, Tensor]:
    """Measure frames that were rendered with the flow ``moved``. Returns measure -> one value a frame."""
    truth = clip.truth.truth
    assert truth is not None
    device, half = target.device, target.shape[-1] / 2  # pixels in a normalised unit
    flow, where = truth.flow.to(device), (truth.regions["face"] & truth.visible).to(device)
    landmarks, goal = clip.landmarks[:1].to(device).expand(len(target), -1, -1), clip.landmarks[1:].to(device)
    shown = (invert_flow_at(flow, landmarks) - goal).norm(dim=-1) * half < 1
    carried = invert_flow_at(moved, landmarks)
    missed = (carried - goal).norm(dim=-1) * half
    return {
        "L1": metrics.l1(image, target),
        "landmarks (px)": (missed * shown).sum(1) / shown.sum(1),
        "shape (px)": metrics.shape_error(carried, goal, shown) * half,
        "flow, face (px)": metrics.flow_error(moved, flow, where),
    }


def _landmarks(model: Renderer, clip: EvaluationClip, frames: slice) -> Tensor | None:
    """The landmarks of these frames on the model's device, for a model that moves by landmarks; otherwise None."""
    if not getattr(model, "moves_by_landmarks", False) or clip.landmarks is None:
        return None
    return clip.landmarks[frames].to(next(model.parameters()).device)


def strip(model: Renderer, clips: list[EvaluationClip], *, rows: int = 6) -> Float[Tensor, "3 h w"]:
    """Draw a picture of a model's results: for some clips source, driving frame and result and, if the model has flows,
    warped source, flow and occlusion."""
    chosen = clips[:: max(1, len(clips) // rows)][:rows]
    columns: dict[int, list[Tensor]] = {}
    with evaluation_mode(model) as device:
        for clip in chosen:
            index = len(clip.frames) * 2 // 3
            source, driving = clip.frames[:1].to(device), clip.frames[index : index + 1].to(device)
            state = model.encode_source(source, landmarks=_landmarks(model, clip, slice(1)))
            landmarks = _landmarks(model, clip, slice(index, index + 1))
            output = model.render(state, model.encode_driving(driving, landmarks=landmarks, move_background=True))
            shown = [source, driving, output.image]
            if getattr(output, "flows", None):
                flow = show.flow_colors(output.flows[-1], largest=0.25)
                shown += [output.warped_source, flow, show.heat(torch.sigmoid(output.occlusions[-1]))]
            for column, picture in enumerate(shown):
                columns.setdefault(column, []).append(picture.cpu())
    return show.grid([torch.cat(pictures) for pictures in columns.values()])
