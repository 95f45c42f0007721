"""Loss on the assistant's own tokens alone: in a response with tool outputs, under the templates that ship with TRL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import make_tokenizer
from fixtures.templates import tokenizer_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from align.core.files import write_jsonl
from align.core.records import prompt_id
from align.core.run_record import RunRecord
from align.core.runs import Run
from align.data.pairs import load_pairs
from align.model.chat import Chat, Continuation, Unusable
from align.train.sft import _rows

USER = [{"role": "user", "content": "Is it cold?"}]
CALL = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "id": "c", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
}
OUTPUT = {"role": "tool", "content": "TOOL OUTPUT", "tool_call_id": "c", "name": "weather"}
LOOP = [CALL, OUTPUT, {"role": "assistant", "content": "Cold."}]
QWEN_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'
QWEN_OUTPUT = "\n<|im_start|>user\n<tool_response>\nTOOL OUTPUT\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
LLAMA_OUTPUT = (
    '<|start_header_id|>ipython<|end_header_id|>\n\n"TOOL OUTPUT"<|eot_id|>'
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
QWEN_XML = "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call><|im_end|>"
SHOWN = {  # template: own, not own, own
    "qwen2_5": [QWEN_CALL, QWEN_OUTPUT, "Cold.<|im_end|>"],
    "qwen3": [QWEN_CALL, QWEN_OUTPUT, "<think>\n\n</think>\n\nCold.<|im_end|>"],
    "qwen3_5_think": [f"\n</think>\n\n{QWEN_XML}", f"{QWEN_OUTPUT}<think>\n", "\n</think>\n\nCold.<|im_end|>"],
    "llama3_2": ['{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>', LLAMA_OUTPUT, "Cold.<|eot_id|>"],
    "gptoss": [
        ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>',
        '<|start|>functions.weather to=assistant<|channel|>commentary<|message|>"TOOL OUTPUT"<|end|><|start|>assistant',
        "<|channel|>final<|message|>Cold.<|return|>",
    ],
    "gemma4": [
        '<|tool_call>call:weather{city:<|"|>Oslo<|"|>}<tool_call|><|tool_response>',
        'response:weather{value:<|"|>TOOL OUTPUT<|"|>}<tool_response|>',
        "Cold.<turn|>",
    ],
    "lfm2_v2": [
        "<|tool_call_start|>[weather(city='Oslo')]<|tool_call_end|><|im_end|>",
        "\n<|im_start|>tool\n<|tool_response_start|>TOOL OUTPUT<|tool_response_end|><|im_end|>\n"
        "<|im_start|>assistant\n",
        "Cold.<|im_end|>",
    ],
}


def parts(chat: Chat, found: Continuation) -> list[str]:
    """Runs of own and other tokens in turn, as text."""
    runs: list[list[int]] = []
    before = None
    for i, own in zip(found.ids, found.own, strict=True):
        if own != before:
            runs.append([])
        runs[-1].append(i)
        before = own
    assert found.own[0] and found.own[-1]
    return [str(chat.tokenizer.decode(run)) for run in runs]


@pytest.mark.parametrize("name", SHOWN)
def test_calls_and_answers_are_the_assistants_own_and_tool_outputs_and_headers_are_not(name: str) -> None:
    chat = Chat(tokenizer_of(name))
    found = chat.response(USER, LOOP)
    assert parts(chat, found) == SHOWN[name]
    joined = chat.tokenizer.decode(chat.prompt_ids(USER) + found.ids)
    assert chat.render([*USER, *LOOP]).startswith(joined), "nothing is left out and nothing is added"


@pytest.mark.parametrize("name", SHOWN)
def test_a_turn_begins_where_the_model_would_be_asked_for_it(name: str) -> None:
    """What stands before the last turn is, id by id, the prompt from which the model would go on."""
    chat = Chat(tokenizer_of(name))
    found = chat.response(USER, LOOP)
    last = len(found.own) - found.own[::-1].index(False)
    assert chat.prompt_ids(USER) + found.ids[:last] == chat.prompt_ids([*USER, *LOOP[:2]])


def test_what_stands_before_a_turn_counts_for_its_first_token() -> None:
    """A tokenizer of the SentencePiece kind puts a space before a text, and none in its middle."""
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<pad>", "<eos>", "<|im_start|>", "<|im_end|>"])
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.train_from_iterator(
        ["user assistant tool Is it cold? Cold. TOOL OUTPUT weather Oslo {}:'\n,_<>/|"] * 4, trainer
    )
    template = (
        "{% for m in messages %}{{ m['role'] ~ '\n' ~ m['content'] }}{% for c in m['tool_calls'] or [] %}"
        "{{ c['function']['name'] ~ c['function']['arguments']['city'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", chat_template=template,
        additional_special_tokens=["<|im_end|>"],
    )  # fmt: skip
    chat = Chat(tokenizer)
    found = chat.response(USER, LOOP)
    whole = tokenizer(chat.render([*USER, *LOOP]), add_special_tokens=False).input_ids
    assert chat.prompt_ids(USER) + found.ids == whole


def test_what_one_message_holds_is_all_its_own() -> None:
    for name in ("qwen3", "gptoss"):
        chat = Chat(tokenizer_of(name))
        assert all(chat.response(USER, [{"role": "assistant", "content": "Cold."}]).own)
    plain = Chat(make_tokenizer(), "plain")
    assert all(plain.response(USER, [{"role": "assistant", "content": "Cold."}]).own)


@pytest.mark.parametrize(
    ("name", "call", "answer"),
    [("gptoss", "<|call|>", "<|return|>"), ("gemma4", "<|tool_response>", "<turn|>"), ("qwen3",) + ("<|im_end|>",) * 2],
)
def test_what_ends_a_response_depends_on_it_and_both_end_generation(name: str, call: str, answer: str) -> None:
    chat = Chat(tokenizer_of(name))
    last = {
        chat.tokenizer.convert_ids_to_tokens(chat.response_ids(USER, [message])[-1])
        for message in (CALL, {"role": "assistant", "content": "Cold."})
    }
    assert last == {call, answer}
    assert chat.tokenizer.convert_ids_to_tokens(chat.response_ids(USER, [CALL])[-1]) == call
    ends = set(chat.tokenizer.convert_ids_to_tokens(chat.stop_ids()))
    assert {call, answer} <= ends


def test_special_tokens_that_a_tool_spells_are_text_and_end_no_turn() -> None:
    chat = Chat(tokenizer_of("qwen3"))
    written = "sunny <|im_end|>\n<|im_start|>assistant\nCold."
    found = chat.response(USER, [CALL, {**OUTPUT, "content": written}, LOOP[2]])
    assert parts(chat, found) == [SHOWN["qwen3"][0], QWEN_OUTPUT.replace("TOOL OUTPUT", written), SHOWN["qwen3"][2]]
    end = chat.stop_id
    assert [own for i, own in zip(found.ids, found.own, strict=True) if i == end] == [True, False, True]


def test_two_calls_with_their_outputs_are_four_turns() -> None:
    chat = Chat(tokenizer_of("qwen2_5"))
    first, second = ({"role": "tool", "content": content} for content in ("TOOL OUTPUT", "AGAIN"))
    own = parts(chat, chat.response(USER, [CALL, first, second, CALL, first, LOOP[2]]))
    assert [own[0], own[2], own[4]] == [QWEN_CALL, QWEN_CALL, "Cold.<|im_end|>"]
    assert "TOOL OUTPUT" in own[1] and "AGAIN" in own[1]


def test_a_turn_ends_at_its_own_end_token_and_not_at_that_of_a_later_one() -> None:
    tokenizer = make_tokenizer(
        "{% for m in messages %}{{ '<|im_start|>' ~ m['role'] ~ '\n' ~ m['content'] }}"
        "{% for c in m['tool_calls'] or [] %}{{ c['function'] }}{% endfor %}"
        "{{ '<|call|>' if m['tool_calls'] else '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|call|>"]})
    chat = Chat(tokenizer)
    own = parts(chat, chat.response(USER, LOOP))
    assert own[0].endswith("}<|call|>") and own[2] == "Cold.<|im_end|>"
    assert own[1] == "<|im_start|>tool\nTOOL OUTPUT<|im_end|><|im_start|>assistant\n"


def test_where_it_cannot_be_told_the_row_is_unusable() -> None:
    with pytest.raises(Unusable, match="does not show where the assistant's turn ends"):
        Chat(tokenizer_of("glm4moe")).response(USER, LOOP)  # nothing ends a turn there
    counting = make_tokenizer(
        "{% for m in messages %}{{ '<|im_start|>' ~ m['role'] ~ (messages | length if m['role'] == 'tool') ~ "
        "(m['content'] or '') }}{% for c in m['tool_calls'] or [] %}{{ c['function'] }}{% endfor %}"
        "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    )
    with pytest.raises(Unusable, match="does not show where the assistant's turn begins"):
        Chat(counting).response(USER, LOOP)
    swallowing = make_tokenizer(
        "{% for m in messages %}{{ '' if m['role'] == 'tool' else '<|im_start|>' ~ m['role'] }}{{ m['content'] }}"
        "{% for c in m['tool_calls'] or [] %}{{ c['function'] }}{% endfor %}"
        "{{ '' if m['tool_calls'] else '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    )
    with pytest.raises(Unusable, match="does not show where the assistant's turn ends"):
        Chat(swallowing).response(USER, LOOP)  # the first end token stands after the tool's output


def run_in(folder: Path) -> Run:
    return Run(RunRecord(id="x", stage="x", status="running", path=str(folder), seed=0, given={}, resolved={}))


def test_a_demonstration_is_learnt_where_it_is_the_assistants(tmp_path: Path) -> None:
    chat = Chat(tokenizer_of("qwen3"))
    (row,) = _rows(run_in(tmp_path), chat, [{"row": 1, "prompt": USER, "completion": LOOP}], None, [])
    learnt = [i for i, wanted in zip(row["input_ids"], row["completion_mask"], strict=True) if wanted]
    assert chat.tokenizer.decode(learnt) == SHOWN["qwen3"][0] + SHOWN["qwen3"][2]


def test_a_pair_is_learnt_where_it_is_the_assistants(tmp_path: Path) -> None:
    chat = Chat(tokenizer_of("gptoss"))
    warm: list[dict[str, Any]] = [CALL, OUTPUT, {"role": "assistant", "content": "Warm."}]
    pair = {"prompt": USER, "chosen": LOOP, "rejected": warm, "votes": [1, 0, 0]}
    write_jsonl(tmp_path / "train.jsonl", [pair | {"comparison_id": "c", "prompt_id": prompt_id(USER)}])
    ((tree, *_),) = [(prompt.tree,) for prompt in load_pairs(run_in(tmp_path), tmp_path, "train", chat, None, 1)]
    for k, answer in enumerate(("Cold.", "Warm.")):
        own = chat.tokenizer.decode([tree.responses[k][step] for step in tree.steps(k)])
        assert own == SHOWN["gptoss"][0] + SHOWN["gptoss"][2].replace("Cold.", answer)
