"""Stage ``agreement``: how far people agree with each other, and what else moves their votes.

In: ``feedback.db``. Out: ``agreement.json`` and ``agreement.html``, overall, by language and by guideline version:
Krippendorff's alpha (nominal; ordinal with a tie in the middle; ordinal over strengths) and pairwise agreement, raw and
corrected for chance, with bootstrap intervals (comparisons resampled); each annotator against the others, every two of
them against each other, side and length bias, ties, speed, self-consistency and gold tasks; and what published
campaigns reached. What cannot be computed is None beside its counts. One vote a person counts: who judged a comparison
again is compared with themselves only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from align.core.config import BadInput, StageConfig
from align.core.files import write_json, write_text
from align.core.records import Comparison
from align.core.runs import Run, stage
from align.core.stats.agreement import (
    RESAMPLES,
    Array,
    Numbers,
    Statistic,
    alpha,
    bootstrap,
    bootstraps,
    chance_corrected,
    ordinal_alpha,
    pairwise_agreement,
    share,
    weighted_kappa,
)
from annotation.aggregation.models import dawid_skene
from annotation.aggregation.votes import TIE, Vote, is_shared, votes
from annotation.agreement.ballots import LEVELS, Ballots, Ranking, ballots, canonical, one_hot
from annotation.agreement.couples import couples
from annotation.agreement.page import page
from annotation.agreement.published import PUBLISHED
from annotation.store.ledger import excluded, gold_rankings, sources
from annotation.store.store import Store, store_head

STRENGTH_LEVELS = 7  # -3 to 3
COEFFICIENTS: Mapping[str, tuple[list[int], Statistic]] = {  # by name: columns of the counts, and what is made of them
    "alpha": ([0, 1, 2], alpha),
    "alpha_ordinal": ([0, 2, 1], ordinal_alpha),
    "alpha_strength": (list(range(3, 3 + STRENGTH_LEVELS)), ordinal_alpha),
    "pairwise_agreement": ([0, 1, 2], pairwise_agreement),
    "pairwise_agreement_without_ties": ([0, 1], pairwise_agreement),
    "chance_corrected_agreement": ([0, 1, 2], chance_corrected),
}
FAST, SLOW, MIN_TIMED = 1 / 2, 2.0, 10  # an outlier's seconds over the others' on the same comparison, by median
RUSHED = 1 / 3  # a judgment made in less than this share of the others' time
NO_GUIDELINE = "none recorded"


class AgreementConfig(StageConfig):
    """``feedback`` is read as it stands; its chain head goes into the record."""

    stage: Literal["agreement"] = "agreement"
    feedback: Path = Path("feedback.db")

    def heads(self) -> dict[str, str]:
        return store_head(self.feedback)


class Kappas(NamedTuple):
    """Weighted kappa by person: value, half the width of its interval, and answers that met others."""

    value: Array
    width: Array
    n_scored: Numbers


@stage
def agreement(config: AgreementConfig, run: Run) -> dict[str, Any]:
    """Measure agreement in a feedback store; writes ``agreement.json`` and ``agreement.html``.

    Raises:
        BadInput: no store, or no judgments in it.
    """
    with Store.open(config.feedback) as store:
        calibration = sources(store, "calibration")
        cast = votes(judgment for judgment in store.judgments() if judgment.source not in calibration)
        gold = gold_rankings(store)
        comparisons = {comparison.id: comparison for comparison in store.comparisons()}
        out = sorted(excluded(store).keys() & {vote.annotator for vote in cast})
    if not cast:
        raise BadInput(f"{config.feedback}: holds no judgments; collect, simulate or import some first")
    if not is_shared(cast):
        run.note("no two people judged the same: agreement is not measured (`votes: 2` has two judge each task)")
    if out:
        run.note(f"what these excluded people said is in the figures, though in no pair: {', '.join(out)}")
    report = measure(cast, comparisons, config.seed, gold)
    write_json(run.path / "agreement.json", report)
    write_text(run.path / "agreement.html", page(report))
    return {
        "alpha": report["alpha"]["value"],
        "alpha_interval": report["alpha"]["interval"],
        "alpha_ordinal": report["alpha_ordinal"]["value"],
        "pairwise_agreement": report["pairwise_agreement"]["value"],
        "weighted_kappa": report["weighted_kappa"]["value"],
        "left_share": report["position"]["value"],
        "longer_share": report["length"]["value"],
        "tie_share": report["ties"]["value"],
        "n_votes": report["votes"],
        "n_comparisons": report["comparisons"],
        "n_annotators": len(report["annotators"]),
    }


def measure(
    cast: Sequence[Vote],
    comparisons: Mapping[str, Comparison],
    seed: int = 0,
    gold: Mapping[str, Ranking] | None = None,
) -> dict[str, Any]:
    """All of agreement.json from votes, whatever order they come in.

    Args:
        comparisons: give languages, and the texts whose length is looked at.
        gold: the right ranking by comparison id, for tasks whose answer is known.
    """
    ordered = canonical(cast)
    columns = ballots(ordered, comparisons, gold or {})
    names = sorted({vote.annotator for vote in ordered})
    overall = _summary(columns, names, seed)
    reliabilities = dawid_skene(ordered).reliability if is_shared(ordered) else {}  # alone it says how sides fell
    for name, reliability in reliabilities.items():
        overall["annotators"][name]["reliability"] = reliability
    languages = [comparisons[v.comparison_id].language if v.comparison_id in comparisons else None for v in ordered]
    guidelines = [vote.guideline or NO_GUIDELINE for vote in ordered]
    return {
        **overall,
        "by_language": _by_group(languages, columns, names, overall, seed),
        "by_guideline": _by_group(guidelines, columns, names, overall, seed),
        "published": [row._asdict() for row in PUBLISHED],
    }


def count(cast: Sequence[Vote]) -> tuple[Array, Numbers]:
    """Votes by unit (two responses of one comparison) and outcome.

    Returns:
        counts ``(units, 3)``, and the unit of each vote ``(votes,)``.
    """
    units: dict[tuple[str, int, int], int] = {}
    unit_V = np.array([units.setdefault((v.comparison_id, v.first, v.second), len(units)) for v in cast], dtype=int)
    counts_UC = np.zeros((len(units), 3))
    np.add.at(counts_UC, (unit_V, np.array([vote.outcome for vote in cast], dtype=int)), 1)
    return counts_UC, unit_V


def against_others(
    counts_UC: Array, unit_V: Numbers, outcome_V: Numbers
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each vote says what most others on its unit say, and whether the others have one such answer.

    Returns:
        (agrees, decided), both ``(votes,)``; ``agrees`` means nothing where ``decided`` is False.
    """
    others_VC = counts_UC[unit_V].copy()
    others_VC[np.arange(len(unit_V)), outcome_V] -= 1
    top_V = others_VC.max(1)
    decided_V = ((others_VC == top_V[:, None]).sum(1) == 1) & (top_V > 0)
    return others_VC.argmax(1) == outcome_V, decided_V


