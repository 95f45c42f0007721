"""Let a policy answer items, let judges read the answers, and write down every opinion as a result.

What most suites that generate need. An answer that the base model finds improbable counts as garbage, whatever the
judge reads in it. An item without answers is one failed result per metric. Not here: the judges.
"""

from __future__ import annotations

from collections.abc import Sequence

from align.core.config import BadInput
from align.core.declarations import Declaration
from align.core.records import ItemResult
from align.evals.generation import Answered, SamplingConfig, answer_items
from align.evals.items import Item
from align.evals.judge import Judge, Opinion, Opinions, Written, read_answers
from align.evals.likelihood import improbable
from align.evals.results import SILENT, item_result, metrics_by_item
from align.evals.suite import Suite
from align.evals.targets import EvaluationTarget


def judged_answers(
    suite: Suite, items: Sequence[Item], target: EvaluationTarget, sampling: SamplingConfig
) -> list[ItemResult]:
    """Return one result per answer and metric that its item counts towards.

    Raises:
        BadInput: the suite declares no judge, or that it generates nothing.
    """
    if not suite.generates:
        raise BadInput(f"suite {suite.kind}: {SILENT}")
    judges = [target.judge_of(item, suite.judged_by) for item in items]
    answered = answer_items(target.policy, items, sampling, target.reward)
    is_improbable = improbable(target.policy, answered)
    metrics, declaration = metrics_by_item(suite, items), suite.declaration()
    opinions = _opinions(declaration, answered, judges, metrics)
    results: list[ItemResult] = []
    for i, (one, judge) in enumerate(zip(answered, judges, strict=True)):
        for number, by_metric in enumerate(opinions[i] or [{}]):
            for name in metrics[i]:
                opinion = by_metric.get(name, Opinion(None, f"the judge {judge.kind} has no opinion on {name}"))
                of_garbage = declaration.metric(name).of_garbage
                if opinions[i] and is_improbable[i][number] and of_garbage is not None:
                    opinion = Opinion(of_garbage)
                results.append(item_result(one, name, judge.kind, opinion.score, opinion.reason, number))
    return results


def _opinions(
    declaration: Declaration, answered: Sequence[Answered], judges: Sequence[Judge], metrics: Sequence[Sequence[str]]
) -> list[list[Opinions]]:
    """Return opinions by item and answer; every judge reads all of its answers at once."""
    opinions: list[list[Opinions]] = [[] for _ in answered]
    for kind, judge in {judge.kind: judge for judge in judges}.items():
        own = [
            (i, Written(one.item, answer.text, answer.ended))
            for i, one in enumerate(answered)
            if judges[i].kind == kind
            for answer in one.answers
        ]
        by_answer = read_answers(judge, [answer for _, answer in own])
        for (i, answer), by_metric in zip(own, by_answer, strict=True):
            undeclared = [name for name in by_metric if not declaration.has(name)]
            missing = [name for name in metrics[i] if name not in by_metric]
            if undeclared and missing:  # misspelt; where none is missing, the judge also reads for other suites
                raise BadInput(
                    f"judge {kind}: item '{answer.item.id}': gives an opinion on '{undeclared[0]}', which suite "
                    f"{declaration.suite} does not declare, and none on '{missing[0]}'; mend the name, or choose "
                    "another judge"
                )
            opinions[i].append(by_metric)
    return opinions
