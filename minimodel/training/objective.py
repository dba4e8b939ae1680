"""One training step: the model and all its losses under one ``forward``."""

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodel import losses
from minimodel.dense_motion import dropout_scales
from minimodel.model import AnimationModel
from minimodel.motion import Motion
from minimodel.tps import Spline
from minimodel.warping import resize_flow, warp

BACKGROUND_FROM = 0.1  # share of the run before which the TPS prior's background stands still
DROPOUT_UNTIL = 0.35  # share of the run
# Steps of motion alone compare the first three of five layers. The others look at wide surroundings, in which a moved
# source can't show what it hides: there the true flow costs more than one that bends the face to make up for it.
MOTION_LAYERS = 3


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
    """Of the pictures; for the landmarks prior, as in S2D."""
    parsing: float = 10.0
    """Of the parts of the face, moved; for the landmarks prior, as in S2D."""
    adversarial: float = 1.0
    """Of the residual generator, as in S2D."""


def dropout_probability(progress: float) -> float:
    """P of TPSM Eq. 7-8 at a share of the run: from 0.1 it rises by 0.03 a hundredth to 0.3, and ends at 0.35."""
    return min(0.1 + 3 * progress, 0.3) if progress < DROPOUT_UNTIL else 0.0


class TrainingStep(nn.Module):
    """Model and losses under one `forward`, which is what distributed training wraps."""

    def __init__(self, model: AnimationModel, features: nn.Module, weights: LossWeights):
        super().__init__()
        self.model, self.features, self.weights = model, features, weights
        self.discriminator = losses.Discriminator() if model.config.generator == "residual" else None

    @property
    def learners(self) -> dict[str, nn.Module]:
        """What learns: all but the features."""
        return dict(model=self.model) | ({} if self.discriminator is None else dict(discriminator=self.discriminator))

    @property
    def learned(self) -> list[nn.Parameter]:
        """The parameters of `learners`, for an optimizer."""
        return [parameter for learner in self.learners.values() for parameter in learner.parameters()]

    def forward(
        self, batch: dict[str, Tensor], *, motion_only: bool = False, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """``motion_only``: without the generator, by the source as the first flow and the last one move it;
        ``progress`` is the share of the run that is done."""
        model, weights = self.model, self.weights
        source, driving = batch["source"], batch["driving"]
        by_landmarks = model.config.prior == "landmarks"
        inpaints = model.config.generator == "inpainting"
        if by_landmarks:  # they are given, so nothing has to be asked of them
            motion, terms = model.encode_driving(landmarks=batch["driving_landmarks"]), {}
        else:
            motion = model.encode_driving(driving)
            terms = self.equivariance(driving, motion, Spline(batch["control"], batch["weights"], batch["affine"]))
            if progress < BACKGROUND_FROM:
                motion = dataclasses.replace(motion, image=None)
        state = model.encode_source(
            source, landmarks=batch.get("source_landmarks"), to_render=inpaints or not motion_only
        )

        def like_driving(image: Tensor, layers: int = 5) -> Tensor:
            # Fewer layers weigh as much as all of them.
            loss = losses.perceptual_loss(self.features, image, driving, layers=layers)
            loss = weights.perceptual * 5 / layers * loss
            return loss + weights.l1 * F.l1_loss(image, driving) if by_landmarks else loss

        options = {}
        if "chances" in batch:
            options["part_scales"] = dropout_scales(batch["chances"], dropout_probability(progress))
        if motion_only:
            stages = model.move(state, motion, **options)
            terms["moved"] = like_driving(stages.warped_source, MOTION_LAYERS)
            if model.refiner is not None:
                coarse = resize_flow(stages.coarse.flow, tuple(source.shape[-2:]))
                terms["coarse"] = like_driving(warp(source, coarse), MOTION_LAYERS)
        else:
            stages = model.render(state, motion, **options)
            terms["perceptual"] = like_driving(stages.image)
            if model.config.blend:
                # Or the generator would hardly learn wherever the gate trusts the warped source, which soon is
                # everywhere.
                terms["painted"] = like_driving(stages.painted)
            if self.discriminator is not None:
                terms |= self.adversaries(stages.image, driving)
        if weights.smoothness and model.refiner is not None:
            added = stages.flows[-1] - resize_flow(stages.flows[0], tuple(source.shape[-2:]))
            terms["smoothness"] = weights.smoothness * losses.smoothness(added)
        if model.config.prior == "tps":
            looked = model.prior.background
            terms["background"] = weights.background * losses.background_mask_loss(
                looked.logits(looked.resized(driving)), stages.coarse.masks
            )
        if inpaints:
            with torch.no_grad():
                target = model.generator.encode(driving)
            terms["warp"] = weights.warp * losses.warp_loss(state.features, target, stages.flows[1:])
        if by_landmarks:
            parts = losses.parsing_loss(batch["source_parts"], stages.flows[-1], batch["driving_parts"])
            terms["parsing"] = weights.parsing * parts
        return terms

    def equivariance(self, driving: Tensor, motion: Motion, transform: Spline) -> dict[str, Tensor]:
        """What the model says of a frame that ``transform`` bends should be what it says of the frame, bent."""
        moved = self.model.encode_driving(losses.transformed_frame(driving, transform))
        points = losses.equivariance_points(motion.points, moved.points, transform)
        terms = {"points": self.weights.points * points}
        if motion.affine is not None:
            difference = losses.equivariance_affine(motion.affine, moved.affine, moved.points, transform)
            terms["affine"] = self.weights.affine * difference
        return terms

    def adversaries(self, image: Tensor, driving: Tensor) -> dict[str, Tensor]:
        """S2D Eq. 5 and 6. One backward pass serves both sides: the discriminator sees the picture detached, and the
        picture is judged by a discriminator that is."""
        judge = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        scores = self.discriminator(driving), self.discriminator(image.detach())
        scores_of_image = torch.func.functional_call(self.discriminator, judge, (image,))
        return {
            "discriminator": losses.discriminator_loss(*scores),
            "adversarial": self.weights.adversarial * losses.adversarial_loss(scores_of_image),
        }
