"""A labelling server that answers what none should: one line, whatever it sends, and nothing of the token anywhere."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from align.core.config import BadInput
from annotation.label_studio.studio import Studio

TOKEN = "0123456789abcdef0123456789abcdef01234567"
TASK = {"id": 1, "data": {"pair_id": "a"}, "total_annotations": 0, "cancelled_annotations": 0}


class Odd(ThreadingHTTPServer):
    """Answers every request with ``content`` and ``headers``; with None it never ends."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content: bytes | None = b""
        self.headers: dict[str, str] = {}
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: Odd

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            if self.server.content is not None:
                self.wfile.write(self.server.content)
            while self.server.content is None:
                self.wfile.write(b" " * 4096)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Odd]:
    monkeypatch.setattr("annotation.label_studio.connection.FIRST_PATIENCE", 0.05)
    monkeypatch.setattr("annotation.label_studio.connection.MOST_WHOLE", 1 << 16)
    found = Odd()
    threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def page(*tasks: Any, total: Any = 1) -> Any:
    return {"tasks": list(tasks), "total": total}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"<html>welcome</html>", "a page and not with data"),
        (b'{"tasks": [', "a page and not with data"),
        (b"\xff\xfe\xfd", "a page and not with data"),
        (b"[" * 9000 + b"]" * 9000, "a page and not with data"),
        (None, "went on beyond 64 KiB or 30 minutes"),
        ([], "a form that is not known (the whole"),
        ({"tasks": {}, "total": 1}, "a form that is not known (tasks"),
        (page(total="many"), "a form that is not known (total"),
        (page(5), "a form that is not known (tasks.0"),
        (page({"data": {}}), "a form that is not known (tasks.0.id"),
        (
            page({"id": 1, "data": {"pair_id": "a"}}),
            "a form that is not known (tasks.0.total_annotations: Field required",
        ),
        (page({**TASK, "id": 5}, {**TASK, "id": 3}, total=2), "lists 2; run the same command again"),
        (page({**TASK, "total_annotations": []}), "a form that is not known (tasks.0.total_annotations"),
    ],
)
def test_an_odd_answer_is_one_line(odd: Odd, answer: Any, told: str) -> None:
    odd.content = answer if answer is None or isinstance(answer, bytes) else json.dumps(answer).encode()
    with pytest.raises(BadInput) as error:
        Studio(odd.url, TOKEN).keys(1)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("status", "headers", "told"),
    [
        (302, {"Location": "/again"}, "no usable answer (TooManyRedirects"),
        (302, {"Location": "http://[broken"}, "no usable answer ("),
        (400, {}, "refused the request (status 400"),
        (500, {"Retry-After": "0"}, "no usable answer (status 500"),
    ],
)
def test_an_odd_head_of_an_answer_is_one_line(odd: Odd, status: int, headers: dict[str, str], told: str) -> None:
    odd.status, odd.headers, odd.content = status, headers, b"5"
    with pytest.raises(BadInput) as error:
        Studio(odd.url, TOKEN).keys(1)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("ask", [lambda studio: studio.keys(1), lambda studio: studio.whoami()], ids=["raw", "sdk"])
@pytest.mark.parametrize(
    ("coding", "told"), [("gzip", "went on beyond 64 KiB"), ("gzip, gzip", "is packed as 'gzip, gzip' and not as gzip")]
)
def test_a_packed_answer_is_held_to_the_limit(odd: Odd, ask: Callable[[Studio], Any], coding: str, told: str) -> None:
    odd.headers, odd.content = {"Content-Encoding": coding}, gzip.compress(b" " * (1 << 20))
    with pytest.raises(BadInput, match=told):
        ask(Studio(odd.url, TOKEN))


def test_a_token_that_an_answer_repeats_is_taken_out(odd: Odd) -> None:
    said = {"text": f"it is {TOKEN}"}
    row = {"id": 1, "data": said, "annotations": [], "updated_at": "now", "is_labeled": False}
    odd.content = json.dumps(page(row)).encode()
    (task,) = Studio(odd.url, TOKEN).all_tasks(1)
    assert task.data == {"text": "it is [key]"}
