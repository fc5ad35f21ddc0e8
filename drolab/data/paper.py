"""The paper's eight models: how they were run, and what was released of them, as a small table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath

import pandas as pd
import yaml

from drolab.data.prompts import CODE_CLONE
from drolab.data.queries import load_queries, validate_queries
from drolab.errors import CloneError, ModelError, QueryError
from drolab.files import given_path, read_json
from drolab.types import NO_PROMPT

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
    """The paper's rates on its held-out queries (MaliciousInstruct; AdvBench with GCG suffixes; its harmless test set),
    for a table beside others.

    Args:
        name: of one of the eight models, as the release has it; None takes the averages of all of them.

    Returns:
        prompt, group (harmful, jailbroken or harmless), any, per_sample: of harmful queries the share that was complied
        with, of harmless ones the share that was refused; and any_least, any_most: over the models that are averaged.

    Raises:
        QueryError: no such model.
    """
    table = paper_results()
    table = table[table["dataset"].isin(_GROUPS)]
    if name is not None and name not in set(table["model"]):
        raise QueryError(f"The paper released nothing of {name!r}: choose one of {sorted(set(table['model']))}.")
    chosen = table if name is None else table[table["model"] == name]
    parts = chosen.assign(group=chosen["dataset"].map(_GROUPS)).groupby(["prompt", "group"], sort=False)
    ends = parts["any"].agg(any_least="min", any_most="max")
    return parts[["any", "per_sample"]].mean().join(ends).reset_index()


_GROUPS = {"malicious": "harmful", "gcg": "jailbroken", "testset": "harmless"}
"""Data set of the release → what a run calls such queries."""
_ROW = re.compile(r"(?:(?P<method>dro|vpt)-)?(?P<init>.+?)(?: without (?P<term>refusal|harmfulness|residual))?")
_FROM_LESS = re.compile(r" (\d+ anchors|without harmless|other anchors)$")
"""How the names of `fit_contenders` end that are of no row of the paper's."""
_METHODS = {"dro": "DRO", "vpt": "vanilla prompt tuning"}


def beside_paper(rates: pd.DataFrame, name: str | None = None) -> pd.DataFrame:
    """A run's rates in the rows of the paper's tables: no prompt, human prompts, vanilla prompt tuning, DRO, and DRO
    without one of its terms, each beside what was released of it. Nothing was released of the last, nor of
    prompts other than the paper's three, which stand here as those of the same role (`ROLES`): these cells are NaN.

    Args:
        rates: prompt, group, value, low, high, as from `comparison.group_rates`, with the names that `fit_contenders`
            gives; what is in no row of the paper (steering, borderline queries, …) is left out.
        name: which of the paper's models to stand beside; None takes the averages of all eight.

    Returns:
        row (as the paper's, in words), prompt (the run's name for it), group, counted (compliance with harmful,
        refusal of harmless queries), value, low, high (the run's); released_as (the release's name, "" if it has
        none), per_sample, any, any_least, any_most (see `paper_rates`).

    Raises:
        QueryError: no such model.

    Examples:
        >>> import pandas as pd
        >>> from drolab.data import beside_paper
        >>> rows = [("none", 0.1), ("default", 0.6), ("vpt-default", 0.8), ("dro-default without residual", 0.7)]
        >>> rates = pd.DataFrame(rows, columns=["prompt", "value"]).assign(group="harmful", low=0.0, high=1.0)
        >>> beside_paper(rates)[["row", "value", "released_as", "any"]].round(3)
                                               row  value  released_as    any
        0                                no prompt    0.9         none  0.469
        1                    human prompt, default    0.4      default  0.098
        2      vanilla prompt tuning, from default    0.2  vpt-default  0.050
        3  DRO, from default, without its residual    0.3                 NaN
    """
    released = paper_rates(name).rename(columns={"prompt": "released_as"})
    table = rates[rates["measure"] == "refusal"] if "measure" in rates else rates
    table = table[table["group"].isin(list(_GROUPS.values()))]
    rows = pd.DataFrame([_paper_row(prompt) for prompt in table["prompt"]], columns=["row", "released_as"])
    table = table.reset_index(drop=True).join(rows).dropna(subset="row")
    harmful = table["group"] != "harmless"
    ends = {"value": "value", "low": "high", "high": "low"}
    turned = {end: table[end].where(~harmful, 1 - table[other]) for end, other in ends.items()}
    table = table.assign(counted=harmful.map({True: "compliance", False: "refusal"}), **turned)
    found = table.merge(released, on=["released_as", "group"], how="left")
    found = found.assign(released_as=found["released_as"].where(found["any"].notna(), ""))
    columns = ["row", "prompt", "group", "counted", "value", "low", "high"]
    columns += ["released_as", "per_sample", "any", "any_least", "any_most"]
    return found[columns].sort_values("group", kind="stable", ignore_index=True)


def _paper_row(prompt: str) -> tuple[str | None, str]:
    """In which row of the paper's tables a prompt stands, if in any, and what the release calls it, if it has it."""
    found = _ROW.fullmatch(str(prompt))
    if found is None or (not found["method"] and prompt not in ROLES) or _FROM_LESS.search(str(prompt)):
        return None, ""
    method, init, term = found["method"], found["init"], found["term"]
    role = ROLES.get(init, "")
    if not method:
        return ("no prompt" if prompt == NO_PROMPT else f"human prompt, {role}"), role
    row = f"{_METHODS[method]}, from {role or init}"
    if term:
        return f"{row}, without its {term}", ""
    return row, f"{method}-{role}" if role else ""


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
