"""`annotate erase`: remove a person's words and name, or a comparison's text, from a feedback store for good.

In: a store, an annotator's name in it or a comparison's id, and a folder of runs. Out: a store without them, whose
chain still verifies and records the erasure; and a list of everything that was made of them, of files
that still hold the name or the text, and of what a labelling server keeps. Nothing but the store is changed.

What was erased stays out: the erasure's entry in the chain holds keyed hashes of the name, the comparison and its
tasks, and the ledger the numbers of the annotations; whatever bears one is passed over from then on, be it pulled,
pushed, imported or simulated again. There is no way back within a store. Who loses the store loses these marks too, so
what is still on a server must be deleted there.
"""

from __future__ import annotations

import difflib
import html
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from align.core.config import BadInput
from align.core.files import files_under
from align.core.records import Comparison
from annotation.store.chain import COMPARISON, Verification, mark
from annotation.store.database import Unfinished
from annotation.store.exports import alias
from annotation.store.lineage import DependentRun, descendants, places, read_records, readers
from annotation.store.store import Store
from annotation.store.tables import ERASED

FORGOTTEN = f"key = NULL, annotator = '', digest = '', outcome = '{ERASED}', seconds = NULL"
TEXT_FILES = (".json", ".jsonl", ".html", ".md", ".yaml", ".csv", ".tsv", ".txt")
SHORTEST = 20  # characters of a text that is searched for elsewhere; shorter ones occur everywhere
LISTED = 20  # comparisons named in one line
COMPARISON_ID = re.compile(rb'"comparison_id": ?"([0-9a-f]{16})"')
NAMES = {  # where the names of targets are listed
    "annotator": "'align annotate people --config F' says who is called what",
    "comparison": "the rows.jsonl of its import, or 'align annotate export', holds the ids of comparisons",
}
DELETION = {  # how to delete what remains of a target on a labelling server
    "annotator": "delete each by itself (DELETE api/annotations/ID/, or the bin in its task), then the account",
    "comparison": "delete them (Data Manager, or DELETE api/tasks/ID/)",
}


class ErasureTarget(NamedTuple):
    """What is erased: an annotator by the name in the store, or a comparison by its id."""

    kind: Literal["annotator", "comparison"]
    name: str

    @property
    def column(self) -> str:
        return "annotator" if self.kind == "annotator" else "comparison_id"


class Erased(NamedTuple):
    """What an erasure did, and what it could not do.

    ``rows`` are the rows that went, by table; ``runs`` depend on them; ``pairs`` are files that no such run made, with
    pairs of comparisons that the person judged; ``files`` and ``elsewhere`` still hold the name or the text; ``unread``
    are runs whose records could not be read.
    """

    what: str
    rows: dict[str, int]
    runs: list[DependentRun]
    pairs: list[Path]
    files: list[Path]
    elsewhere: list[str]
    server: list[str]
    unread: list[str]


def erase(
    *,
    annotator: str | None = None,
    comparison: str | None = None,
    feedback: Path = Path("feedback.db"),
    runs: Path = Path("runs"),
) -> Iterator[Erased | Verification]:
    """Erase one annotator or one comparison, list what was made of it, and verify the chain.

    Args:
        annotator: the annotator's name in the store.
        comparison: the comparison's id.
        feedback: the feedback store.
        runs: a folder of runs, searched for what was made of it and for files that still hold it.

    Raises:
        BadInput: not exactly one of the two is named, the store knows neither, or cannot be written; at the last line
            where rows are gone but old pages of the file are still held, or where the store is damaged beside that.
    """
    if (annotator is None) == (comparison is None):
        raise BadInput("align annotate erase: name exactly one of annotator=NAME and comparison=ID")
    if runs != Path("runs") and not runs.is_dir():
        raise BadInput(f"{runs}: no such folder of runs; name the one whose runs read this store with runs=")
    target = (
        ErasureTarget("comparison", str(comparison)) if annotator is None else ErasureTarget("annotator", annotator)
    )
    records, unread = read_records(runs)
    fault = None
    with Store.open(feedback, write=True, create=False) as store:
        rows = rows_of(store, target)
        if not rows:
            _require_known(store, target)
        words, sequences, judged = _traces(store, target)
        server = _on_server(store, target)
        try:
            remove(store, target)
        except Unfinished as error:
            fault = error
        direct = readers(records, places(store), sequences)
        elsewhere, verified = _mentions(store, words), store.verify()
    whole = {**direct, **descendants(records, direct)}
    known = [Path(path).resolve() for path in whole]
    yield Erased(
        what=f"{feedback}: {target.kind} {target.name}",
        rows=rows,
        runs=list(whole.values()),
        pairs=[f for f in _pairs_of(runs, judged) if not any(f.resolve().is_relative_to(run) for run in known)],
        files=_holding(runs, words),
        elsewhere=elsewhere,
        server=server,
        unread=unread,
    )
    if fault is not None:
        raise fault
    if not verified.ok:
        raise BadInput(f"{feedback}: erased, and damaged beside that: {'; '.join(verified.problems)}")
    yield verified


