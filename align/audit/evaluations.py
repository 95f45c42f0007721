"""Read what has been measured of a policy: its finished evaluation runs, by artefact hash, and their items.

In: folders that hold runs. Out: records and per-item scores. Every finished evaluation of an artefact counts, however
often it was evaluated. Not here: which of them a gate may be judged by (pairing), statistics and verdicts.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from align.core.config import BadInput
from align.core.declarations import Declaration, Metric
from align.core.files import folders_in, read_rows
from align.core.hashes import file_hash
from align.core.inputs import input_hash
from align.core.records import ItemResult
from align.core.run_record import RunRecord, is_ours, is_run, read_run
from align.core.stats.estimates import Kind
from align.evals.declared import declaration_of, suites_of

POLICIES = ("sample", "greedy")  # what a policy does by itself; prompt-only and best-of-n are other contenders


class Scores(NamedTuple):
    """One metric of one evaluation: every result (None where it failed) beside its item id and sample number.

    ``clusters``: what an item was drawn from together with others (a document, a template), for items that say so.
    """

    values: list[float | None]
    items: list[str]
    clusters: Mapping[str, str] = {}

    @property
    def units(self) -> list[str]:
        """What each result is independent by: its item's cluster, else its item."""
        return [self.clusters.get(item, item) for item in self.items]

    @property
    def per_item(self) -> int:
        """Number of samples expected of each item: as many as any item has results."""
        return max(Counter(self.items).values(), default=0)

    @property
    def n_expected(self) -> int:
        return self.per_item * len(set(self.items))

    @property
    def n_scored(self) -> int:
        return sum(value is not None for value in self.values)

    @property
    def by_item(self) -> dict[str, float | None]:
        """The mean over an item's scored samples; None where none was scored."""
        by_item = self._scored()
        return {item: sum(scored) / len(scored) if scored else None for item, scored in by_item.items()}

    def filled(self, value: float) -> dict[str, float]:
        """Return each item's mean over its expected samples, with ``value`` for every one that is missing."""
        n = self.per_item
        return {item: (sum(scored) + value * (n - len(scored))) / n for item, scored in self._scored().items()}

    @property
    def incomplete(self) -> set[str]:
        """Items of which a sample is missing."""
        return {item for item, scored in self._scored().items() if len(scored) < self.per_item}

    def _scored(self) -> dict[str, list[float]]:
        by_item: dict[str, list[float]] = {}
        for value, item in zip(self.values, self.items, strict=True):
            by_item.setdefault(item, []).extend([] if value is None else [value])
        return by_item


class Evaluation(NamedTuple):
    """A finished evaluation of one artefact by one suite."""

    record: RunRecord
    suite: str

    @property
    def name(self) -> str:
        return Path(self.record.path).name

    @property
    def policy(self) -> str:
        return str(self.record.resolved.get("policy"))

    @property
    def fingerprint(self) -> Mapping[str, Any] | None:
        """What its answers depend on beside the weights; None where a version before fingerprints wrote it."""
        known = self.record.headline.get("suites", {}).get(self.suite, {}).get("fingerprint")
        return known if self.record.checksum else None

    @property
    def declaration(self) -> Declaration:
        """What its suite declares."""
        return declaration_of(self.record, self.suite)

    @property
    def caveats(self) -> Sequence[str]:
        """Limits of the evaluation, as it recorded them itself."""
        return list(self.record.headline.get("caveats", []))

    @property
    def trained_share(self) -> float:
        """Share of the suite's items that the policy was trained on, as far as the evaluation knows."""
        items = self.record.headline.get("suites", {}).get(self.suite, {}).get("items", 0)
        return self.record.headline.get("trained_on_items", {}).get(self.suite, 0) / items if items else 0.0

    def scores(self, metric: str) -> Scores:
        return metric_scores(load_results(self.record), self.declaration, metric)


class EvaluatedPolicy(NamedTuple):
    """A policy under a name, with its training run (None: a model folder) and all its evaluations, oldest first."""

    name: str
    path: Path
    artefact: str
    record: RunRecord | None
    evaluations: Sequence[Evaluation]

    @property
    def newest(self) -> dict[tuple[str, str], Evaluation]:
        """The newest evaluation by (suite, policy)."""
        return {(one.suite, one.policy): one for one in self.evaluations}


def all_runs(folders: Iterable[Path]) -> list[RunRecord]:
    """Read every run in these runs folders and one level below them, by path; a run seen twice counts once.

    A ``run.json`` that some other program wrote is passed over.
    """
    records: dict[Path, RunRecord] = {}
    for folder in folders:
        for path in [path for outer in folders_in(folder) for path in (outer, *folders_in(outer))]:
            if (path / "run.json").is_file() and is_ours(path):
                records.setdefault(path.resolve(), read_run(path))
    return [records[path] for path in sorted(records)]


