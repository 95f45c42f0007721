"""Statistics of evaluations: what a mean, a difference and a gate may claim.

In: numbers by item. Out: estimates with counts and intervals, bounds, p-values. Items are the clusters: samples
of one item are not independent (Miller 2024, arXiv 2411.00640). Nothing scored gives None, never a zero.
Not here: training-seed variance. Every interval speaks about new items for this one trained policy.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from align.core.intervals import Estimate, Kind


class Metric(NamedTuple):
    """What a metric is by its definition, not by the values that were seen.

    ``kind``: one result is 0 or 1 (binary), lies in [0, 1] (share), or has no bound on at least one side (unbounded).
    ``widest``: a difference that leaves nothing to lose or to gain; a margin must be smaller.
    """

    higher_is_better: bool
    kind: Kind
    low: float = -math.inf
    high: float = math.inf
    widest: float = math.inf


def _binary(higher_is_better: bool) -> Metric:
    return Metric(higher_is_better, "binary", 0.0, 1.0, 1.0)


METRICS: dict[str, Metric] = {
    "accuracy": _binary(True),
    "nll_per_byte": Metric(False, "unbounded", low=0.0, widest=8 * math.log(2)),  # a byte by chance costs 8 bits
    "bits_per_byte": Metric(False, "unbounded", low=0.0, widest=8.0),
    "harmful_compliance": _binary(False),
    "over_refusal": _binary(False),
    "harmless_compliance": _binary(True),
    "garbage": _binary(False),
    "sycophancy": _binary(False),
    "gold_utility": Metric(True, "unbounded"),
    "reward_score": Metric(True, "unbounded"),
    "win_rate_vs_sft": Metric(True, "share", 0.0, 1.0, 1.0),
    "kl": Metric(False, "unbounded", low=0.0),
    "n_tokens": Metric(False, "unbounded", low=0.0),
    "ended": _binary(True),
    "measured_higher": Metric(True, "unbounded"),
    "measured_lower": Metric(False, "unbounded"),
}
EXACT_LIMIT = 1500  # items up to which the score bound is enumerated; beyond it Clopper-Pearson bounds are combined


def metric_of(name: str) -> Metric:
    """The declaration of a metric; ``accuracy/fact`` counts as ``accuracy``. KeyError names an unknown one."""
    return METRICS[name.partition("/")[0]]


def higher_is_better(metric: str) -> bool:
    """Direction of a metric; KeyError names an unknown one."""
    return metric_of(metric).higher_is_better


def is_share(metric: str) -> bool:
    """Whether the metric's scores lie in [0, 1] by definition, not by what was seen."""
    return metric_of(metric).kind != "unbounded"


