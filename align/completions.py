"""The chat-completions protocol: what is sent to an OpenAI-compatible endpoint, and what its answers say.

In: prompts as messages, and decoded answers. Out: request bodies, responses as candidates hold them, and the words of
a refusal in the several forms that servers have for them. Nothing here talks to a server (``endpoint.py`` does).
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import re
import time
from collections.abc import Collection
from typing import Any, NamedTuple

from align.core.messages import REASONING, NoMessage, arguments_of
from annotation.types import Message

OPTIONAL = ("n", "seed", "max_tokens")  # fields that a server may refuse and still be of use
ENDED = ("stop", "tool_calls", "function_call")
WITHHELD = "content_filter"


class Asked(NamedTuple):
    """A prompt to send; ``seeds`` hold one seed for each response that is wanted."""

    id: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    arguments: dict[str, Any]
    seeds: list[int]


class Manner(NamedTuple):
    """How a model is asked, the same for all prompts."""

    model: str
    temperature: float
    max_new_tokens: int


def request_body(asked: Asked, manner: Manner, n: int, seed: int, without: Collection[str]) -> dict[str, Any]:
    """The request for ``n`` responses; ``without`` names optional fields that the server does not take."""
    limit = "max_completion_tokens" if "max_tokens" in without else "max_tokens"
    body: dict[str, Any] = {
        "model": manner.model,
        "messages": [_as_sent(message) for message in asked.messages],
        "temperature": manner.temperature,
        limit: manner.max_new_tokens,
        "seed": seed,
    }
    if n > 1:
        body["n"] = n
    if asked.tools:
        body["tools"] = asked.tools
    if asked.arguments:
        body["chat_template_kwargs"] = asked.arguments
    return {name: value for name, value in body.items() if name not in without}


def is_completion(data: Any) -> bool:
    """Whether decoded data has the form of a chat completion (its choices may be none)."""
    if not isinstance(data, dict) or not isinstance(data.get("usage") or {}, dict):
        return False
    choices = data.get("choices")
    return isinstance(choices, list) and all(_is_choice(choice) for choice in choices)


def response(choice: dict[str, Any], origin: str) -> dict[str, Any]:
    """A choice as a response of ``candidates.jsonl``; reasoning and tool calls are kept."""
    said = choice["message"]
    message: Message = {"role": "assistant", "content": said.get("content") or said.get("refusal") or ""}
    if reasoning := next((text for name in REASONING if (text := said.get(name))), None):
        message["reasoning_content"] = reasoning
    if calls := said.get("tool_calls"):
        message["tool_calls"] = [_read_call(call) for call in calls]
    return {"messages": [message], "origin": origin, "ended": choice.get("finish_reason") in ENDED}


def words(data: Any) -> str:
    """What a server says of a failure."""
    if not isinstance(data, dict):
        return "a page and not data"
    error = data.get("error") or data.get("detail") or data.get("message") or data
    if isinstance(error, dict):
        error = error.get("message") or json.dumps(error)
    if isinstance(error, list):  # pydantic's: where, and what
        found = [(item.get("loc") or ["?"], item.get("msg")) for item in error if isinstance(item, dict)]
        error = "; ".join(f"'{place[-1]}': {problem}" for place, problem in found)
    return str(error)


def refused_field(data: Any) -> str | None:
    """The optional field that a refusal names: as its parameter, or in quotes."""
    error = data.get("error") if isinstance(data, dict) else None
    parameter = error.get("param") if isinstance(error, dict) else None
    quoted = (name for name in OPTIONAL if re.search(rf"['\"`]{name}['\"`]", words(data)))
    return parameter if parameter in OPTIONAL else next(quoted, None)


def retry_after(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header: a number or a date (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _is_choice(choice: Any) -> bool:
    said = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(said, dict):
        return False
    calls = said.get("tool_calls") or []
    texts = [said.get(name) for name in ("content", "refusal", *REASONING)]
    return all(text is None or isinstance(text, str) for text in texts) and all(
        isinstance(call, dict) and isinstance(call.get("function"), dict) for call in calls
    )


def _read_call(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments as an object; what spells none stays as the model wrote it, for people to see."""
    function = dict(call["function"])
    with contextlib.suppress(NoMessage):
        function["arguments"] = arguments_of(function.get("arguments") or {}, "response")
    return {name: call[name] for name in ("id", "type") if name in call} | {"function": function}


def _as_sent(message: Message) -> Message:
    """A message with the arguments of its tool calls as text, as the protocol wants them."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = dict(call.get("function") or {})
        if not isinstance(function.get("arguments"), str):
            function["arguments"] = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
        calls.append({"type": "function", **call, "function": function})
    return {**message, "tool_calls": calls}
