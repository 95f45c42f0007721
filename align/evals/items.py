"""Define evaluation items: options to choose among, a text to predict, or a prompt to answer.

A suite derives its items' schema from :class:`Item`. Not here: reading them from files (item_files). No torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from align.core.config import Frozen
from align.core.messages import read_messages
from align.core.records import Message, check_messages
from align.evals.fluency import normalise

READ: Mapping[str, tuple[str, ...]] = {  # what a kind of item is made of, beside its names
    "options": ("prompt", "tools", "options", "answer"),
    "perplexity": ("text",),
    "generate": ("prompt", "tools"),
}


class Item(Frozen):
    """One item: options to choose among, a text to predict, or a prompt to answer.

    ``family`` groups items in the results: each is one that is meant, not a draw from many. ``cluster`` names what
    several items were drawn from (a document, a template): they are not independent, and bounds count clusters.
    A suite's own schema says which kinds it takes (``kinds``) and whether an item may name its judge.
    """

    kinds: ClassVar[tuple[str, ...]] = ("options", "perplexity", "generate")
    takes_judge: ClassVar[bool] = False

    id: str = Field(description="unique among the suite's items")
    suite: str = Field(description="the suite's name")
    kind: Literal["options", "perplexity", "generate"] = Field(
        description="options to choose among, a text to predict, or a prompt to answer"
    )
    family: str = Field(default="", description="groups items in the results")
    cluster: str | None = Field(default=None, min_length=1, description="what several items were drawn from")
    prompt: list[Message] | None = Field(default=None, description="a text or messages; not with perplexity")
    tools: list[dict[str, Any]] | None = Field(default=None, description="tools that the prompt offers")
    options: list[str] | None = Field(default=None, description="options: two or more texts")
    answer: int | None = Field(default=None, description="options: the number of the right one, from 0")
    text: str | None = Field(default=None, description="perplexity: the text")
    judge: str | None = Field(default=None, description="its own judge, where the suite allows one")
    tags: list[str] = Field(default=[], description="free words; the safety suite reads some")

    @field_validator("prompt", mode="before")
    @classmethod
    def _in_one_form(cls, value: Any) -> list[Message] | None:
        return None if value is None else read_messages(value, "user", "prompt")

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if self.kind not in self.kinds:
            raise ValueError(f"suite {self.suite} takes kind {' or '.join(self.kinds)}, not {self.kind}")
        self._check_all_is_read()
        if self.kind == "perplexity":
            if not self.text:
                raise ValueError("kind perplexity needs a 'text' that is not empty")
            return self
        if not self.prompt:
            raise ValueError(f"kind {self.kind} needs a 'prompt' (a list of messages)")
        check_messages(self.prompt, "prompt")
        if self.kind == "options":
            self._check_options()
        return self

    def _check_all_is_read(self) -> None:
        """Refuse a field that nothing would read."""
        parts = ("prompt", "tools", "options", "answer", "text")
        unread = [key for key in parts if key not in READ[self.kind] and getattr(self, key) is not None]
        unread += ["judge"] if self.judge is not None and not self.takes_judge else []
        if unread:
            raise ValueError(
                f"'{unread[0]}' is not read in an item of suite {self.suite} and kind {self.kind}; take it out, or "
                "write another kind of item"
            )
        if self.judge == "":
            raise ValueError("'judge' is empty; name one, or leave it out")

    def _check_options(self) -> None:
        if not self.options or len(self.options) < 2 or len(set(self.options)) < len(self.options):
            raise ValueError("kind options needs two or more different 'options'")
        if not all(option.strip() for option in self.options):
            raise ValueError("kind options: an option is empty")
        if self.answer is None or not 0 <= self.answer < len(self.options):
            raise ValueError(f"'answer' must be the number of an option, 0 to {len(self.options) - 1}")

    @property
    def last_user_text(self) -> str:
        """The content of the last user message, or nothing."""
        contents = [str(message.get("content") or "") for message in self.prompt or [] if message["role"] == "user"]
        return contents[-1] if contents else ""

    @property
    def question(self) -> tuple[str, ...]:
        """What is asked, apart from typography, names and who judges: items alike in it are not independent.

        Options are scored each by itself, so their order is no part of it.
        """
        tools = json.dumps(self.tools, sort_keys=True) if self.tools else ""
        options = self.options or []
        wanted = "" if self.answer is None else normalise(options[self.answer])
        texts = (self.text or "",) if self.kind == "perplexity" else (self.prompt_text, *sorted(options))
        return (self.kind, tools, wanted, *map(normalise, texts))

    @property
    def prompt_text(self) -> str:
        """The prompt as a person would read it: the lone user message, or every message with its role."""
        messages = self.prompt or []
        if len(messages) == 1:
            return str(messages[0].get("content") or "")
        return "\n\n".join(f"{message['role']}: {message.get('content') or ''}" for message in messages)


def items_hash(items: Sequence[Item]) -> str:
    """Return the sha256 of a set of items, whatever their order."""
    without = {"cluster"}  # where there is none: hashes made before items could name one stay the same
    rows = sorted(
        json.dumps(item.model_dump(mode="json", exclude=without if item.cluster is None else None), sort_keys=True)
        for item in items
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def as_text(prompt: Sequence[Mapping[str, Any]]) -> str:
    """Return a conversation as one text to predict: the contents of its messages."""
    return "\n\n".join(str(message.get("content") or "") for message in prompt)
