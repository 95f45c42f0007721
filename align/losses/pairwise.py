"""Losses on pairs of responses: tensors in, tensors out, with the shapes and the source of each.

Axis: P pairs. Losses take the ``denominator`` of the whole step (the sum of its pairs' weights), so that a step split
into parts adds up to the same loss and gradient.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid


class PairLoss(NamedTuple):
    loss: Tensor
    margin_P: Tensor


def bradley_terry(chosen_P: Tensor, rejected_P: Tensor, weight_P: Tensor, denominator: float) -> PairLoss:
    """Negative log-likelihood that the chosen response wins: ``-log sigma(r_chosen - r_rejected)``.

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
    """``-log sigma(beta * (log pi/ref of chosen - log pi/ref of rejected))`` on summed log-probabilities.

    Rafailov et al. 2023 (arXiv 2305.18290), Eq. 7. ``margin_P`` is the implicit reward difference.
    """
    margin_P = beta * ((chosen_P - reference_chosen_P) - (rejected_P - reference_rejected_P))
    return PairLoss(-(weight_P * logsigmoid(margin_P)).sum() / denominator, margin_P)


def likelihood_loss(logprob_P: Tensor, n_tokens_P: Tensor, weight_P: Tensor, denominator: float) -> Tensor:
    """The SFT term: mean negative log-likelihood a token of each response, weighted and summed.

    Pang et al. 2024 (arXiv 2404.19733), Eq. 1 normalises by length in the same way.
    """
    return -(weight_P * logprob_P / n_tokens_P).sum() / denominator
