"""Agreement against an independent implementation, and counted by hand."""

from __future__ import annotations

import random

import krippendorff
import numpy as np
import pytest
from fixtures.judging import comparison

from align.core.records import Judgment
from align.core.stats.agreement import alpha, bootstrap, pairwise_agreement
from annotation.aggregation.votes import FIRST, SECOND, TIE, Vote, votes_of
from annotation.agreement.measures import against_others, ceiling, count, measure


def random_votes(seed: int, units: int, people: int) -> tuple[list[Vote], np.ndarray]:
    """Votes with holes, and the reliability matrix (people x units, NaN where there is none) they come from."""
    generator = random.Random(seed)
    table = np.full((people, units), np.nan)
    cast = []
    for unit in range(units):
        truth = generator.choice([FIRST, SECOND, TIE])
        for person in range(people):
            if generator.random() < 0.5:
                continue
            outcome = truth if generator.random() < 0.5 else generator.choice([FIRST, SECOND, TIE])
            table[person, unit] = outcome
            cast.append(Vote(f"c{unit}", 0, 1, f"p{person}", outcome, None, 0, None))
    return cast, table


@pytest.mark.parametrize("seed", range(5))
def test_alpha_equals_an_independent_implementation(seed: int) -> None:
    cast, table = random_votes(seed, units=40, people=4)
    counts, _ = count(cast)
    expected = krippendorff.alpha(reliability_data=table, level_of_measurement="nominal")
    assert alpha(counts)[0] == pytest.approx(expected, abs=1e-12)
    report = measure(cast, {}, seed)["alpha"]
    assert report["value"] == pytest.approx(expected, abs=1e-12)
    assert report["low"] < expected < report["high"]


def test_resampled_alpha_is_alpha_of_the_resample() -> None:
    counts, _ = count(random_votes(7, units=30, people=4)[0])
    weights = np.random.default_rng(0).integers(0, 3, (4, len(counts))).astype(float)
    for row, value in zip(weights, alpha(counts, weights), strict=True):
        assert value == pytest.approx(alpha(np.repeat(counts, row.astype(int), axis=0))[0], abs=1e-12)


def test_pairs_of_one_ranking_are_resampled_together() -> None:
    """Repeating every unit of a comparison adds no information, so the interval must not narrow."""
    counts, _ = count(random_votes(9, units=30, people=4)[0])
    counts = counts[counts.sum(1) >= 2]
    owners = np.arange(len(counts))
    measured = {"raw": pairwise_agreement}
    once = bootstrap(measured, counts, owners, {"raw": 1}, seed=0)["raw"]
    four = bootstrap(measured, np.repeat(counts, 4, axis=0), np.repeat(owners, 4), {"raw": 1}, seed=0)["raw"]
    assert (four.low, four.high) == pytest.approx((once.low, once.high))


def test_others_majority_leaves_out_the_own_vote() -> None:
    outcomes = [FIRST, FIRST, SECOND, FIRST, SECOND]
    cast = [Vote("abcde"[i > 2], 0, 1, f"p{i}", outcome, None, 0, None) for i, outcome in enumerate(outcomes)]
    counts, unit = count(cast)
    agrees, decided, _ = against_others(counts, unit, np.array(outcomes))
    assert decided.tolist() == [False, False, True, True, True]  # one FIRST and one SECOND are left to p0 and p1
    assert agrees[decided].tolist() == [False, False, False]


def test_ceiling_counts_only_votes_that_choose_against_others_that_choose() -> None:
    table = {
        "a": [FIRST, FIRST, FIRST],
        "b": [FIRST, FIRST, SECOND, SECOND, FIRST],
        "c": [TIE, TIE, FIRST],
        "d": [FIRST],
    }
    cast = [Vote(key, 0, 1, f"p{i}", o, None, 0, None) for key, row in table.items() for i, o in enumerate(row)]
    share = ceiling(cast)
    # a: 3 of 3; b: each FIRST faces 2:2 and is undecided, each SECOND faces 3:1 against it; c and d: none
    assert (share["value"], share["n_scored"], share["n"]) == (3 / 5, 5, 12)


def test_nothing_to_compute_is_none_with_counts() -> None:
    same = [Vote("c", 0, 1, name, FIRST, None, None, None) for name in "ab"]
    report = measure(same, {})
    assert report["alpha"]["value"] is None and report["alpha"]["n_failed"] == 1
    assert report["pairwise_agreement"]["value"] == 1.0
    position = report["position"]
    assert (position["value"], position["low"], position["high"]) == (None, None, None)
    assert (position["n"], position["n_scored"], position["n_failed"]) == (2, 0, 2)
    assert report["median_seconds"] is None
    lonely = measure(same[:1], {})
    assert lonely["pairwise_agreement"]["value"] is None and lonely["agreement_with_others"]["value"] is None


def test_position_and_length_are_counted_by_hand() -> None:
    item = comparison("q", "one", "one two three")
    long = [r.text for r in item.responses].index("one two three")
    shown = [long, 1 - long]
    rankings = [[[long], [1 - long]], [[long], [1 - long]], [[1 - long], [long]], [[0, 1]]]
    cast = votes_of(
        Judgment(comparison_id=item.id, annotator=f"p{i}", ranking=r, shown=shown, seconds=i + 1)
        for i, r in enumerate(rankings)
    )
    report = measure(cast, {item.id: item})
    assert report["position"]["value"] == report["length"]["value"] == 2 / 3
    assert report["ties"]["value"] == 1 / 4 and report["median_seconds"] == 2.5
    assert report["annotators"]["p2"]["position"]["value"] == 0.0
