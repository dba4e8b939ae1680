"""A drawing of the whole system, as SVG: networks, the tensors between them, and the losses that train them.

Notebooks: all open with it; ``tools/draw_maps.py`` writes the files.
"""

import re
from dataclasses import dataclass
from html import escape
from typing import Literal

from minimodel.errors import check_choice

Number = int | float
WIDTH, HEIGHT = 1200, 536
FONT = "Helvetica, Arial, sans-serif"
# Border and filling of a part that is lit.
COLOURS = {
    "points": ("#b45309", "#fef3c7"),
    "flow": ("#1d4ed8", "#dbeafe"),
    "picture": ("#15803d", "#dcfce7"),
    "loss": ("#b91c1c", "#fee2e2"),
}
# A dot of this colour in a part says that the loss trains it.
LOSSES = {
    "picture": ("#b91c1c", "perceptual: D̂ against D"),
    "equivariance": ("#7c3aed", "equivariance of points"),
    "labels": ("#0f766e", "landmark labels of faces"),
    "truth": ("#111827", "truth of rendered faces (ours)"),
}
PALE, PALE_TEXT, DARK = "#d4d4d4", "#a3a3a3", "#1f2937"


@dataclass(frozen=True)
class Part:
    """A box of the map. ``learned``: whether it has weights; ``losses``: which losses train them."""

    x: Number
    y: Number
    width: Number
    colour: str
    says: str
    notebooks: str
    losses: tuple[str, ...] = ()
    learned: bool = True
    height: Number = 70


@dataclass(frozen=True)
class Arrow:
    """A line through ``corners`` that ends in an arrow. ``ends``: the parts at its ends; it is lit with either."""

    ends: tuple[str, ...]
    corners: tuple[tuple[Number, Number], ...]
    labels: tuple[tuple[Number, Number, Literal["start", "middle", "end"], str], ...] = ()
    dashed: bool = False


PARTS = {
    "points": Part(140, 180, 120, "points", "finds p_k and A_k", "3, A3", ("picture", "equivariance", "truth")),
    "landmarks": Part(140, 335, 120, "points", "or 74 named l_j", "4", ("labels",)),
    "background": Part(296, 93, 112, "flow", "the wall's A_{bg}", "A2", ("picture",)),
    "transfer": Part(300, 255, 105, "points", "D's motion to S", "10", learned=False),
    "coarse flow": Part(480, 180, 125, "flow", "F_0 of T_k and M_k", "1, 2, 5", ("picture", "truth")),
    "structure": Part(480, 335, 125, "flow", "all pairs z, y", "6", ("picture", "truth")),
    "update": Part(715, 180, 120, "flow", "F_i to F_{i+1}, 3x", "7", ("picture", "truth")),
    "lookup": Part(715, 335, 120, "flow", "C around z + F_i", "7", learned=False),
    "encoder": Part(715, 24, 120, "picture", "features of S", "8", ("picture", "truth")),
    "gates": Part(955, 180, 110, "picture", "g = sigmoid(O)", "8", learned=False),
    "decoder": Part(955, 24, 110, "picture", "warps, paints", "8", ("picture", "truth")),
    "losses": Part(955, 335, 110, "loss", "how unlike D", "9a, 11", learned=False),
}
ARROWS = (
    Arrow(("encoder",), ((94, 50), (715, 50)), ((104, 43, "start", "S (B,3,64,64)"),)),
    Arrow(("points",), ((94, 92), (115, 92), (115, 203), (140, 203))),
    Arrow(("points",), ((94, 352), (115, 352), (115, 228), (140, 228))),
    Arrow(("landmarks",), ((94, 380), (140, 380))),
    Arrow(
        ("points", "coarse flow"),
        ((260, 200), (480, 200)),
        ((268, 193, "start", "p^S (B,K,2), A^S (B,K,2,2)"),),
    ),
    Arrow(("points", "transfer"), ((230, 250), (230, 288), (300, 288)), ((224, 282, "end", "p^D, A^D"),)),
    Arrow(
        ("landmarks", "transfer"),
        ((260, 370), (352, 370), (352, 325)),
        ((268, 388, "start", "l_j (B,74,2)"),),
        dashed=True,
    ),
    Arrow(("background",), ((270, 128), (296, 128)), ((265, 132, "end", "S, D"),)),
    Arrow(
        ("background", "coarse flow"),
        ((408, 128), (505, 128), (505, 180)),
        ((414, 121, "start", "A_{bg} (B,2,3)"),),
    ),
    Arrow(("transfer", "coarse flow"), ((405, 276), (440, 276), (440, 228), (480, 228))),
    Arrow(
        ("transfer", "structure"),
        ((405, 304), (440, 304), (440, 358), (480, 358)),
        ((448, 318, "start", "p^D (B,K,2)"),),
    ),
    Arrow(("coarse flow",), ((545, 50), (545, 180)), ((552, 110, "start", "S (B,3,16,16)"),)),
    Arrow(("structure",), ((455, 388), (480, 388)), ((450, 392, "end", "S, p^S"),)),
    Arrow(
        ("coarse flow", "update"),
        ((605, 215), (715, 215)),
        ((660, 207, "middle", "F_0 (B,2,16,16)"), (660, 233, "middle", "O_0 (B,1,16,16)")),
    ),
    Arrow(
        ("structure", "lookup"),
        ((605, 370), (715, 370)),
        ((660, 363, "middle", "C"), (660, 388, "middle", "(B,16,16,16,16)")),
    ),
    Arrow(("lookup", "update"), ((755, 335), (755, 250)), ((748, 298, "end", "(B,98,h,w)"),)),
    Arrow(("update", "lookup"), ((800, 250), (800, 335)), ((807, 298, "start", "F_i (B,2,h,w)"),)),
    Arrow(("encoder", "update"), ((775, 94), (775, 180)), ((782, 142, "start", "features, warped"),)),
    Arrow(
        ("update", "gates"),
        ((835, 215), (955, 215)),
        ((895, 207, "middle", "F (B,2,h,w)"), (895, 233, "middle", "O (B,1,h,w)")),
    ),
    Arrow(("gates", "decoder"), ((1010, 180), (1010, 94)), ((1017, 142, "start", "g (B,1,h,w), F"),)),
    Arrow(
        ("encoder", "decoder"),
        ((835, 58), (955, 58)),
        ((895, 51, "middle", "(B,128,8,8)"), (895, 76, "middle", "… (B,32,64,64)")),
    ),
    Arrow(("decoder",), ((1065, 58), (1106, 58))),
    Arrow(("losses",), ((1148, 144), (1148, 370), (1065, 370))),
    Arrow(("losses",), ((52, 447), (52, 458), (1010, 458), (1010, 405)), ((104, 451, "start", "D (B,3,64,64)"),)),
)


