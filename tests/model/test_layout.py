"""The choice of a layout by itself: what counts as a failed check, what is told, and what the small copy is."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fixtures.small_trees import ModelFolder
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    GPTNeoConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from align.core.config import BadInput, Compute
from align.model import layouts
from align.model.adapters import AdapterModel, forward_hidden
from align.model.heads import model_head
from align.model.load import load_base
from align.model.packing import Tree, pack

TINY = {
    "vocab_size": 600, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError])
def test_a_model_that_takes_no_tree_mask_gets_padded_rows_and_a_reason_of_one_line(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def refuse(model: Any, attention: Any) -> float:
        raise kind("no such mask" + " at all" * 60 + "\nsecond line")

    monkeypatch.setattr(layouts, "leak_of", refuse)
    monkeypatch.setattr(layouts, "refuse_non_causal", lambda model: None)
    model = SimpleNamespace(config=SimpleNamespace(model_type="odd"))
    verdict = layouts.layout_of(model, Compute(device="cpu"))
    assert verdict.layout == "padded" and len(verdict.reason) <= 300 and "second line" not in verdict.reason
    assert verdict.reason.startswith(f"odd does not take a tree mask ({kind.__name__}: ")


def test_a_tree_whose_small_copy_gives_no_number_is_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = layouts._response_logits

    def spoilt(model: Any, attention: Any, tree: Any, k: int) -> torch.Tensor:
        found = logits(model, attention, tree, k)
        return found if model is whole or k else torch.full_like(found, float("nan"))

    whole = AutoModelForCausalLM.from_config(LlamaConfig(**TINY), dtype=torch.float32).eval()
    assert layouts.layout_of(whole, Compute(device="cpu")).layout == "tree"
    monkeypatch.setattr(layouts, "_response_logits", spoilt)
    verdict = layouts.layout_of(whole, Compute(device="cpu"))
    assert verdict.layout == "padded" and "differs from separate rows by nan" in verdict.reason


def test_the_small_copy_has_two_layers_one_of_each_kind_in_fp32_and_runs_no_foreign_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    config = Qwen2Config(**TINY, layer_types=kinds, use_sliding_window=True, sliding_window=4, max_window_layers=2)
    asked: list[dict[str, Any]] = []
    make = AutoModelForCausalLM.from_config
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", lambda *a, **more: asked.append(more) or make(*a, **more))
    small = layouts.small_copy(SimpleNamespace(config=config, device=torch.device("cpu")))
    assert small.config.layer_types == ["full_attention", "sliding_attention"]
    assert len(small.model.layers) == 2 and small.config.vocab_size == 512 and not small.training
    assert {parameter.dtype for parameter in small.parameters()} == {torch.float32}
    assert asked == [{"dtype": torch.float32, "trust_remote_code": False}]
    assert config.num_hidden_layers == 4, "the model's own configuration is left alone"


def test_what_was_settled_is_told(make_model: Callable[..., AdapterModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model, notes = make_model("llama"), []
    verdict = layouts.note_layout(model, notes.append)
    assert notes[0] == f"layout: tree ({verdict.reason})" and notes[1:] == list(model.facts())
    monkeypatch.setattr(model, "facts", lambda: ["what trains", "what does not"])
    notes.clear()
    layouts.note_layout(model, notes.append)
    assert notes[1:] == ["what trains", "what does not"]


def test_a_mask_of_a_kind_that_is_not_known_shows_however_wide_the_models_window_is() -> None:
    kinds = [[["global", "local"], 2]]
    config = GPTNeoConfig(
        vocab_size=600, hidden_size=32, num_layers=4, attention_types=kinds, num_heads=2, window_size=256,
        initializer_range=0.15, max_position_embeddings=512,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    verdict = layouts.layout_of(model, Compute(device="cpu"))
    assert verdict.layout == "padded" and "differs from separate rows" in verdict.reason
    assert config.window_size == 256, "the model's own configuration is left alone"


@pytest.mark.parametrize(("window", "copied"), [(2, 2), (layouts.NARROW, layouts.NARROW), (64, layouts.NARROW)])
def test_the_small_copy_has_no_wider_window_than_the_rows_of_the_checks(window: int, copied: int) -> None:
    model = SimpleNamespace(config=MistralConfig(**TINY, sliding_window=window), device=torch.device("cpu"))
    assert layouts.small_copy(model).config.sliding_window == copied


def test_a_window_that_no_layer_uses_hides_nothing() -> None:
    config = Qwen2Config(**TINY, initializer_range=0.15)
    config.use_sliding_window, config.sliding_window = True, 4  # beside layers that are all of full attention (dots1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    assert layouts.layout_of(model, Compute(device="cpu")).layout == "tree"


def test_a_model_whose_tokens_see_those_after_them_is_refused_and_names_what_to_do() -> None:
    config = BertConfig(
        vocab_size=600, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.15,
    )  # fmt: skip
    for seed, compute in enumerate((Compute(device="cpu"), Compute(device="cpu", layout="padded")), 13):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with pytest.raises(BadInput, match="^bert: its tokens see those after them .*; name the folder of a causal"):
            layouts.layout_of(model, compute)


class Moved:
    """A model whose logits, of a standard deviation of 40, move by a share of it where later tokens change."""

    device = torch.device("cpu")
    config = LlamaConfig(name_or_path="moved")

    def __init__(self, share: float) -> None:
        self.share = share
        self.base = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(0)) * 40

    def get_input_embeddings(self) -> Any:
        return torch.nn.Embedding(64, 2)

    def __call__(self, input_ids: Tensor, use_cache: bool) -> Any:
        seen = float(input_ids[0, 8:].sum() % 2)  # of all that comes after the first half
        return SimpleNamespace(logits=self.base + self.share * 40 * seen)


def test_what_rounding_moves_is_no_look_ahead() -> None:
    ids = [sum(layouts._random_ids(Moved(0.0), 24)[i : i + 8]) % 2 for i in (8, 16)]
    assert ids[0] != ids[1], "the two rows must differ in what the model sees of them"
    layouts.refuse_non_causal(Moved(0.05))
    with pytest.raises(BadInput, match="^moved: its tokens see those after them"):
        layouts.refuse_non_causal(Moved(0.2))


def test_the_tolerance_itself_is_no_difference(model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_base(model_folder("llama"), Compute(device="cpu")).model
    for error, expected in ((layouts.TOLERANCE, "tree"), (1.01 * layouts.TOLERANCE, "padded")):
        monkeypatch.setattr(layouts, "position_error", lambda model, attention, error=error: error)
        assert layouts.layout_of(model, Compute(device="cpu")).layout == expected


def test_a_trunk_that_stands_under_another_name_than_its_prefix_is_the_trunk() -> None:
    config = Llama4TextConfig(
        **TINY, head_dim=8, intermediate_size_mlp=32, num_local_experts=2, attention_chunk_size=16,
        initializer_range=0.15,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    assert not hasattr(model, model.base_model_prefix) and layouts.head_is_plain(model, [5, 6, 7])
    packed = pack([Tree([3, 4, 5], [[6, 7]])], 64, "padded")[0]
    with torch.no_grad():
        plain = model(input_ids=torch.tensor([[3, 4, 5, 6, 7]]), use_cache=False).logits[0]
        torch.testing.assert_close(model_head(model, forward_hidden(model, packed)[0]), plain)
