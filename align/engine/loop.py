"""What every training loop shares: the optimiser step, which resumes to the bit, and the journal.

A step's loss is a sum over its packed_batches divided by a denominator known beforehand, so gradients add up, in
one process or in several: processes take every n-th prompt and sum their gradients once a step in one flat
all-reduce. Adapters are not wrapped in DDP (two roles' backward passes break it). Everything random is seeded
by its place, so tensors and numbers are all that a checkpoint needs to hold (``checkpoints.py``).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from tqdm import tqdm

from align.core.config import BadInput, NotFinite, Optim
from align.core.runs import Run
from align.engine.checkpoints import Checkpoint

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps for a parameter


class Distributed:
    """This process's place among its siblings; alone, every method is the identity.

    ``device`` is where the stage's model lives: it decides what the siblings talk over (NCCL or gloo).
    """

    def __init__(self, device: torch.device) -> None:
        self.state = PartialState(cpu=device.type == "cpu")
        self.index, self.count = self.state.process_index, self.state.num_processes

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This process's part of a step's items."""
        return list(items[self.index :: self.count])

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over processes, in float64."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.state.device)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()

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


class RoleOptimizer:
    """AdamW over one role's tensors with a warm-up and a schedule set by step number."""

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
        """Learning rate of the step about to be taken."""
        warmup = math.ceil(self.optim.warmup * self.steps)
        if self.done < warmup:
            return self.optim.lr * (self.done + 1) / warmup
        progress = (self.done - warmup) / max(1, self.steps - warmup)
        factor = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
        return self.optim.lr * max(0.0, factor[self.optim.schedule])

    def step(self) -> dict[str, float]:
        """Sum gradients over processes, clip, update, clear.

        Raises:
            NotFinite: the gradient is not finite; the weights are as they were.
        """
        self.processes.sum_gradients(self.parameters.values())
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.optim.max_grad_norm))
        if not math.isfinite(norm):
            raise NotFinite(f"step {self.done + 1}: the gradient is not finite; lower optim.lr or look at the data")
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
        """Why a checkpoint's tensors are not those of this optimiser, or None where they are."""
        return misfit(self.parameters, tensors)

    def restore(self, tensors: Mapping[str, Tensor], done: int) -> None:
        """Put weights, moments and the step count back."""
        restore_adamw(self.parameters, self.adamw, tensors)
        self.done = done


def adamw_tensors(parameters: Mapping[str, nn.Parameter], adamw: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and AdamW's moments by name; a tensor that never had a gradient has no moments."""
    found = {f"weight.{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        state = adamw.state.get(parameter, {})
        found |= {f"{key}.{name}": torch.as_tensor(value) for key, value in state.items()}
    return found


def restore_adamw(
    parameters: Mapping[str, nn.Parameter], adamw: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`adamw_tensors` gave."""
    is_fused = bool(adamw.param_groups[0].get("fused"))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight.{name}"])
            moments = {key: tensors[f"{key}.{name}"].clone() for key in MOMENTS if f"{key}.{name}" in tensors}
            if moments:
                on_device = MOMENTS if is_fused else MOMENTS[1:]  # AdamW counts its steps on the CPU unless it is fused
                moved = {key: value.to(parameter.device) for key, value in moments.items() if key in on_device}
                adamw.state[parameter] = moments | moved


def misfit(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> str | None:
    """The first way in which stored tensors are not the weights and moments of these parameters, or None."""
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


class MetricsLogger:
    """metrics.jsonl, the progress bar, the tracker and the clock of a run."""

    def __init__(self, run: Run, total: int, tracker: str, resumed: Checkpoint | None = None) -> None:
        self.run = run
        self._started = time.monotonic() - (resumed.state["seconds"] if resumed else 0.0)
        start = resumed.step if resumed else 0
        self.tracker = _tracker(tracker, run) if run.is_main else None
        self.bar = tqdm(
            total=total, initial=start, desc=run.record.stage, unit="step", disable=not run.is_main, mininterval=0.5
        )

    @property
    def seconds(self) -> float:
        """Time spent on the steps that count, also by those before an interruption."""
        return round(time.monotonic() - self._started, 2)

    def log(self, step: int, metrics: Mapping[str, float | int | None], show: Sequence[str] = ()) -> None:
        """Write one step's numbers.

        Raises:
            NotFinite: a number is NaN or infinite, named with its step.
        """
        for name, value in metrics.items():
            if value is not None and not math.isfinite(value):
                raise NotFinite(f"step {step}: {name} is {value}; lower the learning rate or look at the data")
        self.run.append("metrics.jsonl", [{"step": step, **metrics}])
        if self.tracker is not None:
            self.tracker.log({name: value for name, value in metrics.items() if value is not None}, step=step)
        self.bar.set_postfix({name: f"{metrics[name]:.3f}" for name in show if metrics.get(name) is not None})
        self.bar.update(step - self.bar.n)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append looks at the watched prompts; a tracker that takes tables gets them as one."""
        self.run.append("samples.jsonl", [{"step": step, **row} for row in rows])
        if self.tracker is not None and rows:
            _log_table(self.tracker, rows, step)

    def close(self) -> None:
        self.bar.close()
        if self.tracker is not None:
            self.tracker.finish()


def epochs(n: int, batch: int, n_epochs: int, seed: int) -> list[list[int]]:
    """Batches of indices: every epoch a permutation of its own, the last batch of an epoch may be short."""
    batches = []
    for epoch in range(n_epochs):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(n, generator=generator).tolist()
        batches += [order[start : start + batch] for start in range(0, n, batch)]
    return batches


def stage_seed(seed: int, stage: str) -> int:
    """A 31-bit seed for what a stage draws at its start (a fresh adapter, an order), from sha256(seed, stage)."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{stage}".encode()).digest()[:4], "big") >> 1


def _tracker(name: str, run: Run) -> Any:
    """An Accelerate tracker by the name the user typed."""
    if name == "none":
        return None
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    try:
        kind = LOGGER_TYPE_TO_CLASS[name]
        folder = {"logging_dir": str(run.path / "tracker")} if kind.requires_logging_directory else {}
        tracker = kind(run_name=f"align-{run.record.stage}", **folder)
        tracker.start()
    except (ImportError, KeyError, AttributeError, NameError) as error:
        raise BadInput(f"tracker: {name} is not installed ({error}); install it or set tracker: none") from error
    tracker.store_init_configuration({"run": str(run.path), "seed": run.record.seed})
    return tracker


def _log_table(tracker: Any, rows: Sequence[Mapping[str, Any]], step: int) -> None:
    if hasattr(tracker, "log_table"):
        columns = list(rows[0])
        tracker.log_table("samples", columns=columns, data=[[row[c] for c in columns] for row in rows], step=step)
        return
    writer = getattr(tracker, "writer", None)
    if writer is not None and hasattr(writer, "add_text"):
        lines = [f"{row.get('prompt', '')}\n\n> {row.get('response', '')}" for row in rows]
        writer.add_text("samples", "\n\n---\n\n".join(lines), step)