def ceiling(cast: Sequence[Vote], seed: int = 0) -> dict[str, Any]:
    """How often one person's choice is the choice of most others: what a reward model can hope to reach.

    Over votes that chose a side where the others' most frequent answer is a side; ties on either part cannot be
    hit by a model that must choose. The interval resamples comparisons.
    """
    if not cast:
        return {**share(0, 0, 0), "units": 0}
    counts_UC, unit_V = count(cast)
    outcome_V = np.array([vote.outcome for vote in cast])
    agrees_V, decided_V = against_others(counts_UC, unit_V, outcome_V)
    others_VC = counts_UC[unit_V].copy()
    others_VC[np.arange(len(unit_V)), outcome_V] -= 1
    scored_V = decided_V & (outcome_V != TIE) & (others_VC.argmax(1) != TIE)
    hits_US = np.zeros((len(counts_UC), 2))
    np.add.at(hits_US[:, 0], unit_V[scored_V], agrees_V[scored_V])
    np.add.at(hits_US[:, 1], unit_V[scored_V], 1)
    scored_U = hits_US[:, 1] > 0
    return {
        "value": float(agrees_V[scored_V].mean()) if scored_V.any() else None,
        "interval": bootstrap(_ratio, hits_US[scored_U], _owners(cast, unit_V, len(hits_US))[scored_U], seed),
        "n": len(cast),
        "n_scored": int(scored_V.sum()),
        "n_failed": int((~scored_V).sum()),
        "units": int(scored_U.sum()),
    }


