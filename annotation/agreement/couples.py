"""How far every two annotators agree, by the answers both gave.

In: votes as columns, each person once a unit. Out: for every two people who judged something together Cohen's kappa
over first, tie and second, what it rests on, and its interval. Not here: the coefficient (``coefficients.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from align.core.stats.agreement import cohen_kappa
from annotation.agreement.ballots import Ballots

OUTCOMES = 3


def couples(once: Ballots, names: Sequence[str]) -> list[dict[str, Any]]:
    """Kappa of every two annotators with answers in common, by name.

    ``n`` counts answers that both gave, ``comparisons`` what these are about: as many observations the interval rests
    on, since the answers of one ranking hang together. The value is None where both always said the same one thing.

    Args:
        once: votes without repetitions.
        names: annotators by number.
    """
    order = np.lexsort((once.person, once.unit))
    unit_V, person_V, outcome_V = once.unit[order], once.person[order], once.outcome[order]
    rows: list[np.ndarray] = []
    for lag in range(1, int(np.bincount(unit_V).max(initial=0))):  # the answers on a unit stand side by side
        first = np.flatnonzero(unit_V[:-lag] == unit_V[lag:])
        rows.append(np.stack([first, first + lag], 1))
    if not rows:
        return []
    one_M, other_M = np.concatenate(rows).T
    couple_M = person_V[one_M] * len(names) + person_V[other_M]
    known, couple_M = np.unique(couple_M, return_inverse=True)
    tables_PCC = np.zeros((len(known), OUTCOMES, OUTCOMES))
    np.add.at(tables_PCC, (couple_M, outcome_V[one_M], outcome_V[other_M]), 1)
    comparison_M = once.comparison[order][one_M]
    pairs = np.unique(np.stack([couple_M, comparison_M], 1), axis=0)
    n_P = np.bincount(pairs[:, 0], minlength=len(known))
    value_P, low_P, high_P = cohen_kappa(tables_PCC, n_P)
    found = []
    for place, couple in enumerate(known.tolist()):
        n, exists = int(tables_PCC[place].sum()), bool(np.isfinite(value_P[place]))
        found.append(
            {
                "annotators": [names[couple // len(names)], names[couple % len(names)]],
                "value": float(value_P[place]) if exists else None,
                "interval": [float(low_P[place]), float(high_P[place])] if exists else None,
                "n": n,
                "n_scored": n if exists else 0,
                "n_failed": 0 if exists else n,
                "comparisons": int(n_P[place]),
            }
        )
    return found
