"""What every training loop shares."""

from __future__ import annotations

import hashlib

import torch


def epochs(n: int, batch: int, n_epochs: int, seed: int) -> list[list[int]]:
    """Batches of indices: every epoch a permutation of its own, the last batch of an epoch may be short."""
    batches = []
    for epoch in range(n_epochs):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(n, generator=generator).tolist()
        batches += [order[start : start + batch] for start in range(0, n, batch)]
    return batches


def stage_seed(seed: int, stage: str) -> int:
    """A 31-bit seed for what a stage draws at its start (a fresh adapter, an order), from sha256(seed, stage)."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{stage}".encode()).digest()[:4], "big") >> 1
