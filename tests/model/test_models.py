"""Roles on one base: who gets a gradient, what is saved and loaded, and through which head it speaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from conftest import GRADIENT, LOGPROB, SHAPE, add_stirred, gradients, relative_l2, save_model
from fixtures.small_trees import PROMPTS, TREES, MakeStack, ModelFolder, rectangle_of, stir
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, Phi3Config

from align.core.config import BadInput, Compute, Lora, Optim, StageConfig
from align.core.runs import Run, stage
from align.engine.loop import Learner, Processes
from align.model import adapters
from align.model.adapters import Stack
from align.model.load import context_length, find_source, load_base
from align.model.packing import pack
from rewards.model import add_reward, score

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
        monkeypatch.setattr(adapters, "CHUNK_CELLS", cells)
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
    stack.seat_policy(tmp_path / "adapter", None)
    assert stack.reference == "reference"
    rectangle = rectangle_of(TREES)
    with parent.use("policy"), torch.no_grad():
        expected = parent.logprobs(rectangle)
    learner = Learner(stack.parameters("policy"), Optim(lr=0.01, warmup=0), 3, Processes(torch.device("cpu")))
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


def test_rows_end_where_a_longer_one_would_change_those_beside_it(tmp_path: Path, tokenizer: Any) -> None:
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64, "factor": 4.0,
        "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
    }  # fmt: skip
    config = Phi3Config(
        **SHAPE, num_hidden_layers=1, vocab_size=len(tokenizer), rope_parameters=rope, pad_token_id=0, eos_token_id=1,
        original_max_position_embeddings=64,
    )  # fmt: skip
    stack = Stack(save_model(config, tmp_path / "phi3", tokenizer), Compute(device="cpu"))
    assert context_length(stack.base) == 64 < config.max_position_embeddings
    assert any("beyond 64 tokens the rotary embedding (longrope) of a whole batch" in fact for fact in stack.facts())
    row, mates = torch.arange(3, 43), (torch.arange(3, 67) % 300, torch.arange(3, 68) % 300)
    logits = []
    for mate in mates:
        ids = torch.stack([torch.cat([row, row.new_zeros(len(mate) - len(row))]), mate])
        positions = torch.arange(len(mate)).expand(2, -1)
        with torch.no_grad():
            logits.append(stack.base(input_ids=ids, position_ids=positions, use_cache=False).logits[0, : len(row)])
        alone = stack.base(input_ids=row[None], use_cache=False).logits[0]
    torch.testing.assert_close(logits[0], alone, atol=1e-4, rtol=1e-4)
    assert (logits[1] - alone).abs().max() > 1e-2, "one token more, and the row beside it has other logits"
