"""Tables of chosen and rejected responses, and of ranked responses: rows that each hold one judgment.

In: rows with a better and a worse response (TRL and hub style, as text or messages, with or without a prompt column;
or Anthropic's HH text), or with several responses and their ranks. Out: one comparison and one judgment per row. Which
response was on which side is not known, and who judged only where a column or the user says it. System prompt, turns,
tools, tool calls and reasoning are kept.
"""

from __future__ import annotations

from typing import Any

from align.core.config import BadInput
from annotation.aggregation.votes import UNKNOWN_SIDES
from annotation.importers.collector import Collector, JudgedRow, hashed_name
from annotation.importers.columns import Columns, cell_of, name_in, number_of
from annotation.importers.formats import HH_TURN, read_hh
from annotation.importers.imported import ImportedFile, Unusable
from annotation.importers.importer import Row
from annotation.importers.responses import (
    PromptResponses,
    check,
    different_prompts,
    prompt_of,
    refuse_empty,
    require_both,
    sides_of,
    storable,
    with_input,
    with_system,
)
from annotation.importers.table import Table, find_columns
from annotation.importers.turns import BESIDE, decoded, messages_of, refuse_media, spoken

CHOSEN_FIRST = ((0,), (1,))
MARGIN = "margin"  # read where a row has no strength
RANKED = ("prompt", "responses", "ranks")  # what an importer makes of a row that ranks several responses


def read_preferences(table: Table, *, is_hh: bool | None = None) -> ImportedFile:
    """Read the preferences of a table; ``is_hh``: whether it is HH text (None: by its first row).

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
    collector = Collector(table, f"import:{hashed_name(table.path)}")

    def judge(number: int, row: Row, name: str | None) -> JudgedRow:
        annotator = collector.annotator(row, used.annotator)
        if annotator or table.settings.annotator:
            collector.refuse_copies(number, row)
        refuse_media(row)
        responses, ranks = row.get("responses"), row.get("ranks")
        if not isinstance(responses, list) or not isinstance(ranks, list) or len(responses) != len(ranks):
            raise Unusable("not one rank per response (responses, ranks)")
        places = [number_of(rank) for rank in ranks]
        known = sorted({place for place in places if place is not None})
        if None in places or len(places) < 2:
            raise Unusable(f"no two responses with a number as rank ({str(ranks)[:60]})")
        prompt = with_system(prompt_of(row.get("prompt")), cell_of(row, used.system))
        sides = PromptResponses(prompt, [messages_of(response, "assistant", "responses") for response in responses])
        sides = storable(sides, table.replaced)
        check(sides, ("one response", "another"))
        ranking = [[place for place, rank in enumerate(places) if rank == value] for value in known]
        return JudgedRow(sides, ranking, annotator, name, **_row_facts(collector, row, used, name))

    collector.read(judge, {"responses"}, used.id)
    return collector.result(table.importer.kind if table.importer else "rankings", table.unread({*used.named, *RANKED}))


def hh_sides(row: Row, columns: tuple[str, str]) -> PromptResponses:
    """Take a row of HH text apart: all turns but the last are the prompt, the last is the response.

    Raises:
        Unusable: with the reason.
    """
    require_both(row, columns)
    chosen, rejected = (read_hh(str(row[column])) for column in columns)
    if chosen is None or rejected is None:
        raise Unusable("it does not start with a Human or Assistant turn")
    if chosen[:-1] != rejected[:-1]:
        raise Unusable(different_prompts(columns))
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
        self.collector = Collector(table, f"import:{hashed_name(table.path)}")
        first = table.readable[0] if table.readable else {}
        self.is_hh = self._looks_like_hh(first) if is_hh is None else is_hh

    def read(self) -> ImportedFile:
        self.collector.read(self._judge, {*self.responses}, self.used.id)
        container = self.table.container
        format = "csv" if container in ("csv", "tsv") else "parquet" if container == "parquet" else "trl"
        notes = self.table.unread({*self.used.named, *BESIDE, MARGIN}) if self.table.rows else []
        return self.collector.result("hh" if self.is_hh else format, notes)

    def _judge(self, number: int, row: Row, name: str | None) -> JudgedRow:
        annotator = self.collector.annotator(row, self.used.annotator)
        if annotator or self.table.settings.annotator:
            self.collector.refuse_copies(number, row)
        refuse_media(row)
        sides = storable(self._sides(row), self.table.replaced)
        sides = sides._replace(prompt=with_system(sides.prompt, cell_of(row, self.used.system)))
        check(sides, self.responses)
        refuse_empty(sides.responses[0])
        size = self._size(row)
        facts = _row_facts(self.collector, row, self.used, name)
        return JudgedRow(sides, CHOSEN_FIRST, annotator, name, size=size, **facts)

    def _sides(self, row: Row) -> PromptResponses:
        """The prompt and both responses of a row.

        Raises:
            Unusable: with the reason.
        """
        cells = {name: decoded(row[name], "role", "from") for name in self.responses if name in row}
        self._refuse_names(cells)
        prompt = cell_of(row, self.used.prompt)
        if self.has_guessed_prompt and any(map(_holds_prompt, cells.values())):
            prompt = None
        cells["prompt"] = decoded(prompt, "role", "from")
        if self.is_hh and not cells["prompt"]:
            return hh_sides(cells, self.responses)
        return sides_of(with_input(cells, cell_of(row, self.used.input)), self.responses)

    def _refuse_names(self, cells: Row) -> None:
        """Raises Unusable where both responses are no texts, but the names of the columns that hold them."""
        named = [cell.strip() for cell in cells.values() if isinstance(cell, str)]
        others = self.table.known - {*self.responses}
        if len(named) == len(self.responses) and others.issuperset(named):
            left, right = sorted(named)
            raise Unusable(
                f"its responses are names of columns (map columns.left={left} columns.right={right} "
                f"columns.label={self.responses[0]})"
            )

    def _size(self, row: Row) -> float | None:
        """How much better the chosen response is; a number below 0 contradicts that it is."""
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


def _row_facts(collector: Collector, row: Row, used: Columns, name: str | None) -> dict[str, Any]:
    """What a row without sides holds beside its judgment: the order in a file is not an order on a screen."""
    return {
        "own_id": name,
        "split": name_in(row, used.split),
        "language": name_in(row, used.language),
        "flags": [UNKNOWN_SIDES],
        **collector.facts(row, used),
    }


def _holds_prompt(cell: Any) -> bool:
    """Whether a response is a dialogue that begins with its prompt."""
    if isinstance(cell, str):
        return spoken(cell) is not None
    return isinstance(cell, list) and len(cell) > 1
