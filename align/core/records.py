"""The types that travel between people's judgments and training: frozen, versioned, hashable by content.

A comparison is one prompt with k responses (one, where a single response is rated); a judgment orders or labels
them; a pair is what preference training reads, a thumb what unpaired training reads, a demonstration what SFT reads.
Response indices always mean the comparison's canonical order (sorted by content), never the order on screen.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from itertools import chain
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SCHEMA_VERSION = 1
Message = dict[str, Any]  # {"role", "content", ...tool_calls, reasoning_content, name, tool_call_id}


class Record(BaseModel):
    """A record: immutable, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _is_none(value: Any) -> bool:
    """Return whether to leave out a field that earlier versions did not have: their records keep their bytes."""
    return value is None


def content_hash(value: Any) -> str:
    """Return the first 16 hex digits of the sha256 of canonical JSON (sorted keys, no spaces, UTF-8)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def check_messages(messages: list[Message], where: str) -> None:
    """Check that every message has a role, and text, tool calls or reasoning; ValueError names the first bad one."""
    if not messages:
        raise ValueError(f"{where}: no messages")
    for index, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise ValueError(f"{where}: message {index} has no role")
        if not isinstance(message.get("content") or "", str):
            raise ValueError(f"{where}: message {index}: content must be text, got {type(message['content']).__name__}")
        content = message.get("content") or message.get("tool_calls") or message.get("reasoning_content")
        if not content and message["role"] != "system":
            raise ValueError(f"{where}: message {index} ({message['role']}) is empty")


def is_empty(response: list[Message]) -> bool:
    """Return whether a response is one assistant message without text (white space apart), tool calls or reasoning."""
    if len(response) != 1 or response[0].get("role") != "assistant":
        return False
    message, content = response[0], response[0].get("content")
    has_text = bool(content.strip()) if isinstance(content, str) else content is not None
    return not (has_text or message.get("tool_calls") or message.get("reasoning_content"))


def prompt_id(prompt: list[Message], tools: list[dict[str, Any]] | None = None) -> str:
    """Return the identity of a prompt, by which splits, leakage checks and pairing compare."""
    return content_hash({"prompt": prompt, "tools": tools} if tools else prompt)


class Tokens(Record):
    """The token ids that a policy wrote, with the stop token where it ended, and hashes of what they belong to.

    ``chat`` is the hash of the tokenizer and template under which they mean what they mean, ``exchange`` that of the
    prompt's ids before them, of the messages that they were read as, and of themselves: after another prompt, beside
    an edited text, or edited, they are not this response.
    """

    ids: list[int] = Field(min_length=1)
    chat: str
    exchange: str


class Response(Record):
    """One continuation: the assistant's messages, and where it came from (never shown to annotators).

    A single assistant message without text is a response too: somebody was shown nothing, and judged it. ``ended`` is
    False where it was cut at a limit and None where nobody knows; ``tokens`` are known of a response that was sampled
    here. Neither is part of a comparison's identity.
    """

    messages: list[Message]
    origin: str | None = None
    ended: bool | None = Field(default=None, exclude_if=_is_none)
    tokens: Tokens | None = Field(default=None, exclude_if=_is_none)

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if not self.is_empty:
            check_messages(self.messages, "response")
        return self

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Read a response of ``candidates.jsonl``, without its other fields.

        Raises:
            KeyError: it has no messages.
            ValidationError: what it has is no response.
        """
        return cls(messages=row["messages"], **{name: row.get(name) for name in ("origin", "ended", "tokens")})

    @property
    def is_empty(self) -> bool:
        """Return whether it is one assistant message without text, tool calls or reasoning."""
        return is_empty(self.messages)

    @property
    def text(self) -> str:
        return "\n\n".join(str(message.get("content") or "") for message in self.messages)


