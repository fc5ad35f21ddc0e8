"""The report: one page of what a run found, made of what its notebooks saved; and one of several models' runs.

In order: what was saved, the page, what it says at its top (the answer in sentences, the verdict as a forest, what was
not measured), the notebooks' sections, the paper's numbers beside a run's, and the page that compares models.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from drolab import export
from drolab.data import beside_paper as paper_rows
from drolab.errors import ExportError, TooFewError
from drolab.figures import CONFIG, DARK, THEMES, VERDICT_LOOKS, explained, tables
from drolab.files import write_file
from drolab.types import NO_PROMPT

Listings = Mapping[str, Mapping[str, Any]]

VERDICT = "07_verdict"
"""The saved table of the decisions, see `claims.verdict`."""
FIRST = {"04_projection": "shifts", "06_rates": "refusal rates", "07_tradeoff": "the trade-off"}
"""The saved figures that stand at the top, and what each is of."""
INSTEAD = "07_forest"
"""The saved figure in whose place the forest stands, whose rows are those of the verdict's table."""
LONG = 30
"""Rows: a longer table is a file beside the page."""

ANSWER = (
    {
        "queries are separable without a prompt": (
            "the states of harmful and harmless queries can be told apart without a safety prompt"
        ),
        "safety prompts do not separate them better": "safety prompts do not make them easier to tell apart",
    },
    {
        "safety prompts shift alike": "safety prompts move the states of all queries in similar directions",
        "more alike than these controls": "these are more alike than those of messages without a word of safety",
    },
    {"the shift is along refusal": "safety prompts move the states along the direction of refusal"},
    {
        "refusals rise for harmful queries": "safety prompts make the model refuse harmful queries more often",
        "refusals rise for harmless queries, too": "safety prompts make it refuse harmless queries more often",
    },
    {
        "DRO moves the classes apart": (
            "the prompt that DRO trained raises the refusals of harmful queries more than those of harmless ones"
        )
    },
)
"""The answer's five sentences: the text of a claim (see `evidence.claims`) → what it says, in words that can follow
"whether". The claims themselves are not imported: with them comes torch, which no report needs."""
SUPPORTED, NOT_SUPPORTED, TOO_LITTLE, CANNOT, BY_DESIGN = VERDICT_LOOKS
_LEADS = {
    SUPPORTED: "",
    NOT_SUPPORTED: "it is not supported that ",
    TOO_LITTLE: "there is too little data to say whether ",
    CANNOT: "it cannot be tested here whether ",
}


# ---------------------------------------------------------------- what was saved


def collect(out: Path) -> dict[str, dict[str, Any]]:
    """Notebook → what it listed (see `export.Results`), in order.

    Raises:
        ExportError: no notebook has saved anything in `out`.
    """
    files = sorted((out / "numbers").glob("*.json"))
    if not files:
        raise ExportError(f"No results in {out}: run the notebooks' last cells with OUT set to it.")
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def decisions(out: Path, listings: Listings) -> pd.DataFrame:
    """The verdict's table, see `claims.verdict`; no rows if no notebook saved one."""
    if not any(VERDICT in listing["tables"] for listing in listings.values()):
        return pd.DataFrame()
    texts = dict.fromkeys(("claim", "under", "unit", "verdict", "reason"), str)
    found = pd.read_csv(out / "tables" / f"{VERDICT}.csv", dtype=texts, keep_default_na=False, na_values=[""])
    return found.fillna(dict.fromkeys(texts, ""))


def ended_early(out: Path) -> Iterator[tuple[Path, int, str]]:
    """The executed copies that ended where nothing was left to measure: each with the number of that cell, from 1, and
    the reason."""
    for copy in sorted((out / "notebooks").glob("*.ipynb")):
        for number, cell in enumerate(json.loads(copy.read_text(encoding="utf-8"))["cells"], start=1):
            for found in cell.get("outputs", ()):
                if found.get("ename") == TooFewError.__name__:
                    yield copy, number, found["evalue"]


