"""Messages in one form: read right, or refused with what is wrong, in every kind of file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.core.config import BadInput
from align.core.files import write_jsonl
from align.core.messages import NoMessage, read_messages
from align.evals.items import Item
from align.generate.completions import sample_of
from align.generate.prompts import read_prompts
from align.train.sft import SFTConfig, sft
from annotation.importers.demonstrations import read_demonstrations
from annotation.importers.run import ImportConfig, read

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


def told(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", **fields}


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("Name a fruit.", {"role": "user", "content": "Name a fruit."}),
        ({"role": "user", "content": "a", "name": None}, {"role": "user", "content": "a"}),
        ({"role": "user", "content": [{"type": "text", "text": "Name a "}, {"type": "text", "text": "fruit."}]},
         {"role": "user", "content": "Name a fruit."}),
        ({"role": "user", "content": [{"type": "text", "text": "a", "image": None}]}, {"role": "user", "content": "a"}),
        (told(content="4", tool_calls=[], name="", thinking="", images=[], audio=None), told(content="4")),
        (told(content="", tool_calls=[CALL]), told(content="", tool_calls=[CALL])),
        (told(content="4", thinking="2 and 2"), told(content="4", reasoning_content="2 and 2")),
        (told(content="4", reasoning="2 and 2"), told(content="4", reasoning_content="2 and 2")),
        (told(content="4", reasoning="2", reasoning_content="2"), told(content="4", reasoning_content="2")),
        (told(content=None, tool_calls=[CALL]), told(tool_calls=[CALL])),
        (told(tool_calls=[{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}]),
         told(tool_calls=[CALL])),
        (told(tool_calls=[{"id": "1", "index": 0, "name": "weather", "arguments": {"city": "Oslo"}}]),
         told(tool_calls=[{"id": "1", **CALL}])),
        (told(tool_calls=[{"function": {"name": "now", "arguments": ""}}]),
         told(tool_calls=[{"type": "function", "function": {"name": "now", "arguments": {}}}])),
        ({"role": "tool", "content": "-3", "tool_call_id": "1", "name": "weather"},
         {"role": "tool", "content": "-3", "tool_call_id": "1", "name": "weather"}),
    ],
)  # fmt: skip
def test_messages_are_read_into_one_form(given: Any, read: dict[str, Any]) -> None:
    assert read_messages(given, "user", "prompt") == [read]
    assert read_messages([read], "user", "prompt") == [read], "reading twice changes nothing"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "user", "text": "Name a fruit."}, "a message of the user holds 'text', .*; is it the content?"),
        ({"role": "user", "content": "a", "weight": 0}, "holds 'weight', which is no field of a message$"),
        ({"from": "human", "value": "a"}, r"a message has no role \(it holds 'from', 'value'\)"),
        ({"role": "human", "content": "a"}, "unknown role 'human'; roles are system, developer, user"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "a part of type 'image_url'"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "cache": "b"}]}, "a part of type 'text'"),
        ({"role": "user", "content": ["a"]}, "a part of type 'str'"),
        ({"role": "user", "content": {"text": "a"}}, "content is neither text nor parts"),
        ({"role": "user", "content": 4}, "content is neither text nor parts"),
        (told(content="4", thinking="a", reasoning="b"), "a message's reasoning and thinking differ"),
        (told(content="4", thinking=["a"]), "'thinking' of a message is no text"),
        (told(tool_calls={"name": "f"}), "tool_calls of a message are no list"),
        (told(tool_calls=[{"function": {"arguments": {}}}]), "a tool call names no function"),
        (told(tool_calls=[{**CALL, "type": "custom"}]), "a tool call of type 'custom'"),
        (told(tool_calls=[{"function": {"name": "f", "arguments": "Oslo"}}]), r"are not JSON \('Oslo'\)"),
        (told(tool_calls=[{"function": {"name": "f", "arguments": '["Oslo"]'}}]), "are no JSON object"),
        (told(tool_calls=[{"function": {"name": "f", "arguments": '"{}"'}}]), "are no JSON object"),
        (told(tool_calls=[{"function": {"name": "f", "parameters": {}}}]), "a tool call holds 'parameters'"),
    ],
)
def test_what_has_no_place_in_the_form_is_refused_by_name(message: dict[str, Any], reason: str) -> None:
    with pytest.raises(NoMessage, match="^prompt: .*" + reason):
        read_messages([message], "user", "prompt")


def test_what_is_neither_text_nor_messages_is_refused() -> None:
    for value in (4, ["a"], [[{"role": "user", "content": "a"}]]):
        with pytest.raises(NoMessage, match="prompt is neither text nor messages"):
            read_messages(value, "user", "prompt")
    assert read_messages(None, "user", "prompt") == read_messages("", "user", "prompt") == []


DEMONSTRATIONS: list[tuple[dict[str, Any], str | None]] = [
    ({"prompt": "a", "completion": "b"}, None),
    ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "completion": "b"}, None),
    ({"prompt": "a", "completion": [told(content=None, tool_calls=[CALL]), told(content="b")]}, None),
    ({"prompt": [{"role": "user", "text": "a"}], "completion": "b"}, "prompt: a message of the user holds 'text'"),
    ({"prompt": "a", "completion": ""}, "a response is empty"),
    ({"prompt": "a", "completion": "  \n"}, "a response is empty"),
    ({"prompt": "a", "completion": [told(content=None)]}, "a response is empty"),
    ({"prompt": "", "completion": "b"}, "no prompt"),
    ({"prompt": [{"role": "user", "content": ""}], "completion": "b"}, "an empty turn in the prompt"),
    ({"prompt": "a", "completion": [{"role": "user", "content": "b"}]}, "a completion holds turns that are neither"),
    ({"prompt": "a", "completion": [told(content="b"), {"role": "tool", "content": "c"}]}, "the last turn is not"),
    ({"prompt": "a", "completion": "b", "images": ["x.png"]}, "holds 'images', and only text is read here"),
    ({"prompt": "a", "completion": 4}, "completion is neither text nor messages"),
    ({"prompt": "a", "completion": "b", "tools": "no"}, "tools are not a list"),
]


def test_demonstrations_are_read_as_preferences_are_or_left_out_with_the_reason(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d.jsonl", [row for row, _ in DEMONSTRATIONS])
    found = read_demonstrations(tmp_path / "d.jsonl")
    assert [row["row"] for row in found.rows] == [1, 2, 3]
    assert [row["prompt"] for row in found.rows] == [[{"role": "user", "content": "a"}]] * 3
    reasons = {entry["row"]: entry["reason"] for entry in found.dropped}
    for number, (_, reason) in enumerate(DEMONSTRATIONS, 1):
        assert (reason is None) == (number not in reasons)
        assert reason is None or reasons[number].startswith(reason), reasons[number]


def test_a_demonstration_keeps_what_stands_beside_it(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    row = {"prompt": "a", "completion": "b", "system": "Be kind.", "tools": json.dumps(tools)}
    write_jsonl(tmp_path / "d.jsonl", [row | {"chat_template_kwargs": {"enable_thinking": False}, "source": "x"}])
    (found,), _, unread, _ = read_demonstrations(tmp_path / "d.jsonl")
    assert unread == {"source": 1}
    assert found["prompt"][0] == {"role": "system", "content": "Be kind."}
    assert found["tools"] == tools and found["template_arguments"] == {"enable_thinking": False}


def test_a_file_that_holds_no_demonstrations_is_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "b"}, {"instruction": "a", "output": "b"}])
    with pytest.raises(BadInput, match=r"d.jsonl:2: no 'prompt'; a demonstration is \{prompt, completion\}"):
        read_demonstrations(tmp_path / "d.jsonl")


def test_an_import_reads_messages_in_the_same_form(tmp_path: Path) -> None:
    text = [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}]
    rows = [
        {"prompt": "a", "chosen": [told(content="", tool_calls=text, thinking="hm")], "rejected": "c"},
        {"prompt": [{"role": "user", "text": "a"}], "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": "b", "rejected": "c", "images": ["x.png"]},
        {"prompt": "a", "chosen": [told(tool_calls=[{"function": {"name": "f", "arguments": "x"}}])], "rejected": "c"},
    ]
    write_jsonl(tmp_path / "p.jsonl", rows)
    found = read(ImportConfig(run=tmp_path / "run", data=tmp_path / "p.jsonl"))
    (comparison,) = found.comparisons
    called = next(r.messages[0] for r in comparison.responses if "tool_calls" in r.messages[0])
    assert called == told(content="", tool_calls=[CALL], reasoning_content="hm")
    assert [entry["row"] for entry in found.dropped] == [2, 3, 4]
    for entry, reason in zip(found.dropped, ("holds 'text'", "holds 'images'", "are not JSON"), strict=True):
        assert reason in entry["reason"]


def test_prompts_and_items_are_read_in_the_same_form(tmp_path: Path) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Name a fruit."}]}]
    plain = [{"role": "user", "content": "Name a fruit."}]
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": parts}])
    assert read_prompts(tmp_path / "prompts.jsonl")[0].messages == plain
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": [{"role": "user", "text": "Name a fruit."}]}])
    with pytest.raises(BadInput, match="row 1: prompt: a message of the user holds 'text'"):
        read_prompts(tmp_path / "prompts.jsonl")
    asked = {"id": "1", "suite": "preference", "kind": "generate"}
    assert Item.model_validate({**asked, "prompt": parts}).prompt == plain
    with pytest.raises(ValueError, match="holds 'text'"):
        Item.model_validate({**asked, "prompt": [{"role": "user", "text": "Name a fruit."}]})


def test_an_endpoints_reasoning_and_calls_come_in_the_same_form() -> None:
    said = {"content": None, "thinking": "hm", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}
    message = sample_of({"message": said, "finish_reason": "tool_calls"}).message
    assert message["reasoning_content"] == "hm"
    assert message["tool_calls"][0]["function"]["arguments"] == {"x": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [({"prompt": "hello", "completion": ""}, "a response is empty"),
     ({"prompt": [{"role": "user", "text": "hello"}], "completion": "yes"}, "a message of the user holds 'text'")],
)  # fmt: skip
def test_a_file_of_which_no_row_can_be_learnt_from_trains_nothing(
    row: dict[str, Any], reason: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "d.jsonl", [row] * 3)
    config = SFTConfig(run=tmp_path / "run", model=model_folder("llama"), data=tmp_path / "d.jsonl", min_rows=1)
    with pytest.raises(BadInput, match=f"0 of 3 demonstrations can be used.*{reason}.*: 3"):
        sft(config)


def test_a_call_in_the_form_before_tool_calls_is_kept() -> None:
    called = {"name": "look_up", "arguments": '{"word": "sky"}'}
    choice = {"message": {"content": "hm", "function_call": called}, "finish_reason": "function_call"}
    message = sample_of(choice).message
    assert message["tool_calls"] == [
        {"type": "function", "function": {"name": "look_up", "arguments": {"word": "sky"}}}
    ]
    odd = sample_of({"message": {"content": "hm", "function_call": 5}, "finish_reason": "stop"})
    assert "tool_calls" not in odd.message
