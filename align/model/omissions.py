"""Detect what a chat template leaves out of a conversation or rewrites, by rendering it with marks in place of text.

In: a conversation in the common form (``core/messages.py``), the function that renders it, and its rendering. Out:
every content, reasoning, name or tool call that the rendering does not depend on. Not here: what follows from an
omission (``chat.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Messages = Sequence[Mapping[str, Any]]
Render = Callable[[Messages], str]
THOUGHT = "</think>"  # ends reasoning inside a message's content


class Omission(NamedTuple):
    """A part of a message that its rendering does not contain, or contains with other characters."""

    what: str
    is_reasoning: bool = False
    verb: str = "leaves out"

    def __str__(self) -> str:
        return f"the chat template {self.verb} {self.what}"


def omissions(render: Render, conversation: Messages, places: Sequence[int], rendered: str) -> Iterator[Omission]:
    """Yield what ``rendered`` leaves out of the messages at ``places``.

    A message is rendered again only where the rendering does not contain its text exactly, or where it has more than
    content.
    """
    for place in places:
        marked = _Marked(conversation, place, rendered)
        if marked.marks:
            shown = render([*conversation[:place], marked.message, *conversation[place + 1 :]])
            missing = [omission for mark, omission in marked.marks.items() if mark not in shown]
            yield from missing
            if marked.is_rewritten and all(omission.is_reasoning for omission in missing):
                yield Omission(
                    f"the letters of the content of a message of the {conversation[place]['role']}", verb="changes"
                )


class _Marked:
    """A message with a mark in place of each of its texts, and the omission that each mark would reveal."""

    def __init__(self, conversation: Messages, place: int, rendered: str) -> None:
        given = conversation[place]
        self.message = dict(given)
        self.marks: dict[str, Omission] = {}
        self.is_rewritten = False
        role = given["role"]
        content = str(given.get("content") or "").strip()
        if content and not ({*given} <= {"role", "content"} and content in rendered):
            self.message["content"] = self._content(content, role)
            answer = content.rpartition(THOUGHT)[2].strip()
            self.is_rewritten = role != "tool" and answer not in rendered  # a tool's output may be written as JSON
        if str(given.get("reasoning_content") or "").strip():
            self.message["reasoning_content"] = self._mark(f"the reasoning of a message of the {role}", True)
        if given.get("tool_calls"):
            self.message["tool_calls"] = [self._call(call) for call in given["tool_calls"]]
        if role == "tool":
            if not _answers_in_order(conversation, place):
                which = self._mark("which call a tool's output answers")
                self.message |= {key: which for key in ("tool_call_id", "name") if key in given}
        elif given.get("name"):
            self.message["name"] = self._mark(f"the name of a message of the {role}")

    def _mark(self, what: str, is_reasoning: bool = False) -> str:
        mark = f"zq{len(self.marks)}mark{len(self.marks)}qz"  # plain letters: no template or JSON writes them otherwise
        self.marks[mark] = Omission(what, is_reasoning)
        return mark

    def _content(self, content: str, role: str) -> str:
        thought, closed, answer = content.rpartition(THOUGHT)
        if not closed:
            return self._mark(f"the content of a message of the {role}")
        opened = "<think>" if "<think>" in thought else ""
        written = opened
        if thought.replace("<think>", "").strip():
            written += f"\n{self._mark(f'the reasoning in a message of the {role}', True)}\n"
        written += f"{THOUGHT}\n\n"
        return written + self._mark(f"the content of a message of the {role}") if answer.strip() else written

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = {**call["function"], "name": self._mark("the name of a tool call")}
        function["arguments"] = {key: self._mark("an argument of a tool call") for key in function["arguments"]}
        return {**call, "function": function}


def _answers_in_order(conversation: Messages, place: int) -> bool:
    """Return whether a tool message answers the next call in order, so that its name and id add no information."""
    first = place
    while first and conversation[first]["role"] == "tool":
        first -= 1
    calls = conversation[first].get("tool_calls") or []
    number, message = place - first - 1, conversation[place]
    call: Mapping[str, Any] = calls[number] if number < len(calls) else {}
    named = {"tool_call_id": call.get("id"), "name": call.get("function", {}).get("name")}
    return all(message[key] == named[key] or (call and named[key] is None) for key in named if key in message)
