"""Taking a trained prompt out of the DRO panel: into a folder that PEFT or vLLM reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ipywidgets as widgets
import pandas as pd

from drolab import export
from drolab.dro import KeptRun
from drolab.files import plain_name
from drolab.models import ChatModel
from drolab.panels.base import Panel, PanelError
from drolab.panels.controls import button, choice, labelled, row

_PROGRAMS = {"peft": ("PEFT (transformers)", export.to_peft), "vllm": ("vLLM", export.to_vllm)}
"""Name of the program → as it is shown, and what writes for it."""


class TakeAway(widgets.VBox):  # type: ignore[misc]  # ipywidgets ships no types
    """A row of controls: for which program, where to, and the button that writes the chosen run's prompt there.

    Args:
        chosen: gives the name of the chosen run and the run; raises PanelError if there is none.
        queries: the training queries, for the model card.
    """

    def __init__(
        self, panel: Panel, model: ChatModel, queries: pd.DataFrame, chosen: Callable[[], tuple[str, KeptRun]]
    ) -> None:
        self._panel, self._model, self._queries, self._chosen = panel, model, queries, chosen
        self.paths: list[Path] = []
        """What the last export wrote."""
        programs = [(shown, name) for name, (shown, _) in _PROGRAMS.items()]
        self.controls = {
            "program": choice("prompt for", programs, "The program that is to load the chosen run's prompt"),
            "prompt_folder": labelled(
                widgets.Text,
                "into",
                "Where to write, seen from the notebook's folder: a folder of its own for each run and program",
                value="out/prompts",
            ),
            "export_prompt": button(
                "Export prompt",
                "Write the chosen run's prompt, as far as it is trained, for that program, with a model card",
                icon="share",
            ),
        }
        panel.controls |= self.controls
        panel.on_click("export_prompt", self._export)
        super().__init__([row(*self.controls.values())])

    def _export(self) -> None:
        self.paths = []
        name, kept = self._chosen()
        folder = self.controls["prompt_folder"].value.strip()
        if not folder:
            raise PanelError("Name a folder to write the prompt into.")
        program = self.controls["program"].value
        place = Path(folder) / f"{plain_name(name)}-{program}"
        self._panel.say(f"Writing to {place.resolve()} …")  # of a large vocabulary a GB
        self.paths = _PROGRAMS[program][1](kept, self._model, place, queries=self._queries)
        names = ", ".join(path.name for path in self.paths)
        self._panel.say(f"Written to {self.paths[0].parent.resolve()}: {names}. README.md there says how to load it.")
