"""The course as pages for a browser, as the committed notebooks show it: ``python tools/book.py``, or ``make book``.

Nothing is executed, and nothing is fetched when a page is opened: formulas are MathML, pictures are in the pages, but
for the maps, which lie beside them, and there are no scripts. A widget becomes the picture that it showed last.
"""

import base64
import re
import shutil
import sys
from html import escape
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).parents[1]
WIDGET_VIEW, WIDGET_STATE = (f"application/vnd.jupyter.widget-{part}+json" for part in ("view", "state"))
STARTS = {"gif": b"GIF", "jpg": b"\xff\xd8"}
PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>minimodel</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }}
ol {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 2rem; }}
ol {{ list-style: none; padding: 0; }}
img {{ width: 100%; height: 11rem; object-fit: contain; object-position: left; }}
img.map {{ height: auto; }}
h2 {{ font-size: 1.1rem; margin: 0.5rem 0; }}
</style></head>
<body><h1>minimodel</h1>
<p>One photo and a video in, the photo moving like the video out: how that is learnt, built piece by piece.</p>
<p><a href="00_start_here.html"><img class="map" src="maps/00.svg" alt="The map of the system"></a></p>
<ol>
{}</ol></body></html>
"""
# Pictures as wide as the page at most, and long lines of code broken rather than cut.
FITTING = "main img { max-width: 100%; height: auto } .highlight pre { white-space: pre-wrap }"
ENTRY = """<li><a href="{page}"><img src="{picture}" alt=""><h2>{title}</h2></a><p>{sentence}</p></li>
"""


class Renderer(IPythonRenderer):
    """Formulas as MathML, which browsers draw themselves."""

    def block_math(self, body: str) -> str:
        return convert(body, display="block")

    def inline_math(self, body: str) -> str:
        return convert(body)


def markdown(source: str) -> str:
    return MarkdownWithMath(renderer=Renderer(escape=False, exclude_anchor_links=True)).render(source)


def build(output: Path) -> list[Path]:
    """Write the pages, and the files that they link to, into ``output``; -> index.html and the pages."""
    output.mkdir(parents=True, exist_ok=True)
    pages, entries, linked = [], [], set()
    exporter = HTMLExporter()
    exporter.register_filter("markdown2html", markdown)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, 4)
        hold_widgets_still(notebook)
        page = BeautifulSoup(exporter.from_notebook_node(notebook)[0], "html.parser")
        for script in page.find_all("script"):
            script.decompose()
        linked |= lead_links_home(page)
        fold_hidden_code(page, notebook)
        page.head.append(BeautifulSoup(f"<style>{FITTING}</style>", "html.parser"))
        page.title.string = page.h1.get_text()
        pages.append(output / f"{path.stem}.html")
        picture = first_picture(notebook)
        # Jupyter shows moving pictures under the name of still ones.
        kind = next((k for k, start in STARTS.items() if picture.startswith(start)), "png")
        name = f"{path.stem}.{kind}"
        (output / name).write_bytes(picture)
        about = dict(page=pages[-1].name, picture=name)
        about |= dict(title=escape(page.h1.get_text()), sentence=escape(first_sentence(first_words(page))))
        entries.append(ENTRY.format(**about))
        page.body.insert(0, BeautifulSoup('<p><a href="index.html">All chapters</a></p>', "html.parser"))
        pages[-1].write_text(str(page))
    for name in linked:
        target = output / f"{name}.html"
        target.parent.mkdir(parents=True, exist_ok=True)
        options = dict(full=True, title=name, linenos="inline")
        target.write_text(highlight((ROOT / name).read_text(), PythonLexer(), HtmlFormatter(**options)))
    shutil.copytree(ROOT / "notebooks" / "maps", output / "maps", dirs_exist_ok=True)
    index = output / "index.html"
    index.write_text(PAGE.format("".join(entries)))
    return [index, *pages]


def hold_widgets_still(notebook: nbformat.NotebookNode) -> None:
    """Put in place of each widget the picture that it showed, under the values of its sliders."""
    state = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if WIDGET_VIEW not in output.get("data", {}):
                continue
            children = state[output.data[WIDGET_VIEW]["model_id"]]["state"].get("children")
            if children is None:  # a button: on a page there is nothing to press
                output.data = {"text/html": "<p><small>(in Jupyter here is a button)</small></p>"}
                continue
            parts = [state[child.removeprefix("IPY_MODEL_")] for child in children]
            values = [
                f"{part['state']['description']} {value(part['state'])}"
                for part in parts
                if "description" in part["state"]
            ]
            pictures = [buffer["data"] for part in parts for buffer in part.get("buffers", [])]
            text = f"<p><small>{escape(', '.join(values))} (in Jupyter these can be moved)</small></p>"
            text += "".join(f'<img alt="" src="data:image/png;base64,{picture}">' for picture in pictures)
            output.data = {"text/html": text}


def fold_hidden_code(page: BeautifulSoup, notebook: nbformat.NotebookNode) -> None:
    """Fold the code that a notebook hides: drawings and checks, of which a reader wants the results."""
    for cell, box in zip(notebook.cells, page.select(".jp-Cell"), strict=True):
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            details, summary = page.new_tag("details"), page.new_tag("summary")
            summary.string = (
                cell.source.splitlines()[0].removeprefix("# ") if "check" in cell.metadata.get("tags", []) else "Code"
            )
            box.select_one(".jp-Cell-inputWrapper").wrap(details).insert(0, summary)


def value(state: dict) -> str:
    """What a slider or a list is set to."""
    return f"{state['value']:g}" if "value" in state else state["_options_labels"][state["index"]]


def lead_links_home(page: BeautifulSoup) -> set[str]:
    """Turn links to notebooks and modules into links to their pages; -> the modules' paths."""
    modules = set()
    for link in page.find_all("a", href=True):
        if re.fullmatch(r"\w+\.ipynb", link["href"]):
            link["href"] = link["href"].replace(".ipynb", ".html")
        elif link["href"].startswith("../") and link["href"].endswith(".py"):
            modules.add(link["href"].removeprefix("../"))
            link["href"] = f"{link['href'].removeprefix('../')}.html"
    return modules


def first_picture(notebook: nbformat.NotebookNode) -> bytes:
    """The first picture that the notebook's code made."""
    outputs = (output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
    found = (data.get("image/png") or data.get("image/jpeg") for data in outputs)
    return base64.b64decode(next(picture for picture in found if picture))


def first_words(page: BeautifulSoup) -> str:
    """The first paragraph with words; the map is a paragraph without any."""
    return next(text for text in (paragraph.get_text() for paragraph in page.find_all("p")) if text.strip())


def first_sentence(text: str) -> str:
    """
    >>> first_sentence("The question. What moves? And how.")
    'What moves?'
    """
    return re.match(r".*?[.?!](?=\s|$)", " ".join(text.removeprefix("The question.").split()))[0]


if __name__ == "__main__":
    index, *pages = build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "book")
    print(f"{len(pages)} chapters: {index}")
