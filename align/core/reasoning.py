"""Reasoning and answer apart: what a model writes between its marks of thought is not what it says to its reader.

In: the text of a response. Out: its reasoning and its content. Only thought that stands first counts: a mark further
on is part of the answer, so nobody hides an answer behind it. Not here: token ids, and templates with channels
(``parsing.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MARKS: Mapping[str, str] = {  # what opens reasoning, by family, and what closes it
    "<think>": "</think>",  # Qwen3, DeepSeek-R1, GLM, SmolLM3, ...
    "[THINK]": "[/THINK]",  # Magistral
    "<seed:think>": "</seed:think>",  # Seed-OSS
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command A Reasoning
}


class Parts(NamedTuple):
    """What was thought and what was said."""

    reasoning: str
    content: str


def split_reasoning(text: str, opened: str | None = None) -> Parts:
    """Reasoning and content of a response; a text without marks is all content, to the letter.

    Args:
        opened: the mark with which the prompt ended, where the template opens the reasoning itself. A response that
            never closes it (it was cut) is all reasoning.
    """
    thoughts: list[str] = []
    rest, close = text, MARKS.get(opened or "")
    while True:
        start = rest.lstrip()
        mark = next((mark for mark in MARKS if start.startswith(mark)), None)
        if mark is not None and close in (None, MARKS[mark]):
            rest, close = start[len(mark) :], MARKS[mark]
        if close is None:
            break
        thought, _, rest = rest.partition(close)
        thoughts.append(thought.strip())
        close = None
    if not thoughts:
        return Parts("", text)
    return Parts("\n\n".join(filter(None, thoughts)), rest.lstrip())


def opened_by(prompt: str) -> str | None:
    """The mark of reasoning that a rendered prompt ends with, if any."""
    end = prompt.rstrip()
    return next((mark for mark in MARKS if end.endswith(mark)), None)


def visible_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """What the reader of a response sees: its messages' content, without reasoning that stands before an answer."""
    return "\n\n".join(split_reasoning(str(message.get("content") or "")).content for message in messages)
