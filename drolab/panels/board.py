"""The comparison board: prompts by groups of queries, paired tests, and safety against helpfulness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipywidgets as widgets
import pandas as pd

from drolab import figures
from drolab.evidence import comparison
from drolab.figures import tables, tradeoff_content
from drolab.panels.base import Panel, PanelError
from drolab.panels.controls import Controls, choice, named, several, share
from drolab.panels.export_box import About, ExportBox, Offered
from drolab.panels.markup import label, paragraph
from drolab.panels.picture import Picture, content_of

Groups = Mapping[str, str] | pd.Series | None
_TESTS = [
    ("refusal rate (sign flips)", "rate"),
    ("any sample does it (McNemar)", "any"),
    ("most samples refuse (McNemar)", "majority"),
]


class Board(Panel):
    """See `board`."""

    def __init__(self, scores: Mapping[str, pd.DataFrame], groups: Groups, about: About | None, theme: str) -> None:
        self._scores, self._groups, self._theme = dict(scores), groups, theme
        self._known = {name: comparison.group_rates(table, groups) for name, table in self._scores.items()}
        self._tested: dict[tuple[str, str, str], pd.DataFrame] = {}
        self._rates = self._front = self._tests = pd.DataFrame()
        super().__init__(self._choices(), [])
        self._take()
        # Complete from the start: what is sent while the browser loads plotly.js may come too early.
        self.bars, self.plane = Picture(self._bars()), Picture(self._plane())
        self.words, self.tests, self.rates = widgets.HTML(), widgets.HTML(), widgets.HTML()
        pictures = widgets.HBox([share(self.bars, "50%"), share(self.plane, "50%")])
        self.append(pictures, self.words, self.tests, self.rates, ExportBox(self.offer, about))
        self.on_change(self.draw, *(name for name in ("judge", "prompts") if name in self.controls))
        self.on_change(self._draw_bars, "measure")
        self.on_change(self._draw_plane, "helpful", "safe")
        self.on_change(self._draw_tests, "baseline", "test")
        self.guarded(self.draw)()

    def _choices(self) -> Controls:
        rates = pd.concat(self._known.values())
        prompts, groups = (list(rates[name].unique()) for name in ("prompt", "group"))
        judges = choice("judge", named(self._scores), "whose verdicts count")
        return {
            **({"judge": judges} if len(self._scores) > 1 else {}),
            "prompts": several("prompts", prompts, prompts, "the prompts to compare"),
            "measure": choice("bars", ["refusal", "compliance"], "what the bars and the table of rates show"),
            "baseline": choice("baseline", named(prompts), "the prompt that every other is tested against"),
            "test": choice("test of the", _TESTS, "what is tested of each query; decide before you look"),
            "helpful": choice(
                "helpful: answers", named(groups), "the queries whose compliance is helpfulness", "harmless"
            ),
            "safe": choice("safe: refuses", named(groups), "the queries whose refusal is safety", "harmful"),
        }

    def draw(self) -> None:
        self._take()
        self._draw_bars()
        self._draw_plane()
        self._draw_tests()

    def _take(self) -> None:
        """The rates of the chosen prompts by the chosen judge."""
        known = self._known[self._judge()]
        self._rates = known[known["prompt"].isin(self.controls["prompts"].value)]
        if self._rates.empty:
            raise PanelError("No prompt is chosen: choose at least one.")

    def _judge(self) -> str:
        return self.controls["judge"].value if "judge" in self.controls else next(iter(self._scores))

    def _measured(self) -> pd.DataFrame:
        return self._rates[self._rates["measure"] == self.controls["measure"].value]

    def _bars(self) -> dict[str, Any]:
        title = f"{self.controls['measure'].value} rate"
        figure = figures.rate_bars(self._measured(), y_title=title, theme=self._theme)
        return _in_half(**content_of(figure))

    def _draw_bars(self) -> None:
        self.bars.update_to(self._bars())
        unanswered = self._scores[self._judge()].attrs.get("n_unanswered", 0)
        self.rates.value = _rates_table(self._measured(), self.controls["measure"].value) + _unanswered(unanswered)

    def _plane(self) -> dict[str, Any]:
        sides = {name: self.controls[name].value for name in ("helpful", "safe")}
        self._front = comparison.tradeoff(self._rates, **sides)
        return _in_half(**tradeoff_content(self._front, **sides, theme=self._theme))

    def _draw_plane(self) -> None:
        self.plane.update_to(self._plane())
        self.words.value = _front_in_words(self._front, self.controls["helpful"].value, self.controls["safe"].value)

    def _draw_tests(self) -> None:
        self._tests, self.tests.value = pd.DataFrame(), ""  # an error below must not leave the former tests
        baseline = self.controls["baseline"].value
        others = [prompt for prompt in self.controls["prompts"].value if prompt != baseline]
        if not others:
            self.tests.value = paragraph("No prompt beside the baseline is chosen: there is nothing to test.")
            return
        tests = self._paired(self._judge(), baseline, self.controls["test"].value)
        self._tests = comparison.holm(tests[tests["prompt"].isin(others)])
        self.tests.value = _tests_table(self._tests, baseline)

    def _paired(self, judge: str, baseline: str, test: str) -> pd.DataFrame:
        """Against all prompts, whatever is shown: kept, since it takes longer than a choice should."""
        key = (judge, baseline, test)
        if key not in self._tested:
            self._tested[key] = comparison.paired(self._scores[judge], baseline, self._groups, test=test)
        return self._tested[key]

    def result(self) -> pd.DataFrame:
        """The rates of the chosen prompts, as from `comparison.group_rates`."""
        return self._rates

    def comparisons(self) -> pd.DataFrame:
        """The paired tests that are shown, as from `comparison.paired`, corrected for their number."""
        return self._tests

    def front(self) -> pd.DataFrame:
        """The chosen prompts in the plane, as from `comparison.tradeoff`."""
        return self._front

    def offer(self) -> Offered:
        """What an export writes."""
        bars, plane = self.bars.figure, self.plane.figure
        return {"rates": (bars, self._rates), "tradeoff": (plane, self._front), "comparisons": (None, self._tests)}


def board(
    scores: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    groups: Groups = None,
    about: About | None = None,
    theme: str = "light",
) -> Board:
    """Prompts by groups of queries: rates with intervals, paired tests, and the safety-helpfulness plane.

    Args:
        scores: from `drolab.judge`; or several of them, by the name of their judge.
        groups: query id → group, as from `comparison.query_groups`; None makes two, harmful and harmless.
        about: what made the scores, as from `export.about`, for the manifest of an export.
        theme: light or dark.

    Raises:
        QueryError: a table that is none of `judge`, or no query in a group.
        PanelError: no scores.

    Examples:
        Made-up replies to two queries under two prompts. Setting a control's value does what a hand does:

        >>> import pandas as pd
        >>> import drolab
        >>> from drolab import panels
        >>> rows = [
        ...     ("q1", "none", True, "Sure, like this."),
        ...     ("q1", "careful", True, "I cannot help with that."),
        ...     ("q2", "none", False, "Boil the rice."),
        ...     ("q2", "careful", False, "Boil the rice, and be careful."),
        ... ]
        >>> replies = pd.DataFrame(rows, columns=["query_id", "prompt", "harmful", "response"])
        >>> panel = panels.board(drolab.judge(replies))
        >>> panel.controls["prompts"].value = ("careful",)
        >>> panel.result()[["prompt", "group", "measure", "value"]]
            prompt     group     measure  value
        2  careful   harmful     refusal    1.0
        3  careful   harmful  compliance    0.0
        6  careful  harmless     refusal    0.0
        7  careful  harmless  compliance    1.0
        >>> panel.controls["prompts"].value = ("none", "careful")
        >>> panel.front()[["prompt", "on_front", "dominated_by"]]
            prompt  on_front dominated_by
        0     none     False      careful
        1  careful      True
    """
    judged = dict(scores) if isinstance(scores, Mapping) else {"judge": scores}
    if not judged:
        raise PanelError("No scores to compare: pass what drolab.judge returned.")
    return Board(judged, groups, about, theme)


def _in_half(data: list[dict[str, Any]], layout: dict[str, Any]) -> dict[str, Any]:
    """In half the panel's width: lower, and the legend above."""
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    size = {"height": 420, "legend": legend, "margin": {"l": 60, "r": 12, "t": 64, "b": 56}}
    return {"data": data, "layout": layout | size}


