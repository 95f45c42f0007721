"""PPO's equations for the policy: rewards, advantages and the clipped loss.

Tensors in, tensors out: no configuration, no state, no logging. Axes: B responses, T response tokens. ``mask_BT`` is
True on response tokens; values of other cells never change a result. Losses take the ``denominator`` of the whole step
(its token count), so that the parts of a step add up to the same loss and gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from align.losses.masked import masked_sum


class PolicyLoss(NamedTuple):
    """The loss and its statistics, each ``()`` and over the same mask and denominator."""

    loss: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor


class Credit(NamedTuple):
    """Advantages and returns of each token."""

    advantages_BT: Tensor
    returns_BT: Tensor


def shape_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, coefficient: float) -> Tensor:
    """Put ``-coefficient * KL`` at every token, plus the score at the last token of each response, ``(B, T)``.

    Stiennon et al. 2020 (arXiv 2009.01325), section 3.4; the score is read at the stop token. Responses are
    left-aligned, and each has at least one token.
    """
    rewards_BT = torch.where(mask_BT, -coefficient * kl_BT, torch.zeros_like(kl_BT))
    last_B = mask_BT.sum(dim=1) - 1
    return rewards_BT.scatter_add(1, last_B[:, None], scores_B[:, None])


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> Credit:
    """Generalised advantage estimation: advantages and returns ``(B, T)``; the value after the last token is 0.

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


def whiten(values: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Compute ``(values - mean) / sqrt(variance + 1e-8)``, with mean and variance of all values of the step."""
    return (values - mean) * torch.rsqrt(variance + 1e-8)


def policy_loss(
    logprob_BT: Tensor, old_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, clip: float, denominator: float
) -> PolicyLoss:
    """Compute PPO's clipped surrogate loss, ``max(-A r, -A clip(r, 1 - clip, 1 + clip))`` summed over tokens.

    Schulman et al. 2017 (arXiv 1707.06347), Eq. 7. ``approx_kl`` is the k3 estimate in nats per token of
    KL(old policy || policy).
    """
    log_ratio_BT = torch.where(mask_BT, logprob_BT - old_BT, torch.zeros_like(old_BT))
    ratio_BT = log_ratio_BT.exp()
    plain_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * ratio_BT.clamp(1 - clip, 1 + clip)
    loss = masked_sum(torch.maximum(plain_BT, clipped_BT), mask_BT) / denominator
    clipped = masked_sum((clipped_BT > plain_BT).to(loss.dtype), mask_BT) / denominator
    approx_kl = masked_sum(ratio_BT - 1 - log_ratio_BT, mask_BT) / denominator
    return PolicyLoss(loss, clipped.detach(), approx_kl.detach())
