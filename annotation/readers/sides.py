"""A prompt and its continuations, taken apart from whatever shape a file gives them: text, messages, whole dialogues.

In: columns of a row. Out: the prompt and each response as messages, checked, and the comparison they make. Nothing is
mended: what is no prompt with different responses is refused with a plain reason.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from align.core.messages import NoMessage, read_messages
from annotation.readers.intake import Unusable
from annotation.types import Comparison, Message, Response

CHOSEN_REJECTED = ("chosen", "rejected")


class Sides(NamedTuple):
    """A prompt and its responses, in the order of the file."""

    prompt: list[Message]
    responses: list[list[Message]]


class Placed(NamedTuple):
    """A comparison, and the canonical number of the response in each place of the file (left or top first)."""

    comparison: Comparison
    shown: list[int]


def sides_of(row: dict[str, Any], columns: tuple[str, str] = CHOSEN_REJECTED) -> Sides:
    """Take a prompt column and two columns of responses apart.

    The responses may repeat the prompt (it is taken off); without a prompt column the messages both begin with are
    the prompt.

    Raises:
        Unusable: with the reason.
    """
    require_both(row, columns)
    prompt = messages_of(row.get("prompt"), "user", "prompt")
    one, other = (messages_of(row[column], "assistant", column) for column in columns)
    if one == other:
        raise Unusable(f"{columns[0]} equals {columns[1]}")
    if prompt and one[: len(prompt)] == other[: len(prompt)] == prompt:
        return Sides(prompt, [one[len(prompt) :], other[len(prompt) :]])
    if not prompt or one[0]["role"] != "assistant":
        shared = _shared(one, other)
        head, one, other = one[:shared], one[shared:], other[shared:]
        prompt = head if head[-len(prompt) :] == prompt else [*prompt, *head]
    return Sides(prompt, [one, other])


def require_both(row: dict[str, Any], columns: tuple[str, str] = CHOSEN_REJECTED) -> None:
    """Raises Unusable where one of the columns is empty."""
    for column in columns:
        if row.get(column) in (None, "", []):
            raise Unusable(f"no {column} response")


def check(sides: Sides, columns: tuple[str, str] = CHOSEN_REJECTED) -> None:
    """What every usable row fulfils, whatever format it came in.

    Raises:
        Unusable: with the reason.
    """
    if not all(sides.responses):
        raise Unusable("a response is empty")
    for message in sides.prompt:
        if not _says_something(message) and message.get("role") != "system":
            raise Unusable("an empty turn in the prompt")
    for response in sides.responses:
        if response[-1].get("role") != "assistant":
            raise Unusable("the last turn is not the assistant's")
        if any(message.get("role") not in ("assistant", "tool") for message in response):
            raise Unusable(different_prompts(columns))
        if not all(_says_something(message) for message in response):
            raise Unusable("a response is empty")
    if not sides.prompt:
        raise Unusable("no prompt")
    if any(response in sides.responses[:place] for place, response in enumerate(sides.responses)):
        raise Unusable(f"{columns[0]} equals {columns[1]}" if len(sides.responses) == 2 else "two responses are equal")


def different_prompts(columns: tuple[str, str] = CHOSEN_REJECTED) -> str:
    return f"{columns[0]} and {columns[1]} have different prompts"


def placed(
    sides: Sides, language: str, tools: list[dict[str, Any]] | None = None, template_arguments: Any = None
) -> Placed:
    """The comparison that checked sides make.

    Raises:
        Unusable: they make none; says why.
    """
    try:
        comparison = Comparison(
            prompt=sides.prompt,
            responses=[Response(messages=messages) for messages in sides.responses],
            tools=tools,
            template_arguments=template_arguments or {},
            language=language,
        )
    except ValidationError as error:
        raise Unusable(f"malformed ({error.errors()[0]['msg']})") from None
    order = [response.messages for response in comparison.responses]
    return Placed(comparison, [order.index(messages) for messages in sides.responses])


def messages_of(value: Any, role: str, column: str) -> list[Message]:
    """A column as messages in their one form: text is one message of ``role``, None is no messages.

    Raises:
        Unusable: it is neither, or a message holds what has no place in the form.
    """
    try:
        return read_messages(value, role, column)
    except NoMessage as reason:
        raise Unusable(str(reason)) from None


def with_system(prompt: list[Message], row: dict[str, Any]) -> list[Message]:
    """A prompt under the system prompt that stands in a column of its own, where it has none itself."""
    system = row.get("system")
    if system and prompt[:1] and prompt[0]["role"] != "system":
        return [{"role": "system", "content": str(system)}, *prompt]
    return prompt


def tools_of(value: Any) -> list[dict[str, Any]] | None:
    """Tools as a list; TRL also takes them as JSON text.

    Raises:
        Unusable: they are no list.
    """
    found = decoded(value)
    if not found:
        return None
    if not isinstance(found, list):
        raise Unusable("tools are not a list")
    return [decoded(tool) for tool in found]


def decoded(value: Any, key: str | None = None) -> Any:
    """JSON text of an object, or of a list of objects (that have ``key``), becomes what it spells; other text stays."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    if isinstance(found, dict):
        return found if key is None else value
    return found if found and all(isinstance(item, dict) and (key is None or key in item) for item in found) else value


def _shared(one: Sequence[Message], other: Sequence[Message]) -> int:
    """How many leading messages both have; a last answer of its own is left to each."""
    most = min(len(one), len(other)) - 1
    for index in range(most):
        if one[index] != other[index]:
            return index
    return max(most, 0)


def _says_something(message: Message) -> bool:
    content = message.get("content")
    text = content.strip() if isinstance(content, str) else content
    return bool(text or message.get("tool_calls") or message.get("reasoning_content"))
