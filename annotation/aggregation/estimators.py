"""Dawid-Skene and Bradley-Terry aggregation of votes: reliabilities of annotators, strengths of responses.

In: votes, or the counts of a comparison graph. Out: probabilities per item and reliabilities per annotator, or
strengths and the probability that one response beats another. No sampling; votes are put in a canonical order first,
so the order they come in moves no bit. Not here: what is made of the probabilities (``decisions.py``), and annotators
with a full confusion matrix, which takes more votes per person than campaigns have.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.linalg import splu

from annotation.aggregation.votes import TIE, Unit, Vote

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]

FLOOR = 1e-10  # crowd-kit's: no probability inside the logarithms is smaller
TOLERANCE = 1e-5  # crowd-kit's: gain of the bound, nats per vote, below which EM stops
ITERATIONS = 100
PRIOR = 1.5  # standard deviation of a log-strength: one vote alone is then worth a probability of .75


class OneCoinFit(NamedTuple):
    """``posterior_IL``: probability of each label per item; ``reliability_A``: expected share of right votes."""

    posterior_IL: Array
    reliability_A: Array
    iterations: int


class DawidSkeneFit(NamedTuple):
    """Per unit the probabilities of (first, second, tie), and per annotator a reliability from 0 to 1."""

    posterior: dict[Unit, tuple[float, float, float]]
    reliability: dict[str, float]


class Strengths(NamedTuple):
    """Log-strengths with mean near 0 within each connected part, and Davidson's tie parameter (0: nobody tied)."""

    strength_N: Array
    tie: float


def dawid_skene(votes: Iterable[Vote]) -> DawidSkeneFit:
    """Fit one-coin Dawid-Skene to votes; labels are the outcomes that somebody chose."""
    ordered = sorted(votes, key=lambda v: (v.unit, v.annotator, v.source, v.outcome))
    if not ordered:
        return DawidSkeneFit({}, {})
    units: dict[Unit, int] = {}
    item_V = np.array([units.setdefault(v.unit, len(units)) for v in ordered])
    names, annotator_V = np.unique([v.annotator for v in ordered], return_inverse=True)
    labels, label_V = np.unique([v.outcome for v in ordered], return_inverse=True)
    fit = one_coin(item_V, annotator_V, label_V)
    posterior_IO = np.zeros((len(units), 3))
    posterior_IO[:, labels] = fit.posterior_IL
    rows = zip(units, posterior_IO.tolist(), strict=True)
    return DawidSkeneFit(
        {unit: (row[0], row[1], row[2]) for unit, row in rows},
        dict(zip(names.tolist(), fit.reliability_A.tolist(), strict=True)),
    )


def one_coin(item_V: Numbers, annotator_V: Numbers, label_V: Numbers) -> OneCoinFit:
    """Fit annotators who hit the true label with one probability and else err evenly over the other labels, by EM.

    Zhang, Chen, Zhou and Jordan, "Spectral methods meet EM" (https://arxiv.org/abs/1406.3824), as in crowd-kit's
    ``OneCoinDawidSkene``: started from the shares of votes, stopped by the gain of its bound.

    Args:
        item_V: item of each vote, numbered from 0 without gaps; so are ``annotator_V`` and ``label_V``.
    """
    n_items, n_labels = int(item_V.max()) + 1, int(label_V.max()) + 1
    votes_A = np.bincount(annotator_V)
    posterior_IL = np.stack([_sums(item_V, (label_V == label).astype(float), n_items) for label in range(n_labels)], 1)
    posterior_IL /= posterior_IL.sum(1, keepdims=True)
    bound, iterations = -np.inf, 0
    prior_L, reliability_A = _maximise(posterior_IL, item_V, annotator_V, label_V, votes_A)
    while iterations < ITERATIONS:
        iterations += 1
        likelihood_VL = _log_likelihood(reliability_A[annotator_V], label_V, n_labels)
        score_IL = np.log(prior_L) + np.stack([_sums(item_V, column, n_items) for column in likelihood_VL.T], 1)
        posterior_IL = np.exp(score_IL - score_IL.max(1, keepdims=True))
        posterior_IL /= posterior_IL.sum(1, keepdims=True)
        prior_L, reliability_A = _maximise(posterior_IL, item_V, annotator_V, label_V, votes_A)
        likelihood_VL = _log_likelihood(reliability_A[annotator_V], label_V, n_labels)
        before, bound = bound, _bound(posterior_IL, likelihood_VL, prior_L, item_V)
        if bound - before < TOLERANCE:
            break
    return OneCoinFit(posterior_IL, reliability_A, iterations)


def davidson(first_E: Numbers, second_E: Numbers, counts_EO: Array, n_nodes: int) -> Strengths:
    """Return most probable log-strengths of Bradley-Terry with ties, under a normal prior of deviation ``PRIOR``.

    Davidson, "On extending the Bradley-Terry model to accommodate ties" (JASA 65, 1970): first, second and tie have
    probabilities in proportion to p, q and nu sqrt(p q). One nu for all edges; without any tie it is Bradley-Terry.
    The prior makes the maximum exist and be unique, also for those who won or lost every time and in graphs of
    several parts. Newton's method with halved steps, to machine precision.

    Args:
        first_E, second_E: the two responses of each edge, numbered from 0 to ``n_nodes`` - 1.
        counts_EO: votes for the first, for the second, and ties, ``(edges, 3)``.
    """
    strength_N: Array = np.zeros(n_nodes)
    log_tie = 0.0 if counts_EO[:, TIE].any() else -np.inf
    value = _log_posterior(strength_N, log_tie, first_E, second_E, counts_EO)
    for _ in range(ITERATIONS):
        step_N, step_tie = _newton_step(strength_N, log_tie, first_E, second_E, counts_EO)
        size = 1.0
        while True:
            trial_N, trial_tie = strength_N + size * step_N, log_tie + size * step_tie
            trial = _log_posterior(trial_N, trial_tie, first_E, second_E, counts_EO)
            if trial >= value or size < 1e-6:
                break
            size /= 2
        strength_N, log_tie, value = trial_N, trial_tie, trial
        if max(np.abs(step_N).max(initial=0.0), abs(step_tie)) < 1e-10:
            break
    return Strengths(strength_N, float(np.exp(log_tie)))


