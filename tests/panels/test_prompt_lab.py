"""The prompt lab without a browser: typed prompts appear, in two stages, and nothing that goes wrong loses anything."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.queries import CARE, NONE, QUERIES
from helpers.tiny import byte_tokenizer, random_llama

import drolab
from drolab import export, panels, tables
from drolab.data import load_prompts, save_prompts
from drolab.errors import PromptError, StatesError
from drolab.evidence import mean_interval, shift_cosines
from drolab.figures import THEMES
from drolab.models import ChatModel, Prompt, wrap
from drolab.panels import PromptLab
from drolab.panels.prompt_lab import view
from drolab.panels.prompt_lab.view import Bench, PromptShelf, Trial
from drolab.probing import coordinates
from drolab.types import AnchorSpace, FitCheck, Probe, SafetyPrompt, SoftPrompt

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> <b>$x$</b> \x00\u202eabc 😀 & \"'"
TEXT = "Refuse what could hurt."
LONG = SafetyPrompt(name="long", text="Never help with what could hurt anybody. Say no.")


@dataclass(frozen=True)
class Fitted:
    """What a lab needs, for a tiny model."""

    model: ChatModel
    space: AnchorSpace
    refusal: Probe
    harmfulness: Probe

    def lab(self, **options: Any) -> PromptLab:
        wanted = {"prompts": [CARE], "n_samples": 1} | options
        fitted = {"space": self.space, "refusal": self.refusal, "harmfulness": self.harmfulness}
        lab = panels.prompt_lab(options.pop("model", self.model), QUERIES, **fitted | wanted)
        lab.controls["measure"].value = False
        return lab


@pytest.fixture(scope="module")
def fitted(tiny_llama: ChatModel) -> Fitted:
    states = drolab.hidden_states(tiny_llama, QUERIES, [NONE, CARE], progress=False)
    space = drolab.fit_anchors(states)
    harmful = QUERIES["harmful"]
    refusal, harmfulness = (
        drolab.fit_probe(space, states, harmful, positive=kind, check=False) for kind in ("refuses", "harmful")
    )
    return Fitted(tiny_llama, space, refusal, harmfulness)


@pytest.fixture
def lab(fitted: Fitted) -> Iterator[PromptLab]:
    made = fitted.lab()
    yield made
    made.job.stop()
    assert made.job.wait(30)


def press(lab: PromptLab, button: str, /, **values: Any) -> str:
    """Set controls, press a button, wait; returns the message."""
    for name, value in values.items():
        lab.controls[name].value = value
    lab.controls[button].click()
    assert lab.job.wait(60)
    return lab.message.value


def traces(lab: PromptLab) -> dict[str, Any]:
    """The drawn traces that are visible, by name."""
    return {trace.name: trace for trace in lab.picture.data if trace.visible is not False}


def axes(lab: PromptLab) -> tuple[Any, Any]:
    return lab.picture.layout.xaxis.range, lab.picture.layout.yaxis.range


# --- projecting


def test_a_typed_prompt_appears_among_the_others(lab: PromptLab) -> None:
    assert set(lab.result()["prompt"]) == {"none", "careful"}
    message = press(lab, "project", text=TEXT, name="shop")
    assert "Projected: shop (all 6 chats computed now)." in message
    assert {"shift: shop, harmful", "shift: shop, harmless", "shift: careful, harmful"} <= set(traces(lab))
    assert traces(lab)["careful, harmful"].marker.opacity < traces(lab)["shop, harmful"].marker.opacity
    rows = lab.result().query("prompt == 'shop'")
    assert list(rows["harmful"]) == [True, False]
    assert rows[["predicted", "predicted_change", "cosine"]].notna().all(axis=None)
    assert rows["cosine_low"].isna().all()  # three queries of a class are too few
    assert rows["measured"].isna().all()
    assert "shop" in lab.table.value
    assert "nan" not in lab.table.value
    assert lab.prompts() == {"shop": SafetyPrompt(name="shop", text=TEXT)}
    assert lab.controls["text"].value == TEXT
    assert lab.controls["name"].value == "shop 2", "ready for the next attempt"


def test_the_arrow_starts_at_the_base(lab: PromptLab) -> None:
    press(lab, "project", text=TEXT, name="shop", base="careful")
    shown = traces(lab)
    assert shown["shift: shop, harmful"].x[0] == pytest.approx(shown["shift: careful, harmful"].x[-1])
    assert shown["shift: shop, harmful"].x[0] != pytest.approx(shown["shift: careful, harmful"].x[0])
    assert set(lab.result().query("prompt == 'shop'")["base"]) == {"careful"}


def test_axes_stay_while_prompts_are_toggled(lab: PromptLab) -> None:
    before = lab.shelf.bench.space.components.clone()
    press(lab, "project", text=TEXT, name="shop")
    fixed = axes(lab)
    lab.controls["compare"].value = ("shop",)
    assert axes(lab) == fixed
    assert "careful, harmful" not in traces(lab)
    assert set(lab.selection()["prompt"]) == {"shop"}
    lab.controls["x"].value = 3
    assert axes(lab) != fixed, "the control"
    assert lab.shelf.bench.space.components.equal(before)


def test_only_what_the_store_lacks_is_computed(fitted: Fitted, store: drolab.Store) -> None:
    press(fitted.lab(store=store), "project", text=TEXT, name="shop")
    message = press(fitted.lab(store=store), "project", text=TEXT, name="another name")
    assert "(all 6 chats found in the store)" in message


def test_another_plane_and_no_plane(lab: PromptLab) -> None:
    lab.controls["y"].value = 1
    assert "two different components" in lab.message.value
    lab.controls["y"].value = 3
    assert lab.message.value == ""
    assert lab.picture.layout.yaxis.title.text.startswith("component 3")


def test_nothing_compared_is_said_in_words(lab: PromptLab) -> None:
    lab.controls["compare"].value = ()
    assert "No prompt is chosen" in lab.message.value
    with pytest.raises(panels.PanelError, match="choose some to compare"):
        lab.selection()
    assert len(lab.result()) == 4


def test_more_prompts_than_colours_show_the_last_ones(lab: PromptLab, tmp_path: Path) -> None:
    prompts = {f"p{i}": SafetyPrompt(name=f"p{i}", text=f"{TEXT} {i}") for i in range(8)}
    path = save_prompts(prompts, tmp_path / "many.yaml")
    press(lab, "load", path=str(path))
    assert lab.controls["compare"].value == ("none", "p2", "p3", "p4", "p5", "p6", "p7")
    assert len(lab.result()) == 20
    lab.controls["compare"].value = ("none", *prompts)
    assert "show fewer prompts at once" in lab.message.value


def test_without_a_refusal_probe_shifts_are_shown_and_replies_are_counted(fitted: Fitted) -> None:
    lab = fitted.lab(refusal=None, problem="It <b>never</b> refuses.")
    assert "no refusal is predicted. It &lt;b&gt;never&lt;/b&gt; refuses." in lab.caution.value
    press(lab, "project", text=TEXT, name="shop")
    assert {"shift: shop, harmful", "shift: shop, harmless"} <= set(traces(lab))
    rows = lab.result()
    assert rows[["predicted", "predicted_change", "cosine", "measured"]].isna().all(axis=None)
    assert "nan" not in lab.table.value
    assert "not known before its replies" in lab.examples.value
    assert "measured refusal rate" in lab.offer()["prompt_lab_refusal"][0].layout.yaxis.title.text
    press(lab, "sample")
    assert lab.result()["measured"].notna().all()
    assert "(measured): none" in lab.examples.value
    assert lab.per_query("shop")["measured_change"].eq(0).all()
    assert "never" in lab.about()["caution"]
    # The control: with a probe, whose absence nobody speaks of.
    assert "no refusal probe" not in fitted.lab(problem="It never refuses.").caution.value


# --- sampling


class Gate:
    """`view.with_replies` that waits before each prompt until it is let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Semaphore(0), threading.Semaphore(0)
        sample = view.with_replies

        def waiting(*arguments: Any, **options: Any) -> Trial:
            self.reached.release()
            assert self.open.acquire(timeout=60)
            return sample(*arguments, **options)

        monkeypatch.setattr(view, "with_replies", waiting)


