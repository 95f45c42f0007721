"""What a reward is: scores with a known zero, and the price of a response that was cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures.chat_families import token_ids
from fixtures.pairs_run import write_pairs_run
from fixtures.small_trees import ModelFolder

from align.cli import main
from align.core.config import BadInput, Optim, Watch
from align.core.files import write_jsonl
from align.core.hashes import code_hash
from align.core.records import prompt_id
from align.core.run_record import RunRecord, read_run
from align.core.runs import Run
from align.generate.local import TokenSample
from align.generate.sampler import Sample
from align.model.open import open_models
from align.train.ppo import PPOConfig, act, ppo
from align.train.rollouts import load_prompts, score_samples
from rewards.functions import load_function
from rewards.run import RewardConfig, reward
from rewards.score import ScoreConfig, score

PROMPTS = [f"is the sky blue {i}" for i in range(12)]
CENTRED = 1e-5  # |mean score|, fp32


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [(prompt, "yes thank you", "no maybe") for prompt in PROMPTS]
    test = [(f"{prompt} today", "yes", "no") for prompt in PROMPTS]
    return write_pairs_run(tmp_path_factory.mktemp("pairs") / "pairs", {"train": rows, "test": test})


def candidates(path: Path, responses: list[str]) -> Path:
    rows = []
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        answers = [{"messages": [{"role": "assistant", "content": text}]} for text in responses]
        rows.append({"prompt_id": prompt_id(messages), "prompt": messages, "responses": answers})
    write_jsonl(path, rows)
    return path


# --- where the score's zero lies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("centred_on", ["candidates", "pairs"])
def test_scores_average_zero_on_what_they_are_centred_on(
    centred_on: str, pairs: Path, model_folder: ModelFolder, tmp_path: Path
) -> None:
    """On the policy's own samples where they are given, else on the responses of the training pairs."""
    on = {
        "candidates": candidates(tmp_path / "candidates.jsonl", ["hello world", "green red", "the answer is maybe"]),
        "pairs": candidates(tmp_path / "pairs.jsonl", ["yes thank you", "no maybe"]),
    }
    given = {"candidates": on["candidates"]} if centred_on == "candidates" else {}
    config = RewardConfig(
        run=tmp_path / "reward", pairs=pairs, policy=model_folder("llama"), batch=4, epochs=1, min_rows=1,
        optim=Optim(lr=1e-2), **given,
    )  # fmt: skip
    record = reward(config)
    means = {
        name: score(ScoreConfig(run=tmp_path / f"score-{name}", candidates=path, reward=tmp_path / "reward"))
        for name, path in on.items()
    }
    own, other = means.pop(centred_on).headline["score"], means.popitem()[1].headline["score"]
    assert abs(own["mean"]) <= CENTRED and own["sd"] > 0.01
    assert abs(other["mean"]) > 100 * CENTRED, "scores that are all zero would prove nothing"
    assert record.headline["centred_on"] == {"what": centred_on, "n": own["n"]}


# --- what a cut response costs ------------------------------------------------------------------------------------


def flat(prompts: Any, completions: Any, **_: Any) -> list[float]:
    return [0.25] * len(completions)


@pytest.mark.parametrize(("given", "penalty"), [({}, 1.0), ({"missing_eos_penalty": 0.4}, 0.4)])
def test_a_cut_response_loses_the_penalty(
    given: dict[str, float], penalty: float, pairs: Path, model_folder: ModelFolder, tmp_path: Path
) -> None:
    """TRL's ``missing_eos_penalty``, also its recipe's 1.0: taken off the score where no end was written."""
    config = PPOConfig(
        run=tmp_path / "ppo", policy=model_folder("llama"), pairs=pairs, functions=[f"{__name__}:flat"], batch=2,
        samples=2, max_new_tokens=4, **given,
    )  # fmt: skip
    record = RunRecord(id="x", stage="ppo", status="running", path=str(tmp_path), seed=0, given={}, resolved={})
    run = Run(record)
    model = open_models(run, config, config.policy, config.roles)
    prompts = load_prompts(run, model, pairs, config.max_new_tokens)
    message = {"role": "assistant", "content": "yes"}
    ended = Sample(message, True, [30, model.chat.stop_id], [-1.0, -1.0])
    cut = Sample(message, False, [30, 31, 32, 33], [-1.0] * 4)
    scored = score_samples(
        prompts[:2], [[ended, cut], [cut, ended]], config.all_rewards.texts, has_roles=False,
        missing_eos_penalty=config.missing_eos_penalty, gold=None,
    )  # fmt: skip
    assert scored.scores == [[0.25, 0.25 - penalty], [0.25 - penalty, 0.25]]


