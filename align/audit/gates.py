"""Gates: what a candidate must not lose, must gain or must not exceed, and the verdict of each.

In: gates.yaml and the scores of two evaluations. Out: findings with one of three verdicts. A gate passes only when
its bound proves it; what was not measured, not paired or measured at chance is insufficient, never a pass.
All gates at level alpha each make an intersection-union test: a pass of all needs no correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from align.audit.history import Scores, kind_of
from align.core.config import BadInput, Frozen, build, read_yaml
from align.core.intervals import mean_interval
from align.evals.fingerprint import KEYS
from align.evals.stats import (
    METRICS,
    detectable,
    higher_is_better,
    holm,
    is_share,
    limit_bounds,
    metric_of,
    needed_n,
    paired_difference,
    paired_p,
    unseen_n,
)

Verdict = Literal["pass", "fail", "insufficient"]
Status = Literal[
    "missing",  # not measured, not comparable, at chance, or hidden by missing answers
    "too few",
    "probably worse",
    "proved worse",
    "proved not worse",
    "probably above",  # the limit, as at_most asks
    "proved above",
    "proved within",
    "probably no gain",  # or too small a one, as improves asks
    "proved no gain",
    "proved gain",
]
EXIT: dict[str, int] = {"pass": 0, "fail": 1, "insufficient": 3}
MAX_UNSCORED = 0.05  # share of items without a score beyond which those that have one may be a selection


class Gate(Frozen):
    """One demand. ``margin``, ``gain`` and ``limit`` are in the metric's own unit; ``level`` is one-sided."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: str
    type: Literal["non_inferior", "improves", "at_most"] = "non_inferior"
    suite: str
    metric: str
    against: Literal["base", "sft"] | None = None
    margin: float | None = Field(default=None, gt=0, description="non_inferior: the worsening that is allowed")
    gain: float = Field(default=0.0, ge=0, description="improves: more than this")
    limit: float | None = Field(default=None, description="at_most: the candidate's mean, without a reference")
    level: float = Field(default=0.05, ge=0.0001, le=0.1)
    min_items: int = Field(default=30, ge=2)
    policy: Literal["sample", "greedy"] | None = Field(default=None, description="null: one both sides have")
    chance: float | None = Field(default=None, ge=0, lt=1, description="null: as the evaluation knows it")
    allow: list[str] = Field(default_factory=list, description="fingerprint keys that may differ; lineage")
    fingerprint: dict[str, Any] = Field(
        default_factory=dict, description="only evaluations asked like this count, such as {max_new_tokens: 256}"
    )

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if self.metric.partition("/")[0] not in METRICS:
            raise ValueError(f"metric '{self.metric}' has no known direction; known: {', '.join(METRICS)}")
        if self.type == "at_most" and (self.limit is None or self.against or self.margin):
            raise ValueError("type at_most takes 'limit', and neither 'against' nor 'margin'")
        if self.type != "at_most" and (self.against is None or self.limit is not None):
            raise ValueError(f"type {self.type} needs 'against: base' or 'sft', and takes no 'limit'")
        named = (*(key for key in self.allow if key != "lineage"), *self.fingerprint)
        if unknown := next((key for key in named if key not in KEYS), None):
            raise ValueError(f"'{unknown}' is not in an evaluation's fingerprint; known: {', '.join(KEYS)}")
        if (self.type == "non_inferior") != (self.margin is not None):
            raise ValueError("'margin' belongs to type non_inferior, which needs it")
        if self.type != "improves" and self.gain:
            raise ValueError("'gain' belongs to type improves")
        self._check_scale()
        return self

    def _check_scale(self) -> None:
        """Refuse what every policy or none would satisfy, by the range of the metric."""
        metric = metric_of(self.metric)
        if self.margin is not None and self.margin >= metric.widest:
            raise ValueError(
                f"margin {self.margin:g} allows any worsening: {self.metric} has {metric.widest:.3g} to lose at most"
            )
        if self.gain >= metric.widest:
            raise ValueError(f"gain {self.gain:g} cannot be: {self.metric} has {metric.widest:.3g} to gain at most")
        if self.limit is not None and not metric.low < self.limit < metric.high:
            raise ValueError(
                f"limit {self.limit:g} decides nothing: {self.metric} lies from {metric.low:g} to {metric.high:g}, "
                "and a limit lies between them"
            )


class GatesFile(Frozen):
    """The content of gates.yaml."""

    gates: list[Gate]


class Finding(Frozen):
    """One gate's outcome; ``status`` says in a few words what was shown.

    ``delta`` is candidate - reference (at_most: the candidate's mean), between one-sided bounds ``low`` and ``high`` at
    ``level`` each; ``needed_n`` items would decide a true difference of zero.
    """

    gate: str
    type: str
    suite: str
    metric: str
    against: str | None
    policy: str | None = None
    verdict: Verdict
    status: Status
    reason: str
    candidate: float | None = None
    reference: float | None = None
    delta: float | None = None
    low: float | None = None
    high: float | None = None
    level: float
    n: int = 0
    n_scored: int = 0
    n_failed: int = 0
    margin: float | None = None
    needed_n: int | None = None
    detectable: float | None = None
    p: float | None = None
    method: str | None = None
    evaluations: list[str] = Field(default_factory=list)


