"""A run says when its states left the data, and when the model is no longer itself."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.training import CAREFUL, QUERIES, SHORT_RUN, Setting, setting_of

from drolab import dro
from drolab.errors import QueryError
from drolab.inference import first_token_probabilities, next_tokens
from drolab.judges import FirstTokenJudge
from drolab.models import ChatModel, encode
from drolab.types import DROConfig, DRORun, FitCheck, SoftPrompt

pytestmark = pytest.mark.usefixtures("one_thread")

WILD = replace(SHORT_RUN, learning_rate=0.3, residual_weight=0.0)
STILL = replace(SHORT_RUN, learning_rate=1e-9)
JUDGE = FirstTokenJudge(
    tokens=torch.arange(4, 200), refusal_rate=torch.linspace(0, 1, 196), counts=torch.ones(196, dtype=torch.int64)
)


@pytest.fixture(scope="module")
def setting(tiny_llama: ChatModel) -> Setting:
    return setting_of(tiny_llama)


def trained(setting: Setting, config: DROConfig) -> DRORun:
    return replace(setting, config=config).train()


@pytest.fixture(scope="module")
def still(setting: Setting) -> DRORun:
    """A training that hardly moves anything: nothing is wrong with it."""
    return trained(setting, STILL)


# --- the states ---------------------------------------------------------------------------------------------


def test_a_run_without_a_penalty_says_that_it_left_the_data(setting: Setting, caplog: pytest.LogCaptureFixture) -> None:
    run = trained(setting, WILD)
    (problem,) = run.problems
    assert problem.startswith("The states left the anchor data at step ")
    assert "raise residual_weight (now 0)" in problem
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        f"dro-careful: {problem}"
    ]


def test_a_run_that_stays_where_it_was_has_no_problems(
    setting: Setting, still: DRORun, caplog: pytest.LogCaptureFixture
) -> None:
    assert still.problems == ()
    kept = dro.KeptRun(loaded=still)
    kept.measure(9, setting.model, JUDGE, {dro.TRAINING: QUERIES})
    assert kept.problems == ()
    assert dro.compare({"still": kept})["note"].tolist() == [""]
    assert not caplog.records
    with pytest.raises(QueryError, match="There are no queries to measure on: pass query sets by name"):
        kept.measure(9, setting.model, JUDGE, {})


def with_drifts(run: DRORun, *epochs: float, level: float | None = 2.0) -> DRORun:
    """The run with three steps in each epoch, whose drifts have this mean."""
    drifts = [drift + apart for drift in epochs for apart in (-1.0, 0.0, 1.0)]
    row = run.history.iloc[0].to_dict()
    rows = [{**row, "step": n + 1, "epoch": n // 3, "residual_drift": drift} for n, drift in enumerate(drifts)]
    history = pd.DataFrame(rows).astype({"step": int, "epoch": int})
    return replace(run, history=history, space=replace(run.space, residual_spread=level))


@pytest.mark.parametrize(
    ("epochs", "step"),
    [((1.0, 5.0, 6.0), 4), ((5.0, 6.0), 1), ((5.0, 1.0, 3.0), 7), ((1.9, 1.0), None), ((5.0, 9.0, 1.0), None)],
)
def test_the_step_is_where_it_left_for_good(still: DRORun, epochs: tuple[float, ...], step: int | None) -> None:
    """Batches scatter, so an epoch's mean counts; a run that came back is no problem."""
    problems = with_drifts(still, *epochs).problems
    if step is None:
        assert problems == ()
    else:
        assert problems[0].startswith(
            f"The states left the anchor data at step {step}: their residual drift is {epochs[-1]:g} in the last epoch"
        )


def test_where_no_level_is_known_nothing_is_said(still: DRORun) -> None:
    assert with_drifts(still, 1e6, level=None).problems == ()
    assert with_drifts(still, 1e6).problems != ()
    assert replace(with_drifts(still, 1e6), history=still.history.head(0)).problems == ()


# --- the model ----------------------------------------------------------------------------------------------


def test_the_baseline_is_measured_with_any_step(setting: Setting, still: DRORun) -> None:
    kept = dro.KeptRun(loaded=replace(still, snapshots={**still.snapshots, 9: still.snapshots[0] + 0.3}))
    kept.measure(9, setting.model, JUDGE, {dro.TRAINING: QUERIES})
    assert kept.measured["step"].tolist() == [0, 0, 9, 9]
    assert tuple(kept.measured.columns) == dro.MEASURED_COLUMNS
    before, after = (log_probabilities(setting.model, kept.run, step) for step in (0, 9))
    each = (before.exp() * (before - after)).sum(dim=1)
    harmful = torch.tensor(QUERIES["harmful"].to_numpy(dtype=bool))
    for kind in (False, True):
        rows = kept.measured[kept.measured["harmful"] == kind]
        assert rows["kl"].tolist() == pytest.approx([0.0, float(each[harmful == kind].mean())], abs=1e-5)
    assert rows["kl"].iloc[1] > 0.01


