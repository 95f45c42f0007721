"""Votes that people cast somewhere else: one vote per row, with a map of which column holds what.

In: rows with an annotator, two responses (left and right as they were shown) and a label; the prompt and the responses
are in the row itself, in a file of items that the row names (``items``), or in a file of texts by their ids
(``texts``: ``id`` and ``text``). Out: one judgment per row, its sides known. Somebody who votes on a comparison again
gives a judgment of its own, by which self-consistency is measured; an exact copy of another row gives none. A row with
a label that nobody explained or a text that is not there is left out, with its reason.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable
from os.path import commonprefix
from pathlib import Path
from typing import Any

from align.core.config import BadInput
from annotation.aggregation.votes import BOTH_BAD, UNKNOWN_SIDES
from annotation.importers.collector import Collector, JudgedRow
from annotation.importers.columns import RANKINGS, Columns, Labels, Outcome, name_in, number_of, text_of, word_of
from annotation.importers.formats import cleaned, container_of, is_missing
from annotation.importers.imported import ImportedFile, Unusable
from annotation.importers.importer import Row
from annotation.importers.responses import PromptResponses, check, sides_of, storable, with_input, with_system
from annotation.importers.table import Table, find_columns
from annotation.importers.turns import BESIDE, decoded, refuse_media

LEFT_RIGHT = ("left", "right")
NEEDED = ("label", *LEFT_RIGHT)
TIE_COLUMN = re.compile(r"(?:^|[^a-z])tied?(?:[^a-z]|$)", re.IGNORECASE)
EXAMPLES = 5  # labels without a meaning that are named


def read_votes(table: Table, *, items: Path | None = None, texts: Path | None = None) -> ImportedFile:
    """Read the votes of a table.

    Raises:
        BadInput: a column is not there, or a file of items or texts names something twice.
    """
    columns = table.settings.columns
    if not table.rows:
        return ImportedFile("votes", 0, [], [], 0, [])
    known, by_item = set(table.known), dict[str, Row]()
    if items is not None:
        by_item = _items(items, columns.need("item", known, str(table.path)), table.replaced)
        known |= {name for row in by_item.values() for name in row}
    where = f"{table.path} and {items}" if items else str(table.path)
    needed = {field: columns.need(field, known, where) for field in NEEDED}
    used = find_columns(table, "votes", known, where).model_copy(update=needed)
    sides = _Sides(used, by_item, items, _texts(texts, table.replaced) if texts else None, texts, table.replaced)
    if used.prompt is None and texts is None and isinstance(sides.first_left(table.readable), str):
        columns.need("prompt", known, where)  # only whole dialogues hold their prompt
    return _Votes(table, used, sides).read()


class _Sides:
    """The texts of votes; each prompt with its two responses becomes one comparison, made once."""

    def __init__(
        self,
        used: Columns,
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
        self.made: dict[str, PromptResponses | str] = {}

    def cells(self, row: Row) -> Row:
        """The cells of a row (or its item) for prompt, sides, system prompt, language and split.

        Raises:
            Unusable: the item is in no row of the file of items.
        """
        item: Row = {}
        if self.items is not None:
            key = text_of(row.get(str(self.used.item), ""))
            if key not in self.by_item:
                raise Unusable(f"its item is not in {self.items.name} ({self.used.item} {key!r})")
            item = self.by_item[key]
        cells = {}
        for field in ("prompt", "input", "system", *LEFT_RIGHT, "language", "split"):
            column = getattr(self.used, field)
            if column is not None:
                cells[field] = (item if column in self.in_items else row).get(column)
        return cells

    def first_left(self, rows: Iterable[Row]) -> Any:
        """The first response on the left that there is."""
        column = str(self.used.left)
        cells = (row.get(column) for row in (self.by_item.values() if column in self.in_items else rows))
        return next((decoded(cell, "role", "from") for cell in cells if cell is not None), None)

    def compare(self, cells: Row, turn: float | None) -> PromptResponses:
        """The sides that cells make, checked, the same for the same cells.

        Args:
            turn: which turn of a dialogue was judged, where the row gives it.

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

    def _compare(self, cells: Row) -> PromptResponses:
        texts = {field: decoded(cells.get(field), "role", "from") for field in ("prompt", *LEFT_RIGHT)}
        if self.by_id is not None:
            texts |= {field: self._text(field, cells.get(field)) for field in ("prompt", *LEFT_RIGHT)}
        texts = {field: _as_text(value) for field, value in texts.items()}
        sides = sides_of(with_input(texts, cells.get("input")), LEFT_RIGHT, first_answers=True)
        sides = sides._replace(prompt=with_system(sides.prompt, cells.get("system")))
        check(sides, LEFT_RIGHT)
        return storable(sides, self.replaced)

    def _text(self, field: str, cell: Any) -> Any:
        """The text of an id; a prompt may also be the text itself."""
        known = self.by_id or {}
        if cell is None or text_of(cell) in known:
            return known.get(text_of(cell))
        if field == "prompt":
            return decoded(cell, "role", "from")
        raise Unusable(f"its {field} is not in {self.texts.name if self.texts else 'the texts'} (id {text_of(cell)!r})")


