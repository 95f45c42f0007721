"""Which layout a model has earned: trees where they are exact, padded rows where they are not.

Two checks at the start of a run. *Leak*, in the run's own dtype: replace one response's tokens, and its
sibling's logits must not move. *Positions and head*, on a small random fp32 copy of the architecture:
packed logits must equal separate plain forwards. A model that fails keeps working on padded rows, which are
its own plain forward, and the run says why.
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
AHEAD = 0.1  # of the logits' standard deviation: far more than rounding moves, far less than a token that is seen
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size", "attention_window_size", "local_attention")
NARROW = 8  # tokens; fewer than the checks' rows have


class Verdict(NamedTuple):
    layout: Layout
    reason: str
    leak: float | None
    position_error: float | None


def choose_layout(model: AdapterModel) -> Verdict:
    """Run both checks, set ``model.layout`` and ``model.head_is_plain``, and say what was found."""
    model.head_is_plain = head_is_plain(model.base, _random_ids(model.base, 8))
    verdict = layout_of(model.base, model.compute)
    model.layout = verdict.layout
    return verdict


def settle(model: AdapterModel, note: Callable[[str], None]) -> Verdict:
    """Choose the layout, and tell ``note`` which one it is and why, what trains, and what of the model is left out."""
    verdict = choose_layout(model)
    note(f"layout: {verdict.layout} ({verdict.reason})")
    for fact in model.facts():
        note(fact)
    return verdict


def layout_of(model: Any, compute: Compute) -> Verdict:
    """What a loaded model earns; a model that does not take a tree mask at all is one that fails.

    Raises:
        BadInput: each of its tokens sees those after it, so that no log-probability of it means anything.
    """
    refuse_looking_ahead(model)
    if compute.layout == "padded":
        return Verdict("padded", "asked for by compute.layout", None, None)
    try:
        attention = choose_attention(compute.attention)
        leak = leak_of(model, attention)
        error = position_error(model, attention)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as problem:
        reason = f"{model.config.model_type} does not take a tree mask ({type(problem).__name__}: {problem})"
        return Verdict("padded", reason.splitlines()[0][:300], None, None)
    if not math.isfinite(leak):
        raise NotFinite("the model's logits are not finite; its weights or compute.dtype cannot be used")
    if leak > TOLERANCE:
        return Verdict("padded", f"responses of one tree leak into each other by {leak:.1e}", leak, error)
    if not error <= TOLERANCE:
        return Verdict("padded", f"a tree differs from separate rows by {error:.1e} in fp32", leak, error)
    return Verdict("tree", "no leak, and equal to separate rows in fp32", leak, error)


@torch.no_grad()
def refuse_looking_ahead(model: Any) -> None:
    """Replace the second half of a row: what is predicted before it must not move."""
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
    """Largest change of a response's logits when its sibling's tokens are replaced (dtype as loaded)."""
    ids = _random_ids(model, 40)
    prompt, first, second, other = ids[:12], ids[12:20], ids[20:30], ids[30:40]
    moved = 0.0
    for kept, one, two in ((0, [first, second], [first, other]), (1, [second, first], [other, first])):
        before, after = (_response_logits(model, attention, Tree(prompt, responses), kept) for responses in (one, two))
        moved = _larger(moved, before - after)
    return moved


@torch.no_grad()
def position_error(model: Any, attention: Attention = DENSE) -> float:
    """Largest difference of log-probabilities between a tree and separate plain forwards, small fp32 copy."""
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
    """A two-layer random fp32 model of the same architecture (both kinds of layer where there are two).

    Windows of attention are narrower than the rows of the checks, so that a mask of a wrong kind shows.
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
    """The largest absolute difference yet; a NaN stays one, as ``max`` would not keep it."""
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
