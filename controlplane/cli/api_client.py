"""Calls the control plane as Connect/JSON over HTTP.

JSON and httpx rather than gRPC: a command that lists VMs should not spend half a second on loading a transport.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import httpx

from controlplane.cli.error_details import decode_details
from limiquantix.errors import ERROR_CLASSES, ApiError, Code

Document = dict[str, Any]
"""A message in the API's own JSON."""

VM_SERVICE = "limiquantix.compute.v1.VMService"
NODE_SERVICE = "limiquantix.compute.v1.NodeService"

READ_DEADLINE_S = 30.0
"""For calls that change nothing."""
CHANGE_DEADLINE_S = 300.0
"""For calls that make a host work: disk images are copied, guests boot."""
_CONNECT_TIMEOUT_S = 5.0
_ANSWER_GRACE_S = 5.0
"""Beyond the deadline the server itself keeps, so that its own words arrive."""

PAGE_SIZE = 500
"""A page of this size is a few MiB at most."""

_IGNORED_FIELDS_HEADER = "limiquantix-ignored-fields"
_CODES = {code.name.lower(): code for code in Code} | {"canceled": Code.CANCELLED}


class ServerUnreachable(Exception):
    """Nothing, or nothing that is a control plane, answers at the server's address."""


class ApiClient:
    """One connection to one control plane.

    Args:
        server: "http://host:port" or "https://host:port".
        warn: told what the server left aside of a request.
        transport: carries the requests instead of the network.
    """

    def __init__(
        self, server: str, *, warn: Callable[[str], None], transport: httpx.BaseTransport | None = None
    ) -> None:
        self._server = server
        self._warn = warn
        # A proxy from the environment cannot know this machine's own loopback address.
        self._http = httpx.Client(base_url=server, transport=transport, trust_env=not _is_loopback(server))

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def call(self, service: str, method: str, request: Document, deadline_s: float = READ_DEADLINE_S) -> Document:
        """Call a method and return its answer.

        Raises:
            ApiError: the server refused, with the class, reason and details that it sent.
            ServerUnreachable: there was no answer, or none that makes sense.
        """
        response = self._exchange(
            "POST",
            f"/{service}/{method}",
            deadline_s,
            content=json.dumps(request).encode(),
            headers={"content-type": "application/json", "connect-timeout-ms": str(int(deadline_s * 1000))},
        )
        document = self._document(response)
        if not response.is_success:
            raise _api_error(document) or self._not_ours(response)
        ignored = response.headers.get(_IGNORED_FIELDS_HEADER)
        if ignored:
            self._warn(f"the server does not know and left aside: {', '.join(ignored.split(','))}")
        return document

    def get(self, path: str, deadline_s: float = READ_DEADLINE_S) -> Document:
        """Read one of the plain endpoints, such as /api/v1/info.

        Raises:
            ServerUnreachable: there was no answer, or none that makes sense.
        """
        response = self._exchange("GET", path, deadline_s)
        if not response.is_success:
            raise self._not_ours(response)
        return self._document(response)

    def pages(
        self, service: str, method: str, request: Document, deadline_s: float = READ_DEADLINE_S
    ) -> Iterator[Document]:
        """Call a List method until its last page; `request` holds the filters and may set `pageSize`.

        Raises:
            ServerUnreachable: the server goes in circles, and see `call`.
        """
        token, seen = "", set[str]()
        while True:
            page = self.call(service, method, {"pageSize": PAGE_SIZE, **request, "pageToken": token}, deadline_s)
            yield page
            token = str(page.get("nextPageToken", ""))
            if not token:
                return
            if token in seen:
                raise ServerUnreachable(f"{self._server} repeats the same page of {method} for ever")
            seen.add(token)

    def _exchange(self, verb: str, path: str, deadline_s: float, **content: Any) -> httpx.Response:
        timeout = httpx.Timeout(deadline_s + _ANSWER_GRACE_S, connect=min(_CONNECT_TIMEOUT_S, deadline_s))
        try:
            return self._http.request(verb, path, timeout=timeout, **content)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
            raise ServerUnreachable(f"cannot reach the control plane at {self._server}: {_cause(error)}") from error
        except httpx.TimeoutException as error:
            raise ServerUnreachable(
                f"the control plane at {self._server} did not answer within {deadline_s:g} s; what was asked may happen"
            ) from error
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise ServerUnreachable(
                f"the connection to the control plane at {self._server} broke before it answered ({_cause(error)}); "
                "what was asked may have happened"
            ) from error

    def _document(self, response: httpx.Response) -> Document:
        try:
            document = json.loads(response.content or b"null")
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise self._not_ours(response)
        return document

    def _not_ours(self, response: httpx.Response) -> ServerUnreachable:
        return ServerUnreachable(
            f"what answers at {self._server} is not a control plane of this version: "
            f"HTTP {response.status_code} on {response.request.url.path}"
        )


def _api_error(document: Document) -> ApiError | None:
    """Decode a Connect error; None if the document is none."""
    code = _CODES.get(str(document.get("code")))
    if code is None:
        return None
    details = decode_details(document.get("details"))
    error_class = ERROR_CLASSES.get(code, ApiError)
    return error_class(
        details.reason,
        str(document.get("message") or code.name.lower().replace("_", " ")),
        metadata=details.metadata,
        violations=details.violations,
        retry_after_s=details.retry_after_s,
    )


def _cause(error: Exception) -> str:
    """Say what went wrong in the operating system's words, without its number."""
    text = str(error) or type(error).__name__
    return text.partition("] ")[2] if text.startswith("[Errno") and "] " in text else text


def _is_loopback(server: str) -> bool:
    host = httpx.URL(server).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
