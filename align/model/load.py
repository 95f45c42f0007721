"""Where a policy lives, and loading it: local folders only, safetensors only, no code from a model folder.

What a folder says is held against what its files hold before anything large is made of it
(:mod:`align.model.weights`): a tensor that is missing, misnamed or misshaped would be a random one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from align.core.config import BadInput, Compute, Template
from align.core.hashes import has_other_text
from align.core.run_record import finished_run, is_run
from align.model.chat import Chat
from align.model.tuners.lora import adapter_settings, refuse_not_finite
from align.model.weights import (
    LOCAL,
    check_weights,
    config_of,
    read_object,
    reading,
    refuse_missing,
    refuse_second_adapter,
)


class Source(NamedTuple):
    """Where a policy lives: a base folder and, on it, an adapter folder (or none)."""

    base: Path
    adapter: Path | None


class Base(NamedTuple):
    """A loaded base, the tensors in its files that it has no place for, and how its folder stores it quantised."""

    model: Any
    unused: list[str]
    stored_as: str | None


def find_source(path: Path) -> Source:
    """Resolve a run folder, a model folder or an adapter folder to a base and an adapter.

    An adapter is used where the user named its folder or its run; one that lies in a model folder is refused.

    Raises:
        BadInput: neither a finished run nor a local model or adapter folder. Nothing is looked up on a network.
    """
    if is_run(path):
        record = finished_run(path)
        if (path / "model").is_dir():
            return Source(path / "model", None)
        if not (path / "adapter").is_dir():
            raise BadInput(f"{path}: a run of '{record.stage}' holds no policy (no adapter/ or model/)")
        return _on_its_base(path / "adapter")
    if (path / "config.json").is_file():
        refuse_second_adapter(path)
        return Source(path, None)
    if (path / "adapter_config.json").is_file():
        return _on_its_base(path)
    raise BadInput(f"{path}: neither a run folder (run.json) nor a local model folder (config.json)")


def find_policy(path: Path) -> Source:
    """:func:`find_source` of what shall write answers.

    Raises:
        BadInput: it is a reward or a value model (an adapter with a head of its own), or none of what is found there.
    """
    is_reward = is_run(path) and finished_run(path).stage == "reward"
    source = None if is_reward else find_source(path)
    if source is None or (source.adapter is not None and (source.adapter / "head.safetensors").is_file()):
        raise BadInput(f"{path}: a reward run is no policy; name an sft, dpo or ppo run, or a model folder")
    return source


def _on_its_base(adapter: Path) -> Source:
    base = Path(adapter_settings(adapter)["base_model_name_or_path"])
    if not (base / "config.json").is_file():
        raise BadInput(
            f"{adapter / 'adapter_config.json'}: key base_model_name_or_path: '{base}' is no local model folder; "
            "put the base there or write the path where it lies (nothing is fetched from a hub)"
        )
    return Source(base, adapter)


def template_of(path: Path, asked: Template) -> Template:
    """The chat template to use with a policy: what was asked for, else what its run was trained with.

    Arguments are inherited one by one where the template is; the day is inherited whatever the template.

    Raises:
        BadInput: the template is a file that was changed since the run read it, or an adapter folder brings one, or an
            end token, that is not its base's.
    """
    if not is_run(path):
        _refuse_other_end(path)
        own = _own_template(path) if asked.name is None and (path / "adapter_config.json").is_file() else None
        if own is not None and own != _own_template(find_source(path).base):
            raise BadInput(
                f"{path}: brings a chat template that is not its base's; set chat_template to the one it was trained "
                f"with ({path / 'chat_template.jinja'}, where it lies there as a file)"
            )
        return asked
    parent = finished_run(path)
    inherited = parent.resolved.get("chat_template")
    known = parent.template.get("template_sha256")
    if inherited and asked.name in (None, inherited) and has_other_text(Path(inherited), known):
        raise BadInput(
            f"chat_template: {inherited}: has other content than when {path} was trained; put that back, or name "
            "another file for what is meant now"
        )
    arguments = parent.template.get("template_arguments", {})
    if asked.name not in (None, inherited):
        arguments = {name: value for name, value in arguments.items() if name == "date"}
    return asked._replace(name=asked.name or inherited, arguments={**arguments, **asked.arguments})


def _own_template(folder: Path) -> str | None:
    """The chat template that a folder's files hold, in a file of its own or with the tokenizer's settings."""
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace").strip()
    text = read_object(settings).get("chat_template") if settings.is_file() else None
    return text.strip() if isinstance(text, str) else None


def _refuse_other_end(folder: Path) -> None:
    """Refuse an adapter folder whose tokenizer ends answers with another token than its base's, which is the one used.

    Tokens that it has beyond the base's vocabulary are left alone: many trainers add one to pad with.
    """
    if not (folder / "adapter_config.json").is_file():
        return
    own, base = _end_of(folder), _end_of(find_source(folder).base)
    if own is not None and base is not None and own != base:
        raise BadInput(
            f"{folder / 'tokenizer_config.json'}: ends answers with {own}, and the tokenizer of its base, which is "
            f"used, with {base}; put the tokenizer that it was trained with into the base's folder, or remove this file"
        )


def _end_of(folder: Path) -> str | None:
    """The end token that a folder's tokenizer settings name."""
    settings = folder / "tokenizer_config.json"
    named = read_object(settings).get("eos_token") if settings.is_file() else None
    named = named.get("content") if isinstance(named, dict) else named
    return named if isinstance(named, str) else None


