"""One-sided bounds with a guaranteed error, on which the verdict of a gate is based.

In: counts or values by item. Out: a lower bound of a mean; an upper one is the negated lower bound of negated values.
Paired zeros and ones: exact, by enumeration. Single zeros and ones: Clopper and Pearson. Anything else: a t bound that
is guarded against losses too rare to have been seen often. The tests enumerate or simulate the error of each.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy import stats

EXACT_LIMIT = 1500  # pairs up to which the score bound is enumerated; beyond it Clopper-Pearson bounds are combined
STEP = 1e-4  # resolution of the score bound, rounded to the safe side
NUISANCE = 1 - 1e-3  # the largest chance over the nuisance grid is good to a thousandth of itself
UNSEEN_SHARE = 0.02  # losses on fewer items than this may be missed where nothing bounds a loss
UNBOUNDED_N = 150  # items among which losses on 2 % are seen at all with 95 % certainty: 0.98^149 < 0.05


def guarded_bound(values: np.ndarray, worst: float | np.ndarray, alpha: float = 0.05) -> np.ndarray:
    """Return a one-sided lower bound, at error ``alpha``, of the mean of values that are never below ``worst``.

    A t bound after adding z^2/2 + 1/4 pseudo-items (1/2 above an error of 0.05) at the worst value: what Agresti and
    Coull (1998) add to a share, here where a rare total loss would hurt most. Where all values are the same it is the
    exact bound of what was not seen. Its error is at most ``alpha`` for every shape on two points (enumerated), and in
    the tests for shapes on three points (enumerated) and for continuous ones (drawn).

    Args:
        values: ``(..., n)``, independent items along the last axis.
        worst: the lowest possible value, one or ``(...)``.
    """
    n = values.shape[-1]
    worst = np.asarray(worst, dtype=float)
    if n < 2:
        return np.broadcast_to(worst, values.shape[:-1])
    weight = float(stats.norm.ppf(1 - alpha)) ** 2 / 2 + (0.25 if alpha <= 0.05 else 0.5)
    total = n + weight
    mean = (values.sum(-1) + weight * worst) / total
    square = ((values - mean[..., None]) ** 2).sum(-1) + weight * (worst - mean) ** 2
    bound = mean - float(stats.t.ppf(1 - alpha, n - 1)) * np.sqrt(square / (total - 1) / total)
    first = values[..., 0]
    unseen = first - (first - worst) * (1 - alpha ** (1 / n))
    return np.maximum(worst, np.where(np.ptp(values, axis=-1) == 0, unseen, bound))


def clopper_pearson(hits: int, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """Return exact lower and upper bounds of a share, each at error ``alpha`` (Clopper and Pearson 1934)."""
    low = float(stats.beta.ppf(alpha, hits, n - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(1 - alpha, hits + 1, n - hits)) if hits < n else 1.0
    return low, high


@functools.lru_cache(maxsize=4096)
def noninferiority_bound(lost: int, won: int, n: int, alpha: float = 0.05) -> float:
    """Return a one-sided lower bound, at error ``alpha``, of P(won) - P(lost) for paired zeros and ones.

    Inverts the exact unconditional test that orders outcomes by Tango's score (Statist. Med. 17, 1998; the exact
    test: Hsueh, Liu and Chen, Biometrics 57, 2001): the smallest difference that the worst nuisance parameter does
    not reject. With no discordant pair it is about -3/n, never zero. Beyond ``EXACT_LIMIT`` items the bound is the
    difference of two Clopper-Pearson bounds at alpha/2, valid by Bonferroni and wider.
    """
    if n < 1 or lost < 0 or won < 0 or lost + won > n:
        raise ValueError(f"{lost} lost and {won} won do not fit into {n} pairs")
    if n > EXACT_LIMIT:
        return clopper_pearson(won, n, alpha / 2)[0] - clopper_pearson(lost, n, alpha / 2)[1]
    rejected, kept = -1.0, (won - lost) / n
    while kept - rejected > STEP:
        middle = (rejected + kept) / 2
        if exact_p(lost, won, n, middle) > alpha * NUISANCE:
            kept = middle
        else:
            rejected = middle
    return rejected


def tango_z(lost: np.ndarray, won: np.ndarray, n: int, delta: float) -> np.ndarray:
    """Return the score statistic of H0: P(won) - P(lost) = delta, with P(lost) at its restricted maximum likelihood."""
    b = -(lost + won) + delta * (2 * n + lost - won)
    c = -lost * delta * (1 - delta)
    q = (-b + np.sqrt(np.maximum(b * b - 8 * n * c, 0.0))) / (4 * n)
    variance = n * np.maximum(2 * q + delta - delta * delta, 0.0)
    distance = won - lost - n * delta
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(variance > 1e-12, distance / np.sqrt(variance), np.sign(distance) * np.inf)


def exact_p(lost: int, won: int, n: int, delta: float) -> float:
    """Return the largest chance, over P(lost), of the observed score or a higher one at a difference of delta."""
    return largest_tail(n, delta, float(tango_z(np.array(lost), np.array(won), n, delta)) - 1e-9)


def largest_tail(n: int, delta: float, threshold: float) -> float:
    """Return the largest chance, over P(lost), of a score of ``threshold`` or more at a difference of delta.

    The chance changes over P(lost) as fast as a standard deviation of its angle, 1/sqrt(n), at both ends of its range:
    the grid has equal steps in the angle, and the three highest places are refined.
    """
    first = first_won(n, delta, threshold)
    rows = np.flatnonzero(first <= n - np.arange(n + 1))
    low, high = max(0.0, -delta), (1 - delta) / 2

    def tail(q_G: np.ndarray) -> np.ndarray:
        rest = np.maximum(1 - q_G, 1e-300)[:, None]
        share = np.clip((q_G + delta)[:, None] / rest, 0.0, 1.0)
        chance = stats.binom.pmf(rows[None, :], n, q_G[:, None])
        return (chance * stats.binom.sf(first[rows][None, :] - 1, n - rows[None, :], share)).sum(axis=1)

    steps = max(40, 4 * math.isqrt(n))
    grid = low + (high - low) * (1 - np.cos(np.linspace(0, math.pi, steps + 1))) / 2
    chances = tail(grid)
    highest = np.argsort(chances)[-3:]
    fine = np.concatenate([np.linspace(grid[max(0, k - 1)], grid[min(steps, k + 1)], 17) for k in highest])
    return float(max(chances.max(), tail(fine).max()))


def first_won(n: int, delta: float, threshold: float) -> np.ndarray:
    """Return for each number lost, ``(n+1,)``, the smallest number won from which the score reaches the threshold."""
    lost: np.ndarray = np.arange(n + 1)
    low: np.ndarray
    high: np.ndarray
    low, high = np.full(n + 1, -1), n - lost + 1  # the score grows with the number won: bisect every row at once
    while (high - low > 1).any():
        middle = (low + high) // 2
        reaches = tango_z(lost, np.maximum(middle, 0), n, delta) >= threshold
        high = np.where(reaches & (middle >= 0), middle, high)
        low = np.where(reaches & (middle >= 0), low, np.maximum(middle, low))
    return high
