"""Run an embedded Label Studio for one campaign: start it on loopback, find it again, stop it.

In: a campaign's folder and the environment that Label Studio is installed in (never the project's own). Out: a running
server. The folder holds ``data/`` (database, media, signing key), ``server.json`` (pid, port, version),
``server.log``, ``server.lock`` and ``token``: the administrator's personal access token, readable by its owner alone
and kept in no other place. The server takes requests from this machine only, lets nobody sign up without an
invitation, calls nobody, and inherits nothing of the caller's environment but search paths.

A lock shows whether a server runs, and not its pid (pids are used again): the server inherits the lock, and
the system frees it when the process ends, however it ends. Accounts are made in ``accounts.py``; the work with
projects and tasks is done in ``studio.py``.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from align.core.config import BadInput
from align.core.files import write_json
from annotation.label_studio.accounts import ADMIN, create_token, is_healthy
from annotation.label_studio.installation import VENV, VERSION, Say, environment, install, last_line, template

START_SECONDS = 120.0
STOP_SECONDS = 15.0
PORTS = range(20_000, 32_000)  # below those of outgoing connections, which could take the port of a stopped server


@dataclass(frozen=True)
class Server:
    """A server that answers; ``password`` is the administrator's, known only to the start that made the account."""

    url: str
    pid: int
    folder: Path
    token: str = field(repr=False)
    email: str = ADMIN
    password: str | None = field(default=None, repr=False)


class ServerStatus(NamedTuple):
    """The state of a campaign's server; a silent one is still starting, or hangs."""

    state: Literal["running", "silent", "stopped"]
    url: str | None
    pid: int | None


def start(folder: Path, venv: Path = VENV, port: int = 0, say: Say = print) -> Server:
    """Start a campaign's server and wait until it answers; one that runs already is returned as it is.

    Port 0 takes the port of last time where it is free, so that addresses stay true over a restart.

    Raises:
        BadInput: the folder holds something else or cannot be written, it cannot be installed, the port is taken, the
            server ends or stays silent, the token is gone.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "server.lock").exists():
        raise BadInput(f"{folder}: holds files and no server; name a new or an empty folder with server=")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    guard = _claim(folder)
    if guard is None:
        return _running(folder)
    with guard:
        install(venv, say)
        is_first = _prepare(folder, venv, say)
        if not is_first:
            _token(folder)  # without it a running server would be of no use
        port = _choose_port(port, _state(folder).get("port", 0))
        password = secrets.token_urlsafe(18) if is_first else None
        process = _launch(folder, venv, port, password, guard)
        url = f"http://127.0.0.1:{port}/"
        try:
            _await(process, folder / "server.log", url, say)
            if password:
                write_secret(folder / "token", create_token(url, ADMIN, password))
                (folder / "unfinished").unlink()
        except BaseException:
            _end(process.pid, lambda: process.poll() is not None)
            raise
    return Server(url, process.pid, folder, _token(folder), password=password)


def stop(folder: Path) -> bool:
    """Stop a campaign's server and wait until it is gone; returns whether one ran.

    Raises:
        BadInput: one runs, and its process is not known.
    """
    pid = _state(folder).get("pid")
    if not _is_held(folder):
        return False
    if pid is None:
        raise BadInput(f"{folder}: a server is starting, or server.json was lost; wait, or end its process by hand")
    _end(pid, lambda: not _is_held(folder))
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return True


def status(folder: Path) -> ServerStatus:
    """Return whether a campaign's server runs, where, and whether it answers."""
    state = _state(folder)
    if not _is_held(folder) or "pid" not in state:
        return ServerStatus("stopped", None, None)
    url = f"http://127.0.0.1:{state['port']}/"
    is_up = is_healthy(url) and not (folder / "unfinished").exists()
    return ServerStatus("running" if is_up else "silent", url, state["pid"])


def _running(folder: Path) -> Server:
    current = status(folder)
    if current.state == "running" and current.url and current.pid:
        return Server(current.url, current.pid, folder, _token(folder))
    raise BadInput(f"{folder}: its server is starting or does not answer; wait a moment, or stop it and start it again")


