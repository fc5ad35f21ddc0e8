"""The projection panel: every query under every prompt in one frozen plane, and the table of those that are chosen."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from drolab.figures import PALETTE, THEMES, tables
from drolab.panels import markup
from drolab.panels.base import Job, Panel, PanelError
from drolab.panels.controls import Controls, button, choice, labelled, named, refill, row, several
from drolab.panels.export_box import About, ExportBox, Offered
from drolab.panels.picture import Picture
from drolab.panels.projection.view import (
    MOST_ROWS,
    Choices,
    FrozenSpaces,
    Plane,
    ProjectionView,
    point_table,
    points_as_html,
    replies_as_html,
)
from drolab.store import Store
from drolab.types import NO_PROMPT, HiddenStates

_HINT = (
    "Hover a point to see its query under every prompt. Click it, or draw a lasso, to choose; double-click undoes. "
    "Buttons at the top right: zoom, pan, box."
)
_ANY = "any"
_NOT_ASKED = ""


class ProjectionPanel(Panel):
    """See `projection`."""

    def __init__(
        self,
        view: ProjectionView,
        replies: pd.DataFrame | None = None,
        *,
        theme: str = "light",
        about: About | None = None,
    ) -> None:
        self.view, self._all_replies = view, replies
        self._replies_to = {} if replies is None else replies.groupby("query_id", sort=False).indices
        self._chosen = view.tables[next(iter(view.tables))].head(0)
        self._selected: pd.Index | None = None
        self._outlined: Plane | None = None
        """Where the lasso was drawn: its outline means nothing elsewhere."""
        self.job = Job(self, "UMAP")
        self.job.layout.display = "none"
        controls = _controls(view, theme)
        super().__init__(controls, [self.job])
        search = _search_controls(view)
        prompts, *others = controls.values()
        rows = widgets.VBox([row(*others), row(*search.values())], layout={"flex": "1 1 0"})
        self.children[0].children = [prompts, rows]
        read = choice("replies to", [], "which of the chosen queries to read the replies to, all samples of them")
        self.controls |= {**search, "read": read}
        self.picture = Picture(view.content(self.choices()))
        self.table, self.replies = widgets.HTML(), widgets.HTML()
        read.layout = {"display": "none", "max_width": "100%"}
        self.export_box = ExportBox(self.offer, about)
        self.append(self.picture, widgets.HTML(html.escape(_HINT)), self.table, read, self.replies, self.export_box)
        self._listen()

    def choices(self) -> Choices:
        """What is shown: as long as a map is not made, PCA stands in for it."""
        chosen = Choices(**{field.name: self.controls[field.name].value for field in dataclasses.fields(Choices)})
        waits = chosen.view == "UMAP" and not self.view.spaces.has_map(chosen.layer)
        return dataclasses.replace(chosen, view="PCA") if waits else chosen

    def draw(self) -> None:
        choices = self.choices()
        if choices.view != self.controls["view"].value and not self.job.running:
            self._make_map(choices.layer)
        for name in ("x", "y", "arrows", "boundaries"):
            self.controls[name].disabled = choices.view == "UMAP"
        self.picture.relayout({"shapes": []} | ({} if self._outlined == choices.plane else {"selections": []}))
        self.picture.update_to(self.view.content(choices, self._selected))

    def result(self) -> pd.DataFrame:
        """The points that are drawn: `view.POINT_COLUMNS`, x, y; with several judges also `disagreement`."""
        return self.view.drawn_points(self.choices()).reset_index(drop=True)

    def selection(self) -> pd.DataFrame:
        """The chosen points, with the columns of `result`; after a search for changes also `baseline_rate` and
        `change`, the largest change first."""
        points = self.view.points(self.choices()).loc[self._chosen.index]
        found = [name for name in ("baseline_rate", "change") if name in self._chosen.columns]
        return points.join(self._chosen[found]).reset_index(drop=True)

    def offer(self) -> Offered:
        """What an export writes: the figure as it is zoomed now with its points, and the chosen ones if there are."""
        content = self.picture.figure.to_dict()
        data = [trace for trace in content["data"] if trace.get("visible", True) is True]
        layout = {name: value for name, value in content["layout"].items() if name not in ("shapes", "selections")}
        figure = go.Figure({"data": data, "layout": layout})
        chosen = self.selection()
        offered: Offered = {"projection": (figure, self.result())}
        return offered | ({"selection": (None, chosen)} if len(chosen) else {})

    # ------------------------------------------------------------ what the user does

    def _listen(self) -> None:
        self.on_change(self.draw, *(part.name for part in dataclasses.fields(Choices) if part.name not in ("x", "y")))
        for name, other in (("x", "y"), ("y", "x")):
            self.controls[name].observe(self.guarded(partial(self._new_axis, other)), "value")
        self.on_click("find", self._find)
        self.on_click("clear", self._clear)
        self.on_change(self._read, "read")
        self.controls["contains"].observe(self.guarded(lambda change: self._find() if change.new else None), "value")
        self.job.observe(self._job_changed, "state")
        self.picture.on_points(self._pointed)

    def _new_axis(self, other: str, change: Any) -> None:
        """Two equal axes make no plane: the other takes what this one had."""
        if self.controls[other].value == change.new:
            self.controls[other].value = change.old  # draws
        else:
            self.draw()

    def _pointed(self, event: str, points: list[tuple[int, int]]) -> None:
        rows = self.view.rows(points)
        if event in ("hover", "unhover"):
            # A message above the figure must outlive the mouse's way to it.
            self.guarded(self._hovered, keep_message=True)(rows if event == "hover" else [])
        elif rows:
            caption = f"{len(rows):,} point{'' if len(rows) == 1 else 's'} chosen"
            self.guarded(self._choose)(self.view.points(self.choices()).loc[rows], caption, event == "selected")
        elif event != "click":
            self.guarded(self._clear)()

    def _hovered(self, rows: list[int]) -> None:
        self.picture.relayout({"shapes": self.view.path(rows[0], self.choices()) if rows else []})

    def _find(self) -> None:
        names = ("kind", "contains", "prompt", "baseline", "at_least")
        kind, contains, prompt, baseline, at_least = (self.controls[name].value for name in names)
        harmful = None if kind == _ANY else kind == "harmful"
        asked = {"harmful": harmful, "contains": contains, "prompt": prompt or None, "baseline": baseline}
        found = self.view.find(self.choices(), **asked, at_least=at_least)
        those = f"{'' if kind == _ANY else kind + ' '}{'queries' if prompt else 'points'}"
        containing = f" containing “{markup.label(contains, 40)}”" if contains else ""
        what = f"{len(found):,} {those}{containing}"
        if prompt:
            everything = self.view.find(self.choices(), **asked, at_least=-math.inf)
            one, other = (markup.label(name, 40) for name in (prompt, baseline))
            share = markup.share_of(len(found), len(everything), f"{those}{containing}")
            what = f"{share} refused more under “{one}” than under “{other}” by at least {tables.number_text(at_least)}"
            what = what if len(everything) else f"There are no {those}{containing}"
            largest = [tables.number_text(change, sign=True) for change in everything["change"].head(1)]
            what += "".join(f"; the largest change is {words}" for words in largest)
        self._choose(found, what)

    def _clear(self) -> None:
        self._chosen, self._selected, self._outlined = self._chosen.head(0), None, None
        self.controls["contains"].value = ""
        self.table.value = ""
        self._offer_replies()
        self.draw()

    def _choose(self, points: pd.DataFrame, caption: str, outlined: bool = False) -> None:
        """`points`: rows of the table of states, under their row numbers."""
        self._chosen, self._selected = points, points.index
        self._outlined = self.choices().plane if outlined else None
        self.table.value = points_as_html(
            points, caption, self.controls["prompt"].value, self.controls["baseline"].value
        )
        self._offer_replies()
        self.draw()
        self.say(f"{caption}; listed below the figure." if len(points) else f"{caption}.")

    def _offer_replies(self) -> None:
        """Show the replies to the first of the chosen queries, and offer those to the others."""
        queries = self._chosen[self._chosen["query_id"].isin(list(self._replies_to))].drop_duplicates("query_id")
        texts = zip(queries["text"].head(MOST_ROWS), queries["query_id"].head(MOST_ROWS), strict=True)
        with self.filling():
            refill(self.controls["read"], [(markup.label(text, 90), query) for text, query in texts])
        self.controls["read"].layout.display = "none" if queries.empty else None
        self._read()

    def _read(self) -> None:
        """Under the prompts that were compared, or that are shown."""
        if (query := self.controls["read"].value) is None or self._all_replies is None:
            self.replies.value = ""
            return
        names = ("baseline", "prompt") if "change" in self._chosen else ()
        prompts = [self.controls[name].value for name in names] or list(self.choices().prompts)
        text = self._chosen.loc[self._chosen["query_id"] == query, "text"].iloc[0]
        self.replies.value = replies_as_html(text, self._all_replies.iloc[self._replies_to[query]], prompts)

    # ------------------------------------------------------------ UMAP

    def _make_map(self, layer: int) -> None:
        def work(job: Job) -> None:
            job.tick(0, 1)
            self.view.spaces.umap(layer)
            job.tick(1, 1)

        self.job.start(work, lambda _: self.draw())

    def _job_changed(self, change: Any) -> None:
        busy = self.job.running
        self.job.layout.display = None if busy else "none"
        for name in ("view", "layer"):
            self.controls[name].disabled = busy
        if change.new in ("stopped", "failed"):
            why = self.message.value
            self.controls["view"].value = "PCA"  # draws, which clears the message
            self.message.value = why


def projection(
    states: HiddenStates,
    *,
    anchors: Sequence[str],
    scores: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
    replies: pd.DataFrame | None = None,
    n_components: int = 4,
    store: Store | None = None,
    theme: str = "light",
    about: About | None = None,
) -> ProjectionPanel:
    """Look at every query under every prompt in one frozen plane: PCA or UMAP, any pair of components, any layer.

    Args:
        states: one or more layers, one read position.
        anchors: the prompts on which spaces, probes and maps are fitted, once per layer; the others are placed in.
        scores: a table of `judge`, or several by the judges' names: for refusal rates, their boundary, and the
            question which queries a prompt makes the model refuse.
        replies: a table of `generate`: the first response to each query under each prompt on hover, and all those to a
            query that is chosen.
        n_components: of the anchor spaces, at least 2.
        store: where UMAP's maps are kept.
        about: see `export.about`; goes into the manifest of an export.

    Raises:
        PanelError: too few components, or no judge in `scores`.
        StatesError: an anchor prompt without states, states of several positions, or scores that are no such table.

    Examples:
        Made-up states of three queries under two prompts. Setting a control's value does what a hand does:

        >>> import pandas as pd
        >>> import torch
        >>> import drolab
        >>> from drolab import panels
        >>> from drolab.types import STATE_COLUMNS, HiddenStates
        >>> rows = [
        ...     (query, prompt, -1, f"How to {verb}?", verb == "hurt", "made up", "test")
        ...     for prompt in ("none", "careful")
        ...     for query, verb in (("q1", "hurt"), ("q2", "cook"), ("q3", "sing"))
        ... ]
        >>> states = HiddenStates(
        ...     values=torch.eye(6)[:, None, :],
        ...     index=pd.DataFrame(rows, columns=list(STATE_COLUMNS)),
        ...     layers=(1,),
        ...     num_hidden_layers=1,
        ... )
        >>> panel = panels.projection(states, anchors=["none", "careful"], n_components=2)
        >>> panel.controls["prompts"].value = ("careful",)
        >>> panel.result()[["query_id", "prompt", "harmful"]]
          query_id   prompt  harmful
        0       q1  careful     True
        1       q2  careful    False
        2       q3  careful    False
        >>> panel.controls["contains"].value = "cook"  # and Enter: the points with this text are chosen
        >>> panel.selection()["text"].tolist()
        ['How to cook?']
    """
    if n_components < 2:
        raise PanelError(f"n_components must be at least 2 to make a plane, got {n_components}.")
    judged = {"": scores} if scores is None or isinstance(scores, pd.DataFrame) else dict(scores)
    if not judged:
        raise PanelError("scores names no judge: give a table of drolab.judge, a mapping of names to such, or None.")
    spaces = FrozenSpaces(states, anchors, n_components=n_components, store=store)
    tables = {judge: point_table(states, scores=table, replies=replies) for judge, table in judged.items()}
    return ProjectionPanel(ProjectionView(spaces, tables), replies, theme=theme, about=about)


# ---------------------------------------------------------------- controls


def _controls(view: ProjectionView, theme: str) -> Controls:
    components = range(1, view.spaces.n_components + 1)
    coloured = [prompt for prompt in view.prompts if prompt != NO_PROMPT][: len(PALETTE)]
    shown = [prompt for prompt in view.prompts if prompt in (NO_PROMPT, *coloured)]
    controls = {
        "prompts": several("prompts", view.prompts, shown, "the prompts that are shown", most_rows=8),
        "view": choice("view", ["PCA", "UMAP"], "the anchor space's components, or a UMAP map, for looking only"),
        "x": choice("x", components, "the component along"),
        "y": choice("y", components, "the component up", wanted=2),
        "layer": choice(
            "layer",
            view.layer_choices(),
            "0 is the embeddings, k the output of block k; the last is, in most families, after the final norm",
            wanted=view.spaces.states.layers[-1],
        ),
        "color": choice("colour by", view.color_choices(), "what a point's colour means; its symbol is its class"),
        "judge": choice("judge", named(view.tables), "whose verdicts the refusal rates are"),
        "arrows": _tick_box("arrows", "mean shift of each class from no prompt to each prompt"),
        "boundaries": _tick_box("boundaries", "where the probes of harmfulness and refusal are zero"),
        "theme": choice("theme", list(THEMES), "the figure's colours", wanted=theme),
    }
    controls["prompts"].layout = {"width": "max-content", "max_width": "240px"}
    controls["judge"].layout.display = None if len(view.tables) > 1 else "none"
    return controls


def _tick_box(label: str, tooltip: str) -> widgets.Checkbox:
    return labelled(widgets.Checkbox, label, tooltip, value=True, indent=False, layout={"width": "max-content"})


def _search_controls(view: ProjectionView) -> Controls:
    """A sentence to fill in, whose words are the labels."""
    prompts = named(view.prompts)
    own = [prompt for prompt in view.prompts if prompt != NO_PROMPT][-1:] if view.is_scored() else []
    controls = {
        "kind": choice("Which", ["harmless", "harmful", _ANY], "the class of the queries to find"),
        "contains": labelled(
            widgets.Text,
            "queries containing",
            "words that the query contains, in any case; press Enter to find",
            placeholder="any text",
            continuous_update=False,
            layout={"width": "20em"},
        ),
        "prompt": choice(
            "are refused more under",
            [*prompts, ("(not asked)", _NOT_ASKED)],
            "the prompt whose refusals are asked for",
            wanted=own[0] if own else _NOT_ASKED,
        ),
        "baseline": choice("than under", prompts, "the prompt to compare with", wanted=NO_PROMPT),
        "at_least": labelled(
            widgets.FloatSlider,
            "by at least",
            "how much higher the refusal rate must be",
            value=0.3,
            min=0.05,
            max=1.0,
            step=0.05,
            continuous_update=False,
            layout={"width": "16em"},
        ),
        "find": button("Find", "Choose the points that the sentence asks for", icon="search"),
        "clear": button("Clear", "Choose nothing", icon="times"),
    }
    for name in ("prompt", "baseline", "at_least"):
        controls[name].layout.display = None if own else "none"
    return controls
