"""A suite from outside the package is evaluated, gated, compared and reported like a shipped one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy_suite
from fixtures.audit_world import World, compared, content, edit_run, results, write_evaluation

from align.audit.compare import compare
from align.audit.report import ReportConfig, report
from align.audit.run import AuditConfig, audit
from align.cli.main import run
from align.core.config import BadInput, build
from align.core.declarations import Declaration
from align.core.files import write_jsonl, write_text
from align.core.runs import read_run
from align.evals.fingerprint import differences
from align.evals.item_files import load_items
from align.evals.run import EvalConfig, evaluate
from align.evals.suite import SUITES

ModelFolder = Callable[[str], Path]
TOY = "toy_suite:WordLimit"
GATE = "gates:\n- {name: brief, suite: word-limit, metric: over_limit, type: at_most, limit: 0.2}\n"
DECLARED = toy_suite.WordLimit(kind=TOY).declaration()


def write_items(folder: Path, most_words: int = 8, n: int = 40) -> Path:
    rows = [
        {"id": f"i{i}", "suite": "word-limit", "kind": "generate", "most_words": most_words,
         "prompt": [{"role": "user", "content": f"is the sky blue {i}"}]}
        for i in range(n)
    ]  # fmt: skip
    write_jsonl(folder / "word-limit.jsonl", rows)
    return folder / "word-limit.jsonl"


def evaluated(tmp_path: Path, model: Path, **changes: Any) -> EvalConfig:
    items = changes.pop("items") if "items" in changes else write_items(tmp_path)
    given = {"run": tmp_path / "runs" / "eval", "subject": model, "suite": [TOY], "items": items, "max_new_tokens": 4}
    return build(EvalConfig, given | changes, "test")


@pytest.mark.parametrize(("most_words", "verdict", "code"), [(8, "pass", 0), (-1, "fail", 1)])
def test_it_runs_through_eval_audit_and_report(
    tmp_path: Path, model_folder: ModelFolder, most_words: int, verdict: str, code: int
) -> None:
    subject, gates = model_folder("llama"), tmp_path / "gates.yaml"
    record = evaluate(evaluated(tmp_path, subject, items=write_items(tmp_path, most_words)))
    assert record.headline["metrics"]["over_limit"]["value"] == float(most_words < 0)
    assert record.headline["metrics"]["words"]["n_scored"] == 40
    assert Declaration.model_validate(record.headline["suites"]["word-limit"]["declaration"]) == DECLARED
    assert record.resolved["suite"] == [{"kind": TOY, "slack": 0}]
    fingerprint = record.headline["suites"]["word-limit"]["fingerprint"]
    sha256 = record.inputs["suite[0]"]["sha256"]
    assert fingerprint["suite"] == {"slack": 0, "kind": TOY, "sha256": sha256}, "its code is an input"
    write_text(gates, GATE)
    audited = AuditConfig(run=tmp_path / "runs" / "audit", base=model_folder("gpt2"), candidate=subject, gates=gates)
    assert audit(audited).headline["verdict"] == verdict
    line = ["audit", "--gates", str(gates), f"base={audited.base}", f"candidate={subject}"]
    assert run([*line, f"run={tmp_path / 'runs' / 'again'}"]) == code
    report(ReportConfig(run=tmp_path / "runs" / "report", runs_folder=tmp_path / "runs", audits=[audited.run]))
    page = (tmp_path / "runs" / "report" / "report.html").read_text()
    assert "<h2>Word limits</h2>" in page and "over_limit ↓" in page and "words ↓" in page


def test_its_settings_and_items_are_validated_by_their_own_schemas(tmp_path: Path, model_folder: ModelFolder) -> None:
    subject = model_folder("llama")
    slack = evaluate(evaluated(tmp_path, subject, suite=[{"kind": TOY, "slack": 20}], items=write_items(tmp_path, -1)))
    assert slack.headline["metrics"]["over_limit"]["value"] == 0.0
    with pytest.raises(BadInput, match=r"suite toy_suite:WordLimit: unknown key 'slck'; did you mean 'slack'"):
        evaluated(tmp_path, subject, suite=[{"kind": TOY, "slck": 1}])
    write_jsonl(tmp_path / "odd.jsonl", [{"id": "a", "suite": "word-limit", "kind": "generate", "prompt": "hi"}])
    with pytest.raises(BadInput, match=r"odd\.jsonl:1: key 'most_words' is missing; add it"):
        evaluate(evaluated(tmp_path, subject, run=tmp_path / "odd", items=tmp_path / "odd.jsonl"))
    both = [{"id": "a", "suite": "safety", "kind": "generate", "family": "harm", "prompt": "hello"},
            {"id": "b", "suite": "word-limits", "kind": "generate", "prompt": "hello"}]  # fmt: skip
    write_jsonl(tmp_path / "both.jsonl", both)
    with pytest.raises(BadInput, match=r"both\.jsonl:2: suite: 'word-limits' is no suite .* write one of word-limit, "):
        evaluate(evaluated(tmp_path, subject, run=tmp_path / "both", items=tmp_path / "both.jsonl"))


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("metric: over_limits, against: sft, margin: 0.1", "suite word-limit has no metric 'over_limits'; it has over"),
        ("metric: over_limit, against: sft, margin: 0.7", "choose a margin below 0.5"),
        ("metric: over_limit, against: sft, margin: 0.1, chance: 0.2", "where more is better; over_limit has none"),
        ("metric: words, type: at_most, limit: -3", "from 0 to inf"),
    ],
)
def test_a_gate_that_its_declaration_contradicts_is_refused(world: World, gate: str, message: str) -> None:
    config = world(None)
    rows = results("word-limit", "over_limit", [0.0] * 60)
    write_evaluation(config.run.parent, "eval-words", config.candidate, rows, declarations=[DECLARED])
    write_text(config.gates, f"gates:\n- {{name: brief, suite: word-limit, {gate}}}\n")
    with pytest.raises(BadInput, match=message):
        audit(config)


def test_evaluations_that_declare_a_metric_in_different_ways_are_not_compared(world: World) -> None:
    config, rows = world(None), results("word-limit", "over_limit", [0.0] * 90)
    turned = DECLARED.metrics[0].model_copy(update={"higher_is_better": True})
    other = DECLARED.model_copy(update={"metrics": (turned, *DECLARED.metrics[1:])})
    write_evaluation(config.run.parent, "words-dpo", config.candidate, rows, declarations=[DECLARED])
    write_evaluation(config.run.parent, "words-sft", config.run.parent / "sft", rows, declarations=[other])
    write_text(config.gates, "gates:\n- {name: g, suite: word-limit, metric: over_limit, against: sft, margin: 0.1}\n")
    audit(config)
    (finding,) = content(config)["findings"]
    assert finding["verdict"] == "insufficient"
    assert "words-dpo and words-sft declare over_limit in different ways" in finding["reason"]
    edit_run(config.run.parent / "words-sft", headline=read_run(config.run.parent / "words-dpo").headline)
    again = AuditConfig(**config.model_dump() | {"run": config.run.parent / "again"})
    audit(again)
    assert [found["verdict"] for found in content(again)["findings"]] == ["pass"]


def test_it_is_compared_and_keeps_apart_what_two_suites_name_alike(world: World) -> None:
    """A metric ``garbage`` of the toy stands beside the safety suite's own."""
    config, runs = compared(world)
    garbage = DECLARED.metrics[0].model_copy(update={"name": "garbage", "higher_is_better": True})
    declared = DECLARED.model_copy(update={"metrics": (*DECLARED.metrics, garbage)})
    for name, over in (("dpo", 3), ("ppo", 30), ("sft", 60)):
        rows = results("word-limit", "over_limit", [1.0] * over + [0.0] * (120 - over))
        rows += results("word-limit", "garbage", [1.0] * 120)
        write_evaluation(runs, f"words-{name}", runs / name, rows, declarations=[declared])
    compare(config)
    found = json.loads((config.run / "comparison.json").read_text())
    by_name = {row["name"]: row["metrics"] for row in found["rows"]}
    assert by_name["ppo"]["over_limit"]["value"] == 0.25 and by_name["dpo"]["over_limit"]["higher_is_better"] is False
    assert by_name["dpo"]["garbage (word-limit)"]["value"] == 1.0 and by_name["dpo"]["garbage (safety)"]["value"] == 0.0
    (paired,) = [row for row in found["differences"] if row["metric"] == "over_limit"]
    assert (paired["value"], paired["higher_is_better"]) == (pytest.approx(-27 / 120), False)
    text = (config.run / "comparison.md").read_text()
    assert "| over_limit ↓ |" in text and "| garbage (word-limit) ↑ |" in text and "| garbage (safety) ↓ |" in text


