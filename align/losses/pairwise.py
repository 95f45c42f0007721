"""Losses on pairs of responses, and the extension point for further preference losses.

Axis: P pairs. Losses take the ``denominator`` of the whole step (the sum of its pairs' weights), so that the parts of a
step add up to the same loss and gradient. A loss that couples pairs gets all pairs of a step at once.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny
from torch import Tensor
from torch.nn.functional import logsigmoid

from align.core.config import BadInput
from align.core.plugins import Part, Seam, calling, choose, one_or_more

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
    return _logistic(chosen_P - rejected_P, weight_P, denominator)


def implicit_margin(
    chosen_P: Tensor, rejected_P: Tensor, reference_chosen_P: Tensor, reference_rejected_P: Tensor, beta: float
) -> Tensor:
    """Return the margin ``(P,)`` of the implicit rewards ``beta log(policy / reference)`` of whole responses.

    Rafailov et al. 2023 (arXiv 2305.18290), section 4.
    """
    return beta * ((chosen_P - reference_chosen_P) - (rejected_P - reference_rejected_P))


def dpo_loss(
    chosen_P: Tensor,
    rejected_P: Tensor,
    reference_chosen_P: Tensor,
    reference_rejected_P: Tensor,
    weight_P: Tensor,
    beta: float,
    denominator: float,
) -> PairLoss:
    """Compute DPO's loss, ``-log sigma(beta * (log pi/ref of chosen - log pi/ref of rejected))``, of whole responses.

    Rafailov et al. 2023 (arXiv 2305.18290), Eq. 7. ``margin_P`` is the margin of implicit rewards.
    """
    margin_P = implicit_margin(chosen_P, rejected_P, reference_chosen_P, reference_rejected_P, beta)
    return _logistic(margin_P, weight_P, denominator)


def _logistic(margin_P: Tensor, weight_P: Tensor, denominator: float) -> PairLoss:
    return PairLoss(-(weight_P * logsigmoid(margin_P)).sum() / denominator, margin_P)


def likelihood_loss(logprob_P: Tensor, n_tokens_P: Tensor, weight_P: Tensor, denominator: float) -> Tensor:
    """Compute the SFT term: a weighted sum over responses of the mean negative log-likelihood per token.

    Pang et al. 2024 (arXiv 2404.19733), Eq. 1 normalises by length in the same way.
    """
    return -(weight_P * logprob_P / n_tokens_P).sum() / denominator


# --- the extension point -------------------------------------------------------------------------------------


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
        """Return the margin ``(P,)`` of the implicit rewards ``beta log(policy / reference)``."""
        sides = (self.chosen_P, self.rejected_P, self.reference_chosen_P, self.reference_rejected_P)
        return implicit_margin(*sides, beta)


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
        """Return the loss ``()``: the weighted sum over these pairs, divided by ``pairs.denominator``."""


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
LossSetting = Annotated[tuple[ChosenLoss, ...], Field(min_length=1), BeforeValidator(one_or_more)]


def check_losses(losses: Sequence[PreferenceLoss]) -> None:
    """Try each loss on random log-probabilities: before a model is loaded, a loss that cannot train is refused.

    A loss that does not declare ``COUPLES_PAIRS`` is computed packed batch by packed batch, so its value on all pairs
    must be the sum of its values on parts of them.

    Raises:
        BadInput: a loss raises, gives no differentiable scalar, has no gradient, takes no notice of the denominator or
            of the weights, or couples pairs without declaring it.
    """
    n_pairs, generator = 8, torch.Generator().manual_seed(0)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n_pairs, generator=generator)

    chosen_P, rejected_P, weight_P = uniform(-30, -20), uniform(-30, -20), uniform(0.5, 1.5)
    pairs = PairLogprobs(
        chosen_P.requires_grad_(),
        rejected_P.requires_grad_(),
        chosen_P.detach() + uniform(-2, 2),
        rejected_P.detach() + uniform(-2, 2),
        uniform(10, 20).round(),
        uniform(10, 20).round(),
        weight_P,
        float(weight_P.sum()),
    )
    parts = [
        pairs._replace(**{name: getattr(pairs, name)[part] for name in PairLogprobs._fields[:-1]})
        for part in (slice(3), slice(3, None))
    ]
    for loss in losses:
        with calling(f"loss {loss.kind}: reward_scale", loss):
            if not math.isfinite(loss.reward_scale):
                raise BadInput(f"loss {loss.kind}: reward_scale is {loss.reward_scale}; it is a finite number")
        whole, first, rest = (loss_value(loss, some) for some in (pairs, *parts))
        apart = first + rest
        if not loss.COUPLES_PAIRS and not torch.allclose(whole, apart, rtol=1e-4, atol=1e-4, equal_nan=True):
            raise BadInput(
                f"loss {loss.kind}: it is {whole:.6g} on {n_pairs} pairs, and {apart:.6g} as the sum over two parts of "
                "them; a loss that couples pairs declares COUPLES_PAIRS: ClassVar[bool] = True, and any other is a sum "
                "over pairs, divided by pairs.denominator"
            )
        _refuse_unscaled(loss, pairs, whole)


def _refuse_unscaled(loss: PreferenceLoss, pairs: PairLogprobs, whole: Tensor) -> None:
    """Refuse a loss whose value on ``pairs``, ``whole``, has no gradient, or ignores the denominator or the weights."""
    sides = (pairs.chosen_P, pairs.rejected_P)
    gradients = torch.autograd.grad(whole, sides, retain_graph=True, allow_unused=True)
    if not any(gradient is not None and gradient.any() for gradient in gradients):
        raise BadInput(f"loss {loss.kind}: its gradient is zero on random log-probabilities, so nothing would train")
    half = loss_value(loss, pairs._replace(denominator=2 * pairs.denominator))
    if not torch.allclose(2 * half, whole, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise BadInput(
            f"loss {loss.kind}: it is {whole:.6g}, and {half:.6g} with twice the denominator; divide the sum over "
            "pairs by pairs.denominator"
        )
    heavier = (pairs.weight_P + pairs.weight_P * one_P for one_P in torch.eye(len(pairs.weight_P)))
    if all(torch.equal(loss_value(loss, pairs._replace(weight_P=weight_P)), whole) for weight_P in heavier):
        raise BadInput(f"loss {loss.kind}: no pair's weight changes it; multiply each pair's term by pairs.weight_P")


def loss_value(loss: PreferenceLoss, pairs: PairLogprobs) -> Tensor:
    """Return the value ``()`` of one loss.

    Raises:
        BadInput: the loss raises, or gives something other than a scalar with a gradient.
    """
    with calling(f"loss {loss.kind}", loss):
        value = loss.loss(pairs)
    if not isinstance(value, Tensor):
        given = f"a value of type {type(value).__name__}"
    elif value.shape != ():
        given = f"a tensor of shape {list(value.shape)}"
    elif not value.requires_grad:
        given = "a number without a gradient"
    else:
        return value
    raise BadInput(
        f"loss {loss.kind}: loss() gave {given}; it gives a tensor of shape [], computed from the log-probabilities of "
        "the policy"
    )


def total_loss(losses: Sequence[PreferenceLoss], pairs: Callable[[], PairLogprobs]) -> Tensor:
    """Return the weighted sum of several losses on the same pairs.

    Args:
        pairs: gives the pairs, with tensors of its own to each loss, so that the gradients of several losses are added
            up where the tensors come from, in the same order whichever losses there are.
    """
    first, *others = (loss.weight * loss_value(loss, pairs()) for loss in losses)
    return sum(others, start=first)
