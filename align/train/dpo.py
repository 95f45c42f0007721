"""Stage `dpo`: preference pairs straight to a policy.

In: a pairs run and the policy to start from (an SFT run; its frozen adapter is the reference). Out:
``adapter/``. The reference runs in the same rows as the policy, so bf16 rounding cancels. An SFT term on the
chosen answer (``sft_weight``) holds their likelihood up; an alarm says when it falls all the same.
Not here: other pairwise losses, length normalisation, label smoothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field

from align.core.config import Compute, Lora, Optim, TextConfig, Tracker, Watch
from align.core.hashes import artefact_hash
from align.core.plugins import RewardFunction
from align.core.runs import Run, stage
from align.data.pairs import PromptPairs, index_pairs, load_pairs, prompts_hash, total_weight
from align.engine.checkpoints import load_checkpoint, save_checkpoint
from align.engine.distributed import Distributed
from align.engine.loop import epochs, stage_seed
from align.engine.metrics_logger import MetricsLogger
from align.engine.optimizer import RoleOptimizer
from align.engine.samples import SampleLogger, watched_rows
from align.losses.pairwise import dpo_loss, likelihood_loss
from align.model.adapters import AdapterModel
from align.model.layouts import settle
from align.model.load import context_length, find_policy, template_of
from align.model.packing import pack
from align.train import guards

ALARM = -2.0  # nats: mean log-ratio of chosen answers below which likelihood displacement is named


class DPOConfig(TextConfig):
    """Hyper-parameters of DPO; ``batch`` counts prompts."""

    INPUTS: ClassVar[tuple[str, ...]] = ("pairs", "policy")
    SHARES_WORK: ClassVar[bool] = True

    stage: Literal["dpo"] = "dpo"
    pairs: Path = Field(description="a pairs run or a folder of its form")
    policy: Path = Field(description="the policy to start from: an SFT run")
    beta: float = Field(default=0.1, gt=0, description="how strongly the policy is held to its reference")
    sft_weight: float = Field(default=0.2, ge=0, description="weight of the chosen response's own loss, per token")
    batch: int = Field(default=16, ge=1, description="prompts per optimiser step")
    epochs: int = Field(default=1, ge=1, description="passes over the data")
    optim: Optim = Optim(lr=5e-5)
    lora: Lora | None = Field(default=None, description="short for tuner: {kind: lora, ...}")
    compute: Compute = Compute()
    min_rows: int = Field(default=20, ge=1, description="refuse to train on fewer rows")
    checkpoint_every: int = Field(default=20, ge=1, description="steps")
    watch: Watch = Watch()
    tracker: Tracker = Field(default="none", description="also log to tensorboard, wandb, trackio or mlflow")


class Sums(NamedTuple):
    """Sums over the pairs of a step; ``loss`` is already over the step's denominator."""

    loss: float = 0.0
    right: float = 0.0
    margin: float = 0.0
    chosen_ratio: float = 0.0
    rejected_ratio: float = 0.0
    pairs: float = 0.0


@stage
def dpo(config: DPOConfig, run: Run, *, gold: RewardFunction | None = None) -> dict[str, Any]:
    """Train a policy on pairs; ``gold`` scores what it writes meanwhile, where the truth is known."""
    torch.manual_seed(stage_seed(config.seed, "dpo"))
    source = find_policy(config.policy)
    model = AdapterModel(source.base, config.compute, template_of(config.policy, config.template(run.record.created)))
    run.renders_with(model.chat)
    model.add_policy_and_reference(source.adapter, config.lora)
    settle(model, run.note)
    train = load_pairs(run, config.pairs, "train", model.chat, context_length(model.base), config.min_rows)
    run.record.lineage |= {"base": artefact_hash(source.base), "prompts": prompts_hash(train)}
    rows = watched_rows(config.pairs, config.watch.prompts)
    watched = SampleLogger(model, rows, max_new_tokens=config.watch.max_new_tokens, seed=config.seed, gold=gold)
    headline = _fit(config, run, model, train, watched)
    if run.is_main:
        model.save_role("policy", run.path / "adapter")
    return headline | {"train_pairs": sum(len(prompt.rows) for prompt in train)}


