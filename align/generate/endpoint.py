"""A model behind an OpenAI-compatible endpoint: `POST {address}/chat/completions`, until every request is answered.

In: the address of an API, a model's name there, requests. Out: n samples per request, or why the prompt is refused.
The key comes from ALIGN_ENDPOINT_KEY (else OPENAI_API_KEY) and is never written to a file, log or error: if an answer
repeats it, ``[key]`` replaces it. An answer of more than 64 MiB, or one that takes longer than half an hour, counts as
missing. A request without an answer is repeated with growing pauses; the protocol cannot fetch an answer again, so one
that is lost on the network is paid for twice. Whether a server supports several responses per request and seeds, and
its name for the token limit, is learnt from its answers. Not here: streaming, log-probabilities, and batch files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
from pydantic import Field, field_validator

from align.core.config import BadInput
from align.core.http import Client, Patience, Stopped, Unanswered, redact, retry_after, server_address
from align.core.limits import MOST_ANSWER, masked, parse_json
from align.generate.completions import (
    WITHHELD,
    completion_fault,
    counted_tokens,
    failure_text,
    refused_field,
    request_body,
    sample_of,
)
from align.generate.sampler import Reply, Request, Sampler

if TYPE_CHECKING:
    from align.model.roles import RoleModel

KEYS = ("ALIGN_ENDPOINT_KEY", "OPENAI_API_KEY")
WORKERS = 4  # prompts in flight at once
PATIENCE = 300.0  # seconds a request is repeated for
FIRST_PATIENCE = 5.0  # before the first answer, a failure is more likely permanent
TIMEOUT = httpx.Timeout(600.0, connect=10.0)  # a long response comes in one piece
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
BUSY = (408, 409, 425, 429)


class _Refused(Exception):
    """Raised for a request that will never be answered; ``field`` is the one that the server does not support."""

    def __init__(self, reason: str, field: str | None) -> None:
        super().__init__(reason)
        self.field = field


class _ServerAnswer(NamedTuple):
    """An answer of the server: its data (None if it is not valid JSON), and whether the key in it was masked."""

    status: int
    headers: httpx.Headers
    data: Any
    was_masked: bool


class EndpointSampler(Sampler):
    """A model at an OpenAI-compatible endpoint."""

    kind: str = "endpoint"
    url: str = Field(description="address of an API, such as http://127.0.0.1:8000/v1")
    model: str = Field(description="the model's name at the endpoint")

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        return address(url)

    @property
    def origin(self) -> str:
        """The model's name at the endpoint."""
        return self.model

    def sample(self, requests: Sequence[Request], policy: RoleModel | None) -> Iterator[Reply]:
        """Yield replies in the order of arrival; an error is raised after the replies in flight were yielded."""
        return Endpoint(self.url, self.model).ask_all(requests)


