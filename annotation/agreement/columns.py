"""Votes as columns: one row per vote, in an order of their own, with what each measure reads.

In: votes, the comparisons they are about, and answers known beforehand. Out: arrays of equal length; NaN where a
measure has nothing to read (a tie has no side, a time without others has nothing to be compared with).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from align.core.records import Comparison
from align.core.stats.agreement import Array, Numbers
from annotation.aggregation.votes import FIRST, SECOND, TIE, Vote, signed

Ranking = Sequence[Sequence[int]]  # tie groups of response indices, best first, as in a judgment
LEVELS = np.array([0, 2, 1])  # of FIRST, SECOND, TIE: a tie lies between the two
MISSING = -1


class VoteColumns(NamedTuple):
    """Columns over votes; shares are 1.0, 0.0 or NaN.

    ``repeat``: the same person judged the comparison before, under another source; it counts for consistency alone.
    ``strength`` is -3 (second much better) to 3. ``hurry`` is the log of the seconds over the median of the others'
    seconds on the comparison, once per judgment; ``gold``, once per judgment too, is whether it gives the known answer.
    """

    unit: Numbers
    comparison: Numbers
    person: Numbers
    outcome: Numbers
    strength: Array
    left: Array
    longer: Array
    seconds: Array
    hurry: Array
    gold: Array
    same_again: Array
    repeat: NDArray[np.bool_]

    def take(self, rows: NDArray[np.bool_] | Numbers) -> VoteColumns:
        return VoteColumns._make(column[rows] for column in self)


def columns_of(
    votes: Sequence[Vote], comparisons: Mapping[str, Comparison], gold: Mapping[str, Ranking]
) -> VoteColumns:
    """Return columns of votes in canonical order; people are numbered by name.

    Args:
        comparisons: give the texts whose lengths are compared.
        gold: the right ranking by comparison id, for tasks whose answer is known.
    """
    unit, comparison = numbered([v.unit for v in votes]), numbered([v.comparison_id for v in votes])
    _, person = np.unique([v.annotator for v in votes], return_inverse=True)
    swapped = _swapped(votes, unit)
    outcome = np.array([v.outcome for v in votes], dtype=int)
    outcome = np.where(swapped & (outcome != TIE), FIRST + SECOND - outcome, outcome)
    before = _before(unit, person)
    repeat = before != MISSING
    strengths = (None if v.strength is None else signed(v, v.strength) for v in votes)
    return VoteColumns(
        unit=unit,
        comparison=comparison,
        person=person,
        outcome=outcome,
        strength=_column(strengths) * np.where(swapped, -1.0, 1.0),
        left=_column(_took_left(v) for v in votes),
        longer=_column(_took_longer(votes, comparisons)),
        seconds=_column(v.seconds for v in votes),
        hurry=_hurry(votes),
        gold=_right(votes, gold),
        same_again=np.where(repeat, outcome == outcome[before], np.nan),
        repeat=repeat,
    )


def numbered(keys: Sequence[object]) -> Numbers:
    """Number keys by their first appearance."""
    known: dict[object, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=int)


def tabulate(unit_V: Numbers, answer_V: Numbers, n_answers: int) -> Array:
    """Count votes by unit and answer, ``(units, answers)``."""
    counts_UC = np.zeros((int(unit_V.max(initial=-1)) + 1, n_answers))
    np.add.at(counts_UC, (unit_V, answer_V), 1)
    return counts_UC


def owners(unit_V: Numbers, comparison_V: Numbers) -> Numbers:
    """Return the number of the comparison that each unit belongs to."""
    owner_U = np.zeros(int(unit_V.max(initial=-1)) + 1, dtype=int)
    owner_U[unit_V] = comparison_V
    return owner_U


def is_right(vote: Vote, answer: Ranking) -> bool | None:
    """Return whether a vote orders two responses as a known answer does.

    Responses that the answer leaves out come after those it names; None for two of them, which it does not compare.
    """
    place = {index: number for number, group in enumerate(answer) for index in group}
    first, second = place.get(vote.first, len(answer)), place.get(vote.second, len(answer))
    if vote.first not in place and vote.second not in place:
        return None
    return vote.outcome == (TIE if first == second else FIRST if first < second else SECOND)


def _column(values: Iterable[float | None]) -> Array:
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _before(unit_V: Numbers, person_V: Numbers) -> Numbers:
    """Return the row of the same person's first vote on the same unit, ``MISSING`` where this is the first."""
    first: dict[tuple[int, int], int] = {}
    rows = [first.setdefault(key, row) for row, key in enumerate(zip(unit_V.tolist(), person_V.tolist(), strict=True))]
    return np.array([MISSING if before == row else before for row, before in enumerate(rows)], dtype=int)


