"""Keep comparisons and every judgment of them in ``feedback.db``, in a log that shows when it was edited.

In: comparisons and judgments. Out: the latest judgment of each person on each comparison, the head of the chain,
and a verdict on the whole file. Every call that writes is one transaction, so a process killed at any moment leaves
the file as it was before; there is one writer at a time.

The log holds hashes only: ``entry = sha256(previous entry + salted hash of the body + sequence)``. The bodies
(text, names) and their salts are in a second table, so that ``erase`` can remove a person's words and name for
good while the chain still verifies. An erasure is an entry of the chain itself: a body that is gone without one is
damage. It also holds marks, which name nobody, of what must not come back: neither comparisons nor judgments that bear
one are taken again, wherever they come from. The head of the chain, not the file's hash, is what a run's lineage
records. A chain cannot show that its own tail was cut together with the file's note of its length:
``verify(known_heads=...)`` compares with heads that runs recorded. Not here: who saw what (``ledger.py``), how votes
become pairs (``aggregation/votes.py``), and what an erasure means outside of the file (``erasure.py``).
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import TypeAdapter

from align.core.config import BadInput
from align.core.records import Comparison, Judgment
from annotation.store.chain import (
    COMPARISON,
    GENESIS,
    JUDGMENT,
    OUTLINE,
    STRICTNESS,
    BodyT,
    DamagedBody,
    ErasedIds,
    Split,
    Verification,
    entry_hash,
    fingerprint,
    parse,
    salted_hash,
    walk,
)
from annotation.store.database import Database


class Counts(NamedTuple):
    """The contents of a store: ``judgments`` are latest versions, ``versions`` all that were kept."""

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


class Store(Database):
    """An open feedback store; use it as a context manager made by ``Store.open``.

    ``passed_over`` counts what was offered and not taken because it was erased.
    """

    def __init__(self, path: Path, write: bool) -> None:
        super().__init__(path, write)
        self.passed_over = 0
        self._erased_ids: ErasedIds | None = None  # nobody else writes while this store is open for it

    @classmethod
    def open(cls, path: Path, write: bool = False, create: bool = True) -> Store:
        """Open a store; when writing, one that is not there is made (``create``).

        Raises:
            BadInput: nothing to read, not a feedback store, written by a newer version, or another writer has it.
        """
        if not (write and create) and not path.is_file():
            raise BadInput(
                f"{path}: no such feedback store; name it with feedback=, or let 'annotate push', 'import' or "
                "'annotate simulate' make it"
            )
        return cls(path, write)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add_comparisons(self, comparisons: Iterable[Comparison], splits: Mapping[str, Split] | None = None) -> int:
        """Add comparisons that are not there yet, with a split hint by id; returns how many entries that made.

        A comparison that is known already is left alone unless its hint became stricter (train < validation < test):
        a prompt once held out stays held out. One that was erased is passed over.
        """
        hints = splits or {}
        with self.transaction():
            return self._append(self._new_comparisons(comparisons, hints))

    def add_judgments(self, judgments: Iterable[Judgment]) -> int:
        """Add judgments; returns how many entries that made.

        The same judgment again adds nothing; another judgment of the same annotator, comparison and source is a new
        version, and the old one is kept. Judgments of an erased annotator or comparison are passed over.

        Raises:
            BadInput: a judgment names a comparison that is not in the store, or ranks another number of responses.
        """
        with self.transaction():
            return self._append(self._new_judgments(judgments))

    def withdraw(self, keys: Iterable[tuple[str, str, str]], reason: str) -> int:
        """Take back the standing judgments of (comparison id, annotator, source); their versions stay in the log.

        A judgment that is not in force is passed over; returns how many entries that made.
        """
        with self.transaction():
            gone = [key for key in keys if (versions := self._versions(key)) and versions[0][0] == "judgment"]
            return self._append(
                _Entry("withdrawal", *key, json.dumps({"withdrawal": list(key), "reason": reason})) for key in gone
            )

    def comparisons(self) -> list[Comparison]:
        """Return all comparisons that were not erased, by id."""
        with _collector_paused():
            bodies = sorted(self._comparison_bodies().items())
            return [self.parse(COMPARISON, body)["comparison"] for _, body in bodies]

    def comparison(self, comparison_id: str) -> Comparison | None:
        """Return one comparison by id; None where it is not there or was erased."""
        body = self._comparison_body(comparison_id)
        return None if body is None else self.parse(COMPARISON, body)["comparison"]

    def splits(self) -> dict[str, Split | None]:
        """Return the split hint of each comparison, by id."""
        bodies = sorted(self._comparison_bodies().items())
        return {key: self.parse(OUTLINE, body)["split"] for key, body in bodies}

    def judgments(self) -> list[Judgment]:
        """Return the latest version of each judgment that was not withdrawn, by comparison, annotator and source."""
        with _collector_paused():  # by the table, which the chain vouches for, and not by its index
            return self._latest("bodies NOT INDEXED", "", ())

    def judgments_of(self, comparison_id: str, source: str) -> list[Judgment]:
        """Return the same of one comparison and one source, by annotator."""
        return self._latest("bodies", "AND comparison_id = ? AND source = ?", (comparison_id, source))

    def sources(self) -> set[str]:
        """Return the sources of all judgments that were ever made."""
        return {row[0] for row in self.read("SELECT DISTINCT source FROM bodies WHERE kind = 'judgment'")}

    def holds_entry(self, head: str) -> bool:
        """Return whether the chain has an entry of this hash."""
        return bool(self.read("SELECT 1 FROM log WHERE entry_hash = ?", (head,)))

    def head(self) -> str:
        """Return the hash of the last entry of the chain (64 zeros when it is empty): what lineage records."""
        return self._tip()[1]

    def counts(self) -> Counts:
        """Count what is in the store."""
        row = self.read(
            "SELECT COUNT(DISTINCT CASE kind WHEN 'comparison' THEN comparison_id END),"
            " COALESCE(SUM(kind = 'judgment'), 0), COUNT(DISTINCT annotator) FROM bodies"
        )[0]
        latest = self.read(
            "SELECT COALESCE(SUM(kind = 'judgment'), 0) FROM (SELECT kind, MAX(sequence) FROM bodies "
            "WHERE kind IN ('judgment', 'withdrawal') GROUP BY comparison_id, annotator, source)"
        )[0]
        return Counts(row[0], latest[0], row[1], row[2], len(self._erased()))

    def salt(self) -> bytes:
        """Return the store's own secret: the key of pseudonyms and of the marks of what was erased."""
        match self.read("SELECT salt FROM secret"):
            case [(bytes(salt),)]:
                return salt
        raise self.damaged()

    def erasures(self) -> list[dict[str, Any]]:
        """Return the contents of erasures; a damaged one erases nothing (``verify`` names it by its hash)."""
        erasures = []
        for (body,) in self.read("SELECT body FROM bodies WHERE kind = 'erasure'"):
            with suppress(ValueError, TypeError, KeyError):
                erasure = json.loads(body)
                erasures.append({**erasure, "erased": {*erasure["erased"]}})
        return erasures

    def erased_ids(self) -> ErasedIds:
        """Return the marks of what was erased."""
        if self._erased_ids is None:
            marks = frozenset(mark for erasure in self.erasures() for mark in erasure.get("kept_out", []))
            self._erased_ids = ErasedIds(self.salt() if marks else b"", marks)
        return self._erased_ids

    def erase_bodies(self, sequences: Sequence[int], marks: Sequence[str]) -> None:
        """Remove bodies with their salts and record that in the chain, with the marks of what is not taken again.

        One part of an erasure, inside its transaction; the rest is ``erasure.py``'s.
        """
        self._erased_ids = None
        body = {"erased": list(sequences), "kept_out": list(marks), "salt": fingerprint(self.salt())}
        self._append([_Entry("erasure", None, None, None, json.dumps(body))])
        self.write("DELETE FROM bodies WHERE sequence = ?", [(sequence,) for sequence in sequences])

    def verify(self, known_heads: Mapping[str, str] | None = None) -> Verification:
        """Recompute the chain and compare every body with it.

        Args:
            known_heads: heads that were recorded earlier, with the name of who did; each must still be an entry.
        """
        erased = self._erased()
        query = (
            "SELECT log.sequence, salted_hash, entry_hash, body, salt, kind, comparison_id, annotator, source "
            "FROM log LEFT JOIN bodies USING (sequence) ORDER BY log.sequence"
        )
        entries, length, head, problems = walk(self.rows(query), erased)
        tip = self.read("SELECT length, head FROM tip")
        if (tip[0] if tip else (0, GENESIS)) != (length, head):
            problems.append(f"the log ends at row {length}, not where it was left: rows are missing at its end")
        for (sequence,) in self.read("SELECT sequence FROM bodies WHERE sequence NOT IN (SELECT sequence FROM log)"):
            problems.append(f"row {sequence}: a body that the log does not know")
        salts = {fingerprint(row[0]) for row in self.read("SELECT salt FROM secret") if isinstance(row[0], bytes)}
        if {erasure["salt"] for erasure in self.erasures() if "salt" in erasure} - salts:
            problems.append("the store's salt was changed: what was erased could be taken again")
        for known, name in sorted((known_heads or {}).items()):
            if known not in entries:
                problems.append(f"head {known[:12]}, which {name} recorded, is not in this chain: rows were rewritten")
        return Verification(not problems, len(entries) - 1, len(erased), head, problems)

    def _new_comparisons(self, comparisons: Iterable[Comparison], hints: Mapping[str, Split]) -> Iterator[_Entry]:
        known, erased_ids = self.splits(), self.erased_ids()
        for comparison in comparisons:
            hint = hints.get(comparison.id)
            if comparison.id in known and STRICTNESS[hint] <= STRICTNESS[known[comparison.id]]:
                continue
            if erased_ids.holds("comparison", comparison.id):
                self.passed_over += 1
                continue
            known[comparison.id] = hint
            body = json.dumps({"comparison": comparison.model_dump(), "split": hint})
            yield _Entry("comparison", comparison.id, None, None, body)

    def _new_judgments(self, judgments: Iterable[Judgment]) -> Iterator[_Entry]:
        erased_ids = self.erased_ids()
        sizes: dict[str, int | None] = {}
        for judgment in judgments:
            comparison_id, annotator = judgment.comparison_id, judgment.annotator
            if erased_ids.holds("annotator", annotator) or erased_ids.holds("comparison", comparison_id):
                self.passed_over += 1
                continue
            if comparison_id not in sizes:
                sizes[comparison_id] = self._size(comparison_id)
            if (size := sizes[comparison_id]) is None:
                raise BadInput(f"{self.path}: a judgment names comparison {comparison_id}; add that one first")
            if size != len(judgment.shown):
                raise BadInput(
                    f"{self.path}: a judgment ranks {len(judgment.shown)} responses, but comparison "
                    f"{comparison_id} has {size}"
                )
            version = 1
            key = (comparison_id, annotator, judgment.source)
            if rows := self._versions(key):
                text = next(body for kind, body in rows if kind == "judgment")
                before = self.parse(JUDGMENT, text)["judgment"]
                version = before.version + 1
                if rows[0][0] == "judgment" and before.model_copy(update={"version": judgment.version}) == judgment:
                    continue
            yield _Entry("judgment", *key, json.dumps({"judgment": {**judgment.model_dump(), "version": version}}))

    def _latest(self, table: str, condition: str, values: tuple[str, ...]) -> list[Judgment]:
        rows = self.read(
            f"SELECT comparison_id, annotator, source, kind, body FROM {table} "
            f"WHERE kind IN ('judgment', 'withdrawal') {condition} ORDER BY comparison_id, annotator, source, sequence",
            values,
        )
        latest = {row[:3]: row[3:] for row in rows}
        return [self.parse(JUDGMENT, body)["judgment"] for kind, body in latest.values() if kind == "judgment"]

    def _size(self, comparison_id: str) -> int | None:
        """Return how many responses a comparison has; None where it is not in the store."""
        body = self._comparison_body(comparison_id)
        return None if body is None else len(self.parse(OUTLINE, body)["comparison"]["responses"])

    def _comparison_body(self, comparison_id: str) -> str | None:
        query = "SELECT body FROM bodies WHERE kind = 'comparison' AND comparison_id = ? ORDER BY sequence DESC LIMIT 1"
        return next((body for (body,) in self.read(query, (comparison_id,))), None)

    def _versions(self, key: tuple[str, str, str]) -> list[Any]:
        """Return (kind, body) of a person's judgments and withdrawals under one source, the newest first."""
        query = (
            "SELECT kind, body FROM bodies WHERE kind IN ('judgment', 'withdrawal') AND comparison_id = ? "
            "AND annotator = ? AND source = ? ORDER BY sequence DESC"
        )
        return self.read(query, key)

    def _append(self, new: Iterable[_Entry]) -> int:
        """Write entries at the end of the chain; runs inside a transaction."""
        start, head = self._tip()
        sequence = start
        for entry in new:
            sequence += 1
            salt = os.urandom(16)
            salted = salted_hash(salt, entry.body)
            head = entry_hash(head, salted, sequence)
            self.connection.execute("INSERT INTO log VALUES (?, ?, ?)", (sequence, salted, head))
            self.connection.execute("INSERT INTO bodies VALUES (?, ?, ?, ?, ?, ?, ?)", (sequence, *entry, salt))
        self.connection.execute("INSERT OR REPLACE INTO tip VALUES (1, ?, ?)", (sequence, head))
        return sequence - start

    def _tip(self) -> tuple[int, str]:
        """Return how long the chain is, and the hash of its last entry."""
        rows = self.read("SELECT length, head FROM tip")
        match rows:
            case []:
                return 0, GENESIS
            case [(int(length), str(head))]:
                return length, head
        raise self.damaged()

    def _comparison_bodies(self) -> dict[str, str]:
        """Return the last body of each comparison by id."""
        return dict(
            self.read("SELECT comparison_id, body FROM bodies NOT INDEXED WHERE kind = 'comparison' ORDER BY sequence")
        )

    def _erased(self) -> set[int]:
        """Return sequences of erased bodies."""
        return {sequence for erasure in self.erasures() for sequence in erasure["erased"]}

    def parse(self, schema: TypeAdapter[BodyT], text: str) -> BodyT:
        """Read a body; a damaged one is a BadInput of one line."""
        try:
            return parse(schema, text)
        except DamagedBody:
            raise self.damaged() from None

    def damaged(self) -> BadInput:
        """Return the error of a row that this store cannot have written."""
        return BadInput(f"{self.path}: holds a damaged row; 'align annotate verify' names it")


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause garbage collection while very many objects are made that all stay: it took two thirds of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def store_head(path: Path) -> dict[str, str]:
    """Return the head of a store's chain, by which a stage identifies what it read, as ``input_hashes``."""
    with Store.open(path) as store:
        return {"feedback": store.head()}
