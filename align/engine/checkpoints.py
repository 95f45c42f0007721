"""Checkpoints from which a run resumes bit-equal: tensors and numbers, in safetensors and JSON.

``checkpoints/step-N`` is written under another name and renamed; the last two are kept. ``state.json`` holds a hash of
every other file and of itself, so a damaged checkpoint is detected: the run resumes from the one before it, or starts
again, and notes which in its record. Not here: what a stage puts into a checkpoint (``loop.py``).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from align.core.files import cut_jsonl, write_bytes, write_json
from align.core.hashes import file_hash
from align.core.runs import Run

KEPT = 2
TENSORS, STATE = "tensors.safetensors", "state.json"
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"


class Checkpoint(NamedTuple):
    """The state of an interrupted run: steps done, tensors by name, and numbers (among them its seconds)."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class _DamagedCheckpoint(Exception):
    """Raised with the reason why a checkpoint cannot be used."""


def save_checkpoint(run: Run, step: int, tensors: Mapping[str, Tensor], *, seconds: float, **state: Any) -> None:
    """Write ``checkpoints/step-N``, keep one checkpoint before it, and save the record of the run."""
    run.save()
    if not run.is_main:
        return
    folder = run.path / "checkpoints"
    aside = folder / "writing"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write_bytes(aside / TENSORS, save({name: t.cpu().contiguous() for name, t in tensors.items()}))
    numbers = {"step": step, "seconds": seconds, "threads": torch.get_num_threads(), **state}
    numbers["files"] = {TENSORS: file_hash(aside / TENSORS)}
    write_json(aside / STATE, numbers | {"sha256": _hash(numbers)})
    target = folder / f"step-{step:08d}"
    shutil.rmtree(target, ignore_errors=True)
    os.replace(aside, target)
    older = [folder for folder in _folders(run) if _step(folder) < step]
    for folder in _folders(run):
        if folder != target and folder not in older[: KEPT - 1]:
            shutil.rmtree(folder, ignore_errors=True)


def load_checkpoint(run: Run, misfit: Callable[[Checkpoint], str | None]) -> Checkpoint | None:
    """Load the newest usable checkpoint and cut metrics and samples back to it; None where the run starts at step 0.

    Args:
        misfit: gives the reason why an undamaged checkpoint does not fit this stage, or None.
    """
    refused: list[str] = []
    checkpoint = None
    for folder in _folders(run):
        try:
            checkpoint = _read(folder)
            if reason := misfit(checkpoint):
                raise _DamagedCheckpoint(reason)
            break
        except _DamagedCheckpoint as problem:
            refused.append(f"{folder.name} ({problem})")
            checkpoint = None
    if refused:
        goes_on = f"goes on from step {checkpoint.step}" if checkpoint else "starts again"
        run.note(f"a checkpoint that cannot be used: {', '.join(refused)}; the run {goes_on}")
    if checkpoint and checkpoint.state["threads"] != torch.get_num_threads():
        run.note(
            f"resumed at step {checkpoint.step} with {torch.get_num_threads()} threads instead of "
            f"{checkpoint.state['threads']}: the result may differ in its last bits"
        )
    if run.is_main:
        _cut_logs(run, checkpoint.step if checkpoint else -1)
    return checkpoint


def _folders(run: Run) -> list[Path]:
    """Return the checkpoints of a run, the newest first."""
    folders = [path for path in (run.path / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(folders, key=_step, reverse=True)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _read(folder: Path) -> Checkpoint:
    """Read a checkpoint; raises _DamagedCheckpoint if a file is not as it was written."""
    try:
        state = json.loads((folder / STATE).read_bytes())
    except (OSError, ValueError, RecursionError):
        raise _DamagedCheckpoint(f"{STATE} cannot be read") from None
    own = state.pop("sha256", None) if isinstance(state, dict) else None
    if own is None:
        raise _DamagedCheckpoint(f"{STATE} holds no hash of itself")
    if own != _hash(state):
        raise _DamagedCheckpoint(f"{STATE} is not as it was written")
    if state["step"] != _step(folder):
        raise _DamagedCheckpoint(f"{STATE} is that of step {state['step']}")
    for name, digest in state["files"].items():
        try:
            whole = file_hash(folder / name) == digest
        except OSError:
            whole = False
        if not whole:
            raise _DamagedCheckpoint(f"{name} is not as it was written")
    try:
        tensors = load_file(str(folder / TENSORS))
    except (OSError, SafetensorError) as error:
        raise _DamagedCheckpoint(f"{TENSORS} cannot be read: {error}") from None
    return Checkpoint(state["step"], tensors, state)


def _hash(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _cut_logs(run: Run, step: int) -> None:
    """Cut metrics and samples back to a step, and note the rows up to it that are lost."""
    for name in (METRICS, SAMPLES):
        steps, unreadable = cut_jsonl(run.path / name, step)
        if step < 0:
            continue  # the run starts again and writes every row
        if unreadable:
            run.note(f"{name}: {len(unreadable)} lines cannot be read and are dropped: {', '.join(unreadable)}")
        missing = sorted(set(range(1, step + 1)) - set(steps)) if name == METRICS else []
        if missing:
            run.note(f"{name}: rows of {len(missing)} steps are lost: {', '.join(map(str, missing))}")
