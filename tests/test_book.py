"""The book shows what the committed notebooks show, leads nowhere that isn't there, and needs no network."""

import importlib.util
import re
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def load():
    spec = importlib.util.spec_from_file_location("book", ROOT / "tools" / "book.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


book = load()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    book.build(folder)
    return folder


@cache
def soup(path):
    return BeautifulSoup(path.read_text(), "html.parser")


def test_every_notebook_is_a_page_and_the_index_leads_to_it_with_picture_and_sentence(built):
    entries = soup(built / "index.html").find_all("li")
    assert [entry.a["href"] for entry in entries] == [f"{path.stem}.html" for path in NOTEBOOKS]
    for path, entry in zip(NOTEBOOKS, entries):
        text = nbformat.read(path, 4).cells[0].source
        assert entry.h2.text == text.splitlines()[0].removeprefix("# ")
        assert len(entry.p.text) > 20 and entry.p.text[-1] in ".?!"
        text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells[:4] if cell.cell_type == "markdown")
        assert entry.p.text[:30] in " ".join(re.sub(r"\[(.*?)\]\(.*?\)", r"\1", text).replace("*", "").split())
        picture = built / entry.img["src"]
        starts = {".png": b"\x89PNG", ".gif": b"GIF8", ".jpg": b"\xff\xd8"}
        assert picture.read_bytes().startswith(starts[picture.suffix])
        assert soup(built / f"{path.stem}.html").a["href"] == "index.html"  # and back


def test_no_link_leads_to_what_is_not_there(built):
    for path in [*built.glob("*.html"), *built.glob("minimodel/**/*.html")]:
        page = soup(path)
        for name in [link["href"] for link in page.find_all("a", href=True)] + [i["src"] for i in page.find_all("img")]:
            parts = urlsplit(name)
            if parts.scheme in ("http", "https", "data"):
                continue
            target = path if not parts.path else path.parent / parts.path
            assert target.is_file(), (path.name, name)
            assert not parts.fragment or soup(target).find(id=parts.fragment), (path.name, name)


def test_opening_a_page_fetches_nothing(built):
    for path in built.glob("*.html"):
        page = soup(path)
        assert not page.find_all(["script", "iframe", "link", "object"])
        assert all(urlsplit(image["src"]).scheme in ("", "data") for image in page.find_all("img"))
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", "".join(s.text for s in page.find_all("style")))


def test_pages_hold_all_pictures_formulas_and_widgets(built):
    for path in NOTEBOOKS:
        notebook, page = nbformat.read(path, 4), soup(built / f"{path.stem}.html")
        outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
        widgets = [data for data in outputs if any("widget-view" in kind for kind in data)]
        buttons = [data for data in widgets if "image/png" not in data]  # they show no picture
        widgets = [data for data in widgets if data not in buttons]
        kinds = {"image/png", "image/jpeg"}
        pictures = [data for data in outputs if kinds & data.keys() and data not in widgets]
        the_map = f"maps/{path.stem.split('_')[0]}.svg"
        assert page.text.count("in Jupyter here is a button") == len(buttons)
        images = [image["src"] for image in page.find_all("img")]
        assert images.pop(0) == the_map and all(image.startswith("data:") for image in images)
        assert len(images) == len(widgets) + len(pictures) > 0
        assert page.text.count("in Jupyter these can be moved") == len(widgets)
        text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
        blocks = len(re.findall(r"\$\$", text)) // 2
        inline = len(re.findall(r"\$", text.replace("$$", ""))) // 2
        maths = page.find_all("math")
        assert len(maths) == blocks + inline
        assert sum(formula.get("display") == "block" for formula in maths) == blocks
        assert not any("\\" in formula.text for formula in maths)  # no command that wasn't understood


def test_code_that_notebooks_hide_is_folded(built):
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        hidden = [c for c in nbformat.read(path, 4).cells if c.metadata.get("jupyter", {}).get("source_hidden")]
        page = BeautifulSoup((built / f"{path.stem}.html").read_text(), "html.parser")
        folded = [d for d in page.find_all("details") if d.select(".jp-Cell-inputWrapper")]
        assert len(folded) == len(hidden)
        assert all(cell.source.split()[-1] in details.text for cell, details in zip(hidden, folded, strict=True))


def test_a_fraction_and_a_list_in_a_widget():
    assert "<mfrac>" in book.markdown(r"half is $\frac{1}{2}$, and `$x$` stays code")
    assert "<code>$x$</code>" in book.markdown(r"half is $\frac{1}{2}$, and `$x$` stays code")
    assert book.value(dict(value=0.30000000000000004)) == "0.3"
    assert book.value(dict(index=1, _options_labels=["a", "b"])) == "b"
    assert book.first_sentence("It moved 0.3 to\nthe left. Then back.") == "It moved 0.3 to the left."
