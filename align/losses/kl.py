"""KL divergence of a policy from its reference: estimates from sampled tokens, the exact value, and best-of-n."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

KlKind = Literal["k1", "k3"]


def token_kl(logprob_BT: Tensor, reference_BT: Tensor, kind: KlKind) -> Tensor:
    """Estimate KL(policy || reference) per token from tokens that the policy sampled, ``(B, T)`` in nats.

    k1 is the log-ratio; k3 is ``(1/r - 1) + log r``, unbiased and never negative (Schulman 2020,
    "Approximating KL Divergence").
    """
    difference_BT = logprob_BT - reference_BT
    if kind == "k1":
        return difference_BT
    return torch.expm1(-difference_BT) + difference_BT


def exact_token_kl(logits_NV: Tensor, reference_NV: Tensor) -> Tensor:
    """Exact KL(policy || reference) at each position, a sum over the vocabulary, ``(N,)`` in nats."""
    logprob_NV = logits_NV.log_softmax(-1)
    return (logprob_NV.exp() * (logprob_NV - reference_NV.log_softmax(-1))).sum(-1)


def best_of_n_kl(n: int) -> float:
    """Compute KL(best-of-n || policy) in nats per response: ``log n - (n - 1) / n`` (Gao et al., arXiv 2210.10760)."""
    return math.log(n) - (n - 1) / n