def load_gates(path: Path) -> list[Gate]:
    """Read gates.yaml.

    Raises:
        BadInput: the schema is broken, two gates share a name, or there is no gate at all.
    """
    gates = build(GatesFile, read_yaml(path), str(path)).gates
    if not gates:
        raise BadInput(f"{path}: key 'gates' is empty, and an audit of nothing passes nothing; add a gate")
    names = [gate.name for gate in gates]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadInput(f"{path}: two gates are named '{twice}'; names must differ")
    return gates


def judge(gate: Gate, new: Scores, old: Scores | None, chance: float | None = None, **facts: Any) -> Finding:
    """The verdict of a gate on the candidate's and the reference's scores.

    ``chance`` is what guessing scores, where the evaluation knows it; ``facts`` are copied into the finding.
    """
    if gate.type == "at_most":
        return _judge_limit(gate, new, facts)
    if old is None:
        return insufficient(gate, f"no scores of {gate.against} to compare with", **facts)
    new_items, old_items = new.by_item, old.by_item
    if not new_items or not old_items:
        side = "candidate" if not new_items else "reference"
        return insufficient(gate, f"the {side}'s evaluation holds no result of {gate.metric}", **facts)
    if new_items.keys() != old_items.keys():
        apart = len(new_items.keys() ^ old_items.keys())
        return insufficient(gate, f"the two evaluations asked different items ({apart} on one side only)", **facts)
    kind = kind_of(gate.metric, new, old)
    found = paired_difference(new_items, old_items, kind, 1 - 2 * gate.level)
    facts |= {
        "candidate": mean_interval(new.values, metric_of(gate.metric).kind, new.items).mean,
        "reference": mean_interval(old.values, metric_of(gate.metric).kind, old.items).mean,
        "delta": found.mean,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "n_scored": found.n_scored,
        "n_failed": found.n_failed,
        "p": paired_p(new_items, old_items, kind),
        "method": found.method,
    }
    if found.sd is not None:
        facts["detectable"] = detectable(found.sd, found.n_scored, gate.level) if found.sd else None
        facts["needed_n"] = _needed(gate, found.sd)
    if reason := _unfit(gate, found.n, found.n_scored) or _at_chance(gate, old, chance):
        return insufficient(gate, reason, **facts)
    if reason := _too_few(gate, found.n_scored):
        return insufficient(gate, reason, "too few", **facts)
    if found.low is None or found.high is None:
        return insufficient(gate, f"no interval: {found.method}", **facts)
    return _decide(gate, found.low, found.high, facts)


def insufficient(gate: Gate, reason: str, status: Status = "missing", **facts: Any) -> Finding:
    """A gate that is not decided; by default because something is missing."""
    return _finding(gate, "insufficient", status, reason, facts)


def overall(findings: Sequence[Finding]) -> Verdict:
    """Fail before insufficient before pass; no finding at all is insufficient."""
    verdicts = {finding.verdict for finding in findings}
    order: tuple[Verdict, ...] = ("fail", "insufficient", "pass")
    return next((verdict for verdict in order if verdict in verdicts), "insufficient")


def regressed(findings: Sequence[Finding], level: float = 0.05) -> list[str]:
    """Metrics (``metric against reference``) that got worse at all, margin or not, named under Holm's correction."""
    tested = [f for f in findings if f.p is not None and f.delta is not None]
    adjusted = holm([f.p for f in tested if f.p is not None])
    worse = [f for f, p in zip(tested, adjusted, strict=True) if p <= level and _turned(f.metric, f.delta or 0.0) < 0]
    return list(dict.fromkeys(f"{f.metric} against {f.against}" for f in worse))


def _turned(metric: str, delta: float) -> float:
    """A difference turned so that up is better."""
    return delta if higher_is_better(metric) else -delta


def _judge_limit(gate: Gate, new: Scores, facts: dict[str, Any]) -> Finding:
    items = new.by_item
    mean = mean_interval(new.values, metric_of(gate.metric).kind, new.items).mean
    low, high, method = limit_bounds(items, gate.level)
    n_scored = sum(value is not None for value in items.values())
    facts |= {"candidate": mean, "delta": mean, "low": low, "high": high}
    facts |= {"n": len(items), "n_scored": n_scored, "n_failed": len(items) - n_scored, "method": method}
    if not items:
        return insufficient(gate, f"the candidate's evaluation holds no result of {gate.metric}", **facts)
    if reason := _unfit(gate, len(items), n_scored):
        return insufficient(gate, reason, **facts)
    if reason := _too_few(gate, n_scored):
        return insufficient(gate, reason, "too few", **facts)
    if low is None or high is None:
        return insufficient(gate, f"no interval: {method}", **facts)
    limit = gate.limit or 0.0
    if high <= limit:
        return _finding(gate, "pass", "proved within", f"at most {high:.3g} (limit {limit:g})", facts)
    if low > limit:
        return _finding(gate, "fail", "proved above", f"at least {low:.3g} (limit {limit:g})", facts)
    status: Status = "probably above" if mean is not None and mean > limit else "too few"
    return insufficient(gate, f"{mean:.3g} seen, between {low:.3g} and {high:.3g} (limit {limit:g})", status, **facts)


