"""The rows that a labelling server lists: projects, tasks and annotations, and the filters that ask for them.

In: decoded JSON. Out: validated records. Only this file knows the server's field names. Not here: what an annotation's
``result`` means (``interface/decode.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from typing_extensions import TypedDict  # pydantic's condition below Python 3.12

from align.core.config import BadInput

KEY = "pair_id"  # the field of a task's data that names it; ids are used again by the server
LONGEST = 1e7  # seconds on one task: four months
ItemT = TypeVar("ItemT")


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

    ``had_copies``: some tasks had several copies, of which one was left; it need not be the one that this call sent.
    """

    ids: dict[str, int]
    new: int
    had_copies: bool


def _account_id(value: Any) -> Any:
    """Return an account's id, which the server gives alone or within the account's fields."""
    number = value.get("id") if isinstance(value, dict) else value
    return number if isinstance(number, int) else None


def _seconds(value: Any) -> float | None:
    """Return a time on a task, None where it cannot be one: every account may write any number there."""
    return value if isinstance(value, int | float) and 0 <= value <= LONGEST else None


AccountId = Annotated[int | None, BeforeValidator(_account_id)]


class Annotation(BaseModel):
    """One person's answer to a task; ``updated_by`` differs from ``completed_by`` after somebody else's edit.

    ``body`` is the server's whole row.
    """

    model_config = ConfigDict(frozen=True)

    id: int
    created_at: str
    updated_at: str
    completed_by: AccountId
    updated_by: AccountId = None
    was_cancelled: bool
    seconds: Annotated[float | None, BeforeValidator(_seconds)] = Field(default=None, alias="lead_time")
    result: Any
    body: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _keep_body(cls, row: Any) -> Any:
        return {**row, "body": row} if isinstance(row, dict) else row


class TaskRow(BaseModel):
    """A task of the server; its ``key`` is None where the bridge did not send it."""

    model_config = ConfigDict(frozen=True)

    id: int
    data: dict[str, Any]

    @property
    def key(self) -> str | None:
        return key_of(self.data)


class CountedTask(TaskRow):
    """A task, and how many people answered or skipped it."""

    total_annotations: int
    cancelled_annotations: int

    @property
    def n_answers(self) -> int:
        return self.total_annotations + self.cancelled_annotations


class StudioTask(TaskRow):
    """A task with everything people answered, without drafts and predictions."""

    updated_at: str
    annotations: list[Annotation]
    is_labeled: bool

    @property
    def is_open(self) -> bool:
        """Return whether the server waits for more people to judge it."""
        return not self.is_labeled


class TaskChange(BaseModel):
    """When a task changed last, by the server's clock."""

    id: int
    updated_at: str = ""


RowT = TypeVar("RowT", StudioTask, CountedTask, TaskChange)


class TaskPage(TypedDict, Generic[RowT]):
    """One page of a list of tasks, and how many tasks the list holds."""

    tasks: list[RowT]
    total: int


class ImportReply(TypedDict):
    task_ids: list[int]


class OverlapReply(TypedDict):
    overlap: int


class ChangeReply(TypedDict):
    updated_at: str


def first_ids(rows: Iterable[CountedTask]) -> dict[str, int]:
    """Return the id that counts for each key: of copies an answered one before the others, then the oldest."""
    ids: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: (not row.n_answers, row.id)):
        if row.key is not None:
            ids.setdefault(row.key, row.id)
    return ids


def by_key(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the rows to send by their key.

    Raises:
        BadInput: a row without a key, a key that occurs twice, or what is no JSON (a lone surrogate, a NaN).
    """
    keyed: dict[str, Mapping[str, Any]] = {}
    for number, row in enumerate(rows):
        key = key_of(row.get("data"))
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


def key_of(data: Any) -> str | None:
    """Return the key that a task's data holds, None where it holds none."""
    key = data.get(KEY) if isinstance(data, Mapping) else None
    return key if isinstance(key, str) else None


def condition(field: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    """Return one condition of the server's filters."""
    return {"filter": f"filter:{field}", "operator": operator, "type": kind, "value": value}


def moment(time: datetime) -> str:
    """Write a moment in the one form that the filters take; any other is an internal error of the server."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parts(items: Sequence[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    """Yield slices of at most ``size`` items."""
    return (items[start : start + size] for start in range(0, len(items), size))
