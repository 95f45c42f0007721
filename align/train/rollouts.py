"""What PPO learns from: the prompts it acts on, and what every role says of the responses, on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from align.core.records import Message
from align.core.runs import Run
from align.data.pairs import load_pairs, prompts_hash
from align.generate.sampler import Sample
from align.losses.value import explained_variance
from align.model.adapters import AdapterModel
from align.model.load import context_length
from align.model.packing import PackedBatch, Tree, pack
from align.train import guards
from rewards.model import sum_of_roles
from rewards.reward import RoleReward


class Prompt(NamedTuple):
    id: str
    messages: list[Message]
    ids: list[int]


class Rollout(NamedTuple):
    """One packed of responses and what PPO knows of them; B responses, T tokens. In memory only."""

    packed: PackedBatch
    mask_BT: Tensor
    old_BT: Tensor
    reference_BT: Tensor
    values_BT: Tensor
    scores_B: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor


class Judged(NamedTuple):
    """The samples of a minibatch with the scores of reward functions and gold utility, by (prompt, k)."""

    trees: list[Tree]
    samples: Sequence[Sequence[Sample]]
    extra: list[list[float]]
    gold: list[list[float | None]]


def load_prompts(run: Run, model: AdapterModel, pairs: Path, max_new_tokens: int) -> list[Prompt]:
    """The training prompts of a pairs run that leave room for an answer; what is dropped is counted."""
    context = context_length(model.base)
    train = load_pairs(run, pairs, "train", model.chat, context, 1)
    run.record.lineage |= {"prompts": prompts_hash(train)}
    prompts = [Prompt(found.prompt_id, found.rows[0].prompt, found.tree.prompt) for found in train]
    kept = [prompt for prompt in prompts if len(prompt.ids) + max_new_tokens <= (context or 1 << 30)]
    run.drop("ppo: prompt leaves no room for max_new_tokens", len(prompts) - len(kept))
    return kept


@torch.no_grad()
def score_rollouts(
    model: AdapterModel, judged: Judged, rewards: Mapping[str, RoleReward], temperature: float
) -> list[Rollout]:
    """Pack the responses once and read every role on the same rows; ``rewards`` are those that are roles."""
    rollouts = []
    for packed in pack(judged.trees, model.compute.max_tokens, model.layout):
        packed = packed.to(model.device)
        scores_B = torch.tensor([judged.extra[tree][k] for tree, k in packed.response_index], device=model.device)
        if rewards:
            scores_B = scores_B + sum_of_roles(model, rewards, packed)
        with model.use(model.reference):
            reference_N = model.logprobs(packed, temperature)
        with model.use("value"):
            values_N = model.values("value", packed)
        with model.use("policy"):
            old_N = model.logprobs(packed, temperature)
        old_BT, reference_BT, values_BT = map(packed.by_response, (old_N, reference_N, values_N))
        nothing = torch.zeros_like(old_BT)
        rollouts.append(Rollout(packed, packed.mask(), old_BT, reference_BT, values_BT, scores_B, nothing, nothing))
    return rollouts


def check_sampler(judged: Sequence[Judged], rollouts: Sequence[Sequence[Rollout]], dtype: str) -> None:
    """Sampler against scorer, on the first iteration's own tokens."""
    scored: list[float] = []
    sampled: list[float] = []
    for found, part in zip(judged, rollouts, strict=True):
        for r in part:
            for own_T, (tree, k) in zip(r.old_BT.tolist(), r.packed.response_index, strict=True):
                drawn = found.samples[tree][k].logprobs or []
                sampled += drawn
                scored += own_T[: len(drawn)]
    guards.same_sampler(scored, sampled, dtype)


def explained(rollouts: Sequence[Rollout]) -> float | None:
    """How much of the returns' variance the critic explains, over all rollouts of an iteration."""
    values, returns, masks = (
        [getattr(r, name)[r.mask_BT][None] for r in rollouts] for name in ("values_BT", "returns_BT", "mask_BT")
    )
    if not values:
        return None
    return explained_variance(torch.cat(values, 1), torch.cat(returns, 1), torch.cat(masks, 1))
