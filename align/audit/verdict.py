"""Decide one gate by what was measured.

In: a gate and the scores of one or two evaluations. Out: a finding. A gate passes only when its bound proves it, with
every missing answer at its worst; what was not measured, not paired or measured at chance is insufficient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.audit.evaluations import Scores, kind_of
from align.audit.gate_estimates import GateEstimate, count_samples, mean_of, measure_difference, measure_mean
from align.audit.gates import Finding, Gate, GateStatus, finding_of, insufficient
from align.core.declarations import Metric
from align.core.stats.bounds import UNBOUNDED_N, UNSEEN_SHARE
from align.core.stats.differences import Bounds, difference_p
from align.core.stats.estimates import mean_interval
from align.core.stats.power import MOST, detectable, needed_n

MIN_CLUSTERS = 10


def judge_gate(
    gate: Gate, metric: Metric, new: Scores, old: Scores | None, chance: float | None = None, **facts: Any
) -> Finding:
    """Decide a gate by the candidate's and the reference's scores.

    ``metric`` is the declaration of the gate's metric; ``chance`` is what guessing scores, where the evaluation knows
    it; ``facts`` are copied into the finding.
    """
    if gate.type != "at_most" and old is None:
        return insufficient(gate, f"no scores of {gate.against} to compare with", **facts)
    sides = {"candidate": new} | ({"reference": old} if old is not None and gate.type != "at_most" else {})
    for side, scores in sides.items():
        if not scores.items:
            return insufficient(gate, f"the {side}'s evaluation holds no result of {gate.metric}", **facts)
    if old is None or gate.type == "at_most":
        estimate = measure_mean(metric, new, gate.level, gate.range)
    elif apart := set(new.items) ^ set(old.items):
        return insufficient(gate, f"the two evaluations asked different items ({len(apart)} on one side only)", **facts)
    else:
        estimate = measure_difference(metric, new, old, gate.level, gate.range)
        facts |= {
            "p": difference_p(estimate.values, estimate.kind, estimate.span),
            "reference_samples": count_samples(old),
        }
        facts |= {"reference": mean_of(old), "detectable": _detectable(gate, estimate)}
    facts |= {
        "higher_is_better": metric.higher_is_better,
        "candidate": mean_of(new),
        "samples": count_samples(new),
    } | _facts(estimate)
    if reason := _unusable(gate, estimate) or _at_chance(gate, metric, old, chance):
        return insufficient(gate, reason, **facts | {"p": None})
    if reason := _few_clusters(estimate):
        return insufficient(gate, reason, "too few", **facts | {"p": None})
    decided = _decide(gate, estimate, estimate.bounds, facts)
    if estimate.n_scored < gate.min_items and decided.verdict != "fail":  # what few items prove wrong is proved
        reason = f"{estimate.n_scored} items, the gate asks for {gate.min_items}"
        return insufficient(gate, reason, "too few", **facts | {"p": None})
    if reason := _vacuous(gate, metric, new, old, decided):
        return insufficient(gate, reason, **facts)
    return _with_missing(gate, estimate, decided, sides, facts)


def _facts(estimate: GateEstimate) -> dict[str, Any]:
    return {
        "higher_is_better": estimate.metric.higher_is_better,
        "delta": estimate.value,
        "delta_at_worst": estimate.at_worst,
        "low": estimate.bounds.low,
        "high": estimate.bounds.high,
        "n": estimate.n,
        "n_scored": estimate.n_scored,
        "n_failed": estimate.n - estimate.n_scored,
        "n_clusters": estimate.n_clusters,
        "method": estimate.bounds.method,
    }


def _with_missing(
    gate: Gate, estimate: GateEstimate, decided: Finding, sides: Mapping[str, Scores], facts: dict[str, Any]
) -> Finding:
    """Add what is missing to the finding's reason; an undecided gate that would pass as scored lacks answers."""
    missing = {side: samples for side, one in sides.items() if (samples := count_samples(one)).missing}
    if not missing:
        return decided
    counts = " and ".join(f"{s.missing} of {s.expected} answers of the {side}" for side, s in missing.items())
    text = f"{decided.reason}; {counts} have no score: {estimate.value:.3g} as scored"
    text += "" if estimate.at_worst is None else f", {estimate.at_worst:.3g} with them at their worst"
    changes: dict[str, Any] = {"reason": text}
    if decided.verdict == "insufficient" and _decide(gate, estimate, estimate.as_scored, facts).verdict == "pass":
        changes["status"] = "missing"
    return decided.model_copy(update=changes)


