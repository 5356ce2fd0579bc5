"""Calls the control plane as Connect/JSON over HTTP.

JSON and httpx rather than gRPC: a command that lists VMs should not spend half a second on loading a transport.
"""

from __future__ import annotations

import ipaddress
import json
import ssl
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from types import TracebackType
from typing import Any

import httpx

from controlplane.cli.connect_stream import STREAM_TYPE, StreamCut, StreamMakesNoSense, envelope, read_envelopes
from controlplane.cli.error_details import decode_details
from limiquantix.errors import ERROR_CLASSES, ApiError, Code, Reason, Unavailable

Document = dict[str, Any]
"""A message in the API's own JSON."""

VM_SERVICE = "limiquantix.compute.v1.VMService"
NODE_SERVICE = "limiquantix.compute.v1.NodeService"
OPERATION_SERVICE = "limiquantix.compute.v1.OperationService"
BALANCING_SERVICE = "limiquantix.compute.v1.BalancingService"
ALERT_SERVICE = "limiquantix.compute.v1.AlertService"
AUDIT_SERVICE = "limiquantix.compute.v1.AuditService"
JOIN_SERVICE = "limiquantix.compute.v1.JoinService"
HA_SERVICE = "limiquantix.compute.v1.HaService"
PLACEMENT_SERVICE = "limiquantix.compute.v1.PlacementService"
AUTH_SERVICE = "limiquantix.compute.v1.AuthService"
USER_SERVICE = "limiquantix.compute.v1.UserService"
API_KEY_SERVICE = "limiquantix.compute.v1.ApiKeyService"
PROJECT_SERVICE = "limiquantix.compute.v1.ProjectService"
FOLDER_SERVICE = "limiquantix.compute.v1.FolderService"
ROLE_SERVICE = "limiquantix.compute.v1.RoleService"

READ_DEADLINE_S = 30.0
"""For calls that change nothing."""
CHANGE_DEADLINE_S = 300.0
"""For calls that make a host work: disk images are copied, guests boot."""
_CONNECT_TIMEOUT_S = 5.0
_ANSWER_GRACE_S = 5.0
"""Beyond the deadline the server itself keeps, so that its own words arrive."""

QUIET_S = 60.0
"""A stream that is silent for so long may have lost its server without a word; asking again costs next to nothing."""

REPEAT_PAUSES_S = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0)
"""Before a call that may be made twice is made again; together what a control plane needs to come back."""

PAGE_SIZE = 500
"""A page of this size is a few MiB at most."""

_IGNORED_FIELDS_HEADER = "limiquantix-ignored-fields"
_OPERATION_ID_HEADER = "limiquantix-operation-id"
_REQUEST_ID_HEADER = "limiquantix-request-id"
_WAIT_HEADER = "limiquantix-wait"
_NOT_REACHED = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.InvalidURL,
)
_CODES = {code.name.lower(): code for code in Code} | {"canceled": Code.CANCELLED}


class ServerUnreachable(Exception):
    """Nothing, or nothing that is a control plane, answers at the server's address."""


class ConnectionLost(ServerUnreachable):
    """A server that was there is not any more, perhaps only for a moment; what was asked may have happened."""


class StreamQuiet(ConnectionLost):
    """A stream said nothing for `QUIET_S`: there was nothing to say, or the server is gone."""


class CallCancelled(ApiError):
    """The server ended the call, not what the call asked for: it is stopping."""

    code = Code.CANCELLED


