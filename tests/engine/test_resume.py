"""A killed run ends where the uninterrupted one does, and two processes do what one does.

The small pipeline is the pocket recipe with few prompts; every stage runs through the command line.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fixtures.paths import ROOT
from safetensors.torch import load_file

from align.core.run_record import read_run

SMALL = [
    "world.demonstrations=120", "world.prompts=160", "world.held_out_prompts=60", "world.items=60",
    "world.preference_items=30",
    "sft.epochs=1", "sft.checkpoint_every=2", "sample.k=3",
    "reward.epochs=1", "reward.batch=8", "reward.checkpoint_every=2",
    "dpo.epochs=1", "dpo.batch=8", "dpo.checkpoint_every=2", "dpo.watch.every=5",
    "ppo.iterations=8", "ppo.batch=8", "ppo.samples=2", "ppo.minibatches=2", "ppo.checkpoint_every=2",
    "ppo.kl_prompts=8", "ppo.watch.every=3",
]  # fmt: skip
MATRIX = [pytest.param(stage, marks=pytest.mark.matrix) for stage in ("reward", "dpo")]  # ppo has their roles too
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(runs: Path, until: str) -> list[str]:
    recipe = ROOT / "configs" / "pocket" / "recipe.yaml"
    align = [sys.executable, "-m", "align.cli.main", "run", "--config", str(recipe)]
    return [*align, f"runs={runs}", f"until={until}", *SMALL]


def run(runs: Path, until: str) -> None:
    done = subprocess.run(command(runs, until), env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_at(runs: Path, stage: str, step: int) -> None:
    """Start the recipe and SIGKILL it as soon as the stage has logged ``step`` steps."""
    process = subprocess.Popen(
        command(runs, stage), env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while lines(runs / stage / "metrics.jsonl") < step and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, "the stage ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted small pipeline, up to ppo and dpo."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    run(runs, "ppo")
    run(runs, "dpo")
    return runs


def copy_before(whole: Path, target: Path, stage: str) -> Path:
    """A runs folder in which everything before ``stage`` stands finished."""
    shutil.copytree(whole, target, ignore=lambda folder, names: {stage, ".lock"} & set(names))
    return target


@pytest.mark.parametrize("stage", ["sft", *MATRIX, "ppo"])
def test_a_killed_run_ends_as_the_uninterrupted_one(whole: Path, tmp_path: Path, stage: str) -> None:
    runs = copy_before(whole, tmp_path / "runs", stage)
    kill_at(runs, stage, random.randint(3, 6))
    assert read_run(runs / stage).status == "running", "the kill must leave an unfinished run"
    assert list((runs / stage / "checkpoints").glob("step-*")), "nothing to resume from: the test would prove nothing"
    run(runs, stage)
    expected, found = read_run(whole / stage), read_run(runs / stage)
    assert found.artefact == expected.artefact
    assert steps(runs / stage) == steps(whole / stage)
    notes = [note.replace(str(runs), str(whole)) for note in found.notes]
    assert (found.dropped, notes) == (expected.dropped, expected.notes)
    assert found.seconds and found.seconds > found.headline["train_seconds"] > 0


def launch(stage: str, whole: Path, target: Path, n_processes: int) -> None:
    """One or two steps of a stage in n processes that talk over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = [sys.executable, str(ROOT / "tests" / "fixtures" / "two_processes.py"), stage, str(whole), str(target)]
    processes = []
    for rank in range(n_processes):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n_processes)}
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} if n_processes > 1 else {}
        place = place if n_processes > 1 else {}
        environment = {**ENVIRONMENT, **place, **rendezvous, "ACCELERATE_USE_CPU": "true"}
        processes.append(subprocess.Popen(script, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-2000:]


@pytest.mark.parametrize("stage", [*MATRIX, "ppo"])
def test_two_processes_equal_one(whole: Path, tmp_path: Path, stage: str) -> None:
    launch(stage, whole, tmp_path / "one", 1)
    launch(stage, whole, tmp_path / "two", 2)
    start = load_file(str(whole / "sft" / "adapter" / "adapter_model.safetensors"))
    one = load_file(str(tmp_path / "one" / "adapter" / "adapter_model.safetensors"))
    two = load_file(str(tmp_path / "two" / "adapter" / "adapter_model.safetensors"))
    moved = max(float((one[name] - start[name]).abs().max()) for name in one)
    off = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert moved > 1e-4, "the step must move the weights"
    assert off <= 1e-5
    if stage == "ppo":
        values = [load_file(str(tmp_path / n / "value" / "adapter_model.safetensors")) for n in ("one", "two")]
        assert all(torch.allclose(values[0][name], values[1][name], atol=1e-5, rtol=0) for name in values[0])
