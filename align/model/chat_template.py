"""Render conversations as text by a chat template with its arguments.

In: a tokenizer, the template's name or file, arguments and a day. Out: renderings. The arguments and the day that the
template may print are fixed when the object is made; arguments of a row override them. Templates are programs from a
model folder, and one may never end: Jinja's sandbox denies access to files and to Python's internals, but allows nested
loops and texts of terabytes, so time, memory and length are limited here. Only processor time counts, so the limits do
not depend on the load of the machine. Not here: token ids (``chat.py``).
"""

from __future__ import annotations

import hashlib
import inspect
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError

from align.core.config import BadInput

SECONDS = 5.0  # of processor time, for one conversation
MEMORY = 1 << 30  # bytes beyond what the process has
LENGTH = 1 << 26  # characters of a rendered conversation
PLAIN = (
    "{{ bos }}{% for message in messages %}"
    "{% if message['role'] in ['system', 'developer'] %}{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '\n\nAssistant: ' + (message['content'] or '') }}"
    "{% if loop.last %}{{ eos_token }}{% endif %}"
    "{% elif message['role'] == 'user' %}{{ '\n\nHuman: ' + message['content'] }}"
    "{% else %}{{ raise_exception('it has no turn of the ' + message['role']) }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# strftime_now as the run's own day answers it; transformers' own reads the clock, and takes no function in its place
CLOCK = (
    "{%- macro strftime_now(format) -%}{%- for literal in format.split('%%') -%}{{- '%' if not loop.first -}}"
    "{%- set parts = literal.split('%') -%}{{- parts[0] -}}{%- for part in parts[1:] -%}"
    "{%- set code = part[:2] if part[:1] == '-' else part[:1] -%}"
    "{{- frozen_clock.get(code, '%' ~ code) ~ part[code | length:] -}}"
    "{%- endfor -%}{%- endfor -%}{%- endmacro %}\n"
)
CODES = "aAbBcCdDeFgGhHIjmMpPrRSTuUVwWxXyY"
OWN_VARIABLES = {"messages", "bos", "frozen_clock"}
Messages = Sequence[Mapping[str, Any]]
Arguments = Mapping[str, Any] | None


class Unusable(ValueError):
    """Raised for a row that this template or tokenizer cannot express; callers drop it and count the reason."""


class ChatTemplate:
    """A tokenizer's template, or another one in its place, with the arguments that hold for a whole run.

    Raises:
        BadInput: there is no such template, it is not valid Jinja, or it does not read one of the arguments.
    """

    def __init__(self, tokenizer: Any, name: str | None, arguments: Arguments, day: str | None) -> None:
        self._tokenizer = tokenizer
        self.name = name or "tokenizer"
        self.text = self._find(name)
        self.arguments = self._run_arguments(arguments or {}, day or datetime.now(UTC).date().isoformat())

    def fingerprint(self) -> dict[str, Any]:
        """Return the template's sha256 and its arguments."""
        return {
            "template_sha256": hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest(),
            "template_arguments": dict(self.arguments),
        }

    def _run_arguments(self, arguments: Mapping[str, Any], day: str) -> dict[str, Any]:
        """Return the arguments that hold for a whole run, with the day where the template prints one."""
        if wrong := sorted(set(arguments) & self._reserved):
            raise BadInput(f"template_arguments.{wrong[0]}: is not free to set; remove it")
        if unread := sorted(set(arguments) - self.variables - {"date"}):
            raise BadInput(f"template_arguments.{unread[0]}: chat template {self.name} does not read it; remove it")
        if "strftime_now" in self.variables:
            return {"date": day, **arguments}
        return dict(arguments) if "date" in self.variables else _without(arguments, "date")

    def apply(self, messages: Messages, tools: Any = None, arguments: Arguments = None, ask: bool = False) -> str:
        """Render messages in the form that the template takes; ``ask`` adds the generation prompt.

        Raises:
            Unusable: the template refuses the messages, or the arguments cannot be used.
            BadInput: it does not end, or writes more than the longest allowed conversation.
        """
        if not isinstance(arguments or {}, Mapping):
            raise Unusable("its template arguments are no object")
        if wrong := sorted(set(arguments or {}) & self._reserved):
            raise Unusable(f"its template argument '{wrong[0]}' is not free to set")
        called = {**self.arguments, **(arguments or {})}
        clock = _frozen_clock(str(called["date"])) if "strftime_now" in self.variables else None
        if "date" not in self.variables:
            called = _without(called, "date")

        def render() -> str:
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    chat_template=CLOCK + self.text if clock else self.text,
                    tools=tools,
                    tokenize=False,
                    add_generation_prompt=ask,
                    bos=self.bos,
                    frozen_clock=clock,
                    **called,
                )
            )

        try:
            return rendered(self.name, render)
        except BadInput:
            raise
        except Exception as error:  # a Jinja template may raise anything: the row is unusable
            raise Unusable(f"the chat template refuses it ({type(error).__name__}: {error})") from error

    @cached_property
    def variables(self) -> set[str]:
        """Every variable name in the template's code."""
        try:
            return {value for _, kind, value in Environment().lex(self.text) if kind == "name"}
        except TemplateError as error:
            remedy = "mend it, or name another in chat_template"
            raise BadInput(f"chat_template {self.name}: is no Jinja template ({error}); {remedy}") from error

    @cached_property
    def _reserved(self) -> set[str]:
        """Argument names that are reserved, so that a user cannot set them."""
        return {*inspect.signature(self._tokenizer.apply_chat_template).parameters} | OWN_VARIABLES

    @cached_property
    def bos(self) -> str:
        """The BOS token if this tokenizer adds one by itself, else an empty text."""
        bos = self._tokenizer.bos_token
        if bos is None:
            return ""
        return bos if self._tokenizer("a").input_ids[:1] == [self._tokenizer.bos_token_id] else ""

    def _find(self, template: str | None) -> str:
        if template is None:
            if not self._tokenizer.chat_template:
                raise BadInput("this model has no chat template; set chat_template: plain, chatml or a Jinja file")
            own = self._tokenizer.chat_template
            if isinstance(own, dict) and "default" not in own:
                raise BadInput(
                    f"this model has chat templates {', '.join(sorted(own))} and no default; set chat_template"
                )
            return own if isinstance(own, str) else str(own["default"])
        if template == "plain":
            return PLAIN
        if template == "chatml":
            return CHATML
        path = Path(template)
        if not path.is_file():
            raise BadInput(f"chat_template: '{template}' is neither plain, chatml nor a readable file")
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"chat_template: {path}: cannot be read as UTF-8 text ({error})") from error


@cache
def _frozen_clock(day: str) -> dict[str, str]:
    """Return the result of each strftime code at the start of an ISO day.

    Raises:
        Unusable: ``day`` is not an ISO day.
    """
    try:
        moment = datetime.fromisoformat(day)
    except ValueError:
        raise Unusable(f"its template argument 'date' is no day like 2026-11-28: '{day}'") from None
    return {code: moment.strftime(f"%{code}") for letter in CODES for code in (letter, f"-{letter}")}


def _without(arguments: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key != name}


# --- limits of one rendering ---------------------------------------------------------------------------------


class _Endless(BaseException):
    """Raised by the timer; no Exception, since a template's own errors are caught as such."""


def rendered(name: str, render: Callable[[], str]) -> str:
    """Call ``render`` within the limits of one conversation.

    Time and memory are limited in a process's main thread, memory where the system has ``/proc``.

    Raises:
        BadInput: the chat template ``name`` does not end, or exceeds the limit of length or memory.
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
    """Bytes of this process's address space; 0 where the system does not report it."""
    with suppress(OSError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 0
