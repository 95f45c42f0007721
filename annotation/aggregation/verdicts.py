"""Votes on two responses to a verdict: which of them is better, and how sure we are.

In: votes and their tallies. Out: one verdict a tally, by the most frequent answer, by reliability of the annotators
(one-coin Dawid-Skene), or by strength of the responses in the graph of everything compared under one prompt (Davidson).
Probabilities are rounded to six digits before they are compared, so no machine's last bit decides a pair. Not here:
pairs that nobody compared, although a graph has a word on them too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from align.core.records import Comparison, Judgment, content_hash
from annotation.aggregation.models import PRIOR, davidson, dawid_skene, outcome_probabilities
from annotation.aggregation.votes import FIRST, SECOND, TIE, Tally, Vote, majority

Method = Literal["majority", "dawid-skene", "bradley-terry"]
Ties = Literal["drop", "half"]
BOTH_BAD = "both_bad"  # flag of a judgment that likes neither response
DIGITS = 6


class Verdict(NamedTuple):
    """``winner`` is an outcome, None where two outcomes lead together; ``weight`` is the winner's probability."""

    winner: int | None
    weight: float


class Verdicts(NamedTuple):
    """One verdict a tally, in their order, and what the method estimated on the way (for the manifest)."""

    verdicts: list[Verdict]
    estimated: dict[str, Any]


def judge(
    method: Method, ties: Ties, cast: Iterable[Vote], counted: Sequence[Tally], comparisons: Mapping[str, Comparison]
) -> Verdicts:
    """Decide every tally.

    Args:
        method: ``majority`` gives every winner the weight 1.0, the others the probability that it is the better one.
        ties: ``drop`` takes a tie for an answer that can win; ``half`` counts it as half a vote for either side, so
            that those who chose decide, and only what is even then is a tie.
        cast: the votes behind the tallies, and others by the same annotators.
    """
    if method == "majority":
        return Verdicts([_by_count(tally, ties) for tally in counted], {})
    if method == "dawid-skene":
        truth = dawid_skene(cast)
        chances = [truth.posterior[tally.comparison_id, tally.first, tally.second] for tally in counted]
        reliability = {name: round(value, DIGITS) for name, value in truth.reliability.items()}
        return Verdicts([_by_chance(chance, ties) for chance in chances], {"reliability": reliability})
    graph_chances, tie = _by_graph(counted, comparisons)
    estimated = {"tie_parameter": round(tie, DIGITS), "prior_deviation": PRIOR}
    return Verdicts([_by_chance(chance, ties) for chance in graph_chances], estimated)


def called_both_bad(judgments: Iterable[Judgment]) -> set[str]:
    """Comparisons of which at least half of the judgments say that both (all) responses are bad."""
    said: dict[str, list[bool]] = {}
    for judgment in judgments:
        said.setdefault(judgment.comparison_id, []).append(BOTH_BAD in judgment.flags)
    return {key for key, flags in said.items() if 2 * sum(flags) >= len(flags)}


def _by_count(tally: Tally, ties: Ties) -> Verdict:
    for_first, for_second, tied = tally.counts
    return Verdict(majority((for_first, for_second, 0 if ties == "half" else tied)), 1.0)


def _by_chance(chance: Sequence[float], ties: Ties) -> Verdict:
    first, second, tied = chance
    if ties == "half":
        first, second, tied = first + tied / 2, second + tied / 2, 0.0
    rounded = [round(value, DIGITS) for value in (first, second, tied)]
    leaders = [outcome for outcome in (FIRST, SECOND, TIE) if rounded[outcome] == max(rounded)]
    return Verdict(leaders[0] if len(leaders) == 1 else None, max(rounded))


def _by_graph(counted: Sequence[Tally], comparisons: Mapping[str, Comparison]) -> tuple[list[Sequence[float]], float]:
    """Outcome probabilities by strength; the same answer to the same prompt is one node in all its comparisons."""
    nodes: dict[tuple[str, str, str], int] = {}
    numbers: dict[str, list[int]] = {}
    for key in sorted({tally.comparison_id for tally in counted}):
        comparison = comparisons[key]
        arguments = json.dumps(comparison.template_arguments, sort_keys=True)
        names = [(comparison.prompt_id, arguments, content_hash(r.messages)) for r in comparison.responses]
        numbers[key] = [nodes.setdefault(name, len(nodes)) for name in names]
    if not counted:
        return [], 0.0
    first_E = np.array([numbers[tally.comparison_id][tally.first] for tally in counted])
    second_E = np.array([numbers[tally.comparison_id][tally.second] for tally in counted])
    counts_EO = np.array([tally.counts for tally in counted], dtype=float)
    counts_EO[first_E == second_E] = 0  # two equal responses say nothing about either
    found = davidson(first_E, second_E, counts_EO, len(nodes))
    gap_E = found.strength_N[first_E] - found.strength_N[second_E]
    return outcome_probabilities(gap_E, found.tie).tolist(), found.tie