def on_the_day_of(asked: Template, paths: Iterable[Path | None]) -> Template:
    """A template that prints the day of the first of these runs that printed one."""
    records = (finished_run(path) for path in paths if path is not None and is_run(path))
    days = (record.template.get("template_arguments", {}).get("date") for record in records)
    return asked._replace(day=next((day for day in days if day), asked.day))


def load_tokenizer(path: Path) -> Any:
    """A model folder's fast tokenizer.

    Raises:
        BadInput: there is none that can be read, or it is a slow one; or the model's configuration is none.
    """
    config_of(path)  # transformers makes one to find the tokenizer's class
    with reading(
        f"{path}: no usable tokenizer there", "put tokenizer.json and tokenizer_config.json of the model there"
    ):
        tokenizer = AutoTokenizer.from_pretrained(str(path), **LOCAL)
    if not tokenizer.is_fast:
        raise BadInput(f"{path}: its tokenizer has no fast version (tokenizer.json); convert it first")
    return tokenizer


def refuse_tokens_beyond(path: Path, chat: Chat, rows: int) -> None:
    """Refuse a tokenizer that belongs to another model: text would give it ids without a row in the embedding.

    A special token beyond it that nothing uses is left alone: text that spells one is split, and
    :class:`align.model.chat.Chat` refuses a template that writes one.

    Args:
        rows: of the embedding.
    """
    chat.rows = rows
    tokenizer = chat.tokenizer
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    used = {chat.stop_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    vocabulary = tokenizer.get_vocab().items()
    beyond = sorted((i, token) for token, i in vocabulary if i >= rows and (i in used or i not in special))
    if beyond:
        index, token = beyond[0]
        raise BadInput(
            f"{path}: its tokenizer has {len(beyond)} tokens beyond the embedding of {rows} rows, first {token!r} with "
            f"the id {index}; put the model's own tokenizer there, or resize the embedding"
        )


def load_base(path: Path, compute: Compute) -> Base:
    """Load a causal model frozen, in eval mode, from a local folder (safetensors only).

    Of its generation config only the stop tokens are kept: ``generate`` would fill whatever a caller leaves open
    (repetition penalty, top-k, ...) from there, and samples would not come from the policy that is scored.

    Raises:
        BadInput: a tensor is missing, misnamed, misshaped, unknown or not finite, or the folder cannot be read.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    config = config_of(path)
    stored_as = stored_quantization(path, config, compute)
    checked = check_weights(path, config)
    dtype = getattr(torch, compute.dtype)
    quantization = None
    if stored_as:
        pass  # the folder's own settings are those its weights were made with
    elif compute.quantization == "int8":
        quantization = BitsAndBytesConfig(load_in_8bit=True)
    elif compute.quantization == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    arguments: dict[str, Any] = {"quantization_config": quantization} if quantization else {}
    with reading(f"{path}: the model cannot be loaded", "copy or convert it again"):
        model, info = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=dtype, use_safetensors=True, device_map={"": str(device_of(compute))},
            output_loading_info=True, **LOCAL, **arguments,
        )  # fmt: skip
    refuse_missing(path, info)
    refuse_not_finite(path, model.named_parameters(), "copy or convert it again")
    model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id)
    text = model.config.get_text_config()
    if hasattr(text, "output_router_logits"):
        text.output_router_logits = False  # for a loss that no stage adds; generation cannot take them
    if not hasattr(model, model.base_model_prefix):
        model.base_model_prefix = "model"  # Llama 4 names another one, where libraries look for its trunk
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # repacked for such CPUs, a product has no gradient
            module.support_avx512bf16_for_cpu = False
    return Base(model.eval().requires_grad_(False), checked.unused, stored_as)


def kind_of_storage(config: Any) -> str | None:
    """How a folder stores its weights quantised (``nf4``, ``int8``, another method's name); None where it does not."""
    settings = getattr(config, "quantization_config", None)
    if not settings:
        return None
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    method = str(settings.get("quant_method") or "bitsandbytes")
    if method == "bitsandbytes":
        kind = str(settings.get("bnb_4bit_quant_type", "fp4"))
        method = kind if settings.get("load_in_4bit") else "int8" if settings.get("load_in_8bit") else method
    return method


def quantization_for(stored_as: str) -> str:
    """What ``compute.quantization`` has to say where weights are stored quantised: other methods have no word there."""
    return stored_as if stored_as in ("int8", "nf4") else "none"


def stored_quantization(path: Path, config: Any, compute: Compute) -> str | None:
    """:func:`kind_of_storage`, which has to be what the config asks for: transformers would pass over anything else.

    Raises:
        BadInput: ``compute.quantization`` says another.
    """
    stored_as = kind_of_storage(config)
    if stored_as and compute.quantization != (wanted := quantization_for(stored_as)):
        raise BadInput(
            f"{path / 'config.json'}: its weights are stored quantised ({stored_as}), and compute.quantization is "
            f"'{compute.quantization}'; set compute.quantization: {wanted}, or name the folder of the unquantised model"
        )
    return stored_as


def width(model: Any) -> int:
    """Size of a hidden state."""
    return int(model.config.get_text_config().hidden_size)


def context_length(model: Any) -> int | None:
    """The longest row the model can be given, in tokens, or None where its config does not say."""
    own = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min((limit for limit in (own, batch_limit(model.config)) if limit), default=None)


def batch_limit(config: Any) -> int | None:
    """Tokens up to which a row's log-probabilities are its own whatever stands beside it; None: always.

    LongRoPE (arXiv 2402.13753) as transformers computes it takes other factors for a whole batch as soon as one of
    its rows is longer than the context that the model was first trained with.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # some have one a type of layer
    first = getattr(text, "original_max_position_embeddings", None)
    limits = [
        kind.get("original_max_position_embeddings") or first for kind in kinds if kind.get("rope_type") == "longrope"
    ]
    return min((limit for limit in limits if limit), default=None)


def device_of(compute: Compute) -> torch.device:
    """Where this process works; of several processes each takes the GPU of its local rank."""
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("compute.device: cuda was asked for and none is available; use auto or cpu")
    if compute.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
