"""Judgments to votes to tallies: what people answered about each two responses, counted.

In: judgments (a ranking of k responses is one vote on each of its C(k, 2) pairs). Out: votes, and per pair of
responses a tally with its plain majority, which weighs everybody alike. Pure functions. Not here: the reliability of
annotators and the strength of responses (``estimators.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

from align.core.records import Judgment

FIRST, SECOND, TIE = 0, 1, 2
UP, DOWN = "up", "down"  # labels of a judgment that is a thumb; no label set may use them
BOTH_BAD = "both_bad"  # flag of a judgment that likes neither response
UNKNOWN_SIDES = "sides unknown"  # flag of a judgment whose ``shown`` is not what a person saw
Unit = tuple[str, int, int]  # comparison id, first and second response


class Vote(NamedTuple):
    """One person's answer to one question: which of two responses is better, or what a single one is called.

    ``first`` < ``second`` in canonical order. ``left`` is the response shown first, None where that is unknown. Where
    ``label`` is given it is the answer, and ``first`` = ``second`` is the response that it names.
    """

    comparison_id: str
    first: int
    second: int
    annotator: str
    outcome: int
    strength: int | None
    left: int | None
    seconds: float | None
    source: str = "unknown"
    guideline: str | None = None
    margin: float | None = None
    label: str | None = None

    @property
    def unit(self) -> Unit:
        """What the vote is about, whichever task asked for it."""
        return self.comparison_id, self.first, self.second

    @property
    def answer(self) -> int | str:
        """The label, or the outcome of two responses."""
        return self.outcome if self.label is None else self.label


class Tally(NamedTuple):
    """All votes on two responses, and which of them wins.

    ``counts`` = [for first, for second, ties]. ``strengths`` > 0 favour the first: those from 0 to 3, and only where
    nobody gave one, margins on their source's own scale. ``winner`` is an outcome, None where two outcomes lead
    together; ``weight`` is the winner's probability, where a method estimates one.
    """

    comparison_id: str
    first: int
    second: int
    counts: tuple[int, int, int]
    strengths: tuple[float, ...]
    winner: int | None
    weight: float = 1.0

    @property
    def unit(self) -> Unit:
        return self.comparison_id, self.first, self.second

    @property
    def margin(self) -> float:
        """Mean signed strength towards the winner; 0.0 without strengths."""
        if not self.strengths:
            return 0.0
        mean = sum(self.strengths) / len(self.strengths)
        return mean if self.winner == FIRST else -mean


def votes_of(judgments: Iterable[Judgment]) -> list[Vote]:
    """Expand judgments into votes on two responses each.

    Strength belongs to a judgment of two responses; a ranking of more does not tell how far apart two of them are.
    """
    votes = []
    for judgment in judgments:
        rank = {index: place for place, group in enumerate(judgment.ranking) for index in group}
        place_on_screen = {index: place for place, index in enumerate(judgment.shown)}
        knows_sides = UNKNOWN_SIDES not in judgment.flags
        strength, margin = (judgment.strength, judgment.margin) if len(rank) == 2 else (None, None)
        for first, second in combinations(sorted(rank), 2):
            outcome = TIE if rank[first] == rank[second] else FIRST if rank[first] < rank[second] else SECOND
            left = min(first, second, key=place_on_screen.__getitem__) if knows_sides else None
            unit = (judgment.comparison_id, first, second)
            facts = (judgment.seconds, judgment.source, judgment.guideline)
            votes.append(Vote(*unit, judgment.annotator, outcome, strength, left, *facts, margin))
    return votes


def answers_of(judgments: Sequence[Judgment]) -> list[Vote]:
    """Return votes on two responses each, and the labels of single responses as votes, too."""
    single = [j for j in judgments if len(j.shown) == 1 and j.label is not None]
    return votes_of(judgments) + [
        Vote(j.comparison_id, 0, 0, j.annotator, TIE, None, None, j.seconds, j.source, j.guideline, label=j.label)
        for j in single
    ]


def tallies(votes: Iterable[Vote]) -> list[Tally]:
    """Count votes by comparison and pair of responses, in that order; the plain majority wins."""
    by_unit: dict[Unit, list[Vote]] = {}
    for vote in votes:
        by_unit.setdefault(vote.unit, []).append(vote)
    return [_tally(unit, group) for unit, group in sorted(by_unit.items())]


def majority(counts: tuple[int, int, int]) -> int | None:
    """Return the outcome with the most votes (``FIRST``, ``SECOND`` or ``TIE``); None where two lead together."""
    top = max(counts)
    leaders = [outcome for outcome in (FIRST, SECOND, TIE) if counts[outcome] == top]
    return leaders[0] if len(leaders) == 1 and top > 0 else None


def signed(vote: Vote, size: float) -> float:
    """Return a strength that is above 0 where it favours the first response."""
    return 0.0 if vote.outcome == TIE else float(size if vote.outcome == FIRST else -size)


def is_shared(votes: Sequence[Vote]) -> bool:
    """Return whether some two people voted on the same two responses."""
    people: dict[Unit, str] = {}
    return any(people.setdefault(vote.unit, vote.annotator) != vote.annotator for vote in votes)


def _tally(unit: Unit, votes: list[Vote]) -> Tally:
    outcomes = [vote.outcome for vote in votes]
    strengths = [signed(vote, vote.strength) for vote in votes if vote.strength is not None]
    strengths = strengths or [signed(vote, vote.margin) for vote in votes if vote.margin is not None]
    counts = (outcomes.count(FIRST), outcomes.count(SECOND), outcomes.count(TIE))
    return Tally(*unit, counts, tuple(sorted(strengths)), majority(counts))
