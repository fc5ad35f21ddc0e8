"""Taking results away: figures with their tables, and a manifest that says what made them.

Every file appears whole or not at all, no name leads out of its folder, and nothing that is written needs a
network to be read.

In order: single files (`save_figure`, `save_table`, `save_numbers`), what a notebook finds (`Results`), a `bundle`
for a paper with its `manifest`, and the rendering of images.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import os
import platform
import re
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from drolab.errors import ExportError, ModelError, StatesError, TooFewError, TrainingError
from drolab.figures import BIDIRECTIONAL, CONFIG, Sheet, caption, sheet
from drolab.files import expanded, file_sha256, safe_path, write_file
from drolab.progress import Progress, bar
from drolab.types import EMPTY_PROMPT, NO_PROMPT, OWN_PROMPT, SafetyPrompt, SoftPrompt

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


IMAGE_FORMATS = ("svg", "pdf", "png", "webp")
FORMATS = ("html", "json", "csv", *IMAGE_FORMATS)
BUNDLE_FORMATS = ("html", "csv", "png", "svg", "pdf")
_VERSIONS = ("drolab", "torch", "transformers", "scikit-learn", "umap-learn", "numpy", "pandas", "plotly")

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""Characters that no XML file may hold, and no text needs: controls and halves of surrogate pairs."""


# ---------------------------------------------------------------- single files


def save_figure(
    figure: go.Figure,
    folder: str | Path,
    name: str,
    *,
    table: pd.DataFrame | None = None,
    formats: Sequence[str] = ("html", "csv"),
    self_contained: bool = True,
) -> list[Path]:
    """Write a figure and the table behind it as `folder/name.*`, and return the files' paths.

    Args:
        formats: `html` (interactive, works offline), `json` (plotly's own, to open again with `plotly.io.read_json`),
            `csv` (the table, if there is one), and the images `svg`, `pdf`, `png`, `webp`.
        self_contained: False puts plotly.js (4.9 MB) once beside the HTML files instead of into each.

    Raises:
        ExportError: an unknown format, a bad name, nothing to write to, or images without a Chrome: the other
            formats are written first, so they are there.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> import pandas as pd
        >>> from drolab import export, figures
        >>> rates = pd.DataFrame({"prompt": ["none", "default"], "group": "harmful", "value": [0.61, 0.83]})
        >>> with TemporaryDirectory() as folder:
        ...     paths = export.save_figure(figures.rate_bars(rates), folder, "rates", table=rates)
        ...     print([path.name for path in paths], pd.read_csv(paths[1])["value"].tolist())
        ['rates.html', 'rates.csv'] [0.61, 0.83]
    """
    _check_formats(formats, FORMATS)
    written: list[Path] = []
    if "html" in formats:
        written += _save_html(figure, folder, name, self_contained=self_contained)
    if "json" in formats:
        written.append(write_file(safe_path(folder, name, "json"), str(figure.to_json())))
    if "csv" in formats and table is not None:
        written.append(save_table(table, folder, name))
    images = [kind for kind in formats if kind in IMAGE_FORMATS]
    return written + _save_images({name: sheet(figure, style="shown")} if images else {}, folder, images)


def save_figures(
    folder: str | Path,
    figures: Mapping[str, go.Figure | tuple[go.Figure, pd.DataFrame]],
    *,
    formats: Sequence[str] = ("html", "json", "csv"),
) -> list[Path]:
    """Write several figures, alone or with their tables, into one folder, with one plotly.js beside them.

    Raises:
        ExportError: an unknown format, a bad name, nothing to write to, or images without a Chrome.
    """
    written: list[Path] = []
    for name, item in figures.items():
        figure, table = item if isinstance(item, tuple) else (item, None)
        written += save_figure(figure, folder, name, table=table, formats=formats, self_contained=False)
    return list(dict.fromkeys(written))


def save_table(table: pd.DataFrame, folder: str | Path, name: str) -> Path:
    """Write a table as `folder/name.csv` (UTF-8). A named index is kept as columns.

    A text that a spreadsheet would take for a formula gets a leading apostrophe, and control characters become �:
    responses of models end here.

    Raises:
        ExportError: a bad name, or nothing to write to.
    """
    flat = table.reset_index() if any(table.index.names) else table
    texts = flat.select_dtypes(include=["object", "string", "category"]).columns
    flat = flat.assign(**{column: flat[column].astype(object).map(_harmless) for column in texts})
    flat = flat.rename(columns=_harmless)
    return write_file(safe_path(folder, name, "csv"), str(flat.to_csv(index=False)))


