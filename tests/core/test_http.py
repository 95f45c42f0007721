"""The client of every server: limits, redirects, repetitions and secrets, against a small server on this machine."""

from __future__ import annotations

import gzip
import threading
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from align.core.config import BadInput
from align.core.http import Client, Patience, Silent, Unanswered, redact, server_address

TOKEN = "0123456789abcdef0123456789abcdef01234567"


class Answers(ThreadingHTTPServer):
    """Answers each path with the (status, headers, content) that stands under it; ``seen`` are authorizations."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.seen: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Answers

    def do_GET(self) -> None:
        self.server.seen.append(self.headers.get("Authorization"))
        status, headers, content = self.server.answers[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Answers]:
    found = Answers()
    threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def test_an_answer_is_unpacked_once_and_measured_unpacked(server: Answers) -> None:
    server.answers["/"] = (200, {"Content-Encoding": "gzip"}, gzip.compress(b"x" * 5000))
    assert Client(server.url, most=5000, timeout=5.0).get(server.url).content == b"x" * 5000
    server.answers["/"] = (200, {"Content-Encoding": "x-gzip"}, gzip.compress(b"x" * 5000))
    assert Client(server.url, most=5000, timeout=5.0).get(server.url).content == b"x" * 5000
    with pytest.raises(BadInput, match="an answer went on beyond 4.88184 KiB or 30 minutes"):
        Client(server.url, most=4999, timeout=5.0).get(server.url)
    whole = gzip.compress(b"x" * 5000)
    for spoilt in (b"no gzip", whole[:-4], whole + gzip.compress(b"y"), whole + b"y"):
        server.answers["/"] = (200, {"Content-Encoding": "gzip"}, spoilt)
        with pytest.raises(Unanswered, match="DecodingError"):
            Client(server.url, most=5000, timeout=5.0).get(server.url)


@pytest.mark.parametrize(
    ("coding", "problem"),
    [
        ("gzip", "an answer went on beyond 1000 bytes"),
        ("GZIP, gzip, gzip", "an answer is packed as 'gzip, gzip, gzip' and not as gzip"),
        ("br", "an answer is packed as 'br' and not as gzip"),
    ],
)
def test_no_packed_answer_takes_more_memory_than_the_limit(server: Answers, coding: str, problem: str) -> None:
    packed = b"0" * (64 << 20)
    for _ in range(max(1, coding.lower().count("gzip"))):
        packed = gzip.compress(packed)
    server.answers["/"] = (200, {"Content-Encoding": coding}, packed)
    client = Client(server.url, most=1000, timeout=5.0)
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match=problem):
            client.get(server.url)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_redirect_is_an_answer_unless_it_is_followed(server: Answers) -> None:
    server.answers |= {"/": (302, {"Location": "/there"}, b"x" * 99), "/there": (200, {}, b"found")}
    assert Client(server.url, most=100, timeout=5.0).get(server.url).status_code == 302
    assert Client(server.url, most=100, timeout=5.0, follow_redirects=True).get(server.url).content == b"found"
    with pytest.raises(BadInput, match="went on beyond"):  # the body of a redirect is measured too
        Client(server.url, most=98, timeout=5.0, follow_redirects=True).get(server.url)


def test_a_redirect_to_another_server_gets_no_token(server: Answers) -> None:
    other = Answers()
    threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    server.answers["/"] = (302, {"Location": other.url + "/"}, b"")
    other.answers["/"] = (200, {}, b"")
    headers = {"Authorization": f"Token {TOKEN}"}
    Client(server.url, most=9, timeout=5.0, follow_redirects=True, headers=headers).get(server.url)
    other.shutdown()
    other.server_close()
    assert server.seen == [f"Token {TOKEN}"] and other.seen == [None]


@pytest.mark.parametrize(("has_answered", "is_busy", "most"), [(False, False, 1), (True, False, 9), (False, True, 9)])
def test_what_stays_unanswered_is_repeated_as_long_as_patience_lasts(
    monkeypatch: pytest.MonkeyPatch, has_answered: bool, is_busy: bool, most: float
) -> None:
    """Pauses double from one second to four; a server that never answered is given up after one second."""
    monkeypatch.setattr("align.core.http.random.uniform", lambda low, high: low)
    patience = Patience("http://x", TOKEN, 9.0, first=1.0, pauses=(1.0, 4.0), kept="nothing is lost")
    patience.has_answered = has_answered
    pauses: list[float] = []

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        return False

    def act() -> None:
        raise Unanswered(f"status 503 for {TOKEN}", is_busy=is_busy)

    monkeypatch.setattr(patience.stop, "wait", pause)
    monkeypatch.setattr("align.core.http.time.monotonic", lambda: sum(pauses))
    with pytest.raises(Silent, match=r"no usable answer for \d s \(status 503 for \[key\]\); nothing is lost"):
        patience.insist(act)
    assert pauses == ([1.0] if most == 1 else [1.0, 2.0, 4.0])


@pytest.mark.parametrize("url", ["host:8000", "ftp://host", "http://host:port", "http://me:pw@host", "http://host?k=v"])
def test_what_is_no_address_is_refused_by_the_name_of_its_setting(url: str) -> None:
    with pytest.raises(BadInput, match="^endpoint: ") as error:
        server_address(url, "endpoint", "http://127.0.0.1/", "KEY")
    assert url not in str(error.value)


def test_an_address_has_no_slash_at_its_end() -> None:
    assert server_address(" https://host:1/v1// ", "endpoint", "http://127.0.0.1/", "KEY") == "https://host:1/v1"


def test_no_proxy_leads_to_this_machine(monkeypatch: pytest.MonkeyPatch, server: Answers) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server.answers["/"] = (200, {}, b"found")
    assert Client(server.url, most=9, timeout=5.0).get(server.url).content == b"found"
    assert httpx.Client().trust_env  # which would have sent it to the proxy


def test_what_is_secret_is_left_out() -> None:
    text = f"Bearer abc1 sessionid=abc; Token {TOKEN} {{'token': 'k3y'}} eyJhb.eyJl.abc"
    for written in (text, text.upper(), text.lower(), text.swapcase()):
        shown = redact(written, "k3y").lower()
        assert not any(secret in shown for secret in ("abc", TOKEN, "k3y", "eyjl"))
    assert len(redact("word " * 100)) == 200
