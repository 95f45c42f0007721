"""`align quickstart`: run the whole main job on the embedded world, offline, on CPU, in about four minutes.

With ``--label-studio`` the same recipe, smaller, with the simulated people at a real server on this machine; some
tasks are left open there for the user.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align.core.config import BadInput, read_yaml
from align.core.run_record import read_run
from align.core.stats.estimates import Estimate, format_number

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "pocket" / "recipe.yaml"
AT_SERVER = (  # a server takes some ten votes a second, and the recipe's own campaign has 25,000
    "world.prompts=900",
    "world.held_out_prompts=150",
    "votes.pairs_per_prompt=1",
    "votes.votes_per_comparison=2",
    "votes.server.open_tasks=10",
)
ARMS = ("eval-base", "eval-sft", "eval-prompt-only", "eval-best-of-n", "eval-dpo", "eval-ppo")
COLUMNS = {
    "gold_utility": "gold utility",
    "harmful_compliance": "complies with harm",
    "over_refusal": "refuses look-alikes",
    "sycophancy": "repeats false claims",
    "win_rate_vs_sft": "wins against sft",
    "kl": "KL, nats",
}


def quickstart(runs: str | None = None, label_studio: bool = False) -> int:
    """Run the pocket recipe into ``runs`` and print the table, the verdict and the path of the report.

    Returns 0 when the job was done, whatever the verdict.
    """
    from align.cli.recipe import load_recipe, run_recipe

    if not RECIPE.is_file():
        raise BadInput(f"{RECIPE}: missing; quickstart runs from a clone of the repository (make quickstart)")
    _limit_threads("no network but a server on this machine" if label_studio else "no network")
    started = time.monotonic()
    folder = Path(runs or ("runs/quickstart-label-studio" if label_studio else "runs/quickstart"))
    settings = [f"runs={folder}", *(at_server(folder) if label_studio else ())]
    recipe = load_recipe(read_yaml(RECIPE), settings, str(RECIPE))
    records = {record.path: record for record in run_recipe(recipe, str(RECIPE))}
    print()
    print_table(folder)
    for name in ("audit-dpo", "audit-ppo"):
        print(f"{name}: {records[str(folder / name)].headline['sentence']}")
    print(f"{time.monotonic() - started:.0f} s of work. Report: {(folder / 'report' / 'report.html').resolve()}")
    if label_studio:
        print("\n".join(("", *left_open(folder))))
    return 0


def at_server(folder: Path) -> list[str]:
    """Return the recipe's overrides with which its people judge at a server of ``folder``."""
    paths = {"folder": folder / "label-studio", "guidelines": RECIPE.with_name("guidelines.md")}
    return [*AT_SERVER, *(f"votes.server.{name}={json.dumps(str(path))}" for name, path in paths.items())]


def left_open(folder: Path) -> Iterator[str]:
    """Return how the user judges the tasks that were left open, and what becomes of them."""
    from annotation.campaign.posting import invite
    from annotation.campaign.settings import load_campaign
    from annotation.label_studio.server import start
    from annotation.label_studio.studio import Studio
    from annotation.store.ledger import Ledger
    from annotation.store.store import Store

    config, home = folder / "votes" / "campaign.yaml", folder / "label-studio"
    campaign, server = load_campaign(config), start(home)
    with Store.open(campaign.feedback) as store:
        state = Ledger(store, campaign.name).state()
    project = state.project if state else 0
    you = invite(server, "you")
    n_open = len(Studio(server.url, server.token).unanswered(project))
    yield f"{n_open} tasks wait for you: {server.url}projects/{project}/"
    yield f"log in as {you.email}, password {you.password}; Label All Tasks, keys 1 to 8, Ctrl+Enter"
    yield f"your judgments to the store:  align annotate pull --config {config} server={home}"
    yield f"pairs with them:              align annotate pairs feedback={campaign.feedback} run={folder}/my-pairs"
    yield f"stop the server:              align annotate down server={home}"


def print_table(folder: Path) -> None:
    """Print one line per arm: means and 95 % intervals."""
    print(f"{'':<12}" + "".join(f"{title:>25}" for title in COLUMNS.values()))
    for arm in ARMS:
        metrics = read_run(folder / arm).headline["metrics"]
        print(f"{arm.removeprefix('eval-'):<12}" + "".join(f"{_cell(metrics.get(key)):>25}" for key in COLUMNS))


def _cell(record: dict[str, Any] | None) -> str:
    if record is None or (estimate := Estimate.model_validate(record)).value is None:
        return "-"
    return format_number(estimate.value) if estimate.low is None else str(estimate)


def _limit_threads(purpose: str) -> None:
    """Use two threads, as for the README's figures: small matrices gain nothing from more."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(min(2, cores))
    print(f"quickstart: {torch.get_num_threads()} threads, {purpose}", file=sys.stderr)
