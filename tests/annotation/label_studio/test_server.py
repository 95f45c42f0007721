"""The embedded labelling server: started, found, stopped, closed to others, its secrets kept."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.studio import VENV

from align.core.config import BadInput
from annotation.label_studio import accounts
from annotation.label_studio.installation import install
from annotation.label_studio.server import Server, start, status, stop
from annotation.label_studio.studio import Studio

# --- secrets --------------------------------------------------------------------------------------------------


def test_no_secret_on_a_command_line_or_in_a_file_for_all(server: Server, studio: Studio) -> None:
    account = accounts.create_annotator(server.url, server.token, "green-3")
    assert studio.users()[max(studio.users())] == account.email == "green-3@annotators.invalid"
    with pytest.raises(BadInput, match="take another alias"):
        accounts.create_annotator(server.url, server.token, "green-3")
    secrets = [server.token, account.password, *filter(None, [server.password])]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        assert not any(secret in line for secret in secrets)
    holders = [
        path
        for path in server.folder.rglob("*")
        if path.is_file() and any(secret.encode() in path.read_bytes() for secret in secrets)
    ]
    assert (server.folder / "token") in holders and all(
        path.name in ("token", "label_studio.sqlite3") for path in holders
    )
    assert (server.folder / "token").stat().st_mode & 0o777 == 0o600
    assert (server.folder / "data" / ".env").stat().st_mode & 0o777 == 0o600
    assert server.folder.stat().st_mode & 0o077 == 0
    assert server.token not in repr(server) and account.password not in (server.folder / "server.log").read_text()


def test_the_server_signs_with_a_key_that_it_reads_back_as_it_stands(server: Server) -> None:
    """Its own keys hold signs, and one that begins with a dollar is lost at every restart, with all tokens."""
    assert re.fullmatch(r"SECRET_KEY=[0-9a-f]{64}\n", (server.folder / "data" / ".env").read_text())


def test_an_invitation_is_good_for_one(server: Server, studio: Studio) -> None:
    accounts.create_annotator(server.url, server.token, "red-1")
    used = re.findall(r"signup/\?token=(\w+)", (server.folder / "server.log").read_text())
    assert used and studio.connection.read("api/invite")["token"] not in used


@pytest.mark.parametrize("alias", ["", "Anna Smith", "a@b.c", "-x", "admin"])
def test_an_alias_is_no_address(server: Server, alias: str) -> None:
    with pytest.raises(BadInput, match="alias"):
        accounts.create_annotator(server.url, server.token, alias)


# --- the process ----------------------------------------------------------------------------------------------


def test_a_running_server_is_found_and_closed_to_others(server: Server) -> None:
    assert start(server.folder, VENV).url == server.url
    assert status(server.folder) == ("running", server.url, status(server.folder).pid)
    port = int(server.url.rsplit(":", 1)[1].strip("/"))
    others = {line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"}
    assert f"0100007F:{port:04X}" in others and f"00000000:{port:04X}" not in others


def test_a_stale_pid_is_no_server(tmp_path: Path) -> None:
    """The pid in the file is somebody else's by now, who is left alone."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as other:
        (tmp_path / "server.json").write_text(json.dumps({"pid": other.pid, "port": 1, "version": "0"}))
        assert status(tmp_path).state == "stopped" and not stop(tmp_path)
        assert other.poll() is None
        other.kill()
    assert status(tmp_path / "nothing").state == "stopped" and not stop(tmp_path / "nothing")


def test_a_busy_port_is_refused(server: Server, tmp_path: Path) -> None:
    port = int(server.url.rsplit(":", 1)[1].strip("/"))
    with pytest.raises(BadInput, match=f"port {port} is taken"):
        start(tmp_path / "other", VENV, port=port, say=lambda line: None)
    assert status(tmp_path / "other").state == "stopped"


def test_a_start_that_was_killed_begins_anew(server: Server, tmp_path: Path) -> None:
    """Between the account and the kept token: nobody knows the password, and nothing of worth is there yet."""
    folder = tmp_path / "killed"
    first = start(folder, VENV, say=lambda line: None)
    os.killpg(first.pid, signal.SIGKILL)
    os.waitpid(first.pid, 0)
    (folder / "token").unlink()
    with pytest.raises(BadInput, match="token: cannot be read"):
        start(folder, VENV, say=lambda line: None)
    stop(folder)
    (folder / "unfinished").touch()
    second = start(folder, VENV, say=lambda line: None)
    assert stop(folder) and second.password and second.token != first.token
    keys = [(one / "data" / ".env").read_text() for one in (folder, server.folder)]
    assert keys[0] != keys[1]  # a token of one campaign opens no other


def test_an_environment_of_another_kind_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("annotation.label_studio.installation._run", lambda command, fault: pytest.fail(fault))
    (tmp_path / "thesis.txt").write_text("mine")
    for folder, word in ((tmp_path, "something else than Label Studio"), (Path(sys.prefix), "project's own")):
        with pytest.raises(BadInput, match=word):
            install(folder)
    assert (tmp_path / "thesis.txt").exists()


def test_a_folder_of_something_else_gets_no_server(tmp_path: Path) -> None:
    (tmp_path / "server.log").write_text("the log of my own server")
    with pytest.raises(BadInput, match="holds files and no server"):
        start(tmp_path, VENV, say=lambda line: None)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["the log of my own server"]
