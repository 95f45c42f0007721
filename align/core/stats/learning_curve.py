"""The learning curve of a reward model: its points as they are stored, and the power law that is fitted to them.

In: ``curve.jsonl`` of a reward run made with ``--curve``. Out: errors by point, also over resampled held-out prompts,
and a fit of ``error = floor + scale * pairs ** -power`` to each. Not here: training the points, and what the fits mean
for the accuracy that somebody wants (``annotation/campaign/plan.py``).
Axes: F points of the curve, S the measured curve followed by its resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from align.core.config import BadInput
from align.core.files import read_rows
from align.core.records import Record
from align.core.stats.estimates import LEVEL, Estimate

Array = NDArray[np.float64]

CURVE = "curve.jsonl"
RESAMPLES = 1000
POWERS = np.geomspace(0.05, 1.0, 400)  # 1: the fastest that an average of independent pairs gains


class CurvePoint(Record):
    """One row of ``curve.jsonl``: a reward model trained on a share of the prompts, judged by held-out labels.

    ``accuracy`` and ``loss`` (nats per pair) count pairs, and their clusters are prompts; ``right`` holds for each
    held-out prompt how many of its pairs were right (a tie is half) and how many there are.
    """

    share: float
    prompts: int
    pairs: int
    accuracy: Estimate
    error: float
    loss: Estimate
    seconds: float
    right: dict[str, tuple[float, int]]


class Fits(NamedTuple):
    """``error = floor + scale * pairs ** -power``, one fit per row: of the curve itself, then of its resamples."""

    floor_S: Array
    scale_S: Array
    power_S: Array

    def accuracy(self, pairs: float) -> Array:
        return 1 - self.floor_S - self.scale_S * pairs**-self.power_S

    def pairs(self, accuracy: float) -> Array:
        """Return the pairs at which each fit reaches an accuracy; infinite where it stays below."""
        gap_S = 1 - accuracy - self.floor_S
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            return np.where(gap_S > 0, (self.scale_S / gap_S) ** (1 / self.power_S), np.inf)


def fit_curves(pairs_F: Array, error_SF: Array) -> Fits:
    """Fit the power law by weighted least squares, floor and scale not negative, to every row of errors.

    Inverse power law and weights (points with more data count more) as in Figueroa et al. 2012, "Predicting sample
    size required for classification performance" (BMC Med. Inform. Decis. Mak. 12:8).
    """
    n_points = len(pairs_F)
    weight_F = np.arange(1, n_points + 1) / n_points
    best_S = np.full(len(error_SF), np.inf)
    fits = Fits(np.zeros_like(best_S), np.zeros_like(best_S), np.ones_like(best_S))
    total, y_S = weight_F.sum(), error_SF @ weight_F
    for power in POWERS:
        x_F = (pairs_F / pairs_F[-1]) ** -power
        x, xx, xy_S = weight_F @ x_F, weight_F @ x_F**2, error_SF @ (weight_F * x_F)
        scale_S = (total * xy_S - x * y_S) / (total * xx - x * x)
        floor_S = (y_S - scale_S * x) / total
        scale_S, floor_S = (
            np.where(floor_S < 0, xy_S / xx, np.maximum(scale_S, 0)),
            np.where(scale_S < 0, y_S / total, np.maximum(floor_S, 0)),
        )
        residual_S = (error_SF - floor_S[:, None] - scale_S[:, None] * x_F) ** 2 @ weight_F
        better = residual_S < best_S
        best_S[better] = residual_S[better]
        fits.floor_S[better], fits.power_S[better] = floor_S[better], power
        fits.scale_S[better] = scale_S[better] * pairs_F[-1] ** power
    return fits


def resampled_errors(points: Sequence[CurvePoint]) -> Array:
    """Return errors by point, ``(1 + resamples, F)``: measured, then with the held-out prompts drawn anew, the same for
    every point."""
    prompts = sorted(points[0].right)
    right_PF = np.array([[point.right[prompt][0] for point in points] for prompt in prompts])
    n_P = np.array([points[0].right[prompt][1] for prompt in prompts])
    generator = np.random.default_rng(0)
    draws = [np.arange(len(prompts)), *generator.integers(len(prompts), size=(RESAMPLES, len(prompts)))]
    return np.array([1 - right_PF[drawn].sum(0) / n_P[drawn].sum() for drawn in draws])


def resampled_estimate(values_S: Array, points: Sequence[CurvePoint], level: float = LEVEL) -> Estimate:
    """Estimate a number from its value on the measured curve and the percentiles of its resamples.

    A value may be infinite, so none is interpolated.
    """
    low, high = np.quantile(values_S[1:], [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    n = len(points[0].right)
    return Estimate(
        value=float(values_S[0]), low=float(low), high=float(high), n=n, n_scored=n, n_failed=0,
        method="bootstrap over held-out prompts", clusters=n,
    )  # fmt: skip


def read_curve(run: Path) -> list[CurvePoint]:
    """Read the points of a reward run's learning curve, fewest pairs first.

    Raises:
        BadInput: a run made without ``--curve``, or points of different held-out pairs.
    """
    if not (run / CURVE).is_file():
        raise BadInput(f"{run}: holds no {CURVE}; train it again with --curve, into another run folder")
    points = sorted(read_rows(run / CURVE, CurvePoint, "a point of a learning curve"), key=lambda point: point.pairs)
    counts = [{prompt: n for prompt, (_, n) in point.right.items()} for point in points]
    if not points or not counts[0] or any(count != counts[0] for count in counts):
        raise BadInput(f"{run / CURVE}: its points are not measured on the same held-out pairs; train the run again")
    return points
