"""Export: files open, stay offline, stay in their folder, and appear whole."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest
import torch

import drolab
from drolab import export, figures
from drolab.errors import ExportError, ModelError, QueryError, StoreError, TooFewError
from drolab.export import bundles
from drolab.figures.style import blank_figure

HOSTILE = '<script>alert("x")</script>'
# What must come out as text: markup of HTML and of plotly, NUL, a right-to-left mark, half a surrogate pair, an emoji.
NASTY = "</script><img src=x onerror=alert(1)> <b>bold</b> %{x} \x00 \u202egnp \ud800 😀"
browser_warnings = pytest.mark.filterwarnings("default")  # the browser driver's, on some Python versions
needs_chrome = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("chromium", "google-chrome", "chrome")), reason="no Chrome to export with"
)


@pytest.fixture
def table() -> pd.DataFrame:
    rows = [("none", "harmful", 0.5, 0.4, 0.6), (HOSTILE, "harmless", 0.1, 0.0, 0.2)]
    return pd.DataFrame(rows, columns=["prompt", "group", "value", "low", "high"])


@pytest.fixture
def figure(table: pd.DataFrame) -> go.Figure:
    return figures.rate_bars(table, title=HOSTILE)


def scripts_from_outside(html: str) -> list[str]:
    return re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)\s*=\s*[\"'](?:https?:)?//[^\"']*", html)


def test_html_is_self_contained_and_csv_holds_the_table(tmp_path: Path, figure: go.Figure, table: pd.DataFrame) -> None:
    paths = export.save_figure(figure, tmp_path, "rates", table=table)
    assert [path.name for path in paths] == ["rates.html", "rates.csv"]
    html = paths[0].read_text(encoding="utf-8")
    assert scripts_from_outside(html) == []
    assert "plotly.js v" in html
    assert HOSTILE not in html
    assert '"showSendToCloud": false' in html
    pd.testing.assert_frame_equal(pd.read_csv(paths[1]), table)


def test_the_offline_check_sees_a_cdn(figure: go.Figure) -> None:
    assert scripts_from_outside(figure.to_html(include_plotlyjs="cdn"))


def test_a_bundle_shares_one_plotly(tmp_path: Path, figure: go.Figure, table: pd.DataFrame) -> None:
    paths = export.save_figures(tmp_path, {"a": figure, "b": (figure, table)})
    assert {path.name for path in paths} == {"a.html", "b.html", "plotly.min.js", "a.json", "b.json", "b.csv"}
    html = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert 'src="plotly.min.js"' in html
    assert len(html) < 100_000
    assert pio.read_json(tmp_path / "a.json").to_dict()["data"] == pio.from_json(figure.to_json()).to_dict()["data"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["../out", "/etc/x"])
def test_names_cannot_leave_the_folder(tmp_path: Path, figure: go.Figure, name: str) -> None:
    with pytest.raises(export.ExportError, match="is no file name to write"):
        export.save_figure(figure, tmp_path / "inside", name)
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats_are_named(tmp_path: Path, figure: go.Figure) -> None:
    with pytest.raises(export.ExportError, match=r"No format \['gif'\]: choose from"):
        export.save_figure(figure, tmp_path, "a", formats=("html", "gif"))


@needs_chrome
@browser_warnings
def test_images_are_vectors_and_whole(tmp_path: Path) -> None:
    many = blank_figure("light", "many")
    many.add_scattergl(x=np.arange(5), y=np.arange(5), mode="markers")
    export.save_figure(many, tmp_path, "many", formats=("svg", "pdf", "png"))
    svg = (tmp_path / "many.svg").read_text(encoding="utf-8")
    assert "<text" in svg
    assert "<image" not in svg  # WebGL would have become a picture
    assert svg.rstrip().endswith("</svg>")
    assert (tmp_path / "many.pdf").read_bytes().startswith(b"%PDF-")
    assert (tmp_path / "many.png").read_bytes().startswith(b"\x89PNG")
    assert many.data[0].type == "scattergl"  # the figure itself is left alone


@pytest.fixture
def no_chrome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chrome")


@pytest.mark.usefixtures("no_chrome")
def test_without_chrome_the_rest_is_written(tmp_path: Path, figure: go.Figure, table: pd.DataFrame) -> None:
    with pytest.raises(export.ExportError, match=r"need Chrome or Chromium, and none was found.*apt install chromium"):
        export.save_figure(figure, tmp_path, "rates", table=table, formats=("html", "csv", "pdf"))
    assert {path.name for path in tmp_path.iterdir()} == {"rates.html", "rates.csv"}


@pytest.mark.usefixtures("no_chrome")
def test_without_chrome_a_bundle_is_html_csv_and_manifest(
    tmp_path: Path, figure: go.Figure, table: pd.DataFrame
) -> None:
    with pytest.raises(export.ExportError, match="none was found") as caught:
        export.bundle({"rates": (figure, table)}, tmp_path, about={}, formats=("pdf",))
    assert {path.name for path in caught.value.written} == {"rates.html", "rates.csv", "rates.manifest.json"}
    assert set(tmp_path.iterdir()) == set(caught.value.written)
    assert set(manifest_of(tmp_path, "rates")["files"]) == {"rates.html", "rates.csv"}


def test_a_browser_that_fails_is_told_in_words(
    tmp_path: Path, figure: go.Figure, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kaleido.errors import BrowserFailedError

    def fails(*_: object, **__: object) -> None:
        raise BrowserFailedError("it   broke")

    monkeypatch.setattr(bundles, "render_images", fails)
    with pytest.raises(export.ExportError, match=r"Chrome failed \(it broke\).*Try again"):
        export.bundle({"rates": (figure, table)}, tmp_path, about={}, formats=("png",))
    assert (tmp_path / "rates.html").is_file()


def test_tables_keep_a_named_index_and_no_formula(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"response": ["=1+1", "fine"], "rate": [-1.0, 2.0]}, index=pd.Index(["a", "b"], name="query_id")
    )
    back = pd.read_csv(export.save_table(table, tmp_path, "t"))
    assert list(back.columns) == ["query_id", "response", "rate"]
    assert list(back["response"]) == ["'=1+1", "fine"]
    assert list(back["rate"]) == [-1.0, 2.0]


def test_a_notebooks_results_are_listed(tmp_path: Path, figure: go.Figure, table: pd.DataFrame) -> None:
    found = {"figures": {"rates": (figure, table), "more": figure}, "tables": {"all": table}, "numbers": {"auc": 0.5}}
    results = export.Results(tmp_path, "03", title="What?")
    saved = results.add(captions={"rates": "More is refused."}, **found)
    content = json.loads(saved.path.read_text(encoding="utf-8"))
    assert content == {
        "title": "What?",
        "figures": ["03_rates", "03_more"],
        "tables": ["03_all"],
        "captions": {"rates": "More is refused.", "more": HOSTILE},  # without its own it has the title
        "numbers": {"auc": 0.5},
        "findings": [],
        "not_run": {},
    }
    assert {"03_rates.html", "03_rates.json", "03_rates.csv", "03_all.csv"} <= {path.name for path in saved.files}
    assert all(path.is_file() for path in saved.files)
    with pytest.raises(export.ExportError, match=r"captions of \['rate'\]: name one of \['rates', 'more', 'auc'\]"):
        results.add(captions={"rate": "?"})


def test_sections_are_kept_as_they_are_done(
    tmp_path: Path, figure: go.Figure, table: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also what a section before the next one's failure found, and why one could not be run."""
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers" / "04.json").write_text('{"figures": ["04_of_an_earlier_run"]}')
    results = export.Results(tmp_path, "04", title="What?", about={"seed": 0})

    def listed() -> dict[str, Any]:
        found: dict[str, Any] = json.loads((tmp_path / "numbers" / "04.json").read_text(encoding="utf-8"))
        return found

    with results.section("1. First") as first:
        results.add(figures={"rates": (figure, table)}, captions={"rates": "Rates."}, findings=["It rises."])
    assert first
    assert listed()["figures"] == ["04_rates"]
    with results.section("2. Second") as second:
        raise TooFewError("Nobody refuses: ask others.")
    assert not second
    assert second.reason == "Nobody refuses: ask others."
    assert listed()["not_run"] == {"2. Second": second.reason}
    results.add(numbers={"auc": 0.5}, captions={"auc": "How well.", "rates": "Rates, again."})
    assert listed() == {
        "title": "What?",
        "figures": ["04_rates"],
        "tables": [],
        "captions": {"rates": "Rates, again.", "auc": "How well."},
        "numbers": {"about": {"seed": 0}, "auc": 0.5},
        "findings": ["It rises."],
        "not_run": {"2. Second": "Nobody refuses: ask others."},
    }
    assert capsys.readouterr().out == "It rises.\nCannot be tested here: Nobody refuses: ask others.\n"


