"""What an evaluation loads: the policy under evaluation, and what it is compared with or scored by.

In: policy runs or model folders, a reward run. Out: each as a role of one adapter model, or of a model of its own where
the bases differ. Not here: how they answer (generation, likelihood).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from align.core.config import Compute, Template
from align.core.plugins import RewardFunction
from align.evals.items import Item
from align.evals.judge import DEFAULT, Judge, find_judge
from align.evals.measurements import Measurement
from align.model.adapters import AdapterModel
from align.model.layouts import choose_layout
from align.model.roles import RoleModel
from align.model.sources import find_policy, find_source, template_of
from rewards.model import add_reward

Note = Callable[[str], None]


class EvaluationTarget(NamedTuple):
    """The policy under evaluation and what it is compared with or scored by, each where it is given.

    ``judge`` reads answers to items that name none. ``own_judges`` are judges that the answers were made to please,
    each with how.
    """

    policy: RoleModel
    sft: RoleModel | None = None
    reward: RoleModel | None = None
    gold: RewardFunction | None = None
    gold_name: str = "gold"
    measurements: Sequence[Measurement] = ()
    own_judges: Mapping[str, str] = MappingProxyType({})
    judge: Judge | None = None

    def named(self, judge: str) -> str:
        """A judge as results name it."""
        return f"{judge} ({self.own_judges[judge]})" if judge in self.own_judges else judge

    def judge_of(self, item: Item, of_suite: str | None = None) -> Judge:
        """The judge that an item names, else its suite's, else the evaluation's (whose settings go with its name)."""
        own = self.judge or find_judge(DEFAULT)
        name = item.judge or of_suite or own.kind
        return own if name == own.kind else find_judge(name)


def load_policy(path: Path, compute: Compute, template: Template, note: Note) -> RoleModel:
    """Load a policy run (or a model folder); ``note`` receives the layout that was chosen.

    Raises:
        BadInput: the folder holds no policy.
    """
    source = find_policy(path)
    model = AdapterModel(source.base, compute, template_of(path, template))
    if source.adapter:
        model.add("policy", adapter=source.adapter, trainable=False)
    _settle(model, note)
    return RoleModel(model, "policy" if source.adapter else None)


def load_reference(target: RoleModel, path: Path, template: Template, note: Note) -> RoleModel:
    """The SFT model as a role beside the target, or on a base of its own where the target's differs."""
    source = find_policy(path)
    if not _same_base(target, source.base):
        return load_policy(path, target.model.compute, template, note)
    if source.adapter is None:
        return RoleModel(target.model, None)
    target.model.add("reference", adapter=source.adapter, trainable=False)
    return RoleModel(target.model, "reference")


def load_reward(target: RoleModel, path: Path, day: str | None, note: Note) -> RoleModel:
    """A reward run as a role beside the target, or on a base of its own where the target's differs."""
    source = find_source(path)
    model = target.model
    if not _same_base(target, source.base):
        model = AdapterModel(source.base, target.model.compute, template_of(path, Template(day=day)))
    add_reward(model, path)
    if model is not target.model:
        _settle(model, note)
    return RoleModel(model, "reward")


def _settle(model: AdapterModel, note: Note) -> None:
    verdict = choose_layout(model)
    note(f"layout of {model.base_path.name}: {verdict.layout} ({verdict.reason})")
    for fact in model.facts():
        note(fact)


def _same_base(target: RoleModel, base: Path) -> bool:
    return base.resolve() == target.model.base_path.resolve()
