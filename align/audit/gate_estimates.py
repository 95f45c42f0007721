"""Estimate what a gate is about: a mean or a paired difference, with bounds that hold for any missing answers.

In: the scores of one evaluation, or of two. Out: the estimate as scored, and bounds with every missing sample at its
worst: the candidate's at the worst value of the metric's range and the reference's at the best, for the other bound the
other way round. Items that share a cluster count by their clusters. Not here: verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from align.audit.evaluations import Scores, kind_of
from align.core.config import Frozen
from align.core.declarations import Metric
from align.core.stats.differences import ANY, UNIT, Bounds, Range, difference_bounds, mean_bounds, units
from align.core.stats.estimates import Kind

Items = Mapping[str, float]


class SampleCounts(Frozen):
    """The results that one side of a gate should have: as many of every item, of which some have no score."""

    per_item: int
    expected: int
    scored: int
    missing: int


class GateEstimate(NamedTuple):
    """An estimate of a metric with bounds.

    ``at_worst``: the estimate with missing samples at their worst; None where none is missing or nothing bounds them.
    ``bounds`` take missing samples so for each side, ``as_scored`` leaves them out. ``values`` are those of independent
    units (items, else clusters) as scored, and ``span`` is the range of one.
    """

    metric: Metric
    value: float | None
    at_worst: float | None
    bounds: Bounds
    as_scored: Bounds
    values: list[float]
    kind: Kind
    span: Range
    n: int
    n_scored: int
    n_clusters: int | None
    is_complete: bool
    outside: str | None


BoundsOf = Callable[[Sequence[float], Kind, float, Range], Bounds]


def count_samples(scores: Scores) -> SampleCounts:
    expected, scored = scores.n_expected, scores.n_scored
    return SampleCounts(per_item=scores.per_item, expected=expected, scored=scored, missing=expected - scored)


def mean_of(scores: Scores) -> float | None:
    """Return the mean over items of the means of their scored samples."""
    values = [value for value in scores.by_item.values() if value is not None]
    return float(np.mean(values)) if values else None


def measure_difference(
    metric: Metric, new: Scores, old: Scores, alpha: float, span: Range | None = None
) -> GateEstimate:
    """Estimate candidate - reference over the items of both, which must be the same.

    Args:
        span: range of an item's difference, where the metric itself has none.
    """
    kind = kind_of(metric, new, old)
    clusters = {**old.clusters, **new.clusters}
    before = old.by_item
    scored = {i: a - b for i, a in new.by_item.items() if a is not None and (b := before[i]) is not None}
    if kind == "unbounded":
        filled = _filled(scored, new.incomplete | old.incomplete, span)
        return _measure(metric, scored, filled, clusters, len(before), kind, span or ANY, alpha, difference_bounds)
    (lowest, highest), (low, high) = ((side.filled(0.0), side.filled(1.0)) for side in (new, old))
    filled = [{i: lowest[i] - high[i] for i in lowest}, {i: highest[i] - low[i] for i in highest}]
    return _measure(metric, scored, filled, clusters, len(before), kind, (-1.0, 1.0), alpha, difference_bounds)


def measure_mean(metric: Metric, new: Scores, alpha: float, span: Range | None = None) -> GateEstimate:
    """Estimate the candidate's mean over items; ``span`` is the range of an item's value, where the metric has none."""
    kind = kind_of(metric, new)
    items = new.by_item
    scored = {i: value for i, value in items.items() if value is not None}
    if kind == "unbounded":
        filled = _filled(scored, new.incomplete, span)
        reach = span or metric.span
        return _measure(metric, scored, filled, new.clusters, len(items), kind, reach, alpha, mean_bounds)
    filled = [new.filled(0.0), new.filled(1.0)]
    return _measure(metric, scored, filled, new.clusters, len(items), kind, UNIT, alpha, mean_bounds)


def _filled(scored: Items, incomplete: set[str], span: Range | None) -> Sequence[Items] | None:
    """Return the items with all missing samples at either end of the range; None where there is no range."""
    if not incomplete:
        return [scored, scored]
    return None if span is None else [{**scored, **dict.fromkeys(incomplete, end)} for end in span]


def _measure(
    metric: Metric,
    scored: Items,
    filled: Sequence[Items] | None,
    clusters: Mapping[str, str],
    n_items: int,
    kind: Kind,
    span: Range,
    alpha: float,
    bounds_of: BoundsOf,
) -> GateEstimate:
    """Estimate from the scored items, with bounds that take the missing ones at either end (``filled``)."""

    def bounds(items: Items) -> Bounds:
        values, reach = units(items, clusters, span)
        low, high, method = bounds_of(values, kind, alpha, reach)
        low, high = (None if low is None else max(low, span[0])), (None if high is None else min(high, span[1]))
        return Bounds(low, high, method)

    as_scored = bounds(scored)
    if filled is None:
        both = Bounds(None, None, f"answers are missing, and {metric.name} has no range to put them at")
        at_worst = None
    else:
        low, high = (bounds(items) for items in filled)
        both = Bounds(low.low, high.high, low.method)
        worst = filled[0] if metric.higher_is_better else filled[1]
        at_worst = None if worst == scored else float(np.mean(list(worst.values())))
    values, reach = units(scored, clusters, span)
    outside = next((f"'{i}' ({v:.3g})" for i, v in scored.items() if not span[0] <= v <= span[1]), None)
    return GateEstimate(
        metric=metric,
        value=float(np.mean(list(scored.values()))) if scored else None,
        at_worst=at_worst,
        bounds=both,
        as_scored=as_scored,
        values=values,
        kind=kind,
        span=reach,
        n=n_items,
        n_scored=len(scored),
        n_clusters=len({clusters.get(i, i) for i in scored}) if clusters else None,
        is_complete=filled is not None and filled[0] == scored,
        outside=outside,
    )
