"""Choose the contenders of a comparison, and the evaluation of each that is compared with the others'.

In: arms and the runs around them. Out: contenders (arms, base, SFT, SFT under a system prompt or with best-of-n), and
per suite one evaluation of each, all asked alike. Not here: the numbers (compare, metric_rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from align.audit.evaluations import POLICIES, EvaluatedPolicy, Evaluation, evaluations_of, load_results
from align.audit.lineage import origin, other_base
from align.audit.pairing import asked_differently
from align.core.config import BadInput
from align.core.declarations import FORMULA
from align.core.run_record import RunRecord
from align.evals.fingerprint import ACTING

SHARED = ("base", "sft", "pairs", "prompts")


class Contender(NamedTuple):
    """One row: a policy, how it acts (None: by itself), and its training run where it is an arm."""

    evaluated: EvaluatedPolicy
    acting: str | None
    record: RunRecord | None

    @property
    def name(self) -> str:
        return self.evaluated.name

    def acts(self, policy: str) -> bool:
        """Return whether an evaluation under ``policy`` is one of this contender."""
        return policy == self.acting if self.acting else policy in POLICIES


Evaluated = dict[str, dict[str, Evaluation]]  # suite -> contender -> evaluation


def arm(record: RunRecord, records: Sequence[RunRecord]) -> Contender:
    path = Path(record.path)
    artefact = record.artefact or ""
    return Contender(
        EvaluatedPolicy(path.name, path, artefact, record, evaluations_of(records, artefact)), None, record
    )


def baselines(arm: RunRecord, records: Sequence[RunRecord]) -> list[Contender]:
    """Return base, SFT, and SFT under a system prompt or with best-of-n, as far as they were evaluated."""
    contenders = []
    for name, key, acting in (
        ("base", "base", None),
        ("sft", "sft", None),
        ("prompt-only", "sft", "prompt-only"),
        ("best-of-n", "sft", "best-of-n"),
    ):
        artefact = origin(arm, key) or ""
        evaluations = evaluations_of(records, artefact) if artefact else []
        contenders.append(Contender(EvaluatedPolicy(name, Path(name), artefact, None, evaluations), acting, None))
    return contenders


def check_lineage(arms: Sequence[RunRecord]) -> None:
    """Refuse arms that did not learn from the same things."""
    for key in SHARED:
        hashes = [origin(record, key) for record in arms]
        named = ", ".join(f"{Path(r.path).name}: {(h or 'none')[:12]}" for r, h in zip(arms, hashes, strict=True))
        if None in hashes:
            raise BadInput(f"compare: not every arm records its {key} ({named}); train them from runs of this suite")
        if len(set(hashes)) > 1:
            raise BadInput(f"compare: the arms differ in '{key}' ({named}); compare arms trained from the same {key}")


def check_names(contenders: Sequence[Contender]) -> None:
    names = [one.name for one in contenders]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadInput(f"compare: two rows would be named '{twice}'; give the run folders different names")
    arms = [one for one in contenders if one.record is not None]
    for one, other in combinations(arms, 2):
        if one.evaluated.artefact == other.evaluated.artefact:
            raise BadInput(f"compare: {one.name} and {other.name} are one artefact; name arms that were trained apart")


def choose_evaluations(contenders: Sequence[Contender], preferred: str) -> Evaluated:
    """Choose the evaluation of each contender for each suite, all under one policy and over the same items.

    Raises:
        BadInput: two evaluations of a suite have different items, or their fingerprints differ.
    """
    chosen: Evaluated = {}
    newest = {one.name: one.evaluated.newest for one in contenders}
    for suite in dict.fromkeys(suite for by_name in newest.values() for suite, _ in by_name):
        arms = [one.name for one in contenders if one.record is not None]
        order = dict.fromkeys((preferred, *POLICIES))
        covered = {policy: sum((suite, policy) in newest[arm] for arm in arms) for policy in order}
        policy = max(covered, key=covered.__getitem__)
        by_name = {
            one.name: newest[one.name][suite, one.acting or policy]
            for one in contenders
            if (suite, one.acting or policy) in newest[one.name]
        }
        for one in contenders:
            if one.name in by_name and (problem := other_base(one.evaluated, by_name[one.name])):
                raise BadInput(f"compare: {problem}")
            if one.name in by_name and one.record and not by_name[one.name].record.headline.get("own_template"):
                raise BadInput(
                    f"compare: {by_name[one.name].name} asked {one.name} through another chat template than its own; "
                    "evaluate again"
                )
        _check_alike(suite, by_name, {one.name for one in contenders if one.acting})
        chosen[suite] = by_name
    return chosen


def _check_alike(suite: str, by_name: dict[str, Evaluation], by_other_means: set[str]) -> None:
    """Refuse contenders that were asked other items than the first one with the same metric, or in another way.

    ``by_other_means`` are contenders that act under a system prompt or with best-of-n: that alone may differ.
    """
    for other, second in list(by_name.items())[1:]:
        one, first = next(iter(by_name.items()))
        allowed = ACTING if by_other_means & {one, other} else frozenset()
        if problem := asked_differently(first, second, allowed):
            raise BadInput(f"compare: suite {suite}: {problem} ({one} and {other})")
    measured: dict[str, tuple[str, frozenset[str]]] = {}
    for name, evaluation in by_name.items():
        ids: dict[str, set[str]] = {}
        for result in load_results(evaluation.record):
            if result.suite == suite and result.judge != FORMULA:  # a formula gives one value, and not an item's
                ids.setdefault(result.metric, set()).add(result.item_id)
        for metric, items in ids.items():
            one, before = measured.setdefault(metric, (name, frozenset(items)))
            if before != items:
                raise BadInput(
                    f"compare: suite {suite}: {metric} was measured over different items in {by_name[one].name} and "
                    f"{evaluation.name}; evaluate {one} and {name} on the same items"
                )
