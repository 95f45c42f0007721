"""A reward that a policy was trained on is no test of it: who judges, and what becomes of its numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.audit_world import World, compared, content, edit_run, results, verdicts, write_evaluation
from fixtures.judging import comparison, said
from fixtures.pairs_run import write_pairs_run
from fixtures.paths import ROOT
from fixtures.small_trees import ModelFolder

from align.audit.compare import compare
from align.audit.report import ReportConfig, report
from align.cli.init import init
from align.core.config import BadInput, Optim, Watch, read_yaml
from align.core.files import read_jsonl, write_jsonl, write_text
from align.core.run_record import RunRecord, read_run
from align.evals.run import EvalConfig, evaluate
from align.evals.training_reward import LABEL, trained_on, training_metrics
from align.model.tuners.lora import Lora
from align.train.ppo import PPOConfig, ppo
from annotation.pairs.run import PairsConfig, pairs
from annotation.store.store import Store
from rewards.run import RewardConfig, reward

BASE = ROOT / "align" / "pocket" / "base"


# --- judgments that no policy learns from -------------------------------------------------------------------------


def pairs_of(folder: Path, name: str, **settings: Any) -> dict[str, list[dict[str, Any]]]:
    pairs(PairsConfig(run=folder / name, feedback=folder / "feedback.db", validation=0.1, test=0.2, **settings))
    return {split: read_jsonl(folder / name / f"{split}.jsonl") for split in ("train", "validation", "test")}


def test_policies_and_judge_learn_from_other_prompts(tmp_path: Path) -> None:
    items = [comparison(f"prompt {n // 2}{'!' * (n % 2)}", "good", "bad") for n in range(120)]  # 60, and one like each
    with Store.open(tmp_path / "feedback.db", write=True) as store:
        store.add_comparisons(items)
        store.add_judgments([said(item, "good", f"person {n % 3}") for n, item in enumerate(items)])
    everyone = pairs_of(tmp_path, "everyone")
    policies = pairs_of(tmp_path, "policies", judge_share=0.3)
    judge = pairs_of(tmp_path, "judge", judge_share=0.3, for_judge=True)
    assert everyone["test"] == policies["test"] == judge["test"]
    assert everyone["validation"] == policies["validation"] == judge["validation"]
    both = [*policies["train"], *judge["train"]]
    assert sorted(row["comparison_id"] for row in both) == sorted(row["comparison_id"] for row in everyone["train"])
    said_to = [{row["prompt"][-1]["content"].strip("!") for row in side["train"]} for side in (policies, judge)]
    assert not said_to[0] & said_to[1], "prompts that are nearly alike go together"
    assert 0.15 <= len(said_to[1]) / (len(said_to[0]) + len(said_to[1])) <= 0.45
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("policies", "judge")]
    assert manifests[0]["left_to_the_judge"] == len(judge["train"])
    assert manifests[1]["left_to_policies"] == len(policies["train"])
    assert manifests[0]["judgments"] == 120 - len(judge["train"]), "what is left out counts nowhere"
    with pytest.raises(ValueError, match="for_judge: say which share"):
        PairsConfig(run=tmp_path / "x", for_judge=True)


# --- what is recorded ---------------------------------------------------------------------------------------------


def shouted(prompts: Any, completions: Any, **_: Any) -> list[float]:
    return [float(len(completion[0]["content"])) for completion in completions]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model_folder: ModelFolder) -> Path:
    """A runs folder: pairs, two rewards on them, and a policy that followed the first of them and a function."""
    runs = tmp_path_factory.mktemp("trained") / "runs"
    rows = [(f"is the sky blue {i}", "yes thank you", "no maybe") for i in range(8)]
    write_pairs_run(runs / "pairs", {"train": rows, "test": [(f"{prompt} today", a, b) for prompt, a, b in rows]})
    for name, seed in (("reward", 0), ("judge", 1)):
        reward(
            RewardConfig(
                run=runs / name, seed=seed, pairs=runs / "pairs", policy=model_folder("llama"), batch=8, epochs=1,
                min_rows=1, optim=Optim(lr=1e-2),
            )
        )  # fmt: skip
    ppo(
        PPOConfig(
            run=runs / "ppo", policy=model_folder("llama"), pairs=runs / "pairs", reward=runs / "reward",
            functions=[f"{__name__}:shouted"], iterations=1, batch=4, samples=1, minibatches=1, max_new_tokens=4,
            kl_prompts=2, watch=Watch(prompts=0), tuner=Lora(r=4, alpha=8),
        )
    )  # fmt: skip
    return runs


def evaluated(trained: Path, name: str, **settings: Any) -> tuple[RunRecord, dict[str, set[str]]]:
    """An evaluation by the training reward, and its judges by metric."""
    given = {
        "run": trained / name, "subject": trained / "ppo", "items": trained / "pairs", "suite": ["preference"],
        "policy": "sample", "max_new_tokens": 4, "reward": trained / "reward", "sft": BASE,
    }  # fmt: skip
    record = evaluate(EvalConfig(**given | settings))
    judges: dict[str, set[str]] = {}
    for row in read_jsonl(trained / name / "items.jsonl"):
        judges.setdefault(row["metric"], set()).add(row["judge"])
    return record, judges


def test_a_policy_records_every_reward_it_learned_from(trained: Path, model_folder: ModelFolder) -> None:
    record, first = read_run(trained / "ppo"), read_run(trained / "reward").artefact
    assert trained_on(record) == {first, f"{__name__}:shouted"}
    ppo(
        PPOConfig(
            run=trained / "again", policy=trained / "ppo", pairs=trained / "pairs", reward=trained / "judge",
            iterations=1, batch=4, samples=1, minibatches=1, max_new_tokens=4, kl_prompts=2, watch=Watch(prompts=0),
        )
    )  # fmt: skip
    second = read_run(trained / "judge").artefact
    assert trained_on(read_run(trained / "again")) == {first, second, f"{__name__}:shouted"}
    assert trained_on(read_run(trained / "judge"), None) == {second}


def test_an_evaluation_names_the_training_reward_and_takes_no_win_rate_from_it(
    trained: Path, model_folder: ModelFolder
) -> None:
    sft = model_folder("llama")
    record, judges = evaluated(trained, "own", sft=sft)
    assert judges["reward_score"] == {f"reward model ({LABEL})"} and "win_rate_vs_sft" not in judges
    assert record.headline["training_reward"] == ["reward_score"]
    assert any(f"reward_score: by what the policy was trained on ({LABEL})" in n for n in record.notes)

    record, judges = evaluated(trained, "other", sft=sft, reward=trained / "judge")
    assert judges["reward_score"] == judges["win_rate_vs_sft"] == {"reward model"}
    assert record.headline["training_reward"] == []
    assert any("learned from the pairs that the policy learned from" in note for note in record.notes)

    record, judges = evaluated(trained, "gold", sft=sft, reward=None, gold=f"{__name__}:shouted")
    assert judges["gold_utility"] == {f"{__name__}:shouted ({LABEL})"} and "win_rate_vs_sft" not in judges

    record, judges = evaluated(trained, "chosen", sft=sft, reward=trained / "judge", policy="best-of-n", n=2)
    assert judges["reward_score"] == {"reward model (which chose among the answers)"}
    assert "win_rate_vs_sft" not in judges and record.headline["training_reward"] == []


def test_an_evaluation_counts_the_prompts_that_the_policy_was_trained_on(trained: Path, tmp_path: Path) -> None:
    asked = ("Is the sky blue 0?", "is the sky green")
    shared = {"suite": "preference", "kind": "generate"}
    rows = [shared | {"id": text, "prompt": [{"role": "user", "content": text}]} for text in asked]
    write_jsonl(tmp_path / "items.jsonl", rows)
    record, _ = evaluated(trained, "seen", items=tmp_path / "items.jsonl", sft=None, reward=None)
    assert record.headline["trained_on_items"] == {"preference": 1}
    said = "1 of 2 preference items are prompts that the policy was trained on: they say little about others"
    assert record.headline["caveats"] == [said] and said in record.notes
    assert evaluated(trained, "unseen", sft=None, reward=None)[0].headline["trained_on_items"] == {}


def test_a_training_reward_under_another_name_is_still_one(
    trained: Path, model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_other_name.py").write_text(f"from {__name__} import shouted as praise\n")
    monkeypatch.syspath_prepend(tmp_path)
    record, judges = evaluated(trained, "alias", sft=model_folder("llama"), reward=None, gold="my_other_name:praise")
    assert judges["gold_utility"] == {f"my_other_name:praise ({LABEL})"} and "win_rate_vs_sft" not in judges
    assert "gold_utility" in training_metrics(record, {f"{__name__}:shouted"})
    assert not training_metrics(record, {f"{__name__}:other"})


def test_the_report_names_the_training_reward(trained: Path, model_folder: ModelFolder) -> None:
    evaluated(trained, "told", sft=model_folder("llama"))
    report(ReportConfig(run=trained / "report", runs_folder=trained))
    assert f"reward_score, {LABEL}" in (trained / "report" / "report.html").read_text()


# --- gates and comparisons ----------------------------------------------------------------------------------------

GATES = """
gates:
  - {name: preferred, suite: preference, metric: reward_score, type: improves, against: sft, range: [-5, 5]}
  - {name: useful, suite: preference, metric: gold_utility, type: improves, against: sft, range: [-5, 5]}
