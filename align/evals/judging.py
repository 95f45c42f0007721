"""Let a policy answer items, let judges read the answers, and write down every opinion as a result.

What most suites that generate need. An answer that the base model finds improbable counts as garbage, whatever the
judge reads in it. An item without answers is one failed result per metric. Not here: the judges.
"""

from __future__ import annotations

from collections.abc import Sequence

from align.core.records import ItemResult
from align.evals.generation import Answered, SamplingConfig, answer_items
from align.evals.items import Item
from align.evals.judge import Judge, Opinion, Opinions, Written
from align.evals.likelihood import improbable
from align.evals.results import item_result
from align.evals.suite import Suite
from align.evals.targets import EvaluationTarget


def judged_answers(
    suite: Suite, items: Sequence[Item], target: EvaluationTarget, sampling: SamplingConfig
) -> list[ItemResult]:
    """One result per answer and metric that its item counts towards."""
    answered = answer_items(target.policy, items, sampling, target.reward)
    is_improbable = improbable(target.policy, answered)
    judges = [target.judge_of(item, suite.judged_by) for item in items]
    opinions = _opinions(answered, judges)
    of_garbage = {metric.name: metric.of_garbage for metric in suite.metrics}
    results: list[ItemResult] = []
    for one, judge, by_answer, odd in zip(answered, judges, opinions, is_improbable, strict=True):
        for number, found in enumerate(by_answer or [{}]):
            for name in suite.metrics_of(one.item):
                opinion = found.get(name, Opinion(None, f"the judge {judge.kind} has no opinion on {name}"))
                if by_answer and odd[number] and of_garbage[name] is not None:
                    opinion = Opinion(of_garbage[name])
                results.append(item_result(one, name, judge.kind, opinion.score, opinion.reason, number))
    return results


def _opinions(answered: Sequence[Answered], judges: Sequence[Judge]) -> list[list[Opinions]]:
    """Opinions by item and answer; every judge reads all of its answers at once."""
    found: list[list[Opinions]] = [[] for _ in answered]
    for kind, judge in {judge.kind: judge for judge in judges}.items():
        places = [
            (i, answer)
            for i, (one, its_judge) in enumerate(zip(answered, judges, strict=True))
            if its_judge.kind == kind
            for answer in one.answers
        ]
        given = judge.opinions([Written(answered[i].item, answer.text, answer.ended) for i, answer in places])
        for (i, _), opinions in zip(places, given, strict=True):
            found[i].append(opinions)
    return found
