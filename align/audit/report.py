"""Stage `report`: one self-contained report.html about a runs folder.

In: the finished runs of a folder, audits and a comparison. Out: ``report.html``: verdict first, then tables, curves,
flips with their text, lineage, and what was not measured. No network, no script; every text is escaped, and
control and direction characters are written out. What is missing says "not measured". Not here: any verdict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from markupsafe import Markup
from pydantic import Field

from align.audit import training_curves
from align.audit.evaluations import Evaluation, all_runs, evaluations_of
from align.audit.metric_rows import measured, shared_names, table_names, with_directions
from align.core.config import BadInput, StageConfig
from align.core.declarations import Declaration
from align.core.files import write_text
from align.core.run_record import RunRecord, finished_run, is_ours, is_run
from align.core.runs import Run
from align.core.stage import stage
from align.core.stats.estimates import Estimate
from align.evals.declared import EARLIER, declaration_of, suites_of
from align.report import tables
from align.report.page import template, visible
from align.report.plots import Bar, bar_chart

TRAINED = ("sft", "reward", "dpo", "ppo")
ORDER = ("fail", "insufficient", "pass")


class ReportConfig(StageConfig):
    """``runs_folder`` holds the runs that the report shows; all its finished ones are inputs."""

    INPUTS: ClassVar[tuple[str, ...]] = ("audits", "comparison", "told")

    stage: Literal["report"] = "report"
    runs_folder: Path = Field(description="the folder whose runs are reported")
    audits: list[Path] = Field(default=[], description="audit runs to show")
    comparison: Path | None = Field(default=None, description="a compare run to show")
    title: str = Field(default="Preference tuning, audited", description="heading of the page")

    @cached_property
    def records(self) -> list[RunRecord]:
        """Runs of the folder, reports left out."""
        if not self.runs_folder.is_dir():
            raise BadInput(f"runs_folder: {self.runs_folder}: no such folder; name the folder that holds the runs")
        if is_run(self.runs_folder) and is_ours(self.runs_folder):
            raise BadInput(f"runs_folder: {self.runs_folder}: is a run itself; name the folder that holds the runs")
        return [record for record in all_runs([self.runs_folder]) if record.stage != "report"]

    @property
    def told(self) -> list[Path]:
        """Folders of the finished runs, inputs by the name that records of earlier versions have."""
        return [Path(record.path) for record in self.records if record.status == "finished"]


@stage
def report(config: ReportConfig, run: Run) -> dict[str, Any]:
    """Write report.html and say where it is."""
    audits = [_content(path, "audit") for path in config.audits]
    for path in config.audits:
        _check_belongs(path, config)
    audits = [audit | {"unseen": _unseen(audit, config.records)} for audit in audits]
    comparison = _content(config.comparison, "compare") if config.comparison else None
    if comparison and config.comparison:
        comparison["not_measured"] += _overtaken(config.comparison, config)
    finished = [record for record in config.records if record.status == "finished"]
    runs = [training_curves.read_training_run(r, visible(Path(r.path).name)) for r in finished if r.stage in TRAINED]
    policies = [one for one in runs if one.record.stage != "reward"]
    rows = with_directions(comparison["rows"]) if comparison else _measured(finished)
    overoptimised = [curve for one in runs if (curve := training_curves.overoptimisation(one))]
    page = template(Path(__file__).parent / "report.html")
    html = page.render(
        title=config.title,
        audits=sorted(audits, key=lambda audit: ORDER.index(audit["verdict"])),
        comparison=comparison,
        rows=rows,
        metrics=tables.directions(rows),
        notes=tables.notes(rows),
        charts=training_curves.training_charts(runs),
        gold_by_kl=training_curves.gold_by_kl([one for one in policies if one.record.stage != "sft"]),
        overoptimised=overoptimised,
        bars=_bars(rows, _declarations(finished)),
        written=[(one.name, samples) for one in policies if (samples := training_curves.written(one))],
        records=config.records,
        machines=_machines(finished),
        not_measured=_not_measured(config, audits, comparison, runs),
    )
    write_text(run.path / "report.html", html)
    run.note(f"report: {run.path / 'report.html'}")
    verdicts = [audit["verdict"] for audit in audits]
    return {
        "audits": verdicts,
        "runs": len(finished),
        "overoptimised": [o.name for o in overoptimised if o.is_overoptimised],
    }


def _content(path: Path, stage_name: str) -> dict[str, Any]:
    """Read what an audit or a comparison run wrote, with the name of the run.

    Raises:
        BadInput: it cannot be read, or an earlier version, whose records can be edited unseen, wrote it.
    """
    record = finished_run(path, (stage_name,))
    if record.checksum is None:
        raise BadInput(
            f"{path}: its record carries no checksum, an earlier version wrote it; `align {stage_name}` again"
        )
    file = path / {"audit": "audit.json", "compare": "comparison.json"}[stage_name]
    try:
        return {"name": path.name, "notes": record.notes} | json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: cannot be read ({error}); run `align {stage_name}` again") from error


def _check_belongs(audit: Path, config: ReportConfig) -> None:
    """Refuse an audit of a policy that none of the folder's runs is or measured: its verdict is about other numbers."""
    candidate = finished_run(audit, ("audit",)).inputs["candidate"]
    if candidate["sha256"] not in _known(config):
        raise BadInput(
            f"audits: {audit} judged {candidate['path']}, and no run of {config.runs_folder} is that policy or "
            "measured it; name the folder of its runs, or leave the audit out"
        )