class Difference(NamedTuple):
    """Mean of new - old over items scored on both sides; ``n`` items in all, ``sd`` between items."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    n_scored: int
    n_failed: int
    level: float
    sd: float | None
    method: str


def limit_bounds(items: Mapping[str, float | None], alpha: float) -> tuple[float | None, float | None, str]:
    """One-sided lower and upper bounds, each at ``alpha``, on a mean over items; and how they were made.

    Clopper-Pearson (1934) where every item is a zero or a one, which is exact; else Student's t over items.
    """
    values = [value for value in items.values() if value is not None]
    n = len(values)
    if values and set(values) <= {0.0, 1.0}:
        hits = sum(values)
        low = float(stats.beta.ppf(alpha, hits, n - hits + 1)) if hits else 0.0
        high = float(stats.beta.ppf(1 - alpha, hits + 1, n - hits)) if hits < n else 1.0
        return low, high, "Clopper-Pearson"
    if len(set(values)) < 2:
        return None, None, "the scores do not vary"
    mean, half = float(np.mean(values)), float(stats.t.ppf(1 - alpha, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return mean - half, mean + half, "t over items"


def paired_difference(
    new: Mapping[str, float | None],
    old: Mapping[str, float | None],
    kind: Kind = "unbounded",
    level: float = 0.95,
) -> Difference:
    """Difference new - old over items scored on both sides, with an interval of two one-sided bounds.

    ``kind``: ``binary`` (one zero or one an item: exact), ``share`` (item means in [0, 1]) or ``unbounded``
    (t; no interval when nothing varies, because nothing then bounds what was not seen).
    """
    ids = sorted({*new, *old})
    pairs = [(a, b) for i in ids if (a := new.get(i)) is not None and (b := old.get(i)) is not None]
    counts = (len(ids), len(pairs), len(ids) - len(pairs))
    if not pairs:
        return Difference(None, None, None, *counts, level, None, "nothing was scored on both sides")
    deltas = np.array([a - b for a, b in pairs], dtype=float)
    mean = float(deltas.mean())
    sd = float(deltas.std(ddof=1)) if len(deltas) > 1 else None
    alpha = (1 - level) / 2
    if kind == "binary":
        lost, won = int((deltas < 0).sum()), int((deltas > 0).sum())
        low = noninferiority_bound(lost, won, len(deltas), alpha)
        high = -noninferiority_bound(won, lost, len(deltas), alpha)
        method = "exact unconditional score" if len(deltas) <= EXACT_LIMIT else "Clopper-Pearson, Bonferroni"
        return Difference(mean, low, high, *counts, level, sd, method)
    if kind == "share":
        return Difference(
            mean, share_bound(deltas, alpha), -share_bound(-deltas, alpha), *counts, level, sd, "t, guarded"
        )
    if not sd:
        return Difference(mean, None, None, *counts, level, sd, "no variance between items: no interval")
    half = float(stats.t.ppf(1 - alpha, len(deltas) - 1)) * sd / math.sqrt(len(deltas))
    return Difference(mean, mean - half, mean + half, *counts, level, sd, "t")


@functools.lru_cache(maxsize=4096)
def noninferiority_bound(lost: int, won: int, n: int, alpha: float = 0.05) -> float:
    """One-sided lower bound, at error ``alpha``, of P(won) - P(lost) for paired zeros and ones.

    Inverts the exact unconditional test that orders outcomes by Tango's score (Statist. Med. 17, 1998; the exact
    test: Hsueh, Liu and Chen, Biometrics 57, 2001): the smallest difference that the worst nuisance parameter does
    not reject. With no discordant pair it is about -3/n, never zero. Beyond ``EXACT_LIMIT`` items the bound is the
    difference of two Clopper-Pearson bounds at alpha/2, valid by Bonferroni and wider.
    """
    if n < 1 or lost < 0 or won < 0 or lost + won > n:
        raise ValueError(f"{lost} lost and {won} won do not fit into {n} pairs")
    if n > EXACT_LIMIT:
        least = float(stats.beta.ppf(alpha / 2, won, n - won + 1)) if won else 0.0
        most = float(stats.beta.ppf(1 - alpha / 2, lost + 1, n - lost)) if lost < n else 1.0
        return least - most
    rejected, kept = -1.0, (won - lost) / n
    while kept - rejected > 1e-4:
        middle = (rejected + kept) / 2
        if _exact_p(lost, won, n, middle) > alpha:
            kept = middle
        else:
            rejected = middle
    return rejected


def tango_z(lost: np.ndarray, won: np.ndarray, n: int, delta: float) -> np.ndarray:
    """Score statistic of H0: P(won) - P(lost) = delta, with P(lost) at its restricted maximum likelihood."""
    b = -(lost + won) + delta * (2 * n + lost - won)
    c = -lost * delta * (1 - delta)
    q = (-b + np.sqrt(np.maximum(b * b - 8 * n * c, 0.0))) / (4 * n)
    variance = n * np.maximum(2 * q + delta - delta * delta, 0.0)
    distance = won - lost - n * delta
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(variance > 1e-12, distance / np.sqrt(variance), np.sign(distance) * np.inf)


def share_bound(deltas: np.ndarray, alpha: float = 0.05) -> float:
    """One-sided lower bound of a mean difference in [-1, 1] whose items hold averages of several samples.

    A t bound after adding z^2/2 + 1/4 pseudo-items at the worst value, -1: what Agresti and Coull add to a share,
    here where a rare total loss would hurt most; when nothing differs, alpha^(1/n) - 1, the exact bound of what was
    not seen. Its miss rate for all-or-nothing losses is enumerated in the tests: at most ``alpha``.
    """
    n = len(deltas)
    if n < 2:
        return -1.0
    if not deltas.any():
        return alpha ** (1 / n) - 1
    weight = float(stats.norm.ppf(1 - alpha)) ** 2 / 2 + 0.25
    total = n + weight
    mean = (float(deltas.sum()) - weight) / total
    square = float(((deltas - mean) ** 2).sum()) + weight * (1 + mean) ** 2
    return max(-1.0, mean - float(stats.t.ppf(1 - alpha, n - 1)) * math.sqrt(square / (total - 1) / total))


def mcnemar(lost: int, won: int) -> float:
    """Exact two-sided McNemar test: binomial over discordant pairs; none gives 1."""
    return 1.0 if lost + won == 0 else float(stats.binomtest(lost, lost + won, 0.5).pvalue)


def paired_p(new: Mapping[str, float | None], old: Mapping[str, float | None], kind: Kind) -> float | None:
    """Two-sided p-value of no difference: exact McNemar for ``binary``, else a paired t test (where all
    differences are the same, the sign test); None without two items."""
    deltas = [a - b for i in new if (a := new[i]) is not None and (b := old.get(i)) is not None]
    if kind == "binary" and deltas:
        return mcnemar(sum(d < 0 for d in deltas), sum(d > 0 for d in deltas))
    if len(deltas) < 2:
        return None
    if not any(deltas):
        return 1.0
    if len(set(deltas)) == 1:  # t has no variance to go by; the sign test has
        return float(min(1.0, 2.0 ** (1 - len(deltas))))
    return float(stats.ttest_1samp(deltas, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that control the chance of any false claim."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def needed_n(sd: float, margin: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Items needed to show that a true difference of zero is no worse than ``margin``; ``sd`` between items."""
    reach = float(stats.norm.ppf(1 - alpha) + stats.norm.ppf(power))
    return max(2, math.ceil((reach * sd / margin) ** 2))


