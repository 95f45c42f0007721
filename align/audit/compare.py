"""Stage `compare`: arms of one experiment side by side, RLHF against DPO.

In: finished policy runs and the finished evaluations of each. Out: ``comparison.json`` and ``comparison.md``:
every metric with interval and n for base, SFT, prompt-only, best-of-n and the arms; win rate raw and at equal
length; labels, configurations tried, seconds and memory; paired differences. Arms that did not start from the
same base, SFT, pairs and prompts are refused, and so are evaluations over different items. Not here: a winner.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from align.audit.contenders import (
    SHARED,
    Contender,
    Evaluated,
    arm,
    baselines,
    check_lineage,
    check_names,
    choose_evaluations,
)
from align.audit.evaluations import all_runs, kind_of
from align.audit.lineage import origin
from align.audit.metric_rows import at_equal_length, measured, shared_names, table_names
from align.core.config import StageConfig
from align.core.files import write_json, write_text
from align.core.run_record import RunRecord, finished_run
from align.core.runs import Run
from align.core.stage import stage
from align.core.stats.differences import paired_difference
from align.evals.training_reward import LABEL, trained_on, training_metrics
from align.report.tables import markdown

CAVEAT = "One beta a side is a point on each method's curve, not a verdict on the methods."


class CompareConfig(StageConfig):
    """``arms`` are policy runs; ``policy`` is how they acted where a suite was evaluated several times."""

    INPUTS: ClassVar[tuple[str, ...]] = ("arms", "evaluations")

    stage: Literal["compare"] = "compare"
    arms: list[Path] = Field(min_length=2, description="policy runs to set side by side")
    policy: Literal["sample", "greedy"] = Field(
        default="sample", description="which evaluations count: with sampled or with greedy answers"
    )

    @cached_property
    def records(self) -> list[RunRecord]:
        """Every run around the arms and this run."""
        return all_runs([self.run.parent, *(path.parent for path in self.arms)])

    @cached_property
    def arm_records(self) -> list[RunRecord]:
        return [finished_run(path, ("dpo", "ppo")) for path in self.arms]

    @cached_property
    def contenders(self) -> list[Contender]:
        """The rows of the table: what needs no training first."""
        arms = self.arm_records
        return [*baselines(arms[0], self.records), *(arm(record, self.records) for record in arms)]

    @property
    def evaluations(self) -> list[Path]:
        """Folders of the evaluation runs that the table reads: inputs, so that a newer one makes another run."""
        read = [e for one in self.contenders for e in one.evaluated.evaluations if one.acts(e.policy)]
        return sorted({Path(evaluation.record.path) for evaluation in read})


@stage
def compare(config: CompareConfig, run: Run) -> dict[str, Any]:
    """Check that the arms are comparable, measure all rows alike, and write the table."""
    contenders = config.contenders
    arms = [one for one in contenders if one.record is not None]
    check_lineage(config.arm_records)
    check_names(contenders)
    chosen = choose_evaluations(contenders, config.policy)
    rewards = trained_on(*config.arm_records)
    shared = shared_names(one for by_name in chosen.values() for one in by_name.values())
    rows = [_measure(one, chosen, rewards, shared) for one in contenders]
    result = {
        "arms": [one.name for one in arms],
        "rows": rows,
        "costs": [_cost(record, config.records) for record in config.arm_records],
        "differences": [d for a, b in combinations(arms, 2) for d in _differences(a, b, chosen, rewards, shared)],
        "evaluations": {suite: {n: one.name for n, one in by_name.items()} for suite, by_name in chosen.items()},
        "lineage": {key: origin(config.arm_records[0], key) for key in SHARED},
        "not_measured": [
            *_not_measured(contenders, chosen),
            *_not_judged(chosen, rewards),
            *_not_shown(contenders, chosen, config.policy),
        ],
        "caveat": CAVEAT,
    }
    write_json(run.path / "comparison.json", result)
    text = markdown(result)
    write_text(run.path / "comparison.md", text)
    if run.is_main:
        print(text)
    return {"arms": result["arms"], "caveat": CAVEAT, "rows": len(rows)}


def _measure(one: Contender, chosen: Evaluated, rewards: Collection[str], shared: Collection[str]) -> dict[str, Any]:
    """Measure a contender by every suite: each metric is an estimate with its counts."""
    metrics: dict[str, Any] = {}
    for by_name in chosen.values():
        if one.name not in by_name:
            continue
        evaluation = by_name[one.name]
        names = table_names(evaluation, training_metrics(evaluation.record, rewards), shared)
        metrics |= measured(evaluation, names)
        if one.record is not None and "sft" in by_name:
            metrics |= at_equal_length(evaluation, by_name["sft"], names)
    return {"name": one.name, "stage": one.record.stage if one.record else None, "metrics": metrics}


def _differences(
    a: Contender, b: Contender, chosen: Evaluated, rewards: Collection[str], shared: Collection[str]
) -> list[dict[str, Any]]:
    """Compute the paired differences a - b of every metric that both were measured on."""
    rows = []
    for suite, by_name in chosen.items():
        if a.name not in by_name or b.name not in by_name:
            continue
        first = by_name[a.name]
        for name, metric in table_names(first, training_metrics(first.record, rewards), shared).items():
            declared = first.declaration.metric(metric)
            new, old = (by_name[n].scores(metric) for n in (a.name, b.name))
            difference = paired_difference(new.by_item, old.by_item, kind_of(declared, new, old), clusters=new.clusters)
            facts = {"suite": suite, "metric": name, "higher_is_better": declared.higher_is_better}
            rows.append({"of": a.name, "minus": b.name} | facts | difference.model_dump())
    return rows


def _cost(arm: RunRecord, records: Sequence[RunRecord]) -> dict[str, Any]:
    """Report what an arm took: labels, configurations tried, seconds and memory, with the reward model it needed."""
    finished = [r for r in records if r.status == "finished"]
    pairs = next((r for r in finished if r.stage == "pairs" and r.artefact == arm.lineage["pairs"]), None)
    reward = next((r for r in finished if r.stage == "reward" and r.artefact == arm.lineage.get("reward")), None)
    tried = [r for r in finished if r.stage == arm.stage and r.lineage.get("pairs") == arm.lineage["pairs"]]
    memory = [r.peak_memory_mb for r in (arm, reward) if r and r.peak_memory_mb]
    return {
        "name": Path(arm.path).name,
        "stage": arm.stage,
        "train_pairs": pairs.headline.get("train_pairs") if pairs else None,
        "judgments": pairs.headline.get("judgments") if pairs else None,
        "configurations_tried": len(tried),
        "seconds": arm.seconds,
        "reward_seconds": reward.seconds if reward else None,
        "peak_memory_mb": max(memory) if memory else None,
    }


def _not_judged(chosen: Evaluated, rewards: Collection[str]) -> list[str]:
    """Name the win rates that are not shown, since their judge is a reward that an arm was trained on."""
    return [
        f"{name}: no win rate, since {one.name} judged by the reward that an arm was trained on ({LABEL})"
        for by_name in chosen.values()
        for name, one in by_name.items()
        if any(
            one.declaration.has(metric) and one.declaration.metric(metric).length_metric
            for metric in training_metrics(one.record, rewards)
        )
    ]


def _not_measured(contenders: Sequence[Contender], chosen: Evaluated) -> list[str]:
    missing = []
    for one in contenders:
        lacking = [
            suite
            for suite, by_name in chosen.items()
            if one.name not in by_name and not _has_no_suite(one, next(iter(by_name.values())).declaration.generates)
        ]
        if lacking or not chosen:
            missing.append(f"{one.name}: no evaluation of {', '.join(lacking) or 'any suite'}")
    return missing


def _not_shown(contenders: Sequence[Contender], chosen: Evaluated, preferred: str) -> list[str]:
    """Name the evaluations that the table passes over: those under the preferred policy, and older ones of the same."""
    lines = []
    for suite, by_name in chosen.items():
        acted = {by_name[one.name].policy for one in contenders if one.name in by_name and one.acting is None}
        lines += [
            f"{suite}: shown by {policy}, since fewer arms have an evaluation by {preferred}"
            for policy in sorted(acted - {preferred})
        ]
        for one in contenders:
            if (shown := by_name.get(one.name)) is None:
                continue
            for other in one.evaluated.evaluations:
                if (other.suite, other.policy) == (suite, shown.policy) and other.record.path != shown.record.path:
                    lines.append(f"{one.name}: {other.name} ({suite}) is not shown, since {shown.name} is newer")
    return lines


def _has_no_suite(one: Contender, is_generating: bool) -> bool:
    """Return whether a contender differs from SFT in its answers alone, and a suite generates none."""
    return one.acting is not None and not is_generating
