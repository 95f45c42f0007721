"""Trees, prompts and keys of random ids for the tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from conftest import add_stirred

from align.core.models import Stack
from align.core.packing import Rectangle, Tree, pack

ModelFolder = Callable[[str], Path]
MakeStack = Callable[..., Stack]


def draw_ids(seed: int, n: int) -> list[int]:
    return torch.randint(4, 300, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


TREES = [Tree(draw_ids(s, 4 + s), [draw_ids(10 + s, 6), draw_ids(20 + s, 3 + s)]) for s in range(4)]
PROMPTS = [draw_ids(30 + n, n) for n in (3, 11, 7, 5, 11)]
KEYS = [("test", n) for n in range(len(PROMPTS))]


def rectangle_of(trees: list[Tree]) -> Rectangle:
    (rectangle,) = pack(trees, 1 << 20)
    return rectangle


def stir(stack: Stack, roles: dict[str, bool]) -> None:
    for seed, (role, trainable) in enumerate(roles.items()):
        add_stirred(stack, role, trainable=trainable, head=role in ("reward", "value"), seed=seed)
