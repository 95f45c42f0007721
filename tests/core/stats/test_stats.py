"""Statistics of evaluations against published numbers, other libraries and exact enumeration."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from scipy.stats import t as student

from align.core.stats import differences


def test_gsm8k_golden() -> None:
    """Two models on GSM8K (n 1319, 842 against 1130 right): published b = 95, c = 383."""
    assert differences.mcnemar(95, 383) == pytest.approx(5.116157326697284e-42, rel=1e-9)
    new, old = _paired(lost=383, won=95, both=747, n=1319)
    found = differences.paired_difference(new, old)
    assert found.value == pytest.approx(-0.2183472, abs=1e-7)
    assert (found.half_width or 0) / student.ppf(0.975, 1318) == pytest.approx(0.0154527, abs=1e-5)
    exact = differences.paired_difference(new, old, "binary")
    assert found.low == pytest.approx(exact.low, abs=2e-3) and found.high == pytest.approx(exact.high, abs=2e-3)


def test_corrections_golden() -> None:
    assert differences.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert differences.holm([]) == []


def test_mcnemar_without_discordant_pairs_is_one() -> None:
    assert differences.mcnemar(0, 0) == 1.0


def test_the_p_value_of_zeros_and_ones_is_mcnemars() -> None:
    deltas = [1.0] * 5 + [-1.0] + [0.0] * 10
    assert differences.difference_p(deltas, "binary", (-1.0, 1.0)) == differences.mcnemar(1, 5) == 0.21875


# --- differences ---------------------------------------------------------------------------------------


def test_pairs_go_by_item_and_unscored_ones_are_counted() -> None:
    found = differences.paired_difference({"a": 2.0, "b": 3.0, "c": None, "d": 9.0}, {"b": 1.0, "a": 1.5, "c": 4.0})
    assert found.value == pytest.approx((0.5 + 2.0) / 2)
    assert (found.n, found.n_scored, found.n_failed) == (4, 2, 2)


def test_unbounded_scores_without_variance_have_no_interval() -> None:
    same = {str(i): 1.0 for i in range(50)}
    assert differences.paired_difference(same, same).low is None
    share = differences.paired_difference(same, same, "share")
    assert share.low is not None and share.low < -0.05 < 0.05 < (share.high or 0)


def test_items_of_one_document_count_once() -> None:
    """20 documents of 10 items each that agree: the interval is that of 20 items, whatever the kind."""
    generator = np.random.default_rng(3)
    documents = generator.choice([-0.5, 0.0, 0.5], 20)
    new: dict[str, float | None] = {f"{d}-{i}": float(documents[d]) for d in range(20) for i in range(10)}
    old: dict[str, float | None] = dict.fromkeys(new, 0.0)
    clusters = {item: item.partition("-")[0] for item in new}
    alone: dict[str, float | None] = {str(d): float(value) for d, value in enumerate(documents)}
    kinds: tuple[differences.Kind, ...] = ("share", "unbounded")
    for kind in kinds:
        found = differences.paired_difference(new, old, kind, clusters=clusters)
        expected = differences.paired_difference(alone, dict.fromkeys(alone, 0.0), kind)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
        assert found.n_scored == 200


def test_swapping_sides_mirrors_the_interval() -> None:
    new, old = _paired(lost=4, won=9, both=20, n=60)
    kinds: tuple[differences.Kind, ...] = get_args(differences.Kind)
    for kind in kinds:
        one, other = differences.paired_difference(new, old, kind), differences.paired_difference(old, new, kind)
        assert (one.low, one.high) == pytest.approx((-(other.high or 0), -(other.low or 0)))


def test_three_differences_by_hand() -> None:
    """1, 2 and 4: mean 7/3, sd 1.5275, and Student's t of two degrees of freedom, 4.3027, at 95 %."""
    found = differences.paired_difference({"a": 1.0, "b": 2.0, "c": 4.0}, dict.fromkeys("abc", 0.0))
    assert found.value == pytest.approx(7 / 3, abs=1e-6)
    half = 4.302653 * 1.527525 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((7 / 3 - half, 7 / 3 + half), abs=1e-5)
    two = differences.paired_difference({"a": 1.0, "b": 2.0}, dict.fromkeys("ab", 0.0))
    assert two.half_width == pytest.approx(12.706205 / 2, abs=1e-5)  # sd sqrt(1/2), over sqrt(2), times t of 1 degree
    assert differences.paired_difference({"a": 1.0}, {"a": 0.0}).half_width is None


def test_beyond_what_is_enumerated_the_method_says_so() -> None:
    def bounds(n: int) -> differences.Bounds:
        return differences.difference_bounds([-1.0] * 3 + [1.0] * 9 + [0.0] * (n - 12), "binary", 0.05, (-1.0, 1.0))

    assert bounds(100).method == "exact unconditional score"
    assert bounds(1501).method == "Clopper-Pearson, Bonferroni"


