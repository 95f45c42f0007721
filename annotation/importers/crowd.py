"""Votes that people cast somewhere else: one vote a row, with a map of which column holds what.

In: rows with an annotator, two responses (left and right as they were shown) and a label; the prompt and the responses
stand in the row itself, in a file of items that the row names (``items``), or in a file of texts by their ids
(``texts``: ``id`` and ``text``). Out: one judgment a row, its sides known. Somebody who votes on a comparison again
gives a judgment of its own, by which self-consistency is measured; a row that repeats another to the letter gives none.
A label that nobody explained and a text that cannot be found are no vote: such rows are left out, with their reasons.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable
from os.path import commonprefix
from pathlib import Path
from typing import Any, NamedTuple

from align.core.config import BadInput
from annotation.aggregation.votes import BOTH_BAD, UNKNOWN_SIDES
from annotation.importers.columns import Columns, Field, Labels, Outcome, number_of, text_of, word_of
from annotation.importers.formats import container_of
from annotation.importers.gathering import Gathering, Judged
from annotation.importers.intake import NOTHING_GIVEN, Found, Given, Unusable, cleaned, is_missing, name_in
from annotation.importers.sides import Sides, asked_with, check, sides_of, storable, with_system
from annotation.importers.table import Row, Table, find_columns, open_table, trimmed
from annotation.importers.turns import BESIDE, decoded, refuse_media, template_arguments_of, tools_of

LEFT_RIGHT = ("left", "right")
NEEDED: tuple[Field, ...] = ("label", "left", "right")
TIE_COLUMN = re.compile(r"(?:^|[^a-z])tied?(?:[^a-z]|$)", re.IGNORECASE)
RANKINGS = {"left": ((0,), (1,)), "right": ((1,), (0,))}
TIED = ((0, 1),)
EXAMPLES = 5  # labels without a meaning that are named


class _Used(NamedTuple):
    """The columns that were found, by what they hold."""

    label: str
    left: str
    right: str
    annotator: str | None
    id: str | None
    input: str | None
    item: str | None
    language: str | None
    prompt: str | None
    rationale: str | None
    seconds: str | None
    split: str | None
    strength: str | None
    system: str | None


def read_votes(
    path: Path,
    columns: Columns,
    labels: Labels,
    *,
    items: Path | None = None,
    texts: Path | None = None,
    given: Given = NOTHING_GIVEN,
) -> Found:
    """Read votes; ``given`` is what a user says of the file beside its columns and labels.

    Raises:
        BadInput: a file cannot be read, a column is not there, or a file of items or texts names something twice.
    """
    return votes_of(open_table(path, "votes", given._replace(columns=columns, labels=labels)), items=items, texts=texts)


def votes_of(table: Table, *, items: Path | None = None, texts: Path | None = None) -> Found:
    """Read the votes of a table.

    Raises:
        BadInput: a column is not there, or a file of items or texts names something twice.
    """
    path, columns, replaced = table.path, table.given.columns, table.replaced
    if not table.rows:
        return Found("votes", 0, [], [], 0, [])
    known, by_item = set(table.known), dict[str, Row]()
    if items is not None:
        by_item = _items(items, columns.need("item", known, str(path)), replaced)
        known |= {name for row in by_item.values() for name in row}
    where = f"{path} and {items}" if items else str(path)
    needed = {field: columns.need(field, known, where) for field in NEEDED}
    used = _Used(**find_columns(table, _Used._fields, known, where) | needed)
    sides = _Sides(used, by_item, items, _texts(texts, replaced) if texts else None, texts, replaced)
    if used.prompt is None and texts is None and isinstance(sides.first_left(_readable(table)), str):
        columns.need("prompt", known, where)  # only whole dialogues hold their prompt
    reader = _Reader(table, used, sides)
    for number, row in table.rows:
        reader.take(number, row)
    return reader.found()


class _Sides:
    """Where the texts of a vote stand; each prompt with its two responses becomes one comparison, made once."""

    def __init__(
        self,
        used: _Used,
        by_item: dict[str, Row],
        items: Path | None,
        by_id: dict[str, Any] | None,
        texts: Path | None,
        replaced: list[int],
    ) -> None:
        self.used, self.replaced = used, replaced
        self.by_item, self.items = by_item, items
        self.by_id, self.texts = by_id, texts
        self.in_items = {name for row in by_item.values() for name in row}
        self.made: dict[str, Sides | str] = {}

    def cells(self, row: Row) -> Row:
        """What the row (or its item) holds of prompt, sides, system prompt, language and split, as it stands there.

        Raises:
            Unusable: the item is in no row of the file of items.
        """
        item: Row = {}
        if self.items is not None:
            key = text_of(row.get(str(self.used.item), ""))
            if key not in self.by_item:
                raise Unusable(f"its item is not in {self.items.name} ({self.used.item} {key!r})")
            item = self.by_item[key]
        found = {}
        for field in ("prompt", "input", "system", *LEFT_RIGHT, "language", "split"):
            column = getattr(self.used, field)
            if column is not None:
                found[field] = (item if column in self.in_items else row).get(column)
        return found

    def first_left(self, rows: Iterable[Row]) -> Any:
        """The first response on the left that there is."""
        column = self.used.left
        cells = (row.get(column) for row in (self.by_item.values() if column in self.in_items else rows))
        return next((decoded(cell, "role", "from") for cell in cells if cell is not None), None)

    def compare(self, cells: Row, turn: float | None) -> Sides:
        """The sides that cells make, checked, the same for the same cells.

        Args:
            turn: which turn of a dialogue was judged, where the row says it.

        Raises:
            Unusable: they make none; says why.
        """
        key = json.dumps([cells.get(field) for field in ("prompt", "input", "system", *LEFT_RIGHT)], default=str)
        if key not in self.made:
            try:
                self.made[key] = self._compare(cells)
            except Unusable as reason:
                self.made[key] = str(reason)
        made = self.made[key]
        if isinstance(made, str):
            raise Unusable(made)
        if made.is_cut and turn is not None and turn > 1:
            raise Unusable(f"its vote is on turn {turn:g}, before which the dialogues part")
        return made

    def _compare(self, cells: Row) -> Sides:
        texts = {field: decoded(cells.get(field), "role", "from") for field in ("prompt", *LEFT_RIGHT)}
        if self.by_id is not None:
            texts |= {field: self._text(field, cells.get(field)) for field in ("prompt", *LEFT_RIGHT)}
        found = {field: _as_text(value) for field, value in texts.items()}
        sides = sides_of(asked_with(found, cells.get("input")), LEFT_RIGHT, first_answers=True)
        sides = sides._replace(prompt=with_system(sides.prompt, cells.get("system")))
        check(sides, LEFT_RIGHT)
        return storable(sides, self.replaced)

    def _text(self, field: str, cell: Any) -> Any:
        """What an id stands for; a prompt may also be the text itself."""
        known = self.by_id or {}
        if cell is None or text_of(cell) in known:
            return known.get(text_of(cell))
        if field == "prompt":
            return decoded(cell, "role", "from")
        raise Unusable(f"its {field} is not in {self.texts.name if self.texts else 'the texts'} (id {text_of(cell)!r})")


def _refuse_ties_beside(table: Table, used: _Used) -> None:
    """Refuse ties that another column than the mapped one tells: their rows would count as wins.

    Raises:
        BadInput: names the column, and how many rows it calls ties.
    """
    if table.given.columns.label is None:
        return
    names = [name for name in table.known if TIE_COLUMN.search(name) and name not in used]
    for name in names:
        if ties := sum(word_of(row.get(name, "")) in ("1", "true", "yes") for row in _readable(table)):
            raise BadInput(
                f"{table.path}: column '{name}' calls {ties} rows ties, and columns.label={used.label} would make wins "
                "of them; make one column that says left, right or tie, or leave columns.* out where the form is known"
            )


class _Reader:
    """One file of votes: what was found so far."""

    def __init__(self, table: Table, used: _Used, sides: _Sides) -> None:
        self.table, self.used, self.sides = table, used, sides
        self.labels = table.given.labels
        self.gathered = Gathering(
            table.path,
            table.given,
            f"import:{table.path.name}",
            is_scored=table.is_scored,
        )
        self.strange: Counter[str] = Counter()  # labels without a meaning
        _refuse_ties_beside(table, used)
        self.by_name = _sides_by_name(used, [row.get(used.label) for row in _readable(table)], self.labels)

    def take(self, number: int, row: Row | Unusable) -> None:
        name = None
        try:
            if isinstance(row, Unusable):
                raise row
            row = trimmed(row, {self.used.left, self.used.right})
            name = name_in(row, self.used.item) or name_in(row, self.used.id)
            refuse_media(row)
            self.gathered.refuse_copies(number, row)
            self.gathered.add(number, self._vote(row, name))
        except Unusable as reason:
            self.gathered.drop(number, name, reason)

    def found(self) -> Found:
        """What a file comes to, and what a user would want to know of it beside counts."""
        notes = []
        if self.by_name:
            named = {"left": self.used.left, "right": self.used.right}
            told = ", ".join(f"'{label}' is {named[side]}" for label, side in self.by_name.items())
            notes.append(f"labels in column '{self.used.label}' read as the names of columns: {told}")
        if self.strange:
            said = ", ".join(f"'{label}' ({count})" for label, count in self.strange.most_common(EXAMPLES))
            known = [word for words in self.labels.model_dump().values() for word in words]
            near = difflib.get_close_matches(self.strange.most_common(1)[0][0].casefold(), known, n=1, cutoff=0.6)
            hint = f" (is it '{near[0]}'?)" if near else ""
            notes.append(
                f"labels without a meaning in column '{self.used.label}': {said}{hint}; "
                "give them one with labels.left, labels.right, labels.tie or labels.both_bad=[...]"
            )
        schema = self.table.schema
        name = schema.name if schema else "votes"
        notes += self.table.unread({*self.used, *BESIDE})
        return self.gathered.found(name, len(self.table.rows), self.table.replaced[0], notes)

    def _vote(self, row: Row, name: str | None) -> Judged:
        used = self.used
        annotator = self.gathered.name(row, used.annotator)
        if used.annotator and not annotator and self.table.given.annotator is None:
            raise Unusable(f"no annotator (column '{used.annotator}' is empty)")
        cells = self.sides.cells(row)
        outcome = self._outcome(row.get(used.label), cells)
        sides = self.sides.compare(cells, number_of(row.get("turn")))
        ranking = RANKINGS.get(outcome, TIED)
        size = self.gathered.number(row, used.strength)
        return Judged(
            sides,
            ranking,
            annotator=annotator,
            name=name,
            own_id=name_in(row, used.id),
            item=name_in(row, used.item),
            size=None if size is None else abs(size) if outcome in LEFT_RIGHT else 0.0,
            split=name_in(cells, "split"),
            language=name_in(cells, "language"),
            flags=[
                *([BOTH_BAD] if outcome == "both_bad" else []),
                *([] if self.table.knows_sides else [UNKNOWN_SIDES]),
            ],
            rationale=name_in(row, used.rationale),
            seconds=self.gathered.number(row, used.seconds, lambda seconds: seconds >= 0),
            tools=tools_of(row.get("tools")),
            template_arguments=template_arguments_of(row),
        )

    def _outcome(self, label: Any, cells: Row) -> Outcome:
        """What the label says; it may also be what stands in exactly one of the columns left and right."""
        if label is None or not text_of(label):
            raise Unusable(f"no label (column '{self.used.label}' is empty)")
        if (meaning := self.labels.meaning(label)) is not None:
            return meaning
        if (named := self.by_name.get(word_of(label))) is not None:
            return named
        is_left, is_right = (text_of(label) == text_of(cells.get(field)) for field in LEFT_RIGHT)
        if is_left != is_right:
            return "left" if is_left else "right"
        self.strange[text_of(label)[:60]] += 1
        raise Unusable(f"unknown label ({text_of(label)[:60]!r} in column '{self.used.label}')")


def _sides_by_name(used: _Used, labels: Iterable[Any], known: Labels) -> dict[str, Outcome]:
    """Labels that name the columns of the responses, or the part in which these two names differ.

    A label 1 means ``output_1`` only where every label that is not known otherwise is such a part: beside a 0 it would
    be a number counted from 0.
    """
    left, right = used.left.casefold(), used.right.casefold()
    shared = len(commonprefix([left, right]))
    names: dict[str, Outcome] = {word_of(left): "left", word_of(left[shared:] or left): "left"}
    names |= {word_of(right): "right", word_of(right[shared:] or right): "right"}
    strange = {word_of(label) for label in labels if label not in (None, "") and known.meaning(label) is None}
    return {word: names[word] for word in sorted(strange)} if strange and strange <= set(names) else {}


def _readable(table: Table) -> list[Row]:
    return [row for _, row in table.rows if not isinstance(row, Unusable)]


def _items(path: Path, column: str, replaced: list[int]) -> dict[str, Row]:
    """Rows of the file of items by their id, which is called there as in the votes, or ``id``."""
    rows = list(cleaned(path, container_of(path, "votes"), replaced, whole=True))
    name = column if any(column in row for _, row in rows) else "id"
    return _by_id(path, rows, name)


def _texts(path: Path, replaced: list[int]) -> dict[str, Any]:
    """Texts by their id."""
    rows = _by_id(path, cleaned(path, container_of(path, "votes"), replaced, whole=True), "id")
    return {key: decoded(row.get("text"), "role", "from") for key, row in rows.items()}


def _by_id(path: Path, rows: Iterable[tuple[int, Row]], column: str) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for number, row in rows:
        if is_missing(row.get(column)) or row[column] == "":
            raise BadInput(f"{path}: row {number} has no column '{column}'; it holds {', '.join(sorted(row))}")
        key = text_of(row[column])
        if found.setdefault(key, row) != row:
            raise BadInput(f"{path}: row {number}: '{column}' {key} stands twice with different contents; keep one")
    return found


def _as_text(value: Any) -> Any:
    """A number is a text too (an id, an answer to a sum)."""
    return str(value) if isinstance(value, float) else text_of(value) if isinstance(value, int) else value
