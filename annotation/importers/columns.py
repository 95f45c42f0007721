"""What the columns of a file hold, and what its labels mean.

In: names as the user gives them, and cells. Out: the column that holds each thing, and a label as an outcome of two
responses. A name that is not there is refused with the nearest one that is; an unexplained label has no meaning.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from align.core.config import BadInput, Frozen
from annotation.importers.imported import UnusableRow
from annotation.store.chain import Split

WHOLE = re.compile(r"-?\d+\.0+")  # a whole number as a fraction
Outcome = Literal["left", "right", "tie", "both_bad"]
RANKINGS: Mapping[Outcome, list[list[int]]] = {  # tie groups of places, 0 is left
    "left": [[0], [1]],
    "right": [[1], [0]],
    "tie": [[0, 1]],
    "both_bad": [[0, 1]],
}
FileKind = Literal["preferences", "votes", "rankings", "label-studio"]  # of files, by what a row holds
ANY_ROW = ("annotator", "id", "input", "language", "prompt", "rationale", "seconds", "split", "strength", "system")
READ: Mapping[FileKind, tuple[str, ...]] = {  # the columns that are read of each kind of file
    "preferences": ("chosen", "rejected", *ANY_ROW),
    "votes": ("label", "left", "right", "item", *ANY_ROW),
    "rankings": ANY_ROW,
    "label-studio": ("prompt", "left", "right", "responses", "label", "rationale"),
}
USUAL: Mapping[str, tuple[str, ...]] = {  # other names that columns have
    "annotator": (
        *("annotator_id", "_annotator_id", "worker", "worker_id", "WorkerId", "workerId"),
        *("labeler", "labeler_id", "labeller", "rater", "rater_id"),
    ),
    "prompt": ("instruction", "question", "query", "input", "conversations"),
    "strength": ("margin",),
    "system": ("system_prompt",),
}


class Columns(Frozen):
    """Columns by what they hold; one that is not given is looked for under its own name.

    A name with dots leads into objects and lists (``info.post``, ``summaries.0.text``). Of votes,
    ``prompt``, ``left`` and ``right`` may be columns of the file of items. Of an export, ``prompt``, ``left``,
    ``right`` and ``responses`` (the cards of a ranking) are fields of a task's data, and ``label`` and ``rationale``
    are the names of controls.
    """

    annotator: str | None = Field(default=None, description="column of who judged")
    chosen: str | None = Field(default=None, description="column of the preferred response")
    id: str | None = Field(default=None, description="column of a row's id")
    input: str | None = Field(default=None, description="column of text that belongs to the prompt")
    item: str | None = Field(default=None, description="column of the id of the item that was judged")
    label: str | None = Field(default=None, description="column of which side was preferred")
    language: str | None = Field(default=None, description="column of the language tag")
    left: str | None = Field(default=None, description="column of the response shown first")
    prompt: str | None = Field(default=None, description="column of the prompt")
    rationale: str | None = Field(default=None, description="column of the reason in words")
    rejected: str | None = Field(default=None, description="column of the other response")
    responses: str | None = Field(default=None, description="column of a list of responses")
    right: str | None = Field(default=None, description="column of the response shown second")
    seconds: str | None = Field(default=None, description="column of the seconds a judgment took")
    split: str | None = Field(default=None, description="column of the split")
    strength: str | None = Field(default=None, description="column of how much better the preferred response is")
    system: str | None = Field(default=None, description="column of the system prompt")

    def find(self, field: str, known: Collection[str], where: str, usual: tuple[str, ...] = ()) -> str | None:
        """Return the column that holds ``field``; None where none was named and neither its own nor a usual name fits.

        Raises:
            BadInput: the named column is not there.
        """
        given: str | None = getattr(self, field)
        if given is None:
            return next((name for name in (field, *usual) if name in known), None)
        if given not in known:
            raise BadInput(f"{where}: has no column '{given}' (columns.{field}); {_hint(given, known)}")
        return given

    def need(self, field: str, known: Collection[str], where: str, usual: tuple[str, ...] = ()) -> str:
        """Return what ``find`` does, for a column that must be there."""
        column = self.find(field, known, where, usual)
        if column is None:
            raise BadInput(
                f"{where}: no column '{field}'; say which holds it with columns.{field}=...; {_hint(field, known)}"
            )
        return column

    @property
    def named(self) -> set[str]:
        """The columns that hold something."""
        return {*self.model_dump(exclude_none=True).values()}


def text_of(value: Any) -> str:
    """Return a cell as text: truth values as JSON writes them, text without the spaces around it.

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
    """Return a cell, or the number that its text spells, as a finite number; None for anything else.

    Every number of a file is read by this rule: text is never compared as text ("10" is above "9"), and truth values
    and Python's ``1_000`` are no numbers.
    """
    if isinstance(value, bool | bytes) or (isinstance(value, str) and "_" in value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def word_of(label: Any) -> str:
    """Return a label as labels are compared: 1, 1.0 and ``"1.0"`` are the same, and capitals do not count."""
    number = number_of(label)
    if number is not None:
        return f"{number:.15g}"
    return text_of(label).casefold()


def _words(value: Any) -> Any:
    """Return one label or several, numbers too, as labels are compared."""
    listed = value if isinstance(value, list | tuple) else [value]
    return tuple(word_of(label) for label in listed)


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]


