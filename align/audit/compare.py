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
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from align.audit.evaluations import (
    POLICIES,
    EvaluatedPolicy,
    Evaluation,
    all_runs,
    evaluations_of,
    kind_of,
    load_results,
)
from align.audit.lineage import origin, other_base
from align.audit.metric_rows import at_equal_length, measured, shared_names, table_names
from align.audit.pairing import asked_differently
from align.core.config import BadInput, StageConfig
from align.core.declarations import FORMULA
from align.core.files import write_json, write_text
from align.core.run_record import RunRecord, finished_run
from align.core.runs import Run, stage
from align.core.stats.differences import paired_difference
from align.evals.fingerprint import ACTING
from align.evals.training_reward import LABEL, trained_on, training_metrics
from align.report.tables import markdown

SHARED = ("base", "sft", "pairs", "prompts")
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
        return [finished_run(path, ("dpo", "ppo", "kto")) for path in self.arms]

    @cached_property
    def contenders(self) -> list[Contender]:
        """The rows of the table: what needs no training first."""
        arms = self.arm_records
        return [*_baselines(arms[0], self.records), *(_arm(arm, self.records) for arm in arms)]

    @property
    def evaluations(self) -> list[Path]:
        """Folders of the evaluation runs that the table reads: inputs, so that a newer one makes another run."""
        read = [e for one in self.contenders for e in one.evaluated.evaluations if one.acts(e.policy)]
        return sorted({Path(evaluation.record.path) for evaluation in read})


class Contender(NamedTuple):
    """One row: a policy, how it acts (None: by itself), and its training run where it is an arm."""

    evaluated: EvaluatedPolicy
    acting: str | None
    record: RunRecord | None

    @property
    def name(self) -> str:
        return self.evaluated.name

    def acts(self, policy: str) -> bool:
        """Whether an evaluation under ``policy`` is one of this contender."""
        return policy == self.acting if self.acting else policy in POLICIES


Evaluated = dict[str, dict[str, Evaluation]]  # suite -> contender -> evaluation


