"""`align check`: check whether a YAML is ready to run, without a GPU, the network or weights.

Validates every key, finds every input that no earlier step makes, matches weights, adapters, tokenizer and target
modules with the architecture, renders a whole exchange and the first rows of the data, and prints the layout that the
architecture earns (measured on a two-layer random copy). It fails where the run would on what is there
already: what earlier steps of a recipe will make is not foreseen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from align.cli.recipe import check_folders, load_recipe, step_config
from align.cli.stages import find, stage_config
from align.core.config import BadInput, Compute, StageConfig, TextConfig, override, read_yaml
from align.core.inputs import input_paths
from align.core.runs import check_folder


def check(config: Path, assignments: Sequence[str]) -> int:
    """Print what would run, or report the first fault."""
    data = read_yaml(config)
    if data.get("stage") == "recipe":
        recipe = load_recipe(data, assignments, str(config))
        stages = [step_config(recipe, step, str(config)) for step in recipe.steps]
        made = {recipe.runs / step.name for step in recipe.steps}
        _check_inputs(stages, made | {recipe.runs})
        check_folders(recipe, recipe.steps, str(config))
        _check_functions(stages, recipe.gold)
        print(f"{config}: {len(stages)} steps, runs in {recipe.runs}")
        _check_models(stages, recipe.model)
        return 0
    if data.get("stage") == "campaign":
        return _check_campaign(config, assignments)
    settings = override(data, assignments)
    if "stage" not in settings:
        is_gates = isinstance(settings.get("gates"), list)
        what = "a file of gates is checked by 'align audit'" if is_gates else "say which stage this configures"
        raise BadInput(f"{config}: key 'stage' is missing; {what}")
    settings.setdefault("run", f"runs/{settings['stage']}")
    gold = settings.pop("gold", None) if find(settings["stage"], str(config)).gold else None
    stage = stage_config(settings["stage"], settings, str(config))
    _check_inputs([stage], set())
    check_folder(stage)
    _check_functions([stage], gold)
    print(f"{config}: stage {stage.stage}, run {stage.run}")
    _check_models([stage], None)
    return 0


def _check_campaign(config: Path, assignments: Sequence[str]) -> int:
    """Check a labelling campaign: its keys, its files, and how many comparisons there are to judge."""
    from annotation.campaign.settings import load_campaign, work_of

    campaign = load_campaign(config, assignments)
    if not campaign.candidates:
        print(f"{config}: campaign '{campaign.name}' asks about what {campaign.feedback} holds")
        return 0
    left_out: Counter[str] = Counter()
    work = work_of(campaign, [], lambda reason, count: left_out.update({reason: count}), {})
    print(f"{config}: campaign '{campaign.name}', {len(work.comparisons)} comparisons, {campaign.votes} votes each")
    for reason, count in sorted((+left_out).items()):
        print(f"left out: {count} {reason}")
    return 0


def _check_inputs(stages: Iterable[StageConfig], made: set[Path]) -> None:
    for stage in stages:
        given = [name for name in stage.INPUTS if name in type(stage).model_fields]  # the rest is checked while running
        for name, path in input_paths(stage, given).items():
            will_exist = any(path == run or run in path.parents for run in made)
            if not will_exist and not path.exists():
                raise BadInput(f"stage {stage.stage}: {name}: {path} does not exist")


def _check_functions(stages: Iterable[StageConfig], gold: str | None) -> None:
    """Import what the stages name as module:function."""
    named = [name for stage in stages for name in (*getattr(stage, "functions", ()), getattr(stage, "gold", None))]
    if not (names := [name for name in [gold, *named] if name is not None]):
        return
    from rewards.functions import load_function

    for name in names:
        load_function(name)


def _check_models(stages: Sequence[StageConfig], model: Path | None) -> None:
    """Check every policy and template of the stages once; ``model`` replaces what earlier steps make."""
    users = [stage for stage in stages if isinstance(stage, TextConfig)]
    places = {place for stage in users if (place := _policy(stage, model)) is not None}
    if not places:
        return
    from align.cli.first_rows import first_rows
    from align.cli.preflight import check_source, check_text
    from align.engine.loop import TrainingConfig
    from align.model.sources import find_policy, find_source, template_of

    data = [part for stage in stages if (part := first_rows(stage)) is not None]
    usual = next((stage.chat_template for stage in users if stage.chat_template), None)
    for place in sorted(places):
        own = [stage for stage in users if _policy(stage, model) == place]
        source = find_source(place) if all(stage.stage == "score" for stage in own) else find_policy(place)
        trained = [(stage.stage, stage.tuner) for stage in own if isinstance(stage, TrainingConfig)]
        rows = check_source(source, trained, own[0].compute if hasattr(own[0], "compute") else Compute())
        templates = {}
        for stage in own:
            template = stage.template("")
            template = template_of(place, template._replace(name=template.name or usual))
            templates[repr(template)] = template
        for template in templates.values():
            check_text(source.base, template, rows, data)


def _policy(stage: StageConfig, model: Path | None) -> Path | None:
    """Return the folder of the policy that a stage works with, or the model that the steps before it start from."""
    named = [getattr(stage, field, None) for field in ("model", "policy", "subject", "reward")]
    path = next((path for path in named if isinstance(path, Path)), None)
    return path if path is None or path.exists() else model
