"""The part of a model that reads text and gives hidden states: which module that is, and whether it can stand alone.

drolab runs the decoder by itself, without the head and without the towers for images and sound that some checkpoints
have, and it runs it on embeddings, since the vectors of a soft prompt have no token ids. Whether that computes what the
whole model computes from ids is found out by trying it once, when a model is loaded: see `check_decoder`.

Gemma 3n and Gemma 4 look up a second embedding by token id in every layer. Those ids are found again from the
embeddings (`supply_ids`); free vectors have none, so a soft prompt is refused (`check_takes_vectors`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from drolab.errors import ModelError
from drolab.threads import threads_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRIAL_ERRORS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a family may raise that cannot do what is tried."""


_MOST = 0.02
"""The largest relative difference between the same steps on the same shapes, in 8 bits."""
_LEAK = 0.1
"""How far a state may move, as a part of how far the last token's does, when only that is another: what experts and
quantised weights make of it by rounding is less, what a model that sees ahead makes of it is more than half."""


def tolerance(dtype: torch.dtype) -> float:
    """The relative difference up to which two ways to compute the same are equal."""
    return float(2**3 * torch.finfo(dtype).eps ** 0.75)


def text_decoder(model: PreTrainedModel) -> nn.Module:
    """The decoder without the language-model head: transformers' own answer; where that is the whole model (Llama 4),
    the innermost model around the input embeddings."""
    found: nn.Module = model.get_decoder()
    embedding = model.get_input_embeddings()

    def holds_embedding(module: nn.Module) -> bool:
        return any(part is embedding for part in module.modules())

    if found is not model and holds_embedding(found):
        return found
    inside = [part for part in model.modules() if isinstance(part, PreTrainedModel) and holds_embedding(part)]
    return inside[-1] if inside else found


# --- whether it can stand alone ----------------------------------------------------------------------------


@torch.no_grad()
def check_decoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise unless the decoder alone, given embeddings, computes what it computes inside the whole model, given ids.

    Raises:
        ModelError: it does not, and why as far as that is known; or there is no memory for four tokens.
    """
    kind = model.config.model_type
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name!r} ({kind}) is an encoder with a decoder, and drolab reads decoder-only models: choose one of "
            "those."
        )
    try:
        supply_ids(model)
        ids = _trial_ids(model, tokenizer)
        whole = _inside(model, ids)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{name!r} is loaded, and there is no memory left to run four tokens: load it with dtype='bfloat16', "
            "spread it with device_map='auto', or free the memory that others use."
        ) from error
    except TRIAL_ERRORS as error:
        raise ModelError(
            f"{name!r} ({kind}) cannot read a text alone ({type(error).__name__}: {_short(error)}): "
            "use a decoder-only chat model."
        ) from error
    decoder = text_decoder(model)
    if whole is None:
        raise ModelError(
            f"{name!r} ({kind}) does not compute its reply from one decoder's last hidden state "
            f"({type(decoder).__name__} has none), so there is no state to read: use a decoder-only chat model."
        )
    embedded = model.get_input_embeddings()(ids)
    given = embedded.clone()
    try:
        alone = decoder(inputs_embeds=given, use_cache=False).last_hidden_state
    except TRIAL_ERRORS as error:
        raise ModelError(
            f"{name!r} ({kind}) cannot run on embeddings ({type(error).__name__}: {_short(error)}), which is what a "
            "soft prompt consists of: use another family."
        ) from error
    if not torch.equal(given, embedded):
        raise ModelError(
            f"{name!r} ({kind}) overwrites the embeddings that it is given, which many chats share: use another family."
        )
    if not _equal(alone, whole):
        raise ModelError(
            f"The decoder of {name!r} ({kind}) computes other states by itself than inside the model (it may mask or "
            "place text in a way of its own), so drolab's numbers would be wrong: use another family."
        )
    other = decoder(inputs_embeds=embedded[:, [0, 1, 2, 0]], use_cache=False).last_hidden_state
    moved = (other.float() - alone.float()).nan_to_num().norm(dim=-1)[0]
    if moved[:-1].max() > _LEAK * moved[-1]:
        raise ModelError(
            f"In {name!r} ({kind}) tokens see those that come after them, so a chat has no state that its reply begins "
            "from: use a decoder-only chat model (in a configuration of the BERT family, is_decoder=True)."
        )


def _trial_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """[1, 4]: ordinary tokens, none that stands for an image, say."""
    ids = tokenizer("How do I boil an egg?", add_special_tokens=False)["input_ids"][:4]
    embedding: Any = model.get_input_embeddings()
    rows = getattr(embedding, "num_embeddings", None) or len(tokenizer)
    usable = len(set(ids)) == 4 and max(ids) < rows
    return torch.tensor([ids if usable else range(4)], device=device_of(model)) % rows


def device_of(model: PreTrainedModel) -> torch.device:
    """Where token ids and embeddings enter the model."""
    embedding: Any = model.get_input_embeddings()
    device: torch.device = embedding.weight.device
    if device.type == "meta":  # offloaded by accelerate: its hook knows where the layer runs
        return torch.device(embedding._hf_hook.execution_device)
    return device


def _inside(model: PreTrainedModel, ids: Tensor) -> Tensor | None:
    """What the decoder gives when the whole model reads these ids."""
    states: list[Any] = []
    hook = text_decoder(model).register_forward_hook(
        lambda module, args, output: states.append(getattr(output, "last_hidden_state", None))
    )
    try:
        model(input_ids=ids, use_cache=False)
    finally:
        hook.remove()
    return states[-1] if len(states) == 1 and isinstance(states[-1], Tensor) else None


def _equal(one: Tensor, other: Tensor) -> bool:
    """Up to rounding. What is not finite in both is said of the states themselves, later."""
    if one.shape != other.shape:
        return False
    limit = min(tolerance(other.dtype), _MOST)
    one, other = one.to(other.device).float().nan_to_num(), other.float().nan_to_num()
    return bool((one - other).norm() <= limit * other.norm())


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return lines[0][:160].rstrip(".")


# --- gradients ---------------------------------------------------------------------------------------------


def check_trainable(model: PreTrainedModel, name: str) -> None:
    """Raise ModelError if the gradient of a soft prompt would be missing or wrong.

    Found out by trying: behind every module with weights that is given something to differentiate there must be
    something to differentiate. Some ways to multiply with quantised weights return a result without a gradient, and the
    sum that it is added to then has a wrong one.
    """
    check_takes_vectors(model, name)
    embedding: Any = model.get_input_embeddings()
    vectors = embedding(torch.arange(4, device=device_of(model))[None]).detach().requires_grad_()
    cut: list[str] = []

    def note(module: nn.Module, args: tuple, output: Any) -> None:
        given = any(isinstance(part, Tensor) and part.requires_grad for part in args)
        if given and isinstance(output, Tensor) and output.is_floating_point() and not output.requires_grad:
            cut.append(f"{type(module).__name__} of {_kind_of_weights(module)}")

    decoder = text_decoder(model)
    hooks = [part.register_forward_hook(note) for part in decoder.modules() if _is_quantised(part)]
    try:
        with torch.enable_grad(), threads_for(model):
            decoder(inputs_embeds=vectors, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    if cut:
        raise ModelError(
            f"No gradient comes back through the quantised weights of {name!r} ({cut[0]}, {len(cut)} of them), so a "
            "soft prompt would be trained on a wrong one: load the model unquantised, or in 8 bits by bitsandbytes, "
            "for DRO. Hidden states and replies are not concerned."
        )


def _is_quantised(module: nn.Module) -> bool:
    """Or otherwise special. Plain ones pass gradients on, unless a family's code means them not to (a sparse index)."""
    if not isinstance(module, nn.Linear):
        return False
    return type(module) is not nn.Linear or type(getattr(module, "weight", None)) is not nn.Parameter


