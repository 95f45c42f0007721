"""Coefficients of agreement over counts of votes, and bootstrap intervals for them. Pure functions of arrays.

In: ``counts_UC``, votes per unit (two responses of one comparison) and category. Out: one value per resample. Every
coefficient takes weights, how often each resample holds each unit, so that one matrix product gives them all. NaN
where a coefficient does not exist (nothing varies, nobody judged twice); in an estimate that is None with its counts.
Axes: U units, C categories, Q pairs of categories, S resamples, V votes, L levels of an answer, A annotators,
G groups of votes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from align.core.stats.estimates import LEVEL, Estimate, wilson_bounds

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]
Statistic = Callable[[Array, Array], Array]
RESAMPLES = 1000
BLOCK = 100  # resamples at once: 100 x 100,000 units are 80 MB
NORMAL = float(stats.norm.ppf((1 + LEVEL) / 2))  # standard deviations on either side that hold 95 %


def alpha(counts_UC: Array, weights_SU: Array | None = None) -> Array:
    """Return Krippendorff's nominal alpha: 1 - observed / expected disagreement, NaN where nothing varies.

    Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C. Units with fewer than two votes
    do not count.

    Args:
        counts_UC: votes per unit and category.
        weights_SU: how often each resample holds each unit; None is the data itself.

    Returns:
        One value per resample, shape ``(S,)``.
    """
    n_U = counts_UC.sum(1)
    paired = n_U >= 2
    kept_UC, n_U = counts_UC[paired], n_U[paired]
    weights = np.ones((1, len(kept_UC))) if weights_SU is None else weights_SU[:, paired]
    observed_S = weights @ ((n_U**2 - (kept_UC**2).sum(1)) / (n_U - 1))
    totals_SC = weights @ kept_UC
    n_S = totals_SC.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected_S = (n_S**2 - (totals_SC**2).sum(1)) / (n_S - 1)
        return np.asarray(1 - observed_S / expected_S)


def ordinal_alpha(counts_UC: Array, weights_SU: Array | None = None) -> Array:
    """Return Krippendorff's alpha for categories in the order of their columns, shape ``(S,)``.

    Krippendorff (2011), section D: two categories differ by the square of all votes that lie between them, half of
    their own included.
    """
    n_U = counts_UC.sum(1)
    paired = n_U >= 2
    kept_UC, n_U = counts_UC[paired], n_U[paired]
    weights = np.ones((1, len(kept_UC))) if weights_SU is None else weights_SU[:, paired]
    couples = list(combinations(range(counts_UC.shape[1]), 2))
    low, high = np.array(couples).T
    met_SQ = weights @ (kept_UC[:, low] * kept_UC[:, high] / (n_U - 1)[:, None])
    totals_SC = weights @ kept_UC
    upto_SC = np.cumsum(totals_SC, 1) - totals_SC / 2
    distance_SQ = (upto_SC[:, high] - upto_SC[:, low]) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        expected_SQ = totals_SC[:, low] * totals_SC[:, high] / (totals_SC.sum(1, keepdims=True) - 1)
        return np.asarray(1 - (met_SQ * distance_SQ).sum(1) / (expected_SQ * distance_SQ).sum(1))


def pairwise_agreement(counts_UC: Array, weights_SU: Array | None = None) -> Array:
    """Return the share of all pairs of votes on one unit that are equal, shape ``(S,)``; NaN without any pair."""
    n_U = counts_UC.sum(1)
    weights = np.ones((1, len(counts_UC))) if weights_SU is None else weights_SU
    with np.errstate(divide="ignore", invalid="ignore"):
        agreeing_S = weights @ (counts_UC * (counts_UC - 1)).sum(1)
        return np.asarray(agreeing_S / (weights @ (n_U * (n_U - 1))))


def chance_corrected(counts_UC: Array, weights_SU: Array | None = None) -> Array:
    """Return pairwise agreement above that of the same answers by chance, as a share of the rest to 1.

    Chance is the answers' shares among all pairs, squared: Scott's pi (1955) for two votes per unit, Fleiss' kappa
    (1971) for any fixed number. Shape ``(S,)``.
    """
    weights = np.ones((1, len(counts_UC))) if weights_SU is None else weights_SU
    others_U = counts_UC.sum(1, keepdims=True) - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        seen_SC = weights @ (counts_UC * others_U)
        chance_S = ((seen_SC / seen_SC.sum(1, keepdims=True)) ** 2).sum(1)
        return np.asarray((pairwise_agreement(counts_UC, weights) - chance_S) / (1 - chance_S))


def weighted_kappa(own_VL: Array, rest_VL: Array, person_V: Numbers, cluster_V: Numbers) -> tuple[Array, Array]:
    """Compute each person's quadratically weighted kappa against the answers of the rest on the same units.

    Cohen, "Weighted kappa" (1968); each own answer meets every other answer on its unit, and counts once in all. The
    interval is the delta method's, with the person's answers on one comparison as one observation.

    Args:
        own_VL: one-hot level of each answer, levels in their order.
        rest_VL: share of each level among the other answers on the same unit.
        person_V, cluster_V: whose answer it is, and on which comparison, numbered from 0.

    Returns:
        kappa ``(people,)`` and half the width of its 95 % interval; NaN where nothing varies or, for the width, with
        answers on fewer than two comparisons or without one that differs: what was not seen has no width of zero.
    """
    people, levels = int(person_V.max(initial=-1)) + 1, np.arange(own_VL.shape[1])
    cost_LL = (levels[:, None] - levels[None, :]).astype(float) ** 2
    n_A = np.bincount(person_V, minlength=people)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_own_AL = _sums(person_V, own_VL, people) / n_A[:, None]
        mean_rest_AL = _sums(person_V, rest_VL, people) / n_A[:, None]
        cost_V = ((own_VL @ cost_LL) * rest_VL).sum(1)
        observed_A = np.bincount(person_V, cost_V, people) / n_A
        expected_A = ((mean_own_AL @ cost_LL) * mean_rest_AL).sum(1)
        chance_V = (own_VL * (mean_rest_AL @ cost_LL)[person_V]).sum(1)
        chance_V += (rest_VL * (mean_own_AL @ cost_LL)[person_V]).sum(1)
        ratio_A = observed_A / expected_A
        pull_V = (ratio_A[person_V] * (chance_V - expected_A[person_V]) - cost_V) / expected_A[person_V]
        both_V = person_V * (int(cluster_V.max(initial=0)) + 1) + cluster_V
        groups, group_V = np.unique(both_V, return_inverse=True)
        owner_G = groups // (int(cluster_V.max(initial=0)) + 1)
        spread_A = np.bincount(owner_G, np.bincount(group_V, pull_V, len(groups)) ** 2, people)
        varies_A = (np.bincount(owner_G, minlength=people) > 1) & (spread_A > 0)
        width_A = np.where(varies_A, NORMAL * np.sqrt(spread_A) / n_A, np.nan)
    return 1 - ratio_A, width_A


def cohen_kappa(tables_PCC: Array, n_P: Numbers) -> tuple[Array, Array, Array]:
    """Return Cohen's kappa of two people and its 95 % interval, for each of many couples; NaN where nothing varies.

    Cohen, "A coefficient of agreement for nominal scales" (1960). The interval is Wilson's of the share of equal
    answers, with the observed chance agreement: unlike the delta method's it has a width at kappa 1, and it
    covers 92 to 100 % from 10 answers on, where that covers 15 to 90 % (simulated, three answers, kappa 0 to .9).

    Args:
        tables_PCC: answers in common, by that of the one and of the other.
        n_P: independent observations among them.

    Returns:
        kappa, low and high, each of shape ``(P,)``.
    """
    total_P = tables_PCC.sum((1, 2))
    same_P = np.trace(tables_PCC, axis1=1, axis2=2) / total_P
    chance_P = (tables_PCC.sum(2) * tables_PCC.sum(1)).sum(1) / total_P**2
    low_P, high_P = wilson_bounds(same_P, n_P)

    def above_chance(share_P: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(chance_P < 1, (np.asarray(share_P) - chance_P) / (1 - chance_P), np.nan)

    return above_chance(same_P), np.maximum(above_chance(low_P), -1.0), above_chance(high_P)


def bootstrap(
    statistics: Mapping[str, Statistic], units_UX: Array, owner_U: Numbers, n: Mapping[str, int], seed: int
) -> dict[str, Estimate]:
    """Estimate statistics of units, with 95 % percentile intervals over the same resampled comparisons.

    A statistic that does not exist has value None. There is no interval with fewer than two comparisons, or where all
    resamples give the same, as they do where nobody disagreed: a width of zero would claim that nobody ever will.

    Args:
        units_UX: what the statistics read of each unit.
        owner_U: the comparison of each unit; its units are drawn together.
        n: what each statistic counts.
    """
    names, owner_U = np.unique(owner_U, return_inverse=True)
    everything = np.ones((1, len(units_UX)))
    values = {name: float(statistic(units_UX, everything)[0]) for name, statistic in statistics.items()}
    drawn: dict[str, list[Array]] = {name: [] for name, value in values.items() if np.isfinite(value)}
    generator = np.random.default_rng(seed)
    for _ in range(RESAMPLES // BLOCK if len(names) > 1 else 0):
        weights_SU = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), BLOCK)[:, owner_U]
        for name, resampled in drawn.items():
            resampled.append(statistics[name](units_UX, weights_SU.astype(float)))
    ends = {name: _percentiles(np.concatenate(resampled)) for name, resampled in drawn.items() if resampled}
    return {
        name: coefficient(value, ends.get(name), n[name], "bootstrap over comparisons", len(names))
        for name, value in values.items()
    }


def coefficient(
    value: float, interval: tuple[float, float] | None, n: int, method: str, clusters: int | None = None
) -> Estimate:
    """Make an estimate of a coefficient over ``n`` results; NaN means that none of them could be scored."""
    if not np.isfinite(value):
        return Estimate(value=None, n=n, n_scored=0, n_failed=n, method="does not exist", clusters=clusters)
    low, high = interval or (None, None)
    method = method if interval else "no interval"
    return Estimate(value=value, low=low, high=high, n=n, n_scored=n, n_failed=0, method=method, clusters=clusters)


def _percentiles(values_S: Array) -> tuple[float, float] | None:
    known = values_S[np.isfinite(values_S)]
    if not len(known) or np.ptp(known) < 1e-12:
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _sums(index_V: Numbers, values_VL: Array, n: int) -> Array:
    return np.stack([np.bincount(index_V, column, n) for column in values_VL.T], 1)
