"""Check whether a labelling server can be used from here: each finding is one line, the first fault ends it.

In: the address and the token from the environment. Out: lines about what is well, then the client, or
BadInput with what is wrong and what to do. Tokens are read for their kind and their date and never shown.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from urllib.parse import urlsplit

from align.core.config import BadInput
from align.core.http import Client, Unanswered, redact
from align.core.limits import MOST_ANSWER, parse_json
from annotation.label_studio.connection import NEW_TOKEN, address, token_claims
from annotation.label_studio.installation import VERSION
from annotation.label_studio.studio import Studio

TIMEOUT = 10.0


def settings(environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Return address and token from the environment.

    Raises:
        BadInput: one of them is not set.
    """
    for name, example in (("LABEL_STUDIO_URL", "http://127.0.0.1:8080/"), ("LABEL_STUDIO_API_KEY", "a token")):
        if not environment.get(name, "").strip():
            raise BadInput(f"{name} is not set; export {name}={example}, or start an embedded server with 'up'")
    return environment["LABEL_STUDIO_URL"], environment["LABEL_STUDIO_API_KEY"]


def doctor(url: str, token: str) -> Iterator[str]:
    """Check the address, the server and the token, in that order.

    Raises:
        BadInput: the first thing that is wrong.
    """
    base = address(url)
    release = _release(base)
    begin = _beginning(base)
    if begin not in (base, None):
        raise BadInput(f"{base}: is not where Label Studio begins; set LABEL_STUDIO_URL={begin}")
    if release is None:
        raise BadInput(
            f"{base}: answers and is not Label Studio; set LABEL_STUDIO_URL to the address of its start page"
        )
    yield f"address: {base} is Label Studio {release}"
    if urlsplit(base).path != "/" and not url.strip().endswith("/"):
        yield (
            "address: without the slash at its end a sub-path is lost when tokens are renewed; it was added here, "
            f"set LABEL_STUDIO_URL={base} for other programs"
        )
    if release != VERSION:
        yield f"version: {release} is not the one this was tested with ({VERSION}); try a small campaign first"
    kind = _kind(token)
    if kind == "access":
        raise BadInput(f"LABEL_STUDIO_API_KEY: is an access token that lasts five minutes; {NEW_TOKEN}")
    who = Studio(url, token, patience=3.0).whoami()
    yield f"token: a {kind} of {who}"


def _release(base: str) -> str | None:
    """Return the version that answers at an address; None when what answers is no Label Studio.

    Raises:
        BadInput: nothing answers.
    """
    try:
        with Client(base, most=MOST_ANSWER, timeout=TIMEOUT, follow_redirects=True) as client:
            answer = client.get(base + "api/version")
    except Unanswered as error:
        raise BadInput(
            f"{base}: cannot be reached ({redact(str(error))}); start the server, or mend host and port in "
            "LABEL_STUDIO_URL"
        ) from None
    if answer.status_code >= 500:
        raise BadInput(f"{base}: answers with status {answer.status_code}; wait until the server is up")
    try:
        return str(parse_json(answer.content)["release"]) if answer.status_code == 200 else None
    except (ValueError, KeyError, TypeError):
        return None


def _beginning(base: str) -> str | None:
    """Return the shortest address above (or at) this one where Label Studio answers, as it does at its pages too."""
    parts = urlsplit(base)
    steps = parts.path.strip("/").split("/") if parts.path != "/" else []
    for depth in range(len(steps) + 1):
        candidate = f"{parts.scheme}://{parts.netloc}/" + "".join(f"{step}/" for step in steps[:depth])
        with suppress(BadInput):
            if _release(candidate):
                return candidate
    return None


def _kind(token: str) -> str:
    """Return what kind of token it is."""
    payload = token_claims(token)
    if payload is None:
        return "legacy token"
    if payload.get("token_type") == "access":
        return "access"
    ends = payload.get("exp")
    until = f" until {datetime.fromtimestamp(ends, UTC):%Y-%m-%d}" if isinstance(ends, int) else ""
    return f"personal access token{until}"
