"""Stage ``import``: preferences that exist already, into the same store that people's judgments go to.

In: a file of rows with ``chosen`` and ``rejected`` (TRL and hub style, as text or messages, with or without a prompt
column; or Anthropic's HH text). Out: one comparison and one judgment a row in ``feedback.db``, ``rows.jsonl`` (which
row became which comparison) and ``dropped.jsonl`` (row and reason). System prompt, turns, tools, tool calls and
reasoning are kept. Not here: votes of several people on one item, and annotation tools' own exports.
"""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field, ValidationError

from align.core.config import BadInput, StageConfig
from align.core.files import file_hash, write_jsonl
from align.core.runs import Run, stage
from annotation.formats import HH_TURN, Format, container_of, read_hh, read_rows, scrubbed
from annotation.store import Store
from annotation.types import Comparison, Judgment, Message, Response
from annotation.votes import UNKNOWN_SIDES

DIFFERENT_PROMPTS = "chosen and rejected have different prompts"
CSV = ("csv", "tsv")
TEXT_CONTAINERS = ("csv", "tsv", "parquet")  # columns that hold lists come as JSON text there


class ImportConfig(StageConfig):
    """``format`` auto goes by the file's ending and, for HH text, by how the first row begins."""

    INPUTS: ClassVar[tuple[str, ...]] = ("data",)

    stage: Literal["import"] = "import"
    data: Path
    feedback: Path = Path("feedback.db")
    format: Format = "auto"
    language: str = "en"
    limit: int | None = Field(None, ge=1, description="read only the first rows")


class Unusable(Exception):
    """Why a row makes no comparison."""


