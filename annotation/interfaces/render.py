"""Messages as HTML that an annotator reads: Markdown made safe, in frames that know no style of their own.

In: chat messages and guidelines, which nobody vouches for. Out: HTML of a fixed set of tags, with no script, image,
address or form in it. Whatever could run or load is shown as the text it is: HTML tags and entities, links, images and
link definitions of Markdown stay as they were written. Line breaks are kept. Text that is too long for the Markdown
parser, or of which it would leave something out, is shown as it was written, in a monospaced block.

What is folded away (reasoning, tools, concealed items) stands in ``<details>``: plain HTML, no script. The frame
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

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from pydantic import Field, field_validator

from annotation.readers.formats import scrubbed
from annotation.types import Message, Record

MARKDOWN_LIMIT = 50_000  # characters; the parser is slow, in places quadratic, beyond
LEFT_AS_TEXT = ["entity", "link", "image", "autolink", "reference"]  # and HTML, by an option
SYNTAX = re.compile(r"[\s!-/:-@\[-`{-~]+")  # white space and ASCII punctuation: what Markdown may take for its own

FONT = "font:15px/1.5 system-ui,sans-serif"
PAGE = f"background:#fff;color:#111;{FONT};margin:-8px;padding:4px 10px;overflow:auto;overflow-wrap:anywhere"
FOLDED = ";min-height:120px"
BAR = "background:#eef1f6;color:#333;font-weight:600;font-size:13px;padding:2px 8px;margin:8px 0 4px;border-radius:4px"
NOTE = "color:#666;font-size:12px"
CODE = "background:#f5f5f5;padding:6px 8px;margin:4px 0;white-space:pre-wrap;overflow:auto;max-height:480px"
WARNING = "background:#fff3cd;color:#111;font-weight:600;padding:8px;cursor:pointer"
STYLES = {  # lists leave room on both sides: their items find their own direction, and numbers stand before them
    "p": "margin:6px 0",
    "h1": "font-size:1.3em;margin:8px 0 4px",
    "h2": "font-size:1.15em;margin:8px 0 4px",
    "h3": "font-size:1em;margin:8px 0 4px",
    "ul": "margin:6px 0;padding:0 28px",
    "ol": "margin:6px 0;padding:0 28px",
    "table": "border-collapse:collapse",
    "th": "border:1px solid #bbb;padding:2px 6px",
    "td": "border:1px solid #bbb;padding:2px 6px",
    "blockquote": "border-left:3px solid #bbb;margin:4px 0;padding-left:8px",
}


class Words(Record):
    """What the interface itself says in one language; ``names`` are words for ratings, flags and labels, if any."""

    system: str
    user: str
    assistant: str
    tool: str
    tools: str
    tool_call: str
    reasoning: str
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
        """No word is empty, and none holds a dollar sign, which would name a field of the task."""
        words = [value] if isinstance(value, str) else list(value.values()) if isinstance(value, dict) else value
        if not all(word.strip() and "$" not in word for word in words):
            raise ValueError("words must not be empty or hold '$'")
        return value

    def name(self, name: str) -> str:
        """The word for a rating, flag or label: as the language file has it, else the name with spaces."""
        return self.names.get(name, name.replace("_", " "))


def scrub(text: str) -> str:
    """``text`` with every lone surrogate and NUL replaced by U+FFFD: no server or database holds those."""
    return str(scrubbed(text, [0]))


def chat_html(
    messages: Sequence[Message], words: Words, *, tools: Sequence[dict[str, Any]] | None = None, concealed: bool = False
) -> str:
    """A page of messages under bars with their roles, before them the tools (folded) that the assistant could call.

    ``concealed`` folds all of it behind the warning.
    """
    parts = [_folded(words.tools, _code(_json(list(tools))))] if tools else []
    parts += [message_html(message, words) for message in messages]
    return _page("".join(parts), words, concealed) if parts else _nothing(words.no_history)


def response_html(messages: Sequence[Message], words: Words, *, concealed: bool = False) -> str:
    """A page of one response: as ``chat_html``, without a bar over a single message."""
    if len(messages) > 1:
        return chat_html(messages, words, concealed=concealed)
    return _page("".join(_message_body(message, words) for message in messages), words, concealed)


def prompt_html(message: Message, words: Words, *, concealed: bool = False) -> str:
    """A page of the message to answer, under a bar with its role unless the user speaks."""
    page = response_html if message["role"] == "user" else chat_html
    return page([message], words, concealed=concealed)


def guidelines_html(markdown: str) -> str:
    """The guidelines as a page."""
    return f'<div dir="auto" style="{PAGE}">{_markdown(markdown)}</div>' if markdown.strip() else _nothing("")


def message_html(message: Message, words: Words) -> str:
    """One message under a bar with its role (and the tool's name); an unknown role is shown as it is."""
    role = str(message["role"])
    title = getattr(words, role) if role in ("system", "user", "assistant", "tool") else role
    if role == "tool" and message.get("name"):
        title = f"{title}: {message['name']}"
    return f'<div dir="auto" style="{BAR}">{_text(title)}</div>{_message_body(message, words)}'


def _message_body(message: Message, words: Words) -> str:
    """Reasoning (folded), content (a tool's as code) and tool calls, in that order; what is missing is left out."""
    content = str(message.get("content") or "")
    parts = []
    if reasoning := message.get("reasoning_content"):
        parts.append(_folded(words.reasoning, _markdown(str(reasoning))))
    if content:
        parts.append(_code(content) if message["role"] == "tool" else _markdown(content))
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


def _page(body: str, words: Words, concealed: bool) -> str:
    if concealed:
        body = f'<details><summary style="{WARNING}">{_text(words.warning)}</summary>{body}</details>'
    style = PAGE + (FOLDED if "<details>" in body else "")
    return f'<div dir="auto" style="{style}">{body}</div>'


def _nothing(note: str) -> str:
    """A page that says nothing: it alone begins with a paragraph, by which its box is known and left out."""
    return f'<p dir="auto" style="{PAGE};{NOTE}">{_text(note)}</p>'


def _folded(title: str, body: str) -> str:
    return f'<details><summary style="{NOTE}">{_text(title)}</summary>{body}</details>'


def _code(text: str) -> str:
    return f'<pre dir="ltr" style="{CODE}"><code>{_text(text)}</code></pre>'


def _text(text: str) -> str:
    return escape(scrub(text))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)


