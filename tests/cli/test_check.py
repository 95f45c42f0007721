"""``align check`` fails where the run would, in one line that names the remedy, and loads no weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import CHATML_OWN, SHAPE, make_tokenizer, save_model
from fixtures.small_trees import MakeModel, ModelFolder, stir
from fixtures.templates import tokenizer_of
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from align.cli import main
from align.model import weights

# DeepSeek-R1-Distill's rule: what stands before </think> is cut from answers, and a prompt ends inside <think>
R1 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' "
    "+ m['content'].split('</think>')[-1] + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
# Gemma 2's rule
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


def demonstrations(path: Path, n: int = 40, system: bool = False, words: int = 1) -> Path:
    head = [{"role": "system", "content": "be kind"}] if system else []
    rows = [
        {
            "prompt": [*head, {"role": "user", "content": f"hello {number}"}],
            "completion": [{"role": "assistant", "content": "the sky is blue " * words}],
        }
        for number in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sft_yaml(folder: Path, model: Path, data: Path, **settings: Any) -> Path:
    config = {"stage": "sft", "run": str(folder / "runs" / "sft"), "model": str(model), "data": str(data)}
    config |= {"epochs": 1, "held_out": 0, "compute": {"device": "cpu"}, "watch": {"prompts": 0}} | settings
    path = folder / "sft.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def told(capsys: pytest.CaptureFixture[str], words: list[str], code: int) -> str:
    capsys.readouterr()
    assert main.run(words) == code
    shown = capsys.readouterr()
    if code:
        lines = [line for line in shown.err.splitlines() if line.startswith("align: ")]
        assert len(lines) == 1
        return lines[0]
    return shown.out


def test_a_file_of_gates_is_sent_to_the_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gates.yaml"
    path.write_text("gates: []\n")
    assert "a file of gates is checked by 'align audit'" in told(capsys, ["check", "--config", str(path)], 2)
    path.write_text("gates: gates.yaml\n")
    assert "say which stage this configures" in told(capsys, ["check", "--config", str(path)], 2)


def check_and_run(capsys: pytest.CaptureFixture[str], path: Path) -> tuple[str, str]:
    """What ``check`` and the run itself refuse a YAML with."""
    checked = told(capsys, ["check", "--config", str(path)], 2)
    return checked, told(capsys, ["sft", "--config", str(path)], 2)


@pytest.fixture
def model(tmp_path: Path, model_folder: ModelFolder) -> Path:
    return Path(shutil.copytree(model_folder("llama"), tmp_path / "model"))


def with_template(model: Path, template: str) -> Path:
    make_tokenizer(template).save_pretrained(model)
    return model


def test_a_whole_exchange_the_rows_and_the_layers_are_shown(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "load_file", lambda *_: pytest.fail("weights were loaded"))
    path = sft_yaml(
        tmp_path, model, demonstrations(tmp_path / "rows.jsonl", system=True), lora={"target_modules": "q_proj"}
    )
    shown = told(capsys, ["check", "--config", str(path)], 0)
    assert "adapter: policy adapts q_proj (2)" in shown
    assert "layout: tree" in shown
    assert "<|im_start|>system\\nBe kind.<|im_end|>" in shown and "<|im_start|>assistant\\nGood day.<|im_end|>" in shown
    assert "an answer ends with '<|im_end|>'" in shown
    assert "data: 32 of 32 first rows of" in shown
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("template", [R1, NO_SYSTEM + CHATML_OWN], ids=["R1-Distill", "Gemma"])
def test_a_template_that_would_drop_every_row_is_refused_with_the_remedy(
    template: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sft_yaml(tmp_path, with_template(model, template), demonstrations(tmp_path / "rows.jsonl", system=True))
    checked, ran = check_and_run(capsys, path)
    assert "0 of 32 first rows can be used under chat_template tokenizer" in checked
    assert "set chat_template: chatml or plain" in checked
    assert "0 of 40 demonstrations can be used" in ran
    for remedy in ("chatml", "plain"):
        assert "32 of 32" in told(capsys, ["check", "--config", str(path), f"chat_template={remedy}"], 0)


@pytest.mark.parametrize("name", ["gemma", "deepseek_r1_distill"])
def test_the_published_templates_behind_these_rules(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tokenizer_of(name)
    folder = save_model(LlamaConfig(**SHAPE, num_hidden_layers=1, vocab_size=400), tmp_path / name, own)
    rows = demonstrations(tmp_path / "rows.jsonl", system=name == "gemma")
    checked = told(capsys, ["check", "--config", str(sft_yaml(tmp_path, folder, rows))], 2)
    assert "0 of 32 first rows" in checked and "set chat_template: chatml or plain" in checked
    if name == "gemma":
        demonstrations(rows)
        assert "32 of 32 first rows" in told(capsys, ["check", "--config", str(tmp_path / "sft.yaml")], 0)


def test_rows_that_do_not_fit_and_too_few_rows_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sft_yaml(tmp_path, model, demonstrations(tmp_path / "rows.jsonl", words=200))
    checked, ran = check_and_run(capsys, path)
    assert "longer than the model's 256 tokens" in checked and "0 of 40 demonstrations" in ran
    demonstrations(tmp_path / "rows.jsonl", n=19)
    shutil.rmtree(tmp_path / "runs")
    checked, ran = check_and_run(capsys, path)
    assert "19 of 19 rows can be used" in checked and "20 are asked for" in checked
    assert "19 of 19 demonstrations" in ran
    demonstrations(tmp_path / "rows.jsonl", n=20)
    assert "20 of 20 rows" in told(capsys, ["check", "--config", str(path)], 0)


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"lora": {"target_modules": "nope,q_proj"}}, "lora: target_modules: nope matches no module"),
        ({"lora": {"target_modules": ["nope"]}}, "lora: target_modules: no adapter can be put on this model"),
        (
            {"lora": {"target_modules": ["lm_head", "q_proj"]}},
            "SFT cannot train an adapter on the output head",
        ),
        ({"chat_template": "nowhere.jinja"}, "chat_template: 'nowhere.jinja' is neither"),
        ({"template_arguments": {"enable_thinking": True}}, "template_arguments.enable_thinking"),
    ],
)
def test_settings_that_stop_a_run_stop_a_check(
    settings: dict[str, Any], refusal: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sft_yaml(tmp_path, model, demonstrations(tmp_path / "rows.jsonl"), **settings)
    for line in check_and_run(capsys, path):
        assert refusal in line


def spoil_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def larger_tokenizer(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["hello"])
    tokenizer.save_pretrained(folder)


def too_deep(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 10**6}))


@pytest.mark.parametrize(
    ("spoil", "refusal"),
    [
        (spoil_weights, "weights lack model.norm.weight"),
        (larger_tokenizer, "1 tokens beyond the embedding of 320 rows"),
        (too_deep, "key num_hidden_layers: 1000000 is no size of a model"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: cannot be read as JSON"),
        (lambda folder: (folder / "tokenizer.json").write_text("[]"), "no usable tokenizer there"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "not a whole safetensors file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors there"),
    ],
)
def test_a_folder_that_stops_a_run_stops_a_check(
    spoil: Any, refusal: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sft_yaml(tmp_path, model, demonstrations(tmp_path / "rows.jsonl"))
    spoil(model)
    for line in check_and_run(capsys, path):
        assert refusal in line and "memory" not in line


def test_a_run_folder_or_a_function_that_stops_a_run_stops_a_check(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sft_yaml(tmp_path, model, demonstrations(tmp_path / "rows.jsonl"), gold="math:nothing")
    for line in check_and_run(capsys, path):
        assert "has no 'nothing'" in line
    path = sft_yaml(tmp_path, model, demonstrations(tmp_path / "rows.jsonl"), run=str(tmp_path))
    for line in check_and_run(capsys, path):
        assert "holds the input" in line
    recipe: dict[str, Any] = {
        "stage": "recipe",
        "runs": str(tmp_path / "all"),
        "model": str(model),
        "gold": "math:nothing",
    }
    recipe |= {"steps": [{"name": "world", "stage": "pocket"}]}
    path.write_text(yaml.safe_dump(recipe))
    assert "has no 'nothing'" in told(capsys, ["check", "--config", str(path)], 2)
    (tmp_path / "all" / "world").mkdir(parents=True)
    path.write_text(yaml.safe_dump({**recipe, "gold": None}))
    assert "holds world and no runs" in told(capsys, ["check", "--config", str(path)], 2)


def test_an_adapter_folder_is_matched_with_its_base(
    make_model: MakeModel, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = make_model("llama")
    stir(policy, {"policy": True})
    policy.save_role("policy", tmp_path / "adapter")
    path = sft_yaml(tmp_path, tmp_path / "adapter", demonstrations(tmp_path / "rows.jsonl"))
    assert "adapter: policy adapts down_proj (2), gate_proj (2)" in told(capsys, ["check", "--config", str(path)], 0)
    for tuner, problem in (({"r": 3}, "r=3"), ({"target_modules": ["q_proj"]}, "target_modules=['q_proj']")):
        given = {"lora": {"r": 4, "alpha": 8, **tuner}}
        for line in check_and_run(capsys, sft_yaml(tmp_path, tmp_path / "adapter", tmp_path / "rows.jsonl", **given)):
            assert f"tuner lora: {problem}, but training goes on from" in line
    path = sft_yaml(tmp_path, tmp_path / "adapter", tmp_path / "rows.jsonl")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, sorted(tensors)[0]: torch.zeros(2, 2)}, file)
    for line in check_and_run(capsys, path):
        assert "has the shape [2, 2] instead of" in line


@pytest.mark.parametrize("has_system", [False, True])
def test_a_recipe_is_checked_on_the_rows_that_it_imports(
    has_system: bool, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = [{"role": "system", "content": "be kind"}] if has_system else []
    rows = [
        {
            "prompt": [*head, {"role": "user", "content": f"hello {number}"}],
            "chosen": [{"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "assistant", "content": "no"}],
        }
        for number in range(3)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with_template(model, NO_SYSTEM + CHATML_OWN)
    recipe = tmp_path / "recipe.yaml"
    words = ["--model", str(model), "--data", str(tmp_path / "pairs.jsonl"), "--out", str(recipe)]
    assert main.run(["init", *words]) == 0
    if has_system:
        line = told(capsys, ["check", "--config", str(recipe)], 2)
        assert "0 of 3 rows can be used under chat_template tokenizer" in line and "set chat_template: chatml" in line
        told(capsys, ["check", "--config", str(recipe), "defaults.chat_template=chatml"], 0)
    else:
        assert "data: 3 of 3 rows" in told(capsys, ["check", "--config", str(recipe)], 0)


def test_a_template_without_rows_to_decide_is_checked_on_an_exchange(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_template(model, R1)
    recipe = {"stage": "recipe", "runs": str(tmp_path / "runs"), "model": str(model)}
    recipe["steps"] = [
        {"name": "world", "stage": "pocket"},
        {"name": "sft", "stage": "sft", "inputs": {"model": "model", "data": "world"}},
    ]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    line = told(capsys, ["check", "--config", str(tmp_path / "recipe.yaml")], 2)
    assert "writes the prompt differently when an answer follows it; set chat_template: chatml or plain" in line


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError("CUDA")],
)
def test_a_lack_of_memory_is_told_as_one(
    error: Exception, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    path = sft_yaml(tmp_path, model, demonstrations(tmp_path / "rows.jsonl"))
    monkeypatch.setattr("align.model.load.AutoModelForCausalLM.from_pretrained", full)
    assert "out of memory; lower compute.max_tokens" in told(capsys, ["sft", "--config", str(path)], 2)
