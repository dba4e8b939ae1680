"""An imported checkpoint as one file: safetensors with a card that records its origin and its conventions."""

import hashlib
from pathlib import Path

from minimodel.errors import MinimodelError
from minimodel.published.checkpoint import convert, read_checkpoint
from minimodel.published.model import PublishedModel
from minimodel.published.sizes import ModelName
from minimodel.saving import whole_file

PAPERS = {
    "fomm": "FOMM (Siarohin et al. 2019, First Order Motion Model for Image Animation)",
    "tpsm": "TPSM (Zhao and Zhang 2022, Thin-Plate Spline Motion Model for Image Animation)",
    "mrfa": "MRFA (Tao et al. 2023, Learning Motion Refinement for Unsupervised Face Animation)",
    "mtia": "MTIA (Tao et al. 2022, Motion Transformer for Unsupervised Image Animation)",
}


def import_checkpoint(
    path: Path, output: Path, *, model: ModelName | None = None, align_corners: bool = False
) -> PublishedModel:
    """Write a published checkpoint as a file of ours, whole or not at all, and return its model.

    Raises:
        MinimodelError: the checkpoint can't be read or isn't one of the known layouts; ``output`` can't be written.
    """
    with whole_file(output) as unfinished:
        weights = read_checkpoint(path)
        try:
            imported = convert(weights, model=model, align_corners=align_corners)
        except MinimodelError as error:
            raise MinimodelError(f"{path}: {error}") from error
        imported.card = make_card(path, imported)
        imported.save(unfinished)
    return imported


def make_card(path: Path, model: PublishedModel) -> dict[str, str]:
    """The card of a file: model, source, checksum, conventions and licence."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    handling = model.handling
    return dict(
        model=PAPERS[model.sizes.model],
        source=path.name,
        source_sha256=digest,
        conventions=(
            "points and grids have the outer pixel centres at -1 and 1; outside a picture is black;"
            f" align_corners {handling.coarse} in the dense motion network, {handling.features} in the generator,"
            f" {handling.resizing} when grids are resized"
        ),
        licence="of the checkpoint's authors",
    )
