"""Votes that people cast somewhere else: one vote a row, with a map of which column holds what.

In: rows with an annotator, two responses (left and right as they were shown) and a label; the prompt and the responses
stand in the row itself, in a file of items that the row names (``items``), or in a file of texts by their ids
(``texts``: ``id`` and ``text``). Out: one judgment a row, its sides known. Somebody who votes on a comparison again
gives a judgment of its own, by which self-consistency is measured; a row that repeats another to the letter gives none.
A label that nobody explained and a text that cannot be found are no vote: such rows are left out, with their reasons.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from align.core.config import BadInput
from annotation.interfaces.config import BOTH_BAD
from annotation.readers.columns import Columns, Labels, Outcome, number_of, text_of
from annotation.readers.formats import container_of
from annotation.readers.intake import Found, Kept, Unusable, cleaned, left_out
from annotation.readers.sides import Placed, check, decoded, placed, sides_of
from annotation.types import Judgment

LEFT_RIGHT = ("left", "right")
EXAMPLES = 5  # labels without a meaning that are named
Row = dict[str, Any]


class _Used(NamedTuple):
    """The columns that were found, by what they hold."""

    annotator: str
    label: str
    left: str
    right: str
    prompt: str | None
    item: str | None
    strength: str | None
    seconds: str | None
    language: str | None
    rationale: str | None


def read_votes(
    path: Path,
    columns: Columns,
    labels: Labels,
    *,
    items: Path | None = None,
    texts: Path | None = None,
    language: str = "en",
    limit: int | None = None,
) -> Found:
    """Read votes; ``limit`` reads only the first rows.

    Raises:
        BadInput: a file cannot be read, a column is not there, or a file of items or texts names something twice.
    """
    replaced = [0]
    rows = list(cleaned(path, container_of(path, "votes"), replaced, limit))
    if not rows:
        return Found("votes", 0, [], [], 0, [])
    known = {name for _, row in rows for name in row}
    by_item: dict[str, Row] = {}
    if items is not None:
        by_item = _items(items, columns.need("item", known, str(path)), replaced)
        known |= {name for row in by_item.values() for name in row}
    where = f"{path} and {items}" if items else str(path)
    used = _used(columns, known, where)
    sides = _Sides(used, by_item, items, _texts(texts, replaced) if texts else None, texts, language)
    if used.prompt is None and texts is None and isinstance(sides.first_left(row for _, row in rows), str):
        columns.need("prompt", known, where)  # only whole dialogues hold their prompt
    reader = _Reader(path.name, used, labels, sides)
    for number, row in rows:
        reader.take(number, row)
    return Found("votes", len(rows), reader.kept, reader.dropped, replaced[0], reader.notes())


class _Sides:
    """Where the texts of a vote stand; each prompt with its two responses becomes one comparison, made once."""

    def __init__(
        self,
        used: _Used,
        by_item: dict[str, Row],
        items: Path | None,
        by_id: dict[str, Any] | None,
        texts: Path | None,
        language: str,
    ) -> None:
        self.used, self.language = used, language
        self.by_item, self.items = by_item, items
        self.by_id, self.texts = by_id, texts
        self.in_items = {name for row in by_item.values() for name in row}
        self.made: dict[str, Placed | str] = {}

    def cells(self, row: Row) -> Row:
        """What the row (or its item) holds of prompt, left, right and language, as it stands there.

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
        for field in ("prompt", "left", "right", "language"):
            column = getattr(self.used, field)
            if column is not None:
                found[field] = (item if column in self.in_items else row).get(column)
        return found

    def first_left(self, rows: Iterable[Row]) -> Any:
        """The first response on the left that there is."""
        column = self.used.left
        cells = (row.get(column) for row in (self.by_item.values() if column in self.in_items else rows))
        return next((decoded(cell, "role") for cell in cells if cell is not None), None)

    def compare(self, cells: Row) -> Placed:
        """The comparison that cells make, with the responses' places.

        Raises:
            Unusable: they make none; says why.
        """
        key = json.dumps([cells.get(field) for field in ("prompt", "left", "right")], default=str)
        if key not in self.made:
            try:
                self.made[key] = self._compare(cells)
            except Unusable as reason:
                self.made[key] = str(reason)
        made = self.made[key]
        if isinstance(made, str):
            raise Unusable(made)
        return made

    def _compare(self, cells: Row) -> Placed:
        texts = {field: decoded(cells.get(field), "role") for field in ("prompt", *LEFT_RIGHT)}
        if self.by_id is not None:
            texts |= {field: self._text(field, cells.get(field)) for field in ("prompt", *LEFT_RIGHT)}
        found = {field: _as_text(value) for field, value in texts.items()}
        sides = sides_of(found, LEFT_RIGHT)
        check(sides, LEFT_RIGHT)
        language = cells.get("language")
        return placed(sides, self.language if language is None else text_of(language))

    def _text(self, field: str, cell: Any) -> Any:
        """What an id stands for; a prompt may also be the text itself."""
        known = self.by_id or {}
        if cell is None or text_of(cell) in known:
            return known.get(text_of(cell))
        if field == "prompt":
            return decoded(cell, "role")
        raise Unusable(f"its {field} is not in {self.texts.name if self.texts else 'the texts'} (id {text_of(cell)!r})")


