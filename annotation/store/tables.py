"""What a row of the bridge's own tables is, and what is said of one that is none.

The chain does not cover these tables, so their rows are checked as they are read. Not here: reading and writing them
(``ledger.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic's condition below Python 3.12

from align.core.config import BadInput
from annotation.store.store import Store

ERASED = "erased"  # outcome of an annotation that was erased from the store, and may stand on the server still
Purpose = Literal["work", "gold", "repeat", "calibration"]


def _moment(text: str) -> str:
    datetime.fromisoformat(text)
    return text


Moment = Annotated[str, AfterValidator(_moment)]  # ISO 8601, as the server gives it


class CampaignState(NamedTuple):
    """Where a campaign lives and how far it was read; ``watermark`` is the server's own time of its last change.

    ``pulled_at`` is when a pull last came to its end, by the clock here.
    """

    name: str
    url: str
    project: int
    interface: str
    config_hash: str
    watermark: Moment | None
    recovered: bool
    pulled_at: Moment | None = None


class Answer(NamedTuple):
    """What is right about a comparison: tie groups of responses, best first, or the label of a single response.

    Responses that ``ranking`` leaves out come after those it names and are not compared with each other.
    ``is_attention``: nobody who reads can miss it. ``family`` is the prompt's, which says whether a task is concealed.
    """

    ranking: list[list[int]] | None = None
    label: str | None = None
    is_attention: bool = False
    family: str = ""


class Task(NamedTuple):
    """A comparison as it was (or will be) shown: ``shown`` are canonical response numbers in screen order.

    ``shown`` is empty as long as nothing was drawn: an answer is known, and no task was sent from here. ``pages`` is
    the hash of what it shows (``interfaces.config.shown_hash``).
    """

    key: str
    comparison_id: str
    shown: list[int]
    purpose: Purpose = "work"
    answer: Answer | None = None
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
    """What could not be read as a judgment, and why; ``body`` is what the server gave."""

    annotation_id: int
    created_at: str
    task_id: int
    key: str | None
    annotator: str | None
    reason: str
    body: dict[str, Any] | None


class _Offer(TypedDict, total=False):
    labels: list[str] | None


RowT = TypeVar("RowT")
STAMP, COUNT, WORDS = TypeAdapter(tuple[int, Moment]), TypeAdapter(tuple[str, int]), TypeAdapter(tuple[str, str])
STATE, TASK, PULLED = TypeAdapter(CampaignState), TypeAdapter(Task), TypeAdapter(Pulled)
QUARANTINED = TypeAdapter(Quarantined)
OFFER, PURPOSE = TypeAdapter(tuple[str, _Offer]), TypeAdapter(tuple[str, str, str, Purpose])


def checked(
    store: Store, table: str, schema: TypeAdapter[RowT], rows: Iterable[Sequence[Any]], decode: Sequence[int] = ()
) -> list[RowT]:
    """Rows as what they are; columns ``decode`` hold JSON.

    Raises:
        BadInput: a row that was never written here: the chain does not cover these tables.
    """
    found = []
    for row in rows:
        values = list(row)
        try:
            for column in decode:
                values[column] = None if row[column] is None else json.loads(row[column])
            found.append(schema.validate_python(tuple(values)))
        except (ValueError, TypeError, RecursionError) as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise BadInput(
                f"{store.path}: damaged: table {table}, row {row[0]!r} holds what is never written there ({why}); "
                "restore a backup, or move the file away, push and 'pull --full'"
            ) from None
    return found