def test_numbers_without_a_range_that_never_vary_have_no_bound() -> None:
    assert differences.mean_bounds([1.0] * 200, "unbounded", 0.05, differences.ANY)[:2] == (None, None)
    varied = differences.mean_bounds([1.0, 2.0] * 100, "unbounded", 0.05, differences.ANY)
    assert varied.low is not None and varied.high is not None and varied.low < 1.5 < varied.high


@pytest.mark.parametrize("shift", [-0.2, 0.15])
def test_a_p_value_is_the_level_at_which_a_bound_reaches_zero(shift: float) -> None:
    deltas = (np.random.default_rng(4).uniform(-0.5, 0.5, 80) + shift).tolist()
    p = differences.difference_p(deltas, "share", (-1.0, 1.0))
    assert p is not None and 1e-4 < p < 0.1
    low, high, _ = differences.difference_bounds(deltas, "share", p / 2, (-1.0, 1.0))
    assert (low if shift > 0 else high) == pytest.approx(0, abs=1e-4)
    assert differences.difference_p([0.1, -0.1] * 20, "share", (-1.0, 1.0)) == 1.0


# --- length control ----------------------------------------------------------------------------------------------


def test_length_control_recovers_the_rate_at_equal_length() -> None:
    rng = np.random.default_rng(2)
    longer = rng.normal(4.0, 5.0, 3000)
    logit = 0.4 + 1.5 * np.tanh(longer / longer.std())
    wins = (rng.random(3000) < 1 / (1 + np.exp(-logit))).astype(float)
    found = differences.win_rate_at_equal_length(wins, longer, [str(i) for i in range(3000)])
    assert found.value == pytest.approx(1 / (1 + math.exp(-0.4)), abs=0.03) and found.value < wins.mean() - 0.05
    assert found.low is not None and found.high is not None and found.low < found.value < found.high


def test_length_control_has_the_interval_of_clustered_errors() -> None:
    """Against the sandwich by hand: inverse information, scores summed by prompt, C/(C-1) and (n-1)/(n-k)."""
    rng = np.random.default_rng(6)
    prompts, longer = np.repeat(np.arange(60), 4), rng.normal(1.0, 5.0, 240)
    design = np.column_stack([np.ones(240), np.tanh(longer / longer.std())])
    wins = (rng.random(240) < 1 / (1 + np.exp(-design @ [0.5, 0.8] - np.repeat(rng.normal(0, 1, 60), 4)))).astype(float)
    found = differences.win_rate_at_equal_length(wins.tolist(), longer.tolist(), [str(p) for p in prompts])
    beta = np.zeros(2)
    for _ in range(30):
        rate = 1 / (1 + np.exp(-design @ beta))
        bread = np.linalg.inv((design * (rate * (1 - rate))[:, None]).T @ design)
        beta += bread @ design.T @ (wins - rate)
    scores = np.stack([(design * (wins - rate)[:, None])[prompts == p].sum(0) for p in range(60)])
    covariance = bread @ scores.T @ scores @ bread * 60 / 59 * 239 / 238
    half = 1.959964 * math.sqrt(covariance[0, 0])
    expected = [1 / (1 + math.exp(-x)) for x in (beta[0], beta[0] - half, beta[0] + half)]
    assert [found.value, found.low, found.high] == pytest.approx(expected, abs=1e-4)


def test_ten_prompts_are_enough_for_length_control_and_nine_are_not() -> None:
    wins, lengths = [1.0, 0.0, 1.0, 1.0, 0.0] * 4, [3.0, 1.0, -2.0, 4.0, 2.0, 1.0, 0.0, -1.0, 5.0, -3.0] * 2
    ten = differences.win_rate_at_equal_length(wins, lengths, [str(i // 2) for i in range(20)])
    assert ten.value is not None and ten.clusters == 10
    assert differences.win_rate_at_equal_length(wins, lengths, [str(min(8, i // 2)) for i in range(20)]).value is None


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
    found = differences.win_rate_at_equal_length(wins, lengths, [str(i) for i in range(len(wins))])
    assert found.value is None and found.low is None and found.n == len(wins)


def _paired(lost: int, won: int, both: int, n: int) -> tuple[dict[str, float | None], dict[str, float | None]]:
    rows = [(0.0, 1.0)] * lost + [(1.0, 0.0)] * won + [(1.0, 1.0)] * both + [(0.0, 0.0)] * (n - lost - won - both)
    return {str(i): new for i, (new, _) in enumerate(rows)}, {str(i): old for i, (_, old) in enumerate(rows)}
