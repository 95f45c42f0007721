"""Statistics of evaluations: bounds and tests of means and paired differences.

In: numbers by item. Out: estimates with counts and intervals, bounds, p-values. Items are the clusters: samples
of one item are not independent (Miller 2024, arXiv 2411.00640). Nothing scored gives None, never a zero.
Not here: training-seed variance. Every interval speaks about new items for this one trained policy.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from align.core.stats.bounds import EXACT_LIMIT, UNBOUNDED_N, clopper_pearson, guarded_bound, noninferiority_bound
from align.core.stats.estimates import LEVEL, Estimate, Kind


class Bounds(NamedTuple):
    """One-sided bounds of a mean, each at the given error, None where nothing bounds it; and the method."""

    low: float | None
    high: float | None
    method: str


Range = tuple[float, float]  # lowest and highest possible value of an item; infinite where nothing bounds it
UNIT: Range = (0.0, 1.0)
ANY: Range = (-math.inf, math.inf)


def mean_bounds(values: Sequence[float], kind: Kind, alpha: float, span: Range = UNIT) -> Bounds:
    """Return bounds of a mean over independent items: exact for ``binary``, else guarded (:func:`guarded_bound`).

    Args:
        span: range of an item's value. An infinite end leaves its side without a bound below ``UNBOUNDED_N`` items;
            from there on the worst value seen is taken for the worst there is, and losses of much the same size on
            ``UNSEEN_SHARE`` of all items or more are covered. For arbitrary losses no bound exists (Bahadur and
            Savage, Ann. Math. Statist. 27, 1956).
    """
    n = len(values)
    if not n:
        return Bounds(None, None, "nothing was scored")
    if kind == "binary":
        return Bounds(*clopper_pearson(round(sum(values)), n, alpha), "Clopper-Pearson")
    array = np.asarray(values, dtype=float)
    low = _guarded(array, span[0], alpha)
    high = _guarded(-array, -span[1], alpha)
    if low is None and high is None:
        return Bounds(None, None, f"no range, and fewer than {UNBOUNDED_N} items that differ: no bound")
    method = "guarded t" if math.isfinite(span[0]) and math.isfinite(span[1]) else "t guarded at the worst seen"
    return Bounds(low, None if high is None else -high, method)


def difference_bounds(deltas: Sequence[float], kind: Kind, alpha: float, span: Range) -> Bounds:
    """Return bounds of a mean difference over independent items: exact for ``binary`` (-1, 0, 1), else as a mean's."""
    n = len(deltas)
    if kind != "binary" or not n:
        return mean_bounds(deltas, "share" if kind == "binary" else kind, alpha, span)
    lost, won = sum(d < 0 for d in deltas), sum(d > 0 for d in deltas)
    method = "exact unconditional score" if n <= EXACT_LIMIT else "Clopper-Pearson, Bonferroni"
    return Bounds(noninferiority_bound(lost, won, n, alpha), -noninferiority_bound(won, lost, n, alpha), method)


def _guarded(values: np.ndarray, worst: float, alpha: float) -> float | None:
    if math.isfinite(worst):
        return float(guarded_bound(values, worst, alpha))
    if len(values) < UNBOUNDED_N or np.ptp(values) == 0:
        return None
    return float(guarded_bound(values, values.min(), alpha))


def units(items: Mapping[str, float], clusters: Mapping[str, str], span: Range) -> tuple[list[float], Range]:
    """Return values of independent units that average to the items' mean, and the range of one of them.

    A cluster's value is the mean over items plus its summed deviation from it, times clusters / items: its variance is
    that of the clustered standard error (Miller 2024). The range is that of the largest cluster.
    """
    if not clusters or not items:
        return list(items.values()), span
    mean = float(np.mean(list(items.values())))
    names = [clusters.get(item, item) for item in items]
    index = np.unique(np.asarray(names), return_inverse=True)[1]
    sums_C, sizes_C = np.bincount(index, [v - mean for v in items.values()]), np.bincount(index)
    scale = len(sizes_C) / len(items)
    most = float(sizes_C.max()) * scale
    low, high = (mean + (end - mean) * most for end in span)
    return [float(v) for v in mean + sums_C * scale], (low, high)


