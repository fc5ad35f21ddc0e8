"""The data that passes between drolab's rooms: frozen dataclasses with shape checks, and table columns.

Every tensor field has its shape in the docstring below it and is checked once, on construction.
Tables are pandas DataFrames; their columns are the tuples at the top of this module.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from drolab.errors import PromptError, StatesError, TrainingError, shown
from drolab.files import read_bytes, read_json, write_file

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

_log = logging.getLogger(__name__)

QUERY_COLUMNS = ("query_id", "text", "harmful", "category", "split", "source")
"""Columns of a query set. Its (unnamed) index repeats `query_id`, so that a column aligns by query."""

STATE_COLUMNS = ("query_id", "prompt", "position", "text", "harmful", "category", "split")
"""Columns of `HiddenStates.index`: one row per query, prompt and read position."""

RESPONSE_COLUMNS = (
    "query_id",
    "prompt",
    "sample",
    "text",
    "harmful",
    "response",
    "n_tokens",
    "finish_reason",
    "first_token",
)
"""Columns of the responses table: one row per query, prompt and sample; `text` is the query."""

REASONING_COLUMNS = ("reasoning", "n_reasoning_tokens")
"""Further columns of a responses table of a model that thinks: `response` is then the answer without the thought."""

ReadAt = Literal["reply", "answer", "after_thinking"]
"""Where a chat ends, and its last token is read. For a model that thinks first these are three places: the end of the
chat, where the reply begins; after a thought that is closed and empty; and after a thought of the model's own."""

UNFINISHED = "thinking"
"""The `finish_reason` of a reply that ended before its answer began."""

SCORE_COLUMNS = ("harmful", "n_samples", "refusal_rate", "compliance_rate", "any_refusal", "any_compliance")
"""Columns of the table that `judge` returns, indexed by (query_id, prompt)."""

NO_PROMPT = "none"
"""The name of the absence of a safety prompt: what the model gets when the user gives nothing, which for many models is
a system text that their template writes itself."""
EMPTY_PROMPT = "empty"
"""The name of a system message that is there and empty."""
OWN_PROMPT = "own"
"""The name of the system text that a model's template writes itself, as a prompt among others."""


def _check_shape(owner: object, field: str, tensor: Tensor, *shape: int | None) -> None:
    actual = tuple(tensor.shape)
    if len(actual) != len(shape) or any(w is not None and w != a for w, a in zip(shape, actual, strict=True)):
        wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
        raise StatesError(f"{type(owner).__name__}.{field} must have shape {wanted}, got {list(actual)}.")


