"""What a file that is brought in comes to: usable rows, and the others with their reasons.

In: rows as ``formats.py`` yields them. Out: the types that all readers return: comparisons with judgments (``Kept``),
and for every row that gives none where it stood and why (``Found``). The readers are ``preferences.py`` (chosen and
rejected), ``crowd.py`` (votes) and ``exported.py`` (a labelling server's exports); storing is ``importers.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from align.core.config import BadInput
from annotation.feedback.store import Split
from annotation.readers.formats import Container, Format, read_rows, scrubbed
from annotation.types import Comparison, Judgment


class Unusable(Exception):
    """Why a row makes no judgment. A bracket at its end tells rows of one reason apart."""


class Kept(NamedTuple):
    """A judgment, the row it was read from, and what the file calls it."""

    row: int
    name: str | None
    comparison: Comparison
    judgment: Judgment


class Found(NamedTuple):
    """What a file holds: judgments, rows left out with their reasons, characters replaced, and things worth saying.

    ``splits`` are hints for comparisons whose prompts are held out, where the file's campaign gives them.
    """

    format: Format
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


def cleaned(
    path: Path, container: Container, replaced: list[int], limit: int | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows by number (from 1), of text that can be stored; how many characters were replaced adds to ``replaced[0]``.

    Raises:
        BadInput: the file cannot be read, or a row is not JSON or CSV at all.
    """
    for number, raw in islice(read_rows(path, container), limit):
        try:
            row = scrubbed(raw, replaced)
        except RecursionError:
            raise BadInput(f"{path}: row {number} is nested too deeply to be read; mend or remove it") from None
        yield number, {key: value for key, value in row.items() if value is not None}


def left_out(row: int, name: Any, reason: object) -> dict[str, Any]:
    """A line of ``dropped.jsonl``."""
    return {"row": row, "id": name, "reason": str(reason)}
