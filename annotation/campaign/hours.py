"""Paid time and pace: the hours of each annotator on each day, and when a campaign will be done.

In: answers as they were read, and how many are missing. Out: hours by annotator and day (UTC, when the answer was first
sent), a CSV of them, and a moment, or why none can be named. Every answer counts, those skipped or in quarantine too:
making them was work. The page's time runs on while nobody works, so an answer counts at most ``cap`` seconds. An
answer without a time counts none and is counted apart. Nights and weekends are in the pace, hence in days and not in
hours. Not in it: answers that were deleted on the server, time between tasks, and what was worked outside of the page;
a person who has two tasks open at once is counted twice.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from align.core.config import BadInput
from align.core.files import write_text
from annotation.store.tables import Pulled

CAP = 600.0  # seconds
WINDOW = timedelta(days=7)  # over which the pace is taken
LEAST_ANSWERS, LEAST_TIME = 10, timedelta(days=1)  # below these no pace is computed
COLUMNS = ("annotator", "day", "tasks", "hours")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # a spreadsheet would compute what begins so


class Day(NamedTuple):
    """An annotator's day: tasks answered or skipped, hours, and answers of which no time is known."""

    annotator: str
    day: str
    tasks: int
    hours: float
    untimed: int


def days(answers: Iterable[Pulled], cap: float = CAP) -> list[Day]:
    """Return hours by annotator and day; an answer counts at most ``cap`` seconds."""
    grouped: dict[tuple[str, str], list[Pulled]] = {}
    for answer in answers:
        grouped.setdefault((answer.annotator, answer.created_at[:10]), []).append(answer)
    listed = []
    for (annotator, day), rows in sorted(grouped.items()):
        timed = [seconds for row in rows if (seconds := seconds_of(row)) is not None]
        hours = sum(min(seconds, cap) for seconds in timed) / 3600
        listed.append(Day(annotator, day, len({row.task_id for row in rows}), hours, len(rows) - len(timed)))
    return listed


def seconds_of(answer: Pulled) -> float | None:
    """Return the time on a task, None where the server gives no valid one."""
    seconds = answer.seconds
    return seconds if seconds is not None and math.isfinite(seconds) and seconds > 0 else None


def write_hours(path: Path, listed: Sequence[Day]) -> None:
    """Write ``annotator, day, tasks, hours`` as CSV.

    Raises:
        BadInput: a file is there that holds no hours, or it cannot be written.
    """
    head = ",".join(COLUMNS).encode()
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(head)):
        raise BadInput(f"{path}: is there and holds no hours; name another file with hours=")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in listed:
        writer.writerow((harmless(row.annotator), harmless(row.day), row.tasks, f"{row.hours:.4f}"))
    write_text(path, text.getvalue())


def harmless(cell: str) -> str:
    """Quote a cell that a spreadsheet would take for a formula."""
    return "'" + cell if cell.startswith(FORMULA) else cell


class Projection(NamedTuple):
    """When all open tasks will be answered at the pace of the last days; None, and why, where it cannot be computed."""

    ends: datetime | None
    per_day: float | None
    missing: int
    reason: str


def project_end(moments: Iterable[datetime], missing: int, now: datetime) -> Projection:
    """Project when ``missing`` more answers will be there, at the pace of the last seven days before ``now``.

    A campaign that is younger is taken from its first answer on.
    """
    if not missing:
        return Projection(None, None, 0, "nothing is open")
    past = sorted(moments)
    recent = [moment for moment in past if moment >= now - WINDOW]
    if not recent:
        return Projection(None, None, missing, f"nobody answered in the {WINDOW.days} days before the last pull")
    span = now - max(past[0], now - WINDOW)
    if span < LEAST_TIME or len(recent) < LEAST_ANSWERS:
        reason = f"not enough to tell: {len(recent)} answers in {span / timedelta(hours=1):.0f} hours"
        return Projection(None, None, missing, f"{reason} (it takes {LEAST_ANSWERS} and a day)")
    per_day = len(recent) / (span / timedelta(days=1))
    return Projection(now + timedelta(days=missing / per_day), per_day, missing, "")
