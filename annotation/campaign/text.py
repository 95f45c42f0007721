"""Show the records of the `annotate` verbs as lines of text.

In: the records that the verbs return. Out: lines, none of which can move a cursor: text from a server or a file is made
visible first. A record without a function here is shown by its fields.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import singledispatch
from typing import IO, Any

from align.core.stats.estimates import Estimate, format_number
from align.report.page import visible
from annotation.campaign.calibration import CalibrationRound
from annotation.campaign.contested import Reopened
from annotation.campaign.gold import Accuracy, GoldAdded, GoldReport
from annotation.campaign.people import Participant
from annotation.campaign.plan import Plan
from annotation.campaign.pull import PullResult
from annotation.campaign.push import PushResult
from annotation.campaign.status import AnnotatorStatus, CampaignStatus
from annotation.label_studio.accounts import Account
from annotation.store.chain import Verification
from annotation.store.erasure import Erased
from annotation.store.exports import Exported
from annotation.store.lineage import DependentRun, VerifiedStore


@singledispatch
def lines(result: Any) -> list[str]:
    """Return the lines that show a result."""
    if hasattr(result, "_asdict"):
        return [f"{name.replace('_', ' ')}: {value}" for name, value in result._asdict().items()]
    return str(result).split("\n")


# --- accounts and people --------------------------------------------------------------------------------------


@lines.register
def _(account: Account) -> list[str]:
    return [f"{account.email}  {account.password}"]


@lines.register
def _(person: Participant) -> list[str]:
    return [f"{person.name}  {person.address}  {person.judgments} judgments"]


@lines.register
def _(calibration: CalibrationRound) -> list[str]:
    head = f"{calibration.n_passed} have passed the calibration round, work is sent when {calibration.n_needed} have"
    return [head, *(f"{name} {person.address}: {person.summary}" for name, person in calibration.people.items())]


# --- known answers --------------------------------------------------------------------------------------------


@lines.register
def _(added: GoldAdded) -> list[str]:
    text = f"{added.new} known answers are new, {added.corrected} corrected, {added.unchanged} as they were"
    if added.in_queue:
        text += f"; {added.in_queue} of these comparisons are in the queue already"
    if added.waiting:
        text += f"; {added.waiting} wait for the next push of new work, which mixes them in"
    return [text]


@lines.register
def _(accuracy: Accuracy) -> list[str]:
    share = accuracy.share
    low, high = (format_number(end, share.half_width) for end in (share.low, share.high))
    text = f"{accuracy.annotator} {accuracy.kind}: {accuracy.right} right ({low} to {high})"
    return [text + (", under the bar" if accuracy.is_under else "")]


@lines.register
def _(report: GoldReport) -> list[str]:
    shown = [
        f"{report.n_items} known answers, bar {report.bar:g}; under it is whose exact 95 % interval ends below it",
        *(line for accuracy in report.accuracies for line in lines(accuracy)),
    ]
    if not report.accuracies:
        shown.append("nobody answered one of them yet, as of the last pull")
    for name in report.under:
        own = [accuracy for accuracy in report.accuracies if accuracy.annotator == name and accuracy.is_under]
        why = ", ".join(f"{accuracy.kind} {accuracy.right}" for accuracy in own)
        shown.append(f"to exclude: align annotate exclude feedback={report.feedback} annotator={name} reason='{why}'")
    return shown


# --- to the server and back -----------------------------------------------------------------------------------


@lines.register
def _(pushed: PushResult) -> list[str]:
    shown = [
        f"project {pushed.project}: {pushed.tasks} tasks, {pushed.new} new, guidelines version "
        f"{pushed.guideline_version}"
    ]
    if pushed.recovered or pushed.unknown:
        shown.append(f"{pushed.recovered} tasks taken back by their texts, {pushed.unknown} whose sides are not known")
        shown.append(
            "if the store was lost, its known answers and exclusions are gone with it: run 'gold add' and "
            "'exclude' again before 'pairs'"
        )
    shown += [f"left out: {count} {reason}" for reason, count in sorted(pushed.dropped.items())]
    shown += [
        f"task {copy} is a copy of task {number}, made on the server: people are asked twice; delete it there"
        for copy, number in pushed.copies
    ]
    if pushed.work_waiting:
        shown.append(f"{pushed.work_waiting} tasks wait until enough people have passed the calibration round")
    if pushed.gold_waiting and not pushed.work_waiting:
        shown.append(f"{pushed.gold_waiting} known answers wait for more new work to be mixed into (gold_share)")
    if pushed.refreshed:
        shown.append(f"{pushed.refreshed} unanswered tasks show these guidelines now")
    if pushed.older_guidelines:
        shown.append(f"{pushed.older_guidelines} unanswered tasks show other guidelines: push --refresh changes them")
    return shown


@lines.register
def _(reopened: Reopened) -> list[str]:
    maximum = f"judged by as many people as may be, {reopened.maximum} (maximum=, or all of annotators:)"
    rest = (
        (reopened.waiting, "open already and waiting for a person"),
        (reopened.at_maximum, maximum),
        (reopened.changed, "changed since the pull"),
        (reopened.over_limit, "left for another time by limit="),
    )
    counted = "".join(f"; {count} {what}" for count, what in rest if count)
    short = f" ({reopened.short} for want of votes that count)" if reopened.short else ""
    return [f"{reopened.reopened} of {reopened.contested} contested tasks{short} re-opened{counted}"]


def poll_line(number: int, is_full: bool, pulled: PullResult, outcomes: Counter[str]) -> str:
    """Return the line of one poll; ``outcomes`` are those since the watch began."""
    now = ", ".join(f"{count} {outcome}" for outcome, count in pulled.outcomes.items()) or "nothing new"
    back = f", {pulled.taken_back} taken back" if pulled.taken_back else ""
    whole = ", everything read again" if is_full else ""
    total = f"{pulled.judgments} judgments, {pulled.quarantined} in quarantine"
    return f"poll {number}: {now}{back}{whole}; {total}; {outcomes.total()} answers since the start"


class Screen:
    """A last line that is written over on a terminal; elsewhere lines one after the other."""

    def __init__(self, out: IO[str]) -> None:
        self.out, self.rewrites, self.has_line = out, out.isatty(), False

    def update(self, line: str, is_news: bool) -> None:
        """Show the state: in place of the last one, or only when it is news."""
        if self.rewrites:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be written over
            self._write(f"\r{line[:width]}\x1b[K")
            self.has_line = True
        elif is_news:
            self._write(line + "\n")

    def keep(self, line: str) -> None:
        """Show a line that stays."""
        self.end()
        self._write(line + "\n")

    def end(self) -> None:
        """Leave the line that was being written over as it is."""
        if self.has_line:
            self._write("\n")
        self.has_line = False

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()


# --- where a campaign is --------------------------------------------------------------------------------------


@lines.register
def _(plan: Plan) -> list[str]:
    return plan.text.split("\n")


@lines.register
def _(status: CampaignStatus) -> list[str]:
    """Show the campaign line by line, then its people as a table."""
    as_of = f"as of the last pull, {_time(status.pulled_at)}" if status.pulled_at else "never pulled"
    work = status.work
    shown = [
        f"{status.campaign}: project {status.project} of {status.url}, {as_of}",
        f"tasks: {status.tasks}; {status.done} done, {status.open} open, {status.contested} contested, {status.short} "
        "with too few votes that count",
        f"answers: {status.judgments} judgments, {status.skipped} skipped, {status.edited} edited by others, "
        f"{sum(status.quarantine.values())} in quarantine",
        *(f"  {count} in quarantine: {visible(reason)}" for reason, count in status.quarantine.items()),
        f"speed: {_number(work.seconds, 's per task (median)')}, {_number(work.per_hour, 'tasks per hour')}",
        f"agreement with most others: {_share(status.agreement.overall)}; alpha: {_share(status.agreement.alpha)}",
        f"paid hours: {work.hours:.2f}; an answer counts at most {status.cap:g} s, {work.untimed} answers have no time",
    ]
    if status.cost is not None:
        each = "–" if status.pair_cost is None else f"{status.pair_cost:.2f}"
        shown.append(f"cost: {status.cost:.2f}; {each} per usable pair ({status.usable} of them)")
    end = status.projection
    when = f"about {_time(end.ends)}, at {end.per_day:.1f} answers per day" if end.ends and end.per_day else end.reason
    shown.append(f"projected end: {when}; {end.missing} answers are missing")
    versions = ", ".join(f"version {number} on {count} tasks" for number, count in status.guideline.shown.items())
    if status.guideline.version:
        shown.append(f"guidelines: version {status.guideline.version}, since {status.guideline.since}; {versions}")
    return [*shown, *_table(status.people)]


def _table(people: Iterable[AnnotatorStatus]) -> list[str]:
    titles = "annotator,done,open,contested,skipped,quarantine,edited,seconds,per hour,hours,agreement,gold,attention,"
    rows = [titles.split(",")]
    for person in people:
        counts = (person.done, person.open, person.contested, person.skipped, person.quarantined, person.edited)
        work = (_number(person.work.seconds), _number(person.work.per_hour), f"{person.work.hours:.2f}")
        shares = (_hits(person.agreement), _hits(person.gold), _hits(person.attention))
        is_out = "" if person.excluded is None else f"excluded: {visible(person.excluded)}"
        rows.append([visible(person.annotator), *map(str, counts), *work, *shares, is_out])
    if len(rows) == 1:
        return ["nobody answered yet"]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    for row, cells in zip(aligned, rows, strict=True):
        row[0], row[-1] = cells[0].ljust(widths[0]), cells[-1]
    return ["  ".join(row).rstrip() for row in aligned]


def _share(share: Estimate) -> str:
    return "not measured" if share.value is None else f"{share}, n {share.n_scored}"


def _hits(share: Estimate | None) -> str:
    """Write a share as a percentage and its count."""
    return "–" if share is None or share.value is None else f"{100 * share.value:.0f} % of {share.n_scored}"


def _number(value: float | None, what: str = "") -> str:
    return f"{'–' if value is None else f'{value:.1f}'} {what}".rstrip()


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


# --- the store ------------------------------------------------------------------------------------------------


@lines.register
def _(run: DependentRun) -> list[str]:
    return [f"{run.run} ({run.stage}): {run.how}"]


@lines.register
def _(erased: Erased) -> list[str]:
    gone = ", ".join(f"{count} {table}" for table, count in erased.rows.items())
    what = erased.what
    return [
        f"{what} is erased: {gone}" if gone else f"{what} was erased before: nothing was left",
        *_listed("made of it, and not changed; make them anew without it", erased.runs),
        *_listed("pairs of comparisons that this person judged, made by no run found here", erased.pairs),
        *_listed("files that still hold the name or the text", erased.files),
        *_listed("runs that cannot be read, and may be made of it", erased.unread),
        *_listed("in the store it is still mentioned in", erased.elsewhere),
        *_listed("on the labelling server it remains, and would come back into a new store", erased.server),
        "out of reach: backups, other copies, and what a disk keeps of deleted files",
    ]


@lines.register
def _(verified: Verification) -> list[str]:
    return [f"the chain verifies: {verified.entries} entries, {verified.erased} erased"]


@lines.register
def _(verified: VerifiedStore) -> list[str]:
    erased = f"{verified.erased} of them erased by {verified.erasures} erasures" if verified.erasures else "none erased"
    return [
        f"{verified.feedback}: intact, {verified.entries} entries, {erased}; head {verified.head}",
        f"{verified.runs} runs recorded heads of this chain",
        *verified.notes,
    ]


@lines.register
def _(exported: Exported) -> list[str]:
    counted = ", ".join(f"{count} {table}" for table, count in exported.rows.items())
    return [f"{exported.folder}: {counted}; annotators by {exported.annotators}"]


def _listed(title: str, things: Iterable[Any]) -> list[str]:
    listed = [f"  {line}" for thing in things for line in lines(thing)]
    return [f"{title}:", *listed] if listed else []