class Endpoint:
    """A client for one model; ``given_up`` names the optional fields that the server does not support."""

    def __init__(self, url: str, model: str, patience: float = PATIENCE) -> None:
        """Make a client; nothing is sent yet.

        Raises:
            BadInput: the address or the key is invalid.
        """
        self.url, self.model = address(url), model
        self.given_up: set[str] = set()
        self._key = _key()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        self._client = Client(self.url, most=MOST_ANSWER, timeout=TIMEOUT, headers=headers)
        pauses, kept = (SHORTEST_PAUSE, LONGEST_PAUSE), "what was answered is kept"
        self._patience = Patience(self.url, self._key, patience, first=FIRST_PATIENCE, pauses=pauses, kept=kept)
        self._takes_n = False

    def ask_all(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Yield replies in the order of arrival; an error is raised after the replies in flight. Call it once.

        Raises:
            BadInput: the address, key or model is wrong, or the endpoint does not answer or stays busy.
        """
        remaining, in_flight = iter(requests), set[Future[Reply]]()
        fault: BadInput | None = None
        with self._client, ThreadPoolExecutor(WORKERS) as pool:
            try:
                while True:
                    if fault is None:
                        free = WORKERS - len(in_flight)
                        in_flight |= {pool.submit(self.ask, request) for request in islice(remaining, free)}
                    if not in_flight:
                        break
                    done, in_flight = wait(in_flight, return_when=FIRST_COMPLETED)
                    for future in done:
                        try:
                            yield future.result()
                        except Stopped:
                            continue
                        except BadInput as error:
                            fault = fault or error
                            self._patience.stop.set()
            finally:
                self._patience.stop.set()
        if fault is not None:
            raise fault

    def ask(self, request: Request) -> Reply:
        """Sample ``request.n`` responses, in one HTTP request where the server supports it, else in several."""
        seeds = [seed % 2**31 for seed in request.seeds]
        choices: list[dict[str, Any]] = []
        replies: list[_ServerAnswer] = []
        refused = None
        while len(choices) < request.n:
            wanted = request.n - len(choices)
            try:
                reply = self._complete(request, wanted, seeds[len(choices)])
            except _Refused as refusal:
                refused = f"prompt refused by the endpoint: {refusal}"
                break
            choices += reply.data["choices"][:wanted]
            replies.append(reply)
        kept = [choice for choice in choices if choice.get("finish_reason") not in WITHHELD]
        unseeded = f"{self.url} takes no seeds: what it wrote cannot be drawn again"
        return Reply(
            id=request.id,
            samples=[sample_of(choice) for choice in kept],
            refused=None if choices else refused,
            withheld=request.n - len(kept) if choices else 0,
            masked=sum(reply.was_masked for reply in replies),
            served_by=sorted({str(reply.data.get("model") or self.model) for reply in replies}),
            prompt_tokens=sum_known(counted_tokens(reply.data, "prompt_tokens") for reply in replies),
            completion_tokens=sum_known(counted_tokens(reply.data, "completion_tokens") for reply in replies),
            remarks=[unseeded] if "seed" in self.given_up else [],
        )

    def _complete(self, request: Request, n: int, seed: int) -> _ServerAnswer:
        """Get a completion; if leaving out an unsupported field helps, it is left out of all later requests."""
        without = set(self.given_up)
        while True:
            body = request_body(request, self.model, n, seed, without)
            try:
                reply = self._patience.insist(partial(self._send, body))
            except _Refused as refusal:
                unproven = "n" if "n" in body and not self._takes_n else None
                field = refusal.field if refusal.field in body else unproven
                if field is None:
                    raise
                without.add(field)
                continue
            if "n" in body:
                is_heeded = len(reply.data["choices"]) == n
                self._takes_n |= is_heeded
                without |= set() if is_heeded else {"n"}  # accepted but ignored
            self.given_up |= without
            return reply

    def _send(self, body: dict[str, Any]) -> _ServerAnswer:
        """Send one request; the answer has at least one choice."""
        reply = self._exchange(json.dumps(body).encode())
        status, data = reply.status, reply.data
        if (
            status == 200 and isinstance(data, dict) and data.get("error")
        ):  # some servers report a failure with status 200
            code = data["error"].get("code") if isinstance(data["error"], dict) else None
            status = code if isinstance(code, int) and 400 <= code < 600 else 502
        if status != 200 or not isinstance(data, dict):
            raise self._fault(status, reply)
        if fault := completion_fault(data):
            problem = f"its answers do not have the form of chat completions ({fault})"
            raise BadInput(f"{self.url}: {problem}; set endpoint to an API that is compatible with OpenAI's")
        if not data["choices"]:
            raise Unanswered("an answer without a choice")
        self._patience.has_answered = True
        return reply

    def _exchange(self, content: bytes) -> _ServerAnswer:
        """Send a request, and mask the key in its answer."""
        answer = self._client.post(f"{self.url}/chat/completions", content=content)
        try:
            data = parse_json(answer.content)
        except ValueError:
            data = None
        clean = masked(data, self._key)
        return _ServerAnswer(answer.status_code, answer.headers, clean, clean != data)

    def _fault(self, status: int, reply: _ServerAnswer) -> Exception:
        """Return the error for an answer that is not a completion: repeat the request, drop it, or stop."""
        data = reply.data
        reason = redact(failure_text(data), self._key)
        if status == 429 and "insufficient_quota" in json.dumps(data):
            return BadInput(f"{self.url}: the account's quota is used up ({reason}); what was answered is kept")
        if status in BUSY or 500 <= status < 600 or (status < 300 and self._patience.has_answered):
            seconds = retry_after(reply.headers.get("Retry-After"))
            return Unanswered(f"status {status}: {reason}", seconds, is_busy=status != 500)
        if status == 401 or (status == 403 and not self._patience.has_answered):
            problem = "refuses the key" if self._key else "wants a key"
            return BadInput(f"{self.url}: {problem} (status {status}: {reason}); set {' or '.join(KEYS)}")
        if 300 <= status < 400:
            target = redact(str(reply.headers.get("Location", "")).partition("?")[0], self._key)
            return BadInput(f"{self.url}: sends elsewhere ({target}); set endpoint to the address that answers")
        if status == 404 and isinstance(data, dict) and "model" in reason.lower():
            return BadInput(f"{self.url}: has no model '{self.model}' ({reason}); set model to a name it knows")
        if status in (404, 405) or status < 300:
            problem = f"no chat completions there (status {status}: {reason})"
            return BadInput(f"{self.url}: {problem}; the address of an API often ends in /v1")
        return _Refused(re.sub(r"\d+", "N", reason), refused_field(data))  # one reason for all numbers


def address(url: str) -> str:
    """Return the address of an API, without a final slash and without the path of its requests.

    Raises:
        BadInput: it is not an http(s) address, or contains more, such as a password; the error does not repeat it.
    """
    return server_address(url, "endpoint", "http://127.0.0.1:8000/v1", KEYS[0]).removesuffix("/chat/completions")


def sum_known(counts: Iterable[int | None]) -> int | None:
    """Return the sum of the counts, or None if one of them is unknown."""
    known = list(counts)
    return None if None in known else sum(count or 0 for count in known)


def _key() -> str | None:
    for name in KEYS:
        if key := os.environ.get(name, "").strip():
            if not key.isascii() or not key.isprintable() or " " in key:
                raise BadInput(f"{name}: holds what no key holds (a space, or a character that is not ASCII)")
            return key
    return None
