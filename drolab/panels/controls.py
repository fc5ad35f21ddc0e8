"""Controls that say what they do, and rows of them. Names that come from data are shown short, harmless and on one
line; a control's value is the name itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets

from drolab.figures import explained
from drolab.panels.markup import label

Controls = dict[str, widgets.Widget]
STYLE = {"description_width": "initial"}


def labelled(kind: type[widgets.Widget], description: str, tooltip: str, **options: Any) -> widgets.Widget:
    """A control of some kind with its label in full; `options` are the kind's own. Terms in the words are explained."""
    words = "\n".join(filter(None, (tooltip, explained(f"{description} {tooltip}"))))
    return kind(description=description, tooltip=words, **{"style": STYLE} | options)


def button(description: str, tooltip: str, *, icon: str = "", style: str = "") -> widgets.Button:
    """A button that says what it does when hovered. `style` is ipywidgets' `button_style`."""
    layout = {"width": "max-content", "min_width": "148px"}  # whatever the words, none is cut
    return widgets.Button(description=description, tooltip=tooltip, icon=icon, button_style=style, layout=layout)


def named(names: Iterable[str], limit: int = 40) -> list[tuple[str, str]]:
    """Options (label of at most `limit` characters, name), each name once."""
    return [(label(name, limit), name) for name in dict.fromkeys(names)]


def choice(description: str, options: Sequence[Any], tooltip: str, wanted: Any = "") -> widgets.Dropdown:
    """One of `options` (values, or pairs of label and value): `wanted` if it is there, the first otherwise."""
    values = [option[1] if isinstance(option, tuple) else option for option in options]
    value = wanted if wanted in values else next(iter(values), None)
    layout = {"width": "max-content", "max_width": "360px"}
    return labelled(widgets.Dropdown, description, tooltip, options=options, value=value, layout=layout)


def pick(description: str, options: Sequence[Any], tooltip: str) -> widgets.Widget:
    """One of `options`, the first at first: of more than three numbers by a slider, else from a list."""
    if len(options) > 3 and all(isinstance(option, (int, float)) for option in options):
        slider = widgets.SelectionSlider
        return labelled(slider, description, tooltip, options=options, value=options[0], continuous_update=False)
    return labelled(widgets.Dropdown, description, tooltip, options=options, value=options[0])


def several(
    description: str, names: Iterable[str], chosen: Iterable[str], tooltip: str, *, most_rows: int = 5
) -> widgets.SelectMultiple:
    """Any number of names; longer than `most_rows` the list scrolls."""
    options = named(names)
    return labelled(
        widgets.SelectMultiple,
        description,
        f"{tooltip}; Ctrl or Shift for several",
        options=options,
        value=tuple(chosen),
        rows=min(most_rows, len(options)),
    )


def refill(control: widgets.Widget, options: Sequence[tuple[str, Any]]) -> None:
    """Offer other options: what is chosen stays if it is among them, the first is chosen otherwise."""
    chosen, values = control.value, [value for _, value in options]
    control.options = options
    control.value = chosen if chosen in values else next(iter(values), None)


def row(*children: widgets.Widget) -> widgets.HBox:
    """Side by side, in further lines where the place is too narrow."""
    return widgets.HBox(children, layout={"flex_flow": "row wrap"})


def share(widget: widgets.Widget, width: str) -> widgets.VBox:
    """The widget in a share of a row. A VBox, since in a row itself a figure would never become narrower."""
    return widgets.VBox([widget], layout={"width": width, "min_width": "0"})


class Keys(anywidget.AnyWidget):
    """Clicks buttons of the panel that it is put into when their letters are pressed, unless in a field of text.

    JupyterLab takes letters for commands on cells, unless a control says that it wants its keys. Not shown.
    """

    _esm = """
    export default {
      render({ model, el }) {
        const press = event => {
          if (event.ctrlKey || event.altKey || event.metaKey) return;
          if (event.target.matches("input:not([type=checkbox]), textarea, select")) return;
          if (!model.get("letters").includes(event.key.toLowerCase())) return;
          event.preventDefault();
          event.stopPropagation();
          model.send({ letter: event.key.toLowerCase() });
        };
        let panel, ended = false;
        const listen = () => {  // Voila renders before it attaches
          panel = el.closest(".widget-vbox");
          if (!panel) return ended || setTimeout(listen, 100);
          panel.tabIndex = 0;
          panel.setAttribute("data-lm-suppress-shortcuts", "true");
          panel.addEventListener("keydown", press);
        };
        listen();
        return () => { ended = true; panel?.removeEventListener("keydown", press); };
      },
    };
    """
    letters = traitlets.List(traitlets.Unicode()).tag(sync=True)

    def __init__(self, buttons: dict[str, widgets.Button]) -> None:
        super().__init__(letters=list(buttons))
        self.on_msg(
            lambda _, message, __: buttons[message["letter"]].click() if message.get("letter") in buttons else None
        )
