"""What has been measured of a policy: its finished evaluation runs, found by artefact hash, and their items.

In: folders that hold runs. Out: records and per-item scores. The newest finished evaluation per suite and policy
counts, and callers name it. Not here: statistics and verdicts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from align.core.files import read_rows
from align.core.intervals import Kind
from align.core.runs import RunRecord, input_hash, is_ours, read_run
from align.evals.stats import is_share
from annotation.types import ItemResult

POLICIES = ("sample", "greedy")  # what a policy does by itself; prompt-only and best-of-n are other contenders


class Scores(NamedTuple):
    """One metric of one evaluation: every result (None where it failed) beside its item id and sample number."""

    values: list[float | None]
    items: list[str]

    @property
    def by_item(self) -> dict[str, float | None]:
        """The mean over an item's scored samples; None where none was scored."""
        found: dict[str, list[float]] = {}
        for value, item in zip(self.values, self.items, strict=True):
            found.setdefault(item, []).extend([] if value is None else [value])
        return {item: sum(scored) / len(scored) if scored else None for item, scored in found.items()}


class Subject(NamedTuple):
    """A policy under a name, with its evaluation runs by (suite, policy)."""

    name: str
    path: Path
    artefact: str
    runs: Mapping[tuple[str, str], RunRecord]


def all_runs(folders: Iterable[Path]) -> list[RunRecord]:
    """Every run in these runs folders and one level below them, by path; a run seen twice counts once.

    A ``run.json`` that some other program wrote is passed over.
    """
    found: dict[Path, RunRecord] = {}
    for folder in folders:
        for file in sorted([*folder.glob("*/run.json"), *folder.glob("*/*/run.json")]):
            if is_ours(file.parent):
                found.setdefault(file.parent.resolve(), read_run(file.parent))
    return [found[path] for path in sorted(found)]


def evaluations(records: Iterable[RunRecord], artefact: str) -> dict[tuple[str, str], RunRecord]:
    """The newest finished evaluation of an artefact per (suite, policy)."""
    found: dict[tuple[str, str], RunRecord] = {}
    finished = [r for r in records if r.stage == "eval" and r.status == "finished"]
    for record in sorted(finished, key=lambda r: (r.created, r.path)):
        if record.inputs.get("subject", {}).get("sha256") != artefact:
            continue
        suites = record.resolved.get("suite", [])
        for suite in [suites] if isinstance(suites, str) else suites:
            found[suite, str(record.resolved.get("policy"))] = record
    return found


def subject(name: str, path: Path, folders: Iterable[Path]) -> Subject:
    """A run or a model folder with all that was measured of it; its own runs folder is searched too.

    Raises:
        BadInput: no such run or folder, or the run is not finished.
    """
    artefact = input_hash(path)
    return Subject(name, path, artefact, evaluations(all_runs([path.parent, *folders]), artefact))


def load_items(record: RunRecord) -> list[ItemResult]:
    """The per-item results of an evaluation run; BadInput names the first row that is none."""
    return list(_items(Path(record.path) / "items.jsonl", record.id))


def scores(items: Iterable[ItemResult], suite: str, metric: str) -> Scores:
    """The results of a metric; ``accuracy`` takes all its families, ``accuracy/fact`` that one."""
    wanted = sorted(
        (i for i in items if i.suite == suite and metric in (i.metric, i.metric.partition("/")[0])),
        key=lambda i: (i.item_id, i.sample),
    )
    return Scores([i.score for i in wanted], [i.item_id for i in wanted])


def asked_differently(suite: str, one: RunRecord, other: RunRecord) -> str | None:
    """The first thing in which two evaluations of a suite differ so that their scores cannot be compared, or None."""
    items = [record.headline.get("suites", {}).get(suite, {}).get("sha256") for record in (one, other)]
    if None not in items and items[0] != items[1]:
        return f"items of {suite}"
    for name in ("reward", "sft") if suite == "preference" else ():
        hashes = [record.inputs.get(name, {}).get("sha256") for record in (one, other)]
        if None not in hashes and hashes[0] != hashes[1]:
            return name
    keys = ("temperature", "max_new_tokens", "judge", "gold")
    plain = suite == "forgetting"  # nothing is generated there
    return next((key for key in keys if not plain and one.resolved.get(key) != other.resolved.get(key)), None)


def chance(record: RunRecord, metric: str) -> float | None:
    """What guessing scores on a metric, where the evaluation knows it."""
    return record.headline.get("metrics", {}).get(metric, {}).get("chance")


def kind_of(metric: str, *sides: Scores) -> Kind:
    """What a difference may assume: by the metric's definition, and exact only for one zero or one an item."""
    if not is_share(metric):
        return "unbounded"
    single = all(len(set(side.items)) == len(side.items) for side in sides)
    binary = all(value in (None, 0.0, 1.0) for side in sides for value in side.values)
    return "binary" if single and binary else "share"


def common_policy(suite: str, subjects: Sequence[Subject], preferred: str | None = None) -> str | None:
    """The policy under which all subjects were evaluated on a suite, the preferred one first."""
    order = (preferred,) if preferred else POLICIES
    return next((p for p in order if p and all((suite, p) in s.runs for s in subjects)), None)


@functools.lru_cache(maxsize=64)
def _items(path: Path, _: str) -> tuple[ItemResult, ...]:
    return tuple(read_rows(path, ItemResult, "an item result"))
