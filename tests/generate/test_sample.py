"""The `sample` and `score` stages: what is dropped, what a response depends on, and that a finished run stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from conftest import EXACT, add_stirred
from safetensors.torch import load_file

from align.core.config import BadInput, Compute
from align.core.files import write_json, write_jsonl
from align.core.records import Comparison, prompt_id
from align.generate.prompts import read_prompts
from align.generate.run import SampleConfig, sample
from align.model.adapters import AdapterModel
from align.model.packing import Tree
from align.model.sources import find_source
from rewards.model import score as plain_score
from rewards.score import ScoreConfig, score

ModelFolder = Callable[[str], Path]


def prompts_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    write_jsonl(folder / "prompts.jsonl", rows)
    return folder / "prompts.jsonl"


def some_prompts() -> list[dict[str, Any]]:
    words = ["hello", "what colour is the sky", "please repeat the words", "yes", "sort blue green red"]
    return [{"prompt": word, "family": f"f{i}", "split": "train" if i % 2 else "test"} for i, word in enumerate(words)]


def run_sample(folder: Path, model: Path, prompts: Path, **changes: Any) -> list[dict[str, Any]]:
    record = sample(SampleConfig(run=folder, policy=model, prompts=prompts, **{"max_new_tokens": 8, **changes}))
    assert record.status == "finished"
    return [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]


def reward_run(folder: Path, base: Path) -> Path:
    """A finished reward run with a random adapter and head."""
    model = AdapterModel(base, Compute(device="cpu"))
    add_stirred(model, "reward", head=True, seed=3)
    model.save_role("reward", folder / "adapter")
    record = {"id": "reward-x", "stage": "reward", "status": "finished", "path": str(folder), "seed": 0}
    write_json(folder / "run.json", record | {"given": {}, "resolved": {}})
    return folder


def test_samples_do_not_depend_on_their_batch(tmp_path: Path, model_folder: ModelFolder) -> None:
    prompts = prompts_file(tmp_path, some_prompts())
    model = model_folder("llama")
    wide = run_sample(tmp_path / "wide", model, prompts, k=3, compute=Compute(device="cpu", max_tokens=4096))
    narrow = run_sample(tmp_path / "narrow", model, prompts, k=3, compute=Compute(device="cpu", max_tokens=16))
    assert wide == narrow
    other = run_sample(tmp_path / "other", model, prompts, k=3, seed=1)
    assert texts(other) != texts(wide)
    assert len({text for row in texts(wide) for text in row}) > 5


def test_a_response_is_seeded_by_its_prompt_alone(tmp_path: Path, model_folder: ModelFolder) -> None:
    """With every token as likely only the noise decides: it differs between prompts and not between files."""
    model = AdapterModel(model_folder("llama"), Compute(device="cpu"))
    torch.nn.init.zeros_(model.base.get_output_embeddings().weight)
    model.base.save_pretrained(tmp_path / "uniform")
    model.tokenizer.save_pretrained(tmp_path / "uniform")
    rows = some_prompts()
    found = texts(run_sample(tmp_path / "all", tmp_path / "uniform", prompts_file(tmp_path, rows), k=2))
    assert len({text for row in found for text in row}) == 10
    fewer = prompts_file(tmp_path / "fewer", rows[:0:-1])
    assert texts(run_sample(tmp_path / "some", tmp_path / "uniform", fewer, k=2)) == found[:0:-1]


def texts(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [[response["messages"][0]["content"] for response in row["responses"]] for row in rows]


def test_candidates_are_what_a_comparison_is_made_of(tmp_path: Path, model_folder: ModelFolder) -> None:
    rows = run_sample(tmp_path / "run", model_folder("llama"), prompts_file(tmp_path, some_prompts()), k=2)
    for row in rows:
        assert row["prompt_id"] == prompt_id(row["prompt"])
        assert all(isinstance(response["ended"], bool) for response in row["responses"])
        if len(row["responses"]) >= 2:
            stripped = [{"messages": r["messages"], "origin": r["origin"]} for r in row["responses"]]
            assert (
                Comparison.model_validate({"prompt": row["prompt"], "responses": stripped}).prompt_id
                == row["prompt_id"]
            )
    assert [row["family"] for row in rows] == ["f0", "f1", "f2", "f3", "f4"]


def test_too_long_and_repeated_prompts_are_dropped_and_counted(tmp_path: Path, model_folder: ModelFolder) -> None:
    rows = [*some_prompts(), {"prompt": "sky " * 300}, {"prompt": "hello"}]
    record = sample(
        SampleConfig(
            run=tmp_path / "run",
            policy=model_folder("llama"),
            prompts=prompts_file(tmp_path, rows),
            k=2,
            max_new_tokens=4,
        )
    )
    assert record.headline["prompts"] == 5
    assert record.dropped["repeated prompt"] == 1
    assert record.dropped["prompt leaves no room for 4 new tokens in a context of 256"] == 1
    assert record.headline["ended"]["n"] == 10


def test_split_limit_and_their_errors(tmp_path: Path, model_folder: ModelFolder) -> None:
    prompts = prompts_file(tmp_path / "world", some_prompts())
    rows = run_sample(tmp_path / "run", model_folder("llama"), tmp_path / "world", k=1, split="train", limit=1)
    assert [row["family"] for row in rows] == ["f1"]
    with pytest.raises(BadInput, match="no prompts of split 'dev' .*test, train"):
        run_sample(tmp_path / "none", model_folder("llama"), prompts, split="dev")
    with pytest.raises(BadInput, match="temperature"):
        run_sample(tmp_path / "greedy", model_folder("llama"), prompts, temperature=0, k=2)
    bad = prompts_file(tmp_path / "bad", [{"prompt": "fine"}, {"prompt": 3}])
    with pytest.raises(BadInput, match="prompts.jsonl: row 2: prompt is neither text nor messages"):
        run_sample(tmp_path / "bad-run", model_folder("llama"), bad)


def test_finished_run_is_not_written_again(tmp_path: Path, model_folder: ModelFolder) -> None:
    prompts = prompts_file(tmp_path, some_prompts())
    run_sample(tmp_path / "run", model_folder("llama"), prompts, k=1)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    run_sample(tmp_path / "run", model_folder("llama"), prompts, k=1)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before
    with pytest.raises(BadInput, match="key 'k' differs"):
        run_sample(tmp_path / "run", model_folder("llama"), prompts, k=2)


def test_scores_are_the_head_on_the_embeddings(tmp_path: Path, model_folder: ModelFolder) -> None:
    base = model_folder("llama")
    candidates = run_sample(tmp_path / "candidates", base, prompts_file(tmp_path, some_prompts()), k=3)
    reward = reward_run(tmp_path / "reward", base)
    record = score(ScoreConfig(run=tmp_path / "scores", candidates=tmp_path / "candidates", reward=reward))
    table = pyarrow.parquet.read_table(tmp_path / "scores" / "scores.parquet").to_pylist()
    embeddings_BD = load_file(tmp_path / "scores" / "embeddings.safetensors")["embeddings"]
    head = load_file(reward / "adapter" / "head.safetensors")
    scores_B = torch.tensor([row["score"] for row in table])
    assert embeddings_BD.dtype == torch.float32 and record.headline["responses"] == len(table) == len(embeddings_BD)
    assert float(scores_B.std()) > 0.01
    torch.testing.assert_close(embeddings_BD @ head["weight"][0] + head["bias"], scores_B, atol=1e-5, rtol=0)

    model = AdapterModel(base, Compute(device="cpu"))
    model.add("reward", adapter=reward / "adapter", trainable=False)
    model.add_head("reward", reward / "adapter")
    alone = iter(table)
    for row in candidates:
        for index, response in enumerate(row["responses"]):
            ids = response["tokens"]["ids"]  # a cut response is scored where it was cut
            assert (ids[-1] in model.chat.stop_ids(model.base)) == response["ended"]
            ((value,),) = plain_score(model, "reward", [Tree(model.chat.prompt_ids(row["prompt"]), [ids])])
            found = next(alone)
            assert (found["prompt_id"], found["response"]) == (row["prompt_id"], index)
            assert (found["n_tokens"], found["ended"], found["as_sampled"]) == (len(ids), response["ended"], True)
            assert abs(found["score"] - value) < 10 * EXACT


def test_a_reward_model_is_no_policy(tmp_path: Path, model_folder: ModelFolder) -> None:
    """Neither its run nor its adapter writes answers; its scores are for `score`."""
    judge = reward_run(tmp_path / "judge", model_folder("llama"))
    prompts = prompts_file(tmp_path, some_prompts())
    for number, policy in enumerate((judge, judge / "adapter")):
        with pytest.raises(BadInput, match="a reward run is no policy; name an sft, dpo or ppo run"):
            run_sample(tmp_path / f"run-{number}", policy, prompts, k=1)
    assert find_source(judge).adapter == judge / "adapter"


def test_every_column_of_a_prompt_is_read_or_named(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    row = {"prompt": "hello", "system": "Be brief.", "tools": json.dumps(tools), "documents": ["x"]}
    notes: list[str] = []
    file = prompts_file(tmp_path, [row | {"chat_template_kwargs": {"enable_thinking": False}}])
    (prompt,) = read_prompts(file, note=notes.append)
    assert [message["content"] for message in prompt.messages] == ["Be brief.", "hello"]
    assert (prompt.tools, prompt.arguments) == (tools, {"enable_thinking": False})
    assert notes == [f"{file}: columns that are not read, with how many rows have them: 'documents' (1)"]
    assert read_prompts(prompts_file(tmp_path, [{"prompt": "\n\nHuman: hello\n\nAssistant:"}]))[0].messages == [
        {"role": "user", "content": "hello"}
    ]


@pytest.mark.parametrize(
    ("row", "notes"),
    [
        ('{"prompt": "a", "images": ["x.png"]}', "row 1: holds 'images', and only text is read here"),
        ('{"prompt": "a", "prompt": "b"}', "prompts.jsonl:1: .*key 'prompt' is given twice"),
        ('{"messages": [{"role": "user", "content": "a"}]}', r"row 1: no 'prompt' \(it holds 'messages'\)"),
    ],
)
def test_a_prompt_that_is_not_what_it_says_is_refused(row: str, notes: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(row + "\n", encoding="utf-8")
    with pytest.raises(BadInput, match=notes):
        read_prompts(tmp_path)
