"""Shared fixtures: tolerances (stated once), a tiny tokenizer, and tiny random models of every family.

The models are random, with weights wide enough that a wrong mask or position moves the logits visibly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

from align.core.config import Compute
from align.model.adapters import AdapterModel
from align.model.layouts import choose_layout
from align.model.tuners.lora import Lora

pytest_plugins = [
    "fixtures.audit_world",
    "fixtures.browser",
    "fixtures.browser_campaign",
    "fixtures.campaigns",
    "fixtures.counting",
    "fixtures.judging",
    "fixtures.studio",
]  # their fixtures

EXACT = 1e-6  # the same equation in another form, fp32
LOGPROB = 1e-5  # nats per token: packed against plain forward, fp32
GRADIENT = 1e-5  # relative L2 of all gradients of a role, fp32
PARITY = 1e-5  # |our loss - TRL's loss|, fp32
LEAK = 1e-5  # logits: what a sibling response may move, any dtype
SAMPLER = 1e-4  # nats per token: sampler (with its cache) against scorer, fp32

SPECIAL = ["<pad>", "<eos>", "<|im_start|>", "<|im_end|>"]
TEXT = (
    "user assistant system Human: Assistant: the weather is fine today and the answer is yes no maybe please thank "
    "you hello world what colour is the sky blue green red repeat sort reverse words helpful harmless honest"
)
CHATML_OWN = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}
WINDOW = 8
CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": lambda **common: LlamaConfig(**SHAPE, num_hidden_layers=2, **common),
    "qwen2": lambda **common: Qwen2Config(**SHAPE, num_hidden_layers=3, **common),
    "qwen3": lambda **common: Qwen3Config(**SHAPE, num_hidden_layers=2, **common),
    "gpt2": lambda **common: GPT2Config(
        n_embd=32, n_head=4, n_layer=2, n_positions=256, initializer_range=0.15,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **common,
    ),
    "mistral": lambda **common: MistralConfig(**SHAPE, num_hidden_layers=4, sliding_window=WINDOW, **common),
    "gemma2": lambda **common: Gemma2Config(
        **SHAPE, num_hidden_layers=2, sliding_window=WINDOW, query_pre_attn_scalar=8, final_logit_softcapping=5.0,
        **common,
    ),
}  # fmt: skip
PLAIN_FAMILIES = ["llama", "qwen2", "qwen3", "gpt2", "mistral"]

REPRESENTATIVES = {"llama", "gemma2"}  # a plain family, and the one with windows, soft caps and an additive mask


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases of a matrix over model families that are none of its representatives."""
    for item in items:
        if getattr(getattr(item, "callspec", None), "params", {}).get("family") in set(CONFIGS) - REPRESENTATIVES:
            item.add_marker(pytest.mark.matrix)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Tests on data that is not in the repository read the folder in ALIGN_DATA, and are not collected without it."""
    return True if collection_path.name == "outside_data" and "ALIGN_DATA" not in os.environ else None


def make_tokenizer(template: str | None = CHATML_OWN) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a few merges, pad distinct from EOS, and ChatML tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", chat_template=template
    )


def save_model(config: Any, folder: Path, tokenizer: Any, seed: int = 0) -> Path:
    """A random model of ``config`` and its tokenizer, as a local model folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> Iterator[None]:
    """Tiny tensors gain nothing from more threads, and the numbers stay the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Callable[[str], Path]:
    """``model_folder("llama")``: the folder of that family's tiny model, made once a session."""
    root = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            config = CONFIGS[family](
                vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=None, eos_token_id=tokenizer.eos_token_id
            )
            made[family] = save_model(config, root / family, tokenizer)
        return made[family]

    return folder


@pytest.fixture
def make_model(model_folder: Callable[[str], Path]) -> Callable[..., AdapterModel]:
    """``make_model("llama", max_tokens=64)``: a fresh model with its layout chosen."""

    def build(family: str, **compute: Any) -> AdapterModel:
        model = AdapterModel(model_folder(family), Compute(device="cpu", **compute))
        choose_layout(model)
        return model

    return build


def add_stirred(model: AdapterModel, role: str, *, trainable: bool = True, head: bool = False, seed: int = 0) -> None:
    """Add a role whose LoRA is not the identity (a fresh one is, and has no gradient on its A side)."""
    model.add(role, adapter=None, tuner=Lora(r=4, alpha=8), trainable=trainable)
    if head:
        model.add_head(role)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters(role).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def gradients(model: AdapterModel, role: str) -> dict[str, Tensor]:
    """The gradients a role has gathered, by name; missing ones are left out."""
    return {name: p.grad.clone() for name, p in model.parameters(role).items() if p.grad is not None}


def relative_l2(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """``|a - b| / |b|`` over all tensors at once; the names must be the same."""
    assert ours.keys() == theirs.keys() and ours
    difference = sum(float(((ours[name] - theirs[name]).double() ** 2).sum()) for name in theirs)
    size = sum(float((theirs[name].double() ** 2).sum()) for name in theirs)
    assert size > 0
    return float((difference / size) ** 0.5)
