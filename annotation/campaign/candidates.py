"""Make comparisons of candidates: rows of ``candidates.jsonl`` to comparisons of two, k or single responses.

Responses of several runs to one prompt are put together; equal ones are one. Which of them meet is drawn from a
seed and their content alone, never from the order of files or rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from align.core.config import BadInput
from align.core.files import read_jsonl
from align.core.records import Comparison, Message, Response, content_hash, prompt_id
from annotation.store.chain import STRICTNESS, Split

Drop = Callable[[str, int], None]  # counts what cannot be used, by reason


class CandidatePrompt(NamedTuple):
    """A prompt with its different responses; ``shared`` goes into its comparisons, ``columns`` to a utility."""

    messages: list[Message]
    responses: list[dict[str, Any]]
    shared: dict[str, Any]
    columns: dict[str, Any]
    split: Split | None


def read_candidates(paths: Sequence[Path], drop: Drop, *, keep_unended: bool, at_least: int) -> list[CandidatePrompt]:
    """Read candidate files (or the runs that wrote them); prompts with fewer than ``at_least`` responses are dropped.

    Raises:
        BadInput: a row is not a candidates row, named by file and number.
    """
    merged: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for path in paths:
        file = path / "candidates.jsonl" if path.is_dir() else path
        for number, row in enumerate(read_jsonl(file), 1):
            key, responses = _row(row, f"{file}: row {number}")
            merged.setdefault(key, (row, []))[1].extend(responses)
    prompts = [_distinct(row, responses, drop, keep_unended) for row, responses in merged.values()]
    kept = [prompt for prompt in prompts if len(prompt.responses) >= at_least]
    few = "prompt with fewer than two responses" if at_least == 2 else f"prompt with fewer than {at_least} responses"
    drop(few, len(prompts) - len(kept))
    return kept


def compare(prompt: CandidatePrompt, responses: Sequence[dict[str, Any]], drop: Drop) -> Comparison | None:
    """Return a comparison of some of a prompt's responses; None, counted, where it cannot be one."""
    try:
        sides = [Response.of(response) for response in responses]
        if any(side.is_empty for side in sides):
            drop("empty response", 1)
            return None
        return Comparison.model_validate({"prompt": prompt.messages, "responses": sides, **prompt.shared})
    except ValidationError as error:
        drop(f"unusable comparison: {error.errors()[0]['msg']}", 1)
        return None


def choose_groups(texts: Sequence[str], size: int, limit: int | None, seed: int, prompt: str) -> list[tuple[int, ...]]:
    """Return groups of ``size`` responses, by number: all of them, or ``limit`` drawn by seed and content."""
    groups = list(combinations(range(len(texts)), size))
    if limit is None or limit >= len(groups):
        return groups
    return sorted(groups, key=lambda group: lot(seed, "pair", prompt, *sorted(texts[i] for i in group)))[:limit]


def lot(seed: int, *parts: str) -> int:
    """Draw a 64-bit number from a seed and texts, which does not depend on other draws."""
    return int.from_bytes(hashlib.sha256("\0".join((str(seed), *parts)).encode()).digest()[:8], "big")


def _row(row: dict[str, Any], where: str) -> tuple[str, list[dict[str, Any]]]:
    try:
        responses = [dict(response) for response in row["responses"]]
        for response in responses:
            content_hash(response["messages"])
        key = prompt_id(row["prompt"], row.get("tools"))
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{where}: expected 'prompt' and 'responses' with 'messages' ({error!r})") from None
    if (row.get("split") or None) not in STRICTNESS:
        raise BadInput(f"{where}: split '{row['split']}' is none of train, validation, test")
    return key, responses


def _distinct(
    row: dict[str, Any], responses: Sequence[dict[str, Any]], drop: Drop, keep_unended: bool
) -> CandidatePrompt:
    """Merge equal responses (the first that ended, else the first), and leave out cut ones unless wanted."""
    merged: dict[str, dict[str, Any]] = {}
    for response in responses:
        response = {**response, "ended": bool(response.get("ended", True))}
        before = merged.setdefault(content_hash(response["messages"]), response)
        if response["ended"] and not before["ended"]:
            merged[content_hash(response["messages"])] = response
    drop("identical response", len(responses) - len(merged))
    shown = [response for response in merged.values() if keep_unended or response["ended"]]
    drop("response did not end", len(merged) - len(shown))
    shared = {key: row[key] for key in ("tools", "template_arguments", "language") if row.get(key)}
    columns = {key: row.get(key) for key in ("prompt_id", "family", "split")}
    return CandidatePrompt(row["prompt"], shown, shared, columns, row.get("split") or None)