def system_map(*lit: str) -> str:
    """Draw the whole system as SVG, with the parts ``lit`` in colour and the others pale; without any, all are lit.

    Shapes are those of the weights `tiny`: pictures of 64 pixels, a coarse flow of 16 x 16, h = w = 8, 16, 32,
    64 in refinement and generator; K = 20 points. An unknown part raises a `MinimodelError`.

    >>> system_map("points", "coarse flow").splitlines()[1]
    '<title>The system; lit: points, coarse flow</title>'
    """
    for name in lit:
        check_choice("part of the map", name, PARTS)
    names = lit or tuple(PARTS)
    # Pale arrows first: a lit one is drawn over them.
    arrows = sorted(ARROWS, key=lambda arrow: bool(set(arrow.ends) & set(names)))
    pieces = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
        f' height="{HEIGHT}" style="max-width:100%;height:auto" font-family="{FONT}">',
        f"<title>The system; lit: {escape(', '.join(names))}</title>",
        f'<rect x="0" y="0" width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        *(_arrow(arrow, bool(set(arrow.ends) & set(names))) for arrow in arrows),
        *(_part(name, part, name in names) for name, part in PARTS.items()),
        _face(10, 24, "source S", skin="#f2c9a1", hair="#5b3a1e", width=30, turn=0, open_mouth=False),
        _face(10, 342, "driving D", skin="#c68a5e", hair="#1c1c1c", width=25, turn=9, open_mouth=True),
        _face(1106, 24, "rendered D̂", skin="#f2c9a1", hair="#5b3a1e", width=30, turn=9, open_mouth=True),
        _text(1148, 138, "(B,3,64,64)", DARK),
        _legend(),
        "</svg>",
    ]
    return "\n".join(pieces)


def _text(x: Number, y: Number, words: str, colour: str, *, size: int = 13, anchor: str = "middle", bold=False) -> str:
    """A line of text. ``_`` and ``^`` lower and raise the next character, or what follows in braces."""
    spans = []
    back = 0
    for mark, inner in re.findall(r"([_^]?)(\{[^}]*\}|[^_^])", words):
        shift = {"_": 4, "^": -5}.get(mark, 0)
        small = f' font-size="{size - 3}"' if mark else ""
        spans.append((shift - back, small, inner.strip("{}") if mark else inner))
        back = shift
    # Neighbours of one kind become one span.
    joined: list[tuple[int, str, str]] = []
    for step, small, inner in spans:
        if joined and not step and joined[-1][1] == small:
            joined[-1] = (*joined[-1][:2], joined[-1][2] + inner)
        else:
            joined.append((step, small, inner))
    body = "".join(
        f'<tspan dy="{step}"{small}>{escape(inner)}</tspan>' if step or small else escape(inner)
        for step, small, inner in joined
    )
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{weight}>{body}</text>'


