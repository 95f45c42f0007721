"""`align VERB --help`: what one verb takes, read from the schema of its settings or from its function.

In: a verb's name. Out: lines. Nothing is written by hand here, so nothing can be out of date.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from align.cli.annotate import VERBS as BRIDGE
from align.cli.stages import STAGES

GIVEN = {
    "studio": "--config F: the campaign (its keys can be overridden); a server: the environment's, or server=DIR",
    "campaign": "--config F: the campaign (its keys can be overridden)",
    "address": "a server: LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY, or server=DIR",
    "folder": "server=DIR: the folder of the embedded server (default runs/label-studio)",
    "settings": "",
}


def usage(words: Sequence[str]) -> Iterator[str] | None:
    """What the verb that these words begin with takes, line by line; None when they name no such verb."""
    names = [word for word in words if not word.startswith("-")]
    is_annotate = names[:1] == ["annotate"]
    names = names[1:] if is_annotate else names
    for name in (" ".join(names[:2]), *names[:1]):
        if is_annotate and name in BRIDGE:
            return _bridge(name)
        if name in STAGES:
            return _stage(name, is_annotate)
    return None


def _stage(name: str, is_annotate: bool) -> Iterator[str]:
    verb = STAGES[name]
    schema: type[BaseModel] = getattr(importlib.import_module(verb.module), verb.config)
    yield f"align {'annotate ' if is_annotate else ''}{name}: {verb.summary}"
    yield "settings, in a YAML (--config F) or as key=value:"
    yield from _fields(schema, "")


def _fields(schema: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in schema.model_fields.items():
        if name == "stage":
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True, validated_data={})
        yield _line(prefix + name, field.annotation, default, field.description or "")


def _bridge(name: str) -> Iterator[str]:
    verb = BRIDGE[name]
    function = getattr(importlib.import_module(verb.module), verb.function)
    yield f"align annotate {name}: {verb.summary}"
    yield from filter(None, [GIVEN[verb.given]])
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            default = PydanticUndefined if parameter.default is parameter.empty else parameter.default
            yield _line(parameter.name, parameter.annotation, default, "")
    yield ""
    yield inspect.getdoc(function) or ""


def _line(name: str, kind: Any, default: Any, description: str) -> str:
    kind = kind if isinstance(kind, str) else getattr(kind, "__name__", "") if isinstance(kind, type) else str(kind)
    kind = re.sub(r"\b(?:typing|pathlib|annotation|align|rewards)\.(?:\w+\.)*", "", kind)
    value = "needed" if default is PydanticUndefined else f"default {default}" if default != "" else "default ''"
    return f"  {name:<30} {kind}; {value}" + (f"; {description}" if description else "")
