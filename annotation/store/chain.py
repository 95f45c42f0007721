"""The log of the feedback store: what its entries and their bodies hold, and what is wrong with them.

In: rows of the log and of the bodies beside it, in order, or the JSON text of one body. Out: the head of the chain and
each damage; a comparison with its split hint, a judgment, or the lookup columns of a row; and the marks of
what was erased. pydantic reads the text itself, which takes a third of the time of ``json`` and a second pass; what it
does not read (a lone surrogate is text to ``json`` alone) is read that way. Not here: where the rows come from
(``store.py``).
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic's condition below Python 3.12

from align.core.records import Comparison, Judgment

GENESIS = "0" * 64
Split = Literal["train", "validation", "test"]
STRICTNESS: dict[str | None, int] = {None: 0, **{name: rank for rank, name in enumerate(get_args(Split), 1)}}
BodyT = TypeVar("BodyT")


class DamagedBody(ValueError):
    """A text is no body of its kind."""


class ComparisonBody(TypedDict):
    comparison: Comparison
    split: Split | None


class JudgmentBody(TypedDict):
    judgment: Judgment


class _Responses(TypedDict):
    responses: list[Any]


class Outline(TypedDict):
    """The little of a comparison's body that adding to the store asks for."""

    comparison: _Responses
    split: Split | None


COMPARISON, JUDGMENT, OUTLINE = TypeAdapter(ComparisonBody), TypeAdapter(JudgmentBody), TypeAdapter(Outline)


def parse(schema: TypeAdapter[BodyT], text: str) -> BodyT:
    """Read a body.

    Raises:
        DamagedBody: the text is no such body.
    """
    try:
        return schema.validate_json(text)
    except ValidationError:
        with suppress(ValueError, TypeError, RecursionError):
            return schema.validate_python(json.loads(text))
        raise DamagedBody from None


def lookup_columns(text: str) -> list[str | None]:
    """Return the lookup columns of a body: kind, comparison id, annotator, source."""
    body = json.loads(text)
    if "erased" in body:
        return ["erasure", None, None, None]
    if "comparison" in body:
        return ["comparison", body["comparison"]["id"], None, None]
    if "withdrawal" in body:
        return ["withdrawal", *body["withdrawal"]]
    judgment = body["judgment"]
    return ["judgment", judgment["comparison_id"], judgment["annotator"], judgment["source"]]


class Verification(NamedTuple):
    """Whether the store is what was written: ``problems`` names each damaged row, empty when ``ok``."""

    ok: bool
    entries: int
    erased: int
    head: str
    problems: list[str]


class Walk(NamedTuple):
    """The log from its first row to its last: its entry hashes (and genesis), where it ends, and what is wrong."""

    entries: set[str]
    length: int
    head: str
    problems: list[str]


class ErasedIds(NamedTuple):
    """The annotators, comparisons and tasks that were erased and are not taken again, as keyed hashes.

    The key is in the same file: a mark cannot be read backwards, but whoever holds the file can test a name against it.
    Without that, nothing erased could be recognised.
    """

    salt: bytes
    marks: frozenset[str]

    def holds(self, kind: Literal["annotator", "comparison", "task"], name: str | None) -> bool:
        return bool(self.marks) and name is not None and mark(self.salt, kind, name) in self.marks


def mark(salt: bytes, kind: str, name: str) -> str:
    """Return a keyed hash of a name; names of different kinds never share one."""
    return hmac.new(salt, f"{kind}\0{name}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def fingerprint(salt: bytes) -> str:
    """Return the hash of the key of an erasure's marks, by which another key is noticed."""
    return hashlib.sha256(b"salt\0" + salt).hexdigest()


def salted_hash(salt: bytes, body: str) -> str:
    """Return the hash that the log keeps of a body; without the salt it reveals nothing about the text."""
    return hashlib.sha256(salt + body.encode("utf-8", "surrogatepass")).hexdigest()


def entry_hash(previous: str, salted_hash: str, sequence: int) -> str:
    """Return the hash of an entry: of the one before it, its body's salted hash and its place."""
    return hashlib.sha256(f"{previous}{salted_hash}{sequence}".encode()).hexdigest()


def walk(rows: Iterable[tuple[Any, ...]], erased: set[int]) -> Walk:
    """Recompute the chain over rows of (sequence, salted hash, entry hash, body, salt, lookup columns)."""
    problems: list[str] = []
    entries = {GENESIS}
    previous, expected = GENESIS, 1
    for sequence, salted, entry, body, salt, *columns in rows:
        if sequence != expected:
            problems.append(f"row {expected}{f' to {sequence - 1}' if sequence - expected > 1 else ''}: missing")
        elif entry != entry_hash(previous, salted, sequence):
            problems.append(f"row {sequence}: does not follow from the row before it (changed or reordered)")
        if fault := body_fault(salted, body, salt, columns, sequence in erased):
            problems.append(f"row {sequence}: {fault}")
        entries.add(entry)
        previous, expected = entry, sequence + 1
    return Walk(entries, expected - 1, previous, problems)


def body_fault(expected: str, body: Any, salt: Any, columns: list[str | None], is_erased: bool) -> str | None:
    """Return what is wrong with a body (its text, salt and lookup columns), or None."""
    if body is None:
        return None if is_erased else "its text is gone, and no erasure says so"
    if is_erased:
        return "was erased, yet its text is there"
    if not isinstance(salt, bytes) or not isinstance(body, str) or salted_hash(salt, body) != expected:
        return "its text or salt was changed"
    return None if columns == lookup_columns(body) else "its lookup columns were changed"
