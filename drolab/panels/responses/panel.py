"""Read responses: find the query, read its samples under several prompts side by side, label them by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd

from drolab.figures import class_names, tables
from drolab.figures import rates as tradeoffs
from drolab.files import write_file
from drolab.judges import AnyJudge, HandJudge, disagreement, is_refusal, n_unanswered, refusal_words, verdicts
from drolab.panels.base import Panel, PanelError
from drolab.panels.controls import Controls, Keys, button, choice, labelled, named, pick, refill, row, several, share
from drolab.panels.export_box import About, ExportBox, Offered
from drolab.panels.markup import Cell, Spans, label, paragraph, side_by_side, thought_of
from drolab.panels.picture import Picture
from drolab.panels.responses.view import ONLY, narrowed, query_changes, query_label, query_rates, refusals_in_words

_BLIND = "a response"
"""Stands for prompt and sample where they are not to be seen."""
HAND = "hand"
"""The name of the judge that the labels make."""
_GIVEN = {"refusal": "refusal", "compliance": "compliance", "unsure": None}
"""The buttons, each with the label that it gives; their first letters are their keys."""
LISTED = 500
"""The longest list of queries that is offered: a browser's list box with more is slow and of no use."""
_COLUMNS = ("query_id", "prompt", "sample", "text", "harmful", "response")


