"""`align VERB --help`: print what a verb takes, from the schema of its settings or from its function.

In: a verb's name. Out: lines.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from align.cli.annotate import VERBS as BRIDGE
from align.cli.stages import STAGES
from align.core.config import Frozen
from align.core.plugins import Part

_CAMPAIGN = "a campaign: --config F, whose keys can be overridden"
_SERVER = "a server: LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY, or server=DIR"
GIVEN = {
    "studio": f"{_CAMPAIGN}; {_SERVER}",
    "campaign": _CAMPAIGN,
    "address": _SERVER,
    "folder": "server=DIR: the folder of the embedded server (default runs/label-studio)",
    "settings": "",
}


def usage(words: Sequence[str]) -> Iterator[str] | None:
    """Return what the verb at the beginning of these words takes, line by line; None where they name no verb."""
    names = [word for word in words if not word.startswith("-")]
    is_annotate = names[:1] == ["annotate"]
    names = names[1:] if is_annotate else names
    for name in (" ".join(names[:2]), *names[:1]):
        if is_annotate and name in BRIDGE:
            return _bridge(name)
        if name in STAGES:
            return _stage(name, is_annotate)
    return None


class Setting(NamedTuple):
    """One setting of a verb, as its schema or its function declares it."""

    name: str
    type: str
    default: str | None  # None: it has to be given
    description: str


def settings_of(schema: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of a schema by dotted key, with those of its sections."""
    for name, field in schema.model_fields.items():
        if name == "stage":
            continue
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel) and not issubclass(section, Part):
            yield from settings_of(section, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True, validated_data={})
        yield _setting(prefix + name, field.annotation, default, field.description or "")
        for section in get_args(field.annotation):
            if isinstance(section, type) and issubclass(section, Frozen) and type(None) in get_args(field.annotation):
                yield from settings_of(section, f"{prefix}{name}.")


def settings_of_stage(name: str) -> Iterator[Setting]:
    """Yield the settings of a stage's verb: those of its schema, and what the command line takes beside them."""
    verb = STAGES[name]
    schema: type[BaseModel] = getattr(importlib.import_module(verb.module), verb.config)
    for setting in settings_of(schema):
        yield setting._replace(default=f"runs/{name}") if setting.name == "run" else setting
    if verb.gold and "gold" not in schema.model_fields:
        yield Setting("gold", "str | None", "null", "module:function of the known utility, in a world that has one")


def parameters_of(function: Any) -> Iterator[Setting]:
    """Yield the settings of a verb that is a plain function: its keyword-only arguments, as documented."""
    described = _documentation(function)[1]
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            default = PydanticUndefined if parameter.default is parameter.empty else parameter.default
            yield _setting(parameter.name, parameter.annotation, default, described.get(parameter.name, ""))


def text_of(function: Any) -> str:
    """Return the docstring of a function without its arguments, and with its errors in words for users."""
    text = _documentation(function)[0].replace("Raises:\n", "It stops with an error:\n")
    return re.sub(r"^    BadInput: ", "    ", text, flags=re.MULTILINE).replace(
        "    KeyboardInterrupt: ", "    Ctrl-C: "
    )


def _documentation(function: Any) -> tuple[str, dict[str, str]]:
    """Return a function's docstring without its arguments, and their descriptions by name."""
    text, _, rest = (inspect.getdoc(function) or "").partition("\n\nArgs:\n")
    arguments, _, more = rest.partition("\n\n")
    described = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", arguments, re.MULTILINE)
    return "\n\n".join(filter(None, [text, more])), {
        name: " ".join(words.split()).rstrip(".") for name, words in described
    }


def _setting(name: str, kind: Any, default: Any, description: str) -> Setting:
    return Setting(name, shown_type(kind), None if default is PydanticUndefined else _yaml(default), description)


def _yaml(default: Any) -> str:
    """Write a default as a YAML takes it."""
    value = to_jsonable_python(default, serialize_as_any=True)
    if isinstance(value, str):
        return value or "''"
    if isinstance(value, list | dict):
        return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6).strip()
    return json.dumps(value)


def shown_type(kind: Any) -> str:
    """Write a type for readers: choices by their values, without validators and the modules it comes from."""
    arguments = get_args(kind)
    origin = get_origin(kind)
    if isinstance(kind, str):
        return re.sub(r"\b(?:typing|pathlib|annotation|align|rewards)\.(?:\w+\.)*", "", kind)
    if kind is type(None) or kind is ...:
        return "None" if kind is not ... else "..."
    if origin is Annotated:
        return next((named for named in arguments[1:] if isinstance(named, str)), shown_type(arguments[0]))
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " | ".join(map(shown_type, arguments))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(shown_type, arguments))}]"
    return str(getattr(kind, "__name__", kind))


def _stage(name: str, is_annotate: bool) -> Iterator[str]:
    verb = STAGES[name]
    yield f"align {'annotate ' if is_annotate else ''}{name}: {verb.summary}"
    yield "settings, in a YAML (--config F) or as key=value:"
    yield from map(_line, settings_of_stage(name))


def _bridge(name: str) -> Iterator[str]:
    verb = BRIDGE[name]
    function = getattr(importlib.import_module(verb.module), verb.function)
    yield f"align annotate {name}: {verb.summary}"
    yield from filter(None, [GIVEN[verb.given]])
    yield from map(_line, parameters_of(function))
    yield ""
    yield text_of(function)


def _line(setting: Setting) -> str:
    value = "needed" if setting.default is None else f"default {setting.default}"
    more = f"; {setting.description}" if setting.description else ""
    return f"  {setting.name:<30} {setting.type}; {value}{more}"
