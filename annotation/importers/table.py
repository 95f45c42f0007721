"""A file of rows with columns, laid out as its readers want it: by a user's map, by a published schema, by own names.

In: JSON lines, JSON, CSV or Parquet, and what a user says of it. Out: rows whose columns can be found, what the columns
hold, and which columns nothing was read from. A file that fits nothing is refused with its columns, the nearest schema
and a command to start from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from align.core.config import BadInput
from annotation.importers.columns import Columns, Field, Labels
from annotation.importers.formats import Container, Format, container_of
from annotation.importers.intake import Given, Unusable, cleaned, is_missing
from annotation.importers.mapping import start_from
from annotation.importers.published import Kind, Schema, schema_of
from annotation.importers.turns import decoded

Row = dict[str, Any]
RESPONSES: tuple[Field, ...] = ("chosen", "rejected", "left", "right")
USUAL: Mapping[str, tuple[str, ...]] = {
    "annotator": (
        *("annotator_id", "_annotator_id", "worker", "worker_id", "WorkerId", "workerId"),
        *("labeler", "labeler_id", "labeller", "rater", "rater_id"),
    ),
    "prompt": ("instruction", "question", "query", "input", "conversations"),
    "strength": ("margin",),
    "system": ("system_prompt",),
}


class Table(NamedTuple):
    """Rows by number, each as it is read or why it cannot be, the columns there are, and characters replaced.

    ``given`` is what the user said, and what the schema says where the user did not.
    """

    path: Path
    container: Container
    rows: list[tuple[int, Row | Unusable]]
    known: frozenset[str]
    replaced: list[int]
    given: Given
    schema: Schema | None

    @property
    def knows_sides(self) -> bool:
        """Whether left and right are where the responses stood on a screen: the user's own map says so."""
        return self.schema is None or self.schema.knows_sides

    @property
    def is_scored(self) -> bool:
        """Whether strengths are differences of scores."""
        return self.schema is not None and self.schema.is_scored

    def unread(self, used: set[str | None]) -> list[str]:
        """What to say of columns that nothing was read from."""
        signs = {*self.schema.signs, *self.schema.makes} if self.schema else set()
        roots = {name.partition(".")[0] for name in used if name}
        names = [name or "(without a name)" for name in sorted(self.known - used - roots - signs)]
        return [f"columns not read: {', '.join(names)}"] if names else []


def open_table(path: Path, format: Format, given: Given) -> Table:
    """Read a file's rows and find out how it is laid out.

    Raises:
        BadInput: it cannot be read, or holds something else than comparisons.
    """
    container = container_of(path, format)
    replaced = [0]
    whole = list(cleaned(path, container, replaced, given.limit, whole=True))
    known = {name for _, row in whole for name in row}
    raw = [(number, {key: cell for key, cell in row.items() if not is_missing(cell)}) for number, row in whole]
    _resolve_dots(raw, known, given.columns.model_dump().values())
    schema = None if _is_mapped(given.columns) else schema_of(known)
    rows: list[tuple[int, Row | Unusable]] = list(raw)
    if schema is not None:
        if schema.refusal:
            raise BadInput(f"{path}: it looks like {schema.name} (columns {', '.join(schema.signs)}): {schema.refusal}")
        _resolve_dots(raw, known, schema.columns.model_dump().values())
        if schema.prepare is not None:
            rows = [(number, _prepared(row, schema)) for number, row in raw]
            known |= {*schema.makes}
        given = _with_schema(given, schema, known)
    return Table(path, container, rows, frozenset(known), replaced, given, schema)


def kind_of(table: Table) -> Kind:
    """Whether rows hold a better and a worse response, or two and a label.

    Raises:
        BadInput: neither can be found.
    """
    columns = table.given.columns
    if columns.chosen or columns.rejected:
        return "preferences"
    if columns.left or columns.right:
        return "votes"
    if table.schema is not None:
        return table.schema.kind
    if not table.rows:
        return "preferences"
    raise BadInput(start_from(table.path, [row for _, row in table.rows if isinstance(row, dict)]))


def find_columns(
    table: Table, fields: Collection[str], known: Collection[str] | None = None, where: str | None = None
) -> dict[str, Any]:
    """The column of each field, None where there is none.

    A prompt is looked for under other names only where the user mapped nothing; ``input`` belongs to an instruction.
    A column that is mapped to one thing is no other thing by its name; it may be what the row is called, too.

    Args:
        known, where: the columns there are and what holds them, if more than the table does.

    Raises:
        BadInput: a column that the user named is not there.
    """
    columns, known, where = table.given.columns, known or table.known, where or str(table.path)
    mapped = {*columns.model_dump(exclude_none=True).values()}
    found: dict[str, Any] = {}
    for field in fields:
        usual = () if field == "prompt" and table.schema is None else USUAL.get(field, ())
        is_free = field == "id" or getattr(columns, field) is not None
        free = [name for name in known if is_free or name not in mapped]
        found[field] = columns.find(cast(Field, field), free, where, usual)
    if columns.input is None:
        free = [name for name in ("input", "context") if name in known and name not in mapped]
        found["input"] = free[0] if free and found["prompt"] == "instruction" else None
    return found


def trimmed(row: Row, responses: set[str]) -> Row:
    """A row without its empty cells; a response may be empty."""
    return {name: value for name, value in row.items() if value != "" or name in responses}


def _is_mapped(columns: Columns) -> bool:
    """Whether the user says where the responses stand: then no schema has a say."""
    return any(getattr(columns, field) for field in RESPONSES)


def _prepared(row: Row, schema: Schema) -> Row | Unusable:
    try:
        return row | schema.prepare(row) if schema.prepare else row
    except Unusable as reason:
        return reason


def _with_schema(given: Given, schema: Schema, known: set[str]) -> Given:
    """What a user said, completed by what a schema says of columns that are there."""
    own = {name: column for name, column in schema.columns.model_dump(exclude_none=True).items() if column in known}
    columns = Columns(**(own | given.columns.model_dump(exclude_none=True)))
    labels = schema.labels if given.labels == Labels() and columns.label == own.get("label") else given.labels
    return given._replace(columns=columns, labels=labels)


def _resolve_dots(rows: list[tuple[int, Row]], known: set[str], columns: Any) -> None:
    """Columns like ``info.post`` and ``summaries.0.text`` are read out of what stands in ``info`` and ``summaries``."""
    for column in columns:
        if column is None or column in known or "." not in column:
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
