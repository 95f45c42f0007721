"""Convert messages of all sources to one form, which all readers produce and all rendering expects.

In: a text, a message, or a list of messages, as files and servers give them. Out: messages of known roles with text as
content, reasoning under ``reasoning_content`` and tool calls whose arguments are objects. A field that has no place in
this form is refused by name, since a template would leave it out without a word. Not here: what a template makes of it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from align.core.limits import parse_json
from align.core.records import Message

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING = ("reasoning_content", "reasoning", "thinking")  # names that servers and templates have for one thing
FIELDS = {"role", "content", "name", "tool_calls", "tool_call_id", *REASONING}
MARKS: Mapping[str, str] = {  # what opens reasoning, by family, and what closes it
    "<think>": "</think>",  # Qwen3, DeepSeek-R1, GLM, SmolLM3, ...
    "[THINK]": "[/THINK]",  # Magistral
    "<seed:think>": "</seed:think>",  # Seed-OSS
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command A Reasoning
}
NOTHING: tuple[Any, ...] = (None, "", [], {})


class NoMessage(ValueError):
    """A value is no message; the text is the reason. Rows that differ only in brackets at its end have one reason."""


def read_messages(value: Any, role: str, where: str) -> list[Message]:
    """Return messages in the one form; text is one message of ``role``, None and the empty text are no messages.

    Raises:
        NoMessage: it is neither text nor messages, or a message has a field that the form does not have.
    """
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple) or not all(isinstance(message, Mapping) for message in value):
        raise NoMessage(f"{where} is neither text nor messages")
    return [read_message(message, where) for message in value]


def read_message(given: Mapping[str, Any], where: str) -> Message:
    """Return a message in the one form, without the empty fields with which tables fill their rows.

    Raises:
        NoMessage: see ``read_messages``.
    """
    message = {key: value for key, value in given.items() if value not in NOTHING or (key, value) == ("content", "")}
    if not isinstance(message.get("role"), str):
        raise NoMessage(f"{where}: a message has no role (it holds {', '.join(map(repr, message)) or 'nothing'})")
    role = message["role"]
    if role not in ROLES:
        raise NoMessage(f"{where}: unknown role {role[:40]!r}; roles are {', '.join(ROLES)}")
    if unknown := sorted(set(message) - FIELDS):
        hint = "; is it the content?" if "content" not in message and isinstance(message[unknown[0]], str) else ""
        raise NoMessage(f"{where}: a message of the {role} holds '{unknown[0]}', which is no field of a message{hint}")
    for name in ("name", "tool_call_id"):
        if not isinstance(message.get(name, ""), str):
            raise NoMessage(f"{where}: '{name}' of a message is no text")
    read = {key: value for key, value in message.items() if key not in REASONING}
    if "content" in message:
        read["content"] = _text(message["content"], where)
    if (reasoning := _reasoning(message, where)) is not None:
        read["reasoning_content"] = reasoning
    if "tool_calls" in message:
        read["tool_calls"] = _calls(message["tool_calls"], where)
    return read


def arguments_of(given: Any, where: str) -> dict[str, Any]:
    """Return the arguments of a tool call as an object; JSON text of an object is parsed once.

    Raises:
        NoMessage: they are neither.
    """
    arguments = given
    if isinstance(given, str):
        try:
            arguments = parse_json(given) if given.strip() else {}
        except ValueError:
            raise NoMessage(f"{where}: a tool call's arguments are not JSON ({given[:60]!r})") from None
    if not isinstance(arguments, Mapping):
        raise NoMessage(f"{where}: a tool call's arguments are no JSON object ({str(given)[:60]!r})")
    return dict(arguments)


def _text(content: Any, where: str) -> str:
    """Return content as text: the parts of a list are joined where all are text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise NoMessage(f"{where}: a message's content is neither text nor parts")
    texts = []
    for part in content:
        filled = {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else {}
        if set(filled) - {"type"} != {"text"} or filled.get("type", "text") != "text":
            kind = filled.get("type", type(part).__name__) if isinstance(part, Mapping) else type(part).__name__
            raise NoMessage(f"{where}: a message holds a part of type '{kind}', and only text is read here")
        if not isinstance(filled["text"], str):
            raise NoMessage(f"{where}: a text part of a message holds no text")
        texts.append(filled["text"])
    return "".join(texts)


def _reasoning(message: Mapping[str, Any], where: str) -> str | None:
    """Return the reasoning of a message, under any of its names; None where it has none."""
    given = {name: message[name] for name in REASONING if name in message}
    if not all(isinstance(text, str) for text in given.values()):
        raise NoMessage(f"{where}: '{next(iter(given))}' of a message is no text")
    if len(set(given.values())) > 1:
        raise NoMessage(f"{where}: a message's {' and '.join(given)} differ")
    return next(iter(given.values()), None)


def _calls(given: Any, where: str) -> list[dict[str, Any]]:
    """Convert tool calls to ``{"type": "function", "function": {"name", "arguments"}}``, with their ids."""
    if not isinstance(given, list | tuple) or not all(isinstance(call, Mapping) for call in given):
        raise NoMessage(f"{where}: tool_calls of a message are no list of objects")
    return [_call({key: value for key, value in call.items() if value is not None}, where) for call in given]


def _call(call: dict[str, Any], where: str) -> dict[str, Any]:
    function = call.get("function", {key: value for key, value in call.items() if key in ("name", "arguments")})
    own = {"function"} if "function" in call else {"name", "arguments"}
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise NoMessage(f"{where}: a tool call names no function")
    if call.get("type", "function") != "function":
        raise NoMessage(f"{where}: a tool call of type {str(call['type'])[:40]!r}; only functions are read here")
    unknown = sorted({*call} - own - {"id", "type", "index"}) + sorted({*function} - {"name", "arguments"})
    if unknown:
        raise NoMessage(f"{where}: a tool call holds '{unknown[0]}', which is no field of one")
    arguments = function.get("arguments")
    read = {"name": function["name"], "arguments": arguments_of({} if arguments is None else arguments, where)}
    known = {"id": call["id"]} if "id" in call else {}
    return {**known, "type": "function", "function": read}


UNSTORABLE = re.compile("[\ud800-\udfff\0]")


def scrubbed(value: Any, count: list[int]) -> Any:
    """Copy a JSON value with NUL and lone surrogates replaced by U+FFFD; adds how many to ``count[0]``."""
    if isinstance(value, str):
        clean, n = UNSTORABLE.subn("\ufffd", value)
        count[0] += n
        return clean
    if isinstance(value, list):
        return [scrubbed(item, count) for item in value]
    if isinstance(value, dict):
        return {scrubbed(key, count): scrubbed(item, count) for key, item in value.items()}
    return value


def normalised(prompt: Sequence[Message]) -> str:
    """Return a prompt's text without case, spaces and punctuation, so that near-duplicates are equal.

    A prompt of punctuation alone keeps it, and so does a message without text (its tool calls count).
    """
    return "\n".join(f"{message['role']}: {_plain(message)}" for message in prompt)


def _plain(message: Message) -> str:
    text = str(message.get("content") or "") or json.dumps(message, sort_keys=True)
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_WORDS).split()) or folded


class _Words(dict[int, str]):
    """A table of characters for normalised prompts: a character that is no part of a word becomes a space."""

    def __missing__(self, code: int) -> str:
        self[code] = chr(code) if unicodedata.category(chr(code))[0] in "LNMS" else " "
        return self[code]


_WORDS = _Words()


class Parts(NamedTuple):
    """The reasoning and the content of a response."""

    reasoning: str
    content: str


def split_reasoning(text: str, opened: str | None = None) -> Parts:
    """Split a response into reasoning and content; a text without marks is content as a whole.

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
    """Return the mark of reasoning that a rendered prompt ends with, if any."""
    end = prompt.rstrip()
    return next((mark for mark in MARKS if end.endswith(mark)), None)


def visible_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of a response that its reader sees: content without the reasoning before it."""
    return "\n\n".join(split_reasoning(str(message.get("content") or "")).content for message in messages)
