"""What can go wrong, in words: one class for each thing that a caller may want to catch."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from pathlib import Path

_SHOWN = 60


def shown(value: object) -> str:
    """A value in a message: a text may be a megabyte long, and a list nested without end."""
    if not isinstance(value, str):
        return reprlib.repr(value)
    return repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "…")


def listed(names: Iterable[object]) -> str:
    """Names in a sentence: "a, b and c"."""
    *others, last = ["", *map(str, names)]
    return f"{', '.join(others[1:])} and {last}" if len(others) > 1 else last


class DrolabError(Exception):
    """Base of the errors that drolab raises on purpose. Each message ends with what to do next."""

    read_again = "check that it is whole, or get it again."
    """What to do about a file that cannot be read, where that ends in this error (see `drolab.files`)."""
    write_again = "choose another folder or free space."
    """What to do about a file that cannot be written."""


class QueryError(DrolabError, ValueError):
    """A query set is empty, malformed, or lacks something the call needs."""

    read_again = "write one query a row, in a .csv below a header line, or download it again if it was cut off."


class CloneError(DrolabError, ValueError):
    """A folder or file is not what a clone of that repository holds."""

    read_again = "run `git checkout -- .` in the clone, or clone it again."


class PromptError(DrolabError, ValueError):
    """A safety prompt or soft prompt is malformed or does not fit the model."""


class ModelError(DrolabError, ValueError):
    """A model or tokenizer cannot be loaded or cannot do what was asked."""


class ChatTemplateError(ModelError):
    """A chat template is missing, rejects the messages, or changes the prompt beyond recognition."""


class StatesError(DrolabError, ValueError):
    """Hidden states are missing, not finite, or do not match what they are used with."""


class TooFewError(StatesError):
    """Hardly any query is of one of the two kinds (refused, say), or none is, so that nothing can be fitted or tested.

    What the user did is right, the model has nothing to measure: a notebook shows the sentence without a traceback, and
    `notebooks.run_notebooks` goes on with the next notebook.
    """

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        return [f"Cannot be tested here: {self}"]


class StoreError(DrolabError, OSError):
    """The store cannot be read or written."""

    write_again = (
        "everything stored before is safe. Free some space or set DROLAB_CACHE to a folder that can be written, and "
        "run the same call again: it goes on from there."
    )


class ExportError(DrolabError, OSError):
    """Something cannot be written out."""

    written: Sequence[Path] = ()
    """What a `bundle` wrote all the same."""


class TrainingError(DrolabError, RuntimeError):
    """DRO training cannot start or go on."""


class UnreliableWarning(UserWarning):
    """What was asked for is there, but cannot be trusted; the message says why, and what to do."""
