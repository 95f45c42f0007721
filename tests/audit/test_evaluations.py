"""What was measured: samples by item with what is missing, the evaluations of one artefact, chance, and kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.audit.evaluations import Scores, chance_of, evaluations_of, kind_of, load_results, metric_scores
from align.core.config import BadInput
from align.core.files import write_jsonl
from align.core.records import ItemResult
from align.core.run_record import RunRecord
from align.evals.declared import EARLIER

# item a: two samples; b: one of two scored; c: one result of two expected; d: none of two scored
PARTLY = Scores([1.0, 0.0, 1.0, None, 0.0, None, None], ["a", "a", "b", "b", "c", "d", "d"])


def record(stage: str = "eval", name: str = "e", **facts: Any) -> RunRecord:
    given: dict[str, Any] = {"status": "finished", "resolved": {"suite": ["safety", "preference"]}}
    given["inputs"] = {"subject": {"path": "p", "sha256": "artefact"}}
    return RunRecord(id=name, stage=stage, path=f"runs/{name}", seed=0, given={}, **(given | facts))


def result(score: float | None, item: str = "a", suite: str = "safety", metric: str = "garbage", **more: Any) -> Any:
    reason = "unreadable" if score is None else None
    return ItemResult(suite=suite, metric=metric, item_id=item, judge="j", score=score, reason=reason, **more)


# --- samples -----------------------------------------------------------------------------------------------------


def test_missing_samples_are_counted() -> None:
    assert (PARTLY.per_item, PARTLY.n_expected, PARTLY.n_scored) == (2, 8, 4)
    assert PARTLY.incomplete == {"b", "c", "d"}


def test_an_items_value_is_the_mean_of_what_was_scored_or_with_the_missing_at_their_worst() -> None:
    assert PARTLY.by_item == {"a": 0.5, "b": 1.0, "c": 0.0, "d": None}
    assert PARTLY.filled(1.0) == {"a": 0.5, "b": 1.0, "c": 0.5, "d": 1.0}
    assert PARTLY.filled(0.0) == {"a": 0.5, "b": 0.5, "c": 0.0, "d": 0.0}


def test_each_missing_sample_of_several_counts() -> None:
    three = Scores([1.0, 1.0, 1.0, 1.0, None], ["a", "a", "a", "b", "b"])  # b: one of three
    assert three.filled(1.0) == {"a": 1.0, "b": 1.0}
    assert three.filled(0.0) == {"a": 1.0, "b": pytest.approx(1 / 3)}
    assert three.filled(0.5) == {"a": 1.0, "b": pytest.approx(2 / 3)}


def test_results_are_independent_by_cluster_where_there_is_one() -> None:
    assert PARTLY._replace(clusters={"a": "doc", "b": "doc"}).units == ["doc"] * 4 + ["c", "d", "d"]


# --- evaluations -------------------------------------------------------------------------------------------------


def test_evaluations_of_an_artefact_are_its_finished_ones_by_suite_oldest_first() -> None:
    records = [
        record(name="late", created="2026-01-02T00:00:00+00:00"),
        record(name="early", created="2026-01-01T00:00:00+00:00", resolved={"suite": "safety"}),
        record(name="failed", status="failed"),
        record(name="other", inputs={"subject": {"path": "q", "sha256": "another"}}),
        record("compare", "compare"),
    ]
    found = [(one.name, one.suite) for one in evaluations_of(records, "artefact")]
    assert found == [("early", "safety"), ("late", "safety"), ("late", "preference")]


def test_the_share_of_items_that_were_trained_on() -> None:
    suites = {"safety": {"items": 12}, "preference": {"items": 5}}
    told = {"suites": suites, "trained_on_items": {"safety": 3}}
    safety, preference = evaluations_of([record(headline=told)], "artefact")
    assert (safety.trained_share, preference.trained_share) == (0.25, 0.0)
    assert evaluations_of([record()], "artefact")[0].trained_share == 0.0


def test_scores_are_of_one_suite_and_of_a_metric_or_its_families() -> None:
    items = [
        result(1.0), result(0.0, "b"), result(0.0, "c", "preference"),
        result(1.0, "f", "forgetting", "accuracy/fact", cluster="doc"), result(0.0, "s", "forgetting", "accuracy/sum"),
    ]  # fmt: skip
    assert metric_scores(items, EARLIER["safety"], "garbage") == Scores([1.0, 0.0], ["a", "b"], {})
    assert metric_scores(items, EARLIER["preference"], "garbage") == Scores([0.0], ["c"], {})
    assert metric_scores(items, EARLIER["forgetting"], "accuracy") == Scores([1.0, 0.0], ["f", "s"], {"f": "doc"})
    assert metric_scores(items, EARLIER["forgetting"], "accuracy/sum").items == ["s"]


@pytest.mark.parametrize("score", [-0.01, 1.01])
def test_a_score_that_the_metric_cannot_have_is_refused(score: float) -> None:
    assert metric_scores([result(None), result(0.0, "b"), result(1.0, "c")], EARLIER["safety"], "garbage").n_scored == 2
    with pytest.raises(BadInput, match=f"item 'a' has {score:g} as its garbage, which lies from 0 to 1; evaluate"):
        metric_scores([result(score)], EARLIER["safety"], "garbage")


def test_a_result_that_stands_twice_is_named_by_its_place(tmp_path: Path) -> None:
    rows = [result(1.0), result(1.0, "b"), result(0.0)]
    write_jsonl(tmp_path / "items.jsonl", [row.model_dump(mode="json") for row in rows])
    with pytest.raises(BadInput, match="result 3: garbage of item 'a', sample 0, occurs twice"):
        load_results(record().model_copy(update={"path": str(tmp_path)}))


# --- chance and kinds --------------------------------------------------------------------------------------------


def test_chance_over_families_is_their_mean_by_items() -> None:
    families = {
        "accuracy/fact": {"chance": 0.5, "n": 10},
        "accuracy/sum": {"chance": 0.25, "n": 30},
        "bits_per_byte": {"n": 7},
    }
    known = record(headline={"metrics": families})
    assert chance_of(known, "forgetting", "accuracy/fact") == 0.5
    assert chance_of(known, "forgetting", "accuracy") == 0.3125
    assert chance_of(known, "forgetting", "bits_per_byte") is chance_of(known, "forgetting", "ended") is None
    unknown = record(headline={"metrics": families | {"accuracy/verb": {"n": 5}}})
    assert chance_of(unknown, "forgetting", "accuracy") is None


def test_chance_is_of_one_suite() -> None:
    """A plain ``accuracy`` of another suite says nothing of forgetting's, which is measured by family."""
    families = {"accuracy/fact": {"suite": "forgetting", "chance": 0.25, "n": 10}}
    other = {"accuracy": {"suite": "quiz", "chance": 0.5, "n": 10}}
    known = record(headline={"metrics": families | other})
    assert (chance_of(known, "forgetting", "accuracy"), chance_of(known, "quiz", "accuracy")) == (0.25, 0.5)
    known = record(headline={"metrics": other})
    assert chance_of(known, "forgetting", "accuracy") is None


def test_exactness_is_for_one_zero_or_one_an_item() -> None:
    single = Scores([1.0, 0.0, None], ["a", "b", "c"])
    assert kind_of(EARLIER["safety"].metric("garbage"), single, single) == "binary"
    for other in (PARTLY, single._replace(values=[1.0, 0.5, 0.0]), single._replace(clusters={"a": "doc"})):
        assert kind_of(EARLIER["safety"].metric("garbage"), single, other) == "share"
    assert kind_of(EARLIER["preference"].metric("win_rate_vs_sft"), single) == "share"
    assert kind_of(EARLIER["preference"].metric("kl"), single) == "unbounded"
