"""`annotate pull`: what people said on a labelling server, into the store: every word once, nothing guessed.

In: a campaign and a client. Out: judgments in ``feedback.db``, and beside them what was skipped, set aside with its
reason, edited or taken back. Only tasks that changed since the last pull are read, by the server's own clock and
with five minutes of overlap; ``full`` reads everything, what was set aside once more, and notices deleted tasks too.
A page of tasks is one transaction, so a pull that is killed at any moment goes on where it was. Not here: what a
result means (``interfaces/decode.py``).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import islice
from typing import NamedTuple

from align.core.config import BadInput
from annotation.campaign import Campaign
from annotation.interfaces.decode import Undecodable, Verdict, decode
from annotation.label_studio.rows import Annotation, StudioTask
from annotation.label_studio.studio import Studio
from annotation.ledger import Ledger, Pulled, Quarantined, Task
from annotation.push import open_project
from annotation.store import Store
from annotation.types import Comparison, Judgment

OVERLAP = timedelta(minutes=5)
PAGE = 200  # tasks of one transaction
EDITED = "edited by somebody else"  # flag of a judgment that another account changed afterwards

JUDGMENT, SKIPPED, SET_ASIDE, SUPERSEDED = "judgment", "skipped", "quarantine", "superseded"


class PulledNow(NamedTuple):
    """What a pull found: annotations by outcome (new or changed ones), those taken back, and what stands now."""

    tasks: int
    outcomes: dict[str, int]
    taken_back: int
    quarantined: int
    judgments: int


class _Reading(NamedTuple):
    """What an annotation comes to: an outcome, and the judgment or the reason."""

    outcome: str
    judgment: Judgment | None = None
    reason: str = ""


def pull(campaign: Campaign, studio: Studio, *, full: bool = False) -> PulledNow:
    """Read what changed (``full``: everything).

    Raises:
        BadInput: nothing was pushed yet, the project or its interface is not the campaign's, or a silent server;
            what was read stays, and the same call goes on.
    """
    with Store.open(campaign.feedback, write=True) as store:
        ledger = Ledger(store, campaign.name)
        state = ledger.state()
        if state is None:
            raise BadInput(f"{campaign.feedback}: campaign '{campaign.name}' was never pushed from here; push it first")
        project = open_project(campaign, ledger, studio)
        since = None if full or state.watermark is None else datetime.fromisoformat(state.watermark) - OVERLAP
        reader = _Reader(campaign, ledger, studio, full)
        newest, n_tasks = state.watermark, 0
        for page in _pages(studio.changed_tasks(project.id, since), PAGE):
            with store.transaction():
                for task in page:
                    reader.take(task)
                    newest = max(filter(None, (newest, task.updated_at)))
            n_tasks += len(page)
        with store.transaction():
            if full:
                reader.lose(set(studio.keys(project.id)))
            ledger.advance(newest)
        outcomes = {name: count for name, count in sorted(reader.outcomes.items()) if count}
        standing = len(ledger.quarantined())
        return PulledNow(n_tasks, outcomes, reader.taken_back, standing, store.counts().judgments)


class _Reader:
    """One pull: what is known beforehand, and what was found so far."""

    def __init__(self, campaign: Campaign, ledger: Ledger, studio: Studio, full: bool) -> None:
        self.campaign, self.ledger, self.full = campaign, ledger, full
        self.tasks = ledger.tasks()
        self.seen = ledger.pulled()
        self.comparisons = {comparison.id: comparison for comparison in ledger.store.comparisons()}
        self.people = studio.users()
        self.url = studio.url
        self.outcomes: Counter[str] = Counter()
        self.taken_back = 0

    def take(self, task: StudioTask) -> None:
        """Read a task: new and changed annotations, and those that are gone."""
        own = self.tasks.get(task.key or "")
        latest = _latest(task.annotations)
        present = {(a.id, a.created_at) for a in task.annotations}
        self._forget(p for key, p in self.seen.items() if p.task_id == task.id and key not in present)
        for annotation in sorted(task.annotations, key=lambda a: (a.updated_at, a.id)):
            key = (annotation.id, annotation.created_at)
            digest = _digest(annotation)
            before = self.seen.get(key)
            is_old = latest[annotation.completed_by] != annotation.id
            is_known = before is not None and before.digest == digest and (before.outcome == SUPERSEDED) == is_old
            if is_known and not (self.full and before is not None and before.outcome == SET_ASIDE):
                continue
            reading = _Reading(SUPERSEDED) if is_old else self._read(own, task, annotation)
            person = self._name(annotation.completed_by)
            row = Pulled(annotation.id, annotation.created_at, task.id, task.key, person, digest, reading.outcome)
            self._enter(row, own, reading, annotation)

    def lose(self, present: set[str]) -> None:
        """Take back what was said on tasks that are gone from the server."""
        gone = {key for key, task in self.tasks.items() if task.task_id is not None and key not in present}
        self._forget(p for p in self.seen.values() if p.key in gone)
        self.ledger.set_task_ids(dict.fromkeys(gone))

    def _read(self, own: Task | None, task: StudioTask, annotation: Annotation) -> _Reading:
        if own is None:
            return _Reading(SET_ASIDE, reason="its task was not sent by this campaign, so its sides are not known")
        email = self.people.get(annotation.completed_by or -1)
        if email is None:
            return _Reading(SET_ASIDE, reason=f"by account {annotation.completed_by}, which the server does not list")
        if self.campaign.annotators and email not in self.campaign.annotators:
            return _Reading(SET_ASIDE, reason="by an account that is none of the campaign's annotators")
        if annotation.was_cancelled:
            return _Reading(SKIPPED)
        try:
            verdict = decode(self.campaign.interface, annotation.result)
            if verdict.is_skipped:
                return _Reading(SKIPPED)
            judgment = self._judgment(own, annotation, verdict)
        except (Undecodable, ValueError) as error:
            return _Reading(SET_ASIDE, reason=str(error).splitlines()[0])
        return _Reading(JUDGMENT, judgment)

    def _judgment(self, own: Task, annotation: Annotation, verdict: Verdict) -> Judgment:
        """A verdict by place on screen, as a judgment by canonical response."""
        shown, comparison = own.shown, self.comparisons[own.comparison_id]
        improved, place = verdict.improved, verdict.improved_from
        source = None if place is None else shown[place]
        if source is not None and improved is not None and improved.strip() == _text(comparison, source).strip():
            improved, source = None, None  # sent back as it was
        foreign = annotation.updated_by not in (None, annotation.completed_by)
        return Judgment(
            comparison_id=own.comparison_id,
            annotator=self._name(annotation.completed_by),
            ranking=[sorted(shown[place] for place in group) for group in verdict.ranking],
            shown=shown,
            strength=verdict.strength,
            flags=[*verdict.flags, *([EDITED] if foreign else [])],
            label=verdict.label,
            ratings={name: _canonical(values, shown) for name, values in verdict.ratings.items()},
            rationale=verdict.rationale,
            improved=improved,
            improved_from=source,
            seconds=annotation.seconds,
            guideline=own.guideline,
            source=_source(self.campaign, own.key),
        )

    def _enter(self, row: Pulled, own: Task | None, reading: _Reading, annotation: Annotation) -> None:
        key = (row.annotation_id, row.created_at)
        self.outcomes[reading.outcome] += 1
        self.ledger.release([key])
        if reading.judgment is not None:
            self.ledger.store.add_judgments([reading.judgment])
        elif own is not None and reading.outcome != SUPERSEDED:
            self._withdraw(own, row.annotator)
        if reading.outcome == SET_ASIDE:
            body = annotation.body
            self.ledger.quarantine([Quarantined(*key, row.task_id, row.key, row.annotator, reading.reason, body)])
        self.ledger.note([row])
        self.seen[key] = row

    def _forget(self, rows: Iterable[Pulled]) -> None:
        """Annotations that are gone: their judgments are taken back."""
        for row in list(rows):
            own = self.tasks.get(row.key or "")
            if own is not None and row.outcome == JUDGMENT:
                self._withdraw(own, row.annotator)
            self.ledger.forget([(row.annotation_id, row.created_at)])
            del self.seen[row.annotation_id, row.created_at]

    def _withdraw(self, own: Task, annotator: str) -> None:
        key = (own.comparison_id, annotator, _source(self.campaign, own.key))
        self.taken_back += self.ledger.store.withdraw([key], "gone or unreadable on the labelling server")

    def _name(self, account: int | None) -> str:
        return pseudonym(self.url, account)


def pseudonym(url: str, account: int | None) -> str:
    """What an account is called in the store: never its address."""
    return f"person-{hashlib.sha256(f'{url}#{account}'.encode()).hexdigest()[:8]}"


def _latest(annotations: Iterable[Annotation]) -> dict[int | None, int]:
    """The annotation that counts of each account: the server lets one person answer twice."""
    ordered = sorted(annotations, key=lambda a: (a.updated_at, a.id))
    return {annotation.completed_by: annotation.id for annotation in ordered}


def _digest(annotation: Annotation) -> str:
    said = [annotation.result, annotation.was_cancelled, annotation.completed_by, annotation.updated_by]
    text = json.dumps(said, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _canonical(values: list[int | None], shown: list[int]) -> list[int | None]:
    found: list[int | None] = [None] * len(shown)
    for place, value in enumerate(values):
        found[shown[place]] = value
    return found


def _source(campaign: Campaign, key: str) -> str:
    return f"label-studio:{campaign.name}:{key}"


def _text(comparison: Comparison, index: int) -> str:
    return comparison.responses[index].text


def _pages(tasks: Iterator[StudioTask], size: int) -> Iterator[list[StudioTask]]:
    while page := list(islice(tasks, size)):
        yield page
