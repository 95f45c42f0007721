"""What a user names as ``module:name`` in a configuration."""

from __future__ import annotations

from collections.abc import Callable

RewardFunction = Callable[..., list[float | None]]  # TRL's signature: f(prompts, completions, **columns)
