"""A model folder is loaded as it was meant, or refused in one line that names the file, its key and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIGS, SHAPE, make_tokenizer, save_model
from fixtures.small_trees import TREES, MakeModel, ModelFolder, packed_of, stir
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AddedToken, LlamaConfig

from align.core.config import BadInput, Compute
from align.data.tokens import RenderedPrompt, record_tokens, response_tokens
from align.model.adapters import AdapterModel
from align.model.chat import Chat
from align.model.load import load_base, load_tokenizer
from align.model.sources import find_source
from align.model.weights import config_of, is_out_of_memory, load_tensors, reading, skeleton

CPU = Compute(device="cpu")
DOWN = "model.layers.0.mlp.down_proj.weight"
Tensors = dict[str, Tensor]


@pytest.fixture
def copied(tmp_path: Path, model_folder: ModelFolder) -> Callable[..., Path]:
    """``copied("llama")``: a copy of a tiny model's folder that a test may spoil."""

    def copy(family: str = "llama") -> Path:
        return Path(shutil.copytree(model_folder(family), tmp_path / "model"))

    return copy


def with_tensors(folder: Path, edit: Callable[[Tensors], Tensors]) -> Path:
    """Rewrite a folder's weights."""
    file = folder / "model.safetensors"
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})
    return folder


def with_settings(folder: Path, name: str = "config.json", **settings: Any) -> Path:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


def without(tensors: Tensors, name: str) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if key != name}