def _part(name: str, part: Part, lit: bool) -> str:
    border, filling = COLOURS[part.colour] if lit else (PALE, "#fafafa")
    colour = DARK if lit else PALE_TEXT
    dash = "" if part.learned else ' stroke-dasharray="5 3"'
    pieces = [
        f'<rect x="{part.x:g}" y="{part.y:g}" width="{part.width:g}" height="{part.height:g}"'
        f' rx="{10 if part.learned else 0}" fill="{filling}" stroke="{border}" stroke-width="{3 if lit else 1.5}"'
        f"{dash}/>",
        _text(part.x + 9, part.y + 22, name, colour, size=15, anchor="start", bold=True),
        _text(part.x + 9, part.y + 40, part.says, colour, size=12, anchor="start"),
        _text(part.x + 9, part.y + 59, f"notebook {part.notebooks}", colour, size=11, anchor="start"),
    ]
    for index, loss in enumerate(part.losses):
        x = part.x + part.width - 14 - 14 * (len(part.losses) - 1 - index)
        pieces.append(_dot(x, part.y, LOSSES[loss][0] if lit else PALE))
    return "".join(pieces)


def _dot(x: Number, y: Number, colour: str) -> str:
    return f'<ellipse cx="{x:g}" cy="{y:g}" rx="5" ry="5" fill="{colour}" stroke="#ffffff" stroke-width="1.5"/>'


def _arrow(arrow: Arrow, lit: bool) -> str:
    colour = DARK if lit else PALE
    (x0, y0), (x, y) = arrow.corners[-2:]
    across, down = (x > x0) - (x < x0), (y > y0) - (y < y0)  # lines run along the axes
    tip = [(x, y), (x - 9 * across + 4 * down, y - 9 * down + 4 * across)]
    tip.append((x - 9 * across - 4 * down, y - 9 * down - 4 * across))
    line = [*arrow.corners[:-1], (x - 8 * across, y - 8 * down)]
    dash = ' stroke-dasharray="5 3"' if arrow.dashed else ""
    pieces = [
        f'<polyline points="{_corners(line)}" fill="none" stroke="{colour}" stroke-width="{2 if lit else 1.5}"{dash}/>',
        f'<polygon points="{_corners(tip)}" fill="{colour}"/>',
        *(_text(x, y, words, DARK if lit else PALE_TEXT, anchor=anchor) for x, y, anchor, words in arrow.labels),
    ]
    return "".join(pieces)


def _corners(corners: list[tuple[Number, Number]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in corners)


def _face(x: Number, y: Number, name: str, *, skin: str, hair: str, width: int, turn: int, open_mouth: bool) -> str:
    """A face of 84 x 84: ``width`` is half the head's, ``turn`` shifts what is in front."""

    def ellipse(cx: Number, cy: Number, rx: Number, ry: Number, colour: str) -> str:
        return f'<ellipse cx="{x + cx:g}" cy="{y + cy:g}" rx="{rx:g}" ry="{ry:g}" fill="{colour}"/>'

    middle = 42 + turn / 3
    pieces = [
        f'<rect x="{x}" y="{y}" width="84" height="84" fill="#e7edf3" stroke="#6b7280"/>',
        ellipse(middle, 38, width + 4, 34, hair),
        ellipse(middle + turn / 4, 46, width, 32, skin),
        *(ellipse(42 + turn + side * width * 0.42, 42, 4.5, 3, "#ffffff") for side in (-1, 1)),
        *(ellipse(42 + 1.2 * turn + side * width * 0.42, 42, 2.2, 2.6, "#1c1c1c") for side in (-1, 1)),
        ellipse(42 + 1.25 * turn, 54, 3, 3.5, "#00000022"),
        ellipse(42 + turn, 66, 9, 5 if open_mouth else 1.6, "#8c2f39"),
        _text(x + 42, y + 98, name, DARK, size=13, bold=True),
    ]
    return "".join(pieces)


def _legend() -> str:
    top, bottom = 492, 520
    pieces = [
        f'<rect x="12" y="{top - 14}" width="28" height="18" rx="6" fill="#ffffff" stroke="{DARK}" stroke-width="2"/>',
        _text(48, top, "a network", DARK, anchor="start"),
        f'<rect x="132" y="{top - 14}" width="28" height="18" fill="#ffffff" stroke="{DARK}" stroke-width="2"'
        ' stroke-dasharray="5 3"/>',
        _text(168, top, "arithmetic without weights", DARK, anchor="start"),
        _text(400, top, "Sizes are those of tiny: K = 20 points; h = w = 8, 16, 32, 64.", DARK, anchor="start"),
        _text(12, bottom, "A dot is a loss that trains the network:", DARK, anchor="start"),
    ]
    for x, (colour, words) in zip((310, 510, 705, 930), LOSSES.values()):
        pieces += [_dot(x, bottom - 4, colour), _text(x + 10, bottom, words, DARK, anchor="start")]
    return "".join(pieces)
