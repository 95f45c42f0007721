"""Measures of agreement between annotators, and of what else moves their votes.

In: votes, and the comparisons that they are about. Out: the content of ``agreement.json``, overall, by language and by
guideline version: Krippendorff's alpha (nominal; ordinal with a tie in the middle; ordinal over strengths) and pairwise
agreement, raw and corrected for chance, with bootstrap intervals (comparisons resampled); each annotator against the
others, every two of them against each other, side and length bias, ties, speed, self-consistency and gold tasks; and
what published campaigns reached. What cannot be computed is None beside its counts. One vote per person counts: who
judged a comparison again is compared with themselves only. The coefficients are defined in ``core/stats``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from align.core.records import Comparison
from align.core.stats.agreement import (
    RESAMPLES,
    Array,
    Numbers,
    Statistic,
    alpha,
    bootstrap,
    chance_corrected,
    coefficient,
    cohen_kappa,
    ordinal_alpha,
    pairwise_agreement,
    weighted_kappa,
)
from align.core.stats.estimates import proportion
from annotation.aggregation.estimators import dawid_skene
from annotation.aggregation.votes import TIE, Vote, is_shared
from annotation.agreement.columns import LEVELS, Ranking, VoteColumns, columns_of, numbered, owners, tabulate
from annotation.agreement.published import PUBLISHED

STRENGTH_LEVELS = 7  # -3 to 3
COEFFICIENTS: Mapping[str, tuple[list[int], Statistic]] = {  # by name: columns of the counts, and what is made of them
    "alpha": ([0, 1, 2], alpha),
    "alpha_ordinal": ([0, 2, 1], ordinal_alpha),
    "alpha_strength": (list(range(3, 3 + STRENGTH_LEVELS)), ordinal_alpha),
    "pairwise_agreement": ([0, 1, 2], pairwise_agreement),
    "pairwise_agreement_without_ties": ([0, 1], pairwise_agreement),
    "chance_corrected_agreement": ([0, 1, 2], chance_corrected),
}
FAST, SLOW, MIN_TIMED = 1 / 2, 2.0, 10  # an outlier's seconds over the others' on the same comparison, by median
RUSHED = 1 / 3  # a judgment made in less than this share of the others' time
NO_GUIDELINE = "none recorded"


class Kappas(NamedTuple):
    """Weighted kappa by person: value, half the width of its interval, and answers that met others."""

    value: Array
    width: Array
    n_scored: Numbers


class AgainstOthers(NamedTuple):
    """Whether each vote is the others' most frequent answer, whether they have just one, and which, ``(votes,)`` each.

    Where ``decided`` is False the other two mean nothing.
    """

    agrees: NDArray[np.bool_]
    decided: NDArray[np.bool_]
    answer: Numbers


def measure(
    votes: Sequence[Vote],
    comparisons: Mapping[str, Comparison],
    seed: int = 0,
    gold: Mapping[str, Ranking] | None = None,
) -> dict[str, Any]:
    """Measure all of agreement.json from votes; their order does not matter.

    Args:
        comparisons: give languages, and the texts whose lengths are compared.
        gold: the right ranking by comparison id, for tasks whose answer is known.
    """
    ordered = sorted(votes, key=lambda v: (*v.unit, v.annotator, v.source))
    columns = columns_of(ordered, comparisons, gold or {})
    names = sorted({vote.annotator for vote in ordered})
    overall = _summary(columns, names, seed)
    reliabilities = dawid_skene(ordered).reliability if is_shared(ordered) else {}
    for name, reliability in reliabilities.items():
        overall["annotators"][name]["reliability"] = reliability
    languages = [comparisons[v.comparison_id].language if v.comparison_id in comparisons else None for v in ordered]
    guidelines = [vote.guideline or NO_GUIDELINE for vote in ordered]
    return {
        **overall,
        "by_language": _by_group(languages, columns, names, overall, seed),
        "by_guideline": _by_group(guidelines, columns, names, overall, seed),
        "published": [row._asdict() for row in PUBLISHED],
    }


def count(votes: Sequence[Vote]) -> tuple[Array, Numbers]:
    """Count votes by unit (two responses of one comparison) and outcome.

    Returns:
        counts ``(units, 3)``, and the unit of each vote ``(votes,)``.
    """
    unit_V = numbered([vote.unit for vote in votes])
    return tabulate(unit_V, np.array([vote.outcome for vote in votes], dtype=int), 3), unit_V


def against_others(counts_UC: Array, unit_V: Numbers, outcome_V: Numbers) -> AgainstOthers:
    """Compare each vote with the most frequent answer of the others on its unit."""
    others_VC = counts_UC[unit_V].copy()
    others_VC[np.arange(len(unit_V)), outcome_V] -= 1
    top_V = others_VC.max(1)
    decided_V = ((others_VC == top_V[:, None]).sum(1) == 1) & (top_V > 0)
    answer_V = others_VC.argmax(1)
    return AgainstOthers(answer_V == outcome_V, decided_V, answer_V)


def ceiling(votes: Sequence[Vote], seed: int = 0) -> dict[str, Any]:
    """Estimate how often one person's choice is that of most others: an upper bound for a reward model's accuracy.

    Over votes that chose a side where the others' most frequent answer is a side; ties on either part cannot be
    hit by a model that must choose. The interval resamples comparisons.
    """
    if not votes:
        return {**proportion(0, 0, 0).model_dump(), "units": 0}
    counts_UC, unit_V = count(votes)
    outcome_V = np.array([vote.outcome for vote in votes])
    others = against_others(counts_UC, unit_V, outcome_V)
    scored_V = others.decided & (outcome_V != TIE) & (others.answer != TIE)
    hits_UX = np.zeros((len(counts_UC), 2))
    np.add.at(hits_UX[:, 0], unit_V[scored_V], others.agrees[scored_V])
    np.add.at(hits_UX[:, 1], unit_V[scored_V], 1)
    scored_U = hits_UX[:, 1] > 0
    owner_U = owners(unit_V, numbered([vote.comparison_id for vote in votes]))[scored_U]
    share = bootstrap({"share": _ratio}, hits_UX[scored_U], owner_U, {"share": int(scored_V.sum())}, seed)["share"]
    counts = {"n": len(votes), "n_failed": int((~scored_V).sum()), "units": int(scored_U.sum())}
    return share.model_dump() | counts


def _by_group(
    keys: Sequence[str | None], columns: VoteColumns, names: Sequence[str], overall: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Return the summary of each group's votes; votes without a key are in no group."""
    known = sorted({key for key in keys if key is not None})
    if len(known) == 1 and None not in keys:
        return {known[0]: overall}
    return {key: _summary(columns.take(np.array([k == key for k in keys])), names, seed) for key in known}