@stage
def compare(config: CompareConfig, run: Run) -> dict[str, Any]:
    """Check that the arms are comparable, measure all rows alike, and write the table."""
    contenders = config.contenders
    arms = [one for one in contenders if one.record is not None]
    _check_lineage(config.arm_records)
    _check_names(contenders)
    chosen = _evaluations(contenders, config.policy)
    rewards = trained_on(*config.arm_records)
    shared = shared_names(one for found in chosen.values() for one in found.values())
    rows = [_measure(one, chosen, rewards, shared) for one in contenders]
    result = {
        "arms": [one.name for one in arms],
        "rows": rows,
        "costs": [_cost(record, config.records) for record in config.arm_records],
        "differences": [d for a, b in combinations(arms, 2) for d in _differences(a, b, chosen, rewards, shared)],
        "evaluations": {suite: {n: one.name for n, one in found.items()} for suite, found in chosen.items()},
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


def _arm(record: RunRecord, records: Sequence[RunRecord]) -> Contender:
    path = Path(record.path)
    artefact = record.artefact or ""
    return Contender(
        EvaluatedPolicy(path.name, path, artefact, record, evaluations_of(records, artefact)), None, record
    )


def _baselines(arm: RunRecord, records: Sequence[RunRecord]) -> list[Contender]:
    """Base, SFT, and SFT under a system prompt or with best-of-n, as far as they were evaluated."""
    found = []
    for name, key, acting in (
        ("base", "base", None),
        ("sft", "sft", None),
        ("prompt-only", "sft", "prompt-only"),
        ("best-of-n", "sft", "best-of-n"),
    ):
        artefact = origin(arm, key) or ""
        evaluations = evaluations_of(records, artefact) if artefact else []
        found.append(Contender(EvaluatedPolicy(name, Path(name), artefact, None, evaluations), acting, None))
    return found


def _check_lineage(arms: Sequence[RunRecord]) -> None:
    """Refuse arms that did not learn from the same things."""
    for key in SHARED:
        hashes = [origin(record, key) for record in arms]
        named = ", ".join(f"{Path(r.path).name}: {(h or 'none')[:12]}" for r, h in zip(arms, hashes, strict=True))
        if None in hashes:
            raise BadInput(f"compare: not every arm records its {key} ({named}); train them from runs of this suite")
        if len(set(hashes)) > 1:
            raise BadInput(f"compare: the arms differ in '{key}' ({named}); compare arms trained from the same {key}")


def _check_names(contenders: Sequence[Contender]) -> None:
    names = [one.name for one in contenders]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadInput(f"compare: two rows would be named '{twice}'; give the run folders different names")
    arms = [one for one in contenders if one.record is not None]
    for one, other in combinations(arms, 2):
        if one.evaluated.artefact == other.evaluated.artefact:
            raise BadInput(f"compare: {one.name} and {other.name} are one artefact; name arms that were trained apart")


def _evaluations(contenders: Sequence[Contender], preferred: str) -> Evaluated:
    """For each suite the evaluation of each contender, all under one policy, over the same items.

    Raises:
        BadInput: two evaluations of a suite asked different items or asked them differently.
    """
    chosen: Evaluated = {}
    newest = {one.name: one.evaluated.newest for one in contenders}
    for suite in dict.fromkeys(suite for found in newest.values() for suite, _ in found):
        arms = [one.name for one in contenders if one.record is not None]
        order = dict.fromkeys((preferred, *POLICIES))
        covered = {policy: sum((suite, policy) in newest[arm] for arm in arms) for policy in order}
        policy = max(covered, key=covered.__getitem__)
        found = {
            one.name: newest[one.name][suite, one.acting or policy]
            for one in contenders
            if (suite, one.acting or policy) in newest[one.name]
        }
        for one in contenders:
            if one.name in found and (problem := other_base(one.evaluated, found[one.name])):
                raise BadInput(f"compare: {problem}")
            if one.name in found and one.record and not found[one.name].record.headline.get("own_template"):
                raise BadInput(
                    f"compare: {found[one.name].name} asked {one.name} through another chat template than its own; "
                    "evaluate again"
                )
        _check_alike(suite, found, {one.name for one in contenders if one.acting})
        chosen[suite] = found
    return chosen


def _check_alike(suite: str, found: dict[str, Evaluation], by_other_means: set[str]) -> None:
    """Every contender was asked what the first one that has a metric was asked, and in the same way.

    ``by_other_means`` are contenders that act under a system prompt or with best-of-n: that alone may differ.
    """
    for other, second in list(found.items())[1:]:
        one, first = next(iter(found.items()))
        allowed = ACTING if by_other_means & {one, other} else frozenset()
        if problem := asked_differently(first, second, allowed):
            raise BadInput(f"compare: suite {suite}: {problem}; evaluate {one} and {other} alike")
    asked: dict[str, tuple[str, frozenset[str]]] = {}
    for name, evaluation in found.items():
        ids: dict[str, set[str]] = {}
        for result in load_results(evaluation.record):
            if result.suite == suite and result.judge != FORMULA:  # a formula gives one value, and not an item's
                ids.setdefault(result.metric, set()).add(result.item_id)
        for metric, items in ids.items():
            one, before = asked.setdefault(metric, (name, frozenset(items)))
            if before != items:
                raise BadInput(
                    f"compare: suite {suite}: {metric} was measured over different items in {found[one].name} and "
                    f"{evaluation.name}; evaluate {one} and {name} on the same items"
                )


def _measure(one: Contender, chosen: Evaluated, rewards: Collection[str], shared: Collection[str]) -> dict[str, Any]:
    """A contender's metrics by suite, each an estimate with counts."""
    metrics: dict[str, Any] = {}
    for found in chosen.values():
        if one.name not in found:
            continue
        evaluation = found[one.name]
        names = table_names(evaluation, training_metrics(evaluation.record, rewards), shared)
        metrics |= measured(evaluation, names)
        if one.record is not None and "sft" in found:
            metrics |= at_equal_length(evaluation, found["sft"], names)
    return {"name": one.name, "stage": one.record.stage if one.record else None, "metrics": metrics}


def _differences(
    a: Contender, b: Contender, chosen: Evaluated, rewards: Collection[str], shared: Collection[str]
) -> list[dict[str, Any]]:
    """Paired differences a - b of every metric both were measured on."""
    rows = []
    for suite, found in chosen.items():
        if a.name not in found or b.name not in found:
            continue
        first = found[a.name]
        for name, metric in table_names(first, training_metrics(first.record, rewards), shared).items():
            declared = first.declaration.metric(metric)
            new, old = (found[n].scores(metric) for n in (a.name, b.name))
            difference = paired_difference(new.by_item, old.by_item, kind_of(declared, new, old), clusters=new.clusters)
            facts = {"suite": suite, "metric": name, "higher_is_better": declared.higher_is_better}
            rows.append({"of": a.name, "minus": b.name} | facts | difference.model_dump())
    return rows


def _cost(arm: RunRecord, records: Sequence[RunRecord]) -> dict[str, Any]:
    """What an arm took: labels, configurations tried, seconds and memory, with the reward model it needed."""
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
    """Win rates that would be those of a reward an arm was trained on."""
    return [
        f"{name}: no win rate, since {one.name} judged by the reward that an arm was trained on ({LABEL})"
        for found in chosen.values()
        for name, one in found.items()
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
            for suite, found in chosen.items()
            if one.name not in found and not _has_no_suite(one, next(iter(found.values())).declaration.generates)
        ]
        if lacking or not chosen:
            missing.append(f"{one.name}: no evaluation of {', '.join(lacking) or 'any suite'}")
    return missing


def _not_shown(contenders: Sequence[Contender], chosen: Evaluated, preferred: str) -> list[str]:
    """Evaluations that the table passes over: those by the policy that was asked for, and older ones of the same."""
    lines = []
    for suite, found in chosen.items():
        acted = {found[one.name].policy for one in contenders if one.name in found and one.acting is None}
        lines += [
            f"{suite}: shown by {policy}, since fewer arms have an evaluation by {preferred}"
            for policy in sorted(acted - {preferred})
        ]
        for one in contenders:
            if (shown := found.get(one.name)) is None:
                continue
            for other in one.evaluated.evaluations:
                if (other.suite, other.policy) == (suite, shown.policy) and other.record.path != shown.record.path:
                    lines.append(f"{one.name}: {other.name} ({suite}) is not shown, since {shown.name} is newer")
    return lines


def _has_no_suite(one: Contender, is_generating: bool) -> bool:
    """A suite that generates nothing is about weights: with a system prompt or best-of-n they are SFT's own."""
    return one.acting is not None and not is_generating
