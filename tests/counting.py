"""A stage that counts lines: the smallest thing that is a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from align.core.config import Optim, StageConfig
from align.core.files import read_jsonl, write_json
from align.core.runs import Run, stage


class CountConfig(StageConfig):
    INPUTS: ClassVar[tuple[str, ...]] = ("data", "more")

    stage: Literal["count"] = "count"
    data: Path
    more: list[Path] = []
    optim: Optim = Optim()


@stage
def count(config: CountConfig, run: Run, body: Callable[[Run], None] = lambda run: None) -> dict[str, Any]:
    """Count the lines of a file."""
    body(run)
    rows = read_jsonl(config.data)
    write_json(run.path / "result.json", {"n": len(rows)})
    return {"n": len(rows)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    return path


@pytest.fixture
def config(data: Path, tmp_path: Path) -> CountConfig:
    return CountConfig(run=tmp_path / "runs" / "a", data=data)


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