class Labels(Frozen):
    """The labels that mean each outcome, without regard to capitals; what is given replaces the usual ones."""

    left: Words = Field(
        default=("left", "a", "model_a", "response_a", "answer1"),
        description="labels that prefer the response shown first",
    )
    right: Words = Field(
        default=("right", "b", "model_b", "response_b", "answer2"),
        description="labels that prefer the response shown second",
    )
    tie: Words = Field(default=("tie", "equal", "draw", "same"), description="labels of a tie")
    both_bad: Words = Field(
        default=("both_bad", "both bad", "bothbad", "tie (bothbad)", "neither"),
        description="labels that call both responses bad",
    )

    @model_validator(mode="after")
    def _one_meaning(self) -> Self:
        every = [word for words in (self.left, self.right, self.tie, self.both_bad) for word in words]
        if twice := [word for word in every if every.count(word) > 1]:
            raise ValueError(f"the label '{twice[0]}' has two meanings; keep one")
        return self

    def meaning(self, label: Any) -> Outcome | None:
        """Return the outcome that a label means, None where it is not known."""
        word = word_of(label)
        outcomes: tuple[Outcome, ...] = ("left", "right", "tie", "both_bad")
        return next((outcome for outcome in outcomes if word in getattr(self, outcome)), None)


class FileSettings(NamedTuple):
    """Settings of a whole file: what its columns hold, and defaults for rows that lack a value.

    ``split`` is that of rows without one, or with one whose name is not known; ``limit`` reads only the first rows.
    """

    columns: Columns = Columns()
    labels: Labels = Labels()
    annotator: str | None = None
    split: Split | None = None
    language: str = "en"
    limit: int | None = None


def cell_of(row: Mapping[str, Any], column: str | None) -> Any:
    """Return the cell in a column; None where the column is not known (one without a name is a column like others)."""
    return None if column is None else row.get(column)


def name_in(row: Mapping[str, Any], column: str | None) -> str | None:
    """Return whom or what a cell names, several names joined; None where it names nothing.

    Raises:
        UnusableRow: it holds something that is no name.
    """
    value = cell_of(row, column)
    names = value if isinstance(value, list) else [value]
    if any(isinstance(name, list | dict | bytes) for name in names):
        raise UnusableRow(f"column '{column}' holds no name ({str(value)[:60]})")
    return ", ".join(text_of(name) for name in names if name is not None) or None


def _hint(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    listed = ", ".join(sorted(known)[:20]) or "no columns"
    return f"did you mean '{near[0]}'? It has {listed}" if near else f"it has {listed}"
