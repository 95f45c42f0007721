"""A suite of your own, and a gate on its metric: the tuned policy still answers in a few words.

    python examples/custom_suite_with_gate.py [FOLDER]

The suite declares its metrics; evaluation, audit, comparison and report need nothing else. This file is the module that
`suite: module:Class` names. Exit codes are those of `align audit`: 0 pass, 1 fail, 3 insufficient evidence.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import align
from align.core.declarations import Metric
from align.core.records import ItemResult
from align.evals.generation import SamplingConfig, answer_items
from align.evals.items import Item
from align.evals.results import item_result
from align.evals.suite import Suite
from align.evals.targets import EvaluationTarget

BASE = Path(align.__path__[0]) / "pocket" / "base"
GATES = "gates:\n- {name: answers stay short, suite: brevity, metric: long, against: sft, margin: 0.2, min_items: 30}\n"
EXIT_CODES = {"pass": 0, "fail": 1, "insufficient": 3}


class Brevity(Suite):
    """Whether an answer has more than ``most_words`` words."""

    name = "brevity"
    title = "Brevity"
    metrics = (Metric(name="long", higher_is_better=False, kind="binary"),)
    most_words: int = 12

    def results(self, items: Sequence[Item], target: EvaluationTarget, sampling: SamplingConfig) -> list[ItemResult]:
        return [
            item_result(
                one, "long", "word count", None if text is None else float(len(text.split()) > self.most_words), None
            )
            for one in answer_items(target.policy, items, sampling, target.reward)
            for text in [one.answers[0].text if one.answers else None]
        ]


def main(folder: Path) -> align.RunRecord:
    world = align.PocketConfig(
        run=folder / "world", demonstrations=200, prompts=60, held_out_prompts=60, preference_items=60
    )
    align.write_pocket_world(world)
    first = align.SFTConfig(run=folder / "sft", model=BASE, data=world.run, epochs=1, optim={"lr": 1.5e-3})
    align.sft(first)
    tuned = align.SFTConfig(run=folder / "tuned", model=first.run, data=world.run, epochs=1, optim={"lr": 1.5e-3})
    align.sft(tuned)

    items, gates = folder / "items" / "brevity.jsonl", folder / "gates.yaml"
    items.parent.mkdir(exist_ok=True)
    items.write_text("".join(json.dumps(item) + "\n" for item in _items(world.run)))
    gates.write_text(GATES)
    suite = [{"kind": "custom_suite_with_gate:Brevity", "most_words": 12}]
    for name, subject in (("eval-sft", first.run), ("eval-tuned", tuned.run)):
        align.evaluate(
            align.EvalConfig(run=folder / name, subject=subject, suite=suite, items=items, max_new_tokens=48)
        )
    return align.run_audit(
        align.AuditConfig(run=folder / "audit", base=BASE, candidate=tuned.run, sft=first.run, gates=gates)
    )


def _items(world: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (world / "preference.jsonl").read_text().splitlines()]
    return [{"id": row["id"], "suite": "brevity", "kind": "generate", "prompt": row["prompt"]} for row in rows]


if __name__ == "__main__":
    record = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/suite"))
    print(record.headline["sentence"])
    sys.exit(EXIT_CODES[record.headline["verdict"]])
