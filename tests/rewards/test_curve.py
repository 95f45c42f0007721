"""The learning curve of a reward model: nested shares, the same training, and a kill that changes nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.paths import ROOT

from align.audit import training_curves
from align.core.config import BadInput, Optim
from align.core.files import read_jsonl, write_json, write_jsonl
from align.core.hashes import artefact_hash
from align.core.records import Pair, prompt_id
from align.core.run_record import RunRecord, read_run
from align.core.runs import Run
from align.data.pairs import PromptPairs
from align.engine.metrics_logger import MetricsLogger
from align.model.packing import Tree
from rewards import learning_curve
from rewards.run import RewardConfig, reward

STEPS = {"1/8": 4, "1/4": 6, "1/2": 10, "1": 20}  # of 5, 10, 20 and 40 prompts, batches of 4, two epochs

MISLABELLED = 8


def pair(prompt: str, better: str, worse: str) -> Pair:
    messages = [{"role": "user", "content": prompt}]
    return Pair(
        prompt=messages, chosen=[{"role": "assistant", "content": better}], votes=[1, 0, 0],
        rejected=[{"role": "assistant", "content": worse}], comparison_id=f"{prompt}{better}{worse}",
        prompt_id=prompt_id(messages),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pairs run: "yes" is better than "no"; of the first held-out prompts' labels the second is wrong."""
    folder = tmp_path_factory.mktemp("pairs") / "pairs"
    for split, count in (("train", 40), ("validation", 0), ("test", 24)):
        prompts = [f"{split} is the sky blue {i}" for i in range(count)]
        write_jsonl(
            folder / f"{split}.jsonl",
            [
                pair(prompt, better, worse).model_dump()
                for i, prompt in enumerate(prompts)
                for better, worse in (
                    ("yes thank you", "no maybe"),
                    ("no red", "yes") if split == "test" and i < MISLABELLED else ("yes", "no red"),
                )
            ],
        )
    record = RunRecord(
        id="pairs", stage="pairs", status="finished", path=str(folder), seed=0, given={}, resolved={},
        artefact=artefact_hash(folder),
    )  # fmt: skip
    write_json(folder / "run.json", record.model_dump())
    return folder


