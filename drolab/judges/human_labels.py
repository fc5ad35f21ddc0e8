"""Labels by hand: a person's verdicts on single responses, kept in a CSV file, as a judge of their own."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import pandas as pd

from drolab.errors import QueryError
from drolab.judges.base import score_table

LABEL_COLUMNS = ("query_id", "prompt", "sample", "response_sha256", "label")
"""Columns of a table of hand labels; `label` is refusal or compliance."""
LABELS = ("refusal", "compliance")
_PLACE = ["query_id", "prompt", "sample"]
_SAMPLE = re.compile("[0-9]{1,18}")


def _no_labels() -> pd.DataFrame:
    return pd.DataFrame(columns=LABEL_COLUMNS, dtype=object)


@dataclass(frozen=True, kw_only=True, eq=False)
class HandJudge:
    """A person's labels as a judge. A label belongs to one response: it holds the hash of its text, and does not
    count for another text that a new run put in the same place.

    Examples:
        The panel `panels.responses` gives such labels; so does this:

        >>> import drolab, pandas as pd
        >>> from drolab import judges
        >>> replies = pd.DataFrame(
        ...     {"query_id": ["a", "b"], "prompt": "none", "sample": 0, "harmful": True, "response": ["Never!", "Yes."]}
        ... )
        >>> hand = judges.HandJudge().labelled(replies.loc[0], "refusal")
        >>> hand.verdicts(replies).tolist()
        [True, <NA>]
        >>> drolab.judge(replies, judge=hand)["refusal_rate"].to_dict()
        {('a', 'none'): 1.0}
    """

    reads_whole: ClassVar[bool] = True
    """A label belongs to all that the model wrote, thoughts included."""
    labels: pd.DataFrame = field(default_factory=_no_labels)
    """LABEL_COLUMNS, one row per labelled response."""

    @classmethod
    def load(cls, path: str | Path) -> HandJudge:
        """Read the CSV file that the panel writes.

        Raises:
            QueryError: no such file, no table of hand labels, or a label that is neither refusal nor compliance.
        """
        rows = _read_rows(path)
        if not rows or tuple(rows[0]) != LABEL_COLUMNS or any(len(row) != len(LABEL_COLUMNS) for row in rows):
            raise QueryError(f"{path} is no table of hand labels: its columns must be {', '.join(LABEL_COLUMNS)}.")
        labels = []
        for number, row in enumerate(rows[1:], start=2):
            query_id, prompt, sample, digest, label = map(_unguarded, row)
            if label not in LABELS or not _SAMPLE.fullmatch(sample):
                raise QueryError(
                    f"{path}, row {number}: the sample must be a number and the label refusal or compliance, got "
                    f"{sample[:40]!r} and {label[:40]!r}. Correct the row or remove it."
                )
            labels.append((query_id, prompt, int(sample), digest, label))
        return cls(labels=pd.DataFrame(labels, columns=LABEL_COLUMNS, dtype=object))

    def to_csv(self) -> bytes:
        """The labels as CSV. A text that a spreadsheet would take for a formula gets an apostrophe in front, which
        `load` takes away again."""
        written = io.StringIO(newline="")
        rows = ([_guarded(str(value)) for value in row] for row in self.labels.itertuples(index=False))
        csv.writer(written, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([LABEL_COLUMNS, *rows])
        return written.getvalue().encode("utf-8", "surrogatepass")

    def labelled(self, response: pd.Series, label: str | None) -> HandJudge:
        """With a label for one response (a row of a responses table) in place of the one it had; None takes it away.

        Raises:
            QueryError: another label than refusal, compliance or None.
        """
        if label is not None and label not in LABELS:
            raise QueryError(f"No label {label!r}: choose refusal, compliance, or None to take a label away.")
        new = (*(response[column] for column in _PLACE), _sha256(response["response"]), label)
        rows = [row for row in self.labels.itertuples(index=False, name=None) if row[:4] != new[:4]]
        rows += [new] if label else []
        return replace(self, labels=pd.DataFrame(rows, columns=LABEL_COLUMNS, dtype=object))

    def verdicts(self, responses: pd.DataFrame) -> pd.Series:
        """Nullable booleans with the index of `responses`: True is a refusal, NA has no label."""
        known = {row[:4]: row[4] == "refusal" for row in self.labels.itertuples(index=False, name=None)}
        near = self._near(responses)
        found = [known.get((*place, _sha256(text))) for place, text in _texts(near)]
        return pd.Series(found, index=near.index, dtype="boolean").reindex(responses.index)

    def stale(self, responses: pd.DataFrame) -> pd.DataFrame:
        """The labels in whose place `responses` has another text now; they do not count."""
        now = {place: _sha256(text) for place, text in _texts(self._near(responses))}
        rows = self.labels.itertuples(index=False, name=None)
        changed = [now.get(row[:3], row[3]) != row[3] for row in rows]
        return self.labels[pd.Series(changed, index=self.labels.index, dtype=bool)]

    def _near(self, responses: pd.DataFrame) -> pd.DataFrame:
        """The responses to labelled queries: few, and only they need to be hashed."""
        return responses[responses["query_id"].isin(self.labels["query_id"])]

    def scores(self, responses: pd.DataFrame) -> pd.DataFrame:
        """Refusal and compliance rates as from `drolab.judge`, over the labelled responses alone.

        Raises:
            QueryError: no response has a label.
        """
        verdicts = self.verdicts(responses).dropna()
        if verdicts.empty:
            raise QueryError("None of these responses has a hand label: label some in panels.responses first.")
        return score_table(responses.loc[verdicts.index], verdicts.astype(bool))


def _read_rows(path: str | Path) -> list[list[str]]:
    try:
        text = Path(path).read_bytes().decode("utf-8", "surrogatepass")
        return list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise QueryError(f"Cannot read hand labels from {path} ({error}): give the CSV file of the panel.") from error


def _texts(responses: pd.DataFrame) -> Iterator[tuple[tuple[str, str, int], str]]:
    """((query_id, prompt, sample), response) of each row."""
    return zip(responses[_PLACE].itertuples(index=False, name=None), responses["response"], strict=True)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _guarded(text: str) -> str:
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r", "'") else text


def _unguarded(text: str) -> str:
    return text.removeprefix("'")
