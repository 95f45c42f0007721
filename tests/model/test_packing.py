"""Packed trees against separate plain forwards: log-probabilities, scores, gradients, leaks, layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GRADIENT, LEAK, LOGPROB, PLAIN_FAMILIES, WINDOW, add_stirred, gradients, relative_l2, save_model
from torch import Tensor
from transformers import Lfm2Config

from align.core.config import Compute
from align.model.adapters import AdapterModel
from align.model.attention import allowed
from align.model.layouts import choose_layout, leak_of
from align.model.packing import Layout, Tree, pack

FAMILIES = [*PLAIN_FAMILIES, "gemma2"]
ROLE = "policy"
SHAPES = [(11, (7, 12)), (20, (9,)), (3, (5, 1, 14, 2)), (2, (1, 1)), (16, (4, 4, 4))]


def draw_trees(vocabulary: int = 300, seed: int = 0) -> list[Tree]:
    """Trees of one to four responses; prompts and responses longer than the sliding window are among them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> list[int]:
        return torch.randint(4, vocabulary, (n,), generator=generator).tolist()

    trees = [Tree(draw(n), [draw(m) for m in responses]) for n, responses in SHAPES]
    assert max(n + max(m) for n, m in SHAPES) > 2 * WINDOW
    return trees


def plain_row(model: AdapterModel, prompt: list[int], response: list[int]) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``(T,)`` and score of one response by the model's own forward on its own row."""
    row = torch.tensor([[*prompt, *response]])
    logits = model.base(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    logprobs = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
    trunk = getattr(model.base, model.base.base_model_prefix)
    hidden = trunk(input_ids=row, use_cache=False).last_hidden_state[0, -1]
    return logprobs, model.heads[ROLE](hidden)


def packed_logprobs(
    model: AdapterModel, trees: list[Tree], max_tokens: int, layout: Layout = "tree"
) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """The same by packed_batches, keyed by (tree, response)."""
    found: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for packed in pack(trees, max_tokens, layout):
        table, mask = packed.by_response(model.logprobs(packed)), packed.mask()
        scores = model.scores(ROLE, packed)
        for s, member in enumerate(packed.response_index):
            found[member] = (table[s][mask[s]], scores[s])
    return found


def loss_of(logprobs: Tensor, score: Tensor, member: tuple[int, int]) -> Tensor:
    """Something that weights every response differently, so that a mix-up shows in the gradient."""
    tree, k = member
    return (1 + 0.3 * tree + 0.7 * k) * logprobs.sum() + (2 - tree + k) * score


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rectangles_equal_separate_forwards(
    family: str, layout: Layout, make_model: Callable[..., AdapterModel]
) -> None:
    model = make_model(family)
    add_stirred(model, ROLE, head=True)
    trees = draw_trees()
    with model.use(ROLE):
        plain = {
            (t, k): plain_row(model, tree.prompt, response)
            for t, tree in enumerate(trees)
            for k, response in enumerate(tree.responses)
        }
        ours = packed_logprobs(model, trees, 64, layout)
        assert ours.keys() == plain.keys()
        for member, (logprobs, score) in plain.items():
            torch.testing.assert_close(ours[member][0], logprobs, atol=LOGPROB, rtol=0)
            torch.testing.assert_close(ours[member][1], score, atol=LOGPROB, rtol=0)
        torch.stack([loss_of(*values, member) for member, values in plain.items()]).sum().backward()
        expected = gradients(model, ROLE)
        model.base.zero_grad()
        for parameter in model.parameters(ROLE).values():
            parameter.grad = None
        torch.stack([loss_of(*values, member) for member, values in ours.items()]).sum().backward()
    assert len(expected) == len(model.parameters(ROLE))
    assert relative_l2(gradients(model, ROLE), expected) <= GRADIENT


@pytest.mark.parametrize("family", FAMILIES)
def test_every_plain_family_earns_the_tree_layout(family: str, make_model: Callable[..., AdapterModel]) -> None:
    model = make_model(family)
    assert model.layout == "tree"
    assert model.head_is_plain == (family != "gemma2")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_responses_do_not_leak_into_each_other(family: str, dtype: str, model_folder: Callable[[str], Path]) -> None:
    model = AdapterModel(model_folder(family), Compute(device="cpu", dtype=dtype))
    assert next(model.base.parameters()).dtype == getattr(torch, dtype)
    assert leak_of(model.base) <= LEAK


def test_the_window_matters_in_these_tests(make_model: Callable[..., AdapterModel]) -> None:
    """Without its window the Mistral of these tests gives other numbers: the parity above is not vacuous."""
    model = make_model("mistral")
    add_stirred(model, ROLE, head=True)
    (member, tree) = (0, 0), draw_trees()[:1]
    with model.use(ROLE), torch.no_grad():
        windowed = packed_logprobs(model, tree, 4096)[member][0]
        model.base.config.sliding_window = None
        wide = packed_logprobs(model, tree, 4096)[member][0]
    assert float((windowed - wide).abs().max()) > 100 * LOGPROB


def test_an_eager_model_gets_a_float_mask(model_folder: Callable[[str], Path]) -> None:
    """Eager attention adds its mask: a boolean one would leak (0.38 on Gemma 2)."""
    model = AdapterModel(model_folder("gemma2"), Compute(device="cpu"))
    model.base.config._attn_implementation = "eager"
    model.base.set_attn_implementation("eager")
    assert leak_of(model.base) <= LEAK
    assert choose_layout(model).layout == "tree"


# --- how a batch is cut ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("max_tokens", [16, 40, 64, 200, 4096])
def test_rectangles_obey_max_tokens(max_tokens: int, layout: Layout) -> None:
    trees = draw_trees()
    packed_batches = pack(trees, max_tokens, layout)
    response_index = sorted(member for packed in packed_batches for member in packed.response_index)
    assert response_index == sorted((t, k) for t, tree in enumerate(trees) for k in range(len(tree.responses)))
    for packed in packed_batches:
        alone = len({tree for tree, _ in packed.response_index}) == 1
        assert packed.tokens_RL.numel() <= max_tokens or alone
        for tree, k in packed.response_index:
            s = packed.response_index.index((tree, k))
            chosen = packed.response_N == s
            assert packed.target_N[chosen].tolist() == trees[tree].responses[k]
            assert packed.step_N[chosen].tolist() == list(range(len(trees[tree].responses[k])))
    if max_tokens >= 200:
        assert all(packed.tokens_RL.numel() <= max_tokens for packed in packed_batches)


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_how_a_batch_is_cut_changes_nothing(layout: Layout, make_model: Callable[..., AdapterModel]) -> None:
    model = make_model("llama")
    add_stirred(model, ROLE, head=True)
    trees = draw_trees()
    assert len(pack(trees, 64, layout)) > len(pack(trees, 4096, layout)) == 1
    found = []
    for max_tokens in (64, 4096):
        with model.use(ROLE):
            values = packed_logprobs(model, trees, max_tokens, layout)
            torch.stack([loss_of(*values[member], member) for member in sorted(values)]).sum().backward()
        found.append(({m: (v[0].detach(), v[1].detach()) for m, v in values.items()}, gradients(model, ROLE)))
        for parameter in model.parameters(ROLE).values():
            parameter.grad = None
    (small, small_gradient), (large, large_gradient) = found
    for member in large:
        torch.testing.assert_close(small[member], large[member], atol=LOGPROB, rtol=0)
    assert relative_l2(small_gradient, large_gradient) <= GRADIENT


def test_the_mask_is_the_tree() -> None:
    """Against a slow statement of the rule: a token sees its prompt and its own response, up to itself."""
    tree = Tree([5, 6, 7], [[1, 2], [3], [4, 8, 9]])
    (packed,) = pack([tree, Tree([5], [[6]])], 4096)
    node = [0, 0, 0, 1, 1, 2, 3, 3, 3]
    position = [0, 1, 2, 3, 4, 3, 3, 4, 5]
    assert packed.positions_RL[0].tolist() == position
    for window in (None, 2):
        mask = allowed(packed, window)[0, 0]
        for q in range(9):
            for k in range(9):
                sees = k <= q and node[k] in (0, node[q])
                if window is not None:
                    sees &= position[q] - position[k] < window
                assert bool(mask[q, k]) == sees, (q, k, window)
    assert packed.filled().sum(1).tolist() == [9, 2]


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_what_the_policy_did_not_write_is_read_and_not_predicted(
    layout: Layout, make_model: Callable[..., AdapterModel]
) -> None:
    """Log-probabilities and gradients are those of its own tokens alone, scores those of the whole response."""
    model = make_model("llama")
    add_stirred(model, ROLE, head=True)
    whole = draw_trees()
    generator = torch.Generator().manual_seed(5)
    own = [[[*(torch.rand(len(r) - 1, generator=generator) < 0.5).tolist(), True] for r in t.responses] for t in whole]
    trees = [tree._replace(own=kept) for tree, kept in zip(whole, own, strict=True)]
    with model.use(ROLE):
        plain = [plain_row(model, t.prompt, r) for t in whole for r in t.responses]
        kept = [torch.tensor(flags) for flags_of_tree in own for flags in flags_of_tree]
        expected = [logprobs[flags] for (logprobs, _), flags in zip(plain, kept, strict=True)]
        torch.stack([part.sum() for part in expected]).sum().backward()
        reference = gradients(model, ROLE)
        for parameter in model.parameters(ROLE).values():
            parameter.grad = None
        ours = packed_logprobs(model, trees, 64, layout)
        sums = {
            member: value
            for packed in pack(trees, 64, layout)
            for member, value in zip(packed.response_index, packed.sums(model.logprobs(packed)).tolist(), strict=True)
        }
        torch.stack([logprobs.sum() for logprobs, _ in ours.values()]).sum().backward()
    for number, member in enumerate(sorted(ours)):
        torch.testing.assert_close(ours[member][0], expected[number], atol=LOGPROB, rtol=0)
        torch.testing.assert_close(ours[member][1], plain[number][1], atol=LOGPROB, rtol=0)
        assert abs(sums[member] - float(expected[number].detach().sum())) <= len(expected[number]) * LOGPROB
    own_gradients = gradients(model, ROLE)
    shared = {name: own_gradients[name] for name in reference}
    assert relative_l2(shared, reference) <= GRADIENT
    (packed,) = pack(trees, 4096, layout)
    for s, (t, k) in enumerate(packed.response_index):
        assert packed.step_N[packed.response_N == s].tolist() == [i for i, o in enumerate(own[t][k]) if o]


@pytest.mark.parametrize(("layout", "cells"), [("tree", 2 * 9), ("padded", 4 * 7)])
def test_a_packed_batch_is_filled_to_the_last_cell(layout: Layout, cells: int) -> None:
    # a prompt of 5 tokens with responses of 2 and 2: a row of 9 as a tree, two rows of 7 when padded
    trees = [Tree([7] * 5, [[8, 9], [9, 8]]) for _ in range(4)]
    assert [tuple(packed.tokens_RL.shape) for packed in pack(trees, cells, layout)] == [
        (2, 9) if layout == "tree" else (4, 7)
    ] * 2
    assert len(pack(trees, cells - 1, layout)) == 4
    assert len(pack(trees, 2 * cells, layout)) == 1


def test_empty_parts_are_refused() -> None:
    nothing = Tree([1], [[2, 3]], [[False, False]])
    for bad in (Tree([], [[1]]), Tree([1], []), Tree([1], [[2], []]), nothing):
        with pytest.raises(ValueError, match="tree 1"):
            pack([Tree([1], [[2]]), bad], 64)
    assert pack([], 64) == []


def test_token_ids_mean_nothing_to_the_packer(tokenizer: Any, make_model: Callable[..., AdapterModel]) -> None:
    """Prompts and responses full of pad and EOS ids get the masks of any other ids, and the plain numbers."""
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    odd = [Tree([pad, eos, pad, 9], [[eos, pad, eos], [pad]]), Tree([eos], [[eos, eos]])]
    usual = [Tree([9, 9, 9, 9], [[9, 9, 9], [9]]), Tree([9], [[9, 9]])]
    for layout in ("tree", "padded"):
        (a,), (b,) = pack(odd, 4096, layout), pack(usual, 4096, layout)
        assert torch.equal(allowed(a), allowed(b)) and torch.equal(a.mask(), b.mask())
        assert torch.equal(a.filled(), b.filled()) and torch.equal(a.positions_RL, b.positions_RL)
        assert torch.equal(a.stop_column_B, b.stop_column_B)
    model = make_model("llama")
    add_stirred(model, ROLE, head=True)
    for layout in ("tree", "padded"):
        with model.use(ROLE), torch.no_grad():
            for (t, k), (logprobs, score) in packed_logprobs(model, odd, 4096, layout).items():
                expected = plain_row(model, odd[t].prompt, odd[t].responses[k])
                torch.testing.assert_close((logprobs, score), expected, atol=LOGPROB, rtol=0)


# --- what a model must earn --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hybrid_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """LFM2: a short convolution runs along the row, so one response reaches the next whatever the mask."""
    config = Lfm2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.15, pad_token_id=0, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    return save_model(config, tmp_path_factory.mktemp("models") / "lfm2", tokenizer)


def test_a_hybrid_falls_back_to_padded_rows_and_says_why(hybrid_folder: Path) -> None:
    model = AdapterModel(hybrid_folder, Compute(device="cpu"))
    verdict = choose_layout(model)
    assert (verdict.layout, model.layout) == ("padded", "padded")
    assert "leak" in verdict.reason or "lfm2 does not take a tree mask" in verdict.reason
    add_stirred(model, ROLE, head=True)
    trees = draw_trees()
    with model.use(ROLE), torch.no_grad():
        for (t, k), (logprobs, score) in packed_logprobs(model, trees, 200, model.layout).items():
            expected = plain_row(model, trees[t].prompt, trees[t].responses[k])
            torch.testing.assert_close((logprobs, score), expected, atol=LOGPROB, rtol=0)


@pytest.mark.parametrize(("leak", "layout"), [(3e-6, "tree"), (3e-5, "padded")])
def test_a_leak_of_a_hundred_thousandth_costs_the_tree_layout(
    leak: float, layout: Layout, model_folder: Callable[[str], Path]
) -> None:
    """Each position of the last layer also gets a part of the row's mean: what a sibling writes moves the logits."""
    model = AdapterModel(model_folder("llama"), Compute(device="cpu"))
    share = 1.0

    def mix(module: Any, args: Any, hidden_RLD: Tensor) -> Tensor:
        return hidden_RLD + share * hidden_RLD.mean(1, keepdim=True)

    model.base.model.layers[-1].register_forward_hook(mix)
    share = 1e-3  # small enough that the logits move in proportion
    share *= leak / leak_of(model.base)
    assert leak_of(model.base) == pytest.approx(leak, rel=0.3)
    verdict = choose_layout(model)
    assert (verdict.layout, model.layout) == (layout, layout)
    assert ("leak into each other" in verdict.reason) == (layout == "padded")


def test_padded_can_be_asked_for(make_model: Callable[..., AdapterModel]) -> None:
    model = make_model("llama", layout="padded")
    assert model.layout == "padded"
    assert choose_layout(model).reason == "asked for by compute.layout"
