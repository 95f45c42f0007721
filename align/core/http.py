"""Requests over HTTP: one client for every server, and one policy for what is repeated.

In: an address, limits, a secret. Out: an answer that was read whole, or one line that says why there is none. An answer
is read to its end within a limit of bytes and of time; it may be packed once, by gzip, and is never unpacked beyond the
limit. A redirect is an answer unless the client is made to follow it. A request without an answer is repeated with
growing pauses as long as patience lasts; a busy server is left alone for as long as it asks, at most a minute. No
message holds a secret. Not here: what an answer means, and whether a request may be repeated at all; the callers know
that.
"""

from __future__ import annotations

import email.utils
import math
import random
import re
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from align.core.config import BadInput
from align.core.limits import shown_size, without_secret

LOOPBACK = ("localhost", "127.0.0.1", "::1")
LONGEST_ANSWER = 1800.0  # seconds from a request to the last byte of its answer
LONGEST_WAIT = 60.0  # seconds that a server may ask to be left alone for; it is asked again after that
LONGEST_TEXT = 200  # characters of a server's words that are passed on
MOST_REDIRECTS = 20
SECRETS = (
    re.compile(r"(?i)\bey[\w-]+\.[\w-]+(?:\.[\w-]*)?"),  # web tokens
    re.compile(r"\b(?=\w*\d)\w{32,}\b"),  # legacy tokens, invitations, session and forgery keys
    re.compile(r"(?i)((?:token|sessionid|csrftoken|password)[\"']?\s*[:=]\s*[\"']?)[^\s\"',;&]+"),
    re.compile(r"(?i)((?:token|bearer) )(?=\S*\d)[^\s\"',;&]+"),
)
ValueT = TypeVar("ValueT")


