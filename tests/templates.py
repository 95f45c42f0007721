"""Chat templates that ship with TRL, by name, on a tiny tokenizer that has their special tokens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import trl
from conftest import make_tokenizer

FOLDER = Path(trl.__file__).parent / "chat_templates"
SPECIAL = re.compile(r"<[|｜][^\s<>{}'\"]+?[|｜]>|<\|?[a-z_]+\|?>(?<=[|]>)|<\|[a-z_]+>|<(?:start|end)_of_turn>")


def template_text(name: str) -> str:
    """A template as TRL ships it."""
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def tokenizer_of(name: str) -> Any:
    """A tiny tokenizer with a shipped template, whose special tokens are tokens of it; it begins as Llama 3 does."""
    text = template_text(name)
    tokenizer = make_tokenizer(text)
    tokenizer.add_special_tokens({"additional_special_tokens": sorted({*SPECIAL.findall(text)})})
    tokenizer.bos_token = "<|begin|>"
    return tokenizer
