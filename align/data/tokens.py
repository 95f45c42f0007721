"""A response as token ids: those that a policy wrote, and text rendered where there are none for this model.

In: a rendered prompt, a response's messages and what is recorded of it. Out: the ids that are scored and trained on,
and where they come from. Recorded ids hold for the same tokenizer and template, after the same prompt ids, beside the
text that they were read as; else the text is rendered again, and where tokenizer and template are the same that must
give the recorded ids. A response that was cut has no stop token in any case. Not here: ids to text (``parsing.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from align.core.records import Message, Tokens, content_hash
from align.core.runs import Run
from align.model.chat import Chat, Unusable

Source = Literal["as sampled", "rendered again", "rendered"]


class Prompt(NamedTuple):
    """A prompt as a row has it, and its token ids."""

    messages: Sequence[Message]
    ids: list[int]
    tools: list[dict[str, Any]] | None = None
    arguments: Mapping[str, Any] | None = None


class ResponseTokens(NamedTuple):
    """Token ids of a response, which of them the policy writes itself, and where they come from."""

    ids: list[int]
    own: list[bool]
    source: Source


def record_tokens(chat: Chat, prompt_ids: Sequence[int], ids: Sequence[int], messages: Sequence[Message]) -> Tokens:
    """The ids of a response as they travel beside the messages that they were read as."""
    return Tokens(ids=list(ids), chat=chat.identity, exchange=_exchange(prompt_ids, messages, ids))


def response_tokens(
    chat: Chat, prompt: Prompt, messages: Sequence[Message], ended: bool | None, recorded: Tokens | None
) -> ResponseTokens:
    """The ids of a response for ``chat``.

    Raises:
        Unusable: the template cannot express it, it was cut inside its reasoning (which a template would close), or
            its text is not what its recorded ids say.
        BadInput: a recorded id is beyond the model's embedding.
    """
    is_same_chat = recorded is not None and recorded.chat == chat.identity
    if recorded is not None and is_same_chat and recorded.exchange == _exchange(prompt.ids, messages, recorded.ids):
        chat.refuse_beyond(recorded.ids)
        return ResponseTokens(recorded.ids, [True] * len(recorded.ids), "as sampled")
    if ended is False and not any(message.get("content") or message.get("tool_calls") for message in messages):
        raise Unusable("cut inside its reasoning, which the chat template would close")
    ids, own = chat.response(prompt.messages, messages, prompt.tools, prompt.arguments)
    if ended is False:
        ids, own = ids[:-1], own[:-1]
    if recorded is not None and is_same_chat and ids != recorded.ids:
        raise Unusable("its text, rendered again, has other token ids than those recorded (another prompt, or edited)")
    if not ids:
        raise Unusable("cut before its first token")
    return ResponseTokens(ids, own, "rendered" if recorded is None else "rendered again")


def note_sources(run: Run, what: str, used: Counter[tuple[Source, bool]]) -> None:
    """Say of responses, counted by source and by whether they were cut, which are not read as the policy wrote them."""
    total = used.total()
    again = sum(count for (source, _), count in used.items() if source == "rendered again")
    cut = sum(count for (_, is_cut), count in used.items() if is_cut)
    if again:
        run.note(
            f"{what}: {again} of {total} responses are rendered again from their text (sampled under another tokenizer "
            "or template, or after another prompt)"
        )
    if cut:
        run.note(
            f"{what}: {cut} of {total} responses were cut before they ended: read as written, without a stop token"
        )


def _exchange(prompt_ids: Sequence[int], messages: Sequence[Message], ids: Sequence[int]) -> str:
    return content_hash([list(prompt_ids), list(messages), list(ids)])
