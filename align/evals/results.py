"""Check the results of items, and summarise them: every metric's mean with its counts and interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from align.core.config import BadInput, build
from align.core.declarations import FORMULA, Declaration, Metric
from align.core.records import ItemResult
from align.core.stats.estimates import mean_interval
from align.evals.generation import Answered
from align.evals.items import Item
from align.evals.suite import Suite

SILENT = "it samples answers and declares generates = False; take that out, so that its record says how they were drawn"


def item_result(
    one: Answered, metric: str, judge: str, score: float | None, reason: str | None, number: int = 0
) -> ItemResult:
    """Make the result of an item's answer ``number``; ``reason``: why there is no score (the item's own goes first)."""
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


def metrics_by_item(suite: Suite, items: Sequence[Item]) -> list[Sequence[str]]:
    """Return the metrics that each item counts towards.

    Raises:
        BadInput: the suite does not declare one of them.
    """
    metrics, declaration = [suite.call(list | tuple, suite.metrics_of, item) for item in items], suite.declaration()
    for metric in {str(metric) for own in metrics for metric in own}:
        declaration.metric(metric)
    return metrics


def chances_of(suite: Suite, items: Sequence[Item]) -> dict[str, float]:
    """Return what guessing scores, by metric or slice.

    Raises:
        BadInput: the suite does not declare one of the metrics, or no chance of it; or a value lies outside 0 to 1.
    """
    chances, declaration = suite.call(dict, suite.chance, items), suite.declaration()
    for metric, chance in chances.items():
        declared = declaration.metric(str(metric))
        if not (isinstance(chance, Real) and 0 <= chance <= 1):
            raise BadInput(
                f"suite {suite.kind}: chance: gives {chance!r} for {metric}, which lies from 0 to 1; mend it"
            )
        if not declared.has_chance:
            raise BadInput(f"suite {suite.kind}: chance: gives one of {metric}; declare it with has_chance=True")
    return chances


def check_results(suite: Suite, items: Sequence[Item], results: Sequence[ItemResult]) -> None:
    """Refuse results that do not fit the suite's items, such as an item that was left out.

    A value that a formula gives for the whole evaluation belongs to no item.

    Raises:
        BadInput: a result that contradicts itself, or of another suite, of an item that is not there (or with another
            family or cluster than the item's) or of an undeclared metric; two results of one answer and metric, or
            one beside a formula's value; a binary score that is neither 0 nor 1; an answer where none is generated; or
            an item without a result of a metric that it counts towards and that others were measured on.
    """
    where, declaration = f"suite {suite.name}", suite.declaration()
    if strange := next((r for r in results if not isinstance(r, ItemResult)), None):
        raise BadInput(f"{where}: one of its results is of type {type(strange).__name__}, not an ItemResult")
    known = {item.id: item for item in items}
    seen: set[tuple[str, str, int]] = set()
    measured: dict[str, set[str]] = {}
    formulas = [result.metric for result in results if result.judge == FORMULA]
    if beside := next((m for m in formulas if sum(result.metric == m for result in results) > 1), None):
        raise BadInput(
            f"{where}: gives other results of {beside} beside one by '{FORMULA}', which names a formula's one value "
            "for the whole evaluation; name the judge otherwise"
        )
    for result in results:
        build(ItemResult, result.model_dump(warnings=False), where)
        if result.suite != suite.name:
            raise BadInput(f"{where}: gives a result of suite {result.suite}")
        metric = declaration.metric(result.metric)
        if result.judge == FORMULA:
            continue
        if (item := known.get(result.item_id)) is None:
            raise BadInput(f"{where}: gives a result of item '{result.item_id}', which is none of its items")
        _check_result(suite, item, metric, result)
        key = (result.item_id, result.metric, result.sample)
        if key in seen:
            raise BadInput(f"{where}: gives {result.metric} of item '{result.item_id}', answer {result.sample}, twice")
        seen.add(key)
        measured.setdefault(result.metric, set()).add(result.item_id)
    answered = set().union(*measured.values()) if measured else set()
    for item, metrics in zip(items, metrics_by_item(suite, items), strict=True):
        lacking = [m for m in metrics if m in measured and item.id not in measured[m]]
        if lacking or item.id not in answered:
            raise BadInput(
                f"{where}: gives no result of {lacking[0] if lacking else 'any metric'} for item '{item.id}'; give one "
                "whose score is None, with the reason"
            )


def _check_result(suite: Suite, item: Item, metric: Metric, result: ItemResult) -> None:
    """Refuse a result that does not fit its item, its metric's kind, or a suite that generates nothing."""
    gives = f"suite {suite.name}: gives"
    what = f"{result.metric} of item '{result.item_id}'"
    for name, given, own in (("family", result.family, item.family), ("cluster", result.cluster, item.cluster)):
        if given != own:
            raise BadInput(f"{gives} {what} with {name} {given!r}; the item's is {own!r}: give its own")
    if not suite.generates and (result.ended is not None or (item.kind == "generate" and result.text is not None)):
        raise BadInput(f"{gives} {what} with an answer: {SILENT}")
    if metric.kind == "binary" and result.score not in (None, 0.0, 1.0):
        raise BadInput(f"{gives} {result.score:g} as {what}, which is declared to be 0 or 1 (kind binary)")


def summarise(
    results: Sequence[ItemResult],
    declarations: Mapping[str, Declaration],
    chances: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return every metric's mean with interval, counts and judges, and the same by family where there are several.

    Args:
        declarations: by suite. A metric that two suites of the results have is named ``<metric> (<suite>)``.
        chances: what guessing scores, by suite and metric.

    Raises:
        BadInput: a result of a metric that its suite does not declare, or outside the metric's range.
    """
    by_metric: dict[tuple[str, str], list[ItemResult]] = {}
    for result in results:
        by_metric.setdefault((result.suite, result.metric), []).append(result)
    names = [metric for _, metric in by_metric]
    summary = {}
    for (suite, metric), own in by_metric.items():
        declared = declarations[suite].metric(metric)
        entry = _estimate(own, declared) | {"suite": suite, "judges": sorted({result.judge for result in own})}
        families = list(dict.fromkeys(result.family for result in own))
        if len(families) > 1:
            entry["families"] = {
                family: _estimate([result for result in own if result.family == family], declared)
                for family in families
            }
        if (chance := (chances or {}).get(suite, {}).get(metric)) is not None:
            entry["chance"] = chance
        summary[metric if names.count(metric) == 1 else f"{metric} ({suite})"] = entry
    return summary


def _estimate(results: Sequence[ItemResult], declared: Metric) -> dict[str, Any]:
    low, high = declared.span
    if outside := next((r for r in results if r.score is not None and not low <= r.score <= high), None):
        raise BadInput(
            f"suite {outside.suite}: item '{outside.item_id}' has {outside.score:g} as its {outside.metric}, which "
            f"lies from {low:g} to {high:g}; mend the suite or its judge {outside.judge}"
        )
    scores, clusters = [r.score for r in results], [r.cluster or r.item_id for r in results]
    return mean_interval(scores, declared.kind, clusters).model_dump()