def _unanswered(n: int) -> str:
    """What no judge could judge, and no table of rates shows."""
    return paragraph(f"Responses that end before their answer begins, and are left out: {n:,}.") if n else ""


def _rates_table(rates: pd.DataFrame, measure: str) -> str:
    """Prompts by groups, each rate with its interval."""
    texts = [tables.interval_words(*row) for row in rates[["value", "low", "high"]].itertuples(index=False)]
    wide = rates.assign(text=texts).pivot(index="prompt", columns="group", values="text").fillna("–")
    order = [rates[name].unique() for name in ("prompt", "group")]
    shown = wide.loc[order[0], order[1]].reset_index()
    sizes = rates.groupby("group", sort=False)["n_queries"].max()
    n = ", ".join(f"{n} {label(group, 40)}" for group, n in sizes.items())
    note = f"Rates of {measure} with 95 % intervals over queries ({n}): bootstrap, or Wilson's where all are 0 or 1; "
    note += "wider where hardly any query differs from the rest, since others may."
    return paragraph(note) + tables.table_html(shown)


def _tests_table(tests: pd.DataFrame, baseline: str) -> str:
    columns = ["prompt", "group", "n_queries", "value", "baseline_value", "difference", "low", "high"]
    shown = tables.worded(tests[[*columns, "higher", "lower", "p", "p_holm"]], value=tests["measure"].iloc[0])
    note = (
        f"Each prompt against {label(baseline, 60)}, each query with itself under both. Difference with a 95 % "
        f"bootstrap interval over queries; test: {tests['test'].iloc[0]}; p (Holm) is corrected for these "
        f"{len(tests)} comparisons."
    )
    return paragraph(note) + tables.table_html(shown)


def _front_in_words(front: pd.DataFrame, helpful: str, safe: str) -> str:
    dominated = front[~front["on_front"]]
    lines = []
    for by, names in dominated.groupby("dominated_by", sort=False)["prompt"]:
        listed = ", ".join(label(name, 60) for name in names)
        lines.append(f"{listed} {'is' if len(names) == 1 else 'are'} dominated by {label(by, 200)}.")
    if lines:
        note = (
            f"Dominated: another prompt refuses at least as many {safe} queries and answers at least as many {helpful} "
        )
        lines.append(f"{note}ones, and more of one kind. The estimates are compared, whatever their intervals.")
    else:
        lines = ["No prompt is dominated: each that is safer than another is less helpful."]
    return "".join(map(paragraph, lines))
