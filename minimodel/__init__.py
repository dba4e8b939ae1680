"""minimodel: unsupervised face animation, built from its papers and checked against exact ground truth.

>>> import minimodel
>>> model = minimodel.AnimationModel.load("tiny")
>>> frames = list(model.animate(photo, film))
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minimodel.model import AnimationModel
    from minimodel.motion import Motion
    from minimodel.saving import available_weights
    from minimodel.warping import warp

__all__ = ["AnimationModel", "Motion", "__version__", "available_weights", "warp"]

# Imported when they are first asked for: so the command line answers at once, and can be stopped while torch loads.
_MODULES = {"AnimationModel": "model", "Motion": "motion", "available_weights": "saving", "warp": "warping"}

try:
    __version__ = version("minimodel")
except PackageNotFoundError:  # imported from a folder that was never installed
    __version__ = "0"


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"minimodel.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