def test_what_builds_on_a_section_that_could_not_be_run_ends_for_the_same_reason(tmp_path: Path) -> None:
    results = export.Results(tmp_path, "04", title="What?")
    with results.section("1. First") as first:
        pass
    first.need()
    with results.section("2. Second") as second:
        raise ModelError("No gradient comes back: train another.")
    with results.section("3. Third") as third:
        second.need()
    assert not third
    assert results.not_run == dict.fromkeys(("2. Second", "3. Third"), "No gradient comes back: train another.")


def test_a_section_that_runs_in_the_end_is_no_longer_listed_as_not_run(tmp_path: Path) -> None:
    results = export.Results(tmp_path, "04", title="What?")

    def listed() -> dict[str, str]:
        found: dict[str, str] = json.loads((tmp_path / "numbers" / "04.json").read_text())["not_run"]
        return found

    for name in ("1. First", "2. Second"):
        with results.section(name):
            raise TooFewError("Too few.")
    assert list(listed()) == ["1. First", "2. Second"]
    with results.section("1. First"):
        pass
    assert results.not_run == listed() == {"2. Second": "Too few."}


def test_findings_are_sentences_in_a_list(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="a list of sentences"):
        export.Results(tmp_path, "04", title="What?").add(findings="It rises.")


@pytest.mark.parametrize("error", [QueryError("No such file."), StoreError("The disk is full."), ZeroDivisionError()])
def test_a_section_hides_no_other_error(tmp_path: Path, error: Exception) -> None:
    results = export.Results(tmp_path, "04", title="What?")
    with pytest.raises(type(error)), results.section("1. First"):
        raise error
    assert not (tmp_path / "numbers").exists()