def _swapped(votes: Sequence[Vote], unit_V: Numbers) -> NDArray[np.bool_]:
    """Return which votes are on two responses of which everybody saw the second on the left.

    There ``FIRST`` is made to mean the one on the left: alpha and kappa weigh agreement by how often each category is
    chosen, and the canonical order is drawn by a hash, while left and right are what people chose from.
    """
    lefts: dict[int, set[int | None]] = {}
    units = unit_V.tolist()
    for vote, unit in zip(votes, units, strict=True):
        lefts.setdefault(unit, set()).add(vote.left)
    return np.array([lefts[unit] == {vote.second} for vote, unit in zip(votes, units, strict=True)], dtype=bool)


def _took_left(vote: Vote) -> float | None:
    """Return 1.0 where the response shown first was chosen, None for a tie or unknown sides."""
    if vote.outcome == TIE or vote.left is None:
        return None
    return float((vote.first, vote.second)[vote.outcome] == vote.left)


def _took_longer(votes: Sequence[Vote], comparisons: Mapping[str, Comparison]) -> list[float | None]:
    """Return 1.0 where the response of more words was chosen; None for a tie, equal lengths or no text."""
    words = {key: [len(r.text.split()) for r in comparison.responses] for key, comparison in comparisons.items()}
    taken: list[float | None] = []
    for vote in votes:
        lengths = words.get(vote.comparison_id)
        if vote.outcome == TIE or lengths is None or lengths[vote.first] == lengths[vote.second]:
            taken.append(None)
        else:
            taken.append(float((vote.outcome == FIRST) == (lengths[vote.first] > lengths[vote.second])))
    return taken


def _right(votes: Sequence[Vote], gold: Mapping[str, Ranking]) -> Array:
    """Return 1.0 on the first vote of each judgment that gives the known answer, 0.0 where it does not, NaN elsewhere.

    Votes of one ranking are no independent answers, so the judgment counts once.
    """
    right = np.full(len(votes), np.nan)
    first: dict[tuple[str, str, str], int] = {}
    for row, vote in enumerate(votes):
        answer = gold.get(vote.comparison_id)
        known = None if answer is None else is_right(vote, answer)
        if known is not None:
            head = first.setdefault((vote.comparison_id, vote.annotator, vote.source), row)
            right[head] = float(known and right[head] != 0.0)
    return right


def _hurry(votes: Sequence[Vote]) -> Array:
    """Return the log of own seconds over the median of the others', on the first vote of each timed judgment."""
    timed: dict[str, dict[tuple[str, str], int]] = {}
    for row, vote in enumerate(votes):
        if vote.seconds:
            timed.setdefault(vote.comparison_id, {}).setdefault((vote.annotator, vote.source), row)
    hurry = np.full(len(votes), np.nan)
    for judgments in timed.values():
        for (annotator, _), row in judgments.items():
            others = [votes[other].seconds or 0.0 for (name, _), other in judgments.items() if name != annotator]
            if others:
                hurry[row] = math.log((votes[row].seconds or 0.0) / median(others))
    return hurry