FACTS = """
from align.core.declarations import Metric
from align.core.records import ItemResult
from align.evals.items import Item
from align.evals.suite import Suite


class Facts(Suite):
    name, title, generates = "facts", "Facts", False
    metrics = (Metric(name="right", higher_is_better=True, kind="binary"),)

    def results(self, items, target, sampling):
        return [self.result(item, 1.0) for item in items]

    def result(self, item, score, reason=None, metric="right"):
        return ItemResult(suite="facts", metric=metric, item_id=item.id, score=score, reason=reason, judge="j")


class Odd(Facts):
    """


def odd_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> str:
    """A suite of a user's own module that is right but for ``body``."""
    module = f"odd_{abs(hash(body))}"
    (tmp_path / f"{module}.py").write_text(FACTS + body + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    return f"{module}:Odd"


ONE = "def results(self, items, target, sampling): return"
ALL = "def results(self, items, *rest): r = [self.result(item, 1.0) for item in items]"
GIVEN = f"{ONE} [self.result(item, 1.0).model_copy(update=%s) for item in items]"
JUDGED = """def results(self, items, *rest):
        from align.evals.judging import judged_answers
        return judged_answers(self, items, *rest)"""
GOLD = "align.pocket.utility:utility"
OTHER = "Metric(name='wrong', higher_is_better=False, kind='binary')"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"{ONE} 1 / 0", r"results: ZeroDivisionError: division by zero at odd_\d+\.py:20; mend it"),
        (f"{ONE} None", r"results: gives NoneType, not list \| tuple; mend it"),
        (f"{ONE} [{{'item_id': item.id}} for item in items]", "one of its results is of type dict"),
        (f"{ONE} [self.result(items[0], None)]", r"right of item 'i0': a result has a score or a reason.* at odd_"),
        (f"{ONE} [self.result(items[0], float('nan'))]", r"right of item 'i0': a score of nan is none.* at odd_"),
        (f"{ONE} [self.result(items[0], '0')]", r"'0' is text; give a number.* at odd_"),
        ("def chance(self, items): return {'right': 1 / 0}", "chance: ZeroDivisionError"),
        ("def chance(self, items): return 0.5", "chance: gives float, not dict"),
        ("def chance(self, items): return {'right': 1.5}", "chance: gives 1.5 for right, which lies from 0 to 1"),
        ("def chance(self, items): return {'right': '0.5'}", "chance: gives '0.5' for right, which lies from 0 to 1"),
        ("def chance(self, items): return {'rigth': 0.5}", "suite facts has no metric 'rigth'; it has right"),
        ("def chance(self, items): return {'right': 0.5}", "chance: gives one of right; declare it with has_chance=Tr"),
        ("def metrics_of(self, item): return item['metric']", "metrics_of: TypeError"),
        ("def metrics_of(self, item): return 'right'", r"metrics_of: gives str, not list \| tuple"),
        ("def metrics_of(self, item): return ['rigth']", "suite facts has no metric 'rigth'; it has right"),
        ("def judges(self, items, target): return 1 / 0", "judges: ZeroDivisionError"),
        ("def judges(self, items, target): return None", "judges: gives NoneType, not dict"),
        (GIVEN % "{'judge': 'formula'}", "other results of right beside one by 'formula', which names a formula's one"),
        (GIVEN % "{'family': 'x'}", "right of item 'i0' with family 'x'; the item's is '': give its own"),
        (GIVEN % "{'cluster': 'x'}", "right of item 'i0' with cluster 'x'; the item's is None: give its own"),
        (GIVEN % "{'sample': -1}", r"key 'sample': .*greater than or equal to 0.* \(given: -1\)"),
        (GIVEN % "{'score': float('nan')}", "right of item 'i0': a score of nan is none"),
        (GIVEN % "{'ended': True}", "right of item 'i0' with an answer: it samples answers and declares generates = "),
        (f"{ONE} [self.result(i, 1.0).model_copy(update={{'judge': j}}) for i in items for j in 'ab']",
         "gives right of item 'i0', answer 0, twice"),
        (f"{ALL}; items.pop(); return r", "results: the items were changed by the suite or its judge; work on a copy"),
        (f"{ALL}; items[0].tags.append('x'); return r", "results: the items were changed by the suite or its judge"),
        (f"{ONE} [target.judge_of(i) for i in items]", "a judge reads its answers and it does not declare one"),
        (f"{ONE} [target.judge_of(i, 'refusal-prefix') for i in items]", "a judge reads its answers and it does"),
        (f"generates = True\n    {JUDGED}", r'a judge reads its answers .* write reads = frozenset\(\{"judge"\}\)'),
        (f"reads = frozenset({{'judge'}})\n    {JUDGED}", "it samples answers and declares generates = False; take th"),
        ("judged_by = 'refusal-prefixes'", "'refusal-prefixes' is no kind of judge; did you mean 'refusal-prefix'"),
        (f"metrics = ({OTHER}, {OTHER})", "a metric is declared twice"),
        (f"metrics = {OTHER}", "'metrics' is a Metric; write a tuple of Metric"),
        ("title = 3", r"key 'title': .* \(given: 3\)"),
        ("item = int", "'item' is <class 'int'>; write a class derived from align.evals.items:Item"),
        ("reads = frozenset({'golden'})", "'reads' names 'golden'; an evaluation has gold, judge, "),
    ],
)  # fmt: skip
def test_what_is_wrong_in_its_code_is_one_line_that_names_it(
    tmp_path: Path, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    kind = odd_suite(tmp_path, monkeypatch, body)
    rows = [{"id": f"i{n}", "suite": "facts", "kind": "perplexity", "text": f"text {n}"} for n in range(3)]
    write_jsonl(tmp_path / "facts.jsonl", rows)
    with pytest.raises(BadInput, match=message) as caught:
        evaluate(evaluated(tmp_path, model_folder("llama"), suite=[kind], items=tmp_path / "facts.jsonl"))
    assert "\n" not in str(caught.value) and "suite" in str(caught.value)


def test_two_classes_of_one_file_are_asked_differently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, _ = odd_suite(tmp_path, monkeypatch, "pass").partition(":")
    given = {"run": "r", "subject": "s", "items": "i"}
    one, other = (
        build(EvalConfig, given | {"suite": [f"{module}:{name}"]}, "test").suite[0].identity()
        for name in ("Facts", "Odd")
    )
    assert one["sha256"] == other["sha256"] and differences({"suite": one}, {"suite": other})
    shipped = build(EvalConfig, given | {"suite": list(SUITES.shipped)}, "test").suite
    assert [suite.identity() for suite in shipped] == [{}, {}, {}]


@pytest.mark.parametrize(("declared", "score"), [("", 0.0), ("reads = frozenset({'gold'})", 1.0)])
def test_it_is_given_what_it_reads_and_nothing_else(
    tmp_path: Path, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, declared: str, score: float
) -> None:
    results = f"{ONE} [self.result(item, float(target.gold is not None)) for item in items]"
    kind = odd_suite(tmp_path, monkeypatch, f"{results}\n    {declared}")
    write_jsonl(tmp_path / "facts.jsonl", [{"id": "a", "suite": "facts", "kind": "perplexity", "text": "a text"}])
    config = evaluated(tmp_path, model_folder("llama"), suite=[kind], items=tmp_path / "facts.jsonl", gold=GOLD)
    assert evaluate(config).headline["metrics"]["right"]["value"] == score


def test_an_answer_without_its_ending_is_refused_too_where_none_is_generated(
    tmp_path: Path, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = odd_suite(tmp_path, monkeypatch, GIVEN % "{'text': 'yes'}")
    write_jsonl(tmp_path / "facts.jsonl", [{"id": "a", "suite": "facts", "kind": "generate", "prompt": "hi"}])
    with pytest.raises(BadInput, match="right of item 'a' with an answer: .* declares generates = False"):
        evaluate(evaluated(tmp_path, model_folder("llama"), suite=[kind], items=tmp_path / "facts.jsonl"))


def test_what_is_wrong_in_its_items_is_one_line_with_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"run": tmp_path / "run", "subject": tmp_path / "none", "items": tmp_path / "data"}
    write_jsonl(tmp_path / "data" / "test.jsonl", [{"prompt_id": "p", "prompt": [{"role": "user", "content": "hi"}]}])
    for body, message in (
        ("def row_of_pair(self, name, pair): return pair['rows']", r"row_of_pair: KeyError: 'rows' at odd_\d+\.py:20"),
        ("def row_of_pair(self, name, pair): return name", r"row_of_pair: gives str, not dict \| None"),
    ):
        kind = odd_suite(tmp_path, monkeypatch, body)
        with pytest.raises(BadInput, match=f"suite {kind}: {message}"):
            load_items(given["items"], build(EvalConfig, given | {"suite": [kind]}, "test").suite)
    kind = odd_suite(tmp_path, monkeypatch, """
    class OddItem(Item):
        def model_post_init(self, context): self.tags[0]
    item = OddItem""")  # fmt: skip
    write_jsonl(tmp_path / "facts.jsonl", [{"id": "a", "suite": "facts", "kind": "perplexity", "text": "a text"}])
    with pytest.raises(BadInput, match=r"facts\.jsonl:1: suite facts: IndexError: .* at odd_\d+\.py:22"):
        load_items(tmp_path / "facts.jsonl", build(EvalConfig, given | {"suite": [kind]}, "test").suite)


def test_a_metric_without_results_or_scores_is_noted(
    tmp_path: Path, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = odd_suite(tmp_path, monkeypatch, f"""
    metrics = ({OTHER}, *Facts.metrics, Metric(name="wins", higher_is_better=True, kind="share", judged_by=("gold",)))
    def results(self, items, *rest): return [self.result(item, None, "unreadable") for item in items]
    """)  # fmt: skip
    write_jsonl(tmp_path / "facts.jsonl", [{"id": "a", "suite": "facts", "kind": "perplexity", "text": "a text"}])
    record = evaluate(evaluated(tmp_path, model_folder("llama"), suite=[kind], items=tmp_path / "facts.jsonl"))
    assert "suite facts: none of its items has a result of wrong" in record.notes
    assert "suite facts: no result of right has a score (unreadable)" in record.notes


def test_a_class_without_what_a_suite_declares_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = odd_suite(tmp_path, monkeypatch, "")[: -len(":Odd")] + ":Nameless"
    module = tmp_path / f"{kind.partition(':')[0]}.py"
    module.write_text(FACTS.replace("class Odd(Facts)", "class Nameless(Suite)") + "results = Facts.results\n")
    with pytest.raises(BadInput, match=f"suite {kind}: class Nameless needs name, title, metrics"):
        build(EvalConfig, {"run": "r", "subject": "s", "items": "i", "suite": [kind]}, "test")


class GoldLimit(toy_suite.WordLimit):
    """Reads the known utility."""

    name = "word-limit"
    reads = frozenset({"gold"})


def strict(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    return [-1.0] * len(completions)


def lax(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def test_another_known_utility_is_another_evaluation(tmp_path: Path, model_folder: ModelFolder) -> None:
    asked = []
    for gold in ("strict", "lax"):
        changes = {"suite": [f"{__name__}:GoldLimit"], "gold": f"{__name__}:{gold}", "run": tmp_path / "runs" / gold}
        config = evaluated(tmp_path, model_folder("llama"), **changes)
        evaluate(config)
        asked.append(read_run(config.run).headline["suites"]["word-limit"]["fingerprint"])
    assert differences(*asked) and differences(*asked)[0].startswith("'gold' differs")
