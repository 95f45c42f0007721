"""Supervised fine-tuning: a budget that changes no gradient, a run that goes on to the bit, experts, and NF4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GRADIENT, add_stirred, gradients, relative_l2, save_model
from fixtures.small_trees import TREES, ModelFolder, packed_of
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Qwen3MoeConfig,
)
from transformers.models.llama.modeling_llama import LlamaModel

from align.core.config import BadInput, Compute, NotFinite, Optim, Watch
from align.core.files import read_jsonl, write_jsonl
from align.core.run_record import RunRecord
from align.core.seeds import stage_seed
from align.engine.metrics_logger import MetricsLogger
from align.model.adapters import AdapterModel
from align.model.tuners.lora import Lora
from align.train.sft import SFTConfig, sft
from align.train.sft_trainer import split

ROWS = 12  # demonstrations that are trained on; two more are kept back
EXPERTS: dict[str, Callable[..., Any]] = {
    "qwen3_moe": lambda **common: Qwen3MoeConfig(
        hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2, max_position_embeddings=256,
        **common,
    ),
    "mixtral": lambda **common: MixtralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=256, **common,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of very different length, so that every batch is mostly padding."""
    file = tmp_path_factory.mktemp("data") / "demonstrations.jsonl"
    words = ["the", "sky", "is", "blue", "and", "the", "answer", "is", "yes", "no", "maybe", "please", "thank", "you"]
    rows = [{"prompt": f"is it {words[i]}", "completion": " ".join(words[: 1 + (5 * i) % 14])} for i in range(ROWS + 2)]
    write_jsonl(file, rows)
    return file


@pytest.fixture
def train(demonstrations: Path, tmp_path: Path) -> Callable[..., RunRecord]:
    """``train(folder, run="name", epochs=2)``: a finished SFT run on a model folder."""

    def run(model: Path, **settings: Any) -> RunRecord:
        given: dict[str, Any] = {
            "run": tmp_path / "runs" / settings.pop("run", "sft"), "model": model, "data": demonstrations, "batch": 4,
            "epochs": 2, "min_rows": 1, "held_out": 2, "optim": Optim(lr=1e-2), "tuner": Lora(r=4, alpha=8),
            "watch": Watch(prompts=2, every=2, max_new_tokens=4), "compute": Compute(device="cpu"),
        }  # fmt: skip
        return sft(SFTConfig(**given | settings))

    return run


def adapter(record: RunRecord) -> dict[str, Tensor]:
    return load_file(Path(record.path) / "adapter" / "adapter_model.safetensors")


def column(record: RunRecord, name: str) -> list[float]:
    return [row[name] for row in read_jsonl(Path(record.path) / "metrics.jsonl")]


def special(tokenizer: Any) -> dict[str, Any]:
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    return {"vocab_size": len(tokenizer), **ids}


# --- the budget ---------------------------------------------------------------------------------------------------


def test_a_budget_bounds_every_forward_pass_and_changes_no_step(
    train: Callable[..., RunRecord], model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, int]] = []
    forward = LlamaModel.forward

    def counting(self: Any, input_ids: Any = None, **arguments: Any) -> Any:
        if torch.is_grad_enabled():
            shapes.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **arguments)

    monkeypatch.setattr(LlamaModel, "forward", counting)
    whole = train(model_folder("llama"), run="whole")
    assert len(shapes) == 6 and {rows for rows, _ in shapes} == {4}, "three steps an epoch, one pass each"
    budget = max(length for _, length in shapes) + 8  # a long row alone, or several short ones
    shapes.clear()
    cut = train(model_folder("llama"), run="cut", compute=Compute(device="cpu", max_tokens=budget))
    assert all(rows * length <= budget for rows, length in shapes)
    assert sum(rows for rows, _ in shapes) == 2 * ROWS and {rows for rows, _ in shapes} >= {1, 2}
    short = train(model_folder("llama"), run="short", compute=Compute(device="cpu", max_tokens=16), epochs=1)
    assert any("rows are longer than compute.max_tokens: each is computed alone" in note for note in short.notes)
    assert not any("longer than compute.max_tokens" in note for note in cut.notes)
    for name in ("loss", "grad_norm", "lr"):
        assert column(cut, name) == pytest.approx(column(whole, name), rel=1e-4)
    start, end, other = column(whole, "loss")[0], adapter(whole), adapter(cut)
    assert column(whole, "loss")[-1] < start
    difference = sum(float(((end[name] - other[name]) ** 2).sum()) for name in end) ** 0.5
    assert difference <= 1e-3 * sum(float((tensor**2).sum()) for tensor in end.values()) ** 0.5


