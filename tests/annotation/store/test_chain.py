"""The chain by itself: what its first entry follows from, which rows are missing, what is kept out."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from annotation.store.chain import GENESIS, ErasedIds, entry_hash, lookup_columns, mark, salted_hash, walk

BODY = '{"withdrawal": ["c", "ann", "test"]}'


def rows(n: int) -> list[tuple[Any, ...]]:
    made, previous = [], GENESIS
    for sequence in range(1, n + 1):
        salted = salted_hash(b"salt", BODY)
        previous = entry_hash(previous, salted, sequence)
        made.append((sequence, salted, previous, BODY, b"salt", *lookup_columns(BODY)))
    return made


def test_the_first_entry_follows_from_sixty_four_zeros() -> None:
    """Stores that were written with another beginning would read as damaged."""
    salted = hashlib.sha256(b"salt" + BODY.encode()).hexdigest()
    expected = hashlib.sha256(("0" * 64 + salted + "1").encode()).hexdigest()
    assert rows(1)[0][1:3] == (salted, expected)
    whole = walk(rows(3), set())
    assert (whole.length, whole.head, whole.problems) == (3, rows(3)[-1][2], [])
    assert whole.entries == {"0" * 64, *(row[2] for row in rows(3))}


@pytest.mark.parametrize(
    ("gone", "problem"),
    [
        ([1], "row 1: missing"),
        ([2], "row 2: missing"),
        ([2, 3], "row 2 to 3: missing"),
        ([3, 4, 5], "row 3 to 5: missing"),
    ],
)
def test_rows_that_are_gone_are_named(gone: list[int], problem: str) -> None:
    assert walk([row for row in rows(6) if row[0] not in gone], set()).problems == [problem]


@pytest.mark.parametrize("entry", ["0" * 64, "f" * 64])
def test_an_entry_that_does_not_follow_is_named_whichever_way_it_differs(entry: str) -> None:
    changed = rows(3)
    changed[2] = (*changed[2][:2], entry, *changed[2][3:])
    assert walk(changed, set()).problems == ["row 3: does not follow from the row before it (changed or reordered)"]


def test_only_what_was_erased_is_kept_out() -> None:
    salt = b"key"
    erased_ids = ErasedIds(salt, frozenset({mark(salt, "annotator", "ann"), mark(salt, "comparison", "None")}))
    assert erased_ids.holds("annotator", "ann") and not erased_ids.holds("annotator", "bob")
    assert not erased_ids.holds("comparison", "ann") and not erased_ids.holds("comparison", None)
    assert not ErasedIds(salt, frozenset()).holds("annotator", "ann")
