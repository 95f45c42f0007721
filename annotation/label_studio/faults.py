"""What goes wrong between here and a labelling server, said in one line; secrets never stand in it.

In: addresses, statuses and bodies of answers. Out: text for people. Nothing here talks to a server.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import ValidationError

from align.core.config import BadInput
from align.core.http import server_address
from align.core.limits import parse_json

SECRETS = (
    re.compile(r"\bey[\w-]+\.[\w-]+(?:\.[\w-]*)?"),  # web tokens
    re.compile(r"\b(?=\w*\d)\w{32,}\b"),  # legacy tokens, invitations, session and forgery keys
    re.compile(r"(?i)((?:token|sessionid|csrftoken|password)[\"']?\s*[:=]\s*[\"']?)[^\s\"',;&]+"),
    re.compile(r"(?i)((?:token|bearer) )(?=\S*\d)[^\s\"',;&]+"),
)
LONGEST = 200  # characters of a server's words that are passed on
NEW_TOKEN = "make a personal access token on the server's page Account & Settings and set LABEL_STUDIO_API_KEY to it"


class Unanswered(Exception):
    """A request without a usable answer: whether it was carried out is not known."""


class Missing(BadInput):
    """The server says that what was asked for is not there."""


class Silent(BadInput):
    """The server gave no usable answer for as long as it was waited for."""


def address(url: str) -> str:
    """The address of a server with the slash at its end that sub-paths need.

    Raises:
        BadInput: no http(s) address of a server, or one that holds a user name or password.
    """
    return server_address(url, "LABEL_STUDIO_URL", "http://127.0.0.1:8080/", "LABEL_STUDIO_API_KEY") + "/"


def redact(text: str, *secrets: str) -> str:
    """One line of at most 200 characters without tokens, cookies and passwords."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "[secret]")
    for pattern in SECRETS:
        text = pattern.sub("[secret]", text)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def said(body: Any) -> str:
    """What a server says of a refusal: its ``detail`` and field errors, or that it sent no data."""
    if isinstance(body, (bytes, str)):
        try:
            body = parse_json(body)
        except ValueError:
            return "no reason given"
    if not isinstance(body, dict):
        return json.dumps(body)
    errors = body.get("validation_errors")
    errors = errors if isinstance(errors, dict) else {}
    words = [str(body.get("detail") or "")] + [f"{key}: {_joined(value)}" for key, value in errors.items()]
    return "; ".join(word for word in words if word) or json.dumps(body)


def refusal(url: str, token: str, status: int, body: Any) -> str:
    """Why a server refuses a token or a request that reached it whole (status 400 to 499)."""
    words = said(body)
    reason = redact(words, token)
    if status == 401 and "expired" in words:
        return f"{url}: the token has expired; {NEW_TOKEN}"
    if status == 401 and "legacy token" in words:
        return f"{url}: takes no legacy tokens (they are disabled there); {NEW_TOKEN}"
    if status == 401:
        return f"{url}: does not know this token (revoked, mistyped, or of another server: {reason}); {NEW_TOKEN}"
    if status == 403:
        return f"{url}: this account may not do that ({reason}); use the token of an account that may"
    return f"{url}: refused the request (status {status}: {reason}); nothing of it was stored"


def silence(url: str, seconds: float, reason: str) -> str:
    """A server that gives no usable answer."""
    waited = f" for {seconds:.0f} s" if seconds >= 1 else ""
    return (
        f"{url}: no usable answer{waited} ({redact(reason)}); nothing is lost: start the server or check the address, "
        "then run the same command again"
    )


def no_data(url: str) -> str:
    """An answer that is a page for people."""
    return f"{url}: answers with a page and not with data; is this the address of Label Studio itself? Run 'doctor'"


def unknown_form(url: str, path: str, error: ValidationError) -> str:
    """Data that is not what this version of the server is known to answer."""
    problem = error.errors()[0]
    place = ".".join(map(str, problem["loc"])) or "the whole"
    return f"{url}: answers {path} in a form that is not known ({place}: {problem['msg']}); run 'doctor'"


def _joined(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
