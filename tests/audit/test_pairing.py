"""Which evaluations a gate may be judged by: asked alike, all of them, the worst one deciding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures.audit_world import (
    World,
    content,
    edit_run,
    measured,
    results,
    verdicts,
    write_evaluation,
)

from align.audit.run import AuditConfig, audit
from align.core.config import BadInput
from align.core.files import write_json, write_jsonl, write_text
from align.core.run_record import read_run

GOOD, BAD = measured(112, 10, 1.5), measured(60, 110, -1.0)
LATER = {"created": "2026-01-02T10:00:00+00:00"}


def again(config: AuditConfig, name: str) -> AuditConfig:
    """The same audit as a run of its own, over the evaluations that stand there now."""
    return AuditConfig(**config.model_dump() | {"run": config.run.parent / name})


@pytest.mark.parametrize(
    "asked",
    [
        {"template_sha256": "b" * 64},
        {"template_arguments": '{"date": "2026-01-02"}'},
        {"dtype": "bfloat16"},
        {"quantization": "nf4"},
        {"max_new_tokens": 8},
        {"samples": 4},
        {"temperature": 0.1},
        {"stop": [1]},
        {"items": "others"},
        {"judges": {"pocket": "c" * 64}},
    ],
)
def test_a_candidate_that_was_asked_differently_is_no_evidence(world: World, asked: dict[str, Any]) -> None:
    config = world(None)
    write_evaluation(config.run.parent, "eval-dpo", config.candidate, GOOD, asked=asked)
    assert set(verdicts(config).values()) == {"insufficient"}
    assert f"'{next(iter(asked))}' differs (" in content(config)["sentence"]


def test_what_a_gate_expressly_allows_may_differ(world: World) -> None:
    config = world(None)
    write_evaluation(config.run.parent, "eval-dpo", config.candidate, GOOD, asked={"quantization": "nf4"})
    text = config.gates.read_text()
    write_text(config.gates, text.replace("margin: 0.05}", "margin: 0.05, allow: [quantization]}"))
    assert verdicts(config) == {"facts": "pass", "harm": "pass", "better": "insufficient"}


def test_an_evaluation_without_a_fingerprint_is_no_evidence(world: World) -> None:
    config = world(GOOD)
    record = read_run(config.run.parent / "eval-sft")
    headline = {key: value for key, value in record.headline.items() if key != "suites"}
    edit_run(config.run.parent / "eval-sft", headline=headline)
    assert verdicts(config) == {"facts": "pass", "harm": "insufficient", "better": "insufficient"}
    assert "eval-sft does not record how it was asked (an earlier version wrote it)" in content(config)["sentence"]


def test_a_record_whose_checksum_was_taken_out_is_no_evidence(world: World) -> None:
    config = world(GOOD)
    file = config.run.parent / "eval-dpo" / "run.json"
    write_json(file, read_run(file.parent).model_dump(mode="json", exclude={"checksum"}))
    assert set(verdicts(config).values()) == {"insufficient"}


def test_a_candidate_asked_through_another_template_than_its_own_is_no_evidence(world: World) -> None:
    """Both sides through `plain`: alike, and both may babble."""
    config = world(None)
    write_evaluation(config.run.parent, "eval-dpo", config.candidate, GOOD, headline={"own_template": False})
    assert set(verdicts(config).values()) == {"insufficient"}
    assert "through another chat template than its own" in content(config)["sentence"]


def test_every_finished_evaluation_counts_and_the_worst_decides(world: World) -> None:
    """Neither a newer evaluation nor another seed hides one; an unfinished one is nothing."""
    config = world(BAD)
    runs, dpo = config.run.parent, config.candidate
    write_evaluation(runs, "again", dpo, GOOD, seed=1, **LATER)
    write_evaluation(runs, "unfinished", dpo, BAD, status="failed", created="2026-01-03T10:00:00+00:00")
    assert verdicts(config) == {"facts": "fail", "harm": "fail", "better": "fail"}
    found = content(config)
    assert {tuple(finding["evaluations"]) for finding in found["findings"]} == {
        ("eval-dpo", "eval-base"), ("eval-dpo", "eval-sft"),
    }  # fmt: skip
    named = [row for row in found["considered"] if row["gate"] == "harm"]
    assert [(row["evaluations"], row["verdict"]) for row in named] == [
        (["eval-dpo", "eval-sft"], "fail"),
        (["again", "eval-sft"], "pass"),
    ]
    used = {Path(entry["path"]).name for name, entry in read_run(config.run).inputs.items() if "evaluations" in name}
    assert used == {"eval-dpo", "again", "eval-base", "eval-sft"}


def test_a_good_sample_does_not_hide_a_bad_greedy(world: World) -> None:
    config = world(GOOD)
    runs = config.run.parent
    write_evaluation(runs, "greedy-dpo", config.candidate, BAD, policy="greedy")
    assert set(verdicts(config).values()) == {"fail", "pass"}  # forgetting is the same question: the worst decides
    write_evaluation(runs, "greedy-sft", runs / "sft", measured(110, 60, 0.5), policy="greedy", **LATER)
    config = again(config, "audit-2")
    assert verdicts(config) == {"facts": "fail", "harm": "fail", "better": "fail"}


def test_what_found_no_match_is_named(world: World) -> None:
    config = world(GOOD)
    write_evaluation(config.run.parent, "long", config.candidate, BAD, asked={"max_new_tokens": 512})
    assert verdicts(config)["harm"] == "pass"
    named = [row for row in content(config)["considered"] if row["evaluations"][0] == "long" and row["gate"] == "harm"]
    assert [row["verdict"] for row in named] == [None]
    reason = "long and eval-sft are not alike: 'max_new_tokens' differs (512 and 48); evaluate both alike"
    assert named[0]["reason"] == reason


def test_a_judge_whose_code_changed_is_named_with_what_to_do(world: World) -> None:
    """So are evaluations of a version whose judges stood in other files: its judgments are not compared with newer."""
    config = world(None)
    for name, subject, code in (("eval-dpo", config.candidate, "a" * 64), ("eval-sft", config.sft, "b" * 64)):
        write_evaluation(config.run.parent, name, subject, GOOD, asked={"judges": {"refusal-prefix": code}})
    assert verdicts(config)["harm"] == "insufficient"
    (reason,) = {row["reason"] for row in content(config)["findings"] if row["gate"] == "harm"}
    codes = f"refusal-prefix {'a' * 12}… and refusal-prefix {'b' * 12}…"
    assert reason == f"eval-dpo and eval-sft are not alike: 'judges' differs ({codes}); evaluate both alike"


def test_a_gate_that_names_a_policy_or_a_fingerprint_is_judged_by_that(world: World) -> None:
    config = world(GOOD)
    runs = config.run.parent
    for name, path in (("greedy-dpo", config.candidate), ("greedy-sft", runs / "sft")):
        write_evaluation(runs, name, path, measured(110, 60, 0.5) if "sft" in name else BAD, policy="greedy")
    gates = config.gates.read_text()
    for number, (key, harm) in enumerate(
        (("policy: sample", "pass"), ("policy: greedy", "fail"), ("fingerprint: {policy: sample}", "pass"))
    ):
        write_text(config.gates, gates.replace("against: sft, margin", f"{key}, against: sft, margin"))
        assert verdicts(again(config, f"audit-{number}"))["harm"] == harm


def test_a_selection_of_the_items_is_no_pass(world: World) -> None:
    """Only what the candidate answers well, on both sides, and its whole evaluation is gone."""
    config = world(None)
    runs = config.run.parent
    for name, path in (("some-dpo", config.candidate), ("some-sft", runs / "sft")):
        rows = [row for row in GOOD if row["metric"] != "harmful_compliance"]
        rows += results("safety", "harmful_compliance", [0.0] * 100)
        write_evaluation(runs, name, path, rows, asked={"items": "some"})
    assert verdicts(config)["harm"] == "insufficient"
    assert "eval-sft asked sft 20 items that the candidate was not asked" in content(config)["sentence"]
    gates = config.gates.read_text()
    write_text(config.gates, gates.replace("}", ", fingerprint: {items: some}}"))
    assert verdicts(again(config, "audit-2"))["harm"] == "pass"  # the gate says so, for everybody to read


def test_as_many_items_may_be_other_items(world: World) -> None:
    """The reference answered two sets of 120, and the candidate one of them."""
    config = world(GOOD)
    hard = [row | {"item_id": f"hard-{row['item_id']}"} for row in GOOD if row["suite"] == "safety"]
    runs = config.run.parent
    write_evaluation(runs, "hard-sft", runs / "sft", hard, asked={"items": "hard"})
    assert verdicts(config)["harm"] == "insufficient"
    assert "hard-sft asked sft 120 items that the candidate was not asked" in content(config)["sentence"]
    write_evaluation(runs, "hard-dpo", config.candidate, hard, asked={"items": "hard"})
    assert verdicts(again(config, "audit-2"))["harm"] == "pass"


def test_a_smoke_test_on_a_few_items_decides_nothing_beside_a_whole_evaluation(world: World) -> None:
    config = world(GOOD)
    runs = config.run.parent
    for name, path in (("few-dpo", config.candidate), ("few-sft", runs / "sft")):
        rows = results("safety", "harmful_compliance", [0.0] * 10)
        write_evaluation(runs, name, path, rows, asked={"items": "few"})
    assert verdicts(config)["harm"] == "pass"


def test_few_items_that_prove_harm_count_beside_a_whole_evaluation(world: World) -> None:
    config = world(GOOD)
    for name, path, harm in (("few-dpo", config.candidate, 1.0), ("few-sft", config.run.parent / "sft", 0.0)):
        rows = results("safety", "harmful_compliance", [harm] * 20)
        write_evaluation(config.run.parent, name, path, rows, asked={"items": "few"})
    assert verdicts(config)["harm"] == "fail"


@pytest.mark.parametrize("change", ["{}", "a row twice", "a score"])
def test_edited_results_are_refused(world: World, change: str) -> None:
    config = world(GOOD)
    file = config.run.parent / "eval-dpo" / "items.jsonl"
    lines = file.read_text().splitlines()
    edits = {
        "{}": lines[1:],
        "a row twice": [*lines, lines[0]],
        "a score": [lines[0].replace("1.0", "0.0"), *lines[1:]],
    }
    write_text(file, "".join(line + "\n" for line in edits[change]))
    with pytest.raises(BadInput, match="items.jsonl: edited after the evaluation wrote it"):
        audit(config)


def test_results_that_stand_twice_are_refused(world: World) -> None:
    config = world([*GOOD, GOOD[0]])
    with pytest.raises(BadInput, match="accuracy/fact of item 'accuracy/fact-0', sample 0, occurs twice"):
        audit(config)


def test_an_evaluation_of_nothing_is_insufficient(world: World) -> None:
    config = world(None)
    folder = write_evaluation(config.run.parent, "eval-dpo", config.candidate, GOOD)
    write_jsonl(folder / "items.jsonl", [])
    with pytest.raises(BadInput, match="items.jsonl: edited after the evaluation wrote it"):
        audit(config)
    write_evaluation(config.run.parent, "eval-dpo", config.candidate, [])
    assert set(verdicts(again(config, "audit-2")).values()) == {"insufficient"}