def _decide(gate: Gate, estimate: GateEstimate, bounds: Bounds, facts: dict[str, Any]) -> Finding:
    """Compare the bounds with what the gate allows."""
    assert estimate.value is not None
    if gate.type == "at_most":
        return _decide_limit(gate, estimate, bounds, facts)
    if bounds.low is None or bounds.high is None:
        reason = (
            f"{_seen(estimate.metric.turned(estimate.value))} than {gate.against}; {_ask_for_range(gate, estimate)}"
        )
        return insufficient(gate, reason, "too few" if estimate.is_complete else "missing", **facts)
    # turned so that up is better
    worst, best = (bounds.low, bounds.high) if estimate.metric.higher_is_better else (-bounds.high, -bounds.low)
    seen = estimate.metric.turned(estimate.value)
    if gate.type == "improves":
        return _decide_gain(gate, estimate, worst, seen, best, facts)
    margin = gate.margin or 0.0
    allowed = f"(margin {margin:g}{_stated(gate, estimate)})"
    if worst > 0:
        reason = f"better than {gate.against} by {seen:.3g}, at least {worst:.3g}"
        return finding_of(gate, "pass", "proved not worse", reason, facts)
    at_worst = f"{_seen(seen)} than {gate.against}; at worst {-worst:.3g} worse {allowed}"
    if worst > -margin:
        return finding_of(gate, "pass", "proved not worse", at_worst, facts)
    if best < -margin:
        reason = f"worse than {gate.against} by {-seen:.3g}, at least {-best:.3g} {allowed}"
        return finding_of(gate, "fail", "proved worse", reason, facts)
    if best < 0:
        reason = f"worse than {gate.against} by {-seen:.3g}, between {-best:.3g} and {-worst:.3g} {allowed}"
        return insufficient(gate, reason, "probably worse", **facts)
    needed = _needed(gate, estimate)
    facts = facts | {"needed_n": needed}
    unit = "items" if estimate.n_clusters is None else "clusters"
    more = f"; about {needed} {unit} decide it if nothing changed" if needed and needed > len(estimate.values) else ""
    more = more or ("" if needed else f"; no number of {unit} up to {MOST:,} is likely to decide it")
    return insufficient(gate, at_worst + more, "probably worse" if seen < -margin else "too few", **facts)


def _decide_limit(gate: Gate, estimate: GateEstimate, bounds: Bounds, facts: dict[str, Any]) -> Finding:
    mean = estimate.value or 0.0
    limit = gate.limit or 0.0
    allowed = f"limit {limit:g}{_stated(gate, estimate)}"
    if bounds.low is not None and bounds.low > limit:
        reason = f"{mean:.3g} seen, at least {bounds.low:.3g} ({allowed})"
        return finding_of(gate, "fail", "proved above", reason, facts)
    status: GateStatus = "probably above" if mean > limit else "too few"
    if bounds.high is None:
        return insufficient(
            gate, f"{mean:.3g} seen (limit {limit:g}); {_ask_for_range(gate, estimate)}", status, **facts
        )
    if bounds.high <= limit:
        return finding_of(
            gate, "pass", "proved within", f"{mean:.3g} seen, at most {bounds.high:.3g} ({allowed})", facts
        )
    between = f"at most {bounds.high:.3g}" if bounds.low is None else f"between {bounds.low:.3g} and {bounds.high:.3g}"
    return insufficient(gate, f"{mean:.3g} seen, {between} ({allowed})", status, **facts)


def _decide_gain(
    gate: Gate, estimate: GateEstimate, worst: float, seen: float, best: float, facts: dict[str, Any]
) -> Finding:
    wanted = f"asked: more than {gate.gain:g}{_stated(gate, estimate)}"
    if worst > gate.gain:
        reason = f"better than {gate.against} by {seen:.3g}, at least {worst:.3g} ({wanted})"
        return finding_of(gate, "pass", "proved gain", reason, facts)
    if best < gate.gain:
        reason = f"{_seen(seen)} than {gate.against}; at best {best:+.3g} ({wanted})"
        return finding_of(gate, "fail", "proved no gain", reason, facts)
    reason = f"{_seen(seen)} than {gate.against}; gain between {worst:+.3g} and {best:+.3g} ({wanted})"
    return insufficient(gate, reason, "probably no gain" if seen <= gate.gain else "too few", **facts)


def _stated(gate: Gate, estimate: GateEstimate) -> str:
    """Name the assumption of a bound that nobody measured."""
    if gate.range is None:
        return (
            ""
            if estimate.metric.is_bounded
            else f", unless fewer than {UNSEEN_SHARE:.0%} of items are far worse than any seen"
        )
    what = "value" if gate.type == "at_most" else "difference"
    return f", if an item's {what} lies from {gate.range[0]:g} to {gate.range[1]:g}"