def _prepare(folder: Path, venv: Path, say: Say) -> bool:
    """Create the data folder from the migrated template; return whether its administrator must still be created."""
    data, unfinished = folder / "data", folder / "unfinished"
    if data.exists() and not unfinished.exists():
        return False
    tables = template(venv, say)
    unfinished.touch()  # until the token is kept, the data holds nothing of worth
    shutil.rmtree(data, ignore_errors=True)
    try:
        shutil.copytree(tables, data)
    except shutil.Error as error:  # a list of files, each with why
        why = str(error.args[0][0][2]).partition(": ")[0]
        raise BadInput(f"{data}: cannot be written ({why}); make room, or name another folder with server=") from None
    data.chmod(0o700)
    # Of the keys that the server would make for itself one in fifty begins with a dollar sign, is read back as the name
    # of a variable and replaced at every start, so that no token outlives a restart: this one is letters and digits.
    write_secret(data / ".env", f"SECRET_KEY={secrets.token_hex(32)}")
    return True


def _choose_port(wanted: int, last: int) -> int:
    if wanted and not _free_port(wanted):
        raise BadInput(f"port {wanted} is taken on this machine; name another one, or leave it out")
    some = secrets.SystemRandom().sample(PORTS, 20)
    return wanted or (last and _free_port(last)) or next(filter(None, map(_free_port, some)), 0) or _free_port(0)


def _free_port(port: int) -> int:
    """Return the port if nobody has it (any free one for 0), else 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
        return int(probe.getsockname()[1])


def _launch(folder: Path, venv: Path, port: int, password: str | None, guard: IO[str]) -> subprocess.Popen[bytes]:
    """Start the process in a group of its own; it holds the lock from now on."""
    state = {"port": port, "version": VERSION}
    write_json(folder / "server.json", state)  # the old pid is nobody's by now
    account = {"LABEL_STUDIO_USERNAME": ADMIN, "LABEL_STUDIO_PASSWORD": password} if password else {}
    log = os.open(folder / "server.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    command = [str(venv.absolute() / "bin" / "label-studio"), "start", "--no-browser"]
    try:
        process = subprocess.Popen(
            [*command, "--internal-host", "127.0.0.1", "--port", str(port)],
            env=environment(venv, folder / "data") | account,  # not on the command line, which everybody can read
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(guard.fileno(),),
        )
    except OSError as error:
        raise BadInput(f"{venv}: Label Studio cannot be started ({error.strerror}); remove it and try again") from None
    finally:
        os.close(log)
    write_json(folder / "server.json", {**state, "pid": process.pid})
    return process


def _await(process: subprocess.Popen[bytes], log: Path, url: str, say: Say) -> None:
    """Wait until this process listens on its port; it silently takes the next one when that is busy."""
    say("starting Label Studio")
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BadInput(f"Label Studio ended while starting ({last_line(log.read_text())}); see {log}")
        announced = log.read_text(errors="replace").partition("Starting development server at ")[2]
        if "\n" in announced and not announced.startswith(url):
            raise BadInput(f"the port of {url} was taken at the last moment; run the same command again")
        if announced and is_healthy(url):
            return
        time.sleep(0.1)
    raise BadInput(f"Label Studio did not answer for {START_SECONDS:.0f} s; see {log}")


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, and rename it: half a secret would block a whole one."""
    aside = path.with_name(f"{path.name}.tmp")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
    os.replace(aside, path)


def _token(folder: Path) -> str:
    try:
        return (folder / "token").read_text().strip()
    except OSError:
        raise BadInput(
            f"{folder / 'token'}: cannot be read; copy the token from the account page of the server's administrator"
        ) from None


def _state(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "server.json").read_text()))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}


def _claim(folder: Path) -> IO[str] | None:
    """Return the campaign's lock, or None while a server (or one that is being started) holds it."""
    file = open(folder / "server.lock", "a+")  # noqa: SIM115 (held by the caller, then by the server)
    for _ in range(5):  # somebody may be looking at it this very moment
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        time.sleep(0.1)
    file.close()
    return None


def _is_held(folder: Path) -> bool:
    """Return whether a server holds the lock; any number of processes may ask at once."""
    try:
        with open(folder / "server.lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _end(pid: int, is_gone: Callable[[], bool]) -> None:
    """End a process group by SIGTERM, after a while by SIGKILL."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(pid, kind)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            if is_gone():
                return
            time.sleep(0.05)
