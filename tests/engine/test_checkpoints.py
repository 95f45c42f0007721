"""A damaged checkpoint is known and passed over, and a journal's lost rows are named; neither stops a run for good."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.pairs_run import write_pairs_run
from fixtures.small_trees import ModelFolder
from safetensors.torch import load_file, save_file

from align.core.config import Optim
from align.core.files import read_jsonl
from align.core.hashes import file_hash
from align.core.run_record import RunRecord, read_run
from align.core.runs import Run
from align.engine.checkpoints import load_checkpoint, save_checkpoint
from align.engine.metrics_logger import MetricsLogger
from rewards.run import RewardConfig, reward

STEPS = 12  # of 24 prompts in batches of 4, two epochs; a checkpoint every third step
STOP = 11  # the step that is not logged any more: checkpoints of steps 6 and 9 are there


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, model_folder: ModelFolder) -> dict[str, Any]:
    rows = [(f"is the sky blue {i}", "yes thank you", "no maybe") for i in range(24)]
    pairs = write_pairs_run(tmp_path_factory.mktemp("pairs") / "pairs", {"train": rows, "test": rows[:2]})
    return {
        "pairs": pairs, "policy": model_folder("llama"), "batch": 4, "epochs": 2, "checkpoint_every": 3,
        "optim": Optim(lr=2e-3),
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """The record of the uninterrupted run."""
    return reward(RewardConfig(run=tmp_path_factory.mktemp("whole") / "reward", **settings))


@pytest.fixture(scope="module")
def interrupted(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after step 10."""
    folder = tmp_path_factory.mktemp("interrupted") / "reward"
    log = MetricsLogger.log

    def failing(self: MetricsLogger, step: int, *args: Any) -> None:
        if step == STOP:
            raise KeyboardInterrupt
        log(self, step, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsLogger, "log", failing)
        with pytest.raises(KeyboardInterrupt):
            reward(RewardConfig(run=folder, **settings))
    assert [found.name for found in sorted((folder / "checkpoints").iterdir())] == ["step-00000006", "step-00000009"]
    return folder


@pytest.fixture
def resume(
    settings: dict[str, Any], interrupted: Path, tmp_path: Path
) -> Callable[[Callable[[Path], None]], RunRecord]:
    """Damage a copy of the interrupted run and run the same command again."""

    def build(damage: Callable[[Path], None]) -> RunRecord:
        folder = tmp_path / "reward"
        shutil.copytree(interrupted, folder)
        damage(folder)
        return reward(RewardConfig(run=folder, **settings))

    return build


def steps(record: RunRecord) -> list[int]:
    return [row["step"] for row in read_jsonl(Path(record.path) / "metrics.jsonl")]


def new_notes(record: RunRecord, whole: RunRecord) -> list[str]:
    return [note for note in record.notes if note not in whole.notes]


# --- damage to a checkpoint ---------------------------------------------------------------------------------------

NEWEST, OLDER = "step-00000009", "step-00000006"


def flip(file: Path, where: int) -> None:
    content = bytearray(file.read_bytes())
    content[where] ^= 0x10
    file.write_bytes(bytes(content))


def flip_weight(folder: Path) -> None:
    flip(folder / NEWEST / "tensors.safetensors", -5)


def truncate(folder: Path) -> None:
    file = folder / NEWEST / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def no_tensors(folder: Path) -> None:
    (folder / NEWEST / "tensors.safetensors").unlink()


def empty_state(folder: Path) -> None:
    (folder / NEWEST / "state.json").write_text("")


def no_state(folder: Path) -> None:
    (folder / NEWEST / "state.json").unlink()


def flipped_state(folder: Path) -> None:
    file = folder / NEWEST / "state.json"
    file.write_text(file.read_text().replace('"seconds": ', '"seconds": 1'))


def another_step(folder: Path) -> None:
    shutil.copy(folder / OLDER / "state.json", folder / NEWEST / "state.json")


def unhashed_state(folder: Path) -> None:
    (folder / NEWEST / "state.json").write_text(json.dumps({"step": 9, "seconds": 1.0, "threads": 1}))