class Unanswered(Exception):
    """A request without a usable answer: whether it was carried out is not known.

    ``wait`` is how many seconds the server asks to be left alone; ``is_busy``: it says that it cannot answer now, so
    the address is right.
    """

    def __init__(self, reason: str, wait: float | None = None, is_busy: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.is_busy = wait, is_busy


class Silent(BadInput):
    """A server gave no usable answer for as long as it was waited for."""


class Stopped(Exception):
    """Another request met a fault that ends the work of all of them."""


class Client(httpx.Client):
    """An httpx client of one server, whose answers are read whole and within limits.

    ``most`` bytes of an answer are read, unpacked. No proxy is used on the way to this machine itself.
    """

    def __init__(self, url: str, *, most: int, timeout: Any, follow_redirects: bool = False, **options: Any) -> None:
        super().__init__(timeout=timeout, trust_env=urlsplit(url).hostname not in LOOPBACK, **options)
        self.headers["Accept-Encoding"] = "gzip"
        self._most, self._follows = most, follow_redirects

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Send a request and read its answer, from wherever the server sends on to where that is followed.

        Raises:
            Unanswered: no answer, or one that cannot be unpacked.
            BadInput: an answer that is longer, or takes longer, than is read, or is packed otherwise than once by gzip.
        """
        try:
            for _ in range(MOST_REDIRECTS + 1):
                answer = self._read(super().send(request, stream=True, follow_redirects=False))
                if not (self._follows and answer.next_request):
                    return answer
                request = answer.next_request
            raise httpx.TooManyRedirects(f"more than {MOST_REDIRECTS}")
        except httpx.RequestError as error:
            raise Unanswered(f"{type(error).__name__}: {error}") from None

    def _read(self, answer: httpx.Response) -> httpx.Response:
        """Return the same answer with its body in memory, unpacked."""
        ends, content = time.monotonic() + LONGEST_ANSWER, bytearray()
        where = answer.url.copy_with(query=None)
        coding = answer.headers.get("Content-Encoding", "").strip().lower()
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16) if coding in ("gzip", "x-gzip") else None
        try:
            if unpacker is None and coding not in ("", "identity"):
                packed = redact(coding)
                raise BadInput(f"{where}: an answer is packed as '{packed}' and not as gzip; check the address")
            for block in answer.iter_raw():
                left = self._most + 1 - len(content)
                content += unpacker.decompress(block, left) if unpacker else block
                if unpacker and unpacker.unused_data:
                    raise httpx.DecodingError("bytes follow the end of what gzip packed")
                if len(content) > self._most or time.monotonic() > ends:
                    limit = f"{shown_size(self._most)} or {LONGEST_ANSWER / 60:.0f} minutes"
                    raise BadInput(f"{where}: an answer went on beyond {limit}; check that the address is the server's")
            if unpacker and answer.num_bytes_downloaded and not unpacker.eof:
                raise httpx.DecodingError("what gzip packed ends too early")
        except zlib.error as error:
            raise httpx.DecodingError(str(error)) from None
        finally:
            answer.close()
        headers = httpx.Headers(answer.headers)
        for name in ("Content-Encoding", "Content-Length", "Transfer-Encoding"):
            headers.pop(name, None)
        whole = httpx.Response(answer.status_code, headers=headers, content=bytes(content), request=answer.request)
        whole.next_request = answer.next_request
        return whole


class Patience:
    """How long the requests to one server are repeated, and how long its threads pause in between.

    ``seconds`` is how long a request is repeated for; before the server's first answer only ``first`` of them, since
    silence is then likelier to last. ``pauses`` are the shortest and the longest. ``kept`` says in an error what is not
    lost; ``stop`` ends all pauses.
    """

    def __init__(
        self, url: str, secret: str | None, seconds: float, *, first: float, pauses: tuple[float, float], kept: str
    ) -> None:
        self.has_answered = False
        self.stop = threading.Event()
        self._url, self._secret, self._kept = url, secret, kept
        self._seconds, self._first, self._pauses = seconds, min(seconds, first), pauses
        self._not_before = 0.0

    def insist(self, act: Callable[[], ValueT]) -> ValueT:
        """Do something that may stay unanswered, with growing pauses, as long as patience lasts.

        Raises:
            Silent: there was no usable answer.
            Stopped: ``stop`` was set meanwhile.
        """
        start, (pause, longest_pause) = time.monotonic(), self._pauses
        while True:
            self._wait_turn()
            try:
                return act()
            except Unanswered as fault:
                rest = max(pause * random.uniform(1, 1.5), min(fault.wait or 0.0, LONGEST_WAIT))
                waited = time.monotonic() - start
                if waited + rest > (self._seconds if self.has_answered or fault.is_busy else self._first):
                    raise Silent(self._silence(fault, waited)) from None
                if fault.wait is not None:
                    self._not_before = max(self._not_before, time.monotonic() + rest)  # the other requests wait too
                elif self.stop.wait(rest):
                    raise Stopped from None
            pause = min(2 * pause, longest_pause)

    def _wait_turn(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0 and not self.stop.is_set():
            self.stop.wait(left)
        if self.stop.is_set():
            raise Stopped

    def _silence(self, fault: Unanswered, seconds: float) -> str:
        waited = f" for {seconds:.0f} s" if seconds >= 1 else ""
        when = f"in {fault.wait:.0f} s, as it asks" if fault.wait else "once it answers"
        return (
            f"{self._url}: no usable answer{waited} ({redact(str(fault), self._secret)}); {self._kept}: check the "
            f"address, or start the server, and run the same command again {when}"
        )


def server_address(url: str, name: str, example: str, secret: str) -> str:
    """Return the address of a server without a slash at its end.

    Args:
        name: where the address was set, for the message; ``secret`` is where its key belongs.

    Raises:
        BadInput: no http(s) address, or one that holds more, such as a password; the address is not repeated.
    """
    try:
        httpx.URL(url.strip())
        parts = urlsplit(url.strip())
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, httpx.InvalidURL):
        is_address = False
    if not is_address:
        raise BadInput(f"{name}: is no address of a server; write it like {example}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise BadInput(f"{name}: holds a user name, password or parameters; leave them out, the key is {secret}")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def redact(text: str, *secrets: str | None) -> str:
    """Return one line of at most 200 characters without keys, tokens, cookies and passwords, in whatever case."""
    for secret in filter(None, secrets):
        text = without_secret(text, secret)
    for pattern in SECRETS:
        text = pattern.sub("[key]", text)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 3] + "..."


def retry_after(value: str | None) -> float | None:
    """Return the seconds to wait by a Retry-After header: a number or a date (RFC 9110, section 10.2.3).

    None where it asks for no wait: nothing, a time that is past, or what is neither a number nor a date.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None
