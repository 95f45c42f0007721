"""An attention implementation from outside the package: one that adds its mask to the scores."""

from __future__ import annotations

from typing import Any

import torch

from align.model.attention import Attention, allowed
from align.model.packing import PackedBatch


class Added(Attention):
    """Transformers' eager attention with 0 where a token may look, and ``floor`` where it may not."""

    floor: float = -1e30

    def prepare(self, model: Any) -> None:
        model.set_attn_implementation("eager")

    def mask(self, model: Any, packed: PackedBatch) -> Any:
        mask = allowed(packed)
        return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, self.floor)
