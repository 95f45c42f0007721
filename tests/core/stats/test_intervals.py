"""Intervals of means against published values, other libraries and draws whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fixtures.shipped_suites import DECLARATIONS
from scipy import stats as scipy_stats
from statsmodels.stats.proportion import proportion_confint

from align.core.records import ItemResult
from align.core.stats.estimates import (
    Estimate,
    format_estimate,
    format_number,
    mean_interval,
    proportion,
    ratio_interval,
    wilson,
)
from align.evals.results import summarise


def ends(estimate: Estimate) -> tuple[float | None, float | None, float | None]:
    return estimate.value, estimate.low, estimate.high


def test_mean_counts_what_failed_and_never_invents_a_zero() -> None:
    empty = mean_interval([], "binary")
    assert (empty.value, empty.low, empty.n, empty.n_scored, empty.n_failed) == (None, None, 0, 0, 0)
    assert mean_interval([None, None], "unbounded").value is None
    found = mean_interval([1.0, None, 0.0, 1.0], "binary")
    assert (found.value, found.n, found.n_scored, found.n_failed) == (pytest.approx(2 / 3), 4, 3, 1)


@pytest.mark.parametrize(("right", "n"), [(0, 20), (7, 20), (18, 20), (20, 20)])
def test_single_zeros_and_ones_get_wilson(right: int, n: int) -> None:
    values = [1.0] * right + [0.0] * (n - right)
    expected = proportion_confint(right, n, method="wilson")
    found, share = mean_interval(values, "binary"), mean_interval(values, "share")
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)
    assert (share.low, share.high) == pytest.approx(expected, abs=0.03)


def test_eighteen_of_twenty_is_what_wilson_says() -> None:
    found = mean_interval([1.0] * 18 + [0.0] * 2, "binary")
    assert (found.low, found.high) == pytest.approx((0.699, 0.972), abs=5e-4)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_seen_is_a_bound_and_zero_is_zero(share: float) -> None:
    for kind in ("binary", "share"):
        found = mean_interval([share] * 20, kind)
        assert found.low is not None and found.high is not None and found.high - found.low > 0.15
        assert share in (found.low, found.high)  # exactly, so that it prints as 0 or 1
    accuracy = mean_interval([share] * 40, "binary", [str(i // 2) for i in range(40)])
    assert accuracy.half_width == pytest.approx(0.161 / 2, abs=5e-4)  # 20 prompts, not 40 pairs


def test_numbers_are_what_their_metric_says_whatever_their_values() -> None:
    """21 exact KLs of 0 are no proportion: there is no interval, in an evaluation's summary either."""
    assert ends(mean_interval([0.0] * 21, "unbounded")) == (0.0, None, None)
    rows = [ItemResult(suite="preference", metric="kl", item_id=str(i), score=0.0, judge="exact") for i in range(21)]
    kl = summarise(rows, DECLARATIONS)["kl"]
    assert (kl["value"], kl["low"], kl["high"]) == (0.0, None, None)
    with pytest.raises(ValueError, match="lies from 0 to 1"):
        mean_interval([0.0, 1.5], "share")


