"""Files that are never half there, and hashes that mean content."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.counting import CountConfig, count
from fixtures.paths import ROOT
from safetensors.torch import save_file

from align.core import hashes
from align.core.config import BadInput
from align.core.files import cut_jsonl, lock, read_jsonl, write_text
from align.core.hashes import artefact_hash


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_the_lock_refuses_a_second_process(tmp_path: Path, config: CountConfig) -> None:
    holder = run_python(
        "import sys; from pathlib import Path; from align.core.files import lock\n"
        "with lock(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()",
        str(tmp_path / "runs"),
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
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
    assert cut_jsonl(path, 2) == ([1, 2], ["line 4 (not JSON)"])
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]
    assert cut_jsonl(tmp_path / "nothing.jsonl", 2) == ([], []) and not (tmp_path / "nothing.jsonl").exists()


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


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="cannot be written"):
        write_text(tmp_path / "file" / "run.json", "x")


@pytest.mark.parametrize("row", ['{"id": ' + "9" * 5000 + "}", "[" * 100_000], ids=["digits", "depth"])
def test_json_beyond_what_python_reads_is_named_by_its_row(tmp_path: Path, row: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n' + row + "\n")
    with pytest.raises(BadInput, match=r"rows\.jsonl:2: not JSON"):
        read_jsonl(tmp_path / "rows.jsonl")


def test_hidden_folders_are_not_part_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = artefact_hash(tmp_path)
    (tmp_path / ".cache" / "download").mkdir(parents=True)
    (tmp_path / ".cache" / "download" / "config.json.metadata").write_text("when")
    assert artefact_hash(tmp_path) == before


def test_a_model_folder_is_hashed_as_it_is_loaded(tmp_path: Path) -> None:
    """An ``adapter/`` that lies in it is not what is loaded, so it does not stand for the weights."""
    (tmp_path / "config.json").write_text("{}")
    adapter(tmp_path, {"a": torch.ones(2)}, {"r": 4})
    for name in ("model", "value"):
        write_text(tmp_path / name / "note.txt", "x")
    hashes = set()
    for value in (1.0, 2.0):
        save_file({"weight": torch.full((2,), value)}, tmp_path / "model.safetensors")
        hashes.add((artefact_hash(tmp_path), artefact_hash(tmp_path, version=1)))
    assert len({new for new, _ in hashes}) == 2
    assert len({old for _, old in hashes}) == 1, "the old rule, by which old records are still compared"


def test_the_two_rules_agree_where_the_old_one_was_right(tmp_path: Path) -> None:
    run, model = tmp_path / "run", tmp_path / "model"
    adapter(run, {"a": torch.ones(2)}, {"r": 4, "base_model_name_or_path": str(model)})
    write_text(run / "run.json", "{}")
    model.mkdir()
    (model / "config.json").write_text("{}")
    save_file({"weight": torch.ones(2)}, model / "model.safetensors")
    for folder in (run, model):
        assert artefact_hash(folder) == artefact_hash(folder, version=1)


def test_the_hash_of_an_adapter_folder_covers_its_base(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    save_file({"weight": torch.ones(2)}, base / "model.safetensors")
    adapter(tmp_path, {"a": torch.ones(2)}, {"r": 4, "base_model_name_or_path": str(base)})
    before = artefact_hash(tmp_path / "adapter")
    save_file({"weight": torch.zeros(2)}, base / "model.safetensors")
    assert artefact_hash(tmp_path / "adapter") != before
    itself = adapter(tmp_path / "2", {"a": torch.ones(2)}, {"base_model_name_or_path": str(tmp_path / "2" / "adapter")})
    assert itself == artefact_hash(tmp_path / "2"), "an adapter that names itself as its base ends"


def test_a_large_file_is_read_again_only_where_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    read = hashes._read_tensor_hash
    monkeypatch.setattr(hashes, "_read_tensor_hash", lambda path: reads.append(path) or read(path))
    (tmp_path / "config.json").write_text("{}")
    large = {"weight": torch.zeros(1 << 22)}  # 16 MiB
    save_file(large, tmp_path / "model.safetensors")
    assert artefact_hash(tmp_path) == artefact_hash(tmp_path)
    assert len(reads) == 1
    large["weight"][7] = 1
    save_file(large, tmp_path / "changed.tmp.safetensors")
    before = artefact_hash(tmp_path)
    os.replace(tmp_path / "changed.tmp.safetensors", tmp_path / "model.safetensors")
    assert artefact_hash(tmp_path) != before


@pytest.mark.parametrize("header", [b"", b"abc", (2**62).to_bytes(8, "little") + b"{}" * 40])
def test_a_broken_safetensors_file_has_no_hash_and_is_named(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(header)
    with pytest.raises(BadInput, match=r"model\.safetensors: not a whole safetensors file .*; copy or make it again"):
        artefact_hash(tmp_path)


def test_json_that_python_cannot_take_apart_is_hashed_by_its_bytes(tmp_path: Path) -> None:
    """Whoever reads such a file says what is wrong with it; its hash is no place to end in a traceback."""
    deep = tmp_path / "config.json"
    deep.write_text("[" * 50_000 + "]" * 50_000)
    before = artefact_hash(tmp_path)
    deep.write_text("[" * 50_001 + "]" * 50_001)
    assert artefact_hash(tmp_path) != before
    deep.write_text('{"target_modules": ["q_proj", 1]}')
    mixed = artefact_hash(tmp_path)
    deep.write_text('{"target_modules": [1, "q_proj"]}')
    assert artefact_hash(tmp_path) == mixed
