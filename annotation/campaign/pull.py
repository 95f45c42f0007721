"""`annotate pull`: annotations of a labelling server into the store, each exactly once, none guessed.

In: a campaign and a client. Out: judgments in ``feedback.db``, and beside them what was skipped, put into quarantine
with its reason, edited or taken back. Only answered tasks that changed since the last pull are listed, by the server's
own clock and with five minutes of overlap, and of these only the ones read that were not seen as they are. Then the
number of answered tasks has to be the one that is known; if it is not, all of them are listed, and what is gone is
noticed. ``full`` reads every answer, what is in quarantine once more, and notices deleted tasks that nobody answered. A
page of tasks is one transaction, so a pull that is killed at any moment goes on where it was. Not here: how an
annotation is parsed (``parse.py``).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice
from typing import NamedTuple

from annotation.campaign.parse import JUDGMENT, QUARANTINE, SUPERSEDED, AnnotationParser, ParsedAnnotation
from annotation.campaign.push import open_project
from annotation.campaign.settings import Campaign
from annotation.label_studio.rows import Annotation, StudioTask
from annotation.label_studio.studio import Studio
from annotation.store.ledger import Ledger, source_of
from annotation.store.store import Store
from annotation.store.tables import ERASED, CampaignState, Pulled, Quarantined, Task

OVERLAP = timedelta(minutes=5)
PAGE = 200  # tasks of one transaction


class PullResult(NamedTuple):
    """The result of a pull: new or changed annotations by outcome, those taken back, and what is in the store now."""

    tasks: int
    outcomes: dict[str, int]
    taken_back: int
    quarantined: int
    judgments: int


def pull(campaign: Campaign, studio: Studio, *, full: bool = False) -> PullResult:
    """Read the answers that changed (``full``: all of them).

    Raises:
        BadInput: nothing was pushed yet, the project or its interface is not the campaign's, or a silent server;
            what was read stays, and the same call goes on.
    """
    with Store.open(campaign.feedback, write=True) as store:
        ledger = Ledger(store, campaign.name)
        state = ledger.pushed_state()
        project = open_project(campaign, ledger, studio)
        since = None if full or state.watermark is None else datetime.fromisoformat(state.watermark) - OVERLAP
        this = _Pull(campaign, ledger, state, studio, full)
        there = studio.answered(project.id, since)
        newest = max((*filter(None, [state.watermark]), *there.values()), default=None)
        this.read(project.id, there)
        if full or studio.count(project.id, answered=True) != len(this.stamps):
            there = there if since is None else studio.answered(project.id)
            this.read(project.id, there)
            this.lose(project.id, this.stamps.keys() - there.keys())
        if full:
            with store.transaction():
                this.miss(set(studio.keys(project.id)))
                this.reconcile()
        this.read_tasks(project.id, this.again)
        ledger.advance(newest)
        outcomes = {name: count for name, count in sorted(this.outcomes.items()) if count}
        in_quarantine = len(ledger.quarantined())
        return PullResult(len(this.done), outcomes, this.taken_back, in_quarantine, store.counts().judgments)


class _Pull:
    """One pull: what was known before it, and what was read so far."""

    def __init__(self, campaign: Campaign, ledger: Ledger, state: CampaignState, studio: Studio, full: bool) -> None:
        self.campaign, self.ledger, self.full = campaign, ledger, full
        self.studio = studio
        self.tasks = ledger.tasks()
        self.stamps = ledger.stamps()
        self.done: set[int] = set()  # tasks that were read
        self.seen = ledger.pulled()
        self.by_task: dict[int, set[tuple[int, str]]] = {}
        self.counting: dict[tuple[str | None, str], set[tuple[int, str]]] = {}  # judgments by task key and person
        for row in self.seen.values():
            self._index(row)
        self.fresh: set[tuple[int, str]] = set()  # judgments that went into the chain since the last settling
        self.loose: set[tuple[str | None, str]] = set()  # where one was lost or read anew since then
        self.again: set[int] = set()  # tasks to read once more
        self.erased_ids = ledger.store.erased_ids()
        self.parser = AnnotationParser(campaign, ledger, state.url, studio.users())
        self.outcomes: Counter[str] = Counter()
        self.taken_back = 0

    def read(self, project: int, there: Mapping[int, str]) -> None:
        """Read those of the answered tasks that were not seen as they are (``full``: all), page by page."""
        wanted = [task for task, moment in there.items() if self.full or self.stamps.get(task) != moment]
        self.read_tasks(project, set(wanted) - self.done)

    def lose(self, project: int, ids: Iterable[int]) -> None:
        """Read tasks once more that are no longer listed as answered, and forget those that are gone."""
        gone = set(ids)
        gone -= self.read_tasks(project, gone)
        with self.ledger.store.transaction():
            for number in gone:
                self._forget(self.seen[key] for key in self.by_task.get(number, set()))
                self._stamp(number, None)
            self._settle()
            self.ledger.set_task_ids({key: None for key, task in self.tasks.items() if task.task_id in gone})

    def take(self, task: StudioTask) -> None:
        """Read a task: new and changed annotations, and those that are gone."""
        own = self.tasks.get(task.key or "")
        self.done.add(task.id)
        self._stamp(task.id, task.updated_at if task.annotations else None)
        names = {annotation.id: self._person(annotation) for annotation in task.annotations}
        ordered = sorted(task.annotations, key=lambda a: (a.updated_at, a.id))
        latest = {names[a.id]: a.id for a in ordered}  # the server lets one person answer twice
        present = {(a.id, a.created_at) for a in task.annotations}
        self._forget(self.seen[key] for key in self.by_task.get(task.id, set()) - present)
        for annotation in ordered:
            key, person = (annotation.id, annotation.created_at), names[annotation.id]
            before = self.seen.get(key)
            was_erased = before is not None and before.outcome == ERASED
            if was_erased or self.erased_ids.holds("annotator", person) or self.erased_ids.holds("task", task.key):
                self._keep_out(key, task.id)
                continue
            if before is not None and (before.task_id, before.key, before.annotator) != (task.id, task.key, person):
                self._forget([before])  # moved to another task, or given to somebody else
                before = None
            digest = _digest(annotation, person)
            is_old = latest[person] != annotation.id
            is_known = before is not None and before.digest == digest and (before.outcome == SUPERSEDED) == is_old
            if is_known and not (self.full and before is not None and before.outcome == QUARANTINE):
                continue
            parsed = ParsedAnnotation(SUPERSEDED) if is_old else self.parser.parse(own, task, annotation)
            read = (person, digest, parsed.outcome, annotation.seconds)
            row = Pulled(annotation.id, annotation.created_at, task.id, task.key, *read)
            self._enter(row, own, parsed, annotation)
        self._settle()

    def read_tasks(self, project: int, ids: Iterable[int]) -> set[int]:
        """Read tasks, one transaction per page; returns those that are there."""
        there = set()
        for page in _pages(self.studio.tasks(project, ids), PAGE):
            with self.ledger.store.transaction():
                for task in page:
                    self.take(task)
            there |= {task.id for task in page}
        return there

    def reconcile(self) -> None:
        """Make the judgments of this campaign in the store the same as those that were read."""
        own = {source_of(self.campaign.name, key): key for key in self.tasks}
        judged = [j for j in self.ledger.store.judgments() if j.source in own]
        in_store = {(own[j.source], j.annotator): (j.comparison_id, j.annotator, j.source) for j in judged}
        self._take_back(triple for key, triple in in_store.items() if not self.counting.get(key))
        for key in self.counting.keys() - in_store.keys():
            self._doubt(key)

    def miss(self, present: set[str]) -> None:
        """Note which tasks are gone from the server, so that the next push sends them anew."""
        gone = {key for key, task in self.tasks.items() if task.task_id is not None and key not in present}
        self.ledger.set_task_ids(dict.fromkeys(gone))

    def _stamp(self, task: int, moment: str | None) -> None:
        self.ledger.stamp(task, moment)
        if moment is None:
            self.stamps.pop(task, None)
        else:
            self.stamps[task] = moment

    def _enter(self, row: Pulled, own: Task | None, parsed: ParsedAnnotation, annotation: Annotation) -> None:
        key = (row.annotation_id, row.created_at)
        self.outcomes[parsed.outcome] += 1
        self.ledger.release([key])
        if parsed.judgment is not None:
            self.ledger.store.add_judgments([parsed.judgment])
            self.fresh.add(key)
        if (before := self.seen.get(key)) is not None and before.outcome == JUDGMENT:
            self.loose.add((before.key, before.annotator))
        if parsed.outcome == QUARANTINE:
            body = annotation.body
            self.ledger.quarantine([Quarantined(*key, row.task_id, row.key, row.annotator, parsed.reason, body)])
        self._note(row)
        if own is not None and own.purpose == "calibration":
            self.parser.round = None

    def _keep_out(self, key: tuple[int, str], task: int) -> None:
        """Record that an erased annotation exists, without its content."""
        if key not in self.seen:
            self.outcomes[ERASED] += 1
            self._note(Pulled(*key, task, key=None, annotator="", digest="", outcome=ERASED))

    def _note(self, row: Pulled) -> None:
        """Remember an annotation that was read."""
        key = (row.annotation_id, row.created_at)
        self.ledger.note([row])
        if (before := self.seen.get(key)) is not None:
            self.counting.get((before.key, before.annotator), set()).discard(key)
        self.seen[key] = row
        self._index(row)

    def _index(self, row: Pulled) -> None:
        key = (row.annotation_id, row.created_at)
        self.by_task.setdefault(row.task_id, set()).add(key)
        if row.outcome == JUDGMENT:
            self.counting.setdefault((row.key, row.annotator), set()).add(key)

    def _forget(self, rows: Iterable[Pulled]) -> None:
        """Forget annotations that are gone from the server."""
        for row in list(rows):
            key = (row.annotation_id, row.created_at)
            if row.outcome == JUDGMENT:
                self.loose.add((row.key, row.annotator))
                self.counting[row.key, row.annotator].discard(key)
            self.ledger.forget([key])
            del self.seen[key]
            self.by_task[row.task_id].discard(key)

    def _settle(self) -> None:
        """Take back the judgment of whoever has none left on a task; their answer to a copy of it is read again."""
        for key in self.loose:
            if not self.counting.get(key, set()) & self.fresh and (own := self.tasks.get(key[0] or "")) is not None:
                self._take_back([(own.comparison_id, key[1], source_of(self.campaign.name, own.key))])
                self._doubt(key)
                self.parser.round = None
        self.loose.clear()
        self.fresh.clear()

    def _doubt(self, key: tuple[str | None, str]) -> None:
        """Have a person's judgments on a task read again, now or, if this pull is killed, by the next one."""
        for number in list(self.counting.get(key, set())):
            row = self.seen[number]
            self._note(row._replace(digest=""))
            self._stamp(row.task_id, None)
            self.again.add(row.task_id)

    def _take_back(self, keys: Iterable[tuple[str, str, str]]) -> None:
        self.taken_back += self.ledger.store.withdraw(keys, "gone or unreadable on the labelling server")

    def _person(self, annotation: Annotation) -> str:
        """Return the annotator's name, of a deleted account as it was read before."""
        before = self.seen.get((annotation.id, annotation.created_at))
        is_gone = annotation.completed_by is None and before is not None and before.annotator
        return before.annotator if is_gone and before is not None else self.parser.name(annotation.completed_by)


def _digest(annotation: Annotation, person: str) -> str:
    is_foreign = annotation.updated_by not in (None, annotation.completed_by)
    content = [annotation.result, annotation.was_cancelled, person, is_foreign]
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _pages(tasks: Iterator[StudioTask], size: int) -> Iterator[list[StudioTask]]:
    while page := list(islice(tasks, size)):
        yield page
