"""Edits of the hidden states while the model runs: add a direction, project one out, put other states in.

Layers count as everywhere (`layers`): 0 is the embedding output, k the output of block k, and the last one (-1) is
taken after the final norm. The raw output of the last block has no number; `Ablate` reaches it all the same.

An edit is in force inside `steered(model, …)` only, and only in the thread that entered it: others, also those that
are started there, run the same modules unedited, at the same time. So that no store keeps an edited state under the
unedited model's name, `steered` yields a model with another fingerprint, and `hidden_states` and `generate` refuse any
model whose fingerprint does not say what its modules compute in the thread that asks.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from drolab.errors import ModelError, StatesError
from drolab.models.layers import block_names, check_layers, resolve_layers
from drolab.models.load import ChatModel
from drolab.store import key

Positions = Literal["all", "read"]


# --- the edits ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Add:
    """Move the states of one layer by one vector (activation addition, Turner et al. 2023).

    Raises:
        StatesError: a direction that is no finite vector or zero, or positions that are neither "all" nor "read". In a
            pass, another number of chats than vectors.

    Examples:
        >>> import drolab, torch
        >>> from drolab.models import Add, steered
        >>> model, direction = drolab.load_model("demo"), torch.ones(256)
        >>> queries, prompt = drolab.load_queries("anchors").head(3), drolab.load_prompts()["none"]
        >>> plain = drolab.hidden_states(model, queries, prompt, layers=(2,), progress=False)
        >>> with steered(model, Add(direction, layer=2)) as pushed:
        ...     moved = drolab.hidden_states(pushed, queries, prompt, layers=(2,), progress=False)
        >>> torch.allclose(moved.values - plain.values, direction, atol=1e-4)
        True
    """

    direction: Tensor
    """[d]: what is added, so its norm is the strength. At the read position also [n, d], as in Patch."""
    layer: int
    positions: Positions = "all"
    """All tokens of the chat, or only the one that is read: the last of the pass."""

    def __post_init__(self) -> None:
        if self.positions not in ("all", "read"):
            raise StatesError(f"positions must be 'all' or 'read', got {self.positions!r}.")
        for_each = self.positions == "read" and self.direction.ndim == 2
        check_direction(self.direction.flatten() if for_each else self.direction)


@dataclass(frozen=True, eq=False)
class Ablate:
    """Take the component along a direction out of the states at all positions: h - r rᵀ(h - reference), ‖r‖ = 1.

    Without a reference in the spirit of directional ablation (Arditi et al. 2024, section 2.4), which sets the
    component to 0. That also edits what attention writes inside a block, before its feed-forward part reads it; here a
    block is left whole, and what it has written is edited. Zero is a neutral value only if the states vary around it;
    a reference gives every state the component of a state that stands for "without" (affine concept editing, Marshall
    et al. 2024).

    Raises:
        StatesError: a direction that is no finite vector or zero; a reference without exactly one layer, not finite, or
            of another width.

    Examples:
        >>> import drolab, torch
        >>> from drolab.models import Ablate, steered
        >>> model, direction = drolab.load_model("demo"), torch.ones(256)
        >>> queries, prompt = drolab.load_queries("anchors").head(3), drolab.load_prompts()["none"]
        >>> with steered(model, Ablate(direction)) as without:
        ...     states = drolab.hidden_states(without, queries, prompt, layers=(1, 2, 3), progress=False)
        >>> (states.values @ direction).abs().max() < 1e-3
        tensor(True)
    """

    direction: Tensor
    """[d]: neither its length nor its sign matters."""
    layers: Sequence[int] | None = None
    """None: the embedding output and the output of every block, but not the states after the final norm, which are a
    space of their own."""
    reference: Tensor | None = None
    """[d]: a state of the layer edited, which must then be one; None: 0."""

    def __post_init__(self) -> None:
        check_direction(self.direction)
        if self.reference is None:
            return
        if self.layers is None or len(self.layers) != 1:
            raise StatesError("A reference is a state of one layer: name it, Ablate(direction, [layer], reference).")
        if self.reference.shape != self.direction.shape or not self.reference.isfinite().all():
            raise StatesError(
                f"The reference must be a finite state of shape {list(self.direction.shape)}, got "
                f"{list(self.reference.shape)}: use the mean of states.matrix(layer)."
            )


@dataclass(frozen=True, eq=False)
class Patch:
    """Replace the state at the read position, the last of the pass (activation patching).

    Raises:
        StatesError: states that are not finite or not of shape [n, d]; in a pass, another number of chats than states.

    Examples:
        The first query with the second one's state at layer 2 put in, and the other way round:

        >>> import drolab
        >>> from drolab.inference import next_tokens
        >>> from drolab.models import Patch, encode
        >>> model, prompt = drolab.load_model("demo"), drolab.load_prompts()["none"]
        >>> queries = drolab.load_queries("anchors").head(2)  # one harmful, one harmless
        >>> states = drolab.hidden_states(model, queries, prompt, layers=(2,), progress=False).matrix(2)
        >>> batch = encode(model, queries["text"].tolist(), prompt)
        >>> refuses = model.tokenizer("I")["input_ids"][0]
        >>> for plan, rows, found in next_tokens(model, batch, [[], [Patch(states.flip(0), layer=2)]]):
        ...     for row, probability in zip(rows, found.exp()[:, refuses].tolist()):
        ...         print(plan, queries["query_id"].iloc[row], f"P(I) = {probability:.2f}")
        0 anchors-0001 P(I) = 0.42
        1 anchors-0001 P(I) = 0.33
        0 anchors-0002 P(I) = 0.05
        1 anchors-0002 P(I) = 0.06
    """

    states: Tensor
    """[n, d]: row i for the i-th chat of the pass; in `next_tokens` for the i-th chat of the batch."""
    layer: int

    def __post_init__(self) -> None:
        if self.states.ndim != 2 or not self.states.isfinite().all():
            raise StatesError(
                f"Patch needs finite states of shape [n, d], got {list(self.states.shape)}: pass states.matrix(layer)."
            )


Edit = Add | Ablate | Patch


def check_direction(direction: Tensor, name: str = "The direction") -> None:
    """Raise StatesError unless it is a finite vector that is not zero."""
    if direction.ndim != 1 or not direction.isfinite().all() or not direction.any():
        raise StatesError(
            f"{name} must be a finite vector of shape [d] that is not zero, got shape {list(direction.shape)}: "
            "use probe.direction(space), or a difference of two means of states."
        )


def acts_at_read_position(edit: Edit) -> bool:
    """Whether an edit leaves all tokens but the last as they are."""
    return isinstance(edit, Patch) or (isinstance(edit, Add) and edit.positions == "read")


def vectors_of(edit: Edit) -> Tensor:
    """[d], or [n, d] if there is one for each chat."""
    return edit.states if isinstance(edit, Patch) else edit.direction


def with_vectors(edit: Edit, vectors: Tensor) -> Edit:
    """The same edit with others."""
    return replace(edit, states=vectors) if isinstance(edit, Patch) else replace(edit, direction=vectors)


def _apply(edit: Edit, states: Tensor) -> Tensor:
    """[B, S, d] → [B, S, d], a new tensor."""
    vectors = vectors_of(edit).detach().to(states.device, torch.float32)
    if isinstance(edit, Ablate):
        unit = vectors / vectors.norm()
        start = 0.0 if edit.reference is None else edit.reference.to(unit) @ unit
        along: Tensor = states.float() @ unit - start
        return (states.float() - along[..., None] * unit).to(states.dtype)
    if isinstance(edit, Add) and edit.positions == "all":
        return (states.float() + vectors).to(states.dtype)
    if vectors.ndim == 2 and len(vectors) != len(states):
        raise StatesError(
            f"{type(edit).__name__} has {len(vectors)} vectors for a pass of {len(states)} chats: give one for each."
        )
    edited = states.clone()
    edited[:, -1] = (vectors if isinstance(edit, Patch) else states[:, -1].float() + vectors).to(states.dtype)
    return edited


# --- which edits are in force ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ActiveEdits:
    """The edits of one `steered`, as long as its context lasts."""

    digest: str
    """Names them in the fingerprint of the model that `steered` yields."""
    at_read: bool
    """Some edit acts at the read position only."""
    points: dict[int, list[Edit]]
    """Place in `layers.block_names` → what is done to the states there."""


class _Here(threading.local):
    """What each thread has of its own."""

    def __init__(self) -> None:
        self.active: WeakKeyDictionary[PreTrainedModel, list[ActiveEdits]] = WeakKeyDictionary()
        self.entering: WeakKeyDictionary[PreTrainedModel, Tensor] = WeakKeyDictionary()
        """The edited embedding output of the pass that is under way."""


_here = _Here()
_hooks: WeakKeyDictionary[PreTrainedModel, ExitStack] = WeakKeyDictionary()
_in_force: WeakKeyDictionary[PreTrainedModel, set[ActiveEdits]] = WeakKeyDictionary()
"""In any thread: as long as there are some, the hooks stay."""
_lock = threading.RLock()
"""Of the two above. A context may end wherever garbage is collected, so also in a thread that holds it."""


def active_edits(model: ChatModel) -> list[ActiveEdits]:
    """What edits this model's modules at the moment in this thread, in the order of entering."""
    return _here.active.setdefault(model.model, [])


