"""What the columns of somebody else's file hold, and what its labels mean.

In: names as the user gives them. Out: the column that holds each thing, and a label as a verdict on two responses. A
name that is not there is refused with the nearest one that is; a label that nobody explained means nothing.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from align.core.config import BadInput, Frozen

WHOLE = re.compile(r"-?\d+\.0+")  # a whole number as a fraction
Outcome = Literal["left", "right", "tie", "both_bad"]
Field = Literal[
    "annotator",
    "chosen",
    "id",
    "input",
    "item",
    "label",
    "language",
    "left",
    "prompt",
    "rationale",
    "rejected",
    "responses",
    "right",
    "seconds",
    "split",
    "strength",
    "system",
]


class Columns(Frozen):
    """Columns by what they hold; one that is not given is looked for under its own name.

    ``chosen`` and ``rejected`` hold the better and the worse response; ``left`` and ``right`` two responses of which
    ``label`` says the better one. ``input`` is the rest of an instruction, ``id`` the row's own name, ``item`` that of
    what was voted on. A name with dots leads into objects and lists (``info.post``, ``summaries.0.text``). Of votes,
    ``prompt``, ``left`` and ``right`` may be columns of the file of items. Of an export, ``prompt``, ``left``,
    ``right`` and ``responses`` (the cards of a ranking) are fields of a task's data, and ``label`` and ``rationale``
    are the names of controls.
    """

    annotator: str | None = None
    chosen: str | None = None
    id: str | None = None
    input: str | None = None
    item: str | None = None
    label: str | None = None
    language: str | None = None
    left: str | None = None
    prompt: str | None = None
    rationale: str | None = None
    rejected: str | None = None
    responses: str | None = None
    right: str | None = None
    seconds: str | None = None
    split: str | None = None
    strength: str | None = None
    system: str | None = None

    def find(self, field: Field, known: Collection[str], where: str, usual: tuple[str, ...] = ()) -> str | None:
        """The column that holds ``field``, or None where nothing was named and neither its own nor a usual name fits.

        Raises:
            BadInput: the named column is not there.
        """
        given: str | None = getattr(self, field)
        if given is None:
            return next((name for name in (field, *usual) if name in known), None)
        if given not in known:
            raise BadInput(f"{where}: has no column '{given}' (columns.{field}); {_hint(given, known)}")
        return given

    def need(self, field: Field, known: Collection[str], where: str, usual: tuple[str, ...] = ()) -> str:
        """As ``find``, for a column that must be there."""
        found = self.find(field, known, where, usual)
        if found is None:
            raise BadInput(
                f"{where}: no column '{field}'; say which holds it with columns.{field}=...; {_hint(field, known)}"
            )
        return found


def text_of(value: Any) -> str:
    """A cell as text: truth values as JSON writes them, text without the spaces around it.

    A whole number is written as one (7.0 as 7): a table holds a column of numbers with a gap in it as fractions, and so
    does the CSV that is written of it.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    text = str(value).strip()
    return text.partition(".")[0] if WHOLE.fullmatch(text) else text


def number_of(value: Any) -> float | None:
    """A cell as a finite number, None where it is none."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) and not isinstance(value, bool) else None


def word_of(label: Any) -> str:
    """A label in the one form that labels are compared in: 1, 1.0 and ``"1.0"`` are the same, and so are capitals."""
    number = number_of(label)
    if number is not None and not isinstance(label, bool):
        return f"{number:.15g}"
    return text_of(label).casefold()


def _words(value: Any) -> Any:
    """One label or several, numbers too."""
    listed = value if isinstance(value, list | tuple) else [value]
    return tuple(word_of(label) for label in listed)


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]


class Labels(Frozen):
    """The labels that mean each outcome, without regard to capitals; what is given replaces the usual ones."""

    left: Words = ("left", "a", "model_a", "response_a", "answer1")
    right: Words = ("right", "b", "model_b", "response_b", "answer2")
    tie: Words = ("tie", "equal", "draw", "same")
    both_bad: Words = ("both_bad", "both bad", "bothbad", "tie (bothbad)", "neither")

    @model_validator(mode="after")
    def _one_meaning(self) -> Self:
        every = [word for words in (self.left, self.right, self.tie, self.both_bad) for word in words]
        if twice := [word for word in every if every.count(word) > 1]:
            raise ValueError(f"the label '{twice[0]}' has two meanings; keep one")
        return self

    def meaning(self, label: Any) -> Outcome | None:
        """The outcome that a label means, None where it is not known."""
        word = word_of(label)
        outcomes: tuple[Outcome, ...] = ("left", "right", "tie", "both_bad")
        return next((outcome for outcome in outcomes if word in getattr(self, outcome)), None)


def _hint(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    listed = ", ".join(sorted(known)[:20]) or "no columns"
    return f"did you mean '{near[0]}'? It has {listed}" if near else f"it has {listed}"
