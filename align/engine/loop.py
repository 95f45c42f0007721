"""The loop of a training stage: steps that resume bit-equal from a checkpoint, with metrics, samples and checkpoints.

The loss of a step is a sum over its packed batches divided by a denominator known beforehand, so gradients add up, in
one process or in several: of n processes each takes every n-th prompt, and gradients are summed once per step in one
flat all-reduce. Adapters are not wrapped in DDP, which backward passes of two roles break. Every random number is
seeded by its purpose and step, so a checkpoint holds no random state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from align.core.config import Optim, Tracker
from align.core.runs import Run
from align.engine.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from align.engine.distributed import Distributed
from align.engine.metrics_logger import MetricsLogger
from align.engine.optimizer import RoleOptimizer
from align.engine.samples import SampleLogger
from align.model.adapters import AdapterModel
from align.model.open import ModelConfig
from align.model.tuners.tuner import TunerSetting


class TrainingConfig(ModelConfig):
    """Settings of every stage that trains."""

    tuner: TunerSetting | None = Field(
        default=None, description="what is trained: kind: lora, or module:Class; without: as the parent's, or lora"
    )
    checkpoint_every: int = Field(default=20, ge=1, description="steps between two checkpoints")
    tracker: Tracker = Field(default="none", description="also log to tensorboard, wandb, trackio or mlflow")

    @classmethod
    def renamed(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Read the former key ``lora: {...}`` as ``tuner: {kind: lora, ...}``."""
        values = super().renamed(settings)
        lora = values.pop("lora", None)
        if lora is not None and values.get("tuner") is not None:
            raise ValueError("lora and tuner are two names of one setting; write tuner: {kind: lora, ...} alone")
        if isinstance(lora, Mapping):
            values["tuner"] = {"kind": "lora", **lora}
        elif lora is not None:
            values["tuner"] = lora
        elif "lora" in settings:
            values.setdefault("tuner", None)
        return values


class TrainingLoop:
    """The steps of a training run, with one optimiser per trained role.

    With one trained role, a checkpoint holds its tensors by their own names; with several, the role is a prefix of the
    names, and the checkpoint holds the number of updates of each role.

    Args:
        roles: the optimiser settings of each trained role.
        n_steps: total number of steps; each role is updated ``updates`` times per step.
        samples: logs periodic samples, if given.
    """

    def __init__(
        self,
        run: Run,
        config: TrainingConfig,
        model: AdapterModel,
        roles: Mapping[str, Optim],
        n_steps: int,
        *,
        updates: int = 1,
        samples: SampleLogger | None = None,
    ) -> None:
        self.run, self.n_steps, self.checkpoint_every, self.samples = run, n_steps, config.checkpoint_every, samples
        self.processes = Distributed(model.device)
        self.optimizers = {
            role: RoleOptimizer(model.parameters(role), optim, n_steps * updates, self.processes)
            for role, optim in roles.items()
        }
        resumed = load_checkpoint(run, self._misfit)
        self.done = resumed.step if resumed else 0
        if resumed:
            for role, optimizer in self.optimizers.items():
                optimizer.restore(self._part(role, resumed.tensors), resumed.state.get(f"{role}_steps", resumed.step))
        self.metrics = MetricsLogger(run, n_steps, config.tracker, resumed)

    def steps(self) -> Iterator[int]:
        """Yield the numbers of the remaining steps; after each, log samples and save a checkpoint if they are due."""
        if self.done == 0:
            self.log_samples(0)
        for step in range(self.done + 1, self.n_steps + 1):
            yield step
            self.done = step
            if self.samples and (step % self.samples.every == 0 or step == self.n_steps):
                self.log_samples(step)
            if step % self.checkpoint_every == 0 and step < self.n_steps:
                self._save()

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This process's share of the items of a step."""
        return self.processes.share(items)

    def update(self, role: str) -> dict[str, float]:
        """Take an optimiser step on the accumulated gradient of a role; returns its norm and the learning rate."""
        return self.optimizers[role].step()

    def log_samples(self, step: int) -> None:
        """Log the policy's responses to the fixed prompts."""
        if self.samples and self.run.is_main:
            self.samples.log(step, self.metrics)

    def close(self) -> None:
        self.metrics.close()

    def _save(self) -> None:
        tensors = {
            f"{self._prefix(role)}{name}": tensor
            for role, optimizer in self.optimizers.items()
            for name, tensor in optimizer.tensors().items()
        }
        several = self.optimizers if len(self.optimizers) > 1 else {}
        updates = {f"{role}_steps": optimizer.done for role, optimizer in several.items()}
        save_checkpoint(self.run, self.done, tensors, seconds=self.metrics.seconds, **updates)

    def _misfit(self, checkpoint: Checkpoint) -> str | None:
        """Return the reason why a checkpoint does not fit this loop, or None."""
        if len(self.optimizers) > 1 and not {f"{role}_steps" for role in self.optimizers} <= set(checkpoint.state):
            return f"it does not count the steps of {' and '.join(self.optimizers)}"
        reasons = (
            optimizer.misfit(self._part(role, checkpoint.tensors)) for role, optimizer in self.optimizers.items()
        )
        return next((reason for reason in reasons if reason), None)

    def _prefix(self, role: str) -> str:
        return f"{role}/" if len(self.optimizers) > 1 else ""

    def _part(self, role: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        prefix = self._prefix(role)
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def epochs(n: int, batch: int, n_epochs: int, seed: int) -> list[list[int]]:
    """Batches of indices: each epoch has its own permutation, and its last batch may be smaller."""
    batches = []
    for epoch in range(n_epochs):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(n, generator=generator).tolist()
        batches += [order[start : start + batch] for start in range(0, n, batch)]
    return batches
