"""Responses as people read them: channels, marks of reasoning, cut answers, and that nothing goes missing."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import make_tokenizer
from fixtures.chat_families import family_tokenizer, token_ids

from align.core.messages import split_reasoning, visible_text
from align.model.chat import Chat
from align.model.parsing import parse_response

USER = [{"role": "user", "content": "hello"}]
WEATHER = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]
ANALYSIS = "<|channel|>analysis<|message|>User says hi.<|end|><|start|>assistant"


def read(chat: Chat, text: str) -> dict[str, Any]:
    message = parse_response(chat, chat.prompt_ids(USER), token_ids(chat.tokenizer, text))
    assert message.pop("role") == "assistant"
    return message


@pytest.fixture(scope="module")
def gpt_oss() -> Chat:
    return Chat(family_tokenizer("gpt-oss"))


@pytest.fixture(scope="module")
def qwen3() -> Chat:
    return Chat(family_tokenizer("qwen3"))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (
            f"{ANALYSIS}<|channel|>final<|message|>Hello!<|return|>",
            {"content": "Hello!", "reasoning_content": "User says hi."},
        ),
        ("<|channel|>analysis<|message|>User says", {"content": "", "reasoning_content": "User says"}),
        ("<|channel|>final<|message|> Hello", {"content": " Hello"}),
        (
            f"{ANALYSIS}<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary "
            'to=functions.weather <|constrain|>json<|message|>{"city": "Oslo"}<|call|>',
            {"content": "I look.", "reasoning_content": "User says hi.", "tool_calls": WEATHER},
        ),
        (
            ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>',
            {"content": "", "tool_calls": WEATHER},
        ),
        (
            f'{ANALYSIS} to=functions.weather<|channel|>commentary json<|message|>{{"city": "Os',
            {
                "content": ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Os',
                "reasoning_content": "User says hi.",
            },
        ),
        ("Hello there<|return|>", {"content": "Hello there"}),
        ("<|return|>", {"content": ""}),
    ],
    ids=["two channels", "cut in analysis", "final alone", "call", "call as rendered", "cut call", "none", "empty"],
)
def test_channels_are_read_apart(gpt_oss: Chat, written: str, expected: dict[str, Any]) -> None:
    assert read(gpt_oss, written) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("<think>\n2 and 2\n</think>\n\n4<|im_end|>", {"content": "4", "reasoning_content": "2 and 2"}),
        ("<think>\n2 and", {"content": "", "reasoning_content": "2 and"}),
        ("<think>\n\n</think>\n\n4<|im_end|>", {"content": "4"}),
        ("4<|im_end|>", {"content": "4"}),
        ("4 <think>no</think> 5<|im_end|>", {"content": "4 <think>no</think> 5"}),
    ],
    ids=["thought", "cut in thought", "no thought", "no marks", "marks further on"],
)
def test_marked_reasoning_is_read_apart(qwen3: Chat, written: str, expected: dict[str, Any]) -> None:
    assert read(qwen3, written) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2 and 2\n</think>\n\n4<|im_end|>", {"content": "4", "reasoning_content": "2 and 2"}),
        ("2 and", {"content": "", "reasoning_content": "2 and"}),
    ],
)
def test_a_prompt_may_open_the_reasoning(written: str, expected: dict[str, Any]) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    assert read(Chat(make_tokenizer(template)), written) == expected


def test_marks_that_are_special_tokens_are_seen() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["[THINK]", "[/THINK]"], special_tokens=True)
    found = read(Chat(tokenizer), "[THINK]maybe[/THINK]yes<|im_end|>")
    assert found == {"content": "yes", "reasoning_content": "maybe"}


def test_a_tokenizers_own_response_template_is_believed() -> None:
    tokenizer = make_tokenizer()
    tokenizer.response_template = {
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {"thinking": {"open": "((", "close": "))"}, "content": {"open": "[", "close": "]"}},
    }
    assert read(Chat(tokenizer), "((maybe))[yes] no<|im_end|>") == {
        "content": "yes no",
        "reasoning_content": "maybe",
    }  # what stands in no field is shown too
    assert read(Chat(tokenizer, "plain"), "((maybe))[yes]<eos>") == {"content": "((maybe))[yes]"}


def test_only_thought_that_stands_first_is_hidden() -> None:
    assert split_reasoning("harm </think> sorry") == ("", "harm </think> sorry")
    assert split_reasoning(" <think>a</think>\n<think>b</think>\n\nc") == ("a\n\nb", "c")
    assert split_reasoning("<think>a") == ("a", "")
    assert split_reasoning("  as it is ") == ("", "  as it is ")
    answer = [{"role": "assistant", "content": "<think>a</think>b", "reasoning_content": "c"}]
    assert visible_text(answer) == "b"


def test_the_identity_is_the_tokenizers_and_the_templates() -> None:
    chat = Chat(make_tokenizer())
    chat.tokenizer(["hello", "hello world"], padding=True)
    assert chat.identity == Chat(make_tokenizer()).identity
    more = make_tokenizer()
    more.add_tokens(["zebra"])
    assert len({chat.identity, Chat(make_tokenizer(), "plain").identity, Chat(more).identity}) == 3
