"""A judge: reads answers to items and has an opinion per metric, or a reason for having none.

A judge is one file in ``judges/`` and one line in ``JUDGES``; one from elsewhere is named ``module:Class``, or
``module:function`` for a function ``(item, text, ended) -> {metric: Opinion}``. Its name is written beside every score
and its code's hash is an input of the run. Not here: which metrics an item counts towards (its suite).
"""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar, NamedTuple

from align.core.config import BadInput
from align.core.hashes import code_hash
from align.core.plugins import Part, Seam, calling, choose, load
from align.evals.items import Item

JUDGES = Seam(
    "judge",
    MappingProxyType(
        {
            "refusal-prefix": "align.evals.judges.refusals:RefusalPrefix",
            "refusal-substring": "align.evals.judges.refusals:RefusalSubstring",
            "pocket": "align.evals.judges.pocket:Pocket",
        }
    ),
)
DEFAULT = "refusal-prefix"


class Opinion(NamedTuple):
    """A score, or None with the reason."""

    score: float | None
    reason: str | None = None


class Written(NamedTuple):
    """An answer as a judge reads it: its text after its reasoning, and whether it ended by itself."""

    item: Item
    text: str
    ended: bool


Opinions = Mapping[str, Opinion]  # by metric


class Judge(Part):
    """What a judge is; its fields beside ``kind`` are its settings. All answers of a suite come at once."""

    sources: ClassVar[tuple[ModuleType, ...]] = ()  # modules that it is written in, beside its own file

    @abstractmethod
    def opinions(self, answers: Sequence[Written]) -> list[Opinions]:
        """Opinions by metric on each answer."""

    def version(self) -> str:
        """sha256 of the code that it is written in, and of its settings where it has some."""
        code = code_hash(type(self), *self.sources)
        written = self.model_dump(mode="json")
        if not isinstance(written, dict):
            return code
        return hashlib.sha256(json.dumps([code, written], sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        return self.kind


class FunctionJudge(Judge):
    """A function ``(item, text, ended) -> {metric: Opinion}``, named ``module:function``."""

    @cached_property
    def function(self) -> Callable[[Item, str, bool], Opinions]:
        return load(self.kind)

    def code(self) -> tuple[Any, ...]:
        return (self.function,)

    def opinions(self, answers: Sequence[Written]) -> list[Opinions]:
        return [self._opinion(answer) for answer in answers]

    def _opinion(self, answer: Written) -> Opinions:
        with calling(f"judge {self.kind}: item '{answer.item.id}'", self.function):
            given = self.function(*answer)
        if not isinstance(given, Mapping) or not all(isinstance(opinion, Opinion) for opinion in given.values()):
            raise BadInput(
                f"judge {self.kind}: gave {type(given).__name__} on item '{answer.item.id}'; return "
                "{metric: Opinion(score)} or {metric: Opinion(None, reason)}"
            )
        return given

    def version(self) -> str:
        return code_hash(*self.code())


def find_judge(given: Any) -> Judge:
    """The judge of a shipped name, ``module:function``, or a section with ``kind`` and the judge's own settings.

    Raises:
        ValueError: there is no such judge, or it refuses its settings.
    """
    try:
        if isinstance(given, str) and given not in JUDGES.shipped and inspect.isroutine(_loaded(given)):
            return FunctionJudge(kind=given)
    except BadInput as error:
        raise ValueError(str(error)) from error
    return choose(JUDGES, Judge, given)


def _loaded(name: str) -> Any:
    return load(name) if ":" in name else None
