"""Render messages as HTML that an annotator reads, in frames that know no style of their own.

In: chat messages and guidelines, which nobody vouches for. Out: HTML of a fixed set of tags, with no script, image,
address or form in it. Markdown is shown as it (``markdown.py``); wherever that hides a character of the text, the text
as it was written can be unfolded above it. Line breaks of messages are kept, those of guidelines join a paragraph.
What nobody would see (signs of direction, of no width, control characters) is written out: ⟨U+202E⟩. ``RENDERING`` is
the version of all this, and part of every interface: answers to texts that were shown differently are never mixed.

What is folded away (reasoning, tools, concealed items) is in ``<details>``: plain HTML, no script. The frame
around a page takes its height once, when it is loaded; a page with something folded therefore keeps a least height,
and what is unfolded scrolls within it. Not here: who sees what (``config.py``). Never shown: the origin of a response,
and any key of a message other than role, content, reasoning, tool calls and the name of a tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from pydantic import Field, field_validator

from align.core.messages import scrubbed
from align.core.records import Message, Record
from annotation.interface.markdown import NOTE, as_written, code, markdown

RENDERING = 2  # raise it with every change of what a page shows of the same text
UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # control characters, but for tab and ends of lines
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # directions of writing
    "\u200b\u2028\u2029\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb"  # of no width; joiners of scripts and emoji stay
    "\U000e0000-\U000e007f]"  # tags: a text within the text, that only machines read
)

FONT = "font:15px/1.5 system-ui,sans-serif"
PAGE = f"background:#fff;color:#111;{FONT};margin:-8px;padding:4px 10px;overflow:auto;overflow-wrap:anywhere"
FOLDED = ";min-height:120px"
BAR = "background:#eef1f6;color:#333;font-weight:600;font-size:13px;padding:2px 8px;margin:8px 0 4px;border-radius:4px"
WARNING = "background:#fff3cd;color:#111;font-weight:600;padding:8px;cursor:pointer"


class InterfaceWords(Record):
    """The interface's own words in one language; ``names`` are words for ratings, flags and labels, if any."""

    system: str
    user: str
    assistant: str
    tool: str
    tools: str
    tool_call: str
    reasoning: str
    as_written: str
    warning: str
    no_history: str
    guidelines: str
    history: str
    prompt: str
    response: str
    ask_pairwise: str
    ask_ranking: str
    ask_thumbs: str
    ask_labels: str
    keys: str
    required: str
    left_much_better: str
    left_better: str
    left_slightly_better: str
    tie: str
    right_slightly_better: str
    right_better: str
    right_much_better: str
    both_bad: str
    too_disturbing: str
    up: str
    down: str
    unranked: str
    places: list[str] = Field(min_length=6, max_length=6, description="titles of the places of a ranking, best first")
    flags: str
    rationale: str
    improve: str
    improve_single: str
    names: dict[str, str] = Field(default_factory=dict)

    @field_validator("*")
    @classmethod
    def _shown_as_it_is(cls, value: Any) -> Any:
        """Refuse an empty word, and a dollar sign, which would name a field of the task."""
        words = [value] if isinstance(value, str) else list(value.values()) if isinstance(value, dict) else value
        if not all(word.strip() and "$" not in word for word in words):
            raise ValueError("words must not be empty or hold '$'")
        return value

    def name(self, name: str) -> str:
        """Return the word for a rating, flag or label: as the language file has it, else the name with spaces."""
        return self.names.get(name, name.replace("_", " "))


def scrub(text: str) -> str:
    """Return ``text`` with every lone surrogate and NUL replaced by U+FFFD: no server or database holds those."""
    return str(scrubbed(text, [0]))


def visible(text: str) -> str:
    """Return ``text`` scrubbed, with every character that nobody would see written out."""
    return UNSEEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", scrub(text))


