"""Every training equation, once: tensors in, tensors out, no configuration, no state, no logging.

Axes: B responses, T response tokens, P pairs. ``mask_BT`` is True on response tokens; masked-out cells may
hold anything and never change a result. Losses take the ``denominator`` of the whole step (a token count, a
sum of weights), so that a step split into parts adds up to the same loss and gradient.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

KlKind = Literal["k1", "k3"]


class PairLoss(NamedTuple):
    loss: Tensor
    margin_P: Tensor


class PolicyLoss(NamedTuple):
    loss: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor


class ValueLoss(NamedTuple):
    loss: Tensor
    clip_fraction: Tensor


class Credit(NamedTuple):
    advantages_BT: Tensor
    returns_BT: Tensor


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum where mask is True; masked-out NaN or infinity does not count."""
    return torch.where(mask, values, torch.zeros_like(values)).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean where mask is True (``()``); ValueError on an empty mask, which has no mean."""
    count = mask.sum()
    if count == 0:
        raise ValueError("masked_mean: the mask holds no True; there is nothing to average")
    return masked_sum(values, mask) / count


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


def token_kl(logprob_BT: Tensor, reference_BT: Tensor, kind: KlKind) -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens the policy sampled, ``(B, T)`` in nats.

    k1 is the log-ratio; k3 is ``(1/r - 1) + log r``, unbiased and never negative (Schulman 2020,
    "Approximating KL Divergence").
    """
    difference_BT = logprob_BT - reference_BT
    if kind == "k1":
        return difference_BT
    return torch.expm1(-difference_BT) + difference_BT


def exact_token_kl(logits_NV: Tensor, reference_NV: Tensor) -> Tensor:
    """KL(policy || reference) over the whole vocabulary at each position, ``(N,)`` in nats."""
    logprob_NV = logits_NV.log_softmax(-1)
    return (logprob_NV.exp() * (logprob_NV - reference_NV.log_softmax(-1))).sum(-1)


def shape_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, coefficient: float) -> Tensor:
    """``-coefficient * KL`` at every token, plus the score at the last token of each response, ``(B, T)``.

    Stiennon et al. 2020 (arXiv 2009.01325), section 3.4; the score is read at the stop token. Responses are
    left-aligned, and each has a token.
    """
    rewards_BT = torch.where(mask_BT, -coefficient * kl_BT, torch.zeros_like(kl_BT))
    last_B = mask_BT.sum(dim=1) - 1
    return rewards_BT.scatter_add(1, last_B[:, None], scores_B[:, None])


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> Credit:
    """Generalised advantage estimation and the returns it implies; the value after the last token is 0.

    Schulman et al. 2016 (arXiv 1506.02438), Eq. 16. Responses are left-aligned: True cells come first.
    """
    rewards_BT = torch.where(mask_BT, rewards_BT, torch.zeros_like(rewards_BT))
    values_BT = torch.where(mask_BT, values_BT, torch.zeros_like(values_BT))
    advantages_BT = torch.zeros_like(rewards_BT)
    next_value_B = torch.zeros_like(rewards_BT[:, 0])
    next_advantage_B = torch.zeros_like(next_value_B)
    for t in range(rewards_BT.shape[1] - 1, -1, -1):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        next_advantage_B = (delta_B + gamma * lam * next_advantage_B) * mask_BT[:, t]
        next_value_B = values_BT[:, t]
        advantages_BT[:, t] = next_advantage_B
    return Credit(advantages_BT, advantages_BT + values_BT)


def whiten(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Shift to mean 0 and scale to variance 1 over the mask (population variance)."""
    mean = masked_mean(values_BT, mask_BT)
    return standardise(values_BT, mean, masked_mean((values_BT - mean) ** 2, mask_BT))


def scale(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Scale to variance 1 over the mask, keeping the mean where it is relative to 0."""
    mean = masked_mean(values_BT, mask_BT)
    return standardise(values_BT, torch.zeros_like(mean), masked_mean((values_BT - mean) ** 2, mask_BT))


def standardise(values: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """``(values - mean) / sqrt(variance + 1e-8)``: whitening with moments taken over a larger whole."""
    return (values - mean) * torch.rsqrt(variance + 1e-8)


def policy_loss(
    logprob_BT: Tensor, old_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, clip: float, denominator: float
) -> PolicyLoss:
    """PPO's clipped surrogate, ``max(-A r, -A clip(r, 1 - clip, 1 + clip))`` summed over tokens.

    Schulman et al. 2017 (arXiv 1707.06347), Eq. 7. Statistics are sums under the same mask over the same
    denominator; ``approx_kl`` is k3 of the update.
    """
    log_ratio_BT = torch.where(mask_BT, logprob_BT - old_BT, torch.zeros_like(old_BT))
    ratio_BT = log_ratio_BT.exp()
    plain_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * ratio_BT.clamp(1 - clip, 1 + clip)
    loss = masked_sum(torch.maximum(plain_BT, clipped_BT), mask_BT) / denominator
    clipped = masked_sum((clipped_BT > plain_BT).to(loss.dtype), mask_BT) / denominator
    approx_kl = masked_sum(ratio_BT - 1 - log_ratio_BT, mask_BT) / denominator
    return PolicyLoss(loss, clipped.detach(), approx_kl.detach())


def value_loss(
    values_BT: Tensor, old_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, clip: float, denominator: float
) -> ValueLoss:
    """Half the squared error, the larger of plain and clipped around the old values, summed over tokens.

    Huang et al. 2024 (arXiv 2403.17031), detail on value clipping.
    """
    zero = torch.zeros_like(values_BT)
    values_BT, old_BT, returns_BT = (torch.where(mask_BT, cells, zero) for cells in (values_BT, old_BT, returns_BT))
    clipped_BT = old_BT + (values_BT - old_BT).clamp(-clip, clip)
    plain_BT = (values_BT - returns_BT) ** 2
    limited_BT = (clipped_BT - returns_BT) ** 2
    loss = 0.5 * masked_sum(torch.maximum(plain_BT, limited_BT), mask_BT) / denominator
    clipped = masked_sum((limited_BT > plain_BT).to(loss.dtype), mask_BT) / denominator
    return ValueLoss(loss, clipped.detach())


def entropy(logits_NV: Tensor) -> Tensor:
    """Shannon entropy of each position's distribution, ``(N,)`` in nats."""
    logprob_NV = logits_NV.log_softmax(-1)
    return -(logprob_NV.exp() * logprob_NV).sum(-1)


def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> float | None:
    """``1 - Var(returns - values) / Var(returns)`` over the mask; None where returns do not vary."""
    returns, errors = returns_BT[mask_BT], (returns_BT - values_BT)[mask_BT]
    variance = float(returns.var(correction=0)) if len(returns) else 0.0
    if variance == 0:
        return None
    return 1 - float(errors.var(correction=0)) / variance


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n from the policy it samples, ``log n - (n - 1) / n`` nats (Gao et al. 2022, arXiv 2210.10760)."""
    return math.log(n) - (n - 1) / n
