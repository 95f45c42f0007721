"""Explain what a schema refuses: which key, what was expected, and what to write.

In: pydantic's problems. Out: one line with the keys as the user wrote them. Not here: where the settings come from
(``config``).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

NO_TEXT = "expected text, and YAML reads this as another type; quote it, on a command line as key='\"…\"'"
MESSAGES = {  # by the beginning of pydantic's name of a problem
    "path_": "expected a path",
    "dict_type": "expected a section of 'key: value' lines",
    "model_": "expected a section of 'key: value' lines",
    "int_": "expected a whole number",
    "float_": "expected a number",
    "string_type": "expected text",
    "bool_": "expected true or false",
}


class _Place(NamedTuple):
    """The keys that lead to a value as the user wrote them, and the schema of the section of the last one."""

    keys: tuple[str, ...]
    section: type[BaseModel] | None


def explain(schema: type[BaseModel], error: ValidationError, where: str, given: Any) -> str:
    """Explain in one line what a schema refuses in ``given``: each key, what was expected, the nearest valid key."""
    lines: dict[tuple[str, ...], str] = {}
    for problem in error.errors():
        place = _place(schema, problem["loc"], given)
        lines.setdefault(place.keys, f"{where}: {_line(problem, place)}")
    # what a section or a list lacks follows from what is wrong inside it
    inner = {keys[:length] for keys in lines for length in range(1, len(keys))}
    return "; ".join(line for keys, line in lines.items() if keys not in inner)


def problem_text(problem: Mapping[str, Any], key: str = "") -> str:
    """Return what is wrong with a value and what to write instead; ``key`` is the name that it is written under."""
    kind, given = str(problem["type"]), problem.get("input")
    if kind in ("string_type", "path_type") and isinstance(given, bool | int | float):
        text = NO_TEXT
    elif kind in ("list_type", "tuple_type"):
        written = f"; write {key}: [{given}], on a command line {key}=[{given}]" if _is_short(given) else ""
        return f"expected a list{written}"
    elif kind == "too_short":
        text = "holds too few values; give at least {min_length}".format(**problem["ctx"])
    else:
        own = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        text = next((text for start, text in MESSAGES.items() if kind.startswith(start)), own)
    return text + (f" (given: {given!r})" if _is_short(given) else "")


def nearest(name: str, known: Iterable[str], otherwise: str, cutoff: float = 0.5) -> str:
    """Ask whether the nearest of the known names was meant; where none is near, return what to do ``otherwise``."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean '{near[0]}'?" if near else otherwise


def _line(problem: Mapping[str, Any], place: _Place) -> str:
    key = ".".join(place.keys)
    if problem["type"] == "missing":
        return f"key '{key}' is missing; add it"
    if problem["type"] == "extra_forbidden":
        known = sorted(place.section.model_fields) if place.section else []
        return f"unknown key '{key}'; " + nearest(place.keys[-1], known, "valid keys: " + ", ".join(known))
    text = problem_text(problem, place.keys[-1] if place.keys else "")
    return f"key '{key}': {text}" if key else text


def _place(schema: type[BaseModel], location: Sequence[int | str], given: Any) -> _Place:
    """Follow a location through schema and settings, without tags of unions and indices of lists that are none."""
    keys: list[str] = []
    section: type[BaseModel] | None = schema
    kind: Any = schema
    for part in location:
        models = [one for one in _members(kind) if isinstance(one, type) and issubclass(one, BaseModel)]
        section = next((one for one in models if part in one.model_fields), models[0] if models else None)
        if section is not None and part in section.model_fields:
            kind = section.model_fields[str(part)].annotation
        elif isinstance(part, str) and section is None and len(_members(kind)) > 1:
            continue  # names a member of a union
        if not isinstance(part, int) or isinstance(given, list | tuple):
            keys.append(str(part))
            inside = dict(enumerate(given)) if isinstance(given, list | tuple) else given
            given = inside.get(part) if isinstance(inside, Mapping) else None
    return _Place(tuple(keys), section)


def _members(kind: Any) -> list[Any]:
    """Return the types of a union, or of the values of a list, without None."""
    origin = get_origin(kind)
    if origin is Annotated:
        return _members(get_args(kind)[0])
    if origin in (Union, UnionType):
        return [one for member in get_args(kind) if member is not type(None) for one in _members(member)]
    if origin in (list, tuple):
        return [one for member in get_args(kind) if member is not ... for one in _members(member)]
    return [kind]


def _is_short(value: Any) -> bool:
    """Return whether a value fits into the one line of an error."""
    return isinstance(value, str | int | float | bool | None) and len(repr(value)) < 200
