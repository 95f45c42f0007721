"""A suite: items of one schema, how a policy's answers to them become results, and what its metrics are.

A suite is one file in ``suites/`` and one line in ``SUITES``; one from elsewhere is named ``module:Class``. What it
declares goes into the record of every evaluation. Not here: reading items (item_files), statistics, verdicts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from align.core.declarations import Declaration, Metric
from align.core.hashes import code_hash
from align.core.plugins import Part, Seam
from align.core.records import ItemResult
from align.evals.items import Item

if TYPE_CHECKING:
    from align.evals.generation import SamplingConfig
    from align.evals.targets import EvaluationTarget

SUITES = Seam(
    "suite",
    MappingProxyType(
        {
            "forgetting": "align.evals.suites.forgetting:Forgetting",
            "safety": "align.evals.suites.safety:Safety",
            "preference": "align.evals.suites.preference:Preference",
        }
    ),
)


class Suite(Part):
    """What a suite is; its fields beside ``kind`` are its settings.

    ``reads`` names the settings of an evaluation (``sft``, ``reward``, ``gold``, ``judge``, ``measured_higher``,
    ``measured_lower``) that the suite uses: one that no suite reads is reported. ``judged_by`` names the suite's own
    judge; where it is None and the suite reads ``judge``, the evaluation's judge reads the answers.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    item: ClassVar[type[Item]] = Item
    generates: ClassVar[bool] = True
    garbage_metric: ClassVar[str | None] = None
    says_missing: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = frozenset()
    judged_by: ClassVar[str | None] = None

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if missing := [name for name in ("name", "title", "metrics") if not hasattr(cls, name)]:
            raise TypeError(f"suite {cls.__name__} needs {', '.join(missing)}")

    def declaration(self) -> Declaration:
        """What evaluations record of this suite."""
        return Declaration(
            suite=self.name,
            title=self.title,
            metrics=self.metrics,
            generates=self.generates,
            garbage_metric=self.garbage_metric,
            says_missing=self.says_missing,
        )

    @abstractmethod
    def results(self, items: Sequence[Item], target: EvaluationTarget, sampling: SamplingConfig) -> list[ItemResult]:
        """The results of a policy on the suite's items."""

    def metrics_of(self, item: Item) -> Sequence[str]:
        """The metrics that an item counts towards."""
        return [metric.name for metric in self.metrics]

    def chance(self, items: Sequence[Item]) -> dict[str, float]:
        """What guessing scores, by metric or slice, where it scores something."""
        return {}

    def judges(self, items: Sequence[Item], target: EvaluationTarget) -> dict[str, str]:
        """Who judges the answers, each with what identifies its code."""
        if self.judged_by is None and "judge" not in self.reads:
            return {}
        judges = {judge.kind: judge for judge in (target.judge_of(item, self.judged_by) for item in items)}
        return {kind: judge.version() for kind, judge in sorted(judges.items())}

    def row_of_pair(self, name: str, pair: Mapping[str, Any]) -> dict[str, Any] | None:
        """An item's row made of a test prompt of a pairs run; None where pairs hold no items for the suite."""
        return None

    def identity(self) -> dict[str, Any]:
        """What answers depend on beside items and judges: its settings, and its code where it isn't a shipped suite."""
        written = self.model_dump(mode="json")
        own = {key: value for key, value in written.items() if key != "kind"} if isinstance(written, dict) else {}
        return own | ({"sha256": code_hash(*self.code())} if self.code() else {})
