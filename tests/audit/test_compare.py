"""The comparison of arms, and which arms it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures.audit_world import (
    World,
    compared,
    edit_run,
    measured,
    with_wins,
    write_evaluation,
    write_run,
)

from align.audit.compare import CompareConfig, compare
from align.core.config import BadInput
from align.core.run_record import read_run


def test_the_table_has_every_row_and_cost(world: World) -> None:
    config, runs = compared(world)
    write_run(runs, "dpo-earlier", "dpo", parents={"policy": runs / "sft", "pairs": runs / "pairs"})
    compare(config)
    found = json.loads((config.run / "comparison.json").read_text())
    rows = {row["name"]: row["metrics"] for row in found["rows"]}
    assert list(rows) == ["base", "sft", "prompt-only", "best-of-n", "dpo", "ppo"]
    assert rows["base"]["accuracy/fact"]["value"] == pytest.approx(110 / 120)
    assert rows["prompt-only"]["harmful_compliance"]["value"] == pytest.approx(50 / 120)
    assert rows["dpo"]["win_rate_vs_sft"]["value"] == 0.75
    assert 0.6 < rows["dpo"]["win_rate_vs_sft, equal length"]["value"] < 0.9
    assert "it is not AlpacaEval 2's length-controlled win rate" in (config.run / "comparison.md").read_text()
    costs = {row["name"]: row for row in found["costs"]}
    assert costs["dpo"]["configurations_tried"] == 2 and costs["ppo"]["configurations_tried"] == 1
    assert costs["dpo"]["train_pairs"] == 400 and costs["ppo"]["seconds"] == 20.0
    (utility,) = (d for d in found["differences"] if d["metric"] == "gold_utility")
    assert utility["low"] < utility["value"] < utility["high"] and utility["value"] == pytest.approx(0.3, abs=0.1)
    assert "best-of-n: no evaluation of" in " ".join(found["not_measured"])
    text = (config.run / "comparison.md").read_text()
    assert "One beta a side is a point" in text and "| dpo − ppo | gold_utility" in text


@pytest.mark.parametrize("key", ["base", "sft", "pairs", "prompts"])
def test_arms_that_learned_from_other_things_are_refused(world: World, key: str) -> None:
    config, runs = compared(world)
    record = read_run(runs / "ppo")
    changed: dict[str, Any] = {"lineage": record.lineage | {key: "other"}}
    if key == "sft":
        changed["inputs"] = record.inputs | {"policy": record.inputs["policy"] | {"sha256": "other"}}
    edit_run(runs / "ppo", **changed)
    with pytest.raises(BadInput, match=f"differ in '{key}'"):
        compare(config)


def test_an_arm_without_lineage_is_refused(world: World) -> None:
    config, runs = compared(world)
    lineage = read_run(runs / "ppo").lineage
    edit_run(runs / "ppo", lineage={key: value for key, value in lineage.items() if key != "pairs"})
    with pytest.raises(BadInput, match="not every arm records its pairs"):
        compare(config)


def test_evaluations_over_other_items_are_refused(world: World) -> None:
    rows = [row for row in with_wins(measured(100, 5, 1.2), 70) if row["item_id"] != "accuracy/fact-7"]
    config, _ = compared(world, rows)
    with pytest.raises(BadInput, match="accuracy/fact was measured over different items"):
        compare(config)


def test_evaluations_that_were_asked_in_another_way_are_refused(world: World) -> None:
    config, runs = compared(world)
    write_evaluation(runs, "eval-ppo", runs / "ppo", with_wins(measured(100, 5, 1.2), 70), asked={"dtype": "bfloat16"})
    with pytest.raises(BadInput, match="eval-ppo are not alike: 'dtype' differs .float32 and bfloat16.; evaluate"):
        compare(config)


def test_arms_asked_through_another_template_are_refused(world: World) -> None:
    config, runs = compared(world)
    record = read_run(runs / "eval-ppo")
    edit_run(runs / "eval-ppo", headline=record.headline | {"own_template": False})
    with pytest.raises(BadInput, match="eval-ppo asked ppo through another chat template than its own; evaluate again"):
        compare(config)


def test_what_the_table_passes_over_is_named(world: World) -> None:
    config, runs = compared(world)
    newer = {"created": "2026-01-03T10:00:00+00:00"}
    write_evaluation(runs, "again", runs / "dpo", with_wins(measured(120, 0, 2.5), 110), **newer)
    compare(CompareConfig(**config.model_dump() | {"policy": "greedy"}))
    lines = json.loads((config.run / "comparison.json").read_text())["not_measured"]
    assert "dpo: eval-dpo (safety) is not shown, since again is newer" in lines
    assert "safety: shown by sample, since fewer arms have an evaluation by greedy" in lines
    assert "- safety: shown by sample" in (config.run / "comparison.md").read_text()
    assert not any("eval-ppo" in line for line in lines)


def test_the_win_rate_at_equal_length_counts_clusters(world: World) -> None:
    """The 120 prompts of each row come from 12 documents, whose prompts are alike."""
    config, runs = compared(world)
    compare(config)
    by_item = _at_equal_length(config)
    for name in ("base", "sft", "dpo", "ppo", "prompted"):
        rows = [json.loads(line) for line in (runs / f"eval-{name}" / "items.jsonl").read_text().splitlines()]
        rows = [r | {"cluster": f"document {int(r['item_id'][1:]) // 10}"} for r in rows if r["item_id"][0] == "p"]
        resolved = read_run(runs / f"eval-{name}").resolved
        write_evaluation(runs, f"eval-{name}", Path(resolved["subject"]), rows, policy=resolved["policy"])
    again = CompareConfig(**config.model_dump() | {"run": runs / "compare-clusters"})
    compare(again)
    by_cluster = _at_equal_length(again)
    assert (by_item["clusters"], by_cluster["clusters"]) == (120, 12)
    assert by_cluster["value"] == pytest.approx(by_item["value"])
    assert by_cluster["high"] - by_cluster["low"] > 1.5 * (by_item["high"] - by_item["low"])


def _at_equal_length(config: CompareConfig) -> dict[str, Any]:
    rows = json.loads((config.run / "comparison.json").read_text())["rows"]
    return next(r["metrics"]["win_rate_vs_sft, equal length"] for r in rows if r["name"] == "dpo")


def test_an_sft_run_is_no_arm(world: World) -> None:
    config, runs = compared(world)
    with pytest.raises(BadInput, match="expected a run of dpo or ppo, found"):
        compare(CompareConfig(run=config.run, arms=[runs / "sft", runs / "ppo"]))


def test_an_arm_is_not_compared_with_its_own_copy(world: World) -> None:
    config, runs = compared(world)
    shutil.copytree(runs / "dpo", runs / "dpo-copy")
    with pytest.raises(BadInput, match="dpo and dpo-copy are one artefact"):
        compare(CompareConfig(run=config.run, arms=[runs / "dpo", runs / "dpo-copy"]))
