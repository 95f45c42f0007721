"""LoRA adapters on a base, by PEFT: all roles share one PeftModel.

Only this file knows which tensors belong to which role, by the place where PEFT keeps them. Names alone are not
enough: ``lora_embedding_A.policy`` ends with the role, and a model may have a layer that is called ``value``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
from pydantic import Field, field_validator
from torch import Tensor, nn

from align.core.config import BadInput
from align.model.tuners.tuner import CONFIG, MERGE, TENSORS, Tuner, refuse_misfit
from align.model.weights import load_tensors, reading, refuse_not_finite

RANK = 8192  # the largest rank an adapter may have
BASE_STAYS = (True, False, "gaussian", "orthogonal", "eva")  # initialisations that leave the base as it is
TAKEN = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "fan_in_fan_out", "use_rslora", "use_dora",
    "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "eva_config",
    "qalora_group_size", "target_parameters",
}  # fmt: skip


class Lora(Tuner):
    """A LoRA adapter over all linear layers; no dropout, so that a log-probability is a function of the weights."""

    kind: Literal["lora"] = "lora"
    r: int = Field(default=16, ge=1, le=RANK, description="rank of the update")
    alpha: int = Field(default=32, ge=1, description="the update is scaled by alpha / r")
    target_modules: str | list[str] = Field(
        default="all-linear", description="all-linear, names, or a regular expression of whole names"
    )

    @field_validator("target_modules")
    @classmethod
    def _names(cls, value: str | list[str]) -> str | list[str]:
        """Read comma-separated names as a list of names: as a regular expression they would match nothing."""
        if isinstance(value, str) and value != "all-linear" and re.fullmatch(r"[\w.]+(\s*,\s*[\w.]+)*", value.strip()):
            return re.split(r"\s*,\s*", value.strip())
        return value

    @classmethod
    def of_peft(cls, file: Path, settings: Mapping[str, Any]) -> Lora:
        """Return the tuner of an adapter folder's settings.

        Raises:
            BadInput: they have impossible values, or need what roles on one shared base cannot have.
        """
        _refuse_unusable(file, settings)
        return cls.model_construct(kind="lora", r=settings["r"], alpha=settings["lora_alpha"])

    def differing(self, saved: Lora, model: PeftModel, role: str) -> dict[str, tuple[Any, Any]]:
        """Return the settings that differ; of ``target_modules``, the modules that are meant and the adapted ones."""
        base = model.get_base_model()
        layers = ((_own_name(name), layer) for name, layer in base.named_modules())
        adapted = {name for name, layer in layers if isinstance(layer, BaseTunerLayer) and _has(layer, role)}
        kinds = sorted({name.rpartition(".")[2] for name in adapted})
        meant = {} if self._meant(base) == adapted else {"target_modules": (self.target_modules, kinds)}
        pairs = {"r": (self.r, saved.r), "alpha": (self.alpha, saved.alpha)}
        return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]} | meant

    def _meant(self, base: Any) -> set[str]:
        """Return the names of the modules of a base that ``target_modules`` means."""
        modules = {_own_name(name): module for name, module in base.named_modules() if ".lora_" not in name}
        if isinstance(self.target_modules, list):
            return {name for name in modules if any(f".{name}".endswith(f".{end}") for end in self.target_modules)}
        if self.target_modules != "all-linear":
            with reading(f"tuner lora: target_modules: {self.target_modules!r}", "write a regular expression"):
                return {name for name in modules if re.fullmatch(self.target_modules, name)}
        text, head = _text_part(base), {id(part) for part in base.get_output_embeddings().modules()}
        return {
            name
            for name, module in modules.items()
            if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
            and not (_is_own_linear(module) or id(module) in head)
            and (text is None or name.startswith(f"{text}."))
        }

    # --- on a base -------------------------------------------------------------------------------------------

    def attach(self, model: Any, role: str, folder: Path | None = None) -> PeftModel:
        """Add a role's adapter to a base, or to a base that has adapters of other roles.

        Raises:
            BadInput: a target module is not there, cannot be adapted, or is a head that is tied to the embedding.
        """
        config = _saved_config(folder) if folder else self._fresh_config()
        where = str(folder / CONFIG) if folder else f"tuner {self.kind}"
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        _refuse_tied_head(base, config.target_modules, f"{where}: target_modules")
        if config.target_modules == "all-linear":
            text = _text_part(base)
            excluded = [] if text is None else [rf"(?!{re.escape(text)}\.).*"]  # the others get no gradient
            excluded += [rf".*\.{re.escape(name)}" for name in _routers(base)]
            config.exclude_modules = "|".join(excluded) or config.exclude_modules
        with reading(f"{where}: target_modules: no adapter can be put on this model", f"it has {_layers(base)}"):
            if isinstance(model, PeftModel):
                model.add_adapter(role, config)
            else:
                model = get_peft_model(model, config, adapter_name=role)
        names = [_own_name(name) for name, _ in base.named_modules()]
        targets = config.target_modules if isinstance(config.target_modules, set) else ()
        if lost := sorted(t for t in targets if not any(name == t or name.endswith(f".{t}") for name in names)):
            raise BadInput(
                f"{where}: target_modules: {', '.join(lost)} matches no module of this model; it has {_layers(base)}"
            )
        return model

    def _fresh_config(self) -> LoraConfig:
        return LoraConfig(
            r=self.r, lora_alpha=self.alpha, lora_dropout=0.0, target_modules=self.target_modules, task_type="CAUSAL_LM"
        )

    def activate(self, model: PeftModel, role: str | None, trainable: bool = False) -> None:
        if role is None:
            model.base_model.disable_adapter_layers()
            return
        model.base_model.enable_adapter_layers()
        model.base_model.set_adapter(role, inference_mode=not trainable)
        model.active_adapter = role

    def parameters(self, model: PeftModel, role: str) -> dict[str, nn.Parameter]:
        tensors: dict[str, nn.Parameter] = {}
        for module_name, module in model.named_modules():
            if not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
                continue
            for attribute in module.adapter_layer_names:
                holder = attrgetter(attribute)(module)
                if role not in holder:
                    continue
                part = holder[role]
                inner = {"": part} if isinstance(part, nn.Parameter) else dict(part.named_parameters())
                tensors |= {f"{module_name}.{attribute}.{name}".rstrip("."): tensor for name, tensor in inner.items()}
        return tensors

    def describe(self, model: PeftModel, role: str) -> str:
        """Return what a role's adapter changes, and what of the model it cannot: in one sentence."""
        base = model.get_base_model()
        text = _text_part(base)
        kinds: Counter[str] = Counter()
        is_beyond_text = False
        for name, module in base.named_modules():
            if isinstance(module, BaseTunerLayer) and _has(module, role):
                tensor = getattr(module, "parameter_name", "weight")  # of a layer around one tensor (fused experts)
                kinds[_own_name(name).rpartition(".")[2] + (f".{tensor}" if tensor != "weight" else "")] += 1
                is_beyond_text |= text is not None and not name.startswith(f"{text}.")
        sentence = f"{role} adapts {', '.join(f'{kind} ({count})' for kind, count in sorted(kinds.items()))}"
        frozen = []
        experts = [name for name, tensor in base.named_parameters() if tensor.ndim == 3 and ".experts." in name]
        if fused := {f"experts.{name.rpartition('.')[2]}" for name in experts} - kinds.keys():
            frozen.append(f"fused experts ({', '.join(sorted(fused))})")
        if routers := set(_routers(base)) - kinds.keys():
            frozen.append(f"routers ({', '.join(sorted(routers))})")
        if text is not None and not is_beyond_text:
            frozen.append("all but the language model (no text goes through towers for images or sound)")
        if is_beyond_text:
            sentence += ", also where no text goes through and nothing is learnt"
        return sentence + (f"; stays frozen: {'; '.join(frozen)}" if frozen else "")

    def changes_head(self, model: PeftModel, role: str) -> bool:
        head = model.get_base_model().get_output_embeddings()
        return isinstance(head, BaseTunerLayer) and _has(head, role)

    # --- in a folder -----------------------------------------------------------------------------------------

    def saved_tensors(self, model: PeftModel, role: str) -> dict[str, Tensor]:
        """Return a role's tensors by the names in a PEFT adapter file; what belongs to the base is not among them."""
        return dict(get_peft_model_state_dict(model, adapter_name=role, save_embedding_layers=False))

    def saved_settings(self, model: PeftModel, role: str) -> dict[str, Any]:
        return _jsonable(model.peft_config[role].to_dict() | {"inference_mode": True})

    def fitting_tensors(self, model: PeftModel, role: str, folder: Path, base: Path) -> dict[str, Tensor]:
        """Load the tensors of a PEFT adapter file by its own names; the file may repeat embeddings of the base.

        Raises:
            BadInput: a tensor is missing, unknown, misshaped or not finite, or the folder brings weights of a base.
        """
        file = folder / TENSORS
        read = load_tensors(file)
        wanted = self.saved_tensors(model, role)
        with reading(f"{folder}: does not fit the base {base}", "name the adapter's own base"):
            held = convert_peft_adapter_state_dict_for_transformers(model, model.peft_config[role], dict(read), role)
        for name in held.keys() - wanted.keys():
            if _is_of_the_base(model, name, held[name]):
                del held[name], read[name]
        refuse_misfit(held, wanted, folder, base)
        refuse_not_finite(file, held.items())
        return read

    def load(self, model: PeftModel, role: str, folder: Path, base: Path) -> None:
        set_peft_model_state_dict(model, self.fitting_tensors(model, role, folder, base), adapter_name=role)


