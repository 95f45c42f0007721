"""A tuner from outside the package: a factor per channel on what each feed-forward block gives (as in IA3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align.model.tuners.tuner import Tuner


class Scales(Tuner):
    """Trains the factors of every ``every``-th layer; they start at 1, so that a new role is the base itself."""

    every: int = 1

    def attach(self, model: Any, role: str, folder: Path | None = None) -> Any:
        for layer in model.model.layers[:: self.every]:
            if not hasattr(layer.mlp, "factors"):
                layer.mlp.factors, layer.mlp.role = nn.ParameterDict(), None
                layer.mlp.register_forward_hook(_scaled)
            layer.mlp.factors[role] = nn.Parameter(torch.ones(model.config.hidden_size))
        return model

    def activate(self, model: Any, role: str | None, trainable: bool = False) -> None:
        for layer in model.model.layers[:: self.every]:
            layer.mlp.role = role
            for name, factor in layer.mlp.factors.items():
                factor.requires_grad_(trainable and name == role)

    def parameters(self, model: Any, role: str) -> dict[str, nn.Parameter]:
        layers = enumerate(model.model.layers)
        return {f"layers.{i}.factor": layer.mlp.factors[role] for i, layer in layers if i % self.every == 0}


def _scaled(block: Any, inputs: Any, output: Tensor) -> Tensor:
    return output if block.role is None else output * block.factors[block.role]
