"""Rewards and utilities written as Python functions, named ``module:function`` in a config.

The signature is TRL's: ``f(prompts, completions, **columns) -> list[float | None]``, called by keyword, prompts and
completions conversational (lists of messages), None where the function has no opinion: that adds nothing.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from align.core.config import BadInput
from annotation.types import Message

RewardFunction = Callable[..., list[float | None]]


def load_function(name: str) -> RewardFunction:
    """Import ``module:function``.

    Raises:
        BadInput: the name has another form, or nothing callable stands there.
    """
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise BadInput(f"'{name}': a function is named module:function, for example align.pocket.utility:utility")
    try:
        function: Any = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, SyntaxError, ValueError) as error:
        raise BadInput(f"'{name}': cannot be imported ({error})") from error
    if not callable(function):
        raise BadInput(f"'{name}': is a {type(function).__name__}, not a function")
    return function


def rewards_of(
    name: str,
    function: RewardFunction,
    prompts: Sequence[list[Message]],
    completions: Sequence[list[Message]],
    ended: Sequence[bool],
) -> list[float | None]:
    """Call a reward function; what it gives must be one finite number or None a completion.

    Raises:
        BadInput: another number of values, or one that is NaN or infinite.
    """
    values = function(prompts=prompts, completions=completions, ended=ended)
    if len(values) != len(completions):
        raise BadInput(f"reward function {name}: gave {len(values)} values for {len(completions)} completions")
    for number, value in enumerate(values):
        if value is not None and not math.isfinite(value):
            raise BadInput(f"reward function {name}: gave {value} for completion {number}; return a number or None")
    return [None if value is None else float(value) for value in values]
