"""List the worst flips: items on which a candidate lost most, with what both sides wrote.

In: decided gates. Out: rows for audit.json. Not here: verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any

from align.audit.evaluations import Evaluation, load_results, metric_scores
from align.audit.gates import Gate
from align.audit.pairing import GateDecision
from align.core.records import ItemResult

MOST = 10


def worst_flips(judged: Sequence[GateDecision]) -> list[dict[str, Any]]:
    """Return the items on which the candidate lost most, gate by gate in turn, with what both wrote."""
    by_gate = [_lost(one.gate, *one.deciding) for one in judged if len(one.deciding) == 2]
    seen: set[tuple[str, str]] = set()
    worst = []
    for flip in chain.from_iterable(zip_longest(*by_gate)):
        if flip is not None and (flip["metric"], flip["item_id"]) not in seen:
            seen.add((flip["metric"], flip["item_id"]))
            worst.append(flip)
    return worst[:MOST]


def _lost(gate: Gate, candidate: Evaluation, reference: Evaluation) -> list[dict[str, Any]]:
    declaration = candidate.declaration
    results = [load_results(side.record) for side in (candidate, reference)]
    new, old = (metric_scores(rows, declaration, gate.metric).by_item for rows in results)
    sign = declaration.metric(gate.metric).turned(1.0)
    losses = {i: sign * (a - b) for i, a in new.items() if a is not None and (b := old.get(i)) is not None}
    flips = []
    for item_id in sorted((i for i in losses if losses[i] < 0), key=lambda i: (losses[i], i))[:MOST]:
        after = _example(results[0], gate, item_id, -sign)
        before = _example(results[1], gate, item_id, sign)
        if after is None or before is None or after.text is None or before.text is None:
            continue
        flips.append(
            {
                "metric": gate.metric,
                "suite": gate.suite,
                "item_id": item_id,
                "prompt": after.prompt,
                "against": gate.against,
                "before": {"score": old[item_id], "text": before.text},
                "after": {"score": new[item_id], "text": after.text},
                "judge": after.judge,
            }
        )
    return flips


def _example(results: Sequence[ItemResult], gate: Gate, item_id: str, sign: float) -> ItemResult | None:
    """Return the sample of an item with the highest score (``sign`` 1) or the lowest (-1)."""
    mine = [
        r
        for r in results
        if r.item_id == item_id and r.suite == gate.suite and gate.metric in (r.metric, r.metric.partition("/")[0])
    ]
    return max((r for r in mine if r.score is not None), key=lambda r: sign * (r.score or 0.0), default=None)
