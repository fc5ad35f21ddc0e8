"""Directions for other programs: a control vector as llama.cpp and repeng read it, and safetensors.

*Layers.* drolab counts a model's states: 0 is the embedding output, k the output of block k, the last one is taken
after the final norm. `direction.N` of a control vector is added to the output of block N, counted from 0: it is
drolab's layer N + 1. llama.cpp has no N = 0, and nothing is added after the final norm: layers 2 to the last but one
can leave.

*safetensors.* `directions.safetensors` has a tensor `layer.K` [d] (float32, of length 1) for each direction, and these
texts in its metadata: `format` ("drolab directions 1"), `model` (its name), `model_fingerprint`, `strength` (what the
vectors are to be multiplied with when they are added), `directions` (JSON: for each its layer, kind, which is the
method that found it, positive, which is the class that it points to, norm, threshold, scale, setting, problem),
`checksum`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from drolab.errors import ExportError, StatesError
from drolab.export.cards import base_name, code, model_card
from drolab.files import expanded, read_bytes, write_file
from drolab.types import prompt_checksum

if TYPE_CHECKING:
    import pandas as pd

    from drolab.models import ChatModel
    from drolab.probing import Direction

DIRECTION_FORMATS = ("safetensors", "gguf")
_SAFETENSORS, _GGUF = "directions.safetensors", "control_vector.gguf"
_LAYOUT = "drolab directions 1"
_ARCHITECTURE = "controlvector"
_MADE_AGAIN = "export the directions again with export.save_directions."


def save_directions(
    directions: Direction | Sequence[Direction],
    model: ChatModel,
    folder: str | Path,
    *,
    strength: float = 1.0,
    formats: Sequence[str] = DIRECTION_FORMATS,
    base: str | None = None,
    queries: pd.DataFrame | None = None,
    measured: pd.DataFrame | Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write directions, at most one of a layer, for steering in other programs, and a model card.

    `gguf` is `control_vector.gguf`, which llama.cpp adds to the states at every token (`--control-vector`), and repeng
    reads; it needs the package gguf. `safetensors` is `directions.safetensors`, see the head of this module for its
    layout. `load_directions` reads both.

    Args:
        directions: what `fit_directions` found, or `directions.as_direction` of a probe.
        model: the one that they were fitted on.
        strength: what the vectors of the control vector are multiplied with; the other file keeps them and says it.
        base, queries, measured: as in `to_peft`.

    Raises:
        StatesError: of another model, two of one layer, one that is zero, or a layer that no control vector reaches.
        ExportError: an unknown format, no package gguf, or nothing to write to.

    Examples:
        >>> import tempfile, torch
        >>> import drolab
        >>> from drolab import directions, export
        >>> model, prompt = drolab.load_model("demo"), drolab.load_prompts()["none"]
        >>> queries = drolab.load_queries("anchors").groupby("harmful").head(8)
        >>> states = drolab.hidden_states(model, queries, prompt, layers=(3,), progress=False)
        >>> found = directions.fit_directions(
        ...     states, queries["harmful"], positive="harmful", methods=["mean_difference"], layer=3
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = export.save_directions(found["mean_difference"], model, folder)
        ...     back, = export.load_directions(folder, model)
        >>> [path.name for path in paths], torch.equal(back.vector, found["mean_difference"].vector)
        (['directions.safetensors', 'control_vector.gguf', 'README.md'], True)
    """
    given = _checked(directions, model, strength)
    if unknown := [kind for kind in formats if kind not in DIRECTION_FORMATS]:
        raise ExportError(f"No format {unknown} for directions: choose from {list(DIRECTION_FORMATS)}.")
    root, files = expanded(folder, ExportError), dict[str, str | bytes]()
    about = _about(given, model, strength)
    if "safetensors" in formats:
        files[_SAFETENSORS] = _as_safetensors(given, about)
    if "gguf" in formats:
        files[_GGUF] = _as_gguf(given, model, about, strength)
    name = base_name(model, base)
    files["README.md"] = _card(given, model, name, files, strength, queries, measured)
    written = [write_file(root / file, content) for file, content in files.items()]
    for path in written[:-1]:
        back = load_directions(path, model)
        if [_said(one) for one in back] != [_said(one) for one in given] or not _alike(back, given):
            raise ExportError(f"What was written to {path} is not what was exported when it is read back: try again.")
    return written


