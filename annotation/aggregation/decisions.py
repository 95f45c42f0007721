"""Which of two responses is better, by their votes, and with what probability.

In: votes and their tallies. Out: the tallies with their winners, by the most frequent answer, by reliability of the
annotators (one-coin Dawid-Skene), or by strength of the responses in the graph of everything compared under one prompt
(Davidson). Probabilities are rounded to six digits before they are compared, so no machine's last bit decides a pair.
Not here: pairs that nobody compared, although a graph gives a probability for them too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from align.core.records import Comparison, Judgment, content_hash
from annotation.aggregation.estimators import PRIOR, davidson, dawid_skene, outcome_probabilities
from annotation.aggregation.votes import BOTH_BAD, FIRST, SECOND, TIE, Tally, Vote, majority

Method = Literal["majority", "dawid-skene", "bradley-terry"]
Ties = Literal["drop", "half"]
DIGITS = 6


class Decisions(NamedTuple):
    """The tallies with their winners, and what the method estimated on the way (for the manifest)."""

    tallies: list[Tally]
    estimated: dict[str, Any]


def decide(
    method: Method, ties: Ties, votes: Iterable[Vote], tallies: Sequence[Tally], comparisons: Mapping[str, Comparison]
) -> Decisions:
    """Decide every tally.

    Args:
        method: ``majority`` gives every winner the weight 1.0, the others the probability that it is the better one.
        ties: ``drop`` counts a tie as an answer that can win; ``half`` counts it as half a vote for either side, so
            that those who chose decide, and only equal sums are a tie.
        votes: the votes behind the tallies, and others by the same annotators.
    """
    if method == "majority":
        if ties == "half":  # the majority of those who chose a side
            tallies = [tally._replace(winner=majority((*tally.counts[:2], 0))) for tally in tallies]
        return Decisions([*tallies], {})
    if method == "dawid-skene":
        fit = dawid_skene(votes)
        decided = [_by_probability(tally, fit.posterior[tally.unit], ties) for tally in tallies]
        reliability = {name: round(value, DIGITS) for name, value in fit.reliability.items()}
        return Decisions(decided, {"reliability": reliability})
    probabilities, tie = _by_graph(tallies, comparisons)
    decided = [_by_probability(tally, row, ties) for tally, row in zip(tallies, probabilities, strict=True)]
    return Decisions(decided, {"tie_parameter": round(tie, DIGITS), "prior_deviation": PRIOR})


def called_both_bad(judgments: Iterable[Judgment]) -> set[str]:
    """Return comparisons of which at least half of the judgments call both (all) responses bad."""
    marks: dict[str, list[bool]] = {}
    for judgment in judgments:
        marks.setdefault(judgment.comparison_id, []).append(BOTH_BAD in judgment.flags)
    return {key for key, flags in marks.items() if 2 * sum(flags) >= len(flags)}


def _by_probability(tally: Tally, probabilities: Sequence[float], ties: Ties) -> Tally:
    first, second, tied = probabilities
    if ties == "half":
        first, second, tied = first + tied / 2, second + tied / 2, 0.0
    rounded = [round(value, DIGITS) for value in (first, second, tied)]
    leaders = [outcome for outcome in (FIRST, SECOND, TIE) if rounded[outcome] == max(rounded)]
    return tally._replace(winner=leaders[0] if len(leaders) == 1 else None, weight=max(rounded))


def _by_graph(tallies: Sequence[Tally], comparisons: Mapping[str, Comparison]) -> tuple[list[Sequence[float]], float]:
    """Return outcome probabilities by strength; one answer to one prompt is one node in all its comparisons."""
    nodes: dict[tuple[str, str, str], int] = {}
    numbers: dict[str, list[int]] = {}
    for key in sorted({tally.comparison_id for tally in tallies}):
        comparison = comparisons[key]
        arguments = json.dumps(comparison.template_arguments, sort_keys=True)
        names = [(comparison.prompt_id, arguments, content_hash(r.messages)) for r in comparison.responses]
        numbers[key] = [nodes.setdefault(name, len(nodes)) for name in names]
    if not tallies:
        return [], 0.0
    first_E = np.array([numbers[tally.comparison_id][tally.first] for tally in tallies])
    second_E = np.array([numbers[tally.comparison_id][tally.second] for tally in tallies])
    counts_EO = np.array([tally.counts for tally in tallies], dtype=float)
    counts_EO[first_E == second_E] = 0  # two equal responses tell nothing about either
    fit = davidson(first_E, second_E, counts_EO, len(nodes))
    gap_E = fit.strength_N[first_E] - fit.strength_N[second_E]
    return outcome_probabilities(gap_E, fit.tie).tolist(), fit.tie
