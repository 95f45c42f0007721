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
    clustered_accuracy,
    clustered_mean,
    clustered_ratio,
    mean_interval,
    wilson,
)
from align.evals.results import summarise


def test_mean_counts_what_failed_and_never_invents_a_zero() -> None:
    assert mean_interval([], "binary") == Estimate(None, None, None, 0, 0, 0)
    assert mean_interval([None, None], "unbounded").mean is None
    found = mean_interval([1.0, None, 0.0, 1.0], "binary")
    assert (found.mean, found.n, found.n_scored, found.n_failed) == (pytest.approx(2 / 3), 4, 3, 1)


@pytest.mark.parametrize(("right", "n"), [(0, 20), (7, 20), (18, 20), (20, 20)])
def test_single_zeros_and_ones_get_wilson(right: int, n: int) -> None:
    values = [1.0] * right + [0.0] * (n - right)
    expected = proportion_confint(right, n, method="wilson")
    found, share = mean_interval(values, "binary"), mean_interval(values, "share")
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)
    assert (share.low, share.high) == pytest.approx(expected, abs=0.03)


def test_eighteen_of_twenty_is_what_wilson_says() -> None:
    found = clustered_accuracy([1.0] * 18 + [0.0] * 2, [str(i) for i in range(20)])
    assert (found["low"], found["high"]) == pytest.approx((0.699, 0.972), abs=5e-4)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_seen_is_a_bound_and_zero_is_zero(share: float) -> None:
    for kind in ("binary", "share"):
        found = mean_interval([share] * 20, kind)
        assert found.low is not None and found.high is not None and found.high - found.low > 0.15
        assert share in (found.low, found.high)  # exactly, so that it prints as 0 or 1
    accuracy = clustered_accuracy([share] * 40, [str(i // 2) for i in range(40)])
    assert accuracy["high"] - accuracy["low"] == pytest.approx(0.161, abs=1e-3)  # 20 prompts, not 40 pairs


def test_numbers_are_what_their_metric_says_whatever_their_values() -> None:
    """21 exact KLs of 0 are no proportion: there is no interval, in an evaluation's summary either."""
    assert mean_interval([0.0] * 21, "unbounded")[:3] == (0.0, None, None)
    rows = [ItemResult(suite="preference", metric="kl", item_id=str(i), score=0.0, judge="exact") for i in range(21)]
    kl = summarise(rows, DECLARATIONS)["kl"]
    assert (kl["mean"], kl["low"], kl["high"]) == (0.0, None, None)
    loss = clustered_mean([0.0] * 21, [str(i) for i in range(21)])
    assert (loss["mean"], loss["low"]) == (0.0, None)
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
        found = clustered_accuracy(values.tolist(), [str(c) for c in clusters])
        held += found["low"] <= share <= found["high"]
    assert held / 400 >= 0.92


def test_numbers_that_do_not_vary_have_no_interval() -> None:
    assert mean_interval([2.5, 2.5, 2.5], "unbounded")[:3] == (2.5, None, None)


def test_a_ratio_of_the_same_outcomes_has_no_interval() -> None:
    right = [1.0, 0.0, 1.0, 1.0]
    assert clustered_ratio(right, right, list("abcd")) == {"mean": 1.0, "low": None, "high": None, "n": 4}
