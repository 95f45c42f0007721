"""What a file that is brought in comes to: usable rows, and the others with their reasons.

In: rows as ``formats.py`` yields them. Out: the types that all readers return: comparisons with judgments (``Kept``),
and for every row that gives none where it stood and why (``Found``). The readers are ``preferences.py`` (chosen and
rejected), ``crowd.py`` (votes) and ``exported.py`` (a labelling server's exports); ``gathering.py`` holds what the
first two know of a file as a whole; storing is ``importers.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from align.core.config import BadInput
from align.core.messages import scrubbed
from align.core.records import Comparison, Judgment
from annotation.importers.columns import Columns, Labels, text_of
from annotation.importers.formats import Container, read_rows
from annotation.store.store import Split


class Unusable(Exception):
    """Why a row makes no judgment. A bracket at its end tells rows of one reason apart."""


class Kept(NamedTuple):
    """A judgment, the row it was read from, and what the file calls it."""

    row: int
    name: str | None
    comparison: Comparison
    judgment: Judgment


class Given(NamedTuple):
    """What a user says of a whole file: what its columns hold, and what holds for rows that do not say it.

    ``split`` is that of rows without one, or with one whose name is not known; ``limit`` reads only the first rows.
    """

    columns: Columns = Columns()
    labels: Labels = Labels()
    annotator: str | None = None
    split: Split | None = None
    language: str = "en"
    limit: int | None = None


NOTHING_GIVEN = Given()


class Found(NamedTuple):
    """What a file holds: judgments, rows left out with their reasons, characters replaced, and things worth saying.

    ``splits`` are hints for comparisons, where the file or its campaign says to which split their prompts belong.
    """

    format: str
    n_rows: int
    kept: list[Kept]
    dropped: list[dict[str, Any]]
    scrubbed: int
    notes: list[str]
    splits: Mapping[str, Split] = MappingProxyType({})

    @property
    def comparisons(self) -> list[Comparison]:
        """Each comparison once, in the order of rows."""
        return list({entry.comparison.id: entry.comparison for entry in self.kept}.values())

    @property
    def judgments(self) -> list[Judgment]:
        return [entry.judgment for entry in self.kept]

    @property
    def n_ties(self) -> int:
        """Judgments that prefer nothing to anything."""
        return sum(len(judgment.shown) > 1 and len(judgment.ranking) == 1 for judgment in self.judgments)


def cleaned(
    path: Path, container: Container, replaced: list[int], limit: int | None = None, *, whole: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows by number (from 1), of text that can be stored; how many characters were replaced adds to ``replaced[0]``.

    What is null or no number (NaN) is left out, and so are empty cells of CSV, unless ``whole``.

    Raises:
        BadInput: the file cannot be read, or a row is not JSON or CSV at all.
    """
    for number, raw in islice(read_rows(path, container), limit):
        try:
            row = scrubbed(raw, replaced)
        except RecursionError:
            raise BadInput(f"{path}: row {number} is nested too deeply to be read; mend or remove it") from None
        is_csv = container in ("csv", "tsv")
        kept = {key: value for key, value in row.items() if not (is_missing(value) or (is_csv and value == ""))}
        yield number, row if whole else kept


def left_out(row: int, name: Any, reason: object) -> dict[str, Any]:
    """A line of ``dropped.jsonl``."""
    return {"row": row, "id": name, "reason": str(reason)}


def cell_of(row: Mapping[str, Any], column: str | None) -> Any:
    """What stands in a column; None where the column is not known (one without a name is a column like others)."""
    return None if column is None else row.get(column)


def name_in(row: Mapping[str, Any], column: str | None) -> str | None:
    """Whom or what a cell names, several names joined; None where it names nothing.

    Raises:
        Unusable: it holds something that is no name.
    """
    value = cell_of(row, column)
    names = value if isinstance(value, list) else [value]
    if any(isinstance(name, list | dict | bytes) for name in names):
        raise Unusable(f"column '{column}' holds no name ({str(value)[:60]})")
    return ", ".join(text_of(name) for name in names if name is not None) or None


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: null, or the number that is none."""
    return value is None or (isinstance(value, float) and math.isnan(value))
