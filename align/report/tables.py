"""Write a comparison as Markdown: for the terminal, a pull request, a README.

In: the content of comparison.json. Out: text. Not here: any computing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align.core.stats.estimates import Estimate, format_number

EQUAL_LENGTH = (
    "Equal length: a logistic regression of wins on the difference in length, read where it is 0. It knows nothing of "
    "how hard a prompt is: it is not AlpacaEval 2's length-controlled win rate."
)


def markdown(comparison: Mapping[str, Any]) -> str:
    """Write tables of metrics, differences and costs, then what is missing and the caveat."""
    parts = [
        "# Comparison",
        _metrics(comparison["rows"]),
        "## Paired differences",
        _differences(comparison["differences"]),
    ]
    parts += ["## What it took", _costs(comparison["costs"])]
    if comparison["not_measured"]:
        parts += ["## Not measured", "\n".join(f"- {line}" for line in comparison["not_measured"])]
    return "\n\n".join([*parts, comparison["caveat"]]) + "\n"


def estimate(record: Mapping[str, Any] | None) -> str:
    """Write an estimate as ``value [low, high] n=…``, with the failures where there are some."""
    if record is None:
        return "not measured"
    known = Estimate.model_validate(record)
    failed = f", {known.n_failed} failed" if known.n_failed else ""
    return str(known) if known.value is None else f"{known} n={known.n_scored}{failed}"


def notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return notes on metrics whose name another measure is known by."""
    return [EQUAL_LENGTH] if any(metric.endswith(", equal length") for row in rows for metric in row["metrics"]) else []


def arrow(higher_is_better: bool) -> str:
    return "↑" if higher_is_better else "↓"


def directions(rows: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Return whether more is better, by every metric of any row in order of first appearance."""
    return {name: entry["higher_is_better"] for row in rows for name, entry in row["metrics"].items()}


def _metrics(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| metric | " + " | ".join(row["name"] for row in rows) + " |", "|" + "---|" * (len(rows) + 1)]
    for metric, is_better in directions(rows).items():
        cells = [estimate(row["metrics"].get(metric)) for row in rows]
        lines.append(f"| {metric} {arrow(is_better)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "95 % intervals over items; ↑ higher is better, ↓ lower is better.", *notes(rows)])


def _differences(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| difference | metric | estimate | excludes 0 |", "|---|---|---|---|"]
    for row in rows:
        excludes = "not known" if row["low"] is None else "yes" if row["low"] > 0 or row["high"] < 0 else "no"
        name = f"{row['of']} − {row['minus']}"
        lines.append(f"| {name} | {row['metric']} {arrow(row['higher_is_better'])} | {estimate(row)} | {excludes} |")
    return "\n".join(lines) if rows else "No metric was measured on two arms."


def _costs(rows: Sequence[Mapping[str, Any]]) -> str:
    head = "| arm | train pairs | judgments | configurations tried | seconds | of its reward model | peak memory, MB |"
    keys = ("train_pairs", "judgments", "configurations_tried", "seconds", "reward_seconds", "peak_memory_mb")
    lines = [head, "|" + "---|" * 7]
    lines += [f"| {row['name']} | " + " | ".join(format_number(row[key]) for key in keys) + " |" for row in rows]
    return "\n".join(lines)
