"""`annotate status`: how far a campaign is, who did what, what it cost, and when it will be done.

In: ``feedback.db`` alone, as of the last pull; the server may be down. Out: counts, shares with their intervals, hours.
A skip is no answer: the server asks somebody else. Calibration tasks are work that is paid and timed, and are not
counted as tasks. What is not known is None. Not here: the states of tasks (``contested.py``), who somebody is (the
store knows no addresses), and agreement in detail (``agreement/``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from align.core.config import BadInput
from align.core.stats.estimates import Estimate, proportion
from annotation.aggregation.counting import counting_judgments, questions_of
from annotation.aggregation.votes import answers_of
from annotation.agreement.answers import Agreement, agreement, contested, winners
from annotation.campaign import gold
from annotation.campaign.contested import contested_tasks, own_judgments, people_asked, task_states
from annotation.campaign.hours import CAP, Day, Projection, days, project_end, seconds_of, write_hours
from annotation.campaign.parse import ANSWERED, JUDGMENT, QUARANTINE, SKIPS
from annotation.campaign.settings import Campaign
from annotation.interface.decode import EDITED
from annotation.store.ledger import Ledger, excluded, source_of
from annotation.store.store import Store
from annotation.store.tables import ERASED, Pulled, Task


class WorkTime(NamedTuple):
    """Speed and paid time: median seconds of a judgment, answers per hour, hours, answers without a known time."""

    seconds: float | None
    per_hour: float | None
    hours: float
    untimed: int


class AnnotatorStatus(NamedTuple):
    """An annotator by the store's name: tasks judged, tasks still open to them, judged tasks that are contested.

    ``agreement``, ``gold`` and ``attention`` are shares with interval and counts; ``excluded`` is the reason.
    """

    annotator: str
    done: int
    open: int
    contested: int
    skipped: int
    quarantined: int
    edited: int
    work: WorkTime
    agreement: Estimate
    gold: Estimate | None
    attention: Estimate | None
    excluded: str | None


class Guideline(NamedTuple):
    """The newest version that tasks show, of how many there were, since when, and how many tasks show which."""

    version: int | None
    known: int
    since: str | None
    shown: dict[int, int]


class CampaignStatus(NamedTuple):
    """A campaign's progress; ``cost`` and ``pair_cost`` are None without a price or anything to divide by.

    ``usable`` counts pairs of responses one of which is chosen by more people than anything else (single responses:
    those with a leading label), before pairs are split and cleaned of duplicates.
    """

    campaign: str
    project: int
    url: str
    pulled_at: datetime | None
    tasks: int
    done: int
    open: int
    contested: int
    short: int
    judgments: int
    skipped: int
    edited: int
    quarantine: dict[str, int]
    work: WorkTime
    cap: float
    agreement: Agreement
    usable: int
    price: float | None
    cost: float | None
    pair_cost: float | None
    projection: Projection
    guideline: Guideline
    people: list[AnnotatorStatus]
    days: list[Day]


def status(
    campaign: Campaign, *, hours: Path | None = None, price: float | None = None, cap: float = CAP
) -> CampaignStatus:
    """Report a campaign's progress, cost and projected end, as of its last pull.

    Args:
        hours: a file to write paid hours to, as CSV.
        price: the price of an hour of work.
        cap: the most seconds that one answer counts as paid work.

    Raises:
        BadInput: the campaign was never pushed, or settings that cannot be.
    """
    if not 0 < cap < math.inf or (price is not None and not 0 <= price < math.inf):
        raise BadInput("status: cap= must be above 0 seconds, and price= must be 0 or more")
    with Store.open(campaign.feedback) as store:
        data = _CampaignData(campaign, Ledger(store, campaign.name))
    counted, listed = Counter(data.states.values()), days(data.answers, cap)
    if hours is not None:
        write_hours(hours, listed)
    work, usable, agreed = _work(data.answers, listed), winners(data.votes), agreement(data.votes)
    cost = None if price is None else price * work.hours
    return CampaignStatus(
        campaign=campaign.name,
        project=data.state.project,
        url=data.state.url,
        pulled_at=data.pulled_at,
        tasks=len(data.tasks),
        done=counted["done"],
        open=counted["open"],
        contested=counted["contested"],
        short=counted["short"],
        judgments=len(data.judgments),
        skipped=sum(answer.outcome in SKIPS for answer in data.answers),
        edited=sum(EDITED in judgment.flags for judgment in data.judgments),
        quarantine=data.quarantine,
        work=work,
        cap=cap,
        agreement=agreed,
        usable=usable,
        price=price,
        cost=cost,
        pair_cost=cost / usable if cost is not None and usable else None,
        projection=data.projection(),
        guideline=data.guideline,
        people=data.people(listed, agreed),
        days=listed,
    )


class _CampaignData:
    """A campaign's part of the store: what was sent, what came back, and what of it counts.

    ``tasks`` are those on the server but calibration, ``asked`` how many people judge each.
    """

    def __init__(self, campaign: Campaign, ledger: Ledger) -> None:
        self.campaign = campaign
        self.state = ledger.pushed_state()
        self.pulled_at = _moment(self.state.pulled_at) if self.state.pulled_at else None
        tasks = ledger.tasks().items()
        self.tasks = {key: t for key, t in tasks if t.task_id is not None and t.purpose != "calibration"}
        self.asked = people_asked(self.tasks, campaign.votes, ledger.reopened())
        self.answers = [row for row in ledger.pulled().values() if row.outcome != ERASED]
        self.excluded, judgments = excluded(ledger.store), own_judgments(ledger)
        sources = {source_of(campaign.name, key) for key in self.tasks}
        self.judgments = [judgment for judgment in judgments if judgment.source in sources]
        counting = counting_judgments(judgments, questions_of(ledger.store), self.excluded).judgments
        self.votes = answers_of(counting)
        self.states = task_states(
            campaign.name,
            self.asked,
            campaign.votes,
            self.answers,
            [judgment for judgment in self.judgments if judgment.annotator not in self.excluded],
            contested_tasks(ledger, contested(self.votes)),
        )
        self.quarantine = dict(Counter(row.reason for row in ledger.quarantined()).most_common())
        self.guideline = _guideline(ledger, self.tasks.values())

    def projection(self) -> Projection:
        """Project when all open tasks will be answered."""
        answered = [answer for answer in self.answers if answer.key in self.asked and answer.outcome in ANSWERED]
        given = Counter(key for key, _ in {(a.key, a.annotator) for a in answered})
        missing = sum(max(0, people - given[key]) for key, people in self.asked.items())
        if self.pulled_at is None:
            return Projection(None, None, missing, "never pulled")
        return project_end((_moment(answer.created_at) for answer in answered), missing, self.pulled_at)

    def people(self, listed: Iterable[Day], agreed: Agreement) -> list[AnnotatorStatus]:
        """Return everybody who answered or skipped something, who judged most first."""
        judged, spent = _by_name(self.judgments), _by_name(listed)
        known = {}
        if any(task.purpose == "gold" for task in self.tasks.values()):
            known = {(row.annotator, row.kind): row.share for row in gold.report(self.campaign).accuracies}
        open_keys = {key for key, state in self.states.items() if state == "open"}
        disputed = {source_of(self.campaign.name, key) for key, state in self.states.items() if state == "contested"}
        people = []
        for name, own in _by_name(self.answers).items():
            mine, outcomes = judged.get(name, []), Counter(answer.outcome for answer in own)
            person = AnnotatorStatus(
                annotator=name,
                done=len(mine),
                open=len(open_keys - {answer.key for answer in own}),
                contested=sum(judgment.source in disputed for judgment in mine),
                skipped=sum(outcomes[outcome] for outcome in SKIPS),
                quarantined=outcomes[QUARANTINE],
                edited=sum(EDITED in judgment.flags for judgment in mine),
                work=_work(own, spent.get(name, [])),
                agreement=agreed.by_person.get(name) or proportion(0, 0, 0),
                gold=known.get((name, "gold")),
                attention=known.get((name, "attention")),
                excluded=self.excluded.get(name),
            )
            people.append(person)
        return sorted(people, key=lambda person: (-person.done, person.annotator))


def _work(answers: Sequence[Pulled], listed: Sequence[Day]) -> WorkTime:
    judged = [s for answer in answers if answer.outcome == JUDGMENT and (s := seconds_of(answer)) is not None]
    hours, untimed = sum(day.hours for day in listed), sum(day.untimed for day in listed)
    per_hour = (len(answers) - untimed) / hours if hours else None
    return WorkTime(median(judged) if judged else None, per_hour, hours, untimed)


def _by_name(rows: Iterable[Any]) -> dict[str, list[Any]]:
    """Group rows by their annotator."""
    by_name: dict[str, list[Any]] = {}
    for row in rows:
        by_name.setdefault(row.annotator, []).append(row)
    return by_name


def _guideline(ledger: Ledger, tasks: Iterable[Task]) -> Guideline:
    versions = ledger.guidelines()
    numbers = {version.sha256: number for number, version in enumerate(versions, 1)}
    shown = Counter(numbers[task.guideline] for task in tasks if task.guideline in numbers)
    newest = max(shown, default=None)
    return Guideline(newest, len(versions), versions[newest - 1].since if newest else None, dict(sorted(shown.items())))


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
