"""The site, see `make docs`. Its sources are the repository's own files, so that a link means the same as on GitHub."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import plotly
from sphinx.application import Sphinx

import drolab

ROOT = Path(__file__).parents[1]
DEMO = (ROOT / os.environ.get("DROLAB_DEMO", "out/demo")).resolve()
"""Where a run of the demo has left its results."""
PLOTLY = "application/vnd.plotly.v1+json"
NO_RESULTS = ":::{note}\nWithout its results: no run of the demo has left them where this site was made.\n:::"

project = "drolab"
author = "The drolab developers"
version = release = drolab.__version__
root_doc = "docs/index"
include_patterns = ["docs/**.md", "notebooks/*.ipynb", "drolab/assets/*/README.md"]
exclude_patterns = [".*", "out"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
suppress_warnings = ["ref.python"]  # a type's short name that two wings have
default_role = "code"  # one backtick, as in Markdown

myst_heading_anchors = 3  # with GitHub's names
myst_enable_extensions = ["colon_fence"]
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False  # those of other packages are in other forms
autodoc_member_order = "bysource"
add_module_names = False
python_maximum_signature_line_length = 88
napoleon_custom_sections = ["Returns"]  # as text: a colon in it is no type's

html_theme = "furo"
html_title = f"drolab {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
copybutton_exclude = ".gp, .go"  # prompts and what an example prints


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", copy_plotly)
    app.connect("source-read", fill_notebook)
    app.connect("autodoc-process-docstring", keep_text, priority=400)  # before napoleon
    app.connect("html-page-context", add_scripts)
    app.connect("build-finished", finish)


def fill_notebook(app: Sphinx, docname: str, source: list[str]) -> None:
    """Show the notebook as the demo has left it, in a form that needs no Jupyter."""
    folder, _, name = docname.partition("/")
    if folder != "notebooks":
        return
    executed = DEMO / "notebooks" / f"{name}.ipynb"
    text = executed.read_text(encoding="utf-8") if executed.is_file() else source[0]
    notebook = nbformat.reads(text.replace(str(DEMO), "out/demo"), as_version=4)
    if not executed.is_file():
        print(f"Without results: {name}. There is no {executed}; `make demo` makes 01 to 07.")
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(NO_RESULTS))
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [shown for output in cell.outputs if (shown := as_page(output, cell.source))]
    source[0] = nbformat.writes(notebook)


def as_page(output: nbformat.NotebookNode, source: str) -> nbformat.NotebookNode | None:
    """A figure becomes data for static/figures.js, a panel a pointer to its page, and a bar at its end nothing."""
    kinds = output.get("data", {})
    panel = re.search(r"panels\.(\w+)\(", source)
    if "drolab-kept" in kinds.get("text/html", ""):  # what a saved notebook shows without a kernel
        return None
    if PLOTLY in kinds:
        figure = json.dumps(kinds[PLOTLY]).replace("</", r"<\/")
        output.data = {"text/html": f'<div class="figure"><script type="application/json">{figure}</script></div>'}
    elif any("widget" in kind for kind in kinds):
        if panel is None:
            return None
        name, page = f"panels.{panel[1]}", ROOT / "docs" / "panels" / f"{panel[1]}.md"
        link = f'<a href="../docs/panels/{page.stem}.html">{name}</a>' if page.exists() else name
        output.data = {"text/html": f'<p class="panel">In Jupyter the panel {link} stands here.</p>'}
    return output


def keep_text(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon in an attribute's first line for its type: let that be a comment."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]


def copy_plotly(app: Sphinx) -> None:
    """Once for the whole site: it is 5 MB."""
    static = Path(app.outdir, "_static")
    static.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", static)


def add_scripts(app: Sphinx, pagename: str, *_: Any) -> None:
    if pagename.startswith("notebooks/"):
        app.add_js_file("plotly.min.js")
        app.add_js_file("figures.js")


def finish(app: Sphinx, error: Exception | None) -> None:
    front = '<!doctype html><title>drolab</title><meta http-equiv="refresh" content="0; url=docs/index.html">\n'
    Path(app.outdir, "index.html").write_text(front, encoding="utf-8")
