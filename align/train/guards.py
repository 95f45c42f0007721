"""Guards of a training run: identities that hold before the first update, and three estimates of the KL at the end.

An identity that does not hold stops the run with an error that names possible causes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from align.core.config import BadInput, NotFinite
from align.losses.kl import token_kl
from align.model.adapters import AdapterModel
from align.model.packing import Tree, pack

RATIO = {"float32": 1e-6, "bfloat16": 1e-2}  # |ratio - 1| before the first update, on the same rows
SAMPLER = {"float32": 1e-4, "bfloat16": 5e-2}  # mean |sampler - scorer|, nats per token
START = {"float32": 1e-3, "bfloat16": 1e-1}  # nats per response between a policy and its own copy


def same_ratio(logprob_BT: Tensor, old_BT: Tensor, mask_BT: Tensor, dtype: str) -> None:
    """Compare scorer and updater: before the first update every ratio is 1."""
    _finite("ppo", logprob_BT[mask_BT])
    off_BT = torch.where(mask_BT, ((logprob_BT - old_BT).exp() - 1).abs(), 0.0)
    worst = float(off_BT.max())
    if not worst <= RATIO[dtype]:
        raise BadInput(
            f"ppo: the first ratio differs from 1 by {worst:.2e} before any update; scorer and updater disagree "
            "(dropout, another dtype, or rows packed differently)"
        )


def same_sampler(scored: Sequence[float], sampled: Sequence[float], dtype: str) -> None:
    """Compare sampler and scorer: the same tokens have the same log-probabilities."""
    if not scored:
        return
    _finite("ppo", torch.tensor(scored))
    mean = sum(abs(a - b) for a, b in zip(scored, sampled, strict=True)) / len(scored)
    if not mean <= SAMPLER[dtype]:
        raise BadInput(
            f"ppo: sampler and scorer differ by {mean:.2e} nats per token; check temperature, top_k, top_p and the "
            "chat template of whatever samples"
        )


def same_start(margin: float, chosen: float, rejected: float, pairs: float, dtype: str) -> None:
    """Compare policy and reference: before the first update all log-ratios are 0 and DPO's loss is ln 2."""
    _finite("dpo", torch.tensor([margin, chosen, rejected]))
    off = max(abs(margin), abs(chosen), abs(rejected)) / max(1.0, pairs)
    if not off <= START[dtype]:
        raise BadInput(
            f"dpo: the policy differs from its reference by {off:.3g} nats before any update, so the loss is not "
            "ln 2; the policy must start from the very adapter that serves as reference"
        )


@torch.no_grad()
def three_kls(model: AdapterModel, trees: Sequence[Tree], temperature: float, bound: float | None) -> dict[str, Any]:
    """Return the k1, k3 and exact KL(policy || reference) in nats per response, on the same rollouts of the policy.

    ``*_standard_errors_off`` is the difference between the mean of an estimate and the exact mean, in standard errors
    of the paired difference; ``agree`` is False beyond 3, a sign that sampler, masks or positions disagree. Both are
    None where the standard error is not defined: for one response, or for several with the same difference.
    """
    estimates: dict[str, list[float]] = {"k1": [], "k3": [], "exact": []}
    for packed in pack(trees, model.compute.max_tokens, model.layout):
        packed = packed.to(model.device)
        with model.use("policy"):
            policy_N = model.logprobs(packed, temperature)
        with model.use(model.reference):
            reference_N = model.logprobs(packed, temperature)
        estimates["k1"] += packed.sums(token_kl(policy_N, reference_N, "k1")).tolist()
        estimates["k3"] += packed.sums(token_kl(policy_N, reference_N, "k3")).tolist()
        exact_N = model.exact_kl(packed, "policy", model.reference, temperature)
        estimates["exact"] += packed.sums(exact_N).tolist()
    means = {name: sum(values) / len(values) for name, values in estimates.items()}
    exact = estimates["exact"]
    off = {f"{kind}_standard_errors_off": _standard_errors(estimates[kind], exact) for kind in ("k1", "k3")}
    return {
        "n": len(exact),
        **means,
        **off,
        "agree": None if None in off.values() else all(abs(value or 0.0) <= 3 for value in off.values()),
        "kl_max": bound,
        "within_kl_max": None if bound is None else means["exact"] <= bound,
    }


def _finite(stage: str, values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise NotFinite(
            f"{stage}: log-probabilities are not finite before any update; the policy's or reference's weights, or "
            "compute.dtype, cannot be used"
        )


def _standard_errors(estimate: Sequence[float], exact: Sequence[float]) -> float | None:
    """Return the mean difference in standard errors; None where all differences are equal and not zero."""
    difference = torch.tensor(estimate, dtype=torch.float64) - torch.tensor(exact, dtype=torch.float64)
    if not difference.any():
        return 0.0
    error = float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return float(difference.mean()) / error if error > 0 else None
