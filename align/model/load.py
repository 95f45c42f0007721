"""Load a base and its tokenizer: local folders only, safetensors only, no code from a model folder.

The folder's config is compared with its weight files before anything large is allocated (:mod:`align.model.weights`):
transformers would initialise a missing, misnamed or misshaped tensor at random.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from align.core.config import BadInput, Compute
from align.model.chat import Chat
from align.model.weights import (
    LOCAL,
    check_weights,
    config_of,
    reading,
    refuse_missing,
    refuse_not_finite,
)


class Base(NamedTuple):
    """A loaded base, the names of unused tensors in its files, and the quantisation method of its folder (or None)."""

    model: Any
    unused: list[str]
    stored_as: str | None


def load_tokenizer(path: Path) -> Any:
    """Load the fast tokenizer of a model folder.

    Raises:
        BadInput: there is no readable fast tokenizer, or the model's configuration cannot be used.
    """
    config_of(path)  # transformers reads the config to find the tokenizer's class
    with reading(
        f"{path}: no usable tokenizer there", "put tokenizer.json and tokenizer_config.json of the model there"
    ):
        tokenizer = AutoTokenizer.from_pretrained(str(path), **LOCAL)
    if not tokenizer.is_fast:
        raise BadInput(f"{path}: its tokenizer has no fast version (tokenizer.json); convert it first")
    return tokenizer


def refuse_tokens_beyond(path: Path, chat: Chat, rows: int) -> None:
    """Refuse a tokenizer of another model: it would give ids that have no row in the embedding.

    A special token beyond the embedding is allowed if nothing uses it: text that spells one is split, and
    :class:`align.model.chat.Chat` refuses a template that writes one.

    Args:
        rows: number of rows of the embedding.
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

    Of its generation config only the stop tokens are kept: ``generate`` would take other settings (repetition penalty,
    top-k, ...) from there, and samples would not come from the policy that is scored.

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
        pass  # the settings of the folder are those that its weights were quantised with
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
        text.output_router_logits = False  # for a loss that no stage uses; generation fails with it
    if not hasattr(model, model.base_model_prefix):
        model.base_model_prefix = "model"  # Llama 4 states another prefix, by which libraries search for its trunk
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # repacked for such CPUs, a matrix product has no gradient
            module.support_avx512bf16_for_cpu = False
    return Base(model.eval().requires_grad_(False), checked.unused, stored_as)


def kind_of_storage(config: Any) -> str | None:
    """Return how a folder stores its weights quantised (``nf4``, ``int8``, another method's name), or None."""
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
    """Return the ``compute.quantization`` that weights stored quantised require; ``none`` for other methods."""
    return stored_as if stored_as in ("int8", "nf4") else "none"


def stored_quantization(path: Path, config: Any, compute: Compute) -> str | None:
    """Return :func:`kind_of_storage` if ``compute.quantization`` agrees: transformers would ignore a difference.

    Raises:
        BadInput: they differ.
    """
    stored_as = kind_of_storage(config)
    if stored_as and compute.quantization != (wanted := quantization_for(stored_as)):
        raise BadInput(
            f"{path / 'config.json'}: its weights are stored quantised ({stored_as}), and compute.quantization is "
            f"'{compute.quantization}'; set compute.quantization: {wanted}, or name the folder of the unquantised model"
        )
    return stored_as


def width(model: Any) -> int:
    """Return the width D of hidden states."""
    return int(model.config.get_text_config().hidden_size)


def context_length(model: Any) -> int | None:
    """Return the longest row of the model in tokens, or None where its config does not state it."""
    own = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min((limit for limit in (own, batch_limit(model.config)) if limit), default=None)


def batch_limit(config: Any) -> int | None:
    """Return the row length up to which log-probabilities do not depend on other rows of the batch; None: no limit.

    In transformers, LongRoPE (arXiv 2402.13753) uses other factors for a whole batch as soon as one of its rows is
    longer than the context of the original training.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # some models have one per layer type
    first = getattr(text, "original_max_position_embeddings", None)
    limits = [
        kind.get("original_max_position_embeddings") or first for kind in kinds if kind.get("rope_type") == "longrope"
    ]
    return min((limit for limit in limits if limit), default=None)


def device_of(compute: Compute) -> torch.device:
    """Return the device of this process; of several processes each takes the GPU of its local rank."""
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("compute.device: cuda was asked for and none is available; use auto or cpu")
    if compute.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
