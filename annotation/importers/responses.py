"""Separate a prompt from its responses, in any form that files have: text, messages, whole dialogues.

In: columns of a row. Out: the prompt and each response as messages, checked, and the comparison they make. Nothing is
mended: what is no prompt with different responses raises ``UnusableRow`` with a plain reason. Not here: how one cell
becomes messages (``turns.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from align.core.messages import scrubbed
from align.core.records import Comparison, Message, Response, is_empty
from annotation.importers.imported import UnusableRow
from annotation.importers.turns import ANSWERING, alike, brief, messages_of, paired_turns, spoken

CHOSEN_REJECTED = ("chosen", "rejected")


class PromptResponses(NamedTuple):
    """A prompt and its responses, in the order of the file.

    ``is_cut``: they were dialogues that part at their first answer, of which only that answer is left.
    """

    prompt: list[Message]
    responses: list[list[Message]]
    is_cut: bool = False


def sides_of(
    row: dict[str, Any], columns: tuple[str, str] = CHOSEN_REJECTED, *, first_answers: bool = False
) -> PromptResponses:
    """Take a prompt column and two columns of responses apart.

    The responses may be whole dialogues: what both begin with is the prompt then. A prompt column beside them must
    hold the same, or their first or last user turn; white space does not count.

    Args:
        first_answers: of dialogues that part at their first answer, take that answer; else they are refused.
    """
    require_both(row, columns)
    cells = [row.get("prompt"), *(row[column] for column in columns)]
    prompt_cell, *sides = paired_turns(cells, ("prompt", *columns))
    prompt = prompt_of(prompt_cell)
    is_spoken = isinstance(prompt_cell, str) and spoken(prompt_cell) is not None
    if is_spoken:
        sides = [f"\n\nAssistant:{side}" if isinstance(side, str) and spoken(side) is None else side for side in sides]
    one, other = (
        messages_of(side, "assistant", name) or [{"role": "assistant", "content": ""}]
        for side, name in zip(sides, columns, strict=True)
    )
    if one == other:
        raise UnusableRow(f"{columns[0]} equals {columns[1]}")
    if is_spoken and prompt and prompt[-1]["role"] == "assistant" and _answers_only(one) and _answers_only(other):
        raise UnusableRow(f"its prompt ends within an answer ({brief(prompt[-1:])})")
    if prompt and _answers_only(one[:1]):
        return PromptResponses(prompt, [one, other])
    return _whole(prompt, one, other, columns, first_answers)


def prompt_of(cell: Any) -> list[Message]:
    """Return a prompt as messages; the mark of the answer's turn at the end of a text of turns is no turn."""
    prompt = messages_of(cell, "user", "prompt")
    is_spoken = isinstance(cell, str) and spoken(cell) is not None
    return prompt[:-1] if is_spoken and is_empty(prompt[-1:]) else prompt


def with_input(row: dict[str, Any], more: Any) -> dict[str, Any]:
    """Return a row whose prompt is an instruction and its input, with an empty line between them."""
    if more is None:
        return row
    if not isinstance(row.get("prompt"), str) or not isinstance(more, str):
        raise UnusableRow("an instruction with an input that are not both text")
    return {**row, "prompt": f"{row['prompt']}\n\n{more}"}


def with_system(prompt: list[Message], system: Any) -> list[Message]:
    """Return a prompt under the system prompt of a column of its own.

    Raises:
        UnusableRow: it is no text, or the prompt begins with another one; shows both.
    """
    if system in (None, [], {}, "") or not prompt:
        return prompt
    if not isinstance(system, str):
        raise UnusableRow(f"the system prompt is no text ({str(system)[:60]})")
    if not system.strip():
        return prompt
    message = {"role": "system", "content": system}
    own, _ = _without_system(prompt)
    if not own:
        return [message, *prompt]
    if not alike([{**own[0], "role": "system"}], [message]):  # a developer's turn is one by another name
        raise UnusableRow(f"two system prompts (column: {brief([message])}; messages: {brief(own)})")
    return prompt


def usable(sides: PromptResponses, columns: tuple[str, str], system: Any, replaced: list[int]) -> PromptResponses:
    """Return sides under a system prompt, checked, as text that can be stored; adds to ``replaced``.

    JSON text of a cell may spell characters that the cell itself does not hold.
    """
    sides = sides._replace(prompt=with_system(sides.prompt, system))
    check(sides, columns)
    return sides._replace(prompt=scrubbed(sides.prompt, replaced), responses=scrubbed(sides.responses, replaced))


def require_both(row: dict[str, Any], columns: tuple[str, str] = CHOSEN_REJECTED) -> None:
    """Raise UnusableRow where one of the columns is not there; a text of no length is a response of no text."""
    for column in columns:
        if row.get(column) is None or row[column] == []:
            raise UnusableRow(f"no {column} response")


