"""Pairs of frames to train on: of rendered faces, of films, and streams that mix both."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from minimodel.data import synthetic
from minimodel.data.framing import center_crop_resize
from minimodel.data.video import Clip, find_clips
from minimodel.landmarks import LandmarkDetector
from minimodel.tps import random_transforms
from minimodel.warping import identity_grid

LABELS = ("source_landmarks", "driving_landmarks", "source_parts", "driving_parts")


def step_generator(seed: int, step: int) -> torch.Generator:
    """What is random in one step. A generator takes 32 bits, so each seed's steps begin at another place in them."""
    return torch.Generator().manual_seed((seed * 2_654_435_761 + step) % 2**32)


class RenderedPairs:
    """Random pairs of the rendered faces; drawn and loaded like `VideoPairs`.

    Rendering costs a CPU as much as a good part of training, so slots 2n and 2n + 1 hold one pair in both directions.
    """

    def __init__(self, size: int):
        self.size = size

    def draw(self, count: int, generator: torch.Generator) -> tuple:
        return synthetic.sample_pairs((count + 1) // 2, generator)

    def load(self, samples: tuple, slots: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.both(lambda faces: synthetic.render(faces, self.size), samples, slots, device)

    def labels(self, samples: tuple, slots: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        """`LABELS`: what a model that moves by landmarks learns from beside the pictures."""
        landmarks = self.both(synthetic.landmarks, samples, slots, device)
        parts = self.both(lambda faces: synthetic.parsing(faces, self.size), samples, slots, device)
        return *landmarks, *parts

    def both(
        self, what: Callable[[synthetic.Faces], Tensor], samples: tuple, slots: Tensor, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """``what`` of the source and of the driving face of each slot; all at once, as few faces leave cores idle."""
        pairs, place = torch.unique(slots // 2, return_inverse=True)
        values = what((samples[0][pairs] + samples[1][pairs]).to(device))
        one, other = (half[place.to(device)] for half in values.chunk(2))
        forth = (slots % 2 == 0).view(-1, *[1] * (one.dim() - 1)).to(device)
        return torch.where(forth, one, other), torch.where(forth, other, one)


class FrameCache:
    """Frames of many clips, square and at one size, kept as bytes up to ``limit`` in all, least recently used clip
    first to go; a clip that alone is too long begins anew. What is decoded on the way to a frame is kept with it."""

    def __init__(self, paths: list[Path], size: int, limit: int = 2**30):
        self.clips = [Clip(path) for path in paths]
        self.size, self.limit, self.held = size, limit, 0
        self.frames: OrderedDict[int, dict[int, Tensor]] = OrderedDict()

    def __call__(self, clip: int, index: int) -> UInt8[Tensor, "3 size size"]:
        held = self.frames.setdefault(clip, {})
        self.frames.move_to_end(clip)
        if index not in held:
            try:
                self._hold(clip, index, index)
            except ValueError:
                if not held:
                    self._hold(clip, 0, index)
            if index not in held:  # the film breaks off before it
                index = max(held)
            while self.held > self.limit and len(self.frames) > 1:
                _, dropped = self.frames.popitem(last=False)
                self.held -= sum(frame.numel() for frame in dropped.values())
            if self.held > self.limit:
                target = held[index]
                held.clear()
                held[index], self.held = target, target.numel()
        return held[index]

    def _hold(self, clip: int, start: int, end: int) -> None:
        held = self.frames[clip]
        for index, frame in self.clips[clip].decode(start):
            if index not in held:
                held[index] = (center_crop_resize(frame[None] / 255.0, self.size)[0] * 255).round().byte()
                self.held += held[index].numel()
            if index >= end:
                break


@dataclass(frozen=True)
class Augmentation:
    """What is done to both frames of a pair alike. Swapping source and driving needs no option: pairs come in both
    orders anyway."""

    flip: bool = True
    """Mirror half of the pairs."""
    rotation: float = 15.0
    """Largest rotation in degrees."""
    zoom: float = 0.15
    """Largest change of size, as a share."""
    shift: float = 0.08
    """Largest shift, as a share of half the side."""
    colour: float = 0.1
    """Largest change of brightness, contrast and tint, as a share."""


def augment(
    frames: Float[Tensor, "b 2 3 h w"], change: Float[Tensor, "b 8"], options: Augmentation, size: int
) -> Float[Tensor, "b 2 3 size size"]:
    """One random change a pair, driven by eight numbers in [-1, 1]; the frames are twice as large as the result."""
    mirror, angle, zoom, right, down, bright, contrast, tint = change.unbind(1)
    angle = angle * options.rotation * torch.pi / 180
    scale = torch.exp(zoom * options.zoom)
    flip = torch.where((mirror < 0) & options.flip, -1.0, 1.0)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [flip * cos, -sin, right * options.shift, flip * sin, cos, down * options.shift]
    matrix = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = identity_grid(2 * size, 2 * size, device=frames.device)
    positions = torch.einsum("bij,jhw->bhwi", matrix[..., :2], grid) + matrix[:, None, None, :, 2]
    both = F.grid_sample(frames.flatten(1, 2), positions, padding_mode="reflection", align_corners=False)
    both = F.avg_pool2d(both, 2).unflatten(1, (2, 3))
    # Gains of each channel: brightness is common to all three, the tint trades red for blue.
    tints = torch.stack([tint, torch.zeros_like(tint), -tint], dim=1) * options.colour
    gain = torch.exp(bright[:, None] * options.colour + tints)[:, None, :, None, None]
    spread = torch.exp(contrast * options.colour)[:, None, None, None, None]
    return (((both - 0.5) * spread + 0.5) * gain).clamp(0, 1)


class VideoPairs:
    """Random pairs of frames, each pair from one clip.

    ``draw`` makes all random choices of a batch, ``load`` the pictures of any part of it: so several processes can
    share a batch and see what one process would.
    """

    def __init__(self, root: str | Path, size: int, augmentation: Augmentation | None = None):
        # Rotated frames are sampled from larger ones, or they would be blurred.
        self.cache = FrameCache(find_clips(root, "train"), 2 * size if augmentation else size)
        self.size, self.augmentation = size, augmentation
        short = [str(clip.path) for clip in self.cache.clips if len(clip) < 2]
        if short:
            raise ValueError(f"{short[0]}: one frame only, a clip to train on needs two")

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        clip = torch.randint(len(self.cache.clips), (count,), generator=generator)
        length = torch.tensor([len(self.cache.clips[c]) for c in clip.tolist()])
        first = (torch.rand(count, generator=generator) * length).long()
        # Any other frame of the clip: at least one, at most length - 1 further on, around the end.
        step = 1 + (torch.rand(count, generator=generator) * (length - 1)).long()
        change = 2 * torch.rand(count, 8, generator=generator) - 1
        return {"clip": clip, "frames": torch.stack([first, (first + step) % length], dim=1), "change": change}

    def load(self, samples: dict[str, Tensor], slots: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The pairs drawn for ``slots`` -> their source and driving frames (n, 3, size, size) in [0, 1]."""
        samples = {name: value[slots] for name, value in samples.items()}
        pairs = [
            torch.stack([self.cache(clip, index) for index in frame_indices])
            for clip, frame_indices in zip(samples["clip"].tolist(), samples["frames"].tolist(), strict=True)
        ]
        frames = torch.stack(pairs).to(device).float() / 255
        if self.augmentation is not None:
            frames = augment(frames, samples["change"].to(device), self.augmentation, self.size)
        return frames[:, 0].contiguous(), frames[:, 1].contiguous()


def open_sources(
    names: Sequence[str], size: int, augmentation: Augmentation | None
) -> list[RenderedPairs | VideoPairs]:
    """The pairs that ``names`` stand for: "synthetic", or folders of clips, whose pairs are changed at random."""
    return [RenderedPairs(size) if name == "synthetic" else VideoPairs(name, size, augmentation) for name in names]


class PairStream(Dataset):
    """Item n is this process's share of the batch of step n: source, driving, the random transform's numbers and, for
    each of ``droppable`` parts, the one that decides whether it is dropped. With a ``detector`` also `LABELS`:
    landmarks and parts of both frames, true ones of rendered faces; of films the landmarks that it finds, and no
    parts."""

    def __init__(
        self,
        sources: Sequence[RenderedPairs | VideoPairs],
        size: int,
        device: torch.device,
        *,
        batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        droppable: int = 0,
        detector: LandmarkDetector | None = None,
    ):
        self.sources, self.size, self.device, self.batch, self.seed = sources, size, device, batch, seed
        self.rank, self.world_size, self.droppable, self.detector = rank, world_size, droppable, detector

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        generator = step_generator(self.seed, step)
        transform = random_transforms(self.batch, generator)
        samples = [source.draw(self.batch, generator) for source in self.sources]
        mine = torch.arange(self.batch).tensor_split(self.world_size)[self.rank]
        frames = torch.empty(2, len(mine), 3, self.size, self.size, device=self.device)
        labels = {}
        for index, source in enumerate(self.sources):
            # Slots go round the sources, so that every batch holds equal shares.
            slots = (mine % len(self.sources) == index).nonzero().flatten()
            if not len(slots):  # this process has fewer than there are sources
                continue
            target = samples[index], mine[slots] // len(self.sources), self.device
            frames[:, slots] = torch.stack(source.load(*target))
            if self.detector is not None:
                known = source.labels(*target) if isinstance(source, RenderedPairs) else self.found(frames[:, slots])
                for name, value in zip(LABELS, known, strict=True):
                    labels.setdefault(name, value.new_empty(len(mine), *value.shape[1:]))[slots] = value
        frame_indices = dict(control=transform.control, weights=transform.weights, affine=transform.affine)
        if self.droppable:
            frame_indices["chances"] = torch.rand(self.batch, self.droppable, generator=generator)
        item = dict(source=frames[0], driving=frames[1]) | labels
        return item | {name: value[mine].to(self.device) for name, value in frame_indices.items()}

    @torch.no_grad()
    def found(self, frames: Float[Tensor, "2 b 3 h w"]) -> tuple[Tensor, ...]:
        """`LABELS` of films. One part covers all of them, so that no flow can be wrong about it."""
        landmarks = self.detector.find(frames.flatten(0, 1)).unflatten(0, (2, -1))
        parts = torch.zeros(frames.shape[1], *frames.shape[-2:], dtype=torch.long, device=frames.device)
        return *landmarks, parts, parts
