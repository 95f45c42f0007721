"""Requests to a labelling server that may be lost: what is repeated, how long, and what is said in the end.

In: something that exchanges one request for one answer. Out: the data of the answer, or one line. Reads are repeated
as long as patience lasts. A write is repeated only after its caller has looked whether it was carried out. The SDK is
behind ``exchange`` (``transport.py``); what is said stands in ``faults.py``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from align.core.config import BadInput
from align.core.limits import masked, parse_json
from annotation.label_studio.faults import (
    Missing,
    Silent,
    Unanswered,
    no_data,
    redact,
    refusal,
    said,
    silence,
    unknown_form,
)

FIRST_PATIENCE = 3.0
SHORTEST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)
ValueT = TypeVar("ValueT")


class Answer(NamedTuple):
    """What came back."""

    status: int
    content: bytes


Exchange = Callable[[str, str, Mapping[str, Any] | None, bytes | None], Answer]  # method, path, parameters, body


class Calls:
    """Requests to one server with one token.

    ``connect`` makes a fresh exchange; ``patience`` is how many seconds a silent server is waited for (at most 3
    before its first answer: then the address is the likelier fault).
    """

    def __init__(self, url: str, token: str, patience: float, connect: Callable[[], Exchange]) -> None:
        self.url = url
        self._token = token
        self._patience = patience
        self._connect = connect
        self._exchange = connect()
        self._has_answered = False

    def read(self, path: str, params: Mapping[str, Any] | None = None, form: TypeAdapter[Any] = ANYTHING) -> Any:
        """What the server shows at a path."""
        return self._insist(lambda: self.send("GET", path, params, form=form))

    def write(self, send: Callable[[], Any], is_done: Callable[[], bool]) -> None:
        """Send; after a request without an answer, ask whether it was carried out before it is sent again."""
        is_first = True

        def attempt() -> None:
            nonlocal is_first
            if is_first or not is_done():
                is_first = False
                send()

        self._insist(attempt)

    def send(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        form: TypeAdapter[Any] = ANYTHING,
    ) -> Any:
        """One request, sent once (again only when it was turned away at the door), and the data of its answer.

        Where the data repeats the token, ``[key]`` stands there instead.

        Raises:
            Unanswered: it may have been carried out or not.
            Missing: what it speaks of is not there.
            BadInput: it was refused, or the answer is no data or not of this form.
        """
        content = None if body is None else json.dumps(body).encode()
        answer = self._exchange(method, path, params, content)
        if answer.status == 401 and self._has_answered:  # an access token that the server's clock calls old
            self._exchange = self._connect()
            answer = self._exchange(method, path, params, content)
        if answer.status in (408, 409, 429) or answer.status >= 500:
            raise Unanswered(f"status {answer.status}: {said(answer.content)}")
        if answer.status == 404:
            raise Missing(f"{self.url}: has no {path}; is this the address of Label Studio itself? Run 'doctor'")
        if answer.status >= 400:
            raise BadInput(refusal(self.url, self._token, answer.status, answer.content))
        self._has_answered = True
        try:
            data = masked(parse_json(answer.content), self._token) if answer.content else None
        except ValueError:
            raise BadInput(no_data(self.url)) from None
        try:
            return form.validate_python(data)
        except ValidationError as error:
            raise BadInput(unknown_form(self.url, path, error)) from None

    def _insist(self, act: Callable[[], ValueT]) -> ValueT:
        """Do something that may stay unanswered, with growing pauses, as long as patience lasts."""
        start, pause = time.monotonic(), SHORTEST_PAUSE
        while True:
            try:
                return act()
            except Unanswered as reason:
                patience = self._patience if self._has_answered else min(self._patience, FIRST_PATIENCE)
                waited = time.monotonic() - start
                if waited + pause > patience:
                    raise Silent(silence(self.url, waited, redact(str(reason), self._token))) from None
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
