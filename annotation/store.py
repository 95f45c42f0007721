"""``feedback.db``: comparisons and every judgment ever made of them, in a log that shows when it was edited.

In: comparisons and judgments. Out: the latest judgment of each person on each comparison, the head of the chain,
and a verdict on the whole file. One SQLite file in WAL mode; every call that writes is one transaction, so a
process killed at any moment leaves what stood before it; one writer at a time.

The log holds hashes only: ``entry = sha256(previous entry + salted hash of the body + sequence)``. The bodies
(text, names) and their salts stand in a second table, so that ``erase`` can remove a person's words and name for
good while the chain still verifies. An erasure is an entry of the chain itself: a body that is gone without one is
damage. The head of the chain, not the file's hash, is what a run's lineage records. A chain cannot show that its own
tail was cut together with the file's note of its length: ``verify(known_heads=...)`` compares with heads that runs
recorded. Not here: who saw what (the annotation interface's business) and how votes become pairs (``votes.py``).
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Self, TypeVar, get_args

from pydantic import ValidationError

from align.core.config import BadInput
from annotation.chain import GENESIS, body_fault, entry_hash, salted_hash
from annotation.database import claim, connect
from annotation.types import Comparison, Judgment, Record

Split = Literal["train", "validation", "test"]
STRICTNESS: dict[str | None, int] = {None: 0, **{name: rank for rank, name in enumerate(get_args(Split), 1)}}
RecordT = TypeVar("RecordT", bound=Record)


class Verification(NamedTuple):
    """Whether the store is what was written: ``problems`` names each damaged row, empty when ``ok``."""

    ok: bool
    entries: int
    erased: int
    head: str
    problems: list[str]


class Counts(NamedTuple):
    """What stands in a store: ``judgments`` are latest versions, ``versions`` all that were kept."""

    comparisons: int
    judgments: int
    versions: int
    annotators: int
    erased: int


class _Entry(NamedTuple):
    kind: str
    comparison_id: str | None
    annotator: str | None
    source: str | None
    body: str


class Store:
    """An open feedback store; use it as a context manager made by ``Store.open``."""

    def __init__(self, path: Path, connection: sqlite3.Connection, guard: IO[str] | None) -> None:
        self.path = path
        self._connection = connection
        self._guard = guard

    @classmethod
    def open(cls, path: Path, write: bool = False) -> Store:
        """Open a store, creating it when writing.

        Raises:
            BadInput: nothing to read, not a feedback store, written by a newer version, or another writer has it.
        """
        if not write and not path.is_file():
            raise BadInput(f"{path}: no such feedback store; run 'import' or 'annotate simulate' first")
        guard = claim(path) if write else None
        try:
            return cls(path, connect(path, write), guard)
        except BaseException:
            if guard:
                guard.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()
        if self._guard:
            self._guard.close()

    def add_comparisons(self, comparisons: Iterable[Comparison], splits: Mapping[str, Split] | None = None) -> int:
        """Add comparisons that are not there yet, with a split hint by id; returns how many entries that made.

        A comparison that stands there is left alone unless its hint became stricter (train < validation < test):
        a prompt once held out stays held out.
        """
        hints = splits or {}
        with self.transaction():
            return self._append(self._new_comparisons(comparisons, hints))

    def add_judgments(self, judgments: Iterable[Judgment]) -> int:
        """Add judgments; returns how many entries that made.

        The same judgment again adds nothing; another judgment of the same annotator, comparison and source is a new
        version, and the old one is kept.

        Raises:
            BadInput: a judgment names a comparison that is not in the store, or ranks another number of responses.
        """
        with self.transaction():
            return self._append(self._new_judgments(judgments))

    def withdraw(self, keys: Iterable[tuple[str, str, str]], reason: str) -> int:
        """Take back the standing judgments of (comparison id, annotator, source); their versions stay in the log.

        What does not stand is passed over; returns how many entries that made.
        """
        with self.transaction():
            standing = {key for key, kind, _ in self._latest_judgments() if kind == "judgment"}
            gone = [key for key in keys if key in standing]
            return self._append(
                _Entry("withdrawal", *key, json.dumps({"withdrawal": list(key), "reason": reason})) for key in gone
            )

    def comparisons(self) -> list[Comparison]:
        """All comparisons that were not erased, by id."""
        bodies = sorted(self._latest_comparisons().items())
        return [self._parse(Comparison, body["comparison"]) for _, body in bodies]

    def splits(self) -> dict[str, Split | None]:
        """The split hint of each comparison, by id."""
        return {key: body["split"] for key, body in sorted(self._latest_comparisons().items())}

    def judgments(self) -> list[Judgment]:
        """The latest version of each judgment that was not withdrawn, by comparison, annotator and source."""
        latest = [body for _, kind, body in self._latest_judgments() if kind == "judgment"]
        return [self._parse(Judgment, json.loads(body)["judgment"]) for body in latest]

    def head(self) -> str:
        """Hash of the last entry of the chain (64 zeros when it is empty): what lineage records."""
        rows = self.read("SELECT head FROM tip")
        return str(rows[0][0]) if rows else GENESIS

    def counts(self) -> Counts:
        """How much stands in the store."""
        row = self.read(
            "SELECT COUNT(DISTINCT CASE kind WHEN 'comparison' THEN comparison_id END),"
            " COALESCE(SUM(kind = 'judgment'), 0), COUNT(DISTINCT annotator) FROM bodies"
        )[0]
        latest = sum(kind == "judgment" for _, kind, _ in self._latest_judgments())
        return Counts(row[0], latest, row[1], row[2], len(self._erased()))

    def erase(self, *, annotator: str | None = None, comparison_id: str | None = None) -> int:
        """Remove text, names and salts of one annotator or one comparison for good; returns how many bodies went.

        Raises:
            BadInput: not exactly one of the two is named, or a reader keeps the old pages alive.
        """
        if (annotator is None) == (comparison_id is None):
            raise BadInput("erase needs exactly one of annotator and comparison_id")
        column, value = ("annotator", annotator) if annotator is not None else ("comparison_id", comparison_id)
        gone = [row[0] for row in self.read(f"SELECT sequence FROM bodies WHERE {column} = ?", (value,))]
        if gone:
            with self.transaction():
                self._append([_Entry("erasure", None, None, None, json.dumps({"erased": gone}))])
                self._connection.executemany("DELETE FROM bodies WHERE sequence = ?", [(number,) for number in gone])
        busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise BadInput(f"{self.path}: erased, but a reader keeps old pages on disk; close it and erase once more")
        return len(gone)

    def verify(self, known_heads: Iterable[str] = ()) -> Verification:
        """Recompute the chain and compare every body with it.

        Args:
            known_heads: heads that runs recorded earlier; each must still be an entry of the chain.
        """
        problems: list[str] = []
        entries: set[str] = {GENESIS}
        erased = self._erased()
        previous, expected = GENESIS, 1
        query = (
            "SELECT log.sequence, salted_hash, entry_hash, body, salt, kind, comparison_id, annotator, source "
            "FROM log LEFT JOIN bodies USING (sequence) ORDER BY log.sequence"
        )
        for sequence, salted, entry, *body in self.read(query):
            if sequence != expected:
                problems.append(f"row {expected}{f' to {sequence - 1}' if sequence - expected > 1 else ''}: missing")
            elif entry != entry_hash(previous, salted, sequence):
                problems.append(f"row {sequence}: does not follow from the row before it (changed or reordered)")
            if fault := body_fault(salted, body, sequence in erased):
                problems.append(f"row {sequence}: {fault}")
            entries.add(entry)
            previous, expected = entry, sequence + 1
        tip = self.read("SELECT length, head FROM tip")
        if (tip[0] if tip else (0, GENESIS)) != (expected - 1, previous):
            problems.append(f"the log ends at row {expected - 1}, not where it was left: rows are missing at its end")
        for (sequence,) in self.read("SELECT sequence FROM bodies WHERE sequence NOT IN (SELECT sequence FROM log)"):
            problems.append(f"row {sequence}: a body that the log does not know")
        problems += [f"head {head[:12]}: recorded by a run, not in this chain" for head in {*known_heads} - entries]
        return Verification(not problems, len(entries) - 1, len(erased), previous, problems)

    def _new_comparisons(self, comparisons: Iterable[Comparison], hints: Mapping[str, Split]) -> Iterator[_Entry]:
        known: dict[str, str | None] = {key: body["split"] for key, body in self._latest_comparisons().items()}
        for comparison in comparisons:
            hint = hints.get(comparison.id)
            if comparison.id in known and STRICTNESS[hint] <= STRICTNESS[known[comparison.id]]:
                continue
            known[comparison.id] = hint
            body = json.dumps({"comparison": comparison.model_dump(), "split": hint})
            yield _Entry("comparison", comparison.id, None, None, body)

    def _new_judgments(self, judgments: Iterable[Judgment]) -> Iterator[_Entry]:
        sizes = {key: len(body["comparison"]["responses"]) for key, body in self._latest_comparisons().items()}
        query = (
            "SELECT kind, body FROM bodies WHERE kind IN ('judgment', 'withdrawal') AND comparison_id = ? "
            "AND annotator = ? AND source = ? ORDER BY sequence DESC"
        )
        for judgment in judgments:
            size = sizes.get(judgment.comparison_id)
            if size is None:
                raise BadInput(f"{self.path}: a judgment names comparison {judgment.comparison_id}; add that one first")
            if size != len(judgment.shown):
                raise BadInput(
                    f"{self.path}: a judgment ranks {len(judgment.shown)} responses, but comparison "
                    f"{judgment.comparison_id} has {size}"
                )
            version = 1
            key = (judgment.comparison_id, judgment.annotator, judgment.source)
            if rows := self._connection.execute(query, key).fetchall():
                before = next(json.loads(body)["judgment"] for kind, body in rows if kind == "judgment")
                version = before["version"] + 1
                same = Judgment.model_validate({**before, "version": judgment.version}) == judgment
                if same and rows[0][0] == "judgment":
                    continue
            yield _Entry("judgment", *key, json.dumps({"judgment": {**judgment.model_dump(), "version": version}}))

    def _latest_judgments(self) -> list[tuple[tuple[str, str, str], str, str]]:
        """(comparison id, annotator, source), kind (judgment or withdrawal) and body of each key's last entry."""
        query = (
            "SELECT comparison_id, annotator, source, kind, body FROM bodies WHERE kind IN ('judgment', 'withdrawal') "
            "ORDER BY comparison_id, annotator, source, sequence"
        )
        latest = {(row[0], row[1], row[2]): (row[3], row[4]) for row in self.read(query)}
        return [(key, kind, body) for key, (kind, body) in latest.items()]

    def _append(self, new: Iterable[_Entry]) -> int:
        """Write entries at the end of the chain; runs inside a transaction."""
        tip = self.read("SELECT length, head FROM tip")
        start, head = tip[0] if tip else (0, GENESIS)
        sequence = start
        for entry in new:
            sequence += 1
            salt = os.urandom(16)
            salted = salted_hash(salt, entry.body)
            head = entry_hash(head, salted, sequence)
            self._connection.execute("INSERT INTO log VALUES (?, ?, ?)", (sequence, salted, head))
            self._connection.execute("INSERT INTO bodies VALUES (?, ?, ?, ?, ?, ?, ?)", (sequence, *entry, salt))
        self._connection.execute("INSERT OR REPLACE INTO tip VALUES (1, ?, ?)", (sequence, head))
        return sequence - start

    def _latest_comparisons(self) -> dict[str, dict[str, Any]]:
        rows = self.read("SELECT comparison_id, body FROM bodies WHERE kind = 'comparison' ORDER BY sequence")
        return {key: json.loads(body) for key, body in dict(rows).items()}

    def _erased(self) -> set[int]:
        """Sequences of erased bodies; a damaged erasure erases nothing (``verify`` names it by its hash)."""
        erased: set[int] = set()
        for (body,) in self.read("SELECT body FROM bodies WHERE kind = 'erasure'"):
            with suppress(ValueError, TypeError, KeyError):
                erased |= set(json.loads(body)["erased"])
        return erased

    def _parse(self, schema: type[RecordT], value: Any) -> RecordT:
        try:
            return schema.model_validate(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise BadInput(f"{self.path}: holds a damaged {schema.__name__.lower()} ({reason}); verify it") from None

    def read(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        """Rows of a query."""
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise BadInput(f"{self.path}: cannot be read ({error})") from error

    def write(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Execute a statement once a row; the ledger's way in, inside a transaction of the caller's or its own."""
        with self.transaction():
            self._connection.executemany(statement, list(rows))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing: what is written inside stands only when the (outermost) block ends well."""
        if self._guard is None:
            raise BadInput(f"{self.path}: was opened for reading; open it with write=True")
        if self._connection.in_transaction:  # part of a larger one
            yield
            return
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise BadInput(f"{self.path}: cannot be written ({error}); nothing was changed") from error
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


def store_head(path: Path) -> dict[str, str]:
    """The chain head of a store as a stage's ``heads``: what it read is known by this, not by the file's bytes."""
    with Store.open(path) as store:
        return {"feedback": store.head()}
