"""The declarations of suites and metrics, which audits and reports read in place of the suites.

An evaluation writes its suite's declaration into its record; gates, comparisons and reports read directions, kinds,
ranges and guards there. Not here: the suites themselves, and the table for records that carry no declaration
(``align.evals.declared``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from align.core.config import BadInput, Frozen
from align.core.stats.estimates import Kind

FORMULA = "formula"  # the judge of a value that a formula gives for the whole evaluation, and no item


class Metric(Frozen):
    """A metric by its definition, not by the values that were measured.

    ``kind``: one result is 0 or 1 (binary), lies in [0, 1] (share), or has no bound on at least one side (unbounded).
    A metric ``accuracy`` also declares its slices ``accuracy/<family>``.
    """

    name: str = Field(pattern=r"^[^/,\s]+$", description="name in results and gates, without / , and spaces")
    higher_is_better: bool = Field(description="whether more of it is better")
    kind: Kind = Field(description="one result is 0 or 1; or lies from 0 to 1; or is any number")
    low: float | None = Field(default=None, description="lowest value; null: nothing bounds it")
    high: float | None = Field(default=None, description="highest value; null: nothing bounds it")
    widest: float | None = Field(
        default=None, description="the largest possible difference; a margin must be below half of it"
    )
    has_own_scale: bool = Field(default=False, description="a margin means the same for every policy (nats, bits)")
    has_slices_only: bool = Field(
        default=False, description="gates must name a slice (metric/slice), because the slices have different units"
    )
    has_chance: bool = Field(default=False, description="guessing scores something, which the evaluation records")
    against: Literal["sft"] | None = Field(default=None, description="the input that it is measured against")
    judged_by: tuple[Literal["gold", "reward"], ...] = Field(
        default=(), description="inputs that judge it: the first of them that is given, unless the record names judges"
    )
    capped_by: Literal["best_of", "context", "max_new_tokens", "samples"] | None = Field(
        default=None, description="key of the fingerprint that no value can exceed"
    )
    length_metric: str | None = Field(
        default=None, description="for a win rate: the metric of length; tables also show the win rate at equal length"
    )
    guarded_by: tuple[str, ...] = Field(default=(), description="metrics that need gates beside a gate on this one")
    needs_answers: bool = Field(default=False, description="garbage may score well on it")
    of_garbage: float | None = Field(
        default=None, description="score of an answer that its base model finds improbable; null: the judge's"
    )

    @model_validator(mode="before")
    @classmethod
    def _bounded_by_kind(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("kind") in ("binary", "share"):
            return {"low": 0.0, "high": 1.0, "widest": 1.0} | dict(given)
        return given

    @model_validator(mode="after")
    def _range_holds(self) -> Self:
        low, high = self.span
        if self.is_bounded and (low, high) != (0.0, 1.0):
            raise ValueError(f"metric {self.name}: kind {self.kind} lies from 0 to 1, not from {low:g} to {high:g}")
        if not low < high:
            raise ValueError(f"metric {self.name}: 'low' is {low:g} and 'high' is {high:g}; low lies below high")
        if self.widest is not None and not self.widest > 0:
            raise ValueError(f"metric {self.name}: 'widest' is {self.widest:g}; a difference is above 0")
        if self.of_garbage is not None and not low <= self.of_garbage <= high:
            raise ValueError(f"metric {self.name}: 'of_garbage' is {self.of_garbage:g}, outside {low:g} to {high:g}")
        return self

    @property
    def span(self) -> tuple[float, float]:
        """Return the lowest and the highest value; infinite where nothing bounds it."""
        return (-math.inf if self.low is None else self.low, math.inf if self.high is None else self.high)

    @property
    def is_bounded(self) -> bool:
        """Return whether its values lie in [0, 1] by definition."""
        return self.kind != "unbounded"

    def turned(self, value: float) -> float:
        """Return a value or a difference with the sign at which more is better."""
        return value if self.higher_is_better else -value


class Declaration(Frozen):
    """What a suite declares: its metrics, whether it generates answers, and how a report shows it."""

    suite: str = Field(description="name in items, results and gates")
    title: str = Field(description="heading of its section in a report")
    metrics: tuple[Metric, ...] = Field(description="what is measured")
    generates: bool = Field(default=True, description="scores what the policy writes, not likelihoods alone")
    garbage_metric: str | None = Field(default=None, description="counts the answers that are none")
    says_missing: bool = Field(default=True, description="a chart names the policies that were not measured")

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        names = [metric.name for metric in self.metrics]
        if len(set(names)) < len(names):
            raise ValueError(f"suite {self.suite}: a metric is declared twice")
        named = {name for metric in self.metrics for name in (*metric.guarded_by, metric.length_metric) if name}
        if unknown := sorted((named | ({self.garbage_metric} if self.garbage_metric else set())) - set(names)):
            raise ValueError(
                f"suite {self.suite}: '{unknown[0]}' is named by its declaration and is none of its metrics"
            )
        return self

    def has(self, name: str) -> bool:
        """Return whether a metric, or the metric that a slice belongs to, is declared."""
        return name.partition("/")[0] in (metric.name for metric in self.metrics)

    def metric(self, name: str) -> Metric:
        """Return the declaration of a metric; ``accuracy/fact`` is declared by ``accuracy``.

        Raises:
            BadInput: the suite declares no such metric.
        """
        own = {metric.name: metric for metric in self.metrics}
        if (declared := own.get(name.partition("/")[0])) is None:
            raise BadInput(f"suite {self.suite} has no metric '{name}'; it has {', '.join(own)}")
        return declared
