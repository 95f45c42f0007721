"""What the bodies of the feedback store's log hold, read from their JSON text.

In: the text of a row. Out: a comparison with its split hint, a judgment, or the columns the row is looked up by.
pydantic reads the text itself, which takes a third of the time of ``json`` and a second pass; what it does not read
(a lone surrogate is text to ``json`` alone) is read that way. Not here: whether the text is what was written
(``chain.py``).
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, Literal, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic's condition below Python 3.12

from align.core.records import Comparison, Judgment

Split = Literal["train", "validation", "test"]
STRICTNESS: dict[str | None, int] = {None: 0, **{name: rank for rank, name in enumerate(get_args(Split), 1)}}
BodyT = TypeVar("BodyT")


class Damaged(ValueError):
    """A text is not the body it should be."""


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


class _Compared(TypedDict):
    id: str


class _Judged(TypedDict):
    comparison_id: str
    annotator: str
    source: str


class _Keys(TypedDict, total=False):
    erased: Any
    withdrawal: list[str]
    comparison: _Compared
    judgment: _Judged


COMPARISON, JUDGMENT, OUTLINE = TypeAdapter(ComparisonBody), TypeAdapter(JudgmentBody), TypeAdapter(Outline)
_KEYS = TypeAdapter(_Keys)


def parse(schema: TypeAdapter[BodyT], text: str) -> BodyT:
    """Read a body.

    Raises:
        Damaged: the text is no such body.
    """
    try:
        return schema.validate_json(text)
    except ValidationError:
        with suppress(ValueError, TypeError, RecursionError):
            return schema.validate_python(json.loads(text))
        raise Damaged from None


def lookup_columns(text: str) -> list[str | None]:
    """The columns that a body must stand under: kind, comparison id, annotator, source."""
    body = parse(_KEYS, text)
    if "erased" in body:
        return ["erasure", None, None, None]
    if "comparison" in body:
        return ["comparison", body["comparison"]["id"], None, None]
    if "withdrawal" in body:
        return ["withdrawal", *body["withdrawal"]]
    judgment = body["judgment"]
    return ["judgment", judgment["comparison_id"], judgment["annotator"], judgment["source"]]
