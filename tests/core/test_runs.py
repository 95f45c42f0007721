"""Runs that are written once, and say what they read and found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.counting import CountConfig, count, everything

from align.core.config import BadInput, Optim, build
from align.core.files import write_json, write_text
from align.core.hashes import HASH_VERSION, artefact_hash
from align.core.run_record import finished_run, read_run
from align.core.runs import Run


def test_a_run_records_what_it_read_and_found(config: CountConfig, data: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    record = count(config, lambda run: seen.append(read_run(run.path).status))
    assert seen == ["running"], "a crash must show, so the record stands before the work starts"
    assert record == read_run(config.run)
    assert (record.status, record.headline, record.error) == ("finished", {"n": 2}, None)
    assert record.inputs["data"]["path"] == str(data)
    assert record.artefact == artefact_hash(config.run) == record.lineage["count"]
    assert record.given.keys() == {"run", "data"} and record.resolved["optim"]["lr"] == 1e-4
    child = count(CountConfig(run=tmp_path / "runs" / "b", data=data, more=[config.run]))
    assert child.parents["more[0]"]["id"] == record.id
    assert child.inputs["more[0]"]["sha256"] == record.artefact


@pytest.mark.parametrize(("given", "noted"), [(5, "5"), ({"a": 1}, "{'a': 1}"), ("a\ud800b", "a\ufffdb")])
def test_a_note_is_text_and_its_run_stays_readable(config: CountConfig, given: Any, noted: str) -> None:
    count(config, lambda run: run.note(given))
    assert read_run(config.run).notes == [noted]


def test_a_finished_run_is_returned_untouched(config: CountConfig, data: Path, tmp_path: Path) -> None:
    record = count(config)
    before = everything(config.run)
    assert before
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(data.read_bytes())

    def never(run: Run) -> None:
        raise AssertionError("a finished run was run again")

    assert count(config, never) == record
    assert count(config.model_copy(update={"data": moved}), never) == record  # the same content, wherever it lies
    assert everything(config.run) == before


@pytest.mark.parametrize(
    ("change", "told"),
    [({"seed": 1}, "key 'seed' differs"), ({"optim": Optim(lr=0.5)}, "key 'optim.lr' differs")],
)
def test_another_config_is_refused_by_its_key(change: dict[str, Any], told: str, config: CountConfig) -> None:
    count(config)
    before = everything(config.run)
    with pytest.raises(BadInput, match=told):
        count(config.model_copy(update=change))
    assert everything(config.run) == before


def test_other_inputs_are_refused_by_their_name(config: CountConfig, data: Path) -> None:
    count(config)
    with pytest.raises(BadInput, match=r"input 'more\[0\]' has other content"):
        count(config.model_copy(update={"more": [data]}))
    data.write_text('{"a": 1}\n')
    with pytest.raises(BadInput, match="input 'data' has other content"):
        count(config)


def test_a_missing_input_starts_nothing(tmp_path: Path) -> None:
    config = CountConfig(run=tmp_path / "runs" / "a", data=tmp_path / "nowhere.jsonl")
    with pytest.raises(BadInput, match="nowhere.jsonl: no such file or folder; name one on this machine"):
        count(config)
    assert not config.run.exists()


@pytest.mark.parametrize(
    ("raised", "status"), [(ZeroDivisionError("oh\nno"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_crash_shows_and_the_same_command_goes_on(
    raised: BaseException, status: str, config: CountConfig, data: Path, tmp_path: Path
) -> None:
    def crash(run: Run) -> None:
        raise raised

    with pytest.raises(type(raised)):
        count(config, crash)
    record = read_run(config.run)
    assert record.status == status and record.error is not None and "\n" not in record.error
    with pytest.raises(BadInput, match=f"'{status}', not finished"):
        finished_run(config.run)
    with pytest.raises(BadInput, match="not finished"):
        count(CountConfig(run=tmp_path / "runs" / "b", data=data, more=[config.run]))
    after = count(config)
    assert (after.status, after.error, after.id) == ("finished", None, record.id)


def test_a_run_that_failed_before_it_wrote_anything_may_be_asked_again_otherwise(
    config: CountConfig, data: Path
) -> None:
    def fail(run: Run) -> None:
        raise BadInput("mend the data")

    def fail_late(run: Run) -> None:
        write_text(run.path / "adapter.txt", "half")
        fail(run)

    with pytest.raises(BadInput):
        count(config, fail)
    data.write_text('{"a": 1}\n')
    other = CountConfig(run=config.run, data=data, optim=Optim(lr=2.0))
    with pytest.raises(BadInput, match="mend the data"):
        count(other, fail_late)
    assert read_run(config.run).resolved["optim"]["lr"] == 2.0
    with pytest.raises(BadInput, match="key 'optim.lr' differs"):
        count(config)
    assert count(other).headline == {"n": 1}


@pytest.mark.parametrize(
    "change", [{"headline": {"n": 3}}, {"artefact": "0" * 64}, {"status": "failed"}, {"lineage": {}}]
)
def test_a_record_edited_by_hand_is_refused(change: dict[str, Any], config: CountConfig, tmp_path: Path) -> None:
    count(config)
    file = config.run / "run.json"
    record = json.loads(file.read_text())
    write_json(file, record)  # the same content in another layout is no edit
    assert read_run(config.run).headline == {"n": 2}
    write_json(file, record | change)
    for read in (lambda: read_run(config.run), lambda: count(config)):
        with pytest.raises(BadInput, match=r"run\.json: edited after the run wrote it .*run `count` again"):
            read()


def test_a_stage_that_does_not_divide_its_work_is_not_started_in_several_processes(
    config: CountConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="stage 'count' works in one process, and 2 were started .WORLD_SIZE.; start it"):
        count(config)
    assert not config.run.exists()


class CodedConfig(CountConfig):
    """One whose rule is code that may change."""

    code: str = "a"

    def input_hashes(self) -> dict[str, str]:
        return {"code": CODE["sha256"]}


CODE = {"sha256": "1" * 64}


def test_a_record_without_the_hash_of_its_code_is_compared_without_it(
    config: CountConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    coded = CodedConfig(run=config.run, data=config.data)
    record = count(coded)
    assert record.inputs["code"]["sha256"] == "1" * 64
    monkeypatch.setitem(CODE, "sha256", "2" * 64)
    with pytest.raises(BadInput, match="input 'code' has other content"):
        count(coded)
    record.inputs.pop("code")
    write_text(config.run / "run.json", record.sealed())
    assert count(coded).id == record.id


def test_finished_run_checks_the_stage(config: CountConfig, tmp_path: Path) -> None:
    count(config)
    with pytest.raises(BadInput, match="expected a run of dpo or ppo, found 'count'"):
        finished_run(config.run, ("dpo", "ppo"))
    with pytest.raises(BadInput, match="not a run folder"):
        read_run(tmp_path)
    write_text(tmp_path / "run.json", "{}")
    with pytest.raises(BadInput, match="not a readable run record"):
        read_run(tmp_path)


def test_no_secret_is_needed_or_written(config: CountConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_thisMustNotBeWritten"
    for name in ("HF_TOKEN", "WANDB_API_KEY", "LABEL_STUDIO_API_KEY"):
        monkeypatch.setenv(name, secret)
    count(config)
    assert all(secret.encode() not in content for _, content in everything(tmp_path).values())
    with pytest.raises(BadInput, match="unknown key 'api_key'"):
        build(CountConfig, {"run": "a", "data": "b", "api_key": "x"}, "f")


def test_a_finished_run_whose_files_were_changed_is_no_input(data: Path, tmp_path: Path) -> None:
    count(CountConfig(run=tmp_path / "one", data=data))
    count(CountConfig(run=tmp_path / "two", data=data, more=[tmp_path / "one"]))
    (tmp_path / "one" / "result.json").write_text('{"n": 3}')
    with pytest.raises(BadInput, match="one: its files are not those the run left"):
        count(CountConfig(run=tmp_path / "three", data=data, more=[tmp_path / "one"]))


def spoil(name: str, data: Path, tmp_path: Path) -> CountConfig:
    """A config whose run folder is not this run's to write to; what lies there already is in ``everything``."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    if name == "prompts":
        write_text(folder / "prompts.jsonl", "{}")
    elif name == "a config of somebody's":
        write_text(folder / "config.yaml", "learning_rate: 1")
    elif name == "another program's run.json":
        write_text(folder / "run.json", '{"name": "mine"}')
    elif name == "a folder of folders":
        (folder / "empty").mkdir()
    elif name == "a file":
        return CountConfig(run=data, data=tmp_path / "theirs")
    elif name == "the input":
        return CountConfig(run=folder, data=data, more=[folder])
    elif name == "in an input":
        return CountConfig(run=folder / "deep" / "run", data=data, more=[folder / "."])
    elif name == "above an input":
        return CountConfig(run=tmp_path, data=data)
    elif name == "in a run":
        count(CountConfig(run=folder / "first", data=data))
        return CountConfig(run=folder / "first" / "second", data=data)
    return CountConfig(run=folder, data=data)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("prompts", "holds prompts.jsonl and no run"),
        ("a config of somebody's", "holds config.yaml and no run"),
        ("another program's run.json", "another program's"),
        ("a folder of folders", "holds empty and no run"),
        ("a file", "is a file"),
        ("the input", r"lies in the input 'more\[0\]'"),
        ("in an input", r"lies in the input 'more\[0\]'"),
        ("above an input", "holds the input 'data'"),
        ("in a run", "lies in the run .*first"),
    ],
)
def test_a_run_is_written_only_into_a_folder_of_its_own(name: str, told: str, data: Path, tmp_path: Path) -> None:
    config = spoil(name, data, tmp_path)
    before = everything(tmp_path)
    with pytest.raises(BadInput, match=f"{told}.*choose") as error:
        count(config)
    assert "\n" not in str(error.value)
    assert everything(tmp_path) == before, "nothing was touched, not even by a lock"


