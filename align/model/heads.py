"""Heads on the last hidden states: the scalar head of a reward or value model, and a model's own output head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align.core.config import BadInput
from align.model.weights import load_tensors, refuse_not_finite


class ScalarHead(nn.Module):
    """A linear map from a hidden state to one number, in fp32: ``weight . h + bias``, initialised with zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states ``(..., D)`` to numbers ``(...)``."""
        return self.linear(hidden.float())[..., 0]

    def load(self, folder: Path, base: Path) -> None:
        """Load the weights from ``folder/head.safetensors``.

        Raises:
            BadInput: the file is missing, is not that of a head on ``base``, or holds a number that is not finite.
        """
        file = folder / "head.safetensors"
        if not file.is_file():
            raise BadInput(f"{file}: missing; a reward model is an adapter and its head")
        tensors, wanted = load_tensors(file), self.linear.state_dict()
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        if shapes != {name: list(tensor.shape) for name, tensor in wanted.items()}:
            raise BadInput(
                f"{file}: holds {shapes or 'nothing'}, but a head on {base} is a weight of "
                f"{list(wanted['weight'].shape)} and a bias of [1]; name its own base, or train it again"
            )
        refuse_not_finite(file, tensors.items())
        self.linear.load_state_dict(tensors)


def trunk_of(model: Any) -> Any:
    """Return a causal model without its head; in some models (Llama 4) the stated prefix is not the trunk's name."""
    return getattr(model, model.base_model_prefix, None) or model.model


@torch.no_grad()
def head_is_plain(model: Any, ids: list[int]) -> bool:
    """Return whether the output embedding alone gives the logits (no scale, no cap), tested on one row of ids."""
    row = torch.tensor([ids], device=model.device)
    hidden = trunk_of(model)(input_ids=row, use_cache=False).last_hidden_state
    plain = model.get_output_embeddings()(hidden).float()
    return bool(torch.equal(plain, model(input_ids=row, use_cache=False).logits.float()))


def model_head(model: Any, hidden_ND: Tensor) -> Tensor:
    """Logits ``(N, V)`` by the model's own forward pass, in which ``hidden_ND`` replaces the trunk's output."""
    handle = trunk_of(model).register_forward_hook(lambda module, args, output: _replaced(output, hidden_ND[None]))
    try:
        one = torch.zeros(1, 1, dtype=torch.long, device=hidden_ND.device)
        return model(input_ids=one, use_cache=False).logits[0].float()
    finally:
        handle.remove()


def _replaced(output: Any, hidden: Tensor) -> Any:
    output.last_hidden_state = hidden
    return output