class Sides(NamedTuple):
    """A row taken apart: the prompt and both continuations."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


class Kept(NamedTuple):
    """A usable row."""

    row: int
    name: str | None
    comparison: Comparison
    judgment: Judgment


class Preferences(NamedTuple):
    """What a file holds: usable rows, the others with their reasons, and how many characters were replaced."""

    format: Format
    n_rows: int
    kept: list[Kept]
    dropped: list[dict[str, Any]]
    scrubbed: int

    @property
    def comparisons(self) -> list[Comparison]:
        return [entry.comparison for entry in self.kept]

    @property
    def judgments(self) -> list[Judgment]:
        return [entry.judgment for entry in self.kept]


@stage
def import_preferences(config: ImportConfig, run: Run) -> dict[str, Any]:
    """Import existing preference data into a feedback store.

    Raises:
        BadInput: unreadable file, a row that is not JSON or CSV, or no usable row at all.
    """
    found = read_preferences(config.data, config.format, config.language, config.limit)
    for entry in found.dropped:
        run.drop(entry["reason"].partition(" (")[0])
    write_jsonl(run.path / "dropped.jsonl", found.dropped)
    write_jsonl(run.path / "rows.jsonl", [_traced(entry) for entry in found.kept])
    if found.scrubbed:
        run.note(f"{found.scrubbed} characters that cannot be stored (NUL, lone surrogates) replaced by U+FFFD")
    if not found.n_rows:
        raise BadInput(f"{config.data}: holds no rows; name a file with preferences")
    if not found.kept:
        why = ", ".join(f"{count} x {reason}" for reason, count in sorted(run.record.dropped.items()))
        raise BadInput(
            f"{config.data}: no row is a usable preference, of {found.n_rows} ({why}); see {run.path / 'dropped.jsonl'}"
        )
    with Store.open(config.feedback, write=True) as store:
        store.add_comparisons(found.comparisons)
        added = store.add_judgments(found.judgments)
        run.record.inputs["feedback"] = {"path": str(config.feedback), "sha256": store.head()}
    return {
        "format": found.format,
        "rows": found.n_rows,
        "comparisons": len(found.kept),
        "new_judgments": added,
        "dropped": len(found.dropped),
    }


def read_preferences(
    path: Path, format: Format = "auto", language: str = "en", limit: int | None = None
) -> Preferences:
    """Read a preference file into comparisons and judgments, row by row.

    Raises:
        BadInput: the file cannot be read, or a row is not JSON or CSV at all.
    """
    container = container_of(path, format)
    file = f"{path.name}#{file_hash(path)[:8]}" if path.is_file() else path.name  # names are often alike
    kept: dict[str, Kept] = {}
    dropped: list[dict[str, Any]] = []
    contradicted: set[str] = set()
    replaced, n_rows, is_hh = [0], 0, format == "hh"
    for number, raw in islice(read_rows(path, container), limit):
        row = {key: value for key, value in scrubbed(raw, replaced).items() if value is not None}
        if container in TEXT_CONTAINERS:
            row |= {name: _decoded(row[name], "role") for name in ("prompt", "chosen", "rejected") if name in row}
        if not n_rows and format != "trl":
            is_hh = is_hh or _looks_like_hh(row)
        n_rows += 1
        try:
            new = _kept(row, number, hh_sides(row) if is_hh else sides_of(row), file, language)
            _enter(new, kept, contradicted, dropped)
        except Unusable as reason:
            dropped.append(_dropped(number, row.get("id"), str(reason)))
    used: Format = "hh" if is_hh else "parquet" if container == "parquet" else "csv" if container in CSV else "trl"
    return Preferences(used, n_rows, list(kept.values()), sorted(dropped, key=lambda d: d["row"]), replaced[0])


def sides_of(row: dict[str, Any]) -> Sides:
    """Take a TRL-style row apart.

    ``chosen`` and ``rejected`` may repeat the prompt (it is taken off); without a prompt column the messages both
    begin with are the prompt.

    Raises:
        Unusable: with the reason.
    """
    _require_both(row)
    prompt = _messages(row.get("prompt"), "user", "prompt")
    chosen, rejected = (_messages(row[column], "assistant", column) for column in ("chosen", "rejected"))
    if chosen == rejected:
        raise Unusable("chosen equals rejected")
    if prompt and chosen[: len(prompt)] == rejected[: len(prompt)] == prompt:
        return Sides(prompt, chosen[len(prompt) :], rejected[len(prompt) :])
    if not prompt or chosen[0]["role"] != "assistant":
        shared = _shared(chosen, rejected)
        head, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        prompt = head if head[-len(prompt) :] == prompt else [*prompt, *head]
    return Sides(prompt, chosen, rejected)


def hh_sides(row: dict[str, Any]) -> Sides:
    """Take a row of HH text apart: all turns but the last are the prompt, the last is the response.

    Raises:
        Unusable: with the reason.
    """
    _require_both(row)
    chosen, rejected = (read_hh(str(row[column])) for column in ("chosen", "rejected"))
    if chosen is None or rejected is None:
        raise Unusable("it does not start with a Human or Assistant turn")
    if chosen[:-1] != rejected[:-1]:
        raise Unusable(DIFFERENT_PROMPTS)
    return Sides(chosen[:-1], chosen[-1:], rejected[-1:])


def _kept(row: dict[str, Any], number: int, sides: Sides, file: str, language: str) -> Kept:
    system = row.get("system")
    if system and sides.prompt[:1] and sides.prompt[0]["role"] != "system":
        sides = sides._replace(prompt=[{"role": "system", "content": str(system)}, *sides.prompt])
    _check(sides)
    try:
        comparison = Comparison(
            prompt=sides.prompt,
            responses=[Response(messages=sides.chosen), Response(messages=sides.rejected)],
            tools=_tools(row.get("tools")),
            template_arguments=_decoded(row.get("template_arguments") or row.get("chat_template_kwargs") or {}),
            language=language,
        )
    except ValidationError as error:
        raise Unusable(f"malformed ({error.errors()[0]['msg']})") from None
    chosen = 0 if comparison.responses[0].messages == sides.chosen else 1
    judgment = Judgment(
        comparison_id=comparison.id,
        annotator=f"imported:{file}",
        ranking=[[chosen], [1 - chosen]],
        shown=[chosen, 1 - chosen],
        strength=_strength(row),
        flags=[UNKNOWN_SIDES],  # the order in a file is not an order on a screen
        source=f"import:{file}",
    )
    name = row.get("id")
    return Kept(number, None if name is None else str(name), comparison, judgment)


def _require_both(row: dict[str, Any]) -> None:
    for column in ("chosen", "rejected"):
        if row.get(column) in (None, "", []):
            raise Unusable(f"no {column} response")


def _enter(new: Kept, kept: dict[str, Kept], contradicted: set[str], dropped: list[dict[str, Any]]) -> None:
    """Keep a row unless it repeats one; two rows that contradict each other both go.

    Raises:
        Unusable: with the reason.
    """
    key = new.comparison.id
    if key in contradicted:
        raise Unusable("contradicts another row")
    before = kept.get(key)
    if before is None:
        kept[key] = new
        return
    if before.judgment.ranking == new.judgment.ranking:
        raise Unusable(f"duplicate (of row {before.row})")
    contradicted.add(key)
    del kept[key]
    dropped.append(_dropped(before.row, before.name, f"contradicts another row (row {new.row})"))
    raise Unusable(f"contradicts another row (row {before.row})")


def _check(sides: Sides) -> None:
    """What every usable row fulfils, whatever format it came in."""
    if not sides.chosen or not sides.rejected:
        raise Unusable("a response is empty")
    for message in sides.prompt:
        if not _says_something(message) and message.get("role") != "system":
            raise Unusable("an empty turn in the prompt")
    for response in (sides.chosen, sides.rejected):
        if response[-1].get("role") != "assistant":
            raise Unusable("the last turn is not the assistant's")
        if any(message.get("role") not in ("assistant", "tool") for message in response):
            raise Unusable(DIFFERENT_PROMPTS)
        if not all(_says_something(message) for message in response):
            raise Unusable("a response is empty")
    if not sides.prompt:
        raise Unusable("no prompt")
    if sides.chosen == sides.rejected:
        raise Unusable("chosen equals rejected")


def _says_something(message: Message) -> bool:
    content = message.get("content")
    text = content.strip() if isinstance(content, str) else content
    return bool(text or message.get("tool_calls") or message.get("reasoning_content"))


def _messages(value: Any, role: str, column: str) -> list[Message]:
    """A column as messages: text is one message of ``role``, None is no messages."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in value):
        raise Unusable(f"{column} is neither text nor messages")
    return [{key: item for key, item in message.items() if item is not None} for message in value]