def rows_of(store: Store, target: ErasureTarget) -> dict[str, int]:
    """Count the rows of each table that belong to a target; tables without one are left out."""
    counts = {
        table: int(store.read(f"SELECT COUNT(*) FROM {table} WHERE {condition}", (target.name,))[0][0])
        for table, condition in _conditions(store, target.column).items()
    }
    return {table: count for table, count in counts.items() if count}


def remove(store: Store, target: ErasureTarget) -> int:
    """Remove a target's rows from every table and page; returns how many entries of the log lost their bodies.

    Raises:
        BadInput: the store cannot be written; as ``Unfinished`` where a reader or a full disk keeps old pages alive.
    """
    sequences: list[int] = []
    with store.transaction():
        if rows_of(store, target):
            query = f"SELECT sequence FROM bodies WHERE {target.column} = ?"
            sequences = [row[0] for row in store.read(query, (target.name,))]
            tasks = []
            if target.kind == "comparison":
                tasks = store.read("SELECT DISTINCT key FROM tasks WHERE comparison_id = ?", (target.name,))
            marks = sorted(mark(store.salt(), "task", row[0]) for row in tasks)
            store.erase_bodies(sequences, [mark(store.salt(), *target), *marks])
            for table, condition in _conditions(store, target.column).items():
                change = "UPDATE pulled SET " + FORGOTTEN if table == "pulled" else f"DELETE FROM {table}"
                store.write(f"{change} WHERE {condition}", [(target.name,)])
    store.rewrite()
    return len(sequences)


def _conditions(store: Store, column: str) -> dict[str, str]:
    """Return which rows of each table belong to a target, read from the schema, so that no table is forgotten.

    Tables that know a comparison by its tasks come before the tasks.
    """
    conditions = {}
    by_task = "(campaign, key) IN (SELECT campaign, key FROM tasks WHERE comparison_id = ?)"
    for table, columns in _columns(store).items():
        if column in columns:
            conditions[table] = f"{column} = ?"
        elif column == "comparison_id" and {"campaign", "key"} <= set(columns):
            conditions[table] = by_task
    return conditions


def _columns(store: Store) -> dict[str, list[str]]:
    """Return the columns of each table, the tasks last."""
    tables = store.read("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name = 'tasks'")
    return {table: [row[1] for row in store.read(f"PRAGMA table_info({table})")] for (table,) in tables}


