"""Where a campaign stands: the record that `annotate status` makes (``status.py``), and how it reads.

In: counts, shares, hours. Out: fields for a notebook, and text of one campaign over a table of its people. Nothing is
computed here. Text that came from a server is shown without control and direction characters.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from align.core.stats.estimates import Estimate
from annotation.agreement.answers import Agreement
from annotation.campaign.hours import Day
from annotation.campaign.projection import Projection


class Work(NamedTuple):
    """Speed and paid time: median seconds of a judgment, answers an hour, hours, answers of which no time is known."""

    seconds: float | None
    per_hour: float | None
    hours: float
    untimed: int


class Person(NamedTuple):
    """An annotator by the store's name: tasks judged, tasks still open to them, judged tasks that are contested.

    ``agreement``, ``gold`` and ``attention`` are shares with interval and counts; ``excluded`` is the reason.
    """

    annotator: str
    done: int
    open: int
    contested: int
    skipped: int
    set_aside: int
    edited: int
    work: Work
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
    work: Work
    cap: float
    agreement: Agreement
    usable: int
    price: float | None
    cost: float | None
    pair_cost: float | None
    projection: Projection
    guideline: Guideline
    people: list[Person]
    days: list[Day]

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _lines(found: Status) -> list[str]:
    """The status as text: the campaign line by line, then its people as a table."""
    as_of = f"as of the last pull, {_time(found.pulled_at)}" if found.pulled_at else "never pulled"
    lines = [
        f"{found.campaign}: project {found.project} of {found.url}, {as_of}",
        f"tasks: {found.tasks}; {found.done} done, {found.open} open, {found.contested} contested, {found.short} with "
        "too few votes that count",
        f"answers: {found.judgments} judgments, {found.skipped} skipped, {found.edited} edited by others, "
        f"{sum(found.quarantine.values())} in quarantine",
        *(f"  {count} in quarantine: {_printable(reason)}" for reason, count in found.quarantine.items()),
        f"speed: {_number(found.work.seconds, 's a task (median)')}, {_number(found.work.per_hour, 'tasks an hour')}",
        f"agreement with most others: {_share(found.agreement.overall)}; alpha: {_share(found.agreement.alpha)}",
        f"paid hours: {found.work.hours:.2f}; an answer counts at most {found.cap:g} s, "
        f"{found.work.untimed} answers have no time",
    ]
    if found.cost is not None:
        each = "–" if found.pair_cost is None else f"{found.pair_cost:.2f}"
        lines.append(f"cost: {found.cost:.2f}; {each} a usable pair ({found.usable} of them)")
    end = found.projection
    when = f"about {_time(end.ends)}, at {end.per_day:.1f} answers a day" if end.ends and end.per_day else end.reason
    lines.append(f"projected end: {when}; {end.missing} answers are missing")
    shown = ", ".join(f"version {number} on {count} tasks" for number, count in found.guideline.shown.items())
    if found.guideline.version:
        lines.append(f"guidelines: version {found.guideline.version}, since {found.guideline.since}; {shown}")
    return [*lines, *_table(found)]


def _table(found: Status) -> list[str]:
    if not found.people:
        return ["nobody answered yet"]
    titles = ["annotator", "done", "open", "contested", "skipped", "set aside", "edited", "seconds", "an hour", "hours"]
    rows = [[*titles, "agreement", "gold", "attention", ""]]
    for person in found.people:
        counts = (person.done, person.open, person.contested, person.skipped, person.set_aside, person.edited)
        work = (_number(person.work.seconds), _number(person.work.per_hour), f"{person.work.hours:.2f}")
        shares = (_hits(person.agreement), _hits(person.gold), _hits(person.attention))
        is_out = "" if person.excluded is None else f"excluded: {_printable(person.excluded)}"
        rows.append([_printable(person.annotator), *map(str, counts), *work, *shares, is_out])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    for row, cells in zip(aligned, rows, strict=True):
        row[0], row[-1] = cells[0].ljust(widths[0]), cells[-1]
    return ["  ".join(row).rstrip() for row in aligned]


def _share(share: Estimate) -> str:
    return "not measured" if share.value is None else f"{share}, n {share.n_scored}"


def _hits(share: Estimate | None) -> str:
    """A share as a percentage and its count."""
    if share is None or share.value is None:
        return "–"
    return f"{100 * share.value:.0f} % of {share.n_scored}"


def _number(value: float | None, what: str = "") -> str:
    return f"{'–' if value is None else f'{value:.1f}'} {what}".rstrip()


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _printable(text: str) -> str:
    """Text that moves no cursor and turns no direction."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
