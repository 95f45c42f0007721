"""Which guidelines a judgment was made by, when they change while tasks are in the queue.

A task shows the text that it was sent with, and a judgment carries the hash of the text its task showed. After a
change of the text new tasks show the new one; unanswered ones can be brought up to date there. Somebody may
have such a task open at that moment, so the server's clock says which text an answer was made by: the older one for
an answer that was sent before the change, the newer one for a task that was opened after it, and none for what lies
between. A task that somebody answered already is left as it is: its other judges read the same text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from annotation.label_studio.rows import Annotation
from annotation.label_studio.studio import Studio
from annotation.store.ledger import Ledger
from annotation.store.tables import Refresh, Task

MARGIN = timedelta(minutes=1)  # between a page's request and the start of its own clock


def outdated(ledger: Ledger, studio: Studio, project: int, guideline: str) -> list[Task]:
    """Tasks that nobody answered and that show other guidelines than these."""
    old = [task for task in ledger.tasks().values() if task.task_id is not None and task.guideline != guideline]
    unanswered = studio.unanswered(project) if old else set()
    return [task for task in old if task.key in unanswered]


def bring_up_to_date(
    ledger: Ledger, studio: Studio, rows: Mapping[str, tuple[int, dict[str, Any]]], guideline: str
) -> int:
    """Give tasks their new data (task id and data by key), which shows these guidelines; how many were brought so far.

    A request without an answer is not repeated: the task counts as not known until the next call.
    """
    ledger.begin_refresh(rows)
    n_done = 0
    for key, (task_id, data) in rows.items():
        if moment := studio.replace_data(task_id, data):
            ledger.end_refresh(key, guideline, moment)
            n_done += 1
    return n_done


def read_by(task: Task, changes: Iterable[Refresh], annotation: Annotation) -> str | None:
    """Hash of the guidelines that an answer was made by, None where it cannot be told."""
    sent = datetime.fromisoformat(annotation.created_at)
    opened = sent - timedelta(seconds=annotation.seconds) if annotation.seconds is not None else datetime.min
    for _, older, moment in changes:
        if moment is None:
            return None
        changed = datetime.fromisoformat(moment)
        if sent < changed:
            return older
        if opened.replace(tzinfo=changed.tzinfo) < changed + MARGIN:
            return None
    return task.guideline
