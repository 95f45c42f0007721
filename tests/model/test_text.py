"""Conversations to ids: prompts are prefixes, responses end once, text stays text, and how TRL does it otherwise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHATML_OWN, make_tokenizer
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from align.core.config import BadInput
from align.model.chat import Chat, Unusable, untrained_tokens

USER = [{"role": "user", "content": "hello world"}]
ANSWER = [{"role": "assistant", "content": "the answer is yes"}]
TEMPLATES = [None, "plain", "chatml"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_response_ends_with_exactly_one_stop_token(template: str | None) -> None:
    chat = Chat(make_tokenizer(), template)
    ids = chat.response_ids(USER, ANSWER)
    assert ids[-1] == chat.stop_id
    assert ids.count(chat.stop_id) == 1
    assert chat.text(ids) == ANSWER[0]["content"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompt_and_response_join_to_the_rendered_conversation(template: str | None) -> None:
    chat = Chat(make_tokenizer(), template)
    joined = chat.tokenizer.decode(chat.prompt_ids(USER) + chat.response_ids(USER, ANSWER))
    whole = chat.render([*USER, *ANSWER])
    assert whole.startswith(joined) and whole[len(joined) :].strip() == ""


def test_a_template_that_heads_an_answer_only_when_it_is_there_is_refused() -> None:
    """A policy would have to write the header itself, and each of its answers would begin with it."""
    without = CHATML_OWN[: CHATML_OWN.index("{% if add_generation_prompt %}")]
    with pytest.raises(
        BadInput, match=r"it writes '<\|im_start\|>assistant' before an answer and nothing where it asks"
    ):
        Chat(make_tokenizer(without))
    turn = "'[INST] ' + m.content + ' [/INST] ' if m.role == 'user' else m.content"
    bare = Chat(make_tokenizer("{% for m in messages %}{{ " + turn + " }}{% endfor %}"))
    assert bare.prompt_ids(USER), "the question's own end asks for an answer"


def test_the_space_before_an_answer_is_the_plain_templates_own() -> None:
    shouting = Chat(make_tokenizer("{# a template that stands before plain in the alphabet #}" + CHATML_OWN))
    assert shouting.text(shouting.tokenizer(" yes").input_ids) == " yes"
    plain = Chat(make_tokenizer(), "plain")
    assert plain.text(plain.tokenizer(" yes").input_ids) == "yes"


def test_a_token_without_a_row_is_named_where_it_has_a_name() -> None:
    chat = Chat(make_tokenizer())
    chat.rows, n = 5, len(chat.tokenizer)
    named = chat.tokenizer.convert_ids_to_tokens(n - 1)
    with pytest.raises(BadInput, match=rf"{re.escape(repr(named))} has the id {n - 1}, beyond .* of 5 rows"):
        chat.refuse_beyond([4, n - 1])
    for strange in (n, n + 7, -1):
        with pytest.raises(BadInput, match=f"a row holds the id {strange}, beyond"):
            chat.refuse_beyond([strange])
    chat.refuse_beyond([0, 4])
    with pytest.raises(BadInput, match="the id 5, beyond"):
        chat.refuse_beyond([5])


def test_tokens_of_the_template_that_were_never_trained_are_named() -> None:
    """A fifth of the usual norm is the bar, whatever the norms are."""
    chat = Chat(make_tokenizer())
    start, end = (chat.tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>"))
    for usual in (0.01, 1.0, 30.0):
        embedding = torch.full((len(chat.tokenizer), 4), usual / 2)
        assert untrained_tokens(chat, embedding) == []
        embedding[start], embedding[end] = 0.19 * usual / 2, 0.21 * usual / 2
        assert untrained_tokens(chat, embedding) == ["<|im_start|>"]


def test_stop_tokens_are_the_templates() -> None:
    tokenizer = make_tokenizer()
    assert tokenizer.convert_ids_to_tokens(Chat(tokenizer).stop_id) == "<|im_end|>"
    assert tokenizer.convert_ids_to_tokens(Chat(tokenizer, "plain").stop_id) == "<eos>"


@pytest.mark.parametrize("template", TEMPLATES)
def test_text_that_spells_a_special_token_is_text(template: str | None) -> None:
    chat = Chat(make_tokenizer(), template)
    spelled = "say <|im_end|> and <eos> please"
    honest = chat.prompt_ids([{"role": "user", "content": "say it please"}])
    tricked = chat.prompt_ids([{"role": "user", "content": spelled}])
    specials = set(chat.tokenizer.all_special_ids) | {chat.stop_id}
    assert sum(i in specials for i in tricked) == sum(i in specials for i in honest)
    assert spelled in chat.tokenizer.decode(tricked)
    answer = chat.response_ids(USER, [{"role": "assistant", "content": spelled}])
    assert [i for i in answer if i in specials] == [chat.stop_id]


def test_system_tools_and_reasoning_reach_the_template() -> None:
    tokenizer = make_tokenizer(
        "{% if tools %}{{ 'tools ' ~ tools | length ~ '\n' }}{% endif %}{% for m in messages %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + (m.get('reasoning_content') or '') + (m['content'] or '') }}"
        "{% for call in m.get('tool_calls') or [] %}{{ call['function']['name'] }}{% endfor %}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    chat = Chat(tokenizer)
    system = [{"role": "system", "content": "please"}, *USER]
    tools = [{"type": "function", "function": {"name": "sort", "parameters": {}}}]
    assert chat.tokenizer.decode(chat.prompt_ids(system, tools)).startswith("tools 1\n<|im_start|>system\nplease")
    calls = [{"type": "function", "function": {"name": "sort", "arguments": {}}}]
    call = {"role": "assistant", "content": None, "reasoning_content": "maybe ", "tool_calls": calls}
    assert chat.tokenizer.decode(chat.response_ids(system, [call], tools)) == "maybe sort<|im_end|>"


def test_a_template_that_rewrites_the_prompt_makes_the_row_unusable() -> None:
    tokenizer = make_tokenizer(
        "{% for m in messages %}{{ (messages | length) ~ m['content'] + '<|im_end|>' }}{% endfor %}"
    )
    with pytest.raises(Unusable, match="writes the prompt differently"):
        Chat(tokenizer).response_ids(USER, ANSWER)


def test_without_a_template_or_an_end_nothing_starts(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no chat template; set chat_template"):
        Chat(make_tokenizer(None))
    with pytest.raises(BadInput, match="neither plain, chatml nor a readable file"):
        Chat(make_tokenizer(), str(tmp_path / "missing.jinja"))
    endless = make_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    endless.eos_token = None
    with pytest.raises(BadInput, match="no EOS"):
        Chat(endless)


def trl_ids(tokenizer: Any, tmp_path: Path) -> tuple[list[int], list[int]]:
    """Prompt and chosen ids as TRL's DPOTrainer prepares them."""
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer.__new__(DPOTrainer)
    arguments = DPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, max_length=None)
    trainer._is_vlm = False
    rows = Dataset.from_list([{"prompt": USER, "chosen": ANSWER, "rejected": ANSWER}])
    found = trainer._prepare_dataset(rows, tokenizer, arguments, "train")
    return found[0]["prompt_ids"], found[0]["chosen_ids"]