def _fit(
    config: DPOConfig, run: Run, model: AdapterModel, train: Sequence[PromptPairs], watched: SampleLogger
) -> dict[str, Any]:
    processes = Distributed(model.device)
    batches = epochs(len(train), config.batch, config.epochs, config.seed)
    learner = RoleOptimizer(model.parameters("policy"), config.optim, len(batches), processes)
    if resumed := load_checkpoint(run, lambda found: learner.misfit(found.tensors)):
        learner.restore(resumed.tensors, resumed.step)
    with closing(MetricsLogger(run, len(batches), config.tracker, resumed)) as journal:
        if learner.done == 0 and run.is_main:
            journal.samples(0, watched.look("policy"))
        metrics: dict[str, float] = {}
        for step, batch in enumerate(batches[learner.done :], learner.done + 1):
            prompts = [train[i] for i in batch]
            sums = _backward(config, model, processes.share(prompts), total_weight(prompts))
            metrics = _means(Sums(*processes.sum(sums)))
            if step == 1:
                guards.same_start(sums.margin, sums.chosen_ratio, sums.rejected_ratio, sums.pairs, model.compute.dtype)
            journal.log(step, metrics | learner.step(), ["loss", "accuracy"])
            if metrics["chosen_logratio"] < ALARM and not any(note.startswith("alarm") for note in run.record.notes):
                run.note(
                    f"alarm: at step {step} chosen answers are {-metrics['chosen_logratio']:.1f} nats below the "
                    "reference (likelihood displacement); raise sft_weight or beta, or lower optim.lr"
                )
            if run.is_main and (step % config.watch.every == 0 or step == len(batches)):
                journal.samples(step, watched.look("policy"))
            if step % config.checkpoint_every == 0 and step < len(batches):
                save_checkpoint(run, step, learner.tensors(), seconds=journal.seconds)
    return metrics | {"train_seconds": journal.seconds, "steps": len(batches)}


def _backward(config: DPOConfig, model: AdapterModel, prompts: Sequence[PromptPairs], denominator: float) -> Sums:
    """Accumulate the gradient of these prompts' share of the step."""
    total = Sums()
    for packed in pack([prompt.tree for prompt in prompts], model.compute.max_tokens, model.layout):
        packed = packed.to(model.device)
        pairs = index_pairs(packed, prompts)
        with torch.no_grad(), model.use(model.reference):
            reference_B = packed.sums(model.logprobs(packed))
        with model.use("policy"):
            policy_B = packed.sums(model.logprobs(packed))
            c, r = pairs.chosen_P, pairs.rejected_P
            found = dpo_loss(
                policy_B[c], policy_B[r], reference_B[c], reference_B[r], pairs.weight_P, config.beta, denominator
            )
            loss = found.loss
            if config.sft_weight:
                n_tokens_P = pairs.n_tokens_B[c]
                nll = likelihood_loss(policy_B[c], n_tokens_P, pairs.weight_P, denominator)
                loss = loss + config.sft_weight * nll
            loss.backward()
        ratio_B = (policy_B - reference_B).detach()
        part = Sums(
            loss.item(),
            (found.margin_P > 0).sum().item(),
            found.margin_P.sum().item(),
            ratio_B[c].sum().item(),
            ratio_B[r].sum().item(),
            float(len(c)),
        )
        total = Sums(*(a + b for a, b in zip(total, part, strict=True)))
    return total


def _means(sums: Sums) -> dict[str, float]:
    return {
        "loss": sums.loss,
        "accuracy": sums.right / sums.pairs,
        "margin": sums.margin / sums.pairs,
        "chosen_logratio": sums.chosen_ratio / sums.pairs,
        "rejected_logratio": sums.rejected_ratio / sums.pairs,
        "pairs": sums.pairs,
    }