def evaluations_of(records: Iterable[RunRecord], artefact: str) -> list[Evaluation]:
    """Return the finished evaluations of an artefact, one per suite, oldest first."""
    finished = [r for r in records if r.stage == "eval" and r.status == "finished"]
    own = [r for r in finished if r.inputs.get("subject", {}).get("sha256") == artefact]
    return [Evaluation(r, suite) for r in sorted(own, key=lambda r: (r.created, r.path)) for suite in suites_of(r)]


def evaluated_policy(name: str, path: Path, folders: Iterable[Path]) -> EvaluatedPolicy:
    """Return a run or a model folder with all that was measured of it; its own runs folder is searched too.

    Raises:
        BadInput: no such run or folder, or the run is not finished.
    """
    artefact = input_hash(path)
    record = read_run(path) if is_run(path) else None
    return EvaluatedPolicy(name, path, artefact, record, evaluations_of(all_runs([path.parent, *folders]), artefact))


def load_results(record: RunRecord) -> list[ItemResult]:
    """Read the results of the items of an evaluation run.

    Raises:
        BadInput: the file is not the one that the evaluation wrote, or a row is no result or occurs twice.
    """
    return list(_results(Path(record.path) / "items.jsonl", record.headline.get("results_sha256")))


def metric_scores(items: Iterable[ItemResult], declaration: Declaration, metric: str) -> Scores:
    """Select the results of a suite's metric; ``accuracy`` takes all its families, ``accuracy/fact`` that one.

    Raises:
        BadInput: a score outside the metric's range.
    """
    suite = declaration.suite
    wanted = sorted(
        (i for i in items if i.suite == suite and metric in (i.metric, i.metric.partition("/")[0])),
        key=lambda i: (i.item_id, i.sample),
    )
    low, high = declaration.metric(metric).span
    if outside := next((i for i in wanted if i.score is not None and not low <= i.score <= high), None):
        raise BadInput(
            f"suite {suite}: item '{outside.item_id}' has {outside.score:g} as its {outside.metric}, which lies from "
            f"{low:g} to {high:g}; evaluate again"
        )
    clusters = {i.item_id: i.cluster for i in wanted if i.cluster is not None}
    return Scores([i.score for i in wanted], [i.item_id for i in wanted], clusters)


def chance_of(record: RunRecord, suite: str, metric: str) -> float | None:
    """Return what guessing scores on a suite's metric, where the evaluation recorded it.

    For a metric over families it is their mean by items, and None where one of them has none. A record of an earlier
    version does not name the suite of a metric; only one of its suites had metrics with a chance.
    """
    suffix = f" ({suite})"  # of a metric that another suite of the evaluation has too
    recorded = record.headline.get("metrics", {}).items()
    metrics = {name.removesuffix(suffix): one for name, one in recorded if one.get("suite", suite) == suite}
    if metric in metrics:
        return metrics[metric].get("chance")
    families = [one for name, one in metrics.items() if name.partition("/")[0] == metric]
    if not families or any(one.get("chance") is None for one in families):
        return None
    return sum(one["chance"] * one["n"] for one in families) / sum(one["n"] for one in families)


def kind_of(metric: Metric, *sides: Scores) -> Kind:
    """Return what a difference may assume: by the metric's definition, and exact only for one zero or one per item."""
    if not metric.is_bounded:
        return "unbounded"
    single = all(side.per_item <= 1 and not side.clusters for side in sides)
    binary = all(value in (None, 0.0, 1.0) for side in sides for value in side.values)
    return "binary" if metric.kind == "binary" and single and binary else "share"


@functools.lru_cache(maxsize=64)
def _results(path: Path, written: str | None) -> tuple[ItemResult, ...]:
    rows = tuple(read_rows(path, ItemResult, "an item result"))
    if written is not None and file_hash(path) != written:
        raise BadInput(
            f"{path}: edited after the evaluation wrote it (its sha256 does not fit run.json); evaluate again"
        )
    seen: set[tuple[str, str, str, int]] = set()
    for number, row in enumerate(rows, 1):
        key = (row.suite, row.metric, row.item_id, row.sample)
        if key in seen:
            raise BadInput(
                f"{path}: result {number}: {row.metric} of item '{row.item_id}', sample {row.sample}, occurs twice"
            )
        seen.add(key)
    return rows
