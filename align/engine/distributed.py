"""Data parallelism: the share of the prompts of each process, and sums over all processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn


class Distributed:
    """This process in the group of processes that run a stage; with one process every method is the identity.

    ``device`` is the device of the stage's model; it determines the backend (NCCL or gloo).
    """

    def __init__(self, device: torch.device) -> None:
        self.state = PartialState(cpu=device.type == "cpu")
        self.index, self.count = self.state.process_index, self.state.num_processes

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This process's share of the items of a step."""
        return list(items[self.index :: self.count])

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over processes, in float64."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.state.device)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def gather(self, values: Tensor) -> tuple[Tensor, int]:
        """Return the concatenated values of all processes, and the index at which those of this process start."""
        if self.count == 1:
            return values, 0
        lengths = [int(n) for n in self.sum([float(len(values)) * (i == self.index) for i in range(self.count)])]
        start = sum(lengths[: self.index])
        whole = torch.zeros(sum(lengths), dtype=torch.float32, device=self.state.device)
        whole[start : start + len(values)] = values
        torch.distributed.all_reduce(whole)
        return whole, start

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add gradients over processes in one flat all-reduce; a missing gradient counts as zero."""
        if self.count == 1:
            return
        owned = list(parameters)
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in owned])
        torch.distributed.all_reduce(flat)
        for parameter, part in zip(owned, flat.split([p.numel() for p in owned]), strict=True):
            parameter.grad = part.view_as(parameter)

    def wait(self) -> None:
        self.state.wait_for_everyone()
