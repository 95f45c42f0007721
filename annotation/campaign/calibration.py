"""`annotate calibration`: who has passed the round that comes before the work, against known answers.

In: a campaign with ``calibration``, judgments on its items, the accounts of a server. Out: per person how many items
were answered and right, and whether that passes. The items are the same for everybody, but for those in languages that
a person does not list; the share that is right decides, not an interval, as of the last pull. Work is not sent before
enough people have passed (``push.py``), other people's judgments go into quarantine (``parse.py``), and judgments on
these items never become votes.

The open-source server assigns nothing: the items are the first tasks of the campaign's own project, and stay open for
everybody, so that people who join later are shown them first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from align.core.config import BadInput
from annotation.campaign.known import marks_of, stored_items
from annotation.campaign.people import people_of
from annotation.campaign.settings import Campaign
from annotation.label_studio.studio import Studio
from annotation.store.ledger import Ledger
from annotation.store.store import Store

EVERYBODY = 1000  # people that an item stays open for


class CalibrationResult(NamedTuple):
    """A person's progress in the round: items in their languages, answered ones, and right ones."""

    address: str
    n_asked: int
    n_answered: int
    n_right: int
    bar: float

    @property
    def is_done(self) -> bool:
        return 0 < self.n_asked <= self.n_answered

    @property
    def has_passed(self) -> bool:
        return self.is_done and self.n_right >= self.bar * self.n_asked

    @property
    def summary(self) -> str:
        """Return how far they are, for a line that names them."""
        if not self.n_asked:
            return "no item is in a language of theirs"
        if not self.is_done:
            return f"not done, {self.n_answered} of {self.n_asked} answered"
        return f"{'passed' if self.has_passed else 'not passed'}, {self.n_right} of {self.n_asked} right"


class CalibrationRound(NamedTuple):
    """Everybody who may take part, by the name in the store."""

    people: dict[str, CalibrationResult]
    n_needed: int

    @property
    def n_passed(self) -> int:
        return sum(result.has_passed for result in self.people.values())


def calibration(campaign: Campaign, studio: Studio) -> CalibrationRound:
    """Report who has passed the calibration round and how far the others are, as of the last pull.

    Raises:
        BadInput: the campaign has no round, or it was not pushed yet.
    """
    if campaign.calibration is None:
        raise BadInput(f"campaign '{campaign.name}' has no calibration round; set calibration.file")
    with Store.open(campaign.feedback) as store:
        ledger = Ledger(store, campaign.name)
        return calibration_results(campaign, ledger, people_of(studio, ledger.pushed_state().url))


def calibration_results(campaign: Campaign, ledger: Ledger, people: Mapping[str, str]) -> CalibrationRound:
    """Return the round by person: the campaign's annotators or, where it lists none, all who answered an item.

    Args:
        people: addresses by the name that the store knows them by.
    """
    languages = [comparison.language for _, comparison in stored_items(ledger, "calibration")]
    marks: dict[str, list[bool]] = {}
    for (name, _), rights in marks_of(ledger, "calibration").items():
        marks.setdefault(name, []).extend(rights)
    results = {}
    for name, address in people.items():
        if address in campaign.annotators or (not campaign.annotators and name in marks):
            n_asked, own = sum(campaign.speaks(address, language) for language in languages), marks.get(name, [])
            bar = campaign.calibration.bar if campaign.calibration else 1.0
            results[name] = CalibrationResult(address, n_asked, len(own), sum(own), bar)
    return CalibrationRound(results, campaign.people_to_pass)
