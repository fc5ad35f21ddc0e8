"""Loading chat models: from the hub, from a folder, or the demo model that ships with drolab.

A `ChatModel` is a transformers model with its tokenizer and a *fingerprint*: a hash of everything that
determines what the model computes. Stored results and soft prompts are tied to it, never to a name.
"""

from __future__ import annotations

import datetime
import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from drolab.errors import ModelError
from drolab.files import expanded
from drolab.models.fingerprint import fingerprint
from drolab.models.tekken import from_mistral_common, is_mistral_common
from drolab.models.templates import Template, open_template

DEMO = "demo"
_ASSETS = Path(str(resources.files("drolab"))) / "assets"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
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
        embedding: Any = self.model.get_input_embeddings()
        device: torch.device = embedding.weight.device
        if device.type == "meta":  # offloaded by accelerate: its hook knows where the layer runs
            return torch.device(embedding._hf_hook.execution_device)
        return device

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
        return self.model.get_decoder()

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
    revision: str | None = None,
    attn_implementation: str | None = None,
    chat_template: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    system_as: str | None = None,
    date: datetime.date | str | None = None,
    trust_remote_code: bool = False,
) -> ChatModel:
    """Load a chat model and its tokenizer.

    Weights are read from safetensors only. `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` are honoured.

    Args:
        name_or_path: "demo" (ships with drolab, works offline), a hub id ("org/model"), a local folder, or a `.gguf`
            file (or a folder with one alone), whose quantized weights become plain ones: `pip install gguf`.
        dtype: of the weights: a torch.dtype, its name, or "auto". None takes the checkpoint's own, except
            for the demo model, which runs in float32.
        device_map: as in transformers; "auto" spreads the model over the GPUs. None loads on the CPU.
        revision: branch, tag or commit on the hub.
        attn_implementation: "eager", "sdpa", "flash_attention_2"; None leaves the choice to transformers.
        chat_template: Jinja text, the name of a known format (see CHAT_FORMATS), or of one of the tokenizer's own if
            it has several. None uses the tokenizer's own.
        template_kwargs: what the template is told in every chat beside the messages, such as
            `{"enable_thinking": False}`. They are part of the fingerprint.
        system_as: "first_user" puts the system text before the first user's, a blank line between them, as the makers
            of models without a system role do (Gemma's). None writes a system message.
        date: today's, for templates that ask for it: "2025-01-31". None is 26 July 2024, on every day.
        trust_remote_code: run Python code that comes with the checkpoint. Off unless you ask for it.

    Raises:
        ModelError: no such model, no safetensors weights, no access, an unknown dtype, a slow tokenizer.
        ChatTemplateError: no chat template, one whose syntax is wrong, an unknown format name, something among
            `template_kwargs` that the template never reads, or that switches off a thought it opens all the same.

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
    writing: dict[str, Any] = {
        "chat_template": chat_template,
        "template_kwargs": template_kwargs,
        "system_as": system_as,
        "date": date,
    }
    is_demo = name_or_path == DEMO  # Path("demo") is a folder of yours
    source = _demo_folder() if is_demo else model_source(name)
    gguf = find_gguf(name, Path(source))
    torch_dtype = _dtype(dtype, default=torch.float32 if is_demo else "auto")
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if gguf is not None:
        source, options["gguf_file"] = str(gguf.parent), gguf.name
    with loading(name):
        tokenizer: Any = AutoTokenizer.from_pretrained(source, **options)
        if is_mistral_common(tokenizer):
            tokenizer = from_mistral_common(tokenizer, source, name, **options)
        _check_tokenizer(tokenizer, name)  # before gigabytes of weights are read
        open_template(tokenizer, name, **writing)
        result: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch_dtype,
            device_map=device_map,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    model, loaded = result
    if missing := sorted(loaded["missing_keys"]):  # transformers fills them with random numbers
        raise ModelError(
            f"The checkpoint {name!r} lacks {len(missing)} weights (first: {missing[0]}), so it is not a whole "
            "chat model: merge an adapter into its base model, or download the checkpoint again."
        )
    return wrap(model, tokenizer, name=name, **writing)


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
    """A ChatModel around a model that is already in memory; what is said about its chats is as in `load_model`.

    The model is put into eval mode and its parameters stop requiring gradients. The tokenizer is not
    changed: with a `chat_template` (Jinja text or a known name) the ChatModel gets a copy that has it.

    Raises:
        ModelError: a slow tokenizer. ChatTemplateError: as in `load_model`.
    """
    _check_tokenizer(tokenizer, name)
    template = open_template(
        tokenizer, name, chat_template=chat_template, template_kwargs=template_kwargs, system_as=system_as, date=date
    )
    model.eval().requires_grad_(False)
    own = fingerprint(model, template.tokenizer, told=template.told)
    return ChatModel(model=model, tokenizer=template.tokenizer, name=name, fingerprint=own, template=template)


# --- where a model comes from, and what can be wrong with it -----------------------------------------------


def model_source(name: str) -> str:
    """The folder or hub id to give to transformers.

    Raises:
        ModelError: neither, or a folder without a model's files.
    """
    folder = expanded(name, ModelError)
    if folder.is_file() and _is_gguf(folder):
        return str(folder)
    if folder.is_file():
        raise ModelError(f"{name!r} is a file: give the folder that it is in, with config.json and the tokenizer.")
    if folder.is_dir():
        _check_folder(name, folder)
        return str(folder)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ModelError(
            f"There is no folder {name!r}, and it is no hub id: give an existing folder, "
            "a hub id such as 'org/model', or 'demo'."
        )
    return name


def _demo_folder() -> str:
    folder = _ASSETS / DEMO
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelError(f"The demo model is missing from this installation ({folder}): install drolab again.")
    return str(folder)


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def find_gguf(name: str, source: Path) -> Path | None:
    """The GGUF file that `model_source` gave, or that a folder has in place of other weights.

    Raises:
        ModelError: several to choose from, one that is not whole, or no package to read one with.
    """
    if source.is_dir() and not any(source.glob("*.safetensors")):
        found = sorted(path for path in source.iterdir() if _is_gguf(path))
    else:
        found = [source] if _is_gguf(source) and source.is_file() else []
    if not found:
        return None
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise ModelError(f"The folder {name!r} has several GGUF files ({listed}): give the path of one of them.")
    with open(found[0], "rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{found[0]} does not begin as a GGUF file does: download it again (git lfs pull?).")
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"{name!r} is a GGUF file, which needs the package gguf: pip install gguf. Or load the model that it was "
            "made from, in safetensors."
        )
    return found[0]


def _check_folder(name: str, folder: Path) -> None:
    if any(map(_is_gguf, folder.iterdir())) and not any(folder.glob("*.safetensors")):
        return
    if not (folder / "config.json").is_file():
        raise ModelError(f"The folder {name!r} has no config.json: point to a folder of save_pretrained.")
    if any(folder.glob("*.safetensors")):
        return
    if any(file for pattern in _PICKLED for file in folder.glob(pattern)):
        raise ModelError(
            f"The folder {name!r} has only pickled weights, which drolab never reads: convert them where you "
            "trust them, with model.save_pretrained(folder) of transformers, which writes safetensors."
        )
    raise ModelError(f"The folder {name!r} has no weights (*.safetensors): save or download the model again.")


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


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turns what transformers' loaders raise into a ModelError that says what to do."""
    try:
        yield
    except ModelError:
        raise
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        raise ModelError(_explain(name, error)) from error