def save_numbers(folder: str | Path, name: str, numbers: Mapping[str, Any]) -> Path:
    """Write numbers and short texts as `folder/name.json`: the key numbers of a notebook. NaN is written as null.

    Raises:
        ExportError: a bad name, nothing to write to, or what is no number, text or table.
    """
    found = json.dumps(dict(numbers), default=_plain)
    # What is no number (NaN, infinity) is null: JSON has no word for it, and readers other than Python refuse the file.
    known = json.loads(found, parse_constant=lambda _: None)
    plain = json.dumps(known, indent=2, ensure_ascii=False)
    # Letters of any language stay readable; what would turn the reading direction in an editor is written as \uXXXX.
    plain = re.sub(f"[{BIDIRECTIONAL}]", lambda found: f"\\u{ord(found[0]):04x}", plain)
    return write_file(safe_path(folder, name, "json"), plain + "\n")


def _check_formats(formats: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [kind for kind in formats if kind not in known]:
        raise ExportError(f"No format {unknown}: choose from {list(known)}.")


def _save_html(figure: go.Figure, folder: str | Path, name: str, *, self_contained: bool) -> list[Path]:
    from plotly.offline import get_plotlyjs

    path = safe_path(folder, name, "html")
    html = figure.to_html(config=CONFIG, include_plotlyjs=True if self_contained else "directory", full_html=True)
    library = path.with_name("plotly.min.js")
    if self_contained:
        return [write_file(path, html)]
    if not library.is_file() or library.stat().st_size != len(get_plotlyjs().encode("utf-8")):
        write_file(library, get_plotlyjs())
    return [write_file(path, html), library]


def _harmless(value: object) -> object:
    if not isinstance(value, str):
        return value
    return ("'" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else "") + _CONTROL.sub("�", value)


def _plain(value: Any) -> Any:
    """What json does not know: numpy and torch scalars, tables, dataclasses."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "to_dict"):
        return value.to_dict(orient="records") if hasattr(value, "columns") else value.to_dict()
    if hasattr(value, "item"):
        return value.item()
    raise ExportError(f"A {type(value).__name__} cannot be written as a number: pass numbers, texts, or a table.")


# ---------------------------------------------------------------- what a notebook finds


@dataclass(frozen=True)
class Saved:
    """Where a notebook's results are. A notebook shows it as links."""

    path: Path
    """The JSON file that lists the rest."""
    files: tuple[Path, ...]

    def __str__(self) -> str:
        return f"{len(self.files)} files, listed in {self.path}"

    def _repr_html_(self) -> str:
        """Links to what a person opens, relative: a notebook's kernel works in its folder."""
        read = [file for file in (self.path, *self.files) if file == self.path or file.suffix in (".html", ".csv")]
        links = [
            f'<a href="{quote(Path(os.path.relpath(file)).as_posix())}" target="_blank">{html.escape(file.name)}</a>'
            for file in read
        ]
        folder = html.escape(str(self.path.parents[1]))
        return f"<p>Saved in <code>{folder}</code>: {' · '.join(links)}</p>"


class Section:
    """A part of a notebook that may lack what it needs, see `Results.section`: true once it has run to its end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reason = ""
        self._whole = False

    def __bool__(self) -> bool:
        return self._whole

    def need(self) -> None:
        """For a part that builds on this one: end it as well, for the same reason.

        Raises:
            TooFewError: this part has not run to its end.
        """
        if not self._whole:
            raise TooFewError(self.reason or f"“{self.name}” has not run to its end: run it first.")


class Results:
    """What a notebook finds, written while it goes: `out/figures`, `out/tables` and `out/numbers/{notebook}.json`.

    The last lists the rest, so that a report can be put together from the folder. Names get the notebook's as a
    prefix. What an earlier run listed there is no longer listed from the first `add` on.

    Args:
        out: the folder.
        notebook: its number, such as "04".
        title: the notebook's question.
        about: of the whole run, such as {"seed": 0}: for the report's head and the manifest.

    Examples:
        >>> import json
        >>> from tempfile import TemporaryDirectory
        >>> import pandas as pd
        >>> from drolab import export, figures
        >>> from drolab.errors import TooFewError
        >>> rates = pd.DataFrame({"prompt": ["none", "default"], "group": "harmful", "value": [0.61, 0.83]})
        >>> folder = TemporaryDirectory()
        >>> results = export.Results(folder.name, "06", title="Who refuses?", about={"seed": 0})
        >>> drawn, said = {"rates": (figures.rate_bars(rates), rates)}, {"rates": "Under the prompt more is refused."}
        >>> saved = results.add(figures=drawn, numbers={"rise": 0.22}, captions=said)
        >>> with results.section("2. A direction") as direction:
        ...     raise TooFewError("No query is refused: ask others.")
        Cannot be tested here: No query is refused: ask others.
        >>> bool(direction)
        False
        >>> with results.section("3. Along it"):
        ...     direction.need()
        Cannot be tested here: No query is refused: ask others.
        >>> listing = json.loads(saved.path.read_text(encoding="utf-8"))
        >>> listing["captions"], listing["not_run"]
        ({'rates': 'Under the prompt more is refused.'}, {'2. A direction': 'No query is refused: ask others.', ...})
        >>> folder.cleanup()
    """

    def __init__(self, out: str | Path, notebook: str, *, title: str, about: Mapping[str, Any] | None = None) -> None:
        self._root, self._notebook = Path(out), notebook
        self._listing: dict[str, Any] = {"title": title, "figures": [], "tables": [], "captions": {}}
        self._listing |= {"numbers": {"about": dict(about)} if about else {}, "findings": [], "not_run": {}}

    @property
    def not_run(self) -> dict[str, str]:
        """The sections that could not be run: heading → why."""
        return dict(self._listing["not_run"])

    def add(
        self,
        *,
        figures: Mapping[str, go.Figure | tuple[go.Figure, pd.DataFrame]] | None = None,
        tables: Mapping[str, pd.DataFrame] | None = None,
        numbers: Mapping[str, Any] | None = None,
        captions: Mapping[str, str] | None = None,
        findings: Sequence[str] = (),
    ) -> Saved:
        """Write what a section found, and list it with what those before it found.

        Args:
            figures: name → figure, or figure and the table behind it.
            tables: name → table.
            numbers: the key numbers, which the report shows: name in words → number, short text or table.
            captions: name of a figure or of a table among the numbers, of this section or one before → a sentence or
                two. A figure without one has its title and small print.
            findings: what it all means, in sentences: they are printed.

        Raises:
            ExportError: a bad name, nothing to write to, a number that is none, or a caption of what is not there.
        """
        if isinstance(findings, str):
            raise ExportError("Findings are a list of sentences: pass findings=[…].")
        figures, tables, captions = figures or {}, tables or {}, captions or {}
        listing, numbered = self._listing, self._listing["numbers"] | dict(numbers or {})
        drawn = {f"{self._notebook}_{name}": figure for name, figure in figures.items()}
        known = [*(name.removeprefix(f"{self._notebook}_") for name in [*listing["figures"], *drawn]), *numbered]
        if unknown := sorted(set(captions) - set(known)):
            raise ExportError(f"There are captions of {unknown}: name one of {known}.")
        files = save_figures(self._root / "figures", drawn)
        named = {f"{self._notebook}_{name}": table for name, table in tables.items()}
        files += [save_table(table, self._root / "tables", name) for name, table in named.items()]
        own = {name: caption(figure[0] if isinstance(figure, tuple) else figure) for name, figure in figures.items()}
        listing = listing | {
            "figures": list(dict.fromkeys([*listing["figures"], *drawn])),
            "tables": list(dict.fromkeys([*listing["tables"], *named])),
            "captions": listing["captions"] | own | dict(captions),
            "numbers": numbered,
            "findings": list(dict.fromkeys([*listing["findings"], *findings])),
        }
        path = save_numbers(self._root / "numbers", self._notebook, listing)
        self._listing = listing  # what cannot be written is not kept, so that the cell can be corrected and run again
        print(*findings, sep="\n\n", end="\n" if findings else "")
        return Saved(path, tuple(files))

    @contextmanager
    def section(self, name: str) -> Iterator[Section]:
        """What may lack something to measure, or a model that can do it: that is printed and kept, and the notebook
        goes on. A wrong input, a full disk and the like are errors as ever.

        Args:
            name: its heading, for the report; each part has its own.
        """
        begun = Section(name)
        try:
            yield begun
            begun._whole = True
            if self._listing["not_run"].pop(name, None):  # of an earlier try
                save_numbers(self._root / "numbers", self._notebook, self._listing)
        except (StatesError, ModelError, TrainingError) as error:
            begun.reason = str(error)
            if self.not_run.get(name) != begun.reason:  # a section may have several such parts
                print(f"Cannot be tested here: {error}")
            self._listing["not_run"][name] = begun.reason
            save_numbers(self._root / "numbers", self._notebook, self._listing)


# ---------------------------------------------------------------- bundles


def bundle(
    figures: Mapping[str, tuple[go.Figure | None, pd.DataFrame]],
    folder: str | Path,
    *,
    about: Mapping[str, Any],
    formats: Sequence[str] = ("html", "csv"),
    width: str = "double",
    style: str = "print",
    progress: Progress = False,
) -> list[Path]:
    """Write figures with the tables of what they show, and `{first name}.manifest.json`, which says what made them.

    Beside the CSVs stands `{first name}.prompts.csv`, as far as `about` knows: what each prompt of the tables is, also
    `none`, which for some models is a system text of their own.

    Args:
        figures: file name → figure (None: the table only) and table.
        about: what `about` returns.
        formats: of BUNDLE_FORMATS. `html` is one file per figure that works offline.
        width, style: of the images, see `figures.sheet`.
        progress: is told of each image.

    Raises:
        ExportError: a bad name or format, nothing to write to; images that cannot be had, after HTML, CSV and manifest
            were written: they are in the error's `written`.

    Examples:
        >>> import json
        >>> from tempfile import TemporaryDirectory
        >>> import pandas as pd
        >>> import drolab
        >>> from drolab import export, figures
        >>> rates = pd.DataFrame({"prompt": ["none", "default"], "group": "harmful", "value": [0.61, 0.83]})
        >>> figure = figures.rate_bars(rates, title="Refusal rates of harmful queries")
        >>> about = export.about(prompts=[drolab.SafetyPrompt(name="default", text="Be safe.")], seed=0)
        >>> with TemporaryDirectory() as folder:
        ...     *_, manifest = paths = export.bundle({"rates": (figure, rates)}, folder, about=about)
        ...     print([path.name for path in paths])
        ...     print(json.loads(manifest.read_text(encoding="utf-8"))["settings"]["captions"])
        ['rates.html', 'rates.csv', 'rates.prompts.csv', 'rates.manifest.json']
        {'rates': 'Refusal rates of harmful queries'}
    """
    _check_formats(formats, BUNDLE_FORMATS)
    if not figures:
        raise ExportError("There is nothing to export: give at least one table.")
    root, first = expanded(folder, ExportError), next(iter(figures))
    for name in figures:
        safe_path(root, name, "csv")  # before anything is written
    kinds = [kind for kind in formats if kind in IMAGE_FORMATS]
    drawn = {name: figure for name, (figure, _) in figures.items() if figure is not None}
    sheets = {name: sheet(figure, style=style, width=width) for name, figure in drawn.items()} if kinds else {}
    settings = {key: value for key, value in about.items() if key not in ("model", "seed")}
    settings["captions"] = {name: caption(figure) for name, figure in drawn.items()}
    settings["images"] = {name: {"style": style, "width_mm": round(page.width_mm, 1)} for name, page in sheets.items()}
    if (prompts := _prompt_table(figures, about)) is not None:
        figures = {**figures, f"{first}.prompts": (None, prompts)}
    written = _save_plain(figures, root, formats)
    try:
        written += _save_images(sheets, root, kinds, progress)
    except ExportError as error:
        written += _save_plain(figures, root, [kind for kind in ("html", "csv") if kind not in formats])
        error.written = written
        raise
    finally:  # also if the user stopped it: what is there is described
        model, seed = about.get("model", {}), about.get("seed")
        written.append(
            manifest(root, name=f"{first}.manifest", model=model, settings=settings, seed=seed, files=written)
        )
    return written


def about(
    model: Any = None,
    prompts: Mapping[str, SafetyPrompt | SoftPrompt] | Sequence[SafetyPrompt | SoftPrompt] = (),
    queries: pd.DataFrame | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """What made a result, for the manifest of a `bundle`: the model's name and fingerprint (with what its chat template
    is told and writes of its own), the prompts with their texts, which queries, settings and seed."""
    named = prompts if isinstance(prompts, Mapping) else {prompt.name: prompt for prompt in prompts}
    return {
        "model": {} if model is None else described_model(model),
        "prompts": {name: _described(prompt) for name, prompt in named.items()},
        "queries": {} if queries is None else described_queries(queries),
        **(settings or {}),
        "seed": seed,
    }


def manifest(
    folder: str | Path,
    *,
    model: Mapping[str, Any],
    settings: Mapping[str, Any],
    seed: int | None,
    files: Sequence[str | Path] | None = None,
    name: str = "manifest",
) -> Path:
    """Write `folder/{name}.json`: versions, model, settings, seed, and each file's SHA-256.

    Args:
        model: what identifies the model: its name and fingerprint.
        settings: whatever else shaped the results, such as the prompts' texts.
        files: files in the folder; None takes all of them.

    Raises:
        ExportError: a file of another folder, a bad name, or nothing to write to.
    """
    root = Path(folder)
    paths = sorted(root.rglob("*") if files is None else [Path(file) for file in files])
    listed = [path for path in paths if path.is_file() and path.name != "manifest.json"]
    content = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **versions()},
        "commit": commit(),
        "platform": platform.platform(),
        "model": dict(model),
        "seed": seed,
        "settings": dict(settings),
        "files": {_inside(root, path): file_sha256(path) for path in listed},
    }
    return save_numbers(root, name, content)


def versions() -> dict[str, str]:
    """The versions of the packages that a result depends on."""
    return {name: metadata.version(name) for name in _VERSIONS}


def commit() -> str:
    """The commit of the clone that drolab runs from, with "-dirty" if files were changed since; empty if it is none."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # never that of a folder around it
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or one that does not trust the folder's owner
        return ""


