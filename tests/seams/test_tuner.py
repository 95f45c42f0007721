"""A tuner from outside the package trains, saves, is read again and shares a base with LoRA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EXACT, add_stirred
from fixtures.pairs_run import write_pairs_run
from fixtures.small_trees import TREES, packed_of
from torch import Tensor, nn
from toy_tuner import Scales

from align.core.config import BadInput, Compute, build
from align.core.files import read_jsonl
from align.core.inputs import difference
from align.core.run_record import read_run
from align.model.adapters import AdapterModel
from align.model.sources import find_policy
from align.model.tuners.lora import Lora
from align.train.dpo import DPOConfig, dpo
from align.train.sft import SFTConfig

ModelFolder = Callable[[str], Path]
SCALES = {"kind": "toy_tuner:Scales", "every": 2}
ONE_LAYER = r".*\.1\..*(_proj|c_attn)"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [(f"is the sky blue {n}", "yes thank you", "no maybe") for n in range(6)]
    return write_pairs_run(tmp_path_factory.mktemp("pairs") / "pairs", {"train": rows, "validation": rows[:1]})


def config_of(folder: Path, policy: Path, pairs: Path, **given: Any) -> DPOConfig:
    settings = {
        "run": folder, "policy": policy, "pairs": pairs, "batch": 3, "epochs": 2, "min_rows": 1, "loss": "sigmoid",
        "optim": {"lr": 3e-2}, "watch": {"prompts": 1, "max_new_tokens": 4},
    }  # fmt: skip
    return build(DPOConfig, settings | given, "test")


def logprobs(model: AdapterModel, role: str | None) -> Tensor:
    with model.use(role), torch.no_grad():
        return model.logprobs(packed_of(TREES))


def test_a_tuner_from_elsewhere_trains_a_policy_from_which_training_goes_on(
    pairs: Path, model_folder: ModelFolder, tmp_path: Path
) -> None:
    base = model_folder("llama")
    config = config_of(tmp_path / "first", base, pairs, tuner=SCALES)
    record = dpo(config)
    assert record.resolved["tuner"] == SCALES and "tuner" in record.inputs and dpo(config) == record
    assert any("policy trains" in note for note in record.notes)
    losses = [row["loss"] for row in read_jsonl(tmp_path / "first" / "metrics.jsonl")]
    assert losses[0] == pytest.approx(0.693147, abs=EXACT) and losses[-1] < losses[0] - 1e-3
    source = find_policy(tmp_path / "first")
    assert (source.base, source.adapter) == (base, tmp_path / "first" / "adapter")
    again = dpo(config_of(tmp_path / "second", tmp_path / "first", pairs))  # its reference is the first one's policy
    (first, *_) = read_jsonl(tmp_path / "second" / "metrics.jsonl")
    assert first["loss"] == pytest.approx(0.693147, abs=EXACT) and again.parents["policy"]["stage"] == "dpo"
    for tuner, problem in (({**SCALES, "every": 1}, "every=1, but .* with every=2"), ("lora", "toy_tuner:Scales made")):
        with pytest.raises(BadInput, match=problem):
            dpo(config_of(tmp_path / "third", tmp_path / "first", pairs, tuner=tuner))


class Faulty(Scales):
    """Scales with one fault."""

    fault: str = "none"

    def attach(self, model: Any, role: str, folder: Path | None = None) -> Any:
        if self.fault == "raises":
            raise KeyError(role)
        return super().attach(model, role, folder)

    def activate(self, model: Any, role: str | None, trainable: bool = False) -> None:
        super().activate(model, None if self.fault == "unused" else role, trainable and self.fault != "frozen")
        if self.fault == "unused" and role is not None:
            for factor in self.parameters(model, role).values():
                factor.requires_grad_(trainable)

    def saved_tensors(self, model: Any, role: str) -> dict[str, Tensor]:
        own = super().saved_tensors(model, role)
        ones = {name: torch.ones_like(tensor) for name, tensor in own.items()}
        return {"saves ones": ones, "saves less": dict(list(own.items())[:1])}.get(self.fault, own)

    def load(self, model: Any, role: str, folder: Path, base: Path) -> None:
        if self.fault != "loads nothing":
            super().load(model, role, folder, base)

    def parameters(self, model: Any, role: str) -> dict[str, nn.Parameter]:
        own = super().parameters(model, role)
        first = next(iter(own.values()))
        if self.fault == "a list":
            return list(own.values())  # type: ignore[return-value]
        if self.fault == "a number":
            return {"n": 3.0}  # type: ignore[dict-item]
        if self.fault == "numbered":
            return {0: first}  # type: ignore[dict-item]
        if self.fault == "head":
            return {"head.weight": first}
        spare = {"spare": nn.Parameter(torch.ones(1))} if self.fault == "spare" else {}
        return {} if self.fault == "none of them" else own | spare


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("raises", r"KeyError: 'policy' at test_tuner.py:\d+; mend it"),
        ("none of them", "parameters() names no tensor of the role policy, so nothing would train"),
        ("frozen", "no tensor of the role policy has a gradient: activate() must set requires_grad"),
        ("unused", "no tensor of the role policy has a gradient"),
        ("a list", "parameters() gives a dict of tensors by name; it gave another value"),
        ("a number", "parameters() gives a dict of tensors by name; it gave another value"),
        ("numbered", "parameters() gives a dict of tensors by name; it gave another value"),
        ("head", "head.weight is named as a tensor of the role's head; rename it"),
        ("saves ones", "layers.0.factor is not the same in the role policy and in .*adapter_model.safetensors"),
        ("saves less", "layers.1.factor is not the same in the role policy and in .*adapter_model.safetensors"),
    ],
)
def test_a_tuner_that_would_train_nothing_is_refused_by_name(
    pairs: Path, model_folder: ModelFolder, tmp_path: Path, fault: str, problem: str
) -> None:
    tuner = {"kind": f"{__name__}:Faulty", "fault": fault}
    with pytest.raises(BadInput, match=f"^tuner test_tuner:Faulty: {problem}".replace("()", r"\(\)")):
        dpo(config_of(tmp_path / "run", model_folder("llama"), pairs, tuner=tuner))


class Shared(Scales):
    """Gives every role the same tensors."""

    def attach(self, model: Any, role: str, folder: Path | None = None) -> Any:
        return model if hasattr(model.model.layers[0].mlp, "factors") else super().attach(model, "all", folder)

    def activate(self, model: Any, role: str | None, trainable: bool = False) -> None:
        super().activate(model, role and "all", trainable)

    def parameters(self, model: Any, role: str) -> dict[str, nn.Parameter]:
        return super().parameters(model, "all")


def test_two_roles_of_one_tensor_are_refused(model_folder: ModelFolder) -> None:
    model = AdapterModel(model_folder("llama"), Compute(device="cpu"))
    model.add("policy", adapter=None, tuner=Shared(kind="outside:Shared"), trainable=True)
    with pytest.raises(BadInput, match="tuner outside:Shared: layers.0.factor is one tensor of the roles policy and v"):
        model.add("value", adapter=None, tuner=Shared(kind="outside:Shared"), trainable=True)


def test_a_tuner_that_loads_other_tensors_than_the_files_is_refused(model_folder: ModelFolder, tmp_path: Path) -> None:
    kind = f"{__name__}:Faulty"
    model = AdapterModel(model_folder("llama"), Compute(device="cpu"))
    model.add("policy", adapter=None, tuner=Faulty(kind=kind, fault="loads nothing"), trainable=True)
    with torch.no_grad():
        for factor in model.parameters("policy").values():
            factor += 0.1
    model.save_role("policy", tmp_path / "adapter")
    with pytest.raises(BadInput, match=f"^tuner {kind}: layers.0.factor is not the same in the role value and in"):
        model.add("value", adapter=tmp_path / "adapter", trainable=False)


def test_a_tensor_that_no_forward_pass_uses_is_noted(pairs: Path, model_folder: ModelFolder, tmp_path: Path) -> None:
    tuner = {"kind": f"{__name__}:Faulty", "fault": "spare"}
    record = dpo(config_of(tmp_path / "run", model_folder("llama"), pairs, tuner=tuner, epochs=1))
    assert any("1 of 3 tensors have no gradient, first spare" in note for note in record.notes)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_modules_to_adapt_are_those_of_the_adapter_that_training_goes_on_from(
    model_folder: ModelFolder, tmp_path: Path, family: str
) -> None:
    """Else the run's config would name modules that it does not train."""
    base = model_folder(family)

    def added(adapter: Path | None, **settings: Any) -> AdapterModel:
        model = AdapterModel(base, Compute(device="cpu"))
        model.add("policy", adapter=adapter, tuner=Lora(r=4, **settings), trainable=True)
        return model

    for name, settings in (("all", {}), ("one", {"target_modules": ONE_LAYER})):
        added(None, **settings).save_role("policy", tmp_path / name)
        added(tmp_path / name, **settings)
    with pytest.raises(BadInput, match=r"tuner lora: target_modules=all-linear, but training goes on from .*one with"):
        added(tmp_path / "one")
    with pytest.raises(BadInput, match=r"target_modules=.*, but training goes on from .*all with target_modules=\["):
        added(tmp_path / "all", target_modules=ONE_LAYER)
    with pytest.raises(BadInput, match=r"tuner lora: alpha=8, but training goes on from .* with alpha=32; leave"):
        added(tmp_path / "all", alpha=8)


