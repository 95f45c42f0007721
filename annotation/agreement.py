"""Stage ``agreement``: how far people agree with each other, and what else moves their votes.

In: ``feedback.db``. Out: ``agreement.json``: Krippendorff's nominal alpha and raw pairwise agreement with bootstrap
intervals (comparisons resampled), each annotator against the majority of the others, side and length bias, ties, and
time. What cannot be computed is None beside its counts. Nominal only: a tie is a third category, not a middle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.proportion import proportion_confint

from align.core.config import BadInput, StageConfig
from align.core.files import write_json
from align.core.runs import Run, stage
from annotation.store import Store, store_head
from annotation.types import Comparison
from annotation.votes import TIE, Vote, votes

Array = NDArray[np.float64]
RESAMPLES = 1000
BLOCK = 100  # resamples at once: 100 x 100,000 units are 80 MB


class AgreementConfig(StageConfig):
    """``feedback`` is read as it stands; its chain head goes into the record."""

    stage: Literal["agreement"] = "agreement"
    feedback: Path = Path("feedback.db")

    def heads(self) -> dict[str, str]:
        return store_head(self.feedback)


@stage
def agreement(config: AgreementConfig, run: Run) -> dict[str, Any]:
    """Measure agreement in a feedback store; writes ``agreement.json``.

    Raises:
        BadInput: no store, or no judgments in it.
    """
    with Store.open(config.feedback) as store:
        cast = votes(store.judgments())
        comparisons = {comparison.id: comparison for comparison in store.comparisons()}
    if not cast:
        raise BadInput(f"{config.feedback}: holds no judgments; collect, simulate or import some first")
    report = measure(cast, comparisons, config.seed)
    write_json(run.path / "agreement.json", report)
    return {
        "alpha": report["alpha"]["value"],
        "alpha_interval": report["alpha"]["interval"],
        "pairwise_agreement": report["pairwise_agreement"]["value"],
        "left_share": report["position"]["value"],
        "longer_share": report["length"]["value"],
        "tie_share": report["ties"]["value"],
        "n_votes": report["votes"],
        "n_comparisons": report["comparisons"],
        "n_annotators": len(report["annotators"]),
    }


def measure(cast: Sequence[Vote], comparisons: Mapping[str, Comparison], seed: int = 0) -> dict[str, Any]:
    """All of agreement.json from votes; ``comparisons`` give the texts whose length is looked at."""
    counts_UC, unit_V = count(cast)
    outcome_V = np.array([vote.outcome for vote in cast])
    agrees_V, decided_V = against_others(counts_UC, unit_V, outcome_V)
    left_V = np.array([_took_left(vote) for vote in cast], dtype=float)
    longer_V = np.array(_took_longer(cast, comparisons), dtype=float)
    people: dict[str, list[int]] = {}
    for index, vote in enumerate(cast):
        people.setdefault(vote.annotator, []).append(index)

    def describe(rows: Sequence[int]) -> dict[str, Any]:
        chosen = np.array(rows)
        times = [seconds for row in rows if (seconds := cast[row].seconds) is not None]
        scored = chosen[decided_V[chosen]]
        return {
            "votes": len(rows),
            "agreement_with_others": share(int(agrees_V[scored].sum()), len(scored), len(rows)),
            "position": _share_of(left_V[chosen]),
            "length": _share_of(longer_V[chosen]),
            "ties": share(int((outcome_V[chosen] == TIE).sum()), len(rows), len(rows)),
            "median_seconds": median(times) if times else None,
            "timed": len(times),
        }

    several_U = counts_UC.sum(1) >= 2
    several_UC, owner_U = counts_UC[several_U], _owners(cast, unit_V, len(counts_UC))[several_U]
    return {
        "comparisons": len({vote.comparison_id for vote in cast}),
        "compared_twice": len(several_UC),
        "alpha": _with_interval(alpha, several_UC, owner_U, seed),
        "pairwise_agreement": _with_interval(pairwise_agreement, several_UC, owner_U, seed),
        **describe(range(len(cast))),
        "annotators": {name: describe(rows) for name, rows in sorted(people.items())},
    }


def count(cast: Sequence[Vote]) -> tuple[Array, NDArray[np.int64]]:
    """Votes by unit (two responses of one comparison) and outcome.

    Returns:
        counts ``(units, 3)``, and the unit of each vote ``(votes,)``.
    """
    units: dict[tuple[str, int, int], int] = {}
    unit_V = np.array([units.setdefault((v.comparison_id, v.first, v.second), len(units)) for v in cast], dtype=int)
    counts_UC = np.zeros((len(units), 3))
    np.add.at(counts_UC, (unit_V, np.array([vote.outcome for vote in cast], dtype=int)), 1)
    return counts_UC, unit_V


def alpha(counts_UC: Array, weights_BU: Array | None = None) -> Array:
    """Krippendorff's alpha, nominal: 1 - observed / expected disagreement, NaN where nothing varies.

    Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C. Units with fewer than two votes
    do not count.

    Args:
        counts_UC: votes per unit and category.
        weights_BU: how often each resample holds each unit; None is the data itself.

    Returns:
        One value per resample, shape ``(B,)``.
    """
    n_U = counts_UC.sum(1)
    paired = n_U >= 2
    kept_UC, n_U = counts_UC[paired], n_U[paired]
    weights = np.ones((1, len(kept_UC))) if weights_BU is None else weights_BU[:, paired]
    observed_B = weights @ ((n_U**2 - (kept_UC**2).sum(1)) / (n_U - 1))
    totals_BC = weights @ kept_UC
    n_B = totals_BC.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected_B = (n_B**2 - (totals_BC**2).sum(1)) / (n_B - 1)
        return np.asarray(1 - observed_B / expected_B)


def pairwise_agreement(counts_UC: Array, weights_BU: Array | None = None) -> Array:
    """Share of all pairs of votes on one unit that say the same, shape ``(B,)``; NaN without any pair."""
    n_U = counts_UC.sum(1)
    weights = np.ones((1, len(counts_UC))) if weights_BU is None else weights_BU
    with np.errstate(divide="ignore", invalid="ignore"):
        agreeing_B = weights @ (counts_UC * (counts_UC - 1)).sum(1)
        return np.asarray(agreeing_B / (weights @ (n_U * (n_U - 1))))


def against_others(
    counts_UC: Array, unit_V: NDArray[np.int64], outcome_V: NDArray[np.int64]
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


def bootstrap(
    statistic: Callable[[Array, Array], Array], units_US: Array, owner_U: NDArray[np.int64], seed: int
) -> list[float] | None:
    """95 % percentile interval of a statistic over resampled comparisons; None with fewer than two of them.

    Args:
        units_US: what the statistic reads of each unit.
        owner_U: the comparison of each unit; its units are drawn together.
    """
    names, owner_U = np.unique(owner_U, return_inverse=True)
    n = len(names)
    if n < 2:
        return None
    generator = np.random.default_rng(seed)
    draws = (generator.multinomial(n, np.full(n, 1 / n), BLOCK) for _ in range(RESAMPLES // BLOCK))
    values = np.concatenate([statistic(units_US, draw[:, owner_U].astype(float)) for draw in draws])
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return [float(low), float(high)]


def share(hits: int, n_scored: int, n: int) -> dict[str, Any]:
    """A share with its counts and Wilson's 95 % interval; None where nothing was scored."""
    value, interval = None, None
    if n_scored:
        low, high = proportion_confint(hits, n_scored, method="wilson")
        value, interval = hits / n_scored, [float(low), float(high)]
    return {"value": value, "interval": interval, "n": n, "n_scored": n_scored, "n_failed": n - n_scored}