def test_the_baseline_is_run_once_for_each_query_set(
    setting: Setting, still: DRORun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And again for other queries under the same name, and where the last step is measured nothing is held any more."""
    ran: list[str] = []

    def counted(
        model: ChatModel, queries: pd.DataFrame, prompt: SoftPrompt, **where: Any
    ) -> tuple[pd.DataFrame, torch.Tensor]:
        ran.append(prompt.name)
        return first_token_probabilities(model, queries, prompt, **where)

    monkeypatch.setattr("drolab.dro.runs.first_token_probabilities", counted)
    kept, steps = dro.KeptRun(loaded=still), sorted(still.snapshots)[1:]
    assert len(steps) > 1
    sets = {dro.TRAINING: QUERIES, "others": QUERIES.iloc[::2]}
    for step in steps:
        kept.measure(step, setting.model, JUDGE, sets)
    assert sum(name.endswith("@0") for name in ran) == len(sets)
    assert len(ran) == len(sets) * (1 + len(steps))
    assert not kept._start
    start = dro.snapshot(still, 0)
    for step, rows in kept.measured.groupby("step"):
        number = int(step)  # type: ignore[arg-type]
        alone = dro.measure_first_tokens(setting.model, JUDGE, sets, dro.snapshot(still, number), number, start=start)
        pd.testing.assert_frame_equal(rows.reset_index(drop=True), alone, check_exact=True)
    other = dro.KeptRun(loaded=still)
    other.measure(steps[0], setting.model, JUDGE, {"mine": QUERIES.iloc[::2]})
    other.measure(steps[1], setting.model, JUDGE, {"mine": QUERIES})
    alone = dro.measure_first_tokens(
        setting.model, JUDGE, {"mine": QUERIES}, dro.snapshot(still, steps[1]), steps[1], start=start
    )
    found = other.measured[other.measured["step"] == steps[1]]
    pd.testing.assert_frame_equal(found.reset_index(drop=True), alone, check_exact=True)


def log_probabilities(model: ChatModel, run: DRORun, step: int) -> torch.Tensor:
    batch = encode(model, QUERIES["text"].tolist(), dro.snapshot(run, step))
    found = torch.empty(len(QUERIES), 0)
    for _, rows, spoken in next_tokens(model, batch, [[]]):
        found = found if found.shape[1] else torch.empty(len(QUERIES), spoken.shape[1])
        found[rows] = spoken
    return found.double()


def test_without_a_start_there_is_no_divergence(setting: Setting) -> None:
    rows = dro.measure_first_tokens(setting.model, JUDGE, {"mine": QUERIES}, CAREFUL, 3)
    assert rows["kl"].isna().all()
    assert rows["other"].notna().all()


def test_a_token_that_became_impossible_does_not_make_the_mean_infinite(setting: Setting) -> None:
    """An embedding of this size makes the softmax of a small model underflow."""
    far = SoftPrompt(name="far", embeddings=torch.full((4, setting.model.hidden_size), 1e4))
    rows = dro.measure_first_tokens(setting.model, JUDGE, {"mine": QUERIES}, far, 1, start=CAREFUL)
    assert np.isfinite(rows["kl"]).all()


def measured(*rows: tuple[Any, ...]) -> pd.DataFrame:
    """(step, harmful, refusal, other, kl)."""
    columns = ["step", "harmful", "refusal", "other", "kl"]
    table = pd.DataFrame(rows, columns=columns).assign(queries="training")
    return table.assign(compliance=1 - table["refusal"] - table["other"])[list(dro.MEASURED_COLUMNS)]


CASES: dict[str, tuple[pd.DataFrame, str]] = {
    "much was unseen before": (measured((0, True, 0.5, 0.4, 0.0), (8, True, 0.5, 0.45, 0.1)), ""),
    "unseen by training": (
        measured((0, True, 0.5, 0.4, 0.0), (8, True, 0.4, 0.6, 0.1)),
        "for harmful queries (training), 60% of the first-token probability is on tokens that no reply began with, "
        "40% before training",
    ),
    "no longer itself": (
        measured((0, False, 0.1, 0.0, 0.0), (8, False, 0.1, 0.0, 1.5)),
        "on harmless queries (training) the first token is 1.5 nats (KL) from what it was",
    ),
    "refuses no more": (measured((0, False, 0.9, 0.0, 0.0), (8, False, 0.01, 0.0, 3.9)), ""),
    "refuses less, and more than that": (
        measured((0, False, 0.3, 0.0, 0.0), (8, False, 0.01, 0.0, 3.9)),
        "3.9 nats (KL)",
    ),
    "harmful queries are to change": (measured((0, True, 0.1, 0.0, 0.0), (8, True, 0.9, 0.0, 5.0)), ""),
    "no divergence was measured": (measured((0, False, 0.1, 0.0, np.nan), (8, False, 0.1, 0.05, np.nan)), ""),
    "no baseline": (measured((8, True, 0.2, 0.8, 3.0), (8, False, 0.2, 0.8, 3.0)), ""),
    "nothing": (measured(), ""),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_last_measurement_says_of_the_model(still: DRORun, name: str) -> None:
    table, wanted = CASES[name]
    problems = dro.KeptRun(loaded=still, measured=table).problems
    assert len(problems) == bool(wanted)
    assert wanted in " ".join(problems)
    assert all(problem.startswith("The model broke by step 8:") for problem in problems)


def test_unseen_tokens_are_told_from_those_that_training_brought(still: DRORun) -> None:
    table = measured((0, True, 0.5, 0.02, 0), (0, False, 0, 0.04, 0), (8, True, 0.5, 0.06, 0), (8, False, 0, 0.04, 0))
    kept = dro.KeptRun(loaded=still, measured=table)
    assert kept.unseen == "Unseen first tokens: 0.03 before training, 0.05 now (training)."
    assert dro.KeptRun(loaded=still).unseen == ""
    row = dro.compare({"mine": kept}).iloc[0]
    assert (row["other before training harmful"], row["other harmful"]) == (0.02, 0.06)
    assert (row["kl harmless"], row["note"]) == (0, "")


# --- in files -----------------------------------------------------------------------------------------------


def test_a_saved_run_still_says_it(still: DRORun, tmp_path: Path) -> None:
    kept = dro.KeptRun(loaded=with_drifts(still, 5.0), measured=CASES["no longer itself"][0])
    dro.save_run(tmp_path, "mine", kept)
    found = dro.load_runs(tmp_path)["mine"]
    assert found.problems == kept.problems
    assert len(kept.problems) == 2
    pd.testing.assert_frame_equal(found.measured, kept.measured)


def test_a_run_of_an_earlier_version_is_read(still: DRORun, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its space has no level, its measurements no divergence, its files no checksums."""
    place = dro.save_run(tmp_path, "old", dro.KeptRun(loaded=with_drifts(still, 5.0, level=None)))
    (place / "SHA256SUMS").unlink()
    columns = [name for name in dro.MEASURED_COLUMNS if name != "kl"]
    CASES["no longer itself"][0][columns].to_csv(place / "measured.csv", index=False)
    about = (place / "run.json").read_text()
    assert '"residual_spread": null,' in about
    (place / "run.json").write_text(about.replace('"residual_spread": null,', ""))
    found = dro.load_runs(tmp_path)["old"]
    assert f"{place} has no SHA256SUMS, as an earlier drolab wrote it" in caplog.text
    assert found.measured["kl"].isna().all()
    assert found.problems == ()
    again = dro.load_runs(dro.save_run(tmp_path / "again", "new", found))["new"]
    pd.testing.assert_frame_equal(again.measured, found.measured[list(again.measured.columns)])


def test_a_probe_that_reads_nothing_is_a_problem_of_the_run_also_in_files(still: DRORun, tmp_path: Path) -> None:
    check = FitCheck(auc=0.52, null=(0.45, 0.55), problem="A readout of 'refuses' cannot be told from chance.")
    refits = torch.randn(10, len(still.refusal.coef))
    run = replace(still, refusal=replace(still.refusal, check=check, refits=refits))
    assert run.problems[0] == check.problem
    dro.save_run(tmp_path, "mine", dro.KeptRun(loaded=run))
    found = dro.load_runs(tmp_path)["mine"].run
    assert found.problems == run.problems
    assert found.refusal.check is not None
    assert found.refusal.check.null == check.null
    assert found.refusal.refits is not None
    assert torch.equal(found.refusal.refits, refits)
    assert replace(run, refusal=replace(run.refusal, check=None)).problems == ()
