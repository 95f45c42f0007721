"""Random values, and a mask of rows of different lengths, for the equations."""

from __future__ import annotations

from typing import Any

import torch
from conftest import EXACT
from torch import Tensor

B, T, JUNK = 8, 5, 3
LENGTHS = torch.tensor([5, 3, 1, 4, 2, 5, 1, 3])
MASK = torch.arange(T)[None, :] < LENGTHS[:, None]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(ours: Any, theirs: Any, tolerance: float = EXACT) -> None:
    torch.testing.assert_close(
        torch.as_tensor(ours, dtype=torch.float64), torch.as_tensor(theirs, dtype=torch.float64),
        atol=tolerance, rtol=tolerance,
    )  # fmt: skip


def true_mask(*values: float) -> tuple[Tensor, Tensor]:
    row = torch.tensor([values])
    return row, torch.ones_like(row, dtype=torch.bool)
