"""Do the stages learn what their equations promise? On a space small enough to enumerate.

A two-layer Llama answers each of eight prompts with one of eight words. Its distribution over the words is fitted
beforehand, so everything that DPO and PPO do to it can be read off exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from align.core.config import Compute, Optim, Watch
from align.core.files import read_jsonl, write_json, write_jsonl
from align.core.hashes import artefact_hash
from align.core.records import prompt_id
from align.core.run_record import RunRecord, read_run
from align.core.runs import Run
from align.losses.pairwise import Sigmoid
from align.model.adapters import AdapterModel
from align.model.open import open_models
from align.model.packing import Tree, pack
from align.model.sources import find_source
from align.model.tuners.lora import Lora
from align.train.dpo import DPOConfig, dpo
from align.train.ppo import PPOConfig, minibatches, ppo
from align.train.rollouts import load_prompts

WORDS = [f"w{i}" for i in range(8)]
PROMPTS = [f"p{i}" for i in range(8)]
SEEN, UNSEEN = WORDS[:4], WORDS[4:]
# the reference prefers what people reject, as a base that complies with harm does
REFERENCE = torch.tensor([0.02, 0.08, 0.20, 0.30, 0.10, 0.10, 0.10, 0.10])
RANK_REWARD = {word: 1.0 - i * 0.5 for i, word in enumerate(SEEN)} | dict.fromkeys(UNSEEN, -1.0)
QUIET = Watch(prompts=0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama fitted to answer every prompt with REFERENCE over the words, then to end."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<end>", "<ask>", "<answer>", *PROMPTS, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", additional_special_tokens=["<ask>", "<answer>"]
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] + ' <end>' }}"
        "{% else %}{{ '<ask> ' + m['content'] + ' <answer> ' }}{% endif %}{% endfor %}"
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=16, tie_word_embeddings=False,
            pad_token_id=0, bos_token_id=None, eos_token_id=1, initializer_range=0.2,
        )
    )  # fmt: skip
    rows = torch.tensor([[2, 4 + p, 3, 12 + w] for p in range(8) for w in range(8)])
    weight = REFERENCE.repeat(8)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(250):
        logprob = model(rows).logits.log_softmax(-1)
        first = logprob[:, 2].gather(1, rows[:, 3:])[:, 0]
        loss = -(weight * first).sum() / 8 - logprob[:, 3, 1].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    folder = tmp_path_factory.mktemp("eight") / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def write_pairs(folder: Path, rows: Sequence[tuple[str, str, float]]) -> Path:
    """A finished pairs run: (better, worse, weight) for every prompt."""
    found = [
        {
            "prompt": messages(prompt),
            "chosen": [{"role": "assistant", "content": better}],
            "rejected": [{"role": "assistant", "content": worse}],
            "weight": weight,
            "votes": [1, 0, 0],
            "comparison_id": f"{prompt}-{better}-{worse}",
            "prompt_id": prompt_id(messages(prompt)),
        }
        for prompt in PROMPTS
        for better, worse, weight in rows
    ]
    write_jsonl(folder / "train.jsonl", found)
    write_jsonl(folder / "validation.jsonl", [])
    record = RunRecord(
        id="pairs", stage="pairs", status="finished", path=str(folder), seed=0, given={}, resolved={},
        artefact=artefact_hash(folder),
    )  # fmt: skip
    write_json(folder / "run.json", record.model_dump())
    return folder


@torch.no_grad()
def distribution(path: Path) -> Tensor:
    """Mean over prompts of the policy's probabilities of the eight words, ``(8,)`` (the rest is other tokens)."""
    source = find_source(path)
    model = AdapterModel(source.base, Compute(device="cpu"))
    if source.adapter:
        model.add("policy", adapter=source.adapter, trainable=False)
    role = "policy" if source.adapter else None
    trees = [Tree(model.chat.prompt_ids(messages(p)), [[12 + w] for w in range(8)]) for p in PROMPTS]
    found = torch.zeros(8, 8)
    with model.use(role):
        for packed in pack(trees, 4096):
            for (tree, k), value in zip(packed.response_index, model.logprobs(packed).exp().tolist(), strict=True):
                found[tree, k] = value
    return found.mean(0)


def ranked(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float | None]:
    """A reward that can judge what was never compared: seen words by rank, unseen ones like the worst."""
    return [RANK_REWARD.get(completion[-1]["content"].strip(), -1.0) for completion in completions]


def run_ppo(base: Path, run: Path, pairs: Path, seed: int, function: str, **settings: Any) -> None:
    ppo(
        PPOConfig(
            run=run, seed=seed, policy=base, pairs=pairs, functions=[function], batch=8, minibatches=1,
            max_new_tokens=1, missing_eos_penalty=0, tuner=Lora(r=8, alpha=16), watch=QUIET, kl_prompts=8,
            value_optim=Optim(lr=1e-2, schedule="constant"), **settings,
        )
    )  # fmt: skip


