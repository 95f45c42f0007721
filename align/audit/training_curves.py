"""Draw training runs for a report: curves, over-optimisation, and what the policy wrote over time.

In: run records with their metrics.jsonl and samples.jsonl. Out: points, charts and rows. A file that is missing or
empty gives nothing, and the report says so. Not here: layout of the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from align.core.files import read_jsonl
from align.core.run_record import RunRecord
from align.report.plots import Series, line_chart

Row = Mapping[str, Any]
COLOURS = {"base": 0, "sft": 1, "dpo": 2, "ppo": 3, "prompt-only": 4, "best-of-n": 5, "reward": 6}
PROMPTS, STEPS = 4, 6  # prompts shown of a run, and steps shown of a prompt


class TrainingRun(NamedTuple):
    """One training run with its rows by step."""

    name: str
    record: RunRecord
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]

    @property
    def colour(self) -> int:
        return COLOURS.get(self.record.stage, 7)


class Overoptimisation(NamedTuple):
    """Reward and gold utility of one run on the same KL axis, and what they show in words."""

    name: str
    charts: list[Markup]
    finding: str
    is_overoptimised: bool


def read_training_run(record: RunRecord, name: str) -> TrainingRun:
    rows = [read_jsonl(file) if (file := Path(record.path) / f).is_file() else [] for f in _FILES]
    return TrainingRun(name, record, *rows)


def curve(run: TrainingRun, key: str) -> list[tuple[float, float]]:
    """Return (step, value) of a logged number, else the mean over the periodic samples."""
    logged = [(float(row["step"]), float(row[key])) for row in run.metrics if _is_number(row.get(key))]
    return logged or _sampled(run, lambda row: row.get(key))


def training_charts(runs: Sequence[TrainingRun]) -> list[Markup]:
    """Draw reward, KL, length, utility, loss and accuracy over the share of training, and error by training pairs."""
    x = "share of the run, %"
    wanted: list[tuple[str, str, Callable[[TrainingRun], list[tuple[float, float]]]]] = [
        ("Reward score", "mean score", lambda run: curve(run, "score")),
        ("KL to the reference", "nats per response", lambda run: curve(run, "kl")),
        ("Length", "words, watched prompts", _words),
        ("Gold utility", "mean utility", lambda run: curve(run, "utility")),
        ("Loss", "loss", lambda run: curve(run, "loss")),
        ("Accuracy on training pairs", "share right", lambda run: curve(run, "accuracy")),
    ]
    charts = []
    for title, label, points in wanted:
        series = [Series(run.name, _share(points(run)), run.colour) for run in runs]
        charts.append(line_chart(title, x, label, series, (0.0, 100.0)))
    series = [Series(run.name, _learning_curve(run), run.colour) for run in runs]
    charts.append(line_chart("Error against held-out labels", "pairs trained on", "share wrong", series))
    return [chart for chart in charts if chart]


def gold_by_kl(runs: Sequence[TrainingRun]) -> Markup:
    """Draw gold utility against KL, one line per run in the order of training."""
    series = [Series(run.name, _joined(curve(run, "kl"), curve(run, "utility")), run.colour) for run in runs]
    return line_chart("Gold utility against KL", "KL to the reference, nats per response", "gold utility", series)


def overoptimisation(run: TrainingRun) -> Overoptimisation | None:
    """Draw two stacked charts on one KL axis; None unless score, KL and gold utility are all known."""
    kl = curve(run, "kl")
    score, gold = _joined(kl, curve(run, "score")), _joined(kl, curve(run, "utility"))
    if len(score) < 3 or len(gold) < 3:
        return None
    x_range = (min(x for x, _ in score + gold), max(x for x, _ in score + gold))
    axis = "KL to the reference, nats per response"
    charts = [
        line_chart("Reward score: what is optimised", axis, "score", [Series(run.name, score, run.colour)], x_range),
        line_chart("Gold utility: what is meant", axis, "gold utility", [Series(run.name, gold, run.colour)], x_range),
    ]
    early, late, spread = _ends([y for _, y in score]), _ends([y for _, y in gold]), [y for _, y in gold]
    peak = max(spread)
    rose = early[1] > early[0]
    fell = late[1] < late[0] and late[1] < peak - 0.25 * max(peak - min(spread), 1e-9)
    values = f"reward {early[0]:.2f} → {early[1]:.2f}, gold utility {late[0]:.2f} → {late[1]:.2f} (peak {peak:.2f})"
    if rose and fell:
        return Overoptimisation(
            run.name, charts, f"Over-optimised: {values}. The reward rose while the truth fell.", True
        )
    return Overoptimisation(run.name, charts, f"No over-optimisation seen from start to end: {values}.", False)


def written(run: TrainingRun) -> list[dict[str, Any]]:
    """Return a few prompts with what the policy wrote at a few steps."""
    by_prompt: dict[str, list[Row]] = {}
    for row in run.samples:
        by_prompt.setdefault(str(row["prompt_id"]), []).append(row)
    shown = []
    for rows in list(by_prompt.values())[:PROMPTS]:
        rows = sorted(rows, key=lambda row: row["step"])
        last = len(rows) - 1
        picked = sorted({round(i * last / (STEPS - 1)) for i in range(STEPS)})
        shown.append({"prompt": rows[0]["prompt"], "samples": [rows[i] for i in picked]})
    return shown


_FILES = ("metrics.jsonl", "samples.jsonl")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _sampled(run: TrainingRun, value: Callable[[Row], Any]) -> list[tuple[float, float]]:
    """Return (step, mean) over the samples of a step that have a value."""
    by_step: dict[float, list[float]] = {}
    for row in run.samples:
        if _is_number(number := value(row)):
            by_step.setdefault(float(row["step"]), []).append(float(number))
    return [(step, sum(values) / len(values)) for step, values in sorted(by_step.items())]


def _words(run: TrainingRun) -> list[tuple[float, float]]:
    return _sampled(run, lambda row: len(str(row.get("response") or "").split()))


def _learning_curve(run: TrainingRun) -> list[tuple[float, float]]:
    """Return (pairs, error) of a reward run's ``curve.jsonl``, where it has one."""
    file = Path(run.record.path) / "curve.jsonl"
    return [(float(row["pairs"]), float(row["error"])) for row in read_jsonl(file)] if file.is_file() else []


def _share(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    last = max((x for x, _ in points), default=0.0)
    return [(100 * x / last, y) for x, y in points] if last else points


def _joined(xs: list[tuple[float, float]], ys: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return (x, y) at the steps that both have."""
    by_step = dict(ys)
    return [(x, by_step[step]) for step, x in xs if step in by_step]


def _ends(values: list[float]) -> tuple[float, float]:
    """Return the means of the first and the last tenth, so that one noisy batch decides nothing."""
    n = max(1, len(values) // 10)
    return sum(values[:n]) / n, sum(values[-n:]) / n
