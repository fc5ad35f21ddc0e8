"""DRO: the paper's runs step by step, resuming to the last bit, and clear errors."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pandas as pd
import pytest
import torch
from helpers.memory import memory_for
from helpers.planted import parity_states
from helpers.tiny import byte_tokenizer, random_llama
from helpers.training import CAREFUL, QUERIES, SHORT_RUN, Setting, assert_equal_runs, failing, query_table, setting_of
from safetensors.torch import load_file

import drolab
from drolab import dro, passes
from drolab.dro import training
from drolab.errors import PromptError, QueryError, StatesError, TrainingError
from drolab.models import ChatModel, wrap
from drolab.probing import fit_anchors
from drolab.store import Store
from drolab.types import DROConfig, DRORun, Probe, SafetyPrompt, SoftPrompt

pytestmark = pytest.mark.usefixtures("one_thread")

TERMS = ["refusal_loss", "harmfulness_loss", "residual_loss"]
SWITCHED_OFF = {
    "short_nonorm": {"residual_weight": 0.0},
    # The reference's run without the refusal term gives the harmfulness term weight 1, not .01: with .01 its
    # gradient would be too small beside AdamW's epsilon and the residual term, and the run differs by .24.
    "short_norefu": {"refusal_weight": 0.0, "harmfulness_weight": 1.0},
    "short_noharm": {"harmfulness_weight": 0.0},
}


# --- the paper's runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parity(reference: Path) -> dict[str, Any]:
    """Model, queries, prompts, space and probes of the reference, through the public API."""
    folder = reference / "parity"
    model = drolab.load_model(
        str(folder / "model"), chat_template="llama-2-chat", attn_implementation="eager", dtype="float32"
    )
    stored = load_file(folder / "anchor.safetensors")
    fitted = fit_anchors(parity_states(reference))
    space = replace(fitted, components=stored["components"].float(), model_fingerprint=model.fingerprint)
    folds = load_file(folder / "probes.safetensors")
    return {
        "model": model,
        "queries": query_table(
            *((folder / f"queries_{kind}.txt").read_text().splitlines() for kind in ("harmful", "harmless"))
        ),
        "prompts": {name: SafetyPrompt(name=name, text=text) for name, text in _json(folder, "prompts").items()},
        "space": space,
        # The paper's probes are positive for "complies" and "harmless".
        "probes": {
            name: Probe(
                coef=-folds[f"{name}.weight"].mean(0)[0], intercept=-float(folds[f"{name}.bias"].mean()), positive=kind
            )
            for name, kind in (("refusal", "refuses"), ("harmfulness", "harmful"))
        },
        "losses": _json(folder, "dro_losses"),
        "trained": load_file(folder / "dro_prompts.safetensors"),
    }


def _json(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def _parity_run(parity: dict[str, Any], name: str, **changes: Any) -> DRORun:
    return drolab.train_dro(
        parity["model"],
        parity["queries"],
        init=parity["prompts"][name.split("_")[0]],
        space=parity["space"],
        **parity["probes"],
        config=DROConfig.preset("paper", **SWITCHED_OFF.get(name, {}), **changes),
        progress=False,
    )


def _worst_difference(parity: dict[str, Any], name: str, run: DRORun) -> tuple[float, float]:
    """(largest difference of a loss, relative difference of the trained prompt)."""
    ours = torch.tensor(run.history[TERMS].to_numpy())
    paper = torch.tensor(parity["losses"]["steps"][name])[: len(ours)]
    final, start = parity["trained"][name].float(), run.snapshots[0]
    relative = (run.soft_prompt.embeddings - final).norm() / (final - start).norm()
    return float((ours - paper).abs().max()), float(relative)


@pytest.mark.parametrize("name", ["short", "mistral", "default", *SWITCHED_OFF])
def test_the_papers_run_is_matched(parity: dict[str, Any], name: str) -> None:
    run = _parity_run(parity, name)
    assert len(run.history) == len(parity["losses"]["steps"][name]) == 80
    loss, prompt = _worst_difference(parity, name, run)
    print(f"\nparity {name}: losses within {loss:.1e}, prompt within {prompt:.1e}")
    # The longest prompt's run turns unstable after step 50 (gradients of .9) and multiplies rounding by 1e3.
    assert loss < (1e-3 if name == "default" else 1e-4)
    assert prompt < (1e-2 if name == "default" else 1e-3)


@pytest.mark.parametrize("change", [{"seed": 43}, {"harmfulness_weight": 1.0}, {"max_grad_norm": 1e-9}])
def test_another_setting_is_not_the_papers_run(parity: dict[str, Any], change: dict[str, Any]) -> None:
    """The control for the test above: within its first 20 steps."""
    loss, _ = _worst_difference(parity, "short", _parity_run(parity, "short", num_train_epochs=10, **change))
    assert loss > 1e-3


# --- on a tiny model ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setting(tiny_llama: ChatModel) -> Setting:
    return setting_of(tiny_llama)


@pytest.fixture(scope="module")
def finished(setting: Setting) -> DRORun:
    return setting.train()


def interrupt() -> None:
    raise KeyboardInterrupt


def test_what_a_run_holds(setting: Setting, finished: DRORun) -> None:
    assert finished.history["step"].tolist() == list(range(1, 10))
    assert finished.history["epoch"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert list(finished.snapshots) == [0, 4, 8, 9]
    prompt = finished.soft_prompt
    assert (prompt.name, prompt.init_text) == ("dro-careful", CAREFUL.text)
    assert prompt.model_fingerprint == setting.model.fingerprint
    assert len(prompt) == len(CAREFUL.text)  # a byte tokenizer
    assert torch.equal(finished.snapshots[9], prompt.embeddings)
    assert not torch.equal(finished.snapshots[0], prompt.embeddings)


def test_the_first_step_starts_from_the_human_prompt(finished: DRORun) -> None:
    first = finished.history.iloc[0]
    assert first["refusal_loss"] == pytest.approx(0.693147, abs=1e-5)
    assert first["residual_drift"] < 1e-8
    assert finished.history["residual_drift"].iloc[-1] > 1e-6


def test_training_changes_no_global_state_and_no_model(setting: Setting) -> None:
    before, fingerprint = torch.get_rng_state(), drolab.models.fingerprint(setting.model.model, setting.model.tokenizer)
    setting.train()
    assert torch.equal(torch.get_rng_state(), before)
    assert drolab.models.fingerprint(setting.model.model, setting.model.tokenizer) == fingerprint
    assert all(parameter.grad is None for parameter in setting.model.model.parameters())


def test_the_iterator_yields_what_a_run_collects(setting: Setting, finished: DRORun) -> None:
    steps = list(setting.steps())
    pd.testing.assert_frame_equal(
        pd.DataFrame([step.numbers() for step in steps])[finished.history.columns], finished.history
    )
    assert torch.equal(steps[-1].embeddings, finished.soft_prompt.embeddings)
    assert not torch.equal(steps[-2].embeddings, steps[-1].embeddings)


def test_passes_that_do_not_fit_are_divided_with_equal_results(
    setting: Setting, finished: DRORun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "_afforded", WeakKeyDictionary())  # the model is not ours alone
    with memory_for(setting.model, 80) as tried:
        run = setting.train()
    assert any(size > 80 for size in tried)
    torch.testing.assert_close(run.soft_prompt.embeddings, finished.soft_prompt.embeddings, rtol=0, atol=1e-5)
    pd.testing.assert_frame_equal(run.history, finished.history, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("done", [0, 1, 4, 6])
def test_an_interrupted_run_resumes_to_the_last_bit(
    setting: Setting, finished: DRORun, store: Store, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training, "forward_states", failing(done, interrupt))
        with pytest.raises(KeyboardInterrupt, match=f"{done} of 9 steps are in the store: run the same call again"):
            setting.train(store)
    patched = failing(9 - done, interrupt)  # not one step more than what was left
    monkeypatch.setattr(training, "forward_states", patched)
    assert_equal_runs(setting.train(store), finished)


def test_a_closed_iterator_keeps_its_last_step(setting: Setting, finished: DRORun, store: Store) -> None:
    steps = setting.steps(store)
    assert [step.step for step in islice(steps, 3)] == [1, 2, 3]
    steps.close()
    assert [step.step for step in islice(setting.steps(store), 2)] == [4, 5]
    assert_equal_runs(setting.train(store), finished)
    assert list(setting.steps(store)) == []


def test_without_a_store_the_message_says_so(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "forward_states", failing(2, interrupt))
    with pytest.raises(KeyboardInterrupt, match=r"2 of 9 steps were done and none is kept: pass store=drolab.Store"):
        setting.train()


def test_a_finished_run_loads_without_the_model_running(
    setting: Setting, finished: DRORun, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting.train(store)
    monkeypatch.setattr(training, "forward_states", failing(0, interrupt))
    monkeypatch.setattr(training, "hidden_states", interrupt)
    assert_equal_runs(setting.train(store), finished)
    rarely = replace(setting, config=replace(SHORT_RUN, checkpoint_every=7))
    assert len(rarely.train(store).history) == 9


@pytest.mark.parametrize(
    "changed",
    [
        {"config": replace(SHORT_RUN, seed=1)},
        {"init": SafetyPrompt(name="careful", text="Be careful, be kind!")},
        {"queries": QUERIES.iloc[::-1]},
        {"queries": QUERIES.assign(harmful=~QUERIES["harmful"])},
    ],
    ids=["seed", "init", "order", "classes"],
)
def test_another_run_is_not_mistaken_for_it(
    setting: Setting, store: Store, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    setting.train(store)
    monkeypatch.setattr(training, "forward_states", failing(0, interrupt))
    with pytest.raises(KeyboardInterrupt, match="0 of 9"):
        replace(setting, **changed).train(store)


def test_half_precision_models_have_float32_prompts() -> None:
    model = wrap(random_llama().to(torch.bfloat16), byte_tokenizer(), name="tiny-bf16", chat_template="chatml")
    run = replace(setting_of(model), config=replace(SHORT_RUN, learning_rate=1e-4)).train()
    assert run.soft_prompt.embeddings.dtype == torch.float32
    moved = run.soft_prompt.embeddings - run.snapshots[0]
    # Steps this small would be rounded away in bfloat16.
    assert (moved.abs() > 0).float().mean() > 0.9
    assert (run.soft_prompt.embeddings.bfloat16() == run.snapshots[0].bfloat16()).float().mean() > 0.05


def test_a_soft_prompt_goes_on_from_itself(setting: Setting, finished: DRORun) -> None:
    run = replace(setting, init=finished.soft_prompt).train()
    assert torch.equal(run.snapshots[0], finished.soft_prompt.embeddings)
    assert run.soft_prompt.init_text == CAREFUL.text
    assert run.history["refusal_loss"].iloc[0] == pytest.approx(0.693147, abs=1e-5)


# --- the loss and what it does ------------------------------------------------------------------------------


def refusal_rise(setting: Setting, run: DRORun) -> pd.Series:
    """Mean rise of the *true* refusal logit per class, from the first snapshot to the last."""
    table = dro.movement(setting.model, QUERIES, replace(run, refusal=setting.refusal), progress=False)
    logits = table.pivot_table(index="step", columns="harmful", values="refusal_logit")
    return logits.iloc[-1] - logits.iloc[0]


def test_refusals_of_the_classes_move_apart_and_along_a_random_direction_they_do_not(setting: Setting) -> None:
    config = DROConfig(num_train_epochs=30, batch_size=10, learning_rate=3e-2, harmfulness_weight=0, residual_weight=0)
    true = replace(setting, config=config)
    generator = torch.Generator().manual_seed(0)
    other = torch.randn(4, generator=generator)
    other -= (other @ setting.refusal.coef) / setting.refusal.coef.square().sum() * setting.refusal.coef
    other *= setting.refusal.coef.norm() / other.norm()
    control = replace(true, refusal=replace(setting.refusal, coef=other))
    along, across = true.train(), control.train()
    apart = refusal_rise(setting, along)
    assert apart[True] - apart[False] > 0.5
    beside = refusal_rise(setting, across)
    assert beside[True] - beside[False] < 0.3 * (apart[True] - apart[False])
    # The control did train: it moved along its own direction.
    assert across.history["refusal_loss"].iloc[-1] < 0.65


def test_the_residual_term_keeps_the_states_near(setting: Setting) -> None:
    free = replace(setting, config=DROConfig(num_train_epochs=10, learning_rate=3e-2, residual_weight=0)).train()
    held = replace(setting, config=DROConfig(num_train_epochs=10, learning_rate=3e-2, residual_weight=10)).train()
    assert held.history["residual_drift"].iloc[-1] < 0.5 * free.history["residual_drift"].iloc[-1]


# --- bad input ----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite(setting: Setting, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> torch.Tensor:
        return torch.full((2, 1, 1, 32), float("nan"))

    with monkeypatch.context() as patch:
        patch.setattr(training, "forward_states", failing(2, broken))
        with pytest.raises(
            TrainingError, match=r"step 3: the refusal term is nan.*step 2 is kept.*Lower learning_rate"
        ):
            setting.train(store)
    assert next(setting.steps(store)).step == 3


def wrong_cases(setting: Setting) -> dict[str, tuple[dict[str, Any], type[Exception], str]]:
    space, refusal = setting.space, setting.refusal
    foreign = SoftPrompt(name="foreign", embeddings=torch.zeros(3, 32), model_fingerprint="other")
    return {
        "one class": ({"queries": QUERIES.head(5)}, QueryError, "All 5 training queries are harmful.*add harmless"),
        "other class": ({"queries": QUERIES.tail(5)}, QueryError, "are harmless.*add harmful queries"),
        "foreign space": (
            {"space": replace(space, model_fingerprint="other")},
            StatesError,
            "of model other.*fit_anchors",
        ),
        "deep layer": ({"space": replace(space, layer=9)}, StatesError, "layer 9 and width 32.*has 2 layers"),
        "no residual": ({"space": replace(space, residual_variance=0.0)}, StatesError, "has no scale: fit it on more"),
        "probe width": ({"refusal": replace(refusal, coef=torch.ones(3))}, StatesError, "3 coefficients.*fit_probe"),
        "probe sign": ({"refusal": replace(refusal, positive="complies")}, StatesError, "must be for 'refuses': fit"),
        "swapped": ({"harmfulness": refusal}, StatesError, "harmfulness probe is positive for 'refuses'"),
        "missing": ({"refusal": None}, StatesError, "no refusal probe, so nothing can be trained: fit_probe"),
        "no text": ({"init": SafetyPrompt(name="none", text="")}, PromptError, "'none' has none: pass a prompt"),
        "foreign prompt": ({"init": foreign}, PromptError, "made for the model with fingerprint other"),
        "all off": (
            {"config": DROConfig(refusal_weight=0, harmfulness_weight=0, residual_weight=0)},
            TrainingError,
            "All three terms.*give one of them a weight",
        ),
    }


CASES = """one class, other class, foreign space, deep layer, no residual, probe width, probe sign, swapped, no text,
missing, foreign prompt, all off""".replace("\n", " ").split(", ")


@pytest.mark.parametrize("case", CASES)
def test_wrong_input_is_refused_before_the_first_step(setting: Setting, case: str) -> None:
    changes, error, message = wrong_cases(setting)[case]
    with pytest.raises(error, match=message):
        replace(setting, **changes).steps()
