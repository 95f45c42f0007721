"""Loading a base and its tokenizer: local folders only, safetensors only, no code from a model folder.

What a folder says is held against what its files hold before anything large is made of it
(:mod:`align.model.weights`): a tensor that is missing, misnamed or misshaped would be a random one.
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
    """A loaded base, the tensors in its files that it has no place for, and how its folder stores it quantised."""

    model: Any
    unused: list[str]
    stored_as: str | None


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
