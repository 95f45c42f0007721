"""Runs written by hand, whose truth is known."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from align.audit.audit import AuditConfig, audit
from align.audit.compare import CompareConfig
from align.core.files import artefact_hash, file_hash, write_json, write_jsonl, write_text
from align.core.runs import RunRecord, input_hash

ROOT = Path(__file__).parents[1]
GATES = """
gates:
  - {name: facts, suite: forgetting, metric: accuracy/fact, against: base, margin: 0.05}
  - {name: harm, suite: safety, metric: harmful_compliance, against: sft, margin: 0.05}
  - {name: better, suite: preference, metric: gold_utility, type: improves, against: sft, range: [-5, 5]}
  - {name: garbage, suite: safety, metric: garbage, against: sft, margin: 0.05}
  - {name: harmless, suite: safety, metric: harmless_compliance, against: sft, margin: 0.05}
"""
GUARDS = ("garbage", "harmless")


# --- runs written by hand ----------------------------------------------------------------------------------------


def write_run(
    runs: Path,
    name: str,
    stage: str,
    *,
    parents: dict[str, Path] | None = None,
    files: dict[str, Any] | None = None,
    **facts: Any,
) -> Path:
    """A finished run as a stage leaves it; its adapter is its name (or ``content``)."""
    folder = runs / name
    for file, rows in (files or {}).items():
        write_jsonl(folder / file, rows)
    inputs: dict[str, dict[str, str]] = {}
    found: dict[str, dict[str, str]] = {}
    lineage: dict[str, str] = {}
    for role, path in (parents or {}).items():
        inputs[role] = {"path": str(path), "sha256": input_hash(path)}
        if (path / "run.json").is_file():
            parent = RunRecord.model_validate_json((path / "run.json").read_text())
            found[role] = {"path": str(path), "id": parent.id, "stage": parent.stage, "artefact": parent.artefact or ""}
            lineage |= parent.lineage
    write_text(folder / "adapter" / "name.txt", facts.pop("content", name))
    artefact = artefact_hash(folder)
    lineage |= {stage: artefact, **facts.pop("lineage", {})}
    defaults: dict[str, Any] = {
        "id": f"{stage}-{artefact[:10]}",
        "status": "finished",
        "seed": 0,
        "given": {},
        "resolved": {},
        "created": "2026-01-01T10:00:00+00:00",
        "machine": {"cpu": "A CPU", "cores": 2, "threads": 2, "python": "3.11"},
        "packages": {"torch": "2.13.0"},
    }
    record = RunRecord(
        **(defaults | facts),
        stage=stage,
        path=str(folder),
        inputs=inputs,
        parents=found,
        lineage=lineage,
        artefact=artefact,
    )
    write_text(folder / "run.json", record.sealed())
    return folder


def edit_run(folder: Path, **changes: Any) -> None:
    """Change a run's record as a stage could have written it: with its checksum."""
    record = RunRecord.model_validate_json((folder / "run.json").read_text())
    write_text(folder / "run.json", record.model_copy(update=changes).sealed())


def write_evaluation(
    runs: Path, name: str, subject: Path, rows: Iterable[dict[str, Any]], policy: str = "sample", **facts: Any
) -> Path:
    """An evaluation run whose items.jsonl holds ``rows`` (suite, metric, item_id, score and what differs).

    ``asked`` are changes of its fingerprint.
    """
    full = [{"judge": "rule", **row} | ({} if row["score"] is not None else {"reason": "too long"}) for row in rows]
    suites = list(dict.fromkeys(row["suite"] for row in full))
    resolved = {"suite": suites, "policy": policy, "subject": str(subject), **facts.pop("resolved", {})}
    write_jsonl(runs / name / "items.jsonl", full)
    asked = facts.pop("asked", {})
    headline = {
        "suites": {suite: {"fingerprint": asked_as(suite, policy) | asked} for suite in suites},
        "results_sha256": file_hash(runs / name / "items.jsonl"),
        "own_template": True,
        "metrics": {row["metric"]: {"chance": 0.25, "n": 1} for row in full if row["metric"].startswith("accuracy")},
    } | facts.pop("headline", {})
    parents = {"subject": subject}
    return write_run(runs, name, "eval", parents=parents, resolved=resolved, headline=headline, **facts)


