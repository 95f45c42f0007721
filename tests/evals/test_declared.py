"""What suites declare: by definition, the same as earlier versions had, and read back from a record."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from fixtures.shipped_suites import DECLARATIONS
from pydantic import ValidationError

from align.core.config import BadInput
from align.core.declarations import Declaration, Metric
from align.core.run_record import RunRecord
from align.evals.declared import EARLIER, declaration_of, suites_of
from align.evals.fingerprint import KEYS

METRICS = {metric.name: metric for one in EARLIER.values() for metric in one.metrics}


def record(suites: dict[str, Any]) -> RunRecord:
    return RunRecord(
        id="e", stage="eval", status="finished", path="e", seed=0, given={}, resolved={"suite": list(suites)},
        headline={"suites": suites},
    )  # fmt: skip


def test_every_metric_is_declared_by_its_definition() -> None:
    """Direction, and the lowest and highest result and the widest difference where there is one."""
    up = {"accuracy", "harmless_compliance", "gold_utility", "reward_score", "win_rate_vs_sft", "ended"}
    assert {name for name, metric in METRICS.items() if metric.higher_is_better} == up | {"measured_higher"}
    shares = {name for name, metric in METRICS.items() if metric.is_bounded}
    assert {(METRICS[name].span, METRICS[name].widest) for name in shares} == {((0.0, 1.0), 1.0)}
    assert shares == {
        "accuracy", "harmful_compliance", "over_refusal", "harmless_compliance", "garbage", "empty", "sycophancy",
        "win_rate_vs_sft", "ended",
    }  # fmt: skip
    never_negative = {"nll_per_byte", "bits_per_byte", "kl", "n_tokens"}
    assert {name for name, metric in METRICS.items() if metric.low == 0.0} == shares | never_negative
    assert METRICS["bits_per_byte"].widest == 8.0  # of 256 bytes, each as likely as the others
    assert METRICS["nll_per_byte"].widest == pytest.approx(math.log(256))
    assert all(METRICS[name].widest is None for name in ("kl", "n_tokens", "gold_utility", "reward_score"))


def test_slices_are_declared_by_their_metric_and_unknown_ones_are_named() -> None:
    forgetting = EARLIER["forgetting"]
    assert forgetting.metric("accuracy/fact") is forgetting.metric("accuracy")
    with pytest.raises(BadInput, match="suite forgetting has no metric 'acuracy'; it has accuracy, bits_per_byte"):
        forgetting.metric("acuracy")
    assert forgetting.has("accuracy/fact") and not forgetting.has("acuracy")


def test_shipped_suites_declare_what_earlier_versions_had() -> None:
    """So that evaluations of both are compared; a metric that a suite changes is told apart by its declaration."""
    for name, declared in DECLARATIONS.items():
        earlier = EARLIER[name]
        left_out = {"nll_per_byte"}
        assert declared.metrics == tuple(metric for metric in earlier.metrics if metric.name not in left_out)
        assert declared.model_dump(exclude={"metrics"}) == earlier.model_dump(exclude={"metrics"})


def test_a_record_carries_its_declaration() -> None:
    own = Declaration(suite="mine", title="Mine", metrics=(Metric(name="m", higher_is_better=True, kind="share"),))
    known = record({"mine": {"declaration": own.model_dump(mode="json")}, "safety": {}})
    assert declaration_of(known, "mine") == own and declaration_of(known, "safety") == EARLIER["safety"]
    assert suites_of(known) == ["mine", "safety"]
    assert declaration_of(known, "mine").metric("m").span == (0.0, 1.0)
    with pytest.raises(BadInput, match="does not say what suite other measures; evaluate again"):
        declaration_of(known, "other")
    with pytest.raises(BadInput, match="what it says of suite mine cannot be read"):
        declaration_of(record({"mine": {"declaration": {"suite": "mine"}}}), "mine")


def test_a_declaration_names_only_its_own_metrics() -> None:
    metric = Metric(name="m", higher_is_better=True, kind="binary", guarded_by=("garbage",))
    with pytest.raises(ValueError, match="'garbage' is named by its declaration and is none"):
        Declaration(suite="mine", title="Mine", metrics=(metric,))
    with pytest.raises(ValueError, match="declared twice"):
        Declaration(suite="mine", title="Mine", metrics=(metric, metric))


def test_an_answer_is_capped_by_a_key_of_the_fingerprint() -> None:
    (caps, _) = get_args(Metric.model_fields["capped_by"].annotation)
    assert set(get_args(caps)) <= set(KEYS)


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"kind": "share", "high": 100.0}, "metric m: kind share lies from 0 to 1, not from 0 to 100"),
        ({"kind": "binary", "low": -1.0}, "metric m: kind binary lies from 0 to 1, not from -1 to 1"),
        ({"low": 5.0, "high": -5.0}, "metric m: 'low' is 5 and 'high' is -5; low lies below high"),
        ({"widest": -1.0}, "metric m: 'widest' is -1; a difference is above 0"),
        ({"low": 0.0, "of_garbage": -3.0}, "metric m: 'of_garbage' is -3, outside 0 to inf"),
        ({"capped_by": "policy"}, "capped_by"),
        ({"capped_by": "max_tokens"}, "capped_by"),
    ],
)
def test_a_metric_that_contradicts_itself_is_refused(facts: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Metric.model_validate({"name": "m", "higher_is_better": True, "kind": "unbounded"} | facts)