def test_roles_of_two_tuners_share_a_base_and_stay_apart(model_folder: ModelFolder, tmp_path: Path) -> None:
    model = AdapterModel(model_folder("llama"), Compute(device="cpu"))
    bare = logprobs(model, None)
    model.add("policy", adapter=None, tuner=Scales(kind="toy_tuner:Scales"), trainable=True)
    assert torch.equal(logprobs(model, "policy"), bare), "it starts as the base itself"
    with torch.no_grad():
        for factor in model.parameters("policy").values():
            factor += 0.1 * torch.arange(len(factor)).cos()
    alone = logprobs(model, "policy")
    assert (alone - bare).abs().max() > 1e-3
    add_stirred(model, "reward", trainable=False)
    by_lora = logprobs(model, "reward")
    assert (by_lora - bare).abs().max() > 1e-3 and (by_lora - alone).abs().max() > 1e-3
    assert torch.equal(logprobs(model, "policy"), alone) and torch.equal(logprobs(model, None), bare)
    with model.use("policy"):
        model.logprobs(packed_of(TREES)).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters("policy").values())
    assert all(p.grad is None for p in model.parameters("reward").values())
    model.save_role("policy", tmp_path / "adapter")
    other = AdapterModel(model_folder("llama"), Compute(device="cpu"))
    other.add("policy", adapter=tmp_path / "adapter", trainable=False)
    assert torch.equal(logprobs(other, "policy"), alone)


