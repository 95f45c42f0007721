"""The content of a file that was read: comparisons with judgments, and the rows left out with their reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from align.core.records import Comparison, Judgment
from annotation.store.chain import Split


class UnusableRow(Exception):
    """Why a row makes no judgment. Details in brackets at its end are not counted as other reasons."""


class ImportedRow(NamedTuple):
    """A judgment, the row it was read from, and what the file calls it."""

    row: int
    name: str | None
    comparison: Comparison
    judgment: Judgment


class ImportedFile(NamedTuple):
    """What a file holds: judgments, rows left out with their reasons, how many characters were replaced, and notes.

    ``splits`` are hints for comparisons, where the file or its campaign gives the split of their prompts.
    """

    format: str
    n_rows: int
    kept: list[ImportedRow]
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
        """How many judgments prefer nothing to anything."""
        return sum(len(judgment.shown) > 1 and len(judgment.ranking) == 1 for judgment in self.judgments)

    @property
    def reasons(self) -> Counter[str]:
        """How many rows were dropped, by reason."""
        return Counter(entry["reason"].partition(" (")[0] for entry in self.dropped)

    @property
    def split_counts(self) -> dict[str, int]:
        """Comparisons by the split that the file gives them; empty where it gives none."""
        counted = Counter(self.splits[c.id] for c in self.comparisons if c.id in self.splits)
        return {split: counted[split] for split in ("train", "validation", "test") if counted[split]}

    @property
    def remarks(self) -> list[str]:
        """Everything else that a user has to know of the file."""
        replaced = f"{self.scrubbed} characters that cannot be stored (NUL, lone surrogates) replaced by U+FFFD"
        return [*([replaced] if self.scrubbed else []), *self.notes]


def left_out(row: int, name: Any, reason: object) -> dict[str, Any]:
    """Return a line of ``dropped.jsonl``."""
    return {"row": row, "id": name, "reason": str(reason)}