def _summary(columns: VoteColumns, names: Sequence[str], seed: int) -> dict[str, Any]:
    """Measure everything about one group of votes; ``names`` are the annotators by number."""
    once = columns.take(~columns.repeat)
    _, unit_V = np.unique(once.unit, return_inverse=True)
    counts_UX = tabulate(unit_V, once.outcome, 3 + STRENGTH_LEVELS)
    rated = ~np.isnan(once.strength)
    np.add.at(counts_UX, (unit_V[rated], 6 + once.strength[rated].astype(int)), 1)
    owner_U = owners(unit_V, once.comparison)
    several_U = counts_UX[:, :3].sum(1) >= 2
    agrees_V = np.full(len(columns.unit), np.nan)
    others = against_others(counts_UX[:, :3], unit_V, once.outcome)
    agrees_V[~columns.repeat] = np.where(others.decided, others.agrees, np.nan)
    together, apart = _kappas(once, np.zeros_like(once.person)), _kappas(once, once.person)
    people = {}
    for number in np.unique(columns.person).tolist():
        rows = np.flatnonzero(columns.person == number)
        speed = _speed(columns.hurry[rows])
        people[names[number]] = {**_describe(columns, agrees_V, rows), **_kappa_entries(apart, number), "speed": speed}
    return {
        "comparisons": len(np.unique(columns.comparison)),
        "compared_twice": int(several_U.sum()),
        **_coefficients(counts_UX[several_U], owner_U[several_U], seed),
        **_describe(columns, agrees_V, np.arange(len(columns.unit))),
        **_kappa_entries(together, 0),
        "annotators": people,
        "couples": _couples(once, names),
    }


