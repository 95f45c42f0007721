"""TRL's SFTTrainer with a token budget per forward pass, and with this package's metrics and checkpoints.

A batch larger than the budget is computed in parts, and each part's loss is divided by the tokens of the whole batch,
so the sum of the gradients is that of the whole batch. TRL's head computes log-probabilities in tiles, so the logits of
a part are never in memory. An interrupted run resumes bit-equal: the trainer skips the batches that were done, and
:class:`Progress` restores weights, moments, schedule and random state. Not here: making the rows; several processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState
from trl import SFTTrainer

from align.core.runs import Run
from align.engine.checkpoints import Checkpoint, save_checkpoint
from align.engine.metrics_logger import MetricsLogger
from align.engine.optimizer import adamw_tensors, misfit, restore_adamw
from align.engine.samples import SampleLogger

CPU, CUDA = "rng.cpu", "rng.cuda"  # a base model with dropout draws from these
SCHEDULE = ("last_epoch", "_step_count", "_last_lr")


class StepPlan(NamedTuple):
    """The number of steps per epoch, in total, and between two checkpoints."""

    steps_per_epoch: int
    steps: int
    checkpoint_every: int


class BudgetedTrainer(SFTTrainer):
    """SFTTrainer whose forward passes have at most ``max_tokens`` cells (``R x L``), or one longer row.

    TRL converts the adapter of a quantised base to bf16, whose precision is too low for most updates; here the adapter
    keeps its own dtype.
    """

    def __init__(self, *, model: Any, max_tokens: int, **arguments: Any) -> None:
        adapter = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
        super().__init__(model=model, **arguments)
        for name, parameter in model.named_parameters():
            if name in adapter:
                parameter.data = adapter[name]
        self.max_tokens = max_tokens

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Accumulate the gradient of a batch part by part; returns the sum of the losses of the parts."""
        n_tokens = inputs["labels"][:, 1:].ne(-100).sum() if num_items_in_batch is None else num_items_in_batch
        step = super().training_step
        return torch.stack([step(model, part, n_tokens) for part in split(inputs, self.max_tokens)]).sum()

    def go_on(self, folder: Path, step: int) -> None:
        """Train from step ``step + 1`` on; the trainer reads that number from a file that is written to ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        state = TrainerState(
            global_step=step,
            logging_steps=self.args.logging_steps,
            train_batch_size=self.args.per_device_train_batch_size,
        )
        state.save_to_json(str(folder / "trainer_state.json"))
        self.train(resume_from_checkpoint=str(folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Do nothing: :class:`Progress` restores the weights together with the moments of the optimiser."""


def split(inputs: Mapping[str, Tensor], max_tokens: int) -> list[dict[str, Tensor]]:
    """Split a right-padded batch into parts of at most ``max_tokens`` cells, longest rows first, without extra padding.

    A batch that fits is returned unchanged.
    """
    n_rows, longest = inputs["input_ids"].shape
    if n_rows * longest <= max_tokens:
        return [dict(inputs)]
    lengths = inputs["attention_mask"].sum(1)
    order_R = lengths.argsort(descending=True, stable=True)
    parts = []
    while len(order_R):
        length = int(lengths[order_R[0]])
        size = max(1, max_tokens // length)
        parts.append({name: value[order_R[:size], :length] for name, value in inputs.items()})
        order_R = order_R[size:]
    return parts


def misfit_of(parameters: Mapping[str, nn.Parameter], checkpoint: Checkpoint) -> str | None:
    """Return the reason why a checkpoint does not fit this trainer, or None."""
    if CPU not in checkpoint.tensors or set(checkpoint.state.get("schedule", ())) != set(SCHEDULE):
        return "it holds no random state or no schedule"
    return misfit(parameters, {name: t for name, t in checkpoint.tensors.items() if name not in (CPU, CUDA)})


class Progress(TrainerCallback):
    """Logs the trainer's metrics and periodic samples, and saves and restores checkpoints."""

    def __init__(
        self, run: Run, metrics: MetricsLogger, samples: SampleLogger, plan: StepPlan, resumed: Checkpoint | None
    ) -> None:
        self.run, self.metrics, self.samples, self.plan, self.resumed = run, metrics, samples, plan, resumed
        self.parameters = samples.model.parameters("policy")

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **_: Any
    ) -> None:
        if self.resumed:
            restore_adamw(self.parameters, optimizer, self.resumed.tensors)
            lr_scheduler.load_state_dict(lr_scheduler.state_dict() | self.resumed.state["schedule"])
            for group, rate in zip(optimizer.param_groups, lr_scheduler.get_last_lr(), strict=True):
                group["lr"] = rate

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Restore the random state here after a checkpoint at an epoch's end: the start of an epoch draws a number."""
        if self.resumed and self.resumed.step % self.plan.steps_per_epoch == 0:
            self._restore_random_state(self.resumed)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.resumed:
            self._restore_random_state(self.resumed)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.samples.every == 0 or state.global_step == self.plan.steps:
            self.samples.log(state.global_step, self.metrics)
            self.samples.model.set_active("policy")

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: Any = None,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **_: Any,
    ) -> None:
        names = {"loss": "loss", "learning_rate": "lr", "grad_norm": "grad_norm"}
        metrics = {name: float(logs[key]) for key, name in names.items() if key in (logs or {})}
        if "loss" not in metrics:
            return
        step = int(state.global_step)
        self.metrics.log(step, metrics, ["loss"])
        if step % self.plan.checkpoint_every == 0 and step < self.plan.steps:
            schedule = lr_scheduler.state_dict()
            save_checkpoint(
                self.run,
                step,
                adamw_tensors(self.parameters, optimizer) | _random_state(),
                seconds=self.metrics.seconds,
                schedule={name: schedule[name] for name in SCHEDULE},
            )

    def _restore_random_state(self, checkpoint: Checkpoint) -> None:
        torch.set_rng_state(checkpoint.tensors[CPU])
        if CUDA in checkpoint.tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(checkpoint.tensors[CUDA])
        self.resumed = None  # from here on the random numbers are the run's own


def _random_state() -> dict[str, Tensor]:
    state = {CPU: torch.get_rng_state()}
    return state | {CUDA: torch.cuda.get_rng_state()} if torch.cuda.is_available() else state