@pytest.fixture(scope="module")
def settings(pairs: Path, model_folder: Callable[[str], Path]) -> dict[str, Any]:
    return {
        "pairs": pairs, "policy": model_folder("llama"), "batch": 4, "epochs": 2, "checkpoint_every": 2,
        "optim": Optim(lr=2e-3), "curve": True,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "reward"
    reward(RewardConfig(run=folder, **settings))
    return folder


def points(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_jsonl(run / "curve.jsonl")]


def assert_same(run: Path, whole: Path) -> None:
    found, expected = read_run(run), read_run(whole)
    assert found.status == "finished" and found.artefact == expected.artefact
    assert points(run) == points(whole)
    assert (found.notes, found.dropped) == (expected.notes, expected.dropped)
    steps = [[row["step"] for row in read_jsonl(folder / "metrics.jsonl")] for folder in (run, whole)]
    assert steps[0] == steps[1] == list(range(1, STEPS["1"] + 1))
    assert not (run / "checkpoints").exists()


# --- what a curve holds -------------------------------------------------------------------------------------------


def test_the_curve_leaves_the_ordinary_training_as_it_was(
    settings: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    plain = reward(RewardConfig(run=tmp_path / "plain", **settings | {"curve": False}))
    with_curve = read_run(whole)
    assert plain.artefact == with_curve.artefact
    assert not (tmp_path / "plain" / "curve.jsonl").exists()
    same = set(plain.headline) - {"train_seconds"}
    assert {key: with_curve.headline[key] for key in same} == {key: plain.headline[key] for key in same}


def test_a_point_is_what_training_on_its_prompts_alone_gives(
    settings: dict[str, Any], pairs: Path, whole: Path, tmp_path: Path
) -> None:
    """The quarter's prompts as a pairs run of their own, trained from the start: the same model, so the same point."""
    rows = read_jsonl(pairs / "train.jsonl")
    prompts = [PromptPairs(row["prompt_id"], Tree([], []), [], [], []) for row in rows]
    drawn = {prompt.prompt_id for prompt in learning_curve.shares(prompts, 0)["1/4"]}
    (tmp_path / "pairs").mkdir()
    write_jsonl(tmp_path / "pairs" / "train.jsonl", [row for row in rows if row["prompt_id"] in drawn])
    (tmp_path / "pairs" / "test.jsonl").write_bytes((pairs / "test.jsonl").read_bytes())
    alone = reward(RewardConfig(run=tmp_path / "alone", **settings | {"pairs": tmp_path / "pairs", "curve": False}))
    quarter = points(whole)[1]
    assert (quarter["prompts"], quarter["pairs"]) == (10, 20) and alone.headline["train_pairs"] == 20
    assert quarter["accuracy"] == alone.headline["accuracy"]


def test_points_state_their_error_against_held_out_labels(whole: Path) -> None:
    found, headline = points(whole), read_run(whole).headline
    assert [(row["share"], row["prompts"], row["pairs"]) for row in found] == [
        (0.125, 5, 10), (0.25, 10, 20), (0.5, 20, 40), (1.0, 40, 80)
    ]  # fmt: skip
    assert found[-1]["accuracy"] == headline["accuracy"] and isinstance(found[-1]["accuracy"]["n"], int)
    for row in found:
        right = sum(value for value, _ in row["right"].values())
        assert len(row["right"]) == row["accuracy"]["clusters"] == 24
        assert sum(n for _, n in row["right"].values()) == row["accuracy"]["n"] == 48
        assert row["error"] == pytest.approx(1 - right / 48)
        stated = headline[f"error_on_{row['pairs']}_pairs"]
        assert (stated["value"], stated["n"]) == (pytest.approx(row["error"]), 48)
        assert stated["low"] <= stated["value"] <= stated["high"]
        assert stated["low"] == pytest.approx(1 - row["accuracy"]["high"])
    rights = [value for value, _ in found[-1]["right"].values()]  # in the order of the file
    assert sum(rights[:MISLABELLED]) < sum(rights[MISLABELLED : 2 * MISLABELLED])
    assert sum(rights[:MISLABELLED]) < sum(rights[-MISLABELLED:])
    losses = [row["loss"]["value"] for row in found]
    assert losses[-1] < losses[0] < 0.70 and len({json.dumps(row["loss"]) for row in found}) == 4


def test_the_report_draws_the_curve(whole: Path) -> None:
    charts = training_curves.training_charts([training_curves.read_training_run(read_run(whole), "reward")])
    drawn = [chart for chart in charts if "Error against held-out labels" in chart]
    assert len(drawn) == 1 and drawn[0].count("<circle") == 4


def test_without_held_out_pairs_there_is_no_curve(settings: dict[str, Any], pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "train.jsonl").write_bytes((pairs / "train.jsonl").read_bytes())
    (tmp_path / "pairs" / "test.jsonl").write_text("")
    with pytest.raises(BadInput, match="no test pairs"):
        reward(RewardConfig(run=tmp_path / "reward", **settings | {"pairs": tmp_path / "pairs"}))


# --- shares -------------------------------------------------------------------------------------------------------


def prompts_of(count: int, trees_each: int = 1) -> list[PromptPairs]:
    return [PromptPairs(f"p{i}", Tree([], []), [], [], []) for i in range(count) for _ in range(trees_each)]


def test_shares_are_nested_drawn_by_prompt_and_seed_and_not_by_order() -> None:
    train = prompts_of(200, trees_each=2)
    found = learning_curve.shares(train, seed=3)
    ids = {name: {prompt.prompt_id for prompt in subset} for name, subset in found.items()}
    assert {name: len(drawn) for name, drawn in ids.items()} == {"1/8": 25, "1/4": 50, "1/2": 100}
    assert ids["1/8"] < ids["1/4"] < ids["1/2"]
    assert all(len(subset) == 2 * len(ids[name]) for name, subset in found.items()), "all trees of a prompt, or none"
    shuffled = random.Random(0).sample(train, len(train))
    assert {n: {p.prompt_id for p in s} for n, s in learning_curve.shares(shuffled, seed=3).items()} == ids
    assert {p.prompt_id for p in learning_curve.shares(train, seed=4)["1/8"]} != ids["1/8"]
    assert found["1/2"] == [prompt for prompt in train if prompt.prompt_id in ids["1/2"]], "in the order of the file"


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, []), (3, [1, 2]), (4, [1, 2]), (8, [1, 2, 4])])
def test_shares_of_few_prompts_are_told_apart_or_left_out(count: int, sizes: list[int]) -> None:
    assert [len(subset) for subset in learning_curve.shares(prompts_of(count), seed=0).values()] == sizes


