"""TRL as the oracle: the same loss and gradients as its DPOTrainer and RewardTrainer, on TRL's own token ids.

Parity is asked on TRL's ids because it tokenises rows in its own way (test_text.py lists where that differs).
fp32, pad distinct from EOS, no truncation, no checkpointing, the same LoRA tensors and the same head.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GRADIENT, PARITY, PLAIN_FAMILIES, relative_l2
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor

from align.core.config import Compute
from align.core.records import Pair
from align.data.pairs import PromptPairs, total_weight
from align.engine.distributed import Distributed
from align.model.adapters import AdapterModel
from align.model.layouts import choose_layout
from align.model.packing import Tree
from align.model.tuners.lora import Lora
from align.train.dpo import DPOConfig
from align.train.dpo import _backward as dpo_backward
from rewards.run import _backward as reward_backward

TARGETS = ["q_proj", "v_proj", "gate_proj", "down_proj"]
GPT2_TARGETS = ["c_attn", "c_fc", "c_proj"]
ROWS = [
    {"prompt": "what colour is the sky", "chosen": "the sky is blue today", "rejected": "no"},
    {"prompt": "hello", "chosen": "hello please", "rejected": "the weather is fine today and the answer is yes"},
    {"prompt": "repeat red green blue thank you", "chosen": "red green blue", "rejected": "green red maybe"},
]


def conversational(row: dict[str, str]) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }


def our_stack(folder: Path, role: str, targets: list[str]) -> AdapterModel:
    """A model whose role has LoRA tensors that are not the identity."""
    model = AdapterModel(folder, Compute(device="cpu"))
    model.add(role, adapter=None, tuner=Lora(r=4, alpha=8, target_modules=targets), trainable=True)
    choose_layout(model)
    assert model.layout == "tree", "the parity must be that of the packed path"
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters(role).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def copy_lora(model: AdapterModel, role: str, theirs: Any) -> dict[str, torch.nn.Parameter]:
    """Put our LoRA tensors into TRL's model and return its parameters by our names."""
    ours = model.parameters(role)
    found = {}
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            key = name.replace(".default.", ".")
            with torch.no_grad():
                parameter.copy_(ours[key])
            found[key] = parameter
    assert found.keys() == {name for name in ours if "lora_" in name}
    return found


def lora_config(task: str, targets: list[str]) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets, task_type=task)


def gradients(parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


def prompts_of(trees: list[Tree]) -> list[PromptPairs]:
    pairs = [
        Pair.model_validate(conversational(row) | {"votes": [1, 0, 0], "comparison_id": str(i), "prompt_id": str(i)})
        for i, row in enumerate(ROWS)
    ]
    return [PromptPairs(str(i), tree, [0], [1], [pairs[i]]) for i, tree in enumerate(trees)]


COMMON: dict[str, Any] = {
    "per_device_train_batch_size": len(ROWS), "max_length": None, "gradient_checkpointing": False, "bf16": False,
    "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "disable_dropout": True,
}  # fmt: skip


@pytest.mark.parametrize("family", PLAIN_FAMILIES)
def test_dpo_equals_trl(family: str, model_folder: Callable[[str], Path], tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig as TrlConfig
    from trl import DPOTrainer

    targets = GPT2_TARGETS if family == "gpt2" else TARGETS
    model = our_stack(model_folder(family), "policy", targets)
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_folder(family), dtype=torch.float32),
        args=TrlConfig(output_dir=str(tmp_path), beta=0.1, **COMMON),
        train_dataset=Dataset.from_list([conversational(row) for row in ROWS]),
        processing_class=tokenizer,
        peft_config=lora_config("CAUSAL_LM", targets),
    )
    theirs = copy_lora(model, "policy", trainer.model)
    rows = list(trainer.train_dataset)
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    loss.backward()

    trees = [Tree(row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]]) for row in rows]
    prompts = prompts_of(trees)
    config = DPOConfig(run=tmp_path / "r", pairs=tmp_path, policy=tmp_path, loss={"kind": "sigmoid", "beta": 0.1})
    ours = dpo_backward(config, model, Distributed(model.device), prompts)
    assert abs(ours.loss - loss.item()) <= PARITY
    assert abs(ours.loss - 0.6931472) > 1e-3, "an adapter that does nothing would prove nothing"
    assert relative_l2(gradients(model.parameters("policy")), gradients(theirs)) <= GRADIENT


@pytest.mark.parametrize("family", PLAIN_FAMILIES)
def test_reward_equals_trl(family: str, model_folder: Callable[[str], Path], tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig as TrlConfig
    from trl import RewardTrainer

    targets = GPT2_TARGETS if family == "gpt2" else TARGETS
    model = our_stack(model_folder(family), "reward", targets)
    head = model.add_head("reward")
    with torch.no_grad():
        head.linear.weight.copy_(torch.randn(head.linear.weight.shape, generator=torch.Generator().manual_seed(2)))
    classifier = AutoModelForSequenceClassification.from_pretrained(
        model_folder(family), num_labels=1, dtype=torch.float32
    )
    classifier.config.pad_token_id = tokenizer.pad_token_id
    trainer = RewardTrainer(
        model=classifier,
        args=TrlConfig(output_dir=str(tmp_path), **COMMON),
        train_dataset=Dataset.from_list([conversational(row) for row in ROWS]),
        processing_class=tokenizer,
        peft_config=lora_config("SEQ_CLS", targets),
    )
    theirs = copy_lora(model, "reward", trainer.model)
    score = [p for name, p in trainer.model.named_parameters() if "score" in name and "original" not in name]
    with torch.no_grad():
        score[0].copy_(head.linear.weight)
    rows = list(trainer.train_dataset)
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    loss.backward()

    prompts = prompts_of([split(row["chosen_ids"], row["rejected_ids"]) for row in rows])
    ours, _, _ = reward_backward(model, prompts, total_weight(prompts))
    assert abs(ours - loss.item()) <= PARITY
    lora = {name: p for name, p in model.parameters("reward").items() if "lora_" in name}
    assert relative_l2(gradients(lora), gradients(theirs)) <= GRADIENT
    assert head.linear.weight.grad is not None and score[0].grad is not None
    assert relative_l2({"head": head.linear.weight.grad}, {"head": score[0].grad}) <= GRADIENT


def split(chosen: list[int], rejected: list[int]) -> Tree:
    """Two whole rows as a tree: what they share is the prompt."""
    shared = next(i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
    return Tree(chosen[:shared], [chosen[shared:], rejected[shared:]])
