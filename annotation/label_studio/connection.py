"""Send requests to Label Studio with one token: typed calls of its SDK, and raw requests for what must not be repeated.

In: a server's address and a token. Out: the data of an answer, or one line. Reads are repeated as long as patience
lasts. A write is repeated only after its caller has checked whether it was carried out, so the SDK's own repetitions
are off. The SDK sends by our client, which authorises every request: the SDK's own token is never used. It is imported
at its first call, since importing it takes long.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import Any, NoReturn, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from align.core.config import BadInput
from align.core.http import Client, Patience, Unanswered, redact, retry_after, server_address
from align.core.limits import MOST_WHOLE, masked, parse_json

TIMEOUT = 120.0  # seconds
FIRST_PATIENCE = 3.0  # seconds: before the first answer the address is the likelier fault
PAUSES = (0.2, 5.0)  # seconds
NEW_TOKEN = "make a personal access token on the server's page Account & Settings and set LABEL_STUDIO_API_KEY to it"
_adapter = cache(TypeAdapter)
ValueT = TypeVar("ValueT")


class Missing(BadInput):
    """The server has no such project, task or page."""


class Connection:
    """Requests to one server with one token.

    ``patience`` is how many seconds a silent server is waited for (at most 3 before its first answer).
    """

    def __init__(self, url: str, token: str, patience: float) -> None:
        """Make a connection; nothing is sent yet.

        Raises:
            BadInput: the token has expired, or is none.
        """
        self.url = url
        self.client = _AuthorizedClient(url, token)
        self._token = token
        kept = "nothing is lost"
        self._patience = Patience(url, token, patience, first=FIRST_PATIENCE, pauses=PAUSES, kept=kept)

    def query(self, call: Callable[[Any], Any], form: Any = Any) -> Any:
        """Return what a typed call of the SDK reads."""
        return self._patience.insist(lambda: self.call(call, form))

    def read(self, path: str, params: Mapping[str, Any] | None = None, form: Any = Any) -> Any:
        """Return what the server shows at a path."""
        return self._patience.insist(lambda: self.send("GET", path, params, form=form))

    def write(self, send: Callable[[], Any], is_done: Callable[[], bool]) -> None:
        """Send; after a request without an answer, send it again only if it was not carried out."""
        is_first = True

        def attempt() -> None:
            nonlocal is_first
            if is_first or not is_done():
                is_first = False
                send()

        self._patience.insist(attempt)

    def call(self, call: Callable[[Any], Any], form: Any = Any) -> Any:
        """Send one typed call of the SDK, once, and check what it takes from the answer, as the SDK does not.

        Raises:
            Unanswered, Missing, BadInput: as ``send``.
        """
        from label_studio_sdk.core.api_error import ApiError
        from label_studio_sdk.core.parse_error import ParsingError

        try:
            value = call(self._sdk)
        except ApiError as error:
            self._refuse(error.status_code or 401, error.body, httpx.Headers(error.headers or {}), "such page")
        except (ParsingError, AttributeError, TypeError, ValueError, RecursionError) as error:
            problem = f"{type(error).__name__}: {redact(str(error), self._token)}"
            raise BadInput(f"{self.url}: answers in a form that is not known ({problem}); run 'doctor'") from None
        return self._accept(value, form, "")

    def send(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        form: Any = Any,
    ) -> Any:
        """Send one raw request, once (again only with a renewed access token), and return the data of its answer.

        Where the data repeats the token, it is replaced by ``[key]``.

        Raises:
            Unanswered: it may have been carried out or not.
            Missing: what it speaks of is not there.
            BadInput: it was refused, or the answer is no data or not of this form.
        """
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if content else None
        answer = self.client.request(method, self.url + path, params=params, content=content, headers=headers)
        if answer.status_code >= 400:
            self._refuse(answer.status_code, answer.content, answer.headers, path)
        try:
            data = parse_json(answer.content) if answer.content else None
        except ValueError:
            raise BadInput(self._no_data()) from None
        return self._accept(data, form, f" {path}")

    @cached_property
    def _sdk(self) -> Any:
        from label_studio_sdk import LabelStudio

        return LabelStudio(base_url=self.url, api_key="not used", max_retries=0, httpx_client=self.client)

    def _accept(self, data: Any, form: Any, path: str) -> Any:
        self._patience.has_answered = True
        try:
            return _adapter(form).validate_python(masked(data, self._token))
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"])) or "the whole"
            why = f"{place}: {problem['msg']}"
            raise BadInput(f"{self.url}: answers{path} in a form that is not known ({why}); run 'doctor'") from None

    def _refuse(self, status: int, body: Any, headers: httpx.Headers, path: str) -> NoReturn:
        """Raise what an answer of this status means: not known whether carried out, missing, refused, or no data."""
        words = refusal_text(body)
        reason = redact(words, self._token)
        if status in (408, 409, 429) or status >= 500:
            raise Unanswered(f"status {status}: {reason}", retry_after(headers.get("Retry-After")))
        if status == 404:
            raise Missing(f"{self.url}: has no {path}; is this the address of Label Studio itself? Run 'doctor'")
        if status < 400:  # a page, which the SDK calls an error
            problem = self._no_data()
        elif status == 401 and "legacy token" in words:
            problem = f"{self.url}: takes no legacy tokens (they are disabled there); {NEW_TOKEN}"
        elif status == 401:
            why = f"expired, revoked, mistyped, or of another server: {reason}"
            problem = f"{self.url}: does not know this token ({why}); {NEW_TOKEN}"
        elif status == 403:
            problem = f"{self.url}: this account may not do that ({reason}); use the token of an account that may"
        else:
            problem = f"{self.url}: refused the request (status {status}: {reason}); nothing of it was stored"
        raise BadInput(problem)

    def _no_data(self) -> str:
        return f"{self.url}: answers with a page and not with data; is this the address of Label Studio? Run 'doctor'"


class _AuthorizedClient(Client):
    """Sends every request with the token, or with an access token that a personal one is exchanged for.

    Access tokens last five minutes by the server's clock. The clock of this machine is not used: one that the server
    refuses is renewed, and the request, which was turned away at the door, is sent again.
    """

    def __init__(self, url: str, token: str) -> None:
        super().__init__(url, most=MOST_WHOLE, timeout=TIMEOUT, follow_redirects=True)
        self._renewal = (
            None
            if token_claims(token) is None
            else self.build_request("POST", url + "api/token/refresh/", json={"refresh": token})
        )
        self._authorization = f"Token {token}" if self._renewal is None else ""
        _check_claims(url, token)

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        had_access = bool(self._authorization)
        if not had_access and (refusal := self._renew()):
            return refusal
        request.headers["Authorization"] = self._authorization
        answer = super().send(request, **options)
        if answer.status_code == 401 and had_access and self._renewal is not None:
            if refusal := self._renew():
                return refusal
            request.headers["Authorization"] = self._authorization
            answer = super().send(request, **options)
        return answer

    def _renew(self) -> httpx.Response | None:
        """Have an access token made; the server's answer where it refuses.

        Raises:
            Unanswered: what answers is no data.
        """
        assert self._renewal is not None
        answer = super().send(self._renewal)
        if answer.status_code != 200:
            return answer
        try:
            self._authorization = f"Bearer {parse_json(answer.content)['access']}"
        except (ValueError, KeyError, TypeError):
            raise Unanswered("a page instead of data when renewing the access token") from None
        return None


def address(url: str) -> str:
    """Return the address of a server with the slash at its end that sub-paths need.

    Raises:
        BadInput: no http(s) address of a server, or one that holds a user name, password or parameters.
    """
    return server_address(url, "LABEL_STUDIO_URL", "http://127.0.0.1:8080/", "LABEL_STUDIO_API_KEY") + "/"


def token_claims(token: str) -> dict[str, Any] | None:
    """Return what a personal access token holds; None for a legacy token, which holds nothing."""
    try:
        part = token.strip().split(".")[1]
        value = parse_json(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return value if isinstance(value, dict) else None
    except (IndexError, ValueError):
        return None


def refusal_text(body: Any) -> str:
    """Return the reason of a refusal: its ``detail`` and field errors, or that it sent no data."""
    if isinstance(body, (bytes, str)):
        try:
            body = parse_json(body)
        except ValueError:
            return "no reason given"
    if not isinstance(body, dict):
        return json.dumps(body)
    errors = body.get("validation_errors")
    errors = errors if isinstance(errors, dict) else {}
    words = [str(body.get("detail") or "")]
    words += [f"{key}: {', '.join(map(str, v)) if isinstance(v, list) else v}" for key, v in errors.items()]
    return "; ".join(word for word in words if word) or json.dumps(body)


def _check_claims(url: str, token: str) -> None:
    ends = (token_claims(token) or {"exp": math.inf}).get("exp")
    if isinstance(ends, bool) or not isinstance(ends, int | float):
        raise BadInput(f"LABEL_STUDIO_API_KEY: is no token that can be read; {NEW_TOKEN}")
    if ends < time.time():
        raise BadInput(f"{url}: the token has expired; {NEW_TOKEN}")