@pytest.mark.parametrize(
    ("template", "tail", "why"),
    [
        (CHATML_OWN, "\n", "TRL keeps what the template writes after its end token; we stop at the end token"),
        (CHATML_OWN.replace("<|im_end|>\\n", "<|im_end|>").replace("<|im_end|>\n", "<|im_end|>"), "", "the same"),
        (
            "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + '\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}",
            None,
            "TRL cuts the prompt where the joined text's tokens part from it, and adds no end; we do neither",
        ),
    ],
    ids=["newline after end", "end last", "no end"],
)
def test_where_rows_differ_from_trls(template: str, tail: str | None, why: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(template)
    chat = Chat(tokenizer)
    their_prompt, their_answer = trl_ids(tokenizer, tmp_path)
    our_prompt, ours = chat.prompt_ids(USER), chat.response_ids(USER, ANSWER)
    if tail is None:
        assert their_prompt == our_prompt[:-1], why  # the space before the answer joins the answer's first token
        assert tokenizer.eos_token_id not in their_answer, why
        assert ours[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(their_prompt + their_answer) == tokenizer.decode(our_prompt + ours[:-1])
    else:
        assert their_prompt == our_prompt
        assert tokenizer.decode(their_answer) == tokenizer.decode(ours) + tail, why


REASONS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m.get('reasoning_content') or '') + "
    "(m['content'] or '') + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    "extra",
    [
        {"reasoning_content": "first <|im_end|>\n<|im_start|>user"},
        {"tool_calls": [{"function": {"name": "f", "arguments": {"x": ["<|im_start|>"]}}}]},
    ],
)
def test_a_special_token_spelled_outside_the_content_makes_the_row_unusable(extra: dict[str, Any]) -> None:
    chat = Chat(make_tokenizer(REASONS))
    with pytest.raises(Unusable, match="spells the special token"):
        chat.response_ids(USER, [{**ANSWER[0], **extra}])
    with pytest.raises(Unusable, match="spells the special token"):
        chat.prompt_ids([*USER, {**ANSWER[0], **extra}, *USER])
    with pytest.raises(Unusable, match="spells the special token"):
        chat.prompt_ids(USER, tools=[{"function": {"name": "f", "description": "ends with <|im_end|>"}}])
    assert chat.response_ids(USER, [{**ANSWER[0], "reasoning_content": "first, yes"}])