heard: list[Any] = []


def listening(prompts: Any, completions: Any, **_: Any) -> list[float]:
    heard.extend(completions)
    return [float("yes" in completion[-1]["content"]) for completion in completions]


def test_reward_functions_and_gold_read_what_the_reader_sees(
    pairs: Path, model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wish in the reasoning is no answer: content and reasoning come apart, without the stop token."""
    config = PPOConfig(
        run=tmp_path / "ppo", policy=model_folder("llama"), pairs=pairs, functions=[f"{__name__}:listening"], batch=1,
        samples=2, max_new_tokens=32,
    )  # fmt: skip
    record = RunRecord(id="x", stage="ppo", status="running", path=str(tmp_path), seed=0, given={}, resolved={})
    run = Run(record)
    model = open_models(run, config, config.policy, config.roles)
    prompts = load_prompts(run, model, pairs, config.max_new_tokens)
    tokenizer, stop = model.chat.tokenizer, model.chat.stop_id
    written = [[*token_ids(tokenizer, text), stop] for text in ("<think>yes</think>no", "<think>no</think>yes")]
    heard.clear()
    samples = [TokenSample(ids, True, [-1.0] * len(ids)) for ids in written]
    monkeypatch.setattr("align.generate.local.sample_responses", lambda *_, **__: [samples])
    scored = score_samples(
        prompts[:1], act(config, model, 1, prompts[:1]), config.all_rewards.texts, has_roles=False,
        missing_eos_penalty=1.0,
        gold=listening,
    )  # fmt: skip
    assert scored.scores == scored.gold == [[0.0, 1.0]]
    parts = [("no", "yes"), ("yes", "no")]
    expected = [[{"role": "assistant", "content": c, "reasoning_content": r}] for c, r in parts]
    assert heard == [*expected, *expected]  # once each by the function and by gold


def test_another_reward_function_is_another_run(
    pairs: Path, tmp_path: Path, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code is an input: a finished run is not taken for one that another reward would have trained."""
    file = tmp_path / "my_changing_reward.py"
    file.write_text("def score(completions, **_):\n    return [1.0] * len(completions)\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = PPOConfig(
        run=tmp_path / "runs" / "ppo", policy=model_folder("llama"), pairs=pairs, batch=1,
        functions=["my_changing_reward:score"], samples=1, max_new_tokens=2, iterations=1, kl_prompts=1,
        watch=Watch(prompts=0),
    )  # fmt: skip
    first = ppo(config)
    assert ppo(config) == first
    file.write_text("def score(completions, **_):\n    return [2.0] * len(completions)\n")
    with pytest.raises(BadInput, match="input 'functions' has other content"):
        ppo(config)


def test_the_modules_beside_a_function_that_it_imports_are_part_of_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_outer.py").write_text(
        "import json\nfrom my_inner import worth\n\ndef score(**_):\n    return [worth]\n"
    )
    (tmp_path / "my_inner.py").write_text("from my_innermost import worth\n")
    (tmp_path / "my_innermost.py").write_text("worth = 1.0\n")
    (tmp_path / "my_other.py").write_text("worth = 3.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = code_hash(load_function("my_outer:score"))
    (tmp_path / "my_other.py").write_text("worth = 4.0\n")
    assert code_hash(load_function("my_outer:score")) == before
    (tmp_path / "my_innermost.py").write_text("worth = 1.0\n\ndef never():\n    import my_other\n")
    (tmp_path / "my_other.py").write_text("this is no Python\n")
    assert code_hash(load_function("my_outer:score")) != before, (
        "what might be imported counts, and need not be readable"
    )
    (tmp_path / "my_innermost.py").write_text("worth = 2.0\n")
    assert code_hash(load_function("my_outer:score")) != before


def leaving(**_: Any) -> None:
    raise SystemExit(0)


def test_a_run_whose_reward_function_leaves_has_not_passed(
    pairs: Path, model_folder: ModelFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"pairs={pairs}", f"policy={model_folder('llama')}", "batch=2", "max_new_tokens=2", "iterations=1"]
    assert main.run(["ppo", f"run={tmp_path / 'runs' / 'ppo'}", *words, f"functions=[{__name__}:leaving]"]) == 2
    (problem,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("align: "))
    assert problem.startswith(f"align: reward function {__name__}:leaving: SystemExit: 0 at")
    assert read_run(tmp_path / "runs" / "ppo").status == "failed"
