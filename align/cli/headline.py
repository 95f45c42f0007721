"""Print what a finished stage measured: the headline of its record, in lines that a person reads.

Estimates are printed with their interval and n. What only programs read (hashes, declarations, fingerprints) is left to
``run.json``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from align.report.tables import estimate


def headline_lines(headline: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a headline; the sentence of an audit says its verdict."""
    for name, value in headline.items():
        if name == "verdict" and "sentence" in headline or name.endswith("sha256"):
            continue
        if _is_estimate(value) or not isinstance(value, Mapping | list):
            yield f"{name}: {_shown(value)}"
        elif isinstance(value, list):
            yield from [f"{name}: {', '.join(map(_shown, value))}"] if value else []
        elif value and all(map(_is_estimate, value.values())):
            yield from (f"{name}:", *(f"  {key}: {_shown(one)}" for key, one in value.items()))
        elif value and not any(isinstance(one, Mapping) for one in value.values()):
            yield f"{name}: {', '.join(f'{key} {_shown(one)}' for key, one in value.items())}"


def _is_estimate(value: Any) -> bool:
    return isinstance(value, Mapping) and {"value", "low", "n"} <= value.keys()


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if _is_estimate(value):
        chance = f" (chance {_shown(value['chance'])})" if "chance" in value else ""
        return f"{estimate(value)}{chance}" if value["n"] else "not measured"
    return str(value)