def load_directions(path: str | Path, model: ChatModel) -> list[Direction]:
    """Read directions that `save_directions` wrote, in the order of their layers.

    Args:
        path: a file of either format, or the folder.
        model: the one that they are for.

    Raises:
        StatesError: no such file, one that drolab did not write, a damaged one, or one of another model.
    """
    file = expanded(path, StatesError)
    if file.is_dir():
        file = next((file / name for name in (_SAFETENSORS, _GGUF) if (file / name).is_file()), file / _SAFETENSORS)
    read_bytes(file, StatesError)
    vectors, about = (_from_gguf if file.suffix == ".gguf" else _from_safetensors)(file)
    if about.get("format") != _LAYOUT:
        raise StatesError(f"{file} was not made by drolab, which knows nothing of its model: {_MADE_AGAIN}")
    _check_model(f"The directions in {file} were", f"the model {about['model']!r}", about["model_fingerprint"], model)
    return _directions(file, vectors, about)


# --- what is in a file -------------------------------------------------------------------------------------


def _about(directions: Sequence[Direction], model: ChatModel, strength: float) -> dict[str, str]:
    return {
        "format": _LAYOUT,
        "model": base_name(model),
        "model_fingerprint": model.own_fingerprint,
        "strength": repr(float(strength)),
        "directions": json.dumps([_said(direction) for direction in directions]),
    }


def _said(direction: Direction) -> dict[str, Any]:
    """All that is to be known of a direction beside its vector."""
    numbers = {"threshold": direction.threshold, "scale": direction.scale, "setting": direction.setting}
    return {
        "layer": direction.layer,
        "kind": direction.method,
        "positive": direction.positive,
        "norm": round(float(direction.vector.norm()), 6),
        **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
        "problem": direction.problem,
    }


def _directions(file: Path, vectors: Mapping[int, Any], about: Mapping[str, str]) -> list[Direction]:
    from drolab.probing import Direction

    try:
        said = json.loads(about["directions"])
        found = []
        for one in said:
            number = {
                name: math.nan if one[name] is None else float(one[name]) for name in ("threshold", "scale", "setting")
            }
            found.append(
                Direction(
                    method=str(one["kind"]),
                    positive=str(one["positive"]),
                    vector=vectors[int(one["layer"])],
                    layer=int(one["layer"]),
                    model_fingerprint=about["model_fingerprint"],
                    problem=str(one["problem"]),
                    **number,
                )
            )
    except (KeyError, TypeError, ValueError) as error:
        raise StatesError(f"{file} is damaged ({type(error).__name__}: {error}): {_MADE_AGAIN}") from error
    return found


def _as_safetensors(directions: Sequence[Direction], about: Mapping[str, str]) -> bytes:
    from safetensors.torch import save

    vectors = {f"layer.{one.layer}": one.vector.detach().float().contiguous().cpu() for one in directions}
    return save(vectors, metadata={**about, "checksum": _checksum(vectors, about)})


