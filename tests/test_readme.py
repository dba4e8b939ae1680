"""The Python blocks of README.md run as they stand."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
# A block, and how many lines stand above it.
BLOCKS = [(found[1], TEXT[: found.start(1)].count("\n")) for found in re.finditer(r"(?ms)^```python\n(.*?)^```$", TEXT)]


def test_there_are_blocks():
    assert BLOCKS


@pytest.mark.parametrize(("block", "line"), BLOCKS, ids=[f"line-{line + 1}" for _, line in BLOCKS])
def test_a_block_runs(block, line, tmp_path, monkeypatch):
    """In an empty folder. A block may take a reader's `photo` and `video` as given, and nothing else."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    photo, *video = torch.rand(4, 3, 256, 256, generator=generator)
    given = {"photo": photo, "video": torch.stack(video)}
    namespace = {"__name__": "readme"} | given
    exec(compile("\n" * line + block, str(README), "exec"), namespace)  # an error names the README's line
    made = {name: value for name, value in namespace.items() if isinstance(value, torch.Tensor) and name not in given}
    assert all(value.isfinite().all() for value in made.values())
    if "frames" in namespace:
        frames = torch.stack(namespace["frames"])
        assert frames.shape == given["video"].shape and frames.isfinite().all()
