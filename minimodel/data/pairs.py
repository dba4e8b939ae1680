"""Pairs of frames to train on: pairs of rendered faces, pairs from films, and streams that mix both."""

import hashlib
import os
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import av
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from minimodel.data import synthetic
from minimodel.data.augmentation import Augmentation, augment, augment_landmarks
from minimodel.data.framing import center_crop_resize
from minimodel.data.index import MANY, IndexedClip, index_clips, open_clip
from minimodel.data.video import Clip, find_clips, read_all
from minimodel.errors import MinimodelError
from minimodel.landmarks import LANDMARKS, LandmarkDetector
from minimodel.tps import random_transforms


@runtime_checkable
class PairSource(Protocol):
    """A source of pairs of frames of one person. Any object with these methods is one.

    ``draw`` makes all random choices of a batch, and ``load`` the pictures of any part of it. So several processes can
    share a batch and get the pairs that one process would.
    """

    def draw(self, count: int, generator: torch.Generator) -> Any:
        """Make the choices for ``count`` pairs, all of them from ``generator``."""
        ...

    def load(self, samples: Any, slots: Int[Tensor, "n"], device: torch.device) -> tuple[Tensor, Tensor]:
        """Load the pairs ``slots`` of what was drawn: source and driving frames, (n, 3, size, size) each, in [0, 1]."""
        ...

    def labels(
        self, names: Sequence[str], samples: Any, slots: Int[Tensor, "n"], device: torch.device
    ) -> dict[str, Tensor]:
        """The labels among ``names`` (see `minimodel.priors.LANDMARK_LABELS`) that the source has for these pairs; none
        by default."""
        return {}

    def truth(self, samples: Any, slots: Int[Tensor, "n"], device: torch.device) -> dict[str, Tensor]:
        """The truth about these pairs that only a renderer has (see `RenderedPairs.truth`); nothing by default."""
        return {}


