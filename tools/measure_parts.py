"""What each part of a model does, measured against the truth of rendered faces: does refinement correct the flow, do
gates know what is hidden, does the painter paint it, do lids, lips and gaze follow?

Strangers are drawn that no training draws. The numbers, by name:

- ``flow``: mean distance to the true flow on visible pixels, in pixels, of the coarse and of the last flow; and of the
  last flow when the lookup's values come from another pair.
- ``gates``: the shares of visible and of hidden pixels at which the last gate is open, and the mean of both shares of
  right answers.
- ``hidden pixels``: squared error of the picture, as a share of that of the source warped by the true flow; and squared
  differences of neighbouring colours, as a share of the truth's (a blurred picture has few). Both with the model's own
  gates, with gates from the truth, and the error of the source warped by the model's flow.
- ``alone``: pairs that differ in one thing. Lids that shut, lips that part, brows that rise and a jaw that drops: the
  change, as landmarks are found in the picture, as a share of the change in the driving frame. Gaze: the pupils'
  distance, as a share of what copying leaves.

    python tools/measure_parts.py --weights tiny
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from minimodel.data import synthetic
from minimodel.data.pairs import RenderedPairs
from minimodel.evaluation import metrics
from minimodel.evaluation.benchmark import FACE, LEFT_EYE, MOUTH, RIGHT_EYE, around
from minimodel.landmarks import LandmarkDetector
from minimodel.model import AnimationModel
from minimodel.motion import SourceState, Stages
from minimodel.show import save_picture
from minimodel.warping import resize_flow, size_of, warp

SEED = 1_950_000_000  # training and the benchmark draw from other seeds
BATCH = 32
AREAS = ("face", "eyes", "mouth")
UPPER_LIDS, LOWER_LIDS, PUPILS, UPPER_LIP, LOWER_LIP = (70, 72), (71, 73), (68, 69), 62, 66
BROWS, CHIN, CORNERS = tuple(range(17, 27)), 8, (36, 39, 42, 45)


@dataclass
class Measure:
    """Measure the parts of a model on rendered strangers."""

    weights: str = "tiny"
    """A model with refinement, by name or file."""
    pairs: int = 512
    """Pairs to measure on, each in both directions."""
    people: int = 64
    """People who change in one thing alone."""
    picture: Path | None = None
    """Also draw some pairs: source, driving, picture, picture with true gates, warped source, gate, true visibility."""


@torch.no_grad()
def measure(config: Measure) -> dict[str, float]:
    """Measure a model, print the numbers and return them."""
    model = AnimationModel.load(config.weights)
    source, size = RenderedPairs(model.image_size), model.image_size
    drawn = source.draw(config.pairs, torch.Generator().manual_seed(SEED))
    found: dict[str, list[Tensor]] = {}
    strips = []
    for start in range(0, config.pairs, BATCH):
        slots = torch.arange(start, min(start + BATCH, config.pairs))
        S, D = source.load(drawn, slots, torch.device("cpu"))
        truth = source.truth(drawn, slots, torch.device("cpu"))
        parsing = source.both(lambda faces: synthetic.parsing(faces, size), drawn, slots, torch.device("cpu"))[1]
        visible, flow = truth["visible"], truth["true_flow"]
        state, motion = model.encode_source(S), model.encode_driving(D)
        stages = model.move(state, motion)
        true_gates = [torch.logit(resize_flow(visible, size_of(o)), eps=1e-3) for o in stages.occlusions[1:]]
        pictures = dict(own=model.paint(state, stages).image, true=model.paint(state, stages, gates=true_gates).image)
        pictures |= dict(warped=stages.warped_source)
        hidden = 1 - visible
        numbers = dict(hidden_pixels=hidden.sum((1, 2, 3)), visible_pixels=visible.sum((1, 2, 3)))
        numbers["error of the true warp"] = ((warp(S, flow) - D).square() * hidden).sum((1, 2, 3))
        numbers["energy of the truth"] = (energy(D) * hidden).sum((1, 2, 3))
        for name, picture in pictures.items():
            numbers[f"error, {name}"] = ((picture - D).square() * hidden).sum((1, 2, 3))
            numbers[f"energy, {name}"] = (energy(picture) * hidden).sum((1, 2, 3))
        opened = (stages.occlusions[-1] > 0).float()
        numbers |= dict(open_visible=(opened * visible).sum((1, 2, 3)), open_hidden=(opened * hidden).sum((1, 2, 3)))
        face = torch.isin(parsing, torch.tensor([synthetic.PARTS.index(part) for part in FACE]))[:, None]
        points = (truth["true_landmarks"] + 1) * size / 2 - 0.5
        eyes = around(points[:, RIGHT_EYE], size) | around(points[:, LEFT_EYE], size)
        seen = visible > 0.5
        areas = dict(face=face & seen, eyes=face & seen & eyes, mouth=face & seen & around(points[:, MOUTH], size))
        flows = dict(coarse=resize_flow(stages.flows[0], (size, size)), refined=stages.flows[-1])
        if model.refiner is not None:
            flows["another pair's lookup"] = with_foreign_lookup(model, state, S, D).flows[-1]
        for name, each in flows.items():
            numbers |= {f"{name}, {area}": metrics.flow_error(each, flow, where) for area, where in areas.items()}
        for name, values in numbers.items():
            found.setdefault(name, []).append(values)
        if config.picture is not None and len(strips) < 3:
            gate = torch.sigmoid(stages.occlusions[-1]).expand(-1, 3, -1, -1)
            rows = [S, D, pictures["own"], pictures["true"], pictures["warped"], gate, visible.expand(-1, 3, -1, -1)]
            strips.append(torch.cat([torch.cat(list(row[::8]), -1) for row in rows], -2))
    if config.picture is not None:
        grid = F.interpolate(torch.cat(strips, -1)[None], scale_factor=2, mode="bicubic", align_corners=False)[0]
        save_picture(grid.clamp(0, 1), config.picture)
    result = summary({name: torch.cat(values) for name, values in found.items()}) | alone(model, config.people)
    print("\n".join(f"{name:44} {value:.3f}" for name, value in result.items()))
    return result


def summary(found: dict[str, Tensor]) -> dict[str, float]:
    """The numbers of all pairs together: errors of flows are means over pairs, all else is of all pixels alike."""
    total = {name: values.nansum() for name, values in found.items()}
    flows = {f"flow, {name}": values.nanmean() for name, values in found.items() if name.endswith(tuple(AREAS))}
    visible = total["open_visible"] / total["visible_pixels"]
    hidden = total["open_hidden"] / total["hidden_pixels"]
    gates = {"gates, open of visible": visible, "gates, open of hidden": hidden}
    gates["gates, balanced accuracy"] = (visible + 1 - hidden) / 2
    ways = dict(own="own gates", true="true gates", warped="warped source")
    errors = {f"hidden pixels, error, {ways[w]}": total[f"error, {w}"] / total["error of the true warp"] for w in ways}
    blur = {f"hidden pixels, energy, {ways[w]}": total[f"energy, {w}"] / total["energy of the truth"] for w in ways}
    return {name: float(value) for name, value in (flows | gates | errors | blur).items()}


def energy(picture: Tensor) -> Tensor:
    """Squared differences of neighbouring colours (b, 1, h, w)."""
    across, down = F.pad(picture.diff(dim=-1), (0, 1)), F.pad(picture.diff(dim=-2), (0, 0, 0, 1))
    return (across.square() + down.square()).sum(1, keepdim=True)


def with_foreign_lookup(model: AnimationModel, state: SourceState, source: Tensor, driving: Tensor) -> Stages:
    """The stages of each pair when the structure of source and driving frame is that of the pair before."""
    other = model.encode_source(source.roll(1, 0))
    foreign = model.structure(other.structure, model.prior.structure_points(model.encode_driving(driving.roll(1, 0))))
    handle = model.structure.register_forward_hook(lambda *_: foreign)
    try:
        return model.move(state, model.encode_driving(driving))
    finally:
        handle.remove()


@torch.no_grad()
def alone(model: AnimationModel, count: int) -> dict[str, float]:
    """How lids, lips, brows, jaw and gaze follow where nothing else changes."""
    people = synthetic.sample_identities(count, SEED + 7)
    state = synthetic.animate_states(12 * count, SEED + 8)[::12]
    zero, one, pair = torch.zeros(count), torch.ones(count), torch.zeros(count, 2)
    state = dataclasses.replace(state, lids=pair + 1, jaw=zero, part=zero, gaze=pair, brows=pair)
    aside = torch.where(torch.arange(count) % 2 == 0, 0.3, -0.3)
    changes = dict(lids=dict(lids=pair + 0.1), lips=dict(part=0.3 * one, jaw=0.3 * one))
    changes |= dict(brows=dict(brows=pair + 0.8), jaw=dict(jaw=0.6 * one))
    changes["gaze"] = dict(gaze=torch.stack([aside, zero], dim=1))
    detector = LandmarkDetector.load()

    def render(**change: Tensor) -> Tensor:
        return synthetic.render(synthetic.Faces(people, dataclasses.replace(state, **change)), model.image_size)

    def openness(points: Tensor) -> dict[str, Tensor]:
        lids = (points[:, LOWER_LIDS, 1] - points[:, UPPER_LIDS, 1]).sum(1)
        eyes, brows = points[:, CORNERS, 1].mean(1), points[:, BROWS, 1].mean(1)
        lips = points[:, LOWER_LIP, 1] - points[:, UPPER_LIP, 1]
        return dict(lids=lids, lips=lips, brows=eyes - brows, jaw=points[:, CHIN, 1] - eyes)

    photo = render()
    source, before = model.encode_source(photo), detector.find(photo)
    result = {}
    for name, change in changes.items():
        driving = render(**change)
        target, after = detector.find(driving), detector.find(model.render(source, model.encode_driving(driving)).image)
        if name == "gaze":
            missed, copied = ((points - target)[:, PUPILS].norm(dim=-1).mean() for points in (after, before))
            result["alone, gaze, error"] = float(missed / copied)
        else:
            moved, wanted = (openness(points)[name] - openness(before)[name] for points in (after, target))
            result[f"alone, {name}, share of the change"] = float(moved.sum() / wanted.sum())
    return result


if __name__ == "__main__":
    measure(tyro.cli(Measure))
