"""Files of chosen and rejected responses, as rows that each hold one judgment.

In: rows with a better and a worse response (TRL and hub style, as text or messages, with or without a prompt column;
or Anthropic's HH text). Out: one comparison and one judgment a row; which response stood on which side is not known,
and who judged only where a column or the user says it. System prompt, turns, tools, tool calls and reasoning are kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from align.core.config import BadInput
from annotation.aggregation.votes import UNKNOWN_SIDES
from annotation.importers.columns import Field
from annotation.importers.formats import HH_TURN, Format, read_hh
from annotation.importers.gathering import Gathering, Judged, hashed_name
from annotation.importers.intake import NOTHING_GIVEN, Found, Given, Unusable, cell_of, name_in
from annotation.importers.sides import (
    Sides,
    asked_with,
    check,
    different_prompts,
    refuse_empty,
    require_both,
    sides_of,
    storable,
    with_system,
)
from annotation.importers.table import Row, Table, find_columns, open_table, trimmed
from annotation.importers.turns import BESIDE, decoded, refuse_media, spoken, template_arguments_of, tools_of

RANKING = ((0,), (1,))


class _Used(NamedTuple):
    """The columns that were found, by what they hold."""

    chosen: str | None
    rejected: str | None
    annotator: str | None
    id: str | None
    input: str | None
    language: str | None
    prompt: str | None
    rationale: str | None
    seconds: str | None
    split: str | None
    strength: str | None
    system: str | None


MARGIN = "margin"  # read where a row has no strength


def read_preferences(path: Path, format: Format = "auto", given: Given = NOTHING_GIVEN) -> Found:
    """Read a preference file into comparisons and judgments, row by row.

    Raises:
        BadInput: the file cannot be read, a row is not JSON or CSV at all, or a column is not there.
    """
    return preferences_of(open_table(path, format, given), format)


def preferences_of(table: Table, format: Format = "auto") -> Found:
    """Read the preferences of a table.

    Raises:
        BadInput: a column is not there.
    """
    return _Reader(table, format).found()


class _Reader:
    """One file of preferences: its columns, and what was found so far."""

    FIELDS: tuple[Field, Field] = ("chosen", "rejected")

    def __init__(self, table: Table, format: Format) -> None:
        self.table = table
        self.used = _Used(**find_columns(table, _Used._fields))
        asked = table.given.columns
        if asked.chosen or asked.rejected:  # who maps one of them has to map both
            for field in self.FIELDS:
                asked.need(field, table.known, str(table.path))
        self.responses = (self.used.chosen or "chosen", self.used.rejected or "rejected")
        if "prompt" in self.responses:
            raise BadInput(f"{table.path}: column 'prompt' cannot hold a response; rename it, and map its new name")
        self.has_guessed_prompt = self.used.prompt not in (None, "prompt", asked.prompt)
        self.gathered = Gathering(
            table.path,
            table.given,
            f"import:{hashed_name(table.path)}",
            is_scored=table.is_scored,
        )
        first = next((row for _, row in table.rows if isinstance(row, dict)), {})
        self.is_hh = format == "hh" or (format != "trl" and self._looks_like_hh(first))

    def found(self) -> Found:
        """Read every row."""
        for number, row in self.table.rows:
            name = None
            try:
                if isinstance(row, Unusable):
                    raise row
                row = trimmed(row, {*self.responses})
                name = name_in(row, self.used.id)
                self._take(number, row, name)
            except Unusable as reason:
                self.gathered.drop(number, name, reason)
        notes = self.table.unread({*self.used, *BESIDE, MARGIN}) if self.table.rows else []
        return self.gathered.found(self._format(), len(self.table.rows), self.table.replaced[0], notes)

    def _take(self, number: int, row: Row, name: str | None) -> None:
        used = self.used
        annotator = self.gathered.name(row, used.annotator)
        if used.annotator is not None and annotator is None and self.table.given.annotator is None:
            raise Unusable(f"no annotator (column '{used.annotator}' is empty)")
        if annotator or self.table.given.annotator:
            self.gathered.refuse_copies(number, row)
        refuse_media(row)
        sides = storable(self._sides(row), self.table.replaced)
        sides = sides._replace(prompt=with_system(sides.prompt, cell_of(row, used.system)))
        check(sides, self.responses)
        refuse_empty(sides.responses[0])
        self.gathered.add(
            number,
            Judged(
                sides,
                RANKING,
                annotator=annotator,
                name=name,
                own_id=name,
                size=self._size(row),
                split=name_in(row, used.split),
                language=name_in(row, used.language),
                flags=[UNKNOWN_SIDES],  # the order in a file is not an order on a screen
                rationale=name_in(row, used.rationale),
                seconds=self.gathered.number(row, used.seconds, lambda seconds: seconds >= 0),
                tools=tools_of(row.get("tools")),
                template_arguments=template_arguments_of(row),
            ),
        )

    def _sides(self, row: Row) -> Sides:
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
        return sides_of(asked_with(cells, cell_of(row, self.used.input)), self.responses)

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
        size = self.gathered.number(row, column)
        if size is not None and size < 0:
            self.gathered.counted["rows give the chosen response the lower score; their strength is left out"] += 1
            return None
        return size

    def _looks_like_hh(self, row: Row) -> bool:
        chosen = row.get(self.responses[0])
        has_prompt = self.used.prompt is not None and row.get(self.used.prompt)
        return not has_prompt and isinstance(chosen, str) and HH_TURN.match(chosen) is not None

    def _format(self) -> str:
        container = self.table.container
        if self.is_hh:
            return "hh"
        return "csv" if container in ("csv", "tsv") else "parquet" if container == "parquet" else "trl"


def hh_sides(row: Row, columns: tuple[str, str]) -> Sides:
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
    return Sides(chosen[:-1], [chosen[-1:], rejected[-1:]])


def _holds_prompt(cell: Any) -> bool:
    """Whether a response is a dialogue that begins with its prompt."""
    if isinstance(cell, str):
        return spoken(cell) is not None
    return isinstance(cell, list) and len(cell) > 1
