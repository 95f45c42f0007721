"""Find the metrics of an evaluation that come from a reward that a policy was trained on.

Such a number says how far the reward was followed and not whether an answer is good (Gao et al. 2022, arXiv
2210.10760): it is named *training reward* wherever it is shown, and enters no gate and no win rate. In: run records.
Not here: a reward of another name that learned from the same judgments (``eval`` notes that one). No torch.
"""

from __future__ import annotations

from collections.abc import Collection

from align.core.declarations import Metric
from align.core.run_record import RunRecord
from align.evals.declared import declaration_of, suites_of

LABEL = "training reward"
REWARD_MODEL = "reward model"  # how results name the judge


def trained_on(*policies: RunRecord | None) -> frozenset[str]:
    """Return the rewards that policies, or their starts, were trained on: artefact hashes and function names."""
    rewards: set[str] = set()
    for record in policies:
        if record is not None:
            rewards |= set(record.lineage.get("rewards", "").split())
            rewards |= {record.lineage["reward"]} if "reward" in record.lineage else set()
            rewards |= set(record.resolved.get("functions", []))
    return frozenset(rewards)


def training_metrics(evaluation: RunRecord, rewards: Collection[str]) -> frozenset[str]:
    """Return the metrics of an evaluation that one of these rewards gave, to any of its items."""
    given = {REWARD_MODEL: {evaluation.inputs.get("reward", {}).get("sha256")}}
    if gold := evaluation.resolved.get("gold"):
        given[str(gold)] = {str(gold), evaluation.headline.get("gold")}  # as named, and where it is written
    judges = tuple(judge for judge, names in given.items() if not names.isdisjoint(rewards))
    if not judges:
        return frozenset()
    declared = [metric for suite in suites_of(evaluation) for metric in declaration_of(evaluation, suite).metrics]
    return frozenset(
        metric.name
        for metric in declared
        if any(judge.startswith(judges) for judge in _judges_of(metric, evaluation, gold))
    )


def _judges_of(metric: Metric, evaluation: RunRecord, gold: str | None) -> list[str]:
    """Return who judged a metric: as recorded, else the first given of the inputs that judge it."""
    if not metric.judged_by:
        return []
    recorded = evaluation.headline.get("metrics", {}).get(metric.name, {}).get("judges")
    named = {"gold": gold, "reward": REWARD_MODEL}
    return recorded if recorded is not None else [name for key in metric.judged_by if (name := named[key])][:1]
