"""Read the configuration of a run: one YAML file per run, one stage per file.

In: a YAML file and dotted overrides. Out: a frozen pydantic object of the stage's schema.
Unknown keys are refused with the nearest valid name, repeated keys are refused with their line, and
``3e-6`` is a number (YAML 1.1 reads it as text). Secrets come from the environment, never from a configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from align.core.limits import MIB, MOST_LEVELS, TooLong, bounded_bytes
from align.core.problems import explain

MOST_YAML = 1 * MIB  # bytes of a config
MOST_VALUES = 100_000  # that a config holds, aliases counted each time


class BadInput(Exception):
    """An input of the user, or a fault outside of the program: reported in one line, exit code 2."""


class NotFinite(BadInput):
    """A number that must be finite is not; nothing computed from it is kept."""


def check_meant(annotation: Any, value: Any) -> None:
    """Refuse a value that would be read as another one than the user meant.

    Raises:
        ValueError: a truth value for a number, or a shell's ``~`` or ``$NAME`` in a path.
    """
    types = _types_of(annotation)
    for part in value if isinstance(value, list | tuple) else [value]:
        if isinstance(part, bool) and types & {int, float} and bool not in types:
            raise ValueError("expected a number, not true or false")
        if Path in types and isinstance(part, str | Path) and re.match(r"~(/|$)|.*\$(\{|\w)", str(part)):
            raise ValueError("a path is read literally, ~ and $ are not expanded; write it out")
        if Path in types and isinstance(part, str | Path) and "\\" in str(part):
            raise ValueError(r"a path of Windows; write it with / (under WSL, C:\x is /mnt/c/x)")


class Frozen(BaseModel):
    """A config section: immutable, without unknown keys, and every number of it is finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _is_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse truth values for numbers, and a shell's ``~`` and ``$NAME`` in paths."""
        check_meant(cls.model_fields[str(info.field_name)].annotation, value)
        return value


