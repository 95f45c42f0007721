"""The reward model as a role on the shared base: an adapter and a scalar head read at the stop token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from align.core.config import BadInput, NotFinite
from align.core.inputs import differing_key
from align.core.run_record import finished_run
from align.model.adapters import AdapterModel
from align.model.load import find_source
from align.model.packing import Tree, pack


def add_reward(model: AdapterModel, run: Path, role: str = "reward", *, trainable: bool = False) -> None:
    """Add a trained reward run's adapter and head to ``model`` as ``role``.

    Raises:
        BadInput: not a finished reward run, or one trained on another base or on texts that read otherwise.
    """
    record = finished_run(run, ("reward",))
    source = find_source(run)
    if source.base.resolve() != model.base_path.resolve():
        raise BadInput(f"{run}: trained on the base {source.base}, but this stage uses {model.base_path}")
    if key := differing_key(record.template, model.chat.fingerprint() if record.template else {}):
        raise BadInput(f"{run}: was trained on texts of another {key} than this stage renders; set both stages alike")
    model.add(role, adapter=source.adapter, trainable=trainable)
    model.add_head(role, source.adapter)


@torch.no_grad()
def score(model: AdapterModel, role: str, trees: Sequence[Tree]) -> list[list[float]]:
    """Scores of every response of every tree, in their order; the same to the bit for the same trees."""
    scores = [[0.0] * len(tree.responses) for tree in trees]
    with model.use(role):
        for packed in pack(trees, model.compute.max_tokens, model.layout):
            values = model.scores(role, packed.to(model.device)).tolist()
            for (tree, k), value in zip(packed.response_index, values, strict=True):
                if not math.isfinite(value):
                    raise NotFinite(f"role {role}: gives a response the score {value}; its weights cannot be used")
                scores[tree][k] = value
    return scores
