"""A reward from outside the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from align.core.records import Message
from rewards.reward import TextReward


class Brevity(TextReward):
    """Takes ``per_letter`` off for each letter; no opinion on a response that was cut."""

    per_letter: float = 0.1

    def score(
        self, prompts: Sequence[list[Message]], completions: Sequence[list[Message]], **columns: Any
    ) -> list[float | None]:
        texts = [completion[-1]["content"] for completion in completions]
        return [
            -self.per_letter * len(text) if ended else None for text, ended in zip(texts, columns["ended"], strict=True)
        ]
