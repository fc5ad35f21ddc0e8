"""Edits of the states: what they do at every layer of several families, and that nothing of them stays behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers.replies import QUERIES
from helpers.steering import CARE, FAMILIES, LAST, WIDTH, all_states, hooks, made, next_log_probabilities, vector
from torch import Tensor

from drolab.errors import ModelError, StatesError
from drolab.inference import first_token_probabilities, generate, hidden_states, next_tokens
from drolab.models import Ablate, Add, ChatModel, Edit, Patch, encode, forward_states, render, steered
from drolab.models.interventions import active_edits
from drolab.models.layers import block_names
from drolab.store import Store
from drolab.types import SafetyPrompt, SoftPrompt

NONE = SafetyPrompt(name="none", text="")
FINAL_NORM = [name for name in FAMILIES if name != "openai-gpt"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> ChatModel:
    return made(request.param)


# --- what the edits do -------------------------------------------------------------------------------------


def test_ablation_leaves_nothing_along_the_direction(family: ChatModel) -> None:
    unit = vector(norm=1.0)
    before = all_states(family)
    with steered(family, Ablate(5 * unit)) as ablated:
        everywhere = all_states(ablated)
    with steered(family, Ablate(unit, range(LAST + 1))) as ablated:
        named = all_states(ablated)
    assert (before @ unit).abs().amax(dim=0).min() > 1e-3  # the control: without the edit there is something
    assert (everywhere[:, :LAST] @ unit).abs().max() < 1e-5
    assert (named @ unit).abs().max() < 1e-5
    other = vector(1, 1.0)
    assert (named @ other).abs().max() > 1e-3


@pytest.mark.parametrize("name", FINAL_NORM)
def test_ablation_reaches_the_last_block_but_not_the_final_norm(name: str) -> None:
    model, unit, raw = made(name), vector(norm=1.0), []
    block = model.base_model.get_submodule(block_names(model)[LAST])
    with steered(model, Ablate(unit)) as ablated:
        hook = block.register_forward_hook(lambda module, args, output: raw.append(output))
        states = hidden_states(ablated, QUERIES, CARE, progress=False).values[:, 0]
        hook.remove()
    last = raw[-1][0] if isinstance(raw[-1], tuple) else raw[-1]
    assert (last @ unit).abs().max() < 1e-5
    if name in ("gpt2", "gpt_neox", "falcon"):  # their norm moves the mean out, which has a part along the direction
        assert (states @ unit).abs().max() > 1e-4


def test_ablation_towards_a_reference(family: ChatModel) -> None:
    unit, reference = vector(norm=1.0), vector(2)
    with steered(family, Ablate(unit, [1], reference)) as ablated:
        states = all_states(ablated)
    torch.testing.assert_close(states[:, 1] @ unit, (reference @ unit).expand(len(QUERIES)), rtol=0, atol=1e-4)
    across = states[:, 1] - (states[:, 1] @ unit)[:, None] * unit
    plain = all_states(family)[:, 1]
    torch.testing.assert_close(across, plain - (plain @ unit)[:, None] * unit, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layer", [0, 1, LAST])
def test_addition_moves_the_states_of_its_layer_and_none_below(family: ChatModel, layer: int) -> None:
    before = all_states(family)
    with steered(family, Add(vector(), layer)) as moved:
        after = all_states(moved)
    change = after - before
    torch.testing.assert_close(change[:, layer], vector().expand(len(QUERIES), -1), rtol=0, atol=1e-4)
    assert change[:, :layer].abs().max() < 1e-5 if layer else True
    if layer < LAST:
        assert (change[:, layer + 1] - vector()).abs().max() > 1e-2  # the next block computes with it


def test_added_at_the_read_position_of_the_last_layer_is_added_before_the_head(family: ChatModel) -> None:
    states = hidden_states(family, QUERIES, CARE, progress=False).matrix(-1)
    cap = getattr(family.model.config, "final_logit_softcapping", None)
    with torch.no_grad():
        logits = family.model.get_output_embeddings()(states + vector())
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    found = next_log_probabilities(family, Add(vector(), -1, "read"))
    torch.testing.assert_close(found, logits.log_softmax(dim=-1), rtol=0, atol=1e-4)
    assert (found - next_log_probabilities(family)).abs().max() > 0.1


def test_a_patch_with_the_own_states_changes_nothing_and_with_others_brings_them(family: ChatModel) -> None:
    own = hidden_states(family, QUERIES, CARE, layers=(1, LAST), progress=False)
    for layer in (1, LAST):
        torch.testing.assert_close(
            next_log_probabilities(family, Patch(own.matrix(layer), layer)),
            next_log_probabilities(family),
            rtol=0,
            atol=1e-4,
        )
    swapped = next_log_probabilities(family, Patch(own.matrix(LAST).roll(1, 0), LAST))
    torch.testing.assert_close(swapped, next_log_probabilities(family).roll(1, 0), rtol=0, atol=1e-4)


def test_edits_act_in_order_and_nested_contexts_as_one(tiny_llama: ChatModel) -> None:
    add, ablate = Add(vector(), 1), Ablate(vector(), [1])
    with steered(tiny_llama, add, ablate) as both:
        gone, one_name = all_states(both), both.fingerprint
    with steered(tiny_llama, ablate, add) as both:
        there, other_name = all_states(both), both.fingerprint
    with steered(tiny_llama, add) as outer, steered(outer, ablate) as inner:
        nested, names = all_states(inner), {outer.fingerprint, inner.fingerprint}
    assert (gone[:, 1] @ vector()).abs().max() < 1e-4
    torch.testing.assert_close(there[:, 1] @ vector(), torch.full((len(QUERIES),), 9.0), rtol=0, atol=1e-3)
    assert torch.equal(nested, gone)
    assert len({one_name, other_name, tiny_llama.fingerprint, *names}) == 5


def test_generation_is_steered(tiny_llama: ChatModel) -> None:
    """The first tokens come from the distribution that `next_tokens` finds, the later ones go on being steered."""
    settings = {"n_samples": 1, "do_sample": False, "max_new_tokens": 5, "progress": False}
    edits = [Add(vector(norm=9.0), 1), Ablate(vector(3))]
    with steered(tiny_llama, *edits) as changed:
        replies = generate(changed, QUERIES, CARE, **settings)
        probabilities = first_token_probabilities(changed, QUERIES, CARE)[1]
        ids = torch.tensor([render(changed, QUERIES["text"].iloc[0], CARE).input_ids])
        plain = changed.model.generate(ids, do_sample=False, max_new_tokens=5, attention_mask=torch.ones_like(ids))
    torch.testing.assert_close(probabilities.log(), next_log_probabilities(tiny_llama, *edits), rtol=0, atol=1e-4)
    assert replies["first_token"].tolist() == probabilities.argmax(dim=1).tolist()
    assert replies["response"].iloc[0] == tiny_llama.tokenizer.decode(
        plain[0, ids.shape[1] :], skip_special_tokens=True
    )
    assert list(replies["response"]) != list(generate(tiny_llama, QUERIES, CARE, **settings)["response"])


def test_low_precision_states_keep_their_dtype() -> None:
    model = made("llama")
    model.model.to(torch.bfloat16)
    with steered(model, Ablate(vector()), Add(vector(), 1), Add(vector(), -1)) as changed:
        assert all_states(changed).dtype == torch.bfloat16


# --- nothing stays behind ----------------------------------------------------------------------------------


def test_hooks_go_when_the_context_ends_however_it_ends(family: ChatModel) -> None:
    before = all_states(family)
    for error in (ValueError, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(error) as ended, steered(family, Add(vector(), 1)):
            raise error(hooks(family))
        assert ended.value.args[0] > 0
        assert hooks(family) == 0
        assert not active_edits(family)
    assert torch.equal(all_states(family), before)


def test_an_interrupt_inside_a_pass_leaves_no_hook(tiny_llama: ChatModel) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = all_states(tiny_llama)
    inner = tiny_llama.base_model.get_submodule("layers.1")
    handle = inner.register_forward_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt), steered(tiny_llama, Add(vector(), 1)) as changed:
            all_states(changed)
        with pytest.raises(KeyboardInterrupt):
            next_log_probabilities(tiny_llama, Add(vector(), 1, "read"))
    finally:
        handle.remove()
    assert hooks(tiny_llama) == 0
    assert torch.equal(all_states(tiny_llama), before)


def test_a_bad_edit_leaves_no_hook(tiny_llama: ChatModel) -> None:
    with steered(tiny_llama, Add(vector(), 1)) as outer:
        with pytest.raises(StatesError), steered(outer, Add(torch.ones(5), 1)):
            pass
        assert len(active_edits(tiny_llama)) == 1
    patch = Patch(torch.ones(2, WIDTH), 1)
    with pytest.raises(StatesError, match="2 vectors for a pass of 1"), steered(tiny_llama, patch) as changed:
        changed.model(torch.tensor([[1, 2, 3]]))
    assert hooks(tiny_llama) == 0


def test_nested_contexts_may_end_in_any_order(tiny_llama: ChatModel) -> None:
    before = all_states(tiny_llama)
    outer_context = steered(tiny_llama, Add(vector(), 1))
    outer = outer_context.__enter__()
    inner_context = steered(outer, Add(vector(1), 1))
    inner = inner_context.__enter__()
    outer_context.__exit__(None, None, None)
    for model in (tiny_llama, outer, inner):  # only the inner edit is in force, and no name says so
        with pytest.raises(ModelError):
            all_states(model)
    inner_context.__exit__(None, None, None)
    assert hooks(tiny_llama) == 0
    assert torch.equal(all_states(tiny_llama), before)


def test_a_generator_that_is_dropped_ends_its_context(tiny_llama: ChatModel) -> None:
    def work() -> Iterator[ChatModel]:
        with steered(tiny_llama, Add(vector(), 1)) as changed:
            yield changed

    running = work()
    changed = next(running)
    assert (all_states(changed)[:, 1] @ vector()).abs().max() > 0
    with pytest.raises(ModelError, match="being edited"):
        all_states(tiny_llama)
    running.close()
    assert hooks(tiny_llama) == 0
    with pytest.raises(ModelError, match="have ended"):
        all_states(changed)


def test_no_edits_are_no_edits(tiny_llama: ChatModel) -> None:
    with steered(tiny_llama) as same:
        assert same is tiny_llama
        assert hooks(tiny_llama) == 0


# --- the store is not poisoned -----------------------------------------------------------------------------


def test_steered_results_have_their_own_names_in_the_store(tiny_llama: ChatModel, store: Store) -> None:
    settings = {"n_samples": 1, "do_sample": False, "max_new_tokens": 3, "store": store, "progress": False}
    states, replies = (
        lambda model: hidden_states(model, QUERIES, CARE, store=store, progress=False),
        lambda model: generate(model, QUERIES, CARE, **settings),
    )
    plain = states(tiny_llama), replies(tiny_llama)
    for strength, done in ((3.0, "computed now"), (3.0, "found in the store"), (4.0, "computed now")):
        with steered(tiny_llama, Add(vector(norm=strength), 1)) as changed:
            assert states(changed).index.attrs["summary"].startswith(f"all 5 chats {done}")
            assert replies(changed).attrs["summary"].startswith(f"all 5 replies {done}")
    again = states(tiny_llama), replies(tiny_llama)
    assert again[0].index.attrs["summary"] == "all 5 chats found in the store"
    assert again[1].attrs["summary"] == "all 5 replies found in the store"
    assert torch.equal(again[0].values, plain[0].values)
    assert again[1].equals(plain[1])


def test_the_unsteered_model_is_refused_while_its_modules_are_edited(tiny_llama: ChatModel, store: Store) -> None:
    start = tiny_llama.embed(torch.tensor([5, 6]))
    calls = (
        lambda model: hidden_states(model, QUERIES, CARE, store=store, progress=False),
        lambda model: generate(model, QUERIES, CARE, n_samples=1, store=store, progress=False),
        lambda model: first_token_probabilities(model, QUERIES, CARE),
        lambda model: forward_states(model, start, [[7, 8]]),
        lambda model: next(iter(next_tokens(model, encode(model, ["What?"], CARE), [()]))),
        lambda model: steered(model, Add(vector(), 1)).__enter__(),
    )
    with steered(tiny_llama, Add(vector(), 1)) as changed:
        for call in calls:
            with pytest.raises(ModelError, match="being edited"):
                call(tiny_llama)
    for call in calls:
        with pytest.raises(ModelError, match="have ended"):
            call(changed)


@pytest.mark.parametrize("edit", [Add(vector(), 1, "read"), Patch(torch.ones(5, WIDTH), 1)], ids=["add", "patch"])
def test_edits_at_the_read_position_are_refused_where_they_would_mean_something_else(
    tiny_llama: ChatModel, edit: Edit
) -> None:
    with steered(tiny_llama, edit) as changed:
        for call in (
            lambda: generate(changed, QUERIES, CARE, n_samples=1, progress=False),
            lambda: hidden_states(changed, QUERIES, CARE, progress=False),
            lambda: first_token_probabilities(changed, QUERIES, CARE),
        ):
            with pytest.raises(ModelError, match="read position"):
                call()


def test_a_soft_prompt_of_the_model_fits_it_with_edits(tiny_llama: ChatModel) -> None:
    soft = SoftPrompt(name="soft", embeddings=torch.ones(3, WIDTH), model_fingerprint=tiny_llama.fingerprint)
    plain = hidden_states(tiny_llama, QUERIES, soft, layers=(1,), progress=False).matrix(1)
    with steered(tiny_llama, Add(vector(), 1)) as changed:
        moved = hidden_states(changed, QUERIES, soft, layers=(1,), progress=False).matrix(1)
    torch.testing.assert_close(moved - plain, vector().expand(5, -1), rtol=0, atol=1e-4)


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.zeros(4), torch.full((4,), torch.nan), torch.ones(2, 2), torch.tensor(1.0)])
def test_directions_that_are_none_are_refused(bad: Tensor) -> None:
    for make in (lambda: Add(bad, 1), lambda: Ablate(bad)):
        with pytest.raises(StatesError, match="finite vector"):
            make()


def test_other_bad_edits_are_refused(tiny_llama: ChatModel) -> None:
    with pytest.raises(StatesError, match="'all' or 'read'"):
        Add(vector(), 1, "last")  # type: ignore[arg-type]
    with pytest.raises(StatesError, match=r"shape \[n, d\]"):
        Patch(vector(), 1)
    with pytest.raises(StatesError, match="one layer"):
        Ablate(vector(), None, vector())
    with pytest.raises(StatesError, match="reference must be"):
        Ablate(vector(), [1], torch.ones(3))
    for edit, said in (
        (Add(torch.ones(5), 1), "width 5"),
        (Add(vector(), 3), "no layers"),
        (Ablate(vector(), [-4]), "no layers"),
    ):
        with pytest.raises(StatesError, match=said), steered(tiny_llama, edit):
            pass
    with pytest.raises(StatesError, match="2 vectors for 5 chats"):
        next_log_probabilities(tiny_llama, Patch(torch.ones(2, WIDTH), 1))
