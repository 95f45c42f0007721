"""A sampled response as a message for people: content, and apart from it reasoning and tool calls.

In: token ids after their prompt. Out: one assistant message. A tokenizer that says how its responses are read
(``response_template``, parsed by transformers) is believed; the channels of gpt-oss are read the same way; elsewhere
reasoning stands between marks (``reasoning.py``) and everything else is content. What is scored and trained on are the
ids, never this message rendered again. Not here: ids from messages (``text.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align.core.messages import MARKS, opened_by, split_reasoning
from align.model.chat import Chat

CHANNEL = "<|channel|>"
SCAFFOLD = "<|start|>assistant"  # what stands between two channels and means nothing by itself
TAIL = 32  # tokens of the prompt that are looked at for a mark that opens reasoning
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
    """The response ``ids`` after ``prompt`` as a message: content, where it has them reasoning_content and tool_calls.

    Nothing is left out: what a response template cannot read becomes content as it was written, special tokens in
    sight.
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
    """How the responses to this template are read; the tokenizer's word holds for the tokenizer's own template."""
    own: Mapping[str, Any] | None = getattr(chat.tokenizer, "response_template", None)
    if own is not None and chat.template == chat.tokenizer.chat_template:
        return own
    return CHANNELS if CHANNEL in chat.template else None


def _parsed(
    chat: Chat, template: Mapping[str, Any], prompt: Sequence[int], ids: Sequence[int], tools: Any
) -> dict[str, Any]:
    """The fields of a response; ``outside`` holds what stands in no field where the template does not say where."""
    fields = template["fields"]
    if all("open" in field or "open_pattern" in field for field in fields.values()):
        template = {**template, "fields": {**fields, "outside": {"content_args": {"strip": False}}}}
    written, before = (str(chat.tokenizer.decode(list(part))) for part in (ids, prompt))
    found: dict[str, Any] = chat.tokenizer.parse_response(written, template, prefix=before, tools=tools)
    return found


def _without_calls(template: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: field for name, field in template["fields"].items() if name != "tool_calls"}
    return {**template, "fields": fields}


def _marked(chat: Chat, prompt: Sequence[int], ids: Sequence[int]) -> dict[str, Any]:
    """Reasoning between marks, which are kept in sight also where they are special tokens."""
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