def _by_group(
    keys: Sequence[str | None], columns: Ballots, names: Sequence[str], overall: dict[str, Any], seed: int
) -> dict[str, Any]:
    """The summary of each group's votes; votes without a key stand in no group."""
    known = sorted({key for key in keys if key is not None})
    if len(known) == 1 and None not in keys:
        return {known[0]: overall}
    return {key: _summary(columns.take(np.array([k == key for k in keys])), names, seed) for key in known}


def _summary(columns: Ballots, names: Sequence[str], seed: int) -> dict[str, Any]:
    """Everything about one group of votes; ``names`` are the annotators by number."""
    once = columns.take(~columns.repeat)
    _, unit_V = np.unique(once.unit, return_inverse=True)
    n_units = int(unit_V.max()) + 1
    counts_US = np.zeros((n_units, 3 + STRENGTH_LEVELS))
    np.add.at(counts_US, (unit_V, once.outcome), 1)
    rated = ~np.isnan(once.strength)
    np.add.at(counts_US, (unit_V[rated], 6 + once.strength[rated].astype(int)), 1)
    owner_U = np.zeros(n_units, dtype=int)
    owner_U[unit_V] = once.comparison
    several_U = counts_US[:, :3].sum(1) >= 2
    agrees_V = np.full(len(columns.unit), np.nan)
    hits, decided = against_others(counts_US[:, :3], unit_V, once.outcome)
    agrees_V[~columns.repeat] = np.where(decided, hits, np.nan)
    together, apart = _kappas(once, np.zeros_like(once.person)), _kappas(once, once.person)
    people = {}
    for number in np.unique(columns.person).tolist():
        rows = np.flatnonzero(columns.person == number)
        speed = _speed(columns.hurry[rows])
        people[names[number]] = {**_describe(columns, agrees_V, rows), **_kappa_entries(apart, number), "speed": speed}
    return {
        "comparisons": len(np.unique(columns.comparison)),
        "compared_twice": int(several_U.sum()),
        **_coefficients(counts_US[several_U], owner_U[several_U], seed),
        **_describe(columns, agrees_V, np.arange(len(columns.unit))),
        **_kappa_entries(together, 0),
        "annotators": people,
        "couples": couples(once, names),
    }


def _coefficients(counts_US: Array, owner_U: Numbers, seed: int) -> dict[str, Any]:
    """Each coefficient with its interval, all from the same resamples; units are those with two votes or more."""

    def on_columns(name: str) -> Statistic:
        wanted, statistic = COEFFICIENTS[name]
        return lambda units_US, weights_BU: statistic(units_US[:, wanted], weights_BU)

    statistics = {name: on_columns(name) for name in COEFFICIENTS}
    everything = np.ones((1, len(counts_US)))
    values = {name: float(statistic(counts_US, everything)[0]) for name, statistic in statistics.items()}
    exists = {name: bool(np.isfinite(value)) for name, value in values.items()}
    intervals = bootstraps({n: s for n, s in statistics.items() if exists[n]}, counts_US, owner_U, seed)
    found = {}
    for name, (wanted, _) in COEFFICIENTS.items():
        votes_U = counts_US[:, wanted].sum(1)
        n = int((votes_U >= 2).sum())
        found[name] = {
            "value": values[name] if exists[name] else None,
            "interval": intervals.get(name),
            "n": n,
            "n_scored": n if exists[name] else 0,
            "n_failed": 0 if exists[name] else n,
            "votes": int(votes_U[votes_U >= 2].sum()),
            "resamples": RESAMPLES,
        }
    return found


