"""A role of an adapter model, in the form that samplers and evaluations take."""

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
        """The longest row in tokens, or None where the model's config does not state it."""
        return context_length(self.model.base)