def _overtaken(comparison: Path, config: ReportConfig) -> list[str]:
    """Name the evaluations of its arms that are newer than a comparison.

    Raises:
        BadInput: none of the folder's runs is one of its arms or measured it.
    """
    record = finished_run(comparison, ("compare",))
    arms = [entry for name, entry in record.inputs.items() if name.startswith("arms")]
    if strange := next((arm for arm in arms if arm["sha256"] not in _known(config)), None):
        raise BadInput(
            f"comparison: {comparison} compared {strange['path']}, and no run of {config.runs_folder} is that policy "
            "or measured it; name the folder of its runs, or leave the comparison out"
        )
    evaluations = [one for arm in arms for one in evaluations_of(config.records, arm["sha256"])]
    newer = dict.fromkeys(one.name for one in evaluations if one.record.created > record.created)
    return [f"{name}: newer than this comparison, which was made without it; compare again" for name in newer]


def _known(config: ReportConfig) -> set[str | None]:
    """Return the artefacts of the folder's runs, and of what they measured."""
    subjects = {record.inputs.get("subject", {}).get("sha256") for record in config.records}
    return {record.artefact for record in config.records} | subjects


def _unseen(audit: Mapping[str, Any], records: Sequence[RunRecord]) -> list[str]:
    """Name the finished evaluations of an audit's policies that are newer than the audit."""
    unseen: list[str] = []
    for subject in audit["subjects"].values():
        audited = {row["run"] for row in subject["evaluations"]}
        names = [one.name for one in evaluations_of(records, subject["artefact"])]
        unseen += [name for name in names if name not in audited]
    return list(dict.fromkeys(unseen))