def _save_plain(
    figures: Mapping[str, tuple[go.Figure | None, pd.DataFrame]], root: Path, formats: Sequence[str]
) -> list[Path]:
    written: list[Path] = []
    for name, (figure, table) in figures.items():
        if figure is not None and "html" in formats:
            written += _save_html(figure, root, name, self_contained=True)
        if "csv" in formats:
            written.append(save_table(table, root, name))
    return written


def described_model(model: Any) -> dict[str, Any]:
    """Its name and fingerprint; what its chat template is told, and the system text that this writes itself, if any."""
    template = getattr(model, "template", None)
    told, own = (template.told, template.own.replaced) if template else ({}, "")
    named = {"name": model.name, "fingerprint": model.fingerprint}
    return named | ({"template": told} if told else {}) | ({"own_system_text": own} if own else {})


def _described(prompt: SafetyPrompt | SoftPrompt) -> str | dict[str, Any]:
    if isinstance(prompt, SafetyPrompt):
        return prompt.text
    return {"init_text": prompt.init_text, "n_tokens": len(prompt), "embeddings_sha256": prompt.sha256}


def _prompt_table(
    figures: Mapping[str, tuple[go.Figure | None, pd.DataFrame]], about: Mapping[str, Any]
) -> pd.DataFrame | None:
    """What each prompt is that tables name (but for tables of runs, which describe theirs) or that made them; None if
    nothing is known of them."""
    import pandas as pd

    described, model = about.get("prompts", {}), about.get("model", {})
    shown = [table["prompt"] for _, table in figures.values() if {"prompt", "run"} & {*table.columns} == {"prompt"}]
    named = [str(name) for column in shown for name in column.dropna().unique()]
    names = dict.fromkeys([*named, *described])
    if not names or not (described or model):
        return None
    rows = [(name, *_text_of(name, described.get(name), model)) for name in names]
    columns = ["prompt", "system_text", "note"]
    return pd.DataFrame(rows, columns=columns, dtype=object)  # a text may hold half a character


