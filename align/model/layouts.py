"""Choose the layout of packed batches for a model: trees where they are exact, padded rows where they are not.

There are two checks at the start of a run. *Leak*, in the run's own dtype: when the tokens of one response are
replaced, the logits of its sibling must not change. *Positions and head*, on a small random fp32 copy of the
architecture: packed logits must equal those of separate plain forward passes. A model that fails a check is computed
on padded rows, which are plain forward passes, and the run's record names the reason.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from align.core.config import BadInput, Compute, NotFinite
from align.model.adapters import AdapterModel, forward_hidden
from align.model.attention import DENSE, Attention, choose_attention
from align.model.heads import head_is_plain, model_head
from align.model.packing import Layout, Tree, pack

TOLERANCE = 1e-5  # nats; see the leak and position checks
AHEAD = 0.1  # of the logits' standard deviation: far above rounding errors, far below the effect of a visible token
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size", "attention_window_size", "local_attention")
NARROW = 8  # tokens; shorter than the rows of the checks


class LayoutChoice(NamedTuple):
    """A layout with the reason for it; ``leak`` and ``position_error`` in nats, None where they were not measured."""

    layout: Layout
    reason: str
    leak: float | None
    position_error: float | None


def choose_layout(model: AdapterModel) -> LayoutChoice:
    """Run both checks and set ``model.layout`` and ``model.head_is_plain``."""
    model.head_is_plain = head_is_plain(model.base, _random_ids(model.base, 8))
    choice = layout_of(model.base, model.compute)
    model.layout = choice.layout
    return choice


def note_layout(model: AdapterModel, note: Callable[[str], None]) -> LayoutChoice:
    """Choose the layout, and note it with its reason, what trains, and which tensors of the model are not used."""
    choice = choose_layout(model)
    note(f"layout: {choice.layout} ({choice.reason})")
    for fact in model.facts():
        note(fact)
    return choice


def layout_of(model: Any, compute: Compute) -> LayoutChoice:
    """Return the layout for a loaded model; a model that cannot take a tree mask gets padded rows.

    Raises:
        BadInput: the model is not causal, so its log-probabilities have no meaning.
    """
    refuse_non_causal(model)
    if compute.layout == "padded":
        return LayoutChoice("padded", "asked for by compute.layout", None, None)
    try:
        attention = choose_attention(compute.attention)
        leak = leak_of(model, attention)
        error = position_error(model, attention)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as problem:
        reason = f"{model.config.model_type} does not take a tree mask ({type(problem).__name__}: {problem})"
        return LayoutChoice("padded", reason.splitlines()[0][:300], None, None)
    if not math.isfinite(leak):
        raise NotFinite("the model's logits are not finite; its weights or compute.dtype cannot be used")
    if leak > TOLERANCE:
        return LayoutChoice("padded", f"responses of one tree leak into each other by {leak:.1e}", leak, error)
    if not error <= TOLERANCE:
        return LayoutChoice("padded", f"a tree differs from separate rows by {error:.1e} in fp32", leak, error)
    return LayoutChoice("tree", "no leak, and equal to separate rows in fp32", leak, error)


@torch.no_grad()
def refuse_non_causal(model: Any) -> None:
    """Refuse a model whose predictions change when later tokens of the row are replaced."""
    ids = _random_ids(model, 24)
    rows = [torch.tensor([[*ids[:8], *last]], device=model.device) for last in (ids[8:16], ids[16:])]
    one, other = (model(input_ids=row, use_cache=False).logits[0, :8].float() for row in rows)
    if (one - other).abs().max() > AHEAD * one.std():
        raise BadInput(
            f"{model.config.name_or_path or model.config.model_type}: its tokens see those after them (an encoder, or "
            "a decoder set to look both ways); name the folder of a causal language model"
        )


@torch.no_grad()
def leak_of(model: Any, attention: Attention = DENSE) -> float:
    """Measure the most that a response's logits change when its sibling's tokens are replaced, in the loaded dtype."""
    ids = _random_ids(model, 40)
    prompt, first, second, other = ids[:12], ids[12:20], ids[20:30], ids[30:40]
    moved = 0.0
    for kept, one, two in ((0, [first, second], [first, other]), (1, [second, first], [other, first])):
        before, after = (_response_logits(model, attention, Tree(prompt, responses), kept) for responses in (one, two))
        moved = _larger(moved, before - after)
    return moved


@torch.no_grad()
def position_error(model: Any, attention: Attention = DENSE) -> float:
    """Return the largest difference in nats between a tree and separate forward passes, on a small fp32 copy."""
    small = small_copy(model)
    attention.prepare(small)
    ids = _random_ids(small, 40)
    tree = Tree(ids[:12], [ids[12:20], ids[20:40]])
    worst = 0.0
    for k, response in enumerate(tree.responses):
        packed = _response_logits(small, attention, tree, k)
        row = torch.tensor([[*tree.prompt, *response]], device=small.device)
        plain = small(input_ids=row, use_cache=False).logits[0, len(tree.prompt) - 1 : -1].float()
        worst = _larger(worst, packed.log_softmax(-1) - plain.log_softmax(-1))
    return worst


def small_copy(model: Any, device: torch.device | None = None) -> Any:
    """Return a random fp32 model of the same architecture with two layers (one of each type where there are two types).

    Attention windows are narrower than the rows of the checks, so that a wrong mask changes the logits.
    """
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    if getattr(text, "layer_types", None):
        kinds = list(dict.fromkeys(text.layer_types))[:2]
        text.layer_types = kinds * 2 if len(kinds) == 1 else kinds
    text.num_hidden_layers = 2
    text.vocab_size = min(text.vocab_size, 512)
    for name in WINDOWS:
        if isinstance(size := getattr(text, name, None), int) and size > NARROW:
            setattr(text, name, NARROW)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, None)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return small.to(device or model.device).eval()


def _larger(so_far: float, difference: Tensor) -> float:
    """Return the larger of ``so_far`` and the largest absolute difference; unlike ``max``, keep NaN."""
    return float(torch.maximum(difference.abs().max().cpu(), torch.tensor(so_far)))


def _response_logits(model: Any, attention: Attention, tree: Tree, k: int) -> Tensor:
    (packed,) = pack([tree], max_tokens=1 << 20)
    packed = packed.to(model.device)
    hidden_ND = forward_hidden(model, packed, attention)[packed.row_N, packed.column_N]
    return model_head(model, hidden_ND[packed.response_N == k])


def _random_ids(model: Any, n: int) -> list[int]:
    generator = torch.Generator().manual_seed(1)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return torch.randint(3, vocabulary, (n,), generator=generator).tolist()
