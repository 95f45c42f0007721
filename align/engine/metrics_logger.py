"""Log the metrics of a training run: to metrics.jsonl, the progress bar, and an experiment tracker."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from align.core.config import BadInput, NotFinite
from align.core.runs import Run
from align.engine.checkpoints import Checkpoint


class MetricsLogger:
    """Writes metrics.jsonl and the tracker of a run, shows its progress bar, and measures its time."""

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
        """Seconds spent on training, including the time up to the checkpoint that the run resumed from."""
        return round(time.monotonic() - self._started, 2)

    def log(self, step: int, metrics: Mapping[str, float | int | None], show: Sequence[str] = ()) -> None:
        """Write the metrics of one step.

        Raises:
            NotFinite: a metric is NaN or infinite; names it and the step.
        """
        for name, value in metrics.items():
            if value is not None and not math.isfinite(value):
                raise NotFinite(f"step {step}: {name} is {value}; lower the learning rate or check the data")
        self.run.append("metrics.jsonl", [{"step": step, **metrics}])
        if self.tracker is not None:
            self.tracker.log({name: value for name, value in metrics.items() if value is not None}, step=step)
        self.bar.set_postfix({name: f"{metrics[name]:.3f}" for name in show if metrics.get(name) is not None})
        self.bar.update(step - self.bar.n)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append periodic samples; a tracker that takes tables gets them as one."""
        self.run.append("samples.jsonl", [{"step": step, **row} for row in rows])
        if self.tracker is not None and rows:
            _log_table(self.tracker, rows, step)

    def close(self) -> None:
        self.bar.close()
        if self.tracker is not None:
            self.tracker.finish()


def _tracker(name: str, run: Run) -> Any:
    """Start the Accelerate tracker of the given name.

    Raises:
        BadInput: it is not installed.
    """
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
