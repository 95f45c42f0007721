"""Define gates (what a candidate must not lose, must gain or must not exceed) and the findings about them.

In: gates.yaml. Out: gates that can decide something, and findings put together. All gates at level alpha each make an
intersection-union test: a pass of all needs no correction. Not here: how one gate is judged (verdict).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, StrictFloat, model_validator

from align.audit.gate_estimates import SampleCounts
from align.core.config import BadInput, Frozen, build, read_yaml
from align.core.declarations import Declaration, Metric
from align.core.stats.differences import holm
from align.evals.fingerprint import KEYS

GateVerdict = Literal["pass", "fail", "insufficient"]
GateStatus = Literal[
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


class Gate(Frozen):
    """One demand. ``margin``, ``gain`` and ``limit`` are in the metric's own unit; ``level`` is one-sided."""

    name: str = Field(description="names the gate in findings and reports")
    type: Literal["non_inferior", "improves", "at_most"] = Field(
        default="non_inferior", description="no worse than the reference by margin; better by more than gain; a limit"
    )
    suite: str = Field(description="the suite's name, as its items name it")
    metric: str = Field(description="a metric of the suite, or a slice of one: accuracy/fact")
    against: Literal["base", "sft"] | None = Field(default=None, description="the reference; null for at_most")
    margin: float | None = Field(
        default=None, gt=0, strict=True, description="non_inferior: the worsening that is allowed"
    )
    gain: float = Field(default=0.0, ge=0, strict=True, description="improves: more than this")
    limit: float | None = Field(
        default=None, strict=True, description="at_most: the candidate's mean, without a reference"
    )
    level: float = Field(default=0.05, ge=0.0001, le=0.1, strict=True, description="one-sided error of the bound")
    range: tuple[StrictFloat, StrictFloat] | None = Field(
        default=None, description="lowest and highest difference (at_most: value) that an item of this metric can have"
    )
    min_items: int = Field(default=30, ge=2, strict=True, description="fewer scored items cannot pass")
    policy: Literal["sample", "greedy"] | None = Field(default=None, description="null: one both sides have")
    chance: float | None = Field(default=None, ge=0, lt=1, strict=True, description="null: as the evaluation knows it")
    allow: list[str] = Field(default_factory=list, description="fingerprint keys that may differ; lineage")
    fingerprint: dict[str, Any] = Field(
        default_factory=dict, description="only evaluations asked like this count, such as {max_new_tokens: 256}"
    )

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if not self.name.strip() or not self.name.isprintable():
            raise ValueError("a gate's name is one line that is not empty: sentences name the gate by it")
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
        return self

    def check_scale(self, metric: Metric) -> None:
        """Refuse what every policy or none would satisfy, by the declaration of the gate's metric.

        Raises:
            ValueError: naming the key that does not fit.
        """
        if metric.has_slices_only and self.metric == metric.name:
            raise ValueError(f"metric '{self.metric}' has one slice per module; name one: {self.metric}/module/number")
        if self.chance is not None and not (metric.is_bounded and metric.higher_is_better):
            raise ValueError(f"'chance' is what guessing scores where more is better; {self.metric} has none")
        widest = math.inf if metric.widest is None else metric.widest
        if self.margin is not None and self.margin >= widest / 2:
            raise ValueError(
                f"margin {self.margin:g} is at least half of the largest possible loss of {self.metric} "
                f"({widest:.3g}); choose a margin below {widest / 2:.3g}"
            )
        if self.gain >= widest:
            raise ValueError(
                f"gain {self.gain:g} cannot be exceeded: the largest possible gain of {self.metric} is {widest:.3g}; "
                f"choose a gain below {widest:.3g}"
            )
        if self.limit is not None:
            self._check_limit(metric, self.limit)
        if self.range is not None:
            self._check_range(metric, *self.range)

    def _check_limit(self, metric: Metric, limit: float) -> None:
        low, high = metric.span
        if metric.higher_is_better:
            raise ValueError(
                f"type at_most limits a metric where less is better; {self.metric} is better when higher: use "
                "non_inferior or improves"
            )
        if not low < limit < high:
            raise ValueError(
                f"limit {limit:g} is passed by every policy or by none: {self.metric} lies from {low:g} to {high:g}; "
                "choose a limit between the two"
            )
        if metric.is_bounded and limit > (high - low) / 2:
            raise ValueError(
                f"limit {limit:g} is more than half of the largest possible value: {self.metric} lies from {low:g} to "
                f"{high:g}; choose a limit of at most {(high - low) / 2:g}"
            )

    def _check_range(self, metric: Metric, low: float, high: float) -> None:
        if metric.is_bounded:
            raise ValueError(f"range: {self.metric} has its own, from 0 to 1")
        if self.limit is not None:
            if not low < self.limit < high:
                raise ValueError(f"range [{low:g}, {high:g}] of an item's value must hold the limit {self.limit:g}")
            return
        worst, best = (-low, high) if metric.higher_is_better else (high, -low)
        if worst <= (self.margin or 0.0) or best <= self.gain:
            raise ValueError(
                f"range [{low:g}, {high:g}] of an item's difference must reach beyond 0 on both sides, and beyond the "
                "margin or the gain"
            )


