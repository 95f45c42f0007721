"""The stages by verb, each with its module, config and function, which are imported when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from align.core.config import BadInput, StageConfig, build
from align.core.run_record import RunRecord


class StageVerb(NamedTuple):
    """A verb that runs a stage; ``gold`` is the argument of its function that takes the known utility, if any."""

    module: str
    config: str
    function: str
    summary: str
    gold: str | None = None


STAGES: Mapping[str, StageVerb] = {
    "pocket": StageVerb("align.pocket.run", "PocketConfig", "pocket", "write the embedded world's files"),
    "sft": StageVerb(
        "align.train.sft",
        "SFTConfig",
        "sft",
        "demonstrations to a first policy adapter (TRL's SFTTrainer, loss on the responses)",
        "gold",
    ),
    "sample": StageVerb(
        "align.generate.run",
        "SampleConfig",
        "sample",
        "k responses per prompt to candidates.jsonl, of a policy or of an endpoint (endpoint=URL model=NAME)",
    ),
    "score": StageVerb(
        "rewards.score", "ScoreConfig", "score", "candidates and a reward model to scores and embeddings"
    ),
    "simulate": StageVerb(
        "annotation.simulate.run",
        "SimulateConfig",
        "simulate",
        "candidates to judgments of simulated people, in the store",
        "utility",
    ),
    "agreement": StageVerb(
        "annotation.agreement.run",
        "AgreementConfig",
        "agreement",
        "how far people agree: alpha, kappa and biases, as HTML and JSON",
    ),
    "pairs": StageVerb(
        "annotation.pairs.run",
        "PairsConfig",
        "pairs",
        "judgments to train, validation and test pairs, split by prompt; --card: a folder for load_dataset",
    ),
    "import": StageVerb(
        "annotation.importers.run",
        "ImportConfig",
        "import_preferences",
        "existing preference data to judgments in the store: FILE [--dry-run]",
    ),
    "reward": StageVerb(
        "rewards.run",
        "RewardConfig",
        "reward",
        "pairs to a reward model, its accuracy beside baselines and ceiling; --curve: its learning curve",
        "gold",
    ),
    "dpo": StageVerb("align.train.dpo", "DPOConfig", "dpo", "pairs to a policy adapter", "gold"),
    "ppo": StageVerb("align.train.ppo", "PPOConfig", "ppo", "a reward to a policy adapter", "gold"),
    "eval": StageVerb(
        "align.evals.run", "EvalConfig", "evaluate", "items and a policy to one result per item and metric"
    ),
    "audit": StageVerb(
        "align.audit.run", "AuditConfig", "audit", "evaluations and gates to a verdict: pass, fail or insufficient"
    ),
    "compare": StageVerb(
        "align.audit.compare",
        "CompareConfig",
        "compare",
        "policies side by side: metrics, paired differences and costs",
    ),
    "report": StageVerb("align.audit.report", "ReportConfig", "report", "one self-contained report.html"),
}


def stage_config(name: str, data: Mapping[str, Any], where: str) -> StageConfig:
    """Validate a stage's settings by its schema."""
    verb = find(name, where)
    schema: type[StageConfig] = getattr(importlib.import_module(verb.module), verb.config)
    return build(schema, data, where)


def run_stage(config: StageConfig, gold: str | None = None) -> RunRecord:
    """Run the stage of a config; ``gold`` (module:function) is given to stages that take it."""
    verb = STAGES[config.stage]
    function: Callable[..., RunRecord] = getattr(importlib.import_module(verb.module), verb.function)
    if gold is not None and verb.gold:
        from rewards.functions import load_function

        return function(config, **{verb.gold: load_function(gold)})
    return function(config)


def find(name: str, where: str) -> StageVerb:
    if not isinstance(name, str) or name not in STAGES:
        raise BadInput(f"{where}: no stage '{name}'; stages are {', '.join(STAGES)}")
    return STAGES[name]
