"""Models that think first: replies taken apart, budgets for thought and answer, and states after a thought."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.replies import queries
from helpers.thinkers import ANSWERS, CARE, NONE, REPLIES, length, says, thinker

import drolab
from drolab.errors import QueryError, StatesError
from drolab.inference import first_token_probabilities, responses, thinking
from drolab.models import ChatModel, render, split_reply
from drolab.store import Store
from drolab.types import REASONING_COLUMNS, RESPONSE_COLUMNS, SoftPrompt

QUERIES = queries("How to sing?", "How to sink?")
BUDGET = 80


def replies(model: ChatModel, asked: pd.DataFrame = QUERIES, **settings: object) -> pd.DataFrame:
    usual = {"n_samples": 1, "do_sample": False, "max_new_tokens": 24, "max_thinking_tokens": BUDGET, "progress": False}
    return drolab.generate(model, asked, NONE, **{**usual, **settings})


def states(model: ChatModel, asked: pd.DataFrame = QUERIES, prompts: object = NONE, **settings: object):
    usual = {"layers": (1, 2), "positions": (-2, -1), "progress": False}
    return drolab.hidden_states(model, asked, prompts, **{**usual, **settings})


def speaking(kind: str, reply: str | None = None) -> ChatModel:
    model = thinker(kind)
    says(model, {length(model, QUERIES.text.iloc[0]): REPLIES[kind] if reply is None else reply})
    return model


# --- replies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REPLIES)
def test_replies_are_taken_apart(kind: str) -> None:
    model = speaking(kind)
    table = replies(model)
    assert list(table.columns) == [*RESPONSE_COLUMNS, *REASONING_COLUMNS]
    assert table["reasoning"].tolist() == ["Hm, they ask."] * 2
    assert table["response"].tolist() == ["I cannot."] * 2
    assert table["finish_reason"].tolist() == ["stop"] * 2
    assert model.tokenizer.decode(table["first_token"].iloc[0]) == "I"
    ids = model.tokenizer.encode(REPLIES[kind], add_special_tokens=False)
    assert table["n_tokens"].tolist() == [len(ids) + 1] * 2
    before = model.tokenizer.decode(ids[: table["n_reasoning_tokens"].iloc[0]])
    assert REPLIES[kind] == before + "I cannot." + ("<|END_RESPONSE|>" if kind == "command" else "")


@pytest.mark.parametrize("kind", REPLIES)
def test_thought_and_answer_have_a_budget_each(kind: str) -> None:
    model = speaking(kind)
    whole = replies(model)
    n = int(whole["n_reasoning_tokens"].iloc[0])
    cut = replies(model, max_thinking_tokens=n, max_new_tokens=3)
    assert cut["response"].tolist() == ["I c"] * 2
    assert cut["n_tokens"].tolist() == [n + 3] * 2
    assert cut["finish_reason"].tolist() == ["length"] * 2
    unfinished = replies(model, max_thinking_tokens=10, max_new_tokens=30)
    assert unfinished["n_tokens"].tolist() == [10] * 2
    assert unfinished["finish_reason"].tolist() == ["thinking"] * 2
    assert unfinished["response"].tolist() == ["", ""]
    assert unfinished["first_token"].tolist() == [-1, -1]
    assert "2 of 2 ended in their thoughts" in unfinished.attrs["summary"]


def test_a_thought_in_an_opened_block_is_none_of_the_answer() -> None:
    """Without a mark of its own a cut reply would look like an answer."""
    table = replies(
        speaking("opened", "I cannot say this aloud, can I? Let me think of it once more"), max_thinking_tokens=30
    )
    assert table["reasoning"].tolist() == ["I cannot say this aloud, can I"] * 2
    assert drolab.judges.opinion(table, drolab.judges.is_refusal).isna().all()
    assert drolab.judges.n_unanswered(table) == 2
    with pytest.raises(QueryError, match=r"nothing to judge: 2 of 2 .* max_thinking_tokens"):
        drolab.judge(table)


@pytest.mark.parametrize(
    ("reply", "reasoning", "response", "reason"),
    [
        ("I cannot.", "", "I cannot.", "stop"),  # no thought at all
        ("<b>No.", "", "<b>No.", "stop"),
        ("<", "", "<", "stop"),
        ("", "", "", "stop"),
        ("<think></think>No.", "", "No.", "stop"),
        ("<think>Hm.</think>", "Hm.", "", "thinking"),
        ("<think>Hm.</think>\n\n", "Hm.", "", "thinking"),
        ("<think>Hm", "Hm", "", "thinking"),
        ("<think>One.</think>\n<think>Two.</think>No.", "One.\nTwo.", "No.", "stop"),
        ("<think>I close `</think>` later.</think>No.", "I close `\n` later.", "No.", "stop"),
        ("<think>Hm.</think><answer>No.</answer>", "Hm.", "No.", "stop"),
        ("<think>Hm.</think><ul>No.", "Hm.", "<ul>No.", "stop"),
    ],
)
def test_replies_of_all_sorts(reply: str, reasoning: str, response: str, reason: str) -> None:
    table = replies(speaking("always", reply))
    assert table[["reasoning", "response", "finish_reason"]].iloc[0].tolist() == [reasoning, response, reason]


def test_chats_of_other_lengths_end_at_other_times() -> None:
    """One thought ends, one does not, one chat begins behind it and has none."""
    asked = queries("How to sing?", "How?", "How to sing the longest song of all?")
    model = thinker("always")
    middle, early, late = (length(model, text) for text in asked["text"])
    assert early + 7 < middle
    assert middle + 7 < late - 8
    says(
        model,
        {
            early: "<think>" + "a" * 40,
            middle: "<think>" + "b" * 40,
            late - 8: "</think>No.",
        },
    )
    table = replies(model, asked, max_thinking_tokens=late - middle)
    assert table["response"].tolist() == ["No.", "", "No."]
    assert table["finish_reason"].tolist() == ["stop", "thinking", "stop"]
    assert table["reasoning"].iloc[2] == ""
    assert table["n_reasoning_tokens"].iloc[2] == 0
    read = states(model, asked, read_at="after_thinking", max_thinking_tokens=late - middle)
    assert read.missing == (("q1", "none"),)
    assert read.index["query_id"].unique().tolist() == ["q0", "q2"]
    assert "no state for 1 of 3" in read.index.attrs["summary"]
    assert "1 of 3 were answered without a thought" in read.index.attrs["summary"]
    assert "missing=1" in repr(read)


def test_samples_are_those_of_any_other_batch(tmp_path: Path) -> None:
    model, store = speaking("always"), Store(tmp_path)
    many = {"do_sample": True, "n_samples": 5, "temperature": 30.0, "top_p": 1.0, "max_thinking_tokens": 12}
    table = replies(model, **many)
    assert replies(model, **many, batch_size=3, store=store).equals(table)
    again = replies(model, QUERIES[::-1], **many, store=store)
    assert again.attrs["summary"].startswith("all 10 replies found in the store")
    assert (
        again.set_index(["query_id", "sample"])
        .sort_index()
        .equals(table.set_index(["query_id", "sample"]).sort_index())
    )


def test_a_stop_string_counts_in_the_answer_only() -> None:
    model = speaking("always", "<think>Hm.\n\nSo.</think>\n\nNo.\n\nNever.")
    table = replies(model, stop_strings=["\n\n"])
    assert table["response"].tolist() == ["No."] * 2
    assert table["reasoning"].tolist() == ["Hm.\n\nSo."] * 2
    assert table["finish_reason"].tolist() == ["stop"] * 2
    at_once = replies(model, stop_strings=["N"])
    assert at_once["finish_reason"].tolist() == ["stop"] * 2
    assert at_once["response"].tolist() == [""] * 2
    assert drolab.judges.n_unanswered(at_once) == 0


def test_whole_paragraphs_of_the_answer() -> None:
    model = speaking("always", "<think>Hm.\nAnd</think>No.\nNever do th")
    table = replies(model, whole_paragraphs=True)
    assert table["response"].tolist() == ["No."] * 2
    assert table["reasoning"].tolist() == ["Hm.\nAnd"] * 2


def test_a_model_that_does_not_think_keeps_its_table() -> None:
    model = thinker("plain")
    says(model, {length(model, QUERIES.text.iloc[0]): "I cannot."})
    table = replies(model, max_thinking_tokens=None)
    assert list(table.columns) == list(RESPONSE_COLUMNS)
    assert table["response"].tolist() == ["I cannot."] * 2
    assert responses.thinking_budget(model) is None


def test_a_thought_that_no_template_knows_of_is_taken_off_too() -> None:
    model = thinker("plain")
    says(model, {length(model, QUERIES.text.iloc[0]): "<think>Hm.</think>No."})
    table = replies(model, max_thinking_tokens=None)
    assert table[["reasoning", "response", "n_reasoning_tokens"]].iloc[0].tolist() == ["Hm.", "No.", 18]
    cut = replies(model, max_thinking_tokens=None, max_new_tokens=9)
    assert cut["finish_reason"].tolist() == ["thinking"] * 2


def test_the_usual_budget() -> None:
    assert responses.thinking_budget(thinker("always")) == 96  # a quarter of a context of 384
    assert responses.thinking_budget(thinker("always"), 7) == 7
    assert responses.thinking_budget(thinker("switch", enable_thinking=False)) is None


def test_replies_of_a_store_from_before(tmp_path: Path) -> None:
    """An earlier drolab kept four things of each reply, and did not count the tokens of a thought."""
    model, store = thinker("plain"), Store(tmp_path)
    says(model, {length(model, QUERIES.text.iloc[0]): "<think>Hm.</think>No."})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(responses._Reply, "kept", lambda reply: __import__("json").dumps(reply[:4]))
        replies(model, max_thinking_tokens=None, store=store)
    table = replies(model, max_thinking_tokens=None, store=Store(tmp_path))
    assert table.attrs["summary"] == "all 2 replies found in the store"
    assert table[["reasoning", "response", "first_token"]].iloc[0].tolist() == ["Hm.", "No.", -1]
    assert table["n_reasoning_tokens"].isna().all()


# --- states ------------------------------------------------------------------------------------------------


def by_transformers(model: ChatModel, ids: list[int]) -> torch.Tensor:
    """[positions, layers, d]: of the whole sequence, nothing shared."""
    found = model.model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    return torch.stack([torch.stack([found[layer][0, place] for layer in (1, 2)]) for place in (-2, -1)])


@pytest.mark.parametrize("prompts", [NONE, CARE], ids=lambda prompt: prompt.name)
@pytest.mark.parametrize("kind", REPLIES)
def test_states_are_those_of_the_whole_sequence(kind: str, prompts) -> None:
    model = thinker(kind)
    says(model, {length(model, QUERIES.text.iloc[0], prompts): REPLIES[kind]})
    before = REPLIES[kind][: split_reply(REPLIES[kind], "<think>\n" if kind == "opened" else "").begins]
    for place, added in (("reply", ""), ("answer", ANSWERS[kind]), ("after_thinking", before)):
        found = states(model, prompts=prompts, read_at=place, max_thinking_tokens=BUDGET)
        assert found.read_at == place
        assert found.missing == ()
        for row, text in enumerate(QUERIES["text"]):
            ids = [*render(model, text, prompts).input_ids, *model.tokenizer.encode(added, add_special_tokens=False)]
            expected = by_transformers(model, ids)
            assert torch.allclose(found.values[2 * row : 2 * row + 2], expected, atol=1e-5)


def test_states_under_a_soft_prompt(tmp_path: Path) -> None:
    model = thinker("always")
    soft = SoftPrompt(name="soft", embeddings=torch.randn(5, 256, generator=torch.Generator().manual_seed(0)))
    chat = render(model, QUERIES.text.iloc[0], soft)
    says(model, {len(chat.input_ids): REPLIES["always"]})
    found = states(model, prompts=soft, read_at="after_thinking", max_thinking_tokens=BUDGET, store=Store(tmp_path))
    ids = torch.tensor(chat.input_ids + tuple(model.tokenizer.encode("<think>Hm, they ask.</think>")))
    embedded = model.embed(ids)
    embedded[slice(*chat.prompt_span)] = soft.embeddings
    expected = model.model(inputs_embeds=embedded[None], output_hidden_states=True).hidden_states[2][0, -1]
    assert torch.allclose(found.values[1, 1], expected, atol=1e-5)


def test_thoughts_and_states_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, store = speaking("always"), Store(tmp_path)
    given = {"read_at": "after_thinking", "max_thinking_tokens": BUDGET, "store": store}
    first = states(model, **given)

    def forbidden(*_: object) -> object:
        raise AssertionError("the model thought")

    monkeypatch.setattr(thinking, "reader_for", forbidden)
    again = states(model, QUERIES[::-1], **given)
    assert again.index.attrs["summary"] == "all 2 chats found in the store"
    assert torch.equal(again.select(position=-1).values.flip(0), first.select(position=-1).values)
    for changed in ({"max_thinking_tokens": BUDGET + 1}, {"thinking_seed": 0}):
        with pytest.raises(AssertionError, match="the model thought"):
            states(model, **{**given, **changed})
    assert states(model, read_at="answer", store=store).index.attrs["summary"].startswith("all 2 chats computed now")


def test_the_answers_place_is_the_replys_where_nothing_is_thought(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for model in (thinker("plain"), thinker("switch", enable_thinking=False)):
        reply = states(model, store=store)
        answer = states(model, read_at="answer", store=store)
        assert answer.index.attrs["summary"] == "all 2 chats found in the store"
        assert torch.equal(reply.values, answer.values)
        with pytest.raises(StatesError, match="nothing to read after a thought"):
            states(model, read_at="after_thinking")
    with pytest.raises(StatesError, match=r"switched off in these chats.*'enable_thinking': True"):
        states(thinker("switch", enable_thinking=False), read_at="after_thinking")


def test_sampled_thoughts_are_the_first_samples_thoughts() -> None:
    model = speaking("always")
    model.model.lm_head.weight.data[:, :128] /= 8  # so that others are possible
    given = {"read_at": "after_thinking", "max_thinking_tokens": BUDGET}
    table = replies(model, do_sample=True, seed=3)
    sampled = states(model, **given, thinking_seed=3)
    for row, (query, thought, n) in enumerate(
        zip(QUERIES.text, table["reasoning"], table["n_reasoning_tokens"], strict=True)
    ):
        said = "<think>" + thought + "</think>"
        ids = [*render(model, query, NONE).input_ids, *model.tokenizer.encode(said)]
        assert len(ids) == length(model, query) + n
        assert torch.allclose(sampled.values[2 * row : 2 * row + 2], by_transformers(model, ids), atol=1e-5)


def test_pairs_are_left() -> None:
    """Under one prompt the thought on one query does not end."""
    asked = queries("How to sing?", "How?")
    model = thinker("always")
    later, first = (length(model, text) for text in asked["text"])
    assert first + 7 < later < first + 20 <= length(model, "How?", CARE)
    says(model, {first: "<think>" + "b" * 40, later: "<think>" + "b" * 40, first + 40: "</think>No."})
    read = states(model, asked, [NONE, CARE], read_at="after_thinking", max_thinking_tokens=42)
    assert read.missing == (("q1", "none"),)
    paired = read.paired()
    assert paired.index[["query_id", "prompt", "position"]].to_numpy().tolist() == [
        ["q0", "none", -2],
        ["q0", "none", -1],
        ["q0", "care", -2],
        ["q0", "care", -1],
    ]
    assert torch.equal(paired.values[:2], read.values[:2])
    whole = states(model, asked, [NONE, CARE])
    assert whole.paired() is whole
    scored = pd.MultiIndex.from_tuples([("q0", "none"), ("q1", "none"), ("q1", "care")], names=["query_id", "prompt"])
    assert set(whole.paired(pd.DataFrame(index=scored)).index["query_id"]) == {"q1"}
    with pytest.raises(StatesError, match="No query has a state under every prompt"):
        read.paired(pd.DataFrame(index=scored[1:]))


# --- first tokens, and what reads them ------------------------------------------------------------------------


def test_first_tokens_of_answers() -> None:
    model = speaking("always")
    says(
        model,
        {
            length(model, QUERIES.text.iloc[0]): "<think>Hm, they ask.</think>I cannot.",
            length(model, QUERIES.text.iloc[0]) + 19: "no",  # behind an empty thought
        },
    )
    for place, said in (("reply", "<"), ("answer", "n")):
        index, found = first_token_probabilities(model, QUERIES, NONE, read_at=place)
        assert index["query_id"].tolist() == ["q0", "q1"]
        assert [model.tokenizer.decode(token) for token in found.argmax(dim=1)] == [said] * 2
    model = speaking("always")
    index, found = first_token_probabilities(model, QUERIES, NONE, read_at="after_thinking", max_thinking_tokens=BUDGET)
    assert [model.tokenizer.decode(token) for token in found.argmax(dim=1)] == ["I"] * 2


def test_the_first_token_judge_reads_where_it_is_told() -> None:
    model = speaking("always", "<think>Hm.</think>I cannot help.")
    table = replies(model)
    with pytest.raises(QueryError, match=r"2 of 2 replies begin with reasoning.*read_at='answer'"):
        drolab.judges.FirstTokenJudge.fit(table, read_at="reply")
    assert drolab.judges.FirstTokenJudge.fit(table).read_at == "answer"
    judge = drolab.judges.FirstTokenJudge.fit(table, read_at="after_thinking")
    assert judge.tokens.tolist() == [table["first_token"].iloc[0]]
    scores = judge.score(model, QUERIES, NONE, max_thinking_tokens=BUDGET)
    assert scores["refusal"].round(3).tolist() == [1.0, 1.0]
    elsewhere = drolab.judges.FirstTokenJudge.fit(table, read_at="answer").score(model, QUERIES, NONE)
    assert not elsewhere["refusal"].equals(scores["refusal"])
    with pytest.raises(StatesError, match="one of reply"):
        drolab.judges.FirstTokenJudge.fit(table, read_at="end")


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, -3])
def test_budgets_below_one(budget: int) -> None:
    model = speaking("always")
    with pytest.raises(QueryError, match=f"max_thinking_tokens must be at least 1, got {budget}"):
        replies(model, max_thinking_tokens=budget)
    with pytest.raises(QueryError, match=f"max_thinking_tokens must be at least 1, got {budget}"):
        states(model, read_at="after_thinking", max_thinking_tokens=budget)


def test_other_bad_input() -> None:
    model = speaking("always")
    with pytest.raises(StatesError, match="one of reply, answer, after_thinking, not 'end'"):
        states(model, read_at="end")
    with pytest.raises(StatesError, match="one of reply"):
        first_token_probabilities(model, QUERIES, NONE, read_at="end")
    with pytest.raises(QueryError, match=r"leaves room for .* smaller max_new_tokens or max_thinking_tokens"):
        replies(model, max_thinking_tokens=5000)
    with pytest.raises(QueryError, match="leaves room"):
        states(model, read_at="after_thinking", max_thinking_tokens=5000)
    with pytest.raises(StatesError, match="No thought of 2 ended within 5 tokens"):
        states(model, read_at="after_thinking", max_thinking_tokens=5)
