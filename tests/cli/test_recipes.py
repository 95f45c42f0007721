"""Every YAML of the repository by its schema, recipes as DAGs, and the command line's words and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures.paths import ROOT

from align.audit.gates import load_gates
from align.cli import main
from align.cli.check import check
from align.cli.init import init, sizing
from align.cli.recipe import RecipeConfig, exit_code, load_recipe, run_recipe, step_config, wanted
from align.cli.stages import STAGES, stage_config
from align.core.config import BadInput, read_yaml
from align.core.run_record import RunRecord
from align.core.runs import check_folder
from align.evals.declared import EARLIER
from annotation.campaign.settings import load_campaign
from annotation.store.ledger import Ledger
from annotation.store.store import Store

YAMLS = sorted((ROOT / "configs").rglob("*.yaml"))
BASE = ROOT / "align" / "pocket" / "base"


@pytest.mark.parametrize("path", YAMLS, ids=[str(path.relative_to(ROOT)) for path in YAMLS])
def test_every_yaml_loads_by_its_schema(path: Path, tmp_path: Path) -> None:
    if path.name == "gates.yaml":
        assert load_gates(path, EARLIER)
        return
    data = read_yaml(path)
    if data.get("stage") == "recipe":
        needs = [f"{key}={BASE}" for key in ("model", "data") if key not in data]
        assert load_recipe(data, [f"runs={tmp_path}", *needs], str(path)).steps
        return
    if data.get("stage") == "campaign":
        assert load_campaign(path).name
        return
    stage_config(data["stage"], {"run": tmp_path, **data}, str(path))


def recipe(*assignments: str, **changes: Any) -> RecipeConfig:
    steps = [
        {"name": "world", "stage": "pocket"},
        {"name": "sft", "stage": "sft", "inputs": {"model": "model", "data": "world"}},
        {"name": "sample", "stage": "sample", "inputs": {"policy": "sft", "prompts": "world"}},
        {"name": "side", "stage": "pocket"},
    ]
    data = {"stage": "recipe", "runs": "runs", "model": str(BASE), "steps": steps} | changes
    return load_recipe(data, assignments, "recipe.yaml")


def test_until_runs_a_step_and_its_ancestors_only() -> None:
    assert [step.name for step in wanted(recipe("until=sample"))] == ["world", "sft", "sample"]
    assert [step.name for step in wanted(recipe("until=side"))] == ["side"]
    assert len(wanted(recipe())) == 4


def test_overrides_reach_the_recipe_or_a_step() -> None:
    found = recipe("seed=7", "sft.optim.lr=3e-6")
    assert found.seed == 7
    assert found.steps[1].config == {"optim": {"lr": 3e-6}}


@pytest.mark.parametrize(
    ("assignments", "changes", "told"),
    [
        (["sft.optim.rl=1"], {}, "unknown key 'optim.rl'.*did you mean 'lr'"),
        (["sead=1"], {}, "unknown key 'sead'.*'seed'"),
        (["until=nothing"], {}, "until=nothing: no such step"),
        (["defaults.computee=1"], {}, "key 'defaults.computee' is no setting of any step; did you mean 'compute'"),
        ([], {"defaults": {"zzzzz": 1}}, "key 'defaults.zzzzz' is no setting of any step; remove it"),
        ([], {"stage": "sft"}, "a config of stage 'sft' and no recipe; run it with its own verb"),
        (["seed=1", "seed=2"], {}, "override 'seed': 'seed' was given before it"),
        (["sft.batch=1", "sft.batch=2"], {}, "override 'batch': 'batch' was given before it"),
        (["noequals"], {}, "written key=value"),
        ([], {"model": None}, "needs model; set model=PATH"),
        ([], {"steps": [{"name": "a", "stage": "sfd"}]}, "no stage 'sfd'"),
        ([], {"steps": [{"name": "a", "stage": "pocket"}] * 2}, "is given twice"),
        ([], {"steps": [{"name": "a", "stage": "sft", "inputs": {"data": "later"}}]}, "names no earlier step"),
    ],
)
def test_a_wrong_recipe_names_what_is_wrong(assignments: list[str], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        recipe(*assignments, **changes)


@pytest.mark.parametrize(
    ("there", "runs", "told"),
    [
        ("notes/todo.txt", "notes", "holds todo.txt and no runs"),
        ("runs/sft/notes.txt", "runs", "holds notes.txt and no run"),
        ("runs/run.json", "runs", "is itself a run"),
        ("model/config.json", "model", "holds config.json and no runs"),
        ("model/config.json", "model/tuned", "lies in the input 'model'"),
    ],
)
def test_a_recipe_writes_only_where_its_own_runs_lie(there: str, runs: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / there
    file.parent.mkdir(parents=True)
    file.write_text('{"stage": "pocket", "status": "finished"}')
    (tmp_path / "runs").mkdir(exist_ok=True)
    (tmp_path / "runs" / ".lock").touch()
    own = recipe(runs=str(tmp_path / runs), model=str(tmp_path / "model"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInput, match=told):
        run_recipe(own, "recipe.yaml")
    assert sorted(tmp_path.rglob("*")) == before, "told before the first step, and before a lock"


def test_the_shipped_recipe_can_write_where_nothing_is_yet(tmp_path: Path) -> None:
    """Audits and comparisons look for evaluations when they run, not when their folder is checked."""
    path = ROOT / "configs" / "pocket" / "recipe.yaml"
    own = load_recipe(read_yaml(path), [f"runs={tmp_path / 'runs'}"], str(path))
    for step in own.steps:
        check_folder(step_config(own, step, str(path)))


def test_redo_removes_no_folder_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "runs" / "world").mkdir(parents=True)
    (tmp_path / "runs" / "world" / "run.json").write_text('{"name": "mine"}')
    with pytest.raises(BadInput, match="another program's"):
        run_recipe(recipe("redo=world", "until=world", runs=str(tmp_path / "runs")), "recipe.yaml")
    assert (tmp_path / "runs" / "world" / "run.json").exists()


def test_redo_keeps_copies_of_the_store_and_what_people_said(tmp_path: Path) -> None:
    steps = [{"name": "import", "stage": "import", "config": {"data": str(tmp_path / "pairs.jsonl")}}]
    turns = {key: [{"role": "assistant", "content": key}] for key in ("chosen", "rejected")}
    row = {"prompt": [{"role": "user", "content": "how?"}], **turns}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    runs = tmp_path / "runs"
    run_recipe(recipe(runs=str(runs), steps=steps), "recipe.yaml")
    (runs / "feedback.db-copy").write_bytes((runs / "feedback.db").read_bytes())
    run_recipe(recipe("redo=import", runs=str(runs), steps=steps), "recipe.yaml")
    assert (runs / "feedback.db-copy").is_file()
    with Store.open(runs / "feedback.db", write=True) as store:
        Ledger(store, "first hundred").begin("http://127.0.0.1:1/", 1, "{}", "hash", recovered=False)
    with pytest.raises(BadInput, match="holds judgments of the campaign 'first hundred'"):
        run_recipe(recipe("redo=import", runs=str(runs), steps=steps), "recipe.yaml")
    assert (runs / "feedback.db").is_file() and (runs / "import" / "run.json").is_file()


@pytest.mark.parametrize(
    ("verdicts", "code"), [([], 0), (["pass"], 0), (["pass", "insufficient"], 3), (["insufficient", "fail"], 1)]
)
def test_exit_code_is_the_worst_verdict(verdicts: list[str], code: int) -> None:
    records = [
        RunRecord(
            id="a", stage="audit", status="finished", path="a", seed=0, given={}, resolved={},
            headline={"verdict": verdict}, checksum="0" * 64,
        )
        for verdict in verdicts
    ]  # fmt: skip
    assert exit_code(records) == code
    earlier = [
        record.model_copy(update={"checksum": None}) for record in records if record.headline["verdict"] == "pass"
    ]
    assert exit_code(earlier) == (3 if earlier else 0), "who takes the checksum out has not passed"


def test_help_is_quick_and_names_every_verb() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "align.cli.main", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert all(f" {name}" in done.stdout for name in STAGES)
    assert "torch" not in done.stderr and "transformers" not in done.stderr, "heavy imports belong inside a verb"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run"], "name a recipe with --config"),
        (["dpo", "beta=0.1"], "key 'pairs' is missing"),
        (["dpo", "--pairs", "nowhere", "--policy", str(BASE), "run=RUN"], "nowhere: no such file or folder"),
        (["ls", "runs=nowhere"], "no such folder"),
        (["init", "--model", str(BASE), "--data", "nowhere"], "no such file"),
        (["annotate", "guess"], "name one of simulate, agreement, pairs, up"),
        (["compare"], "key 'arms' is missing"),
        (["quickstart", "rums=x"], "unknown setting 'rums'"),
        (["ls", "--config", "a.yaml", "--config", "b.yaml"], "--config: is given twice; name one file"),
        (["pocket", "run=~/x"], "key 'run': a path is read literally"),
        (["sft", "a.yaml"], "a config is named with --config a.yaml"),
        (["import", "a.jsonl", "data=b.jsonl"], "override 'data': 'data' was given before it"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main.run([word.replace("RUN", str(tmp_path / "runs" / "x")) for word in words])
    shown = capsys.readouterr().err.strip()
    assert code == 2
    assert told in shown and len(shown.splitlines()) == 1
    assert not (tmp_path / "runs" / "x" / "run.json").exists()


@pytest.mark.parametrize("key", ["run", "prompts"])
def test_a_link_to_itself_is_bad_input(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = tmp_path / "link"
    link.symlink_to(link)
    given = {"policy": BASE, "prompts": BASE / "config.json", "run": tmp_path / "run", key: link}
    assert main.run(["sample", *(f"{name}={path}" for name, path in given.items())]) == 2
    assert "link': is a link to itself; mend the link" in capsys.readouterr().err


@pytest.mark.parametrize("gold", ["7", "{mod: f}", '""', "false", "nowhere:f"])
def test_a_utility_that_is_no_function_is_bad_input(
    gold: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.jsonl").write_text("")
    words = ["annotate", "simulate", f"candidates={tmp_path / 'c.jsonl'}", f"run={tmp_path / 'run'}", f"gold={gold}"]
    assert main.run([*words, "annotators=[{name: a}]", "votes_per_comparison=1"]) == 2
    assert "module" in capsys.readouterr().err


def test_init_writes_a_recipe_that_check_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    target = tmp_path / "recipe.yaml"
    assert init(str(BASE), str(pairs), vram=24, out=str(target)) == 0
    assert check(target, ["defaults.compute.device=cpu"]) == 0
    shown = capsys.readouterr().out
    assert "layout: tree" in shown and "an answer ends with '<end>'" in shown
    with pytest.raises(BadInput, match="exists already"):
        init(str(BASE), str(pairs), out=str(target))


def test_sizing_quantizes_when_it_must_and_refuses_what_cannot_fit() -> None:
    assert sizing(500_000_000, 24)["quantization"] == "none"
    assert sizing(13_000_000_000, 24)["quantization"] == "nf4"
    with pytest.raises(BadInput, match="do not fit"):
        sizing(70_000_000_000, 24)


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ({"steps": 5}, "key 'steps'"),
        ({"steps": [{"name": "a", "stage": "sft", "inputs": ["x"]}]}, r"key 'steps\.0\.inputs'"),
        ({"steps": [3]}, r"key 'steps\.0'"),
        ({"steps": None}, "key 'steps'"),
    ],
)
def test_a_recipe_of_the_wrong_shape_is_named(tmp_path: Path, step: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        load_recipe({"stage": "recipe", "runs": str(tmp_path), **step}, [], "r.yaml")


def test_init_takes_paths_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash or a colon in a path is part of the path, not of the YAML."""
    folder = tmp_path / "run #1: mine"
    folder.mkdir()
    (folder / "a: b.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    monkeypatch.chdir(folder)
    words = ["init", "--model", str(BASE), "--data", "a: b.jsonl", "--out", "sp ace: x.yaml"]
    assert main.run(words) == 0
    assert main.run(["check", "--config", "sp ace: x.yaml"]) == 0