def test_a_link_to_nowhere_is_no_run_folder(data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(BadInput, match="is a link to .*gone, which is not there; make that folder or mend the link"):
        count(CountConfig(run=tmp_path / "link", data=data))
    (tmp_path / "gone").mkdir()
    assert count(CountConfig(run=tmp_path / "link", data=data)).status == "finished"


def test_what_a_kill_at_the_very_start_leaves_is_no_hindrance(config: CountConfig) -> None:
    write_text(config.run / "run.json.tmp", '{"id": "cou')
    assert count(config).status == "finished"


# --- the rule of the hashes ----------------------------------------------------------------------------------


def model_with_leftovers(folder: Path, content: str) -> Path:
    """A model folder that also holds ``adapter/``, which the old rule let stand for all of it."""
    write_text(folder / "config.json", "{}")
    write_text(folder / "tokenizer.json", json.dumps({"content": content}))
    write_text(folder / "adapter" / "adapter_config.json", "{}")
    return folder


def written_by_the_old_rule(run: Path, model: Path) -> None:
    """Make a record what it was before the rule was recorded."""
    record = json.loads((run / "run.json").read_text())
    del record["hash_version"], record["checksum"]
    record["inputs"]["more[0]"]["sha256"] = artefact_hash(model, version=1)
    (run / "run.json").write_text(json.dumps(record))


def test_a_changed_model_makes_another_run(config: CountConfig, tmp_path: Path) -> None:
    asked = config.model_copy(update={"more": [model_with_leftovers(tmp_path / "model", "one")]})
    assert count(asked).hash_version == HASH_VERSION
    model_with_leftovers(tmp_path / "model", "two")
    with pytest.raises(BadInput, match=r"input 'more\[0\]' has other content"):
        count(asked)


def test_a_finished_run_of_the_old_rule_is_compared_by_it(config: CountConfig, tmp_path: Path) -> None:
    model = model_with_leftovers(tmp_path / "model", "one")
    asked = config.model_copy(update={"more": [model]})
    count(asked)
    written_by_the_old_rule(config.run, model)
    assert artefact_hash(model) != artefact_hash(model, version=1)
    before = everything(config.run)
    assert count(asked).hash_version == 1
    assert everything(config.run) == before
    write_text(model / "adapter" / "adapter_config.json", '{"r": 4}')
    with pytest.raises(BadInput, match=r"input 'more\[0\]' has other content"):
        count(asked)


def test_an_unfinished_run_of_the_old_rule_goes_on_by_todays(config: CountConfig, tmp_path: Path) -> None:
    def crash(run: Run) -> None:
        raise ZeroDivisionError

    model = model_with_leftovers(tmp_path / "model", "one")
    asked = config.model_copy(update={"more": [model]})
    with pytest.raises(ZeroDivisionError):
        count(asked, crash)
    written_by_the_old_rule(config.run, model)
    record = count(asked)
    assert record.hash_version == HASH_VERSION
    assert record.inputs["more[0]"]["sha256"] == artefact_hash(model)


def test_a_run_whose_base_has_changed_is_no_input(config: CountConfig, tmp_path: Path) -> None:
    """Its own hash covers the adapter alone; what stood on the old base would be taken for the new one's."""
    base = tmp_path / "base"
    write_text(base / "config.json", "{}")

    def train(run: Run) -> None:
        run.record.lineage["base"] = artefact_hash(base)
        write_json(run.path / "adapter" / "adapter_config.json", {"base_model_name_or_path": str(base)})

    count(config, train)
    child = CountConfig(run=tmp_path / "runs" / "b", data=config.data, more=[config.run])
    count(child)
    count(child)
    write_text(base / "config.json", '{"hidden_size": 8}')
    for asked in (child, child.model_copy(update={"run": tmp_path / "runs" / "c"})):
        with pytest.raises(BadInput, match="its base .*base has other content than when this run was trained"):
            count(asked)
