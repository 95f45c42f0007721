"""Votes that people cast somewhere else: one vote per row, with a map of which column holds what.

In: rows with an annotator, two responses (left and right as they were shown) and a label; the prompt and the responses
are in the row itself, in a file of items that the row names (``items``), or in a file of texts by their ids
(``texts``: ``id`` and ``text``). Out: one judgment per row, its sides known. A second vote of
the same person on a comparison is a judgment of its own, by which self-consistency is measured; an exact copy of
another row is left out. So is, with its reason, a row whose label has no meaning or whose text is missing.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable
from os.path import commonprefix
from pathlib import Path
from typing import Any

from align.core.config import BadInput
from annotation.aggregation.votes import BOTH_BAD, UNKNOWN_SIDES
from annotation.importers.collector import Collector, JudgedRow
from annotation.importers.columns import RANKINGS, Columns, Labels, Outcome, cell_of, number_of, text_of, word_of
from annotation.importers.formats import cleaned, container_of, is_missing
from annotation.importers.imported import ImportedFile, UnusableRow
from annotation.importers.importer import Row
from annotation.importers.responses import PromptResponses, sides_of, usable, with_input
from annotation.importers.table import Table, find_columns
from annotation.importers.turns import MESSAGE_KEYS, decoded

LEFT_RIGHT = ("left", "right")
NEEDED = ("label", *LEFT_RIGHT)
OF_ITEMS = ("prompt", "input", "system", *LEFT_RIGHT, "language", "split")  # what a file of items may hold
TIE_COLUMN = re.compile(r"(?:^|[^a-z])tied?(?:[^a-z]|$)", re.IGNORECASE)
EXAMPLES = 5  # labels without a meaning that are named


def read_votes(table: Table, *, items: Path | None = None, texts: Path | None = None) -> ImportedFile:
    """Read the votes of a table.

    Raises:
        BadInput: a column is not there, or a file of items or texts names something twice.
    """
    return _Votes(table, items, texts).read() if table.rows else ImportedFile("votes", 0, [], [], 0, [])


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
    """One table of votes: its columns, the items and texts that its rows name, and what was read so far."""

    def __init__(self, table: Table, items: Path | None, texts: Path | None) -> None:
        self.table, self.items, self.texts, self.labels = table, items, texts, table.settings.labels
        columns, where = table.settings.columns, str(table.path)
        self.by_item = _items(items, columns.need("item", table.known, where), table.replaced) if items else {}
        self.by_id = _texts(texts, table.replaced) if texts else {}
        of_items = {name for row in self.by_item.values() for name in row}
        known, where = table.known | of_items, f"{where} and {items}" if items else where
        needed = {field: columns.need(field, known, where) for field in NEEDED}
        self.used = used = find_columns(table, "votes", known, where).model_copy(update=needed)
        if used.prompt is None and texts is None:
            lefts = (row.get(str(used.left)) for row in (*self.by_item.values(), *table.readable))
            if isinstance(next((decoded(cell, *MESSAGE_KEYS) for cell in lefts if cell is not None), None), str):
                columns.need("prompt", known, where)  # only whole dialogues hold their prompt
        self.of_items = [column for field in OF_ITEMS if (column := getattr(used, field)) in of_items]
        self.collector = Collector(table, used, f"import:{table.path.name}")
        self.strange: Counter[str] = Counter()  # labels without a meaning
        _refuse_ties_beside(table, used)
        labels = [row.get(str(used.label)) for row in table.readable]
        self.by_name = _sides_by_name(str(used.left), str(used.right), labels, self.labels)

    def read(self) -> ImportedFile:
        """Read every row, and note what a user would want to know of the labels."""
        self.collector.read(self._judge, (str(self.used.left), str(self.used.right)))
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
        return self.collector.result(self.table.importer.kind if self.table.importer else "votes", notes)

    def _judge(self, row: Row) -> JudgedRow:
        row = self._with_item(row)
        outcome = self._outcome(row)
        sides = self._sides(row)
        turn = number_of(row.get("turn"))
        if sides.is_cut and turn is not None and turn > 1:
            raise UnusableRow(f"its vote is on turn {turn:g}, before which the dialogues part")
        size = self.collector.number(row, self.used.strength)
        if size is not None:
            size = abs(size) if outcome in LEFT_RIGHT else 0.0
        flags = [BOTH_BAD] if outcome == "both_bad" else []
        flags += [] if self.table.knows_sides else [UNKNOWN_SIDES]
        return JudgedRow(row, sides, RANKINGS[outcome], size, flags)

    def _with_item(self, row: Row) -> Row:
        """Return a row with the cells of its item in the columns that the file of items has."""
        if self.items is None:
            return row
        key = text_of(row.get(str(self.used.item), ""))
        if key not in self.by_item:
            raise UnusableRow(f"its item is not in {self.items.name} ({self.used.item} {key!r})")
        return row | {column: self.by_item[key].get(column) for column in self.of_items}

    def _sides(self, row: Row) -> PromptResponses:
        cells = {field: self._text(field, cell_of(row, getattr(self.used, field))) for field in ("prompt", *LEFT_RIGHT)}
        sides = sides_of(with_input(cells, cell_of(row, self.used.input)), LEFT_RIGHT, first_answers=True)
        return usable(sides, LEFT_RIGHT, cell_of(row, self.used.system), self.table.replaced)

    def _text(self, field: str, cell: Any) -> Any:
        """Return the text of an id where texts have ids (a prompt may also be the text itself), else the cell's own."""
        if self.texts is not None and cell is not None:
            if (key := text_of(cell)) in self.by_id:
                return _as_text(self.by_id[key])
            if field != "prompt":
                raise UnusableRow(f"its {field} is not in {self.texts.name} (id {key!r})")
        return _as_text(decoded(cell, *MESSAGE_KEYS))

    def _outcome(self, row: Row) -> Outcome:
        """Return the outcome of a label, which may also equal the text in one of the columns left and right."""
        label = row.get(str(self.used.label))
        if label is None or not text_of(label):
            raise UnusableRow(f"no label (column '{self.used.label}' is empty)")
        if (meaning := self.labels.meaning(label)) is not None:
            return meaning
        if (named := self.by_name.get(word_of(label))) is not None:
            return named
        is_left, is_right = (text_of(label) == text_of(cell_of(row, getattr(self.used, field))) for field in LEFT_RIGHT)
        if is_left != is_right:
            return "left" if is_left else "right"
        self.strange[text_of(label)[:60]] += 1
        raise UnusableRow(f"unknown label ({text_of(label)[:60]!r} in column '{self.used.label}')")


def _sides_by_name(left: str, right: str, labels: Iterable[Any], known: Labels) -> dict[str, Outcome]:
    """Return the labels that name the columns of the responses, or the part in which these two names differ.

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
    """Return rows of the file of items by their id, which is called there as in the votes, or ``id``."""
    rows = list(cleaned(path, container_of(path, "votes"), replaced, whole=True))
    name = column if any(column in row for _, row in rows) else "id"
    return _by_id(path, rows, name)


def _texts(path: Path, replaced: list[int]) -> dict[str, Any]:
    """Return texts by their id."""
    rows = _by_id(path, cleaned(path, container_of(path, "votes"), replaced, whole=True), "id")
    return {key: decoded(row.get("text"), *MESSAGE_KEYS) for key, row in rows.items()}


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
    """Return a number as text (an id, an answer to a sum), anything else as it is."""
    return str(value) if isinstance(value, float) else text_of(value) if isinstance(value, int) else value
