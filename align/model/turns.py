"""Find the assistant's own turns in a rendered response: between them are tool outputs and headers.

In: a function that renders a conversation, and a response of several messages. Out: spans of its text. A turn is
located by rendering the messages before it, never from token ids. Not here: encoding (``chat.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

MARK = "zq0mark0qz"


class CannotTell(ValueError):
    """The template does not show where a turn begins or ends."""


class Span(NamedTuple):
    """Characters from ``start`` (included) to ``end`` (excluded)."""

    start: int
    end: int


class Render(Protocol):
    """Render a conversation as text; ``ask`` adds the generation prompt."""

    def __call__(self, messages: Sequence[Mapping[str, Any]], *, ask: bool = False) -> str: ...


def own_turns(
    render: Render,
    prompt: Sequence[Mapping[str, Any]],
    response: Sequence[Mapping[str, Any]],
    whole: str,
    ends: Sequence[str],
) -> list[Span]:
    """Spans of ``whole`` that the assistant writes: after the generation prompt, up to and with the turn's end token.

    Args:
        whole: the rendering of prompt and response without the last turn's end token.
        ends: the texts of the tokens that end a turn.

    Raises:
        CannotTell: a turn's beginning or end is not shown, or a tool's output is inside the assistant's turn.
    """
    spans: list[Span] = []
    for place, message in enumerate(response):
        if message["role"] != "assistant":
            continue
        start = _prefix(render([*prompt, *response[:place]], ask=True), whole, "begins")
        end = len(whole) if place == len(response) - 1 else _first_end(whole, start, ends)
        if spans and start < spans[-1].end:
            raise CannotTell("the chat template does not show where the assistant's turn ends")
        spans.append(Span(start, end))
    for place, message in enumerate(response):
        if message["role"] == "assistant":
            continue
        changed = [*response[:place], {**message, "content": MARK}, *response[place + 1 :]]
        at = _prefix(render([*prompt, *changed]).partition(MARK)[0], whole, "ends")
        if any(span.start <= at < span.end for span in spans):
            raise CannotTell("the chat template does not show where the assistant's turn ends")
    return spans


def _prefix(before: str, whole: str, what: str) -> int:
    if not whole.startswith(before):
        raise CannotTell(f"the chat template does not show where the assistant's turn {what}")
    return len(before)


def _first_end(whole: str, start: int, ends: Sequence[str]) -> int:
    ends_at = [at + len(end) for end in ends if (at := whole.find(end, start)) >= 0]
    if not ends_at:
        raise CannotTell("the chat template does not show where the assistant's turn ends")
    return min(ends_at)
