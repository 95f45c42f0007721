"""AdamW for the tensors of one role, with its learning-rate schedule, and its state by name for checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from align.core.config import NotFinite, Optim
from align.engine.distributed import Distributed

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # the state of AdamW per parameter


class RoleOptimizer:
    """AdamW for the tensors of one role, with warm-up and a schedule by step number."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], optim: Optim, steps: int, processes: Distributed
    ) -> None:
        self.parameters = dict(sorted(parameters.items()))
        self.optim, self.steps, self.processes = optim, steps, processes
        self.adamw = torch.optim.AdamW(
            self.parameters.values(),
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            foreach=True,
        )
        self.done = 0

    def rate(self) -> float:
        """Return the learning rate of the next step."""
        warmup = math.ceil(self.optim.warmup * self.steps)
        if self.done < warmup:
            return self.optim.lr * (self.done + 1) / warmup
        progress = (self.done - warmup) / max(1, self.steps - warmup)
        factor = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
        return self.optim.lr * max(0.0, factor[self.optim.schedule])

    def step(self) -> dict[str, float]:
        """Sum gradients over processes, clip them, update the weights and clear the gradients.

        Raises:
            NotFinite: the gradient is not finite; the weights are unchanged.
        """
        self.processes.sum_gradients(self.parameters.values())
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.optim.max_grad_norm))
        if not math.isfinite(norm):
            raise NotFinite(f"step {self.done + 1}: the gradient is not finite; lower optim.lr or check the data")
        rate = self.rate()
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        self.done += 1
        return {"grad_norm": norm, "lr": rate}

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimiser moments by name."""
        return adamw_tensors(self.parameters, self.adamw)

    def misfit(self, tensors: Mapping[str, Tensor]) -> str | None:
        """Return the reason why the tensors of a checkpoint do not fit this optimiser, or None."""
        return misfit(self.parameters, tensors)

    def restore(self, tensors: Mapping[str, Tensor], done: int) -> None:
        """Restore weights, moments and the number of steps done."""
        restore_adamw(self.parameters, self.adamw, tensors)
        self.done = done


def adamw_tensors(parameters: Mapping[str, nn.Parameter], adamw: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and moments of AdamW by name; a tensor that never had a gradient has no moments."""
    tensors = {f"weight.{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        state = adamw.state.get(parameter, {})
        tensors |= {f"{key}.{name}": torch.as_tensor(value) for key, value in state.items()}
    return tensors


def restore_adamw(
    parameters: Mapping[str, nn.Parameter], adamw: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Restore weights and moments from the result of :func:`adamw_tensors`."""
    is_fused = bool(adamw.param_groups[0].get("fused"))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight.{name}"])
            moments = {key: tensors[f"{key}.{name}"].clone() for key in MOMENTS if f"{key}.{name}" in tensors}
            if moments:
                on_device = MOMENTS if is_fused else MOMENTS[1:]  # the step count is on the CPU unless AdamW is fused
                moved = {key: value.to(parameter.device) for key, value in moments.items() if key in on_device}
                adamw.state[parameter] = moments | moved


def misfit(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> str | None:
    """Return the first difference between stored tensors and the weights and moments of these parameters, or None."""
    wanted = {f"{key}.{name}": p.shape for name, p in parameters.items() for key in ("weight", *MOMENTS[1:])}
    wanted |= {f"{MOMENTS[0]}.{name}": torch.Size() for name in parameters}
    if unknown := sorted(set(tensors) - set(wanted)):
        return f"it holds {unknown[0]}, which this run does not train"
    for name in parameters:
        here = [key for key in ("weight", *MOMENTS) if f"{key}.{name}" in tensors]
        if here not in (["weight"], ["weight", *MOMENTS]):
            return f"it lacks the weight or a moment of {name}"
    shapes = ((name, tensor.shape, wanted[name]) for name, tensor in sorted(tensors.items()))
    if wrong := next((one for one in shapes if one[1] != one[2]), None):
        return f"{wrong[0]} has the shape {list(wrong[1])} there and {list(wrong[2])} here"
    return None