def _markdown(text: str) -> str:
    """Markdown as HTML; as it was written where the parser would be slow or leave something out."""
    text = scrub(text)
    tokens = PARSER.parse(text) if len(text) <= MARKDOWN_LIMIT else []
    if _substance(text) != sum(_token_substance(token) for token in tokens):
        return f'<pre dir="auto" style="{CODE}"><code>{escape(text)}</code></pre>'
    for token in tokens:
        _dress(token)
    return str(PARSER.renderer.render(tokens, PARSER.options, {}))


def _substance(text: str) -> int:
    """How many characters of a text are not Markdown's own: they must all be on the page."""
    return len(SYNTAX.sub("", text))


def _token_substance(token: Token) -> int:
    """The same of a block: its text, what stood beside a fence, and the number of a list item."""
    leaves = token.children or [token]
    return _substance(token.info) + sum(_substance(leaf.content) for leaf in leaves)


def _dress(token: Token) -> None:
    """Each block finds its own direction of writing, and tables and quotations their lines."""
    if token.nesting == 1:
        token.attrSet("dir", "auto")
        if token.tag in STYLES:
            token.attrSet("style", ";".join(filter(None, [str(token.attrGet("style") or ""), STYLES[token.tag]])))


def _code_block(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    """A code block under whatever its first fence said; a language is shown, it sets no class."""
    title = tokens[index].info.strip()
    return (f'<div style="{NOTE}">{_text(title)}</div>' if title else "") + _code(tokens[index].content) + "\n"


def _parser() -> MarkdownIt:
    options = {"html": False, "linkify": False, "breaks": True}
    parser = MarkdownIt("commonmark", options).enable("table").disable(LEFT_AS_TEXT)
    parser.add_render_rule("fence", _code_block)
    parser.add_render_rule("code_block", _code_block)
    return parser


PARSER = _parser()