def _decide(gate: Gate, low: float, high: float, facts: dict[str, Any]) -> Finding:
    """Compare the bounds, turned so that up is better, with what the gate allows."""
    worst, best = (low, high) if higher_is_better(gate.metric) else (-high, -low)
    seen = _turned(gate.metric, facts["delta"])
    if gate.type == "improves":
        return _decide_gain(gate, worst, seen, best, facts)
    margin = gate.margin or 0.0
    allowed = f"(margin {margin:g})"
    if worst > 0:
        reason = f"better than {gate.against} by {seen:.3g}, at least {worst:.3g}"
        return _finding(gate, "pass", "proved not worse", reason, facts)
    at_worst = f"{_seen(seen)} than {gate.against}; at worst {-worst:.3g} worse {allowed}"
    if worst > -margin:
        return _finding(gate, "pass", "proved not worse", at_worst, facts)
    if best < -margin:
        reason = f"worse than {gate.against} by {-seen:.3g}, at least {-best:.3g} {allowed}"
        return _finding(gate, "fail", "proved worse", reason, facts)
    if best < 0:
        reason = f"worse than {gate.against} by {-seen:.3g}, between {-best:.3g} and {-worst:.3g} {allowed}"
        return insufficient(gate, reason, "probably worse", **facts)
    needed = facts.get("needed_n")
    more = f"; about {needed} items decide it if nothing changed" if needed and needed > facts["n_scored"] else ""
    return insufficient(gate, at_worst + more, "probably worse" if seen < -margin else "too few", **facts)


def _decide_gain(gate: Gate, worst: float, seen: float, best: float, facts: dict[str, Any]) -> Finding:
    wanted = f"asked: more than {gate.gain:g}"
    if worst > gate.gain:
        reason = f"better than {gate.against} by {seen:.3g}, at least {worst:.3g} ({wanted})"
        return _finding(gate, "pass", "proved gain", reason, facts)
    if best < gate.gain:
        reason = f"{_seen(seen)} than {gate.against}; at best {best:+.3g} ({wanted})"
        return _finding(gate, "fail", "proved no gain", reason, facts)
    reason = f"{_seen(seen)} than {gate.against}; gain between {worst:+.3g} and {best:+.3g} ({wanted})"
    return insufficient(gate, reason, "probably no gain" if seen <= gate.gain else "too few", **facts)


def _seen(turned: float) -> str:
    """The estimate in words that fit before ``than``."""
    return "no better or worse" if turned == 0 else f"{abs(turned):.3g} {'better' if turned > 0 else 'worse'}"


def _needed(gate: Gate, sd: float) -> int | None:
    if gate.margin is None:
        return None
    unseen = unseen_n(gate.margin, gate.level) if is_share(gate.metric) else 2
    return max(unseen, needed_n(sd, gate.margin, gate.level))


def _unfit(gate: Gate, n: int, n_scored: int) -> str | None:
    """Why so few scored items cannot carry a verdict, or None."""
    if not n_scored:
        return f"none of {n} items was scored"
    if n - n_scored > MAX_UNSCORED * n:
        return f"{n - n_scored} of {n} items have no score: those that have one may be a selection"
    return None


def _too_few(gate: Gate, n_scored: int) -> str | None:
    return f"{n_scored} items, the gate asks for {gate.min_items}" if n_scored < gate.min_items else None


def _at_chance(gate: Gate, old: Scores, measured: float | None) -> str | None:
    """Why a reference that may be guessing is no evidence, or None where it is above chance."""
    chance = measured if gate.chance is None else gate.chance
    if chance is None:
        return None
    found = mean_interval(old.values, metric_of(gate.metric).kind, old.items)
    if found.low is not None and found.low > chance:
        return None
    return (
        f"{gate.against} is not shown to be above chance ({chance:.3g}) on {gate.metric}: nothing there could be lost"
    )


def _finding(gate: Gate, verdict: Verdict, status: Status, reason: str, facts: dict[str, Any]) -> Finding:
    shared: dict[str, Any] = {"gate": gate.name, "margin": gate.limit if gate.type == "at_most" else gate.margin}
    copied = gate.model_dump(include={"type", "suite", "metric", "against", "level"})
    return Finding(**copied, **shared, verdict=verdict, status=status, reason=reason, **facts)
