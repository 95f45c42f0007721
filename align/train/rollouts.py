"""The rollouts of PPO: prompts, scored responses, and their log-probabilities and values under each role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from align.core.config import BadInput
from align.core.plugins import RewardFunction
from align.core.records import Message
from align.core.runs import Run
from align.data.pairs import load_pairs, prompts_hash
from align.engine.distributed import Distributed
from align.generate.sampler import Sample
from align.losses.kl import KlKind, token_kl
from align.losses.masked import masked_sum
from align.losses.policy_gradient import gae, shape_rewards, whiten
from align.losses.value import explained_variance
from align.model.adapters import AdapterModel
from align.model.load import context_length
from align.model.packing import PackedBatch, Tree, pack
from align.train import guards
from rewards.functions import rewards_of
from rewards.model import sum_of_roles
from rewards.reward import Rewards, RoleReward, TextReward


class TrainingPrompt(NamedTuple):
    """A training prompt and its token ids."""

    id: str
    messages: list[Message]
    ids: list[int]


class ScoredSamples(NamedTuple):
    """The samples of a minibatch by (prompt, number), with the scores of reward functions and gold utility."""

    trees: list[Tree]
    samples: Sequence[Sequence[Sample]]
    scores: list[list[float]]
    gold: list[list[float | None]]


class Rollout(NamedTuple):
    """One packed batch of responses with their scores and per-token tensors. In memory only."""

    packed: PackedBatch
    mask_BT: Tensor
    old_BT: Tensor
    reference_BT: Tensor
    values_BT: Tensor
    scores_B: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor


def load_prompts(run: Run, model: AdapterModel, pairs: Path, max_new_tokens: int) -> list[TrainingPrompt]:
    """Load the training prompts of a pairs run that leave room for a response; the others are counted as dropped."""
    context = context_length(model.base)
    train = load_pairs(run, pairs, "train", model.chat, context, 1)
    run.record.lineage |= {"prompts": prompts_hash(train)}
    prompts = [TrainingPrompt(pair.prompt_id, pair.rows[0].prompt, pair.tree.prompt) for pair in train]
    kept = [prompt for prompt in prompts if len(prompt.ids) + max_new_tokens <= (context or 1 << 30)]
    run.drop("ppo: prompt leaves no room for max_new_tokens", len(prompts) - len(kept))
    return kept


def judge(
    model: AdapterModel,
    rewards: Rewards,
    minibatches: Sequence[tuple[Sequence[TrainingPrompt], Sequence[Sequence[Sample]]]],
    *,
    temperature: float,
    missing_eos_penalty: float,
    gold: RewardFunction | None,
    check: bool,
) -> tuple[list[ScoredSamples], list[list[Rollout]]]:
    """Score the responses of each minibatch, and compute log-probabilities and values in the same packed batches.

    Args:
        minibatches: prompts, with the same number of samples for each.
        check: whether to compare the sampler's log-probabilities with the scorer's.

    Raises:
        BadInput: no reward scores a response, or sampler and scorer disagree.
    """
    scored = [
        score_samples(
            prompts,
            samples,
            rewards.texts,
            has_roles=bool(rewards.roles),
            missing_eos_penalty=missing_eos_penalty,
            gold=gold,
        )
        for prompts, samples in minibatches
    ]
    rollouts = [score_rollouts(model, part, rewards.roles, temperature) for part in scored]
    if check:
        check_sampler(scored, rollouts, model.compute.dtype)
    return scored, rollouts


def score_samples(
    prompts: Sequence[TrainingPrompt],
    samples: Sequence[Sequence[Sample]],
    rewards: Sequence[TextReward],
    *,
    has_roles: bool,
    missing_eos_penalty: float,
    gold: RewardFunction | None,
) -> ScoredSamples:
    """Score responses by the rewards that read texts, minus the penalty of a response that was cut.

    Args:
        samples: the samples of each prompt, the same number for each.
        has_roles: whether further rewards are roles, which score every response (:func:`score_rollouts`).

    Raises:
        BadInput: no reward scores a response.
    """
    flat = [(prompt, sample) for prompt, own in zip(prompts, samples, strict=True) for sample in own]
    messages = [prompt.messages for prompt, _ in flat]
    texts = [[sample.message] for _, sample in flat]
    ended = [sample.ended for _, sample in flat]
    scores = [0.0 if is_whole else -missing_eos_penalty for is_whole in ended]
    by_reward = [rewards_of(reward.label(), reward.score, messages, texts, ended=ended) for reward in rewards]
    for i, values in enumerate(zip(*by_reward, strict=True)):
        if not has_roles and all(value is None for value in values):
            raise BadInput(f"rewards: none has an opinion on a response to prompt {flat[i][0].id}")
        scores[i] += sum(value for value in values if value is not None)
    utility = gold(prompts=messages, completions=texts, ended=ended) if gold else [None] * len(flat)
    trees = [Tree(p.ids, [sample.require_ids() for sample in own]) for p, own in zip(prompts, samples, strict=True)]
    score, value = iter(scores), iter(utility)
    return ScoredSamples(
        trees, samples, [[next(score) for _ in own] for own in samples], [[next(value) for _ in own] for own in samples]
    )


@torch.no_grad()
def score_rollouts(
    model: AdapterModel, scored: ScoredSamples, rewards: Mapping[str, RoleReward], temperature: float
) -> list[Rollout]:
    """Pack the responses and compute every role on the same batches; ``rewards`` are the rewards that are roles."""
    rollouts = []
    for packed in pack(scored.trees, model.compute.max_tokens, model.layout):
        packed = packed.to(model.device)
        scores_B = torch.tensor([scored.scores[tree][k] for tree, k in packed.response_index], device=model.device)
        if rewards:
            scores_B = scores_B + sum_of_roles(model, rewards, packed)
        with model.use(model.reference):
            reference_N = model.logprobs(packed, temperature)
        with model.use("value"):
            values_N = model.values("value", packed)
        with model.use("policy"):
            old_N = model.logprobs(packed, temperature)
        old_BT, reference_BT, values_BT = map(packed.by_response, (old_N, reference_N, values_N))
        zeros_BT = torch.zeros_like(old_BT)
        rollouts.append(Rollout(packed, packed.mask(), old_BT, reference_BT, values_BT, scores_B, zeros_BT, zeros_BT))
    return rollouts


def check_sampler(scored: Sequence[ScoredSamples], rollouts: Sequence[Sequence[Rollout]], dtype: str) -> None:
    """Compare the log-probabilities of sampler and scorer on the tokens of these rollouts."""
    by_scorer: list[float] = []
    by_sampler: list[float] = []
    for samples, part in zip(scored, rollouts, strict=True):
        for r in part:
            for own_T, (tree, k) in zip(r.old_BT.tolist(), r.packed.response_index, strict=True):
                logprobs = samples.samples[tree][k].logprobs or []
                by_sampler += logprobs
                by_scorer += own_T[: len(logprobs)]
    guards.same_sampler(by_scorer, by_sampler, dtype)


def assign_credit(
    minibatches: Sequence[Sequence[Rollout]], kl: float, gamma: float, lam: float, processes: Distributed
) -> list[list[Rollout]]:
    """Compute GAE on KL-shaped rewards, and whiten advantages over all tokens of the iteration in all processes."""
    credited = [[_with_credit(r, kl, gamma, lam) for r in part] for part in minibatches]
    advantages = [r.advantages_BT[r.mask_BT].double() for part in credited for r in part]
    n, total = processes.sum([sum(map(len, advantages)), sum(float(a.sum()) for a in advantages)])
    mean = total / n
    (squares,) = processes.sum([sum(float(((a - mean) ** 2).sum()) for a in advantages)])
    moments = torch.tensor([mean, squares / n], dtype=torch.float32, device=processes.state.device)
    return [[r._replace(advantages_BT=whiten(r.advantages_BT, *moments)) for r in part] for part in credited]


def summarise_rollouts(
    scored: Sequence[ScoredSamples], minibatches: Sequence[Sequence[Rollout]], processes: Distributed
) -> dict[str, float | None]:
    """Means over the responses of an iteration, with the metrics that reveal a collapse; KL in nats per response."""
    rollouts = [r for part in minibatches for r in part]
    samples = [sample for part in scored for own in part.samples for sample in own]
    gold = [value for part in scored for own in part.gold for value in own if value is not None]

    def total(kind: KlKind) -> float:
        kls = (token_kl(r.old_BT, r.reference_BT, kind) for r in rollouts)
        return sum(float(masked_sum(kl, r.mask_BT)) for kl, r in zip(kls, rollouts, strict=True))

    n, score, k1, k3, tokens, ended, gold_sum, n_gold = processes.sum(
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
        "explained_variance": _explained(rollouts),
    }


def _with_credit(r: Rollout, kl: float, gamma: float, lam: float) -> Rollout:
    kl_BT = token_kl(r.old_BT, r.reference_BT, "k1")
    credit = gae(shape_rewards(r.scores_B, kl_BT, r.mask_BT, kl), r.values_BT, r.mask_BT, gamma, lam)
    return r._replace(advantages_BT=credit.advantages_BT, returns_BT=credit.returns_BT)


def _explained(rollouts: Sequence[Rollout]) -> float | None:
    """Return the explained variance of the critic over all rollouts of an iteration; None without rollouts."""
    values, returns, masks = (
        [getattr(r, name)[r.mask_BT][None] for r in rollouts] for name in ("values_BT", "returns_BT", "mask_BT")
    )
    if not values:
        return None
    return explained_variance(torch.cat(values, 1), torch.cat(returns, 1), torch.cat(masks, 1))