def paired_difference(
    new: Mapping[str, float | None],
    old: Mapping[str, float | None],
    kind: Kind = "unbounded",
    clusters: Mapping[str, str] | None = None,
) -> Estimate:
    """Return the mean of new - old over items scored on both sides, with an interval of two one-sided bounds.

    ``kind``: ``binary`` (one zero or one per item: exact), ``share`` (item means in [0, 1]: guarded) or ``unbounded``
    (t, for tables and never for a gate; no interval when nothing varies: nothing then bounds what was not seen).
    Items with ``clusters`` count by their clusters, and are never ``binary``.
    """
    ids = sorted({*new, *old})
    items = {i: a - b for i in ids if (a := new.get(i)) is not None and (b := old.get(i)) is not None}
    counts = {"n": len(ids), "n_scored": len(items), "n_failed": len(ids) - len(items)}
    if not items:
        return Estimate(value=None, **counts, method="nothing was scored on both sides", clusters=0)
    deltas, span = units(items, clusters or {}, (-1.0, 1.0))
    counts["clusters"] = len(deltas)
    mean = float(np.mean(deltas))
    if kind != "unbounded":
        low, high, method = difference_bounds(deltas, kind, (1 - LEVEL) / 2, span)
        return Estimate(value=mean, low=low, high=high, **counts, method=method)
    sd = float(np.std(deltas, ddof=1)) if len(deltas) > 1 else 0.0
    if not sd:
        return Estimate(value=mean, **counts, method="no variance between items: no interval")
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(deltas) - 1)) * sd / math.sqrt(len(deltas))
    return Estimate(value=mean, low=mean - half, high=mean + half, **counts, method="t")


def mcnemar(lost: int, won: int) -> float:
    """Return the p-value of the exact two-sided McNemar test: binomial over discordant pairs; 1 without any."""
    return 1.0 if lost + won == 0 else float(stats.binomtest(lost, lost + won, 0.5).pvalue)


def difference_p(deltas: Sequence[float], kind: Kind, span: Range) -> float | None:
    """Return the two-sided p-value of no difference: exact McNemar for ``binary``, else where a bound reaches zero.

    None where there is no bound.
    """
    if not deltas:
        return None
    if kind == "binary":
        return mcnemar(sum(d < 0 for d in deltas), sum(d > 0 for d in deltas))
    if difference_bounds(deltas, kind, 0.05, span)[:2] == (None, None):
        return None

    def excludes_zero(alpha: float) -> bool:
        low, high, _ = difference_bounds(deltas, kind, alpha, span)
        return (low is not None and low > 0) or (high is not None and high < 0)

    refused, excluded = math.log(1e-12), math.log(0.5)
    if not excludes_zero(0.5):
        return 1.0
    while excluded - refused > 1e-3:
        middle = (refused + excluded) / 2
        refused, excluded = (refused, middle) if excludes_zero(math.exp(middle)) else (middle, excluded)
    return min(1.0, 2 * math.exp(excluded))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return adjusted p-values that control the chance of any false claim."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def win_rate_at_equal_length(
    wins: Sequence[float], length_differences: Sequence[float], clusters: Sequence[str]
) -> Estimate:
    """Compute the win rate at equal length: a logistic regression of wins on tanh(length difference / sd), at 0.

    Not AlpacaEval 2's length-controlled win rate, which also has a term for how hard each instruction is, fitted over
    many models and regularised: where 7.62 is published, this gives 11.21 on the same annotations.

    Args:
        wins: 1, 0.5 (tie) or 0 a comparison; its length difference (new - old) and its prompt (or the cluster of
            its prompt) beside it.

    Not estimable (one outcome only, lengths that separate the outcomes, under 10 prompts): value None.
    """
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM
    from statsmodels.tools.sm_exceptions import PerfectSeparationError

    n = len(wins)
    counts = {"n": n, "n_scored": n, "n_failed": 0, "clusters": len(set(clusters))}
    unknown = Estimate(value=None, **counts, method="not estimable")
    spread = float(np.std(length_differences)) if n else 0.0
    if len(set(clusters)) < 10 or len(set(wins)) < 2 or not spread:
        return unknown
    design = np.column_stack([np.ones(n), np.tanh(np.asarray(length_differences) / spread)])
    groups = np.unique(np.asarray(clusters), return_inverse=True)[1]
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # separation shows below, in the parameters
            model = GLM(np.asarray(wins, dtype=float), design, family=Binomial())
            fit = model.fit(cov_type="cluster", cov_kwds={"groups": groups})
    except (ValueError, np.linalg.LinAlgError, PerfectSeparationError):
        return unknown
    intercept, error = float(fit.params[0]), float(fit.bse[0])
    if not fit.converged or not math.isfinite(error) or np.abs(fit.params).max() > 10:
        return unknown
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    rate, low, high = (1 / (1 + math.exp(-x)) for x in (intercept, intercept - z * error, intercept + z * error))
    return Estimate(value=rate, low=low, high=high, **counts, method="logistic regression, clustered errors")
