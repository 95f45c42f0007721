"""Stage `ppo`: RLHF with PPO, four roles on one base.

In: the policy to start from (an SFT run; its frozen adapter is the reference), rewards (reward runs, functions, or
classes of other packages), and the prompts of a pairs run. Out: ``adapter/`` (policy) and ``value/`` (critic).
An iteration has five steps: act, judge, assign credit, account, improve. Rollouts, old log-probabilities and updates
use the same packed batches in all epochs, so the first ratio is exactly 1.
Not here: reward whitening, an adaptive KL coefficient, PPO-ptx, advantages shared within a prompt.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from align.core.config import MOST_EPOCHS, BadInput, Optim, Watch
from align.core.plugins import RewardFunction
from align.core.runs import Run
from align.core.stage import stage
from align.engine.loop import TrainingConfig, TrainingLoop, epochs
from align.engine.samples import SampleLogger, sample_rows
from align.generate.local import LocalSampler
from align.generate.sampler import Request, Sample, TokenSampler, sample_all
from align.losses.policy_gradient import policy_loss
from align.losses.value import value_loss
from align.model.adapters import AdapterModel
from align.model.open import TRAINED_POLICY, Role, open_models
from align.model.packing import Tree
from align.model.roles import RoleModel
from align.train import guards
from align.train.rollouts import (
    Rollout,
    TrainingPrompt,
    assign_credit,
    judge,
    load_prompts,
    summarise_rollouts,
)
from rewards.functions import code_of
from rewards.model import score_by_roles
from rewards.reward import Rewards, RewardsSetting


class PPOConfig(TrainingConfig):
    """Hyper-parameters of PPO; ``batch`` counts prompts of an iteration, each with ``samples`` responses."""

    INPUTS: ClassVar[tuple[str, ...]] = ("policy", "reward", "pairs")
    SHARES_WORK: ClassVar[bool] = True

    stage: Literal["ppo"] = "ppo"
    policy: Path = Field(description="the policy to start from: an SFT run")
    pairs: Path = Field(description="the pairs run whose training prompts are used")
    reward: Path | None = Field(default=None, description="a reward run; short for rewards: {kind: run, path: RUN}")
    functions: list[str] = Field(
        default_factory=list, description="module:function; short for rewards: {kind: function, name: module:function}"
    )
    rewards: RewardsSetting | None = Field(
        default=None,
        description="one or a list, added up with reward and functions; kind: run, function, or module:Class",
    )
    iterations: int = Field(default=50, ge=1, le=1_000_000, description="rounds of sampling and learning")
    batch: int = Field(default=32, ge=1, description="prompts per iteration")
    samples: int = Field(default=4, ge=1, le=10_000, description="responses per prompt")
    epochs: int = Field(default=1, ge=1, le=MOST_EPOCHS, description="passes over the responses of an iteration")
    minibatches: int = Field(default=4, ge=1, description="optimiser steps per epoch")
    kl: float = Field(default=0.05, ge=0, description="coefficient of the per-token KL in the reward")
    kl_max: float | None = Field(default=None, gt=0, description="nats per response; training stops beyond it")
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount of later rewards")
    lam: float = Field(default=0.95, ge=0, le=1, description="lambda of generalised advantage estimation")
    clip: float = Field(
        default=0.2, gt=0, description="most that the probability ratio may move the loss, on either side of 1"
    )
    value_clip: float = Field(default=0.2, gt=0, description="most that a value may move in one iteration")
    temperature: float = Field(default=1.0, gt=0, description="divides the logits before sampling")
    max_new_tokens: int = Field(default=64, ge=1, description="most tokens of a response")
    sampler: TokenSampler | None = Field(default=None, description="kind: local, or module:Class; null is local")
    missing_eos_penalty: float = Field(default=1.0, ge=0, description="taken off the score of a cut response")
    kl_prompts: int = Field(default=64, ge=1, description="prompts for the three KL estimates at the end")
    optim: Optim = Optim(lr=5e-5, eps=1e-5)
    value_optim: Optim = Optim(lr=1e-4, eps=1e-5)
    checkpoint_every: int = Field(default=5, ge=1, description="iterations")
    watch: Watch = Watch()

    def input_hashes(self) -> dict[str, str]:
        """Hash of the code of the reward functions: a changed function makes another run."""
        return {"functions": code_of(*self.functions)} if self.functions else {}

    @functools.cached_property
    def all_rewards(self) -> Rewards:
        """The rewards of all three keys."""
        return Rewards.of(self.reward, self.functions, self.rewards or [])

    @property
    def roles(self) -> dict[str, Role]:
        """Policy, reference, rewards and value; the value starts from the first reward model where there is one."""
        rewards = {name: Role(weights=reward) for name, reward in self.all_rewards.roles.items()}
        if not rewards:
            return {**TRAINED_POLICY, "value": Role(trainable=True, has_head=True)}
        return {**TRAINED_POLICY, **rewards, "value": rewards["reward"]._replace(trainable=True)}


@stage
def ppo(config: PPOConfig, run: Run, *, gold: RewardFunction | None = None) -> dict[str, Any]:
    """Train a policy by its rewards; ``gold`` gives the true utility of its responses, where it is known."""
    rewards = config.all_rewards
    if not (rewards.texts or rewards.roles):
        raise BadInput("ppo: nothing rewards the policy; set reward: RUN, functions: [module:function], or rewards")
    model = open_models(run, config, config.policy, config.roles, tuner=config.tuner)
    prompts = load_prompts(run, model, config.pairs, config.max_new_tokens)
    if len(prompts) < config.batch:
        raise BadInput(
            f"{config.pairs}: {len(prompts)} usable prompts, ppo.batch asks for {config.batch} per iteration; "
            "lower batch or max_new_tokens"
        )
    run.record.lineage |= {"rewards": _learned_from(rewards, run)}
    samples = SampleLogger(
        model,
        sample_rows(config.pairs, config.watch.prompts),
        config.watch,
        config.seed,
        sampler=config.sampler,
        score=functools.partial(score_by_roles, model, rewards.roles) if rewards.roles else None,
        gold=gold,
    )
    optims = {"policy": config.optim, "value": config.value_optim}
    updates = config.epochs * min(config.minibatches, config.batch)
    loop = TrainingLoop(run, config, model, optims, config.iterations, updates=updates, samples=samples)
    with closing(loop):
        iterations = _iterate(config, run, model, loop, minibatches(config, prompts), gold)
    if run.is_main:
        model.save_role("policy", run.path / "adapter")
        model.save_role("value", run.path / "value")
    kl = _measure_kl(config, run, model, prompts[: config.kl_prompts])
    return {"kl": kl, "train_seconds": loop.metrics.seconds, "iterations": iterations}


def _iterate(
    config: PPOConfig,
    run: Run,
    model: AdapterModel,
    loop: TrainingLoop,
    batches: Sequence[list[list[TrainingPrompt]]],
    gold: RewardFunction | None,
) -> int:
    """Run the remaining iterations; returns how many updated the policy (fewer than configured if kl_max stops it)."""
    for iteration in loop.steps():
        prompts = [loop.share(part) for part in batches[iteration - 1]]
        # 1 act
        samples = iter(act(config, model, iteration, [prompt for part in prompts for prompt in part]))
        # 2 judge
        scored, rollouts = judge(
            model,
            config.all_rewards,
            [(part, [next(samples) for _ in part]) for part in prompts],
            temperature=config.temperature,
            missing_eos_penalty=config.missing_eos_penalty,
            gold=gold,
            check=iteration == 1 or bool(config.sampler and config.sampler.code()),
        )
        # 3 assign credit
        rollouts = assign_credit(rollouts, config.kl, config.gamma, config.lam, loop.processes)
        # 4 account (before the update, which a KL that is too large prevents)
        metrics = summarise_rollouts(scored, rollouts, loop.processes)
        if config.kl_max is not None and (metrics["kl"] or 0.0) > config.kl_max:
            loop.metrics.log(iteration, metrics)
            loop.log_samples(iteration)
            run.note(
                f"stopped before the update of iteration {iteration}: KL {metrics['kl']:.2f} nats per response passed "
                f"kl_max {config.kl_max}; raise kl or lower optim.lr"
            )
            return iteration - 1
        # 5 improve
        metrics |= improve(config, model, loop, rollouts, check=iteration == 1)
        loop.metrics.log(iteration, metrics, ["score", "kl", "utility"])
    return config.iterations


def act(
    config: PPOConfig, model: AdapterModel, iteration: int | str, prompts: Sequence[TrainingPrompt]
) -> list[Sequence[Sample]]:
    """Sample responses; the seed of each is made of (seed, stage, iteration, prompt, number)."""
    sampler = config.sampler or LocalSampler()
    requests = [
        Request(
            str(number),
            (config.seed, "ppo", iteration, prompt.id),
            prompt.messages,
            prompt_ids=prompt.ids,
            n=config.samples,
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
        )
        for number, prompt in enumerate(prompts)
    ]
    replies = sample_all(sampler, requests, RoleModel(model, "policy"))
    for prompt, reply in zip(prompts, replies, strict=True):
        if reply.refused is not None:
            raise BadInput(f"ppo: sampler {sampler.kind}: prompt {prompt.id}: {reply.refused}")
    return [reply.samples for reply in replies]


def improve(
    config: PPOConfig, model: AdapterModel, loop: TrainingLoop, minibatches: Sequence[Sequence[Rollout]], *, check: bool
) -> dict[str, float]:
    """Update policy and critic on the rollouts of an iteration; returns the statistics, averaged over updates."""
    names = ("policy_loss", "clip_fraction", "approx_kl", "value_loss", "value_clip_fraction")
    updates: list[dict[str, float]] = []
    for _ in range(config.epochs):
        for rollouts in minibatches:
            (n_tokens,) = loop.processes.sum([float(sum(int(r.mask_BT.sum()) for r in rollouts))])
            sums = [0.0] * len(names)
            for rollout in rollouts:
                part = _backward(config, model, rollout, n_tokens, check=check and not updates)
                sums = [a + b for a, b in zip(sums, part, strict=True)]
            stats = dict(zip(names, loop.processes.sum(sums), strict=True))
            stats |= loop.update("policy")
            stats["value_grad_norm"] = loop.update("value")["grad_norm"]
            updates.append(stats)
    return {name: sum(stats[name] for stats in updates) / len(updates) for name in updates[0]}


def _backward(config: PPOConfig, model: AdapterModel, r: Rollout, n_tokens: float, *, check: bool) -> list[float]:
    """Accumulate the gradients of one packed batch, role by role: a backward pass comes before the next switch."""
    with model.use("policy"):
        logprob_BT = r.packed.by_response(model.logprobs(r.packed, config.temperature))
        if check:
            guards.same_ratio(logprob_BT.detach(), r.old_BT, r.mask_BT, model.compute.dtype)
        policy = policy_loss(logprob_BT, r.old_BT, r.advantages_BT, r.mask_BT, config.clip, n_tokens)
        policy.loss.backward()
    with model.use("value"):
        values_BT = r.packed.by_response(model.values("value", r.packed))
        value = value_loss(values_BT, r.values_BT, r.returns_BT, r.mask_BT, config.value_clip, n_tokens)
        value.loss.backward()
    stats = (policy.loss, policy.clip_fraction, policy.approx_kl, value.loss, value.clip_fraction)
    return [number.item() for number in stats]


def minibatches(config: PPOConfig, prompts: Sequence[TrainingPrompt]) -> list[list[list[TrainingPrompt]]]:
    """Return the prompts of each iteration, cut into minibatches; no prompt twice in an iteration."""
    rounds = math.ceil(config.iterations / (len(prompts) // config.batch))
    batches = [b for b in epochs(len(prompts), config.batch, rounds, config.seed) if len(b) == config.batch]
    n = min(config.minibatches, config.batch)
    return [[[prompts[i] for i in batch[first::n]] for first in range(n)] for batch in batches]


def _measure_kl(config: PPOConfig, run: Run, model: AdapterModel, prompts: Sequence[TrainingPrompt]) -> dict[str, Any]:
    """Return three estimates of the final KL on new rollouts; notes where they disagree or exceed ``kl_max``."""
    samples = act(config, model, "end", prompts)
    trees = [Tree(p.ids, [s.require_ids() for s in own]) for p, own in zip(prompts, samples, strict=True)]
    kl = guards.three_kls(model, trees, config.temperature, config.kl_max)
    if kl["within_kl_max"] is False:
        run.note(f"exact KL {kl['exact']:.2f} nats per response is above kl_max {config.kl_max}; raise kl or lower lr")
    if kl["agree"] is None:
        run.note("the responses are too few or too alike to compare estimates of the KL; raise kl_prompts or samples")
    elif not kl["agree"]:
        run.note(
            f"alarm: KL by k1 {kl['k1']:.3f} and k3 {kl['k3']:.3f} miss the exact {kl['exact']:.3f} by more than 3 "
            "standard errors; sampler and scorer disagree, so do not trust this run"
        )
    return kl


def _learned_from(rewards: Rewards, run: Run) -> str:
    """Return the names of all rewards that this policy or its parents were trained on: none of them can evaluate it."""
    before = set(run.record.lineage.get("rewards", "").split())
    runs = [
        entry["sha256"]
        for name, entry in run.record.inputs.items()
        if name == "reward" or (name.startswith("rewards[") and "]." in name)
    ]
    return " ".join(sorted({*before, *rewards.names(), *runs}))
