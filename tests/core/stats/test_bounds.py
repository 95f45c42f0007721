"""The error of every bound that a gate uses, enumerated where that is possible and else drawn; and the power promised.

A bound with error alpha lies beyond the truth with a chance of at most alpha, whatever the truth is. Where chances are
drawn, a test fails if the 99 % lower bound of the share of misses is above alpha.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.special import gammaln

from align.core.stats import bounds
from align.core.stats.bounds import UNBOUNDED_N, guarded_bound
from align.core.stats.differences import ANY, difference_bounds, difference_p, mean_bounds
from align.core.stats.power import _proving, detectable, needed_n, unseen_n

Shape = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]

# --- the non-inferiority bound -----------------------------------------------------------------------------------


def _coverage(n: int, alpha: float, move: float = 0.0) -> float:
    """Smallest chance, over true probabilities, that the bound lies at or below the truth: all cells enumerated."""
    cells = [(b, c) for b, c in product(range(n + 1), repeat=2) if b + c <= n]
    lowest = np.array([bounds.noninferiority_bound(b, c, n, alpha) + move for b, c in cells])
    counts = np.array([(b, c, n - b - c) for b, c in cells])
    grid = np.linspace(0.0, 1.0, 26)
    covered = []
    for lost, won in product(grid, repeat=2):
        if lost > 0.0 and lost + won < 1.0:
            chance = scipy_stats.multinomial.pmf(counts, n, [lost, won, 1 - lost - won])
            covered.append(chance[lowest <= won - lost + 1e-9].sum())
    return float(min(covered))


@pytest.mark.parametrize(("n", "alpha"), [(6, 0.05), (12, 0.05), (8, 0.1)])
def test_the_bound_covers_at_every_true_probability(n: int, alpha: float) -> None:
    assert _coverage(n, alpha) >= 1 - alpha - 1e-6


def test_the_score_at_the_ends_of_its_range() -> None:
    """Where nothing can vary, a difference seen is infinitely far from the one asked about, on its own side."""
    assert bounds.tango_z(np.array(0), np.array(3), 10, 1.0) == -math.inf
    assert bounds.tango_z(np.array(3), np.array(0), 10, -1.0) == math.inf
    assert bounds.first_won(20, -0.5, -3.0).min() == 0  # nobody wins a negative number of times


def test_a_slightly_tighter_bound_would_not_cover() -> None:
    """Without this the test above could not fail: the bound is exact, not merely wide."""
    assert _coverage(12, 0.05, move=0.03) < 0.95


def test_a_wald_bound_would_not_cover() -> None:
    n = 12
    for lost in (0.02, 0.05, 0.1):
        missed = 0.0
        for b in range(n + 1):
            spread = math.sqrt(b / n * (1 - b / n) / n)
            if -b / n - 1.645 * spread > -lost:
                missed += scipy_stats.binom.pmf(b, n, lost)
        assert missed > 0.05


def test_zero_discordants_are_worth_three_over_n() -> None:
    for n in (10, 59, 300):
        assert bounds.noninferiority_bound(0, 0, n) == pytest.approx(0.05 ** (1 / n) - 1, abs=3e-4)
    assert unseen_n(0.05) == 59


def test_the_bound_is_between_the_always_valid_and_the_asymptotic_one() -> None:
    for lost, won, n in [(8, 6, 200), (30, 10, 300), (2, 9, 80)]:
        bound = bounds.noninferiority_bound(lost, won, n)
        bonferroni = scipy_stats.beta.ppf(0.025, won, n - won + 1) - scipy_stats.beta.ppf(0.975, lost + 1, n - lost)
        z = bounds.tango_z(np.array(lost), np.array(won), n, bound)
        assert bonferroni < bound < (won - lost) / n
        assert 1.5 < z < 2.2  # near the normal quantile 1.645, on the safe side


def test_beyond_enumeration_the_bound_stays_valid_and_close() -> None:
    bound = bounds.noninferiority_bound(100, 100, 5000)
    assert -0.02 < bound < -0.005


@pytest.mark.parametrize(("lost", "won", "n", "delta"), [(1, 0, 44, -0.1), (8, 6, 200, -0.05), (3, 9, 50, 0.02)])
def test_the_score_uses_the_restricted_maximum_likelihood(lost: int, won: int, n: int, delta: float) -> None:
    q = _restricted_maximum(lost, won, n, delta)
    z = (won - lost - n * delta) / math.sqrt(n * (2 * q + delta - delta**2))
    assert float(bounds.tango_z(np.array(lost), np.array(won), n, delta)) == pytest.approx(z, rel=1e-3)


def _restricted_maximum(lost: int, won: int, n: int, delta: float) -> float:
    """P(lost) that maximises the likelihood under P(won) = P(lost) + delta, by brute force."""
    q = np.linspace(max(0.0, -delta), (1 - delta) / 2, 400_001)[1:-1]
    with np.errstate(divide="ignore"):
        value = lost * np.log(q) + won * np.log(q + delta) + (n - lost - won) * np.log(1 - 2 * q - delta)
    return float(q[value.argmax()])


@pytest.mark.parametrize(("lost", "won", "n"), [(27, 23, 128), (57, 44, 172), (14, 5, 83), (41, 41, 131), (9, 1, 61)])
def test_the_worst_nuisance_is_not_missed_at_the_end_of_its_range(lost: int, won: int, n: int) -> None:
    """At the bound no P(lost) makes what was seen likelier than alpha; a grid of 41 equal steps let through .0503."""
    bound = bounds.noninferiority_bound(lost, won, n)
    z = float(bounds.tango_z(np.array(lost), np.array(won), n, bound)) - 1e-9
    first = bounds.first_won(n, bound, z)
    rows = np.flatnonzero(first <= n - np.arange(n + 1))
    low, high = max(0.0, -bound), (1 - bound) / 2
    q_G = low + (high - low) * (1 - np.cos(np.linspace(0, math.pi, 3001))) / 2
    share = np.clip((q_G + bound) / np.maximum(1 - q_G, 1e-300), 0, 1)[:, None]
    chance = scipy_stats.binom.pmf(rows, n, q_G[:, None])
    chance = (chance * scipy_stats.binom.sf(first[rows] - 1, n - rows, share)).sum(1)
    assert 0.045 < chance.max() <= 0.05


# --- the guarded bound -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.025, 0.01, 0.001, 0.0001])
def test_the_guarded_bound_misses_at_most_alpha_on_two_points(alpha: float) -> None:
    """Enumerated for the worst truth: just beyond each bound. Any two points are these, moved and stretched."""
    for n in (2, 3, 5, 8, 13, 20, 30, 41, 59, 60, 80, 100, 150, 300, 1000, 3000):
        hits = np.unique(np.r_[np.arange(min(n, 60) + 1), np.linspace(0, n, 40).astype(int)])
        values = np.where(np.arange(n) < hits[:, None], -1.0, 0.0)
        most = -guarded_bound(values, -1.0, alpha)
        missed = np.where(most < 1, scipy_stats.binom.cdf(hits, n, np.minimum(most, 1.0)), 0.0)
        assert missed.max() <= alpha * (1 + 1e-9), n


@pytest.mark.parametrize("n", [10, 30, 60])
@pytest.mark.parametrize(
    "points", [(-1, 0, 1), (-1, -0.25, 0.25), (-1, -0.9, 1), (-1, 0.5, 1), (-0.5, 0, 0.5), (-0.25, -0.2, 1)]
)
def test_the_guarded_bound_misses_at_most_alpha_on_three_points(n: int, points: tuple[float, ...]) -> None:
    cells = np.array([(i, j, n - i - j) for i in range(n + 1) for j in range(n + 1 - i)])
    values = np.stack([np.repeat(np.asarray(points), cell) for cell in cells])
    bound = guarded_bound(values, -1.0, 0.05)
    coefficient = gammaln(n + 1) - gammaln(cells + 1).sum(1)
    rare = [*np.linspace(0.002, 0.1, 15), *np.linspace(0.12, 0.95, 12)]
    for lost, split in product(rare, np.linspace(0.02, 0.98, 12)):
        chances = np.array([lost, (1 - lost) * (1 - split), (1 - lost) * split])
        weight = np.exp(coefficient + cells @ np.log(chances))
        assert weight[bound > chances @ np.asarray(points) + 1e-12].sum() <= 0.05


def _drawn_misses(shape: Shape, truth: float, n: int, draws: int, worst: float | None, alpha: float = 0.05) -> float:
    """99 % lower bound of the share of misses; the worst value seen guards where ``worst`` is None."""
    rng, missed = np.random.default_rng(11), 0
    step = max(1, 2_000_000 // n)
    for start in range(0, draws, step):
        values = shape(rng, (min(step, draws - start), n))
        guard = values.min(-1) if worst is None else worst
        missed += int((guarded_bound(values, guard, alpha) > truth + 1e-12).sum())
    return float(scipy_stats.beta.ppf(0.01, missed, draws - missed + 1)) if missed else 0.0


def _hits(share: float, noise: float = 0.0) -> Shape:
    """Losses of 1 on a share of the items, beside normal noise."""
    return lambda rng, size: -(rng.random(size) < share).astype(float) + noise * rng.normal(size=size)


def _answers(share: float, k: int, alike: float) -> Shape:
    """Means of k answers, each bad with a chance that differs between items (``alike``: how much of it is the item)."""
    a, b = share * (1 - alike) / alike, (1 - share) * (1 - alike) / alike
    return lambda rng, size: -rng.binomial(k, rng.beta(a, b, size)) / k


BOUNDED: dict[str, tuple[Shape, float]] = {
    "4 answers, limit .02, all or nothing": (_hits(0.02), -0.02),
    "4 answers, limit .02, mostly alike": (_answers(0.02, 4, 0.8), -0.02),
    "4 answers, limit .02, hardly alike": (_answers(0.02, 4, 0.05), -0.02),
    "4 answers, limit .1, half alike": (_answers(0.1, 4, 0.5), -0.1),
    "8 answers, limit .3": (_answers(0.3, 8, 0.3), -0.3),
    "small gains, rare total losses": (
        lambda rng, size: np.where(rng.random(size) < 0.05, -1.0, rng.choice([0.0, 0.25], size)),
        -0.05 + 0.95 * 0.125,
    ),
    "beta with a long tail": (lambda rng, size: -rng.beta(0.1, 1.9, size), -0.05),
    "uniform": (lambda rng, size: rng.uniform(-1, 1, size), 0.0),
}


@pytest.mark.parametrize("n", [30, 100, 300])
@pytest.mark.parametrize("name", BOUNDED)
def test_the_guarded_bound_misses_at_most_alpha_on_answers(name: str, n: int) -> None:
    """True rate at the limit: a t bound passed 96 of 400 such policies at n 100."""
    shape, truth = BOUNDED[name]
    assert _drawn_misses(shape, truth, n, 20_000 if n < 300 else 4_000, worst=-1.0) <= 0.05


UNBOUNDED: dict[str, tuple[Shape, float]] = {
    "2 % hit": (_hits(0.02), -0.02),
    "2 % hit, little noise": (_hits(0.02, 0.02), -0.02),
    "2 % hit, much noise": (_hits(0.02, 0.2), -0.02),
    "5 % hit": (_hits(0.05, 0.02), -0.05),
    "30 % hit": (_hits(0.3, 0.02), -0.3),
    "normal": (lambda rng, size: rng.normal(size=size), 0.0),
    "exponential": (lambda rng, size: -rng.exponential(size=size), -1.0),
    "log-normal": (lambda rng, size: -np.exp(rng.normal(size=size)), -math.exp(0.5)),
    "Student's t, 3": (lambda rng, size: rng.standard_t(3, size), 0.0),
}


@pytest.mark.parametrize("name", UNBOUNDED)
@pytest.mark.parametrize("n", [UNBOUNDED_N, 400])
def test_without_a_range_the_worst_seen_guards_from_150_items_on(name: str, n: int) -> None:
    shape, truth = UNBOUNDED[name]
    assert _drawn_misses(shape, truth, n, 8_000, worst=None) <= 0.05


def test_the_worst_seen_guards_either_side() -> None:
    values = _hits(0.05, 0.1)(np.random.default_rng(2), (1, 200))[0]
    low, high, method = difference_bounds(values.tolist(), "unbounded", 0.05, ANY)
    assert low == pytest.approx(float(guarded_bound(values, values.min(), 0.05)))
    assert high == pytest.approx(-float(guarded_bound(-values, -values.max(), 0.05)))
    assert method == "t guarded at the worst seen"
    ends = ((-math.inf, 1.0), (0.0, math.inf), (0.0, 1.0))
    named = [mean_bounds([0.2, 0.4] * 100, "share", 0.05, span).method for span in ends]
    assert named == ["t guarded at the worst seen"] * 2 + ["guarded t"]


def test_what_no_bound_covers_is_not_claimed() -> None:
    """Losses on fewer items than 2 %, or of very unequal size: the statement leaves them out because it must."""
    assert _drawn_misses(_hits(0.01), -0.01, UNBOUNDED_N, 4_000, worst=None) > 0.1
    assert bounds.UNSEEN_SHARE == 0.02 and (1 - bounds.UNSEEN_SHARE) ** UNBOUNDED_N < 0.05


def test_a_t_bound_would_miss_far_more() -> None:
    """Without this the tests above could not fail: worsening at the margin, 2 % of texts hit, n 30."""
    values = _hits(0.02, 0.001)(np.random.default_rng(1), (4000, 30))
    reach = scipy_stats.t.ppf(0.95, 29) * values.std(-1, ddof=1) / math.sqrt(30)
    assert (values.mean(-1) - reach > -0.02).mean() > 0.5
    assert difference_bounds(values[0].tolist(), "unbounded", 0.05, ANY)[:2] == (None, None)


def test_the_guarded_bound_nears_the_t_bound() -> None:
    deltas = np.random.default_rng(0).choice([-0.5, -0.25, 0.0, 0.25, 0.5], 2000)
    plain = deltas.mean() - scipy_stats.t.ppf(0.95, 1999) * deltas.std(ddof=1) / math.sqrt(2000)
    assert plain - 0.004 < float(guarded_bound(deltas, -1.0)) < plain


def test_values_that_are_all_the_same_bound_what_was_not_seen() -> None:
    """The exact bound: a share q of other values, all at the worst, is not seen with chance (1 - q)^n."""
    assert float(guarded_bound(np.zeros(59), -1.0)) == pytest.approx(0.05 ** (1 / 59) - 1)
    assert float(guarded_bound(np.full(59, 0.5), -1.0)) == pytest.approx(0.5 - 1.5 * (1 - 0.05 ** (1 / 59)))
    assert float(guarded_bound(np.array([0.7]), 0.0)) == 0.0


@pytest.mark.parametrize(("hits", "n"), [(0, 30), (1, 100), (7, 60), (60, 60)])
def test_limit_bounds_are_clopper_and_pearsons(hits: int, n: int) -> None:
    """Each bound leaves exactly alpha beyond it, by the binomial distribution itself."""
    low, high, method = mean_bounds([float(i < hits) for i in range(n)], "binary", 0.05)
    assert method == "Clopper-Pearson" and low is not None and high is not None
    assert high == 1.0 if hits == n else scipy_stats.binom.cdf(hits, n, high) == pytest.approx(0.05)
    assert low == 0.0 if hits == 0 else scipy_stats.binom.sf(hits - 1, n, low) == pytest.approx(0.05)


def test_a_known_end_bounds_its_own_side() -> None:
    """KL is never below 0: that it is above a limit can be proved by few items, that it is below by none."""
    low, high, _ = mean_bounds([5.0, 6.0, 7.0, 5.5] * 10, "unbounded", 0.05, (0.0, math.inf))
    assert high is None and low is not None and 5.0 < low < 5.88
    assert mean_bounds([], "unbounded", 0.05)[:2] == (None, None)


def test_a_loss_that_every_item_shares_is_significant() -> None:
    """Unless a fifth of all items gains 1, which 20 items would not show with chance .8^20, on each of two sides."""
    assert difference_p([-0.25] * 20, "share", (-1.0, 1.0)) == pytest.approx(2 * 0.8**20, rel=2e-3)
    assert difference_p([0.0] * 20, "share", (-1.0, 1.0)) == 1.0
    assert difference_p([-0.01] * 100 + [-0.02] * 20, "unbounded", ANY) is None


def test_rare_gains_do_not_make_small_losses_significant() -> None:
    """Every item loses .01 but the 1 % that gain 1: nothing is lost, and a t test calls 37 % of such draws a loss."""
    rng, claimed, by_t = np.random.default_rng(2), 0, 0
    for _ in range(60):
        values = np.where(rng.random(100) < 0.01, 1.0, -1 / 99) + 1e-4 * rng.normal(size=100)
        p = difference_p(values.tolist(), "share", (-1.0, 1.0))
        claimed += p is not None and p <= 0.05 and values.mean() < 0
        by_t += scipy_stats.ttest_1samp(values, 0).pvalue <= 0.05 and values.mean() < 0
    assert claimed <= 5 < 15 < by_t


# --- power -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lost", "won", "n", "margin"), [(8, 8, 100, 0.12), (3, 2, 80, 0.08), (1, 0, 60, 0.05)])
def test_the_items_promised_decide_with_the_power_promised(lost: int, won: int, n: int, margin: float) -> None:
    """Nothing changed and items differ as often as those seen: the real bound passes in four of five draws or more."""
    items = needed_n([-1.0] * lost + [1.0] * won + [0.0] * (n - lost - won), "binary", margin, 0.05, -1.0)
    assert items is not None
    each = (lost + won) / n / 2
    drawn = np.random.default_rng(4).multinomial(items, [each, each, 1 - 2 * each], 600)
    passed = np.mean([bounds.noninferiority_bound(int(b), int(c), items) > -margin for b, c, _ in drawn])
    assert 0.76 <= passed < 0.9


@pytest.mark.parametrize("span", [-1.0, -math.inf])
def test_the_items_promised_decide_for_shares_and_for_numbers(span: float) -> None:
    seen = np.random.default_rng(5).choice([-0.5, -0.25, 0.0, 0.25, 0.5], 100, p=[0.05, 0.1, 0.7, 0.1, 0.05])
    margin = 0.05 if span == -1.0 else 0.03
    items = needed_n(seen.tolist(), "share", margin, 0.05, span)
    assert items is not None
    drawn = np.random.default_rng(6).choice(seen - seen.mean(), (3000, items))
    low = guarded_bound(drawn, span if span == -1.0 else drawn.min(-1), 0.05)
    assert 0.77 <= (low > -margin).mean() < 0.87


@pytest.mark.parametrize(("n", "delta"), [(60, -0.08), (50, 0.02)])
def test_power_counts_as_proof_what_the_bound_proves(n: int, delta: float) -> None:
    least = _proving(n, delta, 0.05)
    for lost in range(10):
        near = range(max(0, least[lost] - 2), least[lost] + 3)
        proved = [won for won in near if bounds.noninferiority_bound(lost, won, n) > delta]
        assert proved == list(range(least[lost], least[lost] + 3))


def test_more_than_can_be_counted_is_said_so() -> None:
    assert needed_n([-1.0, 1.0] * 50, "binary", 0.001, 0.05, -1.0) is None
    assert needed_n([0.0] * 50, "share", 0.05, 0.05, -1.0) == unseen_n(0.05) == 59


def test_what_is_detectable_lies_beyond_the_margin_and_has_its_power() -> None:
    seen = [-1.0] * 4 + [1.0] * 4 + [0.0] * 92
    worse = detectable(seen, "binary", 0.05, 0.05, 1.0)
    assert worse is not None and worse > 0.05
    lost = max((0.08 + worse) / 2, worse)
    drawn = np.random.default_rng(7).multinomial(100, [lost, lost - worse, 1 - 2 * lost + worse], 1500)
    proved = np.mean([-bounds.noninferiority_bound(int(c), int(b), 100) < -0.05 for b, c, _ in drawn])
    assert proved == pytest.approx(0.8, abs=0.04)


def test_what_is_detectable_in_numbers_has_its_power() -> None:
    seen = np.random.default_rng(8).normal(0, 1, 160)
    worse = detectable(seen.tolist(), "unbounded", 0.2, 0.05, math.inf)
    assert worse is not None and worse > 0.2
    drawn = np.random.default_rng(9).choice(seen - seen.mean(), (3000, 160)) - worse
    highest = -guarded_bound(-drawn, -drawn.max(-1), 0.05)
    assert (highest < -0.2).mean() == pytest.approx(0.8, abs=0.04)


def test_the_guard_is_what_agresti_and_coull_add() -> None:
    """At an error of 5 %: 1.645^2/2 + 1/4 = 1.603 more items at the worst value, then Student's t."""
    seen = np.array([0.0] * 10 + [1.0] * 30)
    total, weight = 40 + 1.6028, 1.6028
    mean = 30 / total
    spread = 10 * mean**2 + 30 * (1 - mean) ** 2 + weight * mean**2
    assert float(guarded_bound(seen, 0.0)) == pytest.approx(
        mean - 1.684875 * math.sqrt(spread / (total - 1) / total), abs=1e-4
    )