def _share_of(values: Array) -> dict[str, Any]:
    """Share of ones among the values that are not NaN."""
    known = values[~np.isnan(values)]
    return share(int(known.sum()), len(known), len(values))


def _owners(cast: Sequence[Vote], unit_V: NDArray[np.int64], n_units: int) -> NDArray[np.int64]:
    """The comparison that each unit belongs to, as a number."""
    numbers: dict[str, int] = {}
    owner_U = np.zeros(n_units, dtype=int)
    owner_U[unit_V] = [numbers.setdefault(vote.comparison_id, len(numbers)) for vote in cast]
    return owner_U


def _with_interval(
    statistic: Callable[..., Array], units_UC: Array, owner_U: NDArray[np.int64], seed: int
) -> dict[str, Any]:
    value = float(statistic(units_UC)[0]) if len(units_UC) else float("nan")
    return {
        "value": value if np.isfinite(value) else None,
        "interval": bootstrap(statistic, units_UC, owner_U, seed) if np.isfinite(value) else None,
        "n": len(units_UC),
        "n_scored": len(units_UC) if np.isfinite(value) else 0,
        "n_failed": 0 if np.isfinite(value) else len(units_UC),
        "votes": int(units_UC.sum()),
        "resamples": RESAMPLES,
    }


def _ratio(hits_US: Array, weights_BU: Array) -> Array:
    sums_BS = weights_BU @ hits_US
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums_BS[:, 0] / sums_BS[:, 1])


def _took_left(vote: Vote) -> float | None:
    """1.0 where the response shown first was chosen, None for a tie or unknown sides."""
    if vote.outcome == TIE or vote.left is None:
        return None
    return float((vote.first, vote.second)[vote.outcome] == vote.left)


def _took_longer(cast: Sequence[Vote], comparisons: Mapping[str, Comparison]) -> list[float | None]:
    """1.0 where the response of more words was chosen; None for a tie, equal lengths or no text."""
    words = {key: [len(r.text.split()) for r in comparison.responses] for key, comparison in comparisons.items()}
    taken: list[float | None] = []
    for vote in cast:
        lengths = words.get(vote.comparison_id)
        if vote.outcome == TIE or lengths is None or lengths[vote.first] == lengths[vote.second]:
            taken.append(None)
            continue
        first_is_longer = lengths[vote.first] > lengths[vote.second]
        taken.append(float((vote.outcome == 0) == first_is_longer))
    return taken