def _shared(chosen: list[Message], rejected: list[Message]) -> int:
    """How many leading messages both have; a last answer of its own is left to each."""
    most = min(len(chosen), len(rejected)) - 1
    for index in range(most):
        if chosen[index] != rejected[index]:
            return index
    return max(most, 0)


def _looks_like_hh(row: dict[str, Any]) -> bool:
    chosen = row.get("chosen")
    return not row.get("prompt") and isinstance(chosen, str) and HH_TURN.match(chosen) is not None


def _decoded(value: Any, key: str | None = None) -> Any:
    """JSON text of an object, or of a list of objects (that have ``key``), becomes what it spells; other text stays."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        found = json.loads(value)
    except ValueError:
        return value
    if isinstance(found, dict):
        return found if key is None else value
    return found if found and all(isinstance(item, dict) and (key is None or key in item) for item in found) else value


def _tools(value: Any) -> list[dict[str, Any]] | None:
    """Tools as a list; TRL also takes them as JSON text."""
    found = _decoded(value)
    if not found:
        return None
    if not isinstance(found, list):
        raise Unusable("tools are not a list")
    return [_decoded(tool) for tool in found]


def _strength(row: dict[str, Any]) -> int | None:
    """Strength 0..3 from a strength or margin column; a scale we do not know says nothing."""
    try:
        given = float(row.get("strength", row.get("margin", math.nan)))
    except (TypeError, ValueError):
        return None
    return round(given) if 0 <= given <= 3 else None


def _dropped(row: int, name: Any, reason: str) -> dict[str, Any]:
    return {"row": row, "id": name, "reason": reason}


def _traced(entry: Kept) -> dict[str, Any]:
    return {"row": entry.row, "id": entry.name, "comparison_id": entry.comparison.id}