class Comparison(Record):
    """A prompt and its k >= 1 responses, in canonical order; ``id`` is the same whichever came first.

    ``item`` is what a file calls a row whose texts stood there before under another name: it makes a comparison of its
    own, of equal content. Without one, the id is that of the texts alone.
    """

    id: str = ""
    schema_version: int = SCHEMA_VERSION
    prompt: list[Message]
    responses: list[Response] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    language: str = "en"
    item: str | None = Field(default=None, exclude_if=_is_none)

    @model_validator(mode="before")
    @classmethod
    def _canonical(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        responses = [Response.model_validate(r) if isinstance(r, dict) else r for r in data.get("responses", [])]
        ordered = sorted(responses, key=lambda response: (content_hash(response.messages), response.origin or ""))
        content = {
            "prompt": data.get("prompt"),
            "tools": data.get("tools"),
            "template_arguments": data.get("template_arguments") or {},
            "responses": [response.messages for response in ordered],
        }
        if data.get("item") is not None:
            content["item"] = data["item"]
        identity = content_hash(content)
        if data.get("id") not in (None, "", identity):
            raise ValueError(f"comparison id {data['id']} does not match its content ({identity}): was it edited?")
        return {**data, "responses": ordered, "id": identity}

    @model_validator(mode="after")
    def _checked(self) -> Self:
        check_messages(self.prompt, "prompt")
        return self

    @property
    def prompt_id(self) -> str:
        return prompt_id(self.prompt, self.tools)


class Judgment(Record):
    """One person's ordering of a comparison's responses.

    ``ranking`` holds tie groups of response indices, best first: ``[[1], [0]]`` prefers response 1,
    ``[[0, 1]]`` is a tie. ``shown`` is the order on screen, left (or top) first. ``seconds`` is time on task.
    ``strength`` is how much better the first is, 0 to 3; ``margin`` the same on another scale, as its source gave it.
    ``label`` is what a single response was called; ``ratings`` hold one value per response (None: not rated), by name;
    ``improved`` is what the annotator wrote in place of response ``improved_from``, or of none of them (None) where no
    response is better than the others.
    """

    comparison_id: str
    annotator: str
    ranking: list[list[int]]
    shown: list[int]
    strength: int | None = Field(default=None, ge=0, le=3)
    margin: float | None = Field(default=None, ge=0, allow_inf_nan=False, exclude_if=_is_none)
    flags: list[str] = Field(default_factory=list)
    label: str | None = None
    ratings: dict[str, list[int | None]] = Field(default_factory=dict)
    rationale: str | None = None
    improved: str | None = None
    improved_from: int | None = None
    seconds: float | None = None
    guideline: str | None = None
    source: str = "unknown"
    version: int = 1

    @model_validator(mode="after")
    def _checked(self) -> Self:
        ranked = sorted(chain.from_iterable(self.ranking))
        if ranked != sorted(self.shown) or ranked != list(range(len(ranked))):
            raise ValueError(f"ranking {self.ranking} and shown {self.shown} must both hold 0..k-1 once each")
        if self.ratings and any(len(values) != len(ranked) for values in self.ratings.values()):
            raise ValueError(f"ratings {self.ratings} must hold one value for each of {len(ranked)} responses")
        if self.improved is None and self.improved_from is not None:
            raise ValueError("improved_from is set and improved is not: set both or neither")
        if self.improved is not None and self.improved_from is None and len(self.ranking[0]) == 1:
            raise ValueError("improved_from is missing: one response is the best, so the text is one for it")
        if self.improved_from is not None and self.improved_from not in ranked:
            raise ValueError(f"improved_from {self.improved_from} is none of the responses 0..{len(ranked) - 1}")
        return self


class Pair(Record):
    """One row of a pairs file: TRL's conversational preference columns and the votes behind it.

    ``*_ended`` and ``*_tokens`` are those of the :class:`Response`, here and in the rows below.
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[dict[str, Any]] | None = None
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    margin: float = 0.0
    weight: float = Field(default=1.0, gt=0)
    votes: list[int] = Field(description="[votes for chosen, votes for rejected, ties]")
    comparison_id: str
    prompt_id: str
    chosen_ended: bool | None = Field(default=None, exclude_if=_is_none)
    chosen_tokens: Tokens | None = Field(default=None, exclude_if=_is_none)
    rejected_ended: bool | None = Field(default=None, exclude_if=_is_none)
    rejected_tokens: Tokens | None = Field(default=None, exclude_if=_is_none)


class Thumb(Record):
    """One row of a thumbs file: TRL's columns for unpaired preferences (KTO)."""

    prompt: list[Message]
    completion: list[Message]
    label: bool
    tools: list[dict[str, Any]] | None = None
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    votes: list[int] = Field(description="[up, down]")
    comparison_id: str
    prompt_id: str
    completion_ended: bool | None = Field(default=None, exclude_if=_is_none)
    completion_tokens: Tokens | None = Field(default=None, exclude_if=_is_none)


class Demonstration(Record):
    """One row of a demonstrations file: what SFT reads."""

    prompt: list[Message]
    completion: list[Message]
    tools: list[dict[str, Any]] | None = None
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    comparison_id: str
    prompt_id: str


class Labelled(Record):
    """One row of a labels file: what people called a single response; ``label`` is None where two names lead."""

    prompt: list[Message]
    completion: list[Message]
    label: str | None
    votes: dict[str, int] = Field(description="votes by name, 0 for a name that was offered and nobody chose")
    tools: list[dict[str, Any]] | None = None
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    split: Literal["train", "validation", "test"]
    comparison_id: str
    prompt_id: str
    completion_ended: bool | None = Field(default=None, exclude_if=_is_none)
    completion_tokens: Tokens | None = Field(default=None, exclude_if=_is_none)


class ItemResult(Record):
    """The outcome of one evaluation item on one policy; ``score`` is None exactly where there is a ``reason``.

    ``cluster``: what the item was drawn from together with others, such as a document or a template.
    """

    suite: str
    metric: str
    item_id: str
    score: float | None
    reason: str | None = None
    judge: str
    family: str = ""
    cluster: str | None = None
    sample: int = Field(default=0, ge=0)
    text: str | None = None
    prompt: str | None = None
    ended: bool | None = None
    n_tokens: int | None = None
    reasoning_content: str | None = Field(default=None, exclude_if=_is_none)

    @field_validator("score", mode="before")
    @classmethod
    def _is_number(cls, score: Any) -> Any:
        if isinstance(score, str):
            raise ValueError(f"{score!r} is text; give a number")
        return score

    @model_validator(mode="after")
    def _checked(self) -> Self:
        where = f"{self.metric} of item '{self.item_id}'"
        if self.score is not None and not math.isfinite(self.score):
            raise ValueError(f"{where}: a score of {self.score} is none; give None and the reason")
        if (self.score is None) == (self.reason is None):
            raise ValueError(f"{where}: a result has a score or a reason for having none, never both")
        return self