def check_edits(model: ChatModel, *, at_read: bool = False) -> None:
    """Raise unless the modules compute at this moment what the fingerprint says: else a store would be poisoned.

    Args:
        at_read: whether the caller can run edits that act at the read position only.

    Raises:
        ModelError: the modules are being edited in this thread and `model` is not what `steered` yielded, or it is and
            the context has ended or is another thread's; or edits at the read position where the caller cannot run
            them.
    """
    active = active_edits(model)
    if model.fingerprint.split("+")[1:] != [edits.digest for edits in active]:
        if active:
            raise ModelError(
                f"The states of {model.name!r} are being edited: use the model that the innermost steered(…) yielded, "
                "or leave its context first."
            )
        raise ModelError(
            f"The edits of this {model.name!r} have ended, or another thread entered them: use it inside its "
            "steered(…) context, in the thread that entered it. Another thread enters a context of its own."
        )
    if not at_read and any(edits.at_read for edits in active):
        raise ModelError(
            f"{model.name!r} is edited at the read position, which has a meaning only in single passes of whole "
            "chats: use inference.next_tokens, or edit all positions."
        )


# --- the context -------------------------------------------------------------------------------------------


@contextmanager
def steered(model: ChatModel, *edits: Edit) -> Iterator[ChatModel]:
    """The model with its states edited, as long as the context lasts. Edits at one layer act in the order given.

    They act in the thread that enters the context, and in no other: a thread that is started inside runs the model
    unedited, and refuses what this yields.

    `generate` and `hidden_states` take what this yields, if all edits are at all positions. With an edit at the read
    position the model can only be run in single passes of whole chats that end together (no padding, or padded on the
    left): by `next_tokens`, or by `model.model(…)`. Contexts can be nested: give the inner one what the outer yielded.

    Raises:
        ModelError: the model's blocks or its final norm cannot be found, `model` is not the one to edit now, or the
            last layer is another state in transformers.
        StatesError: a layer that the model does not have, or a vector of another width.

    Examples:
        What the `default` prompt adds to the states of two harmful and two harmless queries at layer 2; the same added
        by hand, four times, in place of the prompt:

        >>> import drolab
        >>> from drolab import steering
        >>> model, prompts = drolab.load_model("demo"), drolab.load_prompts()
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(2)
        >>> both = [prompts["none"], prompts["default"]]
        >>> states = drolab.hidden_states(model, queries, both, layers=(2,), progress=False)
        >>> shift = (states.select(prompt="default").matrix(2) - states.select(prompt="none").matrix(2)).mean(dim=0)
        >>> options = {"n_samples": 1, "do_sample": False, "max_new_tokens": 4, "progress": False}
        >>> drolab.generate(model, queries, prompts["none"], **options)["response"].tolist()
        ['I cannot help with', 'Here is a plan', 'I cannot help with', 'Here is a plan']
        >>> with steering.steered(model, steering.Add(4 * shift, layer=2)) as pushed:
        ...     drolab.generate(pushed, queries, prompts["none"], **options)["response"].tolist()
        ['I cannot assist with', "I'm sorry,", 'I cannot assist with', 'I cannot assist with']
    """
    check_edits(model, at_read=True)
    if not edits:
        yield model
        return
    own, active = _resolve(model, edits), active_edits(model)
    try:
        with _lock:
            _in_force.setdefault(model.model, set()).add(own)
            if model.model not in _hooks:
                _install(model)
        active.append(own)
        yield replace(model, fingerprint=_edited(model, own))
    finally:
        active[:] = [other for other in active if other is not own]
        _here.entering.pop(model.model, None)
        with _lock:
            left = _in_force.get(model.model, set())
            left.discard(own)
            if not left and model.model in _hooks:
                _hooks.pop(model.model).close()


