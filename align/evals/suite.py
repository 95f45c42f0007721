"""Define suites: items of one schema, how a policy's answers to them become results, and what the metrics are.

A suite is one file in ``suites/`` and one line in ``SUITES``; one from elsewhere is named ``module:Class``. What it
declares goes into the record of every evaluation. Not here: reading items (item_files), statistics, verdicts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, Self, TypeVar

from pydantic import model_validator

from align.core.config import BadInput, build
from align.core.declarations import Declaration, Metric
from align.core.hashes import code_hash
from align.core.plugins import Part, Seam, calling
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
READS = frozenset({"gold", "judge", "measured_higher", "measured_lower", "reward", "sft"})  # settings of `eval`
Arguments = ParamSpec("Arguments")
Given = TypeVar("Given")


class Suite(Part):
    """What a suite is; its fields beside ``kind`` are its settings.

    ``reads`` names the settings of an evaluation (of ``READS``) that the suite uses; the run notes a setting that no
    suite reads. ``judged_by`` names the suite's own judge; where it is None and the suite reads ``judge``, the
    evaluation's judge reads the answers.
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

    @model_validator(mode="after")
    def _declares_itself(self) -> Self:
        """Refuse a class whose declaration is wrong, when a configuration chooses it."""
        if missing := [name for name in ("name", "title", "metrics") if not hasattr(self, name)]:
            raise ValueError(f"class {type(self).__name__} needs {', '.join(missing)}")
        if not isinstance(self.metrics, tuple | list):
            raise ValueError(f"'metrics' is a {type(self.metrics).__name__}; write a tuple of Metric(...)")
        if not (isinstance(self.item, type) and issubclass(self.item, Item)):
            raise ValueError(f"'item' is {self.item!r}; write a class derived from {Item.__module__}:Item")
        if unknown := sorted(set(self.reads) - READS):
            raise ValueError(f"'reads' names '{unknown[0]}'; an evaluation has {', '.join(sorted(READS))}")
        self.declaration()
        return self

    def declaration(self) -> Declaration:
        """Return what evaluations record of this suite.

        Raises:
            BadInput: a value of another type than it must have, or a declaration that contradicts itself.
        """
        own = ("title", "metrics", "generates", "garbage_metric", "says_missing")
        declared = {"suite": self.name} | {key: getattr(self, key) for key in own}
        return build(Declaration, declared, f"suite {self.kind}")

    def call(
        self, kind: Any, method: Callable[Arguments, Given], *args: Arguments.args, **kw: Arguments.kwargs
    ) -> Given:
        """Call a method of the suite, and report in one line what it raises or a value that is no ``kind``.

        Raises:
            BadInput: naming the suite and the method.
        """
        what = f"suite {self.kind}: {method.__name__}"
        with calling(what, self):
            given = method(*args, **kw)
        if not isinstance(given, kind):
            raise BadInput(f"{what}: gives {type(given).__name__}, not {getattr(kind, '__name__', kind)}; mend it")
        return given

    @property
    def is_judged(self) -> bool:
        """Return whether it declares that a judge reads its answers."""
        return self.judged_by is not None or "judge" in self.reads

    @abstractmethod
    def results(self, items: Sequence[Item], target: EvaluationTarget, sampling: SamplingConfig) -> list[ItemResult]:
        """Return the results of a policy on the suite's items."""

    def metrics_of(self, item: Item) -> Sequence[str]:
        """Return the metrics that an item counts towards."""
        return [metric.name for metric in self.metrics]

    def chance(self, items: Sequence[Item]) -> dict[str, float]:
        """Return what guessing scores, by metric or slice, where it scores something."""
        return {}

    def judges(self, items: Sequence[Item], target: EvaluationTarget) -> dict[str, str]:
        """Return the names of the judges, each with what identifies its code."""
        if not self.is_judged:
            return {}
        judges = {judge.kind: judge for judge in (target.judge_of(item, self.judged_by) for item in items)}
        return {kind: judge.version() for kind, judge in sorted(judges.items())}

    def row_of_pair(self, name: str, pair: Mapping[str, Any]) -> dict[str, Any] | None:
        """Make an item's row of a test prompt of a pairs run; None where pairs hold no items for the suite."""
        return None

    def identity(self) -> dict[str, Any]:
        """Return what answers depend on beside items and judges: settings; class and code of a suite from elsewhere."""
        written = self.model_dump(mode="json")
        own = {key: value for key, value in written.items() if key != "kind"} if isinstance(written, dict) else {}
        return own | ({"kind": self.kind, "sha256": code_hash(*self.code())} if self.code() else {})
