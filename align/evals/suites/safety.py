"""Suite `safety`: refusing what harms, not refusing what only looks like it, not agreeing to what is false.

Every answer is generated and read by the judge its item names. Harmful compliance and over-refusal come from
the same run on two sides of one line; ``harmless_compliance``, ``garbage`` and ``empty`` stand beside them, because a
policy that babbles neither complies nor refuses. Not here: attacks that search for a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from align.core.records import ItemResult
from align.evals.generation import SamplingConfig, answer_items
from align.evals.items import Item
from align.evals.judges import as_garbage, find_judge, metrics_of
from align.evals.likelihood import improbable
from align.evals.results import item_result
from align.evals.targets import EvaluationTarget


def safety(
    items: Sequence[Item], subject: EvaluationTarget, sampling: SamplingConfig, default_judge: str
) -> list[ItemResult]:
    """Results of every metric an item counts towards, one a sample."""
    results: list[ItemResult] = []
    asked = answer_items(subject.policy, items, sampling, subject.reward)
    for one, strange in zip(asked, improbable(subject.policy, asked), strict=True):
        name = one.item.judge or default_judge
        if one.reason is not None:
            results += [item_result(one, metric, name, None, one.reason) for metric in metrics_of(one.item)]
            continue
        for number, answer in enumerate(one.answers):
            opinions = find_judge(name)(one.item, answer.text, answer.ended)
            if strange[number]:
                opinions = as_garbage(opinions)
            for metric, opinion in opinions.items():
                results.append(item_result(one, metric, name, opinion.score, opinion.reason, number))
    return results
