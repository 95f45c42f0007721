"""Load what a configuration names: a part by its ``kind``, and anything that is written ``module:name``.

An extension point (suites, judges, tuners, losses, samplers, attention, rewards, importers) is a :class:`Seam`: a table
of shipped names. A part is a class derived from :class:`Part`: its fields are its settings, so a configuration that
chooses it is validated by the class's own schema, and its methods do the work. A class from elsewhere is named
``module:Class``. A module is looked for where Python finds its own, and then in the current folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, TypeVar

from pydantic import Field, PydanticUserError, SerializerFunctionWrapHandler, ValidationError, model_serializer

from align.core.config import BadInput, Frozen
from align.core.problems import explain, nearest

RewardFunction = Callable[..., list[float | None]]  # TRL's signature: f(prompts, completions, **columns)


class Part(Frozen):
    """Something that a configuration chooses by ``kind``; the other fields are its settings.

    A part without settings is written as its kind alone, as a user writes it. ``INPUTS`` names the fields that are
    paths to what the part reads; they are hashed into the run's record.
    """

    INPUTS: ClassVar[tuple[str, ...]] = ()

    kind: str = Field(description="a shipped name, or module:Class")

    def code(self) -> tuple[Any, ...]:
        """Return the classes and functions from outside the package that the part runs: inputs of the run."""
        return (type(self),) if ":" in self.kind else ()

    @model_serializer(mode="wrap")
    def _shortest(self, serialize: SerializerFunctionWrapHandler) -> Any:
        values = serialize(self)
        return values if set(type(self).model_fields) != {"kind"} else self.kind


PartT = TypeVar("PartT", bound=Part)


class Seam(NamedTuple):
    """An extension point: what its parts are called, and the shipped ones as ``module:Class`` by name."""

    what: str
    shipped: Mapping[str, str]


def choose(seam: Seam, base: type[PartT], given: Any) -> PartT:
    """Return the part that a setting chooses: a name alone, or a section with ``kind`` and the part's settings.

    Meant for a field's validator, which puts the key before the message.

    Raises:
        ValueError: the kind is unknown, cannot be imported, is another kind of part, or refuses its settings.
    """
    if isinstance(given, base):
        return given
    settings = given if isinstance(given, Mapping) else {"kind": given}
    if (kind := settings.get("kind")) is None:
        raise ValueError(f"names no kind of {seam.what}; write kind: {_known(seam)}")
    if not isinstance(kind, str):
        raise ValueError(f"{kind!r} is no kind of {seam.what}; write {_known(seam)}")
    if kind not in seam.shipped and ":" not in kind:
        hint = nearest(kind, seam.shipped, f"write {_known(seam)}", cutoff=0.75)
        raise ValueError(f"'{kind}' is no kind of {seam.what}; {hint}")
    try:
        part = load(seam.shipped.get(kind, kind))
        if not (isinstance(part, type) and issubclass(part, base)):
            raise ValueError(
                f"'{kind}' is no {seam.what}: a class derived from {base.__module__}:{base.__name__} is one"
            )
        if missing := sorted(part.__abstractmethods__):
            raise ValueError(f"{seam.what} {kind}: class {part.__name__} does not define {', '.join(missing)}")
        return part.model_validate(settings)
    except BadInput as error:
        raise ValueError(str(error)) from error
    except ValidationError as error:
        raise ValueError(explain(part, error, f"{seam.what} {kind}", settings)) from None


def one_or_more(given: Any) -> Any:
    """Read a setting that is one part, or a list of parts, as a list."""
    return given if isinstance(given, list | tuple) else [given]


def parts_of(config: Frozen) -> Iterator[tuple[str, Part]]:
    """Yield the parts that a config chooses, each with its field's name; those of a list as name[0], name[1], ..."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Part):
            yield name, value
        elif isinstance(value, list | tuple):
            yield from ((f"{name}[{index}]", part) for index, part in enumerate(value) if isinstance(part, Part))


def load(name: str) -> Any:
    """Import what is written ``module:name``.

    Raises:
        BadInput: the name has another form, the module cannot be imported, or has nothing of this name.
    """
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise BadInput(f"'{name}': write module:name, for example align.pocket.utility:utility")
    module = _import(name, module_name)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise BadInput(f"'{name}': {module.__file__ or module_name} has no '{attribute}'; mend the name") from None


@contextmanager
def calling(what: str, code: object) -> Iterator[None]:
    """Report in one line what code from outside the package raises; what the package's own raises passes unchanged.

    Args:
        what: what is called, as the message begins: "suite mine:Facts: chance".
        code: the part, class or function that is called; its module tells whose it is.

    Raises:
        BadInput: the user's code raised something other than BadInput.
    """
    try:
        yield
    except BadInput:
        raise
    except (Exception, SystemExit) as error:
        home = inspect.unwrap(code) if inspect.isroutine(code) else code if isinstance(code, type) else type(code)
        if str(getattr(home, "__module__", "")).partition(".")[0] in ("align", "annotation", "rewards"):
            raise
        problem = raised(error, _file_of(home))
        raise BadInput(f"{what}: {problem}; mend it and run the same command again") from error


def raised(error: BaseException, file: str | None = None) -> str:
    """Return in one line what was raised and where: the last line of ``file`` in the traceback, or its last line."""
    text = " ".join(str(error).split())[:200]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    frames = [frame for frame in frames if file is None or frame.filename == file]
    outside = frames[-1:] if frames and frames[-1].filename != __file__ else []
    where = "".join(f" at {Path(frame.filename).name}:{frame.lineno}" for frame in outside)
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"


def _file_of(home: Any) -> str | None:
    try:
        return inspect.getsourcefile(home)
    except TypeError:  # made at run time, or written in C
        return None


def _import(name: str, module_name: str) -> ModuleType:
    file, remedy = None, "mend the name or the module"
    try:
        if importlib.util.find_spec(module_name.partition(".")[0]) is None and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        file = getattr(importlib.util.find_spec(module_name), "origin", None)
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # importing a module runs the user's own code
        if isinstance(error, PydanticUserError) and error.code == "model-field-missing-annotation":
            remedy = "write a setting with its type (beta: float = 0.1), and a constant as ClassVar"
        raise BadInput(f"'{name}': cannot be imported ({raised(error, file)}); {remedy}") from error


def _known(seam: Seam) -> str:
    return f"one of {', '.join(sorted(seam.shipped))}, or module:Class of your own"
