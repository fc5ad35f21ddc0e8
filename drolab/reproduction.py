"""The whole experiment on your model, as one call that can be interrupted: `drolab reproduce MODEL`.

In order: `reproduce`; the plan (how much fits an hour, and what a smaller one leaves out); the settings; the run,
notebook by notebook, and where it stands; the report's part of it; several models.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import random
import re
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from drolab import export, report
from drolab.check import BOARD, Check, Measured, Size, check_model
from drolab.data import (
    PaperModel,
    attacks,
    find_paper_model,
    load_paper_queries,
    load_prompts,
    load_queries,
    save_prompts,
)
from drolab.errors import DrolabError, ExportError, ModelError, StoreError
from drolab.files import expanded, file_sha256, plain_name, read_json, write_file
from drolab.models import DEMO, load_model
from drolab.notebooks import (
    DEMO_NOTEBOOKS,
    NotebookError,
    notebooks_folder,
    parameter_names,
    read_notebooks,
    run_notebooks,
)
from drolab.progress import Progress, in_words

NOTEBOOKS = (*DEMO_NOTEBOOKS, BOARD)
"""What a full run runs, in order."""
HOUR = 3600.0
"""Seconds that a quick run may take."""
_PLANNED = 0.9 * HOUR
"""Seconds that one is planned to take: what is timed on a few queries is not exact."""
_PLAN, _STANDING, _REPORT = "plan.json", "progress.json", "report.html"
_OPTIONS = ("dtype", "device_map", "template_kwargs")
"""Options of `load_model` that have parameters of their own in the notebooks: DTYPE, DEVICE, TEMPLATE_KWARGS."""
_SAID_OTHERWISE = {"MODEL": "model", "OUT": "out", "STORE": "store", "SEED": "seed", "DEVICE": "device"}
_SAID_OTHERWISE |= dict.fromkeys(("LOAD", "DTYPE", "TEMPLATE_KWARGS"), "load")
"""Parameters of the notebooks → the argument that they are here."""
_ON_THE_COMMAND_LINE = ("dtype", "device_map", "revision", "chat_template", "template_kwargs", "system_as")
_STOPS = ("StoreError", "ExportError", "OSError")
"""Errors of a cell after which no other notebook can do better."""


def reproduce(
    model: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    quick: bool | None = None,
    device: str | None = None,
    load: Mapping[str, Any] | None = None,
    paper_model: str | None = None,
    paper_code: str | Path | None = None,
    seed: int = 0,
    parameters: Mapping[str, Any] | None = None,
    store: str | Path | None = None,
    notebooks: str | Path | None = None,
    progress: Progress = True,
) -> Path:
    """Check a model, choose settings that suit it, run notebooks 01 to 07 with them (in a full run 10, too), and write
    the report.

    The same call goes on where an earlier one was interrupted, at any moment: its plan and the notebooks that were
    finished are kept in `out`, and all that was computed in the store.

    Args:
        model: as for `load_model`, by name. Several: each has a folder in `out`, and `out/compare.html` compares them;
            what ends one of them ends no other.
        out: None is `out/` and the model's name.
        quick: True plans for an hour on this machine, without notebook 10; False takes all, with the notebooks' own
            settings; None does so if it fits about an hour. What a quick run leaves out is printed, and stands in the
            report and the manifest.
        device: where the model runs, such as "cpu" or "cuda"; None takes the GPU if there is one.
        load: more for `load_model`, in plain values.
        paper_model: which of the paper's models a folder is, where that does not say so. The paper's are run in its
            chat formats, with its loss, and beside its released numbers.
        paper_code: a clone of the paper's code, for its prompts and queries in place of drolab's own.
        seed: of sampling, folds, bootstrap and training.
        parameters: of the notebooks, such as {"JUDGE": "text judge"}; they go before what is chosen here. What has a
            name above, such as OUT, is no parameter.
        store: the store's folder; None is drolab's usual one.
        notebooks: the folder that they are in; None takes those that came with drolab.
        progress: show a bar of cells for each notebook.

    Returns:
        The path of `report.html`, or of `compare.html` of several models.

    Raises:
        ModelError, ChatTemplateError: the model does not work here; before anything long begins.
        StoreError, ExportError: a disk is full, or cannot be written to. The same call goes on from there.
        NotebookError: when all the rest is done and written: a notebook failed, or, of several models, one.

    Examples:
        >>> import drolab
        >>> drolab.reproduce("no/such/model/anywhere", out="out/nothing")
        Traceback (most recent call last):
        ...
        drolab.errors.ModelError: There is no folder 'no/such/model/anywhere', and it is no hub id: give an ...
    """
    several = not isinstance(model, (str, Path))
    options = {**(load or {}), **({"device_map": device} if device else {})}
    if options.get("base"):  # of an adapter
        options["base"] = _named(options["base"])
    asked = {
        "load": _plain(options),
        "quick": quick,
        "paper_model": paper_model,
        "paper_code": None if paper_code is None else str(expanded(paper_code, ExportError).resolve()),
        "seed": seed,
        "parameters": _plain({name: _whole(name, value) for name, value in (parameters or {}).items()}),
        "store": None if store is None else str(expanded(store, StoreError).resolve()),
    }
    folder = Path(notebooks) if notebooks else notebooks_folder()
    if twice := next((name for name in parameters or () if name in _SAID_OTHERWISE), None):
        raise NotebookError(f"{twice} is no parameter here: say {_SAID_OTHERWISE[twice]}=… instead.")
    if not 0 <= seed < 2**32:
        raise NotebookError(f"The seed must be between 0 and {2**32 - 1}, got {seed}.")
    if asked["store"]:
        _check_folder(Path(str(asked["store"])), StoreError)
    if out:
        _check_folder(Path(out).resolve(), ExportError)
    if several:
        return _several([*model], Path(out or "out/all"), asked, folder, progress)  # type: ignore[misc]
    name = _named(model)  # type: ignore[arg-type]
    root = Path(out) if out else Path("out") / _folder(Path(name).name)
    return _one(root.resolve(), {"model": name, **asked}, folder, progress)


def _named(model: str | Path) -> str:
    """As notebooks can load it, which run elsewhere: a folder or file by its whole path."""
    if model == DEMO:
        return DEMO
    if not str(model).strip():
        raise ModelError("The model has no name: give a hub id, a folder, or 'demo'.")
    path = expanded(model, ModelError)
    return str(path.resolve()) if path.exists() or isinstance(model, Path) else str(model)


def _check_folder(path: Path, error: type[DrolabError]) -> None:
    """That it is one, or can be made: said before a model is checked."""
    if taken := next((part for part in (path, *path.parents) if part.exists() and not part.is_dir()), None):
        raise error(f"{taken} is a file, and no folder can be in its place: name another one.")


def _whole(name: str, value: Any) -> Any:
    """A parameter; of a file its whole path, since notebooks run elsewhere."""
    is_file = name in (*_CUT, *_FILES) and isinstance(value, (str, Path)) and str(value) and Path(value).exists()
    return str(Path(value).resolve()) if is_file else value


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON keeps them."""

    def text(value: Any) -> str:
        if isinstance(value, (torch.dtype, Path)):
            return str(value).removeprefix("torch.")
        raise ExportError(f"{value!r} cannot be kept in a plan: give plain values, such as texts, numbers and dicts.")

    found: dict[str, Any] = json.loads(json.dumps(dict(values), default=text))
    return found


