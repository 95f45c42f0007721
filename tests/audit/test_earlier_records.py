"""Records of earlier versions, which carry no declaration of their suites, give what records with one give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fixtures.audit_world import World, compared, content, edit_run, measured
from fixtures.shipped_suites import DECLARATIONS

from align.audit.compare import CompareConfig, compare
from align.audit.report import ReportConfig, report
from align.audit.run import AuditConfig, audit
from align.core.files import write_json
from align.core.hashes import artefact_hash
from align.core.runs import read_run


def declare(runs: Path) -> None:
    """Let every evaluation carry the declarations of its suites, as an evaluation of today writes them."""
    for folder in runs.glob("eval-*"):
        headline = read_run(folder).headline
        for suite, facts in headline["suites"].items():
            facts["declaration"] = DECLARATIONS[suite].model_dump(mode="json")
        edit_run(folder, headline=headline)


def test_an_audit_gives_the_same_findings(world: World) -> None:
    config = world(measured(104, 70, 0.9))
    audit(config)
    declare(config.run.parent)
    again = AuditConfig(**config.model_dump() | {"run": config.run.parent / "again"})
    audit(again)
    assert content(again) == content(config)
    findings = {finding["gate"]: finding for finding in content(config)["findings"]}
    assert {name: finding["verdict"] for name, finding in findings.items()} == {
        "facts": "insufficient", "harm": "insufficient", "better": "pass", "garbage": "pass", "harmless": "pass",
    }  # fmt: skip
    assert (findings["facts"]["delta"], findings["harm"]["delta"]) == (-0.05, 10 / 120)


def test_a_comparison_gives_the_same_rows(world: World) -> None:
    config, runs = compared(world)
    compare(config)
    declare(runs)
    again = CompareConfig(**config.model_dump() | {"run": runs / "again"})
    compare(again)
    texts = [(run / "comparison.json").read_text() for run in (config.run, again.run)]
    assert texts[0] == texts[1]


def test_a_report_shows_a_comparison_that_names_no_directions(world: World) -> None:
    """Earlier versions wrote ``mean`` for ``value``, and no direction beside a metric."""
    config, runs = compared(world)
    compare(config)
    report(ReportConfig(run=runs / "report", runs_folder=runs, comparison=config.run))
    file = config.run / "comparison.json"
    found = json.loads(file.read_text())
    for row in found["rows"]:
        row["metrics"] = {name: earlier(entry) for name, entry in row["metrics"].items()}
    write_json(file, found)
    edit_run(config.run, artefact=artefact_hash(config.run))
    report(ReportConfig(run=runs / "again", runs_folder=runs, comparison=config.run))
    pages = [(runs / name / "report.html").read_text() for name in ("report", "again")]
    tables = [page[page.index('id="comparison"') : page.index("Paired differences")] for page in pages]
    assert tables[0] == tables[1] and "harmful_compliance ↓" in tables[0] and "gold_utility ↑" in tables[0]
    charts = [page[page.index("<h2>Forgetting</h2>") : page.index("The worst flips")] for page in pages]
    assert charts[0] == charts[1] and "lower is better" in charts[0]


def earlier(entry: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in entry.items() if key not in ("value", "higher_is_better")}
    return kept | {"mean": entry["value"]}
