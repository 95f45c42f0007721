"""The rows of the bridge's own tables: what they are, and the one way in which they are read and written.

A row is a named tuple whose fields bear the names of the table's columns; a field that is no plain value is JSON in its
column. The chain does not cover these tables, so rows are checked as they are read. Not here: the queries
(``ledger.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, Json, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic's condition below Python 3.12

from align.core.config import BadInput
from annotation.store.store import Store

ERASED = "erased"  # outcome of an annotation that was erased from the store, and may still be on the server
Purpose = Literal["work", "gold", "repeat", "calibration"]


def _moment(text: str) -> str:
    datetime.fromisoformat(text)
    return text


Moment = Annotated[str, AfterValidator(_moment)]  # ISO 8601, as the server gives it


class CampaignState(NamedTuple):
    """Where a campaign lives and how far it was read; ``watermark`` is the server's own time of its last change.

    ``interface`` is JSON; ``pulled_at`` is when a pull last came to its end, by the clock here.
    """

    name: str
    url: str
    project: int
    interface: str
    config_hash: str
    watermark: Moment | None
    recovered: bool
    pulled_at: Moment | None = None


class OfferedLabels(TypedDict, total=False):
    """The part of an interface that says which labels it offers."""

    labels: list[str] | None


class KnownAnswer(NamedTuple):
    """What is right about a comparison: tie groups of responses, best first, or the label of a single response.

    Responses that ``ranking`` leaves out come after those it names and are not compared with each other.
    ``is_attention``: everybody who reads gets it right. ``family`` is the prompt's, which says whether a task is
    concealed.
    """

    ranking: list[list[int]] | None = None
    label: str | None = None
    is_attention: bool = False
    family: str = ""


class Task(NamedTuple):
    """A comparison as it was (or will be) shown: ``shown`` are canonical response numbers in screen order.

    ``shown`` is empty as long as nothing was drawn: an answer is known, and no task was sent from here. ``pages`` is
    the hash of what it shows (``interface.config.shown_hash``).
    """

    key: str
    comparison_id: str
    shown: Json[list[int]]
    purpose: Purpose = "work"
    answer: Json[KnownAnswer] | None = None
    guideline: str | None = None
    task_id: int | None = None
    pages: str | None = None


class Pulled(NamedTuple):
    """An annotation that was read: by id and creation time (ids are used again by the server).

    ``seconds`` is the time on the task, as the labelling page measured it.
    """

    annotation_id: int
    created_at: Moment
    task_id: int
    key: str | None
    annotator: str
    digest: str
    outcome: str
    seconds: float | None = None


class Quarantined(NamedTuple):
    """An annotation that could not be read as a judgment, and why; ``body`` is what the server gave."""

    annotation_id: int
    created_at: str
    task_id: int
    key: str | None
    annotator: str | None
    reason: str
    body: Json[dict[str, Any]] | None


class Refresh(NamedTuple):
    """A task came to show other guidelines at a moment of the server's clock (None: when is not known)."""

    key: str
    older: str | None
    moment: Moment | None


class GuidelineVersion(NamedTuple):
    """A text of guidelines by its hash, and since when a campaign has shown it."""

    campaign: str
    sha256: str
    since: str


RowT = TypeVar("RowT", bound=tuple[Any, ...])


def select(
    store: Store,
    kind: type[RowT],
    table: str,
    condition: str = "",
    values: Sequence[Any] = (),
    columns: Sequence[str] = (),
) -> list[RowT]:
    """Read the rows of a table that a condition (``WHERE ... ORDER BY ...``) chooses.

    Args:
        kind: a named tuple whose fields are the columns, or the tuple type of ``columns``.

    Raises:
        BadInput: a row that was never written here.
    """
    rows = []
    names = columns or kind._fields  # type: ignore[attr-defined]  # without columns, kind is a named tuple
    for row in store.read(f"SELECT {', '.join(names)} FROM {table} {condition}", tuple(values)):
        try:
            rows.append(_schema(kind).validate_python(row))
        except (ValueError, TypeError, RecursionError) as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise BadInput(
                f"{store.path}: damaged: table {table}, row {row[0]!r} holds what is never written there ({why}); "
                "restore a backup, or move the file away, push and 'pull --full'"
            ) from None
    return rows


def insert(store: Store, table: str, rows: Iterable[NamedTuple], *, keep: bool = False, **fixed: Any) -> None:
    """Write rows in place of those with the same key (``keep``: which stay); ``fixed`` are columns that all share."""
    listed = list(rows)
    if not listed:
        return
    columns = (*fixed, *listed[0]._fields)
    statement = f"INSERT OR {'IGNORE' if keep else 'REPLACE'} INTO {table} ({', '.join(columns)}) VALUES "
    values = [(*fixed.values(), *map(stored, row)) for row in listed]
    store.write(f"{statement}({', '.join('?' * len(columns))})", values)


def stored(value: Any) -> Any:
    """Return a field as its column holds it."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return json.dumps(value._asdict())
    return json.dumps(value) if isinstance(value, list | dict) else value


@cache
def _schema(kind: type[RowT]) -> TypeAdapter[RowT]:
    return TypeAdapter(kind)
