"""Training of the network that `animate --mode avd` needs.

Notebook: ``notebooks/10_motion_transfer.ipynb``."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm

from minimodel.data.augmentation import Augmentation
from minimodel.data.pairs import PairStream, open_sources, step_generator
from minimodel.errors import MinimodelError, check_positive
from minimodel.model import AnimationModel
from minimodel.motion import Motion, join
from minimodel.runtime import Device, pick_device
from minimodel.saving import whole_file
from minimodel.transfer import AvdNetwork, avd, avd_path, deformed, flatten


@dataclass
class TrainAvdConfig:
    """Train what `animate --mode avd` needs: two small encoders and a decoder for the points of one model."""

    weights: str = "tiny"
    """The model: shipped weights by name, or a .safetensors file. The network is saved beside them, as avd-NAME."""
    data: tuple[str, ...] = ("synthetic",)
    """"synthetic", folders of clips, or several of both: best what the model was trained on."""
    pairs: int = 2000
    """Pairs of frames whose points are found, once ..."""
    steps: int = 2000
    """... and then deformed anew in each of so many steps."""
    batch: int = 128
    """Pairs a step."""
    seed: int = 0
    device: Device = "auto"
    """What computes; the best there is unless given."""


AVD_RATE = 2e-3


def train_avd(config: TrainAvdConfig) -> AvdNetwork:
    """Train the network of `animate --mode avd` for one model, and save it beside the model's weights.

    Training takes two frames of one film (TPSM section 3.4). The first gives the shape. The second gives the pose,
    after it was deformed as if it were another person's. The target is the second frame's motion before it was
    deformed. Raises `MinimodelError` for a model that moves by landmarks.
    """
    check_positive(config, "pairs", "steps", "batch")
    device = pick_device(config.device)
    model = AnimationModel.load(config.weights, device=device)
    if model.prior.moves_by_landmarks:
        raise MinimodelError(f"{config.weights}: moves by landmarks; avd is for models that find their own points")
    path = avd_path(config.weights)
    with whole_file(path) as unfinished:
        source, driving = motion_pairs(model, config, device)
        torch.manual_seed(config.seed)
        network = AvdNetwork(source.points.shape[1], with_affine=source.affine is not None).to(device)
        rows = flatten(driving)
        network.mean.copy_(rows.mean(0))
        network.std.copy_(rows.std(0).clamp_min(0.01))  # numbers that never change would be blown up
        optimizer = torch.optim.Adam(network.parameters(), lr=AVD_RATE)
        generator = step_generator(config.seed, 0)
        bar = tqdm(range(config.steps), unit=" steps", dynamic_ncols=True, desc="training")
        for step in bar:
            optimizer.param_groups[0]["lr"] = AVD_RATE * (1 - step / config.steps)
            chosen = torch.randint(len(rows), (config.batch,), generator=generator).to(device)
            shape, target = (motion[chosen] for motion in (source, driving))
            prediction = avd(shape, deformed(target, generator), network)
            loss = F.l1_loss(prediction.points, target.points)
            if target.affine is not None and prediction.affine is not None:
                loss = loss + F.l1_loss(prediction.affine, target.affine)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 100 == 0:
                bar.set_postfix_str(f"loss {loss.item():.4f}")
        network.eval().save(unfinished, model=model)
    print(f"wrote {path}")
    return network


@torch.no_grad()
def motion_pairs(model: AnimationModel, config: TrainAvdConfig, device: torch.device) -> tuple[Motion, Motion]:
    """The motion that the model finds in the source and in the driving frames of ``config.pairs`` pairs, rounded up to
    whole batches of 32."""
    size, batch = model.image_size, 32
    sources = open_sources(config.data, size, Augmentation())
    stream = PairStream(sources, size, device, batch=batch, seed=config.seed)
    source: list[Motion] = []
    driving: list[Motion] = []
    for step in tqdm(range(-(-config.pairs // batch)), unit=" batches", dynamic_ncols=True, desc="finding points"):
        frames = stream[step]
        source.append(model.encode_driving(frames["source"]))
        driving.append(model.encode_driving(frames["driving"]))
    return join(source), join(driving)
