"""Where a policy lives, and loading it: local folders only, safetensors only, no code from a model folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from align.core.config import BadInput, Compute, Template
from align.core.runs import finished_run, is_run

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


class Source(NamedTuple):
    """Where a policy lives: a base folder and, on it, an adapter folder (or none)."""

    base: Path
    adapter: Path | None


def find_source(path: Path) -> Source:
    """Resolve a run folder or a model folder to a base and an adapter.

    Raises:
        BadInput: neither a finished run nor a local model folder. Nothing is looked up on a network.
    """
    if is_run(path):
        record = finished_run(path)
        if (path / "model").is_dir():
            return Source(path / "model", None)
        if not (path / "adapter").is_dir():
            raise BadInput(f"{path}: a run of '{record.stage}' holds no policy (no adapter/ or model/)")
        settings = json.loads((path / "adapter" / "adapter_config.json").read_text())
        return Source(Path(settings["base_model_name_or_path"]), path / "adapter")
    if not (path / "config.json").is_file():
        raise BadInput(f"{path}: neither a run folder (run.json) nor a local model folder (config.json)")
    return Source(path, None)


def template_of(path: Path, asked: Template) -> Template:
    """The chat template to use with a policy: what was asked for, else what its run was trained with.

    Arguments are inherited one by one where the template is; the day is inherited whatever the template.
    """
    if not is_run(path):
        return asked
    parent = finished_run(path)
    inherited = parent.resolved.get("chat_template")
    arguments = parent.template.get("template_arguments", {})
    if asked.name not in (None, inherited):
        arguments = {name: value for name, value in arguments.items() if name == "date"}
    return asked._replace(name=asked.name or inherited, arguments={**arguments, **asked.arguments})


def on_the_day_of(asked: Template, paths: Iterable[Path | None]) -> Template:
    """A template that prints the day of the first of these runs that printed one."""
    records = (finished_run(path) for path in paths if path is not None and is_run(path))
    days = (record.template.get("template_arguments", {}).get("date") for record in records)
    return asked._replace(day=next((day for day in days if day), asked.day))


def config_of(path: Path) -> Any:
    """A model folder's configuration, without loading weights."""
    try:
        return AutoConfig.from_pretrained(str(path), **LOCAL)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: no readable model configuration ({str(error).splitlines()[0]})") from error


def skeleton(config: Any) -> Any:
    """An architecture without its weights (on the meta device)."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def load_tokenizer(path: Path) -> Any:
    """A folder's fast tokenizer."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), **LOCAL)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: no usable tokenizer there ({str(error).splitlines()[0]})") from error
    if not tokenizer.is_fast:
        raise BadInput(f"{path}: its tokenizer has no fast version (tokenizer.json); convert it first")
    return tokenizer


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name."""
    try:
        return load_file(str(file))
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{file}: not a whole safetensors file ({error}); copy or train it again") from error


def load_base(path: Path, compute: Compute) -> Any:
    """Load a causal model frozen, in eval mode, from a local folder (safetensors only).

    Of its generation config only the stop tokens are kept: ``generate`` would fill whatever a caller leaves open
    (repetition penalty, top-k, ...) from there, and samples would not come from the policy that is scored.
    """
    if not (path / "config.json").is_file():
        raise BadInput(f"{path}: no such model folder (config.json is missing); nothing is fetched from a hub")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    dtype = getattr(torch, compute.dtype)
    quantization = None
    if compute.quantization == "int8":
        quantization = BitsAndBytesConfig(load_in_8bit=True)
    elif compute.quantization == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    arguments: dict[str, Any] = {"quantization_config": quantization} if quantization else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=dtype, use_safetensors=True, device_map={"": str(device_of(compute))}, **LOCAL, **arguments
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise BadInput(f"{path}: the model cannot be loaded ({str(error).splitlines()[0]})") from error
    model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id)
    return model.eval().requires_grad_(False)


def width(model: Any) -> int:
    """Size of a hidden state."""
    return int(model.config.get_text_config().hidden_size)


def context_length(model: Any) -> int | None:
    """The longest row the model was made for, in tokens, or None where its config does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def device_of(compute: Compute) -> torch.device:
    """Where this process works; of several processes each takes the GPU of its local rank."""
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("compute.device: cuda was asked for and none is available; use auto or cpu")
    if compute.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
