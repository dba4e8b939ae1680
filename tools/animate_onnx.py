"""Animate a photo with an exported model: onnxruntime and numpy compute, imageio reads and writes the files.

    minimodel export --weights portrait --format onnx --output exported
    python tools/animate_onnx.py exported photo.png film.mp4 out.mp4

The middle squares of photo and film are taken. The photo moves as far as the film has moved since its first frame.
"""

import json
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import onnxruntime

folder, photo, film, output = map(Path, sys.argv[1:])
about = json.loads((folder / "model.json").read_text())
sessions = {
    name: onnxruntime.InferenceSession(folder / about[name]["file"]) for name in ("source", "motion", "renderer")
}


def run(name, **tensors):
    """Run a graph: arrays by name in, arrays by name out."""
    outputs, wanted = list(about[name]["outputs"]), about[name]["inputs"]
    return dict(zip(outputs, sessions[name].run(outputs, {key: tensors[key] for key in wanted}), strict=True))


def prepare(picture):
    """The middle square of a picture (h, w, 3) of bytes, averaged to the model's size: (1, 3, size, size) in [0, 1]."""
    side, size = min(picture.shape[:2]), about["size"]
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    square = picture[top : top + side, left : left + side, :3] / 255
    edges = np.arange(size) * side // size
    counts = np.maximum(np.diff(edges, append=side), 1)
    square = np.add.reduceat(np.add.reduceat(square, edges, 0), edges, 1) / (counts[:, None] * counts)[..., None]
    return square.transpose(2, 0, 1)[None].astype(np.float32)


source = prepare(iio.imread(photo))
state, first = run("source", image=source), None
with iio.imopen(output, "w", plugin="pyav") as writer:
    writer.init_video_stream("libx264", fps=iio.immeta(film, plugin="pyav")["fps"])
    writer.container_metadata["comment"] = "Synthetic media: this person did not move like this."
    for frame in iio.imiter(film, plugin="pyav"):
        motion = run("motion", image=prepare(frame))
        first = first or motion
        moved = dict(points=state["source_points"] + motion["points"] - first["points"])
        if "affine" in motion:
            moved["affine"] = motion["affine"] @ np.linalg.inv(first["affine"]) @ state["source_affine"]
        picture = run("renderer", source=source, **state, **moved)["image"][0].transpose(1, 2, 0)
        writer.write_frame((picture.clip(0, 1) * 255).round().astype(np.uint8))
