"""What stops or warns a run: numbers that are not finite, rewards of the wrong shape, estimates that disagree."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import CONFIGS, GRADIENT, add_stirred, gradients, relative_l2
from torch import Tensor

from align.core.config import BadInput, Compute, NotFinite
from align.core.hashes import code_hash
from align.core.records import ItemResult
from align.evals.likelihood import tree_logprobs
from align.generate.local import sample_responses
from align.model.adapters import AdapterModel
from align.model.layouts import choose_layout
from align.model.load import load_base
from align.model.packing import PackedBatch, Tree, pack
from align.model.roles import RoleModel
from align.model.tuners.lora import Lora
from align.model.weights import load_tensors
from align.train import guards
from rewards.functions import load_function, rewards_of
from rewards.model import score

TREES = [Tree([5, 9, 30, 31], [[40, 41, 42, 1], [50, 51, 1]]), Tree([7, 8, 9], [[60, 1], [61, 62, 63, 64, 1]])]
REPLY = [[{"role": "assistant", "content": "yes"}]] * 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_called_so_and_not_a_mismatch(bad: float) -> None:
    fine, broken, mask = torch.zeros(1, 2), torch.tensor([[0.0, bad]]), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(NotFinite, match="not finite before any update"):
        guards.same_ratio(broken, fine, mask, "float32")
    with pytest.raises(NotFinite, match="not finite"):
        guards.same_sampler([0.0, bad], [0.0, 0.0], "float32")
    with pytest.raises(NotFinite, match="not finite"):
        guards.same_start(0.0, bad, 0.0, 1.0, "float32")
    guards.same_ratio(broken, fine, torch.tensor([[True, False]]), "float32")  # what is masked does not count


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([1.0], "gave 1 values for 2"), ([1.0, 2.0, 3.0], "gave 3 values for 2"), ([], "gave 0 values for 2"),
        ([1.0, -math.inf], "gave -inf for completion 1"), ([math.nan, 0.0], "gave nan"),
        (None, "gave None instead of a list"), (0.5, "gave 0.5 instead of a list"),
        ("12", "gave '12' instead of a list"), ({"a": 1, "b": 2}, "gave .* instead of a list"),
        ((x for x in (1.0, 2.0)), "gave <generator .* instead of a list"),
        (["1.0", 2.0], "gave '1.0' for completion 0"), ([1.0, True], "gave True for completion 1"),
        ([1.0, [2.0]], r"gave \[2.0\] for completion 1"), ([10**400, 1.0], "gave 1000.*… for completion 0"),
        (torch.tensor([True, False]), r"gave tensor\(True\) for completion 0"),
        (torch.ones(2, 2), r"gave tensor\(\[1., 1.\]\) for completion 0"),
        (numpy.array(["a", "b"]), "gave .*a.* for completion 0"),
    ],
)  # fmt: skip
def test_a_reward_is_one_finite_number_per_completion(values: Any, problem: str) -> None:
    with pytest.raises(BadInput, match=f"^reward function m:f: {problem}.*; a reward function returns a list"):
        rewards_of("m:f", lambda *_, **__: values, REPLY, REPLY, ended=[True, True])


def raising(error: BaseException) -> Callable[..., Any]:
    def function(**_: Any) -> Any:
        raise error

    return function


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raising(ZeroDivisionError("by\nzero")), r"ZeroDivisionError: by zero at test_guards\.py:\d+"),
        (raising(SystemExit(0)), "SystemExit: 0 at"),
        (raising(MemoryError()), "MemoryError at"),
        (lambda samples: samples, "TypeError: .*unexpected keyword argument 'prompts'"),
    ],
)
def test_a_reward_function_that_fails_is_named_in_one_line(function: Any, message: str) -> None:
    with pytest.raises(BadInput, match=f"^reward function m:f: {message}.*; mend it and run the same command again$"):
        rewards_of("m:f", function, REPLY, REPLY, ended=[True, True])
    with pytest.raises(KeyboardInterrupt):
        rewards_of("m:f", raising(KeyboardInterrupt()), REPLY, REPLY)


def test_rewards_come_back_as_numbers() -> None:
    for values in ((1, None), numpy.array([1.0, 2.0]), torch.tensor([1, 2]), [numpy.float32(1), torch.tensor(2.0)]):
        found = rewards_of("m:f", lambda values=values, **_: values, REPLY, REPLY)
        assert found[0] == 1.0 and found[1] in (2.0, None) and type(found[0]) is float
    assert rewards_of("m:f", lambda ended, **_: [1, float(ended[1])], REPLY, REPLY, ended=[True, False]) == [1.0, 0.0]


def test_a_reward_function_cannot_change_what_it_judges() -> None:
    """Many strip or lower a text in place; what is scored, shown and trained on stays what was said."""
    prompts = [[{"role": "user", "content": "Hello"}]]
    spoken = [[{"role": "assistant", "content": " Fine. "}]]

    def rude(prompts: list[Any], completions: list[Any], ended: list[bool]) -> list[float]:
        prompts[0].clear()
        completions[0][0]["content"] = "fine"
        ended.clear()
        return [1.0]

    ended = [True]
    assert rewards_of("m:f", rude, prompts, spoken, ended=ended) == [1.0]
    assert (prompts[0][0]["content"], spoken[0][0]["content"], ended) == ("Hello", " Fine. ", [True])


def test_reward_functions_are_called_as_trl_calls_them() -> None:
    """By keyword: TRL's own examples take completions first, or nothing else by name."""

    def length(completions: list[Any], **columns: Any) -> list[float | None]:
        return [float(len(completion[0]["content"])) for completion in completions]

    def swapped(completions: list[Any], prompts: list[Any], **_: Any) -> list[float | None]:
        return [
            None if prompt == [] else float(len(c[0]["content"]))
            for c, prompt in zip(completions, prompts, strict=True)
        ]

    assert rewards_of("m:f", length, [[], []], REPLY, ended=[True, True]) == [3.0, 3.0]
    assert rewards_of("m:f", swapped, [[], REPLY[0]], REPLY, ended=[True, True]) == [None, 3.0]