# ---------------------------------------------------------------- the plan


class Cut(NamedTuple):
    """How much less than a full run."""

    n_samples: int = 10
    max_new_tokens: int = 64
    share: float = 1.0
    """Of the queries, in every category."""
    others: int = 3
    """Of the safety prompts beside the set, in notebook 07."""
    medium: bool = True
    """Whether the set's prompt of medium length is asked."""
    n_random: int = 20
    board: bool = True
    """Whether notebook 10 is run."""


_FULL = Cut()
_STEPS: tuple[dict[str, Any], ...] = (
    {"board": False},
    {"n_samples": 5},
    {"max_new_tokens": 48},
    {"share": 0.75},
    {"n_samples": 3},
    {"max_new_tokens": 32},
    {"others": 1},
    {"share": 0.5},
    {"medium": False},
    {"share": 0.375},
    {"n_samples": 2},
    {"max_new_tokens": 24},
    {"n_random": 10},
    {"share": 0.25},
    {"share": 0.125},
)
"""What is cut first comes first: no claim of the verdict rests on notebook 10, samples of a query tell less than
queries, and a refusal shows in a reply's first words. It ends where claims could no longer be tested: with two safety
prompts beside none, and of the built-in sets with 38 queries of each class, of which 28 are enough for ten folds, and
for ten that were refused where a third are."""
_ENOUGH = 28
"""So many of each class; the last step is taken only where they remain."""


