"""Roles on one base: who gets a gradient, what is saved and loaded, and through which head it speaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from conftest import GRADIENT, LOGPROB, SHAPE, add_stirred, gradients, relative_l2, save_model
from fixtures.small_trees import PROMPTS, TREES, MakeModel, ModelFolder, packed_of, stir
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, Phi3Config

from align.core.config import BadInput, Compute, Optim, StageConfig
from align.core.runs import Run
from align.core.stage import stage
from align.engine.distributed import Distributed
from align.engine.optimizer import RoleOptimizer
from align.model import adapters
from align.model.adapters import AdapterModel
from align.model.load import context_length, load_base
from align.model.packing import pack
from align.model.sources import find_source
from align.model.tuners.lora import Lora
from rewards.model import add_reward, score

# --- gradients ---------------------------------------------------------------------------------------------


def test_only_the_trainable_role_gets_a_gradient(make_model: MakeModel) -> None:
    model = make_model("llama")
    stir(model, {"policy": True, "reference": False, "reward": False, "value": True})
    packed = packed_of(TREES)
    with torch.no_grad(), model.use(None):
        model.logprobs(packed)
    with torch.no_grad(), model.use("reference"):
        model.logprobs(packed)
    with torch.no_grad(), model.use("reward"):
        model.scores("reward", packed)
    with model.use("policy"):
        model.logprobs(packed).sum().backward()

    def count() -> dict[str, int]:
        return {role: len(gradients(model, role)) for role in model.trainable}

    n_policy = len(model.parameters("policy"))
    assert n_policy == 2 * 7 * 2, "A and B of the seven linear layers of two blocks"
    assert count() == {"policy": n_policy, "reference": 0, "reward": 0, "value": 0}
    with model.use("value"):
        model.values("value", packed).sum().backward()
    n_value = len(model.parameters("value"))
    assert n_value == n_policy + 2
    assert count() == {"policy": n_policy, "reference": 0, "reward": 0, "value": n_value}
    with model.use("reward"), pytest.raises(RuntimeError, match="does not require grad"):
        model.scores("reward", packed).sum().backward()

    owned = {id(p) for role in model.trainable for p in model.parameters(role).values()}
    base = [p for p in model.base.parameters() if id(p) not in owned]
    assert base and not any(p.requires_grad or p.grad is not None for p in base)


def test_the_gradient_is_lost_when_the_role_is_switched_before_backward(make_model: MakeModel) -> None:
    """Why ``AdapterModel.use`` wants the backward pass inside its block: PEFT drops the gradient without an error."""
    model = make_model("llama")
    stir(model, {"policy": True, "value": True})
    packed = packed_of(TREES)
    with model.use("policy"):
        loss = model.logprobs(packed).sum()
    with model.use("value"):
        loss.backward()
    assert len(gradients(model, "policy")) == 0
    with model.use("policy"):
        model.logprobs(packed).sum().backward()
    assert len(gradients(model, "policy")) == len(model.parameters("policy"))


@pytest.mark.parametrize("compute", [{"gradient_checkpointing": True}, {"max_tokens": 16}])
def test_memory_settings_change_no_gradient(compute: dict[str, Any], make_model: MakeModel) -> None:
    found = []
    for settings in ({}, compute):
        model = make_model("llama", **settings)
        stir(model, {"policy": True})
        for packed in pack(TREES, model.compute.max_tokens):
            with model.use("policy"):
                model.logprobs(packed).sum().backward()
        found.append(gradients(model, "policy"))
    assert relative_l2(found[1], found[0]) <= GRADIENT


def test_the_head_in_chunks_is_the_head(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    stir(model, {"policy": True, "reference": False})
    packed = packed_of(TREES)
    found: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
    for cells in (1 << 24, 320 * 5):  # all at once, five positions at once
        monkeypatch.setattr(adapters, "CHUNK_CELLS", cells)
        with model.use("policy"):
            logprobs = model.logprobs(packed)
            (logprobs * torch.arange(len(logprobs))).sum().backward()
        with torch.no_grad():
            kl = model.exact_kl(packed, "policy", "reference")
        found.append((logprobs.detach(), kl, gradients(model, "policy")))
        for parameter in model.parameters("policy").values():
            parameter.grad = None
    assert model.chunk == 5 < len(packed.target_N)
    torch.testing.assert_close(found[1][:2], found[0][:2], atol=LOGPROB, rtol=0)
    assert relative_l2(found[1][2], found[0][2]) <= GRADIENT


# --- roles -------------------------------------------------------------------------------------------------


def test_a_fresh_adapter_is_the_base_and_none_is_the_bare_base(
    make_model: MakeModel, model_folder: ModelFolder
) -> None:
    model = make_model("llama")
    model.add("policy", adapter=None, tuner=Lora(r=4), trainable=True)
    assert model.reference is None
    packed = packed_of(TREES)
    with torch.no_grad():
        with model.use(model.reference):
            bare = model.logprobs(packed)
        with model.use("policy"):
            assert torch.equal(model.logprobs(packed), bare)
        assert torch.equal(model.exact_kl(packed, "policy", None), torch.zeros_like(bare))
        add_stirred(model, "other")
        with model.use("other"):
            assert float((model.logprobs(packed) - bare).abs().max()) > 0.1
        with model.use(None):
            assert torch.equal(model.logprobs(packed), bare)
        alone = AdapterModel(model_folder("llama"), Compute(device="cpu"))
        with alone.use(None):
            assert torch.equal(alone.logprobs(packed), bare)


def test_a_policy_starts_as_its_parents_adapter_and_leaves_it_alone(make_model: MakeModel, tmp_path: Path) -> None:
    parent = make_model("llama")
    add_stirred(parent, "policy")
    parent.save_role("policy", tmp_path / "adapter")
    model = make_model("llama")
    for role in ("policy", "reference"):
        model.add(role, adapter=tmp_path / "adapter", trainable=role == "policy")
    assert model.reference == "reference"
    packed = packed_of(TREES)
    with parent.use("policy"), torch.no_grad():
        expected = parent.logprobs(packed)
    learner = RoleOptimizer(model.parameters("policy"), Optim(lr=0.01, warmup=0), 3, Distributed(torch.device("cpu")))
    for step in range(3):
        with model.use("reference"), torch.no_grad():
            assert torch.equal(model.logprobs(packed), expected)
        with model.use("policy"):
            logprobs = model.logprobs(packed)
            assert torch.equal(logprobs.detach(), expected) == (step == 0)
            logprobs.sum().backward()
        learner.step()


def test_adapters_are_fp32_on_a_bf16_base(model_folder: ModelFolder) -> None:
    model = AdapterModel(model_folder("llama"), Compute(device="cpu", dtype="bfloat16"))
    model.add("policy", adapter=None, tuner=Lora(r=4), trainable=True)
    assert {p.dtype for p in model.parameters("policy").values()} == {torch.float32}
    owned = {id(p) for p in model.parameters("policy").values()}
    assert {p.dtype for p in model.base.parameters() if id(p) not in owned} == {torch.bfloat16}
    with model.use("policy"), torch.no_grad():
        assert model.logprobs(packed_of(TREES)).dtype == torch.float32


# --- saved and loaded --------------------------------------------------------------------------------------


class ToyRewardConfig(StageConfig):
    INPUTS: ClassVar[tuple[str, ...]] = ()

    stage: Literal["reward"] = "reward"


@stage
def toy_reward(config: ToyRewardConfig, run: Run, model: AdapterModel) -> dict[str, Any]:
    """A finished reward run whose adapter is whatever the model holds."""
    model.save_role("reward", run.path / "adapter")
    return {}


def test_a_reloaded_reward_model_scores_the_same_to_the_bit(make_model: MakeModel, tmp_path: Path) -> None:
    trained = make_model("llama")
    stir(trained, {"policy": True, "reward": True})
    toy_reward(ToyRewardConfig(run=tmp_path / "reward"), trained)
    expected = score(trained, "reward", TREES)
    assert len({value for values in expected for value in values}) == 8

    loaded = make_model("llama")
    add_stirred(loaded, "policy", seed=9)
    add_reward(loaded, tmp_path / "reward")
    assert score(loaded, "reward", TREES) == expected
    assert not any(p.requires_grad for p in loaded.heads["reward"].parameters())
    with pytest.raises(BadInput, match="trained on the base .*llama, but this stage uses .*qwen2"):
        add_reward(make_model("qwen2"), tmp_path / "reward")
    (tmp_path / "reward" / "adapter" / "head.safetensors").unlink()
    with pytest.raises(BadInput, match="head.safetensors: missing"):
        add_reward(make_model("llama"), tmp_path / "reward")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_saved_adapter_is_a_peft_adapter(
    family: str, make_model: MakeModel, model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = make_model(family)
    stir(model, {"reference": False, "policy": True})
    model.save_role("policy", tmp_path / "adapter")
    row = torch.tensor([PROMPTS[1]])
    with model.use("policy"), torch.no_grad():
        ours = model.base(input_ids=row).logits
    base = AutoModelForCausalLM.from_pretrained(model_folder(family), dtype=torch.float32)
    with torch.no_grad():
        bare = base(input_ids=row).logits
        theirs = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()(input_ids=row).logits
    assert torch.equal(ours, theirs)
    assert float((ours - bare).abs().max()) > 0.1
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip


def test_where_a_policy_lives(model_folder: ModelFolder, make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model("llama")
    stir(model, {"reward": True})
    toy_reward(ToyRewardConfig(run=tmp_path / "run"), model)
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


def test_an_adapter_of_another_model_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    deep = make_model("qwen2")  # three layers; the Llama has two
    add_stirred(deep, "policy")
    deep.save_role("policy", tmp_path / "adapter")
    with pytest.raises(BadInput, match="does not fit the base"):
        make_model("llama").add("policy", adapter=tmp_path / "adapter", trainable=True)


# --- heads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_logits_come_from_the_models_own_head(family: str, make_model: MakeModel) -> None:
    model = make_model(family)
    assert model.head_is_plain == (family == "llama")
    row = torch.tensor([PROMPTS[1]])
    trunk = getattr(model.base, model.base.base_model_prefix)
    with torch.no_grad():
        expected = model.base(input_ids=row).logits[0]
        hidden = trunk(input_ids=row).last_hidden_state[0]
        torch.testing.assert_close(model.head_logits(hidden), expected, atol=LOGPROB, rtol=0)
        embedding_alone = model.base.get_output_embeddings()(hidden)
        assert (float((embedding_alone - expected).abs().max()) > 0.01) == (family == "gemma2")
        again = model.base(input_ids=row).logits[0]
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
    model = AdapterModel(save_model(config, tmp_path / "phi3", tokenizer), Compute(device="cpu"))
    assert context_length(model.base) == 64 < config.max_position_embeddings
    assert any("beyond 64 tokens the rotary embedding (longrope) of a whole batch" in fact for fact in model.facts())
    row, mates = torch.arange(3, 43), (torch.arange(3, 67) % 300, torch.arange(3, 68) % 300)
    logits = []
    for mate in mates:
        ids = torch.stack([torch.cat([row, row.new_zeros(len(mate) - len(row))]), mate])
        positions = torch.arange(len(mate)).expand(2, -1)
        with torch.no_grad():
            logits.append(model.base(input_ids=ids, position_ids=positions, use_cache=False).logits[0, : len(row)])
        alone = model.base(input_ids=row[None], use_cache=False).logits[0]
    torch.testing.assert_close(logits[0], alone, atol=1e-4, rtol=1e-4)
    assert (logits[1] - alone).abs().max() > 1e-2, "one token more, and the row beside it has other logits"
