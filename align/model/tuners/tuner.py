"""The extension point for tuners: how the weights of a role on a shared base are made, switched, saved and loaded.

An adapter folder holds ``adapter_config.json``, which names its tuner and its base, and ``adapter_model.safetensors``
with the role's own tensors. Not here: a head (``heads.py``), and which roles there are (``adapters.py``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import torch
from pydantic import BeforeValidator, SerializeAsAny
from safetensors.torch import save
from torch import Tensor, nn

from align.core.config import BadInput
from align.core.files import write_bytes, write_json
from align.core.plugins import Part, Seam, calling, choose, load
from align.model.weights import load_tensors, read_object, refuse_not_finite

TUNERS = Seam("tuner", {"lora": "align.model.tuners.lora:Lora"})
OF_PEFT = {"LORA": "lora"}  # which tuner loads an adapter folder written by PEFT, by its peft_type
DEFAULT = "lora"
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
MERGE = "merge the adapter into its base (PEFT's merge_and_unload) and name the merged folder"


class Tuner(Part):
    """Base of all tuners: gives each role on a shared base weights of its own.

    A tuner has no state: what it adds to a base stays with ``model``, which is what :meth:`attach` returned (the base
    itself, or a wrapper around it).
    """

    @abstractmethod
    def attach(self, model: Any, role: str, folder: Path | None = None) -> Any:
        """Give a role weights that leave the output unchanged; where ``folder`` is given, in the shape of its weights.

        Raises:
            BadInput: this base cannot have them.
        """

    @abstractmethod
    def activate(self, model: Any, role: str | None, trainable: bool = False) -> None:
        """Switch to a role's weights (None: to the base alone); only these weights may receive gradients."""

    @abstractmethod
    def parameters(self, model: Any, role: str) -> dict[str, nn.Parameter]:
        """Return the tensors of a role, by names that do not depend on the role."""

    def describe(self, model: Any, role: str) -> str:
        """Describe in one sentence which part of the model a role trains."""
        tensors = self.parameters(model, role).values()
        return f"{role} trains {sum(tensor.numel() for tensor in tensors):,} numbers in {len(tensors)} tensors"

    def changes_head(self, model: Any, role: str) -> bool:
        """Return whether a role changes the output head, whose weight TRL's trainer reads directly."""
        return False

    def differing(self, saved: Self, model: Any, role: str) -> dict[str, tuple[Any, Any]]:
        """Return the settings that differ from those of a saved adapter, the role's on ``model``: own and saved."""
        held = saved.model_dump()
        own = self.model_dump(exclude={"kind"})
        return {key: (value, held[key]) for key, value in own.items() if value != held[key]}

    def saved_tensors(self, model: Any, role: str) -> dict[str, Tensor]:
        """Return the tensors of a role, by their names in an adapter folder."""
        return dict(self.parameters(model, role))

    def saved_settings(self, model: Any, role: str) -> dict[str, Any]:
        """Return the content of ``adapter_config.json`` besides the base."""
        return {"tuner": self.model_dump(mode="json")}

    def save(self, model: Any, role: str, base: Path, folder: Path) -> None:
        """Write a role as a flat adapter folder."""
        write_bytes(folder / TENSORS, save(plain(self.saved_tensors(model, role))))
        write_json(folder / CONFIG, {**self.saved_settings(model, role), "base_model_name_or_path": str(base)})

    def fitting_tensors(self, model: Any, role: str, folder: Path, base: Path) -> dict[str, Tensor]:
        """Load the tensors of an adapter folder and check that they are exactly those of the role.

        Raises:
            BadInput: a tensor is missing, unknown, misshaped or not finite.
        """
        held = load_tensors(folder / TENSORS)
        refuse_misfit(held, self.saved_tensors(model, role), folder, base)
        refuse_not_finite(folder / TENSORS, held.items())
        return held

    def refuse_other_values(self, model: Any, role: str, folder: Path) -> None:
        """Refuse an adapter folder that does not hold the tensors of the role, by name and value."""
        held, saved, own = load_tensors(folder / TENSORS), self.saved_tensors(model, role), self.parameters(model, role)
        expected = [*saved.items(), *(own.items() if own.keys() & saved.keys() else ())]  # a file may have other names
        for name, tensor in expected:
            if name not in held or not _are_equal(held[name], tensor.detach().cpu()):
                raise BadInput(
                    f"tuner {self.kind}: {name} is not the same in the role {role} and in {folder / TENSORS}; save() "
                    "writes the tensors of parameters(), and load() reads them"
                )

    def load(self, model: Any, role: str, folder: Path, base: Path) -> None:
        """Copy the tensors of an adapter folder into a role; raises BadInput as :meth:`fitting_tensors` does."""
        held = self.fitting_tensors(model, role, folder, base)
        with torch.no_grad():
            for name, parameter in self.parameters(model, role).items():
                parameter.copy_(held[name])


