"""Masked sums."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum ``values`` where ``mask`` is True, ``()``; NaN or infinity elsewhere does not count."""
    return torch.where(mask, values, torch.zeros_like(values)).sum()
