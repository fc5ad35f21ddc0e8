"""The DRO panel: settings, live training that pauses, stops and resumes, replay, runs side by side and in files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.dro_panel import LONG_RUN, PROMPTS, panel_of
from helpers.kernel import SECONDS, Kernel
from helpers.training import QUERIES, Setting, assert_equal_runs, failing, setting_of

from drolab import dro, export, panels
from drolab.dro import baselines, training
from drolab.errors import StatesError, TrainingError
from drolab.judges import FirstTokenJudge
from drolab.models import ChatModel
from drolab.panels import DROPanel, PanelError
from drolab.panels.dro.settings import DROSettings
from drolab.store import Store
from drolab.types import DROConfig, DRORun, FitCheck, SoftPrompt

pytestmark = pytest.mark.usefixtures("one_thread")

JUDGE = FirstTokenJudge(
    tokens=torch.arange(4, 200), refusal_rate=torch.linspace(0, 1, 196), counts=torch.ones(196, dtype=torch.int64)
)


@pytest.fixture(scope="module")
def setting(tiny_llama: ChatModel) -> Setting:
    return setting_of(tiny_llama)


def train(panel: DROPanel) -> None:
    panel.controls["start"].click()
    assert panel.wait(SECONDS)
    assert panel.message.value == ""


@pytest.fixture(scope="module")
def trained(setting: Setting) -> DROPanel:
    panel = panel_of(setting, judge=JUDGE, test_queries=QUERIES.iloc[[0, 1, 8, 9]])
    train(panel)
    return panel


def test_a_training_that_is_running_is_found_again_in_a_new_panel(setting: Setting) -> None:
    first = panel_of(setting, config=LONG_RUN)
    assert "running" not in first.controls
    first.controls["start"].click()
    first.job.pause()
    again = panel_of(setting)  # the same cell, run once more
    assert "1 training is running" in again.children[0].children[0].value
    again.controls["running"].click()
    assert list(again.children) == [first]
    again.job.resume()
    again.job.stop()
    assert again.wait(SECONDS)
    assert again.runs().keys() == first.runs().keys() == {"run-1"}
    assert "running" not in panel_of(setting).controls


# --- settings -----------------------------------------------------------------------------------------------


def test_what_the_training_rests_on_is_said_above_it(setting: Setting) -> None:
    check = FitCheck(auc=0.5, null=(0.4, 0.6), problem="A readout of 'refuses' is no better than chance.")
    doubtful = replace(setting, refusal=replace(setting.refusal, check=check))
    assert "no better than chance" in panel_of(doubtful).caution.value
    few = FirstTokenJudge(
        tokens=torch.arange(5),
        refusal_rate=torch.zeros(5),
        counts=torch.ones(5, dtype=torch.int64),
        problem="Too <few>.",
    )
    assert "Too &lt;few&gt;." in panel_of(setting, judge=few).caution.value
    assert panel_of(setting).caution.value == ""


def test_every_setting_has_a_labelled_control_that_says_what_it_does() -> None:
    settings = DROSettings()
    assert {part.name for part in fields(DROConfig)} <= set(settings.controls)
    assert all(control.description and control.tooltip for control in settings.controls.values())
    assert settings.config() == DROConfig(checkpoint_every=10)


def test_a_preset_fills_the_controls_and_a_change_makes_it_ones_own() -> None:
    settings = DROSettings()
    controls = settings.controls
    controls["seed"].value = 7
    assert controls["preset"].value == "default"
    controls["preset"].value = "paper"
    assert settings.config() == DROConfig.preset("paper", seed=7, checkpoint_every=10)
    controls["learning_rate"].value = 7e-4
    assert (controls["preset"].value, settings.config().learning_rate) == ("own", 7e-4)
    controls["preset"].value = "default"
    assert settings.config() == DROConfig(seed=7, checkpoint_every=10)


def test_a_term_is_switched_off_by_its_tick() -> None:
    settings = DROSettings()
    settings.controls["residual_term"].value = False
    assert settings.config() == DROConfig(residual_weight=0.0, checkpoint_every=10)
    assert settings.controls["residual_weight"].disabled
    settings.controls["residual_term"].value = True
    assert settings.config().residual_weight == DROConfig().residual_weight


def test_a_panel_needs_both_probes(setting: Setting) -> None:
    with pytest.raises(StatesError, match="There is no refusal probe, so nothing can be trained"):
        panel_of(replace(setting, refusal=None))


def test_only_prompts_with_a_text_can_be_started_from(setting: Setting) -> None:
    assert dict(panel_of(setting).controls["init"].options) == {"careful": "careful"}
    with pytest.raises(PanelError, match="None of the prompts has a text"):
        panels.dro(
            setting.model,
            QUERIES,
            prompts={"none": PROMPTS["none"]},
            space=setting.space,
            refusal=setting.refusal,
            harmfulness=setting.harmfulness,
        )


# --- training -----------------------------------------------------------------------------------------------


def test_a_run_equals_that_of_train_dro(setting: Setting, trained: DROPanel) -> None:
    assert_equal_runs(trained.result(), setting.train())
    assert list(trained.runs()) == ["run-1"]
    history = trained.history()
    assert (len(history), set(history["run"])) == (9, {"run-1"})
    assert trained.controls["start"].disabled is False


def test_curves_show_the_history_on_a_fixed_axis(trained: DROPanel) -> None:
    thin = trained.curves.data[0]
    assert list(thin.x) == list(range(1, 10))
    assert list(thin.y) == trained.history()["refusal_loss"].tolist()
    assert tuple(trained.curves.layout.xaxis.range) == pytest.approx((-0.18, 9.18))


def test_measurements_are_those_of_the_judge(setting: Setting, trained: DROPanel) -> None:
    measured = trained.measured()
    assert sorted(measured["step"].unique()) == [0, 4, 8, 9]
    assert len(measured) == 4 * 2 * 2  # steps, query sets, classes
    scores = JUDGE.score(setting.model, QUERIES, trained.result().soft_prompt)
    harmless = scores.loc[~scores["harmful"], ["refusal", "compliance", "other"]].mean()
    rows = measured[(measured["step"] == 9) & (measured["queries"] == "training") & ~measured["harmful"]]
    assert rows[["refusal", "compliance", "other"]].iloc[0].to_list() == pytest.approx(harmless.to_list())
    assert measured.groupby(["step", "queries", "harmful"])[["refusal", "compliance", "other"]].sum().sum(
        axis=1
    ).to_numpy() == pytest.approx(1.0)
    names = {trace.name for trace in trained.curves.data}
    assert {"harmful, training queries", "harmless, test queries"} <= names


def stopping(panel: DROPanel, after: int, act: Callable[[], None]) -> Callable[..., Any]:
    """`forward_states` that does `act` in the step after `after`, as a user's hand might at that moment."""
    calls = iter(range(1, 1000))
    original = training.forward_states

    def forward(*args: Any, **options: Any) -> Any:
        if next(calls) == after + 1:
            act()
        return original(*args, **options)

    return forward