TunerSetting = Annotated[SerializeAsAny[Tuner], BeforeValidator(partial(choose, TUNERS, Tuner))]


class SavedAdapter(NamedTuple):
    """The tuner that made an adapter folder, and the folder of the base that it belongs to."""

    tuner: Tuner
    base: Path


def default_tuner() -> Tuner:
    """Return the tuner that is used where neither the config nor the parent's adapter names one."""
    return choose(TUNERS, Tuner, DEFAULT)


def read_adapter(folder: Path) -> SavedAdapter:
    """Read the settings of an adapter folder.

    Raises:
        BadInput: they cannot be read, have impossible values, or need what roles on one shared base cannot have.
    """
    file = folder / CONFIG
    settings = read_object(file)
    kind = settings.get("peft_type")
    if "tuner" not in settings and kind not in OF_PEFT:
        raise BadInput(f"{file}: key peft_type: {kind!r} is none of {', '.join(OF_PEFT)}; {MERGE}")
    if not isinstance(settings.get("base_model_name_or_path"), str):
        raise BadInput(f"{file}: key base_model_name_or_path: expected the folder of the base; write it there")
    base = Path(settings["base_model_name_or_path"])
    if "tuner" not in settings:
        return SavedAdapter(load(TUNERS.shipped[OF_PEFT[str(kind)]]).of_peft(file, settings), base)
    try:
        return SavedAdapter(choose(TUNERS, Tuner, settings["tuner"]), base)
    except ValueError as error:
        raise BadInput(f"{file}: key tuner: {error}") from error


def refuse_other_settings(given: Tuner, saved: Tuner, model: Any, role: str, folder: Path) -> None:
    """Refuse a tuner of another kind or with other settings than the adapter ``role`` that training starts from."""
    if type(given) is not type(saved):
        raise BadInput(
            f"tuner: {given.kind}, but training goes on from {folder}, which {saved.kind} made; leave it out"
        )
    if differing := given.differing(saved, model, role):
        wanted, held = (", ".join(f"{key}={pair[side]}" for key, pair in differing.items()) for side in (0, 1))
        raise BadInput(
            f"tuner {given.kind}: {wanted}, but training goes on from {folder} with {held}; leave tuner out or give "
            "its values"
        )


def refuse_changed_head(tuner: Tuner, model: Any, role: str) -> None:
    """Refuse an adapter on the output head in SFT, where TRL's trainer reads the head's own weight.

    Such an adapter would learn nothing.

    Raises:
        BadInput: the role changes the head.
    """
    with calling(f"tuner {tuner.kind}: changes_head", tuner):
        changes_head = tuner.changes_head(model, role)
    if changes_head:
        raise BadInput(
            f"tuner {tuner.kind}: target_modules: SFT cannot train an adapter on the output head; leave the head out"
        )


def refuse_misfit(held: Mapping[str, Tensor], wanted: Mapping[str, Tensor], folder: Path, base: Path) -> None:
    """Refuse tensors whose names or shapes differ from those of the role."""
    misfit = f"{folder}: does not fit the base {base}"
    if unknown := sorted(held.keys() - wanted.keys()):
        raise BadInput(f"{misfit}: {unknown[0]} is unknown; name the adapter's own base, or train it again")
    if missing := sorted(wanted.keys() - held.keys()):
        raise BadInput(f"{misfit}: {missing[0]} is missing ({len(missing)} in all); copy or train the adapter again")
    for name, tensor in held.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{list(tensor.shape)} instead of {list(wanted[name].shape)}"
            raise BadInput(f"{misfit}: {name} has the shape {shapes}; name the adapter's own base, or train it again")


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal in the type of either."""
    return torch.equal(one.to(other.dtype), other) or torch.equal(other.to(one.dtype), one)


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Prepare tensors for a safetensors file: on the CPU, contiguous, sorted by name."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
