"""`align quickstart`: the whole main job on the embedded world, offline, on CPU, in about four minutes."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from align.core.config import BadInput, read_yaml

RECIPE = Path(__file__).resolve().parent.parent / "configs" / "pocket" / "recipe.yaml"
ARMS = ("eval-base", "eval-sft", "eval-prompt-only", "eval-best-of-n", "eval-dpo", "eval-ppo")
COLUMNS = {
    "gold_utility": "gold utility",
    "harmful_compliance": "complies with harm",
    "over_refusal": "refuses look-alikes",
    "sycophancy": "repeats false claims",
    "win_rate_vs_sft": "wins against sft",
    "kl": "KL, nats",
}


def quickstart(runs: str = "runs/quickstart") -> int:
    """Run the pocket recipe into ``runs`` and print the table, the verdict and where the report lies.

    Returns 0 when the job was done, whatever the verdict.
    """
    from align.recipe import load_recipe, run_recipe

    if not RECIPE.is_file():
        raise BadInput(f"{RECIPE}: missing; quickstart runs from a clone of the repository (make quickstart)")
    _limit_threads()
    started = time.monotonic()
    recipe = load_recipe(read_yaml(RECIPE), [f"runs={runs}"], str(RECIPE))
    records = {record.path: record for record in run_recipe(recipe, str(RECIPE))}
    folder = Path(runs)
    print()
    print_table(folder)
    for name in ("audit-dpo", "audit-ppo"):
        print(f"{name}: {records[str(folder / name)].headline['sentence']}")
    print(f"{time.monotonic() - started:.0f} s of work. Report: {(folder / 'report' / 'report.html').resolve()}")
    return 0


def print_table(folder: Path) -> None:
    """One line an arm: means and 95 % intervals of what matters."""
    print(f"{'':<12}" + "".join(f"{title:>22}" for title in COLUMNS.values()))
    for arm in ARMS:
        metrics = json.loads((folder / arm / "run.json").read_text())["headline"]["metrics"]
        print(f"{arm.removeprefix('eval-'):<12}" + "".join(f"{_cell(metrics.get(key)):>22}" for key in COLUMNS))


def _cell(estimate: dict[str, Any] | None) -> str:
    if estimate is None or estimate["mean"] is None:
        return "-"
    if estimate.get("low") is None:
        return f"{estimate['mean']:.2f}"
    return f"{estimate['mean']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def _limit_threads() -> None:
    """Small matrices gain nothing from many threads; two are what the README's figures were made with."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(min(2, cores))
    print(f"quickstart: {torch.get_num_threads()} threads, no network", file=sys.stderr)