def _split(numbers: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """Numbers, and tables (lists of records); what the results are about is for the head and the manifest."""
    shown = {name: value for name, value in numbers.items() if name != "about"}
    records = {name: pd.DataFrame(value) for name, value in shown.items() if isinstance(value, list)}
    return {name: value for name, value in shown.items() if name not in records}, records


# ---------------------------------------------------------------- the page


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a run was made, as far as its notebooks do not say it."""

    command: str
    """What repeats it."""
    said: Sequence[str]
    """Which settings it took, and why, in sentences."""
    left_out: Sequence[str] = ()
    """What a full run has and this one has not, in sentences."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Notebook → the error that ended it."""
    times: pd.DataFrame = field(default_factory=pd.DataFrame)
    """notebook, expected, took (in words)."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """For the manifest."""
    paper_model: str = ""
    """Which of the paper's eight models this is, as its release calls it; "" if it is none."""
    paper_sets: bool = False
    """Its queries and prompts are the paper's own."""


def write_report(out: Path, listings: Listings, run: Run | None = None) -> Path:
    """Write `report.html`, `key_numbers.json` and `manifest.json` from what notebooks saved in `out` (see `collect`).

    The page needs no other file to show all that it has. Links lead to CSV files beside it.

    Args:
        run: how it was made; then the paper's numbers stand beside this model's, too.
    """
    numbers = {notebook: listing["numbers"] for notebook, listing in listings.items()}
    export.save_numbers(out, "key_numbers", numbers)
    about = {key: value for found in numbers.values() for key, value in found.get("about", {}).items()}
    model = {key: about.pop(key, None) for key in ("model", "fingerprint")}
    none = str(about.pop("none", ""))  # what the prompt of this name is for the model
    if none:
        model["none"] = none
    seed = about.pop("seed", 0)
    page = write_file(out / "report.html", _page(out, listings, model, run))
    about |= {"reproduce": dict(run.settings)} if run else {}
    export.manifest(out, model=model, settings=about, seed=seed)
    return page


def _page(out: Path, listings: Listings, model: Mapping[str, Any], run: Run | None) -> str:
    from plotly.offline import get_plotlyjs

    verdict = decisions(out, listings)
    beside = beside_paper(listings, run.paper_model) if run else pd.DataFrame()
    none = model.get("none") or ""
    sections = [_section(out, notebook, listing, none) for notebook, listing in listings.items()]
    drawn = {figure["name"]: figure for section in sections for figure in section["figures"]}
    return _template("report").render(
        model=model,
        name=_folder_name(model["model"] or ""),
        organism=model["model"] == "demo",
        made=_made(),
        answer=answer(verdict),
        forest=_forest(verdict),
        first=[drawn[name] for name in FIRST if name in drawn],
        unmeasured=list(_unmeasured(out, listings, verdict, run)),
        beside=_table(beside, about_beside(run)) if run and len(beside) else {},
        run=run,
        times=_table(run.times, "") if run and len(run.times) else {},
        sections=sections,
        first_names=list(FIRST),
        themes=THEMES,
        dark_colors=DARK,
        config=CONFIG,
        explained=explained,
        plotlyjs=get_plotlyjs(),
    )


def _folder_name(model: str) -> str:
    """Of a model that is a folder or a file here: a title needs no whole path."""
    return Path(model).name if Path(model).is_absolute() else model


def _template(name: str) -> Any:
    """A page of `drolab/assets`. What cannot be seen, such as marks that turn the reading direction, becomes a space;
    jinja escapes the rest."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: _printable(value) if type(value) is str else value,
    )
    text = (resources.files("drolab") / "assets" / f"{name}.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text)


def _made() -> str:
    """When, and with what."""
    commit = export.commit()
    versions = {"Python": platform.python_version(), **export.versions()}
    versions["drolab"] += f" (commit {commit})" if commit else ""
    return f"{datetime.now(UTC):%Y-%m-%d}, " + ", ".join(f"{name} {version}" for name, version in versions.items())


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


# ---------------------------------------------------------------- the top


def answer(verdict: pd.DataFrame) -> list[str]:
    """A verdict in five sentences, of which none says more than the decisions do; one, if there is no verdict.

    Args:
        verdict: `Verdict.table` of `claims.verdict`.

    Examples:
        >>> import pandas as pd
        >>> from drolab import report
        >>> row = {"claim": "the shift is along refusal", "under": "", "estimate": 0.812, "low": 0.775, "high": 0.843,
        ...        "unit": "cosine", "verdict": "supported"}
        >>> report.answer(pd.DataFrame([row]))[2]
        'Safety prompts move the states along the direction of refusal (cosine 0.812 [0.775, 0.843]).'
    """
    if verdict.empty:
        return ["Nothing is decided: notebook 07, which comes to the verdict, has saved none here."]
    return [_sentence("; ".join(_parts(verdict, words))) for words in ANSWER]


def _parts(verdict: pd.DataFrame, words: Mapping[str, str]) -> list[str]:
    """Of a sentence: for each claim, and each decision on it, what it says, with the numbers that it rests on."""
    parts = []
    for claim, says in words.items():
        rows = _rows(verdict, claim)
        for decision, alike in rows.groupby("verdict", sort=False):
            where = "" if len(alike) == len(rows) else f"under {' and '.join(alike['under'])}, "
            parts.append(where + _LEADS[str(decision)] + says + _numbers(alike))
    return parts or [f"it was not asked whether {next(iter(words.values()))}"]


def _rows(verdict: pd.DataFrame, claim: str) -> pd.DataFrame:
    """The claim's rows, per judge or controls; of several trained prompts each has its name behind the claim's text."""
    return verdict[verdict["claim"].str.startswith(claim)]


def _numbers(rows: pd.DataFrame) -> str:
    """Of rows of one claim: the unit, and each estimate, behind its judges or controls if there are several."""
    known = rows[rows["estimate"].notna()]
    under: dict[str, list[str]] = {}
    for row in known.itertuples():
        under.setdefault(_estimate(row), []).append(str(row.under))
    found = [f"{' and '.join(names)}: " * (len(known) > 1) + words for words, names in under.items()]
    return f" ({known['unit'].iloc[0]}{', ' if len(known) > 1 else ' '}{', '.join(found)})" if found else ""


def _estimate(row: Any) -> str:
    sign = row.unit.startswith(("change", "difference"))
    return tables.interval_words(row.estimate, row.low, row.high, sign=sign)


def _forest(verdict: pd.DataFrame) -> dict[str, Any]:
    """The verdict's table with a picture in each row: where its numbers lie on the axis that all rows of a unit share,
    in percent, and what stands at the ends of this axis."""
    if verdict.empty:
        return {}
    numbers = verdict[["estimate", "low", "high", "null_low", "null_high", "threshold"]]
    start, end = (getattr(numbers, side)(axis=1).groupby(verdict["unit"]).transform(side) for side in ("min", "max"))
    places = 20 + 60 * numbers.sub(start, axis=0).div((end - start).replace(0, 1), axis=0)
    pictures = places.round(2).assign(
        start=start.map(tables.number_text),
        end=end.map(tables.number_text),
        color=verdict["verdict"].map(lambda decision: VERDICT_LOOKS[decision]["color"]),
    )
    under = verdict["under"].map(lambda name: f" ({name})" if name else "")
    shown = {
        "claim": verdict["claim"] + under,
        "decision": verdict["verdict"],
        "estimate [95 %]": verdict["unit"] + " " + [_estimate(row) for row in verdict.itertuples()],
        "must be": verdict["side"].map({1: "above ", -1: "below "}) + verdict["threshold"].map("{:g}".format),
        "n": verdict["n"],
    }
    return _table(pd.DataFrame(shown), "") | {"pictures": pictures.to_dict("records")}


def _unmeasured(out: Path, listings: Listings, verdict: pd.DataFrame, run: Run | None = None) -> Iterator[str]:
    """What was not measured and why, and what is known against the rest, in sentences."""
    for notebook, why in run.failed.items() if run else ():
        yield _sentence(f"notebook {notebook} failed: {why}")
    yield from run.left_out if run else ()
    for claim, says in () if verdict.empty else [item for words in ANSWER for item in words.items()]:
        rows = _rows(verdict, claim)
        if rows.empty:
            yield f"It was not asked whether {says}: the verdict has no row of it."
        for row in rows[rows["verdict"] == CANNOT].itertuples():
            yield _sentence(f"it cannot be tested whether {says}{f' ({row.under})' * bool(row.under)}: {row.reason}")
    saved = {name for listing in listings.values() for name in listing["figures"]}
    for name, what in FIRST.items():
        if name not in saved:
            yield f"The figure of {what} is missing: notebook {name[:2]} has not saved it."
    for copy, _, why in ended_early(out):
        yield _sentence(f"notebook {copy.stem} ended early: {why}")
    for notebook, listing in listings.items():
        sections: dict[str, list[str]] = {}
        for section, why in listing.get("not_run", {}).items():
            sections.setdefault(why, []).append(f"“{section}”")
        for why, names in sections.items():  # a section that ends takes those that build on it with it
            yield _sentence(f"{', '.join(names)} of notebook {notebook} cannot be tested here: {why}")
        if (problems := listing["numbers"].get("problems", "none known")) != "none known":
            yield _sentence(f"notebook {notebook} says of its own results: {problems}")
    abouts = (listing["numbers"].get("about", {}) for listing in listings.values())
    seeds = sorted({about["seed"] for about in abouts if "seed" in about})
    if seeds:
        yield (
            f"This is one run, with seed {' and '.join(map(str, seeds))}. Its intervals are over queries and samples: "
            "they do not say how much another training of the prompt would differ."
        )
    if "08" not in listings and run is None:
        yield (
            "The paper's own numbers do not stand beside these: notebook 08, which shows them from a clone of the "
            "paper's code, has saved nothing here."
        )


# ---------------------------------------------------------------- the notebooks' sections


def _section(out: Path, notebook: str, listing: Mapping[str, Any], none: str) -> dict[str, Any]:
    scalars, found = _split(listing["numbers"])
    found = {name: table for name, table in found.items() if f"{notebook}_{name}" != VERDICT and len(table)}
    captions = listing.get("captions", {})
    files = [f"figures/{name}.{kind}" for name in listing["figures"] for kind in ("html", "csv")]
    files = [file for file in files if (out / file).is_file()]
    files += [f"tables/{name}.csv" for name in listing["tables"]]
    for name, table in found.items():
        file = f"{notebook}_{re.sub('[^a-z0-9]+', '_', name.lower())[:60]}"
        if len(table) > LONG and file not in listing["tables"]:
            files.append(f"tables/{export.save_table(table, out / 'tables', file).name}")
    return {
        "notebook": notebook,
        "title": listing["title"],
        "findings": listing.get("findings", []),
        "numbers": {name: tables.number_text(value) for name, value in scalars.items()},
        "figures": [
            _figure(out, name, captions.get(name.removeprefix(f"{notebook}_"), ""), none)
            for name in listing["figures"]
            if name != INSTEAD
        ],
        "tables": [
            _table(table, captions.get(name, _sentence(name)), none)
            for name, table in found.items()
            if len(table) <= LONG
        ],
        "files": files,
    }


def _figure(out: Path, name: str, caption: str, none: str) -> dict[str, str]:
    content = (out / "figures" / f"{name}.json").read_text(encoding="utf-8")
    caption = f"{caption} {none}".strip() if f'"{NO_PROMPT}"' in content else caption
    return {"name": name, "caption": caption, "content": content.replace("<", "\\u003c")}  # it stands in a <script>


def _table(table: pd.DataFrame, caption: str, none: str = "") -> dict[str, Any]:
    words = tables.worded(table)
    caption = f"{caption} {none}".strip() if (words == NO_PROMPT).to_numpy().any() else caption
    words = words.loc[:, (words != tables.MISSING).any()]  # such as notes of which there are none
    return {"caption": caption, "columns": list(words.columns), "rows": words.to_numpy().tolist()}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." * (text[-1:] not in ".?!…")


# ---------------------------------------------------------------- the paper's numbers beside a run's


def beside_paper(listings: Listings, paper_model: str = "") -> pd.DataFrame:
    """This run's rates on held-out queries beside the released ones, for each prompt that the paper has in that role.

    Args:
        paper_model: which of the paper's models this is; "" takes the averages of the eight.

    Returns:
        queries, counted, prompt, here (with its 95 % interval), "released, per reply", "released, in any of 20
        replies"; no rows if the run has no such rates.
    """
    found = _heldout_rates(listings)
    if found.empty:
        return pd.DataFrame()
    found = paper_rows(found, paper_model or None)
    found = found[found["released_as"] != ""]
    same = found["prompt"] == found["released_as"]
    shown = {
        "queries": found["group"],
        "counted": found["counted"],
        "prompt": found["prompt"].where(same, found["prompt"] + " (released: " + found["released_as"] + ")"),
        "here": [tables.interval_words(row.value, row.low, row.high) for row in _each(found)],
        "released, per reply": found["per_sample"],
        "released, in any of 20 replies": found["any"],
    }
    return pd.DataFrame(shown).reset_index(drop=True)


def _each(table: pd.DataFrame) -> Iterator[Any]:
    return table.itertuples()


def _heldout_rates(listings: Listings) -> pd.DataFrame:
    """prompt, group, value, low, high: refusal rates per reply, of notebook 07, or 06 where that has none."""
    for notebook, name in (("07", "refusal rates"), ("06", "refusal rates, held-out")):
        if rows := listings.get(notebook, {}).get("numbers", {}).get(name):
            table = pd.DataFrame(rows)
            table = table[table["measure"] == "refusal"] if "measure" in table else table
            return table[table["group"].isin(["harmful", "harmless"])]
    return pd.DataFrame()


def about_beside(run: Run) -> str:
    """What can be compared in that table, and what not."""
    eight = "the averages of the paper's eight models, of which this is none"
    ours = "this run's held-out queries, under prompts of its own in the same roles"
    return (
        f"Released: {run.paper_model or eight}, on MaliciousInstruct and the paper's harmless test set, 20 replies of "
        f"up to 300 and 200 tokens. Here: {'the same queries and prompts' if run.paper_sets else ours}, per reply. "
        "Every reply to a harmful query that is no refusal to the judge counts as compliance here; the paper also asks "
        "a guard model whether it does harm, so its count is the lower one. Compare how the rates move from prompt to "
        "prompt, not their size."
    )


# ---------------------------------------------------------------- several models


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One model on the page of several."""

    name: str
    out: Path | None = None
    """The folder of its run; None if there is none."""
    error: str = ""
    """What ended it, or a part of it."""


def write_comparison(out: Path, models: Sequence[Compared]) -> Path:
    """Write `out/compare.html`: claims × models, how alike the shifts are, what each prompt costs each model, and which
    of notebook 10's contenders is worth it where.

    Models without a report stand there with what ended them. Tables are also saved in `out/tables`.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from drolab import report
        >>> with TemporaryDirectory() as folder:
        ...     lost = report.Compared(name="lost", error="No weights: download it again.")
        ...     page = report.write_comparison(Path(folder), [lost]).read_text(encoding="utf-8")
        >>> "No weights: download it again." in page
        True
    """
    found = {model: collect(model.out) for model in models if model.out and any((model.out / "numbers").glob("*.json"))}
    parts = {
        "claims": _claims_by_model(found),
        "shifts": _shifts_by_model(found),
        "prices": _prices_by_model(found),
        "boards": _boards_by_model(found),
    }
    for name, table in parts.items():
        if len(table):
            export.save_table(table, out / "tables", f"compare_{name}")
    page = _template("compare").render(
        models=[_one_model(out, model, found.get(model)) for model in models],
        tables={name: _as_it_is(table) for name, table in parts.items() if len(table)},
        themes=THEMES,
        made=_made(),
        explained=explained,
    )
    return write_file(out / "compare.html", page)


def _as_it_is(table: pd.DataFrame) -> dict[str, Any]:
    """For the page, without a word for what its columns are called: they may be any model's name."""
    return {"columns": list(table.columns), "rows": table.to_numpy().tolist()}


def _one_model(out: Path, model: Compared, listings: Listings | None) -> dict[str, Any]:
    page = model.out / "report.html" if model.out else None
    link = page.relative_to(out).as_posix() if page and page.is_file() and page.is_relative_to(out) else ""
    said = answer(decisions(model.out, listings)) if model.out and listings else []
    return {"name": model.name, "link": link, "error": model.error, "answer": said}


def _claims_by_model(found: Mapping[Compared, Listings]) -> pd.DataFrame:
    """claim, then for each model the decision and the estimate with its interval."""
    columns: dict[str, dict[str, str]] = {}
    for model, listings in found.items():
        table = decisions(model.out or Path(), listings)
        words: dict[str, str] = {}
        for row in _each(table):
            claim = f"{row.claim}{f' ({row.under})' * bool(row.under)}, {row.unit}"
            known = row.estimate == row.estimate
            words[claim] = f"{row.verdict}: {_estimate(row)}" if known else str(row.verdict)
        columns[model.name] = words
    return _side_by_side(columns, "claim", missing="not asked")


def _shifts_by_model(found: Mapping[Compared, Listings]) -> pd.DataFrame:
    """measure (and baseline, where the models have several), then a column for each model."""
    measured = {
        model.name: listings.get("03", {}).get("numbers", {}).get("similarity") or []
        for model, listings in found.items()
    }
    several = len({row.get("baseline") for rows in measured.values() for row in rows}) > 1
    columns = {
        name: {
            row["measure"] + (f" (from {row['baseline']})" if several else ""): tables.interval_words(
                row["value"], row.get("low"), row.get("high")
            )
            for row in rows
        }
        for name, rows in measured.items()
    }
    return _side_by_side(columns, "cosine or share", missing="not measured")


def _prices_by_model(found: Mapping[Compared, Listings]) -> pd.DataFrame:
    """prompt, queries, then a column of refusal rates for each model."""
    columns: dict[str, dict[str, str]] = {}
    for model, listings in found.items():
        columns[model.name] = {
            f"{row.prompt}: {row.group}": tables.interval_words(row.value, row.low, row.high)
            for row in _each(_heldout_rates(listings))
        }
    return _side_by_side(columns, "refusals of held-out queries, per reply", missing="not measured")


def _boards_by_model(found: Mapping[Compared, Listings]) -> pd.DataFrame:
    """contender, then for each model the decision, what it is for, and the refusal rates of harmful and of harmless
    queries."""
    boards = {
        model.name: listings.get("10", {}).get("numbers", {}).get("board") or [] for model, listings in found.items()
    }
    columns = {name: {str(row["prompt"]): _on_the_board(row) for row in rows} for name, rows in boards.items()}
    return _side_by_side(columns, "contender", missing="not run")


def _on_the_board(row: Mapping[str, Any]) -> str:
    why = " for ".join(filter(None, (row["gains"], row["losses"])))
    rates = [f"{tables.number_text(row[group])} of {group}" for group in ("harmful", "harmless") if group in row]
    return f"{row['decision']}{f' ({why})' if why else ''}: refuses {', '.join(rates)}"


def _side_by_side(columns: Mapping[str, Mapping[str, str]], first: str, *, missing: str) -> pd.DataFrame:
    names = list(dict.fromkeys(name for words in columns.values() for name in words))
    table = {first: names}
    return pd.DataFrame(
        table | {model: [words.get(name, missing) for name in names] for model, words in columns.items()}
    )