# --- tensors -------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "prefixed": (
        lambda t: {f"module.{k}": v for k, v in t.items()},
        "lack lm_head.weight, .*save it without 'module.' before its names",
    ),
    "one gone": (lambda t: without(t, DOWN), f"lack {DOWN}; copy it again"),
    "untied head gone": (lambda t: without(t, "lm_head.weight"), "lack lm_head.weight"),
    "misnamed": (
        lambda t: {k.replace("down_proj", "down"): v for k, v in t.items()},
        f"lack {DOWN}, .*they are there as model.layers.0.mlp.down.weight",
    ),
    "misshaped": (
        lambda t: {**t, DOWN: torch.zeros(3, 3)},
        rf"another shape than config.json says, first {DOWN}: \[3, 3\] instead of \[32, 48\]",
    ),
    "not a number": (
        lambda t: {**t, DOWN: t[DOWN].index_fill(0, torch.tensor([3]), float("nan"))},
        f"{DOWN} holds a number that is not finite; copy or convert it again",
    ),
    "infinite": (
        lambda t: {**t, DOWN: t[DOWN].index_fill(1, torch.tensor([3]), float("-inf"))},
        f"{DOWN} holds a number that is not finite",
    ),
    "a third layer": (
        lambda t: {**t, DOWN.replace("0", "2"): t[DOWN].clone()},
        "hold model.layers.2.mlp.down_proj.weight, which .* has no place for",
    ),
    "a classifier's head": (lambda t: {**t, "score.weight": torch.zeros(1, 32)}, "hold score.weight, which"),
    "an adapter beside them": (
        lambda t: {**t, "model.layers.0.mlp.down_proj.lora_A.weight": torch.zeros(4, 48)},
        "hold model.layers.0.mlp.down_proj.lora_A.weight, which",
    ),
    "integers": (lambda t: {**t, DOWN: t[DOWN].to(torch.int8)}, f"tensor {DOWN} is of type I8"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_weights_that_are_not_the_models_are_refused_by_name(case: str, copied: Callable[..., Path]) -> None:
    edit, problem = REFUSED[case]
    with pytest.raises(BadInput, match=problem) as refused:
        load_base(with_tensors(copied(), edit), CPU)
    assert "\n" not in str(refused.value)


def test_a_tied_head_need_not_be_in_the_file(tmp_path: Path, tokenizer: Any) -> None:
    shape = SHAPE | {"tie_word_embeddings": True}
    folder = save_model(LlamaConfig(**shape, num_hidden_layers=1, vocab_size=320), tmp_path / "tied", tokenizer)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = load_base(folder, CPU).model
    assert model.lm_head.weight is model.model.embed_tokens.weight

    with_tensors(folder, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"].clone()})
    load_base(folder, CPU)
    with_tensors(folder, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"] + 1})
    with pytest.raises(BadInput, match="tie_word_embeddings: true, but lm_head.weight and .* differ"):
        load_base(folder, CPU)


def test_what_a_model_has_no_use_for_is_named(copied: Callable[..., Path]) -> None:
    folder = with_tensors(copied(), lambda t: {**t, "v_head.summary.weight": torch.zeros(1, 32)})
    model = AdapterModel(folder, CPU)
    assert model.facts() == [f"1 tensors of {folder} are not used, first v_head.summary.weight"]


def sharded(folder: Path) -> Path:
    """The same weights in two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def test_a_sharded_model_is_whole_or_refused(copied: Callable[..., Path], model_folder: ModelFolder) -> None:
    folder = sharded(copied())
    whole = load_base(model_folder("llama"), CPU).model.state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in load_base(folder, CPU).model.state_dict().items())

    shard = folder / "model-00002-of-00002.safetensors"
    kept = shard.read_bytes()
    shard.unlink()
    with pytest.raises(BadInput, match="model-00002-of-00002.safetensors: missing, though the index names it"):
        load_base(folder, CPU)
    (folder.parent / "outside.safetensors").write_bytes(kept)
    places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    outside = {name: "../outside.safetensors" if "00002-of" in place else place for name, place in places.items()}
    with_settings(folder, "model.safetensors.index.json", weight_map=outside)
    with pytest.raises(BadInput, match="'../outside.safetensors' is no safetensors file of this folder"):
        load_base(folder, CPU)
    shutil.copy(model_folder("llama") / "model.safetensors", folder)
    with pytest.raises(BadInput, match="holds model.safetensors and an index of shards"):
        load_base(folder, CPU)


HEADERS = {
    "nothing": b"",
    "three bytes": b"abc",
    "zeros": bytes(64),
    "an absurd length": (2**62).to_bytes(8, "little") + b"{}" * 40,
    "longer than the file": (10_000).to_bytes(8, "little") + b"{}",
    "not JSON": (16).to_bytes(8, "little") + b"x" * 16,
    "a list": (2).to_bytes(8, "little") + b"[]",
    "no offsets": (13).to_bytes(8, "little") + b'{"a":{"b":1}}',
    "no tensors": (2).to_bytes(8, "little") + b"{}",
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_broken_safetensors_file_is_named_and_is_no_lack_of_memory(case: str, copied: Callable[..., Path]) -> None:
    folder = copied()
    (folder / "model.safetensors").write_bytes(HEADERS[case])
    with pytest.raises(BadInput, match="model.*(safetensors|weights lack)") as refused:
        load_base(folder, CPU)
    assert "memory" not in str(refused.value)


def test_only_a_lack_of_memory_is_a_lack_of_memory() -> None:
    full = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4e18 bytes")
    assert is_out_of_memory(full) and is_out_of_memory(MemoryError()) and not is_out_of_memory(RuntimeError("x"))
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"), reading("a file", "copy it"):
        raise full
    with pytest.raises(BadInput, match=r"a file \(ZeroDivisionError: x\); copy it"), reading("a file", "copy it"):
        raise ZeroDivisionError("x")


# --- configurations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"a": ' + "[" * 100_000, "\x00"])
def test_a_config_that_is_no_json_object_is_named(text: str, copied: Callable[..., Path]) -> None:
    folder = copied()
    (folder / "config.json").write_text(text)
    with pytest.raises(BadInput, match="config.json: (cannot be read as JSON|expected a JSON object)"):
        config_of(folder)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"num_hidden_layers": 10**6}, "key num_hidden_layers: 1000000 is no size of a model"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "key text_config.num_hidden_layers: 1000000000 is no size"),
        ({"num_hidden_layers": 0}, "key num_hidden_layers: 0 is no size of a model"),
        ({"hidden_size": 10**12}, "key hidden_size: 1000000000000 is no size of a model"),
        ({"hidden_size": -4}, "key hidden_size: -4 is no size"),
        ({"vocab_size": 2**40}, "key vocab_size: .* is no size of a model"),
        ({"num_local_experts": 10**6}, "key num_local_experts: 1000000 is no size of a model"),
        ({"model_type": "t5"}, "key model_type: 't5' is no causal language model .*; name the folder of a language"),
        ({"model_type": "qwen2_vl"}, "key model_type: 'qwen2_vl' is no causal language model"),
        ({"num_attention_heads": 0}, "key num_attention_heads: 0 is no size of a model"),
        ({"hidden_size": "many"}, "no readable model configuration"),
        ({"num_attention_heads": 5}, "no readable model configuration"),
        ({"model_type": None}, "no readable model configuration"),
        ({"hidden_act": "nope"}, "the model cannot be loaded"),
        ({"rope_parameters": {"rope_type": "nope"}}, "the model cannot be loaded"),
        ({"hidden_size": 64, "head_dim": 8}, "another shape than config.json says"),
        ({"hidden_size": 2**20, "intermediate_size": 2**22}, "another shape than config.json says"),
        ({"quantization_config": 3}, "key quantization_config: '3' is unknown"),
        ({"quantization_config": {"quant_method": "nope"}}, "key quantization_config: 'nope' is unknown"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification is no language model"),
        ({"transformers_weights": "../other.safetensors"}, "key transformers_weights"),
    ],
)
def test_an_absurd_or_broken_configuration_is_refused(
    settings: dict[str, Any], problem: str, copied: Callable[..., Path]
) -> None:
    with pytest.raises(BadInput, match=problem) as refused:
        load_base(with_settings(copied(), **settings), CPU)
    assert "\n" not in str(refused.value)


def test_what_a_model_may_have_none_of_is_no_absurd_size(copied: Callable[..., Path]) -> None:
    none = {"num_kv_shared_layers": 0, "num_nextn_predict_layers": 0, "num_dense_layers": 0}  # Gemma 4, NemotronH, LFM2
    load_base(with_settings(copied(), **none), CPU)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "generation_config.json: cannot be read as JSON"),
        ('{"eos_token_id": "x"}', "generation_config.json: key eos_token_id: 'x' is no token of this model"),
        ('{"eos_token_id": [1, 320]}', "key eos_token_id: 320 is no token of this model"),
        ('{"eos_token_id": -1}', "key eos_token_id: -1 is no token of this model"),
    ],
)
def test_stop_tokens_that_cannot_be_read_are_not_passed_over(
    text: str, problem: str, copied: Callable[..., Path]
) -> None:
    folder = copied()
    for good in ('{"eos_token_id": [1, 3]}', "{}"):
        (folder / "generation_config.json").write_text(good)
        config_of(folder)
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(BadInput, match=problem):
        load_base(folder, CPU)


def test_every_family_passes_the_checks(model_folder: ModelFolder) -> None:
    for family in CONFIGS:
        assert load_base(model_folder(family), CPU).unused == []
        assert {p.device.type for p in skeleton(config_of(model_folder(family))).parameters()} == {"meta"}


# --- tokenizers ----------------------------------------------------------------------------------------------


def regex_of(settings: dict[str, Any]) -> None:
    split = {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    settings["pre_tokenizer"] = split


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: "",
        lambda text: "{",
        lambda text: "[]",
        lambda text: '{"version": "1.0"}',
        lambda text: "[" * 100_000,
        lambda text: text.replace('"merges": [', '"merges": [["zz", "qq"], '),
        lambda text: text.replace('"pre_tokenizer": {', '"pre_tokenizer": {"type": "None", "x": {', 1) + "}",
    ],
)
def test_a_broken_tokenizer_is_named(edit: Callable[[str], str], copied: Callable[..., Path]) -> None:
    folder = copied()
    text = (folder / "tokenizer.json").read_text()
    assert edit(text) != text
    (folder / "tokenizer.json").write_text(edit(text))
    with pytest.raises(BadInput, match="no usable tokenizer there") as refused:
        load_tokenizer(folder)
    assert "\n" not in str(refused.value)


def test_a_tokenizer_larger_than_the_embedding_is_refused_where_text_can_reach_it(copied: Callable[..., Path]) -> None:
    folder = copied()
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<unused>", special=True)])
    tokenizer.save_pretrained(folder)
    assert AdapterModel(folder, CPU).chat.rows == 320 == len(tokenizer) - 1, (
        "a special token that nothing writes is harmless"
    )

    tokenizer.chat_template = "{{ '<unused>' }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    model = AdapterModel(folder, CPU)
    with pytest.raises(BadInput, match="'<unused>' has the id 320, beyond the model's embedding of 320 rows"):
        model.chat.prompt_ids([{"role": "user", "content": "a"}])

    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<end>", special=True)])
    tokenizer.eos_token = "<end>"
    tokenizer.save_pretrained(folder)
    with pytest.raises(BadInput, match="1 tokens beyond the embedding of 320 rows, first '<end>' with the id 320"):
        AdapterModel(folder, CPU)

    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["hello"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(BadInput, match="1 tokens beyond the embedding of 320 rows, first 'hello' with the id 320"):
        AdapterModel(folder, CPU)


@pytest.mark.parametrize("strange", [320, 10**9, -1])
def test_a_recorded_id_beyond_the_embedding_is_refused(strange: int, make_model: MakeModel) -> None:
    chat = make_model("llama").chat
    asked, answer = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
    prompt = RenderedPrompt(asked, chat.prompt_ids(asked))
    assert response_tokens(chat, prompt, answer, True, record_tokens(chat, prompt.ids, [7, 3], answer)).ids == [7, 3]
    with pytest.raises(BadInput, match=f"a row holds the id {strange}, beyond the model's embedding of 320 rows"):
        response_tokens(chat, prompt, answer, True, record_tokens(chat, prompt.ids, [7, strange, 3], answer))


def test_a_template_that_hides_the_answer_is_refused() -> None:
    hiding = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    with pytest.raises(BadInput, match="does not show what the assistant says"):
        Chat(make_tokenizer(hiding))


# --- an adapter that nobody named ----------------------------------------------------------------------------


def test_an_adapter_is_used_where_it_is_named_and_nowhere_else(
    make_model: MakeModel, copied: Callable[..., Path], tmp_path: Path, model_folder: ModelFolder
) -> None:
    model = make_model("llama")
    stir(model, {"policy": True})
    model.save_role("policy", tmp_path / "adapter")
    assert find_source(tmp_path / "adapter") == (model_folder("llama"), tmp_path / "adapter")

    folder = copied()
    for file in (tmp_path / "adapter").iterdir():
        shutil.copy(file, folder)
    for load in (find_source, config_of, lambda path: load_base(path, CPU)):
        with pytest.raises(BadInput, match="holds a model .* and an adapter .*name the one that is meant"):
            load(folder)

    shutil.copytree(tmp_path / "adapter", copied_again := tmp_path / "again")
    with_settings(copied_again, "adapter_config.json", base_model_name_or_path="nowhere/at-all")
    with pytest.raises(BadInput, match="key base_model_name_or_path: 'nowhere/at-all' is no local model folder"):
        find_source(copied_again)


def test_a_scalar_head_of_another_shape_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model("llama")
    stir(model, {"reward": True})
    model.save_role("reward", tmp_path / "reward")
    file = tmp_path / "reward" / "head.safetensors"
    good = load_tensors(file)
    spoiled = [
        {**good, "weight": torch.zeros(1, 8)},
        {"weight": good["weight"]},
        {**good, "extra": torch.zeros(1)},
        {**good, "weight": torch.full_like(good["weight"], float("nan"))},
    ]
    for tensors in spoiled:
        save_file(tensors, file)
        with pytest.raises(BadInput, match=r"head\.safetensors: (holds|weight holds a number that is not finite)"):
            model.add_head("reward", tmp_path / "reward")
    save_file(good, file)
    model.add_head("reward", tmp_path / "reward")
    with torch.no_grad():
        assert len(model.scores("reward", packed_of(TREES))) > 0
