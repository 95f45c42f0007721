"""The choice of a layout by itself: what counts as a failed check, what is told, and what the small copy is."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from align.core import layout
from align.core.config import Compute
from align.core.models import Stack

TINY = {
    "vocab_size": 600, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError])
def test_a_model_that_takes_no_tree_mask_gets_padded_rows_and_a_reason_of_one_line(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def refuse(model: Any) -> float:
        raise kind("no such mask" + " at all" * 60 + "\nsecond line")

    monkeypatch.setattr(layout, "leak_of", refuse)
    model = SimpleNamespace(config=SimpleNamespace(model_type="odd"))
    verdict = layout.layout_of(model, Compute(device="cpu"))
    assert verdict.layout == "padded" and len(verdict.reason) <= 300 and "second line" not in verdict.reason
    assert verdict.reason.startswith(f"odd does not take a tree mask ({kind.__name__}: ")


def test_a_tree_whose_small_copy_gives_no_number_is_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = layout._response_logits

    def spoilt(model: Any, tree: Any, k: int) -> torch.Tensor:
        found = logits(model, tree, k)
        return found if model is whole or k else torch.full_like(found, float("nan"))

    whole = AutoModelForCausalLM.from_config(LlamaConfig(**TINY), dtype=torch.float32).eval()
    assert layout.layout_of(whole, Compute(device="cpu")).layout == "tree"
    monkeypatch.setattr(layout, "_response_logits", spoilt)
    verdict = layout.layout_of(whole, Compute(device="cpu"))
    assert verdict.layout == "padded" and "differs from separate rows by nan" in verdict.reason


def test_the_small_copy_has_two_layers_one_of_each_kind_in_fp32_and_runs_no_foreign_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    config = Qwen2Config(**TINY, layer_types=kinds, use_sliding_window=True, sliding_window=4, max_window_layers=2)
    asked: list[dict[str, Any]] = []
    make = AutoModelForCausalLM.from_config
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", lambda *a, **more: asked.append(more) or make(*a, **more))
    small = layout.small_copy(SimpleNamespace(config=config, device=torch.device("cpu")))
    assert small.config.layer_types == ["full_attention", "sliding_attention"]
    assert len(small.model.layers) == 2 and small.config.vocab_size == 512 and not small.training
    assert {parameter.dtype for parameter in small.parameters()} == {torch.float32}
    assert asked == [{"dtype": torch.float32, "trust_remote_code": False}]
    assert config.num_hidden_layers == 4, "the model's own configuration is left alone"


def test_what_was_settled_is_told(make_stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch) -> None:
    stack, told = make_stack("llama"), []
    verdict = layout.settle(stack, told.append)
    assert told[0] == f"layout: tree ({verdict.reason})" and told[1:] == list(stack.facts())
    monkeypatch.setattr(stack, "facts", lambda: ["what trains", "what does not"])
    told.clear()
    layout.settle(stack, told.append)
    assert told[1:] == ["what trains", "what does not"]
