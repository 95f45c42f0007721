"""What a template would leave out of a row: rendered under the name it reads, or the row is refused; never lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import CHATML_OWN, make_tokenizer
from fixtures.templates import tokenizer_of

from align.core.files import write_jsonl
from align.core.records import prompt_id
from align.core.run_record import RunRecord
from align.core.runs import Run
from align.data.pairs import load_pairs
from align.model.chat import Chat, Unusable

USER = [{"role": "user", "content": "How much is 2 and 2?"}]
FOUR = {"role": "assistant", "content": "4"}
TEXT = {"type": "function", "id": "c1", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
OBJECT = {"type": "function", "id": "c1", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
SECOND = {"type": "function", "id": "c2", "function": {"name": "clock", "arguments": {"city": "Rome"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def calling(*calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": list(calls), **more}


def output(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **more}


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "gptoss", "lfm2_2_5"])
def test_reasoning_is_rendered_under_whatever_name_it_has(name: str) -> None:
    chat = Chat(tokenizer_of(name))
    keys = ("thinking", "reasoning", "reasoning_content")
    ids = [chat.response_ids(USER, [{**FOUR, key: "2 and 2 make 4."}]) for key in keys]
    assert ids[0] == ids[1] == ids[2]
    assert "2 and 2 make 4." in chat.tokenizer.decode(ids[0])


def test_a_template_that_reads_reasoning_by_its_third_name_gets_it() -> None:
    template = CHATML_OWN.replace("message['content']", "(message.get('reasoning') or '') + message['content']")
    ids = Chat(make_tokenizer(template)).response_ids(USER, [{**FOUR, "thinking": "2 and 2 make 4."}])
    assert "2 and 2 make 4." in make_tokenizer().decode(ids)


@pytest.mark.parametrize("name", ["llama3_2", "gptoss", "qwen3_5_think", "qwen3", "deepseekv3"])
def test_tool_arguments_are_rendered_once_whether_they_come_as_text_or_as_an_object(name: str) -> None:
    chat = Chat(tokenizer_of(name))
    history = [[*USER, calling(call), output("-3"), {**FOUR, "content": "Cold."}, *USER] for call in (TEXT, OBJECT)]
    as_text, as_object = (chat.prompt_ids(messages) for messages in history)
    shown = chat.tokenizer.decode(as_object)
    assert as_text == as_object
    assert '{"city": "Oslo"}' in shown or "<parameter=city>\nOslo\n" in shown
    assert '\\"city\\"' not in shown


@pytest.mark.parametrize("name", ["qwen3", "gptoss", "deepseek_r1_distill", "qwen3_5_think"])
def test_reasoning_of_earlier_turns_is_left_out_as_in_use_and_counted(name: str) -> None:
    chat = Chat(tokenizer_of(name))
    remarks: Counter[str] = Counter()
    chat.remark = lambda reason: remarks.update([reason])
    ids = chat.prompt_ids([*USER, {**FOUR, "reasoning_content": "2 and 2 make 4."}, *USER])
    assert ids == Chat(tokenizer_of(name)).prompt_ids([*USER, FOUR, *USER])
    assert remarks == {"reasoning of earlier turns is left out by the chat template, as it is in use": 1}
    chat.prompt_ids([*USER, {**FOUR, "reasoning_content": "2 and 2 make 4."}, *USER])
    assert remarks.total() == 1, "a text is counted once, however often it is rendered"


REFUSED: list[tuple[str, list[dict[str, Any]], str]] = [
    ("llama3_2", [{**FOUR, "thinking": "2 and 2"}], "the reasoning of a message of the assistant"),
    ("llama3_2", [{**FOUR, "name": "Ann"}], "the name of a message of the assistant"),
    ("llama3_2", [calling(OBJECT, content="I look.")], "the content of a message of the assistant"),
    ("llama3_2", [calling(OBJECT, content="Oslo")], "the content of a message of the assistant"),
    ("gptoss", [calling(OBJECT, SECOND)], "the name of a tool call"),
    ("gptoss", [calling(OBJECT, thinking="hm"), output("-3"), FOUR], "the reasoning of a message of the assistant"),
    ("phi3", [calling(OBJECT)], "the name of a tool call"),
    ("lfm2_2_5_v2", [{**FOUR, "content": "<tool>4", "name": "Ann"}], "the name of a message of the assistant"),
]


@pytest.mark.parametrize(("name", "response", "what"), REFUSED)
def test_what_a_template_leaves_out_of_a_response_makes_the_row_unusable(
    name: str, response: list[dict[str, Any]], what: str
) -> None:
    with pytest.raises(Unusable, match=f"the chat template leaves out {what}"):
        Chat(tokenizer_of(name)).response_ids(USER, response)


def test_reasoning_in_the_content_of_a_response_is_never_lost() -> None:
    """The template takes what stands before </think> away; as training it would teach to answer without thought."""
    cutting = CHATML_OWN.replace("message['content']", "message['content'].split('</think>')[-1]")
    chat = Chat(make_tokenizer(cutting))
    thought = {**FOUR, "content": "<think>\n2 and 2 make 4.\n</think>\n\n4"}
    with pytest.raises(Unusable, match="leaves out the reasoning in a message of the assistant"):
        chat.response_ids(USER, [thought])
    assert chat.prompt_ids([*USER, thought, *USER]), "in an earlier turn it is left out as in use"
    qwen = Chat(tokenizer_of("qwen3"))
    spelled = qwen.tokenizer.decode(qwen.response_ids(USER, [{**FOUR, "content": "<think>2 and 2</think>4"}]))
    assert spelled == "<think>\n2 and 2\n</think>\n\n4<|im_end|>", "written another way, and whole"


def test_reasoning_that_is_never_closed_is_not_taken_for_an_answer() -> None:
    with pytest.raises(Unusable, match="opens reasoning and never closes it"):
        Chat(tokenizer_of("qwen3")).response_ids(USER, [{**FOUR, "content": "<think>\n2 and 2"}])
    assert Chat(tokenizer_of("llama3_2")).response_ids(USER, [{**FOUR, "content": "<think>\n2 and 2"}])


@pytest.mark.parametrize(
    ("template", "prompt", "tools", "what"),
    [
        (CHATML_OWN, USER, TOOLS, "does not write tools"),
        (CHATML_OWN, [{**USER[0], "name": "Ann"}], None, "leaves out the name of a message of the user"),
        (CHATML_OWN, [*USER, calling(OBJECT), output("-3")], None, "leaves out the name of a tool call"),
        (CHATML_OWN, [*USER, {**FOUR, "thinking": "hm"}, *USER], None, "leaves out the reasoning of a message"),
        (
            CHATML_OWN.replace("message['content']", "(message['content'] if message['role'] != 'system' else '')"),
            [{"role": "system", "content": "Be kind."}, *USER],
            None,
            "leaves out the content of a message of the system",
        ),
    ],
)  # fmt: skip
def test_what_a_template_leaves_out_of_a_prompt_makes_the_row_unusable(
    template: str, prompt: list[dict[str, Any]], tools: Any, what: str
) -> None:
    with pytest.raises(Unusable, match=what):
        Chat(make_tokenizer(template)).prompt_ids(prompt, tools)


@pytest.mark.parametrize(
    ("written", "content"),
    [
        ("message['content']|lower", "How Much"),
        ("message['content']|e", "<b> & c"),
        ("message['content'][:40]", "a" * 41),
    ],
)
def test_a_content_that_is_written_otherwise_makes_the_row_unusable(written: str, content: str) -> None:
    chat = Chat(make_tokenizer(CHATML_OWN.replace("message['content']", written)))
    assert chat.prompt_ids([{"role": "user", "content": " how much "}]), "nothing to change in these letters"
    with pytest.raises(Unusable, match="changes the letters of the content of a message of the user"):
        chat.prompt_ids([{"role": "user", "content": content}])
    with pytest.raises(Unusable, match="changes the letters|writes the prompt differently"):
        chat.response_ids([{"role": "user", "content": "a"}], [{"role": "assistant", "content": content}])


def test_an_argument_that_a_template_does_not_name_is_left_out() -> None:
    reading = CHATML_OWN.replace(
        "'<|im_end|>", "(message.tool_calls[0].function.name ~ message.tool_calls[0].function.arguments.city "
        "if message.tool_calls else '') ~ '<|im_end|>",
    )  # fmt: skip
    chat = Chat(make_tokenizer(reading))
    assert "weatherOslo" in chat.tokenizer.decode(chat.response_ids(USER, [calling(OBJECT)]))
    more = {**OBJECT, "function": {"name": "weather", "arguments": {"city": "Oslo", "unit": "C"}}}
    with pytest.raises(Unusable, match="leaves out an argument of a tool call"):
        chat.response_ids(USER, [calling(more)])


def test_the_ids_of_calls_may_be_left_out_while_outputs_come_in_their_order() -> None:
    chat = Chat(tokenizer_of("qwen3"))
    calls = [*USER, calling(OBJECT, SECOND)]
    one, other = output("-3", tool_call_id="c1", name="weather"), output("noon", tool_call_id="c2", name="clock")
    assert chat.prompt_ids([*calls, one, other])
    for outputs in ([other, one], [one, one], [one, other, other], [one, output("noon", name="weather")]):
        with pytest.raises(Unusable, match="leaves out which call a tool's output answers"):
            chat.prompt_ids([*calls, *outputs])
    shown = CHATML_OWN.replace(
        "message['content']", "(message.get('tool_call_id') or '') ~ message['content']"
    ).replace("'<|im_end|>", "(message.get('tool_calls') or '')  ~ '<|im_end|>")
    assert Chat(make_tokenizer(shown)).prompt_ids([*calls, other, one])


def test_messages_of_an_unknown_form_are_unusable_wherever_they_come_from() -> None:
    for message, reason in (
        ({"role": "user", "text": "a"}, "holds 'text'"),
        ({"role": "human", "content": "a"}, "unknown role 'human'"),
        (calling({"function": {"name": "f", "arguments": "Oslo"}}), "are not JSON"),
    ):
        with pytest.raises(Unusable, match=reason):
            Chat(make_tokenizer()).prompt_ids([*USER, message])


def test_the_plain_template_takes_no_tool_for_a_human() -> None:
    with pytest.raises(Unusable, match="it has no turn of the tool"):
        Chat(make_tokenizer(), "plain").prompt_ids([*USER, FOUR, output("-3"), *USER])


def test_what_has_no_effect_is_remarked_on_and_counted_in_the_record(tmp_path: Path) -> None:
    def pair(question: str, arguments: dict[str, Any]) -> dict[str, Any]:
        prompt = [{**USER[0], "content": question}]
        sides = {"chosen": [FOUR], "rejected": [{**FOUR, "content": "5"}]}
        ids = {"comparison_id": question, "prompt_id": prompt_id(prompt)}
        return {"prompt": prompt, **sides, "template_arguments": arguments, "votes": [1, 0, 0], **ids}

    write_jsonl(tmp_path / "train.jsonl", [pair("a", {"effort": "low"}), pair("b", {"effort": "high"}), pair("c", {})])
    run = Run(RunRecord(id="x", stage="x", status="running", path=str(tmp_path), seed=0, given={}, resolved={}))
    chat = Chat(make_tokenizer())
    run.renders_with(chat)
    assert len(load_pairs(run, tmp_path, "train", chat, None, 1)) == 3
    assert run.record.remarks == {"template argument 'effort', which the chat template does not read, has no effect": 2}
    assert run.record.template == chat.fingerprint()


def test_counts_are_said_on_the_terminal_the_commonest_first(tmp_path: Path, capsys: Any) -> None:
    run = Run(RunRecord(id="x", stage="sft", status="running", path=str(tmp_path), seed=0, given={}, resolved={}))
    for number in range(7):
        run.drop(f"reason {number}", number + 1)
    run.remark("left out on purpose")
    run.say_counts()
    printed = capsys.readouterr().err.splitlines()
    assert printed[0].startswith("[sft] left out: 7 x reason 6; 6 x reason 5; ") and printed[0].endswith(
        "2 more reasons, see run.json"
    )
    assert printed[1] == "[sft] remarked on: 1 x left out on purpose"
