"""Losses on pairs of responses, and the seam for further preference losses.

Axis: P pairs. Losses take the ``denominator`` of the whole step (the sum of its pairs' weights), so that the parts of a
step add up to the same loss and gradient. A loss that couples pairs gets all pairs of a step at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import BeforeValidator, Field, SerializeAsAny
from torch import Tensor
from torch.nn.functional import logsigmoid

from align.core.plugins import Part, Seam, choose

LOSSES = Seam("loss", {"sigmoid": "align.losses.pairwise:Sigmoid", "sft": "align.losses.pairwise:Likelihood"})


# --- equations -----------------------------------------------------------------------------------------------


class PairLoss(NamedTuple):
    """A loss ``()`` and the reward margin (chosen minus rejected) of each pair ``(P,)``."""

    loss: Tensor
    margin_P: Tensor


def bradley_terry(chosen_P: Tensor, rejected_P: Tensor, weight_P: Tensor, denominator: float) -> PairLoss:
    """Negative log-likelihood of the preference under Bradley-Terry: ``-log sigma(r_chosen - r_rejected)``.

    Bradley & Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155), Eq. 1.
    """
    margin_P = chosen_P - rejected_P
    return PairLoss(-(weight_P * logsigmoid(margin_P)).sum() / denominator, margin_P)


def dpo_loss(
    chosen_P: Tensor,
    rejected_P: Tensor,
    reference_chosen_P: Tensor,
    reference_rejected_P: Tensor,
    weight_P: Tensor,
    beta: float,
    denominator: float,
) -> PairLoss:
    """DPO's loss on summed log-probabilities: ``-log sigma(beta * (log pi/ref of chosen - log pi/ref of rejected))``.

    Rafailov et al. 2023 (arXiv 2305.18290), Eq. 7. ``margin_P`` is the margin of implicit rewards.
    """
    margin_P = beta * ((chosen_P - reference_chosen_P) - (rejected_P - reference_rejected_P))
    return PairLoss(-(weight_P * logsigmoid(margin_P)).sum() / denominator, margin_P)


def likelihood_loss(logprob_P: Tensor, n_tokens_P: Tensor, weight_P: Tensor, denominator: float) -> Tensor:
    """The SFT term: the mean negative log-likelihood per token of each response, as a weighted sum over responses.

    Pang et al. 2024 (arXiv 2404.19733), Eq. 1 normalises by length in the same way.
    """
    return -(weight_P * logprob_P / n_tokens_P).sum() / denominator


# --- the seam ------------------------------------------------------------------------------------------------


class PairLogprobs(NamedTuple):
    """The input of a preference loss: log-probabilities ``(P,)`` in nats per response, and numbers of tokens ``(P,)``.

    ``denominator`` is the sum of the weights of all pairs of the step, also where these pairs are only a part of them.
    """

    chosen_P: Tensor
    rejected_P: Tensor
    reference_chosen_P: Tensor
    reference_rejected_P: Tensor
    chosen_tokens_P: Tensor
    rejected_tokens_P: Tensor
    weight_P: Tensor
    denominator: float

    def margin_P(self, beta: float) -> Tensor:
        """The margin ``(P,)`` of the implicit rewards ``beta log(policy / reference)``."""
        chosen_P, rejected_P = self.chosen_P - self.reference_chosen_P, self.rejected_P - self.reference_rejected_P
        return beta * (chosen_P - rejected_P)


class PreferenceLoss(Part):
    """Base of all losses on log-probabilities of pairs; ``weight`` is its weight in a sum of several losses.

    ``COUPLES_PAIRS``: the term of one pair depends on other pairs of the step (a sort, a mean), so the loss gets all
    pairs of the step at once; any other loss is computed packed batch by packed batch.
    """

    COUPLES_PAIRS: ClassVar[bool] = False

    weight: float = Field(default=1.0, gt=0, description="its weight in a sum of several losses")

    @property
    def reward_scale(self) -> float:
        """The factor that turns a log-ratio of policy and reference into an implicit reward."""
        return 1.0

    @abstractmethod
    def loss(self, pairs: PairLogprobs) -> Tensor:
        """The loss ``()``: the weighted sum over these pairs, divided by ``pairs.denominator``."""


class Sigmoid(PreferenceLoss):
    """The sigmoid loss of DPO."""

    kind: Literal["sigmoid"] = "sigmoid"
    beta: float = Field(default=0.1, gt=0, description="how strongly the policy is held to its reference")

    @property
    def reward_scale(self) -> float:
        return self.beta

    def loss(self, pairs: PairLogprobs) -> Tensor:
        sides = (pairs.chosen_P, pairs.rejected_P, pairs.reference_chosen_P, pairs.reference_rejected_P)
        return dpo_loss(*sides, pairs.weight_P, self.beta, pairs.denominator).loss


class Likelihood(PreferenceLoss):
    """The SFT term: the negative log-likelihood of chosen responses, which keeps them likely."""

    kind: Literal["sft"] = "sft"

    def loss(self, pairs: PairLogprobs) -> Tensor:
        return likelihood_loss(pairs.chosen_P, pairs.chosen_tokens_P, pairs.weight_P, pairs.denominator)


ChosenLoss = Annotated[SerializeAsAny[PreferenceLoss], BeforeValidator(partial(choose, LOSSES, PreferenceLoss))]
LossSetting = Annotated[  # one loss, or a weighted list of losses
    tuple[ChosenLoss, ...],
    Field(min_length=1),
    BeforeValidator(lambda given: given if isinstance(given, list | tuple) else (given,)),
]


def total_loss(losses: Sequence[PreferenceLoss], pairs: Callable[[], PairLogprobs]) -> Tensor:
    """The weighted sum of several losses on the same pairs.

    Args:
        pairs: gives the pairs, with tensors of its own to each loss, so that the gradients of several losses are added
            up where the tensors come from, in the same order whichever losses there are.
    """
    first, *others = (loss.weight * loss.loss(pairs()) for loss in losses)
    return sum(others, start=first)