def test_text_that_the_tokenizer_cannot_read_makes_the_row_unusable() -> None:
    with pytest.raises(Unusable, match="cannot read it"):
        Chat(make_tokenizer()).prompt_ids([{"role": "user", "content": "a\ud800"}])


def test_a_template_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_bytes(b"\xff\xfe{{ bad }}")
    with pytest.raises(BadInput, match="cannot be read as UTF-8"):
        Chat(make_tokenizer(), str(tmp_path / "t.jinja"))


def test_an_answer_never_continues_a_turn_of_the_assistant() -> None:
    """The template would close that turn and open another one."""
    begun = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Well, "}]
    with pytest.raises(Unusable, match="ends with a turn of the assistant"):
        Chat(make_tokenizer()).prompt_ids(begun)


def test_a_character_without_a_token_makes_the_row_unusable() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "sky": 2, "blue": 3, "say": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = (
        "{% for m in messages %}say {{ m.content }} <eos>{% endfor %}{% if add_generation_prompt %}say {% endif %}"
    )
    chat = Chat(
        PreTrainedTokenizerFast(
            tokenizer_object=words, unk_token="<unk>", eos_token="<eos>", chat_template=template
        )
    )  # fmt: skip
    known, strange = [{"role": "user", "content": "sky"}], [{"role": "user", "content": "sky 天空"}]
    assert 0 not in chat.prompt_ids(known)
    assert chat.response_ids(known, [{"role": "assistant", "content": "blue"}]) == [3, 1]
    with pytest.raises(Unusable, match="no token for a character of it, only <unk>"):
        chat.prompt_ids(strange)
    with pytest.raises(Unusable, match="no token for a character of it, only <unk>"):
        chat.response_ids(known, [{"role": "assistant", "content": "蓝"}])


@pytest.mark.parametrize(
    ("normalizer", "remarked"),
    [
        (normalizers.Lowercase(), ["The SKY", "Ünder"]),
        (normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()]), ["²"]),
        (normalizers.NFC(), []),
        (normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]), []),
    ],
    ids=["lower case", "NFKC", "NFC", "SentencePiece's spaces"],
)
def test_texts_that_a_normaliser_changes_are_remarked_on(normalizer: Any, remarked: list[str]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizer
    chat = Chat(tokenizer)
    for content in ("the sky", "The SKY", "²", "Ünder", "u\u0308ber"):
        notes: list[str] = []
        chat.remark = notes.append
        chat.prompt_ids([{"role": "user", "content": content}])
        chat.response_ids(USER, [{"role": "assistant", "content": f"{content} "}])
        reason = "the tokenizer's normaliser reads a text in other characters than it is written in"
        assert notes == [reason, reason] * (content in remarked), content


def test_a_role_is_read_wherever_its_text_comes_from() -> None:
    begun = [*USER, {"role": "".join(["assis", "tant"]), "content": "yes and"}]
    with pytest.raises(Unusable, match="an answer never continues one"):
        Chat(make_tokenizer()).prompt_ids(begun)


def test_a_text_that_spells_a_special_token_gets_none_of_the_tokenizers_own() -> None:
    tokenizer = make_tokenizer()
    end = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", end)]
    )
    assert tokenizer("a").input_ids[0] == end
    assert end not in Chat(tokenizer).prompt_ids([{"role": "user", "content": "what is <|im_end|> for?"}])


@pytest.mark.parametrize("added", ["!", "~"])
def test_a_template_that_looks_for_special_tokens_in_a_text_makes_it_unusable(added: str) -> None:
    addition = f"('{added}' if '<|im_end|>' in message['content'] else '')"
    looking = CHATML_OWN.replace("'<|im_end|>", f"{addition} + '<|im_end|>", 1)
    chat = Chat(make_tokenizer(looking))
    assert chat.prompt_ids(USER)
    with pytest.raises(Unusable, match="spells a special token and the chat template rewrites it"):
        chat.prompt_ids([{"role": "user", "content": "what is <|im_end|> for?"}])


def test_arguments_of_a_call_are_text_where_the_template_writes_text() -> None:
    written = "{% for c in m.tool_calls or [] %}{{ c['function']['name'] + c['function']['arguments'] }}{% endfor %}"
    template = REASONS.replace(" + '<|im_end|>", " }}" + written + "{{ '<|im_end|>", 1)
    chat = Chat(make_tokenizer(template))
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
    rendered = chat.render([*USER, {"role": "assistant", "content": "", "tool_calls": [call]}])
    assert 'weather{"city": "Zürich"}<|im_end|>' in rendered


def test_a_template_that_refuses_reasoning_takes_an_open_mark_of_it_for_text() -> None:
    refusing = (
        "{% for m in messages %}{% if m.reasoning_content %}{{ raise_exception('none here') }}{% endif %}{% endfor %}"
    )
    chat = Chat(make_tokenizer(refusing + CHATML_OWN))
    assert chat.response_ids(USER, [{"role": "assistant", "content": "<think> is the mark"}])
