"""What a template is called with is fixed for a whole run: the day it prints, and every other argument."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import CHATML_OWN, add_stirred, make_tokenizer
from fixtures.templates import tokenizer_of

from align.core.config import BadInput, Compute, Template, TextConfig, build
from align.core.files import write_jsonl
from align.core.run_record import RunRecord
from align.core.runs import Run
from align.generate.prompts import Prompt
from align.generate.run import SampleConfig, _request, sample
from align.model.adapters import AdapterModel
from align.model.chat import Chat, Unusable
from align.model.sources import on_the_day_of, template_of
from rewards.model import add_reward

USER = [{"role": "user", "content": "hello world"}]
DATED = "{{ 'on ' + strftime_now('%d %B %Y, %-d.%-m.%y, 100%% %Q') + ' ' }}" + CHATML_OWN
THINKING = "{{ '/' ~ (enable_thinking if enable_thinking is defined else 'unset') ~ '/' }}" + CHATML_OWN


def finished(folder: Path, **fields: Any) -> Path:
    folder.mkdir(parents=True)
    record = RunRecord(
        id="x", stage="sft", status="finished", path=str(folder), seed=0, given={}, resolved=fields.pop("resolved", {})
    )
    Run(record.model_copy(update=fields)).save()
    return folder


@pytest.mark.parametrize(
    ("name", "printed"),
    [("llama3_2", "Today Date: 03 Feb 2025\n"), ("gptoss", "Current date: 2025-02-03\n")],
)
def test_a_shipped_template_prints_the_runs_day(name: str, printed: str) -> None:
    assert printed in Chat(tokenizer_of(name), day="2025-02-03").render(USER, ask=True)
    assert printed in Chat(tokenizer_of(name), arguments={"date": "2025-02-03"}, day="2026-01-01").render(USER)


@pytest.mark.parametrize("name", ["llama3_2", "gptoss"])
def test_the_frozen_clock_changes_nothing_but_the_day(name: str) -> None:
    """Against the template as transformers renders it, on the day that transformers takes it for."""
    tokenizer = tokenizer_of(name)
    before, theirs, after = Chat(tokenizer), tokenizer.apply_chat_template(USER, tokenize=False), Chat(tokenizer)
    assert theirs in (before.render(USER), after.render(USER))


def test_every_code_of_the_clock_is_the_days_own() -> None:
    assert (
        Chat(make_tokenizer(DATED), day="2025-02-03").render(USER).startswith("on 03 February 2025, 3.2.25, 100% %Q ")
    )


def test_the_day_is_today_without_a_run() -> None:
    days = {datetime.now(UTC).date().isoformat()}
    chat = Chat(make_tokenizer(DATED))
    assert chat.arguments["date"] in days | {datetime.now(UTC).date().isoformat()}


def test_a_rows_own_arguments_override_the_runs() -> None:
    chat = Chat(make_tokenizer(DATED), day="2025-02-03")
    assert chat.render(USER, None, {"date": "2024-12-31"}).startswith("on 31 December 2024")
    chat = Chat(make_tokenizer(THINKING), arguments={"enable_thinking": False})
    assert chat.render(USER).startswith("/False/")
    assert chat.render(USER, None, {"enable_thinking": True}).startswith("/True/")


def test_a_template_that_prints_no_day_has_none_in_its_fingerprint() -> None:
    chat = Chat(make_tokenizer(CHATML_OWN), arguments={"date": "2025-02-03"}, day="2025-02-04")
    assert chat.fingerprint() == {
        "template_sha256": hashlib.sha256(CHATML_OWN.encode()).hexdigest(),
        "template_arguments": {},
    }


def test_the_fingerprint_tells_days_arguments_and_templates_apart() -> None:
    dated = make_tokenizer(DATED)
    assert Chat(dated, day="2025-02-03").fingerprint() == Chat(dated, arguments={"date": "2025-02-03"}).fingerprint()
    assert Chat(dated, day="2025-02-03").fingerprint() != Chat(dated, day="2025-02-04").fingerprint()
    thinking = make_tokenizer(THINKING)
    off = Chat(thinking, arguments={"enable_thinking": False}).fingerprint()
    assert off["template_arguments"] == {"enable_thinking": False}
    assert off != Chat(thinking).fingerprint()
    own = Chat(make_tokenizer(CHATML_OWN)).fingerprint()
    assert own != Chat(make_tokenizer(CHATML_OWN), "plain").fingerprint()


def test_an_argument_that_the_template_never_reads_is_named() -> None:
    with pytest.raises(BadInput, match="template_arguments.enable_thinking: chat template tokenizer does not read it"):
        Chat(make_tokenizer(CHATML_OWN), arguments={"enable_thinking": False})
    with pytest.raises(BadInput, match="template_arguments.tokenize: is not free to set"):
        Chat(make_tokenizer(CHATML_OWN), arguments={"tokenize": True})


def test_a_row_whose_arguments_cannot_be_used_is_unusable() -> None:
    chat = Chat(make_tokenizer(DATED))
    with pytest.raises(Unusable, match="'date' is no day like 2026-11-28: 'tomorrow'"):
        chat.prompt_ids(USER, None, {"date": "tomorrow"})
    with pytest.raises(Unusable, match="'continue_final_message' is not free to set"):
        chat.prompt_ids(USER, None, {"continue_final_message": True})


def test_a_file_that_is_no_template_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages '")
    with pytest.raises(BadInput, match="is no Jinja template"):
        Chat(make_tokenizer(), str(tmp_path / "t.jinja"))


def test_the_configs_day_is_text_however_yaml_reads_it() -> None:
    def config(day: Any) -> TextConfig:
        data = {"stage": "x", "run": "r", "template_arguments": {"date": day, "enable_thinking": False}}
        return build(TextConfig, data, "c.yaml")

    asked = config(date(2025, 2, 3)).template("2026-11-28T10:00:00+00:00")
    assert asked == Template(None, {"date": "2025-02-03", "enable_thinking": False}, "2026-11-28")
    with pytest.raises(BadInput, match="date is no day like 2026-11-28: 'soon'"):
        config("soon")


def test_a_child_renders_as_its_parent_did(tmp_path: Path) -> None:
    arguments = {"date": "2025-02-03", "enable_thinking": False}
    parent = finished(
        tmp_path / "sft",
        resolved={"chat_template": "chatml"},
        template={"template_sha256": "0", "template_arguments": arguments},
    )
    assert template_of(parent, Template(day="2026-01-01")) == Template("chatml", arguments, "2026-01-01")
    own = template_of(parent, Template(arguments={"enable_thinking": True}))
    assert own.arguments == {"date": "2025-02-03", "enable_thinking": True}
    other = template_of(parent, Template("plain"))
    assert other.arguments == {"date": "2025-02-03"}, "another template is not called with the parent's arguments"
    assert template_of(tmp_path / "folder", Template("plain", {}, "2026-01-01")) == Template("plain", {}, "2026-01-01")
    assert on_the_day_of(Template(day="2026-01-01"), (None, tmp_path, parent)).day == "2025-02-03"
    assert on_the_day_of(Template(day="2026-01-01"), (None, tmp_path)).day == "2026-01-01"


@pytest.fixture
def dated_model(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """The tiny Llama with a template that prints the day."""
    shutil.copytree(model_folder("llama"), tmp_path / "model")
    make_tokenizer(DATED).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def sample_config(tmp_path: Path, name: str, policy: Path, **changes: Any) -> SampleConfig:
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "hello"}])
    return SampleConfig(
        run=tmp_path / name, policy=policy, prompts=tmp_path / "prompts.jsonl", k=1, max_new_tokens=2, **changes
    )


def test_a_run_goes_on_another_day_as_on_its_first(dated_model: Path, tmp_path: Path) -> None:
    config = sample_config(tmp_path, "run", dated_model)
    first = sample(config)
    assert first.template == Chat(make_tokenizer(DATED), day=first.created[:10]).fingerprint()
    earlier = first.model_copy(update={"status": "interrupted", "created": "2025-02-03T23:59:59+00:00"})
    Run(earlier).save()
    assert sample(config).template["template_arguments"] == {"date": "2025-02-03"}


def test_a_child_and_a_named_day_reach_the_run(dated_model: Path, tmp_path: Path) -> None:
    named = sample(sample_config(tmp_path, "named", dated_model, template_arguments={"date": "2025-02-03"}))
    assert named.template["template_arguments"] == {"date": "2025-02-03"}
    parent = finished(tmp_path / "sft", template=named.template)
    shutil.copytree(dated_model, parent / "model")
    child = sample(sample_config(tmp_path, "child", parent))
    assert child.template == named.template


def test_a_reward_model_reads_texts_as_it_was_trained_on_them(dated_model: Path, tmp_path: Path) -> None:
    model = AdapterModel(dated_model, Compute(device="cpu"), Template(day="2025-02-03"))
    add_stirred(model, "reward", head=True)
    reward = finished(tmp_path / "reward", stage="reward", template=model.chat.fingerprint())
    model.save_role("reward", reward / "adapter")
    add_reward(AdapterModel(dated_model, Compute(device="cpu"), Template(day="2025-02-03")), reward)
    with pytest.raises(BadInput, match="of another template_arguments.date than this stage renders"):
        add_reward(AdapterModel(dated_model, Compute(device="cpu"), Template(day="2025-02-04")), reward)
    with pytest.raises(BadInput, match="of another template_"):
        add_reward(AdapterModel(dated_model, Compute(device="cpu"), Template("plain")), reward)


def test_an_endpoint_is_asked_with_the_runs_arguments_under_the_rows(tmp_path: Path) -> None:
    config = SampleConfig(
        run=tmp_path, endpoint="http://127.0.0.1:9/v1", model="m", prompts=tmp_path,
        template_arguments={"enable_thinking": False, "reasoning_effort": "low"},
    )  # fmt: skip
    row = Prompt("id", USER, None, {"reasoning_effort": "high"}, "", "")
    assert _request(config, row).arguments == {"enable_thinking": False, "reasoning_effort": "high"}
    with pytest.raises(ValueError, match="sampler endpoint prints its own date"):
        SampleConfig(
            run=tmp_path, endpoint="http://127.0.0.1:9/v1", model="m", prompts=tmp_path,
            template_arguments={"date": "2025-02-03"},
        )  # fmt: skip


def test_a_template_file_that_changed_is_no_longer_the_runs(
    tmp_path: Path, model_folder: Callable[[str], Path]
) -> None:
    """A run that goes on, one that is finished, and a child that inherits the template all refuse another text."""
    template, prompts = tmp_path / "own.jinja", tmp_path / "prompts.jsonl"
    template.write_text(CHATML_OWN, encoding="utf-8")
    write_jsonl(prompts, [{"prompt": "hello"}])
    config = SampleConfig(
        run=tmp_path / "run", policy=model_folder("llama"), prompts=prompts, k=1, max_new_tokens=2,
        chat_template=str(template), compute=Compute(device="cpu"),
    )  # fmt: skip
    assert sample(config).status == "finished" == sample(config).status
    run = Run(RunRecord.model_validate_json((config.run / "run.json").read_text()))
    sft = finished(tmp_path / "sft", template=run.record.template, resolved={"chat_template": str(template)})
    assert template_of(sft, Template()).name == str(template)
    template.write_text(CHATML_OWN.replace("assistant\n", "assistant:"), encoding="utf-8")
    with pytest.raises(BadInput, match=r"chat template '.*own.jinja' has other content than what the run"):
        sample(config)
    with pytest.raises(BadInput, match="its chat template changed since it began"):
        run.renders_with(Chat(make_tokenizer(), str(template)))
    for name in (None, str(template)):
        with pytest.raises(BadInput, match=r"own.jinja: has other content than when .*sft was trained"):
            template_of(sft, Template(name))
    assert template_of(sft, Template("chatml")).name == "chatml"


def test_an_adapter_folder_that_brings_another_template_is_refused(
    tmp_path: Path, model_folder: Callable[[str], Path]
) -> None:
    """As TRL saves them: tokenizer and template lie beside the adapter, and the base's would be used instead."""
    model = AdapterModel(model_folder("llama"), Compute(device="cpu"))
    add_stirred(model, "policy")
    model.save_role("policy", tmp_path)
    assert template_of(tmp_path, Template()).name is None
    model.tokenizer.save_pretrained(tmp_path)
    assert template_of(tmp_path, Template()).name is None, "the base's own template, once more"
    (tmp_path / "chat_template.jinja").write_text(CHATML_OWN.replace("assistant\n", "assistant:"), encoding="utf-8")
    with pytest.raises(BadInput, match="brings a chat template that is not its base's; set chat_template"):
        template_of(tmp_path, Template())
    assert template_of(tmp_path, Template("chatml")).name == "chatml"
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": {"content": "<|im_end|>"}}))
    with pytest.raises(BadInput, match=r"ends answers with <\|im_end\|>, and the tokenizer of its base, .* with <eos>"):
        template_of(tmp_path, Template("chatml"))


def test_an_argument_of_a_row_that_nothing_reads_is_remarked_on_and_the_day_is_not() -> None:
    notes: list[str] = []
    chat = Chat(make_tokenizer(THINKING))
    chat.remark = notes.append
    chat.prompt_ids(USER, None, {"date": "2025-02-03", "enable_thinking": False})
    assert notes == []
    chat.prompt_ids(USER, None, {"effort": "low", "enable_thinking": False})
    assert notes == ["template argument 'effort', which the chat template does not read, has no effect"]