def test_parts_hold_every_token_once_and_no_needless_padding() -> None:
    lengths = [3, 9, 1, 5, 5]
    ids_RL = torch.zeros(5, 9, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids_RL[row, :length] = torch.arange(10 * row + 1, 10 * row + 1 + length)
    inputs = {"input_ids": ids_RL, "attention_mask": (ids_RL > 0).long(), "labels": ids_RL.clone()}
    assert split(inputs, 45)[0].keys() == inputs.keys() and len(split(inputs, 45)) == 1
    parts = split(inputs, 10)
    assert [tuple(part["input_ids"].shape) for part in parts] == [(1, 9), (2, 5), (2, 3)]
    seen = torch.cat([part["input_ids"][part["attention_mask"] > 0] for part in parts])
    assert sorted(seen.tolist()) == sorted(ids_RL[ids_RL > 0].tolist())
    assert [tuple(part["input_ids"].shape) for part in split(inputs, 4)][0] == (1, 9), "a row is never cut"


# --- going on -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dropping(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """GPT-2 with its dropout: what it computes in training depends on the random state."""
    config = GPT2Config(n_embd=32, n_head=4, n_layer=2, n_positions=256, initializer_range=0.15, **special(tokenizer))
    assert config.resid_pdrop > 0
    return save_model(config, tmp_path_factory.mktemp("models") / "gpt2", tokenizer)


def test_an_interrupted_run_ends_in_the_bits_of_the_uninterrupted_one(
    train: Callable[..., RunRecord], dropping: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after every one of its steps: within an epoch, at an epoch's end, and before the first checkpoint."""
    settings = {"checkpoint_every": 1, "optim": Optim(lr=1e-2, schedule="cosine", warmup=0.3, weight_decay=0.1)}
    whole = train(dropping, run="whole", **settings)
    samples = read_jsonl(Path(whole.path) / "samples.jsonl")
    log = MetricsLogger.log
    for stop in (1, 2, 3, 4, 6):

        def failing(self: MetricsLogger, step: int, *args: Any, stop: int = stop) -> None:
            if step == stop:
                raise KeyboardInterrupt
            log(self, step, *args)

        with monkeypatch.context() as patch:
            patch.setattr(MetricsLogger, "log", failing)
            with pytest.raises(KeyboardInterrupt):
                train(dropping, run=f"stopped-{stop}", **settings)
        seen: list[int] = []

        def counting(self: MetricsLogger, step: int, *args: Any, seen: list[int] = seen) -> None:
            seen.append(step)
            log(self, step, *args)

        with monkeypatch.context() as patch:
            patch.setattr(MetricsLogger, "log", counting)
            resumed = train(dropping, run=f"stopped-{stop}", **settings)
        assert seen == list(range(stop, 7)), "what was saved is not done again"
        assert resumed.artefact == whole.artefact
        for name in ("step", "loss", "lr", "grad_norm"):
            assert column(resumed, name) == column(whole, name)
        assert read_jsonl(Path(resumed.path) / "samples.jsonl") == samples
        assert resumed.notes == whole.notes and resumed.headline["loss"] == whole.headline["loss"]
    other = train(dropping, run="other", **settings | {"seed": 1})
    assert column(other, "loss") != column(whole, "loss")


def test_a_loss_that_is_not_finite_ends_the_run(train: Callable[..., RunRecord], model_folder: ModelFolder) -> None:
    """The trainer's own log would put the average of the losses before it in its place."""
    with pytest.raises(NotFinite, match="step [0-9]+: loss is (nan|inf)"):
        optim = Optim(warmup=0, max_grad_norm=1e30).model_copy(update={"lr": 1e30})  # more than a config allows
        train(model_folder("llama"), optim=optim, watch=Watch(prompts=0))


# --- mixtures of experts ------------------------------------------------------------------------------------------


def mean_nll(folder: Path, demonstrations: Path) -> float:
    """Of the completions' tokens under the model folder's own forward, row by row."""
    model = AdapterModel(folder, Compute(device="cpu"))
    found: list[Tensor] = []
    for row in read_jsonl(demonstrations)[2:]:
        messages = [{"role": "user", "content": row["prompt"]}]
        prompt = model.chat.prompt_ids(messages)
        response = model.chat.response_ids(messages, [{"role": "assistant", "content": row["completion"]}])
        with torch.no_grad():
            logits = model.base(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        found.append(-logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0])
    return float(torch.cat(found).mean())


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("family", EXPERTS)
def test_a_mixture_of_experts_learns_and_writes(
    family: str, asks: bool, train: Callable[..., RunRecord], demonstrations: Path, tmp_path: Path, tokenizer: Any
) -> None:
    """Also one whose own config asks for its routers' logits; the loss is that of the tokens alone."""
    config = EXPERTS[family](output_router_logits=asks, **special(tokenizer))
    folder = save_model(config, tmp_path / family, tokenizer)
    record = train(folder, batch=ROWS, epochs=4)
    losses = column(record, "loss")
    assert losses[0] == pytest.approx(mean_nll(folder, demonstrations), rel=1e-5) and losses[-1] < losses[0]
    assert record.headline["greedy_ended"] is not None
    looks = read_jsonl(Path(record.path) / "samples.jsonl")
    assert [row["step"] for row in looks] == [0, 0, 2, 2, 4, 4] and all(row["response"] for row in looks)


# --- NF4 ----------------------------------------------------------------------------------------------------------


def test_an_adapter_on_an_nf4_base_is_trained_and_saved_in_fp32(
    train: Callable[..., RunRecord], tmp_path: Path, tokenizer: Any
) -> None:
    """In bf16 a step of 2e-4 is less than the least difference at most entries of lora_A, which then never move."""
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        tie_word_embeddings=False, **special(tokenizer),
    )  # fmt: skip
    folder = save_model(config, tmp_path / "llama", tokenizer)
    compute = Compute(device="cpu", quantization="nf4", dtype="bfloat16")
    record = train(folder, compute=compute, optim=Optim(lr=2e-4))
    torch.manual_seed(stage_seed(0, "sft"))
    fresh = AdapterModel(folder, compute)
    fresh.add("policy", adapter=None, tuner=Lora(r=4, alpha=8), trainable=True)
    fresh.save_role("policy", tmp_path / "fresh")
    before, after = load_file(tmp_path / "fresh" / "adapter_model.safetensors"), adapter(record)
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    names = [name for name in after if "lora_A" in name]
    moved = sum(int((after[name] != before[name]).sum()) for name in names)
    assert moved >= 0.99 * sum(after[name].numel() for name in names) > 0


def test_a_look_at_an_nf4_base_takes_no_gradient_away(tmp_path: Path, tokenizer: Any) -> None:
    """For some CPUs bitsandbytes repacks 4-bit weights at the first look; its product with those has no gradient."""
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        tie_word_embeddings=False, **special(tokenizer),
    )  # fmt: skip
    model = AdapterModel(save_model(config, tmp_path / "llama", tokenizer), Compute(device="cpu", quantization="nf4"))
    add_stirred(model, "policy")
    found = []
    for _ in range(2):
        with model.use("policy"):
            model.logprobs(packed_of(TREES)).sum().backward()
        found.append(gradients(model, "policy"))
        for parameter in model.parameters("policy").values():
            parameter.grad = None
        with torch.no_grad(), model.use("policy"):
            model.logprobs(packed_of(TREES))
    assert relative_l2(found[1], found[0]) <= GRADIENT


