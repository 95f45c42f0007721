"""Roles on one base: who gets a gradient, what is saved, how a policy acts, and an optimiser that resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from conftest import GRADIENT, LOGPROB, SAMPLER, add_stirred, gradients, relative_l2
from peft import PeftModel
from safetensors.torch import load, save
from torch import Tensor
from transformers import AutoModelForCausalLM

from align.core import models
from align.core.config import BadInput, Compute, Lora, Optim, StageConfig
from align.core.loop import Learner, NotFinite, Processes, epochs, stage_seed
from align.core.models import Stack, find_source, load_base
from align.core.packing import Rectangle, Tree, pack
from align.core.runs import Run, stage
from align.rollout import respond
from rewards.model import add_reward, score

ModelFolder = Callable[[str], Path]
MakeStack = Callable[..., Stack]


def draw_ids(seed: int, n: int) -> list[int]:
    return torch.randint(4, 300, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


TREES = [Tree(draw_ids(s, 4 + s), [draw_ids(10 + s, 6), draw_ids(20 + s, 3 + s)]) for s in range(4)]
PROMPTS = [draw_ids(30 + n, n) for n in (3, 11, 7, 5, 11)]
KEYS = [("test", n) for n in range(len(PROMPTS))]


def rectangle_of(trees: list[Tree]) -> Rectangle:
    (rectangle,) = pack(trees, 1 << 20)
    return rectangle


def stir(stack: Stack, roles: dict[str, bool]) -> None:
    for seed, (role, trainable) in enumerate(roles.items()):
        add_stirred(stack, role, trainable=trainable, head=role in ("reward", "value"), seed=seed)


# --- gradients ---------------------------------------------------------------------------------------------


def test_only_the_trainable_role_gets_a_gradient(make_stack: MakeStack) -> None:
    stack = make_stack("llama")
    stir(stack, {"policy": True, "reference": False, "reward": False, "value": True})
    rectangle = rectangle_of(TREES)
    with torch.no_grad(), stack.use(None):
        stack.logprobs(rectangle)
    with torch.no_grad(), stack.use("reference"):
        stack.logprobs(rectangle)
    with torch.no_grad(), stack.use("reward"):
        stack.scores("reward", rectangle)
    with stack.use("policy"):
        stack.logprobs(rectangle).sum().backward()

    def count() -> dict[str, int]:
        return {role: len(gradients(stack, role)) for role in stack.trainable}

    n_policy = len(stack.parameters("policy"))
    assert n_policy == 2 * 7 * 2, "A and B of the seven linear layers of two blocks"
    assert count() == {"policy": n_policy, "reference": 0, "reward": 0, "value": 0}
    with stack.use("value"):
        stack.values("value", rectangle).sum().backward()
    n_value = len(stack.parameters("value"))
    assert n_value == n_policy + 2
    assert count() == {"policy": n_policy, "reference": 0, "reward": 0, "value": n_value}
    with stack.use("reward"), pytest.raises(RuntimeError, match="does not require grad"):
        stack.scores("reward", rectangle).sum().backward()

    owned = {id(p) for role in stack.trainable for p in stack.parameters(role).values()}
    base = [p for p in stack.base.parameters() if id(p) not in owned]
    assert base and not any(p.requires_grad or p.grad is not None for p in base)


def test_the_gradient_is_lost_when_the_role_is_switched_before_backward(make_stack: MakeStack) -> None:
    """Why ``Stack.use`` asks for the backward pass inside its block: PEFT drops the gradient without an error."""
    stack = make_stack("llama")
    stir(stack, {"policy": True, "value": True})
    rectangle = rectangle_of(TREES)
    with stack.use("policy"):
        loss = stack.logprobs(rectangle).sum()
    with stack.use("value"):
        loss.backward()
    assert len(gradients(stack, "policy")) == 0
    with stack.use("policy"):
        stack.logprobs(rectangle).sum().backward()
    assert len(gradients(stack, "policy")) == len(stack.parameters("policy"))


@pytest.mark.parametrize("compute", [{"gradient_checkpointing": True}, {"max_tokens": 16}])
def test_memory_settings_change_no_gradient(compute: dict[str, Any], make_stack: MakeStack) -> None:
    found = []
    for settings in ({}, compute):
        stack = make_stack("llama", **settings)
        stir(stack, {"policy": True})
        for rectangle in pack(TREES, stack.compute.max_tokens):
            with stack.use("policy"):
                stack.logprobs(rectangle).sum().backward()
        found.append(gradients(stack, "policy"))
    assert relative_l2(found[1], found[0]) <= GRADIENT


def test_the_head_in_chunks_is_the_head(make_stack: MakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = make_stack("llama")
    stir(stack, {"policy": True, "reference": False})
    rectangle = rectangle_of(TREES)
    found: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
    for cells in (1 << 24, 320 * 5):  # all at once, five positions at once
        monkeypatch.setattr(models, "CHUNK_CELLS", cells)
        with stack.use("policy"):
            logprobs = stack.logprobs(rectangle)
            (logprobs * torch.arange(len(logprobs))).sum().backward()
        with torch.no_grad():
            kl = stack.exact_kl(rectangle, "policy", "reference")
        found.append((logprobs.detach(), kl, gradients(stack, "policy")))
        for parameter in stack.parameters("policy").values():
            parameter.grad = None
    assert stack.chunk == 5 < len(rectangle.target_N)
    torch.testing.assert_close(found[1][:2], found[0][:2], atol=LOGPROB, rtol=0)
    assert relative_l2(found[1][2], found[0][2]) <= GRADIENT


# --- roles -------------------------------------------------------------------------------------------------


def test_a_fresh_adapter_is_the_base_and_none_is_the_bare_base(
    make_stack: MakeStack, model_folder: ModelFolder
) -> None:
    stack = make_stack("llama")
    stack.seat_policy(None, Lora(r=4))
    assert stack.reference is None
    rectangle = rectangle_of(TREES)
    with torch.no_grad():
        with stack.use(stack.reference):
            bare = stack.logprobs(rectangle)
        with stack.use("policy"):
            assert torch.equal(stack.logprobs(rectangle), bare)
        assert torch.equal(stack.exact_kl(rectangle, "policy", None), torch.zeros_like(bare))
        add_stirred(stack, "other")
        with stack.use("other"):
            assert float((stack.logprobs(rectangle) - bare).abs().max()) > 0.1
        with stack.use(None):
            assert torch.equal(stack.logprobs(rectangle), bare)
        alone = Stack(model_folder("llama"), Compute(device="cpu"))
        with alone.use(None):
            assert torch.equal(alone.logprobs(rectangle), bare)


def test_a_policy_starts_as_its_parents_adapter_and_leaves_it_alone(make_stack: MakeStack, tmp_path: Path) -> None:
    parent = make_stack("llama")
    add_stirred(parent, "policy")
    parent.save_role("policy", tmp_path / "adapter")
    stack = make_stack("llama")
    stack.seat_policy(tmp_path / "adapter", Lora())
    assert stack.reference == "reference"
    rectangle = rectangle_of(TREES)
    with parent.use("policy"), torch.no_grad():
        expected = parent.logprobs(rectangle)
    learner = Learner(stack.parameters("policy"), Optim(lr=0.01, warmup=0), 3, Processes())
    for step in range(3):
        with stack.use("reference"), torch.no_grad():
            assert torch.equal(stack.logprobs(rectangle), expected)
        with stack.use("policy"):
            logprobs = stack.logprobs(rectangle)
            assert torch.equal(logprobs.detach(), expected) == (step == 0)
            logprobs.sum().backward()
        learner.step()


def test_adapters_are_fp32_on_a_bf16_base(model_folder: ModelFolder) -> None:
    stack = Stack(model_folder("llama"), Compute(device="cpu", dtype="bfloat16"))
    stack.add("policy", adapter=None, lora=Lora(r=4), trainable=True)
    assert {p.dtype for p in stack.parameters("policy").values()} == {torch.float32}
    owned = {id(p) for p in stack.parameters("policy").values()}
    assert {p.dtype for p in stack.base.parameters() if id(p) not in owned} == {torch.bfloat16}
    with stack.use("policy"), torch.no_grad():
        assert stack.logprobs(rectangle_of(TREES)).dtype == torch.float32


# --- saved and loaded --------------------------------------------------------------------------------------


class ToyRewardConfig(StageConfig):
    INPUTS: ClassVar[tuple[str, ...]] = ()

    stage: Literal["reward"] = "reward"


@stage
def toy_reward(config: ToyRewardConfig, run: Run, stack: Stack) -> dict[str, Any]:
    """A finished reward run whose adapter is whatever the stack holds."""
    stack.save_role("reward", run.path / "adapter")
    return {}


def test_a_reloaded_reward_model_scores_the_same_to_the_bit(make_stack: MakeStack, tmp_path: Path) -> None:
    trained = make_stack("llama")
    stir(trained, {"policy": True, "reward": True})
    toy_reward(ToyRewardConfig(run=tmp_path / "reward"), trained)
    expected = score(trained, "reward", TREES)
    assert len({value for values in expected for value in values}) == 8

    loaded = make_stack("llama")
    add_stirred(loaded, "policy", seed=9)
    add_reward(loaded, tmp_path / "reward")
    assert score(loaded, "reward", TREES) == expected
    assert not any(p.requires_grad for p in loaded.heads["reward"].parameters())
    with pytest.raises(BadInput, match="trained on the base .*llama, but this stage uses .*qwen2"):
        add_reward(make_stack("qwen2"), tmp_path / "reward")
    (tmp_path / "reward" / "adapter" / "head.safetensors").unlink()
    with pytest.raises(BadInput, match="head.safetensors: missing"):
        add_reward(make_stack("llama"), tmp_path / "reward")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_saved_adapter_is_a_peft_adapter(
    family: str, make_stack: MakeStack, model_folder: ModelFolder, tmp_path: Path
) -> None:
    stack = make_stack(family)
    stir(stack, {"reference": False, "policy": True})
    stack.save_role("policy", tmp_path / "adapter")
    row = torch.tensor([PROMPTS[1]])
    with stack.use("policy"), torch.no_grad():
        ours = stack.base(input_ids=row).logits
    base = AutoModelForCausalLM.from_pretrained(model_folder(family), dtype=torch.float32)
    with torch.no_grad():
        bare = base(input_ids=row).logits
        theirs = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()(input_ids=row).logits
    assert torch.equal(ours, theirs)
    assert float((ours - bare).abs().max()) > 0.1
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip


def test_where_a_policy_lives(model_folder: ModelFolder, make_stack: MakeStack, tmp_path: Path) -> None:
    stack = make_stack("llama")
    stir(stack, {"reward": True})
    toy_reward(ToyRewardConfig(run=tmp_path / "run"), stack)
    assert find_source(tmp_path / "run") == (model_folder("llama"), tmp_path / "run" / "adapter")
    assert find_source(model_folder("llama")) == (model_folder("llama"), None)
    with pytest.raises(BadInput, match="neither a run folder"):
        find_source(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="no such model folder"):
        load_base(tmp_path / "nowhere", Compute(device="cpu"))
    (tmp_path / "run" / "adapter" / "adapter_config.json").rename(tmp_path / "moved.json")
    for file in (tmp_path / "run" / "adapter").iterdir():
        file.unlink()
    (tmp_path / "run" / "adapter").rmdir()
    with pytest.raises(BadInput, match="holds no policy"):
        find_source(tmp_path / "run")


def test_an_adapter_of_another_model_is_refused(make_stack: MakeStack, tmp_path: Path) -> None:
    deep = make_stack("qwen2")  # three layers; the Llama has two
    add_stirred(deep, "policy")
    deep.save_role("policy", tmp_path / "adapter")
    with pytest.raises(BadInput, match="does not fit the base"):
        make_stack("llama").add("policy", adapter=tmp_path / "adapter", trainable=True)


# --- heads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_logits_come_from_the_models_own_head(family: str, make_stack: MakeStack) -> None:
    stack = make_stack(family)
    assert stack.head_is_plain == (family == "llama")
    row = torch.tensor([PROMPTS[1]])
    trunk = getattr(stack.base, stack.base.base_model_prefix)
    with torch.no_grad():
        expected = stack.base(input_ids=row).logits[0]
        hidden = trunk(input_ids=row).last_hidden_state[0]
        torch.testing.assert_close(stack.head_logits(hidden), expected, atol=LOGPROB, rtol=0)
        embedding_alone = stack.base.get_output_embeddings()(hidden)
        assert (float((embedding_alone - expected).abs().max()) > 0.01) == (family == "gemma2")
        again = stack.base(input_ids=row).logits[0]
    assert torch.equal(again, expected), "the trunk must be back in its place"


# --- acting ------------------------------------------------------------------------------------------------


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


# --- the optimiser -----------------------------------------------------------------------------------------


def train(stack: Stack, learner: Learner, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        tree = TREES[learner.done % len(TREES)]
        with stack.use("policy"):
            loss = -stack.logprobs(rectangle_of([tree])).mean()
            loss.backward()
        losses.append(float(loss.detach()))
        learner.step()
    return losses


def test_five_steps_and_five_more_are_ten_to_the_bit(make_stack: MakeStack) -> None:
    optim = Optim(lr=0.01, weight_decay=0.1, schedule="cosine", warmup=0.3)

    def fresh() -> tuple[Stack, Learner]:
        stack = make_stack("llama")
        add_stirred(stack, "policy")
        return stack, Learner(stack.parameters("policy"), optim, 10, Processes())

    whole, learner = fresh()
    losses = train(whole, learner, 10)
    first, half = fresh()
    early = train(first, half, 5)
    stored = load(save({name: tensor.contiguous() for name, tensor in half.tensors().items()}))
    second, resumed = fresh()
    resumed.restore(stored, 5)
    late = train(second, resumed, 5)
    assert early + late == losses and losses[-1] < losses[1]
    final, expected = resumed.tensors(), learner.tensors()
    assert final.keys() == expected.keys() and len(expected) == 4 * len(whole.parameters("policy"))
    assert all(torch.equal(final[name], expected[name]) for name in expected)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rate_warms_up_and_follows_its_schedule(schedule: Any) -> None:
    learner = Learner(
        {"w": torch.nn.Parameter(torch.zeros(1))}, Optim(lr=1.0, schedule=schedule, warmup=0.2), 10, Processes()
    )
    rates = []
    for learner.done in range(10):
        rates.append(learner.rate())
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(1.0 if schedule == "constant" else 0.5)
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True) and min(rates) > 0


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    learner = Learner({"w": weight}, Optim(), 4, Processes())
    weight.grad = torch.tensor([1.0, float("nan")])
    with pytest.raises(NotFinite, match="step 1: the gradient is not finite"):
        learner.step()
    assert torch.equal(weight.detach(), torch.ones(2)) and learner.done == 0


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    batches = epochs(7, 3, 2, seed=4)
    assert [len(batch) for batch in batches] == [3, 3, 1, 3, 3, 1]
    first, second = sum(batches[:3], []), sum(batches[3:], [])
    assert sorted(first) == sorted(second) == list(range(7)) and first != second
    assert epochs(7, 3, 2, seed=4) == batches != epochs(7, 3, 2, seed=5)
    assert stage_seed(0, "dpo") == stage_seed(0, "dpo") != stage_seed(0, "ppo")


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
