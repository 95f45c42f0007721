"""`annotate export`: what a feedback store holds, as JSON lines or Parquet for whoever works on it elsewhere.

In: a store. Out, in a folder: ``comparisons``, ``judgments`` (every version, and which of them is in force), ``tasks``
(who was shown which side, and known answers: not for annotators), ``quarantine`` and ``export.json``, which records
what was written. Annotators bear aliases: keyed hashes whose key never leaves the store, so the same person has the
same alias in every export of a store, and nobody can find it by trying names. ``names`` shows them as the store knows
them.

Of annotations in quarantine the reason is exported, without what it quotes, and never the server's own row. What
people wrote in their own words (rationales, improved answers) is exported as it is. In Parquet, messages and whatever
else has no fixed shape are JSON text, and a lone surrogate becomes U+FFFD.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from align.core.config import BadInput
from align.core.files import write_bytes, write_json, write_jsonl
from annotation.store.chain import JUDGMENT, mark
from annotation.store.ledger import tasks_by_campaign
from annotation.store.store import Store
from annotation.store.tables import Quarantined, Task

Rows = list[dict[str, Any]]
ABOUT = "export.json"  # written last; by it a folder is known as an export, which may be written anew

QUOTED = re.compile(r"account \d+|'[^']*'|\"[^\"]*\"")  # what identifies a person, or quotes one, in a reason
SURROGATE = re.compile("[\ud800-\udfff]")
COLUMNS: Mapping[str, Sequence[str]] = {
    "comparisons": [
        "id", "split", "language", "prompt", "responses", "tools", "template_arguments", "item", "schema_version",
    ],
    "judgments": [
        "sequence", "stands", "comparison_id", "annotator", "version", "ranking", "shown", "strength", "margin",
        "flags", "label", "ratings", "rationale", "improved", "improved_from", "seconds", "guideline", "source",
    ],
    "tasks": ["campaign", *(name for name in Task._fields if name != "pages")],
    "quarantine": ["campaign", *(name for name in Quarantined._fields if name != "body")],
}  # fmt: skip
TYPES: Mapping[str, Sequence[str]] = {  # columns by their type in Parquet; all others are strings
    "int64": ["sequence", "version", "strength", "improved_from", "task_id", "annotation_id", "schema_version"],
    "float64": ["margin", "seconds"],
    "bool": ["stands"],
    "list<int64>": ["shown"],
    "list<list<int64>>": ["ranking"],
    "list<string>": ["flags"],
    "json": ["prompt", "responses", "tools", "template_arguments", "ratings", "answer"],  # text, having no fixed shape
}
TYPE_OF = {column: kind for kind, columns in TYPES.items() for column in columns}


class Exported(NamedTuple):
    """Where an export went, and how many rows of each table."""

    folder: Path
    rows: dict[str, int]
    annotators: str


def export(
    *,
    out: Path,
    feedback: Path = Path("feedback.db"),
    format: Literal["jsonl", "parquet"] = "jsonl",
    names: bool = False,
) -> Exported:
    """Write everything that a store holds to a folder.

    Args:
        out: a new or empty folder, or one that holds an earlier export.
        feedback: the feedback store.
        format: file format of the tables.
        names: annotators by their names in the store, not by aliases.

    Raises:
        BadInput: no such store, a damaged row, or a folder that holds no export and something else, or cannot be
            written.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / ABOUT).is_file():
        raise BadInput(f"{out}: holds files and no export; name a new or an empty folder with out=")
    with Store.open(feedback) as store:
        salt, head = store.salt(), store.head()
        tables = {
            "comparisons": _comparisons(store),
            "judgments": _judgments(store),
            "tasks": _tasks(store),
            "quarantine": _quarantine(store, names),
        }
    if not names:
        _conceal(salt, [*tables["judgments"], *tables["quarantine"]])
    with suppress(OSError):  # reported when the first table is written
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
    for table, whole in tables.items():
        rows = [{column: row.get(column) for column in COLUMNS[table]} for row in whole]
        for other in {"jsonl", "parquet"} - {format}:
            (out / f"{table}.{other}").unlink(missing_ok=True)  # an older export's, perhaps with names
        if format == "jsonl":
            write_jsonl(out / f"{table}.jsonl", rows)
        else:
            write_bytes(out / f"{table}.parquet", _parquet(rows, COLUMNS[table]))
    counts = {table: len(rows) for table, rows in tables.items()}
    annotators = "name, as the store knows them" if names else "alias"
    about = {"format": format, "annotators": annotators, "head": head, "rows": counts}
    write_json(out / ABOUT, about)
    return Exported(out, counts, annotators)


def alias(salt: bytes, annotator: str) -> str:
    """Return the name of an annotator in exports of the store that holds the salt."""
    return f"annotator-{mark(salt, 'alias', annotator)[:12]}"


def _conceal(salt: bytes, rows: Rows) -> None:
    """Put aliases in place of names, also where a name is part of a judgment's source."""
    known = {name: alias(salt, name) for row in rows if (name := row["annotator"])}
    for row in rows:
        if (name := row["annotator"]) and name in (row.get("source") or ""):
            row["source"] = row["source"].replace(name, known[name])
        row["annotator"] = known.get(name, name)


def _comparisons(store: Store) -> Rows:
    splits = store.splits()
    return [{**comparison.model_dump(), "split": splits[comparison.id]} for comparison in store.comparisons()]


def _judgments(store: Store) -> Rows:
    query = (
        "SELECT sequence, kind, comparison_id, annotator, source, body FROM bodies "
        "WHERE kind IN ('judgment', 'withdrawal') ORDER BY sequence"
    )
    rows: Rows = []
    last: dict[tuple[Any, ...], int] = {}  # by person, comparison and source
    for sequence, kind, *key, body in store.read(query):
        last[tuple(key)] = sequence
        if kind == "judgment":
            rows.append({"sequence": sequence, **store.parse(JUDGMENT, body)["judgment"].model_dump()})
    in_force = set(last.values())
    return [{**row, "stands": row["sequence"] in in_force} for row in rows]


def _tasks(store: Store) -> Rows:
    return [
        {"campaign": campaign, **task._asdict(), "answer": task.answer._asdict() if task.answer else None}
        for campaign, tasks in tasks_by_campaign(store).items()
        for task in tasks
    ]


def _quarantine(store: Store, names: bool) -> Rows:
    columns = COLUMNS["quarantine"]
    rows = store.read(f"SELECT {', '.join(columns)} FROM quarantine ORDER BY campaign, annotation_id, created_at")
    quarantined = [dict(zip(columns, row, strict=True)) for row in rows]
    return quarantined if names else [{**row, "reason": QUOTED.sub("(…)", row["reason"])} for row in quarantined]


def _parquet(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    def type_of(kind: str) -> pyarrow.DataType:
        if kind.startswith("list<"):
            return pyarrow.list_(type_of(kind[5:-1]))
        return pyarrow.type_for_alias("string" if kind == "json" else kind)

    kinds = {name: TYPE_OF.get(name, "string") for name in columns}
    schema = pyarrow.schema([(name, type_of(kind)) for name, kind in kinds.items()])
    values = [{name: _value(row[name], kind) for name, kind in kinds.items()} for row in rows]
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(values, schema=schema), buffer)
    return buffer.getvalue()


def _value(value: Any, kind: str) -> Any:
    """Return a value as Parquet takes it."""
    if value is None:
        return None
    if kind == "json":
        return json.dumps(value)
    if kind == "string":
        return SURROGATE.sub("\ufffd", value)
    return [_value(inner, "string") for inner in value] if kind == "list<string>" else value
