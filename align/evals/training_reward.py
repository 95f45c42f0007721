"""Which of an evaluation's numbers come from a reward that a policy was trained on.

Such a number says how far the reward was followed and not whether an answer is good (Gao et al. 2022, arXiv
2210.10760): it is named *training reward* wherever it stands, and enters no gate and no win rate. In: run records.
Not here: a reward of another name that learned from the same judgments (``eval`` notes that one). No torch.
"""

from __future__ import annotations

from collections.abc import Collection

from align.core.run_record import RunRecord

LABEL = "training reward"
REWARD_MODEL = "reward model"  # how results name the judge


def trained_on(*policies: RunRecord | None) -> frozenset[str]:
    """Rewards that policies, or what they started from, were trained on: artefact hashes and function names."""
    found: set[str] = set()
    for record in policies:
        if record is not None:
            found |= set(record.lineage.get("rewards", "").split())
            found |= {record.lineage["reward"]} if "reward" in record.lineage else set()
            found |= set(record.resolved.get("functions", []))
    return frozenset(found)


def training_metrics(evaluation: RunRecord, rewards: Collection[str]) -> frozenset[str]:
    """The metrics of an evaluation that one of these rewards gave; a win rate counts if it judged any prompt."""
    given = {REWARD_MODEL: {evaluation.inputs.get("reward", {}).get("sha256")}}
    if gold := evaluation.resolved.get("gold"):
        given[str(gold)] = {str(gold), evaluation.headline.get("gold")}  # as named, and where it is written
    judges = [judge for judge, names in given.items() if not names.isdisjoint(rewards)]
    if not judges:
        return frozenset()
    found = {"reward_score"} if REWARD_MODEL in judges else set()
    found |= {"gold_utility"} if gold in judges else set()
    of_wins = evaluation.headline.get("metrics", {}).get("win_rate_vs_sft", {}).get("judges")
    asked = of_wins if of_wins is not None else [gold or REWARD_MODEL]
    return frozenset(found | ({"win_rate_vs_sft"} if any(j.startswith(tuple(judges)) for j in asked) else set()))
