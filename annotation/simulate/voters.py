"""How a simulated person with known faults votes: pure, each vote drawn from its own seed.

In: comparisons of two responses whose true utility is known, and people. Out: judgments. The model of a vote: latent =
logit(reliability) x (utility left - right) + length bias x (words left - right) + position bias + logistic noise;
small values are ties, large ones strong preferences. Not here: learning, fatigue, and people who share their mistakes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from pydantic import Field

from align.core.config import Frozen
from align.core.records import Comparison, Judgment
from annotation.campaign.candidates import lot


class Annotator(Frozen):
    """A simulated person: ``reliability`` .5 ignores the truth; ``careless`` is the share of random answers."""

    name: str
    reliability: float = Field(0.8, gt=0, lt=1)
    position_bias: float = Field(0.0, description="added to the latent preference for the left response")
    length_bias: float = Field(0.0, description="latent preference per word by which a response is longer")
    careless: float = Field(0.0, ge=0, le=1)


def simulate_votes(
    comparisons: Sequence[Comparison],
    utilities: Mapping[str, Sequence[float]],
    annotators: Sequence[Annotator],
    seed: int,
    *,
    votes_per_comparison: int = 3,
    tie_threshold: float = 0.3,
) -> list[Judgment]:
    """Judge comparisons of two responses; pure, and each vote is drawn from its own seed.

    Args:
        utilities: true utility of both responses by comparison id, in canonical order.
        votes_per_comparison: how many of the annotators, drawn per comparison, see it.
    """
    judgments = []
    for comparison in comparisons:
        for person in panel(comparison.id, annotators, seed, votes_per_comparison):
            judgments.append(vote(comparison, utilities[comparison.id], person, seed, tie_threshold))
    return judgments


def panel(comparison_id: str, annotators: Sequence[Annotator], seed: int, size: int) -> list[Annotator]:
    """Draw those who see a comparison, for it alone."""
    return sorted(annotators, key=lambda person: lot(seed, "who", comparison_id, person.name))[:size]


def vote(
    comparison: Comparison,
    utilities: Sequence[float],
    person: Annotator,
    seed: int,
    tie_threshold: float,
    left: int | None = None,
) -> Judgment:
    """Draw one person's judgment; ``left`` is the response that a screen shows there (None: drawn)."""
    draw = random.Random(lot(seed, "vote", comparison.id, person.name))
    drawn = 0 if draw.random() < 0.5 else 1
    left = drawn if left is None else left
    right = 1 - left
    words = [len(response.text.split()) for response in comparison.responses]
    noise = _logit(draw.uniform(1e-12, 1 - 1e-12))
    latent = (
        _logit(person.reliability) * (utilities[left] - utilities[right])
        + person.length_bias * (words[left] - words[right])
        + person.position_bias
        + noise
    )
    is_tie = abs(latent) < tie_threshold
    strength = 0 if is_tie else min(3, 1 + int(abs(latent)))
    seconds = 4 + sum(words) / 4 * draw.lognormvariate(0, 0.3)
    if draw.random() < person.careless:
        latent, is_tie = draw.choice((-1.0, 1.0)), draw.random() < 1 / 3
        strength, seconds = 0 if is_tie else draw.randint(1, 3), draw.uniform(1, 3)
    ranking = [[0, 1]] if is_tie else [[left], [right]] if latent > 0 else [[right], [left]]
    return Judgment(
        comparison_id=comparison.id,
        annotator=person.name,
        ranking=ranking,
        shown=[left, right],
        strength=strength,
        seconds=round(seconds, 1),
        source="simulated",
    )


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
