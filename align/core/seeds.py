"""Derive seeds from their purpose: equal on every machine, and independent of what was drawn before."""

from __future__ import annotations

import hashlib


def stage_seed(seed: int, stage: str) -> int:
    """Return a 31-bit seed for what a stage draws at its start (an adapter, an order), from sha256(seed, stage)."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{stage}".encode()).digest()[:4], "big") >> 1


def sequence_seed(*key: object) -> int:
    """Return a 63-bit seed for one sampled sequence, from a key such as (seed, stage, iteration, prompt id, number)."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
