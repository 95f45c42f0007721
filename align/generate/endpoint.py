"""A model behind an OpenAI-compatible endpoint: `POST {address}/chat/completions`, until every request is answered.

In: the address of an API, a model's name there, requests. Out: n samples per request, or why the prompt is refused.
The key comes from ALIGN_ENDPOINT_KEY (else OPENAI_API_KEY) and is written to no file, log or error: where an answer
repeats it, ``[key]`` is put in its place. An answer of more than 64 MiB, or one that takes longer than half an hour,
counts as none. A request that stays unanswered is sent again with growing pauses; the protocol cannot ask for an answer
again, so one that was lost on its way is paid for twice. Whether a server takes several responses per request, seeds,
and which name it has for the token limit is found out by asking. Not here: streaming, log-probabilities, and the
providers' own batch files.
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
    refused_field,
    request_body,
    sample_of,
    words,
)
from align.generate.sampler import Reply, Request, Sampler

if TYPE_CHECKING:
    from align.model.roles import RoleModel

KEYS = ("ALIGN_ENDPOINT_KEY", "OPENAI_API_KEY")
WORKERS = 4  # prompts on their way at once
PATIENCE = 300.0  # seconds a request is repeated for
FIRST_PATIENCE = 5.0  # before the first answer silence and failure are likelier lasting than passing
TIMEOUT = httpx.Timeout(600.0, connect=10.0)  # a long response comes in one piece
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
BUSY = (408, 409, 425, 429)


class _Refused(Exception):
    """This request will never be answered; ``field`` is the one that the server names as not its own."""

    def __init__(self, reason: str, field: str | None) -> None:
        super().__init__(reason)
        self.field = field


class _Reply(NamedTuple):
    """An answer as it came: its data (None where it is no JSON that is read), and whether the key stood in that."""

    status: int
    headers: httpx.Headers
    data: Any
    was_masked: bool


class EndpointSampler(Sampler):
    """A model behind an OpenAI-compatible endpoint, by its name there."""

    kind: str = "endpoint"
    url: str = Field(description="address of an API, such as http://127.0.0.1:8000/v1")
    model: str = Field(description="the model's name at the endpoint")

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        return address(url)

    @property
    def origin(self) -> str:
        """The model's name, as the endpoint knows it."""
        return self.model

    def sample(self, requests: Sequence[Request], policy: RoleModel | None) -> Iterator[Reply]:
        """Replies as they come; a fault is raised after those under way were handed over."""
        return Endpoint(self.url, self.model).ask_all(requests)


class Endpoint:
    """A model behind an address; ``given_up`` names the optional fields that the server turned out not to take."""

    def __init__(self, url: str, model: str, patience: float = PATIENCE) -> None:
        """Make a client; nothing is sent yet.

        Raises:
            BadInput: no address, or a key that no header can hold.
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
        """Replies as they come; to be called once. A fault is raised after the answers under way were handed over.

        Raises:
            BadInput: a wrong address, key or model, or an endpoint that stays silent or busy.
        """
        remaining, under_way = iter(requests), set[Future[Reply]]()
        fault: BadInput | None = None
        with self._client, ThreadPoolExecutor(WORKERS) as pool:
            try:
                while True:
                    if fault is None:
                        free = WORKERS - len(under_way)
                        under_way |= {pool.submit(self.ask, request) for request in islice(remaining, free)}
                    if not under_way:
                        break
                    done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
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
        """As many samples as are asked for, in one HTTP request where the server knows how, else one by one."""
        seeds = [seed % 2**31 for seed in request.seeds]
        choices: list[dict[str, Any]] = []
        replies: list[_Reply] = []
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

    def _complete(self, request: Request, n: int, seed: int) -> _Reply:
        """A completion; a field that the server does not take is left out from then on, once that proved to help."""
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
                without |= set() if is_heeded else {"n"}  # taken and not heeded
            self.given_up |= without
            return reply

    def _send(self, body: dict[str, Any]) -> _Reply:
        """One request; its answer holds at least one choice."""
        reply = self._exchange(json.dumps(body).encode())
        status, data = reply.status, reply.data
        if status == 200 and isinstance(data, dict) and data.get("error"):  # some pass a failure on under 200
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

    def _exchange(self, content: bytes) -> _Reply:
        """Send a request; the key is taken out of its answer."""
        answer = self._client.post(f"{self.url}/chat/completions", content=content)
        try:
            data = parse_json(answer.content)
        except ValueError:
            data = None
        clean = masked(data, self._key)
        return _Reply(answer.status_code, answer.headers, clean, clean != data)

    def _fault(self, status: int, reply: _Reply) -> Exception:
        """What an answer that is no completion means: ask again, never ask this again, or stop."""
        data = reply.data
        reason = redact(words(data), self._key)
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
        return _Refused(re.sub(r"\d+", "N", reason), refused_field(data))  # counted by reason, whatever the lengths


def address(url: str) -> str:
    """The address of an API, without a slash at its end and what its requests add to it.

    Raises:
        BadInput: no http(s) address, or one that holds more, such as a password; the address is not repeated.
    """
    return server_address(url, "endpoint", "http://127.0.0.1:8000/v1", KEYS[0]).removesuffix("/chat/completions")


def sum_known(counts: Iterable[int | None]) -> int | None:
    """The sum, or None where a part of it is not known."""
    known = list(counts)
    return None if None in known else sum(count or 0 for count in known)


def _key() -> str | None:
    for name in KEYS:
        if key := os.environ.get(name, "").strip():
            if not key.isascii() or not key.isprintable() or " " in key:
                raise BadInput(f"{name}: holds what no key holds (a space, or a character that is not ASCII)")
            return key
    return None