def _text_of(name: str, described: str | Mapping[str, Any] | None, model: Mapping[str, Any]) -> tuple[str | None, str]:
    """The system text that a model gets under a prompt of this name, and what to know of it."""
    if isinstance(described, Mapping):
        return described["init_text"], f"{described['n_tokens']} trained vectors, which began as this text"
    if name in (NO_PROMPT, OWN_PROMPT) and not described:
        if own := model.get("own_system_text"):
            return own, "the model's own system text, which its chat template writes where none is given"
        return ("", "no system message") if model else (None, "no prompt; of which model was not given to the export")
    if name == EMPTY_PROMPT:
        return "", "an empty system text"
    return described, "" if described is not None else "a text that was not given to the export"


def described_queries(queries: pd.DataFrame) -> dict[str, Any]:
    """How many, and a digest of their texts."""
    listed = json.dumps(queries[["query_id", "text"]].to_numpy().tolist(), ensure_ascii=True)
    count = {"n": len(queries), "n_harmful": int(queries["harmful"].sum())}
    return {**count, "sha256": hashlib.sha256(listed.encode()).hexdigest()}


def _inside(root: Path, path: Path) -> str:
    try:
        return path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        raise ExportError(f"{path} is not in {root}: a manifest lists the files of its own folder.") from None


