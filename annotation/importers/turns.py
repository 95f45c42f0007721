"""One cell as messages: text, text with the turns of a dialogue in it, messages by several names, lists of turns.

In: a cell. Out: messages with a role and content. A text is taken for a dialogue only where it begins like one
(``\\n\\nHuman: ...``) or holds HelpSteer's marks of turns, and a list of texts only where all columns of its row hold
lists. A cell in no such form raises ``UnusableRow``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from align.core.limits import parse_json
from align.core.messages import NoMessage, read_messages
from align.core.records import Message
from annotation.importers.formats import read_hh
from annotation.importers.imported import UnusableRow

ANSWERING = ("assistant", "tool")
MEDIA = ("images", "image", "videos", "video", "audios", "audio")  # TRL's columns for them
SHARE_GPT = ("from", "value")  # what some data sets call role and content
MESSAGE_KEYS = ("role", "from")  # one of which every message has
SHARE_GPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
MARKS = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|eot_id|start|end|user|assistant|prompter|system|endoftext)\|>"
    r"|</?(?:start|end)_of_turn>|\[/?INST\]|<extra_id_[01]>|</s>"
    r"|(?:\A|\n)(?:Human|Assistant|User|USER|ASSISTANT|### (?:Instruction|Input|Response)):(?=\s|\Z)"
)
HELPSTEER_TURN = re.compile(r"(?:\A|\n)<extra_id_1>(User|Assistant)(?:\n|\Z)")
PYTHON_MESSAGES = re.compile(r"\s*\[?\s*\{\s*'(?:role|content|from|value)':")  # as print, and pandas' CSV, write them
PYTHON_TEXTS = re.compile(r"\s*\[\s*['\"].*['\"]\s*\]\s*\Z", re.DOTALL)
BESIDE = ("tools", "template_arguments", "chat_template_kwargs")  # columns that are read under these names alone
SHOWN = 80  # characters of a text in a reason


def messages_of(value: Any, role: str, column: str) -> list[Message]:
    """Return a column as messages in their one form: text is a message of ``role`` or a dialogue, None is no message.

    Raises:
        UnusableRow: it is neither, or a message holds what has no place in the form.
    """
    if isinstance(value, str) and (turns := spoken(value)) is not None:
        return turns
    if isinstance(value, str) and PYTHON_MESSAGES.match(value):
        raise UnusableRow(f"{column} holds messages as Python prints them ({value[:40]!r}); write them as JSON")
    value = [value] if isinstance(value, dict) else value
    if isinstance(value, list) and all(isinstance(message, dict) for message in value):
        value = [_renamed(message) for message in value]
    try:
        return read_messages(value, role, column)
    except NoMessage as reason:
        raise UnusableRow(str(reason)) from None


def tools_of(value: Any) -> list[dict[str, Any]] | None:
    """Return tools as a list; TRL also takes them as JSON text."""
    tools = decoded(value)
    if not tools:
        return None
    if not isinstance(tools, list):
        raise UnusableRow("tools are not a list")
    return [decoded(tool) for tool in tools]


def refuse_media(row: Mapping[str, Any]) -> None:
    """Refuse a row that holds pictures or sound: only text is read, and without them it would be another row."""
    if column := next((column for column in MEDIA if row.get(column)), None):
        raise UnusableRow(f"holds '{column}', and only text is read here")


def template_arguments_of(row: Mapping[str, Any]) -> Any:
    """Return what a row's conversation is rendered with, under either of its names."""
    return decoded(row.get("template_arguments") or row.get("chat_template_kwargs"))


def spoken(text: str) -> list[Message] | None:
    """Return the turns of a text that begins with one; None for any other text.

    A text that only begins with ``Human:`` and holds no answer might be about a human: it needs the empty line before
    it, as Anthropic's data has it, or a second speaker.
    """
    turns = read_hh(text)
    if turns is None:
        return _helpsteer(text)
    has_both = {turn["role"] for turn in turns} == {"user", "assistant"}
    return turns if has_both or text.startswith("\n\n") else None


