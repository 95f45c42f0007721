"""The extension point for rewards: a reward gives each response of a policy in training a number, or None.

A reward is chosen by ``kind``: a shipped name, or ``module:Class``. It derives from :class:`TextReward` and reads
messages, or from :class:`RoleReward` and is another role on the policy's base, which reads the policy's own tokens in
one forward pass, without rendering. The rewards of one run are added up. Not here: the penalty of a cut response
(``ppo``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import BeforeValidator, SerializeAsAny

from align.core.plugins import Part, Seam, calling, choose, load, one_or_more
from align.core.records import Message

if TYPE_CHECKING:
    from torch import Tensor

    from align.model.adapters import AdapterModel
    from align.model.packing import PackedBatch

REWARDS = Seam("reward", {"run": "rewards.model:RewardRun", "function": "rewards.functions:FunctionReward"})


class Reward(Part):
    """Base of all rewards; its fields are its settings. Derive from TextReward or RoleReward."""

    def names(self) -> tuple[str, ...]:
        """Return the names of the reward, by which evaluations know that they measure a policy by its own reward."""
        return (self.kind,)

    def label(self) -> str:
        """Return the name by which errors name the reward."""
        return (*self.names(), self.kind)[0]


class TextReward(Reward):
    """A reward that reads messages."""

    @abstractmethod
    def score(
        self, prompts: Sequence[list[Message]], completions: Sequence[list[Message]], **columns: Any
    ) -> list[float | None]:
        """Return one number per completion, or None, which adds nothing to the score.

        Args:
            columns: further values per completion; ``ended`` is True if it ended with a stop token.
        """


class RoleReward(Reward):
    """A reward that is a role of the policy's own model: an adapter with a scalar head."""

    @abstractmethod
    def add_to(self, model: AdapterModel, role: str, *, trainable: bool = False) -> None:
        """Add the role to the model; PPO's critic starts from a trainable copy."""

    def score_packed(self, model: AdapterModel, role: str, packed: PackedBatch) -> Tensor:
        """Return the scores ``(B,)`` of the responses of a packed batch."""
        with model.use(role):
            return model.scores(role, packed)


class Rewards(NamedTuple):
    """The rewards of one run, which are added up: rewards that read messages, and roles by their names."""

    texts: Sequence[TextReward]
    roles: Mapping[str, RoleReward]

    @classmethod
    def of(cls, run: Path | None, functions: Sequence[str], chosen: Sequence[Reward]) -> Rewards:
        """Collect a reward run, functions named ``module:function``, and further rewards."""
        rewards: list[Reward] = [load(REWARDS.shipped["run"])(path=run)] if run is not None else []
        rewards += [load(REWARDS.shipped["function"])(name=name) for name in functions]
        rewards += chosen
        roles = [reward for reward in rewards if isinstance(reward, RoleReward)]
        names = ("reward", *(f"reward-{number}" for number in range(2, len(roles) + 1)))
        texts = [reward for reward in rewards if isinstance(reward, TextReward)]
        return cls(texts, dict(zip(names, roles, strict=False)))

    def names(self) -> set[str]:
        """Return the names of all rewards."""
        return {name for reward in (*self.texts, *self.roles.values()) for name in reward.names()}


def _choose(given: Any) -> Reward:
    reward = choose(REWARDS, Reward, given)
    if not isinstance(reward, TextReward | RoleReward):
        raise ValueError(f"reward {reward.kind}: derives from Reward alone; derive from TextReward or from RoleReward")
    with calling(f"reward {reward.kind}: names", reward):
        names = reward.names()
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"reward {reward.kind}: names gave {names!r}; it gives a tuple of texts")
    return reward


ChosenReward = Annotated[SerializeAsAny[Reward], BeforeValidator(_choose)]
RewardsSetting = Annotated[list[ChosenReward], BeforeValidator(one_or_more)]