def _refuse_unusable(file: Path, settings: Mapping[str, Any]) -> None:
    ranks = {"r": settings.get("r"), **_pattern(file, settings, "rank_pattern")}
    for key, rank in ranks.items():
        if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= RANK:
            raise BadInput(f"{file}: key {key}: {rank!r} is no rank (1 to {RANK}); copy or train it again")
    scales = {"lora_alpha": settings.get("lora_alpha"), **_pattern(file, settings, "alpha_pattern")}
    for key, scale in scales.items():
        if not isinstance(scale, int | float) or not math.isfinite(scale):
            raise BadInput(f"{file}: key {key}: {scale!r} is no finite number; copy or train it again")
    if settings.get("init_lora_weights", True) not in BASE_STAYS:
        start = settings["init_lora_weights"]
        raise BadInput(f"{file}: key init_lora_weights: {start!r} changes the base that all roles share; {MERGE}")
    targets = settings.get("target_modules")
    if not targets or not (isinstance(targets, str) or _are_names(targets)):
        raise BadInput(f"{file}: key target_modules: {str(targets)[:60]!r} names no modules; copy or train it again")
    usual = {field.name: field.default for field in fields(LoraConfig)}
    for key, value in settings.items():
        if key not in TAKEN and value not in (None, False, [], {}, usual.get(key)):
            raise BadInput(f"{file}: key {key}: {str(value)[:60]!r} is not supported; {MERGE}")