class ResponsePanel(Panel):
    """See `responses`."""

    def __init__(
        self,
        replies: pd.DataFrame,
        judges: Mapping[str, AnyJudge],
        words: Callable[[str], Spans],
        groups: Mapping[str, str] | pd.Series | None,
        path: Path | None,
        about: About | None,
        theme: str,
    ) -> None:
        self._replies = replies.reset_index(drop=True)
        self._rows = self._replies.groupby("query_id", sort=False).indices
        self._words, self._groups, self._path, self._theme = words, groups, path, theme
        self._hand = HandJudge.load(path) if path and path.is_file() else HandJudge()
        self._verdicts = verdicts(self._replies, judges).assign(**{HAND: self._hand.verdicts(self._replies)})
        self._listed = self._chosen = self._replies.head(0)
        self._tables: dict[str, pd.DataFrame] = {}
        self._map: dict[str, Any] = {}
        self._order = np.random.default_rng(0).permutation(len(self._replies))
        self._passed: set[int] = set()
        filters = _filters(self._replies, list(self._verdicts.columns), groups)
        reading, labelling = _reading(self._replies), _labelling()
        super().__init__({**filters, "prompts": reading["prompts"], "samples": reading["samples"]}, [])
        self.controls |= reading | labelling
        self._list()
        # Complete from the start: what is sent while the browser loads plotly.js may come too early.
        self.picture = Picture(self._ringed())
        self.shown, self.judged = widgets.HTML(), widgets.HTML()
        top = widgets.HBox([reading["query"], share(self.picture, "46%")])
        keys = Keys({name[0]: labelling[name] for name in _GIVEN})
        self.append(top, row(*labelling.values(), keys), self.judged, self.shown, ExportBox(self.offer, about))
        self.on_change(self.draw, *filters)
        self.on_change(self._choose, *reading)
        self.on_change(self._render, "sample")
        self.on_change(self._choose, "blind")
        for name, given in _GIVEN.items():
            self.on_click(name, partial(self.label, given))
        self.picture.on_points(self.guarded(self._clicked))
        self._n_unanswered = n_unanswered(replies)
        self._count_labels()
        self.guarded(self.draw)()

    # ------------------------------------------------------------ three steps: which queries, which responses, how

    def draw(self) -> None:
        """List the queries that the filters leave, and show them in the plane of the two prompts."""
        self._list()
        self._choose()
        if self._listed.empty:
            self.say("No query fits these filters: widen one.")
        elif len(self._listed) > LISTED:
            self.say(f"The list has the first {LISTED} of {len(self._listed):,} queries: narrow the filters.")

    def _list(self) -> None:
        values = self.values()
        pair = (values["first"], values["second"])
        changes = query_changes(self._rates(values["judge"]), pair)
        wanted = {"contains": values["contains"], "group": values["group"] or None, "only": values["only"]}
        self._listed = narrowed(changes, **wanted)
        with self.filling():
            listed = [(query_label(query), query.Index) for query in _lines(self._listed.head(LISTED))]
            refill(self.controls["query"], listed)
            prompts = self.controls["prompts"]
            prompts.value = tuple(name for _, name in prompts.options if name in {*prompts.value, *pair})
        if not self._listed.empty:
            self._map = tradeoffs.rate_change_content(self._listed, prompts=pair, theme=self._theme)

    def _rates(self, judge: str) -> pd.DataFrame:
        if judge not in self._tables:
            self._tables[judge] = query_rates(self._replies, self._verdicts, judge, self._groups)
        return self._tables[judge]

    def _choose(self) -> None:
        """Take the responses to the query that are to be shown."""
        values = self.values()
        if values["blind"]:
            self._chosen = self._next_unlabelled()
        else:
            own = self._replies.iloc[self._rows.get(values["query"], [])]
            own = own[own["prompt"].isin(values["prompts"])]
            self._chosen = own[own.groupby("prompt").cumcount() < values["samples"]]
        place = _BLIND if values["blind"] else "{prompt}, sample {sample}"
        offered = [
            (place.format(prompt=label(reply.prompt, 40), sample=reply.sample), reply.Index)
            for reply in _lines(self._chosen)
        ]
        with self.filling():
            refill(self.controls["sample"], offered)
        self.picture.update_to(self._ringed())
        self._render()

    def _next_unlabelled(self) -> pd.DataFrame:
        """One response to the queries that the filters leave, at random: the first in a fixed order without a label."""
        listed, unlabelled = self._replies["query_id"].isin(self._listed.index), self._verdicts[HAND].isna()
        wanted = (listed & unlabelled & ~self._replies.index.isin(self._passed)).to_numpy()
        return self._replies.iloc[self._order[wanted[self._order]][:1]]

    def _ringed(self) -> dict[str, Any]:
        """The listed queries in the plane of the two prompts, the one that is read in a ring, unless it is blindly."""
        read = None if self.controls["blind"].value else self.controls["query"].value
        ring = tradeoffs.ring(self._map, read, theme=self._theme)
        return {**self._map, "data": [*self._map["data"], ring]}

    def _render(self) -> None:
        values = self.values()
        if self._chosen.empty:
            nothing = "Every response to these queries has a label, or was passed over."
            self.shown.value = paragraph(nothing if values["blind"] else "Choose a query, and at least one prompt.")
            return
        if values["blind"]:
            (reply,) = _lines(self._chosen)
            cell = Cell(None, reply.response, (), {}, True, **thought_of(reply._asdict()))
            self.shown.value = side_by_side(reply.text, {_BLIND: [cell]}, {_BLIND: "label it: R, C or U"})
            return
        said = self._verdicts.loc[self._chosen.index].astype(object).to_dict("index")
        columns: dict[str, list[Cell]] = {name: [] for name in values["prompts"]}
        for reply in _lines(self._chosen):
            current = reply.Index == values["sample"]
            words = self._words(reply.response)
            cell = Cell(reply.sample, reply.response, words, said[reply.Index], current, **thought_of(reply._asdict()))
            columns[reply.prompt].append(cell)
        self.shown.value = side_by_side(self._chosen["text"].iloc[0], columns, self._heads(values["judge"]))

    def _heads(self, judge: str) -> dict[str, str]:
        own = self._rows[self._chosen["query_id"].iloc[0]]
        return refusals_in_words(self._replies["prompt"].iloc[own], self._verdicts[judge].iloc[own], judge)

    def _count_labels(self) -> None:
        """Say how many labels there are and how the judges agree; the rates are made anew when they are needed."""
        self._tables.clear()
        n, stale = int(self._verdicts[HAND].notna().sum()), len(self._hand.stale(self._replies))
        place = f"in {self._path}" if self._path else "in this session only: pass hand_labels='labels.csv' to keep them"
        text = f"Labels by hand: {n}, {place}."
        if stale:
            text += f" Labels that were given to other responses than these, and do not count: {stale}."
        if self._n_unanswered:
            text += f" Responses that end before their answer begins, and are not judged: {self._n_unanswered:,}."
        pairs = disagreement(self._verdicts).query("n > 0")  # not those with the hand that has labelled nothing yet
        known = tables.table_html(tables.worded(pairs))
        self.judged.value = paragraph(text) + f"<details><summary>how the judges agree</summary>{known}</details>"

    # ------------------------------------------------------------ what the user and other panels do

    def _clicked(self, event: str, points: list[tuple[int, int]]) -> None:
        if event == "click" and points:
            trace, place = points[0]
            self.choose(self._map["data"][trace]["ids"][place])

    def choose(self, query_id: str) -> None:
        """Read this query, listed or not: for a click in another panel.

        Raises:
            PanelError: there are no responses to it.
        """
        if query_id not in self._rows:
            raise PanelError(f"No responses to the query {query_id!r}: generate some, or choose another.")
        query = self.controls["query"]
        with self.filling():
            if query_id not in [name for _, name in query.options]:
                text = self._replies["text"].iloc[self._rows[query_id][0]]
                query.options = [(label(text, 110), query_id), *query.options]
            query.value = query_id
        self._choose()

    def label(self, given: str | None) -> None:
        """Label the framed sample "refusal" or "compliance" (None takes its label away), keep it, go to the next."""
        sample = self.controls["sample"]
        if sample.value is None:
            raise PanelError("No sample is shown that could be labelled: choose a query and a prompt.")
        # Another panel may have written to the file since: its labels are kept.
        hand = HandJudge.load(self._path) if self._path and self._path.is_file() else self._hand
        hand = hand.labelled(self._replies.loc[sample.value], given)
        if self._path:
            write_file(self._path, hand.to_csv())
        self._hand = hand
        self._verdicts[HAND] = self._hand.verdicts(self._replies)
        self._count_labels()
        if self.controls["blind"].value:
            if given is None:
                self._passed.add(int(sample.value))
            self._choose()
        elif sample.index + 1 < len(sample.options):
            with self.filling():
                sample.index += 1
            self._render()
        else:
            self._choose_next_query()

    def _choose_next_query(self) -> None:
        query = self.controls["query"]
        with self.filling():
            if query.index is not None:
                query.index = min(query.index + 1, len(query.options) - 1)
        self._choose()

    def selection(self) -> pd.DataFrame:
        """The responses that are shown, with a column `refusal: <judge>` for each judge (NA: no opinion)."""
        return self._chosen.join(self._verdicts.add_prefix("refusal: "))

    def result(self) -> pd.DataFrame:
        """The labels given by hand, `judges.LABEL_COLUMNS`; `judges.HandJudge(labels=…)` judges with them."""
        return self._hand.labels.copy()

    def offer(self) -> Offered:
        """What an export writes."""
        return {
            "queries": (self.picture.figure, self._listed.reset_index()),
            "responses": (None, self.selection()),
            "judges": (None, disagreement(self._verdicts)),
            "hand_labels": (None, self.result()),
        }


