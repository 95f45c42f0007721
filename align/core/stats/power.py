"""Compute how many items a gate needs, and what it detects with those it has, by the power of its own bound.

In: differences by item, turned so that up is better, and what the bound assumes of them. Out: a number of items, or a
true difference. Exact for paired zeros and ones; else the bound is computed on seeded draws from the differences seen.
Not here: what differences nobody saw would do to the power.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from align.core.stats.bounds import (
    EXACT_LIMIT,
    NUISANCE,
    UNBOUNDED_N,
    first_won,
    guarded_bound,
    largest_tail,
)
from align.core.stats.estimates import Kind

POWER = 0.8
DRAWS = 1000
MOST = 10_000  # items; above this, no number is named


def needed_n(deltas: Sequence[float], kind: Kind, margin: float, alpha: float, worst: float) -> int | None:
    """Return how many items show with 80 % power that an unchanged mean is above ``-margin``; None above 10,000.

    Items are taken to differ as often and as much as those seen, around a mean of zero. Items without one
    difference give the fewest that could do, about 3 ``-worst`` / margin.
    """
    array = np.asarray(deltas, dtype=float)
    if np.ptp(array) == 0 and math.isfinite(worst):
        return unseen_n(margin / -worst, alpha)
    if kind == "binary":
        differing = float(np.mean(array != 0))
        return _smallest(lambda n: _binary_power(n, differing / 2, differing / 2, -margin, alpha), 2)
    generator = np.random.default_rng(0)
    centred = array - array.mean()

    def power(n: int) -> float:
        drawn = generator.choice(centred, (min(DRAWS, 4_000_000 // n), n))
        return float((_lower(drawn, worst, alpha) > -margin).mean())

    return _smallest(power, 2 if math.isfinite(worst) else UNBOUNDED_N)


def detectable(deltas: Sequence[float], kind: Kind, margin: float, alpha: float, best: float) -> float | None:
    """Return the smallest true worsening that these items would prove to be beyond ``margin`` with 80 % power.

    ``best`` is the highest possible difference of an item. None where even the largest would not be proved.
    """
    array = np.asarray(deltas, dtype=float)
    n = len(array)
    if n < 2:
        return None
    if kind == "binary":
        differing = float(np.mean(array != 0))

        def power(worse: float) -> float:
            lost = max((differing + worse) / 2, worse)
            return _binary_power(n, lost - worse, lost, margin, alpha)

        most = 1.0
    else:
        drawn = np.random.default_rng(0).choice(array - array.mean(), (min(DRAWS, max(1, 4_000_000 // n)), n))

        def power(worse: float) -> float:
            return float((_lower(worse - drawn, -best, alpha) > margin).mean())

        most = 1.0 if math.isfinite(best) and best <= 1 else margin + 20 * float(array.std()) + 1e-9
    if power(most) < POWER:
        return None
    low, high = margin, most
    while high - low > 1e-3 * most:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def unseen_n(margin: float, alpha: float = 0.05) -> int:
    """Return how many identical items are needed to bound a change below ``margin`` (about 3 / margin)."""
    return math.ceil(math.log(alpha) / math.log1p(-margin)) if margin < 1 else 1


def _lower(values_DN: np.ndarray, worst: float, alpha: float) -> np.ndarray:
    return guarded_bound(values_DN, worst if math.isfinite(worst) else values_DN.min(-1), alpha)


def _binary_power(n: int, lost: float, won: float, delta: float, alpha: float) -> float:
    """Compute the power of n pairs to show P(won) - P(lost) > ``delta`` with these chances to lose or win one."""
    if n > EXACT_LIMIT:
        counts = np.random.default_rng(0).multinomial(n, np.maximum([lost, won, 1 - lost - won], 0.0), DRAWS)
        least = np.nan_to_num(stats.beta.ppf(alpha / 2, counts[:, 1], n - counts[:, 1] + 1))  # as noninferiority_bound
        return float((least - stats.beta.ppf(1 - alpha / 2, counts[:, 0] + 1, n - counts[:, 0]) > delta).mean())
    first = _proving(n, delta, alpha)
    rows = np.flatnonzero(first <= n - np.arange(n + 1))
    share = min(1.0, won / max(1 - lost, 1e-300))
    chance = stats.binom.pmf(rows, n, lost) * stats.binom.sf(first[rows] - 1, n - rows, share)
    return float(chance.sum())


@functools.lru_cache(maxsize=256)
def _proving(n: int, delta: float, alpha: float) -> np.ndarray:
    """Return for each number lost, ``(n+1,)``, the smallest number won that proves a difference above ``delta``.

    The exact test proves it from one score on, whose place is bisected.
    """
    unproved, proved = 0.0, 6.0
    while proved - unproved > 1e-3:
        middle = (unproved + proved) / 2
        if largest_tail(n, delta, middle) <= alpha * NUISANCE:
            proved = middle
        else:
            unproved = middle
    return first_won(n, delta, proved)


def _smallest(power: Callable[[int], float], least: int) -> int | None:
    """Return a number of items with the given power: the smallest one where power grows with the number."""
    high = max(least, 16)
    while power(high) < POWER:
        high *= 2
        if high > MOST:
            return None
    low = max(least - 1, high // 2) if high > max(least, 16) else least - 1
    while high - low > max(1, high // 25):
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high
