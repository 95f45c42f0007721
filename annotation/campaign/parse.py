"""Parse an annotation: a judgment, a skip, or quarantine with its reason.

In: an annotation with its task on the server, and the task as it was sent. Out: an outcome, with the judgment or the
reason. Not here: what a result means (``interface/decode.py``), and which annotations are read (``pull.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from align.core.records import Judgment
from annotation.campaign.calibration import CalibrationRound, calibration_results
from annotation.campaign.settings import Campaign
from annotation.interface.config import shown_hash
from annotation.interface.decode import decode, judgment_of
from annotation.interface.regions import Undecodable
from annotation.label_studio.rows import Annotation, StudioTask
from annotation.store.ledger import Ledger, pseudonym, source_of
from annotation.store.tables import Refresh, Task

CHANGED = (
    "its task shows something else than what was sent (edited on the server): whoever judged it saw that; delete the "
    "task there and push again to have it judged anew"
)
COPIED = "a copy of an answer to another task (made on the server): nobody judged this one"
JUDGMENT, SKIPPED, QUARANTINE, SUPERSEDED = "judgment", "skipped", "quarantine", "superseded"
DECLINED = "too disturbing"  # a skip that the server takes for an answer: nobody else judges in its place
ANSWERED = (JUDGMENT, QUARANTINE, DECLINED)  # what the server counts towards a task's people
SKIPS = (SKIPPED, DECLINED)
MARGIN = timedelta(minutes=1)  # between the request of a page and the start of its own clock


class ParsedAnnotation(NamedTuple):
    """The outcome of an annotation, and the judgment or the reason."""

    outcome: str
    judgment: Judgment | None = None
    reason: str = ""


def _quarantine(reason: str) -> ParsedAnnotation:
    return ParsedAnnotation(QUARANTINE, reason=reason)


class AnnotationParser:
    """Parse the annotations of one campaign; ``round`` is the calibration round as far as it is known.

    ``people`` are addresses by account; ``url`` is the server's at the campaign's beginning, of which names are made: a
    server that moves renames nobody.
    """

    def __init__(self, campaign: Campaign, ledger: Ledger, url: str, people: Mapping[int, str]) -> None:
        self.campaign, self.ledger, self.url, self.people = campaign, ledger, url, people
        self.refreshes = ledger.refreshes()
        self.comparisons = {comparison.id: comparison for comparison in ledger.store.comparisons()}
        self.round: CalibrationRound | None = None

    def parse(self, own: Task | None, task: StudioTask, annotation: Annotation) -> ParsedAnnotation:
        """Parse one annotation; ``own`` is its task as it was sent, None where it was not sent from here."""
        if own is None or not own.shown:
            return _quarantine("its task was not sent by this campaign, so its sides are not known")
        if own.pages not in (None, shown_hash(task.data)):
            return _quarantine(CHANGED)
        if _is_copied(task, annotation):
            return _quarantine(COPIED)
        email = self.people.get(annotation.completed_by or -1)
        if email is None:
            return _quarantine(f"by account {annotation.completed_by}, which the server does not list")
        if self.campaign.annotators and email not in self.campaign.annotators:
            return _quarantine("by an account that is none of the campaign's annotators")
        if annotation.was_cancelled:
            return ParsedAnnotation(SKIPPED)
        if reason := self._unfit(own, email, annotation.completed_by):
            return _quarantine(reason)
        try:
            judged = decode(self.campaign.interface, annotation.result)
            if judged.is_skipped:
                return ParsedAnnotation(DECLINED)
            judgment = judgment_of(
                judged,
                self.comparisons[own.comparison_id],
                own.shown,
                annotator=self.name(annotation.completed_by),
                is_edited=annotation.updated_by not in (None, annotation.completed_by),
                seconds=annotation.seconds,
                guideline=guideline_read(own, self.refreshes.get(own.key, ()), annotation),
                source=source_of(self.campaign.name, own.key),
            )
        except (Undecodable, ValueError) as error:
            return _quarantine(str(error).splitlines()[0])
        return ParsedAnnotation(JUDGMENT, judgment)

    def _unfit(self, own: Task, email: str, account: int | None) -> str | None:
        """Return the reason why an annotator's judgment of a task does not count, or None."""
        comparison = self.comparisons.get(own.comparison_id)
        if comparison is not None and not self.campaign.speaks(email, comparison.language):
            return f"by an annotator who does not list the comparison's language, {comparison.language}"
        if self.campaign.calibration is None or own.purpose == "calibration":
            return None
        if self.round is None:
            people = {self.name(number): address for number, address in self.people.items()}
            self.round = calibration_results(self.campaign, self.ledger, people)
        own_round = self.round.people.get(self.name(account))
        if own_round is not None and own_round.has_passed:
            return None
        return "by an annotator who has not passed the calibration round; once they have, 'pull --full' takes it in"

    def name(self, account: int | None) -> str:
        """Return the name of an account in the store."""
        return pseudonym(self.url, account)


def _is_copied(task: StudioTask, annotation: Annotation) -> bool:
    """Return whether the server made it from an answer to another task, or from a prediction."""
    parent, body = annotation.body.get("parent_annotation"), annotation.body
    is_from_elsewhere = parent is not None and parent not in {a.id for a in task.annotations}
    made = body.get("parent_prediction") is not None or body.get("last_action") == "propagated_annotation"
    return is_from_elsewhere or made


def guideline_read(task: Task, changes: Iterable[Refresh], annotation: Annotation) -> str | None:
    """Return the hash of the guidelines that an answer was made by, None where it is not known.

    Somebody may have a task open while ``push --refresh`` changes it, so the server's clock decides: an answer that was
    sent before the change was made by the older text, one to a task opened after it by the newer.
    """
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