@dataclass(frozen=True, kw_only=True)
class SafetyPrompt:
    """A text that goes into the system role of every chat.

    Three names have no text: `none` is the absence of a prompt, which leaves the system message to the model's
    template; `empty` is a system message that is there and empty; `own` is what the template writes itself (it may also
    be given a text, and is then like any other).

    Raises:
        PromptError: no name, a text that is no string, another kind, or an empty text under another name.

    Examples:
        >>> from drolab import SafetyPrompt
        >>> mine = SafetyPrompt(name="mine", text="Refuse whatever could hurt somebody.")
        >>> mine.kind
        'safety'
        >>> SafetyPrompt(name="haiku", text="Answer with a haiku.", kind="neutral").name
        'haiku'
    """

    name: str
    text: str
    kind: str = "safety"
    """`safety` for prompts that ask for caution, `neutral` for controls that do not."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise PromptError("A safety prompt needs a name: SafetyPrompt(name='mine', text='…').")
        if not isinstance(self.text, str):
            raise PromptError(
                f"The text of prompt {shown(self.name)} must be a string, got {type(self.text).__name__}."
            )
        if self.kind not in ("safety", "neutral"):
            raise PromptError(f"Prompt {shown(self.name)}: kind must be 'safety' or 'neutral', got {shown(self.kind)}.")
        if self.text == "" and self.name not in (NO_PROMPT, EMPTY_PROMPT, OWN_PROMPT):
            raise PromptError(
                f"Prompt {shown(self.name)}: an empty text is called {NO_PROMPT!r}, and nothing else is (but for "
                f"{EMPTY_PROMPT!r} and {OWN_PROMPT!r}). Give the prompt a text, or use SafetyPrompt(name='none', "
                "text='')."
            )
        if self.text and self.name in (NO_PROMPT, EMPTY_PROMPT):
            raise PromptError(f"Prompt {shown(self.name)} has no text: give a prompt with a text another name.")


@dataclass(frozen=True, kw_only=True, eq=False)
class SoftPrompt:
    """A safety prompt as continuous embeddings, trained by DRO (paper, section 4).

    Its `name` is what tables and figures show. `init_text` is the human prompt it started from.

    Raises:
        PromptError: embeddings that are no real numbers of 16 to 64 bits, not finite, or none at all.
        StatesError: embeddings of another shape.
    """

    name: str
    embeddings: Tensor
    """[n_tokens, d], float32, on the CPU."""
    init_text: str = ""
    model_fingerprint: str = ""
    """Fingerprint of the model it was made for; empty if unknown (a released prompt)."""

    kind = "safety"

    def __post_init__(self) -> None:
        _check_shape(self, "embeddings", self.embeddings, None, None)
        if str(self.embeddings.dtype).removeprefix("torch.") not in _REAL.values():
            raise PromptError(
                f"Soft prompt {self.name!r} has embeddings of type {self.embeddings.dtype}, which no model reads: pass "
                "real numbers, such as torch.float32."
            )
        if not self.embeddings.numel():
            raise PromptError(
                f"Soft prompt {self.name!r} has embeddings of shape {list(self.embeddings.shape)}, so there is nothing "
                "in it: pass one vector for each token."
            )
        if not self.embeddings.isfinite().all():
            raise PromptError(f"Soft prompt {self.name!r} has embeddings that are not finite: train it again.")

    def __len__(self) -> int:
        return int(self.embeddings.shape[0])

    def __repr__(self) -> str:
        n_tokens, width = self.embeddings.shape
        return f"SoftPrompt(name={self.name!r}, n_tokens={n_tokens}, d={width})"

    @property
    def sha256(self) -> str:
        """Of the vectors: what identifies the prompt, whatever it is called."""
        return hashlib.sha256(self.embeddings.detach().float().contiguous().cpu().numpy().tobytes()).hexdigest()

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `soft_prompt.safetensors` into `folder` (made if absent), whole or not at all; returns the file's path.

        Raises:
            ExportError: the folder cannot be written, or the disk is full.

        Examples:
            >>> import tempfile, torch
            >>> from drolab import SoftPrompt
            >>> soft = SoftPrompt(name="mine", embeddings=torch.zeros(3, 8), init_text="Be safe.")
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     soft.save_pretrained(folder).name
            'soft_prompt.safetensors'
        """
        from safetensors.torch import save

        embeddings = self.embeddings.detach().cpu().contiguous()
        about = {"name": self.name, "init_text": self.init_text, "model_fingerprint": self.model_fingerprint}
        metadata = {"format": "pt", **about}
        metadata["checksum"] = prompt_checksum(embeddings, metadata)
        content = save({"soft_prompt": embeddings}, metadata=metadata)
        return write_file(Path(folder) / "soft_prompt.safetensors", content)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, name: str | None = None) -> SoftPrompt:
        """Read a soft prompt from a folder of `save_pretrained` or `export.to_vllm`, or a released `.safetensors` file.

        A file of `save_pretrained` has a checksum of the vectors and of all that is said of them, which must match. A
        warning says so if one has none, because an earlier drolab wrote it, or if its model was unknown. Released files
        have neither a checksum nor a model.

        Args:
            name: what to call it; None takes the name it was saved with, else the file's.

        Raises:
            PromptError: no such file, not safetensors, no `soft_prompt` tensor in it, one that is no table of real
                numbers, or a checksum that does not match.

        Examples:
            >>> import tempfile, torch
            >>> from drolab import SoftPrompt
            >>> soft = SoftPrompt(name="mine", embeddings=torch.zeros(3, 8), init_text="Be safe.")
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     SoftPrompt.from_pretrained(soft.save_pretrained(folder))
            SoftPrompt(name='mine', n_tokens=3, d=8)
        """
        import torch

        file = Path(path)
        file = file / "soft_prompt.safetensors" if file.is_dir() else file
        if not file.is_file():
            if (Path(path) / PEFT_CONFIG).is_file():
                raise PromptError(f"{path} is an adapter of PEFT: read it with SoftPrompt.from_peft(folder, model).")
            raise PromptError(f"No soft prompt at {file}: give a folder of save_pretrained or a .safetensors file.")
        stored, metadata = _read_vectors(file, "soft_prompt")
        _check_prompt_file(file, stored, metadata)
        embeddings = stored.to(torch.float32)
        return cls(
            name=name or metadata.get("name") or file.stem,
            embeddings=embeddings,
            init_text=metadata.get("init_text", ""),
            model_fingerprint=metadata.get("model_fingerprint", ""),
        )

    @classmethod
    def from_peft(cls, folder: str | Path, model: Any, *, name: str | None = None) -> SoftPrompt:
        """Read a soft prompt from an adapter of PEFT that `export.to_peft` wrote: its own vectors, without those of
        what the template writes before it. Of a prompt tuning that PEFT made, all vectors are taken, and a warning says
        that PEFT puts them before the whole chat, and drolab in the system text's place.

        Args:
            model: the `ChatModel` that it is for.
            name: what to call it; None takes the name it was exported with, else the folder's.

        Raises:
            PromptError: no such adapter, one of another kind or of another model, a pickled or damaged one.

        Examples:
            >>> import tempfile, drolab
            >>> from drolab import SoftPrompt, export
            >>> from drolab.models import embed_text
            >>> model = drolab.load_model("demo")
            >>> soft = SoftPrompt(name="mine", embeddings=embed_text(model, "Be safe."))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     paths = export.to_peft(soft, model, folder)
            ...     back = SoftPrompt.from_peft(folder, model)
            >>> back, back.sha256 == soft.sha256
            (SoftPrompt(name='mine', n_tokens=3, d=256), True)
        """
        import torch

        place = Path(folder)
        _check_peft_kind(place)
        vectors, metadata = _read_vectors(place / PEFT_WEIGHTS, PEFT_TENSOR)
        about = {key: metadata.get(key, "") for key in ("name", "model", "model_fingerprint")}
        if about["model_fingerprint"]:
            if metadata.get("checksum") != prompt_checksum(vectors, metadata):
                raise PromptError(f"{place} is damaged: its checksum does not match. Export the soft prompt again.")
            if about["model_fingerprint"] not in (model.fingerprint, model.own_fingerprint):
                raise PromptError(
                    f"The adapter at {place} was made for the model {about['model']!r} with fingerprint "
                    f"{about['model_fingerprint']}, but {model.name!r} has {model.fingerprint} (other weights, dtype, "
                    "tokenizer or chat template): load that model as it was."
                )
            vectors = vectors[int(metadata["slot_start"]) :]
        else:
            _log.warning(
                "%s was not made by drolab: PEFT puts its vectors before the whole chat, drolab in the system text's "
                "place, so the model sees other chats, and nothing keeps them from another model.",
                place,
            )
        if vectors.shape[1] != model.hidden_size:
            raise PromptError(
                f"The adapter at {place} has vectors of width {vectors.shape[1]}, but {model.name!r} has hidden size "
                f"{model.hidden_size}: load the model that it was made for."
            )
        return cls(
            name=name or about["name"] or place.name,
            embeddings=vectors.to(torch.float32),
            init_text=metadata.get("init_text", ""),
            model_fingerprint=about["model_fingerprint"],
        )


