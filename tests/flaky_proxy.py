"""A loopback proxy that injects faults into real traffic: the only thing of a labelling server that tests make up.

Each request meets one fault, drawn from a seeded generator: it is lost before the server sees it, its answer is lost
or replaced by a 502 after the server carried it out, it is delayed, it is carried out twice, or its access token is
spoilt on the way ("stale").
"""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "te", "upgrade"}
LOSSY = {"lost request": 0.08, "lost answer": 0.08, "bad gateway": 0.08, "delayed": 0.05, "twice": 0.06}


class FlakyProxy(ThreadingHTTPServer):
    """``with FlakyProxy(server_url, seed=1) as proxy``: ``proxy.url`` leads to the server, with faults on the way.

    ``faults`` are shares of all requests, by name; ``prefix`` is the path the server seems to live under;
    ``seen`` counts what happened; what stands in ``forced`` happens first.
    """

    daemon_threads = True

    def __init__(self, upstream: str, seed: int = 0, faults: Mapping[str, float] = LOSSY, prefix: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = str(urlsplit(upstream).netloc)
        self.prefix = prefix
        self.seen: Counter[str] = Counter()
        self.forced: list[str] = []
        self._faults = dict(faults)
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{self.prefix}/"

    def draw(self) -> str:
        """The fault of the next request."""
        with self._lock:
            names = [*self._faults, "none"]
            shares = [*self._faults.values(), 1 - sum(self._faults.values())]
            fault = self.forced.pop(0) if self.forced else self._random.choices(names, shares)[0]
            self.seen[fault] += 1
            return fault

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is nothing to print."""

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FlakyProxy
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.path.startswith(self.server.prefix + "/"):
            return self._answer(404, {"Content-Type": "text/html"}, b"<p>nothing here</p>")
        fault = self.server.draw()
        if fault == "delayed":
            time.sleep(0.3)
        if fault == "stale":
            self.headers.replace_header("Authorization", "Bearer stale")
        if fault == "lost request":
            return self._hang_up()
        status, headers, content = self._forward(body)
        if fault == "twice":
            status, headers, content = self._forward(body)
        if fault == "lost answer":
            return self._hang_up()
        if fault == "bad gateway":
            return self._answer(502, {"Content-Type": "text/html"}, b"<h1>Bad Gateway</h1>")
        return self._answer(status, headers, content)

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _handle

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        link = http.client.HTTPConnection(self.server.upstream, timeout=120)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
        try:
            link.request(self.command, self.path[len(self.server.prefix) :], body or None, headers)
            reply = link.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()
        except OSError:
            return 502, {"Content-Type": "text/html"}, b"<h1>Bad Gateway</h1>"
        finally:
            link.close()

    def _answer(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def log_message(self, *arguments: object) -> None:
        """Quiet."""