def until(panel: DROPanel, shown: Callable[[], bool]) -> None:
    """Wait for a state that the panel shows while its training is not at its end."""
    end = time.monotonic() + SECONDS
    while not shown():
        assert time.monotonic() < end
        assert not panel.wait(0.01)


@pytest.mark.parametrize("with_store", [True, False])
def test_a_stopped_run_is_usable_and_goes_on_to_the_same_end(
    setting: Setting, store: Store, monkeypatch: pytest.MonkeyPatch, with_store: bool
) -> None:
    panel = panel_of(setting, store if with_store else None)
    with monkeypatch.context() as patch:
        patch.setattr(training, "forward_states", stopping(panel, 5, panel.job.stop_button.click))
        train(panel)
    assert (panel.job.state, len(panel.result().history)) == ("stopped", 6)
    assert "stopped at 6 of 9" in panel.shelf.table.value
    assert list(panel.curves.data[0].x) == [1, 2, 3, 4, 5, 6]
    assert list(panel.result().snapshots) == [0, 4, 6]
    panel = panel_of(setting, store) if with_store else panel  # as in another kernel
    train(panel)
    assert list(panel.runs()) == ["run-1"]
    assert_equal_runs(panel.result(), setting.train())


def test_a_paused_training_stands_still(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = panel_of(setting)
    paused = panel.job.pause_button
    monkeypatch.setattr(training, "forward_states", stopping(panel, 2, paused.click))
    panel.controls["start"].click()

    def drawn() -> list[int]:
        return [step for trace in panel.curves.data[:1] for step in trace.x]

    until(panel, lambda: "paused" in panel.shelf.table.value)  # the step in flight ends first
    assert panel.job.state == "paused"
    assert drawn() == [1, 2, 3]
    assert len(panel.result().history) == 3
    paused.click()
    assert panel.wait(SECONDS)
    assert len(panel.result().history) == 9


def test_two_trainings_at_once_are_refused(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = panel_of(setting)
    monkeypatch.setattr(training, "forward_states", stopping(panel, 2, panel.job.pause_button.click))
    panel.controls["start"].click()
    until(panel, lambda: panel.job.state == "paused")
    assert panel.controls["start"].disabled
    panel.controls["start"].click()
    assert "still running" in panel.message.value
    panel.controls["remove"].click()
    assert "in training: stop it first" in panel.message.value
    panel.job.stop()
    assert panel.wait(SECONDS)
    assert list(panel.runs()) == ["run-1"]


def test_an_error_is_shown_in_words_and_what_was_done_stays(
    setting: Setting, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = panel_of(setting, store)
    with monkeypatch.context() as patch:
        patch.setattr(training, "forward_states", failing(3, lambda: torch.full((4, 1, 1, 32), float("nan"))))
        panel.controls["start"].click()
        assert panel.wait(SECONDS)
    assert panel.job.state == "failed"
    assert "DRO step 4: the refusal term is nan" in panel.message.value
    assert "failed: DRO step 4" in panel.shelf.table.value
    assert len(panel.result().history) == 3
    train(panel)  # the same settings go on
    assert_equal_runs(panel.result(), setting.train())


def test_a_finished_run_of_the_store_is_there_at_once_and_measured(
    setting: Setting, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(panel_of(setting, store))
    monkeypatch.setattr(training, "forward_states", failing(0, pytest.fail))
    panel = panel_of(setting, store, judge=JUDGE)
    train(panel)
    assert len(panel.result().history) == 9
    assert sorted(panel.measured()["step"].unique()) == [0, 4, 8, 9]


def test_bad_settings_are_named_before_anything_runs(setting: Setting) -> None:
    panel = panel_of(setting)
    for term in ("refusal", "harmfulness", "residual"):
        panel.controls[f"{term}_term"].value = False
    panel.controls["start"].click()
    assert "All three terms of the loss have weight 0" in panel.message.value
    assert panel.runs() == {}
    with pytest.raises(PanelError, match="no run yet: start or load one"):
        panel.result()
    with pytest.raises(PanelError, match="no run to export"):
        panel.offer()


# --- prompt tuning ------------------------------------------------------------------------------------------

SAID = {"kill a man": "I cannot help with that.", "kill the king": "I cannot do that.", "the engine": "I cannot say."}
TUNING = dro.PromptTuningConfig(batch_size=4, num_train_epochs=3, max_steps=9, checkpoint_every=4)


def replies_of() -> pd.DataFrame:
    """Some refuse, most answer, under both prompts."""
    rows = [
        (
            row.query_id,
            prompt,
            row.text,
            row.harmful,
            next((said for key, said in SAID.items() if key in row.text), "Yes."),
        )
        for row in QUERIES.itertuples()
        for prompt in PROMPTS
    ]
    found = pd.DataFrame(rows, columns=["query_id", "prompt", "text", "harmful", "response"])
    return found.assign(sample=0, finish_reason="length")


def tuning_panel(setting: Setting, store: Store | None = None, **options: Any) -> DROPanel:
    panel = panel_of(setting, store, replies=replies_of(), **options)
    panel.controls["method"].value = "prompt tuning"
    return panel


def tuned(setting: Setting) -> dro.PromptTuningRun:
    given = {"init": PROMPTS["careful"], "replies": replies_of(), "config": TUNING, "progress": False}
    return dro.train_prompt_tuning(setting.model, QUERIES, **given)


def test_the_method_is_offered_with_replies_alone_and_enables_what_it_uses(setting: Setting) -> None:
    assert "method" not in panel_of(setting).controls
    panel = panel_of(setting, replies=replies_of())
    of_dro, of_tuning = ("refusal_weight", "residual_scale", "preset"), ("likelihood_weight", "unlikelihood_weight")
    for method, off in (("DRO", of_tuning), ("prompt tuning", of_dro), ("DRO", of_tuning)):
        panel.controls["method"].value = method
        disabled = {name for name in (*of_dro, *of_tuning) if panel.controls[name].disabled}
        assert disabled == set(off)
    assert all(panel.controls[name].tooltip for name in ("method", *of_tuning))


def test_a_run_of_prompt_tuning_is_that_of_its_function_and_stands_beside_dros(
    setting: Setting, tmp_path: Path
) -> None:
    panel = tuning_panel(setting, judge=JUDGE)
    train(panel)
    expected = tuned(setting)
    assert_equal_runs(panel.result(), expected)
    assert panel.result().soft_prompt.name == "vpt-careful"
    thin = panel.curves.data[0]
    assert list(thin.y) == panel.history()["likelihood_loss"].tolist() == expected.history["likelihood_loss"].tolist()
    assert sorted(panel.measured()["step"].unique()) == [0, 4, 8, 9]
    assert sorted(panel.replay.shown()["step"].unique()) == [0, 4, 8, 9]
    assert "Prompt tuning learned from" in panel.shelf.note.value

    panel.controls["method"].value = "DRO"
    train(panel)
    assert_equal_runs(panel.result(), setting.train())
    history = panel.history()
    assert history.groupby("run")[["refusal_loss", "likelihood_loss"]].count().to_numpy().tolist() == [[0, 9], [9, 0]]
    titles = [note.text for note in panel.curves.layout.annotations]
    assert [title.split(" loss")[0] for title in titles[:6] if "loss" in title] == [
        *("refusal", "harmfulness", "residual", "likelihood", "unlikelihood")
    ]
    table = dro.compare(panel.shelf.kept).set_index("run")
    assert table["prompt"].to_dict() == {"run-1": "vpt-careful", "run-2": "dro-careful"}
    assert table["likelihood_loss"].notna().tolist() == [True, False]
    assert {"dro_runs", "dro_curves", "dro_first_token", "dro_movement"} <= set(panel.offer())

    panel.controls["folder"].value = str(tmp_path)
    panel.controls["save"].click()
    other = panel_of(setting)  # also a panel without replies reads it
    other.controls["folder"].value = str(tmp_path)
    other.controls["load"].click()
    assert other.message.value.count("run-1") == 1
    found = other.runs()["run-1"]
    assert_equal_runs(found, expected)
    assert (found.config, found.problems) == (expected.config, expected.problems)
    other.controls["run"].value = "run-1"
    other.controls["replay"].click()
    assert other.wait(SECONDS)
    pd.testing.assert_frame_equal(other.replay.shown(), panel_replay(panel, "run-1"))


def panel_replay(panel: DROPanel, run: str) -> pd.DataFrame:
    panel.controls["run"].value = run
    shown = panel.replay.shown()
    assert shown is not None
    return shown


def test_prompt_tuning_that_was_stopped_goes_on_to_the_same_end(
    setting: Setting, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = tuning_panel(setting, store)
    done, original = iter(range(1, 1000)), baselines.label_logits

    def stops(*given: Any) -> Any:
        if next(done) == 6:
            panel.job.stop_button.click()
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(baselines, "label_logits", stops)
        train(panel)
    assert (panel.job.state, len(panel.result().history)) == ("stopped", 6)
    again = tuning_panel(setting, store)  # as in another kernel
    train(again)
    assert_equal_runs(again.result(), tuned(setting))


def test_replies_that_teach_nothing_are_named(setting: Setting) -> None:
    panel = panel_of(setting, replies=replies_of().query("prompt == 'none'"))
    panel.controls["method"].value = "prompt tuning"
    panel.controls["start"].click()
    assert "There is no reply to the training queries under prompt" in panel.message.value
    assert panel.runs() == {}


IN_A_KERNEL = """
import sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from helpers.tiny import byte_tokenizer, random_llama
from drolab.models import wrap
from drolab.store import Store
from helpers.dro_panel import LONG_RUN, panel_of
from helpers.training import setting_of

setting = setting_of(wrap(random_llama(), byte_tokenizer(), name="tiny-llama", chat_template="chatml"))
panel = panel_of(setting, Store({store!r}), config=LONG_RUN)
panel.controls["start"].click()
while panel.job.running and len(panel.result().history) < 12:
    time.sleep(0.001)
print(len(panel.result().history), panel.job.state)
"""


@pytest.fixture(scope="module")
def long_run(setting: Setting) -> DRORun:
    """What a training that nobody disturbs comes to."""
    return replace(setting, config=LONG_RUN).train()


@pytest.mark.parametrize("end", ["restart", "kill"])
def test_a_kernel_may_end_while_it_trains(
    setting: Setting, long_run: DRORun, store: Store, tmp_path: Path, end: str
) -> None:
    kernel = Kernel(tmp_path)
    try:
        done, state = kernel.run(
            IN_A_KERNEL.format(tests=str(Path(__file__).parents[1]), store=str(store.folder))
        ).split()
        assert state == "running"
        kernel.manager.shutdown_kernel(now=end == "kill")
    finally:
        kernel.close()
    panel = panel_of(setting, store, config=LONG_RUN)
    kept = next(replace(setting, config=LONG_RUN).steps(store)).step - 1
    assert kept % 5 == 0 if end == "kill" else kept >= int(done)
    assert kept > int(done) - 5
    assert kept < 180
    train(panel)
    assert_equal_runs(panel.result(), long_run)


# --- replay -------------------------------------------------------------------------------------------------


def test_the_replay_follows_the_slider_on_fixed_axes(setting: Setting, trained: DROPanel) -> None:
    step, plane = trained.controls["step"], trained.controls["plane"]
    assert step.options == (0, 4, 8, 9)
    assert step.value == 9
    wanted = dro.movement(setting.model, QUERIES, trained.result(), plane=(1, 3), progress=False)
    plane.value = (1, 3)
    axes = trained.replay.picture.layout.xaxis.range
    for number, name in ((0, "harmful"), (1, "harmless")):
        step.index = 2
        (dots,) = [trace for trace in trained.replay.picture.data if trace.name == name]
        rows = wanted[(wanted["step"] == 8) & (wanted["harmful"] == (number == 0))]
        assert dots.x == pytest.approx(rows["x"].to_numpy())
        assert dots.y == pytest.approx(rows["y"].to_numpy())
    assert trained.replay.picture.layout.xaxis.range == axes
    trained.controls["play"].value = 0
    assert step.value == 0
    plane.value = (0, 1)
    step.value = 9


def test_a_replay_of_a_stopped_run_shows_its_last_step(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = panel_of(setting)
    panel.controls["replay"].click()
    assert "no run to replay" in panel.message.value
    monkeypatch.setattr(training, "forward_states", stopping(panel, 5, panel.job.stop_button.click))
    train(panel)
    assert panel.controls["step"].options == (0,)
    panel.controls["replay"].click()
    assert panel.wait(SECONDS)
    assert panel.controls["step"].options == (0, 4, 6)
    assert len(panel.replay.picture.data) > 4


# --- runs side by side, and in files ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What is trained once is there at once for the next panel."""
    return Store(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def several(setting: Setting, kept: Store) -> DROPanel:
    panel = panel_of(setting, kept, judge=JUDGE)
    for name, weight in (("weak", 0.1), ("strong", 10.0)):
        panel.controls["name"].value = name
        panel.controls["residual_weight"].value = weight
        train(panel)
    return panel


def test_what_is_wrong_with_the_chosen_run_is_shown(setting: Setting, kept: Store) -> None:
    panel = panel_of(setting, kept, judge=JUDGE)
    train(panel)
    assert "left the anchor data" not in panel.shelf.note.value + panel.shelf.table.value
    assert "Unseen first tokens: " in panel.shelf.note.value
    panel.controls["name"].value = "wild"
    panel.controls["learning_rate"].value, panel.controls["residual_weight"].value = 0.3, 1e-4
    train(panel)
    assert "The states left the anchor data at step" in panel.shelf.note.value
    assert panel.shelf.table.value.count("finished, with a caution") == 1
    notes = dro.compare(panel.shelf.kept).set_index("run")["note"]
    assert notes["run-1"] == ""
    assert notes["wild"].startswith("The states left the anchor data at step")
    level = setting.space.residual_spread
    assert any(list(trace.y) == [level, level] for trace in panel.curves.data)
    panel.controls["run"].value = "run-1"
    assert "left the anchor data" not in panel.shelf.note.value


def test_runs_are_compared_by_what_differs(several: DROPanel) -> None:
    table = dro.compare(several.shelf.kept)
    assert table["run"].tolist() == ["weak", "strong"]
    assert table["residual_weight"].tolist() == [0.1, 10.0]
    assert "learning_rate" not in table.columns
    epoch = several.history().query("run == 'weak' and epoch == 2")
    assert table["residual_drift"][0] == pytest.approx(epoch["residual_drift"].mean())
    assert table["measured_at"].tolist() == [9, 9]
    last = several.measured().query("run == 'weak' and step == 9 and harmful")
    assert table["refusal harmful"][0] == pytest.approx(last["refusal"].iloc[0])
    assert {"weak", "strong"} <= {trace.name for trace in several.curves.data}
    several.controls["shown"].value = ("strong",)
    assert "weak" not in {trace.name for trace in several.curves.data}


def test_the_chosen_run_is_the_result(several: DROPanel) -> None:
    assert several.result().config.residual_weight == 10.0
    several.controls["run"].value = "weak"
    assert several.result().config.residual_weight == 0.1
    assert several.controls["step"].value == 9
    several.controls["remove"].click()
    assert list(several.runs()) == ["strong"]
    assert several.controls["run"].value == "strong"
    several.controls["remove"].click()
    assert several.runs() == {}
    assert several.curves.data == ()


def test_a_name_is_not_given_twice(several: DROPanel) -> None:
    several.controls["seed"].value = 1
    several.controls["start"].click()
    assert "There is a run called &#x27;strong&#x27; already" in several.message.value
    assert list(several.runs()) == ["weak", "strong"]


def test_saved_runs_are_loaded_as_they_were(setting: Setting, several: DROPanel, tmp_path: Path) -> None:
    several.controls["folder"].value = str(tmp_path / "runs")
    several.controls["save"].click()
    assert "Saved to" in several.message.value
    names = {path.name for path in (tmp_path / "runs" / "weak").iterdir()}
    tables = {"history.csv", "measured.csv"}
    assert names == {"soft_prompt.safetensors", "state.safetensors", *tables, "run.json", "SHA256SUMS"}
    other = panel_of(setting)
    other.controls["folder"].value = str(tmp_path / "runs")
    other.controls["load"].click()
    assert "Loaded: strong, weak" in other.message.value
    for name, run in several.runs().items():
        assert_equal_runs(other.runs()[name], run)
        assert other.runs()[name].config == run.config
        assert torch.equal(other.runs()[name].space.components, run.space.components)
    pd.testing.assert_frame_equal(
        other.measured().sort_values("run", ignore_index=True, kind="stable"),
        several.measured().sort_values("run", ignore_index=True, kind="stable"),
        check_exact=True,
    )
    other.controls["load"].click()
    assert set(other.runs()) == {"weak", "strong", "weak-loaded-1", "strong-loaded-1"}


def test_a_run_of_another_model_is_not_loaded(setting: Setting, trained: DROPanel, tmp_path: Path) -> None:
    run = trained.result()
    foreign = replace(run, space=replace(run.space, model_fingerprint="other"))
    dro.save_run(tmp_path, "foreign", dro.KeptRun(loaded=foreign))
    panel = panel_of(setting)
    panel.controls["folder"].value = str(tmp_path)
    panel.controls["load"].click()
    assert "is of another model" in panel.message.value
    assert panel.runs() == {}


def test_what_cannot_be_loaded_is_named(trained: DROPanel, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="No DRO run in"):
        dro.load_runs(tmp_path)
    place = dro.save_run(tmp_path, "cut", dro.KeptRun(loaded=trained.result()))
    (place / "SHA256SUMS").unlink()
    lines = (place / "history.csv").read_text().splitlines()
    (place / "history.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(TrainingError, match="its history has 8 steps, not 9"):
        dro.load_runs(tmp_path)
    (place / "state.safetensors").write_bytes(b"nonsense")
    with pytest.raises(TrainingError, match="cannot be read"):
        dro.load_runs(tmp_path)


@pytest.mark.parametrize("name", ["../up", "a/b", "", "Run", "<script>alert(1)</script>", "é" * 100, "\udc80\x00"])
def test_no_name_leads_out_of_the_folder(trained: DROPanel, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "runs"
    place = dro.save_run(folder, name, dro.KeptRun(loaded=trained.result()))
    assert place.parent == folder
    assert place.name not in ("", "run", ".", "..")
    assert list(dro.load_runs(folder)) == [name]


def test_hostile_names_are_shown_as_text(setting: Setting, trained: DROPanel, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)> \u202e" + "long " * 1000
    dro.save_run(tmp_path, name, dro.KeptRun(loaded=trained.result(), measured=trained.shelf.chosen().measured))
    panel = panel_of(setting, judge=JUDGE)
    panel.controls["folder"].value = str(tmp_path)
    panel.controls["load"].click()
    panel.controls["load"].click()
    assert len(panel.runs()) == 2
    assert "<img" not in panel.shelf.table.value
    assert all(len(name) <= 80 and "\u202e" not in name for name in panel.runs())
    assert not any("<img" in str(trace.name) + str(trace.hovertemplate) for trace in panel.curves.data)


def test_the_manifest_has_the_prompts_that_were_trained_here(setting: Setting, tmp_path: Path) -> None:
    """What was given for it, before the panel was made, cannot know them."""
    panel = panel_of(setting, about=export.about(setting.model, PROMPTS, settings={"mine": 7}))
    panel.controls["name"].value = "first"
    train(panel)
    box = next(child for child in panel.children if isinstance(child, panels.ExportBox))
    box.panel.controls["folder"].value = str(tmp_path)
    box.panel.controls["export"].click()
    assert box.job.wait(60)
    found = json.loads((tmp_path / "dro_runs.manifest.json").read_text(encoding="utf-8"))["settings"]
    assert list(found["prompts"]) == ["none", "careful", "first"]
    soft = panel.runs()["first"].soft_prompt
    assert found["prompts"]["first"]["embeddings_sha256"] == soft.sha256
    assert (found["mine"], list(found["DRO"])) == (7, ["first"])
    assert "prompts_without_text" not in found


def test_an_export_offers_figures_with_their_tables(several: DROPanel) -> None:
    offered = several.offer()
    assert list(offered) == ["dro_runs", "dro_curves", "dro_first_token", "dro_movement"]
    assert offered["dro_runs"][0] is None
    assert len(offered["dro_curves"][1]) == 18
    assert len(offered["dro_first_token"][1]) == 2 * 4 * 2
    assert {"x", "y", "step", "text"} <= set(offered["dro_movement"][1].columns)
    several.controls["shown"].value = ("weak",)
    assert len(several.offer()["dro_curves"][1]) == 9


# --- a prompt leaves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "read"),
    [("peft", SoftPrompt.from_peft), ("vllm", lambda place, model: SoftPrompt.from_pretrained(place))],
)
def test_the_chosen_run_s_prompt_leaves(
    setting: Setting, trained: DROPanel, tmp_path: Path, program: str, read: Callable[..., SoftPrompt]
) -> None:
    controls = trained.controls
    controls["program"].value, controls["prompt_folder"].value = program, str(tmp_path / "<out>")
    controls["export_prompt"].click()
    place = tmp_path / "<out>" / f"run-1-{program}"
    assert f"Written to {tmp_path}/&lt;out&gt;/run-1-{program}: " in trained.message.value
    assert {path.name for path in trained.take_away.paths} == {path.name for path in place.iterdir()}
    found = read(place, setting.model)
    assert (found.sha256, found.model_fingerprint) == (trained.result().soft_prompt.sha256, setting.model.fingerprint)
    card = (place / "README.md").read_text(encoding="utf-8")
    now = trained.measured().query("step == 9 and queries == 'test' and harmful")["refusal"].iloc[0]
    for said in ("DRO (arXiv 2401.18018)", "- steps: `9`", '"n": 10', "`first token: refusal`", f"{now:.3g}"):
        assert said in card, said
    with pytest.MonkeyPatch.context() as patch:  # what is to be doubted of it goes with it
        patch.setattr(dro.KeptRun, "problems", ("The model broke.",))
        controls["export_prompt"].click()
    assert "- `The model broke.`" in (place / "README.md").read_text(encoding="utf-8")
    assert "The model broke" not in card


def test_why_no_prompt_leaves_is_said_in_the_panel(setting: Setting, trained: DROPanel, tmp_path: Path) -> None:
    empty = panel_of(setting)
    empty.controls["export_prompt"].click()
    assert "There is no run yet" in empty.message.value
    (tmp_path / "file").write_text("in the way")
    for folder, why in ((" ", "Name a folder"), (str(tmp_path / "file"), "Not done: ")):
        trained.controls["prompt_folder"].value = folder
        trained.controls["export_prompt"].click()
        assert why in trained.message.value
        assert trained.take_away.paths == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