# ---------------------------------------------------------------- images


def render_images(
    sheets: Mapping[str, Sheet], kinds: Sequence[str], *, progress: Progress = False
) -> dict[tuple[str, str], bytes]:
    """(Name, format) → the image's bytes, all from one start of the browser, without a request to any host."""
    import kaleido

    # kaleido's one-shot call starts a browser per image and asks a CDN for MathJax; the object does neither.
    async def render() -> dict[tuple[str, str], bytes]:
        images = {}
        with bar(progress, total=len(sheets) * len(kinds), desc="Images", unit="image") as shown:
            async with kaleido.Kaleido(n=1, mathjax=False) as browser:
                for name, page in sheets.items():
                    for kind in kinds:
                        content = await browser.calc_fig(page.figure, opts=_render_options(page, kind))
                        images[name, kind] = _finish(content, page, kind)
                        shown.update()
        return images

    return _run_apart(render)


def _save_images(
    sheets: Mapping[str, Sheet], folder: str | Path, kinds: Sequence[str], progress: Progress = False
) -> list[Path]:
    """Write every sheet in every kind, once all are rendered."""
    from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError, KaleidoError

    if not sheets or not kinds:
        return []
    what = f"Images ({', '.join(kinds)})"
    instead = "open the HTML and use the camera button (PNG) or the browser's print dialog (PDF)"
    try:
        images = render_images(sheets, kinds, progress=progress)
    except ChromeNotFoundError as error:
        raise ExportError(
            f"{what} need Chrome or Chromium, and none was found. The other formats are written. Install Chromium "
            f"(apt install chromium, or the command plotly_get_chrome) and export again, or {instead}."
        ) from error
    except (BrowserClosedError, BrowserFailedError, KaleidoError, TimeoutError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ExportError(
            f"{what} are not written, since Chrome failed ({reason}). The other formats are. Try again, or {instead}."
        ) from error
    return [write_file(safe_path(folder, *key), content) for key, content in images.items()]


def _render_options(page: Sheet, kind: str) -> dict[str, Any]:
    scales = {"svg": 1.0, "pdf": page.page_scale}
    return {"format": kind, "width": page.width, "height": page.height, "scale": scales.get(kind, page.raster_scale)}


def _finish(content: bytes, page: Sheet, kind: str) -> bytes:
    """Say in the file how large the picture is on paper (a PDF's page does already)."""
    if kind == "svg":
        size = f'width="{page.width_mm:.2f}mm" height="{page.width_mm * page.height / page.width:.2f}mm"'
        text = re.sub(r'width="[\d.]+" height="[\d.]+"', size, content.decode("utf-8"), count=1)
        return _CONTROL.sub(" ", text).encode("utf-8")
    if kind == "png":
        per_metre = round(page.dpi / 0.0254)
        chunk = b"pHYs" + struct.pack(">IIB", per_metre, per_metre, 1)
        header = 8 + 25  # the signature and the first chunk, which must come first
        return content[:header] + struct.pack(">I", 9) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[header:]
    return content


def _run_apart(render: Callable[[], Any]) -> Any:
    """Run a coroutine in a thread of its own: in a notebook this thread has a running loop already."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(lambda: asyncio.run(render())).result()