def _refuse_ties_beside(table: Table, used: Columns) -> None:
    """Refuse ties that are marked in another column than the mapped one: their rows would count as wins.

    Raises:
        BadInput: names the column, and how many rows it calls ties.
    """
    if table.settings.columns.label is None:
        return
    names = [name for name in table.known if TIE_COLUMN.search(name) and name not in used.named]
    for name in names:
        if ties := sum(word_of(row.get(name, "")) in ("1", "true", "yes") for row in table.readable):
            raise BadInput(
                f"{table.path}: column '{name}' calls {ties} rows ties, and columns.label={used.label} would make wins "
                "of them; make one column that says left, right or tie, or leave columns.* out where the form is known"
            )


class _Votes:
    """One table of votes: what was read so far."""

    def __init__(self, table: Table, used: Columns, sides: _Sides) -> None:
        self.table, self.used, self.sides = table, used, sides
        self.labels = table.settings.labels
        self.collector = Collector(table, f"import:{table.path.name}")
        self.strange: Counter[str] = Counter()  # labels without a meaning
        _refuse_ties_beside(table, used)
        labels = [row.get(str(used.label)) for row in table.readable]
        self.by_name = _sides_by_name(str(used.left), str(used.right), labels, self.labels)

    def read(self) -> ImportedFile:
        """Read every row, and note what a user would want to know of the labels."""
        self.collector.read(self._judge, {str(self.used.left), str(self.used.right)}, self.used.item, self.used.id)
        notes = []
        if self.by_name:
            meanings = ", ".join(f"'{label}' is {getattr(self.used, side)}" for label, side in self.by_name.items())
            notes.append(f"labels in column '{self.used.label}' read as the names of columns: {meanings}")
        if self.strange:
            examples = ", ".join(f"'{label}' ({count})" for label, count in self.strange.most_common(EXAMPLES))
            known = [word for words in self.labels.model_dump().values() for word in words]
            near = difflib.get_close_matches(self.strange.most_common(1)[0][0].casefold(), known, n=1, cutoff=0.6)
            hint = f" (is it '{near[0]}'?)" if near else ""
            notes.append(
                f"labels without a meaning in column '{self.used.label}': {examples}{hint}; "
                "give them one with labels.left, labels.right, labels.tie or labels.both_bad=[...]"
            )
        notes += self.table.unread({*self.used.named, *BESIDE})
        return self.collector.result(self.table.importer.kind if self.table.importer else "votes", notes)

    def _judge(self, number: int, row: Row, name: str | None) -> JudgedRow:
        used = self.used
        refuse_media(row)
        self.collector.refuse_copies(number, row)
        annotator = self.collector.annotator(row, used.annotator)
        cells = self.sides.cells(row)
        outcome = self._outcome(row.get(str(used.label)), cells)
        sides = self.sides.compare(cells, number_of(row.get("turn")))
        size = self.collector.number(row, used.strength)
        return JudgedRow(
            sides,
            RANKINGS[outcome],
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
            **self.collector.facts(row, used),
        )

    def _outcome(self, label: Any, cells: Row) -> Outcome:
        """The outcome of a label, which may also equal the text in exactly one of the columns left and right."""
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


def _sides_by_name(left: str, right: str, labels: Iterable[Any], known: Labels) -> dict[str, Outcome]:
    """Labels that name the columns of the responses, or the part in which these two names differ.

    A label 1 means ``output_1`` only where every label that is not known otherwise is such a part: beside a 0 it would
    be a number counted from 0.
    """
    left, right = left.casefold(), right.casefold()
    shared = len(commonprefix([left, right]))
    names: dict[str, Outcome] = {word_of(left): "left", word_of(left[shared:] or left): "left"}
    names |= {word_of(right): "right", word_of(right[shared:] or right): "right"}
    strange = {word_of(label) for label in labels if label not in (None, "") and known.meaning(label) is None}
    return {word: names[word] for word in sorted(strange)} if strange and strange <= set(names) else {}


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
    by_id: dict[str, Row] = {}
    for number, row in rows:
        if is_missing(row.get(column)) or row[column] == "":
            raise BadInput(f"{path}: row {number} has no column '{column}'; it holds {', '.join(sorted(row))}")
        key = text_of(row[column])
        if by_id.setdefault(key, row) != row:
            raise BadInput(f"{path}: row {number}: '{column}' {key} stands twice with different contents; keep one")
    return by_id


def _as_text(value: Any) -> Any:
    """A number is a text too (an id, an answer to a sum)."""
    return str(value) if isinstance(value, float) else text_of(value) if isinstance(value, int) else value
