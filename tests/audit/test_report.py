"""The report: self-contained, escaped, and honest about what is missing."""

from __future__ import annotations

import math
import random
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fixtures.audit_world import compared, edit_run, make_world, measured, results, write_evaluation, write_run

from align.audit import training_curves
from align.audit.compare import compare
from align.audit.report import ReportConfig, report
from align.audit.run import AuditConfig, audit
from align.core.config import BadInput
from align.core.files import read_jsonl, write_jsonl, write_text
from align.core.run_record import read_run
from align.core.stats.estimates import format_number, mean_interval
from align.report.page import visible
from align.report.plots import Bar, Series, bar_chart, line_chart, ticks
from align.report.tables import estimate

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/a.png> \u202egnp.exe \x1b[31m \ud800 & \"quoted\""


def train(runs: Path, name: str, steps: int, gold: Callable[[float], float], said: str = "I can help.") -> None:
    """Metrics and samples of a run whose KL grows and whose gold utility is a function of its progress."""
    noise = random.Random(name)
    rows, samples = [], []
    for step in range(1, steps + 1):
        done = step / steps
        score, utility = 2 * done + noise.gauss(0, 0.05), gold(done) + noise.gauss(0, 0.05)
        rows.append({"step": step, "loss": 0.7 - 0.3 * done, "score": score, "kl": 20 * done**2, "utility": utility})
    for step in range(0, steps + 1, 5):
        known = {"score": None, "kl": step / 3, "ended": True, "utility": gold(step / steps)}
        for p in range(6):
            text = {"prompt_id": f"p{p}", "prompt": f"question {p}", "response": said + " word" * (step // 3)}
            samples.append({"step": step} | text | known)
    write_jsonl(runs / name / "metrics.jsonl", rows)
    write_jsonl(runs / name / "samples.jsonl", samples)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything there is, made once: trainings, evaluations, two audits and a comparison."""
    config, runs = compared(make_world(tmp_path_factory.mktemp("world")))
    train(runs, "dpo", 40, lambda x: 0.5 + x, HOSTILE)
    train(runs, "ppo", 30, lambda x: 0.5 + 3 * x - 5 * x * x)
    later = {"created": "2026-01-05T10:00:00+00:00", "policy": "greedy"}
    write_evaluation(runs, "eval-worse", runs / "ppo", hostile_rows(), **later)
    for name, subject in (("sft", runs / "sft"), ("base", runs.parent / "base")):
        write_evaluation(runs, f"greedy-{name}", subject, measured(110, 10, 1.0), **later)
    compare(config)
    write_text(runs.parent / "greedy.yaml", (runs.parent / "gates.yaml").read_text().replace("}", ", policy: greedy}"))
    given = {"base": runs.parent / "base", "sft": runs / "sft"}
    audit(AuditConfig(run=runs / "audit-dpo", candidate=runs / "dpo", gates=runs.parent / "gates.yaml", **given))
    audit(AuditConfig(run=runs / "audit-ppo", candidate=runs / "ppo", gates=runs.parent / "greedy.yaml", **given))
    return runs


@pytest.fixture
def whole(built: Path, tmp_path: Path) -> ReportConfig:
    runs = tmp_path / "runs"
    shutil.copytree(built, runs)
    audits = [runs / "audit-dpo", runs / "audit-ppo"]
    return ReportConfig(run=runs / "report", runs_folder=runs, audits=audits, comparison=runs / "compare")


def hostile_rows() -> list[dict[str, Any]]:
    rows = measured(60, 10, 1.0)
    return [row | {"text": HOSTILE.replace("\ud800", ""), "prompt": "</pre><script>"} for row in rows]


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "line", "circle", "rect", "path", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "br", "line", "circle", "rect", "path", "polyline"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open[-1:] != ["style"] else ""


def written(config: ReportConfig) -> str:
    report(config)
    return (config.run / "report.html").read_text(encoding="utf-8")


def test_the_report_tells_everything(whole: ReportConfig) -> None:
    html = written(whole)
    page = Page(html)
    assert not page.open  # every tag is closed in order
    order = [
        page.text.index(part)
        for part in (
            "PASS", "Comparison", "Paired differences", "Gates of", "Training", "KL against gold utility", "Forgetting",
            "Safety", "The worst flips", "What the policy wrote over time", "Lineage", "What was not measured",
        )
    ]  # fmt: skip
    assert order == sorted(order)
    assert "One beta a side is a point" in page.text and "Training-seed variance" in page.text
    assert "A CPU" in page.text and "2 torch threads" in page.text and "torch 2.13.0" in page.text


def test_means_are_taken_from_the_items_whatever_a_record_says(whole: ReportConfig) -> None:
    config = whole.model_copy(update={"comparison": None, "audits": []})
    edit_run(config.runs_folder / "eval-dpo", headline={"metrics": {"harmful_compliance": {"mean": 0.0, "n": 9999}}})
    html = written(config)
    assert "9999" not in html and "0.083" in html  # 10 of 120


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("eval-dpo/items.jsonl", '"score": 1.0', '"score": 0.0', "items.jsonl: edited after the evaluation wrote it"),
        ("eval-dpo/run.json", '"policy": "sample"', '"policy": "greedy"', "run.json: edited after the run wrote it"),
        ("audit-ppo/audit.json", '"verdict": "fail"', '"verdict": "pass"', "audit-ppo: its files are not those"),
        ("audit-ppo/run.json", '"verdict": "fail"', '"verdict": "pass"', "run.json: edited after the run wrote it"),
        ("compare/comparison.json", '"value": 0.', '"value": 1.', "compare: its files are not those"),
    ],
)
def test_what_was_edited_reaches_no_page(whole: ReportConfig, file: str, old: str, new: str, told: str) -> None:
    path = whole.runs_folder / file
    text = path.read_text().replace('":"', '": "')
    assert old in text
    write_text(path, text.replace(old, new))
    with pytest.raises(BadInput, match=told):
        report(whole.model_copy(update={"comparison": whole.comparison if "compare" in file else None}))


def test_an_audit_of_an_earlier_version_is_told_to_be_made_again(whole: ReportConfig) -> None:
    file = whole.audits[0] / "run.json"
    write_text(file, read_run(whole.audits[0]).model_copy(update={"checksum": None}).model_dump_json())
    with pytest.raises(BadInput, match="audit-dpo: its record carries no checksum, an earlier version wrote it"):
        report(whole)


def test_the_page_says_what_decided_nothing(whole: ReportConfig) -> None:
    page = Page(written(whole))
    assert "Evaluations that decided nothing" in page.text
    assert "facts: eval-dpo against greedy-base: pass" in page.text
    assert "proved worse" in page.text and "proved not worse" in page.text


def test_nothing_is_fetched_and_nothing_runs(whole: ReportConfig) -> None:
    page = Page(written(whole))
    assert not {tag for tag, _ in page.tags} & {
        "script",
        "img",
        "link",
        "iframe",
        "object",
        "form",
        "a",
        "use",
        "image",
    }
    values = [value or "" for _, attributes in page.tags for value in attributes.values()]
    assert not [value for value in values if "//" in value or "url(" in value]
    assert not [
        name for _, attributes in page.tags for name in attributes if name.startswith("on") or name in ("src", "href")
    ]


def test_texts_are_escaped_and_what_hides_is_shown(whole: ReportConfig) -> None:
    html = written(whole)
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "\u202e" not in html and "⟨U+202E⟩" in html
    assert "\x1b" not in html and "⟨U+001B⟩" in html and "⟨U+D800⟩" in html


def test_over_optimisation_is_called_by_its_name(whole: ReportConfig) -> None:
    html = written(whole)
    assert html.count("over-optimised</span>") == 1
    assert re.search(r"<strong>ppo\.</strong>.{0,80}over-optimised</span> Over-optimised: reward", html, re.S)
    found = training_curves.overoptimisation(_training(whole, "dpo"))
    assert found is not None and not found.is_overoptimised


def test_reward_and_gold_stand_over_the_same_axis(whole: ReportConfig) -> None:
    """Also where the gold utility of the last steps, with the highest KL, is not known."""
    run = _training(whole, "ppo")
    cut = [row | {"utility": row["utility"] if row["step"] < 20 else None} for row in run.metrics]
    found = training_curves.overoptimisation(run._replace(metrics=cut))
    assert found is not None
    score, gold = ([p.split(",")[0] for p in re.findall(r'points="([^"]+)"', c)[0].split()] for c in found.charts)
    assert len(score) == 30 and gold == score[:19]


def test_an_audit_that_newer_evaluations_overtook_is_told(whole: ReportConfig) -> None:
    assert "audit again" not in written(whole)
    newer = {"created": "2026-01-09T10:00:00+00:00"}
    write_evaluation(whole.runs_folder, "eval-bad", whole.runs_folder / "dpo", measured(10, 110, -1.0), **newer)
    config = ReportConfig(**whole.model_dump() | {"run": whole.runs_folder / "report-2"})
    text = Page(written(config)).text
    assert text.count("Made without eval-bad, which is newer: audit again.") == 1  # of the two audits, that of dpo


def test_intervals_take_what_items_come_from_as_clusters(tmp_path: Path) -> None:
    runs, base = tmp_path / "runs", tmp_path / "base"
    write_text(base / "config.json", "{}")
    rows = [
        row
        for c in range(6)
        for i in range(50)
        for row in results("safety", "over_refusal", [float(c < 3)], cluster=f"document {c}", item_id=f"{c}-{i}")
    ]
    write_evaluation(runs, "eval-base", base, rows)
    html = written(ReportConfig(run=runs / "report", runs_folder=runs))
    expected = mean_interval([row["score"] for row in rows], "binary", [row["cluster"] for row in rows])
    assert expected.low is not None and expected.low < 0.19
    assert " to ".join(format_number(end, expected.half_width) for end in (expected.low, expected.high)) in html


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="runs_folder: .*nope: no such folder; name the folder that holds the runs"):
        report(ReportConfig(run=tmp_path / "report", runs_folder=tmp_path / "nope"))


def test_an_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    page = Page(written(ReportConfig(run=tmp_path / "runs" / "report", runs_folder=tmp_path / "runs")))
    assert "NOT AUDITED" in page.text and page.text.count("Not measured") >= 7
    assert "No audit was given" in page.text


def test_runs_without_samples_or_comparison_still_make_a_report(whole: ReportConfig) -> None:
    for name in ("dpo", "ppo"):
        (whole.runs_folder / name / "samples.jsonl").unlink()
    bare = ReportConfig(run=whole.runs_folder / "report-2", runs_folder=whole.runs_folder)
    page = Page(written(bare))
    assert "no run wrote samples while training" in page.text
    assert "dpo, sample" in page.text  # evaluations stand alone where no comparison was made


def test_unfinished_runs_are_named(whole: ReportConfig) -> None:
    write_run(whole.runs_folder, "ppo-2", "ppo", status="failed")
    assert "ppo-2: this ppo run is 'failed', not finished." in Page(written(whole)).text


def test_visible_keeps_what_people_write() -> None:
    kept = "naïve 日本語 مرحبا 👩\u200d💻 tab\tline\n"
    assert visible(kept) == kept
    assert visible("a\u2066b\u200fc\x00") == "a⟨U+2066⟩b⟨U+200F⟩c⟨U+0000⟩"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-3.0, 2.0, [-3, -2, -1, 0, 1, 2]), (0.0, 120.0, [0, 50, 100])],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_charts_of_nothing_and_of_one_point() -> None:
    assert line_chart("t", "x", "y", [Series("a", [], 0)]) == ""
    assert bar_chart("t", [Bar("a", None, None, None, 0)]) == ""
    one = line_chart("<t>", "x", "y", [Series("a", [(1.0, 1.0)], 0)])
    assert "&lt;t&gt;" in one and "nan" not in one
    assert not any(math.isnan(float(x)) for x in re.findall(r'cx="([^"]+)"', one))


def test_a_number_in_a_table_carries_its_counts() -> None:
    found = {"value": 0.25, "low": 0.1, "high": 0.4, "n": 10, "n_scored": 8, "n_failed": 2}
    assert estimate(found) == "0.25 [0.10, 0.40] n=8, 2 failed"
    assert estimate(None) == "not measured"
    assert estimate(found | {"value": None, "n_scored": 0}) == "none of 10 scored"


def _training(config: ReportConfig, name: str) -> training_curves.TrainingRun:
    record = next(r for r in config.records if Path(r.path).name == name)
    assert read_jsonl(Path(record.path) / "metrics.jsonl")
    return training_curves.read_training_run(record, name)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0.0, "0"),
        (-0.0, "0"),
        (1.0, "1.00"),
        (870.4, "870"),
        (4312, "4,312"),
        (12, "12"),
        (-0.0004, "-0.0004"),
    ],
)
def test_numbers_in_tables(value: float | None, shown: str) -> None:
    assert format_number(value) == shown


def test_results_that_no_checksum_vouches_for_are_no_row(tmp_path: Path) -> None:
    """Scores changed, and with them the hash and the checksum taken out of the record."""
    runs = make_world(tmp_path)(measured(112, 90, 1.5)).run.parent
    edited = [row | {"judge": "rule", "score": 0.0} for row in measured(112, 90, 1.5)]
    write_jsonl(runs / "eval-dpo" / "items.jsonl", edited)
    record = read_run(runs / "eval-dpo")
    changes = {"checksum": None, "headline": record.headline | {"results_sha256": None}}
    write_text(runs / "eval-dpo" / "run.json", record.model_copy(update=changes).model_dump_json())
    report(ReportConfig(run=tmp_path / "report", runs_folder=runs))
    page = (tmp_path / "report" / "report.html").read_text()
    assert "eval-dpo: its record carries no checksum" in page and "dpo, sample" not in page
    assert "sft, sample" in page


def test_an_audit_that_was_not_given_is_named(whole: ReportConfig) -> None:
    left_out = whole.model_copy(update={"run": whole.runs_folder / "report-3", "audits": whole.audits[:1]})
    given, other = (path.name for path in whole.audits)
    page = Page(written(left_out))
    verdict = read_run(whole.audits[1]).headline["verdict"]
    assert f"{other}: this audit ({verdict}) was not given to this report" in page.text
    assert f"{given}: this audit" not in page.text


def test_an_audit_of_other_runs_is_refused(whole: ReportConfig, tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    others = make_world(tmp_path / "others")(None).run.parent
    shutil.rmtree(others / "dpo")
    with pytest.raises(BadInput, match="audit-dpo judged .*dpo, and no run of .* is that policy or measured it"):
        report(ReportConfig(run=tmp_path / "report", runs_folder=others, audits=whole.audits[:1]))


def test_a_comparison_of_other_runs_is_refused_and_an_overtaken_one_is_told(tmp_path: Path) -> None:
    config, runs = compared(make_world(tmp_path))
    compare(config)
    made = ReportConfig(run=runs / "report", runs_folder=runs, comparison=config.run)
    assert "compare again" not in written(made)
    late = {"created": "2099-01-09T10:00:00+00:00"}
    write_evaluation(runs, "eval-late", runs / "ppo", measured(10, 110, -1.0), **late)
    text = Page(written(ReportConfig(**made.model_dump() | {"run": runs / "report-2"}))).text
    assert text.count("eval-late: newer than this comparison, which was made without it; compare again") == 1
    (tmp_path / "others").mkdir()
    others = make_world(tmp_path / "others")(None).run.parent
    shutil.rmtree(others / "ppo")
    with pytest.raises(BadInput, match="compared .*ppo, and no run of .* is that policy or measured it; name the"):
        report(ReportConfig(run=tmp_path / "report", runs_folder=others, comparison=config.run))


def test_a_run_is_no_folder_of_runs(whole: ReportConfig, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="dpo: is a run itself; name the folder that holds the runs"):
        report(ReportConfig(run=tmp_path / "report", runs_folder=whole.runs_folder / "dpo"))
