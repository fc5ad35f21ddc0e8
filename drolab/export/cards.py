"""The model card beside what leaves: a README.md with a head in YAML, as the Hugging Face hub reads it.

A name or a prompt may hold anything. In the head YAML quotes it, in the text it stands as code, between more backticks
than it has itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from drolab.errors import ExportError
from drolab.export.bundles import described_model, described_queries, versions
from drolab.figures import BIDIRECTIONAL, tables

if TYPE_CHECKING:
    import pandas as pd

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HIDDEN = re.compile(f"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff{BIDIRECTIONAL}]")
"""Characters that no text needs, or that turn the reading direction."""
INTENDED = (
    "Research on what safety prompts do inside this model; and use in place of a safety prompt, where its effect was "
    "measured."
)


def base_name(model: Any, base: str | None = None) -> str:
    """What to call a model where others read it: as asked for, or its hub id; of a folder only the last part, since a
    path tells about its owner's machine."""
    name = base or str(model.name)
    return name if base or (_HUB_ID.fullmatch(name) and not Path(name).exists()) else Path(name).name or name


def model_card(
    title: str,
    what: str,
    model: Any,
    *,
    fingerprint: str,
    base: str,
    use: str,
    facts: Mapping[str, Any],
    library: str | None = None,
    tags: Sequence[str] = (),
    queries: pd.DataFrame | None = None,
    measured: pd.DataFrame | Mapping[str, Any] | None = None,
    limits: Sequence[str] = (),
    intended: str = INTENDED,
) -> str:
    """The text of a model card.

    Args:
        title: the name of what is exported, any text.
        what: what it is, in Markdown of drolab's own.
        base: what `base_name` gives.
        use: how it is loaded, in Markdown of drolab's own.
        facts: what else is to be known of how it was made: any texts and numbers.
        queries: what it was trained on.
        measured: what was measured, as a table or name → number.
        limits: sentences beside those that always hold.
        intended: what it is meant for.
    """
    head: dict[str, Any] = {"tags": ["drolab", *tags], "pipeline_tag": "text-generation"}
    head |= {"library_name": library} if library else {}
    head |= {"base_model": base} if _HUB_ID.fullmatch(base) else {}
    about = {"name": base, **{key: value for key, value in described_model(model).items() if key != "name"}}
    about |= {"fingerprint": fingerprint, "dtype": str(model.dtype).removeprefix("torch.")}
    trained = {} if queries is None else {"queries": described_queries(queries)}
    made = " · ".join(f"{name} {number}" for name, number in versions().items() if name in _MADE_BY)
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=True, allow_unicode=False)}---",
        f"# {code(title)}",
        what,
        "## For which model",
        _listed(about),
        "With another model, dtype, tokenizer or chat template it means nothing: drolab refuses it there, by the "
        "fingerprint; other programs do not look.",
        "## How it was made",
        _listed({**facts, **trained}),
        "## What was measured",
        _measured(measured),
        "## Intended use",
        intended,
        "## Limits",
        "\n".join(f"- {sentence}" for sentence in [*map(_one_line, limits), *_LIMITS]),
        "## How to use it",
        use,
        f"Made with {made}.",
    ]
    return "\n\n".join(parts) + "\n"


_MADE_BY = ("drolab", "torch", "transformers")
_LIMITS = (
    "What was measured holds for the queries it was measured on; jailbreaks and long conversations may undo it.",
    "It is no filter: it changes how likely the model is to refuse, in both directions.",
)


def code(text: object) -> str:
    """Any text as one line of code in Markdown."""
    shown = _one_line(str(text)) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    room = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{room}{shown}{room}{fence}"


def _one_line(text: str) -> str:
    return _HIDDEN.sub("�", re.sub(r"\s*\n\s*", " ↵ ", text.strip()))


def _listed(facts: Mapping[str, Any]) -> str:
    texts = {name: value if isinstance(value, str) else json.dumps(value, default=str) for name, value in facts.items()}
    return (
        "\n".join(f"- {name.replace('_', ' ')}: {code(text)}" for name, text in texts.items()) or "- nothing is known"
    )


def _measured(found: pd.DataFrame | Mapping[str, Any] | None) -> str:
    if found is None:
        return (
            "Nothing was given to the export: measure it on queries that it was not trained on before you rely on it."
        )
    if isinstance(found, Mapping):
        return _table(["measure", "value"], [[name, value] for name, value in found.items()])
    if not hasattr(found, "columns"):
        raise ExportError(f"measured= is a {type(found).__name__}: pass a table, or names with numbers.")
    flat = found.reset_index() if any(found.index.names) else found
    return _table([str(name) for name in flat.columns], flat.to_numpy(dtype=object).tolist())


def _table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [[_cell(name) for name in names], ["---"] * len(names), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _cell(value: Any) -> str:
    """Numbers as they are; texts as code, in which a bar would end the cell."""
    return code(value).replace("|", "\\|") if isinstance(value, str) else tables.number_text(value)
