"""Define judges: a judge reads answers to items and gives an opinion per metric, or a reason for having none.

A judge is one file in ``judges/`` and one line in ``JUDGES``; one from elsewhere is named ``module:Class``, or
``module:function`` for a function ``(item, text, ended) -> {metric: Opinion}``. Its name is written beside every score
and its code's hash is an input of the run. Not here: which metrics an item counts towards (its suite).
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from numbers import Real
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
        """Return opinions by metric on each answer."""

    def version(self) -> str:
        """Return the sha256 of the judge's code, and of its settings where it has some."""
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
            return self.function(*answer)

    def version(self) -> str:
        return code_hash(*self.code())


def read_answers(judge: Judge, answers: Sequence[Written]) -> list[Opinions]:
    """Let a judge read answers, and check that it gives one set of opinions per answer.

    Raises:
        BadInput: naming the judge and the item, what it raised or what is wrong with what it gives.
    """
    with calling(f"judge {judge.kind}", judge):
        given = judge.opinions(answers)
    if not isinstance(given, list | tuple) or len(given) != len(answers):
        count = f"{len(given)} of them" if isinstance(given, list | tuple) else type(given).__name__
        raise BadInput(
            f"judge {judge.kind}: gives {count} for {len(answers)} answers; return a list with one per answer"
        )
    for answer, by_metric in zip(answers, given, strict=True):
        if problem := _problem_of(by_metric):
            raise BadInput(
                f"judge {judge.kind}: item '{answer.item.id}': {problem}; return {{metric: Opinion(score)}} or "
                "{metric: Opinion(None, reason)}"
            )
    return list(given)


def _problem_of(by_metric: Any) -> str | None:
    """Return what is wrong with a judge's opinions on an answer, or None."""
    if not isinstance(by_metric, Mapping):
        return f"gives {type(by_metric).__name__}"
    for metric, opinion in by_metric.items():
        if not isinstance(metric, str):
            return f"gives an opinion on {metric!r}, which is no metric's name"
        if not isinstance(opinion, Opinion):
            return f"gives {type(opinion).__name__} on '{metric}'"
        if opinion.score is None and not (isinstance(opinion.reason, str) and opinion.reason.strip()):
            return f"gives no score on '{metric}', and no reason"
        if opinion.score is not None and (strange := _strange(opinion.score)):
            return f"gives {strange} as its score on '{metric}', which is no finite number"
    return None


def _strange(score: Any) -> str | None:
    """Return how an error names a score that is no finite float; None where it is one."""
    try:
        return None if isinstance(score, Real) and math.isfinite(score) else repr(score)
    except OverflowError:
        return f"{type(score).__name__} beyond the range of a float"


def find_judge(given: Any) -> Judge:
    """Return the judge of a shipped name, ``module:function``, or a section with ``kind`` and the judge's settings.

    Raises:
        ValueError: there is no such judge, or it refuses its settings.
    """
    try:
        if isinstance(given, str) and ":" in given and inspect.isroutine(load(given)):
            return _function_judge(given)
    except BadInput as error:
        raise ValueError(str(error)) from error
    return choose(JUDGES, Judge, given)


def _function_judge(name: str) -> FunctionJudge:
    judge = FunctionJudge(kind=name)
    with suppress(ValueError):  # a function written in C may have no signature
        try:
            inspect.signature(judge.function).bind("item", "text", True)
        except TypeError as error:
            raise BadInput(
                f"'{name}' cannot be called with (item, text, ended) ({error}); write such a function"
            ) from None
    return judge
