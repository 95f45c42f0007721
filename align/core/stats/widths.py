"""Compute how many prompts a win rate needs for an interval of a given width, as evaluations report it.

In: the width, the expected win rate and how votes on one prompt agree. Out: a number of prompts. The interval is
Wilson's score interval, over the effective number of prompts where ties or several votes make scores between 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from align.core.config import BadInput
from align.core.stats.estimates import effective_n, wilson


def prompts_for_width(width: float, confidence: float, win_rate: float, variance: float | None) -> int:
    """Return the fewest prompts for which the win rate's interval is at most ``width`` wide.

    Args:
        variance: of a prompt's score; None where every prompt is won or lost.
    """

    def wide(n: int) -> float:
        error = 0.0 if variance is None else math.sqrt(variance / (n - 1))
        effective = effective_n(win_rate, error, np.ones(n), "binary" if variance is None else "share", confidence)
        low, high = wilson(win_rate, effective, confidence)
        return high - low

    return _smallest(lambda n: wide(n) <= width, 1 if variance is None else 2)


def prompt_variance(win_rate: float, ties: float, votes: int, agreement: float) -> float:
    """Return the variance of a prompt's score, the mean of ``votes`` outcomes 1, 0.5 (tie) or 0; two agree so often.

    With ``g = E[(x1 - x2)^2]`` two votes on one prompt have covariance ``v - g/2``; without ties ``g = 1 - agreement``.
    A vote against a tie is off by a half only, so as many disagreements as there can be are counted as such: the
    larger covariance, the safer number.

    Raises:
        BadInput: an agreement below what votes that know nothing of the prompt would have.
    """
    one = win_rate * (1 - win_rate) - ties / 4
    apart = 1 - agreement
    with_tie = min(apart, 2 * ties)
    gap = 0.25 * with_tie + (apart - with_tie)
    if gap > 2 * one + 1e-12:
        raise BadInput(
            f"plan: an agreement of {agreement:g} cannot go with a win rate of {win_rate:g} and {ties:g} ties: votes "
            "cast blindly agree more often; give the agreement and the win rate of the same judgments"
        )
    return (one + (votes - 1) * (one - gap / 2)) / votes


def _smallest(holds: Callable[[int], bool], least: int) -> int:
    """Return the smallest number from ``least`` on for which a condition holds; it holds for all larger ones."""
    high = least
    while not holds(high):
        high *= 2
    low = least - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
