"""The hashes of the feedback store's log: what an entry is made of, and what is wrong with one."""

from __future__ import annotations

import hashlib
import json
from typing import Any

GENESIS = "0" * 64


def salted_hash(salt: bytes, body: str) -> str:
    """What the log keeps of a body: without the salt it says nothing about the text."""
    return hashlib.sha256(salt + body.encode("utf-8", "surrogatepass")).hexdigest()


def entry_hash(previous: str, salted_hash: str, sequence: int) -> str:
    """The hash of an entry: of the one before it, its body's salted hash and its place."""
    return hashlib.sha256(f"{previous}{salted_hash}{sequence}".encode()).hexdigest()


def body_fault(expected: str, row: list[Any], is_erased: bool) -> str | None:
    """What is wrong with a body (its text, salt and the columns it is looked up by), or None."""
    body, salt, *columns = row
    if body is None:
        return None if is_erased else "its text is gone, and no erasure says so"
    if is_erased:
        return "was erased, yet a text stands there"
    if not isinstance(salt, bytes) or not isinstance(body, str) or salted_hash(salt, body) != expected:
        return "its text or salt was changed"
    return None if columns == _columns(json.loads(body)) else "its lookup columns were changed"


def _columns(body: dict[str, Any]) -> list[str | None]:
    """The lookup columns that a body must stand under: kind, comparison id, annotator, source."""
    if "erased" in body:
        return ["erasure", None, None, None]
    if "comparison" in body:
        return ["comparison", body["comparison"]["id"], None, None]
    if "withdrawal" in body:
        return ["withdrawal", *body["withdrawal"]]
    judgment = body["judgment"]
    return ["judgment", judgment["comparison_id"], judgment["annotator"], judgment["source"]]