def _describe(columns: Ballots, agrees_V: Array, rows: Numbers) -> dict[str, Any]:
    times = columns.seconds[rows][~np.isnan(columns.seconds[rows])]
    once = rows[~columns.repeat[rows]]
    return {
        "votes": len(rows),
        "agreement_with_others": _share_of(agrees_V[once]),
        "position": _share_of(columns.left[rows]),
        "length": _share_of(columns.longer[rows]),
        "ties": share(int((columns.outcome[rows] == TIE).sum()), len(rows), len(rows)),
        "self_consistency": _share_of(columns.same_again[rows][columns.repeat[rows]]),
        "gold": _share_of(columns.gold[rows][~np.isnan(columns.gold[rows])], is_exact=True),
        "median_seconds": float(np.median(times)) if len(times) else None,
        "timed": len(times),
    }


def _speed(hurry_V: Array) -> dict[str, Any]:
    """Seconds over the others' on the same comparison, by median over judgments, and whether that stands out."""
    known = hurry_V[~np.isnan(hurry_V)]
    ratio = float(np.exp(np.median(known))) if len(known) else None
    outlier = None
    if ratio is not None and len(known) >= MIN_TIMED:
        outlier = "fast" if ratio < FAST else "slow" if ratio > SLOW else None
    rushed = share(int((known < np.log(RUSHED)).sum()), len(known), len(known))
    return {"ratio": ratio, "n_scored": len(known), "outlier": outlier, "rushed": rushed}


def _kappas(once: Ballots, person_V: Numbers) -> dict[str, Kappas]:
    """Weighted kappa against the rest, over first < tie < second and over strengths."""
    rated = ~np.isnan(once.strength)
    strong = once.take(rated)
    return {
        "weighted_kappa": _kappa(LEVELS[once.outcome], 3, once, person_V),
        "weighted_kappa_strength": _kappa(strong.strength.astype(int) + 3, STRENGTH_LEVELS, strong, person_V[rated]),
    }


def _kappa(level_V: Numbers, n_levels: int, once: Ballots, person_V: Numbers) -> Kappas:
    people = int(person_V.max(initial=-1)) + 1
    if not people:
        return Kappas(np.zeros(0), np.zeros(0), np.zeros(0, dtype=int))
    own_VK = one_hot(level_V, n_levels)
    _, unit_V = np.unique(once.unit, return_inverse=True)
    counts_UK = np.stack([np.bincount(unit_V, column) for column in own_VK.T], 1)
    rest_VK = counts_UK[unit_V] - own_VK
    met = rest_VK.sum(1) > 0
    rest_VK = rest_VK[met] / rest_VK[met].sum(1, keepdims=True)
    value, width = weighted_kappa(own_VK[met], rest_VK, person_V[met], once.comparison[met])
    return Kappas(value, width, np.bincount(person_V[met], minlength=people))


def _kappa_entries(kappas: Mapping[str, Kappas], number: int) -> dict[str, Any]:
    return {name: _kappa_entry(found, number) for name, found in kappas.items()}


def _kappa_entry(found: Kappas, number: int) -> dict[str, Any]:
    """One person's kappa; None where the person met nobody or nothing varies."""
    if number >= len(found.value) or not np.isfinite(found.value[number]):
        n = int(found.n_scored[number]) if number < len(found.n_scored) else 0
        return {"value": None, "interval": None, "n": n, "n_scored": 0, "n_failed": n}
    value, width, n = float(found.value[number]), float(found.width[number]), int(found.n_scored[number])
    interval = [max(-1.0, value - width), min(1.0, value + width)] if np.isfinite(width) else None
    return {"value": value, "interval": interval, "n": n, "n_scored": n, "n_failed": 0}


def _share_of(values: Array, *, is_exact: bool = False) -> dict[str, Any]:
    """Share of ones among the values that are not NaN."""
    known = values[~np.isnan(values)]
    return share(int(known.sum()), len(known), len(values), is_exact=is_exact)


def _owners(cast: Sequence[Vote], unit_V: Numbers, n_units: int) -> Numbers:
    """The comparison that each unit belongs to, as a number."""
    numbers: dict[str, int] = {}
    owner_U = np.zeros(n_units, dtype=int)
    owner_U[unit_V] = [numbers.setdefault(vote.comparison_id, len(numbers)) for vote in cast]
    return owner_U


def _ratio(hits_US: Array, weights_BU: Array) -> Array:
    sums_BS = weights_BU @ hits_US
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums_BS[:, 0] / sums_BS[:, 1])
