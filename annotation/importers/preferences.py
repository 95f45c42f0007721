"""Tables of chosen and rejected responses, and of ranked responses: rows that each hold one judgment.

In: rows with a better and a worse response (TRL and hub style, as text or messages, with or without a prompt column;
or Anthropic's HH text), or with several responses and their ranks. Out: one comparison and one judgment per row. Which
response was on which side is not known, and who judged only where a column or the user says it. System prompt, turns,
tools, tool calls and reasoning are kept.
"""

from __future__ import annotations

from typing import Any

from align.core.config import BadInput
from annotation.importers.collector import Collector, JudgedRow, hashed_name
from annotation.importers.columns import cell_of, number_of
from annotation.importers.formats import HH_TURN, read_hh
from annotation.importers.imported import ImportedFile, UnusableRow
from annotation.importers.importer import RANKED, Row
from annotation.importers.responses import (
    PromptResponses,
    different_prompts,
    prompt_of,
    refuse_empty,
    require_both,
    sides_of,
    usable,
    with_input,
)
from annotation.importers.table import Table, find_columns
from annotation.importers.turns import MESSAGE_KEYS, decoded, messages_of, spoken

CHOSEN_FIRST = ((0,), (1,))
MARGIN = "margin"  # read where a row has no strength


def read_preferences(table: Table, *, is_hh: bool | None = None) -> ImportedFile:
    """Read the preferences of a table.

    Args:
        is_hh: whether it is HH text (None: as its first row looks).

    Raises:
        BadInput: a column is not there.
    """
    return _Preferences(table, is_hh).read()


def read_rankings(table: Table) -> ImportedFile:
    """Read rankings of several responses: one comparison and one judgment per row, equal ranks tied.

    Raises:
        BadInput: a column is not there.
    """
    used = find_columns(table, "rankings")

    def judge(row: Row) -> JudgedRow:
        responses, ranks = row.get("responses"), row.get("ranks")
        if not isinstance(responses, list) or not isinstance(ranks, list) or len(responses) != len(ranks):
            raise UnusableRow("not one rank per response (responses, ranks)")
        places = [number_of(rank) for rank in ranks]
        known = sorted({place for place in places if place is not None})
        if None in places or len(places) < 2:
            raise UnusableRow(f"no two responses with a number as rank ({str(ranks)[:60]})")
        read = [messages_of(response, "assistant", "responses") for response in responses]
        sides = PromptResponses(prompt_of(row.get("prompt", cell_of(row, used.prompt))), read)
        sides = usable(sides, ("one response", "another"), cell_of(row, used.system), table.replaced)
        return JudgedRow(row, sides, [[place for place, rank in enumerate(places) if rank == best] for best in known])

    collector = Collector(table, used, f"import:{hashed_name(table.path)}")
    collector.read(judge, ("responses",))
    return collector.result(table.importer.kind if table.importer else "rankings", also_read=RANKED)


def hh_sides(row: Row, columns: tuple[str, str]) -> PromptResponses:
    """Take a row of HH text apart: all turns but the last are the prompt, the last is the response."""
    require_both(row, columns)
    chosen, rejected = (read_hh(str(row[column])) for column in columns)
    if chosen is None or rejected is None:
        raise UnusableRow("it does not start with a Human or Assistant turn")
    if chosen[:-1] != rejected[:-1]:
        raise UnusableRow(different_prompts(columns))
    return PromptResponses(chosen[:-1], [chosen[-1:], rejected[-1:]])


class _Preferences:
    """One table of preferences: its columns, and what was read so far."""

    def __init__(self, table: Table, is_hh: bool | None) -> None:
        self.table = table
        self.used = find_columns(table, "preferences")
        mapped = table.settings.columns
        if mapped.chosen or mapped.rejected:  # who maps one of them has to map both
            for field in ("chosen", "rejected"):
                mapped.need(field, table.known, str(table.path))
        self.responses = (self.used.chosen or "chosen", self.used.rejected or "rejected")
        if "prompt" in self.responses:
            raise BadInput(f"{table.path}: column 'prompt' cannot hold a response; rename it, and map its new name")
        self.has_guessed_prompt = self.used.prompt not in (None, "prompt", mapped.prompt)
        self.collector = Collector(table, self.used, f"import:{hashed_name(table.path)}")
        first = table.readable[0] if table.readable else {}
        self.is_hh = self._looks_like_hh(first) if is_hh is None else is_hh

    def read(self) -> ImportedFile:
        self.collector.read(self._judge, self.responses)
        container = self.table.container
        format = "csv" if container in ("csv", "tsv") else "parquet" if container == "parquet" else "trl"
        if self.table.importer is not None and ":" in self.table.importer.kind:
            format = self.table.importer.kind
        return self.collector.result("hh" if self.is_hh else format, also_read=(MARGIN,))

    def _judge(self, row: Row) -> JudgedRow:
        sides = usable(self._sides(row), self.responses, cell_of(row, self.used.system), self.table.replaced)
        refuse_empty(sides.responses[0])
        return JudgedRow(row, sides, CHOSEN_FIRST, self._size(row))

    def _sides(self, row: Row) -> PromptResponses:
        """Return the prompt and both responses of a row."""
        cells = {name: decoded(row[name], *MESSAGE_KEYS) for name in self.responses if name in row}
        self._refuse_names(cells)
        prompt = cell_of(row, self.used.prompt)
        if self.has_guessed_prompt and any(map(_holds_prompt, cells.values())):
            prompt = None
        cells["prompt"] = decoded(prompt, *MESSAGE_KEYS)
        if self.is_hh and not cells["prompt"]:
            return hh_sides(cells, self.responses)
        return sides_of(with_input(cells, cell_of(row, self.used.input)), self.responses)

    def _refuse_names(self, cells: Row) -> None:
        """Raise UnusableRow where both responses are no texts, but the names of the columns that hold them."""
        named = [cell.strip() for cell in cells.values() if isinstance(cell, str)]
        others = self.table.known - {*self.responses}
        if len(named) == len(self.responses) and others.issuperset(named):
            left, right = sorted(named)
            raise UnusableRow(
                f"its responses are names of columns (map columns.left={left} columns.right={right} "
                f"columns.label={self.responses[0]})"
            )

    def _size(self, row: Row) -> float | None:
        """Return how much better the chosen response is; a number below 0 contradicts that it is."""
        column = self.used.strength if self.used.strength in row else MARGIN
        size = self.collector.number(row, column)
        if size is not None and size < 0:
            self.collector.counted["rows give the chosen response the lower score; their strength is left out"] += 1
            return None
        return size

    def _looks_like_hh(self, row: Row) -> bool:
        chosen = row.get(self.responses[0])
        has_prompt = self.used.prompt is not None and row.get(self.used.prompt)
        return not has_prompt and isinstance(chosen, str) and HH_TURN.match(chosen) is not None


def _holds_prompt(cell: Any) -> bool:
    """Return whether a response is a dialogue that begins with its prompt."""
    if isinstance(cell, str):
        return spoken(cell) is not None
    return isinstance(cell, list) and len(cell) > 1