def _couples(once: VoteColumns, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return kappa of every two annotators with answers in common, by name.

    ``n`` counts answers that both gave, ``comparisons`` what these are about: the interval has as many observations,
    since the answers of one ranking are not independent. The value is None where both always gave the same one answer.

    Args:
        once: votes without repetitions.
        names: annotators by number.
    """
    order = np.lexsort((once.person, once.unit))
    unit_V, person_V, outcome_V = once.unit[order], once.person[order], once.outcome[order]
    rows: list[np.ndarray] = []
    for lag in range(1, int(np.bincount(unit_V).max(initial=0))):  # the answers on a unit are adjacent
        first = np.flatnonzero(unit_V[:-lag] == unit_V[lag:])
        rows.append(np.stack([first, first + lag], 1))
    if not rows:
        return []
    one_M, other_M = np.concatenate(rows).T
    couple_M = person_V[one_M] * len(names) + person_V[other_M]
    known, couple_M = np.unique(couple_M, return_inverse=True)
    tables_PCC = np.zeros((len(known), 3, 3))  # over first, second and tie
    np.add.at(tables_PCC, (couple_M, outcome_V[one_M], outcome_V[other_M]), 1)
    comparison_M = once.comparison[order][one_M]
    pairs = np.unique(np.stack([couple_M, comparison_M], 1), axis=0)
    n_P = np.bincount(pairs[:, 0], minlength=len(known))
    value_P, low_P, high_P = cohen_kappa(tables_PCC, n_P)
    entries = []
    for place, couple in enumerate(known.tolist()):
        ends = float(low_P[place]), float(high_P[place])
        n, clusters = int(tables_PCC[place].sum()), int(n_P[place])
        kappa = coefficient(float(value_P[place]), ends, n, "Wilson of the raw agreement", clusters)
        entries.append(
            {
                "annotators": [names[couple // len(names)], names[couple % len(names)]],
                **kappa.model_dump(),
                "comparisons": clusters,
            }
        )
    return entries


def _coefficients(counts_UX: Array, owner_U: Numbers, seed: int) -> dict[str, Any]:
    """Return each coefficient with its interval, all from the same resamples of units with two votes or more."""

    def on_columns(name: str) -> Statistic:
        wanted, statistic = COEFFICIENTS[name]
        return lambda units_UX, weights_SU: statistic(units_UX[:, wanted], weights_SU)

    votes = {name: counts_UX[:, wanted].sum(1) for name, (wanted, _) in COEFFICIENTS.items()}
    n = {name: int((votes_U >= 2).sum()) for name, votes_U in votes.items()}
    estimates = bootstrap({name: on_columns(name) for name in COEFFICIENTS}, counts_UX, owner_U, n, seed)
    return {
        name: estimate.model_dump() | {"votes": int(votes[name][votes[name] >= 2].sum()), "resamples": RESAMPLES}
        for name, estimate in estimates.items()
    }


def _describe(columns: VoteColumns, agrees_V: Array, rows: Numbers) -> dict[str, Any]:
    times = columns.seconds[rows][~np.isnan(columns.seconds[rows])]
    once = rows[~columns.repeat[rows]]
    return {
        "votes": len(rows),
        "agreement_with_others": _share_of(agrees_V[once]),
        "position": _share_of(columns.left[rows]),
        "length": _share_of(columns.longer[rows]),
        "ties": proportion(int((columns.outcome[rows] == TIE).sum()), len(rows), len(rows)).model_dump(),
        "self_consistency": _share_of(columns.same_again[rows][columns.repeat[rows]]),
        "gold": _share_of(columns.gold[rows][~np.isnan(columns.gold[rows])], is_exact=True),
        "median_seconds": float(np.median(times)) if len(times) else None,
        "timed": len(times),
    }


def _speed(hurry_V: Array) -> dict[str, Any]:
    """Return the seconds over the others' on the same comparison (median over judgments), and if it is an outlier."""
    known = hurry_V[~np.isnan(hurry_V)]
    ratio = float(np.exp(np.median(known))) if len(known) else None
    outlier = None
    if ratio is not None and len(known) >= MIN_TIMED:
        outlier = "fast" if ratio < FAST else "slow" if ratio > SLOW else None
    rushed = proportion(int((known < np.log(RUSHED)).sum()), len(known), len(known))
    return {"ratio": ratio, "n_scored": len(known), "outlier": outlier, "rushed": rushed.model_dump()}


def _kappas(once: VoteColumns, person_V: Numbers) -> dict[str, Kappas]:
    """Return weighted kappa against the rest, over first < tie < second and over strengths."""
    rated = ~np.isnan(once.strength)
    strong = once.take(rated)
    return {
        "weighted_kappa": _kappa(LEVELS[once.outcome], 3, once, person_V),
        "weighted_kappa_strength": _kappa(strong.strength.astype(int) + 3, STRENGTH_LEVELS, strong, person_V[rated]),
    }


def _kappa(level_V: Numbers, n_levels: int, once: VoteColumns, person_V: Numbers) -> Kappas:
    people = int(person_V.max(initial=-1)) + 1
    if not people:
        return Kappas(np.zeros(0), np.zeros(0), np.zeros(0, dtype=int))
    own_VK = np.eye(n_levels)[level_V]
    _, unit_V = np.unique(once.unit, return_inverse=True)
    counts_UK = np.stack([np.bincount(unit_V, column) for column in own_VK.T], 1)
    rest_VK = counts_UK[unit_V] - own_VK
    met = rest_VK.sum(1) > 0
    rest_VK = rest_VK[met] / rest_VK[met].sum(1, keepdims=True)
    value, width = weighted_kappa(own_VK[met], rest_VK, person_V[met], once.comparison[met])
    return Kappas(value, width, np.bincount(person_V[met], minlength=people))


def _kappa_entries(kappas: Mapping[str, Kappas], number: int) -> dict[str, Any]:
    return {name: _kappa_entry(kappa, number) for name, kappa in kappas.items()}


def _kappa_entry(kappas: Kappas, number: int) -> dict[str, Any]:
    """Return one person's kappa; None where the person met nobody or nothing varies."""
    if number >= len(kappas.value):
        return coefficient(np.nan, None, 0, "").model_dump()
    value, width, n = float(kappas.value[number]), float(kappas.width[number]), int(kappas.n_scored[number])
    interval = (max(-1.0, value - width), min(1.0, value + width)) if np.isfinite(width) else None
    return coefficient(value, interval, n, "delta method over comparisons").model_dump()


def _share_of(values: Array, *, is_exact: bool = False) -> dict[str, Any]:
    """Return the share of ones among the values that are not NaN."""
    known = values[~np.isnan(values)]
    return proportion(int(known.sum()), len(known), len(values), is_exact=is_exact).model_dump()


def _ratio(hits_UX: Array, weights_SU: Array) -> Array:
    sums_SX = weights_SU @ hits_UX
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums_SX[:, 0] / sums_SX[:, 1])
