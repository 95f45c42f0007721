"""LoRA adapters: what may be asked for, whose tensors train, are saved and come back, and what a folder may hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHAPE, add_stirred, gradients, save_model
from fixtures.small_trees import PROMPTS, TREES, MakeModel, ModelFolder, packed_of
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3TextConfig,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    SiglipVisionConfig,
)

from align.core.config import BadInput, Compute, Optim
from align.engine.distributed import Distributed
from align.engine.optimizer import RoleOptimizer
from align.model.adapters import AdapterModel
from align.model.layouts import note_layout
from align.model.packing import Tree, pack
from align.model.tuners.lora import Lora
from align.model.weights import load_tensors

CPU = Compute(device="cpu")
EMBEDDING = Lora(r=4, alpha=8, target_modules=["embed_tokens"])
LEARN = {
    "policy": lambda model: model.logprobs(packed_of(TREES)).sum(),
    "reward": lambda model: model.scores("reward", packed_of(TREES)).sum(),
    "value": lambda model: model.values("value", packed_of(TREES)).sum(),
}


def stir(model: AdapterModel, role: str) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters(role).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


# --- whose tensors are whose -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("role", LEARN)
def test_an_adapter_on_the_embedding_trains_is_saved_and_comes_back(
    role: str, dtype: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = AdapterModel(model_folder("llama"), Compute(device="cpu", dtype=dtype))
    model.add(role, adapter=None, tuner=EMBEDDING, trainable=True)
    if role != "policy":
        model.add_head(role)
    stir(model, role)
    name = "base_model.model.model.embed_tokens.lora_embedding_"
    own = model.parameters(role)
    assert {n for n in own if not n.startswith("head.")} == {f"{name}A", f"{name}B"}
    assert {parameter.dtype for parameter in own.values()} == {torch.float32}

    learner = RoleOptimizer(own, Optim(lr=0.01, warmup=0), 4, Distributed(torch.device("cpu")))
    before = {n: p.detach().clone() for n, p in own.items()}
    with model.use(role):
        LEARN[role](model).backward()
    assert gradients(model, role).keys() == own.keys()
    learner.step()
    assert all(not torch.equal(parameter, before[n]) for n, parameter in own.items())
    assert {f"weight.{n}" for n in own} <= learner.tensors().keys()

    model.save_role(role, tmp_path / "adapter")
    saved = load_tensors(tmp_path / "adapter" / "adapter_model.safetensors")
    assert saved.keys() == {f"{name}A", f"{name}B"}, "and the base's own embedding is not among them"
    again = AdapterModel(model_folder("llama"), Compute(device="cpu", dtype=dtype))
    again.add(role, adapter=tmp_path / "adapter", trainable=True)
    if role != "policy":
        again.add_head(role, tmp_path / "adapter")
    assert {n: p.tolist() for n, p in again.parameters(role).items()} == {n: p.tolist() for n, p in own.items()}
    resumed = RoleOptimizer(again.parameters(role), Optim(lr=0.01, warmup=0), 4, Distributed(torch.device("cpu")))
    resumed.restore(learner.tensors(), learner.done)
    for one, other in ((model, learner), (again, resumed)):
        with one.use(role):
            LEARN[role](one).backward()
        other.step()
    assert all(torch.equal(p, own[n]) for n, p in again.parameters(role).items())


def test_an_embeddings_adapter_is_a_peft_adapter(
    make_model: MakeModel, model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = make_model("llama")
    model.add("policy", adapter=None, tuner=EMBEDDING, trainable=True)
    stir(model, "policy")
    model.save_role("policy", tmp_path)
    row = torch.tensor([PROMPTS[1]])
    base = AutoModelForCausalLM.from_pretrained(model_folder("llama"), dtype=torch.float32)
    with model.use("policy"), torch.no_grad():
        theirs = PeftModel.from_pretrained(base, str(tmp_path)).eval()(input_ids=row).logits
        assert torch.equal(model.base(input_ids=row).logits, theirs)


def test_a_layer_named_like_a_role_stays_the_bases_own(model_folder: ModelFolder) -> None:
    model = AdapterModel(model_folder("llama"), CPU)
    model.base.model.add_module("policy", nn.Linear(4, 4, dtype=torch.bfloat16).requires_grad_(False))
    model.add("policy", adapter=None, tuner=Lora(r=4, target_modules=["q_proj"]), trainable=True)
    assert len(model.parameters("policy")) == 2 * 2
    assert model.base.model.policy.weight.dtype == torch.bfloat16


# --- what may be asked for --------------------------------------------------------------------------------------


def test_target_modules_are_split_and_each_must_match(make_model: MakeModel) -> None:
    assert Lora(target_modules="q_proj, v_proj").target_modules == ["q_proj", "v_proj"]
    assert Lora(target_modules="q_proj").target_modules == ["q_proj"]
    assert Lora(target_modules="all-linear").target_modules == "all-linear"
    assert Lora(target_modules=r".*\.0\..*(q|v)_proj").target_modules == r".*\.0\..*(q|v)_proj"

    model = make_model("llama")
    model.add("policy", adapter=None, tuner=Lora(r=4, target_modules=r".*\.0\..*(q|v)_proj"), trainable=True)
    assert len(model.parameters("policy")) == 2 * 2
    for number, targets in enumerate((["nope"], "q_proj,nope", r".*\.nope")):
        for fresh in (make_model("llama"), model):  # on the bare base, and beside a role
            with pytest.raises(BadInput, match="lora: target_modules: .*nope.*it has embed_tokens, q_proj, k_proj"):
                fresh.add(f"other {number}", adapter=None, tuner=Lora(r=4, target_modules=targets), trainable=True)
    with pytest.raises(BadInput, match="lora: target_modules: .*unterminated subpattern"):
        model.add("other", adapter=None, tuner=Lora(r=4, target_modules="(q"), trainable=True)
    assert list(model.trainable) == ["policy"]


def test_a_head_that_is_tied_to_the_embedding_is_no_target(
    tmp_path: Path, tokenizer: Any, make_model: MakeModel
) -> None:
    shape = SHAPE | {"tie_word_embeddings": True}
    folder = save_model(LlamaConfig(**shape, num_hidden_layers=1, vocab_size=320), tmp_path / "tied", tokenizer)
    for targets in (["lm_head"], "q_proj,lm_head", ".*lm_head"):
        with pytest.raises(BadInput, match="lm_head shares its weight with the embedding"):
            AdapterModel(folder, CPU).add(
                "policy", adapter=None, tuner=Lora(r=4, target_modules=targets), trainable=True
            )
    untied = make_model("llama")
    untied.add("policy", adapter=None, tuner=Lora(r=4, target_modules=["lm_head"]), trainable=True)
    assert len(untied.parameters("policy")) == 2


def test_a_model_that_cannot_take_all_linear_says_what_to_name(tmp_path: Path, tokenizer: Any) -> None:
    config = MambaConfig(hidden_size=16, state_size=4, num_hidden_layers=1, vocab_size=320, eos_token_id=1)
    folder = save_model(config, tmp_path / "mamba", tokenizer)
    with pytest.raises(BadInput, match="target_modules: .*out_proj.*it has .*in_proj") as refused:
        AdapterModel(folder, CPU).add("policy", adapter=None, tuner=Lora(r=4), trainable=True)
    assert "\n" not in str(refused.value)
    AdapterModel(folder, CPU).add("policy", adapter=None, tuner=Lora(r=4, target_modules="in_proj"), trainable=True)


def test_a_router_that_is_a_linear_layer_of_its_own_kind_is_not_adapted(tmp_path: Path, tokenizer: Any) -> None:
    shape = {**SHAPE, "num_hidden_layers": 1, "num_local_experts": 2, "vocab_size": 320, "eos_token_id": 1}
    config = Llama4TextConfig(**shape, intermediate_size_mlp=32)
    model = AdapterModel(save_model(config, tmp_path / "llama-4", tokenizer), CPU)
    model.add("policy", adapter=None, tuner=Lora(r=4), trainable=True)
    notes: list[str] = []
    note_layout(model, notes.append)
    assert notes[-1].endswith("stays frozen: fused experts (experts.down_proj, experts.gate_up_proj); routers (router)")
    assert not any("router" in name for name in model.parameters("policy"))
    assert model.base.get_decoder() is model.base.model
    (packed,) = pack([Tree([3, 4, 5], [[6, 7]])], 64, "padded")
    with model.use("policy"):
        model.logprobs(packed).sum().backward()
    grown = [name for name, parameter in model.parameters("policy").items() if parameter.grad is not None]
    assert sum("q_proj" in name for name in grown) == 2


def test_what_is_adapted_and_what_cannot_be_is_told_once(tmp_path: Path, tokenizer: Any, make_model: MakeModel) -> None:
    shape = {**SHAPE, "num_hidden_layers": 1, "num_local_experts": 2, "vocab_size": 320, "eos_token_id": 1}
    model = AdapterModel(save_model(GptOssConfig(**shape, num_experts_per_tok=1), tmp_path / "gpt-oss", tokenizer), CPU)
    model.add("policy", adapter=None, tuner=Lora(r=4), trainable=True)
    model.add("reference", adapter=None, tuner=Lora(r=4), trainable=False)
    notes: list[str] = []
    note_layout(model, notes.append)
    assert notes[0].startswith("layout: ")
    assert notes[1:] == [
        "policy adapts k_proj (1), o_proj (1), q_proj (1), v_proj (1); stays frozen: fused experts (experts.down_proj, "
        "experts.gate_up_proj)"
    ]
    known = AdapterModel(save_model(MixtralConfig(**shape), tmp_path / "mixtral", tokenizer), CPU)
    known.add("policy", adapter=None, tuner=Lora(r=4), trainable=True)
    assert known.facts() == [
        "policy adapts experts.down_proj (1), experts.gate_up_proj (1), gate (1), k_proj (1), o_proj (1), q_proj (1), "
        "v_proj (1)"
    ]
    stir(known, "policy")
    known.save_role("policy", tmp_path / "adapter")
    known.add("reference", adapter=tmp_path / "adapter", trainable=False)
    with torch.no_grad():
        for role in ("policy", "reference"):
            with known.use(role):
                notes.append(str(known.logprobs(packed_of(TREES)).tolist()))
    assert notes[-1] == notes[-2]
    dense = make_model("gpt2")
    dense.add("value", adapter=None, tuner=Lora(r=4), trainable=True)
    assert dense.facts() == ["value adapts c_attn (2), c_fc (2), c_proj (4)"]


def test_towers_for_images_stay_out_of_all_linear(tmp_path: Path, tokenizer: Any) -> None:
    text = Gemma3TextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, vocab_size=328,
    )  # fmt: skip
    tower = SiglipVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    config = Gemma3Config(text_config=text.to_dict(), vision_config=tower.to_dict(), image_token_index=320)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "gemma3")
    tokenizer.save_pretrained(tmp_path / "gemma3")
    model = AdapterModel(tmp_path / "gemma3", CPU)
    model.add("policy", adapter=None, tuner=Lora(r=4), trainable=True)
    with model.use("policy"):
        model.logprobs(packed_of(TREES)).sum().backward()
    assert gradients(model, "policy").keys() == model.parameters("policy").keys()
    assert model.facts() == [
        "policy adapts down_proj (1), gate_proj (1), k_proj (1), o_proj (1), q_proj (1), up_proj (1), v_proj (1); "
        "stays frozen: all but the language model (no text goes through towers for images or sound)"
    ]
    model.save_role("policy", tmp_path / "adapter")
    model.add("reference", adapter=tmp_path / "adapter", trainable=False)
    model.add("value", adapter=None, tuner=Lora(r=4, target_modules="q_proj"), trainable=True)
    assert model.facts()[1] == "value adapts q_proj (2), also where no text goes through and nothing is learnt"


# --- what a folder may hold -------------------------------------------------------------------------------------


@pytest.fixture
def adapter(make_model: MakeModel, tmp_path: Path) -> Path:
    model = make_model("llama")
    add_stirred(model, "policy")
    model.save_role("policy", tmp_path / "adapter")
    return tmp_path / "adapter"


FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "missing": (lambda t: {n: v for n, v in t.items() if n != FIRST}, rf"{FIRST} is missing \(1 in all\)"),
    "extra": (lambda t: {**t, "base_model.model.score.weight": torch.zeros(1, 32)}, "score.weight is unknown"),
    "misshaped": (lambda t: {**t, FIRST: torch.zeros(2, 48)}, rf"{FIRST} has the shape \[2, 48\] instead of \[4, 48\]"),
    "not finite": (
        lambda t: {**t, FIRST: torch.full((4, 48), float("inf"))},
        f"{FIRST} holds a number that is not finite",
    ),
    "prefixed": (lambda t: {f"module.{n}": v for n, v in t.items()}, "module.base_model.* is unknown"),
    "another embedding": (
        lambda t: {**t, "base_model.model.model.embed_tokens.weight": torch.zeros(320, 32)},
        "embed_tokens.weight is unknown",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_an_adapters_tensors_are_all_there_and_no_others(case: str, adapter: Path, make_model: MakeModel) -> None:
    edit, notes = TENSORS[case]
    file = adapter / "adapter_model.safetensors"
    save_file(edit(load_tensors(file)), file)
    with pytest.raises(BadInput, match=notes):
        make_model("llama").add("policy", adapter=adapter, trainable=True)


def test_the_bases_own_embedding_beside_an_adapter_is_passed_over(adapter: Path, make_model: MakeModel) -> None:
    """PEFT saves it with an adapter that targets it."""
    model = make_model("llama")
    file, name = adapter / "adapter_model.safetensors", "base_model.model.model.embed_tokens.weight"
    save_file(load_tensors(file) | {name: model.base.model.embed_tokens.weight.data.clone()}, file)
    model.add("policy", adapter=adapter, trainable=True)


@pytest.mark.parametrize(
    ("settings", "notes"),
    [
        ({"r": 10**9}, "key r: 1000000000 is no rank"),
        ({"r": 0}, "key r: 0 is no rank"),
        ({"r": "many"}, "key r: 'many' is no rank"),
        ({"r": None}, "key r: None is no rank"),
        ({"rank_pattern": {"q_proj": 10**9}}, "key rank_pattern.q_proj: 1000000000 is no rank"),
        ({"rank_pattern": [3]}, "key rank_pattern: expected module names and numbers"),
        ({"lora_alpha": "x"}, "key lora_alpha: 'x' is no finite number"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "key alpha_pattern.q_proj: inf is no finite number"),
        ({"peft_type": "PREFIX_TUNING"}, "key peft_type: 'PREFIX_TUNING' is none of LORA; merge"),
        ({"peft_type": "NOPE"}, "key peft_type: 'NOPE' is none of LORA; merge"),
        ({"peft_type": None}, "key peft_type: None is none of LORA; merge"),
        ({"base_model_name_or_path": None}, "key base_model_name_or_path"),
        ({"init_lora_weights": "pissa"}, "key init_lora_weights: 'pissa' changes the base"),
        ({"bias": "all"}, "key bias: 'all' is not supported; merge"),
        ({"modules_to_save": ["lm_head"]}, "key modules_to_save: .* is not supported; merge"),
        ({"layer_replication": [[0, 2]]}, "key layer_replication: .* is not supported; merge"),
        ({"trainable_token_indices": [3]}, "key trainable_token_indices: .* is not supported; merge"),
        ({"target_modules": ["q_proj", "nope"]}, "target_modules: nope matches no module"),
        ({"a_key_of_tomorrow": 3}, "key a_key_of_tomorrow: '3' is not supported"),
        ({"target_modules": ["nope"]}, "target_modules: no adapter can be put on this model .*nope"),
        ({"target_modules": 3}, "key target_modules: '3' names no modules"),
        ({"target_modules": [3]}, "key target_modules: .* names no modules"),
        ({"target_modules": None}, "key target_modules: 'None' names no modules"),
        ({"target_modules": []}, "key target_modules: .* names no modules"),
        ({"lora_dropout": "x"}, "no adapter can be put|no readable adapter configuration"),
    ],
)
def test_an_adapters_settings_are_read_or_refused(
    settings: dict[str, Any], notes: str, adapter: Path, make_model: MakeModel
) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(BadInput, match=notes) as refused:
        make_model("llama").add("policy", adapter=adapter, trainable=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "null"])
def test_an_adapter_config_that_is_no_json_object_is_named(text: str, adapter: Path, make_model: MakeModel) -> None:
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(BadInput, match=r"adapter_config\.json: (cannot be read as JSON|expected a JSON object)"):
        make_model("llama").add("policy", adapter=adapter, trainable=True)