def test_a_cell_that_was_corrected_or_run_twice_leaves_one_result(tmp_path: Path) -> None:
    results = export.Results(tmp_path, "03", title="What?")
    wrong = {"wrong": object()}
    with pytest.raises(ExportError, match="cannot be written as a number"):
        results.add(numbers=wrong)
    for _ in range(2):
        saved = results.add(numbers={"right": 1}, findings=["It is so.", "It rests on this."])
    listing = json.loads(saved.path.read_text())
    assert listing["numbers"] == {"right": 1}
    assert listing["findings"] == ["It is so.", "It rests on this."]


def test_a_notebook_shows_links_to_what_it_saved(
    tmp_path: Path, figure: go.Figure, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    saved = export.Results("../<b>&", "03", title="What?").add(figures={"rates": figure})
    shown = saved._repr_html_()
    links = re.findall(r'href="([^"]*)"', shown)
    assert [unquote(link) for link in links] == ["../<b>&/numbers/03.json", "../<b>&/figures/03_rates.html"]
    assert "<b>" not in shown
    assert "in <code>../&lt;b&gt;&amp;</code>" in shown
    assert str(saved) == "3 files, listed in ../<b>&/numbers/03.json"


def test_the_commit_is_that_of_the_clone_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "__file__", str(tmp_path / "inner" / "drolab" / "export" / "bundles.py"))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    assert export.commit() == ""  # installed somewhere in a repository of another thing
    monkeypatch.setattr(bundles, "__file__", str(tmp_path / "drolab" / "export" / "bundles.py"))
    assert re.fullmatch("[0-9a-f]{7,}", export.commit())
    monkeypatch.setenv("PATH", "")
    assert export.commit() == ""


