"""Configs that cannot lie, runs that are written once, files that are never half there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import Field
from safetensors.torch import save_file

from align.core.config import BadInput, Compute, Frozen, Optim, StageConfig, build, override, parse_yaml, read_yaml
from align.core.files import artefact_hash, cut_jsonl, lock, read_jsonl, write_json, write_text
from align.core.runs import Run, finished_run, read_run, stage

ROOT = Path(__file__).resolve().parent.parent


class Section(Frozen):
    optim: Optim = Optim()
    compute: Compute = Compute()
    steps: list[Optim] = []
    beta: float = Field(default=0.1, gt=0)


# --- one YAML ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"betta": 1}, "f.yaml: unknown key 'betta'; did you mean 'beta'?"),
        ({"optim": {"learning_rate": 1, "lr": 1}}, "unknown key 'optim.learning_rate'; valid keys: betas, eps, lr"),
        ({"optim": {"weight_decy": 1}}, "unknown key 'optim.weight_decy'; did you mean 'weight_decay'?"),
        ({"compute": {"dtyp": "float32"}}, "unknown key 'compute.dtyp'; did you mean 'dtype'?"),
        ({"steps": [{"schedul": "linear"}]}, "unknown key 'steps.0.schedul'; did you mean 'schedule'?"),
        ({"beta": -1}, "key 'beta': Input should be greater than 0 (given: -1)"),
        ({"compute": {"dtype": "float16"}}, "key 'compute.dtype': Input should be 'float32' or 'bfloat16'"),
        ({"optim": {"lr": "fast"}}, "key 'optim.lr'"),
    ],
)
def test_a_wrong_key_or_value_is_named(data: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput) as error:
        build(Section, data, "f.yaml")
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="f.yaml: key 'run' is missing; add it"):
        build(StageConfig, {"stage": "x"}, "f.yaml")


@pytest.mark.parametrize(("text", "line"), [("a: 1\nb: 2\na: 3\n", 3), ("a:\n  b: 1\n  c: 2\n  b: 3\n", 4)])
def test_a_repeated_key_is_refused_with_its_line(text: str, line: int, tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=rf"twice\.yaml:{line}: key '[ab]' stands twice"):
        read_yaml(path)


@pytest.mark.parametrize("text", ["3e-6", "3E-6", "+3e-6", "3.0e-6", ".3e-5", "0.000003"])
def test_scientific_notation_is_a_number(text: str) -> None:
    value = parse_yaml(f"lr: {text}", "f")["lr"]
    assert isinstance(value, float) and value == pytest.approx(3e-6)


@pytest.mark.parametrize("text", ["3e-6x", "e5", "'3e-6'", "v3e6"])
def test_what_only_looks_like_a_number_is_text(text: str) -> None:
    assert isinstance(parse_yaml(f"name: {text}", "f")["name"], str)


def test_overrides_are_dotted_typed_and_leave_the_original_alone() -> None:
    data: dict[str, Any] = {"optim": {"lr": 1.0}, "beta": 0.5}
    changed = override(data, ["optim.lr=1e-6", "compute.max_tokens=64", "optim.betas=[0.8, 0.9]"])
    assert data == {"optim": {"lr": 1.0}, "beta": 0.5}
    found = build(Section, changed, "f")
    assert (found.optim.lr, found.optim.betas, found.compute.max_tokens, found.beta) == (1e-6, (0.8, 0.9), 64, 0.5)


@pytest.mark.parametrize(("assignment", "told"), [
    ("beta", "written key=value"), ("=3", "written key=value"), ("beta.x=1", "'beta' holds a value, not a section"),
    ("optim.lr=[1", "not valid YAML"),
])  # fmt: skip
def test_a_wrong_override_is_refused(assignment: str, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        override({"beta": 1}, [assignment])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such config file"),
        (b"- 1\n", "expected 'key: value' lines, found list"),
        (b"", "expected 'key: value' lines, found NoneType"),
        (b"a: [1\n", "bad.yaml:2: not valid YAML"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"a: !!python/object:os.system x\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_config_is_named(content: bytes | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match="bad.yaml") as error:
        read_yaml(path)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Section().beta = 3  # type: ignore[misc]


# --- runs --------------------------------------------------------------------------------------------------


class CountConfig(StageConfig):
    INPUTS: ClassVar[tuple[str, ...]] = ("data", "more")

    stage: Literal["count"] = "count"
    data: Path
    more: list[Path] = []
    optim: Optim = Optim()


@stage
def count(config: CountConfig, run: Run, body: Callable[[Run], None] = lambda run: None) -> dict[str, Any]:
    """Count the lines of a file."""
    body(run)
    rows = read_jsonl(config.data)
    write_json(run.path / "result.json", {"n": len(rows)})
    return {"n": len(rows)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    return path


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_a_run_records_what_it_read_and_found(data: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    record = count(
        CountConfig(run=tmp_path / "runs" / "a", data=data), lambda run: seen.append(read_run(run.path).status)
    )
    assert seen == ["running"], "a crash must show, so the record stands before the work starts"
    assert record == read_run(tmp_path / "runs" / "a")
    assert (record.status, record.headline, record.error) == ("finished", {"n": 2}, None)
    assert record.inputs["data"]["path"] == str(data)
    assert record.artefact == artefact_hash(tmp_path / "runs" / "a") == record.lineage["count"]
    assert record.given.keys() == {"run", "data"} and record.resolved["optim"]["lr"] == 1e-4
    child = count(CountConfig(run=tmp_path / "runs" / "b", data=data, more=[tmp_path / "runs" / "a"]))
    assert child.parents["more[0]"]["id"] == record.id
    assert child.inputs["more[0]"]["sha256"] == record.artefact


def test_a_finished_run_is_returned_untouched(data: Path, tmp_path: Path) -> None:
    config = CountConfig(run=tmp_path / "runs" / "a", data=data)
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
def test_another_config_is_refused_by_its_key(change: dict[str, Any], told: str, data: Path, tmp_path: Path) -> None:
    config = CountConfig(run=tmp_path / "runs" / "a", data=data)
    count(config)
    before = everything(config.run)
    with pytest.raises(BadInput, match=told):
        count(config.model_copy(update=change))
    assert everything(config.run) == before


def test_other_inputs_are_refused_by_their_name(data: Path, tmp_path: Path) -> None:
    config = CountConfig(run=tmp_path / "runs" / "a", data=data)
    count(config)
    with pytest.raises(BadInput, match=r"input 'more\[0\]' has other content"):
        count(config.model_copy(update={"more": [data]}))
    data.write_text('{"a": 1}\n')
    with pytest.raises(BadInput, match="input 'data' has other content"):
        count(config)


def test_a_missing_input_starts_nothing(tmp_path: Path) -> None:
    config = CountConfig(run=tmp_path / "runs" / "a", data=tmp_path / "nowhere.jsonl")
    with pytest.raises(BadInput, match="nowhere.jsonl: no such file or folder"):
        count(config)
    assert not config.run.exists()


@pytest.mark.parametrize(
    ("raised", "status"), [(ZeroDivisionError("oh\nno"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_crash_shows_and_the_same_command_goes_on(
    raised: BaseException, status: str, data: Path, tmp_path: Path
) -> None:
    config = CountConfig(run=tmp_path / "runs" / "a", data=data)

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


def test_finished_run_checks_the_stage(data: Path, tmp_path: Path) -> None:
    count(CountConfig(run=tmp_path / "runs" / "a", data=data))
    with pytest.raises(BadInput, match="expected a run of dpo or ppo, found 'count'"):
        finished_run(tmp_path / "runs" / "a", ("dpo", "ppo"))
    with pytest.raises(BadInput, match="not a run folder"):
        read_run(tmp_path)
    write_text(tmp_path / "run.json", "{}")
    with pytest.raises(BadInput, match="not a readable run record"):
        read_run(tmp_path)


def test_no_secret_is_needed_or_written(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_thisMustNotBeWritten"
    for name in ("HF_TOKEN", "WANDB_API_KEY", "LABEL_STUDIO_API_KEY"):
        monkeypatch.setenv(name, secret)
    count(CountConfig(run=tmp_path / "runs" / "a", data=data))
    assert all(secret.encode() not in content for _, content in everything(tmp_path).values())
    with pytest.raises(BadInput, match="unknown key 'api_key'"):
        build(CountConfig, {"run": "a", "data": "b", "api_key": "x"}, "f")


# --- files -------------------------------------------------------------------------------------------------


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_the_lock_refuses_a_second_process(tmp_path: Path, data: Path) -> None:
    holder = run_python(
        "import sys; from pathlib import Path; from align.core.files import lock\n"
        "with lock(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()",
        str(tmp_path / "runs"),
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    config = CountConfig(run=tmp_path / "runs" / "a", data=data)
    with pytest.raises(BadInput, match="another process is working in this runs folder"):
        count(config)
    assert not config.run.exists()
    holder.communicate("")
    assert holder.returncode == 0
    with lock(tmp_path / "runs"), lock(tmp_path / "runs"):  # re-entrant: a recipe holds it around its stages
        assert count(config).status == "finished"


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path: Path) -> None:
    """The system refuses to let files grow past 1,000 bytes: what a full disk looks like."""
    path = tmp_path / "run.json"
    write_text(path, "old")
    code = (
        "import resource, signal, sys; from pathlib import Path; from align.core.config import BadInput\n"
        "from align.core.files import write_text\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_text(Path(sys.argv[1]), 'new' * 10000)\nexcept BadInput as error:\n    print(error)"
    )
    told = run_python(code, str(path)).communicate()[0]
    assert "run.json: cannot be written" in told and "nothing was changed" in told
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"run.json": "old"}


def test_a_process_killed_while_writing_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text(path, "old")
    code = (
        "import os, signal, sys; from pathlib import Path; from align.core import files\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_text(Path(sys.argv[1]), 'new' * 10000)"
    )
    killed = run_python(code, str(path))
    killed.communicate()
    assert killed.returncode == -9
    assert path.read_text() == "old"
    before = artefact_hash(tmp_path)
    for aside in tmp_path.glob("*.tmp"):
        aside.unlink()
    assert artefact_hash(tmp_path) == before, "what a killed process left aside is no part of an artefact"


def test_reading_json_lines_names_the_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a\u2028b"}\n\n{"text": "c"}\n', encoding="utf-8")
    assert read_jsonl(path) == [{"text": "a\u2028b"}, {"text": "c"}]
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(BadInput, match=r"rows\.jsonl:2: not JSON"):
        read_jsonl(path)
    path.write_text('{"a": 1}\n3\n')
    with pytest.raises(BadInput, match=r"rows\.jsonl:2: expected a JSON object, found int"):
        read_jsonl(path)


def test_journals_are_cut_back_to_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    cut_jsonl(path, 2)
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]


# --- the hash of an artefact -------------------------------------------------------------------------------


def adapter(folder: Path, tensors: dict[str, torch.Tensor], settings: dict[str, Any]) -> str:
    folder = folder / "adapter"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return artefact_hash(folder.parent)


def test_the_artefact_hash_is_of_content(tmp_path: Path) -> None:
    a, b = torch.arange(4.0), torch.arange(6.0).view(2, 3)
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
    first = adapter(tmp_path / "1", {"a": a, "b": b}, settings)
    header = (tmp_path / "1" / "adapter" / "adapter_model.safetensors").read_bytes()
    second = adapter(tmp_path / "2", {"a": a, "b": b}, {"target_modules": ["v_proj", "q_proj"], "r": 4})
    assert first == second, "the order of a JSON list of names or of keys is no content"

    # the same tensors in another order in the file, with metadata
    size = int.from_bytes(header[:8], "little")
    table = json.loads(header[8 : 8 + size])
    length = table["a"]["data_offsets"][1] - table["a"]["data_offsets"][0]
    raw = {name: header[8 + size :][slice(*table[name]["data_offsets"])] for name in ("a", "b")}
    table["b"]["data_offsets"] = [0, len(raw["b"])]
    table["a"]["data_offsets"] = [len(raw["b"]), len(raw["b"]) + length]
    turned = json.dumps({"__metadata__": {"made": "today"}, "b": table["b"], "a": table["a"]}).encode()
    file = tmp_path / "2" / "adapter" / "adapter_model.safetensors"
    file.write_bytes(len(turned).to_bytes(8, "little") + turned + raw["b"] + raw["a"])
    assert file.read_bytes() != header and artefact_hash(tmp_path / "2") == first

    changed = b.clone()
    changed[1, 2] += 1e-6
    others = [
        adapter(tmp_path / "3", {"a": a, "b": changed}, settings),
        adapter(tmp_path / "4", {"a": a, "c": b}, settings),
        adapter(tmp_path / "5", {"a": a, "b": b.view(3, 2)}, settings),
        adapter(tmp_path / "6", {"a": a, "b": b}, settings | {"r": 8}),
    ]
    assert len({first, *others}) == 5


def test_what_does_not_belong_to_the_artefact_is_not_hashed(tmp_path: Path) -> None:
    before = adapter(tmp_path, {"a": torch.ones(2)}, {"r": 4})
    for name in ("run.json", "metrics.jsonl", "checkpoints/step-1/state.json", "tracker/x", "adapter/README.md"):
        write_text(tmp_path / name, "{}")
    assert artefact_hash(tmp_path) == before
    write_text(tmp_path / "value" / "adapter_config.json", "{}")
    assert artefact_hash(tmp_path) != before
