"""The verbs a user can type, each with the module, config and function behind it; nothing heavy is imported here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from align.core.config import BadInput, StageConfig, build
from align.core.run_record import RunRecord


class Verb(NamedTuple):
    """A stage by name; ``gold`` is the keyword its function takes the known utility under, where it does."""

    module: str
    config: str
    function: str
    summary: str
    gold: str | None = None


STAGES: Mapping[str, Verb] = {
    "pocket": Verb("align.pocket.run", "PocketConfig", "pocket", "write the embedded world's files"),
    "sft": Verb("align.train.sft", "SFTConfig", "sft", "demonstrations to a first policy", "gold"),
    "sample": Verb("align.generate.run", "SampleConfig", "sample", "k responses a prompt, of a policy or an endpoint"),
    "score": Verb("rewards.score", "ScoreConfig", "score", "candidates x a reward model to scores"),
    "simulate": Verb("annotation.simulate.run", "SimulateConfig", "simulate", "let simulated people judge", "utility"),
    "agreement": Verb("annotation.agreement.run", "AgreementConfig", "agreement", "how far people agree"),
    "pairs": Verb("annotation.pairs.run", "PairsConfig", "pairs", "judgments to train, validation and test pairs"),
    "import": Verb(
        "annotation.importers.run", "ImportConfig", "import_preferences", "judgments to the store: FILE [--dry-run]"
    ),
    "reward": Verb("rewards.run", "RewardConfig", "reward", "pairs to a reward model", "gold"),
    "dpo": Verb("align.train.dpo", "DPOConfig", "dpo", "pairs to a policy", "gold"),
    "ppo": Verb("align.train.ppo", "PPOConfig", "ppo", "a reward to a policy", "gold"),
    "eval": Verb("align.evals.run", "EvalConfig", "evaluate", "items x a policy to results"),
    "audit": Verb("align.audit.run", "AuditConfig", "audit", "what got better and what broke: a verdict"),
    "compare": Verb("align.audit.compare", "CompareConfig", "compare", "arms side by side"),
    "report": Verb("align.audit.report", "ReportConfig", "report", "one self-contained report.html"),
}


def stage_config(name: str, data: Mapping[str, Any], where: str) -> StageConfig:
    """Validate a stage's settings by its schema."""
    verb = find(name, where)
    schema: type[StageConfig] = getattr(importlib.import_module(verb.module), verb.config)
    return build(schema, data, where)


def run_stage(config: StageConfig, gold: str | None = None) -> RunRecord:
    """Run the stage a config is for; ``gold`` (module:function) is handed to stages that take it."""
    verb = STAGES[config.stage]
    function: Callable[..., RunRecord] = getattr(importlib.import_module(verb.module), verb.function)
    if gold is not None and verb.gold:
        from rewards.functions import load_function

        return function(config, **{verb.gold: load_function(gold)})
    return function(config)


def find(name: str, where: str) -> Verb:
    if not isinstance(name, str) or name not in STAGES:
        raise BadInput(f"{where}: no stage '{name}'; stages are {', '.join(STAGES)}")
    return STAGES[name]