def _saved_config(folder: Path) -> LoraConfig:
    """Return the PEFT configuration of a saved adapter, whose settings were checked."""
    with reading(f"{folder / CONFIG}: no readable adapter configuration", "copy or train it again"):
        config = PeftConfig.from_pretrained(str(folder))
    assert isinstance(config, LoraConfig)
    # the saved tensors replace whatever is initialised here
    config.init_lora_weights = config.init_lora_weights is not False
    config.inference_mode = False
    return config


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _pattern(file: Path, settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = settings.get(key) or {}
    if not isinstance(value, dict):
        raise BadInput(f"{file}: key {key}: expected module names and numbers, found {str(value)[:60]!r}")
    return {f"{key}.{name}": number for name, number in value.items()}


def _refuse_tied_head(base: Any, targets: Any, where: str) -> None:
    """Refuse to adapt a head that is tied to the embedding: PEFT does it, but merges or exports another model."""
    tied = [name.removesuffix(".weight") for name in getattr(base, "all_tied_weights_keys", {})]
    if isinstance(targets, str) and targets != "all-linear":
        with reading(f"{where}: {targets!r} is no regular expression", "name the modules as a list"):
            matched = [name for name in tied if re.fullmatch(targets, name)]
    else:
        matched = [name for name in tied if name in targets or name.rpartition(".")[2] in targets]
    if matched:
        raise BadInput(
            f"{where}: {matched[0]} shares its weight with the embedding (tie_word_embeddings), so it cannot be "
            "adapted alone; leave it out"
        )


def _text_part(base: Any) -> str | None:
    """Return the name of the language model inside a multimodal model; None where the model has text alone."""
    if all(getattr(base.config, f"{tower}_config", None) is None for tower in ("vision", "audio")):
        return None
    decoder = base.get_decoder()
    return next((name for name, module in base.named_modules() if module is decoder), None)


def _own_name(name: str) -> str:
    """Return a module's name before PEFT wrapped it."""
    return name.replace(".base_layer", "")


def _layers(base: Any) -> str:
    """Return the kinds of modules that LoRA can adapt, by the last part of their names."""
    kinds = Counter(
        _own_name(name).rpartition(".")[2]
        for name, module in base.named_modules()
        if (isinstance(module, nn.Linear | nn.Embedding) or type(module).__name__ == "Conv1D") and ".lora_" not in name
    )
    return ", ".join(list(kinds)[:12])


def _routers(base: Any) -> list[str]:
    """Name the linear layers of an architecture's own class, which return more than a product (Llama 4's routers)."""
    own = {name.rpartition(".")[2] for name, module in base.named_modules() if _is_own_linear(module)}
    return sorted(own)


def _is_own_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and type(module).__module__.startswith("transformers.models.")


def _is_of_the_base(peft: PeftModel, name: str, tensor: Tensor) -> bool:
    """Return whether a tensor is bit-equal to the base's own (PEFT also saves embeddings that have an adapter)."""
    own = peft.state_dict().get(name)
    if own is None or own.shape != tensor.shape:
        return False
    return own.is_meta or bool((own.cpu() == tensor.to(own.dtype)).all())


def _has(module: BaseTunerLayer, role: str) -> bool:
    return any(role in getattr(module, attribute) for attribute in module.adapter_layer_names)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [_jsonable(inner) for inner in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(getattr(value, "value", value))
