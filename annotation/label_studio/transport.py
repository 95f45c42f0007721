"""One request for one answer, by the SDK's own transport; the only file that knows the SDK.

It renews access tokens. The SDK's typed methods are not used: these repeat writes after lost replies, stop reading at
a 404 as if it were the end, and change the type of a row with the annotations it has. The SDK is imported when a
client is made, since importing it takes long. An answer is read as it was sent, never unpacked, and no further than
1 GiB.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from align.core.config import BadInput
from align.core.limits import MOST_WHOLE, shown_size
from annotation.label_studio.calls import Answer, Exchange
from annotation.label_studio.faults import NEW_TOKEN, Unanswered, refusal

TIMEOUT = 120.0  # seconds
LONGEST_ANSWER = 1800.0  # seconds from the first byte of an answer to its last
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def connect(url: str, token: str) -> Exchange:
    """The SDK's transport with its own repetitions off.

    Raises:
        BadInput: the token has expired, or is none.
    """
    from label_studio_sdk import LabelStudio
    from label_studio_sdk.core.api_error import ApiError

    is_near = urlsplit(url).hostname in LOOPBACK  # no proxy leads there
    client = httpx.Client(
        timeout=TIMEOUT,
        headers={"Accept-Encoding": "identity"},
        follow_redirects=True,
        trust_env=not is_near,
        event_hooks={"response": [_measure]},
    )
    try:
        sdk = LabelStudio(base_url=url, api_key=token, max_retries=0, timeout=TIMEOUT, httpx_client=client)
    except ApiError as error:
        raise BadInput(refusal(url, token, error.status_code or 401, error.body)) from None
    except (ValueError, TypeError, OverflowError, OSError):  # of a web token's own fields
        raise BadInput(f"LABEL_STUDIO_API_KEY: is no token that can be read; {NEW_TOKEN}") from None
    transport = sdk._client_wrapper.httpx_client

    def exchange(method: str, path: str, params: Mapping[str, Any] | None, content: bytes | None) -> Answer:
        headers = {"Content-Type": "application/json"} if content else None
        try:
            reply = transport.request(path, method=method, params=params, content=content, headers=headers)
        except ApiError as error:  # of renewing the access token
            return Answer(error.status_code or 401, json.dumps(error.body).encode())
        except httpx.RequestError as error:
            raise Unanswered(f"{type(error).__name__}: {error}") from None
        except ValueError:  # the SDK takes whatever answers a renewal for data
            raise Unanswered("a page instead of data when renewing the access token") from None
        return Answer(reply.status_code, reply.content)

    return exchange


class _Measured(httpx.SyncByteStream):
    """The body of an answer, which ends the exchange where it goes on too long."""

    def __init__(self, body: httpx.SyncByteStream, url: httpx.URL) -> None:
        self._body, self._url = body, url

    def __iter__(self) -> Iterator[bytes]:
        ends, total = time.monotonic() + LONGEST_ANSWER, 0
        for block in self._body:
            total += len(block)
            if total > MOST_WHOLE or time.monotonic() > ends:
                limit = f"{shown_size(MOST_WHOLE)} or {LONGEST_ANSWER / 60:.0f} minutes"
                raise BadInput(f"{self._url.copy_with(query=None)}: an answer went on beyond {limit}; run 'doctor'")
            yield block

    def close(self) -> None:
        self._body.close()


def _measure(response: httpx.Response) -> None:
    """Have the body of an answer measured while it is read; a compressed one cannot be."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        where = response.url.copy_with(query=None)
        raise BadInput(
            f"{where}: sends compressed answers that were not asked for; is a proxy in between? Name another"
        )
    if isinstance(response.stream, httpx.SyncByteStream):
        response.stream = _Measured(response.stream, response.url)
