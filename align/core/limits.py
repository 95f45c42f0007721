"""Read data from outside within limits: depth of nesting, length of a row, size of a file or an answer.

In: bytes or text of a file or a server. Out: plain Python values, or an error before memory or the stack runs out.
Compressed data is measured as it is unpacked. A secret that a server repeats is masked in its answer. Not here:
what the data means, and the words of an error (the callers know the file, the row or the address).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any, AnyStr

MIB, GIB = 1 << 20, 1 << 30
MOST_LEVELS = 100  # of nesting: what is deeper would end some later step, that copies or writes it, at its own limit
MOST_ROW = 64 * MIB  # bytes of one line
MOST_ROWS = 4 * GIB  # bytes of a file that is read line by line, unpacked
MOST_WHOLE = 1 * GIB  # bytes of a file that is read in one piece, unpacked
MOST_ANSWER = 64 * MIB  # bytes of a server's answer, unpacked
SHORTEST_SECRET = 8  # characters: what is shorter is a placeholder ("EMPTY"), and a word that a text may hold

NESTING = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*"', re.DOTALL)


class TooLong(ValueError):
    """Data exceeds a limit; the message names the data and the limit."""


def parse_json(text: str | bytes, *, keys_once: bool = False) -> Any:
    """Return the value of a JSON text.

    Args:
        keys_once: refuse an object that gives a key twice.

    Raises:
        ValueError: the text is not JSON, is nested deeper than ``MOST_LEVELS``, or repeats a key.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    if text.count("[") + text.count("{") > MOST_LEVELS and _levels(text) > MOST_LEVELS:
        raise ValueError(f"nested deeper than {MOST_LEVELS} levels")
    return json.loads(text, object_pairs_hook=_once if keys_once else None)


def bounded_lines(file: IO[AnyStr], most_row: int = MOST_ROW, most: int = MOST_ROWS) -> Iterator[AnyStr]:
    """Yield the lines of an open file, with their ends.

    Raises:
        TooLong: a line, or all of them together, are longer than is read.
    """
    total = 0
    for number in range(1, most + 2):
        line = file.readline(most_row + 1)
        total += len(line)
        if len(line) > most_row:
            raise TooLong(f"line {number} is longer than {shown_size(most_row)}, the most that is read")
        if total > most:
            raise TooLong(f"holds more than {shown_size(most)} (unpacked), the most that is read; split it")
        if not line:
            return
        yield line


def bounded_bytes(file: IO[bytes], most: int = MOST_WHOLE) -> bytes:
    """Return all bytes of an open file or answer.

    Raises:
        TooLong: there are more than are read.
    """
    blocks, total = [], 0
    while block := file.read(min(MIB, most + 1 - total)):
        blocks.append(block)
        total += len(block)
        if total > most:
            raise TooLong(f"holds more than {shown_size(most)} (unpacked), the most that is read")
    return b"".join(blocks)


def masked(value: Any, secret: str | None) -> Any:
    """Copy a JSON value, in whose texts a secret is replaced by ``[key]``; no secret, or a placeholder, is none."""
    if not secret or len(secret) < SHORTEST_SECRET:
        return value
    if isinstance(value, str):
        return without_secret(value, secret)
    if isinstance(value, list):
        return [masked(item, secret) for item in value]
    if isinstance(value, dict):
        return {masked(key, secret): masked(item, secret) for key, item in value.items()}
    return value


def without_secret(text: str, secret: str) -> str:
    """Return ``text`` with ``[key]`` in place of a secret, in upper or lower case."""
    if secret.lower() not in text.lower():  # six times as fast as the pattern
        return text
    return re.sub(re.escape(secret), "[key]", text, flags=re.IGNORECASE)


def shown_size(count: int) -> str:
    """Return a number of bytes with its unit."""
    units = (("GiB", GIB), ("MiB", MIB), ("KiB", 1 << 10))
    return next((f"{count / size:g} {unit}" for unit, size in units if count >= size), f"{count} bytes")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key '{next(name for name in names if names.count(name) > 1)}' is given twice in an object")
    return row


def _levels(text: str) -> int:
    """Return how deep brackets are nested, without those inside of strings."""
    level = deepest = 0
    for mark in NESTING.finditer(text):
        if mark[0] in "[{":
            level += 1
            deepest = max(deepest, level)
        elif mark[0] in "]}":
            level -= 1
    return deepest
