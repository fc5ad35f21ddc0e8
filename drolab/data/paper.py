"""The paper's eight models: how they were run, and what was released of them, as a small table."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath

import pandas as pd
import yaml

from drolab.data.prompts import CODE_CLONE
from drolab.data.queries import load_queries, validate_queries
from drolab.errors import CloneError, ModelError, QueryError
from drolab.files import given_path, read_json

_ASSETS = Path(str(resources.files("drolab"))) / "assets"
PAPER_RESULTS = _ASSETS / "paper_results.csv"
"""Made by `recipes/paper_results`."""
ROLES = {"none": "none", "default": "default", "medium": "mistral", "short": "short", "mistral": "mistral"}
"""A prompt of drolab's or of the paper's → the paper's of the same role: long, medium and short."""


@dataclass(frozen=True, kw_only=True)
class PaperModel:
    """One of the paper's models."""

    id: str
    """On the hub, as the paper's code has it."""
    chat_template: str
    """The known chat format that the paper wrote its chats in."""
    also: tuple[str, ...] = ()
    """Other ids of the same weights."""

    @property
    def name(self) -> str:
        """As the release has it."""
        return PurePosixPath(self.id).name


def paper_models() -> tuple[PaperModel, ...]:
    """The paper's eight.

    Examples:
        >>> from drolab.data import paper_models
        >>> [model.chat_template for model in paper_models()][:3]
        ['llama-2-chat', 'llama-2-chat', 'vicuna']
    """
    entries = yaml.safe_load((_ASSETS / "paper_models.yaml").read_text(encoding="utf-8"))
    return tuple(PaperModel(**{**entry, "also": tuple(entry.get("also", ()))}) for entry in entries)


def find_paper_model(name_or_path: str, asked: str | None = None) -> PaperModel | None:
    """Which of the paper's models this is, if it is one: by its id on the hub, or by the one that its folder's
    config.json names.

    Args:
        asked: an id, or its last part, of a model whose folder does not say so.

    Raises:
        ModelError: `asked` is none of the eight.

    Examples:
        >>> from drolab.data import find_paper_model
        >>> find_paper_model("microsoft/orca-2-7b").chat_template
        'chatml'
        >>> find_paper_model("demo") is None
        True
    """
    models = paper_models()
    if asked is not None:
        known = {name.lower(): model for model in models for name in (model.id, model.name, *model.also)}
        if asked.lower() not in known:
            raise ModelError(f"{asked!r} is none of the paper's models: name one of {[model.id for model in models]}.")
        return known[asked.lower()]
    ids = {name.lower(): model for model in models for name in (model.id, *model.also)}
    folder = Path(name_or_path)
    if not folder.is_dir():
        return ids.get(name_or_path.lower())
    config = folder / "config.json"
    content = read_json(config, ModelError) if config.is_file() else {}
    named = content.get("_name_or_path") if isinstance(content, dict) else None
    return ids.get(str(named).lower())


def paper_results() -> pd.DataFrame:
    """What the paper released of its eight models: model, dataset, measure, prompt, any, per_sample.

    Of a harmful query compliance counts, of a harmless one refusal; `any` is the share of queries with it in any of 20
    replies, as the paper counts, `per_sample` the share of replies. Data sets and prompts are those of
    `published.load`.

    Examples:
        >>> from drolab.data import paper_results
        >>> rows = paper_results().query("dataset == 'malicious' and prompt == 'none'")
        >>> len(rows), f"{rows['any'].mean():.3f}"
        (8, '0.469')
    """
    return pd.read_csv(PAPER_RESULTS)


def paper_rates(name: str | None = None) -> pd.DataFrame:
    """The paper's rates on its held-out queries (MaliciousInstruct; its harmless test set), for a table beside others.

    Args:
        name: of one of the eight models, as the release has it; None takes the averages of all of them.

    Returns:
        prompt, group (harmful or harmless), any, per_sample: of harmful queries the share that was complied with, of
        harmless ones the share that was refused.

    Raises:
        QueryError: no such model.
    """
    table = paper_results()
    table = table[table["dataset"].isin(["malicious", "testset"])]
    if name is not None and name not in set(table["model"]):
        raise QueryError(f"The paper released nothing of {name!r}: choose one of {sorted(set(table['model']))}.")
    chosen = table if name is None else table[table["model"] == name]
    group = chosen["measure"].map({"compliance": "harmful", "refusal": "harmless"})
    means = chosen.assign(group=group).groupby(["prompt", "group"], sort=False)[["any", "per_sample"]].mean()
    return means.reset_index()


def load_paper_queries(folder: str | Path) -> dict[str, pd.DataFrame]:
    """The paper's queries, from a clone of its code: `anchors`, the 100 harmful and 100 harmless ones that it trained
    on, and `heldout`, MaliciousInstruct and its harmless test set.

    Raises:
        CloneError: no clone of the paper's code, or one that lacks a file.
    """
    root = given_path(folder, CloneError, f"get the paper's code with `{CODE_CLONE}`")
    root = root / "code" if (root / "code").is_dir() else root
    files = {
        "anchors": {True: "data/custom.txt", False: "data_harmless/custom.txt"},
        "heldout": {True: "data/MaliciousInstruct.txt", False: "data_harmless/testset.txt"},
    }
    found = {}
    for name, parts in files.items():
        for part in parts.values():
            if not (root / part).is_file():
                raise CloneError(
                    f"{folder} has no {part}, so it is no whole clone of the paper's code: `{CODE_CLONE}`."
                )
        sets = [load_queries(root / part, harmful=kind, verbose=False) for kind, part in parts.items()]
        split = {"anchors": "train", "heldout": "test"}[name]
        table = pd.concat(sets).assign(split=split, source="paper")
        found[name] = validate_queries(table.assign(category=""))
    return found
