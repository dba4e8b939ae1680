"""One training step: the model and all its losses under one ``forward``."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodel import losses
from minimodel.dense_motion import dropout_scales
from minimodel.errors import MinimodelError
from minimodel.model import AnimationModel
from minimodel.motion import Motion, Output, SourceState, Stages, TrainingPair
from minimodel.tps import Spline
from minimodel.training.teaching import (
    FIRST_OF_EYES,
    LandmarkReader,
    Teaching,
    close_ups,
    hole_mask,
    lent_gates,
    motion_numbers,
    pixel_weight,
    relations,
)
from minimodel.warping import resize_flow, size_of, warp

BACKGROUND_FROM = 0.1  # share of the run before which the TPS prior's background stands still
DROPOUT_UNTIL = 0.35  # share of the run
# Steps of motion alone compare the first three of five layers. The others cover wide surroundings, in which a moved
# source can't show what it hides: there the true flow costs more than one that bends the face to make up for it.
MOTION_LAYERS = 3
LEAST_SHOWN = 0.3  # in steps of motion alone: how much a pixel of a film counts that its gate calls hidden


@dataclass
class LossWeights:
    """What each loss counts for."""

    perceptual: float = 10.0
    points: float = 100.0
    """Published is 10. In runs of an hour more makes points hold still sooner, and what they say is all that the rest
    of the model knows of the driving frame: after 6000 pairs 100 gave 0.3 dB more."""
    affine: float = 10.0
    smoothness: float = 0.0
    """Of what refinement adds to the coarse flow. As long as points are still learnt it only slows refinement down;
    afterwards it keeps it honest."""
    background: float = 1.0
    """Of the TPS prior's background predictor: which pixels it takes for background."""
    warp: float = 10.0
    """Of the inpainting network."""
    l1: float = 10.0
    """Of the pictures; for priors with landmarks. S2D has it."""
    parsing: float = 10.0
    """Of the parts of the face, moved; for the landmarks prior, as in S2D."""
    adversarial: float = 1.0
    """Of the residual generator, as in S2D."""
    flow: float = 0.0
    """Of the distance in pixels of every stage's flow to the true one, which rendered faces know. No paper has it."""
    visibility: float = 0.0
    """Of every stage's occlusion, compared with what rendered faces truly show. It also lends the generator true gates
    at first, see ``teaching``. No paper has it."""
    matching: float = 0.0
    """Of the structure correlation: that each place scores highest where it truly came from. No paper has it."""
    hidden: float = 0.0
    """Of the colours painted where rendered faces truly hide what is asked for. No paper has it."""
    details: float = 0.0
    """Of the colours of the picture at eyes and mouth, whose places rendered faces know. No paper has it."""
    closeups: float = 0.0
    """Of the perceptual loss of close-ups of eyes and mouth, of films as well; for priors with landmarks. No paper has
    it."""
    landmarks: float = 0.0
    """Of the distance in pixels of the landmarks of eyes and mouth to those that can be read from the points. No paper
    has it."""

    @property
    def ask_the_truth(self) -> bool:
        """Whether any loss needs the truth that only rendered faces have."""
        truths = (self.flow, self.visibility, self.matching, self.hidden, self.details, self.landmarks)
        return max(truths) > 0


def dropout_probability(progress: float) -> float:
    """P of TPSM Eq. 7-8 when a share ``progress`` of the run is done: it rises from 0.1 by 0.03 with each hundredth of
    the run, up to 0.3, and is 0 from a share of 0.35 on."""
    return min(0.1 + 3 * progress, 0.3) if progress < DROPOUT_UNTIL else 0.0