@pytest.fixture
def stored(tmp_path: Path, tokenizer: Any) -> Callable[[dict[str, Any]], Path]:
    """``stored({"load_in_4bit": True, ...})``: a folder whose weights lie there quantised."""

    def save(settings: dict[str, Any]) -> Path:
        config = LlamaConfig(
            hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            tie_word_embeddings=False, **special(tokenizer),
        )  # fmt: skip
        folder = save_model(config, tmp_path / "plain", tokenizer)
        quantised = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=BitsAndBytesConfig(**settings), device_map={"": "cpu"}
        )
        quantised.save_pretrained(tmp_path / "stored")
        tokenizer.save_pretrained(tmp_path / "stored")
        return tmp_path / "stored"

    return save


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}


def test_weights_that_are_stored_quantised_are_used_where_the_config_says_so(
    stored: Callable[..., Path], train: Callable[..., RunRecord]
) -> None:
    folder = stored(NF4)
    record = train(folder, compute=Compute(device="cpu", quantization="nf4", dtype="bfloat16"))
    assert f"the weights of {folder} are stored quantised (nf4) and used as they are" in record.notes
    for asked in ("none", "int8"):
        with pytest.raises(BadInput, match=rf"stored quantised \(nf4\).* is '{asked}'; set compute.quantization: nf4"):
            train(folder, run=asked, compute=Compute(device="cpu", quantization=asked))


def test_a_quantisation_without_a_word_of_its_own_is_told(stored: Callable[..., Path]) -> None:
    folder = stored(NF4 | {"bnb_4bit_quant_type": "fp4"})
    with pytest.raises(BadInput, match=r"stored quantised \(fp4\).* is 'nf4'; set compute.quantization: none"):
        AdapterModel(folder, Compute(device="cpu", quantization="nf4"))
    model = AdapterModel(folder, Compute(device="cpu", dtype="bfloat16"))
    assert model.facts() == [f"the weights of {folder} are stored quantised (fp4) and used as they are"]