def test_a_module_of_the_current_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The console script does not look there by itself; what Python finds elsewhere goes first."""
    folder = str(Path.cwd())
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", folder)])
    (tmp_path / "my_reward_here.py").write_text("def score(completions, **_):\n    return [0.5] * len(completions)\n")
    (tmp_path / "json.py").write_text("def score(completions, **_):\n    return [0.5] * len(completions)\n")
    (tmp_path / "my_broken_reward.py").write_text("1 / 0\n")
    (tmp_path / "my_leaving_reward.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.chdir(tmp_path)
    assert load_function("my_reward_here:score")(prompts=REPLY, completions=REPLY) == [0.5, 0.5]
    for name, message in (
        ("json:score", r"json/__init__\.py has no 'score'"),
        (
            "my_broken_reward:score",
            r"cannot be imported \(ZeroDivisionError: division by zero at my_broken_rew",
        ),
        ("my_leaving_reward:score", r"cannot be imported \(SystemExit: 3"),
        ("my_reward_here:scores", "has no 'scores'"),
    ):
        with pytest.raises(BadInput, match=message):
            load_function(name)


def test_the_function_itself_counts_in_a_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_counted_reward.py").write_text(
        "def score(completions, **_):\n    return [0.5] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert code_hash(load_function("my_counted_reward:score")) != code_hash(load_function("json:dumps"))


@pytest.mark.parametrize("name", ["nothing", ":f", "m:", "no.such.module:f", "math:nothing", "math:pi"])
def test_a_function_that_cannot_be_had_is_named(name: str) -> None:
    with pytest.raises(BadInput, match=name):
        load_function(name)


def kl_of(model: AdapterModel) -> dict[str, Any]:
    """The three estimates on 48 responses of the policy."""
    prompts = [[5, 9, 30 + i] for i in range(24)]
    found = sample_responses(model, "policy", prompts, [(i,) for i in range(24)], max_new_tokens=12, k=2)
    trees = [Tree(prompt, [s.ids for s in row]) for prompt, row in zip(prompts, found, strict=True)]
    return guards.three_kls(model, trees, 1.0, bound=None)


def test_three_estimates_agree_on_the_policys_own_responses(make_model: Callable[..., AdapterModel]) -> None:
    model = make_model("llama")
    add_stirred(model, "policy")
    found = kl_of(model)
    assert found["agree"] and found["exact"] > 0.1


def test_of_one_response_nobody_can_tell_whether_estimates_agree(make_model: Callable[..., AdapterModel]) -> None:
    model = make_model("llama")
    add_stirred(model, "policy")
    for responses in ([[40, 41, 42]], [[40, 41, 42], [40, 41, 42]]):
        assert guards.three_kls(model, [Tree([5, 9], responses)], 1.0, bound=None)["agree"] is None


def test_estimates_that_miss_the_exact_kl_are_told(
    make_model: Callable[..., AdapterModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference that the estimators and the exact sum read differently: what a broken mask would look like."""
    model = make_model("llama")
    add_stirred(model, "policy")
    exact = AdapterModel.exact_kl

    def wrong(self: AdapterModel, packed: PackedBatch, *roles: Any) -> Tensor:
        return exact(self, packed, *roles) + 0.5

    monkeypatch.setattr(AdapterModel, "exact_kl", wrong)
    assert not kl_of(model)["agree"]