class GatesFile(Frozen):
    """The content of gates.yaml."""

    gates: list[Gate]


class Finding(Frozen):
    """One gate's outcome; ``status`` says in a few words what was shown.

    ``delta`` is candidate - reference (at_most: the candidate's mean) over ``n_scored`` of ``n`` items, as scored;
    ``delta_at_worst`` with the missing samples at their worst (None: none is missing), as the one-sided bounds ``low``
    and ``high`` take them, each at ``level``. ``needed_n`` items would decide a true difference of zero with 80 %
    power; ``detectable`` is the true worsening (improves: the gain) that these items would prove with 80 % power.
    """

    gate: str
    type: str
    suite: str
    metric: str
    higher_is_better: bool | None = None
    against: str | None
    policy: str | None = None
    verdict: GateVerdict
    status: GateStatus
    reason: str
    candidate: float | None = None
    reference: float | None = None
    delta: float | None = None
    delta_at_worst: float | None = None
    low: float | None = None
    high: float | None = None
    level: float
    n: int = 0
    n_scored: int = 0
    n_failed: int = 0
    n_clusters: int | None = None
    samples: SampleCounts | None = None
    reference_samples: SampleCounts | None = None
    margin: float | None = None
    range: tuple[float, float] | None = None
    needed_n: int | None = None
    detectable: float | None = None
    p: float | None = None
    method: str | None = None
    evaluations: list[str] = Field(default_factory=list)


def load_gates(path: Path, declarations: Mapping[str, Declaration]) -> list[Gate]:
    """Read gates.yaml; ``declarations`` are those of the suites that are known, by name.

    Raises:
        BadInput: the schema is broken, two gates share a name, there is no gate at all, or a gate's metric is none of
            its suite's or cannot decide anything as the gate asks. A gate on a suite that is not known is left as it
            is: no evaluation can decide it.
    """
    gates = build(GatesFile, read_yaml(path), str(path)).gates
    if not gates:
        raise BadInput(f"{path}: key 'gates' is empty, and an audit of nothing passes nothing; add a gate")
    names = [gate.name for gate in gates]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadInput(f"{path}: two gates are named '{twice}'; names must differ")
    for number, gate in enumerate(gates):
        if gate.suite in declarations:
            try:
                gate.check_scale(declarations[gate.suite].metric(gate.metric))
            except (BadInput, ValueError) as error:
                raise BadInput(f"{path}: key 'gates.{number}': {error}") from None
    return gates


def insufficient(gate: Gate, reason: str, status: GateStatus = "missing", **facts: Any) -> Finding:
    """Return the finding of a gate that is not decided; by default because something is missing."""
    return finding_of(gate, "insufficient", status, reason, facts)


def overall(findings: Sequence[Finding]) -> GateVerdict:
    """Return the verdict of all gates: fail before insufficient before pass; no finding at all is insufficient."""
    verdicts = {finding.verdict for finding in findings}
    order: tuple[GateVerdict, ...] = ("fail", "insufficient", "pass")
    return next((verdict for verdict in order if verdict in verdicts), "insufficient")


def regressed(findings: Sequence[Finding], level: float = 0.05) -> list[str]:
    """Return the metrics (``metric against reference``) that are worse, margin or not, under Holm's correction.

    The family holds each metric that could be tested once, however many gates ask about it.
    """
    tested = {
        (f.suite, f.metric, f.against, tuple(f.evaluations)): f
        for f in findings
        if f.p is not None and f.delta is not None
    }
    adjusted = holm([f.p for f in tested.values() if f.p is not None])
    worse = [
        f
        for f, p in zip(tested.values(), adjusted, strict=True)
        if p <= level and (f.delta or 0.0) * (1 if f.higher_is_better else -1) < 0
    ]
    return list(dict.fromkeys(f"{f.metric} against {f.against}" for f in worse))


def finding_of(gate: Gate, verdict: GateVerdict, status: GateStatus, reason: str, facts: dict[str, Any]) -> Finding:
    shared: dict[str, Any] = {"gate": gate.name, "margin": gate.limit if gate.type == "at_most" else gate.margin}
    copied = gate.model_dump(include={"type", "suite", "metric", "against", "level", "range"})
    return Finding(**copied, **shared, verdict=verdict, status=status, reason=reason, **facts)
