"""Progress of long work: a bar in a terminal or notebook, or a callable that can also end the work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm.std import tqdm

Progress = bool | Callable[[int, int], None]
"""True shows a bar, False nothing. A callable is called with (done, total) at the start and after every batch, when
the batch is already kept; an exception that it raises ends the work there. That is how a stop button stops."""


_SHOWN_AFTER = 1.0
"""Seconds: what is done sooner, such as what the store has, shows no bar."""


class Bar:
    """What `bar` yields."""

    def __init__(self, shown: tqdm, done: int, total: int, report: Callable[[int, int], None] | None) -> None:
        self._shown = shown
        self.done, self._total = done, total  # a disabled tqdm does not count
        self._report = report

    def note(self, text: str) -> None:
        """Words beside the bar."""
        self._shown.set_postfix_str(text, refresh=False)

    def say(self, line: str) -> None:
        """A line that stays, above the bar if there is one."""
        self._shown.write(line)
        sys.stdout.flush()

    def update(self, count: int = 1) -> None:
        self._shown.update(count)
        self.done += count
        self.report()

    def report(self) -> None:
        if self._report is not None:
            self._report(self.done, self._total)


def found_in_words(found: int, total: int, units: str, *, kept: bool) -> str:
    """How much came from the store, and how much was computed.

    Examples:
        >>> from drolab.progress import found_in_words
        >>> found_in_words(0, 224, "chats", kept=True)
        'all 224 chats computed now; next time they come from the store'
        >>> found_in_words(220, 224, "chats", kept=True)
        '220 of 224 chats found in the store, 4 computed now'
    """
    if found == total:
        return f"all {total:,} {units} found in the store"
    if found:
        return f"{found:,} of {total:,} {units} found in the store, {total - found:,} computed now"
    return f"all {total:,} {units} computed now" + ("; next time they come from the store" if kept else "")


def in_words(seconds: float) -> str:
    """A time as people say it.

    Examples:
        >>> from drolab.progress import in_words
        >>> in_words(8.4), in_words(400), in_words(20_000)
        ('8 s', '7 min', '5.6 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return (
        f"{seconds / 60:.0f} min"
        if seconds < 100 * 60
        else f"{seconds / 3600:.1f} h"
        if seconds < 72 * 3600
        else f"{seconds / 86400:.0f} days"
    )


@contextmanager
def bar(progress: Progress, *, total: int, initial: int = 0, desc: str, unit: str) -> Iterator[Bar]:
    """Count `total` units of work, of which `initial` are done already. The environment variable TQDM_DISABLE ends all
    bars."""
    report = None if isinstance(progress, bool) else progress
    options = {"delay": _SHOWN_AFTER, "file": _place()} if progress is True else {"disable": True}
    with tqdm(total=total, initial=initial, desc=desc, unit=unit, **options) as shown:
        counted = Bar(shown, initial, total, report)
        counted.report()
        yield counted


def _place() -> TextIO | None:
    """Notebooks show what comes on stderr as errors. Text, not tqdm's widget: every front-end shows it, and a notebook
    that is opened again still says how long it took."""
    return sys.stdout if type(sys.stdout).__module__.startswith("ipykernel") else None


@contextmanager
def resumable_bar(
    progress: Progress, desc: str, unit: str, units: str, *, total: int, initial: int, kept: bool
) -> Iterator[Bar]:
    """`bar` for work that the same call takes up again: an interrupt says how much is done, and whether it is kept."""
    with bar(progress, total=total, initial=initial, desc=desc, unit=unit) as counted:
        try:
            yield counted
        except KeyboardInterrupt as interrupt:
            done = f"{counted.done} of {total} {units}"
            raise KeyboardInterrupt(
                f"{done} are in the store: run the same call again to go on."
                if kept
                else f"{done} were done and none is kept: pass store=drolab.Store() to keep them."
            ) from interrupt
