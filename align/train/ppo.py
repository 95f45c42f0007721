"""Stage `ppo`: RLHF with PPO, four roles on one base.

In: the policy to start from (an SFT run; its frozen adapter is the reference), rewards (reward runs, functions, or
classes from elsewhere), and the prompts of a pairs run. Out: ``adapter/`` (policy) and ``value/`` (critic).
One iteration is five sentences: act, judge, assign credit, improve, account. Rollouts, old log-probabilities
and updates share their rows, whose packing is fixed for all epochs, so the first ratio is exactly 1.
Not here: reward whitening, an adaptive KL coefficient, PPO-ptx, advantages shared within a prompt.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from align.core.config import BadInput, Compute, Lora, Optim, Template, TextConfig, Tracker, Watch
from align.core.hashes import artefact_hash, code_hash
from align.core.plugins import RewardFunction
from align.core.runs import Run, stage
from align.engine.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from align.engine.distributed import Distributed
from align.engine.loop import epochs, stage_seed
from align.engine.metrics_logger import MetricsLogger
from align.engine.optimizer import RoleOptimizer
from align.engine.samples import SampleLogger, watched_rows
from align.generate.local import LocalSampler
from align.generate.sampler import Request, Sample, TokenSampler, sample_all
from align.losses.kl import KlKind, token_kl
from align.losses.masked import masked_sum
from align.losses.policy_gradient import gae, policy_loss, shape_rewards, whiten
from align.losses.value import value_loss
from align.model.adapters import AdapterModel
from align.model.layouts import settle
from align.model.load import find_policy, template_of
from align.model.packing import Tree
from align.model.roles import RoleModel
from align.train import guards
from align.train.rollouts import Judged, Prompt, Rollout, check_sampler, explained, load_prompts, score_rollouts
from rewards.functions import FunctionReward, load_function, rewards_of
from rewards.model import RewardRun, score_trees, sum_of_roles
from rewards.reward import ChosenReward, Reward, RoleReward, TextReward


class PPOConfig(TextConfig):
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
    rewards: list[ChosenReward] | None = Field(
        default=None, description="what is added up with reward and functions; kind: run, function, or module:Class"
    )
    iterations: int = Field(default=50, ge=1, description="rounds of sampling and learning")
    batch: int = Field(default=32, ge=1, description="prompts per iteration")
    samples: int = Field(default=4, ge=1, description="responses per prompt")
    epochs: int = Field(default=1, ge=1, description="passes over the responses of an iteration")
    minibatches: int = Field(default=4, ge=1, description="optimiser steps per epoch")
    kl: float = Field(default=0.05, ge=0, description="coefficient of the per-token KL in the reward")
    kl_max: float | None = Field(default=None, gt=0, description="nats a response; learning stops beyond it")
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
    lora: Lora | None = Field(default=None, description="short for tuner: {kind: lora, ...}")
    compute: Compute = Compute()
    checkpoint_every: int = Field(default=5, ge=1, description="iterations")
    watch: Watch = Watch()
    tracker: Tracker = Field(default="none", description="also log to tensorboard, wandb, trackio or mlflow")

    @property
    def all_rewards(self) -> list[Reward]:
        """Every reward, whichever key names it."""
        runs = [RewardRun(path=self.reward)] if self.reward is not None else []
        return [*runs, *(FunctionReward(name=name) for name in self.functions), *(self.rewards or [])]

    @property
    def role_rewards(self) -> dict[str, RoleReward]:
        """The rewards that are roles of the policy's model, by role."""
        rewards = [reward for reward in self.all_rewards if isinstance(reward, RoleReward)]
        return {"reward" if number == 1 else f"reward-{number}": reward for number, reward in enumerate(rewards, 1)}

    def input_hashes(self) -> dict[str, str]:
        """What the reward functions are written in: another reward is another run."""
        return {"functions": code_hash(*map(load_function, self.functions))} if self.functions else {}


