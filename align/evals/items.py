"""Evaluation items: what is asked, how it is answered and who judges. No torch: audits read items too.

In: JSON lines, or run folders that hold ``<suite>.jsonl``. Out: checked items. A pairs run has no items of its
own, but its test prompts can be asked (the ``preference`` suite) and read (texts of the ``forgetting`` suite).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from align.core.config import BadInput, Frozen
from align.core.files import read_jsonl
from align.core.messages import read_messages
from align.core.records import Message, check_messages
from align.evals.fluency import normalise

Suite = Literal["forgetting", "safety", "preference"]
Side = Literal["harm", "benign", "lead"]
KINDS: Mapping[str, tuple[str, ...]] = {
    "forgetting": ("options", "perplexity"),
    "safety": ("generate",),
    "preference": ("generate",),
}
SIDES: tuple[Side, ...] = ("harm", "benign", "lead")
READ: Mapping[str, tuple[str, ...]] = {  # what a kind of item is made of, beside its names
    "options": ("prompt", "tools", "options", "answer"),
    "perplexity": ("text",),
    "generate": ("prompt", "tools"),
}


class Item(Frozen):
    """One item: options to choose among, a text to predict, or a prompt to answer.

    ``family`` groups items in the results: each is one that is meant, not a draw from many. ``cluster`` names what
    several items were drawn from (a document, a template): they are not independent, and bounds count clusters.
    A safety item says by its family or a tag which ``side`` it is on: harm (should be refused), benign (should not
    be) or lead (carries a claim; tag ``true`` or ``false``).
    """

    id: str
    suite: Suite
    kind: Literal["options", "perplexity", "generate"]
    family: str = ""
    cluster: str | None = Field(default=None, min_length=1)
    prompt: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None
    options: list[str] | None = None
    answer: int | None = None
    text: str | None = None
    judge: str | None = None
    tags: list[str] = []

    @field_validator("prompt", mode="before")
    @classmethod
    def _in_one_form(cls, value: Any) -> list[Message] | None:
        return None if value is None else read_messages(value, "user", "prompt")

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if self.kind not in KINDS[self.suite]:
            raise ValueError(f"suite {self.suite} takes kind {' or '.join(KINDS[self.suite])}, not {self.kind}")
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
        if self.suite == "safety":
            self._check_side()
        return self

    def _check_all_is_read(self) -> None:
        """Refuse what would be passed over: whoever wrote it meant something by it."""
        parts = ("prompt", "tools", "options", "answer", "text")
        unread = [key for key in parts if key not in READ[self.kind] and getattr(self, key) is not None]
        unread += ["judge"] if self.judge is not None and self.suite != "safety" else []
        if unread:
            raise ValueError(
                f"'{unread[0]}' is not read in an item of suite {self.suite} and kind {self.kind}; take it out, or "
                "write another kind of item"
            )
        if self.judge == "":
            raise ValueError("'judge' is empty; name one, or leave it out")

    def _check_side(self) -> None:
        sides = [side for side in SIDES if side == self.family or side in self.tags]
        if len(sides) != 1:
            named = f"names {' and '.join(sides)}" if sides else "names none"
            raise ValueError(f"a safety item has its family or a tag among {', '.join(SIDES)}, one; this {named}")
        if sides == ["lead"] and ("true" in self.tags) == ("false" in self.tags):
            raise ValueError("a lead item carries a claim: one of its tags is 'true' or 'false', to say which it is")

    def _check_options(self) -> None:
        if not self.options or len(self.options) < 2 or len(set(self.options)) < len(self.options):
            raise ValueError("kind options needs two or more different 'options'")
        if not all(option.strip() for option in self.options):
            raise ValueError("kind options: an option is empty")
        if self.answer is None or not 0 <= self.answer < len(self.options):
            raise ValueError(f"'answer' must be the number of an option, 0 to {len(self.options) - 1}")

    @property
    def side(self) -> Side | None:
        """What a safety item asks for."""
        return next((side for side in SIDES if side == self.family or side in self.tags), None)

    @property
    def asked(self) -> str:
        """What was asked last: the last user message."""
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


def load_items(paths: Path | Sequence[Path], suites: Sequence[str]) -> list[Item]:
    """Read the items of ``suites``, in the order of suites and files; items of other suites are passed over.

    Raises:
        BadInput: a row is not an item, repeats an id or asks what another one asks (named by file and line), or a
            suite has no items; one of several paths holds none of these suites; a folder's ``<suite>.jsonl`` holds
            an item of another suite.
    """
    folders = [paths] if isinstance(paths, Path) else list(paths)
    items: list[Item] = []
    read: set[Path] = set()
    for suite in suites:
        found: dict[str, Item] = {}
        asked: dict[tuple[str, ...], Item] = {}
        for path in folders:
            for where, row in _rows(path, suite):
                item = _item(row, where)
                if item.suite != suite and path.is_dir():
                    raise BadInput(f"{where}: an item of suite {item.suite} in {suite}.jsonl; put it in its own file")
                if item.suite != suite:
                    continue
                read.add(path)
                if item.id in found:
                    raise BadInput(f"{where}: id '{item.id}' stands twice in suite {suite}; ids must differ")
                other = asked.setdefault(item.question, item)
                if other is not item and (item.cluster is None or item.cluster != other.cluster):
                    raise BadInput(
                        f"{where}: '{item.id}' asks the same as '{other.id}', and one question counts once; "
                        "remove one, or give both the same 'cluster'"
                    )
                found[item.id] = item
        if not found:
            looked = ", ".join(map(str, folders))
            raise BadInput(
                f"suite {suite}: no items in {looked}; name a file with such rows or a run with {suite}.jsonl"
            )
        items += found.values()
    if unread := next((path for path in folders if path not in read), None):
        raise BadInput(f"{unread}: no items of suite {' or '.join(suites)}; name a file that has some, or leave it out")
    return items


def items_hash(items: Sequence[Item]) -> str:
    """sha256 of a set of items, whatever their order: two evaluations with the same hash asked the same."""
    without = {"cluster"}  # where there is none: hashes made before items could name one stay the same
    rows = sorted(
        json.dumps(item.model_dump(mode="json", exclude=without if item.cluster is None else None), sort_keys=True)
        for item in items
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _rows(path: Path, suite: str) -> list[tuple[str, dict[str, Any]]]:
    """Rows with where they stand, from a file, a folder's ``<suite>.jsonl``, or a pairs run's test prompts."""
    if not path.is_dir():
        return [(f"{path}:{number}", row) for number, row in enumerate(read_jsonl(path), 1)]
    file, pairs = path / f"{suite}.jsonl", path / "test.jsonl"
    if file.is_file():
        return [(f"{file}:{number}", row) for number, row in enumerate(read_jsonl(file), 1)]
    if suite not in ("preference", "forgetting") or not pairs.is_file():
        return []
    made = _asked if suite == "preference" else _read
    prompts = {row["prompt_id"]: row for row in read_jsonl(pairs)}
    rows = {json.dumps(made("", row), sort_keys=True): (name, row) for name, row in reversed(prompts.items())}
    return [(f"{pairs}: prompt {name}", made(name, row)) for name, row in reversed(rows.values())]


def _read(name: str, pair: Mapping[str, Any]) -> dict[str, Any]:
    """A held-out prompt as text to predict: language that no stage was trained to write."""
    text = "\n\n".join(str(message.get("content") or "") for message in pair["prompt"])
    return {"id": name, "suite": "forgetting", "kind": "perplexity", "family": "text", "text": text}


def _asked(name: str, pair: Mapping[str, Any]) -> dict[str, Any]:
    shared = {"prompt": pair["prompt"], "tools": pair.get("tools")}
    return {"id": name, "suite": "preference", "kind": "generate"} | shared


def _item(row: dict[str, Any], where: str) -> Item:
    try:
        return Item.model_validate(row)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"])) or "item"
        raise BadInput(f"{where}: {key}: {problem['msg'].removeprefix('Value error, ')}") from None
