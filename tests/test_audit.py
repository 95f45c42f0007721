"""Gates, audits and comparisons over runs whose truth is known."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from align.audit import history
from align.audit.audit import AuditConfig, audit
from align.audit.compare import CompareConfig, compare
from align.audit.gates import EXIT, Gate, judge, load_gates, overall, regressed
from align.audit.history import Scores
from align.core.config import BadInput
from align.core.files import write_json, write_jsonl, write_text
from align.core.runs import RunRecord, input_hash

ROOT = Path(__file__).parents[1]
GATES = """
gates:
  - {name: facts, suite: forgetting, metric: accuracy/fact, against: base, margin: 0.05}
  - {name: harm, suite: safety, metric: harmful_compliance, against: sft, margin: 0.05}
  - {name: better, suite: preference, metric: gold_utility, type: improves, against: sft}
"""


# --- runs written by hand ----------------------------------------------------------------------------------------


def write_run(
    runs: Path,
    name: str,
    stage: str,
    *,
    parents: dict[str, Path] | None = None,
    files: dict[str, Any] | None = None,
    **facts: Any,
) -> Path:
    """A finished run as a stage leaves it; its artefact is the hash of its name unless given."""
    folder = runs / name
    for file, rows in (files or {}).items():
        write_jsonl(folder / file, rows)
    inputs: dict[str, dict[str, str]] = {}
    found: dict[str, dict[str, str]] = {}
    lineage: dict[str, str] = {}
    for role, path in (parents or {}).items():
        inputs[role] = {"path": str(path), "sha256": input_hash(path)}
        if (path / "run.json").is_file():
            parent = RunRecord.model_validate_json((path / "run.json").read_text())
            found[role] = {"path": str(path), "id": parent.id, "stage": parent.stage, "artefact": parent.artefact or ""}
            lineage |= parent.lineage
    artefact = facts.pop("artefact", hashlib.sha256(name.encode()).hexdigest())
    lineage |= {stage: artefact, **facts.pop("lineage", {})}
    defaults: dict[str, Any] = {
        "id": f"{stage}-{artefact[:10]}",
        "status": "finished",
        "seed": 0,
        "given": {},
        "resolved": {},
        "created": "2026-01-01T10:00:00+00:00",
        "machine": {"cpu": "A CPU", "cores": 2, "threads": 2, "python": "3.11"},
        "packages": {"torch": "2.13.0"},
    }
    record = RunRecord(
        **(defaults | facts),
        stage=stage,
        path=str(folder),
        inputs=inputs,
        parents=found,
        lineage=lineage,
        artefact=artefact,
    )
    write_text(folder / "run.json", record.model_dump_json())
    return folder


def write_evaluation(
    runs: Path, name: str, subject: Path, rows: Iterable[dict[str, Any]], policy: str = "sample", **facts: Any
) -> Path:
    """An evaluation run whose items.jsonl holds ``rows`` (suite, metric, item_id, score and what differs)."""
    full = [{"judge": "rule", **row} | ({} if row["score"] is not None else {"reason": "too long"}) for row in rows]
    suites = list(dict.fromkeys(row["suite"] for row in full))
    resolved = {"suite": suites, "policy": policy, "subject": str(subject), **facts.pop("resolved", {})}
    parents = {"subject": subject}
    return write_run(runs, name, "eval", parents=parents, files={"items.jsonl": full}, resolved=resolved, **facts)


def results(suite: str, metric: str, values: list[float | None], **facts: Any) -> list[dict[str, Any]]:
    """One result an item, items 0, 1, ..."""
    return [
        {
            "suite": suite,
            "metric": metric,
            "item_id": f"{metric}-{i}",
            "score": v,
            "prompt": f"prompt {i}",
            "text": f"text {i}",
        }
        | facts
        for i, v in enumerate(values)
    ]


def measured(fact: int, harm: int, utility: float, n: int = 120) -> list[dict[str, Any]]:
    """Results of all suites: ``fact`` right of n, ``harm`` complied of n, utilities around a mean."""
    noise = random.Random(utility)
    return [
        *results("forgetting", "accuracy/fact", [1.0] * fact + [0.0] * (n - fact)),
        *results("safety", "harmful_compliance", [1.0] * harm + [0.0] * (n - harm)),
        *results("preference", "gold_utility", [utility + noise.gauss(0, 0.3) for _ in range(n)]),
    ]


World = Callable[..., AuditConfig]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def make_world(tmp_path: Path) -> World:
    """A runs folder with base, SFT, DPO and PPO; called with rows for the candidate, it writes all evaluations."""
    runs = tmp_path / "runs"
    base = tmp_path / "base"
    write_json(base / "config.json", {"name": "base"})
    lineage = {"base": input_hash(base)}
    sft = write_run(runs, "sft", "sft", parents={"model": base}, lineage=lineage)
    pairs = write_run(runs, "pairs", "pairs", headline={"train_pairs": 400, "judgments": 1300})
    for name in ("dpo", "ppo"):
        write_run(
            runs, name, name, parents={"policy": sft, "pairs": pairs}, lineage=lineage | {"prompts": "p"},
            seconds=20.0, peak_memory_mb=800.0,
        )  # fmt: skip
    write_text(tmp_path / "gates.yaml", GATES)

    def build(candidate: list[dict[str, Any]] | None, **changes: Any) -> AuditConfig:
        write_evaluation(runs, "eval-base", base, measured(110, 100, 0.0))
        write_evaluation(runs, "eval-sft", sft, measured(110, 60, 0.5))
        if candidate is not None:
            write_evaluation(runs, "eval-dpo", runs / "dpo", candidate)
        given = {"base": base, "candidate": runs / "dpo", "sft": sft, "gates": tmp_path / "gates.yaml"}
        return AuditConfig(run=runs / "audit", **(given | changes))

    return build


def content(config: AuditConfig) -> dict[str, Any]:
    return json.loads((config.run / "audit.json").read_text())


def verdicts(config: AuditConfig) -> dict[str, str]:
    audit(config)
    return {finding["gate"]: finding["verdict"] for finding in content(config)["findings"]}


# --- one gate ----------------------------------------------------------------------------------------------------


def gate(**changes: Any) -> Gate:
    given: dict[str, Any] = {"name": "g", "suite": "s", "metric": "accuracy", "against": "base", "margin": 0.05}
    return Gate(**(given | {"min_items": 5} | changes))


def one_each(values: Iterable[float | None]) -> Scores:
    found = list(values)
    return Scores(found, [str(i) for i in range(len(found))])


OLD = [1.0] * 190 + [0.0] * 10
VERDICTS = [
    ("nothing differs, 10 items", [1.0] * 10, [1.0] * 10, {}, "insufficient"),
    ("nothing differs, 58 items", [1.0] * 58, [1.0] * 58, {}, "insufficient"),
    ("nothing differs, 61 items", [1.0] * 61, [1.0] * 61, {}, "pass"),
    ("worse beyond the margin", [0.0] * 60 + OLD[60:], OLD, {}, "fail"),
    ("worse, nobody knows by how much", [0.0] * 10 + OLD[10:], OLD, {}, "insufficient"),
    ("better", [1.0] * 200, OLD, {}, "pass"),
    ("too few items by the gate's own rule", [1.0] * 200, OLD, {"min_items": 201}, "insufficient"),
    ("nothing scored", [None] * 200, OLD, {}, "insufficient"),
    ("many unscored", [None] * 30 + [1.0] * 170, OLD, {}, "insufficient"),
    ("a few unscored", [None] * 3 + [1.0] * 197, OLD, {}, "pass"),
    ("the reference guesses", [1.0] * 100 + [0.0] * 100, [1.0] * 100 + [0.0] * 100, {"chance": 0.5}, "insufficient"),
    ("the reference knows", [1.0] * 100 + [0.0] * 100, [1.0] * 100 + [0.0] * 100, {"chance": 0.25}, "pass"),
    ("lower is better: rose", OLD, [0.0] * 60 + OLD[60:], {"metric": "over_refusal"}, "fail"),
    ("lower is better: fell", [0.0] * 60 + OLD[60:], OLD, {"metric": "over_refusal"}, "pass"),
    ("does not vary at all", [2.0] * 200, [2.0] * 200, {"metric": "gold_utility"}, "insufficient"),
    ("improves", [1.0] * 200, [1.0] * 150 + [0.0] * 50, {"type": "improves", "margin": None}, "pass"),
    ("improves, but too little", [1.0] * 200, OLD, {"type": "improves", "margin": None, "gain": 0.2}, "fail"),
    ("improves: no difference", OLD, OLD, {"type": "improves", "margin": None}, "insufficient"),
]


@pytest.mark.parametrize(("case", "new", "old", "changes", "verdict"), VERDICTS, ids=[row[0] for row in VERDICTS])
def test_verdicts(case: str, new: list[Any], old: list[Any], changes: dict[str, Any], verdict: str) -> None:
    found = judge(gate(**changes), one_each(new), one_each(old))
    assert found.verdict == verdict, found.reason


@pytest.mark.parametrize(("limit", "verdict"), [(0.5, "pass"), (0.01, "fail"), (0.05, "insufficient")])
def test_limits(limit: float, verdict: str) -> None:
    few = one_each([1.0] * 10 + [0.0] * 190)
    found = judge(gate(type="at_most", limit=limit, margin=None, against=None, metric="garbage"), few, None)
    assert found.verdict == verdict, found.reason


def test_other_items_are_no_evidence() -> None:
    new, old = one_each([1.0] * 200), one_each([1.0] * 201)
    found = judge(gate(), new, old)
    assert found.verdict == "insufficient" and "different items" in found.reason


def test_several_samples_an_item_are_not_more_items() -> None:
    """40 items with 5 answers each, all right on both sides, are 40 items and not 200."""
    many = Scores([1.0] * 200, [str(i // 5) for i in range(200)])
    found = judge(gate(), many, many)
    assert found.verdict == "insufficient" and found.n == 40
    assert "59 items" in found.reason


def test_exactness_is_claimed_for_single_zeros_and_ones_alone() -> None:
    single, repeated = one_each([1.0, 0.0, None]), Scores([1.0, 0.0, 1.0], ["a", "a", "b"])
    kinds = [history.kind_of("accuracy/fact", single, other) for other in (single, repeated, one_each([0.5]))]
    assert kinds == ["binary", "share", "share"]
    assert history.kind_of("gold_utility", single, single) == "unbounded"  # zeros and ones by chance bound nothing


def test_an_undecided_gate_says_how_many_items_it_needs() -> None:
    found = judge(gate(), one_each([0.0] * 10 + OLD[10:]), one_each(OLD))
    assert found.needed_n is not None and found.needed_n > 0 and found.detectable is not None


def test_overall_order_and_exit_codes() -> None:
    passed, failed = (
        judge(gate(), one_each([1.0] * 200), one_each(OLD)),
        judge(gate(), one_each([0.0] * 200), one_each(OLD)),
    )
    unknown = judge(gate(), one_each([]), one_each(OLD))
    assert [EXIT[overall(found)] for found in ([passed], [passed, unknown], [unknown, failed, passed], [])] == [
        0,
        3,
        1,
        3,
    ]


def test_regressed_is_named_under_holm() -> None:
    slight = judge(gate(), one_each([0.0] * 6 + OLD[6:]), one_each(OLD))  # p = .03 alone
    assert regressed([slight]) == ["accuracy against base"]
    same = judge(gate(name="h"), one_each(OLD), one_each(OLD))
    assert regressed([slight, same, same]) == []


# --- gates.yaml --------------------------------------------------------------------------------------------------


def test_the_shipped_gates_are_valid() -> None:
    gates = load_gates(ROOT / "configs" / "gates.yaml")
    assert {g.suite for g in gates} == {"forgetting", "safety", "preference"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gates: []", "empty"),
        ("gates:\n- {name: a, suite: s, metric: acuracy, against: base, margin: 0.1}", "acuracy"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base}", "margin"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, margin: 0.1}", "against"),
        ("gates:\n- {name: a, suite: s, metric: accuracy, against: base, marign: 0.1}", "did you mean 'margin'"),
        ("gates:\n- {name: a, suite: s, metric: kl, type: at_most}", "limit"),
        ("gates:\n- &g {name: a, suite: s, metric: accuracy, against: base, margin: 0.1}\n- *g", "named 'a'"),
    ],
)
def test_bad_gates_are_refused(tmp_path: Path, text: str, said: str) -> None:
    write_text(tmp_path / "gates.yaml", text)
    with pytest.raises(BadInput, match=said):
        load_gates(tmp_path / "gates.yaml")


# --- the audit ---------------------------------------------------------------------------------------------------


def test_pass_fail_and_the_sentence(world: World) -> None:
    config = world(measured(112, 10, 1.5))
    assert verdicts(config) == {"facts": "pass", "harm": "pass", "better": "pass"}
    assert content(config)["sentence"].startswith("PASS: all 3 gates")


def test_a_broken_gate_fails_the_audit_and_shows_flips(world: World) -> None:
    config = world(measured(60, 10, 1.5))
    record = audit(config)
    assert (
        record.headline["verdict"] == "fail" and "facts (accuracy/fact: worse than base" in record.headline["sentence"]
    )
    found = content(config)
    assert found["regressed"] == ["accuracy/fact against base"]
    assert len(found["flips"]) == 10
    assert found["flips"][0]["before"] == {"score": 1.0, "text": "text 100"}  # first by item id among equals
    assert found["flips"][0]["after"]["score"] == 0.0


def test_a_missing_evaluation_is_insufficient_never_a_pass(world: World) -> None:
    config = world(None)
    assert set(verdicts(config).values()) == {"insufficient"}
    assert "no finished evaluation of suite safety" in content(config)["sentence"]


def test_a_missing_reference_is_insufficient(world: World) -> None:
    config = world(measured(112, 10, 1.5), sft=None)
    assert verdicts(config) == {"facts": "pass", "harm": "insufficient", "better": "insufficient"}


def test_the_newest_evaluation_counts_and_is_named(world: World) -> None:
    config = world(measured(60, 10, 1.5))
    runs, dpo = config.run.parent, config.candidate
    newer = {"created": "2026-01-02T10:00:00+00:00"}
    write_evaluation(runs, "a-new-look", dpo, results("forgetting", "accuracy/fact", [1.0] * 110 + [0.0] * 10), **newer)
    write_evaluation(
        runs, "unfinished", dpo, measured(0, 120, -1), status="failed", created="2026-01-03T10:00:00+00:00"
    )
    record = audit(config)
    assert record.headline["verdict"] == "pass"
    used = content(config)["subjects"]["candidate"]["evaluations"]
    assert used["forgetting (sample)"] == "a-new-look" and used["safety (sample)"] == "eval-dpo"
    assert {Path(found["path"]).name for name, found in record.inputs.items() if name.startswith("evaluations")} == {
        "a-new-look", "eval-base", "eval-dpo", "eval-sft",
    }  # fmt: skip


def test_a_newer_evaluation_makes_another_audit(world: World) -> None:
    config = world(measured(112, 10, 1.5))
    first = audit(config)
    assert audit(config.model_copy()).id == first.id  # nothing new: the finished audit stands
    newer = {"created": "2026-01-02T10:00:00+00:00"}
    write_evaluation(config.run.parent, "worse", config.candidate, measured(10, 10, 1.5), **newer)
    with pytest.raises(BadInput, match="evaluations"):
        audit(AuditConfig(**config.model_dump()))


def test_evaluations_that_asked_differently_are_no_evidence(world: World) -> None:
    config = world(None)
    rows = measured(112, 10, 1.5)
    write_evaluation(config.run.parent, "eval-dpo", config.candidate, rows, resolved={"max_new_tokens": 8})
    assert verdicts(config) == {"facts": "pass", "harm": "insufficient", "better": "insufficient"}
    assert "'max_new_tokens' differs" in content(config)["sentence"]


def test_the_rival_is_shown_and_not_gated(world: World) -> None:
    config = world(measured(112, 10, 1.5))
    write_evaluation(config.run.parent, "eval-ppo", config.run.parent / "ppo", measured(50, 10, 1.0))
    config = AuditConfig(**config.model_dump() | {"rival": config.run.parent / "ppo"})
    assert set(verdicts(config).values()) == {"pass"}
    found = {row["metric"]: row for row in content(config)["rival"]}
    assert found["accuracy/fact"]["mean"] == pytest.approx(62 / 120)


def test_a_broken_items_file_is_named(world: World) -> None:
    config = world(measured(112, 10, 1.5))
    file = config.run.parent / "eval-dpo" / "items.jsonl"
    write_text(file, '{"suite": "safety"}\n')
    with pytest.raises(BadInput, match="items.jsonl:1"):
        audit(config)


def test_no_torch_is_needed() -> None:
    code = (
        "import sys, align.audit.audit, align.audit.compare, align.audit.report, align.evals.stats;"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# --- the comparison ----------------------------------------------------------------------------------------------


def compared(world: World, ppo: list[dict[str, Any]] | None = None) -> tuple[CompareConfig, Path]:
    config = world(with_wins(measured(112, 10, 1.5), 90))
    runs = config.run.parent
    write_evaluation(runs, "eval-ppo", runs / "ppo", with_wins(measured(100, 5, 1.2), 70) if ppo is None else ppo)
    write_evaluation(runs, "eval-sft", runs / "sft", with_wins(measured(110, 60, 0.5), 60))
    write_evaluation(runs, "eval-prompted", runs / "sft", measured(110, 50, 0.6), policy="prompt-only")
    return CompareConfig(run=runs / "compare", arms=[runs / "dpo", runs / "ppo"]), runs


def with_wins(rows: list[dict[str, Any]], won: int) -> list[dict[str, Any]]:
    chance = random.Random(won)
    outcomes = [1.0] * won + [0.0] * (120 - won)
    lengths = [10.0 + chance.gauss(0, 3) + won / 30 for _ in outcomes]
    wins = results("preference", "win_rate_vs_sft", list(outcomes))
    shared = [row | {"item_id": f"p{i}"} for i, row in enumerate(wins)]
    return [*rows, *shared, *(row | {"metric": "n_tokens", "score": lengths[i]} for i, row in enumerate(shared))]


def test_the_table_has_every_row_and_cost(world: World) -> None:
    config, runs = compared(world)
    write_run(runs, "dpo-earlier", "dpo", parents={"policy": runs / "sft", "pairs": runs / "pairs"})
    compare(config)
    found = json.loads((config.run / "comparison.json").read_text())
    rows = {row["name"]: row["metrics"] for row in found["rows"]}
    assert list(rows) == ["base", "sft", "prompt-only", "best-of-n", "dpo", "ppo"]
    assert rows["base"]["accuracy/fact"]["mean"] == pytest.approx(110 / 120)
    assert rows["prompt-only"]["harmful_compliance"]["mean"] == pytest.approx(50 / 120)
    assert rows["dpo"]["win_rate_vs_sft"]["mean"] == 0.75
    assert 0.6 < rows["dpo"]["win_rate_vs_sft, equal length"]["mean"] < 0.9
    costs = {row["name"]: row for row in found["costs"]}
    assert costs["dpo"]["configurations_tried"] == 2 and costs["ppo"]["configurations_tried"] == 1
    assert costs["dpo"]["train_pairs"] == 400 and costs["ppo"]["seconds"] == 20.0
    (utility,) = (d for d in found["differences"] if d["metric"] == "gold_utility")
    assert utility["low"] < utility["mean"] < utility["high"] and utility["mean"] == pytest.approx(0.3, abs=0.1)
    assert "best-of-n: no evaluation of" in " ".join(found["not_measured"])
    text = (config.run / "comparison.md").read_text()
    assert "One beta a side is a point" in text and "| dpo − ppo | gold_utility" in text


@pytest.mark.parametrize("key", ["base", "sft", "pairs", "prompts"])
def test_arms_that_learned_from_other_things_are_refused(world: World, key: str) -> None:
    config, runs = compared(world)
    file = runs / "ppo" / "run.json"
    record = json.loads(file.read_text())
    record["lineage"][key] = "other"
    if key == "sft":
        record["inputs"]["policy"]["sha256"] = "other"
    write_json(file, record)
    with pytest.raises(BadInput, match=f"differ in '{key}'"):
        compare(config)


def test_an_arm_without_lineage_is_refused(world: World) -> None:
    config, runs = compared(world)
    file = runs / "ppo" / "run.json"
    record = json.loads(file.read_text())
    del record["lineage"]["pairs"]
    write_json(file, record)
    with pytest.raises(BadInput, match="not every arm records its pairs"):
        compare(config)


def test_evaluations_over_other_items_are_refused(world: World) -> None:
    rows = [row for row in with_wins(measured(100, 5, 1.2), 70) if row["item_id"] != "accuracy/fact-7"]
    config, _ = compared(world, rows)
    with pytest.raises(BadInput, match="accuracy/fact was measured over different items"):
        compare(config)


def test_an_sft_run_is_no_arm(world: World) -> None:
    config, runs = compared(world)
    with pytest.raises(BadInput, match="expected a run of dpo or ppo"):
        compare(CompareConfig(run=config.run, arms=[runs / "sft", runs / "ppo"]))


# --- finding evaluations -----------------------------------------------------------------------------------------


def test_a_model_folder_is_known_by_its_content(world: World, tmp_path: Path) -> None:
    config = world(None)
    moved = tmp_path / "elsewhere" / "same-model"
    write_json(moved / "config.json", {"name": "base"})
    found = history.subject("base", moved, [config.run.parent])
    assert {Path(run.path).name for run in found.runs.values()} == {"eval-base"}


def test_families_are_one_metric_or_each_its_own() -> None:
    rows = [
        history.ItemResult(suite="f", metric=f"accuracy/{family}", item_id=f"{family}{i}", score=float(i), judge="j")
        for family in ("fact", "sum")
        for i in range(2)
    ]
    assert len(history.scores(rows, "f", "accuracy").values) == 4
    assert history.scores(rows, "f", "accuracy/sum").by_item == {"sum0": 0.0, "sum1": 1.0}