def check(sides: PromptResponses, columns: tuple[str, str] = CHOSEN_REJECTED) -> None:
    """Check what every usable row of any format fulfils."""
    if not all(sides.responses):
        raise UnusableRow("a response is empty")
    for message in sides.prompt:
        if not _says_something(message) and message.get("role") != "system":
            raise UnusableRow("an empty turn in the prompt")
    for response in sides.responses:
        if response[-1].get("role") != "assistant":
            raise UnusableRow("the last turn is not the assistant's")
        if not _answers_only(response):
            raise UnusableRow(different_prompts(columns))
        if not all(map(_says_something, response)) and not is_empty(response):
            raise UnusableRow("a response is empty")
    if not sides.prompt:
        raise UnusableRow("no prompt")
    if any(response in sides.responses[:place] for place, response in enumerate(sides.responses)):
        raise UnusableRow(
            f"{columns[0]} equals {columns[1]}" if len(sides.responses) == 2 else "two responses are equal"
        )


def refuse_empty(response: list[Message]) -> None:
    """Raise UnusableRow where a response that is to be learnt has no text; a vote on one is a vote all the same."""
    if is_empty(response):
        raise UnusableRow("a response is empty")


def different_prompts(columns: tuple[str, str] = CHOSEN_REJECTED) -> str:
    return f"{columns[0]} and {columns[1]} have different prompts"


def placed(
    sides: PromptResponses, language: str, tools: list[dict[str, Any]] | None = None, template_arguments: Any = None
) -> tuple[Comparison, list[int]]:
    """Return the comparison of checked sides, and the canonical number of the response in each place of the file."""
    try:
        comparison = Comparison(
            prompt=sides.prompt,
            responses=[Response(messages=messages) for messages in sides.responses],
            tools=tools,
            template_arguments=template_arguments or {},
            language=language,
        )
    except ValidationError as error:
        raise UnusableRow(f"malformed ({error.errors()[0]['msg']})") from None
    order = [response.messages for response in comparison.responses]
    return comparison, [order.index(messages) for messages in sides.responses]


def _whole(
    prompt: list[Message], one: list[Message], other: list[Message], columns: tuple[str, str], first_answers: bool
) -> PromptResponses:
    """Return sides of two dialogues that hold their prompt."""
    shared = _shared(one, other)
    head = one[:shared]
    if prompt:
        if not head:
            raise UnusableRow(different_prompts(columns))
        head, shared = _agreed(prompt, one, other, shared)
    responses = [one[shared:], other[shared:]]
    is_cut = first_answers and bool(head) and not all(map(_answers_only, responses))
    return PromptResponses(head, [_first_answer(response) for response in responses] if is_cut else responses, is_cut)


def _agreed(prompt: list[Message], one: list[Message], other: list[Message], shared: int) -> tuple[list[Message], int]:
    """Return the prompt of a prompt column and of the head of two dialogues, and how much of the dialogues it is."""
    system_given, given = _without_system(prompt)
    own_system, dialogue = _without_system(one[:shared])
    if system_given and own_system and not alike(system_given, own_system):
        raise UnusableRow(f"two system prompts (prompt: {brief(system_given)}; messages: {brief(own_system)})")
    system, begin = own_system or system_given, len(own_system)
    if not given:
        return [*system, *dialogue], shared
    end = begin + len(given)
    if alike(given, dialogue[: len(given)]) and _answers_only(one[end:]) and _answers_only(other[end:]):
        return [*system, *one[begin:end]], end
    if alike(given, dialogue[: len(given)]) or alike(given, dialogue[-len(given) :]):
        return [*system, *dialogue], shared
    turns = [message for message in dialogue if message.get("role") == "user"]
    if len(given) == 1 and any(alike(given, [turn]) for turn in (*turns[:1], *turns[-1:])):
        return [*system, *dialogue], shared
    raise UnusableRow(f"its prompt is not that of its messages (prompt: {brief(given)}; messages: {brief(dialogue)})")


def _shared(one: Sequence[Message], other: Sequence[Message]) -> int:
    """Return how many leading messages both have; a last answer of its own is left to each."""
    most = min(len(one), len(other)) - 1
    for index in range(most):
        if not alike(one[index : index + 1], other[index : index + 1]):
            return index
    return max(most, 0)


def _answers_only(messages: Sequence[Message]) -> bool:
    return all(message.get("role") in ANSWERING for message in messages)


def _first_answer(messages: list[Message]) -> list[Message]:
    end = next((n for n, message in enumerate(messages) if message.get("role") not in ANSWERING), len(messages))
    return messages[:end]


def _without_system(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """Return the system prompt that messages begin with, if any, and the rest."""
    begins = int(bool(messages) and messages[0].get("role") in ("system", "developer"))
    return messages[:begins], messages[begins:]


def _says_something(message: Message) -> bool:
    content = message.get("content")
    text = content.strip() if isinstance(content, str) else content
    return bool(text or message.get("tool_calls") or message.get("reasoning_content"))
