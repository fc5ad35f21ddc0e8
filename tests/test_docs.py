"""The documentation, without building it: links lead somewhere, every page and every public name has its place, and the
code in it runs. `make docs` builds it, and checks the rest."""

from __future__ import annotations

import doctest
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest

import drolab
from drolab import figures

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CARDS = sorted((ROOT / "drolab" / "assets").glob("*/README.md"))
LINKED = [*PAGES, *NOTEBOOKS, *CARDS, ROOT / "README.md"]

FENCE = re.compile(r"^```(.*?)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def prose(text: str) -> str:
    """Without code, in which brackets are no links and # is no heading."""
    return re.sub(r"`[^`\n]+`", lambda found: re.sub(r"[\[\]()]", "", found[0]), FENCE.sub("", text))


def markdown(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = nbformat.reads(text, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def anchors(text: str) -> set[str]:
    """The headings' names, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(path: Path, text: str) -> list[str]:
    """The links to files that are not there, or to headings that are not in them."""
    found = []
    for link in LINK.findall(prose(text)):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if re.match(r"https?://", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(text if not name else markdown(target))):
            found.append(link)
    return found


@pytest.mark.parametrize("path", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    assert broken(path, markdown(path)) == []


def test_the_link_check_sees_what_is_broken() -> None:
    sound = "# A *title*, with `f(x)`\n[a](#a-title-with-fx) [b](store.md#the-promise) `[c](x)`\n"
    assert broken(DOCS / "index.md", sound) == []
    assert broken(DOCS / "index.md", "[a](gone.md) [b](store.md#nothing) [c](#title)") == [
        "gone.md",
        "store.md#nothing",
        "#title",
    ]


def test_terms_of_the_tooltips_are_in_the_glossary() -> None:
    assert set(figures.TERMS) <= set(re.findall(r"^## (.+)$", markdown(DOCS / "glossary.md"), re.MULTILINE))


def test_every_page_has_one_place_in_the_contents() -> None:
    places: Counter[Path] = Counter()
    for path in (DOCS / "index.md", DOCS / "reference" / "index.md"):
        for kind, body in FENCE.findall(markdown(path)):
            entries = [line for line in body.splitlines() if line and not line.startswith(":") and line != "self"]
            places.update(
                (path.parent / re.sub(r".*<(.+)>", r"\1", entry)).resolve() for entry in entries if kind == "{toctree}"
            )
    wanted = {path.with_suffix("") for path in (*PAGES, *NOTEBOOKS, *CARDS)} - {DOCS / "index"}
    assert set(places) == wanted
    assert set(places.values()) == {1}


def test_every_public_name_is_in_the_reference() -> None:
    text = "".join(markdown(path) for path in (DOCS / "reference").glob("*.md"))
    named = set(re.findall(r"`(\w+)`", markdown(DOCS / "reference" / "index.md")))
    linked = set(re.findall(r"\[(\w+)\]\(", markdown(DOCS / "reference" / "index.md")))
    assert set(drolab.__all__) <= named | linked
    house = [path for path in (ROOT / "drolab").iterdir() if (path / "__init__.py").exists() or path.suffix == ".py"]
    modules = {path.stem for path in house if not path.stem.startswith("__")}
    assert modules <= set(re.findall(r"automodule:: drolab\.(\w+)\n", text))


def blocks(path: Path) -> list[str]:
    return [body for kind, body in FENCE.findall(markdown(path)) if kind == "python"]


@pytest.mark.parametrize("path", [path for path in PAGES if ">>> " in markdown(path)], ids=lambda path: path.stem)
def test_what_a_page_does_comes_of_it(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(body for body in blocks(path) if body.startswith(">>> "))
    test = doctest.DocTestParser().get_doctest(code, {}, path.name, str(path), 0)
    failed, tried = doctest.DocTestRunner(optionflags=FLAGS).run(test)
    assert tried
    assert not failed, capsys.readouterr().out


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=lambda path: path.stem)
def test_other_code_is_python(path: Path) -> None:
    for body in blocks(path):
        if not body.startswith(">>> "):
            compile(body, str(path), "exec")
