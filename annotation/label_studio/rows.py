"""What a labelling server lists, as named fields: projects, tasks, annotations, and the filters that ask for them.

In: decoded JSON. Out: named tuples, or one line about a form that is not known. Only this file
knows the server's field names. ``interface/decode.py`` decodes an annotation's ``result``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict  # pydantic's condition below Python 3.12

from align.core.config import BadInput

KEY = "pair_id"  # the field of a task's data that names it; ids are used again by the server
ItemT = TypeVar("ItemT")


LONGEST = 1e7  # seconds on one task: four months


class Project(NamedTuple):
    """A project of the server; ``created`` when this call made it."""

    id: int
    title: str
    config: str
    n_tasks: int
    votes: int
    created: bool = False


class Imported(NamedTuple):
    """Task ids by key of all rows asked for, and how many of them this call made.

    ``had_copies``: of some there were several, of which one was left; it need not be the one that this call sent.
    """

    ids: dict[str, int]
    new: int
    had_copies: bool


class Annotation(NamedTuple):
    """One person's answer to a task; ``updated_by`` differs from ``completed_by`` after somebody else's edit."""

    id: int
    task_id: int
    created_at: str
    updated_at: str
    completed_by: int | None
    updated_by: int | None
    was_cancelled: bool
    ground_truth: bool
    seconds: float | None
    result: Any
    body: dict[str, Any]


class StudioTask(NamedTuple):
    """A task with everything people answered; ``key`` is None when it is none of the bridge's.

    ``is_open``: the server waits for more people to judge it.
    """

    id: int
    key: str | None
    updated_at: str
    data: dict[str, Any]
    annotations: list[Annotation]
    is_open: bool


class Keyed(NamedTuple):
    """A task of the bridge's own, and how many people answered or skipped it."""

    id: int
    key: str
    n_answers: int


class _Row(TypedDict):
    """What the server lists: by an id, with whatever else was asked for."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]  # pydantic reads it, TypedDict knows no values

    id: int


class _Page(TypedDict):
    tasks: list[_Row]
    total: int


class _Sent(TypedDict):
    task_ids: list[int]


class _Overlap(TypedDict):
    overlap: int


class _Changed(TypedDict):
    updated_at: str


PAGE, ROWS = TypeAdapter(_Page), TypeAdapter(list[_Row])
EMAIL, USERS = TypeAdapter(str), TypeAdapter(list[tuple[int, str]])
PROJECT, TITLES = TypeAdapter(tuple[int, str, str, int, int]), TypeAdapter(tuple[int, list[tuple[int, str]]])
SENT, CHANGED, OVERLAP = TypeAdapter(_Sent), TypeAdapter(_Changed), TypeAdapter(_Overlap)


def read_task(row: Mapping[str, Any]) -> StudioTask:
    """A task with its annotations; drafts and predictions are left out."""
    with _known("task", row):
        answers = [read_annotation(answer, row["id"]) for answer in row["annotations"]]
        return StudioTask(row["id"], _key(row), row["updated_at"], dict(row["data"]), answers, not row["is_labeled"])


def read_annotation(row: Mapping[str, Any], task: int) -> Annotation:
    """An annotation of a task's list; ``result`` is passed on as it came."""
    with _known("annotation", row):
        return Annotation(
            id=row["id"],
            task_id=task,
            created_at=row["created_at"],
            updated_at=row["updated_at"],
            completed_by=person(row["completed_by"]),
            updated_by=person(row.get("updated_by")),
            was_cancelled=bool(row["was_cancelled"]),
            ground_truth=bool(row["ground_truth"]),
            seconds=_seconds(row.get("lead_time")),
            result=row["result"],
            body=dict(row),
        )


def _seconds(value: Any) -> float | None:
    """A time on a task that can be (every account may write any number there)."""
    return value if isinstance(value, int | float) and 0 <= value <= LONGEST else None


def read_keyed(rows: Iterable[Mapping[str, Any]]) -> list[Keyed]:
    """Those of the rows that are the bridge's own tasks."""
    tasks = []
    for row in rows:
        with _known("task", row):
            if (key := _key(row)) is not None:
                tasks.append(Keyed(row["id"], key, row["total_annotations"] + row["cancelled_annotations"]))
    return tasks


def first_ids(rows: Iterable[Keyed]) -> dict[str, int]:
    """Of copies the one that counts: an answered one before one that is not, then the oldest."""
    ordered = sorted(rows, key=lambda row: (not row.n_answers, row.id))
    ids: dict[str, int] = {}
    for row in ordered:
        ids.setdefault(row.key, row.id)
    return ids


def person(value: Any) -> int | None:
    """An account's id, which the server gives alone or within the account's fields."""
    number = value.get("id") if isinstance(value, dict) else value
    return number if isinstance(number, int) else None


def by_key(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Rows to send by their key.

    Raises:
        BadInput: a row without a key, a key that occurs twice, or what is no JSON (a lone surrogate, a NaN).
    """
    keyed: dict[str, Mapping[str, Any]] = {}
    for number, row in enumerate(rows):
        key = _key(row)
        if not key:
            raise BadInput(f"task {number}: its data has no '{KEY}', by which it is known on the server")
        if key in keyed:
            raise BadInput(f"task {number}: '{KEY}' {key} occurs twice; send one task per comparison")
        try:
            json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:  # one such row makes a whole project unreadable
            raise BadInput(f"task {number} ({key}): cannot be sent ({error}); mend its text") from None
        keyed[key] = row
    return keyed


def condition(field: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    """One condition of the server's filters."""
    return {"filter": f"filter:{field}", "operator": operator, "type": kind, "value": value}


def moment(time: datetime) -> str:
    """A moment in the one form that the filters take (any other is an internal error of the server)."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parts(items: Sequence[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    """Slices of at most ``size`` items."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _key(row: Mapping[str, Any]) -> str | None:
    data = row.get("data")
    key = data.get(KEY) if isinstance(data, Mapping) else None
    return key if isinstance(key, str) else None


@contextmanager
def _known(kind: str, row: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(
            f"the server lists {kind} {row.get('id')} in a form that is not known ({type(error).__name__}: {error}); "
            "run 'doctor' to see its version"
        ) from None
