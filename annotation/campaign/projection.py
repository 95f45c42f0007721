"""When a campaign will be done, at the pace of its last days.

In: when answers were made, and how many are missing. Out: a moment, or why none can be named. A pure function; nights
and weekends are in the pace, hence in days and not in hours. Not here: that people leave or new tasks come.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

WINDOW = timedelta(days=7)  # over which the pace is taken
LEAST_ANSWERS, LEAST_TIME = 10, timedelta(days=1)  # below these a pace says nothing


class Projection(NamedTuple):
    """When all open tasks will be answered at the pace of the last days; None, and why, where that cannot be said."""

    ends: datetime | None
    per_day: float | None
    missing: int
    reason: str


def project_end(moments: Iterable[datetime], missing: int, now: datetime) -> Projection:
    """When ``missing`` more answers will be there, at the pace of the last seven days before ``now``.

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