def a_list_as_state(folder: Path) -> None:
    (folder / NEWEST / "state.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (flip_weight, "tensors.safetensors is not as it was written"),
        (truncate, "tensors.safetensors is not as it was written"),
        (no_tensors, "tensors.safetensors is not as it was written"),
        (empty_state, "state.json cannot be read"),
        (no_state, "state.json cannot be read"),
        (flipped_state, "state.json is not as it was written"),
        (another_step, "state.json is that of step 6"),
        (unhashed_state, "state.json holds no hash of itself"),
        (a_list_as_state, "state.json holds no hash of itself"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    damage: Callable[[Path], None], problem: str, resume: Callable[..., RunRecord], whole: RunRecord
) -> None:
    record = resume(lambda run: damage(run / "checkpoints"))
    assert record.artefact == whole.artefact and steps(record) == list(range(1, STEPS + 1))
    (note,) = new_notes(record, whole)
    assert note == f"a checkpoint that cannot be used: {NEWEST} ({problem}); the run goes on from step 6"


def test_without_a_whole_checkpoint_the_run_starts_again(resume: Callable[..., RunRecord], whole: RunRecord) -> None:
    def damage(run: Path) -> None:
        for name in (NEWEST, OLDER):
            flip(run / "checkpoints" / name / "tensors.safetensors", -1)

    record = resume(damage)
    assert record.artefact == whole.artefact and steps(record) == list(range(1, STEPS + 1))
    (note,) = new_notes(record, whole)
    assert NEWEST in note and OLDER in note and note.endswith("; the run starts again")


def test_what_a_kill_left_half_done_is_no_checkpoint(resume: Callable[..., RunRecord], whole: RunRecord) -> None:
    def leave(run: Path) -> None:
        writing = run / "checkpoints" / "writing"
        writing.mkdir()
        (writing / "tensors.safetensors").write_bytes(b"half")
        (run / "checkpoints" / "step-notes").mkdir()

    record = resume(leave)
    assert record.artefact == whole.artefact and new_notes(record, whole) == []


def rewritten(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """A whole checkpoint with other tensors: what other code would have written."""
    tensors = change(load_file(folder / "tensors.safetensors"))
    save_file(tensors, folder / "tensors.safetensors")
    record = RunRecord(id="x", stage="x", status="running", path=str(folder.parent), seed=0, given={}, resolved={})
    state = json.loads((folder / "state.json").read_text())
    assert state["files"] != {"tensors.safetensors": file_hash(folder / "tensors.safetensors")}
    shutil.rmtree(folder)
    save_checkpoint(Run(record), state["step"], tensors, seconds=state["seconds"])
    written = folder.parent / "checkpoints" / folder.name
    shutil.copytree(written, folder)
    shutil.rmtree(written.parent)
    (folder.parent / "run.json").unlink()


def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("weight.", "tensor."): value for name, value in tensors.items()}


def fewer(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tensors.items() if not name.startswith("exp_avg_sq")}


def reshaped(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: value[..., :1].contiguous() if value.ndim == 2 else value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("change", "problem"),
    [(renamed, "which this run does not train"), (fewer, "it lacks the weight or a moment"), (reshaped, "the shape")],
)
def test_a_checkpoint_of_other_code_is_passed_over(
    change: Callable[..., dict[str, Any]], problem: str, resume: Callable[..., RunRecord], whole: RunRecord
) -> None:
    record = resume(lambda run: rewritten(run / "checkpoints" / NEWEST, change))
    assert record.artefact == whole.artefact
    (note,) = new_notes(record, whole)
    assert problem in note and note.endswith("the run goes on from step 6")


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    record = RunRecord(id="x", stage="x", status="running", path=str(tmp_path), seed=0, given={}, resolved={})
    run = Run(record)
    for step in (5, 10, 15):
        save_checkpoint(run, step, {"w": torch.full((2,), float(step))}, seconds=1.0, policy_steps=2 * step)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000015"]
    found = load_checkpoint(run, lambda checkpoint: None)
    assert found is not None and found.step == 15 and found.state["policy_steps"] == 30
    assert torch.equal(found.tensors["w"], torch.full((2,), 15.0))
    save_checkpoint(run, 10, {"w": torch.zeros(2)}, seconds=1.0)  # a run that went back overwrites what lay ahead
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000010"]


# --- damage to a journal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"step": 3, "lo', "not JSON"), (b"\xff\xfe", "not JSON"), (b'{"loss": 0.7}', "no step"), (b"3", "no step"),
        (b'{"step": "3"}', "no step"), (b'{"step": true}', "no step"),
    ],
)  # fmt: skip
def test_rows_of_a_journal_that_are_lost_are_named(
    line: bytes, why: str, resume: Callable[..., RunRecord], whole: RunRecord
) -> None:
    def damage(run: Path) -> None:
        lines = (run / "metrics.jsonl").read_bytes().split(b"\n")
        lines[2] = line
        (run / "metrics.jsonl").write_bytes(b"\n".join(lines))

    record = resume(damage)
    assert record.artefact == whole.artefact
    assert steps(record) == [1, 2, *range(4, STEPS + 1)]
    assert new_notes(record, whole) == [
        f"metrics.jsonl: 1 lines cannot be read and are dropped: line 3 ({why})",
        "metrics.jsonl: rows of 1 steps are lost: 3",
    ]


def test_a_journal_that_lost_its_end_is_told(resume: Callable[..., RunRecord], whole: RunRecord) -> None:
    """As after a power cut: the checkpoint reached the disk, the last rows of the journal did not."""

    def damage(run: Path) -> None:
        lines = (run / "metrics.jsonl").read_bytes().split(b"\n")
        (run / "metrics.jsonl").write_bytes(b"\n".join(lines[:7]) + b"\n")

    record = resume(damage)
    assert steps(record) == [*range(1, 8), *range(10, STEPS + 1)]
    assert new_notes(record, whole) == ["metrics.jsonl: rows of 2 steps are lost: 8, 9"]


def test_a_row_that_will_be_written_again_is_no_loss(resume: Callable[..., RunRecord], whole: RunRecord) -> None:
    record = resume(lambda run: None)
    assert new_notes(record, whole) == [] and steps(record) == list(range(1, STEPS + 1))
    assert read_run(Path(record.path)).headline["accuracy"] == whole.headline["accuracy"]
