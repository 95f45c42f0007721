"""`align ls`: the runs of a folder, one line each, oldest first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.core.config import BadInput
from align.core.files import folders_in
from align.core.run_record import RunRecord, read_run
from align.core.stats.estimates import Estimate

HEADLINES = {"reward": "accuracy", "audit": "verdict", "agreement": "alpha", "sft": "loss", "dpo": "accuracy"}


def ls(runs: str = "runs") -> int:
    """Print name, stage, status, seconds and the headline number of every run."""
    folder = Path(runs)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; name one with runs=DIR")
    records = [read_run(path) for path in folders_in(folder) if (path / "run.json").is_file()]
    if not records:
        raise BadInput(f"{folder}: holds no runs")
    for record in sorted(records, key=lambda r: (r.created, r.path)):
        seconds = f"{record.seconds:.0f} s" if record.seconds is not None else ""
        print(f"{Path(record.path).name:<24}{record.stage:<12}{record.status:<12}{seconds:>7}  {_headline(record)}")
    return 0


def _headline(record: RunRecord) -> str:
    if record.error:
        return record.error[:100]
    value: Any = record.headline.get(HEADLINES.get(record.stage, ""))
    if isinstance(value, dict):
        value = Estimate.model_validate(value).value
    return f"{HEADLINES[record.stage]} {value:.3f}" if isinstance(value, float) else str(value or "")
