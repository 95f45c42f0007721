"""Samples: the same in any batch, from the whole distribution, with the scorer's log-probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SAMPLER, SHAPE, add_stirred, save_model
from fixtures.small_trees import KEYS, PROMPTS, MakeStack, rectangle_of
from transformers import MiniMaxConfig

from align.core.config import Compute
from align.generate.local import respond
from align.model.adapters import Stack
from align.model.packing import Tree, pack


def test_a_sample_does_not_depend_on_its_batch(make_stack: MakeStack) -> None:
    found = []
    for max_tokens in (24, 4096):  # one row at once; all at once, left-padded
        stack = make_stack("llama", max_tokens=max_tokens)
        add_stirred(stack, "policy")
        found.append(respond(stack, "policy", PROMPTS, KEYS, max_new_tokens=12, k=3))
    alone = respond(stack, "policy", PROMPTS[2:3], KEYS[2:3], max_new_tokens=12, k=3)
    ids = [[[sample.ids for sample in samples] for samples in run] for run in found]
    assert ids[0] == ids[1]
    assert [sample.ids for sample in alone[0]] == ids[0][2]
    assert len({tuple(sample) for samples in ids[0] for sample in samples}) == 15
    other = respond(stack, "policy", PROMPTS[2:3], [("test", 99)], max_new_tokens=12, k=3)
    assert [sample.ids for sample in other[0]] != ids[0][2]


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_samplers_log_probabilities_are_the_scorers(family: str, temperature: float, make_stack: MakeStack) -> None:
    stack = make_stack(family)
    add_stirred(stack, "policy")
    samples = respond(stack, "policy", PROMPTS, KEYS, max_new_tokens=12, temperature=temperature, k=2)
    rectangle = rectangle_of([Tree(p, [s.ids for s in found]) for p, found in zip(PROMPTS, samples, strict=True)])
    with stack.use("policy"), torch.no_grad():
        logprobs = stack.logprobs(rectangle, temperature)
    for s, (tree, k) in enumerate(rectangle.members):
        own = torch.tensor(samples[tree][k].logprobs)
        torch.testing.assert_close(logprobs[rectangle.response_N == s], own, atol=SAMPLER, rtol=0)


def test_a_model_that_reads_what_is_masked_gets_rows_without_padding(tmp_path: Path, tokenizer: Any) -> None:
    config = MiniMaxConfig(
        **SHAPE, num_hidden_layers=2, vocab_size=len(tokenizer), num_local_experts=2,
        layer_types=["linear_attention", "full_attention"], eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    stack = Stack(save_model(config, tmp_path / "minimax", tokenizer), Compute(device="cpu"))
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0][:2], PROMPTS[3][:2]]
    together = respond(stack, None, prompts, KEYS[:4], max_new_tokens=6, k=2)
    assert stack.takes_left_padding is False
    for prompt, key, found in zip(prompts, KEYS, together, strict=False):
        (alone,) = respond(stack, None, [prompt], [key], max_new_tokens=6, k=2)
        assert [sample.ids for sample in found] == [sample.ids for sample in alone]
        for sample in found:
            with torch.no_grad():
                logits = stack.base(input_ids=torch.tensor([[*prompt, *sample.ids]]), use_cache=False).logits[0]
            scored = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(sample.ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(sample.logprobs), scored, atol=SAMPLER, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_rows_of_other_models_are_padded_together(family: str, make_stack: MakeStack) -> None:
    stack = make_stack(family)
    respond(stack, None, PROMPTS, KEYS, max_new_tokens=2)
    assert stack.takes_left_padding is True


def test_responses_end_at_the_stop_token_or_are_cut(make_stack: MakeStack) -> None:
    stack = make_stack("llama")
    with torch.no_grad():  # a base that likes to stop
        stack.base.get_output_embeddings().weight[stack.chat.stop_id] *= 6
    samples = [s for found in respond(stack, None, PROMPTS, KEYS, max_new_tokens=8, k=8) for s in found]
    stops = set(stack.chat.stop_ids(stack.base))
    assert {s.ended for s in samples} == {True, False}
    for sample in samples:
        assert len(sample.ids) == len(sample.logprobs) <= 8
        assert [i for i, token in enumerate(sample.ids) if token in stops] == [len(sample.ids) - 1] * sample.ended
        assert sample.ended or len(sample.ids) == 8


def test_greedy_is_hugging_faces_greedy(make_stack: MakeStack) -> None:
    stack = make_stack("llama")
    add_stirred(stack, "policy")
    ours = respond(stack, "policy", PROMPTS, KEYS, max_new_tokens=12, temperature=0)
    with stack.use("policy"):
        for prompt, (sample,) in zip(PROMPTS, ours, strict=True):
            theirs = stack.base.generate(
                torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0,
                eos_token_id=stack.chat.stop_ids(stack.base),
            )  # fmt: skip
            assert sample.ids == theirs[0, len(prompt) :].tolist()
            assert sample.logprobs == []


def test_samples_follow_the_whole_distribution(make_stack: MakeStack) -> None:
    """First tokens of 3,000 samples against the softmax at that temperature: no top-k, no top-p."""
    stack = make_stack("llama", max_tokens=65536)
    n, temperature = 3000, 1.5
    (samples,) = respond(stack, None, PROMPTS[:1], KEYS[:1], max_new_tokens=1, temperature=temperature, k=n)
    with torch.no_grad():
        logits = stack.base(input_ids=torch.tensor(PROMPTS[:1])).logits[0, -1]
    expected = (logits / temperature).softmax(0)
    counts = torch.bincount(torch.tensor([s.ids[0] for s in samples]), minlength=len(expected))
    deviation = (counts / n - expected) / (expected * (1 - expected) / n).sqrt()
    assert float(deviation.abs().max()) < 5
    assert int((counts > 0).sum()) > 50, "top-k 50, generate's silent default, would cut here"
    assert float(deviation.std()) < 1.3


def test_pad_and_eos_ids_inside_a_prompt_mean_nothing(make_stack: MakeStack, tokenizer: Any) -> None:
    """Padding is told by position: prompts full of pad and EOS ids answer in a batch as they answer alone."""
    stack = make_stack("llama")
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    prompts = [[pad, pad, eos, 9, pad], [eos, 17, eos], PROMPTS[1]]
    together = respond(stack, None, prompts, KEYS[:3], max_new_tokens=6, k=2)
    for index, prompt in enumerate(prompts):
        (alone,) = respond(stack, None, [prompt], [KEYS[index]], max_new_tokens=6, k=2)
        assert [s.ids for s in alone] == [s.ids for s in together[index]]
        (rectangle,) = pack([Tree(prompt, [s.ids for s in alone])], 1 << 20)
        with stack.use(None), torch.no_grad():
            scored = stack.logprobs(rectangle)
        sampled = torch.tensor([value for s in alone for value in s.logprobs])
        torch.testing.assert_close(scored, sampled, atol=SAMPLER, rtol=0)