def chat_html(
    messages: Sequence[Message],
    words: InterfaceWords,
    *,
    tools: Sequence[dict[str, Any]] | None = None,
    concealed: bool = False,
) -> str:
    """Return a page of messages under bars with their roles, after the (folded) tools that the assistant could call.

    ``concealed`` folds all of it behind the warning.
    """
    parts = [_folded(words.tools, _code(_json(list(tools))))] if tools else []
    parts += [message_html(message, words) for message in messages]
    return _page("".join(parts), words, concealed) if parts else _nothing(words.no_history)


def response_html(messages: Sequence[Message], words: InterfaceWords, *, concealed: bool = False) -> str:
    """Return a page of one response: as ``chat_html``, without a bar over a single message."""
    if len(messages) > 1:
        return chat_html(messages, words, concealed=concealed)
    return _page("".join(_message_body(message, words) for message in messages), words, concealed)


def prompt_html(message: Message, words: InterfaceWords, *, concealed: bool = False) -> str:
    """Return a page of the message to answer, under a bar with its role unless the user speaks."""
    page = response_html if message["role"] == "user" else chat_html
    return page([message], words, concealed=concealed)


def guidelines_html(text: str) -> str:
    """Return the guidelines, which are Markdown, as a page."""
    if not text.strip():
        return _nothing("")
    return f'<div dir="auto" style="{PAGE}">{markdown(visible(text), breaks=False).html}</div>'


def message_html(message: Message, words: InterfaceWords) -> str:
    """Return one message under a bar with its role (and the tool's name); an unknown role is shown as it is."""
    role = str(message["role"])
    title = getattr(words, role) if role in ("system", "user", "assistant", "tool") else role
    if role == "tool" and message.get("name"):
        title = f"{title}: {message['name']}"
    return f'<div dir="auto" style="{BAR}">{_text(title)}</div>{_message_body(message, words)}'


def _message_body(message: Message, words: InterfaceWords) -> str:
    """Return reasoning (folded), content (a tool's as code) and tool calls, in that order, without what is missing."""
    content = str(message.get("content") or "")
    parts = []
    if reasoning := message.get("reasoning_content"):
        parts.append(_folded(words.reasoning, _written(str(reasoning), words)))
    if content:
        parts.append(_code(content) if message["role"] == "tool" else _written(content, words))
    for call in message.get("tool_calls") or []:
        name, arguments = _called(call)
        title = f"{words.tool_call}: {name}" if name else words.tool_call
        parts.append(f'<div dir="auto" style="{NOTE}">{_text(title)}</div>{_code(arguments)}')
    return "".join(parts)


def _called(call: Any) -> tuple[str, str]:
    """Name and arguments of a tool call as text; a call of another shape is all arguments."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or "name" not in function:
        return "", _json(call)
    arguments = function.get("arguments", {})
    return str(function["name"]), arguments if isinstance(arguments, str) else _json(arguments)


def _page(body: str, words: InterfaceWords, concealed: bool) -> str:
    if concealed:
        body = f'<details><summary style="{WARNING}">{_text(words.warning)}</summary>{body}</details>'
    style = PAGE + (FOLDED if "<details>" in body else "")
    return f'<div dir="auto" style="{style}">{body}</div>'


def _nothing(note: str) -> str:
    """Return an empty page: it alone begins with a paragraph, by which its box is recognised and left out."""
    return f'<p dir="auto" style="{PAGE};{NOTE}">{_text(note)}</p>'


def _folded(title: str, body: str) -> str:
    return f'<details><summary style="{NOTE}">{_text(title)}</summary>{body}</details>'


def _written(text: str, words: InterfaceWords) -> str:
    """Render text as Markdown, after the text as it was written, folded, where Markdown hides something of it."""
    text = visible(text)
    rendered = markdown(text)
    return (_folded(words.as_written, as_written(text)) if rendered.hides else "") + rendered.html


def _code(text: str) -> str:
    return code(visible(text))


def _text(text: str) -> str:
    return escape(visible(text))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)
