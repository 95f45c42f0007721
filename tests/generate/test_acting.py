"""Samples: the same in any batch, from the whole distribution, with the scorer's log-probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SAMPLER, SHAPE, add_stirred, save_model
from fixtures.small_trees import KEYS, PROMPTS, MakeModel, packed_of
from transformers import MiniMaxConfig

from align.core.config import Compute
from align.generate.local import sample_responses
from align.model.adapters import AdapterModel
from align.model.packing import Tree, pack


def test_a_sample_does_not_depend_on_its_batch(make_model: MakeModel) -> None:
    found = []
    for max_tokens in (24, 4096):  # one row at once; all at once, left-padded
        model = make_model("llama", max_tokens=max_tokens)
        add_stirred(model, "policy")
        found.append(sample_responses(model, "policy", PROMPTS, KEYS, max_new_tokens=12, k=3))
    alone = sample_responses(model, "policy", PROMPTS[2:3], KEYS[2:3], max_new_tokens=12, k=3)
    ids = [[[sample.ids for sample in samples] for samples in run] for run in found]
    assert ids[0] == ids[1]
    assert [sample.ids for sample in alone[0]] == ids[0][2]
    assert len({tuple(sample) for samples in ids[0] for sample in samples}) == 15
    other = sample_responses(model, "policy", PROMPTS[2:3], [("test", 99)], max_new_tokens=12, k=3)
    assert [sample.ids for sample in other[0]] != ids[0][2]


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_samplers_log_probabilities_are_the_scorers(family: str, temperature: float, make_model: MakeModel) -> None:
    model = make_model(family)
    add_stirred(model, "policy")
    samples = sample_responses(model, "policy", PROMPTS, KEYS, max_new_tokens=12, temperature=temperature, k=2)
    packed = packed_of([Tree(p, [s.ids for s in found]) for p, found in zip(PROMPTS, samples, strict=True)])
    with model.use("policy"), torch.no_grad():
        logprobs = model.logprobs(packed, temperature)
    for s, (tree, k) in enumerate(packed.response_index):
        own = torch.tensor(samples[tree][k].logprobs)
        torch.testing.assert_close(logprobs[packed.response_N == s], own, atol=SAMPLER, rtol=0)


def test_a_model_that_reads_what_is_masked_gets_rows_without_padding(tmp_path: Path, tokenizer: Any) -> None:
    config = MiniMaxConfig(
        **SHAPE, num_hidden_layers=2, vocab_size=len(tokenizer), num_local_experts=2,
        layer_types=["linear_attention", "full_attention"], eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    model = AdapterModel(save_model(config, tmp_path / "minimax", tokenizer), Compute(device="cpu"))
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0][:2], PROMPTS[3][:2]]
    together = sample_responses(model, None, prompts, KEYS[:4], max_new_tokens=6, k=2)
    assert model.takes_left_padding is False
    for prompt, key, found in zip(prompts, KEYS, together, strict=False):
        (alone,) = sample_responses(model, None, [prompt], [key], max_new_tokens=6, k=2)
        assert [sample.ids for sample in found] == [sample.ids for sample in alone]
        for sample in found:
            with torch.no_grad():
                logits = model.base(input_ids=torch.tensor([[*prompt, *sample.ids]]), use_cache=False).logits[0]
            scored = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(sample.ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(sample.logprobs), scored, atol=SAMPLER, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_rows_of_other_models_are_padded_together(family: str, make_model: MakeModel) -> None:
    model = make_model(family)
    sample_responses(model, None, PROMPTS, KEYS, max_new_tokens=2)
    assert model.takes_left_padding is True


def test_responses_end_at_the_stop_token_or_are_cut(make_model: MakeModel) -> None:
    model = make_model("llama")
    with torch.no_grad():  # a base that likes to stop
        model.base.get_output_embeddings().weight[model.chat.stop_id] *= 6
    samples = [s for found in sample_responses(model, None, PROMPTS, KEYS, max_new_tokens=8, k=8) for s in found]
    stops = set(model.chat.stop_ids(model.base))
    assert {s.ended for s in samples} == {True, False}
    for sample in samples:
        assert len(sample.ids) == len(sample.logprobs) <= 8
        assert [i for i, token in enumerate(sample.ids) if token in stops] == [len(sample.ids) - 1] * sample.ended
        assert sample.ended or len(sample.ids) == 8


def test_greedy_is_hugging_faces_greedy(make_model: MakeModel) -> None:
    model = make_model("llama")
    add_stirred(model, "policy")
    ours = sample_responses(model, "policy", PROMPTS, KEYS, max_new_tokens=12, temperature=0)
    with model.use("policy"):
        for prompt, (sample,) in zip(PROMPTS, ours, strict=True):
            theirs = model.base.generate(
                torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0,
                eos_token_id=model.chat.stop_ids(model.base),
            )  # fmt: skip
            assert sample.ids == theirs[0, len(prompt) :].tolist()
            assert sample.logprobs == []


def test_samples_follow_the_whole_distribution(make_model: MakeModel) -> None:
    """First tokens of 3,000 samples against the softmax at that temperature: no top-k, no top-p."""
    model = make_model("llama", max_tokens=65536)
    n, temperature = 3000, 1.5
    (samples,) = sample_responses(model, None, PROMPTS[:1], KEYS[:1], max_new_tokens=1, temperature=temperature, k=n)
    with torch.no_grad():
        logits = model.base(input_ids=torch.tensor(PROMPTS[:1])).logits[0, -1]
    expected = (logits / temperature).softmax(0)
    counts = torch.bincount(torch.tensor([s.ids[0] for s in samples]), minlength=len(expected))
    deviation = (counts / n - expected) / (expected * (1 - expected) / n).sqrt()
    assert float(deviation.abs().max()) < 5
    assert int((counts > 0).sum()) > 50, "top-k 50, generate's silent default, would cut here"
    assert float(deviation.std()) < 1.3


def test_pad_and_eos_ids_inside_a_prompt_mean_nothing(make_model: MakeModel, tokenizer: Any) -> None:
    """Padding is told by position: prompts full of pad and EOS ids answer in a batch as they answer alone."""
    model = make_model("llama")
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    prompts = [[pad, pad, eos, 9, pad], [eos, 17, eos], PROMPTS[1]]
    together = sample_responses(model, None, prompts, KEYS[:3], max_new_tokens=6, k=2)
    for index, prompt in enumerate(prompts):
        (alone,) = sample_responses(model, None, [prompt], [KEYS[index]], max_new_tokens=6, k=2)
        assert [s.ids for s in alone] == [s.ids for s in together[index]]
        (packed,) = pack([Tree(prompt, [s.ids for s in alone])], 1 << 20)
        with model.use(None), torch.no_grad():
            scored = model.logprobs(packed)
        sampled = torch.tensor([value for s in alone for value in s.logprobs])
        torch.testing.assert_close(scored, sampled, atol=SAMPLER, rtol=0)