def test_kl_max_stops_before_the_policy_moves_further(base: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", [(SEEN[0], SEEN[1], 1.0)])
    run_ppo(
        base, tmp_path / "ppo", pairs, 0, f"{__name__}:ranked", iterations=30, samples=16, kl=0.0, kl_max=0.2,
        optim=Optim(lr=1e-2, schedule="constant"),
    )  # fmt: skip
    record = read_run(tmp_path / "ppo")
    rows = read_jsonl(tmp_path / "ppo" / "metrics.jsonl")
    assert 1 < len(rows) < 30 and [row["kl"] > 0.2 for row in rows] == [False] * (len(rows) - 1) + [True]
    assert record.headline["iterations"] == len(rows) - 1 == sum("policy_loss" in row for row in rows)
    assert any(f"stopped before the update of iteration {len(rows)}" in note for note in record.notes)


def test_no_prompt_comes_twice_in_an_iteration(base: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", [(SEEN[0], SEEN[1], 1.0)])
    config = PPOConfig(
        run=tmp_path / "ppo", policy=base, pairs=pairs, functions=[f"{__name__}:ranked"], batch=5, minibatches=2,
        iterations=3, max_new_tokens=1,
    )  # fmt: skip
    record = RunRecord(id="x", stage="ppo", status="running", path=str(tmp_path), seed=0, given={}, resolved={})
    run = Run(record)
    prompts = load_prompts(run, open_models(run, config, config.policy, config.roles), pairs, 1)
    for iteration in minibatches(config, prompts)[:3]:
        names = [prompt.id for part in iteration for prompt in part]
        assert len(names) == len(set(names)) == 5


def test_reference_was_fitted(base: Path) -> None:
    assert float((distribution(base) - REFERENCE).abs().sum()) / 2 < 0.02


@pytest.mark.parametrize("seed", range(5))
def test_dpo_feeds_what_it_never_saw_and_ppo_does_not(base: Path, tmp_path: Path, seed: int) -> None:
    """Xu et al. 2024 (arXiv 2404.10719), section 4: preferences over 4 of 8 responses leave the others free."""
    pairs = write_pairs(tmp_path / "pairs", [(a, b, 1.0) for a, b in itertools.combinations(SEEN, 2)])
    dpo(
        DPOConfig(
            run=tmp_path / "dpo", seed=seed, policy=base, pairs=pairs, loss=Sigmoid(beta=0.1), batch=8, epochs=10,
            optim=Optim(lr=1e-3, schedule="constant"), tuner=Lora(r=8, alpha=16), watch=QUIET, min_rows=1,
        )
    )  # fmt: skip
    run_ppo(
        base, tmp_path / "ppo", pairs, seed, f"{__name__}:ranked", iterations=12, samples=32, kl=0.1,
        optim=Optim(lr=5e-3, schedule="constant"),
    )  # fmt: skip
    reference = float(distribution(base)[4:].sum())
    by_dpo, by_ppo = (float(distribution(tmp_path / name)[4:].sum()) for name in ("dpo", "ppo"))
    assert by_dpo > reference + 0.01, f"unseen mass {by_dpo:.3f} after DPO, {reference:.3f} before"
    assert by_ppo <= reference, f"unseen mass {by_ppo:.3f} after PPO, {reference:.3f} before"


REWARDS = {word: math.sin(2.0 * i) for i, word in enumerate(WORDS)}
BETA = 0.5


def known(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float | None]:
    """The reward whose optimum is known in closed form; anything but the eight words is far below."""
    return [REWARDS.get(completion[-1]["content"].strip(), -5.0) for completion in completions]


def optimum(reference: Tensor, rewards: Mapping[str, float], beta: float) -> Tensor:
    """``pi ~ reference * exp(r / beta)`` (Rafailov et al. 2023, Eq. 4)."""
    tilted = reference * torch.tensor([math.exp(rewards[word] / beta) for word in WORDS])
    return tilted / tilted.sum()


def total_variation(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().sum()) / 2


def test_exact_dpo_reaches_the_closed_form(base: Path, tmp_path: Path) -> None:
    """Every ordered pair, weighted by its Bradley-Terry probability, one full batch a step."""
    rows = [
        (a, b, 1 / (1 + math.exp(REWARDS[b] - REWARDS[a])))
        for a, b in itertools.permutations(WORDS, 2)
    ]  # fmt: skip
    pairs = write_pairs(tmp_path / "pairs", rows)
    dpo(
        DPOConfig(
            run=tmp_path / "dpo", policy=base, pairs=pairs, loss=Sigmoid(beta=BETA), batch=8, epochs=150,
            optim=Optim(lr=1e-2, schedule="cosine"), tuner=Lora(r=8, alpha=16), watch=QUIET, min_rows=1,
            checkpoint_every=1000,
        )
    )  # fmt: skip
    target = optimum(distribution(base), REWARDS, BETA)
    assert total_variation(target, distribution(base)) > 0.2, "the optimum must not be where it starts"
    assert total_variation(target, distribution(tmp_path / "dpo")) <= 0.02


def test_ppo_reaches_the_closed_form(base: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", [(WORDS[0], WORDS[1], 1.0)])
    run_ppo(
        base, tmp_path / "ppo", pairs, 0, f"{__name__}:known", iterations=60, samples=64, epochs=2, kl=BETA,
        optim=Optim(lr=5e-3, schedule="linear"), checkpoint_every=1000,
    )  # fmt: skip
    target = optimum(distribution(base), REWARDS, BETA)
    assert total_variation(target, distribution(tmp_path / "ppo")) <= 0.05