def test_clustered_interval_is_miller_s_with_the_finite_cluster_factor() -> None:
    values, clusters = [0.5, 1.5, 4.0, 2.0, 3.0, 3.5], ["a", "a", "b", "c", "c", "c"]
    mean = sum(values) / 6
    sums: dict[str, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - mean
    error = math.sqrt(sum(s * s for s in sums.values()) * 3 / 2) / 6
    found = mean_interval(values, "unbounded", clusters)
    assert found.high == pytest.approx(mean + scipy_stats.t.ppf(0.975, 2) * error)


def test_distinct_clusters_give_the_textbook_t_interval() -> None:
    values = [0.3, 1.9, 2.2, 0.7, 1.1]
    found = mean_interval(values, "unbounded")
    expected = scipy_stats.t.interval(0.95, 4, np.mean(values), scipy_stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)


def test_repeated_samples_add_no_false_certainty() -> None:
    """Four identical samples of an item are worth one; nothing seen in 400 answers of 100 items is 0 of 100."""
    once = mean_interval([1.0, 0.0] * 10, "binary")
    four = mean_interval([1.0, 0.0] * 40, "binary", [str(i % 20) for i in range(80)])
    assert (four.low, four.high) == pytest.approx((once.low, once.high), abs=0.02)
    nothing = mean_interval([0.0] * 400, "binary", [str(i // 4) for i in range(400)])
    assert nothing.high == pytest.approx(wilson(0.0, 100)[1])


def test_the_ends_are_exact_for_every_number_of_items() -> None:
    for n in range(1, 200):
        assert wilson(0.0, n)[0] == 0.0 and wilson(1.0, n)[1] == 1.0


def test_effective_size_is_korn_and_graubards() -> None:
    """Share .5 from 6 clusters of 4: p (1 - p) / error^2, times (z / t)^2 with 5 degrees of freedom."""
    values = [
        1.0,
        1.0,
        1.0,
        0.0,
        1.0,
        1.0,
        1.0,
        1.0,
        0.0,
        0.0,
        0.0,
        1.0,
        0.0,
        0.0,
        0.0,
        0.0,
        1.0,
        1.0,
        0.0,
        0.0,
        1.0,
        0.0,
        1.0,
        0.0,
    ]
    clusters = [str(i // 4) for i in range(24)]
    sums = np.array([sum(values[i : i + 4]) - 2 for i in range(0, 24, 4)])
    error = math.sqrt((sums**2).sum() * 6 / 5) / 24
    effective = 0.25 / error**2 * (scipy_stats.norm.ppf(0.975) / scipy_stats.t.ppf(0.975, 5)) ** 2
    assert 6 < effective < 24
    found = mean_interval(values, "binary", clusters)
    assert (found.low, found.high) == pytest.approx(wilson(0.5, effective))


def test_zeros_and_ones_are_never_worth_more_than_their_number() -> None:
    """One right and one wrong in each of 20 clusters but one: clusters that hardly differ make 40 items no 10,000."""
    values = [1.0, 0.0] * 19 + [1.0, 1.0]
    found = mean_interval(values, "binary", [str(i // 2) for i in range(40)])
    assert (found.low, found.high) == pytest.approx(wilson(21 / 40, 40))


def test_one_large_cluster_is_not_many() -> None:
    """Kish's number: 80 pairs of one prompt and one of each of 20 others are worth about one and a half prompts."""
    found = mean_interval([1.0] * 100, "binary", ["big"] * 80 + [str(i) for i in range(20)])
    assert found.low == pytest.approx(wilson(1.0, 100**2 / (80**2 + 20))[0])


@pytest.mark.parametrize("share", [0.02, 0.3, 0.98])
@pytest.mark.parametrize("is_alike", [True, False])
def test_clustered_shares_are_covered(share: float, is_alike: bool) -> None:
    """40 prompts of 1 to 4 pairs, alike within a prompt or not: the 95 % interval holds the truth (a t's: 56 %)."""
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(400):
        sizes = rng.integers(1, 5, 40)
        clusters = np.repeat(np.arange(40), sizes)
        one_each = (rng.random(40) < share).astype(float)
        values = one_each[clusters] if is_alike else (rng.random(len(clusters)) < share).astype(float)
        found = mean_interval(values.tolist(), "binary", [str(c) for c in clusters])
        assert found.low is not None and found.high is not None
        held += found.low <= share <= found.high
    assert held / 400 >= 0.92


def test_numbers_that_do_not_vary_have_no_interval() -> None:
    assert ends(mean_interval([2.5, 2.5, 2.5], "unbounded")) == (2.5, None, None)


def test_a_ratio_of_the_same_outcomes_has_no_interval() -> None:
    right = [1.0, 0.0, 1.0, 1.0]
    assert ends(ratio_interval(right, right, list("abcd"))) == (1.0, None, None)


def test_a_ratio_is_the_delta_method_s() -> None:
    """Clusters a (1 of 1 against 1 of 1), b (0 against 1), c (1 against 1): ratio 2/3, deviations 1/3, -2/3, 1/3."""
    found = ratio_interval([1.0, 0.0, 1.0], [1.0, 1.0, 1.0], list("abc"))
    half = scipy_stats.t.ppf(0.975, 2) * math.sqrt(3 / 2 * (1 / 9 + 4 / 9 + 1 / 9)) / 3
    assert ends(found) == pytest.approx((2 / 3, 2 / 3 - half, 2 / 3 + half))
    assert (found.n, found.clusters) == (3, 3)
    assert ends(ratio_interval([1.0], [0.0], ["a"])) == (None, None, None)


@pytest.mark.parametrize(("is_exact", "method"), [(False, "wilson"), (True, "beta")])
def test_a_proportion_is_the_textbook_s(is_exact: bool, method: str) -> None:
    found = proportion(7, 11, 13, is_exact=is_exact)
    assert ends(found) == pytest.approx((7 / 11, *proportion_confint(7, 11, method=method)))
    assert (found.n, found.n_scored, found.n_failed) == (13, 11, 2)
    assert ends(proportion(0, 0, 4)) == (None, None, None)


def test_records_of_every_version_are_read_as_one_schema() -> None:
    """Evaluations and reward models wrote ``mean``, agreement wrote both ends in one ``interval``."""
    evaluation = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 9, "n_scored": 8, "n_failed": 1, "level": 0.95,
                  "n_clusters": 4, "judges": ["rule"]}  # fmt: skip
    read = Estimate.model_validate(evaluation)
    assert ends(read) == (0.5, 0.4, 0.6)
    assert (read.n, read.n_scored, read.n_failed, read.clusters) == (9, 8, 1, 4)
    reward = Estimate.model_validate({"mean": 0.7, "low": None, "high": None, "n": 40, "clusters": 20})
    assert ends(reward) == (0.7, None, None)
    assert (reward.n, reward.n_scored, reward.n_failed, reward.clusters) == (40, 40, 0, 20)
    agreement = {"value": 0.3, "interval": [0.1, 0.5], "n": 6, "n_scored": 6, "n_failed": 0, "votes": 12}
    assert ends(Estimate.model_validate(agreement)) == (0.3, 0.1, 0.5)
    nothing = Estimate.model_validate({"value": None, "interval": None, "n": 2, "n_scored": 0, "n_failed": 2})
    assert ends(nothing) == (None, None, None) and nothing.n_failed == 2
    new = mean_interval([1.0, 0.0, None], "binary")
    assert Estimate.model_validate(new.model_dump()) == new


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (0.5123, 0.4012, 0.6234, "0.51 [0.40, 0.62]"),
        (0.0123, 0.0101, 0.0151, "0.0123 [0.0101, 0.0151]"),
        (8.34, 6.97, 9.71, "8.3 [7.0, 9.7]"),
        (-0.0004, -0.03, 0.03, "0.000 [-0.030, 0.030]"),
        (12345.6, 12000.0, 12700.0, "12,346 [12,000, 12,700]"),
        (1.0, 1.0, 1.0, "1.00 [1.00, 1.00]"),
        (0.25, None, None, "0.250 (no interval)"),
    ],
)
def test_an_estimate_shows_two_digits_of_its_half_width(
    value: float, low: float | None, high: float | None, shown: str
) -> None:
    assert str(Estimate(value=value, low=low, high=high, n=9, n_scored=9, n_failed=0)) == shown


def test_an_estimate_without_a_value_says_why() -> None:
    assert str(Estimate(value=None, n=10, n_scored=0, n_failed=10)) == "none of 10 scored"
    assert str(Estimate(value=None, n=10, n_scored=10, n_failed=0)) == "not estimable"
    gain = Estimate(value=0.725, low=0.587, high=0.864, n=9, n_scored=9, n_failed=0)
    assert format_estimate(gain, is_signed=True) == "+0.72 [+0.59, +0.86]"
    assert format_number(None) == "–"