PEFT_CONFIG, PEFT_WEIGHTS, PEFT_TENSOR = "adapter_config.json", "adapter_model.safetensors", "prompt_embeddings"
"""The files of an adapter, and what the vectors of prompt tuning are called in one."""
_REAL = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
"""Types of a soft prompt's numbers: their names in safetensors, and in torch."""
_UNCHECKED = {"format", "name", "init_text", "model_fingerprint"}
"""What a file of `save_pretrained` said of itself before it had a checksum."""


def _read_vectors(file: Path, tensor: str) -> tuple[Tensor, dict[str, str]]:
    """The vectors in a safetensors file, as they are there, and what the file says of itself.

    Raises:
        PromptError: it cannot be read, or has no such tensor, or one that is no table of real numbers.
    """
    from safetensors import SafetensorError, safe_open

    read_bytes(file, PromptError)  # says so of a Git LFS pointer or a web page
    try:
        with safe_open(file, framework="pt") as opened:
            if tensor not in opened.keys():  # noqa: SIM118 - not a mapping
                raise PromptError(f"{file} holds no tensor named {tensor!r}, so it is not a soft prompt.")
            kind, shape = (getattr(opened.get_slice(tensor), f"get_{part}")() for part in ("dtype", "shape"))
            if kind not in _REAL or len(shape) != 2 or 0 in shape:
                raise PromptError(
                    f"{file} holds a tensor {tensor!r} of type {kind} and shape {list(shape)}, so it is not a "
                    f"soft prompt: that is a vector for each token, of type {', '.join(_REAL)}."
                )
            return opened.get_tensor(tensor), opened.metadata() or {}
    except SafetensorError as error:
        raise PromptError(f"{file} is not a readable safetensors file ({error}): export it again.") from error