def unseen_n(margin: float, alpha: float = 0.05) -> int:
    """Items without one difference that show a change of a share below ``margin``: about 3 / margin."""
    return math.ceil(math.log(alpha) / math.log1p(-margin)) if margin < 1 else 1


def detectable(sd: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that ``n`` items show with this power (one-sided)."""
    return float(stats.norm.ppf(1 - alpha) + stats.norm.ppf(power)) * sd / math.sqrt(n)


def length_controlled_win_rate(
    wins: Sequence[float], length_differences: Sequence[float], clusters: Sequence[str], level: float = 0.95
) -> Estimate:
    """Win rate at equal length: logistic regression on tanh(difference / its sd), read at 0 (AlpacaEval 2's control).

    Args:
        wins: 1, 0.5 (tie) or 0 a comparison; its length difference (new - old) and its prompt beside it.

    Not estimable (one outcome only, lengths that separate the outcomes, under 10 prompts): mean None.
    """
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM
    from statsmodels.tools.sm_exceptions import PerfectSeparationError

    n = len(wins)
    unknown = Estimate(None, None, None, n, n, 0, level, len(set(clusters)))
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
    z = float(stats.norm.ppf((1 + level) / 2))
    mean, low, high = (1 / (1 + math.exp(-x)) for x in (intercept, intercept - z * error, intercept + z * error))
    return Estimate(mean, low, high, n, n, 0, level, len(set(clusters)))


def _exact_p(lost: int, won: int, n: int, delta: float) -> float:
    """Largest chance, over P(lost), of a score at least as high as the one seen, when the difference is delta."""
    first = _first_won(n, delta, float(tango_z(np.array(lost), np.array(won), n, delta)) - 1e-9)
    rows = np.flatnonzero(first <= n - np.arange(n + 1))
    low, high = max(0.0, -delta), (1 - delta) / 2

    def tail(q_G: np.ndarray) -> np.ndarray:
        rest = np.maximum(1 - q_G, 1e-300)[:, None]
        share = np.clip((q_G + delta)[:, None] / rest, 0.0, 1.0)
        chance = stats.binom.pmf(rows[None, :], n, q_G[:, None])
        return (chance * stats.binom.sf(first[rows][None, :] - 1, n - rows[None, :], share)).sum(axis=1)

    grid = low + (high - low) * np.linspace(0, 1, 41) ** 2
    chances = tail(grid)
    best = int(chances.argmax())
    fine = np.linspace(grid[max(0, best - 1)], grid[min(40, best + 1)], 17)
    return float(max(chances.max(), tail(fine).max()))


def _first_won(n: int, delta: float, threshold: float) -> np.ndarray:
    """For each number lost, ``(n+1,)``: the smallest number won from which the score reaches the threshold."""
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
