"""A suite from outside the package is evaluated, gated, compared and reported like a shipped one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy_suite
from fixtures.audit_world import World, compared, content, edit_run, results, write_evaluation
from fixtures.shipped_suites import SAFETY

from align.audit.compare import compare
from align.audit.report import ReportConfig, report
from align.audit.run import AuditConfig, audit
from align.cli.main import run
from align.core.config import BadInput, build
from align.core.declarations import Declaration
from align.core.files import write_jsonl, write_text
from align.core.runs import read_run
from align.evals.run import EvalConfig, evaluate

ModelFolder = Callable[[str], Path]
TOY = "toy_suite:WordLimit"
GATE = "gates:\n- {name: brief, suite: word-limit, metric: over_limit, type: at_most, limit: 0.2}\n"
DECLARED = toy_suite.WordLimit(kind=TOY).declaration()


def write_items(folder: Path, most_words: int = 8, n: int = 40) -> Path:
    rows = [
        {"id": f"i{i}", "suite": "word-limit", "kind": "generate", "most_words": most_words,
         "prompt": [{"role": "user", "content": f"is the sky blue {i}"}]}
        for i in range(n)
    ]  # fmt: skip
    write_jsonl(folder / "word-limit.jsonl", rows)
    return folder / "word-limit.jsonl"


def evaluated(tmp_path: Path, model: Path, **changes: Any) -> EvalConfig:
    items = changes.pop("items") if "items" in changes else write_items(tmp_path)
    given = {"run": tmp_path / "runs" / "eval", "subject": model, "suite": [TOY], "items": items, "max_new_tokens": 4}
    return build(EvalConfig, given | changes, "test")


@pytest.mark.parametrize(("most_words", "verdict", "code"), [(8, "pass", 0), (-1, "fail", 1)])
def test_it_runs_through_eval_audit_and_report(
    tmp_path: Path, model_folder: ModelFolder, most_words: int, verdict: str, code: int
) -> None:
    subject, gates = model_folder("llama"), tmp_path / "gates.yaml"
    record = evaluate(evaluated(tmp_path, subject, items=write_items(tmp_path, most_words)))
    assert record.headline["metrics"]["over_limit"]["value"] == float(most_words < 0)
    assert record.headline["metrics"]["words"]["n_scored"] == 40
    assert Declaration.model_validate(record.headline["suites"]["word-limit"]["declaration"]) == DECLARED
    assert record.resolved["suite"] == [{"kind": TOY, "slack": 0}]
    fingerprint = record.headline["suites"]["word-limit"]["fingerprint"]
    assert fingerprint["suite"] == {"slack": 0, "sha256": record.inputs["suite[0]"]["sha256"]}, "its code is an input"
    write_text(gates, GATE)
    audited = AuditConfig(run=tmp_path / "runs" / "audit", base=model_folder("gpt2"), candidate=subject, gates=gates)
    assert audit(audited).headline["verdict"] == verdict
    line = ["audit", "--gates", str(gates), f"base={audited.base}", f"candidate={subject}"]
    assert run([*line, f"run={tmp_path / 'runs' / 'again'}"]) == code
    report(ReportConfig(run=tmp_path / "runs" / "report", runs_folder=tmp_path / "runs", audits=[audited.run]))
    page = (tmp_path / "runs" / "report" / "report.html").read_text()
    assert "<h2>Word limits</h2>" in page and "over_limit ↓" in page and "words ↓" in page


def test_its_settings_and_items_are_validated_by_their_own_schemas(tmp_path: Path, model_folder: ModelFolder) -> None:
    subject = model_folder("llama")
    slack = evaluate(evaluated(tmp_path, subject, suite=[{"kind": TOY, "slack": 20}], items=write_items(tmp_path, -1)))
    assert slack.headline["metrics"]["over_limit"]["value"] == 0.0
    with pytest.raises(BadInput, match=r"suite toy_suite:WordLimit: unknown key 'slck'; did you mean 'slack'"):
        evaluated(tmp_path, subject, suite=[{"kind": TOY, "slck": 1}])
    write_jsonl(tmp_path / "odd.jsonl", [{"id": "a", "suite": "word-limit", "kind": "generate", "prompt": "hi"}])
    with pytest.raises(BadInput, match=r"odd\.jsonl:1: most_words: Field required"):
        evaluate(evaluated(tmp_path, subject, run=tmp_path / "odd", items=tmp_path / "odd.jsonl"))
    both = [{"id": "a", "suite": "safety", "kind": "generate", "family": "harm", "prompt": "hello"},
            {"id": "b", "suite": "word-limits", "kind": "generate", "prompt": "hello"}]  # fmt: skip
    write_jsonl(tmp_path / "both.jsonl", both)
    with pytest.raises(BadInput, match=r"both\.jsonl:2: suite: 'word-limits' is no suite .* write one of word-limit, "):
        evaluate(evaluated(tmp_path, subject, run=tmp_path / "both", items=tmp_path / "both.jsonl"))


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("metric: over_limits, against: sft, margin: 0.1", "suite word-limit has no metric 'over_limits'; it has over"),
        ("metric: over_limit, against: sft, margin: 0.7", "allows half of any worsening"),
        ("metric: over_limit, against: sft, margin: 0.1, chance: 0.2", "where more is better; over_limit has none"),
        ("metric: words, type: at_most, limit: -3", "from 0 to inf"),
    ],
)
def test_a_gate_that_its_declaration_contradicts_is_refused(world: World, gate: str, message: str) -> None:
    config = world(None)
    rows = results("word-limit", "over_limit", [0.0] * 60)
    write_evaluation(config.run.parent, "eval-words", config.candidate, rows, declarations=[DECLARED])
    write_text(config.gates, f"gates:\n- {{name: brief, suite: word-limit, {gate}}}\n")
    with pytest.raises(BadInput, match=message):
        audit(config)


def test_evaluations_that_declare_a_metric_in_different_ways_are_not_compared(world: World) -> None:
    config, rows = world(None), results("word-limit", "over_limit", [0.0] * 90)
    turned = DECLARED.metrics[0].model_copy(update={"higher_is_better": True})
    other = DECLARED.model_copy(update={"metrics": (turned, *DECLARED.metrics[1:])})
    write_evaluation(config.run.parent, "words-dpo", config.candidate, rows, declarations=[DECLARED])
    write_evaluation(config.run.parent, "words-sft", config.run.parent / "sft", rows, declarations=[other])
    write_text(config.gates, "gates:\n- {name: g, suite: word-limit, metric: over_limit, against: sft, margin: 0.1}\n")
    audit(config)
    (finding,) = content(config)["findings"]
    assert finding["verdict"] == "insufficient"
    assert "words-dpo and words-sft declare over_limit in different ways" in finding["reason"]
    edit_run(config.run.parent / "words-sft", headline=read_run(config.run.parent / "words-dpo").headline)
    again = AuditConfig(**config.model_dump() | {"run": config.run.parent / "again"})
    audit(again)
    assert [found["verdict"] for found in content(again)["findings"]] == ["pass"]


def test_it_is_compared_and_keeps_apart_what_two_suites_name_alike(world: World) -> None:
    """A metric ``garbage`` of the toy stands beside the safety suite's own."""
    config, runs = compared(world)
    garbage = DECLARED.metrics[0].model_copy(update={"name": "garbage", "higher_is_better": True})
    declared = DECLARED.model_copy(update={"metrics": (*DECLARED.metrics, garbage)})
    for name, over in (("dpo", 3), ("ppo", 30), ("sft", 60)):
        rows = results("word-limit", "over_limit", [1.0] * over + [0.0] * (120 - over))
        rows += results("word-limit", "garbage", [1.0] * 120)
        write_evaluation(runs, f"words-{name}", runs / name, rows, declarations=[declared])
    compare(config)
    found = json.loads((config.run / "comparison.json").read_text())
    by_name = {row["name"]: row["metrics"] for row in found["rows"]}
    assert by_name["ppo"]["over_limit"]["value"] == 0.25 and by_name["dpo"]["over_limit"]["higher_is_better"] is False
    assert by_name["dpo"]["garbage (word-limit)"]["value"] == 1.0 and by_name["dpo"]["garbage (safety)"]["value"] == 0.0
    (paired,) = [row for row in found["differences"] if row["metric"] == "over_limit"]
    assert (paired["value"], paired["higher_is_better"]) == (pytest.approx(-27 / 120), False)
    text = (config.run / "comparison.md").read_text()
    assert "| over_limit ↓ |" in text and "| garbage (word-limit) ↑ |" in text and "| garbage (safety) ↓ |" in text


def test_a_class_without_what_a_suite_declares_is_refused() -> None:
    with pytest.raises(TypeError, match="suite Nameless needs name, title, metrics"):
        type("Nameless", (type(SAFETY).__mro__[1],), {})
