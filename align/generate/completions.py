"""The chat-completions protocol: request bodies for an OpenAI-compatible endpoint, and how its answers are parsed.

In: requests, and decoded answers. Out: request bodies, samples, and the reason of a refusal, for which servers have
several forms. Nothing here sends a request (``endpoint.py`` does).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection
from typing import Any

from align.core.messages import REASONING, NoMessage, arguments_of, split_reasoning
from align.core.records import Message
from align.generate.sampler import Request, Sample

OPTIONAL = ("n", "seed", "max_tokens")  # fields of a request that a server need not support
ENDED = ("stop", "tool_calls", "function_call")
WITHHELD = ("content_filter", "error")  # finish reasons of a response that the server withheld or did not finish


def request_body(request: Request, model: str, n: int, seed: int, without: Collection[str]) -> dict[str, Any]:
    """Build the body of a request for ``n`` responses; ``without`` names fields that the server does not support."""
    limit = "max_completion_tokens" if "max_tokens" in without else "max_tokens"
    body: dict[str, Any] = {
        "model": model,
        "messages": [_as_sent(message) for message in request.messages],
        "temperature": request.temperature,
        limit: request.max_new_tokens,
        "seed": seed,
    }
    if n > 1:
        body["n"] = n
    if request.tools:
        body["tools"] = request.tools
    if request.arguments:
        body["chat_template_kwargs"] = dict(request.arguments)
    return {name: value for name, value in body.items() if name not in without}


def completion_fault(data: Any) -> str | None:
    """Return the field by which data is not a chat completion; None if it is one (also with an empty choices list)."""
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(choices, list):
        return f"'choices' is {_kind(choices)}, expected a list"
    faults = (_choice_fault(choice, f"choices[{number}]") for number, choice in enumerate(choices))
    return next((fault for fault in faults if fault), None)


def counted_tokens(data: dict[str, Any], name: str) -> int | None:
    """Return the number of a completion's ``usage`` under a name; None where it is missing."""
    usage = data.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and count >= 0 else None


def sample_of(choice: dict[str, Any]) -> Sample:
    """Convert a choice to a sample; reasoning and tool calls are kept."""
    received = choice["message"]
    called = received.get("function_call")  # the former format of tool calls
    if isinstance(called, dict) and isinstance(called.get("name"), str) and not received.get("tool_calls"):
        received = received | {"tool_calls": [{"type": "function", "function": called}]}
    text = received.get("content") or received.get("refusal") or ""
    content_parts = split_reasoning(text)  # not every server separates reasoning from content
    message: Message = {"role": "assistant", "content": content_parts.content}
    apart = next((received[name] for name in REASONING if received.get(name)), None)
    if reasoning := "\n\n".join(filter(None, (apart, content_parts.reasoning))):
        message["reasoning_content"] = reasoning
    if calls := received.get("tool_calls"):
        message["tool_calls"] = [_read_call(call) for call in calls]
    return Sample(message, ended=choice.get("finish_reason") in ENDED)


def failure_text(data: Any) -> str:
    """Return the reason that a server gives for a failure, as one text."""
    if not isinstance(data, dict):
        return "a page and not data"
    error = data.get("error") or data.get("detail") or data.get("message") or data
    if isinstance(error, dict):
        error = error.get("message") or json.dumps(error)
    if isinstance(error, list):  # in pydantic's format: location and message
        error = "; ".join(_problem(item) for item in error)
    return str(error)


def refused_field(data: Any) -> str | None:
    """Return the optional field that a refusal names, as its parameter or in quotes; None if it names none."""
    error = data.get("error") if isinstance(data, dict) else None
    parameter = error.get("param") if isinstance(error, dict) else None
    quoted = (name for name in OPTIONAL if re.search(rf"['\"`]{name}['\"`]", failure_text(data)))
    return parameter if parameter in OPTIONAL else next(quoted, None)


def _choice_fault(choice: Any, where: str) -> str | None:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return f"'{where}.message' is {_kind(message)}, expected an object"
    for name in ("content", "refusal", *REASONING):
        if message.get(name) is not None and not isinstance(message[name], str):
            return f"'{where}.message.{name}' is {_kind(message[name])}, expected text"
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        return f"'{where}.message.tool_calls' is {_kind(calls)}, expected a list"
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return f"'{where}.message.tool_calls' holds a call without the name of a function"
    return None


def _kind(value: Any) -> str:
    """Return the JSON type of a value, for error messages."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "missing")


def _problem(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    place = item.get("loc")
    return f"'{place[-1] if isinstance(place, list) and place else place or '?'}': {item.get('msg')}"


def _read_call(call: dict[str, Any]) -> dict[str, Any]:
    """Return a tool call with its arguments as an object; arguments that are not valid JSON stay a text."""
    function = dict(call["function"])
    with contextlib.suppress(NoMessage):
        function["arguments"] = arguments_of(function.get("arguments") or {}, "response")
    return {name: call[name] for name in ("id", "type") if name in call} | {"function": function}


def _as_sent(message: Message) -> Message:
    """Return a message with the arguments of its tool calls as text, which the protocol requires."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = dict(call.get("function") or {})
        if not isinstance(function.get("arguments"), str):
            function["arguments"] = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
        calls.append({"type": "function", **call, "function": function})
    return {**message, "tool_calls": calls}