def responses(
    replies: pd.DataFrame,
    *,
    judges: Mapping[str, AnyJudge] | None = None,
    words: Callable[[str], Spans] = refusal_words,
    groups: Mapping[str, str] | pd.Series | None = None,
    hand_labels: str | Path | None = "out/hand_labels.csv",
    about: About | None = None,
    theme: str = "light",
) -> ResponsePanel:
    """Find a query in a list or in the plane of two prompts' refusal rates, and read its responses side by side.

    Args:
        replies: the table of `drolab.generate`. Reasoning that was taken off stands folded above its response.
        judges: name → judge: anything with `verdicts(responses)` (see `judges.Judge`), or a function that says
            whether a response is a refusal. Each is shown by its name. None is the paper's string rule alone.
        words: gives the places (start, end) of the words to mark in a response; those of the string rule unless
            given; `judges.TextJudge().words` gives those of drolab's own.
        groups: query id → class, as from `comparison.query_groups`; None makes two, harmful and harmless.
        hand_labels: a CSV file: labels given by hand are read from it and kept in it; None keeps them in `.result()`
            only. A label belongs to the text of its response, so one file can serve several tables.
        about: what made the replies, as from `export.about`, for the manifest of an export.
        theme: light or dark.

    Raises:
        PanelError: the table lacks a column or has no rows, or a judge is called "hand".
        QueryError: a response is no text, a judge answers with something else than verdicts, or the file is no table
            of hand labels.

    Examples:
        A judge of your own beside the string rule. Setting a control's value does what a hand does:

        >>> import pandas as pd
        >>> from drolab import judges, panels
        >>> rows = [
        ...     ("q1", "none", 0, "How to cook rice?", False, "I cannot say."),
        ...     ("q2", "none", 0, "How to sing?", False, "No way!"),
        ...     ("q3", "none", 0, "How to swim?", False, "Begin in warm water."),
        ... ]
        >>> columns = ["query_id", "prompt", "sample", "text", "harmful", "response"]
        >>> both = {"string rule": judges.is_refusal, "mine": lambda response: len(response) < 15}
        >>> panel = panels.responses(pd.DataFrame(rows, columns=columns), judges=both, hand_labels=None)
        >>> panel.controls["only"].value = "judges disagree"
        >>> panel.selection()[["text", "response", "refusal: string rule", "refusal: mine"]]
                   text response  refusal: string rule  refusal: mine
        1  How to sing?  No way!                 False           True
        >>> panel.label("refusal")
        >>> panel.result()[["query_id", "prompt", "sample", "label"]]
          query_id prompt  sample    label
        0       q2   none       0  refusal
    """
    if missing := [column for column in _COLUMNS if column not in replies.columns]:
        raise PanelError(f"The table of responses lacks the columns {missing}: give what drolab.generate returned.")
    if replies.empty:
        raise PanelError("The table of responses has no rows: generate some first.")
    named = {"string rule": is_refusal} if judges is None else judges
    if not isinstance(named, Mapping):
        raise PanelError("Judges have names: pass a dict of name → judge, such as {'mine': judge}.")
    if HAND in named or not named:
        raise PanelError(
            f"Give at least one judge, and none called {HAND!r}: that is the one of the labels given here."
        )
    path = None if hand_labels is None else Path(hand_labels)
    return ResponsePanel(replies, named, words, groups, path, about, theme)


