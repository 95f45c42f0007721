"""Tiny models with the chat templates of known families, which write what a test tells them to.

The templates are those of the installed TRL; tokenizers are the tests' own with the family's special tokens.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from conftest import make_tokenizer
from transformers import GenerationConfig, GPT2Config
from transformers.models.auto import AutoModelForCausalLM


class Family(NamedTuple):
    """A chat template's file, its special tokens, its plain added ones, and those that end a response."""

    template: str
    special: list[str]
    added: list[str]
    ends: list[str]


FAMILIES = {
    "gpt-oss": Family(
        "gptoss",
        ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>"],
        [],
        ["<|return|>", "<|call|>"],
    ),
    "qwen3": Family("qwen3", [], ["<think>", "</think>", "<tool_call>", "</tool_call>"], ["<|im_end|>"]),
    "llama-3": Family(
        "llama3", ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], [], ["<|eot_id|>"]
    ),
}


def template_of(name: str) -> str:
    """A chat template of the installed TRL, by the name of its file."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None and spec.origin is not None
    return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def family_tokenizer(name: str) -> Any:
    family = FAMILIES[name]
    tokenizer = make_tokenizer(template_of(family.template))
    tokenizer.add_tokens(family.special, special_tokens=True)
    tokenizer.add_tokens(family.added)
    tokenizer.eos_token = family.ends[0]
    if "<|begin_of_text|>" in family.special:
        tokenizer.bos_token = "<|begin_of_text|>"
    return tokenizer


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text in which special tokens are meant as such."""
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def writer(folder: Path, tokenizer: Any, prompt: Sequence[int], response: str, ends: Sequence[str] = ()) -> Path:
    """A model folder that writes ``response`` after ``prompt`` (it goes by positions alone) at temperature 0."""
    ids = token_ids(tokenizer, response)
    size = len(prompt) + len(ids) + 64
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=size, n_head=1, n_layer=1, n_positions=size, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in (*model.transformer.h.parameters(), model.transformer.wte.weight, model.lm_head.weight):
            parameter.mul_(0.01)
        model.transformer.wpe.weight.copy_(torch.eye(size))
        for step, token in enumerate(ids):
            model.lm_head.weight[token, len(prompt) - 1 + step] += 1.0
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(end) for end in ends)]
    )
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder
