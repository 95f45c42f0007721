"""The learning curve of a reward model: train on 1/8, 1/4 and 1/2 of the prompts, then on all of them.

In: the stage's prompts, its held-out prompts, and its training function. Out: ``curve.jsonl``, one row per share with
its error on held-out labels. Shares are nested and drawn by prompt; each training starts from the same weights with the
same settings and epochs, so fewer pairs also mean fewer steps. An interrupted share resumes from its own checkpoints,
and a finished one is not trained again. Not here: extrapolating the curve to more pairs (`align annotate plan`).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from align.core.config import BadInput
from align.core.files import read_rows, write_jsonl
from align.core.runs import Run
from align.core.stats.estimates import Estimate, mean_interval
from align.core.stats.learning_curve import CURVE, CurvePoint
from align.data.pairs import PromptPairs
from align.model.adapters import AdapterModel
from rewards import metrics

SHARES = {"1/8": 1 / 8, "1/4": 1 / 4, "1/2": 1 / 2}
Training = Callable[[Run, Sequence[PromptPairs]], float]  # trains the model's reward role; returns the seconds


class ShareRun(Run):
    """The training on one share: it has its own folder of metrics and checkpoints, and the record of the whole run."""

    def __init__(self, whole: Run, name: str) -> None:
        self.whole, self.record, self.is_main = whole, whole.record, whole.is_main
        self.path = whole.path / "checkpoints" / name
        if self.is_main:
            self.path.mkdir(parents=True, exist_ok=True)

    def save(self) -> None:
        self.whole.save()


def train_on_shares(
    run: Run,
    model: AdapterModel,
    train: Sequence[PromptPairs],
    test: Sequence[PromptPairs],
    fit: Training,
    margins: Callable[[], Sequence[float]],
) -> list[CurvePoint]:
    """Train on each smaller share, restore the weights after it, and write the points to ``curve.jsonl``.

    Args:
        margins: computes the margins of the held-out pairs, in their order, with the current weights.

    Raises:
        BadInput: there are no held-out pairs.
    """
    if not test:
        raise BadInput("curve: the pairs run has no test pairs to measure it by; make pairs with a test split")
    file = run.path / CURVE
    points = _points_before(run, file)
    parameters = model.parameters("reward")
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    subsets = shares(train, run.record.seed)
    sizes = ", ".join(f"{name} ({sum(len(p.rows) for p in subset)} pairs)" for name, subset in subsets.items())
    run.note(f"learning curve: trains on {sizes} of the prompts first")
    for name, subset in list(subsets.items())[len(points) :]:
        part = ShareRun(run, f"curve-{name.replace('/', '-')}")
        seconds = fit(part, subset)
        points.append(point(len(subset) / len(train), subset, test, margins(), seconds))
        write(run, points)
        with torch.no_grad():
            for tensor, parameter in parameters.items():
                parameter.copy_(start[tensor])
        run.save()
        if run.is_main:
            shutil.rmtree(part.path)
    return points


def _points_before(run: Run, file: Path) -> list[CurvePoint]:
    """Return the points of an interrupted run; none if the file is damaged."""
    if not file.is_file():
        return []
    try:
        return [row for row in read_rows(file, CurvePoint, "a point of a learning curve") if row.share < 1]
    except BadInput as error:
        run.note(f"{error}: the learning curve starts again")
        return []


def shares(train: Sequence[PromptPairs], seed: int) -> dict[str, list[PromptPairs]]:
    """Return the prompts of each share by its name, in their order; a smaller share is a subset of each larger one.

    Prompts are drawn in the order of a hash of the seed and their id, which does not depend on rows or other prompts.
    A share that would equal a smaller one is left out.
    """
    order = sorted(
        {prompt.prompt_id for prompt in train},
        key=lambda one: hashlib.sha256(f"{seed}\0curve\0{one}".encode()).digest(),
    )
    subsets: dict[str, list[PromptPairs]] = {}
    taken = 0
    for name, share in SHARES.items():
        if round(share * len(order)) > taken:
            taken = round(share * len(order))
            drawn = set(order[:taken])
            subsets[name] = [prompt for prompt in train if prompt.prompt_id in drawn]
    return subsets


def point(
    share: float, train: Sequence[PromptPairs], test: Sequence[PromptPairs], margins: Sequence[float], seconds: float
) -> CurvePoint:
    """Return the error on held-out labels after training on these prompts; intervals are clustered by prompt."""
    clusters = [prompt.prompt_id for prompt in test for _ in prompt.rows]
    correct = metrics.outcomes(margins)
    right: dict[str, tuple[float, int]] = {}
    for cluster, value in zip(clusters, correct, strict=True):
        before, n = right.get(cluster, (0.0, 0))
        right[cluster] = (before + value, n + 1)
    accuracy = mean_interval(correct, "binary", clusters)
    losses = np.logaddexp(0, -np.asarray(margins)).tolist()
    return CurvePoint(
        share=share,
        prompts=len(train),
        pairs=sum(len(prompt.rows) for prompt in train),
        accuracy=accuracy,
        error=1 - float(np.mean(correct)),
        loss=mean_interval(losses, "unbounded", clusters),
        seconds=seconds,
        right=right,
    )


def write(run: Run, points: Sequence[CurvePoint]) -> dict[str, Any]:
    """Write ``curve.jsonl``; returns the headline's errors by number of training pairs."""
    if run.is_main:
        write_jsonl(run.path / CURVE, [one.model_dump() for one in points])
    return {f"error_on_{one.pairs}_pairs": _flipped(one.accuracy) for one in points} | {
        "curve_seconds": round(sum(one.seconds for one in points), 2)
    }


def _flipped(accuracy: Estimate) -> dict[str, Any]:
    """Return the error 1 - accuracy, whose interval has its ends exchanged."""
    ends = (accuracy.value, accuracy.high, accuracy.low)
    value, low, high = (None if one is None else 1 - one for one in ends)
    return accuracy.model_dump() | {"value": value, "low": low, "high": high}
