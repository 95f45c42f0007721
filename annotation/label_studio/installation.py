"""Label Studio in an environment of its own, with a database that is ready to be copied.

In: a folder. Out: the program of one version in it, a data folder with that version's tables, and the environment
variables under which it is quiet and closed. It pins and drags in packages that the project must not depend on, so
the two never share an environment. Running it is ``server.py``.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from align.core.config import BadInput
from align.core.files import write_text

VERSION = "1.23.2"
PACKAGE = f"label-studio=={VERSION}"
VENV = Path(".venv-label-studio")
OURS = ".label-studio"  # marks a folder that may be emptied and filled again
MIGRATE_SECONDS = 600.0
INHERITED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT")
QUIET = {
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
    "COLLECT_ANALYTICS": "false",
    "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
    "LABEL_STUDIO_ENABLE_LOCAL_FILES_STORAGE": "false",
    "LABEL_STUDIO_CORS_ALLOW_ALL_ORIGINS": "false",
    "LOG_LEVEL": "ERROR",
    "LANG": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",  # where it listens is read from its log
}
Say = Callable[[str], None]


def is_installed(venv: Path = VENV) -> bool:
    """Return whether this version of Label Studio was installed there to the end."""
    try:
        return (venv / ".done").read_text().strip() == PACKAGE
    except OSError:
        return False


def install(venv: Path = VENV, say: Say = print) -> None:
    """Make an environment with Label Studio in it, unless it is there; half-made ones are made again.

    Raises:
        BadInput: the folder is something else, or the packages cannot be fetched.
    """
    if is_installed(venv):
        return
    if venv.resolve() == Path(sys.prefix).resolve():
        raise BadInput(f"{venv}: Label Studio never goes into the project's own environment; name another folder")
    if venv.exists() and (not venv.is_dir() or any(venv.iterdir())) and not (venv / OURS).exists():
        raise BadInput(f"{venv}: is there and holds something else than Label Studio; name another folder")
    write_text(venv / OURS, "")
    with open(venv / ".lock", "a+") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if is_installed(venv):  # by another process, while this one waited
            return
        for path in venv.iterdir():
            if path.name not in (OURS, ".lock"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        say(f"installing Label Studio {VERSION} into {venv} (about 1 GB, a minute or more)")
        _run([sys.executable, "-m", "venv", str(venv)], f"{venv}: cannot be made")
        _run(
            [str(venv / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", PACKAGE],
            f"{venv}: {PACKAGE} cannot be installed; check the network (or pip's settings) and run the command again",
        )
        write_text(venv / ".done", PACKAGE + "\n")


def template(venv: Path, say: Say) -> Path:
    """Return a data folder with the tables of this version and nothing else, made once (it takes half a minute)."""
    made = venv / f"template-{VERSION}"
    if made.is_dir():
        return made
    say("preparing the database (once, about half a minute)")
    aside = venv.absolute() / f"template-{os.getpid()}.tmp"
    aside.mkdir(mode=0o700)
    command = [str(venv.absolute() / "bin" / "label-studio"), "version"]  # brings the tables up to date, then ends
    try:
        done = subprocess.run(
            command, env=environment(venv, aside), capture_output=True, text=True, timeout=MIGRATE_SECONDS, cwd=aside
        )
        if done.returncode != 0:
            raise BadInput(
                f"{venv}: Label Studio cannot make its database ({last_line(done.stderr)}); remove it and retry"
            )
        (aside / ".env").unlink(missing_ok=True)  # the signing key: a shared one would make every token fit all servers
        with suppress(OSError):  # another process was first
            aside.rename(made)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return made


def _pip_settings() -> dict[str, str]:
    """Return the user's settings of indexes, certificates and proxies, which pass through to pip."""
    wanted = ("PIP_", "SSL_CERT", "REQUESTS_CA", "HOME", "HTTP", "http", "ALL_PROXY", "NO_PROXY", "no_proxy")
    return {key: value for key, value in os.environ.items() if key.startswith(wanted)}


def _search_paths() -> dict[str, str]:
    return {key: os.environ[key] for key in INHERITED if key in os.environ}


def environment(venv: Path, data: Path) -> dict[str, str]:
    """Return all variables of the server: it reads PORT, HOST, USERNAME and the like, and must see no secrets.

    Git searches no folder above the environment: the server shows the last commit that it finds to everybody.
    """
    own = {
        "HOME": str(data.resolve()),
        "LABEL_STUDIO_BASE_DATA_DIR": str(data.resolve()),
        "GIT_CEILING_DIRECTORIES": str(venv.resolve().parent),
    }
    return _search_paths() | QUIET | own


def _run(command: list[str], fault: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=_search_paths() | _pip_settings())
    if done.returncode != 0:
        raise BadInput(f"{fault} ({last_line(done.stderr or done.stdout)})")


def last_line(text: str) -> str:
    """Return the last line of a program's output."""
    return (text.strip().splitlines() or ["no output"])[-1].strip()