def cuts(full: Cut = _FULL) -> list[Cut]:
    """From a full run to the smallest one, each less than the one before it."""
    found = [full]
    for step in _STEPS:
        smaller = {name: min(value, getattr(found[-1], name)) for name, value in step.items()}
        found += [found[-1]._replace(**smaller)]
    return list(dict.fromkeys(found))


@dataclass(frozen=True, kw_only=True)
class Sets:
    """What is asked, before anything is cut. Build it with `sets_of`."""

    queries: Mapping[str, pd.DataFrame]
    """anchors, heldout and borderline."""
    prompts: str
    """A built-in set, a file, or a clone of the paper's code."""
    others: tuple[str, ...]
    """Safety prompts beside them, in notebook 07."""
    full: Cut = _FULL
    """What a full run has."""
    paper: bool = False
    """They are the paper's."""
    asked: tuple[str, ...] = ()
    """Parameters of the notebooks that are not their own, since they were asked for."""

    def cut(self, cut: Cut, seed: int) -> dict[str, pd.DataFrame]:
        return {name: some_of(table, cut.share, seed) for name, table in self.queries.items()}

    def names(self, cut: Cut) -> list[str]:
        """Of the prompts."""
        return [name for name in self._names if cut.medium or name not in _MEDIUM]

    @cached_property
    def _names(self) -> list[str]:
        return list(load_prompts(self.prompts))

    def counts(self, cut: Cut) -> dict[str, int]:
        return {name: sum(math.ceil(cut.share * n) for n in sizes) for name, sizes in self._strata.items()}

    @cached_property
    def _strata(self) -> dict[str, list[int]]:
        """How many queries each class of each category has."""
        return {name: table.groupby(["category", "harmful"]).size().tolist() for name, table in self.queries.items()}

    def is_enough(self, cut: Cut) -> bool:
        return cut.share >= 0.25 or min(self.counts(cut)[name] for name in ("anchors", "heldout")) >= 2 * _ENOUGH

    def size(self, cut: Cut) -> Size:
        return Size(
            **self.counts(cut),
            prompts=len(self.names(cut)),
            others=cut.others,
            n_samples=cut.n_samples,
            max_new_tokens=cut.max_new_tokens,
            n_random=cut.n_random,
            **{field: getattr(cut, cuts) for name, (field, cuts) in _BOARDS_OWN.items() if name in self.asked},
        )


_BOARDS_OWN = {"N_SAMPLES": ("board_samples", "n_samples"), "MAX_NEW_TOKENS": ("board_tokens", "max_new_tokens")}
"""Parameters of which notebook 10 has other values than the rest, unless they are asked for → of Size, and of Cut."""
_MEDIUM = ("medium", "mistral")


_ASKED = {"anchors": "QUERIES", "heldout": "HELDOUT", "borderline": "BORDERLINE"}
"""Query set → the notebooks' parameter."""
_CUT = ("N_SAMPLES", "MAX_NEW_TOKENS", "N_RANDOM", "OTHERS", "PROMPTS", *_ASKED.values())
"""Parameters of which a quick run takes less than was asked for."""
_FILES = ("SUFFIXES", "TEXTS")
"""Of notebook 10, that may name a file."""


def sets_of(parameters: Mapping[str, Any] | None = None, paper_code: str | None = None, *, demo: bool = False) -> Sets:
    """Those that the notebooks are asked for; the built-in ones where nothing is said, for the demo model those that it
    knows. With a clone of the paper's code training and held-out queries and the prompts are the paper's."""
    given = dict(parameters or {})
    queries = {name: load_queries(given.get(asked) or name, demo=demo, verbose=False) for name, asked in _ASKED.items()}
    others = tuple(given.get("OTHERS", load_prompts("unseen")))
    counts = {"n_samples": "N_SAMPLES", "max_new_tokens": "MAX_NEW_TOKENS", "n_random": "N_RANDOM"}
    full = _FULL._replace(
        **{name: given[asked] for name, asked in counts.items() if asked in given}, others=len(others)
    )
    if paper_code is None:
        return Sets(queries=queries, prompts=given.get("PROMPTS", "safety"), others=others, full=full, asked=(*given,))
    queries |= load_paper_queries(paper_code)
    return Sets(queries=queries, prompts=paper_code, others=others, full=full, paper=True, asked=(*given,))