def _explain(name: str, error: Exception) -> str:
    """What to do about an error of transformers' loaders."""
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    causes = list(_causes(error))
    text = " ".join(map(str, causes))
    if any(isinstance(cause, GatedRepoError) for cause in causes) or "gated repo" in text:
        return f"{name!r} is gated: accept its licence on its hub page, then set HF_TOKEN to a token of your account."
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes) or "not a valid model identifier" in text:
        return (
            f"The hub has no model {name!r} that you may see: check the spelling; for a private one set HF_TOKEN. "
            "drolab.load_model('demo') works without the hub."
        )
    if "mistral-common" in text or "mistral_common" in text:
        return (
            f"The tokenizer of {name!r} is a file of Mistral's (tekken.json), which needs the package mistral-common: "
            "pip install mistral-common."
        )
    if "trust_remote_code" in text:
        return f"{name!r} brings its own Python code: read it, then pass trust_remote_code=True if you trust it."
    offline = any(isinstance(cause, (OfflineModeIsEnabled, ConnectionError)) for cause in causes)
    if offline or "couldn't connect" in text or "We have no connection" in text or "local_files_only" in text:
        return (
            f"{name!r} is not a folder here, and the hub cannot be reached: a hub id needs network or a copy in the "
            "cache (HF_HOME), a local model an existing folder; HF_HUB_OFFLINE=1 saves the wait. "
            "drolab.load_model('demo') works offline."
        )
    if any(isinstance(cause, SafetensorError) for cause in causes):
        return f"A weights file of {name!r} is not readable: download or save it again. ({_first_line(error)})"
    if "safetensors" in text:
        return (
            f"{name!r} has no safetensors weights, and drolab never reads pickled ones: choose a revision that has "
            f"them, or convert the model with save_pretrained. ({_first_line(error)})"
        )
    return f"{name!r} cannot be loaded: {_first_line(error)} Check the name, the files and the versions."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."