def _measured(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Make rows for tables and bars from evaluation runs alone, where no comparison was made: one row per run.

    Means are taken from the results of the items, whatever a record says they are. A record without a checksum, which
    vouches for no results, gives no row.
    """
    rows = []
    sealed = [record for record in records if record.stage == "eval" and record.checksum]
    by_run = {record.path: [Evaluation(record, suite) for suite in suites_of(record)] for record in sealed}
    shared = shared_names(one for evaluations in by_run.values() for one in evaluations)
    for record in sorted(sealed, key=lambda r: (r.created, r.path)):
        subject = Path(str(record.resolved.get("subject", record.path))).name
        stage_name = record.parents.get("subject", {}).get("stage")
        training = record.headline.get("training_reward", [])
        metrics: dict[str, Any] = {}
        for one in by_run[record.path]:
            metrics |= measured(one, table_names(one, training, shared))
        name = f"{subject}, {record.resolved.get('policy')}"
        rows.append({"name": name, "run": Path(record.path).name, "stage": stage_name, "metrics": metrics})
    names = [row["name"] for row in rows]
    for row in rows:
        if names.count(row["name"]) > 1:
            row["name"] = f"{row['name']} ({row['run']})"
    return rows


def _declarations(records: Sequence[RunRecord]) -> dict[str, Declaration]:
    """Return the declarations of suites by name, as the newest evaluation of the folder has them."""
    known = dict(EARLIER)
    for record in sorted((r for r in records if r.stage == "eval"), key=lambda r: (r.created, r.path)):
        known |= {suite: declaration_of(record, suite) for suite in suites_of(record)}
    return known


def _bars(rows: Sequence[Mapping[str, Any]], declarations: Mapping[str, Declaration]) -> dict[str, list[Markup]]:
    """Draw one chart per metric, by section."""
    charts: dict[str, list[Markup]] = {one.title: [] for one in declarations.values() if one.says_missing}
    for metric, is_better in tables.directions(rows).items():
        entries = [(row, row["metrics"].get(metric)) for row in rows]
        suite = next(entry["suite"] for _, entry in entries if entry is not None)
        says_missing = suite not in declarations or declarations[suite].says_missing
        bars = [_bar(row, entry) for row, entry in entries if entry is not None or (says_missing and row["stage"])]
        note = "higher is better" if is_better else "lower is better"
        if chart := bar_chart(visible(metric), bars, note):
            charts.setdefault(declarations[suite].title if suite in declarations else suite, []).append(chart)
    return charts


def _bar(row: Mapping[str, Any], entry: Mapping[str, Any] | None) -> Bar:
    name = visible(row["name"])
    kind = row["stage"] or name.partition(",")[0]
    colour = training_curves.COLOURS.get(kind, 7)
    shown = name if len(name) <= 15 else name[:14] + "…"
    if entry is None:
        return Bar(shown, None, None, None, colour)
    estimate = Estimate.model_validate(entry)
    return Bar(shown, estimate.value, estimate.low, estimate.high, colour)


def _machines(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Return each set of machine, packages and code that any run used, with the runs that used it."""
    machines: dict[str, dict[str, Any]] = {}
    for record in records:
        threads = record.machine.get("threads")  # a stage without torch has none
        facts = {"machine": record.machine, "packages": record.packages, "code": record.code}
        entry = machines.setdefault(
            json.dumps([record.machine.get("cpu"), threads, record.packages, record.code], sort_keys=True),
            facts | {"runs": []},
        )
        entry["runs"].append(Path(record.path).name)
    return sorted(machines.values(), key=lambda entry: -len(entry["runs"]))


def _not_measured(
    config: ReportConfig, audits: Sequence[Mapping[str, Any]], comparison: Mapping[str, Any] | None, runs: Sequence[Any]
) -> list[str]:
    lines = [line for audit in audits for line in audit["not_measured"]]
    lines += comparison["not_measured"] if comparison else ["No comparison of arms was given to this report."]
    lines += [
        f"{Path(r.path).name}: its record carries no checksum (an earlier version wrote it, or it was edited), so "
        "nothing vouches for its results; evaluate again"
        for r in config.records
        if r.stage == "eval" and r.checksum is None
    ]
    lines += [] if audits else ["No audit was given to this report: nothing here is a verdict."]
    given = {path.resolve() for path in config.audits}
    lines += [
        f"{Path(r.path).name}: this audit ({r.headline.get('verdict')}) was not given to this report, and is not shown."
        for r in config.records
        if r.stage == "audit" and r.status == "finished" and Path(r.path).resolve() not in given
    ]
    if not any(training_curves.curve(one, "utility") for one in runs):
        lines.append("Gold utility while training: unknown, so over-optimisation could not be seen.")
    lines += [
        f"{Path(r.path).name}: this {r.stage} run is '{r.status}', not finished."
        for r in config.records
        if r.status != "finished" and Path(r.path).resolve() != config.run.resolve()
    ]
    return list(dict.fromkeys(lines))
