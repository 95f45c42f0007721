"""PPO's equations for the critic: the clipped value loss and the explained variance.

Tensors in, tensors out: no configuration, no state, no logging. Axes: B responses, T response tokens. ``mask_BT`` is
True on response tokens; values of other cells never change a result. Losses take the ``denominator`` of the whole step
(its token count), so that the parts of a step add up to the same loss and gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from align.losses.masked import masked_sum


class ValueLoss(NamedTuple):
    """The loss and the share of tokens whose value was clipped, each ``()``."""

    loss: Tensor
    clip_fraction: Tensor


def value_loss(
    values_BT: Tensor, old_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, clip: float, denominator: float
) -> ValueLoss:
    """Half the larger squared error of the values and the values clipped around the old ones, summed over tokens.

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


def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> float | None:
    """Compute ``1 - Var(returns - values) / Var(returns)`` over the mask; None where returns do not vary."""
    returns, errors = returns_BT[mask_BT], (returns_BT - values_BT)[mask_BT]
    variance = float(returns.var(correction=0)) if len(returns) else 0.0
    if variance == 0:
        return None
    return 1 - float(errors.var(correction=0)) / variance
