"""Accounts of an embedded Label Studio: the administrator's token, and annotators under alias addresses.

In: a server's address and a password or token. Out: a personal access token, an annotator's log-in. The open-source
server makes accounts and first tokens through its web forms only, hence the cookies and form fields here. It shows
every address to every user: an annotator gets an alias, and who that is stands nowhere in the server.
"""

from __future__ import annotations

import http.client
import json
import re
import secrets
import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, urlencode

from align.core.config import BadInput
from align.core.limits import bounded_bytes, parse_json

DOMAIN = "annotators.invalid"  # a name that never leads anywhere (RFC 2606)
ADMIN = f"admin@{DOMAIN}"
ALIAS = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


class Account(NamedTuple):
    """What an annotator logs in with; the password is known to this return value alone."""

    email: str
    password: str


class Address(Protocol):
    """A server and its administrator's token."""

    @property
    def url(self) -> str: ...

    @property
    def token(self) -> str: ...


class _Unfollowed(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer: the forms say success by it."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


def is_healthy(url: str) -> bool:
    """Whether a Label Studio answers there."""
    try:
        with _opener().open(url + "health", timeout=5) as reply:
            return "UP" in reply.read(100).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return False


def create_token(url: str, email: str, password: str) -> str:
    """Log in and have a personal access token made."""
    jar = CookieJar()
    opener = _opener(jar)
    form = {"email": email, "password": password, "persist_session": "on"}
    if _submit(opener, jar, url + "user/login/", form) != 302:
        raise BadInput(f"{url}: the administrator cannot log in; stop the server, remove its folder and start again")
    reply = _ask(opener, "POST", url + "api/token/", {"X-CSRFToken": _csrf(jar)})
    return str(reply["token"])


def create_annotator(server: Address, alias: str) -> Account:
    """Make an account ``alias@annotators.invalid`` with a random password.

    The invitation is made invalid afterwards: it stands in the server's log, being part of an address.

    Raises:
        BadInput: not an alias, or taken already.
    """
    check_alias(alias)
    email = f"{alias}@{DOMAIN}"
    opener = _opener()
    access = _ask(opener, "POST", server.url + "api/token/refresh/", {}, {"refresh": server.token})["access"]
    bearer = {"Authorization": f"Bearer {access}"}
    if email in {user["email"] for user in _ask(opener, "GET", server.url + "api/users/", bearer)}:
        raise BadInput(
            f"{email}: has an account already, whose password was shown when it was made; take another alias"
        )
    invitation = _ask(opener, "GET", server.url + "api/invite", bearer)["token"]
    jar = CookieJar()
    password = secrets.token_urlsafe(12)
    page = f"{server.url}user/signup/?token={quote(invitation)}"
    status = _submit(_opener(jar), jar, page, {"email": email, "password": password})
    _ask(opener, "POST", server.url + "api/invite/reset-token", bearer)
    if status != 302:
        raise BadInput(f"{email}: the server did not make the account (status {status}); see server.log")
    return Account(email, password)


def check_alias(alias: str) -> None:
    """Refuse what is no alias.

    Raises:
        BadInput: other characters, too long, or the administrator's.
    """
    if not ALIAS.fullmatch(alias) or f"{alias}@{DOMAIN}" == ADMIN:
        raise BadInput(f"'{alias}': an alias is 1 to 40 of a-z, 0-9, _ and -, and says nothing of who it is")


def _opener(jar: CookieJar | None = None) -> urllib.request.OpenerDirector:
    """Straight to the server, whatever proxy the environment names: it is on this machine."""
    cookies = urllib.request.HTTPCookieProcessor(jar)
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), cookies, _Unfollowed())


def _csrf(jar: CookieJar) -> str:
    return next((str(cookie.value) for cookie in jar if cookie.name == "csrftoken"), "")


def _submit(opener: urllib.request.OpenerDirector, jar: CookieJar, page: str, form: dict[str, str]) -> int:
    """Fill in a form of the web interface; returns the status, 302 when it was accepted."""
    try:
        opener.open(page, timeout=30).close()
        body = urlencode({**form, "csrfmiddlewaretoken": _csrf(jar)}).encode()
        with opener.open(urllib.request.Request(page, data=body), timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException) as error:
        raise BadInput(f"{page.partition('?')[0]}: no answer ({error}); see the server's log") from None


def _ask(
    opener: urllib.request.OpenerDirector, method: str, url: str, headers: dict[str, str], body: Any = None
) -> Any:
    data = json.dumps(body or {}).encode() if method == "POST" else None
    request = urllib.request.Request(url, data, {**headers, "Content-Type": "application/json"}, method=method)
    try:
        with opener.open(request, timeout=30) as reply:
            return parse_json(bounded_bytes(reply))
    except urllib.error.HTTPError as error:
        raise BadInput(f"{url}: refused with status {error.code}; see the server's log") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise BadInput(f"{url}: no usable answer ({error}); see the server's log") from None
