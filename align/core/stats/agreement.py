"""Coefficients of agreement over counts of votes, and intervals for them. Pure functions of arrays.

In: ``counts_UC``, votes per unit (two responses of one comparison) and category. Out: one value a resample. Every
coefficient takes weights, how often each resample holds each unit, so that one matrix product gives them all. NaN
where a coefficient does not exist (nothing varies, nobody judged twice); callers turn that into None with its counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.proportion import proportion_confint

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]
Statistic = Callable[[Array, Array], Array]
RESAMPLES = 1000
BLOCK = 100  # resamples at once: 100 x 100,000 units are 80 MB
NORMAL = 1.959963984540054  # standard deviations that hold 95 %


def alpha(counts_UC: Array, weights_BU: Array | None = None) -> Array:
    """Krippendorff's alpha, nominal: 1 - observed / expected disagreement, NaN where nothing varies.

    Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C. Units with fewer than two votes
    do not count.

    Args:
        counts_UC: votes per unit and category.
        weights_BU: how often each resample holds each unit; None is the data itself.

    Returns:
        One value per resample, shape ``(B,)``.
    """
    n_U = counts_UC.sum(1)
    paired = n_U >= 2
    kept_UC, n_U = counts_UC[paired], n_U[paired]
    weights = np.ones((1, len(kept_UC))) if weights_BU is None else weights_BU[:, paired]
    observed_B = weights @ ((n_U**2 - (kept_UC**2).sum(1)) / (n_U - 1))
    totals_BC = weights @ kept_UC
    n_B = totals_BC.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected_B = (n_B**2 - (totals_BC**2).sum(1)) / (n_B - 1)
        return np.asarray(1 - observed_B / expected_B)


def ordinal_alpha(counts_UC: Array, weights_BU: Array | None = None) -> Array:
    """Krippendorff's alpha for categories in the order of their columns, shape ``(B,)``.

    Krippendorff (2011), section D: two categories differ by the square of all votes that lie between them, half of
    their own included.
    """
    n_U = counts_UC.sum(1)
    paired = n_U >= 2
    kept_UC, n_U = counts_UC[paired], n_U[paired]
    weights = np.ones((1, len(kept_UC))) if weights_BU is None else weights_BU[:, paired]
    couples = list(combinations(range(counts_UC.shape[1]), 2))
    low, high = np.array(couples).T
    met_BP = weights @ (kept_UC[:, low] * kept_UC[:, high] / (n_U - 1)[:, None])
    totals_BC = weights @ kept_UC
    upto_BC = np.cumsum(totals_BC, 1) - totals_BC / 2
    distance_BP = (upto_BC[:, high] - upto_BC[:, low]) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        expected_BP = totals_BC[:, low] * totals_BC[:, high] / (totals_BC.sum(1, keepdims=True) - 1)
        return np.asarray(1 - (met_BP * distance_BP).sum(1) / (expected_BP * distance_BP).sum(1))


def pairwise_agreement(counts_UC: Array, weights_BU: Array | None = None) -> Array:
    """Share of all pairs of votes on one unit that say the same, shape ``(B,)``; NaN without any pair."""
    n_U = counts_UC.sum(1)
    weights = np.ones((1, len(counts_UC))) if weights_BU is None else weights_BU
    with np.errstate(divide="ignore", invalid="ignore"):
        agreeing_B = weights @ (counts_UC * (counts_UC - 1)).sum(1)
        return np.asarray(agreeing_B / (weights @ (n_U * (n_U - 1))))


def chance_corrected(counts_UC: Array, weights_BU: Array | None = None) -> Array:
    """Pairwise agreement above what the same answers by chance would give, as a share of what is left to 1.

    Chance is the answers' shares among all pairs, squared: Scott's pi (1955) for two votes a unit, Fleiss' kappa
    (1971) for any fixed number. Shape ``(B,)``.
    """
    weights = np.ones((1, len(counts_UC))) if weights_BU is None else weights_BU
    others_U = counts_UC.sum(1, keepdims=True) - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        seen_BC = weights @ (counts_UC * others_U)
        chance_B = ((seen_BC / seen_BC.sum(1, keepdims=True)) ** 2).sum(1)
        return np.asarray((pairwise_agreement(counts_UC, weights) - chance_B) / (1 - chance_B))


def weighted_kappa(own_VK: Array, rest_VK: Array, person_V: Numbers, cluster_V: Numbers) -> tuple[Array, Array]:
    """Quadratically weighted kappa of each person's answers against the answers of the rest on the same units.

    Cohen, "Weighted kappa" (1968); each own answer meets every other answer on its unit, and counts once in all. The
    interval is the delta method's, with the person's answers on one comparison as one observation.

    Args:
        own_VK: one-hot level of each answer, levels in their order.
        rest_VK: share of each level among the other answers on the same unit.
        person_V, cluster_V: whose answer it is, and on which comparison, numbered from 0.

    Returns:
        kappa ``(people,)`` and half the width of its 95 % interval; NaN where nothing varies or, for the width, with
        answers on fewer than two comparisons or without one that differs: what was not seen has no width of zero.
    """
    people, levels = int(person_V.max(initial=-1)) + 1, np.arange(own_VK.shape[1])
    cost_KK = (levels[:, None] - levels[None, :]).astype(float) ** 2
    n_P = np.bincount(person_V, minlength=people)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_own_PK = _sums(person_V, own_VK, people) / n_P[:, None]
        mean_rest_PK = _sums(person_V, rest_VK, people) / n_P[:, None]
        cost_V = ((own_VK @ cost_KK) * rest_VK).sum(1)
        observed_P = np.bincount(person_V, cost_V, people) / n_P
        expected_P = ((mean_own_PK @ cost_KK) * mean_rest_PK).sum(1)
        chance_V = (own_VK * (mean_rest_PK @ cost_KK)[person_V]).sum(1)
        chance_V += (rest_VK * (mean_own_PK @ cost_KK)[person_V]).sum(1)
        ratio_P = observed_P / expected_P
        pull_V = (ratio_P[person_V] * (chance_V - expected_P[person_V]) - cost_V) / expected_P[person_V]
        both_V = person_V * (int(cluster_V.max(initial=0)) + 1) + cluster_V
        groups, group_V = np.unique(both_V, return_inverse=True)
        owner_G = groups // (int(cluster_V.max(initial=0)) + 1)
        spread_P = np.bincount(owner_G, np.bincount(group_V, pull_V, len(groups)) ** 2, people)
        varies_P = (np.bincount(owner_G, minlength=people) > 1) & (spread_P > 0)
        width_P = np.where(varies_P, NORMAL * np.sqrt(spread_P) / n_P, np.nan)
    return 1 - ratio_P, width_P


def cohen_kappa(tables_PCC: Array, n_P: Numbers) -> tuple[Array, Array, Array]:
    """Cohen's kappa of two people's answers and its 95 % interval, for each of many couples; NaN where nothing varies.

    Cohen, "A coefficient of agreement for nominal scales" (1960). The interval is Wilson's of the share of equal
    answers, with the chance agreement as it was seen: unlike the delta method's it has a width at kappa 1, and it
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
    low_P, high_P = proportion_confint(same_P * n_P, n_P, method="wilson")

    def above_chance(share_P: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(chance_P < 1, (np.asarray(share_P) - chance_P) / (1 - chance_P), np.nan)

    return above_chance(same_P), np.maximum(above_chance(low_P), -1.0), above_chance(high_P)


def bootstrap(statistic: Statistic, units_US: Array, owner_U: Numbers, seed: int) -> list[float] | None:
    """95 % percentile interval of one statistic; see ``bootstraps``."""
    return bootstraps({"it": statistic}, units_US, owner_U, seed)["it"]


def bootstraps(
    statistics: Mapping[str, Statistic], units_US: Array, owner_U: Numbers, seed: int
) -> dict[str, list[float] | None]:
    """95 % percentile intervals of statistics over the same resampled comparisons.

    None with fewer than two of them, or where all resamples give the same, as they do where nobody disagreed: an
    interval of width zero would say that nobody ever will.

    Args:
        units_US: what the statistics read of each unit.
        owner_U: the comparison of each unit; its units are drawn together.
    """
    names, owner_U = np.unique(owner_U, return_inverse=True)
    n = len(names)
    if n < 2:
        return dict.fromkeys(statistics)
    generator = np.random.default_rng(seed)
    values: dict[str, list[Array]] = {name: [] for name in statistics}
    for _ in range(RESAMPLES // BLOCK):
        weights_BU = generator.multinomial(n, np.full(n, 1 / n), BLOCK)[:, owner_U].astype(float)
        for name, statistic in statistics.items():
            values[name].append(statistic(units_US, weights_BU))
    return {name: _percentiles(np.concatenate(found)) for name, found in values.items()}


def share(hits: int, n_scored: int, n: int, *, is_exact: bool = False) -> dict[str, Any]:
    """A share with its counts and 95 % interval; None where nothing was scored.

    The interval is Wilson's, or the exact one of Clopper and Pearson (1934), which never covers less than 95 %:
    for what a person is judged by.
    """
    value, interval = None, None
    if n_scored:
        low, high = proportion_confint(hits, n_scored, method="beta" if is_exact else "wilson")
        value, interval = hits / n_scored, [float(low), float(high)]
    return {"value": value, "interval": interval, "n": n, "n_scored": n_scored, "n_failed": n - n_scored}


def _percentiles(values_B: Array) -> list[float] | None:
    known = values_B[np.isfinite(values_B)]
    if not len(known) or np.ptp(known) < 1e-12:
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return [float(low), float(high)]


def _sums(index_V: Numbers, values_VK: Array, n: int) -> Array:
    return np.stack([np.bincount(index_V, column, n) for column in values_VK.T], 1)
