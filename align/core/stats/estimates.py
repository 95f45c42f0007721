"""Estimates: a value with its interval and its counts, as records hold them and as they are printed.

In: numbers with the cluster (item, prompt) each belongs to, and what kind of number they are. Out: an estimate with a
two-sided 95 % interval. The kind comes from the metric's declaration and is never guessed from values. Nothing scored
gives None, never a zero. Not here: differences and one-sided bounds (``differences.py``, ``bounds.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import model_validator
from scipy import stats

from align.core.records import Record
from align.core.stats.bounds import clopper_pearson

Kind = Literal["binary", "share", "unbounded"]
LEVEL = 0.95  # of every interval, unless a function takes another


class Estimate(Record):
    """A value with its 95 % interval: ``n`` results, of which ``n_scored`` count, from ``clusters`` clusters.

    ``value`` is None where nothing was scored or it cannot be estimated; ``low`` and ``high`` are None where the data
    give no interval. ``method`` is the interval's. Records of earlier versions, with ``mean`` for
    ``value`` or both ends in ``interval``, are read too; other keys of such a record are left out.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int
    n_scored: int
    n_failed: int
    method: str = ""
    clusters: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_earlier(cls, record: Any) -> Any:
        if not isinstance(record, Mapping):
            return record
        low, high = record.get("interval") or (record.get("low"), record.get("high"))
        value = record["value"] if "value" in record else record.get("mean")
        n = record.get("n", 0)
        n_scored = record.get("n_scored", n if value is not None else 0)
        return {
            "value": value,
            "low": low,
            "high": high,
            "n": n,
            "n_scored": n_scored,
            "n_failed": record.get("n_failed", n - n_scored),
            "method": record.get("method", ""),
            "clusters": record.get("clusters", record.get("n_clusters")),
        }

    @property
    def half_width(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def __str__(self) -> str:
        """Return ``0.51 [0.40, 0.62]``, with two significant digits of half the interval's width."""
        return format_estimate(self)


def format_estimate(estimate: Estimate, *, is_signed: bool = False) -> str:
    """Return ``0.51 [0.40, 0.62]``, with two significant digits of half the width, or why there is no value."""
    if estimate.value is None:
        return "not estimable" if estimate.n_scored else f"none of {estimate.n} scored"
    width = estimate.half_width
    if width is None:
        return f"{format_number(estimate.value, is_signed=is_signed)} (no interval)"
    value, low, high = (
        format_number(one, width, is_signed=is_signed) for one in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]"


def format_number(value: float | None, half_width: float | None = None, *, is_signed: bool = False) -> str:
    """Return a number with two significant digits of its interval's ``half_width``; a dash for None.

    Without a width: three digits or decimals, small ones by their first digit, whole numbers in full.
    """
    if value is None:
        return "–"
    sign = "+" if is_signed else ""
    if half_width:
        decimals = max(0, 1 - math.floor(math.log10(half_width)))
        return f"{round(value, decimals) + 0.0:{sign},.{decimals}f}"
    if value == 0:
        return "0"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:{sign},.0f}"
    if abs(value) >= 1:
        return f"{value:{sign}#.3g}".removesuffix(".")
    return f"{value:{sign}.1g}" if abs(value) < 0.0005 else f"{value:{sign}.3f}"


def mean_interval(values: Sequence[float | None], kind: Kind, clusters: Sequence[str] | None = None) -> Estimate:
    """Estimate a mean, with an interval over clusters; without ``clusters`` every value is a cluster.

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
    counts = {"n": n, "n_scored": n_scored, "n_failed": n - n_scored}
    if not kept:
        return Estimate(value=None, **counts, method="nothing was scored", clusters=0)
    scores = np.array([value for value, _ in kept], dtype=float)
    mean, error, sizes_C = _clustered_error(scores, [name for _, name in kept])
    low: float | None = None
    high: float | None = None
    method = "no interval: one cluster, or no variance"
    if kind != "unbounded":
        if scores.min() < 0 or scores.max() > 1:
            raise ValueError(f"a {kind} lies from 0 to 1, and {scores.min():g} to {scores.max():g} were given")
        low, high = wilson(mean, effective_n(mean, error, sizes_C, kind))
        method = "Wilson"
    elif error:
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(sizes_C) - 1)) * error
        low, high, method = mean - half, mean + half, "t over clusters"
    return Estimate(value=mean, low=low, high=high, **counts, method=method, clusters=len(sizes_C))


def proportion(hits: int, n_scored: int, n: int, *, is_exact: bool = False) -> Estimate:
    """Estimate a share from counts of independent results; ``n`` includes what could not be scored.

    The interval is Wilson's, or with ``is_exact`` that of Clopper and Pearson (1934), which never covers less than
    95 %: for what a person is judged by.
    """
    counts = {"n": n, "n_scored": n_scored, "n_failed": n - n_scored, "clusters": n_scored}
    if not n_scored:
        return Estimate(value=None, **counts, method="nothing was scored")
    share = hits / n_scored
    low, high = clopper_pearson(hits, n_scored, (1 - LEVEL) / 2) if is_exact else wilson(share, n_scored)
    return Estimate(value=share, low=low, high=high, **counts, method="Clopper-Pearson" if is_exact else "Wilson")


def ratio_interval(first: Sequence[float], second: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """Estimate the ratio of two means over the same pairs, with a delta-method interval over clusters."""
    n = len(first)
    counts = {"n": n, "n_scored": n, "n_failed": 0, "clusters": len(set(clusters))}
    if n == 0 or sum(second) == 0:
        return Estimate(value=None, **counts, method="not estimable: the denominator is zero")
    ratio = sum(first) / sum(second)
    sums: dict[str, float] = {}
    for cluster, one, two in zip(clusters, first, second, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + one - ratio * two
    count = len(sums)
    error = math.sqrt(count / (count - 1) * sum(s * s for s in sums.values())) / sum(second) if count > 1 else 0.0
    if not error:  # the same outcomes on both sides: how often they differ elsewhere was not seen
        return Estimate(value=ratio, **counts, method="no interval: one cluster, or no variance")
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * error
    return Estimate(value=ratio, low=ratio - half, high=ratio + half, **counts, method="delta method over clusters")


def wilson(share: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's score interval for a share of ``n`` (possibly effective) items."""
    low, high = wilson_bounds(share, n, level)
    return float(low), float(high)


def wilson_bounds(
    share: ArrayLike, n: ArrayLike, level: float = LEVEL
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Wilson's score intervals for many shares; exactly 0 and 1 at the ends."""
    share, n = np.asarray(share, dtype=float), np.asarray(n, dtype=float)
    z = float(stats.norm.ppf((1 + level) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return np.where(share <= 0, 0.0, centre - half), np.where(share >= 1, 1.0, centre + half)


def effective_n(mean: float, error: float, sizes_C: np.ndarray, kind: Kind, level: float = LEVEL) -> float:
    """Return how many independent zeros and ones are as informative about a share as these clusters.

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
    """Return the mean, its standard error over clusters (0 for one cluster), sizes of the clusters ``(C,)``."""
    mean = float(scores.mean())
    index = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums_C, sizes_C = np.bincount(index, weights=scores - mean), np.bincount(index)
    count = len(sums_C)
    if count < 2 or np.ptp(scores) == 0:
        return mean, 0.0, sizes_C
    return mean, math.sqrt(float((sums_C**2).sum()) * count / (count - 1)) / len(scores), sizes_C
