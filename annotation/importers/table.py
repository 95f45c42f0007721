"""Find the columns of a file of rows: by the user's map, by a published schema, or by their own names.

In: JSON lines, JSON, CSV or Parquet, and the settings of the file. Out: rows whose columns can be found, what the
columns hold, and which columns nothing was read from. A file that fits no schema is refused with its columns, the
nearest schema and a command to start from.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from align.core.config import BadInput
from align.core.plugins import calling
from annotation.importers.columns import READ, USUAL, Columns, FileKind, FileSettings, Labels
from annotation.importers.formats import Container, Format, cleaned, container_of, is_missing
from annotation.importers.imported import UnusableRow
from annotation.importers.importer import OTHERS, RANKED, Importer, Row, shipped
from annotation.importers.mapping import start_from
from annotation.importers.turns import decoded


class Table(NamedTuple):
    """Rows by number, each as it is read or why it cannot be, the columns there are, and characters replaced.

    ``settings`` are the user's, completed by the importer.
    """

    path: Path
    container: Container
    rows: list[tuple[int, Row | UnusableRow]]
    known: frozenset[str]
    replaced: list[int]
    settings: FileSettings
    importer: Importer | None

    @property
    def readable(self) -> list[Row]:
        return [row for _, row in self.rows if not isinstance(row, UnusableRow)]

    @property
    def knows_sides(self) -> bool:
        """Whether left and right are where the responses were on a screen: as in a user's own map."""
        return self.importer is None or self.importer.knows_sides

    def unread(self, used: set[str]) -> list[str]:
        """Return a note on columns that nothing was read from."""
        layout = self.importer.layout_in(self.known) if self.importer else None
        known_by = {*(layout or ()), *(self.importer.makes if self.importer else ())}
        roots = {name.partition(".")[0] for name in used}
        names = [name or "(without a name)" for name in sorted(self.known - used - roots - known_by)]
        return [f"columns not read: {', '.join(names)}"] if names else []


def open_table(path: Path, format: Format | Importer, settings: FileSettings) -> Table:
    """Read a file's rows and find out how it is laid out.

    Raises:
        BadInput: it cannot be read, holds something else than comparisons, or not what the named importer reads.
    """
    named = format if isinstance(format, Importer) else None
    container = container_of(path, "auto" if isinstance(format, Importer) else format)
    replaced = [0]
    whole = list(cleaned(path, container, replaced, settings.limit, whole=True))
    known = {name for _, row in whole for name in row}
    raw = [(number, {key: cell for key, cell in row.items() if not is_missing(cell)}) for number, row in whole]
    _resolve_dots(raw, known, settings.columns)
    importer = _importer(path, known, settings.columns, named)
    if importer is None:
        return Table(path, container, [*raw], frozenset(known), replaced, settings, None)
    _resolve_dots(raw, known, importer.columns)
    known |= {*importer.makes} | ({*RANKED} if importer.holds == "rankings" else set())
    rows = [(number, _rewritten(f"{path}: row {number}", row, importer, known)) for number, row in raw]
    return Table(path, container, rows, frozenset(known), replaced, _completed(settings, importer, known), importer)


def kind_of(table: Table) -> FileKind:
    """Return whether rows hold a better and a worse response, two and a label, or several.

    Raises:
        BadInput: none of these can be found.
    """
    columns = table.settings.columns
    if columns.chosen or columns.rejected:
        return "preferences"
    if columns.left or columns.right:
        return "votes"
    if table.importer is not None:
        return table.importer.holds
    if not table.rows:
        return "preferences"
    raise BadInput(start_from(table.path, table.readable))


def find_columns(
    table: Table, kind: FileKind, known: Collection[str] | None = None, where: str | None = None
) -> Columns:
    """Return the columns that a kind of file is read by, None where there is none.

    A prompt is looked for under other names only where the user mapped nothing; ``input`` belongs to an instruction.
    A column that is mapped to one thing is no other thing by its name; it may be what the row is called, too.

    Args:
        known, where: the columns there are and what holds them, if more than the table does.

    Raises:
        BadInput: a column that the user named is not there.
    """
    columns, known, where = table.settings.columns, known or table.known, where or str(table.path)
    names: dict[str, str | None] = {}
    for field in READ[kind]:
        usual = () if field == "prompt" and table.importer is None else USUAL.get(field, ())
        is_free = field == "id" or getattr(columns, field) is not None
        free = [name for name in known if is_free or name not in columns.named]
        names[field] = columns.find(field, free, where, usual)
    if columns.input is None:
        rest = [name for name in ("input", "context") if name in known and name not in columns.named]
        names["input"] = rest[0] if rest and names["prompt"] == "instruction" else None
    return Columns(**names)


def _importer(path: Path, known: set[str], columns: Columns, named: Importer | None) -> Importer | None:
    """Return the importer of a file: the named one, or, where the user does not map the responses, the first that fits.

    Raises:
        BadInput: the file does not have the named one's columns, or holds something else than comparisons.
    """
    if named is not None:
        if known and named.layout_in(known) is None:
            layouts = " or ".join(", ".join(layout) for layout in named.layouts)
            raise BadInput(
                f"{path}: format {named.kind} reads the columns {layouts}; it has {', '.join(sorted(known))}"
            )
        return named
    if columns.chosen or columns.rejected or columns.left or columns.right:
        return None
    if (importer := next((one for one in shipped() if one.layout_in(known)), None)) is not None:
        return importer
    if (other := next((other for other in OTHERS if {*other.layout} <= known), None)) is not None:
        raise BadInput(f"{path}: it looks like {other.name} (columns {', '.join(other.layout)}): {other.advice}")
    return None


def _rewritten(where: str, row: Row, importer: Importer, known: Collection[str]) -> Row | UnusableRow:
    """Return a row with what its importer makes of it, or the reason why it holds no judgment.

    Raises:
        BadInput: the importer's own code fails, or returns something other than columns that are known.
    """
    what = f"{where}: importer {importer.kind}"
    with calling(what, importer):
        try:
            made = importer.rewrite(copy.deepcopy(row))
        except UnusableRow as reason:
            return reason
    if not isinstance(made, dict) or not all(isinstance(column, str) for column in made):
        raise BadInput(f"{what}: rewrite returned {str(made)[:60]}, not columns by name; return a dict, {{}} for none")
    if undeclared := next((column for column in made if column not in known), None):
        raise BadInput(
            f"{what}: rewrite returned column '{undeclared}', which neither the file nor `makes` has; add it to makes"
        )
    return row | {column: list(cell) if isinstance(cell, tuple) else cell for column, cell in made.items()}


def _completed(settings: FileSettings, importer: Importer, known: set[str]) -> FileSettings:
    """Return the user's settings, completed by an importer for columns that are there."""
    own = {name: column for name, column in importer.columns.model_dump(exclude_none=True).items() if column in known}
    columns = Columns(**(own | settings.columns.model_dump(exclude_none=True)))
    is_own = settings.labels == Labels() and columns.label == own.get("label")
    return settings._replace(columns=columns, labels=importer.labels if is_own else settings.labels)


def _resolve_dots(rows: list[tuple[int, Row]], known: set[str], columns: Columns) -> None:
    """Read columns like ``info.post`` and ``summaries.0.text`` out of ``info`` and ``summaries``."""
    for column in columns.named - known:
        if "." not in column:
            continue
        for _, row in rows:
            if (value := _walk(row, column.split("."))) is not None:
                row[column] = value
                known.add(column)


def _walk(value: Any, steps: list[str]) -> Any:
    for step in steps:
        value = decoded(value)
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value
