"""Statistics of evaluations against published numbers, other libraries and exact enumeration."""

from __future__ import annotations

import math
from itertools import product
from typing import get_args

import numpy as np
import pytest
import scipy.stats
from scipy import stats as scipy_stats

from align.evals import stats


def test_gsm8k_golden() -> None:
    """Two models on GSM8K (n 1319, 842 against 1130 right): published b = 95, c = 383."""
    assert stats.mcnemar(95, 383) == pytest.approx(5.116157326697284e-42, rel=1e-9)
    new, old = _paired(lost=383, won=95, both=747, n=1319)
    found = stats.paired_difference(new, old)
    assert found.mean == pytest.approx(-0.2183472, abs=1e-7)
    assert found.sd is not None and found.sd / math.sqrt(1319) == pytest.approx(0.0154527, abs=1e-5)
    exact = stats.paired_difference(new, old, "binary")
    assert found.low == pytest.approx(exact.low, abs=2e-3) and found.high == pytest.approx(exact.high, abs=2e-3)


def test_corrections_golden() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]) == []


def test_mcnemar_without_discordant_pairs_is_one() -> None:
    assert stats.mcnemar(0, 0) == 1.0


# --- the non-inferiority bound -----------------------------------------------------------------------------------


def _coverage(n: int, alpha: float, move: float = 0.0) -> float:
    """Smallest chance, over true probabilities, that the bound lies at or below the truth: all cells enumerated."""
    cells = [(b, c) for b, c in product(range(n + 1), repeat=2) if b + c <= n]
    bounds = np.array([stats.noninferiority_bound(b, c, n, alpha) + move for b, c in cells])
    counts = np.array([(b, c, n - b - c) for b, c in cells])
    grid = np.linspace(0.0, 1.0, 26)
    covered = []
    for lost, won in product(grid, repeat=2):
        if lost > 0.0 and lost + won < 1.0:
            chance = scipy_stats.multinomial.pmf(counts, n, [lost, won, 1 - lost - won])
            covered.append(chance[bounds <= won - lost + 1e-9].sum())
    return float(min(covered))


@pytest.mark.parametrize(("n", "alpha"), [(6, 0.05), (12, 0.05), (8, 0.1)])
def test_the_bound_covers_at_every_true_probability(n: int, alpha: float) -> None:
    assert _coverage(n, alpha) >= 1 - alpha - 1e-6


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
        assert stats.noninferiority_bound(0, 0, n) == pytest.approx(0.05 ** (1 / n) - 1, abs=3e-4)
    assert stats.unseen_n(0.05) == 59


def test_the_bound_is_between_the_always_valid_and_the_asymptotic_one() -> None:
    for lost, won, n in [(8, 6, 200), (30, 10, 300), (2, 9, 80)]:
        bound = stats.noninferiority_bound(lost, won, n)
        bonferroni = scipy_stats.beta.ppf(0.025, won, n - won + 1) - scipy_stats.beta.ppf(0.975, lost + 1, n - lost)
        z = stats.tango_z(np.array(lost), np.array(won), n, bound)
        assert bonferroni < bound < (won - lost) / n
        assert 1.5 < z < 2.2  # near the normal quantile 1.645, on the safe side


def test_beyond_enumeration_the_bound_stays_valid_and_close() -> None:
    bound = stats.noninferiority_bound(100, 100, 5000)
    assert -0.02 < bound < -0.005


@pytest.mark.parametrize(("lost", "won", "n", "delta"), [(1, 0, 44, -0.1), (8, 6, 200, -0.05), (3, 9, 50, 0.02)])
def test_the_score_uses_the_restricted_maximum_likelihood(lost: int, won: int, n: int, delta: float) -> None:
    q = _restricted_maximum(lost, won, n, delta)
    z = (won - lost - n * delta) / math.sqrt(n * (2 * q + delta - delta**2))
    assert float(stats.tango_z(np.array(lost), np.array(won), n, delta)) == pytest.approx(z, rel=1e-3)


def _restricted_maximum(lost: int, won: int, n: int, delta: float) -> float:
    """P(lost) that maximises the likelihood under P(won) = P(lost) + delta, by brute force."""
    q = np.linspace(max(0.0, -delta), (1 - delta) / 2, 400_001)[1:-1]
    with np.errstate(divide="ignore"):
        value = lost * np.log(q) + won * np.log(q + delta) + (n - lost - won) * np.log(1 - 2 * q - delta)
    return float(q[value.argmax()])


@pytest.mark.parametrize("n", [10, 30, 100, 300])
def test_the_share_bound_misses_at_most_alpha_when_losses_are_total_and_rare(n: int) -> None:
    losses = np.arange(n + 1)
    bounds = np.array([stats.share_bound(np.array([-1.0] * k + [0.0] * (n - k))) for k in losses])
    for truth in np.linspace(0.002, 0.9, 300):
        missed = scipy_stats.binom.pmf(losses, n, truth)[bounds > -truth + 1e-12].sum()
        assert missed <= 0.05


def test_share_bound_nears_the_t_bound() -> None:
    deltas = np.random.default_rng(0).choice([-0.5, -0.25, 0.0, 0.25, 0.5], 2000)
    plain = deltas.mean() - scipy_stats.t.ppf(0.95, 1999) * deltas.std(ddof=1) / math.sqrt(2000)
    assert plain - 0.004 < stats.share_bound(deltas) < plain


# --- differences and power ---------------------------------------------------------------------------------------


