"""A control plane in a dictionary: answers the command's requests without a network, and remembers them."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from click.testing import Result

from limiquantix.errors import ApiError
from limiquantix.rpc.status import to_status

Document = dict[str, Any]
Answer = Callable[[Document], Document]
Run = Callable[..., Result]
"""Runs the command with arguments, see the fixture `run`."""


Scene = list[Document | BaseException | None]
"""What one stream sends: messages, then None for its end or an error; without either the connection breaks.

One that begins with an `httpx.ConnectError` is a server that cannot be reached."""


class ProxyError(Exception):
    """Something between command and control plane answers for it."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class FakeApi:
    """Answers by method name; an answer that raises `ApiError` is a refusal, one that raises `httpx` is no answer.

    `scenes` are what streams send, one scene a call; the last one is sent to all further calls. `operation_id` is
    named with every answer, as of a method that changes something. `pauses_s` are what the command waited.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.scenes: dict[str, list[Scene]] = {}
        self.requests: list[tuple[str, Document]] = []
        self.headers: list[tuple[str, httpx.Headers]] = []
        self.ignored_fields = ""
        self.operation_id = ""
        self.pauses_s: list[float] = []

    def handle(self, request: httpx.Request) -> httpx.Response:
        method = request.url.path.rpartition("/")[2]
        is_stream = request.headers.get("content-type") == "application/connect+json"
        document = json.loads((request.content[5:] if is_stream else request.content) or b"{}")
        self.requests.append((method, document))
        self.headers.append((method, request.headers))
        if is_stream and method in self.scenes:
            scenes = self.scenes[method]
            scene = scenes.pop(0) if len(scenes) > 1 else scenes[0]
            if isinstance(scene[0], httpx.ConnectError):
                raise scene[0]
            return _stream(scene)
        if is_stream or method not in self.answers:
            return httpx.Response(404)
        headers = {b"limiquantix-ignored-fields": self.ignored_fields.encode()} if self.ignored_fields else {}
        if self.operation_id:
            headers[b"limiquantix-operation-id"] = self.operation_id.encode("latin-1")
        try:
            answer = self.answers[method](document)
        except ApiError as error:
            return httpx.Response(400, json=_connect_error(error), headers=headers)
        except ProxyError as error:
            return httpx.Response(error.status, text="<h1>not here</h1>")
        return httpx.Response(200, json=answer, headers=headers)

    def header(self, method: str, name: str) -> str | None:
        """Return a header of the last request of a method."""
        found: str | None = [headers for called, headers in self.headers if called == method][-1].get(name)
        return found

    def requests_of(self, method: str) -> list[Document]:
        """Return all requests of a method."""
        return [document for name, document in self.requests if name == method]

    def request(self, method: str) -> Document:
        """Return the only request of a method."""
        (found,) = [document for name, document in self.requests if name == method]
        return found

    def have_vms(self, *vms: Document) -> None:
        """Hold these VMs, in pages of two."""

        def list_vms(request: Document) -> Document:
            begin = int(request.get("pageToken") or 0)
            end = begin + 2
            return {
                "vms": list(vms[begin:end]),
                "nextPageToken": str(end) if end < len(vms) else "",
                "totalCount": len(vms),
            }

        self.answers["ListVMs"] = list_vms
        self.answers["GetVM"] = lambda request: next(vm for vm in vms if vm["id"] == request["id"])
        self.answers["GetNode"] = lambda request: node("host-1", id=request["id"])
        self.answers["ListNodes"] = lambda _: {"nodes": [node("host-1")]}


def _stream(scene: Scene) -> httpx.Response:
    def body() -> Iterator[bytes]:
        for each in scene:
            if isinstance(each, ApiError):
                yield envelope({"error": _connect_error(each)}, flags=2)
                return
            if isinstance(each, BaseException):
                raise each
            if each is None:
                yield envelope({}, flags=2)
                return
            data = envelope(each)
            yield data[:3]  # nothing says that envelopes come in one piece
            yield data[3:]

    return httpx.Response(200, content=body(), headers={"content-type": "application/connect+json"})


def envelope(document: Document, flags: int = 0) -> bytes:
    """A message of a stream as it is sent; the flags 2 mark its end."""
    data = json.dumps(document).encode()
    return struct.pack(">BI", flags, len(data)) + data


def _connect_error(error: ApiError) -> Document:
    return {
        "code": error.code.name.lower().replace("cancelled", "canceled"),
        "message": error.message,
        "details": [
            {
                "type": packed.type_url.rpartition("/")[2],
                "value": base64.b64encode(packed.value).decode().rstrip("="),
            }
            for packed in to_status(error).details
        ],
    }


def uuid_of(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


NODE_ID = uuid_of(900)
PROJECT_ID = uuid_of(1)


def vm(name: str, number: int = 10, *, state: str = "STOPPED", **fields: Any) -> Document:
    """A VM as the API writes it."""
    return {
        "id": uuid_of(number),
        "name": name,
        "projectId": PROJECT_ID,
        "spec": {"cpu": {"cores": 2}, "memory": {"sizeMib": "2048"}},
        "status": {"state": state, "nodeId": NODE_ID},
        "createdAt": "2024-01-01T00:00:00.123456789Z",
    } | fields


def operation(number: int = 70, *, state: str = "RUNNING", **fields: Any) -> Document:
    """An operation as the API writes it."""
    return {
        "id": uuid_of(number),
        "kind": "vm.start",
        "resourceType": "vm",
        "resourceId": uuid_of(10),
        "projectId": PROJECT_ID,
        "state": state,
        "progressPercent": 50,
        "steps": [{"name": "define", "state": "DONE"}, {"name": "start", "state": "RUNNING"}],
        "principal": "anonymous",
        "attemptCount": 1,
        "createdAt": "2024-01-01T00:00:00Z",
        "startedAt": "2024-01-01T00:00:01Z",
        "version": "3",
    } | fields


def node(hostname: str, **fields: Any) -> Document:
    """A node as the API writes it."""
    return {
        "id": NODE_ID,
        "hostname": hostname,
        "status": {
            "phase": "READY",
            "resources": {
                "cpu": {"allocatedVcpus": 3, "allocatableVcpus": 30},
                "memory": {"allocatedBytes": str(3 * 2**30), "allocatableBytes": str(2**36)},
            },
            "system": {"hypervisor": "mock", "hypervisorVersion": "1"},
        },
    } | fields
