"""``minimodel import-checkpoint``: a published checkpoint becomes a weight file of ours."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from minimodel.errors import MinimodelError
from minimodel.published.model import PublishedModel
from minimodel.published.storing import import_checkpoint


@dataclass
class ImportCheckpointConfig:
    """Read a checkpoint of FOMM, TPSM, MRFA or MTIA, check each of its entries, and write it as a weight file that
    `animate --weights` and `evaluate --weights` take."""

    file: tyro.conf.Positional[Path]
    """The checkpoint as its authors' code saved it (.pth.tar, .pth). Nothing in it is executed."""
    output: Path = Path("published.safetensors")
    """Weight file to write."""
    model: Literal["fomm", "tpsm", "mrfa", "mtia"] | None = None
    """The model that the file has to hold; recognised from the names of its entries unless given."""
    align_corners: bool = False
    """Of fomm and mtia: sample as PyTorch did by default before 1.3 (FOMM's files are older). Recent versions of both
    codes sample without."""


def import_published(config: ImportCheckpointConfig) -> PublishedModel:
    """Write a published checkpoint as a weight file, print a summary of it, and return the model. Raises
    `MinimodelError` for a file that can't be read or isn't of a known layout."""
    if config.output.resolve() == config.file.resolve():
        raise MinimodelError(f"{config.output}: is the checkpoint itself; --output names another file")
    model = import_checkpoint(config.file, config.output, model=config.model, align_corners=config.align_corners)
    count = sum(parameter.numel() for parameter in model.parameters())
    extras = [("with refinement", model.refiner), ("with its avd network", model.avd)]
    parts = [f"{count / 1e6:.1f} M parameters", *(name for name, part in extras if part is not None)]
    print(f"{model.card['model']}: {', '.join(parts)}")
    print(f"wrote {config.output}")
    return model
