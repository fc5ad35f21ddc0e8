"""AlpacaEval's files: replies in the form that `alpaca_eval` reads, and the annotations that it writes of them.

The evaluation itself is not run here: it asks a model of its makers' (or your own) choice, with your key, elsewhere.

    alpaca_eval --model_outputs default.json --reference_outputs none.json --output_path annotated

compares two prompts of one model; without `--reference_outputs` the reference is AlpacaEval's own. The formats are
those of https://github.com/tatsu-lab/alpaca_eval (Li et al. 2023).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from drolab.errors import QueryError, listed, shown
from drolab.files import given_path, read_json, write_file

ALPACA_COLUMNS = ("instruction", "output", "generator", "dataset")
"""What an output of AlpacaEval says: the query, the reply, what wrote it, and the set that the query is of."""
ANNOTATION_COLUMNS = ("instruction", "generator", "reference", "annotator", "preference", "win")
"""Columns of `load_alpaca_annotations`."""

_ANNOTATED = ("instruction", "output_1", "output_2", "preference")
_FILE = "annotations.json"
_A_PATH = "write the outputs with save_alpaca_outputs first"


def save_alpaca_outputs(
    replies: pd.DataFrame,
    path: str | Path,
    *,
    prompt: str | None = None,
    generator: str | None = None,
    queries: pd.DataFrame | None = None,
    dataset: str = "drolab",
) -> Path:
    """Write the replies under one prompt as the model outputs of AlpacaEval: a JSON list of ALPACA_COLUMNS.

    AlpacaEval compares one output for each instruction: of several samples the first (of the least `sample`) is taken.
    A reply without an answer is an empty output.

    Args:
        replies: columns text (the query) and response, as from `generate`.
        prompt: which prompt's, where the replies have several.
        generator: what AlpacaEval calls them; None takes the prompt's name.
        queries: the query set that was asked, whose `category` becomes `dataset`: for AlpacaEval's own instructions
            (`load_queries`) that is their data set's name again.
        dataset: what `dataset` says without `queries`.

    Returns:
        The file's path.

    Raises:
        QueryError: no replies, missing columns, several prompts without a choice, or a query without a place in
            `queries`.
        ExportError: the file cannot be written.

    Examples:
        >>> import drolab, tempfile
        >>> from pathlib import Path
        >>> from drolab.data import load_alpaca_annotations, save_alpaca_outputs
        >>> replies = drolab.load_queries("anchors", nrows=2).assign(prompt="default", response=["No.", "Like this."])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(save_alpaca_outputs(replies, Path(folder) / "default.json").read_text()[:61])
        [
          {
            "instruction": "How to unlock a stranger's phone?",
    """
    if missing := [name for name in ("text", "response") if name not in replies.columns]:
        raise QueryError(f"The replies lack the columns {missing}: pass the table that drolab.generate returns.")
    names = list(replies["prompt"].unique()) if "prompt" in replies else []
    if prompt is None and len(names) > 1:
        raise QueryError(f"The replies are under {listed(names)}: choose one, such as prompt={names[0]!r}.")
    chosen = replies if prompt is None else replies[replies.get("prompt", pd.Series(dtype=object)) == prompt]
    if chosen.empty:
        raise QueryError(f"There are no replies under {prompt!r}: there are some under {listed(names) or 'no prompt'}.")
    if "sample" in chosen:
        chosen = chosen.sort_values("sample", kind="stable").loc[lambda table: ~table["text"].duplicated()]
        chosen = chosen.loc[[name for name in replies.index if name in set(chosen.index)]]
    if repeated := int(chosen["text"].duplicated().sum()):
        raise QueryError(f"{repeated} queries have several replies: give one for each, or a column `sample`.")
    sets = _datasets(chosen["text"], queries, dataset)
    called = generator or prompt or (names[0] if names else "drolab")
    said = chosen["response"].map(lambda text: text if isinstance(text, str) else "")
    records = [
        dict(zip(ALPACA_COLUMNS, values, strict=True))
        for values in zip(chosen["text"], said, [str(called)] * len(chosen), sets, strict=True)
    ]
    return write_file(given_path(path, QueryError, "give a path to write to"), json.dumps(records, indent=2) + "\n")


def _datasets(texts: pd.Series, queries: pd.DataFrame | None, dataset: str) -> list[str]:
    if queries is None:
        return [dataset] * len(texts)
    known = dict(zip(queries["text"], queries["category"].astype(str), strict=True))
    if lost := [text for text in texts if text not in known]:
        raise QueryError(f"{len(lost)} queries (first: {shown(lost[0])}) are not in `queries`: pass the set asked.")
    return [known[text] for text in texts]


def load_alpaca_annotations(path: str | Path, outputs: str | Path) -> pd.DataFrame:
    """The annotations that AlpacaEval wrote of outputs that `save_alpaca_outputs` wrote.

    Each annotation must be of an exported instruction, and its `output_2`, which is the model's, must be the exported
    output: else it is of other replies, and says nothing of these. In AlpacaEval's convention `preference` is 1 where
    the reference is preferred, 2 where the model is, 1.5 (in old files 0) for a draw; annotators that weigh, such as
    that of AlpacaEval 2, give numbers in between. Here `win` = preference - 1: 0, 1, .5, or in between. An annotation
    without a preference is left out and counted in `.attrs["summary"]`, as are instructions without an annotation.

    Args:
        path: `annotations.json`, or the folder that it is in, or that has one folder with it (as some versions name one
            after the annotator). Annotations of other generators in it are left out, if
            there are some of this one.
        outputs: the file of `save_alpaca_outputs`.

    Returns:
        ANNOTATION_COLUMNS, one row per annotation.

    Raises:
        QueryError: a file that cannot be read, or of another form; annotations of other outputs or instructions, or of
            these as the reference; an instruction annotated twice; a preference that is none; or none at all.

    Examples:
        >>> import drolab, json, tempfile
        >>> from pathlib import Path
        >>> from drolab.data import load_alpaca_annotations, save_alpaca_outputs
        >>> replies = drolab.load_queries("anchors", nrows=2).assign(prompt="default", response=["No.", "Like this."])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ours = save_alpaca_outputs(replies, Path(folder) / "default.json")
        ...     said = [
        ...         {"instruction": one["instruction"], "output_1": "Hm.", "output_2": one["output"], "preference": 2}
        ...         for one in json.loads(ours.read_text())
        ...     ]
        ...     _ = (Path(folder) / "annotations.json").write_text(json.dumps(said))
        ...     load_alpaca_annotations(folder, ours)["win"].tolist()
        [1.0, 1.0]
    """
    written = _records(outputs, ("instruction", "output"), "outputs")
    ours = {str(one["instruction"]): str(one["output"]) for one in written}
    generator = str(written[0].get("generator", ""))
    found = _records(path, _ANNOTATED, "annotations")
    named = [one for one in found if str(one.get("generator_2", generator)) == generator]
    _check_annotated(named or found, ours)
    kept = [one for one in named or found if not _is_missing(one["preference"])]
    if not kept:
        raise QueryError(f"None of the {len(found)} annotations has a preference: run alpaca_eval again.")
    table = pd.DataFrame(
        {
            "instruction": [one["instruction"] for one in kept],
            "generator": generator,
            "reference": [str(one.get("generator_1", "")) for one in kept],
            "annotator": [str(one.get("annotator", "")) for one in kept],
            "preference": [_preference(one["preference"]) for one in kept],
        }
    )
    table = table.assign(win=table["preference"].replace(0.0, 1.5) - 1)[list(ANNOTATION_COLUMNS)]
    lost = len(ours) - len(kept)
    table.attrs["summary"] = f"{len(kept):,} of {len(ours):,} outputs annotated" + (
        f"; {lost:,} without a preference are left out" if lost else ""
    )
    return table


def _records(path: str | Path, needed: Sequence[str], what: str) -> list[dict[str, Any]]:
    found = given_path(path, QueryError, _A_PATH)
    if found.is_dir() and what == "annotations":
        several = [*found.glob(_FILE), *sorted(found.glob(f"*/{_FILE}"))]
        if len(several) > 1:
            raise QueryError(f"There are several annotations in {found}: choose one of {listed(several)}.")
        found = several[0] if several else found / _FILE
    if not found.is_file():
        raise QueryError(f"There are no {what} at {found}: check the path.")
    records = read_json(found, QueryError)
    if not isinstance(records, list) or not records or not all(isinstance(one, dict) for one in records):
        raise QueryError(f"{found} is no list of {what}: give the JSON file of AlpacaEval.")
    if missing := [name for name in needed if any(name not in one for one in records)]:
        raise QueryError(f"Some {what} in {found} lack {listed(missing)}: is it the right file?")
    return records


def _check_annotated(found: Sequence[dict[str, Any]], ours: dict[str, str]) -> None:
    """Raise QueryError unless all annotations are of our outputs, each once."""
    other = [one for one in found if ours.get(str(one["instruction"])) != str(one["output_2"])]
    if other:
        if all(ours.get(str(one["instruction"])) == str(one["output_1"]) for one in found):
            raise QueryError(
                "In these annotations the exported outputs are output_1, the reference: run alpaca_eval with them as "
                "--model_outputs."
            )
        unknown = sum(str(one["instruction"]) not in ours for one in other)
        raise QueryError(
            f"{len(other)} of {len(found)} annotations are of other outputs than those exported ({unknown} of other "
            f"instructions; first: {shown(str(other[0]['instruction']))}), so that they say nothing of these: give the "
            "file that was exported for them, or run alpaca_eval on this one."
        )
    names = [str(one["instruction"]) for one in found]
    if repeated := len(names) - len(set(names)):
        raise QueryError(
            f"{repeated} instructions are annotated more than once: give the annotations of one run and one annotator."
        )


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _preference(value: object) -> float:
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and (value == 0 or 1 <= value <= 2)
    if not known:
        raise QueryError(
            f"The preference {shown(value)} is none of AlpacaEval's, which are 1 (the reference), 2 (the model), 1.5 "
            "or 0 (a draw), or a number between 1 and 2: is it the right file?"
        )
    return float(value)  # type: ignore[arg-type]
