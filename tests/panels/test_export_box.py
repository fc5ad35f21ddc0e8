"""The export box: what a panel shows is written in a thread, errors are shown in words, names stay text."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go
import pytest

import drolab
from drolab import export, panels
from drolab.export import bundles

HOSTILE = "<img src=x onerror=alert(1)>"
TABLE = pd.DataFrame({"text": [HOSTILE, "=1+1"], "value": [1.0, 2.0]})


def offer() -> dict[str, tuple[go.Figure | None, pd.DataFrame]]:
    return {"plane": (go.Figure(go.Scatter(x=[0, 1], y=[0, 1])), TABLE), "chosen": (None, TABLE.head(1))}


@pytest.fixture
def box(tmp_path: Path) -> panels.ExportBox:
    return made(tmp_path, offer, {"model": {"name": "demo"}, "seed": 3})


def made(folder: Path, offer: Callable[[], Any], about: Any = None) -> panels.ExportBox:
    box = panels.ExportBox(offer, about)
    box.panel.controls["folder"].value = str(folder)
    return box


def press(box: panels.ExportBox) -> None:
    box.panel.controls["export"].click()
    assert box.job.wait(60)


def names(box: panels.ExportBox) -> list[str]:
    return [path.name for path in box.paths]


def test_a_press_writes_what_is_shown_and_lists_it(box: panels.ExportBox, tmp_path: Path) -> None:
    press(box)
    assert names(box) == ["plane.html", "plane.csv", "chosen.csv", "plane.manifest.json"]
    assert all(path.is_file() for path in box.paths)
    assert all(f"<li>{name}</li>" in box.status.value for name in names(box))
    assert str(tmp_path) in box.status.value
    found = json.loads((tmp_path / "plane.manifest.json").read_text(encoding="utf-8"))
    assert found["seed"] == 3
    assert found["model"] == {"name": "demo"}
    assert set(found["files"]) == {"plane.html", "plane.csv", "chosen.csv"}


def test_prompts_that_are_shown_and_not_described_are_named(tmp_path: Path) -> None:
    """A panel of tables knows its prompts by name only: silence would read as if all were described."""
    shown = pd.DataFrame({"prompt": ["none", "careful", HOSTILE, HOSTILE], "value": 1.0})
    runs = pd.DataFrame({"run": ["run-1"], "prompt": ["dro-careful"]})
    offered = {"rates": (None, shown), "runs": (None, runs)}
    box = made(
        tmp_path, lambda: offered, export.about(prompts={"careful": drolab.SafetyPrompt(name="c", text="Care.")})
    )
    press(box)
    settings = json.loads((tmp_path / "rates.manifest.json").read_text(encoding="utf-8"))["settings"]
    assert settings["prompts"] == {"careful": "Care."}
    assert settings["prompts_without_text"] == [HOSTILE]
    assert "lacks the texts of these prompts: &lt;img" in box.status.value
    assert "<img" not in box.status.value
    box = made(tmp_path, lambda: {"rates": (None, shown.head(2))}, box._about)
    press(box)
    assert "prompts_without_text" not in (tmp_path / "rates.manifest.json").read_text(encoding="utf-8")
    assert "lacks" not in box.status.value


def test_every_press_asks_again(tmp_path: Path) -> None:
    count = iter(range(9))
    box = made(tmp_path, lambda: {"t": (None, pd.DataFrame({"n": [next(count)]}))}, lambda: {"seed": 10 + next(count)})
    for expected in (1, 3):
        press(box)
        assert pd.read_csv(tmp_path / "t.csv")["n"].item() == expected
    assert json.loads((tmp_path / "t.manifest.json").read_text())["seed"] == 12


def test_it_is_closed_and_every_control_is_labelled(box: panels.ExportBox) -> None:
    assert box.selected_index is None
    assert box.get_title(0) == "Export"
    assert all(control.description and control.tooltip for control in box.panel.controls.values())
    formats = box.panel.controls["formats"]
    assert tuple(kind for _, kind in formats.options) == export.BUNDLE_FORMATS


def test_only_paper_has_columns(box: panels.ExportBox) -> None:
    width, style = box.panel.controls["width"], box.panel.controls["style"]
    style.value = "slide"
    assert width.disabled
    style.value = "print"
    assert not width.disabled


def test_the_choices_reach_the_bundle(box: panels.ExportBox, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def bundle(figures: Any, folder: str, **options: Any) -> list[Path]:
        seen.update(options, figures=figures, folder=folder)
        return []

    monkeypatch.setattr(export, "bundle", bundle)
    for name, value in {"formats": ("svg", "pdf"), "width": "single", "style": "print"}.items():
        box.panel.controls[name].value = value
    press(box)
    assert seen["formats"] == ("svg", "pdf")
    assert (seen["width"], seen["style"]) == ("single", "print")
    assert list(seen["figures"]) == ["plane", "chosen"]


def test_errors_are_words_and_what_was_written_is_listed(
    box: panels.ExportBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chrome")
    box.panel.controls["formats"].value = ("pdf",)
    press(box)
    assert "none was found" in box.panel.message.value
    assert set(names(box)) == {"plane.html", "plane.csv", "chosen.csv", "plane.manifest.json"}
    assert "<li>plane.html</li>" in box.status.value
    (tmp_path / "file").write_text("x")
    box.panel.controls["folder"].value = str(tmp_path / "file" / HOSTILE)
    press(box)
    assert "Cannot write" in box.panel.message.value
    assert "<img" not in box.panel.message.value
    assert names(box) == []
    assert box.status.value == ""


@pytest.mark.parametrize(("control", "value"), [("folder", "  "), ("formats", ())])
def test_nothing_chosen_says_so(box: panels.ExportBox, control: str, value: Any) -> None:
    box.panel.controls[control].value = value
    press(box)
    assert "name a folder, and choose at least one format" in box.panel.message.value


def test_an_offer_that_fails_says_so(tmp_path: Path) -> None:
    def nothing_yet() -> dict[str, Any]:
        raise panels.PanelError("Nothing is shown: press Project first.")

    box = made(tmp_path, nothing_yet)
    press(box)
    assert "press Project first" in box.panel.message.value


def test_hostile_names_are_text(tmp_path: Path) -> None:
    box = made(tmp_path / HOSTILE, offer)
    press(box)
    assert "<img" not in box.status.value
    assert "&lt;img" in box.status.value
    box = made(tmp_path, lambda: {HOSTILE: (None, TABLE)})
    press(box)
    assert "is no file name" in box.panel.message.value
    assert "<img" not in box.panel.message.value


def test_other_work_goes_on_meanwhile_and_a_second_press_waits(
    box: panels.ExportBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(*_: Any, **__: Any) -> list[Path]:
        started.set()
        assert go_on.wait(30)
        return []

    monkeypatch.setattr(export, "bundle", slow)
    box.panel.controls["export"].click()
    assert started.wait(30)
    assert "Writing" in box.status.value
    box.panel.controls["export"].click()
    assert "still running" in box.panel.message.value
    go_on.set()
    assert box.job.wait(30)


def test_stop_ends_the_images(box: panels.ExportBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def render(*_: Any, progress: Callable[[int, int], None]) -> None:
        progress(0, 2)
        box.job.stop()
        progress(1, 2)

    monkeypatch.setattr(bundles, "render_images", render)
    box.panel.controls["formats"].value = ("csv", "png")
    press(box)
    assert "stopped" in box.job.label.value
    assert {path.name for path in tmp_path.iterdir()} == {"plane.csv", "chosen.csv", "plane.manifest.json"}


@pytest.mark.skipif(not any(map(shutil.which, ("chromium", "google-chrome"))), reason="no Chrome to export with")
@pytest.mark.filterwarnings("default")  # the browser driver's, on some Python versions
def test_images_show_their_progress(box: panels.ExportBox) -> None:
    box.panel.controls["formats"].value = ("svg", "pdf")
    press(box)
    assert names(box)[:2] == ["plane.svg", "plane.pdf"]
    assert isinstance(box.job.bar, widgets.IntProgress)
    assert box.job.label.value == "2 of 2"
