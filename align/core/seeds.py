"""Seeds from what they are for: the same on every machine, and none that depends on what was drawn before."""

from __future__ import annotations

import hashlib


def stage_seed(seed: int, stage: str) -> int:
    """A 31-bit seed for what a stage draws at its start (a fresh adapter, an order), from sha256(seed, stage)."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{stage}".encode()).digest()[:4], "big") >> 1


def sequence_seed(*key: object) -> int:
    """A 63-bit seed for one sampled sequence, from a key such as (seed, stage, iteration, prompt id, number)."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
