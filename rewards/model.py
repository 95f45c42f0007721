"""A reward run as a role on the shared base: an adapter, and a scalar head that is read at the last token."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from align.core.config import BadInput, NotFinite
from align.core.inputs import differing_key
from align.core.plugins import calling
from align.core.run_record import finished_run
from align.model.adapters import AdapterModel
from align.model.packing import PackedBatch, Tree, pack
from align.model.sources import find_source
from rewards.reward import RoleReward


class RewardRun(RoleReward):
    """A finished run of the stage `reward`; its files are an input of the run that uses it."""

    INPUTS: ClassVar[tuple[str, ...]] = ("path",)

    kind: str = "run"
    path: Path = Field(description="folder of the reward run")

    def names(self) -> tuple[str, ...]:
        """Return no name: a reward run is identified by the hash of its files, which is an input of the run."""
        return ()

    def add_to(self, model: AdapterModel, role: str, *, trainable: bool = False) -> None:
        """Add the adapter and head of the run; raises as :func:`add_reward`."""
        add_reward(model, self.path, role, trainable=trainable)


def add_reward(model: AdapterModel, run: Path, role: str = "reward", *, trainable: bool = False) -> None:
    """Add the adapter and head of a reward run to ``model`` as ``role``.

    Raises:
        BadInput: it is not a finished reward run, or was trained on another base or with another chat template.
    """
    record = finished_run(run, ("reward",))
    source = find_source(run)
    if source.base.resolve() != model.base_path.resolve():
        raise BadInput(f"{run}: trained on the base {source.base}, but this stage uses {model.base_path}")
    if key := differing_key(record.template, model.chat.fingerprint() if record.template else {}):
        raise BadInput(f"{run}: was trained on texts of another {key} than this stage renders; set both stages alike")
    model.add(role, adapter=source.adapter, trainable=trainable)
    model.add_head(role, source.adapter)


def score(model: AdapterModel, role: str, trees: Sequence[Tree]) -> list[list[float]]:
    """Return the scores of a role for every response of every tree, in their order; bit-equal for the same trees."""
    with model.use(role):
        return score_trees(model, role, trees, partial(model.scores, role))


def sum_of_roles(model: AdapterModel, rewards: Mapping[str, RoleReward], packed: PackedBatch) -> Tensor:
    """Return the sum ``(B,)`` of several rewards, given by role, for each response of a packed batch."""
    scores = []
    for role, reward in rewards.items():
        with calling(f"reward {reward.kind}: score_packed", reward):
            scores_B = reward.score_packed(model, role, packed)
        if not isinstance(scores_B, Tensor) or scores_B.shape != (packed.n_responses,):
            given = f"numbers of shape {list(scores_B.shape)}" if isinstance(scores_B, Tensor) else repr(scores_B)[:60]
            raise BadInput(
                f"reward {reward.kind}: score_packed gave {given} for {packed.n_responses} responses; it gives a "
                "tensor with one number per response"
            )
        if scores_B.is_complex() or scores_B.device.type != model.device.type:
            given = f"{str(scores_B.dtype).removeprefix('torch.')} numbers on {scores_B.device}"
            raise BadInput(f"reward {reward.kind}: score_packed gave {given}; it gives float32 on {model.device}")
        scores.append(scores_B.float())
    return torch.stack(scores).sum(0)


def score_by_roles(model: AdapterModel, rewards: Mapping[str, RoleReward], trees: Sequence[Tree]) -> list[list[float]]:
    """Sum several rewards, given by role, for every response of every tree; raises as :func:`score_trees`."""
    return score_trees(model, ", ".join(rewards), trees, partial(sum_of_roles, model, rewards))


@torch.no_grad()
def score_trees(
    model: AdapterModel, name: str, trees: Sequence[Tree], score_packed: Callable[[PackedBatch], Tensor]
) -> list[list[float]]:
    """Score every response of every tree, in their order; ``score_packed`` gives the scores ``(B,)`` of a batch.

    Args:
        name: name of the role, for errors.

    Raises:
        NotFinite: a score is infinite or NaN.
    """
    scores = [[0.0] * len(tree.responses) for tree in trees]
    for packed in pack(trees, model.compute.max_tokens, model.layout):
        values = score_packed(packed.to(model.device)).tolist()
        for (tree, k), value in zip(packed.response_index, values, strict=True):
            if not math.isfinite(value):
                raise NotFinite(f"role {name}: gives a response the score {value}; its weights cannot be used")
            scores[tree][k] = value
    return scores