def test_numbers_of_numpy_and_tables_are_written(tmp_path: Path, table: pd.DataFrame) -> None:
    path = export.save_numbers(tmp_path, "key", {"auc": np.float64(0.5), "table": table.head(1), "name": "demo"})
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["auc"] == 0.5
    assert content["table"][0]["prompt"] == "none"
    with pytest.raises(export.ExportError, match="A object cannot be written"):
        export.save_numbers(tmp_path, "key", {"x": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == content


def test_what_is_no_number_is_null_in_json(tmp_path: Path) -> None:
    rates = pd.DataFrame({"value": [0.5, np.nan], "note": ["NaN", None]})
    path = export.save_numbers(tmp_path, "key", {"rates": rates, "p": float("inf")})
    found = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert found == {"rates": [{"value": 0.5, "note": "NaN"}, {"value": None, "note": None}], "p": None}


def manifest_of(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.manifest.json").read_text(encoding="utf-8"))


def sizes_of(svg: str) -> list[float]:
    return [float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg)]


@needs_chrome
@browser_warnings
@pytest.mark.parametrize(("width", "mm"), [("single", 85), ("double", 178)])
def test_a_bundle_has_the_size_of_its_column(
    tmp_path: Path, figure: go.Figure, table: pd.DataFrame, width: str, mm: int
) -> None:
    told: list[tuple[int, int]] = []
    figures = {"rates": (figure, table), "rows": (None, table)}
    about = export.about(settings={"layer": 4}, seed=3)
    formats = export.BUNDLE_FORMATS
    paths = export.bundle(
        figures, tmp_path, about=about, formats=formats, width=width, progress=lambda *n: told.append(n)
    )
    assert [path.name for path in paths] == [
        *("rates.html", "rates.csv", "rows.csv", "rates.png", "rates.svg", "rates.pdf", "rates.manifest.json"),
    ]
    assert told[0] == (0, 3)
    assert told[-1] == (3, 3)
    svg = (tmp_path / "rates.svg").read_text(encoding="utf-8")
    assert f'width="{mm}.00mm"' in svg[:300]
    assert "<text" in svg
    pixels = int(ElementTree.fromstring(svg).attrib["viewBox"].split()[2])
    points = [size * mm / pixels / 25.4 * 72 for size in sizes_of(svg)]
    assert min(points) >= 6.95
    assert max(points) <= 9.05
    assert png_size(tmp_path / "rates.png")[0] == pytest.approx(mm / 25.4 * 300, abs=2)
    assert b"pHYs" + struct.pack(">IIB", 11811, 11811, 1) in (tmp_path / "rates.png").read_bytes()
    pdf = (tmp_path / "rates.pdf").read_bytes()
    assert pdf_width(pdf) == pytest.approx(mm / 25.4 * 72, abs=1)
    assert b"/FontFile2" in pdf  # its text is text


def png_size(path: Path) -> tuple[int, int]:
    return struct.unpack(">II", path.read_bytes()[16:24])


def pdf_width(pdf: bytes) -> float:
    found = re.search(rb"/MediaBox\s*\[\s*0 0 ([\d.]+)", pdf)
    assert found
    return float(found[1])


@needs_chrome
@browser_warnings
def test_all_images_come_from_one_start_of_the_browser(
    tmp_path: Path, figure: go.Figure, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kaleido

    starts = []
    opened = kaleido.Kaleido.open

    async def counted(self: kaleido.Kaleido) -> None:
        starts.append(self)
        await opened(self)

    monkeypatch.setattr(kaleido.Kaleido, "open", counted)
    items = {"a": (figure, table), "b": (figure, table)}
    export.bundle(items, tmp_path, about={}, formats=("svg", "png"), style="slide")
    assert len(starts) == 1
    assert png_size(tmp_path / "b.png") == (1920, 1080)


def test_a_stopped_bundle_is_described(
    tmp_path: Path, figure: go.Figure, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundles, "render_images", stopped)
    with pytest.raises(KeyboardInterrupt):
        export.bundle({"a": (figure, table)}, tmp_path, about={}, formats=("csv", "png"))
    assert set(manifest_of(tmp_path, "a")["files"]) == {"a.csv"}


def prompts_of(folder: Path, about: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Name → text and note, as they are beside a table of these prompts."""
    rates = pd.DataFrame({"prompt": ["none", "empty", "own", "mine", "soft", "lost"], "rate": 0.5})
    runs = pd.DataFrame({"run": ["a"], "prompt": ["trained"]})
    paths = export.bundle({"rates": (None, rates), "runs": (None, runs)}, folder, about=about, formats=["csv"])
    names = ["rates.csv", "runs.csv", "rates.prompts.csv", "rates.manifest.json"]
    assert [path.name for path in paths] == names
    assert set(manifest_of(folder, "rates")["files"]) == {*names[:-1]}
    table = pd.read_csv(folder / "rates.prompts.csv", keep_default_na=False)
    assert list(table.columns) == ["prompt", "system_text", "note"]
    return {row.prompt: (row.system_text, row.note) for row in table.itertuples()}


def test_a_table_beside_the_csvs_says_what_each_prompt_is(tmp_path: Path) -> None:
    jinja = "{% if messages[0].role != 'system' %}[You are Rosa.]{% endif %}"
    jinja += "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    rosa = drolab.load_model("demo", chat_template=jinja)
    soft = drolab.SoftPrompt(name="soft", embeddings=torch.zeros(2, 3), init_text="Be safe.")
    blank = {name: drolab.SafetyPrompt(name=name, text="") for name in ("none", "empty", "own")}
    prompts = {**blank, "mine": drolab.SafetyPrompt(name="mine", text="=Be kind, always."), "soft": soft}
    own = ("You are Rosa.", "the model's own system text, which its chat template writes where none is given")
    expected = {
        "none": own,
        "empty": ("", "an empty system text"),
        "own": own,
        "mine": ("'=Be kind, always.", ""),
        "soft": ("Be safe.", "2 trained vectors, which began as this text"),
        "lost": ("", "a text that was not given to the export"),
    }
    assert prompts_of(tmp_path, export.about(rosa, prompts)) == expected
    del prompts["none"]  # a table may name it all the same
    assert prompts_of(tmp_path, export.about(rosa, prompts))["none"] == own
    plain = prompts_of(tmp_path, export.about(drolab.load_model("demo"), prompts))
    assert plain["none"] == ("", "no system message")
    unknown = prompts_of(tmp_path, export.about(None, prompts))
    assert unknown["none"] == ("", "no prompt; of which model was not given to the export")


def test_a_manifest_says_what_made_a_bundle(tmp_path: Path, figure: go.Figure, table: pd.DataFrame) -> None:
    queries = pd.DataFrame({"query_id": ["q"], "text": ["How?"], "harmful": [True]})
    soft = drolab.SoftPrompt(name="soft", embeddings=torch.zeros(2, 3), init_text="Be safe.")
    prompts = {"mine": drolab.SafetyPrompt(name="mine", text=NASTY), "soft": soft}
    about = export.about(None, prompts, queries, {"config": drolab.DROConfig(), "layer": np.int64(4)}, 3)
    export.bundle({"rates": (figure, table)}, tmp_path, about=about, formats=("csv",))
    found = manifest_of(tmp_path, "rates")
    assert found["seed"] == 3
    settings = found["settings"]
    assert settings["prompts"]["mine"] == NASTY
    assert settings["prompts"]["soft"]["init_text"] == "Be safe."
    assert settings["queries"]["n_harmful"] == 1
    assert settings["config"]["batch_size"] == 50
    assert settings["layer"] == 4
    assert settings["captions"] == {"rates": HOSTILE}
    other = export.about(queries=queries.assign(text="Why?"))["queries"]["sha256"]
    assert settings["queries"]["sha256"] != other


def test_nothing_to_export_and_unknown_formats_are_refused(tmp_path: Path, table: pd.DataFrame) -> None:
    with pytest.raises(export.ExportError, match="nothing to export"):
        export.bundle({}, tmp_path, about={})
    with pytest.raises(export.ExportError, match=r"No format \['json'\]"):
        export.bundle({"a": (None, table)}, tmp_path, about={}, formats=("json",))
    with pytest.raises(export.ExportError, match="is no file name"):
        export.bundle({"a": (None, table), "../b": (None, table)}, tmp_path, about={})
    assert list(tmp_path.iterdir()) == []


def test_a_table_is_read_back_whatever_is_in_it(tmp_path: Path) -> None:
    texts = pd.Series([NASTY, NASTY * 3000], dtype=object)
    table = pd.DataFrame({"text": texts, "=1+1": pd.Categorical(["@a", "b"])})
    path = export.save_table(table, tmp_path, "t")
    back = pd.read_csv(path)
    shown = NASTY.replace("\x00", "�").replace("\ud800", "�")
    assert list(back["text"]) == [shown, shown * 3000]
    assert list(back["'=1+1"]) == ["'@a", "b"]
    assert b"\x00" not in path.read_bytes()


def test_manifest_names_versions_model_and_checksums(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.csv").write_bytes(b"x\n1\n")
    path = export.manifest(tmp_path, model={"fingerprint": "f"}, settings={"prompts": {"mine": "Be safe."}}, seed=3)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["files"] == {"sub/a.csv": hashlib.sha256(b"x\n1\n").hexdigest()}
    assert content["model"] == {"fingerprint": "f"}
    assert content["settings"]["prompts"]["mine"] == "Be safe."
    assert content["seed"] == 3
    assert {"python", "drolab", "torch", "transformers", "plotly"} <= set(content["versions"])


def test_manifest_refuses_files_of_another_folder(tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("x")
    with pytest.raises(export.ExportError, match="lists the files of its own folder"):
        export.manifest(tmp_path / "in", model={}, settings={}, seed=0, files=[tmp_path / "outside.txt"])
