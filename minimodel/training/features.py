"""Training of the features of the perceptual loss.

Notebook: ``notebooks/09a_what_a_loss_sees.ipynb``."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minimodel.data import synthetic
from minimodel.data.pairs import step_generator
from minimodel.errors import check_positive
from minimodel.features import FaceFeatures, FaceTasks
from minimodel.runtime import Device, channels_last, pick_device
from minimodel.saving import make_metadata, whole_file, write_weights
from minimodel.training.small import colour_noise, training_steps
from minimodel.warping import from_pixels


@dataclass
class TrainFeaturesConfig:
    """Train the small feature network of the perceptual loss on the rendered faces: to parse them and to find
    landmarks."""

    output: Path
    """File for the weights."""
    minutes: float = 30.0
    """How long to train."""
    batch: int = 32
    size: int = 64
    """Side of the pictures in pixels."""
    seed: int = 0
    device: Device = "auto"
    """What computes; the best there is unless given."""


FEATURES_RATE = 1e-3


def train_features(config: TrainFeaturesConfig) -> dict[str, float]:
    """Train the feature network, write its weights, and print and return its accuracy on rendered faces that no
    training draws: the share of pixels parsed correctly, and the landmarks' mean error in pixels."""
    check_positive(config, "minutes")
    batch, size, seed = config.batch, config.size, config.seed
    device = pick_device(config.device)
    torch.manual_seed(seed)
    features = FaceFeatures()
    network = channels_last(FaceTasks(features, len(synthetic.PARTS)), device)
    optimizer = torch.optim.Adam(network.parameters(), lr=FEATURES_RATE)

    def faces(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        faces = synthetic.Faces.sample(batch, generator).to(device)
        landmarks = from_pixels(synthetic.landmarks(faces, size), (size, size))
        return synthetic.render(faces, size), synthetic.parsing(faces, size // 2), landmarks

    with whole_file(config.output) as unfinished:
        for step, bar in training_steps(optimizer, FEATURES_RATE, minutes=config.minutes):
            image, parsing, landmarks = faces(step_generator(seed, step + 1000))
            logits, points = network(colour_noise(image, torch.Generator().manual_seed(step)))
            parsed, placed = F.cross_entropy(logits, parsing), 20 * F.l1_loss(points, landmarks)
            optimizer.zero_grad()
            (parsed + placed).backward()
            optimizer.step()
            bar.set_postfix_str(f"parsing {parsed.item():.3f}, landmarks {placed.item() / 20 * size / 2:.2f} px")

        sizes, right, error = torch.zeros(len(features.widths), device=device), [], []
        with torch.no_grad():
            for index in range(10):
                image, parsing, landmarks = faces(step_generator(seed, index))
                logits, points = network(image)
                sizes += torch.stack([layer.abs().mean() for layer in features(image)[1:]]) / 10
                right.append((logits.argmax(1) == parsing).float().mean().item())
                error.append((points - landmarks).norm(dim=-1).mean().item() * size / 2)
        features.scale.copy_(sizes)
        write_weights(features.cpu(), unfinished, make_metadata("{}", kind="features"))
    scores = {"parsing accuracy": sum(right) / 10, "landmark error (px)": sum(error) / 10}
    print(scores)
    return scores
