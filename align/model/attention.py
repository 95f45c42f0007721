"""The extension point for attention: masks of packed batches, in the form that an attention implementation takes.

In: a packed batch, whose tokens belong to nodes of a tree that are entered and left in order. Out: the model's
``attention_mask``. :class:`Dense` gives boolean masks (SDPA) or additive ones (eager). Not here: block masks, with
which only CUDA can train; they are another :class:`Attention`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any

import torch
from pydantic import AfterValidator
from torch import Tensor

from align.core.config import BadInput, Compute
from align.core.plugins import Part, Seam, choose
from align.model.packing import PackedBatch

ATTENTION = Seam("attention", {"dense": "align.model.attention:Dense"})


class Attention(Part):
    """An attention implementation."""

    def prepare(self, model: Any) -> None:
        """Switch a loaded model to this implementation; by default it stays as transformers loads it."""

    @abstractmethod
    def mask(self, model: Any, packed: PackedBatch) -> Any:
        """Return the ``attention_mask`` of ``model`` for a packed tree."""


def choose_attention(given: Any) -> Attention:
    """Return the attention implementation that ``compute.attention`` names; None: dense.

    Raises:
        BadInput: there is none of this kind, or it refuses its settings.
    """
    try:
        return choose(ATTENTION, Attention, given or "dense")
    except ValueError as error:
        raise BadInput(f"compute.attention: {error}") from error


def _attention_can_be_chosen(compute: Compute) -> Compute:
    if compute.attention is not None:
        choose(ATTENTION, Attention, compute.attention)
    return compute


ComputeSetting = Annotated[Compute, AfterValidator(_attention_can_be_chosen)]


class Dense(Attention):
    """A dense mask ``(R, 1, L, L)``, with one per layer type where the types differ."""

    kind: str = "dense"

    def mask(self, model: Any, packed: PackedBatch) -> Any:
        config = model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True) is False:
            window = None
        layer_types = set(getattr(config, "layer_types", None) or ())
        if layer_types and not layer_types & {"sliding_attention", "chunked_attention"}:
            window = None  # configured, but no layer uses it
        if window is None:
            return _as_taken(model, allowed(packed))
        if not layer_types:
            return _as_taken(model, allowed(packed, window))
        whole, near = _as_taken(model, allowed(packed)), _as_taken(model, allowed(packed, window))
        return {"full_attention": whole, "sliding_attention": near}


DENSE = Dense()


def allowed(packed: PackedBatch, window: int | None = None) -> Tensor:
    """Boolean mask ``(R, 1, L, L)``: True where a query (third axis) may attend to a key (last axis).

    A node enters at ``enter`` and leaves at ``leave``; k is an ancestor of q, or q's own node, exactly when
    ``enter[k] <= enter[q] < leave[k]``. ``window`` limits the distance in positions.
    """
    enter_q, enter_k = packed.enter_RL[:, :, None], packed.enter_RL[:, None, :]
    leave_k = packed.leave_RL[:, None, :]
    column = torch.arange(packed.tokens_RL.shape[1], device=packed.tokens_RL.device)
    mask = (enter_k <= enter_q) & (enter_q < leave_k) & (column[None, :] <= column[:, None])
    if window is not None:
        mask &= packed.positions_RL[:, :, None] - packed.positions_RL[:, None, :] < window
    return mask[:, None]


def _as_taken(model: Any, mask: Tensor) -> Tensor:
    """Return the mask in the model's form: boolean for SDPA; 0 and the least number for eager, which adds it."""
    if model.config._attn_implementation != "eager":
        return mask
    dtype = next(model.parameters()).dtype
    lowest = torch.finfo(dtype).min
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, lowest)
