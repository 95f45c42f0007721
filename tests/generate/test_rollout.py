"""How a policy acts: nothing the model folder brings bends its samples, and what has ended costs nothing more."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SAMPLER, add_stirred
from transformers import GenerationConfig

from align.core.config import Compute, Watch
from align.engine.samples import PromptRow, SampleLogger, prompt_row
from align.generate import local
from align.generate.local import TokenSample, sample_responses
from align.model.adapters import AdapterModel
from align.model.layouts import choose_layout
from align.model.packing import Tree, pack

ModelFolder = Callable[[str], Path]


def prompts(model: AdapterModel, n: int) -> list[list[int]]:
    words = ["hello", "what colour is the sky", "please repeat the words", "sort blue green red"]
    return [model.chat.prompt_ids([{"role": "user", "content": f"{words[i % 4]} {i}"}]) for i in range(n)]


def sampled(model: AdapterModel, n: int, max_new_tokens: int, temperature: float = 1.0) -> list[TokenSample]:
    keys = [("test", i) for i in range(n)]
    rows = sample_responses(
        model, None, prompts(model, n), keys, max_new_tokens=max_new_tokens, temperature=temperature
    )
    return [row[0] for row in rows]


def test_a_models_generation_config_does_not_bend_samples(tmp_path: Path, model_folder: ModelFolder) -> None:
    plain = model_folder("llama")
    bent = tmp_path / "bent"
    shutil.copytree(plain, bent)
    GenerationConfig(
        do_sample=True, repetition_penalty=3.0, no_repeat_ngram_size=1, top_k=2, top_p=0.5, temperature=0.2,
        min_new_tokens=12, suppress_tokens=[5, 6, 7], eos_token_id=1,
    ).save_pretrained(bent)  # fmt: skip
    stacks = [AdapterModel(folder, Compute(device="cpu")) for folder in (plain, bent)]
    one, two = (sampled(model, 6, 20) for model in stacks)
    assert one == two
    greedy = [sampled(model, 6, 20, temperature=0) for model in stacks]
    assert greedy[0] == greedy[1]


def test_samples_have_the_scorers_logprobs(make_model: Callable[..., AdapterModel]) -> None:
    model = make_model("llama")
    add_stirred(model, "policy")
    asked = prompts(model, 4)
    found = sample_responses(model, "policy", asked, [("k", i) for i in range(4)], max_new_tokens=40)
    trees = [Tree(ids, [row[0].ids]) for ids, row in zip(asked, found, strict=True)]
    for packed in pack(trees, 4096, model.layout):
        with model.use("policy"):
            logprob_BT = packed.by_response(model.logprobs(packed)).tolist()
        for row, (tree, _) in zip(logprob_BT, packed.response_index, strict=True):
            own = found[tree][0].logprobs
            assert len(own) == len(found[tree][0].ids) > 0
            assert row[: len(own)] == pytest.approx(own, abs=SAMPLER)


def test_only_unfinished_rows_go_on(make_model: Callable[..., AdapterModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """Responses are those of one long call, and later segments hold the rows that have not ended, no others."""
    model = make_model("llama")
    monkeypatch.setattr(local, "SEGMENT", 1 << 20)
    whole = sampled(model, 24, 64)
    monkeypatch.setattr(local, "SEGMENT", 8)
    sizes: list[int] = []
    generate = model.base.generate

    def counted(**arguments: Any) -> Any:
        sizes.append(len(arguments["input_ids"]))
        return generate(**arguments)

    monkeypatch.setattr(model.base, "generate", counted)
    assert [s.ids for s in sampled(model, 24, 64)] == [s.ids for s in whole]
    lengths = [len(s.ids) - s.ended for s in whole]
    assert len({length // 8 for length in lengths}) > 2, "rows must end in different segments, or nothing is shown"
    assert sizes == [sum(not s.ended or len(s.ids) > 8 * n for s in whole) for n in range(len(sizes))]
    assert sizes[0] == 24 > sizes[-1]


def test_a_watched_prompt_without_room_for_an_answer_is_left_out(make_model: Callable[..., AdapterModel]) -> None:
    model = make_model("gpt2")  # learned positions: a row past its 256 tokens would fail
    rows = [PromptRow([{"role": "user", "content": text}]) for text in ("hello", "sky " * 120)]
    watched = SampleLogger(model, rows, Watch(max_new_tokens=64), 0)
    assert [row["prompt"] for row in watched.rows(None)] == ["hello"]


def test_periodic_samples_leave_every_module_in_the_mode_it_was_in(model_folder: ModelFolder) -> None:
    model = AdapterModel(model_folder("gpt2"), Compute(device="cpu"))
    choose_layout(model)
    model.base.train()
    model.base.transformer.h[0].eval()
    before = [module.training for module in model.base.modules()]
    with model.evaluating():
        assert not any(module.training for module in model.base.modules())
    assert [module.training for module in model.base.modules()] == before


def test_watched_prompts_are_rendered_as_they_were_for_training(
    model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tools and template arguments of a row reach the template, or other prompts would be watched than trained."""
    seen: list[Any] = []
    model = AdapterModel(model_folder("llama"), Compute(device="cpu"))
    render = model.chat.render

    def spied(messages: Any, tools: Any = None, arguments: Any = None, ask: bool = False) -> str:
        seen.append((tools, arguments))
        return render(messages, tools, arguments, ask)

    monkeypatch.setattr(model.chat, "render", spied)
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    row = {"prompt": [{"role": "user", "content": "hi"}], "tools": tools, "template_arguments": {"flag": True}}
    SampleLogger(model, [prompt_row(row)], Watch(max_new_tokens=4), 0)
    assert seen[0] == (tools, {"flag": True})
    assert seen[1:] in ([], [(None, {"flag": True})]), "once more without the tools, to see that they are shown"
