"""Rewards and utilities that are Python functions, named ``module:function`` in a configuration.

The signature is TRL's: ``f(prompts, completions, **columns) -> list[float | None]``, called by keyword; prompts and
completions are lists of messages, and None means that the function does not score the completion. A module is searched
on Python's path and then in the current folder.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Iterable, Sequence, Sized
from typing import Any

from pydantic import Field, field_validator

from align.core.config import BadInput
from align.core.hashes import code_hash
from align.core.plugins import RewardFunction, calling, load
from align.core.records import Message
from rewards.reward import TextReward

REMEDY = "a reward function returns a list with one finite number, or None, per completion"


class FunctionReward(TextReward):
    """A reward that calls a function of TRL's signature."""

    kind: str = "function"
    name: str = Field(description="module:function")

    @field_validator("name")
    @classmethod
    def _can_be_loaded(cls, name: str) -> str:
        load_function(name)
        return name

    def names(self) -> tuple[str, ...]:
        """Return the configured name, and the name of the module that defines the function."""
        return self.name, origin_of(self.name)

    def code(self) -> tuple[Any, ...]:
        """Return the function."""
        return (load_function(self.name),)

    def score(
        self, prompts: Sequence[list[Message]], completions: Sequence[list[Message]], **columns: Any
    ) -> list[float | None]:
        """Call the function."""
        function = load(self.name)
        with calling(f"reward function {self.name}", function):
            scores: list[float | None] = function(prompts=prompts, completions=completions, **columns)
        return scores


def load_function(name: str) -> RewardFunction:
    """Import ``module:function``; its results are checked at every call (:func:`rewards_of`).

    Raises:
        BadInput: the name has another form, the module cannot be imported, or what it names is not callable.
    """
    if not isinstance(name, str):  # YAML reads `a: b` as a mapping and 7 as a number
        raise BadInput(f"gold: {_shown(name)} is no text; write module:function, without a space")
    function = load(name)
    if not callable(function):
        raise BadInput(f"'{name}': is of type {type(function).__name__}, not a function")
    if isinstance(function, type):
        raise BadInput(f"'{name}': is a class; name a function, or choose the class as rewards: {{kind: {name}}}")

    @functools.wraps(function)
    def checked(*, prompts: Sequence[list[Message]], completions: Sequence[list[Message]], **columns: Any) -> Any:
        return rewards_of(name, function, prompts, completions, **columns)

    return checked


def code_of(*names: str) -> str:
    """Hash of the code of the functions named ``module:function``."""
    return code_hash(*map(load_function, names))


def origin_of(name: str) -> str:
    """Return ``module:function`` with the module that defines the function, even if it was imported by another name.

    Raises:
        BadInput: as :func:`load_function`.
    """
    function = inspect.unwrap(load_function(name))
    module, function_name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    return f"{module}:{function_name}" if module and function_name else name


def rewards_of(
    name: str,
    function: RewardFunction,
    prompts: Sequence[list[Message]],
    completions: Sequence[list[Message]],
    **columns: Any,
) -> list[float | None]:
    """Call a reward function on copies of its arguments; it must return one finite number or None per completion.

    Raises:
        BadInput: the function raises or exits, or returns anything else.
    """
    with calling(f"reward function {name}", function):
        values = function(**copy.deepcopy({"prompts": prompts, "completions": completions, **columns}))
    if isinstance(values, str | bytes | dict) or not (isinstance(values, Sized) and isinstance(values, Iterable)):
        raise BadInput(f"reward function {name}: gave {_shown(values)} instead of a list; {REMEDY}")
    scores = list(values)
    if len(scores) != len(completions):
        given = f"{len(scores)} values for {len(completions)} completions"
        raise BadInput(f"reward function {name}: gave {given}; {REMEDY}")
    return [_number(name, number, value) for number, value in enumerate(scores)]


def _number(name: str, index: int, value: Any) -> float | None:
    """Return a value as a float; numbers of numpy and torch are accepted, booleans and texts are not."""
    if value is None:
        return None
    try:
        is_text_or_truth = isinstance(value, str | bytes | bool) or "bool" in str(getattr(value, "dtype", ""))
        number = math.nan if is_text_or_truth else float(value)
    except (
        TypeError,
        ValueError,
        OverflowError,
        RuntimeError,
    ):  # not a number, too large, or a tensor of several numbers
        number = math.nan
    if not math.isfinite(number):
        raise BadInput(f"reward function {name}: gave {_shown(value)} for completion {index}; {REMEDY}")
    return number


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:59]}…"
