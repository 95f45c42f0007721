"""Run a recipe: a DAG of stages in one folder of runs, in which a finished step is skipped.

Inputs of a step name ``model``, ``data``, an earlier step, or a file in its run (``world/prompts.jsonl``).
A path that starts with ``./`` or ``../`` is relative to the recipe's own file.
``until=X`` runs X and its ancestors; ``X.a.b=v`` overrides a step; ``redo=X`` runs X and what follows from it
anew. A finished step with another config or other inputs stops the recipe, which names the key.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from align.cli.stages import find, run_stage, stage_config
from align.core.config import BadInput, Frozen, StageConfig, build, override
from align.core.files import lock
from align.core.problems import nearest
from align.core.run_record import RunRecord, is_ours, is_run
from align.core.runs import check_folder

EXIT = {"pass": 0, "fail": 1, "insufficient": 3}
Inputs = dict[str, str | list[str]]


class Step(Frozen):
    """One stage of a recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="names the step and the folder of its run")
    stage: str = Field(description="the verb of the stage: sft, dpo, eval, ...")
    inputs: Inputs = Field(
        default_factory=dict,
        description="inputs by key: model, data, runs, an earlier step, a file of one (step/file), or a path",
    )
    config: dict[str, Any] = Field(default_factory=dict, description="settings of the stage")


class RecipeConfig(Frozen):
    """``defaults`` are settings for every step whose stage knows them; ``gold`` is the world's own utility."""

    stage: Literal["recipe"]
    runs: Path = Field(description="the folder that the runs of all steps are written to")
    model: Path | None = Field(default=None, description="a model folder, which steps name as model")
    data: Path | None = Field(default=None, description="a file of pairs, which steps name as data")
    seed: int = Field(default=0, description="the seed of every step that sets none")
    gold: str | None = Field(default=None, description="module:function of the known utility, in a world that has one")
    until: str | None = Field(default=None, description="run only this step and those that it needs")
    redo: str | None = Field(default=None, description="run this step again, and those that read it")
    defaults: dict[str, Any] = Field(default_factory=dict, description="settings for every step whose stage knows them")
    steps: list[Step] = Field(min_length=1, description="the stages in order, each with the keys below")


def load_recipe(data: Mapping[str, Any], assignments: Iterable[str], where: str) -> RecipeConfig:
    """Apply overrides (``key=v`` to the recipe, ``step.key=v`` to a step) and validate the recipe and every step.

    Raises:
        BadInput: an unknown key, step or stage, an input that names nothing earlier, or a config its stage refuses.
    """
    if (stage := data.get("stage", "recipe")) != "recipe":
        raise BadInput(f"{where}: this is a config of stage '{stage}' and no recipe; run it with its own verb")
    data = _beside(data, Path(where).parent)
    steps = data.get("steps")
    names = [step.get("name") for step in steps if isinstance(step, Mapping)] if isinstance(steps, list) else []
    own = [a for a in assignments if a.partition("=")[0].partition(".")[0] not in names]
    for_steps = [a for a in assignments if a not in own]
    recipe = build(RecipeConfig, override(data, own), where)
    steps = [_overridden(step, for_steps) for step in recipe.steps]
    recipe = recipe.model_copy(update={"steps": steps})
    _check_names(recipe, where)
    _check_defaults(recipe, where)
    for step in recipe.steps:
        step_config(recipe, step, where)
    return recipe


def _check_defaults(recipe: RecipeConfig, where: str) -> None:
    """Refuse a default that no step of the recipe reads."""
    verbs = [find(step.stage, f"{where}: step '{step.name}'") for step in recipe.steps]
    known = {key for verb in verbs for key in _fields(verb.module, verb.config)}
    if strange := sorted(set(recipe.defaults) - known):
        hint = nearest(strange[0], known, "remove it")
        raise BadInput(f"{where}: key 'defaults.{strange[0]}' is no setting of any step; {hint}")


def step_config(recipe: RecipeConfig, step: Step, where: str) -> StageConfig:
    """Return the validated stage config of a step, with inputs resolved to paths."""
    verb = find(step.stage, f"{where}: step '{step.name}'")
    known = _fields(verb.module, verb.config)
    data: dict[str, Any] = {key: value for key, value in recipe.defaults.items() if key in known}
    data |= {"stage": step.stage, "run": recipe.runs / step.name, "seed": recipe.seed}
    if "feedback" in known:
        data["feedback"] = recipe.runs / "feedback.db"
    if "gold" in known and recipe.gold:
        data["gold"] = recipe.gold
    data |= step.config
    for name, value in step.inputs.items():
        data[name] = [_path(recipe, v) for v in value] if isinstance(value, list) else _path(recipe, value)
    return stage_config(step.stage, data, f"{where}: step '{step.name}'")


def check_folders(recipe: RecipeConfig, steps: Iterable[Step], where: str) -> None:
    """Refuse folders into which this recipe must not write.

    Raises:
        BadInput: what lies there, and where.
    """
    _check_runs(recipe)
    for step in steps:
        check_folder(step_config(recipe, step, where))


def run_recipe(recipe: RecipeConfig, where: str) -> list[RunRecord]:
    """Run the chosen steps in order, and return their records.

    Raises:
        BadInput: a folder that this recipe may not write to, before anything is run or written; or what a
            step raises.
    """
    steps = wanted(recipe)
    check_folders(recipe, steps, where)
    with lock(recipe.runs):
        if recipe.redo is not None:
            _clear(recipe)
        records = []
        for number, step in enumerate(steps, 1):
            print(f"[{number}/{len(steps)}] {step.name}", file=sys.stderr)
            records.append(run_stage(step_config(recipe, step, where), recipe.gold))
            if sentence := records[-1].headline.get("sentence"):
                print(f"[{step.stage}] {sentence}", file=sys.stderr)
    return records


