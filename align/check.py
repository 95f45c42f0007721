"""`align check`: is a YAML ready to run? Without a GPU, without the network, without loading weights.

Validates every key, finds every input that no earlier step makes, and prints the template a model will be used
with and the layout its architecture earns (measured on a two-layer random copy).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from align.core.config import BadInput, Compute, StageConfig, Template, TextConfig, override, read_yaml
from align.core.runs import input_paths
from align.recipe import load_recipe, step_config
from align.verbs import stage_config


def check(config: Path, assignments: Sequence[str]) -> int:
    """Print what is wrong with the first thing that is, or what would run."""
    data = read_yaml(config)
    if data.get("stage") == "recipe":
        recipe = load_recipe(data, assignments, str(config))
        stages = [step_config(recipe, step, str(config)) for step in recipe.steps]
        made = {recipe.runs / step.name for step in recipe.steps}
        _check_inputs(stages, made | {recipe.runs})
        print(f"{config}: {len(stages)} steps, runs in {recipe.runs}")
        if recipe.model is not None:
            _describe_model(recipe.model, _template(stages))
        return 0
    if data.get("stage") == "campaign":
        return _check_campaign(config, assignments)
    settings = override(data, assignments)
    if "stage" not in settings:
        raise BadInput(f"{config}: key 'stage' is missing; say which stage this configures")
    settings.setdefault("run", f"runs/{settings['stage']}")
    settings.pop("gold", None) if settings["stage"] in ("sft", "reward", "dpo", "ppo") else None
    stage = stage_config(settings["stage"], settings, str(config))
    _check_inputs([stage], set())
    print(f"{config}: stage {stage.stage}, run {stage.run}")
    model = getattr(stage, "model", None) or getattr(stage, "policy", None)
    if isinstance(model, Path):
        from align.core.load import find_source, template_of

        asked = stage.template("") if isinstance(stage, TextConfig) else Template()
        _describe_model(find_source(model).base, template_of(model, asked))
    return 0


def _check_campaign(config: Path, assignments: Sequence[str]) -> int:
    """A labelling campaign: its keys, its files, and how many comparisons there are to judge."""
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
        given = [name for name in stage.INPUTS if name in type(stage).model_fields]  # the rest is found while running
        for name, path in input_paths(stage, given).items():
            will_exist = any(path == run or run in path.parents for run in made)
            if not will_exist and not path.exists():
                raise BadInput(f"stage {stage.stage}: {name}: {path} does not exist")


def _template(stages: Iterable[StageConfig]) -> Template:
    """The template of the first stage that names one, else the model's own."""
    asked = [stage.template("") for stage in stages if isinstance(stage, TextConfig)]
    return next((template for template in asked if template.name), asked[0] if asked else Template())


def _describe_model(path: Path, template: Template) -> None:
    """The template and the layout of a model folder, from its configuration and tokenizer alone."""
    import torch

    from align.core.layout import layout_of, small_copy
    from align.core.load import load_tokenizer
    from align.core.text import Chat
    from align.core.weights import config_of, skeleton

    chat = Chat(load_tokenizer(path), *template)
    shown = chat.render([{"role": "user", "content": "Hello?"}], ask=True)
    stop = chat.tokenizer.convert_ids_to_tokens(chat.stop_id)
    print(f"template: {chat.name}; a prompt reads {shown!r}, an answer ends with {stop!r}")
    verdict = layout_of(small_copy(skeleton(config_of(path)), torch.device("cpu")), Compute())
    print(f"layout: {verdict.layout} ({verdict.reason})")
