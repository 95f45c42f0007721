"""One request for one answer, by the SDK's own transport; the only file that knows the SDK.

It renews access tokens. The SDK's typed methods are not used: these repeat writes after lost replies, stop reading at
a 404 as if it were the end, and change the type of a row with the annotations it has. The SDK is imported when a
client is made, since importing it takes long.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from align.core.config import BadInput
from annotation.label_studio.calls import Answer, Exchange
from annotation.label_studio.faults import Unanswered, refusal

TIMEOUT = 120.0  # seconds
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def connect(url: str, token: str) -> Exchange:
    """The SDK's transport with its own repetitions off.

    Raises:
        BadInput: the token has expired.
    """
    import httpx
    from label_studio_sdk import LabelStudio
    from label_studio_sdk.core.api_error import ApiError

    is_near = urlsplit(url).hostname in LOOPBACK  # no proxy leads there
    client = httpx.Client(timeout=TIMEOUT, follow_redirects=True, trust_env=not is_near)
    try:
        sdk = LabelStudio(base_url=url, api_key=token, max_retries=0, timeout=TIMEOUT, httpx_client=client)
    except ApiError as error:
        raise BadInput(refusal(url, token, error.status_code or 401, error.body)) from None
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
