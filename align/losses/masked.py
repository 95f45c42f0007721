"""Sums over the cells that a mask leaves."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum where mask is True; masked-out NaN or infinity does not count."""
    return torch.where(mask, values, torch.zeros_like(values)).sum()
