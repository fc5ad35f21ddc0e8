"""Controls: labelled, of the right kind, and harmless whatever the names are."""

from __future__ import annotations

import ipywidgets as widgets
import pytest

from drolab.panels.controls import choice, named, pick, refill, several

HOSTILE = "<b>x</b>\u202e\n" + "long " * 50


def test_names_are_shown_short_on_one_line_and_once() -> None:
    ((shown, value),) = named([HOSTILE, HOSTILE])
    assert value == HOSTILE
    assert len(shown) == 40
    assert not {"\u202e", "\n"} & set(shown)


@pytest.mark.parametrize(("wanted", "chosen"), [("b", "b"), ("c", "a"), (None, "a")])
def test_what_is_wanted_is_chosen_if_it_is_there(wanted: str | None, chosen: str) -> None:
    assert choice("letter", [("A", "a"), ("B", "b")], "a letter", wanted).value == chosen
    assert choice("letter", [], "a letter", wanted).value is None


def test_more_than_three_numbers_are_a_slider() -> None:
    kinds = [type(pick("one", options, "of these")) for options in ([1, 2, 3], [1, 2, 3, 4], list("abcd"))]
    assert kinds == [widgets.Dropdown, widgets.SelectionSlider, widgets.Dropdown]


def test_several_of_many_scroll() -> None:
    control = several("letters", "abcdefg", "ac", "some letters")
    assert (control.value, control.rows) == (("a", "c"), 5)
    assert several("letters", "ab", "", "some letters", most_rows=8).rows == 2
    assert control.tooltip == "some letters; Ctrl or Shift for several"


def test_a_choice_stays_while_it_is_offered() -> None:
    control = choice("letter", named("abc"), "a letter", "b")
    refill(control, named("cb"))
    assert control.value == "b"
    refill(control, named("ca"))
    assert control.value == "c"
    refill(control, [])
    assert control.value is None