class ApiClient:
    """One connection to one control plane.

    Args:
        server: "http://host:port" or "https://host:port".
        warn: told what the server left aside of a request, and that a call is repeated.
        transport: carries the requests instead of the network.
        auth: adds what says who calls.
        pause: waits some seconds before a call is repeated.
        trust: who must have signed the server's certificate; True for those that the system trusts.
    """

    def __init__(
        self,
        server: str,
        *,
        warn: Callable[[str], None],
        transport: httpx.BaseTransport | None = None,
        auth: httpx.Auth | None = None,
        pause: Callable[[float], None] = time.sleep,
        trust: ssl.SSLContext | bool = True,
    ) -> None:
        self._server = server
        self.warn = warn
        self.pause = pause
        self._was_reached = False
        # A proxy from the environment cannot know this machine's own loopback address.
        trusts_environment = not _is_loopback(server)
        self._http = httpx.Client(
            base_url=server, transport=transport, auth=auth, trust_env=trusts_environment, verify=trust
        )

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def call(self, service: str, method: str, request: Document, deadline_s: float = READ_DEADLINE_S) -> Document:
        """Call a method once and return its answer.

        Raises:
            ApiError: the server refused, with the class, reason and details that it sent.
            ServerUnreachable: there was no answer, or none that makes sense.
        """
        return self._call(service, method, request, deadline_s, {}, _ignore)

    def insist(self, service: str, method: str, request: Document, deadline_s: float = READ_DEADLINE_S) -> Document:
        """Call a method that may be called twice, and call it again a few times if its server is gone or cannot serve.

        A server that was never reached is not waited for. Raises as `call`.
        """
        return self._insist(lambda left_s: self._call(service, method, request, left_s, {}, _ignore), deadline_s)

    def change(
        self,
        service: str,
        method: str,
        request: Document,
        deadline_s: float,
        *,
        request_id: str,
        waits: bool = True,
        on_operation: Callable[[str], None],
    ) -> Document:
        """Call a method that changes something, see `insist`: the request id makes it safe to ask again.

        Args:
            waits: whether the answer shall come when the change is done, or at once.
            on_operation: told the id of the operation that the change is, also if it is a refusal that comes back.

        Raises:
            ApiError, ServerUnreachable: see `call`.
        """
        headers = {_REQUEST_ID_HEADER: request_id} | ({} if waits else {_WAIT_HEADER: "false"})
        return self._insist(
            lambda left_s: self._call(service, method, request, left_s, headers, on_operation), deadline_s
        )

    def stream(self, service: str, method: str, request: Document) -> Generator[Document, None, None]:
        """Call a method that answers with a stream, and yield its messages until the server ends it.

        Raises:
            ApiError: the server refused, or ended the stream with an error.
            ConnectionLost: the stream broke off; `StreamQuiet` if nothing came for long.
            ServerUnreachable: there was no answer, or none that makes sense.
        """
        timeout = httpx.Timeout(_CONNECT_TIMEOUT_S, read=QUIET_S)
        headers = {"content-type": STREAM_TYPE, "connect-protocol-version": "1", "accept-encoding": "identity"}
        path = f"/{service}/{method}"
        try:
            with self._http.stream(
                "POST", path, content=envelope(request), headers=headers, timeout=timeout
            ) as response:
                self._was_reached = True
                if response.headers.get("content-type", "").partition(";")[0] != STREAM_TYPE:
                    response.read()
                    raise _api_error(self._document(response)) or self._not_ours(response)
                for is_end, document in read_envelopes(response.iter_raw()):
                    if not is_end:
                        yield document
                    elif "error" in document:
                        raise _api_error(document["error"]) or self._not_ours(response)
        except httpx.ReadTimeout as error:
            self._was_reached = True
            raise StreamQuiet(f"{method} of {self._server} was silent for {QUIET_S:g} s") from error
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise self._no_answer(error, _CONNECT_TIMEOUT_S) from error
        except StreamCut as error:
            raise self._lost(str(error)) from error
        except StreamMakesNoSense as error:
            raise ServerUnreachable(f"the control plane at {self._server} sent what makes no sense: {error}") from error

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

    def _insist(self, call: Callable[[float], Document], deadline_s: float) -> Document:
        ends_s = time.monotonic() + deadline_s
        told = False
        for pause_s in REPEAT_PAUSES_S:
            try:
                return call(ends_s - time.monotonic())
            except (ApiError, ServerUnreachable) as error:
                if not may_pass(error) or time.monotonic() + pause_s >= ends_s:
                    raise
                if not told:
                    self.warn(f"{error}; asking again")
                told = True
            self.pause(pause_s)
        return call(ends_s - time.monotonic())

    def _call(
        self,
        service: str,
        method: str,
        request: Document,
        deadline_s: float,
        headers: Mapping[str, str],
        on_operation: Callable[[str], None],
    ) -> Document:
        response = self._exchange(
            "POST",
            f"/{service}/{method}",
            deadline_s,
            content=json.dumps(request).encode(),
            headers={
                "content-type": "application/json",
                "connect-timeout-ms": str(max(int(deadline_s * 1000), 1)),
                **headers,
            },
        )
        operation_id = response.headers.get(_OPERATION_ID_HEADER)
        if operation_id:
            on_operation(operation_id)
        document = self._document(response)
        if not response.is_success:
            raise _api_error(document) or self._not_ours(response)
        ignored = response.headers.get(_IGNORED_FIELDS_HEADER)
        if ignored:
            self.warn(f"the server does not know and left aside: {', '.join(ignored.split(','))}")
        return document

    def _exchange(self, verb: str, path: str, deadline_s: float, **content: Any) -> httpx.Response:
        timeout = httpx.Timeout(deadline_s + _ANSWER_GRACE_S, connect=min(_CONNECT_TIMEOUT_S, deadline_s))
        try:
            response = self._http.request(verb, path, timeout=timeout, **content)
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise self._no_answer(error, deadline_s) from error
        self._was_reached = True
        return response

    def _no_answer(self, error: httpx.RequestError | httpx.InvalidURL, deadline_s: float) -> ServerUnreachable:
        """Say why there is no answer, and whether there was a server."""
        if isinstance(error, _NOT_REACHED):
            kind = ConnectionLost if self._was_reached else ServerUnreachable
            return kind(f"cannot reach the control plane at {self._server}: {_cause(error)}")
        if isinstance(error, httpx.TimeoutException):
            return ServerUnreachable(
                f"the control plane at {self._server} did not answer within {deadline_s:g} s; what was asked may happen"
            )
        return self._lost(_cause(error))

    def _lost(self, cause: str) -> ConnectionLost:
        self._was_reached = True
        return ConnectionLost(
            f"the connection to the control plane at {self._server} broke before it answered ({cause}); "
            "what was asked may have happened"
        )

    def _document(self, response: httpx.Response) -> Document:
        try:
            document = json.loads(response.content or b"null")
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise self._not_ours(response)
        return document

    def _not_ours(self, response: httpx.Response) -> ServerUnreachable:
        # A proxy, or a server that is just stopping, answers for a control plane that is there.
        kind = ConnectionLost if response.is_server_error else ServerUnreachable
        return kind(
            f"what answers at {self._server} is not a control plane of this version: "
            f"HTTP {response.status_code} on {response.request.url.path}"
        )


def _ignore(_: str) -> None:
    """Take no notice of the operation."""


def may_pass(error: ApiError | ServerUnreachable) -> bool:
    """Tell whether the same call may work in a moment: nobody answers, or the server lacks its database.

    A host that does not answer is not among it: that is how the change ended, and asking again gets the same.
    """
    if isinstance(error, ServerUnreachable):
        return isinstance(error, ConnectionLost)
    return isinstance(error, Unavailable | CallCancelled) and error.reason in ("", Reason.STATE_UNAVAILABLE)


def _api_error(document: Any) -> ApiError | None:
    """Decode a Connect error; None if the document is none."""
    code = _CODES.get(str(document.get("code"))) if isinstance(document, dict) else None
    if code is None:
        return None
    details = decode_details(document.get("details"))
    error_class = CallCancelled if code is Code.CANCELLED else ERROR_CLASSES.get(code, ApiError)
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