def edited_fingerprint(model: ChatModel, edits: Sequence[Edit]) -> str:
    """The fingerprint of what `steered(model, *edits)` yields.

    Raises:
        ModelError, StatesError: as `steered`.
    """
    return _edited(model, _resolve(model, edits)) if edits else model.fingerprint


def _edited(model: ChatModel, own: ActiveEdits) -> str:
    return f"{model.fingerprint}+{own.digest}"


def _resolve(model: ChatModel, edits: Sequence[Edit]) -> ActiveEdits:
    n_points = len(block_names(model))
    points: dict[int, list[Edit]] = {}
    identities = []
    for edit in edits:
        vectors = vectors_of(edit)
        if vectors.shape[-1] != model.hidden_size:
            raise StatesError(
                f"{type(edit).__name__} has vectors of width {vectors.shape[-1]}, but {model.name!r} has hidden size "
                f"{model.hidden_size}: take them from this model's states."
            )
        where = _points(model, edit, n_points)
        for point in where:
            points.setdefault(point, []).append(edit)
        reference = edit.reference if isinstance(edit, Ablate) else None
        content = [None if part is None else _sha256(part) for part in (vectors, reference)]
        identities.append([type(edit).__name__, where, acts_at_read_position(edit), content])
    digest = key(kind="edits", edits=identities)[:16]
    return ActiveEdits(digest=digest, at_read=any(map(acts_at_read_position, edits)), points=points)


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().float().contiguous().cpu().numpy().tobytes()).hexdigest()