def test_a_share_keeps_the_record_of_the_whole_run_up_to_date(tmp_path: Path) -> None:
    """So a kill while a share trains loses no time that was spent."""
    record = RunRecord(
        id="reward", stage="reward", status="running", path=str(tmp_path / "reward"), seed=0, given={}, resolved={}
    )
    part = learning_curve.ShareRun(Run(record), "curve-1-8")
    part.save()
    assert read_run(tmp_path / "reward").seconds is not None and not (part.path / "run.json").exists()


# --- interruptions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logged", [1, 3, 7, 17, 20, 27])
def test_an_interrupted_curve_ends_as_the_uninterrupted_one(
    logged: int, settings: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted at a step counted over all trainings: 4, 6, 10 and 20 of them, with a checkpoint every second."""
    log, count = MetricsLogger.log, 0

    def failing(*args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        if count == logged:
            raise KeyboardInterrupt
        log(*args, **kwargs)

    config = RewardConfig(run=tmp_path / "reward", **settings)
    monkeypatch.setattr(MetricsLogger, "log", failing)
    with pytest.raises(KeyboardInterrupt):
        reward(config)
    reward(config)
    assert_same(config.run, whole)
    assert count <= sum(STEPS.values()) + 1 + 2, "what stood before the last checkpoint is not done again"


def test_a_curve_interrupted_between_two_shares_goes_on(
    settings: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RewardConfig(run=tmp_path / "reward", **settings)
    write = learning_curve.write

    def write_and_stop(*args: Any) -> None:
        write(*args)
        raise KeyboardInterrupt

    for done in (1, 2, 3):
        with monkeypatch.context() as patch:
            patch.setattr(
                learning_curve, "write", write_and_stop
            )  # before the weights are put back and the folder goes
            with pytest.raises(KeyboardInterrupt):
                reward(config)
        assert len(points(config.run)) == done
    reward(config)
    assert_same(config.run, whole)


def test_a_damaged_curve_is_measured_again(
    settings: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RewardConfig(run=tmp_path / "reward", **settings)
    write = learning_curve.write

    def write_and_stop(*args: Any) -> None:
        write(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(learning_curve, "write", write_and_stop)
        with pytest.raises(KeyboardInterrupt):
            reward(config)
    (config.run / "curve.jsonl").write_text('{"share": 0.125, "pro')
    reward(config)
    damaged = [note for note in read_run(config.run).notes if note.endswith("the learning curve starts again")]
    assert len(damaged) == 1 and "curve.jsonl:1" in damaged[0]
    assert read_run(config.run).artefact == read_run(whole).artefact and points(config.run) == points(whole)


def test_a_killed_curve_resumes_to_the_bit(settings: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    """kill -9 of `align reward --curve` while it trains the half."""
    run = tmp_path / "runs" / "reward"
    words = [f"{key}={settings[key]}" for key in ("pairs", "policy", "batch", "epochs", "checkpoint_every")]
    process = subprocess.Popen(
        [sys.executable, "-m", "align.cli.main", "reward", f"run={run}", *words, "optim.lr=2e-3", "--curve"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    half = run / "checkpoints" / "curve-1-2" / "checkpoints"
    while not list(half.glob("step-*")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert read_run(run).status == "running" and len(points(run)) == 2 and list(half.glob("step-*"))
    reward(RewardConfig(run=run, **settings))
    assert_same(run, whole)
