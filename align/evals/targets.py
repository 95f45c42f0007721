"""Load what an evaluation needs beside its policy: the SFT model to compare with, and a reward model.

In: the policy, opened as every stage opens one (model.open), and runs. Out: each as a role of the policy's model, or of
a model of its own where the bases differ. Not here: how they answer (generation, likelihood).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from align.core.config import BadInput, Template
from align.core.plugins import RewardFunction
from align.evals.items import Item
from align.evals.judge import DEFAULT, Judge, find_judge
from align.evals.measurements import Measurement
from align.model.adapters import AdapterModel
from align.model.layouts import note_layout
from align.model.roles import RoleModel
from align.model.sources import find_policy, find_source, template_of
from rewards.model import add_reward

Note = Callable[[str], None]


class EvaluationTarget(NamedTuple):
    """The policy under evaluation and what it is compared with or scored by, each where it is given.

    ``judge`` reads answers to items that name none. ``own_judges`` are judges that the answers were made to please,
    each with how. ``unjudged`` names the suite under evaluation where it declares no judge.
    """

    policy: RoleModel
    sft: RoleModel | None = None
    reward: RoleModel | None = None
    gold: RewardFunction | None = None
    gold_name: str = "gold"
    measurements: Sequence[Measurement] = ()
    own_judges: Mapping[str, str] = MappingProxyType({})
    judge: Judge | None = None
    unjudged: str | None = None

    def named(self, judge: str) -> str:
        """Return the name of a judge in results."""
        return f"{judge} ({self.own_judges[judge]})" if judge in self.own_judges else judge

    def judge_of(self, item: Item, of_suite: str | None = None) -> Judge:
        """Return the judge that an item names, else its suite's, else the evaluation's (with its settings).

        Raises:
            BadInput: the suite does not declare that a judge reads its answers, so that its record would name none.
        """
        if self.unjudged:
            raise BadInput(
                f"suite {self.unjudged}: a judge reads its answers and it does not declare one; write reads = "
                'frozenset({"judge"}), or judged_by where it has a judge of its own'
            )
        own = self.judge or find_judge(DEFAULT)
        name = item.judge or of_suite or own.kind
        return own if name == own.kind else find_judge(name)


def load_reference(target: RoleModel, path: Path, template: Template, note: Note) -> RoleModel:
    """Load the SFT model as a role beside the target, or on a base of its own where the target's differs."""
    source = find_policy(path)
    model = _model_on(source.base, target, path, template)
    if source.adapter:
        model.add("reference", adapter=source.adapter, trainable=False)
    _note_layout(model, target, note)
    return RoleModel(model, "reference" if source.adapter else None)


def load_reward(target: RoleModel, path: Path, day: str | None, note: Note) -> RoleModel:
    """Load a reward run as a role beside the target, or on a base of its own where the target's differs."""
    model = _model_on(find_source(path).base, target, path, Template(day=day))
    add_reward(model, path)
    _note_layout(model, target, note)
    return RoleModel(model, "reward")


def _model_on(base: Path, target: RoleModel, path: Path, template: Template) -> AdapterModel:
    if base.resolve() == target.model.base_path.resolve():
        return target.model
    return AdapterModel(base, target.model.compute, template_of(path, template))


def _note_layout(model: AdapterModel, target: RoleModel, note: Note) -> None:
    """Choose the layout of a model that is not the target's own, and note it."""
    if model is not target.model:
        note_layout(model, lambda line: note(f"{model.base_path.name}: {line}"))