"""
REWARD, GOLD = "r" * 64, "m:gold"


def rows(score: float) -> list[dict[str, Any]]:
    found = results("preference", "reward_score", [score + i / 1000 for i in range(120)], judge="reward model")
    return found + results("preference", "gold_utility", [score + i / 1000 for i in range(120)], judge=GOLD)


def judged_by(folder: Path, rewards: str, gold: str | None = GOLD) -> None:
    record = read_run(folder)
    reward = {"path": "reward", "sha256": rewards}
    edit_run(folder, inputs=record.inputs | {"reward": reward}, resolved=record.resolved | {"gold": gold})


@pytest.mark.parametrize(
    ("learned", "preferred", "useful"),
    [(None, "pass", "pass"), (REWARD, "insufficient", "pass"), (f"{GOLD} {REWARD}", "insufficient", "insufficient"),
     ("s" * 64, "pass", "pass")],
)  # fmt: skip
def test_a_training_reward_decides_no_gate(world: World, learned: str | None, preferred: str, useful: str) -> None:
    config = world(None)
    write_text(config.gates, GATES)
    write_evaluation(config.run.parent, "eval-dpo", config.candidate, rows(2.0))
    write_evaluation(config.run.parent, "eval-sft", config.sft, rows(1.0))
    for name in ("eval-dpo", "eval-sft"):
        judged_by(config.run.parent / name, REWARD)
    if learned:
        edit_run(config.candidate, lineage=read_run(config.candidate).lineage | {"rewards": learned})
    assert verdicts(config) == {"preferred": preferred, "useful": useful}
    reasons = {finding["gate"]: finding["reason"] for finding in content(config)["findings"]}
    assert (f"measured reward_score by a {LABEL}" in reasons["preferred"]) == (preferred == "insufficient")


def test_a_comparison_names_the_training_reward_and_has_no_win_rate_by_it(world: World) -> None:
    config, runs = compared(world)
    for name in ("base", "sft", "dpo", "ppo", "prompted"):
        judged_by(runs / f"eval-{name}", REWARD, gold=None)
    edit_run(runs / "ppo", lineage=read_run(runs / "ppo").lineage | {"rewards": REWARD})
    compare(config)
    found = json.loads((config.run / "comparison.json").read_text())
    for row in found["rows"]:
        assert not any(metric.startswith("win_rate_vs_sft") for metric in row["metrics"])
    assert not any(d["metric"].startswith("win_rate_vs_sft") for d in found["differences"])
    assert any(f"dpo: no win rate, since eval-dpo judged by the reward that an arm was trained on ({LABEL})" in line
               for line in found["not_measured"])  # fmt: skip


def test_which_metrics_a_reward_gave() -> None:
    def record(judges: list[str] | None, gold: str | None) -> RunRecord:
        wins = {} if judges is None else {"metrics": {"win_rate_vs_sft": {"judges": judges}}}
        return RunRecord(
            id="e", stage="eval", status="finished", path="e", seed=0, given={},
            resolved={"gold": gold, "suite": "preference"},
            inputs={"reward": {"path": "r", "sha256": REWARD}}, headline=wins,
        )  # fmt: skip

    assert training_metrics(record(None, None), {REWARD}) == {"reward_score", "win_rate_vs_sft"}
    assert training_metrics(record(None, GOLD), {REWARD}) == {"reward_score"}
    assert training_metrics(record([GOLD, "reward model"], GOLD), {REWARD}) == {"reward_score", "win_rate_vs_sft"}
    assert training_metrics(record([GOLD], GOLD), {GOLD}) == {"gold_utility", "win_rate_vs_sft"}
    assert training_metrics(record([GOLD], GOLD), {"another"}) == frozenset()


# --- recipes ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["hh", "init"])
def shipped(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "hh":
        return ROOT / "configs" / "hh" / "recipe.yaml"
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    init(str(BASE), str(data), out=str(tmp_path / "recipe.yaml"))
    return tmp_path / "recipe.yaml"


def test_evaluations_read_a_judge_that_nothing_was_trained_on(shipped: Path) -> None:
    steps = {step["name"]: step for step in read_yaml(shipped)["steps"]}
    reward_step, judge = steps["reward"], steps["judge"]
    assert steps["ppo"]["inputs"]["reward"] == "reward" and judge["stage"] == "reward"
    evaluations = [step for step in steps.values() if step["stage"] == "eval"]
    assert [step["inputs"]["subject"] for step in evaluations] == ["model", "sft", "dpo", "ppo"]
    assert {step["inputs"]["reward"] for step in evaluations} == {"judge"}
    assert (reward_step["inputs"]["pairs"], judge["inputs"]["pairs"]) == ("pairs", "judge-pairs")
    assert "seed" not in reward_step["config"] and judge["config"]["seed"] > 0
    split = steps["pairs"]["config"]
    assert 0 < split["judge_share"] < 1
    assert steps["judge-pairs"]["config"] == split | {"for_judge": True}
    policies = [step["inputs"] for name, step in steps.items() if name in ("sft", "dpo", "ppo", "reward")]
    assert not any("judge" in str(inputs) for inputs in policies)
    audits = [step for step in steps.values() if step["stage"] == "audit"]
    assert [audit["inputs"]["candidate"] for audit in audits] == ["dpo", "ppo"]
    assert all((shipped.parent / audit["inputs"]["gates"]).is_file() for audit in audits)
    assert steps["report"]["inputs"]["audits"] == [audit["name"] for audit in audits]


def test_init_leaves_gates_that_stand_there_alone(tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("{}\n")
    (tmp_path / "mine.gates.yaml").write_text("gates: []\n")
    with pytest.raises(BadInput, match=r"mine\.gates\.yaml: exists already"):
        init(str(BASE), str(data), out=str(tmp_path / "mine.yaml"))
    assert not (tmp_path / "mine.yaml").exists()
