"""The learning curve of a reward model: its points as they are stored, and the power law that is fitted to them.

In: ``curve.jsonl`` of a reward run made with ``--curve``. Out: errors by point, also over resampled held-out prompts,
and a fit of ``error = floor + scale * pairs ** -power`` to each. Not here: training the points, and what the fits say
of an accuracy that somebody wants (``annotation/campaign/plan.py``).
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

Array = NDArray[np.float64]

CURVE = "curve.jsonl"
RESAMPLES = 1000
POWERS = np.geomspace(0.05, 1.0, 400)  # 1: the fastest that an average of independent pairs gains


class CurvePoint(Record):
    """One row of ``curve.jsonl``: a reward model trained on a share of the prompts, judged by held-out labels.

    ``accuracy`` and ``loss`` (nats a pair) hold mean, low, high, n (pairs) and clusters (prompts); ``right`` holds for
    each held-out prompt how many of its pairs were right (a tie is half) and how many there are.
    """

    share: float
    prompts: int
    pairs: int
    accuracy: dict[str, float | int | None]
    error: float
    loss: dict[str, float | int | None]
    seconds: float
    right: dict[str, tuple[float, int]]


class Fits(NamedTuple):
    """``error = floor + scale * pairs ** -power``, one fit a row: of the curve itself, then of its resamples."""

    floor_B: Array
    scale_B: Array
    power_B: Array

    def accuracy(self, pairs: float) -> Array:
        return 1 - self.floor_B - self.scale_B * pairs**-self.power_B

    def pairs(self, accuracy: float) -> Array:
        """Pairs at which each fit reaches an accuracy; infinite where it flattens below."""
        gap_B = 1 - accuracy - self.floor_B
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            return np.where(gap_B > 0, (self.scale_B / gap_B) ** (1 / self.power_B), np.inf)


def fit_curves(pairs_F: Array, error_BF: Array) -> Fits:
    """Weighted least squares of the power law, floor and scale not negative, for every row of errors.

    Inverse power law and weights (points with more data count more) as in Figueroa et al. 2012, "Predicting sample
    size required for classification performance" (BMC Med. Inform. Decis. Mak. 12:8).
    """
    n_points = len(pairs_F)
    weight_F = np.arange(1, n_points + 1) / n_points
    best_B = np.full(len(error_BF), np.inf)
    found = Fits(np.zeros_like(best_B), np.zeros_like(best_B), np.ones_like(best_B))
    total, y_B = weight_F.sum(), error_BF @ weight_F
    for power in POWERS:
        x_F = (pairs_F / pairs_F[-1]) ** -power
        x, xx, xy_B = weight_F @ x_F, weight_F @ x_F**2, error_BF @ (weight_F * x_F)
        scale_B = (total * xy_B - x * y_B) / (total * xx - x * x)
        floor_B = (y_B - scale_B * x) / total
        scale_B, floor_B = (
            np.where(floor_B < 0, xy_B / xx, np.maximum(scale_B, 0)),
            np.where(scale_B < 0, y_B / total, np.maximum(floor_B, 0)),
        )
        residual_B = (error_BF - floor_B[:, None] - scale_B[:, None] * x_F) ** 2 @ weight_F
        better = residual_B < best_B
        best_B[better] = residual_B[better]
        found.floor_B[better], found.power_B[better] = floor_B[better], power
        found.scale_B[better] = scale_B[better] * pairs_F[-1] ** power
    return found


def resampled_errors(points: Sequence[CurvePoint]) -> Array:
    """Errors by point, ``(1 + resamples, F)``: as measured, then with the held-out prompts drawn anew, the same for
    every point."""
    prompts = sorted(points[0].right)
    right_PF = np.array([[point.right[prompt][0] for point in points] for prompt in prompts])
    n_P = np.array([points[0].right[prompt][1] for prompt in prompts])
    generator = np.random.default_rng(0)
    draws = [np.arange(len(prompts)), *generator.integers(len(prompts), size=(RESAMPLES, len(prompts)))]
    return np.array([1 - right_PF[drawn].sum(0) / n_P[drawn].sum() for drawn in draws])


def read_curve(run: Path) -> list[CurvePoint]:
    """The points of a reward run's learning curve, fewest pairs first.

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
