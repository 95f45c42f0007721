"""`annotate status`: how far a campaign is, who did what, what it cost, and when it will be done.

In: ``feedback.db`` alone, as of the last pull; the server may be down. Out: counts, shares with their intervals, hours.
A task is open while fewer people answered it than were asked; then it is contested (``contested.py``), short, where
fewer votes count than were asked for (in quarantine, declined, of an excluded annotator), or done. A skip is no answer:
the server asks somebody else. Calibration tasks are work that is paid and timed, and no tasks here. What cannot be said
is None. Not here: who somebody is (the store knows no addresses), and the measures with all their cuts
(``agreement.py``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import NamedTuple, Protocol, TypeVar

from align.core.config import BadInput
from align.core.records import Judgment
from align.core.stats.estimates import Estimate, proportion
from annotation.aggregation.counting import counting_judgments, questions_of
from annotation.aggregation.votes import Vote, answers_of
from annotation.agreement.answers import Agreement, agreement, contested, winners
from annotation.campaign import gold
from annotation.campaign.contested import contested_tasks, own_judgments
from annotation.campaign.hours import CAP, Day, Projection, days, project_end, seconds_of, write_hours
from annotation.campaign.parse import ANSWERED, JUDGMENT, QUARANTINE, SKIPS
from annotation.campaign.settings import Campaign
from annotation.interface.decode import EDITED
from annotation.store.ledger import Ledger, excluded, source_of
from annotation.store.store import Store
from annotation.store.tables import ERASED, CampaignState, Pulled, Task


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


class Status(NamedTuple):
    """Where a campaign stands; ``cost`` and ``pair_cost`` are None without a price or anything to divide by.

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


class Named(Protocol):
    """What somebody did."""

    @property
    def annotator(self) -> str: ...


NamedT = TypeVar("NamedT", bound=Named)


class CampaignData(NamedTuple):
    """What a campaign's part of the store says: what was sent, what came back, and what of it counts.

    ``tasks`` are those on the server but calibration, ``asked_of`` how many people judge each, ``counting`` the
    judgments of annotators who are not excluded.
    """

    state: CampaignState
    pulled_at: datetime | None
    tasks: dict[str, Task]
    asked_of: dict[str, int]
    answers: list[Pulled]
    judgments: list[Judgment]
    counting: list[Judgment]
    votes: list[Vote]
    disputed: list[str]
    quarantine: dict[str, int]
    guideline: Guideline
    excluded: dict[str, str]


def status(campaign: Campaign, *, hours: Path | None = None, price: float | None = None, cap: float = CAP) -> Status:
    """Report a campaign's progress, cost and projected end, as of its last pull.

    Args:
        hours: a file to write paid hours to, as CSV.
        price: the price of an hour of work.
        cap: the most seconds that one answer counts as paid work.

    Raises:
        BadInput: the campaign was never pushed, or settings that cannot be.
    """
    if not 0 < cap < math.inf or (price is not None and not 0 <= price < math.inf):
        raise BadInput("status: cap= is in seconds and must be above 0, price= must not be below")
    with Store.open(campaign.feedback) as store:
        data = _campaign_data(campaign, Ledger(store, campaign.name))
    states = _states(campaign, data)
    counted, listed = Counter(states.values()), days(data.answers, cap)
    if hours is not None:
        write_hours(hours, listed)
    work, usable, agreed = _work(data.answers, listed), winners(data.votes), agreement(data.votes)
    cost = None if price is None else price * work.hours
    return Status(
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
        projection=_projection(data),
        guideline=data.guideline,
        people=_people(campaign, data, states, listed, agreed),
        days=listed,
    )


def _campaign_data(campaign: Campaign, ledger: Ledger) -> CampaignData:
    state = ledger.pushed_state()
    tasks = {key: t for key, t in ledger.tasks().items() if t.task_id is not None and t.purpose != "calibration"}
    reopened, gone, judgments = ledger.reopened(), excluded(ledger.store), own_judgments(ledger)
    votes = answers_of(counting_judgments(judgments, questions_of(ledger.store), gone).judgments)
    sources = {source_of(campaign.name, key) for key in tasks}
    judged = [judgment for judgment in judgments if judgment.source in sources]
    return CampaignData(
        state=state,
        pulled_at=_moment(state.pulled_at) if state.pulled_at else None,
        tasks=tasks,
        asked_of={key: max(campaign.votes, reopened.get(key, 0)) for key in tasks},
        answers=[row for row in ledger.pulled().values() if row.outcome != ERASED],
        judgments=judged,
        counting=[judgment for judgment in judged if judgment.annotator not in gone],
        votes=votes,
        disputed=contested_tasks(ledger, contested(votes)),
        quarantine=dict(Counter(row.reason for row in ledger.quarantined()).most_common()),
        guideline=_guideline(ledger, tasks.values()),
        excluded=gone,
    )


def _states(campaign: Campaign, data: CampaignData) -> dict[str, str]:
    """What each task is: open, contested, short or done."""
    people = Counter(key for key, _ in {(a.key, a.annotator) for a in data.answers if a.outcome in ANSWERED})
    votes = Counter(source for source, _ in {(j.source, j.annotator) for j in data.counting})
    states, disputed = {}, set(data.disputed)
    for key, wanted in data.asked_of.items():
        if people[key] < wanted:
            states[key] = "open"
        elif key in disputed:
            states[key] = "contested"
        else:
            states[key] = "short" if votes[source_of(campaign.name, key)] < campaign.votes else "done"
    return states


def _projection(data: CampaignData) -> Projection:
    answered = [a for a in data.answers if a.key in data.asked_of and a.outcome in ANSWERED]
    given = Counter(key for key, _ in {(a.key, a.annotator) for a in answered})
    missing = sum(max(0, people - given[key]) for key, people in data.asked_of.items())
    if data.pulled_at is None:
        return Projection(None, None, missing, "never pulled")
    return project_end((_moment(answer.created_at) for answer in answered), missing, data.pulled_at)


def _people(
    campaign: Campaign, data: CampaignData, states: Mapping[str, str], listed: Iterable[Day], agreed: Agreement
) -> list[AnnotatorStatus]:
    """Everybody who answered or skipped something, who judged most first."""
    answers, judged, spent = _by_name(data.answers), _by_name(data.judgments), _by_name(listed)
    known = {}
    if any(task.purpose == "gold" for task in data.tasks.values()):
        known = {(row.annotator, row.kind): row.share for row in gold.report(campaign).accuracies}
    open_keys = {key for key, state in states.items() if state == "open"}
    disputed = {source_of(campaign.name, key) for key, state in states.items() if state == "contested"}
    people = []
    for name, own in answers.items():
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
            excluded=data.excluded.get(name),
        )
        people.append(person)
    return sorted(people, key=lambda person: (-person.done, person.annotator))


def _work(answers: Iterable[Pulled], listed: Iterable[Day]) -> WorkTime:
    rows, spent = list(answers), list(listed)
    judged = [seconds for row in rows if row.outcome == JUDGMENT and (seconds := seconds_of(row)) is not None]
    hours, untimed = sum(day.hours for day in spent), sum(day.untimed for day in spent)
    return WorkTime(
        median(judged) if judged else None, (len(rows) - untimed) / hours if hours else None, hours, untimed
    )


def _by_name(rows: Iterable[NamedT]) -> dict[str, list[NamedT]]:
    by_name: dict[str, list[NamedT]] = {}
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
