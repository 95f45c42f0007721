"""Make rows of metrics for tables and charts: every metric as an estimate with its suite and direction.

In: evaluations. Out: plain values by the metric's name in the table. Means are taken from the results of the items,
whatever a record says they are. Not here: layout (report.tables), differences (compare).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from align.audit.evaluations import Evaluation, load_results, metric_scores
from align.core.stats.differences import win_rate_at_equal_length
from align.core.stats.estimates import mean_interval
from align.evals.declared import EARLIER
from align.evals.training_reward import LABEL

EQUAL_LENGTH = "equal length"


def metrics_of(one: Evaluation) -> list[str]:
    """Return the names of the metrics that an evaluation measured, slices apart, in order of appearance."""
    return list(dict.fromkeys(r.metric for r in load_results(one.record) if r.suite == one.suite))


def shared_names(evaluations: Iterable[Evaluation]) -> frozenset[str]:
    """Return the names of metrics that more than one suite has, so that a table names the suite beside them."""
    suites: dict[str, set[str]] = {}
    for one in evaluations:
        for metric in metrics_of(one):
            suites.setdefault(metric, set()).add(one.suite)
    return frozenset(metric for metric, names in suites.items() if len(names) > 1)


def table_names(one: Evaluation, training: Collection[str], shared: Collection[str]) -> dict[str, str]:
    """Return the metrics of an evaluation by their names in a table.

    Args:
        training: metrics that a reward gave which a policy was trained on. A win rate among them is not shown.
        shared: names that more than one suite has.
    """
    names = {}
    for metric in metrics_of(one):
        is_training = metric in training
        if is_training and one.declaration.metric(metric).length_metric:
            continue
        name = f"{metric} ({one.suite})" if metric in shared else metric
        names[f"{name}, {LABEL}" if is_training else name] = metric
    return names


def measured(one: Evaluation, names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return every named metric of an evaluation as an estimate, with its suite and direction."""
    results, declaration = load_results(one.record), one.declaration
    row = {}
    for name, metric in names.items():
        declared, scores = declaration.metric(metric), metric_scores(results, declaration, metric)
        facts = {"suite": one.suite, "higher_is_better": declared.higher_is_better}
        row[name] = mean_interval(scores.values, declared.kind, scores.units).model_dump() | facts
    return row


def at_equal_length(one: Evaluation, sft: Evaluation, names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Estimate the win rates where both answers are equally long; SFT's length is its mean on the same prompt."""
    row = {}
    for name, metric in names.items():
        declared = one.declaration.metric(metric)
        if (length := declared.length_metric) is None:
            continue
        results = [r for r in load_results(one.record) if r.suite == one.suite]
        wins = {r.item_id: r.score for r in results if r.metric == metric and r.score is not None}
        own, other = one.scores(length).by_item, sft.scores(length).by_item
        known = [i for i in sorted(wins) if own.get(i) is not None and other.get(i) is not None]
        lengths = [(own[i] or 0.0) - (other[i] or 0.0) for i in known]
        clusters = {r.item_id: r.cluster for r in results if r.cluster is not None}
        units = [clusters.get(i, i) for i in known]
        estimate = win_rate_at_equal_length([wins[i] or 0.0 for i in known], lengths, units)
        facts = {"suite": one.suite, "higher_is_better": declared.higher_is_better}
        row[f"{name}, {EQUAL_LENGTH}"] = estimate.model_dump() | facts
    return row


def with_directions(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a comparison, each metric with its direction, which earlier versions did not write."""
    return [dict(row) | {"metrics": {n: _directed(n, entry) for n, entry in row["metrics"].items()}} for row in rows]


def _directed(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    if "higher_is_better" in entry:
        return dict(entry)
    metric = EARLIER[entry["suite"]].metric(name.partition(",")[0])
    return dict(entry) | {"higher_is_better": metric.higher_is_better}