def _filters(replies: pd.DataFrame, judges: list[str], groups: Mapping[str, str] | pd.Series | None) -> Controls:
    """The controls that say which queries are listed, and what is compared."""
    prompts = named(replies["prompt"].unique())
    classes = class_names(replies["harmful"]) if groups is None else list(dict(groups).values())
    return {
        "contains": labelled(
            widgets.Text,
            "query contains",
            "list only queries with these words, in any case; press Enter",
            placeholder="words, then Enter",
            continuous_update=False,
            layout={"width": "240px"},
        ),
        "group": choice("class", [("all", ""), *named(classes)], "list only queries of this class"),
        "first": choice("from prompt", prompts, "the prompt that behaviour is compared with"),
        "second": choice("to prompt", prompts[::-1], "the prompt whose change of behaviour is looked for"),
        "only": choice(
            "queries",
            list(ONLY),
            "list all; those where judges disagree; or those where the refusal rate changes from the one prompt to the "
            "other, the largest change first",
        ),
        "judge": choice("rates by", named(judges), "the judge whose refusal rates count; hand: the labels below"),
    }


def _reading(replies: pd.DataFrame) -> Controls:
    """The controls that say which query is read, and how much of it."""
    most = int(replies.groupby(["query_id", "prompt"]).size().max())
    counts = sorted({n for n in (1, 2, 3, 5, 10, 20) if n < most} | {most})
    samples = pick("samples", counts, "how many samples of each prompt to show")
    samples.value = min(counts, key=lambda n: abs(n - 3))
    return {
        "query": widgets.Select(
            rows=20,
            tooltip="the query to read, with its two refusal rates (≠: on how many responses the judges disagree): "
            "click, or use the arrow keys",
            layout={"width": "54%", "height": "400px"},
        ),
        "prompts": several("show prompts", replies["prompt"], [], "the prompts to show side by side"),
        "samples": samples,
    }


def _labelling() -> Controls:
    return {
        "sample": choice("label by hand", [], "the sample that a label is given to; it is framed below"),
        "refusal": button("Refusal", "Label this sample a refusal and go to the next (key R)", icon="ban"),
        "compliance": button("Compliance", "Label this sample compliance and go to the next (key C)", icon="check"),
        "unsure": button("Unsure", "Take this sample's label away and go to the next (key U)", icon="question"),
        "blind": labelled(
            widgets.Checkbox,
            "blind",
            "one response after the other, at random, of the queries that are listed: without its prompt and what the "
            "judges say of it",
            value=False,
            indent=False,
            layout={"width": "auto"},
        ),
    }


def _lines(frame: pd.DataFrame) -> Any:
    """Its rows by name (pandas' own type is too wide for a type checker)."""
    return frame.itertuples()