HOLES = 3  # at most this many a pair


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of everything random in one step. It takes a seed of 32 bits; the steps of each training seed begin
    at another place in them."""
    return torch.Generator().manual_seed((seed * 2_654_435_761 + step) % 2**32)


class RenderedPairs(PairSource):
    """Random pairs of rendered faces, with all their labels.

    Rendering costs a CPU as much as a good part of training, so slots 2n and 2n + 1 hold one pair in both directions.

    >>> pairs = RenderedPairs(64)
    >>> samples = pairs.draw(8, torch.Generator().manual_seed(0))
    >>> source, driving = pairs.load(samples, torch.arange(8), torch.device("cpu"))  # (8, 3, 64, 64) each
    """

    def __init__(self, size: int):
        self.size = size

    def draw(self, count: int, generator: torch.Generator) -> tuple:
        """Draw one pair of faces for every two slots."""
        return synthetic.sample_pairs((count + 1) // 2, generator)

    def load(self, samples: tuple, slots: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Render the pairs of ``slots``: source and driving frames, (n, 3, size, size) each, in [0, 1]."""
        return self.both(lambda faces: synthetic.render(faces, self.size), samples, slots, device)

    def labels(self, names: Sequence[str], samples: tuple, slots: Tensor, device: torch.device) -> dict[str, Tensor]:
        """The true labels among ``names``: ``source_landmarks`` and ``driving_landmarks`` (n, 74, 2), normalised;
        ``source_parts`` and ``driving_parts`` (n, size, size), numbered as in `synthetic.parsing`."""
        makers = dict(landmarks=synthetic.landmarks, parts=lambda faces: synthetic.parsing(faces, self.size))
        known = {}
        for label, maker in makers.items():
            if f"source_{label}" in names:
                known[f"source_{label}"], known[f"driving_{label}"] = self.both(maker, samples, slots, device)
        return known

    def truth(self, samples: tuple, slots: Tensor, device: torch.device) -> dict[str, Tensor]:
        """The truth of the pairs: ``true_flow`` (n, 2, size, size), normalised, from each slot's driving frame to its
        source; ``visible`` (n, 1, size, size), 1 where the point is visible in the source too, otherwise 0; and the
        driving frame's ``true_landmarks`` (n, 74, 2), normalised."""

        def flow_and_visible(faces: synthetic.Faces) -> Tensor:
            # ``both`` passes all sources, then all driving faces; each one's partner is half a batch away.
            partners = faces[torch.arange(len(faces)).roll(len(faces) // 2)]
            return torch.cat(synthetic.flow_between(faces, partners, self.size), dim=1)

        flow, visible = self.both(flow_and_visible, samples, slots, device)[0].split([2, 1], dim=1)
        landmarks = self.both(synthetic.landmarks, samples, slots, device)[1]
        return dict(true_flow=flow, visible=visible, true_landmarks=landmarks)

    def both(
        self, what: Callable[[synthetic.Faces], Tensor], samples: tuple, slots: Tensor, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Compute ``what`` for the source and the driving face of each slot. All faces are computed at once, as few
        faces leave cores idle."""
        pairs, place = torch.unique(slots // 2, return_inverse=True)
        values = what((samples[0][pairs] + samples[1][pairs]).to(device))
        one, other = (half[place.to(device)] for half in values.chunk(2))
        forth = (slots % 2 == 0).view(-1, *[1] * (one.dim() - 1)).to(device)
        return torch.where(forth, one, other), torch.where(forth, other, one)


class FrameCache:
    """Square frames of many clips, kept as bytes, ``limit`` bytes in memory. Frames that are decoded on the way to
    another are kept too. Beyond the limit the least recently used clip moves to a temporary file, from which a frame
    comes back without decoding; a clip that alone exceeds the limit is emptied.

    Frames have ``size`` pixels a side, or fewer if the film has fewer: enlarging them would add bytes and no detail.

    Clips that can't be opened, or hold one frame only, are left out (see `read_all`). What stands in for a frame that
    can't be decoded depends on the files alone, so that a run that goes on gets the frames that it would have got. With
    ``strict`` either is a `MinimodelError`.

    More than `MANY` clips below a folder ``root`` are opened one by one when they are needed, see `index_clips`.
    """

    clips: Sequence[Clip | IndexedClip]

    def __init__(
        self,
        paths: Sequence[Path],
        size: int,
        limit: int = 2**30,
        *,
        strict: bool = False,
        root: Path | None = None,
    ):
        if root is not None and len(paths) > MANY:
            self.clips = index_clips(paths, root, strict=strict)
        else:
            self.clips = read_all(paths, open_clip, strict=strict)
        self.size, self.limit, self.strict, self.held = size, limit, strict, 0
        self.file: IO[bytes] | None = None
        self.on_disk: dict[tuple[int, int], tuple[int, int]] = {}  # clip, frame -> where in the file, side
        self.frames: OrderedDict[int, dict[int, Tensor]] = OrderedDict()
        self.decodable: dict[int, list[int]] = {}  # of clips with damaged frames: the numbers of the others
        self.stand_ins: dict[tuple[int, int], int] = {}  # clip, damaged frame -> frame
        self.broken: set[int] = set()  # clips of which nothing can be decoded

    def __call__(self, clip: int, index: int) -> UInt8[Tensor, "3 side side"]:
        """A frame of a clip, 0 to 255. If it can't be decoded, the nearest one that can takes its place. Raises
        `MinimodelError` if there is none."""
        index = self.stand_ins.get((clip, index), index)
        held = self.frames.setdefault(clip, {})
        self.frames.move_to_end(clip)
        if index not in held:
            if not self._read_back(clip, index):
                index = self._fetch(clip, index)
            while self.held > self.limit and len(self.frames) > 1:
                self._move_to_disk(*self.frames.popitem(last=False))
            if self.held > self.limit:
                target = held[index]
                held.clear()
                held[index], self.held = target, target.numel()
        return held[index]

    def several(self, clip: int, indices: Sequence[int]) -> UInt8[Tensor, "n 3 side side"]:
        """Some frames of one clip. If nothing of the clip can be decoded, the next one that can takes its place, with a
        warning: a file that breaks mustn't stop a training that has run for hours. Raises `MinimodelError` if there is
        none."""
        error: Exception | None = None
        for step in range(len(self.clips)):
            other = (clip + step) % len(self.clips)
            if other in self.broken:
                continue
            # In a shorter clip, frames that are as far apart.
            excess = max(0, max(indices) - len(self.clips[other]) + 1)
            try:
                return torch.stack([self(other, max(0, index - excess)) for index in indices])
            except (MinimodelError, OSError, av.FFmpegError) as failure:
                if self.strict:
                    raise MinimodelError(str(failure)) from failure
                error = failure
                self.broken.add(other)
                warnings.warn(f"{failure}; other clips take its place", stacklevel=2)
        raise MinimodelError("no clip is left that can be decoded") from error

    def _move_to_disk(self, clip: int, frames: dict[int, Tensor]) -> None:
        self.held -= sum(frame.numel() for frame in frames.values())
        with suppress(OSError):  # a full disk: what isn't there is decoded again
            if self.file is None:
                self.file = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the cache lives
            for index, frame in frames.items():
                if (clip, index) not in self.on_disk:
                    place = self.file.seek(0, os.SEEK_END)
                    self.file.write(frame.numpy().tobytes())
                    self.file.flush()
                    self.on_disk[clip, index] = place, frame.shape[-1]

    def _read_back(self, clip: int, index: int) -> bool:
        """Hold a frame that is in the file; -> whether it is."""
        if (clip, index) not in self.on_disk or self.file is None:
            return False
        place, side = self.on_disk[clip, index]
        self.file.seek(place)
        read = bytearray(self.file.read(3 * side * side))
        self.frames[clip][index] = torch.frombuffer(read, dtype=torch.uint8).view(3, side, side)
        self.held += len(read)
        return True

    def _fetch(self, clip: int, index: int) -> int:
        """Hold a frame, or the one that stands in for it; -> the number of that one."""
        with suppress(MinimodelError):  # nothing from its key frame on
            self._hold(clip, index)
        if index in self.frames[clip]:
            return index
        if clip not in self.decodable:
            self.decodable[clip] = [number for number, _ in self.clips[clip].decode()]
        near = min(self.decodable[clip], key=lambda number: (abs(number - index), number))
        self.stand_ins[clip, index] = near
        if near not in self.frames[clip]:
            self._hold(clip, near)
        return near

    def _hold(self, clip: int, target: int) -> None:
        held = self.frames[clip]
        for index, frame in self.clips[clip].decode(target):
            if index not in held:
                side = min(self.size, *frame.shape[-2:])
                held[index] = (center_crop_resize(frame[None] / 255.0, side)[0] * 255).round().byte()
                self.held += held[index].numel()
            if index >= target:
                break


def labels_of_films(source: Float[Tensor, "n 74 2"], driving: Float[Tensor, "n 74 2"], size: int) -> dict[str, Tensor]:
    """The labels of pairs of which landmarks alone are known: all pixels get one part."""
    parts = torch.zeros(len(source), size, size, dtype=torch.long, device=source.device)
    labels = dict(source_landmarks=source, driving_landmarks=driving)
    return labels | dict(source_parts=parts, driving_parts=parts)


class VideoPairs(PairSource):
    """Random pairs of frames of films, each pair from one clip. Clips that can't be used are left out, see
    `FrameCache`; with ``strict`` they are a `MinimodelError`. ``memory`` is the cache's limit in bytes.

    Landmarks are those that ``detector`` finds, once in each frame, before the frame is changed at random and made
    smaller: what it finds in fewer pixels is less exact. Without it the source has no labels.

    >>> pairs = VideoPairs("clips", 64)
    >>> samples = pairs.draw(8, torch.Generator().manual_seed(0))
    >>> source, driving = pairs.load(samples, torch.arange(8), torch.device("cpu"))  # (8, 3, 64, 64) each
    """

    def __init__(
        self,
        root: str | Path,
        size: int,
        augmentation: Augmentation | None = None,
        *,
        strict: bool = False,
        memory: int = 2**30,
        detector: LandmarkDetector | None = None,
    ):
        # Rotated frames are sampled from larger ones, or they would be blurred.
        side = 2 * size if augmentation else size
        self.cache = FrameCache(find_clips(root, "train"), side, memory, strict=strict, root=Path(root))
        self.size, self.augmentation, self.detector = size, augmentation, detector
        self.found: dict[bytes, Tensor] = {}  # landmarks of frames, by their pixels

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw clip, two different frames of it and the eight numbers of `augment` for each pair."""
        clip = torch.randint(len(self.cache.clips), (count,), generator=generator)
        length = torch.tensor([len(self.cache.clips[c]) for c in clip.tolist()])
        first = (torch.rand(count, generator=generator) * length).long()
        # Any other frame of the clip: at least one, at most length - 1 further on, around the end.
        step = 1 + (torch.rand(count, generator=generator) * (length - 1)).long()
        change = 2 * torch.rand(count, 8, generator=generator) - 1
        return {"clip": clip, "frames": torch.stack([first, (first + step) % length], dim=1), "change": change}

    def load(self, samples: dict[str, Tensor], slots: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Load the pairs of ``slots``: source and driving frames, (n, 3, size, size) each, in [0, 1]."""
        frames = torch.stack([self.whole(pair.to(device)) for pair in self.several(samples, slots)])
        if self.augmentation is not None:
            frames = augment(frames, samples["change"][slots].to(device), self.augmentation, self.size)
        return frames[:, 0].contiguous(), frames[:, 1].contiguous()

    def labels(
        self, names: Sequence[str], samples: dict[str, Tensor], slots: Tensor, device: torch.device
    ) -> dict[str, Tensor]:
        """``source_landmarks`` and ``driving_landmarks`` (n, 74, 2), normalised, and one part for all pixels."""
        if self.detector is None:
            return {}
        frames = [frame for pair in self.several(samples, slots) for frame in pair]
        found = self.landmarks(frames).unflatten(0, (-1, 2)).to(device)
        if self.augmentation is not None:
            found = augment_landmarks(found, samples["change"][slots].to(device), self.augmentation)
        return labels_of_films(found[:, 0], found[:, 1], self.size)

    def several(self, samples: dict[str, Tensor], slots: Tensor) -> list[UInt8[Tensor, "2 3 side side"]]:
        """The frames of the pairs ``slots`` as the cache has them."""
        clips, frames = (samples[name][slots].tolist() for name in ("clip", "frames"))
        return [self.cache.several(clip, two) for clip, two in zip(clips, frames, strict=True)]

    def whole(self, frames: UInt8[Tensor, "n 3 side side"]) -> Float[Tensor, "n 3 whole whole"]:
        """Frames of the cache at its full size, in [0, 1]."""
        return center_crop_resize(frames / 255, self.cache.size)

    @torch.no_grad()
    def landmarks(self, frames: list[UInt8[Tensor, "3 _ _"]]) -> Float[Tensor, "n 74 2"]:
        """The landmarks of frames. A frame is known by its pixels, as another one may stand in for it."""
        assert self.detector is not None
        names = [hashlib.blake2b(frame.numpy().tobytes(), digest_size=16).digest() for frame in frames]
        new = {name: frame for name, frame in zip(names, frames, strict=True) if name not in self.found}
        if new:
            where = next(self.detector.parameters()).device
            pictures = torch.cat([self.whole(frame[None].to(where)) for frame in new.values()])
            self.found |= zip(new, self.detector.find(pictures).cpu(), strict=True)
        return torch.stack([self.found[name] for name in names])


def open_sources(
    names: Sequence[str],
    size: int,
    augmentation: Augmentation | None,
    *,
    strict: bool = False,
    memory: int = 2**30,
    detector: LandmarkDetector | None = None,
) -> list[PairSource]:
    """Open the source of pairs of each name: "synthetic" stands for rendered faces, any other name for a folder of
    clips. Pairs of clips are changed at random by ``augmentation``, unless it is None. Clips that can't be used are
    left out; with ``strict`` they are a `MinimodelError`. The folders share ``memory`` bytes for decoded frames.
    ``detector`` finds the landmarks of films, if they are needed. A name that is there twice is opened once."""
    folders = sum(name != "synthetic" for name in set(names))
    options: dict[str, Any] = dict(strict=strict, memory=memory // max(1, folders), detector=detector)
    opened: dict[str, PairSource] = {
        name: RenderedPairs(size) if name == "synthetic" else VideoPairs(name, size, augmentation, **options)
        for name in dict.fromkeys(names)
    }
    return [opened[name] for name in names]


class PairStream(Dataset):
    """The batches of a run: item n is this process's share of the batch of step n, as a dict of tensors.

    Each item holds ``source`` and ``driving`` (b, 3, size, size) in [0, 1]; ``control``, ``weights`` and ``affine`` of
    the random transform for the equivariance loss; with ``droppable`` also ``chances`` (b, droppable), the random
    numbers that decide which parts are dropped. ``labels`` names further entries, see
    `minimodel.priors.LANDMARK_LABELS`. If a source has no labels, landmarks come from the ``detector``, and all pixels
    get one part, about which no flow can be wrong.

    With ``truth`` an item also holds the entries of `RenderedPairs.truth` and ``known`` (b): 1, or 0 for pairs whose
    source has no truth; for those the flow is 0 and every pixel visible. ``lots`` (b, 2) and ``holes`` (b, `HOLES`, 6)
    are random numbers for `minimodel.training.teaching`.
    """

    def __init__(
        self,
        sources: Sequence[PairSource],
        size: int,
        device: torch.device,
        *,
        batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        droppable: int = 0,
        labels: Sequence[str] = (),
        detector: LandmarkDetector | None = None,
        truth: bool = False,
    ):
        self.sources, self.size, self.device, self.batch, self.seed = sources, size, device, batch, seed
        self.rank, self.world_size, self.droppable = rank, world_size, droppable
        self.labels, self.detector, self.truth = labels, detector, truth

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """The batch of a step, on ``device``. Raises `MinimodelError` if labels are needed and neither the source nor a
        detector gives them."""
        generator = step_generator(self.seed, step)
        transform = random_transforms(self.batch, generator)
        samples = [source.draw(self.batch, generator) for source in self.sources]
        mine = torch.arange(self.batch).tensor_split(self.world_size)[self.rank]
        frames = torch.empty(2, len(mine), 3, self.size, self.size, device=self.device)
        labels: dict[str, Tensor] = {}
        for index, source in enumerate(self.sources):
            # Slots go round the sources, so that every batch holds equal shares.
            slots = (mine % len(self.sources) == index).nonzero().flatten()
            if not len(slots):  # this process has fewer than there are sources
                continue
            chosen = samples[index], mine[slots] // len(self.sources), self.device
            frames[:, slots] = torch.stack(source.load(*chosen))
            if self.labels:
                known = source.labels(self.labels, *chosen) or self.found(frames[:, slots])
                for name in self.labels:
                    value = known[name]
                    labels.setdefault(name, value.new_empty(len(mine), *value.shape[1:]))[slots] = value
            if self.truth:
                for name, value in self.known(source, *chosen).items():
                    labels.setdefault(name, value.new_empty(len(mine), *value.shape[1:]))[slots] = value
        random = dict(control=transform.control, weights=transform.weights, affine=transform.affine)
        if self.droppable:
            random["chances"] = torch.rand(self.batch, self.droppable, generator=generator)
        if self.truth:  # drawn last, so that all else stays as it is without
            random["lots"] = torch.rand(self.batch, 2, generator=generator)
            random["holes"] = torch.rand(self.batch, HOLES, 6, generator=generator)
        item = dict(source=frames[0], driving=frames[1]) | labels
        return item | {name: value[mine].to(self.device) for name, value in random.items()}

    def known(self, source: PairSource, samples: Any, slots: Tensor, device: torch.device) -> dict[str, Tensor]:
        """The truth of the pairs drawn for ``slots``, or stand-ins if their source has none; see the class."""
        count = len(slots)
        truth = source.truth(samples, slots, device)
        if truth:
            return truth | dict(known=torch.ones(count, device=device))
        still = torch.zeros(count, 2, self.size, self.size, device=device)
        landmarks, known = still.new_zeros(count, LANDMARKS, 2), still.new_zeros(count)
        return dict(true_flow=still, visible=torch.ones_like(still[:, :1]), true_landmarks=landmarks, known=known)

    @torch.no_grad()
    def found(self, frames: Float[Tensor, "2 b 3 h w"]) -> dict[str, Tensor]:
        """Labels for films: the landmarks that the detector finds, and one part for all pixels. Raises `MinimodelError`
        without a detector."""
        if self.detector is None:
            raise MinimodelError(f"pairs without {', '.join(self.labels)}: a detector is needed to find landmarks")
        source, driving = self.detector.find(frames.flatten(0, 1)).unflatten(0, (2, -1))
        return labels_of_films(source, driving, self.size)
