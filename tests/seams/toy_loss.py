"""A preference loss from outside the package that couples the pairs of a step."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from align.losses.pairwise import PairLogprobs, PreferenceLoss


class Quantiles(PreferenceLoss):
    """The k-th best chosen response of the step against its k-th best rejected one (Melnyk et al. 2024, 2406.05882)."""

    COUPLES_PAIRS: ClassVar[bool] = True

    beta: float = Field(default=0.1, gt=0)

    @property
    def reward_scale(self) -> float:
        return self.beta

    def loss(self, pairs: PairLogprobs) -> Tensor:
        chosen_P, order_P = (pairs.chosen_P - pairs.reference_chosen_P).sort()
        rejected_P = (pairs.rejected_P - pairs.reference_rejected_P).sort().values
        losses_P = -logsigmoid(self.beta * (chosen_P - rejected_P))
        return (pairs.weight_P[order_P] * losses_P).sum() / pairs.denominator
