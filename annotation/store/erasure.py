"""`annotate erase`: a person's words and name, or a comparison's text, out of a feedback store for good.

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
from typing import Any, NamedTuple

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
DELETED = "delete each by itself (DELETE api/annotations/ID/, or the bin in its task), and the account after that"


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
    records, unread = read_records(runs)
    fault = None
    with Store.open(feedback, write=True, create=False) as store:
        rows = belongings(store, annotator=annotator, comparison=comparison)
        if not rows:
            _require_known(store, annotator, comparison)
        words, sequences, judged = _traces(store, annotator, comparison)
        server = _on_server(store, annotator, comparison)
        try:
            remove(store, annotator=annotator, comparison=comparison)
        except Unfinished as error:
            fault = error
        direct = readers(records, places(store), sequences)
        elsewhere, verified = _mentions(store, words), store.verify()
    whole = {**direct, **descendants(records, direct)}
    known = [Path(path).resolve() for path in whole]
    yield Erased(
        what=f"{feedback}: " + (f"annotator {annotator}" if annotator is not None else f"comparison {comparison}"),
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


def belongings(store: Store, *, annotator: str | None = None, comparison: str | None = None) -> dict[str, int]:
    """How many rows of each table speak of an annotator or a comparison; tables without one are left out."""
    value = annotator if annotator is not None else comparison
    counts = {
        table: int(store.read(f"SELECT COUNT(*) FROM {table} WHERE {condition}", (value,))[0][0])
        for table, condition in _conditions(store, "annotator" if annotator is not None else "comparison_id").items()
    }
    return {table: count for table, count in counts.items() if count}


def remove(store: Store, *, annotator: str | None = None, comparison: str | None = None) -> int:
    """Remove the rows of an annotator or a comparison from every table and page; returns how many entries' bodies went.

    Raises:
        BadInput: the store cannot be written; as ``Unfinished`` where a reader or a full disk keeps old pages alive.
    """
    column, value = ("annotator", annotator) if annotator is not None else ("comparison_id", comparison)
    sequences: list[int] = []
    with store.transaction():
        if belongings(store, annotator=annotator, comparison=comparison):
            sequences = [row[0] for row in store.read(f"SELECT sequence FROM bodies WHERE {column} = ?", (value,))]
            tasks = store.read("SELECT DISTINCT key FROM tasks WHERE comparison_id = ?", (comparison,))
            marks = [_mark(store, annotator, comparison), *sorted(mark(store.salt(), "task", row[0]) for row in tasks)]
            store.erase_bodies(sequences, marks)
            for table, condition in _conditions(store, column).items():
                change = "UPDATE pulled SET " + FORGOTTEN if table == "pulled" else f"DELETE FROM {table}"
                store.write(f"{change} WHERE {condition}", [(value,)])
    store.database.rewrite()
    return len(sequences)


def _conditions(store: Store, column: str) -> dict[str, str]:
    """Which rows of which table speak of an annotator or a comparison; read from the schema, so that none is forgotten.

    Tables that know a comparison by its tasks come before the tasks.
    """
    conditions = {}
    by_task = "(campaign, key) IN (SELECT campaign, key FROM tasks WHERE comparison_id = ?)"
    for (table,) in store.read("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name = 'tasks'"):
        columns = {row[1] for row in store.read(f"PRAGMA table_info({table})")}
        if column in columns:
            conditions[table] = f"{column} = ?"
        elif column == "comparison_id" and {"campaign", "key"} <= columns:
            conditions[table] = by_task
    return conditions


def _require_known(store: Store, annotator: str | None, comparison: str | None) -> None:
    """Refuse a name that the store does not hold, unless it was erased before."""
    erased_ids = store.erased_ids()
    if erased_ids.holds("annotator", annotator) or erased_ids.holds("comparison", comparison):
        return
    kind, wanted = ("annotator", str(annotator)) if annotator is not None else ("comparison_id", str(comparison))
    known = [row[0] for row in store.read(f"SELECT DISTINCT {kind} FROM bodies WHERE {kind} IS NOT NULL")]
    near = difflib.get_close_matches(wanted, known, n=1)
    whence = (
        "'align annotate people --config F' says who is called what"
        if annotator is not None
        else "the rows.jsonl of its import, or 'align annotate export', holds the ids of comparisons"
    )
    hint = f"did you mean '{near[0]}'?" if near else whence
    raise BadInput(f"{store.path}: knows no {kind.partition('_')[0]} '{wanted}'; {hint}")


def _traces(store: Store, annotator: str | None, comparison: str | None) -> tuple[list[str], list[int], set[str]]:
    """Before they go: the words by which they are found elsewhere, their entries, and whatever a person judged.

    Entries that were erased before count too: a second erasure lists all runs again.
    """
    own = _mark(store, annotator, comparison)
    before = [number for e in store.erasures() if own in e.get("kept_out", ()) for number in e["erased"]]
    if annotator is not None:
        rows = store.read("SELECT sequence, comparison_id FROM bodies WHERE annotator = ?", (annotator,))
        words = [annotator, alias(store.salt(), annotator)]
        return words, [*before, *(row[0] for row in rows)], {row[1] for row in rows}
    rows = store.read("SELECT sequence, kind, body FROM bodies WHERE comparison_id = ?", (comparison,))
    texts: list[str] = []
    for body in [row[2] for row in rows if row[1] == "comparison"][-1:]:
        texts = _texts(store.parse(COMPARISON, body)["comparison"])
    return [str(comparison), *texts], [*before, *(row[0] for row in rows)], set()


def _mark(store: Store, annotator: str | None, comparison: str | None) -> str:
    kind, name = ("annotator", annotator) if annotator is not None else ("comparison", comparison)
    return mark(store.salt(), kind, str(name))


def _texts(comparison: Comparison) -> list[str]:
    messages = [*comparison.prompt, *(message for r in comparison.responses for message in r.messages)]
    texts = [str(message.get(name) or "") for message in messages for name in ("content", "reasoning_content")]
    return [text for text in dict.fromkeys(texts) if len(text) >= SHORTEST]


def _on_server(store: Store, annotator: str | None, comparison: str | None) -> list[str]:
    """The annotations or tasks that remain on labelling servers, by campaign, and how to delete them there."""
    if annotator is not None:
        kind, query = "annotations", "SELECT annotation_id FROM pulled WHERE campaign = ? AND annotator = ? ORDER BY 1"
    else:
        kind = "tasks"
        query = "SELECT task_id FROM tasks WHERE campaign = ? AND comparison_id = ? AND task_id IS NOT NULL ORDER BY 1"
    places = []
    for name, url, project in store.read("SELECT name, url, project FROM campaigns ORDER BY name"):
        ids = [row[0] for row in store.read(query, (name, annotator if annotator is not None else comparison))]
        how = DELETED if annotator is not None else "delete them (Data Manager, or DELETE api/tasks/ID/)"
        if ids:
            numbers = ", ".join(map(str, ids))
            places.append(f"{url} project {project} (campaign {name}): {kind} {numbers}: {how}")
    return places


def _mentions(store: Store, words: Sequence[str]) -> list[str]:
    """Where the store still holds these words, by table and column, with the comparisons of those rows."""
    pattern = _pattern(words)
    mentions = []
    for (table,) in store.read("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"):
        columns = [row[1] for row in store.read(f"PRAGMA table_info({table})")]
        hits: dict[str, list[dict[str, Any]]] = {column: [] for column in columns}
        for values in store.database.rows(f"SELECT * FROM {table}"):
            row = dict(zip(columns, values, strict=True))
            for column, value in row.items():
                if isinstance(value, str) and pattern.search(value.encode("utf-8", "replace")):
                    hits[column].append(row)
        for column, rows in hits.items():
            comparisons = sorted({row["comparison_id"] for row in rows if row.get("comparison_id")})
            few = ", ".join(comparisons[:LISTED]) + (
                f" and {len(comparisons) - LISTED} more" if len(comparisons) > LISTED else ""
            )
            mentions += (
                [f"{table}.{column}, {len(rows)} rows{f' (comparisons {few})' if comparisons else ''}"] if rows else []
            )
    return mentions


def _holding(folder: Path, words: Sequence[str]) -> list[Path]:
    """Text and Parquet files under a folder that hold one of the words."""
    pattern = _pattern(words)
    files = [file for file in files_under(folder) if file.suffix in (*TEXT_FILES, ".parquet")]
    return [file for file in files if any(pattern.search(part) for part in _contents(file))]


def _contents(file: Path) -> Iterator[bytes]:
    """The contents of a file: its bytes, and the rows of a Parquet file, which is compressed, as JSON too."""
    yield file.read_bytes()
    if file.suffix == ".parquet":
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        with suppress(ArrowException):  # damaged or another program's: its bytes were searched
            for batch in ParquetFile(file).iter_batches():
                yield json.dumps(batch.to_pylist(), default=str).encode()


def _pairs_of(folder: Path, comparisons: set[str]) -> list[Path]:
    """Files to train on, under a folder, that name one of these comparisons."""
    paths = []
    for file in files_under(folder) if comparisons else []:
        rows = file.read_bytes() if file.suffix == ".jsonl" else b""
        is_ours = b'"chosen"' in rows or b'"completion"' in rows
        if is_ours and any(name.decode() in comparisons for name in COMPARISON_ID.findall(rows)):
            paths.append(file)
    return paths


def _pattern(words: Sequence[str]) -> re.Pattern[bytes]:
    """A pattern of the words in plain text, JSON, JSON within JSON, or HTML, and not as a part of longer words."""
    forms: dict[str, None] = {}
    for word in words:
        escaped = json.dumps(word)[1:-1]
        forms |= dict.fromkeys((word, escaped, json.dumps(escaped)[1:-1], json.dumps(word, ensure_ascii=False)[1:-1]))
        forms |= dict.fromkeys((html.escape(word), html.escape(word, quote=False)))
    choices = b"|".join(re.escape(form.encode("utf-8", "replace")) for form in forms)
    return re.compile(rb"(?<![\w-])(?:" + choices + rb")(?![\w-])")