def some_of(queries: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """A share of the queries of every category and class, by seed. Where both classes of a category have as many, those
    at the same places are taken: in the built-in sets these are pairs of one wording."""
    if share >= 1:
        return queries
    chosen: list[str] = []
    for category, part in queries.groupby("category", sort=False):
        for size, alike in part.groupby(part.groupby("harmful")["query_id"].transform("size"), sort=False):
            draw = random.Random(f"{seed}:{category}:{size}")
            places = draw.sample(range(int(size)), math.ceil(share * int(size)))
            chosen += alike.loc[alike.groupby("harmful").cumcount().isin(places), "query_id"].tolist()
    return queries[queries["query_id"].isin(chosen)]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run does; it is kept in the run's folder, so that going on does not change it."""

    asked: dict[str, Any]
    quick: bool
    load: dict[str, Any]
    """Options of `load_model`: those asked for, and what the model needs."""
    fingerprint: str
    """Of the model."""
    parameters: dict[str, Any]
    """Of the notebooks."""
    notebooks: tuple[str, ...]
    expected: dict[str, float]
    """Seconds, by notebook."""
    said: tuple[str, ...]
    """Which settings, and why."""
    left_out: tuple[str, ...]
    paper_model: str = ""
    paper_sets: bool = False

    @property
    def seconds(self) -> float:
        return sum(self.expected.values())


def choose_cut(measured: Measured, sets: Sets, quick: bool | None) -> tuple[Cut, dict[str, float], str]:
    """How much is asked, what each notebook is expected to take with that, and why it is this much."""
    taken = {cut: _seconds(measured, sets, cut) for cut in cuts(sets.full) if sets.is_enough(cut)}
    full, *_, last = taken
    total = {cut: sum(seconds.values()) for cut, seconds in taken.items()}
    but = f", but for {', '.join(sets.asked)}" if sets.asked else ""
    own = f"the notebooks' own settings{but}"
    if quick is False or (quick is None and total[full] <= HOUR):
        why = "asked for" if quick is False else "it fits an hour"
        return full, taken[full], f"A full run, with {own} ({why})."
    if fitting := next((cut for cut in taken if cut != full and total[cut] <= _PLANNED), None):
        how = f"with {own}" if fitting == full._replace(board=False) else "planned for an hour"
        why = f"A quick run, {how}; a full one is expected to take {in_words(total[full])} here."
        return fitting, taken[fitting], why
    why = (
        f"The smallest run in which the claims can still be tested; it is expected to take {in_words(total[last])} "
        f"here, more than an hour, and a full one {in_words(total[full])}."
    )
    return last, taken[last], why


def _seconds(measured: Measured, sets: Sets, cut: Cut) -> dict[str, float]:
    times = measured.times(sets.size(cut))
    found = dict(zip(times["notebook"], map(float, times["seconds"]), strict=True))
    without = {BOARD: not cut.board, "05_train_dro": not measured.trainable}
    return {name: seconds for name, seconds in found.items() if not without.get(name)}


def left_out(cut: Cut, sets: Sets, trainable: bool) -> list[str]:
    """What a full run has and this one has not, in sentences."""
    full, found = sets.full, []
    if not cut.board:
        found.append("Notebook 10: DRO beside its rivals and ablations, jailbreaks, kept ability.")
    if cut.n_samples < full.n_samples:
        found.append(f"{cut.n_samples} replies per query and prompt instead of {full.n_samples}.")
    if cut.max_new_tokens < full.max_new_tokens:
        found.append(f"Replies of at most {cut.max_new_tokens} tokens instead of {full.max_new_tokens}.")
    if cut.share < 1:
        words = ", ".join(f"{n} of {len(sets.queries[name])} {name}" for name, n in sets.counts(cut).items())
        found.append(f"Fewer queries, the same share of each category: {words}. Intervals are the wider.")
    if not cut.medium:
        gone = [name for name in load_prompts(sets.prompts) if name in _MEDIUM]
        found.append(f"The safety prompt {' and '.join(gone)} is not asked.")
    if cut.others < full.others:
        found.append(f"{cut.others} instead of {full.others} safety prompts beside the set, in notebook 07.")
    if cut.n_random < full.n_random:
        found.append(
            f"{cut.n_random} random directions instead of {full.n_random}, in notebook 04: its p-values cannot be "
            f"below {1 / (cut.n_random + 1):.2f} there. No claim of the verdict rests on them."
        )
    if not trainable:
        places = "06, 07 and 10" if cut.board else "06 and 07"
        found.append(
            f"Notebook 05, and with it the trained prompt in {places}: no prompt can be trained for this model."
        )
    return found


# ---------------------------------------------------------------- the settings


def make_plan(root: Path, asked: dict[str, Any], folder: Path) -> Plan:
    """Check the model, and choose. What is wrong with the rest is said before."""
    read_notebooks([folder / f"{name}.ipynb" for name in NOTEBOOKS], asked["parameters"])
    sets = sets_of(asked["parameters"], asked["paper_code"], demo=asked["model"] == DEMO)
    if suffixes := asked["parameters"].get("SUFFIXES"):
        heldout = sets.queries["heldout"]
        attacks.suffixes(heldout[heldout["harmful"]], suffixes, verbose=False)
    paper = find_paper_model(asked["model"], asked["paper_model"])
    load, said = dict(asked["load"]), []
    if paper is not None:
        load = {"chat_template": paper.chat_template} | load
        said.append(f"{paper.id} is one of the paper's models: its chat format {load['chat_template']!r}, its loss.")
    found, load, more = _checked(asked["model"], load)
    print(found, "\n")
    if found.refused or found.measured is None:
        raise ModelError(f"{asked['model']} does not work here. {found.refused}")
    measured, told = found.measured, load.get("system_as")
    if measured.system_as != told:
        more.append("system_as='first_user': its template has no place for a system message.")
        load = {**load, "system_as": measured.system_as}
    cut, expected, why = choose_cut(measured, sets, asked["quick"])
    said += [why, *more, *_about_sets(sets, paper is not None)]
    if measured.own_text:
        said.append("Shifts start from an empty system message: `none` is a system text of the model's own.")
    said += [advice for advice in found.advice if not advice.startswith(("system_as", "N_SAMPLES"))]
    chosen = _chosen(root, asked, cut, sets, load, measured) | _as_paper(paper)
    names = tuple(name for name in NOTEBOOKS if name in expected)
    return Plan(
        asked=asked,
        quick=cut != sets.full,
        load=load,
        fingerprint=measured.fingerprint if told == measured.system_as else _fingerprint(asked["model"], load),
        parameters=_known(folder, names, chosen, asked["parameters"]),
        notebooks=names,
        expected=expected,
        said=tuple(said),
        left_out=tuple(left_out(cut, sets, measured.trainable)),
        paper_model=paper.name if paper else "",
        paper_sets=sets.paper,
    )


def _as_paper(paper: PaperModel | None) -> dict[str, Any]:
    return {"PRESET": "paper" if paper else "default", "PAPER_MODEL": paper.name if paper else None}


def _checked(name: str, load: dict[str, Any]) -> tuple[Check, dict[str, Any], list[str]]:
    """What the check finds, the options of `load_model` that it calls for, and these in words."""
    found, said = check_model(name, load=load), []
    if "are not finite" in found.refused and "dtype" not in load:
        wider = {**load, "dtype": "float32"}
        again = check_model(name, load=wider)
        if not again.refused:
            said.append("dtype='float32': in the checkpoint's own its states are not finite.")
            found, load = again, wider
    gc.collect()  # the model: notebooks load their own
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found, load, said


def _about_sets(sets: Sets, is_papers: bool) -> list[str]:
    if sets.paper:
        return ["The paper's queries and prompts, from the clone of its code; borderline queries are drolab's."]
    if is_papers:
        return [
            "drolab's own queries and prompts, in the roles of the paper's: a clone of its code (paper_code) has those."
        ]
    return []


def _chosen(
    root: Path, asked: Mapping[str, Any], cut: Cut, sets: Sets, load: Mapping[str, Any], measured: Measured
) -> dict[str, Any]:
    """Parameters of the notebooks; what is cut is written to files beside the results."""
    found: dict[str, Any] = {
        "MODEL": asked["model"],
        "LOAD": {name: value for name, value in load.items() if name not in _OPTIONS},
        "DTYPE": load.get("dtype"),
        "DEVICE": load.get("device_map"),
        "TEMPLATE_KWARGS": load.get("template_kwargs") or {},
        "N_SAMPLES": cut.n_samples,
        "MAX_NEW_TOKENS": cut.max_new_tokens,
        "N_RANDOM": cut.n_random,
        "OTHERS": sets.others[: cut.others],
        "SEED": asked["seed"],
        "STORE": asked["store"],
        "OUT": str(root),
    }
    if measured.own_text:
        found["BASELINE"] = "empty"
    if not measured.trainable:
        found["GROUPS"] = ("text", "steering")
    if cut.share < 1 or sets.paper:
        for name, table in sets.cut(cut, asked["seed"]).items():
            path = write_file(root / "queries" / f"{name}.csv", str(table.to_csv(index=False)))
            found[_ASKED[name]] = str(path)
    if not cut.medium:
        every = load_prompts(sets.prompts)
        kept, path = {name: every[name] for name in sets.names(cut)}, root / "queries" / "prompts.yaml"
        found["PROMPTS"] = str(save_prompts(kept, path, overwrite=True))
    elif sets.paper:
        found["PROMPTS"] = sets.prompts
    return found


def _known(folder: Path, names: Sequence[str], chosen: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Those that these notebooks have.

    Raises:
        NotebookError: a value that is no literal.
    """
    paths = [folder / f"{name}.ipynb" for name in names]
    opened = read_notebooks(paths, {})
    everywhere = {name for path, notebook in opened for name in parameter_names(notebook, path.name)}
    found = {name: value for name, value in chosen.items() if name in everywhere}
    wanted = {name: value for name, value in asked.items() if name in everywhere}
    found |= {name: value for name, value in wanted.items() if not (name in _CUT and name in found)}
    read_notebooks(paths, found)
    return _plain(found)


def _fingerprint(name: str, load: Mapping[str, Any]) -> str:
    return load_model(name, **load).fingerprint


# ---------------------------------------------------------------- one model


def _one(root: Path, asked: dict[str, Any], folder: Path, progress: Progress) -> Path:
    plan = _kept(root, asked) or _begun(root, asked, folder)
    print(_in_words(plan), flush=True)
    try:
        failed = _run(root, plan, folder, progress)
    except KeyboardInterrupt:
        print(f"\nInterrupted. What was done is kept: the same command goes on from there ({root}).")
        raise
    if failed and not any((root / "numbers").glob("*.json")):
        raise NotebookError(f"No notebook found anything. {next(iter(failed.values()))}")
    listings = report.collect(root)
    page = report.write_report(root, listings, _about_run(root, plan, failed))
    print("", *report.answer(report.decisions(root, listings)), sep="\n")
    print(f"\nReport: {page}")
    if failed:
        first, why = next(iter(failed.items()))
        raise NotebookError(
            f"{first} failed ({len(failed)} of {len(plan.notebooks)} did); the report has the rest. {why}"
        )
    return page


def _kept(root: Path, asked: dict[str, Any]) -> Plan | None:
    """The plan that an earlier call left, if that was the same one and its model still is.

    Raises:
        ModelError: the folder has the run of another model.
    """
    path = root / _PLAN
    if not path.is_file():
        return None
    try:
        content = read_json(path, ExportError)
        found: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        plan = Plan(**found)
    except (TypeError, AttributeError, ExportError):
        return None  # of another version, or damaged
    if plan.asked.get("model") != asked["model"]:
        raise ModelError(f"{root} has the run of {plan.asked.get('model')}: choose another folder, or remove it.")
    if plan.asked != asked:
        print(f"{root} has a run of this model with other settings.")
        return None
    if _fingerprint(asked["model"], plan.load) != plan.fingerprint:
        print("The model has changed since this run was planned: it is planned anew.")
        return None
    print(f"Going on with the plan in {path}.")
    if plan.parameters["OUT"] != str(root):
        plan = replace(plan, parameters=_moved(plan.parameters, root))
        _keep(plan, root)
    return plan


def _keep(plan: Plan, root: Path) -> None:
    write_file(root / _PLAN, json.dumps(asdict(plan), indent=2) + "\n")


def _moved(parameters: dict[str, Any], root: Path) -> dict[str, Any]:
    """With paths in the run's folder as it is called now: it may have been moved or copied."""
    before = Path(parameters["OUT"])
    return {
        name: str(root / Path(value).relative_to(before))
        if isinstance(value, str) and Path(value).is_relative_to(before)
        else value
        for name, value in parameters.items()
    }


def _begun(root: Path, asked: dict[str, Any], folder: Path) -> Plan:
    """A new plan, in a folder without results of an earlier one, which a report would take for this one's.

    Raises:
        ExportError: the earlier one was finished.
    """
    if (root / _PLAN).is_file() and (root / _REPORT).is_file():
        raise ExportError(f"{root} has the report of another run: choose another folder, or remove that one.")
    plan = make_plan(root, asked, folder)
    if (root / _PLAN).is_file():  # the folder is a run's, not yours
        for name in ("numbers", "figures", "tables", "notebooks", "soft_prompts"):
            shutil.rmtree(root / name, ignore_errors=True)
    for path in (root / _STANDING, *(root / "numbers").glob("*.json")):
        path.unlink(missing_ok=True)
    _keep(plan, root)
    return plan


def _in_words(plan: Plan) -> str:
    times = [f"{name:<28}{in_words(plan.expected[name]):>14}" for name in plan.notebooks]
    total = f"{'all, one after the other':<28}{in_words(plan.seconds):>14}"
    without = [f"Left out: {sentence}" for sentence in plan.left_out]
    return "\n".join([*plan.said, *without, "", *times, total, ""])


def _run(root: Path, plan: Plan, folder: Path, progress: Progress) -> dict[str, str]:
    """Run what is not finished; which notebooks failed, and why.

    Raises:
        StoreError, ExportError: a disk is full.
    """
    standing, failed, took, planned = _Standing.read(root), dict[str, str](), 0.0, 0.0
    for place, name in enumerate(plan.notebooks):
        path = folder / f"{name}.ipynb"
        key = _key(path, plan)
        if standing.has(name, key):
            print(f"{name}: finished before")
            continue
        for result in _results(root, name):
            result.unlink(missing_ok=True)
        started = time.perf_counter()
        try:
            run_notebooks(
                [path],
                root,
                parameters=_parameters_of(path, plan),
                timeout=None,
                expected=plan.expected,
                progress=progress,
            )
        except NotebookError as error:
            if error.ename in _STOPS:
                raise StoreError(
                    f"{error}\nWhat was done before is kept: the same command goes on from there."
                ) from None
            failed[name] = str(error)
            print(f"{name} failed, and the others go on: {error}")
            continue
        seconds = time.perf_counter() - started
        standing = standing.with_finished(name, key, seconds)
        took, planned = took + seconds, planned + plan.expected[name]
        left = sum(plan.expected[other] for other in plan.notebooks[place + 1 :]) * took / planned
        pace = f"; about {in_words(left)} to go at the pace so far" if left else ""
        print(f"{place + 1} of {len(plan.notebooks)} done{pace}", flush=True)
    return failed


def _results(root: Path, name: str) -> tuple[Path, Path]:
    """What a finished notebook leaves."""
    return root / "numbers" / f"{name[:2]}.json", root / "notebooks" / f"{name}.ipynb"


def _parameters_of(path: Path, plan: Plan) -> dict[str, Any]:
    """Those that the notebook has, but for what it has values of its own for."""
    ((_, notebook),) = read_notebooks([path], {})
    own = {*_BOARDS_OWN} - {*plan.asked["parameters"]} if path.stem == BOARD else set[str]()
    names = {*parameter_names(notebook, path.name)} - own
    return {name: value for name, value in plan.parameters.items() if name in names}


def _key(path: Path, plan: Plan) -> str:
    """Of all that determines what a notebook finds: its cells, its parameters, the model, and the code that runs it."""
    ((_, notebook),) = read_notebooks([path], {})
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    named = [plan.parameters.get(name) for name in ("QUERIES", "HELDOUT", "BORDERLINE", "PROMPTS", *_FILES)]
    files = [Path(name) for name in named if isinstance(name, str)]
    known = json.dumps([cells, plan.parameters, plan.fingerprint], sort_keys=True)
    here = json.dumps(plan.parameters["OUT"])[1:-1]  # the run's folder may be moved
    parts = [known.replace(here, "").encode(), _code()]
    parts += [file.read_bytes() for file in files if file.is_file()]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


@cache
def _code() -> bytes:
    """Of drolab's own files and of what it computes with."""
    files = [path for path in sorted(Path(__file__).parent.rglob("*")) if "__pycache__" not in path.parts]
    return json.dumps([export.versions(), [file_sha256(path) for path in files if path.is_file()]]).encode()


@dataclass(frozen=True)
class _Standing:
    """Which notebooks are finished: name → what it was a run of, and the seconds that it took."""

    root: Path
    finished: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, root: Path) -> _Standing:
        path = root / _STANDING
        try:
            return cls(root, dict(read_json(path, ExportError)) if path.is_file() else {})
        except (ExportError, TypeError, ValueError):  # damaged: then nothing is finished
            return cls(root, {})

    def has(self, name: str, key: str) -> bool:
        there = all(path.is_file() for path in _results(self.root, name))
        return there and self.finished.get(name, {}).get("key") == key

    def with_finished(self, name: str, key: str, seconds: float) -> _Standing:
        found = replace(self, finished={**self.finished, name: {"key": key, "seconds": round(seconds, 1)}})
        write_file(self.root / _STANDING, json.dumps(found.finished, indent=2) + "\n")
        return found


# ---------------------------------------------------------------- the report's part


def _about_run(root: Path, plan: Plan, failed: Mapping[str, str]) -> report.Run:
    took = _Standing.read(root).finished
    times = [
        {
            "notebook": name,
            "expected, with an empty store": in_words(plan.expected[name]),
            "took": in_words(took[name]["seconds"]) if name in took else "not finished",
        }
        for name in plan.notebooks
    ]
    left, repeats = [f"Left out of a full run: {sentence}" for sentence in plan.left_out], command(root, plan)
    return report.Run(
        command=repeats,
        said=plan.said,
        left_out=left,
        failed=failed,
        times=pd.DataFrame(times),
        settings=asdict(plan) | {"command": repeats},
        paper_model=plan.paper_model,
        paper_sets=plan.paper_sets,
    )


def command(root: Path, plan: Plan) -> str:
    """What repeats the run: on the command line, or in Python where that does not take all that was asked."""
    asked = plan.asked
    load = dict(asked["load"])
    simple = {name: load.pop(name) for name in _ON_THE_COMMAND_LINE if name in load}
    if load or asked["parameters"]:
        given = {name: value for name, value in asked.items() if name != "model" and value not in (None, {})}
        words = "".join(f", {name}={value!r}" for name, value in given.items())
        return f"drolab.reproduce({asked['model']!r}, out={str(root)!r}{words})"
    parts = ["drolab", "reproduce", asked["model"], "--out", str(root)]
    parts += [] if asked["quick"] is None else ["--quick" if asked["quick"] else "--full"]
    for name, value in simple.items():
        option = "--device" if name == "device_map" else f"--{name.replace('_', '-')}"
        parts += [option, value if isinstance(value, str) else json.dumps(value)]
    for name in ("paper_model", "paper_code", "store"):
        parts += [f"--{name.replace('_', '-')}", asked[name]] if asked[name] else []
    return shlex.join([*parts, *(["--seed", str(asked["seed"])] if asked["seed"] else [])])


# ---------------------------------------------------------------- several models


def names_of(models: Sequence[str | Path]) -> list[str]:
    """Several models as they can be loaded from any folder.

    Raises:
        ModelError: no models, one twice, or one without a name.
    """
    names = [_named(model) for model in models]
    if not names or len(set(names)) < len(names):
        raise ModelError(f"{len(names)} models, of which some are the same: name each once.")
    return names


def run_places(models: Sequence[str], root: Path) -> dict[str, tuple[str, Path]]:
    """Where runs of several models are, by `names_of`: model → what it is called beside the others, and its folder."""
    short = {name: _short(name, models) for name in models}
    folders = [_folder(name) for name in short.values()]
    return {
        name: (short[name], root / (own if folders.count(own) == 1 else plain_name(name)))
        for name, own in zip(models, folders, strict=True)
    }


def _several(models: Sequence[str | Path], out: Path, asked: dict[str, Any], folder: Path, progress: Progress) -> Path:
    root, compared = out.resolve(), []
    places = run_places(names_of(models), root)
    for name, (short, place) in places.items():
        print(f"\n=== {name}\n")
        error = ""
        try:
            _one(place, {"model": name, **asked}, folder, progress)
        except (StoreError, ExportError):  # no other model has more room
            raise
        except DrolabError as failed:
            error = str(failed)
            print(f"{name}: {error}")
        is_its = not error or _is_run_of(place, {"model": name, **asked})
        compared.append(report.Compared(name=short, out=place if is_its else None, error=error))
        waiting = [
            report.Compared(name=other, error="not run yet.") for other, _ in [*places.values()][len(compared) :]
        ]
        page = report.write_comparison(root, [*compared, *waiting])
    print(f"\nAll models on one page: {page}")
    if lost := [model for model in compared if model.error]:
        raise NotebookError(
            f"{len(lost)} of {len(compared)} models did not run to the end: {page} says which, and why."
        )
    return page


def _is_run_of(root: Path, asked: dict[str, Any]) -> bool:
    """Whether what a folder holds is of this model with these settings, and not of an earlier run that stayed there."""
    try:
        return dict(read_json(root / _PLAN, ExportError)).get("asked") == asked
    except (ExportError, TypeError, ValueError):
        return False


def _folder(name: str) -> str:
    """What a folder for its results is called."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or plain_name(name)


def _short(name: str, names: Sequence[str]) -> str:
    """A folder's own name where no other model has it."""
    last = [Path(other).name for other in names]
    return Path(name).name if Path(name).is_absolute() and last.count(Path(name).name) == 1 else name