def _seen(turned: float) -> str:
    """Write the estimate in words that fit before ``than``."""
    return "no better or worse" if turned == 0 else f"{abs(turned):.3g} {'better' if turned > 0 else 'worse'}"


def _needed(gate: Gate, estimate: GateEstimate) -> int | None:
    values = [estimate.metric.turned(value) for value in estimate.values]
    worst = estimate.span[0] if estimate.metric.higher_is_better else -estimate.span[1]
    return needed_n(values, estimate.kind, gate.margin or 0.0, gate.level, worst)


def _detectable(gate: Gate, estimate: GateEstimate) -> float | None:
    """Return the detectable difference that would break the gate; for ``improves``, the one that would fulfil it."""
    values = [estimate.metric.turned(value) for value in estimate.values]
    low, high = estimate.span if estimate.metric.higher_is_better else (-estimate.span[1], -estimate.span[0])
    if gate.type == "improves":
        return detectable([-value for value in values], estimate.kind, gate.gain, gate.level, -low)
    return detectable(values, estimate.kind, gate.margin or 0.0, gate.level, high)


def _unusable(gate: Gate, estimate: GateEstimate) -> str | None:
    """Return the reason why what was measured is no evidence for this gate, or None."""
    if not estimate.n_scored:
        return f"none of {estimate.n or 'the'} items was scored"
    if gate.range is not None and estimate.outside:
        return f"item {estimate.outside} lies outside the gate's range [{gate.range[0]:g}, {gate.range[1]:g}]"
    return None


def _few_clusters(estimate: GateEstimate) -> str | None:
    if estimate.n_clusters is not None and estimate.n_clusters < MIN_CLUSTERS:
        seen = f"{estimate.n_scored} items from {estimate.n_clusters} clusters"
        return f"{seen}; a bound takes {MIN_CLUSTERS} clusters or more"
    return None


def _ask_for_range(gate: Gate, estimate: GateEstimate) -> str:
    """Return the reason why there is no bound, and what would give one."""
    what = "value" if gate.type == "at_most" else "difference"
    stated = f"give the gate 'range: [low, high]' of an item's {what}"
    if estimate.is_complete and len(set(estimate.values)) == 1:
        return f"every item's {what} is {estimate.values[0]:.3g}, and nothing bounds those not seen: {stated}"
    return f"{gate.metric} has no range: {stated}, or {UNBOUNDED_N} items that are all scored"


def _at_chance(gate: Gate, metric: Metric, old: Scores | None, measured: float | None) -> str | None:
    """Return the reason why a reference that may be guessing is no evidence, or None where it is above chance."""
    if old is None or not metric.is_bounded:
        return None
    filled = old.filled(0.0 if metric.higher_is_better else 1.0)
    clusters = [old.clusters.get(item, item) for item in filled]
    estimate = mean_interval(list(filled.values()), kind_of(metric, old), clusters)
    assert estimate.low is not None
    known = [value for value in (measured, gate.chance) if value is not None]
    if metric.has_chance and not known:
        return f"the evaluation of {gate.against} does not say what guessing scores on {gate.metric}; evaluate again"
    if known and estimate.low <= max(known):  # a gate may ask for more than guessing, never for less
        return (
            f"{gate.against} is not shown to be above chance ({max(known):.3g}) on {gate.metric}: nothing there could "
            "be lost"
        )
    return None


def _vacuous(gate: Gate, metric: Metric, new: Scores, old: Scores | None, decided: Finding) -> str | None:
    """Return the reason why a pass by the margin says nothing (it allows to lose all that there is), or None.

    For an unbounded metric the observed range is used: a margin as wide as that range allows anything.
    """
    if old is None or gate.margin is None or decided.verdict != "pass":
        return None
    better = decided.low if metric.higher_is_better else decided.high
    if better is None or metric.turned(better) > 0:  # better than the reference, whatever the margin
        return None
    if not metric.is_bounded:
        seen = [value for value in (*new.values, *old.values) if value is not None]
        apart = max(seen) - min(seen)
        if metric.has_own_scale:
            return None
        if gate.margin < apart or not apart:
            return None
        return f"no two scores of {gate.metric} lie more than {apart:.3g} apart and the margin allows {gate.margin:g}"
    filled = old.filled(0.0 if metric.higher_is_better else 1.0).values()
    mean = sum(filled) / len(filled)
    room = mean if metric.higher_is_better else 1 - mean
    if room > gate.margin:
        return None
    return (
        f"{gate.against} has {room:.3g} of {gate.metric} to lose and the margin allows {gate.margin:g}: no candidate "
        "could break this gate"
    )
