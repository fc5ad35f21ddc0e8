"""A control for every setting of DRO and of prompt tuning, with what it does as its tooltip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import ipywidgets as widgets

from drolab.dro import PromptTuningConfig
from drolab.panels.controls import Controls, labelled
from drolab.types import DROConfig

PRESETS = ("default", "paper")
_OWN = "own"
DRO, TUNING = "DRO", "prompt tuning"
_TAUGHT = ("likelihood_weight", "unlikelihood_weight")
_TERMS = ("refusal", "harmfulness", "residual")
_KEEP_EVERY = 10
"""Steps; more often than DROConfig's default, since each step that is kept is a frame of the replay."""
LOOK: dict[str, Any] = {"style": {"description_width": "132px"}, "layout": {"width": "auto"}}


class DROSettings:
    """The controls, by name, and the `DROConfig` that they stand for; with prompt tuning the method, too."""

    def __init__(self, *, tuning: bool = False) -> None:
        self.controls = (_tuning_controls() if tuning else {}) | _controls()
        self._fill(DROConfig(checkpoint_every=_KEEP_EVERY))
        self.controls["preset"].observe(self._preset_chosen, "value")
        for name, control in self.controls.items():
            if name != "preset":
                control.observe(self._changed, "value")
        self._enable()

    def box(self, *first: widgets.Widget) -> widgets.VBox:
        """The controls in columns, after others; the weights by themselves, each beside the tick of its term."""
        pairs = [[self.controls[f"{term}_{part}"] for part in ("weight", "term")] for term in _TERMS]
        for weight, _ in pairs:
            weight.layout.flex = "1 1 auto"
        weights = [*map(widgets.HBox, pairs), self.controls["residual_scale"]]
        apart = {control for pair in pairs for control in pair} | {self.controls["residual_scale"]}
        others = [control for control in self.controls.values() if control not in apart]
        return widgets.VBox([_columns([*first, *others], 260), _columns(weights, 340)], layout={"width": "100%"})

    def config(self) -> DROConfig:
        """What the controls say."""
        values = {part.name: self.controls[part.name].value for part in fields(DROConfig)}
        off = {f"{term}_weight": 0.0 for term in _TERMS if not self.controls[f"{term}_term"].value}
        return DROConfig(**{**values, **off})

    @property
    def tunes(self) -> bool:
        """Prompt tuning is chosen, not DRO."""
        return "method" in self.controls and self.controls["method"].value == TUNING

    def tuning_config(self, n_queries: int) -> PromptTuningConfig:
        """What the controls say, over as many steps as DRO would have."""
        shared = ("learning_rate", "num_train_epochs", "batch_size", "max_grad_norm", "seed", "checkpoint_every")
        values = {name: self.controls[name].value for name in (*shared, *_TAUGHT)}
        return PromptTuningConfig(
            **values, max_steps=values["num_train_epochs"] * -(-n_queries // values["batch_size"])
        )

    def _fill(self, config: DROConfig) -> None:
        for part in fields(DROConfig):
            self.controls[part.name].value = getattr(config, part.name)
        for term in _TERMS:
            self.controls[f"{term}_term"].value = True

    def _preset_chosen(self, change: Mapping[str, Any]) -> None:
        if change["new"] != _OWN:
            self._fill(self._preset(change["new"]))

    def _enable(self) -> None:
        """The controls that mean something for the method that is chosen."""
        tunes = self.tunes
        for term in _TERMS:
            self.controls[f"{term}_term"].disabled = tunes
            self.controls[f"{term}_weight"].disabled = tunes or not self.controls[f"{term}_term"].value
        for name in ("preset", "residual_scale"):
            self.controls[name].disabled = tunes
        for name in _TAUGHT:
            if name in self.controls:
                self.controls[name].disabled = not tunes

    def _changed(self, _: Mapping[str, Any]) -> None:
        self._enable()
        config = self.config()
        self.controls["preset"].value = next((name for name in PRESETS if self._preset(name) == config), _OWN)

    def _preset(self, name: str) -> DROConfig:
        """Presets leave alone what is no choice between methods."""
        own = {part: self.controls[part].value for part in ("seed", "checkpoint_every")}
        return DROConfig.preset(name, **own)


def _tuning_controls() -> Controls:
    return {
        "method": labelled(
            widgets.Dropdown,
            "method",
            "DRO moves hidden states; prompt tuning makes judged replies likely or unlikely, in as many steps",
            options=[("DRO", DRO), ("vanilla prompt tuning", TUNING)],
            **LOOK,
        ),
        "likelihood_weight": _log(
            "likelihood weight", -4, 2, "Weight of the replies that are to become likely, in prompt tuning", value=1.0
        ),
        "unlikelihood_weight": _log(
            "unlikelihood weight", -4, 2, "Weight of those that are to become unlikely, in prompt tuning", value=1.0
        ),
    }


def _controls() -> Controls:
    presets = [("drolab's", "default"), ("the paper's", "paper"), ("my own", _OWN)]
    scales = [("relative to the anchors", "relative"), ("absolute (paper)", "absolute")]
    return {
        "preset": labelled(
            widgets.Dropdown,
            "preset",
            "Fill in drolab's defaults, or those of the paper's code; seed and snapshots stay",
            options=presets,
            **LOOK,
        ),
        "learning_rate": _log("learning rate", -5, 0, "Step size of AdamW. Lower it when a term becomes nan or jumps"),
        "num_train_epochs": _whole("epochs", 1, "How often the training goes through all queries"),
        "batch_size": _whole("batch size", 1, "Queries in one step; less needs less memory"),
        "max_grad_norm": _log("gradient limit", -3, 3, "A gradient that is longer is cut to this length"),
        "seed": _whole("seed", 0, "Decides the order of the queries; another one makes another run"),
        "refusal_weight": _log(
            "refusal weight",
            -4,
            2,
            "Weight of the term that moves harmful queries to refusing, harmless ones away from it",
        ),
        "refusal_term": _term("refusal"),
        "harmfulness_weight": _log(
            "harmfulness weight", -4, 2, "Weight of the term that keeps it readable which queries are harmful"
        ),
        "harmfulness_term": _term("harmfulness"),
        "residual_weight": _log(
            "residual weight",
            -4,
            2,
            "β: weight of the term that keeps states near the anchor data. Raise it when the "
            "drift, or the probability of neither refusal nor compliance, grows",
        ),
        "residual_term": _term("residual"),
        "residual_scale": labelled(
            widgets.Dropdown,
            "residual scale",
            "The unit of the residual term: the anchors' own variance, so that β means "
            "the same for any model, or the mean square as in the paper's code",
            options=scales,
            **LOOK,
        ),
        "checkpoint_every": _whole(
            "keep every",
            1,
            "Steps from one checkpoint to the next. Each is kept in the store, measured, and a frame of the "
            "replay; a crash loses at most these steps",
        ),
    }


def _columns(children: Sequence[widgets.Widget], least: int) -> widgets.GridBox:
    """As many columns as fit, each at least so many pixels wide."""
    columns = f"repeat(auto-fill, minmax({least}px, 1fr))"
    return widgets.GridBox(children, layout={"grid_template_columns": columns, "width": "100%", "grid_gap": "0 12px"})


def _log(label: str, low: int, high: int, tooltip: str, **more: Any) -> widgets.FloatLogSlider:
    """From 10**low to 10**high; the number beside it may be typed over."""
    tip = f"{tooltip} (a logarithmic slider; the number can be typed)"
    look = LOOK | {"readout_format": ".3g", "continuous_update": False} | more
    return labelled(widgets.FloatLogSlider, label, tip, min=low, max=high, step=0.1, **look)


def _whole(label: str, low: int, tooltip: str) -> widgets.BoundedIntText:
    return labelled(widgets.BoundedIntText, label, tooltip, min=low, max=2**31 - 1, **LOOK)


def _term(name: str) -> widgets.Checkbox:
    tip = f"Whether the {name} term takes part in the loss; without it, it is measured all the same"
    return labelled(widgets.Checkbox, "on", tip, indent=False, layout={"width": "48px"}, value=True)
