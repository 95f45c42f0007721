"""Pairs and candidates become trees: what is counted, what is dropped, at which length, and under which number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tokenizer

from align.core.config import BadInput
from align.core.files import read_jsonl, write_jsonl
from align.core.records import prompt_id
from align.core.run_record import RunRecord
from align.core.runs import Run
from align.data.pairs import PromptPairs, candidate_trees, index_pairs, load_pairs, prompts_hash, total_weight
from align.model.chat import Chat
from align.model.packing import pack

CUT = " responses were cut before they ended: read as written, without a stop token"


@pytest.fixture
def chat() -> Chat:
    return Chat(make_tokenizer())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(RunRecord(id="x", stage="x", status="running", path=str(tmp_path), seed=0, given={}, resolved={}))


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def pair(prompt: str, chosen: str, rejected: str, weight: float = 1.0) -> dict[str, Any]:
    asked = user(prompt)
    return {
        "prompt": asked, "chosen": assistant(chosen), "rejected": assistant(rejected), "votes": [1, 0, 0],
        "weight": weight, "comparison_id": f"{prompt}-{chosen}-{rejected}", "prompt_id": prompt_id(asked),
    }  # fmt: skip


def candidate(prompt: str, *responses: Any) -> dict[str, Any]:
    given = [r if isinstance(r, dict) else {"messages": assistant(r), "origin": "me", "ended": True} for r in responses]
    return {"prompt_id": prompt, "prompt": user(prompt), "responses": given}


def length(chat: Chat, prompt: str, text: str) -> int:
    return len(chat.prompt_ids(user(prompt))) + len(chat.response_ids(user(prompt), assistant(text)))


def candidates(run: Run, chat: Chat, rows: list[dict[str, Any]], context: int | None = None) -> Any:
    write_jsonl(run.path / "candidates.jsonl", rows)
    return candidate_trees(run, run.path, chat, context)


# --- pairs ----------------------------------------------------------------------------------------------------


def loaded(run: Run, chat: Chat, rows: list[dict[str, Any]], context: int | None = None) -> list[PromptPairs]:
    write_jsonl(run.path / "train.jsonl", rows)
    return load_pairs(run, run.path, "train", chat, context, 1)


def test_a_pair_as_long_as_the_context_is_used_and_one_token_more_is_not(run: Run, chat: Chat) -> None:
    rows = [pair("one", "a long answer to it", "no"), pair("two", "a longer answer to it all", "no")]
    fits = length(chat, "one", "a long answer to it")
    assert length(chat, "two", "a longer answer to it all") > fits
    (only,) = loaded(run, chat, rows, fits)
    assert only.prompt_id == rows[0]["prompt_id"]
    assert run.record.dropped == {f"train: longer than the model's {fits} tokens": 1}
    assert [line["comparison_id"] for line in read_jsonl(run.path / "dropped-train.jsonl")] == [
        rows[1]["comparison_id"]
    ]


def test_too_few_pairs_are_refused_with_the_file_and_each_reason_counted(run: Run, chat: Chat) -> None:
    rows = [*(pair(f"p{i}", "same", "same") for i in range(3)), pair("q", "", "no"), pair("r", "yes", "no")]
    write_jsonl(run.path / "test.jsonl", rows)
    with pytest.raises(BadInput) as caught:
        load_pairs(run, run.path, "test", chat, None, 2)
    assert str(caught.value) == (
        f"{run.path}/test.jsonl: 1 of 5 pairs can be used, min_rows asks for 2; dropped: 3 chosen and rejected are the "
        "same tokens, 1 chosen is an empty response"
    )


def test_a_response_that_was_cut_is_not_the_one_that_ended(run: Run, chat: Chat) -> None:
    """The same text with and without its stop token: two responses of one tree, and a pair may hold both."""
    cut = pair("p", "an answer", "no") | {"chosen_ended": False}
    (only,) = loaded(run, chat, [pair("p", "an answer", "no"), cut])
    assert len(only.tree.responses) == 3 and only.chosen == [0, 2] and only.rejected == [1, 1]
    assert only.tree.responses[0] == [*only.tree.responses[2], chat.stop_id]
    assert run.record.notes == ["train: 1 of 3" + CUT]


def test_pairs_of_a_rectangle_are_found_by_response_number(run: Run, chat: Chat) -> None:
    rows = [pair("p", "yes", "no", 0.5), pair("q", "good", "bad", 2.0), pair("p", "yes", "maybe", 1.5)]
    prompts = loaded(run, chat, rows)
    assert total_weight(prompts) == 4.0
    (packed,) = pack([prompt.tree for prompt in prompts], 4096)
    index = index_pairs(packed, prompts)
    assert sorted(index.weight_P.tolist()) == [0.5, 1.5, 2.0]
    for chosen, rejected, weight in zip(*(tensor.tolist() for tensor in index[:3]), strict=True):
        (tree, better), (other, worse) = packed.response_index[chosen], packed.response_index[rejected]
        assert tree == other
        place = next(i for i, row in enumerate(prompts[tree].rows) if row.weight == weight)
        assert (better, worse) == (prompts[tree].chosen[place], prompts[tree].rejected[place])
    lengths = [len(prompts[tree].tree.responses[k]) for tree, k in packed.response_index]
    assert index.n_tokens_B.tolist() == lengths and index.chosen_P.dtype == torch.int64


def test_the_hash_of_prompts_knows_no_order(run: Run, chat: Chat) -> None:
    rows = [pair(name, "yes", "no") for name in "pqr"]
    whole = prompts_hash(loaded(run, chat, rows))
    assert prompts_hash(loaded(run, chat, rows[::-1])) == whole != prompts_hash(loaded(run, chat, rows[:2]))


# --- candidates -----------------------------------------------------------------------------------------------


def test_candidates_keep_their_numbers_whatever_is_dropped_between_them(run: Run, chat: Chat) -> None:
    cut = {"messages": assistant("cut here"), "origin": "you", "ended": False}
    rows = [candidate("p", "one", "two " * 40, "three"), candidate("q", "much " * 60), candidate("r", cut, "four")]
    known, trees = candidates(run, chat, rows, 60)
    assert [(row["prompt_id"], row["response"]) for row in known] == [("p", 0), ("p", 2), ("r", 0), ("r", 1)]
    assert [len(tree.responses) for tree in trees] == [2, 2]
    assert run.record.dropped == {"response: longer than the model's 60 tokens": 2}
    ids = [response for tree in trees for response in tree.responses]
    assert [row["n_tokens"] for row in known] == [len(response) for response in ids]
    assert [(row["origin"], row["ended"]) for row in known] == [("me", True)] * 2 + [("you", False), ("me", True)]
    assert [response[-1] == chat.stop_id for response in ids] == [True, True, False, True]
    assert not any(row["as_sampled"] for row in known)
    assert run.record.notes == ["candidates: 1 of 4" + CUT]


def test_a_candidate_as_long_as_the_context_is_scored(run: Run, chat: Chat) -> None:
    fits = length(chat, "p", "an answer")
    assert len(candidates(run, chat, [candidate("p", "an answer")], fits)[0]) == 1
    assert candidates(run, chat, [candidate("p", "an answer")], fits - 1) == ([], [])


def test_a_prompt_that_cannot_be_used_drops_its_responses_and_no_other_row(run: Run, chat: Chat) -> None:
    odd = candidate("p", "one", "two") | {"template_arguments": {"messages": []}}
    known, trees = candidates(run, chat, [odd, candidate("q", "three")])
    assert [row["prompt_id"] for row in known] == ["q"] and len(trees) == 1
    assert run.record.dropped == {"response: its template argument 'messages' is not free to set": 2}


def test_a_row_that_is_none_is_named_by_its_number(run: Run, chat: Chat) -> None:
    with pytest.raises(BadInput, match=r"candidates\.jsonl:2: not a row of candidates"):
        candidates(run, chat, [candidate("p", "one"), {"prompt_id": "q"}])


def test_a_file_in_the_place_of_a_pairs_run_is_named(run: Run, chat: Chat, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "prefs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(BadInput, match=r"prefs.jsonl: is no pairs run; 'align import .*' and 'align annotate pairs'"):
        load_pairs(run, tmp_path / "prefs.jsonl", "train", chat, 256, 1)
