"""The reward seam: what gives each response of a policy in training a number, or None.

A reward is chosen by ``kind``: a shipped name, or ``module:Class``. It derives from :class:`TextReward` and reads
messages, or from :class:`RoleReward` and reads the policy's own tokens as another role on the same base, which costs
one forward pass and no rendering. Rewards of one run are added up. Not here: the penalty of a cut response (``ppo``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from align.core.plugins import Part, Seam, choose
from align.core.records import Message

if TYPE_CHECKING:
    from torch import Tensor

    from align.model.adapters import AdapterModel
    from align.model.packing import PackedBatch

REWARDS = Seam("reward", {"run": "rewards.model:RewardRun", "function": "rewards.functions:FunctionReward"})


class Reward(Part):
    """What scores responses; its fields are its settings. Derive from TextReward or RoleReward."""

    def names(self) -> tuple[str, ...]:
        """What the reward is known by: a metric that a reward of one of these names gives is a training reward."""
        return (self.kind,)


class TextReward(Reward):
    """A reward that reads messages."""

    @abstractmethod
    def score(
        self, prompts: Sequence[list[Message]], completions: Sequence[list[Message]], **columns: Any
    ) -> list[float | None]:
        """One number per completion, or None where the reward has no opinion: that adds nothing.

        Args:
            columns: further facts per completion; ``ended`` says whether it ended by itself.
        """


class RoleReward(Reward):
    """A reward that is a role of the policy's own model: an adapter with a scalar head."""

    @abstractmethod
    def add_to(self, model: AdapterModel, role: str, *, trainable: bool = False) -> None:
        """Add the role; a trainable one is where PPO's critic starts."""

    def score_packed(self, model: AdapterModel, role: str, packed: PackedBatch) -> Tensor:
        """Scores ``(B,)`` of the responses of a packed batch."""
        with model.use(role):
            return model.scores(role, packed)


ChosenReward = Annotated[SerializeAsAny[Reward], BeforeValidator(lambda given: choose(REWARDS, Reward, given))]
