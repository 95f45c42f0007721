"""One gate at a time, and the gates a user writes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from audit_world import (
    ROOT,
)

from align.audit import history
from align.audit.gates import EXIT, Gate, judge, load_gates, overall, regressed
from align.audit.history import Scores
from align.core.config import BadInput
from align.core.files import write_text


def gate(**changes: Any) -> Gate:
    given: dict[str, Any] = {"name": "g", "suite": "s", "metric": "accuracy", "against": "base", "margin": 0.05}
    return Gate(**(given | {"min_items": 5} | changes))


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
    ("nothing scored", [None] * 200, OLD, {}, "insufficient", "missing"),
    ("many unscored", [None] * 30 + [1.0] * 170, OLD, {}, "insufficient", "missing"),
    ("a few unscored", [None] * 3 + [1.0] * 197, OLD, {}, "pass", "proved not worse"),
    ("the reference guesses", [1.0, 0.0] * 100, [1.0, 0.0] * 100, {"chance": 0.5}, "insufficient", "missing"),
    ("the reference knows", [1.0, 0.0] * 100, [1.0, 0.0] * 100, {"chance": 0.25}, "pass", "proved not worse"),
    ("lower is better: rose", OLD, [0.0] * 60 + OLD[60:], LESS, "fail", "proved worse"),
    ("lower is better: fell", [0.0] * 60 + OLD[60:], OLD, LESS, "pass", "proved not worse"),
    ("does not vary at all", [2.0] * 200, [2.0] * 200, {"metric": "gold_utility"}, "insufficient", "missing"),
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
    old = [1.0] * lost + [0.0] * (200 - lost)
    new = [0.0] * lost + [1.0] * won + [0.0] * (200 - lost - won)
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
    kinds = [history.kind_of("accuracy/fact", single, other) for other in (single, repeated, one_each([0.5]))]
    assert kinds == ["binary", "share", "share"]
    assert history.kind_of("gold_utility", single, single) == "unbounded"  # zeros and ones by chance bound nothing


def test_an_undecided_gate_says_how_many_items_it_needs() -> None:
    found = judge(gate(), one_each([0.0] * 10 + OLD[10:]), one_each(OLD))
    assert found.needed_n is not None and found.needed_n > 0 and found.detectable is not None


def test_overall_order_and_exit_codes() -> None:
    passed, failed = (
        judge(gate(), one_each([1.0] * 200), one_each(OLD)),
        judge(gate(), one_each([0.0] * 200), one_each(OLD)),
    )
    unknown = judge(gate(), one_each([]), one_each(OLD))
    assert [EXIT[overall(found)] for found in ([passed], [passed, unknown], [unknown, failed, passed], [])] == [
        0,
        3,
        1,
        3,
    ]


def test_regressed_is_named_under_holm() -> None:
    slight = judge(gate(), one_each([0.0] * 6 + OLD[6:]), one_each(OLD))  # p = .03 alone
    assert regressed([slight]) == ["accuracy against base"]
    same = judge(gate(name="h"), one_each(OLD), one_each(OLD))
    assert regressed([slight, same, same]) == []


# --- gates.yaml --------------------------------------------------------------------------------------------------


def test_the_shipped_gates_are_valid() -> None:
    gates = load_gates(ROOT / "configs" / "gates.yaml")
    assert {g.suite for g in gates} == {"forgetting", "safety", "preference"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gates: []", "empty"),
        ("gates:\n- {name: a, suite: s, metric: acuracy, against: base, margin: 0.1}", "acuracy"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base}", "margin"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, margin: 0.1}", "against"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, marign: 0.1}", "did you mean 'margin'"),
        ("gates:\n- {name: a, suite: s, metric: kl, type: at_most}", "limit"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: 5}", "allows any worsening"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: 1}", "has 1 to lose"),
        ("gates:\n- {name: a, suite: s, metric: bits_per_byte, against: base, margin: 8}", "has 8 to lose"),
        ("gates:\n- {name: a, suite: s, metric: gold_utility, against: base, margin: .inf}", "finite number"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: .nan}", "margin"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: 0.1, level: 0.4}", "level"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: 0.1, level: .nan}", "level"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: 0.1, chance: .nan}", "chance"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, margin: 0.1, gain: 0.1}", "gain"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, type: improves, gain: 1}", "gain 1 cannot be"),
        ("gates:\n- {name: a, suite: s, metric: gold_utility, against: base, type: improves, gain: .inf}", "finite"),
        ("gates:\n- {name: a, suite: s, metric: garbage, type: at_most, limit: 1}", "decides nothing"),
        ("gates:\n- {name: a, suite: s, metric: garbage, type: at_most, limit: -1}", "from 0 to 1"),
        ("gates:\n- {name: a, suite: s, metric: kl, type: at_most, limit: 0}", "from 0 to inf"),
        ("gates:\n- {name: a, suite: s, metric: kl, type: at_most, limit: .inf}", "finite"),
        ("gates:\n- &g {name: a, suite: s, metric: accuracy, against: base, margin: 0.1}\n- *g", "named 'a'"),
    ],
)
def test_bad_gates_are_refused(tmp_path: Path, text: str, said: str) -> None:
    write_text(tmp_path / "gates.yaml", text)
    with pytest.raises(BadInput, match=said) as refused:
        load_gates(tmp_path / "gates.yaml")
    assert "\n" not in str(refused.value)
