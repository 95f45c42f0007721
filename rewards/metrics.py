"""Metrics of a reward model: accuracy, calibration, and the baselines (floors) that it must beat.

Arrays in, numbers out; no model. Axes: P held-out pairs. Every accuracy has its n and an interval
clustered by prompt (align/core/stats/estimates.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from align.core.records import Pair
from align.core.stats.estimates import Estimate, mean_interval


def outcomes(margins: Sequence[float]) -> list[float]:
    """Give 1 where the chosen response scored higher, 0 where lower, 0.5 for a tie."""
    return [0.5 if margin == 0 else float(margin > 0) for margin in margins]


def expected_calibration_error(margins: Sequence[float], bins: int = 10) -> float | None:
    """Compute the ECE of ``sigma(|margin|)`` as the probability that the preferred response wins (Guo et al. 2017)."""
    if not len(margins):
        return None
    values = np.asarray(margins, dtype=float)
    confidence = 1 / (1 + np.exp(-np.abs(values)))
    correct = np.asarray(outcomes(margins))
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    gaps = [
        abs(float(correct[place == b].mean() - confidence[place == b].mean())) * float((place == b).mean())
        for b in range(bins)
        if (place == b).any()
    ]
    return float(sum(gaps))


def by_agreement(margins: Sequence[float], pairs: Sequence[Pair]) -> dict[str, Estimate]:
    """Accuracy on pairs with unanimous votes, with split votes, and with one vote."""
    buckets: dict[str, list[int]] = {"unanimous": [], "split": [], "one vote": []}
    for index, pair in enumerate(pairs):
        for_, against, ties = (*pair.votes, 0, 0)[:3]
        name = "one vote" if for_ + against + ties == 1 else "unanimous" if against + ties == 0 else "split"
        buckets[name].append(index)
    correct = outcomes(margins)
    return {
        name: mean_interval([correct[i] for i in rows], "binary", [pairs[i].prompt_id for i in rows])
        for name, rows in buckets.items()
        if rows
    }


def longer_wins(pairs: Sequence[Pair]) -> Estimate:
    """Return the accuracy of preferring the response with more words."""
    margins = [float(len(_text(p.chosen).split()) - len(_text(p.rejected).split())) for p in pairs]
    return mean_interval(outcomes(margins), "binary", [pair.prompt_id for pair in pairs])


def bag_of_words(train: Sequence[Pair], test: Sequence[Pair]) -> list[float]:
    """Outcomes of a logistic regression on the words of a response (present or not), fitted on the training pairs.

    One per test pair, as :func:`outcomes`; an empty list where there are no training pairs, test pairs or words.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    if not train or not test:
        return []
    words = CountVectorizer(token_pattern=r"\S+", binary=True)
    try:
        words.fit([_text(side) for pair in train for side in (pair.chosen, pair.rejected)])
    except ValueError:  # no word at all
        return []
    difference = _differences(words, train)
    sign = np.where(np.arange(len(train)) % 2 == 0, 1, -1)
    model = LogisticRegression(fit_intercept=False, max_iter=300, C=1.0)
    model.fit(difference.multiply(sign[:, None]).tocsr(), sign)
    margins = model.decision_function(_differences(words, test))
    return outcomes(margins.tolist())


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Compute Pearson's r; None for fewer than 3 values, or where one side does not vary."""
    if len(first) < 3 or np.std(first) == 0 or np.std(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _differences(words: Any, pairs: Sequence[Pair]) -> Any:
    chosen = words.transform([_text(pair.chosen) for pair in pairs]).astype(float)
    return (chosen - words.transform([_text(pair.rejected) for pair in pairs])).tocsr()


def _text(messages: Sequence[dict[str, Any]]) -> str:
    return " ".join(str(message.get("content") or "") for message in messages)