def test_pairs_go_by_item_and_unscored_ones_are_counted() -> None:
    found = stats.paired_difference({"a": 2.0, "b": 3.0, "c": None, "d": 9.0}, {"b": 1.0, "a": 1.5, "c": 4.0})
    assert found.mean == pytest.approx((0.5 + 2.0) / 2)
    assert (found.n, found.n_scored, found.n_failed) == (4, 2, 2)


def test_unbounded_scores_without_variance_have_no_interval() -> None:
    same = {str(i): 1.0 for i in range(50)}
    assert stats.paired_difference(same, same).low is None
    share = stats.paired_difference(same, same, "share")
    assert share.low is not None and share.low < -0.05 < 0.05 < (share.high or 0)


def test_swapping_sides_mirrors_the_interval() -> None:
    new, old = _paired(lost=4, won=9, both=20, n=60)
    kinds: tuple[stats.Kind, ...] = get_args(stats.Kind)
    for kind in kinds:
        one, other = stats.paired_difference(new, old, kind), stats.paired_difference(old, new, kind)
        assert (one.low, one.high) == pytest.approx((-(other.high or 0), -(other.low or 0)))


def test_needed_n_has_the_power_it_promises() -> None:
    n = stats.needed_n(sd=0.3, margin=0.05)
    rng = np.random.default_rng(1)
    means = rng.normal(0, 0.3 / math.sqrt(n), 4000)
    assert (means - 1.645 * 0.3 / math.sqrt(n) > -0.05).mean() == pytest.approx(0.8, abs=0.03)
    assert stats.detectable(0.3, n) <= 0.05


def test_directions() -> None:
    assert stats.higher_is_better("accuracy/fact") and not stats.higher_is_better("harmful_compliance")
    with pytest.raises(KeyError):
        stats.higher_is_better("acuracy")


# --- length control ----------------------------------------------------------------------------------------------


def test_length_control_recovers_the_rate_at_equal_length() -> None:
    rng = np.random.default_rng(2)
    longer = rng.normal(4.0, 5.0, 3000)
    logit = 0.4 + 1.5 * np.tanh(longer / longer.std())
    wins = (rng.random(3000) < 1 / (1 + np.exp(-logit))).astype(float)
    found = stats.length_controlled_win_rate(wins, longer, [str(i) for i in range(3000)])
    assert found.mean == pytest.approx(1 / (1 + math.exp(-0.4)), abs=0.03) and found.mean < wins.mean() - 0.05
    assert found.low is not None and found.high is not None and found.low < found.mean < found.high


@pytest.mark.parametrize(
    ("wins", "lengths"),
    [
        ([1.0] * 40, list(range(40))),  # one outcome
        ([1.0] * 20 + [0.0] * 20, [5.0] * 20 + [-5.0] * 20),  # length separates the outcomes
        ([1.0, 0.0] * 20, [3.0] * 40),  # one length
        ([1.0, 0.0, 0.5], [1.0, 2.0, -1.0]),  # too few
        ([], []),
    ],
)
def test_length_control_says_when_it_cannot(wins: list[float], lengths: list[float]) -> None:
    found = stats.length_controlled_win_rate(wins, lengths, [str(i) for i in range(len(wins))])
    assert found.mean is None and found.low is None and found.n == len(wins)


def _paired(lost: int, won: int, both: int, n: int) -> tuple[dict[str, float | None], dict[str, float | None]]:
    rows = [(0.0, 1.0)] * lost + [(1.0, 0.0)] * won + [(1.0, 1.0)] * both + [(0.0, 0.0)] * (n - lost - won - both)
    return {str(i): new for i, (new, _) in enumerate(rows)}, {str(i): old for i, (_, old) in enumerate(rows)}


@pytest.mark.parametrize(("hits", "n"), [(0, 30), (1, 100), (7, 60), (60, 60)])
def test_limit_bounds_are_clopper_and_pearsons(hits: int, n: int) -> None:
    """Each bound leaves exactly alpha beyond it, by the binomial distribution itself."""
    items: dict[str, float | None] = {str(i): float(i < hits) for i in range(n)}
    low, high, method = stats.limit_bounds(items, 0.05)
    assert method == "Clopper-Pearson" and low is not None and high is not None
    assert high == 1.0 if hits == n else scipy.stats.binom.cdf(hits, n, high) == pytest.approx(0.05)
    assert low == 0.0 if hits == 0 else scipy.stats.binom.sf(hits - 1, n, low) == pytest.approx(0.05)


def test_limit_bounds_of_other_scores_are_students() -> None:
    low, high, method = stats.limit_bounds({"a": 0.25, "b": 0.5, "c": 0.75, "d": None}, 0.05)
    assert (low, high) == pytest.approx((0.5 - 2.92 * 0.25 / math.sqrt(3), 0.5 + 2.92 * 0.25 / math.sqrt(3)), abs=1e-3)
    assert method == "t over items"
    assert stats.limit_bounds({"a": 0.5, "b": 0.5}, 0.05)[:2] == (None, None)
    assert stats.limit_bounds({}, 0.05)[:2] == (None, None)


def test_a_loss_that_every_item_shares_is_significant() -> None:
    new: dict[str, float | None] = {str(i): 0.5 for i in range(20)}
    old: dict[str, float | None] = dict.fromkeys(new, 0.75)
    assert stats.paired_p(new, old, "share") == pytest.approx(2**-19)
    assert stats.paired_p(new, new, "share") == 1.0
