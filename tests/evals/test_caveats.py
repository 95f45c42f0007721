"""What an evaluation cannot say although it ran: trained prompts, a judge that is not independent, cut answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures.audit_world import World, content, measured, verdicts, write_evaluation, write_run
from fixtures.shipped_suites import FORGETTING, PREFERENCE, SAFETY

from align.core.records import ItemResult
from align.evals.caveats import of_cut, of_judge, of_settings, of_training, trained_on_items
from align.evals.items import Item


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def trained(tmp_path: Path) -> Path:
    """A DPO policy whose training pairs asked 'What is it?', behind an SFT run on pairs that asked 'Why?'."""
    first = write_run(tmp_path, "first", "pairs", files={"train.jsonl": [{"prompt": user("Why?")}]})
    sft = write_run(tmp_path, "sft", "sft", parents={"data": first})
    pairs = write_run(tmp_path, "pairs", "pairs", files={"train.jsonl": [{"prompt": user("What is it?")}]})
    return write_run(tmp_path, "dpo", "dpo", parents={"policy": sft, "pairs": pairs})


def test_items_that_were_trained_on_are_counted_through_all_runs_behind_a_policy(tmp_path: Path) -> None:
    texts = ("what is it", "Why?", "How?")
    items = [Item(id=t, suite="preference", kind="generate", prompt=user(t)) for t in texts]
    items.append(Item(id="text", suite="forgetting", kind="perplexity", text="Why?"))
    policy = trained(tmp_path)
    counts = trained_on_items(policy, items)
    assert counts == {"preference": 2, "forgetting": 1}
    assert of_training(counts, items)[0].startswith(
        "2 of 3 preference items are prompts that the policy was trained on"
    )
    assert trained_on_items(tmp_path / "sft", items) == {"preference": 1, "forgetting": 1}
    assert trained_on_items(tmp_path / "no run", items) == {}


def test_a_judge_of_the_same_pairs_is_named(tmp_path: Path) -> None:
    policy = trained(tmp_path)
    same = write_run(tmp_path, "same", "reward", parents={"pairs": tmp_path / "pairs"})
    other = write_run(tmp_path, "other", "reward", parents={"pairs": tmp_path / "first"})
    assert "no independent judge" in of_judge(policy, same)[0]
    assert of_judge(policy, other) == of_judge(policy, None) == of_judge(tmp_path / "folder", same) == []


def test_settings_that_nothing_reads_are_named() -> None:
    given = {"temperature", "n", "judge", "gold", "sft", "reward", "suite"}
    said = of_settings(given, [FORGETTING], "greedy")
    assert [line.split("'")[1] for line in said] == ["temperature", "n", "judge", "gold", "sft", "reward"]
    assert said[1] == "'n' is given and not read: suite forgetting and policy greedy"
    assert of_settings(given, [SAFETY, PREFERENCE], "best-of-n") == []
    assert of_settings(given - {"temperature"}, [SAFETY, PREFERENCE], "sample") == [
        "'n' is given and not read: suite safety, preference and policy sample"
    ]
    assert of_settings({"suite"}, [FORGETTING], "greedy") == []


def test_cut_answers_are_counted_once_each(tmp_path: Path) -> None:
    """Two metrics of three answers, of which two were cut; a text that was only read is no answer."""
    shared = {"suite": "safety", "judge": "rule", "score": 0.0}
    rows = [
        ItemResult(**shared, item_id=i, metric=metric, ended=i == "a")
        for i in ("a", "b", "c")
        for metric in ("garbage", "empty")
    ]
    rows.append(ItemResult(suite="forgetting", judge="text", score=1.0, item_id="t", metric="bits_per_byte"))
    assert of_cut(rows, 48) == ["2 of 3 safety answers were cut at 48 tokens (max_new_tokens)"]
    assert of_cut([row for row in rows if row.item_id in ("a", "t")], 48) == []


@pytest.mark.parametrize(("count", "verdict"), [(13, "insufficient"), (12, "pass"), (0, "pass")])
def test_an_evaluation_on_prompts_of_the_training_proves_nothing_of_others(
    world: World, count: int, verdict: str
) -> None:
    config = world(None)
    rows = measured(112, 10, 1.5)
    asked = {suite: {"policy": "sample", "max_new_tokens": 48, "samples": 1} for suite in ("safety", "preference")}
    common = {"template_sha256": "a" * 64, "dtype": "float32"}
    suites = {
        suite: {"items": 120, "fingerprint": common | {"items": suite} | asked.get(suite, {})}
        for suite in ("forgetting", "safety", "preference")
    }
    said = [f"{count} of 120 preference items are prompts that the policy was trained on"] if count else []
    headline = {"suites": suites, "trained_on_items": {"preference": count}, "caveats": said}
    write_evaluation(config.run.parent, "eval-dpo", config.candidate, rows, headline=headline)
    assert verdicts(config) == {"facts": "pass", "harm": "pass", "better": verdict}
    assert any("trained on" in line for line in content(config)["not_measured"]) == bool(count)
