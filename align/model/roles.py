"""A role of an adapter model, as samplers and evaluations take it."""

from __future__ import annotations

from typing import NamedTuple

from align.model.adapters import AdapterModel
from align.model.load import context_length


class RoleModel(NamedTuple):
    """A model and the role that acts on it; None is the bare base."""

    model: AdapterModel
    role: str | None

    @property
    def context(self) -> int | None:
        """Tokens of a row at most, where the model states it."""
        return context_length(self.model.base)
