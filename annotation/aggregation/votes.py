"""Judgments to votes to tallies: what people said about each two responses, counted.

In: judgments (a ranking of k responses is one vote on each of its C(k, 2) pairs). Out: votes, and per pair of
responses a tally with its majority. Pure functions. Only the plain majority stands here, which weighs everybody alike;
who is more reliable, and which response is stronger, is estimated in ``truth.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

from align.core.records import Judgment

FIRST, SECOND, TIE = 0, 1, 2
UP, DOWN = "up", "down"  # labels of a judgment that is a thumb; no label set may use them
UNKNOWN_SIDES = "sides unknown"  # flag of a judgment whose ``shown`` is not what a person saw


class Vote(NamedTuple):
    """One person's word on two responses of a comparison; ``first`` < ``second`` in canonical order."""

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


class Tally(NamedTuple):
    """All votes on two responses: ``counts`` = [for first, for second, ties], ``strengths`` > 0 favour the first.

    Strengths are those from 0 to 3; only where nobody gave one, they are margins on their source's own scale.
    """

    comparison_id: str
    first: int
    second: int
    counts: tuple[int, int, int]
    strengths: tuple[float, ...]


def votes(judgments: Iterable[Judgment]) -> list[Vote]:
    """Expand judgments into votes.

    ``left`` is the response index shown first (None where the sides are unknown). Strength belongs to a judgment of
    two responses; a ranking of more says nothing about how far apart two of them stand.
    """
    found = []
    for judgment in judgments:
        rank = {index: place for place, group in enumerate(judgment.ranking) for index in group}
        place_on_screen = {index: place for place, index in enumerate(judgment.shown)}
        knows_sides = UNKNOWN_SIDES not in judgment.flags
        strength, margin = (judgment.strength, judgment.margin) if len(rank) == 2 else (None, None)
        for first, second in combinations(sorted(rank), 2):
            outcome = TIE if rank[first] == rank[second] else FIRST if rank[first] < rank[second] else SECOND
            left = min(first, second, key=place_on_screen.__getitem__) if knows_sides else None
            found.append(
                Vote(
                    judgment.comparison_id,
                    first,
                    second,
                    judgment.annotator,
                    outcome,
                    strength,
                    left,
                    judgment.seconds,
                    judgment.source,
                    judgment.guideline,
                    margin,
                )
            )
    return found


def tallies(cast: Iterable[Vote]) -> list[Tally]:
    """Count votes by comparison and pair of responses, in that order."""
    grouped: dict[tuple[str, int, int], list[Vote]] = {}
    for vote in cast:
        grouped.setdefault((vote.comparison_id, vote.first, vote.second), []).append(vote)
    return [_tally(key, group) for key, group in sorted(grouped.items())]


def majority(counts: tuple[int, int, int]) -> int | None:
    """The outcome with the most votes (``FIRST``, ``SECOND`` or ``TIE``), or None where two of them lead together."""
    top = max(counts)
    leaders = [outcome for outcome in (FIRST, SECOND, TIE) if counts[outcome] == top]
    return leaders[0] if len(leaders) == 1 and top > 0 else None


def margin(tally: Tally, chosen: int) -> float:
    """Mean signed strength towards the chosen outcome; a tie counts as 0, no strengths at all give 0.0."""
    if not tally.strengths:
        return 0.0
    mean = sum(tally.strengths) / len(tally.strengths)
    return mean if chosen == FIRST else -mean


def _tally(key: tuple[str, int, int], group: list[Vote]) -> Tally:
    outcomes = [vote.outcome for vote in group]
    strengths = [_signed(vote, vote.strength) for vote in group if vote.strength is not None]
    strengths = strengths or [_signed(vote, vote.margin) for vote in group if vote.margin is not None]
    counts = (outcomes.count(FIRST), outcomes.count(SECOND), outcomes.count(TIE))
    return Tally(*key, counts, tuple(sorted(strengths)))


def _signed(vote: Vote, size: float) -> float:
    if vote.outcome == TIE:
        return 0.0
    return float(size if vote.outcome == FIRST else -size)


def is_shared(cast: Sequence[Vote]) -> bool:
    """Whether some two people voted on the same two responses."""
    people: dict[tuple[str, int, int], str] = {}
    return any(people.setdefault((v.comparison_id, v.first, v.second), v.annotator) != v.annotator for v in cast)