def _check_peft_kind(folder: Path) -> None:
    """Raise PromptError unless there is an adapter of prompt tuning in safetensors."""
    if not (folder / PEFT_CONFIG).is_file():
        raise PromptError(f"No adapter of PEFT at {folder}: give a folder that export.to_peft wrote.")
    config = read_json(folder / PEFT_CONFIG, PromptError)
    kind = str(config.get("peft_type")) if isinstance(config, Mapping) else "nothing known"
    if kind != "PROMPT_TUNING":
        raise PromptError(
            f"The adapter at {folder} is {shown(kind)}, which is no prompt: load_model reads adapters of weights."
        )
    if not (folder / PEFT_WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        why = "has only pickled vectors, which drolab never reads" if pickled else f"has no {PEFT_WEIGHTS}"
        raise PromptError(f"The adapter at {folder} {why}: save it again as safetensors.")


def prompt_checksum(embeddings: Tensor, metadata: Mapping[str, str]) -> str:
    """SHA-256 of the vectors and of all metadata but the checksum itself."""
    import torch

    said = {name: text for name, text in metadata.items() if name != "checksum"}
    header = json.dumps([str(embeddings.dtype), list(embeddings.shape), said], sort_keys=True)
    raw = embeddings.contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(header.encode() + raw).hexdigest()


def _check_prompt_file(file: Path, embeddings: Tensor, metadata: Mapping[str, str]) -> None:
    """Raise PromptError if a file of `save_pretrained` is not what was written; warn if it cannot be told."""
    if not metadata.keys() & (_UNCHECKED - {"format"} | {"checksum"}):
        return  # of somebody else
    if "checksum" not in metadata:
        if metadata.keys() != _UNCHECKED:
            raise PromptError(f"{file} is damaged: what it says of itself is incomplete. Save the soft prompt again.")
        _log.warning(
            "%s has no checksum, as an earlier drolab wrote it: nothing tells whether it is what was saved. Look at it "
            "and save it again.",
            file,
        )
    elif metadata["checksum"] != prompt_checksum(embeddings, metadata):
        raise PromptError(f"{file} is damaged: its checksum does not match. Save or copy the soft prompt again.")
    if not metadata["model_fingerprint"]:
        _log.warning("%s does not say which model it was made for: nothing keeps it from another one.", file)


@dataclass(frozen=True, kw_only=True, eq=False)
class HiddenStates:
    """Hidden states at chosen layers and positions: a tensor and a table with the same rows."""

    values: Tensor
    """[n, n_layers, d], in the model's dtype, on the CPU."""
    index: pd.DataFrame
    """n rows with STATE_COLUMNS."""
    layers: tuple[int, ...]
    """Layer numbers in transformers' `hidden_states` count, none negative: 0 is the embedding output,
    `num_hidden_layers` the output after the last block (and, in most families, the final norm)."""
    num_hidden_layers: int
    model_fingerprint: str = ""
    read_at: ReadAt = "reply"
    """Where the chats end whose last tokens were read, see `hidden_states`."""
    missing: tuple[tuple[str, str], ...] = ()
    """(query_id, prompt) of the chats that were asked for and have no state, since their thought did not end."""

    def __post_init__(self) -> None:
        _check_shape(self, "values", self.values, len(self.index), len(self.layers), None)
        if missing := [column for column in STATE_COLUMNS if column not in self.index.columns]:
            raise StatesError(f"HiddenStates.index lacks the columns {missing}.")

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        n, n_layers, width = self.values.shape
        prompts = list(self.index["prompt"].unique())
        place = "" if self.read_at == "reply" else f", read_at={self.read_at!r}"
        lost = f", missing={len(self.missing)}" if self.missing else ""
        return f"HiddenStates(n={n}, n_layers={n_layers}, d={width}, prompts={prompts}{place}{lost})"

    def select(
        self,
        *,
        prompt: str | Sequence[str] | None = None,
        layer: int | Sequence[int] | None = None,
        position: int | None = None,
        harmful: bool | None = None,
        split: str | None = None,
    ) -> HiddenStates:
        """The rows and layers asked for, in their present order. `layer=-1` is the last.

        Raises:
            StatesError: a layer, or a value of a column, that is not there (nothing would be left).

        Examples:
            >>> import pandas as pd, torch
            >>> from drolab import HiddenStates
            >>> about = dict(position=-1, text="?", harmful=[True, False], category="", split="train")
            >>> rows = [pd.DataFrame({"query_id": ["a", "b"], "prompt": name, **about}) for name in ("none", "mine")]
            >>> index = pd.concat(rows, ignore_index=True)
            >>> states = HiddenStates(values=torch.zeros(4, 2, 8), index=index, layers=(0, 4), num_hidden_layers=4)
            >>> states.select(prompt="mine", layer=-1)
            HiddenStates(n=2, n_layers=1, d=8, prompts=['mine'])
            >>> len(states.select(harmful=True))
            2
        """
        import numpy as np

        keep = np.ones(len(self.index), dtype=bool)
        for column, wanted in (("prompt", prompt), ("position", position), ("harmful", harmful), ("split", split)):
            if wanted is None:
                continue
            choices: list[Any] = [wanted] if isinstance(wanted, (str, int, bool)) else list(wanted)
            present = set(self.index[column])
            if absent := [choice for choice in choices if choice not in present]:
                raise StatesError(f"No states with {column} in {absent}: these have {sorted(map(str, present))}.")
            keep &= self.index[column].isin(choices).to_numpy()
        if not keep.any():
            raise StatesError("No state satisfies all the conditions at once: relax one of them.")
        layers = self.layers if layer is None else self._resolve_layers(layer)
        columns = [self.layers.index(number) for number in layers]
        values = self.values[keep.nonzero()[0][:, None], columns]  # one step: no copy of the other layers
        return replace(self, values=values, index=self.index[keep].reset_index(drop=True), layers=layers)

    def paired(self, scores: pd.DataFrame | pd.Series | None = None) -> HiddenStates:
        """The states of those queries that have one under every prompt: what comparisons between prompts need. All of
        them, unless some are missing.

        Args:
            scores: of `judge`, or a column of it: the queries must have one of these under every prompt, too. (A query
                has none if no reply to it came to an answer.)

        Raises:
            StatesError: no query has a state under every prompt.

        Examples:
            >>> import pandas as pd, torch
            >>> from drolab import HiddenStates
            >>> about = dict(position=-1, text="?", harmful=True, category="", split="train")
            >>> index = pd.DataFrame({"query_id": ["a", "b", "a"], "prompt": ["none", "none", "mine"], **about})
            >>> states = HiddenStates(values=torch.zeros(3, 1, 8), index=index, layers=(4,), num_hidden_layers=4)
            >>> states.paired().index["query_id"].tolist()
            ['a', 'a']
        """
        import numpy as np

        tables = [self.index] if scores is None else [self.index, scores.index.to_frame(index=False)]
        keep = np.ones(len(self), dtype=bool)
        for table in tables:
            n_prompts = table.groupby("query_id")["prompt"].nunique()
            whole = n_prompts.index[n_prompts == table["prompt"].nunique()]
            keep &= self.index["query_id"].isin(whole).to_numpy()
        if keep.all():
            return self
        if not keep.any():
            raise StatesError(
                "No query has a state under every prompt: raise max_thinking_tokens, or take fewer prompts."
            )
        return replace(self, values=self.values[keep.nonzero()[0]], index=self.index[keep].reset_index(drop=True))

    def _resolve_layers(self, layer: int | Sequence[int]) -> tuple[int, ...]:
        wanted = (layer,) if isinstance(layer, int) else tuple(layer)
        layers = tuple(number + self.num_hidden_layers + 1 if number < 0 else number for number in wanted)
        if absent := [number for number in layers if number not in self.layers]:
            raise StatesError(
                f"Layers {absent} were not kept, only {list(self.layers)}: ask hidden_states(…, layers=…) for them."
            )
        return layers

    def matrix(self, layer: int = -1) -> Tensor:
        """[n, d] in float32: the states of one layer.

        Raises:
            StatesError: the layer was not kept, or a state is not finite.
        """
        values = self.values[:, self.layers.index(self._resolve_layers(layer)[0])].float()
        if not values.isfinite().all():
            rows = (~values.isfinite().all(dim=1)).nonzero().flatten().tolist()
            raise StatesError(
                f"{len(rows)} of {len(values)} hidden states are not finite (first: query "
                f"{self.index['query_id'].iloc[rows[0]]!r}, prompt {self.index['prompt'].iloc[rows[0]]!r}). "
                "Load the model with dtype='bfloat16' or 'float32': float16 overflows in some families."
            )
        return values


@dataclass(frozen=True)
class Origin:
    """What a fit was made from, and which numbers came out.

    The number of threads changes a fit in its last bits. So what depends on a fit is kept under what the fit was made
    from, as long as its numbers are those that came out; else, as for one that was made by hand, under its numbers.

    Examples:
        >>> from dataclasses import replace
        >>> import torch
        >>> from drolab.types import Origin, Probe
        >>> made = Probe(coef=torch.ones(2), intercept=0.0, positive="refuses")
        >>> fitted = replace(made, origin=Origin("these states and targets", made.sha256))
        >>> fitted.identity
        'fit these states and targets'
        >>> replace(fitted, intercept=1.0).identity.split()[0]
        'numbers'
    """

    inputs: str
    """A store key of all that determines the fit."""
    numbers: str
    """The `sha256` of what came out."""


def _identity(numbers: str, origin: Origin | None) -> str:
    return f"fit {origin.inputs}" if origin is not None and origin.numbers == numbers else f"numbers {numbers}"


def _sha256(tensors: Sequence[Tensor], *rest: float) -> str:
    header = json.dumps([[list(tensor.shape) for tensor in tensors], rest])
    raw = [tensor.detach().float().contiguous().cpu().numpy().tobytes() for tensor in tensors]
    return hashlib.sha256(b"".join([header.encode(), *raw])).hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class AnchorSpace:
    """The low-dimensional space of the paper's section 3: a PCA over the anchor states of one layer."""

    mean: Tensor
    """[d], float32."""
    components: Tensor
    """[m, d], float32, orthonormal rows."""
    explained_variance_ratio: Tensor
    """[m], float32."""
    layer: int
    """In transformers' count, not negative."""
    residual_variance: float
    """Mean over the anchors of the squared distance to the space: the scale for the residual penalty."""
    residual_spread: float | None = None
    """How far held-out anchors lie outside: for 95 % of them, in a space fitted without their queries, the squared
    distance is below this multiple of `residual_variance`. A `DROStep.residual_drift` beyond it has left the data.
    None: not known (a space that was made by hand, is of an earlier version, or of too few queries). It follows from
    the fit and changes nothing, so neither checksum nor key holds it."""
    model_fingerprint: str = ""
    read_at: ReadAt = "reply"
    """Where the chats end of whose states it was made, see `hidden_states`."""
    origin: Origin | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_shape(self, "mean", self.mean, None)
        _check_shape(self, "components", self.components, None, self.mean.shape[0])
        _check_shape(self, "explained_variance_ratio", self.explained_variance_ratio, self.components.shape[0])

    def __repr__(self) -> str:
        explained = float(self.explained_variance_ratio.sum())
        return (
            f"AnchorSpace(m={len(self.components)}, d={len(self.mean)}, layer={self.layer}, explained={explained:.3f})"
        )

    @property
    def sha256(self) -> str:
        """Of the numbers, bit by bit."""
        return _sha256([self.mean, self.components], self.layer, self.residual_variance)

    @property
    def identity(self) -> str:
        """What results that depend on this space are kept under, see `Origin`."""
        return _identity(self.sha256, self.origin)

    def transform(self, states: Tensor) -> Tensor:
        """[n, d] → [n, m]: coordinates of the states. Differentiable, on the states' device."""
        return (states.float() - self.mean.to(states.device)) @ self.components.to(states.device).T

    def residual(self, movement: Tensor) -> Tensor:
        """[n, d] → [n, d]: what of a movement (a difference of states) lies outside the space: v - U(Uᵀv)."""
        components = self.components.to(movement.device)
        return movement.float() - (movement.float() @ components.T) @ components


@dataclass(frozen=True, kw_only=True, eq=False)
class FitCheck:
    """Whether a fit reads anything: how it does on queries that it was not fitted on, beside shuffled targets."""

    auc: float
    """Cross-validated, over all held-out queries. With soft labels its best possible value lies below 1."""
    null: tuple[float, ...]
    """The same when the queries swap their targets at random, once per shuffle."""
    problem: str = ""
    """Why the fit cannot be trusted, and what to do; empty if it can."""

    def __repr__(self) -> str:
        if not self.null:
            return f"FitCheck({self.problem!r})"
        low, high = min(self.null), max(self.null)
        found = f"auc={self.auc:.3f}, shuffled={sum(self.null) / len(self.null):.3f} ({low:.3f} to {high:.3f})"
        return f"FitCheck({found}, problem={self.problem!r})"


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """A logistic regression in the anchor space (paper, section 3). `positive` names its positive class."""

    coef: Tensor
    """[m], float32."""
    intercept: float
    positive: str
    origin: Origin | None = field(default=None, repr=False)
    check: FitCheck | None = field(default=None, repr=False)
    """Whether there is anything to read; None if nobody looked, as for a probe made by hand."""
    refits: Tensor | None = field(default=None, repr=False)
    """[n_groups, m], float32: its coefficients without each group of queries, from which follows how sure its direction
    is; None if nothing is known of that."""

    def __post_init__(self) -> None:
        _check_shape(self, "coef", self.coef, None)

    @property
    def sha256(self) -> str:
        """Of the numbers, bit by bit."""
        return _sha256([self.coef], self.intercept)

    @property
    def identity(self) -> str:
        """What results that depend on this probe are kept under, see `Origin`."""
        return _identity(self.sha256, self.origin)

    @property
    def problem(self) -> str:
        """Why it cannot be trusted, and what to do; empty if nothing speaks against it."""
        return "" if self.check is None else self.check.problem

    def decision_function(self, coordinates: Tensor) -> Tensor:
        """[n, m] → [n]: logits; above zero means `positive`."""
        return coordinates @ self.coef.to(coordinates.device) + self.intercept

    def slope(self, space: AnchorSpace) -> Tensor:
        """[d], float64: how much the logit grows per unit of each dimension of hidden-state space.

        Raises:
            StatesError: a space of another number of components.
        """
        if len(self.coef) != len(space.components):
            raise StatesError(
                f"The probe {self.positive!r} has {len(self.coef)} coefficients, the anchor space "
                f"{len(space.components)} components: use the space that it was fitted in."
            )
        return self.coef.double() @ space.components.double()

    def direction(self, space: AnchorSpace) -> Tensor:
        """[d], unit norm: the direction of hidden-state space along which the logit grows fastest."""
        direction = self.slope(space)
        return (direction / direction.norm()).float()


@dataclass(frozen=True, kw_only=True)
class DROConfig:
    """Settings of DRO training. The defaults are scale-free; `DROConfig.preset("paper")` is the paper's code."""

    learning_rate: float = 1e-3
    """AdamW's, with torch's other defaults."""
    num_train_epochs: int = 40
    batch_size: int = 50
    max_grad_norm: float = 1.0
    seed: int = 42
    """Seeds `random.Random`, which shuffles the index list once per epoch."""
    refusal_weight: float = 1.0
    """Weight of the refusal loss (paper, eq. 3); 0 switches the term off."""
    harmfulness_weight: float = 0.01
    """Weight of the harmfulness loss (paper, eq. 4); 0 switches the term off."""
    residual_weight: float = 0.01
    """β, the weight of the movement outside the anchor space (paper, eq. 5); 0 switches the term off. With the
    default the demo model's states move by almost two residual standard deviations (drift 3 in training), outside what
    95 % of held-out anchors keep to (`DRORun.problems` says so), and less than .1 % of the first-token probability
    leaves refusals and compliance."""
    residual_scale: str = "relative"
    """`relative`: squared movement over the anchors' residual variance, so that β means the same at any
    scale. `absolute`: mean square over the d - m dimensions outside the space, as in the paper's code."""
    checkpoint_every: int = 20
    """Steps between checkpoints, when a store is given."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "num_train_epochs", "batch_size", "max_grad_norm", "checkpoint_every"):
            if getattr(self, name) <= 0:
                raise TrainingError(f"DROConfig.{name} must be above 0, got {getattr(self, name)}.")
        for name in ("refusal_weight", "harmfulness_weight", "residual_weight"):
            if getattr(self, name) < 0:
                raise TrainingError(f"DROConfig.{name} must not be negative, got {getattr(self, name)}.")
        if self.residual_scale not in ("relative", "absolute"):
            raise TrainingError("DROConfig.residual_scale must be 'relative' or 'absolute'.")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> DROConfig:
        """`paper` (β = 1e-3, absolute) or `default` (relative), with any field changed."""
        presets: dict[str, dict[str, Any]] = {
            "default": {},
            "paper": {"residual_weight": 1e-3, "residual_scale": "absolute"},
        }
        if name not in presets:
            raise TrainingError(f"No DRO preset {name!r}: choose one of {sorted(presets)}.")
        return cls(**{**presets[name], **changes})

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class DROStep:
    """One optimisation step of DRO: the losses before the update, and the prompt after it."""

    step: int
    """From 1."""
    epoch: int
    """From 0."""
    refusal_loss: float
    harmfulness_loss: float
    residual_loss: float
    """Each unweighted; a term that is switched off is still measured."""
    loss: float
    """The weighted sum that was differentiated."""
    residual_drift: float
    """Mean squared movement outside the anchor space over the anchors' residual variance: how far the
    states left the anchor data, in the same units whatever the loss. Beyond `AnchorSpace.residual_spread` they are
    where hardly an anchor is."""
    grad_norm: float
    """Before clipping."""
    embeddings: Tensor
    """[n_tokens, d], float32, on the CPU: the soft prompt after this step."""

    @property
    def in_words(self) -> str:
        """For beside a bar."""
        return f"loss {self.loss:.4f}, drift {self.residual_drift:.3f}"

    def numbers(self) -> dict[str, float]:
        """Everything but the embeddings, as a table row."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "embeddings"}


@dataclass(frozen=True, kw_only=True, eq=False)
class DRORun:
    """A finished (or stopped) DRO training run."""

    soft_prompt: SoftPrompt
    history: pd.DataFrame
    """One row per step: `DROStep.numbers()`."""
    config: DROConfig
    space: AnchorSpace
    refusal: Probe
    harmfulness: Probe
    snapshots: dict[int, Tensor]
    """Step → embeddings [n_tokens, d], at a few steps from 0 to the last, to replay the movement."""
    seconds: float = math.nan
    """The time that its steps took, in all sessions: the training's alone, not that of space, probes and what they were
    fitted on. NaN if it is not known, as of runs that an earlier version kept."""

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the run is not to be trusted, in plain words; none if nothing of that is known.

        What was measured of the model beside the training is known to `dro.KeptRun.problems`.
        """
        found = (self.refusal.problem, self.harmfulness.problem, self._departure())
        return tuple(text for text in found if text)

    def _departure(self) -> str:
        """When the states left the anchor data, if they are outside at the end; epochs' means count, not batches."""
        level = self.space.residual_spread
        if level is None or self.history.empty:
            return ""
        epochs = self.history.groupby("epoch").agg({"step": "max", "residual_drift": "mean"})
        drift, near = epochs["residual_drift"].iloc[-1], epochs.loc[epochs["residual_drift"] <= level, "step"]
        if drift <= level:
            return ""
        return (
            f"The states left the anchor data at step {near.max() + 1 if len(near) else 1}: their residual drift is "
            f"{drift:.3g} in the last epoch, and 95 % of held-out anchors lie within {level:.3g}. The probes know "
            f"nothing of such states: raise residual_weight (now {self.config.residual_weight:g}) or train for fewer "
            "epochs, and go by sampled replies."
        )