class StageConfig(Frozen):
    """The settings of every stage.

    ``INPUTS`` names the fields that are paths to what the stage reads (run folders, model folders, files):
    they are hashed into the run's record. A field may hold one path or a list of paths.
    """

    INPUTS: ClassVar[tuple[str, ...]] = ()
    SHARES_WORK: ClassVar[bool] = False  # several processes (torchrun, accelerate launch) divide the work among them

    stage: str
    run: Path = Field(description="folder this run is written to")
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="fixes everything that is drawn; each stage derives its own from it"
    )

    @classmethod
    def renamed(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings by today's names, from those of earlier versions; ValueError where both are given."""
        return dict(settings)

    @model_validator(mode="before")
    @classmethod
    def _reads_former_names(cls, settings: Any) -> Any:
        return cls.renamed(settings) if isinstance(settings, Mapping) else settings

    def input_hashes(self) -> dict[str, str]:
        """Return hashes of inputs that are not files, by field name (a store's chain head, a function's code)."""
        return {}

    def why_nothing(self, inputs: Mapping[str, Mapping[str, str]]) -> str:
        """Return the message for a run of this config that is finished already; ``inputs`` are those that it recorded.

        Raises:
            BadInput: what the run wrote outside of its folder is missing.
        """
        return "nothing to do"


class Template(NamedTuple):
    """A chat template by its name or file (None: the tokenizer's own), its arguments, and the day that it may print.

    ``arguments["date"]`` is an ISO day, which overrides ``day``.
    """

    name: str | None = None
    arguments: Mapping[str, Any] = MappingProxyType({})
    day: str | None = None


class TextConfig(StageConfig):
    """The settings of every stage that renders conversations."""

    chat_template: str | None = Field(default=None, description="plain, chatml or a Jinja file; else the model's own")
    template_arguments: dict[str, Any] | None = Field(
        default=None,
        description="what the chat template is called with (enable_thinking, ...); date: the day that it prints",
    )

    @field_validator("template_arguments")
    @classmethod
    def _has_a_day(cls, arguments: dict[str, Any] | None) -> dict[str, Any] | None:
        """Keep a day as text, which JSON and templates take; YAML reads 2026-11-28 as a date."""
        return None if arguments is None else {**arguments, **_day_of(arguments)}

    def template(self, created: str) -> Template:
        """Return the configured template, for a run that was created at an ISO time."""
        return Template(self.chat_template, self.template_arguments or {}, created[:10])


class Compute(Frozen):
    """Where and how a model runs; each value is recorded, so that two arms of a comparison are equal."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto takes the GPU where there is one")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="data type of weights and activations; adapters are float32"
    )
    quantization: Literal["none", "int8", "nf4"] = Field(
        default="none", description="quantization of the frozen base: int8 and nf4 by bitsandbytes"
    )
    max_tokens: int = Field(default=4096, ge=16, description="rows x length of one forward pass")
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations again in the backward pass: less memory, more time"
    )
    layout: Literal["auto", "tree", "padded"] = Field(
        default="auto", description="how responses of a prompt share its tokens; auto measures which the model allows"
    )
    attention: Annotated[str | dict[str, Any], "Attention"] | None = Field(
        default=None, description="who computes attention: dense (the default), or module:Class"
    )


MOST_EPOCHS = 10_000
Decay = Annotated[float, Field(ge=0, lt=1)]


class Optim(Frozen):
    """AdamW with a warm-up and a schedule."""

    lr: float = Field(default=1e-4, gt=0, le=1000, description="learning rate at its highest")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's decoupled weight decay")
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.999), description="AdamW's decay rates of the two moments")
    eps: float = Field(default=1e-8, gt=0, description="AdamW's term for numerical stability")
    max_grad_norm: float = Field(default=1.0, gt=0, description="clip gradients to this L2 norm")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="linear", description="course of the learning rate after the warm-up"
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps")


class Watch(Frozen):
    """The fixed prompts whose answers are written to samples.jsonl while training."""

    prompts: int = Field(default=16, ge=0, description="prompts that are answered each time")
    every: int = Field(default=10, ge=1, description="steps (PPO: iterations) from one time to the next")
    max_new_tokens: int = Field(default=64, ge=1, description="most tokens of a response")


Tracker = Literal["none", "tensorboard", "trackio", "wandb", "mlflow"]
ConfigT = TypeVar("ConfigT", bound=BaseModel)


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader that refuses repeated and merged keys, octals and base 60, and reads 3e-6 as a number."""


def _unique_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            where = f"{key_node.start_mark.name}:{key_node.start_mark.line + 1}"
            raise BadInput(f"{where}: merge keys ('<<') are not read; write the keys out")
        key = loader.construct_object(key_node, deep=True)
        if key in keys:
            line = key_node.start_mark.line + 1
            raise BadInput(f"{key_node.start_mark.name}:{line}: key '{key}' is given twice; keep one")
        keys.add(key)
    return loader.construct_mapping(node, deep=True)


def _plain_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    """Read a number, and refuse one that YAML 1.1 reads as few people do: 010 as eight, 1:30 as ninety."""
    is_whole = node.tag == "tag:yaml.org,2002:int"
    number = loader.construct_yaml_int(node) if is_whole else loader.construct_yaml_float(node)
    text = node.value.lstrip("+-").replace("_", "")
    if ":" in text or re.fullmatch(r"0\d+", text):
        where = f"{node.start_mark.name}:{node.start_mark.line + 1}"
        plain = "as a plain number" if ":" in text else "without the leading zero"
        raise BadInput(f"{where}: {node.value} means {number} in YAML; write it {plain}, or quote it")
    return number


for _tag in ("int", "float"):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", _plain_number)
_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, name: str) -> Any:
    """Parse YAML text strictly; ``name`` is named in every error."""
    try:
        loader = _StrictLoader(text)
        loader.name = name
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, name, {}, set())
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise BadInput(f"{where}: not valid YAML ({problem})") from error
    except RecursionError:
        raise BadInput(f"{name}: nested deeper than {MOST_LEVELS} levels") from None
    except (ValueError, TypeError) as error:  # a date, a number or a key that cannot be made
        raise BadInput(f"{name}: holds a value that cannot be read ({error}); quote it") from error