def _require_known(store: Store, target: ErasureTarget) -> None:
    """Refuse a name that the store does not hold, unless it was erased before."""
    if store.erased_ids().holds(target.kind, target.name):
        return
    column = target.column
    known = [row[0] for row in store.read(f"SELECT DISTINCT {column} FROM bodies WHERE {column} IS NOT NULL")]
    near = difflib.get_close_matches(target.name, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else NAMES[target.kind]
    raise BadInput(f"{store.path}: knows no {target.kind} '{target.name}'; {hint}")


def _traces(store: Store, target: ErasureTarget) -> tuple[list[str], list[int], set[str]]:
    """Return the words that name a target elsewhere, its entries in the log, and the comparisons that a person judged.

    Entries that were erased before count too: a second erasure lists all runs again.
    """
    own = mark(store.salt(), *target)
    before = [number for e in store.erasures() if own in e.get("kept_out", ()) for number in e["erased"]]
    query = f"SELECT sequence, comparison_id, kind, body FROM bodies WHERE {target.column} = ? ORDER BY sequence"
    rows = store.read(query, (target.name,))
    sequences = [*before, *(row[0] for row in rows)]
    if target.kind == "annotator":
        return [target.name, alias(store.salt(), target.name)], sequences, {row[1] for row in rows}
    texts: list[str] = []
    for body in [row[3] for row in rows if row[2] == "comparison"][-1:]:
        texts = _texts(store.parse(COMPARISON, body)["comparison"])
    return [target.name, *texts], sequences, set()


def _texts(comparison: Comparison) -> list[str]:
    messages = [*comparison.prompt, *(message for r in comparison.responses for message in r.messages)]
    texts = [str(message.get(name) or "") for message in messages for name in ("content", "reasoning_content")]
    return [text for text in dict.fromkeys(texts) if len(text) >= SHORTEST]


def _on_server(store: Store, target: ErasureTarget) -> list[str]:
    """List the annotations or tasks that remain on labelling servers, and how to delete them there."""
    number, table = ("annotation_id", "pulled") if target.kind == "annotator" else ("task_id", "tasks")
    wanted = f"campaign = ? AND {target.column} = ? AND {number} IS NOT NULL"
    query = f"SELECT {number} FROM {table} WHERE {wanted} ORDER BY 1"
    remaining = []
    for name, url, project in store.read("SELECT name, url, project FROM campaigns ORDER BY name"):
        if ids := ", ".join(str(row[0]) for row in store.read(query, (name, target.name))):
            kind = number.replace("_id", "s")
            remaining.append(f"{url} project {project} (campaign {name}): {kind} {ids}: {DELETION[target.kind]}")
    return remaining


def _mentions(store: Store, words: Sequence[str]) -> list[str]:
    """List where the store still holds these words, by table and column, with the comparisons of those rows."""
    pattern = _pattern(words)
    mentions = []
    for table, columns in sorted(_columns(store).items()):
        rows: dict[str, list[dict[str, Any]]] = {column: [] for column in columns}
        for values in store.rows(f"SELECT * FROM {table}"):
            row = dict(zip(columns, values, strict=True))
            for column, value in row.items():
                if isinstance(value, str) and pattern.search(value.encode("utf-8", "replace")):
                    rows[column].append(row)
        for column, mentioning in rows.items():
            ids = sorted({row["comparison_id"] for row in mentioning if row.get("comparison_id")})
            more = f" and {len(ids) - LISTED} more" if len(ids) > LISTED else ""
            comparisons = f" (comparisons {', '.join(ids[:LISTED])}{more})" if ids else ""
            mentions += [f"{table}.{column}, {len(mentioning)} rows{comparisons}"] if mentioning else []
    return mentions


def _holding(folder: Path, words: Sequence[str]) -> list[Path]:
    """List text and Parquet files under a folder that hold one of the words."""
    pattern = _pattern(words)
    files = [file for file in files_under(folder) if file.suffix in (*TEXT_FILES, ".parquet")]
    return [file for file in files if any(pattern.search(part) for part in _contents(file))]


def _contents(file: Path) -> Iterator[bytes]:
    """Yield the bytes of a file, and the rows of a Parquet file, which is compressed, as JSON too."""
    yield file.read_bytes()
    if file.suffix == ".parquet":
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        with suppress(ArrowException):  # damaged or another program's: its bytes were searched
            for batch in ParquetFile(file).iter_batches():
                yield json.dumps(batch.to_pylist(), default=str).encode()


def _pairs_of(folder: Path, comparisons: set[str]) -> list[Path]:
    """List files to train on, under a folder, that name one of these comparisons."""
    paths = []
    for file in files_under(folder) if comparisons else []:
        rows = file.read_bytes() if file.suffix == ".jsonl" else b""
        is_ours = b'"chosen"' in rows or b'"completion"' in rows
        if is_ours and any(name.decode() in comparisons for name in COMPARISON_ID.findall(rows)):
            paths.append(file)
    return paths


def _pattern(words: Sequence[str]) -> re.Pattern[bytes]:
    """Return a pattern of whole words in plain text, JSON, JSON within JSON, or HTML."""
    forms: dict[str, None] = {}
    for word in words:
        escaped = json.dumps(word)[1:-1]
        forms |= dict.fromkeys((word, escaped, json.dumps(escaped)[1:-1], json.dumps(word, ensure_ascii=False)[1:-1]))
        forms |= dict.fromkeys((html.escape(word), html.escape(word, quote=False)))
    choices = b"|".join(re.escape(form.encode("utf-8", "replace")) for form in forms)
    return re.compile(rb"(?<![\w-])(?:" + choices + rb")(?![\w-])")