def exit_code(records: Sequence[RunRecord]) -> int:
    """Return 0 pass or done, 1 fail, 3 insufficient; of several audits fail before insufficient before pass.

    An audit of an earlier version, whose record could be edited unseen, is insufficient.
    """
    audits = [record for record in records if record.stage == "audit"]
    verdicts = {record.headline.get("verdict") if record.checksum else "insufficient" for record in audits}
    return next((EXIT[verdict] for verdict in ("fail", "insufficient") if verdict in verdicts), 0)


def wanted(recipe: RecipeConfig) -> list[Step]:
    """Return all steps, or those that ``until`` needs."""
    if recipe.until is None:
        return recipe.steps
    needed = {recipe.until}
    for step in reversed(recipe.steps):
        if step.name in needed:
            needed |= parents(recipe, step)
    return [step for step in recipe.steps if step.name in needed]


def parents(recipe: RecipeConfig, step: Step) -> set[str]:
    """Return the steps that a step reads, also through the feedback store and the evaluations of a folder."""
    names = {value.partition("/")[0] for value in _flat(step.inputs)}
    if step.stage in ("pairs", "agreement"):
        names |= {other.name for other in recipe.steps if other.stage in ("simulate", "import")}
    if step.stage in ("audit", "compare"):
        names |= {other.name for other in recipe.steps if other.stage == "eval"}
    return names & {other.name for other in recipe.steps}


def _beside(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Read the recipe's own relative paths (``./``, ``../``) from the folder its file lies in."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(inner) for inner in value]
        if isinstance(value, str) and value.startswith(("./", "../")):
            return str((folder / value).resolve())
        return value

    result = {key: moved(value) if key in ("model", "data") else value for key, value in data.items()}
    if isinstance(steps := data.get("steps"), list):
        result["steps"] = [
            {**step, "inputs": {key: moved(value) for key, value in inputs.items()}}
            if isinstance(step, Mapping) and isinstance(inputs := step.get("inputs"), Mapping)
            else step
            for step in steps
        ]
    return result


def _check_runs(recipe: RecipeConfig) -> None:
    """Refuse a folder of runs that holds something and neither a run, a store nor the lock of one."""
    folder = recipe.runs
    if is_run(folder):
        raise BadInput(f"runs: {folder} is itself a run; name a folder for the runs of this recipe")
    if not folder.is_dir():
        return
    names = {path.name for path in folder.iterdir()}
    if names and not names & {".lock", "feedback.db"} and not any(is_run(folder / name) for name in names):
        raise BadInput(f"runs: {folder} holds {min(names)} and no runs; name a new or an empty folder")


def _clear(recipe: RecipeConfig) -> None:
    """Remove the run of ``redo`` and of every step that follows from it.

    Raises:
        BadInput: the store that one of them wrote has taken in a campaign, which no step could bring back.
    """
    stale = {recipe.redo}
    for step in recipe.steps:
        if step.name in stale or parents(recipe, step) & stale:
            stale.add(step.name)
    again = [step for step in recipe.steps if step.name in stale]
    if any(step.stage in ("simulate", "import") and "feedback" not in step.config for step in again):
        _clear_store(recipe.runs / "feedback.db")  # the recipe's own; one named by the user is kept
    for step in again:
        if is_run(recipe.runs / step.name) and is_ours(recipe.runs / step.name):
            shutil.rmtree(recipe.runs / step.name)


def _clear_store(path: Path) -> None:
    from annotation.store.database import COMPANIONS
    from annotation.store.ledger import campaigns
    from annotation.store.store import Store

    if path.is_file():
        with Store.open(path) as store:
            names = campaigns(store)
        if names:
            raise BadInput(
                f"redo: {path} holds judgments of the campaign '{names[0]}'; move the store away, and "
                "name its new place as the campaign's feedback"
            )
    for part in COMPANIONS:
        path.with_name(path.name + part).unlink(missing_ok=True)


def _check_names(recipe: RecipeConfig, where: str) -> None:
    seen: set[str] = set()
    for step in recipe.steps:
        if step.name in seen:
            raise BadInput(f"{where}: step '{step.name}' is given twice; names must differ")
        for value in _flat(step.inputs):
            head = value.partition("/")[0]
            if value in ("model", "data"):
                if getattr(recipe, value) is None:
                    raise BadInput(f"{where}: step '{step.name}' needs {value}; set {value}=PATH")
            elif head not in seen and value != "runs" and not Path(value).is_absolute():
                raise BadInput(f"{where}: step '{step.name}': input '{value}' names no earlier step, model or data")
        seen.add(step.name)
    for key in ("until", "redo"):
        value = getattr(recipe, key)
        if value is not None and value not in seen:
            raise BadInput(f"{where}: {key}={value}: no such step; steps are {', '.join(sorted(seen))}")


def _path(recipe: RecipeConfig, value: str) -> Path:
    if value in ("model", "data"):
        return Path(getattr(recipe, value))
    if value == "runs":
        return recipe.runs
    return Path(value) if Path(value).is_absolute() else recipe.runs / value


def _overridden(step: Step, assignments: Sequence[str]) -> Step:
    mine = [a.partition(".")[2] for a in assignments if a.partition(".")[0] == step.name]
    return step.model_copy(update={"config": override(step.config, mine)}) if mine else step


def _flat(inputs: Inputs) -> list[str]:
    return [v for value in inputs.values() for v in (value if isinstance(value, list) else [value])]


def _fields(module: str, config: str) -> set[str]:
    return set(getattr(importlib.import_module(module), config).model_fields)
