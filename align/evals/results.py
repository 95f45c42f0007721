"""Results of single items, and what they come to: a metric's mean with its counts and interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from align.core.records import ItemResult
from align.core.stats.differences import metric_of
from align.core.stats.estimates import mean_interval
from align.evals.generation import Answered


def item_result(
    one: Answered, metric: str, judge: str, score: float | None, reason: str | None, number: int = 0
) -> ItemResult:
    """The result of an item's answer ``number``; ``reason`` says why there is no score (the item's own goes first)."""
    answer = one.answers[number] if one.answers else None
    return ItemResult(
        suite=one.item.suite,
        metric=metric,
        item_id=one.item.id,
        family=one.item.family,
        cluster=one.item.cluster,
        score=score,
        reason=None if score is not None else one.reason or reason,
        judge=judge,
        sample=number,
        text=answer.text if answer else None,
        prompt=one.item.prompt_text,
        ended=answer.ended if answer else None,
        n_tokens=len(answer.ids) if answer else None,
        reasoning_content=answer.message.get("reasoning_content") if answer else None,
    )


def summarise(results: Sequence[ItemResult], chances: dict[str, float] | None = None) -> dict[str, dict[str, Any]]:
    """Every metric's mean with interval and counts, its judges, and the same by family where there are several."""
    by_metric: dict[str, list[ItemResult]] = {}
    for result in results:
        by_metric.setdefault(result.metric, []).append(result)
    summary = {}
    for metric, found in by_metric.items():
        entry = _estimate(found) | {"judges": sorted({result.judge for result in found})}
        families = list(dict.fromkeys(result.family for result in found))
        if len(families) > 1:
            entry["families"] = {
                family: _estimate([result for result in found if result.family == family]) for family in families
            }
        if chances and metric in chances:
            entry["chance"] = chances[metric]
        summary[metric] = entry
    return summary


def _estimate(results: Sequence[ItemResult]) -> dict[str, Any]:
    kind = metric_of(results[0].metric).kind
    return mean_interval([r.score for r in results], kind, [r.cluster or r.item_id for r in results])._asdict()
