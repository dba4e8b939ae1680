"""Every test run checks the shapes in the package's signatures: jaxtyping's import hook, with beartype.

Tests run on the CPU, also where there is a GPU. With MINIMODEL_DEVICE=cuda commands take the GPU, and `test_gpu.py`
compares the GPU with the CPU.
"""

import os

import pytest
from jaxtyping import install_import_hook

install_import_hook("minimodel", "beartype.beartype")
DEVICE = os.environ.get("MINIMODEL_DEVICE", "cpu")
if DEVICE == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks; also for the processes that tests start


def pytest_sessionstart(session):
    import torch

    if DEVICE not in ("cpu", "cuda"):
        pytest.exit(f"MINIMODEL_DEVICE is {DEVICE!r}: expected cpu or cuda", returncode=4)
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.exit("MINIMODEL_DEVICE is cuda, and torch finds no CUDA device", returncode=4)


@pytest.fixture(scope="session")
def device():
    """The device that is compared with the CPU."""
    import torch

    return torch.device(DEVICE)
