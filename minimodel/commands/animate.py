"""``minimodel animate``: a photo and a film -> the photo, moving like the film.

Notebook: ``notebooks/00_start_here.ipynb``.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from minimodel import composition, transfer
from minimodel.data.framing import (
    LOOKS,
    Box,
    crop,
    draw_crops,
    frame_film,
    frame_photo,
    look_into,
    middle_square,
    usual_box,
)
from minimodel.data.tracking import FaceTracker, cut, frame_landmarks, look
from minimodel.data.video import Clip, read_image, read_landmarks
from minimodel.data.writer import VideoWriter, check_size
from minimodel.errors import MinimodelError
from minimodel.keypoints import gaussian_heatmaps
from minimodel.landmarks import SIZE, LandmarkDetector
from minimodel.model import AnimationModel
from minimodel.motion import Motion
from minimodel.runtime import Device, Precision, on_device, pick_precision
from minimodel.saving import whole_file
from minimodel.warping import size_of

SYNTHETIC = "Synthetic media: this person did not move like this. Animated from one photo by minimodel."
SMALLEST_SIDE = 256  # of the film: players show smaller ones badly, so they are enlarged
LARGEST_SIDE = 2560  # of a film of the whole photo: what players decode of 12 megapixels and more stutters or fails
PICTURES = (".png", ".jpg", ".jpeg")


@dataclass
class AnimateConfig:
    """Animate a photo with the motion of a video."""

    source: Path
    """Photo of a face."""
    driving: Path
    """Film of a face, of any kind, or a folder of .png, .jpg or .webp frames. For weights that move by landmarks also
    the .npz that `minimodel find-landmarks` makes of a film."""
    output: Path = Path("animation.mp4")
    """Film to write, .mp4, .mov, .mkv or .webm (with the film's sound), or .gif."""
    weights: str = "portrait"
    """Name of shipped weights, or a .safetensors file."""
    crop: Literal["auto", "none"] = "auto"
    """auto finds the face in photo and film, and cuts both to it as in training; the square follows a face that moves
    through the film. none takes the largest square in the middle of each."""
    source_box: tuple[int, int, int] | None = None
    """Left, top and side in pixels of a square of the photo, in place of --crop."""
    driving_box: tuple[int, int, int] | None = None
    """The same for the film."""
    show_crops: Path | None = None
    """Picture to write, .png or .jpg, that shows the squares of the photo and of some frames."""
    mode: transfer.Mode = "relative"
    """relative moves the face as far as the driving face has moved since a starting frame; where no frame shows the
    photo's pose the mode is standard, and that is said. standard moves the face to where the driving face is. avd puts
    the driving pose onto the photo's shape, with a network of its own beside the weights."""
    start_frame: int | None = None
    """Of mode relative, from 0: a frame that shows the photo's pose; the most similar one unless given."""
    size: int | None = None
    """Side of the moved square in pixels; as in the photo, up to 1024, unless given. Motion is always computed at the
    size of the weights, and the photo is moved by it at this size."""
    paste: bool = False
    """Put the moved square back into the whole photo."""
    side_by_side: bool = False
    """Show photo, driving video and result beside each other."""
    precision: Literal["auto", Precision] = "auto"
    """Of rendering: auto is bfloat16 where the processor multiplies it, which takes less time and changes no pixel
    visibly, else float32, as for published weights."""
    device: Device = "auto"
    """What computes; the best there is unless given."""


def animate(config: AnimateConfig, *, batch: int = 8) -> Path:
    """Animate a photo with the motion of a film, write the result and return its path.

    Raises `MinimodelError` for options that contradict each other, for a photo or film without a face, and for files
    that can't be read or written.

    >>> animate(AnimateConfig(Path("photo.png"), Path("driving.mp4"), paste=True))
    """
    _check(config)
    model = AnimationModel.load(config.weights, device=config.device)
    device = next(model.parameters()).device
    exact = config.precision == "auto" and model.config is None  # published weights: as their authors' code renders
    model.precision = "float32" if exact else pick_precision(config.precision, device)
    detector = on_device(LandmarkDetector.load(), device)
    network = transfer.AvdNetwork.load(config.weights, model) if config.mode == "avd" else None
    photo = Photo(config, detector, smallest=model.image_size)
    film = Driving(config, detector)
    metadata = {"comment": SYNTHETIC, "synthetic_media": "true"}
    with VideoWriter(config.output, **film.timing, metadata=metadata) as writer, torch.inference_mode():
        # Landmarks are found in larger pictures than the model may see: lids and pupils are small.
        labelled = bool(model.prior.labels)
        landmarks = detector(photo.at(SIZE))[0].to(device) if labelled else None
        source = model.encode_source(photo.at(model.image_size).to(device), landmarks=landmarks)
        if film.landmarks is not None:
            motion = model.encode_driving(landmarks=film.landmarks.to(device))
        else:
            frames = film.frames(model.image_size, draw=config.show_crops is not None)
            frames = tqdm(frames, total=film.count, unit=" frames", desc="reading the film")
            found = film.landmarks_in_squares() if labelled else None
            motion = model.encode_film(frames, landmarks=found, batch=batch)
        if film.tracker is not None and (note := film.tracker.note()):
            print(f"{config.driving}: {note}")
        if config.show_crops is not None:
            columns = torch.cat([draw_crops([photo.image], [photo.box]), *film.columns], -1)
            with whole_file(config.show_crops) as unfinished:
                iio.imwrite(unfinished, (columns * 255).round().byte().permute(1, 2, 0).numpy())
            print(f"wrote {config.show_crops}")
        mode, start = choose_mode(config, (source.motion, motion), (photo.landmarks, film.found_landmarks()))
        motion = transfer.transfer(mode, source.motion, motion, start_frame=start, network=network)
        square = photo.at(photo.size)
        still = photo.image if config.paste else square[0]
        drives: Iterable = film.frames(still.shape[-2]) if config.side_by_side else [None] * len(motion)
        rendered = model.render_film(source, motion, photo=square.to(device), batch=batch)
        for driving, frame in zip(drives, tqdm(rendered, total=len(motion), unit=" frames", desc="animating")):
            made = frame.cpu()
            if config.paste:
                made = composition.paste(made, photo.image, photo.box)
            writer.write(enlarged(made if driving is None else torch.cat([still, driving, made], -1)))
    print(f"wrote {config.output}")
    return config.output


def _check(config: AnimateConfig) -> None:
    """Refuse what can be refused before anything is read."""
    if config.start_frame is not None and config.mode != "relative":
        raise MinimodelError(f"--start-frame is for mode relative; the mode is {config.mode}")
    if config.size is not None:
        check_size(config.size)
    read = (config.source.resolve(), config.driving.resolve())
    if config.output.resolve() in read:
        raise MinimodelError(f"{config.output}: is what the film is to be made from; --output names another file")
    if config.show_crops is not None:
        if config.show_crops.suffix.lower() not in PICTURES:
            raise MinimodelError(f"{config.show_crops}: the name of the picture must end in {', '.join(PICTURES)}")
        if config.show_crops.resolve() in read:
            raise MinimodelError(f"{config.show_crops}: is what the film is to be made from")


class Photo:
    """The photo: its ``image``, the ``box`` of its square in pixels, and ``size``, the side of the moved square; and
    the ``landmarks`` of its face in pixels, if a face was looked for.

    For a result of the whole photo the photo itself is reduced until its square has that side, at most.
    """

    def __init__(self, config: AnimateConfig, detector: nn.Module, *, smallest: int):
        self.image = read_image(config.source)
        with named(config.source):
            framing = frame_photo(self.image, detector, crop=config.source_box or config.crop)
        if note := framing.note():
            print(f"{config.source}: {note}")
        self.box = framing.box
        self.landmarks: Float[Tensor, "1 74 2"] | None = None
        if framing.face is not None:
            self.landmarks = look(detector, [self.image], usual_box(framing.face))[0].points[None]
        side = config.size or composition.LARGEST
        if config.paste:
            self._reduce(min(side / self.box[2], LARGEST_SIDE / max(self.image.shape[-2:])))
        # What has fewer pixels than the model paints is enlarged. H.264 needs even sides.
        self.size = config.size or min(max(self.box[2], smallest), side)
        self.size -= self.size % 2

    def _reduce(self, scale: float) -> None:
        if scale < 1:
            size = [max(1, round(side * scale)) for side in self.image.shape[-2:]]
            reduced = F.interpolate(self.image[None], size, mode="bilinear", antialias=True, align_corners=False)
            left, top, side = (round(number * scale) for number in self.box)
            self.image, self.box = reduced[0].clamp(0, 1), (left, top, max(1, side))
        height, width = self.image.shape[-2:]
        self.image = self.image[:, : height - height % 2, : width - width % 2]

    def at(self, size: int) -> Float[Tensor, "1 3 {size} {size}"]:
        """The square at ``size`` pixels."""
        return crop(self.image, self.box, size)[None]


class Driving:
    """The driving film, or its landmarks from an .npz. ``timing`` holds the arguments of `VideoWriter` that give the
    result the film's rate and sound; ``columns``, once the frames have been read, pictures of some with their squares.
    """

    def __init__(self, config: AnimateConfig, detector: nn.Module):
        self.path, self.detector = config.driving, detector
        self.columns: list[Tensor] = []
        self.landmarks: Float[Tensor, "t 74 2"] | None = None
        self.clip: Clip | None = None
        self.tracker: FaceTracker | None = None
        if self.path.suffix == ".npz":
            if config.driving_box is not None:
                raise MinimodelError(f"--driving-box is for films; {self.path} holds landmarks")
            self.landmarks, fps = read_landmarks(self.path)
            if config.crop == "auto":
                self.landmarks = frame_landmarks(self.landmarks)
            self.timing: dict = dict(fps=fps)
            self.count = len(self.landmarks)
            return
        self.clip = Clip(self.path)
        self.timing = dict(like=self.clip)
        self.count = len(self.clip)
        if config.driving_box is not None or config.crop == "auto":
            looks = look_into(self.clip)
            with named(self.path):
                framing = frame_film(looks, detector, crop=config.driving_box or "auto")
            if note := framing.note():
                print(f"{self.path}: {note}")
            self.tracker = FaceTracker(framing, detector)

    def frames(self, size: int, *, draw: bool = False) -> Iterator[Float[Tensor, "3 h w"]]:
        """The cut frames of the film, or pictures of the landmarks, in [0, 1]. They are read anew at each call; the
        face is followed in the first. With ``draw`` the ``columns`` are drawn."""
        if self.landmarks is not None:
            yield from (draw_landmarks(points, size) for points in self.landmarks)
            return
        with named(self.path):
            yield from cut(self._draw(self._squares()) if draw else self._squares(), size)

    def landmarks_in_squares(self) -> Iterator[Float[Tensor, "74 2"]]:
        """Yield the landmarks of the frames that `frames` has yielded so far, normalised to their squares."""
        if self.tracker is not None and self.tracker.camera is not None:
            yield from self.tracker.landmarks_in_squares()
            return
        for frame in self.frames(SIZE):
            yield self.detector(frame[None])[0][0]

    def found_landmarks(self) -> Float[Tensor, "t 74 2"] | None:
        """The landmarks of all frames, once they have been read; None if no face was looked for."""
        return self.landmarks if self.tracker is None else self.tracker.landmarks()

    def _squares(self) -> Iterator[tuple[Tensor, Box | None]]:
        assert self.clip is not None, "landmarks have no squares"
        frames = (frame for _, frame in self.clip.decode())
        if self.tracker is None:
            return ((frame, middle_square(*size_of(frame))) for frame in frames)
        if self.tracker.boxes:
            return zip(frames, self.tracker.boxes, strict=True)
        return self.tracker.track(frames)

    def _draw(self, squares: Iterator[tuple[Tensor, Box | None]]) -> Iterator[tuple[Tensor, Box | None]]:
        wanted = {int(number) for number in np.linspace(0, self.count - 1, LOOKS)}
        for number, (frame, box) in enumerate(squares):
            if number in wanted and box is not None:
                self.columns.append(draw_crops([frame], [box]))
            yield frame, box


def choose_mode(
    config: AnimateConfig, motions: tuple[Motion, Motion], landmarks: tuple[Tensor | None, Tensor | None]
) -> tuple[transfer.Mode, int | None]:
    """Choose the mode of transfer and its starting frame, and print a line about them.

    ``motions`` and ``landmarks`` are those of photo and film. `relative` starts at the frame whose pose is most like
    the photo's by the landmarks, or by the points of the motions if there are none. By landmarks it is known whether
    the two show one pose; if not the mode is `standard`.
    """
    if config.mode != "relative":
        return config.mode, None
    start, (source, film) = config.start_frame, landmarks
    if start is None and (source is None or film is None):
        start = transfer.best_start(*motions)
    elif start is None:
        assert source is not None and film is not None, "for mypy"
        start = transfer.best_start(Motion(source), Motion(film))
        if not transfer.same_pose(Motion(source), Motion(film[start : start + 1])):
            print(
                f"no frame of the film shows the photo's pose, so the mode is standard; --start-frame {start} counts"
                " movement from the frame that is nearest"
            )
            return "standard", None
    print(f"movement is counted from frame {start}")
    return "relative", start


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Context in which a `MinimodelError` that doesn't name a file gets the name of this one."""
    try:
        yield
    except MinimodelError as error:
        if str(error).startswith(str(path)):
            raise
        raise MinimodelError(f"{path}: {error}") from error


def enlarged(frame: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 hi wi"]:
    """Enlarge a frame by a whole factor, to at least `SMALLEST_SIDE` pixels."""
    factor = -(-SMALLEST_SIDE // frame.shape[-2])
    if factor == 1:
        return frame
    return F.interpolate(frame[None], scale_factor=factor, mode="bicubic", align_corners=False)[0]


def draw_landmarks(points: Float[Tensor, "74 2"], size: int) -> Float[Tensor, "3 h w"]:
    """Draw normalised landmarks as white dots on black."""
    dots = gaussian_heatmaps(points[None], (size, size), variance=(1.4 / size) ** 2)
    return dots.amax(1).expand(3, -1, -1)
