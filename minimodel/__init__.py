"""minimodel: unsupervised face animation, built from its papers and checked against exact ground truth.

>>> import minimodel
>>> model = minimodel.AnimationModel.load("tiny")
>>> frames = list(model.animate(photo, film))
"""

from importlib.metadata import PackageNotFoundError, version

from minimodel.model import AnimationModel
from minimodel.motion import Motion
from minimodel.saving import available_weights
from minimodel.warping import warp

__all__ = ["AnimationModel", "Motion", "__version__", "available_weights", "warp"]

try:
    __version__ = version("minimodel")
except PackageNotFoundError:  # imported from a folder that was never installed
    __version__ = "0"
