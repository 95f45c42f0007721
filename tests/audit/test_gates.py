"""One gate at a time, and the gates a user writes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.paths import ROOT
from pydantic import ValidationError

from align.audit.evaluations import Scores, kind_of
from align.audit.gate_estimates import measure_difference
from align.audit.gates import Finding, Gate, load_gates, overall, regressed
from align.audit.verdict import judge_gate
from align.core.config import BadInput
from align.core.declarations import Declaration
from align.core.files import write_text
from align.evals.declared import EARLIER


def gate(**changes: Any) -> Gate:
    given: dict[str, Any] = {"name": "g", "suite": "s", "metric": "accuracy", "against": "base", "margin": 0.05}
    known = {"chance": 0.0} if changes.get("metric", "accuracy") == "accuracy" else {}
    return Gate(**(given | {"min_items": 5} | known | changes))


METRICS = {metric.name: metric for one in EARLIER.values() for metric in one.metrics}
DECLARED = {"s": Declaration(suite="s", title="S", metrics=tuple(METRICS.values()))}


def judge(given: Gate, new: Scores, old: Scores | None, chance: float | None = None) -> Finding:
    """The verdict of a gate whose metric is declared as the shipped suites do."""
    return judge_gate(given, DECLARED["s"].metric(given.metric), new, old, chance)


def one_each(values: Iterable[float | None]) -> Scores:
    found = list(values)
    return Scores(found, [str(i) for i in range(len(found))])


OLD = [1.0] * 190 + [0.0] * 10
GAIN = {"type": "improves", "margin": None}
LESS = {"metric": "over_refusal"}
VERDICTS = [
    ("nothing differs, 10 items", [1.0] * 10, [1.0] * 10, {}, "insufficient", "too few"),
    ("nothing differs, 58 items", [1.0] * 58, [1.0] * 58, {}, "insufficient", "too few"),
    ("nothing differs, 61 items", [1.0] * 61, [1.0] * 61, {}, "pass", "proved not worse"),
    ("worse beyond the margin", [0.0] * 60 + OLD[60:], OLD, {}, "fail", "proved worse"),
    ("0 to 9 harmful of 100", [0.0] * 9 + [1.0] * 91, [1.0] * 100, {}, "insufficient", "probably worse"),
    (
        "slightly more lost than the margin",
        [0.0] * 4 + OLD[4:],
        OLD,
        {"margin": 0.01},
        "insufficient",
        "probably worse",
    ),
    (
        "a little worse",
        [0.0] * 6 + [1.0] * 3 + OLD[9:],
        [1.0] * 6 + [0.0] * 3 + OLD[9:],
        {"margin": 0.04},
        "insufficient",
        "too few",
    ),
    ("better", [1.0] * 200, OLD, {}, "pass", "proved not worse"),
    ("too few items by the gate's own rule", [1.0] * 200, OLD, {"min_items": 201}, "insufficient", "too few"),
    ("few items that prove it worse", [0.0] * 60 + OLD[60:], OLD, {"min_items": 201}, "fail", "proved worse"),
    ("nothing scored", [None] * 200, OLD, {}, "insufficient", "missing"),
    ("three in a hundred unscored", [None] * 6 + [1.0] * 194, [1.0] * 200, {}, "insufficient", "missing"),
    ("unscored on both sides", [None] * 6 + [1.0] * 194, [None] * 6 + [1.0] * 194, {}, "insufficient", "missing"),
    ("unscored, and bad enough", [None] * 6 + [0.0] * 60 + [1.0] * 134, [1.0] * 200, {}, "fail", "proved worse"),
    ("many unscored", [None] * 30 + [1.0] * 170, OLD, {}, "insufficient", "missing"),
    ("a few unscored, better else", [None] * 3 + [1.0] * 197, OLD, {}, "pass", "proved not worse"),
    ("the reference guesses", [1.0, 0.0] * 100, [1.0, 0.0] * 100, {"chance": 0.5}, "insufficient", "missing"),
    ("the reference knows", [1.0, 0.0] * 100, [1.0, 0.0] * 100, {"chance": 0.25}, "pass", "proved not worse"),
    ("lower is better: rose", OLD, [0.0] * 60 + OLD[60:], LESS, "fail", "proved worse"),
    ("lower is better: fell", [0.0] * 60 + OLD[60:], OLD, LESS, "pass", "proved not worse"),
    ("does not vary at all", [2.0] * 200, [2.0] * 200, {"metric": "gold_utility"}, "insufficient", "too few"),
    ("improves", [1.0] * 200, [1.0] * 150 + [0.0] * 50, GAIN, "pass", "proved gain"),
    ("improves, but too little", [1.0] * 200, OLD, GAIN | {"gain": 0.2}, "fail", "proved no gain"),
    ("improves: no difference", OLD, OLD, GAIN, "insufficient", "probably no gain"),
    ("improves: a little", [1.0] * 192 + [0.0] * 8, OLD, GAIN, "insufficient", "too few"),
]


@pytest.mark.parametrize(
    ("case", "new", "old", "changes", "verdict", "status"), VERDICTS, ids=[row[0] for row in VERDICTS]
)
def test_verdicts(
    case: str, new: list[Any], old: list[Any], changes: dict[str, Any], verdict: str, status: str
) -> None:
    found = judge(gate(**changes), one_each(new), one_each(old))
    assert (found.verdict, found.status) == (verdict, status), found.reason


@pytest.mark.parametrize(
    ("lost", "won", "reason"),
    [
        (2, 4, "0.01 better than base; at worst 0.0"),
        (5, 0, "0.025 worse than base; at worst 0.0"),
        (3, 3, "no better or worse than base; at worst 0.0"),
    ],
)
def test_a_pass_says_what_was_seen_before_what_may_be(lost: int, won: int, reason: str) -> None:
    """An estimate that improved is never called worse, and nobody is told that it is worse by less than something."""
    old = [1.0] * lost + [0.0] * won + [1.0] * (200 - lost - won)
    new = [0.0] * lost + [1.0] * won + [1.0] * (200 - lost - won)
    found = judge(gate(margin=0.08), one_each(new), one_each(old))
    assert found.verdict == "pass" and found.reason.startswith(reason), found.reason
    assert found.reason.endswith("worse (margin 0.08)")


@pytest.mark.parametrize(
    ("limit", "verdict", "status"),
    [
        (0.5, "pass", "proved within"),
        (0.01, "fail", "proved above"),
        (0.045, "insufficient", "probably above"),
        (0.055, "insufficient", "too few"),
    ],
)
def test_limits(limit: float, verdict: str, status: str) -> None:
    few = one_each([1.0] * 10 + [0.0] * 190)
    found = judge(gate(type="at_most", limit=limit, margin=None, against=None, metric="garbage"), few, None)
    assert (found.verdict, found.status) == (verdict, status), found.reason


def test_other_items_are_no_evidence() -> None:
    new, old = one_each([1.0] * 200), one_each([1.0] * 201)
    found = judge(gate(), new, old)
    assert found.verdict == "insufficient" and "different items" in found.reason


def test_several_samples_an_item_are_not_more_items() -> None:
    """40 items with 5 answers each, all right on both sides, are 40 items and not 200."""
    many = Scores([1.0] * 200, [str(i // 5) for i in range(200)])
    found = judge(gate(), many, many)
    assert found.verdict == "insufficient" and found.n == 40
    assert "59 items" in found.reason


def test_exactness_is_claimed_for_single_zeros_and_ones_alone() -> None:
    single, repeated = one_each([1.0, 0.0, None]), Scores([1.0, 0.0, 1.0], ["a", "a", "b"])
    kinds = [kind_of(METRICS["accuracy"], single, other) for other in (single, repeated, one_each([0.5]))]
    assert kinds == ["binary", "share", "share"]
    assert kind_of(METRICS["gold_utility"], single, single) == "unbounded"  # zeros and ones by chance bound nothing
    assert kind_of(METRICS["win_rate_vs_sft"], single) == "share"  # a tie is a half, seen or not


# --- missing answers ---------------------------------------------------------------------------------------------


def test_missing_samples_are_counted_and_at_their_worst() -> None:
    """Three of four samples of every item without a score: as scored nothing is lost, at worst three quarters."""
    items = [str(i // 4) for i in range(400)]
    old = Scores([1.0] * 400, items)
    new = Scores([1.0, None, None, None] * 100, items)
    found = judge(gate(), new, old)
    assert (found.verdict, found.status) == ("insufficient", "missing")
    assert found.samples is not None and found.reference_samples is not None
    assert found.samples.model_dump() == {"per_item": 4, "expected": 400, "scored": 100, "missing": 300}
    assert found.reference_samples.missing == 0
    assert (found.delta, found.delta_at_worst) == (0.0, -0.75)
    assert "300 of 400 answers of the candidate have no score: 0 as scored, -0.75 with them at" in found.reason


def test_fifteen_of_three_hundred_items_may_be_all_that_is_wrong() -> None:
    """Five in a hundred unscored, harm 0 to 0 elsewhere: at margin .02 that is no pass, at margin .1 it is."""
    clean, hidden = one_each([0.0] * 300), one_each([None] * 15 + [0.0] * 285)
    found = judge(gate(metric="harmful_compliance", margin=0.02), hidden, clean)
    assert (found.verdict, found.status) == ("insufficient", "missing")
    assert found.high is not None and found.high > 0.05 and found.delta == 0.0 and found.delta_at_worst == 0.05
    wide = judge(gate(metric="harmful_compliance", margin=0.1), hidden, clean)
    assert wide.verdict == "pass" and "15 of 300 answers of the candidate have no score" in wide.reason
    same = judge(gate(metric="harmful_compliance", margin=0.02), one_each([1.0] * 15 + [0.0] * 285), hidden)
    assert same.status == "missing" and "15 of 300 answers of the reference" in same.reason  # it may have had no harm
    assert (same.delta, same.delta_at_worst) == (0.0, 0.05)


def test_a_missing_row_is_a_missing_answer() -> None:
    whole = Scores([0.0] * 400, [str(i // 4) for i in range(400)])
    cut = Scores([0.0] * 310, [str(min(i // 4, 70 + i % 30)) for i in range(310)])
    assert (cut.per_item, cut.n_expected - cut.n_scored) != (1, 0)
    found = judge(gate(metric="garbage", type="at_most", limit=0.05, margin=None, against=None), cut, None)
    assert found.samples is not None and found.samples.missing > 0 and found.status == "missing"
    assert judge(gate(metric="garbage", type="at_most", limit=0.05, margin=None, against=None), whole, None).status == (
        "proved within"
    )


def test_missing_answers_of_a_metric_without_a_range_decide_nothing() -> None:
    values = [float(i % 7) for i in range(200)]
    old = one_each(values)
    new = one_each([None, *(v + 2 + 0.1 * (i % 3) for i, v in enumerate(values[1:]))])
    changes: dict[str, Any] = {"metric": "reward_score", **GAIN}
    found = judge(gate(**changes), new, old)
    assert (found.verdict, found.status) == ("insufficient", "missing") and "range: [low, high]" in found.reason
    assert judge(gate(**changes), old, new).status == "missing"  # the reference's count as well
    assert judge(gate(**changes, range=(-20, 20)), new, old).verdict == "pass"
    tight = judge(gate(**changes, range=(-20, 20)), new, one_each([None] * 30 + values[30:]))
    assert tight.status == "missing" and tight.delta_at_worst is not None and tight.delta_at_worst < 0
    assert judge(gate(**changes), one_each([3.0, *(v or 0.0 for v in new.values[1:])]), old).verdict == "pass"


# --- ranges and clusters -----------------------------------------------------------------------------------------


def test_numbers_without_a_range_take_150_items() -> None:
    """2 % of texts hit, worsening at the margin, n 30: the t bound passed 234 of 400."""
    bits: dict[str, Any] = {"metric": "bits_per_byte", "margin": 0.1}
    rising = [0.001 * (i % 5) for i in range(200)]
    few = judge(gate(**bits), one_each(rising[:149]), one_each([0.0] * 149))
    assert (few.verdict, few.status) == ("insufficient", "too few") and "or 150 items" in few.reason
    assert few.p is None  # so it is in no family of tests either
    many = judge(gate(**bits), one_each(rising), one_each([0.0] * 200))
    assert many.verdict == "pass" and "unless fewer than 2% of items are far worse than any seen" in many.reason
    alike = judge(gate(metric="kl", type="at_most", limit=20.0, margin=None, against=None), one_each([0.0] * 200), None)
    assert alike.verdict == "insufficient" and "every item's value is 0, and nothing bounds those not" in alike.reason
    stated = judge(gate(**bits, range=(-1, 1)), one_each(rising[:40]), one_each([0.0] * 40))
    assert stated.verdict == "pass" and "if an item's difference lies from -1 to 1" in stated.reason
    wide = judge(gate(**bits, range=(-8, 8)), one_each(rising[:40]), one_each([0.0] * 40))
    assert (wide.verdict, wide.status) == ("insufficient", "too few")


def test_an_item_outside_the_range_that_was_stated_is_no_evidence() -> None:
    bits: dict[str, Any] = {"metric": "bits_per_byte", "margin": 0.1, "range": (-1, 1)}
    found = judge(gate(**bits), one_each([0.0] * 199 + [5.0]), one_each([0.0] * 200))
    assert found.verdict == "insufficient" and "item '199' (5) lies outside the gate's range [-1, 1]" in found.reason


@pytest.mark.parametrize("alike", [0.999, 0.3, 0.01])
def test_a_policy_at_the_limit_passes_at_most_at_the_level(alike: float) -> None:
    """True rate .02 at limit .02, 100 items of 4 answers: 96 of 400 passed at level .05."""
    rng, passed = np.random.default_rng(3), 0
    for _ in range(200):
        chances = rng.beta(0.02 * (1 - alike) / alike, 0.98 * (1 - alike) / alike, 100)
        answers = (rng.random((100, 4)) < chances[:, None]).astype(float).ravel().tolist()
        scores = Scores(answers, [str(i // 4) for i in range(400)])
        limit: dict[str, Any] = {"type": "at_most", "limit": 0.02, "margin": None, "against": None, "metric": "garbage"}
        passed += judge(gate(**limit), scores, None).verdict == "pass"
    assert passed / 200 <= 0.05 + 2.33 * math.sqrt(0.05 * 0.95 / 200)


def test_items_of_few_clusters_are_too_few_whatever_their_number() -> None:
    def scores(clusters: int) -> Scores:
        items = [str(i) for i in range(600)]
        return Scores([1.0] * 600, items, {item: f"text {int(item) % clusters}" for item in items})

    found = judge(gate(), scores(9), scores(9))
    assert (found.verdict, found.status, found.n_clusters) == ("insufficient", "too few", 9)
    assert "600 items from 9 clusters; a bound takes 10 clusters or more" in found.reason
    uneven = Scores([1.0] * 600, [str(i) for i in range(600)], {str(i): "big" for i in range(580)})
    one_big = judge(gate(), uneven, uneven)
    assert one_big.low == -1.0 and "clusters decide it" in one_big.reason  # and no bound lies outside the range
    some = judge(gate(), scores(30), scores(30))
    assert some.verdict == "insufficient" and some.low == pytest.approx(0.05 ** (1 / 30) - 1)  # 30 things were seen
    assert judge(gate(), scores(60), scores(60)).verdict == "pass"


def test_a_gate_over_uneven_clusters_passes_at_most_at_the_level() -> None:
    """40 documents of 1 to 9 items; a document is lost as a whole, one in ten: the loss is the margin."""
    rng, passed = np.random.default_rng(8), 0
    for _ in range(300):
        sizes = rng.integers(1, 10, 40)
        documents = np.repeat(np.arange(40), sizes)
        items = [str(i) for i in range(len(documents))]
        lost = (rng.random(40) < 0.1)[documents]
        clusters = {item: f"document {d}" for item, d in zip(items, documents, strict=True)}
        new = Scores((1.0 - lost).tolist(), items, clusters)
        found = measure_difference(METRICS["accuracy"], new, Scores([1.0] * len(items), items, clusters), 0.05)
        passed += found.bounds.low is not None and found.bounds.low > -0.1
    assert passed / 300 <= 0.05 + 2.33 * math.sqrt(0.05 * 0.95 / 300)


# --- chance ------------------------------------------------------------------------------------------------------


def test_a_gate_may_raise_chance_and_never_lower_it() -> None:
    guessing = one_each([1.0, 0.0] * 100)
    for chance in (None, 0, 0.2, 0.5):
        found = judge(gate(chance=chance), guessing, guessing, 0.5)
        assert found.verdict == "insufficient" and "chance (0.5)" in found.reason
    raised = judge(gate(chance=0.6), guessing, guessing, 0.25)
    assert raised.verdict == "insufficient" and "chance (0.6)" in raised.reason
    assert judge(gate(chance=0.1), guessing, guessing, 0.25).verdict == "pass"


def test_accuracy_whose_chance_nobody_knows_is_no_evidence() -> None:
    found = judge(gate(chance=None), one_each(OLD), one_each(OLD))
    assert found.status == "missing" and "does not say what guessing scores on accuracy" in found.reason


def test_a_reference_with_nothing_to_lose_is_no_evidence() -> None:
    """It complies with 99 of 100 harmful requests: a margin of .02 lets every candidate pass."""
    worst = one_each([1.0] * 198 + [0.0] * 2)
    found = judge(gate(metric="harmful_compliance", margin=0.02), worst, worst)
    assert (found.verdict, found.status) == ("insufficient", "missing")
    assert "has 0.01 of harmful_compliance to lose and the margin allows 0.02" in found.reason
    assert judge(gate(metric="harmful_compliance", margin=0.02), one_each([0.0] * 200), worst).verdict == "pass"
    assert judge(gate(metric="harmful_compliance", **GAIN), one_each([0.0] * 200), worst).verdict == "pass"


def test_a_margin_as_wide_as_all_scores_lie_apart_is_no_demand() -> None:
    """Utilities from -3 to 1: a candidate at the lowest place of all passed a margin of 4."""
    low, high = one_each([-3.0, -2.0] * 100), one_each([0.0, 1.0] * 100)
    found = judge(gate(metric="gold_utility", margin=4.0, range=(-9.0, 9.0)), low, high)
    assert (found.verdict, found.status) == ("insufficient", "missing")
    assert found.reason == "no two scores of gold_utility lie more than 4 apart and the margin allows 4"
    assert judge(gate(metric="gold_utility", margin=3.9, range=(-9.0, 9.0)), low, high).verdict == "pass"
    assert judge(gate(metric="gold_utility", margin=4.0, range=(-9.0, 9.0)), high, low).verdict == "pass"
    near = one_each([2.0, 3.0] * 100)
    assert judge(gate(metric="kl", margin=20.0, range=(-60.0, 60.0)), near, one_each([0.0] * 200)).verdict == "pass"


@pytest.mark.parametrize("name", ["", "  ", "a\nPASS: all 5 gates hold"])
def test_a_gate_has_a_name_of_one_line(name: str) -> None:
    with pytest.raises(ValidationError, match="one line that is not empty"):
        gate(name=name)


def test_missing_answers_of_the_reference_do_not_lift_it_above_chance() -> None:
    some = one_each([1.0] * 60 + [0.0] * 40 + [None] * 60)
    found = judge(gate(margin=0.3), some, some, 0.4)
    assert found.verdict == "insufficient" and "above chance" in found.reason


def test_an_undecided_gate_says_how_many_items_it_needs() -> None:
    slight = one_each([0.0] * 6 + [1.0] * 3 + OLD[9:]), one_each([1.0] * 6 + [0.0] * 3 + OLD[9:])
    found = judge(gate(margin=0.04), *slight)
    assert found.needed_n is not None and f"about {found.needed_n} items decide it" in found.reason
    assert found.detectable is not None and found.detectable > 0.04  # beyond the margin, not beyond zero
    never = judge(gate(margin=0.0001), *slight)
    assert never.needed_n is None and "no number of items up to 10,000" in never.reason


def test_fail_comes_before_insufficient_before_pass() -> None:
    passed, failed = (
        judge(gate(), one_each([1.0] * 200), one_each(OLD)),
        judge(gate(), one_each([0.0] * 200), one_each(OLD)),
    )
    unknown = judge(gate(), one_each([]), one_each(OLD))
    assert [overall([passed]), overall([passed, unknown])] == ["pass", "insufficient"]
    assert [overall([unknown, failed, passed]), overall([])] == ["fail", "insufficient"]


def test_regressed_is_named_under_holm() -> None:
    slight = judge(gate(), one_each([0.0] * 6 + OLD[6:]), one_each(OLD))  # p = .03 alone
    assert regressed([slight]) == ["accuracy against base"]
    others = [judge(gate(metric=metric), one_each(OLD), one_each(OLD)) for metric in ("ended", "harmless_compliance")]
    assert regressed([slight, *others]) == []


def test_holm_s_family_holds_what_was_testable_and_each_once() -> None:
    """Untestable gates, and a second gate on the same numbers, must not hide what got worse."""
    slight = judge(gate(), one_each([0.0] * 6 + OLD[6:]), one_each(OLD))
    untestable = [
        judge(gate(metric="ended", min_items=500), one_each(OLD), one_each(OLD)),
        judge(gate(metric="harmless_compliance", chance=0.99), one_each(OLD), one_each(OLD)),
        judge(gate(metric="gold_utility"), one_each(OLD[:40]), one_each(OLD[:40])),
    ]
    again = [judge(gate(name=f"again {i}", margin=0.2), one_each([0.0] * 6 + OLD[6:]), one_each(OLD)) for i in range(5)]
    assert [found.p for found in untestable] == [None, None, None]
    assert regressed([slight, *untestable, *again]) == ["accuracy against base"]


# --- gates.yaml --------------------------------------------------------------------------------------------------


def test_the_shipped_gates_are_valid() -> None:
    gates = load_gates(ROOT / "configs" / "gates.yaml", EARLIER)
    assert {g.suite for g in gates} == {"forgetting", "safety", "preference"}


IMPROVES = "gates:\n- {name: a, suite: s, metric: gold_utility, against: base, type: improves"


def test_gates_at_the_edge_of_what_is_refused_are_valid() -> None:
    assert gate(allow=["lineage", "items"], level=0.0001, min_items=2).level == 0.0001
    gate(type="at_most", metric="kl", limit=3.0, margin=None, against=None, range=(0.0, 10.0)).check_scale(
        METRICS["kl"]
    )
    gate(metric="gold_utility", margin=1.0, range=(-2.0, 3.0)).check_scale(METRICS["gold_utility"])
    gate(metric="kl", type="improves", margin=None, gain=2.0, range=(-3.0, 9.0)).check_scale(METRICS["kl"])


def test_a_finding_of_nothing_counts_nothing() -> None:
    found = judge(gate(), one_each([]), one_each([1.0]))
    assert (found.status, found.n, found.n_scored, found.n_failed) == ("missing", 0, 0, 0)


def test_a_finding_repeats_what_was_demanded() -> None:
    values = one_each([1.0] * 100)
    assert judge(gate(margin=0.08), values, values).margin == 0.08
    garbage = judge(gate(type="at_most", limit=0.2, margin=None, against=None, metric="garbage"), values, None)
    assert garbage.margin == 0.2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gates: []", "empty"),
        ("gates:\n- {name: a, suite: s, metric: acuracy, against: base, margin: 0.1}", "acuracy"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base}", "margin"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, margin: 0.1}", "against"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, marign: 0.1}", "did you mean 'margin'"),
        ("gates:\n- {name: a, suite: s, metric: kl, type: at_most}", "limit"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: 5}", "below 0.5"),
        (
            "gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: 1}",
            "loss of accuracy .1.; choose a margin below 0.5",
        ),
        (
            "gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: 0.5}",
            "margin 0.5 is at least half of the",
        ),
        ("gates:\n- {name: a, suite: s, metric: gold_utility, against: base, margin: true}", "number, not true"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: '0.05'}", "expected a number"),
        ("gates:\n- {name: a, suite: s, metric: measured_lower, against: base, margin: 1}", "name one"),
        (
            "gates:\n- {name: a, suite: s, metric: bits_per_byte, against: base, margin: 8}",
            "loss of bits_per_byte .8.; choose a margin below 4",
        ),
        ("gates:\n- {name: a, suite: s, metric: gold_utility, against: base, margin: .inf}", "finite number"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: .nan}", "margin"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: 0.1, level: 0.4}", "level"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: 0.1, level: .nan}", "level"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: 0.1, level: 0}", "level"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: 0.1, min_items: 1}", "min_items"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: 0.1, chance: 1.0}", "chance"),
        (
            "gates:\n- {name: a, suite: s, metric: garbage, type: at_most, limit: 1.5}",
            "limit 1.5 is passed by every policy or by none",
        ),
        ("gates:\n- {name: a, suite: s, metric: kl, type: at_most, limit: 20, range: [0, 20]}", "hold the limit 20"),
        ("gates:\n- {name: a, suite: s, metric: kl, type: at_most, limit: 20, range: [20, 30]}", "hold the limit 20"),
        (f"{IMPROVES}, range: [0, 5]}}", "beyond 0 on both sides"),
        (f"{IMPROVES}, gain: 2.0, range: [-5, 2.0]}}", "the gain"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: 0.1, allow: [items, tide]}", "'tide'"),
        (
            "gates:\n- {name: a, suite: s, metric: gold_utility, against: base, margin: 1, chance: 0.5}",
            "utility has none",
        ),
        ("gates:\n- {name: a, suite: s, metric: gold_utility, against: base, margin: 2, range: [-1, 5]}", "beyond the"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: 0.1, chance: .nan}", "chance"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: 0.1, gain: 0.1}", "gain"),
        (
            "gates:\n- {name: a, suite: s, metric: accuracy, against: base, type: improves, gain: 1}",
            "choose a gain below 1",
        ),
        ("gates:\n- {name: a, suite: s, metric: gold_utility, against: base, type: improves, gain: .inf}", "finite"),
        ("gates:\n- {name: a, suite: s, metric: garbage, type: at_most, limit: 1}", "choose a limit between the two"),
        ("gates:\n- {name: a, suite: s, metric: garbage, type: at_most, limit: -1}", "from 0 to 1"),
        ("gates:\n- {name: a, suite: s, metric: garbage, type: at_most, limit: 0.9}", "choose a limit of at most 0.5"),
        (
            "gates:\n- {name: a, suite: s, metric: harmless_compliance, type: at_most, limit: 0.1}",
            "better when higher: use non_inferior",
        ),
        (
            "gates:\n- {name: a, suite: s, metric: accuracy/fact, type: at_most, limit: 0.5}",
            "better when higher: use non_inferior",
        ),
        (
            "gates:\n- {name: a, suite: s, metric: gold_utility, type: at_most, limit: 2}",
            "better when higher: use non_inferior",
        ),
        ("gates:\n- {name: a, suite: s, metric: kl, type: at_most, limit: 0}", "from 0 to inf"),
        ("gates:\n- {name: a, suite: s, metric: kl, type: at_most, limit: .inf}", "finite"),
        ("gates:\n- {name: a, suite: s, metric: kl, type: at_most, limit: 20, range: [0, 9]}", "hold the limit 20"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: 0.1, range: [-1, 1]}", "its own"),
        ("gates:\n- {name: a, suite: s, metric: kl, against: base, margin: 2, range: [-9, 2]}", "beyond the"),
        ("gates:\n- {name: a, suite: s, metric: kl, against: base, type: improves, range: [2, 9]}", "beyond 0 on both"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: 0.1, chance: -0.5}", "chance"),
        ("gates:\n- {name: a, suite: s, metric: kl, against: base, margin: 2, range: [-.inf, 9]}", "finite"),
        ("gates:\n- {name: a, suite: s, metric: kl, against: base, margin: 2, chance: 0.5}", "kl has none"),
        ("gates:\n- &g {name: a, suite: s, metric: accuracy, against: base, margin: 0.1}\n- *g", "named 'a'"),
    ],
)
def test_bad_gates_are_refused(tmp_path: Path, text: str, said: str) -> None:
    write_text(tmp_path / "gates.yaml", text)
    with pytest.raises(BadInput, match=said) as refused:
        load_gates(tmp_path / "gates.yaml", DECLARED)
    assert "\n" not in str(refused.value)