def test_the_projection_appears_first_and_the_measured_rates_arrive(
    lab: PromptLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    lab.controls["measure"].value, lab.controls["text"].value = True, TEXT
    lab.controls["project"].click()
    assert gate.reached.acquire(timeout=60)
    assert "shift: mine, harmful" in traces(lab)
    assert "Projected: mine" in lab.message.value
    assert lab.result().query("prompt == 'mine'")["measured"].isna().all()
    gate.open.release()
    assert gate.reached.acquire(timeout=60)  # now at the base
    rows = lab.result().query("prompt == 'mine'")
    assert rows["measured"].notna().all()
    assert rows["measured_change"].isna().all()
    gate.open.release()
    assert lab.job.wait(60)
    assert lab.result().query("prompt == 'mine'")["measured_change"].notna().all()
    assert "Sampled: mine, none." in lab.message.value


def test_stopping_the_sampling_keeps_the_projection_and_sample_goes_on(
    lab: PromptLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        gate = Gate(patch)
        lab.controls["measure"].value, lab.controls["text"].value = True, TEXT
        lab.controls["project"].click()
        assert gate.reached.acquire(timeout=60)
        lab.job.stop_button.click()
        gate.open.release()
        assert lab.job.wait(60)
    assert lab.job.state == "stopped"
    assert list(lab.prompts()) == ["mine"]
    assert lab.result()["measured"].isna().all()
    press(lab, "sample", compare=("mine",))
    assert lab.result().query("prompt in ('mine', 'none')")["measured"].notna().all()
    assert lab.result().query("prompt == 'careful'")["measured"].isna().all()
    assert "nothing was missing" in press(lab, "sample")


def test_stopping_the_projection_keeps_the_text(lab: PromptLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "project", ends_by(lambda: lab.job.stop()))
    press(lab, "project", text=TEXT, name="shop")
    assert lab.job.state == "stopped"
    assert lab.prompts() == {}
    assert (lab.controls["text"].value, lab.controls["name"].value) == (TEXT, "shop")


def ends_by(action: Callable[[], None]) -> Callable[..., Any]:
    project = view.project

    def ended(*arguments: Any, **options: Any) -> Any:
        action()
        return project(*arguments, **options)

    return ended


def test_one_work_at_a_time(lab: PromptLab, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    lab.controls["measure"].value, lab.controls["text"].value = True, TEXT
    lab.controls["project"].click()
    assert gate.reached.acquire(timeout=60)
    for name in ("project", "sample", "rename", "remove"):
        lab.controls["prompt"].value = "mine"
        lab.controls[name].click()
        assert "Work is under way: wait, or stop it first" in lab.message.value
    lab.controls["x"].value = 2  # looking is free
    gate.open.release(2)
    assert lab.job.wait(60)
    assert list(lab.prompts()) == ["mine"]


def test_a_probe_that_reads_nothing_is_said_above_all_that_rests_on_it(fitted: Fitted, lab: PromptLab) -> None:
    check = FitCheck(auc=0.5, null=(0.4, 0.6), problem="A readout of 'refuses' is <no> better than chance.")
    doubtful = fitted.lab(refusal=replace(fitted.refusal, check=check))
    assert doubtful.caution in doubtful.children
    assert "is &lt;no&gt; better than chance" in doubtful.caution.value
    press(doubtful, "project", text=TEXT, name="mine")
    assert doubtful.job.wait(30)
    assert "better than chance" in doubtful.caution.value
    assert fitted.lab(refusal=replace(fitted.refusal, check=None)).caution.value == ""


def test_known_scores_need_no_sampling(fitted: Fitted) -> None:
    index = pd.MultiIndex.from_product([["none", "careful"], QUERIES["query_id"]]).swaplevel()
    scores = pd.DataFrame({"refusal_rate": 0.5}, index=index.set_names(["query_id", "prompt"]))
    lab = fitted.lab(scores=scores)
    assert lab.result()["measured"].eq(0.5).all()
    _, low, high = measured = lab.result().loc[0, ["measured", "measured_low", "measured_high"]]
    assert low < 0.3 < 0.7 < high  # three queries alike do not say that all are
    assert tables.interval_words(*measured) in lab.table.value
    with pytest.raises(panels.PanelError, match=r"`scores` must be what drolab.judge returned"):
        fitted.lab(scores=scores.reset_index())


def test_the_queries_that_a_prompt_makes_refused_are_listed(lab: PromptLab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lab.examples.value == "", "`none` is measured against nothing"
    press(lab, "project", text=TEXT)
    found = lab.per_query("mine")
    risen = found[~found["harmful"] & (found["predicted_change"] >= view.RISE)]
    assert [text in lab.examples.value for text in found["text"]] == [
        text in set(risen["text"]) for text in found["text"]
    ]
    with pytest.raises(panels.PanelError, match=r"no prompt 'x' here: choose one of \['none', 'careful', 'mine'\]"):
        lab.per_query("x")
    rows = found.assign(predicted_change=[0.2, 0.1, -0.1, 0, 0, 0], harmful=[False, True, False] * 2, predicted=0.7)
    monkeypatch.setattr(view, "per_query", lambda *_: rows)
    shown = view.raised_as_html(lab.shelf, "mine")
    assert [rows["text"][number] in shown for number in range(6)] == [True] + [False] * 5
    assert ">0.500<" in shown
    assert ">0.700<" in shown
    assert "): 1 of 4 queries (0.250 [" in shown
    assert "<details>" not in shown
    many = pd.concat([rows.assign(harmful=False, predicted_change=0.2)] * 3, ignore_index=True)
    monkeypatch.setattr(view, "per_query", lambda *_: many)
    shown = view.raised_as_html(lab.shelf, "mine")
    assert "): 18 of 18 queries (1.00 [" in shown
    assert shown.count("</td></tr>") == 18, "all are in reach"
    assert shown.index("show all 18") > shown.index("</table>")
    monkeypatch.setattr(view, "per_query", lambda *_: rows.assign(harmful=True))
    assert ": none." in view.raised_as_html(lab.shelf, "mine")


# --- what goes wrong


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": ""}, "no prompt to project: type or paste one"),
        ({"text": " \n "}, "no prompt to project"),
        ({"name": " "}, "has no name: give it one"),
        ({"name": "none"}, "the name of the absence of a prompt"),
        ({"name": " careful "}, "already: choose another name"),
        ({"name": "x" * 100}, "at most 60"),
        ({"text": "x" * 100_000}, "shorten the prompt"),
        ({"text": "half \ud800"}, "lone surrogate"),
        ({"text": "x" * 410, "measure": True}, "leaves room for"),
    ],
)
def test_bad_input_is_said_in_words_and_nothing_is_lost(lab: PromptLab, values: dict[str, Any], message: str) -> None:
    press(lab, "project", text=TEXT, name="kept")
    before = lab.result()
    assert message in press(lab, "project", **{"text": "Another.", "name": "new"} | values)
    assert 'role="alert"' in lab.message.value
    pd.testing.assert_frame_equal(lab.result().iloc[: len(before)], before)
    typed = {name: lab.controls[name].value for name in values}
    assert typed == values or lab.controls["name"].value == "new 2"
    assert "Projected" in press(lab, "project", text="Another.", name="fine", measure=False)


def test_a_template_that_rejects_the_prompt_is_named(fitted: Fitted) -> None:
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no <b>system</b> role') }}{% endif %}"
        "{{ messages[0]['content'] }}?"
    )
    model = wrap(random_llama(), byte_tokenizer(), name="no system", chat_template=template)
    states = drolab.hidden_states(model, QUERIES, NONE, progress=False)
    space = drolab.fit_anchors(states)
    refusal = drolab.fit_probe(space, states, QUERIES["harmful"], positive="refuses")
    lab = panels.prompt_lab(model, QUERIES, prompts=[NONE], space=space, refusal=refusal)
    message = press(lab, "project", text=TEXT)
    assert "rejects a system message" in message
    assert "&lt;b&gt;system" in message
    assert lab.controls["text"].value == TEXT


def test_an_error_in_sampling_keeps_the_projection(lab: PromptLab, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(view, "with_replies", broken)
    assert "ZeroDivisionError: a bug" in press(lab, "project", text=TEXT, measure=True)
    assert list(lab.prompts()) == ["mine"]
    assert lab.job.state == "failed"


def test_a_lab_needs_a_plane(fitted: Fitted) -> None:
    states = drolab.hidden_states(fitted.model, QUERIES, [NONE, CARE], progress=False)
    with pytest.raises(panels.PanelError, match="one component has no plane: fit_anchors"):
        fitted.lab(space=drolab.fit_anchors(states, n_components=1))


def test_hostile_text_is_shown_as_text(lab: PromptLab, tmp_path: Path) -> None:
    text = HOSTILE + "x" * 100
    press(lab, "project", text=text, name=HOSTILE[:60])
    press(lab, "project", text=text, name="second", base=HOSTILE[:60].strip())
    pages = [lab.table.value, lab.examples.value, lab.message.value, lab.picture.figure.to_json()]
    press(lab, "load", path=HOSTILE)
    for page in [*pages, lab.message.value]:
        assert "<script" not in page
        assert "<img" not in page
    assert "&lt;script&gt;" in lab.table.value
    assert lab.prompts()["second"].text == text
    path = tmp_path / "hostile.yaml"
    press(lab, "save", path=str(path))
    assert load_prompts(path) == lab.prompts()


def test_hostile_queries_are_shown_as_text(fitted: Fitted) -> None:
    queries = QUERIES.assign(text=[f"{HOSTILE} {number} {'y' * 200}" for number in range(6)])
    options = {"space": fitted.space, "refusal": fitted.refusal, "prompts": [CARE]}
    lab = panels.prompt_lab(fitted.model, queries, **options)
    lab.controls["prompt"].value = "careful"
    for page in (lab.table.value, lab.examples.value, lab.picture.figure.to_json()):
        assert "<script" not in page
        assert "<img" not in page


# --- keeping


def test_a_prompt_is_copied_renamed_and_removed(lab: PromptLab) -> None:
    press(lab, "copy", prompt="careful")
    assert (lab.controls["text"].value, lab.controls["name"].value) == (CARE.text, "careful 2")
    press(lab, "project")
    press(lab, "rename", name="ours")
    assert list(lab.prompts()) == ["ours"]
    assert lab.controls["compare"].value == ("none", "careful", "ours")
    assert lab.controls["prompt"].value == "ours"
    assert "shift: ours, harmful" in traces(lab)
    assert "shift: careful 2, harmful" not in traces(lab)
    assert "was here from the start" in press(lab, "remove", prompt="careful")
    press(lab, "remove", prompt="ours")
    assert lab.prompts() == {}
    assert "shift: ours, harmful" not in traces(lab)
    assert lab.controls["prompt"].value == "none"
    press(lab, "copy")
    assert (lab.controls["text"].value, lab.controls["name"].value) == ("", "mine")


def test_the_browser_never_hears_of_a_choice_that_is_not_offered(lab: PromptLab) -> None:
    """It looks up what is chosen whenever the options change."""
    compare, seen = lab.controls["compare"], list[bool]()
    press(lab, "project", text=TEXT)
    compare.observe(lambda change: seen.append(max(compare.index, default=-1) < len(change.new)), "_options_labels")
    press(lab, "remove", prompt="mine")
    assert seen == [True]


def test_a_soft_prompt_is_compared_but_has_no_text(fitted: Fitted) -> None:
    embeddings = fitted.model.embed(torch.tensor([5, 6, 7]))
    lab = fitted.lab(prompts=[CARE, SoftPrompt(name="dro", embeddings=embeddings)])
    assert "shift: dro, harmful" in traces(lab)
    assert "has no text to copy" in press(lab, "copy", prompt="dro")
    press(lab, "project", text=TEXT, base="dro")
    assert set(lab.result().query("prompt == 'mine'")["base"]) == {"dro"}


def test_prompts_are_saved_and_loaded(lab: PromptLab, fitted: Fitted, tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "mine.yaml")
    assert "no prompts to save" in press(lab, "save", path=path)
    press(lab, "project", text=TEXT)
    press(lab, "project", text=TEXT + " Please.")
    assert "mine.yaml: mine, mine 2. drolab.load_prompts reads it." in press(lab, "save")
    assert load_prompts(path) == lab.prompts()
    assert "is there already: choose another name, or tick `overwrite`" in press(lab, "save")
    assert "Saved" in press(lab, "save", overwrite=True)
    other = fitted.lab()
    assert "Projected: mine, mine 2" in press(other, "load", path=path, base="careful")
    assert other.prompts() == lab.prompts()
    assert set(other.result().query("prompt == 'mine 2'")["base"]) == {"careful"}
    assert "is here already" in press(other, "load")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("careful: Something else.", "a prompt &#x27;careful&#x27; already"),
        (f"careful: {CARE.text}", "is here already: there is nothing to load"),
        ("- x", "must map names to texts"),
        (None, "nor a file: check the path"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(
    lab: PromptLab, tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "file.yaml"
    if content is not None:
        path.write_text(content)
    assert message in press(lab, "load", path=str(path))
    assert lab.prompts() == {}


def test_a_path_is_needed_and_a_home_is_known(lab: PromptLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "There is no path: type one" in press(lab, "save", path=" ")
    press(lab, "project", text=TEXT)
    press(lab, "save", path="~/mine.yaml")
    assert (tmp_path / "mine.yaml").is_file()


# --- taking away


def test_the_export_gets_what_is_shown(lab: PromptLab, tmp_path: Path) -> None:
    press(lab, "project", text=TEXT)
    lab.controls["compare"].value = ("none", "mine")
    offered = lab.offer()
    figure, points = offered["prompt_lab_projection"]
    assert set(points["prompt"]) == {"none", "mine"}
    assert "shift: mine, harmful" in {trace.name for trace in figure.data}
    bars, rates = offered["prompt_lab_refusal"]
    assert bars.layout.yaxis.title.text == "predicted refusal rate"
    pd.testing.assert_frame_equal(rates, lab.selection())
    press(lab, "sample")
    assert lab.offer()["prompt_lab_refusal"][0].layout.yaxis.title.text == "measured refusal rate"
    about = lab.about()
    assert about["prompts"]["mine"] == TEXT
    assert about["bases"]["mine"] == "none"
    lab.export_box.panel.controls["folder"].value = str(tmp_path)
    lab.export_box.panel.controls["export"].click()
    assert lab.export_box.job.wait(60)
    assert {"prompt_lab_projection.html", "prompt_lab_refusal.csv"} <= {path.name for path in lab.export_box.paths}


def manifest(lab: PromptLab, folder: Path) -> dict[str, Any]:
    lab.export_box.panel.controls["folder"].value = str(folder)
    lab.export_box.panel.controls["export"].click()
    assert lab.export_box.job.wait(60)
    settings: dict[str, Any] = json.loads((folder / "prompt_lab_projection.manifest.json").read_text())["settings"]
    return settings


@pytest.mark.parametrize("kind", ["nothing", "table", "callable"])
def test_the_manifest_has_every_prompt_that_is_shown_with_its_text(fitted: Fitted, tmp_path: Path, kind: str) -> None:
    """What was given for it, before the panel was made, cannot know the prompts that came after."""
    stated = export.about(fitted.model, [CARE], settings={"mine": 7})
    lab = fitted.lab(about={"nothing": None, "table": stated, "callable": lambda: stated}[kind])
    press(lab, "project", text=TEXT)
    press(lab, "project", text=HOSTILE, name="second", base="mine")
    press(lab, "rename", name="renamed", prompt="second")
    found = manifest(lab, tmp_path)
    shown = pd.read_csv(tmp_path / "prompt_lab_projection.csv")["prompt"].unique()
    assert {"none", "careful", "mine", "renamed"} == {*shown} == {*found["prompts"]}
    assert found["prompts"]["careful"] == CARE.text
    assert found["prompts"]["mine"] == TEXT
    assert found["prompts"]["renamed"] == HOSTILE
    assert found["bases"]["renamed"] == "mine"
    assert "prompts_without_text" not in found
    assert found.get("mine") == (None if kind == "nothing" else 7)


def test_the_text_that_is_shown_wins_over_one_that_was_stated(fitted: Fitted, tmp_path: Path) -> None:
    lab = fitted.lab(about=export.about(prompts={"mine": SafetyPrompt(name="mine", text="An older text.")}))
    press(lab, "project", text=TEXT)
    assert manifest(lab, tmp_path)["prompts"]["mine"] == TEXT


def test_controls_are_labelled_and_say_what_they_do(lab: PromptLab) -> None:
    assert all(control.description and control.tooltip for control in lab.controls.values())


def test_a_dark_theme(fitted: Fitted) -> None:
    dark, light = (fitted.lab(theme=theme).picture.layout.template.layout for theme in ("dark", "light"))
    assert (dark.paper_bgcolor, light.paper_bgcolor) == tuple(THEMES[theme]["paper"] for theme in ("dark", "light"))


# --- the numbers behind it: equal to those made by hand, paired, and known only where sampled


@pytest.fixture(scope="module")
def bench(tiny_llama: ChatModel) -> Bench:
    states = drolab.hidden_states(tiny_llama, QUERIES, [NONE, CARE], progress=False)
    space = drolab.fit_anchors(states)
    refusal = drolab.fit_probe(space, states, QUERIES["harmful"], positive="refuses")
    return Bench(model=tiny_llama, queries=QUERIES, space=space, refusal=refusal, n_samples=2)


@pytest.fixture(scope="module")
def trials(bench: Bench) -> dict[str, Trial]:
    return view.project(bench, {"none": NONE, "careful": CARE, "long": LONG})


def rated(trial: Trial, rates: list[float]) -> Trial:
    return replace(trial, measured=np.array(rates))


# --- projecting and sampling


def test_a_prompt_is_placed_into_the_space_as_it_is(bench: Bench, trials: dict[str, Trial]) -> None:
    mean, components = bench.space.mean.clone(), bench.space.components.clone()
    states = drolab.hidden_states(bench.model, QUERIES, LONG, progress=False)
    places = coordinates(bench.space, states)
    assert np.allclose(trials["long"].places, places, atol=1e-5)
    assert np.allclose(trials["long"].predicted, bench.refusal.decision_function(places).sigmoid(), atol=1e-6)
    assert trials["long"].n_tokens == len(LONG.text), "one token per byte"
    assert trials["long"].measured is None
    assert torch.equal(bench.space.mean, mean)
    assert torch.equal(bench.space.components, components)


def test_replies_are_as_long_and_judged_as_it_is_said(bench: Bench, trials: dict[str, Trial]) -> None:
    seen: list[str] = []

    def refuses_all(response: str) -> bool:
        seen.append(response)
        return True

    sampled = view.with_replies(replace(bench, max_new_tokens=3, judge=refuses_all), trials["careful"])
    assert (np.asarray(sampled.measured) == 1.0).all()
    assert 0 < max(map(len, seen)) <= 3, "one token per byte"


def test_a_soft_prompt_is_measured_too(bench: Bench) -> None:
    soft = SoftPrompt(name="soft", embeddings=torch.zeros(5, bench.model.hidden_size))
    trial = view.project(bench, {"mine": soft})["mine"]
    assert (trial.name, trial.n_tokens) == ("mine", 5)


def test_sampled_rates_are_those_of_the_judge_and_are_kept_in_the_store(
    bench: Bench, trials: dict[str, Trial], store: drolab.Store
) -> None:
    kept, heard = replace(bench, store=store), list[tuple[int, int]]()
    sampled = view.with_replies(kept, trials["careful"])
    replies = drolab.generate(bench.model, QUERIES, CARE, n_samples=2, progress=False)
    assert np.array_equal(sampled.measured, drolab.judge(replies)["refusal_rate"])
    view.with_replies(kept, trials["careful"], progress=lambda done, total: heard.append((done, total)))
    assert heard == [(12, 12)]


def test_scores_that_lack_a_query_or_the_prompt_are_not_taken(trials: dict[str, Trial]) -> None:
    rows = pd.MultiIndex.from_product([QUERIES["query_id"], ["careful"]], names=["query_id", "prompt"])
    scores = pd.DataFrame({"refusal_rate": np.arange(6) / 5}, index=rows).iloc[::-1]
    assert np.array_equal(trials["careful"].scored(scores).measured, np.arange(6) / 5)
    assert trials["careful"].scored(scores.iloc[1:]).measured is None
    assert trials["long"].scored(scores).measured is None


def test_a_prompt_longer_than_the_context_is_refused(bench: Bench) -> None:
    with pytest.raises(PromptError, match=r"'x' has 600 tokens, but .* shorten the prompt"):
        view.project(bench, {"x": SafetyPrompt(name="x", text="x" * 600)})


def test_the_probe_must_be_positive_for_refuses(bench: Bench) -> None:
    harmful = Probe(coef=bench.refusal.coef, intercept=0.0, positive="harmful")
    with pytest.raises(StatesError, match="positive for 'harmful': fit it with positive='refuses'"):
        replace(bench, refusal=harmful)


# --- measuring


def test_rates_and_cosines_are_those_made_by_hand(bench: Bench, trials: dict[str, Trial]) -> None:
    table = view.effects(bench, trials["long"], trials["careful"]).set_index("harmful")
    predicted = pd.Series(trials["long"].predicted[:3])
    by_hand = mean_interval(predicted, QUERIES["query_id"][:3])
    assert tuple(table.loc[True, ["predicted", "predicted_low", "predicted_high"]]) == by_hand
    states = drolab.hidden_states(bench.model, QUERIES, [CARE, LONG], progress=False)
    direction = {"refusal": bench.refusal.direction(bench.space)}
    cosines = shift_cosines(states, direction, baseline="careful").query("b == 'refusal'").set_index("a")
    for harmful, name in ((True, "long harmful"), (False, "long harmless")):
        found = table.loc[harmful, ["cosine", "cosine_low", "cosine_high"]].to_numpy(dtype=float)
        assert found == pytest.approx(
            cosines.loc[name, ["cosine", "low", "high"]].to_numpy(dtype=float), abs=1e-4, nan_ok=True
        )
    assert (table["n_queries"] == 3).all()
    assert (table["base"] == "careful").all()


def test_changes_are_paired_by_query(bench: Bench, trials: dict[str, Trial]) -> None:
    """Queries that all rise by .1 tell the same of the change, however unlike each other they are."""
    base = rated(trials["none"], [0.0, 0.4, 0.8, 0.0, 0.0, 0.3])
    trial = rated(trials["long"], [0.1, 0.5, 0.9, 0.0, 0.3, 0.0])
    table = view.effects(bench, trial, base).set_index("harmful")
    change = ["measured_change", "measured_change_low", "measured_change_high"]
    by_hand = mean_interval([0.1] * 3, range(3), bounds=(-1, 1))
    assert list(table.loc[True, change]) == pytest.approx(by_hand)
    assert by_hand.low < 0
    assert table.loc[True, "measured_high"] - table.loc[True, "measured_low"] > 0.3
    assert table.loc[False, "measured_change"] == pytest.approx(0)
    assert table.loc[False, "measured_change_high"] > 0.1, "the control: of another size in each query"


def test_what_was_not_sampled_is_unknown(bench: Bench, trials: dict[str, Trial]) -> None:
    sampled = rated(trials["long"], [0.0] * 6)
    table = view.effects(bench, sampled, trials["none"])
    assert table["measured"].eq(0).all()
    assert table["measured_change"].isna().all()
    alone = view.effects(bench, sampled, sampled)
    assert alone[["predicted_change", "cosine", "cosine_low"]].isna().all(axis=None)
    assert alone["base"].isna().all()


def test_the_same_text_changes_nothing(bench: Bench, trials: dict[str, Trial]) -> None:
    again = view.project(bench, {"again": CARE}, base="careful")["again"]
    table = view.effects(bench, again, trials["careful"])
    assert table["predicted_change"].abs().max() < 1e-6


def test_one_class_is_enough(bench: Bench) -> None:
    harmless = replace(bench, queries=QUERIES[~QUERIES["harmful"]])
    found = view.project(harmless, {"none": NONE, "careful": CARE})
    table = view.effects(harmless, found["careful"], found["none"])
    assert list(table["harmful"]) == [False]
    assert table["cosine"].notna().all()


def test_queries_are_ordered_by_the_measured_rise(bench: Bench, trials: dict[str, Trial]) -> None:
    base, trial = rated(trials["none"], [0.0] * 6), rated(trials["long"], [0.1, 0.0, 0.5, 0.9, 0.0, 0.2])
    assert list(view.per_query(bench, trial, base)["query_id"][:4]) == ["q3", "q2", "q5", "q0"]
    guessed = view.per_query(bench, trial, trials["none"])
    assert guessed["measured_change"].isna().all()
    assert guessed["predicted_change"].is_monotonic_decreasing


def test_points_have_their_place_and_rate(trials: dict[str, Trial]) -> None:
    points = view.trial_points(rated(trials["long"], [0.5] * 6))
    assert list(points["component_2"]) == list(trials["long"].places[:, 1])
    assert points["refusal_rate"].eq(0.5).all()
    assert view.trial_points(trials["long"])["refusal_rate"].isna().all()


# --- the shelf


@pytest.fixture
def shelf(bench: Bench, trials: dict[str, Trial]) -> PromptShelf:
    made = PromptShelf(bench, {name: trials[name] for name in ("none", "careful")})
    prompts: dict[str, Prompt] = {"mine": LONG}
    made.put(view.project(bench, prompts, base="careful"))
    return made


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("  ", "has no name"),
        ("none", "the name of the absence of a prompt"),
        ("mine", "a prompt 'mine' already: choose another name"),
        ("x" * 61, "has 61 characters: choose one of at most 60"),
    ],
)
def test_names_are_checked(shelf: PromptShelf, name: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        shelf.check_name(name)
    with pytest.raises(PromptError, match=message):
        shelf.rename("mine", name)
    assert list(shelf.own()) == ["mine"]


def test_a_free_name_is_found(shelf: PromptShelf) -> None:
    assert shelf.free_name("other") == "other"
    assert shelf.free_name("mine") == "mine 2"
    shelf.put({"mine 2": shelf.trials["mine"]})
    assert shelf.free_name("mine") == shelf.free_name("mine 2") == "mine 3"


def test_renaming_keeps_the_order_and_what_is_measured_against_it(bench: Bench, shelf: PromptShelf) -> None:
    shelf.put(view.project(bench, {"last": CARE}, base="mine"))
    before = shelf.table(shelf.trials)
    shelf.rename("mine", "ours")
    assert list(shelf.trials) == ["none", "careful", "ours", "last"]
    assert shelf.own()["ours"] == SafetyPrompt(name="ours", text=LONG.text)
    after = shelf.table(shelf.trials)
    assert list(after["base"].dropna().unique()) == ["none", "careful", "ours"]
    pd.testing.assert_frame_equal(before.drop(columns=["prompt", "base"]), after.drop(columns=["prompt", "base"]))


def test_what_is_needed_stays(bench: Bench, shelf: PromptShelf) -> None:
    shelf.put(view.project(bench, {"last": CARE}, base="mine"))
    with pytest.raises(PromptError, match="'mine' is the base of 'last': remove that one first"):
        shelf.remove("mine")
    for change in (lambda: shelf.remove("careful"), lambda: shelf.rename("careful", "x")):
        with pytest.raises(PromptError, match=r"'careful' was here from the start and stays: choose one of \['mine'"):
            change()
    shelf.remove("last")
    shelf.remove("mine")
    assert shelf.own() == {}


def test_bases_are_sampled_after_the_prompts(shelf: PromptShelf) -> None:
    assert shelf.unsampled(["mine"]) == ["mine", "careful"]
    shelf.put({"careful": rated(shelf.trials["careful"], [0.0] * 6)})
    assert shelf.unsampled(["mine", "none"]) == ["mine", "none"]


def test_a_prompt_is_measured_once_and_again_when_more_is_known(
    shelf: PromptShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, effects = list[str](), view.effects

    def noted(bench: Bench, trial: Trial, base: Trial) -> pd.DataFrame:
        measured.append(trial.name)
        return effects(bench, trial, base)

    monkeypatch.setattr(view, "effects", noted)
    shelf.table(["none", "mine"])
    shelf.table(["mine", "none"])
    assert measured == ["none", "mine"]
    shelf.put({"careful": rated(shelf.trials["careful"], [0.0] * 6)})  # the base of `mine`
    shelf.table(["mine", "none"])
    assert measured == ["none", "mine", "mine"]


# --- kept prompts


def test_what_is_made_is_there_in_the_next_panel(fitted: Fitted, tmp_path: Path) -> None:
    file = tmp_path / "kept.yaml"
    first = fitted.lab(keep=file)
    press(first, "project", text=TEXT, name="shop")
    other = fitted.lab(keep=str(file))  # as a second page of the app: it begins with the same and goes its own way
    assert other.job.wait(60)
    assert other.prompts() == first.prompts() == {"shop": SafetyPrompt(name="shop", text=TEXT)}
    assert other.result().query("prompt == 'shop'")["measured"].isna().all()
    press(other, "project", text=HOSTILE, name="hostile")
    press(first, "rename", prompt="shop", name="market")
    third = fitted.lab(keep=file)
    assert third.job.wait(60)
    assert {name: prompt.text for name, prompt in third.prompts().items()} == {"hostile": HOSTILE, "market": TEXT}
    for name in ("hostile", "market"):
        press(third, "remove", prompt=name)
    assert not file.exists()
    assert fitted.lab(keep=file).prompts() == {}


def test_a_file_that_is_none_is_told_and_left_alone(fitted: Fitted, tmp_path: Path) -> None:
    file = tmp_path / "kept.yaml"
    file.write_text("- no mapping")
    lab = fitted.lab(keep=file)
    assert "kept.yaml" in lab.message.value
    assert file.read_text() == "- no mapping"


def test_the_button_says_whether_it_samples(lab: PromptLab) -> None:
    assert lab.controls["project"].description == "Project"
    lab.controls["measure"].value = True
    assert lab.controls["project"].description == "Project, then sample"
