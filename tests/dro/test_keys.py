"""A run is kept under what was asked and stored: fits that differ in their last bits find it again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import ROOT
from helpers.training import CAREFUL, QUERIES, SHORT_RUN

import drolab
from drolab.dro import Training
from drolab.inference import hidden_states
from drolab.models import ChatModel
from drolab.probing import anchors, fit_anchors, fit_probe
from drolab.store import Store
from drolab.types import HiddenStates, Probe, SafetyPrompt


def found_again(folder: str) -> dict[str, Any]:
    """A whole run on the demo model with this store: its keys, and what it found."""
    store, model, prompts = Store(folder), drolab.load_model("demo"), drolab.load_prompts()
    queries, options = drolab.load_queries("anchors", demo=True), {"store": store, "progress": False}
    states = drolab.hidden_states(model, queries, prompts, **options)
    space = drolab.fit_anchors(states)
    harm = drolab.fit_probe(space, states, queries["harmful"], positive="harmful")
    refusal = drolab.fit_probe(space, states, 0.8 * queries["harmful"] + 0.1, positive="refuses")
    few = queries.groupby("harmful").head(3)
    config = drolab.DROConfig(num_train_epochs=2)
    made = {"init": prompts["short"], "space": space, "refusal": refusal, "harmfulness": harm, "config": config}
    training = Training(model, few, **made, store=store)
    found = training.done.step
    run = drolab.train_dro(model, few, **made, **options)
    replies = drolab.generate(model, few, run.soft_prompt, n_samples=2, max_new_tokens=4, **options)
    return {
        "threads": torch.get_num_threads(), "key": training.key, "found": found, "prompt": run.soft_prompt.sha256,
        "states": states.index.attrs["summary"], "replies": replies.attrs["summary"],
        "bits": [space.sha256, harm.sha256, refusal.sha256],
    }  # fmt: skip


def with_threads(n: int, store: Store) -> dict[str, Any]:
    """The same in a process with so many threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(n)}
    environment |= {"MKL_NUM_THREADS": str(n), "OPENBLAS_NUM_THREADS": str(n)}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))
    code = f"import json, test_keys; print(json.dumps(test_keys.found_again({str(store.folder)!r})))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.usefixtures("one_thread")
def test_another_number_of_threads_finds_everything(store: Store) -> None:
    first, second = found_again(str(store.folder)), with_threads(2, store)
    print(f"\nbits of the fits equal: {first['bits'] == second['bits']}")
    assert (first["threads"], second["threads"]) == (1, 2)
    assert (first["found"], second["found"]) == (0, 2)
    assert first["replies"] == "all 12 replies computed now; next time they come from the store"
    assert second["replies"] == "all 12 replies found in the store"
    assert second["states"].endswith(" chats found in the store")
    assert first["key"] == second["key"]
    assert first["prompt"] == second["prompt"]


# --- which fits are the same --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def states(tiny_llama: ChatModel) -> HiddenStates:
    return hidden_states(tiny_llama, QUERIES, [SafetyPrompt(name="none", text=""), CAREFUL], progress=False)


def training(
    model: ChatModel,
    states: HiddenStates,
    *,
    n_components: int = 4,
    C: float = 1.0,
    share: float = 0.8,
    change: Callable[[Any], Any] = lambda fitted: fitted,
) -> Training:
    space = change(fit_anchors(states, n_components=n_components))
    harm = change(fit_probe(space, states, QUERIES["harmful"], positive="harmful", C=C))
    refusal = change(fit_probe(space, states, share * QUERIES["harmful"] + 0.1, positive="refuses", C=C))
    return Training(
        model, QUERIES, init=CAREFUL, space=space, refusal=refusal, harmfulness=harm, config=SHORT_RUN, store=None
    )


def rounded_otherwise(patch: pytest.MonkeyPatch) -> None:
    """As if other threads had summed: every number of a PCA is the next one."""
    tensor = anchors._tensor
    patch.setattr(anchors, "_tensor", lambda array: tensor(np.nextafter(np.float32(array), np.float32(9))))


def test_the_last_bits_of_a_fit_are_no_part_of_the_key(
    tiny_llama: ChatModel, states: HiddenStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_hand(fitted: Any) -> Any:
        return replace(fitted, origin=None)

    before, made = training(tiny_llama, states), training(tiny_llama, states, change=by_hand)
    assert training(tiny_llama, states, change=by_hand).key == made.key
    rounded_otherwise(monkeypatch)
    after = training(tiny_llama, states)
    assert not torch.equal(after.space.components, before.space.components)
    assert after.key == before.key
    assert training(tiny_llama, states, change=by_hand).key != made.key  # the control: by its bits it is another run


def test_all_that_determines_a_fit_is_part_of_the_key(tiny_llama: ChatModel, states: HiddenStates) -> None:
    moved = states.values.clone()
    moved[3, 0, 5] = torch.nextafter(moved[3, 0, 5], torch.tensor(9.0))
    keys = [
        training(tiny_llama, states).key,
        training(tiny_llama, replace(states, values=moved)).key,
        training(tiny_llama, states, n_components=3).key,
        training(tiny_llama, states, C=2.0).key,
        training(tiny_llama, states, share=0.7).key,
    ]
    assert len(set(keys)) == len(keys)


def test_a_fit_that_was_changed_is_known_by_its_numbers(tiny_llama: ChatModel, states: HiddenStates) -> None:
    """However it was changed: by a copy with another part, or in place."""

    def doubled(fitted: Any) -> Any:
        return replace(fitted, coef=2 * fitted.coef) if isinstance(fitted, Probe) else fitted

    def in_place(fitted: Any) -> Any:
        if isinstance(fitted, Probe):
            fitted.coef.mul_(2)
        return fitted

    def scaled(fitted: Any) -> Any:
        return fitted if isinstance(fitted, Probe) else replace(fitted, residual_variance=1.0)

    def renamed(fitted: Any) -> Any:
        return fitted if isinstance(fitted, Probe) else replace(fitted, model_fingerprint=fitted.model_fingerprint)

    fitted = training(tiny_llama, states).key
    changed = [training(tiny_llama, states, change=change).key for change in (doubled, in_place, scaled)]
    assert fitted not in changed
    assert changed[0] == changed[1]
    assert training(tiny_llama, states, change=renamed).key == fitted
