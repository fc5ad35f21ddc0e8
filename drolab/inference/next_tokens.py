"""The distribution of a reply's first token: as the model is, and under edits of its hidden states.

`first_token_probabilities` asks for queries under prompts, `next_tokens` for one batch of chats under many plans of
edits, with what the plans share run once. Nothing is sampled and nothing is kept. `divergence` says how far one
distribution is from another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor
from transformers import DynamicCache

from drolab.data import validate_queries
from drolab.errors import QueryError, StatesError
from drolab.inference.sampling import batches
from drolab.inference.thinking import place_chats
from drolab.models import (
    Ablate,
    ChatModel,
    Edit,
    EncodedBatch,
    Prompts,
    acts_at_read_position,
    as_prompts,
    can_share_prefix,
    check_edits,
    check_read_at,
    copy_cache,
    last_logits,
    prefix_cache,
    prefix_embeddings,
    reader_for,
    steered,
    vectors_of,
    with_vectors,
)
from drolab.progress import Progress, bar
from drolab.store import Store
from drolab.threads import threads_for
from drolab.types import ReadAt

_TOGETHER = 256
"""Chats x plans in one pass of single tokens, whose logits are kept for each; more only if one plan has more chats."""


@torch.no_grad()
def first_token_probabilities(
    model: ChatModel,
    queries: pd.DataFrame,
    prompts: Prompts,
    *,
    read_at: ReadAt = "reply",
    max_thinking_tokens: int | None = None,
    thinking_seed: int | None = None,
    store: Store | None = None,
    token_budget: int = 16384,
    progress: Progress = False,
) -> tuple[pd.DataFrame, Tensor]:
    """The distribution of a reply's first token, or of an answer's (temperature 1, no top_p). No answer is sampled.

    Args:
        read_at, max_thinking_tokens, thinking_seed: which token, as in `hidden_states`: "answer" and "after_thinking"
            give the answer's first.
        store: of thoughts only, for "after_thinking".
        token_budget: chats x tokens per chat in one batch; bounds the memory.

    Returns:
        A table query_id, prompt, harmful (prompts in order, within each the queries), and [n, vocabulary]
        float32 probabilities on the CPU with the same rows. A chat whose thought did not end has none; the table's
        `.attrs["summary"]` counts them.

    Raises:
        QueryError: malformed queries, one that makes a chat longer than the model's context, or no budget.
        PromptError: no prompts, two of one name, a soft prompt of another model, or one too long for the context.
        ChatTemplateError: the template rejects, drops or rewrites the system text.
        StatesError: the model's logits are not numbers; or there is no such place to read at, see `hidden_states`.
        ModelError: the model is being edited (see `steered`) and this is not what its context yielded.

    Examples:
        >>> import drolab
        >>> from drolab.inference import first_token_probabilities
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").head(2)
        >>> index, probabilities = first_token_probabilities(model, queries, [prompts["none"], prompts["default"]])
        >>> refuses = model.tokenizer("I")["input_ids"][0]
        >>> index.assign(p_refuses=probabilities[:, refuses].tolist()).round(2)
               query_id   prompt  harmful  p_refuses
        0  anchors-0001     none     True       0.42
        1  anchors-0002     none    False       0.05
        2  anchors-0001  default     True       0.68
        3  anchors-0002  default    False       0.08
    """
    check_edits(model)
    queries = validate_queries(queries)
    if token_budget < 1:
        raise QueryError(f"token_budget must be at least 1, got {token_budget}: the default is 16384.")
    check_read_at(read_at)
    placed, found = place_chats(
        model,
        queries["text"].tolist(),
        as_prompts(prompts),
        read_at,
        max_thinking_tokens=max_thinking_tokens,
        thinking_seed=thinking_seed,
        store=store,
        progress=progress,
    )
    tables = []
    counting = bar(progress, total=sum(len(one.rows) for _, one in placed), desc="first tokens", unit="chat")
    with counting as counted, threads_for(model.model):
        for batch in (chats.batch for _, chats in placed):
            rows: dict[int, Tensor] = {}
            for new in _first_tokens(model, batch, token_budget):
                rows.update(new)
                counted.update(len(new))
            tables.append(torch.stack([rows[row] for row in range(len(batch))]))
    columns = queries[["query_id", "harmful"]].reset_index(drop=True)
    parts = [columns.iloc[chats.rows].assign(prompt=prompt.name) for prompt, chats in placed]
    index = pd.concat(parts, ignore_index=True)
    index.attrs["summary"] = found.removeprefix("; ")
    return index[["query_id", "prompt", "harmful"]], torch.cat(tables)


def _first_tokens(model: ChatModel, batch: EncodedBatch, token_budget: int) -> Iterator[dict[int, Tensor]]:
    reader = reader_for(model, batch, 1)
    longest = len(batch.prefix) + max(map(len, batch.suffixes))
    one_each = {row: [0] for row in range(len(batch))}
    for pairs in batches(one_each, batch.suffixes, max(1, token_budget // longest), reader.mixes_lengths):
        rows = [row for row, _ in pairs]
        probabilities = reader.start([batch.suffixes[row] for row in rows]).softmax(dim=-1).cpu()
        yield dict(zip(rows, probabilities, strict=True))


@torch.no_grad()
def next_tokens(
    model: ChatModel, batch: EncodedBatch, plans: Sequence[Sequence[Edit]], *, token_budget: int = 16384
) -> Iterator[tuple[int, list[int], Tensor]]:
    """The distribution of the reply's first token for every chat under each of several plans: lists of edits.

    An empty plan leaves the model as it is. What plans share runs once: edits at the read position leave all tokens
    before it as they are, edits at all positions leave one prefix for all chats. Chats of unequal length never meet
    in a pass, so nothing is padded.

    Args:
        batch: see `chat.encode`.
        token_budget: chats x tokens per chat in one pass; bounds the memory.

    Yields:
        The plan's number, rows of the batch, and their log-probabilities, [rows, vocabulary] float32, on the CPU.
        In no order but one: an empty plan that is the first is the first for its rows.

    Raises:
        ModelError: a plan has edits and the model's blocks or its final norm cannot be found; or the model is being
            edited and this is not what its `steered` context yielded.
        StatesError: a layer that the model does not have, a vector of another width, vectors that are not one for each
            chat, or logits that are not numbers.

    Examples:
        >>> import drolab
        >>> from drolab.inference import next_tokens
        >>> from drolab.models import Ablate, Add, encode
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").head(2)  # one harmful, one harmless
        >>> states = drolab.hidden_states(model, queries, prompts["none"], layers=(2,), progress=False).matrix(2)
        >>> direction = states[0] - states[1]
        >>> batch = encode(model, queries["text"].tolist(), prompts["none"])
        >>> refuses = model.tokenizer("I")["input_ids"][0]
        >>> for plan, rows, found in next_tokens(model, batch, [[], [Add(direction, 2)], [Ablate(direction)]]):
        ...     for row, probability in zip(rows, found.exp()[:, refuses].tolist()):
        ...         print(plan, queries["query_id"].iloc[row], f"P(I) = {probability:.2f}")
        0 anchors-0001 P(I) = 0.42
        0 anchors-0002 P(I) = 0.05
        1 anchors-0001 P(I) = 0.49
        1 anchors-0002 P(I) = 0.06
        2 anchors-0001 P(I) = 0.38
        2 anchors-0002 P(I) = 0.07
    """
    check_edits(model)
    share = can_share_prefix(model)
    late = [number for number, plan in enumerate(plans) if share and all(map(acts_at_read_position, plan))]
    if late:
        yield from _edit_last_tokens(model, batch, {number: plans[number] for number in late}, token_budget)
    for number in sorted(set(range(len(plans))) - set(late)):
        share_prefix = share and not any(map(acts_at_read_position, plans[number]))
        for rows, found in _edit_whole_chats(model, batch, plans[number], token_budget, share_prefix):
            yield number, rows, found


def _edit_last_tokens(
    model: ChatModel, batch: EncodedBatch, plans: Mapping[int, Sequence[Edit]], token_budget: int
) -> Iterator[tuple[int, list[int], Tensor]]:
    """For plans that edit the last token only: the tokens before it run once for all plans, and plans that do the same
    with other vectors run together, since a pass of a few single tokens takes hardly less time than one of many."""
    prefix = prefix_cache(model, prefix_embeddings(model, batch))
    for rows in _chunks(batch, token_budget):
        tokens = _embed_suffixes(model, batch, rows)
        before = prefix_cache(model, tokens[:, :-1], copy_cache(prefix, len(rows)))
        chat_tokens = len(batch.prefix) + tokens.shape[1]
        most = max(1, min(_TOGETHER, token_budget // chat_tokens) // len(rows))
        for numbers in _alike(plans, most):
            edits = _stacked([_edits_of_rows(plans[number], batch, rows) for number in numbers], len(rows))
            last = tokens[:, -1:].repeat_interleave(len(numbers), dim=0)
            spoken = _log_probabilities(model, edits, last, copy_cache(before, len(numbers)))
            for place, number in enumerate(numbers):
                yield number, rows, spoken[place :: len(numbers)]


def _alike(plans: Mapping[int, Sequence[Edit]], most: int) -> Iterator[list[int]]:
    """Numbers of plans that make the same kinds of edits at the same layers, at most so many at a time."""
    kinds: dict[tuple[object, ...], list[int]] = {}
    for number, plan in plans.items():
        kind = tuple((type(edit), edit.layer) for edit in plan if not isinstance(edit, Ablate))  # it edits all tokens
        kinds.setdefault(kind, []).append(number)
    for numbers in kinds.values():
        yield from (numbers[at : at + most] for at in range(0, len(numbers), most))


def _stacked(plans: Sequence[Sequence[Edit]], n_chats: int) -> list[Edit]:
    """Plans that are alike as one, for chats that stand there once for each plan, one after the other."""
    if len(plans) == 1:
        return list(plans[0])
    together = []
    for edits in zip(*plans, strict=True):
        device = vectors_of(edits[0]).device
        each = [vectors_of(edit).to(device).expand(n_chats, -1) for edit in edits]
        together.append(with_vectors(edits[0], torch.stack(each, dim=1).flatten(0, 1)))
    return together


def _edit_whole_chats(
    model: ChatModel, batch: EncodedBatch, plan: Sequence[Edit], token_budget: int, share_prefix: bool
) -> Iterator[tuple[list[int], Tensor]]:
    """For a plan that edits all tokens: the common prefix runs once, if its last token may be edited as any."""
    prefix = prefix_embeddings(model, batch)
    with steered(model, *plan):
        shared = prefix_cache(model, prefix) if share_prefix else None
    for rows in _chunks(batch, token_budget):
        tokens, edits = _embed_suffixes(model, batch, rows), _edits_of_rows(plan, batch, rows)
        if shared is None:
            tokens = torch.cat([prefix.expand(len(rows), *prefix.shape), tokens], dim=1)
        yield rows, _log_probabilities(model, edits, tokens, None if shared is None else copy_cache(shared, len(rows)))


def _chunks(batch: EncodedBatch, token_budget: int) -> Iterator[list[int]]:
    """Rows of equal length, the longest first: if memory is short, that shows at once."""
    by_length: dict[int, list[int]] = {}
    for row, suffix in enumerate(batch.suffixes):
        by_length.setdefault(len(suffix), []).append(row)
    for length in sorted(by_length, reverse=True):
        size = max(1, token_budget // (len(batch.prefix) + length))
        yield from (by_length[length][at : at + size] for at in range(0, len(by_length[length]), size))


def _embed_suffixes(model: ChatModel, batch: EncodedBatch, rows: Sequence[int]) -> Tensor:
    """[rows, S, d]: what follows the shared prefix."""
    return model.embed(torch.tensor([batch.suffixes[row] for row in rows]))


def _edits_of_rows(plan: Sequence[Edit], batch: EncodedBatch, rows: Sequence[int]) -> list[Edit]:
    """A plan for some chats of the batch: of vectors for each chat, their rows."""
    own = []
    for edit in plan:
        vectors = vectors_of(edit)
        if vectors.ndim == 2 and len(vectors) != len(batch):
            raise StatesError(
                f"{type(edit).__name__} has {len(vectors)} vectors for {len(batch)} chats: give one for each, in order."
            )
        own.append(with_vectors(edit, vectors[list(rows)]) if vectors.ndim == 2 else edit)
    return own


def _log_probabilities(model: ChatModel, edits: Sequence[Edit], tokens: Tensor, cache: DynamicCache | None) -> Tensor:
    """[rows, vocabulary]: log-probabilities after the last of the tokens [rows, S, d]."""
    with steered(model, *edits):
        logits = last_logits(model, inputs_embeds=tokens, past_key_values=cache, use_cache=cache is not None)
    return logits.log_softmax(dim=-1).cpu()


def divergence(reference: Tensor, spoken: Tensor) -> Tensor:
    """[n, vocabulary] log-probabilities twice → [n], nats: KL(reference ‖ spoken).

    Examples:
        >>> import torch
        >>> from drolab.inference import divergence
        >>> even, sure = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log()
        >>> divergence(sure, even).tolist()  # ln 2
        [0.6931471824645996]
    """
    weights = reference.double().exp()
    terms = torch.where(weights > 0, weights * (reference.double() - spoken.double()), 0.0)
    return terms.sum(dim=1).clamp(min=0.0)
