"""Export: files open, stay offline, stay in their folder, and appear whole."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest

from drolab import export, figures

HOSTILE = '<script>alert("x")</script>'
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


@pytest.mark.parametrize(
    "name", ["../out", "a/b", "", ".hidden", "a\\b", "x" * 101, "a b", "/etc/x", "name\x00", "a\n"]
)
def test_names_cannot_leave_the_folder(tmp_path: Path, figure: go.Figure, name: str) -> None:
    with pytest.raises(export.ExportError, match="is no file name to write"):
        export.save_figure(figure, tmp_path / "inside", name)
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats_are_named(tmp_path: Path, figure: go.Figure) -> None:
    with pytest.raises(export.ExportError, match=r"No format \['gif'\]: choose from"):
        export.save_figure(figure, tmp_path, "a", formats=("html", "gif"))


@needs_chrome
@pytest.mark.filterwarnings("default")  # the browser driver's, on some Python versions
def test_images_are_vectors_and_whole(tmp_path: Path) -> None:
    many = figures.blank_figure("light", "many")
    many.add_scattergl(x=np.arange(5), y=np.arange(5), mode="markers")
    export.save_figure(many, tmp_path, "many", formats=("svg", "pdf", "png"))
    svg = (tmp_path / "many.svg").read_text(encoding="utf-8")
    assert "<text" in svg
    assert "<image" not in svg  # WebGL would have become a picture
    assert svg.rstrip().endswith("</svg>")
    assert (tmp_path / "many.pdf").read_bytes().startswith(b"%PDF-")
    assert (tmp_path / "many.png").read_bytes().startswith(b"\x89PNG")
    assert many.data[0].type == "scattergl"  # the figure itself is left alone


def test_without_chrome_the_rest_is_written(
    tmp_path: Path, figure: go.Figure, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kaleido.errors import ChromeNotFoundError

    def no_browser(*_: object) -> None:
        raise ChromeNotFoundError

    monkeypatch.setattr(export, "render_images", no_browser)
    with pytest.raises(export.ExportError, match=r"need Chrome or Chromium, and none was found.*apt install chromium"):
        export.save_figure(figure, tmp_path, "rates", table=table, formats=("html", "csv", "pdf"))
    assert {path.name for path in tmp_path.iterdir()} == {"rates.html", "rates.csv"}


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(export.ExportError, match=r"a\.json \(No space left on device\): choose another folder"):
        export.write_atomically(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_tables_keep_a_named_index_and_no_formula(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"response": ["=1+1", "fine"], "rate": [-1.0, 2.0]}, index=pd.Index(["a", "b"], name="query_id")
    )
    back = pd.read_csv(export.save_table(table, tmp_path, "t"))
    assert list(back.columns) == ["query_id", "response", "rate"]
    assert list(back["response"]) == ["'=1+1", "fine"]
    assert list(back["rate"]) == [-1.0, 2.0]


def test_a_notebooks_results_are_listed(tmp_path: Path, figure: go.Figure, table: pd.DataFrame) -> None:
    path = export.save_results(
        tmp_path, "03", title="What?", figures={"rates": (figure, table)}, tables={"all": table}, numbers={"auc": 0.5}
    )
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content == {"title": "What?", "figures": ["03_rates"], "tables": ["03_all"], "numbers": {"auc": 0.5}}
    assert (tmp_path / "figures" / "03_rates.json").is_file()
    assert (tmp_path / "tables" / "03_all.csv").is_file()


def test_numbers_of_numpy_and_tables_are_written(tmp_path: Path, table: pd.DataFrame) -> None:
    path = export.save_numbers(tmp_path, "key", {"auc": np.float64(0.5), "table": table.head(1), "name": "demo"})
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["auc"] == 0.5
    assert content["table"][0]["prompt"] == "none"
    with pytest.raises(export.ExportError, match="A object cannot be written"):
        export.save_numbers(tmp_path, "key", {"x": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == content


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


def test_report_is_one_offline_file_with_escaped_text(tmp_path: Path, figure: go.Figure, table: pd.DataFrame) -> None:
    sections = [
        export.section(HOSTILE, text=[HOSTILE], figures={HOSTILE: figure}, tables={HOSTILE: table}),
        export.section("second", figures={"again": figure}),
    ]
    page = export.report(tmp_path / "report.html", sections, title=HOSTILE).read_text(encoding="utf-8")
    assert scripts_from_outside(page) == []
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;alert") >= 6
    assert page.count("plotly.js v") == 1
    assert page.count("Plotly.newPlot(") == 2 + page.split("<body>")[0].count("Plotly.newPlot(")
    assert "<td>0.400</td>" in page