def test_gradient_checkpointing_recomputes_and_changes_no_gradient(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    calls = []
    for wanted in (False, True):
        model = AdapterModel(model_folder("llama"), Compute(device="cpu", gradient_checkpointing=wanted))
        choose_layout(model)
        add_stirred(model, "policy")
        counted = 0
        for layer in model.base.model.layers:
            forward = layer.self_attn.forward

            def counting(*args: Any, _forward: Any = forward, **kwargs: Any) -> Any:
                nonlocal counted
                counted += 1
                return _forward(*args, **kwargs)

            monkeypatch.setattr(layer.self_attn, "forward", counting)
        (packed,) = pack(TREES, 1 << 20, model.layout)
        with model.use("policy"):
            model.logprobs(packed).sum().backward()
        found.append(gradients(model, "policy"))
        calls.append(counted)
        assert not any(module.training for module in model.base.modules())
    assert calls == [2, 4], "each of two layers once, and once more in the backward pass"
    assert relative_l2(found[1], found[0]) <= GRADIENT


def test_a_parents_adapter_decides_its_own_shape(tmp_path: Path, make_model: Callable[..., AdapterModel]) -> None:
    model = make_model("llama")
    model.add("policy", adapter=None, tuner=Lora(r=4, alpha=8), trainable=True)
    model.save_role("policy", tmp_path / "adapter")
    fresh = make_model("llama")
    with pytest.raises(BadInput, match="lora: r=8, but training goes on from .* with r=4; leave"):
        fresh.add("policy", adapter=tmp_path / "adapter", tuner=Lora(r=8, alpha=8), trainable=True)
    fresh = make_model("llama")
    fresh.add("policy", adapter=tmp_path / "adapter", tuner=Lora(r=4, alpha=8), trainable=True)
    fresh.add("reference", adapter=tmp_path / "adapter", trainable=False)


def test_a_truncated_weight_file_is_named(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    whole = (model_folder("llama") / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "config.json").write_text((model_folder("llama") / "config.json").read_text())
    with pytest.raises(BadInput, match=r"model\.safetensors: not a whole safetensors file"):
        load_tensors(tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match=r"model\.safetensors: not a whole safetensors file"):
        load_base(tmp_path, Compute(device="cpu"))


def test_code_in_a_model_folder_is_never_run(tmp_path: Path) -> None:
    config = CONFIGS["llama"](vocab_size=64)
    config.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text().replace('"model_type": "llama"', '"model_type": "mine"')
    (tmp_path / "config.json").write_text(text.replace("{", '{"auto_map": {"AutoModelForCausalLM": "mine.Model"},', 1))
    (tmp_path / "mine.py").write_text("raise SystemExit('code from the folder ran')\n")
    with pytest.raises(BadInput, match="no readable model configuration"):
        load_base(tmp_path, Compute(device="cpu"))


def test_a_model_that_is_not_finite_is_found_before_anything_is_measured(model_folder: Callable[[str], Path]) -> None:
    """Whatever made it so: the files were finite."""
    model = AdapterModel(model_folder("llama"), Compute(device="cpu"))
    with torch.no_grad():
        model.base.model.layers[0].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(NotFinite, match="logits are not finite"):
        choose_layout(model)
    with pytest.raises(NotFinite, match="sampling: log-probabilities are not finite"):
        sample_responses(model, None, [[5, 9]], [("k",)], max_new_tokens=2)
    speaker = RoleModel(model, None)
    with pytest.raises(NotFinite, match="log-probabilities are not finite"):
        tree_logprobs(speaker, TREES)
    add_stirred(model, "reward", head=True)
    with pytest.raises(NotFinite, match="the score nan"):
        score(model, "reward", TREES)
    with pytest.raises(ValueError, match="a score of nan is none"):
        ItemResult(suite="s", metric="m", item_id="i", judge="j", score=math.nan, reason=None)
