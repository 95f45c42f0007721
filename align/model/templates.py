"""A limit in time and size for chat templates: they are programs from a model folder, and one may never end.

Jinja's sandbox keeps a template from files and from Python's internals, not from a loop in a loop or from a text of
terabytes. Only processor time counts, so a busy machine cuts nothing off.
"""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from align.core.config import BadInput

SECONDS = 5.0  # of processor time, for one conversation
MEMORY = 1 << 30  # bytes beyond what the process has
LENGTH = 1 << 26  # characters of a rendered conversation


class _Endless(BaseException):
    """Raised by the timer; no Exception, since a template's own errors are caught as such."""


def rendered(name: str, render: Callable[[], str]) -> str:
    """What ``render`` returns, within the limits of one conversation.

    Time and memory are limited in a process's main thread, memory where the system has ``/proc``.

    Raises:
        BadInput: the chat template ``name`` does not come to an end, or writes or needs more than is allowed.
    """
    try:
        with _limited():
            text = render()
    except _Endless:
        raise BadInput(
            f"chat_template {name}: does not come to an end ({SECONDS:g} s of processor time for one conversation); "
            "name another one, for example chat_template: chatml"
        ) from None
    except MemoryError:
        raise _too_large(name, f"needs more than {MEMORY >> 20} MiB") from None
    if len(text) > LENGTH:
        raise _too_large(name, f"writes {len(text):,} characters")
    return text


def _too_large(name: str, what: str) -> BadInput:
    return BadInput(
        f"chat_template {name}: {what} for one conversation; name another one, for example chat_template: chatml"
    )


@contextmanager
def _limited() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGVTALRM, _end)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _address_space() + MEMORY
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        if limit > MEMORY and (soft == resource.RLIM_INFINITY or limit < soft):
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, handler)


def _end(signum: int, frame: Any) -> None:
    raise _Endless


def _address_space() -> int:
    """Bytes of this process's address space; 0 where the system does not tell."""
    with suppress(OSError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 0