def outcome_probabilities(gap_E: Array, tie: float) -> Array:
    """Return the probability of first, second and tie by the gap in log-strength (first - second), shape ``(E, 3)``."""
    with np.errstate(divide="ignore"):
        log_tie_E = np.full(len(gap_E), np.log(tie))
    score_EO = np.stack([gap_E / 2, -gap_E / 2, log_tie_E], 1)
    weight_EO = np.exp(score_EO - score_EO.max(1, keepdims=True))
    return np.asarray(weight_EO / weight_EO.sum(1, keepdims=True))


def _sums(index: Numbers, values: Array, n: int) -> Array:
    return np.bincount(index, weights=values, minlength=n).astype(float)


def _maximise(
    posterior_IL: Array, item_V: Numbers, annotator_V: Numbers, label_V: Numbers, votes_A: Numbers
) -> tuple[Array, Array]:
    """Return the share of each label, and each annotator's expected share of hits."""
    prior_L = np.maximum(posterior_IL.mean(0), FLOOR)
    return prior_L, _sums(annotator_V, posterior_IL[item_V, label_V], len(votes_A)) / votes_A


def _log_likelihood(reliability_V: Array, label_V: Numbers, n_labels: int) -> Array:
    """Return the log-probability of each vote under each true label, shape ``(V, L)``."""
    others = max(n_labels - 1, 1)
    hit_VL = label_V[:, None] == np.arange(n_labels)
    chance_VL = np.where(hit_VL, reliability_V[:, None], (1 - reliability_V[:, None]) / others)
    return np.asarray(np.log(np.clip(chance_VL, FLOOR, 1 - FLOOR)))


def _bound(posterior_IL: Array, likelihood_VL: Array, prior_L: Array, item_V: Numbers) -> float:
    """Return the evidence lower bound per vote, by which EM stops; its prior counts once per vote, as in crowd-kit."""
    expected = float((posterior_IL[item_V] * (likelihood_VL + np.log(prior_L))).sum())
    kept_IL = np.maximum(posterior_IL, FLOOR)
    return (expected - float((kept_IL * np.log(kept_IL)).sum())) / len(item_V)


def _log_posterior(strength_N: Array, log_tie: float, first_E: Numbers, second_E: Numbers, counts_EO: Array) -> float:
    chance_EO = outcome_probabilities(strength_N[first_E] - strength_N[second_E], float(np.exp(log_tie)))
    known = counts_EO > 0
    penalty = (strength_N**2).sum() + (log_tie**2 if np.isfinite(log_tie) else 0.0)
    return float((counts_EO[known] * np.log(chance_EO[known])).sum() - penalty / (2 * PRIOR**2))


def _newton_step(
    strength_N: Array, log_tie: float, first_E: Numbers, second_E: Numbers, counts_EO: Array
) -> tuple[Array, float]:
    """Return the gradient of the log-posterior over its curvature; the tie parameter borders a sparse matrix."""
    n = len(strength_N)
    total_E, log_free = counts_EO.sum(1), np.isfinite(log_tie)
    first, second, tied = outcome_probabilities(strength_N[first_E] - strength_N[second_E], float(np.exp(log_tie))).T
    slope_E = (counts_EO[:, 0] - counts_EO[:, 1] - total_E * (first - second)) / 2
    gradient_N = _sums(first_E, slope_E, n) - _sums(second_E, slope_E, n) - strength_N / PRIOR**2
    curve_E = total_E * (first + second - (first - second) ** 2) / 4
    diagonal_N = _sums(first_E, curve_E, n) + _sums(second_E, curve_E, n) + 1 / PRIOR**2
    everybody = np.arange(n)
    rows, columns = np.concatenate([everybody, first_E, second_E]), np.concatenate([everybody, second_E, first_E])
    entries = np.concatenate([diagonal_N, -curve_E, -curve_E])
    factor = splu(coo_array((entries, (rows, columns)), shape=(n, n)).tocsc(), permc_spec="MMD_AT_PLUS_A")
    alone_N = factor.solve(gradient_N)
    if not log_free:
        return alone_N, 0.0
    mixed_E = -total_E * (first - second) / 2 * tied
    border_N = _sums(first_E, mixed_E, n) - _sums(second_E, mixed_E, n)
    along_N = factor.solve(border_N)
    gradient = float((counts_EO[:, 2] - total_E * tied).sum()) - log_tie / PRIOR**2
    curve = float((total_E * tied * (1 - tied)).sum()) + 1 / PRIOR**2
    step = (gradient - float((border_N * alone_N).sum())) / (curve - float((border_N * along_N).sum()))
    return alone_N - step * along_N, step