class _Extent(NamedTuple):
    """Numbers of values and levels of a part of a document; what it refers to counts each time."""

    values: int
    levels: int


def _measure(node: yaml.Node, name: str, known: dict[int, _Extent], around: set[int]) -> _Extent:
    """Refuse a document whose references expand to too many values, or that refers to itself."""
    if id(node) in around:
        raise BadInput(f"{name}:{node.start_mark.line + 1}: a value refers to itself; write it out")
    if id(node) in known:
        return known[id(node)]
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    inner = [] if isinstance(node, yaml.ScalarNode) else [_measure(p, name, known, around | {id(node)}) for p in parts]
    extent = _Extent(1 + sum(part.values for part in inner), 1 + max((part.levels for part in inner), default=0))
    if extent.values > MOST_VALUES or extent.levels > MOST_LEVELS:
        limit = f"{MOST_VALUES:,} values" if extent.values > MOST_VALUES else f"{MOST_LEVELS} levels"
        raise BadInput(f"{name}:{node.start_mark.line + 1}: expands to more than {limit}; write fewer references")
    known[id(node)] = extent
    return extent


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file, of at most 1 MiB, whose top level is a mapping."""
    try:
        with open(path, "rb") as file:
            text = bounded_bytes(file, MOST_YAML).decode("utf-8-sig")
    except TooLong as error:
        raise BadInput(f"{path}: {error}; is it a config?") from None
    except FileNotFoundError:
        raise BadInput(f"{path}: no such config file; name an existing YAML with --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from error
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise BadInput(f"{path}: expected 'key: value' lines, found {type(data).__name__}")
    return data


def override(data: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply dotted overrides such as ``optim.lr=1e-6`` to a copy of ``data``; values are read as YAML."""
    result, known = _copy(data), list[str]()
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals and assignment.endswith((".yaml", ".yml")):
            raise BadInput(f"'{assignment}': a config is named with --config {assignment}")
        if not equals or not key:
            raise BadInput(f"'{assignment}': an override is written key=value, for example optim.lr=1e-6")
        if not value.strip():
            raise BadInput(f"override '{key}': holds no value; give one, or write {key}=null for none")
        if before := next((old for old in known if f"{old}.".startswith(f"{key}.")), None):
            raise BadInput(f"override '{key}': '{before}' was given before it; keep one")
        known.append(key)
        target = result
        *parents, last = key.split(".")
        for parent in parents:
            child = target.setdefault(parent, {})
            if not isinstance(child, dict):
                raise BadInput(f"override '{key}': '{parent}' holds a value, not a section")
            target = child
        target[last] = parse_yaml(value, f"override {key}")
    return result


def build(schema: type[ConfigT], data: Mapping[str, Any], where: str) -> ConfigT:
    """Validate ``data`` by ``schema``; BadInput names each key, what was expected and the nearest valid key."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise BadInput(explain(schema, error, where, data)) from None


def _day_of(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return the day among template arguments in its ISO form; ValueError where it is no day."""
    if "date" not in arguments:
        return {}
    try:
        return {"date": date.fromisoformat(str(arguments["date"])).isoformat()}
    except ValueError:
        raise ValueError(f"date is no day like 2026-11-28: {arguments['date']!r}") from None


def _types_of(annotation: Any) -> set[Any]:
    """Return the types that an annotation names, inside of unions and lists too."""
    inner = get_args(annotation)
    return set().union(*map(_types_of, inner)) if inner else {annotation}


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in data.items()}
