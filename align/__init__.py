"""From people's preference judgments to an aligned policy with an audit: the public functions of all stages.

A stage is a config and a function that takes it, ``dpo(DPOConfig(...))``, and returns the record of its run. Names are
imported on first use, so that ``import align`` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; tests hold this list and the table against each other
    from align.audit.compare import CompareConfig as CompareConfig
    from align.audit.compare import compare as compare_arms
    from align.audit.report import ReportConfig as ReportConfig
    from align.audit.report import report as write_report
    from align.audit.run import AuditConfig as AuditConfig
    from align.audit.run import audit as run_audit
    from align.core.config import BadInput as BadInput
    from align.core.records import Comparison as Comparison
    from align.core.records import ItemResult as ItemResult
    from align.core.records import Judgment as Judgment
    from align.core.records import Pair as Pair
    from align.core.run_record import RunRecord as RunRecord
    from align.core.run_record import finished_run as finished_run
    from align.core.run_record import read_run as read_run
    from align.core.stats.differences import paired_difference as paired_difference
    from align.core.stats.estimates import Estimate as Estimate
    from align.core.stats.estimates import mean_interval as mean_interval
    from align.evals.run import EvalConfig as EvalConfig
    from align.evals.run import evaluate as evaluate
    from align.generate.run import SampleConfig as SampleConfig
    from align.generate.run import sample as sample_candidates
    from align.pocket.run import PocketConfig as PocketConfig
    from align.pocket.run import pocket as write_pocket_world
    from align.train.dpo import DPOConfig as DPOConfig
    from align.train.dpo import dpo as dpo
    from align.train.ppo import PPOConfig as PPOConfig
    from align.train.ppo import ppo as ppo
    from align.train.sft import SFTConfig as SFTConfig
    from align.train.sft import sft as sft
    from annotation.agreement.run import AgreementConfig as AgreementConfig
    from annotation.agreement.run import agreement as measure_agreement
    from annotation.importers.run import ImportConfig as ImportConfig
    from annotation.importers.run import import_preferences as import_preferences
    from annotation.pairs.run import PairsConfig as PairsConfig
    from annotation.pairs.run import pairs as make_pairs
    from annotation.simulate.run import SimulateConfig as SimulateConfig
    from annotation.simulate.run import simulate as simulate_judgments
    from annotation.store.store import Store as Store
    from rewards.run import RewardConfig as RewardConfig
    from rewards.run import reward as train_reward
    from rewards.score import ScoreConfig as ScoreConfig
    from rewards.score import score as score_candidates

__version__ = "0.1.0"

PUBLIC = {
    "CompareConfig": "align.audit.compare:CompareConfig",
    "compare_arms": "align.audit.compare:compare",
    "ReportConfig": "align.audit.report:ReportConfig",
    "write_report": "align.audit.report:report",
    "AuditConfig": "align.audit.run:AuditConfig",
    "run_audit": "align.audit.run:audit",
    "BadInput": "align.core.config:BadInput",
    "Comparison": "align.core.records:Comparison",
    "ItemResult": "align.core.records:ItemResult",
    "Judgment": "align.core.records:Judgment",
    "Pair": "align.core.records:Pair",
    "RunRecord": "align.core.run_record:RunRecord",
    "finished_run": "align.core.run_record:finished_run",
    "read_run": "align.core.run_record:read_run",
    "paired_difference": "align.core.stats.differences:paired_difference",
    "Estimate": "align.core.stats.estimates:Estimate",
    "mean_interval": "align.core.stats.estimates:mean_interval",
    "EvalConfig": "align.evals.run:EvalConfig",
    "evaluate": "align.evals.run:evaluate",
    "SampleConfig": "align.generate.run:SampleConfig",
    "sample_candidates": "align.generate.run:sample",
    "PocketConfig": "align.pocket.run:PocketConfig",
    "write_pocket_world": "align.pocket.run:pocket",
    "DPOConfig": "align.train.dpo:DPOConfig",
    "dpo": "align.train.dpo:dpo",
    "PPOConfig": "align.train.ppo:PPOConfig",
    "ppo": "align.train.ppo:ppo",
    "SFTConfig": "align.train.sft:SFTConfig",
    "sft": "align.train.sft:sft",
    "AgreementConfig": "annotation.agreement.run:AgreementConfig",
    "measure_agreement": "annotation.agreement.run:agreement",
    "ImportConfig": "annotation.importers.run:ImportConfig",
    "import_preferences": "annotation.importers.run:import_preferences",
    "PairsConfig": "annotation.pairs.run:PairsConfig",
    "make_pairs": "annotation.pairs.run:pairs",
    "SimulateConfig": "annotation.simulate.run:SimulateConfig",
    "simulate_judgments": "annotation.simulate.run:simulate",
    "Store": "annotation.store.store:Store",
    "RewardConfig": "rewards.run:RewardConfig",
    "train_reward": "rewards.run:reward",
    "ScoreConfig": "rewards.score:ScoreConfig",
    "score_candidates": "rewards.score:score",
}


def __getattr__(name: str) -> Any:
    """Import a public name from where it is defined."""
    if name not in PUBLIC:
        raise AttributeError(f"module 'align' has no attribute '{name}'")
    module, _, attribute = PUBLIC[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