def _kind_of_weights(module: nn.Module) -> str:
    weight = getattr(module, "weight", None)
    return type(weight).__name__ if weight is not None else "packed weights"


# --- a second embedding, by token id -----------------------------------------------------------------------


def check_takes_vectors(model: PreTrainedModel, name: str) -> None:
    """Raise ModelError if the model must know the token id of everything it reads."""
    if reads_ids(model):
        raise ModelError(
            f"{name!r} ({model.config.model_type}) looks up a second embedding in every layer by token id, and the "
            "vectors of a soft prompt have no ids: hidden states and replies under text prompts work, DRO needs "
            "another family."
        )


def reads_ids(model: PreTrainedModel) -> bool:
    """Whether it has per-layer embeddings."""
    return getattr(text_decoder(model), "embed_tokens_per_layer", None) is not None


_ids: WeakKeyDictionary[PreTrainedModel, _Rows] = WeakKeyDictionary()


def supply_ids(model: PreTrainedModel) -> None:
    """Give a model with per-layer embeddings those of the tokens whose embeddings it is given; for others do nothing.

    Where transformers does this itself it compares with the whole table at once, which needs terabytes.
    """
    if not reads_ids(model) or model in _ids:
        return
    rows = _ids[model] = _Rows(model)
    decoder: Any = text_decoder(model)

    def add(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        embeddings = kwargs.get("inputs_embeds")
        if embeddings is not None and kwargs.get("per_layer_inputs") is None:
            kwargs["per_layer_inputs"] = decoder.get_per_layer_inputs(rows.ids(embeddings))
        return args, kwargs

    for module in (model, decoder):
        module.register_forward_pre_hook(add, with_kwargs=True)


class _Rows:
    """Which token has which embedding."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._embedding: Any = model.get_input_embeddings()
        self._name = model.config.model_type
        self._sorted: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def ids(self, embeddings: Tensor) -> Tensor:
        """[…, d] → […]

        Raises:
            ModelError: a vector is no token's.
        """
        marks, order = self._table(embeddings)
        places = torch.searchsorted(marks, _mark(embeddings)).clamp(max=len(marks) - 1)
        found = order[places]
        if not torch.equal(self._embedding(found), embeddings):
            raise ModelError(
                f"A model of the family {self._name} looks up a second embedding in every layer by token id, and one "
                "of these vectors is the embedding of no token: give it the embeddings of tokens."
            )
        return found

    def _table(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if self._sorted is None:
            every = torch.arange(self._embedding.weight.shape[0], device=like.device)
            marks = torch.cat([_mark(self._embedding(some)) for some in every.split(4096)])
            self._sorted = marks.sort(stable=True)
        return self._sorted


def _mark(vectors: Tensor) -> Tensor:
    """[…, d] → […] int64: equal for equal vectors, and hardly ever for others."""
    bits = vectors.float().contiguous().view(torch.int32).long()
    factors = torch.arange(1, bits.shape[-1] + 1, device=bits.device) * 0x9E3779B97F4A7C1 | 1
    return ((bits ^ (bits >> 15)) * factors).sum(dim=-1)
