"""The first token's distribution: that of plain passes, as the model is and under edits."""

from __future__ import annotations

import pytest
import torch
from helpers import replies
from helpers.replies import CAREFUL, NONE, QUERIES
from helpers.steering import CARE, FAMILIES, hooks, made, next_log_probabilities, one_by_one, vector

from drolab.errors import QueryError
from drolab.inference import first_token_probabilities, next_tokens
from drolab.models import Ablate, Add, ChatModel, Patch, encode, render


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> ChatModel:
    return made(request.param)


@pytest.fixture(scope="module", params=replies.FAMILIES)
def writing(request: pytest.FixtureRequest) -> ChatModel:
    return replies.writer(request.param)


def test_first_token_probabilities_equal_the_plain_ones(writing: ChatModel) -> None:
    index, probabilities = first_token_probabilities(writing, QUERIES, [NONE, CAREFUL], token_budget=100)
    assert list(index.columns) == ["query_id", "prompt", "harmful"]
    assert list(index.query_id) == [*QUERIES.query_id] * 2
    assert probabilities.dtype == torch.float32
    for row, (text, prompt) in enumerate((text, prompt) for prompt in (NONE, CAREFUL) for text in QUERIES.text):
        ids = torch.tensor([render(writing, text, prompt).input_ids])
        with torch.no_grad():
            plain = writing.model(ids).logits[0, -1].softmax(dim=-1)
        torch.testing.assert_close(probabilities[row], plain, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(probabilities[0], probabilities[1], atol=1e-3)


def test_a_budget_of_nothing(tiny_llama: ChatModel) -> None:
    with pytest.raises(QueryError, match="token_budget must be at least 1, got 0"):
        first_token_probabilities(tiny_llama, QUERIES, NONE, token_budget=0)


PLANS = {
    "nothing": [],
    "add at all": [Add(vector(), 1)],
    "add at read": [Add(vector(), 1, "read")],
    "ablate": [Ablate(vector())],
    "patch": [Patch(torch.stack([vector(seed) for seed in range(len(QUERIES))]), 1)],
    "all at once": [Add(vector(), 0, "read"), Ablate(vector(1)), Add(vector(2), 1)],
}


@pytest.mark.parametrize("name", PLANS)
def test_next_tokens_equal_a_plain_pass_for_each_chat(family: ChatModel, name: str) -> None:
    found = next_log_probabilities(family, *PLANS[name])
    torch.testing.assert_close(found, one_by_one(family, *PLANS[name]), rtol=0, atol=2e-4)
    assert name == "nothing" or (found - next_log_probabilities(family)).abs().max() > 1e-2
    assert hooks(family) == 0


@pytest.mark.parametrize("token_budget", [1, 16384])  # one plan at a time, and those that are alike together
def test_plans_do_not_disturb_each_other(family: ChatModel, token_budget: int) -> None:
    each = torch.stack([vector(seed) for seed in range(10, 10 + len(QUERIES))])
    more = [[Add(vector(3), 1, "read")], [Add(each, 1, "read")], [Patch(each, 1)], [Add(vector(4), 0, "read")], []]
    plans = [*PLANS.values(), *more]
    batch = encode(family, QUERIES["text"].tolist(), CARE)
    found: dict[int, torch.Tensor] = {}
    for number, rows, part in next_tokens(family, batch, plans, token_budget=token_budget):
        found.setdefault(number, torch.full((len(batch), part.shape[1]), torch.nan))[rows] = part
    for number, plan in enumerate(plans):
        torch.testing.assert_close(found[number], next_log_probabilities(family, *plan), rtol=0, atol=2e-4)
    apart = torch.stack([found[number] for number in range(1, len(plans) - 1)])  # all but those that do nothing
    assert torch.cdist(apart.flatten(1), apart.flatten(1)).fill_diagonal_(1).min() > 1e-2
