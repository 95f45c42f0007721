"""The chat-completions protocol: what is sent to an OpenAI-compatible endpoint, and what its answers say.

In: requests, and decoded answers. Out: request bodies, samples, and the words of a refusal in the several forms that
servers have for them. Nothing here talks to a server (``endpoint.py`` does).
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

OPTIONAL = ("n", "seed", "max_tokens")  # fields that a server may refuse and still be of use
ENDED = ("stop", "tool_calls", "function_call")
WITHHELD = ("content_filter", "error")  # finish reasons of a response that its server kept back or gave up on


def request_body(request: Request, model: str, n: int, seed: int, without: Collection[str]) -> dict[str, Any]:
    """The body that asks for ``n`` responses; ``without`` names optional fields that the server does not take."""
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
    """Why decoded data is no chat completion, by its field; None if it is one (without choices, too)."""
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(choices, list):
        return f"'choices' is {_kind(choices)}, expected a list"
    faults = (_choice_fault(choice, f"choices[{number}]") for number, choice in enumerate(choices))
    return next((fault for fault in faults if fault), None)


def counted_tokens(data: dict[str, Any], name: str) -> int | None:
    """What a completion's ``usage`` counts under a name; None where it does not."""
    usage = data.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and count >= 0 else None


def sample_of(choice: dict[str, Any]) -> Sample:
    """A choice as a sample; reasoning and tool calls are kept."""
    received = choice["message"]
    called = received.get("function_call")  # the form before tool calls
    if isinstance(called, dict) and isinstance(called.get("name"), str) and not received.get("tool_calls"):
        received = received | {"tool_calls": [{"type": "function", "function": called}]}
    text = received.get("content") or received.get("refusal") or ""
    content_parts = split_reasoning(text)  # not every server keeps them apart
    message: Message = {"role": "assistant", "content": content_parts.content}
    apart = next((received[name] for name in REASONING if received.get(name)), None)
    if reasoning := "\n\n".join(filter(None, (apart, content_parts.reasoning))):
        message["reasoning_content"] = reasoning
    if calls := received.get("tool_calls"):
        message["tool_calls"] = [_read_call(call) for call in calls]
    return Sample(message, ended=choice.get("finish_reason") in ENDED)


def words(data: Any) -> str:
    """The reason that a server gives for a failure, in one text."""
    if not isinstance(data, dict):
        return "a page and not data"
    error = data.get("error") or data.get("detail") or data.get("message") or data
    if isinstance(error, dict):
        error = error.get("message") or json.dumps(error)
    if isinstance(error, list):  # pydantic's: where, and what
        error = "; ".join(_problem(item) for item in error)
    return str(error)


def refused_field(data: Any) -> str | None:
    """The optional field that a refusal names: as its parameter, or in quotes."""
    error = data.get("error") if isinstance(data, dict) else None
    parameter = error.get("param") if isinstance(error, dict) else None
    quoted = (name for name in OPTIONAL if re.search(rf"['\"`]{name}['\"`]", words(data)))
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
    """The type of a value, in JSON's words."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "missing")


def _problem(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    place = item.get("loc")
    return f"'{place[-1] if isinstance(place, list) and place else place or '?'}': {item.get('msg')}"


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
