"""Checkpoints from which a run goes on to the bit: tensors and numbers, in safetensors and JSON.

``checkpoints/step-N`` is written aside and renamed; the last two are kept. ``state.json`` holds a hash of every other
file and of itself, so a damaged checkpoint is known: the one before it is used, or the run starts again, and its
record says which. Not here: what a stage puts into a checkpoint (``loop.py``).
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
    """Where an interrupted run stood: steps done, tensors by name, and numbers (among them its seconds)."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class _Damaged(Exception):
    """Why a checkpoint cannot be used."""


def save_checkpoint(run: Run, step: int, tensors: Mapping[str, Tensor], *, seconds: float, **state: Any) -> None:
    """Write ``checkpoints/step-N`` aside and rename it, and keep one before it; the record is brought up to date."""
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
    older = [found for found in _folders(run) if _step(found) < step]
    for found in _folders(run):
        if found != target and found not in older[: KEPT - 1]:
            shutil.rmtree(found, ignore_errors=True)


def load_checkpoint(run: Run, misfit: Callable[[Checkpoint], str | None]) -> Checkpoint | None:
    """The newest checkpoint that is whole and fits, the journals cut back to it; None where the run starts afresh.

    Args:
        misfit: why a whole checkpoint is not one of this stage as it is now, or None.
    """
    refused: list[str] = []
    found = None
    for folder in _folders(run):
        try:
            found = _read(folder)
            if reason := misfit(found):
                raise _Damaged(reason)
            break
        except _Damaged as problem:
            refused.append(f"{folder.name} ({problem})")
            found = None
    if refused:
        goes_on = f"goes on from step {found.step}" if found else "starts again"
        run.note(f"a checkpoint that cannot be used: {', '.join(refused)}; the run {goes_on}")
    if found and found.state["threads"] != torch.get_num_threads():
        run.note(
            f"resumed at step {found.step} with {torch.get_num_threads()} threads instead of {found.state['threads']}: "
            "the result may differ in its last bits"
        )
    if run.is_main:
        _cut_journals(run, found.step if found else -1)
    return found


def _folders(run: Run) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    found = [path for path in (run.path / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=_step, reverse=True)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _read(folder: Path) -> Checkpoint:
    """A checkpoint whose files are those that were written; _Damaged says what is not."""
    try:
        state = json.loads((folder / STATE).read_bytes())
    except (OSError, ValueError, RecursionError):
        raise _Damaged(f"{STATE} cannot be read") from None
    own = state.pop("sha256", None) if isinstance(state, dict) else None
    if own is None:
        raise _Damaged(f"{STATE} holds no hash of itself")
    if own != _hash(state):
        raise _Damaged(f"{STATE} is not as it was written")
    if state["step"] != _step(folder):
        raise _Damaged(f"{STATE} is that of step {state['step']}")
    for name, digest in state["files"].items():
        try:
            whole = file_hash(folder / name) == digest
        except OSError:
            whole = False
        if not whole:
            raise _Damaged(f"{name} is not as it was written")
    try:
        tensors = load_file(str(folder / TENSORS))
    except (OSError, SafetensorError) as error:
        raise _Damaged(f"{TENSORS} cannot be read: {error}") from None
    return Checkpoint(state["step"], tensors, state)


def _hash(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _cut_journals(run: Run, step: int) -> None:
    """Cut the journals back to a step, and name the rows up to it that are lost for good."""
    for name in (METRICS, SAMPLES):
        steps, unreadable = cut_jsonl(run.path / name, step)
        if step < 0:
            continue  # every row will be written again
        if unreadable:
            run.note(f"{name}: {len(unreadable)} lines cannot be read and are dropped: {', '.join(unreadable)}")
        missing = sorted(set(range(1, step + 1)) - set(steps)) if name == METRICS else []
        if missing:
            run.note(f"{name}: rows of {len(missing)} steps are lost: {', '.join(map(str, missing))}")
