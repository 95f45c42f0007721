"""A finished pairs run written by hand, for stages that train on pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from align.core.files import artefact_hash, write_json, write_jsonl
from align.core.runs import RunRecord
from annotation.types import Pair, prompt_id


def pair(prompt: str, better: str, worse: str) -> Pair:
    """One pair on which one annotator judged."""
    messages = [{"role": "user", "content": prompt}]
    return Pair(
        prompt=messages, chosen=[{"role": "assistant", "content": better}], votes=[1, 0, 0],
        rejected=[{"role": "assistant", "content": worse}], comparison_id=f"{prompt}{better}{worse}",
        prompt_id=prompt_id(messages),
    )  # fmt: skip


def write_pairs_run(folder: Path, splits: Mapping[str, Sequence[tuple[str, str, str]]]) -> Path:
    """``splits`` holds (prompt, better, worse) by train, validation and test; a split that is left out is empty."""
    for split in ("train", "validation", "test"):
        write_jsonl(folder / f"{split}.jsonl", [pair(*row).model_dump() for row in splits.get(split, [])])
    record = RunRecord(
        id="pairs", stage="pairs", status="finished", path=str(folder), seed=0, given={}, resolved={},
        artefact=(artefact := artefact_hash(folder)), lineage={"pairs": artefact},
        machine={"cpu": "A CPU", "cores": 2, "threads": None, "python": "3.11"},
    )  # fmt: skip
    write_json(folder / "run.json", record.model_dump())
    return folder
