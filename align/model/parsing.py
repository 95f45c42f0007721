"""Parse a sampled response into a message for people: content, reasoning and tool calls.

In: token ids after their prompt. Out: one assistant message. Where the tokenizer has a ``response_template``, which
transformers parses, that is used; the channels of gpt-oss are read in the same way; elsewhere reasoning is the text
between marks (``core/messages.py``) and everything else is content. Scoring and training use the ids, never this
message rendered again. Not here: ids from messages (``chat.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align.core.messages import MARKS, opened_by, split_reasoning
from align.model.chat import Chat

CHANNEL = "<|channel|>"
SCAFFOLD = "<|start|>assistant"  # between two channels, without a meaning of its own
TAIL = 32  # last tokens of the prompt that are searched for a mark that opens reasoning
# gpt-oss ("harmony"): analysis is reasoning, final and preambles in commentary are content, commentary "to" is a call
CHANNELS: Mapping[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|start|>assistant",
    "fields": {
        "reasoning_content": {
            "open": "<|channel|>analysis<|message|>",
            "close": "<|end|>",
            "repeats": True,
            "join": "\n\n",
        },
        "content": {
            "open_pattern": r"<\|channel\|>(?:final|commentary)(?: ?<\|constrain\|>\w+)?<\|message\|>",
            "close": ["<|end|>", "<|return|>"],
            "content_args": {"strip": False},
            "repeats": True,
            "join": "\n\n",
        },
        "tool_calls": {
            "open_pattern": r"(?: to=functions\.(?P<name>[^\s<]+)<\|channel\|>commentary"
            r"|<\|channel\|>commentary to=functions\.(?P<name>[^\s<]+))"
            r"(?: ?(?:<\|constrain\|>)?\w+)?<\|message\|>",
            "close": "<|call|>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
    },
}


def parse_response(
    chat: Chat, prompt: Sequence[int], ids: Sequence[int], tools: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Parse the response ``ids`` after ``prompt``: content, and reasoning_content and tool_calls if it has them.

    Nothing is left out: what a response template cannot parse becomes content as it was written, with its special
    tokens.
    """
    template = _response_template(chat)
    if template is None:
        return _marked(chat, prompt, ids)
    try:
        parsed = _parsed(chat, template, prompt, ids, tools)
    except (ValueError, KeyError, TypeError):  # a tool call that is no JSON, or was cut
        parsed = _parsed(chat, _without_calls(template), prompt, ids, tools)
    last = chat.tokenizer.decode(list(ids[-1:])) if ids[-1] in chat.special_ids else ""
    outside = str(parsed.get("outside") or "").removesuffix(last).replace(SCAFFOLD, "")
    content = str(parsed.get("content") or "") + (outside if outside.strip() else "")
    return _message(content, parsed.get("reasoning_content") or parsed.get("thinking"), parsed.get("tool_calls"))


def _response_template(chat: Chat) -> Mapping[str, Any] | None:
    """Return how to parse responses; the tokenizer's ``response_template`` is valid for its own chat template only."""
    own: Mapping[str, Any] | None = getattr(chat.tokenizer, "response_template", None)
    if own is not None and chat.template == chat.tokenizer.chat_template:
        return own
    return CHANNELS if CHANNEL in chat.template else None


def _parsed(
    chat: Chat, template: Mapping[str, Any], prompt: Sequence[int], ids: Sequence[int], tools: Any
) -> dict[str, Any]:
    """Return the fields of a response; ``outside`` is text of no field, where the template has no field for it."""
    fields = template["fields"]
    if all("open" in field or "open_pattern" in field for field in fields.values()):
        template = {**template, "fields": {**fields, "outside": {"content_args": {"strip": False}}}}
    written, before = (str(chat.tokenizer.decode(list(part))) for part in (ids, prompt))
    parsed: dict[str, Any] = chat.tokenizer.parse_response(written, template, prefix=before, tools=tools)
    return parsed


def _without_calls(template: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: field for name, field in template["fields"].items() if name != "tool_calls"}
    return {**template, "fields": fields}


def _marked(chat: Chat, prompt: Sequence[int], ids: Sequence[int]) -> dict[str, Any]:
    """Return a message whose reasoning is between marks; marks that are special tokens are decoded too."""
    opened = opened_by(str(chat.tokenizer.decode(list(prompt[-TAIL:]))))
    marks = {*MARKS, *MARKS.values()}
    if any(chat.special_ids.get(i) in marks for i in ids):
        shown = [i for i in ids if chat.special_ids.get(i) in {None, *marks}]
        text = str(chat.tokenizer.decode(shown, skip_special_tokens=False))
    else:
        text = chat.text(ids)
    reasoning, content = split_reasoning(text, opened)
    return _message(content, reasoning)


def _message(content: str | None, reasoning: str | None = None, calls: Any = None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content or ""}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message