def paired_turns(cells: Sequence[Any], columns: Sequence[str]) -> list[Any]:
    """Return a prompt and its responses as they are, or, where each is a list of turns, the dialogues that these make.

    Raises:
        UnusableRow: some are lists of texts and cannot be paired.
    """
    if all(isinstance(cell, str) and PYTHON_TEXTS.match(cell) and turns_of(cell) is None for cell in cells):
        raise UnusableRow(f"its turns are lists as Python prints them ({cells[0][:40]!r}); write them as JSON")
    lists = [turns_of(cell) for cell in cells]
    prompt, *sides = lists
    if prompt is None:
        sizes = [
            len(turns) if turns and isinstance(cell, list) else 0 for cell, turns in zip(cells, lists, strict=True)
        ]
        if longest := max(sizes):
            raise UnusableRow(f"{columns[sizes.index(longest)]} is a list of {longest} texts")
        return list(cells)
    if all(side is None for side in sides) and len(prompt) == 1:
        return [prompt[0], *cells[1:]]
    counts = [None if turns is None else len(turns) for turns in lists]
    if set(counts) != {len(prompt)}:
        lengths = ", ".join(f"{column}: {count or 'no list'}" for column, count in zip(columns, counts, strict=True))
        raise UnusableRow(f"its lists of turns cannot be paired ({lengths})")
    return [None, *(_dialogue(prompt, side or []) for side in sides)]


def turns_of(cell: Any) -> list[str] | None:
    """Return a list of texts, also one written as JSON text; a turn that is null is empty. None for anything else."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = parse_json(cell)
        except ValueError:
            return None
    is_texts = isinstance(cell, list) and cell and all(text is None or isinstance(text, str) for text in cell)
    return [text or "" for text in cell] if is_texts else None


def decoded(value: Any, *keys: str) -> Any:
    """Return what JSON text of an object, or of a list of objects, spells; with ``keys``, only that of messages.

    Objects of a list then have one of the keys, and an object alone is a message with content.
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        parsed = parse_json(value)
    except ValueError:
        return value
    if isinstance(parsed, dict):
        is_message = {"role", "content"} <= set(parsed) or {*SHARE_GPT} == set(parsed)
        return parsed if is_message or not keys else value
    is_objects = parsed and all(isinstance(item, dict) and (not keys or {*keys} & set(item)) for item in parsed)
    return parsed if is_objects else value


def marks_in(messages: Sequence[Message]) -> str | None:
    """Return what looks like the marks of turns or of a chat template in a text that was read literally."""
    texts = (message["content"] for message in messages if isinstance(message.get("content"), str))
    return next((mark[0].strip() for text in texts if (mark := MARKS.search(text))), None)


def alike(some: Sequence[Message], others: Sequence[Message]) -> bool:
    """Return whether messages are the same but for white space in their content."""
    return len(some) == len(others) and all(_plain(a) == _plain(b) for a, b in zip(some, others, strict=True))


def brief(messages: Sequence[Message]) -> str:
    """Return the last message in a few words."""
    text = " ".join(str(messages[-1].get("content") or "").split()) if messages else ""
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")


def _helpsteer(text: str) -> list[Message] | None:
    """Return the turns of a text with HelpSteer's marks, where the user begins without one; None without marks."""
    first, *rest = HELPSTEER_TURN.split(text)
    if not rest:
        return None
    begins = [{"role": "user", "content": first.strip()}] if first.strip() else []
    turns = zip(rest[::2], rest[1::2], strict=True)
    return [*begins, *({"role": speaker.lower(), "content": text.strip()} for speaker, text in turns)]


def _plain(message: Message) -> list[Any]:
    """Return the content of a message: metadata beside it and white space do not count."""
    content = message.get("content")
    words = " ".join(content.split()) if isinstance(content, str) else content
    return [words or None, *(message.get(key) for key in ("role", "tool_calls", "reasoning_content"))]


def _dialogue(questions: Sequence[str], answers: Sequence[str]) -> list[Message]:
    turns = zip(questions, answers, strict=True)
    return [
        message
        for question, answer in turns
        for message in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    ]


def _renamed(message: Message) -> Message:
    """Return a message of which role and content go by the names of ShareGPT."""
    if {*message} != {*SHARE_GPT} or message["from"] not in SHARE_GPT_ROLES:
        return message
    return {"role": SHARE_GPT_ROLES[message["from"]], "content": message["value"]}
