"""Folders that cannot be listed are no empty folders: whoever searches runs says so, and passes over nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures.counting import CountConfig, count

from align.audit.evaluations import all_runs
from align.cli.ls import ls
from align.core.config import BadInput
from align.core.files import files_under, folders_in
from annotation.label_studio import server
from annotation.store.erasure import erase
from annotation.store.lineage import read_records, verify
from annotation.store.store import Store


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs folder whose ``closed`` cannot be listed, whoever runs the tests."""
    closed = tmp_path / "runs" / "closed"
    closed.mkdir(parents=True)

    def refusing(listing: Callable[..., Any]) -> Callable[..., Any]:
        def listed(path: Any = ".") -> Any:
            if str(path).endswith("closed"):
                raise PermissionError(13, "Permission denied", str(path))
            return listing(path)

        return listed

    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr(os, "listdir", refusing(os.listdir))
    return closed.parent


@pytest.mark.parametrize("search", [files_under, read_records, lambda folder: all_runs([folder])])
def test_a_folder_that_cannot_be_listed_is_named(search: Callable[[Path], Any], locked: Path) -> None:
    with pytest.raises(BadInput, match=r"runs/closed: cannot be listed \(Permission denied\); make it readable"):
        search(locked)


def test_so_is_the_folder_itself(locked: Path, store_path: Path) -> None:
    with pytest.raises(BadInput, match="closed: cannot be listed"):
        ls(str(locked / "closed"))
    with pytest.raises(BadInput, match="closed: cannot be listed"):
        verify(feedback=store_path, runs=locked / "closed")


def test_nothing_is_erased_before_the_runs_can_be_read(locked: Path, store_path: Path) -> None:
    for runs, told in ((locked, "cannot be listed"), (locked / "nope", "no such folder of runs")):
        with pytest.raises(BadInput, match=told):
            list(erase(annotator="ann", feedback=store_path, runs=runs))
    with Store.open(store_path) as store:
        assert len(store.judgments()) == 8


def test_a_run_behind_a_link_is_seen_and_a_loop_ends(tmp_path: Path, data: Path) -> None:
    made = count(CountConfig(stage="count", run=tmp_path / "disk" / "a", data=data))
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "a").symlink_to(tmp_path / "disk" / "a")
    (tmp_path / "disk" / "a" / "loop").symlink_to(runs)
    assert [record.created for record in read_records(runs)[0]] == [made.created]
    assert len(all_runs([runs])) == 1


def test_what_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert files_under(tmp_path / "nope") == folders_in(tmp_path / "nope") == []


def test_a_server_folder_that_says_nothing_is_no_stopped_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_is_held", lambda folder: True)
    with pytest.raises(BadInput, match=r"a server is starting, or server\.json was lost"):
        server.stop(tmp_path)

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(PermissionError):
        server.stop(tmp_path)


def test_a_full_disk_under_a_server_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tables: Path, data: Path) -> None:
        raise shutil.Error([(str(tables), str(data), f"[Errno 28] No space left on device: '{tables}' -> '{data}'")])

    monkeypatch.setattr(server, "template", lambda venv, say: tmp_path / "tables")
    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(BadInput) as error:
        server._prepare(tmp_path, tmp_path / "venv", print)
    assert "data: cannot be written ([Errno 28] No space left on device); make room" in str(error.value)
    assert (tmp_path / "unfinished").exists(), "the next start begins anew"
