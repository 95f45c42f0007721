"""Token ids travel with candidates and are what is scored; where text is rendered again, that is said or refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_tokenizer
from fixtures.chat_families import family_tokenizer, token_ids, writer
from fixtures.judging import said

from align.core.config import BadInput, Compute, Watch
from align.core.files import read_jsonl, write_jsonl
from align.core.records import Comparison, Message, Tokens
from align.core.run_record import RunRecord
from align.core.runs import Run
from align.data.pairs import candidate_trees, load_pairs
from align.data.tokens import RenderedPrompt, record_tokens, response_tokens
from align.engine.samples import PromptRow, SampleLogger
from align.evals.generation import Answer, Answered, _reward_tree
from align.evals.items import Item
from align.generate.local import TokenSample
from align.generate.run import SampleConfig, sample
from align.model.adapters import AdapterModel
from align.model.chat import Chat, Unusable
from align.model.packing import Tree
from align.model.roles import RoleModel
from align.train.sft import SFTConfig, _demonstrations, _rows
from annotation.campaign.candidates import compare, read_candidates
from annotation.campaign.privacy import count
from annotation.pairs.run import PairsConfig, pairs
from annotation.store.erasure import _texts
from annotation.store.store import Store

USER: list[Message] = [{"role": "user", "content": "hello"}]
CHANNELS = (
    "<|channel|>analysis<|message|>User says hi.<|end|><|start|>assistant<|channel|>final<|message|>Hello!<|return|>"
)
CUT = "<think>\n2 and 2"


def sampled(folder: Path, family: str, written: str) -> dict[str, Any]:
    """The one response of a model of ``family`` that writes ``written``, as it stands in candidates.jsonl."""
    tokenizer = family_tokenizer(family)
    chat = Chat(tokenizer)
    policy = writer(folder / "policy", tokenizer, chat.prompt_ids(USER), written)
    write_jsonl(folder / "prompts.jsonl", [{"prompt": "hello"}])
    n_tokens = len(token_ids(tokenizer, written))
    config = SampleConfig(run=folder / "sample", policy=policy, prompts=folder / "prompts.jsonl", k=1, temperature=0,
                          max_new_tokens=n_tokens, compute=Compute(device="cpu"))  # fmt: skip
    sample(config)
    (row,) = read_jsonl(folder / "sample" / "candidates.jsonl")
    (response,) = row["responses"]
    return dict(response)


def run_of(folder: Path) -> Run:
    return Run(RunRecord(id="x", stage="x", status="running", path=str(folder), seed=0, given={}, resolved={}))


@pytest.mark.parametrize(
    ("family", "written", "message", "ended"),
    [
        ("gpt-oss", CHANNELS, {"content": "Hello!", "reasoning_content": "User says hi."}, True),
        ("qwen3", CUT, {"content": "", "reasoning_content": "2 and 2"}, False),
        ("llama-3", "the answer is yes<|eot_id|>", {"content": "the answer is yes"}, True),
    ],
)
def test_what_was_sampled_is_what_is_scored(
    tmp_path: Path, family: str, written: str, message: Message, ended: bool
) -> None:
    response = sampled(tmp_path, family, written)
    assert response["messages"] == [{"role": "assistant", **message}] and response["ended"] is ended
    chat = Chat(family_tokenizer(family))
    rows, (tree,) = candidate_trees(run_of(tmp_path), tmp_path / "sample", chat, None)
    assert tree == Tree(chat.prompt_ids(USER), [token_ids(chat.tokenizer, written)])
    assert rows[0]["as_sampled"] and rows[0]["ended"] is ended


def test_ids_reach_the_pairs_and_their_trees(tmp_path: Path) -> None:
    """Through comparisons, the store and the pairs stage; the same comparison without ids has the same id."""
    chat = Chat(family_tokenizer("qwen3"))
    prompt = chat.prompt_ids(USER)
    texts = {"4": "<think>\n2 and 2\n</think>\n\n4<|im_end|>", "5": "5<|im_end|>", "6": "<think>\n\n</think>\n\n6"}
    responses = []
    for content, written in texts.items():
        messages = [{"role": "assistant", "content": content}]
        ids = token_ids(chat.tokenizer, written)
        tokens = record_tokens(chat, prompt, ids, messages).model_dump()
        responses.append({"messages": messages, "origin": "p", "ended": content != "6", "tokens": tokens})
    row = {"prompt_id": "p", "prompt": USER, "responses": responses, "split": "train"}
    write_jsonl(tmp_path / "candidates.jsonl", [row])
    (found,) = read_candidates([tmp_path / "candidates.jsonl"], lambda *_: None, keep_unended=True, at_least=2)
    items = [compare(found, [found.responses[i], found.responses[j]], lambda *_: None) for i, j in ((0, 1), (0, 2))]
    plain = [{"messages": r["messages"], "origin": "p"} for r in responses[:2]]
    assert items[0] is not None and items[1] is not None
    assert items[0].id == Comparison.model_validate({"prompt": USER, "responses": plain}).id
    with Store.open(tmp_path / "feedback.db", write=True) as store:
        store.add_comparisons([item for item in items if item])
        store.add_judgments([said(items[0], "4", "ann"), said(items[1], "4", "ann")])
    pairs(PairsConfig(run=tmp_path / "pairs", feedback=tmp_path / "feedback.db", validation=0, test=0))
    run = run_of(tmp_path)
    (only,) = load_pairs(run, tmp_path / "pairs", "train", chat, None, 2)
    chosen = {tuple(only.tree.responses[k]) for k in only.chosen}
    rejected = {tuple(only.tree.responses[k]) for k in only.rejected}
    ids = {content: tuple(token_ids(chat.tokenizer, written)) for content, written in texts.items()}
    assert (chosen, rejected) == ({ids["4"]}, {ids["5"], ids["6"]})  # 5 has no second <think>, 6 no stop token
    (first, *_) = _rows(run_of(tmp_path), chat, _demonstrations(tuning(tmp_path)).rows, None, [])
    assert first["input_ids"] == [*prompt, *ids["4"]]
    assert run.record.notes == [
        "train: 1 of 3 responses were cut before they ended: read as written, without a stop token"
    ]


def tuning(folder: Path) -> SFTConfig:
    return SFTConfig(run=folder / "sft", model=folder, data=folder / "pairs")


def test_datasets_reads_pairs_with_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import config, load_dataset

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    test_ids_reach_the_pairs_and_their_trees(tmp_path)
    file = tmp_path / "pairs" / "train.jsonl"
    rows = load_dataset("json", data_files=str(file), split="train").to_list()
    assert [row["chosen_tokens"]["ids"] for row in rows] == [r["chosen_tokens"]["ids"] for r in read_jsonl(file)]


@pytest.fixture
def qwen3() -> Chat:
    return Chat(family_tokenizer("qwen3"))


def resolve(
    chat: Chat, messages: list[Message], ended: bool | None, recorded: Tokens | None, text: str = "hello"
) -> Any:
    asked = [{"role": "user", "content": text}]
    found = response_tokens(chat, RenderedPrompt(asked, chat.prompt_ids(asked)), messages, ended, recorded)
    assert found.own == [True] * len(found.ids), "one message is all the policy's own"
    return found.ids, found.source


def test_text_that_is_not_what_its_ids_say_is_refused(qwen3: Chat) -> None:
    messages = [{"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}]
    ids = token_ids(qwen3.tokenizer, "<think>2 and 2</think>4<|im_end|>")  # not as the template writes it
    recorded = record_tokens(qwen3, qwen3.prompt_ids(USER), ids, messages)
    assert resolve(qwen3, messages, True, recorded) == (ids, "as sampled")
    with pytest.raises(Unusable, match="other token ids than those recorded"):
        resolve(qwen3, messages, True, recorded.model_copy(update={"ids": [10**6]}))
    edited = [{"role": "assistant", "content": "5", "reasoning_content": "2 and 2"}]
    with pytest.raises(Unusable, match="other token ids than those recorded"):
        resolve(qwen3, edited, True, recorded)
    with pytest.raises(Unusable, match="other token ids than those recorded"):
        resolve(qwen3, messages, True, recorded, text="hello world")


def test_text_that_gives_its_ids_again_may_follow_another_prompt(qwen3: Chat) -> None:
    messages = [{"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}]
    ids = token_ids(qwen3.tokenizer, "<think>\n2 and 2\n</think>\n\n4<|im_end|>")
    recorded = record_tokens(qwen3, qwen3.prompt_ids(USER), ids, messages)
    assert resolve(qwen3, messages, True, recorded, text="hello world") == (ids, "rendered again")


def test_under_another_template_the_text_is_rendered_and_a_cut_thought_is_not(qwen3: Chat) -> None:
    messages = [{"role": "assistant", "content": "yes"}]
    recorded = record_tokens(Chat(make_tokenizer()), [5], [6, 7], messages)
    expected = token_ids(qwen3.tokenizer, "<think>\n\n</think>\n\nyes<|im_end|>")
    assert resolve(qwen3, messages, True, recorded) == (expected, "rendered again")
    assert resolve(qwen3, messages, None, None) == (expected, "rendered")
    assert resolve(qwen3, messages, False, None) == (expected[:-1], "rendered")
    thought = [{"role": "assistant", "content": "", "reasoning_content": "2 and 2"}]
    with pytest.raises(Unusable, match="cut inside its reasoning"):
        resolve(qwen3, thought, False, recorded)


def test_of_equal_answers_the_one_that_ended_keeps_its_ids(tmp_path: Path) -> None:
    messages = [{"role": "assistant", "content": "yes"}]
    tokens = [{"ids": ids, "chat": "c", "exchange": "e"} for ids in ([1], [1, 2])]
    responses = [
        {"messages": messages, "origin": "p", "ended": ended, "tokens": written}
        for ended, written in zip((False, True), tokens, strict=True)
    ]
    write_jsonl(tmp_path / "candidates.jsonl", [{"prompt_id": "p", "prompt": USER, "responses": responses}])
    (found,) = read_candidates([tmp_path], lambda *_: None, keep_unended=True, at_least=1)
    assert [(r["ended"], r["tokens"]["ids"]) for r in found.responses] == [(True, [1, 2])]


def test_reasoning_apart_from_content_is_still_looked_through() -> None:
    """What annotators can unfold is searched for personal data, and for words that an erasure leaves standing."""
    thought = "write to ann@example.org about the weather of tomorrow"
    answer = {"role": "assistant", "content": "yes", "reasoning_content": thought}
    item = Comparison.model_validate({"prompt": USER, "responses": [{"messages": [answer]}]})
    assert count([item])["any"] == 1
    assert thought in _texts(item)


def test_judges_read_the_answer_after_its_reasoning() -> None:
    assert Answer([1], {"role": "assistant", "content": "<think>sorry</think>\n\nyes"}, True).text == "yes"


def test_what_a_policy_writes_while_it_trains_is_read_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = family_tokenizer("gpt-oss")
    folder = writer(tmp_path, tokenizer, Chat(tokenizer).prompt_ids(USER), CHANNELS)
    ids = token_ids(tokenizer, CHANNELS)
    written = TokenSample(ids, True, [-1.0] * len(ids))
    monkeypatch.setattr("align.generate.local.sample_responses", lambda *_, **__: [[written]])
    seen: list[Any] = []

    def gold(prompts: Any, completions: Any, ended: Any) -> list[float | None]:
        seen.extend(completions)
        return [1.0]

    watched = SampleLogger(
        AdapterModel(folder, Compute(device="cpu")), [PromptRow(USER)], Watch(max_new_tokens=len(ids)), 0, gold=gold
    )
    (row,) = watched.rows(None)
    assert (row["response"], row["reasoning_content"]) == ("Hello!", "User says hi.")
    assert seen == [[{"role": "assistant", "content": "Hello!", "reasoning_content": "User says hi."}]]


def test_candidates_without_ids_stay_readable(tmp_path: Path, qwen3: Chat) -> None:
    thought = {"role": "assistant", "content": "", "reasoning_content": "2 and"}
    responses = [
        {"messages": [{"role": "assistant", "content": "yes"}], "origin": "p", "ended": False},
        {"messages": [thought], "origin": "p", "ended": False},
    ]
    write_jsonl(tmp_path / "candidates.jsonl", [{"prompt_id": "p", "prompt": USER, "responses": responses}])
    run = run_of(tmp_path)
    rows, (tree,) = candidate_trees(run, tmp_path / "candidates.jsonl", qwen3, None)
    assert tree.responses == [token_ids(qwen3.tokenizer, "<think>\n\n</think>\n\nyes")] and not rows[0]["as_sampled"]
    assert run.record.dropped == {"response: cut inside its reasoning, which the chat template would close": 1}


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        ("yes", "not a row of candidates: key 'responses': responses are a list of objects"),
        ({"origin": "p"}, "key 'responses.0.messages' is missing; add it"),
        (
            {"messages": [{"role": "assistant", "content": "a"}], "tokens": {"ids": ["x"]}},
            "'responses.0.tokens.ids.0': expected a whole number",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a"}], "ended": "perhaps"},
            "'responses.0.ended': expected true or false",
        ),
    ],
)
def test_what_is_no_candidate_is_named(tmp_path: Path, qwen3: Chat, response: Any, problem: str) -> None:
    write_jsonl(tmp_path / "candidates.jsonl", [{"prompt_id": "p", "prompt": USER, "responses": [response]}])
    with pytest.raises(BadInput, match=re.escape(problem)):
        candidate_trees(run_of(tmp_path), tmp_path, qwen3, None)


def test_a_reward_model_with_another_template_reads_cut_answers_without_a_stop(
    make_model: Callable[..., Any], qwen3: Chat
) -> None:
    reward, policy = make_model("llama"), make_model("qwen2")
    policy.chat = qwen3
    item = Item(id="a", suite="preference", kind="generate", prompt=USER)
    message = {"role": "assistant", "content": "the answer"}
    one = Answered(item, [1], [Answer([5, 6], message, False), Answer([5, 6], message, True)])
    tree = _reward_tree(RoleModel(reward, "reward"), one, RoleModel(policy, "policy"))
    expected = token_ids(reward.tokenizer, "the answer")
    assert tree is not None and tree.responses == [expected, [*expected, reward.chat.stop_id]]
    policy.chat = reward.chat
    same = _reward_tree(RoleModel(reward, "reward"), one, RoleModel(policy, "policy"))
    assert same is not None and same.responses == [[5, 6], [5, 6]]