def _points(model: ChatModel, edit: Edit, n_points: int) -> list[int]:
    """The places of an edit in `layers.block_names`: layers, but the one after the final norm is the last place."""
    last = model.num_hidden_layers
    if not isinstance(edit, Ablate):
        layers: Sequence[int] = (edit.layer,)
    elif edit.layers is None:
        return list(range(last + 1))
    else:
        layers = edit.layers
    resolved = resolve_layers(model, layers)
    check_layers(model, resolved)
    return [n_points - 1 if layer == last else layer for layer in resolved]


def _install(model: ChatModel) -> None:
    """Hooks at every point. They come before all others at their module: who listens there sees the edited states.

    In a thread without edits they do nothing. Another thread may remove them in the middle of a pass; then torch may
    call one of them once more, and without the kwargs that it was registered for.
    """
    stack = _hooks[model.model] = ExitStack()
    names, decoder = block_names(model), model.base_model

    def edited(point: int, states: Tensor) -> Tensor:
        for own in active_edits(model):
            for edit in own.points.get(point, ()):
                states = _apply(edit, states)
        return states

    def at_start(module: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None) -> Any:
        if kwargs is None or not active_edits(model):
            return None
        states = edited(0, args[0] if args else kwargs["hidden_states"])
        _here.entering[model.model] = states
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

    def at_end(module: nn.Module, args: tuple, output: Any) -> None:
        # Some families note the embedding output before the first block's hooks can see it.
        entering = _here.entering.pop(model.model, None)
        if entering is not None and getattr(output, "hidden_states", None):
            output.hidden_states = (entering, *output.hidden_states[1:])

    def after(point: int) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> Any:
            if not active_edits(model):
                return None
            if isinstance(output, (tuple, list)):
                return type(output)([edited(point, output[0]), *output[1:]])
            return edited(point, output)

        return hook

    first = decoder.get_submodule(names[0])
    stack.callback(first.register_forward_pre_hook(at_start, with_kwargs=True).remove)
    stack.callback(decoder.register_forward_hook(at_end).remove)
    for point, name in enumerate(names[1:], start=1):
        stack.callback(decoder.get_submodule(name).register_forward_hook(after(point), prepend=True).remove)
