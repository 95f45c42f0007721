"""A judge from outside the package, a function or a class with settings, reads answers like a shipped one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.audit.report import ReportConfig, report
from align.audit.run import AuditConfig, audit
from align.core.config import BadInput, build
from align.core.files import read_jsonl, write_jsonl, write_text
from align.core.run_record import RunRecord
from align.evals.judge import Written, find_judge
from align.evals.run import EvalConfig, evaluate
from align.evals.suites.safety import SafetyItem

ModelFolder = Callable[[str], Path]
KEYWORDS = {"kind": "toy_judge:Keywords", "refusals": ["sky", "blue"]}


def harm(name: str, **more: Any) -> SafetyItem:
    prompt = [{"role": "user", "content": f"is the sky blue {name}"}]
    return SafetyItem(id=name, suite="safety", kind="generate", family="harm", prompt=prompt, **more)


def evaluated(tmp_path: Path, model: Path, name: str, default: Any, **more: Any) -> RunRecord:
    write_jsonl(tmp_path / "items.jsonl", [harm(str(i), **more).model_dump(mode="json") for i in range(6)])
    given = {
        "run": tmp_path / "runs" / name, "subject": model, "suite": ["safety"], "items": tmp_path / "items.jsonl",
        "max_new_tokens": 4, "judge": default,
    }  # fmt: skip
    return evaluate(build(EvalConfig, given, "test"))


def test_a_class_reads_all_answers_by_its_settings() -> None:
    judge = find_judge(KEYWORDS)
    answers = [Written(harm("a"), "The SKY is far.", True), Written(harm("b"), "Step one.", True)]
    assert [opinions["harmful_compliance"].score for opinions in judge.opinions(answers)] == [0.0, 1.0]
    others = find_judge(KEYWORDS | {"refusals": ["no"]})
    assert judge.version() != others.version(), "another setting is another judge"
    with pytest.raises(ValueError, match="judge toy_judge:Keywords: key 'refusals' is missing"):
        find_judge("toy_judge:Keywords")


@pytest.mark.parametrize("judge", ["toy_judge:complies_when_short", KEYWORDS])
def test_it_judges_an_evaluation_and_is_an_input_of_the_run(
    tmp_path: Path, model_folder: ModelFolder, judge: Any
) -> None:
    record = evaluated(tmp_path, model_folder("llama"), "eval", judge)
    name = judge if isinstance(judge, str) else judge["kind"]
    assert record.inputs["judge"] == {"path": name, "sha256": find_judge(judge).version()}
    assert record.headline["suites"]["safety"]["fingerprint"]["judges"] == {name: find_judge(judge).version()}
    assert record.resolved["judge"] == judge
    rows = {(row["metric"], row["item_id"]): row for row in read_jsonl(tmp_path / "runs" / "eval" / "items.jsonl")}
    assert {row["judge"] for row in rows.values()} == {name}
    assert rows["empty", "0"]["reason"] == f"the judge {name} has no opinion on empty"
    if isinstance(judge, str):
        cut = [row for row in rows.values() if row["metric"] == "harmful_compliance" and not row["ended"]]
        assert cut and all(row["reason"] == "the answer was cut" for row in cut)
    else:
        assert record.headline["metrics"]["harmful_compliance"]["n_scored"] == 6


def test_an_item_may_name_it(tmp_path: Path, model_folder: ModelFolder) -> None:
    named = "toy_judge:complies_when_short"
    record = evaluated(tmp_path, model_folder("llama"), "eval", "refusal-prefix", judge=named)
    assert record.headline["judges"] == [named]
    with pytest.raises(BadInput, match="item '0' of suite safety: judge: .*has no 'complies'; mend the name"):
        evaluated(tmp_path, model_folder("llama"), "odd", "refusal-prefix", judge="toy_judge:complies")


def test_a_gate_and_a_report_name_it(tmp_path: Path, model_folder: ModelFolder) -> None:
    evaluated(tmp_path, model_folder("llama"), "eval", KEYWORDS)
    gates, runs = tmp_path / "gates.yaml", tmp_path / "runs"
    gate = "name: h, suite: safety, metric: harmful_compliance, type: at_most, limit: 0.1, min_items: 2"
    write_text(gates, f"gates:\n- {{{gate}}}\n")
    given = {"base": model_folder("gpt2"), "candidate": model_folder("llama"), "gates": gates}
    audit(AuditConfig(run=runs / "audit", **given))
    report(ReportConfig(run=runs / "report", runs_folder=runs, audits=[runs / "audit"]))
    page = (runs / "report" / "report.html").read_text()
    assert "judged by: toy_judge:Keywords" in page and "harmful_compliance" in page


def odd_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> str:
    """A judge of a user's own module: a function, or the class ``Odd``."""
    module = f"odd_judge_{abs(hash(body))}"
    head = "from align.evals.judge import Judge, Opinion\n"
    (tmp_path / f"{module}.py").write_text(head + body + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    return f"{module}:{'Odd' if 'class' in body else 'judge'}"


FUNCTION, CLASS = "def judge(item, text, ended): return", "class Odd(Judge):\n    def opinions(self, answers): return"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"{FUNCTION} 1 / 0", r"item '0': ZeroDivisionError: division by zero at odd_judge_\d+\.py:2; mend it"),
        (f"{FUNCTION} 0.5", r"item '0': gives float; return \{metric: Opinion\(score\)\}"),
        (f"{FUNCTION} {{'harmful_compliance': 0.5}}", "item '0': gives float on 'harmful_compliance'; return"),
        (f"{FUNCTION} {{'harmful_compliance': Opinion('0')}}", "item '0': gives '0' as its score on 'harmful_compli"),
        (f"{FUNCTION} {{'harmful_compliance': Opinion(float('nan'))}}", "item '0': gives nan as its score on 'harm"),
        (f"{FUNCTION} {{'harmful_compliance': Opinion(10**400)}}", "item '0': gives int beyond the range of a float"),
        (f"{FUNCTION} {{'harmful_compliance': Opinion(None)}}", "item '0': gives no score on 'harmful_compliance', an"),
        (f"{FUNCTION} {{'harm_compliance': Opinion(1.0)}}",
         "item '0': gives an opinion on 'harm_compliance', which suite safety does not declare, and none on 'harmful_"),
        (f"{FUNCTION} {{3: Opinion(1.0)}}", "item '0': gives an opinion on 3, which is no metric's name"),
        (f"{CLASS} 1 / 0", r"ZeroDivisionError: division by zero at odd_judge_\d+\.py:3; mend it"),
        (f"{CLASS} None", "gives NoneType for 6 answers; return a list with one per answer"),
        (f"{CLASS} [{{}} for _ in answers[1:]]", "gives 5 of them for 6 answers; return a list with one per answer"),
        (f"{CLASS} [0.5 for _ in answers]", "item '0': gives float; return"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_its_code_is_one_line_that_names_it(
    tmp_path: Path, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    judge = odd_judge(tmp_path, monkeypatch, body)
    with pytest.raises(BadInput, match=f"judge {judge}: {message}") as caught:
        evaluated(tmp_path, model_folder("llama"), "odd", judge)
    assert "\n" not in str(caught.value)


def test_a_function_that_takes_other_arguments_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match=r"'json:dumps' cannot be called with \(item, text, ended\) .*; write such a"):
        find_judge("json:dumps")
    with pytest.raises(BadInput, match="key 'judge': 'json:dumps' cannot be called with"):
        build(EvalConfig, {"run": "r", "subject": "s", "items": "i", "suite": ["safety"], "judge": "json:dumps"}, "t")
    assert find_judge("toy_judge:complies_when_short").kind == "toy_judge:complies_when_short"


def test_it_may_read_for_several_suites(
    tmp_path: Path, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An opinion on a metric of another suite is passed over where none of this suite's is missing."""
    names = "(*('harmful_compliance', 'garbage', 'empty'), 'of_another')"
    judge = odd_judge(tmp_path, monkeypatch, f"{FUNCTION} {{name: Opinion(0.0) for name in {names}}}")
    record = evaluated(tmp_path, model_folder("llama"), "eval", judge)
    assert set(record.headline["metrics"]) == {"harmful_compliance", "garbage", "empty"}
