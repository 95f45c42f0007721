"""Make accounts on an embedded Label Studio: the administrator's token, and annotators under alias addresses.

In: a server's address and a password or token. Out: a personal access token, an annotator's log-in. The open-source
server makes accounts and first tokens through its web forms only, hence the cookies and form fields here. It shows
every address to every user: an annotator gets an alias, and the server does not know who that is.
"""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple
from urllib.parse import quote

import httpx

from align.core.config import BadInput
from align.core.http import Client, Unanswered
from align.core.limits import MOST_ANSWER
from annotation.label_studio.connection import Connection

TIMEOUT = 30.0  # seconds
PATIENCE = 10.0  # seconds: the server is on this machine and runs
DOMAIN = "annotators.invalid"  # a name that never leads anywhere (RFC 2606)
ADMIN = f"admin@{DOMAIN}"
ALIAS = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


class Account(NamedTuple):
    """What an annotator logs in with; the password is known to this return value alone."""

    email: str
    password: str


def is_healthy(url: str) -> bool:
    """Return whether a Label Studio answers there."""
    try:
        with Client(url, most=MOST_ANSWER, timeout=5.0) as client:
            return "UP" in client.get(url + "health").text
    except (Unanswered, BadInput):
        return False


def create_token(url: str, email: str, password: str) -> str:
    """Log in and have a personal access token made."""
    from label_studio_sdk import LabelStudio
    from label_studio_sdk.core.api_error import ApiError

    with Client(url, most=MOST_ANSWER, timeout=TIMEOUT, event_hooks={"request": [_by_cookie]}) as client:
        form = {"email": email, "password": password, "persist_session": "on"}
        if _submit(client, url + "user/login/", form) != 302:
            raise BadInput(
                f"{url}: the administrator cannot log in; stop the server, remove its folder and start again"
            )
        client.headers["X-CSRFToken"] = client.cookies["csrftoken"]
        try:
            sdk = LabelStudio(base_url=url, api_key="not used", max_retries=0, httpx_client=client)
            return str(sdk.tokens.create().token)
        except (ApiError, Unanswered, AttributeError) as error:
            status = getattr(error, "status_code", None)
            raise BadInput(f"{url}: made no token (status {status}); see the server's log") from None


def create_annotator(url: str, token: str, alias: str) -> Account:
    """Make an account ``alias@annotators.invalid`` with a random password.

    The invitation is made invalid afterwards: the server's log holds it, as part of an address.

    Raises:
        BadInput: not an alias, or taken already.
    """
    check_alias(alias)
    email = f"{alias}@{DOMAIN}"
    connection = Connection(url, token, PATIENCE)
    if email in connection.query(lambda sdk: [user.email for user in sdk.users.list()]):
        raise BadInput(
            f"{email}: has an account already, whose password was shown when it was made; take another alias"
        )
    invitation = connection.read("api/invite")["token"]
    password = secrets.token_urlsafe(12)
    page = f"{url}user/signup/?token={quote(invitation)}"
    with Client(url, most=MOST_ANSWER, timeout=TIMEOUT) as client:
        status = _submit(client, page, {"email": email, "password": password})
    connection.send("POST", "api/invite/reset-token")
    if status != 302:
        raise BadInput(f"{email}: the server did not make the account (status {status}); see server.log")
    return Account(email, password)


def check_alias(alias: str) -> None:
    """Refuse what is no alias.

    Raises:
        BadInput: other characters, too long, or the administrator's.
    """
    if not ALIAS.fullmatch(alias) or f"{alias}@{DOMAIN}" == ADMIN:
        raise BadInput(f"'{alias}': an alias is 1 to 40 of a-z, 0-9, _ and -, that does not identify the person")


def _by_cookie(request: httpx.Request) -> None:
    """Remove the authorization: a session is known by its cookie, and the server refuses both together."""
    request.headers.pop("Authorization", None)


def _submit(client: Client, page: str, form: dict[str, str]) -> int:
    """Fill in a form of the web interface; returns the status, 302 when it was accepted."""
    try:
        client.get(page)
        return client.post(page, data={**form, "csrfmiddlewaretoken": client.cookies.get("csrftoken", "")}).status_code
    except Unanswered as error:
        raise BadInput(f"{page.partition('?')[0]}: no answer ({error}); see the server's log") from None
