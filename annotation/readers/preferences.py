"""Files of chosen and rejected responses, as rows that each hold one judgment.

In: rows with ``chosen`` and ``rejected`` (TRL and hub style, as text or messages, with or without a prompt column; or
Anthropic's HH text). Out: one comparison and one judgment a row; who judged and which response stood on which side is
not known. System prompt, turns, tools, tool calls and reasoning are kept. Two rows that contradict each other both go.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from align.core.files import file_hash
from annotation.readers.formats import HH_TURN, Format, container_of, read_hh
from annotation.readers.intake import Found, Kept, Unusable, cleaned, left_out
from annotation.readers.sides import (
    Sides,
    check,
    decoded,
    different_prompts,
    placed,
    require_both,
    sides_of,
    tools_of,
    with_system,
)
from annotation.types import Judgment
from annotation.votes import UNKNOWN_SIDES

CSV = ("csv", "tsv")
TEXT_CONTAINERS = ("csv", "tsv", "parquet")  # columns that hold lists come as JSON text there


def read_preferences(path: Path, format: Format = "auto", language: str = "en", limit: int | None = None) -> Found:
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
    for number, row in cleaned(path, container, replaced, limit):
        if container in TEXT_CONTAINERS:
            row |= {name: decoded(row[name], "role") for name in ("prompt", "chosen", "rejected") if name in row}
        if not n_rows and format != "trl":
            is_hh = is_hh or _looks_like_hh(row)
        n_rows += 1
        try:
            new = _kept(row, number, hh_sides(row) if is_hh else sides_of(row), file, language)
            _enter(new, kept, contradicted, dropped)
        except Unusable as reason:
            dropped.append(left_out(number, row.get("id"), reason))
    used: Format = "hh" if is_hh else "parquet" if container == "parquet" else "csv" if container in CSV else "trl"
    return Found(used, n_rows, list(kept.values()), sorted(dropped, key=lambda d: d["row"]), replaced[0], [])


def hh_sides(row: dict[str, Any]) -> Sides:
    """Take a row of HH text apart: all turns but the last are the prompt, the last is the response.

    Raises:
        Unusable: with the reason.
    """
    require_both(row)
    chosen, rejected = (read_hh(str(row[column])) for column in ("chosen", "rejected"))
    if chosen is None or rejected is None:
        raise Unusable("it does not start with a Human or Assistant turn")
    if chosen[:-1] != rejected[:-1]:
        raise Unusable(different_prompts())
    return Sides(chosen[:-1], [chosen[-1:], rejected[-1:]])


def _kept(row: dict[str, Any], number: int, sides: Sides, file: str, language: str) -> Kept:
    sides = sides._replace(prompt=with_system(sides.prompt, row))
    check(sides)
    arguments = decoded(row.get("template_arguments") or row.get("chat_template_kwargs"))
    comparison, (chosen, rejected) = placed(sides, language, tools_of(row.get("tools")), arguments)
    judgment = Judgment(
        comparison_id=comparison.id,
        annotator=f"imported:{file}",
        ranking=[[chosen], [rejected]],
        shown=[chosen, rejected],
        strength=_strength(row),
        flags=[UNKNOWN_SIDES],  # the order in a file is not an order on a screen
        source=f"import:{file}",
    )
    name = row.get("id")
    return Kept(number, None if name is None else str(name), comparison, judgment)


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
    dropped.append(left_out(before.row, before.name, f"contradicts another row (row {new.row})"))
    raise Unusable(f"contradicts another row (row {before.row})")


def _looks_like_hh(row: dict[str, Any]) -> bool:
    chosen = row.get("chosen")
    return not row.get("prompt") and isinstance(chosen, str) and HH_TURN.match(chosen) is not None


def _strength(row: dict[str, Any]) -> int | None:
    """Strength 0..3 from a strength or margin column; a scale we do not know says nothing."""
    try:
        given = float(row.get("strength", row.get("margin", math.nan)))
    except (TypeError, ValueError):
        return None
    return round(given) if 0 <= given <= 3 else None