def test_the_former_key_is_read_and_a_run_that_had_it_is_the_same_run(
    pairs: Path, model_folder: ModelFolder, tmp_path: Path
) -> None:
    def tuner(**given: Any) -> Any:
        return build(SFTConfig, {"run": "r", "model": "m", "data": "d", **given}, "test").tuner

    assert tuner() is None and tuner(lora=None) is None
    assert tuner(lora={"r": 4}) == tuner(tuner={"kind": "lora", "r": 4}) == Lora(r=4) and tuner(tuner="lora") == Lora()
    with pytest.raises(BadInput, match="lora and tuner are two names of one setting"):
        tuner(lora={"r": 4}, tuner="lora")
    config = config_of(tmp_path / "run", model_folder("llama"), pairs, tuner={"kind": "lora", "r": 4}, epochs=1)
    dpo(config)
    record = read_run(tmp_path / "run")
    now = {name: record.resolved.pop(name) for name in ("tuner", "loss")}
    record.resolved |= {"lora": {"r": 4, "alpha": 32, "target_modules": "all-linear"}, "beta": 0.1, "sft_weight": 0.0}
    assert now["tuner"]["r"] == 4 and difference(record, config) is None
    record.resolved["lora"]["r"] = 8
    assert difference(record, config) == "key 'tuner.r' differs from the run in that folder"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("dora", "'dora' is no kind of tuner"),
        ({**SCALES, "evry": 2}, "unknown key 'evry'; did you mean 'every'"),
        ({"kind": "lora", "r": 0}, "tuner lora: key 'r'"),
        ("toy_attention:Added", "a class derived from align.model.tuners.tuner:Tuner is one"),
    ],
)
def test_what_is_no_tuner_is_refused(tmp_path: Path, given: Any, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        config_of(tmp_path, tmp_path, tmp_path, tuner=given)