class _Reader:
    """One file of votes: what was found so far."""

    def __init__(self, file: str, used: _Used, labels: Labels, sides: _Sides) -> None:
        self.file, self.used, self.labels, self.sides = file, used, labels, sides
        self.kept: list[Kept] = []
        self.dropped: list[dict[str, Any]] = []
        self.rows: dict[bytes, int] = {}  # digest of a row to its number
        self.again: Counter[tuple[str, str, str]] = Counter()
        self.strange: Counter[str] = Counter()  # labels without a meaning
        self.no_numbers: Counter[str] = Counter()  # columns that hold no number, by cells

    def take(self, number: int, row: Row) -> None:
        item = text_of(row[self.used.item]) if self.used.item in row else None
        try:
            self.kept.append(self._vote(number, row, item))
        except Unusable as reason:
            self.dropped.append(left_out(number, item, reason))

    def notes(self) -> list[str]:
        """What a user would want to know of the file beside counts."""
        found = [
            f"{count} cells of column '{column}' are no numbers that it may hold; left out, the votes count"
            for column, count in sorted(self.no_numbers.items())
        ]
        if self.strange:
            said = ", ".join(f"'{label}' ({count})" for label, count in self.strange.most_common(EXAMPLES))
            known = [word for words in self.labels.model_dump().values() for word in words]
            near = difflib.get_close_matches(self.strange.most_common(1)[0][0].casefold(), known, n=1, cutoff=0.6)
            hint = f" (is it '{near[0]}'?)" if near else ""
            found.append(
                f"labels without a meaning in column '{self.used.label}': {said}{hint}; "
                "give them one with labels.left, labels.right, labels.tie or labels.both_bad=[...]"
            )
        return found

    def _vote(self, number: int, row: Row, item: str | None) -> Kept:
        digest = hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).digest()
        first = self.rows.setdefault(digest, number)
        if first != number:
            raise Unusable(f"duplicate (of row {first})")
        annotator = text_of(row.get(self.used.annotator, ""))
        if not annotator:
            raise Unusable(f"no annotator (column '{self.used.annotator}' is empty)")
        cells = self.sides.cells(row)
        outcome = self._outcome(row.get(self.used.label), cells)
        comparison, shown = self.sides.compare(cells)
        source = f"import:{self.file}#{item}" if item is not None else f"import:{self.file}"
        self.again[comparison.id, annotator, source] += 1
        times = self.again[comparison.id, annotator, source]
        left, right = shown
        judgment = Judgment(
            comparison_id=comparison.id,
            annotator=annotator,
            ranking={"left": [[left], [right]], "right": [[right], [left]]}.get(outcome, [sorted(shown)]),
            shown=shown,
            strength=self._strength(row, outcome),
            flags=[BOTH_BAD] if outcome == "both_bad" else [],
            rationale=text_of(row[self.used.rationale]) if self.used.rationale in row else None,
            seconds=self._number(row, self.used.seconds, lambda seconds: seconds >= 0),
            source=source if times == 1 else f"{source}#{times}",
        )
        return Kept(number, item, comparison, judgment)

    def _outcome(self, label: Any, cells: Row) -> Outcome:
        """What the label says; it may also be what stands in exactly one of the columns left and right."""
        if label is None or not text_of(label):
            raise Unusable(f"no label (column '{self.used.label}' is empty)")
        if (meaning := self.labels.meaning(label)) is not None:
            return meaning
        is_left, is_right = (text_of(label) == text_of(cells.get(field)) for field in LEFT_RIGHT)
        if is_left != is_right:
            return "left" if is_left else "right"
        self.strange[text_of(label)[:60]] += 1
        raise Unusable(f"unknown label ({text_of(label)[:60]!r} in column '{self.used.label}')")

    def _strength(self, row: Row, outcome: Outcome) -> int | None:
        """0 to 3, or -3 to 3 with the sign of a side, which the label tells."""
        given = self._number(row, self.used.strength, lambda strength: abs(strength) <= 3)
        if given is None:
            return None
        return round(abs(given)) if outcome in LEFT_RIGHT else 0

    def _number(self, row: Row, column: str | None, is_allowed: Callable[[float], bool]) -> float | None:
        if column is None or column not in row:
            return None
        found = number_of(row[column])
        if found is None or not is_allowed(found):
            self.no_numbers[column] += 1
            return None
        return found


def _used(columns: Columns, known: set[str], where: str) -> _Used:
    return _Used(
        annotator=columns.need("annotator", known, where),
        label=columns.need("label", known, where),
        left=columns.need("left", known, where),
        right=columns.need("right", known, where),
        prompt=columns.find("prompt", known, where),
        item=columns.find("item", known, where),
        strength=columns.find("strength", known, where),
        seconds=columns.find("seconds", known, where),
        language=columns.find("language", known, where),
        rationale=columns.find("rationale", known, where),
    )


def _items(path: Path, column: str, replaced: list[int]) -> dict[str, Row]:
    """Rows of the file of items by their id, which is called there as in the votes, or ``id``."""
    rows = list(cleaned(path, container_of(path, "votes"), replaced))
    name = column if any(column in row for _, row in rows) else "id"
    return _by_id(path, rows, name)


def _texts(path: Path, replaced: list[int]) -> dict[str, Any]:
    """Texts by their id."""
    rows = _by_id(path, cleaned(path, container_of(path, "votes"), replaced), "id")
    return {key: decoded(row.get("text"), "role") for key, row in rows.items()}


def _by_id(path: Path, rows: Iterable[tuple[int, Row]], column: str) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for number, row in rows:
        if column not in row:
            raise BadInput(f"{path}: row {number} has no column '{column}'; it holds {', '.join(sorted(row))}")
        key = text_of(row[column])
        if found.setdefault(key, row) != row:
            raise BadInput(f"{path}: row {number}: '{column}' {key} stands twice with different contents; keep one")
    return found


def _as_text(value: Any) -> Any:
    """A number is a text too (an id, an answer to a sum)."""
    return text_of(value) if isinstance(value, int | float) else value