class PPO:
    """The state of a run: roles, learners, prompts. The five steps of an iteration are its methods."""

    def __init__(self, config: PPOConfig, run: Run, gold: RewardFunction | None) -> None:
        self.config, self.gold = config, gold
        self.sampler = config.sampler or LocalSampler()
        self.role_rewards = config.role_rewards
        self.text_rewards = [reward for reward in config.all_rewards if isinstance(reward, TextReward)]
        torch.manual_seed(stage_seed(config.seed, "ppo"))
        source = find_policy(config.policy)
        self.model = _seat(
            config, source.base, source.adapter, template_of(config.policy, config.template(run.record.created))
        )
        run.renders_with(self.model.chat)
        settle(self.model, run.note)
        self.prompts = load_prompts(run, self.model, config.pairs, config.max_new_tokens)
        if len(self.prompts) < config.batch:
            raise BadInput(
                f"{config.pairs}: {len(self.prompts)} usable prompts, ppo.batch asks for {config.batch} an iteration; "
                "lower batch or max_new_tokens"
            )
        run.record.lineage |= {"base": artefact_hash(source.base), "rewards": _rewards(config, run)}
        self.processes = Distributed(self.model.device)
        rounds = math.ceil(config.iterations / (len(self.prompts) // config.batch))
        order = epochs(len(self.prompts), config.batch, rounds, config.seed)
        self.batches = [batch for batch in order if len(batch) == config.batch]  # no prompt twice in an iteration
        steps = config.iterations * config.epochs * min(config.minibatches, config.batch)
        self.policy = RoleOptimizer(self.model.parameters("policy"), config.optim, steps, self.processes)
        self.value = RoleOptimizer(self.model.parameters("value"), config.value_optim, steps, self.processes)

    def minibatches(self, iteration: int) -> list[list[Prompt]]:
        """The prompts of an iteration, cut into minibatches; the same whatever came before."""
        chosen = [self.prompts[i] for i in self.batches[iteration - 1]]
        return [chosen[m :: self.config.minibatches] for m in range(min(self.config.minibatches, len(chosen)))]

    # 1 act
    def act(self, iteration: int | str, prompts: Sequence[Prompt]) -> list[Sequence[Sample]]:
        """Sample responses; each sequence is seeded by (seed, stage, iteration, prompt, k)."""
        config = self.config
        requests = [
            Request(
                prompt.id,
                (config.seed, "ppo", iteration, prompt.id),
                prompt.messages,
                prompt_ids=prompt.ids,
                n=config.samples,
                temperature=config.temperature,
                max_new_tokens=config.max_new_tokens,
            )
            for prompt in prompts
        ]
        replies = sample_all(self.sampler, requests, RoleModel(self.model, "policy"))
        if refused := next((reply for reply in replies if reply.refused is not None), None):
            raise BadInput(f"ppo: sampler {self.sampler.kind}: prompt {refused.id}: {refused.refused}")
        return [reply.samples for reply in replies]

    # 2 judge
    def judge(self, prompts: Sequence[Prompt], samples: Sequence[Sequence[Sample]]) -> Judged:
        """Scores of reward functions (and the penalty of a cut response), beside the reward model's fast path."""
        flat = [(prompt, sample) for prompt, found in zip(prompts, samples, strict=True) for sample in found]
        texts = [[sample.message] for _, sample in flat]
        asked = [prompt.messages for prompt, _ in flat]
        ended = [sample.ended for _, sample in flat]
        extra = [0.0 if end else -self.config.missing_eos_penalty for end in ended]
        opinions = [
            rewards_of(reward.names()[0], reward.score, asked, texts, ended=ended) for reward in self.text_rewards
        ]
        for i, values in enumerate(zip(*opinions, strict=True)):
            if not self.role_rewards and all(value is None for value in values):
                raise BadInput(f"rewards: none has an opinion on a response to prompt {flat[i][0].id}")
            extra[i] += sum(value for value in values if value is not None)
        gold = self.gold(prompts=asked, completions=texts, ended=ended) if self.gold else [None] * len(flat)
        k = self.config.samples
        trees = [Tree(p.ids, [s.require_ids() for s in found]) for p, found in zip(prompts, samples, strict=True)]
        return Judged(trees, samples, _chunks(extra, k), _chunks(gold, k))

    def score_trees(self, trees: Sequence[Tree]) -> list[list[float]]:
        """What the roles among the rewards give every response of every tree."""

        score_packed = functools.partial(sum_of_roles, self.model, self.role_rewards)
        return score_trees(self.model, ", ".join(self.role_rewards), trees, score_packed)

    # 3 assign credit
    def assign_credit(self, minibatches: list[list[Rollout]]) -> list[list[Rollout]]:
        """GAE on KL-shaped rewards; advantages whitened over every token of the iteration, in all processes."""
        config = self.config
        credited = []
        for rollouts in minibatches:
            part = []
            for r in rollouts:
                kl_BT = token_kl(r.old_BT, r.reference_BT, "k1")
                rewards_BT = shape_rewards(r.scores_B, kl_BT, r.mask_BT, config.kl)
                credit = gae(rewards_BT, r.values_BT, r.mask_BT, config.gamma, config.lam)
                part.append(r._replace(advantages_BT=credit.advantages_BT, returns_BT=credit.returns_BT))
            credited.append(part)
        mean, variance = self._moments([r for part in credited for r in part])
        return [[r._replace(advantages_BT=whiten(r.advantages_BT, mean, variance)) for r in part] for part in credited]

    def _moments(self, rollouts: Sequence[Rollout]) -> tuple[Tensor, Tensor]:
        advantages = [r.advantages_BT[r.mask_BT].double() for r in rollouts]
        n, total = self.processes.sum([sum(map(len, advantages)), sum(float(a.sum()) for a in advantages)])
        mean = total / n
        (squares,) = self.processes.sum([sum(float(((a - mean) ** 2).sum()) for a in advantages)])
        moments = torch.tensor([mean, squares / n], dtype=torch.float32, device=self.model.device)
        return moments[0], moments[1]

    # 4 improve
    def improve(self, minibatches: list[list[Rollout]], check: bool) -> dict[str, float]:
        """A few clipped epochs over the iteration's rollouts, policy and critic in turn."""
        found: list[dict[str, float]] = []
        for epoch in range(self.config.epochs):
            for number, rollouts in enumerate(minibatches):
                (n_tokens,) = self.processes.sum([float(sum(int(r.mask_BT.sum()) for r in rollouts))])
                sums = [0.0] * 5
                for rollout in rollouts:
                    part = self._backward(rollout, n_tokens, check and epoch == 0 and number == 0)
                    sums = [a + b for a, b in zip(sums, part, strict=True)]
                names = ("policy_loss", "clip_fraction", "approx_kl", "value_loss", "value_clip_fraction")
                stats = dict(zip(names, self.processes.sum(sums), strict=True))
                stats |= self.policy.step()
                stats["value_grad_norm"] = self.value.step()["grad_norm"]
                found.append(stats)
        return {name: sum(stats[name] for stats in found) / len(found) for name in found[0]}

    def _backward(self, r: Rollout, n_tokens: float, check: bool) -> list[float]:
        """Gradients of one packed, role by role: a backward pass comes before the next switch."""
        config = self.config
        with self.model.use("policy"):
            logprob_BT = r.packed.by_response(self.model.logprobs(r.packed, config.temperature))
            if check:
                guards.same_ratio(logprob_BT.detach(), r.old_BT, r.mask_BT, self.model.compute.dtype)
            policy = policy_loss(logprob_BT, r.old_BT, r.advantages_BT, r.mask_BT, config.clip, n_tokens)
            policy.loss.backward()
        with self.model.use("value"):
            values_BT = r.packed.by_response(self.model.values("value", r.packed))
            value = value_loss(values_BT, r.values_BT, r.returns_BT, r.mask_BT, config.value_clip, n_tokens)
            value.loss.backward()
        stats = (policy.loss, policy.clip_fraction, policy.approx_kl, value.loss, value.clip_fraction)
        return [number.item() for number in stats]

    # 5 account
    def account(self, judged: Sequence[Judged], minibatches: list[list[Rollout]]) -> dict[str, float | None]:
        """Means over the iteration's responses, with everything a collapse shows in."""
        rollouts = [r for part in minibatches for r in part]
        samples = [sample for found in judged for row in found.samples for sample in row]
        gold = [value for found in judged for row in found.gold for value in row if value is not None]

        def total(kind: KlKind) -> float:
            kls = (token_kl(r.old_BT, r.reference_BT, kind) for r in rollouts)
            return sum(float(masked_sum(kl, r.mask_BT)) for kl, r in zip(kls, rollouts, strict=True))

        n, score, k1, k3, tokens, ended, gold_sum, n_gold = self.processes.sum(
            [
                len(samples),
                sum(float(r.scores_B.sum()) for r in rollouts),
                total("k1"),
                total("k3"),
                sum(len(sample.require_ids()) for sample in samples),
                sum(sample.ended for sample in samples),
                sum(gold),
                len(gold),
            ]
        )
        return {
            "score": score / n,
            "kl": k1 / n,
            "kl_k3": k3 / n,
            "length": tokens / n,
            "ended": ended / n,
            "utility": gold_sum / n_gold if n_gold else None,
            "explained_variance": explained(rollouts),
        }

    def misfit(self, found: Checkpoint) -> str | None:
        """Why a checkpoint is not one of this run's two learners, or None."""
        if not {"policy_steps", "value_steps"} <= set(found.state):
            return "it does not count the steps of policy and value"
        return self.policy.misfit(_under("policy", found.tensors)) or self.value.misfit(_under("value", found.tensors))

    def measure_kl(self) -> dict[str, Any]:
        """Three estimates of the final KL on fresh rollouts."""
        prompts = self.prompts[: self.config.kl_prompts]
        samples = self.act("end", prompts)
        trees = [Tree(p.ids, [s.require_ids() for s in found]) for p, found in zip(prompts, samples, strict=True)]
        return guards.three_kls(self.model, trees, self.config.temperature, self.config.kl_max)


@stage
def ppo(config: PPOConfig, run: Run, *, gold: RewardFunction | None = None) -> dict[str, Any]:
    """Train a policy against a reward; ``gold`` scores what it writes meanwhile, where the truth is known."""
    if not config.all_rewards:
        raise BadInput("ppo: nothing rewards the policy; set reward: RUN, functions: [module:function], or rewards")
    state = PPO(config, run, gold)
    resumed = load_checkpoint(run, state.misfit)
    if resumed:
        state.policy.restore(_under("policy", resumed.tensors), resumed.state["policy_steps"])
        state.value.restore(_under("value", resumed.tensors), resumed.state["value_steps"])
    with closing(MetricsLogger(run, config.iterations, config.tracker, resumed)) as journal:
        iterations = _iterate(config, run, state, journal, resumed.step if resumed else 0)
    if run.is_main:
        state.model.save_role("policy", run.path / "adapter")
        state.model.save_role("value", run.path / "value")
    kl = state.measure_kl()
    if kl["within_kl_max"] is False:
        run.note(f"exact KL {kl['exact']:.2f} nats a response is above kl_max {config.kl_max}; raise kl or lower lr")
    if kl["agree"] is None:
        run.note("the responses are too few or too alike to compare estimates of the KL; raise kl_prompts or samples")
    elif not kl["agree"]:
        run.note(
            f"alarm: KL by k1 {kl['k1']:.3f} and k3 {kl['k3']:.3f} miss the exact {kl['exact']:.3f} by more than 3 "
            "standard errors; sampler and scorer disagree, so do not trust this run"
        )
    return {"kl": kl, "train_seconds": journal.seconds, "iterations": iterations}


def _iterate(config: PPOConfig, run: Run, state: PPO, journal: MetricsLogger, start: int) -> int:
    """Iterations from ``start + 1`` on; how many updated the policy (fewer than asked for when kl_max stops it)."""
    watched = SampleLogger(
        state.model,
        watched_rows(config.pairs, config.watch.prompts),
        max_new_tokens=config.watch.max_new_tokens,
        seed=config.seed,
        sampler=state.sampler,
        score=state.score_trees if state.role_rewards else None,
        gold=state.gold,
    )

    def look(iteration: int) -> None:
        if run.is_main:
            journal.samples(iteration, watched.look("policy"))

    if start == 0:
        look(0)
    for iteration in range(start + 1, config.iterations + 1):
        prompts = [state.processes.share(part) for part in state.minibatches(iteration)]
        samples = iter(state.act(iteration, [prompt for part in prompts for prompt in part]))
        judged = [state.judge(part, [next(samples) for _ in part]) for part in prompts]
        rollouts = [score_rollouts(state.model, found, state.role_rewards, config.temperature) for found in judged]
        if iteration == 1:
            check_sampler(judged, rollouts, state.model.compute.dtype)
        rollouts = state.assign_credit(rollouts)
        metrics = state.account(judged, rollouts)
        if config.kl_max is not None and (metrics["kl"] or 0.0) > config.kl_max:
            journal.log(iteration, metrics)
            look(iteration)
            run.note(
                f"stopped before the update of iteration {iteration}: KL {metrics['kl']:.2f} nats a response passed "
                f"kl_max {config.kl_max}; raise kl or lower optim.lr"
            )
            return iteration - 1
        journal.log(iteration, metrics | state.improve(rollouts, iteration == 1), ["score", "kl", "utility"])
        if iteration % config.watch.every == 0 or iteration == config.iterations:
            look(iteration)
        if iteration % config.checkpoint_every == 0 and iteration < config.iterations:
            save_checkpoint(
                run,
                iteration,
                _over("policy", state.policy.tensors()) | _over("value", state.value.tensors()),
                seconds=journal.seconds,
                policy_steps=state.policy.done,
                value_steps=state.value.done,
            )
    return config.iterations


def _seat(config: PPOConfig, base: Path, adapter: Path | None, template: Template) -> AdapterModel:
    """Policy, reference, reward and value on one base; the value starts as the reward model where there is one."""
    model = AdapterModel(base, config.compute, template)
    model.add_policy_and_reference(adapter, config.lora)
    rewards = config.role_rewards
    for role, reward in rewards.items():
        reward.add_to(model, role)
    if rewards:
        rewards["reward"].add_to(model, "value", trainable=True)
    else:
        model.add("value", adapter=adapter, lora=config.lora, trainable=True)
        model.add_head("value")
    return model


def _rewards(config: PPOConfig, run: Run) -> str:
    """Every reward that this policy, or what it starts from, learned from: none of them can test it."""
    before = set(run.record.lineage.get("rewards", "").split())
    own = [name for reward in config.all_rewards for name in reward.names()]
    runs = [
        entry["sha256"]
        for name, entry in run.record.inputs.items()
        if name == "reward" or (name.startswith("rewards[") and "]." in name)
    ]
    return " ".join(sorted({*before, *own, *runs}))


def _chunks(values: Sequence[Any], k: int) -> list[list[Any]]:
    return [list(values[start : start + k]) for start in range(0, len(values), k)]


def _over(role: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{role}/{name}": tensor for name, tensor in tensors.items()}


def _under(role: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{role}/"): t for name, t in tensors.items() if name.startswith(f"{role}/")}