class TrainingStep(nn.Module):
    """Model and losses under one `forward`, which is the module that distributed training wraps.

    This class holds what all systems have in common. A prior or a generator brings further terms itself, see
    `minimodel.priors.Prior` and `minimodel.generator.Generator`. Raises `MinimodelError` if visibility is to be taught
    to a generator that makes its own mask, and for close-ups with a prior that knows no landmarks.
    """

    def __init__(
        self, model: AnimationModel, features: nn.Module, weights: LossWeights, teaching: Teaching | None = None
    ):
        super().__init__()
        if weights.visibility and not model.generator.gated:
            raise MinimodelError("--loss.visibility with a generator that makes its own mask: it can't be lent gates")
        if weights.closeups and "driving_landmarks" not in model.prior.labels:
            raise MinimodelError(f"--loss.closeups with {type(model.prior).__name__}: it has no landmarks to look at")
        self.model, self.features, self.weights = model, features, weights
        self.teaching = Teaching() if teaching is None else teaching
        self.discriminator = model.generator.make_discriminator()
        self.reader = LandmarkReader(_count_numbers(model)) if weights.landmarks else None

    @property
    def learners(self) -> dict[str, nn.Module]:
        """The networks that are trained, by name: the model, and the discriminator if there is one."""
        known = dict(model=self.model, discriminator=self.discriminator, reader=self.reader)
        return {name: learner for name, learner in known.items() if learner is not None}

    @property
    def learned(self) -> list[nn.Parameter]:
        """The parameters of `learners`, for an optimizer."""
        return [parameter for learner in self.learners.values() for parameter in learner.parameters()]

    @property
    def learns_motion(self) -> bool:
        """Whether any part before the generator is trained."""
        return self.learns("prior.", "structure.", "refiner.")

    def learns(self, *parts: str) -> bool:
        """Whether anything is trained whose name begins with one of ``parts``."""
        return any(p.requires_grad for name, p in self.model.named_parameters() if name.startswith(parts))

    def forward(
        self, batch: dict[str, Tensor], *, motion_only: bool = False, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """Compute the terms of the loss for a batch of `minimodel.data.pairs.PairStream`, by name, each times its
        weight.

        With ``motion_only`` the generator is left out; the loss then compares the driving frame with the source, warped
        by the coarse flow and by the last one. ``progress`` is the share of the run that is done.
        """
        model, driving = self.model, batch["driving"]
        motion = model.encode_driving(
            driving, landmarks=batch.get("driving_landmarks"), move_background=progress >= BACKGROUND_FROM
        )
        transform = Spline(batch["control"], batch["weights"], batch["affine"])
        terms: dict[str, Tensor] = {}
        if self.learns("prior."):  # else there is nothing to hold still
            terms = self.weighted(model.prior.detection_terms(driving, motion, transform))
        to_render = model.generator.loss_uses_features or not motion_only
        source = model.encode_source(batch["source"], landmarks=batch.get("source_landmarks"), to_render=to_render)
        scales = None
        if "chances" in batch:
            scales = dropout_scales(batch["chances"], dropout_probability(progress))
        if motion_only:
            stages = model.move(source, motion, part_scales=scales)
            terms |= self.motion_terms(source, stages, driving, self.shown(stages, batch))
        else:
            stages = model.move(source, motion, part_scales=scales)
            output = stages = model.paint(source, stages, gates=self.gates(stages, batch, progress))
            terms |= self.picture_terms(output, driving, batch.get("lots"))
            if self.weights.closeups:
                pictures = [close_ups(picture, batch["driving_landmarks"]) for picture in (output.image, driving)]
                terms |= self.weighted({"closeups": losses.perceptual_loss(self.features, *pictures, scales=(1, 2))})
            if self.weights.hidden:
                terms |= self.weighted({"hidden": losses.hidden_loss(output.painted, driving, batch["visible"])})
        if self.weights.smoothness and model.refiner is not None:
            added = stages.flows[-1] - resize_flow(stages.flows[0], size_of(driving))
            terms |= self.weighted({"smoothness": losses.smoothness(added)})
        if self.weights.ask_the_truth:
            terms |= self.truth_terms(stages, batch)
            terms |= self.detail_terms(motion, stages, batch)
        pair = TrainingPair(batch, source, motion, stages)
        return terms | self.weighted(model.prior.loss_terms(pair) | model.generator.loss_terms(pair))

    def weighted(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Multiply each term by the weight of its name."""
        return {name: getattr(self.weights, name) * term for name, term in terms.items()}

    def differences(self, pictures: dict[str, Tensor], driving: Tensor, layers: int = 5) -> dict[str, Tensor]:
        """The losses of pictures against the driving frame, by name: the perceptual loss of the first ``layers``
        layers, and L1 if the prior asks for it. Fewer layers weigh as much as all five."""
        features = self.features if layers == 5 else partial(self.features, layers=layers)
        found = losses.perceptual_losses(features, list(pictures.values()), driving)
        terms = {name: self.weights.perceptual * 5 / layers * loss for name, loss in zip(pictures, found, strict=True)}
        if self.model.prior.compares_pixels:
            terms = {name: terms[name] + self.weights.l1 * F.l1_loss(pictures[name], driving) for name in terms}
        return terms

    def motion_terms(
        self, source: SourceState, stages: Stages, driving: Tensor, shown: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The losses of the source warped by the last flow and, if there is a refiner, by the coarse flow. Each pixel
        counts as much as it is ``shown``."""
        pictures = {"moved": stages.warped_source}
        if self.model.refiner is not None:
            pictures["coarse"] = warp(source.image, resize_flow(stages.coarse.flow, size_of(driving)))
        if shown is not None:
            pictures = {name: torch.lerp(driving, picture, shown) for name, picture in pictures.items()}
        return self.differences(pictures, driving, MOTION_LAYERS)

    def shown(self, stages: Stages, batch: dict[str, Tensor]) -> Tensor | None:
        """How much of each pixel of the driving frame the source shows, (b, 1, h, w), where the truth is at hand: the
        truth of rendered faces, and the gates of films, which may be wrong and so leave a part. None elsewhere."""
        if "visible" not in batch:
            return None
        gates = torch.sigmoid(stages.occlusions[-1].detach())
        known = batch["known"].view(-1, 1, 1, 1) > 0
        return torch.where(known, batch["visible"], LEAST_SHOWN + (1 - LEAST_SHOWN) * gates)

    def picture_terms(self, output: Output, driving: Tensor, lots: Tensor | None = None) -> dict[str, Tensor]:
        """The losses of the rendered picture, and of the painted one before it was blended with the warped source.
        Behind true gates the two seldom differ, and each costs as much as the other; so where visibility is taught only
        one of them is compared for each pair, chosen by the random numbers ``lots`` (b, 2)."""
        blended = output.painted is not output.image
        if blended and self.weights.visibility and lots is not None:
            chosen = (lots[:, 1] < 0.5).view(-1, 1, 1, 1)
            return self.differences({"perceptual": torch.where(chosen, output.image, output.painted)}, driving)
        pictures = {"perceptual": output.image}
        if blended:
            # Or the generator would hardly learn wherever the gate trusts the warped source, which soon is everywhere.
            pictures["painted"] = output.painted
        terms = self.differences(pictures, driving)
        if self.discriminator is not None:
            terms |= self.adversaries(self.discriminator, output.image, driving)
        return terms

    def gates(self, stages: Stages, batch: dict[str, Tensor], progress: float) -> list[Tensor] | None:
        """The gates (logits) for the generator where visibility is taught, see `lent_gates`; None where it isn't.

        Where the truth is known gates learn from the truth. Pairs of films always have the model's own gates, which
        learn from the picture: a rendered face alone doesn't teach what a photograph shows. At first nothing learns
        from the picture: as long as nothing can be painted, open gates are best everywhere.
        """
        if not self.weights.visibility:
            return None
        teaching, visible, film = self.teaching, batch["visible"], batch["known"] == 0
        own = batch["lots"][:, 0] < teaching.own_share(progress)
        solid = hole_mask(batch["holes"], size_of(visible), chance=teaching.holes, largest=teaching.largest_hole)
        learning = film & (progress >= teaching.forced_until)
        return lent_gates(stages.occlusions[1:], visible * solid, own | film, learning)

    def truth_terms(self, stages: Stages, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of flow, occlusion and correlation against the truth of rendered faces, each times its weight.
        Pairs of films have no truth and count nothing."""
        weights, landmarks, focus = self.weights, batch["true_landmarks"], self.teaching.focus
        known = batch["known"].view(-1, 1, 1, 1).expand_as(batch["visible"])
        visible = batch["visible"] * known
        terms = {}
        if weights.flow:
            counts = pixel_weight(visible, landmarks, focus)
            terms["flow"] = losses.true_flow_loss(stages.flows, batch["true_flow"], counts)
        if weights.visibility:
            counts = pixel_weight(known, landmarks, focus)
            terms["visibility"] = losses.visibility_loss(stages.occlusions, batch["visible"], counts)
        if weights.matching and stages.correlation is not None:
            terms["matching"] = losses.matching_loss(stages.correlation.volume(), batch["true_flow"], visible)
        return self.weighted(terms)

    def detail_terms(self, motion: Motion, stages: Stages, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of eyes and mouth: of their colours, and of their landmarks as read from the points."""
        weights, landmarks, known = self.weights, batch["true_landmarks"], batch["known"]
        terms = {}
        if weights.details and isinstance(stages, Output):
            counts = pixel_weight(known.view(-1, 1, 1, 1).expand_as(batch["visible"]), landmarks, 1.0)
            terms["details"] = ((stages.image - batch["driving"]).abs().mean(1, keepdim=True) * counts).sum()
        if self.reader is not None:
            read, side = self.reader(motion), batch["driving"].shape[-1] / 2
            # Where a lid is depends mostly on where the head is; so what lids, lips and pupils do counts by itself.
            missed = [read[:, FIRST_OF_EYES:] - landmarks[:, FIRST_OF_EYES:], relations(read) - relations(landmarks)]
            distances = sum(((side * each).square().sum(-1) + 1e-6).sqrt().mean(1) for each in missed)
            terms["landmarks"] = (distances * known).sum() / known.sum().clamp_min(1)
        return self.weighted(terms)

    def adversaries(self, discriminator: nn.Module, image: Tensor, driving: Tensor) -> dict[str, Tensor]:
        """The losses of discriminator and generator (S2D Eq. 5 and 6). One backward pass serves both: the discriminator
        learns from the detached picture, and the generator from a discriminator with detached weights."""
        fixed = {name: value.detach() for name, value in discriminator.named_parameters()}
        real, generated = discriminator(driving), discriminator(image.detach())
        scores = torch.func.functional_call(discriminator, fixed, (image,))
        return {
            "discriminator": losses.discriminator_loss(real, generated),
            "adversarial": self.weights.adversarial * losses.adversarial_loss(scores),
        }


@torch.no_grad()
def _count_numbers(model: AnimationModel) -> int:
    """How many numbers the prior finds in a frame."""
    was = model.training
    blank = torch.zeros(1, 3, model.image_size, model.image_size, device=next(model.parameters()).device)
    found = motion_numbers(model.eval().prior.detect(blank))
    model.train(was)
    return found.shape[1]
