"""Open the models of a stage: the base, its template, the roles on it and their layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from align.core.config import BadInput, Compute, TextConfig
from align.core.hashes import artefact_hash
from align.core.plugins import calling
from align.core.runs import Run
from align.core.seeds import stage_seed
from align.model.adapters import AdapterModel
from align.model.attention import ComputeSetting
from align.model.layouts import note_layout
from align.model.sources import find_policy, find_source, template_of
from align.model.tuners.tuner import Tuner


class ModelConfig(TextConfig):
    """What every stage that runs a model holds."""

    compute: ComputeSetting = Compute()


class RoleWeights(Protocol):
    """Weights that a role can start from, other than the starting policy of the stage (a reward run)."""

    @property
    def kind(self) -> str: ...

    def add_to(self, model: AdapterModel, role: str, *, trainable: bool = False) -> None: ...


class Role(NamedTuple):
    """The initial weights of a role: the policy that the stage starts from, or ``weights`` where these are given.

    Where the stage starts from a bare base, a role that is not trained is that base: no adapter is added for it.
    ``has_head`` adds a scalar head of zeros to a role that starts as the policy.
    """

    trainable: bool = False
    has_head: bool = False
    weights: RoleWeights | None = None


TRAINED_POLICY = {"policy": Role(trainable=True), "reference": Role()}  # the reference is the policy before training


def open_models(
    run: Run,
    config: ModelConfig,
    start: Path,
    roles: Mapping[str, Role],
    *,
    tuner: Tuner | None = None,
    packs: bool = True,
) -> AdapterModel:
    """Load the base of ``start`` with its template, add the roles in their order, and record the template and the base.

    Args:
        start: a policy (run or folder), or a reward run where no role starts as a policy.
        tuner: for the trained roles; None: the tuner of ``start``, or the default one.
        packs: whether the stage computes packed batches, so that a layout has to be chosen.

    Raises:
        BadInput: the base, an adapter or the template cannot be used, or they do not fit each other.
    """
    torch.manual_seed(stage_seed(config.seed, config.stage))
    needs_policy = any(role.weights is None for role in roles.values())
    source = find_policy(start) if needs_policy else find_source(start)
    model = AdapterModel(source.base, config.compute, template_of(start, config.template(run.record.created)))
    run.renders_with(model.chat)
    for name, role in roles.items():
        if role.weights is not None:
            _add_weights(model, name, role.weights, role.trainable)
            continue
        if role.trainable or source.adapter:
            model.add(name, adapter=source.adapter, tuner=tuner if role.trainable else None, trainable=role.trainable)
        if role.has_head:
            model.add_head(name)
        if role.trainable:
            model.check_trains(name, run.note)
    if packs:
        note_layout(model, run.note)
    run.record.lineage |= {"base": artefact_hash(source.base)}
    return model


def _add_weights(model: AdapterModel, name: str, weights: RoleWeights, trainable: bool) -> None:
    with calling(f"reward {weights.kind}: add_to", weights):
        weights.add_to(model, name, trainable=trainable)
    if name not in model.trainable or (trainable and name not in model.heads):
        raise BadInput(f"reward {weights.kind}: add_to added no role '{name}' with a head; call model.add and add_head")
