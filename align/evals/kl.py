"""Compute the exact KL of a policy to a reference along responses that the policy sampled.

In: two roles, of one model or of two with one vocabulary, and trees of responses. Out: nats per response, over
the whole vocabulary. Not here: the equation (losses.kl).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from align.losses.kl import exact_token_kl
from align.model.packing import PackedBatch, Tree, pack
from align.model.roles import RoleModel


def exact_kl(
    policy: RoleModel, reference: RoleModel, trees: Sequence[Tree], reference_trees: Sequence[Tree] | None = None
) -> list[list[float]]:
    """Sum the full-vocabulary KL(policy || reference) at temperature 1 over each response's tokens, in nats.

    Both run in the same packed batches, so that rounding cancels. ``reference_trees`` are the same responses where the
    reference reads another prompt (one without the policy's system prompt): then they run tree by tree.
    """
    others = trees if reference_trees is None else list(reference_trees)
    budget, layouts = policy.model.compute.max_tokens, (policy.model.layout, reference.model.layout)
    passes: list[tuple[Sequence[int], PackedBatch, PackedBatch]] = []
    if others == trees and layouts[0] == layouts[1]:
        passes = [(range(len(trees)), packed, packed) for packed in pack(trees, budget, layouts[0])]
    else:
        for i, (one, other) in enumerate(zip(trees, others, strict=True)):
            passes.append(([i], pack([one], budget, layouts[0])[0], pack([other], budget, layouts[1])[0]))
    sums = [[0.0] * len(tree.responses) for tree in trees]
    for numbers, own, theirs in passes:
        values = own.sums(_token_kl(policy, reference, own, theirs).cpu()).tolist()
        for (tree, k), value in zip(own.response_index, values, strict=True):
            sums[numbers[tree]][k] = value
    return sums


@torch.no_grad()
def _token_kl(policy: RoleModel, reference: RoleModel, own: PackedBatch, theirs: PackedBatch) -> Tensor:
    """Compute the exact KL at each response token ``(N,)``; logits exist for one chunk of positions at a time.

    What rounding leaves below zero is zero: no KL is negative.
    """
    with policy.model.use(policy.role):
        own_ND = policy.model.response_hidden_states(own.to(policy.model.device))
    with reference.model.use(reference.role):
        theirs_ND = reference.model.response_hidden_states(theirs.to(reference.model.device))
    size = policy.model.chunk
    return torch.cat(
        [
            exact_token_kl(policy.model.head_logits(p), reference.model.head_logits(r)).clamp_min(0)
            for p, r in zip(own_ND.split(size), theirs_ND.split(size), strict=True)
        ]
    )
