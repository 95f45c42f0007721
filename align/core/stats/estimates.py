"""The interval of a mean, one home for evaluations, reward models and samples.

In: numbers with the cluster (item, prompt) each belongs to, and what kind of number they are. Out: a mean with its
counts and a two-sided interval. The kind is said by whoever knows the metric, never guessed from values. Nothing
scored gives None, never a zero. Not here: differences and one-sided bounds of gates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

Kind = Literal["binary", "share", "unbounded"]


class Estimate(NamedTuple):
    """A mean with its two-sided interval; ``n`` results of which ``n_scored`` count, from ``n_clusters`` clusters."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    n_scored: int
    n_failed: int
    level: float = 0.95
    n_clusters: int = 0


def mean_interval(
    values: Sequence[float | None], kind: Kind, clusters: Sequence[str] | None = None, level: float = 0.95
) -> Estimate:
    """Mean with an interval that knows its clusters; without ``clusters`` every value is one of its own.

    ``binary`` (zeros and ones; a tie counts a half) and ``share`` (numbers in [0, 1]) get Wilson's interval over the
    effective sample size, so none collapses at 0 or at 1; ``unbounded`` numbers get a t interval with the clustered
    standard error, C/(C-1) and C-1 degrees of freedom (Miller 2024, arXiv 2411.00640), and none from one cluster or
    without variance.

    Raises:
        ValueError: a value of a binary or a share outside [0, 1].
    """
    names = list(clusters) if clusters is not None else [str(i) for i in range(len(values))]
    kept = [(value, name) for value, name in zip(values, names, strict=True) if value is not None]
    n, n_scored = len(values), len(kept)
    if not kept:
        return Estimate(None, None, None, n, 0, n, level)
    scores = np.array([value for value, _ in kept], dtype=float)
    mean, error, sizes_C = _clustered_error(scores, [name for _, name in kept])
    low: float | None = None
    high: float | None = None
    if kind != "unbounded":
        if scores.min() < 0 or scores.max() > 1:
            raise ValueError(f"a {kind} lies from 0 to 1, and {scores.min():g} to {scores.max():g} were given")
        low, high = wilson(mean, effective_n(mean, error, sizes_C, kind, level), level)
    elif error:
        half = float(stats.t.ppf((1 + level) / 2, len(sizes_C) - 1)) * error
        low, high = mean - half, mean + half
    return Estimate(mean, low, high, n, n_scored, n - n_scored, level, len(sizes_C))


def wilson(share: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share seen over ``n`` (possibly effective) items."""
    z = float(stats.norm.ppf((1 + level) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if share <= 0 else centre - half), (1.0 if share >= 1 else centre + half)


def effective_n(mean: float, error: float, sizes_C: np.ndarray, kind: Kind, level: float) -> float:
    """How many independent zeros and ones tell as much about a share as these clusters do.

    ``mean (1 - mean) / error^2``, adjusted for the C-1 degrees of freedom of the error (Korn and Graubard, Survey
    Methodology 24, 1998; Wilson's interval over it: Dean and Pagano, J. Survey Statistics and Methodology 3, 2015).
    At 0 and 1, where no error can be estimated, and as a lower limit: Kish's ``n^2 / sum of squared cluster sizes``,
    which is what remains when all of a cluster agree. Binary values are never worth more than their number.
    """
    n, count = float(sizes_C.sum()), len(sizes_C)
    if kind == "binary" and count == n:
        return n
    least = n * n / float((sizes_C**2).sum())
    if not error:
        return least
    wider = float(stats.t.ppf((1 + level) / 2, count - 1) / stats.norm.ppf((1 + level) / 2))
    effective = max(least, mean * (1 - mean) / (error * wider) ** 2)
    return min(effective, n) if kind == "binary" else effective


def _clustered_error(scores: np.ndarray, clusters: Sequence[str]) -> tuple[float, float, np.ndarray]:
    """Mean, standard error of the mean over clusters (0 for one cluster), sizes of the clusters ``(C,)``."""
    mean = float(scores.mean())
    index = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums_C, sizes_C = np.bincount(index, weights=scores - mean), np.bincount(index)
    count = len(sums_C)
    if count < 2 or np.ptp(scores) == 0:
        return mean, 0.0, sizes_C
    return mean, math.sqrt(float((sums_C**2).sum()) * count / (count - 1)) / len(scores), sizes_C


def clustered_accuracy(correct: Sequence[float], clusters: Sequence[str], level: float = 0.95) -> dict[str, Any]:
    """Share of 0 / 0.5 / 1 outcomes with Wilson's interval over the effective number of pairs."""
    return _as_dict(mean_interval(correct, "binary", clusters, level))


def clustered_mean(values: Sequence[float], clusters: Sequence[str], level: float = 0.95) -> dict[str, Any]:
    """Mean of unbounded numbers with a t interval over clusters; None where there is nothing to say."""
    return _as_dict(mean_interval(values, "unbounded", clusters, level))


def clustered_ratio(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[str], level: float = 0.95
) -> dict[str, Any]:
    """Ratio of two means over the same pairs, with a delta-method interval over clusters."""
    n = len(first)
    if n == 0 or sum(second) == 0:
        return {"mean": None, "low": None, "high": None, "n": n}
    ratio = sum(first) / sum(second)
    sums: dict[str, float] = {}
    for cluster, one, two in zip(clusters, first, second, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + one - ratio * two
    count = len(sums)
    if count < 2:
        return {"mean": ratio, "low": None, "high": None, "n": n}
    error = float(np.sqrt(count / (count - 1) * sum(s * s for s in sums.values())) / sum(second))
    if not error:  # the same outcomes on both sides: how often they differ elsewhere was not seen
        return {"mean": ratio, "low": None, "high": None, "n": n}
    reach = float(stats.t.ppf(0.5 + level / 2, count - 1)) * error
    return {"mean": ratio, "low": ratio - reach, "high": ratio + reach, "n": n}


def _as_dict(found: Estimate) -> dict[str, Any]:
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n, "clusters": found.n_clusters}
