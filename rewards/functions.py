"""Rewards and utilities written as Python functions, named ``module:function`` in a config.

The signature is TRL's: ``f(prompts, completions, **columns) -> list[float | None]``, prompts and completions
conversational (lists of messages), None where the function has no opinion.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from align.core.config import BadInput

RewardFunction = Callable[..., list[float | None]]


def load_function(name: str) -> RewardFunction:
    """Import ``module:function``.

    Raises:
        BadInput: the name has another form, or nothing callable stands there.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise BadInput(f"'{name}': a function is named module:function, for example align.pocket.utility:utility")
    try:
        function: Any = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise BadInput(f"'{name}': cannot be imported ({error})") from error
    if not callable(function):
        raise BadInput(f"'{name}': is a {type(function).__name__}, not a function")
    return function
