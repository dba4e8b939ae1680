"""Pictures of faces: `render`."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minimodel.data.faces.painting import shade
from minimodel.data.faces.scene import TABLE, prepare
from minimodel.data.faces.states import Faces
from minimodel.data.faces.tracing import trace
from minimodel.errors import MinimodelError
from minimodel.warping import identity_grid


def check(faces: Faces, size: int | None) -> None:
    """Raise a MinimodelError where there is no face, or the picture is too small to show one."""
    if size is not None and (not isinstance(size, int) or size < 8):
        raise MinimodelError(f"size is {size!r}; expected a whole number of at least 8 pixels")
    if len(faces) == 0:
        raise MinimodelError("the batch of faces is empty; expected at least one face")


def rays_of(size: int, faces: Faces) -> Tensor:
    """The centres (b, 2, size²) of all pixels, normalised: one ray each."""
    return identity_grid(size, size, device=faces.device).flatten(1).expand(len(faces), -1, -1)


def chunked(function: Callable[..., Any], rays: int, *batches: Faces) -> Any:
    """Apply ``function``, which casts ``rays`` rays a face, to a few faces at a time: caches stay warm, memory small.

    Faces with long hair or glasses go together, so that the others need not wait for them.
    """
    step = max(1, (2**18 if batches[0].device.type == "cpu" else 2**22) // max(rays, TABLE * TABLE))
    order = (2 * batches[0].identity.long + batches[0].identity.glasses).argsort(stable=True)
    with torch.autocast(batches[0].device.type, enabled=False):  # these are all positions
        parts = [function(*(batch[some] for batch in batches)) for some in order.split(step)]
    back = order.argsort()
    return tuple(torch.cat(x)[back] for x in zip(*parts)) if isinstance(parts[0], tuple) else torch.cat(parts)[back]


@torch.no_grad()
def render(faces: Faces, size: int, *, supersample: int = 2) -> Float[Tensor, "b 3 {size} {size}"]:
    """Draw the faces: RGB in [0, 1]; a pixel is the average of ``supersample``² rays.

    Raises:
        MinimodelError: ``size`` is below 8, ``supersample`` below 1, or there is no face.
    """
    check(faces, size)
    if supersample < 1:
        raise MinimodelError(f"supersample is {supersample}; expected 1, 2, ...")

    def draw(faces: Faces) -> Tensor:
        scene = prepare(faces)
        image = shade(scene, trace(scene, rays_of(size * supersample, faces)))
        return F.avg_pool2d(image.unflatten(2, (size * supersample, -1)), supersample)

    return chunked(draw, (size * supersample) ** 2, faces)
