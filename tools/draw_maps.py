"""The maps at the top of the notebooks, and of README, as files: ``python tools/draw_maps.py``.

A file, unlike the output of a cell, is shown also in a notebook that was neither run nor trusted.
"""

import sys
from pathlib import Path

from minimodel.system_map import system_map

FOLDER = Path(__file__).parents[1] / "notebooks" / "maps"
# What each notebook lights. Without a part the whole map is in colour.
LIT = {
    "00": (),
    "01": ("coarse flow",),
    "02": ("coarse flow",),
    "03": ("points",),
    "04": ("landmarks",),
    "05": ("landmarks", "coarse flow"),
    "06": ("structure",),
    "07": ("lookup", "update"),
    "08": ("encoder", "gates", "decoder"),
    "09a": ("losses",),
    "09b": ("losses",),
    "10": ("transfer",),
    "11": ("points", "coarse flow", "structure", "lookup", "update", "encoder", "gates", "decoder", "losses"),
    "A1": ("points", "coarse flow", "lookup", "update", "encoder", "decoder"),
    "A2": ("background", "points"),
    "A3": ("points",),
    "A4": ("landmarks", "coarse flow", "decoder", "transfer"),
}


def draw(folder: Path) -> None:
    """Write the map of each notebook into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, parts in LIT.items():
        (folder / f"{name}.svg").write_text(system_map(*parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