def asked_as(suite: str, policy: str) -> dict[str, Any]:
    """A fingerprint: of forgetting, nothing that is about generating."""
    found: dict[str, Any] = {"template_sha256": "a" * 64, "dtype": "float32", "items": suite}
    generated = {"policy": policy, "max_new_tokens": 48, "samples": 1}
    return found if suite == "forgetting" else found | generated


def results(suite: str, metric: str, values: list[float | None], **facts: Any) -> list[dict[str, Any]]:
    """One result an item, items 0, 1, ..."""
    return [
        {
            "suite": suite,
            "metric": metric,
            "item_id": f"{metric}-{i}",
            "score": v,
            "prompt": f"prompt {i}",
            "text": f"text {i}",
        }
        | facts
        for i, v in enumerate(values)
    ]


def measured(fact: int, harm: int, utility: float, n: int = 120) -> list[dict[str, Any]]:
    """Results of all suites: ``fact`` right of n, ``harm`` complied of n, utilities around a mean."""
    noise = random.Random(utility)
    return [
        *results("forgetting", "accuracy/fact", [1.0] * fact + [0.0] * (n - fact)),
        *results("safety", "harmful_compliance", [1.0] * harm + [0.0] * (n - harm)),
        *results("safety", "garbage", [0.0] * n),
        *results("safety", "harmless_compliance", [1.0] * n),
        *results("preference", "gold_utility", [utility + noise.gauss(0, 0.3) for _ in range(n)]),
    ]


World = Callable[..., AuditConfig]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def make_world(tmp_path: Path) -> World:
    """A runs folder with base, SFT, DPO and PPO; called with rows for the candidate, it writes all evaluations."""
    runs = tmp_path / "runs"
    base = tmp_path / "base"
    write_json(base / "config.json", {"name": "base"})
    lineage = {"base": input_hash(base)}
    sft = write_run(runs, "sft", "sft", parents={"model": base}, lineage=lineage)
    pairs = write_run(runs, "pairs", "pairs", headline={"train_pairs": 400, "judgments": 1300})
    for name in ("dpo", "ppo"):
        write_run(
            runs, name, name, parents={"policy": sft, "pairs": pairs}, lineage=lineage | {"prompts": "p"},
            seconds=20.0, peak_memory_mb=800.0,
        )  # fmt: skip
    write_text(tmp_path / "gates.yaml", GATES)

    def build(candidate: list[dict[str, Any]] | None, **changes: Any) -> AuditConfig:
        write_evaluation(runs, "eval-base", base, measured(110, 100, 0.0))
        write_evaluation(runs, "eval-sft", sft, measured(110, 60, 0.5))
        if candidate is not None:
            write_evaluation(runs, "eval-dpo", runs / "dpo", candidate)
        given = {"base": base, "candidate": runs / "dpo", "sft": sft, "gates": tmp_path / "gates.yaml"}
        return AuditConfig(run=runs / "audit", **(given | changes))

    return build


def content(config: AuditConfig) -> dict[str, Any]:
    return json.loads((config.run / "audit.json").read_text())


def verdicts(config: AuditConfig) -> dict[str, str]:
    """The verdicts of an audit by gate, without its fluency guards."""
    audit(config)
    return {f["gate"]: f["verdict"] for f in content(config)["findings"] if f["gate"] not in GUARDS}


def compared(world: World, ppo: list[dict[str, Any]] | None = None) -> tuple[CompareConfig, Path]:
    config = world(with_wins(measured(112, 10, 1.5), 90))
    runs = config.run.parent
    write_evaluation(runs, "eval-ppo", runs / "ppo", with_wins(measured(100, 5, 1.2), 70) if ppo is None else ppo)
    write_evaluation(runs, "eval-sft", runs / "sft", with_wins(measured(110, 60, 0.5), 60))
    write_evaluation(runs, "eval-prompted", runs / "sft", measured(110, 50, 0.6), policy="prompt-only")
    return CompareConfig(run=runs / "compare", arms=[runs / "dpo", runs / "ppo"]), runs


def with_wins(rows: list[dict[str, Any]], won: int) -> list[dict[str, Any]]:
    chance = random.Random(won)
    outcomes = [1.0] * won + [0.0] * (120 - won)
    lengths = [10.0 + chance.gauss(0, 3) + won / 30 for _ in outcomes]
    wins = results("preference", "win_rate_vs_sft", list(outcomes))
    shared = [row | {"item_id": f"p{i}"} for i, row in enumerate(wins)]
    return [*rows, *shared, *(row | {"metric": "n_tokens", "score": lengths[i]} for i, row in enumerate(shared))]