def _from_safetensors(file: Path) -> tuple[dict[int, Any], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            about = dict(opened.metadata() or {})
            vectors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise StatesError(f"{file} is not a readable safetensors file ({error}): {_MADE_AGAIN}") from error
    if about.get("format") == _LAYOUT and about.get("checksum") != _checksum(vectors, about):
        raise StatesError(f"{file} is damaged: its checksum does not match. {_MADE_AGAIN.capitalize()}")
    return {int(name.partition(".")[2]): vector for name, vector in vectors.items() if name.startswith("layer.")}, about


def _checksum(vectors: Mapping[str, Any], about: Mapping[str, str]) -> str:
    import torch

    return prompt_checksum(torch.stack([vectors[name] for name in sorted(vectors)]), about)


def _as_gguf(directions: Sequence[Direction], model: ChatModel, about: Mapping[str, str], strength: float) -> bytes:
    gguf = _gguf()
    with TemporaryDirectory() as folder:
        path = Path(folder) / _GGUF
        writer = gguf.GGUFWriter(path, _ARCHITECTURE)
        writer.add_string(f"{_ARCHITECTURE}.model_hint", str(model.model.config.get_text_config().model_type))
        writer.add_int32(f"{_ARCHITECTURE}.layer_count", len(directions))
        for name, text in about.items():
            writer.add_string(f"drolab.{name}", text)
        for one in directions:
            writer.add_tensor(f"direction.{_block(one.layer, model)}", (strength * one.vector).float().cpu().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def _from_gguf(file: Path) -> tuple[dict[int, Any], dict[str, str]]:
    import torch

    try:
        reader = _gguf().GGUFReader(file)
        texts = {name: field.contents() for name, field in reader.fields.items() if name.startswith("drolab.")}
        about = {name.partition(".")[2]: str(text) for name, text in texts.items()}
        strength = float(about.get("strength", 1.0))
        vectors = {
            int(tensor.name.partition(".")[2]) + 1: torch.tensor(tensor.data.copy()) / strength
            for tensor in reader.tensors
            if tensor.name.startswith("direction.")
        }
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise StatesError(f"{file} is not a readable GGUF file ({error}): {_MADE_AGAIN}") from error
    return vectors, about


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ExportError("A control vector needs the package gguf: pip install 'drolab[gguf]'.") from error
    return gguf


def _block(layer: int, model: ChatModel) -> int:
    """The number of the block, from 0, whose output is a layer.

    Raises:
        StatesError: llama.cpp adds nothing there.
    """
    if not 2 <= layer < model.num_hidden_layers:
        raise StatesError(
            f"No control vector reaches layer {layer} of {model.name!r}: llama.cpp adds one to layers 2 to "
            f"{model.num_hidden_layers - 1} (not before the second block, nor after the final norm). Fit the direction "
            "there, or export it with formats=['safetensors']."
        )
    return layer - 1


# --- what can be wrong -------------------------------------------------------------------------------------


def _checked(directions: Any, model: ChatModel, strength: float) -> list[Direction]:
    given: list[Direction] = sorted(
        directions if isinstance(directions, Sequence) else [directions], key=lambda one: one.layer
    )
    if not given:
        raise StatesError("There is no direction to export: pass at least one.")
    layers = [one.layer for one in given]
    if len(set(layers)) < len(layers):
        raise StatesError(f"Two directions are of one layer ({layers}): export them into a folder each.")
    if not math.isfinite(strength) or not strength:
        raise StatesError(f"strength={strength} steers nowhere: pass a number that is not 0.")
    for one in given:
        what = f"The direction {one.method!r} at layer {one.layer}"
        if not one.vector.any() or not one.vector.isfinite().all():
            raise StatesError(f"{what} is zero or not finite: there is nothing to export.")
        if len(one.vector) != model.hidden_size:
            raise StatesError(f"{what} has width {len(one.vector)}, but {model.name!r} has {model.hidden_size}.")
        _check_model(f"{what} was", "the model", one.model_fingerprint, model)
    return given


def _check_model(what: str, name: str, fingerprint: str, model: ChatModel) -> None:
    if fingerprint not in ("", model.fingerprint, model.own_fingerprint):
        raise StatesError(
            f"{what} made for {name} with fingerprint {fingerprint}, but {model.name!r} has {model.fingerprint} (other "
            "weights, dtype, tokenizer or chat template): load that model as it was."
        )


def _alike(found: Sequence[Direction], given: Sequence[Direction]) -> bool:
    """Equal but for the rounding of a product."""
    pairs = zip(found, given, strict=True)
    return all(float((one.vector - other.vector.cpu()).norm()) <= 1e-6 for one, other in pairs)


# --- the card ----------------------------------------------------------------------------------------------


def _card(
    directions: Sequence[Direction],
    model: ChatModel,
    base: str,
    files: Mapping[str, Any],
    strength: float,
    queries: pd.DataFrame | None,
    measured: pd.DataFrame | Mapping[str, Any] | None,
) -> str:
    kinds = {one.positive for one in directions}
    return model_card(
        " · ".join(sorted(f"towards: {kind}" for kind in kinds)),
        "Directions of a model's hidden states, found with drolab: added to the states while the model runs, they move "
        "it towards the class that they are named for (activation addition, Turner et al. 2023, arXiv 2308.10248).",
        model,
        fingerprint=model.own_fingerprint,
        base=base,
        use="\n\n".join(_USE[name] for name in files if name in _USE),
        facts={"strength": strength, **{f"layer {one.layer}": _said(one) for one in directions}},
        tags=("steering", "control-vector"),
        queries=queries,
        measured=measured,
        limits=[code(one.problem) for one in directions if one.problem],
        intended="Research on what moves this model, by adding the direction at several strengths, with a random "
        "direction of the same length as the control.",
    )


_USE = {
    _SAFETENSORS: """\
`directions.safetensors` has a tensor `layer.K` for each direction: of length 1, to be added, times a strength, to the
output of block K (counted from 1) at every token; its metadata says the rest. In drolab:

```python
direction, = export.load_directions(FOLDER, model)
with steering.steered(model, steering.Add(4.0 * direction.vector, layer=direction.layer)) as steered:
    replies = drolab.generate(steered, queries, prompts)
```""",
    _GGUF: """\
`control_vector.gguf` holds them times the strength above. llama.cpp adds them to the states of a GGUF file of the model
with `--control-vector control_vector.gguf`, and at other strengths with `--control-vector-scaled`; repeng reads them
with `ControlVector.import_gguf`. `direction.N` belongs to the output of block N, counted from 0.""",
}
