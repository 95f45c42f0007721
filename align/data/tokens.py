"""A response as token ids: the recorded ids if the policy wrote them for this model, else its text rendered.

In: a rendered prompt, a response's messages and its recorded ids. Out: the ids that are scored and trained on, and
their source. Recorded ids are used if tokenizer, template, prompt ids and text are the same as when they were recorded.
Otherwise the text is rendered again; with the same tokenizer and template this must give the recorded ids. A response
that was cut never has a stop token. Not here: ids to text (``parsing.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from align.core.records import Message, Tokens, content_hash
from align.core.runs import Run
from align.model.chat import Chat, Unusable

TokenSource = Literal["as sampled", "rendered again", "rendered"]


class RenderedPrompt(NamedTuple):
    """A prompt as messages and as token ids."""

    messages: Sequence[Message]
    ids: list[int]
    tools: list[dict[str, Any]] | None = None
    arguments: Mapping[str, Any] | None = None


class ResponseTokens(NamedTuple):
    """Token ids of a response, whether the policy wrote each of them, and their source."""

    ids: list[int]
    own: list[bool]
    source: TokenSource


def record_tokens(chat: Chat, prompt_ids: Sequence[int], ids: Sequence[int], messages: Sequence[Message]) -> Tokens:
    """Return the ids of a response in the form that is recorded with its messages."""
    return Tokens(ids=list(ids), chat=chat.identity, exchange=_exchange(prompt_ids, messages, ids))


def response_tokens(
    chat: Chat,
    prompt: RenderedPrompt,
    messages: Sequence[Message],
    ended: bool | None,
    recorded: Tokens | None,
    context: int | None = None,
) -> ResponseTokens:
    """Return the ids of a response for ``chat``.

    Args:
        context: most tokens of prompt and response; None: no limit.

    Raises:
        Unusable: the template cannot express it, it was cut inside its reasoning (which a template would close), its
            text, rendered again, does not give its recorded ids, or it is longer than ``context``.
        BadInput: a recorded id is beyond the model's embedding.
    """
    tokens = _response_tokens(chat, prompt, messages, ended, recorded)
    if context is not None and len(prompt.ids) + len(tokens.ids) > context:
        raise Unusable(f"longer than the model's {context} tokens")
    return tokens


def _response_tokens(
    chat: Chat, prompt: RenderedPrompt, messages: Sequence[Message], ended: bool | None, recorded: Tokens | None
) -> ResponseTokens:
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


def note_sources(run: Run, what: str, used: Counter[tuple[TokenSource, bool]]) -> None:
    """Note how many responses, counted by source and by whether they were cut, are not used exactly as sampled."""
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
